#!/usr/bin/python3
"""Backups beside their peers, in one run on this machine: full, incremental after 25 MiB of scattered changes, restore and
verify of a 3 GiB ext4 image with 1.3 GiB of this machine's own files in it.

    tests/bench/bench_backup.py [--dir DIR] [--rounds N] [--only NAME]... [--level N]

Peers: restic, borg, casync, qemu-img (tools/deps bench). For each the best of the rounds is told, wall and CPU seconds, and
what is stored. Our incremental is told what has changed (as a disk of layers tells by itself); `ours, blind` is not.

Before each step 2 GiB of memory are touched and given back: in a virtual machine memory that was free for a while may have to
come from the host first, page by page, and whoever comes first would pay for it - more than the step itself costs."""
import argparse, mmap, os, pathlib, random, resource, shutil, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BACKUP = ROOT / 'build/debug/bin/drover-backup'
SIZE, USED, SEED = 3 << 30, 1300 << 20, 4
WARM = 2 << 30  # more than a step writes to --dir


def memory_warm():
    """What the next step takes is memory that this machine has."""
    block = b'\1' * (1 << 20)
    with mmap.mmap(-1, WARM, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as m:
        for _ in range(WARM >> 20):
            m.write(block)


def run(*argv, env=None, cwd=None, out=subprocess.DEVNULL):
    """(wall, CPU) seconds of a command and all its children."""
    memory_warm()
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    p = subprocess.run([str(a) for a in argv], env=dict(os.environ, **(env or {})), cwd=cwd, stdout=out,
                       stderr=subprocess.PIPE)
    if p.returncode:
        sys.exit(f'{" ".join(map(str, argv))}: {p.stderr.decode()[-800:]}')
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def stored(path):
    if path.is_file():
        return path.stat().st_blocks * 512
    return sum(f.stat().st_size for f in path.rglob('*') if f.is_file() and not f.is_symlink())


def image_make(path, work, used):
    """Files in the order of their names until there is enough: the same for the same machine."""
    tree = work / 'tree'
    tree.mkdir()
    got = 0
    for root in ('/usr/bin', '/usr/share', '/usr/lib/x86_64-linux-gnu', '/usr/lib'):
        for folder, folders, files in os.walk(root):
            folders.sort()
            for name in sorted(files):
                source = os.path.join(folder, name)
                if os.path.islink(source) or not os.path.isfile(source) or got >= used:
                    continue
                target = tree / source[1:]
                if target.exists():
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                got += max(os.path.getsize(source), 4096)
    subprocess.run(['mke2fs', '-q', '-t', 'ext4', '-F', '-E', 'hash_seed=00000000-0000-4000-8000-000000000001', '-U',
                    '00000000-0000-4000-8000-000000000002', '-d', tree, path, str(SIZE >> 10) + 'k'], check=True)
    shutil.rmtree(tree)


def image_change(path, seed, note):
    """24 runs of 1 MiB and 300 scattered writes of 4 KiB, all within what is used."""
    r = random.Random(seed)
    changes = {}
    with open(path, 'r+b') as f:
        spans, at = [], 0
        while True:
            try:
                start = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(f.fileno(), start, os.SEEK_HOLE)
            if at - start >= 1 << 20:
                spans.append((start, at))
        for size, count in ((1 << 20, 24), (4096, 300)):
            for _ in range(count):
                start, end = r.choices(spans, [e - s for s, e in spans])[0]
                place = r.randrange(start, end - size + 1) & ~4095
                # half of it text-like, half of it not, as files are
                data = r.randbytes(size // 2) + bytes(r.choice(b'abcdefgh \n') for _ in range(256)) * (size // 512)
                f.seek(place)
                f.write(data)
                changes[place] = max(changes.get(place, 0), size)
    merged = []
    for place in sorted(changes):
        if merged and place <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], place + changes[place])
        else:
            merged.append([place, place + changes[place]])
    note.write_text(''.join(f'{s} {e - s}\n' for s, e in merged))


class Ours:
    name = 'drover-backup'

    def __init__(self, work, level):
        self.store, self.out, self.level = work / 'store', work / 'out.raw', level
        run(BACKUP, 'init', '--store', self.store)

    def full(self, image):
        return run(BACKUP, 'create', '--store', self.store, '--vm', 'a', '--disk', f'root={image}', '--level', self.level)

    def incremental(self, image, note):
        newest = subprocess.run([BACKUP, 'list', '--store', self.store], capture_output=True, text=True).stdout.split('\n')[1][:36]
        return run(BACKUP, 'create', '--store', self.store, '--vm', 'a', '--disk', f'root={image}', '--level', self.level,
                   '--parent', newest, '--changed', f'root={note}')

    def restore(self):
        return run(BACKUP, 'restore', '--store', self.store, '--backup', 'latest', '--vm', 'a', '--disk', f'root={self.out}')

    def verify(self):
        return run(BACKUP, 'verify', '--store', self.store)


class Blind(Ours):
    name = 'ours, blind'

    def incremental(self, image, note):
        return self.full(image)


class Restic:
    name, program = 'restic', 'restic'

    def __init__(self, work, level):
        self.store, self.target, self.out = work / 'store', work / 'to', None
        self.env = {'RESTIC_PASSWORD': 'x', 'RESTIC_REPOSITORY': str(self.store), 'XDG_CACHE_HOME': str(work / 'cache')}
        run('restic', 'init', '--repository-version', '2', env=self.env)

    def full(self, image):
        self.out = self.target / str(image)[1:]
        return run('restic', 'backup', image, env=self.env)

    def incremental(self, image, note):
        return self.full(image)

    def restore(self):
        return run('restic', 'restore', 'latest', '--target', self.target, env=self.env)

    def verify(self):
        return run('restic', 'check', '--read-data', env=self.env)


