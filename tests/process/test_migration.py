"""Live migration between two drover-vmm on the real /dev/kvm (or without, see test_vmm.py): back and forth under writing, and every step's sudden end."""
import fcntl
import json
import os
import random
import re
import select
import socket
import statistics
import struct
import subprocess
import threading
import time

import pytest

from test_vmm import ACCEL, LIMIT_S, TICKER, VMM, Vmm, needs_kvm

SILENCE_MS = 2500       # taken for the other side's death: longer than a crowded machine lets a program wait

pytestmark = [pytest.mark.skipif(not VMM.exists(), reason='drover-vmm is not built'),
              pytest.mark.skipif(not TICKER.exists(), reason='the test guest is not built')]

MIGRATED = 7  # exit status of a source


class Incoming(Vmm):
    """A VMM that waits for its guest. Files carry @name."""

    def __init__(self, folder, name, *options, **config):  # pylint: disable=super-init-not-called
        self.control = folder / f'control-{name}'
        self.log = folder / f'log-{name}'
        self.socket = folder / f'migrate-{name}'
        config = {'name': 'test', 'vcpus': 1, 'memory_bytes': 64 << 20, 'kernel': str(TICKER), **config}
        (folder / f'vm-{name}.json').write_text(json.dumps(config))
        self.process = subprocess.Popen([VMM, '--accel', ACCEL, '--config', folder / f'vm-{name}.json', '--control', self.control,
                                         '--incoming', f'unix:{self.socket}', *options],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.log.open('w'))
        self.consoles = []

    def wait_listening(self):
        super().wait_listening()
        until(self.socket.exists, self)
        return self


def until(condition, *vms, seconds=LIMIT_S):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, [vm.log.read_text()[-1000:] for vm in vms]
        time.sleep(0.005)
    return value


def migration(vm):
    return vm.request('GET', '/v1/vm/migration')[1]


def start(vm, to, **order):
    status, answer = vm.request('POST', '/v1/vm/migration', {'to': f'unix:{to}', **order})
    assert status == 202, answer
    return answer


def decide(vm, outcome):
    """Once the VMM is where it can be decided."""
    until(lambda: vm.request('PUT', '/v1/vm/migration', {'outcome': outcome})[0] == 200, vm)


def state(vm):
    return vm.request('GET', '/v1/vm')[1]['state']


def ticks(text):
    return [int(n) for n in re.findall(r'^tick (\d+)\r?\n', text, re.M)]   # whole lines: the last may be half said


@pytest.fixture
def world(tmp_path):
    vms = []

    class World:
        folder = tmp_path
        count = 0

        @staticmethod
        def boot(*args, **config):
            vms.append(Vmm(tmp_path, *args, **config))
            return vms[-1].wait_listening()

        @classmethod
        def incoming(cls, *options, **config):
            cls.count += 1
            vms.append(Incoming(tmp_path, str(cls.count), *options, **config))
            return vms[-1].wait_listening()

    yield World
    for vm in vms:
        vm.end()
    left = [p.name for p in tmp_path.iterdir() if p.name.startswith('migrate-')]
    assert not left or any(vm.process.returncode == -9 for vm in vms), left


def counted_on(texts):
    """Each tick once, in order, over all that ran it, also one that two of them said; memory never wrong."""
    text = ''.join(texts)
    assert 'corrupt' not in text and 'stands still' not in text, text[-500:]
    seen = ticks(text)
    assert seen == list(range(seen[0], seen[-1] + 1)), seen
    return seen


def drain(console):
    """To the end of its VMM."""
    while console.read(LIMIT_S):
        pass
    return console.text


@pytest.mark.parametrize('turns', [4, pytest.param(20, marks=pytest.mark.slow)])
def test_back_and_forth_under_writing(world, capsys, turns):
    vm = world.boot('dirty=16')
    console = vm.console()
    console.wait(r'^tick 2$')
    texts, downtimes = [], []
    for turn in range(turns):
        target = world.incoming()
        new_console = target.console()
        start(vm, target.socket, verify=True, connections=1 + turn % 4, ask_owner=turn % 2 == 0)
        if turn % 2 == 0:
            until(lambda: migration(vm)['phase'] == 'ready', vm, target)
            at_ready = migration(vm)
            assert state(vm) == 'running' and vm.request('GET', '/v1/vm')[1]['holds'] == ['migrate'], at_ready
            assert vm.move('running')[0] == 409
            decide(vm, 'there')
        texts.append(drain(console))
        assert vm.process.wait(LIMIT_S) == MIGRATED, vm.log.read_text()
        downtimes.append(int(re.search(r'migrated vm=test .*pause_us=(\d+)', vm.log.read_text())[1]) / 1000)
        vm, console = target, new_console
        console.wait(r'^tick \d+$')
        assert state(vm) == 'running'
    texts.append(console.text)
    seen = counted_on(texts)
    assert seen[0] == 1 and 'hello' not in ''.join(texts[1:])
    with capsys.disabled():
        print(f' pauses of {turns} migrations with all memory compared: median {statistics.median(downtimes):.1f} ms, '
              f'most {max(downtimes):.1f} ms, {seen[-1]} ticks ', end='')


@needs_kvm
def test_processors_and_a_pause_by_its_user_go_along(world):
    vm = world.boot('smp=3 dirty=2', vcpus=4)
    console = vm.console()
    console.wait(r'(?s)^processors 4$.*^tick 12$')
    texts = []
    for paused in (True, False):
        target = world.incoming(vcpus=4)
        new_console = target.console()
        if paused:
            vm.move('paused')
        start(vm, target.socket, connections=2)
        texts.append(drain(console))
        assert vm.process.wait(LIMIT_S) == MIGRATED, vm.log.read_text()
        vm, console = target, new_console
        until(lambda: migration(vm)['phase'] == 'done', vm)  # pylint: disable=cell-var-from-loop
        if paused:
            console.read(0.4)
            assert not console.text and state(vm) == 'paused'
            vm.move('running')
        console.wait(r'^tick \d+$')
        console.wait_past(console.last_tick() + 11)          # they look at one another each ten ticks
    counted_on([*texts, console.text])


