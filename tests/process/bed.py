"""The process bed: hosts as namespaces of this machine, in a fraction of a second, with faults on wires and programs.

    with Bed('name', hosts=3) as bed:
        one = bed.host(1)                          # 10.78.0.11
        one.run(['ip', 'addr'])                    # a command on the host, to its end
        web = one.start('web', ['/usr/bin/python3', '-m', 'http.server', '80'])
        bed.cut(1, 2); bed.oneway(1, 2); bed.isolate(3); bed.freeze(2); bed.thaw(2); bed.heal()
        web.kill9(); web.freeze(); web.thaw(); web.stop(); web.restart()
        one.power_off(); one.power_on()
        with bed.inside():                         # this thread's sockets reach the hosts
            urllib.request.urlopen('http://10.78.0.11/')

A host is a network, mount, pid, uts and ipc namespace with a private /run and /tmp and a state directory, /srv, that
outlives its power_off; kernel, other files and /dev/kvm are this machine's. Where this machine has cgroup version 2, a
host sees a group of its own as the root of the tree. The hosts' cables end in one bridge in a
network namespace of the bed's own: nothing touches the machine's own network, and no namespace has a name that could
stay behind.

Clean-up does not depend on anybody running it: each host's processes die with the first process of its pid
namespace, that one dies with its keeper, and the keeper dies with the thread that made the bed (PR_SET_PDEATHSIG).
So make beds and start programs in a thread that lives as long as the test, the main one for instance. Only empty
cgroups stay behind a test that was killed; the next bed removes them. Needs root.

State and logs: build/process/<name>/host<N>/..., removed when a bed of that name is made again.
"""
import contextlib
import ctypes
import os
import pathlib
import shutil
import signal
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / 'build' / 'process'
NET = '10.78.0'
HOSTS_MAX = 100
CLONE_NEWNET = 0x40000000
MARK = 'DROVER_BED'         # in the environment of every process of a bed: tests look for what was left behind
POLL_S = 0.005
WAIT_S = 10
PATIENCE = 4                # all waits are so many times longer than said: a machine may be slow, or busy with others

# Ends its command with the thread that started it.
TIED = ['setpriv', '--pdeathsig', 'KILL', '--']

FAULTS = '''
table bridge bed {
    set cut { type ifname . ifname; }
    set silent { type ifname; }
    chain forward { type filter hook forward priority 0; iifname @silent drop; oifname @silent drop; iifname . oifname @cut drop; }
    chain input { type filter hook input priority 0; iifname @silent drop; }
    chain output { type filter hook output priority 0; oifname @silent drop; }
}
'''

# First process of a host. /sys is mounted anew, for it shows the network namespace that it was mounted in.
BOOT = '''
hostname "$1" && ip link set lo up && mount -t tmpfs tmpfs /run || exit 1
# a checkout below /tmp must stay visible: its hosts share /tmp
case $3 in /tmp/*) ;; *) mount -t tmpfs -o mode=1777 tmpfs /tmp || exit 1 ;; esac
mount --bind "$3" /srv || exit 1
mount -t sysfs sysfs /sys && { mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null || :; }
touch "$2"
sleep infinity &
wait    # and reap whatever is orphaned meanwhile, as the first process of a host must
'''


class BedError(Exception):
    """The bed itself failed, or a command on it."""


def wait_until(condition, timeout_s=WAIT_S, what='condition', poll_s=0.05):
    """Return the first true value of condition(); BedError after PATIENCE times @timeout_s."""
    end = time.monotonic() + timeout_s * PATIENCE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise BedError(f'not within {timeout_s * PATIENCE} s: {what}')
        time.sleep(poll_s)


def processes_with_mark(mark):
    """Pids of living processes that carry the bed's mark in their environment."""
    found = []
    for entry in pathlib.Path('/proc').iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if f'{MARK}={mark}'.encode() in (entry / 'environ').read_bytes().split(b'\0'):
                    found.append(int(entry.name))
    return found


