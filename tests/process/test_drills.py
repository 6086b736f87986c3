"""Drills as an operator makes them (`drover drill run`), on a living cluster of the process bed; what their report says is
compared with what the guests themselves wrote."""
import hashlib
import html
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
import time

import pytest

from bed import PATIENCE, wait_until
from cluster import KVM_MISSING, KVM_MISSING_TEXT
from test_failover import TICKER, Watch, ticks

DRILL_S = 300

pytestmark = [pytest.mark.skipif(not TICKER.exists(), reason='the test guest is not built'),
              pytest.mark.skipif(KVM_MISSING, reason=KVM_MISSING_TEXT)]


def drill(cluster, *words, check=True):
    """The report of a drill, as JSON."""
    reports = cluster.bed.directory / 'drills'
    command = [*cluster.cli_command('drill', 'run', *words, '--yes', '--output', 'json')]
    done = cluster.bed.run(command, timeout_s=DRILL_S, check=check, environment={'DROVER_DRILLS': str(reports)})
    if not check:
        return done
    report = json.loads(done.stdout)
    assert json.loads((reports / f'{report["id"]}.json').read_text()) == report
    page = (reports / f'{report["id"]}.html').read_text()
    assert report['id'] in page and '<svg' in page and all(html.escape(step['step']) in page for step in report['steps']), page
    tell(report)
    return report


def reserve(cluster, name='by-hand', seconds=120):
    """What `drover drill run` does before any order: known to every controller."""
    status, _, body = cluster.api('POST', '/v1/drill', {'drill': name, 'seconds': seconds})
    assert status == 200 and body['drill'] == name, body
    for controller in cluster.controllers:
        wait_until(lambda: cluster.api('GET', '/v1/cluster?consistency=stale', to=controller)[2].get('drill') == name,
                   what=f'{controller.name} knows of the drill')


def cut_addresses(host, role):
    """What the kernel of a host drops for the sake of a drill, of agent ('host') or controller; None: there is no table for it."""
    done = host.run(['nft', '-j', 'list', 'set', 'inet', f'drover_drill_{role}', 'far4'], check=False)
    if done.returncode != 0:
        return None
    (found,) = [item['set'] for item in json.loads(done.stdout)['nftables'] if 'set' in item]
    return [element['elem']['val'] for element in found.get('elem', [])]


def tell(report):
    print(f'{report["drill"]}: {report["result"]} {report["failures"]}')
    print('  ' + ', '.join(f'{step["step"]} {step["ms"]} ms' for step in report['steps']))
    print(f'  writes: {report["writes"]}')
    for vm in report['vms']:
        print(f'  {vm}')
    for moment in report['timeline']:
        print(f'  {moment["at_ms"] / 1000:8.2f} s  {moment["what"]}')


def check_ended_well(cluster, report, hosts):
    """Safe in any case; the times are told and not judged here, for this machine may be a slow one."""
    assert report['result'] in ('passed', 'slow', 'unsure') and not report['failures'], report
    assert all(vm['once'] != 'twice' for vm in report['vms'])
    assert all(done['ok'] for done in report['put_back']), report['put_back']
    wait_until(lambda: cluster.hosts_up() == hosts, 30, 'every host is up')
    assert not [flavor for flavor in cluster.items('/v1/flavors') if flavor['name'].startswith('drill-')]


def check_not_held(cluster, web, agent, pauses):
    """Its VMM was held for want of a lease no more often than @pauses; but where this machine stood still for most of what a lease lasts,
    that is no fault of the drill, so it is told and not judged. What is one: no majority, as controllers count that have never supported it."""
    overs = [line for a in cluster.agents for line in a.program.text().splitlines() if 'lease-over' in line]
    assert all('strangers=0' in line for line in overs), overs
    print(f'held for want of a lease: {web.pauses(agent) - pauses} times {overs}')


def check_nothing_moved(report, web, agent, epoch):
    """No VM has noticed."""
    (row,) = report['vms']
    assert row['from'] == row['to'] == agent.name
    assert web.agent() is agent and web.vm()['epoch'] == epoch
    web.wait_ticking(agent)
    assert report['writes']['answered'] > 2


