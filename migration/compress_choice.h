/* Is compression worth its time on this connection? Decided by what was measured, batch by batch: pure, no clock.
 *
 * A batch is compressed when compressing it and sending what is left takes clearly less time than sending it as it is.
 * Now and then a batch goes the other way, to see whether that has changed: rarely, and less and less often while the
 * answer stays the same, for such a batch is the slower one. On a fast link nothing is ever compressed but for these;
 * on a slow one, or under a limit of bandwidth, everything that shrinks is.
 *
 * Threads: none of its own; one choice for each connection. */
#ifndef MIGRATION_COMPRESS_CHOICE_H
#define MIGRATION_COMPRESS_CHOICE_H

#include "common/base.h"

struct compress_choice {
    bool on;              /* what is better, as far as is known */
    bool fixed;           /* no more trials: a guest stands still */
    unsigned until_trial; /* batches */
    unsigned interval;    /* between trials */
    uint64_t wire_ns;     /* that a KiB takes on the wire, smoothed; 0: not known */
    uint64_t zip_ns;      /* that a KiB takes to be compressed... */
    uint64_t left;        /* ...and what is left of 1024 bytes */
};

void compress_choice_init(struct compress_choice *c);
/* Is the next batch to be compressed? Called once for each. */
bool compress_choice_next(struct compress_choice *c);
/* How it went: @plain bytes became @sent (the same: not compressed), in @zip_us, and took @wire_us to be written. */
void compress_choice_note(struct compress_choice *c, bool compressed, uint64_t plain, uint64_t sent, uint64_t zip_us,
                          uint64_t wire_us);

#endif
