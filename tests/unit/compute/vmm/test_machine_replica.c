/* Sessions with a replica: which phase follows which, when the guest waits and who alone lets it go on, with mirrors and disks of the test's
 * own, on a real control loop and the session's own thread. THREADED. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "compute/vmm/machine_backup.h"
#include "compute/vmm/machine_fill.h"
#include "compute/vmm/machine_mirror.h"
#include "compute/vmm/machine_replica.h"

enum { ROOT = 3, DATA = 5, SESSION = 7, DEADLINE_S = 60, ROUND_MS = 1000 };

struct machine_mirror {
    char disk[24];
};

/* In the place of machine_mirror.c: what it is asked, and what it answers. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool may_link, broken; /* guarded by the lock: the session's thread asks */
    int link_code;
    unsigned links, links_alive, count;
    uint32_t patience_ms;

    char replicated[64]; /* names of disks, in the order asked for */
    int replicate_code, look_code, guard_code;
    bool level, lasts;
    unsigned guards, ends, looks;
} mirror = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static struct {
    bool backup, moves;
    int changeable, whole;
} others;

int machine_mirror_link_replica(struct machine *m UNUSED, const char *disk, const struct vmm_replica_order *order,
                                struct machine_mirror **ret_link, struct error *err)
{
    pthread_mutex_lock(&mirror.lock);
    mirror.links++;
    mirror.patience_ms = order->patience_ms;
    pthread_cond_broadcast(&mirror.changed);
    while (!mirror.may_link && !mirror.broken)
        pthread_cond_wait(&mirror.changed, &mirror.lock);
    int code = mirror.broken ? -EIO : mirror.link_code;
    mirror.links_alive += code == 0;
    pthread_mutex_unlock(&mirror.lock);
    if (code < 0)
        return error_set(err, code, ERROR_INTERNAL, "no way to %s", disk);
    *ret_link = NEW(struct machine_mirror);
    snprintf((*ret_link)->disk, sizeof (*ret_link)->disk, "%s", disk);
    return 0;
}

void machine_mirror_unlink(struct machine_mirror *link)
{
    pthread_mutex_lock(&mirror.lock);
    mirror.links_alive -= link != NULL;
    pthread_mutex_unlock(&mirror.lock);
    free(link);
}

int machine_mirror_replicate(struct machine *m UNUSED, struct machine_slot *slot, struct machine_mirror *link,
                             const struct vmm_replica_order *order UNUSED, struct error *err)
{
    assert_string_equal(link->disk, slot->id);
    snprintf(mirror.replicated + strlen(mirror.replicated), sizeof mirror.replicated - strlen(mirror.replicated), "%s ", slot->id);
    machine_mirror_unlink(link);
    return mirror.replicate_code < 0 ? error_set(err, mirror.replicate_code, ERROR_INTERNAL, "no mirror") : 0;
}

int machine_mirrors_replica_look(struct machine *m UNUSED, unsigned count, bool *ret_level, bool *ret_lasts, struct error *err)
{
    mirror.looks++;
    assert_int_equal(count, mirror.count);
    *ret_level = mirror.level;
    *ret_lasts = mirror.lasts;
    return mirror.look_code < 0 ? error_set(err, mirror.look_code, ERROR_INTERNAL, "the link is gone") : 0;
}

int machine_mirrors_replica_guard(struct machine *m UNUSED, struct error *err)
{
    mirror.guards++;
    return mirror.guard_code < 0 ? error_set(err, mirror.guard_code, ERROR_INTERNAL, "it is silent") : 0;
}

void machine_mirrors_replica_break(struct machine *m UNUSED)
{
    pthread_mutex_lock(&mirror.lock);
    mirror.broken = true;
    pthread_cond_broadcast(&mirror.changed);
    pthread_mutex_unlock(&mirror.lock);
}

void machine_mirrors_replica_end(struct machine *m UNUSED)
{
    mirror.ends++;
}

