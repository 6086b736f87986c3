"""drover-vmm alone, on the real /dev/kvm, with the test guest: console, pause, reset, power-off, lease, control errors.

Where there is no /dev/kvm, or with DROVER_ACCEL=none, the guest is the program in C of drover-vmm --accel none, which says
the same on its console; what only a processor can do is skipped then.
"""
import json
import os
import pathlib
import re
import select
import signal
import socket
import struct
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
VMM = pathlib.Path(os.environ.get('BUILD', ROOT / 'build' / 'debug')) / 'bin' / 'drover-vmm'
TICKER = ROOT / 'build' / 'guest' / 'ticker.elf'
LIMIT_S = 80
ACCEL = os.environ.get('DROVER_ACCEL') or ('kvm' if os.access('/dev/kvm', os.R_OK | os.W_OK) else 'none')

needs_kvm = pytest.mark.skipif(ACCEL != 'kvm', reason='needs a processor: no KVM, or DROVER_ACCEL=none')
pytestmark = [pytest.mark.skipif(not VMM.exists(), reason='drover-vmm is not built'),
              pytest.mark.skipif(not TICKER.exists(), reason='the test guest is not built')]


class Console:
    """A reader of the console stream; everything it has seen is in `text`."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.socket.send(b'GET /v1/vm/console HTTP/1.1\r\nHost: vm\r\nConnection: upgrade\r\nUpgrade: drover-console\r\n\r\n')
        head = b''
        while not head.endswith(b'\r\n\r\n'):
            head += self.socket.recv(1)
        assert head.startswith(b'HTTP/1.1 101 '), head
        assert b'Upgrade: drover-console' in head
        self.text = ''

    def read(self, seconds):
        """What comes within @seconds; False at the end of the stream."""
        if not select.select([self.socket], [], [], seconds)[0]:
            return True
        data = self.socket.recv(65536)
        self.text += data.decode()
        return bool(data)

    def wait(self, pattern, seconds=LIMIT_S):
        """The match of @pattern, from now on or already seen."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.text, re.M)):
            assert time.monotonic() < end, f'no {pattern!r} within {seconds} s in {self.text[-500:]!r}'
            assert self.read(0.2) or re.search(pattern, self.text, re.M), f'console closed before {pattern!r}: {self.text[-500:]!r}'
        return found

    def wait_past(self, tick):
        """A tick later than @tick; a restored guest need not have said the next one here."""
        end = time.monotonic() + LIMIT_S
        while not any(int(n) > tick for n in re.findall(r'^tick (\d+)$', self.text, re.M)):
            assert time.monotonic() < end, f'no tick past {tick} within {LIMIT_S} s in {self.text[-500:]!r}'
            assert self.read(0.2), f'console closed before a tick past {tick}: {self.text[-500:]!r}'

    def drain(self, seconds=LIMIT_S):
        """To the end of its VMM, which must come."""
        end = time.monotonic() + seconds
        while self.read(0.5):
            assert time.monotonic() < end, f'it goes on: {self.text[-500:]!r}'

    def last_tick(self):
        return int(re.findall(r'^tick (\d+)$', self.text, re.M)[-1])

    def close(self):
        self.socket.close()


class Vmm:
    def __init__(self, folder, cmdline='', *options, **config):
        self.control = folder / 'control'
        self.log = folder / 'log'
        config = {'name': 'test', 'vcpus': 1, 'memory_bytes': 64 << 20, 'kernel': str(TICKER), 'cmdline': cmdline,
                  **config}
        (folder / 'vm.json').write_text(json.dumps(config))
        self.process = subprocess.Popen([VMM, '--accel', ACCEL, '--config', folder / 'vm.json', '--control', self.control, *options],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.log.open('w'))
        self.consoles = []

    def wait_listening(self):
        end = time.monotonic() + LIMIT_S
        while True:
            try:
                with socket.socket(socket.AF_UNIX) as s:
                    s.connect(str(self.control))
                return self
            except OSError:
                assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
                time.sleep(0.01)

    def console(self):
        self.consoles.append(Console(self.control))
        return self.consoles[-1]

    def raw(self, data):
        """All that comes back for @data."""
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(LIMIT_S)
            s.connect(str(self.control))
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            answer = b''
            while piece := s.recv(65536):
                answer += piece
        return answer.decode()

    def request(self, method, path, body=None):
        """(status, decoded JSON)"""
        data = b'' if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = self.raw(b'%s %s HTTP/1.1\r\nHost: vm\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s' %
                          (method.encode(), path.encode(), len(data), data))
        head, text = answer.split('\r\n\r\n', 1)
        return int(head.split()[1]), json.loads(text)

    def move(self, state):
        return self.request('PUT', '/v1/vm/state', {'state': state})

    def end(self):
        for console in self.consoles:
            console.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def vmm(tmp_path):
    started = []

    def make(cmdline='', *options, **config):
        started.append(Vmm(tmp_path, cmdline, *options, **config))
        return started[-1].wait_listening()
    yield make
    for one in started:
        one.end()


