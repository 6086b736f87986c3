"""A cluster on the process bed: real controllers and agents on its hosts.

    cluster = Cluster(bed, controllers=3, agents=3)
    cluster.start()                                # init, join, run; returns when all is up
    cluster.cli('vm', 'list')                      # parsed JSON, as the admin, from host 1
    status, headers, body = cluster.api('GET', '/v1/vms')
    cluster.leader()                               # a Controller; .program is a bed.Program
    cluster.controller(2).program.kill9()
    cluster.agent(1).program.restart()

All that depends on how the programs are called or what they answer stands in the few functions marked DETAIL.
"""
import contextlib
import http.client
import json
import os
import pathlib
import ssl
import time
import uuid

from bed import PATIENCE, ROOT, BedError, process_state, wait_until

API_PORT = 7443
START_S = 30
KIND = os.environ.get('DROVER_KIND', 'debug')    # build kind whose programs run: debug, asan, tsan
# DROVER_ACCEL=none: VMMs play KVM themselves (drover-vmm --accel none), with a guest that says the same as the test guest.
ACCEL = os.environ.get('DROVER_ACCEL', 'kvm')
KVM_MISSING = not os.access('/dev/kvm', os.R_OK | os.W_OK)
KVM_MISSING_TEXT = 'there is no /dev/kvm: a cluster places no VM on such a host'


def program(name, kind=KIND):
    return ROOT / 'build' / kind / 'bin' / name


def missing_programs(agents=0, kind=KIND):
    names = ['drover', 'drover-controller'] + (['drover-agent', 'drover-vmm'] if agents else [])
    return [name for name in names if not program(name, kind).exists()]


class Member:
    """A controller or an agent: its host, its data directory, its program once it runs."""

    def __init__(self, cluster, host, binary, name):
        self.cluster, self.host, self.name = cluster, host, name
        self.binary = program(binary, cluster.kind)
        # the same directory as the host and as this machine see it; a Unix socket's path must be short
        self.data = pathlib.Path('/srv') / binary.removeprefix('drover-')
        self.directory = host.directory / binary.removeprefix('drover-')
        self.program = None

    def run(self):
        """DETAIL: run it, the first time or again after a power failure of its host."""
        if self.program is None:
            self.program = self.host.start(self.binary.name, [self.binary, 'run', '--data', self.data])
        else:
            self.program.restart()

    def join(self, token):
        """DETAIL: ask the cluster to let it in."""
        self.host.run([self.binary, 'join', '--data', self.data, '--address', self.host.address, '--name', self.name,
                       '--token', token])


class Controller(Member):
    def __init__(self, cluster, host):
        super().__init__(cluster, host, 'drover-controller', f'c{host.number}')

    def init(self):
        """DETAIL: make the cluster."""
        self.host.run([self.binary, 'init', '--data', self.data, '--address', f'{self.host.address}:{API_PORT}',
                       '--name', self.name, '--cluster-name', self.cluster.name])

    @property
    def admin(self):
        """DETAIL: where init leaves the admin's certificate."""
        return self.directory / 'admin'


class Agent(Member):
    def __init__(self, cluster, host):
        super().__init__(cluster, host, 'drover-agent', f'n{host.number}')

    def run(self):
        """DETAIL: agents know nothing of --accel, so what they start adds it."""
        if self.program is None and ACCEL == 'none':
            vmm = self.host.directory / 'vmm'
            vmm.write_text(f'#!/bin/sh\nexec {program("drover-vmm", self.cluster.kind)} --accel none "$@"\n')
            vmm.chmod(0o755)
            self.program = self.host.start(self.binary.name, [self.binary, 'run', '--data', self.data, '--vmm', '/srv/vmm',
                                                              *self.cluster.agent_options])
        elif self.program is None:
            self.program = self.host.start(self.binary.name, [self.binary, 'run', '--data', self.data, *self.cluster.agent_options])
        else:
            super().run()

    def vmm_pids(self):
        """Processes of this host that are VMMs."""
        found = []
        for pid in self.host.pids():
            with contextlib.suppress(OSError):
                if pathlib.Path(f'/proc/{pid}/comm').read_text().strip() == 'drover-vmm' and process_state(pid) != 'Z':
                    found.append(pid)
        return found


