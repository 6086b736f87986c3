"""Quorum lost for good: `drover-controller recover` rebuilds the cluster from one survivor, and the old ones stay out."""
import json
import shutil

import pytest

from bed import wait_until
from cluster import KVM_MISSING, KVM_MISSING_TEXT
from test_vm_migrate import Counter

FLAVOR = {'vcpus': 1, 'memory_bytes': 16777216}


def recover(controller, *words, check=True, input=None):
    return controller.host.run([controller.binary, 'recover', '--data', controller.data, *words], check=check, input=input)


def names(cluster, path, **arguments):
    return sorted(item['name'] for item in cluster.items(path, **arguments))


def put_flavor(cluster, name, to=None):
    status, _, body = cluster.api('POST', '/v1/flavors', {'name': name, **FLAVOR}, to=to)
    assert status == 201, body
    return body['id']


def lose_two(cluster):
    """c1 and c2 die for good; c3, the survivor, is stopped. Returns (lost, survivor)."""
    lost, survivor = cluster.controllers[:2], cluster.controllers[2]
    for controller in lost:
        controller.program.kill9()
    survivor.program.kill9()
    return lost, survivor


def test_recover_from_one_of_three(make_cluster):
    cluster = make_cluster(controllers=3, agents=1)
    agent = cluster.agent(1)
    kept = [put_flavor(cluster, f'kept{n}') for n in range(20)]
    # everything has reached the survivor
    wait_until(lambda: len(names(cluster, '/v1/flavors?consistency=stale', to=cluster.controller(3))) == 20, what='c3 is level')
    (c1, c2), survivor = lose_two(cluster)

    told = recover(survivor, '--dry-run')
    assert 'drop controller c1' in told.stdout and 'drop controller c2' in told.stdout
    assert 'epoch of the cluster to 2' in told.stdout and 'Nothing was changed' in told.stdout
    refused = recover(survivor, check=False)            # no terminal to ask on
    assert refused.returncode == 2 and '--yes' in refused.stderr
    assert 'Recovered' in recover(survivor, '--yes').stdout

    survivor.run()
    wait_until(lambda: cluster.ready(survivor), what='the survivor answers')
    assert names(cluster, '/v1/controllers', to=survivor) == ['c3']
    assert cluster.api('GET', '/v1/cluster', to=survivor)[2]['epoch'] == 2
    assert sorted(item['id'] for item in cluster.items('/v1/flavors', to=survivor)) == sorted(kept)
    put_flavor(cluster, 'after', to=survivor)
    wait_until(lambda: 'cluster-epoch from=1 to=2' in agent.program.text(), 30, 'the host follows the survivor')
    wait_until(lambda: cluster.items('/v1/hosts', to=survivor)[0]['state'] == 'up', 30, 'the host is up')

    # The lost majority comes back: it is refused in words, and ends; once more it does not even start.
    for controller in (c1, c2):
        controller.run()
    for controller in (c1, c2):
        assert controller.program.wait(20) == 5
        assert 'recovered without it and is at epoch 2' in controller.program.text()
    c1.program.restart()
    assert c1.program.wait(10) == 5
    assert 'raft-peer-refused' in survivor.program.text() or 'superseded' in c2.program.text()
    assert names(cluster, '/v1/flavors', to=survivor) == sorted([f'kept{n}' for n in range(20)] + ['after'])

    # Wiped, they join as new ones; the admin's certificate lies in the first's directory and is kept.
    token = cluster.cli('token', 'create', 'again', '--role', 'controller', to=survivor)['secret']
    for controller in (c1, c2):
        for entry in controller.directory.iterdir():
            if entry.name != 'admin':
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        controller.join(token)
        controller.run()
        wait_until(lambda: cluster.ready(controller), 30, f'{controller.name} is ready')
    wait_until(lambda: cluster.voters() == 3, 30, 'three have a vote')
    survivor.program.kill9()
    wait_until(lambda: cluster.leader() is not survivor, 30, 'one of the new ones leads')
    assert 'after' in names(cluster, '/v1/flavors', to=c1)
    put_flavor(cluster, 'later', to=c2)