def test_hello_and_power_off(vmm):
    vm = vmm('halt=4 word', paused=True)   # or it might be over before its console is there
    console = vm.console()
    vm.move('running')
    console.wait(r'drover-guest: hello cmdline=<halt=4 word>')
    console.wait(r'^tick 4$')
    assert vm.process.wait(LIMIT_S) == 0
    assert 'tick 5' not in console.text
    assert not vm.control.exists()
    assert 'the guest powered off' in vm.log.read_text()


def test_pause_stops_ticks_and_resume_goes_on(vmm):
    vm = vmm(vcpus=2)
    console = vm.console()
    console.wait(r'^tick 2$')
    status, answer = vm.move('paused')
    assert (status, answer['state']) == (200, 'paused')
    while select.select([console.socket], [], [], 0.3)[0]:     # what was said before the pause
        console.read(0)
    before = console.last_tick()
    assert vm.move('paused')[0] == 200                         # twice is no error
    console.read(0.5)                                          # five ticks' time
    assert console.last_tick() == before
    status, answer = vm.move('running')
    assert (status, answer['state']) == (200, 'running')
    console.wait_past(before)
    assert 'hello' not in console.text.split('tick 2', 1)[1]   # it went on, it did not begin anew


def test_reset_by_guest_boots_again(vmm):
    vm = vmm('reset=2')
    console = vm.console()
    console.wait(r'(?s)tick 2$.*hello.*tick 2$.*hello')
    assert vm.request('GET', '/v1/vm')[1]['resets'] >= 1
    assert vm.process.poll() is None


def test_reset_by_request_boots_again(vmm):
    vm = vmm(vcpus=2)
    console = vm.console()
    console.wait(r'^tick 3$')
    status, answer = vm.move('reset')
    assert (status, answer['state'], answer['resets']) == (200, 'running', 1)
    console.wait(r'(?s)tick 3$.*hello.*tick 1$')


def test_reset_while_paused_stays_paused(vmm):
    vm = vmm()
    console = vm.console()
    console.wait(r'^tick 1$')
    vm.move('paused')
    assert vm.move('reset')[1]['state'] == 'paused'
    console.read(0.3)
    assert console.text.count('hello') == 1
    vm.move('running')
    console.wait(r'(?s)hello.*hello.*tick 1$')


@pytest.mark.parametrize('cmdline, status', [('reset=1', 3), ('fault=1', 4)])
def test_no_restart_tells_why(vmm, cmdline, status):
    vm = vmm(cmdline, '--no-restart')
    assert vm.process.wait(LIMIT_S) == status


def test_triple_fault_is_a_reset(vmm):
    vm = vmm('fault=1')
    vm.console().wait(r'(?s)hello.*tick 1$.*!.*hello')


def test_stop_by_request_and_by_signal(vmm):
    vm = vmm()
    status, answer = vm.move('stopped')
    assert (status, answer['state']) == (200, 'stopped')
    assert vm.process.wait(LIMIT_S) == 0
    vm = vmm()
    vm.process.send_signal(signal.SIGTERM)
    assert vm.process.wait(LIMIT_S) == 0


