/* Requests about moves of VMs' own disks: these go on the host that has the VM, from and to what that host has. */
#include "controller/command/decide_internal.h"

#include <errno.h>
#include <stdio.h>

#include "controller/fsm/pool_members.h"
#include "controller/fsm/volume_disks.h"

static int disk_check(struct deciding *d, const struct record *vm, const char *name)
{
    const struct vm_disk *disks = vm->vm->disks.items;
    if (own_disk_find(vm->vm, name) != NULL)
        return 0;
    for (size_t i = 0; i < vm->vm->disks.count; i++)
        if (text_same(disks[i].name, name))
            return error_set_field(d->err, -EINVAL, ERROR_INVALID, "/disk",
                                   "'%s' of VM '%s' is a volume, which is moved by itself (drover volume move)", name, vm->common->name);
    return error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, "/disk", "VM '%s' has no disk '%.20s'", vm->common->name, name);
}

/* Can its host use the pool? Whether it can use the one that the disk is in, and has the room, is looked at where the move begins. */
static int pool_check(struct deciding *d, const struct record *vm, const struct record *pool)
{
    const struct pool_host *there = pool_member_find(pool->pool, vm->vm->host);
    if (there == NULL)
        return error_set_field(d->err, -EXDEV, ERROR_CONFLICT, "/pool",
                               "'%s' is not on host %s, which has VM '%s': name a pool of that host, or give it this one (drover pool "
                               "update)", pool->common->name, vm->vm->host_name, vm->common->name);
    if (there->state != pool_host_state_PRESENT)
        return error_set_field(d->err, -EHOSTDOWN, ERROR_NO_HOST, "/pool", "host %s cannot use '%s' now%s%.200s", vm->vm->host_name,
                               pool->common->name, there->reason != NULL ? ": " : "", there->reason != NULL ? there->reason : "");
    return 0;
}

static int move_fill(struct deciding *d, const struct record *vm, const struct vm_disk_target *body, struct task *task)
{
    const struct record *pool = state_get(d->state, object_kind_POOL, body->pool);
    const struct record *host = state_get(d->state, object_kind_HOST, vm->vm->host);
    if (body->pool != NULL && pool == NULL)
        return error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, "/pool", "there is no pool '%.63s'", body->pool);
    int rc = disk_check(d, vm, body->disk);
    if (rc == 0)
        rc = decide_task_of_vm(d, vm, task);
    if (rc == 0 && (host == NULL || host->host->state != host_state_UP))
        rc = error_set(d->err, -EHOSTDOWN, ERROR_NO_HOST, "host %s, which has VM '%s', is not up", vm->vm->host_name, vm->common->name);
    if (rc == 0 && pool != NULL)
        rc = pool_check(d, vm, pool);
    if (rc < 0)
        return rc;
    OBJECT_SET(task, task, kind, task_kind_VOLUME_MOVE);
    OBJECT_TEXT(task_disk, &task->disk, name, body->disk);
    OBJECT_TEXT(task_disk, &task->disk, pool, pool != NULL ? pool->common->id : NULL);
    object_mark(&task_desc, task, "disk");
    return 0;
}

int decide_vm_move_disk(struct deciding *d, const char *id, size_t id_length, const struct vm_disk_target *body)
{
    struct command_task command = {0};
    struct operation *operation = &command.operation;
    char summary[sizeof d->decision->summary];
    const struct record *vm = decide_target(d, object_kind_VM, id, id_length);
    if (vm == NULL)
        return -ENOENT;
    int rc = move_fill(d, vm, body, &operation->task);
    if (rc < 0) {
        OBJECT_CLEAR(command_task, &command);
        return rc;
    }
    OBJECT_SET(operation, operation, kind, operation_kind_DISK_MOVE);
    OBJECT_SET(operation, operation, target_kind, object_kind_VM);
    OBJECT_TEXT(operation, operation, target_id, vm->common->id);
    OBJECT_TEXT(operation, operation, target_name, vm->common->name);
    if (d->context->if_revision != 0)
        OBJECT_SET(command_task, &command, if_revision, d->context->if_revision);
    snprintf(summary, sizeof summary, "host %.63s moves disk %.20s of VM %.63s to %s%.63s", vm->vm->host_name, body->disk, vm->common->name,
             body->pool != NULL ? "pool " : "its own directory", body->pool != NULL ? body->pool : "");
    decide_preview(d, vm->desc, vm->object);
    rc = decide_task(d, &command);
    snprintf(d->decision->summary, sizeof d->decision->summary, "%s", summary);
    return rc;
}

int decide_vm_forget_left(struct deciding *d, const char *id, size_t id_length, const struct vm_disk_left *body)
{
    struct command_remove command = {0};
    const struct record *vm = decide_target(d, object_kind_VM, id, id_length);
    if (vm == NULL)
        return -ENOENT;
    int rc = disk_check(d, vm, body->disk);
    if (rc < 0)
        return rc;
    decide_request(d, 200, &command.request);
    OBJECT_SET(command_remove, &command, kind, object_kind_VM);
    OBJECT_TEXT(command_remove, &command, id, vm->common->id);
    if (d->context->if_revision != 0)
        OBJECT_SET(command_remove, &command, if_revision, d->context->if_revision);
    OBJECT_SET(command_remove, &command, left, true);
    OBJECT_TEXT(command_remove, &command, disk, body->disk);
    snprintf(d->decision->summary, sizeof d->decision->summary, "what a move has left of disk %s of VM %s is forgotten", body->disk,
             vm->common->name);
    decide_preview(d, vm->desc, vm->object);
    return decide_finish(d, COMMAND_remove, &command);
}
