"""The process bed itself: wires, faults, programs, and that nothing stays behind."""
import os
import pathlib
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

import bed as bed_module
from bed import Bed, BedError, wait_until

PYTHON = '/usr/bin/python3'

SEND_FIVE = 'import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM); [s.sendto(b"x", (sys.argv[1], 9)) for _ in range(5)]'


def ping(host, address):
    return host.run(['busybox', 'ping', '-c', '1', '-W', '1', '-q', address], check=False).returncode == 0


def sees(host, address):
    """Within some seconds: after a cut the neighbour's address is asked for again only once a second."""
    return any(ping(host, address) for _ in range(5))


def silent(host, address):
    return not ping(host, address)


def test_hosts_see_each_other(make_bed):
    bed = make_bed(3)
    for a in bed.hosts:
        for b in bed.hosts:
            assert sees(a, b.address), f'{a} does not see {b}'
    assert bed.host(2).run(['hostname']).stdout == 'host2\n'
    # nothing of this machine's own network is there
    assert sorted(os.listdir('/sys/class/net')) != []
    names = bed.host(1).run(['ls', '/sys/class/net']).stdout.split()
    assert [name for name in names if name.startswith('eth')] == ['eth0']


def test_cut_oneway_isolate_heal(make_bed):
    bed = make_bed(3)
    one, two, three = bed.hosts
    bed.cut(1, 2)
    assert silent(one, two.address) and silent(two, one.address)
    assert sees(one, three.address) and sees(two, three.address)
    bed.heal()
    assert sees(one, two.address)
    bed.isolate(3)
    assert silent(three, one.address) and silent(two, three.address)
    assert sees(one, two.address)
    assert sees(bed, three.address)
    bed.heal()
    bed.oneway(1, 2)
    # an answer would have to pass the lost direction; count what arrives instead
    def received(host):
        return int(host.run(['cat', '/sys/class/net/eth0/statistics/rx_packets']).stdout)
    for target, source, passes in ((two, one, False), (one, two, True)):
        target_ether = target.run(['cat', '/sys/class/net/eth0/address']).stdout.strip()
        source.run(['ip', 'neigh', 'replace', target.address, 'lladdr', target_ether, 'dev', 'eth0', 'nud', 'permanent'])
        before = received(target)
        source.run([PYTHON, '-c', SEND_FIVE, target.address])
        if passes:
            wait_until(lambda: received(target) - before >= 5, what='they arrive')    # pylint: disable=cell-var-from-loop
        else:
            assert received(target) - before < 5


def test_programs_end_and_come_back(make_bed):
    bed = make_bed(1)
    host = bed.host(1)
    (host.directory / 'www').mkdir()
    (host.directory / 'www' / 'index.html').write_text('hello')
    web = host.start('web', ['busybox', 'httpd', '-f', '-v', '-p', '80', '-h', host.directory / 'www'])

    def get(timeout_s=2):
        with bed.inside():
            return urllib.request.urlopen(f'http://{host.address}/', timeout=timeout_s).read()

    def answers():
        try:
            return get() == b'hello'
        except OSError:
            return False
    wait_until(answers, what='the server answers', poll_s=0.01)
    web.freeze()
    with pytest.raises(OSError):
        get(0.3)
    web.thaw()
    wait_until(answers, what='the server goes on')
    assert web.kill9() == -signal.SIGKILL and not web.alive
    with pytest.raises(OSError):
        get()
    web.restart()
    wait_until(answers, what='the server answers again', poll_s=0.01)
    web.freeze()
    assert web.kill9() == -signal.SIGKILL
    web.restart()
    assert web.stop() in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert web.text().count('---- start') == 3
    with pytest.raises(BedError):
        host.run(['false'])


def test_power_off_keeps_the_state_and_nothing_else(make_bed):
    bed = make_bed(2)
    one, two = bed.hosts
    sleeper = two.start('sleeper', ['sleep', '1000'])
    two.run(['sh', '-c', f'echo kept > {two.directory}/state; echo lost > /run/state'])
    two.power_off()
    assert not sleeper.alive and not two.is_on and silent(one, two.address)
    two.power_on()
    assert sees(one, two.address)
    assert two.run(['cat', two.directory / 'state']).stdout == 'kept\n'
    assert two.run(['cat', '/run/state'], check=False).returncode != 0
    sleeper.restart()
    assert sleeper.alive


def test_a_frozen_host_is_silent_and_wakes_as_it_was(make_bed):
    bed = make_bed(2)
    one, two = bed.hosts
    counter = two.start('counter', ['sh', '-c', 'n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done'])
    counter.wait_for_text('\n3\n')
    bed.freeze(2)
    assert silent(one, two.address)
    at = counter.text()
    time.sleep(0.1)     # the claim is that nothing happens in it
    assert counter.text() == at
    bed.thaw(2)
    assert sees(one, two.address)
    wait_until(lambda: len(counter.text()) > len(at), what='the counter goes on')


def test_a_host_is_frozen_also_while_its_programs_fork(make_bed):
    """A shell, as whoever uses vfork, sleeps until its child is another program: stopped before that, the child keeps it from being stopped."""
    bed = make_bed(1)
    host = bed.host(1)
    forker = host.start('forker', ['sh', '-c', 'while :; do /bin/true; done'])
    for _ in range(50):
        bed.freeze(1)
        bed.thaw(1)
    assert forker.alive


def test_what_is_killed_while_it_stands_still_does_nothing_more(make_bed):
    """What came for it meanwhile, on a socket say, would otherwise be done after all."""
    host = make_bed(1).host(1)
    program = host.start('program', ['sh', '-c', 'trap "echo woke" CONT; echo up; while :; do :; done'])
    for _ in range(20):
        program.wait_for_text('\nup\n')
        program.freeze()
        assert program.kill9() == -signal.SIGKILL
        program.restart()
    program.kill9()
    assert '\nwoke\n' not in program.text()


def test_nothing_is_left_behind():
    with Bed('left_behind', 2) as bed:
        mark = bed.mark
        bed.host(1).start('daemon', ['sh', '-c', '(setsid sleep 1000 &) ; (trap "" TERM HUP; sleep 1001) & sleep 1002'])
        frozen = bed.host(2).start('frozen', ['sleep', '1003'])
        frozen.freeze()
        assert len(bed_module.processes_with_mark(mark)) >= 6
    wait_until(lambda: not bed_module.processes_with_mark(mark), what='every process is gone', poll_s=0.01)
    assert str(bed.directory) not in pathlib.Path('/proc/mounts').read_text()


def test_a_killed_runner_takes_its_bed_with_it():
    """kill -9 of the process that made the bed: no fixture runs, and still nothing stays."""
    script = ('import sys; sys.path.insert(0, sys.argv[1]); from bed import Bed; b = Bed("killed_runner", 2);'
              'b.host(1).start("sleeper", ["sleep", "1004"]); print(b.mark, flush=True); sys.stdin.read()')
    runner = subprocess.Popen([PYTHON, '-c', script, os.path.dirname(__file__)], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    try:
        mark = runner.stdout.readline().strip()
        assert len(bed_module.processes_with_mark(mark)) >= 5, 'the bed is up'
    finally:
        runner.kill()
        runner.wait()
        runner.stdin.close()
        runner.stdout.close()
    wait_until(lambda: not bed_module.processes_with_mark(mark), what='every process is gone', poll_s=0.01)
    mount = bed_module.cgroups_of_the_dead()
    assert mount is None or not (mount / f'drover-bed-{mark}').exists()


if __name__ == '__main__':
    sys.exit(pytest.main([__file__, '-q']))
