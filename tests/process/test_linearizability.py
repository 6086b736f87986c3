"""The API is linearizable while controllers are killed, stopped, cut off, out of disk or wrong about the time.

Writers and readers use a few registers (register_clients.py) through whichever controller takes their connection; each
fault lasts until calls are answered again, or for some time where it is a silent one; then the histories are checked
(linearize.py). That the checker finds what is wrong is tested beside it, and here: reads that are allowed to be stale are.
"""
import http.client
import json
import os
import pathlib
import random
import subprocess
import time

import pytest

import cluster as cluster_module
from bed import BedError, wait_until
from register_clients import Clients
from small_disk import Disk

HERE = pathlib.Path(__file__).parent
GO_ON_S = 90            # calls must be answered again within this of the end of a fault
GO_ON_CALLS = 25
OLD_LEADERS, READERS = 2, 8


def clock_shim(bed):
    """The library that makes a program's wall clock one of its own; None where it cannot be had."""
    if cluster_module.KIND in ('asan', 'tsan'):
        return None         # their own libraries have to be the first
    library = bed.directory / 'clock_shim.so'
    subprocess.run(['cc', '-O2', '-shared', '-fPIC', '-o', library, HERE / 'clock_shim.c', '-ldl'], check=True)
    return library


class Bench:
    """Three controllers on small disks of their own, with clocks of their own, and the clients."""

    def __init__(self, make_bed, seed, stale=False):
        missing = cluster_module.missing_programs()
        if missing:
            pytest.skip(f'not built: {", ".join(missing)}')
        self.bed = make_bed(3)
        self.clocks = self._clocks()
        self.cluster = cluster_module.Cluster(self.bed, controllers=3, agents=0)
        self.disks = {controller: Disk(controller) for controller in self.cluster.controllers}
        self.cluster.start()
        self.chance = random.Random(seed)
        self.clients = Clients(self.cluster, seed, stale=stale)
        self.begin = time.monotonic()

    def _clocks(self):
        shim = clock_shim(self.bed)
        if shim:
            self.bed.environment.update({'LD_PRELOAD': str(shim), 'DROVER_CLOCK_FILE': '/srv/clock'})
        return shim is not None

    def say(self, what):
        print(f'{time.monotonic() - self.begin:5.1f} s, {self.clients.answered()} answered: {what}')

    def go_on(self, what, calls=GO_ON_CALLS):
        before = self.clients.answered()
        wait_until(lambda: self.clients.answered() >= before + calls, GO_ON_S, f'calls are answered again after: {what}')
        self.say(what)

    def last(self, seconds):
        """The fault lasts so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.clients.fail_if_failed()
            time.sleep(0.05)

    # ---- faults; each ends what it began

    def victim(self):
        """The leader mostly."""
        with_leader = self.chance.random() < 0.7
        return self.cluster.leader() if with_leader else self.chance.choice(self.cluster.controllers)

    def kill(self):
        count = self.chance.choice((1, 1, 1, 2, 3))
        victims = {self.victim(), *self.chance.sample(self.cluster.controllers, count - 1)}
        for controller in victims:
            controller.program.kill9()
        for controller in victims:
            controller.program.restart()
        self.go_on(f'killed {", ".join(c.name for c in victims)}')

    def stop(self):
        controller = self.victim()
        controller.program.freeze()
        self.last(self.chance.uniform(0.5, 2))
        controller.program.thaw()
        self.go_on(f'{controller.name} stood still')

    def cut_off(self):
        controller = self.victim()
        self.bed.isolate(controller.host.number)    # clients still reach it
        self.last(self.chance.uniform(0.8, 2))
        self.bed.heal()
        self.go_on(f'{controller.name} was cut off')

    def oneway(self):
        controller = self.victim()
        for other in self.cluster.controllers:
            if other is not controller:
                self.bed.oneway(other.host.number, controller.host.number)
        self.last(self.chance.uniform(0.8, 2))
        self.bed.heal()
        self.go_on(f'{controller.name} was deaf')

    def fill_disk(self):
        controller = self.victim()
        self.disks[controller].fill()
        self.last(self.chance.uniform(0.3, 1))
        self.go_on(f'the disk of {controller.name} is full')
        self.disks[controller].free()
        self.go_on('it has room again')

    def jump(self):
        """An hour ahead, and four minutes back: certificates are good from five minutes before they were made."""
        if not self.clocks:
            return
        controller, seconds = self.victim(), self.chance.choice((3600, -240))
        clock = controller.host.directory / 'clock'
        clock.write_text(str(seconds))
        self.last(self.chance.uniform(0.3, 1))
        self.go_on(f'the clock of {controller.name} is off by {seconds} s')
        clock.write_text('0')
        self.go_on('it is right again')

    def finish(self):
        self.clients.end()
        self.say('the clients have ended')
        return self.clients.verdict()


def test_linearizable_under_faults(make_bed):
    """One of each."""
    bench = Bench(make_bed, int(os.environ.get('SEED', '1')))
    bench.clients.start()
    bench.go_on('all is well')
    for fault in (bench.kill, bench.cut_off, bench.stop, bench.jump, bench.oneway, bench.fill_disk):
        fault()
    assert bench.finish() > 100


def test_a_stale_read_is_found(make_bed):
    """Reads that may be stale are asked of a follower that is cut off: the checker must find them, or it shows nothing."""
    bench = Bench(make_bed, 1, stale=True)
    leader = bench.cluster.leader()
    follower = next(c for c in bench.cluster.controllers if c is not leader)
    for n, client in enumerate(bench.clients.clients):
        client.fixed, client.reads_only = (follower, True) if n < 2 else (leader, False)
    bench.clients.start()
    bench.go_on('all is well')
    bench.bed.isolate(follower.host.number)
    bench.go_on(f'{follower.name} is cut off', 200)
    bench.clients.end()
    found, _ = bench.clients.violations()
    assert found
    print(found[0][1])


@pytest.mark.slow
def test_an_old_leader_that_wakes_answers_nothing_stale(make_bed):
    """Reads wait at the leader while it stands still and another one has led and written: what it holds is not what it may answer. Once it
    goes on it is asked by many at once, before it can have heard of anything: each answer must be the new value, or none."""
    cluster = cluster_module.Cluster(make_bed(3), controllers=3, agents=0).start()
    status, _, body = cluster.api('POST', '/v1/flavors', {'name': 'register', 'vcpus': 1, 'memory_bytes': 16 << 20, 'labels': {'v': '0'}})
    assert status == 201, body
    for number in range(1, OLD_LEADERS + 1):
        old = cluster.leader()
        others = [controller for controller in cluster.controllers if controller is not old]
        readers = [cluster.connection(old, timeout_s=30) for _ in range(READERS)]
        for reader in readers:      # their handshakes are over
            reader.request('GET', '/v1/flavors/register')
            assert json.loads(reader.getresponse().read())['labels']['v'] == str(number - 1)
        old.program.freeze()

        def written():
            try:
                return cluster.api('PATCH', '/v1/flavors/register', {'labels': {'v': str(number)}}, to=others[0])[0] == 200
            except OSError:
                return False
        wait_until(written, 60, 'another one leads')
        for reader in readers:
            reader.request('GET', '/v1/flavors/register')
        old.program.thaw()
        answers = []
        for reader in readers:
            try:
                answer = reader.getresponse()
                text = answer.read()
                answers.append(json.loads(text)['labels']['v'] if answer.status == 200 else answer.status)
            except (OSError, http.client.HTTPException) as error:
                answers.append(type(error).__name__)
            reader.close()
        print(f'{old.name}: {answers}')
        assert str(number - 1) not in answers, answers
        wait_until(lambda: all(cluster.ready(controller) for controller in cluster.controllers), 60, 'all are ready')


@pytest.mark.slow
def test_linearizable_for_long(make_bed):
    """ROUNDS faults in any order."""
    seed = int(os.environ.get('DROVER_SEED', str(int(time.time()))))
    bench = Bench(make_bed, seed)
    bench.clients.start()
    faults = (bench.kill, bench.kill, bench.cut_off, bench.stop, bench.jump, bench.oneway, bench.fill_disk)
    for _ in range(int(os.environ.get('ROUNDS', '100'))):
        bench.chance.choice(faults)()
        for controller in bench.cluster.controllers:
            if not controller.program.alive:
                raise BedError(f'{controller.name} ended with status {controller.program.status}')
    bench.finish()
