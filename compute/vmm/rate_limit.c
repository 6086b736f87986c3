/* Token buckets: see rate_limit.h. */
#include "compute/vmm/rate_limit.h"

#define NANO 1000000000ll
#define LEVEL_MAX (INT64_MAX / 2)

/* Tokens as billionths; what does not fit is more than anybody waits for. */
static int64_t nano(uint64_t tokens)
{
    return tokens > (uint64_t)(LEVEL_MAX / NANO) ? LEVEL_MAX : (int64_t)tokens * NANO;
}

static void bucket_fill(struct token_bucket *b, uint64_t now_ns)
{
    unsigned __int128 more = now_ns > b->at_ns ? (unsigned __int128)(now_ns - b->at_ns) * b->rate : 0;
    int64_t full = nano(b->burst);
    b->at_ns = MAX(now_ns, b->at_ns);
    if (b->level_nano >= full || more >= (unsigned __int128)((__int128)full - b->level_nano))
        b->level_nano = full;
    else
        b->level_nano += (int64_t)more;
}

static void bucket_set(struct token_bucket *b, uint64_t rate, uint64_t burst, uint64_t now_ns)
{
    bool was_set = b->rate != 0;
    if (was_set)
        bucket_fill(b, now_ns);
    b->rate = rate;
    b->burst = burst != 0 ? burst : MAX(rate / 10, (uint64_t)1);
    b->at_ns = now_ns;
    b->level_nano = was_set ? MIN(b->level_nano, nano(b->burst)) : nano(b->burst);
}

void rate_limit_set(struct rate_limit *l, const struct vmm_limits *limits, uint64_t now_ns)
{
    bucket_set(&l->operations, limits->operations_per_second, limits->operations_burst, now_ns);
    bucket_set(&l->bytes, limits->bytes_per_second, limits->bytes_burst, now_ns);
}

/* Until the level is above zero. */
static uint64_t bucket_wait_ns(struct token_bucket *b, uint64_t now_ns)
{
    if (b->rate == 0)
        return 0;
    bucket_fill(b, now_ns);
    return b->level_nano > 0 ? 0 : (uint64_t)-b->level_nano / b->rate + 1;
}

uint64_t rate_limit_wait_ns(struct rate_limit *l, uint64_t now_ns)
{
    uint64_t operations = bucket_wait_ns(&l->operations, now_ns), bytes = bucket_wait_ns(&l->bytes, now_ns);
    return MAX(operations, bytes);
}

static void bucket_charge(struct token_bucket *b, uint64_t tokens)
{
    if (b->rate != 0)
        b->level_nano = MAX(b->level_nano - nano(tokens), -LEVEL_MAX);
}

void rate_limit_charge(struct rate_limit *l, uint64_t bytes)
{
    bucket_charge(&l->operations, 1);
    bucket_charge(&l->bytes, bytes);
}
