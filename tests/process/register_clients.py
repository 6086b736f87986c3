"""Clients that use flavors as registers, through the REST API, and write down what they asked and what was answered.

A flavor's name is the register, its label `v` the value, and each value is written once. What was written by an update
with If-Match is expressed in values, not in revisions: whoever names a revision has seen the value under it.

    clients = Clients(cluster, seed, count=6)
    ...                                     # faults
    clients.end()
    clients.verdict()                       # AssertionError with the history that no order explains
"""
import http.client
import json
import random
import threading
import time
import urllib.parse
import uuid

from bed import PATIENCE
from linearize import NEVER, Call, Undecided, check

LABEL = 'v'
REGISTERS = 4           # in use at a time
CALLS_EACH_MAX = 120    # then a register is left alone and a new one taken: short histories are quick to check
ANSWER_S = 3            # then a call's result is not known
PAUSE_S = 0.02
REFUSED = {'create': {409: 'exists'}, 'write': {404: 'absent'}, 'delete': {404: 'absent'},
           'swap': {404: 'absent', 412: 'differs'}, 'remove': {404: 'absent', 412: 'differs'}}


class Registers:
    """The names in use, and the history of each. Any thread."""

    def __init__(self):
        self.lock = threading.Lock()
        self.histories = {}         # name -> [Call]
        self.begun = {}             # name -> calls begun
        self.values = {}            # (name, revision) -> value
        self.torn = []              # two values under one revision
        self.made = 0
        self.current = [self.fresh() for _ in range(REGISTERS)]

    def fresh(self):
        name = f'register{self.made}'
        self.made += 1
        self.histories[name], self.begun[name] = [], 0
        return name

    def choose(self, chance):
        with self.lock:
            place = chance.randrange(REGISTERS)
            name = self.current[place]
            self.begun[name] += 1
            if self.begun[name] >= CALLS_EACH_MAX:
                self.current[place] = self.fresh()
            return name

    def learn(self, name, flavor):
        """What value the flavor of this answer has; None: none, it was made without a label."""
        value = flavor.get('labels', {}).get(LABEL)
        with self.lock:
            known = self.values.setdefault((name, flavor['revision']), value)
            if known != value:
                self.torn.append(f'{name}: revision {flavor["revision"]} is {known} and {value}')
        return value

    def note(self, name, call):
        with self.lock:
            self.histories[name].append(call)


