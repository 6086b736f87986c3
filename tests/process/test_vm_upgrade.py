"""A VM is put into a new VMM process of its host while it runs: nothing of it is copied, whoever of the two ends, or the agent, on
the way, there is one process that runs it, and it counts on."""
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from bed import ROOT, BedError, wait_until
from cluster import KIND, KVM_MISSING, KVM_MISSING_TEXT, program
from test_devices import Running
from test_pools import pool, wait_pool
from test_vm_migrate import TICKER, VM, WAIT_S, Counter

pytestmark = [pytest.mark.skipif(not TICKER.exists(), reason='the test guest is not built'),
              pytest.mark.skipif(KVM_MISSING, reason=KVM_MISSING_TEXT)]
SHARED = ('--shared-memory', 'always')


class Upgraded(Counter):
    def upgrade(self, *words):
        return self.cluster.cli('vm', 'upgrade', VM, *words)

    def process(self):
        """The one that runs it."""
        pids = self.agent().vmm_pids()
        assert len(pids) == 1, pids
        return pids[0]

    def successor(self, old):
        """The one that is to take over, once it has its own program."""
        return wait_until(lambda: next((pid for pid in self.agent().vmm_pids() if pid != old), None), WAIT_S, 'a second VMM', poll_s=0.001)

    def phase(self, kind):
        """How far the VMM at a control socket is, which is asked behind the agent's back. @kind: sock or sock2 (the new one)."""
        connection = http.client.HTTPConnection('vmm', timeout=5)
        connection.sock = socket.socket(socket.AF_UNIX)
        folder = os.open(self.agent().directory / 'run', os.O_PATH)
        try:
            connection.sock.connect(f'/proc/self/fd/{folder}/{self.id.replace("-", "")[:12]}.{kind}')
            connection.request('GET', '/v1/vm/migration')
            return json.loads(connection.getresponse().read()).get('phase')
        except (OSError, http.client.HTTPException):
            return None                                      # not there yet, or no more
        finally:
            os.close(folder)
            connection.close()

    def hold_at(self, moment, old, new):
        """Stop the one of the two that the other waits for at that moment. The one that stands still; None: it was over already."""
        held = old if moment in ('unread', 'runs') else new
        while moment in ('told', 'runs'):
            phase = self.phase('sock2')
            if phase in (('go', 'done') if moment == 'runs' else ('memory', 'stop', 'ready')):
                break
            if not os.path.exists(f'/proc/{old}'):
                return None
        while moment == 'starting' and re.search(r'^Uid:\s+0\b', Path(f'/proc/{new}/status').read_text(), re.M):
            pass                                             # before it has its own user nobody takes it for what its lock says
        try:
            os.kill(held, signal.SIGSTOP)
            time.sleep(0.3 if moment == 'told' else 0)       # it may have given its word just before: then the old one ends by now
            os.kill(old, 0)
        except ProcessLookupError:
            return None
        if Path(f'/proc/{old}/stat').read_text().rpartition(')')[2].split()[0] in 'ZX':
            return None
        return held if moment != 'runs' or self.phase('sock2') == 'done' else None

    def alone(self):
        """One process, and nothing that was there for two."""
        agent = self.agent()
        wait_until(lambda: len(agent.vmm_pids()) == 1 and not self.leftovers(), WAIT_S, 'one VMM, and it alone')
        wait_until(lambda: self.vm()['state'] == 'running', WAIT_S, 'it runs')
        self.counts_on()

    def reborn(self):
        self.follow()
        for console in self.consoles:
            console.seek(0)
        return sum(console.read().count(b'hello cmdline') for console in self.consoles) > 1

    def goes_on_or_anew(self):
        """True: its guest has begun anew."""
        agent = self.agent()
        wait_until(lambda: self.vm()['state'] == 'running' and len(agent.vmm_pids()) == 1 and not self.leftovers(), WAIT_S, 'one VMM, and it alone')
        before = []

        def counts():
            try:
                before.append(len(self.ticks()))
            except AssertionError:
                if not self.reborn():
                    raise
            return self.reborn() or before[-1] >= before[0] + 3
        wait_until(counts, WAIT_S, 'it counts', poll_s=0.2)
        return self.reborn()

    def leftovers(self):
        agent = self.agent()
        files = [p.name for p in self.folder(agent).iterdir() if 'next' in p.name]
        return files + [p.name for p in (agent.directory / 'run').iterdir() if p.name.endswith('.sock2')]


def operation(web):
    return max(web.cluster.items('/v1/operations?filter=kind=vm-upgrade'), key=lambda o: o['created_at'])


