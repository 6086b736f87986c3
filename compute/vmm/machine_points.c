/* One point at a time, its steps between the control loop, a thread for files, and the I/O thread: machine_points.h. */
#include "compute/vmm/machine_points.h"
#include "compute/vmm/machine_backup.h"
#include "compute/vmm/machine_fill.h"
#include "compute/vmm/machine_mirror.h"
#include "compute/vmm/machine_snapshot.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <time.h>

#include "block/layer_point.h"
#include "block/layer_pool_dir.h"
#include "common/log.h"
#include "compute/vmm/block/block_layers.h"
#include "compute/vmm/pc1_layout.h"
#include "migration/snapshot_memory.h"

#define MEMORY_SPARE_BYTES (256ull << 20) /* left free for the disks that are in the same place, and for the state of devices */

struct disk_point {
    struct point_job *job;
    char id[24];
    char *directory;
    struct layer_disk *disk;
    struct layer_pool *files;
    struct layer_point point;
    struct layer_flush flush;
    uint64_t size_bytes;
};

struct point_job {
    struct machine *m;
    bool busy, drop;
    char name[64];
    enum vmm_freeze freeze;
    point_done_fn done;
    void *arg;
    struct disk_point disks[POINTS_DISKS_MAX];
    unsigned count;
    pthread_t thread;
    bool thread_runs;
    void (*work)(struct point_job *); /* of the thread */
    io_post_fn next;                  /* on the control loop, after it */
    bool frozen;                      /* the agent has said that it has */
    enum { HOLD_NONE, HOLD_ON, HOLD_GIVEN_UP } hold; /* of all disks, until the writes in flight have ended */
    struct io_timer patience;                        /* with that */
    uint64_t hold_began_us;
    unsigned flushing;
    uint64_t pause_us;
    char *directory;       /* for memory; NULL: no disk has layers */
    bool memory;           /* is to be written */
    bool unwanted;         /* with memory: the guest has something to do that does not wait */
    bool switched;         /* with memory: the machine stood still, and the disks have their next tops */
    bool flushed, written; /* the old tops; the memory: the names come after both */
    uint64_t memory_bytes;
    int code;
    struct error err;

    struct layer_disk *merging; /* of which a merge is under way */
    bool merge_again;           /* a merge was given up for a point */
    uint64_t merges;
    struct error failure;
};

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void hold_is_too_long(void *arg);

static struct point_job *job_of(struct machine *m)
{
    if (m->points == NULL) {
        m->points = NEW(struct point_job);
        m->points->m = m;
        io_timer_init(&m->points->patience, hold_is_too_long, m->points);
    }
    return m->points;
}

static void fail(struct point_job *job, int code, const struct error *err)
{
    if (job->code == 0) {
        job->code = code;
        job->err = *err;
    }
}

/* ---- the thread ---- */

static void thread_join(struct point_job *job)
{
    if (job->thread_runs)
        pthread_join(job->thread, NULL);
    job->thread_runs = false;
}

static void *thread_main(void *arg)
{
    struct point_job *job = arg;
    job->work(job);
    io_loop_post(job->m->control, job->next, job);
    return NULL;
}

static void thread_start(struct point_job *job, void (*work)(struct point_job *), io_post_fn next)
{
    struct error err;
    job->work = work;
    job->next = next;
    int code = -pthread_create(&job->thread, NULL, thread_main, job);
    job->thread_runs = code == 0;
    if (code == 0)
        return;
    error_errno(&err, code, "cannot start a thread");
    fail(job, code, &err);
    io_loop_post(job->m->control, next, job);
}

/* ---- the end ---- */

static void merge_next(void *arg);

static void points_end(struct point_job *job)
{
    pthread_mutex_lock(&job->m->device_lock);
    for (unsigned i = 0; i < job->count; i++)
        layer_point_end(&job->disks[i].point);
    pthread_mutex_unlock(&job->m->device_lock);
    for (unsigned i = 0; i < job->count; i++) {
        layer_pool_dir_destroy(job->disks[i].files);
        free(job->disks[i].directory);
    }
    free(TAKE_PTR(job->directory));
}