def test_a_disk_is_one_sides_at_a_time(world):
    disk = world.folder / 'disk'
    disk.write_bytes(bytes(1 << 20))
    disks = [{'path': str(disk)}]
    vm = world.boot(disks=disks)
    vm.console().wait(r'^tick 1$')
    target = world.incoming(disks=disks)                     # it may look at what is in use
    start(vm, target.socket, ask_owner=True)
    until(lambda: migration(vm)['phase'] == 'ready', vm, target)
    assert target.request('PUT', '/v1/vm/migration', {'outcome': 'here'})[0] == 200
    assert target.process.wait(LIMIT_S) == 5                 # whoever said so was wrong: the source has it
    assert 'in use by another process' in target.log.read_text()
    decide(vm, 'here')
    until(lambda: migration(vm)['phase'] in ('failed', 'unknown'), vm)
    assert state(vm) == 'running' and 'holds' not in vm.request('GET', '/v1/vm')[1]
    target = world.incoming(disks=disks)
    start(vm, target.socket)
    assert vm.process.wait(LIMIT_S) == MIGRATED, vm.log.read_text()
    target.console().wait(r'^tick \d+$')
    third = Vmm(world.folder, disks=disks)
    assert third.process.wait(LIMIT_S) == 1 and 'in use by another process' in third.log.read_text()


def test_a_source_too_old_to_let_go_of_what_both_hosts_reach_is_refused(world):
    disk = world.folder / 'disk'
    disk.write_bytes(bytes(1 << 20))
    vm = world.boot(disks=[{'path': str(disk)}])             # of which it lets go only when it is too late, as of any other disk
    console = vm.console()
    console.wait(r'^tick 1$')
    target = world.incoming(disks=[{'path': str(disk), 'shared': True}])
    start(vm, target.socket)
    until(lambda: migration(vm)['phase'] == 'failed', vm)
    failure = migration(vm)['failure']
    assert str(disk) in failure and 'too old to let go of it in time' in failure and '`drover vm upgrade` it first' in failure, failure
    assert target.process.wait(LIMIT_S) == 5
    assert state(vm) == 'running' and 'holds' not in vm.request('GET', '/v1/vm')[1]
    console.wait_past(console.last_tick() + 2)


