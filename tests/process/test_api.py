"""The API of real controllers, one and three of them, over HTTPS on loopback."""
import concurrent.futures
import json
import os
import pathlib
import socket
import ssl
import subprocess
import threading
import time

import pytest

from bed import PATIENCE
from api_client import PROGRAM, Connection, Controllers, EventStream, raw_tls, wait_for

pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason='drover-controller is not built')
MIB = 1 << 20
counter = iter(range(1, 1 << 30))


def flavor(name=None, **more):
    return {'name': name or f'f{next(counter)}', 'vcpus': 1, 'memory_bytes': 64 * MIB, **more}


@pytest.fixture(scope='module')
def one():
    with Controllers('one', 1) as cs:
        yield cs


@pytest.fixture(scope='module')
def three():
    with Controllers('three', 3) as cs:
        yield cs


@pytest.fixture
def fresh_three():
    with Controllers('fresh', 3) as cs:
        yield cs


def check_problem(status, headers, body, code=None):
    assert headers['Content-Type'] == 'application/problem+json', (status, body)
    assert body['status'] == status and body['title'] and body['detail'] and body['code'] and body['request_id']
    if code:
        assert body['code'] == code, body
    return body


# ---- the program ----

def test_words_of_the_program(one):
    done = one[0].program('--help')
    assert all(f'drover-controller {verb}' in done.stdout for verb in ('init', 'join', 'run'))
    assert one[0].program('--version').stdout.startswith('drover-controller ')
    for words in ([], ['ini'], ['init'], ['init', '--data', '/nonexistent'], ['run'], ['run', '--data'], ['run', '--dta', 'x']):
        assert one[0].program(*words, check=False).returncode == 2, words


def test_init_twice(tmp_path):
    run = lambda *words: subprocess.run([PROGRAM, *words], capture_output=True, text=True, timeout=30 * PATIENCE)
    data = str(tmp_path / 'c')
    words = ['init', '--data', data, '--address', '127.0.0.1', '--name', 'c1']
    assert run(*words).returncode == 0
    before = {p: p.read_bytes() for p in pathlib.Path(data).rglob('*') if p.is_file()}
    again = run(*words)
    assert again.returncode == 0 and 'nothing was changed' in again.stdout
    other = run(*words[:-1], 'c2')
    assert other.returncode == 5 and 'belongs to a cluster already' in other.stderr
    assert {p: p.read_bytes() for p in pathlib.Path(data).rglob('*') if p.is_file()} == before
    assert os.stat(f'{data}/key.pem').st_mode & 0o777 == 0o600 and os.stat(data).st_mode & 0o777 == 0o700
    for bad in (['--address', '127.0.0.1:99999'], ['--address', 'a b'], ['--name', 'UPPER']):
        broken = run('init', '--data', str(tmp_path / 'd'), '--address', '127.0.0.1', '--name', 'c1', *bad)
        assert broken.returncode == 2, (bad, broken.stderr)
    assert run('run', '--data', str(tmp_path / 'empty')).returncode == 8


def test_directory_is_locked(one):
    done = one[0].program('run', '--data', one[0].data, check=False)
    assert done.returncode == 5 and 'stop it first' in done.stderr


# ---- objects ----

def test_crud_and_etag(one):
    c = one[0].connect()
    body = flavor(labels={'tier': 'a'})
    status, headers, made = c.call('POST', '/v1/flavors', body)
    assert status == 201 and headers['Location'] == f'/v1/flavors/{made["id"]}' and headers['ETag'] == f'"{made["revision"]}"'
    assert made == {**made, **body}
    assert int(headers['X-Drover-Index']) >= made['revision']
    for path in (headers['Location'], f'/v1/flavors/{body["name"]}'):
        status, seen, got = c.call('GET', path)
        assert status == 200 and got == made and seen['ETag'] == headers['ETag']
    check_problem(*c.call('POST', '/v1/flavors', body), 'already-exists')
    path = headers['Location']
    status, headers2, got = c.call('PATCH', path, {'labels': {'tier': 'b'}}, {'If-Match': headers['ETag']})
    assert status == 200 and got['labels'] == {'tier': 'b'} and got['revision'] > made['revision']
    stale = c.call('PATCH', path, {'labels': {}}, {'If-Match': headers['ETag']})
    assert check_problem(*stale, 'stale-revision') and stale[0] == 412
    assert c.call('DELETE', path, headers={'If-Match': headers['ETag']})[0] == 412
    assert c.call('PATCH', path, {'vcpus': 2})[0] == 400
    assert c.call('DELETE', path, headers={'If-Match': 'nonsense'})[0] == 400
    status, _, nothing = c.call('DELETE', path, headers={'If-Match': headers2['ETag']})
    assert status == 204 and nothing == b''
    check_problem(*c.call('GET', path), 'not-found')
    check_problem(*c.call('DELETE', path), 'not-found')


def test_not_modified(one):
    c = one[0].connect()
    made = c.call('POST', '/v1/flavors', flavor())[2]
    path, etag = f'/v1/flavors/{made["id"]}', f'"{made["revision"]}"'
    for known in (etag, f'W/{etag}', f'"1", {etag}', '*'):
        status, headers, body = c.call('GET', path, headers={'If-None-Match': known})
        assert status == 304 and body == b'' and headers['ETag'] == etag, known
    assert c.call('GET', path, headers={'If-None-Match': '"1"'})[0] == 200


