#!/usr/bin/python3
"""Figures of the API beside its promises: three controllers on this machine, load from bench_api.c and bench_watch.c.

    make bench-api            prints a table; build/bench/api.json has the numbers; exit status 1 where a promise is missed

Each write row begins with a raw fdatasync of the same disk, measured just before it. "stall" is the longest turn of a loop
within the row (drover_loop_turn_seconds of /metrics), over the three controllers: exact where it is the longest since their
start, else the bound of its bucket. The load shares the processors with the controllers: see the load average.
"""
import json
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tests' / 'process'))
sys.dont_write_bytecode = True
from api_client import PORT, Controllers, wait_for  # noqa: E402

BENCH = ROOT / 'build' / 'debug' / 'tests' / 'bench'
SECONDS = int(os.environ.get('SECONDS_EACH', '4'))
SIZES = [int(n) for n in os.environ.get('VMS', '20000,50000').split(',')]
PROMISED_VMS = 20000  # the figures below are for so many
PROMISE = {'api_stall_us': 20000, 'raft_stall_us': 100000, 'write_p50_us': 2000, 'writes_per_s': 5000, 'get_p99_us': 5000,
           'list_us': 50000, 'snapshot_bytes': 20 << 20}
MIB = 1 << 20
LABEL = '{"labels":{"n":"{n}"}}'