bool machine_mirror_progress(struct machine *m UNUSED, const struct machine_slot *slot, struct mirror_progress *ret_progress,
                             char *ret_failure UNUSED)
{
    *ret_progress = (struct mirror_progress){.left_bytes = slot->number, .copied_bytes = 100 * slot->number};
    return slot->kind == SLOT_DISK;
}

bool machine_mirror_is_active(const struct machine *m UNUSED)
{
    return others.moves;
}

bool machine_backup_is_active(const struct machine *m UNUSED)
{
    return others.backup;
}

int machine_changeable(const struct machine *m UNUSED, struct error *err)
{
    return others.changeable < 0 ? error_set(err, others.changeable, ERROR_CONFLICT, "it is being migrated") : 0;
}

int machine_fill_check(struct machine *m UNUSED, struct error *err)
{
    return others.whole < 0 ? error_set(err, others.whole, ERROR_CONFLICT, "its disks are not whole") : 0;
}

struct machine_slot *machine_slot_find(struct machine *m, enum slot_kind kind, const char *id, struct error *err)
{
    for (unsigned i = 0; i < PCI_SLOTS; i++)
        if (m->slots.slots[i].kind == kind && strcmp(m->slots.slots[i].id, id) == 0)
            return &m->slots.slots[i];
    error_set(err, -ENOENT, ERROR_NOT_FOUND, "there is no %s", id);
    return NULL;
}

/* ---- the machine ---- */

struct fixture {
    struct vmm_config config;
    struct machine machine;
    struct error err;
};

static void disk_add(struct machine *m, unsigned number, const char *id, bool read_only, bool detached)
{
    struct machine_slot *slot = &m->slots.slots[number];
    *slot = (struct machine_slot){.kind = SLOT_DISK, .number = number, .detached = detached, .disk = {.read_only = read_only}};
    snprintf(slot->id, sizeof slot->id, "%s", id);
}

static int setup(void **state)
{
    struct fixture *f = NEW(struct fixture);
    struct machine *m = &f->machine;
    alarm(DEADLINE_S); /* nothing here takes a second */
    mirror.may_link = mirror.broken = mirror.level = mirror.lasts = false;
    mirror.link_code = mirror.replicate_code = mirror.look_code = mirror.guard_code = 0;
    mirror.links = mirror.links_alive = mirror.guards = mirror.ends = mirror.looks = 0;
    mirror.replicated[0] = '\0';
    mirror.count = 2;
    memset(&others, 0, sizeof others);
    f->config.name = (char *)(uintptr_t)"web";
    m->config = &f->config;
    pthread_mutex_init(&m->device_lock, NULL);
    assert_int_equal(io_loop_create(&m->device_lock, &m->control, NULL), 0);
    disk_add(m, ROOT, "root", false, false);
    disk_add(m, ROOT + 1, "cd", true, false);
    disk_add(m, DATA, "data", false, false);
    disk_add(m, DATA + 1, "gone", false, true);
    m->slots.slots[DATA + 2].kind = SLOT_NIC;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    replica_job_destroy(f->machine.replica);
    assert_int_equal(mirror.links_alive, 0);
    io_loop_destroy(f->machine.control);
    pthread_mutex_destroy(&f->machine.device_lock);
    free(f);
    alarm(0);
    return 0;
}

/* @disk: of that one alone; NULL: of all. */
static int begin_of(struct fixture *f, uint64_t session, const char *disk)
{
    struct vmm_replica_order order = {.session = 0};
    if (disk != NULL) {
        order.disks.items = xcalloc(1, sizeof *order.disks.items);
        order.disks.items[order.disks.count++] = xstrdup(disk);
        object_mark(&vmm_replica_order_desc, &order, "disks");
    }
    OBJECT_SET(vmm_replica_order, &order, session, session);
    OBJECT_TEXT(vmm_replica_order, &order, path, "/run/x.sock");
    OBJECT_TEXT(vmm_replica_order, &order, keep, "k");
    int code = machine_replica_begin(&f->machine, &order, &f->err);
    OBJECT_CLEAR(vmm_replica_order, &order);
    return code;
}

