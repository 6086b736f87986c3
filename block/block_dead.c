/* The disk that is not there any more: see block_dead.h. */
#include "block/block_dead.h"

#include <errno.h>

static int dead_submit(struct block *b UNUSED, struct block_request *request UNUSED)
{
    return -EIO;
}

static void dead_drain(struct block *b UNUSED)
{
}

static void dead_close(struct block *b)
{
    free(b);
}

struct block *block_dead_create(const struct block *lost)
{
    static const struct block_ops ops = {.submit = dead_submit, .drain = dead_drain, .close = dead_close};
    struct block *b = NEW(struct block);
    *b = *lost;
    b->ops = &ops;
    b->in_flight = 0;
    return b;
}
