/* One session at a time (machine_replica.h). */
#include "compute/vmm/machine_replica.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/log.h"
#include "compute/vmm/control_gate.h"
#include "compute/vmm/machine_backup.h"
#include "compute/vmm/machine_fill.h"
#include "compute/vmm/machine_mirror.h"

enum { LOOK_MS = 20, NS_PER_MS = 1000000, DISKS_MAX = 16 };

struct replica_job {
    struct machine *machine;
    struct control_gate gate;
    pthread_t thread;
    bool has_thread;
    bool cancel, thread_over; /* atomic */
    struct vmm_replica_order order;
    enum vmm_replica_phase phase;
    uint64_t over;   /* sessions up to that one */
    bool is_guarded; /* some disk is, or was */
    char disks[DISKS_MAX][24];
    unsigned count, at;
    struct machine_mirror *link; /* of disk `at`; the thread's, and the loop's while that waits */
    char failure[400];
};

static bool is_cancelled(const struct replica_job *job)
{
    return __atomic_load_n(&job->cancel, __ATOMIC_ACQUIRE);
}

/* ---- on the control loop ---- */

static void job_failed(struct replica_job *job, const struct error *err)
{
    char quoted[640];
    if (job->phase == vmm_replica_phase_LOST || job->phase == vmm_replica_phase_FAILED || job->phase == vmm_replica_phase_NONE)
        return;
    snprintf(job->failure, sizeof job->failure, "%.399s", err->text);
    job->phase = job->is_guarded ? vmm_replica_phase_LOST : vmm_replica_phase_FAILED;
    log_warning("replica-lost", "vm=%s session=%llu guest_waits=%s why=%s", job->machine->config->name,
                (unsigned long long)job->order.session, job->is_guarded ? "true" : "false", log_quote(job->failure, quoted, sizeof quoted));
    if (!job->is_guarded)
        machine_mirrors_replica_end(job->machine);
}

static int do_disk_begin(void *arg, struct error *err)
{
    struct replica_job *job = arg;
    struct machine_slot *slot = is_cancelled(job) ? NULL : machine_slot_find(job->machine, SLOT_DISK, job->disks[job->at], err);
    if (slot == NULL)
        return error_set(err, -ECANCELED, ERROR_CANCELLED, "the session is over");
    return machine_mirror_replicate(job->machine, slot, TAKE_PTR(job->link), &job->order, err);
}

static int do_look(void *arg, struct error *err)
{
    struct replica_job *job = arg;
    bool is_level, lasts;
    if (is_cancelled(job))
        return error_set(err, -ECANCELED, ERROR_CANCELLED, "the session is over");
    int code = machine_mirrors_replica_look(job->machine, job->count, &is_level, &lasts, err);
    if (code == 0 && job->is_guarded && lasts && job->phase == vmm_replica_phase_COPY) {
        job->phase = vmm_replica_phase_LEVEL;
        log_info("replica-level", "vm=%s session=%llu", job->machine->config->name, (unsigned long long)job->order.session);
    }
    if (code == 0 && (is_level || job->is_guarded) && job->phase == vmm_replica_phase_COPY) {
        job->is_guarded = true;
        code = machine_mirrors_replica_guard(job->machine, err);
    }
    if (code < 0)
        job_failed(job, err);
    return code;
}

static int do_copy(void *arg, struct error *err UNUSED)
{
    struct replica_job *job = arg;
    job->phase = is_cancelled(job) ? job->phase : vmm_replica_phase_COPY;
    return 0;
}

struct failing {
    struct replica_job *job;
    const struct error *why;
};

static int do_fail(void *arg, struct error *err UNUSED)
{
    const struct failing *f = arg;
    if (!is_cancelled(f->job))
        job_failed(f->job, f->why);
    return 0;
}

/* ---- the thread of a session: what has to wait for the other side, and looks ---- */

static void *job_main(void *arg)
{
    struct replica_job *job = arg;
    const struct timespec pause = {.tv_nsec = LOOK_MS * NS_PER_MS};
    struct error err = {.code = 0};
    int code = 0;
    for (job->at = 0; code == 0 && job->at < job->count; job->at++) {
        code = machine_mirror_link_replica(job->machine, job->disks[job->at], &job->order, &job->link, &err);
        if (code == 0)
            code = control_gate_run(&job->gate, do_disk_begin, job, &err);
        machine_mirror_unlink(TAKE_PTR(job->link));
    }
    if (code == 0)
        code = control_gate_run(&job->gate, do_copy, job, &err);
    while (code == 0 && !is_cancelled(job)) {
        nanosleep(&pause, NULL);
        code = control_gate_run(&job->gate, do_look, job, &err);
    }
    struct failing failing = {job, &err};
    if (code < 0 && code != -ECANCELED)
        (void)control_gate_run(&job->gate, do_fail, &failing, NULL);
    __atomic_store_n(&job->thread_over, true, __ATOMIC_RELEASE);
    return NULL;
}

/* ---- its beginning and its end ---- */

static struct replica_job *job_of(struct machine *m)
{
    if (m->replica == NULL) {
        m->replica = NEW(struct replica_job);
        m->replica->machine = m;
        control_gate_init(&m->replica->gate, m->control);
    }
    return m->replica;
}

