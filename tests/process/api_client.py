"""Controllers on loopback addresses, and a small HTTPS client for them: standard library only.

    with Controllers('name', 3) as cs:        # init, run, join, run; each has an address of its own in 127.0.0.0/8
        status, headers, body = cs.request('GET', '/v1/vms')            # any controller
        status, headers, body = cs[1].request('POST', '/v1/flavors', {...}, key='k1')
        cs.leader().kill9()

Addresses are made of this process's id, so that several runs on one machine do not meet. Only processes started here
are ended.
"""
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time

from bed import PATIENCE, process_state, wait_until

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = pathlib.Path(os.environ.get('DROVER_CONTROLLER', ROOT / 'build' / 'debug' / 'bin' / 'drover-controller'))
PORT = 7443


def wait_for(condition, timeout_s=15, what='condition'):
    """Poll @condition until it gives something true; that is returned. AssertionError after PATIENCE times @timeout_s."""
    end = time.monotonic() + timeout_s * PATIENCE
    while True:
        got = condition()
        if got:
            return got
        if time.monotonic() > end:
            raise AssertionError(f'not within {timeout_s * PATIENCE} s: {what}')
        time.sleep(0.02)


class Connection(http.client.HTTPSConnection):
    """One kept-alive connection as @admin (None: without a certificate)."""

    def __init__(self, address, tls, timeout_s=30 * PATIENCE):
        super().__init__(address, PORT, timeout=timeout_s, context=tls)

    def call(self, method, path, body=None, headers=None, key=None):
        self.ask(method, path, body, headers, key)
        return self.answer()

    def ask(self, method, path, body=None, headers=None, key=None):
        headers = dict(headers or {})
        if body is not None and not isinstance(body, (bytes, str)):
            body = json.dumps(body)
        if body is not None:
            headers.setdefault('Content-Type', 'application/json')
        if key:
            headers['Idempotency-Key'] = key
        self.request(method, path, body, headers)

    def answer(self):
        answer = self.getresponse()
        raw = answer.read()
        kind = answer.getheader('Content-Type', '')
        return answer.status, answer.headers, json.loads(raw) if 'json' in kind and raw else raw


class Controller:
    def __init__(self, cluster, number):
        self.cluster, self.number = cluster, number
        self.name = f'c{number}'
        self.address = cluster.address(number)
        self.data = cluster.directory / self.name
        self.process = None

    def program(self, *words, check=True):
        done = subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True, timeout=60 * PATIENCE)
        if check and done.returncode != 0:
            raise AssertionError(f'{words[0]}: exit {done.returncode}: {done.stderr}')
        return done

    def init(self):
        return self.program('init', '--data', self.data, '--address', self.address, '--name', self.name)

    def join(self, token):
        return self.program('join', '--data', self.data, '--address', self.address, '--name', self.name, '--token', token)

    def run(self):
        log = open(self.cluster.directory / f'{self.name}.log', 'ab')
        self.process = subprocess.Popen([PROGRAM, 'run', '--data', self.data], stderr=log, stdin=subprocess.DEVNULL)
        log.close()

    def kill9(self):
        self.process.kill()
        self.process.wait()
        self.process = None

    def stop(self):
        """SIGTERM; its exit status."""
        self.process.terminate()
        status = self.process.wait(20 * PATIENCE)
        self.process = None
        return status

    def freeze(self):
        """None of its threads runs any more: only the one that takes the signal stops the others, and it may have to wait for a processor."""
        self.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: process_state(self.process.pid) in ('T', 'Z', None), what=f'{self.name} stands still', poll_s=0.005)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def connect(self, identity='admin', timeout_s=30 * PATIENCE):
        return Connection(self.address, self.cluster.tls(identity), timeout_s)

    def request(self, method, path, body=None, headers=None, key=None, identity='admin', timeout_s=30 * PATIENCE):
        connection = self.connect(identity, timeout_s)
        try:
            return connection.call(method, path, body, headers, key)
        finally:
            connection.close()

    def ready(self):
        try:
            return self.request('GET', '/readyz', identity=None, timeout_s=2)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def metric(self, name):
        text = self.request('GET', '/metrics', identity=None)[2].decode()
        return next(int(float(line.split()[-1])) for line in text.splitlines() if line.startswith(name + ' '))

    def log(self):
        return (self.cluster.directory / f'{self.name}.log').read_text(errors='replace')


