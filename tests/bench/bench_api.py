#!/usr/bin/python3
"""Figures of the API, beside what the disk gives: three controllers on this machine, the load from tests/bench/bench_api.c.

    make bench-api            prints a table; build/bench/api.json has the numbers
"""
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tests' / 'process'))
sys.dont_write_bytecode = True
from api_client import PORT, Controllers, EventStream  # noqa: E402

LOAD = ROOT / 'build' / 'debug' / 'tests' / 'bench' / 'bench_api'
SECONDS = int(os.environ.get('SECONDS_EACH', '4'))
VMS = int(os.environ.get('VMS', '20000'))
MIB = 1 << 20


def fsync_us(directory, rounds=300):
    """p50 and p99 of a 4 KiB append with fdatasync: the least that a write to one disk costs."""
    path = directory / 'fsync'
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


def load(member, connections, method, path, body='', seconds=SECONDS, count=0):
    admin = member.cluster.members[0].data / 'admin'
    done = subprocess.run([LOAD, f'{member.address}:{PORT}', admin, str(connections), str(seconds), str(count), method, path, body],
                          capture_output=True, text=True, timeout=600)
    if not done.stdout:
        raise SystemExit(f'bench_api: {done.stderr}')
    result = json.loads(done.stdout)
    if result['first_error'] or result['broken']:
        print(f'  (first error {result["first_error"]}, {result["broken"]} connections broken) {done.stderr[:200]}')
    return result


def row(results, name, got):
    results[name] = got
    print(f'{name:44} {got["per_s"]:>8} /s   p50 {got["p50_us"]:>8} us   p99 {got["p99_us"]:>8} us', flush=True)


def watchers_lag(member, leader, count):
    """How long until the last of @count watchers has seen a change."""
    streams = [EventStream(member, timeout_s=60) for _ in range(count)]
    arrived = []

    def read(stream):
        stream.take(1)
        arrived.append(time.perf_counter())
    threads = [threading.Thread(target=read, args=(s,)) for s in streams]
    for t in threads:
        t.start()
    time.sleep(1)
    connection = leader.connect()
    begin = time.perf_counter()
    connection.call('POST', '/v1/flavors', {'name': f'lag{count}', 'vcpus': 1, 'memory_bytes': 64 * MIB})
    for t in threads:
        t.join(60)
    for s in streams:
        s.close()
    return {'watchers': count, 'first_ms': round((min(arrived) - begin) * 1e3, 1), 'last_ms': round((max(arrived) - begin) * 1e3, 1),
            'seen': len(arrived)}


def main():
    results = {}
    with Controllers('bench', 3) as cs:
        leader, admin = cs.leader(), cs.leader().connect()
        results['fsync'] = fsync_us(cs.directory)
        print(f'{"fdatasync of 4 KiB on the same disk":44} {"":>8}      p50 {results["fsync"]["p50_us"]:>8} us   p99 '
              f'{results["fsync"]["p99_us"]:>8} us')
        for i in range(256):
            assert admin.call('POST', '/v1/flavors', {'name': f'w{i}', 'vcpus': 1, 'memory_bytes': 64 * MIB})[0] == 201
        for connections in (1, 16, 256):
            row(results, f'writes, {connections} in flight', load(leader, connections, 'PATCH', '/v1/flavors/w{c}', '{"labels":{"n":"{n}"}}'))
        row(results, 'writes by a follower, 16 in flight', load(cs.follower(), 16, 'PATCH', '/v1/flavors/w{c}', '{"labels":{"n":"{n}"}}'))
        for connections in (1, 16, 64):
            row(results, f'GET (linearizable), {connections} in flight', load(leader, connections, 'GET', '/v1/flavors/w{c}'))
        row(results, 'GET (stale, follower), 16 in flight', load(cs.follower(), 16, 'GET', '/v1/flavors/w{c}?consistency=stale'))
        for count in (1, 100, 1000):
            lag = watchers_lag(cs.follower(), leader, count)
            results[f'watchers {count}'] = lag
            print(f'{f"{count} watchers of a follower":44} first {lag["first_ms"]} ms, last {lag["last_ms"]} ms')
        image = {'name': 'i', 'kind': 'kernel', 'kernel': {'url': 'file:///boot/vmlinuz', 'sha256': 'a' * 64}}
        assert admin.call('POST', '/v1/images', image)[0] == 201
        vm = f'{{"name":"vm-{{n}}","image":"i","vcpus":1,"memory_bytes":{64 * MIB},"started":false}}'
        row(results, f'make {VMS} VMs, 64 in flight', load(leader, 64, 'POST', '/v1/vms', vm, seconds=0, count=VMS))
        got = load(leader, 1, 'GET', '/v1/vms', seconds=0, count=20)
        row(results, f'list of {VMS} VMs ({got["bytes"] // 20 // 1024} KiB)', got)
        row(results, f'list of {VMS} VMs, stale', load(cs.follower(), 1, 'GET', '/v1/vms?consistency=stale', seconds=0, count=20))
        row(results, 'list, 100 at a time', load(leader, 1, 'GET', '/v1/vms?limit=100&cursor=vm-1', seconds=2))
        row(results, f'writes with {VMS} VMs, 256 in flight', load(leader, 256, 'PATCH', '/v1/flavors/w{c}', '{"labels":{"n":"{n}"}}'))
        results['snapshot_us'], results['snapshot_bytes'] = (leader.metric(f'drover_raft_snapshot_{m}') for m in ('microseconds', 'bytes'))
        results['resident_bytes'] = leader.metric('drover_process_resident_bytes')
        print(f'snapshot: {results["snapshot_bytes"] // 1024} KiB in {results["snapshot_us"] / 1000:.1f} ms; '
              f'resident {results["resident_bytes"] // MIB} MiB; apply max {leader.metric("drover_raft_apply_microseconds_max")} us; '
              f'reconcile max {leader.metric("drover_reconcile_microseconds_max")} us')
    out = ROOT / 'build' / 'bench' / 'api.json'
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1))


if __name__ == '__main__':
    main()
