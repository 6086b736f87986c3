"""Volumes in a pool of Ceph: a real monitor and OSD on the wire that all hosts of the bed are on, real agents, VMMs and drover-rbd."""
import contextlib
import os
import pathlib
import random
import re
import signal
import struct
import subprocess
import time

import pytest

from bed import BedError, process_state, wait_until
from ceph_bed import Ceph, missing
from cluster import program
from disk_guest import (BLOCKS, NEEDED, WRITES, agent_of, console, create, done, image, pool, read_before, taken_over, wait_pool, wait_writes, writes)
from test_devices import Running
from test_volume_objects import refused, start, stop, volume, wait_volume

pytestmark = [pytest.mark.slow, *NEEDED, pytest.mark.skipif(bool(missing()), reason=missing()),
              pytest.mark.skipif(not program('drover-rbd').exists(), reason='drover-rbd is not built')]
MIB = 1 << 20
ROUNDS = int(os.environ.get('DROVER_DRILLS', '1'))


@pytest.fixture
def make_ceph(make_cluster):
    """make_ceph(controllers, agents): a cluster with pool "ceph" on all of its hosts; its attribute `ceph` is the Ceph behind it."""
    made = []

    def make(controllers, agents, **more):
        cluster = make_cluster(controllers=controllers, agents=agents, **more)
        cluster.ceph = Ceph(cluster.bed.directory / 'ceph', cluster.bed)
        made.append(cluster.ceph)
        cluster.ceph.start()
        image(cluster, disk=False)
        hosts = [word for agent in cluster.agents for word in ('--host', agent.name)]
        cluster.cli('pool', 'create', 'ceph', '--kind', 'rbd', '--path', cluster.ceph.conf, '--ceph-pool', 'vms', '--ceph-user', 'drover',
                    *hosts)
        wait_pool(cluster, 'ceph', **{agent.name: 'present' for agent in cluster.agents})
        return cluster
    yield make
    for ceph in made:
        ceph.stop()


def servers(agent):
    """Processes of that host that are drover-rbd and serve."""
    found = []
    for pid in agent.host.pids():
        with contextlib.suppress(OSError):
            words = pathlib.Path(f'/proc/{pid}/cmdline').read_bytes().split(b'\0')
            if pathlib.Path(f'/proc/{pid}/comm').read_text().strip() == 'drover-rbd' and words[1:2] == [b'serve'] and process_state(pid) != 'Z':
                found.append(pid)
    return found


def images(cluster):
    return cluster.ceph.rbd('ls', 'vms').stdout.split()


def with_volume(cluster, name, size='8MiB', **fields):
    """A VM of that name that was started with a volume of Ceph as its first disk; its id, and the volume."""
    vm_id = create(cluster, name, started=False, **WRITES, **fields)
    made = cluster.cli('volume', 'create', f'{name}-data', '--pool', 'ceph', '--size', size, '--wait')
    cluster.cli('volume', 'attach', f'{name}-data', '--vm', name, '--wait')
    start(cluster, name)
    wait_writes(agent_of(cluster, name), vm_id, 20)
    return vm_id, made


def fine(agent, vm_id):
    assert 'disk: ' not in console(agent, vm_id), console(agent, vm_id)[-2000:]


