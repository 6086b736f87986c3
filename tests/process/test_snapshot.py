"""Snapshot and restore of drover-vmm with the test guest on the real /dev/kvm: counting, memory, processors, timers, disks."""
import json
import os
import pathlib
import re
import socket
import subprocess
import time

import pytest

from test_vmm import LIMIT_S, TICKER, VMM, Vmm

pytestmark = [pytest.mark.skipif(not os.access('/dev/kvm', os.R_OK | os.W_OK), reason='/dev/kvm is missing or closed to us'),
              pytest.mark.skipif(not VMM.exists(), reason='drover-vmm is not built'),
              pytest.mark.skipif(not TICKER.exists(), reason='the test guest is not built')]


class Restored(Vmm):
    """A VMM that goes on from a snapshot."""

    def __init__(self, folder, snapshot, *options):  # pylint: disable=super-init-not-called
        self.control = folder / 'control-restored'
        self.log = folder / f'log-{os.urandom(4).hex()}'
        self.process = subprocess.Popen([VMM, '--restore', snapshot, '--control', self.control, *options],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.log.open('w'))
        self.consoles = []


@pytest.fixture
def world(tmp_path):
    """boot(cmdline, **config) and restore(path, *options); everything ends with the test."""
    vms = []

    class World:
        folder = tmp_path

        @staticmethod
        def boot(*args, **config):
            vms.append(Vmm(tmp_path, *args, **config))
            return vms[-1].wait_listening()

        @staticmethod
        def restore(path, *options):
            vms.append(Restored(tmp_path, path, *options))
            return vms[-1].wait_listening()

    yield World
    for vm in vms:
        vm.end()


def write(vm, path, status=200, **order):
    got, answer = vm.request('POST', '/v1/vm/snapshot', {'path': str(path), **order})
    assert got == status, answer
    return answer


@pytest.mark.parametrize('compress', [False, True])
def test_counting_goes_on_from_a_snapshot(world, compress):
    vm = world.boot('dirty=8', memory_bytes=128 << 20)
    console = vm.console()
    console.wait(r'^tick 4$')
    answer = write(vm, world.folder / 's', compress=compress, then='stop')
    assert vm.process.wait(LIMIT_S) == 0
    while console.read(0.2):
        pass
    last = console.last_tick()
    assert 8 << 20 <= answer['data_bytes'] < 12 << 20 and answer['read_bytes'] < 64 << 20
    assert answer['phase'] == 'idle' and 'failure' not in answer
    again = world.restore(world.folder / 's', '--verify')
    console = again.console()
    console.wait_past(last + 3)
    ticks = [int(n) for n in re.findall(r'^tick (\d+)$', console.text, re.M)]
    assert ticks == list(range(ticks[0], ticks[-1] + 1)) and ticks[0] in (last, last + 1)
    assert 'hello' not in console.text and 'corrupt' not in console.text
    assert again.request('GET', '/v1/vm')[1]['state'] == 'running'


def test_source_goes_on_and_the_snapshot_is_of_its_moment(world):
    vm = world.boot()
    console = vm.console()
    console.wait(r'^tick 3$')
    write(vm, world.folder / 's')
    at = console.last_tick()
    console.wait_past(at + 4)
    assert vm.request('GET', '/v1/vm')[1]['state'] == 'running'
    vm.move('paused')
    write(vm, world.folder / 'paused')         # a paused VM stays so
    assert vm.request('GET', '/v1/vm')[1]['state'] == 'paused'
    copies = [world.restore(world.folder / 's')]
    first = copies[0].console()
    first.wait_past(at + 1)
    assert int(re.search(r'^tick (\d+)$', first.text, re.M)[1]) <= at + 1
    copies[0].end()
    again = world.restore(world.folder / 's')  # as often as one likes
    again.console().wait_past(at + 1)
