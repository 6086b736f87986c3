/* Which VMs' replicas are due for their next point, and which are late.
 *
 * A point is due replica_every_s after the last one began, however that ended, while the VM runs, both hosts are up and nothing else is being
 * done with the VM. A replica is late when its last complete point (or the wish for it) is older than replica_limit_s while the VM is to
 * run, unless an attempt is under way that began within that time. Pure, as backup_schedule.h: ids are hashes of VM and time, so
 * two leaders that decide the same moment decide the same, and apply refuses the second. */
#ifndef CONTROLLER_RECONCILE_REPLICA_SCHEDULE_H
#define CONTROLLER_RECONCILE_REPLICA_SCHEDULE_H

#include "controller/fsm/state.h"
#include "schema/commands.h"

#define REPLICA_SCHEDULE_TICK_MAX 16u /* begun in one tick */

struct replica_schedule {
    const struct state *state;
    const char *now; /* RFC 3339 */
    size_t next;     /* VM to look at */
};

/* 0: none follows; 1: @ret_task is filled but for its request; 2: @ret_late. Both zeroed before, cleared by the caller. */
int replica_schedule_next(struct replica_schedule *s, struct command_task *ret_task, struct command_replica_late *ret_late);

#endif
