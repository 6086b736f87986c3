/* Volumes: made, attached, detached, enlarged, removed.
 *
 *   put --> CREATING --a host has made it--> AVAILABLE --attach--> ATTACHING --the VM's host has it--> ATTACHED
 *              |                              |   ^                    |                                  |
 *              '------------ remove ----------'   |                    '-------------- detach ------------'
 *                               v                 |                                    v
 *           (none) <--gone-- DELETING             '-- the VM's host has it no more -- DETACHING
 *
 * To another pool: apply_move.c. Attached it is an item of its VM's disks; that is what the VM's host is told, under a new generation of the VM. What is being
 * detached stays in that list, marked so, until the host has reached the VM's generation: from then on no VMM of the VM has
 * it open, and another VM may have it. A VM that goes leaves its volumes behind (volumes_vm_gone). */
#include "controller/fsm/apply_migrate.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/fsm/pool_members.h"
#include "controller/fsm/replica_state.h"
#include "controller/fsm/volume_disks.h"

#define SECTOR_BYTES 512u
#define DISKS_MAX 16u /* of a VMM; a seed disk is one of them */

void volume_tell_hosts(struct apply *a, const struct volume *volume)
{
    const char *const names[] = {volume->pool, volume->other_pool};
    for (size_t k = 0; k < ARRAY_SIZE(names); k++) {
        const struct record *pool = state_get(a->state, object_kind_POOL, names[k]);
        for (size_t i = 0; pool != NULL && i < pool->pool->members.count; i++)
            state_host_orders_changed(a->state, ((const struct pool_host *)pool->pool->members.items + i)->host, a->index);
    }
}

static void set_state(struct volume *volume, enum volume_state state, const char *reason)
{
    char text[APPLY_STEP_BYTES_MAX];
    apply_text(text, sizeof text, "%s", reason != NULL ? reason : "");
    OBJECT_SET(volume, volume, state, state);
    OBJECT_TEXT(volume, volume, state_reason, text[0] != '\0' ? text : NULL);
}

static struct record *volume_of(struct apply *a, const struct vm_disk *disk)
{
    return disk->volume != NULL ? map_get(&a->state->tables[object_kind_VOLUME].by_id, disk->volume) : NULL;
}

/* ---- put ---- */

static bool host_resolve(struct apply *a, struct volume *volume, const struct pool *pool)
{
    const struct record *host = state_get(a->state, object_kind_HOST, volume->host);
    if (pool_is_shared(pool) && volume->host != NULL) {
        apply_refuse_field(a, -EINVAL, ERROR_INVALID, "/host", "is for pools of kind dir; '%s' is on all of its hosts", pool->name);
        return false;
    }
    if (pool_is_shared(pool))
        return true;
    if (host == NULL || pool_member_find(pool, host->common->id) == NULL) {
        apply_refuse_field(a, -ENOENT, ERROR_NOT_FOUND, "/host", "'%.63s' is no host of pool '%s'; name one of those",
                           volume->host != NULL ? volume->host : "", pool->name);
        return false;
    }
    OBJECT_TEXT(volume, volume, host, host->common->name);
    return true;
}

/* @filled: of a pool of kind rbd it is known that volumes there may. */
static bool image_resolve(struct apply *a, struct volume *volume, const struct pool *pool, bool filled)
{
    const struct record *record = state_get(a->state, object_kind_IMAGE, volume->image);
    if (volume->image == NULL)
        return true;
    if (pool->kind == pool_kind_RBD && !filled) {
        apply_refuse_field(a, -ENOTSUP, ERROR_NOT_SUPPORTED, "/image",
                           "cannot be given for a volume in pool '%s' of kind rbd, where volumes begin empty: leave it out, or make the volume in "
                           "a pool of another kind", pool->name);
        return false;
    }
    if (record == NULL || !OBJECT_HAS(image, record->image, disk)) {
        apply_refuse_field(a, -ENOENT, ERROR_NOT_FOUND, "/image",
                           record == NULL ? "there is no image '%.63s'" : "image '%.63s' has no disk that a volume could begin as",
                           volume->image);
        return false;
    }
    if (record->image->state != image_state_READY) {
        apply_refuse_field(a, -EAGAIN, ERROR_CONFLICT, "/image", "image '%s' is %s; wait until it is ready", record->common->name,
                           image_state_desc.names[record->image->state]);
        return false;
    }
    if (volume->size_bytes < record->image->disk.size_bytes) {
        apply_refuse_field(a, -EFBIG, ERROR_INVALID, "/size_bytes", "is less than the %llu bytes of image '%s'",
                           (unsigned long long)record->image->disk.size_bytes, record->common->name);
        return false;
    }
    OBJECT_TEXT(volume, volume, image, record->common->name);
    return true;
}