def another_build(source, path):
    """The same program with another build in its note, which follows NT_GNU_BUILD_ID and the name."""
    data = bytearray(source.read_bytes())
    head = b'\x14\0\0\0\x03\0\0\0GNU\0'
    at = data.find(head)
    if at >= 0:
        data[at + len(head)] ^= 0xff
    path.with_suffix('.new').write_bytes(data)
    path.with_suffix('.new').chmod(0o755)
    os.rename(path.with_suffix('.new'), path)                # the old file is being run
    return at >= 0


def test_a_request_is_done_once(make_cluster):
    """A cluster of one host; more of the same takes longer (slow)."""
    web = Upgraded(make_cluster(controllers=1, agents=1, agent_options=SHARED))
    old, key = web.process(), {'Idempotency-Key': str(uuid.uuid4())}
    installed = wait_until(lambda: web.cluster.items('/v1/hosts')[0].get('vmm_version'), WAIT_S, 'its host says what is installed')
    wait_until(lambda: web.vm().get('vmm_version') == installed, WAIT_S, 'its VMM says that it is the same')
    asked = [web.cluster.api('POST', f'/v1/vms/{VM}/upgrade', headers=key) for _ in range(2)]
    assert [status for status, _, _ in asked] == [202, 202] and asked[0][2]['id'] == asked[1][2]['id'], asked
    ended = web.wait_end(asked[0][2])
    assert ended['state'] == 'succeeded' and 'stood still for' in ended['step'], ended
    assert web.process() != old
    web.alone()


@pytest.fixture
def vmm():
    """A copy of the program, where the beds' hosts see it."""
    with tempfile.TemporaryDirectory(dir=ROOT / 'build') as directory:
        yield Path(shutil.copy(program('drover-vmm', KIND), directory))


@pytest.mark.slow
def test_a_new_process_takes_over_again_and_again(make_cluster, vmm, capsys):
    cluster = make_cluster(controllers=1, agents=2, agent_options=(*SHARED, '--vmm', vmm))
    for agent in cluster.agents:
        agent.host.run(['ip', 'link', 'add', 'lan0', 'type', 'bridge'])
        agent.host.run(['ip', 'link', 'set', 'lan0', 'up'])
    web = Upgraded(cluster, '--nic', 'bridge=lan0', disks=True)
    wait_until(lambda: 'vmm_version' in web.vm(), WAIT_S, 'its VMM says which it is')
    agent, before = web.agent(), web.vm()

    def installed():
        return cluster.api('GET', f'/v1/hosts/{agent.name}')[2].get('vmm_version')
    wait_until(lambda: installed() == before['vmm_version'], WAIT_S, 'its host says what is installed')
    pauses = []
    for turn in range(3):
        old = web.process()
        if turn == 1 and another_build(vmm, vmm):
            assert web.vm()['vmm_version'] == before['vmm_version']
            wait_until(lambda: installed() not in (None, before['vmm_version']), WAIT_S, 'what an upgrade would give is shown')
        web.upgrade('--wait')
        assert web.process() != old
        web.alone()
        if turn == 1 and 'build' in before['vmm_version']:
            wait_until(lambda: web.vm().get('vmm_version') == installed(), WAIT_S, 'another program is shown')
        pauses.append(int(re.search(r'stood still for (\d+) us', operation(web)['step'])[1]) / 1000)
    after = web.vm()
    assert after['epoch'] == before['epoch'] and after['restarts'] == 0 and after['host_name'] == before['host_name'], after
    new = web.process()
    agent.program.kill9()                                    # and the next agent knows whose it is
    agent.program.restart()
    wait_until(lambda: cluster.hosts_up() == 2, WAIT_S, 'both hosts are up')
    web.alone()
    assert web.process() == new
    web.ask('--wait')                                        # and it can be migrated as any other
    web.settled_at(next(a for a in cluster.agents if a is not agent))
    cluster.cli('vm', 'stop', VM, '--force', '--yes', '--wait')
    wait_until(lambda: not any(a.vmm_pids() for a in cluster.agents), WAIT_S, 'no VMM is left')
    with pytest.raises(BedError) as problem:
        web.upgrade()
    assert 'only one that runs' in str(problem.value)
    with capsys.disabled():
        print(f' pauses: {", ".join(f"{p:.1f}" for p in pauses)} ms ', end='')


