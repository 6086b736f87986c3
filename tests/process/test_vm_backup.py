"""Images of a running VM's disks: they are of one instant, bit for bit, whatever the guest writes meanwhile; what has
changed since the last one; and what happens to them, and never to the guest, when something goes wrong.

The guest (tests/guest/guest_disk.c) writes its first disk all the time and checks what it reads."""
import os
import re
import struct
import subprocess
import time

import pytest

from nbd import ALLOCATION, Nbd, NbdError
from test_jail import USER, jailed     # noqa: F401   a fixture
from test_snapshot_disk import FAULTS, blocks_of, counts, wait_counts
from test_vmm import LIMIT_S, pytestmark, vmm     # noqa: F401   the fixture and its conditions

CLUSTER = 65536
# Behind the 256 KiB that the guest writes: data, a hole, data, a hole to the end.
SIZE, DATA, HOLE, MORE = 4 << 20, 1 << 20, 2 << 20, 3 << 20


def disk_make(path, seed=b'a'):
    with open(path, 'wb') as file:
        file.truncate(SIZE)
        file.seek(DATA)
        file.write((seed * 4093)[:4093] * ((HOLE - DATA) // 4093))
        file.seek(MORE)
        file.write(os.urandom(CLUSTER + 512))
    return str(path)


@pytest.fixture
def guest(vmm, tmp_path):      # noqa: F811
    """guest(**config): a VM whose guest writes; its image's socket is `.socket`."""
    def make(**config):
        disks = config.pop('disks', None) or [{'path': disk_make(tmp_path / 'disk')}, {'path': disk_make(tmp_path / 'second', b'b')}]
        vm = vmm('disk=77', disks=disks, **config)
        vm.socket = tmp_path / 'backup'
        vm.out = vm.console()
        return vm
    return make


def begin(vm, name='one', status=201, **order):
    got, answer = vm.request('POST', '/v1/vm/backup', {'name': name, 'path': str(vm.socket), **order})
    assert got == status, answer
    return answer


def end(vm, name='one', kept=True, status=200):
    got, answer = vm.request('PUT', '/v1/vm/backup', {'name': name, 'kept': kept})
    assert got == status, answer
    return answer


def show(vm):
    return vm.request('GET', '/v1/vm/backup')[1]


def writes_on(vm, more=3, again=False):
    """@again: a guest that begins with a disk that another has written finds fault with it."""
    wait_counts(vm.out, len(counts(vm.out)) + more)
    assert again or not FAULTS.search(vm.out.text), vm.out.text[-2000:]


def writes_everywhere(vm, writes=100):
    """So many, at random places of four clusters, that each of these has some: a slow machine does few between two counts."""
    writes_on(vm)
    until = counts(vm.out)[-1][0] + writes
    while counts(vm.out)[-1][0] < until:
        writes_on(vm, 1)


def power_off(vm):
    assert vm.move('stopped')[0] == 200
    assert vm.process.wait(LIMIT_S) == 0, vm.log.read_text()


@pytest.mark.parametrize('how', [
    pytest.param({}, id='auto'),
    pytest.param({'engine': 'threads'}, id='threads', marks=pytest.mark.slow),
    pytest.param({'engine': 'auto', 'direct': True}, id='direct', marks=pytest.mark.slow),
])
def test_images_are_of_one_instant(guest, tmp_path, how):
    vm = guest(disks=[{'path': disk_make(tmp_path / 'disk'), **how}, {'path': disk_make(tmp_path / 'second', b'b'), **how}])
    writes_on(vm)
    vm.move('paused')
    then = [(tmp_path / name).read_bytes() for name in ('disk', 'second')]
    answer = begin(vm)
    assert answer['phase'] == 'open' and answer['consistency'] == 'crash' and 'agent' in answer['why_not']
    assert [d['id'] for d in answer['disks']] == ['disk0', 'disk1'] and answer['pause_us'] < 10000000
    assert os.stat(vm.socket).st_mode & 0o777 == 0o600
    vm.move('running')
    writes_on(vm, 5)
    for export, wanted in zip(('disk0', 'disk1'), then):
        nbd = Nbd(vm.socket, export)
        for _ in range(3):
            assert nbd.read_all() == wanted, export
            writes_on(vm, 1)
        holes = [(at, size) for at, size, flags in nbd.extents(ALLOCATION) if flags & 2]
        assert (HOLE, MORE - HOLE) in holes, holes
        assert all(not any(wanted[at:at + size]) for at, size in holes)
        nbd.close()
    assert (tmp_path / 'disk').read_bytes() != then[0], 'the guest wrote nothing: this shows nothing'
    subprocess.run(['qemu-img', 'convert', '-f', 'raw', '-O', 'raw', f'nbd+unix:///disk0?socket={vm.socket}', tmp_path / 'copy'],
                   check=True, timeout=LIMIT_S)
    assert (tmp_path / 'copy').read_bytes() == then[0]
    assert show(vm)['disks'][0]['copied_bytes'] > 0 and show(vm)['spill_bytes'] > 0
    assert end(vm)['phase'] == 'none'
    assert not vm.socket.exists() and show(vm)['spill_bytes'] == 0
    writes_on(vm)
    vm.out.socket.send(b'verify\n')
    vm.out.wait(r'^disk verified (\d+) writes (\d+) reads$')
    assert not FAULTS.search(vm.out.text)
    power_off(vm)


def test_instants_between_writes(guest, tmp_path):
    """Without a pause: no write is in an image by half, and an image does not change."""
    vm = guest()
    for i in range(6):
        writes_on(vm, 1)
        begin(vm, f'b{i}', freeze='never')
        nbd = Nbd(vm.socket, 'disk0')
        first = nbd.read_all()
        (tmp_path / 'image').write_bytes(first)
        blocks_of(tmp_path / 'image')       # none is torn
        writes_on(vm, 1)
        assert nbd.read_all() == first
        nbd.close()
        end(vm, f'b{i}', kept=i % 2 == 0)
    power_off(vm)


def changed(vm, since):
    """Stretches of disk0 that have changed since, or None."""
    nbd = Nbd(vm.socket, 'disk0', [ALLOCATION, f'drover:changed:{since}'])
    name = f'drover:changed:{since}'
    found = [(at, at + size) for at, size, flags in nbd.extents(name) if flags & 1] if name in nbd.contexts.values() else None
    nbd.close()
    return found


def test_what_has_changed(guest, vmm, tmp_path):   # noqa: F811
    vm = guest()
    writes_on(vm)
    assert not begin(vm, 'one', since='never')['disks'][0]['changed_known']
    assert changed(vm, 'never') is None
    end(vm, 'one')
    writes_everywhere(vm)
    answer = begin(vm, 'two', since='one')
    assert answer['disks'][0]['changed_known'] and 0 < answer['disks'][0]['changed_bytes'] <= 4 * CLUSTER
    assert answer['disks'][1] == {**answer['disks'][1], 'changed_known': True, 'changed_bytes': 0}
    assert changed(vm, 'one') == [(0, 4 * CLUSTER)]
    assert changed(vm, 'two') is None
    end(vm, 'two', kept=False)
    writes_on(vm)
    power_off(vm)
    # The next VMM knows it still; the one after a death does not.
    assert (tmp_path / 'disk.changed').exists()
    disks = [{'path': str(tmp_path / 'disk')}, {'path': str(tmp_path / 'second')}]
    vm = guest(disks=disks)
    assert not (tmp_path / 'disk.changed').exists()
    writes_on(vm, 1, again=True)
    assert begin(vm, 'three', since='one')['disks'][0]['changed_known']
    assert changed(vm, 'one') == [(0, 4 * CLUSTER)]
    end(vm, 'three')
    power_off(vm)
    vm = guest(disks=disks)
    vm.process.kill()
    vm.process.wait()
    vm = guest(disks=disks)
    assert not begin(vm, 'four', since='three')['disks'][0]['changed_known']
    end(vm, 'four')
    power_off(vm)
    # Written by somebody else while it was off.
    with open(tmp_path / 'disk', 'r+b') as file:
        file.seek(DATA)
        file.write(b'else')
    vm = guest(disks=disks)
    answer = begin(vm, 'five', since='four')
    assert [d['changed_known'] for d in answer['disks']] == [False, True]
    end(vm, 'five')
    assert 'changes-unknown' in vm.log.read_text()


def test_full_spill_is_the_backups_end_and_not_the_guests(guest):
    vm = guest()
    writes_on(vm)
    begin(vm, spill_bytes_max=CLUSTER)
    nbd = Nbd(vm.socket, 'disk0')
    limit = time.monotonic() + LIMIT_S
    while show(vm)['phase'] != 'failed':
        assert time.monotonic() < limit
        writes_on(vm, 1)
    failure = show(vm)['failure']
    assert 'disk0' in failure and 'spill' in failure, failure
    with pytest.raises(NbdError, match='error 5'):
        nbd.read(DATA, 4096)
    nbd.close()
    writes_on(vm)
    assert 'spill' in end(vm, status=409)['detail']
    assert show(vm)['phase'] == 'none'
    begin(vm, 'again')
    assert len(Nbd(vm.socket, 'disk0').read_all()) == SIZE
    end(vm, 'again')
    vm.out.socket.send(b'verify\n')
    vm.out.wait(r'^disk verified')
    assert not FAULTS.search(vm.out.text)


def test_what_was_read_costs_nothing_more(guest):
    """A reader that gives back what it has read lets a small spill be enough."""
    vm = guest()
    writes_on(vm)
    vm.move('paused')
    begin(vm, spill_bytes_max=CLUSTER)
    nbd = Nbd(vm.socket, 'disk0')
    for at in range(0, 4 * CLUSTER, CLUSTER):
        nbd.read(at, CLUSTER)
        nbd.trim(at, CLUSTER)
    vm.move('running')
    writes_on(vm, 5)
    assert show(vm)['phase'] == 'open' and show(vm)['spill_peak_bytes'] == 0
    with pytest.raises(NbdError):
        nbd.read(0, 4096)
    nbd.close()
    end(vm)


def test_nobody_reads(guest):
    vm = guest()
    begin(vm, idle_limit_s=1)
    limit = time.monotonic() + LIMIT_S
    while show(vm)['phase'] == 'open':
        assert time.monotonic() < limit
        time.sleep(0.05)
    assert 'nobody' in show(vm)['failure'] and not vm.socket.exists()
    assert 'nobody' in end(vm, status=404)['detail']
    writes_on(vm)


def test_refused(guest, tmp_path):
    vm = guest(agent_channel=True)
    answer = begin(vm, freeze='always', status=409)
    assert 'frozen' in answer['detail'], answer
    assert show(vm)['phase'] == 'none' and not vm.socket.exists()
    assert end(vm, status=404)['code'] == 'not-found'
    for disk in ('disk7', 'seed'):
        assert '/disks' in str(begin(vm, disks=['disk1', disk], status=409)), disk
    assert show(vm)['phase'] == 'none' and not vm.socket.exists()
    begin(vm)
    assert 'one' in begin(vm, 'two', status=409)['detail']
    got, answer = vm.request('POST', '/v1/vm/migration', {'to': f'unix:{tmp_path}/nobody'})
    assert got == 409 and 'backup' in answer['detail']
    # A disk that is taken away takes its image with it; the guest's other disks are no concern of that.
    assert vm.request('DELETE', '/v1/vm/disks/disk1?force=true')[0] == 202
    limit = time.monotonic() + LIMIT_S
    while show(vm)['phase'] != 'failed':
        assert time.monotonic() < limit
        time.sleep(0.02)
    assert 'disk1' in show(vm)['failure']
    end(vm, kept=False)
    writes_on(vm)
    begin(vm, 'later', path=str(tmp_path / 'no-such-directory' / 'socket'), status=400)
    writes_on(vm)


def test_of_some_disks(guest):
    """What is not asked for has no image, and what the guest writes there costs nothing."""
    vm = guest()
    assert [d['id'] for d in begin(vm, disks=['disk1'])['disks']] == ['disk1']
    with pytest.raises(NbdError):
        Nbd(vm.socket, 'disk0')
    nbd = Nbd(vm.socket, 'disk1')
    assert len(nbd.read_all()) == SIZE
    nbd.close()
    writes_on(vm)
    assert show(vm)['spill_peak_bytes'] == 0 and [d['copied_bytes'] for d in show(vm)['disks']] == [0]
    end(vm)
    answer = begin(vm, 'two', since='one')
    assert [d['changed_known'] for d in answer['disks']] == [False, True]
    end(vm, 'two')


def test_grown_meanwhile(guest):
    vm = guest()
    begin(vm)
    got, answer = vm.request('PATCH', '/v1/vm/disks/disk0', {'size_bytes': 2 * SIZE})
    assert got == 200, answer
    nbd = Nbd(vm.socket, 'disk0')
    assert nbd.size == SIZE and len(nbd.read_all()) == SIZE
    nbd.close()
    end(vm)
    answer = begin(vm, 'two', since='one')
    assert answer['disks'][0]['size_bytes'] == 2 * SIZE and answer['disks'][0]['changed_bytes'] >= SIZE
    end(vm, 'two')


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can become another user')
def test_behind_the_walls(jailed, tmp_path):     # noqa: F811
    """User, view of files and system calls of a VMM of the agent's allow all of it, and the map of changes as well."""
    (tmp_path / 'home').mkdir(mode=0o700)
    os.chown(tmp_path / 'home', USER, USER)
    vm = jailed('disk=77', disks=[{'path': disk_make(tmp_path / 'home' / 'disk')}])
    vm.socket, vm.out = tmp_path / 'home' / 'backup', vm.console()
    writes_on(vm)
    vm.move('paused')
    then = (tmp_path / 'home' / 'disk').read_bytes()
    begin(vm)
    vm.move('running')
    writes_on(vm)
    nbd = Nbd(vm.socket, 'disk0')
    assert nbd.read_all() == then
    nbd.close()
    end(vm)
    power_off(vm)
    assert (tmp_path / 'home' / 'disk.changed').exists()


def test_ends_with_its_images_open(guest):
    vm = guest()
    begin(vm)
    nbd = Nbd(vm.socket, 'disk0')
    power_off(vm)
    with pytest.raises((ConnectionError, OSError)):
        nbd.read(0, 4096)
    assert not vm.socket.exists()
