/* Images of a machine's disks at one instant: see machine_backup.h. */
#include "compute/vmm/machine_backup.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "block/nbd_session.h"
#include "block/point_image.h"
#include "common/log.h"
#include "compute/vmm/block/block_file.h"
#include "compute/vmm/machine_changes.h"
#include "compute/vmm/machine_fill.h"
#include "compute/vmm/machine_mirror.h"
#include "compute/vmm/nbd_listener.h"

#define NS_PER_S UINT64_C(1000000000)

struct backup_disk {
    struct backup_job *job;
    struct machine_slot *slot; /* NULL: the disk has gone */
    char id[24];
    uint64_t size_bytes, changed_bytes;
    struct block *spill;       /* until the image has it */
    struct point_image *image; /* NULL: before the instant, or over */
    struct io_timer run;       /* point_image_run */
    int since;                 /* a cut; -1: not known */
    int cut;                   /* of this backup; -1: changes are not tracked */
    struct point_counters counters;
};

struct backup_job {
    struct machine *machine;
    enum vmm_backup_phase phase;
    struct vmm_backup_order order; /* copied */
    struct backup_disk disks[BACKUP_DISKS_MAX];
    struct nbd_export exports[BACKUP_DISKS_MAX];
    unsigned count;
    struct point_budget budget;
    struct nbd_listener *listener;
    struct io_timer idle;
    backup_begun_fn begun;
    void *arg;
    bool agent_asked;     /* an answer of the agent is to come */
    struct error freeze;  /* why it did not freeze; code 0: it did */
    bool is_frozen;
    uint64_t asked_at_us, frozen_at_us, frozen_us, pause_us;
    enum backup_consistency consistency;
    struct error failure; /* guarded by the device lock; code 0: none */
    bool idle_over;       /* the same */
};

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static struct backup_job *job_of(struct machine *m)
{
    if (m->backup == NULL) {
        m->backup = NEW(struct backup_job);
        m->backup->machine = m;
    }
    return m->backup;
}

bool machine_backup_is_active(const struct machine *m)
{
    return m->backup != NULL && m->backup->phase != vmm_backup_phase_NONE;
}

bool machine_backup_is_beginning(const struct machine *m)
{
    return m->backup != NULL && m->backup->phase == vmm_backup_phase_FREEZE;
}

/* ---- closing (device lock held) ---- */

static void disk_close(struct backup_disk *d)
{
    if (d->image != NULL) {
        struct blk *blk = d->slot != NULL ? blk_of_virtio(d->slot->virtio) : NULL;
        d->counters = point_image_counters(d->image);
        if (blk != NULL) {
            block_drain(blk_top(blk));
            blk_set_filter(blk, NULL, NULL, NULL);
        }
        point_image_destroy(TAKE_PTR(d->image));
    }
    if (d->spill != NULL)
        block_close(TAKE_PTR(d->spill));
    io_timer_cancel(&d->run);
}

static void images_close(struct backup_job *job)
{
    nbd_listener_destroy(TAKE_PTR(job->listener));
    io_timer_cancel(&job->idle);
    for (unsigned i = 0; i < job->count; i++) {
        job->exports[i].block = NULL;
        disk_close(&job->disks[i]);
    }
}

/* ---- what happens meanwhile (I/O thread, device lock held) ---- */

static void on_run(void *arg)
{
    struct backup_disk *d = arg;
    if (d->image != NULL)
        point_image_run(d->image);
}

static void on_wake(void *arg)
{
    struct backup_disk *d = arg;
    io_timer_arm(d->job->machine->io, &d->run, 0);
}

static void on_lost_settle(void *arg);

static void on_lost(void *arg, const struct error *why)
{
    struct backup_disk *d = arg;
    struct backup_job *job = d->job;
    if (job->failure.code != 0)
        return;
    job->failure = *why;
    error_prefix(&job->failure, "disk %s: ", d->id);
    io_loop_post(job->machine->control, on_lost_settle, job);
}

/* Its device lets the disk go. */
static void on_leaving(void *arg, struct blk *blk)
{
    struct backup_disk *d = arg;
    blk_set_filter(blk, NULL, NULL, NULL);
    point_image_lose(d->image, "the disk was taken away");
    d->slot = NULL;
}

static void on_idle_settle(void *arg);

static void on_idle(void *arg)
{
    struct backup_job *job = arg;
    job->idle_over = true;
    io_loop_post(job->machine->control, on_idle_settle, job);
}

