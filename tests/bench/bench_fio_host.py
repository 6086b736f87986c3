#!/usr/bin/python3
"""fio in a guest of drover-vmm beside one of QEMU on one host: tests/bench/bench_vmm runs this inside a lab host.

usage: bench_fio_host.py --guest DIRECTORY --fio DIRECTORY --qcow2 FILE --layers PROGRAM [--work DIRECTORY] [--vmm PATH]
                         [--qemu PATH] [--rounds N] [--minutes N] [--seconds N]

The stock guest boots under drover-vmm and under QEMU's microvm in turn, N rounds or as many as fit into the minutes (one at
least). Each has its ways of keeping a disk attached at once, and Debian's fio, past the guest's page cache, runs each row on
one disk after the other, three times over. Past the host's page cache: a raw file and layers (one layer, as a new disk has)
beside QEMU's raw file (cache=none, aio=native) and qcow2; through it: layers beside QEMU's raw file (cache=writeback, its
default way of doing that). All disks are full of data, of one size, on one file system. The best run of each counts, for what
else the machine does makes figures only worse; the median's ratio is behind it. The last line has every run as JSON, after the
word JSON. Exit status 1 when something could not be measured."""
import argparse
import json
import pathlib
import shutil
import signal
import statistics
import sys
import tempfile
import time

import bench_vmm_host
from bench_vmm_host import BOOT_LIMIT_S, Drover, Guest, Missing, QemuMicrovm, cpio_entry, network_down, network_up, run

bench_vmm_host.MEMORY_MIB = 384    # fio and its libraries are in the guest's memory twice while it unpacks them
bench_vmm_host.STEP_LIMIT_S = 400
DISK_MIB = 32
TURNS = 3
NOISE = 0.95                        # a ratio down to this counts as equal
ROWS = [('randread', '4k', 'random read, 4 KiB, 16 at once', '/s'), ('randwrite', '4k', 'random write, 4 KiB, 16 at once', '/s'),
        ('read', '1m', 'sequential read, 1 MiB, 16 at once', 'KiB/s'), ('write', '1m', 'sequential write, 1 MiB, 16 at once', 'KiB/s')]
# ours, theirs, whether to be at least as good is promised (docs/vmm-judges.md)
PAIRS = [('raw', 'qemu_raw', True), ('layers', 'qemu_raw', True), ('layers', 'qemu_qcow2', True),
         ('layers_cached', 'qemu_raw_cached', True)]

# In the guest, for each NAME=DEVICE that it is given: one line for each row. fio's terse output has the errors in field 5, reads from field 6 on and writes
# from 47 on: KiB in all, KiB a second, requests a second.
SCRIPT = '''#!/bin/busybox sh
b=/bin/busybox
[ -e /dev/shm ] || $b mkdir -p /dev/shm
for row in %(rows)s; do
    rw=${row%%:*} bs=${row#*:}
    for pair; do
        name=${pair%%=*} device=${pair#*=}
        out=$(/fio/loader --library-path /fio/lib /fio/fio --minimal --thread --name=x --filename="$device" --direct=1 \\
            --ioengine=libaio --iodepth=16 --rw="$rw" --bs="$bs" --runtime=%(seconds)d --time_based --size=%(mib)dm 2>&1) || {
            echo "bench-failed $name $rw: $out"
            exit 1
        }
        case $rw in *write) first=48 ;; *) first=7 ;; esac
        [ "$bs" != 4k ] || first=$((first + 1))
        line=$(echo "$out" | $b grep '^3;')
        [ "$(echo "$line" | $b cut -d';' -f5)" = 0 ] || echo "bench-failed $name $rw: $line"
        echo "bench ${name}_$rw $(echo "$line" | $b cut -d';' -f$first) fio"
    done
done
'''


class DroverFio(Drover):
    """A raw file and layers past the page cache, and layers through it, as a VM's own disk is."""
    devices = {'raw': '/dev/vda', 'layers': '/dev/vdb', 'layers_cached': '/dev/vdc'}

    def command(self, restore=False):
        words = super().command(restore)
        path = self.folder / 'vm.json'
        config = json.loads(path.read_text())
        config['disks'] += [{'path': str(self.folder / f'{name}.disk'), 'format': 'layers', 'direct': direct}
                            for name, direct in (('past', True), ('through', False))]
        path.write_text(json.dumps(config))
        return words


class QemuFio(QemuMicrovm):
    """A raw file and qcow2 past the page cache, and a raw file through it; each has a thread of its own."""
    devices = {'qemu_raw': '/dev/vda', 'qemu_qcow2': '/dev/vdb', 'qemu_raw_cached': '/dev/vdc'}

    def command(self, restore=False):
        words = super().command(restore)
        for name, drive in (('q', f'file={self.folder}/disk.qcow2,format=qcow2,cache=none,aio=native'),
                            ('w', f'file={self.folder}/cached.raw,format=raw,cache=writeback')):
            words += ['-object', f'iothread,id=io{name}', '-drive', f'if=none,id={name},{drive}',
                      '-device', f'virtio-blk-pci,drive={name},iothread=io{name},disable-legacy=on']
        return words