def test_what_cannot_be_taken_back_is_tried_again_with_the_next_answer(world):
    """Somebody has the disk when the owner says that the VM stays; and has not, when he says it again."""
    lock = struct.pack('hhqqi4x', fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    disk = world.folder / 'disk'
    disk.write_bytes(bytes(1 << 20))
    disks = [{'path': str(disk), 'shared': True}]
    vm = world.boot(disks=disks)
    console = vm.console()
    console.wait(r'^tick 1$')
    target = world.incoming(disks=disks)
    start(vm, target.socket, ask_owner=True)
    until(lambda: migration(vm)['phase'] == 'ready', vm, target)
    with disk.open('r+b') as somebody:                       # it was let go of before the owner was asked
        fcntl.fcntl(somebody, fcntl.F_OFD_SETLK, lock)
        decide(vm, 'here')
        until(lambda: migration(vm)['phase'] == 'unknown', vm)
        assert 'in use by another process' in migration(vm)['failure'], migration(vm)
        assert vm.request('GET', '/v1/vm')[1]['holds'] == ['migrate']
    decide(vm, 'here')
    until(lambda: migration(vm)['phase'] == 'failed', vm)
    assert 'decided that the VM stays here' in migration(vm)['failure'], migration(vm)
    assert state(vm) == 'running' and target.process.wait(LIMIT_S) == 5
    console.wait_past(console.last_tick() + 2)
    with disk.open('r+b') as somebody, pytest.raises(BlockingIOError):
        fcntl.fcntl(somebody, fcntl.F_OFD_SETLK, lock)       # and it has its disk


def test_the_owners_word_may_come_before_the_source_lets_go(world):
    """In a cluster the target may hear of it first: it waits for the disks, with all that it has, instead of failing."""
    disk = world.folder / 'disk'
    disk.write_bytes(bytes(1 << 20))
    disks = [{'path': str(disk)}]
    vm = world.boot(disks=disks)
    console = vm.console()
    console.wait(r'^tick 1$')
    target = world.incoming(disks=disks)
    new_console = target.console()
    start(vm, target.socket, ask_owner=True)
    until(lambda: migration(vm)['phase'] == 'ready', vm, target)
    assert 'start' in target.request('GET', '/v1/vm')[1]['holds']      # whoever asks can tell it from one that has been given it
    assert target.request('PUT', '/v1/vm/migration', {'outcome': 'here', 'epoch': 2})[0] == 200
    until(lambda: 'disks-not-free' in target.log.read_text(), target)
    assert migration(target)['phase'] == 'go' and target.process.poll() is None
    decide(vm, 'there')
    texts = [drain(console)]
    assert vm.process.wait(LIMIT_S) == MIGRATED, vm.log.read_text()
    new_console.wait(r'^tick \d+$')
    counted_on([*texts, new_console.text])


def test_who_waits_is_told_when_it_asks_and_when_it_ends(world):
    vm = world.boot()
    vm.console().wait(r'^tick 1$')
    assert vm.request('GET', '/v1/vm/migration/wait')[1]['phase'] == 'idle'
    target = world.incoming()
    answers = []
    start(vm, target.socket, ask_owner=True, bytes_per_second=4 << 20, plain=True)
    waiting = [threading.Thread(target=lambda: answers.append(vm.request('GET', '/v1/vm/migration/wait')[1]['phase'])) for _ in range(3)]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join(LIMIT_S)
    assert answers == ['ready'] * 3
    decide(vm, 'here')
    until(lambda: vm.request('GET', '/v1/vm/migration/wait')[1]['phase'] == 'failed', vm)
    assert state(vm) == 'running'
    target = world.incoming()
    start(vm, target.socket, bytes_per_second=64 << 10, plain=True)
    thread = threading.Thread(target=lambda: answers.append(vm.request('GET', '/v1/vm/migration/wait')[1]['phase']))
    thread.start()
    assert vm.request('DELETE', '/v1/vm/migration')[0] == 200
    thread.join(LIMIT_S)
    assert answers[3:] == ['cancelled']


def test_cancelled_it_goes_on_and_may_be_migrated_again(world):
    vm = world.boot('dirty=16')
    console = vm.console()
    console.wait(r'^tick 3$')
    target = world.incoming()
    assert vm.request('DELETE', '/v1/vm/migration')[0] == 409
    start(vm, target.socket, bytes_per_second=1 << 20, plain=True)
    until(lambda: migration(vm)['phase'] == 'memory', vm)
    status, answer = vm.request('POST', '/v1/vm/migration', {'to': f'unix:{target.socket}'})
    assert status == 409 and 'being migrated' in answer['detail']
    assert vm.request('POST', '/v1/vm/disks', {'path': '/dev/null'})[0] == 409
    assert vm.request('POST', '/v1/vm/snapshot', {'path': str(world.folder / 's')})[0] == 409
    assert vm.request('DELETE', '/v1/vm/migration')[0] == 200
    until(lambda: migration(vm)['phase'] == 'cancelled', vm)
    assert target.process.wait(LIMIT_S) == 5
    console.wait_past(console.last_tick() + 2)
    target = world.incoming()
    new_console = target.console()
    start(vm, target.socket, verify=True)
    assert vm.process.wait(LIMIT_S) == MIGRATED, vm.log.read_text()
    new_console.wait(r'^tick \d+$')
    counted_on([drain(console), new_console.text])


@pytest.mark.slow
def test_a_guest_that_writes_faster_than_the_link_is_slowed_down(world, capsys):
    vm = world.boot('dirty=24')
    console = vm.console()
    console.wait(r'^tick 5$')
    target = world.incoming()
    new_console = target.console()
    start(vm, target.socket, bytes_per_second=40 << 20, timeout_ms=120000, plain=True)
    most, last = 0, {}
    while vm.process.poll() is None:
        try:
            last = migration(vm)
        except (OSError, ValueError, IndexError):
            break
        most = max(most, last['throttle_percent'])
        time.sleep(0.02)
    assert vm.process.wait(LIMIT_S) == MIGRATED, vm.log.read_text()
    assert most > 0
    new_console.wait(r'^tick \d+$')
    counted_on([drain(console), new_console.text])
    found = re.search(r'rounds=(\d+) bytes=(\d+) pause_us=(\d+) total_us=(\d+)', vm.log.read_text())
    with capsys.disabled():
        print(f' 24 MiB written without end over 40 MiB/s: throttled to {most} %, {found[1]} rounds, '
              f'{int(found[2]) / (24 << 20):.1f} times what was written, pause {int(found[3]) / 1000:.0f} ms, '
              f'{int(found[4]) / 1e6:.1f} s ', end='')


@needs_kvm
@pytest.mark.slow
def test_only_the_processor_that_writes_is_slowed_down(world, capsys):
    vm = world.boot('smp=1 dirty=24 speed quiet', vcpus=2)
    console = vm.console()
    console.wait(r'(?s)^processors 2$.*^speed \d+$')
    target = world.incoming(vcpus=2)
    target.console()

    def speed(seconds):
        """Of the processor that only counts, a second of the host's clock."""
        seen = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            console.read(0.05)
            counts = re.findall(r'^speed (\d+)$', console.text, re.M)
            if counts and (not seen or seen[-1][1] != int(counts[-1])):
                seen.append((time.monotonic(), int(counts[-1])))
        return (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])

    before = speed(6)
    start(vm, target.socket, bytes_per_second=20 << 20, timeout_ms=120000, plain=True, throttle_max=90, downtime_ms=20)
    until(lambda: migration(vm)['throttle_percent'] >= 50, vm, seconds=60)
    during = speed(8)
    throttle = migration(vm)['throttle_percent']
    with capsys.disabled():
        print(f' the writer slowed by {throttle} %, the other runs at {100 * during / before:.0f} % ', end='')
    assert during > before / 2, (before, during)


@pytest.mark.parametrize('config, words', [
    ({'vcpus': 2}, 'vCPUs'),
    ({'memory_bytes': 128 << 20}, 'bytes of memory'),
    pytest.param({'cpu_model': 'x86-64-v1'}, 'CPU model', marks=needs_kvm),
    ({'rng': False}, 'configurations must be the same'),
])
def test_a_target_that_does_not_fit_refuses_before_memory(world, config, words):
    vm = world.boot('dirty=8')
    console = vm.console()
    console.wait(r'^tick 2$')
    target = world.incoming(**config)
    start(vm, target.socket)
    assert target.process.wait(LIMIT_S) == 5
    until(lambda: migration(vm)['phase'] == 'failed', vm)
    answer = migration(vm)
    assert words in answer['failure'] and answer['sent_bytes'] < 100000, answer
    console.wait_past(console.last_tick() + 1)


@pytest.mark.parametrize('noise', [b'', b'GET / HTTP/1.1\r\n\r\n', b'DROVERVM' + bytes(64), os.urandom(4096)])
def test_noise_ends_only_that_migration(world, noise):
    target = world.incoming()
    with socket.socket(socket.AF_UNIX) as s:
        until(lambda: s.connect_ex(str(target.socket)) == 0, target)  # the name is there a moment before it listens
        s.sendall(noise)
    assert target.process.wait(LIMIT_S) == 5
    assert 'the migration to here failed' in target.log.read_text()
    vm = world.boot()
    assert vm.request('POST', '/v1/vm/migration', {'to': 'unix:relative'})[0] == 400
    start(vm, world.folder / 'nobody')
    until(lambda: migration(vm)['phase'] == 'failed', vm)
    assert state(vm) == 'running'


