"""Replicas of disks in pools of kind dir: copied into the pool as the other host has it, and opened there when the VM's host is lost.

Each host has a directory of its own at one path (/srv is a host's own in the bed).
"""
import os
import re

import pytest

from bed import wait_until
from disk_guest import NEEDED, WRITES, agent_of, console, create, done, image, life, taken_over, wait_pool, wait_writes, writes
from test_replica_sync import pair_moves, pairs, sync, wait_in_sync
from test_replication import place, replica, replicate, wait_point
from test_volume_objects import refused

pytestmark = NEEDED


def own_pool(cluster, name='ssd', agents=None):
    """A pool of kind dir with another directory on each host."""
    agents = agents or cluster.agents
    for agent in agents:
        (agent.host.directory / name).mkdir()
    words = [word for agent in agents for word in ('--host', agent.name)]
    cluster.cli('pool', 'create', name, '--kind', 'dir', '--path', f'/srv/{name}', *words)
    wait_pool(cluster, name, **{agent.name: 'present' for agent in agents})


def in_pool(agent, what, vm_id, name='ssd'):
    return sorted(p.name for p in (agent.host.directory / name / what / vm_id).glob('*'))


def begin(make_cluster, disks, pool_hosts=3, **fields):
    cluster = make_cluster(controllers=3, agents=3)
    image(cluster)
    own_pool(cluster, agents=cluster.agents[:pool_hosts])
    vm_id = create(cluster, 'web', ha=True, disks=disks, **fields)
    old = agent_of(cluster, 'web')
    return cluster, vm_id, old, next(a for a in cluster.agents if a is not old)


ROOT = [{'name': 'root', 'image': True, 'pool': 'ssd'}]


def test_what_was_flushed_is_in_the_other_hosts_pool(make_cluster):
    """In sync: to the last write that the guest was told of."""
    cluster, vm_id, old, keeper = begin(make_cluster, ROOT, pool_hosts=2, **WRITES)
    refused(cluster, 409, "has not pool 'ssd'", 'PATCH', '/v1/vms/web', {'replica_host': cluster.agents[2].name})
    sync(cluster, keeper)
    assert in_pool(keeper, 'replicas', vm_id) == ['root.layers'] and not list(place(keeper, vm_id).glob('*.layers'))
    wait_writes(old, vm_id, 200)
    old.host.power_off()
    assert taken_over(cluster, vm_id, old, writes(old, vm_id)) is keeper
    assert in_pool(keeper, 'vms', vm_id) == ['root.layers'] and not in_pool(keeper, 'replicas', vm_id) and not place(keeper, vm_id).exists()


@pytest.mark.slow
def test_points_of_disks_in_the_pool_and_beside_it(make_cluster):
    """Points of two disks, one in the pool and one in the directory: of one moment on the other host, whose agent is killed as it takes them; and
    back again, from a host that was cut off and lives on."""
    disks = [{'name': 'root', 'image': True, 'pool': 'ssd'}, {'name': 'data', 'size_bytes': 1 << 20}]
    cluster, vm_id, old, keeper = begin(make_cluster, disks, cmdline='pair')
    left = keeper.host.directory / 'ssd' / 'vms' / vm_id         # of an earlier stay, of whose end the pool has not heard
    left.mkdir(mode=0o700)
    replicate(cluster, keeper.name)
    wait_until(lambda: f'/srv/ssd/vms/{vm_id}; remove it' in replica(cluster).get('failure', ''), 30, 'it is said what is in the way')
    left.rmdir()
    wait_point(cluster)
    assert in_pool(keeper, 'replicas', vm_id) == ['root.layers'] and [p.name for p in place(keeper, vm_id).glob('*.layers')] == ['data.layers']
    refused(cluster, 501, 'replica', 'POST', '/v1/vms/web/move-disk', {'disk': 'root'})
    before = pairs(old, vm_id)
    wait_point(cluster, more=2)
    old.host.power_off()
    wait_until(lambda: (keeper.directory / 'vms' / vm_id).exists(), 30, "the replica's host begins", poll_s=0.005)
    keeper.program.kill9()
    keeper.run()
    point_moves(vm_id, keeper, before)
    assert in_pool(keeper, 'vms', vm_id) == ['root.layers'] and not in_pool(keeper, 'replicas', vm_id) and not place(keeper, vm_id).exists()
    cluster.boot(old.host.number)
    wait_point(cluster, timeout_s=90)
    assert not in_pool(old, 'vms', vm_id) and not (old.directory / 'vms' / vm_id).exists()
    before = pairs(keeper, vm_id)
    wait_point(cluster, more=2)
    cluster.bed.isolate(keeper.host.number)
    point_moves(vm_id, old, before)
    cluster.bed.heal()
    wait_point(cluster, timeout_s=90)
    assert not in_pool(keeper, 'vms', vm_id) and not (keeper.directory / 'vms' / vm_id).exists()
    assert in_pool(keeper, 'replicas', vm_id) == ['root.layers']
    done(cluster, cluster.api('DELETE', '/v1/vms/web'))
    for agent in cluster.agents:
        wait_until(lambda agent=agent: not in_pool(agent, 'replicas', vm_id) and not in_pool(agent, 'vms', vm_id), 30, 'nothing is left')


