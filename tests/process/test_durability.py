"""Acknowledged writes survive kill -9 of any controllers, and a retried Idempotency-Key makes one object.

Writers create flavors against whichever controller answers, each under a key of its own, and repeat a request until
it is answered 2xx. A killer ends one, two or all controllers with SIGKILL at random instants and starts them again.
At the end every acknowledged flavor is there with the id that was acknowledged, and no key has made two.
"""
import http.client
import json
import os
import random
import threading
import time
import uuid

import pytest

from bed import PATIENCE, wait_until

WRITERS = 4
KEPT_MAX = 1500     # flavors that a writer keeps before it checks and removes the oldest: a table holds 10,000
ANSWER_S = 60 * PATIENCE     # a write must be answered within this, whatever is killed meanwhile


class Writer(threading.Thread):
    def __init__(self, cluster, number, seed):
        super().__init__(daemon=True)
        self.cluster, self.number, self.random = cluster, number, random.Random(seed)
        self.acknowledged = {}      # name -> id
        self.checked = 0            # acknowledged ones that were found again and then removed
        self.attempts = self.unanswered = 0
        self.error = None
        self.connection = None
        self.stop = threading.Event()

    def once(self, connection, name, key):
        """One attempt: the answer's id, or None."""
        body = '{"name":"%s","vcpus":1,"memory_bytes":16777216}' % name
        connection.request('POST', '/v1/flavors', body, {'Content-Type': 'application/json', 'Idempotency-Key': key})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status in (200, 201):
            return json.loads(text)['id']
        if answer.status in (502, 503, 504):
            return None
        raise AssertionError(f'{name}: {answer.status} {text[:400]}')

    def retire(self):
        """Find the older half again, then remove it."""
        for name, identity in list(self.acknowledged.items())[:KEPT_MAX // 2]:
            status, body = self.until_answered('GET', f'/v1/flavors/{name}')
            assert status == 200 and body['id'] == identity, f'{name} was acknowledged as {identity}, but now: {status} {body}'
            status, body = self.until_answered('DELETE', f'/v1/flavors/{name}')
            assert status in (204, 404), f'{name}: {status} {body}'    # 404: an attempt without an answer removed it
            del self.acknowledged[name]
            self.checked += 1

    def until_answered(self, method, path):
        end = time.monotonic() + ANSWER_S
        while time.monotonic() < end:
            try:
                if self.connection is None:
                    self.connection = self.cluster.connection(self.random.choice(self.cluster.controllers), timeout_s=5)
                self.connection.request(method, path)
                answer = self.connection.getresponse()
                text = answer.read()
                if answer.status not in (502, 503, 504):
                    return answer.status, json.loads(text) if text else None
            except (OSError, http.client.HTTPException):
                self.connection = None
            time.sleep(0.02)
        raise AssertionError(f'{method} {path} was not answered in {ANSWER_S} s')

    def run(self):
        count = 0
        try:
            while not self.stop.is_set():
                name, key = f'w{self.number}-{count}', str(uuid.uuid4())
                count += 1
                end = time.monotonic() + ANSWER_S
                repeat = self.random.random() < 0.1
                while True:
                    self.attempts += 1
                    try:
                        if self.connection is None:
                            self.connection = self.cluster.connection(self.random.choice(self.cluster.controllers), timeout_s=5)
                        got = self.once(self.connection, name, key)
                    except (OSError, http.client.HTTPException):
                        got, self.connection = None, None
                    if got is None:
                        self.unanswered += 1
                        assert time.monotonic() < end, f'{name} was not answered in {ANSWER_S} s'
                        time.sleep(0.02)
                        continue
                    known = self.acknowledged.setdefault(name, got)
                    assert known == got, f'{name}: key {key} made {known} and {got}'
                    if not repeat:
                        break
                    repeat = False
                if len(self.acknowledged) > KEPT_MAX:
                    self.retire()
        except AssertionError as error:
            self.error = error


def progress(writers):
    return sum(w.attempts - w.unanswered + w.checked for w in writers)


def restart(controller):
    if not controller.program.alive:
        controller.program.restart()


def run_rounds(cluster, rounds, seed):
    print(f'seed {seed}')
    chance = random.Random(seed)
    writers = [Writer(cluster, n, seed * 100 + n) for n in range(WRITERS)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(rounds):
            time.sleep(chance.uniform(0.05, 0.8))   # the instant of the kill is what is random here
            victims = chance.sample(cluster.controllers, chance.choice((1, 1, 2, 3)))
            for victim in victims:
                if victim.program.alive:
                    victim.program.kill9()
            for victim in victims:
                restart(victim)
            if any(writer.error for writer in writers):
                break
            if chance.random() < 0.5:
                before = progress(writers)
                wait_until(lambda: progress(writers) > before + WRITERS or any(w.error for w in writers), ANSWER_S / PATIENCE,
                           'writes are acknowledged again')
    finally:
        for writer in writers:
            writer.stop.set()
        for writer in writers:
            writer.join(ANSWER_S + 10)
    for writer in writers:
        if writer.error:
            raise writer.error
    found = {}
    cursor = ''
    while True:
        status, headers, body = cluster.api('GET', f'/v1/flavors?limit=1000{cursor}', timeout_s=30)
        assert status == 200, body
        items = body['items'] if isinstance(body, dict) else body
        for flavor in items:
            assert flavor['name'] not in found
            found[flavor['name']] = flavor['id']
        following = body.get('cursor') if isinstance(body, dict) else headers.get('X-Drover-Cursor')
        if not following:
            break
        cursor = f'&cursor={following}'
    acknowledged = {}
    for writer in writers:
        acknowledged.update(writer.acknowledged)
    lost = [name for name, identity in acknowledged.items() if found.get(name) != identity]
    print(f'{rounds} rounds, {len(acknowledged) + sum(w.checked for w in writers)} acknowledged, {sum(w.attempts for w in writers)} attempts, '
          f'{sum(w.unanswered for w in writers)} without an answer, {len(lost)} lost')
    assert acknowledged, 'nothing was written: this run shows nothing'
    assert not lost, lost[:10]


def test_acknowledged_writes_survive_kills(make_cluster):
    run_rounds(make_cluster(controllers=3, agents=0), 15, int(os.environ.get('SEED', '1')))


@pytest.mark.slow
def test_acknowledged_writes_survive_1000_rounds(make_cluster):
    run_rounds(make_cluster(controllers=3, agents=0), int(os.environ.get('ROUNDS', '1000')), int(os.environ.get('DROVER_SEED', str(int(time.time())))))


def kill_leader_and_measure(cluster, rounds):
    """Seconds from the kill of the leader to the next acknowledged write through a surviving controller."""
    times = []
    for _ in range(rounds):
        leader = cluster.leader()
        survivor = next(c for c in cluster.controllers if c is not leader)
        leader.program.kill9()
        start = time.monotonic()
        name, key = f'k{uuid.uuid4().hex[:12]}', str(uuid.uuid4())
        while True:
            try:
                status, _, body = cluster.api('POST', '/v1/flavors', {'name': name, 'vcpus': 1, 'memory_bytes': 16777216},
                                              headers={'Idempotency-Key': key}, to=survivor, timeout_s=5)
                if status in (200, 201):
                    break
                assert status in (502, 503, 504), body
            except (OSError, http.client.HTTPException):
                pass
            assert time.monotonic() - start < ANSWER_S, f'no write in {ANSWER_S} s after the leader was killed'
            time.sleep(0.005)
        times.append(time.monotonic() - start)
        restart(leader)
        wait_until(lambda: cluster.ready(leader), 30, 'the killed controller is back')
    times.sort()
    print(f'{rounds} leader kills: writes again after p50 {times[len(times) // 2]:.2f} s, p99 {times[int(len(times) * 0.99) - 1 if len(times) > 1 else 0]:.2f} s, max {times[-1]:.2f} s')
    return times


def test_leader_killed_writes_again(make_cluster):
    times = kill_leader_and_measure(make_cluster(controllers=3, agents=0), 5)
    assert times[len(times) // 2] <= 2.0 * PATIENCE, times


@pytest.mark.slow
def test_leader_killed_100_times(make_cluster):
    times = kill_leader_and_measure(make_cluster(controllers=3, agents=0), 100)
    assert times[98] <= 2.0, times[-5:]
