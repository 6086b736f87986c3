/* The test guest's ledger on its first disk: see guest_ledger.c. */
#ifndef TESTS_GUEST_GUEST_LEDGER_H
#define TESTS_GUEST_GUEST_LEDGER_H

#include "guest_calls.h"

/* Read all that is there, tell it, and go on behind it. False, and told, where there is no disk. */
bool ledger_start(uint64_t seed);
/* Take what is finished, and begin as much again; false: there is nothing to do before the next tick. */
bool ledger_step(void);
/* With each tick: tell how far it is, and of requests that do not come back. */
void ledger_tick(void);

#endif