class Borg:
    name, program = 'borg 4 MiB zstd,1', 'borg'

    def __init__(self, work, level):
        self.store, self.target, self.out, self.count = work / 'store', work / 'to', None, 0
        self.target.mkdir()
        self.env = {'BORG_PASSPHRASE': 'x', 'BORG_BASE_DIR': str(work), 'BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK': 'yes'}
        run('borg', 'init', '-e', 'repokey-blake2', self.store, env=self.env)

    def full(self, image):
        self.count += 1
        self.out = self.target / str(image)[1:]
        return run('borg', 'create', '--compression', 'zstd,1', '--chunker-params', 'fixed,4194304',
                   f'{self.store}::a{self.count}', image, env=self.env)

    def incremental(self, image, note):
        return self.full(image)

    def restore(self):
        return run('borg', 'extract', '--sparse', f'{self.store}::a{self.count}', env=self.env, cwd=self.target)

    def verify(self):
        return run('borg', 'check', '--verify-data', self.store, env=self.env)


class Casync:
    name, program = 'casync', 'casync'

    def __init__(self, work, level):
        self.work, self.store, self.out, self.count = work, work / 'store', work / 'out.raw', 0
        self.store.mkdir()

    def full(self, image):
        self.count += 1
        return run('casync', 'make', f'--store={self.store}/s', self.store / f'{self.count}.caibx', image)

    def incremental(self, image, note):
        return self.full(image)

    def restore(self):
        return run('casync', 'extract', f'--store={self.store}/s', self.store / f'{self.count}.caibx', self.out)

    verify = None


class QemuImg:
    name, program = 'qemu-img convert -c', 'qemu-img'

    def __init__(self, work, level):
        self.store, self.out = work / 'a.qcow2', work / 'out.raw'

    def full(self, image):
        return run('qemu-img', 'convert', '-c', '-O', 'qcow2', '-o', 'compression_type=zstd', '-W', '-m', '4', '-f', 'raw', image,
                   self.store)

    incremental = None

    def restore(self):
        return run('qemu-img', 'convert', '-O', 'raw', '-W', '-m', '4', self.store, self.out)

    def verify(self):
        return run('qemu-img', 'check', self.store)


def best(*times):
    return min(t[0] for t in times), min(t[1] for t in times)


def measure(kind, work, pristine, changed, note, rounds, level):
    rows = {}
    for _ in range(rounds):
        place = work / 'run'
        place.mkdir()
        image = work / 'disk.raw'
        subprocess.run(['cp', '--sparse=always', pristine, image], check=True)
        peer = kind(place, level)
        row = {'full': peer.full(image)}
        row['stored'] = stored(peer.store)
        if peer.incremental:
            subprocess.run(['cp', '--sparse=always', changed, image], check=True)
            row['incremental'] = peer.incremental(image, note)
            row['added'] = stored(peer.store) - row['stored']
        row['restore'] = peer.restore()
        if subprocess.run(['cmp', image, peer.out]).returncode:
            sys.exit(f'{kind.name}: what was restored differs')
        if peer.verify:
            row['verify'] = peer.verify()
        for k, v in row.items():
            rows[k] = v if k not in rows or isinstance(v, int) else best(rows[k], v)
        subprocess.run(['chmod', '-R', 'u+w', place])
        shutil.rmtree(place)
    return rows


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--dir', default='/dev/shm', help='where it is done; in memory, so that the disk does not count')
    ap.add_argument('--rounds', type=int, default=1)
    ap.add_argument('--used-mib', type=int, default=USED >> 20, help='a smaller image, for a look')
    ap.add_argument('--level', type=int, default=3)
    ap.add_argument('--only', action='append', default=[])
    a = ap.parse_args()
    with tempfile.TemporaryDirectory(prefix='drover-bench-', dir=a.dir) as name:
        work = pathlib.Path(name)
        pristine, changed, note = work / 'pristine.raw', work / 'changed.raw', work / 'changes'
        image_make(pristine, work, a.used_mib << 20)
        subprocess.run(['cp', '--sparse=always', pristine, changed], check=True)
        image_change(changed, SEED, note)
        print(f'image: {SIZE >> 20} MiB, {pristine.stat().st_blocks >> 11} MiB used; load {os.getloadavg()[0]:.1f}', flush=True)
        print(f'{"":22}{"full":>14}{"stored":>9}{"incremental":>15}{"added":>9}{"restore":>14}{"verify":>14}   wall/CPU s, MB', flush=True)
        for kind in (Ours, Blind, QemuImg, Borg, Casync, Restic):
            if a.only and kind.name not in a.only:
                continue
            if getattr(kind, 'program', None) and shutil.which(kind.program) is None:
                print(f'{kind.name:22} skipped: no {kind.program}; tools/deps bench installs it')
                continue
            r = measure(kind, work, pristine, changed, note, a.rounds, a.level)
            t = lambda k: f'{r[k][0]:.1f}/{r[k][1]:.1f}' if k in r else '-'
            b = lambda k: f'{r[k] / 1e6:.1f}' if k in r else '-'
            print(f'{kind.name:22}{t("full"):>14}{b("stored"):>9}{t("incremental"):>15}{b("added"):>9}{t("restore"):>14}'
                  f'{t("verify"):>14}   load {os.getloadavg()[0]:.1f}', flush=True)


if __name__ == '__main__':
    main()
