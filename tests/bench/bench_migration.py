#!/usr/bin/python3
"""Live migration of drover-vmm beside QEMU's on this machine: the same guest, the same memory, the same link.

    make bench-migration            RUNS=30 each row; RUNS=2 ROWS=idle,100 for a look; a table, and build/bench/migration.json

The test guest (tests/guest) runs under KVM in both, in QEMU as `microvm` with PVH. It fills DIRTY MiB with what cannot be
compressed and goes on to write whole pages at a share of the link's rate, in order or scattered; it checks each page that it
writes, and says a dot each millisecond. When all has been measured it is asked to look at each word of it. Both migrate through
the same relay, which has a TCP connection in a network namespace of its own whose loopback is limited by tbf (LINK Mbit/s).

  pause   the longest silence of the guest about the hand-over, by one clock outside of both
  dark    the longest time about it without an answer from the guest's network interface, which is asked each millisecond from
          the bridge that both sides have a tap in: the pause, and until the network knows where the guest is
  said    the pause as the hypervisor itself reports it
  total   from the command to the source's word that it is done
  sent    bytes on the wire to the target, over the guest's memory that holds anything (SET MiB)

Runs of the two take turns, so that what else the machine does meets both. Exit status 1 where memory was not what it should be,
or a run of ours did not come to its end. Where ours is worse than QEMU's best way in the median of pause or total by more than
the noise (a tenth and 2 ms), the row says so."""
import argparse
import json
import os
import pathlib
import re
import select
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
VMM = pathlib.Path(os.environ.get('BUILD', ROOT / 'build' / 'debug')) / 'bin' / 'drover-vmm'
GUEST = ROOT / 'build' / 'guest' / 'ticker.elf'
QEMU = os.environ.get('QEMU', 'qemu-system-x86_64')
QEMU_CPU = 'host,-arch-capabilities'    # with it QEMU 7.2 ends on a KVM that takes no MSR 0x10a
MEMORY_MIB = 256
DIRTY_MIB = int(os.environ.get('DIRTY', '64'))
LINK_MBIT = int(os.environ.get('LINK', '400'))
LINK_BYTES_PER_S = LINK_MBIT * 125000
DOWNTIME_MS = 100
LIMIT_S = int(os.environ.get('LIMIT', '60'))    # of one migration
HOPELESS_RUNS = 3   # a way of QEMU's that did not come to an end in as many runs is left: each costs LIMIT_S
HZ = 1000
PORT = 7777
MAC = '02:00:00:00:00:01'
BRIDGE, TAPS = 'br0', {'source': 't0', 'target': 't1'}
ASKED_BEFORE_S = 0.5
ASKED_ON_S = 1.0    # after the target has spoken: for as long its network may not know of it
ECAM = 0xe0000000   # of QEMU's microvm

# name: share of the link's rate, scattered
ROWS = {'idle': (0, False), '25': (25, False), '25r': (25, True), '50': (50, False), '50r': (50, True),
        '100': (100, False), '100r': (100, True)}


class Failed(Exception):
    """This run did not come to its end; the next may."""


def cmdline(row):
    share, scatter = ROWS[row]
    pace = round(LINK_BYTES_PER_S * share / 100 / 4096 / HZ)
    return f'dirty={DIRTY_MIB} pace={pace} hz={HZ} beat quiet answer' + (' scatter' if scatter else '')


# A process of its own: what it measures must not wait for the threads of this one. Asks each millisecond; when its input ends it
# says when the answers came, by the clock that all processes share.
ASKER = r'''
import select, socket, struct, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88b8))
s.bind((sys.argv[1], 0x88b8))
ask = bytes.fromhex(sys.argv[2].replace(':', '')) + s.getsockname()[4] + b'\x88\xb7'
times, number, due, waits = [], 0, time.monotonic(), True
while waits:
    while time.monotonic() < due:
        if select.select([s], [], [], max(0, due - time.monotonic()))[0]:
            s.recv(2048)
            times.append(time.monotonic())
    due += 0.001
    number += 1
    s.send(ask + struct.pack('<8Q', number, *[0] * 7))
    if number % 20 == 0:
        waits = not select.select([sys.stdin], [], [], 0)[0]
sys.stdout.buffer.write(struct.pack(f'{len(times)}d', *times))
'''


