/* The guards around a raft_io: see the header for what they are for.
 *
 * snapshot_put with trailing > 0 is libraft writing a snapshot that it took; with trailing 0 it installs one that the
 * leader sent. Only the first kind makes an arriving InstallSnapshot dangerous. For guard U we make one of the first kind
 * look like one of the second to raft_uv. */
#include "controller/raft/raft_guard.h"
#include "controller/raft/raft_dir.h"

#include <string.h>

struct guard_held { /* a cut or a write that waits (guards J, K and T); a write is part of a guard_append */
    struct list link;
    bool is_cut;
    raft_index index;                 /* of a cut */
    const struct raft_entry *entries; /* of a write: libraft's until its callback */
    unsigned n;
};

struct guard_append { /* one log write on its way to the disk */
    struct guard_held held; /* unlinked, but where the write is held back */
    struct raft_io_append req;
    struct raft_io_append *inner;
    raft_io_append_cb cb;
    struct raft_guard *guard;
    struct list in_appends, in_late;
    uint64_t tell_us; /* in `late`: when libraft is to hear of it */
    raft_index end; /* after the last entry */
    bool cut;       /* some of its entries have been cut since */
    bool handed;    /* to raft_uv */
    uint64_t start_us;
};

struct guard_send { /* a copy of an AppendEntries, on its way */
    struct raft_io_send req;
    struct raft_message message;
    struct raft_entry entries[]; /* and behind them their data */
};

static void guard_tell(struct guard_append *append, int status);
static void guard_tell_late(struct raft_guard *guard, uint64_t now_us);

static struct raft_guard *guard_of(struct raft_io *io)
{
    return CONTAINER_OF(io, struct raft_guard, io);
}

/* --- Time and messages ------------------------------------------------------------------------------------------ */

/* Guard I. io->data is libraft's own: the server. */
static void guard_forget_change(struct raft_io *io)
{
    struct raft *raft = io->data;

    if (raft_state(raft) != RAFT_LEADER)
        raft->legacy.change = NULL;
}

/* libraft reads the capacity with each event, raft_uv sets it once in a turn, before anything else happens in it. */
static void guard_tell_capacity(struct raft_guard *guard)
{
    if (!guard->room_guarded)
        return;
    if (guard->io.capacity != RAFT_CAPACITY_KIB_NONE)
        guard->uv_capacity = guard->io.capacity;
    guard->io.capacity = !list_empty(&guard->held) || (guard->taking && guard->disk_short) ? RAFT_CAPACITY_KIB_NONE
                                                                                             : guard->uv_capacity;
}

static int guard_set_term(struct raft_io *io, raft_term term);
static int guard_set_vote(struct raft_io *io, raft_id id);

/* Guard O: is @id the only voter? */
static bool guard_alone(const struct raft_configuration *configuration, raft_id id)
{
    unsigned voters = 0, own = 0;

    for (unsigned i = 0; i < configuration->n; i++) {
        voters += configuration->servers[i].role == RAFT_VOTER;
        own += configuration->servers[i].role == RAFT_VOTER && configuration->servers[i].id == id;
    }
    return voters == 1 && own == 1;
}

static int guard_write_candidacy(struct raft_io *io, raft_term term, raft_id id)
{
    int rv = guard_set_term(io, term);

    return rv != 0 ? rv : guard_set_vote(io, id);
}

/* Guard O. When the election timeout is over, libraft makes the only voter leader of the term it is in. */
static void guard_begin_term(struct raft_io *io)
{
    struct raft *raft = io->data;

    if (raft_state(raft) != RAFT_FOLLOWER || !guard_alone(&raft->configuration, raft->id) ||
        io->time(io) < raft_timeout(raft))
        return;
    raft->current_term++;
    raft->voted_for = raft->id;
    raft->follower_state.match = 0; /* it counts what the leader of the last term had too */
    guard_write_candidacy(io, raft->current_term, raft->id);
}

