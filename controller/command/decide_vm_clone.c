/* Requests for clones of VMs: what the new one takes from the other, and what is its own. */
#include "controller/command/decide_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/fsm/address_pool.h"
#include "controller/fsm/pool_members.h"
#include "controller/fsm/volume_disks.h"

static uint64_t bit_of(const struct object_desc *desc, const char *field)
{
    return UINT64_C(1) << (object_field(desc, field) - desc->fields);
}

/* What of a VM is a wish that another one may have too. What protects it is asked for anew: a host is given for replicas, controllers for
 * ha. */
static uint64_t fields_taken(void)
{
    static const char *const left[] = {"name",       "labels",          "disks",           "started",         "backup",        "ha",
                                       "replica_host", "replica_every_s", "replica_limit_s", "replica_sync_s"};
    uint64_t taken = 0;
    for (size_t i = 0; i < vm_desc.n_fields; i++)
        if (!(vm_desc.fields[i].flags & READ_ONLY))
            taken |= UINT64_C(1) << i;
    for (size_t i = 0; i < ARRAY_SIZE(left); i++)
        taken &= ~bit_of(&vm_desc, left[i]);
    return taken;
}

static void labels_fill(const struct vm *source, const struct vm_clone *body, struct vm *vm)
{
    const struct string_map *labels = OBJECT_HAS(vm_clone, body, labels) ? &body->labels : &source->labels;
    CLEANUP_FREE struct string_pair *kept = xcalloc(labels->count + 1, sizeof *kept); /* borrowed: merge copies */
    struct vm taken = {.labels = {.pairs = kept}};
    for (size_t i = 0; i < labels->count; i++)
        if (labels == &body->labels || strcmp(labels->pairs[i].key, STATE_APART_LABEL) != 0) /* they begin on one host */
            kept[taken.labels.count++] = labels->pairs[i];
    if (taken.labels.count == 0)
        return;
    object_mark(&vm_desc, &taken, "labels");
    object_merge(&vm_desc, vm, &taken);
}

/* MAC and IP addresses are its own, of the same networks. */
static void nics_forget(struct vm *vm)
{
    static const struct string_list none;
    for (size_t i = 0; i < vm->nics.count; i++) {
        struct vm_nic *nic = (struct vm_nic *)vm->nics.items + i;
        struct vm_nic taken = {.ips = nic->ips};
        object_mark(&vm_nic_desc, &taken, "ips");
        nic->ips = none;
        OBJECT_CLEAR(vm_nic, &taken);
        OBJECT_TEXT(vm_nic, nic, mac, NULL);
        nic->allocated = false;
        nic->head.present &= ~(bit_of(&vm_nic_desc, "ips") | bit_of(&vm_nic_desc, "allocated"));
    }
}

static int pool_take(struct deciding *d, const struct record *source, const char *wanted, const struct record **ret_pool)
{
    const struct record *pool = state_get(d->state, object_kind_POOL, wanted);
    if (pool == NULL)
        return error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, "/pool", "there is no pool '%.63s'", wanted);
    if (pool->pool->kind != pool_kind_DIR && pool->pool->kind != pool_kind_SHARED_DIR)
        return error_set_field(d->err, -ENOTSUP, ERROR_NOT_SUPPORTED, "/pool",
                               "'%s' is of kind rbd, where VMs have no disks of their own: name one of directories", pool->common->name);
    if (pool_member_find(pool->pool, source->vm->host) == NULL)
        return error_set_field(d->err, -EXDEV, ERROR_CONFLICT, "/pool",
                               "'%s' is not on host %s, which has VM '%s' and copies its disks: name a pool of that host, or give it this one (drover "
                               "pool update)", pool->common->name, source->vm->host_name, source->common->name);
    *ret_pool = pool;
    return 0;
}