def test_a_volume_lives_in_ceph(make_ceph):
    cluster = make_ceph(controllers=1, agents=2)
    first, second = cluster.agents
    members = cluster.api('GET', '/v1/pools/ceph')[2]['members']
    assert all(m['size_bytes'] >= m['free_bytes'] > 100 * MIB for m in members), members
    vm_id, made = with_volume(cluster, 'one', pin='n1')
    assert made['state'] == 'available' and 'host' not in made
    assert images(cluster) == [f'drover-{made["id"]}']
    running = Running(cluster, 'one')
    refused(cluster, 409, 'detach it first', 'DELETE', '/v1/volumes/one-data')
    # its server dies: the guest waits, and goes on
    (server,) = servers(first)
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: servers(first) not in ([], [server]), 30, 'another server is there')
    wait_writes(first, vm_id, 2 * BLOCKS)
    # and while no agent is there to see it
    (server,) = servers(first)
    first.program.kill9()
    os.kill(server, signal.SIGKILL)
    first.program.restart()
    wait_until(lambda: servers(first) not in ([], [server]), 30, 'another server is there')
    wait_writes(first, vm_id, 2 * BLOCKS)
    # an agent alone that comes back leaves it alone
    (server,) = servers(first)
    first.program.kill9()
    wait_writes(first, vm_id, 20)
    first.program.restart()
    wait_until(lambda: cluster.hosts_up() == 2, 30, 'the host is up')
    assert servers(first) == [server]
    # Ceph itself is away for a while
    for daemon in cluster.ceph.daemons:
        daemon.send_signal(signal.SIGSTOP)
    count = writes(first, vm_id)
    wait_until(lambda: 'do not come back' in console(first, vm_id) or writes(first, vm_id) == count, 5, 'it stands still')
    for daemon in cluster.ceph.daemons:
        daemon.send_signal(signal.SIGCONT)
    wait_writes(first, vm_id, 20)
    # larger, while the guest writes, and while the VM is off
    cluster.cli('volume', 'update', 'one-data', '--size', '12MiB', '--wait')
    assert running.ask(f'disks/{made["disk"]}')['disk']['size_bytes'] == 12 * MIB and running.same_process()
    wait_writes(first, vm_id, 20)
    fine(first, vm_id)
    stop(cluster, 'one')
    wait_until(lambda: not servers(first), 30, 'its server has ended')
    cluster.cli('volume', 'update', 'one-data', '--size', '16MiB', '--wait')
    start(cluster, 'one')
    wait_writes(first, vm_id, 20)
    assert Running(cluster, 'one').ask(f'disks/{made["disk"]}')['disk']['size_bytes'] == 16 * MIB
    assert f'size {16} MiB' in cluster.ceph.rbd('info', f'vms/drover-{made["id"]}').stdout
    # from VM to VM, on another host
    stop(cluster, 'one')
    cluster.cli('volume', 'detach', 'one-data', '--wait')
    two = create(cluster, 'two', pin='n2', started=False, **WRITES)
    cluster.cli('volume', 'attach', 'one-data', '--vm', 'two', '--wait')
    start(cluster, 'two')
    wait_until(lambda: re.search(r'^disk: word 0 is \d+ not', console(second, two), re.M), 30, 'it finds what the other has written')
    done(cluster, cluster.api('DELETE', '/v1/vms/two'))
    assert wait_volume(cluster, 'one-data', 'available').get('vm') is None
    assert not servers(second)
    cluster.cli('volume', 'delete', 'one-data', '--yes', '--wait', parse=False)
    assert volume(cluster, 'one-data') is None and images(cluster) == []


def test_plugged_into_a_vm_that_runs(make_ceph):
    cluster = make_ceph(controllers=1, agents=1)
    agent = cluster.agent(1)
    vm_id, _ = with_volume(cluster, 'one')
    running = Running(cluster, 'one')
    late = cluster.cli('volume', 'create', 'late', '--pool', 'ceph', '--size', '8MiB', '--wait')
    cluster.cli('volume', 'attach', 'late', '--vm', 'one', '--wait')
    seen = running.ask(f'disks/{late["disk"]}')
    assert seen['disk']['serial'] == late['disk'] and seen['disk']['size_bytes'] == 8 * MIB and running.same_process()
    assert len(servers(agent)) == 2
    cluster.cli('volume', 'detach', 'late', '--force', '--wait')     # this guest lets nothing go by itself
    wait_until(lambda: len(servers(agent)) == 1, 30, 'its server has ended')
    cluster.cli('volume', 'delete', 'late', '--yes', '--wait', parse=False)
    wait_writes(agent, vm_id, 20)
    fine(agent, vm_id)
    # a pool that is none says why
    cluster.cli('pool', 'create', 'wrong', '--kind', 'rbd', '--path', '/nowhere.conf', '--host', 'n1')
    cluster.cli('pool', 'create', 'misnamed', '--kind', 'rbd', '--path', cluster.ceph.conf, '--host', 'n1')
    for name, why in (('wrong', '/nowhere.conf'), ('misnamed', "no pool 'misnamed'")):
        wait_pool(cluster, name, n1='absent')
        assert why in cluster.api('GET', f'/v1/pools/{name}')[2]['members'][0]['reason']
    # the VM's own disks, images, snapshots, moves: refused, with the cure
    refused(cluster, 501, 'drover volume attach', 'POST', '/v1/vms',
            {'name': 'x', 'image': 'ticker', 'vcpus': 1, 'memory_bytes': 64 << 20, 'disks': [{'name': 'root', 'size_bytes': 8 * MIB, 'pool': 'ceph'}]})
    refused(cluster, 501, 'detach it meanwhile', 'POST', '/v1/vms/one/snapshots', {})
    done(cluster, cluster.api('POST', '/v1/vms/one/stop?force=true'))
    done(cluster, cluster.api('DELETE', '/v1/vms/one'))
    assert not servers(agent)