/* A disk that the guest ejects while a point is made is kept until that is over, and is on no bus any more. */
static int ejected_check(struct machine *m, struct error *err)
{
    int code = 0;
    pthread_mutex_lock(&m->device_lock);
    for (unsigned i = PC1_SLOT_DEVICES; i < PCI_SLOTS && code == 0; i++)
        if (m->slots.slots[i].kind == SLOT_DISK && !m->pci.functions[i * PCI_FUNCTIONS])
            code = error_set(err, -EBUSY, ERROR_CONFLICT, "the guest has let go of disk %s meanwhile; make it again", m->slots.slots[i].id);
    pthread_mutex_unlock(&m->device_lock);
    return code;
}

static void job_end(struct point_job *job)
{
    struct object_list disks = {NULL, 0};
    struct snapshot_disk items[POINTS_DISKS_MAX] = {{.name = NULL}};
    char quoted[640];
    for (unsigned i = 0; i < job->count && !job->drop; i++) {
        OBJECT_TEXT(snapshot_disk, &items[i], name, job->disks[i].id);
        OBJECT_SET(snapshot_disk, &items[i], size_bytes, job->disks[i].size_bytes);
    }
    disks.items = items;
    disks.count = job->drop ? 0 : job->count;
    points_end(job);
    const struct point_result result = {.name = job->name,
                                        .consistency = job->memory   ? snapshot_consistency_MEMORY
                                                       : job->frozen ? snapshot_consistency_FILESYSTEM
                                                                     : snapshot_consistency_CRASH,
                                        .pause_us = job->pause_us,
                                        .memory_bytes = job->memory_bytes,
                                        .disks = disks};
    if (job->code < 0)
        log_warning("point-failed", "vm=%s name=%s error=%s", job->m->config->name, job->name,
                    log_quote(job->err.text, quoted, sizeof(quoted)));
    else
        log_info(job->drop ? "point-dropped" : "point-taken", "vm=%s name=%s pause_us=%llu", job->m->config->name,
                 job->name, (unsigned long long)job->pause_us);
    bool merge = job->drop || job->merge_again;
    job->busy = false;
    job->merge_again = false;
    job->count = 0;
    if (ejected_check(job->m, NULL) < 0)
        machine_slots_settle(job->m);
    job->done(job->arg, job->code, &job->err, &result);
    for (unsigned i = 0; i < POINTS_DISKS_MAX; i++)
        OBJECT_CLEAR(snapshot_disk, &items[i]);
    if (merge)
        io_loop_post(job->m->control, merge_next, job);
}

/* ---- files ---- */

/* Heads are written past the disks' own drivers: so the lease is asked here. */
static bool may_write(struct point_job *job)
{
    struct error err;
    if (lease_allows_io(&job->m->lease.lease))
        return true;
    fail(job, error_set(&err, -EAGAIN, ERROR_CONFLICT, "the VM may not write to its disks: its host's lease has run out"),
         &err);
    return false;
}

/* Of a removal the memory goes first, of a point its file is named last: where there is one, all disks have the name. */
static void name_work(struct point_job *job)
{
    struct error err;
    int code = job->drop && job->directory != NULL ? snapshot_memory_remove(job->directory, job->name, &err) : 0;
    if (code < 0)
        fail(job, code, &err);
    for (unsigned i = 0; i < job->count && job->code == 0 && may_write(job); i++) {
        code = layer_point_name(&job->disks[i].point, job->disks[i].files, &err);
        if (code < 0)
            fail(job, code, &err);
    }
    if (job->memory && job->code == 0 && ((code = snapshot_memory_conclude(job->directory, job->name, &err)) < 0 ||
                                          (code = snapshot_memory_look(job->directory, job->name, &job->memory_bytes, &err)) < 0))
        fail(job, code, &err);
    if (job->memory && job->code < 0)
        snapshot_memory_remove(job->directory, job->name, NULL);
}

static void on_named(void *arg)
{
    struct point_job *job = arg;
    thread_join(job);
    job_end(job);
}

static void undo_work(struct point_job *job)
{
    if (job->memory)
        snapshot_memory_remove(job->directory, job->name, NULL);
    for (unsigned i = 0; i < job->count; i++)
        layer_point_undo(&job->disks[i].point, job->disks[i].files);
}