def test_begins_paused_where_asked(vmm):
    vm = vmm(paused=True)
    console = vm.console()
    console.read(0.3)
    assert console.text == ''
    assert vm.request('GET', '/v1/vm')[1]['state'] == 'paused'
    vm.move('running')
    console.wait('hello')


def test_two_console_readers_and_input(vmm):
    vm = vmm('quiet')
    first, second = vm.console(), vm.console()
    first.wait('hello')
    second.wait('hello')
    first.socket.send(b'from one\n')
    second.wait(r'^echo from one$')
    first.wait(r'^echo from one$')
    first.close()
    second.socket.send(b'from two\n')
    second.wait(r'^echo from two$')
    late = vm.console()                    # the past is there for whoever comes later
    late.wait(r'(?s)hello.*echo from one.*echo from two')


def test_silent_reader_does_not_hold_the_guest(vmm):
    vm = vmm()
    silent, console = vm.console(), vm.console()
    os.set_blocking(silent.socket.fileno(), False)
    for _ in range(3):
        console.wait_past(console.last_tick() if 'tick' in console.text else 0)
    assert vm.request('GET', '/v1/vm/stats')[1]['console_readers'] == 2


def test_console_log_is_kept(vmm, tmp_path):
    vm = vmm('halt=3', console_log_path=str(tmp_path / 'console.log'), paused=True)
    vm.move('running')
    assert vm.process.wait(LIMIT_S) == 0
    lines = (tmp_path / 'console.log').read_text().splitlines()
    assert lines == ['drover-guest: hello cmdline=<halt=3>', 'tick 1', 'tick 2', 'tick 3']


def test_memory_holds_while_it_is_dirtied(vmm):
    vm = vmm('dirty=32 halt=6', memory_bytes=128 << 20, paused=True)
    console = vm.console()
    vm.move('running')
    assert vm.process.wait(LIMIT_S) == 0
    while console.read(0.1) and select.select([console.socket], [], [], 0)[0]:
        pass
    assert 'corrupt' not in console.text


def test_description_of_the_vm(vmm):
    vm = vmm(vm_id='123e4567-e89b-42d3-a456-426614174000', epoch=7, vcpus=3)
    vm.console().wait('hello')
    status, answer = vm.request('GET', '/v1/vm')
    assert status == 200
    assert answer['vm_id'] == '123e4567-e89b-42d3-a456-426614174000'
    assert (answer['name'], answer['epoch'], answer['vcpus'], answer['memory_bytes']) == ('test', 7, 3, 64 << 20)
    assert answer['pid'] == vm.process.pid
    stats = vm.request('GET', '/v1/vm/stats')[1]
    assert stats['exits'] > 0 and stats['port_exits'] <= stats['exits']


@pytest.mark.parametrize('method, path, body, status, code', [
    ('GET', '/v1/nothing', None, 404, 'not-found'),
    ('DELETE', '/v1/vm', None, 405, 'method-not-allowed'),
    ('GET', '/v1/vm/state', None, 405, 'method-not-allowed'),
    ('PUT', '/v1/vm/state', {'state': 'sleeping'}, 400, 'invalid'),
    ('PUT', '/v1/vm/state', {'state': 'paused', 'why': 1}, 400, 'unknown-field'),
    ('PUT', '/v1/vm/state', ['paused'], 400, 'invalid'),
    ('PUT', '/v1/vm/state', b'{"state": "paused"', 400, 'malformed'),
    ('PUT', '/v1/vm/state', b' ' * 20000, 413, 'too-large'),
], ids=lambda value: repr(value)[:24])
def test_control_errors_are_clear(vmm, method, path, body, status, code):
    vm = vmm()
    got, problem = vm.request(method, path, body)
    assert (got, problem['status'], problem['code']) == (status, status, code)
    assert len(problem['detail']) > 10
    assert vm.request('GET', '/v1/vm')[1]['state'] == 'running'    # nothing came of it


