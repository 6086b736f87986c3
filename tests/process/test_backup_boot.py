"""Backups are booted to see whether they come up: in a VM that is thrown away, beside the VMs of its host. Real controllers, agents,
VMMs, drover-backup and the test guest, which tells what its disk begins with."""
import contextlib
import hashlib
import os
import pathlib
import random

import pytest

from bed import wait_until
from test_backups import DISK_BYTES, GUEST, add_store, backup, create, done, pytestmark     # noqa: F401

TEXT = b'a system of its own\n'


def image(cluster, name, disk):
    """The test guest with a disk of that content."""
    path = cluster.bed.directory / f'{name}.img'
    path.write_bytes(disk)
    artifacts = {part: {'url': f'file://{file}', 'sha256': hashlib.sha256(file.read_bytes()).hexdigest()}
                 for part, file in (('kernel', GUEST), ('disk', path))}
    status, _, answer = cluster.api('POST', '/v1/images', {'name': name, 'kind': 'kernel', **artifacts})
    assert status == 201, answer


@pytest.fixture
def cluster(make_cluster):
    made = make_cluster(controllers=1, agents=1)
    image(made, 'ticker', TEXT + random.Random(3).randbytes(DISK_BYTES - len(TEXT)))
    made.store = made.bed.directory / 'store'
    return made


def get(cluster, path):
    status, _, answer = cluster.api('GET', f'/v1/{path}')
    assert status == 200, answer
    return answer


def backed_up(cluster, **fields):
    vm_id = create(cluster, 'a', cmdline='show', **fields)
    add_store(cluster)
    backup(cluster, name='one')
    return vm_id


def boot(cluster, name='one', **fields):
    return cluster.api('POST', f'/v1/backups/{name}/verify', {'boot': True, **fields})


def left(cluster):
    """What there is of VMs that are thrown away: directories, sockets, groups, taps."""
    agent = cluster.agent(1)
    own = {vm['id'] for vm in get(cluster, 'vms')}
    sockets = {path.name for path in (agent.directory / 'run').glob('*.sock')}
    sockets -= {ident.replace('-', '')[:12] + '.sock' for ident in own}
    groups = [name for name in os.listdir('/sys/fs/cgroup/drover') if name.startswith('vm-')] if os.path.isdir('/sys/fs/cgroup/drover') else []
    operations = {operation['id'] for operation in get(cluster, 'operations')}
    return sorted(os.listdir(agent.directory / 'boot')) + sorted(sockets) + [name for name in groups if name[3:] in operations]


def thrown_away(cluster):
    """VMMs that boot a backup."""
    found = set()
    for pid in cluster.agent(1).vmm_pids():
        with contextlib.suppress(OSError):
            if b'/agent/boot/' in pathlib.Path(f'/proc/{pid}/cmdline').read_bytes():
                found.add(pid)
    return found


def goes(cluster, vmms):
    wait_until(lambda: left(cluster) == [] and len(cluster.agent(1).vmm_pids()) == vmms, 30,
               lambda: f'nothing is left: {left(cluster)} {cluster.agent(1).vmm_pids()}')


def under_way(cluster, operation):
    wait_until(lambda: get(cluster, f"operations/{operation['id']}").get('step') == 'it boots', 40, 'it boots')


def kept(cluster):
    """Bytes of disks of the VM that is thrown away."""
    return sum(path.stat().st_blocks * 512 for path in (cluster.agent(1).directory / 'boot').glob('*/disks/**/*') if path.is_file())


def committed(cluster):
    return get(cluster, 'hosts')[0].get('committed_memory_bytes', 0)


