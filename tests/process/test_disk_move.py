"""VMs' own disks that move, between the directory of their host and pools: one of two copies is the disk at every moment, whoever ends
on the way."""
import contextlib
import hashlib
import json
import os
import signal
import time
from pathlib import Path

import pytest

from bed import BedError, wait_until
from disk_guest import BLOCKS, NEEDED, WRITES, console, create, image, pool, read_before, wait_pool, wait_writes, writes
from test_devices import Running
from test_vm_migrate import VICTIMS, Cell, Counter, refusal, settle, tell
from test_volume_move import worker
from test_volume_objects import refused, start, stop

pytestmark = NEEDED


class Disk:
    """The first disk of VM "one", on the only host of @cluster."""

    def __init__(self, cluster, **fields):
        self.cluster, self.agent = cluster, cluster.agent(1)
        image(cluster)
        self.pools = {'ssd': pool(cluster, 'ssd', kind='dir'), 'nas': pool(cluster, 'nas')}
        for name in self.pools:
            wait_pool(cluster, name, n1='present')
        self.vm_id = create(cluster, 'one', disks=[{'name': 'root', 'image': True, 'size_bytes': 8 << 20}], **WRITES, **fields)
        self.home = self.agent.directory / 'vms' / self.vm_id / 'disks'
        wait_writes(self.agent, self.vm_id, 20)

    def record(self):
        return self.cluster.vm('one')['disks'][0]

    def body(self, to):
        return {'disk': 'root', **({'pool': to} if to else {})}

    def begin(self, to):
        status, _, operation = self.cluster.api('POST', '/v1/vms/one/move-disk', self.body(to))
        assert status == 202, operation
        return operation

    def state(self, operation):
        return self.cluster.api('GET', f'/v1/operations/{operation["id"]}')[2]['state']

    def move(self, to):
        words = ['--pool', to] if to else []
        self.cluster.cli('vm', 'move-disk', 'one', '--disk', 'root', *words, '--wait')
        return self.is_in(to)

    def here(self, to):
        """What there is of the disk in pool @to, '': the directory of the host."""
        path = self.pools[to] / 'vms' / self.vm_id if to else self.home
        return sorted(p.name for p in path.glob('root*') if not p.name.endswith('.plugged')) if path.exists() else []

    def is_in(self, to):
        """There, and nowhere else."""
        found = wait_until(lambda: found if not {'moving', 'other_pool', 'other_host'} & set(found := self.record()) else None, 30,
                           'nothing is left of the move', poll_s=0.05)
        assert found.get('pool', '') == to, found
        for other in ('', *self.pools):
            want = [f'root.{found["place"]}.layers', f'root.{found["place"]}.whole'] if other == to else []
            wait_until(lambda other=other, want=want: self.here(other) == want, 10, f'what is in "{other}": {self.here(other)}')
        return found

    def finds(self, before):
        """The guest's present life finds what an earlier one had written."""
        wait_until(lambda: max(read_before(self.agent, self.vm_id), default=-1) + BLOCKS >= before, 60, 'the guest finds what it has written')
        assert 'disk: status' not in console(self.agent, self.vm_id)


