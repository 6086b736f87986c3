/* A disk that was taken away: every request fails with -EIO at once, so that a guest that still holds the device sees
 * errors and not silence. */
#ifndef BLOCK_BLOCK_DEAD_H
#define BLOCK_BLOCK_DEAD_H

#include "block/block.h"

/* In the place of @lost, whose size and properties it has; @lost is not touched. */
struct block *block_dead_create(const struct block *lost);

#endif
