"""Snapshots with the VM's memory, through the cluster: a VM that is reverted to one goes on where it was, once.

The guest (tests/guest) counts, writes its disk all the time and knows in its memory what it has written: where memory and disk are not
of one moment it says so on its console, as it does where its memory is torn.
"""
import os
import random
import re
import signal
import stat
import time

import pytest

import disk_guest
from bed import wait_until
from disk_guest import NEEDED, create, done, image, pool, wait_pool

pytestmark = NEEDED

FAULTS = re.compile(r'disk: |answered twice|corrupt')
LATER_FAULTS = re.compile(r' is \d+ not [1-9]|answered twice|corrupt')  # of a later life, which finds what those before it have written
HELLO = 'drover-guest: hello'
WORK = {'cmdline': 'disk=7 dirty=1'}


@pytest.fixture
def cluster(make_cluster):
    made = make_cluster(controllers=1, agents=1)
    image(made)
    return made


def layers(cluster, vm_id):
    return cluster.agent(1).directory / 'vms' / vm_id / 'disks' / 'root.layers'


def memory_files_of(directory):
    return sorted(f.name for f in directory.rglob('*') if '.memory' in f.name or f.name == 'resume')


def memory_files(cluster, vm_id):
    return memory_files_of(layers(cluster, vm_id))


def console(cluster, vm_id):
    return disk_guest.console(cluster.agent(1), vm_id)


def counts(text):
    return [int(n) for n in re.findall(r'^disk (\d+) writes', text, re.M)]


def wait_count(cluster, vm_id, start, more=1, found=counts):
    """Until the guest has said @more times how much it has written, since its console had @start characters."""
    return wait_until(lambda: (found(console(cluster, vm_id)[start:]) if len(found(console(cluster, vm_id)[start:])) >= more else None), 30,
                      'the guest says how much it has written')


def keep(cluster, vm_id, name='s'):
    """A snapshot with memory; what the guest had written, at least and at most."""
    before = wait_count(cluster, vm_id, 0)[-1]
    done(cluster, cluster.api('POST', '/v1/vms/a/snapshots', {'name': name, 'ram': True}))
    after = wait_count(cluster, vm_id, len(console(cluster, vm_id)))[-1]
    snapshot = cluster.api('GET', f'/v1/snapshots/{name}')[2]
    assert snapshot['state'] == 'available' and snapshot['consistency'] == 'memory', snapshot
    assert snapshot['ram_bytes'] > 0 and snapshot['pause_us'] > 0, snapshot
    print(f'the VM stood still for {snapshot["pause_us"]} us for {snapshot["ram_bytes"]} bytes')
    return snapshot, before, after


def stop(cluster):
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))


def revert(cluster, name='s', body=None):
    return done(cluster, cluster.api('POST', f'/v1/snapshots/{name}/revert', body))


def start(cluster, vm_id):
    """Start it; what the guest says of its writes from then on."""
    where = len(console(cluster, vm_id))
    done(cluster, cluster.api('POST', '/v1/vms/a/start'))
    return where, wait_count(cluster, vm_id, where, 2)


