/* Work that looks into pools, off the loop and off libuv's threads. A file server that is gone lets a call wait for as long as that
 * lasts, and libuv has a few threads for all: the names of controllers, images, networks, and VMs that have nothing to do with that pool
 * would wait as well. So work that pools have a part in has threads of its own, POOL_WORK_AT_ONCE for each lane, which is the pools
 * that it is about; what is more than that waits behind its own kind.
 *
 *   pool_work_begin --> (waits in its lane) --> run, in a thread --> after, on the loop
 *
 * It is not cancelled. What hangs when the agent ends is left where it is (main.c). The loop's thread, but for `run`. */
#ifndef COMPUTE_AGENT_POOL_WORK_H
#define COMPUTE_AGENT_POOL_WORK_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <uv.h>

#include "common/list.h"
#include "common/map.h"
#include "schema/objects.h"

#define POOL_WORK_AT_ONCE 4u /* in each lane */

/* Zeroed. Nothing of it is left when all work has ended. */
struct pool_works {
    struct map lanes; /* struct pool_lane by key: where something is at work */
};

/* Embedded by whoever wants it done; it and its memory stay until `after`. */
struct pool_work {
    uv_work_t on_loop; /* without a lane */
    uv_async_t ended;
    pthread_t thread;
    struct pool_lane *lane;
    struct list link; /* of those that wait */
    void (*run)(struct pool_work *);
    void (*after)(struct pool_work *);
};

/* @lane NULL: it has to do with no pool, and is libuv's; @works NULL: everything is (tests). @after is called once, never from within. */
void pool_work_begin(struct pool_works *works, uv_loop_t *loop, const char *lane, struct pool_work *work,
                     void (*run)(struct pool_work *), void (*after)(struct pool_work *));
/* The lane of what concerns @pools (struct pool_order); NULL: none. The caller frees. */
char *pool_work_lane(const struct object_list *pools);
/* Would one more wait? */
bool pool_work_is_full(const struct pool_works *works, const char *lane);

#endif