def test_host_loss_and_leader_loss(make_cluster):
    """The VM executes elsewhere and is moved back afterwards; the report agrees with the guest's own words. Then the leader
    crashes, and the VM does not notice."""
    cluster = make_cluster(controllers=3, agents=4)
    refused = drill(cluster, 'host-loss', check=False)
    assert refused.returncode == 5 and 'no host runs a VM with ha' in refused.stderr, refused.stderr
    web = Watch(cluster)
    plain = Watch(cluster, 'plain', ha=False, host=web.agent().name)
    agent = web.agent()
    before = ticks(agent, plain.id)
    report = drill(cluster, 'host-loss', '--host', agent.name, '--seconds', '10')
    check_ended_well(cluster, report, 4)
    (row,) = report['vms']
    assert row['name'] == 'web' and row['from'] == agent.name and row['to'] not in ('', agent.name)
    assert row['executes_ms'] > 0 and row['once'] != 'twice'
    assert web.agent() is agent and web.vm()['epoch'] >= 3, 'it was to be put back'
    web.wait_ticking(agent)
    assert plain.agent() is agent and plain.vm()['epoch'] == 1 and ticks(agent, plain.id) > before + 10
    assert not any(vm['name'] == 'plain' for vm in report['vms'])
    assert {(run['host'], run['vm']) for run in report['runs']} >= {(agent.name, 'web'), (row['to'], 'web')}
    table = cluster.bed.run(cluster.cli_command('drill', 'report', report['id']),
                            environment={'DROVER_DRILLS': str(cluster.bed.directory / 'drills')}).stdout
    assert 'lease wait' in table and 'web' in table

    epoch, leader, pauses = web.vm()['epoch'], cluster.leader(), web.pauses(agent)
    starts = leader.program.starts
    report = drill(cluster, 'leader-loss', '--seconds', '1')
    check_ended_well(cluster, report, 4)
    check_nothing_moved(report, web, agent, epoch)
    assert web.pauses(agent) == pauses
    assert leader.program.alive and leader.program.starts == starts, 'it started again by itself'
    assert 'drill-pause' in leader.program.text()


def test_what_a_drill_refuses(make_cluster):
    """Where a drill would be no drill it is refused in words, and nothing has happened."""
    cluster = make_cluster(controllers=3, agents=3)
    web = Watch(cluster)
    agent = web.agent()
    cluster.cli('ha', 'disarm')
    refused = drill(cluster, 'host-loss', '--host', agent.name, check=False)
    assert refused.returncode == 5 and 'ha arm' in refused.stderr, refused.stderr
    order = {'drill': 'by-hand', 'fault': 'silence', 'seconds': 20}
    path = f'/v1/hosts/{agent.name}/drill'
    status, _, body = cluster.api('POST', path, order)
    assert status == 409 and 'POST /v1/drill' in body['detail'], body
    reserve(cluster)
    status, _, body = cluster.api('POST', path, order)
    assert status == 409 and 'disarmed' in body['detail'], body
    cluster.cli('ha', 'arm')
    for wrong in ({'seconds': 5}, {'seconds': 61}, {'fault': 'crash'}, {'drill': ''}, {'fault': 'fire'}):
        assert cluster.api('POST', path, {**order, **wrong})[0] == 400, wrong
    leader = cluster.leader()
    follower = next(c for c in cluster.controllers if c is not leader)
    status, _, body = cluster.api('POST', f'/v1/controllers/{leader.name}/drill', {**order, 'fault': 'crash'}, to=follower)
    assert status == 409 and leader.host.address in body['detail'], body
    for controller, wrong in ((leader, {'fault': 'silence'}), (leader, {'fault': 'slow-disk'}), (leader, {'fault': 'cut'}),
                              (leader, {'fault': 'cut', 'far': ['127.0.0.1']}), (leader, {'fault': 'cut', 'far': ['drop; }']})):
        status, _, body = cluster.api('POST', f'/v1/controllers/{controller.name}/drill', {**order, **wrong}, to=controller)
        assert status == 400, (wrong, body)
    # One drill at a time, whichever controller is asked, and until its end or its time is over.
    other = {**order, 'drill': 'another', 'fault': 'crash', 'seconds': 1}
    status, _, body = cluster.api('POST', f'/v1/controllers/{follower.name}/drill', other, to=follower)
    assert status == 409 and 'by-hand is under way' in body['detail'], body
    assert cluster.api('POST', '/v1/drill', {'drill': 'another', 'seconds': 10})[0] == 409
    refused = drill(cluster, 'leader-loss', check=False)
    assert refused.returncode == 5 and 'by-hand is under way' in refused.stderr, refused.stderr
    assert cluster.api('DELETE', '/v1/drill/another')[0] == 200
    assert cluster.api('GET', '/v1/cluster')[2]['drill'] == 'by-hand', 'nobody else ends it'
    reserve(cluster, seconds=1)
    wait_until(lambda: cluster.api('POST', '/v1/drill', {'drill': 'another', 'seconds': 10})[0] == 200, 10, 'its time is over')
    assert cluster.api('DELETE', '/v1/drill/another')[0] == 200
    assert 'drill' not in cluster.api('GET', '/v1/cluster')[2]
    web.wait_ticking(agent)
    assert web.vm()['epoch'] == 1
    assert all(controller.program.alive and 'drill-begins' not in controller.program.text() for controller in cluster.controllers)


