"""Volumes: disks with a life of their own, made by the host of a pool, attached to one VM after another, also while these run."""
import json
import shutil
import subprocess

import pytest

from bed import wait_until
from disk_guest import (NEEDED, WRITES, agent_of, console, create, done, image, pool, read_before, wait_pool, wait_writes, writes)
from test_devices import Running
from test_vmm import VMM

pytestmark = NEEDED
MIB = 1 << 20
BACKUP = VMM.parent / 'drover-backup'


def volume(cluster, name):
    status, _, body = cluster.api('GET', f'/v1/volumes/{name}')
    return body if status == 200 else None


def wait_volume(cluster, name, state, timeout_s=60):
    def seen():
        found = volume(cluster, name)
        return found if found and found['state'] == state else None
    return wait_until(seen, timeout_s, f'volume {name} is {state}', poll_s=0.1)


def layers(path, found):
    return path / 'volumes' / found['id'] / f'{found["disk"]}.layers'


def head(path, found):
    return json.loads((layers(path, found) / f'{found["disk"]}.disk').read_text())


def stop(cluster, name):
    done(cluster, cluster.api('POST', f'/v1/vms/{name}/stop?force=true'))


def start(cluster, name):
    done(cluster, cluster.api('POST', f'/v1/vms/{name}/start'))


def refused(cluster, status, words, method, path, body=None):
    got, _, answer = cluster.api(method, path, body)
    assert got == status and words in json.dumps(answer), (got, answer)


def test_a_volume_goes_from_vm_to_vm(make_cluster):
    """Made in a shared pool, written by a VM of one host, enlarged, read by a VM of another; it outlives them both."""
    cluster = make_cluster(controllers=1, agents=2)
    first, second = cluster.agents
    image(cluster, disk=False)
    nas = pool(cluster, 'nas')
    wait_pool(cluster, 'nas', n1='present', n2='present')
    made = cluster.cli('volume', 'create', 'data', '--pool', 'nas', '--size', '8MiB', '--wait')
    assert made['state'] == 'available' and made['size_bytes'] == 8 * MIB and 'host' not in made
    assert len(head(nas, made)['layers']) == 1
    assert [v['name'] for v in cluster.cli('volume', 'list')] == ['data']
    one = create(cluster, 'one', pin='n1', started=False, **WRITES)
    two = create(cluster, 'two', pin='n2', started=False, **WRITES)
    found = cluster.cli('volume', 'attach', 'data', '--vm', 'one', '--wait')
    assert found['state'] == 'attached' and found['vm'] == one and found['vm_name'] == 'one'
    start(cluster, 'one')
    wait_writes(first, one, 20)
    refused(cluster, 409, 'detach it first', 'POST', '/v1/volumes/data/attach', {'vm': 'two'})
    refused(cluster, 409, 'detach it first', 'DELETE', '/v1/volumes/data')
    # enlarged while the guest writes
    running = Running(cluster, 'one')
    cluster.cli('volume', 'update', 'data', '--size', '12MiB', '--wait')
    assert running.ask(f'disks/{made["disk"]}')['disk']['size_bytes'] == 12 * MIB and running.same_process()
    wait_writes(first, one, 20)
    # and while no VMM has it
    stop(cluster, 'one')
    assert 'disk: ' not in console(first, one)
    cluster.cli('volume', 'detach', 'data', '--wait')
    assert 'disks' not in cluster.vm('one') or cluster.vm('one')['disks'] == []
    cluster.cli('volume', 'update', 'data', '--size', '16MiB', '--wait')
    cluster.cli('volume', 'attach', 'data', '--vm', 'two', '--wait')
    start(cluster, 'two')
    wait_until(lambda: read_before(second, two), 30, 'the second guest finds what the first has written')
    assert Running(cluster, 'two').ask(f'disks/{made["disk"]}')['disk']['size_bytes'] == 16 * MIB
    # the VM goes, the volume stays, and then goes itself
    done(cluster, cluster.api('DELETE', '/v1/vms/two'))
    assert wait_volume(cluster, 'data', 'available').get('vm') is None
    assert head(nas, made)['layers']
    cluster.cli('volume', 'delete', 'data', '--yes', '--wait', parse=False)
    assert volume(cluster, 'data') is None and not list((nas / 'volumes').iterdir())
    told = [event['message'] for event in cluster.cli('event', 'list') if event['object_kind'] == 'volume']
    for words in ('volume data is to be made', 'volume data is available', 'volume data is attached to VM one',
                  'volume data is detached from VM one', 'volume data is detached from VM two', 'volume data is gone: removed'):
        assert any(words in message for message in told), (words, told)


