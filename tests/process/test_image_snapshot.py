"""Images made of snapshots: a guest that writes goes on writing, and a VM of the image, on another host, finds its disk as it was then.

The n-th write of the guest fills its block with words that say n (tests/guest/guest_disk.c).
"""
import fcntl
import hashlib
import json
import os
import random
import struct
import time

import pytest

from bed import wait_until
from disk_guest import BLOCKS, NEEDED, agent_of, create, done, image, life, pool, read_before, wait_pool, wait_writes, writes

pytestmark = NEEDED

BLOCK_BYTES = 4096
LAYERS = 'disks/root.layers'


def imports(cluster):
    """What the agents have begun to make, but for the notes of what is done."""
    return [p.name for a in cluster.agents for p in (a.directory / 'imports').iterdir() if p.suffix != '.done']


def numbers(path):
    """The number of the write that each block holds; torn ones are told."""
    data = path.read_bytes()
    found = []
    for block in range(BLOCKS):
        words = struct.unpack_from(f'<{BLOCK_BYTES // 8}Q', data, block * BLOCK_BYTES)
        if any(words):
            assert words == tuple(range(words[0], words[0] + len(words))) and words[0] % len(words) == 0, f'block {block} is torn'
        found.append(words[0] // len(words))
    return found


def operation_of(cluster, name):
    made = cluster.api('GET', f'/v1/images/{name}')[2]
    return cluster.api('GET', f'/v1/operations/{made["operation"]}')[2]


def test_a_clone_has_what_the_snapshot_has(make_cluster):
    cluster = make_cluster(controllers=1, agents=2)
    image(cluster)
    pool(cluster, 'shared')
    wait_pool(cluster, 'shared', n1='present', n2='present')
    vm_id = create(cluster, 'a', cmdline='disk=7', pin='n1', pool='shared',
                   disks=[{'name': 'root', 'image': True, 'size_bytes': 64 << 20}])
    source = agent_of(cluster, 'a')
    wait_writes(source, vm_id, 2 * BLOCKS)
    before = writes(source, vm_id)
    done(cluster, cluster.api('POST', '/v1/vms/a/snapshots', {'name': 's'}))
    wait_writes(source, vm_id)
    after = writes(source, vm_id) + 2 * BLOCKS
    wait_writes(source, vm_id, 2 * BLOCKS)          # by now each block has been written again

    refused = cluster.bed.run(cluster.cli_command('image', 'create', 'then', '--from-snapshot', 's', '--wait'), check=False)
    assert refused.returncode != 0 and 'kind kernel' in refused.stderr, refused.stderr
    cluster.cli('image', 'create', 'then', '--from-snapshot', 's', '--kind', 'kernel', '--wait', parse=False)
    made = cluster.api('GET', '/v1/images/then')[2]
    assert made['state'] == 'ready' and made['source']['disk'] == 'root' and made['disk']['size_bytes'] == 64 << 20, made
    path = source.directory / 'images' / made['disk']['sha256']
    assert path.stat().st_blocks * 512 <= 2 << 20   # of 64 MiB
    content = numbers(path)
    assert before - BLOCKS <= max(content) <= after, (before, content, after)
    wait_writes(source, vm_id)                      # and the VM was not held up
    assert writes(source, vm_id) > max(content)
    assert 'disk: ' not in life(source, vm_id)

    clone = create(cluster, 'b', image='then', cmdline='disk=7', pin='n2')
    target = agent_of(cluster, 'b')
    assert target.name == 'n2'
    wait_writes(target, clone, 2)
    found = wait_until(lambda: read_before(target, clone), 30, 'it finds what was written', poll_s=0.05)
    assert set(found) <= set(content), (found, content)
    done(cluster, cluster.api('DELETE', '/v1/snapshots/s'))
    wait_until(lambda: not imports(cluster), 10, 'nothing is left of the work')


class Lock:
    """A merge that has a layer open for writing, as any other process sees it (block/block_fd.h)."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDWR)
        fcntl.fcntl(self.fd, 37, struct.pack('hhqqi4x', fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))     # F_OFD_SETLK

    def close(self):
        os.close(self.fd)


def test_everybody_is_killed_on_the_way(make_cluster):
    cluster = make_cluster(controllers=1, agents=1)
    image(cluster)
    vm_id = create(cluster, 'a', cmdline='disk=7')
    agent, controller = cluster.agent(1), cluster.controller(1)
    wait_writes(agent, vm_id, BLOCKS)
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    done(cluster, cluster.api('POST', '/v1/vms/a/snapshots', {'name': 's'}))
    done(cluster, cluster.api('POST', '/v1/vms/a/snapshots', {'name': 't'}))
    snapshot = cluster.api('GET', '/v1/snapshots/s')[2]
    layers = agent.directory / 'vms' / vm_id / LAYERS
    head = json.loads((layers / 'root.disk').read_text())
    layer = next(s['layer'] for s in head['snapshots'] if s['name'] == snapshot['id'])
    body = {'kind': 'kernel', 'source': {'snapshot': 's'}}

    def begin(name):
        status, _, answer = cluster.api('POST', '/v1/images', {'name': name, **body})
        assert status == 201 and answer['state'] == 'importing', answer
        return answer['id']

    def waits(name):
        try:
            return 'merged' in operation_of(cluster, name).get('step', '')
        except (OSError, KeyError):
            return False

    lock = Lock(layers / f'{layer}.map')
    image_id = begin('i')
    wait_until(lambda: waits('i'), 20, 'its host is at it')
    assert imports(cluster) == [f'{image_id}.copy']
    # neither this snapshot nor another of the VM goes meanwhile
    for name in ('s', 't'):
        status, _, answer = cluster.api('DELETE', f'/v1/snapshots/{name}')
        assert status == 409 and 'operation cancel' in answer['detail'], answer
    agent.program.kill9()
    controller.program.kill9()
    assert imports(cluster) == [f'{image_id}.copy']
    (agent.directory / 'imports' / f'{vm_id}.copy').write_bytes(b'of an operation that has ended meanwhile')
    controller.program.restart()
    agent.program.restart()
    wait_until(lambda: agent.program.text().count('task-begins') == 4, 30, 'it has begun anew')
    wait_until(lambda: imports(cluster) == [f'{image_id}.copy'], 10, 'what nobody goes on with is gone')
    asked_again = cluster.bed.run(cluster.cli_command('image', 'create', 'i', '--from-snapshot', 's', '--kind', 'kernel'))
    assert operation_of(cluster, 'i')['id'] in asked_again.stdout       # it is that one still
    agent.program.kill9()
    lock.close()
    agent.program.restart()
    cluster.wait_operation(wait_until(lambda: operation_of(cluster, 'i'), 10))
    made = cluster.api('GET', '/v1/images/i')[2]
    assert made['state'] == 'ready', made
    assert max(numbers(agent.directory / 'images' / made['disk']['sha256'])) > 0
    assert not imports(cluster)

    # the same content once more is the same file; and one that is cancelled leaves nothing
    lock = Lock(layers / f'{layer}.map')
    begin('j')
    wait_until(lambda: waits('j'), 20, 'its host is at it')
    assert cluster.api('POST', f'/v1/operations/{operation_of(cluster, "j")["id"]}/cancel')[0] == 200
    wait_until(lambda: cluster.api('GET', '/v1/images/j')[0] == 404, 20, 'it is gone')
    assert not imports(cluster)
    begin('k')                                      # its VM goes, and the snapshot with it
    wait_until(lambda: waits('k'), 20, 'its host is at it')
    done(cluster, cluster.api('DELETE', '/v1/vms/a'))
    lock.close()
    wait_until(lambda: cluster.api('GET', '/v1/images/k')[2].get('state') != 'importing', 20, 'it has ended')
    wait_until(lambda: not imports(cluster), 20, 'nothing is left of it')
    assert cluster.api('GET', '/v1/snapshots')[2] == []
    create(cluster, 'b', image='i')                 # the first one lives on without them


@pytest.mark.slow
def test_killed_at_random(make_cluster):
    """The agent's end at any moment of copying, hashing and naming, while the VM starts and stops: what comes of it is whole."""
    seed = int(os.environ.get('DROVER_SEED', 0)) or int.from_bytes(os.urandom(4), 'little')
    print(f'seed {seed}: DROVER_SEED={seed} has the same content and moments')
    chance = random.Random(seed)
    cluster = make_cluster(controllers=1, agents=1)
    disk = cluster.bed.directory / 'large.img'
    disk.write_bytes(chance.randbytes(192 << 20))
    checksum = hashlib.sha256(disk.read_bytes()).hexdigest()
    status, _, answer = cluster.api('POST', '/v1/images', {'name': 'large', 'kind': 'disk', 'disk': {
        'url': f'file://{disk}', 'sha256': checksum}})
    assert status == 201, answer
    create(cluster, 'a', image='large')
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    done(cluster, cluster.api('POST', '/v1/vms/a/snapshots', {'name': 's'}))
    agent, seen = cluster.agent(1), set()
    for number in range(12):
        status, _, answer = cluster.api('POST', '/v1/images', {'name': f'i{number}', 'kind': 'disk', 'source': {'snapshot': 's'}})
        assert status == 201, answer
        _, _, change = cluster.api('POST', '/v1/vms/a/stop?force=true' if number % 2 else '/v1/vms/a/start')
        time.sleep(chance.random() * 0.8)       # a moment like any other
        agent.program.kill9()
        seen.add(len(imports(cluster)))
        agent.program.restart()
        cluster.wait_operation(operation_of(cluster, f'i{number}'))
        cluster.wait_operation(change)
        assert cluster.vm('a')['state'] == ('stopped' if number % 2 else 'running')
        made = cluster.api('GET', f'/v1/images/i{number}')[2]
        assert made['state'] == 'ready' and made['disk']['sha256'] == checksum, made
        assert hashlib.sha256((agent.directory / 'images' / checksum).read_bytes()).hexdigest() == checksum
        assert not imports(cluster)
    assert seen == {0, 1}, 'it was never killed while there was something half done'
