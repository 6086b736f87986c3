/* The test guest's ledger on its first disks: see guest_ledger.c. */
#ifndef TESTS_GUEST_GUEST_LEDGER_H
#define TESTS_GUEST_GUEST_LEDGER_H

#include "guest_calls.h"

enum { LEDGER_DISKS_MAX = 4, LEDGER_WINDOW_MAX = 8 };

/* Read all that is there, tell it, and go on behind it; over the first @disks of its disks, with @window writes under way at most (at least 1
 * each). False, and told, where there are not so many. */
bool ledger_start(uint64_t seed, uint64_t disks, uint64_t window);
/* From now on a write a tick, and what is under way is looked at with the next one: who waits for a disk then takes no processor's time. */
void ledger_calm(void);
/* Take what is finished, and begin as much again; false: there is nothing to do before the next tick. */
bool ledger_step(void);
/* With each tick: tell how far it is, and of requests that do not come back. */
void ledger_tick(void);

#endif
