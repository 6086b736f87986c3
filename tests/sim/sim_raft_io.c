/* The methods of our raft_io: each hands the work to disk or network and calls libraft back in a later event. */
#include "tests/sim/sim_raft_io.h"

#include <stdio.h>
#include <malloc.h>
#include <string.h>

/* In the static library only (which is why the simulator and the controllers link it): raft_uv calls it each loop
 * turn to fire the callbacks of finished requests, and so must any other raft_io. */
extern void LegacyFireCompletedRequests(struct raft *raft);

static struct sim_raft_io *sim_io(struct raft_io *io)
{
    return io->impl;
}

/* --- The way in and out ----------------------------------------------------------------------------------------- */

static _Noreturn void io_escape(struct sim_raft_io *io, const char *why)
{
    ASSERT(io->inside);
    io->end_why = why;
    longjmp(io->escape, 1);
}

void sim_raft_io_call(struct sim_raft_io *io, void (*fn)(struct sim_raft_io *io, void *arg), void *arg)
{
    int ended;

    if (io->inside) {
        fn(io, arg);
        return;
    }
    io->inside = true;
    ended = setjmp(io->escape);
    if (ended == 0) {
        fn(io, arg);
        if (io->actor->up)
            LegacyFireCompletedRequests(io->raft);
    }
    io->inside = false;
    if (ended != 0)
        io->ended(io, io->end_why);
}

static void io_broken(struct raft_guard *guard, const char *what, int raft_code UNUSED)
{
    io_escape(CONTAINER_OF(guard, struct sim_raft_io, guard), what);
}

static void io_broken_ignored(struct raft_guard *guard UNUSED, const char *what UNUSED, int raft_code UNUSED)
{
}

/* --- The allocator ---------------------------------------------------------------------------------------------- */

static void *heap_malloc(void *data UNUSED, size_t size)
{
    return xcalloc(1, size);
}

static void *heap_calloc(void *data UNUSED, size_t count, size_t size)
{
    return xcalloc(count, size);
}

static void *heap_realloc(void *data UNUSED, void *p, size_t size)
{
    return xrealloc(p, size);
}

static void *heap_aligned_alloc(void *data UNUSED, size_t alignment, size_t size)
{
    return aligned_alloc(alignment, size);
}

/* What is freed is spoilt: whoever still uses it shall not find what was there. */
static void heap_free(void *data UNUSED, void *p)
{
    if (p != NULL)
        memset(p, 0xdd, malloc_usable_size(p));
    free(p);
}

static void heap_aligned_free(void *data, size_t alignment UNUSED, void *p)
{
    heap_free(data, p);
}

void sim_raft_heap_install(struct sim_raft_heap *heap)
{
    *heap = (struct sim_raft_heap){.heap = {.data = heap,
                                            .malloc = heap_malloc,
                                            .free = heap_free,
                                            .calloc = heap_calloc,
                                            .realloc = heap_realloc,
                                            .aligned_alloc = heap_aligned_alloc,
                                            .aligned_free = heap_aligned_free}};
    raft_heap_set(&heap->heap);
}

/* --- Messages --------------------------------------------------------------------------------------------------- */

static void message_free(void *data)
{
    struct raft_message *message = data;

    if (message->type == RAFT_APPEND_ENTRIES && message->append_entries.n_entries > 0) {
        raft_free(message->append_entries.entries[0].batch);
        raft_free(message->append_entries.entries);
    } else if (message->type == RAFT_INSTALL_SNAPSHOT) {
        raft_configuration_close(&message->install_snapshot.conf);
        raft_free(message->install_snapshot.data.base);
    }
    free(message);
}

static void message_copy_entries(struct raft_append_entries *to, const struct raft_append_entries *from)
{
    size_t bytes = 8, at = 0;
    char *batch;

    for (unsigned i = 0; i < from->n_entries; i++)
        bytes += (from->entries[i].buf.len + 7) & ~(size_t)7;
    batch = raft_malloc(bytes);
    to->entries = raft_calloc(from->n_entries, sizeof(*to->entries));
    for (unsigned i = 0; i < from->n_entries; i++) {
        const struct raft_entry *entry = &from->entries[i];

        to->entries[i] = (struct raft_entry){entry->term, entry->type, {batch + at, entry->buf.len}, batch};
        memcpy(batch + at, entry->buf.base, entry->buf.len);
        at += (entry->buf.len + 7) & ~(size_t)7;
    }
}

