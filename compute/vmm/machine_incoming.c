/* The receiver's thread, and what it asks of the control loop (machine_incoming.h). */
#include "compute/vmm/machine_incoming.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/log.h"
#include "compute/vmm/guest_ops.h"
#include "compute/vmm/machine_snapshot.h"
#include "compute/vmm/machine_state.h"
#include "compute/vmm/nbd_listener.h"
#include "compute/vmm/unix_socket.h"
#include "migration/migrate_receiver.h"

enum { OWN_PAUSE_MS = 20, OWN_TRIES_LOGGED = 250 };

struct incoming_job {
    struct machine *machine;
    struct control_gate gate;
    struct machine_guest guest;
    struct migrate_receiver *receiver;
    int listen_fd;
    char *path;
    pthread_t thread;
    bool active;
    bool paused; /* its user had paused it */
    uint64_t epoch;
    struct stream_states *states; /* during load */
    struct nbd_export exports[PCI_SLOTS]; /* disks that are filled from outside */
    unsigned export_count;
    struct nbd_listener *disks; /* NULL: none, or they are complete */
    /* Written by the thread, read by the loop once it was posted. */
    int code;
    struct error err;
};

/* ---- on the control loop, the receiver waiting ---- */

static int states_load(void *arg, struct machine *m, struct error *err)
{
    struct incoming_job *job = arg;
    return machine_state_load(m, job->states, err);
}

/* What has come is whole and lasts: the source has said so before it sent its last word. */
static void disks_close(struct incoming_job *job)
{
    struct machine *m = job->machine;
    pthread_mutex_lock(&m->device_lock);
    nbd_listener_destroy(TAKE_PTR(job->disks));
    pthread_mutex_unlock(&m->device_lock);
}

static int do_load(void *arg, struct error *err)
{
    struct incoming_job *job = arg;
    struct machine *m = job->machine;
    disks_close(job);
    __atomic_store_n(&m->filled, true, __ATOMIC_RELEASE);
    for (unsigned i = 0; i < PCI_SLOTS && !m->options.handed_over && !migrate_receiver_released(job->receiver); i++)
        if (m->slots.slots[i].kind == SLOT_DISK && m->slots.slots[i].disk.shared && !m->slots.slots[i].disk.copied)
            return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                             "disk %s is where both hosts reach it, and the source's VMM is too old to let go of it in time; `drover vm upgrade` "
                             "it first, then migrate it",
                             m->slots.slots[i].disk.path);
    int code = machine_start_restored(m, states_load, job, true, err);
    m->frozen = code == 0; /* nobody but the hand-over lets it run */
    return code;
}

static int do_own(void *arg, struct error *err)
{
    struct incoming_job *job = arg;
    return machine_slots_own(job->machine, true, err);
}

static int do_run(void *arg, struct error *err)
{
    struct incoming_job *job = arg;
    struct machine *m = job->machine;
    if (migrate_receiver_released(job->receiver))
        machine_slots_released(m);
    int code = machine_slots_own(m, true, err); /* what is held is held twice as well */
    if (code < 0)
        return code;
    for (unsigned i = 0; i < PCI_SLOTS; i++)
        if (m->slots.slots[i].kind == SLOT_DISK)
            OBJECT_SET(vmm_disk, &m->slots.slots[i].disk, copied, false);
    m->options.incoming = false; /* disks that are plugged from now on are its own */
    m->frozen = false;
    if (!job->paused)
        code = machine_resume(m, err);
    if (code == 0)
        migrate_receiver_runs(job->receiver); /* before this loop can be told to end it */
    if (code == 0)
        machine_restore_announce(m);
    return code;
}

/* ---- on the receiver's thread ---- */

static int job_fits(void *arg, const struct machine_description *source, struct error *err)
{
    struct incoming_job *job = arg;
    return machine_description_check(source, job->machine->config, err);
}

static int job_load(void *arg, struct stream_states *states, bool paused, struct error *err)
{
    struct incoming_job *job = arg;
    job->states = states;
    job->paused = paused;
    return control_gate_run(&job->gate, do_load, job, err);
}

/* The owner may have said so before the source, which is slow, held or on a host that is gone, has let go of the disks: then it
 * is only a matter of time, for whoever says so in a cluster ends the source as well. The guest's memory is worth the wait. So it
 * is where this host's lease does not speak of the VM yet (-EAGAIN): without it nothing that other hosts reach is touched. */
static int job_run(void *arg, uint64_t epoch, struct error *err)
{
    struct incoming_job *job = arg;
    const struct timespec pause = {.tv_nsec = OWN_PAUSE_MS * 1000000l};
    job->epoch = epoch;
    int code = control_gate_run(&job->gate, do_run, job, err);
    for (unsigned tries = 1; (code == -EBUSY || code == -EAGAIN) && epoch != 0; tries++) {
        if (tries % OWN_TRIES_LOGGED == 1)
            log_warning("disks-not-free", "vm=%s tries=%u error=\"%.300s\"", job->machine->config->name, tries,
                        err ? err->text : "");
        nanosleep(&pause, NULL);
        code = control_gate_run(&job->gate, do_run, job, err);
    }
    return code;
}

static int job_own(void *arg, uint64_t epoch, struct error *err)
{
    struct incoming_job *job = arg;
    (void)epoch;
    return control_gate_run(&job->gate, do_own, job, err);
}

