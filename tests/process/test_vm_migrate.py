"""Live migration through the cluster: real controllers, agents and VMMs on hosts that are namespaces; the guest counts, and
whatever happens, it goes on counting from one place only, and nothing is left behind on the other."""
import os
import re
import signal
import subprocess
import time

import pytest

from bed import ROOT, wait_until
from cluster import KVM_MISSING, KVM_MISSING_TEXT

TICKER = ROOT / 'build' / 'guest' / 'ticker.elf'
VM = 'web'
WAIT_S = 30

pytestmark = [pytest.mark.skipif(not TICKER.exists(), reason='the test guest is not built'),
              pytest.mark.skipif(KVM_MISSING, reason=KVM_MISSING_TEXT)]


class Counter:
    """A VM whose guest counts; what it says is read from the consoles of all hosts that it has been on, also when they are
    removed with it."""

    def __init__(self, cluster, *options, cmdline='dirty=4'):
        self.cluster = cluster
        cluster.cli('image', 'create', 'ticker', '--kind', 'kernel', '--kernel', TICKER)
        cluster.cli('vm', 'create', VM, '--image', 'ticker', '--vcpus', '1', '--memory', '64MiB', '--cmdline', cmdline, *options, '--wait')
        self.id = self.vm()['id']
        self.consoles = []
        self.follow()
        wait_until(self.ticks, 20, 'the guest counts')

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
        text = ''
        for console in self.consoles:
            console.seek(0)
            text += console.read().decode(errors='replace').replace('\r', '')
        assert 'corrupt' not in text and 'stands still' not in text, text[-500:]
        seen = [int(n) for n in re.findall(r'^tick (\d+)$', text, re.M)]
        assert seen == list(range(1, len(seen) + 1)), seen
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

    def settled_at(self, agent):
        """It runs on @agent's host, and on no other; no other has anything of it."""
        wait_until(lambda: self.vm()['host_name'] == agent.name and self.vm()['state'] == 'running', WAIT_S, f'it runs on {agent.name}')
        for other in self.cluster.agents:
            if other is not agent and other.program.alive:
                wait_until(lambda: self.is_clean(other), WAIT_S, f'nothing is left on {other.name}')  # pylint: disable=cell-var-from-loop
        wait_until(lambda: len(agent.vmm_pids()) == 1 and not self.tunnels(agent), WAIT_S, 'one VMM')
        left = [p.name for p in self.folder(agent).iterdir() if p.name.endswith('.sock')]
        assert not left, left
        self.counts_on()


def test_back_and_forth(make_cluster, capsys):
    web = Counter(make_cluster(controllers=1, agents=2))
    pauses = []
    for _ in range(4):
        source, target = web.agent(), web.other()
        before = web.vm()
        web.ask('--wait')
        operation = max(web.cluster.items('/v1/operations?filter=kind=vm-migrate'), key=lambda o: o['created_at'])
        web.settled_at(target)
        after = web.vm()
        assert after['epoch'] == before['epoch'] + 1 and after['restarts'] == 0 and after['generation'] == before['generation']
        assert source is not target
        pauses.append(operation['task']['migration']['downtime_us'] / 1000)
    assert len(web.ticks()) > 8
    with capsys.disabled():
        print(f' pauses: {", ".join(f"{p:.1f}" for p in pauses)} ms ', end='')
