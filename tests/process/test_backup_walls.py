"""The processes of backup tasks, started as the agent starts them: with which rights they work, and that names which a VMM left in
its VM's directory lead them nowhere."""
import json
import os
import pathlib
import random
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
import uuid

import pytest

from bed import BUILD, ROOT, wait_until

BIN = ROOT / 'build' / 'debug' / 'bin'
AGENT, BACKUP = BIN / 'drover-agent', BIN / 'drover-backup'
USER, PROGRAM_USER = 1900000007, 1900004097
VM = str(uuid.UUID(int=7))
DISK_BYTES = 1 << 20
CAP_DAC_OVERRIDE = 1 << 1
pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason='only root can become other users'),
              pytest.mark.skipif(not (AGENT.exists() and BACKUP.exists()), reason='drover-agent and drover-backup are not built')]


@pytest.fixture
def home(tmp_path):
    """A host's directories: store/, vm/ (as that of a VM of USER's), vm/disks/root.raw."""
    (tmp_path / 'store').mkdir(mode=0o700)
    vm = tmp_path / 'vm'
    (vm / 'disks').mkdir(parents=True)
    os.chown(vm, 0, USER)
    vm.chmod(0o1770)
    os.chown(vm / 'disks', 0, USER)
    (vm / 'disks').chmod(0o710)
    raw = vm / 'disks' / 'root.raw'
    raw.write_bytes(random.Random(5).randbytes(DISK_BYTES))
    os.chown(raw, USER, USER)
    raw.chmod(0o600)
    return tmp_path


def work(home, kind='backup-create', layers=False, ident=None, **more):
    disk = {'name': 'root', 'raw': str(home / 'vm' / 'disks' / 'root.raw')}
    if layers:
        disk['layers'] = str(home / 'vm' / 'disks' / 'root.layers')
    return {'kind': kind, 'vm': VM, 'user': USER, 'program_user': PROGRAM_USER, 'disks': [disk],
            'task': {'id': ident or str(uuid.uuid4()), 'store': str(uuid.UUID(int=1)), 'vm_name': 'a'},
            'store': {'name': 'nas', 'location': str(home / 'store')}, **more}


def run(what, agent=AGENT):
    """What the child says last."""
    done = subprocess.run([agent, 'task', 'backup', str(os.getpid())], input=json.dumps(what).encode(), capture_output=True, timeout=240,
                          check=False, cwd='/')
    lines = done.stdout.splitlines()
    assert lines, done.stderr
    return json.loads(lines[-1])


def succeed(what):
    said = run(what)
    assert said['state'] == 'succeeded', said
    return what['task']['id']


def tool(home, verb, *options):
    return subprocess.run([BACKUP, verb, '--store', home / 'store', *options], check=True, capture_output=True, timeout=240).stdout


def content(home, ident):
    return tool(home, 'cat', '--backup', ident, '--disk', 'root')


def of_layers(home):
    """A backup of the raw disk, restored as one with layers: (what is in it, the pool)."""
    first = succeed(work(home))
    was = content(home, first)
    assert was == (home / 'vm' / 'disks' / 'root.raw').read_bytes()
    succeed(work(home, 'backup-restore', layers=True, ident=first))
    return was, home / 'vm' / 'disks' / 'root.layers'


def test_there_and_back(home):
    was, pool = of_layers(home)
    owners = {(entry.stat().st_uid, stat.S_IMODE(entry.stat().st_mode)) for entry in pool.iterdir()}
    assert owners == {(USER, 0o600)} and pool.stat().st_uid == USER
    assert len(list(pool.glob('restored-*'))) == 1
    second = succeed(work(home, layers=True))
    assert content(home, second) == was
    # and a raw one
    raw = home / 'vm' / 'disks' / 'root.raw'
    raw.write_bytes(bytes(DISK_BYTES))
    succeed(work(home, 'backup-restore', ident=second))
    assert raw.read_bytes() == was and raw.stat().st_uid == USER and not list(raw.parent.glob('*restored*'))
    succeed(work(home, 'backup-delete', ident=second))
    assert len(json.loads(tool(home, 'list', '--json'))) == 1
    failed = run(work(home, 'backup-restore', ident=second))
    assert failed['state'] == 'failed' and raw.read_bytes() == was and not list(raw.parent.glob('*restored*')), failed


def test_where_a_disk_was_half_made(home):
    """A restore that was killed between the old disk and the new one, by an older version, or the first start of a VM: without its head
    what lies there is nobody's disk, and the next restore puts one in its place."""
    was, pool = of_layers(home)
    ident = json.loads(tool(home, 'list', '--json'))[0]['id']
    (pool / 'root.disk').unlink()
    assert list(pool.iterdir())
    succeed(work(home, 'backup-restore', layers=True, ident=ident))
    assert (pool / 'root.disk').exists() and len(list(pool.glob('restored-*'))) == 1
    assert content(home, succeed(work(home, layers=True))) == was


