"""Networks of a host: VMs' taps on bridges that come and go, packet rules, DHCP. The VMs are stopped after their start, and
a network namespace behind each one's tap stands for its guest: what the host lets through is the same."""
import os
import re

import pytest

from bed import ROOT, BedError, wait_until
from cluster import KVM_MISSING, KVM_MISSING_TEXT

TICKER = ROOT / 'build' / 'guest' / 'ticker.elf'
RELAY = ROOT / 'tests' / 'process' / 'tap_relay.py'
BUSYBOX = '/usr/bin/busybox' if os.path.exists('/usr/bin/busybox') else '/bin/busybox'
GATEWAY = '192.0.2.1'
BRIDGE = r'\bdb[0-9a-f]{10}:'    # as interfaces are called in a listing; the two letters alone are in many a MAC address

pytestmark = [pytest.mark.skipif(not TICKER.exists(), reason='the test guest is not built'),
              pytest.mark.skipif(KVM_MISSING, reason=KVM_MISSING_TEXT),
              pytest.mark.skipif(not os.path.exists(BUSYBOX), reason='there is no busybox (ping, udhcpc)')]

DHCP_SCRIPT = '''#!/bin/sh
case $1 in bound|renew) ip addr flush dev $interface; ip addr add $ip/$mask dev $interface; echo "router=$router dns=$dns mtu=$mtu host=$hostname"; [ -z "$router" ] || ip route add default via $router;; esac
'''

LISTEN = '''
import socket, sys
s = socket.create_server(('', int(sys.argv[1])))
print('listening', flush=True)
while True:
    c, peer = s.accept()
    c.sendall(b'hello')
    c.close()
'''

CONNECT = '''
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1)
sys.stdout.write(s.recv(5).decode())
'''


def tap_of(vm, index=0):
    return f'dv{vm["id"].replace("-", "")[:10]}n{index}'


class Guest:
    """A namespace in place of the guest of VM @name, which is stopped."""

    def __init__(self, cluster, name, number=0, nic=None):
        self.vm = cluster.vm(name)
        self.host = next(agent.host for agent in cluster.agents if agent.name == self.vm['host_name'])
        self.name, self.tap = name, tap_of(self.vm, number)
        self.nic = nic or self.vm['nics'][0]
        self.ip = self.nic['ips'][0]
        self.host.run(['ip', 'netns', 'add', name])
        self.host.run(['ip', 'link', 'add', f'w-{name}', 'type', 'veth', 'peer', 'name', 'e0', 'netns', name])
        self.host.run(['ip', 'link', 'set', f'w-{name}', 'up'])
        for words in (['link', 'set', 'e0', 'address', self.nic['mac']], ['link', 'set', 'e0', 'up'], ['link', 'set', 'lo', 'up']):
            self.run(['ip', *words])
        self.relay = self.host.start(f'relay-{name}', ['/usr/bin/python3', RELAY, self.tap, f'w-{name}'])
        self.relay.wait_for_text('relaying')
        # the bridge forwards a moment after the tap was opened
        wait_until(lambda: self.host.run(['cat', f'/sys/class/net/{self.tap}/brport/state']).stdout.strip() == '3', 5,
                   f'{self.tap} is on its bridge')

    def run(self, argv, **how):
        return self.host.run(['ip', 'netns', 'exec', self.name, *argv], **how)

    def address(self, text=None):
        self.run(['ip', 'addr', 'add', f'{text or self.ip}/24', 'dev', 'e0'])
        return self

    def pings(self, ip, *options):
        return self.run([BUSYBOX, 'ping', '-c', '1', '-W', '1', *options, ip], check=False).returncode == 0

    def reaches(self, ip, *options):
        """It pings, at last: one packet may get lost on a crowded machine."""
        return wait_until(lambda: self.pings(ip, *options), 5, f'{self.name} pings {ip}')

    def listen(self, port):
        program = self.host.start(f'listen-{self.name}-{port}',
                                  ['ip', 'netns', 'exec', self.name, '/usr/bin/python3', '-c', LISTEN, port])
        program.wait_for_text('listening')

    def connects(self, ip, port):
        return self.run(['/usr/bin/python3', '-c', CONNECT, ip, port], check=False).stdout == 'hello'

    def is_served(self, ip, port):
        return wait_until(lambda: self.connects(ip, port), 5, f'{self.name} connects to {ip}, port {port}')


