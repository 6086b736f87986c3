"""A store that a cluster does not know: `attach` finds the backups in it, VMs are made anew of them, and their disks come back,
all of them or single ones, also where they are in pools. Real controllers, agents, VMMs, drover-backup and the test guest."""
import hashlib
import json
import os
import shutil
import socket
import subprocess
import uuid

from bed import wait_until
from disk_guest import pool, wait_pool
from test_backup_mount import tool as tool_at
from test_backups import (BACKUP, DISK_BYTES, GUEST, add_store, backup, cluster, content, create, disk_now, done,  # noqa: F401
                          pytestmark, tool)


def shown(cluster, directory, disk):
    """What the disk with layers in that directory shows its guest, while nobody has it."""
    made = json.loads(tool(cluster, 'create', '--vm', 'by-hand', '--parent', 'none', '--json', '--disk',
                           f'{disk}=pool:{directory}/{disk}.layers/{disk}'))
    return tool(cluster, 'cat', '--backup', made['id'], '--disk', disk)


def own(cluster, vm_id):
    """The directory of the VM's own disks."""
    return cluster.agent(1).directory / 'vms' / vm_id / 'disks'


def test_listed_by_pages(tmp_path):
    """Each backup once, whatever fits into a page, with the definition of its VM."""
    store, ids = tmp_path / 'store', [str(uuid.uuid4()) for _ in range(5)]
    (tmp_path / 'disk').write_bytes(bytes(65536))
    (tmp_path / 'vm.json').write_text('{"name":"web1","what":"\\"quoted\\""}')
    tool_at(store, 'init')
    for ident in ids:
        tool_at(store, 'create', '--id', ident, '--vm', 'web1', '--definition', tmp_path / 'vm.json', '--disk', f'd={tmp_path}/disk')
    for page, pages in ((1, 5), (1 << 20, 1)):
        seen, after, count = [], [], 0
        while True:
            *lines, end = map(json.loads, tool_at(store, 'list', '--page-bytes', page, *after).splitlines())
            seen += lines
            count += 1
            assert end['damaged'] == 0
            if not end['more']:
                break
            after = ['--after', lines[-1]['id']]
        assert [b['id'] for b in seen] == sorted(ids) and count == pages
        assert all(json.loads(b['definition']) == {'name': 'web1', 'what': '"quoted"'} for b in seen)


