"""Snapshots of VMs with volumes: all disks of one moment, with memory too; reverted and removed whole, whoever ends on the way."""
import json
import os
import random
import re
import signal
import time

import pytest

from bed import wait_until
from disk_guest import BLOCKS, NEEDED, WRITES, agent_of, console, create, done, image, life, pool, read_before, wait_pool, wait_writes, writes
from test_devices import Running
from test_volume_move import place, worker
from test_volume_objects import head, layers, refused, start, stop, volume
from test_volumes import numbers_in

pytestmark = NEEDED
MIB = 1 << 20
HELLO = 'drover-guest: hello'


def snapshots_of(path, found):
    """Of volume @found, in the pool @path: layer by snapshot's id."""
    return {s['name']: s['layer'] for s in head(path, found).get('snapshots', [])}


def own_head(agent, vm_id):
    return agent.directory / 'vms' / vm_id / 'disks' / 'root.layers' / 'root.disk'


def snapshot(cluster, name):
    return cluster.api('GET', f'/v1/snapshots/{name}')[2]


def content(path, found, name=None, cluster=None):
    """What the guest's blocks hold in the volume: now, or in a snapshot."""
    top = snapshots_of(path, found)[snapshot(cluster, name)['id']] if name else head(path, found)['top']
    return numbers_in(layers(path, found), top)


def no_layer_is_left(path, found):
    files = {f.stem for f in layers(path, found).glob('*.map')}
    return files == set(head(path, found)['layers'])


def begin(cluster, kinds, own_disk):
    """A VM that is off, and a volume in a pool of each of @kinds, attached to it."""
    image(cluster, disk=own_disk)
    vm_id = create(cluster, 'one', **WRITES)     # once: so its host has its directory
    stop(cluster, 'one')
    made = []
    for kind in kinds:
        path = pool(cluster, kind, kind=kind)
        wait_pool(cluster, kind, n1='present')
        found = cluster.cli('volume', 'create', f'v-{kind}', '--pool', kind, '--size', '8MiB', '--wait')
        cluster.cli('volume', 'attach', f'v-{kind}', '--vm', 'one', '--wait')
        made.append((path, found))
    return vm_id, made


def test_kept_reverted_and_removed(make_cluster):
    """The guest writes to the first of two volumes, in two kinds of pools, all the time."""
    cluster = make_cluster(controllers=1, agents=1)
    agent = cluster.agent(1)
    vm_id, made = begin(cluster, ('dir', 'shared-dir'), own_disk=False)
    (path, data), other = made
    # off, and never started with them: they are nobody's files, or another VM's
    done(cluster, cluster.api('POST', '/v1/vms/one/snapshots', {'name': 'empty'}))
    assert snapshot(cluster, 'empty')['volumes'] == [{'id': v['id'], 'disk': v['disk']} for _, v in made]
    assert volume(cluster, 'v-dir')['snapshots'] == 1
    start(cluster, 'one')
    wait_writes(agent, vm_id, 20)
    before = writes(agent, vm_id)
    done(cluster, cluster.api('POST', '/v1/vms/one/snapshots', {'name': 'busy'}))
    wait_writes(agent, vm_id, BLOCKS)
    kept = content(path, data, 'busy', cluster)
    assert before - BLOCKS <= max(kept) <= writes(agent, vm_id)
    assert set(snapshots_of(*made[0])) == set(snapshots_of(*other)) == {snapshot(cluster, n)['id'] for n in ('empty', 'busy')}
    # what would take a volume out of them is refused, and says what to do
    for method, what, body in (('POST', 'volumes/v-dir/detach', None), ('POST', 'volumes/v-dir/move', {'pool': 'shared-dir'})):
        refused(cluster, 409, 'part of snapshot', method, f'/v1/{what}', body)
    refused(cluster, 409, 'delete the snapshot first', 'DELETE', '/v1/vms/one')
    refused(cluster, 501, 'volumes alone', 'POST', '/v1/vms/one/snapshots', {'ram': True})
    # one that is attached later is in none of them
    late = cluster.cli('volume', 'create', 'late', '--pool', 'dir', '--size', '8MiB', '--wait')
    cluster.cli('volume', 'attach', 'late', '--vm', 'one', '--wait')
    done(cluster, cluster.api('POST', '/v1/vms/one/snapshots', {'name': 'more'}))
    done(cluster, cluster.api('DELETE', '/v1/snapshots/more'))
    assert not snapshots_of(path, late) and 'disk: ' not in life(agent, vm_id)
    stop(cluster, 'one')
    refused(cluster, 409, 'attached after snapshot', 'POST', '/v1/snapshots/busy/revert')
    cluster.cli('volume', 'detach', 'late', '--wait')
    # back, and back to what was before that; forth again, with the volume larger by now
    cluster.cli('snapshot', 'revert', 'busy', '--yes', '--wait', parse=False)
    assert content(path, data) == kept
    done(cluster, cluster.api('POST', '/v1/snapshots/empty/revert'))
    assert not any(content(path, data)) and content(path, data, 'busy', cluster) == kept
    cluster.cli('volume', 'update', 'v-dir', '--size', '16MiB', '--wait')
    done(cluster, cluster.api('POST', '/v1/snapshots/busy/revert'))
    start(cluster, 'one')
    assert Running(cluster, 'one').ask(f'disks/{data["disk"]}')['disk']['size_bytes'] == 16 * MIB
    wait_until(lambda: read_before(agent, vm_id), 30, 'the guest finds what it had written')
    assert max(read_before(agent, vm_id)) <= max(kept)
    wait_writes(agent, vm_id, 5)
    # in any order, while it runs; then the volumes are free
    for name in ('empty', 'busy'):
        done(cluster, cluster.api('DELETE', f'/v1/snapshots/{name}'))
    for where, found in made:
        assert not snapshots_of(where, found) and no_layer_is_left(where, found)
    stop(cluster, 'one')
    assert volume(cluster, 'v-dir')['snapshots'] == 0
    cluster.cli('volume', 'detach', 'v-dir', '--wait')
    done(cluster, cluster.api('DELETE', '/v1/vms/one'))