/* Before the switch. */
static void give_up(struct point_job *job)
{
    thread_start(job, undo_work, on_named);
}

/* What the kernel has not written yet of the disk's present top is written now, so that little is left to do after the
 * switch, when every flush of the guest's waits for it. */
static void presync(const struct disk_point *d)
{
    CLEANUP_FREE char *path = xasprintf("%s/%s.raw", d->directory, d->point.old_name);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd >= 0 && fdatasync(fd) < 0)
        log_debug("presync", "path=%s error=\"%s\"", path, strerror(errno));
}

static bool is_kept(void *arg, const char *snapshot)
{
    const struct point_job *job = arg;
    bool kept = false;
    pthread_mutex_lock(&job->m->device_lock);
    for (unsigned i = 0; i < job->count; i++)
        kept = kept || layer_disk_has(job->disks[i].disk, snapshot);
    pthread_mutex_unlock(&job->m->device_lock);
    return kept;
}

/* Is there room for all memory that the guest has touched? The host's files hold the rest as holes. */
static void room_check(struct point_job *job)
{
    struct error err;
    struct statvfs fs;
    uint64_t used = memory_used_bytes(&job->m->memory), room;
    if (statvfs(job->directory, &fs) < 0) {
        fail(job, error_errno(&err, -errno, "cannot look at %s", job->directory), &err);
        return;
    }
    room = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (room < used + MEMORY_SPARE_BYTES)
        fail(job, error_set(&err, -ENOSPC, ERROR_NO_SPACE,
                            "the VM's memory takes up to %llu MiB beside its disks, %llu MiB more are to stay free, and %llu MiB are free: "
                            "make room, or make the snapshot without ram",
                            (unsigned long long)(used >> 20), MEMORY_SPARE_BYTES >> 20, (unsigned long long)(room >> 20)), &err);
}

static void prepare_work(struct point_job *job)
{
    struct error err;
    if (job->directory != NULL && may_write(job)) /* else another host's VMM may be at work there by now */
        snapshot_memory_tidy(job->directory, is_kept, job);
    if (job->memory && job->code == 0)
        room_check(job);
    for (unsigned i = 0; i < job->count && job->code == 0 && may_write(job); i++) {
        int code = layer_point_prepare(&job->disks[i].point, job->disks[i].files, &err);
        if (code < 0)
            fail(job, code, &err);
        else
            presync(&job->disks[i]);
    }
    if (job->code < 0)
        undo_work(job);
}

/* ---- the switch ---- */

static void names_begin(struct point_job *job)
{
    if (!job->flushed || !job->written)
        return;
    if (job->code < 0 && job->memory)
        thread_start(job, undo_work, on_named);
    else if (job->code < 0)
        job_end(job); /* there is one layer more */
    else
        thread_start(job, name_work, on_named);
}

static void on_flushed(void *arg)
{
    struct point_job *job = arg;
    job->flushed = true;
    names_begin(job);
}

/* With the device lock held. */
static void flush_done(struct layer_flush *flush, int result)
{
    struct disk_point *d = CONTAINER_OF(flush, struct disk_point, flush);
    struct point_job *job = d->job;
    struct error err;
    if (result < 0) {
        error_errno(&err, result, "disk %s cannot be flushed", d->id);
        fail(job, result, &err);
    } else if (d->disk->chain->behind != NULL) {
        d->disk->chain->behind = NULL;
    }
    if (--job->flushing == 0)
        io_loop_post(job->m->control, on_flushed, job);
}

static void thawed(void *arg UNUSED, const json_t *answer UNUSED, const struct error *err UNUSED)
{
    /* where it was not understood, the limit of the freeze thaws */
}

/* With the device lock held: nothing is in flight that changes a disk. */
static void switch_all(struct point_job *job)
{
    struct machine *m = job->m;
    job->flushing = 1;
    job->frozen = job->frozen && m->guest.agent.frozen; /* not thawed by its limit meanwhile */
    for (unsigned i = 0; i < job->count; i++)
        layer_point_switch(&job->disks[i].point);
    for (unsigned i = 0; i < job->count; i++)
        layer_chain_release(job->disks[i].disk->chain);
    job->pause_us = now_us() - job->hold_began_us;
    if (m->guest.channel != NULL && m->guest.agent.frozen && !job->memory)
        guest_agent_thaw(&m->guest.agent, thawed, NULL, NULL);
    for (unsigned i = 0; i < job->count; i++) {
        struct disk_point *d = &job->disks[i];
        d->flush.done = flush_done;
        job->flushing++;
        int code = layer_point_flush(&d->point, &d->flush);
        if (code < 0)
            flush_done(&d->flush, code);
    }
    if (--job->flushing == 0)
        io_loop_post(m->control, on_flushed, job);
}

