/* Which VMs are to be backed up now, by the policies that their label backup-policy names; which backups their rules let go;
 * which stores are to be verified, and which backups booted.
 *
 * A VM is due when its policy's newest backup of it is older than every_s, or there is none; one that failed is tried again
 * after BACKUP_SCHEDULE_RETRY_S. It waits while it has other tasks, or no host. Times are those of the backups in the state,
 * so a new leader goes on where the last one stopped.
 *
 * A policy's rules are applied when it has made a backup (rules_due): all that they let go in one store goes by one prune, which
 * is in the backups' state from its beginning (controller/fsm/apply_backup.c). So nothing that is being restored or verified goes.
 * A store is verified when verify_every_s have passed since the last time that this began, however it ended.
 *
 * The newest whole backup of a VM in its policy's store is booted when boot_every_s have passed since the last time that this began with
 * any of the VM's backups, however it ended: the VM knows when, as that backup may have been let go since. While no host has room for
 * it, it waits; those of other VMs do not wait for it. (None begins while a VM
 * of a lost host waits: reconcile.c.)
 *
 * Pure. The ids of what is to be made are hashes of VM, policy and time: two leaders that decide the same moment decide the
 * same, and apply refuses the second. */
#ifndef CONTROLLER_RECONCILE_BACKUP_SCHEDULE_H
#define CONTROLLER_RECONCILE_BACKUP_SCHEDULE_H

#include "controller/fsm/state.h"
#include "schema/commands.h"

#define BACKUP_SCHEDULE_RETRY_S 600u
#define BACKUP_SCHEDULE_TICK_MAX 4u /* begun in one tick; there is another one in a second */

struct backup_schedule {
    const struct state *state;
    const char *now; /* RFC 3339 */
    struct map newest; /* struct backup by VM id: the newest that a policy wanted */
    struct map whole;  /* ...the newest that may be booted, whoever wanted it: whole, and in the store of the VM's policy */
    size_t next;       /* VM to look at */
    size_t next_store; /* store to look at */
    size_t next_rules; /* the same, for the rules */
    size_t next_boot;  /* VMs looked at, whether a backup of them is to be booted */
    bool rules_due;    /* of any */
};

/* Costs a look at each backup where there is a policy, and nothing otherwise. */
void backup_schedule_init(struct backup_schedule *s, const struct state *state, const char *now);
void backup_schedule_finish(struct backup_schedule *s);
/* The next VM that is due: fill the zeroed @ret_command but for its request, to be cleared by the caller. False: none. */
bool backup_schedule_next(struct backup_schedule *s, struct command_task *ret_command);

/* The next store that is to be verified: as above. */
bool backup_schedule_verify(struct backup_schedule *s, struct command_task *ret_command);
/* The next backup that is to be booted: as above. */
bool backup_schedule_boot(struct backup_schedule *s, struct command_task *ret_command);
/* The next prune that rules ask for: as above. Backups whose VM's rules let nothing go come back in @ret_done (zeroed) instead, one
 * a call, for their rules_due to go: a put. 0: none; 1: a task; 2: a put. */
int backup_schedule_rules(struct backup_schedule *s, struct command_task *ret_command, struct command_put *ret_done);

#endif