def test_head_and_methods(one):
    c = one[0].connect()
    c.request('HEAD', '/v1/flavors')
    answer = c.getresponse()
    assert answer.status == 200 and answer.read() == b'' and int(answer.headers['Content-Length']) >= 2
    check_problem(*c.call('PUT', '/v1/flavors', {}), 'method-not-allowed')
    check_problem(*c.call('OPTIONS', '/v1/vms'), 'method-not-allowed')
    check_problem(*c.call('GET', '/v1/nothing'), 'not-found')
    check_problem(*c.call('GET', '/v1/flavors/' + 'x' * 200), 'not-found')
    check_problem(*c.call('GET', '/v1/flavors/%zz'), 'invalid')


def test_lists(one):
    c = one[0].connect()
    mark = f'm{next(counter)}'
    names = [f'{mark}-{i:02}' for i in range(7)]
    for i, name in enumerate(names):
        assert c.call('POST', '/v1/flavors', flavor(name, labels={'mark': mark, 'odd': str(i % 2)}))[0] == 201
    mine = lambda query: c.call('GET', f'/v1/flavors?filter=labels.mark%3D{mark}{query}')
    assert [f['name'] for f in mine('')[2]] == names
    assert [f['name'] for f in mine('%20and%20labels.odd!%3D1')[2]] == names[::2]
    assert [f['name'] for f in mine(f'%20and%20name%3D{names[3]}')[2]] == [names[3]]
    assert mine('&fields=name,vcpus')[2][0] == {'name': names[0], 'vcpus': 1}
    seen, cursor = [], ''
    while True:
        status, headers, page = mine(f'&limit=3{cursor}')
        assert status == 200 and len(page) <= 3
        seen += [f['name'] for f in page]
        if 'X-Drover-Cursor' not in headers:
            break
        cursor = f'&cursor={headers["X-Drover-Cursor"]}'
    assert seen == names
    for bad in ('fields=nam', 'filter=nam%3D1', 'filter=name', 'filter=labels%3D1', 'limit=0', 'limit=x', 'limit=99999999',
                'limit=1&limit=2', 'frobnicate=1', 'dry_run=true', 'consistency=maybe', 'filter=%ff', 'filter=' + 'x' * 600):
        body = check_problem(*c.call('GET', '/v1/flavors?' + bad))
        assert body['status'] == 400 and body['errors'][0]['pointer'].startswith('#?'), bad
    assert 'runing' in check_problem(*c.call('GET', '/v1/vms?filter=state%3Druning'))['detail']


def test_hosts_and_controllers_show_what_is_not_stored(three):
    got = three.request('GET', '/v1/controllers')[2]
    assert [c['name'] for c in got] == ['c1', 'c2', 'c3'] and sum(c['leader'] for c in got) == 1
    assert all(c['role'] == 'voter' for c in got)


def test_dry_run(one):
    c = one[0].connect()
    body = flavor()
    status, headers, got = c.call('POST', '/v1/flavors?dry_run=true', body, key='dry')
    assert status == 200 and got['name'] == body['name'] and headers['X-Drover-Dry-Run'] == 'true'
    assert c.call('GET', f'/v1/flavors/{body["name"]}')[0] == 404
    made = c.call('POST', '/v1/flavors', body, key='dry')
    assert made[0] == 201
    check_problem(*c.call('POST', '/v1/flavors?dry_run=true', body), 'already-exists')
    assert c.call('DELETE', f'/v1/flavors/{body["name"]}?dry_run=true')[0] in (200, 204)
    assert c.call('GET', f'/v1/flavors/{body["name"]}')[0] == 200


# ---- who may ----

def host_certificate(member, directory, name):
    """Join as a host would: its id, and files of its certificate and key."""
    key, csr = directory / f'{name}.key', directory / f'{name}.csr'
    subprocess.run(['openssl', 'req', '-new', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', '/CN=x',
                    '-keyout', key, '-out', csr], check=True, capture_output=True)
    token = member.cluster.token('host')
    status, _, answer = member.request('POST', '/v1/join', {'token': token, 'role': 'host', 'name': name,
                                       'address': '127.0.0.1:7445', 'csr_pem': csr.read_text()}, identity=None)
    assert status == 201, answer
    assert 'ca_key_pem' not in answer
    (directory / f'{name}.pem').write_text(answer['cert_pem'])
    return answer['id'], (directory / f'{name}.pem', key)


def report(host, name, have_index=0, vms=(), wait_ms=0):
    return {'host': host, 'name': name, 'address': '127.0.0.1:7445', 'boot_id': 'b1', 'cpus': 8, 'memory_bytes': 16 << 30,
            'disk_bytes': 100 << 30, 'kvm': 'svm', 'version': 'test', 'have_index': have_index, 'wait_ms': wait_ms,
            'generation': 1, 'vms': list(vms)}


def test_roles(three, tmp_path):
    follower = three.follower()
    host, host_identity = host_certificate(follower, tmp_path, f'h{next(counter)}')
    for member in (three.leader(), follower):
        for path in ('/healthz', '/readyz', '/metrics', '/v1/openapi.json'):
            assert member.request('GET', path, identity=None)[0] == 200, path
        check_problem(*member.request('GET', '/v1/vms', identity=None), 'unauthenticated')
        check_problem(*member.request('GET', '/v1/vms', identity=host_identity), 'forbidden')
        check_problem(*member.request('POST', '/v1/flavors', flavor(), identity=host_identity), 'forbidden')
        check_problem(*member.request('POST', '/v1/node/report', report(host, 'x')), 'forbidden')
        forged = {'X-Drover-Forwarded-Identity': 'spiffe://drover/x/user/admin'}
        for identity in (None, 'admin', host_identity):
            check_problem(*member.request('GET', '/v1/vms', headers=forged, identity=identity), 'forbidden')
        other = report('00000000-0000-4000-8000-000000000000', 'other')
        body = check_problem(*member.request('POST', '/v1/node/report', other, identity=host_identity), 'forbidden')
        assert body['errors'][0]['pointer'] == '#/host'