static struct raft_message *message_copy(const struct raft_message *from)
{
    struct raft_message *to = NEW(struct raft_message);

    *to = *from;
    if (from->type == RAFT_APPEND_ENTRIES && from->append_entries.n_entries > 0) {
        message_copy_entries(&to->append_entries, &from->append_entries);
    } else if (from->type == RAFT_INSTALL_SNAPSHOT) {
        struct raft_buffer *data = &to->install_snapshot.data;

        sim_disk_copy_configuration(&from->install_snapshot.conf, &to->install_snapshot.conf);
        data->base = raft_malloc(data->len);
        memcpy(data->base, from->install_snapshot.data.base, data->len);
    }
    return to;
}

/* Mutation: past the guards of messages but for A and I. */
static bool io_recv_unguarded(struct sim_raft_io *io, struct raft_message *message)
{
    const struct raft_append_entries *append = &message->append_entries;
    bool off = false;

    if (message->type == RAFT_TIMEOUT_NOW)
        off = io->broken.no_alone_guard;
    if (message->type == RAFT_REQUEST_VOTE)
        off = io->broken.no_vote_guard;
    if (message->type == RAFT_APPEND_ENTRIES)
        off = io->broken.no_batch_guard && append->prev_log_index >= io->raft->trail.offset;
    if (!off)
        return false;
    if (raft_state(io->raft) != RAFT_LEADER)
        io->raft->legacy.change = NULL;
    io->guard.recv(&io->guard.io, message);
    return true;
}

static void io_recv(struct sim_raft_io *io, void *arg)
{
    io->kept_change = io->raft->legacy.change;
    io->gives_back = io->broken.no_leftover_guard;
    if (!io_recv_unguarded(io, arg))
        io->recv(&io->guard.io, arg); /* what the message points to is libraft's now */
}

/* Mutation: what comes behind guards I and Q gets back what they took away. */
static void io_recv_kept(struct raft_io *raft_io, struct raft_message *message)
{
    struct sim_raft_io *io = sim_io(raft_io);

    if (io->gives_back)
        io->raft->legacy.change = io->kept_change;
    io->gives_back = false;
    io->libraft_recv(raft_io, message);
}

static void io_tick_kept(struct raft_io *raft_io)
{
    struct sim_raft_io *io = sim_io(raft_io);

    if (io->broken.no_leftover_guard)
        io->raft->legacy.change = io->kept_change;
    if (io->broken.no_candidate_guard && raft_state(io->raft) == RAFT_CANDIDATE) {
        io->raft->candidate_state.disrupt_leader = io->kept_disrupt;
        io->raft->candidate_state.in_pre_vote = io->kept_pre_vote;
    }
    io->libraft_tick(raft_io);
}

static void io_deliver(struct sim_actor *to, struct sim_actor *from, void *data);

struct sent {
    struct sim_raft_io *io;
    struct raft_io_send *req;
    int status;
    uint64_t hash; /* of the entries when they were given to us */
    unsigned n_bufs;
    struct raft_buffer bufs[]; /* the entries: libraft's memory, which must stay as it is until the callback */
};

static uint64_t sent_hash(const struct sent *sent)
{
    uint64_t hash = 14695981039346656037ull;

    for (unsigned i = 0; i < sent->n_bufs; i++)
        for (size_t at = 0; at < sent->bufs[i].len; at += 8) { /* lengths are padded to 8 (raft_frame.h) */
            uint64_t word = 0;

            memcpy(&word, (const char *)sent->bufs[i].base + at, MIN(8, sent->bufs[i].len - at));
            hash = (hash ^ word) * 1099511628211ull;
        }
    return hash;
}

static struct sent *sent_new(struct sim_raft_io *io, struct raft_io_send *req, const struct raft_message *message)
{
    unsigned n = message->type == RAFT_APPEND_ENTRIES ? message->append_entries.n_entries : 0;
    struct sent *sent = xcalloc(1, sizeof(*sent) + n * sizeof(sent->bufs[0]));