class Client(threading.Thread):
    def __init__(self, cluster, registers, number, seed, stale=False):
        super().__init__(daemon=True)
        self.cluster, self.registers, self.number = cluster, registers, number
        self.chance = random.Random(seed)
        self.stale = stale              # read what the controller that is asked happens to hold: to see it found
        self.fixed = None               # ask this controller only
        self.reads_only = False
        self.connection = None
        self.stop = threading.Event()
        self.error = None
        self.count = self.answered = self.unanswered = 0
        self.seen = {}                  # name -> (revision, value) as this client knows it

    # ---- one request

    def request(self, method, path, body=None, headers=None):
        """(status, decoded) or None: no answer, or one that says nothing about whether it was done."""
        headers = dict(headers or {})
        if body is not None:
            headers['Content-Type'] = 'application/json'
        try:
            if self.connection is None or self.chance.random() < 0.02:
                self.close()
                asked = self.fixed or self.chance.choice(self.cluster.controllers)
                self.connection = self.cluster.connection(asked, timeout_s=ANSWER_S)
            self.connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = self.connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            self.close()
            return None
        if answer.status >= 500:
            if self.chance.random() < 0.5:
                self.close()            # another controller may do better
            return None
        return answer.status, json.loads(text) if text else None

    def close(self):
        if self.connection is not None:
            self.connection.close()
        self.connection = None

    # ---- calls; each returns (argument, result) or (argument, NEVER)

    def result(self, name, kind, got):
        if got is None:
            return NEVER
        status, body = got
        if status in (200, 201, 204):
            if body:
                self.shown = self.registers.learn(name, body)
                self.seen[name] = (body['revision'], self.shown)
            return 'ok'
        if status in REFUSED[kind]:
            return REFUSED[kind][status]
        raise AssertionError(f'{name}: {kind} was answered {status} {body}')

    def create(self, name, value):
        """Once more under the same key where the first attempt was not answered: both are one call. But a refusal uses no key up: the
        first attempt may still be under way, and be carried out when the second one has been refused."""
        body = {'name': name, 'vcpus': 1, 'memory_bytes': 16 << 20, 'labels': {LABEL: value}}
        key = {'Idempotency-Key': str(uuid.uuid4())}
        begin = time.monotonic()
        got = self.request('POST', '/v1/flavors', body, key)
        if got is not None:
            return value, self.result(name, 'create', got)
        got = self.request('POST', '/v1/flavors', body, key)
        result = self.result(name, 'create', got)
        if result == 'exists':
            self.registers.note(name, Call(f'c{self.number}', 'create', value, begin))
        return value, result

    def write(self, name, value):
        got = self.request('PATCH', f'/v1/flavors/{name}', {'labels': {LABEL: value}})
        return value, self.result(name, 'write', got)

    def swap(self, name, value):
        revision, expected = self.seen[name]
        got = self.request('PATCH', f'/v1/flavors/{name}', {'labels': {LABEL: value}}, {'If-Match': f'"{revision}"'})
        return (expected, value), self.result(name, 'swap', got)

    def delete(self, name, _):
        return None, self.result(name, 'delete', self.request('DELETE', f'/v1/flavors/{name}'))

    def remove(self, name, _):
        revision, expected = self.seen[name]
        got = self.request('DELETE', f'/v1/flavors/{name}', None, {'If-Match': f'"{revision}"'})
        return expected, self.result(name, 'remove', got)

    def read(self, name, _):
        way = self.chance.random()
        stale = 'consistency=stale' if self.stale else ''
        if way < 0.7:
            got = self.request('GET', f'/v1/flavors/{name}' + (f'?{stale}' if stale else ''))
            found = None if got is None or got[0] == 404 else got[1]
        else:
            query = urllib.parse.quote(f'name={name}')
            got = self.request('GET', f'/v1/flavors?filter={query}' + (f'&{stale}' if stale else ''))
            found = None if got is None or got[0] != 200 or not got[1] else got[1][0]
        if got is None:
            return None, NEVER
        if got[0] not in (200, 404):
            raise AssertionError(f'{name}: read was answered {got}')
        if found is None:
            self.seen.pop(name, None)
            return None, None
        value = self.registers.learn(name, found)
        self.seen[name] = (found['revision'], value)
        return None, value

    def kind(self, name):
        known = name in self.seen
        if self.reads_only:
            return 'read'
        return self.chance.choices(('read', 'create', 'write', 'delete', 'swap' if known else 'read', 'remove' if known else 'read'),
                                   (10, 3 if not known else 1, 2, 1, 4, 1))[0]

    def once(self):
        name = self.registers.choose(self.chance)
        kind, value = self.kind(name), f'c{self.number}-{self.count}'
        self.count += 1
        self.shown = None       # in the answer to a write
        invoked = time.monotonic()
        argument, result = getattr(self, kind)(name, value)
        returned = time.monotonic()
        if result == NEVER:
            self.unanswered += 1
            if kind != 'read':          # a read without an answer says nothing
                self.registers.note(name, Call(f'c{self.number}', kind, argument, invoked))
                self.seen.pop(name, None)
            return
        self.answered += 1
        self.registers.note(name, Call(f'c{self.number}', kind, argument, invoked, returned, result))
        if self.shown is not None and self.shown != value:
            # the answer to a write shows the object as it is by then, with what others have written since: a read of its own
            self.registers.note(name, Call(f'c{self.number}', 'read', None, invoked, returned, self.shown))

    def run(self):
        try:
            while not self.stop.is_set():
                self.once()
                time.sleep(self.chance.uniform(0, 2 * PAUSE_S))
        except Exception as error:      # told by Clients: a thread's own end would pass unseen
            self.error = error
        self.close()


class Clients:
    def __init__(self, cluster, seed, count=6, stale=False):
        print(f'seed {seed}')
        self.registers = Registers()
        self.clients = [Client(cluster, self.registers, n, seed * 1000 + n, stale) for n in range(count)]

    def start(self):
        for client in self.clients:
            client.start()
        return self

    def fail_if_failed(self):
        for client in self.clients:
            if client.error:
                raise client.error

    def answered(self):
        self.fail_if_failed()
        return sum(client.answered for client in self.clients)

    def end(self):
        for client in self.clients:
            client.stop.set()
        for client in self.clients:
            client.join(60 * PATIENCE)
            assert not client.is_alive(), 'a client hangs'
        self.fail_if_failed()

    def violations(self):
        """[(register, Violation)], and how many histories were too much to decide."""
        found, undecided = [], 0
        for name, calls in self.registers.histories.items():
            try:
                violation = check(calls)
            except Undecided as error:
                undecided += 1
                print(f'{name}: not decided: {error}')
                continue
            if violation:
                found.append((name, violation))
        return found, undecided

    def verdict(self):
        """All of it linearizable, or an AssertionError that shows where it is not."""
        start = time.monotonic()
        found, undecided = self.violations()
        calls = [call for history in self.registers.histories.values() for call in history]
        open_calls = sum(1 for call in calls if call.returned == NEVER)
        print(f'{len(calls)} calls on {len(self.registers.histories)} registers, {open_calls} writes without an answer, '
              f'{undecided} histories not decided, checked in {time.monotonic() - start:.1f} s')
        assert not self.registers.torn, self.registers.torn[:5]
        for name, _ in found:
            print(f'every call on {name}:')
            for call in sorted(self.registers.histories[name], key=lambda call: call.invoked):
                print(f'    {call}')
        assert not found, f'{len(found)} registers are not linearizable; {found[0][0]}:\n{found[0][1]}'
        assert undecided * 2 <= len(self.registers.histories), 'too few histories could be decided: this run shows little'
        return len(calls)
