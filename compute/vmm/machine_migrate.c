/* One migration at a time (machine_migrate.h). */
#include "compute/vmm/machine_migrate.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include "common/log.h"
#include "compute/vmm/guest_ops.h"
#include "compute/vmm/machine_fill.h"
#include "compute/vmm/machine_mirror.h"
#include "compute/vmm/machine_backup.h"
#include "compute/vmm/machine_state.h"
#include "migration/migrate_sender.h"

struct waiter {
    void (*done)(void *arg);
    void *arg;
};

enum { DISKS_LOOK_MS = 50, CONNECT_PAUSE_MS = 20 };

struct migrate_job {
    struct machine *machine;
    struct control_gate gate;
    struct machine_guest guest;
    struct migrate_sender *sender; /* of the current or last one */
    char path[sizeof(((struct sockaddr_un *)NULL)->sun_path)];
    pthread_t thread;
    bool active;
    struct vmm_migration_order order; /* of the current one; cleared with it */
    struct machine_mirror *link;      /* of the disk that is begun with; the thread's, and the loop's while that waits */
    size_t disk;                      /* its place in order.disks */
    char disks_path[sizeof(((struct sockaddr_un *)NULL)->sun_path)];
    bool cancel;               /* atomic: while disks are copied */
    uint64_t began_us;         /* of migrate_now_us(): the order's time counts from there */
    pthread_mutex_t lock;      /* guards what follows */
    enum migrate_phase phase;  /* DISKS while they are copied, FAILED or CANCELLED where it ended there; else IDLE */
    uint64_t disk_left_bytes, disk_copied_bytes;
    struct waiter waiters[MACHINE_MIGRATE_WAITERS_MAX];
    unsigned waiting;
    /* Written by the thread, read by the loop once it was posted. */
    int code;
    struct error err;
};

/* ---- those who wait, on the control loop ---- */

static void waiters_end(struct migrate_job *job)
{
    while (job->waiting > 0) {
        struct waiter waiter = job->waiters[--job->waiting];
        waiter.done(waiter.arg);
    }
}

static void on_asks(void *arg)
{
    waiters_end(arg);
}

int machine_migrate_wait(struct machine *m, void (*done)(void *arg), void *arg, struct error *err)
{
    struct migrate_job *job = m->migrate;
    struct migrate_progress p = machine_migrate_progress(m);
    bool asks = ((p.phase == MIGRATE_PHASE_READY || p.phase == MIGRATE_PHASE_UNKNOWN) && !p.decided) || p.asks_pause;
    if (!machine_migrate_is_active(m) || asks)
        return 1;
    if (job->waiting == MACHINE_MIGRATE_WAITERS_MAX)
        return error_set(err, -EBUSY, ERROR_OVERLOAD, "%d wait for the migration already", MACHINE_MIGRATE_WAITERS_MAX);
    job->waiters[job->waiting++] = (struct waiter){done, arg};
    return 0;
}

/* ---- what the sender asks for, on its thread ---- */

static void job_asks(void *arg)
{
    struct migrate_job *job = arg;
    io_loop_post(job->machine->control, on_asks, job);
}

/* Whoever listens and does not accept must not hold this thread: the control loop waits for its end when the VMM is to
 * end. A Unix socket does not become writable when there is room again (unix(7)), so it is tried. */
static int job_connect(void *arg, struct error *err)
{
    struct migrate_job *job = arg;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const struct timespec pause = {.tv_nsec = CONNECT_PAUSE_MS * 1000000l};
    memcpy(address.sun_path, job->path, sizeof(address.sun_path));
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_errno(err, -errno, "cannot make a socket");
    for (unsigned waited_ms = 0; connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0;) {
        if (errno != EAGAIN)
            return error_errno(err, -errno, "cannot connect to the target at %s", job->path);
        if (__atomic_load_n(&job->cancel, __ATOMIC_ACQUIRE))
            return error_set(err, -ECANCELED, ERROR_CANCELLED, "the migration was cancelled");
        if ((waited_ms += CONNECT_PAUSE_MS) > MACHINE_MIGRATE_CONNECT_MS)
            return error_set(err, -ETIMEDOUT, ERROR_TIMEOUT, "the target at %s has not taken a connection within %d ms",
                             job->path, MACHINE_MIGRATE_CONNECT_MS);
        nanosleep(&pause, NULL);
    }
    int connected = fd;
    fd = -1;
    return connected;
}

