"""The agent with real controllers, VMMs and guests: guests outlive it, what ends badly comes back, nothing stays behind.

The guest is the ticker of tests/guest: it counts on its console, so a guest that was touched begins again at 1.
"""
import contextlib
import hashlib
import json
import os
import pathlib
import random
import re
import signal
import time

import pytest

from bed import BedError, ROOT, wait_until
from cluster import KVM_MISSING, KVM_MISSING_TEXT

GUEST = ROOT / 'build' / 'guest' / 'ticker.elf'


pytestmark = [pytest.mark.skipif(not GUEST.exists(), reason='the test guest is not built: make guest'),
              pytest.mark.skipif(KVM_MISSING, reason=KVM_MISSING_TEXT)]


@pytest.fixture
def cluster(make_cluster):
    made = make_cluster(controllers=1, agents=1)
    checksum = hashlib.sha256(GUEST.read_bytes()).hexdigest()
    made.api('POST', '/v1/images', {'name': 'ticker', 'kind': 'kernel',
                                    'kernel': {'url': f'file://{GUEST}', 'sha256': checksum}})
    return made


def create(cluster, name, **fields):
    body = {'name': name, 'image': 'ticker', 'vcpus': 1, 'memory_bytes': 64 << 20, **fields}
    status, _, operation = cluster.api('POST', '/v1/vms', body)
    assert status == 202, operation
    cluster.wait_operation(operation)
    return cluster.vm(name)['id']


def act(cluster, method, path):
    status, _, operation = cluster.api(method, path)
    assert status == 202, operation
    return cluster.wait_operation(operation)


def vm_dir(cluster, vm_id):
    return cluster.agent(1).directory / 'vms' / vm_id


def ticks(cluster, vm_id):
    """Ticks of every life of the guest, in order: [[1, 2, 3], [1, 2]]."""
    with contextlib.suppress(OSError):
        text = (vm_dir(cluster, vm_id) / 'console.log').read_text(errors='replace')
        return [[int(n) for n in re.findall(r'^tick (\d+)', life, re.M)] for life in text.split('drover-guest: hello')[1:]]
    return []


def wait_ticking(cluster, vm_id, timeout_s=30):
    """Until the last life of the guest ticks on from where it is."""
    def last():
        lives = ticks(cluster, vm_id)
        return (len(lives), lives[-1][-1]) if lives and lives[-1] else (0, 0)
    before = last()
    wait_until(lambda: last() > before and last()[1] > 0, timeout_s, f'guest {vm_id} ticks')


def vmm_of(cluster, vm_id):
    """Living VMMs of a VM; more than one would be the worst that can happen."""
    found = []
    for pid in cluster.agent(1).vmm_pids():
        with contextlib.suppress(OSError):
            if vm_id in pathlib.Path(f'/proc/{pid}/cmdline').read_text():
                found.append(pid)
    return found


def test_a_vm_runs_and_leaves_nothing(cluster):
    agent = cluster.agent(1)
    agent.host.run(['ip', 'link', 'add', 'lan0', 'type', 'bridge'])
    agent.host.run(['ip', 'link', 'set', 'lan0', 'up'])
    vm_id = create(cluster, 'web1', disks=[{'name': 'root', 'size_bytes': 16 << 20}], nics=[{'bridge': 'lan0'}])
    wait_ticking(cluster, vm_id)
    assert len(vmm_of(cluster, vm_id)) == 1
    (top,) = (vm_dir(cluster, vm_id) / 'disks' / 'root.layers').glob('*.raw')
    assert top.stat().st_size == 16 << 20 and top.stat().st_blocks == 0
    taps = agent.host.run(['ip', '-br', 'link', 'show', 'master', 'lan0']).stdout
    assert taps.startswith('dv'), taps
    act(cluster, 'DELETE', '/v1/vms/web1')
    assert vmm_of(cluster, vm_id) == []
    assert list((agent.directory / 'vms').iterdir()) == []
    assert list((agent.directory / 'run').iterdir()) == []
    assert agent.host.run(['ip', '-br', 'link', 'show', 'master', 'lan0']).stdout == ''
    assert cluster.vm('web1') is None


