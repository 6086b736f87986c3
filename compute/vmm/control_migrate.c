/* Control of migrations: away from here, and how one to here goes. */
#include <errno.h>

#include "compute/vmm/control_call.h"
#include "compute/vmm/machine_incoming.h"
#include "compute/vmm/machine_migrate.h"

enum { HTTP_ACCEPTED = 202 };

STATIC_ASSERT((int)MIGRATE_PHASE_CONNECT == (int)vmm_migration_phase_CONNECT &&
                  (int)MIGRATE_PHASE_READY == (int)vmm_migration_phase_READY &&
                  (int)MIGRATE_PHASE_CANCELLED == (int)vmm_migration_phase_CANCELLED &&
                  (int)MIGRATE_PHASE_DISKS == (int)vmm_migration_phase_DISKS,
              "migrate_progress.h and the schema agree");

/* The one under way; else the last one from here; else the one to here. */
static struct migrate_progress progress_of(const struct machine *m, bool *ret_is_incoming)
{
    struct migrate_progress out = machine_migrate_progress(m);
    *ret_is_incoming = m->incoming && out.phase == MIGRATE_PHASE_IDLE;
    return *ret_is_incoming ? machine_incoming_progress(m) : out;
}

int control_migration_show(struct control_call *call, struct error *err UNUSED)
{
    bool is_incoming;
    struct migrate_progress p = progress_of(call->machine, &is_incoming);
    struct vmm_migration a = {.phase = 0};
    OBJECT_SET(vmm_migration, &a, phase, (uint32_t)p.phase);
    if (p.phase != MIGRATE_PHASE_IDLE)
        OBJECT_SET(vmm_migration, &a, direction,
                   (uint32_t)(is_incoming ? vmm_migration_direction_IN : vmm_migration_direction_OUT));
    OBJECT_SET(vmm_migration, &a, memory_bytes, p.memory_bytes);
    OBJECT_SET(vmm_migration, &a, rounds, p.rounds);
    OBJECT_SET(vmm_migration, &a, sent_bytes, p.sent_bytes);
    OBJECT_SET(vmm_migration, &a, pages_data, p.pages_data);
    OBJECT_SET(vmm_migration, &a, pages_zero, p.pages_zero);
    OBJECT_SET(vmm_migration, &a, pages_same, p.pages_same);
    OBJECT_SET(vmm_migration, &a, dirty_pages, p.dirty_pages);
    OBJECT_SET(vmm_migration, &a, dirty_per_second, p.dirty_per_s);
    OBJECT_SET(vmm_migration, &a, bytes_per_second, p.bytes_per_s);
    OBJECT_SET(vmm_migration, &a, throttle_percent, p.throttle);
    OBJECT_SET(vmm_migration, &a, predicted_us, MIN(p.predicted_us, OBJECT_INTEGER_MAX));
    if (p.phase == MIGRATE_PHASE_MEMORY && p.expect_us <= OBJECT_INTEGER_MAX)
        OBJECT_SET(vmm_migration, &a, expected_us, p.expect_us);
    OBJECT_SET(vmm_migration, &a, downtime_us, p.downtime_us);
    OBJECT_SET(vmm_migration, &a, total_us, p.total_us);
    OBJECT_SET(vmm_migration, &a, disk_left_bytes, p.disk_left_bytes);
    OBJECT_SET(vmm_migration, &a, disk_copied_bytes, p.disk_copied_bytes);
    OBJECT_TEXT(vmm_migration, &a, step, p.why);
    if (p.postcopy)
        OBJECT_SET(vmm_migration, &a, postcopy, true);
    if (p.asks_pause)
        OBJECT_SET(vmm_migration, &a, asks_pause, true);
    if (p.failure.code < 0)
        OBJECT_TEXT(vmm_migration, &a, failure, p.failure.text);
    OBJECT_ENCODE(vmm_migration, &a, &call->answer);
    OBJECT_CLEAR(vmm_migration, &a);
    return 0;
}

int control_migration_start(struct control_call *call, struct error *err)
{
    int code = machine_migrate_begin(call->machine, call->body, err);
    if (code < 0)
        return code;
    call->status = HTTP_ACCEPTED;
    return control_migration_show(call, err);
}

static void on_wait_over(void *arg)
{
    struct control_call *call = arg;
    control_migration_show(call, NULL);
    control_call_end(call, 0, NULL);
}

int control_migration_wait(struct control_call *call, struct error *err)
{
    int code = machine_migrate_wait(call->machine, on_wait_over, call, err);
    return code < 0 ? code : code == 0 ? CONTROL_LATER : control_migration_show(call, err);
}

int control_migration_cancel(struct control_call *call, struct error *err)
{
    int code = machine_migrate_cancel(call->machine, err);
    return code < 0 ? code : control_migration_show(call, err);
}

int control_migration_permit(struct control_call *call, struct error *err)
{
    int code = machine_migrate_permit(call->machine, err);
    return code < 0 ? code : control_migration_show(call, err);
}

int control_migration_decide(struct control_call *call, struct error *err)
{
    struct machine *m = call->machine;
    const struct vmm_migration_decision *d = call->body;
    enum migrate_outcome outcome =
        d->outcome == vmm_migration_outcome_HERE ? MIGRATE_RUNS_HERE : MIGRATE_RUNS_THERE;
    bool is_incoming, is_lost = progress_of(m, &is_incoming).phase == MIGRATE_PHASE_LOST;
    /* Who says THERE as one says it in READY, and has not heard that it was heard, must not end the VM with it. */
    if (is_lost && d->outcome == vmm_migration_outcome_THERE && !d->give_up)
        return error_set_field(err, -EINVAL, ERROR_CONFLICT, "/give_up", "%s", "the target runs the VM, and waits for memory of it: say give_up where that run of it is to be lost");
    if (d->give_up && (!is_lost || d->outcome != vmm_migration_outcome_THERE))
        return error_set_field(err, -EINVAL, ERROR_CONFLICT, "/give_up", "%s", "only what waits for memory, in the phase lost, can be given up, with there");
    int code = machine_incoming_is_active(m) ? machine_incoming_decide(m, outcome, d->epoch, err)
                                             : machine_migrate_decide(m, outcome, d->epoch, err);
    return code < 0 ? code : control_migration_show(call, err);
}
