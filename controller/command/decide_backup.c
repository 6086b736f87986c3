/* Requests about backups: tasks of the host that has the VM's disks. */
#include "controller/command/decide_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/fsm/backup_definition.h"
#include "controller/fsm/backup_rules.h"
#include "controller/fsm/mac_index.h"
#include "controller/fsm/time_text.h"
#include "controller/fsm/volume_disks.h"

#define NAME_BYTES 64u          /* with its NUL */
#define NAME_OF_VM_CHARACTERS 44 /* so much of the VM's, where the name is made */
#define NAME_TRIES_MAX 100u
#define SECTOR_BYTES 512u
#define MIB (UINT64_C(1) << 20)

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
        bool is_one = backup->state != backup_state_CREATING && backup->damage == NULL && strcmp(backup->vm, vm->id) == 0 &&
                      strcmp(backup->store, store->common->id) == 0 && !time_text_is_ahead(time_text_ms(d->context->now), backup->created_at);
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
    backup_definition_put(d->state, vm, &definition);
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

/* It goes back disk by disk: some would be of one moment, and some of another. */
static int not_while_reverted(struct deciding *d, const struct vm *vm)
{
    for (size_t i = 0; i < state_count(d->state, object_kind_SNAPSHOT); i++) {
        const struct snapshot *snapshot = state_at(d->state, object_kind_SNAPSHOT, i)->snapshot;
        if (snapshot->state == snapshot_state_REVERTING && snapshot->vm != NULL && strcmp(snapshot->vm, vm->id) == 0)
            return error_set(d->err, -EBUSY, ERROR_CONFLICT, "VM '%s' goes back to snapshot '%s'; wait for that", vm->name, snapshot->name);
    }
    return 0;
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
    int rc = not_while_reverted(d, vm->vm);
    if (rc < 0)
        return rc;
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

const char *decide_backup_host(const struct deciding *d, const char *vm_id)
{
    const struct record *vm = vm_id != NULL ? state_get(d->state, object_kind_VM, vm_id) : NULL;
    if (vm != NULL && vm->vm->host != NULL)
        return vm->vm->host;
    return backup_rules_host(d->state);
}

int decide_backup_delete(struct deciding *d, const char *id, size_t id_length)
{
    struct command_task command = {0};
    const struct record *record = decide_target(d, object_kind_BACKUP, id, id_length);
    if (record == NULL)
        return -ENOENT;
    const char *host = decide_backup_host(d, record->backup->vm);
    if (host == NULL)
        return error_set(d->err, -EHOSTDOWN, ERROR_NO_HOST, "no host is up that could reach the store");
    fill_operation(&command, operation_kind_BACKUP_DELETE, task_kind_BACKUP_DELETE, record->common->id,
                   record->common->name, record->backup->store);
    OBJECT_TEXT(task, &command.operation.task, host, host);
    decide_preview(d, record->desc, record->object);
    return decide_task(d, &command);
}

int decide_backup_attach(struct deciding *d, const char *id, size_t id_length)
{
    struct command_task command = {0};
    struct operation *operation = &command.operation;
    const struct record *record = decide_target(d, object_kind_BACKUP_STORE, id, id_length);
    if (record == NULL)
        return -ENOENT;
    const char *host = decide_backup_host(d, NULL);
    if (host == NULL)
        return error_set(d->err, -EHOSTDOWN, ERROR_NO_HOST, "no host is up that could reach the store");
    OBJECT_SET(operation, operation, kind, operation_kind_BACKUP_ATTACH);
    OBJECT_SET(operation, operation, target_kind, object_kind_BACKUP_STORE);
    OBJECT_TEXT(operation, operation, target_id, record->common->id);
    OBJECT_TEXT(operation, operation, target_name, record->common->name);
    OBJECT_SET(task, &operation->task, kind, task_kind_BACKUP_ATTACH);
    OBJECT_TEXT(task, &operation->task, host, host);
    OBJECT_TEXT(task_backup, &operation->task.backup, store, record->common->id);
    if (record->backup_store->attach_after != NULL)
        OBJECT_TEXT(task_backup, &operation->task.backup, after, record->backup_store->attach_after);
    object_mark(&task_desc, &operation->task, "backup");
    decide_preview(d, record->desc, record->object);
    return decide_task(d, &command);
}

/* ---- a VM as it is in a backup ---- */

/* What of a VM's definition is no wish: what the cluster set, and what meant something in that cluster alone. */
static uint64_t fields_taken(const struct vm *body)
{
    static const char *const left[] = {"name", "flavor", "pin", "started", "backup", "replica_host", "replica_every_s", "replica_limit_s", "replica_sync_s"}; /* a flavor's sizes are in it */
    static const char *const of_flavor[] = {"vcpus", "memory_bytes", "cpu_model"};
    uint64_t taken = 0;
    for (size_t i = 0; i < vm_desc.n_fields; i++)
        if (!(vm_desc.fields[i].flags & READ_ONLY))
            taken |= UINT64_C(1) << i;
    for (size_t i = 0; i < ARRAY_SIZE(left); i++)
        taken &= ~(UINT64_C(1) << (object_field(&vm_desc, left[i]) - vm_desc.fields));
    for (size_t i = 0; body->flavor != NULL && i < ARRAY_SIZE(of_flavor); i++)
        taken &= ~(UINT64_C(1) << (object_field(&vm_desc, of_flavor[i]) - vm_desc.fields));
    return taken;
}

/* What was a volume is a disk of the VM's own now: the volume may be another VM's, or be there no more. And it is made anew, not where
 * moves had taken it. */
static void volume_forget(struct vm_disk *disk)
{
    static const char *const fields[] = {"attachment", "leaving", "forced"};
    OBJECT_TEXT(vm_disk, disk, volume, NULL);
    own_disk_forget_places(disk);
    disk->attachment = 0;
    disk->leaving = disk->forced = false;
    for (size_t i = 0; i < ARRAY_SIZE(fields); i++)
        disk->head.present &= ~(UINT64_C(1) << (object_field(&vm_disk_desc, fields[i]) - vm_disk_desc.fields));
}

/* Its disks are as large as the backup's; one begins as a copy of the image's only where that fits. */
static void disks_as_backed_up(const struct deciding *d, const struct backup *backup, struct vm *vm)
{
    const struct record *image = state_get(d->state, object_kind_IMAGE, vm->image);
    uint64_t image_bytes = image != NULL && OBJECT_HAS(image, image->image, disk) ? image->image->disk.size_bytes : 0;
    for (size_t i = 0; i < vm->disks.count; i++) {
        struct vm_disk *disk = (struct vm_disk *)vm->disks.items + i;
        uint64_t bytes = MAX(disk->size_bytes, MIB);
        for (size_t k = 0; k < backup->disks.count; k++) {
            const struct snapshot_disk *had = (const struct snapshot_disk *)backup->disks.items + k;
            if (strcmp(had->name, disk->name) == 0)
                bytes = MAX(bytes, (had->size_bytes + SECTOR_BYTES - 1) / SECTOR_BYTES * SECTOR_BYTES);
        }
        OBJECT_SET(vm_disk, disk, size_bytes, bytes);
        volume_forget(disk);
        if (disk->image && (image_bytes == 0 || image_bytes > bytes))
            OBJECT_SET(vm_disk, disk, image, false);
    }
}

/* All disks go to the pool that is named now. */
static void pools_forget(struct vm *vm)
{
    for (size_t i = 0; i < vm->disks.count; i++)
        OBJECT_TEXT(vm_disk, (struct vm_disk *)vm->disks.items + i, pool, NULL);
}

/* Addresses of a pool are given anew; a MAC address that somebody has by now as well. */
static void nics_as_backed_up(const struct deciding *d, struct vm *vm)
{
    static const struct string_list none;
    for (size_t i = 0; i < vm->nics.count; i++) {
        struct vm_nic *nic = (struct vm_nic *)vm->nics.items + i;
        if (nic->mac != NULL && state_mac_in_use(d->state, nic->mac))
            OBJECT_TEXT(vm_nic, nic, mac, NULL);
        if (nic->allocated) {
            struct vm_nic taken = {.ips = nic->ips};
            object_mark(&vm_nic_desc, &taken, "ips");
            nic->ips = none;
            nic->head.present &= ~(UINT64_C(1) << (object_field(&vm_nic_desc, "ips") - vm_nic_desc.fields));
            OBJECT_CLEAR(vm_nic, &taken);
        }
        nic->allocated = false;
        nic->head.present &= ~(UINT64_C(1) << (object_field(&vm_nic_desc, "allocated") - vm_nic_desc.fields));
    }
}

/* What the VM needs and this cluster may not have: in words that say what to do. */
static int needs_check(struct deciding *d, const struct vm *vm)
{
    if (state_get(d->state, object_kind_IMAGE, vm->image) == NULL)
        return error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, "/image",
                               "there is no image '%s', which the VM in the backup boots; import it, or name another one of "
                               "its kind here: what is on the disks comes from the backup",
                               vm->image != NULL ? vm->image : "");
    for (size_t i = 0; i < vm->disks.count; i++) {
        const struct vm_disk *disk = (const struct vm_disk *)vm->disks.items + i;
        char field[48];
        snprintf(field, sizeof field, "/disks/%zu/pool", i);
        if (disk->pool != NULL && state_get(d->state, object_kind_POOL, disk->pool) == NULL)
            return error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, field,
                                   "there is no pool '%s', which disk '%s' of the VM in the backup is in; make it, give pool "
                                   "here, which all its disks go to then, or give disks",
                                   disk->pool, disk->name);
    }
    for (size_t i = 0; i < vm->nics.count; i++) {
        const struct vm_nic *nic = (const struct vm_nic *)vm->nics.items + i;
        char field[48];
        snprintf(field, sizeof field, "/nics/%zu/network", i);
        if (nic->network != NULL && state_get(d->state, object_kind_NETWORK, nic->network) == NULL)
            return error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, field,
                                   "there is no network '%s', which the VM in the backup is in; make it (the backup's definition "
                                   "shows how it was), or give nics here",
                                   nic->network);
    }
    return 0;
}

