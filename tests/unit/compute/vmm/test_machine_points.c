/* Points in time of a machine's disks: beside what none is begun, with what else the machine does said by the test. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "compute/vmm/block/block_layers.h"
#include "compute/vmm/machine_backup.h"
#include "compute/vmm/machine_fill.h"
#include "compute/vmm/machine_mirror.h"
#include "compute/vmm/machine_points.h"
#include "compute/vmm/machine_snapshot.h"

static struct {
    bool beginning, moves;
    int changeable, whole;
} others;

bool machine_backup_is_beginning(const struct machine *m UNUSED)
{
    return others.beginning;
}

bool machine_mirror_is_active(const struct machine *m UNUSED)
{
    return others.moves;
}

int machine_changeable(const struct machine *m UNUSED, struct error *err)
{
    return others.changeable < 0 ? error_set(err, others.changeable, ERROR_CONFLICT, "it is being migrated") : 0;
}

int machine_fill_check(struct machine *m UNUSED, struct error *err)
{
    return others.whole < 0 ? error_set(err, others.whole, ERROR_CONFLICT, "its disks are not whole") : 0;
}

/* Of disks, which the machine here has none of. */
struct blk *blk_of_virtio(struct virtio_device *d UNUSED)
{
    fail();
    return NULL;
}

struct layer_disk *block_layers_disk(struct block *b UNUSED)
{
    fail();
    return NULL;
}

void machine_slots_settle(struct machine *m UNUSED)
{
}

/* Of memory, which no test here keeps. */
int machine_freeze(struct machine *m UNUSED, struct error *err UNUSED)
{
    fail();
    return 0;
}

int machine_thaw(struct machine *m UNUSED, struct error *err UNUSED)
{
    fail();
    return 0;
}

int machine_snapshot_begin(struct machine *m UNUSED, const struct snapshot_options *options UNUSED, snapshot_done_fn done UNUSED,
                           void *arg UNUSED, struct error *err UNUSED)
{
    fail();
    return 0;
}

int machine_snapshot_cancel(struct machine *m UNUSED, struct error *err UNUSED)
{
    fail();
    return 0;
}

struct snapshot_report machine_snapshot_report(const struct machine *m UNUSED)
{
    fail();
    return (struct snapshot_report){.pause_us = 0};
}

static void on_done(void *arg UNUSED, int code UNUSED, const struct error *err UNUSED, const struct point_result *result UNUSED)
{
    fail();
}

/* The machine has no disk: what goes on for others' sake comes to that. */
static void takes(struct machine *m, int code, const char *words)
{
    struct error err;
    assert_int_equal(machine_points_take(m, "s", vmm_freeze_AUTO, false, NULL, on_done, NULL, &err), code);
    if (strstr(err.text, words) == NULL)
        fail_msg("%s", err.text);
    assert_int_equal(err.kind, ERROR_CONFLICT); /* which whoever asks takes for: again, later */
    assert_false(machine_points_are_busy(m));
}

static void what_has_the_disks_comes_first(void **state UNUSED)
{
    static struct vmm_config config = {.name = (char *)(uintptr_t)"web"};
    static struct machine m = {.config = &config};
    pthread_mutex_init(&m.device_lock, NULL);
    takes(&m, -EINVAL, "no disk that is written to");
    others.beginning = true;
    takes(&m, -EBUSY, "a backup takes images");
    others.beginning = false;
    others.moves = true;
    takes(&m, -EBUSY, "is being moved");
    others.moves = false;
    others.changeable = -EBUSY;
    takes(&m, -EBUSY, "is being migrated");
    others.changeable = 0;
    others.whole = -EBUSY;
    takes(&m, -EBUSY, "are not whole");
    others.whole = 0;
    takes(&m, -EINVAL, "no disk that is written to");
    /* where file systems are to be frozen or there is none: that is told before anything is made, and by the field that it is about */
    struct error err;
    assert_int_equal(machine_points_take(&m, "s", vmm_freeze_MUST, false, NULL, on_done, NULL, &err), -ENOTSUP);
    assert_int_equal(err.kind, ERROR_NOT_SUPPORTED);
    m.guest.channel = (void *)&m; /* it is looked at alone */
    assert_int_equal(machine_points_take(&m, "s", vmm_freeze_MUST, false, NULL, on_done, NULL, &err), -ENOTCONN);
    assert_int_equal(err.kind, ERROR_CONFLICT);
    assert_string_equal(err.field, "/freeze");
    assert_non_null(strstr(err.text, "no agent answers in the guest; install and start qemu-guest-agent there"));
    m.guest.agent.state = GUEST_AGENT_IDLE;
    assert_int_equal(machine_points_take(&m, "s", vmm_freeze_MUST, false, NULL, on_done, NULL, &err), -EINVAL);
    m.guest.agent.state = GUEST_AGENT_CLOSED;
    takes(&m, -EINVAL, "no disk that is written to"); /* none has to */
    point_job_destroy(m.points);
    pthread_mutex_destroy(&m.device_lock);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_has_the_disks_comes_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