def point_moves(vm_id, keeper, before):
    """The VM begins on @keeper from a point: both disks of one moment, in which it had written @before to both."""
    found = wait_until(lambda: re.search(r'^pair begins (\d+) (\d+)\n', life(keeper, vm_id), re.M), 60, 'the VM runs from its replica', poll_s=0.05)
    first, second = int(found[1]), int(found[2])
    assert second <= first <= second + 1 and second >= before, (found[0], before)
    assert 'pair: ' not in console(keeper, vm_id)
    wait_until(lambda: pairs(keeper, vm_id) > first + 20, 30, 'the guest goes on', poll_s=0.05)


@pytest.mark.slow
def test_a_pool_that_is_away_is_waited_for(make_cluster):
    """The pool is away on the replica's host when the VM's host is lost: it waits, and is started when the pool is back, with all that was flushed. The
    first host comes back, and has nothing of the VM but its replica."""
    cluster, vm_id, old, keeper = begin(make_cluster, [{'name': 'root', 'image': True, 'pool': 'ssd'}, {'name': 'data', 'size_bytes': 1 << 20}], cmdline='pair')
    sync(cluster, keeper)
    far = pairs(old, vm_id)
    wait_until(lambda: pairs(old, vm_id) > far + 100, 30, 'the guest writes', poll_s=0.05)
    marker = keeper.host.directory / 'ssd' / 'drover-pool.json'
    os.rename(marker, keeper.host.directory / 'marker')
    states = {a.name: 'absent' if a is keeper else 'present' for a in cluster.agents}
    wait_pool(cluster, 'ssd', **states)
    assert replica(cluster)['in_sync']
    old.host.power_off()
    wait_until(lambda: 'pool' in (cluster.vm('web').get('placement') or ''), 40, 'it is said what it waits for')
    assert cluster.vm('web')['host_name'] == old.name
    os.rename(keeper.host.directory / 'marker', marker)
    pair_moves(vm_id, old, keeper)
    assert in_pool(keeper, 'vms', vm_id) == ['root.layers']
    cluster.boot(old.host.number)
    wait_in_sync(cluster, 90)
    assert not (old.directory / 'vms' / vm_id).exists() and not in_pool(old, 'vms', vm_id)
    assert in_pool(old, 'replicas', vm_id) == ['root.layers'] and (place(old, vm_id) / 'replica.json').exists()
    cluster.cli('vm', 'update', 'web', '--replica-host', '', parse=False)
    wait_until(lambda: not place(old, vm_id).exists() and not in_pool(old, 'replicas', vm_id), 30, 'the replica is gone')


@pytest.mark.slow
def test_a_full_pool_on_the_replicas_host(make_cluster):
    """The guest notices nothing, the reason is told, the last complete point stays; with room there are points again."""
    cluster, vm_id, old, keeper = begin(make_cluster, ROOT, **WRITES)
    replicas = f'/srv/ssd/replicas/{vm_id}'
    keeper.host.run(['mkdir', '-p', replicas])
    keeper.host.run(['mount', '-t', 'tmpfs', '-o', 'size=3m', 'small', replicas])
    replicate(cluster, keeper.name)
    wait_point(cluster, more=2, timeout_s=60)

    def fill():
        keeper.host.run(['sh', '-c', f'cat /dev/zero > {replicas}/ballast'], check=False)
        return replica(cluster).get('failure')
    reason = wait_until(fill, 60, 'there is no room')
    assert 'room' in reason or 'No space' in reason, reason
    number = replica(cluster)['number']
    wait_writes(old, vm_id, 10)
    assert replica(cluster)['number'] == number
    keeper.host.run(['rm', f'{replicas}/ballast'])
    wait_point(cluster, more=2, timeout_s=60)
    wait_writes(old, vm_id, 10)
    assert 'failure' not in replica(cluster) and 'disk: word' not in life(old, vm_id)