/* Guard Q. */
static void guard_ask_first(struct raft_io *io)
{
    struct raft *raft = io->data;

    if (raft_state(raft) != RAFT_CANDIDATE || io->time(io) < raft_timeout(raft))
        return;
    raft->candidate_state.disrupt_leader = false;
    raft->candidate_state.in_pre_vote = raft->pre_vote;
}

static void guard_tick(struct raft_io *io)
{
    struct raft_guard *guard = guard_of(io);

    raft_guard_turn(guard);
    guard_forget_change(io);
    guard_begin_term(io);
    guard_ask_first(io);
    guard->tick(io);
}

/* --- Entries received ------------------------------------------------------------------------------------------- */

/* Entries [from, to) of @whole, in memory of their own, which libraft frees. */
static void guard_recv_part(struct raft_guard *guard, const struct raft_message *whole, unsigned from, unsigned to,
                            raft_index commit)
{
    const struct raft_entry *entries = whole->append_entries.entries;
    struct raft_message part = *whole;
    struct raft_append_entries *append = &part.append_entries;
    size_t size = 0;
    uint8_t *batch;

    append->prev_log_index += from;
    if (from > 0)
        append->prev_log_term = entries[from - 1].term;
    append->leader_commit = MAX(append->leader_commit, commit);
    append->n_entries = to - from;
    append->entries = NULL;
    if (from < to) {
        for (unsigned i = from; i < to; i++)
            size += entries[i].buf.len;
        batch = raft_malloc(size);
        append->entries = raft_calloc(to - from, sizeof(*append->entries));
        ASSERT(batch != NULL && append->entries != NULL);
        for (unsigned i = from, at = 0; i < to; at += (unsigned)entries[i].buf.len, i++) {
            append->entries[i - from] =
                (struct raft_entry){entries[i].term, entries[i].type, {batch + at, entries[i].buf.len}, batch};
            memcpy(batch + at, entries[i].buf.base, entries[i].buf.len);
        }
    }
    guard->recv(&guard->io, &part);
}

static void guard_free_entries(struct raft_append_entries *append)
{
    if (append->n_entries == 0)
        return;
    raft_free(append->entries[0].batch);
    raft_free(append->entries);
    append->entries = NULL;
    append->n_entries = 0;
}

/* Guard L. A change that comes while an older one is not committed here says that the older one is: the leader that
 * began it knew. */
static void guard_recv_changes(struct raft_guard *guard, struct raft_message *message)
{
    const struct raft *raft = guard->io.data;
    struct raft_append_entries *append = &message->append_entries;

    for (unsigned from = 0, to; from < append->n_entries; from = to) {
        raft_index before = raft->configuration_uncommitted_index;

        to = from + 1;
        while (to < append->n_entries && append->entries[to].type != RAFT_CHANGE)
            to++;
        if (append->entries[from].type == RAFT_CHANGE && before != 0 && before <= append->prev_log_index + from)
            guard_recv_part(guard, message, from, from, before);
        guard_recv_part(guard, message, from, to, 0);
    }
    guard_free_entries(append);
}

static void guard_recv_entries(struct raft_guard *guard, struct raft_message *message)
{
    const struct raft *raft = guard->io.data;
    struct raft_append_entries *append = &message->append_entries;
    bool changes = false;

    if (append->prev_log_index < raft->trail.offset) { /* guard N */
        guard_free_entries(append);
        append->prev_log_index = raft->trail.snapshot.index;
        append->prev_log_term = raft->trail.snapshot.term;
    }
    for (unsigned i = 0; i < append->n_entries; i++)
        changes = changes || (append->entries[i].type == RAFT_CHANGE &&
                              (i > 0 || raft->configuration_uncommitted_index != 0));
    if (changes)
        guard_recv_changes(guard, message);
    else
        guard->recv(&guard->io, message);
}

/* Guard P. A follower with a vote forgets its leader when it becomes a candidate. */
static void guard_forget_silent_leader(struct raft_guard *guard)
{
    struct raft *raft = guard->io.data;

    if (raft_state(raft) != RAFT_FOLLOWER || raft->follower_state.current_leader.id == 0 ||
        guard->io.time(&guard->io) < guard->heard_ms + raft->election_timeout)
        return;
    raft->follower_state.current_leader.id = 0;
    raft_free(TAKE_PTR(raft->follower_state.current_leader.address));
}

