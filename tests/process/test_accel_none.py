"""drover-vmm --accel none: the whole machine but KVM, with a guest in C that drives disks. Runs wherever the programs do.

test_vmm.py and others run on it too where there is no /dev/kvm; here is what the test guest on a processor has no driver for.
"""
import json
import os
import pathlib
import re
import select
import subprocess

import pytest

from bed import wait_until
from test_vmm import LIMIT_S, TICKER, VMM, Vmm

pytestmark = [pytest.mark.skipif(not VMM.exists(), reason='drover-vmm is not built'),
              pytest.mark.skipif(not TICKER.exists(), reason='the test guest is not built')]


@pytest.fixture
def scripted(tmp_path):
    """scripted(cmdline, *options, **config): a VMM without KVM; everything ends with the test."""
    started = []

    def make(cmdline='', *options, **config):
        started.append(Vmm(tmp_path, cmdline, '--accel', 'none', *options, **config))
        return started[-1].wait_listening()
    yield make
    for one in started:
        one.end()


def disk(path, size=1 << 20):
    with open(path, 'wb') as file:
        file.truncate(size)
    return str(path)


def verified(console, slot):
    """Blocks of the disk in @slot that have come back as written, so far."""
    return max([int(n) for n in re.findall(rf'^disk {slot} verified (\d+)$', console.text, re.M)] or [0])


def test_no_kvm_is_touched(scripted):
    vm = scripted()
    vm.console().wait(r'^tick 2$')
    open_files = [os.readlink(fd) for fd in pathlib.Path(f'/proc/{vm.process.pid}/fd').iterdir()]
    assert not any(name == '/dev/kvm' or name.startswith('anon_inode:kvm') for name in open_files), open_files
    stats = vm.request('GET', '/v1/vm/stats')[1]
    assert stats['port_exits'] > 20 and stats['exits'] >= stats['port_exits']
    vm.move('stopped')
    assert vm.process.wait(LIMIT_S) == 0


@pytest.mark.parametrize('engine', ['threads', 'io_uring'])
def test_disk_holds_what_was_written(scripted, tmp_path, engine):
    vm = scripted('disk halt=10', disks=[{'path': disk(tmp_path / 'a'), 'engine': engine}, {'path': disk(tmp_path / 'b')}],
                  paused=True)          # or it might be over before its console is there
    console = vm.console()
    vm.move('running')
    assert vm.process.wait(LIMIT_S) == 0
    while console.read(0.1) and 'tick 10' not in console.text:
        pass
    assert 'disk 2 here, 2048 sectors' in console.text and 'disk 3 here, 2048 sectors' in console.text
    for slot, name in ((2, 'a'), (3, 'b')):
        count = verified(console, slot)
        assert count >= 1, console.text     # as many as the disk did in ten ticks
        words = (tmp_path / name).read_bytes()
        for n in range(count):              # as the guest computes it, and where it was to go
            first = int.from_bytes(words[n * 4096:n * 4096 + 8], 'little')
            assert first == ((n + 1) * 0x9e3779b97f4a7c15 + slot * 1000003) % (1 << 64), n
    assert 'wrong' not in console.text and 'failed' not in console.text


def test_pause_is_between_two_ticks(scripted, tmp_path):
    vm = scripted('disk', disks=[{'path': disk(tmp_path / 'a')}])
    console = vm.console()
    console.wait(r'^disk 2 verified 2$')
    for _ in range(5):
        assert vm.move('paused')[0] == 200
        while select.select([console.socket], [], [], 0.3)[0]:      # what was said before the pause
            console.read(0)
        text = console.text
        console.read(0.3)
        assert console.text == text         # nothing moves
        assert vm.move('running')[0] == 200
        console.wait(r'^disk 2 verified %d$' % (verified(console, 2) + 1))
    assert 'wrong' not in console.text and console.text.count('hello') == 1


@pytest.mark.parametrize('compress', [False, True])
def test_snapshot_and_restore_with_a_disk_at_work(scripted, tmp_path, compress):
    """The guest's state is in its memory: counting, what it dirties and its rings go on."""
    vm = scripted('disk dirty=4', disks=[{'path': disk(tmp_path / 'a')}])
    console = vm.console()
    console.wait(r'^disk 2 verified 3$')
    status, answer = vm.request('POST', '/v1/vm/snapshot', {'path': str(tmp_path / 's'), 'compress': compress, 'then': 'stop'})
    assert status == 200, answer
    assert vm.process.wait(LIMIT_S) == 0
    while console.read(0.2):
        pass
    last, blocks = console.last_tick(), verified(console, 2)
    again = scripted('', '--restore', str(tmp_path / 's'), '--verify', disks=[{'path': str(tmp_path / 'a')}])
    second = again.console()
    second.wait(r'^disk 2 verified %d$' % (blocks + 3))
    second.wait_past(last + 2)
    ticks = [int(n) for n in re.findall(r'^tick (\d+)$', second.text, re.M)]
    assert ticks == list(range(ticks[0], ticks[-1] + 1)) and ticks[0] == last + 1
    for word in ('hello', 'here', 'wrong', 'failed', 'corrupt'):
        assert word not in second.text


