"""Rounds of drills on the process bed, and how long it took: p50, p99, the slowest. `make drill-rounds ROUNDS=10`.

    drill_rounds.py [--rounds 10] [--batch 10] [--keep FILE] [KIND...]      all kinds where none is named
    drill_rounds.py --rounds 0 --keep FILE                                  the table of what was kept there

Each kind has a cluster of its own, with real programs and a VM with ha whose guest ticks; kinds take turns, --batch rounds each,
so that each gets its share of what else the machine does. HELD is how often the VM was held for want of a lease where no host is lost:
it is to be 0. The figure of a kind that loses a host is the
time from the fault to the VM executing elsewhere; of the others the longest time without an answered write (quorum-loss: from the
beginning of the recovery; backup-restore: of the restore). A line for each round goes to standard output as it ends, the table
at the end; so does what was measured when it is broken off. The exit status is 1 where a drill failed or a VM executed twice."""
import argparse
import hashlib
import json
import os
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from bed import Bed, BedError, wait_until       # noqa: E402
from cluster import Cluster, missing_programs   # noqa: E402
from test_drills import Machines                # noqa: E402
from test_failover import TICKER, Watch, percentile     # noqa: E402

DRILL_S = 900
HOST_KINDS = {'host-loss': 10, 'host-and-leader-loss': 10, 'network-partition': 12}     # and for how many seconds
OTHER_KINDS = {'leader-loss': 1, 'rolling-restart': None, 'controller-partition': 8, 'slow-disk': 6, 'quorum-loss': None, 'backup-restore': None}


def run(cluster, kind, *words):
    command = cluster.cli_command('drill', 'run', kind, *words, '--yes', '--output', 'json')
    done = cluster.bed.run(command, timeout_s=DRILL_S, check=False, environment={'DROVER_DRILLS': str(cluster.bed.directory / 'drills')})
    if not done.stdout.strip():
        raise BedError(f'{kind}: {done.stderr[-500:]}')
    return json.loads(done.stdout)


def prepare(cluster, kind):
    """What the kind needs besides a VM with ha; words for its command."""
    if kind != 'backup-restore':
        return []
    disk = cluster.bed.directory / 'disk.img'
    disk.write_bytes(b'of the image ' * 80000 + bytes(1 << 20))
    artifacts = {name: {'url': f'file://{path}', 'sha256': hashlib.sha256(path.read_bytes()).hexdigest()}
                 for name, path in (('kernel', TICKER), ('disk', disk))}
    cluster.api('POST', '/v1/images', {'name': 'writer', 'kind': 'kernel', 'cmdline': 'disk=5', **artifacts})
    cluster.api('POST', '/v1/backup-stores', {'name': 'nas', 'location': str(cluster.bed.directory / 'store')})
    return ['--image', 'writer', '--memory', '64MiB']


def run_quorum_loss(cluster, *words):
    """Programs of the bed are started by this thread; the drill runs in another one."""
    machines, done = Machines(cluster), []
    try:
        thread = threading.Thread(target=lambda: done.append(run(cluster, 'quorum-loss', '--machines', machines.program, *words)))
        thread.start()
        machines.serve(lambda: not thread.is_alive())
        thread.join()
    finally:
        machines.close()
    return done[0]


def one_round(cluster, web, kind, more):
    wait_until(lambda: cluster.hosts_up() == len(cluster.agents) and all(cluster.ready(c) for c in cluster.controllers), 60, 'all is well')
    words = list(more)
    if kind in HOST_KINDS:
        words += ['--host', web.vm()['host_name'], '--stay', '--seconds', str(HOST_KINDS[kind])]
    elif OTHER_KINDS[kind]:
        words += ['--seconds', str(OTHER_KINDS[kind])]
    return run_quorum_loss(cluster, *words) if kind == 'quorum-loss' else run(cluster, kind, *words)


def figure(kind, report):
    steps = {step['step']: step['ms'] for step in report['steps']}
    if kind in HOST_KINDS:
        return max(vm['executes_ms'] for vm in report['vms'])
    if kind == 'quorum-loss':
        return steps.get('recover', 0) + steps.get('writes again', 0)
    return steps.get('restore', 0) if kind == 'backup-restore' else report['writes']['longest_gap_ms']