/* Guard P. Whose votes count is for the candidate's configuration to say (Raft dissertation §4.1: requests are processed
 * without looking at one's own). A request to vote never changes the configuration, so ours can be lent a vote meanwhile. */
static void guard_recv_vote(struct raft_guard *guard, struct raft_message *message)
{
    struct raft *raft = guard->io.data;
    struct raft_configuration *configuration = &raft->configuration;
    unsigned own = 0, n = configuration->n;
    int role;

    while (own < n && configuration->servers[own].id != raft->id)
        own++;
    if (own == n && (raft_state(raft) != RAFT_FOLLOWER || /* others have arrays with a place for each member */
                     raft_configuration_add(configuration, raft->id, raft->address, RAFT_VOTER) != 0)) {
        guard->recv(&guard->io, message);
        return;
    }
    role = own < n ? configuration->servers[own].role : RAFT_SPARE;
    if (role != RAFT_VOTER)
        guard_forget_silent_leader(guard);
    configuration->servers[own].role = RAFT_VOTER;
    guard->recv(&guard->io, message);
    configuration->servers[own].role = role;
    if (own == n)
        raft_free(configuration->servers[--configuration->n].address);
}

static void guard_recv(struct raft_io *io, struct raft_message *message)
{
    struct raft_guard *guard = guard_of(io);
    const struct raft *raft = io->data;

    guard_tell_capacity(guard);
    guard_forget_change(io);
    if (message->type == RAFT_INSTALL_SNAPSHOT)
        guard_tell_late(guard, UINT64_MAX); /* before the log that they are of goes */
    if (message->type == RAFT_APPEND_ENTRIES || message->type == RAFT_INSTALL_SNAPSHOT)
        guard->heard_ms = io->time(io);
    if (message->type == RAFT_INSTALL_SNAPSHOT &&
        (guard->taking || guard->cutting != 0 || !list_empty(&guard->held) || raft->snapshot.installing)) {
        guard->installs_dropped++; /* guards A, J and V */
        raft_configuration_close(&message->install_snapshot.conf);
        raft_free(message->install_snapshot.data.base);
    } else if (message->type == RAFT_APPEND_ENTRIES) {
        guard_recv_entries(guard, message);
    } else if (message->type == RAFT_REQUEST_VOTE) {
        guard_recv_vote(guard, message);
    } else if (message->type != RAFT_TIMEOUT_NOW || !guard_alone(&raft->configuration, raft->id)) {
        guard->recv(io, message);
    }
}

/* --- Start ------------------------------------------------------------------------------------------------------ */

/* Whether the newest configuration in what was loaded makes @id the only voter. */
static bool guard_loaded_alone(raft_id id, const struct raft_snapshot *snapshot, const struct raft_entry *entries,
                               size_t n)
{
    struct raft_configuration configuration;
    bool alone;

    while (n > 0 && entries[n - 1].type != RAFT_CHANGE)
        n--;
    if (n == 0)
        return snapshot != NULL && guard_alone(&snapshot->configuration, id);
    if (raft_configuration_decode(&entries[n - 1].buf, &configuration) != 0)
        return false; /* libraft will say so */
    alone = guard_alone(&configuration, id);
    raft_configuration_close(&configuration);
    return alone;
}

/* Guard O. When the new term cannot be written the process ends, and what was loaded with it. */
static int guard_load(struct raft_io *io, raft_term *term, raft_id *voted_for, struct raft_snapshot **snapshot,
                      raft_index *start_index, struct raft_entry *entries[], size_t *n_entries)
{
    struct raft_guard *guard = guard_of(io);
    const struct raft *raft = io->data;
    int rv = guard->inner_load(io, term, voted_for, snapshot, start_index, entries, n_entries);

    if (rv != 0)
        return rv;
    guard->next_index = *start_index + *n_entries;
    if (!guard_loaded_alone(raft->id, *snapshot, *entries, *n_entries))
        return 0;
    *term += 1;
    *voted_for = raft->id;
    return guard_write_candidacy(io, *term, raft->id);
}

