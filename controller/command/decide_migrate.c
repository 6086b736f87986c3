/* Requests about migrations: a user's, for one to begin, and a host's, for the hand-over. */
#include "controller/command/decide_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/command/migrate_plan.h"

int decide_vm_migrate(struct deciding *d, const char *id, size_t id_length, const struct vm_migration *body)
{
    struct command_task command = {0};
    struct operation *operation = &command.operation;
    const struct record *vm = decide_target(d, object_kind_VM, id, id_length);
    if (vm == NULL)
        return -ENOENT;
    int rc = migrate_plan(d->state, vm, body, &operation->task, d->err);
    if (rc < 0) {
        OBJECT_CLEAR(command_task, &command);
        return rc;
    }
    OBJECT_SET(operation, operation, kind, operation_kind_VM_MIGRATE);
    OBJECT_SET(operation, operation, target_kind, object_kind_VM);
    OBJECT_TEXT(operation, operation, target_id, vm->common->id);
    OBJECT_TEXT(operation, operation, target_name, vm->common->name);
    decide_preview(d, vm->desc, vm->object);
    char summary[sizeof d->decision->summary];
    snprintf(summary, sizeof summary, "VM %s goes from %s to %.120s", vm->common->name, operation->task.migration.from_name,
             operation->task.migration.placement);
    rc = decide_task(d, &command);
    snprintf(d->decision->summary, sizeof d->decision->summary, "%s", summary);
    return rc;
}

int decide_vm_upgrade(struct deciding *d, const char *id, size_t id_length)
{
    struct command_task command = {0};
    struct operation *operation = &command.operation;
    struct task *task = &operation->task;
    const struct record *vm = decide_target(d, object_kind_VM, id, id_length);
    if (vm == NULL)
        return -ENOENT;
    if (vm->vm->host == NULL || (vm->vm->state != vm_state_RUNNING && vm->vm->state != vm_state_PAUSED))
        return error_set(d->err, -EINVAL, ERROR_CONFLICT, "VM '%s' is %s: only one that runs or is paused has a process to be upgraded",
                         vm->common->name, vm_state_desc.names[vm->vm->state]);
    (void)decide_task_of_vm(d, vm, task); /* it has a host */
    OBJECT_SET(task, task, kind, task_kind_VM_UPGRADE);
    OBJECT_SET(operation, operation, kind, operation_kind_VM_UPGRADE);
    OBJECT_SET(operation, operation, target_kind, object_kind_VM);
    OBJECT_TEXT(operation, operation, target_id, vm->common->id);
    OBJECT_TEXT(operation, operation, target_name, vm->common->name);
    decide_preview(d, vm->desc, vm->object);
    char name[64];
    snprintf(name, sizeof name, "%s", vm->common->name);
    int rc = decide_task(d, &command);
    snprintf(d->decision->summary, sizeof d->decision->summary, "VM %s goes into a new process of its host's VMM", name);
    return rc;
}

int decide_handover(struct deciding *d, const struct node_handover *body)
{
    struct command_handover command = {0};
    decide_request(d, 200, &command.request);
    OBJECT_TEXT(command_handover, &command, id, body->operation);
    OBJECT_TEXT(command_handover, &command, host, body->host);
    OBJECT_SET(command_handover, &command, epoch, body->epoch);
    OBJECT_TEXT(command_handover, &command, storage, body->storage);
    if (body->storage_shared)
        OBJECT_SET(command_handover, &command, storage_shared, true);
    if (body->lacking)
        OBJECT_SET(command_handover, &command, lacking, true);
    snprintf(d->decision->summary, sizeof d->decision->summary, "hand-over of migration %s", body->operation);
    return decide_finish(d, COMMAND_handover, &command);
}
