"""Under a VM the pool of its disk becomes full, is read-only at its start, and stands still as an NFS mount does whose server is gone: the VM is
held, or its guest is told, as its disk's policy says; what it was told is flushed stays; it goes on by itself when there is room again.

The pool is a file system of its own, on a loop device, in the mount namespace of the host.
"""
import contextlib
import os
import pathlib
import random
import signal
import subprocess

import pytest

import ledger
from bed import wait_until
from disk_guest import wait_pool
from test_backups import cluster_with, done, pytestmark     # noqa: F401
from test_storage_storm import SEED, Console

POOL_BYTES = 64 << 20


class Pool:
    """A host's pool `ssd`, on a disk of its own."""

    def __init__(self, cluster):
        self.cluster, self.host = cluster, cluster.agent(1).host
        self.path, image = cluster.bed.directory / 'ssd', cluster.bed.directory / 'ssd.img'
        self.path.mkdir()
        with open(image, 'wb') as file:
            file.truncate(POOL_BYTES)
        subprocess.run(['mkfs.ext4', '-q', '-m', '0', image], check=True, capture_output=True)
        if self.host.run(['mount', '-o', 'loop', image, self.path], check=False).returncode != 0:
            pytest.skip('no loop device can be mounted here')
        cluster.cli('pool', 'create', 'ssd', '--kind', 'dir', '--path', self.path, '--host', 'n1')
        wait_pool(cluster, 'ssd', n1='present')
        self.there = pathlib.Path(f'/proc/{self.host.init}/root') / self.path.relative_to('/')     # as this machine sees it

    def fill(self):
        with open(self.there / 'ballast', 'ab', buffering=0) as ballast:
            for step in (1 << 20, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        os.posix_fallocate(ballast.fileno(), ballast.seek(0, os.SEEK_END), step)

    def free(self):
        (self.there / 'ballast').unlink()

    def do(self, *words):
        self.host.run([*words, self.path])


class Guest:
    """VM `a` with a ledger on its disk in the pool."""

    def __init__(self, cluster, **disk):
        self.cluster, self.book = cluster, ledger.Ledger(SEED)
        self.agent = cluster.agent(1)
        done(cluster, cluster.api('POST', '/v1/vms', {
            'name': 'a', 'image': 'ticker', 'vcpus': 1, 'memory_bytes': 64 << 20, 'cmdline': f'ledger={SEED} hz=50 quiet',
            'disks': [{'name': 'root', 'image': True, 'pool': 'ssd', **disk}]}))
        self.console = Console([self.agent.directory / 'vms' / cluster.vm('a')['id'] / 'console.log'])
        self.goes_on()

    def hear(self):
        for line in self.console.lines():
            self.book.hear(line)
        return (len(self.book.lives), self.book.lives[-1].acked) if self.book.lives else (0, 0)

    def goes_on(self, timeout_s=40):
        before = self.hear()
        wait_until(lambda: self.hear() > before, timeout_s, 'the guest writes')

    def vm(self):
        return self.cluster.vm('a')


@pytest.fixture
def cluster(make_cluster):
    return cluster_with(make_cluster, ledger.empty_disk(random.Random(1).randbytes))


@pytest.mark.slow
def test_full(cluster):
    """The VM is held and says why; it goes on when there is room; also where its VMM was killed meanwhile."""
    pool = Pool(cluster)
    guest = Guest(cluster)
    for number, kill in enumerate((False, True)):
        done(cluster, cluster.api('POST', '/v1/vms/a/snapshots', {'name': f's{number}'}))    # what is written from now on needs room
        pool.fill()
        held = wait_until(lambda: guest.vm() if guest.vm()['state'] == 'paused' else None, 40, 'it is held')
        assert 'root' in held['state_reason'] and 'No space' in held['state_reason'], held
        guest.hear()
        if kill:
            os.kill(guest.agent.vmm_pids()[0], signal.SIGKILL)
        pool.free()
        guest.goes_on()
        wait_until(lambda: guest.vm()['state'] == 'running', 40, 'it runs')
        assert len(guest.book.lives) == 1 + kill
    done(cluster, cluster.api('DELETE', '/v1/snapshots/s0'))
    done(cluster, cluster.api('DELETE', '/v1/snapshots/s1'))
    done(cluster, cluster.api('POST', '/v1/vms/a/reboot?force=true'))
    wait_until(lambda: guest.hear()[0] == 3, 40, 'the guest finds what it had flushed')


def test_full_and_reported(cluster):
    """By the other policy the guest is told, and the VM runs on."""
    pool = Pool(cluster)
    guest = Guest(cluster, on_disk_error='report')
    done(cluster, cluster.api('POST', '/v1/vms/a/snapshots', {'name': 's'}))
    pool.fill()

    def told():
        try:
            guest.hear()
            return None
        except ledger.Wrong as wrong:
            return str(wrong)
    assert 'status not 0 of block' in wait_until(told, 40, 'the guest is told')
    assert guest.vm()['state'] == 'running'


def test_read_only(cluster):
    """It cannot be started, and says why; it starts by itself when that is over."""
    pool = Pool(cluster)
    guest = Guest(cluster)
    done(cluster, cluster.api('POST', '/v1/vms/a/stop?force=true'))
    pool.do('mount', '-o', 'remount,ro')
    status, _, operation = cluster.api('POST', '/v1/vms/a/start')
    assert status == 202, operation
    failed = wait_until(lambda: guest.vm() if guest.vm()['state'] == 'failed' else None, 40, 'it cannot be started')
    assert 'Read-only' in failed['state_reason'], failed
    pool.do('mount', '-o', 'remount,rw')
    guest.goes_on(80)
    assert len(guest.book.lives) == 2


def test_stands_still(cluster):
    """Nobody answers for some seconds: the guest waits and sees no error, the host and its other VMs go on."""
    pool = Pool(cluster)
    guest = Guest(cluster)
    pool.do('fsfreeze', '-f')
    try:
        done(cluster, cluster.api('POST', '/v1/vms', {'name': 'b', 'image': 'ticker', 'vcpus': 1, 'memory_bytes': 64 << 20}))
        before = guest.hear()
        done(cluster, cluster.api('POST', '/v1/vms/b/reboot?force=true'))
        assert guest.hear() == before and guest.vm()['state'] == 'running'
    finally:
        pool.do('fsfreeze', '-u')
    guest.goes_on()
    assert len(guest.book.lives) == 1
