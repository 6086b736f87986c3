"""Storage while everything ends at any moment: a guest writes all the time; snapshots are made, merged away and reverted to, backups are
made, forgotten, pruned, verified and restored, several of these at once; and in the middle VMM, agent, controller, drover-backup, the
whole host or the way to the store end by SIGKILL or are cut, or somebody cancels. What ended is started again as systemd would, and then:

  - whatever the guest had flushed is there when it reads its disk again (it says what it finds at each start, tests/process/ledger.py)
  - a snapshot or backup that is listed is of one moment, on all disks, and not an older one than when it was asked for; and stays so
  - each backup that is listed is the same bit for bit each time that it is read or restored, to another VM, also at once (live)
  - the store verifies, and nothing counts as damaged
  - no process of what was given up is left, and in the end no file
  - the VM is on one host, and on no other is anything of it

VARIANTS says what of it there is: where backups go, how many disks there are, and whether the VM is migrated to and fro meanwhile.

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
from disk_guest import pool, wait_pool
from storm_store import Bucket, Directory
from test_backup_s3 import MISSING, Swift
from test_backups import BACKUP, cluster_with, done, pytestmark     # noqa: F401
from test_volumes import BLOCK_BYTES, CLUSTER_BYTES, Layer

SEED = 7                # of the guest's ledger
SNAPSHOTS_MAX, BACKUPS_KEPT = 5, 4
DEEP_EVERY, OFF_EVERY = 5, 8
WEIGHTS = {'snapshot': 25, 'merge': 15, 'backup': 30, 'forget': 8, 'prune': 10, 'verify': 10, 'restore': 15}
HARMS = {'vmm': 30, 'agent': 25, 'child': 25, 'host': 8, 'store': 12, 'controller': 5, 'cancel': 5}


class Variant:
    """@disks: the last of three or more is a volume. @migrates: between two hosts, with its disks or, @shared, without."""

    def __init__(self, s3=False, key=False, disks=1, migrates=False, shared=False):
        self.s3, self.key, self.migrates, self.shared = s3, key, migrates, shared
        self.disks = ['root', 'data', 'more'][:disks]
        self.volume = 'more' if disks > 2 else None
        self.window = 2 if disks > 1 else ledger.WINDOW     # the less, the less one disk may be ahead of another
        self.hz = 100 if disks > 1 else 50
        self.weights = {**WEIGHTS, **({'migrate': 50} if migrates else {})}
        self.harms = {**HARMS, **({'link': 15} if migrates else {}), **({'store': 40} if s3 else {})}
        self.snapshots_max = SNAPSHOTS_MAX if shared or not migrates else 1     # a VM that has any keeps its disks where they are


VARIANTS = {'plain': {}, 's3': {'s3': True, 'key': True}, 'disks': {'key': True, 'disks': 3},
            'migrate-shared': {'disks': 2, 'migrates': True, 'shared': True}, 'migrate-disks': {'disks': 2, 'migrates': True}}


class Image:
    """A snapshot or a backup: not before the moment @since of the ledger."""

    def __init__(self, since):
        self.since, self.numbers, self.digest = since, None, None


class Console:
    """Lines of a guest's console as they come, wherever it is; a life that ended leaves half a line, and one that is migrated goes on in it."""

    def __init__(self, paths):
        self.paths, self.held, self.rest = paths, [], ''

    def lines(self):
        for path in self.paths:
            with contextlib.suppress(FileNotFoundError):
                file = path.open('rb')
                if any(os.path.sameopenfile(file.fileno(), held.fileno()) for held in self.held):
                    file.close()
                else:
                    self.held.append(file)
        data = b''.join(reversed([held.read() for held in reversed(self.held)]))     # where one says something those before it have said all
        *lines, self.rest = (self.rest + data.decode(errors='replace')).replace('drover-guest: hello', '\ndrover-guest: hello').split('\n')
        return lines


