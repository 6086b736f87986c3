"""The command line against real controllers: what a person types, and what becomes of it."""
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios

import pytest

from bed import BedError
from cluster import missing_programs, program


def test_a_label_more_takes_no_other_away(make_cluster):
    cluster = make_cluster(controllers=1, agents=0)
    cluster.cli('flavor', 'create', 'small', '--vcpus', '1', '--memory', '64MiB', '--label', 'backup-policy=nightly')

    def labels(*words):
        changed = cluster.cli('flavor', 'update', 'small', *words)
        assert cluster.cli('flavor', 'show', 'small')['labels'] == changed['labels']
        return changed['labels']
    assert labels('--label', 'tier=web', '--label', 'owner=ann') == {'backup-policy': 'nightly', 'tier': 'web', 'owner': 'ann'}
    assert labels('--label', 'tier=', '--label', 'owner=bob') == {'backup-policy': 'nightly', 'owner': 'bob'}
    assert labels('--label', 'tier=') == {'backup-policy': 'nightly', 'owner': 'bob'}
    assert cluster.cli('flavor', 'update', 'small', '--label', 'none', '--dry-run', '--output', 'json')['labels'] == {}
    assert labels('--label', 'none', '--label', 'a=b') == {'a': 'b'}
    # the cluster has no name in its path
    assert cluster.cli('cluster', 'update', '--label', 'site=north')['labels'] == {'site': 'north'}
    assert cluster.cli('cluster', 'update', '--label', 'rack=7')['labels'] == {'site': 'north', 'rack': '7'}
    # the API itself takes what it is given for all there is
    status, _, changed = cluster.api('PATCH', '/v1/flavors/small', {'labels': {'c': 'd'}}, {'Idempotency-Key': 'one'})
    assert (status, changed['labels']) == (200, {'c': 'd'})


def test_a_rule_more_takes_no_other_away_unasked(make_cluster):
    cluster = make_cluster(controllers=1, agents=0)
    https, ssh = 'direction=inbound,protocol=tcp,port-first=443', 'direction=inbound,protocol=tcp,port-first=22,remote-group=web'
    made = cluster.cli('security-group', 'create', 'web', '--rule', https, '--rule', ssh)
    with pytest.raises(BedError, match=f'security-group web would lose --rule {https} --rule {ssh}'):
        cluster.cli('security-group', 'update', 'web', '--rule', 'direction=inbound,protocol=icmp')
    assert cluster.cli('security-group', 'show', 'web') == made
    changed = cluster.cli('security-group', 'update', 'web', '--rule', https, '--rule', ssh, '--rule', 'direction=inbound,protocol=icmp')
    assert changed['rules'] == [*made['rules'], {'direction': 'inbound', 'protocol': 'icmp'}]
    assert cluster.cli('security-group', 'update', 'web', '--rule', https, '--yes')['rules'] == made['rules'][:1]


def test_a_label_that_names_no_policy_is_told(make_cluster):
    """The VM is made and labelled all the same; and a policy that VMs have does not go without a word."""
    cluster = make_cluster(controllers=1, agents=0)
    cluster.cli('image', 'create', 'i', '--kind', 'kernel', '--kernel', 'url=https://example.org/k,sha256=' + 64 * '0')
    cluster.cli('vm', 'create', 'web', '--image', 'i', '--vcpus', '1', '--memory', '64MiB', '--started=false')

    def said(*words):
        return cluster.bed.run(cluster.cli_command('vm', 'update', 'web', *words)).stderr
    assert said('--label', 'backup-policy=nightly').strip() == (
        "drover: there is no backup-policy 'nightly': as long as there is none, VM web is not backed up by it")
    cluster.cli('backup-store', 'create', 'nas', '--location', '/srv/backups')
    cluster.cli('backup-policy', 'create', 'nightly', '--store', 'nas', '--every-s', '3600')
    assert not said('--label', 'backup-policy=nightly') and not said('--label', 'backup-policy=') and not said('--restart', 'never')
    cluster.cli('vm', 'update', 'web', '--label', 'backup-policy=nightly')
    with pytest.raises(BedError, match="policy 'nightly' has VM 'web' backed up"):
        cluster.cli('backup-policy', 'delete', 'nightly', '--yes')
    cluster.cli('backup-policy', 'delete', 'nightly', '--yes', '--force', parse=False)
    assert cluster.cli('backup-policy', 'list') == []


# ---- what needs no cluster

def drover(*words, **more):
    if missing_programs():
        pytest.skip('not built')
    return subprocess.run([program('drover'), *words], text=True, capture_output=True, timeout=30, stdin=subprocess.DEVNULL, **more)


def test_help_says_what_is_typed():
    deletes = drover('vm', 'delete', '--help').stdout
    assert '--force: where its host is lost' in ' '.join(deletes.split()) and '?force' not in deletes
    parts = set(re.findall(r'^ +([a-z-]+)= ', drover('vm', 'update', '--help').stdout, re.M))
    assert {'name', 'pool', 'mac', 'security-group'} <= parts and not parts & {'moving', 'allocated', 'number', 'limits'}
    noun = drover('security-group', '--help').stdout
    assert noun.count('port-first=443') == 2    # the example of update names what create has opened