def test_a_new_vmm_and_a_backup_of_one_that_runs(make_ceph):
    cluster = make_ceph(controllers=1, agents=1, agent_options=('--shared-memory', 'always'))
    agent = cluster.agent(1)
    pool(cluster, 'ssd', kind='dir')
    wait_pool(cluster, 'ssd', n1='present')
    vm_id, made = with_volume(cluster, 'one')
    running, (server,) = Running(cluster, 'one'), servers(agent)
    cluster.cli('vm', 'upgrade', 'one', '--wait', timeout_s=120)
    assert not running.same_process() and len(agent.vmm_pids()) == 1
    wait_writes(agent, vm_id, 2 * BLOCKS)
    fine(agent, vm_id)
    assert servers(agent) == [server] and console(agent, vm_id).count('drover-guest: hello') == 1
    store = cluster.bed.directory / 'store'
    assert cluster.api('POST', '/v1/backup-stores', {'name': 'nas', 'location': str(store)})[0] == 201
    for name in ('first', 'second'):
        before = writes(agent, vm_id)
        done(cluster, cluster.api('POST', '/v1/vms/one/backups', {'name': name}))
        backup = cluster.api('GET', f'/v1/backups/{name}')[2]
        content = subprocess.run([program('drover-backup'), 'cat', '--store', store, '--backup', backup['id'], '--disk', made['disk']], check=True,
                                 capture_output=True, timeout=240).stdout
        words = struct.unpack(f'<{BLOCKS * 512}Q', content[:BLOCKS * 4096])
        blocks = [words[i * 512:i * 512 + 512] for i in range(BLOCKS) if words[i * 512]]
        assert all(block == tuple(range(block[0], block[0] + 512)) for block in blocks), 'a block is torn'
        newest = max(block[0] // 512 for block in blocks)
        assert newest <= writes(agent, vm_id) + 2 * BLOCKS and newest + BLOCKS >= before, (before, newest)
        wait_writes(agent, vm_id, 2 * BLOCKS)
    assert backup['read_bytes'] <= 1 << 20, backup      # what has changed, of 8 MiB
    fine(agent, vm_id)
    stop(cluster, 'one')
    for path, cure in (('/v1/vms/one/backups', 'start it'), ('/v1/backups/first/restore', 'restore to a new VM')):
        with pytest.raises(BedError, match=cure):
            done(cluster, cluster.api('POST', path, {}))
    done(cluster, cluster.api('POST', '/v1/vms', {'name': 'two', 'backup': 'first', 'pool': 'ssd'}))
    done(cluster, cluster.api('POST', '/v1/backups/first/restore', {'vm': 'two'}))
    start(cluster, 'two')
    wait_until(lambda: 'disk: word 0 is' in console(agent, cluster.vm('two')['id']), 60, 'the other guest has it on a disk of its own')


def test_whoever_dies_under_writes(make_ceph):
    """Servers, VMMs and agents at any moment: the guest finds each block as it has written it, or an earlier life of it has."""
    cluster = make_ceph(controllers=1, agents=1)
    agent = cluster.agent(1)
    seed = int(os.environ.get('DROVER_SEED', 0)) or random.randrange(1 << 32)
    print(f'seed {seed}')
    chance = random.Random(seed)
    vm_id, _ = with_volume(cluster, 'one')
    for _ in range(4 * ROUNDS):
        time.sleep(chance.random())     # any moment: nothing is waited for
        victims = chance.choice(('server', 'server', 'server', 'vmm', 'server agent', 'vmm server agent')).split()
        before, lives = writes(agent, vm_id), console(agent, vm_id).count('drover-guest: hello')
        if 'agent' in victims:
            agent.program.kill9()
        for pid in (servers(agent) if 'server' in victims else []) + (agent.vmm_pids() if 'vmm' in victims else []):
            os.kill(pid, signal.SIGKILL)
        if 'agent' in victims:
            agent.program.restart()
        if 'vmm' in victims:
            wait_until(lambda: console(agent, vm_id).count('drover-guest: hello') > lives, 60, 'the guest begins anew')
            wait_until(lambda: writes(agent, vm_id) > 20, 60, 'the guest writes')
            wait_until(lambda: max(read_before(agent, vm_id), default=-1) + BLOCKS >= before, 60, 'the guest finds what was written')
        else:
            wait_until(lambda: writes(agent, vm_id) > before, 60, 'the guest goes on')
        wait_writes(agent, vm_id, 2 * BLOCKS)
        # blocks that this life has not written hold what one before it has; those that it has, nothing else
        assert not re.search(r'^disk: word \d+ is \d+ not [1-9]', console(agent, vm_id), re.M), console(agent, vm_id)[-2000:]
        assert 'disk: status' not in console(agent, vm_id)


def test_a_lost_host(make_ceph):
    """The VM goes on elsewhere with all that was flushed; a host that only stood still writes nothing when it wakes."""
    cluster = make_ceph(controllers=3, agents=4)
    vm_id, made = with_volume(cluster, 'web', ha=True)
    old = agent_of(cluster, 'web')
    wait_writes(old, vm_id, 2 * BLOCKS)
    before, begin = writes(old, vm_id), time.monotonic()
    old.host.power_off()
    found = taken_over(cluster, vm_id, old, before, timeout_s=30)
    print(f'host lost, VM executes elsewhere with its volume after {time.monotonic() - begin:.2f} s')
    cluster.boot(old.host.number)
    wait_until(lambda: not (old.directory / 'vms' / vm_id).exists(), 30, 'the old host has forgotten the VM')
    wait_until(lambda: cluster.hosts_up() == 4, 30, 'every host is up')
    wait_writes(found, vm_id, 2 * BLOCKS)
    before = writes(found, vm_id)
    cluster.bed.freeze(found.host.number)
    third = taken_over(cluster, vm_id, found, before, timeout_s=30)
    wait_writes(third, vm_id, 4 * BLOCKS)
    last = writes(found, vm_id)
    cluster.bed.thaw(found.host.number)
    wait_until(lambda: not (found.directory / 'vms' / vm_id).exists(), 60, 'the host that woke has forgotten the VM')
    wait_writes(third, vm_id, 4 * BLOCKS)
    assert not re.search(r'^disk: word \d+ is \d+ not [1-9]', console(third, vm_id), re.M), console(third, vm_id)[-2000:]
    assert writes(found, vm_id) in (0, last) and not servers(found)
    done(cluster, cluster.api('DELETE', '/v1/vms/web'))
    cluster.cli('volume', 'delete', 'web-data', '--yes', '--wait', parse=False, timeout_s=120)
    assert images(cluster) == []


def test_it_moves_to_another_host_while_it_runs(make_ceph):
    cluster = make_ceph(controllers=1, agents=2)
    vm_id, made = with_volume(cluster, 'web')
    for _ in range(2):
        old = agent_of(cluster, 'web')
        before = writes(old, vm_id)
        cluster.cli('vm', 'migrate', 'web', '--wait', timeout_s=120)
        new = agent_of(cluster, 'web')
        assert new is not old
        wait_until(lambda: [int(n) for n in re.findall(r'^disk (\d+) writes', console(new, vm_id), re.M)][-1:] > [before], 30, 'it goes on')
        fine(new, vm_id)
        wait_until(lambda: not servers(old) and len(servers(new)) == 1, 30, 'one server is left')
        (server,) = servers(new)
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: servers(new) not in ([], [server]), 30, 'another server is there')
        wait_writes(new, vm_id, 20)
        fine(new, vm_id)