static int guard_start(struct raft_io *io, unsigned msecs, raft_io_tick_cb tick, raft_io_recv_cb recv)
{
    struct raft_guard *guard = guard_of(io);

    guard->recv = recv;
    guard->tick = tick;
    return guard->inner_start(io, msecs, guard_tick, guard_recv);
}

/* --- Snapshots -------------------------------------------------------------------------------------------------- */

static raft_index guard_held_index(const struct guard_held *write)
{
    return CONTAINER_OF(write, struct guard_append, held)->end - write->n;
}

/* Guard U: does a write wait whose first entries a snapshot at @index would have? */
static bool guard_holds_write(const struct raft_guard *guard, raft_index index)
{
    const struct guard_held *first = LIST_ENTRY(guard->held.next, struct guard_held, link);

    return !list_empty(&guard->held) && !first->is_cut && guard_held_index(first) <= index;
}

/* Guard U: the snapshot is on the disk, and so are the entries that it has. Their writes are done without being written. */
static void guard_jump(struct raft_guard *guard, raft_index index)
{
    while (guard_holds_write(guard, index)) {
        struct guard_held *first = LIST_ENTRY(guard->held.next, struct guard_held, link);
        raft_index covered = index + 1 - guard_held_index(first);

        if (covered < first->n) {
            first->entries += covered;
            first->n -= (unsigned)covered;
            return;
        }
        list_remove(&first->link);
        guard_tell(CONTAINER_OF(first, struct guard_append, held), 0);
    }
}

/* Guard U: the writes that are done are told before libraft compacts its log, which would not know them any more. */
static void guard_put_cb(struct raft_io_snapshot_put *put, int status)
{
    struct raft_guard *guard = CONTAINER_OF(put, struct raft_guard, put);
    struct raft_io_snapshot_put *inner = TAKE_PTR(guard->put_inner);
    raft_index jump = guard->jumping;

    guard_tell_late(guard, UINT64_MAX);
    if (jump != 0 && status == 0)
        guard_jump(guard, jump);
    else if (jump != 0 && status != RAFT_CANCELED) /* raft_uv counts on from it all the same */
        guard->broken(guard, "write a snapshot", status);
    guard->jumping = 0;
    guard->taking = false; /* before the callback: it may start the next one */
    guard->snapshots_failed += status != 0;
    guard_tell_capacity(guard);
    inner->cb(inner, status);
}

static int guard_snapshot_put(struct raft_io *io, unsigned trailing, struct raft_io_snapshot_put *req,
                              const struct raft_snapshot *snapshot, raft_io_snapshot_put_cb cb)
{
    struct raft_guard *guard = guard_of(io);
    int rv;

    if (trailing == 0) {
        guard->next_index = snapshot->index + 1;
        return guard->inner_snapshot_put(io, trailing, req, snapshot, cb);
    }
    ASSERT(!guard->taking);
    req->cb = cb;
    guard->put_inner = req;
    guard->taking = true;
    guard->jumping = guard_holds_write(guard, snapshot->index) ? snapshot->index : 0;
    rv = guard->inner_snapshot_put(io, guard->jumping != 0 ? 0 : trailing, &guard->put, snapshot, guard_put_cb);
    if (rv != 0) {
        guard->put_inner = NULL;
        guard->taking = false;
        guard->jumping = 0;
    }
    return rv;
}

struct guard_get { /* a snapshot being loaded */
    struct raft_io_snapshot_get req;
    struct raft_io_snapshot_get *inner;
    raft_io_snapshot_get_cb cb;
    struct raft_guard *guard;
};

/* libraft sends the message from inside its callback. */
static void guard_get_cb(struct raft_io_snapshot_get *req, struct raft_snapshot *snapshot, int status)
{
    struct guard_get *get = CONTAINER_OF(req, struct guard_get, req);
    struct raft_guard *guard = get->guard;

    if (status == 0) {
        guard->loaded_index = snapshot->index;
        guard->loaded_term = snapshot->term;
    }
    get->cb(get->inner, snapshot, status);
    guard->loaded_index = 0;
    free(get);
}

