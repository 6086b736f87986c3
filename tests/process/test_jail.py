"""The walls around a VMM: user, files, capabilities, cgroup; by hand with --user, and as the agent starts it.

What a VMM may do is looked up where the kernel says it (/proc/<pid>), and tried out: as the VMM's user on the host, which is
what is left when every other wall has fallen.
"""
import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import threading
import time

import pytest

from bed import ROOT, cgroup_mount, wait_until
from cluster import KVM_MISSING, KVM_MISSING_TEXT
from test_agent import GUEST, act, create, ticks, vm_dir, vmm_of, wait_ticking
from test_agent import cluster      # noqa: F401   a fixture
from test_vmm import LIMIT_S, VMM, Vmm

USER = 1900000000 + 4095
# in view of VMMs of sanitizer builds alone (jail.h)
SANITIZERS_OWN = {'/proc'} if os.environ.get('DROVER_KIND') in ('asan', 'tsan') else set()

pytestmark = [pytest.mark.skipif(not GUEST.exists(), reason='the test guest is not built: make guest'),
              pytest.mark.skipif(os.geteuid() != 0, reason='only root can become another user')]


def status_of(pid):
    text = pathlib.Path(f'/proc/{pid}/status').read_text()
    return dict(line.split(':\t', 1) for line in text.splitlines() if ':\t' in line)


def wait_jailed(pid):
    """Until the VMM has left root: it begins as root and says nothing before."""
    wait_until(lambda: status_of(pid)['Uid'].split()[0] != '0', what=f'VMM {pid} has left root', poll_s=0.005)


def mounts_of(pid):
    """Mount points of a process and their options."""
    lines = [line.split() for line in pathlib.Path(f'/proc/{pid}/mountinfo').read_text().splitlines()]
    return {line[4]: set(line[5].split(',')) for line in lines}