static void job_stall(void *arg, bool stalled)
{
    struct incoming_job *job = arg;
    struct migrate_progress p = migrate_receiver_progress(job->receiver);
    char quoted[640];
    machine_stall(job->machine, stalled);
    if (stalled)
        log_warning("migration-source-lost", "vm=%s pages_lacking=%llu", job->machine->config->name,
                    (unsigned long long)migrate_receiver_lacking(job->receiver));
    else
        log_info("migration-source-back", "vm=%s was=%s", job->machine->config->name,
                 log_quote(p.failure.text, quoted, sizeof(quoted)));
}

static void on_end(void *arg)
{
    struct incoming_job *job = arg;
    struct machine *m = job->machine;
    char why[512];
    pthread_join(job->thread, NULL);
    job->active = false;
    unlink(job->path);
    free(TAKE_PTR(job->path));
    if (job->code == 0) {
        log_info("migrated-here", "vm=%s epoch=%llu total_us=%llu", m->config->name, (unsigned long long)job->epoch,
                 (unsigned long long)migrate_receiver_progress(job->receiver).total_us);
        return;
    }
    snprintf(why, sizeof(why), "the migration to here failed: %.440s", job->err.text);
    machine_fail(m, why);
}

static void *job_main(void *arg)
{
    struct incoming_job *job = arg;
    job->code = migrate_receiver_run(job->receiver, &job->err);
    io_loop_post(job->machine->control, on_end, job);
    return NULL;
}

/* ---- its beginning and end ---- */

static int address_check(const char *to, struct error *err)
{
    static const char scheme[] = "unix:";
    if (strncmp(to, scheme, sizeof(scheme) - 1) != 0 || to[sizeof(scheme) - 1] != '/')
        return error_set(err, -EINVAL, ERROR_INVALID, "a migration comes in at unix:/PATH, not at \"%.100s\"", to);
    return 0;
}

static int disks_listen(struct incoming_job *job, const char *to, struct error *err)
{
    struct machine *m = job->machine;
    int code = address_check(to, err);
    if (code < 0)
        return code;
    pthread_mutex_lock(&m->device_lock);
    for (unsigned i = 0; i < PCI_SLOTS; i++) {
        const struct machine_slot *slot = &m->slots.slots[i];
        if (slot->kind == SLOT_DISK && slot->disk.copied)
            job->exports[job->export_count++] = (struct nbd_export){
                .name = slot->id, .block = blk_of_virtio(slot->virtio)->block, .access = NBD_ACCESS_WRITE};
    }
    if (job->export_count)
        code = nbd_listener_create(strchr(to, '/'), job->exports, job->export_count, m->io, NULL, NULL, &job->disks, err);
    pthread_mutex_unlock(&m->device_lock);
    return code;
}

int machine_incoming_start(struct machine *m, const char *to, const char *disks_to, struct error *err)
{
    static const char scheme[] = "unix:";
    int fd;
    if (address_check(to, err) < 0)
        return -EINVAL;
    int code = unix_socket_listen(to + sizeof(scheme) - 1, "the migration socket", "", &fd, err);
    if (code < 0)
        return code;
    struct incoming_job *job = m->incoming = NEW(struct incoming_job);
    job->machine = m;
    job->listen_fd = fd;
    job->path = xstrdup(to + sizeof(scheme) - 1);
    control_gate_init(&job->gate, m->control);
    machine_guest_init(&job->guest, m, &job->gate);
    struct migrate_receiver_options options = {
        .listen_fd = fd, .patience_ms = 60000, .fits = job_fits, .load = job_load, .run = job_run, .stall = job_stall,
        .handed_over = m->options.handed_over, .own = job_own, .fault_fd = m->options.fault_fd, .arg = job};
    job->receiver = migrate_receiver_create(&job->guest.guest, &options);
    code = disks_to ? disks_listen(job, disks_to, err) : 0;
    if (code < 0)
        return code;
    code = -pthread_create(&job->thread, NULL, job_main, job);
    if (code < 0)
        return error_errno(err, code, "cannot start a thread");
    pthread_setname_np(job->thread, "incoming");
    job->active = true;
    return 0;
}

struct migrate_progress machine_incoming_progress(const struct machine *m)
{
    if (m->incoming)
        return migrate_receiver_progress(m->incoming->receiver);
    return (struct migrate_progress){.phase = MIGRATE_PHASE_IDLE};
}

int machine_incoming_decide(struct machine *m, enum migrate_outcome outcome, uint64_t epoch, struct error *err)
{
    if (!machine_incoming_is_active(m))
        return error_set(err, -EINVAL, ERROR_CONFLICT, "no migration of the VM is under way");
    return migrate_receiver_decide(m->incoming->receiver, outcome, epoch, err);
}

bool machine_incoming_is_active(const struct machine *m)
{
    return m->incoming && m->incoming->active;
}

uint64_t machine_incoming_epoch(const struct machine *m)
{
    return m->incoming ? m->incoming->epoch : 0;
}

bool machine_incoming_lacks_memory(const struct machine *m)
{
    return m->incoming && migrate_receiver_lacking(m->incoming->receiver) > 0;
}

void machine_incoming_unlink(const struct machine *m)
{
    if (m->incoming && m->incoming->path)
        unlink(m->incoming->path);
}

void incoming_job_destroy(struct incoming_job *job)
{
    if (!job)
        return;
    if (job->active) {
        migrate_receiver_cancel(job->receiver);
        control_gate_close(&job->gate);
        pthread_join(job->thread, NULL);
    }
    if (job->path)
        unlink(job->path);
    disks_close(job);
    migrate_receiver_destroy(job->receiver);
    machine_guest_finish(&job->guest);
    control_gate_finish(&job->gate);
    close_fd(&job->listen_fd);
    free(job->path);
    free(job);
}
