/* Committed entries that have to wait, because a snapshot is being restored aside and they come behind it.
 *
 *                 begin                        ready                  next: none is left
 *   IDLE ----------------------> RESTORING ------------> DRAINING ----------------------> IDLE
 *                                 ^   |  ^                   |
 *                                 +---+  +-------------------+
 *                                 begin: a newer snapshot; what waits for the old one is in it and goes
 *
 * (or, to spread a long log over several turns of a loop: begin and ready at once)
 *
 * While it is not IDLE, the machine's state is older than libraft believes, and the owner has to
 *   - put off each entry that libraft applies (raft_deferred_add) instead of applying it: order is all that counts,
 *   - refuse to take a snapshot: it would carry libraft's index and the old state,
 *   - hand libraft no command and no barrier: when one is applied, its proposer must see its effect.
 * A crash loses nothing: libraft has both the snapshot and the entries on its disk before it hands them over.
 *
 * Pure bookkeeping of one thread, shared by raft_restore.c (where a thread restores) and the simulator (where it is an
 * event). The queue has no limit of its own: the owner looks at `bytes`. */
#ifndef CONTROLLER_RAFT_RAFT_DEFERRED_H
#define CONTROLLER_RAFT_RAFT_DEFERRED_H

#include "common/base.h"
#include "common/list.h"

enum raft_deferred_state { RAFT_DEFERRED_IDLE, RAFT_DEFERRED_RESTORING, RAFT_DEFERRED_DRAINING };

struct raft_deferred {
    enum raft_deferred_state state;
    struct list entries;
    size_t bytes;   /* of those that wait */
    uint64_t total; /* entries that ever had to wait */
};

struct raft_deferred_entry { /* of raft_deferred_next: to be freed */
    struct list in_entries;
    size_t size;
    uint8_t data[]; /* aligned as malloc aligns, and so to 8 bytes */
};
STATIC_ASSERT(offsetof(struct raft_deferred_entry, data) % 8 == 0, "commands in an entry are aligned to 8 bytes");

void raft_deferred_init(struct raft_deferred *deferred);
/* Drop what waits: IDLE. */
void raft_deferred_finish(struct raft_deferred *deferred);
bool raft_deferred_busy(const struct raft_deferred *deferred);

/* A snapshot is to be restored. */
void raft_deferred_begin(struct raft_deferred *deferred);
/* Put off an entry (copied). Busy only. */
void raft_deferred_add(struct raft_deferred *deferred, const void *data, size_t size);
/* The snapshot is restored: now the entries are due. */
void raft_deferred_ready(struct raft_deferred *deferred);
/* The next entry to be applied, or NULL: none is left, all is up to date. Not while RESTORING. */
struct raft_deferred_entry *raft_deferred_next(struct raft_deferred *deferred);

#endif
