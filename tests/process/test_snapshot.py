"""Snapshot and restore of drover-vmm with the test guest on the real /dev/kvm (or without, see test_vmm.py): counting, memory, processors, timers, disks."""
import json
import os
import pathlib
import re
import select
import subprocess

import pytest

from test_vmm import ACCEL, LIMIT_S, TICKER, VMM, Vmm, needs_kvm

pytestmark = [pytest.mark.skipif(not VMM.exists(), reason='drover-vmm is not built'),
              pytest.mark.skipif(not TICKER.exists(), reason='the test guest is not built')]


class Restored(Vmm):
    """A VMM that goes on from a snapshot."""

    def __init__(self, folder, snapshot, *options):  # pylint: disable=super-init-not-called
        self.control = folder / 'control-restored'
        self.log = folder / f'log-{os.urandom(4).hex()}'
        self.process = subprocess.Popen([VMM, '--accel', ACCEL, '--restore', snapshot, '--control', self.control, *options],
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
    while select.select([console.socket], [], [], 0.3)[0] and console.last_tick() < 30:    # what was said before it, too
        console.read(0)
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


def test_thirty_times_saved_and_restored(world):
    """Each life is short and ends in a snapshot that the next begins with; nothing is lost or counted twice."""
    path = world.folder / 's'
    vm = world.boot('dirty=4')
    vm.console().wait(r'^tick 2$')
    write(vm, path, then='stop')
    text = ''
    for life in range(30):
        assert vm.process.wait(LIMIT_S) == 0, vm.log.read_text()
        vm = world.restore(path)
        console = vm.console()
        console.wait(r'^tick \d+$')
        write(vm, path, compress=life % 2 == 0, then='stop')
        while console.read(0.1):
            pass
        text += console.text        # a line may begin in one life and end in the next
        assert 'corrupt' not in console.text and 'hello' not in console.text
    seen = [int(n) for n in re.findall(r'^tick (\d+)$', text[:text.rindex('\n')], re.M)]
    assert sorted(set(seen)) == list(range(seen[0], seen[-1] + 1)), seen
    assert len(seen) == len(set(seen)), seen
    assert seen[-1] >= 30


def test_snapshot_of_64_processors(world):
    vm = world.boot(vcpus=64, memory_bytes=64 << 20)
    console = vm.console()
    console.wait(r'^tick 3$')
    write(vm, world.folder / 's', then='stop')
    assert vm.process.wait(LIMIT_S) == 0
    again = world.restore(world.folder / 's')
    again.console().wait_past(5)
    assert again.request('GET', '/v1/vm')[1]['vcpus'] == 64


def test_disks_and_what_the_snapshot_says_of_them(world):
    disk = world.folder / 'disk'
    disk.write_bytes(bytes(1 << 20))
    vm = world.boot(disks=[{'path': str(disk)}])
    vm.console().wait(r'^tick 2$')
    other = world.folder / 'other'
    other.write_bytes(bytes(2 << 20))
    assert vm.request('POST', '/v1/vm/disks', {'path': str(other), 'id': 'second'})[0] in (200, 201)
    write(vm, world.folder / 's', then='stop')       # with the disk that was plugged while it ran
    assert vm.process.wait(LIMIT_S) == 0
    again = world.restore(world.folder / 's')
    again.console().wait(r'^tick \d+$')
    assert [d['disk']['id'] for d in again.request('GET', '/v1/vm/disks')[1]] == ['disk0', 'second']
    again.end()
    other.write_bytes(bytes(3 << 20))
    refused = Restored(world.folder, world.folder / 's')
    try:
        assert refused.process.wait(LIMIT_S) == 1
        assert 'size_bytes' in refused.log.read_text(), refused.log.read_text()
    finally:
        refused.end()


@pytest.mark.parametrize('config, words', [
    ({'vcpus': 2}, 'vCPUs'),
    ({'memory_bytes': 128 << 20}, 'memory'),
    pytest.param({'cpu_model': 'x86-64-v1'}, 'CPU model', marks=needs_kvm),
    ({'rng': False}, 'nothing in this one'),
])
def test_other_machines_are_refused_in_words(world, config, words):
    vm = world.boot()
    vm.console().wait(r'^tick 1$')
    write(vm, world.folder / 's', then='stop')
    assert vm.process.wait(LIMIT_S) == 0
    base = {'name': 'test', 'vcpus': 1, 'memory_bytes': 64 << 20, 'kernel': str(TICKER)}
    (world.folder / 'other.json').write_text(json.dumps({**base, **config}))
    refused = Restored(world.folder, world.folder / 's', '--config', world.folder / 'other.json')
    try:
        assert refused.process.wait(LIMIT_S) == 1
        assert words in refused.log.read_text(), refused.log.read_text()
    finally:
        refused.end()


def test_damaged_and_half_written_files_are_refused(world):
    vm = world.boot('dirty=4')
    vm.console().wait(r'^tick 2$')
    path = world.folder / 's'
    write(vm, path, compress=True, then='stop')
    assert vm.process.wait(LIMIT_S) == 0
    whole = path.read_bytes()
    cases = [(whole[:-1], 'cut short'), (whole[:200], 'cut short'), (b'', 'cut short'),
             (whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:], 'damaged'), (b'x' * 100, 'not a machine')]
    for data, words in cases:
        path.write_bytes(data)
        refused = Restored(world.folder, path)
        try:
            assert refused.process.wait(LIMIT_S) in (1, 2)
            assert words in refused.log.read_text(), refused.log.read_text()
        finally:
            refused.end()