def test_it_goes_on_where_it_was_and_once(cluster):
    vm_id = create(cluster, 'a', **WORK)
    snapshot, before, after = keep(cluster, vm_id)
    path = layers(cluster, vm_id) / f'{snapshot["id"]}.memory'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.stat().st_uid == (layers(cluster, vm_id) / 'root.disk').stat().st_uid
    assert memory_files(cluster, vm_id) == [path.name]
    wait_until(lambda: counts(console(cluster, vm_id))[-1] > after + 200, 30, 'the disk has moved on')
    status, _, answer = cluster.api('POST', '/v1/snapshots/s/revert')
    assert status == 409 and 'stop it first' in answer['detail'], answer
    stop(cluster)
    revert(cluster)
    assert memory_files(cluster, vm_id) == [path.name, 'resume']
    where, found = start(cluster, vm_id)
    assert before <= found[0] <= after + 100, (before, found, after)
    assert console(cluster, vm_id).count(HELLO) == 1 and not FAULTS.search(console(cluster, vm_id))
    assert memory_files(cluster, vm_id) == [path.name]          # it has been gone on from
    # its disks have moved on by now: a start after this one boots, whatever ended it
    wait_count(cluster, vm_id, where, 5)
    assert not FAULTS.search(console(cluster, vm_id))
    (pid,) = cluster.agent(1).vmm_pids()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: console(cluster, vm_id).count(HELLO) == 2, 30, 'the guest booted')
    # its disks alone
    stop(cluster)
    cluster.cli('snapshot', 'revert', 's', '--disks-only', '--yes', '--wait', parse=False)
    assert memory_files(cluster, vm_id) == [path.name]
    start(cluster, vm_id)
    assert console(cluster, vm_id).count(HELLO) == 3
    # and once more; the snapshot can go while the VM runs from what was in it
    stop(cluster)
    revert(cluster)
    where, found = start(cluster, vm_id)
    assert before <= found[0] <= after + 100 and console(cluster, vm_id).count(HELLO) == 3
    done(cluster, cluster.api('DELETE', '/v1/snapshots/s'))
    assert memory_files(cluster, vm_id) == []
    wait_count(cluster, vm_id, len(console(cluster, vm_id)), 3)
    assert not FAULTS.search(console(cluster, vm_id)[where:])


def test_what_does_not_fit_together_is_refused_in_words(cluster):
    vm_id = create(cluster, 'a', **WORK)
    status, _, answer = cluster.api('POST', '/v1/vms/a/snapshots', {'name': 's', 'ram': True, 'freeze': True})
    assert status == 400 and answer['field'] == '/freeze' and 'thaw' in answer['detail'], answer
    snapshot, before, after = keep(cluster, vm_id)
    stop(cluster)
    status, _, answer = cluster.api('POST', '/v1/vms/a/snapshots', {'name': 't', 'ram': True})
    assert status == 409 and answer['field'] == '/ram' and 'needs a VM that runs' in answer['detail'], answer
    # a word to go on from memory that was there again although the disks have moved on (a lost sync, a copy put back) is worth nothing
    revert(cluster)
    resume = layers(cluster, vm_id) / 'resume'
    word = resume.read_bytes()
    start(cluster, vm_id)
    assert console(cluster, vm_id).count(HELLO) == 1
    stop(cluster)
    resume.write_bytes(word)
    start(cluster, vm_id)
    assert console(cluster, vm_id).count(HELLO) == 2 and not resume.exists()
    log = (cluster.agent(1).directory / 'vms' / vm_id / 'vmm.log').read_text()
    assert 'resume-stale' in log and 'has been written to since' in log, log
    # damaged memory: the guest does not run, and the words have the cure
    stop(cluster)
    path = layers(cluster, vm_id) / f'{snapshot["id"]}.memory'
    data = bytearray(path.read_bytes())
    at = data.rindex(b'drover-guest')       # a line of the guest's program, in its memory
    data[at] ^= 1
    path.write_bytes(data)
    revert(cluster)
    status, _, operation = cluster.api('POST', '/v1/vms/a/start')
    assert status == 202, operation
    failed = wait_until(lambda: cluster.vm('a') if cluster.vm('a')['state'] == 'failed' else None, 20, 'it cannot be started')
    assert 'memory' in failed['state_reason'] and 'damaged' in failed['state_reason'] and '--disks-only' in failed['state_reason'], failed
    assert resume.exists() and console(cluster, vm_id).count(HELLO) == 2
    stop(cluster)
    revert(cluster, body={'disks_only': True})
    start(cluster, vm_id)
    assert console(cluster, vm_id).count(HELLO) == 3


def test_in_a_pool_it_lies_beside_the_disk(cluster):
    where = pool(cluster, 'shared')
    wait_pool(cluster, 'shared', n1='present')
    vm_id = create(cluster, 'a', pool='shared', **WORK)
    snapshot, before, after = keep(cluster, vm_id)
    found = where / 'vms' / vm_id / 'root.layers'
    assert (found / f'{snapshot["id"]}.memory').exists() and not memory_files_of(cluster.agent(1).directory / 'vms' / vm_id)
    stop(cluster)
    revert(cluster)
    assert memory_files_of(found) == [f'{snapshot["id"]}.memory', 'resume']
    _, counted = start(cluster, vm_id)
    assert before <= counted[0] <= after + 100 and console(cluster, vm_id).count(HELLO) == 1
    assert not FAULTS.search(console(cluster, vm_id))
    done(cluster, cluster.api('DELETE', '/v1/snapshots/s'))
    assert not memory_files_of(found)
    done(cluster, cluster.api('DELETE', '/v1/vms/a'))
    assert not found.exists()


