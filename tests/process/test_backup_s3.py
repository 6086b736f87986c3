"""drover-backup against a server of S3 that truly verifies signatures: OpenStack Swift's s3api from Debian's packages
(swift-proxy swift-account swift-container swift-object memcached), on loopback; and through a proxy that answers 503, cuts
connections and damages bodies."""
import contextlib, getpass, http.client, http.server, json, os, pathlib, random, shutil, socket, socketserver, subprocess, sys, threading, time
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BACKUP = ROOT / 'build/debug/bin/drover-backup'
NEEDS = ('swift-proxy-server', 'swift-account-server', 'swift-container-server', 'swift-object-server',
         'swift-ring-builder', 'memcached')
MISSING = [n for n in NEEDS if shutil.which(n) is None]
pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(bool(MISSING), reason='no ' + ', '.join(MISSING) + ': tools/deps s3 installs them')]
ACCESS, SECRET = 'test:tester', 'testing'


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


class Swift:
    """One of each server, one replica, no privileges."""
    def __init__(self, where):
        self.where, self.running = where, {}
        (where / 'srv/d1').mkdir(parents=True)
        self.ports = {n: free_port() for n in ('proxy', 'account', 'container', 'object', 'memcached')}
        (where / 'swift.conf').write_text('[swift-hash]\nswift_hash_path_suffix = a\nswift_hash_path_prefix = b\n'
                                          '[storage-policy:0]\nname = one\ndefault = yes\n')
        for kind in ('account', 'container', 'object'):
            builder = where / f'{kind}.builder'
            for words in (('create', '4', '1', '0'), ('add', f'r1z1-127.0.0.1:{self.ports[kind]}/d1', '1'), ('rebalance',)):
                subprocess.run(['swift-ring-builder', str(builder), *words], check=True, stdout=subprocess.DEVNULL)
            (where / f'{kind}.conf').write_text(
                f'[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {self.ports[kind]}\nuser = {getpass.getuser()}\n'
                f'swift_dir = {where}\ndevices = {where}/srv\nmount_check = false\nworkers = 0\n'
                f'[pipeline:main]\npipeline = {kind}-server\n[app:{kind}-server]\nuse = egg:swift#{kind}\n')
        (where / 'proxy.conf').write_text(f'''[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {self.ports['proxy']}
user = {getpass.getuser()}
swift_dir = {where}
workers = 0
[pipeline:main]
pipeline = catch_errors cache s3api tempauth bulk slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
error_suppression_limit = 1000000
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{self.ports['memcached']}
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
s3_acl = false
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {SECRET} .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
''')

    def start(self, name):
        argv = [f'swift-{name}-server', str(self.where / f'{name}.conf'), '-v'] if name != 'memcached' else \
            ['memcached', '-l', '127.0.0.1', '-p', str(self.ports['memcached']), '-U', '0', '-u', getpass.getuser()]
        with open(self.where / 'log', 'ab') as log:
            self.running[name] = subprocess.Popen(['setpriv', '--pdeathsig', 'KILL', '--', *argv], stdout=log, stderr=log,
                                                  env=dict(os.environ, SWIFT_TEST_CONFIG_FILE=''))

    def wait_up(self, name):
        end = time.monotonic() + 60
        while True:
            try:
                return socket.create_connection(('127.0.0.1', self.ports[name]), 1).close()
            except OSError:
                assert time.monotonic() < end, f'{name} does not come up:\n' + (self.where / 'log').read_text()[-3000:]
                time.sleep(0.05)

    def kill9(self, name):
        self.running[name].kill()
        self.running[name].wait()

    def __enter__(self):
        for name in ('memcached', 'account', 'container', 'object', 'proxy'):
            self.start(name)
        for name in self.ports:
            self.wait_up(name)
        c = http.client.HTTPConnection('127.0.0.1', self.ports['proxy'])
        c.request('GET', '/auth/v1.0', headers={'X-Storage-User': ACCESS, 'X-Storage-Pass': SECRET})
        r = c.getresponse()
        r.read()
        self.token, self.path = r.getheader('X-Storage-Token'), '/' + r.getheader('X-Storage-Url').split('/', 3)[3]
        assert self.request('PUT', '/bucket')[0] in (201, 202)
        return self

    def request(self, method, path):
        """By Swift's own API."""
        c = http.client.HTTPConnection('127.0.0.1', self.ports['proxy'])
        c.request(method, self.path + path, headers={'X-Auth-Token': self.token})
        r = c.getresponse()
        return r.status, r.read()

    def listed(self, bucket, prefix):
        status, body = self.request('GET', f'/{bucket}?format=json&prefix={prefix}')
        assert status == 200, (status, body)
        return json.loads(body)

    def __exit__(self, *_):
        for p in self.running.values():
            p.terminate()
        for p in self.running.values():
            try:
                p.wait(10)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()


