/* The test guest's work on its first disk: see guest_disk.c. */
#ifndef TESTS_GUEST_GUEST_DISK_H
#define TESTS_GUEST_GUEST_DISK_H

#include "guest_calls.h"

/* False, and told, where there is no disk. */
bool disk_start(uint64_t seed);
/* Take what is finished, check it, and begin as much again. */
void disk_step(void);
/* Once, instead of disk_start: tell the text that the disk begins with, and leave it alone. */
void disk_show(void);
/* With each tick: tell how far it is, and of requests that do not come back. */
void disk_tick(bool quiet);
/* Finish what is in flight, read everything back and say what was found. */
void disk_verify(void);

#endif
