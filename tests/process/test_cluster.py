"""A cluster comes up from nothing, tells who leads, and survives the loss of its leader."""
import json
import time

from bed import wait_until


def test_three_controllers_from_nothing(make_cluster):
    cluster = make_cluster(controllers=3, agents=0)
    assert sorted(item['name'] for item in cluster.cli('controller', 'list')) == ['c1', 'c2', 'c3']
    assert cluster.cli('cluster', 'show')['name'] == 'test'
    # whoever is asked, the answer is the same
    created = cluster.cli('flavor', 'create', 'small', '--vcpus', '1', '--memory', '128MiB')
    for controller in cluster.controllers:
        status, _, body = cluster.api('GET', '/v1/flavors/small', to=controller)
        assert (status, body['id']) == (200, created['id']), f'{controller.name}: {json.dumps(body)}'


def test_the_leader_is_killed(make_cluster):
    cluster = make_cluster(controllers=3, agents=0)
    leader = cluster.leader()
    cluster.cli('flavor', 'create', 'before', '--vcpus', '1', '--memory', '128MiB')
    leader.program.kill9()
    killed = time.monotonic()
    survivor = next(c for c in cluster.controllers if c is not leader)
    wait_until(lambda: cluster.leader() is not leader, 20, 'another controller leads')
    made = cluster.cli('flavor', 'create', 'after', '--vcpus', '1', '--memory', '128MiB', to=survivor)
    print(f'a write was acknowledged {time.monotonic() - killed:.2f} s after the kill')
    assert {item['name'] for item in cluster.items('/v1/flavors', to=survivor)} == {'before', 'after'}
    leader.run()
    wait_until(lambda: cluster.ready(leader), 20, 'the old leader is back')
    assert cluster.api('GET', '/v1/flavors/after', to=leader)[2]['id'] == made['id']


def test_all_controllers_are_killed_together(make_cluster):
    cluster = make_cluster(controllers=3, agents=0)
    made = cluster.cli('flavor', 'create', 'kept', '--vcpus', '1', '--memory', '128MiB')
    for controller in cluster.controllers:
        controller.program.kill9()
    for controller in cluster.controllers:
        controller.run()
    cluster.leader()
    assert cluster.api('GET', '/v1/flavors/kept', to=cluster.controller(2))[2]['id'] == made['id']
