"""Balloon, agent's channel and vsock, with a guest that has no driver for any of them."""
import socket

from test_vmm import LIMIT_S, pytestmark, vmm     # noqa: F401   the fixture and its conditions


def test_balloon(vmm):
    vm = vmm(balloon=True)
    status, balloon = vm.request('GET', '/v1/vm/balloon')
    assert status == 200 and balloon['target_bytes'] == 0 and balloon['guest_reports'] == 0
    assert 'guest_free_bytes' not in balloon
    status, balloon = vm.request('PUT', '/v1/vm/balloon', {'target_bytes': 1 << 20})
    assert (status, balloon['target_bytes'], balloon['actual_bytes']) == (200, 1 << 20, 0)
    for wrong in (4097, 64 << 20):
        status, problem = vm.request('PUT', '/v1/vm/balloon', {'target_bytes': wrong})
        assert (status, problem['errors'][0]['pointer']) == (400, '#/target_bytes') and '67108864' in problem['detail']
    assert vm.request('GET', '/v1/vm/balloon')[1]['target_bytes'] == 1 << 20
    vm.console().wait(r'^tick 3$')


def test_agent_that_is_not_there(vmm):
    vm = vmm(agent_channel=True)
    assert vm.request('GET', '/v1/vm/agent') == (200, {'connected': False, 'frozen': False})
    for command in ('ping', 'shutdown', 'freeze', 'thaw', 'addresses'):
        status, problem = vm.request('POST', '/v1/vm/agent', {'command': command})
        assert (status, problem['code']) == (409, 'conflict') and 'qemu-guest-agent' in problem['detail']
    status, problem = vm.request('POST', '/v1/vm/agent', {'command': 'freeze', 'limit_ms': 70000})
    assert (status, problem['errors'][0]['pointer']) == (400, '#/limit_ms')
    assert vm.request('POST', '/v1/vm/agent', {'command': 'dance'})[0] == 400
    vm.console().wait(r'^tick 3$')


def test_not_configured(vmm):
    vm = vmm()
    for method, path, body, field in (('GET', 'balloon', None, 'balloon'), ('PUT', 'balloon', {'target_bytes': 0}, 'balloon'),
                                      ('GET', 'agent', None, 'agent_channel'), ('POST', 'agent', {'command': 'ping'}, 'agent_channel')):
        status, problem = vm.request(method, '/v1/vm/' + path, body)
        assert status == 409 and f'"{field}": true' in problem['detail'], problem


def test_vsock_without_a_driver(vmm, tmp_path):
    path = tmp_path / 'vsock'
    vm = vmm(vsock={'cid': 3, 'path': str(path)})
    vm.console().wait(r'^tick 2$')
    assert path.stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(LIMIT_S)
        client.connect(str(path))
        client.sendall(b'CONNECT 5\n')
        assert client.recv(16) == b''               # nobody there: the end, at once
    assert vm.move('stopped')[0] == 200
    vm.process.wait(LIMIT_S)
    assert not path.exists()
