"""Full disks under load: of the leader, of a follower, of all; then there is room again.

Each controller's data directory is a tmpfs of its own, mounted in the namespace of its host, filled with a ballast
file while writers create, repeat and delete flavors. Promised, and checked:

  - no controller ends (one that gave up would be started again by its supervisor, as run() does here, and is counted)
  - a write that was answered 2xx is there at the end, under the id that was answered
  - a refusal is problem+json, 503 or 507, says what is wrong, and changed nothing that was acknowledged before
  - with one full disk of three writes go on; with all full they are refused in words; with room again they go on by
    themselves
  - disks that were filled once do not stop the controllers for long: they find room in their own logs
  - at the end all controllers hold the same bytes at the same index
"""
import http.client
import json
import os
import random
import threading
import time
import uuid

import pytest

import cluster as cluster_module
from bed import PATIENCE, wait_until
from small_disk import Disk

ANSWER_S = 40           # a write must be answered 2xx within this of there being room
WRITERS = FILLERS = 2
KEPT_MAX = 40           # flavors that a writer keeps, for the state must stay small
# A change whose command is 16 KiB (each '\\' is written twice): the log grows fast, the state does not
LARGE = json.dumps({'labels': {f'label{n:02}': '\\' * 255 for n in range(32)}})
REFUSALS = (502, 503, 504, 507)