@pytest.mark.slow
@pytest.mark.parametrize('walls', ['jailed', 'as the agent'])
def test_all_of_its_devices_go_along(make_cluster, walls):
    """Without walls of its own a VMM sees what its agent sees, the socket of the one after it too."""
    cluster = make_cluster(controllers=1, agents=1, agent_options=(*SHARED, *(['--vmm-uid-base', '0'] if walls == 'as the agent' else [])))
    agent = cluster.agents[0]
    agent.host.run(['ip', 'link', 'add', 'lan0', 'type', 'bridge'])
    agent.host.run(['ip', 'link', 'set', 'lan0', 'up'])
    pool(cluster, 'ssd', kind='dir')
    wait_pool(cluster, 'ssd', n1='present')
    web = Upgraded(cluster, '--nic', 'bridge=lan0')
    cluster.cli('volume', 'create', 'data', '--pool', 'ssd', '--size', '8MiB', '--wait')
    old = web.process()
    for _ in range(2):
        web.upgrade('--wait')
        web.alone()
    assert web.process() != old
    cluster.cli('vm', 'add-nic', VM, '--nic', 'bridge=lan0', '--wait', parse=False)
    disk = cluster.cli('volume', 'attach', 'data', '--vm', VM, '--wait')['disk']
    old = web.process()
    ended = web.wait_end(web.upgrade())                      # they are in other slots than those of a VM that is started
    assert ended['state'] == 'failed' and 'plugged in or out' in ended['error_text'], ended
    web.alone()
    assert web.process() == old
    cluster.cli('vm', 'stop', VM, '--force', '--yes', '--wait')
    cluster.cli('vm', 'start', VM, '--wait')
    for _ in range(2):
        old = web.process()
        web.upgrade('--wait')
        assert web.process() != old
    running = Running(cluster, VM)
    assert len(running.ask('nics')) == 2 and running.ask(f'disks/{disk}')['disk']['serial'] == disk
    seen = web.vm()
    assert seen['state'] == 'running' and seen['restarts'] == 0, seen
    cluster.cli('vm', 'stop', VM, '--force', '--yes', '--wait')
    wait_until(lambda: not agent.vmm_pids(), WAIT_S, 'no VMM is left')


@pytest.mark.slow
def test_memory_that_is_its_process_own_stays_where_it_is(make_cluster):
    web = Upgraded(make_cluster(controllers=1, agents=2, agent_options=('--shared-memory', 'never')))
    old = web.process()
    ended = web.wait_end(web.upgrade())
    assert ended['state'] == 'failed' and 'memory_shared' in ended['error_text'], ended
    web.alone()
    assert web.process() == old


@pytest.mark.slow
@pytest.mark.parametrize('victim', ['new', 'agent', 'both'])
def test_whoever_ends_on_the_way_it_goes_on(make_cluster, victim):
    """Once while the new process starts, and then at moments by chance."""
    web = Upgraded(make_cluster(controllers=1, agents=2, agent_options=SHARED), cmdline='dirty=8')
    rng = random.Random(seed := random.randrange(1 << 30))
    print('seed', seed)
    agent = web.agent()
    for turn in range(5):
        old = web.process()
        asked = web.upgrade()
        new = web.successor(old)
        time.sleep(0 if turn == 0 else rng.random() * 0.3)
        if victim != 'agent':
            try:
                os.kill(new, signal.SIGKILL)
            except ProcessLookupError:
                assert web.process() != new
        if victim != 'new':
            agent.program.kill9()
            agent.program.restart()
            wait_until(lambda: web.cluster.hosts_up() == 2, WAIT_S, 'both hosts are up')
        ended = web.wait_end(asked, 120)
        if victim != 'new':                                  # it is begun again, or found done
            assert ended['state'] == 'succeeded', ended
        if victim == 'agent':
            web.alone()
            kept = json.loads((web.folder(agent) / 'vm.json').read_text())
            word = web.folder(agent) / 'exit.json'           # a later agent goes by these two
            names = re.search(r'^NSpid:\s*(.*)$', Path(f'/proc/{web.process()}/status').read_text(), re.M)[1].split()
            assert str(kept['pid']) == names[-1] and not word.exists(), kept
        elif web.goes_on_or_anew():                          # the new one ran it already: as with any VMM that ends
            return


