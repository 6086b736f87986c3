#!/usr/bin/python3
"""drover-vmm beside QEMU on one host: tests/bench/bench_vmm runs this inside a lab host; any host with KVM does as well.

usage: bench_vmm_host.py --guest DIRECTORY --bench PROGRAM [--layers PROGRAM] [--work DIRECTORY] [--vmm PATH]
                         [--qemu PATH] [--rounds N] [--minutes N] [--only A,B] [--steps A,B]

The stock guest (vmlinux, initrd) boots under each in turn, N rounds or as many as fit into the minutes (one at least),
and measures itself (guest_bench.c). Every hypervisor gets the same kernel, command line, memory, one raw disk past the
page cache, one tap, one source of entropy; QEMU's disk has a thread of its own. What else the machine does only makes
figures worse, so the best round of each figure is printed, with ratios that are above 1.00 where drover-vmm is the better
one; where best and median rounds disagree, that is said. What has no figure in any round is named, with what was seen
instead. The last line has every round as JSON, after the word JSON. Exit status 1 when a promise is missed or something
could not be measured."""
import argparse
import json
import os
import pathlib
import re
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

MEMORY_MIB = 256
DISK_MIB = 64
BOOT_LIMIT_S = 240
STEP_LIMIT_S = 180
HOST_ADDRESS, GUEST_ADDRESS = '10.9.9.1', '10.9.9.2'
BRIDGE, TAP, MAC = 'brbench', 'tapbench', '52:54:00:0d:00:09'
CMDLINE = f'console=ttyS0 quiet mitigations=off tsc=reliable iomem=relaxed drover.quiet drover.ip={GUEST_ADDRESS}/24'
PROMISED_MEMORY_KIB = 8 << 10   # docs/vmm-judges.md
STEPS = {'exits': 'exits', 'memory': 'memory', 'disk': 'disk /dev/vda', 'net': f'net {HOST_ADDRESS}'}
LAYERS, LAYERS_MIB = 64, 32
DEEP_ROWS = [('random_4k_16', 'random read, 4 KiB, 16 at once'), ('random_4k_1', 'random read, 4 KiB, one at once'),
             ('random_64k_16', 'random read, 64 KiB, 16 at once'), ('sequential_64k', 'sequential read, 64 KiB'),
             ('sequential_1m', 'sequential read, 1 MiB')]
NOISE = 0.95                    # a ratio down to this counts as equal

# name, unit, lower is better, what it is
ROWS = [
    ('init', 'ms', True, "time to init: exec to the guest's first word"),
    ('vmm_memory', 'KiB', True, "memory beyond the guest's, it is idle"),
    ('vmm_memory_after', 'KiB', True, "memory beyond the guest's, after all work"),
    ('exit_cpuid', 'ns', True, 'exit: CPUID (ends in KVM)'),
    ('exit_port_unclaimed', 'ns', True, 'exit: read of a port that nobody claims'),
    ('exit_port_serial', 'ns', True, 'exit: read of a register of the serial port'),
    ('exit_mmio', 'ns', True, 'exit: read of a virtio register in memory'),
    ('memory_first_touch_all', 'ns', True, 'memory: first touch of a page, mean'),
    ('memory_first_touch', 'ns', True, 'memory: first touch of a page, the best of them'),
    ('memory_random', 'ns', True, 'memory: random accesses to 64 MiB'),
    ('disk_read_sequential', 'KiB/s', False, 'disk: sequential read, 256 KiB'),
    ('disk_write_sequential', 'KiB/s', False, 'disk: sequential write, 256 KiB'),
    ('disk_read_random_4k', '/s', False, 'disk: random read, 4 KiB, one at once'),
    ('disk_read_random_4k_8', '/s', False, 'disk: random read, 4 KiB, eight at once'),
    ('disk_write_random_4k', '/s', False, 'disk: random write, 4 KiB, one at once'),
    ('disk_write_random_4k_8', '/s', False, 'disk: random write, 4 KiB, eight at once'),
    ('net_send', 'KiB/s', False, 'network: stream from the guest'),
    ('net_receive', 'KiB/s', False, 'network: stream to the guest'),
    ('net_round_trips', '/s', False, 'network: round trips of one byte'),
    ('snapshot', 'ms', True, 'snapshot to a file, synced'),
    ('restore', 'ms', True, 'restore: exec to an answer on the console'),
]


class Missing(Exception):
    """Something that was to be measured did not come to be."""


def run(*words):
    return subprocess.run([str(word) for word in words], stdout=subprocess.DEVNULL, check=True)


