/* Console tickets: a small array, oldest first. */
#include "controller/api/console_ticket.h"

#include <openssl/crypto.h>
#include <stdio.h>
#include <string.h>

static void drop(struct console_tickets *tickets, size_t from, size_t count)
{
    memmove(tickets->entries + from, tickets->entries + from + count,
            (tickets->count - from - count) * sizeof *tickets->entries);
    tickets->count -= count;
}

static void drop_expired(struct console_tickets *tickets, uint64_t now_ms)
{
    size_t n = 0;
    while (n < tickets->count && tickets->entries[n].expires_ms <= now_ms)
        n++;
    drop(tickets, 0, n);
}

const char *console_ticket_issue(struct console_tickets *tickets, const char *vm_id, uint64_t now_ms)
{
    if (tickets->entries == NULL)
        tickets->entries = xcalloc(CONSOLE_TICKETS_MAX, sizeof *tickets->entries);
    drop_expired(tickets, now_ms);
    if (tickets->count == CONSOLE_TICKETS_MAX)
        drop(tickets, 0, 1);
    struct console_ticket_entry *entry = &tickets->entries[tickets->count++];
    environment_secret(entry->ticket);
    snprintf(entry->vm_id, sizeof entry->vm_id, "%s", vm_id);
    entry->expires_ms = now_ms + CONSOLE_TICKET_TTL_MS;
    return entry->ticket;
}

bool console_ticket_take(struct console_tickets *tickets, const char *ticket, const char *vm_id, uint64_t now_ms)
{
    size_t length = ENVIRONMENT_SECRET_SIZE - 1;
    drop_expired(tickets, now_ms);
    if (strlen(ticket) != length)
        return false;
    for (size_t i = 0; i < tickets->count; i++) {
        if (CRYPTO_memcmp(tickets->entries[i].ticket, ticket, length) != 0)
            continue;
        bool good = strcmp(tickets->entries[i].vm_id, vm_id) == 0;
        drop(tickets, i, 1);
        return good;
    }
    return false;
}

void console_tickets_finish(struct console_tickets *tickets)
{
    free(tickets->entries);
    *tickets = (struct console_tickets){.count = 0};
}
