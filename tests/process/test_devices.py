"""Devices of VMs through the cluster, while they run: limits of disks and interfaces, interfaces that are plugged in and out
with all that the host does for them, CPU models, and a disk's error that pauses a VM."""
import json
import re

import pytest

from bed import wait_until
from test_network import Guest, make_lan, pytestmark, tap_of  # noqa: F401  pylint: disable=unused-import

VM = ('--image', 'ticker', '--vcpus', '1', '--memory', '64MiB')
ASK = '''
import http.client, socket, sys
c = http.client.HTTPConnection('vmm')
c.sock = socket.socket(socket.AF_UNIX)
c.sock.connect(sys.argv[1])
c.request('GET', sys.argv[2])
print(c.getresponse().read().decode())
'''


class Running:
    """The VMM of a VM that runs, asked behind the cluster's back."""

    def __init__(self, cluster, name):
        self.cluster, self.name = cluster, name
        vm = cluster.vm(name)
        self.agent = next(agent for agent in cluster.agents if agent.name == vm['host_name'])
        config = self.agent.host.run(['cat', f'{self.agent.data}/vms/{vm["id"]}/config.json']).stdout
        self.control = json.loads(config)['control_path']
        self.pids = self.agent.vmm_pids()

    def ask(self, what):
        return json.loads(self.agent.host.run(['/usr/bin/python3', '-c', ASK, self.control, f'/v1/vm/{what}']).stdout)

    def same_process(self):
        return self.agent.vmm_pids() == self.pids and self.cluster.vm(self.name)['restarts'] == 0


def test_limits_of_a_running_vm(make_lan):  # noqa: F811
    lan = make_lan()
    cli = lan.cluster.cli
    cli('vm', 'create', 'one', *VM, '--disk', 'name=data,size=16MiB', '--nic', 'network=lan', '--wait')
    running = Running(lan.cluster, 'one')
    mac = lan.cluster.vm('one')['nics'][0]['mac']
    assert 'limits' not in running.ask('disks/data')['disk']
    cli('vm', 'limit', 'one', '--disk', 'data', '--operations-per-second', '500', '--bytes-per-second', '10MiB', '--wait', parse=False)
    limits = running.ask('disks/data')['disk']['limits']
    assert limits['operations_per_second'] == 500 and limits['bytes_per_second'] == 10 << 20
    cli('vm', 'limit', 'one', '--mac', mac, '--bytes-per-second', '1MiB', '--wait', parse=False)
    assert running.ask('nics/nic0')['nic']['limits']['bytes_per_second'] == 1 << 20
    assert running.ask('disks/data')['disk']['limits']['operations_per_second'] == 500      # of the other it is as it was
    # an agent that comes back finds what was changed meanwhile
    agent = running.agent.program
    agent.kill9()
    status, _, _ = lan.cluster.api('PATCH', '/v1/vms/one', {'disks': [{'name': 'data', 'on_disk_error': 'pause',
                                                                      'limits': {'operations_per_second': 70}}]})
    assert status == 200
    agent.restart()
    wait_until(lambda: running.ask('disks/data')['disk']['limits']['operations_per_second'] == 70, 20, 'the new limit')
    disk = running.ask('disks/data')['disk']
    assert disk['on_disk_error'] == 'pause' and disk['limits']['bytes_per_second'] == 0
    cli('vm', 'limit', 'one', '--disk', 'data', '--operations-per-second', '0', '--wait', parse=False)
    assert running.ask('disks/data')['disk']['limits']['operations_per_second'] == 0
    assert running.same_process()
    # and what was set stays over a stop
    cli('vm', 'stop', 'one', '--yes', '--force', '--wait')
    cli('vm', 'start', 'one', '--wait')
    assert Running(lan.cluster, 'one').ask('nics/nic0')['nic']['limits']['bytes_per_second'] == 1 << 20
    refused = lan.cluster.cli('vm', 'limit', 'one', '--disk', 'none', '--bytes-per-second', '1', parse=False, check=False)
    assert not refused


