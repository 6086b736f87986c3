"""Drills as an operator makes them (`drover drill run`), on a living cluster of the process bed; what their report says is
compared with what the guests themselves wrote."""
import json

import pytest

from bed import wait_until
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
    for name, length in (('json', 500), ('html', 5000)):
        kept = reports / f'{report["id"]}.{name}'
        assert kept.stat().st_size > length, kept
    tell(report)
    return report


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


def check_nothing_moved(report, web, agent, epoch):
    """The leader's or a restart's loss: no VM has noticed."""
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
    assert cluster.api('POST', path, order)[0] == 409
    cluster.cli('ha', 'arm')
    for wrong in ({'seconds': 5}, {'seconds': 61}, {'fault': 'crash'}, {'drill': ''}, {'fault': 'fire'}):
        assert cluster.api('POST', path, {**order, **wrong})[0] == 400, wrong
    leader = cluster.leader()
    follower = next(c for c in cluster.controllers if c is not leader)
    status, _, body = cluster.api('POST', f'/v1/controllers/{leader.name}/drill', {**order, 'fault': 'crash'}, to=follower)
    assert status == 409 and leader.host.address in body['detail'], body
    web.wait_ticking(agent)
    assert web.vm()['epoch'] == 1


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
    status, _, body = cluster.api('POST', f'/v1/hosts/{agent.name}/drill', order)
    assert status == 200, body
    status, _, body = cluster.api('POST', f'/v1/hosts/{agent.name}/drill', {**order, 'drill': 'another'})
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
