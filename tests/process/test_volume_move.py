"""Volumes that move between pools: one of two copies is the volume at every moment, whoever ends on the way."""
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import time

from bed import BedError, wait_until
from disk_guest import (BLOCKS, NEEDED, WRITES, console, create, image, pool, read_before, wait_pool, wait_writes, writes)
from test_devices import Running
from test_vmm import VMM
from test_volume_objects import layers, refused, start, stop, volume

pytestmark = NEEDED
MIB = 1 << 20
SIZE = 96 * MIB
BACKUP = VMM.parent / 'drover-backup'


def place(path, found):
    """Where @found, a volume, is in the pool @path."""
    name = found['id'] + ('.' + found['place'] if 'place' in found else '')
    return path / 'volumes' / name / f'{found["disk"]}.layers'


def content(path, found):
    out = subprocess.run([BACKUP, 'create', '--store', path.parent / 'store', '--vm', 'by-hand', '--parent', 'none', '--json', '--disk',
                          f'root=pool:{place(path, found)}/{found["disk"]}'], check=True, capture_output=True, timeout=240).stdout
    made = json.loads(out)['id']
    out = subprocess.run([BACKUP, 'cat', '--store', path.parent / 'store', '--backup', made, '--disk', 'root'], check=True,
                         capture_output=True, timeout=240).stdout
    return hashlib.sha256(out).hexdigest()


def worker(agent, work='volume'):
    """The child of @agent that moves a volume, or does other @work; or None."""
    for task in os.listdir(f'/proc/{agent.program.pid}/task'):
        with open(f'/proc/{agent.program.pid}/task/{task}/children') as children:
            for pid in children.read().split():
                try:
                    with open(f'/proc/{pid}/cmdline', 'rb') as words:
                        if words.read().split(b'\0')[1:3] == [b'task', work.encode()]:
                            return int(pid)
                except OSError:
                    pass
    return None


def move_held(cluster, agent, name, to):
    """A move that is under way, and comes to no end: its child is held. Returns the operation, and that process."""
    status, _, operation = cluster.api('POST', f'/v1/volumes/{name}/move', {'pool': to})
    assert status == 202, operation
    held = []

    def hold():
        pid = worker(agent)
        if pid is not None:
            os.kill(pid, signal.SIGSTOP)
            held.append(pid)
        return pid is not None
    end = time.monotonic() + 30
    while not hold():
        assert time.monotonic() < end, 'nobody begins to move it'
    assert volume(cluster, name)['state'] == 'moving', 'it was done before it could be held'
    return operation, held[0]


def wait_left(cluster, name):
    def seen():
        found = volume(cluster, name)
        return found if found and 'other_pool' not in found else None
    return wait_until(seen, 30, 'nothing is left of the move', poll_s=0.05)