def test_files_of_others_are_not_read(home):
    """A VMM that was taken over puts other names for files of the host into its directory."""
    secret = home / 'secret'
    secret.write_bytes(random.Random(6).randbytes(DISK_BYTES))
    secret.chmod(0o600)
    _, pool = of_layers(home)
    image, = pool.glob('restored-*')
    known = len(json.loads(tool(home, 'list', '--json')))

    def refused(layers):
        said = run(work(home, layers=layers))
        assert said['state'] == 'failed' and len(json.loads(tool(home, 'list', '--json'))) == known, said
    image.unlink()
    os.link(secret, image)
    refused(layers=True)
    image.unlink()
    image.symlink_to(secret)
    refused(layers=True)
    head = pool / 'root.disk'
    there = head.read_bytes()
    (home / 'head').write_bytes(there)
    head.unlink()
    head.symlink_to(home / 'head')
    refused(layers=True)
    raw = home / 'vm' / 'disks' / 'root.raw'
    raw.unlink()
    os.link(secret, raw)
    refused(layers=False)
    raw.unlink()
    raw.symlink_to(secret)
    refused(layers=False)
    assert secret.stat().st_uid == 0 and stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_a_restore_writes_nowhere_else(home):
    """Whatever lies in the pool, also of a root that has been there: only the VM's user touches it."""
    _, pool = of_layers(home)
    ident = json.loads(tool(home, 'list', '--json'))[0]['id']
    precious = home / 'precious'
    precious.mkdir()
    (precious / 'file').write_text('precious')
    for name in ('root.disk', 'restored-1.raw'):
        (pool / name).unlink(missing_ok=True)
        (pool / name).symlink_to(precious / 'file')
    succeed(work(home, 'backup-restore', layers=True, ident=ident))
    assert (precious / 'file').read_text() == 'precious' and (precious / 'file').stat().st_uid == 0
    assert not (pool / 'root.disk').is_symlink()
    # the pool itself is another directory's name
    pool.rename(home / 'pool')
    pool.symlink_to(precious)
    assert run(work(home, 'backup-restore', layers=True, ident=ident))['state'] == 'failed'
    assert [entry.name for entry in precious.iterdir()] == ['file'] and precious.stat().st_uid == 0


class FakeVmm:
    """Answers at a control socket that the images are open."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(path))
        self.socket.listen(4)
        self.asked, self.kept = [], []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            with client:
                request = client.recv(65536)
                method = request.split()[0].decode()
                self.asked.append(method)
                if method == 'PUT':
                    self.kept.append(json.loads(request.split(b'\r\n\r\n', 1)[1])['kept'])
                phase = {'POST': 'open'}.get(method, 'none')
                body = json.dumps({'phase': phase, 'consistency': 'crash', 'pause_us': 1}).encode()
                client.sendall(b'HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n%s' % (201 if method == 'POST' else 200, len(body), body))

    def close(self):
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


@pytest.fixture
def short():
    """A directory whose name fits an address."""
    path = BUILD / f's{os.getpid()}'
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    yield path
    shutil.rmtree(path)


def test_sockets_of_others_are_not_talked_to(home, short):
    vm = short / 'vm'
    (home / 'vm').rename(vm)
    victim = socket.socket(socket.AF_UNIX)
    victim.bind(str(short / 'victim'))
    victim.listen(4)
    victim.setblocking(False)
    vmm = FakeVmm(short / 'control')
    try:
        for put in (lambda at: at.symlink_to(short / 'victim'), lambda at: os.link(short / 'victim', at)):
            put(vm / 'backup.sock')
            said = run(work(home, control_path=str(short / 'control'), socket_path=str(vm / 'backup.sock')))
            assert said['state'] == 'failed' and 'socket' in said['error_text'], said
            with pytest.raises(BlockingIOError):
                victim.accept()
            (vm / 'backup.sock').unlink()
        assert vmm.asked == ['GET', 'POST', 'PUT'] * 2      # the images are given back
    finally:
        vmm.close()
        victim.close()


def test_begun_again_after_its_end(home, short):
    """The agent was killed when the backup was whole and nobody knew: the images of the second run are of another moment, and the VMM
    must not take them for the backup's, or the next one would lack what was written between the two."""
    vm, sock = short / 'vm', short / 'vm' / 'backup.sock'
    (home / 'vm').rename(vm)
    vmm = FakeVmm(short / 'control')
    disks = subprocess.Popen(['qemu-nbd', '--read-only', '--format=raw', '--export-name=root', '--shared=8', '--persistent',
                              f'--socket={sock}', vm / 'disks' / 'root.raw'])
    try:
        wait_until(sock.exists, 30, 'qemu-nbd')
        os.chown(sock, USER, USER)
        order = work(home, control_path=str(short / 'control'), socket_path=str(sock))
        first = succeed(order)
        assert content(home, first) == (vm / 'disks' / 'root.raw').read_bytes()
        assert succeed(order) == first and len(json.loads(tool(home, 'list', '--json'))) == 1
        assert vmm.asked == ['GET', 'POST', 'PUT'] * 2 and vmm.kept == [True, False]
    finally:
        disks.kill()
        disks.wait()
        vmm.close()


