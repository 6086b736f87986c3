/* Entries that wait for a restore: see the header. */
#include "controller/raft/raft_deferred.h"

#include <string.h>

void raft_deferred_init(struct raft_deferred *deferred)
{
    *deferred = (struct raft_deferred){.state = RAFT_DEFERRED_IDLE};
    list_init(&deferred->entries);
}

static void deferred_drop(struct raft_deferred *deferred)
{
    LIST_FOREACH_SAFE(at, &deferred->entries)
        free(LIST_ENTRY(at, struct raft_deferred_entry, in_entries));
    list_init(&deferred->entries);
    deferred->bytes = 0;
}

void raft_deferred_finish(struct raft_deferred *deferred)
{
    deferred_drop(deferred);
    deferred->state = RAFT_DEFERRED_IDLE;
}

bool raft_deferred_busy(const struct raft_deferred *deferred)
{
    return deferred->state != RAFT_DEFERRED_IDLE;
}

void raft_deferred_begin(struct raft_deferred *deferred)
{
    deferred_drop(deferred);
    deferred->state = RAFT_DEFERRED_RESTORING;
}

void raft_deferred_add(struct raft_deferred *deferred, const void *data, size_t size)
{
    struct raft_deferred_entry *entry = xcalloc(1, sizeof(*entry) + size);

    ASSERT(raft_deferred_busy(deferred));
    entry->size = size;
    memcpy(entry->data, data, size);
    list_append(&deferred->entries, &entry->in_entries);
    deferred->bytes += size;
    deferred->total++;
}

void raft_deferred_ready(struct raft_deferred *deferred)
{
    ASSERT(deferred->state == RAFT_DEFERRED_RESTORING);
    deferred->state = RAFT_DEFERRED_DRAINING;
}

struct raft_deferred_entry *raft_deferred_next(struct raft_deferred *deferred)
{
    struct raft_deferred_entry *entry;

    ASSERT(deferred->state != RAFT_DEFERRED_RESTORING);
    if (list_empty(&deferred->entries)) {
        deferred->state = RAFT_DEFERRED_IDLE;
        return NULL;
    }
    entry = LIST_ENTRY(deferred->entries.next, struct raft_deferred_entry, in_entries);
    list_remove(&entry->in_entries);
    deferred->bytes -= entry->size;
    return entry;
}