static void do_switch(struct point_job *job)
{
    pthread_mutex_lock(&job->m->device_lock);
    if (job->hold != HOLD_GIVEN_UP) /* else it has lasted since then */
        job->hold_began_us = now_us();
    job->hold = HOLD_NONE;
    for (unsigned i = 0; i < job->count; i++)
        block_drain(&job->disks[i].disk->chain->block);
    switch_all(job);
    pthread_mutex_unlock(&job->m->device_lock);
}

static void switch_drained(void *arg)
{
    do_switch(arg);
}

/* With the device lock held, as the next two. */
static void hold_give_up(struct point_job *job)
{
    job->hold = HOLD_GIVEN_UP;
    io_timer_cancel(&job->patience);
    for (unsigned i = 0; i < job->count; i++)
        layer_chain_release(job->disks[i].disk->chain);
    io_loop_post(job->m->control, switch_drained, job);
}

static void hold_is_too_long(void *arg)
{
    hold_give_up(arg);
}

/* Of any of the disks. */
static void hold_news(void *arg)
{
    struct point_job *job = arg;
    bool held = true, quiet = true;
    for (unsigned i = 0; i < job->count && job->hold == HOLD_ON; i++) {
        held = held && job->disks[i].disk->chain->held;
        quiet = quiet && layer_chain_is_quiet(job->disks[i].disk->chain);
    }
    if (job->hold == HOLD_ON && !held) {
        hold_give_up(job);
    } else if (job->hold == HOLD_ON && quiet) {
        job->hold = HOLD_NONE;
        io_timer_cancel(&job->patience);
        switch_all(job);
    }
}

static void hold_begin(struct point_job *job)
{
    pthread_mutex_lock(&job->m->device_lock);
    job->hold = HOLD_ON;
    job->hold_began_us = now_us();
    io_timer_arm(job->m->io, &job->patience, POINTS_HOLD_MS * UINT64_C(1000000));
    for (unsigned i = 0; i < job->count; i++)
        layer_chain_hold(job->disks[i].disk->chain, hold_news, job);
    hold_news(job);
    pthread_mutex_unlock(&job->m->device_lock);
}

static void on_frozen(void *arg)
{
    struct point_job *job = arg;
    if (job->code < 0 && job->freeze == vmm_freeze_MUST) {
        give_up(job);
        return;
    }
    job->code = 0;
    hold_begin(job);
}

/* The field tells whoever asks what it failed by: a guest's agent is not waited for as a VMM that is at something else is. */
static void fail_to_freeze(struct point_job *job, const struct error *err)
{
    struct error why;
    error_set_field(&why, err->code < 0 ? err->code : -EIO, err->kind, "/freeze", "the guest's file systems cannot be frozen: %s", err->text);
    fail(job, why.code, &why);
}

/* On the I/O thread, with the device lock held. */
static void freeze_answered(void *arg, const json_t *answer, const struct error *err)
{
    struct point_job *job = arg;
    job->frozen = answer != NULL;
    if (answer == NULL)
        fail_to_freeze(job, err);
    io_loop_post(job->m->control, on_frozen, job);
}

static void freeze_or_switch(struct point_job *job)
{
    struct machine *m = job->m;
    struct error err;
    if (job->freeze == vmm_freeze_NEVER || (m->guest.channel == NULL && job->freeze != vmm_freeze_MUST)) {
        hold_begin(job);
        return;
    }
    int code = -ENOTCONN;
    error_set(&err, code, ERROR_CONFLICT, "the VM has no channel to an agent");
    pthread_mutex_lock(&m->device_lock);
    if (m->guest.channel != NULL)
        code = guest_agent_freeze(&m->guest.agent, POINTS_FREEZE_MS, freeze_answered, job, &err);
    pthread_mutex_unlock(&m->device_lock);
    if (code == 0)
        return;
    fail_to_freeze(job, &err);
    on_frozen(job);
}

