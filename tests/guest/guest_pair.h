/* The test guest's work on its first two disks: see guest_pair.c. */
#ifndef TESTS_GUEST_GUEST_PAIR_H
#define TESTS_GUEST_GUEST_PAIR_H

#include "guest_calls.h"

/* False, and told, where there are no two disks. */
bool pair_start(void);
/* Take the answer that is due, if it has come, and write on. */
void pair_step(void);
/* With each tick: tell how far it is. */
void pair_tick(void);

#endif