static void on_clients(void *arg, unsigned count)
{
    struct backup_job *job = arg;
    io_timer_cancel(&job->idle);
    if (count == 0)
        io_timer_arm(job->machine->io, &job->idle, job->order.idle_limit_s * NS_PER_S);
}

/* ---- the same, on the control loop ---- */

static void job_log_failure(struct backup_job *job)
{
    char quoted[640];
    log_warning("backup-lost", "vm=%s backup=%s why=%s", job->machine->config->name, job->order.name,
                log_quote(job->failure.text, quoted, sizeof quoted));
}

static void on_lost_settle(void *arg)
{
    struct backup_job *job = arg;
    if (job->phase != vmm_backup_phase_OPEN)
        return;
    job->phase = vmm_backup_phase_FAILED;
    job_log_failure(job);
}

static void on_idle_settle(void *arg)
{
    struct backup_job *job = arg;
    struct machine *m = job->machine;
    pthread_mutex_lock(&m->device_lock);
    bool over = job->idle_over && (job->phase == vmm_backup_phase_OPEN || job->phase == vmm_backup_phase_FAILED) &&
                (job->listener == NULL || nbd_listener_clients(job->listener) == 0);
    job->idle_over = false;
    if (over) {
        images_close(job);
        if (job->failure.code == 0)
            error_set(&job->failure, -ETIMEDOUT, ERROR_TIMEOUT, "the backup was given up: nobody has read from it for %u s",
                      job->order.idle_limit_s);
    }
    pthread_mutex_unlock(&m->device_lock);
    if (over) {
        job->phase = vmm_backup_phase_NONE;
        job_log_failure(job);
    }
}

/* ---- beginning ---- */

/* A sparse file without a name, of the size of the disk. */
static int spill_open(struct machine *m, const char *directory, uint64_t size_bytes, struct block **ret_block,
                      struct error *err)
{
    struct block_file_options options = {.name = "the spill", .unlocked = true, .uring = m->uring};
    CLEANUP_FD int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)size_bytes) < 0)
        return error_set_field(err, -errno, ERROR_INVALID, "/path", "cannot make the spill in %s: %s", directory,
                               strerror(errno));
    int code = block_file_from_fd(fd, &options, m->io, ret_block, err);
    if (code == 0)
        fd = -1;
    return code;
}

static int disks_prepare(struct backup_job *job, struct error *err)
{
    struct machine *m = job->machine;
    CLEANUP_FREE char *directory = xstrdup(job->order.path);
    char *slash = strrchr(directory, '/');
    int code = 0;
    *(slash == directory ? slash + 1 : slash) = '\0';
    const struct string_list *asked = &job->order.disks;
    job->count = 0;
    for (unsigned i = 0; code == 0 && i < PCI_SLOTS && job->count < BACKUP_DISKS_MAX; i++) {
        struct machine_slot *slot = &m->slots.slots[i];
        if (slot->kind != SLOT_DISK || slot->detached || blk_of_virtio(slot->virtio)->block->read_only ||
            (asked->count > 0 && !string_list_has(asked, slot->id)))
            continue;
        struct backup_disk *d = &job->disks[job->count++];
        *d = (struct backup_disk){.job = job, .slot = slot, .since = -1, .cut = -1};
        snprintf(d->id, sizeof d->id, "%s", slot->id);
        io_timer_init(&d->run, on_run, d);
        d->size_bytes = blk_of_virtio(slot->virtio)->block->size_bytes;
        code = spill_open(m, directory, d->size_bytes, &d->spill, err);
    }
    if (code == 0 && job->count < asked->count)
        code = error_set_field(err, -ENODEV, ERROR_CONFLICT, "/disks", "names a disk that the VM has not, or cannot write");
    if (code == 0 && job->count == 0)
        code = error_set(err, -EINVAL, ERROR_CONFLICT, "the VM has no disk that it can write: there is nothing to back up");
    return code;
}

static bool export_changed(void *arg, uint64_t from, uint64_t *ret_end)
{
    const struct backup_disk *d = arg;
    if (d->slot == NULL) {
        *ret_end = d->size_bytes;
        return true;
    }
    bool changed = changed_map_since(&d->slot->changes->map, (uint8_t)d->since, from, ret_end);
    *ret_end = MIN(*ret_end, d->size_bytes);
    return changed;
}