static bool size_check(struct apply *a, uint64_t size_bytes)
{
    if (size_bytes != 0 && size_bytes % SECTOR_BYTES == 0)
        return true;
    apply_refuse_field(a, -EINVAL, ERROR_INVALID, "/size_bytes", size_bytes == 0 ? "is missing: give the size of the volume"
                                                                                 : "must be a multiple of 512");
    return false;
}

bool apply_volume_may_be_made(struct apply *a, struct volume *volume, bool filled)
{
    const struct record *pool = state_get(a->state, object_kind_POOL, volume->pool);
    if (pool == NULL) {
        apply_refuse_field(a, -ENOENT, ERROR_NOT_FOUND, "/pool", "there is no pool '%.63s'", volume->pool);
        return false;
    }
    if (!size_check(a, volume->size_bytes) || !host_resolve(a, volume, pool->pool) || !image_resolve(a, volume, pool->pool, filled))
        return false;
    OBJECT_TEXT(volume, volume, pool, pool->common->name);
    OBJECT_SET(volume, volume, state, volume_state_CREATING);
    return true;
}

bool apply_volume_may_change(struct apply *a, const struct record *record, const struct volume *patch)
{
    const struct volume *volume = record->volume;
    if (patch->head.cleared & (UINT64_C(1) << (object_field(&volume_desc, "size_bytes") - volume_desc.fields))) {
        apply_refuse_field(a, -EINVAL, ERROR_INVALID, "/size_bytes", "cannot be taken away");
        return false;
    }
    if (!OBJECT_HAS(volume, patch, size_bytes))
        return true;
    if (patch->size_bytes < volume->size_bytes) {
        apply_refuse_field(a, -EINVAL, ERROR_INVALID, "/size_bytes",
                           "is less than the %llu bytes that volume '%s' has: a volume only grows; make another one and copy",
                           (unsigned long long)volume->size_bytes, volume->name);
        return false;
    }
    if (volume->state == volume_state_DELETING || volume->state == volume_state_DETACHING || volume->state == volume_state_MOVING) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "volume '%s' is %s%s", volume->name, volume_state_desc.names[volume->state],
                     volume->state != volume_state_DELETING ? "; wait for that" : "");
        return false;
    }
    const struct vm *copied = patch->size_bytes != volume->size_bytes ? replica_of_volume(a->state, volume) : NULL;
    if (copied != NULL) {
        apply_refuse_field(a, -ENOTSUP, ERROR_NOT_SUPPORTED, "/size_bytes",
                           "cannot change: VM '%s', which has volume '%s', has a replica on host %s, whose copy has the old size: take the replica away first "
                           "(replica_host), and give it again after that", copied->name, volume->name, copied->replica_host);
        return false;
    }
    return size_check(a, patch->size_bytes);
}

void volume_vm_edit_begin(struct apply *a, struct record *vm)
{
    state_edit_begin(a->state, vm);
}

void volume_vm_edit_end(struct apply *a, struct record *vm)
{
    apply_devices_changed(vm->vm);
    state_edit_end(a->state, vm, a->index);
    state_host_orders_changed(a->state, vm->vm->host, a->index);
}

void apply_volume_changed(struct apply *a, const struct record *record, bool created)
{
    struct record *vm = record->volume->vm != NULL ? map_get(&a->state->tables[object_kind_VM].by_id, record->volume->vm) : NULL;
    struct vm_disk *disk = vm != NULL ? volume_disk_find(vm->vm, record->common->id) : NULL;
    if (created)
        volume_tell_hosts(a, record->volume);
    if (disk == NULL || disk->size_bytes == record->volume->size_bytes)
        return;
    state_edit_begin(a->state, vm);
    OBJECT_SET(vm_disk, disk, size_bytes, record->volume->size_bytes);
    volume_vm_edit_end(a, vm);
    apply_event(a, event_type_UPDATED, vm, "VM %s: disk %s is to have %llu MiB", vm->common->name, disk->name,
                (unsigned long long)(disk->size_bytes >> 20));
    volumes_settle(a, vm);
}