class Controllers:
    made = 0  # clusters in this process, so far

    def __init__(self, name, count=1):
        self.slot = Controllers.made % 30 * 8
        Controllers.made += 1
        base = ROOT / 'build' / 'process'
        base.mkdir(parents=True, exist_ok=True)
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix=f'api-{name}.', dir=base))
        self.members = [Controller(self, n) for n in range(1, count + 1)]
        self._tls = {}

    def address(self, number):
        pid = os.getpid()
        return f'127.{64 + pid // 256 % 128}.{pid % 256}.{self.slot + number}'

    def __getitem__(self, index):
        return self.members[index]

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def start(self):
        first = self.members[0]
        first.init()
        first.run()
        wait_for(first.ready, what='the first controller is ready')
        for member in self.members[1:]:
            self.add(member)

    def add(self, member):
        member.join(self.token('controller'))
        member.run()
        wait_for(lambda: self.roles().get(member.name) == 'voter', 30, f'{member.name} has a vote')
        wait_for(member.ready, what=f'{member.name} is ready')

    def token(self, role):
        name = f't{time.monotonic_ns()}'
        status, _, body = self.request('POST', '/v1/tokens', {'name': name, 'role': role})
        assert status == 201, body
        return body['secret']

    def roles(self):
        status, _, body = self.request('GET', '/v1/controllers')
        return {c['name']: c['role'] for c in body} if status == 200 else {}

    def alive(self):
        return [m for m in self.members if m.process and m.process.poll() is None]

    def request(self, *args, **options):
        """By whichever controller runs."""
        return self.alive()[0].request(*args, **options)

    def leader(self, timeout_s=15):
        def find():
            for member in self.alive():
                try:
                    if member.metric('drover_api_ready'):
                        return member
                except OSError:
                    pass
            return None
        return wait_for(find, timeout_s, 'there is a leader')

    def follower(self):
        leader = self.leader()
        return next(m for m in self.alive() if m is not leader)

    def tls(self, identity):
        """TLS settings with the certificate in the directory @identity of the first controller; None: without one."""
        if identity not in self._tls:
            admin = self.members[0].data / 'admin'
            context = ssl.create_default_context(cafile=admin / 'ca.pem')
            context.check_hostname = True
            if identity == 'admin':
                context.load_cert_chain(admin / 'cert.pem', admin / 'key.pem')
            elif identity:
                context.load_cert_chain(*identity)
            self._tls[identity] = context
        return self._tls[identity]

    def close(self):
        for member in self.members:
            if member.process and member.process.poll() is None:
                member.process.send_signal(signal.SIGCONT)
                member.process.kill()
                member.process.wait()
        logs = {m.name: m.log() for m in self.members if (self.directory / f'{m.name}.log').exists()}
        shutil.rmtree(self.directory, ignore_errors=True)
        for name, text in logs.items():
            for word in ('Sanitizer', 'runtime error:', 'assertion failed'):
                if word in text:
                    raise AssertionError(f'{name}: {text[max(0, text.index(word) - 500):][:6000]}')


class EventStream:
    """Server-Sent Events: an iterator of (id or None, name, data)."""

    def __init__(self, member, query='', headers=None, timeout_s=10 * PATIENCE, receive_bytes=None):
        self.connection = member.connect(timeout_s=timeout_s)
        if receive_bytes:  # a reader that is slow in earnest: the kernel takes little for it
            plain = socket.socket()
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            plain.settimeout(timeout_s)
            plain.connect((member.address, PORT))
            self.connection.sock = member.cluster.tls('admin').wrap_socket(plain, server_hostname=member.address)
        self.connection.request('GET', '/v1/events' + query, headers={'Accept': 'text/event-stream', **(headers or {})})
        self.answer = self.connection.getresponse()
        self.status = self.answer.status

    def __iter__(self):
        fields = {}
        while True:
            line = self.answer.readline()
            if not line:
                return
            line = line.decode().rstrip('\n')
            if line == '':
                if 'data' in fields:
                    yield fields.get('id'), fields.get('event', 'message'), json.loads(fields['data'])
                fields = {}
            elif not line.startswith(':'):
                name, _, value = line.partition(': ')
                fields[name] = value

    def take(self, count):
        out = []
        for event in self:
            out.append(event)
            if len(out) == count:
                break
        return out

    def close(self):
        self.connection.close()


def raw_tls(member, identity='admin', timeout_s=10 * PATIENCE):
    """A TLS socket for bytes that no client library would send."""
    plain = socket.create_connection((member.address, PORT), timeout=timeout_s)
    return member.cluster.tls(identity).wrap_socket(plain, server_hostname=member.address)
