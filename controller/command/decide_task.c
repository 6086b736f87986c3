/* What is common to all requests that hosts carry out: the operation with a task. */
#include "controller/command/decide_internal.h"

#include <errno.h>
#include <stdio.h>

int decide_task_of_vm(struct deciding *d, const struct record *vm, struct task *task)
{
    if (vm->vm->host == NULL)
        return error_set(d->err, -ENOENT, ERROR_CONFLICT, "VM '%s' waits for a host and has no disks yet", vm->vm->name);
    OBJECT_TEXT(task, task, host, vm->vm->host);
    OBJECT_TEXT(task, task, vm, vm->vm->id);
    OBJECT_SET(task, task, epoch, vm->vm->epoch);
    return 0;
}

int decide_task(struct deciding *d, struct command_task *command)
{
    struct operation *operation = &command->operation;
    decide_uuid(d, d->decision->operation_id);
    OBJECT_TEXT(operation, operation, id, d->decision->operation_id);
    object_mark(&operation_desc, operation, "task");
    object_mark(&command_task_desc, command, "operation");
    decide_request(d, 202, &command->request);
    decide_object(d, operation->target_kind, operation->target_id);
    snprintf(d->decision->summary, sizeof d->decision->summary, "%s of %s", operation_kind_desc.names[operation->kind],
             operation->target_name);
    return decide_finish(d, COMMAND_task, command);
}