def test_pages_of_other_sites_may_not_use_a_certificate(three):
    """A browser sends its user's certificate with whatever any page makes it send."""
    for member in (three.leader(), three.follower()):
        for origin in ('https://evil.example', 'null', f'http://{member.address}:7443', f'https://{member.address}:1'):
            for method, path in (('POST', '/v1/vms/nope/stop'), ('GET', '/v1/vms'), ('DELETE', '/v1/vms/nope')):
                check_problem(*member.request(method, path, headers={'Origin': origin}), 'forbidden')
        own = {'Origin': f'https://{member.address}:7443'}
        assert member.request('GET', '/v1/vms', headers=own)[0] == 200
        assert member.request('POST', '/v1/flavors', flavor(), headers=own)[0] == 201
        assert member.request('GET', '/healthz', headers={'Origin': 'https://evil.example'}, identity=None)[0] == 200


def test_join_refusals(one, tmp_path):
    csr = tmp_path / 'r.csr'
    subprocess.run(['openssl', 'req', '-new', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', '/CN=x',
                    '-keyout', tmp_path / 'r.key', '-out', csr], check=True, capture_output=True)
    token = one.token('host')
    prefix, tid, secret, rest = token.split('/', 3)
    good = {'token': token, 'role': 'host', 'name': 'r1', 'address': '127.0.0.1:7445', 'csr_pem': csr.read_text()}
    ask = lambda **change: one[0].request('POST', '/v1/join', {**good, **change}, identity=None)
    next_raft_id = one.request('GET', '/v1/cluster')[2]['next_raft_id']
    check_problem(*ask(token=f'{prefix}/{tid}/{"0" * 64}/{rest}'), 'unauthenticated')
    check_problem(*ask(token=f'{prefix}/00000000-0000-4000-8000-000000000000/{secret}/{rest}'), 'unauthenticated')
    check_problem(*ask(token='garbage'), 'invalid')
    check_problem(*ask(role='controller', raft_address='127.0.0.1:7444'), 'forbidden')
    assert ask(name='bad-csr', csr_pem='garbage')[2]['errors'][0]['pointer'] == '#/csr_pem'
    assert one.request('GET', '/v1/hosts/bad-csr')[0] == 404
    assert one.request('GET', '/v1/cluster')[2]['next_raft_id'] == next_raft_id
    assert ask()[0] == 201
    listed = [t for t in one.request('GET', '/v1/tokens')[2] if t['id'] == tid]
    assert listed and 'secret' not in listed[0] and 'secret_sha256' not in listed[0]
    assert one.request('DELETE', f'/v1/tokens/{tid}')[0] == 204
    check_problem(*ask(name='r2'), 'unauthenticated')


class Impostor:
    """A TLS server with a certificate of the cluster's CA that is none of a controller; keeps what it is sent."""

    def __init__(self, cluster, certificate, key, address):
        chain = cluster.directory / f'impostor{next(counter)}.pem'
        chain.write_text(pathlib.Path(certificate).read_text() + (cluster[0].data / 'admin' / 'ca.pem').read_text())
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(chain, key)
        self.got, self.asked = b'', 0
        self.listener = socket.create_server((address, 0))
        self.endpoint = f'{address}:{self.listener.getsockname()[1]}'
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while True:
            try:
                plain = self.listener.accept()[0]
            except OSError:
                return
            self.asked += 1
            try:
                plain.settimeout(10)
                with self.context.wrap_socket(plain, server_side=True) as stream:
                    self.got += stream.recv(65536)
            except OSError:
                pass

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.mark.parametrize('program', ('drover-controller', 'drover-agent'))
def test_join_tells_its_secret_to_controllers_only(one, tmp_path, program):
    """Hosts and users have certificates of the same CA; they get no token, and the newcomer no cluster from them."""
    name, member = f'j{next(counter)}', one[0]
    host = host_certificate(member, tmp_path, f'{name}-host')[1]
    admin = (member.data / 'admin' / 'cert.pem', member.data / 'admin' / 'key.pem')
    token = one.token('controller' if program == 'drover-controller' else 'host')
    prefix, tid, secret, fingerprint, cluster, addresses = token.split('/')
    assert prefix == 'drover2' and cluster == one.request('GET', '/v1/cluster')[2]['id']
    join = lambda token: subprocess.run([PROGRAM.parent / program, 'join', '--data', tmp_path / 'data', '--address', '127.0.0.1',
                                         '--name', name, '--token', token], capture_output=True, text=True, timeout=60 * PATIENCE)
    for identity in (host, admin):
        impostor = Impostor(one, *identity, member.address)
        try:
            for form in (f'drover2/{tid}/{secret}/{fingerprint}/{cluster}', f'drover1/{tid}/{secret}/{fingerprint}'):
                done = join(f'{form}/{impostor.endpoint}')
                assert done.returncode != 0 and 'identity' in done.stderr, done
        finally:
            impostor.close()
        assert impostor.asked >= 2 and impostor.got == b''
    other = '00000000-0000-4000-8000-000000000000'
    done = join(f'drover2/{tid}/{secret}/{fingerprint}/{other}/{addresses}')
    assert done.returncode != 0 and 'identity' in done.stderr, done
    assert not (tmp_path / 'data' / 'identity.json').exists()
    if program == 'drover-agent':  # the first form is good still, at a controller
        done = join(f'drover1/{tid}/{secret}/{fingerprint}/{addresses}')
        assert done.returncode == 0, done