def test_moved_while_off(make_cluster):
    """From the directory of its host to pools and back, with the agent and the controller killed on the way; cancelled; refused with snapshots;
    and gone with its VM."""
    cluster = make_cluster(controllers=1, agents=1)
    disk = Disk(cluster)
    agent, controller = disk.agent, cluster.controller(1)
    stop(cluster, 'one')
    before = writes(agent, disk.vm_id)
    assert disk.here('') == ['root.layers']

    def held(to):
        operation = disk.begin(to)
        pid = wait_until(lambda: worker(agent), 30, 'it is copied', poll_s=0.001)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        return operation, pid
    # the agent is killed, and there is half of a copy
    operation, _ = held('ssd')
    refused(cluster, 409, "disk 'root' of VM 'one' is being moved", 'POST', '/v1/vms/one/snapshots', {})
    agent.program.kill9()
    assert disk.record()['moving'] and 'root.layers' in disk.here('')
    agent.program.restart()
    cluster.wait_operation(operation)
    found = disk.is_in('ssd')
    assert found['place'] == operation['id']
    # the controllers are away while it ends
    operation, pid = held('nas')
    controller.program.kill9()
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: f'root.{operation["id"]}.whole' in disk.here('nas'), 60, 'it is copied')
    assert f'root.{found["place"]}.layers' in disk.here('ssd')
    controller.program.restart()
    wait_until(lambda: cluster.ready(controller), 60, 'it is ready again')
    cluster.wait_operation(operation)
    found = disk.is_in('nas')
    # cancelled
    operation, _ = held('')
    assert cluster.api('POST', f'/v1/operations/{operation["id"]}/cancel')[0] == 200
    wait_until(lambda: disk.state(operation) == 'cancelled', 30, 'it is cancelled')
    assert disk.is_in('nas') == found
    # there already
    assert disk.move('nas') == found
    # a guest finds what it had written; then back to the directory of its host, and again
    start(cluster, 'one')
    disk.finds(before)
    stop(cluster, 'one')
    before = writes(agent, disk.vm_id)
    disk.move('')
    start(cluster, 'one')
    disk.finds(before)
    stop(cluster, 'one')
    # snapshots work there, and do not go along
    cluster.cli('snapshot', 'create', 'one', 's', '--wait')
    refused(cluster, 501, "has snapshot 's'", 'POST', '/v1/vms/one/move-disk', disk.body('ssd'))
    cluster.cli('snapshot', 'revert', 's', '--yes', '--wait')
    cluster.cli('snapshot', 'delete', 's', '--yes', '--wait')
    disk.move('nas')
    # and it goes with its VM, with all that is left of it
    held('ssd')
    cluster.cli('vm', 'delete', 'one', '--yes', '--wait', parse=False)
    assert not disk.here('') and not disk.here('ssd') and not disk.here('nas') and not disk.home.exists()


def test_moved_while_its_guest_writes(make_cluster):
    """The same below a guest that writes all the time; with the agent, the VMM and the controller killed when both copies are the same and
    it is not known yet which of them it is. No write that the guest was told is done is lost."""
    cluster = make_cluster(controllers=1, agents=1)
    disk = Disk(cluster, restart='always')
    agent, controller = disk.agent, cluster.controller(1)
    running = Running(cluster, 'one')

    def its_disk():
        return running.ask('disks/root')

    def goes_on():
        wait_writes(agent, disk.vm_id, 20)
        assert running.same_process() and 'disk: ' not in console(agent, disk.vm_id), console(agent, disk.vm_id)[-500:]

    for to in ('nas', 'ssd', ''):
        found = disk.move(to)
        wait_until(lambda place=found['place']: place in its_disk()['disk']['path'], 30, 'its VMM has it')
        goes_on()
    # a snapshot there, of the disk that the VMM has now
    cluster.cli('snapshot', 'create', 'one', 's', '--wait')
    head = json.loads((disk.home / f'root.{found["place"]}.layers' / 'root.disk').read_text())
    assert len(head['layers']) == 2, head
    goes_on()
    cluster.cli('snapshot', 'delete', 's', '--yes', '--wait')
    goes_on()

    def held():
        """Both are the same, its host has said so, and nobody has heard it: the controller is killed in between. Tried until it was then."""
        log = agent.program.log
        for _ in range(20):
            to = 'ssd' if disk.record().get('pool') == 'nas' else 'nas'
            operation = disk.begin(to)
            path = f'/v1/operations/{operation["id"]}'
            wait_until(lambda: (o := cluster.api('GET', path)[2])['task'].get('level') or o['state'] != 'running', 30, 'level', poll_s=0.001)
            controller.program.kill9()
            taken = f'{operation["id"]}.plugged/root.disk taken=1'
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
        return disk.is_in(to)

    # an agent that is killed has said it, and the next one says it again
    operation, to = held()
    agent.program.kill9()
    agent.program.restart()
    assert its_disk()['move']['state'] == 'held'
    decided(operation, to)
    goes_on()
    # a VMM that is killed is not followed by another one before that is known
    operation, to = held()
    before = writes(agent, disk.vm_id)
    os.kill(running.pids[0], signal.SIGKILL)
    wait_until(lambda: not agent.vmm_pids(), 30, 'it has ended')
    decided(operation, to)
    wait_until(agent.vmm_pids, 30, 'there is another one')
    disk.finds(before)
    # a pool that the VMM was started with is let go of
    mounts = Path(f'/proc/{agent.vmm_pids()[0]}/mountinfo')
    assert str(disk.pools[to]) in mounts.read_text()
    disk.move('ssd' if to == 'nas' else 'nas')
    wait_until(lambda: str(disk.pools[to]) not in mounts.read_text(), 30, 'its VMM keeps nothing of the pool')
    wait_writes(agent, disk.vm_id, 20)
    # given up on the way, if that was in time
    operation = disk.begin('')
    cluster.api('POST', f'/v1/operations/{operation["id"]}/cancel')
    wait_until(lambda: disk.state(operation) != 'running', 30, 'it is over')
    disk.is_in(disk.record().get('pool', ''))
    wait_writes(agent, disk.vm_id, 20)


