/* Rate limits of one device: two token buckets, operations and bytes, both of which must let it go on.
 *
 *      rate tokens/s
 *           |            A bucket fills at its rate up to its burst. While it has anything, the next operation may
 *        [ burst ]       go, and takes what it costs, also below zero: a request larger than the burst goes through,
 *           |            and the debt is waited for after it.
 *           v
 *
 * Pure: time is the caller's (nanoseconds, never backwards), no lock. Levels are no part of a device's state: after a
 * restore or migration the buckets are full, which allows one burst more. */
#ifndef COMPUTE_VMM_RATE_LIMIT_H
#define COMPUTE_VMM_RATE_LIMIT_H

#include "schema/objects.h"

struct token_bucket {
    uint64_t rate;      /* per second; 0: no limit */
    uint64_t burst;     /* tokens that it holds at most, >= 1 */
    int64_t level_nano; /* billionths of a token: exact for every rate */
    uint64_t at_ns;
};

struct rate_limit {
    struct token_bucket operations, bytes;
};

/* Set or change the limits; a zeroed rate_limit has none. Debts and savings stay, cut to the new burst; a bucket that
 * had no limit begins full. */
void rate_limit_set(struct rate_limit *l, const struct vmm_limits *limits, uint64_t now_ns);
/* 0: go on; or nanoseconds after which to ask again. */
uint64_t rate_limit_wait_ns(struct rate_limit *l, uint64_t now_ns);
/* An operation of @bytes goes on. */
void rate_limit_charge(struct rate_limit *l, uint64_t bytes);
static inline bool rate_limit_is_set(const struct rate_limit *l)
{
    return l->operations.rate != 0 || l->bytes.rate != 0;
}

#endif