int decide_vm_from_backup(struct deciding *d, struct vm *vm)
{
    const struct record *record = state_get(d->state, object_kind_BACKUP, vm->backup);
    struct vm then = {0}, made = {0};
    struct error why = {.code = 0};
    if (record == NULL)
        return error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, "/backup", "there is no backup '%.63s'", vm->backup);
    if (vm->started)
        return error_set_field(d->err, -EINVAL, ERROR_INVALID, "/started",
                               "must be false: its disks are empty until the backup is restored to it; start it then");
    const char *text = record->backup->definition;
    if (text == NULL || OBJECT_DECODE(vm, text, strlen(text), OBJECT_LENIENT, &then, &why) < 0)
        return error_set_field(d->err, -EINVAL, ERROR_INVALID, "/backup",
                               "the backup does not say what its VM was (%.200s): make one by hand, with disks of the same names",
                               text == NULL ? "it has no definition" : why.text);
    for (size_t i = 0; i < then.disks.count; i++) {
        if (((const struct vm_disk *)then.disks.items + i)->name != NULL)
            continue;
        OBJECT_CLEAR(vm, &then); /* outside bytes */
        return error_set_field(d->err, -EINVAL, ERROR_INVALID, "/backup",
                               "the backup's definition has a disk without a name: make the VM by hand, with disks of the same names");
    }
    struct vm taken = then; /* borrowed: merge copies */
    taken.head.present &= fields_taken(vm);
    object_merge(&vm_desc, &made, &taken);
    OBJECT_CLEAR(vm, &then);
    if (vm->pool != NULL)
        pools_forget(&made);
    disks_as_backed_up(d, record->backup, &made);
    nics_as_backed_up(d, &made);
    object_merge(&vm_desc, &made, vm);
    OBJECT_CLEAR(vm, vm);
    *vm = made;
    OBJECT_TEXT(vm, vm, backup, NULL); /* a wish of the moment, not a property */
    OBJECT_SET(vm, vm, started, false);
    return needs_check(d, vm);
}

