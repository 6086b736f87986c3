"""Clones of VMs: a VM of a snapshot of another one that writes all the time, and of one that is off; whole or gone, whoever ends on the way."""
import datetime
import hashlib
import json
import os
import signal

from bed import wait_until
from disk_guest import BLOCKS, GUEST, NEEDED, WRITES, create, done, image, life, pool, read_before, wait_pool, wait_writes
from test_agent import vmm_of
from test_devices import Running
from test_volume_move import place as volume_place, worker
from test_volume_objects import layers, refused, start, stop, volume, wait_volume
from test_volume_snapshot import ended
from test_volumes import numbers_in

pytestmark = NEEDED
DISKS = [{'name': 'root', 'image': True}, {'name': 'data', 'size_bytes': 4 << 20}]


def home(agent, vm_id):
    return agent.directory / 'vms' / vm_id


def content(layers, snapshot=None):
    """What the guest's blocks hold in the disk at @layers: now, or in a snapshot (its id)."""
    head = json.loads((layers / f'{layers.name.split(".")[0]}.disk').read_text())
    return numbers_in(layers, head['top'] if snapshot is None else next(s['layer'] for s in head['snapshots'] if s['name'] == snapshot))


def place(directory, operation, disk='root'):
    return directory / f'{disk}.{operation["id"]}.layers'


def large_image(cluster):
    """With a disk that takes a moment to copy: the guest's blocks are empty, the rest is not."""
    image(cluster, 'small')
    disk = cluster.bed.directory / 'large.img'
    disk.write_bytes(bytes(1 << 20) + os.urandom(1 << 20) * 63)
    artifacts = {part: {'url': f'file://{path}', 'sha256': hashlib.sha256(path.read_bytes()).hexdigest()}
                 for part, path in (('kernel', GUEST), ('disk', disk))}
    status, _, answer = cluster.api('POST', '/v1/images', {'name': 'ticker', 'kind': 'kernel', **artifacts})
    assert status == 201, answer


def held_clone(cluster, agent, name, **body):
    """A clone in the making, whose child is held. Returns the operation."""
    for _ in range(10):
        status, _, operation = cluster.api('POST', '/v1/vms/one/clone', {'name': name, **body})
        assert status == 202, operation

        def hold():
            pid = worker(agent, 'clone')
            if pid is not None:
                os.kill(pid, signal.SIGSTOP)
            return pid is not None or cluster.vm(name)['state'] != 'starting'
        wait_until(hold, 30, 'somebody begins to make it', poll_s=0.001)
        if cluster.vm(name)['state'] == 'starting':
            return operation
        cluster.cli('vm', 'delete', name, '--yes', '--wait', parse=False)     # it was done before it could be held
    raise AssertionError('it is always done before it can be held')


