"""Post-copy through the cluster: the guest runs at the target while part of its memory is still at the source. Whatever happens
meanwhile, it goes on counting from one place with all that it had written, or what ran is said to be lost and it is begun anew."""
import contextlib
import os
import re
import signal
import time

import pytest

from bed import wait_until
from cluster import KVM_MISSING, KVM_MISSING_TEXT, Agent, Cluster
from test_vm_migrate import TICKER, VM, WAIT_S, Counter, console, settle

pytestmark = [pytest.mark.skipif(not TICKER.exists(), reason='the test guest is not built'),
              pytest.mark.skipif(KVM_MISSING, reason=KVM_MISSING_TEXT)]

FAST = 'dirty=16 pace=400 scatter'       # 16 MiB again and again, in no order, and looks at what it wrote
SLOW = 'dirty=8 pace=12 scatter'         # so that what the target lacks lasts for some seconds


def rounds(web):
    """Of writing all that it writes, and finding it as it was; in the order of the consoles."""
    web.follow()
    texts = []
    for held in web.consoles:
        held.seek(0)
        texts.append(held.read().decode(errors='replace').replace('\r', ''))
    text = ''.join(texts)
    assert 'corrupt' not in text, text[-500:]
    return [int(n) for n in re.findall(r'^round (\d+)\n', text, re.M)]


class Lacking:
    """A migration by post-copy, in which the guest runs at the target and lacks memory still."""

    def __init__(self, web, *options, slow='512KiB'):
        self.web, self.source, self.target = web, web.agent(), web.other()
        wait_until(lambda: rounds(web), WAIT_S, 'it writes')
        self.asked = web.ask('--to', self.target.name, '--postcopy', 'at-once', '--bytes-per-second', slow, *options)
        wait_until(lambda: 'still to come' in (self.operation().get('step') or ''), WAIT_S, 'it runs there, and lacks memory', poll_s=0.02)
        self.step = self.operation()['step']
        web.follow()

    def operation(self):
        return self.web.operation(self.asked)

    def lacks(self):
        return self.operation()['state'] == 'running' and self.operation()['task']['migration'].get('lacking', False)

    def ended(self, state, *words):
        ended = self.web.wait_end(self.asked, 90)
        assert ended['state'] == state, ended
        for word in words:
            assert word in ended['error_text'], ended
        return ended

    def heal(self):
        for member in (self.source, self.target, *self.web.cluster.controllers):
            if member.program.alive:
                member.program.thaw()
            else:
                member.program.restart()
        wait_until(lambda: self.web.cluster.hosts_up() == 2, WAIT_S, 'both hosts are up')

    def whole(self):
        """It runs at the target with all that it had written, and nothing is left at the source."""
        self.ended('succeeded')
        self.web.settled_at(self.target)
        seen = rounds(self.web)[-1]
        wait_until(lambda: rounds(self.web)[-1] >= seen + 2, WAIT_S, 'all its memory is what it wrote')
        assert self.web.vm()['restarts'] == 0 and self.web.vm().get('state_reason', '') == ''

    def lost(self, *words):
        """That is said, and it is begun anew at the target from its first tick; nothing is left at the source."""
        self.ended('failed', *words)
        wait_until(lambda: self.web.vm()['restarts'] == 1, WAIT_S, 'it is begun anew')
        assert settle(self.web, True) is self.target
        events = self.web.cluster.cli('vm', 'events', VM, '--output', 'table', parse=False)
        assert 'what ran is lost' in events, events


def test_at_once(make_cluster):
    """It runs there while its memory comes, shows how much is to come, cannot be cancelled any more, and goes on with all of it."""
    cluster = make_cluster(controllers=1, agents=2)
    web = Counter(cluster, cmdline=SLOW)
    cell = Lacking(web, slow='1MiB')
    assert re.fullmatch(rf'runs at {cell.target.name}, \d+ MiB of its memory still to come', cell.step), cell.step
    assert cell.lacks()
    vm = web.vm()
    assert vm['host_name'] == cell.target.name and vm['state'] == 'running'
    wait_until(lambda: 'part of its memory is still on its way' in web.vm().get('state_reason', ''), WAIT_S, 'its state says so')
    with pytest.raises(Exception, match='it is too late'):
        cluster.cli('operation', 'cancel', cell.asked['id'])
    ended = cell.ended('succeeded')
    migration = ended['task']['migration']
    assert migration['downtime_us'] < migration['total_us'] and not migration['lacking']
    web.settled_at(cell.target)
    wait_until(lambda: web.vm().get('state_reason', '') == '', WAIT_S, 'nothing is said of it any more')
    seen = rounds(web)[-1]
    wait_until(lambda: rounds(web)[-1] > seen, WAIT_S, 'all its memory is what it wrote')
    assert web.vm()['restarts'] == 0
    events = cluster.cli('vm', 'events', VM, '--output', 'table', parse=False)
    assert 'part of its memory is to follow' in events and 'it stood still for' in events