class Landing(Counter):
    """A VM with a raw disk and one above an image on its host, and a pool of directories on each of two hosts."""

    def __init__(self, cluster, *options):
        super().__init__(cluster, *options, cmdline='dirty=4', disks=True)
        self.lands = True
        self.pools = {agent.name: pool(cluster, f'fast-{agent.name}', kind='dir', hosts=[agent]) for agent in cluster.agents}
        for agent in cluster.agents:
            wait_pool(cluster, f'fast-{agent.name}', **{agent.name: 'present'})

    def ask(self, *words):
        """To a host: into the pool of that."""
        storage = ['--storage', f'fast-{words[1]}'] if self.lands and words[0] == '--to' else []
        return super().ask(*words, *storage)

    def in_pool(self, agent):
        path = self.pools[agent.name] / 'vms' / self.id
        return sorted(p.name for p in path.glob('*.layers')) if path.exists() else []

    def landed_at(self, agent, place):
        """All of it is in the pool of @agent's host, as it was and as thin, and nothing of it anywhere else."""
        assert all(d.get('pool') == f'fast-{agent.name}' and d['place'] == place for d in self.vm()['disks']), self.vm()['disks']
        wait_until(lambda: self.in_pool(agent) == [f'{name}.{place}.layers' for name in ('data', 'root')] and not self.in_pool(self.other(agent)),
                   30, 'the disks are there, and there alone')
        assert not list((agent.directory / 'vms' / self.id / 'disks').glob('*.layers'))
        layers = {name: self.pools[agent.name] / 'vms' / self.id / f'{name}.{place}.layers' for name in ('data', 'root')}
        data = next(layers['data'].glob('*.raw'))
        assert hashlib.sha256(data.read_bytes()).hexdigest() == self.content and data.stat().st_blocks * 512 <= 8 << 20
        assert any(p.name.endswith('.img') for p in layers['root'].iterdir()), 'the image was copied'