def test_with_memory(make_cluster):
    """A volume that was plugged in while the VM ran is where the guest knows it to be when that goes on from its memory."""
    cluster = make_cluster(controllers=1, agents=1)
    agent = cluster.agent(1)
    image(cluster)
    path = pool(cluster, 'nas')
    wait_pool(cluster, 'nas', n1='present')
    vm_id = create(cluster, 'one', **WRITES)
    data = cluster.cli('volume', 'create', 'data', '--pool', 'nas', '--size', '8MiB', '--wait')
    cluster.cli('volume', 'attach', 'data', '--vm', 'one', '--wait')
    slot = Running(cluster, 'one').ask(f'disks/{data["disk"]}')['disk']['slot']
    wait_writes(agent, vm_id, 20)
    done(cluster, cluster.api('POST', '/v1/vms/one/snapshots', {'name': 's', 'ram': True}))
    made = snapshot(cluster, 's')
    assert made['consistency'] == 'memory' and [d['name'] for d in made['disks']] == ['root', data['disk']], made
    assert list(snapshots_of(path, data)) == [made['id']]
    assert (own_head(agent, vm_id).parent / f'{made["id"]}.memory').exists()
    wait_writes(agent, vm_id, 20)
    stop(cluster, 'one')
    done(cluster, cluster.api('POST', '/v1/snapshots/s/revert'))
    start(cluster, 'one')
    wait_writes(agent, vm_id, 5)
    assert console(agent, vm_id).count(HELLO) == 1 and not re.search('disk: |answered twice|corrupt', console(agent, vm_id))
    assert Running(cluster, 'one').ask(f'disks/{data["disk"]}')['disk']['slot'] == slot
    # larger by now: its content alone can come back
    cluster.cli('volume', 'update', 'data', '--size', '16MiB', '--wait')
    stop(cluster, 'one')
    refused(cluster, 409, 'has grown since snapshot', 'POST', '/v1/snapshots/s/revert')
    done(cluster, cluster.api('POST', '/v1/snapshots/s/revert', {'disks_only': True}))
    start(cluster, 'one')
    wait_until(lambda: console(agent, vm_id).count(HELLO) == 2, 30, 'it has booted')
    done(cluster, cluster.api('DELETE', '/v1/snapshots/s'))
    assert not snapshots_of(path, data)