@pytest.mark.slow
@pytest.mark.parametrize('moment', ['starting', 'unread', 'told', 'runs'])
def test_an_agent_that_is_killed_leaves_both_and_the_next_goes_on_with_them(make_cluster, moment):
    """While the new one starts; while the old one has been told, and has not read it; while it hands over; when the new one runs the
    guest and the old one does not know it yet. That one of the two stands still which the other waits for."""
    web = Upgraded(make_cluster(controllers=1, agents=1, agent_options=SHARED), cmdline='dirty=8')
    agent = web.agent()
    if moment in ('starting', 'unread'):                     # one that has come so itself says so, too
        web.upgrade('--wait')
    for _ in range(20):
        old = web.process()
        if moment == 'unread':
            os.kill(old, signal.SIGSTOP)
        asked = web.upgrade()
        new = web.successor(old)
        if moment == 'unread':
            wait_until(lambda: web.phase('sock2') == 'connect', WAIT_S, 'the new one waits')
            web.wait_step(asked, 'handing it over')
        held = web.hold_at(moment, old, new)
        if held:
            break
        for pid in (old, new):
            if pid in agent.vmm_pids():
                os.kill(pid, signal.SIGCONT)
        web.wait_end(asked, 120)
        web.alone()
    assert held, 'it was over each time'
    agent.program.kill9()
    agent.program.restart()
    agent.program.wait_for_text('vmm-successor-adopted')
    wait_until(lambda: web.cluster.hosts_up() == 1, WAIT_S, 'its host is up')
    assert sorted(agent.vmm_pids()) == sorted([old, new])
    os.kill(held, signal.SIGCONT)
    ended = web.wait_end(asked, 120)
    assert ended['state'] == 'succeeded', ended
    web.alone()
    assert web.process() != old and web.vm().get('restarts', 0) == 0
    if moment != 'told':                                     # there it may have been taken for gone, and been begun anew
        assert web.process() == new
    web.upgrade('--wait')                                    # and nothing is left that is in the way of the next
    web.alone()


@pytest.mark.slow
def test_a_new_process_that_hangs_is_left_and_a_wish_can_be_taken_back(make_cluster):
    web = Upgraded(make_cluster(controllers=1, agents=2, agent_options=SHARED))
    old = web.process()
    asked = web.upgrade()
    os.kill(web.successor(old), signal.SIGSTOP)
    try:
        web.cluster.cli('operation', 'cancel', asked['id'])
    except BedError as problem:                              # it was stopped when it ran the guest already, and nobody waited for it
        assert 'has ended: succeeded' in str(problem), problem
    ended = web.wait_end(asked)
    if ended['state'] == 'succeeded':
        os.kill(web.process(), signal.SIGCONT)
    assert ended['state'] in ('cancelled', 'succeeded'), ended
    if ended['state'] == 'cancelled':
        web.alone()
        assert web.process() == old
    web.upgrade('--wait')
    web.alone()


@pytest.mark.slow
def test_a_new_process_that_runs_it_is_not_ended(make_cluster):
    """Whichever of the two stands still, and whenever: nobody ends the one that has the guest."""
    web = Upgraded(make_cluster(controllers=1, agents=1, agent_options=SHARED), cmdline='dirty=8')
    rng = random.Random(seed := random.randrange(1 << 30))
    print('seed', seed)
    for turn in range(6):
        old = web.process()
        asked = web.upgrade()
        new = web.successor(old)
        time.sleep(rng.random() * 0.3)
        held = (old, new)[turn % 2]
        try:
            os.kill(held, signal.SIGSTOP)
            time.sleep(6 + rng.random())                     # longer than the old one's patience (UPGRADE_SILENCE_MS)
            os.kill(held, signal.SIGCONT)
        except ProcessLookupError:                           # it was done with it
            pass
        ended = web.wait_end(asked, 120)
        web.alone()
        assert web.process() == (new if ended['state'] == 'succeeded' else old), ended
    assert web.vm().get('restarts', 0) == 0


@pytest.mark.slow
def test_an_old_process_that_ends_takes_the_new_one_along(make_cluster):
    web = Upgraded(make_cluster(controllers=1, agents=2, agent_options=SHARED), '--restart', 'always')
    old, agent = web.process(), web.agent()
    os.kill(old, signal.SIGSTOP)                             # so that it hands nothing over before its end
    asked = web.upgrade()
    new = web.successor(old)
    os.kill(old, signal.SIGKILL)
    web.wait_end(asked, 120)
    wait_until(lambda: web.vm()['state'] == 'running' and len(agent.vmm_pids()) == 1 and not web.leftovers(), WAIT_S, 'it runs, anew')
    assert old not in agent.vmm_pids()
    size = (web.folder(agent) / 'console.log').stat().st_size
    wait_until(lambda: (web.folder(agent) / 'console.log').stat().st_size > size, 20, 'it counts')
    assert web.process() not in (old, new)
