/* The definition of a VM that goes with its backup. */
#ifndef CONTROLLER_FSM_BACKUP_DEFINITION_H
#define CONTROLLER_FSM_BACKUP_DEFINITION_H

#include "controller/fsm/state.h"

/* @vm (a record of a VM) as JSON, and behind its own fields "networks", those that it is in: a cluster that has none of them
 * can make them by this. */
void backup_definition_put(const struct state *state, const struct record *vm, struct bytes_writer *out);

#endif
