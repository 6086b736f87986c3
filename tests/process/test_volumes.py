"""Snapshots through the cluster: real controllers, agent, VMMs and the test guest.

The guest writes and reads its disk all the time (tests/guest/guest_disk.c): the n-th write fills its block with 64-bit words
that say n, so that a block that is torn, lost or older than it may be is seen, by the guest and from outside.
"""
import json
import os
import random
import re
import signal
import statistics
import struct

import pytest

import disk_guest
from bed import wait_until
from disk_guest import BLOCKS, NEEDED, create, done, image

pytestmark = NEEDED


@pytest.fixture
def cluster(make_cluster):
    made = make_cluster(controllers=1, agents=1)
    image(made)
    return made


def head(cluster, vm_id, disk='root'):
    path = cluster.agent(1).directory / 'vms' / vm_id / 'disks' / f'{disk}.layers' / f'{disk}.disk'
    return json.loads(path.read_text())


def names(cluster, vm_id):
    return [s['name'] for s in head(cluster, vm_id).get('snapshots', [])]


def test_snapshots_of_a_vm_that_is_off(cluster):
    vm_id = create(cluster, 'a')
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    tops = [head(cluster, vm_id)['top']]
    for name in ('one', 'two', 'three'):
        done(cluster, cluster.api('POST', '/v1/vms/a/snapshots', {'name': name}))
        tops.append(head(cluster, vm_id)['top'])
    made = {name: cluster.api('GET', f'/v1/snapshots/{name}')[2] for name in ('one', 'two', 'three')}
    assert names(cluster, vm_id) == [made[name]['id'] for name in ('one', 'two', 'three')]
    assert all(s['state'] == 'available' and s['consistency'] == 'filesystem' for s in made.values())
    assert made['one']['disks'] == [{'name': 'root', 'size_bytes': 4 << 20}]
    assert len(set(tops)) == 4
    # the oldest, the middle one, and what is in use
    done(cluster, cluster.api('DELETE', '/v1/snapshots/two'))
    assert names(cluster, vm_id) == [made['one']['id'], made['three']['id']]
    done(cluster, cluster.api('POST', '/v1/snapshots/one/revert'))
    assert head(cluster, vm_id)['top'] not in tops
    done(cluster, cluster.api('POST', '/v1/vms/a/start'))
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    done(cluster, cluster.api('DELETE', '/v1/snapshots/one'))
    done(cluster, cluster.api('DELETE', '/v1/snapshots/three'))
    assert names(cluster, vm_id) == []
    assert cluster.api('GET', '/v1/snapshots')[2] == []
    done(cluster, cluster.api('POST', '/v1/vms/a/start'))
    layers = head(cluster, vm_id)
    files = list((cluster.agent(1).directory / 'vms' / vm_id / 'disks' / 'root.layers').glob('*.map'))
    assert sorted(f.stem for f in files) == sorted(layers['layers'])    # nothing is left behind


def test_a_snapshot_goes_with_its_vm(cluster):
    create(cluster, 'a')
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    done(cluster, cluster.api('POST', '/v1/vms/a/snapshots', {}))
    assert len(cluster.api('GET', '/v1/snapshots')[2]) == 1
    done(cluster, cluster.api('DELETE', '/v1/vms/a'))
    wait_until(lambda: cluster.api('GET', '/v1/snapshots')[2] == [], 10, 'the snapshot is gone')


BLOCK_BYTES, CLUSTER_BYTES = 4096, 65536
FAULTS = re.compile(r'disk: |answered twice|corrupt')


def console(cluster, vm_id):
    return disk_guest.console(cluster.agent(1), vm_id)


def writes(cluster, vm_id):
    return disk_guest.writes(cluster.agent(1), vm_id)


def wait_writes(cluster, vm_id, more=1):
    disk_guest.wait_writes(cluster.agent(1), vm_id, more)