class Cluster:
    """@controllers and @agents: how many; they sit on hosts 1, 2, ... of the bed, together where both are. @agent_options: more
    words of `drover-agent run`; guests' memory is the same on each machine that tests run on."""

    def __init__(self, bed, controllers=3, agents=3, kind=KIND, name='test', agent_options=('--shared-memory', 'never')):
        self.bed, self.kind, self.name, self.agent_options = bed, kind, name, list(agent_options)
        self.controllers = [Controller(self, bed.host(n)) for n in range(1, controllers + 1)]
        self.agents = [Agent(self, bed.host(n)) for n in range(1, agents + 1)]
        self._tls = None

    def controller(self, number):
        return self.controllers[number - 1]

    def agent(self, number):
        return self.agents[number - 1]

    # ---- life

    def start(self):
        first = self.controllers[0]
        first.init()
        first.run()
        wait_until(lambda: self.ready(first), START_S, 'the first controller is ready')
        if len(self.controllers) > 1:
            token = self.token('controller')
            for controller in self.controllers[1:]:
                controller.join(token)
                controller.run()
                wait_until(lambda: self.ready(controller), START_S, f'{controller.name} is ready')
            wait_until(lambda: self.voters() == len(self.controllers), START_S, 'every controller has a vote')
        if self.agents:
            token = self.token('host')
            for agent in self.agents:
                agent.join(token)
                agent.run()
            wait_until(lambda: self.hosts_up() == len(self.agents), START_S, 'every host is up')
        return self

    def boot(self, number):
        """A host that was powered off comes back with what ran on it."""
        host = self.bed.host(number)
        host.power_on()
        for member in self.controllers + self.agents:
            if member.host is host:
                member.run()

    # ---- DETAILS of answers

    def ready(self, controller):
        try:
            return self.api('GET', '/readyz', to=controller, timeout_s=1)[0] == 200
        except OSError:
            return False

    def items(self, path, **arguments):
        """The objects of a list."""
        status, _, body = self.api('GET', path, **arguments)
        if status != 200:
            raise BedError(f'GET {path}: {status} {body}')
        return body if isinstance(body, list) else next(value for value in body.values() if isinstance(value, list))

    def _count(self, path, field, value):
        try:
            return sum(1 for item in self.items(path, timeout_s=2) if item.get(field) == value)
        except (OSError, BedError, http.client.HTTPException):
            return -1

    def voters(self):
        return self._count('/v1/controllers', 'role', 'voter')

    def hosts_up(self):
        return self._count('/v1/hosts', 'state', 'up')

    def leader(self, timeout_s=START_S):
        """The controller that leads, as soon as one that answers names it."""
        def find():
            for asked in self.controllers:
                if not asked.program or not asked.program.alive:
                    continue
                with contextlib.suppress(OSError, BedError, http.client.HTTPException):
                    for item in self.items('/v1/controllers', to=asked, timeout_s=1):
                        if item.get('leader'):
                            found = next((c for c in self.controllers if c.name == item['name']), None)
                            if found and found.program.alive:
                                return found
            return None
        return wait_until(find, timeout_s, 'there is a leader')

    def token(self, role):
        """A join token; @role controller or host."""
        return self.cli('token', 'create', f'{role}-{uuid.uuid4().hex[:8]}', '--role', role)['secret']

    # ---- the two ways in

    def cli_command(self, *words, to=None):
        """DETAIL: the CLI as the admin."""
        admin = self.controllers[0].admin
        asked = [to] if to else self.controllers
        return [program('drover', self.kind), *words, '--endpoint', ','.join(f'{c.host.address}:{API_PORT}' for c in asked),
                '--ca', admin / 'ca.pem', '--cert', admin / 'cert.pem', '--key', admin / 'key.pem']

    def cli(self, *words, to=None, parse=True, check=True, timeout_s=60):
        """Run the CLI, against controller @to or whichever answers; its JSON, or its text when not @parse."""
        words = list(words) + (['--output', 'json'] if '--output' not in words else [])
        done = self.bed.run(self.cli_command(*words, to=to), timeout_s=timeout_s, check=check)
        if not parse:
            return done.stdout
        if not done.stdout.strip():
            return None     # a verb with --wait tells its progress and nothing else
        try:
            return json.loads(done.stdout)
        except ValueError:
            raise BedError(f'drover {" ".join(map(str, words))}: not JSON: {done.stdout[:500]}') from None

    def tls(self):
        if self._tls is None:
            admin = self.controllers[0].admin
            self._tls = ssl.create_default_context(cafile=admin / 'ca.pem')
            self._tls.load_cert_chain(admin / 'cert.pem', admin / 'key.pem')
        return self._tls

    def connection(self, to=None, timeout_s=10):
        """An HTTPS connection as the admin to controller @to or to the first that takes it: any thread may use it."""
        problem = None
        for asked in [to] if to else self.controllers:
            connection = http.client.HTTPSConnection(asked.host.address, API_PORT, timeout=timeout_s, context=self.tls())
            try:
                with self.bed.inside():
                    connection.connect()
                return connection
            except OSError as error:
                problem = error
        raise problem

    def api(self, method, path, body=None, headers=None, to=None, timeout_s=10):
        """One request: (status, headers, decoded body). OSError when the controller does not answer."""
        headers = dict(headers or {})
        text = None
        if body is not None:
            text = json.dumps(body)
            headers.setdefault('Content-Type', 'application/json')
        if method == 'POST':
            headers.setdefault('Idempotency-Key', str(uuid.uuid4()))
        connection = self.connection(to, timeout_s)
        connection.sock.settimeout(timeout_s * PATIENCE)    # whoever has taken it is there, and may be busy
        try:
            connection.request(method, path, text, headers)
            answer = connection.getresponse()
            raw = answer.read()
        finally:
            connection.close()
        if 'json' in answer.headers.get('Content-Type', '') and raw:
            return answer.status, answer.headers, json.loads(raw)
        return answer.status, answer.headers, raw.decode(errors='replace')

    def wait_operation(self, operation, timeout_s=60):
        """Wait for the end of an operation; returns it. BedError when it failed."""
        end = time.monotonic() + timeout_s * PATIENCE
        while operation['state'] == 'running':
            if time.monotonic() > end:
                raise BedError(f'operation {operation["kind"]} is still at: {operation.get("step")}')
            status, _, operation = self.api('GET', f'/v1/operations/{operation["id"]}?wait=5s')
            if status != 200:
                raise BedError(f'operation: {status} {operation}')
        if operation['state'] != 'succeeded':
            raise BedError(f'operation {operation["kind"]} {operation["state"]}: {operation.get("error_text")}')
        return operation

    def vm(self, name):
        def answered():
            status, _, body = self.api('GET', f'/v1/vms/{name}')
            return None if status in (502, 503, 504) else (body if status == 200 else None,)    # between two leaders
        return wait_until(answered, what=f'somebody says how VM {name} is')[0]

    def wait_vm(self, name, state, timeout_s=60):
        """Wait until the VM is seen in @state; returns it."""
        def seen():
            vm = self.vm(name)
            return vm if vm and vm.get('state') == state else None
        return wait_until(seen, timeout_s, f'VM {name} is {state}', poll_s=0.1)
