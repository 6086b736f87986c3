/* Pools of the host: a thread for each looks every few seconds whether the directory is there and how much room it has. A
 * thread, because a network file system whose server is gone lets a call wait for as long as that lasts: such a pool is said
 * to be absent after POOL_WATCH_SILENT_MS, and nothing else of the agent waits with it.
 *
 *   pool_watch_learn   the orders: threads begin and end
 *   pool_watch_news    has anything changed since the last pool_watch_put? To be asked now and then
 *   pool_watch_there   may a disk in it be used now?
 *
 * All calls from one thread, the loop's. A thread that is stuck when its pool goes is left behind; it ends when its call
 * does. */
#ifndef COMPUTE_AGENT_POOL_WATCH_H
#define COMPUTE_AGENT_POOL_WATCH_H

#include "common/base.h"
#include "common/error.h"
#include "common/map.h"
#include "schema/objects.h"

#define POOL_WATCH_MS 3000u
#define POOL_WATCH_RBD_MS 15000u /* of one of Ceph that is there: to look at it takes a process that connects */
#define POOL_WATCH_SILENT_MS 10000u

struct pool_watch; /* one pool */

struct pool_watches {
    struct map all; /* struct pool_watch by the pool's id */
    bool learned;   /* there were orders */
};

void pool_watch_learn(struct pool_watches *watches, const struct object_list *orders);
bool pool_watch_news(const struct pool_watches *watches);
void pool_watch_put(struct pool_watches *watches, struct node_report *report);
/* 0; or why not, in words: -EAGAIN; -ENOENT: it is no pool of this host (any more). One that has not been looked at yet
 * passes: whoever uses it looks for itself. */
int pool_watch_there(const struct pool_watches *watches, const char *pool_id, const char *name, struct error *err);
/* Ends all threads that are not stuck. */
void pool_watch_finish(struct pool_watches *watches);

#endif
