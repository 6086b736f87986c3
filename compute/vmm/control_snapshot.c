/* Control of snapshots: write one, look at it, give it up. The call that asked for it is answered when it is done. */
#include <errno.h>

#include "compute/vmm/control_call.h"
#include "compute/vmm/machine_snapshot.h"

int control_snapshot_show(struct control_call *call, struct error *err UNUSED)
{
    STATIC_ASSERT((int)SNAPSHOT_MEMORY == (int)snapshot_phase_name_MEMORY &&
                      (int)SNAPSHOT_COMMIT == (int)snapshot_phase_name_COMMIT &&
                      (int)SNAPSHOT_LIVE == (int)snapshot_phase_name_COPY,
                  "machine_snapshot.h and the schema agree");
    struct snapshot_report r = machine_snapshot_report(call->machine);
    struct vmm_snapshot answer = {.phase = 0};
    OBJECT_SET(vmm_snapshot, &answer, phase, (uint32_t)r.phase);
    OBJECT_SET(vmm_snapshot, &answer, memory_bytes, r.memory_bytes);
    OBJECT_SET(vmm_snapshot, &answer, read_bytes, r.counts.memory_bytes);
    OBJECT_SET(vmm_snapshot, &answer, data_bytes, r.counts.data_bytes);
    OBJECT_SET(vmm_snapshot, &answer, file_bytes, r.counts.file_bytes);
    OBJECT_SET(vmm_snapshot, &answer, pause_us, r.pause_us);
    OBJECT_SET(vmm_snapshot, &answer, total_us, r.total_us);
    if (r.failure.code < 0)
        OBJECT_TEXT(vmm_snapshot, &answer, failure, r.failure.text);
    OBJECT_ENCODE(vmm_snapshot, &answer, &call->answer);
    OBJECT_CLEAR(vmm_snapshot, &answer);
    return 0;
}

static void on_done(void *arg, int code, const struct error *err)
{
    struct control_call *call = arg;
    struct machine *m = call->machine;
    const struct vmm_snapshot_order *order = call->body;
    bool stop = code == 0 && order->then == snapshot_then_STOP;
    if (code == 0)
        control_snapshot_show(call, NULL);
    control_call_end(call, code, err);
    if (stop)
        machine_stop(m, NULL);
}

int control_snapshot_write(struct control_call *call, struct error *err)
{
    const struct vmm_snapshot_order *order = call->body;
    struct snapshot_options options = {
        .path = order->path, .compress = order->compress, .stay = order->then == snapshot_then_STOP};
    int code = machine_snapshot_begin(call->machine, &options, on_done, call, err);
    return code < 0 ? code : CONTROL_LATER;
}

int control_snapshot_cancel(struct control_call *call, struct error *err)
{
    int code = machine_snapshot_cancel(call->machine, err);
    return code < 0 ? code : control_snapshot_show(call, err);
}
