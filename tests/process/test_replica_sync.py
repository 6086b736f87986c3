"""Replicas that are in sync: what a guest was told is written is there when its host is lost, and no guest goes on without its replica before the
cluster's record says so.

The guest takes no FLUSH, so each of its writes is followed by one before it hears of it (tests/guest/guest_disk.c).
"""
import os
import re
import signal

import pytest

from bed import wait_until
from disk_guest import NEEDED, agent_of, console, create, done, image, life, pool, taken_over, wait_pool, wait_writes, writes
from test_devices import Running
from test_replication import begin, children, place, replica, replicate, wait_point
from test_volume_objects import layers, refused, wait_volume

pytestmark = NEEDED


def is_in_sync(cluster):
    return bool(replica(cluster).get('in_sync'))


def wait_in_sync(cluster, timeout_s=60):
    wait_until(lambda: is_in_sync(cluster), timeout_s, 'the replica is in sync', poll_s=0.05)


def sync(cluster, keeper, patience_s=2):
    replicate(cluster, keeper.name, replica_sync_s=patience_s)
    wait_in_sync(cluster)


def test_what_was_flushed_is_there_when_the_host_is_lost(make_cluster):
    """To the last write that the guest was told of before the plug was pulled."""
    cluster, vm_id, old, keeper = begin(make_cluster, ha=True)
    sync(cluster, keeper)
    wait_writes(old, vm_id, 200)
    old.host.power_off()
    assert taken_over(cluster, vm_id, old, writes(old, vm_id)) is keeper        # its last words are on the dead host's disk


def shared_pool(cluster):
    nas = pool(cluster, 'nas')
    wait_pool(cluster, 'nas', **{a.name: 'present' for a in cluster.agents})
    return nas


def pairs(agent, vm_id):
    """How far the guest's present life says that it is on both disks (tests/guest/guest_pair.c)."""
    return max([int(n) for n in re.findall(r'^pair (\d+)$', life(agent, vm_id), re.M)], default=0)


def pair_moves(vm_id, old, keeper):
    """@old is lost: the VM begins on @keeper with what it had written to each disk, of one moment."""
    found = wait_until(lambda: re.search(r'^pair begins (\d+) (\d+)\n', life(keeper, vm_id), re.M), 40, 'the VM runs from its replica', poll_s=0.05)
    first, second = int(found[1]), int(found[2])
    assert second <= first <= second + 1 and second >= pairs(old, vm_id) > 0, (found[0], pairs(old, vm_id))
    assert 'pair: ' not in console(keeper, vm_id) + console(old, vm_id)
    wait_until(lambda: pairs(keeper, vm_id) > first + 20, 30, 'the guest goes on', poll_s=0.05)


def pair_begin(make_cluster, shared):
    """A VM that writes to two disks, @shared of which are in a pool that all hosts have, and is in sync."""
    cluster = make_cluster(controllers=3, agents=3)
    image(cluster)
    shared_pool(cluster)
    disks = [{'name': 'root', 'image': True}, {'name': 'data', 'size_bytes': 1 << 20}]
    disks = [{**d, 'pool': 'nas'} if d['name'] == shared else d for d in disks]
    vm_id = create(cluster, 'web', ha=True, disks=disks, cmdline='pair')
    old = agent_of(cluster, 'web')
    keeper = next(a for a in cluster.agents if a is not old)
    refused(cluster, 409, 'replica_sync_s', 'PATCH', '/v1/vms/web', {'replica_host': keeper.name})
    sync(cluster, keeper)
    far = pairs(old, vm_id)
    wait_until(lambda: pairs(old, vm_id) > far + 100, 30, 'the guest writes', poll_s=0.05)
    return cluster, vm_id, old, keeper


