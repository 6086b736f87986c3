"""drover-backup of a running VM into a directory: what is restored is the disk at the instant, bit for bit; the next backup
reads only what has changed."""
import json
import subprocess
import uuid

import pytest

from test_vm_backup import begin, end, guest, show, writes_on     # noqa: F401   a fixture
from test_vmm import VMM, pytestmark, vmm     # noqa: F401   the fixture and its conditions

BACKUP = VMM.parent / 'drover-backup'


@pytest.fixture
def store(tmp_path):
    """store(verb, *options): what drover-backup says on standard output."""
    if not BACKUP.exists():
        pytest.skip('drover-backup is not built')
    key = tmp_path / 'key'

    def run(verb, *options, status=0):
        done = subprocess.run([BACKUP, verb, '--store', tmp_path / 'store', '--key-file', key, *map(str, options)],
                              capture_output=True, timeout=240, check=False, text=True)
        assert done.returncode == status, done.stderr
        return done.stdout
    run('init', '--encrypt')
    return run


def back_up(vm, store, name, parent='none', since=None, **how):  # pylint: disable=redefined-outer-name
    """(id, what the manifest says): images are opened while it is paused, with @how; it writes on meanwhile."""
    vm.move('paused')
    then = vm.disk.read_bytes()
    begin(vm, name, **({'since': since} if since else {}), **how)
    vm.move('running')
    ident = str(uuid.uuid4())
    said = store('create', '--vm', 'test', '--id', ident, '--parent', parent, '--json', '--limit', '2M', '--consistency', 'crash',
                 '--disk', f'disk0=nbd:unix:{vm.socket}:disk0@{name}', '--disk', f'disk1=nbd:unix:{vm.socket}:disk1@{name}')
    writes_on(vm)
    assert vm.disk.read_bytes() != then
    end(vm, name)
    return ident, json.loads(said), then


def test_restored_as_it_was(guest, store, tmp_path):    # noqa: F811
    vm = guest()
    vm.disk = tmp_path / 'disk'
    writes_on(vm)
    first = back_up(vm, store, 'one')
    writes_on(vm)
    second = back_up(vm, store, 'two', parent=first[0], since='one')
    writes_on(vm)
    for ident, _, then in (first, second):
        store('restore', '--backup', ident, '--disk', f'disk0=file:{tmp_path}/{ident}', '--disk', f'disk1=file:{tmp_path}/{ident}.1')
        assert (tmp_path / ident).read_bytes() == then
        assert (tmp_path / f'{ident}.1').read_bytes() == (tmp_path / 'second').read_bytes()
    marks = [[disk['mark'] for disk in said['disks']] for _, said, _ in (first, second)]
    assert marks == [['one', 'one'], ['two', 'two']]
    read = [[disk.get('read_bytes', 0) for disk in said['disks']] for _, said, _ in (first, second)]
    assert read[0][0] > 1 << 20 and read[0][1] > 1 << 20 and 0 < read[1][0] <= 1 << 19 and read[1][1] == 0, read


def test_lost_image_fails_the_backup_alone(guest, store, tmp_path):  # noqa: F811
    vm = guest()
    vm.disk = tmp_path / 'disk'
    writes_on(vm)
    begin(vm, 'one', spill_bytes_max=65536)
    while show(vm)['phase'] != 'failed':
        writes_on(vm, 1)
    store('create', '--vm', 'test', '--disk', f'disk0=nbd:unix:{vm.socket}:disk0@one', status=9)
    assert end(vm, kept=False)['phase'] == 'none'
    assert not json.loads(store('list', '--json'))
    writes_on(vm)
