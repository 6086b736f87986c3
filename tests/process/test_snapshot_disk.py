"""Snapshots at random instants of a guest that writes and reads its disk all the time, and goes on from them.

The guest (tests/guest/guest_disk.c) has several requests on their way at any moment and knows what it was told is written;
whatever is lost, doubled or torn it says on its console. Afterwards the file is looked at from outside, too."""
import os
import random
import re
import struct
import time

import pytest

from test_snapshot import Restored, pytestmark, world, write  # noqa: F401  pylint: disable=unused-import
from test_vmm import LIMIT_S

BLOCKS, BLOCK_BYTES = 64, 4096
LIVES = 6
FAULTS = re.compile(r'disk: |answered twice|corrupt')


@pytest.fixture
def chance():
    seed = int(os.environ.get('DROVER_SEED', 0)) or int.from_bytes(os.urandom(4), 'little')
    print(f'seed {seed}: DROVER_SEED={seed} has the same instants')
    return random.Random(seed)


def counts(console):
    return [(int(w), int(r)) for w, r in re.findall(r'^disk (\d+) writes (\d+) reads$', console.text, re.M)]


def work_on(console, chance):
    """Until the guest has written something in this life, and then to no particular moment."""
    wait_counts(console, len(counts(console)) + 2)
    time.sleep(chance.random() * 0.12)


def wait_counts(console, many):
    end = time.monotonic() + LIMIT_S
    while len(counts(console)) < many:
        assert time.monotonic() < end, console.text[-500:]
        assert console.read(0.2), console.text[-500:]


def drain(console):
    while console.read(0.1):
        pass


def blocks_of(path):
    """The number of the write that each block holds; torn ones are told."""
    data = path.read_bytes()
    numbers = []
    for block in range(BLOCKS):
        words = struct.unpack_from(f'<{BLOCK_BYTES // 8}Q', data, block * BLOCK_BYTES)
        if any(words):
            assert words == tuple(range(words[0], words[0] + len(words))) and words[0] % len(words) == 0, f'block {block} is torn'
        numbers.append(words[0] // len(words))
    return numbers


@pytest.mark.parametrize('how', [
    pytest.param({'engine': 'auto'}, id='auto'),
    pytest.param({'engine': 'threads'}, id='threads', marks=pytest.mark.slow),
    pytest.param({'engine': 'auto', 'direct': True}, id='direct', marks=pytest.mark.slow),
    # most of what is offered waits
    pytest.param({'engine': 'auto', 'limits': {'operations_per_second': 400}}, id='limited', marks=pytest.mark.slow),
])
def test_nothing_is_lost_or_doubled(world, chance, how):  # noqa: F811
    disk, path = world.folder / 'disk', world.folder / 's'
    disk.write_bytes(bytes(BLOCKS * BLOCK_BYTES))
    vm = world.boot(f'dirty=1 disk={chance.randrange(1, 1 << 30)}', disks=[{'path': str(disk), **how}])
    console = vm.console()
    before = (0, 0)
    for life in range(LIVES):
        work_on(console, chance)
        for _ in range(chance.randrange(3)):  # of some the source goes on, as if nothing had been
            write(vm, world.folder / 'aside', compress=chance.random() < 0.5)
            work_on(console, chance)
        write(vm, path, compress=chance.random() < 0.5, then='stop')
        assert vm.process.wait(LIMIT_S) == 0, vm.log.read_text()
        drain(console)
        assert not FAULTS.search(console.text), console.text[-2000:]
        after = counts(console)[-1]
        assert after[0] > before[0], f'life {life}: nothing was written'
        before = after
        blocks_of(disk)
        vm = world.restore(path)
        console = vm.console()
    work_on(console, chance)
    while counts(console)[-1][0] < 20 * BLOCKS:     # each block has been written then, also by a guest on a slow machine
        wait_counts(console, len(counts(console)) + 1)
    console.socket.send(b'verify\n')
    verified = console.wait(r'^disk verified (\d+) writes (\d+) reads$')
    assert not FAULTS.search(console.text), console.text[-2000:]
    assert int(verified[1]) > before[0]
    write(vm, path, then='stop')
    assert vm.process.wait(LIMIT_S) == 0
    numbers = blocks_of(disk)
    assert min(numbers) > 0 and len(set(numbers)) == BLOCKS, numbers


def test_a_disk_that_went_back_is_noticed(world):  # noqa: F811
    """The guest's check can fail: a block that is older than what was acknowledged is told."""
    disk, path = world.folder / 'disk', world.folder / 's'
    disk.write_bytes(bytes(BLOCKS * BLOCK_BYTES))
    vm = world.boot('disk=7', disks=[{'path': str(disk)}])
    console = vm.console()
    wait_counts(console, 3)
    write(vm, path, then='stop')
    assert vm.process.wait(LIMIT_S) == 0
    old = bytearray(disk.read_bytes())
    old[:BLOCK_BYTES * 32] = bytes(BLOCK_BYTES * 32)
    disk.write_bytes(old)
    console = world.restore(path).console()
    console.socket.send(b'verify\n')
    console.wait(r'^disk: wrong block \d+$')
