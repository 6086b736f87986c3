"""Backups through the cluster: real controllers, agents, VMMs, drover-backup and the test guest."""
import fcntl
import hashlib
import json
import os
import pathlib
import signal
import struct
import subprocess

import pytest

from bed import ROOT, wait_until
from cluster import KVM_MISSING, KVM_MISSING_TEXT
from test_vmm import VMM
from test_volume_move import worker

GUEST = ROOT / 'build' / 'guest' / 'ticker.elf'
BACKUP = VMM.parent / 'drover-backup'
DISK_BYTES = 4 << 20
pytestmark = [pytest.mark.skipif(not GUEST.exists(), reason='the test guest is not built: make guest'),
              pytest.mark.skipif(not BACKUP.exists(), reason='drover-backup is not built'),
              pytest.mark.skipif(KVM_MISSING, reason=KVM_MISSING_TEXT)]


def cluster_with(make_cluster, disk_content, controllers=1, agents=1):
    """One controller and one host, or as many as are asked for, and an image `ticker` whose disk has that content; its `store` is to be made."""
    made = make_cluster(controllers=controllers, agents=agents)
    disk = made.bed.directory / 'disk.img'
    disk.write_bytes(disk_content)
    artifacts = {name: {'url': f'file://{path}', 'sha256': hashlib.sha256(path.read_bytes()).hexdigest()}
                 for name, path in (('kernel', GUEST), ('disk', disk))}
    status, _, answer = made.api('POST', '/v1/images', {'name': 'ticker', 'kind': 'kernel', **artifacts})
    assert status == 201, answer
    made.store = made.bed.directory / 'store'
    return made


@pytest.fixture
def cluster(make_cluster):
    return cluster_with(make_cluster, bytes(1 << 20) + b'of the image ' * 1000 + bytes(DISK_BYTES - (1 << 20) - 13000))


def done(cluster, answer, state='succeeded'):
    status, _, operation = answer
    assert status == 202, operation
    if state == 'succeeded':
        return cluster.wait_operation(operation)
    show = lambda: cluster.api('GET', f"/v1/operations/{operation['id']}")[2]      # noqa: E731
    wait_until(lambda: show()['state'] != 'running', 30, 'the end of the operation')
    assert show()['state'] == state, show()
    return show()


def create(cluster, name, **fields):
    done(cluster, cluster.api('POST', '/v1/vms', {'name': name, 'image': 'ticker', 'vcpus': 1, 'memory_bytes': 64 << 20,
                                                  'cmdline': 'disk=5', **fields}))
    return cluster.vm(name)['id']


def backup(cluster, vm='a', **fields):
    done(cluster, cluster.api('POST', f'/v1/vms/{vm}/backups', fields))
    return cluster.api('GET', f"/v1/backups/{fields['name']}")[2]


def add_store(cluster, **fields):
    status, _, answer = cluster.api('POST', '/v1/backup-stores', {'name': 'nas', 'location': str(cluster.store), **fields})
    assert status == 201, answer
    return answer


def tool(cluster, verb, *options):
    return subprocess.run([BACKUP, verb, '--store', cluster.store, *map(str, options)], check=True, capture_output=True,
                          timeout=240).stdout


def content(cluster, ident):
    """The first disk of a backup."""
    return tool(cluster, 'cat', '--backup', ident, '--disk', 'root')


def disk_now(cluster, vm_id):
    """What a VM that is off shows its guest: its layers, put on top of each other by a backup by hand."""
    layers = cluster.agent(1).directory / 'vms' / vm_id / 'disks' / 'root.layers'
    made = json.loads(tool(cluster, 'create', '--vm', 'by-hand', '--parent', 'none', '--json', '--disk', f'root=pool:{layers}/root'))
    return content(cluster, made['id'])


def is_read(layers):
    """Somebody has the disk's top open."""
    top = json.loads((layers / 'root.disk').read_text())['top']
    return f":{(layers / f'{top}.map').stat().st_ino} " in pathlib.Path('/proc/locks').read_text()