# ---- every step's sudden end ----

MIGRATE, PAGES, STATE = 6, 3, 2
STEPS = {'open': ('section', MIGRATE, 1), 'check': ('section', MIGRATE, 2), 'pages': ('section', PAGES, None),
         'sync': ('section', MIGRATE, 3), 'synced': ('reply', 2, None), 'final': ('section', MIGRATE, 5),
         'ready': ('reply', 3, None), 'go': ('section', MIGRATE, 6), 'running': ('reply', 4, None)}


class Relay:
    """Between source and target. Knows their language, and stops at a step: what is being said is held back, `reached`
    is set, and what becomes of it is the test's to say: pass_on() or cut()."""

    def __init__(self, path, to, step):
        self.path, self.to, self.step = path, to, STEPS[step]
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.sockets = []
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        source, _ = self.listener.accept()
        target = socket.socket(socket.AF_UNIX)
        target.connect(str(self.to))
        self.sockets = [source, target]
        back = threading.Thread(target=self.copy, args=(target, source, self.replies), daemon=True)
        back.start()
        self.copy(source, target, self.sections)
        back.join()
        source.close()
        target.close()

    def copy(self, from_, to, pieces):
        try:
            for piece, matches in pieces(from_):
                if matches and not self.reached.is_set():
                    self.reached.set()
                    self.go_on.wait()
                to.sendall(piece)
            to.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    @staticmethod
    def exactly(s, size):
        data = b''
        while len(data) < size:
            piece = s.recv(size - len(data))
            if not piece:
                raise OSError('end')
            data += piece
        return data

    def ends(self, s):
        """The end of @s reaches the other side as an end, too."""
        for other in self.sockets:
            if other is not s:
                other.shutdown(socket.SHUT_WR)

    def sections(self, s):
        try:
            yield self.exactly(s, 16), False
            while True:
                head = self.exactly(s, 24)
                tag, size = struct.unpack_from('<H', head)[0], struct.unpack_from('<I', head, 12)[0]
                payload = self.exactly(s, size)
                kind = struct.unpack_from('<H', payload)[0] if tag == MIGRATE else None
                yield head + payload, self.step == ('section', tag, kind)
        except OSError:
            self.ends(s)

    def replies(self, s):
        try:
            while True:
                head = self.exactly(s, 16)
                kind, size = struct.unpack_from('<HH', head, 4)
                yield head + self.exactly(s, size + 4), self.step == ('reply', kind, None)
        except OSError:
            self.ends(s)

    def pass_on(self):
        self.go_on.set()

    def cut(self):
        """What was held back never arrives; both sides see the end."""
        for s in [*self.sockets, self.listener]:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self.go_on.set()
        self.thread.join(LIMIT_S)
        self.listener.close()


class Link:
    """Between source and target, any number of connections; not faster than @bytes_per_s to the target, and can be cut."""

    def __init__(self, path, to, bytes_per_s):
        self.to, self.bytes_per_s, self.down, self.free_at = to, bytes_per_s, False, 0
        self.sockets, self.lock = [], threading.Lock()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                source, _ = self.listener.accept()
                if self.down:
                    source.close()
                    continue
                target = socket.socket(socket.AF_UNIX)
                target.connect(str(self.to))
            except OSError:
                return
            with self.lock:
                self.sockets += [source, target]
            for from_, to, limited in ((source, target, True), (target, source, False)):
                threading.Thread(target=self.copy, args=(from_, to, limited), daemon=True).start()

    def copy(self, from_, to, limited):
        try:
            while data := from_.recv(16384):
                if limited:
                    with self.lock:
                        self.free_at = max(self.free_at, time.monotonic()) + len(data) / self.bytes_per_s
                        wait = self.free_at - time.monotonic()
                    time.sleep(max(wait, 0))
                to.sendall(data)
            to.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def cut(self, down=True):
        with self.lock:
            self.down = down
            sockets, self.sockets = self.sockets, []
        for s in sockets:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.cut()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def outcome_wanted(victim, step):
    """Who runs it, at once or after a decision by somebody who knows; see migration/migrate_progress.h."""
    after_ready, after_go = step in ('ready', 'go', 'running'), step in ('go', 'running')
    if victim == 'source':
        return 'target' if step == 'running' else 'target decided' if after_ready else 'nobody'
    if victim == 'target':
        return 'source' if not after_go else 'source decided' if step == 'go' else 'paused'
    return 'source' if not after_go else 'source decided' if step == 'go' else 'target'