bool volumes_use(struct apply *a, const struct record *record, const char *what_to_do)
{
    const char *name = record->common->name;
    for (size_t i = 0; i < state_count(a->state, object_kind_VOLUME); i++) {
        const struct volume *volume = state_at(a->state, object_kind_VOLUME, i)->volume;
        const char *used = record->kind == object_kind_POOL    ? volume->pool
                           : record->kind == object_kind_HOST  ? volume->host
                           : record->kind == object_kind_IMAGE ? volume->image
                                                               : NULL;
        const char *other = record->kind == object_kind_POOL                      ? volume->other_pool
                            : record->kind == object_kind_HOST && volume->untaken ? volume->other_host
                                                                                  : NULL;
        bool needed = record->kind != object_kind_IMAGE || volume->state == volume_state_CREATING;
        bool is_left = other != NULL && strcmp(other, name) == 0;
        if (!is_left && (used == NULL || !needed || strcmp(used, name) != 0))
            continue;
        apply_refuse(a, -EBUSY, ERROR_IN_USE, "%s '%s' cannot be %s: volume '%s' %s", record->desc->name, name, what_to_do,
                     volume->name, !is_left ? "uses it" : volume->untaken ? "was taken from a replica, its VM has not run yet since, and what is there may be the only copy" : volume->state == volume_state_MOVING ? "is being moved to it"
                                                                     : "has files there that are still to be removed");
        return true;
    }
    return false;
}

/* ---- attach ---- */

static bool volume_is_free(struct apply *a, const struct volume *volume)
{
    if (volume->state == volume_state_AVAILABLE)
        return !snapshot_is_at_work(a, volume);
    if (volume->state == volume_state_MOVING) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "volume '%s' is being moved to pool '%s'; wait for that, or cancel it (drover operation cancel)",
                     volume->name, volume->other_pool);
        return false;
    }
    if (volume_is_in_making(a, volume))
        return false;
    if (volume->vm != NULL)
        apply_refuse(a, -EBUSY, ERROR_IN_USE, "volume '%s' is %s %s VM '%s'; detach it first (drover volume detach %s)", volume->name,
                     volume_state_desc.names[volume->state], volume->state == volume_state_DETACHING ? "from" : "to",
                     volume->vm_name, volume->name);
    else
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "volume '%s' is %s%s%.300s", volume->name, volume_state_desc.names[volume->state],
                     volume->state_reason != NULL ? ": " : "; wait for that", volume->state_reason != NULL ? volume->state_reason : "");
    return false;
}

/* Can the VM's host reach it? Where no host has the VM, placement sees to it. */
static bool host_reaches(struct apply *a, const struct volume *volume, const struct vm *vm)
{
    const struct record *pool = state_get(a->state, object_kind_POOL, volume->pool);
    const struct pool_host *member = pool_member_find(pool->pool, vm->host);
    if (vm->host == NULL)
        return true;
    if (volume->host != NULL && strcmp(volume->host, vm->host_name) != 0) {
        apply_refuse_field(a, -EXDEV, ERROR_CONFLICT, "/vm",
                           "is on host %s, and volume '%s' is in the directory of host %s: use a shared pool, or a VM of that host",
                           vm->host_name, volume->name, volume->host);
        return false;
    }
    if (member == NULL || member->state != pool_host_state_PRESENT) {
        apply_refuse_field(a, -ENOENT, ERROR_CONFLICT, "/vm", "is on host %s, which has not pool '%s' of volume '%s'%s%.200s",
                           vm->host_name, volume->pool, volume->name, member != NULL && member->reason != NULL ? ": " : "",
                           member != NULL && member->reason != NULL ? member->reason : "");
        return false;
    }
    return true;
}

static bool has_place(struct apply *a, const struct volume *volume, const struct vm *vm)
{
    bool seed = vm->user_data != NULL || vm->ssh_keys != NULL || vm->hostname != NULL;
    const struct vm_disk *disks = vm->disks.items;
    if (vm->disks.count + seed >= DISKS_MAX) {
        apply_refuse_field(a, -ENOSPC, ERROR_NO_SPACE, "/vm", "has %zu disks, and %u is the most; detach one",
                           vm->disks.count + seed, DISKS_MAX);
        return false;
    }
    for (size_t i = 0; i < vm->disks.count; i++)
        if (strcmp(disks[i].name, volume->disk) == 0) {
            apply_refuse_field(a, -EEXIST, ERROR_EXISTS, "/vm", "has a disk that is named '%s', as volume '%s' would be: %s", volume->disk, volume->name,
                               disks[i].volume != NULL ? "one was made of the other, with a clone of its VM, and no VM has both"
                                                       : "that is one of its own");
            return false;
        }
    return true;
}