static bool is_under_way(const struct replica_job *job)
{
    return job->phase != vmm_replica_phase_NONE && job->phase != vmm_replica_phase_FAILED;
}

/* What is not asked for is reached from the replica's host as well: it is mirrored nowhere, and the guest's writes to it never wait. */
static int disks_find(struct replica_job *job, const struct string_list *asked, struct error *err)
{
    struct machine *m = job->machine;
    job->count = 0;
    for (unsigned i = 0; i < PCI_SLOTS && job->count < DISKS_MAX; i++) {
        const struct machine_slot *slot = &m->slots.slots[i];
        if (slot->kind == SLOT_DISK && !slot->detached && !slot->disk.read_only && (asked->count == 0 || string_list_has(asked, slot->id)))
            snprintf(job->disks[job->count++], sizeof job->disks[0], "%s", slot->id);
    }
    if (job->count < asked->count)
        return error_set_field(err, -ENODEV, ERROR_CONFLICT, "/disks", "names a disk that the VM has not, or cannot write");
    return job->count > 0 ? 0 : error_set(err, -EINVAL, ERROR_CONFLICT, "the VM has no disk that it can write: there is nothing to replicate");
}

static int begin_check(struct machine *m, const struct replica_job *job, const struct vmm_replica_order *order, struct error *err)
{
    uint64_t over = MAX(job->order.session, job->over);
    if (order->session <= over)
        return error_set(err, -ESTALE, ERROR_CONFLICT, "session %llu with a replica has been, and %llu is over", (unsigned long long)over,
                         (unsigned long long)order->session);
    if (is_under_way(job))
        return error_set(err, -EBUSY, ERROR_CONFLICT, "session %llu with a replica is under way; say that it is over first",
                         (unsigned long long)job->order.session);
    if (job->has_thread && !__atomic_load_n(&job->thread_over, __ATOMIC_ACQUIRE))
        return error_set(err, -EBUSY, ERROR_CONFLICT, "the last session with a replica is just ending; try again");
    if (machine_backup_is_active(m) || machine_mirror_is_active(m))
        return error_set(err, -EBUSY, ERROR_CONFLICT, "the VM's disks are being backed up or moved; try again when they are");
    int code = machine_changeable(m, err);
    if (code == 0)
        code = machine_fill_check(m, err);
    return code;
}

int machine_replica_begin(struct machine *m, const struct vmm_replica_order *order, struct error *err)
{
    struct replica_job *job = job_of(m);
    if (is_under_way(job) && order->session == job->order.session)
        return 0;
    int code = begin_check(m, job, order, err);
    if (code == 0)
        code = disks_find(job, &order->disks, err);
    if (code < 0)
        return code;
    if (job->has_thread)
        pthread_join(job->thread, NULL);
    OBJECT_CLEAR(vmm_replica_order, &job->order);
    OBJECT_COPY(vmm_replica_order, &job->order, order);
    if (job->order.patience_ms == 0)
        job->order.patience_ms = REPLICA_PATIENCE_MS;
    job->is_guarded = job->cancel = job->thread_over = false;
    job->failure[0] = '\0';
    job->phase = vmm_replica_phase_CONNECT;
    code = -pthread_create(&job->thread, NULL, job_main, job);
    job->has_thread = code == 0;
    if (code < 0) {
        job->phase = vmm_replica_phase_FAILED;
        return error_errno(err, code, "cannot make a thread");
    }
    return 0;
}

void machine_replica_end(struct machine *m, uint64_t session)
{
    struct replica_job *job = job_of(m);
    job->over = MAX(job->over, session);
    if (session < job->order.session || job->phase == vmm_replica_phase_NONE)
        return;
    __atomic_store_n(&job->cancel, true, __ATOMIC_RELEASE);
    machine_mirrors_replica_end(m);
    log_info("replica-over", "vm=%s session=%llu", m->config->name, (unsigned long long)job->order.session);
    job->phase = vmm_replica_phase_NONE;
}

void machine_replica_report(struct machine *m, struct vmm_replica *ret_report)
{
    const struct replica_job *job = m->replica;
    struct mirror_progress p;
    uint64_t left = 0, copied = 0;
    OBJECT_SET(vmm_replica, ret_report, phase, job != NULL ? job->phase : vmm_replica_phase_NONE);
    if (job == NULL)
        return;
    for (unsigned i = 0; i < PCI_SLOTS && is_under_way(job); i++)
        if (machine_mirror_progress(m, &m->slots.slots[i], &p, NULL)) {
            left += p.left_bytes;
            copied += p.copied_bytes;
        }
    OBJECT_SET(vmm_replica, ret_report, session, job->order.session);
    OBJECT_SET(vmm_replica, ret_report, left_bytes, left);
    OBJECT_SET(vmm_replica, ret_report, copied_bytes, copied);
    if (job->failure[0] != '\0')
        OBJECT_TEXT(vmm_replica, ret_report, failure, job->failure);
}

void replica_job_destroy(struct replica_job *job)
{
    if (job == NULL)
        return;
    __atomic_store_n(&job->cancel, true, __ATOMIC_RELEASE);
    machine_mirrors_replica_break(job->machine);
    control_gate_close(&job->gate);
    if (job->has_thread)
        pthread_join(job->thread, NULL);
    control_gate_finish(&job->gate);
    OBJECT_CLEAR(vmm_replica_order, &job->order);
    free(job);
}