/* ---- disks that go along ---- */

static int do_disk_begin(void *arg, struct error *err)
{
    struct migrate_job *job = arg;
    const struct vmm_migration_disk *disk = (const struct vmm_migration_disk *)job->order.disks.items + job->disk;
    struct machine_slot *slot = machine_slot_find(job->machine, SLOT_DISK, disk->id, err);
    uint64_t share = job->order.bytes_per_second / job->order.disks.count;
    if (job->order.bytes_per_second != 0)
        share = MAX(share, UINT64_C(1));
    return slot ? machine_mirror_begin(job->machine, slot, TAKE_PTR(job->link), disk, share, err) : -ENOENT;
}

/* While disks are copied; the sender looks for itself. */
static int may_go_on(struct migrate_job *job, struct error *err)
{
    uint64_t left_bytes;
    if (__atomic_load_n(&job->cancel, __ATOMIC_ACQUIRE))
        return error_set(err, -ECANCELED, ERROR_CANCELLED, "the migration was cancelled");
    if (job->order.timeout_ms == 0 || migrate_now_us() - job->began_us < job->order.timeout_ms * 1000)
        return 0;
    pthread_mutex_lock(&job->lock);
    left_bytes = job->disk_left_bytes;
    pthread_mutex_unlock(&job->lock);
    return error_set(err, -ETIMEDOUT, ERROR_TIMEOUT,
                     "its disks were not copied within %llu ms: %llu MiB are left; allow more time or more bandwidth",
                     (unsigned long long)job->order.timeout_ms, (unsigned long long)((left_bytes + 1048575) >> 20));
}

static int disks_begin(struct migrate_job *job, struct error *err)
{
    const struct vmm_migration_disk *disks = job->order.disks.items;
    int code = 0;
    for (job->disk = 0; code == 0 && job->disk < job->order.disks.count; job->disk++) {
        code = may_go_on(job, err);
        if (code == 0)
            code = machine_mirror_link(job->machine, &disks[job->disk], job->disks_path, &job->link, err);
        if (code == 0)
            code = control_gate_run(&job->gate, do_disk_begin, job, err);
        machine_mirror_unlink(TAKE_PTR(job->link));
    }
    return code;
}

struct disks_look {
    struct migrate_job *job;
    bool is_level;
};

static int do_disks_look(void *arg, struct error *err)
{
    struct disks_look *look = arg;
    struct migrate_job *job = look->job;
    uint64_t left, copied;
    int code = machine_mirrors_look(job->machine, &left, &copied, &look->is_level, err);
    pthread_mutex_lock(&job->lock);
    job->disk_left_bytes = left;
    job->disk_copied_bytes = copied;
    pthread_mutex_unlock(&job->lock);
    return code;
}

/* Both sides hold the same and nobody writes: the links have done their work. Whatever becomes of the migration from here
 * on, the guest waits for no other host when it runs again. */
static int do_disks_settle(void *arg, struct error *err)
{
    int code = machine_mirrors_settle(arg, err);
    machine_mirrors_end(arg);
    return code;
}

static int job_settle(void *arg, struct error *err)
{
    struct migrate_job *job = arg;
    return job->order.disks.count ? control_gate_run(&job->gate, do_disks_settle, job->machine, err) : 0;
}

/* Until both sides hold the same; from then on every write goes to both. */
static int disks_copy(struct migrate_job *job, struct error *err)
{
    struct disks_look look = {.job = job};
    int code = disks_begin(job, err);
    while (code == 0 && !look.is_level) {
        struct timespec pause = {.tv_nsec = DISKS_LOOK_MS * 1000000};
        nanosleep(&pause, NULL);
        code = control_gate_run(&job->gate, do_disks_look, &look, err);
        if (code == 0)
            code = may_go_on(job, err);
    }
    return code;
}