def children_of(pid):
    try:
        return [int(child) for child in pathlib.Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]
    except OSError:
        return []


def process_state(pid):
    """The letter of /proc/pid/stat, or None when there is no such process."""
    try:
        return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except OSError:
        return None


def sleeps_in_vfork(pid):
    """Until its child is another program; that is stopped, and so it cannot stop itself, and does nothing either."""
    return process_state(pid) == 'D' and any(process_state(child) == 'T' for child in children_of(pid))


def cgroup_mount():
    """Where this machine's cgroup version 2 is mounted and can be written to, or None."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path('/proc/self/mounts').read_text().splitlines():
            _, place, kind = line.split()[:3]
            if kind == 'cgroup2' and os.access(place, os.W_OK) and os.access(f'{place}/cgroup.procs', os.W_OK):
                return pathlib.Path(place)
    return None


def cgroup_remove(path):
    """A group and all below it; their processes have ended."""
    def gone():
        for folder, _, _ in os.walk(path, topdown=False):
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                pass
            except OSError:
                return False    # its last process ends at this moment
        return True
    if path is not None:
        wait_until(gone, what=f'{path} is empty', poll_s=POLL_S)


def cgroups_of_the_dead():
    """Remove what beds left whose process was killed; returns the mount."""
    mount = cgroup_mount()
    for old in mount.glob('drover-bed-*') if mount else []:
        if not pathlib.Path(f'/proc/{old.name.split("-")[2]}').exists():
            cgroup_remove(old)
    return mount


def start_keeper(arguments, environment, log=subprocess.DEVNULL):
    return subprocess.Popen(TIED + arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                            start_new_session=True)


def end_keeper(keeper):
    if keeper is not None and keeper.poll() is None:
        keeper.kill()
        keeper.wait()


class Program:
    """A program on a host. Its output, of all its lives, is in @log; restart() begins another life."""

    def __init__(self, host, name, argv, environment=None):
        self.host, self.name, self.argv = host, name, [str(word) for word in argv]
        self.environment = {**host.bed.environment, **(environment or {})}
        self.log = host.directory / 'log' / f'{name}.log'
        self.starts = 0
        self.door = None        # nsenter, whose only child is the program
        self.pid = None         # of the program, as this machine sees it
        self.start()

    def start(self):
        if self.alive:
            raise BedError(f'{self} runs already')
        self.starts += 1
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, 'ab') as log:
            log.write(f'---- start {self.starts}: {" ".join(self.argv)}\n'.encode())
            log.flush()
            self.door = subprocess.Popen(TIED + self.host.door + self.argv, stdin=subprocess.DEVNULL, stdout=log,
                                         stderr=subprocess.STDOUT, env=self.environment, start_new_session=True)
        end = time.monotonic() + WAIT_S * PATIENCE
        while not (pids := children_of(self.door.pid)):
            if self.door.poll() is not None or time.monotonic() > end:
                self.pid = None     # ended at once: its log tells, alive is False
                return self
            time.sleep(POLL_S)
        self.pid = pids[0]
        return self

    restart = start

    @property
    def alive(self):
        return self.door is not None and self.door.poll() is None

    @property
    def status(self):
        """Exit status, negative for a signal as in subprocess; None while it runs."""
        return self.door.poll()

    def signal(self, number):
        if self.alive and self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, timeout_s=WAIT_S):
        try:
            return self.door.wait(timeout_s * PATIENCE)
        except subprocess.TimeoutExpired:
            raise BedError(f'{self} did not end in {timeout_s * PATIENCE} s') from None

    def kill9(self):
        """Of one that is frozen, too, which does nothing more: not even with what has come for it meanwhile."""
        self.signal(signal.SIGKILL)
        if self.alive:
            os.kill(self.door.pid, signal.SIGCONT)      # nsenter, stopped with its child, would not see its end
        return self.wait()

    def stop(self, timeout_s=WAIT_S):
        """Ask it to end (SIGTERM); returns its exit status."""
        self.thaw()
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def freeze(self):
        self.signal(signal.SIGSTOP)
        self.wait_stopped()

    def wait_stopped(self):
        # nsenter too, which stops itself once it has seen its child stop: woken before that, it would sleep for ever
        for pid in (self.pid, self.door.pid):
            wait_until(lambda: process_state(pid) in ('T', 'Z', None) or sleeps_in_vfork(self.pid), what=f'{self} stands still',
                       poll_s=POLL_S)

    def thaw(self):
        # nsenter stops itself when its child is stopped, and wakes the child when it is woken itself
        if self.alive:
            os.kill(self.door.pid, signal.SIGCONT)
            self.signal(signal.SIGCONT)

    def text(self):
        return self.log.read_text(errors='replace') if self.log.exists() else ''

    def wait_for_text(self, text, timeout_s=WAIT_S):
        """Wait until its output of this life holds @text."""
        def seen():
            if text in self.text().rpartition('---- start ')[2]:
                return True
            if not self.alive:
                raise BedError(f'{self} ended with status {self.status} and never wrote {text!r}; see {self.log}')
            return False
        wait_until(seen, timeout_s, f'{self} writes {text!r}')

    def __str__(self):
        return f'{self.name} on {self.host}'


class Host:
    """One host of a bed; @number from 1. Made by Bed."""

    def __init__(self, bed, number):
        if not 1 <= number <= HOSTS_MAX:
            raise BedError(f'a bed has hosts 1 to {HOSTS_MAX}')
        self.bed, self.number = bed, number
        self.address = f'{NET}.{10 + number}'
        self.cable = f'cable{number}'
        self.directory = bed.directory / f'host{number}'
        self.programs = {}
        self.keeper = None
        self.init = None
        self.cgroup = bed.cgroup / str(self) if bed.cgroup else None
        self.directory.mkdir(parents=True)
        self.power_on()

    @property
    def door(self):
        """What to put before a command so that it runs on this host."""
        return ['nsenter', '--target', str(self.init), '--net', '--mount', '--uts', '--ipc', '--pid', '--']

    @property
    def is_on(self):
        return self.keeper is not None and self.keeper.poll() is None

    def power_on(self):
        """Boot the host on its state directory; its programs are started by who wants them."""
        if self.is_on:
            raise BedError(f'{self} is on')
        ready = self.directory / 'booted'
        ready.unlink(missing_ok=True)
        with open(self.directory / 'boot.log', 'ab') as log:
            enter = []
            if self.cgroup:
                self.cgroup.mkdir(parents=True, exist_ok=True)
                enter = ['sh', '-c', 'echo $$ >"$0" && exec "$@"', str(self.cgroup / 'cgroup.procs')]
            self.keeper = start_keeper(
                [*enter, 'unshare', '--cgroup', '--net', '--mount', '--uts', '--ipc', '--pid', '--fork', '--kill-child', '--mount-proc',
                 '--', 'sh', '-c', BOOT, 'boot', str(self), str(ready), str(self.directory)], self.bed.environment, log)
        wait_until(lambda: ready.exists() or not self.is_on, what=f'{self} boots', poll_s=POLL_S)
        if not self.is_on:
            raise BedError(f'{self} did not boot: {(self.directory / "boot.log").read_text()[-500:]}')
        self.init = children_of(self.keeper.pid)[0]
        self.bed.command('ip', 'link', 'add', self.cable, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', str(self.init))
        self.bed.command('ip', 'link', 'set', self.cable, 'master', 'br0', 'up')
        self.run(['ip', 'addr', 'add', f'{self.address}/24', 'dev', 'eth0'])
        self.run(['ip', 'link', 'set', 'eth0', 'up'])
        self.run(['ip', 'route', 'add', 'default', 'via', f'{NET}.1'])

    def power_off(self):
        """Pull the plug: every process of the host dies by SIGKILL. The page cache is this machine's and survives."""
        if not self.is_on:
            return
        # first the cable: a dying host says no goodbye (its kernel would reset the connections of killed processes)
        self.bed.command('ip', 'link', 'del', self.cable)
        end_keeper(self.keeper)
        wait_until(lambda: process_state(self.init) in (None, 'Z'), what=f'{self} is off', poll_s=POLL_S)
        for program in self.programs.values():
            program.thaw()
            program.wait()
        self.keeper = None
        cgroup_remove(self.cgroup)

    def start(self, name, argv, environment=None):
        """Start a program; @name is the name of its log and is used once per host (see Program.restart)."""
        if name in self.programs:
            raise BedError(f'{self} has a program {name} already')
        self.programs[name] = Program(self, name, argv, environment)
        return self.programs[name]

    def run(self, argv, timeout_s=60, check=True, input=None, environment=None):
        """Run a command to its end; CompletedProcess with text. BedError on failure when @check."""
        return self.bed.run_through(self.door, argv, timeout_s, check, input, environment, str(self))

    def pids(self):
        """Every process of the host."""
        with contextlib.suppress(OSError):
            own = os.readlink(f'/proc/{self.init}/ns/pid')
            found = []
            for entry in pathlib.Path('/proc').iterdir():
                if entry.name.isdigit():
                    with contextlib.suppress(OSError):
                        if os.readlink(entry / 'ns/pid') == own:
                            found.append(int(entry.name))
            return found
        return []

    def signal_all(self, number):
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def __str__(self):
        return f'host{self.number}'