def test_plugged_into_a_vm_that_runs(make_cluster):
    """The guest of the tests lets nothing go that it is asked for: by force it is taken away, and another VM may have it."""
    cluster = make_cluster(controllers=1, agents=1)
    agent = cluster.agent(1)
    image(cluster)
    ssd = pool(cluster, 'ssd', kind='dir')
    wait_pool(cluster, 'ssd', n1='present')
    vm_id = create(cluster, 'one', **WRITES)
    made = cluster.cli('volume', 'create', 'data', '--pool', 'ssd', '--size', '8MiB', '--wait')
    assert made['host'] == 'n1'
    disk = made['disk']
    running = Running(cluster, 'one')
    # its agent is away when it is asked for
    agent.program.kill9()
    status, _, answer = cluster.api('POST', '/v1/volumes/data/attach', {'vm': 'one'})
    assert status == 200 and answer['state'] == 'attaching', answer
    agent.program.restart()
    wait_volume(cluster, 'data', 'attached')
    seen = running.ask(f'disks/{disk}')
    assert seen['disk']['serial'] == disk and seen['disk']['size_bytes'] == 8 * MIB and running.same_process()
    cluster.cli('volume', 'update', 'data', '--size', '16MiB', '--wait')
    assert running.ask(f'disks/{disk}')['disk']['size_bytes'] == 16 * MIB
    cluster.cli('vm', 'limit', 'one', '--disk', disk, '--operations-per-second', '700', '--wait', parse=False)
    assert running.ask(f'disks/{disk}')['disk']['limits']['operations_per_second'] == 700
    wait_writes(agent, vm_id, 20)
    # asked to let it go, it does not
    status, _, answer = cluster.api('POST', '/v1/volumes/data/detach')
    assert status == 200 and answer['state'] == 'detaching', answer
    wait_until(lambda: 'has not let go of disk' in (cluster.vm('one').get('state_reason') or ''), 60, 'it is told why')
    assert volume(cluster, 'data')['state'] == 'detaching' and running.ask(f'disks/{disk}')['unplugging']
    # another one is plugged in nevertheless
    late = cluster.cli('volume', 'create', 'late', '--pool', 'ssd', '--size', '8MiB', '--wait')['disk']
    assert cluster.api('POST', '/v1/volumes/late/attach', {'vm': 'one'})[0] == 200
    wait_until(lambda: late in [d['disk']['id'] for d in running.ask('disks')], 60, 'the other volume is there')
    assert volume(cluster, 'data')['state'] == 'detaching'
    cluster.cli('volume', 'detach', 'data', '--force', '--wait')
    assert running.ask(f'disks/{disk}')['detached'] and running.same_process()
    assert volume(cluster, 'data').get('vm') is None
    wait_writes(agent, vm_id, 20)
    # nothing of it is to be seen there any more, and another VMM opens it
    plugged = agent.directory / 'vms' / vm_id / 'disks' / f'{disk}.plugged'
    assert not plugged.exists()
    create(cluster, 'two', **WRITES)
    cluster.cli('volume', 'attach', 'data', '--vm', 'two', '--wait')
    second = Running(cluster, 'two')
    assert second.ask(f'disks/{disk}')['disk']['size_bytes'] == 16 * MIB
    # its next VMM has it from the start; and one that is started without never had it
    stop(cluster, 'two')
    start(cluster, 'two')
    assert Running(cluster, 'two').ask(f'disks/{disk}')['disk']['size_bytes'] == 16 * MIB
    stop(cluster, 'two')
    cluster.cli('volume', 'detach', 'data', '--wait')
    start(cluster, 'two')
    assert [d['disk']['id'] for d in Running(cluster, 'two').ask('disks')] == ['root']
    for name in ('one', 'two'):
        done(cluster, cluster.api('DELETE', f'/v1/vms/{name}'))
    assert head(ssd, made)['layers']
    for name in ('data', 'late'):
        cluster.cli('volume', 'delete', name, '--yes', '--wait', parse=False)
    assert not list((ssd / 'volumes').iterdir())