def test_clones(make_cluster):
    cluster = make_cluster(controllers=1, agents=1)
    agent = cluster.agent(1)
    large_image(cluster)
    nas = pool(cluster, 'nas')
    wait_pool(cluster, 'nas', n1='present')
    one = create(cluster, 'one', disks=DISKS, **WRITES)
    source = home(agent, one) / 'disks' / 'root.layers'
    wait_writes(agent, one, BLOCKS)
    done(cluster, cluster.api('POST', '/v1/vms/one/snapshots', {'name': 's'}))
    snapshot = cluster.api('GET', '/v1/snapshots/s')[2]['id']
    kept = content(source, snapshot)
    assert any(kept)
    # cancelled, and deleted: nothing of it is left
    for end in ('cancel', 'delete'):
        operation = held_clone(cluster, agent, 'two', snapshot='s')
        two = cluster.vm('two')['id']
        assert (home(agent, two) / 'half').exists()       # so that it is not started with what is there, whoever forgets the task
        for method, what in (('POST', 'vms/two/start'), ('DELETE', 'snapshots/s'), ('DELETE', 'vms/one')):
            refused(cluster, 409, 'is being made of', method, f'/v1/{what}')
        answer = cluster.api('POST', f'/v1/operations/{operation["id"]}/cancel') if end == 'cancel' else cluster.api('DELETE', '/v1/vms/two')
        assert answer[0] in (200, 202), answer
        assert ended(cluster, operation)['state'] in ('cancelled',) + ('failed',) * (end == 'delete')     # the VM may be gone before the task
        wait_until(lambda: cluster.vm('two') is None and not home(agent, two).exists(), 30, 'it is gone, and its files')
    # killed, agent and controller: it is made all the same, and the other one has not noticed
    operation = held_clone(cluster, agent, 'two', snapshot='s')
    agent.program.kill9()
    cluster.controller(1).program.kill9()
    cluster.controller(1).program.restart()
    agent.program.restart()
    assert ended(cluster, operation)['state'] == 'succeeded'
    two = cluster.vm('two')
    assert two['state'] == 'stopped' and two['host_name'] == 'n1' and not two.get('unstarted'), two
    assert not (home(agent, two['id']) / 'half').exists()
    disks = home(agent, two['id']) / 'disks'
    assert content(place(disks, operation)) == kept and place(disks, operation, 'data').exists()
    wait_writes(agent, one)
    assert 'disk: ' not in life(agent, one)
    # a VM as any other, before it has ever run, too
    done(cluster, cluster.api('POST', '/v1/vms/two/snapshots', {'name': 't'}))
    start(cluster, 'two')
    wait_until(lambda: read_before(agent, two['id']), 30, 'the guest finds what the other had written')
    assert max(read_before(agent, two['id'])) <= max(kept)
    wait_writes(agent, two['id'], 5)
    # of one that is off, into a pool; one that is to run comes first
    stop(cluster, 'one')
    operation = held_clone(cluster, agent, 'three', pool='nas')
    three = cluster.vm('three')['id']
    start(cluster, 'one')
    found = ended(cluster, operation)
    assert found['state'] == 'failed' and 'is to run' in found['error_text'], found
    wait_until(lambda: cluster.vm('three') is None and not (nas / 'vms' / three).exists(), 30, 'it is gone, and its files')
    stop(cluster, 'one')
    now = content(source)
    cluster.cli('vm', 'clone', 'one', 'three', '--pool', 'nas', '--wait', parse=False)
    three = cluster.vm('three')
    assert [d['pool'] for d in three['disks']] == ['nas', 'nas'] and three['disks_made']
    where = nas / 'vms' / three['id'] / f'root.{three["disks"][0]["place"]}.layers'
    assert content(where) == now
    # where it came from goes, and it is what it was
    cluster.cli('vm', 'delete', 'one', '--yes', '--wait', parse=False)
    start(cluster, 'three')
    wait_until(lambda: read_before(agent, three['id']), 30, 'the guest finds what the other had written')
    cluster.cli('vm', 'delete', 'three', '--yes', '--wait', parse=False)
    assert not list((nas / 'vms').iterdir())


def snapshots(cluster):
    return cluster.api('GET', '/v1/snapshots')[2]


