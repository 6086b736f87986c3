"""drover-backup mount and serve: files out of a backup, as other people's programs read them (the kernel's FUSE, debugfs,
qemu-img), and what happens where the store is damaged or somebody ends it."""
import json
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess

import pytest

from nbd import ALLOCATION, Nbd, NbdError

ROOT = pathlib.Path(__file__).resolve().parents[2]
BACKUP = ROOT / 'build/debug/bin/drover-backup'
MIB, PART = 1 << 20, 16 << 20
LIMIT_S = 240
pytestmark = [pytest.mark.skipif(not BACKUP.exists(), reason='drover-backup is not built'),
              pytest.mark.skipif(shutil.which('mke2fs') is None, reason='no mke2fs: tools/deps lab installs e2fsprogs')]
CAN_MOUNT = os.path.exists('/dev/fuse') and subprocess.run(
    ['unshare', '--mount', 'mount', '-t', 'tmpfs', 'none', '/mnt'], stderr=subprocess.DEVNULL, check=False).returncode == 0
needs_fuse = pytest.mark.skipif(not CAN_MOUNT, reason='needs root and /dev/fuse: mounting is not allowed here')


def tool(store, verb, *options, status=0):
    done = subprocess.run([BACKUP, verb, '--store', store, *map(str, options)], capture_output=True, timeout=LIMIT_S, text=True,
                          check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


def disk_make(tmp_path):
    """One MBR partition of PART bytes at 1 MiB with an ext4 file system that has files in it; a hole behind it."""
    tree = tmp_path / 'tree'
    (tree / 'etc').mkdir(parents=True)
    (tree / 'etc' / 'hostname').write_text('of the guest\n')
    (tree / 'big').write_bytes(random.Random(5).randbytes(3 * MIB + 17))
    fs, disk = tmp_path / 'fs', tmp_path / 'disk.raw'
    subprocess.run(['mke2fs', '-q', '-t', 'ext4', '-d', tree, fs, f'{PART >> 10}k'], check=True)
    with open(disk, 'wb') as file:
        entry = struct.pack('<B3sB3sII', 0, b'', 0x83, b'', MIB // 512, PART // 512)
        file.write(bytes(446) + entry + bytes(48) + b'\x55\xaa')
        file.seek(MIB)
        file.write(fs.read_bytes())
        file.truncate(MIB + PART + 5 * MIB)
    return tree, disk


@pytest.fixture
def backup(tmp_path):
    """The store, with a backup `id` of VM web1 with the disks root (disk_make) and data (random)."""
    class Made:
        pass
    made = Made()
    made.tree, made.disk = disk_make(tmp_path)
    made.data = random.Random(6).randbytes(2 * MIB)
    made.data_path = tmp_path / 'data.raw'
    made.data_path.write_bytes(made.data)
    (tmp_path / 'vm.json').write_text('{"name":"web1"}')
    made.store, made.directory = tmp_path / 'store', tmp_path
    tool(made.store, 'init')
    made.id = json.loads(tool(made.store, 'create', '--vm', 'web1', '--json', '--definition', tmp_path / 'vm.json', '--disk',
                              f'root={made.disk}', '--disk', f'data={tmp_path}/data.raw'))['id']
    return made


class Running:
    """A verb that goes on until it is ended; `said`: what it printed when it was ready."""

    def __init__(self, made, verb, *options, mounts=False):
        self.at = made.directory / 'at'
        self.at.mkdir(exist_ok=True)
        # a mount namespace of its own: whatever happens, nothing stays mounted
        before = ['unshare', '--mount', '--propagation', 'private'] if mounts else []
        with open(made.directory / 'err', 'wb') as err:
            self.process = subprocess.Popen([*before, BACKUP, verb, '--store', made.store, *map(str, options)], stdout=subprocess.PIPE,
                                            stderr=err, text=True)
        self.errors = made.directory / 'err'
        self.said = ''
        while 'It ends with' not in self.said:
            line = self.process.stdout.readline()
            assert line, self.said + self.errors.read_text()
            self.said += line

    def inside(self, path=''):
        """The mounted directory, from outside its namespace."""
        return pathlib.Path(f'/proc/{self.process.pid}/root{self.at}/{path}'.rstrip('/'))

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        return self.wait()

    def wait(self):
        return self.process.wait(LIMIT_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


@needs_fuse
def test_files_of_a_mounted_backup(backup, tmp_path):
    with Running(backup, 'mount', '--backup', 'latest', '--vm', 'web1', '--at', tmp_path / 'at', mounts=True) as shown:
        at = shown.inside()
        assert sorted(os.listdir(at)) == ['backup.json', 'data.raw', 'root.raw', 'root_part1.raw', 'vm.json']
        assert json.loads((at / 'backup.json').read_text())['id'] == backup.id
        assert json.loads((at / 'vm.json').read_text()) == {'name': 'web1'}
        assert (at / 'root.raw').read_bytes() == backup.disk.read_bytes()
        assert (at / 'data.raw').read_bytes() == backup.data
        part = at / 'root_part1.raw'
        assert part.stat().st_size == PART and 'root_part1.raw' in shown.said and f'{tmp_path}/at' in shown.said
        # single files, by a program that knows file systems and nothing of us
        if shutil.which('debugfs'):
            show = lambda what: subprocess.run(['debugfs', '-R', f'cat {what}', part], capture_output=True, timeout=LIMIT_S, check=True).stdout  # noqa: E731
            assert show('/etc/hostname') == b'of the guest\n'
            assert show('/big') == (backup.tree / 'big').read_bytes()
        # holes are told, so that copies stay small
        with open(at / 'root.raw', 'rb') as file:
            hole = os.lseek(file.fileno(), MIB + PART, os.SEEK_HOLE)
            assert MIB + PART <= hole < MIB + PART + MIB
            with pytest.raises(OSError):
                os.lseek(file.fileno(), hole, os.SEEK_DATA)
        # nothing can be written
        for how in (lambda: open(at / 'root.raw', 'r+b'), lambda: open(at / 'new', 'wb'), lambda: os.unlink(at / 'data.raw')):
            with pytest.raises(OSError):
                how()
        assert shown.end() == 0 and shown.errors.read_text() == ''


@needs_fuse
def test_mount_ended_from_outside(backup, tmp_path):
    with Running(backup, 'mount', '--backup', backup.id, '--disk', 'data', '--at', tmp_path / 'at', mounts=True) as shown:
        assert sorted(os.listdir(shown.inside())) == ['backup.json', 'data.raw', 'vm.json']
        subprocess.run(['nsenter', f'--target={shown.process.pid}', '--mount', 'umount', tmp_path / 'at'], check=True, timeout=LIMIT_S)
        assert shown.wait() == 0


@needs_fuse
def test_mount_of_a_damaged_store(backup, tmp_path):
    """What is damaged cannot be read, and is named; the rest can."""
    second = random.Random(7).randbytes(2 * MIB)
    (tmp_path / 'second.raw').write_bytes(second)
    packs = set((backup.store / 'packs').glob('*/*'))
    made = json.loads(tool(backup.store, 'create', '--vm', 'web1', '--json', '--disk', f'second={tmp_path}/second.raw', '--disk',
                           f'data={tmp_path}/data.raw'))['id']
    pack, = set((backup.store / 'packs').glob('*/*')) - packs
    os.chmod(pack, 0o600)
    with open(pack, 'r+b') as file:
        file.seek(MIB // 2)
        file.write(b'damage' * 100)
    with Running(backup, 'mount', '--backup', made, '--at', tmp_path / 'at', mounts=True) as shown:
        with pytest.raises(OSError):
            (shown.inside('second.raw')).read_bytes()
        assert (shown.inside('data.raw')).read_bytes() == backup.data
        halves = []
        with open(shown.inside('second.raw'), 'rb') as file:
            for at in (0, MIB):     # one of its two frames is damaged
                try:
                    halves.append(os.pread(file.fileno(), MIB // 2, at) == second[at:at + MIB // 2])
                except OSError:
                    halves.append(None)
        assert sorted(halves, key=str) == [None, True], halves
        assert shown.end(signal.SIGINT) == 0
        errors = shown.errors.read_text()
        assert 'disk second at ' in errors and pack.name in errors, errors


def test_served_by_nbd(backup, tmp_path):
    socket = tmp_path / 'nbd'
    with Running(backup, 'serve', '--backup', backup.id, '--socket', socket) as shown:
        assert str(socket) in shown.said
        client = Nbd(socket, 'root')
        disk = backup.disk.read_bytes()
        assert client.size == len(disk) and client.read_all() == disk
        extents = client.extents(ALLOCATION)
        assert extents[-1][2] == 3 and sum(size for _, size, _ in extents) == len(disk)
        for at, size, flags in extents:
            assert flags == 0 or disk[at:at + size] == bytes(size)
        with pytest.raises(NbdError):
            client.trim(0, 512)
        other = Nbd(socket, 'data')
        assert other.read(MIB - 512, 1024) == backup.data[MIB - 512:MIB + 512]
        with pytest.raises(NbdError):
            Nbd(socket, 'none')
        if shutil.which('qemu-img'):
            subprocess.run(['qemu-img', 'convert', '-f', 'raw', '-O', 'raw', f'nbd+unix:///root?socket={socket}', tmp_path / 'out'],
                           check=True, timeout=LIMIT_S)
            assert (tmp_path / 'out').read_bytes() == disk
        client.close()
        assert shown.end() == 0
    assert not socket.exists()


def test_served_from_packs_that_are_gone(backup, tmp_path):
    """As after a collection that gave this reader up for dead: it ends, so that who began it begins it with what is there now."""
    socket = tmp_path / 'nbd'
    with Running(backup, 'serve', '--backup', backup.id, '--socket', socket) as shown:
        client = Nbd(socket, 'root')
        shutil.move(backup.store / 'packs', tmp_path / 'packs')
        (backup.store / 'packs').mkdir()
        with pytest.raises((NbdError, OSError)):
            client.read_all()
        client.socket.close()       # there may be nobody by now to take leave of
        assert shown.wait() != 0
        assert 'the store was tidied up since this was begun: begin it again' in shown.errors.read_text()
        (backup.store / 'packs').rmdir()
        shutil.move(tmp_path / 'packs', backup.store / 'packs')
    with Running(backup, 'serve', '--backup', backup.id, '--socket', socket):
        client = Nbd(socket, 'root')
        assert client.read_all() == backup.disk.read_bytes()
        client.close()


def test_pruned_beside_one_of_a_clock_that_was_ahead(backup):
    """It is not the newest for all time: it counts for no rule, and stays until somebody names it."""
    made = {name: json.loads(tool(backup.store, 'create', '--vm', 'web1', '--json', '--created-at', at, '--disk', f'root={backup.data_path}'))['id']
            for name, at in (('old', '2020-01-01T00:00:00.000Z'), ('ahead', '2999-01-01T00:00:00.000Z'))}
    tool(backup.store, 'prune', '--keep-last', 1)
    assert sorted(b['id'] for b in json.loads(tool(backup.store, 'list', '--json'))) == sorted([backup.id, made['ahead']])
    tool(backup.store, 'prune', '--forget', made['ahead'])
    assert [b['id'] for b in json.loads(tool(backup.store, 'list', '--json'))] == [backup.id]


def test_refused_in_words(backup, tmp_path):
    assert '--at DIRECTORY is needed' in tool(backup.store, 'mount', '--backup', backup.id, status=2)
    assert '--socket PATH is needed' in tool(backup.store, 'serve', '--backup', backup.id, status=2)
    assert 'has no disk none' in tool(backup.store, 'serve', '--backup', backup.id, '--socket', tmp_path / 's', '--disk', 'none', status=4)
    assert 'no directory' in tool(backup.store, 'mount', '--backup', backup.id, '--at', backup.disk, status=2)
    long = tmp_path / ('x' * 120)
    assert 'at most 107 bytes' in tool(backup.store, 'serve', '--backup', backup.id, '--socket', long, status=2)
    (tmp_path / 's').write_text('')
    assert 'cannot listen at' in tool(backup.store, 'serve', '--backup', backup.id, '--socket', tmp_path / 's', status=5)