/* ---- its memory ---- */

static void on_memory(void *arg, int code, const struct error *err)
{
    struct point_job *job = arg;
    if (code < 0) {
        pthread_mutex_lock(&job->m->device_lock); /* the flush fails under it */
        fail(job, code, err);
        pthread_mutex_unlock(&job->m->device_lock);
    }
    job->written = true;
    job->pause_us = machine_snapshot_report(job->m).pause_us;
    if (job->switched)
        names_begin(job);
    else
        give_up(job);
}

/* Frozen file systems would be so in the memory, too, and nobody would thaw them there. */
static int thawed_check(struct machine *m, struct error *err)
{
    pthread_mutex_lock(&m->device_lock);
    bool frozen = m->guest.channel != NULL && m->guest.agent.frozen;
    pthread_mutex_unlock(&m->device_lock);
    return frozen ? error_set(err, -EBUSY, ERROR_CONFLICT, "the guest's file systems are frozen; thaw them first") : 0;
}

/* Where a VMM that goes on from it puts what is neither disk nor interface: into the first slots that these leave free. A device that was
 * taken out in front of one of them is not there to keep the place. */
static int slots_check(struct machine *m, struct error *err)
{
    unsigned last = 0;
    int code = 0;
    pthread_mutex_lock(&m->device_lock);
    for (unsigned i = PC1_SLOT_DEVICES; i < PCI_SLOTS; i++)
        last = m->slots.slots[i].kind == SLOT_OTHER ? i : last;
    for (unsigned i = PC1_SLOT_DEVICES; i < last && code == 0; i++)
        if (m->slots.slots[i].kind == SLOT_EMPTY && !m->pci.functions[i * PCI_FUNCTIONS])
            code = error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                             "a device was taken out of the VM while it ran, so that its memory could not be gone on from: stop and start it, "
                             "or make the snapshot without ram");
    pthread_mutex_unlock(&m->device_lock);
    return code;
}

static int unwanted(struct error *err)
{
    return error_set(err, -ECANCELED, ERROR_CANCELLED, "the VM was asked to shut down meanwhile");
}

/* vCPUs and disks stand still from here on, until the memory is written: one moment for all. */
static int stand(void *arg, struct error *err)
{
    struct point_job *job = arg;
    struct machine *m = job->m;
    int code = job->unwanted ? unwanted(err) : thawed_check(m, err);
    if (code == 0)
        code = machine_freeze(m, err);
    if (code < 0)
        return code;
    code = slots_check(m, err); /* interfaces that the guest had let go of are off by now */
    if (code == 0)
        code = ejected_check(m, err);
    if (code < 0) {
        machine_thaw(m, NULL);
        return code;
    }
    job->switched = true;
    do_switch(job);
    return 0;
}

static void memory_begin(struct point_job *job)
{
    CLEANUP_FREE char *path = snapshot_memory_new_path(job->directory, job->name);
    const struct snapshot_options options = {.path = path, .stand = stand};
    struct error err;
    int code = job->unwanted ? unwanted(&err) : slots_check(job->m, &err);
    if (code == 0) {
        job->written = false;
        code = machine_snapshot_begin(job->m, &options, on_memory, job, &err);
    }
    if (code < 0) {
        fail(job, code, &err);
        job->written = true;
        give_up(job);
    }
}

static void on_prepared(void *arg)
{
    struct point_job *job = arg;
    struct error err;
    thread_join(job);
    if (job->code < 0) {
        job_end(job);
        return;
    }
    for (unsigned i = 0; i < job->count && job->code == 0; i++) {
        pthread_mutex_lock(&job->m->device_lock);
        int code = layer_point_open(&job->disks[i].point, &err);
        pthread_mutex_unlock(&job->m->device_lock);
        if (code < 0)
            fail(job, code, &err);
    }
    if (job->code < 0)
        give_up(job);
    else if (job->memory)
        memory_begin(job);
    else
        freeze_or_switch(job);
}

/* ---- begin ---- */