/* The disk stands still. */
static int disk_cut(struct backup_disk *d, struct error *err)
{
    struct backup_job *job = d->job;
    struct blk *blk = blk_of_virtio(d->slot->virtio);
    struct point_image_options options = {.disk = blk->block,
                                          .spill = d->spill,
                                          .budget = &job->budget,
                                          .wake = on_wake,
                                          .failed = on_lost,
                                          .arg = d};
    if (d->spill->size_bytes != blk->block->size_bytes)
        return error_set(err, -EAGAIN, ERROR_CONFLICT, "disk %s has just been enlarged; try again", d->id);
    int code = point_image_create(&options, &d->image, err);
    if (code < 0)
        return code;
    d->spill = NULL;
    if (d->slot->changes == NULL)
        d->slot->changes = machine_changes_begin(&d->slot->disk, blk->block);
    if (d->slot->changes != NULL) {
        struct changed_map *map = &d->slot->changes->map;
        d->cut = changed_map_cut(map);
        d->since = job->order.since != NULL ? changed_map_find(map, job->order.since) : -1;
        d->changed_bytes = d->since >= 0 ? changed_map_bytes_since(map, (uint8_t)d->since) : 0;
    }
    blk_set_filter(blk, point_image_front(d->image), on_leaving, d);
    return 0;
}

/* The instant. Device lock held. */
static int disks_cut(struct backup_job *job, struct error *err)
{
    uint64_t began_us = now_us();
    int code = 0;
    for (unsigned i = 0; i < job->count; i++) {
        struct backup_disk *d = &job->disks[i];
        if (d->slot->kind != SLOT_DISK || d->slot->detached || strcmp(d->slot->id, d->id) != 0)
            return error_set(err, -EAGAIN, ERROR_CONFLICT, "disk %s has just been taken away; try again", d->id);
        block_drain(blk_top(blk_of_virtio(d->slot->virtio)));
    }
    for (unsigned i = 0; code == 0 && i < job->count; i++)
        code = disk_cut(&job->disks[i], err);
    job->pause_us = now_us() - began_us;
    return code;
}

static int images_open(struct backup_job *job, struct error *err)
{
    struct machine *m = job->machine;
    for (unsigned i = 0; i < job->count; i++) {
        struct backup_disk *d = &job->disks[i];
        job->exports[i] = (struct nbd_export){.name = d->id,
                                              .block = point_image_back(d->image),
                                              .access = NBD_ACCESS_READ_TRIM,
                                              .changed_since = d->since >= 0 ? job->order.since : NULL,
                                              .changed = export_changed,
                                              .changed_arg = d};
    }
    int code = nbd_listener_create(job->order.path, job->exports, job->count, m->io, on_clients, job, &job->listener, err);
    if (code == 0)
        on_clients(job, 0);
    return code;
}

static void no_answer(void *arg UNUSED, const json_t *answer UNUSED, const struct error *err UNUSED)
{
}

/* Frozen, or not to be frozen, or it went wrong. */
static void job_cut(struct backup_job *job)
{
    struct machine *m = job->machine;
    struct error err = {0};
    bool must = job->order.freeze == vmm_backup_freeze_ALWAYS;
    int code = 0;
    pthread_mutex_lock(&m->device_lock);
    bool in_time = now_us() - job->asked_at_us < job->order.freeze_limit_ms * UINT64_C(1000);
    if (job->is_frozen && !(m->guest.agent.frozen && in_time)) {
        job->is_frozen = false;
        error_set(&job->freeze, -ETIMEDOUT, ERROR_TIMEOUT, "the guest's file systems have thawed too early");
    }
    if (must && !job->is_frozen) {
        code = job->freeze.code;
        err = job->freeze;
        error_prefix(&err, "the guest's file systems could not be frozen: ");
    }
    code = code < 0 ? code : disks_cut(job, &err);
    if (job->agent_asked) { /* whatever came of it: a thaw too many does no harm */
        (void)guest_agent_thaw(&m->guest.agent, no_answer, NULL, NULL);
        job->frozen_us = job->is_frozen ? now_us() - job->frozen_at_us : 0;
    }
    code = code < 0 ? code : images_open(job, &err);
    if (code < 0)
        images_close(job);
    pthread_mutex_unlock(&m->device_lock);
    job->consistency = job->is_frozen ? backup_consistency_FILESYSTEM : backup_consistency_CRASH;
    job->phase = code == 0 ? vmm_backup_phase_OPEN : vmm_backup_phase_NONE;
    if (code == 0)
        log_info("backup-open", "vm=%s backup=%s disks=%u pause_us=%llu frozen_us=%llu", m->config->name, job->order.name,
                 job->count, (unsigned long long)job->pause_us, (unsigned long long)job->frozen_us);
    job->begun(job->arg, code, &err);
}

