"""Where a storm's backups are (test_storage_storm.py): a directory or a bucket of S3, with what may happen to it.

    store = Directory(cluster, key=True)    # or Bucket(cluster, True, swift); encrypted, or in clear
    store.fields                            # of the backup store in the cluster
    store.run('verify')                     # drover-backup by hand, past all that disturbs it
    store.age('packs/')                     # all that is there under these names is of the day before yesterday
    store.harm(chance)                      # for a moment; returns what it was
"""
import contextlib
import datetime
import math
import os
import re
import subprocess
import time

from bed import NET
from test_backups import BACKUP
from test_backup_s3 import ACCESS, SECRET, Faulty

OLD_S = 2 * 86400


class Store:
    def __init__(self, cluster, location, fields, environment, key):
        self.cluster, self.location, self.environment = cluster, location, environment
        self.fields, self.key = {'name': 'nas', **fields}, cluster.bed.directory / 'store.key' if key else None
        if key:
            self.run('init', '--encrypt')
            self.fields['key'] = self.key.read_text().strip()

    def run(self, verb, *words):
        options = ['--store', self.location, *(['--key-file', self.key] if self.key else []), *words]
        ended = subprocess.run([BACKUP, verb, *options], capture_output=True, timeout=240, check=False,
                               env={**os.environ, **self.environment})
        assert ended.returncode == 0, (verb, words, ended.stdout[-1000:], ended.stderr[-3000:])
        return ended.stdout


class Directory(Store):
    def __init__(self, cluster, key):
        self.path = cluster.bed.directory / 'store'
        super().__init__(cluster, self.path, {'location': str(self.path)}, {}, key)

    def names(self, prefix):
        return [os.path.join(os.path.relpath(folder, self.path), name) for folder, _, names in os.walk(self.path / prefix) for name in names]

    def age(self, *prefixes):
        for name in [name for prefix in prefixes for name in self.names(prefix)]:
            with contextlib.suppress(FileNotFoundError):
                os.utime(self.path / name, (time.time() - OLD_S,) * 2)

    def harm(self, chance):
        if chance.random() < 0.65:
            away = self.path.rename(self.path.with_name('away'))
            time.sleep(chance.random() * 0.7)
            assert not self.path.exists(), f'somebody made {list(self.path.rglob("*"))} where the store was mounted'
            away.rename(self.path)
            return 'store away'
        host = chance.choice(self.cluster.agents).host
        host.run(['mount', '--bind', self.path, self.path])
        host.run(['mount', '-o', 'remount,bind,ro', self.path])
        time.sleep(chance.random() * 0.7)
        host.run(['umount', '-l', self.path])
        return 'store read-only'


class Bucket(Store):
    """Hosts reach the server through a proxy on their wire, which always hurts some requests; who works by hand through another."""
    FAULTS = [''] * 30 + ['busy', 'cut-first', 'cut-after', 'cut-middle', 'cut-upload', 'damage', 'slow']

    def __init__(self, cluster, key, swift):
        self.swift, self.aged = swift, {}
        location = 's3://bucket/{}?endpoint=http://{}:{}'
        prefix = f'storm-{os.getpid()}-{time.monotonic_ns()}'
        self.whole = prefix + '/'
        self.proxy = Faulty(swift.ports['proxy'], self.FAULTS, f'{NET}.1', cluster.bed.inside(), self.answered)
        self.calm = Faulty(swift.ports['proxy'], [''], answered=self.answered)
        by_hand, from_hosts = (location.format(prefix, *proxy.server_address) for proxy in (self.calm, self.proxy))
        super().__init__(cluster, by_hand, {'location': from_hosts, 'access_key': ACCESS, 'secret_key': SECRET},
                         {'AWS_ACCESS_KEY_ID': ACCESS, 'AWS_SECRET_ACCESS_KEY': SECRET}, key)

    def listed(self, prefix):
        """Of each object when it was written, in whole seconds, the way the server's lists for S3 have it."""
        found = self.swift.listed('bucket', self.whole + prefix)
        return {o['name'].removeprefix(self.whole): math.ceil(datetime.datetime.fromisoformat(o['last_modified'] + '+00:00').timestamp())
                for o in found}

    def names(self, prefix):
        return list(self.listed(prefix))

    def age(self, *prefixes):
        """Who lists them is told so, as long as they are not written again. (The server's clock is as it is.)"""
        for prefix in prefixes:
            self.aged.update({self.whole + name: self.text(written) for name, written in self.listed(prefix).items()})

    @staticmethod
    def text(at):
        return time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(at))

    def answered(self, path, answer):
        def old(one):
            name, written = re.search(rb'<Key>(.*?)</Key>', one[0])[1].decode(), re.search(rb'<LastModified>(.{19})', one[0])[1]
            if self.aged.get(name) != written.decode():
                return one[0]
            return one[0].replace(written, self.text(time.time() - OLD_S).encode())
        return re.sub(rb'<Contents>.*?</Contents>', old, answer, flags=re.DOTALL) if 'list-type=2' in path else answer

    def server_ends(self, chance):
        for name in chance.choice((['proxy'], ['object'], ['object', 'proxy'])):
            self.swift.kill9(name)
            time.sleep(chance.random() * 0.5)
            self.swift.start(name)
            self.swift.wait_up(name)

    def harm(self, chance):
        how = chance.choice(('server killed', 'busy', 'slow', 'cut-middle', 'cut-upload', 'cut-after'))
        if how == 'server killed':
            self.server_ends(chance)
            return how
        self.proxy.faults = self.FAULTS + [how] * chance.choice((30, 1000))     # half of all, or nearly all
        time.sleep(chance.random() * 3)
        self.proxy.faults = self.FAULTS
        return f'server {how}'

    def close(self):
        for proxy in (self.proxy, self.calm):
            proxy.shutdown()
            proxy.server_close()
