/* Control of points in time: take one, remove one, look at what is under way. Calls are answered when it lasts. And what is
 * missing of the disks. */
#include "compute/vmm/control_call.h"
#include "compute/vmm/machine_fill.h"
#include "compute/vmm/machine_points.h"

int control_point_list(struct control_call *call, struct error *err UNUSED)
{
    struct point_report r = machine_points_report(call->machine);
    struct vmm_points answer = {.busy = false};
    OBJECT_SET(vmm_points, &answer, busy, r.busy);
    OBJECT_SET(vmm_points, &answer, merging, r.merging);
    OBJECT_SET(vmm_points, &answer, done_bytes, r.done_bytes);
    OBJECT_SET(vmm_points, &answer, total_bytes, r.total_bytes);
    OBJECT_SET(vmm_points, &answer, merges, r.merges);
    if (r.memory_bytes > 0) {
        OBJECT_SET(vmm_points, &answer, memory_read_bytes, r.memory_read_bytes);
        OBJECT_SET(vmm_points, &answer, memory_bytes, r.memory_bytes);
    }
    if (r.failure.code < 0)
        OBJECT_TEXT(vmm_points, &answer, failure, r.failure.text);
    OBJECT_ENCODE(vmm_points, &answer, &call->answer);
    OBJECT_CLEAR(vmm_points, &answer);
    return 0;
}

int control_fill_show(struct control_call *call, struct error *err UNUSED)
{
    struct fill_report r = machine_fill_report(call->machine);
    struct vmm_fill answer = {.whole = false};
    OBJECT_SET(vmm_fill, &answer, whole, r.whole);
    OBJECT_SET(vmm_fill, &answer, done_bytes, r.done_bytes);
    OBJECT_SET(vmm_fill, &answer, total_bytes, r.total_bytes);
    if (r.stuck.code < 0)
        OBJECT_TEXT(vmm_fill, &answer, stuck, r.stuck.text);
    OBJECT_ENCODE(vmm_fill, &answer, &call->answer);
    OBJECT_CLEAR(vmm_fill, &answer);
    return 0;
}

static void on_taken(void *arg, int code, const struct error *err, const struct point_result *result)
{
    struct control_call *call = arg;
    if (code == 0) {
        struct vmm_point answer = {.name = NULL};
        OBJECT_TEXT(vmm_point, &answer, name, result->name);
        OBJECT_SET(vmm_point, &answer, consistency, result->consistency);
        OBJECT_SET(vmm_point, &answer, pause_us, result->pause_us);
        if (result->consistency == snapshot_consistency_MEMORY)
            OBJECT_SET(vmm_point, &answer, memory_bytes, result->memory_bytes);
        for (size_t i = 0; i < result->disks.count; i++)
            OBJECT_COPY(snapshot_disk, (struct snapshot_disk *)OBJECT_ADD(vmm_point, &answer, disks),
                        (const struct snapshot_disk *)result->disks.items + i);
        OBJECT_ENCODE(vmm_point, &answer, &call->answer);
        OBJECT_CLEAR(vmm_point, &answer);
    }
    control_call_end(call, code, err);
}

int control_point_take(struct control_call *call, struct error *err)
{
    const struct vmm_point_order *order = call->body;
    int code = machine_points_take(call->machine, order->name, order->freeze, order->memory, &order->disks, on_taken, call, err);
    return code < 0 ? code : CONTROL_LATER;
}

static void on_dropped(void *arg, int code, const struct error *err, const struct point_result *result UNUSED)
{
    struct control_call *call = arg;
    if (code == 0)
        control_point_list(call, NULL);
    control_call_end(call, code, err);
}

int control_point_drop(struct control_call *call, struct error *err)
{
    int code = machine_points_drop(call->machine, call->id, on_dropped, call, err);
    return code < 0 ? code : CONTROL_LATER;
}