def test_backed_up_while_it_runs_and_restored(cluster):
    vm_id = create(cluster, 'a')
    status, _, problem = cluster.api('POST', '/v1/vms/a/backups', {})
    assert status == 404 and 'backup store' in problem['detail'], problem
    add_store(cluster)
    first = backup(cluster, name='first', labels={'why': 'test'})
    assert first['state'] == 'available' and first['consistency'] == 'crash' and 'parent' not in first
    assert [(d['name'], d['size_bytes'], len(d['content'])) for d in first['disks']] == [('root', DISK_BYTES, 64)]
    assert first['labels'] == {'why': 'test'}
    second = backup(cluster, name='second')
    assert second['parent'] == first['id'] and second['store_name'] == 'nas'
    assert second['read_bytes'] <= 1 << 19 and content(cluster, second['id'])[1 << 20:] == content(cluster, first['id'])[1 << 20:]
    # its definition is in the store, too
    assert json.loads(tool(cluster, 'show', '--backup', second['id'], '--only-definition'))['name'] == 'a'
    # off: from its disks themselves
    status, _, problem = cluster.api('POST', '/v1/backups/first/restore', {})
    assert status == 409 and 'stop it first' in problem['detail']
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    off = backup(cluster, name='off')
    assert off['consistency'] == 'filesystem'
    assert disk_now(cluster, vm_id) == content(cluster, off['id']) != content(cluster, first['id'])
    done(cluster, cluster.api('POST', '/v1/backups/first/restore', {}))
    assert disk_now(cluster, vm_id) == content(cluster, first['id'])
    done(cluster, cluster.api('POST', '/v1/vms/a/start'))
    backup(cluster, name='after')
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    done(cluster, cluster.api('POST', '/v1/backups/off/restore', {}))
    assert disk_now(cluster, vm_id) == content(cluster, off['id'])
    layers = cluster.agent(1).directory / 'vms' / vm_id / 'disks' / 'root.layers'
    assert len(list(layers.glob('restored-*'))) == 1    # nothing is left behind
    # into another VM; and the backups outlive theirs
    done(cluster, cluster.api('DELETE', '/v1/vms/a'))
    other = create(cluster, 'b')
    done(cluster, cluster.api('POST', '/v1/vms/b/stop?force=true'))
    status, _, problem = cluster.api('POST', '/v1/backups/second/restore', {})
    assert status == 404 and 'there is no VM' in problem['detail']
    done(cluster, cluster.api('POST', '/v1/backups/second/restore', {'vm': 'b'}))
    assert disk_now(cluster, other) == content(cluster, second['id'])
    status, _, problem = cluster.api('DELETE', '/v1/backup-stores/nas')
    assert status == 409 and problem['code'] == 'in-use'
    for one in ('first', 'second', 'off', 'after'):
        done(cluster, cluster.api('DELETE', f'/v1/backups/{one}'))
    assert {b['vm_name'] for b in json.loads(tool(cluster, 'list', '--json'))} == {'by-hand'}
    assert cluster.api('DELETE', '/v1/backup-stores/nas')[0] == 204


def test_secrets_stay_where_they_are(cluster):
    create(cluster, 'a')
    key = cluster.bed.directory / 'key'
    tool(cluster, 'init', '--encrypt', '--key-file', key)
    secret = key.read_text().strip()
    answer = add_store(cluster, key=secret, access_key='who', secret_key='not-to-be-shown')
    made = backup(cluster, name='one')
    assert made['state'] == 'available'
    operations = cluster.api('GET', '/v1/operations')[2]
    shown = json.dumps([answer, cluster.api('GET', '/v1/backup-stores')[2], cluster.api('GET', '/v1/backup-stores/nas')[2],
                        operations, cluster.api('GET', '/v1/backups')[2]]) + cluster.bed.logs()
    assert 'who' in shown and 'not-to-be-shown' not in shown and secret not in shown
    status, _, answer = cluster.api('PATCH', '/v1/backup-stores/nas', {'key': 'A' * 43})
    assert status == 200 and 'key' not in answer, answer
    failed = done(cluster, cluster.api('POST', '/v1/vms/a/backups', {'name': 'wrong'}), 'failed')
    assert 'key' in failed['error_text'], failed
    assert cluster.api('GET', '/v1/backups/wrong')[0] == 404
    # The guest has not noticed, and the next one works.
    assert cluster.api('PATCH', '/v1/backup-stores/nas', {'key': secret})[0] == 200
    assert backup(cluster, name='right')['parent'] == made['id']