def test_the_api_describes_itself(vmm):
    vm = vmm()
    status, api = vm.request('GET', '/v1/openapi.json')
    assert status == 200 and api['openapi'].startswith('3.1')
    assert set(api['paths']) >= {'/v1/vm', '/v1/vm/state', '/v1/vm/stats', '/v1/vm/console'}
    text = json.dumps(api)
    names = set(re.findall(r'#/components/schemas/(\w+)', text))
    assert names and names == set(api['components']['schemas']) & names
    assert 'problem' in names and 'cluster' not in api['components']['schemas']
    assert vm.request('GET', '/v1/vm?force=true')[0] == 400
    assert vm.request('GET', '/v1/vm?colour=red')[0] == 400


def test_disks_come_and_go(vmm, tmp_path):
    """Without a driver in the guest: what control sees. tests/lab/hotplug has the guest's side."""
    for name in ('a', 'b', 'c'):
        with (tmp_path / name).open('wb') as file:
            file.truncate(1 << 20)
    vm = vmm(disks=[{'path': str(tmp_path / 'a')}])
    vm.console().wait('hello')
    assert [(d['disk']['id'], d['disk']['slot'], d['disk']['size_bytes']) for d in vm.request('GET', '/v1/vm/disks')[1]] == \
        [('disk0', 2, 1 << 20)]
    status, answer = vm.request('POST', '/v1/vm/disks', {'path': str(tmp_path / 'b'), 'id': 'extra', 'limits': {'bytes_per_second': 1000}})
    assert (status, answer['disk']['id'], answer['disk']['limits']) == (201, 'extra', {'bytes_per_second': 1000})
    for body, status in (({'path': str(tmp_path / 'b')}, 409), ({'path': str(tmp_path / 'c'), 'id': 'extra'}, 409),
                         ({'path': str(tmp_path / 'c'), 'slot': 2}, 409), ({'path': str(tmp_path / 'c'), 'slot': 32}, 400),
                         ({'path': str(tmp_path / 'none')}, 500), ({'id': 'x'}, 400), ({'path': str(tmp_path / 'c'), 'size_bytes': 512}, 400)):
        got, problem = vm.request('POST', '/v1/vm/disks', body)
        assert got == status, (body, problem)
    assert vm.request('PATCH', '/v1/vm/disks/extra', {'size_bytes': 2 << 20})[0] == 200
    assert (tmp_path / 'b').stat().st_size == 2 << 20
    assert vm.request('PATCH', '/v1/vm/disks/extra', {'size_bytes': 512})[0] == 400
    assert vm.request('PATCH', '/v1/vm/disks/extra', {'path': '/x'})[0] == 400
    status, answer = vm.request('PATCH', '/v1/vm/disks/extra', {'limits': None, 'on_disk_error': 'report'})
    assert status == 200 and 'limits' not in answer['disk'] and answer['disk']['on_disk_error'] == 'report'
    status, answer = vm.request('DELETE', '/v1/vm/disks/extra')
    assert status == 202 and answer['unplugging'] is True
    status, answer = vm.request('DELETE', '/v1/vm/disks/extra?force=true')
    assert status == 202 and answer['detached'] is True
    assert vm.request('POST', '/v1/vm/disks', {'path': str(tmp_path / 'b'), 'id': 'again'})[0] == 201     # its file is free
    assert vm.request('DELETE', '/v1/vm/disks/nobody')[0] == 404
    vm.move('reset')                                              # nobody will eject it any more
    assert [d['disk']['id'] for d in vm.request('GET', '/v1/vm/disks')[1]] == ['disk0', 'again']
    vm.move('paused')
    assert vm.request('POST', '/v1/vm/disks', {'path': str(tmp_path / 'c')})[0] == 201
    assert vm.move('running')[0] == 200
    assert len(vm.request('GET', '/v1/vm/disks')[1]) == 3


def test_malformed_requests_are_refused(vmm):
    vm = vmm()
    for data in (b'hello\r\n\r\n', b'GET /v1/vm HTTP/1.1\r\n\r\n', b'GET /v1/vm HTTP/1.1\nHost: x\n\n',
                 b'PUT /v1/vm/state HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n'):
        assert re.match(r'HTTP/1\.1 4\d\d ', vm.raw(data)), data
    assert 'HTTP/1.1 4' in vm.raw(b'GET /' + b'x' * 20000)
    two = vm.raw(b'GET /v1/vm HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/vm/stats HTTP/1.1\r\nHost: x\r\n\r\n')
    assert two.count('HTTP/1.1 200') == 2


