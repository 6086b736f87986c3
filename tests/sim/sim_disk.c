/* The simulated disk's queue and contents. raft_uv writes in order too: appends one after another, truncations and
 * snapshots behind a barrier that waits for the appends before them. A full disk makes raft_uv 0.22.1 wait and try
 * again, so here the queue simply stands still. */
#include "tests/sim/sim_disk.h"

#include <string.h>

enum write_kind { WRITE_APPEND, WRITE_TRUNCATE, WRITE_TAKE, WRITE_INSTALL };

struct sim_disk_write {
    struct sim_disk_write *next;
    enum write_kind kind;
    raft_index index; /* of the first entry */
    struct sim_disk_entry *entries;
    unsigned count;
    unsigned trailing;
    struct sim_disk_snapshot snapshot;
    sim_disk_done_fn done; /* NULL once called */
    void *req;
};

void sim_disk_init(struct sim_disk *disk, struct sim *sim, struct sim_actor *actor)
{
    *disk = (struct sim_disk){.sim = sim, .actor = actor, .first = 1, .next = 1, .snapshot_extra_ms = 40};
}

static raft_index disk_last(const struct sim_disk *disk)
{
    return disk->first + disk->count - 1;
}

/* --- What writes do when they reach the platters ---------------------------------------------------------------- */

static void disk_do_append(struct sim_disk *disk, const struct sim_disk_write *write)
{
    if (write->index != disk_last(disk) + 1)
        sim_violation(disk->sim, "controller %u writes entry %llu to a log that ends at %llu", disk->actor->id,
                      write->index, disk_last(disk));
    if (disk->count + write->count > disk->capacity) {
        disk->capacity = (disk->count + write->count) * 2;
        disk->entries = xrealloc(disk->entries, disk->capacity * sizeof(*disk->entries));
    }
    memcpy(disk->entries + disk->count, write->entries, write->count * sizeof(*disk->entries));
    disk->count += write->count;
}

static void disk_do_truncate(struct sim_disk *disk, raft_index index)
{
    if (index <= disk_last(disk))
        disk->count = index > disk->first ? (size_t)(index - disk->first) : 0;
}

/* A snapshot names the members as of its index, so that a restart counts by them. */
static void disk_check_members(const struct sim_disk *disk, const struct sim_disk_snapshot *snapshot)
{
    raft_index newest = disk->snapshot.present ? disk->snapshot.configuration_index : 0;

    for (size_t i = 0; i < disk->count && disk->first + i <= snapshot->index; i++)
        if (disk->entries[i].type == RAFT_CHANGE)
            newest = MAX(newest, disk->first + i);
    if (snapshot->configuration_index < newest)
        sim_violation(disk->sim, "controller %u: a snapshot at %llu names the members of %llu, those of %llu are newer",
                      disk->actor->id, snapshot->index, snapshot->configuration_index, newest);
}

static void disk_do_take(struct sim_disk *disk, const struct sim_disk_write *write)
{
    raft_index index = write->snapshot.index, keep_from;
    size_t drop;

    disk_check_members(disk, &write->snapshot);
    if (!disk->snapshot.present || disk->snapshot.index < index)
        disk->snapshot = write->snapshot;
    if (index <= write->trailing)
        return;
    keep_from = index - write->trailing + 1;
    if (keep_from <= disk->first)
        return;
    drop = MIN((size_t)(keep_from - disk->first), disk->count);
    memmove(disk->entries, disk->entries + drop, (disk->count - drop) * sizeof(*disk->entries));
    disk->count -= drop;
    disk->first += drop;
}

static void disk_do_install(struct sim_disk *disk, const struct sim_disk_write *write)
{
    disk->snapshot = write->snapshot;
    disk->count = 0;
    disk->first = write->snapshot.index + 1;
    disk->installs++;
}

static void disk_do(struct sim_disk *disk, const struct sim_disk_write *write)
{
    switch (write->kind) {
    case WRITE_APPEND:
        disk_do_append(disk, write);
        break;
    case WRITE_TRUNCATE:
        disk_do_truncate(disk, write->index);
        break;
    case WRITE_TAKE:
        disk_do_take(disk, write);
        break;
    case WRITE_INSTALL:
        disk_do_install(disk, write);
        break;
    }
}

/* --- The queue -------------------------------------------------------------------------------------------------- */

static void disk_next(struct sim_disk *disk);

static void disk_written(struct sim *sim UNUSED, struct sim_event *event)
{
    struct sim_disk *disk = event->data;
    struct sim_disk_write *write = disk->head;

    disk->head = write->next;
    if (disk->head == NULL)
        disk->tail = NULL;
    disk->busy = false;
    disk_do(disk, write);
    disk_next(disk);
    if (write->done != NULL)
        write->done(disk, write->req);
    free(write->entries); /* the array; the data lives on in the log */
    free(write);
}