    sent->io = io;
    sent->req = req;
    sent->n_bufs = n;
    for (unsigned i = 0; i < n; i++)
        sent->bufs[i] = message->append_entries.entries[i].buf;
    sent->hash = sent_hash(sent);
    return sent;
}

static void io_send_done(struct sim_raft_io *io UNUSED, void *arg)
{
    struct sent *sent = arg;

    sent->req->cb(sent->req, sent->status);
}

/* raft_uv writes from libraft's memory until the end: what is not the same by then went out wrong. */
static void io_sent(struct sim *sim, struct sim_event *event)
{
    struct sent *sent = event->data;

    if (sent_hash(sent) != sent->hash)
        sim_violation(sim, "controller %u: entries changed while they were being sent", sent->io->actor->id);
    sim_raft_io_call(sent->io, io_send_done, sent);
    free(sent);
}

static int io_send(struct raft_io *raft_io, struct raft_io_send *req, const struct raft_message *message,
                   raft_io_send_cb cb)
{
    struct sim_raft_io *io = sim_io(raft_io), *peer = io->peer(io, message->server_id);
    struct sim *sim = io->sim;
    struct raft_message *copy = message_copy(message);
    struct sent *sent = sent_new(io, req, message);
    bool under_way, failure_seen, held;
    uint64_t delay_us;

    copy->server_id = io->actor->id;
    copy->server_address = io->address;
    if (peer == NULL)
        message_free(copy);
    under_way = peer != NULL && sim_network_send(io->network, io->actor, peer->actor, copy, io_deliver, message_free);
    failure_seen = !under_way && sim_chance(sim, 500);
    held = failure_seen || (io->send_held_per_thousand > 0 && sim_chance(sim, io->send_held_per_thousand));
    req->cb = cb;
    sent->status = failure_seen ? RAFT_NOCONNECTION : 0;
    delay_us = held ? sim_between(sim, SIM_MS, io->send_held_ms * SIM_MS) : sim_below(sim, 200);
    sim_after(sim, delay_us, io_sent, io->actor, sent)->drop = free;
    return 0;
}

static void io_deliver(struct sim_actor *to, struct sim_actor *from, void *data)
{
    struct raft_message *message = data;
    struct sim_raft_io *io;

    (void)from;
    io = to->owner;
    if (io->recv == NULL) {
        message_free(message);
        return;
    }
    sim_raft_io_call(io, io_recv, message);
    free(message);
}

/* --- Disk ------------------------------------------------------------------------------------------------------- */

static int io_load(struct raft_io *raft_io, raft_term *term, raft_id *voted_for, struct raft_snapshot **snapshot,
                   raft_index *start_index, struct raft_entry *entries[], size_t *n_entries)
{
    const struct sim_disk *disk = sim_io(raft_io)->disk;

    *term = disk->term;
    *voted_for = disk->vote;
    *snapshot = sim_disk_get_snapshot(disk);
    *entries = sim_disk_get_entries(disk);
    *n_entries = disk->count;
    /* Mutation: guard O's load is off, which is guard J's too. */
    sim_io(raft_io)->guard.next_index = disk->next;
    *start_index = disk->count == 0 && *snapshot != NULL ? (*snapshot)->index + 1 : disk->first;
    return 0;
}

static int io_bootstrap(struct raft_io *raft_io, const struct raft_configuration *configuration)
{
    struct sim_disk *disk = sim_io(raft_io)->disk;
    struct raft_entry entry = {.term = 1, .type = RAFT_CHANGE};

    if (disk->term != 0)
        return RAFT_CANTBOOTSTRAP;
    ASSERT(raft_configuration_encode(configuration, &entry.buf) == 0);
    disk->term = 1;
    disk->entries = NEW(struct sim_disk_entry);
    disk->entries[0] = (struct sim_disk_entry){entry.term, entry.type, entry.buf.len, entry.buf.base};
    disk->count = disk->capacity = 1;
    disk->next = 2;
    return 0;
}

static int io_recover(struct raft_io *raft_io UNUSED, const struct raft_configuration *configuration UNUSED)
{
    return RAFT_IOERR;
}

static bool io_metadata_fails(struct sim_raft_io *io)
{
    bool fails = io->metadata_faults_per_thousand > 0 && sim_chance(io->sim, io->metadata_faults_per_thousand);

    if (fails)
        sim_log(io->sim, "controller %u cannot write its term or vote", io->actor->id);
    return fails;
}