static int begin(struct fixture *f, uint64_t session)
{
    return begin_of(f, session, NULL);
}

static enum vmm_replica_phase phase(struct fixture *f)
{
    struct vmm_replica report = {.phase = 0};
    machine_replica_report(&f->machine, &report);
    enum vmm_replica_phase now = report.phase;
    OBJECT_CLEAR(vmm_replica, &report);
    return now;
}

static void until(struct fixture *f, enum vmm_replica_phase wanted)
{
    while (phase(f) != wanted)
        io_loop_run_once(f->machine.control, ROUND_MS);
}

/* It has looked after this once more, at the least. */
static void look_again(struct fixture *f)
{
    for (unsigned before = mirror.looks; mirror.looks < before + 2;)
        io_loop_run_once(f->machine.control, ROUND_MS);
}

static void wait_link(unsigned count)
{
    pthread_mutex_lock(&mirror.lock);
    while (mirror.links < count)
        pthread_cond_wait(&mirror.changed, &mirror.lock);
    pthread_mutex_unlock(&mirror.lock);
}

static void may_link(int code)
{
    pthread_mutex_lock(&mirror.lock);
    mirror.may_link = true;
    mirror.link_code = code;
    pthread_cond_broadcast(&mirror.changed);
    pthread_mutex_unlock(&mirror.lock);
}

static void fails_with(struct fixture *f, const char *words)
{
    struct vmm_replica report = {.phase = 0};
    machine_replica_report(&f->machine, &report);
    assert_non_null(report.failure);
    assert_string_equal(report.failure, words);
    OBJECT_CLEAR(vmm_replica, &report);
}

static void level(struct fixture *f, uint64_t session)
{
    may_link(0);
    mirror.level = mirror.lasts = true;
    assert_int_equal(begin(f, session), 0);
    until(f, vmm_replica_phase_LEVEL);
}

/* ---- tests ---- */

static void from_nothing_to_level(void **state)
{
    struct fixture *f = *state;
    struct vmm_replica report = {.phase = 0};
    assert_int_equal(phase(f), vmm_replica_phase_NONE);
    assert_int_equal(begin(f, SESSION), 0);
    assert_int_equal(phase(f), vmm_replica_phase_CONNECT);
    wait_link(1);
    assert_int_equal(mirror.patience_ms, REPLICA_PATIENCE_MS);
    assert_int_equal(begin(f, SESSION), 0); /* the same again */
    assert_int_equal(begin(f, SESSION + 1), -EBUSY);
    assert_non_null(strstr(f->err.text, "session 7 with a replica is under way"));
    may_link(0);
    until(f, vmm_replica_phase_COPY);
    assert_string_equal(mirror.replicated, "root data "); /* not what is only read, nor what was taken away */
    assert_int_equal(mirror.links, 2);
    look_again(f);
    assert_true(mirror.guards == 0 && phase(f) == vmm_replica_phase_COPY);
    machine_replica_report(&f->machine, &report);
    assert_int_equal(report.session, SESSION);
    /* of all slots with a disk, as the mirror says */
    assert_int_equal(report.left_bytes, ROOT + (ROOT + 1) + DATA + (DATA + 1));
    assert_int_equal(report.copied_bytes, 100 * report.left_bytes);
    assert_null(report.failure);
    OBJECT_CLEAR(vmm_replica, &report);
    /* guarded first; level when what the guest was told lasts there, too */
    mirror.level = true;
    look_again(f);
    assert_true(mirror.guards > 0 && phase(f) == vmm_replica_phase_COPY);
    mirror.level = false; /* the guest writes: it stays guarded */
    unsigned guards = mirror.guards;
    look_again(f);
    assert_true(mirror.guards > guards && phase(f) == vmm_replica_phase_COPY);
    mirror.lasts = true;
    until(f, vmm_replica_phase_LEVEL);
    guards = mirror.guards;
    look_again(f);
    assert_true(mirror.guards == guards && phase(f) == vmm_replica_phase_LEVEL && mirror.ends == 0);
}

