"""Quorum lost for good: `drover-controller recover` rebuilds the cluster from one survivor, and the old ones stay out."""
import shutil


from bed import wait_until

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