def test_it_stays_with_disks_in_a_pool_when_its_vm_is_migrated(make_cluster):
    """A VM is migrated away from where its memory was kept, and back; it goes on from it on each of the two hosts, once."""
    cluster = make_cluster(controllers=1, agents=2)
    image(cluster)
    found = pool(cluster, 'shared')
    wait_pool(cluster, 'shared', n1='present', n2='present')
    vm_id = create(cluster, 'a', pool='shared', **WORK)
    first = disk_guest.agent_of(cluster, 'a')
    second = next(agent for agent in cluster.agents if agent is not first)

    def text(agent):
        return disk_guest.console(agent, vm_id)

    def counted(agent, start, more=2):
        return wait_until(lambda: counts(text(agent)[start:])[more - 1:], 30, f'the guest writes on {agent.name}')[-1]

    before = counted(first, 0)
    done(cluster, cluster.api('POST', '/v1/vms/a/snapshots', {'name': 's', 'ram': True}))
    after = counted(first, len(text(first)))
    path = found / 'vms' / vm_id / 'root.layers' / f'{cluster.api("GET", "/v1/snapshots/s")[2]["id"]}.memory'
    kept = path.read_bytes()
    for target in (second, first):
        where = len(text(target))
        ended = done(cluster, cluster.api('POST', '/v1/vms/a/migrate', {'to': target.name}))
        assert ended['task']['migration']['snapshots_stay'], ended
        wait_until(lambda: cluster.vm('a')['host_name'] == target.name, 30, f'it is on {target.name}')
        wait_until(lambda: max(counts(text(target)[where:]), default=0) > after + 100, 30, f'the disk has moved on on {target.name}')
        assert path.read_bytes() == kept and HELLO not in text(target)[where:]
        stop(cluster)
        revert(cluster)
        assert memory_files_of(path.parent) == [path.name, 'resume']
        where = len(text(target))
        done(cluster, cluster.api('POST', '/v1/vms/a/start'))
        first_said = wait_until(lambda: counts(text(target)[where:]), 30, 'the guest goes on')[0]
        assert before <= first_said <= after + 100, (before, first_said, after)
        assert memory_files_of(path.parent) == [path.name]
        counted(target, where, 5)
        assert HELLO not in text(target)[where:] and not FAULTS.search(text(target)[where:])
        assert cluster.vm('a')['host_name'] == target.name
    # there, too, its disks alone can be reverted to; and it goes
    stop(cluster)
    revert(cluster, body={'disks_only': True})
    where = len(text(first))
    done(cluster, cluster.api('POST', '/v1/vms/a/start'))
    wait_until(lambda: HELLO in text(first)[where:], 30, 'the guest boots')
    done(cluster, cluster.api('DELETE', '/v1/snapshots/s'))
    assert not memory_files_of(found)


def begin(cluster, name='s'):
    status, _, operation = cluster.api('POST', '/v1/vms/a/snapshots', {'name': name, 'ram': True})
    assert status == 202, operation
    return operation


def wait_asked(cluster, times):
    """Its agent has begun the task so often."""
    wait_until(lambda: cluster.agent(1).program.text().count('kind=snapshot-create role=main') >= times, 20, 'its agent is at it', poll_s=0.02)


def ended(cluster, operation):
    def look():
        try:
            found = cluster.api('GET', f'/v1/operations/{operation["id"]}')[2]
        except OSError:         # its controller is not there yet
            return None
        return found if found.get('state') in ('succeeded', 'failed', 'cancelled') else None
    return wait_until(look, 40, 'it has ended')


