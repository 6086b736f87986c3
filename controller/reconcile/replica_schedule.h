/* Which VMs' replicas are due for their next point, and which are late.
 *
 * A point is due replica_every_s after the last one began, however that ended, while the VM runs, both hosts are up and nothing else is being
 * done with the VM. A replica is late when its last complete point (or the wish for it) is older than replica_limit_s while the VM is to
 * run, unless an attempt is under way that began within that time. Pure, as backup_schedule.h: ids are hashes of VM and time, so
 * two leaders that decide the same moment decide the same, and apply refuses the second. Each host has a part in a few points at a time;
 * those that have waited longest come first. */
#ifndef CONTROLLER_RECONCILE_REPLICA_SCHEDULE_H
#define CONTROLLER_RECONCILE_REPLICA_SCHEDULE_H

#include "controller/fsm/state.h"
#include "schema/commands.h"

#define REPLICA_SCHEDULE_TICK_MAX 16u /* begun, or called late, in one tick */
#define REPLICA_SESSION_EVERY_S 10u  /* at least, from the beginning of a session to that of the next */
#define REPLICA_SESSION_SOON_S 2u    /* the same where nothing has failed */
#define REPLICA_SCHEDULE_HOST_MAX 4u  /* points under way at one time in which a host has a part */

struct replica_schedule {
    const struct state *state;
    const char *now;     /* RFC 3339 */
    size_t next_late;    /* VM to look at */
    const struct record **due; /* owned; those that have waited longest first */
    size_t count, next;
    struct map begun;    /* of this tick, by host id: how many */
};

/* Costs a look at each VM. */
void replica_schedule_init(struct replica_schedule *s, const struct state *state, const char *now);
void replica_schedule_finish(struct replica_schedule *s);
/* 0: none follows; 1: @ret_task is filled but for its request; 2: @ret_late. Both zeroed before, cleared by the caller. */
int replica_schedule_next(struct replica_schedule *s, struct command_task *ret_task, struct command_replica_late *ret_late);

#endif
