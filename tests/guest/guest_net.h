/* The test guest's work on its first network interface: see guest_net.c. */
#ifndef TESTS_GUEST_GUEST_NET_H
#define TESTS_GUEST_GUEST_NET_H

#include "guest_calls.h"

/* False, and told, where there is none. */
bool net_start(void);
/* Take what has come and gone; send, as far as this tick's share goes. */
void net_step(void);
void net_tick(bool quiet);
/* Answer what has been asked since the last tick. */
void net_answer(void);

#endif
