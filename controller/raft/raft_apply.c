/* The state machine as libraft sees it: groups are unpacked into commands, commands are counted and given to the
 * machine under the write lock; snapshots get our header, whose checksum is verified before anything is restored
 * (raft_restore.c, where what is applied meanwhile waits as well).
 *
 * What can go wrong here is a committed entry or a snapshot that can't be read: damaged, or written by a newer
 * Drover. Skipping it would make this server's state differ from the others' for ever, so the server ends. */
#include "controller/raft/raft_frame.h"
#include "controller/raft/raft_internal.h"

#include "common/log.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static void apply_command(struct raft_node *node, struct group *mine, unsigned at, const void *command, size_t size)
{
    struct raft_machine *machine = &node->machine;
    void *result = NULL;

    machine->apply(machine->ctx, ++node->index, command, size, &result);
    if (mine != NULL)
        raft_propose_set_result(mine, at, result);
    else if (result != NULL && machine->release != NULL)
        machine->release(machine->ctx, result);
}

static int apply_group(struct raft_node *node, const struct raft_buffer *buf)
{
    struct raft_group group;
    struct group *mine;
    const void *command;
    unsigned at = 0;
    size_t size;
    int rv = raft_group_open(&group, buf->base, buf->len);

    if (rv != 0)
        return rv;
    mine = raft_propose_find(node, group.proposer, group.sequence);
    pthread_rwlock_wrlock(node->machine.lock);
    while ((rv = raft_group_next(&group, &command, &size)) > 0)
        apply_command(node, mine, at++, command, size);
    pthread_rwlock_unlock(node->machine.lock);
    if (rv == 0 && mine != NULL)
        raft_propose_set_applied(mine);
    return rv;
}

/* libraft counts entries; one may have 16 bytes or a thousand commands. When the log has grown by so many bytes, the next
 * look of libraft's (right after the apply) finds that a snapshot is due. One that could not be written, for want of
 * space perhaps, is tried again after an eighth of that. */
static void log_grew(struct raft_node *node, size_t bytes)
{
    uint64_t limit = MAX(node->log_bytes_max, 2 * node->now.snapshot_bytes);

    if (node->snapshots_failed != node->guard.snapshots_failed) {
        node->snapshots_failed = node->guard.snapshots_failed;
        node->log_bytes = MAX(node->log_bytes, limit - limit / 8);
    }
    node->log_bytes += bytes;
    node->log_entries++;
    if (node->log_bytes >= limit)
        raft_set_snapshot_threshold(&node->raft, 1);
}

/* A snapshot is being taken: from here on the log grows anew. Half of what it may hold is kept for slow followers, but on a
 * full disk hardly any: those get the snapshot. */
static void log_cut(struct raft_node *node)
{
    uint64_t entry_bytes = node->log_entries > 0 ? node->log_bytes / node->log_entries + 1 : 1;
    uint64_t trailing = node->guard.disk_short ? 1 : MAX(node->log_bytes_max / 2 / entry_bytes, (uint64_t)1);

    raft_set_snapshot_trailing(&node->raft, (unsigned)MIN(trailing, (uint64_t)node->snapshot_trailing));
    raft_set_snapshot_threshold(&node->raft, node->snapshot_threshold);
    node->log_bytes = node->log_entries = 0;
}

/* Short is a disk without room for what may be needed next: two log files, a snapshot and its successor. Then a snapshot is the
 * way to get some: the log files before it go. libraft looks whether one is due after every event, its own ticks included. */
void raft_apply_tick(struct raft_node *node)
{
    uint64_t now_ms = raft_node_now_us() / 1000;
    uint64_t needed_bytes = 2 * RAFT_SEGMENT_BYTES + 2 * MAX(node->now.snapshot_bytes, (uint64_t)RAFT_SNAPSHOT_BYTES_MIN);
    bool stuck;

    node->guard.disk_short = raft_dir_free_bytes(node->dir) < needed_bytes;
    if (node->guard.disk_short && node->log_entries > 0 && now_ms - node->room_snapshot_ms >= RAFT_ROOM_SNAPSHOT_MS) {
        node->room_snapshot_ms = now_ms;
        raft_set_snapshot_threshold(&node->raft, 1);
    }
    stuck = (node->guard.taking && node->guard.disk_short) || raft_guard_waits_for_room(&node->guard);
    raft_reserve_turn(&node->reserve, now_ms, stuck, node->now.snapshot_bytes);
}