@pytest.mark.slow
def test_attached_by_what_was_lost_with_the_log(make_cluster):
    """A volume is attached, and the cluster recovered from a controller that has not heard of it: for the state it is nobody's and its host
    is ahead. The host is told again what is wanted, and its VMM lets the volume go."""
    cluster = make_cluster(controllers=1, agents=1)
    controller, agent = cluster.controller(1), cluster.agent(1)
    image(cluster)
    pool(cluster, 'ssd', kind='dir')
    wait_pool(cluster, 'ssd', n1='present')
    vm_id = create(cluster, 'one', **WRITES)
    disk = cluster.cli('volume', 'create', 'data', '--pool', 'ssd', '--size', '8MiB', '--wait')['disk']
    running, known = Running(cluster, 'one'), cluster.vm('one')['generation']
    controller.program.kill9()
    kept = cluster.bed.directory / 'kept'
    shutil.copytree(controller.directory, kept, symlinks=True)
    controller.program.restart()
    wait_until(lambda: cluster.ready(controller), what='it is ready again')
    cluster.cli('volume', 'attach', 'data', '--vm', 'one', '--wait')
    assert not running.ask(f'disks/{disk}').get('unplugging') and cluster.vm('one')['seen_generation'] == known + 1
    controller.program.kill9()
    shutil.rmtree(controller.directory)
    shutil.copytree(kept, controller.directory, symlinks=True)
    controller.host.run([controller.binary, 'recover', '--data', controller.data, '--yes'])
    controller.program.restart()
    wait_until(lambda: cluster.ready(controller) and cluster.hosts_up() == 1, 60, 'the cluster goes on from what was kept')
    wait_until(lambda: cluster.vm('one')['seen_generation'] >= known + 2, 60, 'its host knows what is wanted now')
    assert volume(cluster, 'data')['state'] == 'available' and running.ask(f'disks/{disk}')['detached'] and running.same_process()
    wait_writes(agent, vm_id, 20)


def test_a_volume_begins_as_an_image(make_cluster):
    """Above the image's copy in the pool, which stays readable to whichever VMM has the volume; removed while it is in use there."""
    cluster = make_cluster(controllers=1, agents=1)
    agent = cluster.agent(1)
    image(cluster, disk=False)
    image(cluster, 'content')
    ssd = pool(cluster, 'ssd', kind='dir')
    wait_pool(cluster, 'ssd', n1='present')
    made = [cluster.cli('volume', 'create', name, '--pool', 'ssd', '--image', 'content', '--size', '4MiB', '--wait')
            for name in ('a', 'b')]
    assert all(m['size_bytes'] == 4 * MIB and m['state'] == 'available' for m in made)
    base = head(ssd, made[0])['base']
    assert (layers(ssd, made[0]) / base).read_bytes() == bytes(4 * MIB)
    assert len(list((ssd / 'images').iterdir())) == 1
    vm_id = create(cluster, 'one', started=False, **WRITES)
    cluster.cli('volume', 'attach', 'a', '--vm', 'one', '--wait')
    start(cluster, 'one')
    wait_writes(agent, vm_id, 20)
    done(cluster, cluster.api('DELETE', '/v1/vms/one'))
    cluster.cli('volume', 'delete', 'a', '--yes', '--wait', parse=False)
    assert len(list((ssd / 'images').iterdir())) == 1
    # the pool is away: it says so, and goes on when it is back
    agent.host.run(['mount', '-t', 'tmpfs', 'tmpfs', ssd])
    wait_pool(cluster, 'ssd', n1='absent')
    refused(cluster, 409, 'is on no host now', 'POST', '/v1/volumes', {'name': 'c', 'pool': 'ssd', 'size_bytes': MIB})
    assert cluster.api('DELETE', '/v1/volumes/b')[0] == 202
    assert volume(cluster, 'b')['state'] == 'deleting' and 'no host that has its pool' in volume(cluster, 'b')['state_reason']
    agent.host.run(['umount', ssd])
    wait_until(lambda: volume(cluster, 'b') is None, 60, 'the volume is removed')
    assert not list((ssd / 'volumes').iterdir()) and not list((ssd / 'images').iterdir())


