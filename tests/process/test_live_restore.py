"""A VM is started from a backup before its disks are here: what its guest reads comes from the store, the rest behind that; with a slow
store, one that goes away and comes back, and VMM, agent and drover-backup killed in the middle."""
import contextlib
import json
import os
import pathlib
import random
import re
import signal

import pytest

import bed
from bed import wait_until
from disk_guest import pool, wait_pool
from test_backups import (DISK_BYTES, add_store, backup, cluster_with, content, create, disk_now, done,  # noqa: F401
                          pytestmark, tool)

SLOW = 64 << 10         # bytes a second: the disk takes most of a minute
WRITTEN = 1 << 20       # the guest writes below that alone


@pytest.fixture
def cluster(make_cluster):
    return cluster_with(make_cluster, bytes(WRITTEN) + os.urandom(DISK_BYTES - WRITTEN))


def get(cluster, path):
    status, _, answer = cluster.api('GET', f'/v1/{path}')
    assert status == 200, answer
    return answer


def operation(cluster, started):
    return get(cluster, f"operations/{started['id']}")


def backed_up(cluster, **fields):
    """A VM that is off, with a backup, on a store that is slow from now on: (its id, what is in the backup)."""
    vm_id = create(cluster, 'a', **fields)
    add_store(cluster)
    made = backup(cluster, name='one')
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    assert cluster.api('PATCH', '/v1/backup-stores/nas', {'bytes_per_second': SLOW})[0] == 200
    return vm_id, content(cluster, made['id'])


def restore(cluster, **fields):
    status, _, started = cluster.api('POST', '/v1/backups/one/restore', {'live': True, **fields})
    assert status == 202, started
    return started


def runs(cluster, started, vm='a'):
    """It does, and is not whole yet."""
    wait_until(lambda: cluster.vm(vm)['state'] == 'running', 40, 'the VM runs')
    assert operation(cluster, started)['state'] == 'running', operation(cluster, started)


def console(cluster, vm_id):
    path = cluster.agent(1).directory / 'vms' / vm_id / 'console.log'
    return path.read_text(errors='replace') if path.exists() else ''


def guest_goes_on(cluster, vm_id, timeout_s=60):
    was = console(cluster, vm_id)
    wait_until(lambda: len(console(cluster, vm_id)) > len(was) + 40, timeout_s, 'the guest reads and writes its disk')
    # at its first look at a block it takes it for empty; from then on it knows what it has written
    said = console(cluster, vm_id)
    assert not re.search(r'word \d+ is \d+ not [1-9]|status|twice', said), said[-500:]


def fast(cluster):
    """From now on, also for what is under way."""
    assert cluster.api('PATCH', '/v1/backup-stores/nas', {'bytes_per_second': 1 << 30})[0] == 200


def test_it_runs_at_once_and_is_whole_in_the_end(cluster):
    vm_id, was = backed_up(cluster, disks=[{'name': 'root', 'image': True}, {'name': 'data', 'size_bytes': DISK_BYTES}])
    started = restore(cluster)
    runs(cluster, started)
    guest_goes_on(cluster, vm_id)
    # what needs whole disks is refused, with the cure
    for method, path, body in (('POST', '/v1/vms/a/snapshots', {'name': 's'}), ('POST', '/v1/vms/a/backups', {}),
                               ('POST', '/v1/backups/one/restore', {}), ('POST', '/v1/vms/a/upgrade', None)):
        status, _, problem = cluster.api(method, path, body)
        assert status == 409 and 'not whole' in problem['detail'] and 'wait' in problem['detail'], (path, problem)
    # nor is it cancelled under a guest that has no other disks
    assert cluster.api('POST', f"/v1/operations/{started['id']}/cancel")[0] == 200
    wait_until(lambda: 'not cancelled' in operation(cluster, started)['step'], 30, 'it says so')
    assert cluster.vm('a')['state'] == 'running'
    cluster.agent(1).program.kill9()
    cluster.agent(1).run()
    fast(cluster)
    cluster.wait_operation(started, timeout_s=30)      # it would take longer than that
    guest_goes_on(cluster, vm_id)
    assert get(cluster, 'backups/one')['state'] == 'available'
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    assert disk_now(cluster, vm_id)[WRITTEN:] == was[WRITTEN:]
    # a disk like any other: it has snapshots, and starts without any source
    done(cluster, cluster.api('POST', '/v1/vms/a/start'))
    done(cluster, cluster.api('POST', '/v1/vms/a/snapshots', {'name': 's'}))