static uint64_t disk_latency_us(struct sim_disk *disk)
{
    struct sim *sim = disk->sim;
    uint64_t us = sim_chance(sim, 20) ? sim_between(sim, 5 * SIM_MS, 80 * SIM_MS) : sim_between(sim, 100, 2 * SIM_MS);

    if (disk->head->kind == WRITE_TAKE || disk->head->kind == WRITE_INSTALL)
        us += sim_between(sim, SIM_MS, disk->snapshot_extra_ms * SIM_MS);
    if (disk->stalls_per_thousand > 0 && sim_chance(sim, disk->stalls_per_thousand))
        us += sim_between(sim, 500 * SIM_MS, 4 * SIM_SECOND);
    if (disk->slow_until_us > sim->now_us)
        us += sim_between(sim, 20 * SIM_MS, 400 * SIM_MS);
    if (disk->full_until_us > sim->now_us && disk->head->kind != WRITE_TRUNCATE)
        us += disk->full_until_us - sim->now_us;
    return us;
}

static void disk_next(struct sim_disk *disk)
{
    if (disk->busy || disk->head == NULL)
        return;
    disk->busy = true;
    sim_after(disk->sim, disk_latency_us(disk), disk_written, disk->actor, disk);
}

struct early {
    struct sim_disk *disk;
    sim_disk_done_fn done;
    void *req;
};

static void disk_early(struct sim *sim UNUSED, struct sim_event *event)
{
    struct early *early = event->data;

    early->done(early->disk, early->req);
    free(early);
}

static void disk_push(struct sim_disk *disk, struct sim_disk_write *write)
{
    if (disk->tail != NULL)
        disk->tail->next = write;
    else
        disk->head = write;
    disk->tail = write;
    if (disk->acknowledges_early && write->kind == WRITE_APPEND) {
        struct early *early = NEW(struct early);

        *early = (struct early){disk, write->done, write->req};
        write->done = NULL;
        sim_after(disk->sim, 50, disk_early, disk->actor, early)->drop = free;
    }
    disk_next(disk);
}

void sim_disk_crash(struct sim_disk *disk)
{
    bool survives = true;

    while (disk->head != NULL) {
        struct sim_disk_write *write = disk->head;

        survives = survives && sim_chance(disk->sim, 500);
        if (survives)
            disk_do(disk, write);
        disk->head = write->next;
        free(write->entries);
        free(write);
    }
    disk->tail = NULL;
    disk->busy = false;
    disk->next = disk_last(disk) + 1;
}

/* --- Requests --------------------------------------------------------------------------------------------------- */

void sim_disk_set_term(struct sim_disk *disk, raft_term term)
{
    if (term < disk->term)
        sim_violation(disk->sim, "controller %u: its term goes back from %llu to %llu", disk->actor->id, disk->term,
                      term);
    disk->term = term;
    disk->vote = 0;
}

void sim_disk_set_vote(struct sim_disk *disk, raft_id id)
{
    if (disk->vote != 0 && disk->vote != id)
        sim_violation(disk->sim, "controller %u votes twice in term %llu", disk->actor->id, disk->term);
    disk->vote = id;
}

void sim_disk_append(struct sim_disk *disk, const struct raft_entry entries[], unsigned n, sim_disk_done_fn done,
                     void *req)
{
    struct sim_disk_write *write = NEW(struct sim_disk_write);

    *write = (struct sim_disk_write){
        .kind = WRITE_APPEND, .index = disk->next, .count = n, .done = done, .req = req};
    write->entries = xcalloc(n, sizeof(*write->entries));
    for (unsigned i = 0; i < n; i++) {
        struct sim_disk_entry *entry = &write->entries[i];

        *entry = (struct sim_disk_entry){entries[i].term, entries[i].type, entries[i].buf.len,
                                         xcalloc(1, entries[i].buf.len)};
        memcpy(entry->data, entries[i].buf.base, entry->size);
    }
    disk->next += n;
    disk_push(disk, write);
}

/* raft_uv would forget such a cut (guard J). */
static void disk_check_no_take(struct sim_disk *disk, raft_index index)
{
    for (const struct sim_disk_write *write = disk->head; write != NULL; write = write->next)
        if (write->kind == WRITE_TAKE)
            sim_violation(disk->sim, "controller %u cuts its log at %llu while its snapshot is being written", disk->actor->id,
                          index);
}