SPY = '''#!/bin/sh
# drover-backup's place: says who it is, as an error
tell() { printf '{"step":"failed","code":"conflict","text":"%s"}\\n' "$1"; exit 1; }
status() { sed -n "s/^$1:[[:space:]]*//p" /proc/self/status | tr '\\t' ' '; }
elsewhere=no
(: >"$ELSEWHERE") 2>/dev/null && elsewhere=yes
in_store=no
(: >"$3/probe") 2>/dev/null && in_store=yes
secrets=$(tr '\\0' ' ' </proc/self/environ; tr '\\0' ' ' </proc/$$/cmdline)
case "$secrets" in *very-secret*) shown=yes ;; *) shown=no ;; esac
tell "uid=$(status Uid | cut -d' ' -f1) groups=$(status Groups) eff=$(status CapEff) bnd=$(status CapBnd) nnp=$(status NoNewPrivs) \
core=$(ulimit -c) elsewhere=$elsewhere store=$in_store shown=$shown"
'''


@pytest.fixture
def spy(tmp_path, monkeypatch):
    """The agent with a spy for its drover-backup."""
    where = tmp_path / 'bin'
    where.mkdir()
    shutil.copy2(AGENT, where / 'drover-agent')
    (where / 'drover-backup').write_text(SPY)
    (where / 'drover-backup').chmod(0o755)
    monkeypatch.setenv('ELSEWHERE', str(tmp_path / 'elsewhere'))

    def ask(what):
        said = run(what, where / 'drover-agent')
        assert said['state'] == 'failed' and said['error_code'] == 'conflict', said
        return dict(word.split('=', 1) for word in said['error_text'].split())
    return ask


def test_the_program_has_the_rights_to_its_store_alone(home, spy):
    s3 = {'name': 's3', 'location': 's3://bucket', 'access_key': 'who', 'secret_key': 'very-secret', 'key': 'very-secret-key-of-the-store'}
    who = spy(work(home, 'backup-delete', store=s3))
    assert who['uid'] == str(PROGRAM_USER) and int(who['eff'], 16) == 0 and int(who['bnd'], 16) == 0, who
    assert (who['nnp'], who['core'], who['elsewhere'], who['shown']) == ('1', '0', 'no', 'no'), who
    # a directory of root's: nothing else can be written
    who = spy(work(home, 'backup-delete'))
    assert who['uid'] == '0' and int(who['eff'], 16) == CAP_DAC_OVERRIDE == int(who['bnd'], 16), who
    assert (who['nnp'], who['elsewhere'], who['store']) == ('1', 'no', 'yes'), who
    # of somebody else's: as that user, if he can get there
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o700)
        store = pathlib.Path(place) / 'store'
        store.mkdir(mode=0o700)
        os.chown(store, 4242, 4343)
        theirs = work(home, 'backup-delete', store={'name': 'nas', 'location': str(store)})
        assert spy(theirs)['uid'] == '0' and (store / 'probe').stat().st_uid == 0
        (store / 'probe').unlink()
        os.chmod(place, 0o711)
        who = spy(theirs)
        assert who['uid'] == '4242' and int(who['eff'], 16) == 0 and (store / 'probe').stat().st_uid == 4242, who
        (store / 'drover-store').write_text('')     # one that root wrote in somebody's directory
        assert spy(theirs)['uid'] == '0'


def test_a_store_that_is_somebody_elses(home):
    """All of it without root: the store's owner writes there, with a key that it was handed."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o711)
        store, key = pathlib.Path(place) / 'store', pathlib.Path(place) / 'key'
        subprocess.run([BACKUP, 'init', '--store', store, '--encrypt', '--key-file', key], check=True, capture_output=True, timeout=240)
        for path in (store, *store.rglob('*')):
            os.chown(path, 4242, 4343)
        where = {'name': 'nas', 'location': str(store), 'key': key.read_text().strip()}
        ident = succeed(work(home, store=where))
        assert {path.stat().st_uid for path in store.rglob('*')} == {4242}
        raw = home / 'vm' / 'disks' / 'root.raw'
        was = raw.read_bytes()
        raw.write_bytes(bytes(DISK_BYTES))
        succeed(work(home, 'backup-restore', ident=ident, store=where))
        assert raw.read_bytes() == was and raw.stat().st_uid == USER
        wrong = run(work(home, 'backup-restore', ident=ident, store={**where, 'key': where['key'][:-1] + ('a' if where['key'][-1] != 'a' else 'b')}))
        assert wrong['state'] == 'failed' and 'key' in wrong['error_text'] and raw.read_bytes() == was, wrong
