"""What the test guest's ledger (tests/guest/guest_ledger.c) has said, and what its disk may hold by that, now or at some moment.

    book = Ledger(7)
    book.hear(line)                          # each of its console
    numbers = numbers_of(disk_bytes)         # or numbers_of(one, two, ...), which are all that it writes to (over=)
    book.judge(numbers, since)               # of one moment, no older than @since, a book.now() of before

Each life of the guest tells what it found, which is judged by what the lives before it said: whatever they had flushed is there.
"""
import re
import struct

BLOCKS, BLOCK_BYTES, STRIDE, WORDS, WINDOW = 256, 4096, 16384, 512, 8
ZONES, ZONE_WRITES = 8, 1024
ZONE_BLOCKS = BLOCKS // ZONES
MASK = (1 << 64) - 1


class Wrong(AssertionError):
    """The disk holds what it must not, or lacks what it must have."""


def numbers_of(*disks):
    """Of each block the number of the write that it holds; 0: none."""
    found = []
    for block in range(BLOCKS):
        words = struct.unpack_from(f'<{WORDS}Q', disks[block % len(disks)], block * STRIDE)
        if any(words) and (words[0] % WORDS or words != tuple(range(words[0], words[0] + WORDS))):
            raise Wrong(f'block {block} holds no one write: {words[:4]}')
        found.append(words[0] // WORDS)
    return found


def empty_disk(filling):
    """An image that a ledger can begin on: zeros where it writes, @filling(bytes) between."""
    return b''.join(bytes(BLOCK_BYTES) + filling(STRIDE - BLOCK_BYTES) for _ in range(BLOCKS))


def unwritten(*disks):
    """All that the guest never writes to."""
    def of(data, number):
        own = (data[block * STRIDE + (BLOCK_BYTES if block % len(disks) == number else 0):(block + 1) * STRIDE] for block in range(BLOCKS))
        return b''.join(own) + data[BLOCKS * STRIDE:]
    return b''.join(of(data, number) for number, data in enumerate(disks))


class Life:
    def __init__(self, first, found):
        self.first, self.found = first, found
        self.acked = self.kept = first - 1      # as it said last


class Ledger:
    def __init__(self, seed, window=WINDOW):
        """As its command line says."""
        self.seed, self.window = seed, window
        self.lives = []
        self.put_back = None    # judges what the next life finds, where its disk was put back to something else
        self.blocks = {}        # number -> block, as far as asked

    def block(self, n):
        if n not in self.blocks:
            x = (n + self.seed) * 0x9e3779b97f4a7c15 & MASK
            x ^= x >> 32
            any_block = (x >> 8) % BLOCKS
            self.blocks[n] = any_block if x % 128 == 0 else n // ZONE_WRITES % ZONES * ZONE_BLOCKS + any_block % ZONE_BLOCKS
        return self.blocks[n]

    def after(self, life, last):
        """What the blocks hold when the writes up to @last have ended, and none more has begun."""
        numbers = list(life.found)
        for n in range(life.first, last + 1):
            numbers[self.block(n)] = n
        return numbers

    # ---- what it says

    def hear(self, line):
        """A whole line of its console."""
        if line.startswith('ledger: '):
            raise Wrong(f'the guest says: {line}')
        begins = re.match(r'ledger begins (\d+) (?:flush|through):((?: \d+){%d})$' % BLOCKS, line)
        said = re.match(r'ledger (\d+) (\d+)$', line)
        if begins:
            self.begin(int(begins[1]), [int(n) for n in begins[2].split()])
        elif said and self.lives:
            self.lives[-1].acked, self.lives[-1].kept = int(said[1]), int(said[2])

    def begin(self, first, found):
        if self.put_back:
            self.put_back(found)
        elif self.lives:
            self.judge_found(found)
        self.put_back = None
        self.lives.append(Life(first, found))

    def judge_found(self, found):
        """By a life that follows the last one without anybody having put its disk back: nothing that was flushed is gone."""
        last = self.lives[-1]
        low = self.after(last, last.kept)
        for block, n in enumerate(found):
            own = n >= last.first and self.block(n) == block
            if n < low[block] or not (n == last.found[block] or own):
                raise Wrong(f'life {len(self.lives)} finds {n} in block {block}; life {len(self.lives) - 1}, from {last.first}, had flushed '
                            f'up to {last.kept}, and {low[block]} there')

    # ---- what a disk may hold

    def now(self):
        """This moment, to be compared with."""
        return len(self.lives) - 1, self.lives[-1].acked

    def judge(self, numbers, since=(0, 0)):
        """@numbers are what the disk held at one moment, no earlier than @since. Returns that moment."""
        problem = f'no life began behind {max(numbers)}'
        for at in reversed(range(since[0], len(self.lives))):
            life = self.lives[at]
            if numbers == life.found and (at > since[0] or since[1] < life.first):
                return at, life.first - 1
            if max(numbers) < life.first or (at + 1 < len(self.lives) and max(numbers) >= self.lives[at + 1].first):
                continue
            problem = self.cut_problem(numbers, life, since[1] if at == since[0] else 0)
            if problem is None:
                return at, max(numbers)
        raise Wrong(problem)

    def cut_problem(self, numbers, life, since):
        last = max(numbers)
        low = self.after(life, max(last - self.window, since))
        for block, n in enumerate(numbers):
            own = life.first <= n and self.block(n) == block
            if n < low[block] or not (n == life.found[block] or own):
                return f'block {block} holds {n}: where {last} is there, of what {since} had ended before, {low[block]} is there at least'
        return None
