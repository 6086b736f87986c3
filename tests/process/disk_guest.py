"""VMs of a cluster whose guest writes and reads its first disk all the time (tests/guest/guest_disk.c), seen from their consoles.

The n-th write fills its block with 64-bit words that say n, so that a block that is torn, lost or older than it may be is seen, by the
guest and from outside.
"""
import hashlib
import re

import pytest

from bed import ROOT, wait_until
from cluster import KVM_MISSING, KVM_MISSING_TEXT

GUEST = ROOT / 'build' / 'guest' / 'ticker.elf'
BLOCKS = 64
WRITES = {'cmdline': 'disk=7'}      # fields of a VM whose guest writes
NEEDED = [pytest.mark.skipif(not GUEST.exists(), reason='the test guest is not built: make guest'),
          pytest.mark.skipif(KVM_MISSING, reason=KVM_MISSING_TEXT)]


def image(cluster, name='ticker', disk=True):
    """The test guest; with an image for a disk of 4 MiB, or without."""
    files = {'kernel': GUEST}
    if disk:
        files['disk'] = cluster.bed.directory / 'disk.img'
        files['disk'].write_bytes(bytes(4 << 20))
    artifacts = {part: {'url': f'file://{path}', 'sha256': hashlib.sha256(path.read_bytes()).hexdigest()}
                 for part, path in files.items()}
    status, _, answer = cluster.api('POST', '/v1/images', {'name': name, 'kind': 'kernel', **artifacts})
    assert status == 201, answer


def pool(cluster, name, kind='shared-dir', hosts=None):
    """A pool of that name on all hosts; the directory is made here."""
    path = cluster.bed.directory / name
    path.mkdir()
    words = [word for agent in hosts or cluster.agents for word in ('--host', agent.name)]
    cluster.cli('pool', 'create', name, '--kind', kind, '--path', path, *words)
    return path


def pool_states(cluster, name):
    return {member['name']: member['state'] for member in cluster.api('GET', f'/v1/pools/{name}')[2].get('members', [])}


def wait_pool(cluster, name, timeout_s=30, **want):
    wait_until(lambda: pool_states(cluster, name) == want, timeout_s, f'pool {name} is {want}')


def done(cluster, answer):
    status, _, operation = answer
    assert status == 202, operation
    return cluster.wait_operation(operation)


def create(cluster, name, **fields):
    done(cluster, cluster.api('POST', '/v1/vms', {'name': name, 'image': 'ticker', 'vcpus': 1, 'memory_bytes': 64 << 20, **fields}))
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


def life(agent, vm_id):
    """What the guest's present life has said."""
    return console(agent, vm_id).split('drover-guest: hello')[-1]


def writes(agent, vm_id):
    """Writes that the guest's present life was told are done."""
    return max([int(n) for n in re.findall(r'^disk (\d+) writes', life(agent, vm_id), re.M)], default=0)


def wait_writes(agent, vm_id, more=1):
    first = writes(agent, vm_id)
    wait_until(lambda: writes(agent, vm_id) >= first + more, 30, f'the guest writes on {agent.name}')


def read_before(agent, vm_id):
    """Writes of an earlier life that the present one has found on its disk, where it expected none of its own."""
    return [int(n) // 512 for n in re.findall(r'^disk: word 0 is (\d+) not', life(agent, vm_id), re.M)]


def taken_over(cluster, vm_id, old, before, timeout_s=15):
    """The VM runs on another host than @old, on the disk that it had flushed @before writes to there. Returns that host's agent."""
    found = wait_until(lambda: next((a for a in cluster.agents if a is not old and writes(a, vm_id) > 0), None), timeout_s,
                       'the VM runs elsewhere', poll_s=0.05)
    # block by block, in any order; some are of long before
    wait_until(lambda: max(read_before(found, vm_id), default=-1) + BLOCKS >= before, 30, 'the guest finds what was written')
    assert 'disk: status' not in console(found, vm_id)
    return found
