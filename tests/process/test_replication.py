"""Replicas of VMs whose disks are on their hosts: points that are complete or not there, and a VM that is started from the last one.

The guest writes and reads its disk all the time (tests/guest/guest_disk.c): what it finds on the replica says how old that is.
"""
import contextlib
import os
import pathlib
import shutil
import signal

import pytest

from bed import BedError, wait_until
from disk_guest import NEEDED, WRITES, agent_of, create, done, image, life, taken_over, wait_writes, writes

pytestmark = NEEDED


def replica(cluster, name='web'):
    return cluster.vm(name).get('replica', {})


def replicate(cluster, keeper, name='web', every_s=2, **more):
    status, _, answer = cluster.api('PATCH', f'/v1/vms/{name}', {'replica_host': keeper, 'replica_every_s': every_s, **more})
    assert status == 200, answer


def wait_point(cluster, name='web', more=1, timeout_s=30):
    """So many complete points more than there are."""
    first = replica(cluster, name)
    def newer():
        now = replica(cluster, name)
        return now.get('number', 0) >= (first.get('number', 0) if now.get('id') == first.get('id') else 0) + more
    wait_until(newer, timeout_s, f'{name} has {more} points more than {first}', poll_s=0.1)


def place(agent, vm_id):
    return agent.directory / 'replicas' / vm_id


def children(agent, work):
    """Processes of the agent's that do such work."""
    found = []
    for pid in agent.host.pids():
        try:
            words = pathlib.Path(f'/proc/{pid}/cmdline').read_bytes().split(b'\0')
        except OSError:
            continue
        if work.encode() in words:
            found.append(pid)
    return found


def stall_point(vm_id, source, keeper):
    """A point that does not come to its end: images of the disks are open, and who receives them stands still."""
    images = source.directory / 'vms' / vm_id / 'backup.sock'

    def stalled():
        wait_until(images.exists, 30, 'a point', poll_s=0.001)
        for pid in children(keeper, 'replicate-receive'):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        with contextlib.suppress(BedError):
            wait_until(lambda: not images.exists(), 1, 'the point is complete')     # it came too late
        return images.exists()
    wait_until(stalled, 60, 'a point that stands still')


def begin(make_cluster, **fields):
    """A VM that writes, its host, and the host that is to keep its replica."""
    cluster = make_cluster(controllers=3, agents=3)
    image(cluster)
    vm_id = create(cluster, 'web', **WRITES, **fields)
    old = agent_of(cluster, 'web')
    keeper = next(a for a in cluster.agents if a is not old)
    wait_writes(old, vm_id, 20)
    return cluster, vm_id, old, keeper


def test_a_vm_is_started_from_its_replica(make_cluster):
    """Its host is lost; on the replica's host it finds what it had written before the last point. Then the replica is the other way round."""
    cluster, vm_id, old, keeper = begin(make_cluster, ha=True)
    replicate(cluster, keeper.name)
    wait_point(cluster, timeout_s=30)
    assert (place(keeper, vm_id) / 'replica.json').exists() and replica(cluster)['epoch'] == cluster.vm('web')['epoch']
    before = writes(old, vm_id)
    wait_point(cluster, more=2)
    assert replica(cluster)['sent_bytes'] <= 4 << 20
    old.host.power_off()
    taken_over(cluster, vm_id, old, before)
    vm = cluster.vm('web')
    assert vm['host_name'] == keeper.name and vm['replica_host'] == old.name and vm['failovers'] == 1, vm
    assert not place(keeper, vm_id).exists()
    # the host is back: nothing of its old disks is left, and it keeps the replica now
    cluster.boot(old.host.number)
    wait_point(cluster, timeout_s=60)
    assert not (old.directory / 'vms' / vm_id).exists() and (place(old, vm_id) / 'replica.json').exists()
    assert cluster.cli('vm', 'show', 'web')['replica']['age_s'] < 600
    # taken away, and it goes
    cluster.cli('vm', 'update', 'web', '--replica-host', '', parse=False)
    assert not replica(cluster)
    wait_until(lambda: not place(old, vm_id).exists(), 30, 'the replica is gone')


