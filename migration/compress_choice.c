/* Two ways, measured and compared; see compress_choice.h. */
#include "migration/compress_choice.h"

enum {
    FIRST_TRIAL = 4,
    TRIALS_MIN = 32,
    TRIALS_MAX = 4096,
    BYTES_MIN = 65536,               /* smaller batches say nothing about time */
    BETTER_NUM = 9, BETTER_DEN = 10, /* clearly */
};

void compress_choice_init(struct compress_choice *c)
{
    *c = (struct compress_choice){.until_trial = FIRST_TRIAL, .interval = TRIALS_MIN};
}

bool compress_choice_next(struct compress_choice *c)
{
    if (c->fixed || c->until_trial-- > 0)
        return c->on;
    c->until_trial = c->interval;
    return !c->on;
}

static uint64_t smooth(uint64_t old, uint64_t now)
{
    return old == 0 ? MAX(now, 1) : MAX((3 * old + now) / 4, 1);
}

void compress_choice_note(struct compress_choice *c, bool compressed, uint64_t plain, uint64_t sent, uint64_t zip_us,
                          uint64_t wire_us)
{
    if (plain < BYTES_MIN)
        return;
    c->wire_ns = smooth(c->wire_ns, wire_us * 1000 * 1024 / MAX(sent, 1));
    if (compressed) {
        c->zip_ns = smooth(c->zip_ns, zip_us * 1000 * 1024 / plain);
        c->left = smooth(c->left, sent * 1024 / plain);
    }
    if (c->zip_ns == 0)
        return;
    bool better = c->zip_ns + c->wire_ns * c->left / 1024 < c->wire_ns * BETTER_NUM / BETTER_DEN;
    if (better != c->on)
        c->interval = TRIALS_MIN;
    else if (compressed != c->on)
        c->interval = MIN(c->interval * 2, (unsigned)TRIALS_MAX);
    c->on = better;
}