def written(store, verb, *options):
    """What drover-backup writes to its standard output, a write at a time."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, its, subprocess.Popen([BACKUP, verb, '--store', store, *map(str, options), '--progress-fd', '1'], stdout=its,
                                     stderr=subprocess.DEVNULL) as process:
        its.close()
        writes = []
        while data := ours.recv(1 << 20):
            writes.append(data)
    return process.returncode, writes


def test_told_in_whole_lines(tmp_path):
    """Verdicts and removals share a pipe with the progress, which is written past their buffer; a reader takes a line for done."""
    store, first = tmp_path / 'store', str(uuid.uuid4())
    (tmp_path / 'disk').write_bytes(bytes(65536))
    tool_at(store, 'init')
    tool_at(store, 'create', '--id', first, '--vm', 'web1', '--disk', f'd={tmp_path}/disk')
    manifest, = (store / 'backups').iterdir()
    others = [str(uuid.uuid4()) for _ in range(100)]
    for ident in others:        # of another backup: damaged
        shutil.copy(manifest, manifest.with_name(manifest.name.replace(first, ident)))
    for verb, options, begin in (('verify', ['--each'], b'{"backup":'), ('prune', ['--no-collect', *[w for i in others[:60] for w in ('--forget', i)]], b'removed ')):
        status, writes = written(store, verb, *options)
        assert all(data.endswith(b'\n') for data in writes), [data for data in writes if not data.endswith(b'\n')]
        assert status == (1 if verb == 'verify' else 0), writes
        assert sum(line.startswith(begin) for line in b''.join(writes).splitlines()) == (101 if verb == 'verify' else 60)


def test_attached_beside_what_is_known(cluster):
    """What is known is left as it is; what was made by hand, of no VM, is found as well; what cannot be read is listed as damaged."""
    create(cluster, 'a', vcpus=2, disks=[{'name': 'root', 'image': True}, {'name': 'data', 'size_bytes': DISK_BYTES}])
    add_store(cluster)
    made = [backup(cluster, name=f'one-{i}') for i in range(3)]
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    last = backup(cluster, name='last')
    # by hand, of no VM, with a name that no backup of ours would get; and one that cannot be read
    by_hand = json.loads(tool(cluster, 'create', '--vm', 'by-hand', '--json', '--disk', f'x={GUEST}'))['id']
    damaged = json.loads(tool(cluster, 'create', '--vm', 'damaged', '--json', '--disk', f'x={GUEST}'))['id']
    manifest, = (cluster.store / 'backups').glob(f'{damaged}-*')
    manifest.chmod(0o600)
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    known = {b['id']: b for b in cluster.api('GET', '/v1/backups')[2]}
    assert set(known) == {b['id'] for b in (*made, last)}
    done(cluster, cluster.api('POST', '/v1/backup-stores/nas/attach'))
    now = {b['id']: b for b in cluster.api('GET', '/v1/backups')[2]}
    assert set(now) == set(known) | {by_hand, damaged} and {k: now[k] for k in known} == known
    assert damaged in now[damaged]['damage'] and now[damaged]['name'] == f'damaged-{damaged[:8]}', now[damaged]
    assert now[by_hand]['vm_name'] == 'by-hand' and now[by_hand]['state'] == 'available' and 'definition' not in now[by_hand]


def test_everything_lost_but_the_store(make_cluster, cluster):
    vm_id = create(cluster, 'a', vcpus=2, disks=[{'name': 'root', 'image': True}, {'name': 'data', 'size_bytes': DISK_BYTES}],
                   labels={'tier': 'web'})
    add_store(cluster)
    backup(cluster, name='first')
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    last = backup(cluster, name='last')
    wanted = {disk: tool(cluster, 'cat', '--backup', last['id'], '--disk', disk) for disk in ('root', 'data')}

    new = make_cluster(controllers=1, agents=1)
    new.store = cluster.store
    status, _, _ = new.api('POST', '/v1/backup-stores', {'name': 'old', 'location': str(cluster.store)})
    assert status == 201
    done(new, new.api('POST', '/v1/backup-stores/old/attach'))
    found = {b['id']: b for b in new.api('GET', '/v1/backups')[2]}
    assert len(found) == 2 and {b['vm'] for b in found.values()} == {vm_id}
    name = found[last['id']]['name']
    assert found[last['id']]['consistency'] == 'filesystem' and name.startswith('a-20') and found[last['id']]['store_name'] == 'old'
    # what is missing is named, with what to do
    status, _, problem = new.api('POST', '/v1/vms', {'name': 'again', 'backup': name})
    assert status == 404 and problem['errors'][0]['pointer'] == '#/image' and 'import it' in problem['detail'], problem
    status, _, problem = new.api('POST', '/v1/vms', {'name': 'again', 'backup': name, 'started': True})
    assert status == 400 and 'started' in str(problem), problem
    status, _, problem = new.api('POST', '/v1/vms', {'name': 'again', 'backup': 'none'})
    assert status == 404 and problem['errors'][0]['pointer'] == '#/backup', problem
    artifact = {'url': f'file://{GUEST}', 'sha256': hashlib.sha256(GUEST.read_bytes()).hexdigest()}
    assert new.api('POST', '/v1/images', {'name': 'other', 'kind': 'kernel', 'kernel': artifact})[0] == 201
    done(new, new.api('POST', '/v1/vms', {'name': 'again', 'backup': name, 'image': 'other'}))
    vm = new.vm('again')
    assert vm['vcpus'] == 2 and vm['labels'] == {'tier': 'web'} and vm['state'] == 'stopped' and 'backup' not in vm, vm
    assert [(d['name'], d['size_bytes']) for d in vm['disks']] == [('root', DISK_BYTES), ('data', DISK_BYTES)]
    done(new, new.api('POST', f'/v1/backups/{name}/restore', {'vm': 'again'}))
    assert {disk: shown(new, own(new, vm['id']), disk) for disk in wanted} == wanted
    if os.geteuid() == 0:   # they are its own user's, and nobody else's, before it has ever run
        made = os.stat(own(new, vm['id']) / 'root.layers')
        assert made.st_uid >= 1900000000 and made.st_mode & 0o777 == 0o700
    done(new, new.api('POST', '/v1/vms/again/start'))
    wait_until(lambda: new.vm('again')['state'] == 'running', 30, 'the restored VM')


def test_single_disk_restored(cluster):
    vm_id = create(cluster, 'a', disks=[{'name': 'data', 'size_bytes': DISK_BYTES}, {'name': 'root', 'image': True}])
    add_store(cluster)
    early = backup(cluster, name='early')
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    was = tool(cluster, 'cat', '--backup', early['id'], '--disk', 'data')
    now = shown(cluster, own(cluster, vm_id), 'data')
    assert now != was, 'the guest has written nothing: this shows nothing'
    for disks, text in ((['none'], "backup 'early' has no disk 'none'"), (['data', 'none'], 'none')):
        status, _, problem = cluster.api('POST', '/v1/backups/early/restore', {'disks': disks})
        assert status == 404 and text in problem['detail'], problem
    done(cluster, cluster.api('POST', '/v1/backups/early/restore', {'disks': ['root']}))
    assert shown(cluster, own(cluster, vm_id), 'data') == now
    done(cluster, cluster.api('POST', '/v1/backups/early/restore', {'disks': ['data']}))
    assert shown(cluster, own(cluster, vm_id), 'data') == was


def test_disks_in_pools(cluster):
    """Backed up while it runs and while not, restored over what is there, and into another pool for a VM that never ran."""
    nas, ssd = pool(cluster, 'nas'), pool(cluster, 'ssd', kind='dir')
    for name in ('nas', 'ssd'):
        wait_pool(cluster, name, n1='present')
    vm_id = create(cluster, 'a', pool='nas', disks=[{'name': 'root', 'image': True}, {'name': 'data', 'size_bytes': DISK_BYTES, 'pool': 'ssd'}])
    add_store(cluster)
    runs = backup(cluster, name='runs')
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    off = backup(cluster, name='off')
    place = nas / 'vms' / vm_id
    assert [d['name'] for d in off['disks']] == ['root', 'data'] and content(cluster, runs['id']) != content(cluster, off['id'])
    assert shown(cluster, place, 'root') == content(cluster, off['id'])
    done(cluster, cluster.api('POST', '/v1/backups/runs/restore', {}))
    assert shown(cluster, place, 'root') == content(cluster, runs['id'])
    done(cluster, cluster.api('POST', '/v1/vms/a/start'))
    wait_until(lambda: cluster.vm('a')['state'] == 'running', 30, 'the restored VM')
    # all disks to another pool; the VM has never run, and what an attempt left that was cut off is no hindrance
    done(cluster, cluster.api('POST', '/v1/vms', {'name': 'b', 'backup': 'off', 'pool': 'ssd'}))
    vm = cluster.vm('b')
    assert [d['pool'] for d in vm['disks']] == ['ssd', 'ssd']
    place = ssd / 'vms' / vm['id']
    (place / '.root.restored').mkdir(parents=True)
    (place / '.root.restored' / 'restored-1.1.raw').write_bytes(b'cut off')
    done(cluster, cluster.api('POST', '/v1/backups/off/restore', {'vm': 'b'}))
    assert shown(cluster, place, 'root') == content(cluster, off['id'])
    assert sorted(entry.name for entry in place.iterdir()) == ['data.layers', 'root.layers']
    done(cluster, cluster.api('POST', '/v1/backups/runs/restore', {'vm': 'b', 'disks': ['root']}))    # over what is there by now
    assert shown(cluster, place, 'root') == content(cluster, runs['id'])
    done(cluster, cluster.api('POST', '/v1/vms/b/start'))
    wait_until(lambda: cluster.vm('b')['state'] == 'running', 30, 'the VM in the other pool')
    # a pool that is not mounted: nothing is made in the empty directory
    done(cluster, cluster.api('POST', '/v1/vms/b/stop?force=true'))
    cluster.agent(1).host.run(['mount', '-t', 'tmpfs', 'tmpfs', ssd])
    failed = done(cluster, cluster.api('POST', '/v1/backups/off/restore', {'vm': 'b'}), 'failed')
    assert 'is it mounted?' in failed['error_text'], failed
    assert cluster.agent(1).host.run(['ls', '-A', ssd]).stdout == ''
    cluster.agent(1).host.run(['umount', ssd])
    # and one that this cluster does not have
    done(cluster, cluster.api('DELETE', '/v1/vms/a'))
    wait_until(lambda: cluster.api('DELETE', '/v1/pools/nas')[0] == 204, 30, 'the pool is nobody\'s')
    status, _, problem = cluster.api('POST', '/v1/vms', {'name': 'c', 'backup': 'off'})
    assert status == 404 and problem['errors'][0]['pointer'] == '#/disks/0/pool' and 'give pool here' in problem['detail'], problem
