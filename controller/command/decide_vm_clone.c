/* Requests for clones of VMs: what the new one takes from the other, and what is its own. */
#include "controller/command/decide_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/fsm/address_pool.h"
#include "controller/fsm/pool_members.h"
#include "controller/fsm/volume_disks.h"

#define NAME_CHARACTERS_MAX 63u
#define NAMES_BYTES (2 * NAME_CHARACTERS_MAX + 2)

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

/* ---- volumes ---- */

/* Has the clone one of it? What was attached after the snapshot was made is not in that. */
static bool takes_volume(const struct record *snapshot, const struct vm_clone *body, const struct vm_disk *disk)
{
    return !body->without_volumes && (snapshot == NULL || volume_is_in(snapshot->snapshot, disk->volume));
}

static bool has_volume(const struct deciding *d, const struct vm *vm, const char *name)
{
    const struct vm_disk *disks = vm->disks.items;
    for (size_t i = 0; i < vm->disks.count; i++)
        if (disks[i].volume != NULL && strcmp(state_get(d->state, object_kind_VOLUME, disks[i].volume)->common->name, name) == 0)
            return true;
    return false;
}

/* <new>-<volume>. Where the volume's name begins with that of its VM the new one's takes the place of that, unless another of its volumes has
 * the rest as its name: so clones of clones have names as short, and a user can tell them beforehand. */
static int volume_name(struct deciding *d, const struct record *source, const struct volume *origin, const char *new, char name[NAMES_BYTES])
{
    const size_t length = strlen(source->common->name);
    const char *rest = origin->name;
    if (strncmp(rest, source->common->name, length) == 0 && rest[length] == '-' && rest[length + 1] != '\0' &&
        !has_volume(d, source->vm, rest + length + 1))
        rest += length + 1;
    snprintf(name, NAMES_BYTES, "%s-%s", new, rest);
    if (strlen(name) > NAME_CHARACTERS_MAX)
        return error_set_field(d->err, -EINVAL, ERROR_INVALID, "/name",
                               "is too long for its volumes: that of volume '%s' would be '%s', and %u characters are the most; choose a shorter one, "
                               "or leave volumes out (--without-volumes)", origin->name, name, NAME_CHARACTERS_MAX);
    if (state_get(d->state, object_kind_VOLUME, name) != NULL)
        return error_set_field(d->err, -EEXIST, ERROR_EXISTS, "/name",
                               "would give the clone of volume '%s' the name '%s', which another volume has: choose another one, rename that volume, "
                               "or leave volumes out (--without-volumes)", origin->name, name);
    return 0;
}

static int volume_check(struct deciding *d, const struct record *source, const struct volume *origin)
{
    const struct pool *pool = state_get(d->state, object_kind_POOL, origin->pool)->pool;
    bool is_off = source->vm->state == vm_state_STOPPED;
    if (pool->kind == pool_kind_DIR || pool->kind == pool_kind_SHARED_DIR)
        return 0;
    return error_set_field(d->err, -ENOTSUP, ERROR_NOT_SUPPORTED, "/without_volumes",
                           "is needed: volume '%s' of VM '%s' is in pool '%s' of kind rbd, and only what is in directories is cloned with a VM. %s",
                           origin->name, source->common->name, pool->name,
                           is_off ? "Give it (--without-volumes), and make and attach others of the new VM's"
                                  : "Stop the VM, give it (--without-volumes), and make and attach others of the new VM's");
}

/* The same name as a disk, and so the same serial number: what the guest knows it by. */
static void volume_fill(struct deciding *d, const struct record *source, const struct record *snapshot, const struct volume *origin,
                        const struct pool *pool, const struct vm *vm, struct volume *volume)
{
    struct volume labels = {.labels = origin->labels}; /* borrowed: merge copies */
    char id[STATE_ID_BYTES];
    decide_uuid(d, id);
    OBJECT_TEXT(volume, volume, id, id);
    OBJECT_SET(volume, volume, size_bytes, origin->size_bytes);
    OBJECT_TEXT(volume, volume, pool, pool->name);
    if (pool->kind == pool_kind_DIR)
        OBJECT_TEXT(volume, volume, host, source->vm->host_name);
    OBJECT_SET(volume, volume, state, volume_state_ATTACHING);
    OBJECT_TEXT(volume, volume, vm, vm->id);
    OBJECT_TEXT(volume, volume, vm_name, vm->name);
    OBJECT_TEXT(volume, volume, disk, origin->disk);
    OBJECT_SET(volume, volume, attachments, 1);
    OBJECT_TEXT(volume, volume, place, d->decision->operation_id);
    if (snapshot != NULL)
        OBJECT_TEXT(volume, volume, snapshot, snapshot->common->name);
    OBJECT_TEXT(volume, volume, origin, origin->id);
    if (origin->labels.count > 0) {
        object_mark(&volume_desc, &labels, "labels");
        object_merge(&volume_desc, volume, &labels);
    }
}