static void on_frozen_settle(void *arg)
{
    struct backup_job *job = arg;
    if (job->phase == vmm_backup_phase_FREEZE)
        job_cut(job);
}

/* On the I/O thread, with the device lock held. */
static void on_frozen(void *arg, const json_t *answer, const struct error *err)
{
    struct backup_job *job = arg;
    job->freeze = *err;
    job->is_frozen = answer != NULL;
    job->frozen_at_us = now_us();
    io_loop_post(job->machine->control, on_frozen_settle, job);
}

/* True: the agent has been asked, on_frozen follows. */
static bool freeze_ask(struct backup_job *job)
{
    struct machine *m = job->machine;
    job->freeze = (struct error){0};
    job->is_frozen = job->agent_asked = false;
    if (job->order.freeze == vmm_backup_freeze_NEVER)
        return false;
    if (m->guest.channel == NULL || m->state != MACHINE_RUNNING) {
        error_set(&job->freeze, -ENODEV, ERROR_CONFLICT, "%s",
                  m->guest.channel == NULL ? "the VM has no channel to an agent" : "the VM does not run");
        return false;
    }
    pthread_mutex_lock(&m->device_lock);
    job->asked_at_us = now_us();
    job->agent_asked = guest_agent_freeze(&m->guest.agent, job->order.freeze_limit_ms, on_frozen, job, &job->freeze) == 0;
    pthread_mutex_unlock(&m->device_lock);
    return job->agent_asked;
}

static void order_take(struct backup_job *job, const struct vmm_backup_order *order)
{
    OBJECT_CLEAR(vmm_backup_order, &job->order);
    OBJECT_COPY(vmm_backup_order, &job->order, order);
    if (job->order.spill_bytes_max == 0)
        job->order.spill_bytes_max = BACKUP_SPILL_BYTES_MAX;
    if (job->order.freeze_limit_ms == 0)
        job->order.freeze_limit_ms = BACKUP_FREEZE_LIMIT_MS;
    if (job->order.idle_limit_s == 0)
        job->order.idle_limit_s = BACKUP_IDLE_LIMIT_S;
    job->budget = (struct point_budget){.bytes_max = job->order.spill_bytes_max};
    job->failure = (struct error){0};
    job->idle_over = false;
    job->pause_us = job->frozen_us = 0;
}

static int begin_check(struct machine *m, struct error *err)
{
    if (machine_backup_is_active(m))
        return error_set(err, -EBUSY, ERROR_CONFLICT, "a backup of the VM (%s) is under way; wait for its end, or end it",
                         m->backup->order.name);
    if (m->frozen || (m->state != MACHINE_RUNNING && m->state != MACHINE_PAUSED))
        return error_set(err, -EINVAL, ERROR_CONFLICT, "the VM is %s and cannot be backed up",
                         m->frozen ? "being saved" : machine_state_name(m->state));
    int code = machine_changeable(m, err);
    return code == 0 ? machine_fill_check(m, err) : code;
}

int machine_backup_begin(struct machine *m, const struct vmm_backup_order *order, backup_begun_fn begun, void *arg,
                         struct error *err)
{
    int code = begin_check(m, err);
    if (code == 0 && machine_mirror_is_active(m))
        code = error_set(err, -EBUSY, ERROR_CONFLICT, "a disk of the VM is being moved; wait for its end, or cancel it");
    if (code < 0)
        return code;
    struct backup_job *job = job_of(m);
    order_take(job, order);
    io_timer_init(&job->idle, on_idle, job);
    job->begun = begun;
    job->arg = arg;
    pthread_mutex_lock(&m->device_lock);
    code = disks_prepare(job, err);
    if (code < 0)
        images_close(job);
    pthread_mutex_unlock(&m->device_lock);
    if (code < 0)
        return code;
    job->phase = vmm_backup_phase_FREEZE;
    if (!freeze_ask(job))
        io_loop_post(m->control, on_frozen_settle, job); /* never from within */
    return 0;
}

/* ---- the end ---- */

static void changes_keep(struct backup_job *job)
{
    for (unsigned i = 0; i < job->count; i++) {
        struct backup_disk *d = &job->disks[i];
        if (d->slot != NULL && d->slot->changes != NULL && d->cut >= 0)
            changed_map_keep(&d->slot->changes->map, job->order.name, (uint8_t)d->cut);
    }
}