def test_copied_and_shared_disks_are_of_one_moment(make_cluster):
    """What the guest wrote to a disk in a shared pool is opened where the copy of the other is, and neither is ahead."""
    cluster, vm_id, old, keeper = pair_begin(make_cluster, 'data')
    assert [p.name for p in place(keeper, vm_id).glob('*.layers')] == ['root.layers']
    old.host.power_off()
    pair_moves(vm_id, old, keeper)
    assert cluster.vm('web')['host_name'] == keeper.name
    assert (keeper.directory / 'vms' / vm_id / 'disks' / 'root.layers' / 'root.disk').exists() and not place(keeper, vm_id).exists()


@pytest.mark.slow
def test_of_one_moment_whatever_is_cut(make_cluster):
    """The first disk is the shared one. The host is cut off, alive; and the next one stands still, and wakes up when the VM runs elsewhere. Each time
    the disks are of one moment, and the old host writes nothing any more."""
    cluster, vm_id, old, keeper = pair_begin(make_cluster, 'root')
    cluster.bed.isolate(old.host.number)
    pair_moves(vm_id, old, keeper)
    cluster.bed.heal()
    wait_in_sync(cluster, 90)
    assert cluster.vm('web')['replica_host'] == old.name and not (old.directory / 'vms' / vm_id).exists()
    cluster.bed.freeze(keeper.host.number)
    pair_moves(vm_id, keeper, old)
    cluster.bed.thaw(keeper.host.number)
    wait_in_sync(cluster, 90)
    far = pairs(old, vm_id)
    wait_until(lambda: pairs(old, vm_id) > far + 20, 30, 'the guest writes', poll_s=0.05)
    assert not (keeper.directory / 'vms' / vm_id).exists()
    lives = console(old, vm_id).count('drover-guest: hello')
    done(cluster, cluster.api('POST', '/v1/vms/web/stop?force=true'))
    done(cluster, cluster.api('POST', '/v1/vms/web/start'))
    wait_until(lambda: console(old, vm_id).count('drover-guest: hello') > lives, 30, 'the guest begins anew')
    found = wait_until(lambda: re.search(r'^pair begins (\d+) (\d+)\n', life(old, vm_id), re.M), 30, 'the VM runs', poll_s=0.05)
    assert int(found[2]) <= int(found[1]) <= int(found[2]) + 1 and int(found[2]) > far, found[0]


@pytest.mark.slow
def test_volumes_of_shared_pools_go_along(make_cluster):
    """Plugged in and enlarged in sync; opened on the replica's host, whose agent is killed as it begins, and left alone by the old one when that is
    back. The other way round again, the old VMM alive and cut off."""
    cluster, vm_id, old, keeper = begin(make_cluster, ha=True)
    nas = shared_pool(cluster)
    made = cluster.cli('volume', 'create', 'data', '--pool', 'nas', '--size', '8MiB', '--wait')
    disk = made['disk']
    sync(cluster, keeper)
    number = replica(cluster)['number']
    cluster.cli('volume', 'attach', 'data', '--vm', 'web', '--wait')
    cluster.cli('volume', 'update', 'data', '--size', '12MiB', '--wait')
    assert Running(cluster, 'web').ask(f'disks/{disk}')['disk']['size_bytes'] == 12 << 20
    assert is_in_sync(cluster) and replica(cluster)['number'] == number
    refused(cluster, 409, 'replica_sync_s', 'PATCH', '/v1/vms/web', {'replica_sync_s': 0})
    for pid in children(keeper, 'replicate-serve'):      # from here on sessions are of a part of the disks
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: replica(cluster)['number'] > number and is_in_sync(cluster), 60, 'the replica is in sync again', poll_s=0.05)
    wait_writes(old, vm_id, 200)
    old.host.power_off()
    wait_until(lambda: (keeper.directory / 'vms' / vm_id).exists(), 30, 'the replica\'s host begins', poll_s=0.005)
    keeper.program.kill9()
    keeper.run()
    assert taken_over(cluster, vm_id, old, writes(old, vm_id), timeout_s=30) is keeper
    wait_volume(cluster, 'data', 'attached')
    assert Running(cluster, 'web').ask(f'disks/{disk}')['disk']['size_bytes'] == 12 << 20
    cluster.boot(old.host.number)
    wait_in_sync(cluster, 90)
    assert not (old.directory / 'vms' / vm_id).exists() and [p.name for p in place(old, vm_id).glob('*.layers')] == ['root.layers']
    assert (layers(nas, made) / f'{disk}.disk').exists()
    wait_writes(keeper, vm_id, 200)
    cluster.bed.isolate(keeper.host.number)
    wait_until(lambda: writes(old, vm_id) > 0, 60, 'the VM runs on the first host again')
    assert taken_over(cluster, vm_id, keeper, writes(keeper, vm_id)) is old
    cluster.bed.heal()
    wait_in_sync(cluster, 90)
    assert not (keeper.directory / 'vms' / vm_id).exists()
    wait_writes(old, vm_id, 50)
    assert 'disk: status' not in life(old, vm_id)
    cluster.cli('vm', 'update', 'web', '--replica-host', '', parse=False)
    done(cluster, cluster.api('DELETE', '/v1/vms/web'))
    assert wait_volume(cluster, 'data', 'available')['size_bytes'] == 12 << 20