def test_agent_controller_and_vmm_end_on_the_way(cluster):
    vm_id = create(cluster, 'a', **WORK)
    agent = cluster.agent(1)
    wait_count(cluster, vm_id, 0)
    # the agent, and the controller: its VMM goes on alone, and what it made is found
    (pid,) = agent.vmm_pids()
    os.kill(pid, signal.SIGSTOP)
    operation = begin(cluster)
    wait_asked(cluster, 1)
    agent.program.kill9()
    cluster.controller(1).program.kill9()
    os.kill(pid, signal.SIGCONT)
    cluster.controller(1).program.restart()
    agent.program.restart()
    assert ended(cluster, operation)['state'] == 'succeeded'
    snapshot = cluster.api('GET', '/v1/snapshots/s')[2]
    assert snapshot['consistency'] == 'memory' and snapshot['ram_bytes'] > 0, snapshot
    assert memory_files(cluster, vm_id) == [f'{snapshot["id"]}.memory']
    stop(cluster)
    revert(cluster)
    start(cluster, vm_id)
    assert console(cluster, vm_id).count(HELLO) == 1 and not FAULTS.search(console(cluster, vm_id))
    # its VMM: what was to be kept is gone with it. The VM runs on, anew, and nothing is left of it
    (pid,) = agent.vmm_pids()
    os.kill(pid, signal.SIGSTOP)
    operation = begin(cluster, 't')
    wait_asked(cluster, 2)
    os.kill(pid, signal.SIGKILL)
    operation = ended(cluster, operation)
    assert operation['state'] == 'failed' and 'its VMM ended' in operation['error_text'], operation
    assert [s['name'] for s in cluster.api('GET', '/v1/snapshots')[2]] == ['s']
    wait_until(lambda: console(cluster, vm_id).count(HELLO) == 2, 30, 'the guest booted')
    assert memory_files(cluster, vm_id) == [f'{snapshot["id"]}.memory']
    done(cluster, cluster.api('DELETE', '/v1/vms/a'))
    assert not layers(cluster, vm_id).exists() and cluster.api('GET', '/v1/snapshots')[2] == []


@pytest.mark.slow
def test_killed_at_random(cluster):
    """Agent, VMM or controller end at any moment of making a snapshot with memory, or it is cancelled: it is there, whole, or nothing of it is."""
    seed = int(os.environ.get('DROVER_SEED', 0)) or int.from_bytes(os.urandom(4), 'little')
    print(f'seed {seed}: DROVER_SEED={seed} has the same moments')
    chance = random.Random(seed)
    vm_id = create(cluster, 'a', cmdline='disk=7 dirty=4000', memory_bytes=256 << 20)
    agent, controller, made = cluster.agent(1), cluster.controller(1), 0
    for number in range(15):
        wait_count(cluster, vm_id, len(console(cluster, vm_id)))
        operation = begin(cluster, f's{number}')
        who = chance.choice(['vmm', 'agent', 'controller', 'cancel', 'agent, cancel'])
        time.sleep(chance.random() * 0.3)       # a moment like any other
        if who == 'vmm':
            os.kill(agent.vmm_pids()[0], signal.SIGKILL)
        elif who == 'cancel':
            cluster.api('POST', f'/v1/operations/{operation["id"]}/cancel')
        else:
            program = controller.program if who == 'controller' else agent.program
            program.kill9()
            program.restart()
            if who == 'agent, cancel':
                cluster.api('POST', f'/v1/operations/{operation["id"]}/cancel')
        state = ended(cluster, operation)['state']
        wait_until(lambda: cluster.vm('a')['state'] == 'running', 30, 'it runs')
        snapshots = cluster.api('GET', '/v1/snapshots')[2]
        assert [s['name'] for s in snapshots] == ([f's{number}'] if state == 'succeeded' else []), (who, state)
        assert memory_files(cluster, vm_id) == [f'{s["id"]}.memory' for s in snapshots], (who, state)
        if state == 'succeeded':
            made += 1
            hello = console(cluster, vm_id).count(HELLO)
            stop(cluster)
            revert(cluster, f's{number}')
            where, _ = start(cluster, vm_id)
            assert console(cluster, vm_id).count(HELLO) == hello and not LATER_FAULTS.search(console(cluster, vm_id)[where:])
            done(cluster, cluster.api('DELETE', f'/v1/snapshots/s{number}'))
    assert 0 < made < 15, f'{made} were made: it was killed too late or too early'