class Bed:
    """@hosts hosts on one wire. Use as a context manager, or close() it."""

    def __init__(self, name, hosts=3):
        if os.geteuid() != 0:
            raise BedError('the process bed needs root: namespaces, veth, nft')
        self.name = name
        self.mark = f'{os.getpid()}-{name}-{time.monotonic_ns()}'
        self.environment = {**os.environ, MARK: self.mark}
        self.directory = BUILD / name
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        self.hosts = []
        self.keeper = None
        self.cgroup = self._cgroup()
        try:
            self._start_wire()
            for number in range(1, hosts + 1):
                self.hosts.append(Host(self, number))
        except BaseException:
            self.close()
            raise

    def _cgroup(self):
        mount = cgroups_of_the_dead()
        return mount / f'drover-bed-{self.mark}' if mount else None

    def _start_wire(self):
        self.keeper = start_keeper(['unshare', '--net', '--', 'sleep', 'infinity'], self.environment)
        # the namespace is there once unshare has become sleep
        comm = pathlib.Path(f'/proc/{self.keeper.pid}/comm')
        wait_until(lambda: comm.read_text().strip() == 'sleep', what='the wire', poll_s=POLL_S)
        self.command('sysctl', '-qw', 'net.ipv6.conf.all.disable_ipv6=1', 'net.ipv6.conf.default.disable_ipv6=1')
        self.command('ip', 'link', 'set', 'lo', 'up')
        self.command('ip', 'link', 'add', 'br0', 'type', 'bridge', 'stp_state', '0', 'forward_delay', '0',
                     'mcast_snooping', '0')
        self.command('ip', 'addr', 'add', f'{NET}.1/24', 'dev', 'br0')
        self.command('ip', 'link', 'set', 'br0', 'up')
        self.command('nft', '-f', '-', input=FAULTS)

    def host(self, number):
        return self.hosts[number - 1]

    @property
    def door(self):
        return ['nsenter', '--target', str(self.keeper.pid), '--net', '--']

    def run_through(self, door, argv, timeout_s, check, input, environment, where):
        argv = [str(word) for word in argv]
        try:
            done = subprocess.run(TIED + door + argv, text=True, timeout=timeout_s * PATIENCE, input=input if input is not None else '',
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, errors='replace',
                                  env={**self.environment, **(environment or {})})
        except subprocess.TimeoutExpired:
            raise BedError(f'on {where}: {" ".join(argv)}: not done in {timeout_s * PATIENCE} s') from None
        if check and done.returncode != 0:
            raise BedError(f'on {where}: {" ".join(argv)}: status {done.returncode}: {done.stdout}{done.stderr}')
        return done

    def run(self, argv, timeout_s=60, check=True, input=None, environment=None):
        """A command on the wire itself: from here every host is reached, whatever is cut between them."""
        return self.run_through(self.door, argv, timeout_s, check, input, environment, 'the wire')

    def command(self, *argv, input=None):
        return self.run(argv, input=input).stdout

    @contextlib.contextmanager
    def inside(self):
        """Sockets that the calling thread opens meanwhile belong to the wire; they stay there when it goes on."""
        libc = ctypes.CDLL(None, use_errno=True)

        def enter(fd):
            if libc.setns(fd, CLONE_NEWNET) != 0:
                raise BedError(f'setns: {os.strerror(ctypes.get_errno())}')
        before = os.open('/proc/thread-self/ns/net', os.O_RDONLY | os.O_CLOEXEC)
        try:
            there = os.open(f'/proc/{self.keeper.pid}/ns/net', os.O_RDONLY | os.O_CLOEXEC)
            try:
                enter(there)
                yield
            finally:
                enter(before)
                os.close(there)
        finally:
            os.close(before)

    # ---- faults; a host is named by its number

    def _lose(self, *pairs):
        elements = ', '.join(f'cable{a} . cable{b}' for a, b in pairs)
        self.command('nft', 'add', 'element', 'bridge', 'bed', 'cut', f'{{ {elements} }}')

    def cut(self, a, b):
        """The two no longer see each other; both still see the others."""
        self._lose((a, b), (b, a))

    def oneway(self, a, b):
        """Frames from @a to @b are lost; the other way they pass."""
        self._lose((a, b))

    def isolate(self, a):
        """@a sees no other host; the wire still reaches it, so a test can ask it."""
        others = [host.number for host in self.hosts if host.number != a]
        self._lose(*[(a, b) for b in others], *[(b, a) for b in others])

    def split(self, left, right):
        """No host of @left sees one of @right."""
        self._lose(*[(a, b) for a in left for b in right], *[(b, a) for a in left for b in right])

    def silence(self, a):
        """Nobody, the wire included, hears or reaches @a."""
        self.command('nft', 'add', 'element', 'bridge', 'bed', 'silent', f'{{ cable{a} }}')

    def freeze(self, a):
        """The whole host stands still: its processes, and its kernel as far as others can see."""
        self.silence(a)
        self.host(a).signal_all(signal.SIGSTOP)
        for program in self.host(a).programs.values():
            if program.alive:
                program.wait_stopped()

    def thaw(self, a):
        for program in self.host(a).programs.values():
            program.thaw()
        self.host(a).signal_all(signal.SIGCONT)
        self.command('nft', 'delete', 'element', 'bridge', 'bed', 'silent', f'{{ cable{a} }}')

    def heal(self):
        """Every wire works again."""
        self.command('nft', 'flush', 'set', 'bridge', 'bed', 'cut')
        self.command('nft', 'flush', 'set', 'bridge', 'bed', 'silent')

    # ---- the end

    def logs(self, lines=40):
        """The last lines of every log, for the report of a failed test."""
        parts = []
        for path in sorted(self.directory.glob('host*/log/*.log')):
            text = path.read_text(errors='replace').splitlines()
            parts.append(f'==== {path.relative_to(ROOT)} ({len(text)} lines)\n' + '\n'.join(text[-lines:]))
        return '\n'.join(parts)

    def close(self):
        """End all of it. May be called more than once."""
        for host in self.hosts:
            end_keeper(host.keeper)
            host.keeper = None
            for program in host.programs.values():
                if program.alive:
                    program.door.kill()
                    program.door.wait()
        end_keeper(self.keeper)
        self.keeper = None
        if self.cgroup and self.cgroup.exists():
            cgroup_remove(self.cgroup)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