/* A backup or a restore of its disks, a migration, a move of another volume. */
bool volume_vm_is_busy(struct apply *a, const struct record *vm)
{
    for (size_t i = 0; i < vm->of_vm.operations.count; i++) {
        const struct operation *operation = vm->of_vm.operations.items[i]->operation;
        if (!operation_has_task(operation) || operation->kind == operation_kind_VM_REPLICATE)
            continue;
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "a %s of %s '%s' is under way; wait for its end, or cancel it",
                     operation_kind_desc.names[operation->kind], operation->kind == operation_kind_VOLUME_MOVE ? "volume" : "VM",
                     operation->kind == operation_kind_VOLUME_MOVE ? operation->target_name : vm->common->name);
        return true;
    }
    return false;
}

/* Only its VM's host knows, and starts that only where it is not. */
static bool is_whole(struct apply *a, const struct volume *volume, const struct command_volume_attach *command)
{
    if (volume->unproven && !command->force)
        apply_refuse(a, -EBUSY, ERROR_CONFLICT,
                     "volume '%s' may be half: the cluster was recovered while it was made, and the VM that it was made for was not seen to run with it; "
                     "delete it, or attach it by force and look", volume->name);
    return !volume->unproven || command->force;
}

static bool vm_may_have(struct apply *a, const struct volume *volume, const struct record *record, const struct command_volume_attach *command)
{
    const struct vm *vm = record->vm;
    const struct snapshot *snapshot = command->snapshots ? NULL : migration_snapshot(a->state, vm);
    if (vm->wanted == vm_wanted_DELETED || vm->recovering) {
        apply_refuse_field(a, -EBUSY, ERROR_CONFLICT, "/vm", "'%s' %s", vm->name,
                           vm->recovering ? "waits to be started on another host; ask again" : "is being deleted");
        return false;
    }
    if (snapshot != NULL) {
        apply_refuse_field(a, -EBUSY, ERROR_CONFLICT, "/vm", "'%s' has snapshot '%s' by now; ask again", vm->name, snapshot->name);
        return false;
    }
    if (vm->replica_host != NULL && !replica_allows_volume(a, vm, volume, command->replica))
        return false;
    return !volume_vm_is_busy(a, record) && host_reaches(a, volume, vm) && has_place(a, volume, vm) && is_whole(a, volume, command);
}

static void attach(struct apply *a, struct record *record, struct record *vm)
{
    struct volume *volume = record->volume;
    state_edit_begin(a->state, record);
    OBJECT_TEXT(volume, volume, vm, vm->common->id);
    OBJECT_TEXT(volume, volume, vm_name, vm->common->name);
    OBJECT_SET(volume, volume, attachments, volume->attachments + 1);
    set_state(volume, volume_state_ATTACHING, NULL);
    state_edit_end(a->state, record, a->index);
    state_edit_begin(a->state, vm);
    struct vm_disk *disk = OBJECT_ADD(vm, vm->vm, disks);
    OBJECT_TEXT(vm_disk, disk, name, volume->disk);
    OBJECT_SET(vm_disk, disk, size_bytes, volume->size_bytes);
    OBJECT_TEXT(vm_disk, disk, pool, volume->pool);
    OBJECT_TEXT(vm_disk, disk, volume, volume->id);
    OBJECT_SET(vm_disk, disk, attachment, volume->attachments);
    volume_vm_edit_end(a, vm);
    apply_event(a, event_type_UPDATED, record, "volume %s is attached to VM %s as disk %s", volume->name, volume->vm_name, volume->disk);
    apply_event(a, event_type_UPDATED, vm, "VM %s is to have volume %s as disk %s", volume->vm_name, volume->name, volume->disk);
    volumes_settle(a, vm);
}

/* ---- detach ---- */

