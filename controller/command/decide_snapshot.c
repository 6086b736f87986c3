/* Requests about snapshots: tasks of the host that has the VM's disks. */
#include "controller/command/decide_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define NAME_BYTES 64u          /* with its NUL */
#define NAME_OF_VM_CHARACTERS 44 /* so much of the VM's, where the name is made */
#define NAME_TRIES_MAX 100u

/* <vm>-<date>-<time>, with a number where there is such a one already. */
static void make_name(const struct deciding *d, const struct vm *vm, char name[NAME_BYTES])
{
    const char *t = d->context->now; /* 2026-01-31T12:00:00.000Z */
    int length = (int)MIN(strlen(vm->name), (size_t)NAME_OF_VM_CHARACTERS);
    snprintf(name, NAME_BYTES, "%.*s-%.4s%.2s%.2s-%.2s%.2s%.2s", length, vm->name, t, t + 5, t + 8, t + 11, t + 14, t + 17);
    for (unsigned i = 2; i < NAME_TRIES_MAX && state_get(d->state, object_kind_SNAPSHOT, name) != NULL; i++)
        snprintf(name, NAME_BYTES, "%.*s-%.4s%.2s%.2s-%.2s%.2s%.2s-%u", length, vm->name, t, t + 5, t + 8, t + 11,
                 t + 14, t + 17, i);
}

static void fill_operation(struct command_task *command, enum operation_kind kind, enum task_kind task,
                           const char *id, const char *name)
{
    struct operation *operation = &command->operation;
    OBJECT_SET(operation, operation, kind, kind);
    OBJECT_SET(operation, operation, target_kind, object_kind_SNAPSHOT);
    OBJECT_TEXT(operation, operation, target_id, id);
    OBJECT_TEXT(operation, operation, target_name, name);
    OBJECT_SET(task, &operation->task, kind, task);
    OBJECT_TEXT(task_snapshot, &operation->task.snapshot, id, id);
    object_mark(&task_desc, &operation->task, "snapshot");
}

static int begin(struct deciding *d, const struct record *vm, struct command_task *command)
{
    int rc = decide_task_of_vm(d, vm, &command->operation.task);
    if (rc == 0)
        return decide_task(d, command);
    OBJECT_CLEAR(command_task, command);
    return rc;
}

int decide_snapshot_create(struct deciding *d, const char *vm_id, size_t vm_length, const struct snapshot *body)
{
    struct command_task command = {0};
    struct task_snapshot *arguments = &command.operation.task.snapshot;
    struct snapshot preview = {0};
    char id[STATE_ID_BYTES], name[NAME_BYTES];
    const struct record *vm = decide_target(d, object_kind_VM, vm_id, vm_length);
    if (vm == NULL)
        return -ENOENT;
    if (body != NULL && body->ram && body->freeze)
        return error_set_field(d->err, -EINVAL, ERROR_INVALID, "/freeze",
                               "is not for a snapshot with ram: the VM goes on where it was, and nobody would thaw its file systems there");
    decide_uuid(d, id);
    if (body != NULL && body->name != NULL)
        snprintf(name, sizeof name, "%s", body->name);
    else
        make_name(d, vm->vm, name);
    fill_operation(&command, operation_kind_SNAPSHOT_CREATE, task_kind_SNAPSHOT_CREATE, id, name);
    OBJECT_TEXT(task_snapshot, arguments, name, name);
    if (body != NULL) {
        struct task_snapshot given = {.labels = body->labels, .freeze = body->freeze, .ram = body->ram}; /* borrowed */
        static const char *const fields[] = {"labels", "freeze", "ram"};
        for (unsigned i = 0; i < ARRAY_SIZE(fields); i++)
            if (object_has(&snapshot_desc, body, object_field(&snapshot_desc, fields[i])))
                object_mark(&task_snapshot_desc, &given, fields[i]);
        object_merge(&task_snapshot_desc, arguments, &given);
        if (body->ram)
            OBJECT_SET(task_snapshot, arguments, memory, true);
        OBJECT_COPY(snapshot, &preview, body);
    }
    OBJECT_TEXT(snapshot, &preview, id, id);
    OBJECT_TEXT(snapshot, &preview, name, name);
    OBJECT_TEXT(snapshot, &preview, vm, vm->vm->id);
    OBJECT_TEXT(snapshot, &preview, vm_name, vm->vm->name);
    decide_preview(d, &snapshot_desc, &preview);
    OBJECT_CLEAR(snapshot, &preview);
    return begin(d, vm, &command);
}

int decide_snapshot_change(struct deciding *d, enum route_id route, const char *id, size_t id_length,
                           const struct snapshot_revert *body)
{
    struct command_task command = {0};
    bool revert = route == ROUTE_ID_snapshot_revert;
    const struct record *record = decide_target(d, object_kind_SNAPSHOT, id, id_length);
    if (record == NULL)
        return -ENOENT;
    const struct record *vm = state_get(d->state, object_kind_VM, record->snapshot->vm);
    ASSERT(vm != NULL); /* a snapshot goes with its VM */
    fill_operation(&command, revert ? operation_kind_SNAPSHOT_REVERT : operation_kind_SNAPSHOT_DELETE,
                   revert ? task_kind_SNAPSHOT_REVERT : task_kind_SNAPSHOT_DELETE, record->common->id,
                   record->common->name);
    if (d->context->if_revision != 0)
        OBJECT_SET(command_task, &command, if_revision, d->context->if_revision);
    if (revert && record->snapshot->consistency == snapshot_consistency_MEMORY && (body == NULL || !body->disks_only))
        OBJECT_SET(task_snapshot, &command.operation.task.snapshot, memory, true);
    decide_preview(d, record->desc, record->object);
    return begin(d, vm, &command);
}
