"""Images of a real Ceph cluster, served by drover-rbd: content, sudden ends, who may write."""
import datetime
import json
import os
import pathlib
import random
import re
import select
import signal
import subprocess
import time

import pytest

from ceph_bed import Ceph, missing

ROOT = pathlib.Path(__file__).resolve().parents[2]
RBD = pathlib.Path(os.environ.get('BUILD', ROOT / 'build' / 'debug')) / 'bin' / 'drover-rbd'
SIZE = 64 << 20
PIECE = 65536

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing()),
              pytest.mark.skipif(not RBD.exists(), reason='drover-rbd is not built')]


@pytest.fixture(scope='module')
def ceph(tmp_path_factory):
    cluster = Ceph(tmp_path_factory.mktemp('ceph'))
    try:
        yield cluster.start()
    finally:
        cluster.stop()


class Server:
    """drover-rbd serve, in the cluster's namespace."""

    def __init__(self, ceph, socket, *words):
        self.socket = socket
        self.process = subprocess.Popen(['ip', 'netns', 'exec', ceph.netns, str(RBD), 'serve', '--conf', str(ceph.conf), '--pool', 'vms',
                                         '--socket', str(socket), *words],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        ready = select.select([self.process.stdout], [], [], 60)[0]
        self.said = self.process.stdout.readline() if ready else ''

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        error = self.process.communicate(timeout=60)[1]
        return self.process.returncode, error

    def io(self, *commands, check=True, reads=False):
        """qemu-io, one connection."""
        words = [word for command in commands for word in ('-c', command)]
        done = subprocess.run(['qemu-io', *(['-r'] if reads else []), '-f', 'raw', *words, f'nbd+unix:///?socket={self.socket}'], capture_output=True, text=True,
                              timeout=120, check=False)
        assert not check or (done.returncode == 0 and 'failed' not in done.stdout + done.stderr), done
        return done


@pytest.fixture
def world(ceph, tmp_path):
    servers = []

    class World:
        name = 'v%d' % random.randrange(1 << 30)

        @classmethod
        def tool(cls, verb, *words, check=True):
            return ceph.run(RBD, verb, '--conf', ceph.conf, '--pool', 'vms', '--image', cls.name, *words, check=check)

        @classmethod
        def serve(cls, *words):
            servers.append(Server(ceph, tmp_path / f's{len(servers)}', '--image', cls.name, *words))
            return servers[-1]

        @classmethod
        def content(cls):
            path = tmp_path / 'exported'
            path.unlink(missing_ok=True)
            ceph.rbd('export', '--no-progress', f'vms/{cls.name}', path)
            return path.read_bytes()

    World.tool('create', '--size', SIZE)
    yield World
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
        server.process.communicate()


def test_what_is_written_is_in_the_image(world):
    seed = int(os.environ.get('DROVER_SEED', 0)) or random.randrange(1 << 32)
    print(f'seed {seed}')
    chance, model = random.Random(seed), bytearray(SIZE)
    for epoch in (1, 2):
        server = world.serve('--epoch', str(epoch))
        assert server.said == 'ready\n'
        commands = []
        for _ in range(120):
            at = chance.randrange(SIZE // 512) * 512
            size = min(SIZE - at, chance.choice((512, 4096, PIECE, 1 << 20, 5 << 20)))
            kind = chance.choice('wwwwzr')
            if kind == 'w':
                value = chance.randrange(1, 256)
                commands.append(f'aio_write -P {value} {at} {size}')
                commands.append('aio_flush')
                model[at:at + size] = bytes([value]) * size
            elif kind == 'z':
                commands.append(f'write -z {"-u " if chance.random() < .5 else ""}{at} {size}')
                model[at:at + size] = bytes(size)
            elif len(set(model[at:at + size])) == 1:
                commands.append(f'read -P {model[at]} {at} {size}')
        server.io(*commands, 'flush')
        assert server.end() == (0, '')
        assert not server.socket.exists()
        assert world.content() == bytes(model)
    assert int(world.tool('size').stdout) == SIZE


def test_what_was_flushed_survives_a_sudden_end_and_who_replaces_the_dead_goes_on(world):
    server = world.serve('--epoch', '3')
    server.io(f'write -P 7 0 {PIECE}', 'flush')
    server.end(signal.SIGKILL)
    server.socket.unlink()
    same = world.serve('--epoch', '3')      # its lock is there still
    assert same.process.wait(60) == 1 and 'is used by' in same.process.stderr.read()
    next_one = world.serve('--epoch', '3', '--replace')
    assert next_one.said == 'ready\n', next_one.process.stderr.read()
    next_one.io(f'read -P 7 0 {PIECE}', f'write -P 8 {PIECE} {PIECE}', 'flush')
    assert next_one.end() == (0, '')
    assert world.content()[:2 * PIECE] == bytes([7]) * PIECE + bytes([8]) * PIECE


def test_a_later_owner_keeps_the_earlier_one_out(world, ceph):
    old = world.serve('--epoch', '4')
    old.io(f'write -P 1 0 {PIECE}', 'flush')
    os.kill(old.process.pid, signal.SIGSTOP)       # it sleeps, and does not know of what follows
    new = world.serve('--epoch', '5')
    assert new.said == 'ready\n', new.process.stderr.read()
    kept_out = [datetime.datetime.fromisoformat(line.split()[1][:19]) for line in ceph.ceph('osd', 'blocklist', 'ls').splitlines() if '/' in line]
    assert max(kept_out) > datetime.datetime.now() + datetime.timedelta(days=20), kept_out     # and for longer than it may sleep
    new.io(f'read -P 1 0 {PIECE}', f'write -P 2 0 {PIECE}', 'flush')
    os.kill(old.process.pid, signal.SIGCONT)
    done = old.io(f'write -P 3 0 {PIECE}', 'flush', check=False)
    assert re.search('failed|error', done.stdout + done.stderr), done
    new.io(f'read -P 2 0 {PIECE}')
    late = world.serve('--epoch', '4', '--replace')
    assert late.process.wait(60) == 1 and 'epoch 5' in late.process.stderr.read()
    code, error = old.end()
    assert code == 1 and 'let go' in error, (code, error)
    assert new.end() == (0, '')
    assert world.content()[:PIECE] == bytes([2]) * PIECE


def test_readers_keep_nobody_out_and_write_nothing(world):
    writer = world.serve('--epoch', '1')
    reader = world.serve('--read-only')
    writer.io(f'write -P 9 0 {PIECE}', 'flush')
    reader.io(f'read -P 9 0 {PIECE}', reads=True)
    assert reader.io(f'write -P 1 0 {PIECE}', check=False).returncode != 0
    assert reader.end() == (0, '') and writer.end() == (0, '')


def test_errors_name_what_is_missing(world, ceph, tmp_path):
    def refused(*words):
        done = ceph.run(RBD, *words, check=False)
        assert done.returncode == 1, done
        return done.stderr

    where = ('--conf', ceph.conf, '--pool', 'vms', '--image', world.name)
    world.tool('create', '--size', SIZE)        # again: fine
    assert f'of {SIZE} bytes, not {2 * SIZE}' in world.tool('create', '--size', 2 * SIZE, check=False).stderr
    assert "no pool 'vm'" in refused('size', '--conf', ceph.conf, '--pool', 'vm', '--image', world.name)
    assert "no image 'nobody'" in refused('size', '--conf', ceph.conf, '--pool', 'vms', '--image', 'nobody')
    assert '/nowhere.conf' in refused('size', '--conf', '/nowhere.conf', '--pool', 'vms', '--image', world.name)
    assert 'client.nobody' in refused('size', *where, '--user', 'nobody')
    key = tmp_path / 'key'
    key.write_text('AQBSdFhcGSihIhAAwzdYy5eqIZTDyBkfCpIm3g==\n')
    assert 'client.admin' in refused('size', *where, '--key-file', key)
    server = world.serve('--epoch', '1')
    assert 'is in use' in refused('remove', *where)
    assert server.end() == (0, '')
    world.tool('remove')
    world.tool('remove')                        # again: fine


def test_taken_while_somebody_is_connected(world, ceph):
    def locks():
        return ceph.rbd('lock', 'ls', f'vms/{world.name}').stdout.strip()

    one, two = (world.serve('--epoch', epoch, '--while-connected', '--replace') for epoch in ('1', '2'))
    assert one.said == two.said == 'ready\n' and not locks()
    one.io(f'write -P 7 0 {PIECE}', 'flush')
    assert not locks()      # by the time that the client has seen the end of its connection
    one.io(f'read -P 7 0 {PIECE}')
    two.io(f'read -P 7 0 {PIECE}', f'write -P 8 0 {PIECE}', 'flush')
    assert one.io('read 0 512', check=False).returncode != 0        # it belongs to a later one
    assert one.process.wait(60) == 1 and 'epoch 2' in one.process.stderr.read()
    two.io(f'read -P 8 0 {PIECE}')
    assert two.end() == (0, '') and not locks()
    assert world.content()[:PIECE] == bytes([8]) * PIECE


def test_what_was_acknowledged_is_not_lost_with_the_server(world):
    server = world.serve('--epoch', '1', '--while-connected')
    server.io(f'write -P 5 0 {PIECE}', 'abort', check=False)     # nobody flushes
    server.end(signal.SIGKILL)
    assert world.content()[:PIECE] == bytes([5]) * PIECE


def test_filled_with_a_file_once_and_by_one(world, ceph, tmp_path):
    def fill(path, origin, size=SIZE):
        done = world.tool('fill', '--size', size, '--from', path, '--origin', origin, check=False)
        told = [json.loads(line) for line in done.stdout.splitlines()]
        assert (done.returncode == 0) == (told[-1]['state'] == 'succeeded') and all(word['state'] == 'running' for word in told[:-1]), done
        return told[-1].get('error_text')

    first, other = tmp_path / 'first', tmp_path / 'other'
    first.write_bytes(os.urandom(3 * PIECE) + bytes(32 << 20) + b'end')
    other.write_bytes(bytes([9]) * PIECE)
    # somebody who lives and has it under the same epoch is let alone, a dead one is not
    owner = world.serve('--epoch', '1')
    assert owner.said == 'ready\n' and 'is used by' in fill(first, 'a')
    owner.end(signal.SIGKILL)
    begin = time.monotonic()
    while error := fill(first, 'a'):
        assert 'is used by' in error and time.monotonic() - begin < 90, error
    print(f'a dead one is known as such after {time.monotonic() - begin:.1f} s')
    want = first.read_bytes() + bytes(SIZE - first.stat().st_size)
    assert world.content() == want
    assert fill(first, 'a') is None and 'began as something else: a' in fill(other, 'b')
    assert world.content() == want
    # a VM's from then on
    vm = world.serve('--epoch', str(1 << 32 | 1), '--while-connected')
    vm.io(f'write -P 7 0 {PIECE}', 'flush')
    assert fill(first, 'a') is None
    assert vm.end() == (0, '') and world.content() == bytes([7]) * PIECE + want[PIECE:]
    ceph.rbd('image-meta', 'remove', f'vms/{world.name}', 'drover_origin')
    assert f'epoch {1 << 32 | 1}' in fill(first, 'a')
    assert world.content()[:PIECE] == bytes([7]) * PIECE


def test_it_grows_under_its_server_and_the_pool_says_what_it_is(world, ceph):
    fsid = ceph.ceph('fsid')
    mark, size, free = ceph.run(RBD, 'status', '--conf', ceph.conf, '--pool', 'vms').stdout.split()
    assert re.fullmatch(fsid + r'/\d+', mark) and int(size) >= int(free) > 100 << 20
    server = world.serve('--epoch', '1', '--while-connected')
    server.io(f'write -P 3 0 {PIECE}')
    for _ in range(2):
        world.tool('grow', '--size', 2 * SIZE)
    world.tool('grow', '--size', SIZE)      # it is larger already: fine
    assert int(world.tool('size').stdout) == 2 * SIZE
    server.io(f'read -P 3 0 {PIECE}', f'write -P 4 {2 * SIZE - PIECE} {PIECE}', 'flush')
    assert server.end() == (0, '')
    locked = world.serve('--epoch', '2')
    world.tool('grow', '--size', 3 * SIZE)  # who has the lock does it
    assert int(world.tool('size').stdout) == 3 * SIZE
    assert locked.end() == (0, '')
    world.tool('remove')
    assert 'no image' in world.tool('grow', '--size', SIZE, check=False).stderr
