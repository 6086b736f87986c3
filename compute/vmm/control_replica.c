/* Control of a session with a replica of the disks: begin it, look at it, say that it is over. */
#include "compute/vmm/control_call.h"
#include "compute/vmm/machine_replica.h"

enum { HTTP_ACCEPTED = 202 };

int control_replica_show(struct control_call *call, struct error *err UNUSED)
{
    struct vmm_replica answer = {.phase = 0};
    machine_replica_report(call->machine, &answer);
    OBJECT_ENCODE(vmm_replica, &answer, &call->answer);
    OBJECT_CLEAR(vmm_replica, &answer);
    return 0;
}

int control_replica_begin(struct control_call *call, struct error *err)
{
    int code = machine_replica_begin(call->machine, call->body, err);
    if (code < 0)
        return code;
    call->status = HTTP_ACCEPTED;
    return control_replica_show(call, err);
}

int control_replica_end(struct control_call *call, struct error *err)
{
    const struct vmm_replica_end *order = call->body;
    machine_replica_end(call->machine, order->session);
    return control_replica_show(call, err);
}