class Guest:
    """A hypervisor's process with its console on standard input and output."""
    name = ''

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.text, self.process = '', None
        self.reasons = {}       # step: why it has not all its figures
        self.disk = folder / 'disk.raw'
        self.kernel, self.initrd = folder / 'vmlinux', folder / 'initrd'
        self.snapshot_path = folder / 'snapshot'
        self.log = folder / 'log'

    def command(self, restore=False):
        raise NotImplementedError

    def start(self, restore=False):
        self.text = ''
        with self.log.open('w') as log:
            self.process = subprocess.Popen([str(word) for word in self.command(restore)], stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE, stderr=log)

    def read(self, seconds):
        """What the console says within so many seconds is added to the text; false when it was nothing."""
        if not select.select([self.process.stdout], [], [], max(seconds, 0))[0]:
            return False
        data = os.read(self.process.stdout.fileno(), 65536)
        if not data:
            raise Missing(f'{self.name} ended: {self.text[-400:]!r} {self.log.read_text()[-400:]!r}')
        self.text += data.decode(errors='replace').replace('\r', '')
        return True

    def wait(self, pattern, seconds, start=0):
        """The match of @pattern past @start in the console's text."""
        end = time.monotonic() + seconds
        while not (found := re.compile(pattern, re.M).search(self.text, start)):
            if time.monotonic() > end:
                raise Missing(f'{self.name}: no {pattern!r} within {seconds} s: {self.text[-400:]!r}')
            self.read(end - time.monotonic())
        return found

    def type_in(self, line):
        try:
            self.process.stdin.write(line.encode() + b'\n')
            self.process.stdin.flush()
        except OSError as problem:
            raise Missing(f'{self.name} takes no input: {problem} {self.log.read_text()[-400:]!r}') from None

    def memory_beyond_kib(self):
        """Resident memory of every mapping but those as large as the guest's RAM."""
        total, skip = 0, False
        for line in pathlib.Path(f'/proc/{self.process.pid}/smaps').read_text().splitlines():
            head = re.match(r'([0-9a-f]+)-([0-9a-f]+) ', line)
            if head:
                skip = int(head[2], 16) - int(head[1], 16) >= MEMORY_MIB << 20
            elif line.startswith('Rss:') and not skip:
                total += int(line.split()[1])
        return total

    def bench(self, step, words):
        start = len(self.text)
        self.type_in(f'sh /guest_bench {words}')
        status = self.wait(r'sh status=(\d+)', STEP_LIMIT_S, start)[1]
        text = self.text[start:]
        if status != '0' or 'bench-failed' in text:
            print(f'# {self.name}: {words}: {text!r}', flush=True)
            said = [line for line in text.splitlines() if not line.startswith(('bench ', 'drover-guest:')) and line.strip()]
            self.reasons[step] = f'status {status}: ' + '; '.join(said[-2:])
        return {name: int(value) for name, value in re.findall(r'^bench (\w+) (\d+) ', text, re.M)}

    def alive(self):
        """Until the guest answers; it is asked again and again until somebody hears it."""
        end = time.monotonic() + BOOT_LIMIT_S
        while not re.search(r'^alive', self.text, re.M):
            if time.monotonic() > end:
                raise Missing(f'{self.name}: silent after its restore')
            self.type_in('sh echo alive')
            self.read(0.5)

    def save(self):
        """The machine into snapshot_path, lasting; its process ends after that. Milliseconds of the first part."""
        raise NotImplementedError

    def restored(self):
        """The process has been started with a snapshot: whatever else it wants to be told."""

    def end(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None


class Drover(Guest):
    name = 'drover-vmm'

    def __init__(self, options, folder):
        super().__init__(options, folder)
        self.control = folder / 'control'

    def command(self, restore=False):
        self.control.unlink(missing_ok=True)
        common = ['--control', self.control, '--console', 'stdio']
        if restore:
            return [self.options.vmm, '--restore', self.snapshot_path, *common]
        config = {'name': 'bench', 'vcpus': 1, 'memory_bytes': MEMORY_MIB << 20, 'kernel': str(self.kernel),
                  'initrd': str(self.initrd), 'cmdline': CMDLINE, 'disks': [{'path': str(self.disk), 'direct': True}],
                  'nics': [{'tap': TAP, 'mac': MAC}]}
        (self.folder / 'vm.json').write_text(json.dumps(config))
        return [self.options.vmm, '--config', self.folder / 'vm.json', *common]

    def save(self):
        body = json.dumps({'path': str(self.snapshot_path), 'then': 'stop'}).encode()
        start = time.monotonic()
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(STEP_LIMIT_S)
            s.connect(str(self.control))
            s.sendall(b'POST /v1/vm/snapshot HTTP/1.1\r\nHost: vm\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s' %
                      (len(body), body))
            answer = b''
            while piece := s.recv(65536):
                answer += piece
        took = time.monotonic() - start
        if not answer.startswith(b'HTTP/1.1 200'):
            raise Missing(f'{self.name}: no snapshot: {answer!r}')
        self.process.wait(STEP_LIMIT_S)
        return took * 1000


class DroverLayers(Drover):
    """It has a disk of one layer and one of many instead of a raw one."""
    name = 'drover-vmm with layers'
    direct = False

    def command(self, restore=False):
        words = super().command(restore)
        path = self.folder / 'vm.json'
        config = json.loads(path.read_text())
        config['disks'] = [{'path': str(self.folder / f'{name}.disk'), 'format': 'layers', 'direct': self.direct}
                           for name in ('one', 'many')]
        path.write_text(json.dumps(config))
        return words


class Qemu(Guest):
    machine = ''
    extra = ()

    def __init__(self, options, folder):
        super().__init__(options, folder)
        self.monitor = folder / 'monitor'

    def command(self, restore=False):
        self.monitor.unlink(missing_ok=True)
        words = [self.options.qemu, '-machine', f'{self.machine},accel=kvm', *self.extra, '-cpu', 'host', '-smp', 1, '-m', MEMORY_MIB,
                 '-nodefaults', '-no-user-config', '-display', 'none', '-serial', 'stdio',
                 '-kernel', self.kernel, '-initrd', self.initrd, '-append', CMDLINE,
                 '-object', 'iothread,id=io', '-drive', f'if=none,id=d,file={self.disk},format=raw,cache=none,aio=native',
                 '-device', 'virtio-blk-pci,drive=d,iothread=io,disable-legacy=on',
                 '-netdev', f'tap,id=n,ifname={TAP},script=no,downscript=no,vhost=off',
                 '-device', f'virtio-net-pci,netdev=n,mac={MAC},disable-legacy=on,romfile=',
                 '-device', 'virtio-rng-pci,disable-legacy=on', '-qmp', f'unix:{self.monitor},server=on,wait=off']
        return words + (['-incoming', f'exec:cat {self.snapshot_path}'] if restore else [])

    def qmp(self, *commands):
        """The answer to the last of them."""
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(STEP_LIMIT_S)
            s.connect(str(self.monitor))
            with s.makefile('rw') as stream:
                stream.readline()
                for command in ({'execute': 'qmp_capabilities'}, *commands):
                    stream.write(json.dumps(command) + '\n')
                    stream.flush()
                    while 'event' in (answer := json.loads(stream.readline())):
                        pass
                    if 'error' in answer:
                        raise Missing(f'{self.name}: {answer}')
        return answer['return']

    def qmp_until(self, command, done, states):
        """Ask until the state is @done; anything but @states on the way is an end."""
        while (state := self.qmp({'execute': command}).get('status')) != done:
            if state not in states:
                raise Missing(f'{self.name}: {command}: {state}')
            time.sleep(0.005)

    def save(self):
        start = time.monotonic()
        self.qmp({'execute': 'stop'}, {'execute': 'migrate-set-parameters', 'arguments': {'max-bandwidth': 1 << 40}},
                 {'execute': 'migrate', 'arguments': {'uri': f'exec:cat > {self.snapshot_path}'}})
        self.qmp_until('query-migrate', 'completed', ('setup', 'active', 'device'))
        with self.snapshot_path.open('rb') as file:     # ours lasts when it is answered
            os.fsync(file.fileno())
        took = time.monotonic() - start
        self.end()
        return took * 1000

    def restored(self):
        end = time.monotonic() + STEP_LIMIT_S
        while not self.monitor.exists() and time.monotonic() < end and self.process.poll() is None:
            time.sleep(0.005)
        try:
            self.qmp_until('query-status', 'paused', ('inmigrate',))
            self.qmp({'execute': 'cont'})
        except (OSError, ValueError) as problem:
            raise Missing(f'{self.name}: {problem} {self.log.read_text()[-400:]!r}') from None


class QemuPc(Qemu):
    name = 'qemu pc'
    machine = 'pc'
    # Without its help for 32-bit Windows, for which QEMU writes the guest's registers back as KVM has told them, the task
    # register as busy. QEMU's own emulated processor, which a lab host is, takes that for damaged and then refuses every
    # port to programs of the guest: no exit through a port could be measured.
    extra = ('-global', 'kvm-apic.vapic=off')


class QemuMicrovm(Qemu):
    name = 'qemu microvm'
    machine = 'microvm,pcie=on,rtc=on,acpi=on'


def measure(guest, values):
    """One life of the guest; what was measured before something went wrong stays in @values."""
    try:
        start = time.monotonic()
        guest.start()
        guest.wait(r'^drover-guest: hello', BOOT_LIMIT_S)
        values['init'] = (time.monotonic() - start) * 1000
        guest.wait(r'^drover-guest: ready', BOOT_LIMIT_S)
        values['vmm_memory'] = guest.memory_beyond_kib()
        for step, words in STEPS.items():
            if not guest.options.steps or step in guest.options.steps:
                values.update(guest.bench(step, words))
        values['vmm_memory_after'] = guest.memory_beyond_kib()
        if guest.options.steps and 'snapshot' not in guest.options.steps:
            return
        values['snapshot'] = guest.save()
        guest.end()
        start = time.monotonic()
        guest.start(restore=True)
        guest.restored()
        guest.alive()
        values['restore'] = (time.monotonic() - start) * 1000
    except (Missing, OSError, subprocess.TimeoutExpired) as problem:
        print(f'# {guest.name}: {problem}', flush=True)
        guest.reasons[''] = str(problem)
    finally:
        guest.end()


def network_up():
    network_down()
    for words in (f'ip link add {BRIDGE} type bridge', f'ip addr add {HOST_ADDRESS}/24 dev {BRIDGE}',
                  f'ip link set {BRIDGE} up', f'ip tuntap add {TAP} mode tap vnet_hdr', f'ip link set {TAP} master {BRIDGE} up'):
        run(*words.split())


def network_down():
    for name in (TAP, BRIDGE):
        subprocess.run(['ip', 'link', 'del', name], stderr=subprocess.DEVNULL, check=False)


def cpio_entry(name, data, mode, number):
    """One member of a newc archive (kernel: Documentation/driver-api/early-userspace/buffer-format.rst)."""
    name = name.encode() + b'\0'
    head = '070701' + ''.join(f'{value:08x}' for value in
                              (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0))
    out = head.encode() + name
    out += bytes(-len(out) % 4) + data
    return out + bytes(-len(out) % 4)


def prepare(options, folder):
    """Kernel, initrd with the program in a second archive, disk. What will be run is in the page cache afterwards."""
    shutil.copy(options.guest / 'vmlinux', folder / 'vmlinux')
    initrd = (options.guest / 'initrd').read_bytes()
    initrd += bytes(-len(initrd) % 512)
    initrd += cpio_entry('guest_bench', options.bench.read_bytes(), 0o100755, 1) + cpio_entry('TRAILER!!!', b'', 0, 0)
    (folder / 'initrd').write_bytes(initrd)
    with (folder / 'disk.raw').open('wb') as disk:
        for _ in range(DISK_MIB):
            disk.write(b'\x5a' * (1 << 20))
        os.fsync(disk.fileno())
    run(options.vmm, '--help')
    run(options.qemu, '--version')


def rounds(options, kinds, folder, figures, reasons):
    start = time.monotonic()
    for number in range(options.rounds):
        spent = time.monotonic() - start
        if number and spent + spent / number > options.minutes * 60:
            print(f'# {number} rounds: no time for more', flush=True)
            return
        for kind in kinds[number % len(kinds):] + kinds[:number % len(kinds)]:     # nobody is always the first
            values = {}
            guest = kind(options, folder)
            measure(guest, values)
            reasons[kind.name].update(guest.reasons)
            print(f'# round {number + 1} {kind.name}: ' + ' '.join(f'{k}={v:.0f}' for k, v in values.items()), flush=True)
            for name, value in values.items():
                figures[kind.name].setdefault(name, []).append(value)


def deep(options, folder):
    """Reads of many layers beside those of one. A processor that is emulated is slow where a real one has to wait for memory, and
    the other way round, so this says how many calls a read takes rather than what it costs: no verdict."""
    for name, count in ('one', 1), ('many', LAYERS):
        run(options.layers, folder, name, LAYERS_MIB, count)
    for direct in False, True:
        guest = DroverLayers(options, folder)
        guest.direct = direct
        values = {}
        try:
            guest.start()
            guest.wait(r'^drover-guest: ready', BOOT_LIMIT_S)
            values = guest.bench('layers', 'layers /dev/vda /dev/vdb')
        except Missing as problem:
            print(f'# {guest.name}: {problem}', flush=True)
        finally:
            guest.end()
        for row, words in DEEP_ROWS:
            one, many = values.get(f'layers_one_{row}', 0), values.get(f'layers_many_{row}', 0)
            ratio = many / one if one else 0
            print(f'{"past the page cache" if direct else "page cache"}: {words:<34} 1 layer {one:>8} KiB/s   '
                  f'{LAYERS} layers {many:>8} KiB/s {ratio:>6.0%}', flush=True)


def ratios(figures, names, row, lower, choose):
    """(the figure of each, ours to each of the others)."""
    values = [choose(figures[name][row]) if figures[name].get(row) else None for name in names]
    ours = values[0]
    return values, [(other / ours if lower else ours / other) if ours and other else None for other in values[1:]]


def table(figures, kinds):
    """Print it; the number of ratios that are worse than equal."""
    names = [kind.name for kind in kinds]
    count = max((len(values) for kind in figures.values() for values in kind.values()), default=0)
    print(f'{f"best of {count} rounds":<52}' + ''.join(f'{name:>14}' for name in names) +
          ''.join(f'{"/ " + name.split()[-1]:>11}' for name in names[1:]))
    worse = 0
    for row, unit, lower, words in ROWS:
        values, best = ratios(figures, names, row, lower, min if lower else max)
        middle = ratios(figures, names, row, lower, statistics.median)[1]
        line = f'{words + ", " + unit:<52}' + ''.join(f'{"-" if value is None else round(value):>14}' for value in values)
        for ratio, median in zip(best, middle):
            if ratio is None:
                line += f'{"-":>10} '
                continue
            below = (ratio < NOISE) + (median < NOISE)
            worse += below == 2
            line += f'{ratio:>10.2f}' + ' ?!'[below]
        print(line)
    print(f'ratios above 1.00: drover-vmm is the better one; {worse} below {NOISE} by the best and by the median round (!); '
          '? by one of the two')
    return worse


def reason(reasons, row):
    """Why @row has no figure: what its own step said, or what ended the guest's life."""
    step = row.split('_')[0] + ('s' if row.startswith('exit_') else '')
    return reasons.get(step) or reasons.get('') or 'nobody said why'


def judge(figures, reasons, worse):
    """Promises and completeness; the exit status."""
    ours = figures.get(Drover.name, {})
    missing = [f'{name}: {row} ({reason(reasons[name], row)})'
               for name, rows in figures.items() for row, *_ in ROWS if not any(rows.get(row, []))]
    for line in missing:
        print(f'NOT MEASURED {line}')
    memory = max((statistics.median(ours[row]) for row in ('vmm_memory', 'vmm_memory_after') if row in ours), default=None)
    kept = memory is not None and memory <= PROMISED_MEMORY_KIB
    if memory is not None:
        print(f'memory beyond the guest\'s: {memory:.0f} KiB, promised <= {PROMISED_MEMORY_KIB}: {"ok" if kept else "MISSED"}')
    print('JSON ' + json.dumps({'figures': figures, 'worse': worse, 'missing': missing, 'memory_promise_kept': kept}))
    return 0 if kept and not missing else 1


def options_parse():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--guest', type=pathlib.Path, required=True)
    parser.add_argument('--bench', type=pathlib.Path, required=True)
    parser.add_argument('--layers', type=pathlib.Path, help='bench_layers_make: disks of many layers are measured, too')
    parser.add_argument('--work', type=pathlib.Path, default='/var/tmp', help='for the disk and the snapshots')
    parser.add_argument('--vmm', default='drover-vmm')
    parser.add_argument('--qemu', default='qemu-system-x86_64')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--minutes', type=float, default=15, help='no round is begun that would end later')
    parser.add_argument('--only', help='these alone, e.g. drover,pc')
    parser.add_argument('--steps', help='these alone, of exits,memory,disk,net,snapshot,layers: for a closer look, no verdict')
    return parser.parse_args()


def main():
    options = options_parse()
    kinds = [Drover, QemuMicrovm, QemuPc]
    if options.only:
        kinds = [kind for kind in kinds if any(word in kind.name for word in options.only.split(','))]
    figures = {kind.name: {} for kind in kinds}
    reasons = {kind.name: {} for kind in kinds}
    server = None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = pathlib.Path(tempfile.mkdtemp(prefix='bench-vmm-', dir=options.work))
    try:
        prepare(options, folder)
        network_up()
        server = subprocess.Popen([options.bench, 'serve', '7200'])
        if options.layers and (not options.steps or 'layers' in options.steps):
            deep(options, folder)
        if options.steps != 'layers':
            rounds(options, kinds, folder, figures, reasons)
    finally:
        if server:
            server.kill()
            server.wait()
        network_down()
        shutil.rmtree(folder, ignore_errors=True)
    if options.steps == 'layers':
        return 0
    worse = table(figures, kinds)
    return 0 if options.steps else judge(figures, reasons, worse)


if __name__ == '__main__':
    sys.exit(main())