def test_clones_of_a_vm_that_runs(make_cluster):
    """By a snapshot that nobody asked for, and that nobody finds afterwards, whoever ends on the way."""
    cluster = make_cluster(controllers=1, agents=1)
    agent = cluster.agent(1)
    large_image(cluster)
    one = create(cluster, 'one', disks=DISKS, **WRITES)
    source = home(agent, one) / 'disks' / 'root.layers'
    wait_writes(agent, one, BLOCKS)
    # killed, agent and controller, while it is copied
    operation = held_clone(cluster, agent, 'two')
    made = snapshots(cluster)
    two = cluster.vm('two')['id']
    assert [s['clone'] for s in made] == [two] and made[0]['vm_name'] == 'one' and made[0]['consistency'] == 'crash', made
    kept = content(source, made[0]['id'])
    assert any(kept)
    refused(cluster, 409, 'is being made of', 'DELETE', f'/v1/snapshots/{made[0]["name"]}')
    agent.program.kill9()
    cluster.controller(1).program.kill9()
    cluster.controller(1).program.restart()
    agent.program.restart()
    assert ended(cluster, operation)['state'] == 'succeeded'
    assert content(place(home(agent, two) / 'disks', operation)) == kept
    wait_until(lambda: not snapshots(cluster), 30, 'nobody needs the snapshot any more')
    wait_until(lambda: not json.loads((source / 'root.disk').read_text()).get('snapshots'), 30, 'nor has the disk it')
    wait_writes(agent, one)
    assert 'disk: ' not in life(agent, one)
    start(cluster, 'two')
    wait_until(lambda: read_before(agent, two), 30, 'the guest finds what the other had written')
    assert max(read_before(agent, two)) <= max(kept)
    # cancelled while it is copied, and the agent is killed then
    operation = held_clone(cluster, agent, 'three')
    three = cluster.vm('three')['id']
    assert cluster.api('POST', f'/v1/operations/{operation["id"]}/cancel')[0] in (200, 202)
    agent.program.kill9()
    agent.program.restart()
    assert ended(cluster, operation)['state'] == 'cancelled'
    wait_until(lambda: cluster.vm('three') is None and not home(agent, three).exists() and not snapshots(cluster), 30, 'it is gone, and its snapshot')
    # cancelled, and deleted, before there is a snapshot: its host looks after that
    [vmm] = vmm_of(cluster, one)
    for end in ('cancel', 'delete'):
        os.kill(vmm, signal.SIGSTOP)
        status, _, operation = cluster.api('POST', '/v1/vms/one/clone', {'name': 'three', 'freeze': False})
        assert status == 202, operation
        wait_until(lambda: 'waiting for a snapshot' in cluster.api('GET', f'/v1/operations/{operation["id"]}')[2].get('step', ''), 20, 'it says so')
        if end == 'cancel':
            assert cluster.api('POST', f'/v1/operations/{operation["id"]}/cancel')[0] in (200, 202)
        else:
            agent.program.kill9()
            assert cluster.api('DELETE', '/v1/vms/three')[0] == 202
            agent.program.restart()
        os.kill(vmm, signal.SIGCONT)
        assert ended(cluster, operation)['state'] in ('cancelled',) + ('failed',) * (end == 'delete')
        wait_until(lambda: cluster.vm('three') is None and not snapshots(cluster), 30, 'it is gone, and its snapshot')
    wait_writes(agent, one)
    assert 'disk: ' not in life(agent, one)


MIB = 1 << 20
VOLUMES = {'v-nas': 'nas', 'one-ssd': 'ssd'}      # the second one's clone is named after the new VM alone


def volume_image(cluster):
    """What a volume of 16 MiB begins as: blocks that differ, so that each byte of a copy is seen."""
    path = cluster.bed.directory / 'volume.img'
    path.write_bytes(os.urandom(16 * MIB))
    artifacts = {part: {'url': f'file://{file}', 'sha256': hashlib.sha256(file.read_bytes()).hexdigest()}
                 for part, file in (('kernel', GUEST), ('disk', path))}
    status, _, answer = cluster.api('POST', '/v1/images', {'name': 'random', 'kind': 'kernel', **artifacts})
    assert status == 201, answer
    return path.read_bytes()


def copy_is(path, found, wanted):
    """The clone @found, in the pool @path, is one layer that holds @wanted."""
    where = volume_place(path, found)
    top = json.loads((where / f'{found["disk"]}.disk').read_text())['top']
    assert (where / f'{top}.raw').read_bytes()[:len(wanted)] == wanted


def gone(cluster, agent, vm_id, paths, names):
    """Nothing is left of a clone, but for the volumes that it was to be made of."""
    wait_until(lambda: not home(agent, vm_id).exists() and all(volume(cluster, name) is None for name in names), 30, 'it is gone, and its volumes')
    for path in paths.values():
        assert len(list((path / 'volumes').iterdir())) == 1, list((path / 'volumes').iterdir())