def test_the_lost_majority_alone_is_not_obeyed(make_cluster):
    """The old ones come back where they cannot hear the survivor: hosts that follow the new epoch tell them."""
    cluster = make_cluster(controllers=3, agents=1)
    agent = cluster.agent(1)
    (c1, c2), survivor = lose_two(cluster)
    recover(survivor, '--yes')
    survivor.run()
    wait_until(lambda: 'cluster-epoch from=1 to=2' in agent.program.text(), 30, 'the host follows the survivor')
    agent.program.stop()
    survivor.program.kill9()
    # The host asks the old ones again, as if it had known no other.
    text = (agent.directory / 'identity.json').read_text()
    addresses = ','.join(f'"{c.host.address}:7443"' for c in cluster.controllers)
    (agent.directory / 'identity.json').write_text(text.replace(f'"{survivor.host.address}:7443"', addresses))
    for controller in (c1, c2):
        controller.run()
    wait_until(lambda: cluster.leader() in (c1, c2), 30, 'the old ones alone have a leader')
    agent.run()
    ended = wait_until(lambda: next((c for c in (c1, c2) if not c.program.alive), None), 30, 'the one that was asked ends')
    assert ended.program.status == 5
    assert 'recovered without it and is at epoch 2' in ended.program.text()


def test_a_host_that_is_wrong_about_the_epoch(make_cluster):
    """Far ahead it is refused; a little ahead it ends the controllers, as it must, and they are recovered nevertheless."""
    cluster = make_cluster(controllers=1, agents=1)
    agent, one = cluster.agent(1), cluster.controller(1)
    put_flavor(cluster, 'kept')
    path = agent.directory / 'identity.json'

    def host_follows(epoch):
        agent.program.stop()
        path.write_text(json.dumps({**json.loads(path.read_text()), 'epoch': epoch}))
        agent.run()

    host_follows(10**15)
    wait_until(lambda: 'no cluster is recovered so often' in agent.program.text(), 30, 'it is refused')
    assert 'epoch-refused host=' in one.program.text() and one.program.alive
    host_follows(7)
    assert one.program.wait(30) == 5
    assert 'superseded-by-host host=' in one.program.text()
    refused = recover(one, '--yes', check=False)
    assert refused.returncode == 5 and 'recover --superseded' in refused.stderr
    told = recover(one, '--superseded', '--yes').stdout
    assert 'It was told that the cluster is at epoch 7' in told and 'epoch of the cluster to 8' in told
    one.run()
    wait_until(lambda: cluster.ready(one), what='it answers')
    wait_until(lambda: cluster.hosts_up() == 1, 30, 'the host follows')
    assert names(cluster, '/v1/flavors', to=one) == ['kept']


def test_recovery_that_was_broken_off(make_cluster):
    """Between any two steps: the same command goes on under the same epoch."""
    cluster = make_cluster(controllers=3, agents=0)
    put_flavor(cluster, 'kept')
    wait_until(lambda: names(cluster, '/v1/flavors?consistency=stale', to=cluster.controller(3)) == ['kept'], what='c3 is level')
    _, survivor = lose_two(cluster)
    recover(survivor, '--yes')
    again = recover(survivor, '--yes')              # as after a crash behind the last step
    assert 'not finished' in again.stdout and 'epoch of the cluster to 2' in again.stdout
    survivor.run()
    wait_until(lambda: cluster.ready(survivor), what='the survivor answers')
    assert cluster.api('GET', '/v1/cluster', to=survivor)[2]['epoch'] == 2
    assert not (survivor.directory / 'recover.json').exists()
    busy = recover(survivor, '--yes', check=False)
    assert busy.returncode == 5 and 'stop it first' in busy.stderr
    survivor.program.stop()
    recover(survivor, '--yes')                      # a second one, of a cluster of one
    survivor.run()
    wait_until(lambda: cluster.ready(survivor), what='the survivor answers')
    assert cluster.api('GET', '/v1/cluster', to=survivor)[2]['epoch'] == 3
    assert names(cluster, '/v1/flavors', to=survivor) == ['kept']