def test_cancelled(cluster):
    create(cluster, 'a')
    add_store(cluster, bytes_per_second=4096)
    status, _, operation = cluster.api('POST', '/v1/vms/a/backups', {'name': 'slow'})
    assert status == 202
    wait_until(lambda: cluster.api('GET', f"/v1/operations/{operation['id']}")[2].get('step', '').startswith('waiting') is False,
               20, 'the host has begun')
    status, _, problem = cluster.api('POST', '/v1/vms/a/backups', {'name': 'two'})
    assert status == 409 and 'slow' in problem['detail']
    cluster.api('POST', f"/v1/operations/{operation['id']}/cancel")
    done(cluster, (202, None, operation), 'cancelled')
    assert cluster.api('GET', '/v1/backups')[2] == []
    assert cluster.api('PATCH', '/v1/backup-stores/nas', {'bytes_per_second': 1 << 30})[0] == 200
    assert backup(cluster, name='again')['state'] == 'available'


def test_snapshots_wait_for_a_backup_of_a_vm_that_is_off(cluster):
    """Whoever reads its disks keeps others from changing what they are made of: that is no failure of theirs."""
    vm_id = create(cluster, 'a')
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    done(cluster, cluster.api('POST', '/v1/vms/a/snapshots', {'name': 's'}))
    add_store(cluster, bytes_per_second=4096)
    slow = cluster.api('POST', '/v1/vms/a/backups', {'name': 'slow'})
    layers = cluster.agent(1).directory / 'vms' / vm_id / 'disks' / 'root.layers'
    wait_until(lambda: is_read(layers), 20, 'the backup reads the disk', poll_s=0.01)
    asked = [cluster.api('POST', '/v1/vms/a/snapshots', {'name': 't'}), cluster.api('DELETE', '/v1/snapshots/s')]
    for status, _, operation in asked:
        assert status == 202, operation
        wait_until(lambda: 'waiting for who reads' in cluster.api('GET', f"/v1/operations/{operation['id']}")[2].get('step', ''), 20, 'it says so')
    cluster.api('POST', f"/v1/operations/{slow[2]['id']}/cancel")
    done(cluster, slow, 'cancelled')
    for one in asked:
        done(cluster, one)
    assert [s['name'] for s in cluster.api('GET', '/v1/snapshots')[2]] == ['t']


def test_restored_disks_are_of_one_moment(cluster):
    """Cancelled between two of them the restore goes on to its end; where its process ends there, it says what that means."""
    vm_id = create(cluster, 'a', disks=[{'name': 'root', 'image': True}, {'name': 'data', 'size_bytes': 4 << 20}])
    add_store(cluster)
    backup(cluster, name='one')
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    agent = cluster.agent(1)
    data = os.open(agent.directory / 'vms' / vm_id / 'disks' / 'data.layers', os.O_RDONLY)
    for end in ('succeeded', 'failed'):
        fcntl.flock(data, fcntl.LOCK_EX)        # the second disk waits for its place
        asked = cluster.api('POST', '/v1/backups/one/restore', {})
        assert asked[0] == 202, asked
        path = f"/v1/operations/{asked[2]['id']}"
        wait_until(lambda: 'in their place' in cluster.api('GET', path)[2].get('step', ''), 20, 'the first disk is in its place, or soon')
        if end == 'succeeded':
            assert cluster.api('POST', f'{path}/cancel')[0] in (200, 202)
            wait_until(lambda: 'too late' in cluster.api('GET', path)[2].get('step', ''), 20, 'it says so')
        else:
            os.kill(worker(agent, 'backup'), signal.SIGKILL)
            assert 'some of the disks may be restored' in done(cluster, asked, end)['error_text']
        fcntl.flock(data, fcntl.LOCK_UN)
        if end == 'succeeded':
            done(cluster, asked)
    os.close(data)
    done(cluster, cluster.api('POST', '/v1/backups/one/restore', {}))


