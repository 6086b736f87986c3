/* One snapshot at a time: frozen and thawed on the control loop, written on a thread (machine_snapshot.h). */
#include "compute/vmm/machine_snapshot.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "common/log.h"
#include "compute/vmm/devices/net/net.h"
#include "compute/vmm/guest_ops.h"
#include "compute/vmm/machine_points.h"
#include "compute/vmm/machine_state.h"
#include "migration/snapshot_memory.h"

struct snapshot_job {
    struct machine *machine;
    struct machine_guest guest;
    struct snapshot_writer *writer; /* NULL: idle */
    enum snapshot_phase phase;
    pthread_t thread;
    bool thread_runs, stay;
    snapshot_done_fn done;
    void *arg;
    int (*stand)(void *arg, struct error *err);
    uint64_t began_us, stood_us; /* since when the guest stands still */
    struct snapshot_report report;
    /* Written by the thread, read by the loop once it was posted. */
    int code;
    struct error err;
};

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void thread_join(struct snapshot_job *job)
{
    if (job->thread_runs)
        pthread_join(job->thread, NULL);
    job->thread_runs = false;
}

static void job_end(struct snapshot_job *job, int code, const struct error *err)
{
    char quoted[640];
    job->report.counts = snapshot_progress(job->writer);
    job->report.total_us = now_us() - job->began_us;
    job->report.failure = (struct error){0};
    if (code < 0)
        job->report.failure = *err;
    snapshot_writer_destroy(TAKE_PTR(job->writer));
    job->phase = SNAPSHOT_IDLE;
    if (code < 0)
        log_warning("snapshot-failed", "vm=%s error=%s", job->machine->config->name,
                    log_quote(err->text, quoted, sizeof(quoted)));
    else
        log_info("snapshot-written", "vm=%s bytes=%llu pause_us=%llu total_us=%llu", job->machine->config->name,
                 (unsigned long long)job->report.counts.file_bytes, (unsigned long long)job->report.pause_us,
                 (unsigned long long)job->report.total_us);
    job->done(job->arg, code, err);
}

static void on_committed(void *arg)
{
    struct snapshot_job *job = arg;
    struct error err = job->err;
    int code = job->code;
    thread_join(job);
    if (job->machine->frozen && code < 0)
        machine_thaw(job->machine, NULL);
    job_end(job, code, &err);
}

static void *commit_main(void *arg)
{
    struct snapshot_job *job = arg;
    job->code = snapshot_commit(job->writer, &job->err);
    io_loop_post(job->machine->control, on_committed, job);
    return NULL;
}

static void on_memory_written(void *arg)
{
    struct snapshot_job *job = arg;
    struct error err = job->err;
    thread_join(job);
    int code = job->code;
    int thawed = code == 0 && job->stay ? 0 : machine_thaw(job->machine, code < 0 ? NULL : &err);
    job->report.pause_us = now_us() - job->stood_us;
    code = code < 0 ? code : thawed;
    if (code == 0) {
        job->phase = SNAPSHOT_COMMIT;
        code = -pthread_create(&job->thread, NULL, commit_main, job);
        job->thread_runs = code == 0;
        if (code < 0)
            error_errno(&err, code, "cannot start a thread");
    }
    if (code < 0 && job->machine->frozen)
        machine_thaw(job->machine, NULL);
    if (code < 0)
        job_end(job, code, &err);
}

static void *memory_main(void *arg)
{
    struct snapshot_job *job = arg;
    job->code = snapshot_memory(job->writer, &job->err);
    io_loop_post(job->machine->control, on_memory_written, job);
    return NULL;
}

static struct snapshot_job *job_of(struct machine *m)
{
    if (!m->snapshot) {
        m->snapshot = NEW(struct snapshot_job);
        m->snapshot->machine = m;
        machine_guest_init(&m->snapshot->guest, m, NULL);
    }
    return m->snapshot;
}

static int thread_begin(struct snapshot_job *job, enum snapshot_phase phase, void *(*main)(void *), struct error *err)
{
    job->phase = phase;
    job->code = 0;
    job->err = (struct error){0};
    int code = -pthread_create(&job->thread, NULL, main, job);
    job->thread_runs = code == 0;
    return code < 0 ? error_errno(err, code, "cannot start a thread") : 0;
}

/* ---- while the guest runs ---- */

/* The machine stands still now, at the moment that the snapshot is of. */
static int memory_begin(struct snapshot_job *job, struct error *err)
{
    struct machine_description description = {0};
    machine_description_fill(job->machine, &description);
    int code = snapshot_stand(job->writer, &description, err);
    OBJECT_CLEAR(machine_description, &description);
    if (code == 0)
        code = thread_begin(job, SNAPSHOT_MEMORY, memory_main, err);
    if (code < 0)
        machine_thaw(job->machine, NULL);
    return code;
}