static int guard_snapshot_get(struct raft_io *io, struct raft_io_snapshot_get *req, raft_io_snapshot_get_cb cb)
{
    struct raft_guard *guard = guard_of(io);
    struct guard_get *get = NEW(struct guard_get);
    int rv;

    *get = (struct guard_get){.inner = req, .cb = cb, .guard = guard};
    rv = guard->inner_snapshot_get(io, &get->req, guard_get_cb);
    if (rv != 0)
        free(get);
    return rv;
}

/* --- Sending ---------------------------------------------------------------------------------------------------- */

static int guard_send_snapshot(struct raft_guard *guard, struct raft_io_send *req, const struct raft_message *message,
                               raft_io_send_cb cb)
{
    struct raft_message corrected = *message;

    if (message->install_snapshot.last_index == guard->loaded_index)
        corrected.install_snapshot.last_term = guard->loaded_term;
    return guard->inner_send(&guard->io, req, &corrected, cb);
}

/* Guard S: how many of the entries may leave this server. */
static unsigned guard_count_sendable(const struct raft *raft, const struct raft_append_entries *append)
{
    if (!guard_alone(&raft->configuration, raft->id))
        return append->n_entries;
    if (raft->last_stored <= append->prev_log_index)
        return 0;
    return (unsigned)MIN(append->n_entries, raft->last_stored - append->prev_log_index);
}

static struct guard_send *guard_copy_message(const struct raft_message *from, unsigned n)
{
    const struct raft_append_entries *append = &from->append_entries;
    size_t size = sizeof(struct guard_send) + n * sizeof(struct raft_entry);
    struct guard_send *send;
    uint8_t *data;

    for (unsigned i = 0; i < n; i++)
        size += append->entries[i].buf.len;
    send = xcalloc(1, size);
    send->message = *from;
    send->message.append_entries.entries = send->entries;
    send->message.append_entries.n_entries = n;
    data = (uint8_t *)&send->entries[n];
    for (unsigned i = 0; i < n; i++) {
        const struct raft_entry *entry = &append->entries[i];

        send->entries[i] = (struct raft_entry){entry->term, entry->type, {data, entry->buf.len}, NULL};
        memcpy(data, entry->buf.base, entry->buf.len);
        data += entry->buf.len;
    }
    return send;
}

static void guard_send_cb(struct raft_io_send *req, int status UNUSED)
{
    free(CONTAINER_OF(req, struct guard_send, req));
}

/* libraft ignores the status of a message: success is as good an answer as any. Its callback only gives back the
 * references and the request, and it touches neither after we return. */
static int guard_send(struct raft_io *io, struct raft_io_send *req, const struct raft_message *message,
                      raft_io_send_cb cb)
{
    struct raft_guard *guard = guard_of(io);
    struct guard_send *send;
    int rv;

    if (message->type == RAFT_INSTALL_SNAPSHOT)
        return guard_send_snapshot(guard, req, message, cb);
    if (message->type != RAFT_APPEND_ENTRIES || message->append_entries.n_entries == 0)
        return guard->inner_send(io, req, message, cb);
    send = guard_copy_message(message, guard_count_sendable(io->data, &message->append_entries));
    rv = guard->inner_send(io, &send->req, &send->message, guard_send_cb);
    if (rv != 0) {
        free(send);
        return rv;
    }
    cb(req, 0);
    return 0;
}

/* --- Writing ---------------------------------------------------------------------------------------------------- */

static int guard_check(struct raft_io *io, const char *what, int rv)
{
    struct raft_guard *guard = guard_of(io);

    if (rv != 0)
        guard->broken(guard, what, rv);
    return rv;
}

static int guard_set_term(struct raft_io *io, raft_term term)
{
    return guard_check(io, "write the term", guard_of(io)->inner_set_term(io, term));
}

static int guard_set_vote(struct raft_io *io, raft_id id)
{
    return guard_check(io, "write the vote", guard_of(io)->inner_set_vote(io, id));
}

