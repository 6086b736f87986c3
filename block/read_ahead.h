/* What of a disk will be read next: reads that go on where others ended are a stream, and what comes after it is asked for
 * before somebody waits for it.
 *
 * The kernel reads ahead in each file by itself. A disk of layers is many files, each sparse, and a read that goes on in
 * another file begins there, for the kernel, at random: it reads no further than it was told to. So this looks at the disk as
 * its user sees it.
 *
 *   idle --a read, one of READ_AHEAD_STREAK in order or more, had to wait--> ahead --much was read, and nothing had to wait--> idle
 *
 * Ahead of a stream up to its window is asked for, which doubles from READ_AHEAD_FIRST to READ_AHEAD_MAX; again when half of
 * that was read. Nobody says whether what is read without a wait would have been in memory anyway, so this is found out: a
 * stream of which nothing had to wait for its patience goes without. Where the very next of it has to wait then it was
 * this that had made it quick: the patience doubles. What is in memory so costs a disk READ_AHEAD_PATIENCE_FIRST of asking
 * after a read that was not; what is not is waited for once in READ_AHEAD_PATIENCE_MAX.
 *
 * Reads that need not wait begin nothing: as long as nothing was asked for lately they are not looked at.
 *
 * Pure: it is told of reads and says what to ask for. It never asks for more than READ_AHEAD_MAX beyond a read. */
#ifndef BLOCK_READ_AHEAD_H
#define BLOCK_READ_AHEAD_H

#include "common/base.h"

enum {
    READ_AHEAD_STREAMS = 8,               /* of one disk; the one that was not read for longest makes room */
    READ_AHEAD_STREAK = 3,                /* reads in order: what is read at random comes near another read now and then */
    READ_AHEAD_SLACK = 128 * 1024,        /* reads of one stream may overtake each other by so many bytes */
    READ_AHEAD_FIRST = 512 * 1024,        /* the first window */
    READ_AHEAD_MAX = 4 * 1024 * 1024,     /* the largest */
    READ_AHEAD_PATIENCE_FIRST = 4 << 20,  /* bytes without a wait, after which it is asked for nothing */
    READ_AHEAD_PATIENCE_MAX = 64 << 20,
};

struct read_ahead_stream {
    uint64_t next;     /* where it goes on */
    uint64_t asked;    /* what is before has been asked for, or read */
    uint64_t doubt;    /* from here on nothing is asked for, unless a read has to wait before */
    uint64_t used;     /* the number of its last read, of those looked at; 0: free */
    uint32_t window;   /* 0: none yet */
    uint32_t patience; /* bytes */
    unsigned streak;   /* reads in order */
    bool ahead;
};

/* All zero: no stream. */
struct read_ahead {
    struct read_ahead_stream streams[READ_AHEAD_STREAMS];
    uint64_t reads;   /* that were looked at */
    uint64_t watched; /* until so many of them those that need not wait are looked at, too */
};

/* [@offset, @offset + @size) of a disk of @disk_bytes is being read; @waits: it was not in memory. True: [@ret_start, @ret_end),
 * which lies behind it, is to be asked for. */
bool read_ahead_next(struct read_ahead *ra, uint64_t offset, uint64_t size, bool waits, uint64_t disk_bytes, uint64_t *ret_start,
                     uint64_t *ret_end);

#endif