def test_what_is_refused(make_cluster):
    """In words that say what to do; and one that is late says so."""
    cluster, vm_id, old, keeper = begin(make_cluster)
    def refused(word, **fields):
        status, _, answer = cluster.api('PATCH', '/v1/vms/web', fields)
        assert status >= 400 and word in answer['detail'], answer
    refused('no host', replica_host='nobody')
    refused('name another', replica_host=old.name)
    done(cluster, cluster.api('POST', '/v1/vms/web/snapshots', {'name': 'one'}))
    refused('delete the VM', replica_host=keeper.name)
    done(cluster, cluster.api('DELETE', '/v1/snapshots/one'))
    replicate(cluster, keeper.name, replica_limit_s=5)
    wait_point(cluster)
    status, _, answer = cluster.api('POST', '/v1/vms/web/snapshots', {'name': 'two'})
    assert status >= 400 and 'replica' in answer['detail'], answer
    status, _, answer = cluster.api('DELETE', f'/v1/hosts/{keeper.name}')
    assert status == 409 and 'web' in answer['detail'], answer
    # a host of a replica that is cut off: late, and the VM goes on; then up to date again
    cluster.bed.isolate(keeper.host.number)
    wait_until(lambda: replica(cluster).get('late'), 40, 'the replica is late')
    wait_writes(old, vm_id, 5)
    cluster.bed.heal()
    wait_until(lambda: not replica(cluster).get('late'), 60, 'the replica is up to date again')
    events = [e['message'] for e in cluster.cli('event', 'list') if 'replica of VM web' in e['message']]
    assert any('is late' in m for m in events) and any('up to date again' in m for m in events), events
    assert not [o for o in cluster.items('/v1/operations') if o['kind'] == 'vm-replicate' and o['state'] != 'running']
    done(cluster, cluster.api('DELETE', '/v1/vms/web'))
    wait_until(lambda: not place(keeper, vm_id).exists(), 30, 'the replica is gone with its VM')


@pytest.mark.slow
def test_whoever_is_killed_a_complete_point_stays(make_cluster):
    """Agents of both hosts, the processes that send and receive, and the VMM are killed while points are made; there are new points after each,
    and what the VM is started from in the end is of one instant."""
    cluster, vm_id, old, keeper = begin(make_cluster, ha=True)
    replicate(cluster, keeper.name)
    wait_point(cluster)

    def kill_children(agent, work):
        pids = wait_until(lambda: children(agent, work), 30, f'{work} on {agent.name}', poll_s=0.002)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    for what in range(8):
        before = writes(old, vm_id)
        if what % 4 == 0:
            kill_children(keeper, 'replicate-receive')
        elif what % 4 == 1:
            kill_children(old, 'replicate-send')
        else:
            agent = keeper if what % 4 == 2 else old
            wait_until(lambda: children(agent, 'replicate-receive' if agent is keeper else 'replicate-send'), 30, 'a point', poll_s=0.002)
            agent.program.kill9()
            agent.run()
        wait_point(cluster, more=2, timeout_s=60)
        wait_writes(old, vm_id)
        assert 'disk: word' not in life(old, vm_id)
    for agent in (old, keeper):         # of those that were killed nothing is left but what is under way
        assert len(list((agent.directory / 'run').glob('r*.sock'))) <= 1
    old.host.power_off()
    taken_over(cluster, vm_id, old, before)
    assert not list((keeper.directory / 'replicas').iterdir())