def holds(web):
    """On all hosts together: a VMM's log outlives the VMM, and the VM may have moved."""
    return sum(web.pauses(agent) for agent in web.cluster.agents if (agent.directory / 'vms' / web.id / 'vmm.log').exists())


def rounds_of(kind, count, keep, found):
    """Appends a row to @found for each round, so that what was measured before a failure is there."""
    with Bed(f'rounds-{kind}', hosts=4) as bed:
        cluster = Cluster(bed, controllers=3, agents=4).start()
        web, more = Watch(cluster), prepare(cluster, kind)
        for number in range(count):
            before = holds(web)
            report = one_round(cluster, web, kind, more)
            row = {'kind': kind, 'round': number + 1, 'result': report['result'], 'ms': figure(kind, report), 'failures': report['failures'],
                   'once': sorted({vm['once'] for vm in report['vms']}), 'load': os.getloadavg()[0], 'steps': report['steps']}
            row['held'] = max(0, holds(web) - before) if kind in OTHER_KINDS else None
            found.append(row)
            print(f'{kind} {number + 1}/{count}: {row["result"]} {row["ms"]} ms {" ".join(row["once"])} held {row["held"]} load {row["load"]:.1f} '
                  f'{"; ".join(row["failures"])}', flush=True)
            if keep:
                with open(keep, 'a') as file:
                    file.write(json.dumps(row) + '\n')


def table(rows):
    bad = False
    print(f'\n{"DRILL":22} {"ROUNDS":>6} {"P50":>8} {"P99":>8} {"MOST":>8}  {"LOAD":>11}  {"HELD":>4}  RESULTS')
    for kind in dict.fromkeys(row['kind'] for row in rows):
        its = [row for row in rows if row['kind'] == kind]
        times, loads = [row['ms'] / 1000 for row in its], [row['load'] for row in its]
        results = {name: sum(row['result'] == name for row in its) for name in ('passed', 'slow', 'unsure', 'failed')}
        twice = sum('twice' in row['once'] for row in its)
        held = sum(row['held'] or 0 for row in its) if its[0]['held'] is not None else '-'
        bad = bad or results['failed'] > 0 or twice > 0
        print(f'{kind:22} {len(its):6} {percentile(times, 50):6.2f} s {percentile(times, 99):6.2f} s {max(times):6.2f} s  '
              f'{min(loads):4.0f} to {max(loads):3.0f}  {held:>4}  {", ".join(f"{n} {name}" for name, n in results.items() if n)}, executed twice: {twice}')
    return bad


def try_rounds(kind, count, keep, rows):
    begin = time.monotonic()
    try:
        rounds_of(kind, count, keep, rows)
    except (BedError, OSError, AssertionError) as error:
        print(f'{kind}: {error!r} after {time.monotonic() - begin:.0f} s', flush=True)
        return False
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=10)
    parser.add_argument('--batch', type=int, help='so many rounds of a kind before the next one\'s turn; all where not given')
    parser.add_argument('--keep', help='a line of JSON for each round goes there')
    parser.add_argument('kinds', nargs='*', choices=[[], *HOST_KINDS, *OTHER_KINDS], metavar='KIND')
    options = parser.parse_args()
    if missing_programs(1) or not TICKER.exists():
        sys.exit('not built: make all guest')
    rows, failed = [], False
    if options.rounds == 0 and options.keep:
        with open(options.keep) as file:
            sys.exit(1 if table([json.loads(line) for line in file]) else 0)
    batch = options.batch or options.rounds
    try:
        for begun in range(0, options.rounds, batch):
            for kind in options.kinds or [*HOST_KINDS, *OTHER_KINDS]:
                failed = not try_rounds(kind, min(batch, options.rounds - begun), options.keep, rows) or failed
    except KeyboardInterrupt:
        failed = True
    failed = (table(rows) if rows else True) or failed
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
