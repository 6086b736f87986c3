"""Images: kept by hosts, fetched from each other, checked by whoever gets them, downloaded through any controller."""
import hashlib
import os
import random

import pytest

from bed import wait_until

MIB = 1 << 20


def make_file(path, size, seed, data=None):
    """A sparse file of @size bytes with runs of random data; its SHA-256."""
    rng = random.Random(seed)
    with open(path, 'wb') as file:
        for _ in range(8 if data is None else 0):
            file.seek(rng.randrange(size // 4096 - 64) * 4096)
            file.write(rng.randbytes(rng.randrange(1, 200000)))
        file.seek(0)
        file.write(data or b'begin')
        file.truncate(size)
    return sha256(path)


def sha256(path):
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while piece := file.read(MIB):
            digest.update(piece)
    return digest.hexdigest()


class Images:
    def __init__(self, cluster):
        self.cluster = cluster
        self.tmp = cluster.bed.directory / 'files'          # hosts see it too
        self.tmp.mkdir()

    def create(self, name, size=16 * MIB, seed=1):
        """An image by URL, whose file is on this machine."""
        path = self.tmp / f'{name}.raw'
        checksum = make_file(path, size, seed)
        status, _, answer = self.cluster.api('POST', '/v1/images', {
            'name': name, 'kind': 'disk', 'disk': {'url': f'file://{path}', 'sha256': checksum, 'size_bytes': size}})
        assert status == 201, answer
        return path, checksum

    def show(self, name):
        return self.cluster.api('GET', f'/v1/images/{name}')[2]

    def copies(self, name, state='held'):
        return {copy['name'] for copy in self.show(name).get('copies', []) if copy['state'] == state}

    def copy(self, name, host):
        return next((copy for copy in self.show(name).get('copies', []) if copy['name'] == host), {})

    def distribute(self, name, *hosts):
        self.cluster.cli('image', 'distribute', name, *[word for host in hosts for word in ('--host', host)], '--wait')

    def path(self, number, checksum):
        return self.cluster.agent(number).directory / 'images' / checksum


@pytest.fixture
def images(make_cluster):
    def make(controllers=1, agents=3):
        return Images(make_cluster(controllers=controllers, agents=agents))
    return make


def test_hosts_get_images_from_each_other(images):
    made = images()
    source, checksum = made.create('one')
    made.distribute('one', 'n1')
    assert made.copies('one') == {'n1'}
    source.unlink()                                 # from now on there is nobody but n1
    made.distribute('one')
    assert made.copies('one') == {'n1', 'n2', 'n3'}
    for number in (1, 2, 3):
        assert sha256(made.path(number, checksum)) == checksum
        assert made.path(number, checksum).stat().st_blocks * 512 < 4 * MIB        # holes are neither sent nor written
    # a host that has lost it gets it again, by itself
    agent = made.cluster.agent(2)
    agent.program.kill9()
    made.path(2, checksum).unlink()
    agent.program.restart()
    wait_until(lambda: made.path(2, checksum).exists(), 30, 'n2 has it again')
    # nobody is to have it any more: files go with the image
    assert made.cluster.api('DELETE', '/v1/images/one')[0] == 204
    wait_until(lambda: not any(made.path(n, checksum).exists() for n in (1, 2, 3)), 30, 'the files are gone')


def test_what_a_peer_has_spoilt_is_refused(images):
    made = images()
    source, checksum = made.create('one')
    made.distribute('one', 'n1')
    made.distribute('one', 'n2')
    source.unlink()
    with open(made.path(1, checksum), 'r+b') as file:       # the disk of n1 has gone bad
        file.seek(5)
        file.write(b'?')
    made.distribute('one', 'n3')                             # n1 is the first that is asked; n2 has what is right
    assert sha256(made.path(3, checksum)) == checksum
    log = made.cluster.agent(3).program.log_path.read_text() if hasattr(made.cluster.agent(3).program, 'log_path') else None
    assert log is None or 'its SHA-256 is' in log
    # with nobody else left, the reason is told, and no wrong file appears
    two = made.cluster.agent(2)
    three = made.cluster.agent(3)
    two.program.kill9()
    three.program.kill9()
    made.path(3, checksum).unlink()
    three.program.restart()
    wait_until(lambda: 'SHA-256' in made.copy('one', 'n3').get('reason', ''), 60, 'n3 says what is wrong')
    assert not made.path(3, checksum).exists()
    two.program.restart()
    wait_until(lambda: made.copy('one', 'n3').get('state') == 'held', 60, 'n3 has it from n2')
    assert sha256(made.path(3, checksum)) == checksum


def test_download(images, tmp_path):
    made = images(controllers=3, agents=1)
    size = 48 * MIB
    source, checksum = made.create('one', size=size)
    made.distribute('one', 'n1')
    content = source.read_bytes()
    for controller in made.cluster.controllers:              # followers do it as well
        connection = made.cluster.connection(controller, timeout_s=30)
        connection.request('GET', '/v1/images/one/content', headers={'Range': f'bytes={size - 1000}-'})
        answer = connection.getresponse()
        assert answer.status == 206 and answer.headers['Content-Range'] == f'bytes {size - 1000}-{size - 1}/{size}'
        assert answer.read() == content[-1000:]
        connection.close()
    connection = made.cluster.connection(timeout_s=30)
    connection.request('GET', '/v1/images/one/content', headers={'Range': f'bytes={size}-'})
    assert connection.getresponse().status == 416
    connection.close()
    target = tmp_path / 'got.raw'
    (tmp_path / 'got.raw.part').write_bytes(content[:20 * MIB])      # of an attempt that was broken off
    made.cluster.cli('image', 'download', 'one', target, parse=False)
    assert sha256(target) == checksum and target.stat().st_blocks * 512 < 30 * MIB
    done = made.cluster.bed.run(made.cluster.cli_command('image', 'download', 'one', target), check=False)
    assert done.returncode == 5 and 'exists' in done.stderr
    # an earlier attempt at something else: what came is not the image, and that is said
    (tmp_path / 'bad.raw.part').write_bytes(os.urandom(MIB))
    done = made.cluster.bed.run(made.cluster.cli_command('image', 'download', 'one', tmp_path / 'bad.raw'), check=False)
    assert done.returncode == 1 and 'SHA-256' in done.stderr and not (tmp_path / 'bad.raw').exists()
    made.cluster.cli('image', 'download', 'one', tmp_path / 'bad.raw', parse=False)
    assert sha256(tmp_path / 'bad.raw') == checksum