class Bench:
    def __init__(self, cluster):
        self.cluster, self.results, self.kept, self.missed = cluster, {}, 0, []
        self.vms = 0

    def judge(self, what, value, promise, at_least=False):
        """ ok or MISSED, in words. """
        good = value >= promise if at_least else value <= promise
        self.kept += good
        if not good:
            self.missed.append(f'{what}: {value}, promised {">=" if at_least else "<="} {promise}')
        return 'ok' if good else 'MISSED'

    def loops(self):
        """{member: {loop: (turns by bound in us, max, max by processor time)}} """
        out = {}
        for member in self.cluster.alive():
            text = member.request('GET', '/metrics', identity=None)[2].decode()
            out[member.name] = {}
            for loop in ('api', 'raft'):
                buckets = {(float(le) if le != '+Inf' else float('inf')) * 1e6: int(n) for le, n in re.findall(
                    r'^drover_loop_turn_seconds_bucket\{loop="%s",le="([^"]+)"\} (\d+)$' % loop, text, re.M)}
                most, cpu = (int(re.search(r'^drover_loop_turn_%smicroseconds_max\{loop="%s"\} (\d+)$' % (m, loop), text, re.M)[1])
                             for m in ('', 'cpu_'))
                out[member.name][loop] = (buckets, most, cpu)
        return out

    def stalls(self, before, name):
        """The longest turns since @before, judged where a promise holds: a piece of a row."""
        after, worst = self.loops(), {}
        for member, loops in after.items():
            for loop, (buckets, most, cpu) in loops.items():
                old = before.get(member, {}).get(loop, ({}, 0, 0))
                stall = most
                if most == old[1]:
                    last, stall = 0, 0
                    for bound, n in sorted(buckets.items()):
                        grown, last = n - old[0].get(bound, 0) - last, n - old[0].get(bound, 0)
                        stall = min(bound, most) if grown > 0 else stall
                worst[loop] = max(worst.get(loop, (0, 0)), (int(stall), cpu if cpu != old[2] else 0))
        words = []
        for loop, (stall, cpu) in worst.items():
            verdict = ''
            if self.vms <= PROMISED_VMS:
                verdict = ' ' + self.judge(f'{name}: stall of the {loop} loop, us', stall, PROMISE[f'{loop}_stall_us'])
            words.append(f'{loop} {stall / 1000:.1f} ms' + (f' (cpu {cpu / 1000:.1f})' if cpu else '') + verdict)
        self.results.setdefault(name, {})['stalls_us'] = {loop: w[0] for loop, w in worst.items()}
        return 'stall ' + ', '.join(words)

    def say(self, name, text, before):
        print(f'{name:40} {text:70} {self.stalls(before, name)}', flush=True)

    def fsync(self, rounds=200):
        """p50 and p99 of a 4 KiB append with fdatasync: the least that a write to one disk costs."""
        path = self.cluster.directory / 'fsync'
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        samples = []
        for _ in range(rounds):
            begin = time.perf_counter()
            os.write(fd, b'x' * 4096)
            os.fdatasync(fd)
            samples.append((time.perf_counter() - begin) * 1e6)
        os.close(fd)
        path.unlink()
        samples.sort()
        return {'p50_us': round(samples[rounds // 2]), 'p99_us': round(samples[rounds * 99 // 100])}

    def program(self, name, *words):
        done = subprocess.run([BENCH / name, *map(str, words)], capture_output=True, text=True, timeout=900)
        if not done.stdout:
            raise SystemExit(f'{name}: {done.stderr}')
        return json.loads(done.stdout), done.stderr

    def load(self, member, connections, method, path, body='', seconds=SECONDS, count=0, rate=0):
        admin = self.cluster.members[0].data / 'admin'
        got, errors = self.program('bench_api', f'{member.address}:{PORT}', admin, connections, seconds, count, rate, method, path,
                                   body)
        if got['first_error'] or got['broken']:
            print(f'  (first error {got["first_error"]}, {got["broken"]} connections broken) {errors[:200]}')
        return got

    def row(self, name, *args, fsync=False, judged=(), **options):
        disk = self.fsync() if fsync else None
        before = self.loops()
        got = self.load(*args, **options)
        self.results[name] = dict(got, fsync=disk) if disk else got
        text = f'{got["per_s"]:>6}/s  p50 {got["p50_us"]:>6}  p99 {got["p99_us"]:>6} us'
        for figure, promise, at_least in judged:
            text += ' ' + self.judge(f'{name}: {figure}', got[figure], promise, at_least)
        if disk:
            text += f'  [fdatasync {disk["p50_us"]}/{disk["p99_us"]}]'
        self.say(name, text, before)
        return got

    # --- parts ---

    def writes(self, leader, follower):
        write = ('PATCH', '/v1/flavors/w{c}', LABEL)
        self.row('writes, 1 in flight', leader, 1, *write, fsync=True, judged=[('p50_us', PROMISE['write_p50_us'], False)])
        self.row('writes, 16 in flight', leader, 16, *write, fsync=True)
        self.row('writes, 256 in flight', leader, 256, *write, fsync=True, judged=[('per_s', PROMISE['writes_per_s'], True)])
        self.row('writes by a follower, 16 in flight', follower, 16, *write, fsync=True)

    def reads(self, leader, follower):
        get = ('GET', '/v1/flavors/w{c}')
        self.row('GET (linearizable), 1,000/s', leader, 64, *get, rate=1000, judged=[('p99_us', PROMISE['get_p99_us'], False)])
        for connections in (1, 16, 64):
            self.row(f'GET (linearizable), {connections} in flight', leader, connections, *get)
        self.row('GET (stale, follower), 16 in flight', follower, 16, get[0], get[1] + '?consistency=stale')

    def watchers(self, leader, follower, count, writes=20):
        admin = self.cluster.members[0].data / 'admin'
        name, before = f'{count} watchers', self.loops()
        got, _ = self.program('bench_watch', f'{follower.address}:{PORT}', f'{leader.address}:{PORT}', admin, count, writes, 200,
                              '/v1/flavors/w0')
        self.results[name] = got
        self.say(name, f'lag p50 {got["p50_us"] / 1000:.1f}  p99 {got["p99_us"] / 1000:.1f}  max {got["max_us"] / 1000:.1f} ms, '
                 f'missing {got["missing"]} {self.judge(name + ": events missing", got["missing"], 0)}, open in {got["connect_ms"]} ms',
                 before)

    def snapshot(self, leader):
        """Write until each controller has taken a snapshot of all that there is now."""
        name, before = f'snapshot of {self.vms} VMs', self.loops()
        taken = {m.name: m.metric('drover_raft_snapshots_total') for m in self.cluster.alive()}
        for _ in range(60):
            if all(m.metric('drover_raft_snapshots_total') > taken[m.name] for m in self.cluster.alive()):
                break
            self.load(leader, 8, 'PATCH', '/v1/flavors/w{c}', LABEL, seconds=2)
        size, us = (leader.metric(f'drover_raft_snapshot_{m}') for m in ('bytes', 'microseconds'))
        self.results[name] = {'bytes': size, 'us': us}
        verdict = self.judge(name + ': bytes', size, PROMISE['snapshot_bytes']) if self.vms <= PROMISED_VMS else ''
        self.say(name, f'{size / 1e6:.1f} MB {verdict} in {us / 1000:.1f} ms', before)

    def memory(self):
        resident = {m.name: m.metric('drover_process_resident_bytes') for m in self.cluster.alive()}
        self.results[f'memory with {self.vms} VMs'] = resident
        print(f'{f"memory with {self.vms} VMs":40} ' + ', '.join(f'{n} {b // MIB} MiB' for n, b in resident.items()), flush=True)

    def start(self, member):
        """Stop it, start it: until it answers at all (its log is read), until it knows the cluster."""
        name = f'start with {self.vms} VMs'
        member.stop()
        before, begin = self.loops(), time.perf_counter()
        member.run()

        def answers():
            try:
                return member.request('GET', '/healthz', identity=None, timeout_s=60)[0] == 200
            except OSError:
                return False
        wait_for(answers, 120, f'{member.name} answers')
        answered = time.perf_counter() - begin
        wait_for(member.ready, 120, f'{member.name} is ready')
        ready = time.perf_counter() - begin
        self.results[name] = {'answers_ms': round(answered * 1e3), 'ready_ms': round(ready * 1e3)}
        self.say(name, f'answers after {answered:.2f} s, ready after {ready:.2f} s; {member.metric("drover_process_resident_bytes") // MIB} MiB',
                 before)

    def install(self, leader, member):
        """A follower that was away for longer than the log goes back gets a snapshot while it runs."""
        name = f'snapshot installed, {self.vms} VMs'
        member.kill9()
        taken = leader.metric('drover_raft_snapshots_total')
        for _ in range(60):
            if leader.metric('drover_raft_snapshots_total') >= taken + 2:
                break
            self.load(leader, 8, 'PATCH', '/v1/flavors/w{c}', LABEL, seconds=2)
        goal, before = leader.metric('drover_raft_index'), self.loops()
        member.run()

        def caught_up():
            try:
                return member.metric('drover_raft_index') >= goal
            except (OSError, StopIteration):
                return False
        wait_for(caught_up, 120, f'{member.name} has caught up')
        restored, us = member.metric('drover_raft_snapshots_restored_total'), member.metric('drover_raft_restore_microseconds')
        self.results[name] = {'restored': restored, 'us': us}
        self.say(name, f'{restored} restored, the last in {us / 1000:.1f} ms', before)

    def vms_up_to(self, leader, count, pending):
        body = {'name': f'vm-{count}-{{n}}', 'image': 'i', 'vcpus': 1, 'memory_bytes': 64 * MIB, 'started': pending}
        self.row(f'make VMs, {self.vms} to {count}, 64 in flight', leader, 64, 'POST', '/v1/vms', json.dumps(body), seconds=0,
                 count=count - self.vms, fsync=True)
        self.vms = count

    def state(self, leader, follower, count, pending):
        self.vms_up_to(leader, count, pending)
        before, name = self.loops(), f'list of {count} VMs'
        got = self.load(leader, 1, 'GET', '/v1/vms', seconds=0, count=20)
        self.results[name] = got
        verdict = self.judge(name + ': p99_us', got['p99_us'], PROMISE['list_us']) if count <= PROMISED_VMS else ''
        self.say(name, f'p50 {got["p50_us"] / 1000:.1f}  p99 {got["p99_us"] / 1000:.1f} ms {verdict}, {got["bytes"] / 20e6:.1f} MB', before)
        self.row('list, stale, by 4 at once', follower, 4, 'GET', '/v1/vms?consistency=stale', seconds=0, count=40)
        self.row('list, 100 at a time', leader, 1, 'GET', '/v1/vms?limit=100&cursor=vm-1', seconds=2)
        self.row(f'writes with {count} VMs, 256 in flight', leader, 256, 'PATCH', '/v1/flavors/w{c}', LABEL, fsync=True,
                 judged=[('per_s', PROMISE['writes_per_s'], True)] if count <= PROMISED_VMS else [])
        self.row(f'GET with {count} VMs, 1,000/s', leader, 64, 'GET', '/v1/flavors/w{c}', rate=1000,
                 judged=[('p99_us', PROMISE['get_p99_us'], False)] if count <= PROMISED_VMS else [])
        self.snapshot(leader)
        self.memory()
        member = self.cluster.follower()
        self.start(member)
        self.install(self.cluster.leader(), member)


def main():
    print(f'load average {os.getloadavg()[0]:.2f}, {os.cpu_count()} processors; times in us unless given')
    with Controllers('bench', 3) as cs:
        bench, leader, admin = Bench(cs), cs.leader(), cs.leader().connect()
        follower = cs.follower()
        for i in range(256):
            assert admin.call('POST', '/v1/flavors', {'name': f'w{i}', 'vcpus': 1, 'memory_bytes': 64 * MIB})[0] == 201
        image = {'name': 'i', 'kind': 'kernel', 'kernel': {'url': 'file:///boot/vmlinuz', 'sha256': 'a' * 64}}
        assert admin.call('POST', '/v1/images', image)[0] == 201
        bench.writes(leader, follower)
        bench.reads(leader, follower)
        for count in (1, 100, 1000):
            bench.watchers(leader, follower, count)
        for i, count in enumerate(SIZES):
            leader = cs.leader()
            bench.state(leader, cs.follower(), count, pending=i == 0) # the first ones all wait for a host
        bench.results['reconcile_us_max'] = cs.leader().metric('drover_reconcile_microseconds_max')
        bench.results['apply_us_max'] = cs.leader().metric('drover_raft_apply_microseconds_max')
        print(f'reconcile max {bench.results["reconcile_us_max"]} us; apply max {bench.results["apply_us_max"]} us')
    print(f'load average {os.getloadavg()[0]:.2f}; {bench.kept} promises kept, {len(bench.missed)} MISSED')
    for text in bench.missed:
        print(f'  MISSED {text}')
    bench.results['missed'] = bench.missed
    out = ROOT / 'build' / 'bench' / 'api.json'
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(bench.results, indent=1))
    return 1 if bench.missed else 0


if __name__ == '__main__':
    sys.exit(main())
