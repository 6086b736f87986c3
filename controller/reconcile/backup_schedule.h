/* Which VMs are to be backed up now, by the policies that their label backup-policy names.
 *
 * A VM is due when its policy's newest backup of it is older than every_s, or there is none; one that failed is tried again
 * after BACKUP_SCHEDULE_RETRY_S. It waits while it has other tasks, or no host. Times are those of the backups in the state,
 * so a new leader goes on where the last one stopped.
 *
 * Pure. The ids of what is to be made are hashes of VM, policy and time: two leaders that decide the same moment decide the
 * same, and apply refuses the second. */
#ifndef CONTROLLER_RECONCILE_BACKUP_SCHEDULE_H
#define CONTROLLER_RECONCILE_BACKUP_SCHEDULE_H

#include "controller/fsm/state.h"
#include "schema/commands.h"

#define BACKUP_SCHEDULE_LABEL "backup-policy"
#define BACKUP_SCHEDULE_RETRY_S 600u
#define BACKUP_SCHEDULE_TICK_MAX 4u /* begun in one tick; there is another one in a second */

struct backup_schedule {
    const struct state *state;
    const char *now; /* RFC 3339 */
    struct map newest; /* struct backup by VM id: the newest that a policy wanted */
    size_t next;       /* VM to look at */
};

/* Costs a look at each backup where there is a policy, and nothing otherwise. */
void backup_schedule_init(struct backup_schedule *s, const struct state *state, const char *now);
void backup_schedule_finish(struct backup_schedule *s);
/* The next VM that is due: fill the zeroed @ret_command but for its request, to be cleared by the caller. False: none. */
bool backup_schedule_next(struct backup_schedule *s, struct command_task *ret_command);

#endif