# ---- idempotency ----

def test_same_key_at_once(three):
    body = flavor()
    key = f'k{next(counter)}'
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda i: three[i % 3].request('POST', '/v1/flavors', body, key=key), range(12)))
    assert {a[0] for a in answers} == {201}
    assert len({a[2]['id'] for a in answers}) == 1
    reused = three[0].request('POST', '/v1/flavors', flavor(), key=key)
    assert reused[0] == 422 and check_problem(*reused, 'idempotency-key-reused')
    for bad in ('x' * 256, ' '):
        assert three[0].request('POST', '/v1/flavors', flavor(), headers={'Idempotency-Key': bad})[0] == 400


def test_token_under_a_key_is_the_same_token(three):
    body = {'name': f't{next(counter)}', 'role': 'host'}
    first = three[0].request('POST', '/v1/tokens', body, key='token-key')
    again = three[1].request('POST', '/v1/tokens', body, key='token-key')
    assert first[0] == again[0] == 201 and first[2]['secret'] == again[2]['secret']


def test_failed_request_does_not_use_the_key_up(one):
    key = f'k{next(counter)}'
    assert one[0].request('POST', '/v1/flavors', {'name': 'x'}, key=key)[0] == 400
    assert one[0].request('POST', '/v1/flavors', flavor(), key=key)[0] == 201


# ---- three controllers ----

def test_any_controller_answers(three):
    body = flavor()
    follower = three.follower()
    status, headers, made = follower.request('POST', '/v1/flavors', body)
    assert status == 201
    for member in three.members:  # read your own write anywhere, at once
        assert member.request('GET', f'/v1/flavors/{body["name"]}')[2] == made
    index = int(headers['X-Drover-Index'])
    wait_for(lambda: int(follower.request('GET', '/v1/flavors?consistency=stale')[1]['X-Drover-Index']) >= index)
    assert body['name'] in [f['name'] for f in follower.request('GET', '/v1/flavors?consistency=stale')[2]]
    before = follower.metric('drover_api_forwarded_total')
    follower.request('GET', '/v1/flavors?consistency=stale')
    assert follower.metric('drover_api_forwarded_total') == before


def test_loss_of_the_leader(fresh_three):
    cs = fresh_three
    body = flavor()
    first = cs.leader()
    assert cs.request('POST', '/v1/flavors', body, key='before')[0] == 201
    first.kill9()
    start = time.monotonic()
    status, _, got = cs.request('POST', '/v1/flavors', flavor(), key='after')  # waits for the new leader by itself
    assert status == 201, got
    assert time.monotonic() - start < 5 * PATIENCE
    again = cs.request('POST', '/v1/flavors', body, key='before')
    assert again[0] == 201 and again[2]['name'] == body['name']
    # a majority is gone: reads and writes say so, stale reads go on
    last = cs.follower()
    cs.leader().kill9()
    status, headers, problem = wait_for(lambda: (lambda a: a if a[2].get('code') == 'no-leader' else None)(
        last.request('POST', '/v1/flavors', flavor())), what='no leader')
    assert status == 503 and headers['Retry-After']
    assert last.request('GET', '/readyz', identity=None)[0] == 503
    assert last.request('GET', '/healthz', identity=None)[0] == 200
    assert last.request('GET', '/v1/flavors?consistency=stale')[0] == 200
    first.run()
    wait_for(lambda: last.request('POST', '/v1/flavors', flavor())[0] == 201, what='a majority is back')


def test_frozen_leader(fresh_three):
    cs = fresh_three
    leader = cs.leader()
    others = [m for m in cs.members if m is not leader]
    assert others[0].request('POST', '/v1/flavors', flavor())[0] == 201  # warms a connection to the leader
    leader.freeze()
    try:
        start = time.monotonic()
        wait_for(lambda: others[0].request('POST', '/v1/flavors', flavor(), key='frozen', timeout_s=60)[0] == 201, 60)
        assert time.monotonic() - start < 15 * PATIENCE
    finally:
        leader.thaw()
    body = flavor()
    assert others[0].request('POST', '/v1/flavors', body)[0] == 201
    assert leader.request('GET', f'/v1/flavors/{body["name"]}')[0] == 200  # no stale answer from the old leader


def test_who_has_gone_while_waiting_for_a_leader_gets_nothing_done(fresh_three):
    """It cannot hear of it, and has perhaps asked elsewhere and been answered that it is refused."""
    cs = fresh_three
    last, *others = cs.members
    for _ in range(5):      # they wait for two seconds: on a busy machine that is over before a leader is found
        gone, stays = flavor(), flavor()
        for member in others:
            member.freeze()
        try:
            wait_for(lambda: last.request('GET', '/readyz', identity=None)[0] == 503, what='no leader')
            connections = [last.connect(), last.connect()]
            for connection, body in zip(connections, (gone, stays)):
                connection.ask('POST', '/v1/flavors', body, key=f'goes-{body["name"]}')
                wait_for(lambda: last.metric('drover_api_waiting') > 0, what='it waits')
            connections[0].close()
        finally:
            for member in others:
                member.thaw()
        answered = connections[1].answer()[0]
        connections[1].close()
        status = wait_for(lambda: (lambda s: s != 503 and s)(last.request('GET', f'/v1/flavors/{gone["name"]}')[0]), what='a leader')
        assert status == 404
        if answered == 201:     # who waits is served in order: the other one had its turn before
            return
        assert answered == 503
    pytest.fail('no leader was found while somebody waited, five times')