def test_an_interface_is_plugged_in_and_out(make_lan):  # noqa: F811
    lan = make_lan()
    cli = lan.cluster.cli
    cli('security-group', 'create', 'web', '--rule', 'direction=inbound,protocol=icmp')
    cli('vm', 'create', 'one', *VM, '--pin', 'n1', '--wait')
    two = lan.guest('two').address()
    running = Running(lan.cluster, 'one')
    assert running.ask('nics') == []
    cli('vm', 'add-nic', 'one', '--nic', 'network=lan,security-group=web', '--wait', parse=False)
    vm = lan.cluster.vm('one')
    assert [nic['nic']['mac'] for nic in running.ask('nics')] == [vm['nics'][0]['mac']] and running.same_process()
    assert tap_of(vm) in lan.links() and tap_of(vm) in lan.rules()
    cli('vm', 'add-nic', 'one', '--nic', 'network=lan', '--wait', parse=False)
    second = lan.cluster.vm('one')['nics'][1]
    assert len(running.ask('nics')) == 2 and second['ips'] != vm['nics'][0]['ips']
    # the first goes, whether its guest lets it go or not (this one knows nothing of it); the second stays what it is
    cli('vm', 'remove-nic', 'one', '--mac', vm['nics'][0]['mac'], '--yes', '--wait', parse=False)
    assert [nic['nic']['id'] for nic in running.ask('nics')] == ['nic1'] and running.same_process()
    assert tap_of(vm) not in lan.links() and tap_of(vm) not in lan.rules()
    assert tap_of(vm, 1) in lan.links() and lan.cluster.vm('one')['nics'] == [second]
    # what the host lets through is that of any other interface: its own address, DHCP, groups, and no other's
    cli('vm', 'add-nic', 'one', '--nic', 'network=lan,security-group=web', '--wait', parse=False)
    cli('vm', 'stop', 'one', '--yes', '--force', '--wait')
    third = lan.cluster.vm('one')['nics'][1]
    assert third['number'] in (0, 2)
    guest = Guest(lan.cluster, 'one', third['number'], third).address()
    guest.listen(80)
    assert two.reaches(guest.ip) and guest.reaches(two.ip) and not two.connects(guest.ip, 80)
    guest.address('192.0.2.77')
    two.run(['ip', 'neigh', 'add', '192.0.2.77', 'lladdr', third['mac'], 'dev', 'e0'])
    assert not guest.pings(two.ip, '-I', '192.0.2.77')
    guest.relay.stop()
    cli('vm', 'start', 'one', '--wait')
    assert len(Running(lan.cluster, 'one').ask('nics')) == 2


def test_cpu_models(make_lan):  # noqa: F811
    lan = make_lan()
    cli = lan.cluster.cli
    baseline = lan.cluster.items('/v1/hosts')[0]['cpu_baseline']
    levels = ['x86-64-v1', 'x86-64-v2', 'x86-64-v3', 'x86-64-v4']
    if baseline not in levels:
        pytest.skip(f'this host can be none of the named CPU models, only {baseline}')
    cli('flavor', 'create', 'named', '--vcpus', '1', '--memory', '64MiB', '--cpu-model', baseline)
    cli('vm', 'create', 'fits', '--image', 'ticker', '--flavor', 'named', '--wait')
    vm = lan.cluster.vm('fits')
    assert vm['cpu_model'] == baseline
    config = lan.host.run(['cat', f'{lan.cluster.agent(1).data}/vms/{vm["id"]}/config.json']).stdout
    assert json.loads(config)['cpu_model'] == baseline
    if baseline != levels[-1]:
        higher = levels[levels.index(baseline) + 1]
        cli('vm', 'create', 'higher', *VM, '--cpu-model', higher)
        vm = lan.cluster.vm('higher')
        assert vm['state'] == 'pending'
        assert f'needs {higher}, its processors can be {baseline} at most' in vm['placement']
        rows = cli('vm', 'placement', 'higher')['hosts']
        assert rows[0]['rejected'] == 'cpu-model'
    status, _, body = lan.cluster.api('POST', '/v1/vms', {'name': 'odd', 'image': 'ticker', 'vcpus': 1, 'memory_bytes': 64 << 20,
                                                          'cpu_model': 'z80'})
    assert status == 400 and 'x86-64-v2' in json.dumps(body), body


def test_a_disk_error_that_pauses_is_told(make_lan):  # noqa: F811
    """The host has no room for what the guest writes: its VMM pauses it, and state, events and the guest's console tell."""
    lan = make_lan()
    cli = lan.cluster.cli
    cli('vm', 'create', 'one', *VM, '--cmdline', 'disk=5', '--disk', 'name=data,size=16MiB', '--started=false', '--wait')
    disks = f'{lan.cluster.agent(1).data}/vms/{lan.cluster.vm("one")["id"]}/disks'
    lan.host.run(['mkdir', '-p', disks])
    lan.host.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'small', disks])    # goes with the namespace
    cli('vm', 'start', 'one')
    vm = lan.cluster.wait_vm('one', 'paused')
    assert re.match(r'disk data: write.*[Ss]pace', vm['state_reason']), vm['state_reason']
    told = [event['message'] for event in cli('vm', 'events', 'one')]
    assert f'VM one is paused on host n1: {vm["state_reason"]}' in told, told