static bool may_detach(struct apply *a, const struct record *record, const struct record *vm)
{
    const struct volume *volume = record->volume;
    if (vm == NULL) {
        apply_refuse(a, -EALREADY, ERROR_CONFLICT, "volume '%s' is %s and attached to no VM", volume->name,
                     volume_state_desc.names[volume->state]);
        return false;
    }
    const struct vm *copied = replica_of_volume(a->state, volume);
    if (volume->untaken) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "volume '%s' is taken from the replica of VM '%s' on host %s, and that has not said that the VM runs: wait for "
                     "that", volume->name, volume->vm_name, volume->host);
        return false;
    }
    if (copied != NULL) {
        apply_refuse(a, -ENOTSUP, ERROR_NOT_SUPPORTED, "VM '%s', which has volume '%s', has a replica on host %s with a copy of it: %s", copied->name,
                     volume->name, copied->replica_host,
                     copied->recovering ? "the VM is being started from that; wait for it"
                                        : "take the replica away first (replica_host), and give it again after that");
        return false;
    }
    return !volume_vm_is_busy(a, vm) && !volume_is_cloned_with_vm(a, volume) && !snapshot_keeps_volume(a, volume, false, "detached");
}

static void detach(struct apply *a, struct record *record, struct record *vm, bool force)
{
    struct vm_disk *disk = volume_disk_find(vm->vm, record->common->id);
    if (disk->leaving && (disk->forced || !force)) {
        volumes_settle(a, vm);
        return;
    }
    state_edit_begin(a->state, record);
    set_state(record->volume, volume_state_DETACHING, NULL);
    state_edit_end(a->state, record, a->index);
    state_edit_begin(a->state, vm);
    OBJECT_SET(vm_disk, disk, leaving, true);
    if (force)
        OBJECT_SET(vm_disk, disk, forced, true);
    volume_vm_edit_end(a, vm);
    apply_event(a, event_type_UPDATED, record, "volume %s is to be detached from VM %s%s", record->common->name, vm->common->name,
                force ? ", by force" : "");
    volumes_settle(a, vm);
}

void apply_volume_attach(struct apply *a, struct command_volume_attach *command)
{
    struct record *record = apply_find(a, object_kind_VOLUME, command->id, command->if_revision);
    if (record == NULL)
        return;
    const char *vm_id = command->vm != NULL ? command->vm : record->volume->vm;
    struct record *vm = command->vm != NULL ? apply_find(a, object_kind_VM, vm_id, 0)
                        : vm_id != NULL     ? map_get(&a->state->tables[object_kind_VM].by_id, vm_id)
                                            : NULL;
    if (command->vm != NULL && (vm == NULL || !volume_is_free(a, record->volume) || !vm_may_have(a, record->volume, vm, command)))
        return;
    if (command->vm == NULL && !may_detach(a, record, vm))
        return;
    if (command->vm != NULL && record->volume->attachments >= VOLUME_ATTACHMENTS_MAX) {
        apply_refuse(a, -ENOSPC, ERROR_NO_SPACE, "volume '%s' has been attached %u times, the most that is kept; make another one",
                     record->common->name, VOLUME_ATTACHMENTS_MAX);
        return;
    }
    if (a->check_only)
        return;
    apply_answer(a, record);
    if (command->vm != NULL)
        attach(a, record, vm);
    else
        detach(a, record, vm, command->force);
}

/* ---- with their VM ---- */

static void release(struct apply *a, struct record *record)
{
    struct volume *volume = record->volume;
    char vm_name[64];
    snprintf(vm_name, sizeof vm_name, "%s", volume->vm_name);
    if (volume->untaken) /* its VM goes: nobody has seen it run from the copy, and now nobody will */
        replica_volume_back(a, record);
    state_edit_begin(a->state, record);
    OBJECT_TEXT(volume, volume, vm, NULL);
    OBJECT_TEXT(volume, volume, vm_name, NULL);
    set_state(volume, volume_state_AVAILABLE, NULL);
    state_edit_end(a->state, record, a->index);
    apply_event(a, event_type_UPDATED, record, "volume %s is detached from VM %s", volume->name, vm_name);
}

void volume_disk_take_out(struct apply *a, struct record *vm, size_t at)
{
    struct vm_disk *disks = vm->vm->disks.items;
    state_edit_begin(a->state, vm);
    OBJECT_CLEAR(vm_disk, &disks[at]);
    memmove(&disks[at], &disks[at + 1], (vm->vm->disks.count - at - 1) * sizeof *disks);
    vm->vm->disks.count--;
    /* Should the host that is lost come back and keep the VM, then not the VMM that still has the volume open. */
    if (vm->vm->recovering) {
        OBJECT_SET(vm, vm->vm, epoch, vm->vm->epoch + 1);
        replica_epoch_raised(vm->vm, vm->vm->epoch - 1);
    }
    state_edit_end(a->state, vm, a->index);
    state_host_orders_changed(a->state, vm->vm->host, a->index);
}