void raft_apply_entry(struct raft_node *node, const struct raft_buffer *buf)
{
    uint64_t start_us = raft_node_now_us(), took_us;
    int rv = apply_group(node, buf);

    if (rv != 0) {
        raft_node_fatal(node, "a committed log entry cannot be read (%s); %s", strerror(-rv),
                        rv == -EPROTONOSUPPORT ? "a newer version wrote it: upgrade this controller"
                                               : "wipe the data directory and join again under a new id");
        return;
    }
    took_us = raft_node_now_us() - start_us;
    node->now.applies++;
    node->now.apply_us += took_us;
    node->turn_apply_us += took_us;
    node->now.apply_us_max = MAX(node->now.apply_us_max, took_us);
    raft_mailbox_post_applied(node->mailbox, node->index);
}

static int node_fsm_apply(struct raft_fsm *fsm, const struct raft_buffer *buf, void **result)
{
    struct raft_node *node = fsm->data;

    *result = NULL; /* results travel in the group */
    raft_restore_spread(node);
    if (raft_deferred_busy(&node->deferred))
        raft_restore_defer(node, buf);
    else
        raft_apply_entry(node, buf);
    log_grew(node, buf->len);
    return 0;
}

static int node_fsm_snapshot(struct raft_fsm *fsm, struct raft_buffer *bufs[], unsigned *n_bufs)
{
    struct raft_node *node = fsm->data;
    uint64_t start_us = raft_node_now_us();
    struct bytes_writer out = {0};
    struct raft_buffer *buf;

    if (!raft_guard_may_snapshot(&node->raft) || raft_deferred_busy(&node->deferred)) {
        node->now.snapshots_postponed++;
        return RAFT_BUSY;
    }
    raft_snapshot_begin(&out);
    pthread_rwlock_rdlock(node->machine.lock);
    node->machine.snapshot(node->machine.ctx, &out);
    pthread_rwlock_unlock(node->machine.lock);
    raft_snapshot_end(&out, node->index);

    buf = raft_malloc(sizeof(*buf));
    ASSERT(buf != NULL);
    *buf = (struct raft_buffer){.base = out.data, .len = out.size}; /* raft_free is free */
    *bufs = buf;
    *n_bufs = 1;
    node->now.snapshots_taken++;
    node->now.snapshot_bytes = out.size;
    log_cut(node);
    node->now.snapshot_us = raft_node_now_us() - start_us;
    return 0;
}

/* On success libraft leaves the buffer to us, on failure it keeps it. The leader's snapshots are restored aside, and this
 * says yes before it is known: raft_restore.c. */
static int node_fsm_restore(struct raft_fsm *fsm, struct raft_buffer *buf)
{
    struct raft_node *node = fsm->data;
    uint64_t start_us = raft_node_now_us(), index;
    struct error err = {0};

    node->log_bytes = node->log_entries = 0;
    if (node->started) {
        raft_restore_begin(node, buf);
        return 0;
    }
    if (raft_restore_state(node, buf, &index, &err) != 0) {
        snprintf(node->restore_error, sizeof(node->restore_error), "%s", err.text);
        return RAFT_CORRUPT; /* raft_node_create reports it */
    }
    raft_free(buf->base);
    raft_restore_done(node, index, raft_node_now_us() - start_us);
    return 0;
}

void raft_apply_init(struct raft_node *node)
{
    node->fsm = (struct raft_fsm){
        .version = 1,
        .data = node,
        .apply = node_fsm_apply,
        .snapshot = node_fsm_snapshot,
        .restore = node_fsm_restore,
    };
}