static int io_set_term(struct raft_io *raft_io, raft_term term)
{
    struct sim_raft_io *io = sim_io(raft_io);

    if (io_metadata_fails(io))
        return RAFT_IOERR;
    sim_disk_set_term(io->disk, term);
    return 0;
}

static int io_set_vote(struct raft_io *raft_io, raft_id id)
{
    struct sim_raft_io *io = sim_io(raft_io);

    if (io_metadata_fails(io))
        return RAFT_IOERR;
    sim_disk_set_vote(io->disk, id);
    return 0;
}

static void io_append_done(struct sim_raft_io *io, void *arg)
{
    struct raft_io_append *req = arg;

    req->cb(req, 0);
    if (!sim_disk_keeps(io->disk, io->raft->last_stored))
        sim_violation(io->sim, "controller %u counts entry %llu as written, which it is about to cut", io->actor->id,
                      io->raft->last_stored);
}

static void io_appended(struct sim_disk *disk, void *req)
{
    sim_raft_io_call(disk->actor->owner, io_append_done, req);
}

static int io_append(struct raft_io *raft_io, struct raft_io_append *req, const struct raft_entry entries[],
                     unsigned n, raft_io_append_cb cb)
{
    req->cb = cb;
    sim_disk_append(sim_io(raft_io)->disk, entries, n, io_appended, req);
    return 0;
}

static int io_truncate(struct raft_io *raft_io, raft_index index)
{
    sim_disk_truncate(sim_io(raft_io)->disk, index);
    return 0;
}

static void io_put_done(struct sim_raft_io *io UNUSED, void *arg)
{
    struct raft_io_snapshot_put *req = arg;

    req->cb(req, 0);
}

static void io_put(struct sim_disk *disk, void *req)
{
    sim_raft_io_call(disk->actor->owner, io_put_done, req);
}

static int io_snapshot_put(struct raft_io *raft_io, unsigned trailing, struct raft_io_snapshot_put *req,
                           const struct raft_snapshot *snapshot, raft_io_snapshot_put_cb cb)
{
    req->cb = cb;
    sim_disk_put_snapshot(sim_io(raft_io)->disk, trailing, snapshot, io_put, req);
    return 0;
}

static void io_get_done(struct sim_raft_io *io, void *arg)
{
    struct raft_io_snapshot_get *req = arg;

    req->cb(req, sim_disk_get_snapshot(io->disk), 0);
}

static void io_got(struct sim *sim UNUSED, struct sim_event *event)
{
    sim_raft_io_call(event->actor->owner, io_get_done, event->data);
}

static int io_snapshot_get(struct raft_io *raft_io, struct raft_io_snapshot_get *req, raft_io_snapshot_get_cb cb)
{
    struct sim_raft_io *io = sim_io(raft_io);

    req->cb = cb;
    sim_after(io->sim, sim_between(io->sim, SIM_MS, 20 * SIM_MS), io_got, io->actor, req);
    return 0;
}

/* --- Time and life ---------------------------------------------------------------------------------------------- */

static raft_time io_time(struct raft_io *raft_io)
{
    struct sim_raft_io *io = sim_io(raft_io);

    return sim_local_us(io->sim, io->actor) / SIM_MS;
}

static int io_random(struct raft_io *raft_io, int min, int max)
{
    return min + (int)sim_below(sim_io(raft_io)->sim, (uint64_t)(max - min));
}

static void io_tick(struct sim_raft_io *io, void *arg UNUSED)
{
    /* 64 MiB prepared, or none on a full disk: libraft refuses new commands then. */
    io->guard.io.capacity = io->disk->full_until_us > io->sim->now_us ? 0 : UINT16_MAX;
    io->kept_change = io->raft->legacy.change;
    io->kept_disrupt = io->raft->candidate_state.disrupt_leader;
    io->kept_pre_vote = io->raft->candidate_state.in_pre_vote;
    if (io->broken.no_alone_guard) { /* past guard O, not I */
        raft_guard_turn(&io->guard);
        if (raft_state(io->raft) != RAFT_LEADER)
            io->raft->legacy.change = NULL;
        io->guard.tick(&io->guard.io);
    } else {
        io->tick(&io->guard.io);
    }
}