/* libraft hears of the end of a write. Guard M: of one that was cut it is told that it was cancelled, so it only gives the
 * memory back. Another write follows every cut, and stands for what is left of this one too. */
static void guard_tell(struct guard_append *append, int status)
{
    struct raft_guard *guard = append->guard;
    struct raft_io_append *inner = append->inner;
    raft_io_append_cb cb = append->cb;

    if (status == 0 && guard->now_us != NULL) {
        uint64_t took_us = guard->now_us() - append->start_us;

        guard->writes++;
        guard->write_us += took_us;
        guard->write_us_max = MAX(guard->write_us_max, took_us);
    }
    if (status == 0 && append->cut)
        status = RAFT_CANCELED;
    list_remove(&append->in_appends);
    free(append);
    guard_tell_capacity(guard);
    cb(inner, status);
}

/* A drill: those whose time has come. */
static void guard_tell_late(struct raft_guard *guard, uint64_t now_us)
{
    while (!list_empty(&guard->late)) {
        struct guard_append *first = LIST_ENTRY(guard->late.next, struct guard_append, in_late);

        if (first->tell_us > now_us)
            return;
        list_remove(&first->in_late);
        guard_tell(first, 0);
    }
}

static void guard_append_cb(struct raft_io_append *req, int status)
{
    struct guard_append *append = CONTAINER_OF(req, struct guard_append, req);
    struct raft_guard *guard = append->guard;
    uint64_t until_us = atomic_load(&guard->late_until_us), now_us;

    guard->in_flight -= append->handed;
    if (status != 0)
        guard_tell_late(guard, UINT64_MAX);
    if (status != 0 || (until_us == 0 && list_empty(&guard->late))) {
        guard_tell(append, status);
        return;
    }
    now_us = guard->now_us();
    append->tell_us = now_us < until_us ? now_us + atomic_load(&guard->late_us) : now_us;
    list_append(&guard->late, &append->in_late);
    guard_tell_late(guard, now_us);
}

void raft_guard_slow(struct raft_guard *guard, unsigned delay_ms, unsigned seconds)
{
    ASSERT(guard->now_us != NULL);
    atomic_store(&guard->late_us, (uint64_t)delay_ms * 1000);
    atomic_store(&guard->late_until_us, guard->now_us() + (uint64_t)seconds * 1000000);
}

/* As raft_uv lays a batch out: two checksums, the count, 16 bytes for each entry, the data. */
static uint64_t append_bytes(const struct raft_entry entries[], unsigned n)
{
    uint64_t bytes = 16 + 16 * (uint64_t)n;

    for (unsigned i = 0; i < n; i++)
        bytes += entries[i].buf.len;
    return bytes;
}

/* Guard K. What is left of files that are full already counts as room too: hence the rest that is never used. */
static bool guard_has_room(const struct raft_guard *guard, uint64_t bytes)
{
    unsigned capacity = guard->uv_capacity;

    if (!guard->room_guarded)
        return true;
    if (guard->taking && guard->disk_short)
        return false;
    if (guard->io.capacity != RAFT_CAPACITY_KIB_NONE)
        capacity = guard->io.capacity;
    return (uint64_t)capacity * 1024 >=
           guard->handed_bytes + guard->handed_before_bytes + bytes + RAFT_CAPACITY_KIB_MIN * 1024;
}

static int guard_append_now(struct raft_guard *guard, struct guard_append *append, const struct raft_entry entries[],
                            unsigned n)
{
    int rv;

    append->handed = true; /* raft_uv may answer at once */
    guard->in_flight++;
    rv = guard->inner_append(&guard->io, &append->req, entries, n, guard_append_cb);
    guard->handed_bytes += append_bytes(entries, n);
    if (rv != 0) {
        guard->in_flight--;
        list_remove(&append->in_appends);
        free(append);
    }
    return guard_check(&guard->io, "write the log", rv);
}