@pytest.mark.slow
def test_backups_have_volumes_like_other_disks(make_cluster):
    """While the VM runs and off, whole and only what has changed; put back in place, and as a disk of another VM's own."""
    cluster = make_cluster(controllers=1, agents=1)
    agent = cluster.agent(1)
    if not BACKUP.exists():
        pytest.skip('drover-backup is not built')
    image(cluster, disk=False)
    ssd = pool(cluster, 'ssd', kind='dir')
    wait_pool(cluster, 'ssd', n1='present')
    vm_id = create(cluster, 'one', started=False, **WRITES)
    data, more = (cluster.cli('volume', 'create', name, '--pool', 'ssd', '--size', size, '--wait')
                  for name, size in (('data', '8MiB'), ('more', '4MiB')))
    for name in ('data', 'more'):
        cluster.cli('volume', 'attach', name, '--vm', 'one', '--wait')
    start(cluster, 'one')
    wait_writes(agent, vm_id, 20)
    store = cluster.bed.directory / 'store'
    assert cluster.api('POST', '/v1/backup-stores', {'name': 'nas', 'location': str(store)})[0] == 201

    def tool(verb, *options):
        return subprocess.run([BACKUP, verb, '--store', store, *map(str, options)], check=True, capture_output=True, timeout=240).stdout

    def backup(name):
        done(cluster, cluster.api('POST', '/v1/vms/one/backups', {'name': name}))
        return cluster.api('GET', f'/v1/backups/{name}')[2]

    def content(made, disk=data['disk']):
        return tool('cat', '--backup', made['id'], '--disk', disk)

    def now(path, disk):
        return content(json.loads(tool('create', '--vm', 'by-hand', '--parent', 'none', '--json', '--disk', f'root=pool:{path}/{disk}')), 'root')

    first = backup('first')
    assert [(d['name'], d['size_bytes']) for d in first['disks']] == [(data['disk'], 8 * MIB), (more['disk'], 4 * MIB)]
    wait_writes(agent, vm_id, 20)
    second = backup('second')
    assert second['parent'] == first['id'] and second['read_bytes'] <= 1 << 19, second
    assert any(content(first)) and content(first) != content(second) and content(second, more['disk']) == bytes(4 * MIB)
    stop(cluster, 'one')
    off = backup('off')
    assert now(layers(ssd, data), data['disk']) == content(off) != content(second)
    done(cluster, cluster.api('POST', '/v1/backups/first/restore', {}))
    assert now(layers(ssd, data), data['disk']) == content(first)
    start(cluster, 'one')
    wait_until(lambda: read_before(agent, vm_id), 60, 'the guest finds what was put back')
    stop(cluster, 'one')
    done(cluster, cluster.api('POST', '/v1/vms', {'name': 'two', 'backup': 'off'}))
    assert not any(d.get('volume') for d in cluster.vm('two')['disks']) and volume(cluster, 'data')['vm_name'] == 'one'
    done(cluster, cluster.api('POST', '/v1/backups/off/restore', {'vm': 'two'}))
    start(cluster, 'two')
    wait_until(lambda: read_before(agent, cluster.vm('two')['id']), 60, 'the other guest has it on a disk of its own')


def test_a_vm_fails_over_with_its_volume(make_cluster):
    """A host is lost: the VM whose disks are all volumes in a shared pool goes on elsewhere; one with a volume on that host waits."""
    cluster = make_cluster(controllers=3, agents=3)
    image(cluster, disk=False)
    pool(cluster, 'nas')
    pool(cluster, 'ssd', kind='dir')
    wait_pool(cluster, 'nas', n1='present', n2='present', n3='present')
    wait_pool(cluster, 'ssd', n1='present', n2='present', n3='present')
    vm_id = create(cluster, 'web', ha=True, started=False, **WRITES)
    old = agent_of(cluster, 'web')
    local_id = create(cluster, 'local', ha=True, pin=old.name, started=False, **WRITES)
    cluster.cli('volume', 'create', 'shared', '--pool', 'nas', '--size', '8MiB', '--wait')
    cluster.cli('volume', 'create', 'here', '--pool', 'ssd', '--size', '8MiB', '--host', old.name, '--wait')
    cluster.cli('volume', 'attach', 'shared', '--vm', 'web', '--wait')
    cluster.cli('volume', 'attach', 'here', '--vm', 'local', '--wait')
    for name in ('web', 'local'):
        start(cluster, name)
    wait_writes(old, vm_id, 20)
    wait_writes(old, local_id, 20)
    stop(cluster, 'web')    # what was written lasts
    start(cluster, 'web')
    wait_writes(old, vm_id)
    old.host.power_off()
    found = wait_until(lambda: next((a for a in cluster.agents if a is not old and writes(a, vm_id) > 0), None), 60,
                       'the VM runs elsewhere', poll_s=0.05)
    wait_until(lambda: read_before(found, vm_id), 30, 'the guest finds what was written')
    assert 'disk: status' not in console(found, vm_id)
    cluster.leader()
    assert volume(cluster, 'shared')['vm_name'] == 'web'
    local = cluster.vm('local')
    assert local['state'] == 'failed' and 'not all of its disks are in shared pools' in local['state_reason'], local
    # under the lease it runs there no more: its volume is free with its end
    assert cluster.api('DELETE', '/v1/vms/local')[0] in (200, 202)
    wait_until(lambda: cluster.vm('local') is None, 60, 'the VM is gone')
    wait_volume(cluster, 'here', 'available')
    cluster.boot(old.host.number)
    wait_until(lambda: not (old.directory / 'vms' / vm_id).exists(), 60, 'the old host has forgotten the VM')
    wait_writes(found, vm_id, 20)
    wait_until(lambda: cluster.hosts_up() == 3, 60, 'every host is up')
    done(cluster, cluster.api('DELETE', '/v1/vms/web'))
    wait_volume(cluster, 'shared', 'available')
