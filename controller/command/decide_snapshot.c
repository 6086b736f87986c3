/* Requests about snapshots: tasks of the host that has the VM's disks; of a volume that no VM has, of one that has its pool. */
#include "controller/command/decide_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/fsm/volume_disks.h"

#define NAME_BYTES 64u          /* with its NUL */
#define NAME_OF_VM_CHARACTERS 44 /* so much of the VM's, where the name is made */
#define NAME_TRIES_MAX 100u

/* <vm or volume>-<date>-<time>, with a number where there is such a one already. */
static void make_name(const struct deciding *d, const char *whose, char name[NAME_BYTES])
{
    const char *t = d->context->now; /* 2026-01-31T12:00:00.000Z */
    int length = (int)MIN(strlen(whose), (size_t)NAME_OF_VM_CHARACTERS);
    snprintf(name, NAME_BYTES, "%.*s-%.4s%.2s%.2s-%.2s%.2s%.2s", length, whose, t, t + 5, t + 8, t + 11, t + 14, t + 17);
    for (unsigned i = 2; i < NAME_TRIES_MAX && state_get(d->state, object_kind_SNAPSHOT, name) != NULL; i++)
        snprintf(name, NAME_BYTES, "%.*s-%.4s%.2s%.2s-%.2s%.2s%.2s-%u", length, whose, t, t + 5, t + 8, t + 11,
                 t + 14, t + 17, i);
}

static void fill_operation(struct operation *operation, enum operation_kind kind, enum task_kind task, const char *id, const char *name)
{
    OBJECT_SET(operation, operation, kind, kind);
    OBJECT_SET(operation, operation, target_kind, object_kind_SNAPSHOT);
    OBJECT_TEXT(operation, operation, target_id, id);
    OBJECT_TEXT(operation, operation, target_name, name);
    OBJECT_SET(task, &operation->task, kind, task);
    OBJECT_TEXT(task_snapshot, &operation->task.snapshot, id, id);
    object_mark(&task_desc, &operation->task, "snapshot");
}

/* A restore writes beside the disks for as long as it takes, and puts what it has in their place: with it would go what was made of them
 * since it began. (Apply looks at restores that begin where there is a snapshot; this is for the leader to decide. Live ones write to the
 * disks themselves: apply refuses those, and says so.) */
static int not_while_restored(struct deciding *d, const struct record *vm)
{
    for (size_t i = 0; i < vm->of_vm.operations.count; i++) {
        const struct operation *other = vm->of_vm.operations.items[i]->operation;
        if (operation_has_task(other) && other->task.kind == task_kind_BACKUP_RESTORE && !other->task.backup.live)
            return error_set(d->err, -EBUSY, ERROR_CONFLICT, "VM '%s' is being restored from backup '%s'; wait for the end of that (operation %s)",
                             vm->common->name, other->target_name, other->id);
    }
    return 0;
}

/* @volume (NULL: none), of the VM that has it, or of nobody; else of @vm. */
static int begin(struct deciding *d, const struct record *vm, const struct volume *volume, struct command_task *command)
{
    struct task *task = &command->operation.task;
    int rc = 0;
    if (volume != NULL) {
        OBJECT_TEXT(task_snapshot, &task->snapshot, volume, volume->id);
        OBJECT_TEXT(task_snapshot, &task->snapshot, disk, volume->disk);
        vm = state_get(d->state, object_kind_VM, volume->vm);
    }
    const char *worker = volume != NULL && vm == NULL ? volume_worker(d->state, volume) : NULL;
    if (vm != NULL && task->kind != task_kind_SNAPSHOT_DELETE)
        rc = not_while_restored(d, vm);
    if (rc == 0 && vm != NULL)
        rc = decide_task_of_vm(d, vm, task);
    else if (rc == 0 && worker != NULL)
        OBJECT_TEXT(task, task, host, worker);
    else if (rc == 0)
        rc = error_set(d->err, -EHOSTDOWN, ERROR_NO_HOST, "no host that is up has pool '%s' of volume '%s' now", volume->pool, volume->name);
    if (rc == 0)
        return decide_task(d, command);
    OBJECT_CLEAR(command_task, command);
    return rc;
}