/* ---- restore ---- */

/* The disks that are wanted are in the backup and of the VM. */
static int restored_disks(struct deciding *d, const struct backup *backup, const struct vm *vm, const struct backup_restore *body,
                          struct task_backup *arguments)
{
    for (size_t i = 0; i < body->disks.count; i++) {
        const char *name = body->disks.items[i];
        bool in_backup = backup->disks.count == 0, of_vm = false; /* what an old one has is not known here */
        char field[32];
        snprintf(field, sizeof field, "/disks/%zu", i);
        for (size_t k = 0; k < backup->disks.count; k++)
            in_backup = in_backup || strcmp(((const struct snapshot_disk *)backup->disks.items)[k].name, name) == 0;
        for (size_t k = 0; k < vm->disks.count; k++)
            of_vm = of_vm || strcmp(((const struct vm_disk *)vm->disks.items)[k].name, name) == 0;
        if (!in_backup || !of_vm)
            return error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, field, "%s '%s' has no disk '%s'",
                                   in_backup ? "VM" : "backup", in_backup ? vm->name : backup->name, name);
    }
    struct task_backup wanted = {.disks = body->disks}; /* borrowed: merge copies */
    if (body->disks.count > 0) {
        object_mark(&task_backup_desc, &wanted, "disks");
        object_merge(&task_backup_desc, arguments, &wanted);
    }
    return 0;
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
                               "there is no VM '%.63s'; make one of the backup (drover vm create NAME --backup %s) and name it here",
                               wanted, record->common->name);
    fill_operation(&command, operation_kind_BACKUP_RESTORE, task_kind_BACKUP_RESTORE, record->common->id,
                   record->common->name, record->backup->store);
    OBJECT_TEXT(task_backup, &command.operation.task.backup, vm_name, record->backup->vm_name);
    if (body != NULL && body->live)
        OBJECT_SET(task_backup, &command.operation.task.backup, live, true);
    int rc = body != NULL ? restored_disks(d, record->backup, vm->vm, body, &command.operation.task.backup) : 0;
    if (rc < 0) {
        OBJECT_CLEAR(command_task, &command);
        return rc;
    }
    decide_preview(d, record->desc, record->object);
    return begin(d, vm, &command);
}
