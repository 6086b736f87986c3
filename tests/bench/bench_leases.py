#!/usr/bin/python3
"""What leases cost the controllers: 50 hosts with 2,000 VMs, all with ha, in front of three real controllers.

    make bench-leases         prints a table; build/bench/leases.json has the numbers; exit status 1 where the promise is missed

The hosts are bench_leases.c: the agents' own sessions and leases, without VMMs. Processor time of each controller (all of its
threads, from /proc) while nothing else happens: hosts that only report, then hosts that ask for leases as well. The
difference is the lease traffic: the hosts' questions and the leader's looks.
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
from api_client import PORT, Controllers, wait_for  # noqa: E402

HOSTS = int(os.environ.get('HOSTS', '50'))
VMS = int(os.environ.get('VMS', '2000'))
SECONDS = int(os.environ.get('SECONDS_EACH', '30'))
PROMISE_PERCENT = 5.0
MIB = 1 << 20
PROGRAM = ROOT / 'build' / 'debug' / 'tests' / 'bench' / 'bench_leases'


class Hosts:
    """The program, and what it said last."""

    def __init__(self, cluster, directory, count):
        addresses = [f'{m.address}:{PORT}' for m in cluster.members]
        self.process = subprocess.Popen([PROGRAM, directory, str(count), *addresses], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.said = {}
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.process.stdout:
            self.said = json.loads(line)

    def tell(self, word):
        self.process.stdin.write(word + '\n')
        self.process.stdin.flush()

    def close(self):
        self.process.kill()
        self.process.wait()


def join(cluster, directory, number):
    """As a host would; its files in @directory/<number>."""
    place = directory / str(number)
    place.mkdir(parents=True)
    subprocess.run(['openssl', 'req', '-new', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', '/CN=x',
                    '-keyout', place / 'key.pem', '-out', place / 'csr.pem'], check=True, capture_output=True)
    status, _, answer = cluster.request('POST', '/v1/join', {
        'token': cluster.token('host'), 'role': 'host', 'name': f'h{number}', 'address': '127.0.0.1:7445',
        'csr_pem': (place / 'csr.pem').read_text()}, identity=None)
    assert status == 201, answer
    for name, text in (('cert.pem', answer['cert_pem']), ('ca.pem', answer['ca_pem']), ('id', answer['id'])):
        (place / name).write_text(text)


def make_vms(cluster, count):
    connection = cluster.leader().connect()
    image = {'name': 'tiny', 'kind': 'kernel', 'kernel': {'url': 'file:///boot/vmlinuz', 'sha256': 'a' * 64}}
    assert connection.call('POST', '/v1/images', image)[0] == 201
    for i in range(count):
        status, _, body = connection.call('POST', '/v1/vms', {'name': f'v{i}', 'image': 'tiny', 'vcpus': 1,
                                                              'memory_bytes': 64 * MIB, 'ha': True})
        assert status == 202, body
    connection.close()


def running(cluster):
    return sum(vm['state'] == 'running' for vm in all_vms(cluster))


def all_vms(cluster):
    status, _, body = cluster.request('GET', f'/v1/vms?limit={VMS}&fields=state')
    assert status == 200, body
    return body


def cpu_seconds(member):
    """Of all its threads, those that have ended too."""
    fields = pathlib.Path(f'/proc/{member.process.pid}/stat').read_text().rsplit(')', 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def measure(cluster, seconds):
    """{member: percent of one core}"""
    begin, before = time.monotonic(), {m.name: cpu_seconds(m) for m in cluster.members}
    time.sleep(seconds)
    took = time.monotonic() - begin
    return {m.name: (cpu_seconds(m) - before[m.name]) / took * 100 for m in cluster.members}


def bench(cluster, directory):
    for number in range(HOSTS):
        join(cluster, directory, number)
    hosts = Hosts(cluster, directory, HOSTS)
    try:
        wait_for(lambda: hosts.said.get('connected') == HOSTS, 60, 'all hosts are connected')
        hosts.tell('leases')
        wait_for(lambda: hosts.said.get('held') == HOSTS, 60, 'all leases are held')
        make_vms(cluster, VMS)
        wait_for(lambda: running(cluster) == VMS, 120, 'all VMs are said to run')
        time.sleep(3)
        leader = cluster.leader().name
        with_leases = measure(cluster, SECONDS)
        said = dict(hosts.said)
        lost = [h['name'] for h in cluster.request('GET', '/v1/hosts')[2] if h['state'] != 'up']
        assert cluster.request('POST', '/v1/ha/disarm')[0] == 200  # nobody is to be declared lost in what follows
        hosts.tell('no leases')
        time.sleep(8)
        without = measure(cluster, SECONDS)
    finally:
        hosts.close()
    return leader, with_leases, without, said, lost


def main():
    with Controllers('leases', 3) as cluster:
        leader, with_leases, without, said, lost = bench(cluster, cluster.directory / 'hosts')
    print(f'{HOSTS} hosts, {VMS} VMs with ha, {SECONDS} s each; load average {os.getloadavg()[0]:.1f}; '
          f'{said["held"]} leases held, {len(lost)} hosts not up')
    print('controller        with leases   without   lease traffic   (percent of one core)')
    worst = 0.0
    for name in sorted(with_leases):
        cost = max(with_leases[name] - without[name], 0.0)
        worst = max(worst, cost)
        print(f'{name + (" (leader)" if name == leader else ""):16} {with_leases[name]:9.2f} %{without[name]:9.2f} %'
              f'{cost:12.2f} %')
    kept = worst < PROMISE_PERCENT and said['held'] == HOSTS and not lost
    print(f'{"kept" if kept else "MISSED"}: {worst:.2f} % of one core for leases, promised less than {PROMISE_PERCENT:.0f} %')
    out = ROOT / 'build' / 'bench'
    out.mkdir(parents=True, exist_ok=True)
    (out / 'leases.json').write_text(json.dumps({'hosts': HOSTS, 'vms': VMS, 'leader': leader, 'with_leases': with_leases,
                                                 'without': without, 'held': said['held'], 'lost': lost}, indent=1) + '\n')
    return 0 if kept else 1


if __name__ == '__main__':
    sys.exit(main())