def test_socket_of_a_dead_vmm_is_replaced_and_of_a_live_one_is_not(vmm, tmp_path):
    vm = vmm()
    other = subprocess.run([VMM, '--accel', ACCEL, '--config', tmp_path / 'vm.json', '--control', vm.control], capture_output=True,
                           text=True, timeout=LIMIT_S, check=False)
    assert other.returncode == 1 and 'cannot listen' in other.stderr
    assert vm.request('GET', '/v1/vm')[0] == 200
    vm.process.kill()
    vm.process.wait()
    assert vm.control.exists()
    assert vmm().request('GET', '/v1/vm')[0] == 200


@pytest.mark.parametrize('config, words', [
    ({'vcpus': 0}, 'vcpus'),
    ({'vcpus': 'two'}, 'vcpus'),
    ({'memory_bytes': 64 << 20 | 1}, 'memory_bytes'),
    ({'colour': 'red'}, 'colour'),
    ({'machine': 'pc-9'}, 'pc-1'),
    ({'kernel': '/nowhere/vmlinuz'}, '/nowhere/vmlinuz'),
    ({'kernel': '/etc/passwd'}, 'neither a bzImage nor an ELF'),
    ({'disks': [{'path': '/nowhere/disk'}]}, '/nowhere/disk'),
])
def test_bad_configurations_are_refused_in_words(tmp_path, config, words):
    vm = Vmm(tmp_path, **config)
    try:
        assert vm.process.wait(LIMIT_S) in (1, 2)
        assert words in vm.log.read_text()
    finally:
        vm.end()


def test_lease_holds_and_releases_the_vcpus(vmm, tmp_path):
    page = tmp_path / 'lease'

    def lease(seconds):
        deadline = 0 if seconds is None else time.clock_gettime_ns(time.CLOCK_BOOTTIME) + int(seconds * 1e9)
        with page.open('r+b') as file:
            file.write(struct.pack('<Q', deadline))
    page.write_bytes(bytes(4096))
    lease(3600)
    vm = vmm(lease_path=str(page))
    console = vm.console()
    console.wait(r'^tick 3$')
    lease(0.4)                                     # less than the margin: stop now
    vm.request('GET', '/v1/vm')
    end = time.monotonic() + LIMIT_S
    while not vm.request('GET', '/v1/vm/stats')[1]['lease_pauses']:
        assert time.monotonic() < end
    while select.select([console.socket], [], [], 0.3)[0]:
        console.read(0)
    before = console.last_tick()
    console.read(0.5)
    assert console.last_tick() == before
    assert vm.request('GET', '/v1/vm')[1]['lease_held'] is False
    lease(3600)                                    # back: it goes on where it was
    console.wait_past(before)
    assert vm.request('GET', '/v1/vm')[1]['lease_held'] is True
    assert console.text.count('hello') == 1


def test_run_out_lease_keeps_it_from_starting(vmm, tmp_path):
    page = tmp_path / 'lease'
    page.write_bytes(struct.pack('<Q', 1))
    vm = vmm(lease_path=str(page))
    console = vm.console()
    console.read(0.5)
    assert console.text == ''
    page.write_bytes(struct.pack('<Q', 0))
    console.wait('hello')


def test_every_thread_is_in_the_sandbox(vmm, tmp_path):
    page = tmp_path / 'lease'
    page.write_bytes(bytes(8))
    disk = tmp_path / 'disk'
    disk.write_bytes(bytes(1 << 20))
    vm = vmm(vcpus=2, lease_path=str(page), disks=[{'path': str(disk), 'engine': 'threads'}])
    vm.console().wait(r'^tick 1$')
    filters = {}
    for task in pathlib.Path(f'/proc/{vm.process.pid}/task').iterdir():
        status = dict(line.split(':\t', 1) for line in (task / 'status').read_text().splitlines() if ':\t' in line)
        assert status['NoNewPrivs'] == '1' and status['Seccomp'] == '2', status['Name']
        filters.setdefault(status['Name'], set()).add(status.get('Seccomp_filters', '?'))
    assert {'io', 'vcpu0', 'vcpu1', 'lease', 'disk'} <= set(filters)
    for name in ('io', 'vcpu0', 'vcpu1', 'lease'):
        assert filters[name] <= {'2', '?'}, name            # its own within the base