static bool has_layers(const struct machine_slot *slot)
{
    return slot->kind == SLOT_DISK && !slot->detached && !slot->disk.read_only && slot->disk.format == disk_format_LAYERS;
}

static int disk_add(struct point_job *job, const struct machine_slot *slot, struct error *err)
{
    struct disk_point *d = &job->disks[job->count];
    const char *slash = strrchr(slot->disk.path, '/');
    if (slot->disk.format != disk_format_LAYERS)
        return job->drop ? 0
                         : error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                                     slot->disk.format == disk_format_NBD
                                         ? "disk %s is in a pool of Ceph; only disks with layers have snapshots: back it up, or detach it first"
                                         : "disk %s is one raw file; only disks with layers have snapshots", slot->id);
    ASSERT(job->count < POINTS_DISKS_MAX && slash != NULL);
    *d = (struct disk_point){.job = job, .disk = block_layers_disk(blk_of_virtio(slot->virtio)->block)};
    snprintf(d->id, sizeof d->id, "%s", slot->id);
    d->size_bytes = d->disk->chain->block.size_bytes;
    int code = layer_point_begin(d->disk, job->name, job->drop, &d->point, err);
    if (code == -ENOENT && job->drop)
        return 0;
    if (code < 0)
        return code;
    d->directory = xasprintf("%.*s", (int)(slash - slot->disk.path), slot->disk.path);
    code = layer_pool_dir_create(d->directory, NULL, NULL, &d->files, err);
    if (code == 0)
        layer_pool_dir_set_unlocked(d->files, true);
    job->count++;
    return code;
}

static char *directory_of(const struct vmm_disk *disk)
{
    const char *slash = strrchr(disk->path, '/');
    return slash != NULL ? xasprintf("%.*s", (int)(slash - disk->path), disk->path) : xstrdup(".");
}

static bool is_in(const struct string_list *only, const char *id)
{
    bool found = only == NULL || only->count == 0;
    for (size_t i = 0; only != NULL && i < only->count && !found; i++)
        found = strcmp(only->items[i], id) == 0;
    return found;
}

/* Of memory nothing is looked at where it is about some disks alone: those that keep it may be others. */
static int disks_add(struct point_job *job, const struct string_list *only, struct error *err)
{
    bool some = only != NULL && only->count > 0;
    int code = 0;
    for (unsigned i = 0; i < PCI_SLOTS && code == 0; i++) {
        const struct machine_slot *slot = &job->m->slots.slots[i];
        if (has_layers(slot) && job->directory == NULL && !some)
            job->directory = directory_of(&slot->disk);
        if (slot->kind == SLOT_DISK && !slot->detached && !slot->disk.read_only && is_in(only, slot->id))
            code = disk_add(job, slot, err);
    }
    if (code == 0 && some && job->count < only->count)
        code = error_set(err, -ENOENT, ERROR_NOT_FOUND, "the VM has no disk %s that it writes to", only->items[0]);
    return code;
}

static int job_begin(struct machine *m, const char *name, bool drop, const struct string_list *only, point_done_fn done, void *arg,
                     struct error *err)
{
    struct point_job *job = job_of(m);
    int code = machine_changeable(m, err);
    if (code == 0 && machine_mirror_is_active(m))
        code = error_set(err, -EBUSY, ERROR_CONFLICT, "a disk of the VM is being moved; wait for its end, or cancel it");
    if (code == 0 && machine_backup_is_beginning(m)) /* it has the guest's file systems frozen, and thaws them */
        code = error_set(err, -EBUSY, ERROR_CONFLICT, "a backup takes images of the VM's disks; try again when it has them");
    if (code == 0)
        code = machine_fill_check(m, err);
    if (code < 0)
        return code;
    job->merge_again = job->merging != NULL;
    job->drop = drop;
    job->done = done;
    job->arg = arg;
    job->code = 0;
    job->frozen = job->memory = job->unwanted = job->switched = job->flushed = false;
    job->written = true;
    job->pause_us = job->memory_bytes = 0;
    job->count = 0;
    snprintf(job->name, sizeof job->name, "%s", name);
    pthread_mutex_lock(&m->device_lock);
    code = disks_add(job, only, err);
    pthread_mutex_unlock(&m->device_lock);
    if (code == 0 && job->count == 0 && !drop)
        code = error_set(err, -EINVAL, ERROR_CONFLICT, "the VM has no disk that is written to");
    if (code < 0) {
        points_end(job);
        job->count = 0;
        if (job->merge_again)
            io_loop_post(m->control, merge_next, job);
        return code;
    }
    job->busy = true;
    return 0;
}