def test_a_source_that_dies_takes_what_ran_along(make_cluster):
    """Its VMM has memory that is nowhere else: that is said, and the VM begun anew at once."""
    cell = Lacking(Counter(make_cluster(controllers=1, agents=2), '--restart', 'on-failure', cmdline=SLOW), slow='1MiB')
    for pid in cell.source.vmm_pids():
        os.kill(pid, signal.SIGKILL)
    cell.lost('not all of its memory', 'its VMM has ended, which had what the target lacks')


@pytest.mark.slow
def test_fallback(make_cluster, capsys):
    """It writes faster than can be sent: nothing else helps, and that does. Without it would be given up."""
    web = Counter(make_cluster(controllers=1, agents=2), cmdline=FAST)
    target = web.other()
    wait_until(lambda: rounds(web)[-1:] > [2], WAIT_S, 'it writes')
    asked = web.ask('--to', target.name, '--postcopy', 'fallback', '--bytes-per-second', '4MiB')
    ended = web.wait_end(asked, 120)
    assert ended['state'] == 'succeeded' and 'lacking' in ended['task']['migration'], ended
    web.settled_at(target)
    seen = rounds(web)[-1]
    wait_until(lambda: rounds(web)[-1] >= seen + 3, WAIT_S, 'all its memory is what it wrote')
    with capsys.disabled():
        migration = ended['task']['migration']
        print(f' {migration["rounds"]} rounds, {migration["total_us"] / 1e6:.1f} s, paused {migration["downtime_us"] / 1000:.1f} ms ', end='')


# ---- sudden ends, and what stands still for a while instead

@pytest.mark.slow
@pytest.mark.parametrize('victim', ['source VMM', 'target VMM', 'source agent', 'target agent', 'both agents', 'leader'])
def test_whoever_dies(make_cluster, victim):
    web = Counter(make_cluster(controllers=1, agents=2), '--restart', 'on-failure', cmdline=SLOW)
    cell = Lacking(web)
    members = {'source agent': [cell.source], 'target agent': [cell.target], 'both agents': [cell.source, cell.target],
               'leader': [web.cluster.controllers[0]]}
    if victim in members:
        for member in members[victim]:
            member.program.kill9()
        time.sleep(1)
        cell.heal()
        cell.whole()
        return
    for pid in (cell.source if victim == 'source VMM' else cell.target).vmm_pids():
        os.kill(pid, signal.SIGKILL)
    cell.lost('not all of its memory')


@pytest.mark.slow
@pytest.mark.parametrize('agent', ['source', 'target'])
@pytest.mark.parametrize('vmm', ['source', 'target'])
def test_a_vmm_that_dies_while_an_agent_is_dead(make_cluster, agent, vmm):
    """The agent that comes after has seen nothing of it: it does not say that all went well."""
    web = Counter(make_cluster(controllers=1, agents=2), '--restart', 'on-failure', cmdline=SLOW)
    cell = Lacking(web)
    sides = {'source': cell.source, 'target': cell.target}
    sides[agent].program.kill9()
    for pid in sides[vmm].vmm_pids():
        os.kill(pid, signal.SIGKILL)
    time.sleep(1)
    cell.heal()
    cell.ended('failed', 'not all of its memory')
    assert settle(web, True) is cell.target