class Writer(threading.Thread):
    """Creates flavors, each until it is acknowledged; deletes its older ones; remembers what the answers were."""

    def __init__(self, cluster, number, seed):
        super().__init__(daemon=True)
        self.cluster, self.number, self.random = cluster, number, random.Random(seed)
        self.kept = {}                  # name -> id, acknowledged
        self.acknowledged = self.deleted = 0
        self.last_acknowledged = 0.0    # time.monotonic()
        self.refused = {}               # (status, code) -> how often
        self.words = set()              # details of 507
        self.unanswered = 0
        self.error = None
        self.connection = None
        self.stop = threading.Event()

    def attempt(self, method, path, body, headers):
        """(status, decoded body), or None where there was no answer."""
        try:
            if self.connection is None:
                self.connection = self.cluster.connection(self.random.choice(self.cluster.controllers), timeout_s=10)
            self.connection.request(method, path, body, headers)
            answer = self.connection.getresponse()
            text = answer.read()
            kind = answer.getheader('Content-Type', '')
        except (OSError, http.client.HTTPException):
            self.connection = None
            self.unanswered += 1
            return None
        decoded = json.loads(text) if text else None
        if answer.status >= 400:
            assert 'application/problem+json' in kind, f'{method} {path}: {answer.status} {kind}'
            assert decoded['code'] and len(decoded['detail']) > 10, decoded
        return answer.status, decoded

    def insist(self, method, path, body=None, key=None):
        """Repeat until it is neither refused for want of space or leader nor left without answer. None: stopped."""
        headers = {'Content-Type': 'application/json'} if body else {}
        if key:
            headers['Idempotency-Key'] = key
        while True:
            got = self.attempt(method, path, body, headers)
            if got and got[0] not in REFUSALS:
                return got
            if got:
                reason = (got[0], got[1]['code'])
                self.refused[reason] = self.refused.get(reason, 0) + 1
                if got[0] == 507:
                    self.words.add(got[1]['detail'])
                if got[0] in (503, 507) and self.random.random() < 0.3:
                    self.connection = None      # another controller
            if self.stop.is_set():
                return None
            time.sleep(0.02)

    def run(self):
        count = 0
        try:
            while not self.stop.is_set():
                name, key = f'w{self.number}-{count}', str(uuid.uuid4())
                count += 1
                body = json.dumps({'name': name, 'vcpus': 1, 'memory_bytes': 16777216})
                for _ in range(2 if self.random.random() < 0.1 else 1):     # sometimes once more under the same key
                    got = self.insist('POST', '/v1/flavors', body, key)
                    if got is None:
                        return
                    assert got[0] in (200, 201), f'{name}: {got}'
                    known = self.kept.setdefault(name, got[1]['id'])
                    assert known == got[1]['id'], f'{name}: key {key} made {known} and {got[1]["id"]}'
                self.acknowledged += 1
                self.last_acknowledged = time.monotonic()
                if len(self.kept) > KEPT_MAX:
                    self.retire()
        except Exception as error:      # told by Load.check: a thread's own end would pass unseen
            self.error = error

    def retire(self):
        for name, identity in list(self.kept.items())[:KEPT_MAX // 2]:
            got = self.insist('GET', f'/v1/flavors/{name}')
            if got is None:
                return
            assert got[0] == 200 and got[1]['id'] == identity, f'{name} was acknowledged as {identity}, now: {got}'
            del self.kept[name]         # an attempt that is not answered may remove it all the same
            got = self.insist('DELETE', f'/v1/flavors/{name}')
            if got is None:
                return
            assert got[0] in (204, 404), f'{name}: {got}'
            self.deleted += 1


class Filler(Writer):
    """Changes one flavor over and over: bytes for the log."""

    def run(self):
        try:
            got = self.insist('POST', '/v1/flavors', json.dumps({'name': f'f{self.number}', 'vcpus': 1, 'memory_bytes': 16777216}), str(uuid.uuid4()))
            assert got is None or got[0] == 201, got
            while not self.stop.is_set():
                got = self.insist('PATCH', f'/v1/flavors/f{self.number}', LARGE)
                assert got is None or got[0] == 200, got
        except Exception as error:
            self.error = error


class Load:
    """The writers, and the supervisor of the controllers."""

    def __init__(self, cluster, seed):
        self.cluster = cluster
        self.writers = [Writer(cluster, n, seed * 100 + n) for n in range(WRITERS)]
        self.fillers = [Filler(cluster, n, seed * 100 + 50 + n) for n in range(FILLERS)]
        self.all = self.writers + self.fillers
        self.restarts = 0
        self.start = time.monotonic()
        for writer in self.all:
            writer.start()

    def check(self):
        for writer in self.all:
            if writer.error:
                raise writer.error
        for controller in self.cluster.controllers:
            if not controller.program.alive:
                self.restarts += 1
                print(f'{controller.name} ended with status {controller.program.status}')
                controller.program.restart()

    def say(self, what):
        print(f'{time.monotonic() - self.start:5.1f} s, {self.acknowledged()} acknowledged: {what}')

    def acknowledged(self):
        return sum(writer.acknowledged for writer in self.writers)

    def refused(self, status):
        return sum(count for writer in self.all for (got, _), count in writer.refused.items() if got == status)

    def wait_more(self, count, what):
        """Until @count more writes of each writer's are acknowledged."""
        before = [writer.acknowledged for writer in self.writers]

        def more():
            self.check()
            return all(writer.acknowledged >= b + count for writer, b in zip(self.writers, before))
        wait_until(more, ANSWER_S, what)

    def go_on_until(self, condition, timeout_s, what):
        def done():
            self.check()
            return condition()
        wait_until(done, timeout_s, what)

    def end(self):
        for writer in self.all:
            writer.stop.set()
        for writer in self.all:
            writer.join(60 * PATIENCE)
            assert not writer.is_alive(), 'a writer hangs'
        self.check()


def read_all(cluster, controller):
    """(index, flavors as the controller holds them) read from its own state, whole; (None, []): once more."""
    found, cursor, index = [], '', None
    while True:
        status, headers, body = cluster.api('GET', f'/v1/flavors?limit=1000&consistency=stale{cursor}', to=controller, timeout_s=30)
        assert status == 200, body
        if index not in (None, headers['X-Drover-Index']):
            return None, []     # it changed meanwhile
        index = headers['X-Drover-Index']
        found += body['items'] if isinstance(body, dict) else body
        following = headers.get('X-Drover-Cursor') or (body.get('cursor') if isinstance(body, dict) else None)
        if not following:
            return index, found
        cursor = f'&cursor={following}'


def metric(cluster, controller, name):
    text = cluster.api('GET', '/metrics', to=controller)[2]
    return next(int(line.split()[-1]) for line in text.splitlines() if line.startswith(f'{name} '))


def disk_writes(cluster, controller):
    """How often its log was written since it started."""
    return metric(cluster, controller, 'drover_raft_disk_writes_total')


def wait_stuck(cluster, load, controller, disk):
    """Until the controller's log takes nothing more, though writes go on: what was prepared is used up, and what it finds in
    its own log is taken from it."""
    while True:
        disk.fill()
        before = disk_writes(cluster, controller)
        load.wait_more(10, f'writes go on with a full disk at {controller.name}')
        if disk_writes(cluster, controller) == before:
            return


def indexes(cluster):
    """Each controller's own index."""
    return [cluster.api('GET', '/v1/flavors?limit=1&consistency=stale', to=controller)[1]['X-Drover-Index']
            for controller in cluster.controllers]


def check_all_the_same(cluster, writers):
    """Every controller holds the same at the same index, and all that was acknowledged."""
    def read_level():
        """Their states and their last events, all at one index: a new leader may still have something to write down."""
        index = indexes(cluster)[0]
        states = [read_all(cluster, controller) for controller in cluster.controllers]
        events = [cluster.api('GET', f'/v1/events?after={max(int(index) - 500, 0)}', to=c, headers={'Accept': 'application/json'})[2]
                  for c in cluster.controllers]
        return (states, events) if {index} == {state[0] for state in states} == set(indexes(cluster)) else None
    states, events = wait_until(read_level, ANSWER_S, 'all controllers are level')
    for controller, state in zip(cluster.controllers[1:], states[1:]):
        assert state == states[0], f'{controller.name} differs from {cluster.controllers[0].name}'
    assert events[0] and isinstance(events[0], list), events[0]
    assert events[1:] == events[:-1], f'the controllers tell different events: {[str(e)[:300] for e in events]}'
    found = {flavor['name']: flavor['id'] for flavor in states[0][1]}
    lost = [name for writer in writers for name, identity in writer.kept.items() if found.get(name) != identity]
    assert not lost, f'{len(lost)} acknowledged writes are lost: {lost[:10]}'


def make_full_cluster(make_bed):
    missing = cluster_module.missing_programs()
    if missing:
        pytest.skip(f'not built: {", ".join(missing)}')
    bed = make_bed(3)
    cluster = cluster_module.Cluster(bed, controllers=3, agents=0)
    disks = {controller: Disk(controller) for controller in cluster.controllers}
    cluster.start()
    return cluster, disks


def restart_all(cluster):
    """What is on the disks, and not only in memory, must be whole and equal too."""
    for controller in cluster.controllers:
        controller.program.kill9()
    for controller in cluster.controllers:
        controller.program.restart()
    cluster.leader()


def finish(cluster, load):
    load.say('there is room again')
    load.end()
    load.say('the load has ended')
    restart_all(cluster)
    load.say('all were killed and started again')
    check_all_the_same(cluster, load.writers)
    load.say('all are the same')
    refused = {}
    for writer in load.all:
        for reason, count in writer.refused.items():
            refused[reason] = refused.get(reason, 0) + count
    words = set().union(*(writer.words for writer in load.all))
    print(f'{load.acknowledged()} writes acknowledged, {sum(w.deleted for w in load.writers)} removed again, '
          f'refused {refused}, {sum(w.unanswered for w in load.all)} without an answer, {load.restarts} restarts')
    for text in sorted(words):
        print(f'507: {text}')
    assert all('disk' in text and 'free some' in text for text in words), words


def test_disks_fill_up(make_bed):
    """Leader, then a follower, then all."""
    cluster, disks = make_full_cluster(make_bed)
    load = Load(cluster, int(os.environ.get('SEED', '1')))
    try:
        load.wait_more(10, 'writes')
        leader = cluster.leader()
        disks[leader].fill()
        wait_stuck(cluster, load, leader, disks[leader])
        load.say('the leader is stuck')
        disks[leader].free()
        load.wait_more(10, 'writes go on')

        leader = cluster.leader()
        follower = next(c for c in cluster.controllers if c is not leader)
        disks[follower].fill()
        wait_stuck(cluster, load, follower, disks[follower])
        load.say('a follower is stuck')
        disks[follower].free()
        load.wait_more(10, 'writes go on')

        def refused():
            for disk in disks.values():
                disk.fill()
            return load.refused(507) > 0
        load.go_on_until(refused, ANSWER_S, 'writes are refused for want of space')
        load.say('all are stuck')
        for disk in disks.values():
            disk.free()
        load.wait_more(10, 'writes go on when there is room')
    finally:
        for writer in load.all:
            writer.stop.set()
    assert load.refused(507) > 0
    finish(cluster, load)
    assert load.restarts == 0


def test_full_disks_heal_by_themselves(make_bed):
    """All disks are filled once, and stay full of what is not ours: the controllers find room in their own logs and go on."""
    cluster, disks = make_full_cluster(make_bed)
    load = Load(cluster, int(os.environ.get('SEED', '2')))
    try:
        load.go_on_until(lambda: all(metric(cluster, c, 'drover_raft_reserve_bytes') for c in disks), ANSWER_S, 'reserves are made')
        for disk in disks.values():
            disk.fill()
        load.go_on_until(lambda: all(metric(cluster, c, 'drover_raft_reserves_given_up_total') for c in disks), 3 * ANSWER_S,
                         'each controller has needed its reserve')
        load.say('all have given up their reserves')
        load.wait_more(200, 'writes go on')
    finally:
        for writer in load.all:
            writer.stop.set()
    finish(cluster, load)
    assert load.restarts == 0


@pytest.mark.slow
def test_disks_fill_up_at_random(make_bed):
    """ROUNDS times one, two or all disks fill up, in any order, with kills in between, for random times."""
    seed = int(os.environ.get('DROVER_SEED', str(int(time.time()))))
    print(f'seed {seed}')
    chance = random.Random(seed)
    cluster, disks = make_full_cluster(make_bed)
    load = Load(cluster, seed)
    try:
        for number in range(int(os.environ.get('ROUNDS', '20'))):
            load.wait_more(5, 'writes')
            full = chance.sample(cluster.controllers, chance.choice((1, 1, 2, 3)))
            for controller in full:
                disks[controller].fill()
            end = time.monotonic() + chance.uniform(0.5, 12)
            killed = chance.sample(cluster.controllers, chance.choice((0, 0, 1, 3)))
            load.go_on_until(lambda: time.monotonic() > end, ANSWER_S, 'the time is over')
            for controller in killed:
                controller.program.kill9()
                controller.program.restart()    # on a full disk, perhaps
            if len(full) == 1 and not killed:
                load.wait_more(5, 'writes go on with one full disk')
            end = time.monotonic() + chance.uniform(0.2, 2)
            load.go_on_until(lambda: time.monotonic() > end, ANSWER_S, 'the time is over')
            for controller in chance.sample(full, len(full)):
                disks[controller].free()
            load.say(f'round {number}: full {[c.name for c in full]}, killed {[c.name for c in killed]}')
        load.wait_more(5, 'writes go on when there is room')
    finally:
        for writer in load.all:
            writer.stop.set()
    finish(cluster, load)
