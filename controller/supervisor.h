/* Telling the supervisor (systemd, sd_notify(3)) how we are, without its library: one datagram to $NOTIFY_SOCKET.
 * Does nothing where there is none. */
#ifndef CONTROLLER_SUPERVISOR_H
#define CONTROLLER_SUPERVISOR_H

#include "common/base.h"

/* "READY=1", "STOPPING=1", "WATCHDOG=1", "STATUS=..." */
void supervisor_notify(const char *message);
/* How often a WATCHDOG=1 is expected, halved; 0: never ($WATCHDOG_USEC). */
uint64_t supervisor_watchdog_ms(void);

#endif
