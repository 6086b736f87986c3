"""Pools: directories of hosts, one of them mounted on several; and VMs whose disks are in them.

All hosts of the bed see the files of this machine, so any directory is one that they share; a host that has nothing mounted
there has an empty file system of its own mounted over it. The guest writes and reads its disk all the time
(tests/guest/guest_disk.c).
"""
import json
import re
import stat
import time

from bed import wait_until
from disk_guest import (BLOCKS, NEEDED, WRITES, agent_of, console, create, done, host_name, image, pool, taken_over, wait_pool,
                        wait_writes, writes)

pytestmark = NEEDED


def head(path, vm_id, disk='root'):
    return json.loads((path / 'vms' / vm_id / f'{disk}.layers' / f'{disk}.disk').read_text())


def owner(path, vm_id):
    """The one whose all files of the VM in the pool are, and nobody else may write to any of them. Its image is root's."""
    found = [layers for layers in (path / 'vms' / vm_id).glob('*.layers')]
    files = [file.stat() for layers in found for file in [layers, *layers.iterdir()]]
    files = [file for file in files if stat.S_ISDIR(file.st_mode) or file.st_nlink == 1]
    assert found and len({file.st_uid for file in files}) == 1 and not any(file.st_mode & 0o022 for file in files), files
    return files[0].st_uid


def runs_as(agent, vm_id):
    pid = int((agent.directory / 'vms' / vm_id / 'vmm.lock').read_text().split()[0])
    return int(re.search(r'^Uid:\s+(\d+)', agent.host.run(['cat', f'/proc/{pid}/status']).stdout, re.M).group(1))


def test_pools_come_and_go(make_cluster):
    """Hosts say whether the directory is there; what nothing is mounted on is never taken for it."""
    cluster = make_cluster(controllers=1, agents=2)
    image(cluster)
    first, second = cluster.agents
    nas = pool(cluster, 'nas')
    ssd = pool(cluster, 'ssd', kind='dir', hosts=[first])
    wait_pool(cluster, 'nas', n1='present', n2='present')
    wait_pool(cluster, 'ssd', n1='present')
    marker = json.loads((nas / 'drover-pool.json').read_text())
    assert marker['mark'] == cluster.api('GET', '/v1/pools/nas')[2]['mark']
    assert cluster.cli('pool', 'list')[0]['name'] == 'nas'
    assert all(m['size_bytes'] > 0 and m['free_bytes'] > 0 for m in cluster.api('GET', '/v1/pools/nas')[2]['members'])
    # the server goes: an empty directory is there
    second.host.run(['mount', '-t', 'tmpfs', 'tmpfs', nas])
    wait_pool(cluster, 'nas', n1='present', n2='absent')
    assert 'is it mounted' in next(m['reason'] for m in cluster.api('GET', '/v1/pools/nas')[2]['members'] if m['name'] == 'n2')
    assert second.host.run(['ls', '-A', nas]).stdout == ''   # and stays empty
    vm_id = create(cluster, 'a', pool='nas', **WRITES)
    assert cluster.vm('a')['host_name'] == 'n1' and cluster.vm('a')['disks'][0]['pool'] == 'nas'
    wait_writes(first, vm_id, 20)
    assert cluster.api('DELETE', '/v1/pools/nas')[0] == 409
    placement = cluster.api('GET', '/v1/vms/a/placement')[2]
    assert next(h for h in placement['hosts'] if h['host'] == 'n2')['rejected'] == 'pool'
    second.host.run(['umount', nas])
    wait_pool(cluster, 'nas', n1='present', n2='present')
    # a disk without an image has layers as well, here and in the host's own directory
    data_id = create(cluster, 'b', disks=[{'name': 'root', 'image': True, 'pool': 'ssd'}, {'name': 'data', 'size_bytes': 2 << 20}],
                     **WRITES)
    assert cluster.vm('b')['host_name'] == 'n1'
    assert (first.directory / 'vms' / data_id / 'disks' / 'data.layers' / 'data.disk').exists()
    for name, vm, where in (('one', 'a', nas), ('two', 'b', ssd)):
        done(cluster, cluster.api('POST', f'/v1/vms/{vm}/snapshots', {'name': name}))
        snapshot = cluster.api('GET', f'/v1/snapshots/{name}')[2]
        assert [s['name'] for s in head(where, cluster.vm(vm)['id'])['snapshots']] == [snapshot['id']]
        done(cluster, cluster.api('POST', f'/v1/vms/{vm}/stop?force=true'))
        done(cluster, cluster.api('POST', f'/v1/snapshots/{name}/revert'))
        done(cluster, cluster.api('POST', f'/v1/vms/{vm}/start'))
    wait_writes(first, vm_id, 20)
    # deleted is deleted, also where the pool was away for a while
    first.host.run(['mount', '-t', 'tmpfs', 'tmpfs', nas])
    wait_pool(cluster, 'nas', n1='absent', n2='present')
    assert cluster.api('DELETE', '/v1/vms/a')[0] == 202
    done(cluster, cluster.api('DELETE', '/v1/vms/b'))
    assert (nas / 'vms' / vm_id).exists() and cluster.vm('a') is not None
    first.host.run(['umount', nas])
    wait_until(lambda: cluster.vm('a') is None, 30, 'the VM is gone')
    assert not list((nas / 'vms').iterdir()) and not list((ssd / 'vms').iterdir())
    assert not list((nas / 'images').iterdir()) and not list((ssd / 'images').iterdir())
    cluster.cli('pool', 'delete', 'nas', '--yes', parse=False)
    assert (nas / 'drover-pool.json').exists()


