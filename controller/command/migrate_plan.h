/* May a VM be migrated, and where to? For requests and for the emptying of hosts. Pure. */
#ifndef CONTROLLER_COMMAND_MIGRATE_PLAN_H
#define CONTROLLER_COMMAND_MIGRATE_PLAN_H

#include "controller/fsm/state.h"

/* Fill *task (zeroed; the caller clears it) with the migration of @vm as @wish says (NULL: as one likes). Refusals name the
 * reason: of the VM (ERROR_CONFLICT, ERROR_NOT_SUPPORTED), or of each host (ERROR_NO_HOST). What only the two VMMs can tell,
 * that processors and devices are the same, is judged by the target before memory is sent. */
int migrate_plan(const struct state *state, const struct record *vm, const struct vm_migration *wish, struct task *task,
                 struct error *err);

#endif
