"""Stores of backups through the cluster: what is damaged is found and named, what rules let go goes and nothing that is at work, and a
store can be forgotten. Real controllers, agents, VMMs, drover-backup and the test guest; of disks with random bytes, so that a
limit of bytes makes things slow."""
import json
import random
import shutil

import pytest

from bed import wait_until
from test_backups import add_store, backup, cluster_with, create, done, pytestmark, tool     # noqa: F401

RANDOM_BYTES, DISK_BYTES = 1 << 20, 4 << 20


@pytest.fixture
def cluster(make_cluster):
    return cluster_with(make_cluster, bytes(1 << 20) + random.Random(7).randbytes(RANDOM_BYTES) + bytes(DISK_BYTES - (1 << 20) - RANDOM_BYTES))


def get(cluster, what):
    status, _, found = cluster.api('GET', f'/v1/{what}')
    assert status == 200, found
    return found


def packs(cluster):
    return set((cluster.store / 'packs').glob('*/*'))


def hurt(pack):
    pack.chmod(0o600)
    whole = pack.read_bytes()
    pack.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    return whole


def test_damage_is_named(cluster):
    create(cluster, 'a')
    add_store(cluster)
    backup(cluster, name='one')
    first = packs(cluster)
    backup(cluster, name='two')
    pack, = packs(cluster) - first
    assert 'damage' not in cluster.cli('backup', 'verify', '--wait')
    said = cluster.cli('backup', 'verify', '--store', 'nas', '--wait')
    assert said['state'] == 'succeeded' and '2 backups are whole' in said['step'], said
    assert all('verified_at' in b and 'damage' not in b for b in get(cluster, 'backups'))
    assert 'verified_at' in get(cluster, 'backup-stores/nas') and 'damage' not in get(cluster, 'backup-stores/nas')
    # of one backup only what it needs is looked at
    whole = hurt(pack)
    done(cluster, cluster.api('POST', '/v1/backups/one/verify'))
    failed = done(cluster, cluster.api('POST', '/v1/backups/two/verify'), 'failed')
    assert failed['error_code'] == 'checksum' and pack.name in failed['error_text'], failed
    assert 'damage' not in get(cluster, 'backups/one') and 'lost' in get(cluster, 'backups/two')['damage']
    # the whole store: the same, and what is not there at all
    one = get(cluster, 'backups/one')['id']
    tool(cluster, 'prune', '--forget', one, '--no-collect')
    failed = done(cluster, cluster.api('POST', '/v1/backup-stores/nas/verify'), 'failed')
    assert pack.name in failed['error_text'] and pack.name in get(cluster, 'backup-stores/nas')['damage'], failed
    assert 'not in the store' in get(cluster, 'backups/one')['damage'] and 'lost' in get(cluster, 'backups/two')['damage']
    # everything but what is damaged can be had still; what has come back is whole again
    pack.write_bytes(whole)
    failed = done(cluster, cluster.api('POST', '/v1/backups/one/verify'), 'failed')
    assert 'one is not in' in failed['error_text'] or 'is not in the store' in failed['error_text'], failed
    done(cluster, cluster.api('DELETE', '/v1/backups/one'))
    done(cluster, cluster.api('POST', '/v1/backup-stores/nas/verify'))
    assert 'damage' not in get(cluster, 'backups/two') and 'damage' not in get(cluster, 'backup-stores/nas')


def test_mended_by_the_next_backup(cluster):
    """What is damaged is no parent: the next backup reads everything, and stores anew what the store has lost."""
    create(cluster, 'a')
    add_store(cluster)
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    first = backup(cluster, name='first')
    for pack in packs(cluster):
        hurt(pack)
    done(cluster, cluster.api('POST', '/v1/backup-stores/nas/verify'), 'failed')
    assert 'damage' in get(cluster, 'backups/first')
    second = backup(cluster, name='second')
    assert 'parent' not in second and second['read_bytes'] >= RANDOM_BYTES
    done(cluster, cluster.api('POST', '/v1/backups/second/verify'))
    done(cluster, cluster.api('POST', '/v1/backups/first/verify'))      # it needs the same bytes
    assert 'damage' not in get(cluster, 'backups/first') and first['id'] != second['id']


