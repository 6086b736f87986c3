"""A VM on real hosts of the process bed, its guest the test guest: what is killed comes back, what is not is untouched."""
import os
import re
import signal
import time

import pytest

from bed import ROOT, wait_until
from cluster import KVM_MISSING, KVM_MISSING_TEXT

TICKER = ROOT / 'build' / 'guest' / 'ticker.elf'
VM = 'web'

pytestmark = [pytest.mark.skipif(not TICKER.exists(), reason='the test guest is not built'),
              pytest.mark.skipif(KVM_MISSING, reason=KVM_MISSING_TEXT)]


class Running:
    """A cluster with one VM that runs."""

    def __init__(self, cluster, *options):
        self.cluster = cluster
        cluster.cli('image', 'create', 'ticker', '--kind', 'kernel', '--kernel', TICKER)
        cluster.cli('vm', 'create', VM, '--image', 'ticker', '--vcpus', '1', '--memory', '64MiB', *options, '--wait')
        self.wait_ticks()

    def vm(self):
        return self.cluster.vm(VM)

    def agent(self):
        name = self.vm()['host_name']
        return next(agent for agent in self.cluster.agents if agent.name == name)

    def vmm_pid(self):
        pids = self.agent().vmm_pids()
        if len(pids) > 1:       # one was ending as it was looked at; where there is a new one it has ended
            pids = [pid for pid in self.agent().vmm_pids() if pid in pids]
        assert len(pids) <= 1, f'{len(pids)} VMMs of one VM: {pids}'
        return pids[0] if pids else None

    def tick(self):
        """The last number that the guest counted to, or None."""
        text = self.cluster.cli('vm', 'console', VM, '--seconds', '1', '--output', 'table', parse=False, check=False)
        found = re.findall(r'^tick (\d+)\s*$', text.replace('\r', ''), re.M)
        return int(found[-1]) if found else None

    def wait_ticks(self):
        return wait_until(self.tick, 20, 'the guest counts')


@pytest.fixture
def running(make_cluster):
    def make(*options):
        return Running(make_cluster(controllers=3, agents=3), *options)
    return make


def test_a_vm_outlives_agent_and_controllers(running):
    web = running()
    pid, agent, before = web.vmm_pid(), web.agent(), web.wait_ticks()
    agent.program.kill9()
    assert web.vmm_pid() == pid
    agent.program.restart()
    after_agent = web.wait_ticks()
    assert after_agent > before and web.vmm_pid() == pid
    web.cluster.leader().program.kill9()
    web.cluster.leader()
    after_leader = web.wait_ticks()
    assert after_leader > after_agent and web.vmm_pid() == pid
    for controller in web.cluster.controllers:
        if controller.program.alive:
            controller.program.kill9()
    for controller in web.cluster.controllers:
        controller.program.restart()
    web.cluster.leader()
    assert web.wait_ticks() > after_leader and web.vmm_pid() == pid
    assert web.vm()['restarts'] == 0 and web.vm()['state'] == 'running'


def test_a_killed_vmm_is_started_again(running):
    web = running('--restart', 'always')
    pid = web.vmm_pid()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: web.vmm_pid() not in (None, pid) and web.vm()['restarts'] == 1 and web.vm()['state'] == 'running',
               20, 'the VM runs again')
    assert web.wait_ticks()


def test_a_vmm_that_is_killed_too_often(running):
    web = running('--restarts-max', '1')
    for restarts in (1, None):
        pid = wait_until(web.vmm_pid, 20, 'it has a VMM')
        os.kill(pid, signal.SIGKILL)
        if restarts:
            wait_until(lambda: web.vm()['restarts'] == 1 and web.vm()['state'] == 'running', 20, 'the VM runs again')
    failed = web.cluster.wait_vm(VM, 'failed')
    assert '2 times within 3600 s, and restarts_max is 1' in failed['state_reason'], failed
    web.cluster.cli('vm', 'start', VM, '--wait')
    assert web.wait_ticks() and web.vm()['restarts'] == 1


def test_a_vmm_that_dies_while_its_agent_is_away(running):
    web = running('--restart', 'always')
    pid, agent = web.vmm_pid(), web.agent()
    agent.program.kill9()
    os.kill(pid, signal.SIGKILL)
    agent.program.restart()
    wait_until(lambda: web.vmm_pid() not in (None, pid) and web.vm()['state'] == 'running', 20, 'the VM runs again')
    assert web.wait_ticks()


def test_status_at_a_glance(make_cluster):
    """Only what is not as wanted is told of; every form of output has something to say."""
    cluster = make_cluster(controllers=1, agents=1)
    Running(cluster)
    cluster.cli('vm', 'create', 'off', '--image', 'ticker', '--vcpus', '1', '--memory', '64MiB', '--started=false', '--wait')
    cluster.cli('vm', 'create', 'big', '--image', 'ticker', '--vcpus', '64', '--memory', '512GiB')
    status = cluster.cli('cluster', 'status')
    assert [c['name'] for c in status['controllers']] == ['c1'] and [h['state'] for h in status['hosts']] == ['up']
    assert [vm['name'] for vm in status['vms_not_as_wanted']] == ['big']
    assert 'VMs not as wanted (1)' in cluster.cli('cluster', 'status', '--output', 'table', parse=False)
    assert cluster.cli('event', 'list', '--output', 'name', parse=False).split()[0] == '1'


def test_stop_start_delete(running):
    web = running()
    agent = web.agent()
    web.cluster.cli('vm', 'stop', VM, '--yes', '--force', '--wait')
    assert web.vm()['state'] == 'stopped' and agent.vmm_pids() == []
    web.cluster.cli('vm', 'start', VM, '--wait')
    assert web.vm()['state'] == 'running'
    assert web.wait_ticks()
    web.cluster.cli('vm', 'delete', VM, '--yes', '--wait')
    wait_until(lambda: agent.vmm_pids() == [], 10, 'no VMM is left')
    assert web.cluster.cli('vm', 'list') == []


def test_stop_asks_the_guest_first(running):
    """The test guest does not heed its power button: it has its time, then the plug is pulled; or at once by force."""
    web = running('--stop-grace-s', '2')
    begin = time.monotonic()
    web.cluster.cli('vm', 'stop', VM, '--yes', '--wait')
    assert 2 <= time.monotonic() - begin < 60     # and not the minute that is usual
    steps = [e['message'] for e in web.cluster.cli('vm', 'events', VM)]
    assert any('its guest has 2 s to shut down' in step for step in steps), steps
    web.cluster.cli('vm', 'start', VM, '--wait')
    web.cluster.cli('vm', 'update', VM, '--stop-grace-s', '600')
    web.cluster.cli('vm', 'stop', VM, '--yes')
    web.cluster.cli('vm', 'stop', VM, '--yes', '--force', '--wait', timeout_s=30)
    assert web.vm()['state'] == 'stopped' and web.vm()['stop_forced']
    web.cluster.cli('vm', 'start', VM, '--wait')
    begin = time.monotonic()
    web.cluster.cli('vm', 'reboot', VM, '--yes', '--force', '--wait')
    assert time.monotonic() - begin < 100
