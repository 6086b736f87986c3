/* Snapshots that the leader sends, restored by a thread of their own: decoding 20,000 VMs takes most of a second, in
 * which the raft loop has to answer heartbeats, votes and writes.
 *
 *   1. libraft has the snapshot on the disk and calls restore (raft_apply.c): raft_restore_begin keeps the bytes, starts
 *      the thread and returns; for libraft the restore is done
 *   2. the thread checks the bytes and calls machine.restore, which builds the new state and puts it in the old one's
 *      place under the write lock; frees the bytes; wakes the loop
 *   3. entries that libraft applies meanwhile wait in `deferred` (raft_deferred.h has the rules)
 *   4. raft_restore_turn takes the index of the snapshot over and applies what waits, a bounded piece each turn
 *
 * Meanwhile readers see the old state, which is a true one, only older: what a stale read promises. Nobody is told an
 * index that is not applied: node->index and `applied` change in step 4. Snapshots are postponed. A server that is elected
 * in this time holds its commands and readers back until it is done (raft_propose.c): it is no ready leader before its
 * first barrier, and this one comes behind all that waits.
 *
 * Failure modes: the bytes cannot be decoded -> raft_node_fatal, as if it had been done at once. The process dies -> it
 * starts from the same snapshot and the log behind it. Too much waits (RAFT_DEFERRED_BYTES_MAX), or the leader sends
 * another snapshot -> the loop waits for the thread, as it always did before there was one. No thread can be made -> it
 * is done at once. Stop -> the thread is waited for, what is deferred is forgotten. */
#include "controller/raft/raft_frame.h"
#include "controller/raft/raft_internal.h"

#include "common/log.h"

#include <errno.h>

#define RESTORE_SPREAD_US 20000u /* in the machine in one turn, before the rest is spread over further ones */
#define RESTORE_TURN_US 10000u /* for the entries that waited, in one turn of the loop */

struct raft_restore {
    struct raft_node *node;
    pthread_t thread;
    bool threaded;
    struct raft_buffer buf;
    uint64_t start_us, end_us;
    uint64_t index; /* commands in the snapshot */
    int rv;
    struct error err;
    bool done; /* atomic: all above is written */
};

int raft_restore_state(struct raft_node *node, const struct raft_buffer *buf, uint64_t *ret_index, struct error *err)
{
    const void *state;
    size_t state_size;
    uint64_t index;
    int rv = raft_snapshot_open(buf->base, buf->len, &index, &state, &state_size);

    if (rv == -EPROTONOSUPPORT)
        return error_set(err, rv, ERROR_NOT_SUPPORTED, "a newer version wrote it: upgrade this controller");
    if (rv != 0)
        return error_set(err, rv, ERROR_CHECKSUM, "its checksum does not match: it is damaged");
    rv = node->machine.restore(node->machine.ctx, state, state_size, err);
    if (rv == 0)
        *ret_index = index;
    return rv;
}

void raft_restore_done(struct raft_node *node, uint64_t index, uint64_t took_us)
{
    node->index = index;
    node->now.snapshots_restored++;
    node->now.restore_us = took_us;
    raft_mailbox_post_applied(node->mailbox, index);
}

static void *restore_thread(void *arg)
{
    struct raft_restore *restore = arg;

    restore->rv = raft_restore_state(restore->node, &restore->buf, &restore->index, &restore->err);
    raft_free(restore->buf.base);
    restore->end_us = raft_node_now_us();
    __atomic_store_n(&restore->done, true, __ATOMIC_RELEASE);
    uv_async_send(&restore->node->wake); /* open until this thread is joined */
    return NULL;
}

/* Wait for the thread and take over what it has done. */
static void restore_collect(struct raft_node *node)
{
    struct raft_restore *restore = TAKE_PTR(node->restore);

    if (restore->threaded)
        ASSERT(pthread_join(restore->thread, NULL) == 0);
    if (restore->rv == 0) {
        raft_restore_done(node, restore->index, restore->end_us - restore->start_us);
        raft_deferred_ready(&node->deferred);
        log_info("raft-restored", "index=%llu us=%llu waiting_bytes=%zu", (unsigned long long)node->index,
                 (unsigned long long)node->now.restore_us, node->deferred.bytes);
    } else {
        raft_node_fatal(node, "the leader's snapshot cannot be restored: %s", restore->err.text);
    }
    free(restore);
}

/* Apply what waits, for about @most_us. */
static void restore_drain(struct raft_node *node, uint64_t most_us)
{
    uint64_t start_us = raft_node_now_us();
    struct raft_deferred_entry *entry;

    while (!node->failed && raft_node_now_us() - start_us < most_us &&
           (entry = raft_deferred_next(&node->deferred)) != NULL) {
        const struct raft_buffer buf = {.base = entry->data, .len = entry->size};

        raft_apply_entry(node, &buf);
        free(entry);
    }
}

void raft_restore_begin(struct raft_node *node, const struct raft_buffer *buf)
{
    struct raft_restore *restore;

    if (node->restore != NULL)
        restore_collect(node);
    if (node->failed) {
        raft_free(buf->base);
        return;
    }
    raft_deferred_begin(&node->deferred);
    restore = NEW(struct raft_restore);
    *restore = (struct raft_restore){.node = node, .buf = *buf, .start_us = raft_node_now_us()};
    node->restore = restore;
    restore->threaded = pthread_create(&restore->thread, NULL, restore_thread, restore) == 0;
    if (!restore->threaded)
        restore_thread(restore);
}

void raft_restore_defer(struct raft_node *node, const struct raft_buffer *buf)
{
    if (node->deferred.bytes + buf->len > node->deferred_bytes_max) {
        log_warning("raft-restore-full", "%zu bytes wait for the snapshot to be restored: waiting for it",
                    node->deferred.bytes);
        if (node->restore != NULL)
            restore_collect(node);
        restore_drain(node, UINT64_MAX);
    }
    if (node->failed)
        return;
    if (raft_deferred_busy(&node->deferred))
        raft_deferred_add(&node->deferred, buf->base, buf->len);
    else
        raft_apply_entry(node, buf);
}

/* A follower that has just started is told of all that is committed at once, and libraft applies thousands of entries in one
 * call: from some moment on they wait as if they came behind a snapshot. Not on a leader, whose own commands are among them. */
void raft_restore_spread(struct raft_node *node)
{
    if (node->turn_apply_us < RESTORE_SPREAD_US || raft_deferred_busy(&node->deferred) ||
        raft_state(&node->raft) != RAFT_FOLLOWER)
        return;
    raft_deferred_begin(&node->deferred);
    raft_deferred_ready(&node->deferred);
    uv_async_send(&node->wake);
}

void raft_restore_turn(struct raft_node *node)
{
    if (node->restore != NULL && __atomic_load_n(&node->restore->done, __ATOMIC_ACQUIRE))
        restore_collect(node);
    if (node->deferred.state != RAFT_DEFERRED_DRAINING)
        return;
    restore_drain(node, RESTORE_TURN_US);
    if (raft_deferred_busy(&node->deferred))
        uv_async_send(&node->wake);
}

void raft_restore_stop(struct raft_node *node)
{
    if (node->restore != NULL)
        restore_collect(node);
}