def test_migration_with_a_disk_at_work(scripted, tmp_path):
    """Its memory, its registers, its rings and its disk go to another VMM, which logs pages as KVM would."""
    config = {'disks': [{'path': disk(tmp_path / 'a')}]}
    vm = scripted('disk dirty=4', **config)
    console = vm.console()
    console.wait(r'^disk 2 verified 3$')
    (tmp_path / 'there').mkdir()
    target = Vmm(tmp_path / 'there', 'disk dirty=4', '--accel', 'none', '--incoming', f'unix:{tmp_path}/way', **config)
    try:
        second = target.wait_listening().console()
        status, answer = vm.request('POST', '/v1/vm/migration', {'to': f'unix:{tmp_path}/way', 'verify': True})
        assert status == 202, answer
        console.drain()
        assert vm.process.wait(LIMIT_S) == 7, vm.log.read_text()
        last, blocks = console.last_tick(), verified(console, 2)
        second.wait(r'^disk 2 verified %d$' % (blocks + 3))
        ticks = [int(n) for n in re.findall(r'^tick (\d+)$', second.text, re.M)]
        assert ticks == list(range(ticks[0], ticks[-1] + 1)) and ticks[0] in (last, last + 1)
        for word in ('hello', 'here', 'wrong', 'failed', 'corrupt'):
            assert word not in second.text
    finally:
        target.end()


def test_disks_come_grow_and_go(scripted, tmp_path):
    vm = scripted('disk', disks=[{'path': disk(tmp_path / 'a')}])
    console = vm.console()
    console.wait(r'^disk 2 verified 1$')
    status, answer = vm.request('POST', '/v1/vm/disks', {'path': disk(tmp_path / 'b'), 'id': 'extra'})
    assert status == 201
    slot = answer['disk']['slot']
    console.wait(rf'^disk {slot} here, 2048 sectors$')      # the event, the registers, the bus, the driver
    console.wait(rf'^disk {slot} verified 2$')
    assert vm.request('PATCH', '/v1/vm/disks/extra', {'size_bytes': 2 << 20})[0] == 200
    console.wait(rf'^disk {slot} has 4096 sectors$')
    assert vm.request('DELETE', '/v1/vm/disks/extra')[0] == 202
    console.wait(rf'^disk {slot} gone$')
    # the guest is done with it; the control loop hears of that next
    wait_until(lambda: re.search(r'device-unplugged.*device=extra.*ejected', vm.log.read_text()), what='it was taken out')
    wait_until(lambda: vm.request('GET', '/v1/vm/disks/extra')[0] == 404, what='it is gone')
    assert vm.request('POST', '/v1/vm/disks', {'path': str(tmp_path / 'b'), 'id': 'again', 'slot': slot})[0] == 201
    console.wait(rf'(?s)disk {slot} gone.*disk {slot} here, 4096 sectors$.*disk {slot} verified 1$')
    before = verified(console, 2)
    console.wait(r'^disk 2 verified %d$' % (before + 1))    # the other one never stopped
    assert 'wrong' not in console.text


def test_reset_begins_anew(scripted, tmp_path):
    vm = scripted('disk reset=3', disks=[{'path': disk(tmp_path / 'a')}])
    vm.console().wait(r'(?s)hello.*disk 2 verified 1$.*hello.*disk 2 here.*disk 2 verified 1$.*tick 3$.*hello')
    assert vm.request('GET', '/v1/vm')[1]['resets'] >= 2


def test_in_the_sandbox_like_any_other(scripted, tmp_path):
    vm = scripted('disk', disks=[{'path': disk(tmp_path / 'a')}])
    vm.console().wait(r'^disk 2 verified 1$')
    for task in pathlib.Path(f'/proc/{vm.process.pid}/task').iterdir():
        assert 'Seccomp:\t2' in (task / 'status').read_text(), (task / 'comm').read_text()


def test_no_configuration_asks_for_it(tmp_path):
    (tmp_path / 'vm.json').write_text(json.dumps({'name': 'test', 'vcpus': 1, 'memory_bytes': 64 << 20, 'kernel': str(TICKER),
                                                  'accel': 'none'}))
    done = subprocess.run([VMM, '--config', tmp_path / 'vm.json'], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 2 and 'accel' in done.stderr
    assert subprocess.run([VMM, '--accel', 'tcg', '--config', tmp_path / 'vm.json'], capture_output=True, timeout=LIMIT_S,
                          check=False).returncode == 2