static int guard_append(struct raft_io *io, struct raft_io_append *req, const struct raft_entry entries[], unsigned n,
                        raft_io_append_cb cb)
{
    struct raft_guard *guard = guard_of(io);
    struct guard_append *append = NEW(struct guard_append);

    *append = (struct guard_append){.held = {.entries = entries, .n = n},
                                    .inner = req,
                                    .cb = cb,
                                    .guard = guard,
                                    .start_us = guard->now_us != NULL ? guard->now_us() : 0};
    guard->next_index += n;
    append->end = guard->next_index;
    list_append(&guard->appends, &append->in_appends);
    if (list_empty(&guard->held) && guard->cutting == 0 && guard->jumping == 0 &&
        guard_has_room(guard, append_bytes(entries, n)))
        return guard_append_now(guard, append, entries, n);
    list_append(&guard->held, &append->held.link);
    guard->writes_held++;
    return 0;
}

/* --- Guards J, K and T ------------------------------------------------------------------------------------------------- */

/* Guard T. */
static bool guard_may_cut(const struct raft_guard *guard)
{
    return !guard->taking && guard->cutting == 0 &&
           (guard->dir == NULL || raft_dir_free_bytes(guard->dir) >= guard->cut_room_bytes);
}

static int guard_cut_now(struct raft_guard *guard, raft_index index)
{
    int rv = guard->inner_truncate(&guard->io, index);

    if (rv == 0 && guard->dir != NULL) {
        guard->cutting = index;
        guard->cutting_since_ms = guard->io.time(&guard->io);
    }
    return guard_check(&guard->io, "cut the log", rv);
}

/* Guard T: has raft_uv done it? The writes before the cut come first, and may wait for room for as long as it takes. */
static void guard_look_for_cut(struct raft_guard *guard)
{
    raft_time now_ms;

    if (guard->cutting == 0)
        return;
    if (raft_dir_is_cut(guard->dir, guard->cutting)) {
        guard->cutting = 0;
        return;
    }
    now_ms = guard->io.time(&guard->io);
    if (guard->in_flight > 0)
        guard->cutting_since_ms = now_ms;
    else if (now_ms - guard->cutting_since_ms >= guard->cut_ms_max)
        guard->broken(guard, "cut the log", RAFT_IOERR);
}

/* libraft asks for a cut before each write: most cut nothing. */
static int guard_truncate(struct raft_io *io, raft_index index)
{
    struct raft_guard *guard = guard_of(io);
    struct guard_held *cut;

    if (index >= guard->next_index)
        return 0;
    guard->next_index = index;
    LIST_FOREACH (at, &guard->appends) { /* guard M */
        struct guard_append *append = LIST_ENTRY(at, struct guard_append, in_appends);

        append->cut = append->cut || append->end > index;
    }
    if (list_empty(&guard->held) && guard_may_cut(guard))
        return guard_cut_now(guard, index);
    cut = NEW(struct guard_held);
    *cut = (struct guard_held){.is_cut = true, .index = index};
    list_append(&guard->held, &cut->link);
    guard->cuts_held++;
    return 0;
}

/* Not from the snapshot's callback: raft_uv removes its barrier only after that. */
void raft_guard_turn(struct raft_guard *guard)
{
    guard->handed_before_bytes = guard->handed_bytes;
    guard->handed_bytes = 0;
    if (!list_empty(&guard->late))
        guard_tell_late(guard, guard->now_us());
    guard_look_for_cut(guard);
    while (!list_empty(&guard->held) && guard->cutting == 0 && guard->jumping == 0) {
        struct guard_held *first = LIST_ENTRY(guard->held.next, struct guard_held, link);

        if (first->is_cut ? !guard_may_cut(guard) : !guard_has_room(guard, append_bytes(first->entries, first->n)))
            break;
        list_remove(&first->link);
        if (first->is_cut) {
            guard_cut_now(guard, first->index);
            free(first);
        } else {
            guard_append_now(guard, CONTAINER_OF(first, struct guard_append, held), first->entries, first->n);
        }
    }
    guard_tell_capacity(guard);
}

