/* Which backups of a store its policies' rules let go, and what must not be removed now. Pure; reads the state. */
#ifndef CONTROLLER_FSM_BACKUP_RULES_H
#define CONTROLLER_FSM_BACKUP_RULES_H

#include "common/retention.h"
#include "controller/fsm/state.h"

#define BACKUP_POLICY_LABEL "backup-policy" /* of VMs: the name of their policy, or its id */

struct backup_choice {
    const struct backup **goes; /* owned list of borrowed backups, by VM, the newest first */
    size_t count;
    size_t looked_at; /* whole backups in the store (of the VM) */
};

/* Those of @store, and of VM @vm (an id; NULL: all), that @rules let go; NULL: the rules of each VM's policy, which is the one
 * that its label names, or, where the VM is gone, the one that wanted its newest backup; a policy of another store is none.
 * One that is being made, removed or has damage counts for no rule, and does not go, as one of a time ahead of @now (time_text_is_ahead: else
 * it would be the newest for as long as a clock was wrong once, and each one that is made would go); one that is being restored, verified or
 * booted counts, and does not go. */
void backup_rules_choose(const struct state *state, const char *now, const struct record *store, const char *vm,
                         const struct retention_rules *rules, struct backup_choice *ret_choice);
void backup_choice_finish(struct backup_choice *choice);
/* The rules of a policy. */
struct retention_rules backup_rules_of(const struct backup_policy *policy);

/* The operation of @kind about the store with @store_id that runs; NULL: none. @backup NULL: of any backup in it as well; an id: of
 * the store or of that backup; "": of the store alone. */
const struct operation *backup_rules_busy(const struct state *state, enum operation_kind kind, const char *store_id,
                                          const char *backup);
/* A host for work on a store: of those that are up the one with the fewest tasks; NULL: none is. */
const char *backup_rules_host(const struct state *state);
/* One more in arguments->gone. */
void backup_rules_add_id(struct task_backup *arguments, const char *id);

#endif
