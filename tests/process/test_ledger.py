"""Does the reader of the test guest's ledger see what it is to see? Histories that are made up, right ones and wrong ones."""
import random

import pytest

import ledger
from test_vmm import TICKER, VMM, needs_kvm, vmm    # noqa: F401   a fixture


def line(*words):
    return ' '.join(str(word) for word in words)


class Made:
    """A guest that wrote two lives: what its disk held after each write."""

    def __init__(self, seed):
        self.book, self.disk, self.history = ledger.Ledger(seed), [0] * ledger.BLOCKS, []
        self.live(1000, 3000, kept=2990)
        self.live(1 << 20, 700, kept=690)

    def live(self, first, count, kept):
        self.book.hear(line('ledger begins', first, 'flush:', *self.disk))
        self.history.append([list(self.disk)])
        for n in range(first, first + count):
            self.disk[self.book.block(n)] = n
            self.history[-1].append(list(self.disk))
        self.book.hear(line('ledger', first + count - 1, first + kept - 1))


@pytest.fixture
def made():
    return Made(random.randrange(1000))


def test_each_moment_is_known(made):
    for at, life in enumerate(made.history):
        for moment in (0, 1, 5, 300, len(life) - 1):
            first = made.book.lives[at].first
            same = (at + 1, made.book.lives[1].first - 1) if at == 0 and moment == len(life) - 1 else (at, first + moment - 1)
            assert made.book.judge(life[moment]) == same
            made.book.judge(life[moment], (at, first + moment - 1))


def test_what_is_not_of_one_moment_is_seen(made):
    """One block is older than the others, or newer; by more than may be under way at once."""
    late, early = made.history[1][650], made.history[1][random.randrange(300, 500)]
    seen = 0
    for block in range(ledger.BLOCKS):
        needed = range(max(early) + 1, late[block] - ledger.WINDOW + 1)     # where late[block] is there
        for most, other, wrong in ((late, early, early[block] < late[block] <= max(late) - ledger.WINDOW),
                                   (early, late, any(made.book.block(n) != block for n in needed))):
            if wrong:
                seen += 1
                mixed = list(most)
                mixed[block] = other[block]
                with pytest.raises(ledger.Wrong):
                    made.book.judge(mixed)
    assert seen > 10


def test_what_is_older_than_it_may_be_is_seen(made):
    for since in ((0, 2500), (1, (1 << 20) - 1), (1, (1 << 20) + 600)):
        with pytest.raises(ledger.Wrong):
            made.book.judge(made.history[0][1000], since)
    with pytest.raises(ledger.Wrong):
        made.book.judge(made.history[1][500], (1, (1 << 20) + 600))


def test_what_was_flushed_has_to_be_there(made):
    for n in ((1 << 20) + 689, (1 << 20) + 600, (1 << 20) + 1):
        block = made.book.block(n)
        lost = list(made.history[1][650])
        lost[block] = made.history[1][0][block]
        with pytest.raises(ledger.Wrong, match='had flushed'):
            made.book.judge_found(lost)
    made.book.judge_found(made.history[1][690])     # all that was flushed, and nothing else
    made.book.judge_found(made.history[1][700])
    with pytest.raises(ledger.Wrong, match='had flushed'):
        invented = list(made.history[1][700])
        invented[0] = invented[1]
        made.book.judge_found(invented)


def test_torn_blocks_are_seen():
    disk = bytearray(ledger.empty_disk(lambda size: b'x' * size))
    assert ledger.numbers_of(disk) == [0] * ledger.BLOCKS and set(ledger.unwritten(disk)) == {ord('x')}
    disk[ledger.STRIDE + 8] = 1
    with pytest.raises(ledger.Wrong, match='block 1'):
        ledger.numbers_of(disk)


@needs_kvm
@pytest.mark.skipif(not (VMM.exists() and TICKER.exists()), reason='drover-vmm or the test guest is not built')
@pytest.mark.parametrize('over, window, lives', [(1, 8, 3), (3, 2, 2)])
def test_the_guest_keeps_it(vmm, tmp_path, over, window, lives):     # noqa: F811
    """What the guest says and writes is what is read here; with its VMM killed at any moment."""
    disks = [tmp_path / f'disk{number}' for number in range(over)]
    for disk in disks:
        disk.write_bytes(ledger.empty_disk(random.Random(1).randbytes))
    now = lambda: [disk.read_bytes() for disk in disks]     # noqa: E731
    between, book = ledger.unwritten(*now()), ledger.Ledger(7, window)
    # at least so many; and since numbers begin with the guest's clock, until two have not begun in the same second
    while len(book.lives) < lives or len({life.first >> 10 for life in book.lives}) == 1:
        life = len(book.lives)
        assert life < 40, 'the guest takes its numbers from a clock that stands still'
        vm = vmm(f'ledger=7 hz=50 over={over} window={window} quiet', disks=[{'path': str(disk)} for disk in disks])
        console = vm.console()
        console.wait(r'^ledger begins ')
        until = random.randrange(5, 40)     # lines
        while console.text.count('\n') < until:
            assert console.read(10)
        vm.end()
        for line in console.text.split('\n')[:-1]:
            book.hear(line)
        assert len(book.lives) == life + 1 and book.lives[-1].acked >= book.lives[-1].first
        numbers = ledger.numbers_of(*now())
        assert book.judge(numbers, book.now())[0] == life
        assert ledger.unwritten(*now()) == between
