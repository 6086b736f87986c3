"""Fixtures of the process bed: `make_bed` for hosts, `make_cluster` for hosts with the real programs on them.

Whatever a test makes through them is ended when the test is over, however it ended; the last lines of every
program's log go into the report of a failed test.
"""
import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
sys.dont_write_bytecode = True

import bed as bed_module        # noqa: E402   found through the line above
import cluster as cluster_module    # noqa: E402


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: minutes rather than seconds; run by `make check-all` only')


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.when in ('setup', 'call') and report.failed:
        for bed in getattr(item, 'beds', []):
            report.sections.append((f'logs of bed {bed.name}', bed.logs()))


@pytest.fixture
def make_bed(request):
    """make_bed(hosts=3): a Bed named after the test."""
    if os.geteuid() != 0:
        pytest.skip('the process bed needs root: namespaces, veth, nft')
    request.node.beds = []
    base = f'{request.node.path.stem}.{request.node.name}'.replace('/', '_').replace('[', '.').replace(']', '').replace(' ', '-')

    def make(hosts=3):
        made = request.node.beds
        made.append(bed_module.Bed(f'{base}.{len(made)}' if made else base, hosts))
        return made[-1]
    yield make
    for bed in request.node.beds:
        bed.close()


@pytest.fixture
def make_cluster(make_bed):
    """make_cluster(controllers=3, agents=3): a running Cluster; skipped where the programs are not built."""
    def make(controllers=3, agents=3, **settings):
        missing = cluster_module.missing_programs(agents)
        if missing:
            pytest.skip(f'not built: {", ".join(missing)}')
        bed = make_bed(max(controllers, agents, 1))
        cluster = cluster_module.Cluster(bed, controllers, agents, **settings)
        cluster.start()
        return cluster
    return make
