"""Storage while everything ends at any moment: a guest writes all the time; snapshots are made, merged away and reverted to, backups are
made, forgotten, pruned, verified and restored, several of these at once; and in the middle VMM, agent, drover-backup, the whole host or
the way to the store end by SIGKILL or are cut. What ended is started again as systemd would, and then:

  - whatever the guest had flushed is there when it reads its disk again (it says what it finds at each start, tests/process/ledger.py)
  - a snapshot or backup that is listed is of one moment, and not an older one than when it was asked for; and stays so
  - each backup that is listed is the same bit for bit each time that it is read or restored, to another VM, also at once (live)
  - the store verifies, and nothing counts as damaged
  - no process of what was given up is left, and in the end no file

Power cuts in the sense that only what was synced is kept are not of this bed, whose page cache survives: they are simulated at each call
in tests/unit (power_pool.h).
"""
import collections
import contextlib
import hashlib
import http.client
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import time

import pytest

import ledger
from bed import wait_until
from test_backups import BACKUP, add_store, cluster_with, content, done, pytestmark     # noqa: F401
from test_volumes import BLOCK_BYTES, CLUSTER_BYTES, Layer

SEED = 7                # of the guest's ledger
SNAPSHOTS_MAX, BACKUPS_KEPT = 5, 4
DEEP_EVERY, OFF_EVERY = 5, 8
KINDS = ('snapshot', 'merge', 'backup', 'forget', 'prune', 'verify', 'restore')


class Image:
    """A snapshot or a backup: not before the moment @since of the ledger."""

    def __init__(self, since):
        self.since, self.numbers, self.digest = since, None, None


class Console:
    """Lines of a guest's console as they come; a life that ended leaves half a line."""

    def __init__(self, path):
        self.path, self.at, self.rest = path, 0, ''

    def lines(self):
        if not self.path.exists():
            return []
        with open(self.path, 'rb') as file:
            file.seek(self.at)
            data = file.read()
        self.at += len(data)
        *lines, self.rest = (self.rest + data.decode(errors='replace')).replace('drover-guest: hello', '\ndrover-guest: hello').split('\n')
        return lines