def test_acknowledged_writes_survive_all_kills(fresh_three):
    cs = fresh_three
    acknowledged = []
    connection = cs.leader().connect()
    for _ in range(50):
        body = flavor()
        assert connection.call('POST', '/v1/flavors', body)[0] == 201
        acknowledged.append(body['name'])
    for member in cs.members:
        member.kill9()
    for member in cs.members:
        member.run()
    cs.leader()
    names = {f['name'] for f in cs.request('GET', '/v1/flavors')[2]}
    assert set(acknowledged) <= names


def test_transfer_remove_and_join_again(fresh_three):
    cs = fresh_three
    leader = cs.leader()
    target = cs.follower()
    status, _, body = target.request('POST', f'/v1/controllers/{target.name}/transfer')
    assert status == 200, body
    wait_for(lambda: cs.leader() is target, what='leadership is transferred')
    check_problem(*cs.request('POST', '/v1/controllers/nobody/transfer'), 'not-found')
    # a leader that is told to go hands leadership over first
    assert leader.request('DELETE', f'/v1/controllers/{target.name}?dry_run=true')[0] in (200, 204)
    status, _, body = leader.request('DELETE', f'/v1/controllers/{target.name}')
    assert status == 204, body
    others = [m for m in cs.members if m is not target]
    # acknowledged means that its vote is needed no more
    assert cs.leader().metric('drover_raft_members') == 2
    # its certificate is good still, but it does not speak for users any more
    cluster_id = cs.request('GET', '/v1/cluster')[2]['id']
    forged = {'X-Drover-Forwarded-Identity': f'spiffe://drover/{cluster_id}/user/admin'}
    gone = (target.data / 'cert.pem', target.data / 'key.pem')
    check_problem(*cs.leader().request('GET', '/v1/flavors', headers=forged, identity=gone), 'forbidden')
    follower = next(m for m in cs.members if m not in (target, cs.leader()))
    check_problem(*follower.request('GET', '/v1/flavors', headers=forged, identity=gone), 'no-leader')
    target.stop()
    wait_for(lambda: set(others[0].request('GET', '/v1/controllers')[2] and cs.roles()) == {m.name for m in others})
    wait_for(lambda: others[0].metric('drover_raft_members') == 2, what='Raft has two members')
    assert others[0].request('POST', '/v1/flavors', flavor())[0] == 201
    # the same machine again: an empty directory and a Raft id of its own
    subprocess.run(['rm', '-r', target.data], check=True)
    cs.add(target)
    ids = [c['raft_id'] for c in cs.request('GET', '/v1/controllers')[2]]
    assert sorted(ids)[-1] == 4 and len(ids) == 3
    target.stop()
    again = target.join('drover1/x')
    assert again.returncode == 0 and 'nothing was changed' in again.stdout


def test_stop_is_clean_and_hands_over(fresh_three):
    cs = fresh_three
    leader = cs.leader()
    stream = EventStream(leader)
    assert leader.stop() == 0
    log = leader.log()
    assert 'stopped clean' in log and 'loop-not-empty' not in log
    assert 'role=follower' in log, 'it did not hand over'
    stream.close()
    start = time.monotonic()
    assert cs.request('POST', '/v1/flavors', flavor(), key='x')[0] == 201
    assert time.monotonic() - start < 2 * PATIENCE


# ---- events ----

def test_watch_and_resume(three):
    member = three.follower()
    index = int(member.request('GET', '/v1/flavors')[1]['X-Drover-Index'])
    stream = EventStream(member, f'?after={index}')
    assert stream.status == 200
    names = [flavor()['name'] for _ in range(4)]
    for name in names:
        three.leader().request('POST', '/v1/flavors', flavor(name))
    events = stream.take(4)
    stream.close()
    assert [e[2]['object_name'] for e in events] == names and [e[1] for e in events] == ['created'] * 4
    assert [int(e[0]) for e in events] == [e[2]['index'] for e in events]
    resumed = EventStream(three.leader(), headers={'Last-Event-ID': events[1][0]})
    assert [e[2]['object_name'] for e in resumed.take(2)] == names[2:]
    resumed.close()
    filtered = EventStream(member, f'?after={index}&kind=flavor&object={names[2]}')
    assert [e[2]['object_name'] for e in filtered.take(1)] == [names[2]]
    filtered.close()
    status, _, listed = member.request('GET', f'/v1/events?after={index}&kind=flavor', headers={'Accept': 'application/json'})
    assert status == 200 and [e['object_name'] for e in listed] == names
    check_problem(*member.request('GET', '/v1/events?after=0&kind=nonsense'), 'invalid')
    check_problem(*member.request('GET', '/v1/events?after=x'), 'invalid')


def test_events_too_old(one):
    """The ring holds 10,000 events; who asks for older ones must read the lists again."""
    c = one[0].connect()
    made = c.call('POST', '/v1/flavors', flavor())[2]
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        def many(n):
            mine = one[0].connect()
            for i in range(n):
                assert mine.call('PATCH', f'/v1/flavors/{made["id"]}', {'labels': {'n': str(i)}})[0] == 200
            mine.close()
        list(pool.map(many, [330] * 32))
    c = one[0].connect()        # the first one may have been idle for too long
    check_problem(*c.call('GET', '/v1/events?after=1'), 'resync')
    assert c.call('GET', '/v1/events?after=1')[0] == 410