static void io_ticked(struct sim *sim, struct sim_event *event)
{
    struct sim_raft_io *io = event->actor->owner;

    sim_raft_io_call(io, io_tick, NULL);
    if (io->actor->up && io->actor->incarnation == event->incarnation)
        sim_after(sim, sim_true_us(io->actor, io->tick_ms * SIM_MS), io_ticked, io->actor, NULL);
}

static int io_start(struct raft_io *raft_io, unsigned msecs, raft_io_tick_cb tick, raft_io_recv_cb recv)
{
    struct sim_raft_io *io = sim_io(raft_io);

    io->tick_ms = msecs;
    io->tick = tick;
    io->recv = recv;
    if (io->broken.no_leftover_guard || io->broken.no_candidate_guard) {
        io->libraft_tick = io->guard.tick;
        io->libraft_recv = io->guard.recv;
        io->guard.tick = io_tick_kept;
        io->guard.recv = io_recv_kept;
    }
    sim_after(io->sim, msecs * SIM_MS, io_ticked, io->actor, NULL);
    return 0;
}

static int io_init(struct raft_io *raft_io UNUSED, raft_id id UNUSED, const char *address UNUSED)
{
    return 0;
}

static void io_close(struct raft_io *raft_io, raft_io_close_cb cb)
{
    if (cb != NULL)
        cb(raft_io);
}

/* Mutation: guard E off, guard F on. */
static int io_send_entries_unguarded(struct raft_io *raft_io, struct raft_io_send *req,
                                     const struct raft_message *message, raft_io_send_cb cb)
{
    struct sim_raft_io *io = sim_io(raft_io);

    if (message->type == RAFT_APPEND_ENTRIES)
        return io->guard.inner_send(raft_io, req, message, cb);
    return io->guarded_send(raft_io, req, message, cb);
}

/* Mutation: guard S is told that all is written. */
static int io_send_unwritten(struct raft_io *raft_io, struct raft_io_send *req, const struct raft_message *message,
                             raft_io_send_cb cb)
{
    struct sim_raft_io *io = sim_io(raft_io);
    raft_index stored = io->raft->last_stored;
    int rv;

    io->raft->last_stored = UINT64_MAX;
    rv = io->guarded_send(raft_io, req, message, cb);
    io->raft->last_stored = stored;
    return rv;
}

void sim_raft_io_init(struct sim_raft_io *io, const struct sim_raft_mutations *mutations)
{
    io->recv = NULL;
    io->inside = false;
    io->actor->owner = io;
    snprintf(io->address, sizeof(io->address), "c%u:7444", io->actor->id);
    memset(&io->guard, 0, sizeof(io->guard));
    io->guard.io = (struct raft_io){
        .version = 2,
        .capacity = UINT16_MAX,
        .impl = io,
        .init = io_init,
        .close = io_close,
        .load = io_load,
        .start = io_start,
        .bootstrap = io_bootstrap,
        .recover = io_recover,
        .set_term = io_set_term,
        .set_vote = io_set_vote,
        .send = io_send,
        .append = io_append,
        .truncate = io_truncate,
        .snapshot_put = io_snapshot_put,
        .snapshot_get = io_snapshot_get,
        .time = io_time,
        .random = io_random,
    };
    raft_guard_wrap(&io->guard, mutations->no_metadata_guard ? io_broken_ignored : io_broken, NULL);
    io->broken = *mutations;
    if (mutations->no_alone_guard)
        io->guard.io.load = io->guard.inner_load;
    if (mutations->no_install_guard) {
        io->guard.io.start = io->guard.inner_start;
        io->guard.io.snapshot_put = io->guard.inner_snapshot_put;
    }
    if (mutations->no_cut_guard)
        io->guard.io.truncate = io->guard.inner_truncate;
    io->guarded_send = io->guard.io.send;
    if (mutations->no_send_guard)
        io->guard.io.send = io_send_entries_unguarded;
    if (mutations->no_unwritten_guard)
        io->guard.io.send = io_send_unwritten;
    if (mutations->no_term_guard)
        io->guard.io.snapshot_get = io->guard.inner_snapshot_get;
}
