"""Snapshots at random instants of a guest that sends and receives all the time (tests/guest/guest_net.c), and goes on from them.

What the device has taken from the guest leaves it once, and in order, however often the VM is saved and goes on; what comes in
may be lost while it does not run, but never comes twice."""
import json
import pathlib
import re
import time

import pytest

from test_snapshot import write
from test_snapshot_disk import chance, drain  # noqa: F401  pylint: disable=unused-import
from test_vmm import LIMIT_S, TICKER, VMM, Vmm, pytestmark  # noqa: F401  pylint: disable=unused-import

LIVES = 5
PEER = '''
import socket, struct, sys, select, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
s.setsockopt(socket.SOL_SOCKET, 33, 1 << 23)    # SO_RCVBUFFORCE: none may be lost here
s.bind((sys.argv[1], 3))
last, sent, told, faults = 0, 0, 0, []
print('ready', flush=True)
while True:
    now = time.monotonic()
    while select.select([s], [], [], 0.005)[0]:
        frame, where = s.recvfrom(65536)
        if where[2] == 4 or frame[12:14] != b'\\x88\\xb5':
            continue
        number, *rest = struct.unpack_from('<8Q', frame, 14)
        if number != last + 1:
            faults.append(f'{number} after {last}')
        if rest != [number * k for k in range(1, 8)]:
            faults.append(f'{number} is torn')
        last = number
    try:
        s.send(b'\\xff' * 6 + b'\\x02\\0\\0\\0\\0\\x09\\x88\\xb6' + struct.pack('<8Q', sent + 1, *[(sent + 1) * k for k in range(1, 8)]))
        sent += 1
    except OSError:
        pass                                    # nobody has the tap open
    if now - told > 0.2:
        told = now
        print('peer', last, sent, faults[:5], flush=True)
'''


class HostVmm(Vmm):
    """A VMM in a host of the bed, whose tap is there."""

    lives = 0

    def __init__(self, host, *options):  # pylint: disable=super-init-not-called
        HostVmm.lives += 1
        name = f'c{HostVmm.lives}'
        self.control = pathlib.Path(f'/proc/{host.init}/root/srv/{name}')
        program = host.start(f'vmm-{name}', [VMM, *options, '--control', f'/srv/{name}'])
        self.process, self.log, self.consoles = program.door, program.log, []
        self.wait_listening()


def counts(console):
    return [(int(s), int(r)) for s, r in re.findall(r'^net (\d+) sent (\d+) received$', console.text, re.M)]


def wait_for(console, condition):
    end = time.monotonic() + LIMIT_S
    while not (counts(console) and condition(counts(console))):
        assert time.monotonic() < end, console.text[-500:]
        assert console.read(0.2), console.text[-500:]


def peer_says(peer):
    lines = re.findall(r'^peer (\d+) (\d+) (.*)$', peer.log.read_text(), re.M)
    return int(lines[-1][0]), lines[-1][2]


@pytest.mark.parametrize('how', [
    pytest.param({}, id='free', marks=pytest.mark.slow),
    pytest.param({'limits': {'operations_per_second': 150}}, id='limited'),    # both ways share it
])
def test_no_frame_is_lost_or_doubled_by_the_device(make_bed, chance, how):  # noqa: F811
    host = make_bed(hosts=1).host(1)
    host.run(['ip', 'tuntap', 'add', 'dev', 't0', 'mode', 'tap'])
    host.run(['ip', 'link', 'set', 't0', 'up'])
    peer = host.start('peer', ['/usr/bin/python3', '-c', PEER, 't0'])
    peer.wait_for_text('ready')
    (host.directory / 'vm.json').write_text(json.dumps({
        'name': 'test', 'vcpus': 1, 'memory_bytes': 64 << 20, 'kernel': str(TICKER), 'cmdline': 'net',
        'nics': [{'tap': 't0', 'mac': '02:00:00:00:00:01', **how}]}))
    vm = HostVmm(host, '--config', '/srv/vm.json')
    received = 0
    for _ in range(LIVES):
        console = vm.console()
        wait_for(console, lambda seen: len(seen) >= 2 and seen[-1][0] > seen[0][0] and seen[-1][1] > received)
        time.sleep(chance.random() * 0.12)
        if chance.random() < 0.4:   # the source goes on, as if nothing had been
            write(vm, '/srv/aside')
            before = counts(console)[-1][0]
            wait_for(console, lambda seen: seen[-1][0] > before)    # pylint: disable=cell-var-from-loop
        write(vm, '/srv/s', then='stop')
        assert vm.process.wait(LIMIT_S) == 0, vm.log.read_text()
        drain(console)
        assert 'net: ' not in console.text, console.text[-2000:]
        sent, received = counts(console)[-1]
        vm = HostVmm(host, '--restore', '/srv/s')
    console = vm.console()
    wait_for(console, lambda seen: seen[-1][0] > sent and seen[-1][1] > received)
    write(vm, '/srv/s', then='stop')
    assert vm.process.wait(LIMIT_S) == 0
    drain(console)
    sent = counts(console)[-1][0]
    end = time.monotonic() + LIMIT_S
    while peer_says(peer)[0] < sent and time.monotonic() < end:
        time.sleep(0.05)
    last, faults = peer_says(peer)
    assert faults == '[]' and last >= sent, (last, sent, faults)
    assert 'net: ' not in console.text, console.text[-2000:]
