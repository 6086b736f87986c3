"""The command line against real controllers: what a person types, and what becomes of it."""
import pytest

from bed import BedError


def test_a_label_more_takes_no_other_away(make_cluster):
    cluster = make_cluster(controllers=1, agents=0)
    cluster.cli('flavor', 'create', 'small', '--vcpus', '1', '--memory', '64MiB', '--label', 'backup-policy=nightly')

    def labels(*words):
        changed = cluster.cli('flavor', 'update', 'small', *words)
        assert cluster.cli('flavor', 'show', 'small')['labels'] == changed['labels']
        return changed['labels']
    assert labels('--label', 'tier=web', '--label', 'owner=ann') == {'backup-policy': 'nightly', 'tier': 'web', 'owner': 'ann'}
    assert labels('--label', 'tier=', '--label', 'owner=bob') == {'backup-policy': 'nightly', 'owner': 'bob'}
    assert labels('--label', 'tier=') == {'backup-policy': 'nightly', 'owner': 'bob'}
    assert cluster.cli('flavor', 'update', 'small', '--label', 'none', '--dry-run', '--output', 'json')['labels'] == {}
    assert labels('--label', 'none', '--label', 'a=b') == {'a': 'b'}
    # the cluster has no name in its path
    assert cluster.cli('cluster', 'update', '--label', 'site=north')['labels'] == {'site': 'north'}
    assert cluster.cli('cluster', 'update', '--label', 'rack=7')['labels'] == {'site': 'north', 'rack': '7'}
    # the API itself takes what it is given for all there is
    status, _, changed = cluster.api('PATCH', '/v1/flavors/small', {'labels': {'c': 'd'}}, {'Idempotency-Key': 'one'})
    assert (status, changed['labels']) == (200, {'c': 'd'})


def test_a_rule_more_takes_no_other_away_unasked(make_cluster):
    cluster = make_cluster(controllers=1, agents=0)
    https, ssh = 'direction=inbound,protocol=tcp,port-first=443', 'direction=inbound,protocol=tcp,port-first=22,remote-group=web'
    made = cluster.cli('security-group', 'create', 'web', '--rule', https, '--rule', ssh)
    with pytest.raises(BedError, match=f'security-group web would lose --rule {https} --rule {ssh}'):
        cluster.cli('security-group', 'update', 'web', '--rule', 'direction=inbound,protocol=icmp')
    assert cluster.cli('security-group', 'show', 'web') == made
    changed = cluster.cli('security-group', 'update', 'web', '--rule', https, '--rule', ssh, '--rule', 'direction=inbound,protocol=icmp')
    assert changed['rules'] == [*made['rules'], {'direction': 'inbound', 'protocol': 'icmp'}]
    assert cluster.cli('security-group', 'update', 'web', '--rule', https, '--yes')['rules'] == made['rules'][:1]


def test_a_label_that_names_no_policy_is_told(make_cluster):
    """The VM is made and labelled all the same; and a policy that VMs have does not go without a word."""
    cluster = make_cluster(controllers=1, agents=0)
    cluster.cli('image', 'create', 'i', '--kind', 'kernel', '--kernel', 'url=https://example.org/k,sha256=' + 64 * '0')
    cluster.cli('vm', 'create', 'web', '--image', 'i', '--vcpus', '1', '--memory', '64MiB', '--started=false')

    def said(*words):
        return cluster.bed.run(cluster.cli_command('vm', 'update', 'web', *words)).stderr
    assert said('--label', 'backup-policy=nightly').strip() == (
        "drover: there is no backup-policy 'nightly': as long as there is none, VM web is not backed up by it")
    cluster.cli('backup-store', 'create', 'nas', '--location', '/srv/backups')
    cluster.cli('backup-policy', 'create', 'nightly', '--store', 'nas', '--every-s', '3600')
    assert not said('--label', 'backup-policy=nightly') and not said('--label', 'backup-policy=') and not said('--restart', 'never')
    cluster.cli('vm', 'update', 'web', '--label', 'backup-policy=nightly')
    with pytest.raises(BedError, match="policy 'nightly' has VM 'web' backed up"):
        cluster.cli('backup-policy', 'delete', 'nightly', '--yes')
    cluster.cli('backup-policy', 'delete', 'nightly', '--yes', '--force', parse=False)
    assert cluster.cli('backup-policy', 'list') == []