class Storm:
    def __init__(self, cluster, variant, store, seed):
        self.cluster, self.variant, self.store, self.chance = cluster, variant, store, random.Random(seed)
        self.book, self.images = ledger.Ledger(SEED, variant.window), {}
        self.counts, self.kills, self.ends, self.number = collections.Counter(), collections.Counter(), collections.Counter(), 0
        self.begun, self.restored, self.under_way = time.monotonic(), None, []
        self.create()
        self.console = self.console_of('a')
        self.wait_guest()
        status, _, answer = cluster.api('POST', '/v1/backup-stores', {'bytes_per_second': 16 << 20, **store.fields})
        assert status == 201, answer
        since = self.book.now()
        done(cluster, cluster.api('POST', '/v1/vms/a/backups', {'name': 'first'}))
        self.images[self.get('backups/first')['id']] = Image(since)
        done(cluster, cluster.api('POST', '/v1/vms', {'name': 'b', 'backup': 'first'}))
        self.other = self.console_of('b')

    def create(self):
        cluster, variant = self.cluster, self.variant
        where = {'pool': 'shelf'} if variant.shared else {}
        if variant.shared or variant.volume:
            self.shelf = pool(cluster, 'shelf')
            wait_pool(cluster, 'shelf', **{agent.name: 'present' for agent in cluster.agents})
        disks = [{'name': name, **where, **({'image': True} if name == 'root' else {'size_bytes': cluster.disk_bytes})}
                 for name in variant.disks if name != variant.volume]
        words = f'ledger={SEED} hz={variant.hz} over={len(variant.disks)} window={variant.window} quiet'
        done(cluster, cluster.api('POST', '/v1/vms', {'name': 'a', 'image': 'ticker', 'vcpus': 1, 'memory_bytes': 64 << 20, 'cmdline': words,
                                                      'disks': disks, 'started': False}))
        if variant.volume:
            made = cluster.cli('volume', 'create', variant.volume, '--pool', 'shelf', '--size', f'{cluster.disk_bytes >> 20}MiB', '--wait')
            cluster.cli('volume', 'attach', variant.volume, '--vm', 'a', '--wait')
            self.volume_layers = self.shelf / 'volumes' / made['id'] / f'{made["disk"]}.layers'
            variant.disks[-1] = made['disk']
        self.vm_id = cluster.vm('a')['id']
        done(cluster, cluster.api('POST', '/v1/vms/a/start'))

    def console_of(self, vm):
        ident = self.cluster.vm(vm)['id']
        return Console([agent.directory / 'vms' / ident / 'console.log' for agent in self.cluster.agents])

    def agent_of(self, vm):
        name = self.cluster.vm(vm)['host_name']
        return next(agent for agent in self.cluster.agents if agent.name == name)

    def layers(self, vm, disk):
        """Of @disk, by the name that it has in the VM."""
        found = self.cluster.vm(vm)
        seen = next(d for d in found['disks'] if d['name'] == disk)
        if 'volume' in seen:
            return self.volume_layers
        base = self.shelf / 'vms' / found['id'] if 'pool' in seen else self.agent_of(vm).directory / 'vms' / found['id'] / 'disks'
        return base / f'{disk}.layers'

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

    def vmm_pids(self, agent, vm_id):
        found = []
        for pid in agent.vmm_pids():
            with contextlib.suppress(OSError):
                if vm_id.encode() in pathlib.Path(f'/proc/{pid}/cmdline').read_bytes():
                    found.append(pid)
        return found

    def at_one_place(self):
        """On its host, and nothing of it on another."""
        here = self.agent_of('a')
        return len(self.vmm_pids(here, self.vm_id)) == 1 and not any(
            self.vmm_pids(other, self.vm_id) or (other.directory / 'vms' / self.vm_id).exists() for other in self.cluster.agents if other is not here)

    def wait_guest(self):
        """It runs, and goes on writing: whatever ended it is over."""
        def writes():
            self.hear()
            return self.book.lives and (len(self.book.lives), self.book.lives[-1].acked) > before
        wait_until(lambda: self.cluster.hosts_up() == len(self.cluster.agents), 60, 'every host is up')
        wait_until(self.at_one_place, 60, 'the VM is started, on one host alone')
        self.hear()
        before = (len(self.book.lives), self.book.lives[-1].acked if self.book.lives else 0)
        wait_until(writes, 40, 'the guest writes')

    # ---- what is asked for

    def ask(self, kind, method, path, body=None):
        """The operation, or None where it is refused because of others that are under way."""
        status, _, answer = self.cluster.api(method, path, body)
        if status == 202:
            return kind, answer
        assert status in (404, 409) or (kind, status) == ('migrate', 501), (kind, path, answer)
        self.counts[kind, 'refused'] += 1
        return None

    def name(self, letter):
        self.number += 1
        return f'{letter}{self.number}'

    def begin(self, kind):
        snapshots, backups = ([o['id'] for o in self.get(what) if o['state'] == 'available'] for what in ('snapshots', 'backups'))
        if kind == 'snapshot' and len(snapshots) < self.variant.snapshots_max:
            return self.ask(kind, 'POST', '/v1/vms/a/snapshots', {'name': self.name('s')})
        if snapshots and (kind in ('snapshot', 'merge') or (kind == 'migrate' and not self.variant.shared and self.chance.random() < 0.8)):
            return self.ask('merge', 'DELETE', f'/v1/snapshots/{self.chance.choice(snapshots)}')
        if kind == 'forget' and len(backups) > 1:
            return self.ask(kind, 'DELETE', f'/v1/backups/{self.chance.choice(backups)}')
        if kind == 'prune':
            self.store.age('packs/', *(['active/'] if self.chance.random() < 0.3 else []))     # who is at work has not been heard of since
            return self.ask(kind, 'POST', '/v1/backup-stores/nas/prune', {'keep_last': BACKUPS_KEPT})
        if kind == 'verify':
            return self.ask(kind, 'POST', '/v1/backup-stores/nas/verify')
        if kind == 'restore' and backups:
            live, ident = self.chance.random() < 0.4, self.chance.choice(backups)
            asked = self.ask('live' if live else kind, 'POST', f'/v1/backups/{ident}/restore', {'vm': 'b', 'live': live})
            self.restored = ident if asked else self.restored
            return asked
        if kind == 'migrate':
            slow = {'bytes_per_second': self.chance.choice((1, 4, 16)) << 20} if self.chance.random() < 0.5 else {}
            return self.ask(kind, 'POST', '/v1/vms/a/migrate', slow)
        return self.ask('backup', 'POST', '/v1/vms/a/backups', {'name': self.name('b')})

    def wait_end(self, operation):
        def look():
            found = self.get(f"operations/{operation['id']}")
            self.hear()
            return found if found['state'] != 'running' else None
        return wait_until(look, 60, f"the end of {operation['kind']} {operation['id']}")

    # ---- what ends

    def children(self):
        """drover-backup, and the agents' processes that do their tasks."""
        found = []
        for pid in [pid for agent in self.cluster.agents for pid in agent.host.pids()]:
            with contextlib.suppress(OSError):
                words = pathlib.Path(f'/proc/{pid}/cmdline').read_bytes().split(b'\0')
                if pathlib.Path(os.fsdecode(words[0])).name == 'drover-backup' or words[1:2] in ([b'task'], [b'tunnel']):
                    found.append(pid)
        return found

    def kill(self, pids):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(pids)

    def agent_ends(self, agent=None):
        agent = agent or self.chance.choice(self.cluster.agents)
        agent.program.kill9()
        agent.run()
        self.ends[agent] = 0
        return True

    def vmm_ends(self):
        agent = self.chance.choice(self.cluster.agents)
        ended = self.kill(agent.vmm_pids())
        self.ends[agent] += ended
        if self.ends[agent] > 2:       # or it would be started again after longer and longer
            self.agent_ends(agent)
        return ended

    def child_ends(self):
        for _ in range(100):
            found = self.children()
            if found:
                return self.kill([self.chance.choice(found)])
            time.sleep(0.003)
        return False

    def controller_is_there(self):
        wait_until(lambda: self.cluster.ready(self.cluster.controller(1)), 30, 'the controller')
        return True

    def host_ends(self):
        agent = self.chance.choice(self.cluster.agents)
        agent.host.power_off()
        self.cluster.boot(agent.host.number)
        self.ends[agent] = 0
        return self.controller_is_there()

    def controller_ends(self):
        self.cluster.controller(1).program.kill9()
        self.cluster.controller(1).run()
        return self.controller_is_there()

    def link_is_cut(self):
        """And with it what the second host hears of the controller."""
        self.cluster.bed.cut(1, 2)
        time.sleep(self.chance.random() * 1.5)
        self.cluster.bed.heal()
        return True

    def cancel(self):
        if self.under_way:
            self.cluster.api('POST', f"/v1/operations/{self.chance.choice(self.under_way)['id']}/cancel")
        return bool(self.under_way)

    def harm(self, who=None):
        """Returns who it was; None where nobody was there."""
        who = who or self.chance.choices([*self.variant.harms], self.variant.harms.values())[0]
        if who == 'store':
            who = self.store.harm(self.chance)
        elif not {'vmm': self.vmm_ends, 'agent': self.agent_ends, 'child': self.child_ends, 'host': self.host_ends, 'link': self.link_is_cut,
                  'controller': self.controller_ends, 'cancel': self.cancel}[who]():
            return None
        self.kills[who] += 1
        return who

    # ---- a round

    def disturbed(self, kinds, who=None, pause_s=0.6):
        since = self.book.now()
        begun = [(kind, self.begin(kind)) for kind in kinds]
        operations = [o for _, o in begun if o]
        self.under_way = [o for _, o in operations]
        time.sleep(self.chance.random() ** 2 * pause_s)
        who = self.harm(who)
        operations += [o for o in [self.begin(kind) for kind, o in begun if not o] if o]    # what was refused because of others, behind these
        ended = [(kind, self.wait_end(o)) for kind, o in operations]
        self.under_way = []
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
                    assert o['id'] not in {b['id'] for b in json.loads(self.store.run('list', '--json'))}, o
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
        kinds = self.chance.choices([*self.variant.weights], self.variant.weights.values(), k=self.chance.choice((1, 2, 2, 3)))
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
        found, known, tops, where = [], {}, [], [self.layers('a', disk) for disk in self.variant.disks]
        for layers, disk in zip(where, self.variant.disks):
            head = json.loads((layers / f'{disk}.disk').read_text())
            tops.append({s['name']: s['layer'] for s in head['snapshots']}[ident])
        for block in range(ledger.BLOCKS):
            number = block % len(tops)
            name, at, data = tops[number], block * ledger.STRIDE, bytes(BLOCK_BYTES)
            while True:
                layer = known.get((number, name)) or known.setdefault((number, name), Layer(where[number], name))
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

    def content(self, ident):
        return [self.store.run('cat', '--backup', ident, '--disk', disk) for disk in self.variant.disks]

    def check_content(self, ident, disks):
        image, digest = self.images[ident], hashlib.sha256(b''.join(disks)).hexdigest()
        if image.digest is None:
            assert ledger.unwritten(*disks) == self.cluster.unwritten, f'backup {ident} has not what the disks began with'
            image.digest, image.numbers = digest, ledger.numbers_of(*disks)
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
                self.check_content(ident, self.content(ident))

    def check_other(self, states):
        """What was restored, to the other VM."""
        if states.get('live') == 'succeeded':
            book = ledger.Ledger(SEED, self.variant.window)

            def heard():
                for line in self.other.lines():
                    book.hear(line)
                return book.lives
            found = wait_until(heard, 60, 'the other guest says what it finds')[0].found
            assert found == self.images[self.restored].numbers, 'the other guest finds something else'
            done(self.cluster, self.cluster.api('POST', '/v1/vms/b/stop?force=true'))
            heard()
            disks = self.disks_now('b')
            book.judge_found(ledger.numbers_of(*disks))
            assert ledger.unwritten(*disks) == self.cluster.unwritten
        elif states.get('restore') == 'succeeded':
            digest = hashlib.sha256(b''.join(self.disks_now('b'))).hexdigest()
            assert digest == self.images[self.restored].digest, f'{self.restored} is restored as something else'

    def disks_now(self, vm):
        """All that a VM that is off has on its disks, by a backup aside."""
        aside = self.cluster.bed.directory / 'aside'
        shutil.rmtree(aside, ignore_errors=True)

        def run(*words):
            return subprocess.run([BACKUP, words[0], '--store', aside, *map(str, words[1:])], check=True, capture_output=True, timeout=240).stdout
        run('init')
        disks = [word for disk in self.variant.disks for word in ('--disk', f'{disk}=pool:{self.layers(vm, disk)}/{disk}')]
        made = json.loads(run('create', '--vm', vm, '--parent', 'none', '--json', *disks))
        return [run('cat', '--backup', made['id'], '--disk', disk) for disk in self.variant.disks]

    def no_layer_is_left(self, disk):
        layers = self.layers('a', disk)
        return {f.stem for f in layers.glob('*.map')} == set(json.loads((layers / f'{disk}.disk').read_text())['layers'])

    def check_all(self):
        self.check_new(everything=True)
        self.store.run('verify')
        in_store = {b['id'] for b in json.loads(self.store.run('list', '--json'))}
        assert {b['id'] for b in self.get('backups')} <= in_store
        assert 'damage' not in self.get('backup-stores/nas'), self.get('backup-stores/nas')
        wait_until(lambda: not self.children(), 20, 'nobody is at work any more')
        self.say(f"{len(self.book.lives)} lives, {len(self.get('snapshots'))} snapshots, {len(self.get('backups'))} backups: all is well")

    def finish(self):
        """It all goes, and nothing is left."""
        self.check_all()
        done(self.cluster, self.cluster.api('POST', '/v1/vms/a/stop?force=true'))
        self.hear()
        disks = self.disks_now('a')
        assert ledger.unwritten(*disks) == self.cluster.unwritten
        self.book.judge_found(ledger.numbers_of(*disks))
        done(self.cluster, self.cluster.api('POST', '/v1/vms/a/snapshots', {'name': 'last'}))    # with a removal goes what VMMs that ended have left
        for what in 'snapshots', 'backups':
            for o in self.get(what):
                done(self.cluster, self.cluster.api('DELETE', f"/v1/{what}/{o['id']}"))
        assert all(map(self.no_layer_is_left, self.variant.disks))
        for b in json.loads(self.store.run('list', '--json')):    # of a backup that failed at its very end
            self.store.run('prune', '--no-collect', '--forget', b['id'])
        for _ in range(2):
            self.store.age('active/')
            self.store.run('prune', '--grace', '0')
        self.store.run('verify')
        assert not self.store.names('packs/'), 'packs are left that nobody needs'
        for kind, count in sorted(self.counts.items(), key=str):
            print(f'{count:4} {kind[0]}: {kind[1]}')
        print(f'{sum(self.kills.values())} ends: {dict(self.kills)}; {len(self.book.lives)} lives of the guest')