class Faulty(socketserver.ThreadingTCPServer):
    """Passes requests on to the server, but now and then does what `faults` says instead."""
    daemon_threads, allow_reuse_address = True, True

    def __init__(self, port, faults, address='127.0.0.1', within=None, answered=None):
        """@within: a context in which it listens, Bed.inside() for instance. @answered(path, answer): what the client is told instead."""
        self.to, self.faults, self.random, self.done, self.hurt = port, faults, random.Random(7), [], set()
        self.answered = answered or (lambda path, answer: answer)
        with within or contextlib.nullcontext():
            super().__init__((address, 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """Whichever side has gone, the other one sees the connection end."""
        if not isinstance(sys.exc_info()[1], (OSError, http.client.HTTPException)):
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def handle_any(self):
        fault = self.server.random.choice(self.server.faults)
        if fault:
            self.server.done.append(fault)
        if fault == 'cut-first':
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        size = int(self.headers.get('Content-Length', 0))
        if fault == 'cut-upload':
            self.rfile.read(size // 2)
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        body = self.rfile.read(size)
        if fault == 'slow':
            time.sleep(self.server.random.random() * 2)
        if fault == 'busy':
            words = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>'
            self.send_response(503)
            self.send_header('Content-Type', 'application/xml')
            self.send_header('Content-Length', str(len(words)))
            self.end_headers()
            return self.wfile.write(words)
        if fault == 'damage' and len(body) > 100:
            body = body[:50] + bytes([body[50] ^ 1]) + body[51:]
        c = http.client.HTTPConnection('127.0.0.1', self.server.to)
        # the name in Host is signed: it stays what the client sent
        c.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for k, v in self.headers.items():
            c.putheader(k, v)
        c.endheaders()
        c.send(body)
        r = c.getresponse()
        answer = self.server.answered(self.path, r.read())
        what = (self.path, self.headers.get('Range'))
        if fault == 'damage-answer' and '/packs/' in self.path and len(answer) > 100 and what not in self.server.hurt:
            self.server.hurt.add(what)      # each once: twice in a row would be a damaged store
            answer = answer[:50] + bytes([answer[50] ^ 1]) + answer[51:]
        if fault == 'cut-after':  # it was done, but nobody hears of it
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        self.send_response(r.status)
        for k, v in r.getheaders():
            if k.lower() in ('content-type', 'content-range', 'etag', 'last-modified'):
                self.send_header(k, v)
        self.send_header('Content-Length', str(len(answer)))
        self.end_headers()
        if fault == 'cut-middle' and len(answer) > 10:
            self.wfile.write(answer[:len(answer) // 2])
            self.wfile.flush()
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        self.wfile.write(answer)
    do_GET = do_PUT = do_DELETE = do_HEAD = handle_any


@pytest.fixture(scope='module')
def swift(tmp_path_factory):
    with Swift(tmp_path_factory.mktemp('swift')) as s:
        yield s


def run(*words, ok=True, **environment):
    env = dict(os.environ, AWS_ACCESS_KEY_ID=ACCESS, AWS_SECRET_ACCESS_KEY=SECRET)
    env.update(environment)
    p = subprocess.run([str(BACKUP), *map(str, words)], env=env, capture_output=True, text=True, timeout=300)
    assert not ok or p.returncode == 0, p.stdout + p.stderr
    return p


def store(port, prefix, more=''):
    return f's3://bucket/{prefix}?endpoint=http://127.0.0.1:{port}{more}'


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / 'disk.raw'
    r = random.Random(3)
    with open(path, 'wb') as f:
        f.truncate(96 << 20)
        for i in range(40):
            f.seek(r.randrange(96) << 20)
            f.write(r.randbytes(1 << 20))
    return path


def there_and_back(url, disk, tmp_path):
    run('init', '--store', url, '--encrypt', '--key-file', tmp_path / 'key')
    common = ('--store', url, '--key-file', tmp_path / 'key')
    run('create', *common, '--vm', 'web1', '--disk', f'root={disk}')
    with open(disk, 'r+b') as f:
        f.seek(5 << 20)
        f.write(b'changed')
    run('create', *common, '--vm', 'web1', '--disk', f'root={disk}')
    assert len(run('list', '--store', url).stdout.splitlines()) == 3
    run('restore', *common, '--backup', 'latest', '--vm', 'web1', '--disk', f'root={tmp_path}/out.raw')
    assert (tmp_path / 'out.raw').read_bytes() == disk.read_bytes()
    run('verify', *common)
    run('prune', '--store', url, '--keep-last', 1, '--grace', 0)
    run('verify', *common)


def test_there_and_back(swift, disk, tmp_path):
    there_and_back(store(swift.ports['proxy'], 'plain'), disk, tmp_path)


def test_faults_are_retried(swift, disk, tmp_path):
    with Faulty(swift.ports['proxy'], ['', '', '', '', '', 'busy', 'cut-first', 'cut-after', 'cut-middle', 'damage']) as proxy:
        there_and_back(store(proxy.server_address[1], 'faulty'), disk, tmp_path)
        assert {'busy', 'cut-first', 'cut-after', 'cut-middle', 'damage'} <= set(proxy.done)
        proxy.shutdown()


def test_what_was_damaged_on_its_way_back_is_read_again(swift, disk, tmp_path):
    with Faulty(swift.ports['proxy'], ['damage-answer']) as proxy:
        there_and_back(store(proxy.server_address[1], 'answers'), disk, tmp_path)
        assert len(proxy.hurt) > 10
        proxy.shutdown()


def test_a_damaged_body_is_refused(swift, disk, tmp_path):
    with Faulty(swift.ports['proxy'], ['damage']) as proxy:
        p = run('init', '--store', store(proxy.server_address[1], 'damage'), ok=False)
        assert p.returncode == 9 and 'damaged on the way' in p.stderr, p.stderr
        assert len(proxy.done) >= 6
        proxy.shutdown()


def test_errors_say_what_is_wrong(swift, tmp_path):
    url = store(swift.ports['proxy'], 'errors')
    p = run('list', '--store', url, ok=False, AWS_SECRET_ACCESS_KEY='wrong')
    assert p.returncode == 3 and 'AWS_SECRET_ACCESS_KEY is wrong' in p.stderr, p.stderr
    p = run('list', '--store', url, ok=False, AWS_ACCESS_KEY_ID='test:nobody')
    assert p.returncode == 3, p.stderr
    p = run('list', '--store', url, ok=False)
    assert p.returncode == 4 and 'no backup store' in p.stderr, p.stderr
    p = run('list', '--store', url.replace('bucket', 'nowhere'), ok=False)
    assert p.returncode == 4 and 'no bucket nowhere' in p.stderr, p.stderr
    p = run('list', '--store', store(free_port(), 'x'), ok=False)
    assert p.returncode == 9 and 'cannot be reached' in p.stderr, p.stderr


def test_a_wrong_clock_is_told(swift, tmp_path):
    (tmp_path / 'late.c').write_text('#include <time.h>\n#include <sys/time.h>\ntime_t time(time_t *t)\n{\n'
                                     '    struct timespec n;\n    clock_gettime(CLOCK_REALTIME, &n);\n'
                                     '    n.tv_sec += 3600;\n    if (t)\n        *t = n.tv_sec;\n    return n.tv_sec;\n}\n')
    subprocess.run(['gcc', '-shared', '-fPIC', '-o', tmp_path / 'late.so', tmp_path / 'late.c'], check=True)
    p = run('list', '--store', store(swift.ports['proxy'], 'late'), ok=False, LD_PRELOAD=str(tmp_path / 'late.so'))
    assert p.returncode == 3 and 'clocks differ' in p.stderr and 'ahead' in p.stderr, p.stderr


def test_a_busy_server_is_named(swift, tmp_path):
    with Faulty(swift.ports['proxy'], ['busy']) as proxy:
        p = run('list', '--store', store(proxy.server_address[1], 'busy'), ok=False)
        assert p.returncode == 9 and '503' in p.stderr and 'SlowDown' in p.stderr, p.stderr
        proxy.shutdown()