def test_help_is_as_wide_as_the_terminal():
    def widest(columns):
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))
        process = subprocess.Popen([program('drover'), 'vm', 'update', '--help'], stdout=slave, stdin=subprocess.DEVNULL)
        os.close(slave)
        text = b''
        try:
            while piece := os.read(master, 65536):
                text += piece
        except OSError:
            pass    # its end, as a terminal tells it
        os.close(master)
        assert process.wait() == 0
        fields = text.decode().split('Fields:')[1].split('Options of every')[0]
        return max(len(line) for line in fields.splitlines())
    if missing_programs():
        pytest.skip('not built')
    assert widest(80) < 80 < widest(95) < 95 < widest(300) <= 100


def test_output_that_is_not_all_written():
    with open('/dev/full', 'w') as full:
        done = subprocess.run([program('drover'), 'vm', '--help'], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and 'cannot write all of the output: No space left on device' in done.stderr
    read, write = os.pipe()
    os.close(read)    # as `| head` that has had enough
    done = subprocess.run([program('drover'), 'vm', '--help'], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, '')


# ---- what else a cluster shows

def test_small_things(make_cluster):
    cluster = make_cluster(controllers=1, agents=0)

    def run(*words, **more):
        return cluster.bed.run(cluster.cli_command(*words), **more)
    assert run('ha', 'disarm').stdout == 'ha: done\n'
    assert run('cluster', 'update', '--label', 'a=b').stdout == 'cluster: done\n'
    # nobody is there: which controller, and why, once
    where = cluster.controllers[0].host.address
    gone = cluster.bed.run([*cluster.cli_command('vm', 'list'), '--endpoint', f'{where}:9,{where}:10', '--timeout', '1'], check=False)
    assert gone.returncode == 9 and gone.stderr.startswith(f'drover: none of 2 controllers answers, the last one asked was {where}:')
    assert 'https://' not in gone.stderr and '/v1/' not in gone.stderr
    # whoever reads what is followed has had enough
    following = subprocess.Popen([str(word) for word in cluster.bed.door + cluster.cli_command('event', 'follow')],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert following.stdout.readline()
    following.stdout.close()
    for _ in range(20):    # what it had written before is in the pipe, perhaps
        cluster.cli('cluster', 'update', '--label', 'a=c')
        cluster.cli('cluster', 'update', '--label', 'a=b')
        if following.poll() is not None:
            break
    try:
        assert (following.wait(10), following.stderr.read()) == (0, b'')
    finally:
        following.kill()
        following.stderr.close()
    # operations by age: their ids are random
    cluster.cli('image', 'create', 'i', '--kind', 'kernel', '--kernel', 'url=https://example.org/k,sha256=' + 64 * '0')
    for i in range(4):
        cluster.cli('vm', 'create', f'vm{i}', '--image', 'i', '--vcpus', '1', '--memory', '64MiB', '--started=false')
    assert [item['target_name'] for item in cluster.cli('operation', 'list')] == ['vm0', 'vm1', 'vm2', 'vm3']


def test_status_counts_all_vms_that_are_not_as_wanted(make_cluster):
    cluster = make_cluster(controllers=1, agents=0)
    cluster.cli('image', 'create', 'i', '--kind', 'kernel', '--kernel', 'url=https://example.org/k,sha256=' + 64 * '0')
    for i in range(53):
        status, _, _ = cluster.api('POST', '/v1/vms', {'name': f'vm{i}', 'image': 'i', 'vcpus': 1, 'memory_bytes': 1 << 26, 'started': i < 52})
        assert status == 202
    amiss = cluster.cli('cluster', 'status')['vms_not_as_wanted']    # there is no host for them
    assert len({vm['name'] for vm in amiss}) == len(amiss) == 53
    text = cluster.bed.run(cluster.cli_command('cluster', 'status')).stdout
    assert 'VMs not as wanted (53; the first of them)' in text and text.count('\nvm') == 50


def test_a_host_that_joins_once_more(make_cluster):
    cluster = make_cluster(controllers=1, agents=1)
    agent, token = cluster.agent(1), cluster.token('host')
    where = agent.host.address

    def join(name, address, token=token):
        return agent.host.run([agent.binary, 'join', '--data', agent.data, '--address', address, '--name', name, '--token', token], check=False)
    for address in (where, f'{where}:7445'):
        done = join('n1', address)
        assert (done.returncode, done.stdout) == (0, f'{agent.data} is host n1 of that cluster already; nothing was changed '
                                                     '(if it was removed there, give another --data)\n')
    for done in (join('n2', where), join('n1', '10.9.9.9'), join('n1', where, token.replace(token.split('/')[4], '00000000-0000-4000-8000-000000000000'))):
        assert done.returncode == 1 and f"{agent.data} is host 'n1' at {where}:7445 of cluster" in done.stderr
    assert [host['name'] for host in cluster.cli('host', 'list')] == ['n1']
    assert next(t for t in cluster.cli('token', 'list') if token.split('/')[1] == t['id'])['uses'] == 0