/* @pool: NULL: that of the other one. */
static int volume_add(struct deciding *d, const struct record *source, const struct record *snapshot, const struct vm_disk *from,
                      const struct record *pool, struct command_vm_clone *command)
{
    const struct volume *origin = state_get(d->state, object_kind_VOLUME, from->volume)->volume;
    const struct pool *to = (pool != NULL ? pool : state_get(d->state, object_kind_POOL, origin->pool))->pool;
    char name[NAMES_BYTES];
    int rc = volume_check(d, source, origin);
    if (rc == 0)
        rc = volume_name(d, source, origin, command->vm.name, name);
    if (rc < 0)
        return rc;
    struct volume *volume = OBJECT_ADD(command_vm_clone, command, volumes);
    OBJECT_TEXT(volume, volume, name, name);
    volume_fill(d, source, snapshot, origin, to, &command->vm, volume);
    struct vm_disk *disk = OBJECT_ADD(vm, &command->vm, disks);
    OBJECT_COPY(vm_disk, disk, from);
    OBJECT_TEXT(vm_disk, disk, pool, to->name);
    OBJECT_TEXT(vm_disk, disk, volume, volume->id);
    OBJECT_SET(vm_disk, disk, attachment, volume->attachments);
    return 0;
}

/* ---- disks ---- */

/* False: it is only read, and its host makes it anew, as it does everywhere. */
static bool own_disk_add(const struct vm_disk *from, const struct record *pool, const char *place, struct vm *vm)
{
    struct vm_disk *disk = OBJECT_ADD(vm, vm, disks);
    OBJECT_COPY(vm_disk, disk, from);
    own_disk_forget_places(disk);
    if (pool != NULL)
        OBJECT_TEXT(vm_disk, disk, pool, pool->common->name);
    if (!disk->read_only)
        OBJECT_TEXT(vm_disk, disk, place, place);
    return !disk->read_only;
}

/* In the order of the other one's, for that is how the guest sees them. */
static int disks_fill(struct deciding *d, const struct record *source, const struct record *snapshot, const struct vm_clone *body,
                      struct command_vm_clone *command)
{
    const struct record *pool = NULL;
    size_t copied = 0;
    int rc = body->pool != NULL ? pool_take(d, source, body->pool, &pool) : 0;
    for (size_t i = 0; rc == 0 && i < source->vm->disks.count; i++) {
        const struct vm_disk *from = (const struct vm_disk *)source->vm->disks.items + i;
        if (from->volume == NULL)
            copied += own_disk_add(from, pool, d->decision->operation_id, &command->vm);
        else if (takes_volume(snapshot, body, from))
            rc = volume_add(d, source, snapshot, from, pool, command);
    }
    if (rc == 0 && pool != NULL)
        OBJECT_TEXT(vm, &command->vm, pool, pool->common->name);
    if (rc == 0 && copied + command->volumes.count == 0)
        rc = error_set(d->err, -EINVAL, ERROR_INVALID,
                       "VM '%s' has no disk%s that it writes to, so there is nothing to copy: make a VM like it (drover vm create)",
                       source->common->name, volume_disk_any(source->vm) != NULL ? " but volumes that are left out" : "");
    return rc;
}

static int vm_fill(struct deciding *d, const struct record *source, const struct record *snapshot, const struct vm_clone *body,
                   struct command_vm_clone *command)
{
    struct vm *vm = &command->vm;
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
    int rc = disks_fill(d, source, snapshot, body, command);
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

/* For whoever asked: they follow a rule, and are said all the same. */
static void names_fill(const struct object_list *volumes, struct operation *operation)
{
    CLEANUP_FREE char **names = xcalloc(volumes->count + 1, sizeof *names); /* borrowed: merge copies */
    struct operation given = {.volumes = {.items = names, .count = volumes->count}};
    for (size_t i = 0; i < volumes->count; i++)
        names[i] = ((const struct volume *)volumes->items)[i].name;
    if (volumes->count == 0)
        return;
    object_mark(&operation_desc, &given, "volumes");
    object_merge(&operation_desc, operation, &given);
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
    names_fill(&command->volumes, operation);
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

static void summary_fill(struct deciding *d, const struct record *host, const struct record *source, const struct command_vm_clone *command)
{
    const struct volume *volumes = command->volumes.items;
    const size_t size = sizeof d->decision->summary;
    char *summary = d->decision->summary;
    snprintf(summary, size, "host %.40s makes VM %.63s of VM %.63s", host->common->name, command->vm.name, source->common->name);
    for (size_t i = 0; i < command->volumes.count && strlen(summary) < size - 1; i++)
        snprintf(summary + strlen(summary), size - strlen(summary), "%s%s", i == 0 ? ", with volumes " : ", ", volumes[i].name);
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
        rc = vm_fill(d, source, snapshot, body, &command);
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
    summary_fill(d, host, source, &command);
    return decide_finish(d, COMMAND_vm_clone, &command);
}