def test_of_a_volume_alone(make_cluster):
    """Attached or not, while its VM runs and off: it comes back alone, and its snapshots stay with it from VM to VM."""
    cluster = make_cluster(controllers=1, agents=1)
    agent = cluster.agent(1)
    vm_id, ((path, data), other) = begin(cluster, ('dir', 'shared-dir'), own_disk=False)
    cluster.cli('volume', 'detach', 'v-dir', '--wait')
    cluster.cli('volume', 'snapshot', 'v-dir', 'empty', '--wait', parse=False)      # nobody has it
    assert snapshot(cluster, 'empty')['volume_name'] == 'v-dir' and snapshot(cluster, 'empty')['consistency'] == 'filesystem'
    cluster.cli('volume', 'detach', 'v-shared-dir', '--wait')
    for name in ('v-dir', 'v-shared-dir'):
        cluster.cli('volume', 'attach', name, '--vm', 'one', '--wait')
    cluster.cli('volume', 'snapshot', 'v-dir', 'off', '--wait', parse=False)        # its VM is off
    start(cluster, 'one')
    wait_writes(agent, vm_id, 20)
    before = writes(agent, vm_id)
    cluster.cli('volume', 'snapshot', 'v-dir', 'busy', '--wait', parse=False)       # its VM runs
    wait_writes(agent, vm_id, BLOCKS)
    kept = content(path, data, 'busy', cluster)
    assert before - BLOCKS <= max(kept) <= writes(agent, vm_id) and not snapshots_of(*other)
    made = snapshot(cluster, 'busy')
    assert made['consistency'] == 'crash' and made['disks'] == [{'name': data['disk'], 'size_bytes': 8 * MIB}] and 'vm' not in made
    refused(cluster, 409, 'stop it first', 'POST', '/v1/snapshots/busy/revert')
    refused(cluster, 409, 'part of snapshot', 'POST', '/v1/volumes/v-dir/move', {'pool': 'shared-dir'})
    # with a snapshot of the VM beside them
    done(cluster, cluster.api('POST', '/v1/vms/one/snapshots', {'name': 'all'}))
    done(cluster, cluster.api('DELETE', '/v1/snapshots/off'))
    stop(cluster, 'one')
    done(cluster, cluster.api('POST', '/v1/snapshots/busy/revert'))
    assert content(path, data) == kept
    done(cluster, cluster.api('POST', '/v1/snapshots/all/revert'))
    assert max(content(path, data)) >= max(kept)
    done(cluster, cluster.api('DELETE', '/v1/snapshots/all'))
    # it leaves its VM, which goes; then another one gets it as it was
    cluster.cli('volume', 'detach', 'v-dir', '--wait')
    done(cluster, cluster.api('DELETE', '/v1/vms/one'))
    done(cluster, cluster.api('POST', '/v1/snapshots/busy/revert'))
    assert content(path, data) == kept and volume(cluster, 'v-dir')['snapshots'] == 2
    two = create(cluster, 'two', started=False, **WRITES)
    cluster.cli('volume', 'attach', 'v-dir', '--vm', 'two', '--wait')
    start(cluster, 'two')
    wait_until(lambda: read_before(agent, two), 30, 'the guest finds what the other had written')
    assert max(read_before(agent, two)) <= max(kept)
    for name in ('busy', 'empty'):
        done(cluster, cluster.api('DELETE', f'/v1/snapshots/{name}'))
    assert no_layer_is_left(path, data) and cluster.api('GET', '/v1/snapshots')[2] == []


def clone_held(cluster, agent, name):
    """A clone in the making, whose child is held. Returns the operation, and that process."""
    status, _, operation = cluster.api('POST', '/v1/snapshots/s/clone', {'name': name, 'volume': 'v-dir', 'pool': 'shared-dir'})
    assert status == 202, operation
    held = []

    def hold():
        pid = worker(agent)
        if pid is not None:
            os.kill(pid, signal.SIGSTOP)
            held.append(pid)
        return pid is not None
    wait_until(hold, 30, 'somebody begins to make it', poll_s=0.001)
    assert volume(cluster, name)['state'] == 'creating', 'it was done before it could be held'
    return operation, held[0]