@pytest.mark.parametrize('victim', ['source', 'target', 'link'])
def test_sudden_ends_at_each_step(world, victim, capsys):
    rows = []
    for step in STEPS:
        vm = world.boot('dirty=4')
        console = vm.console()
        console.wait(r'^tick 1$')
        target = world.incoming()
        new_console = target.console()
        relay = Relay(world.folder / f'relay-{victim}-{step}', target.socket, step)
        start(vm, relay.path)
        assert relay.reached.wait(LIMIT_S), (step, vm.log.read_text(), target.log.read_text())
        if victim != 'link':
            {'source': vm, 'target': target}[victim].process.kill()
            {'source': vm, 'target': target}[victim].process.wait()
        relay.cut()
        wanted = outcome_wanted(victim, step)
        before = console.text if vm.process.poll() is None else drain(console)
        if wanted.startswith('source'):
            if wanted == 'source decided':
                until(lambda: migration(vm)['phase'] == 'unknown', vm)   # pylint: disable=cell-var-from-loop
                assert vm.move('running')[0] == 409
                decide(vm, 'here')
            if victim == 'link':
                if step in ('ready', 'go'):
                    until(lambda: migration(target)['phase'] == 'unknown', target)  # pylint: disable=cell-var-from-loop
                    decide(target, 'there')
                assert target.process.wait(LIMIT_S) == 5
            until(lambda: migration(vm)['phase'] == 'failed', vm)        # pylint: disable=cell-var-from-loop
            assert state(vm) == 'running' and not ticks(new_console.text)
            console.wait_past(console.last_tick())
            counted_on([console.text])
        elif wanted.startswith('target'):
            if wanted == 'target decided':
                until(lambda: migration(target)['phase'] == 'unknown', target)  # pylint: disable=cell-var-from-loop
                assert state(target) == 'paused' and target.move('running')[0] == 409
                decide(target, 'here')
            if victim == 'link':
                until(lambda: migration(vm)['phase'] == 'unknown', vm)   # pylint: disable=cell-var-from-loop
                decide(vm, 'there')
                assert vm.process.wait(LIMIT_S) == MIGRATED
                before = drain(console)
            new_console.wait(r'^tick \d+$')
            counted_on([before, new_console.text])
        elif wanted == 'nobody':                             # as without a migration: its VMM was killed
            assert target.process.wait(LIMIT_S) == 5 and not ticks(new_console.text)
        else:                                                # the target ran it and is dead: what it wrote is not here
            until(lambda: migration(vm)['phase'] == 'unknown', vm)       # pylint: disable=cell-var-from-loop
            while select.select([console.socket], [], [], 0.3)[0]:   # until it has said all
                console.read(0)
            before = console.text
            console.read(0.3)
            assert console.text == before
            assert vm.request('GET', '/v1/vm')[1]['holds'] == ['migrate']
        rows.append(f'{step}: {wanted}')
        vm.end()
        target.end()
        relay.cut()
    with capsys.disabled():
        print(f'\n  {victim} ends at: ' + '; '.join(rows), end=' ')


def test_a_target_that_sleeps_through_go_is_waited_for(world):
    vm = world.boot('dirty=4')
    console = vm.console()
    console.wait(r'^tick 2$')
    target = world.incoming()
    new_console = target.console()
    relay = Relay(world.folder / 'relay', target.socket, 'go')
    start(vm, relay.path, stop_silence_ms=SILENCE_MS)
    assert relay.reached.wait(LIMIT_S)
    os.kill(target.process.pid, 19)
    relay.pass_on()
    until(lambda: migration(vm)['phase'] == 'unknown', vm)
    assert vm.request('GET', '/v1/vm')[1]['holds'] == ['migrate']
    os.kill(target.process.pid, 18)
    assert vm.process.wait(LIMIT_S) == MIGRATED, vm.log.read_text()
    new_console.wait(r'^tick \d+$')
    counted_on([drain(console), new_console.text])
    relay.cut()


@pytest.mark.parametrize('step', ['pages', 'final'])
def test_a_target_that_sleeps_before_go_is_left(world, step):
    vm = world.boot('dirty=4')
    console = vm.console()
    console.wait(r'^tick 2$')
    target = world.incoming()
    relay = Relay(world.folder / 'relay', target.socket, step)
    start(vm, relay.path, silence_ms=SILENCE_MS, stop_silence_ms=SILENCE_MS)
    assert relay.reached.wait(LIMIT_S)
    os.kill(target.process.pid, 19)
    relay.pass_on()
    until(lambda: migration(vm)['phase'] == 'failed', vm)
    assert 'silent' in migration(vm)['failure'] and state(vm) == 'running'
    os.kill(target.process.pid, 18)
    assert target.process.wait(LIMIT_S) == 5
    console.wait_past(console.last_tick() + 1)
    counted_on([console.text])
    relay.cut()


# ---- post-copy ----

def rounds(text):
    return [int(n) for n in re.findall(r'^round (\d+)\r?\n', text, re.M)]