def flushed(cluster, vm_id, name):
    """A snapshot flushes the disk: what was acknowledged before lasts. Returns how much that was."""
    agent = agent_of(cluster, name)
    before = writes(agent, vm_id)
    done(cluster, cluster.api('POST', f'/v1/vms/{name}/snapshots', {}))
    return before


def test_a_vm_goes_elsewhere_with_its_disk(make_cluster):
    """A host is lost: its VM goes on elsewhere with the last flushed write, and the host leaves the disk alone when it is back."""
    cluster = make_cluster(controllers=3, agents=3)
    image(cluster)
    nas = pool(cluster, 'nas')
    wait_pool(cluster, 'nas', n1='present', n2='present', n3='present')
    vm_id = create(cluster, 'web', pool='nas', ha=True, **WRITES)
    old = agent_of(cluster, 'web')
    wait_writes(old, vm_id, 2 * BLOCKS)
    users = [owner(nas, vm_id)]
    before = flushed(cluster, vm_id, 'web')
    # its disk is made: nobody needs the image that it began as, and nobody has it any more
    (cluster.bed.directory / 'disk.img').unlink()
    sha256 = cluster.api('GET', '/v1/images/ticker')[2]['disk']['sha256']
    for agent in cluster.agents:
        (agent.directory / 'images' / sha256).unlink(missing_ok=True)
    begin = time.monotonic()
    old.host.power_off()
    found = taken_over(cluster, vm_id, old, before)
    print(f'host lost, VM executes elsewhere with its disk after {time.monotonic() - begin:.2f} s')
    cluster.boot(old.host.number)
    wait_until(lambda: not (old.directory / 'vms' / vm_id).exists(), 30, 'the old host has forgotten the VM')
    assert (nas / 'vms' / vm_id).exists()
    wait_writes(found, vm_id, 20)
    assert cluster.vm('web')['epoch'] == 2
    # whoever has its files open as the user before is refused by a file server (docs/nfs.md)
    users.append(owner(nas, vm_id))
    assert users[1] != users[0] and runs_as(found, vm_id) == users[1]
    # and again; then it is deleted by the host that has it last
    found.host.power_off()
    # a controller was lost with it: for a moment there may be none that answers
    wait_until(lambda: (host_name(cluster, 'web') or found.name) != found.name, 30, 'the VM was placed again')
    third = agent_of(cluster, 'web')
    wait_writes(third, vm_id, 20)
    cluster.leader()
    users.append(owner(nas, vm_id))
    assert len(set(users)) == 3
    # what stays where it is stays whose it is
    done(cluster, cluster.api('POST', '/v1/vms/web/stop?force=true'))
    done(cluster, cluster.api('POST', '/v1/vms/web/start'))
    third = agent_of(cluster, 'web')
    wait_writes(third, vm_id, 20)
    assert runs_as(third, vm_id) == owner(nas, vm_id) == users[2]
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
    wait_pool(cluster, 'nas', n1='present', n2='present', n3='present', n4='present')
    vm_id = create(cluster, 'web', pool='nas', ha=True, **WRITES)
    old = agent_of(cluster, 'web')
    wait_writes(old, vm_id, 2 * BLOCKS)
    before, user = flushed(cluster, vm_id, 'web'), owner(nas, vm_id)
    cluster.bed.freeze(old.host.number)
    found = taken_over(cluster, vm_id, old, before)
    assert user not in (owner(nas, vm_id), runs_as(found, vm_id))
    assert 'disk-locks-passed-over' in (found.directory / 'vms' / vm_id / 'vmm.log').read_text()
    wait_writes(found, vm_id, 4 * BLOCKS)
    last = writes(old, vm_id)
    cluster.bed.thaw(old.host.number)
    wait_until(lambda: not (old.directory / 'vms' / vm_id).exists(), 30, 'the old host has forgotten the VM')
    wait_writes(found, vm_id, 4 * BLOCKS)
    # blocks that this life has not written hold what the one before wrote; those that it has, nothing else
    assert not re.search(r'^disk: word \d+ is \d+ not [1-9]', console(found, vm_id), re.M), console(found, vm_id)[-2000:]
    assert writes(old, vm_id) in (0, last)
    assert owner(nas, vm_id) == runs_as(found, vm_id)
    done(cluster, cluster.api('POST', '/v1/vms/web/stop?force=true'))
    done(cluster, cluster.api('POST', '/v1/vms/web/start'))
    found = agent_of(cluster, 'web')
    wait_writes(found, vm_id, 20)
    # of a migration both VMMs have the files open: the user goes along
    user = owner(nas, vm_id)
    cluster.cli('vm', 'migrate', 'web', '--wait', parse=False)
    to = agent_of(cluster, 'web')
    assert to is not found and runs_as(to, vm_id) == owner(nas, vm_id) == user
    wait_writes(to, vm_id, 20)
    done(cluster, cluster.api('POST', '/v1/vms/web/stop?force=true'))
    done(cluster, cluster.api('POST', '/v1/vms/web/start'))
    to = agent_of(cluster, 'web')
    wait_writes(to, vm_id, 20)
    assert runs_as(to, vm_id) == owner(nas, vm_id)