def test_disks_land_in_a_pool_of_the_target(make_cluster):
    """A VM goes to the other host with its disks into a pool there, and from there into a pool of the first; one migration whose target dies
    leaves all where it was, and nothing at the target."""
    web = Landing(make_cluster(controllers=1, agents=2))
    source, target = web.agent(), web.other()
    refused(web.cluster, 409, f"'fast-{source.name}' is not on host", 'POST', '/v1/vms/web/migrate',
            {'to': target.name, 'storage': f'fast-{source.name}'})
    asked = web.ask('--to', target.name, '--bytes-per-second', '2MiB')
    web.wait_step(asked, 'MiB copied')
    assert web.in_pool(target) == [f'{name}.{asked["id"]}.layers' for name in ('data', 'root')]
    for pid in target.vmm_pids():
        os.kill(pid, signal.SIGKILL)
    assert web.wait_end(asked)['state'] == 'failed'
    web.settled_at(source)
    wait_until(lambda: not web.in_pool(target), 30, 'nothing is left at the target')
    assert web.digest(source) == web.content and all('pool' not in d for d in web.vm()['disks'])
    for there in (target, source):
        ended = web.wait_end(asked := web.ask('--to', there.name), 60)
        assert ended['state'] == 'succeeded', ended
        web.settled_at(there)
        web.landed_at(there, asked['id'])
    refused(web.cluster, 501, 'name the pool there', 'POST', '/v1/vms/web/migrate', {'to': target.name})


class Sharing(Landing):
    """The same, and two pools that both hosts have."""

    def __init__(self, cluster, *options):
        super().__init__(cluster, *options)
        self.lands = False
        self.shared = {name: pool(cluster, name) for name in ('nas', 'vault')}
        for name in self.shared:
            wait_pool(cluster, name, n1='present', n2='present')
        self.goes_to = None                                  # the pool that is asked for

    def ask(self, *words):
        return super().ask(*words, *(['--storage', self.goes_to] if self.goes_to else []))

    def in_shared(self, name):
        path = self.shared[name] / 'vms' / self.id
        return sorted(p.name for p in path.iterdir()) if path.exists() else []

    def is_in(self, name, place):
        """All of its disks are in that pool ('': in the directory of its host), as they were and as thin, and nothing of them is anywhere
        else."""
        wait_until(lambda: not any({'other_pool', 'moving'} & set(d) for d in self.vm()['disks']), 60, 'nothing of them is anywhere else')
        disks = self.vm()['disks']
        assert all(d.get('pool', '') == name and d.get('place') == place for d in disks), disks
        names = [f'{disk}.{place}.layers' for disk in ('data', 'root')]
        for other in self.shared:
            want = names if other == name else []
            wait_until(lambda other=other, want=want: [n for n in self.in_shared(other) if not n.endswith('.whole')] == want, 30,
                       f'what is in {other}: {self.in_shared(other)}')
        for agent in self.cluster.agents:
            want = names if name == f'fast-{agent.name}' else []
            wait_until(lambda agent=agent, want=want: self.in_pool(agent) == want, 30, f'what is in the pool of {agent.name}')
        if name in self.shared:
            data = next((self.shared[name] / 'vms' / self.id / names[0]).glob('*.raw'))
            assert hashlib.sha256(data.read_bytes()).hexdigest() == self.content and data.stat().st_blocks * 512 <= 8 << 20
            assert not list((self.folder(self.agent()) / 'disks').glob('*.layers'))
        elif not name:
            assert self.digest(self.agent()) == self.content

    def goes(self, to, name):
        self.goes_to = name
        ended = self.wait_end(asked := self.ask('--to', to.name), 60)
        assert ended['state'] == 'succeeded', ended
        self.settled_at(to)
        self.is_in(name, asked['id'])


def test_disks_go_to_a_pool_that_both_hosts_have(make_cluster):
    """From the directory of a host to a shared pool, and from there to a pool that the other host has for itself. One migration whose target
    dies leaves nothing in the pool."""
    web = Sharing(make_cluster(controllers=1, agents=2))
    source, target = web.agent(), web.other()
    web.goes_to = 'nas'
    asked = web.ask('--to', target.name, '--bytes-per-second', '2MiB')
    web.wait_step(asked, 'MiB copied')
    assert web.in_shared('nas') == [f'{name}.{asked["id"]}.layers' for name in ('data', 'root')]
    for pid in target.vmm_pids():
        os.kill(pid, signal.SIGKILL)
    assert web.wait_end(asked)['state'] == 'failed'
    web.settled_at(source)
    web.is_in('', None)
    web.goes(target, 'nas')
    assert 'leave storage out' in refusal(web.cluster, 'web', '--storage', 'nas')
    web.goes(source, f'fast-{source.name}')