def test_backup_restore(make_cluster):
    """One controller is enough for it; a drill that fails says so, and leaves no VM and no backup either."""
    cluster = make_cluster(controllers=1, agents=1)
    disk = cluster.bed.directory / 'disk.img'
    disk.write_bytes(b'of the image ' * 80000 + bytes(1 << 20))
    artifacts = {name: {'url': f'file://{path}', 'sha256': hashlib.sha256(path.read_bytes()).hexdigest()}
                 for name, path in (('kernel', TICKER), ('disk', disk))}
    status, _, answer = cluster.api('POST', '/v1/images', {'name': 'writer', 'kind': 'kernel', 'cmdline': 'disk=5', **artifacts})
    assert status == 201, answer
    refused = drill(cluster, 'backup-restore', '--image', 'writer', check=False)
    assert refused.returncode == 5 and 'backup-store' in refused.stderr, refused.stderr
    store = cluster.bed.directory / 'store'
    assert cluster.api('POST', '/v1/backup-stores', {'name': 'nas', 'location': str(store)})[0] == 201
    report = drill(cluster, 'backup-restore', '--image', 'writer', '--memory', '64MiB')
    assert report['result'] == 'passed' and all(done['ok'] for done in report['put_back']), report
    assert any('disk root is what it was' in m['what'] for m in report['timeline'])
    assert [step['step'] for step in report['steps']] == ['backup before', 'restore', 'backup after', 'start']
    assert cluster.items('/v1/vms') == [] and cluster.items('/v1/backups') == []
    # Where what comes back is not what was there, the drill says so.

    def spoil():
        """Into what was backed up, before it is restored: the packs are named in the backup, and sealed with their hashes."""
        if not runs.is_alive():
            return True     # too late
        if any(b['name'].endswith('-before') and b['state'] == 'available' for b in cluster.items('/v1/backups')):
            packs = [path for path in store.rglob('*') if path.is_file() and 'pack' in str(path)]
            for path in packs:
                data = bytearray(path.read_bytes())
                data[len(data) // 2] ^= 1
                path.write_bytes(data)
            return packs
        return None
    for _ in range(5):      # the restore may be quicker than this program
        seen = []
        runs = threading.Thread(target=lambda: seen.append(drill(cluster, 'backup-restore', '--image', 'writer', '--memory', '64MiB', check=False)))
        runs.start()
        wait_until(spoil, 60, 'there is something to spoil', poll_s=0.02)
        runs.join(DRILL_S * PATIENCE)
        assert seen and seen[0].returncode in (0, 5), seen
        if seen[0].returncode == 5:
            break
    assert seen[0].returncode == 5, seen
    report = json.loads(seen[0].stdout)
    assert report['result'] == 'failed' and report['failures'], report
    assert cluster.items('/v1/vms') == []


def test_slow_disk_and_a_controller_cut_off(make_cluster):
    """Of the leader: changes go on, and no VM notices. Each host has a controller, so the cut has to leave the agent alone."""
    cluster = make_cluster(controllers=3, agents=3)
    web = Watch(cluster)
    agent = web.agent()
    pauses = web.pauses(agent)
    leader = cluster.leader()
    report = drill(cluster, 'slow-disk', '--seconds', '6')
    check_ended_well(cluster, report, 3)
    check_nothing_moved(report, web, agent, 1)
    assert report['controller'] == leader.name and 'fault=slow-disk' in leader.program.text()

    leader = cluster.leader()
    began, seen = time.monotonic(), []
    runs = threading.Thread(target=lambda: seen.append(drill(cluster, 'controller-partition', '--controller', leader.name, '--seconds', '8')))
    runs.start()
    far = sorted(c.host.address for c in cluster.controllers if c is not leader)
    wait_until(lambda: sorted(cut_addresses(leader.host, 'controller') or []) == far, 60, 'it is cut off', poll_s=0.02)
    runs.join(DRILL_S)
    (report,) = seen
    print(f'controller-partition took {time.monotonic() - began:.1f} s')
    check_ended_well(cluster, report, 3)
    check_nothing_moved(report, web, agent, 1)
    assert report['controller'] == leader.name
    assert any(m['what'].startswith('controller ') and m['what'].endswith(' leads') and leader.name not in m['what']
               for m in report['timeline'] if m['at_ms'] > 0), 'another one has led'
    check_not_held(cluster, web, agent, pauses)
    wait_until(lambda: cut_addresses(leader.host, 'controller') is None, 20, 'no rule is left')


@pytest.mark.slow
def test_no_drill_while_a_host_is_gone(make_cluster):
    cluster = make_cluster(controllers=3, agents=4)
    web = Watch(cluster)
    agent = web.agent()
    other = cluster.agent(4) if agent is not cluster.agent(4) else cluster.agent(3)
    other.program.kill9()
    wait_until(lambda: cluster.hosts_up() == 3, 30, 'a host is known to be gone')
    refused = drill(cluster, 'host-loss', '--host', agent.name, check=False)
    assert refused.returncode == 5 and '3 of 4 are up' in refused.stderr, refused.stderr
    reserve(cluster)
    status, _, body = cluster.api('POST', f'/v1/hosts/{agent.name}/drill', {'drill': 'by-hand', 'fault': 'silence', 'seconds': 20})
    assert status == 409 and other.name in body['detail'], body
    web.wait_ticking(agent)


@pytest.mark.slow
def test_the_end_of_a_silence_needs_nobody(make_cluster):
    """An agent that is killed while it is silent is not silent when it starts again: the host is never lost."""
    cluster = make_cluster(controllers=3, agents=4)
    web = Watch(cluster)
    agent = web.agent()
    order = {'drill': 'by-hand', 'fault': 'silence', 'seconds': 60}
    reserve(cluster)
    status, _, body = cluster.api('POST', f'/v1/hosts/{agent.name}/drill', order)
    assert status == 200, body
    status, _, body = cluster.api('POST', f'/v1/hosts/{agent.name}/drill', order)
    assert status == 409 and 'by-hand' in body['detail'], body
    assert cluster.api('GET', f'/v1/hosts/{agent.name}/observation')[2]['silent'] is True
    agent.program.kill9()
    agent.program.restart()
    wait_until(lambda: cluster.hosts_up() == 4, 30, 'every host is up')
    web.wait_ticking(web.agent())


@pytest.mark.slow
def test_host_and_leader_loss(make_cluster):
    cluster = make_cluster(controllers=3, agents=4)
    web = Watch(cluster)
    agent = web.agent()
    report = drill(cluster, 'host-and-leader-loss', '--host', agent.name)
    check_ended_well(cluster, report, 4)
    (row,) = report['vms']
    assert row['to'] not in ('', agent.name) and web.agent() is agent


@pytest.mark.slow
def test_rolling_restart(make_cluster):
    cluster = make_cluster(controllers=3, agents=3)
    web = Watch(cluster)
    agent = web.agent()
    pauses = web.pauses(agent)
    lives = [controller.program.text().count('name=') for controller in cluster.controllers]
    report = drill(cluster, 'rolling-restart')
    check_ended_well(cluster, report, 3)
    check_nothing_moved(report, web, agent, 1)
    assert web.pauses(agent) == pauses
    for controller, before in zip(cluster.controllers, lives):
        assert controller.program.alive and controller.program.text().count('name=') > before, f'{controller.name} restarted'


@pytest.mark.slow
def test_network_partition(make_cluster):
    """A host is cut off by its kernel: its VM executes elsewhere, and nothing is left of the cut."""
    cluster = make_cluster(controllers=3, agents=4)
    web = Watch(cluster)
    agent = web.agent()
    report = drill(cluster, 'network-partition', '--host', agent.name, '--seconds', '12')
    check_ended_well(cluster, report, 4)
    (row,) = report['vms']
    assert row['to'] not in ('', agent.name) and web.agent() is agent
    assert 'drill-begins' in agent.program.text() and 'fault=cut' in agent.program.text()
    wait_until(lambda: cut_addresses(agent.host, 'host') is None, 20, 'no rule is left')


@pytest.mark.slow
def test_the_end_of_a_cut_needs_nobody(make_cluster):
    """Agent and controller are killed while they are cut off: the kernel ends the cut, and the next start removes what is left."""
    cluster = make_cluster(controllers=3, agents=4)
    web = Watch(cluster)
    agent, controller = cluster.agent(4), next(c for c in cluster.controllers if c is not cluster.leader())
    others = [h.host.address for h in cluster.controllers + cluster.agents]
    reserve(cluster)
    for member, role, path, to in ((agent, 'host', f'/v1/hosts/{agent.name}/drill', None),
                                   (controller, 'controller', f'/v1/controllers/{controller.name}/drill', controller)):
        far = sorted({address for address in others if address != member.host.address})
        status, _, body = cluster.api('POST', path, {'drill': 'by-hand', 'fault': 'cut', 'seconds': 15, 'far': far}, to=to)
        assert status == 200, body
        wait_until(lambda: sorted(cut_addresses(member.host, role) or []) == far, 15, 'it is cut off', poll_s=0.02)
        member.program.kill9()
        wait_until(lambda: cut_addresses(member.host, role) == [], 30, 'the kernel has ended it')
        member.program.restart()
        wait_until(lambda: cut_addresses(member.host, role) is None, 20, 'the next start has removed what was left')
        wait_until(lambda: cluster.hosts_up() == 4 and all(cluster.ready(c) for c in cluster.controllers), 60, 'all is well')
    web.wait_ticking(web.agent())


@pytest.mark.slow
def test_two_cuts_of_one_machine(make_cluster):
    """Its agent's ends, and its controller's goes on; so it is with one that an earlier version has left in a table for both."""
    cluster = make_cluster(controllers=3, agents=3)
    controller = next(c for c in cluster.controllers if c is not cluster.leader())
    agent = next(a for a in cluster.agents if a.host is controller.host)
    far = sorted(c.host.address for c in cluster.controllers if c is not controller)
    reserve(cluster)
    for role, path, to, seconds in (('controller', f'/v1/controllers/{controller.name}/drill', controller, 60),
                                    ('host', f'/v1/hosts/{agent.name}/drill', cluster.leader(), 10)):
        status, _, body = cluster.api('POST', path, {'drill': 'by-hand', 'fault': 'cut', 'seconds': seconds, 'far': far}, to=to)
        assert status == 200, body
        begun = time.monotonic()
        wait_until(lambda: sorted(cut_addresses(agent.host, role) or []) == far, 15, f'the {role} is cut off', poll_s=0.02)
    wait_until(lambda: cut_addresses(agent.host, 'host') is None, 60, 'the one is over')
    found = cut_addresses(agent.host, 'controller')
    assert found is not None, 'its table is its own'
    assert sorted(found) == far or time.monotonic() - begun > 40, found
    agent.program.kill9()
    agent.host.run(['nft', 'add', 'table', 'inet', 'drover_drill'])
    mark = agent.directory / 'drill-cut'
    mark.write_text('inet drover_drill\n')
    agent.program.restart()
    wait_until(lambda: not mark.exists(), 30, 'the next start has cleaned up')
    assert agent.host.run(['nft', 'list', 'table', 'inet', 'drover_drill'], check=False).returncode != 0


class Machines:
    """The operator's way to the machines (`--machines`): a program that asks this thread, which may start programs of the bed."""

    def __init__(self, cluster):
        self.cluster, self.calls = cluster, []
        self.folder = tempfile.mkdtemp(prefix='drill-')
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f'{self.folder}/s')
        self.listener.listen(8)
        self.listener.settimeout(0.2)
        self.program = f'{self.folder}/machines'
        with open(self.program, 'w') as file:
            file.write(f'''#!{sys.executable}
import json, os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect({self.folder + "/s"!r})
s.sendall(json.dumps(sys.argv[1:3] + [os.environ.get("DROVER_TOKEN")]).encode() + b"\\n")
status, said = json.loads(s.makefile().readline())
print(said)
sys.exit(status)
''')
        os.chmod(self.program, 0o755)

    def close(self):
        self.listener.close()
        shutil.rmtree(self.folder)

    def serve(self, ends):
        """Until ends()."""
        end = time.monotonic() + DRILL_S * PATIENCE
        while not ends():
            assert time.monotonic() < end, 'the drill goes on and on'
            try:
                peer, _ = self.listener.accept()
            except TimeoutError:
                continue
            with peer:
                peer.settimeout(30)
                what, name, token = json.loads(peer.makefile().readline())
                self.calls.append((what, name))
                try:
                    answer = (0, getattr(self, what)(next(c for c in self.cluster.controllers if c.name == name), token) or '')
                except Exception as error:      # whatever it is, the drill is to say it
                    answer = (1, str(error))
                peer.sendall(json.dumps(answer).encode() + b'\n')

    def check(self, controller, _):
        assert controller.program.alive

    def stop(self, controller, _):
        controller.program.kill9()

    def start(self, controller, _):
        controller.program.restart()

    def recover(self, controller, _):
        controller.program.kill9()
        controller.host.run([controller.binary, 'recover', '--data', controller.data, '--yes'])
        controller.program.restart()

    def ended(self, controller, _):
        assert not controller.program.alive
        return str(controller.program.status)

    def rejoin(self, controller, token):
        for entry in controller.directory.iterdir():
            if entry.name != 'admin':
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        controller.join(token)
        controller.program.restart()