@pytest.mark.slow
def test_beside_backups_and_migrations(make_cluster):
    """A backup does not fail because a point is being made, and neither does a migration; and where the VM goes to its replica's host
    they change places."""
    cluster, vm_id, old, keeper = begin(make_cluster)
    third = next(a for a in cluster.agents if a not in (old, keeper))
    replicate(cluster, keeper.name)
    wait_point(cluster)
    store = cluster.bed.directory / 'store'
    store.mkdir()
    status, _, answer = cluster.api('POST', '/v1/backup-stores', {'name': 'nas', 'location': str(store)})
    assert status == 201, answer
    for i in range(4):
        done(cluster, cluster.api('POST', '/v1/vms/web/backups', {'name': f'b{i}', 'store': 'nas'}))
    wait_point(cluster)
    first = replica(cluster)['id']
    stall_point(vm_id, old, keeper)
    done(cluster, cluster.api('POST', '/v1/vms/web/migrate', {'to': third.name}))
    assert replica(cluster)['epoch'] == cluster.vm('web')['epoch']      # what the point holds is still so
    wait_point(cluster, more=2)
    assert replica(cluster)['id'] == first and cluster.vm('web')['replica_host'] == keeper.name
    done(cluster, cluster.api('POST', '/v1/vms/web/migrate', {'to': keeper.name}))
    assert cluster.vm('web')['replica_host'] == third.name
    wait_point(cluster, more=2, timeout_s=60)
    assert replica(cluster)['id'] != first and not place(keeper, vm_id).exists() and place(third, vm_id).exists()
    wait_writes(keeper, vm_id, 5)
    assert 'disk: word' not in life(keeper, vm_id)


@pytest.mark.slow
def test_a_replica_that_is_gone_costs_no_disks(make_cluster):
    """The replica's host has lost it: the VM is not started empty, and the host that it was on keeps its disks; brought over, it goes on with them."""
    cluster, vm_id, old, keeper = begin(make_cluster, ha=True)
    replicate(cluster, keeper.name, every_s=86400)
    wait_point(cluster)
    before = writes(old, vm_id)
    shutil.rmtree(place(keeper, vm_id))
    old.host.power_off()
    why = wait_until(lambda: cluster.vm('web')['state'] == 'failed' and cluster.vm('web').get('state_reason'), 90, 'the VM cannot be started')
    assert 'is not here' in why and cluster.vm('web')['host_name'] == keeper.name, why
    cluster.boot(old.host.number)
    wait_until(lambda: cluster.cli('host', 'show', old.name)['state'] == 'up', 60, 'the host is back')
    done(cluster, cluster.api('POST', '/v1/vms/web/stop?force=true'))
    disks = pathlib.Path('vms', vm_id, 'disks')
    for layers in (old.directory / disks).glob('*.layers'):
        shutil.copytree(layers, keeper.directory / disks / layers.name)
    done(cluster, cluster.api('POST', '/v1/vms/web/start'))
    taken_over(cluster, vm_id, old, before)
    wait_until(lambda: not (old.directory / 'vms' / vm_id).exists(), 30, 'the old disks go when it has run')


@pytest.mark.slow
def test_a_full_disk_of_the_replicas_host(make_cluster):
    """The guest notices nothing, the reason is told, the last complete point stays; with room there are points again."""
    cluster, vm_id, old, keeper = begin(make_cluster)
    replicas = keeper.data / 'replicas' / vm_id
    keeper.host.run(['mkdir', '-p', replicas])
    keeper.host.run(['mount', '-t', 'tmpfs', '-o', 'size=3m', 'small', replicas])
    replicate(cluster, keeper.name)
    wait_point(cluster, more=2)
    keeper.host.run(['sh', '-c', f'cat /dev/zero > {replicas}/ballast'], check=False)
    reason = wait_until(lambda: replica(cluster).get('failure'), 60, 'there is no room')
    assert 'room' in reason or 'No space' in reason, reason
    number = replica(cluster)['number']
    wait_writes(old, vm_id, 10)
    assert replica(cluster)['number'] == number
    keeper.host.run(['rm', f'{replicas}/ballast'])
    wait_point(cluster, more=2, timeout_s=60)
    assert 'failure' not in replica(cluster) and 'disk: word' not in life(old, vm_id)