def test_clones(make_cluster):
    """Of a volume that a guest writes to: with the agent and the controller killed on the way, and cancelled; it is whole or gone, and shares
    nothing with where it came from."""
    cluster = make_cluster(controllers=1, agents=1)
    agent = cluster.agent(1)
    vm_id, ((path, data), (shared, _)) = begin(cluster, ('dir', 'shared-dir'), own_disk=False)
    start(cluster, 'one')
    wait_writes(agent, vm_id, BLOCKS)
    done(cluster, cluster.api('POST', '/v1/vms/one/snapshots', {'name': 's'}))
    kept = content(path, data, 's', cluster)
    refused(cluster, 400, 'has 2 volumes', 'POST', '/v1/snapshots/s/clone', {'name': 'c'})
    before = {p.name for p in (shared / 'volumes').iterdir()}
    # cancelled: nothing of it is left
    operation, _ = clone_held(cluster, agent, 'c')
    refused(cluster, 409, 'is being made of a snapshot', 'DELETE', '/v1/snapshots/s')
    assert cluster.api('POST', f'/v1/operations/{operation["id"]}/cancel')[0] == 200
    assert ended(cluster, operation)['state'] == 'cancelled'
    wait_until(lambda: volume(cluster, 'c') is None, 30, 'it is gone')
    assert {p.name for p in (shared / 'volumes').iterdir()} == before
    # killed, both: it is made all the same
    operation, _ = clone_held(cluster, agent, 'c')
    agent.program.kill9()
    cluster.controller(1).program.kill9()
    cluster.controller(1).program.restart()
    agent.program.restart()
    assert ended(cluster, operation)['state'] == 'succeeded'
    made = volume(cluster, 'c')
    assert made['state'] == 'available' and made['snapshot'] == 's' and made['origin'] == data['id'] and made['size_bytes'] == 8 * MIB
    where = place(shared, made)
    assert numbers_in(where, json.loads((where / f'{made["disk"]}.disk').read_text())['top']) == kept
    cluster.cli('snapshot', 'clone', 's', 'd', '--volume', 'v-dir', '--wait', parse=False)     # beside it, in its pool
    # where it came from goes, and it is what it was
    done(cluster, cluster.api('DELETE', '/v1/snapshots/s'))
    stop(cluster, 'one')
    for name in ('v-dir', 'v-shared-dir'):
        cluster.cli('volume', 'detach', name, '--wait')
        cluster.cli('volume', 'delete', name, '--yes', '--wait', parse=False)
    two = create(cluster, 'two', started=False, **WRITES)
    cluster.cli('volume', 'attach', 'c', '--vm', 'two', '--wait')
    start(cluster, 'two')
    wait_until(lambda: read_before(agent, two), 30, 'the guest finds what the other had written')
    assert max(read_before(agent, two)) <= max(kept)
    cluster.cli('volume', 'delete', 'd', '--yes', '--wait', parse=False)
    assert not list((path / 'volumes').iterdir())


def ended(cluster, operation):
    def look():
        try:
            found = cluster.api('GET', f'/v1/operations/{operation["id"]}')[2]
        except OSError:         # its controller is not there yet
            return None
        return found if found.get('state') in ('succeeded', 'failed', 'cancelled') else None
    return wait_until(look, 40, 'it has ended')


