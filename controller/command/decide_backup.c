/* Requests about backups: tasks of the host that has the VM's disks. */
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
    for (unsigned i = 2; i < NAME_TRIES_MAX && state_get(d->state, object_kind_BACKUP, name) != NULL; i++)
        snprintf(name, NAME_BYTES, "%.*s-%.4s%.2s%.2s-%.2s%.2s%.2s-%u", length, vm->name, t, t + 5, t + 8, t + 11,
                 t + 14, t + 17, i);
}

static void fill_operation(struct command_task *command, enum operation_kind kind, enum task_kind task,
                           const char *id, const char *name, const char *store)
{
    struct operation *operation = &command->operation;
    OBJECT_SET(operation, operation, kind, kind);
    OBJECT_SET(operation, operation, target_kind, object_kind_BACKUP);
    OBJECT_TEXT(operation, operation, target_id, id);
    OBJECT_TEXT(operation, operation, target_name, name);
    OBJECT_SET(task, &operation->task, kind, task);
    OBJECT_TEXT(task_backup, &operation->task.backup, id, id);
    OBJECT_TEXT(task_backup, &operation->task.backup, store, store);
    object_mark(&task_desc, &operation->task, "backup");
}

static int begin(struct deciding *d, const struct record *vm, struct command_task *command)
{
    int rc = decide_task_of_vm(d, vm, &command->operation.task);
    if (rc == 0)
        return decide_task(d, command);
    OBJECT_CLEAR(command_task, command);
    return rc;
}

/* By name or id; the only one there is where none is given. */
static const struct record *store_choose(struct deciding *d, const char *given)
{
    size_t count = state_count(d->state, object_kind_BACKUP_STORE);
    const struct record *store = given != NULL ? state_get(d->state, object_kind_BACKUP_STORE, given)
                                 : count == 1  ? state_at(d->state, object_kind_BACKUP_STORE, 0)
                                               : NULL;
    if (store == NULL && given != NULL)
        error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, "/store", "there is no backup store '%.63s'", given);
    else if (store == NULL && count == 0)
        error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, "/store",
                        "there is no backup store yet; make one (drover backup-store create)");
    else if (store == NULL)
        error_set_field(d->err, -EINVAL, ERROR_INVALID, "/store", "say which of the %zu backup stores", count);
    return store;
}

/* The newest backup of @vm in @store that is whole; NULL: none. */
static const struct backup *newest(const struct deciding *d, const struct vm *vm, const struct record *store)
{
    const struct backup *found = NULL;
    for (size_t i = 0; i < state_count(d->state, object_kind_BACKUP); i++) {
        const struct backup *backup = state_at(d->state, object_kind_BACKUP, i)->backup;
        bool is_one = backup->state != backup_state_CREATING && strcmp(backup->vm, vm->id) == 0 &&
                      strcmp(backup->store, store->common->id) == 0;
        if (is_one && (found == NULL || strcmp(backup->created_at, found->created_at) > 0))
            found = backup;
    }
    return found;
}

static void fill_arguments(struct deciding *d, const struct record *vm, const struct record *store,
                           const struct backup *body, struct task_backup *arguments)
{
    struct bytes_writer definition = {0};
    const struct backup *parent = newest(d, vm->vm, store);
    if (parent != NULL)
        OBJECT_TEXT(task_backup, arguments, parent, parent->id);
    OBJECT_TEXT(task_backup, arguments, vm_name, vm->vm->name);
    state_put_json(d->state, vm, &definition);
    bytes_put_u8(&definition, 0);
    if (definition.size <= object_field(&task_backup_desc, "definition")->max)
        OBJECT_TEXT(task_backup, arguments, definition, (const char *)definition.data);
    bytes_writer_finish(&definition);
    if (body == NULL)
        return;
    if (OBJECT_HAS(backup, body, freeze))
        OBJECT_SET(task_backup, arguments, freeze, body->freeze);
    struct task_backup labels = {.labels = body->labels}; /* borrowed: merge copies */
    if (body->labels.count > 0) {
        object_mark(&task_backup_desc, &labels, "labels");
        object_merge(&task_backup_desc, arguments, &labels);
    }
}

