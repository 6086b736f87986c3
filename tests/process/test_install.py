"""What `make install` lays down: programs, units and man pages that say what the programs say."""
import subprocess

from bed import ROOT


def test_install(tmp_path):
    subprocess.run(['make', '--no-print-directory', '-C', ROOT, 'install', f'DESTDIR={tmp_path}', 'prefix=/usr'],
                   check=True, stdout=subprocess.PIPE, text=True)
    for name in ('drover', 'drover-controller', 'drover-agent', 'drover-vmm', 'drover-backup', 'drover-rbd'):
        assert (tmp_path / 'usr/bin' / name).stat().st_mode & 0o111
    for unit in ('drover-controller', 'drover-agent'):
        text = (tmp_path / f'usr/lib/systemd/system/{unit}.service').read_text()
        assert f'/usr/bin/{unit}' in text and '/usr/local' not in text
    man = tmp_path / 'usr/share/man'
    page = (man / 'man1/drover-vm.1').read_text()
    help_text = subprocess.run([tmp_path / 'usr/bin/drover', 'vm', 'create', '--help'], check=True, text=True,
                               stdout=subprocess.PIPE).stdout.split('\nOptions of every command:')[0]
    assert help_text.replace('\\', '\\e').replace('-', '\\-').rstrip() in page
    nouns = {f.name for f in (man / 'man1').iterdir()}
    assert {'drover.1', 'drover-cluster.1', 'drover-host.1', 'drover-operation.1', 'drover-security-group.1'} <= nouns
    assert {f.name for f in (man / 'man8').iterdir()} == {'drover-agent.8', 'drover-controller.8', 'drover-vmm.8', 'drover-backup.8', 'drover-rbd.8'}
    # whatever help and refusals name is there
    assert {f.name for f in (tmp_path / 'usr/share/doc/drover').iterdir()} == {'LICENSE', *(f.name for f in (ROOT / 'docs').glob('*.md'))}
