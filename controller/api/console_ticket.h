/* One-time permissions to attach to a VM's console, in the leader's memory: a WebSocket of a browser can carry no
 * client certificate dialog or header of ours, but a query parameter. Good for 30 s and one use; lost with the
 * leader. */
#ifndef CONTROLLER_API_CONSOLE_TICKET_H
#define CONTROLLER_API_CONSOLE_TICKET_H

#include "common/base.h"
#include "controller/environment.h"

#define CONSOLE_TICKET_TTL_MS 30000u
#define CONSOLE_TICKETS_MAX 1024u /* beyond: the oldest goes */

struct console_ticket_entry {
    char ticket[ENVIRONMENT_SECRET_SIZE];
    char vm_id[37];
    uint64_t expires_ms; /* steady clock */
};
struct console_tickets {
    struct console_ticket_entry *entries; /* oldest first */
    size_t count;
};

/* A new ticket for the VM; the text is good until the next call. */
const char *console_ticket_issue(struct console_tickets *tickets, const char *vm_id, uint64_t now_ms);
/* Use it up. True if it was good for that VM at that time. Whatever the answer, it is gone. */
bool console_ticket_take(struct console_tickets *tickets, const char *ticket, const char *vm_id, uint64_t now_ms);
void console_tickets_finish(struct console_tickets *tickets);

#endif