static void on_copied(void *arg)
{
    struct snapshot_job *job = arg;
    struct error err = job->err;
    int code = job->code;
    thread_join(job);
    job->stood_us = now_us();
    if (code == 0)
        code = job->stand(job->arg, &err);
    if (code == 0)
        code = memory_begin(job, &err);
    if (code < 0)
        job_end(job, code, &err);
}

static void *copy_main(void *arg)
{
    struct snapshot_job *job = arg;
    job->code = snapshot_copy(job->writer, &job->err);
    io_loop_post(job->machine->control, on_copied, job);
    return NULL;
}

/* ---- begin ---- */

static int file_begin(struct snapshot_job *job, const struct snapshot_options *options, struct error *err)
{
    struct machine_description description = {0};
    if (options->stand != NULL)
        return snapshot_begin_live(&job->guest.guest, options->path, &job->writer, err);
    machine_description_fill(job->machine, &description);
    int code = snapshot_begin(&job->guest.guest, &description, options->path, options->compress, &job->writer, err);
    OBJECT_CLEAR(machine_description, &description);
    return code;
}

static int job_begin(struct snapshot_job *job, const struct snapshot_options *options, struct error *err)
{
    int code = file_begin(job, options, err);
    if (code == 0)
        code = options->stand != NULL ? thread_begin(job, SNAPSHOT_LIVE, copy_main, err) : thread_begin(job, SNAPSHOT_MEMORY, memory_main, err);
    if (code < 0) {
        snapshot_writer_destroy(TAKE_PTR(job->writer));
        job->phase = SNAPSHOT_IDLE;
    }
    return code;
}

int machine_snapshot_begin(struct machine *m, const struct snapshot_options *options, snapshot_done_fn done,
                           void *arg, struct error *err)
{
    struct snapshot_job *job = job_of(m);
    if (job->phase != SNAPSHOT_IDLE)
        return error_set(err, -EBUSY, ERROR_CONFLICT, "a snapshot of the VM is being written already");
    job->stay = options->stay;
    job->stand = options->stand;
    job->done = done;
    job->arg = arg;
    job->began_us = job->stood_us = now_us();
    int code = options->stand != NULL ? 0 : machine_changeable(m, err);
    if (code == 0 && options->stand == NULL)
        code = machine_freeze(m, err);
    if (code < 0)
        return code;
    code = job_begin(job, options, err);
    if (code < 0 && options->stand == NULL)
        machine_thaw(m, NULL);
    return code;
}

int machine_snapshot_cancel(struct machine *m, struct error *err)
{
    struct snapshot_job *job = m->snapshot;
    if (!job || (job->phase != SNAPSHOT_MEMORY && job->phase != SNAPSHOT_LIVE))
        return error_set(err, -EINVAL, ERROR_CONFLICT, "no snapshot of the VM is being written");
    snapshot_cancel(job->writer);
    return 0;
}

struct snapshot_report machine_snapshot_report(const struct machine *m)
{
    struct snapshot_report report = {.phase = SNAPSHOT_IDLE};
    if (m->snapshot)
        report = m->snapshot->report;
    report.memory_bytes = m->memory.size_bytes;
    if (!m->snapshot || m->snapshot->phase == SNAPSHOT_IDLE)
        return report;
    report.phase = m->snapshot->phase;
    report.counts = snapshot_progress(m->snapshot->writer);
    return report;
}

void snapshot_job_destroy(struct snapshot_job *job)
{
    if (!job)
        return;
    if (job->writer)
        snapshot_cancel(job->writer);
    thread_join(job);
    snapshot_writer_destroy(job->writer);
    machine_guest_finish(&job->guest);
    free(job);
}

void machine_restore_announce(struct machine *m)
{
    pthread_mutex_lock(&m->device_lock);
    for (unsigned i = 0; i < PCI_SLOTS; i++) {
        struct machine_slot *slot = &m->slots.slots[i];
        int code = slot->kind == SLOT_NIC ? net_announce(slot->virtio) : 0;
        if (code < 0)
            log_info("not-announced", "vm=%s nic=%s why=\"%s\"", m->config->name, slot->id, strerror(-code));
    }
    pthread_mutex_unlock(&m->device_lock);
}

int machine_restore_load(void *arg, struct machine *m, struct error *err)
{
    struct machine_restore *restore = arg;
    struct machine_guest guest;
    machine_guest_init(&guest, m, NULL);
    int code = machine_description_check(snapshot_description(restore->file), m->config, err);
    if (code == 0 && restore->resume != NULL)
        code = machine_points_are_at(m, restore->resume, err);
    if (code == 0)
        code = snapshot_load(restore->file, &guest.guest, restore->how, err);
    machine_guest_finish(&guest);
    if (code == 0 && restore->resume != NULL) /* from here on a start is one from its disks, whatever comes of this one */
        code = snapshot_resume_take(restore->directory, restore->resume, err);
    return code;
}