def test_failures_name_their_cure(cluster):
    body = {'name': 'lost', 'image': 'ticker', 'vcpus': 1, 'memory_bytes': 64 << 20, 'nics': [{'bridge': 'lan7'}]}
    _, _, operation = cluster.api('POST', '/v1/vms', body)
    done = wait_until(lambda: (o := cluster.api('GET', f'/v1/operations/{operation["id"]}')[2])['state'] != 'running' and o,
                      30, 'the operation ends')
    assert done['state'] == 'failed'
    assert 'no bridge lan7' in done['error_text'] and '--bridge-create' in done['error_text']
    # and once it is cured, the VM runs without anybody asking again
    cluster.agent(1).host.run(['ip', 'link', 'add', 'lan7', 'type', 'bridge'])
    cluster.wait_vm('lost', 'running', 90)


def test_guest_outlives_the_agent(cluster):
    agent = cluster.agent(1)
    vm_id = create(cluster, 'web1')
    wait_ticking(cluster, vm_id)
    pids = vmm_of(cluster, vm_id)
    agent.program.kill9()
    assert vmm_of(cluster, vm_id) == pids
    wait_ticking(cluster, vm_id)        # nobody is there, and it ticks
    agent.program.restart()
    agent.program.wait_for_text('vmm-adopted')
    wait_until(lambda: cluster.hosts_up() == 1, 30, 'the host is up')
    act(cluster, 'POST', '/v1/vms/web1/pause')
    act(cluster, 'POST', '/v1/vms/web1/resume')
    wait_ticking(cluster, vm_id)
    assert vmm_of(cluster, vm_id) == pids
    assert len(ticks(cluster, vm_id)) == 1      # it was never booted again
    assert cluster.vm('web1')['restarts'] == 0
    assert agent.program.stop() == 0            # and a friendly end leaves it alone too
    assert vmm_of(cluster, vm_id) == pids


def test_guest_outlives_the_controllers(cluster):
    vm_id = create(cluster, 'web1')
    pids = vmm_of(cluster, vm_id)
    controller, agent = cluster.controller(1), cluster.agent(1)
    controller.program.kill9()
    agent.program.kill9()
    agent.program.restart()             # with nobody to ask, it adopts what runs and touches nothing
    agent.program.wait_for_text('session-failed')
    wait_ticking(cluster, vm_id)
    assert vmm_of(cluster, vm_id) == pids
    os.kill(pids[0], signal.SIGKILL)    # but starts nothing: only the controllers know whether the VM is still ours
    agent.program.wait_for_text('vmm-ended')
    time.sleep(2.5)                     # longer than the pause before a restart
    assert vmm_of(cluster, vm_id) == []
    controller.program.restart()
    wait_until(lambda: vmm_of(cluster, vm_id), 30, 'the VMM is started again')
    wait_ticking(cluster, vm_id)


def test_killed_vmm_comes_back(cluster):
    vm_id = create(cluster, 'web1')
    wait_ticking(cluster, vm_id)
    (pid,) = vmm_of(cluster, vm_id)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: (v := vmm_of(cluster, vm_id)) and v != [pid], 30, 'another VMM')
    wait_ticking(cluster, vm_id)
    assert wait_until(lambda: cluster.vm('web1').get('restarts'), 10, 'the restart is seen') == 1


def test_powered_off_guest_stays_off(cluster):
    vm_id = create(cluster, 'web1', cmdline='halt=3')
    cluster.wait_vm('web1', 'stopped', 30)
    assert cluster.vm('web1')['state_reason'] == 'the guest powered off'
    cluster.agent(1).program.kill9()
    cluster.agent(1).program.restart()
    wait_until(lambda: cluster.hosts_up() == 1, 30, 'the host is up')
    assert vmm_of(cluster, vm_id) == []
    act(cluster, 'POST', '/v1/vms/web1/start')
    cluster.wait_vm('web1', 'stopped', 30)
    assert len(ticks(cluster, vm_id)) == 2


def test_guest_powers_off_while_the_agent_is_away(cluster):
    vm_id = create(cluster, 'web1', cmdline='halt=40')
    wait_until(lambda: ticks(cluster, vm_id) not in ([], [[]]), 30, 'the guest ticks')      # and may be through with it soon
    cluster.agent(1).program.kill9()
    wait_until(lambda: not vmm_of(cluster, vm_id), 30, 'the guest has powered off')
    cluster.agent(1).program.restart()
    cluster.wait_vm('web1', 'stopped', 30)      # by the word that its VMM left behind
    assert cluster.vm('web1')['restarts'] == 0 and len(ticks(cluster, vm_id)) == 1


