"""Snapshots through the cluster: real controllers, agent, VMMs and the test guest."""
import hashlib
import json

import pytest

from bed import ROOT, wait_until
from cluster import KVM_MISSING, KVM_MISSING_TEXT

GUEST = ROOT / 'build' / 'guest' / 'ticker.elf'
pytestmark = [pytest.mark.skipif(not GUEST.exists(), reason='the test guest is not built: make guest'),
              pytest.mark.skipif(KVM_MISSING, reason=KVM_MISSING_TEXT)]


@pytest.fixture
def cluster(make_cluster):
    made = make_cluster(controllers=1, agents=1)
    disk = made.bed.directory / 'disk.img'
    disk.write_bytes(bytes(4 << 20))
    artifacts = {name: {'url': f'file://{path}', 'sha256': hashlib.sha256(path.read_bytes()).hexdigest()}
                 for name, path in (('kernel', GUEST), ('disk', disk))}
    status, _, answer = made.api('POST', '/v1/images', {'name': 'ticker', 'kind': 'kernel', **artifacts})
    assert status == 201, answer
    return made


def done(cluster, answer, state='succeeded'):
    status, _, operation = answer
    assert status == 202, operation
    return cluster.wait_operation(operation, state=state) if state != 'succeeded' else cluster.wait_operation(operation)


def create(cluster, name, **fields):
    done(cluster, cluster.api('POST', '/v1/vms', {'name': name, 'image': 'ticker', 'vcpus': 1, 'memory_bytes': 64 << 20,
                                                  **fields}))
    return cluster.vm(name)['id']


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