class Asker:
    def __init__(self):
        self.process = subprocess.Popen([sys.executable, '-c', ASKER, BRIDGE, MAC], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def end(self):
        """When answers came."""
        data = self.process.communicate()[0]
        return struct.unpack(f'{len(data) // 8}d', data)


def longest_gap_ms(times, at):
    """About @at, when the target spoke first."""
    times = sorted(t for t in times if at - 2 < t < at + ASKED_ON_S) + [at + ASKED_ON_S]
    return max(((b - a) * 1000 for a, b in zip(times, times[1:])), default=float('inf'))


class Relay:
    """Takes connections at a Unix socket and carries them through TCP on the limited loopback to another Unix socket."""

    def __init__(self, path, to, port):
        self.to, self.port, self.bytes = to, port, 0
        self.sockets, self.lock = [], threading.Lock()
        self.near, self.far = socket.socket(socket.AF_UNIX), socket.socket()
        self.near.bind(str(path))
        self.far.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        self.far.bind(('127.0.0.1', port))
        for listener, take in ((self.near, self.take_near), (self.far, self.take_far)):
            listener.listen(16)
            threading.Thread(target=self.accept, args=(listener, take), daemon=True).start()

    def accept(self, listener, take):
        while True:
            try:
                take(listener.accept()[0])
            except OSError:
                return

    def pair(self, a, b, count):
        with self.lock:
            self.sockets += [a, b]
        threading.Thread(target=self.copy, args=(a, b, count), daemon=True).start()
        threading.Thread(target=self.copy, args=(b, a, False), daemon=True).start()

    def take_near(self, s):
        tcp = socket.socket()
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tcp.connect(('127.0.0.1', self.port))
        self.pair(s, tcp, True)

    def take_far(self, tcp):
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        s = socket.socket(socket.AF_UNIX)
        s.connect(str(self.to))
        self.pair(tcp, s, False)

    def copy(self, from_, to, count):
        read_end, write_end = os.pipe()
        try:
            while n := os.splice(from_.fileno(), write_end, 1 << 16):
                if count:
                    self.bytes += n
                while n:
                    n -= os.splice(read_end, to.fileno(), n)
            to.shutdown(socket.SHUT_WR)
        except OSError:
            for s in (from_, to):
                try:
                    s.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        finally:
            os.close(read_end)
            os.close(write_end)

    def close(self):
        for s in [self.near, self.far, *self.sockets]:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            s.close()


class Beats:
    """When what came from the consoles of both sides; one thread, one clock."""

    def __init__(self):
        self.poll, self.lock = select.epoll(), threading.Lock()
        self.sides, self.wake = {}, os.pipe()
        self.poll.register(self.wake[0], select.EPOLLIN)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def add(self, name, s):
        with self.lock:
            self.sides[s.fileno()] = (name, s, [], bytearray())
        self.poll.register(s.fileno(), select.EPOLLIN)

    def run(self):
        while True:
            for fd, _ in self.poll.poll():
                if fd == self.wake[0]:
                    return
                _, s, times, text = self.sides[fd]
                try:
                    data = s.recv(65536)
                except OSError:
                    data = b''
                if not data:
                    self.poll.unregister(fd)
                    continue
                times.append(time.monotonic())
                text += data

    def side(self, name):
        with self.lock:
            return next(side for side in self.sides.values() if side[0] == name)

    def text(self, name):
        return bytes(self.side(name)[3]).decode(errors='replace')

    def say(self, name, words):
        self.side(name)[1].sendall(words)

    def wait(self, name, pattern, what):
        end = time.monotonic() + LIMIT_S
        while not (found := re.search(pattern, self.text(name))):
            if time.monotonic() > end:
                raise Failed(f'{what}: no {pattern!r} in {self.text(name)[-200:]!r}')
            time.sleep(0.002)
        return found

    def target_began(self):
        return self.side('target')[2][0]

    def gap_ms(self):
        """The longest silence of both together, about the time when the target spoke first."""
        return longest_gap_ms(self.side('source')[2] + self.side('target')[2], self.target_began())

    def close(self):
        os.write(self.wake[1], b'x')
        self.thread.join()
        for _, s, _, _ in self.sides.values():
            s.close()
        for fd in self.wake:
            os.close(fd)
        self.poll.close()


def until(condition, what, seconds=LIMIT_S):
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise Failed(f'{what} did not come within {seconds} s')
        time.sleep(0.003)
    return value


class Drover:
    def __init__(self, folder, row, order):
        self.folder, self.order = folder, order
        self.processes = []
        config = {'name': 'bench', 'vcpus': 1, 'memory_bytes': MEMORY_MIB << 20, 'kernel': str(GUEST), 'cmdline': cmdline(row),
                  'rng': False}
        for name, tap in TAPS.items():
            (folder / f'vm-{name}.json').write_text(json.dumps({**config, 'nics': [{'tap': tap, 'mac': MAC}]}))

    def start(self, beats, name):
        control, log = self.folder / f'control-{name}', self.folder / f'log-{name}'
        words = [VMM, '--config', self.folder / f'vm-{name}.json', '--control', control]
        if name == 'target':
            words += ['--incoming', f'unix:{self.folder / "in"}']
        self.processes.append(subprocess.Popen([str(w) for w in words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                               stderr=log.open('w')))
        until(lambda: log_has(log, 'machine-state') or control.exists(), f'drover-vmm {name}')
        s = until(lambda: connected(control), f'drover-vmm {name}')
        s.send(b'GET /v1/vm/console HTTP/1.1\r\nHost: vm\r\nConnection: upgrade\r\nUpgrade: drover-console\r\n\r\n')
        head = b''
        while not head.endswith(b'\r\n\r\n'):
            head += s.recv(1)
        beats.add(name, s)
        if name == 'target':
            until((self.folder / 'in').exists, 'the target')

    def request(self, name, method, path, body):
        data = json.dumps(body).encode() if body else b''
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(LIMIT_S)
            s.connect(str(self.folder / f'control-{name}'))
            s.sendall(b'%s %s HTTP/1.1\r\nHost: vm\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s' %
                      (method.encode(), path.encode(), len(data), data))
            answer = b''
            while piece := s.recv(65536):
                answer += piece
        return json.loads(answer.split(b'\r\n\r\n', 1)[1])

    def migrate(self, path):
        self.request('source', 'POST', '/v1/vm/migration',
                     {'to': f'unix:{path}', 'downtime_ms': DOWNTIME_MS, 'timeout_ms': LIMIT_S * 1000, **self.order})
        try:
            status = self.processes[0].wait(LIMIT_S + 10)
        except subprocess.TimeoutExpired:
            raise Failed(f'drover-vmm: no end: {self.request("source", "GET", "/v1/vm/migration", None)}') from None
        log = (self.folder / 'log-source').read_text()
        found = re.search(r'migrated vm=bench .*?pause_us=(\d+) total_us=(\d+)', log)
        if status != 7 or not found:
            raise Failed(f'drover-vmm ended with {status}: {log[-600:]}')
        rounds = re.search(r'migrated .*?rounds=(\d+)', log)
        return {'said': int(found[1]) / 1000, 'total': int(found[2]) / 1000, 'rounds': int(rounds[1])}

    def end(self):
        for p in self.processes:
            p.kill()
            p.wait()


class Qemu:
    def __init__(self, folder, row, way):
        self.folder, self.row, self.way = folder, row, way
        self.processes, self.monitors = [], {}

    def start(self, beats, name):
        serial, monitor = self.folder / f'serial-{name}', self.folder / f'qmp-{name}'
        words = [QEMU, '-M', 'microvm,isa-serial=on,pcie=on,accel=kvm', '-cpu', QEMU_CPU, '-smp', 1, '-m', MEMORY_MIB, '-nodefaults',
                 '-no-user-config', '-display', 'none', '-bios', '/usr/share/qemu/qboot.rom', '-kernel', GUEST,
                 '-append', f'{cmdline(self.row)} ecam={ECAM}', '-netdev', f'tap,id=n,ifname={TAPS[name]},script=no,downscript=no',
                 '-device', f'virtio-net-pci,netdev=n,mac={MAC},disable-legacy=on,romfile=',
                 '-chardev', f'socket,id=s,path={serial},server=on,wait=on', '-serial', 'chardev:s',
                 '-qmp', f'unix:{monitor},server=on,wait=off']
        if name == 'target':
            words += ['-incoming', f'unix:{self.folder / "in"}' if self.way != 'post-copy' else 'defer']
        log = (self.folder / f'log-{name}').open('w')
        self.processes.append(subprocess.Popen([str(w) for w in words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log))
        beats.add(name, until(lambda: connected(serial), f'qemu {name}'))
        s = until(lambda: connected(monitor), f'qemu {name}')
        self.monitors[name] = s.makefile('rw')
        self.monitors[name].readline()
        self.qmp(name, 'qmp_capabilities')
        if self.way == 'post-copy':
            self.capability(name, 'postcopy-ram')
            if name == 'target':
                self.qmp(name, 'migrate-incoming', uri=f'unix:{self.folder / "in"}')
        if name == 'target':
            until((self.folder / 'in').exists, 'qemu target')

    def qmp(self, name, execute, **arguments):
        stream = self.monitors[name]
        stream.write(json.dumps({'execute': execute, 'arguments': arguments}) + '\n')
        stream.flush()
        while True:
            answer = json.loads(stream.readline())
            if 'error' in answer:
                raise Failed(f'qemu: {execute}: {answer["error"]}')
            if 'return' in answer:
                return answer['return']

    def capability(self, name, capability):
        self.qmp(name, 'migrate-set-capabilities', capabilities=[{'capability': capability, 'state': True}])

    def migrate(self, path):
        self.qmp('source', 'migrate-set-parameters', **{'downtime-limit': DOWNTIME_MS, 'max-bandwidth': 1 << 40})
        if self.way == 'auto-converge':
            self.capability('source', 'auto-converge')
        self.qmp('source', 'migrate', uri=f'unix:{path}')
        end, switched = time.monotonic() + LIMIT_S, False
        while True:
            info = self.qmp('source', 'query-migrate')
            if info.get('status') == 'completed':
                break
            if info.get('status') in ('failed', 'cancelled'):
                raise Failed(f'qemu: {info}')
            if self.way == 'post-copy' and not switched and info.get('ram', {}).get('dirty-sync-count', 0) >= 3:
                switched = True
                self.qmp('source', 'migrate-start-postcopy')
            if time.monotonic() > end:
                raise Failed(f'qemu ({self.way}): no end in {LIMIT_S} s, {info["ram"]["transferred"] >> 20} MiB sent')
            time.sleep(0.003)
        return {'said': info['downtime'], 'total': info['total-time'], 'rounds': info['ram']['dirty-sync-count']}

    def end(self):
        for p in self.processes:
            p.kill()
            p.wait()
        for stream in self.monitors.values():
            stream.close()


def connected(path):
    s = socket.socket(socket.AF_UNIX)
    try:
        s.connect(str(path))
        return s
    except OSError:
        s.close()
        return None


def log_has(path, word):
    return path.exists() and word in path.read_text()


def one(make, row, port):
    """The figures of one migration."""
    with tempfile.TemporaryDirectory(prefix='drover-bench-') as name:
        folder = pathlib.Path(name)
        beats, side = Beats(), make(folder, row)
        subprocess.run(['ip', 'link', 'set', BRIDGE, 'type', 'bridge', 'fdb_flush'], check=True)   # the last one's address
        relay, asker = None, Asker()
        try:
            side.start(beats, 'source')
            beats.wait('source', 'round 1\n', 'the guest')   # all is written; from here on at its pace
            side.start(beats, 'target')
            relay = Relay(folder / 'out', folder / 'in', port)
            figures = side.migrate(folder / 'out')
            beats.wait('target', r'\.', 'the guest after it')
            time.sleep(max(0, beats.target_began() + ASKED_ON_S - time.monotonic()))
            answers = asker.end()
            if not answers or answers[0] > beats.target_began() - ASKED_BEFORE_S:
                raise Failed('nothing answered at the source: what the network does was not measured')
            figures.update(pause=beats.gap_ms(), dark=longest_gap_ms(answers, beats.target_began()),
                           sent=relay.bytes / (DIRTY_MIB << 20))
            beats.say('target', b'look\n')      # stops the guest for a while: all has been measured
            wrong = beats.wait('target', r'memory looked at: (\d+) pages wrong', 'the guest that looks at its memory')
            text = beats.text('source') + beats.text('target')
            figures['corrupt'] = 'corrupt' in text or wrong[1] != '0'
            return figures
        finally:
            side.end()
            asker.process.kill()
            asker.process.wait()
            if relay:
                relay.close()
            beats.close()


def ways(row):
    """name: how to make it."""
    result = {'ours': lambda f, r: Drover(f, r, {})}
    share = ROWS[row][0]
    result['qemu'] = lambda f, r: Qemu(f, r, 'pre-copy')
    if share >= 100:
        result['qemu auto-converge'] = lambda f, r: Qemu(f, r, 'auto-converge')
        result['qemu post-copy'] = lambda f, r: Qemu(f, r, 'post-copy')
        result['ours post-copy'] = lambda f, r: Drover(f, r, {'postcopy': 'fallback', 'throttle_max': 0})
    return result


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]


def verdict(row, results):
    """Medians of ours beside the best of QEMU's ways that came to an end in each of its runs."""
    worse = []
    for what in ('pause', 'dark', 'total'):
        mine = [statistics.median(f[what] for f in figures) for name, figures in results.items()
                if name.startswith('ours') and figures]
        theirs = [statistics.median(f[what] for f in figures) for name, figures in results.items()
                  if name.startswith('qemu') and figures]
        if mine and theirs and min(mine) > min(theirs) * 1.1 + 2:
            worse.append(f'{what} {min(mine):.0f} ms beside {min(theirs):.0f}')
    return f'{row}: worse than QEMU: {", ".join(worse)}' if worse else f'{row}: no worse than QEMU'


def table(row, results, runs):
    for name, figures in results.items():
        if not figures:
            print(f'{row:>5} {name:<20} none of {min(runs, HOPELESS_RUNS) if name.startswith("qemu") else runs} came to an end')
            continue
        pauses, dark, said, total = ([f[key] for f in figures] for key in ('pause', 'dark', 'said', 'total'))
        print(f'{row:>5} {name:<20} {len(figures):>3} {statistics.median(pauses):>8.1f} {percentile(pauses, .99):>8.1f} '
              f'{statistics.median(dark):>8.1f} {percentile(dark, .99):>8.1f} '
              f'{statistics.median(said):>8.1f} {statistics.median(total):>9.0f} {percentile(total, .99):>9.0f} '
              f'{statistics.median(f["sent"] for f in figures):>6.2f} {statistics.median(f["rounds"] for f in figures):>5.0f}', flush=True)


def namespace_enter():
    """A network of its own, which ends with this process, with a loopback that is the link."""
    if os.environ.get('DROVER_BENCH_NETWORK') != 'own':
        os.environ['DROVER_BENCH_NETWORK'] = 'own'
        os.execvp('unshare', ['unshare', '--net', sys.executable, *sys.argv])
    subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)
    subprocess.run(['ip', 'link', 'add', BRIDGE, 'up', 'type', 'bridge', 'mcast_snooping', '0'], check=True)
    for tap in TAPS.values():
        subprocess.run(['ip', 'tuntap', 'add', 'dev', tap, 'mode', 'tap'], check=True)
        subprocess.run(['ip', 'link', 'set', tap, 'master', BRIDGE, 'up'], check=True)
    subprocess.run(['tc', 'qdisc', 'add', 'dev', 'lo', 'root', 'tbf', 'rate', f'{LINK_MBIT}mbit', 'burst', '256k', 'limit', '1m'],
                   check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--runs', type=int, default=int(os.environ.get('RUNS', '30')))
    parser.add_argument('--rows', default=os.environ.get('ROWS', ','.join(ROWS)))
    parser.add_argument('--ways', default=os.environ.get('WAYS', ''), help='only those, by comma')
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))     # so that what was started is ended
    namespace_enter()
    print(f'# {MEMORY_MIB} MiB guest, {DIRTY_MIB} MiB in use, link {LINK_MBIT} Mbit/s, limit of the pause {DOWNTIME_MS} ms, '
          f'{options.runs} runs each, load {os.getloadavg()[0]:.1f}')
    print(f'{"row":>5} {"who":<20} {"n":>3} {"pause":>8} {"p99":>8} {"dark":>8} {"p99":>8} {"said":>8} {"total":>9} {"p99":>9} '
          f'{"sent":>6} {"rounds":>5}')
    bad, everything, verdicts, port = 0, {}, [], PORT
    for row in options.rows.split(','):
        makers = {name: make for name, make in ways(row).items() if not options.ways or name in options.ways.split(',')}
        results, failed = {name: [] for name in makers}, dict.fromkeys(makers, 0)
        for run in range(options.runs):
            for name, make in makers.items():
                if failed[name] == HOPELESS_RUNS and name.startswith('qemu'):
                    continue
                port += 1
                try:
                    figures = one(make, row, port)
                    results[name].append(figures)
                    if figures['corrupt']:
                        print(f'# {row} {name}: memory was not what it should be', flush=True)
                        bad += name.startswith('ours')
                except (Failed, OSError, ValueError) as problem:
                    print(f'# {row} {name}: {problem}', flush=True)
                    bad += name.startswith('ours')
                    failed[name] += 1
                    if failed[name] == HOPELESS_RUNS and name.startswith('qemu'):
                        print(f'# {row} {name}: not tried again', flush=True)
        table(row, results, options.runs)
        everything[row] = results
        verdicts.append(verdict(row, results))
    print('\n'.join(verdicts))
    out = ROOT / 'build' / 'bench' / 'migration.json'
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({'link_mbit': LINK_MBIT, 'dirty_mib': DIRTY_MIB, 'memory_mib': MEMORY_MIB, 'rows': everything}))
    return 1 if bad else 0


if __name__ == '__main__':
    sys.exit(main())