@pytest.mark.slow
def test_from_one_shared_pool_to_another(make_cluster):
    """And the VM goes on being moved, without its disks, from there."""
    web = Sharing(make_cluster(controllers=1, agents=2))
    source, target = web.agent(), web.other()
    for to, name in ((target, 'nas'), (source, 'vault'), (target, 'nas')):
        web.goes(to, name)
    place = web.vm()['disks'][0]['place']
    web.goes_to = None
    assert web.wait_end(web.ask('--to', source.name), 60)['state'] == 'succeeded'
    web.settled_at(source)
    web.is_in('nas', place)
    web.cluster.cli('vm', 'delete', 'web', '--yes', '--wait', parse=False)
    wait_until(lambda: not web.in_shared('nas') and not web.folder(source).exists(), 30, 'it is gone')


@pytest.mark.slow
def test_snapshots_stay_with_disks_in_shared_pools(make_cluster):
    """One that is made on one host is reverted to on the other."""
    web = Counter(make_cluster(controllers=1, agents=2), shared=True)
    target = web.other()
    web.cluster.cli('snapshot', 'create', 'web', 'before', '--wait')
    ended = web.wait_end(web.ask('--to', target.name))
    assert ended['state'] == 'succeeded' and ended['task']['migration']['snapshots_stay'], ended
    web.settled_at(target)
    web.cluster.cli('vm', 'stop', 'web', '--force', '--yes', '--wait', parse=False)
    web.cluster.cli('snapshot', 'revert', 'before', '--yes', '--wait', parse=False)
    web.cluster.cli('vm', 'start', 'web', '--wait')
    wait_until(lambda: read_before(target, web.id), 60, 'the guest finds what was written before the snapshot')
    assert 'disk: status' not in console(target, web.id)
    web.cluster.cli('snapshot', 'delete', 'before', '--yes', '--wait', parse=False)
    web.cluster.cli('vm', 'migrate', 'web', '--wait')


@pytest.mark.slow
def test_under_the_lease_disks_of_a_host_go_along(make_cluster):
    """Those of a VM that is highly available: no lease speaks of it at the target before it is that host's. In a shared pool it fails over."""
    web = Sharing(make_cluster(controllers=3, agents=2), '--ha')
    source, target = web.agent(), web.other()
    assert web.wait_end(web.ask('--to', target.name), 60)['state'] == 'succeeded'
    web.settled_at(target)
    web.disks_arrived(target)
    web.goes(source, 'nas')
    place = web.vm()['disks'][0]['place']
    source.host.power_off()
    wait_until(lambda: read_before(target, web.id), 60, 'the guest finds what was written')
    assert web.vm()['disks'][0]['place'] == place


@pytest.mark.slow
@pytest.mark.parametrize('step, victim, away', [(s, v, a) for a in (False, True) for s in ('disks', 'ready', 'after') for v in VICTIMS
                                                if not a or s != 'disks' or v.endswith('VMM')])
def test_whoever_dies_what_is_shared_is_at_one_place(make_cluster, capsys, step, victim, away):
    """To a shared pool, or (@away) from there to a pool of the target's own: whoever the VM is at sees its disks, and the other copies go."""
    web = Sharing(make_cluster(controllers=1, agents=2), '--restart', 'always')
    if away:
        web.goes(web.other(), 'nas')
    before = web.vm()['disks'][0].get('place')
    web.goes_to = f'fast-{web.other().name}' if away else 'nas'
    cell = Cell(web, step)
    web.follow()
    cell.kill(victim)
    time.sleep(0.3)
    web.follow()
    cell.heal()
    here_before = victim == 'source VMM' and step == 'disks'
    here = settle(web, here_before or (victim.endswith('VMM') and step in ('ready', 'after')))
    if here is cell.target:
        web.is_in(web.goes_to, cell.asked['id'])
    else:
        web.is_in('nas' if away else '', before)
    tell(capsys, cell, here, f'{victim} killed')


