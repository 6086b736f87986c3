"""A Ceph cluster of one monitor and one OSD that keeps all in memory, in a network namespace of its own: real Ceph, in seconds."""
import os
import pathlib
import shutil
import subprocess
import time
import uuid

PROGRAMS = ('ceph-mon', 'ceph-osd', 'ceph', 'rbd', 'ceph-authtool', 'monmaptool')
START_S = 60


def missing():
    """Why there can be none here; '' if there can."""
    if os.geteuid() != 0:
        return 'a network namespace for Ceph needs root'
    left = [p for p in PROGRAMS if shutil.which(p) is None]
    return f'no {", ".join(left)}: `tools/deps ceph` installs them' if left else ''


class Ceph:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.netns = f'drover-ceph-{os.getpid()}'
        self.conf = self.folder / 'ceph.conf'
        self.daemons = []

    def run(self, *words, check=True, **more):
        return subprocess.run(['ip', 'netns', 'exec', self.netns, *map(str, words)], check=check, capture_output=True, text=True,
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
        self.daemons.append(subprocess.Popen(['ip', 'netns', 'exec', self.netns, *map(str, words), '-c', str(self.conf), '-f'],
                                             stdin=subprocess.DEVNULL, stdout=out, stderr=out))

    def answers(self):
        try:
            return bool(self.ceph('-s'))
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return False

    def start(self):
        fsid, osd = uuid.uuid4(), uuid.uuid4()
        keyring, monmap = self.folder / 'keyring', self.folder / 'monmap'
        addresses = '[v2:127.0.0.1:3300/0,v1:127.0.0.1:6789/0]'
        for name in ('mon', 'osd', 'run'):
            (self.folder / name).mkdir(parents=True)
        self.conf.write_text(f'''[global]
fsid = {fsid}
mon host = {addresses}
run dir = {self.folder}/run
admin socket = {self.folder}/run/$cluster-$name.$pid.asok
log file = {self.folder}/$name.log
keyring = {keyring}
mon data = {self.folder}/mon
osd data = {self.folder}/osd
osd objectstore = memstore
memstore device bytes = 1073741824
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
mon osd down out interval = 3600
''')
        subprocess.run(['ip', 'netns', 'add', self.netns], check=True)
        self.run('ip', 'link', 'set', 'lo', 'up')
        self.run('ceph-authtool', '--create-keyring', keyring, '--gen-key', '-n', 'mon.', '--cap', 'mon', 'allow *')
        self.run('ceph-authtool', keyring, '--gen-key', '-n', 'client.admin', '--cap', 'mon', 'allow *', '--cap', 'osd', 'allow *')
        self.run('monmaptool', '--create', '--addv', 'a', addresses, '--fsid', fsid, monmap)
        self.run('ceph-mon', '-c', self.conf, '--mkfs', '-i', 'a', '--monmap', monmap, '--keyring', keyring)
        self.daemon('ceph-mon', '-i', 'a')
        self.until(self.answers, 'the monitor')
        number = self.ceph('osd', 'new', osd)
        with keyring.open('a') as file:
            file.write(self.ceph('auth', 'get-or-create', f'osd.{number}', 'mon', 'allow profile osd', 'osd', 'allow *') + '\n')
        self.run('ceph-osd', '-c', self.conf, '-i', number, '--mkfs', '--osd-uuid', osd)
        self.daemon('ceph-osd', '-i', number)
        self.ceph('osd', 'pool', 'create', 'vms', '8')
        self.until(lambda: self.rbd('create', 'probe', '--pool', 'vms', '--size', '1', check=False).returncode == 0, 'the OSD')
        self.rbd('rm', 'vms/probe')
        return self

    def stop(self):
        for daemon in self.daemons:
            daemon.kill()
            daemon.wait()
        subprocess.run(['ip', 'netns', 'del', self.netns], check=False, capture_output=True)