int machine_backup_end(struct machine *m, const char *name, bool kept, struct error *err)
{
    struct backup_job *job = m->backup;
    int code = 0;
    if (job == NULL || job->phase == vmm_backup_phase_NONE || strcmp(job->order.name, name) != 0)
        return error_set(err, -ENOENT, ERROR_NOT_FOUND, "the VM has no images of a backup %s%s%s", name,
                         job != NULL && job->failure.code != 0 ? " any more: " : "",
                         job != NULL && job->failure.code != 0 ? job->failure.text : "");
    if (job->phase == vmm_backup_phase_FREEZE)
        return error_set(err, -EBUSY, ERROR_CONFLICT, "the backup is just beginning; try again");
    pthread_mutex_lock(&m->device_lock);
    images_close(job); /* what is under way may still fail */
    if (kept && job->failure.code == 0)
        changes_keep(job);
    else if (kept)
        code = error_set(err, -EIO, ERROR_CONFLICT, "%s", job->failure.text);
    pthread_mutex_unlock(&m->device_lock);
    job->phase = vmm_backup_phase_NONE;
    log_info("backup-end", "vm=%s backup=%s kept=%s spill_peak_bytes=%llu", m->config->name, name,
             kept && code == 0 ? "true" : "false", (unsigned long long)job->budget.bytes_peak);
    return code;
}

void machine_backup_grown(struct machine *m, struct blk *blk)
{
    for (unsigned i = 0; m->backup != NULL && i < m->backup->count; i++) {
        struct backup_disk *d = &m->backup->disks[i];
        if (d->image != NULL && d->slot != NULL && blk_of_virtio(d->slot->virtio) == blk)
            point_image_grown(d->image);
    }
}

/* ---- telling ---- */

static void disk_report(const struct backup_disk *d, struct vmm_backup_disk *to)
{
    struct point_counters counters = d->image != NULL ? point_image_counters(d->image) : d->counters;
    OBJECT_TEXT(vmm_backup_disk, to, id, d->id);
    OBJECT_SET(vmm_backup_disk, to, size_bytes, d->size_bytes);
    OBJECT_SET(vmm_backup_disk, to, changed_known, d->since >= 0);
    if (d->since >= 0)
        OBJECT_SET(vmm_backup_disk, to, changed_bytes, d->changed_bytes);
    OBJECT_SET(vmm_backup_disk, to, copied_bytes, counters.copied_bytes);
    OBJECT_SET(vmm_backup_disk, to, waits, counters.waited);
}

void machine_backup_report(struct machine *m, struct vmm_backup *ret_report)
{
    struct backup_job *job = m->backup;
    OBJECT_SET(vmm_backup, ret_report, phase, job != NULL ? job->phase : vmm_backup_phase_NONE);
    if (job == NULL)
        return;
    pthread_mutex_lock(&m->device_lock);
    OBJECT_TEXT(vmm_backup, ret_report, name, job->order.name);
    OBJECT_TEXT(vmm_backup, ret_report, path, job->order.path);
    OBJECT_SET(vmm_backup, ret_report, consistency, job->consistency);
    if (job->freeze.code != 0 && !job->is_frozen)
        OBJECT_TEXT(vmm_backup, ret_report, why_not, job->freeze.text);
    OBJECT_SET(vmm_backup, ret_report, pause_us, job->pause_us);
    OBJECT_SET(vmm_backup, ret_report, frozen_us, job->frozen_us);
    OBJECT_SET(vmm_backup, ret_report, spill_bytes, job->budget.bytes);
    OBJECT_SET(vmm_backup, ret_report, spill_peak_bytes, job->budget.bytes_peak);
    OBJECT_SET(vmm_backup, ret_report, clients, job->listener != NULL ? nbd_listener_clients(job->listener) : 0);
    if (job->failure.code != 0)
        OBJECT_TEXT(vmm_backup, ret_report, failure, job->failure.text);
    for (unsigned i = 0; i < job->count; i++)
        disk_report(&job->disks[i], OBJECT_ADD(vmm_backup, ret_report, disks));
    pthread_mutex_unlock(&m->device_lock);
}

void backup_job_close(struct backup_job *job)
{
    if (job == NULL)
        return;
    pthread_mutex_lock(&job->machine->device_lock);
    images_close(job);
    pthread_mutex_unlock(&job->machine->device_lock);
    job->phase = vmm_backup_phase_NONE;
}

void backup_job_destroy(struct backup_job *job)
{
    if (job == NULL)
        return;
    OBJECT_CLEAR(vmm_backup_order, &job->order);
    free(job);
}