def test_store_cut_off_and_everything_killed(cluster):
    vm_id, was = backed_up(cluster)
    started = restore(cluster)
    runs(cluster, started)
    away = cluster.store.rename(cluster.store.with_name('away'))
    wait_until(lambda: 'waits for the store' in operation(cluster, started)['step'], 40, 'the operation says why nothing comes')
    # whatever is asked of its disks meanwhile does not stand still with the guest's reads
    done(cluster, cluster.api('POST', '/v1/vms/a/pause'))
    done(cluster, cluster.api('POST', '/v1/vms/a/resume'))
    for pid in cluster.agent(1).vmm_pids():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: cluster.vm('a')['state'] == 'running' and cluster.vm('a').get('restarts', 0) > 0, 60, 'the VM runs again, without the store')
    cluster.agent(1).program.kill9()
    cluster.agent(1).run()
    away.rename(cluster.store)
    guest_goes_on(cluster, vm_id)
    fast(cluster)
    cluster.wait_operation(started)
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    assert disk_now(cluster, vm_id)[WRITTEN:] == was[WRITTEN:]


def test_given_up_while_it_is_off(cluster):
    vm_id, was = backed_up(cluster)
    done(cluster, cluster.api('POST', '/v1/vms', {'name': 'b', 'backup': 'one'}))      # has no disks yet
    started = restore(cluster, vm='b')
    runs(cluster, started, 'b')
    done(cluster, cluster.api('POST', '/v1/vms/b/stop?force=true'))
    assert cluster.api('POST', f"/v1/operations/{started['id']}/cancel")[0] == 200
    ended = done(cluster, (202, None, started), 'cancelled')
    assert 'restore it again' in ended['error_text'], ended
    # nobody takes the holes for zeroes
    failed = done(cluster, cluster.api('POST', '/v1/vms/b/start'), 'failed')
    assert 'not whole' in failed['error_text'], failed
    done(cluster, cluster.api('POST', '/v1/vms/b/stop?force=true'))
    fast(cluster)
    said = cluster.cli('backup', 'restore', 'one', '--vm', 'b', '--live', '--yes', '--wait')
    assert said['state'] == 'succeeded' and cluster.vm('b')['state'] == 'running', said
    done(cluster, cluster.api('POST', '/v1/vms/b/stop?force=true'))
    assert disk_now(cluster, cluster.vm('b')['id'])[WRITTEN:] == was[WRITTEN:]


def servers(cluster):
    found = []
    for pid in cluster.agent(1).host.pids():
        with contextlib.suppress(OSError):      # it has ended meanwhile
            if b'drover-backup\0serve' in pathlib.Path(f'/proc/{pid}/cmdline').read_bytes():
                found.append(pid)
    return found


def test_vm_deleted_before_it_is_whole(cluster):
    backed_up(cluster)
    started = restore(cluster)
    runs(cluster, started)
    assert len(servers(cluster)) == 1
    done(cluster, cluster.api('DELETE', '/v1/vms/a'))
    wait_until(lambda: operation(cluster, started)['state'] != 'running', 40, 'the end of the restore')
    assert operation(cluster, started)['state'] in ('cancelled', 'failed'), operation(cluster, started)
    wait_until(lambda: not servers(cluster), 30, 'nobody serves it any more')
    assert get(cluster, 'backups/one')['state'] == 'available'


@pytest.mark.slow
def test_leader_lost_in_the_middle(make_cluster):
    cluster = cluster_with(make_cluster, bytes(WRITTEN) + os.urandom(DISK_BYTES - WRITTEN), controllers=3)
    vm_id, was = backed_up(cluster)
    started = restore(cluster)
    cluster.leader().program.kill9()        # before or after the host's word that the VM can be started
    wait_until(lambda: cluster.vm('a')['state'] == 'running', 40, 'the VM runs')
    assert operation(cluster, started)['state'] == 'running', operation(cluster, started)
    fast(cluster)
    cluster.wait_operation(started)
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    assert disk_now(cluster, vm_id)[WRITTEN:] == was[WRITTEN:]