def test_recover_refuses_in_words(make_cluster):
    cluster = make_cluster(controllers=1, agents=0)
    one = cluster.controller(1)
    one.program.stop()
    wrong = one.host.run([one.binary, 'recover', '--data', '/srv/nowhere', '--yes'], check=False)
    assert wrong.returncode != 0 and 'nothing to recover' in wrong.stderr
    assert not (one.host.directory / 'nowhere').exists()
    one.host.run(['mkdir', '/srv/empty'])
    empty = one.host.run([one.binary, 'recover', '--data', '/srv/empty', '--yes'], check=False)
    assert empty.returncode != 0 and 'belongs to no cluster' in empty.stderr
    # a damaged log, then no log at all: told, and nothing is begun
    log = sorted((one.directory / 'raft').glob('0*-0*'))[0]
    data = bytearray(log.read_bytes())
    data[40] ^= 0xff
    log.write_bytes(data)
    damaged = recover(one, '--yes', check=False)
    assert damaged.returncode != 0 and 'damaged' in damaged.stderr, damaged.stderr
    for path in (one.directory / 'raft').iterdir():
        path.unlink()
    gone = recover(one, '--yes', check=False)
    assert gone.returncode != 0 and 'cannot read the Raft data' in gone.stderr, gone.stderr
    assert not (one.directory / 'recover.json').exists()
    assert '"epoch":1' in (one.directory / 'identity.json').read_text()


def third_follows(cluster):
    """Another leads than c3, the survivor to be, and a VM with disks runs: (survivor, VM)."""
    first, _, survivor = cluster.controllers
    if cluster.leader() is survivor:
        cluster.cli('controller', 'transfer', 'c1')
        wait_until(lambda: cluster.leader() is first, 30, 'c1 leads')
    return survivor, Counter(cluster, disks=True)


@pytest.mark.skipif(KVM_MISSING, reason=KVM_MISSING_TEXT)
def test_what_the_survivor_has_not_heard_of(make_cluster):
    """The survivor stands still while a VM is migrated with its disks, one is made, and one is deleted; then the others die. What
    hosts have done is not undone, no VM runs twice, and no disk is removed."""
    cluster = make_cluster(controllers=3, agents=2)
    survivor, web = third_follows(cluster)
    source, target = web.agent(), web.other()
    cluster.cli('vm', 'create', 'gone', '--image', 'ticker', '--vcpus', '1', '--memory', '64MiB', '--wait')
    gone = cluster.vm('gone')
    wait_until(lambda: cluster.api('GET', '/v1/vms/gone?consistency=stale', to=survivor)[2].get('state') == 'running', what='c3 is level')
    epoch = web.vm()['epoch']
    survivor.program.freeze()
    ended = web.wait_end(web.ask('--to', target.name))
    assert ended['state'] == 'succeeded', ended
    cluster.cli('vm', 'create', 'late', '--image', 'ticker', '--vcpus', '1', '--memory', '64MiB', '--disk', 'name=own,size=1MiB', '--wait')
    late = cluster.vm('late')
    cluster.cli('vm', 'delete', 'gone', '--yes', '--wait')
    keeper = next(agent for agent in cluster.agents if agent.name == late['host_name'])
    pids = {agent.name: set(agent.vmm_pids()) for agent in cluster.agents}
    for controller in cluster.controllers:
        controller.program.kill9()
    recover(survivor, '--yes')
    survivor.run()
    wait_until(lambda: cluster.ready(survivor), what='the survivor answers')

    def vm(name):
        return cluster.api('GET', f'/v1/vms/{name}', to=survivor)[2]

    # It is where it was moved to, in the process that it has been in; where it was before it has not been begun anew.
    moved = wait_until(lambda: (v := vm('web')).get('host_name') == target.name and v['state'] == 'running' and v, 60, 'it is on the target')
    assert moved['epoch'] > epoch and moved['restarts'] == 0
    web.counts_on()
    web.disks_arrived(target)
    wait_until(lambda: not web.folder(source).exists(), 30, 'its old host has nothing of it')
    # What was made and is not known any more runs on; it is counted.
    wait_until(lambda: cluster.api('GET', f'/v1/hosts/{keeper.name}', to=survivor)[2].get('stray_vms') == 1, 30, 'a stray is seen')
    assert vm('late').get('state') is None
    assert (keeper.directory / 'vms' / late['id'] / 'disks').is_dir()
    # What was deleted is not made anew by itself.
    failed = wait_until(lambda: (v := vm('gone'))['state'] == 'failed' and v, 30, 'what was deleted is failed')
    assert 'nothing of it is left here' in failed['state_reason'] and failed['host_name'] == gone['host_name']
    assert {agent.name: set(agent.vmm_pids()) for agent in cluster.agents} == pids
    keeper.program.stop()      # the stray is kept over a restart of its agent
    keeper.run()
    wait_until(lambda: cluster.api('GET', f'/v1/hosts/{keeper.name}', to=survivor)[2].get('stray_vms') == 1 and
               vm('web')['state'] == 'running', 30, 'all is as it was')
    cluster.cli('vm', 'start', 'gone', '--wait', to=survivor)
    assert {pid for agent in cluster.agents for pid in agent.vmm_pids()} > {pid for own in pids.values() for pid in own}