def test_a_good_backup_comes_up_and_is_marked(cluster):
    cluster.agent(1).host.run(['ip', 'link', 'add', 'lan0', 'type', 'bridge'])
    vm_id = backed_up(cluster, nics=[{'bridge': 'lan0'}], labels={'boot-wait-for': 'disk says a system*own'})
    links = cluster.agent(1).host.run(['ip', '-o', 'link']).stdout
    room = committed(cluster)
    said = cluster.cli('backup', 'verify', 'one', '--boot', '--wait')      # beside the VM itself, which runs
    assert said['state'] == 'succeeded' and "'disk says a system of its own'" in said['step'], said
    made = get(cluster, 'backups/one')
    assert 'disk says a system of its own' in made['boot_seen'] and 'boot_failure' not in made and made['boot_ms'] < 60000, made
    assert made['booted_at'] >= made['boot_begun_at'] > made['created_at'] and made['state'] == 'available' and 'damage' not in made
    told = [event['message'] for event in cluster.cli('event', 'list') if event['object_kind'] == 'backup']
    assert any('was booted and came up' in message and 'disk says' in message for message in told), told
    # nothing of it is left, nobody but its task has heard of it, and the VM has noticed nothing
    goes(cluster, 1)
    assert committed(cluster) == room and [vm['id'] for vm in get(cluster, 'vms')] == [vm_id]
    now = cluster.agent(1).host.run(['ip', '-o', 'link']).stdout
    assert len(now.splitlines()) == len(links.splitlines()) and cluster.vm('a')['restarts'] == 0, now
    # what was given up is no backup's fault
    status, _, operation = boot(cluster, wait_for='no such line', boot_timeout_s=3600)
    assert status == 202, operation
    under_way(cluster, operation)
    assert committed(cluster) == room + (64 << 20)
    assert kept(cluster) < DISK_BYTES // 2      # what the guest has not written is not here
    status, _, problem = boot(cluster)
    assert status == 409 and 'boots a backup already' in problem['detail'] and operation['id'] in problem['detail'], problem
    status, _, problem = cluster.api('DELETE', '/v1/backups/one')
    assert status == 409 and 'being booted' in problem['detail'], problem
    cluster.api('POST', f"/v1/operations/{operation['id']}/cancel")
    done(cluster, (202, None, operation), 'cancelled')
    goes(cluster, 1)
    assert committed(cluster) == room and get(cluster, 'backups/one')['booted_at'] == made['booted_at']


def test_garbage_and_time_over(cluster):
    backed_up(cluster)
    image(cluster, 'broken', random.Random(5).randbytes(DISK_BYTES))
    done(cluster, cluster.api('POST', '/v1/vms', {'name': 'b', 'image': 'broken', 'vcpus': 1, 'memory_bytes': 64 << 20, 'cmdline': 'show'}))
    backup(cluster, 'b', name='bad')
    failed = done(cluster, boot(cluster, 'bad', wait_for='disk says a system', boot_timeout_s=12), 'failed')
    assert 'within 12 s' in failed['error_text'] and "'tick " in failed['error_text'], failed
    made = get(cluster, 'backups/bad')
    assert 'boot_seen' not in made and "no line of its console had 'disk says a system'" in made['boot_failure'], made
    assert made['state'] == 'available' and 'booted_at' in made
    goes(cluster, 2)
    # a guest that goes off by itself says so at once; one for which nothing is to be waited for in particular is asked
    create(cluster, 'c', cmdline='show quiet halt=5', restart='never')
    wait_until(lambda: cluster.vm('c')['state'] == 'stopped', 30, 'it is off')
    backup(cluster, 'c', name='off')
    failed = done(cluster, boot(cluster, 'off'), 'failed')
    assert 'powered off' in failed['error_text'] and "'disk says a system of its own'" in failed['error_text'], failed
    goes(cluster, 2)
    # bad requests, with the cure
    for body, words in (({'wait_for': 'x'}, 'boot'), ({'boot': True, 'boot_timeout_s': 1}, 'boot_timeout_s')):
        status, _, problem = cluster.api('POST', '/v1/backups/one/verify', body)
        assert status == 400 and words in str(problem), problem
    with pytest.raises(Exception, match='name the backup'):
        cluster.cli('backup', 'verify', '--boot')


def test_agent_killed_in_the_middle(cluster):
    backed_up(cluster)
    status, _, operation = boot(cluster, wait_for='no such line', boot_timeout_s=3600)
    assert status == 202, operation
    under_way(cluster, operation)
    first = thrown_away(cluster)
    assert len(first) == 1 and len(cluster.agent(1).vmm_pids()) == 2
    cluster.agent(1).program.kill9()
    cluster.agent(1).run()
    wait_until(lambda: len(thrown_away(cluster)) == 1 and thrown_away(cluster) != first, 40, 'the one before is gone, and another one boots')
    # one that ends in order takes it along, and begins it again when it is back
    cluster.agent(1).program.stop()
    wait_until(lambda: thrown_away(cluster) == set() and len(cluster.agent(1).vmm_pids()) == 1, 10, 'it is gone with its agent')
    cluster.agent(1).run()
    wait_until(lambda: len(thrown_away(cluster)) == 1, 40, 'it boots again')
    under_way(cluster, operation)
    # a VMM that is killed says nothing good
    os.kill(thrown_away(cluster).pop(), 9)
    failed = done(cluster, (202, None, operation), 'failed')
    assert 'signal 9' in failed['error_text'], failed
    goes(cluster, 1)
    assert cluster.vm('a')['state'] == 'running' and cluster.vm('a')['restarts'] == 0