@pytest.mark.slow
def test_quorum_loss(make_cluster):
    """All but the leader are lost for good, and come back: refused, wiped, joined anew. VMs stay where they are."""
    cluster = make_cluster(controllers=3, agents=3)
    web = Watch(cluster)
    agent = web.agent()
    pauses, leader = web.pauses(agent), cluster.leader()
    refused = drill(cluster, 'quorum-loss', check=False)
    assert refused.returncode == 5 and '--machines' in refused.stderr, refused.stderr
    machines = Machines(cluster)
    try:
        done = []
        runs = threading.Thread(target=lambda: done.append(drill(cluster, 'quorum-loss', '--machines', machines.program,
                                                                 check=False)))
        runs.start()
        machines.serve(lambda: not runs.is_alive())
        runs.join()
    finally:
        machines.close()
    assert done and done[0].returncode == 0, done and done[0].stderr
    report = json.loads(done[0].stdout)
    tell(report)
    check_ended_well(cluster, report, 3)
    check_nothing_moved(report, web, agent, 1)
    assert cluster.api('GET', '/v1/cluster')[2]['epoch'] == 2 and cluster.voters() == 3
    assert [what for what, name in machines.calls if name == leader.name] == ['check', 'recover']
    assert sorted(name for what, name in machines.calls if what == 'rejoin') == sorted(c.name for c in cluster.controllers if c is not leader)
    assert {step['step'] for step in report['steps']} >= {'recover', 'writes again', 'as many controllers as before'}
    others = {c.name for c in cluster.controllers if c is not leader}
    again = next(m['at_ms'] for m in report['timeline'] if m['what'] == 'the lost ones start again')
    assert not any(m['what'] in {f'controller {name} leads' for name in others} for m in report['timeline'] if m['at_ms'] < again), 'no rival'
    check_not_held(cluster, web, agent, pauses)     # nor while votes change: who is to count supports before
    # and the drill of the day after works
    check_ended_well(cluster, drill(cluster, 'leader-loss', '--seconds', '1'), 3)