void sim_disk_truncate(struct sim_disk *disk, raft_index index)
{
    struct sim_disk_write *write;

    if (index >= disk->next)
        return;
    disk_check_no_take(disk, index);
    if (disk->snapshot.present && index <= disk->snapshot.index)
        sim_violation(disk->sim, "controller %u cuts its log at %llu, its snapshot is of %llu", disk->actor->id, index,
                      disk->snapshot.index);
    write = NEW(struct sim_disk_write);
    *write = (struct sim_disk_write){.kind = WRITE_TRUNCATE, .index = index};
    disk->next = index;
    disk_push(disk, write);
}

void sim_disk_put_snapshot(struct sim_disk *disk, unsigned trailing, const struct raft_snapshot *snapshot,
                           sim_disk_done_fn done, void *req)
{
    struct sim_disk_write *write = NEW(struct sim_disk_write);
    struct sim_disk_snapshot *copy = &write->snapshot;

    write->kind = trailing > 0 ? WRITE_TAKE : WRITE_INSTALL;
    write->trailing = trailing;
    write->done = done;
    write->req = req;
    *copy = (struct sim_disk_snapshot){.present = true,
                                       .index = snapshot->index,
                                       .term = snapshot->term,
                                       .configuration_index = snapshot->configuration_index};
    sim_disk_copy_configuration(&snapshot->configuration, &copy->configuration);
    ASSERT(snapshot->n_bufs == 1);
    copy->size = snapshot->bufs[0].len;
    copy->data = xcalloc(1, copy->size);
    memcpy(copy->data, snapshot->bufs[0].base, copy->size);
    if (trailing == 0)
        disk->next = snapshot->index + 1;
    disk_push(disk, write);
}

bool sim_disk_keeps(const struct sim_disk *disk, raft_index index)
{
    if (index > disk_last(disk) && index > disk->snapshot.index)
        return false;
    for (const struct sim_disk_write *write = disk->head; write != NULL; write = write->next)
        if (write->kind == WRITE_TRUNCATE && write->index <= index)
            return false;
    return true;
}

void sim_disk_newest_members(const struct sim_disk *disk, struct raft_configuration *ret_members)
{
    size_t i = disk->count;

    while (i > 0 && disk->entries[i - 1].type != RAFT_CHANGE)
        i--;
    if (i > 0 && disk->first + i - 1 > disk->snapshot.configuration_index) {
        struct raft_buffer buf = {disk->entries[i - 1].data, disk->entries[i - 1].size};

        ASSERT(raft_configuration_decode(&buf, ret_members) == 0);
    } else {
        sim_disk_copy_configuration(&disk->snapshot.configuration, ret_members);
    }
}

/* --- Reading ---------------------------------------------------------------------------------------------------- */

void sim_disk_copy_configuration(const struct raft_configuration *from, struct raft_configuration *to)
{
    raft_configuration_init(to);
    for (unsigned i = 0; i < from->n; i++)
        ASSERT(raft_configuration_add(to, from->servers[i].id, from->servers[i].address, from->servers[i].role) == 0);
}

struct raft_snapshot *sim_disk_get_snapshot(const struct sim_disk *disk)
{
    const struct sim_disk_snapshot *from = &disk->snapshot;
    struct raft_snapshot *to;

    if (!from->present)
        return NULL;
    to = raft_calloc(1, sizeof(*to));
    to->index = from->index;
    to->term = from->term;
    to->configuration_index = from->configuration_index;
    sim_disk_copy_configuration(&from->configuration, &to->configuration);
    to->n_bufs = 1;
    to->bufs = raft_malloc(sizeof(*to->bufs));
    to->bufs[0].len = from->size;
    to->bufs[0].base = raft_malloc(from->size);
    memcpy(to->bufs[0].base, from->data, from->size);
    return to;
}

struct raft_entry *sim_disk_get_entries(const struct sim_disk *disk)
{
    struct raft_entry *entries;
    size_t bytes = 8, at = 0;
    char *batch;

    if (disk->count == 0)
        return NULL;
    for (size_t i = 0; i < disk->count; i++)
        bytes += (disk->entries[i].size + 7) & ~(size_t)7;
    batch = raft_calloc(1, bytes);
    entries = raft_calloc(disk->count, sizeof(*entries));
    for (size_t i = 0; i < disk->count; i++) {
        const struct sim_disk_entry *from = &disk->entries[i];

        entries[i] = (struct raft_entry){from->term, from->type, {batch + at, from->size}, batch};
        memcpy(batch + at, from->data, from->size);
        at += (from->size + 7) & ~(size_t)7;
    }
    return entries;
}
