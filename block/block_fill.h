/* A raw file's content into a disk that holds zeroes, or a part of the same content: what an interrupted run has left. Holes of the file, and
 * pieces that are all zero, are not written. */
#ifndef BLOCK_BLOCK_FILL_H
#define BLOCK_BLOCK_FILL_H

#include "block/block.h"

struct block_fill_listener {
    /* So much of the file is in the disk, in steps of some MiB. Negative: block_fill ends with that. */
    int (*progress)(uint64_t done_bytes, uint64_t total_bytes, void *arg);
    void *arg;
};

/* Blocking, with nothing else under way in @to. Not flushed. -EFBIG in words: the disk is smaller; what reading, writing or the
 * listener (may be NULL) said. Nothing of it is under way any more when it returns. */
int block_fill(struct block *to, int fd, const struct block_fill_listener *listener, struct error *err);

#endif
