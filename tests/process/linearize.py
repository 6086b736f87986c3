"""Is a history of calls on one register linearizable? A checker of our own, and the register's rules.

    calls = [Call('w1', 'create', 'a', invoked=1, returned=2, result='ok'),
             Call('r1', 'read', None, invoked=3, returned=4, result='a')]
    check(calls)                # None: some order explains it; else a Violation, with the call that no order explains

A register is absent or holds a value; every value is written by one call only. Calls and the results that they may have:

    create V          ok, 'exists'
    write V           ok, 'absent'
    swap (E, V)       ok, 'absent', 'differs'     V if the register holds E: an update with If-Match
    delete            ok, 'absent'
    remove E          ok, 'absent', 'differs'     a delete with If-Match
    read              the value, or None: absent

A call without an answer has @returned = NEVER: it happened at some time after it was invoked, or it did not.

The search (Wing and Gong 1993, with Lowe's way of 2017 of doing it just in time) goes along the history once and
keeps every *configuration*: the register's state, and which of the calls under way have taken effect already. When a
call returns, each configuration is continued by effects of calls under way, in every order, until that call has
happened; configurations that cannot get there are dropped, equal ones are kept once (the memoisation). None left: no
order explains what was answered. A configuration in which more calls *without an answer* have happened than in another
with the same state is dropped as well: the other can still do whatever it can. That keeps their number small although
such a call stays under way for ever. Beyond CONFIGURATIONS_MAX the search gives up: Undecided.
"""
import collections
import dataclasses
import math

NEVER = math.inf
CONFIGURATIONS_MAX = 200_000


class Undecided(Exception):
    """Too many configurations; the history is neither shown right nor wrong."""


@dataclasses.dataclass(frozen=True)
class Call:
    who: str
    kind: str               # create, write, swap, delete, remove, read
    argument: object
    invoked: float
    returned: float = NEVER
    result: object = None

    def __str__(self):
        words = f'{self.who}: {self.kind}' + (f' {self.argument}' if self.argument is not None else '')
        end = f'{self.returned:.4f}' if self.returned != NEVER else 'no answer'
        return f'[{self.invoked:.4f}, {end}] {words}' + (f' -> {self.result}' if self.returned != NEVER else '')


@dataclasses.dataclass
class Violation:
    call: Call              # when it returned, no order was left
    states: list            # what the register may have held right before
    near: list              # the calls around it, for the reader

    def __str__(self):
        lines = [f'no order of the calls explains: {self.call}',
                 f'right before, the register could hold: {", ".join(str(s) for s in self.states)}']
        return '\n'.join(lines + [('  > ' if call is self.call else '    ') + str(call) for call in self.near])


def effect(state, call):
    """(the state after @call has taken effect, what it answers); @state None: absent."""
    kind, argument = call.kind, call.argument
    if kind == 'read':
        return state, state
    if kind == 'create':
        return (argument, 'ok') if state is None else (state, 'exists')
    if state is None:
        return None, 'absent'
    if kind == 'write':
        return argument, 'ok'
    if kind == 'delete':
        return None, 'ok'
    expected, value = argument if kind == 'swap' else (argument, None)
    if kind not in ('swap', 'remove'):
        raise ValueError(kind)
    return (value, 'ok') if state == expected else (state, 'differs')


class Search:
    def __init__(self, calls, limit):
        self.limit = limit
        self.calls = calls
        self.open = set()       # numbers of calls under way
        # (state, answered calls that have taken effect, unanswered ones that have), each a frozenset of numbers
        self.configurations = [(None, frozenset(), frozenset())]

    def successors(self, configuration):
        state, done, ghosts = configuration
        for number in self.open - done - ghosts:
            call = self.calls[number]
            after, answer = effect(state, call)
            if call.returned == NEVER:
                if after != state:      # without an effect it is as if it had not happened
                    yield after, done, ghosts | {number}
            elif answer == call.result:
                yield after, done | {number}, ghosts

    def returned(self, number):
        """Keep what can have had @number happen by now. False: nothing is left."""
        known = Fewest()
        work = collections.deque(c for c in self.configurations if known.admit(c))
        kept = Fewest()
        while work:     # in order of length, so that what has fewer ghosts comes first
            configuration = work.popleft()
            state, done, ghosts = configuration
            if number in done:
                kept.admit((state, done - {number}, ghosts))
                continue
            work.extend(following for following in self.successors(configuration) if known.admit(following))
            if known.count > self.limit:
                raise Undecided(f'{known.count} configurations at {self.calls[number]}')
        self.open.discard(number)
        if kept.count:
            self.configurations = kept.all()
        return bool(kept.count)


class Fewest:
    """Configurations, without those that another one makes superfluous: the same, but more ghosts."""

    def __init__(self):
        self.groups = {}        # (state, done) -> [ghosts]
        self.count = 0

    def admit(self, configuration):
        state, done, ghosts = configuration
        group = self.groups.setdefault((state, done), [])
        if any(other <= ghosts for other in group):
            return False
        group[:] = [other for other in group if not ghosts <= other] + [ghosts]
        self.count += 1
        return True

    def all(self):
        return [(state, done, ghosts) for (state, done), group in self.groups.items() for ghosts in group]


def check(calls, limit=CONFIGURATIONS_MAX):
    """None where some order explains the history, else a Violation. Undecided beyond @limit configurations."""
    calls = sorted(calls, key=lambda call: call.invoked)
    # at the same instant a call begins before another ends: they overlap
    steps = sorted([(call.invoked, 0, number) for number, call in enumerate(calls)] +
                   [(call.returned, 1, number) for number, call in enumerate(calls) if call.returned != NEVER])
    search = Search(calls, limit)
    for _, ends, number in steps:
        if not ends:
            search.open.add(number)
            continue
        if not search.returned(number):
            states = sorted({str(state) for state, _, _ in search.configurations})
            end = calls[number].returned
            near = [c for c in calls if c.invoked <= end and (c.returned >= calls[number].invoked or c.returned == NEVER)]
            before = [c for c in calls if c.returned < calls[number].invoked][-8:]
            return Violation(calls[number], states, before + near)
    return None