def test_slow_watcher_is_told(one):
    c = one[0].connect()
    made = c.call('POST', '/v1/flavors', flavor())[2]
    index = int(c.call('GET', '/v1/flavors')[1]['X-Drover-Index'])
    slow = EventStream(one[0], f'?after={index}', timeout_s=30, receive_bytes=4096)
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        def many(n):
            mine = one[0].connect()
            for i in range(n):
                assert mine.call('PATCH', f'/v1/flavors/{made["id"]}', {'labels': {'n': 'x' * 200 + str(i)}})[0] == 200
            mine.close()
        list(pool.map(many, [800] * 32))
    c = one[0].connect()        # the first one may have been idle for too long
    last, indexes = None, []
    end = int(c.call('GET', '/v1/flavors')[1]['X-Drover-Index'])
    for _, name, data in slow:
        last = name
        indexes.append(data.get('index'))
        if indexes[-1] == end:
            break
    slow.close()
    seen = [i for i in indexes if i is not None]
    assert seen == list(range(index + 1, index + 1 + len(seen))), 'a gap without a word'
    assert last == 'resync' and len(seen) < 800 * 32


# ---- hosts and VMs ----

def test_an_agent_that_has_just_started_asks_a_true_leader(fresh_three, tmp_path):
    """What such an agent is told it starts, so it is told nothing by a leader that has been cut off from the others."""
    cs = fresh_three
    leader = cs.leader()
    host, identity = host_certificate(leader, tmp_path, 'n1')
    agent = Connection(leader.address, cs.tls(identity))
    assert agent.call('POST', '/v1/node/report', report(host, 'n1'))[0] == 200
    others = [m for m in cs.members if m is not leader]
    for member in others:
        member.freeze()
    try:
        status, _, body = agent.call('POST', '/v1/node/report', report(host, 'n1'))
        assert status == 503, body
    finally:
        for member in others:
            member.thaw()
    agent.close()

    def told():
        again = Connection(cs.leader().address, cs.tls(identity))
        try:
            return again.call('POST', '/v1/node/report', report(host, 'n1'))[0] == 200
        finally:
            again.close()
    wait_for(told, what='a leader tells it')    # there may be more than one election


def test_host_and_vm(three, tmp_path):
    name = f'h{next(counter)}'
    host, identity = host_certificate(three[0], tmp_path, name)
    agent = Connection(three.follower().address, three.tls(identity))
    status, _, orders = agent.call('POST', '/v1/node/report', report(host, name))
    assert status == 200 and orders['vms'] == [], orders
    c = three[0].connect()
    assert wait_for(lambda: c.call('GET', f'/v1/hosts/{name}')[2].get('state') == 'up')
    assert c.call('POST', f'/v1/hosts/{name}/disarm')[0] == 200  # nobody here asks for its lease: it would be lost in seconds
    orders = agent.call('POST', '/v1/node/report', report(host, name))[2]
    image = {'name': f'i{next(counter)}', 'kind': 'kernel', 'kernel': {'url': 'file:///boot/vmlinuz', 'sha256': 'a' * 64}}
    assert c.call('POST', '/v1/images', image)[0] == 201
    vm = {'name': f'v{next(counter)}', 'image': image['name'], 'vcpus': 1, 'memory_bytes': 64 * MIB}
    status, headers, preview = c.call('POST', '/v1/vms?dry_run=true', vm)
    assert status == 200 and c.call('GET', f'/v1/vms/{vm["name"]}')[0] == 404, preview
    # a long poll is answered at once when there is something to do
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        poll = pool.submit(agent.call, 'POST', '/v1/node/report', report(host, name, orders['index'], wait_ms=20000))
        time.sleep(0.2)
        asked = time.monotonic()
        status, headers, operation = c.call('POST', '/v1/vms', vm, key='vm')
        assert status == 202 and headers['Location'] == f'/v1/operations/{operation["id"]}'
        orders = poll.result()[2]
        assert time.monotonic() - asked < 10    # and not the 20 s that it would have waited
    order = orders['vms'][0]
    assert order['name'] == vm['name'] and order['wanted'] == 'running'
    assert c.call('POST', '/v1/vms', vm, key='vm')[2]['id'] == operation['id']
    assert c.call('GET', f'/v1/operations/{operation["id"]}?wait=50ms')[2]['state'] == 'running'
    seen = {'id': order['id'], 'epoch': order['epoch'], 'generation': order['generation'], 'state': 'running'}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        wait = pool.submit(three[1].request, 'GET', f'/v1/operations/{operation["id"]}?wait=30s')
        time.sleep(0.1)
        assert agent.call('POST', '/v1/node/report', report(host, name, orders['index'], [seen]))[0] == 200
        assert wait.result()[2]['state'] == 'succeeded'
    got = c.call('GET', f'/v1/vms/{vm["name"]}')[2]
    assert got['state'] == 'running' and got['host_name'] == name
    assert c.call('GET', f'/v1/vms/{vm["name"]}/placement')[0] == 200
    status, _, loss = three.follower().request('GET', f'/v1/hosts/{name}/loss')
    assert status == 200 and loss['staying'] == 1 and loss['vms'][0]['vm'] == vm['name'] and loss['vms'][0]['outcome'] == 'stays', loss
    assert 'once ha is armed again' in loss['summary']
    check_problem(*c.call('GET', '/v1/hosts/nobody/loss'), 'not-found')
    assert c.call('GET', f'/v1/vms/{vm["name"]}')[2] == got     # nothing of it has happened
    check_problem(*c.call('DELETE', f'/v1/hosts/{name}'), 'in-use')
    # the console: no agent is there, so a good ticket ends in 502, a used or wrong one in 401
    status, _, ticket = three[2].request('POST', f'/v1/vms/{vm["name"]}/console')
    assert status == 201
    upgrade = {'Connection': 'Upgrade', 'Upgrade': 'websocket', 'Sec-WebSocket-Version': '13',
               'Sec-WebSocket-Key': 'dGhlIHNhbXBsZSBub25jZQ=='}
    assert three[1].request('GET', ticket['path'], headers=upgrade, identity=None)[0] == 502
    check_problem(*three[1].request('GET', ticket['path'], headers=upgrade, identity=None), 'unauthenticated')
    status, _, gone = c.call('DELETE', f'/v1/vms/{vm["name"]}?wait=1s')
    assert status in (200, 202)
    orders = agent.call('POST', '/v1/node/report', report(host, name, 0, [seen]))[2]
    assert orders['vms'][0]['wanted'] == 'deleted'
    seen.update(state='deleted', generation=orders['vms'][0]['generation'], epoch=orders['vms'][0]['epoch'])
    agent.call('POST', '/v1/node/report', report(host, name, orders['index'], [seen]))
    assert wait_for(lambda: c.call('GET', f'/v1/operations/{gone["id"]}')[2]['state'] == 'succeeded')
    assert c.call('GET', f'/v1/vms/{vm["name"]}')[0] == 404
    assert c.call('DELETE', f'/v1/hosts/{name}')[0] == 204


