/* Invariants of the state: every index agrees with the objects. For tests and the simulator, after every apply. */
#ifndef CONTROLLER_FSM_CHECK_H
#define CONTROLLER_FSM_CHECK_H

#include "controller/fsm/state.h"

/* 0, or -EILSEQ and what is wrong. O(all objects). */
int check_state(const struct state *state, struct error *err);
/* The same where the state was whole at index @since: of objects that have not changed after it, neither fields nor JSON
 * are looked at again. An object that changes without a new revision is only found by check_state. */
int check_state_since(const struct state *state, uint64_t since, struct error *err);

#endif
