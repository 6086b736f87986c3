"""Pools: directories of hosts, one of them mounted on several; and VMs whose disks are in them.

All hosts of the bed see the files of this machine, so any directory is one that they share; a host that has nothing mounted
there has an empty file system of its own mounted over it. The guest writes and reads its disk all the time
(tests/guest/guest_disk.c).
"""
import hashlib
import json
import re
import time

import pytest

from bed import ROOT, wait_until
from cluster import KVM_MISSING, KVM_MISSING_TEXT

GUEST = ROOT / 'build' / 'guest' / 'ticker.elf'
BLOCKS = 64
BOUND_S = 15
pytestmark = [pytest.mark.skipif(not GUEST.exists(), reason='the test guest is not built: make guest'),
              pytest.mark.skipif(KVM_MISSING, reason=KVM_MISSING_TEXT)]


def image(cluster):
    disk = cluster.bed.directory / 'disk.img'
    disk.write_bytes(bytes(4 << 20))
    artifacts = {name: {'url': f'file://{path}', 'sha256': hashlib.sha256(path.read_bytes()).hexdigest()}
                 for name, path in (('kernel', GUEST), ('disk', disk))}
    status, _, answer = cluster.api('POST', '/v1/images', {'name': 'ticker', 'kind': 'kernel', **artifacts})
    assert status == 201, answer


def pool(cluster, name, kind='shared-dir', hosts=None):
    """A pool of that name on all hosts; the directory is made here."""
    path = cluster.bed.directory / name
    path.mkdir()
    words = [word for agent in hosts or cluster.agents for word in ('--host', agent.name)]
    cluster.cli('pool', 'create', name, '--kind', kind, '--path', path, *words)
    return path


def states(cluster, name):
    return {member['name']: member['state'] for member in cluster.api('GET', f'/v1/pools/{name}')[2].get('members', [])}


def wait_states(cluster, name, timeout_s=30, **want):
    wait_until(lambda: states(cluster, name) == want, timeout_s, f'pool {name} is {want}')


def done(cluster, answer):
    status, _, operation = answer
    assert status == 202, operation
    return cluster.wait_operation(operation)


def create(cluster, name, **fields):
    done(cluster, cluster.api('POST', '/v1/vms', {'name': name, 'image': 'ticker', 'vcpus': 1, 'memory_bytes': 64 << 20,
                                                  'cmdline': 'disk=7', **fields}))
    return cluster.vm(name)['id']


def host_name(cluster, name):
    try:
        return (cluster.vm(name) or {}).get('host_name')
    except OSError:
        return None


def agent_of(cluster, name):
    host = wait_until(lambda: host_name(cluster, name), 30, f'the controllers say where {name} is')
    return next(agent for agent in cluster.agents if agent.name == host)


def console(agent, vm_id):
    path = agent.directory / 'vms' / vm_id / 'console.log'
    return path.read_text(errors='replace') if path.exists() else ''


def writes(agent, vm_id):
    life = console(agent, vm_id).split('drover-guest: hello')[-1]
    return max([int(n) for n in re.findall(r'^disk (\d+) writes', life, re.M)], default=0)


def wait_writes(agent, vm_id, more=20):
    first = writes(agent, vm_id)
    wait_until(lambda: writes(agent, vm_id) >= first + more, 30, f'the guest writes on {agent.name}')