def test_what_cannot_be_restored_is_not_saved(world):
    """As many disks as a configuration may have, and none whose file was taken away under the guest."""
    vm = world.boot()
    vm.console().wait('hello')
    for number in range(17):
        path = world.folder / f'disk{number}'
        with path.open('wb') as file:
            file.truncate(1 << 20)
        status, answer = vm.request('POST', '/v1/vm/disks', {'path': str(path)})
        assert status == (201 if number < 16 else 507), answer
    assert 'at most 16 disks' in answer['detail']
    write(vm, world.folder / 'full')
    assert vm.request('DELETE', '/v1/vm/disks/disk7?force=true')[0] == 202
    assert 'disk7' in write(vm, world.folder / 's', 409)['detail']
    assert vm.request('GET', '/v1/vm')[1]['state'] == 'running'
    vm.move('reset')
    write(vm, world.folder / 's', then='stop')
    assert vm.process.wait(LIMIT_S) == 0
    for name, disks in (('full', 16), ('s', 15)):
        vm = world.restore(world.folder / name)
        assert len(vm.request('GET', '/v1/vm/disks')[1]) == disks
        vm.end()


def test_failed_snapshots_leave_the_vm_running(world):
    vm = world.boot()
    console = vm.console()
    console.wait(r'^tick 1$')
    assert write(vm, '/nowhere/s', status=500)['detail'].startswith('cannot make /nowhere/s')
    assert vm.request('DELETE', '/v1/vm/snapshot')[0] == 409
    console.wait_past(console.last_tick() + 1)
    assert vm.request('GET', '/v1/vm')[1]['state'] == 'running'
    assert not list(world.folder.glob('*.part'))


@pytest.mark.parametrize('model', ['x86-64-v1', 'x86-64-v2', 'x86-64-v3'])
def test_cpu_models_boot_and_move(world, model):
    vm = Vmm(world.folder, cpu_model=model)
    try:
        vm.wait_listening()
    except AssertionError:
        vm.end()
        pytest.skip(f'this host cannot be {model}: {vm.log.read_text()[-300:]}')
    try:
        vm.console().wait(r'^tick 2$')
        write(vm, world.folder / 's', then='stop')
        assert vm.process.wait(LIMIT_S) == 0
    finally:
        vm.end()
    world.restore(world.folder / 's').console().wait_past(3)


def test_unknown_cpu_model_names_those_there_are(world):
    vm = Vmm(world.folder, cpu_model='z80')
    assert vm.process.wait(LIMIT_S) == 1
    assert 'x86-64-v2' in vm.log.read_text()
    vm.end()


@needs_kvm
def test_processors_at_work_go_on(world):
    """Three processors count while the fourth looks; all of them go on in each of two lives."""
    path = world.folder / 's'
    vm = world.boot('smp=3 dirty=2', vcpus=4)
    vm.console().wait(r'(?s)^processors 4$.*^tick 12$')
    write(vm, path, then='stop')
    for life in range(2):
        assert vm.process.wait(LIMIT_S) == 0, vm.log.read_text()
        vm = world.restore(path)
        console = vm.console()
        console.wait(r'^tick \d+$')
        console.wait_past(console.last_tick() + 12)
        assert 'stands still' not in console.text and 'corrupt' not in console.text
        write(vm, path, compress=life == 1, then='stop')


def test_a_restored_guest_may_reset_and_power_off(world):
    vm = world.boot('reset=15')
    vm.console().wait(r'^tick 2$')
    write(vm, world.folder / 's', then='stop')
    assert vm.process.wait(LIMIT_S) == 0
    again = world.restore(world.folder / 's')
    again.console().wait(r'(?s)^tick 14$.*hello.*^tick 1$')
    assert again.request('GET', '/v1/vm')[1]['resets'] == 1
    again.end()
    assert world.restore(world.folder / 's', '--no-restart').process.wait(LIMIT_S) == 3
