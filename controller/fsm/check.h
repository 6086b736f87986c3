/* Invariants of the state: every index agrees with the objects. For tests and the simulator, after every apply. */
#ifndef CONTROLLER_FSM_CHECK_H
#define CONTROLLER_FSM_CHECK_H

#include "controller/fsm/state.h"

/* 0, or -EILSEQ and what is wrong. O(all objects). */
int check_state(const struct state *state, struct error *err);

#endif
