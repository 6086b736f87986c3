/* The disk of a simulated controller, as libraft uses it: term and vote (written at once), a log and a snapshot
 * (written through an ordered queue, like raft_uv's). A crash keeps a random prefix of what was not yet done: that is
 * all that ordered, checksummed writes promise. */
#ifndef TESTS_SIM_SIM_DISK_H
#define TESTS_SIM_SIM_DISK_H

#include "tests/sim/sim_event.h"

#include <raft.h>

struct sim_disk_entry {
    raft_term term;
    enum raft_entry_type type;
    size_t size;
    void *data; /* never freed while the run lasts: queue and log share it */
};

struct sim_disk_snapshot {
    bool present;
    raft_index index, configuration_index;
    raft_term term;
    struct raft_configuration configuration;
    void *data;
    size_t size;
};

struct sim_disk_write; /* one operation in the queue */

struct sim_disk {
    struct sim *sim;
    struct sim_actor *actor; /* whose disk it is: its crash stops the queue */

    /* On the platters. */
    raft_term term;
    raft_id vote;
    raft_index first; /* index of entries[0] */
    struct sim_disk_entry *entries;
    size_t count, capacity;
    struct sim_disk_snapshot snapshot;

    /* On the way there. */
    struct sim_disk_write *head, *tail;
    bool busy;
    raft_index next; /* index after the last entry handed in */

    uint64_t slow_until_us, full_until_us; /* faults */
    unsigned stalls_per_thousand;          /* of writes: they take 0.5 to 4 s */
    unsigned snapshot_extra_ms;            /* how much longer snapshots take than entries */
    bool acknowledges_early;               /* mutation: says "written" before it is */
    uint64_t installs;
};

typedef void (*sim_disk_done_fn)(struct sim_disk *disk, void *req); /* written */

void sim_disk_init(struct sim_disk *disk, struct sim *sim, struct sim_actor *actor);
/* The process is gone: a random prefix of the queue survives, the rest does not. */
void sim_disk_crash(struct sim_disk *disk);

void sim_disk_set_term(struct sim_disk *disk, raft_term term);
void sim_disk_set_vote(struct sim_disk *disk, raft_id id);
void sim_disk_append(struct sim_disk *disk, const struct raft_entry entries[], unsigned n, sim_disk_done_fn done,
                     void *req);
void sim_disk_truncate(struct sim_disk *disk, raft_index index);
/* @trailing > 0: a snapshot of our own, keep that many entries behind it. 0: one from the leader, it replaces all. */
void sim_disk_put_snapshot(struct sim_disk *disk, unsigned trailing, const struct raft_snapshot *snapshot,
                           sim_disk_done_fn done, void *req);

/* Whether the entry at @index is there and is not about to be cut. */
bool sim_disk_keeps(const struct sim_disk *disk, raft_index index);
/* What the newest configuration there says; none: no members. */
void sim_disk_newest_members(const struct sim_disk *disk, struct raft_configuration *ret_members);

/* For raft_io's load and snapshot_get: copies in raft_malloc'ed memory. */
struct raft_snapshot *sim_disk_get_snapshot(const struct sim_disk *disk);
struct raft_entry *sim_disk_get_entries(const struct sim_disk *disk);
void sim_disk_copy_configuration(const struct raft_configuration *from, struct raft_configuration *to);

#endif