static void job_phase_set(struct migrate_job *job, enum migrate_phase phase)
{
    pthread_mutex_lock(&job->lock);
    job->phase = phase;
    pthread_mutex_unlock(&job->lock);
}

static bool job_is_paused(void *arg)
{
    return ((struct migrate_job *)arg)->guest.was_paused;
}

/* The target may be given them by the cluster alone, and this process be gone or asleep by then: a lock that a file server keeps
 * for it would be in the way, and a map that it wrote when it wakes would be of yesterday. */
static int do_release(void *arg, struct error *err)
{
    return machine_slots_release(arg, err);
}

static int do_let_go(void *arg, struct error *err)
{
    return machine_slots_own(arg, false, err);
}

/* Those that were let go before one failed are taken as well: a lock that is held is held twice as well. */
static int do_take_back(void *arg, struct error *err)
{
    return machine_slots_own(arg, true, err);
}

static int job_release(void *arg, struct error *err)
{
    struct migrate_job *job = arg;
    return control_gate_run(&job->gate, do_release, job->machine, err);
}

static int job_let_go(void *arg, struct error *err)
{
    struct migrate_job *job = arg;
    return control_gate_run(&job->gate, do_let_go, job->machine, err);
}

static int job_take_back(void *arg, struct error *err)
{
    struct migrate_job *job = arg;
    return control_gate_run(&job->gate, do_take_back, job->machine, err);
}

/* ---- its end, on the control loop ---- */

static void on_end(void *arg)
{
    struct migrate_job *job = arg;
    struct machine *m = job->machine;
    struct migrate_progress p = migrate_sender_progress(job->sender);
    char quoted[640];
    pthread_join(job->thread, NULL);
    job->active = false;
    if (job->code < 0)
        log_warning("migration-failed", "vm=%s rounds=%u bytes=%llu pause_us=%llu error=%s", m->config->name, p.rounds,
                    (unsigned long long)p.sent_bytes, (unsigned long long)p.downtime_us,
                    log_quote(job->err.text, quoted, sizeof(quoted)));
    else
        log_info("migrated", "vm=%s rounds=%u bytes=%llu pause_us=%llu total_us=%llu", m->config->name, p.rounds,
                 (unsigned long long)p.sent_bytes, (unsigned long long)p.downtime_us, (unsigned long long)p.total_us);
    if (job->code == 0)
        machine_leave(m);
    else
        machine_mirrors_end(m);
    waiters_end(job);
}

static void *job_main(void *arg)
{
    struct migrate_job *job = arg;
    job->code = 0;
    if (job->order.disks.count) {
        job->code = disks_copy(job, &job->err);
        job_phase_set(job, job->code == 0            ? MIGRATE_PHASE_IDLE
                           : job->code == -ECANCELED ? MIGRATE_PHASE_CANCELLED
                                                     : MIGRATE_PHASE_FAILED);
    }
    if (job->code == 0)
        job->code = migrate_sender_run(job->sender, &job->err);
    io_loop_post(job->machine->control, on_end, job);
    return NULL;
}

/* ---- its beginning ---- */

static uint64_t or_default(uint64_t value, uint64_t otherwise)
{
    return value ? value : otherwise;
}

STATIC_ASSERT((int)PRECOPY_POSTCOPY_FALLBACK == (int)vmm_postcopy_FALLBACK &&
                  (int)PRECOPY_POSTCOPY_AT_ONCE == (int)vmm_postcopy_AT_ONCE,
              "precopy.h and the schema agree");

