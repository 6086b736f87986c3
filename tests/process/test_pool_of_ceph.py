"""Volumes in a pool of Ceph: a real monitor and OSD on the wire that all hosts of the bed are on, real agents, VMMs and drover-rbd."""
import contextlib
import hashlib
import json
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
from disk_guest import (BLOCKS, GUEST, NEEDED, WRITES, agent_of, console, create, done, image, pool, read_before, taken_over, wait_pool, wait_writes, writes)
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


def servers(agent, verb=b'serve'):
    """Processes of that host that are drover-rbd and serve, or do what @verb says."""
    found = []
    for pid in agent.host.pids():
        with contextlib.suppress(OSError):
            words = pathlib.Path(f'/proc/{pid}/cmdline').read_bytes().split(b'\0')
            if pathlib.Path(f'/proc/{pid}/comm').read_text().strip() == 'drover-rbd' and words[1:2] == [verb] and process_state(pid) != 'Z':
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


def disk_image(cluster, name, content, holes=0, **fields):
    """An image with the test guest's kernel and a disk of that content, and so many bytes of a hole after it. Its file."""
    path = cluster.bed.directory / f'{name}.img'
    with path.open('wb') as file:
        file.write(content)
        file.truncate(len(content) + holes)
    parts = {'disk': path} if fields else {'kernel': GUEST, 'disk': path}
    artifacts = {part: {'url': f'file://{file}', 'sha256': hashlib.sha256(file.read_bytes()).hexdigest(), 'size_bytes': file.stat().st_size}
                 for part, file in parts.items()}
    status, _, answer = cluster.api('POST', '/v1/images', {'name': name, 'kind': 'kernel', **artifacts, **fields})
    assert status == 201, answer
    return path


def content_of(cluster, made):
    path = cluster.bed.directory / 'exported'
    path.unlink(missing_ok=True)
    cluster.ceph.rbd('export', '--no-progress', f'vms/drover-{made["id"]}', path)
    return path.read_bytes()


def reason(cluster, name):
    return (volume(cluster, name) or {}).get('state_reason', '')


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


def test_a_vm_boots_from_a_volume_that_begins_as_an_image(make_ceph):
    cluster = make_ceph(controllers=1, agents=2)
    first, second = cluster.agents
    words = b''.join(struct.pack('<512Q', *range(1000 * 512, 1001 * 512)) for _ in range(BLOCKS))
    disk = disk_image(cluster, 'debian', words + bytes(4 * MIB) + b'the end', holes=90 * MIB + 5)
    refused(cluster, 400, f'less than the {disk.stat().st_size} bytes of image', 'POST', '/v1/volumes',
            {'name': 'root', 'pool': 'ceph', 'image': 'debian', 'size_bytes': 8 * MIB})
    made = cluster.cli('volume', 'create', 'root', '--pool', 'ceph', '--image', 'debian', '--wait')
    assert made['state'] == 'available' and 'state_reason' not in made
    assert made['size_bytes'] - disk.stat().st_size in range(512)
    whole = disk.read_bytes()
    assert content_of(cluster, made) == whole + bytes(made['size_bytes'] - len(whole))
    used = json.loads(cluster.ceph.rbd('du', '--format', 'json', f'vms/drover-{made["id"]}').stdout)['images'][0]['used_size']
    assert used <= 8 * MIB, 'holes stay holes'
    larger = cluster.cli('volume', 'create', 'larger', '--pool', 'ceph', '--image', 'debian', '--size', '128MiB', '--wait')
    assert larger['size_bytes'] == 128 * MIB and content_of(cluster, larger) == whole + bytes(128 * MIB - len(whole))
    # the root disk of a VM that has none of its own
    cluster.cli('vm', 'create', 'one', '--image', 'debian', '--vcpus', '1', '--memory', '64MiB', '--cmdline', WRITES['cmdline'], '--disk', 'none',
                '--started=false', '--pin', 'n1', '--wait')
    assert not cluster.vm('one').get('disks')
    vm_id = cluster.vm('one')['id']
    cluster.cli('volume', 'attach', 'root', '--vm', 'one', '--wait')
    start(cluster, 'one')
    wait_writes(first, vm_id, 20)
    wait_until(lambda: 1000 in read_before(first, vm_id), 30, 'it finds what the image has')
    assert not list((first.directory / 'vms' / vm_id / 'disks').glob('*.layers'))
    before = writes(first, vm_id)
    # elsewhere, with nothing made anew there
    stop(cluster, 'one')
    cluster.cli('volume', 'detach', 'root', '--wait')
    two = create(cluster, 'two', image='debian', disks=[], pin='n2', started=False, **WRITES)
    cluster.cli('volume', 'attach', 'root', '--vm', 'two', '--wait')
    start(cluster, 'two')
    wait_until(lambda: max(read_before(second, two), default=-1) + BLOCKS >= before, 30, 'it finds what the other has written')
    done(cluster, cluster.api('DELETE', '/v1/vms/two'))
    # what a VM is told whose image is booted by firmware; that it boots then is the lab's affair: here KVM emulates the firmware's code
    disk_image(cluster, 'cloud', words, kind='disk')
    boots = create(cluster, 'three', image='cloud', disks=[], pin='n2', started=False)
    cluster.cli('volume', 'attach', 'larger', '--vm', 'three', '--wait')
    if cluster.api('POST', '/v1/vms/three/start')[0] == 202:
        path = second.directory / 'vms' / boots / 'config.json'
        wait_until(path.exists, 30, 'its VMM is started')
        config = json.loads(path.read_text())
        assert config['firmware'] == 'bios' and [d.get('serial') for d in config['disks']] == [larger['disk']]