void raft_guard_forget(struct raft_guard *guard)
{
    while (!list_empty(&guard->held)) {
        struct guard_held *first = LIST_ENTRY(guard->held.next, struct guard_held, link);

        list_remove(&first->link);
        free(first->is_cut ? (void *)first : CONTAINER_OF(first, struct guard_append, held));
    }
    while (!list_empty(&guard->late)) {
        struct guard_append *first = LIST_ENTRY(guard->late.next, struct guard_append, in_late);

        list_remove(&first->in_late);
        free(first);
    }
}

/* What is held is answered as raft_uv answers what it has not written yet. */
static void guard_close(struct raft_io *io, raft_io_close_cb cb)
{
    struct raft_guard *guard = guard_of(io);

    while (!list_empty(&guard->held)) {
        struct guard_held *first = LIST_ENTRY(guard->held.next, struct guard_held, link);

        list_remove(&first->link);
        if (first->is_cut)
            free(first);
        else
            guard_append_cb(&CONTAINER_OF(first, struct guard_append, held)->req, RAFT_CANCELED);
    }
    atomic_store(&guard->late_until_us, 0);
    guard_tell_late(guard, UINT64_MAX);
    guard->inner_close(io, cb);
}

void raft_guard_wrap(struct raft_guard *guard, void (*broken)(struct raft_guard *, const char *, int),
                     uint64_t (*now_us)(void))
{
    guard->taking = false;
    guard->dir = NULL;
    guard->cut_room_bytes = guard->cutting = guard->cutting_since_ms = 0;
    guard->cut_ms_max = RAFT_CUT_MS_MAX;
    guard->in_flight = 0;
    guard->jumping = 0;
    list_init(&guard->held);
    list_init(&guard->appends);
    list_init(&guard->late);
    atomic_store(&guard->late_us, 0);
    atomic_store(&guard->late_until_us, 0);
    guard->next_index = 1;
    guard->handed_bytes = guard->handed_before_bytes = 0;
    guard->uv_capacity = 0;
    guard->room_guarded = guard->disk_short = false;
    guard->put_inner = NULL;
    guard->loaded_index = 0;
    guard->heard_ms = 0;
    guard->broken = broken;
    guard->now_us = now_us;
    guard->inner_load = guard->io.load;
    guard->inner_close = guard->io.close;
    guard->inner_start = guard->io.start;
    guard->inner_snapshot_put = guard->io.snapshot_put;
    guard->inner_append = guard->io.append;
    guard->inner_send = guard->io.send;
    guard->inner_snapshot_get = guard->io.snapshot_get;
    guard->inner_set_term = guard->io.set_term;
    guard->inner_set_vote = guard->io.set_vote;
    guard->inner_truncate = guard->io.truncate;
    guard->io.load = guard_load;
    guard->io.close = guard_close;
    guard->io.start = guard_start;
    guard->io.snapshot_put = guard_snapshot_put;
    guard->io.append = guard_append;
    guard->io.send = guard_send;
    guard->io.snapshot_get = guard_snapshot_get;
    guard->io.set_term = guard_set_term;
    guard->io.set_vote = guard_set_vote;
    guard->io.truncate = guard_truncate;
}

bool raft_guard_waits_for_room(const struct raft_guard *guard)
{
    const struct guard_held *first = LIST_ENTRY(guard->held.next, struct guard_held, link);

    return !list_empty(&guard->held) && first->is_cut && !guard->taking && guard->cutting == 0;
}

/* Entries that are to be cut at or before @index are still on the disk. */
static bool guard_holds_cut(const struct raft_guard *guard, raft_index index)
{
    if (guard->cutting != 0 && guard->cutting <= index)
        return true;
    LIST_FOREACH (at, &guard->held) {
        const struct guard_held *held = LIST_ENTRY(at, struct guard_held, link);

        if (held->is_cut && held->index <= index)
            return true;
    }
    return false;
}

bool raft_guard_may_snapshot(struct raft *raft)
{
    return raft_last_applied(raft) == raft_commit_index(raft) && raft->configuration_uncommitted_index == 0 &&
           !guard_holds_cut(guard_of(raft->io), raft_commit_index(raft));
}