@pytest.mark.slow
def test_it_goes_on_alone_only_when_the_record_says_so(make_cluster):
    """The way between the two is cut: the guest stands still until the replica counts as out of sync, then goes on; with the way back it comes in
    sync again, and what it had is there when its host is lost."""
    cluster, vm_id, old, keeper = begin(make_cluster, ha=True)
    sync(cluster, keeper)
    wait_writes(old, vm_id, 50)
    number = replica(cluster)['number']
    cluster.bed.cut(old.host.number, keeper.host.number)
    before = writes(old, vm_id)

    def goes_on():
        seen = writes(old, vm_id)
        if is_in_sync(cluster):
            nonlocal before
            before = max(before, seen)      # it was in sync after that
            return False
        return writes(old, vm_id) > before + 100
    wait_until(goes_on, 60, 'the VM goes on without its replica', poll_s=0.02)
    events = [e['message'] for e in cluster.cli('event', 'list') if 'replica of VM web' in e['message']]
    assert any('out of sync' in m for m in events), events
    assert replica(cluster)['number'] == number
    cluster.bed.heal()
    wait_in_sync(cluster)
    assert replica(cluster)['number'] > number
    wait_writes(old, vm_id, 200)
    old.host.power_off()
    taken_over(cluster, vm_id, old, writes(old, vm_id))
    # the host is back: the replica is the other way round, and in sync again
    cluster.boot(old.host.number)
    wait_in_sync(cluster, 90)
    vm = cluster.vm('web')
    assert vm['host_name'] == keeper.name and vm['replica_host'] == old.name, vm
    assert (place(old, vm_id) / 'replica.json').exists()
    wait_writes(keeper, vm_id, 200)
    assert 'disk: status' not in life(keeper, vm_id)


@pytest.mark.slow
def test_whoever_is_killed_nothing_flushed_is_lost(make_cluster):
    """Agents of both hosts, the process that serves the replica, and the VMM are killed while it is in sync: each time it comes in sync again, and
    the guest goes on. Then the VM's host is cut off: what its guest is told before it stops is what the replica has."""
    cluster, vm_id, old, keeper = begin(make_cluster, ha=True)
    sync(cluster, keeper)

    def again():
        number = replica(cluster)['number']
        wait_until(lambda: replica(cluster)['number'] > number and is_in_sync(cluster), 90, 'the replica is in sync again', poll_s=0.05)

    for agent in (old, keeper):
        agent.program.kill9()
        agent.run()
        again()
        wait_writes(old, vm_id, 50)
    for pid in children(keeper, 'replicate-serve'):
        os.kill(pid, signal.SIGKILL)
    again()
    wait_writes(old, vm_id, 50)
    assert 'disk: ' not in life(old, vm_id)
    for pid in old.vmm_pids():
        os.kill(pid, signal.SIGKILL)
    again()
    wait_writes(old, vm_id, 50)
    cluster.bed.isolate(old.host.number)
    found = wait_until(lambda: next((a for a in cluster.agents if a is not old and writes(a, vm_id) > 0), None), 60, 'the VM runs elsewhere')
    assert found is keeper
    taken_over(cluster, vm_id, old, writes(old, vm_id))