static void options_fill(struct migrate_job *job, const struct vmm_migration_order *order,
                         struct migrate_sender_options *o)
{
    bool has_throttle = OBJECT_HAS(vmm_migration_order, order, throttle_max);
    unsigned throttle_max = order->postcopy == vmm_postcopy_NEVER ? PRECOPY_THROTTLE_MAX_DEFAULT
                                                                  : PRECOPY_THROTTLE_MAX_POSTCOPY;
    *o = (struct migrate_sender_options){
        .precopy = {.downtime_us = or_default(order->downtime_ms * 1000, PRECOPY_DOWNTIME_US_DEFAULT),
                    .downtime_max_us = order->downtime_max_ms * 1000,
                    .fixed_us = PRECOPY_FIXED_US_DEFAULT,
                    .total_us_max = order->timeout_ms * 1000,
                    .throttle_max = has_throttle ? order->throttle_max : throttle_max,
                    .throttle_max_alone = has_throttle ? order->throttle_max : PRECOPY_THROTTLE_MAX_DEFAULT,
                    .patience = PRECOPY_PATIENCE_DEFAULT,
                    .postcopy = (enum precopy_postcopy)order->postcopy},
        .channels = MAX(order->connections, 1u),
        .bytes_per_s_max = order->bytes_per_second,
        .plain = order->plain,
        .verify = order->verify,
        .ask_owner = order->ask_owner,
        .ask_pause = order->ask_pause,
        .began_us = job->began_us,
        .patience_ms = (unsigned)or_default(order->silence_ms, MIGRATE_PATIENCE_MS_DEFAULT),
        .stop_patience_ms = (unsigned)or_default(order->stop_silence_ms, MIGRATE_STOP_PATIENCE_MS_DEFAULT),
        .connect = job_connect,
        .is_paused = job_is_paused,
        .settle = job_settle,
        .release = job_release,
        .let_go = job_let_go,
        .take_back = job_take_back,
        .asks = job_asks,
        .arg = job};
    if (order->hand_over) {
        o->hand_over = true;
        o->channels = 1;
        o->verify = false; /* it is the same memory */
        o->precopy.postcopy = PRECOPY_POSTCOPY_NEVER;
    }
    o->precopy.fixed_us = MIN(o->precopy.fixed_us, o->precopy.downtime_us / 2);
}

static struct migrate_job *job_of(struct machine *m)
{
    if (!m->migrate) {
        m->migrate = NEW(struct migrate_job);
        m->migrate->machine = m;
        pthread_mutex_init(&m->migrate->lock, NULL);
        control_gate_init(&m->migrate->gate, m->control);
        machine_guest_init(&m->migrate->guest, m, &m->migrate->gate);
    }
    return m->migrate;
}

static int path_take(char path[sizeof(((struct sockaddr_un *)NULL)->sun_path)], const char *to, const char *field,
                     struct error *err)
{
    const size_t path_bytes = sizeof(((struct sockaddr_un *)NULL)->sun_path);
    static const char scheme[] = "unix:";
    size_t skip = sizeof(scheme) - 1, length = strlen(to);
    if (strncmp(to, scheme, skip) != 0 || to[skip] != '/' || length - skip >= path_bytes)
        return error_set_field(err, -EINVAL, ERROR_INVALID, field,
                               "a target is unix:/PATH of at most %zu bytes, not \"%.100s\"", path_bytes - 1, to);
    memset(path, 0, path_bytes);
    memcpy(path, to + skip, length - skip);
    return 0;
}

