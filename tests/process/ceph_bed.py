"""A Ceph cluster of one monitor, one manager and one OSD that keeps all in memory: real Ceph, in seconds. In a network namespace of its own, or on
the wire of a bed (@bed), where all hosts reach it."""
import os
import pathlib
import shutil
import subprocess
import time
import uuid

from bed import NET

PROGRAMS = ('ceph-mon', 'ceph-osd', 'ceph-mgr', 'ceph', 'rbd', 'ceph-authtool', 'monmaptool')
START_S = 60


def missing():
    """Why there can be none here; '' if there can."""
    if os.geteuid() != 0:
        return 'a network namespace for Ceph needs root'
    left = [p for p in PROGRAMS if shutil.which(p) is None]
    return f'no {", ".join(left)}: `tools/deps ceph` installs them' if left else ''


class Ceph:
    def __init__(self, folder, bed=None):
        self.folder = pathlib.Path(folder)
        self.netns = f'drover-ceph-{os.getpid()}'
        self.door = bed.door if bed else ['ip', 'netns', 'exec', self.netns]
        self.address = f'{NET}.1' if bed else '127.0.0.1'
        self.is_own = bed is None
        self.conf = self.folder / 'ceph.conf'
        self.daemons = []

    def run(self, *words, check=True, **more):
        return subprocess.run([*self.door, *map(str, words)], check=check, capture_output=True, text=True,
                              timeout=START_S, **more)

    def ceph(self, *words):
        return self.run('ceph', '-c', self.conf, '--connect-timeout', '5', *words).stdout.strip()

    def rbd(self, *words, check=True):
        return self.run('rbd', '-c', self.conf, *words, check=check)

    def until(self, condition, what):
        end = time.monotonic() + START_S
        while not condition():
            assert time.monotonic() < end, f'{what}: {[p.read_text()[-2000:] for p in self.folder.glob("*.out")]}'
            assert all(d.poll() is None for d in self.daemons), [p.read_text()[-2000:] for p in self.folder.glob('*.out')]
            time.sleep(0.1)

    def daemon(self, *words):
        out = (self.folder / f'{words[0]}.out').open('w')
        self.daemons.append(subprocess.Popen([*self.door, *map(str, words), '-c', str(self.conf), '-f'],
                                             stdin=subprocess.DEVNULL, stdout=out, stderr=out))

    def answers(self):
        try:
            return bool(self.ceph('-s'))
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return False

    def start(self):
        fsid, osd = uuid.uuid4(), uuid.uuid4()
        keyring, monmap = self.folder / 'keyring', self.folder / 'monmap'
        addresses = f'[v2:{self.address}:3300/0,v1:{self.address}:6789/0]'
        for name in ('mon', 'osd', 'mgr', 'run'):
            (self.folder / name).mkdir(parents=True)
        self.conf.write_text(f'''[global]
fsid = {fsid}
mon host = {addresses}
public addr = {self.address}
cluster addr = {self.address}
run dir = {self.folder}/run
admin socket =
log file = {self.folder}/$name.log
keyring = {keyring}
mon data = {self.folder}/mon
osd data = {self.folder}/osd
mgr data = {self.folder}/mgr
mgr initial modules =
mgr stats period = 1
mon warn on insecure global id reclaim = false
osd objectstore = memstore
memstore device bytes = 1073741824
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
mon osd down out interval = 3600
''')
        if self.is_own:
            subprocess.run(['ip', 'netns', 'add', self.netns], check=True)
            self.run('ip', 'link', 'set', 'lo', 'up')
        self.run('ceph-authtool', '--create-keyring', keyring, '--gen-key', '-n', 'mon.', '--cap', 'mon', 'allow *')
        self.run('ceph-authtool', keyring, '--gen-key', '-n', 'client.admin', '--cap', 'mon', 'allow *', '--cap', 'osd', 'allow *')
        self.run('monmaptool', '--create', '--addv', 'a', addresses, '--fsid', fsid, monmap)
        self.run('ceph-mon', '-c', self.conf, '--mkfs', '-i', 'a', '--monmap', monmap, '--keyring', keyring)
        self.daemon('ceph-mon', '-i', 'a')
        self.until(self.answers, 'the monitor')
        with keyring.open('a') as file:
            file.write(self.ceph('auth', 'get-or-create', 'mgr.a', 'mon', 'allow profile mgr', 'osd', 'allow *', 'mds', 'allow *') + '\n')
        self.daemon('ceph-mgr', '-i', 'a')      # counts how much is free
        number = self.ceph('osd', 'new', osd)
        with keyring.open('a') as file:
            file.write(self.ceph('auth', 'get-or-create', f'osd.{number}', 'mon', 'allow profile osd', 'osd', 'allow *') + '\n')
        self.run('ceph-osd', '-c', self.conf, '-i', number, '--mkfs', '--osd-uuid', osd)
        self.daemon('ceph-osd', '-i', number)
        self.ceph('osd', 'pool', 'create', 'vms', '8')
        self.until(lambda: self.rbd('create', 'probe', '--pool', 'vms', '--size', '1', check=False).returncode == 0, 'the OSD')
        self.rbd('rm', 'vms/probe')
        with keyring.open('a') as file:         # just what docs/ceph.md says that hosts need
            file.write(self.ceph('auth', 'get-or-create', 'client.drover', 'mon', 'profile rbd', 'osd', 'profile rbd pool=vms') + '\n')
        self.until(lambda: '"max_avail"' in self.ceph('df', '--format', 'json'), 'the manager')
        return self

    def stop(self):
        for daemon in self.daemons:
            daemon.kill()
            daemon.wait()
        if self.is_own:
            subprocess.run(['ip', 'netns', 'del', self.netns], check=False, capture_output=True)