def test_waits_for_who_has_the_disks_of_a_vm_that_is_off(cluster):
    """As a snapshot does that is being made or removed: the backup is made after it, or cancelled meanwhile."""
    vm_id = create(cluster, 'a')
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    add_store(cluster)
    layers = cluster.agent(1).directory / 'vms' / vm_id / 'disks' / 'root.layers'
    top = layers / f"{json.loads((layers / 'root.disk').read_text())['top']}.map"
    with open(top, 'r+b') as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        for name, end in (('one', 'cancelled'), ('two', 'succeeded')):
            asked = cluster.api('POST', '/v1/vms/a/backups', {'name': name})
            assert asked[0] == 202, asked
            path = f"/v1/operations/{asked[2]['id']}"
            wait_until(lambda: 'waiting for who has the VM' in cluster.api('GET', path)[2].get('step', ''), 20, 'it says so')
            if end == 'succeeded':                  # who wants to start the VM does not wait for that as well
                assert cluster.api('POST', '/v1/vms/a/start')[0] == 202
                wait_until(lambda: 'in use' in cluster.vm('a').get('state_reason', ''), 20, 'it is tried to start it')
                file.close()
                wait_until(lambda: cluster.vm('a')['state'] == 'running', 60, 'it runs')
            else:
                cluster.api('POST', f'{path}/cancel')
            done(cluster, asked, end)
    assert [(b['name'], b['state']) for b in cluster.api('GET', '/v1/backups')[2]] == [('two', 'available')]


def test_by_policy(cluster):
    """As often as the policy says, kept as long as it says, and tried again where it failed."""
    create(cluster, 'a', labels={'backup-policy': 'often'})
    create(cluster, 'b')
    add_store(cluster)
    status, _, problem = cluster.api('POST', '/v1/backup-policies', {'name': 'often', 'store': 'nas', 'every_s': 5})
    assert status == 400 and problem['errors'][0]['pointer'] == '#/every_s', problem
    assert cluster.api('POST', '/v1/backup-policies', {'name': 'often', 'store': 'nas', 'every_s': 86400, 'keep_last': 2})[0] == 201
    made = lambda: [b for b in cluster.api('GET', '/v1/backups')[2] if b['state'] == 'available']     # noqa: E731
    wait_until(lambda: len(made()) == 1, 30, 'the first backup')
    assert made()[0]['policy'] == 'often' and made()[0]['vm_name'] == 'a'
    assert len(cluster.api('GET', '/v1/backups')[2]) == 1       # not again, and not of the other VM
    first = made()[0]
    for i in range(2):
        backup(cluster, name=f'by-hand-{i}')
    assert len(made()) == 3         # rules are a policy's
    # A policy with another name begins anew, and its rules count all of the VM's.
    assert cluster.api('POST', '/v1/backup-policies', {'name': 'other', 'store': 'nas', 'every_s': 86400, 'keep_last': 2})[0] == 201
    assert cluster.api('PATCH', '/v1/vms/a', {'labels': {'backup-policy': 'other'}})[0] == 200
    wait_until(lambda: any(b.get('policy') == 'other' for b in made()), 30, 'the backup of the other policy')
    wait_until(lambda: len(cluster.api('GET', '/v1/backups')[2]) == 2, 30, 'its rules have been applied')
    assert sorted(b['name'] for b in made() if 'policy' not in b) == ['by-hand-1'] and first['name'] not in [b['name'] for b in made()]
    assert {b['id'] for b in json.loads(tool(cluster, 'list', '--json'))} == {b['id'] for b in made()}