def test_sandbox_can_be_switched_off(vmm):
    vm = vmm('', '--sandbox', 'off')
    vm.console().wait(r'^tick 1$')
    assert 'Seccomp:\t0' in pathlib.Path(f'/proc/{vm.process.pid}/status').read_text()


def multiboot_program(code):
    """A multiboot ELF of one segment at 4 MiB that begins with @code."""
    segment = struct.pack('<3I', 0x1badb002, 0, -0x1badb002 & 0xffffffff) + code
    ident = b'\x7fELF\x01\x01\x01' + bytes(9)
    head = struct.pack('<2H5I6H', 2, 3, 1, 0x40000c, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    table = struct.pack('<8I', 1, 84, 0x400000, 0x400000, len(segment), len(segment), 7, 0)
    return ident + head + table + segment


@needs_kvm
def test_multiboot_program_ends_with_its_status(tmp_path):
    program, config = tmp_path / 'program', tmp_path / 'vm.json'
    program.write_bytes(multiboot_program(bytes.fromhex(
        '3d02b0ad2b'            # cmp eax, 0x2badb002: the loader's magic
        '7407'                  # je over the next two
        'b80b000000' 'e7f4'     # mov eax, 11; out 0xf4, eax
        'b805000000' 'e7f4'     # mov eax, 5; out 0xf4, eax
        'f4' 'ebfd')))          # hlt; back to it
    config.write_text(json.dumps({'name': 'test', 'vcpus': 1, 'memory_bytes': 64 << 20, 'kernel': str(program)}))
    options = [VMM, '--config', config, '--multiboot', program]
    assert subprocess.run([*options, '--debug-exit'], timeout=LIMIT_S, check=False).returncode == 5 * 2 + 1
    program.write_bytes(b'no program')
    done = subprocess.run(options, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 1 and '--multiboot takes a 32-bit' in done.stderr


@needs_kvm
@pytest.mark.parametrize('hidden', [False, True])
def test_x2apic_can_be_hidden_from_a_test_program(tmp_path, hidden):
    program, config = tmp_path / 'program', tmp_path / 'vm.json'
    program.write_bytes(multiboot_program(bytes.fromhex(
        'b801000000' '0fa2'     # mov eax, 1; cpuid
        'c1e915' '83e101'       # shr ecx, 21; and ecx, 1
        '8d4103' 'e7f4'         # lea eax, [ecx + 3]; out 0xf4, eax
        'f4' 'ebfd')))          # hlt; back to it
    config.write_text(json.dumps({'name': 'test', 'vcpus': 1, 'memory_bytes': 64 << 20, 'kernel': str(program)}))
    options = [VMM, '--config', config, '--multiboot', program, '--debug-exit', *(['--hide-x2apic'] if hidden else [])]
    assert subprocess.run(options, timeout=LIMIT_S, check=False).returncode == (3 if hidden else 4) * 2 + 1


@needs_kvm
def test_violation_of_the_sandbox_ends_the_vmm(tmp_path):
    program, config = tmp_path / 'program', tmp_path / 'vm.json'
    program.write_bytes(multiboot_program(bytes.fromhex('b801000000' 'e7f8' 'f4' 'ebfd')))     # out 0xf8, eax
    config.write_text(json.dumps({'name': 'test', 'vcpus': 1, 'memory_bytes': 64 << 20, 'kernel': str(program)}))
    options = [VMM, '--config', config, '--multiboot', program, '--debug-exit']
    done = subprocess.run(options, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 6
    assert re.search(r'^<3>sandbox-violation thread=vcpu0 syscall=\d+$', done.stderr, re.M)


def test_help_has_an_example():
    out = subprocess.run([VMM, '--help'], capture_output=True, text=True, timeout=LIMIT_S, check=True).stdout
    assert 'drover-vmm --config vm.json' in out
    assert subprocess.run([VMM, '--what'], capture_output=True, timeout=LIMIT_S, check=False).returncode == 2