@pytest.mark.slow
def test_without_controllers_the_guest_waits(make_cluster):
    """Nobody can say that the replica is out of sync: the guest stands still, however long that takes, and goes on when somebody can."""
    cluster, vm_id, old, keeper = begin(make_cluster)
    sync(cluster, keeper, patience_s=10)        # a busy machine is no loss
    wait_writes(old, vm_id, 50)
    log = old.directory / 'vms' / vm_id / 'vmm.log'
    losses = log.read_text().count('guest_waits=true')
    wait_in_sync(cluster)
    for controller in cluster.controllers:
        controller.program.kill9()
    for pid in children(keeper, 'replicate-serve'):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: log.read_text().count('guest_waits=true') > losses, 30, 'its VMM has lost the replica')

    def tick_on(more):
        first = console(old, vm_id).count('tick ')
        wait_until(lambda: console(old, vm_id).count('tick ') > first + more, 60, 'the guest ticks on')
    tick_on(3)          # what it was told just before is on its console
    stands_at = writes(old, vm_id)
    tick_on(40)
    assert writes(old, vm_id) == stands_at
    for controller in cluster.controllers:
        controller.run()
    wait_writes(old, vm_id, 100)
    wait_in_sync(cluster, 90)
    assert 'disk: ' not in life(old, vm_id).replace('disk: lost', '')


@pytest.mark.slow
def test_beside_backups_and_migrations(make_cluster):
    """Other work on the VM has it go out of sync for so long, and comes in sync again; also when it goes to its replica's host."""
    cluster, vm_id, old, keeper = begin(make_cluster)
    third = next(a for a in cluster.agents if a not in (old, keeper))
    sync(cluster, keeper)
    store = cluster.bed.directory / 'store'
    store.mkdir()
    status, _, answer = cluster.api('POST', '/v1/backup-stores', {'name': 'nas', 'location': str(store)})
    assert status == 201, answer
    done(cluster, cluster.api('POST', '/v1/vms/web/backups', {'name': 'one', 'store': 'nas'}))
    wait_in_sync(cluster, 90)
    done(cluster, cluster.api('POST', '/v1/vms/web/migrate', {'to': third.name}))
    wait_in_sync(cluster, 90)
    assert cluster.vm('web')['replica_host'] == keeper.name
    done(cluster, cluster.api('POST', '/v1/vms/web/migrate', {'to': keeper.name}))
    wait_in_sync(cluster, 90)
    assert cluster.vm('web')['replica_host'] == third.name
    wait_writes(keeper, vm_id, 100)
    assert 'disk: ' not in life(keeper, vm_id)
    # off and on; points that are sent; none at all
    done(cluster, cluster.api('POST', '/v1/vms/web/stop?force=true'))
    # the replica has all until the session's end is in the record, which comes after that of the stop
    wait_until(lambda: not is_in_sync(cluster), 30, 'the replica of a VM that is off is a point', poll_s=0.05)
    done(cluster, cluster.api('POST', '/v1/vms/web/start'))
    wait_in_sync(cluster, 90)
    replicate(cluster, third.name, replica_sync_s=0)
    wait_until(lambda: not is_in_sync(cluster), 30, 'it is not kept in sync any more')
    wait_point(cluster, more=2, timeout_s=60)
    cluster.cli('vm', 'update', 'web', '--replica-host', '', parse=False)
    wait_until(lambda: not place(third, vm_id).exists(), 30, 'the replica is gone')
    wait_writes(keeper, vm_id, 100)