def rounds(cluster, count):
    """Agent, VMM or controller end at any moment of making, reverting to and removing a snapshot of a VM with two volumes: it is in both, or
    in none; and what is said to be done is so."""
    seed = int(os.environ.get('DROVER_SEED', 0)) or int.from_bytes(os.urandom(4), 'little')
    print(f'seed {seed}: DROVER_SEED={seed} has the same moments')
    chance = random.Random(seed)
    agent, controller = cluster.agent(1), cluster.controller(1)
    vm_id, ((path, data), other) = begin(cluster, ('dir', 'shared-dir'), own_disk=False)
    start(cluster, 'one')
    wait_writes(agent, vm_id, 5)

    def disturbed(method, what, body=None):
        status, _, operation = cluster.api(method, what, body)
        assert status == 202, operation
        who = chance.choice(['agent', 'controller', 'vmm', 'nobody'])
        time.sleep(chance.random() * 0.15)      # a moment like any other
        if who == 'vmm' and agent.vmm_pids():
            os.kill(agent.vmm_pids()[0], signal.SIGKILL)
        elif who in ('agent', 'controller'):
            program = controller.program if who == 'controller' else agent.program
            program.kill9()
            program.restart()
        return ended(cluster, operation)['state'], who

    def has():
        found = set(snapshots_of(path, data))
        assert found == set(snapshots_of(*other)), 'the volumes have not the same snapshots'
        return found
    done_count = 0
    for number in range(count):
        state, who = disturbed('POST', '/v1/vms/one/snapshots', {'name': f's{number}'})
        names = {s['id'] for s in cluster.api('GET', '/v1/snapshots')[2]}
        assert len(names) == (state == 'succeeded') and volume(cluster, 'v-dir').get('snapshots', 0) == len(names), (who, state)
        wait_until(lambda: cluster.vm('one')['state'] == 'running', 30, 'it runs')
        if state != 'succeeded':
            continue
        assert has() == names, who
        done_count += 1
        stop(cluster, 'one')
        kept = content(path, data, f's{number}', cluster)
        while disturbed('POST', f'/v1/snapshots/s{number}/revert')[0] != 'succeeded':
            pass
        assert content(path, data) == kept
        if chance.random() < 0.5:
            start(cluster, 'one')
        while cluster.api('GET', f'/v1/snapshots/s{number}')[0] == 200:
            disturbed('DELETE', f'/v1/snapshots/s{number}')
        assert not has()
        if cluster.vm('one')['wanted'] == 'stopped':
            start(cluster, 'one')
        wait_writes(agent, vm_id, 5)
    assert done_count > 0


def test_who_ends_on_the_way(make_cluster):
    rounds(make_cluster(controllers=1, agents=1), 2)


@pytest.mark.slow
def test_who_ends_on_the_way_often(make_cluster):
    rounds(make_cluster(controllers=1, agents=1), 12)


@pytest.mark.slow
def test_on_another_host_after_a_loss(make_cluster):
    """Snapshots of a VM and of its volume, in a shared pool, are reverted to and removed by the host that has taken the VM over."""
    cluster = make_cluster(controllers=3, agents=2)
    image(cluster, disk=False)
    path = pool(cluster, 'nas')
    wait_pool(cluster, 'nas', n1='present', n2='present')
    vm_id = create(cluster, 'web', ha=True, started=False, **WRITES)
    old = agent_of(cluster, 'web')
    data = cluster.cli('volume', 'create', 'data', '--pool', 'nas', '--size', '8MiB', '--wait')
    cluster.cli('volume', 'attach', 'data', '--vm', 'web', '--wait')
    start(cluster, 'web')
    wait_writes(old, vm_id, BLOCKS)
    done(cluster, cluster.api('POST', '/v1/vms/web/snapshots', {'name': 's'}))
    done(cluster, cluster.api('POST', '/v1/volumes/data/snapshots', {'name': 'alone'}))
    kept = content(path, data, 's', cluster)
    wait_writes(old, vm_id, BLOCKS)
    old.host.power_off()
    found = wait_until(lambda: next((a for a in cluster.agents if a is not old and writes(a, vm_id) > 0), None), 60,
                       'the VM runs elsewhere', poll_s=0.05)
    cluster.leader()
    wait_writes(found, vm_id, 5)
    stop(cluster, 'web')
    status, _, operation = cluster.api('POST', '/v1/snapshots/s/revert')
    assert status == 202 and 'turn ha off meanwhile' in ended(cluster, operation)['error_text']
    assert cluster.api('PATCH', '/v1/vms/web', {'ha': False})[0] == 200
    wait_until(lambda: cluster.vm('web')['seen_generation'] == cluster.vm('web')['generation'], 30, 'its host knows')
    done(cluster, cluster.api('POST', '/v1/snapshots/s/revert'))
    assert content(path, data) == kept
    done(cluster, cluster.api('POST', '/v1/snapshots/alone/revert'))
    assert max(content(path, data)) >= max(kept)
    done(cluster, cluster.api('DELETE', '/v1/snapshots/s'))
    start(cluster, 'web')
    done(cluster, cluster.api('DELETE', '/v1/snapshots/alone'))
    wait_writes(found, vm_id, 5)
    assert no_layer_is_left(path, data)