int decide_backup_create(struct deciding *d, const char *vm_id, size_t vm_length, const struct backup *body)
{
    struct command_task command = {0};
    struct backup preview = {0};
    char id[STATE_ID_BYTES], name[NAME_BYTES];
    const struct record *vm = decide_target(d, object_kind_VM, vm_id, vm_length);
    const struct record *store = vm != NULL ? store_choose(d, body != NULL ? body->store : NULL) : NULL;
    if (store == NULL)
        return -ENOENT;
    decide_uuid(d, id);
    if (body != NULL && body->name != NULL)
        snprintf(name, sizeof name, "%s", body->name);
    else
        make_name(d, vm->vm, name);
    fill_operation(&command, operation_kind_BACKUP_CREATE, task_kind_BACKUP_CREATE, id, name, store->common->id);
    OBJECT_TEXT(task_backup, &command.operation.task.backup, name, name);
    fill_arguments(d, vm, store, body, &command.operation.task.backup);
    OBJECT_TEXT(backup, &preview, id, id);
    OBJECT_TEXT(backup, &preview, name, name);
    OBJECT_TEXT(backup, &preview, vm, vm->vm->id);
    OBJECT_TEXT(backup, &preview, vm_name, vm->vm->name);
    OBJECT_TEXT(backup, &preview, store, store->common->id);
    OBJECT_TEXT(backup, &preview, store_name, store->common->name);
    decide_preview(d, &backup_desc, &preview);
    OBJECT_CLEAR(backup, &preview);
    return begin(d, vm, &command);
}

/* Any host can: the VM's own, or the first that is up. */
static const char *host_choose(const struct deciding *d, const struct backup *backup)
{
    const struct record *vm = state_get(d->state, object_kind_VM, backup->vm);
    if (vm != NULL && vm->vm->host != NULL)
        return vm->vm->host;
    for (size_t i = 0; i < state_count(d->state, object_kind_HOST); i++) {
        const struct host *host = state_at(d->state, object_kind_HOST, i)->host;
        if (host->state == host_state_UP)
            return host->id;
    }
    return NULL;
}

int decide_backup_delete(struct deciding *d, const char *id, size_t id_length)
{
    struct command_task command = {0};
    const struct record *record = decide_target(d, object_kind_BACKUP, id, id_length);
    if (record == NULL)
        return -ENOENT;
    const char *host = host_choose(d, record->backup);
    if (host == NULL)
        return error_set(d->err, -EHOSTDOWN, ERROR_NO_HOST, "no host is up that could reach the store");
    fill_operation(&command, operation_kind_BACKUP_DELETE, task_kind_BACKUP_DELETE, record->common->id,
                   record->common->name, record->backup->store);
    OBJECT_TEXT(task, &command.operation.task, host, host);
    decide_preview(d, record->desc, record->object);
    return decide_task(d, &command);
}

int decide_backup_restore(struct deciding *d, const char *id, size_t id_length, const struct backup_restore *body)
{
    struct command_task command = {0};
    const struct record *record = decide_target(d, object_kind_BACKUP, id, id_length);
    if (record == NULL)
        return -ENOENT;
    const char *wanted = body != NULL && body->vm != NULL ? body->vm : record->backup->vm;
    const struct record *vm = state_get(d->state, object_kind_VM, wanted);
    if (vm == NULL)
        return error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, "/vm",
                               "there is no VM '%.63s'; make one with disks of the same names, stop it, and name it here",
                               wanted);
    fill_operation(&command, operation_kind_BACKUP_RESTORE, task_kind_BACKUP_RESTORE, record->common->id,
                   record->common->name, record->backup->store);
    OBJECT_TEXT(task_backup, &command.operation.task.backup, vm_name, record->backup->vm_name);
    decide_preview(d, record->desc, record->object);
    return begin(d, vm, &command);
}