/* Its own, each at @place; what is only read its host makes anew, as it does everywhere. */
static int disks_fill(struct deciding *d, const struct record *source, const struct vm_clone *body, const char *place, struct vm *vm)
{
    const struct record *pool = NULL;
    size_t copied = 0;
    int rc = body->pool != NULL ? pool_take(d, source, body->pool, &pool) : 0;
    for (size_t i = 0; rc == 0 && i < source->vm->disks.count; i++) {
        const struct vm_disk *from = (const struct vm_disk *)source->vm->disks.items + i;
        if (from->volume != NULL)
            continue;
        struct vm_disk *disk = OBJECT_ADD(vm, vm, disks);
        OBJECT_COPY(vm_disk, disk, from);
        own_disk_forget_places(disk);
        if (pool != NULL)
            OBJECT_TEXT(vm_disk, disk, pool, pool->common->name);
        if (disk->read_only)
            continue;
        OBJECT_TEXT(vm_disk, disk, place, place);
        copied++;
    }
    if (rc == 0 && pool != NULL)
        OBJECT_TEXT(vm, vm, pool, pool->common->name);
    if (rc == 0 && copied == 0)
        rc = error_set(d->err, -EINVAL, ERROR_INVALID,
                       "VM '%s' has no disk of its own that it writes to, so there is nothing to copy: make a VM like it (drover vm create)",
                       source->common->name);
    return rc;
}

static int volumes_check(struct deciding *d, const struct record *source, const struct record *snapshot, const struct vm_clone *body)
{
    const struct vm_disk *disk = volume_disk_any(source->vm);
    const struct record *volume = disk != NULL ? state_get(d->state, object_kind_VOLUME, disk->volume) : NULL;
    if (body->without_volumes || (volume == NULL && (snapshot == NULL || snapshot->snapshot->volumes.count == 0)))
        return 0;
    return error_set_field(d->err, -EBUSY, ERROR_CONFLICT, "/without_volumes",
                           "is needed: VM '%s' has %s%s%s, and volumes are no part of a clone. Each can be cloned by itself and attached to it (drover "
                           "snapshot clone SNAPSHOT NAME --volume VOLUME)", source->common->name, volume != NULL ? "volume '" : "volumes",
                           volume != NULL ? volume->common->name : "", volume != NULL ? "'" : "");
}

static int vm_fill(struct deciding *d, const struct record *source, const struct record *snapshot, const struct vm_clone *body,
                   const char *place, struct vm *vm)
{
    char id[STATE_ID_BYTES];
    struct vm taken = *source->vm; /* borrowed: merge copies */
    taken.head.present &= fields_taken();
    object_merge(&vm_desc, vm, &taken);
    OBJECT_TEXT(vm, vm, name, body->name);
    if (body->hostname != NULL || source->vm->hostname != NULL)
        OBJECT_TEXT(vm, vm, hostname, body->hostname != NULL ? body->hostname : body->name);
    decide_uuid(d, id);
    OBJECT_TEXT(vm, vm, id, id);
    labels_fill(source->vm, body, vm);
    nics_forget(vm);
    int rc = volumes_check(d, source, snapshot, body);
    if (rc == 0)
        rc = disks_fill(d, source, body, place, vm);
    if (rc == 0)
        rc = decide_nics_fill(d, vm);
    if (rc == 0)
        rc = vm_nics_resolve(d->state, vm, d->err);
    if (rc < 0)
        return rc;
    OBJECT_SET(vm, vm, wanted, vm_wanted_STOPPED);
    OBJECT_TEXT(vm, vm, host, source->vm->host);
    OBJECT_TEXT(vm, vm, host_name, source->vm->host_name);
    OBJECT_SET(vm, vm, epoch, 1);
    return 0;
}

/* @snapshot: its id; NULL: none. */
static void operation_fill(struct deciding *d, const struct record *source, const char *snapshot, struct command_vm_clone *command)
{
    struct operation *operation = &command->operation;
    struct task_vm_clone *clone = &operation->task.vm_clone;
    OBJECT_TEXT(operation, operation, id, d->decision->operation_id);
    OBJECT_SET(operation, operation, kind, operation_kind_VM_CLONE);
    OBJECT_SET(operation, operation, target_kind, object_kind_VM);
    OBJECT_TEXT(operation, operation, target_id, command->vm.id);
    OBJECT_TEXT(operation, operation, target_name, command->vm.name);
    OBJECT_SET(task, &operation->task, kind, task_kind_VM_CLONE);
    OBJECT_TEXT(task, &operation->task, host, source->vm->host);
    OBJECT_TEXT(task, &operation->task, vm, command->vm.id);
    OBJECT_SET(task, &operation->task, epoch, command->vm.epoch);
    OBJECT_TEXT(task_vm_clone, clone, vm, source->common->id);
    OBJECT_TEXT(task_vm_clone, clone, vm_name, source->common->name);
    OBJECT_SET(task_vm_clone, clone, epoch, source->vm->epoch);
    if (snapshot != NULL)
        OBJECT_TEXT(task_vm_clone, clone, snapshot, snapshot);
    object_mark(&task_desc, &operation->task, "vm_clone");
    object_mark(&operation_desc, operation, "task");
}