int machine_migrate_begin(struct machine *m, const struct vmm_migration_order *order, struct error *err)
{
    struct migrate_sender_options options;
    struct machine_description description = {0};
    int code = machine_changeable(m, err);
    if (code == 0)
        code = machine_fill_check(m, err);
    if (code < 0)
        return code;
    if (m->frozen || (m->state != MACHINE_RUNNING && m->state != MACHINE_PAUSED))
        return error_set(err, -EINVAL, ERROR_CONFLICT, "the VM is %s and cannot be migrated",
                         m->frozen ? "being saved" : machine_state_name(m->state));
    if (machine_backup_is_active(m))
        return error_set(err, -EBUSY, ERROR_CONFLICT, "a backup of the VM is under way; wait for its end, or cancel it");
    if (machine_mirror_is_active(m))
        return error_set(err, -EBUSY, ERROR_CONFLICT, "a disk of the VM is being moved; wait for its end, or cancel it");
    if (order->disks.count && !order->disks_to)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/disks_to", "say where the target takes the disks' content");
    if (order->disks.count && order->hand_over)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/hand_over", "on the same host disks stay where they are");
    struct migrate_job *job = job_of(m);
    code = path_take(job->path, order->to, "/to", err);
    if (code == 0 && order->disks.count)
        code = path_take(job->disks_path, order->disks_to, "/disks_to", err);
    if (code < 0)
        return code;
    OBJECT_CLEAR(vmm_migration_order, &job->order);
    OBJECT_COPY(vmm_migration_order, &job->order, order);
    job->cancel = false;
    job->phase = order->disks.count ? MIGRATE_PHASE_DISKS : MIGRATE_PHASE_IDLE;
    job->disk_left_bytes = job->disk_copied_bytes = 0;
    job->began_us = migrate_now_us();
    options_fill(job, order, &options);
    migrate_sender_destroy(job->sender);
    machine_description_fill(m, &description);
    job->sender = migrate_sender_create(&job->guest.guest, &description, &options);
    OBJECT_CLEAR(machine_description, &description);
    job->code = 0;
    job->err = (struct error){0};
    code = -pthread_create(&job->thread, NULL, job_main, job);
    if (code < 0)
        return error_errno(err, code, "cannot start a thread");
    pthread_setname_np(job->thread, "migrate");
    job->active = true;
    return 0;
}

/* ---- while it lasts ---- */

bool machine_migrate_is_active(const struct machine *m)
{
    return m->migrate && m->migrate->active;
}

struct migrate_progress machine_migrate_progress(const struct machine *m)
{
    struct migrate_job *job = m->migrate;
    if (job && job->sender) {
        struct migrate_progress p = migrate_sender_progress(job->sender);
        pthread_mutex_lock(&job->lock);
        if (job->phase != MIGRATE_PHASE_IDLE)
            p.phase = job->phase;
        p.disk_left_bytes = job->disk_left_bytes;
        p.disk_copied_bytes = job->disk_copied_bytes;
        pthread_mutex_unlock(&job->lock);
        if (!job->active && job->code < 0 && p.failure.code == 0)
            p.failure = job->err;
        return p;
    }
    return (struct migrate_progress){.phase = MIGRATE_PHASE_IDLE};
}

static int none(struct error *err)
{
    return error_set(err, -EINVAL, ERROR_CONFLICT, "no migration of the VM is under way");
}

int machine_migrate_cancel(struct machine *m, struct error *err)
{
    if (machine_migrate_is_active(m))
        __atomic_store_n(&m->migrate->cancel, true, __ATOMIC_RELEASE);
    return machine_migrate_is_active(m) ? migrate_sender_cancel(m->migrate->sender, err) : none(err);
}

int machine_migrate_permit(struct machine *m, struct error *err)
{
    return machine_migrate_is_active(m) ? migrate_sender_permit(m->migrate->sender, err) : none(err);
}

int machine_migrate_decide(struct machine *m, enum migrate_outcome outcome, uint64_t epoch, struct error *err)
{
    return machine_migrate_is_active(m) ? migrate_sender_decide(m->migrate->sender, outcome, epoch, err) : none(err);
}

void migrate_job_destroy(struct migrate_job *job)
{
    if (!job)
        return;
    if (job->active) {
        __atomic_store_n(&job->cancel, true, __ATOMIC_RELEASE);
        migrate_sender_abandon(job->sender);
        control_gate_close(&job->gate);
        pthread_join(job->thread, NULL);
    }
    waiters_end(job);
    migrate_sender_destroy(job->sender);
    machine_guest_finish(&job->guest);
    control_gate_finish(&job->gate);
    OBJECT_CLEAR(vmm_migration_order, &job->order);
    pthread_mutex_destroy(&job->lock);
    free(job);
}