@needs_kvm
@pytest.mark.parametrize('cut', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_post_copy_under_writing(world, capsys, cut):
    vm = world.boot('dirty=16 pace=400 scatter')
    console = vm.console()
    console.wait(r'^round 3$')
    target = world.incoming()
    new_console = target.console()
    link = Link(world.folder / 'link', target.socket, 6 << 20 if cut else 12 << 20)     # time to cut it
    start(vm, world.folder / 'link', postcopy='at-once', plain=True)
    if cut:
        until(lambda: migration(target)['phase'] == 'postcopy', target)
        until(lambda: migration(vm)['phase'] == 'postcopy', vm)      # it has heard that the target runs: else it would not know
        link.cut()
        until(lambda: migration(target)['phase'] == 'lost', target)
        at_lost = migration(target)
        assert 'the source is lost' in at_lost['failure'] and at_lost['dirty_pages'] > 0
        until(lambda: migration(vm)['phase'] == 'lost', vm)
        assert target.request('GET', '/v1/vm')[1]['holds'] == ['migrate']
        assert target.move('paused')[0] == 409
        while select.select([new_console.socket], [], [], 0.3)[0]:   # what it had said before
            new_console.read(0)
        before = new_console.text
        new_console.read(0.3)
        assert new_console.text == before
        link.bytes_per_s = 24 << 20
        link.cut(down=False)
    assert vm.process.wait(LIMIT_S) == MIGRATED, vm.log.read_text()
    until(lambda: migration(target)['phase'] == 'done', target)
    seen = rounds(drain(console) + new_console.text)[-1]
    new_console.wait(r'^round %d$' % (seen + 3))             # all its memory is what it wrote
    counted_on([console.text, new_console.text])
    found = re.search(r'bytes=(\d+) pause_us=(\d+) total_us=(\d+)', vm.log.read_text())
    link.close()
    third = world.incoming()                                 # and it can be moved on
    third_console = third.console()
    start(target, third.socket, verify=True)
    assert target.process.wait(LIMIT_S) == MIGRATED, target.log.read_text()
    third_console.wait(r'^round \d+$')
    assert 'corrupt' not in third_console.text
    with capsys.disabled():
        print(f' post-copy: pause {int(found[2]) / 1000:.1f} ms, {int(found[3]) / 1e6:.1f} s, {int(found[1]) >> 10} KiB ', end='')


@needs_kvm
def test_a_source_that_dies_in_post_copy_is_told_and_the_vm_given_up(world):
    vm = world.boot('dirty=16 pace=400 scatter')
    console = vm.console()
    console.wait(r'^round 3$')
    target = world.incoming()
    target.console()
    link = Link(world.folder / 'link', target.socket, 4 << 20)
    start(vm, world.folder / 'link', postcopy='at-once', plain=True)
    until(lambda: migration(target)['phase'] == 'postcopy', target)
    vm.process.kill()
    vm.process.wait()
    until(lambda: migration(target)['phase'] == 'lost', target)
    assert target.request('PUT', '/v1/vm/migration', {'outcome': 'here'})[0] == 409
    assert target.request('PUT', '/v1/vm/migration', {'outcome': 'there'})[0] == 409       # nobody gives it up by mistake
    assert target.request('PUT', '/v1/vm/migration', {'outcome': 'here', 'give_up': True})[0] == 409
    assert target.request('PUT', '/v1/vm/migration', {'outcome': 'there', 'give_up': True})[0] == 200
    assert target.process.wait(LIMIT_S) == 5
    log = target.log.read_text()
    assert 'were still at the source' in log and 'ended-as-it-was' in log
    link.close()


def test_post_copy_is_not_done_unasked(world):
    vm = world.boot('dirty=4')
    vm.console().wait(r'^tick 2$')
    target = world.incoming()
    assert vm.request('POST', '/v1/vm/migration', {'to': f'unix:{target.socket}', 'postcopy': 'often'})[0] == 400
    start(vm, target.socket)
    assert vm.process.wait(LIMIT_S) == MIGRATED
    assert migration(target)['phase'] == 'done'


# ---- disks that move ----

def disk_make(path, size, seed, used=256 << 10):
    """The first KiB zeroes for the guest's own game, then data here and there, and holes."""
    rng = random.Random(seed)
    with path.open('wb') as f:
        f.truncate(size)
        at = used
        while at < size:
            length = rng.randrange(1, 200) << 10
            f.seek(at)
            f.write(rng.randbytes(min(length, size - at)))
            at += length + (rng.randrange(0, 600) << 10)


def allocated(path):
    return path.stat().st_blocks * 512


def disk_verified(console):
    start = len(re.findall(r'^disk verified', console.text, re.M))
    console.socket.send(b'verify\n')
    console.wait(r'(?s)(^disk verified .*?){%d}' % (start + 1))
    assert not re.search(r'^disk: ', console.text, re.M), re.findall(r'^disk: .*$', console.text, re.M)[:5]


def wrote(vm):
    return vm.request('GET', '/v1/vm/disks/disk0')[1]['writes']


@pytest.mark.parametrize('size', [40 << 20, pytest.param(400 << 20, marks=pytest.mark.slow)])
def test_disks_go_along_while_they_are_written(world, capsys, size):
    here, there = world.folder / 'here', world.folder / 'there'
    disk_make(here, size, seed=5)
    there.touch()
    os.truncate(there, size)
    disks_socket = world.folder / 'disks'
    vm = world.boot('disk=7 quiet', disks=[{'path': str(here)}])
    console = vm.console()
    until(lambda: wrote(vm) > 20, vm)
    target = world.incoming('--incoming-disks', f'unix:{disks_socket}', disks=[{'path': str(there), 'copied': True}])
    new_console = target.console()
    start(vm, target.socket, disks=[{'id': 'disk0'}], disks_to=f'unix:{disks_socket}', ask_owner=True, verify=True)
    until(lambda: migration(vm)['phase'] == 'ready', vm, target)
    with here.open('rb') as a, there.open('rb') as b:        # both stand still, and both sides have synced
        assert a.read() == b.read(), 'the disks differ'
    copied = migration(vm)['disk_copied_bytes']
    assert allocated(there) <= allocated(here) * 1.2 + (1 << 20), 'thin has become thick'
    decide(vm, 'there')
    assert vm.process.wait(LIMIT_S) == MIGRATED, vm.log.read_text()
    until(lambda: state(target) == 'running', target)
    before = wrote(target)
    until(lambda: wrote(target) > before + 20, target)
    disk_verified(new_console)
    assert not re.search(r'^disk: ', console.text, re.M)
    assert not disks_socket.exists()
    assert 'copied' not in target.request('GET', '/v1/vm/disks/disk0')[1]['disk'] or \
        not target.request('GET', '/v1/vm/disks/disk0')[1]['disk']['copied']
    with capsys.disabled():     # no pause: both sides were compared in it
        print(f' {size >> 20} MiB disk, {allocated(here) >> 10} KiB in it: {copied >> 10} KiB copied ', end='')


def test_a_disk_that_cannot_go_along_stays_and_so_does_the_vm(world):
    here, there = world.folder / 'here', world.folder / 'there'
    disk_make(here, 8 << 20, seed=6)
    there.touch()
    os.truncate(there, 8 << 20)
    vm = world.boot('disk=7 quiet', disks=[{'path': str(here)}])
    console = vm.console()
    until(lambda: wrote(vm) > 5, vm)
    start(vm, world.folder / 'nobody', disks=[{'id': 'disk0'}], disks_to=f'unix:{world.folder / "nobody"}')
    until(lambda: migration(vm)['phase'] == 'failed', vm)
    assert 'disk disk0' in migration(vm)['failure']
    assert vm.request('POST', '/v1/vm/migration', {'to': 'unix:/x', 'disks': [{'id': 'disk0'}]})[0] == 400
    target = world.incoming('--incoming-disks', f'unix:{world.folder / "disks"}', disks=[{'path': str(there), 'copied': True}])
    start(vm, target.socket, disks=[{'id': 'disk0'}], disks_to=f'unix:{world.folder / "disks"}', ask_owner=True)
    until(lambda: migration(vm)['phase'] == 'ready', vm, target)
    decide(vm, 'here')                                       # and at the last moment
    until(lambda: migration(vm)['phase'] == 'failed', vm)
    assert target.process.wait(LIMIT_S) == 5
    before = wrote(vm)
    until(lambda: wrote(vm) > before + 20, vm)
    disk_verified(console)


def test_disks_that_take_too_long_stay_and_so_does_the_vm(world):
    """The time that a migration may take counts from its order, disks and memory together."""
    here, there = world.folder / 'here', world.folder / 'there'
    disk_make(here, 24 << 20, seed=7)
    there.touch()
    os.truncate(there, 24 << 20)
    vm = world.boot('disk=7 quiet', disks=[{'path': str(here)}])
    console = vm.console()
    until(lambda: wrote(vm) > 5, vm)
    target = world.incoming('--incoming-disks', f'unix:{world.folder / "disks"}', disks=[{'path': str(there), 'copied': True}])
    start(vm, target.socket, disks=[{'id': 'disk0'}], disks_to=f'unix:{world.folder / "disks"}', bytes_per_second=256 << 10,
          timeout_ms=500)
    until(lambda: migration(vm)['phase'] == 'failed', vm)
    assert 'disks were not copied within 500 ms' in migration(vm)['failure'], migration(vm)
    assert state(vm) == 'running' and migration(target)['phase'] == 'connect'
    before = wrote(vm)
    until(lambda: wrote(vm) > before + 20, vm)
    disk_verified(console)


def moved(vm):
    return vm.request('GET', '/v1/vm/disks/disk0')[1]


def test_a_disk_moves_to_another_file_while_it_is_written(world):
    here, there = world.folder / 'here', world.folder / 'there'
    disk_make(here, 30 << 20, seed=8)
    vm = world.boot('disk=9 quiet', disks=[{'path': str(here)}])
    console = vm.console()
    until(lambda: wrote(vm) > 20, vm)
    there.touch()
    os.truncate(there, 20 << 20)
    status, answer = vm.request('POST', '/v1/vm/disks/disk0/move', {'path': str(there)})
    assert status in (400, 409) and 'same size' in answer['detail'], answer
    os.truncate(there, 30 << 20)
    assert vm.request('DELETE', '/v1/vm/disks/disk0/move')[0] == 409
    status, answer = vm.request('POST', '/v1/vm/disks/disk0/move', {'path': str(there)})
    assert status == 202 and answer['move']['state'] in ('copying', 'level'), answer
    until(lambda: moved(vm)['disk']['path'] == str(there), vm)
    until(lambda: 'disk-moved' in vm.log.read_text(), vm)
    old = here.read_bytes()
    before = wrote(vm)
    until(lambda: wrote(vm) > before + 20, vm)
    disk_verified(console)
    assert here.read_bytes() == old                          # nobody writes there any more
    vm.move('paused')
    new = there.read_bytes()
    assert new[256 << 10:] == old[256 << 10:] and new != old
    assert allocated(there) <= allocated(here) * 1.2 + (1 << 20)


def test_a_move_that_is_held_ends_as_it_is_told(world):
    """When both files are the same the guest's requests wait, until it is said which of them is the disk; whoever ends meanwhile leaves two."""
    here, there = world.folder / 'here', world.folder / 'there'
    disk_make(here, 12 << 20, seed=9)
    vm = world.boot('disk=9 quiet', disks=[{'path': str(here)}])
    console = vm.console()
    until(lambda: wrote(vm) > 20, vm)

    def hold(path, source, **how):
        path.unlink(missing_ok=True)
        path.touch()
        os.truncate(path, 12 << 20)
        assert vm.request('POST', '/v1/vm/disks/disk0/move', {'path': str(path), 'hold': True, **how})[0] == 202
        assert moved(vm)['move']['path'] == str(path)
        until(lambda: moved(vm)['move']['state'] == 'level', vm)
        assert end(path, take=True)[0] == 409
        goes_on()                                           # kept level
        assert moved(vm)['move']['state'] == 'level'
        assert end(path, hold=True)[0] == end(path, hold=True)[0] == 200 and moved(vm)['move']['state'] == 'held'
        assert moved(vm)['disk']['path'] == str(source) and source.read_bytes() == path.read_bytes()

    def end(path, **words):
        return vm.request('PUT', '/v1/vm/disks/disk0/move', {'path': str(path), **words})

    def goes_on():
        before = wrote(vm)
        until(lambda: wrote(vm) > before + 20, vm)

    hold(there, here)
    assert vm.request('POST', '/v1/vm/disks/disk0/move', {'path': str(there)})[0] == 409
    vm.move('paused')                                       # nor does it hang by it
    vm.move('running')
    assert moved(vm)['move']['state'] == 'held' and here.read_bytes() == there.read_bytes()
    assert end(here, take=True)[0] == end(here)[0] == 409    # another move's end
    assert end(there)[0] == 200
    goes_on()
    assert moved(vm)['move']['state'] == 'failed' and here.read_bytes() != there.read_bytes()
    hold(there, here, shared=True)
    old = here.read_bytes()
    assert end(there, take=True)[0] == 200
    assert moved(vm)['disk']['path'] == str(there) and moved(vm)['disk']['shared']  # as migrations have to know
    goes_on()
    disk_verified(console)
    assert here.read_bytes() == old
    assert end(there, take=True)[0] == 409
    hold(here, there)
    vm.process.kill()
    vm.process.wait(LIMIT_S)
    assert here.read_bytes() == there.read_bytes()


# ---- on one host: memory and taps are handed over, nothing is copied

class HandsRelay(Relay):
    """The same with the descriptors that come first."""

    def copy(self, from_, to, pieces):
        if pieces == self.sections:
            data, rights, _, _ = socket.recv_fds(from_, 16, 128)
            assert data[:8] == b'ROVRHAND' and len(data) == 16, data
            socket.send_fds(to, [data], rights)
            for fd in rights:
                os.close(fd)
        super().copy(from_, to, pieces)


def boot_shared(world, cmdline, seed):
    """A VM that counts, with memory that can be handed over; its console; its disks."""
    disk = world.folder / 'disk'
    disk_make(disk, 8 << 20, seed=seed)
    disks = [{'path': str(disk)}]
    vm = world.boot(cmdline, memory_shared=True, disks=disks)
    console = vm.console()
    console.wait(r'^tick 2$')
    return vm, console, disks


def handed_over(world, **config):
    target = world.incoming('--handed-over', memory_shared=True, **config)
    return target, target.console()


@pytest.mark.parametrize('turns', [4, pytest.param(40, marks=pytest.mark.slow)])
def test_another_vmm_of_this_host_is_handed_the_memory(world, capsys, turns):
    vm, console, disks = boot_shared(world, 'dirty=16 disk=7', seed=11)
    texts, pauses = [], []
    for turn in range(turns):
        target, new_console = handed_over(world, disks=disks, memory_pages='4k' if turn % 2 else 'auto')
        start(vm, target.socket, hand_over=True, ask_owner=turn % 3 == 2)
        if turn % 3 == 2:
            decide(vm, 'there')
        texts.append(drain(console))
        assert vm.process.wait(LIMIT_S) == MIGRATED, vm.log.read_text()
        found = re.search(r'bytes=(\d+) pause_us=(\d+)', vm.log.read_text())
        assert int(found[1]) < 1 << 20                       # of 16 MiB that are written all the time
        pauses.append(int(found[2]) / 1000)
        vm, console = target, new_console
        console.wait(r'^tick \d+$')
    before = wrote(vm)
    until(lambda: wrote(vm) > before + 5, vm)
    texts.append(console.text)
    assert not re.search(r'^disk: ', ''.join(texts), re.M)
    seen = counted_on(texts)
    assert seen[0] == 1
    target = world.incoming(disks=disks)                     # memory that was handed over can be copied as any other
    new_console = target.console()
    start(vm, target.socket, verify=True)
    texts[-1] = drain(console)
    assert vm.process.wait(LIMIT_S) == MIGRATED, vm.log.read_text()
    new_console.wait(r'^tick \d+$')
    counted_on([*texts, new_console.text])
    with capsys.disabled():
        print(f' pauses of {turns} hand-overs: median {statistics.median(pauses):.1f} ms, most {max(pauses):.1f} ms ', end='')


@pytest.mark.slow
def test_memory_that_is_its_vmms_own_is_not_handed_over(world):
    vm = world.boot('dirty=4')
    console = vm.console()
    console.wait(r'^tick 1$')
    target, _ = handed_over(world)
    start(vm, target.socket, hand_over=True)
    until(lambda: migration(vm)['phase'] == 'failed', vm)
    assert 'memory_shared must be set' in migration(vm)['failure'], migration(vm)
    assert target.process.wait(LIMIT_S) == 5
    target = world.incoming()                                # one that expects to be sent it, and one that is not asked to
    shared = world.incoming('--handed-over', memory_shared=True)
    start(vm, shared.socket)
    until(lambda: migration(vm)['phase'] == 'failed', vm)
    assert 'hand_over' in migration(vm)['failure'] and shared.process.wait(LIMIT_S) == 5, migration(vm)
    console.wait_past(console.last_tick() + 1)
    new_console = target.console()
    start(vm, target.socket, verify=True)
    texts = [drain(console)]
    assert vm.process.wait(LIMIT_S) == MIGRATED
    new_console.wait(r'^tick \d+$')
    counted_on([*texts, new_console.text])


@pytest.mark.parametrize(('step', 'end'), [('go', 'is cut off')] + [
    pytest.param(step, end, marks=pytest.mark.slow) for step in ('open', 'check', 'final', 'ready', 'go') for end in ('dies', 'hangs', 'is cut off')
    if (step, end) != ('go', 'is cut off')])
def test_a_vmm_that_is_handed_a_vm_and_ends_leaves_it_where_it_was(world, step, end):
    """Up to the word that it is about to run, nobody's sudden end but the first one's own stops the guest."""
    vm, console, disks = boot_shared(world, 'dirty=8 disk=3', seed=12)
    target, _ = handed_over(world, disks=disks)
    relay = HandsRelay(world.folder / 'relay', target.socket, step)
    start(vm, relay.path, hand_over=True, stop_silence_ms=1000, silence_ms=1000)
    assert relay.reached.wait(LIMIT_S), vm.log.read_text()
    if end == 'hangs':
        os.kill(target.process.pid, 19)
        relay.pass_on()
        until(lambda: migration(vm)['phase'] == 'failed', vm)
        relay.cut()
        os.kill(target.process.pid, 18)                      # it finds GO, and nobody who takes its word
    elif end == 'is cut off':
        relay.cut()                                          # its VM will not come any more, whoever asks it
    else:
        target.process.kill()
    assert target.process.wait(LIMIT_S) == (-9 if end == 'dies' else 5), target.log.read_text()
    relay.cut()
    until(lambda: migration(vm)['phase'] == 'failed', vm)
    assert state(vm) == 'running' and 'holds' not in vm.request('GET', '/v1/vm')[1]
    console.wait_past(console.last_tick() + 2)
    target, new_console = handed_over(world, disks=disks)
    start(vm, target.socket, hand_over=True)
    texts = [drain(console)]
    assert vm.process.wait(LIMIT_S) == MIGRATED, vm.log.read_text()
    new_console.wait(r'^tick \d+$')
    assert not re.search(r'^disk: ', ''.join(texts), re.M)
    counted_on([*texts, new_console.text])