static int snapshot_find(struct deciding *d, const struct record *source, const char *wanted, const struct record **ret_snapshot)
{
    const struct record *snapshot = state_get(d->state, object_kind_SNAPSHOT, wanted);
    *ret_snapshot = snapshot;
    if (wanted == NULL || (snapshot != NULL && text_same(snapshot->snapshot->vm, source->common->id)))
        return 0;
    return error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, "/snapshot", "VM '%s' has no snapshot '%.63s'", source->common->name, wanted);
}

/* One that runs is cloned as it is at a moment: a snapshot is made for it. */
static int own_snapshot(struct deciding *d, const struct record *source, const struct vm_clone *body, struct command_vm_clone *command)
{
    bool runs = source->vm->state == vm_state_RUNNING || source->vm->state == vm_state_PAUSED;
    if (body->snapshot == NULL && runs) {
        int rc = decide_snapshot_for_clone(d, source, body, &command->snapshot);
        object_mark(&command_vm_clone_desc, command, "snapshot");
        return rc;
    }
    if (!OBJECT_HAS(vm_clone, body, freeze))
        return 0;
    return error_set_field(d->err, -EINVAL, ERROR_INVALID, "/freeze", "is for a VM that runs, where no snapshot is named: %s",
                           body->snapshot != NULL ? "that one was made already" : "this one does not run");
}

int decide_vm_clone(struct deciding *d, const char *id, size_t id_length, const struct vm_clone *body)
{
    struct command_vm_clone command = {0};
    const struct record *source = decide_target(d, object_kind_VM, id, id_length), *snapshot = NULL;
    const struct record *host = source != NULL ? state_get(d->state, object_kind_HOST, source->vm->host) : NULL;
    if (source == NULL)
        return -ENOENT;
    decide_uuid(d, d->decision->operation_id);
    int rc = snapshot_find(d, source, body->snapshot, &snapshot);
    if (rc == 0 && host == NULL)
        rc = error_set(d->err, -ENOENT, ERROR_CONFLICT, "VM '%s' waits for a host and has no disks yet", source->common->name);
    if (rc == 0 && host->host->state != host_state_UP)
        rc = error_set(d->err, -EHOSTDOWN, ERROR_NO_HOST, "host %s, which has VM '%s', is not up", host->common->name, source->common->name);
    if (rc == 0)
        rc = vm_fill(d, source, snapshot, body, d->decision->operation_id, &command.vm);
    if (rc == 0)
        rc = own_snapshot(d, source, body, &command);
    if (rc < 0) {
        OBJECT_CLEAR(command_vm_clone, &command);
        return rc;
    }
    operation_fill(d, source, snapshot != NULL ? snapshot->common->id : command.snapshot.task.snapshot.id, &command);
    if (d->context->if_revision != 0)
        OBJECT_SET(command_vm_clone, &command, if_revision, d->context->if_revision);
    object_mark(&command_vm_clone_desc, &command, "vm");
    object_mark(&command_vm_clone_desc, &command, "operation");
    decide_request(d, 202, &command.request);
    decide_object(d, object_kind_VM, command.vm.id);
    decide_preview(d, &vm_desc, &command.vm);
    snprintf(d->decision->summary, sizeof d->decision->summary, "host %.63s makes VM %.63s of VM %.63s", host->common->name, body->name,
             source->common->name);
    return decide_finish(d, COMMAND_vm_clone, &command);
}