# ---- bad input, over every route ----

def routes(cs):
    """(method, path, body schema or None, query parameters) of each route."""
    document = cs.request('GET', '/v1/openapi.json')[2]
    schemas = document['components']['schemas']
    for path, methods in document['paths'].items():
        for method, route in methods.items():
            body = route.get('requestBody')
            schema = body and schemas[body['content']['application/json']['schema']['$ref'].rsplit('/', 1)[1]]
            yield method.upper(), path, schema, schemas


FORMATS = {'path': '/srv/a', 'address': '127.0.0.1:7445', 'raft_address': '127.0.0.1:7444', 'url': 'file:///a', 'sha256': 'a' * 64,
           'id': '0f8fad5b-d9cb-469f-a165-70867728950e', 'host': '0f8fad5b-d9cb-469f-a165-70867728950e'}


def sample(schema, schemas):
    """A value that the schema takes."""
    if '$ref' in schema:
        return sample(schemas[schema['$ref'].rsplit('/', 1)[1]], schemas)
    if 'enum' in schema:
        return schema['enum'][0]
    kind = schema.get('type')
    if kind == 'object':
        return {k: FORMATS.get(k) or sample(v, schemas) for k, v in schema.get('properties', {}).items() if k in schema.get('required', [])}
    if kind == 'array':
        return []
    if kind == 'integer':
        return schema.get('minimum', 1)
    if kind == 'boolean':
        return True
    if schema.get('minLength') == schema.get('maxLength') == 36:
        return FORMATS['id']
    return 'a' * schema.get('minLength', 1)


def wrong(schema):
    """Values that the schema must refuse."""
    kind = schema.get('type')
    if 'enum' in schema or kind == 'string':
        yield from (1, True, [], {}, None)
        if 'maxLength' in schema:
            yield 'x' * (schema['maxLength'] + 1)
        yield 'a\u0000b'
        if 'enum' in schema:
            yield 'nonsense'
    elif kind == 'integer':
        yield from ('1', 1.5, True, [], -1, 2 ** 63, 1e300)
    elif kind == 'boolean':
        yield from ('true', 1, [])
    elif kind == 'array':
        yield from ({}, 'x', 1, [[]], [1] * (schema.get('maxItems', 8) + 1))
    elif kind == 'object' or '$ref' in schema:
        yield from ([], 'x', 1)


def bad_bodies(method, schema, schemas):
    """(body, field that must be named or None)"""
    good = {} if method == 'PATCH' else sample(schema, schemas)
    for text in (b'', b'{', b'[]', b'null', b'"x"', b'{"a":1,"a":2}', b'\xff\xfe', b'{"name":"\xc3\x28"}', b'{"name":"a"}x',
                 b'{"a":' * 200 + b'1' + b'}' * 200, b'[' * 100000, b'{"\\u0000":1}', b'{"name":"\\ud800"}', b'{"x":1e999}'):
        yield text, None
    yield json.dumps({**good, 'no_such_field': 1}).encode(), '#/no_such_field'
    for name, field in schema['properties'].items():
        for value in wrong(field):
            if method == 'PATCH' and value is None:
                continue  # null takes a field away
            yield json.dumps({**good, name: value}).encode(), f'#/{name}'
        if field.get('readOnly'):
            yield json.dumps({**good, name: sample(field, schemas)}).encode(), f'#/{name}'
        if method == 'POST' and name in schema.get('required', []):
            yield json.dumps({k: v for k, v in good.items() if k != name}).encode(), None


