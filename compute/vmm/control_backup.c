/* Control of backups: open images of the disks at one instant, look at them, close them. */
#include <errno.h>

#include "compute/vmm/control_call.h"
#include "compute/vmm/machine_backup.h"

enum { HTTP_CREATED = 201 };

int control_backup_show(struct control_call *call, struct error *err UNUSED)
{
    struct vmm_backup answer = {.phase = 0};
    machine_backup_report(call->machine, &answer);
    OBJECT_ENCODE(vmm_backup, &answer, &call->answer);
    OBJECT_CLEAR(vmm_backup, &answer);
    return 0;
}

static void on_begun(void *arg, int code, const struct error *err)
{
    struct control_call *call = arg;
    call->status = HTTP_CREATED;
    if (code == 0)
        control_backup_show(call, NULL);
    control_call_end(call, code, err);
}

int control_backup_begin(struct control_call *call, struct error *err)
{
    int code = machine_backup_begin(call->machine, call->body, on_begun, call, err);
    return code < 0 ? code : CONTROL_LATER;
}

int control_backup_end(struct control_call *call, struct error *err)
{
    const struct vmm_backup_end *order = call->body;
    int code = machine_backup_end(call->machine, order->name, order->kept, err);
    return code < 0 ? code : control_backup_show(call, err);
}