/* From the first guard on nobody but who has ordered it lets the guest go on. */
static void the_guest_waits_until_it_is_said_to_be_over(void **state)
{
    struct fixture *f = *state;
    level(f, SESSION);
    mirror.look_code = -EIO;
    until(f, vmm_replica_phase_LOST);
    fails_with(f, "the link is gone");
    assert_int_equal(mirror.ends, 0);
    assert_int_equal(begin(f, SESSION), 0); /* the same again: it says how that fares */
    assert_int_equal(begin(f, SESSION + 1), -EBUSY);
    machine_replica_end(&f->machine, SESSION - 1); /* another one is */
    assert_true(mirror.ends == 0 && phase(f) == vmm_replica_phase_LOST);
    machine_replica_end(&f->machine, SESSION);
    assert_true(mirror.ends == 1 && phase(f) == vmm_replica_phase_NONE);
    machine_replica_end(&f->machine, SESSION);
    assert_int_equal(mirror.ends, 1);
    assert_int_equal(begin(f, SESSION), -ESTALE);
    mirror.look_code = 0;
    while (begin(f, SESSION + 1) == -EBUSY) /* its thread comes to its end */
        io_loop_run_once(f->machine.control, ROUND_MS);
    until(f, vmm_replica_phase_LEVEL);
}

static void one_that_is_guarded_and_not_level_is_lost(void **state)
{
    struct fixture *f = *state;
    may_link(0);
    mirror.level = true;
    assert_int_equal(begin(f, SESSION), 0);
    while (mirror.guards == 0)
        io_loop_run_once(f->machine.control, ROUND_MS);
    mirror.look_code = -EIO;
    until(f, vmm_replica_phase_LOST);
    assert_int_equal(mirror.ends, 0);
}

/* Some disk may be guarded by then. */
static void a_guard_that_fails_is_lost(void **state)
{
    struct fixture *f = *state;
    may_link(0);
    mirror.level = true;
    mirror.guard_code = -EIO;
    assert_int_equal(begin(f, SESSION), 0);
    until(f, vmm_replica_phase_LOST);
    fails_with(f, "it is silent");
    assert_int_equal(mirror.ends, 0);
}

static void before_that_the_guest_goes_on(void **state)
{
    struct fixture *f = *state;
    may_link(-ECONNREFUSED);
    assert_int_equal(begin(f, SESSION), 0);
    until(f, vmm_replica_phase_FAILED);
    fails_with(f, "no way to root");
    assert_int_equal(mirror.ends, 1);
    assert_int_equal(begin(f, SESSION), -ESTALE);
    for (unsigned i = 1; i < 3; i++) { /* no word that it is over is needed */
        may_link(0);
        mirror.replicate_code = i == 1 ? -ENOSPC : 0;
        mirror.look_code = -EIO;
        int code;
        while ((code = begin(f, SESSION + i)) == -EBUSY)
            io_loop_run_once(f->machine.control, ROUND_MS);
        assert_int_equal(code, 0);
        until(f, vmm_replica_phase_FAILED);
        fails_with(f, i == 1 ? "no mirror" : "the link is gone");
        assert_int_equal(mirror.ends, 1 + i);
    }
}

static void over_before_it_has_begun(void **state)
{
    struct fixture *f = *state;
    machine_replica_end(&f->machine, SESSION);
    assert_int_equal(begin(f, SESSION), -ESTALE);
    assert_int_equal(begin(f, SESSION - 1), -ESTALE);
    assert_int_equal(mirror.ends, 0);
    assert_int_equal(begin(f, SESSION + 1), 0);
    assert_int_equal(phase(f), vmm_replica_phase_CONNECT);
    wait_link(1);
    machine_replica_end(&f->machine, SESSION + 3); /* and what comes before that, too */
    assert_int_equal(phase(f), vmm_replica_phase_NONE);
    assert_int_equal(begin(f, SESSION + 3), -ESTALE);
    assert_int_equal(begin(f, SESSION + 4), -EBUSY);
    assert_non_null(strstr(f->err.text, "is just ending"));
    may_link(0); /* too late: nothing of it is begun */
    while (begin(f, SESSION + 4) == -EBUSY)
        io_loop_run_once(f->machine.control, ROUND_MS);
    until(f, vmm_replica_phase_COPY);
    assert_string_equal(mirror.replicated, "root data ");
}