class Storm:
    def __init__(self, cluster, seed):
        self.cluster, self.agent, self.chance = cluster, cluster.agent(1), random.Random(seed)
        self.book, self.images = ledger.Ledger(SEED), {}
        self.counts, self.kills, self.ends, self.number = collections.Counter(), collections.Counter(), 0, 0
        self.begun, self.restored = time.monotonic(), None
        done(cluster, cluster.api('POST', '/v1/vms', {'name': 'a', 'image': 'ticker', 'vcpus': 1, 'memory_bytes': 64 << 20,
                                                      'cmdline': f'ledger={SEED} hz=50 quiet'}))
        self.vm_id = cluster.vm('a')['id']
        self.console = Console(self.directory(self.vm_id) / 'console.log')
        self.wait_guest()
        add_store(cluster, bytes_per_second=16 << 20)
        since = self.book.now()
        done(cluster, cluster.api('POST', '/v1/vms/a/backups', {'name': 'first'}))
        self.images[self.get('backups/first')['id']] = Image(since)
        done(cluster, cluster.api('POST', '/v1/vms', {'name': 'b', 'backup': 'first'}))
        self.other = Console(self.directory(cluster.vm('b')['id']) / 'console.log')

    def directory(self, vm_id):
        return self.agent.directory / 'vms' / vm_id

    def layers(self, vm='a'):
        return self.directory(self.cluster.vm(vm)['id']) / 'disks' / 'root.layers'

    def get(self, what):
        """From a controller that may have ended a moment ago."""
        def ask():
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                status, _, found = self.cluster.api('GET', f'/v1/{what}')
                return (found,) if status == 200 else None
        return wait_until(ask, 30, f'somebody says {what}')[0]

    def say(self, what):
        print(f'{time.monotonic() - self.begun:6.1f} s: {what}', flush=True)

    # ---- the guest

    def hear(self):
        for line in self.console.lines():
            self.book.hear(line)

    def vmm_pids(self, vm_id):
        found = []
        for pid in self.agent.vmm_pids():
            with contextlib.suppress(OSError):
                if vm_id.encode() in pathlib.Path(f'/proc/{pid}/cmdline').read_bytes():
                    found.append(pid)
        return found

    def wait_guest(self):
        """It runs, and goes on writing: whatever ended it is over."""
        def writes():
            self.hear()
            return self.book.lives and (len(self.book.lives), self.book.lives[-1].acked) > before
        wait_until(lambda: self.vmm_pids(self.vm_id), 60, 'the VM is started')
        self.hear()
        before = (len(self.book.lives), self.book.lives[-1].acked if self.book.lives else 0)
        wait_until(writes, 40, 'the guest writes')

    # ---- what is asked for

    def ask(self, kind, method, path, body=None):
        """The operation, or None where it is refused because of others that are under way."""
        status, _, answer = self.cluster.api(method, path, body)
        if status == 202:
            return kind, answer
        assert status in (404, 409), (kind, path, answer)
        self.counts[kind, 'refused'] += 1
        return None

    def age(self, *patterns):
        """They are of the day before yesterday: packs may go, and who is at work has not been heard of since."""
        for path in [path for pattern in patterns for path in self.cluster.store.glob(pattern)]:
            with contextlib.suppress(FileNotFoundError):
                os.utime(path, (time.time() - 2 * 86400,) * 2)

    def by_hand(self, *words):
        done_now = subprocess.run([BACKUP, words[0], '--store', self.cluster.store, *words[1:]], capture_output=True, timeout=240, check=False)
        assert done_now.returncode == 0, (words, done_now.stdout[-1000:], done_now.stderr[-3000:])
        return done_now.stdout

    def name(self, letter):
        self.number += 1
        return f'{letter}{self.number}'

    def begin(self, kind):
        snapshots, backups = ([o['id'] for o in self.get(what) if o['state'] == 'available'] for what in ('snapshots', 'backups'))
        if kind == 'snapshot' and len(snapshots) < SNAPSHOTS_MAX:
            return self.ask(kind, 'POST', '/v1/vms/a/snapshots', {'name': self.name('s')})
        if kind in ('snapshot', 'merge') and snapshots:
            return self.ask('merge', 'DELETE', f'/v1/snapshots/{self.chance.choice(snapshots)}')
        if kind == 'forget' and len(backups) > 1:
            return self.ask(kind, 'DELETE', f'/v1/backups/{self.chance.choice(backups)}')
        if kind == 'prune':
            self.age('packs/*/*', *(['active/*'] if self.chance.random() < 0.3 else []))
            return self.ask(kind, 'POST', '/v1/backup-stores/nas/prune', {'keep_last': BACKUPS_KEPT})
        if kind == 'verify':
            return self.ask(kind, 'POST', '/v1/backup-stores/nas/verify')
        if kind == 'restore' and backups:
            live, ident = self.chance.random() < 0.4, self.chance.choice(backups)
            asked = self.ask('live' if live else kind, 'POST', f'/v1/backups/{ident}/restore', {'vm': 'b', 'live': live})
            self.restored = ident if asked else self.restored
            return asked
        return self.ask('backup', 'POST', '/v1/vms/a/backups', {'name': self.name('b')})

    def wait_end(self, operation):
        def look():
            found = self.get(f"operations/{operation['id']}")
            self.hear()
            return found if found['state'] != 'running' else None
        return wait_until(look, 60, f"the end of {operation['kind']} {operation['id']}")

    # ---- what ends

    def children(self):
        """drover-backup, and the agent's processes that do its tasks."""
        found = []
        for pid in self.agent.host.pids():
            with contextlib.suppress(OSError):
                words = pathlib.Path(f'/proc/{pid}/cmdline').read_bytes().split(b'\0')
                if pathlib.Path(os.fsdecode(words[0])).name == 'drover-backup' or words[1:2] == [b'task']:
                    found.append(pid)
        return found

    def kill(self, pids):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(pids)

    def agent_ends(self):
        self.agent.program.kill9()
        self.agent.run()
        self.ends = 0
        return True

    def vmm_ends(self):
        ended = self.kill(self.agent.vmm_pids())
        self.ends += 1
        if self.ends > 2:       # or it would be started again after longer and longer
            self.agent_ends()
        return ended

    def child_ends(self):
        for _ in range(100):
            found = self.children()
            if found:
                return self.kill([self.chance.choice(found)])
            time.sleep(0.003)
        return False

    def host_ends(self):
        self.cluster.bed.host(1).power_off()
        self.cluster.boot(1)
        self.ends = 0
        wait_until(lambda: self.cluster.ready(self.cluster.controller(1)), 30, 'the controller')
        return True

    def store_goes(self):
        away = self.cluster.store.rename(self.cluster.store.with_name('away'))
        time.sleep(self.chance.random() * 0.7)
        assert not self.cluster.store.exists(), f'somebody made {list(self.cluster.store.rglob("*"))} where the store was mounted'
        away.rename(self.cluster.store)
        return True

    def store_read_only(self):
        host, where = self.agent.host, self.cluster.store
        host.run(['mount', '--bind', where, where])
        host.run(['mount', '-o', 'remount,bind,ro', where])
        time.sleep(self.chance.random() * 0.7)
        host.run(['umount', '-l', where])
        return True

    def harm(self, who=None):
        """Returns who it was; None where nobody was there."""
        who = who or self.chance.choices(('vmm', 'agent', 'child', 'host', 'store', 'read-only'), (30, 25, 25, 8, 8, 4))[0]
        does = {'vmm': self.vmm_ends, 'agent': self.agent_ends, 'child': self.child_ends, 'host': self.host_ends, 'store': self.store_goes,
                'read-only': self.store_read_only}[who]
        if not does():
            return None
        self.kills[who] += 1
        return who

    # ---- a round

    def disturbed(self, kinds, who=None, pause_s=0.6):
        since = self.book.now()
        operations = [o for o in map(self.begin, kinds) if o]
        time.sleep(self.chance.random() ** 2 * pause_s)
        who = self.harm(who)
        ended = [(kind, self.wait_end(o)) for kind, o in operations]
        self.look(since)
        for kind, o in ended:
            self.counts[kind, o['state']] += 1
            if o['state'] != 'succeeded':
                self.counts[f"  {kind} {o['state']}: {re.sub('[0-9a-f]{8}[-0-9a-f]*', 'ID', o.get('error_text', ''))[:100]}", who] += 1
        self.say(f"{who}: {', '.join(kind + ' ' + o['state'] for kind, o in ended)}")
        return {kind: o['state'] for kind, o in ended}

    def look(self, since):
        """What is new is noted. A backup whose removal was cut off may be gone, and says so until a verification has seen it; a snapshot is
        removed again."""
        for o in self.get('backups'):
            if 'damage' in o:
                assert o['damage'].startswith('its removal did not end'), o
                self.wait_end(self.ask('verify', 'POST', f"/v1/backups/{o['id']}/verify")[1])
                self.counts['removal cut off', 'gone' if 'damage' in self.get(f"backups/{o['id']}") else 'there'] += 1
                if 'damage' in self.get(f"backups/{o['id']}"):
                    assert o['id'] not in {b['id'] for b in json.loads(self.by_hand('list', '--json'))}, o
                    done(self.cluster, self.cluster.api('DELETE', f"/v1/backups/{o['id']}"))
        for o in self.get('snapshots'):
            if o['state'] == 'failed':      # whoever removed it was killed
                self.counts['merge cut off', 'done again'] += 1
                done(self.cluster, self.cluster.api('DELETE', f"/v1/snapshots/{o['id']}"))
        for what in 'snapshots', 'backups':
            for o in self.get(what):
                assert o['state'] == 'available' and 'damage' not in o, o
                self.images.setdefault(o['id'], Image(since))

    def round(self):
        kinds = self.chance.choices(KINDS, (25, 15, 30, 8, 10, 10, 15), k=self.chance.choice((1, 2, 2, 3)))
        states = self.disturbed(kinds)
        self.wait_guest()
        self.check_new()
        self.check_other(states)

    def round_off(self):
        """What is done while the guest is off; and it is put back to a snapshot."""
        done(self.cluster, self.cluster.api('POST', '/v1/vms/a/stop?force=true'))
        self.hear()
        if self.chance.random() < 0.5:
            self.disturbed(self.chance.choices(('snapshot', 'merge', 'backup'), k=2), self.chance.choice(('agent', 'child', 'host')), 0.3)
        else:
            self.revert()
        done(self.cluster, self.cluster.api('POST', '/v1/vms/a/start'))
        self.wait_guest()
        self.check_new()

    def revert(self):
        snapshots = [s for s in self.get('snapshots') if s['state'] == 'available']
        if not snapshots:
            return
        chosen = self.chance.choice(snapshots)['id']
        while True:
            status, _, operation = self.cluster.api('POST', f'/v1/snapshots/{chosen}/revert')
            assert status == 202, operation
            time.sleep(self.chance.random() * 0.15)
            who = self.harm(self.chance.choice(('agent', 'child', 'host')))
            state = self.wait_end(operation)['state']
            self.counts['revert', state] += 1
            self.say(f'{who}: revert {state}')
            if state == 'succeeded':
                break

        def found(numbers):
            assert numbers == self.images[chosen].numbers, f'put back to {chosen}, the guest finds something else'
        self.book.put_back = found

    # ---- what has to hold

    def numbers_of_snapshot(self, ident):
        """By its layers' files alone, which nobody changes any more; merges are over."""
        head, found = json.loads((self.layers() / 'root.disk').read_text()), []
        top = {s['name']: s['layer'] for s in head['snapshots']}[ident]
        known = {}
        for block in range(ledger.BLOCKS):
            name, at, data = top, block * ledger.STRIDE, bytes(BLOCK_BYTES)
            while True:
                layer = known.get(name) or known.setdefault(name, Layer(self.layers(), name))
                state = layer.state(at // CLUSTER_BYTES)
                if state == 1:
                    with layer.data.open('rb') as file:
                        file.seek(at)
                        data = file.read(BLOCK_BYTES)
                if state != 0 or layer.kind != 'layer':
                    break
                name = layer.parent
            found.append(data)
        return ledger.numbers_of(b''.join(data + bytes(ledger.STRIDE - BLOCK_BYTES) for data in found))

    def check_content(self, ident, data):
        image, digest = self.images[ident], hashlib.sha256(data).hexdigest()
        if image.digest is None:
            assert ledger.unwritten(data) == self.cluster.unwritten, f'backup {ident} has not what the disk began with'
            image.digest, image.numbers = digest, ledger.numbers_of(data)
            self.book.judge(image.numbers, image.since)
        assert digest == image.digest, f'backup {ident} is not what it was'

    def check_new(self, everything=False):
        snapshots, backups = ({o['id'] for o in self.get(what)} for what in ('snapshots', 'backups'))
        for ident in sorted(snapshots):
            image = self.images[ident]
            if everything or image.numbers is None:
                numbers = self.numbers_of_snapshot(ident)
                if image.numbers is None:
                    self.book.judge(numbers, image.since)
                    image.numbers = numbers
                assert numbers == image.numbers, f'snapshot {ident} is not what it was'
        for ident in sorted(backups):
            if everything or self.images[ident].digest is None:
                self.check_content(ident, content(self.cluster, ident))

    def check_other(self, states):
        """What was restored, to the other VM."""
        if states.get('live') == 'succeeded':
            book = ledger.Ledger(SEED)

            def heard():
                for line in self.other.lines():
                    book.hear(line)
                return book.lives
            found = wait_until(heard, 60, 'the other guest says what it finds')[0].found
            assert found == self.images[self.restored].numbers, 'the other guest finds something else'
            done(self.cluster, self.cluster.api('POST', '/v1/vms/b/stop?force=true'))
            heard()
            data = self.disk_now('b')
            book.judge_found(ledger.numbers_of(data))
            assert ledger.unwritten(data) == self.cluster.unwritten
        elif states.get('restore') == 'succeeded':
            assert hashlib.sha256(self.disk_now('b')).hexdigest() == self.images[self.restored].digest, f'{self.restored} is restored as something else'

    def disk_now(self, vm):
        """All that a VM that is off has on its disk, by a backup aside."""
        aside = self.cluster.bed.directory / 'aside'
        shutil.rmtree(aside, ignore_errors=True)

        def run(*words):
            return subprocess.run([BACKUP, words[0], '--store', aside, *map(str, words[1:])], check=True, capture_output=True, timeout=240).stdout
        run('init')
        made = json.loads(run('create', '--vm', vm, '--parent', 'none', '--json', '--disk', f'root=pool:{self.layers(vm)}/root'))
        return run('cat', '--backup', made['id'], '--disk', 'root')

    def no_layer_is_left(self):
        return {f.stem for f in self.layers().glob('*.map')} == set(json.loads((self.layers() / 'root.disk').read_text())['layers'])

    def check_all(self):
        self.check_new(everything=True)
        self.by_hand('verify')
        in_store = {b['id'] for b in json.loads(self.by_hand('list', '--json'))}
        assert {b['id'] for b in self.get('backups')} <= in_store
        assert 'damage' not in self.get('backup-stores/nas'), self.get('backup-stores/nas')
        wait_until(lambda: not self.children(), 20, 'nobody is at work any more')
        self.say(f"{len(self.book.lives)} lives, {len(self.get('snapshots'))} snapshots, {len(self.get('backups'))} backups: all is well")

    def finish(self):
        """It all goes, and nothing is left."""
        self.check_all()
        done(self.cluster, self.cluster.api('POST', '/v1/vms/a/stop?force=true'))
        self.hear()
        data = self.disk_now('a')
        assert ledger.unwritten(data) == self.cluster.unwritten
        self.book.judge_found(ledger.numbers_of(data))
        done(self.cluster, self.cluster.api('POST', '/v1/vms/a/snapshots', {'name': 'last'}))    # with a removal goes what VMMs that ended have left
        for what in 'snapshots', 'backups':
            for o in self.get(what):
                done(self.cluster, self.cluster.api('DELETE', f"/v1/{what}/{o['id']}"))
        assert self.no_layer_is_left()
        for b in json.loads(self.by_hand('list', '--json')):    # of a backup that failed at its very end
            self.by_hand('prune', '--no-collect', '--forget', b['id'])
        for _ in range(2):
            self.age('active/*')
            self.by_hand('prune', '--grace', '0')
        self.by_hand('verify')
        assert not list(self.cluster.store.glob('packs/*/*')), 'packs are left that nobody needs'
        for kind, count in sorted(self.counts.items(), key=str):
            print(f'{count:4} {kind[0]}: {kind[1]}')
        print(f'{sum(self.kills.values())} ends: {dict(self.kills)}; {len(self.book.lives)} lives of the guest')


def storm(make_cluster, rounds):
    seed = int(os.environ.get('DROVER_SEED', 0)) or random.randrange(1 << 30)
    print(f'DROVER_SEED={seed}')
    disk = ledger.empty_disk(random.Random(seed).randbytes)
    cluster = cluster_with(make_cluster, disk)
    cluster.unwritten = ledger.unwritten(disk)
    made, number = Storm(cluster, seed), 0
    while sum(made.kills.values()) < rounds:
        number += 1
        if number % OFF_EVERY == 0:
            made.round_off()
        else:
            made.round()
        if number % DEEP_EVERY == 0:
            made.check_all()
    made.finish()
    return made


def test_a_gust(make_cluster):
    storm(make_cluster, 5)


@pytest.mark.slow
def test_storm(make_cluster):
    """ROUNDS ends of something; each of what is done has come to its end, too."""
    rounds = int(os.environ.get('ROUNDS', '200'))
    made = storm(make_cluster, rounds)
    if rounds >= 100:
        for kind in (*KINDS, 'live', 'revert'):
            assert made.counts[kind, 'succeeded'] > 0, f'no {kind} was done'