@pytest.mark.slow       # the machine must be quick enough to hand over before the silent target is taken for unreachable
@pytest.mark.skipif(KVM_MISSING, reason=KVM_MISSING_TEXT)
def test_a_vm_that_came_unheard(make_cluster):
    """The target's agent stands still while its VMM takes over, and the hand-over is lost: nobody but that VMM knows whose it is."""
    cluster = make_cluster(controllers=3, agents=2)
    survivor, web = third_follows(cluster)
    source, target = web.agent(), web.other()
    cluster.cli('ha', 'disarm')    # nothing is handed over to a host that is suspected
    asked = web.ask('--to', target.name, '--bytes-per-second', '4MiB')     # some seconds: a host that is silent for longer is handed nothing
    web.wait_step(asked, 'MiB')
    wait_until(lambda: cluster.api('GET', f'/v1/operations/{asked["id"]}?consistency=stale', to=survivor)[0] == 200, what='c3 is level')
    survivor.program.freeze()
    target.program.freeze()
    assert web.vm()['host_name'] == source.name and web.operation(asked)['state'] == 'running', 'it was too quick for this test'
    wait_until(lambda: web.vm()['host_name'] == target.name, 60, 'it is handed over')
    wait_until(lambda: not source.vmm_pids(), 30, 'the source has let go')
    pids = target.vmm_pids()
    for controller in cluster.controllers:
        controller.program.kill9()
    recover(survivor, '--yes')
    survivor.run()
    wait_until(lambda: cluster.ready(survivor), what='the survivor answers')
    target.program.thaw()

    def vm():
        return cluster.api('GET', '/v1/vms/web', to=survivor)[2]

    wait_until(lambda: vm().get('host_name') == target.name and vm()['state'] == 'running', 60, 'it is on the target')
    wait_until(lambda: cluster.api('GET', f'/v1/operations/{asked["id"]}', to=survivor)[2]['state'] != 'running', 30, 'the migration is over')
    assert target.vmm_pids() == pids and 'vm-arrival-astray' in target.program.text()
    web.counts_on()
    web.disks_arrived(target)
    wait_until(lambda: web.is_clean(source), 30, 'nothing is left where it was')