static int create(struct deciding *d, const struct record *vm, const struct volume *volume, const struct snapshot *body)
{
    struct command_task command = {0};
    struct task_snapshot *arguments = &command.operation.task.snapshot;
    struct snapshot preview = {0};
    char id[STATE_ID_BYTES], name[NAME_BYTES];
    decide_uuid(d, id);
    if (body != NULL && body->name != NULL)
        snprintf(name, sizeof name, "%s", body->name);
    else
        make_name(d, volume != NULL ? volume->name : vm->common->name, name);
    fill_operation(&command.operation, operation_kind_SNAPSHOT_CREATE, task_kind_SNAPSHOT_CREATE, id, name);
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
    if (volume != NULL) {
        OBJECT_TEXT(snapshot, &preview, volume, volume->id);
        OBJECT_TEXT(snapshot, &preview, volume_name, volume->name);
    } else {
        OBJECT_TEXT(snapshot, &preview, vm, vm->common->id);
        OBJECT_TEXT(snapshot, &preview, vm_name, vm->common->name);
    }
    if (volume == NULL && volume_disk_any(vm->vm) != NULL)
        OBJECT_SET(task_snapshot, arguments, volumes, true);
    decide_preview(d, &snapshot_desc, &preview);
    OBJECT_CLEAR(snapshot, &preview);
    return begin(d, vm, volume, &command);
}

int decide_snapshot_for_clone(struct deciding *d, const struct record *vm, const struct vm_clone *body, struct operation *ret)
{
    char id[STATE_ID_BYTES], operation[STATE_ID_BYTES], name[NAME_BYTES];
    decide_uuid(d, id);
    decide_uuid(d, operation);
    snprintf(name, sizeof name, "%.*s-clone-%.8s", NAME_OF_VM_CHARACTERS, body->name, id);
    fill_operation(ret, operation_kind_SNAPSHOT_CREATE, task_kind_SNAPSHOT_CREATE, id, name);
    OBJECT_TEXT(operation, ret, id, operation);
    OBJECT_TEXT(task_snapshot, &ret->task.snapshot, name, name);
    if (OBJECT_HAS(vm_clone, body, freeze))
        OBJECT_SET(task_snapshot, &ret->task.snapshot, freeze, body->freeze);
    if (volume_disk_any(vm->vm) != NULL)
        OBJECT_SET(task_snapshot, &ret->task.snapshot, volumes, true);
    object_mark(&operation_desc, ret, "task");
    return decide_task_of_vm(d, vm, &ret->task);
}

int decide_snapshot_create(struct deciding *d, const char *vm_id, size_t vm_length, const struct snapshot *body)
{
    const struct record *vm = decide_target(d, object_kind_VM, vm_id, vm_length);
    if (vm == NULL)
        return -ENOENT;
    if (body != NULL && body->ram && body->freeze)
        return error_set_field(d->err, -EINVAL, ERROR_INVALID, "/freeze",
                               "is not for a snapshot with ram: the VM goes on where it was, and nobody would thaw its file systems there");
    return create(d, vm, NULL, body);
}

int decide_volume_snapshot(struct deciding *d, const char *id, size_t id_length, const struct snapshot *body)
{
    const struct record *record = decide_target(d, object_kind_VOLUME, id, id_length);
    if (record == NULL)
        return -ENOENT;
    if (body != NULL && body->ram)
        return error_set_field(d->err, -EINVAL, ERROR_INVALID, "/ram",
                               "is for snapshots of VMs, which have all of their disks: drover snapshot create VM --ram");
    return create(d, NULL, record->volume, body);
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
    const struct record *volume = state_get(d->state, object_kind_VOLUME, record->snapshot->volume);
    ASSERT(vm != NULL || volume != NULL); /* a snapshot goes with these */
    fill_operation(&command.operation, revert ? operation_kind_SNAPSHOT_REVERT : operation_kind_SNAPSHOT_DELETE,
                   revert ? task_kind_SNAPSHOT_REVERT : task_kind_SNAPSHOT_DELETE, record->common->id,
                   record->common->name);
    if (d->context->if_revision != 0)
        OBJECT_SET(command_task, &command, if_revision, d->context->if_revision);
    if (revert && record->snapshot->consistency == snapshot_consistency_MEMORY && (body == NULL || !body->disks_only))
        OBJECT_SET(task_snapshot, &command.operation.task.snapshot, memory, true);
    decide_preview(d, record->desc, record->object);
    return begin(d, vm, volume != NULL ? volume->volume : NULL, &command);
}