def test_moved_and_interrupted(make_cluster):
    """To another pool and back: with the agent and the controller killed on the way, cancelled; and what a guest
    has written is there."""
    cluster = make_cluster(controllers=1, agents=1)
    agent, controller = cluster.agent(1), cluster.controller(1)
    image(cluster)
    ssd, nas = pool(cluster, 'ssd', kind='dir'), pool(cluster, 'nas')
    wait_pool(cluster, 'ssd', n1='present')
    wait_pool(cluster, 'nas', n1='present')
    raw = cluster.bed.directory / 'filled.img'
    raw.write_bytes(bytes(4 * MIB) + os.urandom(MIB) * (SIZE // MIB - 4))
    status, _, answer = cluster.api('POST', '/v1/images', {'name': 'filled', 'kind': 'disk', 'disk': {
        'url': f'file://{raw}', 'sha256': hashlib.sha256(raw.read_bytes()).hexdigest()}})
    assert status == 201, answer
    made = cluster.cli('volume', 'create', 'data', '--pool', 'ssd', '--image', 'filled', '--size', f'{SIZE + 4 * MIB}', '--wait')
    vm_id = create(cluster, 'one', started=False, cmdline='disk=7', disks=[])
    cluster.cli('volume', 'attach', 'data', '--vm', 'one', '--wait')
    start(cluster, 'one')
    wait_writes(agent, vm_id, 20)
    stop(cluster, 'one')
    cluster.cli('volume', 'detach', 'data', '--wait')
    subprocess.run([BACKUP, 'init', '--store', cluster.bed.directory / 'store'], check=True, capture_output=True)
    before = content(ssd, made)
    # the agent is killed
    operation, _ = move_held(cluster, agent, 'data', 'nas')
    refused(cluster, 409, 'is being moved to pool', 'POST', '/v1/volumes/data/attach', {'vm': 'one'})
    agent.program.kill9()
    assert layers(ssd, made).exists() and not list((nas / 'volumes').glob('*/whole'))
    agent.program.restart()
    cluster.wait_operation(operation)
    found = wait_left(cluster, 'data')
    assert found['pool'] == 'nas' and found['place'] == operation['id'] and 'host' not in found, found
    assert not list((ssd / 'volumes').iterdir()) and content(nas, found) == before
    # the controllers are away while it ends
    operation, held = move_held(cluster, agent, 'data', 'ssd')
    controller.program.kill9()
    os.kill(held, signal.SIGCONT)
    wait_until(lambda: (ssd / 'volumes' / f'{made["id"]}.{operation["id"]}' / 'whole').exists(), 60, 'it is copied')
    assert place(nas, found).exists()
    controller.program.restart()
    wait_until(lambda: cluster.ready(controller), 60, 'it is ready again')
    cluster.wait_operation(operation)
    found = wait_left(cluster, 'data')
    assert found['pool'] == 'ssd' and found['host'] == 'n1' and not list((nas / 'volumes').iterdir())
    assert content(ssd, found) == before
    # cancelled
    operation, _ = move_held(cluster, agent, 'data', 'nas')
    assert cluster.api('POST', f'/v1/operations/{operation["id"]}/cancel')[0] == 200
    wait_until(lambda: cluster.api('GET', f'/v1/operations/{operation["id"]}')[2]['state'] == 'cancelled', 30, 'it is cancelled')
    assert wait_left(cluster, 'data')['pool'] == 'ssd' and not list((nas / 'volumes').iterdir())
    # where it is already nothing is done
    done = cluster.cli('volume', 'move', 'data', '--pool', 'ssd', '--wait')
    assert done['state'] == 'succeeded' and volume(cluster, 'data')['place'] == found['place']
    # and a guest finds what it has written
    cluster.cli('volume', 'move', 'data', '--pool', 'nas', '--wait')
    cluster.cli('volume', 'attach', 'data', '--vm', 'one', '--wait')
    start(cluster, 'one')
    wait_until(lambda: read_before(agent, vm_id), 30, 'the guest finds what it has written')
    stop(cluster, 'one')
    cluster.cli('volume', 'detach', 'data', '--wait')
    wait_left(cluster, 'data')
    cluster.cli('volume', 'delete', 'data', '--yes', '--wait', parse=False)
    assert not list((nas / 'volumes').iterdir()) and not list((ssd / 'volumes').iterdir())


def test_moved_while_a_guest_writes(make_cluster):
    """From pool to pool below a guest that writes all the time; with the agent, the VMM and the controller killed when both copies are the
    same and it is not known yet which of them it is. No write that the guest was told is done is lost."""
    cluster = make_cluster(controllers=1, agents=1)
    agent, controller = cluster.agent(1), cluster.controller(1)
    image(cluster, disk=False)
    pools = {'ssd': pool(cluster, 'ssd', kind='dir'), 'nas': pool(cluster, 'nas')}
    for name in pools:
        wait_pool(cluster, name, n1='present')
    made = cluster.cli('volume', 'create', 'data', '--pool', 'ssd', '--size', '8MiB', '--wait')
    vm_id = create(cluster, 'one', started=False, restart='always', **WRITES)
    cluster.cli('volume', 'attach', 'data', '--vm', 'one', '--wait')
    start(cluster, 'one')
    wait_writes(agent, vm_id, 20)
    running = Running(cluster, 'one')

    def its_disk():
        return running.ask(f'disks/{made["disk"]}')

    def is_in(name):
        found = wait_left(cluster, 'data')
        assert found['pool'] == name and found['state'] == 'attached' and place(pools[name], found).exists(), found
        for other, path in pools.items():
            assert len(list((path / 'volumes').iterdir())) == (other == name), other
        return found

    def goes_on():
        wait_writes(agent, vm_id, 20)
        assert running.same_process() and 'disk: ' not in console(agent, vm_id), console(agent, vm_id)[-500:]

    # there, and back
    for name in ('nas', 'ssd'):
        cluster.cli('volume', 'move', 'data', '--pool', name, '--wait')
        found = is_in(name)
        wait_until(lambda: found['place'] in its_disk()['disk']['path'], 30, 'its VMM has it')
        goes_on()
    plugged = [path.name for path in (agent.directory / 'vms' / vm_id / 'disks').glob('*.plugged')]
    assert plugged == [f'{made["disk"]}.{found["place"]}.plugged'], plugged

    def other():
        return 'ssd' if volume(cluster, 'data')['pool'] == 'nas' else 'nas'

    def held():
        """Both are the same, its host has said so, and nobody has heard it: the controller is killed in between. Tried until it was then."""
        log = agent.program.log
        for _ in range(20):
            to = other()
            status, _, operation = cluster.api('POST', '/v1/volumes/data/move', {'pool': to})
            assert status == 202, operation
            path = f'/v1/operations/{operation["id"]}'
            wait_until(lambda: (o := cluster.api('GET', path)[2])['task'].get('level') or o['state'] != 'running', 30, 'level', poll_s=0.001)
            controller.program.kill9()
            taken = f'{operation["id"]}.plugged/{made["disk"]}.disk taken=1'
            said = f'operation={operation["id"]} kind=volume-move role=main state=succeeded'
            with contextlib.suppress(BedError):
                wait_until(lambda: said in log.read_text(), 1, 'its host says so')
            if said in log.read_text() and taken not in log.read_text() and its_disk()['move']['state'] == 'held':
                return operation, to
            decided(operation, to)
        raise AssertionError('the controller was never killed in time')

    def decided(operation, to):
        controller.program.restart()
        wait_until(lambda: cluster.ready(controller), 60, 'it is ready again')
        cluster.wait_operation(operation)
        return is_in(to)

    # before a majority has answered nothing waits for one
    status, _, operation = cluster.api('POST', '/v1/volumes/data/move', {'pool': 'nas'})
    wait_until(lambda: f'task-begins operation={operation["id"]}' in agent.program.log.read_text(), 30, 'its host has heard of it', poll_s=0.002)
    controller.program.kill9()
    wait_writes(agent, vm_id, 50)
    decided(operation, 'nas')
    goes_on()
    # an agent that is killed has said it, and the next one says it again
    operation, to = held()
    agent.program.kill9()
    agent.program.restart()
    assert its_disk()['move']['state'] == 'held'
    decided(operation, to)
    goes_on()
    # a VMM that is killed is not followed by another one before that is known, as that of another VM is
    create(cluster, 'clock', restart='always')
    clock = next(pid for pid in agent.vmm_pids() if pid not in running.pids)
    operation, to = held()
    before = writes(agent, vm_id)
    for pid in (running.pids[0], clock):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not {running.pids[0], clock} & set(agent.vmm_pids()) and agent.vmm_pids(), 30, 'the other one is back')
    assert len(agent.vmm_pids()) == 1
    decided(operation, to)
    wait_until(lambda: max(read_before(agent, vm_id), default=-1) + BLOCKS >= before, 60, 'the guest finds what it has written')
    assert 'disk: status' not in console(agent, vm_id)
    # given up on the way, if that was in time
    status, _, operation = cluster.api('POST', '/v1/volumes/data/move', {'pool': other()})
    cluster.api('POST', f'/v1/operations/{operation["id"]}/cancel')
    wait_until(lambda: cluster.api('GET', f'/v1/operations/{operation["id"]}')[2]['state'] != 'running', 30, 'it is over')
    is_in(volume(cluster, 'data')['pool'])
    wait_writes(agent, vm_id, 20)
    # and off
    stop(cluster, 'one')
    before, to = writes(agent, vm_id), other()
    cluster.cli('volume', 'move', 'data', '--pool', to, '--wait')
    is_in(to)
    start(cluster, 'one')
    wait_until(lambda: max(read_before(agent, vm_id), default=-1) + BLOCKS >= before, 60, 'the guest finds what it has written')
    assert 'disk: status' not in console(agent, vm_id)