@pytest.mark.slow
def test_its_host_is_cut_off_and_lost_for_a_while(make_cluster):
    """The guest goes on where it was, with what it has written: the restore is not given up with the host."""
    cluster = cluster_with(make_cluster, bytes(WRITTEN) + os.urandom(DISK_BYTES - WRITTEN), controllers=3)
    vm_id, was = backed_up(cluster)
    started = restore(cluster)
    runs(cluster, started)
    agent = cluster.agent(1)
    cluster.bed.isolate(agent.host.number)
    wait_until(lambda: cluster.cli('host', 'show', agent.name)['state'] == 'lost', 60, 'the host is lost')
    cluster.bed.heal()
    wait_until(lambda: cluster.cli('host', 'show', agent.name)['state'] == 'up', 60, 'the host is back')
    guest_goes_on(cluster, vm_id)
    fast(cluster)
    cluster.wait_operation(started)
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    assert disk_now(cluster, vm_id)[WRITTEN:] == was[WRITTEN:]


@pytest.mark.slow
def test_in_pools_and_given_up_for_a_plain_restore(cluster):
    nas, _ = pool(cluster, 'nas'), pool(cluster, 'ssd', kind='dir')
    for name in ('nas', 'ssd'):
        wait_pool(cluster, name, n1='present')
    vm_id, was = backed_up(cluster, pool='nas', disks=[{'name': 'root', 'image': True}, {'name': 'data', 'size_bytes': DISK_BYTES, 'pool': 'ssd'}])

    def root_now():
        made = tool(cluster, 'create', '--vm', 'by-hand', '--parent', 'none', '--json', '--disk', f'root=pool:{nas}/vms/{vm_id}/root.layers/root')
        return content(cluster, json.loads(made)['id'])

    started = restore(cluster)
    runs(cluster, started)
    guest_goes_on(cluster, vm_id)
    fast(cluster)
    cluster.wait_operation(started)
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    assert root_now()[WRITTEN:] == was[WRITTEN:]
    assert cluster.api('PATCH', '/v1/backup-stores/nas', {'bytes_per_second': SLOW})[0] == 200
    started = restore(cluster)
    runs(cluster, started)
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    assert cluster.api('POST', f"/v1/operations/{started['id']}/cancel")[0] == 200
    done(cluster, (202, None, started), 'cancelled')
    fast(cluster)
    done(cluster, cluster.api('POST', '/v1/backups/one/restore', {}))
    assert root_now() == was
    done(cluster, cluster.api('POST', '/v1/vms/a/start'))


@pytest.mark.slow
def test_host_reboots_in_the_middle(cluster):
    vm_id, was = backed_up(cluster)
    started = restore(cluster)
    runs(cluster, started)
    cluster.bed.host(1).power_off()
    cluster.boot(1)
    wait_until(lambda: cluster.ready(cluster.controller(1)), 30, 'the controller')
    wait_until(lambda: cluster.vm('a')['state'] == 'running', 60, 'the VM runs')
    guest_goes_on(cluster, vm_id)
    fast(cluster)
    cluster.wait_operation(started)
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    assert disk_now(cluster, vm_id)[WRITTEN:] == was[WRITTEN:]


@pytest.mark.slow
def test_random_kills(cluster):
    """Whatever is killed, and wherever the filling stands: what comes out is the backup and what the guest has written since."""
    seed = int(os.environ.get('DROVER_SEED', 0)) or random.randrange(1 << 30)
    print(f'DROVER_SEED={seed}')
    chance, (vm_id, was) = random.Random(seed), backed_up(cluster)
    agent = cluster.agent(1)

    def kill(pids):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def store_away():
        away = cluster.store.rename(cluster.store.with_name('away'))
        guest = console(cluster, vm_id)
        with contextlib.suppress(bed.BedError):
            wait_until(lambda: len(console(cluster, vm_id)) > len(guest) + 200, 3, 'as far as it gets')
        away.rename(cluster.store)

    def agent_ends():
        agent.program.kill9()
        agent.run()

    harm = [lambda: kill(agent.vmm_pids()), lambda: kill(servers(cluster)), agent_ends, store_away]
    for _ in range(8):
        assert cluster.api('PATCH', '/v1/backup-stores/nas', {'bytes_per_second': 4 * SLOW})[0] == 200
        started = restore(cluster)
        for part in sorted(chance.random() for _ in range(4)):
            wait_until(lambda: operation(cluster, started)['state'] != 'running' or operation(cluster, started).get('progress_done', 0) >= part * DISK_BYTES,
                       60, f'{part:.0%} have come')
            chance.choice(harm)()
        fast(cluster)
        cluster.wait_operation(started)
        wait_until(lambda: cluster.vm('a')['state'] == 'running', 90, 'the VM runs')
        guest_goes_on(cluster, vm_id)
        done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
        assert disk_now(cluster, vm_id)[WRITTEN:] == was[WRITTEN:]
