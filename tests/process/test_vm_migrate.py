"""Live migration through the cluster: real controllers, agents and VMMs on hosts that are namespaces; the guest counts, and
whatever happens, it goes on counting from one place only, and nothing is left behind on the other."""
import contextlib
import hashlib
import os
import random
import re
import shutil
import signal
import struct
import time
from pathlib import Path

import pytest

from bed import ROOT, wait_until
from cluster import KVM_MISSING, KVM_MISSING_TEXT, Agent, Cluster
from disk_guest import console, pool, read_before, wait_pool

TICKER = ROOT / 'build' / 'guest' / 'ticker.elf'
VM = 'web'
WAIT_S = 60
DISK_BYTES = 64 << 20      # of the VM's second disk
IMAGE_BYTES = 8 << 20      # of the first, which begins as an image

pytestmark = [pytest.mark.skipif(not TICKER.exists(), reason='the test guest is not built'),
              pytest.mark.skipif(KVM_MISSING, reason=KVM_MISSING_TEXT)]


class Counter:
    """A VM whose guest counts; what it says is read from the consoles of all hosts that it has been on, also when they are
    removed with it."""

    def __init__(self, cluster, *options, cmdline='dirty=4', disks=False, shared=False):
        """@disks: on its host, the first begins as an image; or @shared: the first is where all hosts reach it, the second a volume
        there. The guest writes and reads the first all the time."""
        self.cluster = cluster
        if disks or shared:
            self.image_with_disk()
            cmdline += ' disk=7'
        if disks:
            options += ('--disk', 'name=root,image=true' + (',pool=nas' if shared else ''),
                        '--disk', f'name=data,size={DISK_BYTES >> 20}MiB')
        elif shared:
            options += ('--disk', 'name=root,image=true,pool=nas')
        else:
            cluster.cli('image', 'create', 'ticker', '--kind', 'kernel', '--kernel', TICKER)
        if shared:
            self.nas = pool(cluster, 'nas')
            wait_pool(cluster, 'nas', n1='present', n2='present')
        cluster.cli('vm', 'create', VM, '--image', 'ticker', '--vcpus', '1', '--memory', '64MiB', '--cmdline', cmdline, *options,
                    *(['--started=false'] if disks or shared else []), '--wait')
        self.id = self.vm()['id']
        if shared:
            self.volume = cluster.cli('volume', 'create', 'shelf', '--pool', 'nas', '--size', '8MiB', '--wait')
            cluster.cli('volume', 'attach', 'shelf', '--vm', VM, '--wait')
        if disks:
            self.fill()
        elif shared:
            cluster.cli('vm', 'start', VM, '--wait')
        self.consoles = []
        self.follow()
        wait_until(self.ticks, 20, 'the guest counts')

    def image_with_disk(self):
        """Its disk: zeroes for the guest's own game, then something to recognize."""
        disk = self.cluster.bed.directory / 'disk.img'
        content = b'of the image ' * (IMAGE_BYTES // 2 // 13)
        disk.write_bytes(bytes(1 << 20) + content + bytes(IMAGE_BYTES - (1 << 20) - len(content)))
        artifacts = {name: {'url': f'file://{path}', 'sha256': hashlib.sha256(path.read_bytes()).hexdigest()}
                     for name, path in (('kernel', TICKER), ('disk', disk))}
        status, _, answer = self.cluster.api('POST', '/v1/images', {'name': 'ticker', 'kind': 'kernel', **artifacts})
        assert status == 201, answer

    def disk(self, agent, leaf):
        return self.folder(agent) / 'disks' / leaf

    def fill(self, used_bytes=6 << 20):
        """Start it with something on its second disk, which the guest leaves alone: a raw file that is there already."""
        rng = random.Random(5)
        for agent in self.cluster.agents:
            self.disk(agent, '').mkdir(parents=True)
            with self.disk(agent, 'data.raw').open('wb') as file:
                file.truncate(DISK_BYTES)
                for _ in range(used_bytes >> 18):
                    file.seek(rng.randrange(DISK_BYTES >> 18) << 18)
                    file.write(rng.randbytes(1 << 18))
        self.cluster.cli('vm', 'start', VM, '--wait')
        self.content = self.digest(self.agent())
        shutil.rmtree(self.folder(self.other()))

    def data(self, agent):
        """The file with the content of the second disk: every byte of a layer is at its place."""
        raw = self.disk(agent, 'data.raw')
        return raw if raw.exists() else next(self.disk(agent, 'data.layers').glob('*.raw'))

    def digest(self, agent):
        return hashlib.sha256(self.data(agent).read_bytes()).hexdigest()

    def disks_arrived(self, agent):
        """What was on the disks is on those of @agent's host, as thin as it was; the guest itself reads its own all the time."""
        assert self.digest(agent) == self.content
        data, top = self.data(agent).stat(), self.disk(agent, 'root.layers')
        assert data.st_size == DISK_BYTES and data.st_blocks * 512 <= 8 << 20, 'thin has become thick'
        files = sorted(p.name for p in top.iterdir())
        assert any(name.endswith('.img') for name in files), files
        layers = sum(p.stat().st_blocks * 512 for p in top.iterdir() if p.suffix == '.raw')
        assert layers <= 2 << 20, 'the image was copied'
        assert not list(self.disk(agent, '').glob('*.part'))

    def owned_by(self, agent):
        """The disks in the pool are @agent's host's, under the VM's epoch, and open past its page cache there."""
        epoch = self.vm()['epoch']
        for layers, want in ((self.nas / 'vms' / self.id / 'root.layers', epoch),
                             (self.nas / 'volumes' / self.volume['id'] / f'{self.volume["disk"]}.layers', 1 << 32 | epoch)):
            slots = next(layers.glob('*.map')).read_bytes()[:8192]
            headers = [struct.unpack_from('<QQ', slots, at + 64) for at in (0, 4096)]     # sequence, epoch
            assert max(headers)[1] == want, (layers.name, headers, want)
        seen = set()
        for pid in agent.vmm_pids():
            for fd in Path(f'/proc/{pid}/fd').iterdir():
                path = Path(os.readlink(fd))
                if path.suffix in ('.raw', '.map') and 'disks' not in path.parts:
                    flags = re.search(r'^flags:\s+([0-7]+)', Path(f'/proc/{pid}/fdinfo/{fd.name}').read_text(), re.M)[1]
                    assert int(flags, 8) & os.O_DIRECT, (path, flags)
                    seen.add(path.suffix)
        assert seen == {'.raw', '.map'}

    def vm(self):
        return self.cluster.vm(VM)

    def folder(self, agent):
        return agent.directory / 'vms' / self.id

    def agent(self):
        name = self.vm()['host_name']
        return next(agent for agent in self.cluster.agents if agent.name == name)

    def other(self, agent=None):
        agent = agent or self.agent()
        return next(other for other in self.cluster.agents if other is not agent)

    def follow(self):
        """Hold the console of the host that it is on, and of each that it may come to."""
        for agent in self.cluster.agents:
            path = self.folder(agent) / 'console.log'
            if path.exists() and not any(os.fstat(held.fileno()).st_ino == path.stat().st_ino for held in self.consoles):
                self.consoles.append(path.open('rb'))

    def ticks(self):
        """All that was counted, in the order of the consoles; each number must be there once, and none be missing."""
        self.follow()
        texts = []
        for console in reversed(self.consoles):              # where one has said something, those before it have said all
            console.seek(0)
            texts.insert(0, console.read().decode(errors='replace').replace('\r', ''))
        text = ''.join(texts)                                # it may have been stopped within a line, which then goes on
        assert 'corrupt' not in text and 'stands still' not in text and 'disk: ' not in text, text[-500:]
        seen = [int(n) for n in re.findall(r'^tick (\d+)\n', text, re.M)]
        wrong = next((i for i, n in enumerate(seen) if n != i + 1), None)
        assert wrong is None, (seen[max(wrong - 3, 0):wrong + 4], [(t[:60], t[-60:]) for t in texts])
        return seen

    def counts_on(self):
        before = len(self.ticks())
        wait_until(lambda: len(self.ticks()) >= before + 3, 20, 'the guest goes on counting', poll_s=0.2)

    def ask(self, *words):
        return self.cluster.cli('vm', 'migrate', VM, *words)

    def operation(self, asked):
        return self.cluster.api('GET', f'/v1/operations/{asked["id"]}')[2]

    def wait_end(self, asked, timeout_s=WAIT_S):
        return wait_until(lambda: (o := self.operation(asked))['state'] != 'running' and o, timeout_s, 'the migration has ended')

    def wait_step(self, asked, words):
        return wait_until(lambda: words in (self.operation(asked).get('step') or ''), WAIT_S, f'it says: {words}', poll_s=0.02)

    def is_clean(self, agent):
        """Nothing of the VM is on @agent's host."""
        taps = agent.host.run(['ip', '-br', 'link']).stdout
        return not self.folder(agent).exists() and not agent.vmm_pids() and 'dv' + self.id.replace('-', '')[:10] not in taps \
            and not list((agent.directory / 'run').glob(self.id.replace('-', '')[:12] + '*')) and not self.tunnels(agent)

    def tunnels(self, agent):
        found = []
        for pid in agent.host.pids():
            try:
                with open(f'/proc/{pid}/cmdline', 'rb') as file:
                    words = file.read().split(b'\0')
            except OSError:
                continue
            if b'tunnel' in words[1:2]:
                found.append(pid)
        return found

    def sockets(self, agent):
        """Of a migration, in its directory."""
        return [p.name for p in self.folder(agent).glob('*.sock')]

    def settled_at(self, agent):
        """It runs on @agent's host, and on no other; no other has anything of it."""
        wait_until(lambda: self.vm()['host_name'] == agent.name and self.vm()['state'] == 'running', WAIT_S, f'it runs on {agent.name}')
        for other in self.cluster.agents:
            if other is not agent and other.program.alive:
                wait_until(lambda: self.is_clean(other), WAIT_S, f'nothing is left on {other.name}')  # pylint: disable=cell-var-from-loop
        wait_until(lambda: len(agent.vmm_pids()) == 1 and not self.tunnels(agent) and not self.sockets(agent), WAIT_S, 'one VMM, and it alone')
        self.counts_on()


@pytest.mark.parametrize('turns, shared', [(2, True), pytest.param(20, False, marks=pytest.mark.slow),
                                           pytest.param(20, True, marks=pytest.mark.slow)])
def test_back_and_forth(make_cluster, capsys, turns, shared):
    """Without disks, or with a disk and a volume that both hosts reach: these stay, and each side writes them under its own epoch."""
    web = Counter(make_cluster(controllers=1, agents=2), shared=shared)
    pauses = []
    for _ in range(turns):
        source, target = web.agent(), web.other()
        before = web.vm()
        web.ask('--wait')
        operation = max(web.cluster.items('/v1/operations?filter=kind=vm-migrate'), key=lambda o: o['created_at'])
        web.settled_at(target)
        after = web.vm()
        assert after['epoch'] == before['epoch'] + 1 and after['restarts'] == 0 and after['generation'] == before['generation']
        assert source is not target
        assert operation['task']['migration'].get('shared_disks', False) == shared
        if shared:
            web.owned_by(target)
            assert 'disk-locks-passed-over' not in (web.folder(target) / 'vmm.log').read_text()
        pauses.append(operation['task']['migration']['downtime_us'] / 1000)
    with capsys.disabled():
        print(f' pauses: {", ".join(f"{p:.1f}" for p in pauses)} ms ', end='')


def test_disks_go_along_and_come_back(make_cluster):
    web = Counter(make_cluster(controllers=1, agents=2), disks=True)
    source, target = web.agent(), web.other()
    for there in (target, source):
        asked = web.ask('--to', there.name)
        ended = web.wait_end(asked, 60)
        assert ended['state'] == 'succeeded', ended
        web.settled_at(there)
        web.disks_arrived(there)


@pytest.mark.slow
def test_under_the_lease_and_with_disks_of_both_kinds(make_cluster):
    """A VM that is highly available goes to and fro with its shared disks; and one with a disk in a pool and one on its host."""
    cluster = make_cluster(controllers=3, agents=2)
    web = Counter(cluster, '--ha', shared=True)
    for _ in range(4):
        target = web.other()
        ended = web.wait_end(web.ask('--to', target.name), 60)
        assert ended['state'] == 'succeeded', ended
        web.settled_at(target)
        web.owned_by(target)
    old = web.agent()
    old.host.power_off()                                     # and it fails over as ever
    wait_until(lambda: read_before(web.other(old), web.id), 60, 'the guest finds what was written')


@pytest.mark.slow
def test_one_disk_goes_along_and_one_stays(make_cluster):
    web = Counter(make_cluster(controllers=1, agents=2), disks=True, shared=True)
    for _ in range(2):
        target = web.other()
        ended = web.wait_end(web.ask('--to', target.name), 60)
        assert ended['state'] == 'succeeded', ended
        web.settled_at(target)
        assert web.digest(target) == web.content
        web.owned_by(target)


def test_a_user_may_choose_watch_and_cancel(make_cluster):
    cluster = make_cluster(controllers=1, agents=2)
    web = Counter(cluster)
    source, target = web.agent(), web.other()
    assert 'has it already' in refusal(cluster, VM, '--to', source.name)
    asked = web.ask('--to', target.name, '--bytes-per-second', '1MiB')
    assert 'being migrated already' in refusal(cluster, VM)
    web.wait_step(asked, 'MiB sent, it writes')
    assert len(target.vmm_pids()) == 1
    held = cluster.api('GET', f'/v1/hosts/{target.name}')[2]['committed_memory_bytes']
    assert held == 64 << 20                                  # room is kept
    cluster.cli('operation', 'cancel', asked['id'])
    assert web.wait_end(asked)['state'] == 'cancelled'
    web.settled_at(source)
    assert cluster.api('GET', f'/v1/hosts/{target.name}')[2].get('committed_memory_bytes', 0) == 0
    asked = web.ask('--to', target.name)
    assert web.wait_end(asked)['state'] == 'succeeded'
    web.settled_at(target)
    events = cluster.cli('vm', 'events', VM, '--output', 'table', parse=False)
    assert 'handed over from host' in events and 'it stood still for' in events


def refusal(cluster, *words):
    with pytest.raises(Exception) as problem:
        cluster.cli('vm', 'migrate', *words)
    return str(problem.value)


def test_what_the_target_lacks_is_named_and_nothing_is_left(make_cluster):
    cluster = make_cluster(controllers=1, agents=2)
    for agent in cluster.agents:
        agent.host.run(['ip', 'link', 'add', 'lan0', 'type', 'bridge'])
        agent.host.run(['ip', 'link', 'set', 'lan0', 'up'])
    web = Counter(cluster, '--nic', 'bridge=lan0')
    source, target = web.agent(), web.other()
    target.host.run(['ip', 'link', 'del', 'lan0'])
    asked = web.ask()
    ended = web.wait_end(asked)
    assert ended['state'] == 'failed' and 'no bridge lan0' in ended['error_text'], ended
    web.settled_at(source)
    target.host.run(['ip', 'link', 'add', 'lan0', 'type', 'bridge'])
    target.host.run(['ip', 'link', 'set', 'lan0', 'up'])
    web.ask('--wait')
    web.settled_at(target)


# ---- sudden ends: each party, at each step; and what stands still for a while instead

class Cell:
    """A migration that has come to @step; then something happens to @victim."""

    def __init__(self, web, step, stop=lambda cell: cell.controller.program.freeze()):
        """@stop: what is done to the controller at 'ready'."""
        self.web, self.step = web, step
        self.source, self.target = web.agent(), web.other()
        self.controller = web.cluster.controllers[0]
        how = {'prepare': ['--bytes-per-second', '1MiB'], 'disks': ['--bytes-per-second', '2MiB'], 'memory': ['--bytes-per-second', '1MiB'], 'ready': ['--verify'],
               'idle': ['--bytes-per-second', '128KiB']}
        if step == 'prepare':
            self.target.program.freeze()                     # it does not even begin
        asked = web.ask('--to', self.target.name, *how.get(step, []))
        self.asked = asked
        if step == 'prepare':
            web.wait_step(asked, 'made ready')
        elif step == 'disks':
            web.wait_step(asked, 'MiB copied')
        elif step == 'idle':
            wait_until(lambda: self.said(self.source, f'operation={asked["id"]} from=begin to=follow'), WAIT_S, 'it begins', poll_s=0.001)
        elif step == 'memory':
            web.wait_step(asked, 'MiB sent, it writes')
        elif step == 'ready':
            # Its only controller has said that it answers, and then does not: the guest stands still and both sides have
            # everything. The comparison of all memory leaves the time to stop it.
            wait_until(lambda: self.said(self.source, f'operation={asked["id"]} permit'), WAIT_S, 'it may be stopped', poll_s=0.001)
            stop(self)
            wait_until(lambda: self.said(self.source, f'operation={asked["id"]} from=follow to=propose') or self.decided(), WAIT_S, 'it is ready')
        else:
            wait_until(self.decided, WAIT_S, 'it is decided', poll_s=0.001)

    def decided(self):
        return self.said(self.source, f'operation={self.asked["id"]} from=propose to=decide')

    def said(self, agent, words):
        log = agent.host.directory / 'log' / 'drover-agent.log'
        return log.exists() and words in log.read_text(errors='replace')

    def vmm_pids(self, victim):
        return (self.source if victim == 'source VMM' else self.target).vmm_pids()

    def program(self, victim):
        return {'source agent': self.source, 'target agent': self.target, 'leader': self.controller}[victim].program

    def kill(self, victim):
        if victim.endswith('VMM'):
            for pid in self.vmm_pids(victim):
                os.kill(pid, signal.SIGKILL)
        else:
            self.program(victim).kill9()

    def hold(self, victim, seconds):
        """It stands still, or the wire between the two hosts is cut, and then all goes on."""
        if victim == 'link':
            self.web.cluster.bed.cut(self.source.host.number, self.target.host.number)
            time.sleep(seconds)
            self.web.cluster.bed.heal()
        elif victim.endswith('VMM'):
            pids = self.vmm_pids(victim)
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        else:
            self.program(victim).freeze()
            time.sleep(seconds)

    def heal(self):
        for program in (self.controller.program, self.target.program, self.source.program):
            if program.alive:
                program.thaw()
        for member in (self.source, self.target, self.controller):
            if not member.program.alive:
                member.program.restart()
        wait_until(lambda: self.web.cluster.hosts_up() == 2, WAIT_S, 'both hosts are up')


def settle(web, guest_died):
    """It runs on one host, on which it counts on, or anew where its guest was killed; the other has nothing of it."""
    def at_one_place():
        vm = web.vm()
        if not vm or vm['state'] != 'running' or any(o['state'] == 'running' for o in web.cluster.items('/v1/operations')):
            return None
        here = next(a for a in web.cluster.agents if a.name == vm['host_name'])
        # Handed over it counts as running from the first moment; that its agent has taken it shows by the socket's end.
        alone = len(here.vmm_pids()) == 1 and not web.tunnels(here) and not web.sockets(here)
        return here if alone and web.is_clean(web.other(here)) else None
    here = wait_until(at_one_place, 60, 'it runs at one place, and nothing is left', poll_s=0.1)
    if guest_died:
        size = (web.folder(here) / 'console.log').stat().st_size
        wait_until(lambda: (web.folder(here) / 'console.log').stat().st_size > size, 20, 'it runs')
    else:
        web.counts_on()
    return here


VICTIMS = ['source VMM', 'target VMM', 'source agent', 'target agent', 'leader']
STEPS = ['prepare', 'disks', 'memory', 'ready', 'after']
SHARED = ['memory', 'ready', 'after']      # with disks that both hosts reach, and one of which may write them
FEW = [('ready', 'target agent'), ('disks', 'target VMM')]


def tell(capsys, cell, here, what):
    operation = cell.web.operation(cell.asked)
    with capsys.disabled():
        print(f'\n  {cell.step}, {what}: runs on the {"source" if here is cell.source else "target"}, '
              f'migration {operation["state"]}{": " + operation["error_text"] if operation.get("error_text") else ""} ', end='')


@pytest.mark.parametrize('step, victim', [pytest.param(s, v, marks=[] if (s, v) in FEW else pytest.mark.slow)
                                          for s in STEPS for v in VICTIMS])
def test_whoever_dies_it_goes_on_at_one_place(make_cluster, capsys, step, victim):
    web = Counter(make_cluster(controllers=1, agents=2), '--restart', 'always', disks=step == 'disks', shared=step in SHARED)
    cell = Cell(web, step)
    web.follow()
    cell.kill(victim)
    time.sleep(0.3)
    web.follow()
    cell.heal()
    # Whoever holds the guest takes it along; the other side never does.
    here_before = victim == 'source VMM' and step in ('prepare', 'disks', 'memory')
    may_be = victim in ('source VMM', 'target VMM') and step in ('ready', 'after')
    here = settle(web, here_before or may_be)
    if step == 'disks' and not here_before:
        web.disks_arrived(here)
    if step in ('ready', 'after') and console(here, web.id).count('drover-guest: hello') > (here is cell.source):
        # its guest died with the memory; what it had written had been made to last before anybody could be asked
        wait_until(lambda: read_before(here, web.id), WAIT_S, 'the new guest finds what the one before had written')
        assert 'disk: status' not in console(here, web.id)
    tell(capsys, cell, here, f'{victim} killed')


@pytest.mark.slow
@pytest.mark.parametrize('seconds', [1, 30])
@pytest.mark.parametrize('step, victim', [(s, v) for s in STEPS for v in [*VICTIMS, 'link']])
def test_whatever_stands_still_it_goes_on_at_one_place(make_cluster, capsys, step, victim, seconds):
    web = Counter(make_cluster(controllers=1, agents=2), '--restart', 'always', disks=step == 'disks', shared=step in SHARED)
    cell = Cell(web, step)
    web.follow()
    cell.hold(victim, seconds)
    web.follow()
    cell.heal()
    here = settle(web, False)
    if step == 'disks':
        web.disks_arrived(here)
    tell(capsys, cell, here, f'{victim} {"cut" if victim == "link" else "stopped"} for {seconds} s')


@pytest.mark.slow
def test_a_source_that_is_frozen_keeps_nobody_from_the_disks(make_cluster):
    """It had let go of them before anybody could be asked: the target runs by the cluster's word alone, and when the source wakes up
    it has nothing left to write."""
    web = Counter(make_cluster(controllers=1, agents=2), shared=True)
    cell = Cell(web, 'ready')
    pids = cell.vmm_pids('source VMM')
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    cell.controller.program.thaw()
    wait_until(lambda: web.vm()['host_name'] == cell.target.name, WAIT_S, "it is the target's", poll_s=0.02)
    cell.source.program.freeze()                             # it would end a VMM that does not answer
    web.counts_on()
    web.owned_by(cell.target)
    maps = {path: path.read_bytes()[:8192] for path in pool_maps(web)}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    cell.heal()
    web.settled_at(cell.target)
    assert {path: path.read_bytes()[:8192] for path in pool_maps(web)} == maps


def pool_maps(web):
    """Of the disks in the pool; their headers are written when a disk is opened, taken or let go of."""
    return [path for kind in ('vms', 'volumes') for path in (web.nas / kind).glob('*/*.layers/*.map')]


def test_a_source_whose_vm_is_gone_lets_nobody_run_it(make_bed):
    """The guest stands still for the hand-over, and both hosts are cut off, but not from one another. They are lost, and the VM is deleted
    by force. When the source hears of it, before the target does, neither of them runs it."""
    bed = make_bed(5)
    cluster = Cluster(bed, controllers=3, agents=0)
    cluster.agents = [Agent(cluster, bed.host(n)) for n in (4, 5)]
    web = Counter(cluster.start())
    cell = Cell(web, 'ready', stop=lambda cell: bed.split([1, 2, 3], [4, 5]))
    assert not cell.decided(), 'the cut came too late'
    before = len(web.ticks())
    wait_until(lambda: all(h['state'] == 'lost' for h in cluster.items('/v1/hosts')), 30, 'both are lost')
    assert web.wait_end(cell.asked)['state'] == 'failed'
    cluster.cli('vm', 'delete', VM, '--force', '--yes', '--wait')
    cell.target.program.freeze()
    bed.heal()
    wait_until(lambda: not web.folder(cell.source).exists() and not cell.source.vmm_pids(), 10, 'the source has nothing of it')
    assert len(web.ticks()) == before and len(cell.target.vmm_pids()) == 1    # which waits for a word
    cell.target.program.thaw()
    wait_until(lambda: web.is_clean(cell.target), 30, 'nor has the target')
    assert len(web.ticks()) == before and before == web.ticks()[-1]


def test_without_a_majority_it_is_not_stopped(make_cluster):
    """The only controller is frozen: the guest runs on at the source, in full, until somebody could decide."""
    web = Counter(make_cluster(controllers=1, agents=2), cmdline='')
    cell = Cell(web, 'idle')
    cell.controller.program.freeze()
    wait_until(lambda: cell.said(cell.source, 'not_stopped='), 60, 'it asks in vain')
    before = len(web.ticks())
    wait_until(lambda: len(web.ticks()) > before + 20, 30, 'it runs on')
    assert not cell.said(cell.source, f'operation={cell.asked["id"]} from=follow to=propose')
    cell.heal()
    assert web.wait_end(cell.asked, 60)['state'] == 'succeeded'
    web.settled_at(cell.target)


def test_a_host_is_drained_and_used_again(make_cluster):
    cluster = make_cluster(controllers=1, agents=2)
    web = Counter(cluster, disks=True)
    source, target = web.agent(), web.other()
    cluster.cli('host', 'drain', source.name, '--wait', parse=False)
    web.settled_at(target)
    web.disks_arrived(target)
    host = cluster.api('GET', f'/v1/hosts/{source.name}')[2]
    assert host['draining'] and not host['schedulable']
    assert 'schedulable is false' in refusal(cluster, VM, '--to', source.name)
    cluster.cli('host', 'undrain', source.name)
    web.ask('--wait', '--to', source.name)
    web.settled_at(source)
