/* Drills on this controller: it fails in some way for a bounded time.
 *
 *   crash      the process becomes one that sleeps with nothing open, then starts (drill_restart.h)
 *   restart    in order, handing leadership over
 *   cut        the kernel drops what goes between it and the other machines, by its ports: an agent on the same machine goes on
 *              (common/packet_cut.h); the kernel ends that by itself
 *   slow-disk  libraft hears of each log write so much later than it is done (raft_node_slow_writes), as from a slow disk
 *
 * One at a time. All ends with the process or by the clock, and nothing of it is written down but the mark of a cut, by which a
 * controller that starts removes what is left of one. The API loop's thread. */
#ifndef CONTROLLER_CONTROLLER_DRILL_H
#define CONTROLLER_CONTROLLER_DRILL_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <uv.h>

#include "schema/objects.h"

#define CONTROLLER_DRILL_AFTER_MS 100u  /* from the answer to the fault: the answer is out by then */
#define CONTROLLER_DRILL_DELAY_MS_MIN 10u /* of a slow disk's write */

struct service;

struct controller_drill {
    uv_timer_t timer;
    bool busy;             /* from the order to the end */
    enum drill_fault fault;
    unsigned seconds;
    char name[64];
    char *cut;             /* its addresses (packet_cut.h), from prepare to end; else NULL */
};

/* Also removes what a process before this one has left of a cut. */
void controller_drill_start(struct service *service);
void controller_drill_stop(struct service *service);
/* -EBUSY: a drill is under way here, or it ends already. 0: it begins in CONTROLLER_DRILL_AFTER_MS. */
int controller_drill_order(struct service *service, const struct drill_order *order, struct error *err);

#endif