def test_clones_with_volumes(make_cluster):
    """All of the VM's disks, of one moment; all of them go where it is not made, whoever ends on the way."""
    cluster = make_cluster(controllers=1, agents=1)
    agent = cluster.agent(1)
    large_image(cluster)
    wanted = volume_image(cluster)
    paths = {name: pool(cluster, name, kind) for name, kind in (('nas', 'shared-dir'), ('ssd', 'dir'))}
    for name in paths:
        wait_pool(cluster, name, n1='present')
    one = create(cluster, 'one', disks=DISKS, **WRITES)
    for name, where in VOLUMES.items():
        cluster.cli('volume', 'create', name, '--pool', where, '--image', 'random', '--size', '16MiB', '--wait', parse=False)
        cluster.cli('volume', 'attach', name, '--vm', 'one', '--wait', parse=False)
    cluster.cli('vm', 'limit', 'one', '--disk', volume(cluster, 'v-nas')['disk'], '--operations-per-second', '5000', '--wait', parse=False)
    wait_writes(agent, one, BLOCKS)
    made = ('two-v-nas', 'two-ssd')
    # a taken name: nothing has begun
    cluster.cli('volume', 'create', 'two-ssd', '--pool', 'nas', '--size', '1MiB', '--wait', parse=False)
    refused(cluster, 409, "'two-ssd', which another volume has", 'POST', '/v1/vms/one/clone', {'name': 'two'})
    assert cluster.vm('two') is None and volume(cluster, 'two-v-nas') is None and not snapshots(cluster)
    cluster.cli('volume', 'delete', 'two-ssd', '--yes', '--wait', parse=False)
    # cancelled, deleted, and the agent killed on the way: nothing is left of it
    for end in ('cancel', 'delete', 'kill'):
        operation = held_clone(cluster, agent, 'two')
        two = cluster.vm('two')['id']
        assert operation['volumes'] == list(made), operation
        assert [(volume(cluster, name)['state'], volume(cluster, name)['vm_name']) for name in made] == [('attaching', 'two')] * 2
        refused(cluster, 409, 'is under way', 'POST', '/v1/volumes/two-ssd/detach')
        answer = cluster.api('DELETE', '/v1/vms/two') if end == 'delete' else cluster.api('POST', f'/v1/operations/{operation["id"]}/cancel')
        assert answer[0] in (200, 202), answer
        if end == 'kill':
            agent.program.kill9()
            agent.program.restart()
        assert ended(cluster, operation)['state'] in ('cancelled',) + ('failed',) * (end == 'delete')
        wait_until(lambda: cluster.vm('two') is None and not snapshots(cluster), 30, 'it is gone, and its snapshot')
        gone(cluster, agent, two, paths, made)
    # killed, agent and controller: it is made all the same, and the other one has not noticed
    operation = held_clone(cluster, agent, 'two')
    agent.program.kill9()
    cluster.controller(1).program.kill9()
    cluster.controller(1).program.restart()
    agent.program.restart()
    assert ended(cluster, operation)['state'] == 'succeeded'
    for name, path in zip(made, paths.values()):
        found = wait_volume(cluster, name, 'attached')
        assert found['vm_name'] == 'two' and found['place'] == operation['id'] and found['attachments'] == 1, found
        copy_is(path, found, wanted)
    keys = ('name', 'size_bytes', 'limits')
    assert [[d.get(k) for k in keys] for d in cluster.vm('two')['disks']] == [[d.get(k) for k in keys] for d in cluster.vm('one')['disks']]
    wait_writes(agent, one)
    assert 'disk: ' not in life(agent, one)
    start(cluster, 'two')
    for name in made:
        assert Running(cluster, 'two').ask(f'disks/{volume(cluster, name)["disk"]}')['disk']['size_bytes'] == 16 * MIB
    wait_until(lambda: not snapshots(cluster), 30, 'nobody needs the snapshot any more')
    # volumes like any others: they stay when their VM goes, and go themselves
    cluster.cli('vm', 'delete', 'two', '--yes', '--wait', parse=False)
    for name in made:
        assert wait_volume(cluster, name, 'available').get('vm') is None
        cluster.cli('volume', 'delete', name, '--yes', '--wait', parse=False)
    # without
    said = cluster.cli('vm', 'clone', 'one', 'two', '--without-volumes', '--wait')
    assert 'volumes' not in said and len(cluster.vm('two')['disks']) == 2
    wait_until(lambda: not snapshots(cluster), 30, 'nobody needs the snapshot any more')
    # what a user is told
    text = cluster.cli('vm', 'clone', 'one', 'three', '--wait', '--output', 'table', parse=False)
    assert 'vm one: done, with volumes three-v-nas, three-ssd' in text, text
    for name in ('three-v-nas', 'three-ssd'):
        wait_volume(cluster, name, 'attached')


