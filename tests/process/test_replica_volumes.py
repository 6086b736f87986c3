"""Replicas of VMs with volumes in pools of kind dir: the volumes are copied as the VM's own disks are, change their host with it, and what is left of
them on the old one goes when the VM has run.

The guest writes to its own disk and to the volume in turn (tests/guest/guest_pair.c), so that what is found of them is of one moment or is not.
"""
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess

import pytest

from bed import wait_until
from disk_guest import NEEDED, WRITES, agent_of, console, create, done, image, taken_over, wait_writes, writes
from test_replica_pools import in_pool, own_pool, point_moves
from test_replica_sync import pair_moves, pairs, sync, wait_in_sync
from test_replication import children, place, replica, replicate, wait_point
from test_volume_objects import BACKUP, refused, start, volume, wait_volume

pytestmark = NEEDED


def begin(make_cluster, root=None):
    """A VM with a disk of its own and a volume of its host's in pool ssd, which writes to both; its host, and the one that is to keep its replica."""
    cluster = make_cluster(controllers=3, agents=3)
    image(cluster)
    own_pool(cluster)
    vm_id = create(cluster, 'web', ha=True, started=False, cmdline='pair', disks=[{'name': 'root', 'image': True, **(root or {})}])
    old = agent_of(cluster, 'web')
    keeper = next(a for a in cluster.agents if a is not old)
    cluster.cli('volume', 'create', 'data', '--pool', 'ssd', '--host', old.name, '--size', '1MiB', '--wait')
    made = cluster.cli('volume', 'attach', 'data', '--vm', 'web', '--wait')
    start(cluster, 'web')
    wait_volume(cluster, 'data', 'attached')
    wait_until(lambda: pairs(old, vm_id) > 100, 30, 'the guest writes', poll_s=0.05)
    return cluster, vm_id, old, keeper, made


def volumes_in(agent, made):
    return sorted(p.name for p in (agent.host.directory / 'ssd' / 'volumes').glob(made['id'] + '*'))


def name_of(made, found):
    return f'{made["id"]}.{found["place"]}'


def is_alone(cluster, made, there, others):
    """The volume is on @there and nowhere else, and so says its record."""
    def alone():
        found = volume(cluster, 'data')
        return ('other_pool' not in found and not found.get('untaken') and found['host'] == there.name and
                volumes_in(there, made) == [name_of(made, found)] and not any(volumes_in(a, made) for a in others))
    wait_until(alone, 60, f'the volume is on {there.name} alone')


def test_what_was_flushed_to_a_volume_is_there_when_the_host_is_lost(make_cluster):
    """In sync: to the last write that the guest was told of, on its own disk and on the volume alike; both go on where the copies are. Nobody changes
    the volume meanwhile. The lost host removes what it had, and keeps the replica from then on."""
    cluster, vm_id, old, keeper, made = begin(make_cluster)
    sync(cluster, keeper)
    assert replica(cluster)['volumes']
    assert in_pool(keeper, 'replicas', vm_id) == [f'{made["disk"]}.layers'] and [p.name for p in place(keeper, vm_id).glob('*.layers')] == ['root.layers']
    refused(cluster, 501, 'take the replica away first', 'POST', '/v1/volumes/data/detach')
    refused(cluster, 501, 'take the replica away first', 'PATCH', '/v1/volumes/data', {'size_bytes': 2 << 20})
    own_pool(cluster, 'hdd')
    refused(cluster, 501, 'take the replica away first', 'POST', '/v1/volumes/data/move', {'pool': 'hdd'})
    cluster.cli('volume', 'create', 'more', '--pool', 'ssd', '--host', old.name, '--size', '1MiB', '--wait')
    refused(cluster, 501, 'would be missing there', 'POST', '/v1/volumes/more/attach', {'vm': 'web'})
    old.host.power_off()
    pair_moves(vm_id, old, keeper)
    found = wait_until(lambda: not volume(cluster, 'data').get('untaken') and volume(cluster, 'data'), 30, 'the VM is seen to run')
    assert found['host'] == keeper.name and found['other_host'] == old.name and found['state'] == 'attached', found
    assert volumes_in(keeper, made) == [name_of(made, found)] and volumes_in(old, made) == [made['id']]
    assert not in_pool(keeper, 'replicas', vm_id) and not place(keeper, vm_id).exists()
    cluster.boot(old.host.number)

    def left_goes():
        volume_there = volumes_in(old, made)
        assert volume_there or not (old.directory / 'vms' / vm_id).exists(), 'a VM that is still on the host has lost its volume'
        return not volume_there
    wait_until(left_goes, 60, 'what is left of the volume is gone', poll_s=0.005)
    wait_in_sync(cluster, 90)
    is_alone(cluster, made, keeper, [a for a in cluster.agents if a is not keeper])
    assert not (old.directory / 'vms' / vm_id).exists() and in_pool(old, 'replicas', vm_id) == [f'{made["disk"]}.layers']
    far = pairs(keeper, vm_id)
    wait_until(lambda: pairs(keeper, vm_id) > far + 50, 30, 'the guest goes on', poll_s=0.05)