static void is_proven(struct apply *a, struct record *record)
{
    state_edit_begin(a->state, record);
    record->volume->unproven = false;
    record->volume->head.present &= ~(UINT64_C(1) << (object_field(&volume_desc, "unproven") - volume_desc.fields));
    state_edit_end(a->state, record, a->index);
}

void volumes_settle(struct apply *a, struct record *record)
{
    const struct vm *vm = record->vm;
    bool nobodys = vm->host == NULL || vm->recovering; /* no VMM of it runs, or may run any more */
    bool reached = vm->seen_generation >= vm->generation;
    bool runs = vm->state == vm_state_RUNNING || vm->state == vm_state_PAUSED, at_rest = runs || vm->state == vm_state_STOPPED;
    for (size_t i = vm->disks.count; i > 0; i--) {
        const struct vm_disk *disk = (const struct vm_disk *)vm->disks.items + i - 1;
        struct record *volume = volume_of(a, disk);
        if (volume == NULL)
            continue;
        if (volume->volume->unproven && runs)
            is_proven(a, volume);
        if (disk->leaving && (nobodys || reached)) {
            volume_disk_take_out(a, record, i - 1);
            release(a, volume);
        } else if (!disk->leaving && reached && at_rest && volume->volume->state == volume_state_ATTACHING) {
            state_edit_begin(a->state, volume);
            set_state(volume->volume, volume_state_ATTACHED, NULL);
            state_edit_end(a->state, volume, a->index);
            apply_event(a, event_type_UPDATED, volume, "VM %s has volume %s", vm->name, volume->common->name);
        }
    }
}

void volumes_vm_gone(struct apply *a, const struct record *vm)
{
    for (size_t i = 0; i < vm->vm->disks.count; i++) {
        struct record *volume = volume_of(a, (const struct vm_disk *)vm->vm->disks.items + i);
        if (volume != NULL)
            release(a, volume);
    }
}

void volumes_vm_renamed(struct apply *a, const struct record *vm)
{
    for (size_t i = 0; i < vm->vm->disks.count; i++) {
        struct record *volume = volume_of(a, (const struct vm_disk *)vm->vm->disks.items + i);
        if (volume == NULL)
            continue;
        state_edit_begin(a->state, volume);
        OBJECT_TEXT(volume, volume->volume, vm_name, vm->common->name);
        state_edit_end(a->state, volume, a->index);
    }
}

/* ---- removal and reports ---- */

static void drop(struct apply *a, struct record *record, const char *why)
{
    volume_tell_hosts(a, record->volume);
    apply_event(a, event_type_DELETED, record, "volume %s is gone: %s", record->common->name, why);
    state_remove(a->state, record);
}

void apply_volume_remove(struct apply *a, struct record *record, bool force)
{
    struct volume *volume = record->volume;
    if (volume->vm != NULL) {
        volume_is_free(a, volume);
        return;
    }
    if (volume->state == volume_state_MOVING && !force) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "volume '%s' is being moved to pool '%s'; wait for that, or cancel it (drover operation cancel)",
                     volume->name, volume->other_pool);
        return;
    }
    if (!force && volume_is_clone_in_making(volume)) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "volume '%s' is being made of snapshot '%s'; wait for that, or cancel it (drover operation cancel %s)",
                     volume->name, volume->snapshot, volume->place);
        return;
    }
    if (!force && snapshot_keeps_volume(a, volume, true, "removed"))
        return;
    if (a->check_only)
        return;
    if (force) {
        snapshots_volume_gone(a, record);
        drop(a, record, "forgotten by request; what its host still has of it stays there");
        return;
    }
    apply_answer(a, record);
    if (volume->state == volume_state_DELETING)
        return;
    state_edit_begin(a->state, record);
    set_state(volume, volume_state_DELETING,
              volume_has_left(volume) && volume_left_worker(a->state, volume) == NULL
                  ? "what is left of it on another host goes first, when that is up; forget-left, or force, does without"
              : volume_worker(a->state, volume) == NULL ? "no host that has its pool is up; force forgets it without"
                                                        : NULL);
    state_edit_end(a->state, record, a->index);
    apply_event(a, event_type_UPDATED, record, "volume %s is to be removed", volume->name);
    volume_tell_hosts(a, volume);
}

