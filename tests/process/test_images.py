"""Images: kept by hosts, fetched from each other, checked by whoever gets them, downloaded through any controller."""
import hashlib
import io
import os
import random
import subprocess
import tarfile

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


@pytest.mark.slow
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
        connection = made.cluster.connection(controller, timeout_s=120)
        connection.request('GET', '/v1/images/one/content', headers={'Range': f'bytes={size - 1000}-'})
        answer = connection.getresponse()
        assert answer.status == 206 and answer.headers['Content-Range'] == f'bytes {size - 1000}-{size - 1}/{size}'
        assert answer.read() == content[-1000:]
        connection.close()
    connection = made.cluster.connection(timeout_s=120)
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


# ---- content that people bring ----

def qemu_img(*words):
    subprocess.run(['qemu-img', *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def create_cli(made, name, path, image_format, *words):
    return made.cluster.cli_command('image', 'create', name, '--file', path, '--format', image_format, *words)


def upload(made, name, path, image_format, check=True):
    return made.cluster.bed.run(create_cli(made, name, path, image_format), check=check, timeout_s=90)


def ova_of(path, vmdk, name='disk1.vmdk', ovf_name=None):
    ovf = f'''<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
  <!-- <File ovf:id="file1" ovf:href="other"/> -->
  <References><File ovf:href="{ovf_name or name}" ovf:id="file1" ovf:size="{vmdk.stat().st_size}"/></References>
  <DiskSection><Disk ovf:capacity="16" ovf:diskId="vmdisk1" ovf:fileRef="file1"/></DiskSection>
</Envelope>'''.encode()
    with tarfile.open(path, 'w', format=tarfile.USTAR_FORMAT) as archive:
        info = tarfile.TarInfo('box.ovf')
        info.size = len(ovf)
        archive.addfile(info, io.BytesIO(ovf))
        archive.add(vmdk, name)


def test_upload_of_every_format(images):
    made = images(agents=2)
    raw = made.tmp / 'disk.raw'
    checksum = make_file(raw, 24 * MIB, 5)
    upload(made, 'raw', raw, 'raw')
    for image_format, options in (('qcow2', []), ('vmdk', ['-o', 'subformat=streamOptimized']), ('vhdx', [])):
        path = made.tmp / f'disk.{image_format}'
        qemu_img('convert', '-O', image_format, *options, raw, path)
        upload(made, image_format, path, image_format)
    ova_of(made.tmp / 'disk.ova', made.tmp / 'disk.vmdk')
    upload(made, 'ova', made.tmp / 'disk.ova', 'ova')
    for name in ('raw', 'qcow2', 'vmdk', 'vhdx', 'ova'):
        image = made.show(name)
        assert image['state'] == 'ready' and image['disk']['sha256'] == checksum, image       # one content, one identity
        wait_until(lambda name=name: made.copies(name) == {'n1', 'n2'}, 30, 'a second host has it')    # by itself
    for number in (1, 2):
        assert sha256(made.path(number, checksum)) == checksum
        assert made.path(number, checksum).stat().st_blocks * 512 < 6 * MIB
        assert not [p for p in (made.cluster.agent(number).directory / 'imports').iterdir() if p.suffix != '.done']


def test_what_is_refused(images):
    made = images(agents=1)
    raw, base, top = made.tmp / 'disk.raw', made.tmp / 'base.qcow2', made.tmp / 'top.qcow2'
    make_file(raw, 4 * MIB, 6)
    qemu_img('convert', '-O', 'qcow2', raw, base)
    qemu_img('create', '-f', 'qcow2', '-b', base, '-F', 'qcow2', top)
    external = made.tmp / 'external.qcow2'
    qemu_img('create', '-f', 'qcow2', '-o', f'data_file={made.tmp / "data.raw"},data_file_raw=on', external, '4M')
    flat = made.tmp / 'flat.vmdk'
    qemu_img('convert', '-O', 'vmdk', '-o', 'subformat=monolithicFlat', raw, flat)
    two = made.tmp / 'two.ova'
    ova_of(two, raw, ovf_name='elsewhere.vmdk')
    damaged = made.tmp / 'damaged.qcow2'
    damaged.write_bytes(base.read_bytes()[:3 * 65536] + random.Random(9).randbytes(65536) + base.read_bytes()[4 * 65536:])
    for name, path, image_format, words in (
            ('backing', top, 'qcow2', 'backing file'), ('external', external, 'qcow2', 'external data file'),
            ('wrong', raw, 'qcow2', 'not qcow2'), ('flat', flat, 'vmdk', 'other files'), ('no-ova', raw, 'ova', 'no tar archive'),
            ('absent', two, 'ova', 'elsewhere.vmdk'), ('no-vhdx', base, 'vhdx', 'not vhdx'), ('damaged', damaged, 'qcow2', '')):
        done = upload(made, name, path, image_format, check=False)
        assert done.returncode in (1, 10) and words in done.stderr, (name, done.stderr)
        assert made.show(name)['state'] == 'failed' and words in made.show(name)['state_reason']
    done = upload(made, 'guess', raw, 'img', check=False)
    assert done.returncode == 2 and 'format' in done.stderr
    done = upload(made, 'backing', raw, 'raw', check=False)
    assert done.returncode == 5 and 'image delete backing' in done.stderr
    status, _, answer = made.cluster.api('POST', '/v1/vms', {'name': 'v', 'image': 'backing', 'vcpus': 1, 'memory_bytes': 64 << 20})
    assert status == 409 and 'backing file' in answer['detail']
    assert made.cluster.api('DELETE', '/v1/images/backing')[0] == 204
    upload(made, 'backing', raw, 'raw')
    # not a byte of all that was refused is left
    assert not [p for p in (made.cluster.agent(1).directory / 'imports').iterdir() if p.suffix != '.done']
    assert made.cluster.cli('cluster', 'status', parse=False)


def patch(made, name, offset, data):
    connection = made.cluster.connection(timeout_s=120)
    try:
        connection.request('PATCH', f'/v1/images/{name}/upload', data, {'Upload-Offset': str(offset), 'Content-Type': 'application/offset+octet-stream'})
        answer = connection.getresponse()
        answer.read()
        return answer.status, int(answer.headers.get('Upload-Offset', -1))
    finally:
        connection.close()


def offset_of(made, name):
    status, headers, _ = made.cluster.api('GET', f'/v1/images/{name}/upload')
    return int(headers['Upload-Offset']) if status == 200 else None


def test_upload_that_is_interrupted(images):
    """kill -9 of the agent, then of every controller, in the middle; what was answered is still there."""
    made = images(controllers=3, agents=2)
    path = made.tmp / 'disk.raw'
    path.write_bytes(random.Random(7).randbytes(30 * MIB))
    data, checksum = path.read_bytes(), sha256(path)
    status, _, image = made.cluster.api('POST', '/v1/images', {
        'name': 'disk', 'kind': 'disk', 'source': {'format': 'raw', 'sha256': checksum, 'size_bytes': len(data)}})
    assert status == 201 and image['state'] == 'uploading', image
    wait_until(lambda: offset_of(made, 'disk') == 0, 20, 'the host expects it')
    assert patch(made, 'disk', 0, data[:4 * MIB]) == (204, 4 * MIB)
    assert patch(made, 'disk', 0, data[:4 * MIB]) == (409, 4 * MIB)               # an answer that was lost
    assert patch(made, 'disk', 4 * MIB, data[4 * MIB:8 * MIB]) == (204, 8 * MIB)

    def too_much():
        try:
            return patch(made, 'disk', 8 * MIB, data + data)[0]
        except OSError:
            return None     # it may close while this side still writes
    assert wait_until(too_much, 20, 'it is refused') == 413
    host = next(agent for agent in made.cluster.agents
                if agent.name == next(h['name'] for h in made.cluster.items('/v1/hosts') if h['id'] == image['host']))
    host.program.kill9()
    host.program.restart()
    wait_until(lambda: offset_of(made, 'disk') == 8 * MIB, 30, 'the upload is where it was')
    assert patch(made, 'disk', 8 * MIB, data[8 * MIB:12 * MIB]) == (204, 12 * MIB)
    for controller in made.cluster.controllers:
        controller.program.kill9()
    for controller in made.cluster.controllers:
        controller.program.restart()
    wait_until(lambda: ask_quietly(made) == 12 * MIB, 30, 'the cluster is back, and the upload where it was')
    # the CLI, called with the same file, finds out and goes on
    done = upload(made, 'disk', path, 'raw')
    assert 'image disk: done' in done.stdout
    assert made.show('disk')['disk']['sha256'] == checksum
    operation = made.cluster.api('GET', f'/v1/operations/{image["operation"]}')[2]
    assert operation['state'] == 'succeeded'
    # another file under the name of an upload that waits is refused; a cancelled upload leaves nothing
    status, _, image = made.cluster.api('POST', '/v1/images', {
        'name': 'other', 'kind': 'disk', 'source': {'format': 'raw', 'sha256': '0' * 64, 'size_bytes': 5}})
    assert status == 201
    done = upload(made, 'other', path, 'raw', check=False)
    assert done.returncode == 5, done.stderr
    wait_until(lambda: offset_of(made, 'other') == 0, 20, 'the host expects it')
    assert patch(made, 'other', 0, b'hello')[0] == 204                            # of another checksum
    wait_until(lambda: made.show('other')['state'] == 'failed', 20, 'it is refused')
    assert 'SHA-256' in made.show('other')['state_reason']
    status, _, image = made.cluster.api('POST', '/v1/images', {
        'name': 'third', 'kind': 'disk', 'source': {'format': 'raw', 'sha256': checksum, 'size_bytes': len(data)}})
    wait_until(lambda: offset_of(made, 'third') == 0, 20, 'the host expects it')
    assert patch(made, 'third', 0, data[:MIB])[0] == 204
    assert made.cluster.api('POST', f'/v1/operations/{image["operation"]}/cancel')[0] == 200
    wait_until(lambda: made.cluster.api('GET', '/v1/images/third')[0] == 404, 20, 'it is gone')
    wait_until(lambda: not [p for a in made.cluster.agents for p in (a.directory / 'imports').iterdir() if p.suffix != '.done'], 20,
               'its bytes too')


def ask_quietly(made):
    try:
        return offset_of(made, 'disk')
    except (OSError, KeyError):
        return None


# http.server asks for its own name first, and there is nobody to answer
WEB = '''
import functools, http.server, socketserver, sys
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])
socketserver.ThreadingTCPServer(('0.0.0.0', 8080), handler).serve_forever()
'''


@pytest.mark.slow
def test_import_by_url_and_losing_a_host(images):
    made = images(agents=3)
    raw, qcow2 = made.tmp / 'disk.raw', made.tmp / 'disk.qcow2'
    checksum = make_file(raw, 16 * MIB, 8)
    qemu_img('convert', '-O', 'qcow2', raw, qcow2)
    host = made.cluster.bed.host(1)
    server = host.start('web', ['/usr/bin/python3', '-c', WEB, str(made.tmp)])
    url = f'http://{host.address}:8080'
    wait_until(lambda: made.cluster.bed.run(['curl', '-sf', '-o', '/dev/null', f'{url}/'], check=False).returncode == 0, 10, 'it serves')
    made.cluster.cli('image', 'create', 'web', '--url', f'{url}/disk.qcow2', '--format', 'qcow2', '--sha256', sha256(qcow2), '--wait')
    assert made.show('web')['disk']['sha256'] == checksum
    done = made.cluster.bed.run(made.cluster.cli_command('image', 'create', 'none', '--url', f'{url}/nothing', '--format', 'raw', '--wait'),
                                check=False)
    assert done.returncode == 4 and '404' in done.stderr, done.stderr
    server.kill9()
    wait_until(lambda: len(made.copies('web')) == 2, 30, 'two hosts have it')
    # the one that made it is lost: another one takes its place from the second
    maker = next(agent for agent in made.cluster.agents if agent.name in made.copies('web'))
    maker.program.kill9()
    spare = next(agent for agent in made.cluster.agents if agent.name not in made.copies('web') and agent is not maker)
    wait_until(lambda: spare.name in made.copies('web'), 40, 'a third host has it')
    assert sha256(spare.directory / 'images' / checksum) == checksum
