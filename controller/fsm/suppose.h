/* Changes of a copy of the state that is thrown away: what could be, for plans. Nothing here is ever agreed on. */
#ifndef CONTROLLER_FSM_SUPPOSE_H
#define CONTROLLER_FSM_SUPPOSE_H

#include "controller/fsm/state.h"

/* The host @id, with ha armed whatever it is in truth, has fallen silent: it may be declared lost. */
void suppose_host_is_suspect(struct state *copy, const char *id);
/* The VM @id, if it was placed and is about to be started, has come to run, and long enough ago for those that are to follow. */
void suppose_vm_runs(struct state *copy, const char *id);

#endif