def prepare(options, folder):
    """Kernel, initrd with fio in a second archive, disks."""
    shutil.copy(options.guest / 'vmlinux', folder / 'vmlinux')
    archive, number = b'', 1
    for name in 'fio', 'fio/lib':
        archive += cpio_entry(name, b'', 0o040755, number)
        number += 1
    for path in sorted(options.fio.rglob('*')):
        if path.is_file():
            archive += cpio_entry(f'fio/{path.relative_to(options.fio)}', path.read_bytes(), 0o100755, number)
            number += 1
    script = SCRIPT % {'rows': ' '.join(f'{rw}:{bs}' for rw, bs, *_ in ROWS), 'seconds': options.seconds, 'mib': DISK_MIB}
    archive += cpio_entry('guest_bench', script.encode(), 0o100755, number)
    initrd = (options.guest / 'initrd').read_bytes()
    (folder / 'initrd').write_bytes(initrd + bytes(-len(initrd) % 512) + archive + cpio_entry('TRAILER!!!', b'', 0, 0))
    for name in 'disk.raw', 'cached.raw':
        (folder / name).write_bytes(b'\x5a' * (DISK_MIB << 20))
    shutil.copy(options.qcow2, folder / 'disk.qcow2')
    for name in 'past', 'through':
        run(options.layers, folder, name, DISK_MIB, 1)
    run('sync')


def measure(guest, figures):
    words = ' '.join(f'{name}={device}' for name, device in guest.devices.items())
    try:
        guest.start()
        guest.wait(r'^drover-guest: ready', BOOT_LIMIT_S)
        for _ in range(TURNS):
            for name, value in guest.bench('fio', words).items():
                figures.setdefault(name, []).append(value)
            if guest.reasons:
                return
    except (Missing, OSError) as problem:
        guest.reasons[''] = str(problem)
    finally:
        guest.end()


def table(figures):
    """Print it; what could not be measured."""
    missing, worse = [], 0
    for ours, theirs, promised in PAIRS:
        print(f'{ours} beside {theirs}')
        for rw, _, words, unit in ROWS:
            values = figures.get(f'{ours}_{rw}'), figures.get(f'{theirs}_{rw}')
            if not all(values):
                missing += [f'{name}_{rw}' for name, value in zip((ours, theirs), values) if not value]
                continue
            best, middle = (choose(values[0]) / choose(values[1]) for choose in (max, statistics.median))
            worse += promised and best < NOISE and middle < NOISE
            print(f'    {words:<36} {max(values[0]):>9} {max(values[1]):>9} {unit:<6} {best:>6.2f} {middle:>6.2f}'
                  f'{" !" if best < NOISE and middle < NOISE else ""}')
    print(f'the best of each, ratio of the best, ratio of the medians; above 1.00: drover-vmm is the better one; {worse} below {NOISE} by both')
    return sorted(set(missing))


def options_parse():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--guest', type=pathlib.Path, required=True)
    parser.add_argument('--fio', type=pathlib.Path, required=True, help='a directory of fio_tree')
    parser.add_argument('--qcow2', type=pathlib.Path, required=True, help=f'a full image of {DISK_MIB} MiB')
    parser.add_argument('--layers', type=pathlib.Path, required=True, help='bench_layers_make')
    parser.add_argument('--work', type=pathlib.Path, default='/var/tmp', help='for the disks')
    parser.add_argument('--vmm', default='drover-vmm')
    parser.add_argument('--qemu', default='qemu-system-x86_64')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--minutes', type=float, default=15, help='no round is begun that would end later')
    parser.add_argument('--seconds', type=int, default=4, help='of each run of fio')
    return parser.parse_args()


def main():
    options = options_parse()
    figures, reasons, start = {}, {}, time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = pathlib.Path(tempfile.mkdtemp(prefix='bench-fio-', dir=options.work))
    try:
        prepare(options, folder)
        network_up()
        for number in range(options.rounds):
            spent = time.monotonic() - start
            if number and spent + spent / number > options.minutes * 60:
                print(f'# {number} rounds: no time for more', flush=True)
                break
            for kind in (DroverFio, QemuFio) if number % 2 == 0 else (QemuFio, DroverFio):
                guest: Guest = kind(options, folder)
                measure(guest, figures)
                reasons.update({f'{kind.name} {step}': why for step, why in guest.reasons.items()})
                print(f'# round {number + 1} {kind.name}: {time.monotonic() - start:.0f} s', flush=True)
    finally:
        network_down()
        shutil.rmtree(folder, ignore_errors=True)
    missing = table(figures)
    for who, why in reasons.items():
        print(f'NOT MEASURED {who}: {why}')
    for name in missing:
        print(f'NOT MEASURED {name}')
    print('JSON ' + json.dumps({'figures': figures, 'missing': missing}))
    return 1 if missing or reasons else 0


if __name__ == '__main__':
    sys.exit(main())