class Lan:
    """One host with a network and, in it, VMs that were started once and are off."""

    def __init__(self, cluster, *options):
        self.cluster = cluster
        cluster.cli('image', 'create', 'ticker', '--kind', 'kernel', '--kernel', TICKER)
        cluster.cli('network', 'create', 'lan', '--ipv4-subnet', '192.0.2.0/24', '--ipv4-gateway', GATEWAY, '--dns-server',
                    '192.0.2.53', '--pool', 'first=192.0.2.10,last=192.0.2.20', *options)

    def guest(self, name, *words):
        self.cluster.cli('vm', 'create', name, '--image', 'ticker', '--vcpus', '1', '--memory', '64MiB', '--pin', 'n1', '--nic',
                         ','.join(['network=lan', *words]), '--wait')
        self.cluster.cli('vm', 'stop', name, '--yes', '--force', '--wait')
        return Guest(self.cluster, name)

    @property
    def host(self):
        return self.cluster.agent(1).host

    def rules(self):
        return self.host.run(['nft', 'list', 'ruleset']).stdout

    def names(self):
        return re.findall(r'^\d+: ([^:@]+)', self.links(), re.M)

    def links(self):
        return self.host.run(['ip', '-o', 'link']).stdout


@pytest.fixture
def make_lan(make_cluster):
    return lambda *options: Lan(make_cluster(controllers=1, agents=1), *options)