def test_whoever_dies_while_a_volume_is_filled(make_ceph):
    """At any moment: the volume is in the making until all of it is there, and then it is what the image is."""
    cluster = make_ceph(controllers=1, agents=1)
    agent = cluster.agent(1)
    seed = int(os.environ.get('DROVER_SEED', 0)) or random.randrange(1 << 32)
    print(f'seed {seed}')
    chance = random.Random(seed)
    disk = disk_image(cluster, 'big', chance.randbytes(96 * MIB))
    whole = disk.read_bytes()
    for number in range(2 * ROUNDS):
        name = f'v{number}'
        status, _, made = cluster.api('POST', '/v1/volumes', {'name': name, 'pool': 'ceph', 'image': 'big'})
        assert status == 201, made
        (filler,) = wait_until(lambda: servers(agent, b'fill'), 30, 'it is being filled', poll_s=0.005)
        time.sleep(0.7 * chance.random())     # any moment: nothing is waited for
        victims = chance.choice(('filler', 'agent', 'agent filler')).split()
        if 'agent' in victims:
            agent.program.kill9()
        if 'filler' in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(filler, signal.SIGKILL)
        found = volume(cluster, name)
        print(victims, found['state'], found.get('state_reason'))
        if 'agent' in victims:
            agent.program.restart()
        wait_volume(cluster, name, 'available', timeout_s=150)
        assert content_of(cluster, made) == whole
        cluster.cli('volume', 'delete', name, '--yes', '--wait', parse=False, timeout_s=120)
    # Ceph stands still in the middle: it waits, and is ended when nobody wants it any more
    made = cluster.api('POST', '/v1/volumes', {'name': 'late', 'pool': 'ceph', 'image': 'big'})[2]
    wait_until(lambda: servers(agent, b'fill'), 30, 'it is being filled', poll_s=0.005)
    for daemon in cluster.ceph.daemons:
        daemon.send_signal(signal.SIGSTOP)
    late = volume(cluster, 'late')
    print('stopped at', late['state'], late.get('state_reason'))
    cluster.api('DELETE', '/v1/volumes/late')
    wait_until(lambda: not servers(agent, b'fill'), 30, 'the child has ended')
    for daemon in cluster.ceph.daemons:
        daemon.send_signal(signal.SIGCONT)
    wait_until(lambda: volume(cluster, 'late') is None, 120, 'the volume is gone')
    assert images(cluster) == []


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