def test_clones_of_a_vm_that_has_volumes_alone(make_cluster):
    """Its guest writes to one all the time: what the clone has is what a moment had; of one that is off, what it had last, in another pool."""
    cluster = make_cluster(controllers=1, agents=1)
    agent = cluster.agent(1)
    image(cluster, disk=False)
    nas, ssd = pool(cluster, 'nas'), pool(cluster, 'ssd', 'dir')
    for name in ('nas', 'ssd'):
        wait_pool(cluster, name, n1='present')
    one = create(cluster, 'one', started=False, **WRITES)
    cluster.cli('volume', 'create', 'data', '--pool', 'nas', '--size', '4MiB', '--wait', parse=False)
    cluster.cli('volume', 'attach', 'data', '--vm', 'one', '--wait', parse=False)
    start(cluster, 'one')
    wait_writes(agent, one, BLOCKS)
    operation = held_clone(cluster, agent, 'two')
    kept = content(layers(nas, volume(cluster, 'data')), snapshots(cluster)[0]['id'])
    assert any(kept)
    agent.program.kill9()
    agent.program.restart()
    assert ended(cluster, operation)['state'] == 'succeeded'
    assert content(volume_place(nas, wait_volume(cluster, 'two-data', 'attached'))) == kept
    start(cluster, 'two')
    two = cluster.vm('two')['id']
    wait_until(lambda: read_before(agent, two), 30, 'the guest finds what the other had written')
    assert max(read_before(agent, two)) <= max(kept)
    wait_until(lambda: not snapshots(cluster), 30, 'nobody needs the snapshot any more')
    # off; one that is to run comes first
    stop(cluster, 'one')
    operation = held_clone(cluster, agent, 'three', pool='ssd')
    refused(cluster, 409, "is being made of volume 'data'", 'POST', '/v1/volumes/data/detach')
    start(cluster, 'one')
    found = ended(cluster, operation)
    assert found['state'] == 'failed' and 'is to run' in found['error_text'], found
    wait_until(lambda: cluster.vm('three') is None and volume(cluster, 'three-data') is None, 30, 'it is gone, and its volume')
    assert not list((ssd / 'volumes').iterdir())
    stop(cluster, 'one')
    now = content(layers(nas, volume(cluster, 'data')))
    cluster.cli('vm', 'clone', 'one', 'three', '--pool', 'ssd', '--wait', parse=False)
    assert content(volume_place(ssd, wait_volume(cluster, 'three-data', 'attached'))) == now
    assert volume(cluster, 'three-data')['host'] == 'n1'


def test_a_freeze_needs_an_agent_in_the_guest(make_cluster):
    """Which is waited for as long as one takes to start, and not as long as a VMM that is at something else; then it is said, and nothing is left."""
    cluster = make_cluster(controllers=1, agents=1)
    agent = cluster.agent(1)
    image(cluster)
    one = create(cluster, 'one', disks=DISKS, **WRITES)
    wait_writes(agent, one)
    asked = [cluster.api('POST', '/v1/vms/one/snapshots', {'name': 's', 'freeze': True}), None]
    assert ended(cluster, asked[0][2])['state'] == 'failed'
    asked[1] = cluster.api('POST', '/v1/vms/one/clone', {'name': 'two', 'freeze': True})
    for status, _, operation in asked:
        assert status == 202, operation
        found = ended(cluster, operation)
        assert found['state'] == 'failed' and "the guest's file systems cannot be frozen: no agent answers in the guest" in found['error_text'], found
        took = [datetime.datetime.fromisoformat(found[at].rstrip('Z')) for at in ('created_at', 'ended_at')]
        assert 5 < (took[1] - took[0]).total_seconds() < 40, found
    wait_until(lambda: cluster.vm('two') is None and not snapshots(cluster), 30, 'nothing is left')
    done(cluster, cluster.api('POST', '/v1/vms/one/snapshots', {'name': 's'}))      # where none has to be frozen
    assert snapshots(cluster)[0]['consistency'] == 'crash'
    wait_writes(agent, one)