def as_user(user, *argv):
    """The status of a command of that user on this machine."""
    return subprocess.run(['setpriv', f'--reuid={user}', f'--regid={user}', '--clear-groups', '--no-new-privs',
                           '--inh-caps=-all', '--bounding-set=-all', '--', *map(str, argv)],
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode


def assert_walls(pid, user, home, *writable):
    """@writable: files outside its home that it may write to."""
    status = status_of(pid)
    assert status['Uid'].split() == [str(user)] * 4 and status['Gid'].split() == [str(user)] * 4
    assert status['Groups'].strip() == ''
    for kind in ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb'):
        assert int(status[kind], 16) == 0, kind
    assert status['NoNewPrivs'] == '1' and status['Seccomp'] == '2'
    limits = pathlib.Path(f'/proc/{pid}/limits').read_text()
    assert re.search(r'Max core file size +0 +0 ', limits)
    assert re.search(r'Max open files +8192 +8192 ', limits)
    mounts = mounts_of(pid)
    assert {'ro', 'nosuid', 'noexec'} <= mounts['/']
    assert {'rw', 'nosuid', 'nodev', 'noexec'} <= mounts[str(home)]
    assert {place for place, options in mounts.items() if 'rw' in options} - SANITIZERS_OWN == {str(home), *map(str, writable)}, mounts
    root = pathlib.Path(f'/proc/{pid}/root')
    top = {entry.name for entry in root.iterdir()}
    hidden = {'etc', 'usr', 'lib', 'bin', 'proc', 'sys', 'root', 'var'} - {place[1:] for place in SANITIZERS_OWN}
    # what lies above its home and above the guest's kernel is there, and empty but for those
    assert not top & hidden - {str(home).split('/')[1], str(ROOT).split('/')[1]}, top
    assert {str(p.relative_to(root / 'dev')) for p in (root / 'dev').rglob('*') if not p.is_dir()} <= {'kvm', 'net/tun'}


# ---- by hand

@pytest.fixture
def jailed(tmp_path):
    """jailed(cmdline, *options, **config): a VMM with a directory of its own, and control outside of it."""
    started = []

    def make(cmdline='', *options, user=USER, **config):
        home = tmp_path / 'home'
        if not home.exists():
            home.mkdir(mode=0o700)
            os.chown(home, user, user)
            home.chmod(0o700)
        for disk in config.get('disks', []):
            os.chown(disk['path'], user, user)
        # what pytest makes is closed to others; the jail's own directories are not these
        vm = Vmm(home, cmdline, '--control', str(tmp_path / 'control'), *(('--user', str(user)) if user else ()), *options,
                 **config)
        vm.control = tmp_path / 'control'
        vm.home = home
        started.append(vm)
        return vm.wait_listening()
    yield make
    for one in started:
        one.end()


def disk(path, size=1 << 20):
    with open(path, 'wb') as file:
        file.truncate(size)
    return path


def test_by_hand_with_a_user(jailed, tmp_path):
    outside = disk(tmp_path / 'outside')
    (tmp_path / 'secret').write_text('key')
    vm = jailed(disks=[{'path': str(outside)}], console_log_path=str(tmp_path / 'home' / 'console.log'))
    vm.console().wait(r'^tick 4$')
    assert_walls(vm.process.pid, USER, vm.home, outside)
    root = pathlib.Path(f'/proc/{vm.process.pid}/root')
    assert (root / str(outside)[1:]).stat().st_size == 1 << 20
    assert not (root / str(tmp_path / 'secret')[1:]).exists()
    vm.move('stopped')
    assert vm.process.wait(LIMIT_S) == 0
    log = (vm.home / 'console.log')
    assert log.stat().st_uid == USER and 'tick 4' in log.read_text()


def test_by_hand_without(jailed):
    vm = jailed(user=0)
    vm.console().wait(r'^tick 1$')
    assert re.search(r'no-jail vm=test user=0 without="own user, own view of files"', vm.log.read_text())


@pytest.mark.parametrize('options, words', [
    (['--user', 'root'], '"root" is not possible there'),
    (['--user', '0'], '"0" is not possible there'),
    (['--user', '4294967295'], '"4294967295" is not possible there'),
])
def test_wrong_users(tmp_path, options, words):
    vm = Vmm(tmp_path, '', *options)
    assert vm.process.wait(LIMIT_S) == 2 and words in vm.log.read_text()


def test_a_user_needs_root(tmp_path):
    (tmp_path / 'vm.json').write_text(json.dumps({'name': 'test', 'vcpus': 1, 'memory_bytes': 64 << 20, 'kernel': str(GUEST)}))
    with contextlib.ExitStack() as stack:       # below what others may enter
        for folder in [tmp_path, *tmp_path.parents][:4]:
            mode = folder.stat().st_mode & 0o7777
            stack.callback(folder.chmod, mode)
            folder.chmod(mode | 0o005)
        assert as_user(USER, VMM, '--config', tmp_path / 'vm.json', '--user', '65534') == 1


def test_disks_are_plugged_in_from_its_directory(jailed, tmp_path):
    vm = jailed()
    vm.console().wait(r'^tick 1$')
    inside, foreign = disk(vm.home / 'inside'), disk(vm.home / 'foreign')
    os.chown(inside, USER, USER)
    foreign.chmod(0o600)                        # in view, but root's
    status, answer = vm.request('POST', '/v1/vm/disks', {'path': str(inside), 'id': 'one'})
    assert status == 201, answer
    assert vm.request('PATCH', '/v1/vm/disks/one', {'size_bytes': 8 << 20})[0] == 200     # and it grows
    assert inside.stat().st_size == 8 << 20
    status, problem = vm.request('POST', '/v1/vm/disks', {'path': str(foreign)})
    assert status != 201 and 'Permission denied' in problem['detail']
    status, problem = vm.request('POST', '/v1/vm/disks', {'path': str(disk(tmp_path / 'outside'))})
    assert status != 201 and 'No such file' in problem['detail']
    assert vm.move('reset')[0] == 200           # the kernel is still to be had


def test_snapshot_and_restore(jailed, tmp_path):
    vm = jailed('dirty=4')
    console = vm.console()
    console.wait(r'^tick 3$')
    assert vm.request('POST', '/v1/vm/snapshot', {'path': str(tmp_path / 'outside')})[0] >= 400
    status, answer = vm.request('POST', '/v1/vm/snapshot', {'path': str(vm.home / 'snap'), 'then': 'stop'})
    assert status == 200, answer
    assert vm.process.wait(LIMIT_S) == 0
    while console.read(0.2):
        pass
    assert (vm.home / 'snap').stat().st_uid == USER
    again = jailed('dirty=4', '--restore', str(vm.home / 'snap'))
    second = again.console()
    second.wait_past(console.last_tick() + 2)
    assert 'hello' not in second.text and 'corrupt' not in second.text
    assert_walls(again.process.pid, USER, again.home)


def test_vsock_lies_in_its_directory(jailed, tmp_path):
    home = tmp_path / 'home'
    vm = jailed(vsock={'cid': 3, 'path': str(home / 'v')})
    vm.console().wait(r'^tick 1$')
    assert (home / 'v').is_socket() and (home / 'v').stat().st_uid == USER


def relay(listener, to):
    """One connection from @listener on to @to, both ways, until it ends: what agents do for their VMMs."""
    def copy(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    here, _ = listener.accept()
    with here, socket.socket(socket.AF_UNIX) as there:
        there.connect(to)
        back = threading.Thread(target=copy, args=(there, here))
        back.start()
        copy(here, there)
        back.join()


def test_migration_from_jail_to_jail(jailed, tmp_path):
    """Each sees its own directory alone: somebody who sees both carries the bytes."""
    vm = jailed('dirty=4')
    console = vm.console()
    console.wait(r'^tick 3$')
    there = tmp_path / 'there'
    there.mkdir()
    os.chown(there, USER - 1, USER - 1)
    target = Vmm(there, 'dirty=4', '--user', str(USER - 1), '--incoming', f'unix:{there}/in')
    try:
        second = target.wait_listening().console()
        wait_until((there / 'in').exists, what='the target listens', poll_s=0.005)
        assert (there / 'in').stat().st_uid == USER - 1
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(vm.home / 'out'))
            os.chown(vm.home / 'out', USER, USER)
            listener.listen()
            listener.settimeout(LIMIT_S)
            carrier = threading.Thread(target=relay, args=(listener, str(there / 'in')))
            carrier.start()
            status, answer = vm.request('POST', '/v1/vm/migration', {'to': f'unix:{vm.home}/out', 'verify': True})
            assert status == 202, answer
            console.drain()
            assert vm.process.wait(LIMIT_S) == 7, vm.log.read_text()
            carrier.join(LIMIT_S)
        second.wait_past(console.last_tick() + 2)
        assert 'hello' not in second.text and 'corrupt' not in second.text
        assert_walls(target.process.pid, USER - 1, there)
    finally:
        target.end()


# ---- by the agent

needs_cluster = pytest.mark.skipif(KVM_MISSING, reason=KVM_MISSING_TEXT)


def user_of(cluster, vm_id):
    return (vm_dir(cluster, vm_id)).stat().st_gid


@needs_cluster
def test_vms_are_walled_off(cluster):
    agent = cluster.agent(1)
    first = create(cluster, 'web1', disks=[{'name': 'root', 'size_bytes': 16 << 20}])
    second = create(cluster, 'web2', disks=[{'name': 'root', 'size_bytes': 16 << 20}])
    wait_ticking(cluster, first)
    wait_ticking(cluster, second)
    users = [user_of(cluster, vm_id) for vm_id in (first, second)]
    assert users[0] != users[1] and all(1900000000 <= user < 1900004096 for user in users)
    for vm_id, user in zip((first, second), users):
        (pid,) = vmm_of(cluster, vm_id)
        home = agent.data / 'vms' / vm_id
        assert_walls(pid, user, home)
        root = pathlib.Path(f'/proc/{pid}/root')
        # of all that the agent has, its own directory and the images that it boots are in view
        assert sorted(p.name for p in (root / str(agent.data)[1:]).iterdir()) == ['images', 'vms']
        assert [p.name for p in (root / str(agent.data)[1:] / 'vms').iterdir()] == [vm_id]
        assert len(list((root / str(agent.data)[1:] / 'images').iterdir())) == 1
        assert not (root / str(agent.data)[1:] / 'key.pem').exists()
    # and the rights of the files say the same, should the view ever be wider
    own, other = (agent.directory / 'vms' / vm_id / 'disks' / 'root.layers' / 'root.disk' for vm_id in (first, second))
    assert (own.stat().st_uid, own.stat().st_mode & 0o777) == (users[0], 0o600)
    with contextlib.ExitStack() as stack:
        for folder in [agent.directory, *agent.directory.parents]:     # only the last step is what is tried
            mode = folder.stat().st_mode & 0o7777
            stack.callback(folder.chmod, mode)
            folder.chmod(mode | 0o005)
        for folder in (agent.directory / 'vms', agent.directory / 'images'):
            stack.callback(folder.chmod, folder.stat().st_mode & 0o7777)
            folder.chmod(0o755)
        assert as_user(users[0], 'head', '-c1', own) == 0
        for path in (other, agent.directory / 'key.pem', vm_dir(cluster, first) / 'vm.json', vm_dir(cluster, first) / 'config.json',
                     vm_dir(cluster, second) / 'console.log', vm_dir(cluster, first) / 'vmm.lock'):
            assert path.exists() and as_user(users[0], 'head', '-c1', path) != 0, path
        for victim in ('vm.json', 'vmm.lock', 'config.json', 'vmm.log'):
            assert as_user(users[0], 'rm', '-f', vm_dir(cluster, first) / victim) != 0, victim
            assert as_user(users[0], 'mv', vm_dir(cluster, first) / 'console.log', vm_dir(cluster, first) / victim) != 0, victim
    act(cluster, 'DELETE', '/v1/vms/web1')
    act(cluster, 'DELETE', '/v1/vms/web2')


@needs_cluster
def test_user_stays_through_restarts(cluster):
    agent = cluster.agent(1)
    vm_id = create(cluster, 'web1')
    wait_ticking(cluster, vm_id)
    user = user_of(cluster, vm_id)
    (pid,) = vmm_of(cluster, vm_id)
    agent.program.kill9()
    agent.program.restart()
    agent.program.wait_for_text('vmm-adopted')
    assert vmm_of(cluster, vm_id) == [pid]
    act(cluster, 'POST', '/v1/vms/web1/pause')
    act(cluster, 'POST', '/v1/vms/web1/resume')
    os.kill(pid, 9)
    wait_until(lambda: (v := vmm_of(cluster, vm_id)) and v != [pid], 30, 'another VMM')
    wait_ticking(cluster, vm_id)
    assert user_of(cluster, vm_id) == user
    wait_jailed(vmm_of(cluster, vm_id)[0])
    assert status_of(vmm_of(cluster, vm_id)[0])['Uid'].split()[0] == str(user)


@needs_cluster
def test_lock_that_names_another_process_is_not_believed(cluster):
    """A VMM that was taken over can write to its lock's file; it must not make the agent kill others by it."""
    agent = cluster.agent(1)
    vm_id = create(cluster, 'web1')
    wait_ticking(cluster, vm_id)
    (pid,) = vmm_of(cluster, vm_id)
    lock = vm_dir(cluster, vm_id) / 'vmm.lock'
    text = lock.read_text()
    victim = subprocess.Popen(agent.host.door + ['sleep', '100'])
    try:
        wait_until(lambda: pathlib.Path(f'/proc/{victim.pid}/task/{victim.pid}/children').read_text().split(), what='the victim')
        inner = int(pathlib.Path(f'/proc/{victim.pid}/task/{victim.pid}/children').read_text().split()[0])
        local = status_of(inner)['NSpid'].split()[-1]
        start = pathlib.Path(f'/proc/{inner}/stat').read_text().rpartition(')')[2].split()[19]
        agent.program.kill9()
        lock.write_text(' '.join([local, start, *text.split()[2:]]) + '\n')
        agent.program.restart()
        wait_until(lambda: cluster.hosts_up() == 1, 30, 'the host is up')
        time.sleep(1)
        assert 'vmm-adopted' not in agent.program.text().rpartition('---- start ')[2]
        lock.write_text(text)
        agent.program.wait_for_text('vmm-adopted')
        assert vmm_of(cluster, vm_id) == [pid] and victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


@needs_cluster
def test_directory_of_an_agent_before_users(cluster):
    """A VM that ran as root is adopted as it is, and becomes a user's with its next start."""
    agent = cluster.agent(1)
    agent.program.stop()
    agent.program.argv += ['--vmm-uid-base', '0']
    agent.program.restart()
    agent.program.wait_for_text('no user and files of their own: --vmm-uid-base 0')
    wait_until(lambda: cluster.hosts_up() == 1, 30, 'the host is up')
    vm_id = create(cluster, 'web1', disks=[{'name': 'root', 'size_bytes': 16 << 20}])
    wait_ticking(cluster, vm_id)
    (pid,) = vmm_of(cluster, vm_id)
    assert status_of(pid)['Uid'].split()[0] == '0'
    agent.program.stop()
    agent.program.argv = agent.program.argv[:-2]
    agent.program.restart()
    agent.program.wait_for_text('vmm-adopted')
    assert vmm_of(cluster, vm_id) == [pid]
    os.kill(pid, 9)
    wait_until(lambda: (v := vmm_of(cluster, vm_id)) and v != [pid], 30, 'another VMM')
    wait_ticking(cluster, vm_id)
    user = user_of(cluster, vm_id)
    (pid,) = vmm_of(cluster, vm_id)
    assert_walls(pid, user, agent.data / 'vms' / vm_id)
    layers = vm_dir(cluster, vm_id) / 'disks' / 'root.layers'
    assert {path.stat().st_uid for path in [layers, *layers.iterdir()]} == {user}
    assert (vm_dir(cluster, vm_id) / 'console.log').stat().st_uid == user
    assert len(ticks(cluster, vm_id)) == 2      # the log goes on


@needs_cluster
def test_cgroup_and_status(cluster):
    agent = cluster.agent(1)
    host = cluster.items('/v1/hosts')[0]
    assert host['isolation'].startswith('user, files, system calls, '), host
    if cgroup_mount() is None:
        assert 'no cgroup' in host['isolation']
        pytest.skip('this machine has no cgroup version 2 that can be written to')
    vm_id = create(cluster, 'web1')
    wait_ticking(cluster, vm_id)
    (pid,) = vmm_of(cluster, vm_id)
    group = agent.host.cgroup / 'drover' / f'vm-{vm_id}'
    assert str(pid) in (group / 'cgroup.procs').read_text().split()
    if 'without' not in host['isolation']:
        assert (group / 'cpu.weight').read_text() == '100\n' and (group / 'pids.max').read_text() == '1024\n'
    act(cluster, 'POST', '/v1/vms/web1/stop?force=true')
    wait_until(lambda: not group.exists(), 10, 'the group is gone with the VMM')
    act(cluster, 'DELETE', '/v1/vms/web1')
    assert list((agent.host.cgroup / 'drover').glob('vm-*')) == []


@needs_cluster
def test_without_cgroups_it_says_so(cluster):
    agent = cluster.agent(1)
    agent.program.stop()
    agent.host.run(['sh', '-c', 'mount -t tmpfs -o ro none /sys'])
    agent.program.restart()
    agent.program.wait_for_text('no cgroup: version 2 is not mounted on this host')
    wait_until(lambda: 'no cgroup' in cluster.items('/v1/hosts')[0].get('isolation', ''), 30, 'the host says it')
    vm_id = create(cluster, 'web1')
    wait_ticking(cluster, vm_id)                # it runs all the same