/* Nothing is left of it in the other pool, or nobody minds any more. */
void volume_left_gone(struct apply *a, struct record *record, const char *words)
{
    struct volume *volume = record->volume;
    char pool[64];
    snprintf(pool, sizeof pool, "%s", volume->other_pool);
    volume_tell_hosts(a, volume);
    state_edit_begin(a->state, record);
    OBJECT_TEXT(volume, volume, other_pool, NULL);
    OBJECT_TEXT(volume, volume, other_host, NULL);
    OBJECT_TEXT(volume, volume, other_place, NULL);
    if (volume_tells_of_left(volume))
        OBJECT_TEXT(volume, volume, state_reason, NULL);
    state_edit_end(a->state, record, a->index);
    apply_event(a, event_type_UPDATED, record, "what was left of volume %s in pool %s is %s", volume->name, pool, words);
}

void apply_volume_forget_left(struct apply *a, struct record *record)
{
    const struct volume *volume = record->volume;
    char words[160];
    if (volume->state == volume_state_MOVING) {
        volume_is_free(a, volume);
        return;
    }
    if (volume->untaken) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "VM '%s' was not seen to run yet with volume '%s' from its replica: what host %s has may be the only copy",
                     volume->vm_name, volume->name, volume->other_host != NULL ? volume->other_host : "");
        return;
    }
    if (a->check_only)
        return;
    apply_answer(a, record);
    apply_text(words, sizeof words, "forgotten by request: volumes/%s%s%s stays there", volume->id, volume->other_place != NULL ? "." : "",
               volume->other_place != NULL ? volume->other_place : "");
    if (volume->other_pool != NULL)
        volume_left_gone(a, record, words);
}

/* Its host says why not. */
static void left_stays(struct apply *a, struct record *record, const char *reason)
{
    struct volume *volume = record->volume;
    state_edit_begin(a->state, record);
    set_state(volume, (enum volume_state)volume->state, reason);
    state_edit_end(a->state, record, a->index);
    if (reason != NULL)
        apply_event(a, event_type_UPDATED, record, "what was left of volume %s in pool %s cannot be removed: %s", volume->name, volume->other_pool,
                    reason);
}

void volumes_host_gone(struct apply *a, const struct record *host)
{
    for (size_t i = 0; i < state_count(a->state, object_kind_VOLUME); i++) {
        struct record *record = a->state->tables[object_kind_VOLUME].order.items[i];
        if (record->volume->other_host != NULL && strcmp(record->volume->other_host, host->common->name) == 0)
            volume_left_gone(a, record, "gone with its host");
    }
}

static void see_volume(struct apply *a, const struct record *host, const struct volume_seen *seen)
{
    struct record *record = map_get(&a->state->tables[object_kind_VOLUME].by_id, seen->id);
    if (!volume_seen_differs(a->state, host->common->id, seen))
        return;
    if (seen->disk != NULL) {
        own_disk_seen(a, seen);
        return;
    }
    struct volume *volume = record->volume;
    if (volume_has_left(volume) && text_same(seen->place, volume->other_place)) {
        if (seen->gone)
            volume_left_gone(a, record, "gone");
        else
            left_stays(a, record, seen->reason);
        return;
    }
    bool made = volume->state == volume_state_CREATING && seen->made;
    if (volume->state == volume_state_DELETING && seen->gone) {
        drop(a, record, "removed");
        return;
    }
    state_edit_begin(a->state, record);
    set_state(volume, made ? volume_state_AVAILABLE : (enum volume_state)volume->state, made ? NULL : seen->reason);
    state_edit_end(a->state, record, a->index);
    if (made)
        volume_tell_hosts(a, volume);
    apply_event(a, event_type_UPDATED, record, "volume %s is %s%s%s", volume->name, volume_state_desc.names[volume->state],
                volume->state_reason != NULL ? ": " : "", volume->state_reason != NULL ? volume->state_reason : "");
}

void apply_volumes_seen(struct apply *a, const struct record *host, const struct object_list *volumes)
{
    for (size_t i = 0; i < volumes->count; i++)
        see_volume(a, host, (const struct volume_seen *)volumes->items + i);
}