def test_dhcp_gives_each_its_own_address(make_lan):
    lan = make_lan('--mtu', '1400')
    one, two = lan.guest('one'), lan.guest('two')
    assert one.ip == '192.0.2.10' and two.ip == '192.0.2.11'
    (lan.host.directory / 'dhcp').write_text(DHCP_SCRIPT)
    (lan.host.directory / 'dhcp').chmod(0o755)
    for guest in (one, two):
        done = guest.run([BUSYBOX, 'udhcpc', '-i', 'e0', '-n', '-q', '-t', '20', '-T', '1', '-O', 'mtu', '-s', '/srv/dhcp'], check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f'router={GATEWAY} dns=192.0.2.53 mtu=1400 host={guest.name}' in done.stdout
        assert f'inet {guest.ip}/24' in guest.run(['ip', 'addr', 'show', 'e0']).stdout
    assert one.reaches(two.ip) and two.reaches(one.ip)
    bridge = re.search(r'(db[0-9a-f]{10}):.* mtu (\d+) ', lan.links())
    assert bridge and bridge.group(2) == '1400'
    # a tap that goes down and comes up again is answered again
    lan.host.run(['ip', 'link', 'set', one.tap, 'down'])
    lan.host.run(['ip', 'link', 'set', one.tap, 'up'])
    wait_until(lambda: one.pings(two.ip), timeout_s=20)
    done = one.run([BUSYBOX, 'udhcpc', '-i', 'e0', '-n', '-q', '-t', '20', '-T', '1', '-s', '/srv/dhcp'], check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_spoofed_source_goes_nowhere(make_lan):
    lan = make_lan()
    one, two = lan.guest('one').address(), lan.guest('two').address()
    assert one.reaches(two.ip)
    one.address('192.0.2.77')
    two.run(['ip', 'neigh', 'add', '192.0.2.77', 'lladdr', one.nic['mac'], 'dev', 'e0'])
    assert not one.pings(two.ip, '-I', '192.0.2.77')      # another IP address
    assert one.reaches(two.ip, '-I', one.ip)
    one.run(['ip', 'link', 'set', 'e0', 'address', '52:54:00:99:99:99'])
    two.run(['ip', 'neigh', 'flush', 'all'])
    assert not one.pings(two.ip, '-I', one.ip)            # another MAC address
    one.run(['ip', 'link', 'set', 'e0', 'address', one.nic['mac']])
    assert one.reaches(two.ip, '-I', one.ip)
    # a NIC that may: its VM is a router, say
    three = lan.guest('three', 'anti-spoof=false').address()
    three.address('192.0.2.78')
    assert three.reaches(two.ip, '-I', '192.0.2.78')


def test_security_groups_block_and_allow(make_lan):
    lan = make_lan()
    lan.cluster.cli('security-group', 'create', 'web', '--rule', 'direction=inbound,protocol=tcp,port-first=80')
    lan.cluster.cli('security-group', 'create', 'db', '--rule', 'direction=inbound,protocol=tcp,port-first=81,remote-group=web')
    one, two = lan.guest('one').address(), lan.guest('two', 'security-group=web').address()
    three = lan.guest('three', 'security-group=db').address()
    two.listen(80)
    two.listen(81)
    three.listen(81)
    one.listen(80)
    assert one.is_served(two.ip, 80) and not one.connects(two.ip, 81)
    assert not one.pings(two.ip)
    assert two.reaches(one.ip) and two.is_served(one.ip, 80)       # answers come back
    assert two.is_served(three.ip, 81) and not one.connects(three.ip, 81)
    # a change reaches those that are there
    icmp = ['--rule', 'direction=inbound,protocol=icmp', '--rule', 'direction=outbound,protocol=icmp']
    with pytest.raises(BedError, match='would lose --rule direction=inbound,protocol=tcp,port-first=80'):
        lan.cluster.cli('security-group', 'update', 'web', *icmp)
    lan.cluster.cli('security-group', 'update', 'web', *icmp, '--yes')
    wait_until(lambda: one.pings(two.ip), 10, 'the rule is in force')
    assert not one.connects(two.ip, 80)
    assert two.reaches(one.ip) and not two.connects(one.ip, 80)   # outbound rules count as soon as there are any


def test_an_agent_that_starts_again_finds_all_in_place(make_lan):
    lan = make_lan()
    lan.cluster.cli('security-group', 'create', 'web', '--rule', 'direction=inbound,protocol=icmp')
    one, two = lan.guest('one').address(), lan.guest('two', 'security-group=web').address()
    before = lan.rules()
    assert one.reaches(two.ip) and 'drover' in before
    agent = lan.cluster.agent(1).program
    agent.kill9()
    assert one.reaches(two.ip) and lan.rules() == before
    agent.restart()
    agent.wait_for_text('agent-started')
    assert one.reaches(two.ip) and lan.rules() == before
    agent.kill9()
    lan.host.run(['nft', 'delete', 'table', 'bridge', 'drover'])    # somebody flushed everything
    agent.restart()
    agent.wait_for_text('agent-started')
    assert lan.rules() == before


def test_a_card_that_gets_the_number_of_another_is_on_its_own_network(make_lan):
    """Numbers come back, and the tap of a card that has gone is there until the VM goes."""
    lan = make_lan()
    lan.cluster.cli('network', 'create', 'dmz', '--ipv4-subnet', '198.51.100.0/24')

    def bridge_of(tap):
        return re.search(r'master (\S+)', lan.host.run(['ip', '-o', 'link', 'show', 'dev', tap]).stdout)[1]

    def made(name, *words):
        lan.cluster.cli('vm', 'create', name, '--image', 'ticker', '--vcpus', '1', '--memory', '64MiB', '--nic', ','.join(words), '--wait')
        return tap_of(lan.cluster.vm(name))
    tap, inside, outside = made('one', 'network=lan'), bridge_of(made('two', 'network=lan')), bridge_of(made('three', 'network=dmz'))
    assert bridge_of(tap) == inside != outside
    for network, queues, wanted in (('dmz', '1', outside), ('lan', '2', inside)):
        lan.cluster.cli('vm', 'stop', 'one', '--yes', '--force', '--wait')
        lan.cluster.cli('vm', 'remove-nic', 'one', '--mac', lan.cluster.vm('one')['nics'][0]['mac'], '--yes', '--wait')
        lan.cluster.cli('vm', 'add-nic', 'one', '--nic', f'network={network},queues={queues}', '--wait')
        lan.cluster.cli('vm', 'start', 'one', '--wait')
        assert bridge_of(tap) == wanted, network


def test_nothing_is_left_behind(make_lan):
    lan = make_lan()
    lan.cluster.cli('security-group', 'create', 'web', '--rule', 'direction=inbound,protocol=icmp')
    before = lan.names()
    guest = lan.guest('one', 'security-group=web')
    lan.cluster.cli('vm', 'create', 'two', '--image', 'ticker', '--vcpus', '1', '--memory', '64MiB', '--nic', 'network=lan', '--wait')
    assert 'dv' in lan.links() and guest.tap in lan.rules()
    done = lan.cluster.cli('network', 'delete', 'lan', '--yes', parse=False, check=False)
    assert not done and lan.cluster.cli('network', 'show', 'lan')       # it is used
    guest.relay.stop()
    lan.cluster.cli('vm', 'delete', 'one', '--yes', '--wait')
    assert guest.tap not in lan.rules() and re.search(BRIDGE, lan.links())
    lan.cluster.cli('vm', 'delete', 'two', '--yes', '--wait')
    assert lan.rules() == ''
    lan.host.run(['ip', 'link', 'del', 'w-one'])
    assert lan.names() == before
    lan.cluster.cli('network', 'delete', 'lan', '--yes', parse=False)
    lan.cluster.cli('security-group', 'delete', 'web', '--yes', parse=False)


def test_a_host_that_cannot_serve_a_network_says_so(make_lan):
    lan = make_lan()
    for name, words, told in (('own', ['--uplink', 'eth0'], 'has addresses of the host'), ('none', ['--uplink', 'eth9'], 'no interface eth9')):
        lan.cluster.cli('network', 'create', name, *words)
        lan.cluster.cli('vm', 'create', name, '--image', 'ticker', '--vcpus', '1', '--memory', '64MiB', '--nic', f'network={name}')
        vm = lan.cluster.wait_vm(name, "failed", timeout_s=8)
        assert told in vm['state_reason']
        lan.cluster.cli('vm', 'delete', name, '--yes', '--wait')
    assert not re.search(BRIDGE, lan.links())