@pytest.mark.slow
@pytest.mark.parametrize('step, victim', [(s, v) for s in ('disks', 'ready', 'after') for v in VICTIMS])
def test_whoever_dies_the_disks_are_at_one_place(make_cluster, capsys, step, victim):
    """Where the VM is, and nothing of them anywhere else."""
    web = Landing(make_cluster(controllers=1, agents=2), '--restart', 'always')
    cell = Cell(web, step)
    web.follow()
    cell.kill(victim)
    time.sleep(0.3)
    web.follow()
    cell.heal()
    here_before = victim == 'source VMM' and step == 'disks'
    here = settle(web, here_before or (victim.endswith('VMM') and step in ('ready', 'after')))
    if here is cell.target:
        web.landed_at(here, cell.asked['id'])
    else:
        wait_until(lambda: not web.in_pool(cell.target), 30, 'nothing is left at the target')
        assert web.digest(here) == web.content and all('pool' not in d for d in web.vm()['disks'])
    tell(capsys, cell, here, f'{victim} killed')


@pytest.mark.slow
def test_moved_disks_go_along_and_their_pools_are_left_empty(make_cluster):
    """Out of a pool to the directory of its host, where a disk that begins as an image is above it no more; from there to the other host."""
    web = Landing(make_cluster(controllers=1, agents=2))
    source, target = web.agent(), web.other()
    for to in ('--pool', f'fast-{source.name}'), ():
        for name in ('root', 'data'):
            web.cluster.cli('vm', 'move-disk', 'web', '--disk', name, *to, '--wait')
            wait_until(lambda: not any({'other_pool', 'other_host', 'moving'} & set(d) for d in web.vm()['disks']), 30, 'nothing is left of the move')
        assert len(web.in_pool(source)) == (2 if to else 0)
        web.counts_on()
    web.lands = False
    web.ask('--to', target.name, '--wait')
    web.settled_at(target)
    place = {d['name']: d['place'] for d in web.vm()['disks']}
    data = next((target.directory / 'vms' / web.id / 'disks' / f'data.{place["data"]}.layers').glob('*.raw'))
    assert hashlib.sha256(data.read_bytes()).hexdigest() == web.content and not web.in_pool(source) and not web.in_pool(target)
    web.cluster.cli('vm', 'delete', 'web', '--yes', '--wait', parse=False)
    wait_until(lambda: not web.folder(target).exists(), 30, 'it is gone')


@pytest.mark.slow
def test_moved_to_a_shared_pool_it_migrates_at_once(make_cluster):
    """And back: its disks stay there, though the user that its VMM runs as is not the one that it would have been started with."""
    web = Landing(make_cluster(controllers=1, agents=2))
    source, target = web.agent(), web.other()
    nas = pool(web.cluster, 'nas')
    wait_pool(web.cluster, 'nas', n1='present', n2='present')
    for name in ('root', 'data'):
        web.cluster.cli('vm', 'move-disk', 'web', '--disk', name, '--pool', 'nas', '--wait')
        wait_until(lambda: not any({'other_pool', 'other_host', 'moving'} & set(d) for d in web.vm()['disks']), 30, 'nothing is left of the move')
    web.lands = False
    for there in (target, source):
        ended = web.wait_end(web.ask('--to', there.name))
        assert ended['state'] == 'succeeded', ended
        web.settled_at(there)
    data = next((nas / 'vms' / web.id).glob('data.*.layers/*.raw'))
    assert hashlib.sha256(data.read_bytes()).hexdigest() == web.content