def storm(make_cluster, variant, make_store, rounds):
    seed = int(os.environ.get('DROVER_SEED', 0)) or random.randrange(1 << 30)
    print(f'DROVER_SEED={seed}')
    root = ledger.empty_disk(random.Random(seed).randbytes)
    cluster = cluster_with(make_cluster, root, agents=2 if variant.migrates else 1)
    cluster.disk_bytes = len(root)
    cluster.unwritten = ledger.unwritten(root, *[bytes(len(root))] * (len(variant.disks) - 1))
    made, number = Storm(cluster, variant, make_store(cluster, variant.key), seed), 0
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


@pytest.fixture(name='make_store')
def fixture_make_store(request, tmp_path):
    """make_store(cluster, key): as the test's variant has it."""
    if not VARIANTS[request.node.callspec.params['name']].get('s3'):
        yield Directory
    elif MISSING:
        pytest.skip('no ' + ', '.join(MISSING) + ': tools/deps s3 installs them')
    else:
        with Swift(tmp_path) as swift, contextlib.ExitStack() as stack:
            yield lambda cluster, key: stack.enter_context(contextlib.closing(Bucket(cluster, key, swift)))


@pytest.mark.parametrize('name', ['disks'])
def test_a_gust(make_cluster, make_store, name):
    storm(make_cluster, Variant(**VARIANTS[name]), make_store, 4)


@pytest.mark.slow
@pytest.mark.parametrize('name', VARIANTS)
def test_storm(make_cluster, make_store, name):
    """ROUNDS ends of something; each of what is done has come to its end, too."""
    rounds = int(os.environ.get('ROUNDS', '200'))
    variant = Variant(**VARIANTS[name])
    made = storm(make_cluster, variant, make_store, rounds)
    if rounds >= 100:
        for kind in (*variant.weights, 'live', 'revert'):
            assert made.counts[kind, 'succeeded'] > 0, f'no {kind} was done'