def test_bad_input_on_every_route(one, tmp_path):
    host, host_identity = host_certificate(one[0], tmp_path, f'h{next(counter)}')
    controller_identity = (one[0].data / 'cert.pem', one[0].data / 'key.pem')
    connections = {i: one[0].connect(i) for i in ('admin', host_identity, controller_identity)}
    tried = 0
    for method, path, schema, schemas in routes(one):
        identity = (host_identity if path.startswith('/v1/node/') else
                    controller_identity if path.startswith('/v1/controller/') else 'admin')
        c = connections[identity]
        path = path.replace('{id}', 'nothing')
        if path not in ('/healthz', '/v1/events'):
            answer = c.call(method, path + '?no_such_parameter=1')
            assert check_problem(*answer)['errors'][0]['pointer'] == '#?no_such_parameter', (method, path)
        if schema is None:
            if method != 'GET':
                refused = 404 if path.endswith('/upload') else 400  # a piece of a file may be anything
                assert c.call(method, path, b'{"x":1}')[0] == refused, (method, path)
            continue
        for body, pointer in bad_bodies(method, schema, schemas):
            answer = c.call(method, path, body)
            problem = check_problem(*answer)
            assert answer[0] in (400, 404), (method, path, body[:200], problem)
            if pointer and answer[0] == 400 and problem['code'] != 'malformed':
                assert problem.get('errors', [{'pointer': '#/'}])[0]['pointer'].split('/')[1] == pointer.split('/')[1], (method, path, body[:300], problem)
            tried += 1
    assert tried > 500
    assert one[0].request('GET', '/v1/vms')[0] == 200


def test_big_bodies_and_memory(one):
    c = one[0]
    c.request('GET', '/v1/flavors')
    before = c.metric('drover_process_resident_bytes')
    for _ in range(30):
        try:
            status, headers, body = c.request('POST', '/v1/flavors', b'x' * 10_000_000)
            assert status == 413 and check_problem(status, headers, body, 'too-large')
        except (ConnectionError, OSError):
            pass  # the server may close while the client still writes
        body = json.dumps({'name': 'x', 'labels': {str(i): 'v' * 10 for i in range(30000)}}).encode()
        assert c.request('POST', '/v1/flavors', body)[0] == 400
    assert c.metric('drover_process_resident_bytes') - before < (512 if 'asan' in str(PROGRAM) else 64) * MIB  # asan keeps what was freed


def test_half_requests_and_slow_clients(one):
    sockets = []
    for text in (b'', b'GET', b'GET /v1/vms HT', b'GET /v1/vms HTTP/1.1\r\nHost: x\r\n',
                 b'POST /v1/flavors HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"name":'):
        for _ in range(40):
            s = raw_tls(one[0])
            s.sendall(text)
            sockets.append(s)
    start = time.monotonic()
    assert one[0].request('GET', '/v1/vms')[0] == 200
    assert time.monotonic() - start < 2 * PATIENCE
    for s in sockets[::2]:
        s.close()
    slow = raw_tls(one[0])
    for byte in b'GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n':
        slow.sendall(bytes([byte]))
    assert slow.recv(100).startswith(b'HTTP/1.1 200')
    for text in (b'GET /v1/vms HTTP/1.1\r\n\r\n', b'GET  /v1/vms HTTP/1.1\r\nHost: x\r\n\r\n', b'BREW /v1/vms HTTP/1.1\r\nHost: x\r\n\r\n',
                 b'POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
                 b'GET /v1/vms HTTP/1.1\nHost: x\n\n'):
        s = raw_tls(one[0])
        s.sendall(text)
        answer = s.recv(4096)
        assert answer == b'' or answer.split()[1][:1] in (b'4', b'5'), (text, answer)
        s.close()
    for s in sockets:
        s.close()
    assert one[0].request('GET', '/v1/vms')[0] == 200


def test_metrics(one):
    assert one[0].request('POST', '/v1/flavors', flavor())[0] == 201
    text = one[0].request('GET', '/metrics', identity=None)[2].decode()
    seen = set()
    for line in text.splitlines():
        if line.startswith('# TYPE '):
            seen.add(line.split()[2])
        elif not line.startswith('#'):
            name, value = line.rsplit(' ', 1)
            float(value)
            base = name.split('{')[0]
            assert base in seen or any(base == s + suffix for s in seen for suffix in ('_bucket', '_sum', '_count')), line
    assert 'drover_api_requests_total{route="flavor_create",status="2xx"}' in text
    assert one[0].metric('drover_raft_leading') == 1
    assert 'drover_hosts{state="lost"} 0\n' in text and 'drover_vms_not_as_wanted 0\n' in text


def test_metrics_of_many_vms(fresh_three):
    """Those of more VMs than the loop looks at by itself are made by a thread, once for all who ask within some seconds."""
    leader = fresh_three.leader()
    image = {'name': 'tiny', 'kind': 'kernel', 'kernel': {'url': 'file:///boot/vmlinuz', 'sha256': 'a' * 64}}
    assert leader.request('POST', '/v1/images', image)[0] == 201

    def text():
        return leader.request('GET', '/metrics', identity=None)[2].decode()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        def many(k):
            mine = leader.connect()
            for i in range(63):
                assert mine.call('POST', '/v1/vms', {'name': f'v{k}-{i}', 'image': 'tiny', 'vcpus': 1, 'memory_bytes': 64 * MIB})[0] == 202
            mine.close()
        list(pool.map(many, range(16)))
        texts = list(pool.map(lambda _: text(), range(64)))
    waiting = 'drover_vms{state="pending"} 1008\n'
    assert all(waiting in t and 'drover_raft_leading 1\n' in t for t in texts)
    assert leader.request('DELETE', '/v1/vms/v1-1')[0] in (200, 202, 204)
    wait_for(lambda: waiting not in text(), 10, 'what is some seconds old is made anew')