@pytest.mark.slow
def test_there_and_back_whoever_is_killed(make_cluster):
    """Points of a VM whose own disk is in the pool, too. The replica's host is killed as it takes them: both disks are of one moment, there, and back on the
    first host when the second is cut off and lives on. In sync then, and killed again, the agents and who serves the replica: nothing flushed is lost."""
    cluster, vm_id, old, keeper, made = begin(make_cluster, {'pool': 'ssd'})
    others = [a for a in cluster.agents if a is not old]
    replicate(cluster, keeper.name)
    wait_point(cluster)
    before = pairs(old, vm_id)
    wait_point(cluster, more=2)
    for agent in (old, keeper):
        agent.program.kill9()
        agent.run()
        wait_point(cluster, more=2, timeout_s=60)
    old.host.power_off()
    wait_until(lambda: (keeper.directory / 'vms' / vm_id).exists(), 30, "the replica's host begins", poll_s=0.005)
    keeper.program.kill9()
    keeper.run()
    point_moves(vm_id, keeper, before)
    cluster.boot(old.host.number)
    wait_point(cluster, timeout_s=90)
    is_alone(cluster, made, keeper, [a for a in cluster.agents if a is not keeper])
    first = volume(cluster, 'data')['place']
    before = pairs(keeper, vm_id)
    wait_point(cluster, more=2)
    cluster.bed.isolate(keeper.host.number)
    point_moves(vm_id, old, before)
    cluster.bed.heal()
    wait_point(cluster, timeout_s=90)
    is_alone(cluster, made, old, others)
    assert volume(cluster, 'data')['place'] != first and not (keeper.directory / 'vms' / vm_id).exists()
    sync(cluster, keeper)

    def again():
        number = replica(cluster)['number']
        wait_until(lambda: replica(cluster)['number'] > number and replica(cluster).get('in_sync'), 90, 'the replica is in sync again', poll_s=0.05)
    for agent in (old, keeper):
        agent.program.kill9()
        agent.run()
        again()
    for pid in children(keeper, 'replicate-serve'):
        os.kill(pid, signal.SIGKILL)
    again()
    far = pairs(old, vm_id)
    wait_until(lambda: pairs(old, vm_id) > far + 50, 30, 'the guest writes', poll_s=0.05)
    cluster.bed.freeze(old.host.number)
    pair_moves(vm_id, old, keeper)
    cluster.bed.thaw(old.host.number)
    wait_in_sync(cluster, 90)
    is_alone(cluster, made, keeper, [a for a in cluster.agents if a is not keeper])
    # the replica goes, the volume stays when the VM goes, and is removed from where it is
    cluster.cli('vm', 'update', 'web', '--replica-host', '', parse=False)
    wait_until(lambda: not in_pool(old, 'replicas', vm_id), 30, 'the replica is gone')
    done(cluster, cluster.api('DELETE', '/v1/vms/web'))
    assert wait_volume(cluster, 'data', 'available')['host'] == keeper.name
    cluster.cli('volume', 'delete', 'data', '--yes', parse=False)
    wait_until(lambda: volume(cluster, 'data') is None and not any(volumes_in(a, made) for a in cluster.agents), 60, 'nothing is left')


def cannot_begin(cluster, vm_id, old, keeper, made):
    """@old is lost, and the copy of the volume is not where the replica has it. Returns where it was, and how far the guest was."""
    part = keeper.host.directory / 'ssd' / 'replicas' / vm_id / f'{made["disk"]}.layers'
    old.host.power_off()
    before = pairs(old, vm_id)
    shutil.rmtree(part)
    wait_until(lambda: cluster.vm('web')['host_name'] == keeper.name and volume(cluster, 'data').get('untaken'), 60, 'the VM is given to its replica')
    return part, before