/* Before anything is made: without an agent there is nothing to make it for. */
static int agent_check(struct machine *m, struct error *err)
{
    pthread_mutex_lock(&m->device_lock);
    bool is_possible = m->guest.channel != NULL, is_there = is_possible && m->guest.agent.state != GUEST_AGENT_CLOSED;
    pthread_mutex_unlock(&m->device_lock);
    if (!is_possible)
        return error_set_field(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "/freeze",
                               "the guest's file systems cannot be frozen: the VM has no channel to an agent in its guest");
    return is_there ? 0
                    : error_set_field(err, -ENOTCONN, ERROR_CONFLICT, "/freeze",
                                      "the guest's file systems cannot be frozen: no agent answers in the guest; install and start qemu-guest-agent "
                                      "there, or leave freeze out, which freezes them where it can be done");
}

int machine_points_take(struct machine *m, const char *name, enum vmm_freeze freeze, bool memory, const struct string_list *only,
                        point_done_fn done, void *arg, struct error *err)
{
    if (memory && only != NULL && only->count > 0)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/disks", "are not for a snapshot with memory: that has all of them");
    if (memory && freeze == vmm_freeze_MUST)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/freeze",
                               "a snapshot with memory goes on where the VM was: nothing is frozen for it");
    int code = freeze == vmm_freeze_MUST ? agent_check(m, err) : 0;
    if (code == 0)
        code = job_begin(m, name, false, only, done, arg, err);
    if (code < 0)
        return code;
    m->points->freeze = freeze;
    m->points->memory = memory;
    thread_start(m->points, prepare_work, on_prepared);
    return 0;
}

int machine_points_drop(struct machine *m, const char *name, point_done_fn done, void *arg, struct error *err)
{
    int code = job_begin(m, name, true, NULL, done, arg, err);
    if (code == 0)
        thread_start(m->points, name_work, on_named);
    return code;
}

/* ---- merges ---- */

static void conclude(void *arg)
{
    struct point_job *job = arg;
    pthread_mutex_lock(&job->m->device_lock);
    if (job->merging != NULL)
        layer_merge_conclude(job->merging->chain);
    pthread_mutex_unlock(&job->m->device_lock);
}

static void merge_is_ready(void *arg)
{
    struct point_job *job = arg;
    io_loop_post(job->m->control, conclude, job);
}

/* With the device lock held, on the control thread: in conclude, or where the merge is given up. */
static void merged(void *arg, int result)
{
    struct point_job *job = arg;
    job->merging = NULL;
    if (result == 0) {
        job->merges++;
        job->failure = (struct error){.code = 0};
        io_loop_post(job->m->control, merge_next, job);
    } else if (result != -ECANCELED) {
        error_errno(&job->failure, result, "layers cannot be merged");
        log_warning("merge-failed", "vm=%s error=\"%s\"", job->m->config->name, job->failure.text);
    }
}

/* Files that no disk lists any more. Those in use are locked. */
static void collect(const struct machine_slot *slot)
{
    const char *slash = strrchr(slot->disk.path, '/');
    CLEANUP_FREE char *directory = xasprintf("%.*s", (int)(slash - slot->disk.path), slot->disk.path);
    struct layer_pool *files;
    if (layer_pool_dir_create(directory, NULL, NULL, &files, NULL) < 0)
        return;
    layer_disk_collect(files, NULL);
    layer_pool_dir_destroy(files);
}