class Layer:
    """A layer by its files alone (block/layer_map.h)."""

    def __init__(self, directory, name):
        self.data = directory / f'{name}.raw'
        text = (directory / f'{name}.map').read_bytes()
        slots = [text[i * 4096:(i + 1) * 4096] for i in range(len(text) // 4096)]
        header = max((h for i, h in enumerate(slots[:2]) if h[:8] == b'DRVLAYER' and struct.unpack_from('<Q', h, 64)[0] % 2 == i),
                     key=lambda h: struct.unpack_from('<Q', h, 64)[0])
        self.parent, kind = header[32:48].hex(), struct.unpack_from('<I', header, 84)[0]
        self.kind = ('none', 'layer', 'raw')[kind]
        self.base = header[88:256].rstrip(b'\0').decode()
        states = [s for i, s in enumerate(slots[2:4]) if s[:4] == b'DRVM' and struct.unpack_from('<Q', s, 8)[0] % 2 == i]
        self.bits = max(states, key=lambda s: struct.unpack_from('<Q', s, 8)[0])[32:] if states else bytes(64)

    def state(self, cluster):
        return self.bits[cluster // 4] >> (cluster % 4 * 2) & 3


def numbers_in(directory, top):
    """Of each block of the guest the write that it holds, as the layer @top shows it."""
    found = []
    for block in range(BLOCKS):
        name, data = top, bytes(BLOCK_BYTES)
        while True:
            layer = Layer(directory, name)
            state = layer.state(block * BLOCK_BYTES // CLUSTER_BYTES)
            if state == 1:
                with layer.data.open('rb') as file:
                    file.seek(block * BLOCK_BYTES)
                    data = file.read(BLOCK_BYTES)
            if state != 0 or layer.kind != 'layer':
                break
            name = layer.parent
        words = struct.unpack(f'<{BLOCK_BYTES // 8}Q', data)
        if any(words):
            assert words == tuple(range(words[0], words[0] + len(words))) and words[0] % len(words) == 0, f'block {block} is torn'
        found.append(words[0] // len(words))
    return found


def numbers(cluster, vm_id, top, disk='root'):
    return numbers_in(cluster.agent(1).directory / 'vms' / vm_id / 'disks' / f'{disk}.layers', top)


def layer_of(cluster, vm_id, snapshot):
    return {s['name']: s['layer'] for s in head(cluster, vm_id)['snapshots']}[snapshot['id']]


def take(cluster, vm_id, name):
    """A snapshot of the running VM: what was acknowledged before is in it, and nothing that came after."""
    before = writes(cluster, vm_id)
    done(cluster, cluster.api('POST', '/v1/vms/a/snapshots', {'name': name}))
    wait_writes(cluster, vm_id)  # the guest says now and then how many; what it said last may be long ago
    after = writes(cluster, vm_id)
    snapshot = cluster.api('GET', f'/v1/snapshots/{name}')[2]
    content = numbers(cluster, vm_id, layer_of(cluster, vm_id, snapshot))
    assert snapshot['state'] == 'available' and snapshot['consistency'] == 'crash'
    assert before - BLOCKS <= max(content) and before <= max(content) + BLOCKS, (before, max(content))
    assert max(content) <= after + 2 * BLOCKS, (after, max(content))
    wait_writes(cluster, vm_id, BLOCKS)
    assert numbers(cluster, vm_id, layer_of(cluster, vm_id, snapshot)) == content, 'it changed after it was taken'
    return snapshot, content


def test_snapshots_under_writes(cluster):
    seed = int(os.environ.get('DROVER_SEED', 0)) or int.from_bytes(os.urandom(4), 'little')
    print(f'seed {seed}: DROVER_SEED={seed} has the same order')
    chance = random.Random(seed)
    vm_id = create(cluster, 'a', cmdline='disk=7')
    wait_writes(cluster, vm_id, 50)
    taken = {}
    for name in ('one', 'two', 'three', 'four'):
        taken[name] = take(cluster, vm_id, name)
        wait_writes(cluster, vm_id, chance.randrange(1, 60))
    pauses = [snapshot['pause_us'] for snapshot, _ in taken.values()]
    print('pauses in microseconds:', pauses)
    assert statistics.median(pauses) <= 20000   # promised; no flush of this machine's disk is in it (test_layer_disk)
    order = list(taken)
    chance.shuffle(order)
    for name in order[:2]:      # while it runs, with their merges
        done(cluster, cluster.api('DELETE', f'/v1/snapshots/{name}'))
        wait_writes(cluster, vm_id, 5)
        for other in [n for n in taken if n in order[order.index(name) + 1:]]:
            snapshot, content = taken[other]
            assert numbers(cluster, vm_id, layer_of(cluster, vm_id, snapshot)) == content, other
    assert not FAULTS.search(console(cluster, vm_id))   # its next lives find what the first has written, and say so
    (pid,) = cluster.agent(1).vmm_pids()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: console(cluster, vm_id).count('drover-guest: hello') == 2, 30, 'the guest began anew')
    wait_writes(cluster, vm_id, 10)
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    for name in order[2:]:
        snapshot, content = taken[name]
        assert numbers(cluster, vm_id, layer_of(cluster, vm_id, snapshot)) == content, name
    snapshot, content = taken[order[2]]
    done(cluster, cluster.api('POST', f'/v1/snapshots/{order[2]}/revert'))
    assert numbers(cluster, vm_id, head(cluster, vm_id)['top']) == content
    done(cluster, cluster.api('POST', '/v1/vms/a/start'))
    wait_writes(cluster, vm_id, 5)
    for name in order[2:]:
        done(cluster, cluster.api('DELETE', f'/v1/snapshots/{name}'))
    assert names(cluster, vm_id) == []
    wait_writes(cluster, vm_id, 5)