def test_host_power_failure(cluster):
    vm_id = create(cluster, 'web1')
    wait_ticking(cluster, vm_id)
    host = cluster.agent(1).host
    host.power_off()
    cluster.boot(1)
    wait_until(lambda: vmm_of(cluster, vm_id), 60, 'the VM is started again')
    wait_ticking(cluster, vm_id)


def seed():
    return int(os.environ.get('DROVER_SEED', random.randrange(1 << 30)))


def random_kills(cluster, rounds, seed):
    """kill -9 of the agent or a VMM at random instants; at any time one VMM per VM at most, in the end all run."""
    print(f'seed {seed}')
    rng = random.Random(seed)
    agent = cluster.agent(1)
    names = ['web1', 'web2', 'web3']
    ids = {name: create(cluster, name, restart='always') for name in names}
    for _ in range(rounds):
        victim = rng.choice(['agent', 'agent', 'vmm'])
        if victim == 'agent' and agent.program.alive:
            agent.program.kill9()
        elif victim == 'vmm':
            for pid in vmm_of(cluster, ids[rng.choice(names)]):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if rng.random() < 0.2:      # both at once: the agent comes back to a VMM that has gone
            for pid in vmm_of(cluster, ids[rng.choice(names)]):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(rng.choice([0, 0.001, 0.01, 0.05, 0.2]))
        for name in names:
            assert len(vmm_of(cluster, ids[name])) <= 1, f'{name} runs twice'
        if not agent.program.alive and rng.random() < 0.8:
            agent.program.restart()
        time.sleep(rng.uniform(0, 0.3))
    if not agent.program.alive:
        agent.program.restart()
    for name in names:
        cluster.wait_vm(name, 'running', 120)
        wait_ticking(cluster, ids[name])
        assert len(vmm_of(cluster, ids[name])) == 1
    for name in names:
        act(cluster, 'DELETE', f'/v1/vms/{name}')
    assert agent.vmm_pids() == []
    assert list((agent.directory / 'vms').iterdir()) == []


def test_random_kills(cluster):
    random_kills(cluster, 30, seed())


@pytest.mark.slow
def test_random_kills_long(cluster):
    random_kills(cluster, 500, seed())


@pytest.mark.skipif(not os.path.exists('/usr/share/seabios/bios-256k.bin') or not os.path.exists('/usr/share/OVMF/OVMF_VARS_4M.fd'),
                    reason='the packages seabios and ovmf are not installed')
def test_a_disk_image_is_booted_by_firmware(cluster):
    """What the VMM is told; that the firmware then boots a system is the lab's affair: here KVM emulates kernel code."""
    disk = cluster.bed.directory / 'disk.img'
    disk.write_bytes(bytes(1 << 20))
    artifact = {'url': f'file://{disk}', 'sha256': hashlib.sha256(disk.read_bytes()).hexdigest()}
    for name, fields in (('plain', {}), ('efi', {'firmware': 'uefi'})):
        status, _, answer = cluster.api('POST', '/v1/images', {'name': name, 'kind': 'disk', 'disk': artifact, **fields})
        assert status == 201, answer
        try:
            vm_id = create(cluster, name, image=name)
        except BedError as error:   # a KVM that emulates the firmware's code may give up at once, or later, or never
            assert 'KVM could not go on' in str(error), error
            vm_id = cluster.vm(name)['id']
        config = json.loads((vm_dir(cluster, vm_id) / 'config.json').read_text())
        assert 'kernel' not in config and 'cmdline' not in config
        assert config['firmware'] == ('bios' if name == 'plain' else 'uefi')
        (root,) = [d for d in config['disks'] if d.get('format') == 'layers']   # above the image, not a copy of it
        head = vm_dir(cluster, vm_id) / 'disks' / 'root.layers' / pathlib.Path(root['path']).name
        base = head.parent / (artifact['sha256'] + '.img')
        assert head.exists() and base.stat().st_nlink >= 2 and len(list(head.parent.glob('*.raw'))) == 1
        assert base.stat().st_uid == os.getuid()        # nobody's VM owns what all of them read
        variables = vm_dir(cluster, vm_id) / 'uefi-variables.fd'
        assert variables.exists() == (name == 'efi')
        act(cluster, 'DELETE', f'/v1/vms/{name}')
        wait_until(lambda: not vm_dir(cluster, vm_id).exists(), 10, 'the files are gone')