@pytest.mark.slow
def test_nothing_is_removed_before_the_vm_has_run(make_cluster):
    """The copy of the volume is gone: the lost host, back, keeps all that it has, and nobody may do without. Brought by hand the VM runs with it, and
    what was is gone."""
    cluster, vm_id, old, keeper, made = begin(make_cluster)
    sync(cluster, keeper)
    part, before = cannot_begin(cluster, vm_id, old, keeper, made)
    cluster.boot(old.host.number)
    wait_until(lambda: cluster.cli('host', 'show', old.name)['state'] == 'up', 60, 'the lost host is back')
    wait_until(lambda: 'replica' in (cluster.vm('web').get('state_reason') or '') or cluster.vm('web')['state'] == 'failed', 60, 'the VM cannot begin')
    refused(cluster, 409, 'has not said that it runs', 'DELETE', '/v1/vms/web')
    refused(cluster, 409, 'has not said that the VM runs', 'POST', '/v1/volumes/data/detach')
    refused(cluster, 409, 'may be the only copy', 'POST', '/v1/volumes/data/forget-left')
    assert volumes_in(old, made) == [made['id']] and (old.directory / 'vms' / vm_id).exists() and not volumes_in(keeper, made)
    # by hand, as docs/ha.md says
    data = volume(cluster, 'data')
    done(cluster, cluster.api('POST', '/v1/vms/web/stop?force=true'))
    disks = [a.directory / 'vms' / vm_id / 'disks' for a in (old, keeper)]
    shutil.copytree(disks[0] / 'root.layers', disks[1] / 'root.layers')
    shutil.copytree(old.host.directory / 'ssd' / 'volumes' / made['id'], keeper.host.directory / 'ssd' / 'volumes' / name_of(made, data))
    for rest in (place(keeper, vm_id), part.parent):
        shutil.rmtree(rest)
    start(cluster, 'web')
    point_moves(vm_id, keeper, before)
    wait_in_sync(cluster, 90)
    is_alone(cluster, made, keeper, [a for a in cluster.agents if a is not keeper])


@pytest.mark.slow
def test_a_volume_whose_copy_was_never_run_with_is_where_it_was(make_cluster):
    """The copy is gone, and the VM is deleted by force: the volume is on the first host, as it was, and another VM has it there."""
    cluster, vm_id, old, keeper, made = begin(make_cluster)
    sync(cluster, keeper)
    _, before = cannot_begin(cluster, vm_id, old, keeper, made)
    done(cluster, cluster.api('DELETE', '/v1/vms/web?force=true'))
    cluster.boot(old.host.number)
    found = wait_volume(cluster, 'data', 'available')
    assert found['host'] == old.name and 'place' not in found and 'other_host' not in found and not found.get('untaken'), found
    wait_until(lambda: not (old.directory / 'vms' / vm_id).exists() and not place(keeper, vm_id).exists(), 60, 'the VM is gone')
    assert volumes_in(old, made) == [made['id']]
    other = create(cluster, 'other', pin=old.name, started=False, cmdline='pair', disks=[{'name': 'root', 'image': True}])
    cluster.cli('volume', 'attach', 'data', '--vm', 'other', '--wait')
    start(cluster, 'other')
    found = wait_until(lambda: re.search(r'^pair begins 0 (\d+)\n', console(old, other), re.M), 60, 'another VM has it')
    assert int(found[1]) >= before > 0, found[0]


@pytest.mark.slow
def test_plugged_in_and_begun_as_an_image(make_cluster):
    """A volume that the VM got while it ran, and that lies above an image's copy: all of it is there after the loss, as backups of before and after say."""
    cluster = make_cluster(controllers=3, agents=3)
    if not BACKUP.exists():
        pytest.skip('drover-backup is not built')
    image(cluster)
    own_pool(cluster)
    noise = random.Random(7).randbytes(2 << 20)
    path = cluster.bed.directory / 'noise.img'
    path.write_bytes(noise)
    status, _, answer = cluster.api('POST', '/v1/images', {'name': 'noise', 'kind': 'disk', 'disk': {
        'url': f'file://{path}', 'sha256': hashlib.sha256(noise).hexdigest(), 'size_bytes': len(noise)}})
    assert status == 201, answer
    store = cluster.bed.directory / 'store'
    assert cluster.api('POST', '/v1/backup-stores', {'name': 'nas', 'location': str(store)})[0] == 201
    vm_id = create(cluster, 'web', ha=True, **WRITES)
    old = agent_of(cluster, 'web')
    keeper = next(a for a in cluster.agents if a is not old)
    made = cluster.cli('volume', 'create', 'data', '--pool', 'ssd', '--host', old.name, '--image', 'noise', '--size', '4MiB', '--wait')
    wait_writes(old, vm_id, 20)
    cluster.cli('volume', 'attach', 'data', '--vm', 'web', '--wait')
    sync(cluster, keeper)

    def backup(name):
        done(cluster, cluster.api('POST', '/v1/vms/web/backups', {'name': name}))
        found = cluster.api('GET', f'/v1/backups/{name}')[2]
        return subprocess.run([BACKUP, 'cat', '--store', store, '--backup', found['id'], '--disk', made['disk']], check=True, capture_output=True,
                              timeout=240).stdout
    assert backup('before') == noise + bytes(2 << 20)
    wait_in_sync(cluster)
    wait_writes(old, vm_id, 100)
    old.host.power_off()
    assert taken_over(cluster, vm_id, old, writes(old, vm_id)) is keeper
    assert backup('after') == noise + bytes(2 << 20)
    cluster.boot(old.host.number)
    wait_in_sync(cluster, 90)
    is_alone(cluster, made, keeper, [a for a in cluster.agents if a is not keeper])
    assert not list((old.host.directory / 'ssd' / 'images').iterdir())