def test_pruned_by_rules(cluster):
    create(cluster, 'a')
    add_store(cluster)
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    names = [f'b{i}' for i in range(5)]
    for name in names:
        backup(cluster, name=name)
    left = lambda: sorted(b['name'] for b in get(cluster, 'backups'))      # noqa: E731
    plan = cluster.cli('backup', 'prune', '--dry-run')
    assert plan.get('goes', []) == [] and plan['kept'] == 5      # no rules: all stay
    plan = cluster.cli('backup', 'prune', '--keep-last', '2', '--dry-run')
    assert sorted(b['name'] for b in plan['goes']) == names[:3] and plan['kept'] == 2 and left() == names
    with pytest.raises(Exception, match='add --yes'):
        cluster.cli('backup', 'prune', '--keep-last', '2', '--wait')
    assert left() == names
    # what is being restored stays, though the rules would let it go
    assert cluster.api('PATCH', '/v1/backup-stores/nas', {'bytes_per_second': 4096})[0] == 200
    done(cluster, cluster.api('POST', '/v1/vms', {'name': 'other', 'backup': 'b0'}))
    status, _, restore = cluster.api('POST', '/v1/backups/b0/restore', {'vm': 'other'})
    assert status == 202, restore
    wait_until(lambda: not get(cluster, f"operations/{restore['id']}").get('step', '').startswith('waiting'), 30, 'the host has begun')
    assert cluster.api('PATCH', '/v1/backup-stores/nas', {'bytes_per_second': 1 << 30})[0] == 200
    assert cluster.api('DELETE', '/v1/backups/b0')[0] == 409
    said = cluster.cli('backup', 'prune', '--keep-last', '2', '--yes', '--wait')
    assert said['state'] == 'succeeded' and '2 backups are gone' in said['step'], said
    assert left() == ['b0', 'b3', 'b4'] and get(cluster, 'backups/b0')['state'] == 'restoring'
    assert get(cluster, f"operations/{restore['id']}")['state'] == 'running'
    cluster.api('POST', f"/v1/operations/{restore['id']}/cancel")
    done(cluster, (202, None, restore), 'cancelled')
    assert {b['id'] for b in json.loads(tool(cluster, 'list', '--json'))} == {b['id'] for b in get(cluster, 'backups')}
    # now it may go; one that the store has not got any more has gone already
    tool(cluster, 'prune', '--forget', get(cluster, 'backups/b0')['id'], '--no-collect')
    said = cluster.cli('backup', 'prune', '--keep-last', '2', '--yes', '--wait')
    assert left() == ['b3', 'b4'], said
    done(cluster, cluster.api('POST', '/v1/backup-stores/nas/verify'))


def share_not_mounted(cluster):
    """The host sees an empty directory there, and then another repository: it does nothing, and nothing changes in what is known."""
    known, mounted = get(cluster, 'backups'), cluster.store.rename(cluster.store.with_name('mounted'))
    assert len(get(cluster, 'backup-stores/nas')['repository']) == 32
    asked = [('POST', '/v1/backup-stores/nas/verify'), ('POST', '/v1/backup-stores/nas/prune', {'keep_last': 1}), ('DELETE', '/v1/backups/kept'),
             ('POST', '/v1/backups/kept/verify'), ('POST', '/v1/backup-stores/nas/attach'), ('POST', '/v1/vms/a/backups', {'name': 'new'})]
    for there in 'no repository', 'is repository':
        cluster.store.mkdir(exist_ok=True)
        before = sorted(path for path in cluster.store.rglob('*'))
        for what in asked if there == 'no repository' else asked[:1]:
            failed = done(cluster, cluster.api(*what), 'failed')
            assert there in failed['error_text'] and 'is the share mounted on n1?' in failed['error_text'], (what, failed)
        now = get(cluster, 'backups')
        assert [{**b, 'state_reason': '', 'revision': 0} for b in now] == [{**b, 'state_reason': '', 'revision': 0} for b in known], now
        assert sorted(path for path in cluster.store.rglob('*')) == before
        if there == 'no repository':
            tool(cluster, 'init')
    shutil.rmtree(cluster.store)
    mounted.rename(cluster.store)
    done(cluster, cluster.api('POST', '/v1/backup-stores/nas/verify'))
    assert 'damage' not in get(cluster, 'backups/kept') and 'damage' not in get(cluster, 'backup-stores/nas')


def test_store_forgotten(cluster):
    create(cluster, 'a')
    add_store(cluster)
    kept = backup(cluster, name='kept')
    status, _, problem = cluster.api('DELETE', '/v1/backup-stores/nas')
    assert status == 409 and problem['code'] == 'in-use' and '--force' in problem['detail'], problem
    with pytest.raises(Exception, match='1 backups in it|add --yes'):
        cluster.cli('backup-store', 'delete', 'nas', '--force')
    assert len(get(cluster, 'backups')) == 1
    share_not_mounted(cluster)
    files = sorted(path for path in cluster.store.rglob('*') if path.is_file())
    cluster.cli('backup-store', 'delete', 'nas', '--force', '--yes', parse=False)
    assert get(cluster, 'backups') == [] and get(cluster, 'backup-stores') == []
    assert sorted(path for path in cluster.store.rglob('*') if path.is_file()) == files
    assert cluster.api('POST', '/v1/backup-stores', {'name': 'again', 'location': str(cluster.store)})[0] == 201
    cluster.cli('backup-store', 'attach', 'again', parse=False)
    found, = get(cluster, 'backups')
    assert found['id'] == kept['id'] and found['store_name'] == 'again' and found['state'] == 'available'