/* Its machine ends while it waits for the other side. */
static void an_end_of_the_machine_waits_for_nobody(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(begin(f, SESSION), 0);
    wait_link(1);
    replica_job_destroy(TAKE_PTR(f->machine.replica));
    assert_true(mirror.broken && mirror.ends == 0);
    mirror.broken = false;
    io_loop_destroy(f->machine.control); /* which does not turn any more by then: control_gate.h */
    assert_int_equal(io_loop_create(&f->machine.device_lock, &f->machine.control, NULL), 0);
    level(f, SESSION);
    replica_job_destroy(TAKE_PTR(f->machine.replica));
    assert_int_equal(mirror.ends, 0); /* its guest waits, or has ended, and hears nothing of this */
    replica_job_destroy(NULL);
}

static void refused_beside_other_work(void **state)
{
    struct fixture *f = *state;
    others.backup = true;
    assert_int_equal(begin(f, SESSION), -EBUSY);
    others.backup = false;
    others.moves = true;
    assert_int_equal(begin(f, SESSION), -EBUSY);
    others.moves = false;
    others.changeable = -EBUSY;
    assert_int_equal(begin(f, SESSION), -EBUSY);
    assert_string_equal(f->err.text, "it is being migrated");
    others.changeable = 0;
    others.whole = -EBUSY;
    assert_int_equal(begin(f, SESSION), -EBUSY);
    assert_string_equal(f->err.text, "its disks are not whole");
    others.whole = 0;
    f->machine.slots.slots[ROOT].disk.read_only = f->machine.slots.slots[DATA].disk.read_only = true;
    assert_int_equal(begin(f, SESSION), -EINVAL);
    assert_non_null(strstr(f->err.text, "no disk that it can write"));
    f->machine.slots.slots[ROOT].disk.read_only = f->machine.slots.slots[DATA].disk.read_only = false;
    assert_int_equal(mirror.links, 0);
    level(f, SESSION); /* none of these has used the number up */
}

/* What else the guest writes to is nothing of the session's. */
static void of_the_disks_that_are_named(void **state)
{
    struct fixture *f = *state;
    static const char *const none[] = {"cd", "gone", "other"};
    for (unsigned i = 0; i < ARRAY_SIZE(none); i++) { /* only read, taken away, not there */
        assert_int_equal(begin_of(f, SESSION, none[i]), -ENODEV);
        assert_string_equal(f->err.field, "/disks");
    }
    assert_true(mirror.links == 0 && phase(f) == vmm_replica_phase_NONE);
    mirror.count = 1;
    mirror.level = mirror.lasts = true;
    may_link(0);
    assert_int_equal(begin_of(f, SESSION, "data"), 0);
    until(f, vmm_replica_phase_LEVEL);
    assert_string_equal(mirror.replicated, "data ");
    assert_int_equal(mirror.links, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(from_nothing_to_level, setup, teardown),
        cmocka_unit_test_setup_teardown(the_guest_waits_until_it_is_said_to_be_over, setup, teardown),
        cmocka_unit_test_setup_teardown(one_that_is_guarded_and_not_level_is_lost, setup, teardown),
        cmocka_unit_test_setup_teardown(a_guard_that_fails_is_lost, setup, teardown),
        cmocka_unit_test_setup_teardown(before_that_the_guest_goes_on, setup, teardown),
        cmocka_unit_test_setup_teardown(over_before_it_has_begun, setup, teardown),
        cmocka_unit_test_setup_teardown(an_end_of_the_machine_waits_for_nobody, setup, teardown),
        cmocka_unit_test_setup_teardown(refused_beside_other_work, setup, teardown),
        cmocka_unit_test_setup_teardown(of_the_disks_that_are_named, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