@pytest.mark.slow
@pytest.mark.parametrize('seconds', [1, 30])
@pytest.mark.parametrize('victim', ['source VMM', 'target VMM', 'source agent', 'target agent', 'leader', 'link'])
def test_whatever_stands_still(make_cluster, victim, seconds):
    web = Counter(make_cluster(controllers=1, agents=2), cmdline=SLOW)
    cell = Lacking(web)
    programs = {'source agent': cell.source, 'target agent': cell.target, 'leader': web.cluster.controllers[0]}
    if victim == 'link':
        web.cluster.bed.cut(cell.source.host.number, cell.target.host.number)
        time.sleep(seconds)
        web.cluster.bed.heal()
    elif victim.endswith('VMM'):
        pids = (cell.source if victim == 'source VMM' else cell.target).vmm_pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    else:
        programs[victim].program.freeze()
        time.sleep(seconds)
    cell.heal()
    cell.whole()


@pytest.fixture(name='apart')
def make_apart(make_bed):
    """Three controllers, and two hosts without one."""
    bed = make_bed(5)
    cluster = Cluster(bed, controllers=3, agents=0)
    cluster.agents = [Agent(cluster, bed.host(n)) for n in (4, 5)]
    return cluster.start()


@pytest.mark.slow
@pytest.mark.parametrize('ha', [False, True])
@pytest.mark.parametrize('victim', ['source', 'target'])
def test_a_host_is_off(apart, victim, ha):
    web = Counter(apart, '--restart', 'on-failure', *(['--ha'] if ha else []), cmdline=SLOW)
    cell = Lacking(web)
    off, other = (cell.source, cell.target) if victim == 'source' else (cell.target, cell.source)
    off.host.power_off()
    wait_until(lambda: cell.operation()['state'] == 'failed', 90, 'it is said')
    events = apart.cli('vm', 'events', VM, '--output', 'table', parse=False)
    assert 'what ran is lost' in events, events
    if victim == 'target' and not ha:                        # nobody else may have it; its old host has nothing of it
        wait_until(lambda: web.is_clean(other), 60, 'nothing is left at the source')
        return
    wait_until(lambda: (vm := web.vm())['state'] == 'running' and vm['host_name'] == other.name and len(other.vmm_pids()) == 1, 90, 'it runs anew')
    size = (web.folder(other) / 'console.log').stat().st_size
    wait_until(lambda: (web.folder(other) / 'console.log').stat().st_size > size, 20, 'it counts')
    assert 'drover-guest: hello' in console(other, web.id)
    wait_until(lambda: not web.tunnels(other) and not web.sockets(other), 20, 'no way is left')


@pytest.mark.slow
@pytest.mark.parametrize('what', ['stop', 'force', 'reboot', 'delete', 'pause'])
@pytest.mark.parametrize('lost', [False, True])
def test_what_its_user_wants_meanwhile(apart, what, lost):
    web = Counter(apart, cmdline=SLOW)
    cell = Lacking(web)
    if lost:
        web.cluster.bed.cut(cell.source.host.number, cell.target.host.number)
        wait_until(lambda: 'stands still' in web.vm().get('state_reason', ''), WAIT_S, 'it stands still')
    if what == 'pause':
        web.cluster.cli('vm', 'pause', VM)
        web.cluster.bed.heal()
        wait_until(lambda: web.vm()['state'] == 'paused', WAIT_S, 'it is paused once its memory is there')
        cell.ended('succeeded')
        web.cluster.cli('vm', 'resume', VM, '--wait')
        web.settled_at(cell.target)
        return
    words = {'stop': ('stop', VM, '--yes'), 'force': ('stop', VM, '--force', '--yes'), 'reboot': ('reboot', VM, '--yes'),
             'delete': ('delete', VM, '--yes')}[what]
    web.cluster.cli('vm', *words, '--wait')
    ended = web.wait_end(cell.asked, 90)
    gentle = what in ('stop', 'reboot') and not lost         # its guest is given time, in which its memory may come
    assert ended['state'] in ('cancelled', 'failed') or (gentle and ended['state'] == 'succeeded'), ended
    wait_until(lambda: web.is_clean(cell.source), 60, 'nothing is left at the source')
    if what == 'delete':
        wait_until(lambda: web.is_clean(cell.target), 60, 'nor at the target')
    elif what == 'reboot':
        assert settle(web, True) is cell.target
    else:
        assert web.vm()['state'] == 'stopped' and not cell.target.vmm_pids()
        web.cluster.cli('vm', 'start', VM, '--wait')
        wait_until(lambda: len(web.agent().vmm_pids()) == 1, WAIT_S, 'it runs again')
    web.cluster.bed.heal()