static void merge_next(void *arg)
{
    struct point_job *job = arg;
    struct machine *m = job->m;
    if (job->busy || job->merging != NULL || machine_has_ended(m) || machine_changeable(m, NULL) < 0 ||
        machine_mirror_is_active(m))
        return;
    pthread_mutex_lock(&m->device_lock);
    for (unsigned i = 0; i < PCI_SLOTS && job->merging == NULL; i++) {
        const struct machine_slot *slot = &m->slots.slots[i];
        if (!has_layers(slot))
            continue;
        struct layer_disk *disk = block_layers_disk(blk_of_virtio(slot->virtio)->block);
        if (disk->chain->count == 0 || disk->chain->behind != NULL || !layer_disk_is_whole(disk))
            continue;
        disk->chain->merge_ready = merge_is_ready;
        disk->chain->merge_ready_arg = job;
        job->merging = disk;
        int code = layer_disk_tidy(disk, merged, job, &job->failure);
        if (code <= 0)
            job->merging = NULL;
    }
    pthread_mutex_unlock(&m->device_lock);
    for (unsigned i = 0; i < PCI_SLOTS && job->merging == NULL; i++)
        if (has_layers(&m->slots.slots[i]))
            collect(&m->slots.slots[i]);
}

void machine_points_give_up_memory(struct machine *m)
{
    if (m->points == NULL || !m->points->busy || !m->points->memory)
        return;
    m->points->unwanted = true;
    if (!m->points->written)
        machine_snapshot_cancel(m, NULL); /* once it is written, nobody waits for it */
}

/* ---- going on from one ---- */

int machine_points_are_at(struct machine *m, const char *name, struct error *err)
{
    int code = 0;
    pthread_mutex_lock(&m->device_lock);
    for (unsigned i = 0; i < PCI_SLOTS && code == 0; i++) {
        const struct machine_slot *slot = &m->slots.slots[i];
        if (slot->kind != SLOT_DISK || slot->disk.read_only)
            continue;
        if (!has_layers(slot) || !layer_disk_is_at(block_layers_disk(blk_of_virtio(slot->virtio)->block), name))
            code = error_set(err, -ESTALE, ERROR_CONFLICT,
                             "disk %s is not what it was when the memory was kept: it has been written to since, or was not part of it", slot->id);
    }
    pthread_mutex_unlock(&m->device_lock);
    return code;
}

char *machine_points_directory(const struct vmm_config *config)
{
    const struct vmm_disk *disks = config->disks.items;
    for (size_t i = 0; i < config->disks.count; i++)
        if (disks[i].format == disk_format_LAYERS && !disks[i].read_only)
            return directory_of(&disks[i]);
    return NULL;
}

/* ---- looking ---- */

bool machine_points_are_busy(const struct machine *m)
{
    return m->points != NULL && m->points->busy;
}

struct point_report machine_points_report(struct machine *m)
{
    struct point_report report = {.busy = false};
    struct point_job *job = m->points;
    uint64_t done, total;
    if (job == NULL)
        return report;
    pthread_mutex_lock(&m->device_lock);
    report.busy = job->busy;
    if (job->busy && job->memory && !job->written) {
        const struct snapshot_report memory = machine_snapshot_report(m);
        report.memory_read_bytes = MIN(memory.counts.memory_bytes, memory.memory_bytes);
        report.memory_bytes = memory.memory_bytes;
    }
    report.merging = job->merging != NULL;
    report.merges = job->merges;
    report.failure = job->failure;
    if (job->merging != NULL && job->merging->chain->merge != NULL) {
        layer_merge_progress(job->merging->chain->merge, &done, &total);
        report.done_bytes = done * LAYER_CLUSTER_BYTES;
        report.total_bytes = total * LAYER_CLUSTER_BYTES;
    }
    pthread_mutex_unlock(&m->device_lock);
    return report;
}

void point_job_destroy(struct point_job *job)
{
    if (job == NULL)
        return;
    thread_join(job);
    pthread_mutex_lock(&job->m->device_lock);
    if (job->merging != NULL && job->merging->chain->merge != NULL)
        layer_merge_cancel(job->merging->chain->merge);
    io_timer_cancel(&job->patience);
    for (unsigned i = 0; i < job->count && job->hold == HOLD_ON; i++)
        layer_chain_release(job->disks[i].disk->chain);
    if (job->flushing > 0) /* what is under way must not tell one that is gone */
        for (unsigned i = 0; i < job->count; i++)
            layer_drain(job->disks[i].disk->chain->layers[job->disks[i].disk->chain->count - 2]);
    pthread_mutex_unlock(&job->m->device_lock);
    points_end(job);
    free(job);
}