def read_before(agent, vm_id):
    """Writes of an earlier life that the present one has found on its disk, where it expected none of its own."""
    life = console(agent, vm_id).split('drover-guest: hello')[-1]
    return [int(n) // 512 for n in re.findall(r'^disk: word 0 is (\d+) not', life, re.M)]


def head(path, vm_id, disk='root'):
    return json.loads((path / 'vms' / vm_id / f'{disk}.layers' / f'{disk}.disk').read_text())


def test_pools_come_and_go(make_cluster):
    """Hosts say whether the directory is there; what nothing is mounted on is never taken for it."""
    cluster = make_cluster(controllers=1, agents=2)
    image(cluster)
    first, second = cluster.agents
    nas = pool(cluster, 'nas')
    ssd = pool(cluster, 'ssd', kind='dir', hosts=[first])
    wait_states(cluster, 'nas', n1='present', n2='present')
    wait_states(cluster, 'ssd', n1='present')
    marker = json.loads((nas / 'drover-pool.json').read_text())
    assert marker['mark'] == cluster.api('GET', '/v1/pools/nas')[2]['mark']
    assert cluster.cli('pool', 'list')[0]['name'] == 'nas'
    assert all(m['size_bytes'] > 0 and m['free_bytes'] > 0 for m in cluster.api('GET', '/v1/pools/nas')[2]['members'])
    # the server goes: an empty directory is there
    second.host.run(['mount', '-t', 'tmpfs', 'tmpfs', nas])
    wait_states(cluster, 'nas', n1='present', n2='absent')
    assert 'is it mounted' in next(m['reason'] for m in cluster.api('GET', '/v1/pools/nas')[2]['members'] if m['name'] == 'n2')
    assert second.host.run(['ls', '-A', nas]).stdout == ''   # and stays empty
    vm_id = create(cluster, 'a', pool='nas')
    assert cluster.vm('a')['host_name'] == 'n1' and cluster.vm('a')['disks'][0]['pool'] == 'nas'
    wait_writes(first, vm_id)
    assert cluster.api('DELETE', '/v1/pools/nas')[0] == 409
    placement = cluster.api('GET', '/v1/vms/a/placement')[2]
    assert next(h for h in placement['hosts'] if h['host'] == 'n2')['rejected'] == 'pool'
    second.host.run(['umount', nas])
    wait_states(cluster, 'nas', n1='present', n2='present')
    # a disk without an image has layers as well, here and in the host's own directory
    data_id = create(cluster, 'b', disks=[{'name': 'root', 'image': True, 'pool': 'ssd'}, {'name': 'data', 'size_bytes': 2 << 20}])
    assert cluster.vm('b')['host_name'] == 'n1'
    assert (first.directory / 'vms' / data_id / 'disks' / 'data.layers' / 'data.disk').exists()
    for name, vm, where in (('one', 'a', nas), ('two', 'b', ssd)):
        done(cluster, cluster.api('POST', f'/v1/vms/{vm}/snapshots', {'name': name}))
        snapshot = cluster.api('GET', f'/v1/snapshots/{name}')[2]
        assert [s['name'] for s in head(where, cluster.vm(vm)['id'])['snapshots']] == [snapshot['id']]
        done(cluster, cluster.api('POST', f'/v1/vms/{vm}/stop?force=true'))
        done(cluster, cluster.api('POST', f'/v1/snapshots/{name}/revert'))
        done(cluster, cluster.api('POST', f'/v1/vms/{vm}/start'))
    wait_writes(first, vm_id)
    # deleted is deleted, also where the pool was away for a while
    first.host.run(['mount', '-t', 'tmpfs', 'tmpfs', nas])
    wait_states(cluster, 'nas', n1='absent', n2='present')
    assert cluster.api('DELETE', '/v1/vms/a')[0] == 202
    done(cluster, cluster.api('DELETE', '/v1/vms/b'))
    assert (nas / 'vms' / vm_id).exists() and cluster.vm('a') is not None
    first.host.run(['umount', nas])
    wait_until(lambda: cluster.vm('a') is None, 30, 'the VM is gone')
    assert not list((nas / 'vms').iterdir()) and not list((ssd / 'vms').iterdir())
    assert not list((nas / 'images').iterdir()) and not list((ssd / 'images').iterdir())
    cluster.cli('pool', 'delete', 'nas', '--yes', parse=False)
    assert (nas / 'drover-pool.json').exists()


def flushed(cluster, path, vm_id, name):
    """A snapshot flushes the disk: what was acknowledged before lasts. Returns how much that was."""
    agent = agent_of(cluster, name)
    before = writes(agent, vm_id)
    done(cluster, cluster.api('POST', f'/v1/vms/{name}/snapshots', {}))
    return before


def taken_over(cluster, path, vm_id, old, before):
    """The VM runs on another host than @old, on the disk that was flushed there, and goes on with it."""
    found = wait_until(lambda: next((a for a in cluster.agents if a is not old and writes(a, vm_id) > 0), None), BOUND_S,
                       'the VM runs elsewhere', poll_s=0.05)
    wait_until(lambda: read_before(found, vm_id), 30, 'the guest finds what was written')
    assert max(read_before(found, vm_id)) + BLOCKS >= before
    assert 'disk: status' not in console(found, vm_id)
    return found


def test_a_vm_goes_elsewhere_with_its_disk(make_cluster):
    """A host is lost: its VM goes on elsewhere with the last flushed write, and the host leaves the disk alone when it is back."""
    cluster = make_cluster(controllers=3, agents=3)
    image(cluster)
    nas = pool(cluster, 'nas')
    wait_states(cluster, 'nas', n1='present', n2='present', n3='present')
    vm_id = create(cluster, 'web', pool='nas', ha=True)
    old = agent_of(cluster, 'web')
    wait_writes(old, vm_id, 2 * BLOCKS)
    before = flushed(cluster, nas, vm_id, 'web')
    begin = time.monotonic()
    old.host.power_off()
    found = taken_over(cluster, nas, vm_id, old, before)
    print(f'host lost, VM executes elsewhere with its disk after {time.monotonic() - begin:.2f} s')
    cluster.boot(old.host.number)
    wait_until(lambda: not (old.directory / 'vms' / vm_id).exists(), 30, 'the old host has forgotten the VM')
    assert (nas / 'vms' / vm_id).exists()
    wait_writes(found, vm_id)
    assert cluster.vm('web')['epoch'] == 2
    # and again; then it is deleted by the host that has it last
    found.host.power_off()
    # a controller was lost with it: for a moment there may be none that answers
    wait_until(lambda: (host_name(cluster, 'web') or found.name) != found.name, 30, 'the VM was placed again')
    third = agent_of(cluster, 'web')
    wait_writes(third, vm_id)
    cluster.leader()
    done(cluster, cluster.api('DELETE', '/v1/vms/web'))
    assert not (nas / 'vms' / vm_id).exists()
    cluster.boot(found.host.number)
    wait_until(lambda: cluster.hosts_up() == 3, 30, 'every host is up')


def test_a_frozen_host_writes_nothing_when_it_wakes(make_cluster):
    """All of a host stands still, with the locks that it has on the disk; the VM runs elsewhere all the same, and the old VMM changes
    nothing when it wakes up."""
    cluster = make_cluster(controllers=3, agents=4)
    image(cluster)
    nas = pool(cluster, 'nas')
    wait_states(cluster, 'nas', n1='present', n2='present', n3='present', n4='present')
    vm_id = create(cluster, 'web', pool='nas', ha=True)
    old = agent_of(cluster, 'web')
    wait_writes(old, vm_id, 2 * BLOCKS)
    before = flushed(cluster, nas, vm_id, 'web')
    cluster.bed.freeze(old.host.number)
    found = taken_over(cluster, nas, vm_id, old, before)
    assert 'disk-locks-passed-over' in (found.directory / 'vms' / vm_id / 'vmm.log').read_text()
    wait_writes(found, vm_id, 4 * BLOCKS)
    last = writes(old, vm_id)
    cluster.bed.thaw(old.host.number)
    wait_until(lambda: not (old.directory / 'vms' / vm_id).exists(), 30, 'the old host has forgotten the VM')
    wait_writes(found, vm_id, 4 * BLOCKS)
    # blocks that this life has not written hold what the one before wrote; those that it has, nothing else
    assert not re.search(r'^disk: word \d+ is \d+ not [1-9]', console(found, vm_id), re.M), console(found, vm_id)[-2000:]
    assert writes(old, vm_id) in (0, last)
    done(cluster, cluster.api('POST', '/v1/vms/web/stop?force=true'))
    done(cluster, cluster.api('POST', '/v1/vms/web/start'))
    wait_writes(agent_of(cluster, 'web'), vm_id)
