/* Moves of VMs' own disks, to other pools or between a pool and the directory of the VM's host, by the rules of apply_move.c: which of two
 * copies is the disk is in the VM's record and nowhere else (vm_disk.pool and .place), and changes in the entry that ends the task as done.
 *
 *   at rest --disk-move--> moving (other_...: where it goes) --its host has all of it there--> at rest, at the other place
 *      ^                     |
 *      '-- failed, cancelled-'     in either case what is at the place that other_... says now is to be removed; then there is none
 *
 * It is one disk without layers of snapshots afterwards: a VM that has snapshots is refused, as it is for a migration. That is the word of
 * an agent that knows of such moves: one that does not has no order for it (task_order.move), and takes the task for done. */
#include <errno.h>
#include <string.h>

#include "controller/fsm/apply_migrate.h"
#include "controller/fsm/pool_members.h"
#include "controller/fsm/volume_disks.h"

#define MIB (UINT64_C(1) << 20)

static struct record *vm_of(struct apply *a, const struct operation *operation)
{
    const char *id = operation->task.vm;
    return id != NULL ? map_get(&a->state->tables[object_kind_VM].by_id, id) : NULL;
}

static const struct pool *pool_of(struct apply *a, const char *name_or_id)
{
    const struct record *record = state_get(a->state, object_kind_POOL, name_or_id);
    return record != NULL ? record->pool : NULL;
}

static bool is_in_directory(struct apply *a, const char *pool)
{
    const struct pool *known = pool_of(a, pool);
    return known == NULL || known->kind == pool_kind_DIR;
}

static bool is_there(const struct vm_disk *disk, const struct pool *to)
{
    return to == NULL ? disk->pool == NULL : text_same(disk->pool, to->name);
}

/* Nothing but the disk as it is now goes along, and nobody else is at work on it. */
static bool is_at_rest(struct apply *a, const struct record *record, const struct vm_disk *disk)
{
    const struct vm *vm = record->vm;
    const struct snapshot *snapshot = migration_snapshot(a->state, vm);
    if (disk->read_only)
        apply_refuse_field(a, -ENOTSUP, ERROR_NOT_SUPPORTED, "/disk",
                           "'%s' of VM '%s' is only read: every host makes it anew where it is needed", disk->name, vm->name);
    else if (own_disk_has_left(disk))
        apply_refuse(a, -EBUSY, ERROR_CONFLICT,
                     "what an earlier move has left of disk '%s' of VM '%s' in %s%s%s%s is still being removed%s%.200s; wait for that, or "
                     "forget it (drover vm forget-left)", disk->name, vm->name,
                     disk->other_pool != NULL ? "pool '" : "the directory of its host", disk->other_pool != NULL ? disk->other_pool : "",
                     disk->other_pool != NULL ? "'" : "", disk->other_host != NULL && disk->other_pool != NULL ? " on its host" : "",
                     disk->left_reason != NULL ? ": " : "", disk->left_reason != NULL ? disk->left_reason : "");
    else if (snapshot != NULL)
        apply_refuse(a, -ENOTSUP, ERROR_NOT_SUPPORTED,
                     "VM '%s' has snapshot '%s', and snapshots do not go along; delete its snapshots, back them up before if you want "
                     "to keep them", vm->name, snapshot->name);
    else if (vm->replica_host != NULL)
        apply_refuse(a, -ENOTSUP, ERROR_NOT_SUPPORTED,
                     "VM '%s' has a replica on host %s, which knows its disks where they are: take the replica away first "
                     "(replica_host)", vm->name, vm->replica_host);
    else if (vm->unstarted)
        apply_refuse(a, -EINVAL, ERROR_CONFLICT, "VM '%s' was never started and has no disks yet: start it once", vm->name);
    else
        return !volume_vm_is_busy(a, record);
    return false;
}

/* Of disks that are on their way to the directory of @host. */
static uint64_t kept_bytes(struct apply *a, const struct record *host)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < host->of_host.tasks.count; i++) {
        const struct operation *operation = host->of_host.tasks.items[i]->operation;
        bytes += operation_cloned_bytes(a->state, operation, NULL);
        const struct record *vm = operation->kind == operation_kind_DISK_MOVE ? vm_of(a, operation) : NULL;
        const struct vm_disk *disk = vm != NULL ? own_disk_find(vm->vm, operation->task.disk.name) : NULL;
        if (disk != NULL && disk->moving && disk->other_pool == NULL)
            bytes += disk->size_bytes;
    }
    return bytes;
}

bool move_directory_has_room(struct apply *a, const char *what, const char *name, uint64_t size_bytes, const struct record *host)
{
    uint64_t kept = kept_bytes(a, host), free_bytes = host->host->disk_free_bytes;
    if (!OBJECT_HAS(host, host->host, disk_free_bytes) || (free_bytes >= kept && free_bytes - kept >= size_bytes))
        return true;
    apply_refuse_field(a, -ENOSPC, ERROR_NO_SPACE, "/pool",
                       "is not given, and the directory of host %s has %llu MiB free, of which %llu MiB are kept for disks that are being "
                       "moved there; %s '%s' has %llu MiB: free some, or name a pool", host->common->name, (unsigned long long)(free_bytes / MIB),
                       (unsigned long long)(kept / MIB), what, name, (unsigned long long)(size_bytes / MIB));
    return false;
}

bool own_disk_may_move(struct apply *a, const struct operation *operation)
{
    const struct task *task = &operation->task;
    const struct record *record = vm_of(a, operation), *host = state_get(a->state, object_kind_HOST, task->host);
    const struct pool *to = pool_of(a, task->disk.pool);
    const struct vm_disk *disk = record != NULL ? own_disk_find(record->vm, task->disk.name) : NULL;
    if (record == NULL || operation->kind != operation_kind_DISK_MOVE) {
        apply_refuse(a, -EINVAL, ERROR_INVALID, "a move of a disk needs its VM");
        return false;
    }
    if (disk == NULL) {
        apply_refuse_field(a, -ENOENT, ERROR_NOT_FOUND, "/disk", "VM '%s' has no disk '%.20s' of its own", record->common->name,
                           task->disk.name);
        return false;
    }
    if (task->disk.pool != NULL && to == NULL) {
        apply_refuse_field(a, -ENOENT, ERROR_NOT_FOUND, "/pool", "there is no such pool any more");
        return false;
    }
    if (!text_same(record->vm->host, task->host) || record->vm->recovering) {
        apply_refuse(a, -ESTALE, ERROR_CONFLICT, "VM '%s' was given to another host meanwhile; ask again", record->common->name);
        return false;
    }
    if (is_there(disk, to))
        return true;
    if (!move_is_of_files(a, "disk", disk->name, pool_of(a, disk->pool), to))
        return false;
    if (!is_at_rest(a, record, disk) || (disk->pool != NULL && !move_host_has(a, pool_of(a, disk->pool), host)))
        return false;
    return to != NULL ? move_host_has(a, to, host) && move_has_room(a, "disk", disk->name, disk->size_bytes, to, host)
                      : move_directory_has_room(a, "disk", disk->name, disk->size_bytes, host);
}

static void tell_hosts(struct apply *a, const struct vm *vm, const struct vm_disk *disk)
{
    const char *const names[] = {disk->pool, disk->other_pool};
    const struct record *other = state_get(a->state, object_kind_HOST, disk->other_host);
    for (size_t k = 0; k < ARRAY_SIZE(names); k++) {
        const struct pool *pool = pool_of(a, names[k]);
        for (size_t i = 0; pool != NULL && i < pool->members.count; i++)
            state_host_orders_changed(a->state, ((const struct pool_host *)pool->members.items + i)->host, a->index);
    }
    state_host_orders_changed(a->state, vm->host, a->index);
    if (other != NULL)
        state_host_orders_changed(a->state, other->common->id, a->index);
}

static void moving_clear(struct vm_disk *disk)
{
    disk->moving = false;
    disk->head.present &= ~(UINT64_C(1) << (object_field(&vm_disk_desc, "moving") - vm_disk_desc.fields));
}

/* Where it is, or (@other) is not. */
static const char *where(const struct vm_disk *disk, bool other, char words[160])
{
    const char *pool = other ? disk->other_pool : disk->pool;
    if (pool != NULL)
        apply_text(words, 160, "pool %s", pool);
    else if (other)
        apply_text(words, 160, "the directory of host %s", disk->other_host);
    else
        apply_text(words, 160, "the directory of its host");
    return words;
}

void own_disk_move_begun(struct apply *a, const struct operation *operation)
{
    struct record *record = vm_of(a, operation);
    struct vm_disk *disk = own_disk_find(record->vm, operation->task.disk.name);
    const struct pool *to = pool_of(a, operation->task.disk.pool);
    const struct record *host = state_get(a->state, object_kind_HOST, operation->task.host);
    char from_words[160], to_words[160];
    if (is_there(disk, to))
        return;
    volume_vm_edit_begin(a, record);
    OBJECT_SET(vm_disk, disk, moving, true);
    OBJECT_TEXT(vm_disk, disk, other_pool, to != NULL ? to->name : NULL);
    OBJECT_TEXT(vm_disk, disk, other_host, to == NULL || to->kind == pool_kind_DIR ? host->common->name : NULL);
    OBJECT_TEXT(vm_disk, disk, other_place, operation->id);
    OBJECT_TEXT(vm_disk, disk, left_reason, NULL);
    volume_vm_edit_end(a, record);
    apply_event(a, event_type_UPDATED, record, "disk %s of VM %s is to go from %s to %s", disk->name, record->common->name,
                where(disk, false, from_words), where(disk, true, to_words));
}

/* The decision: from here on the copy is the disk. @host: where both are. */
static void places_swap(struct apply *a, struct vm *vm, struct vm_disk *disk, const char *host)
{
    CLEANUP_FREE char *pool = disk->pool != NULL ? xstrdup(disk->pool) : NULL;
    CLEANUP_FREE char *place = disk->place != NULL ? xstrdup(disk->place) : NULL;
    OBJECT_TEXT(vm_disk, disk, pool, disk->other_pool);
    OBJECT_TEXT(vm_disk, disk, place, disk->other_place);
    OBJECT_TEXT(vm_disk, disk, other_pool, pool);
    OBJECT_TEXT(vm_disk, disk, other_place, place);
    OBJECT_TEXT(vm_disk, disk, other_host, is_in_directory(a, pool) ? host : NULL);
    if (disk->pool != NULL) /* they are all made, or it had not been copied */
        OBJECT_SET(vm, vm, disks_made, true);
    vm_pool_forget(vm);
}

/* Nothing is left of it at the other place, or nobody minds any more. */
static void left_gone(struct apply *a, struct record *record, struct vm_disk *disk, const char *words)
{
    char text[160];
    where(disk, true, text);
    tell_hosts(a, record->vm, disk);
    state_edit_begin(a->state, record);
    OBJECT_TEXT(vm_disk, disk, other_pool, NULL);
    OBJECT_TEXT(vm_disk, disk, other_host, NULL);
    OBJECT_TEXT(vm_disk, disk, other_place, NULL);
    OBJECT_TEXT(vm_disk, disk, left_reason, NULL);
    state_edit_end(a->state, record, a->index);
    apply_event(a, event_type_UPDATED, record, "what was left of disk %s of VM %s in %s is %s", disk->name, record->common->name, text,
                words);
}

/* The name of what is there, for who looks for it by hand. */
static const char *left_name(const struct vm_disk *disk, char words[80])
{
    const char *place = disk->other_place;
    apply_text(words, 80, "%s%s%s.layers", disk->name, place != NULL ? "." : "", place != NULL ? place : "");
    return words;
}

void own_disk_move_ended(struct apply *a, const struct operation *operation, enum operation_state state, const char *text)
{
    struct record *record = vm_of(a, operation);
    struct vm_disk *disk = record != NULL ? own_disk_find(record->vm, operation->task.disk.name) : NULL;
    const struct record *host = state_get(a->state, object_kind_HOST, operation->task.host);
    char there[160], name[80], words[APPLY_STEP_BYTES_MAX];
    if (disk == NULL || !disk->moving || !text_same(disk->other_place, operation->id))
        return; /* there was nothing to do */
    bool done = state == operation_state_SUCCEEDED;
    volume_vm_edit_begin(a, record);
    moving_clear(disk);
    if (done)
        places_swap(a, record->vm, disk, host->common->name);
    volume_vm_edit_end(a, record);
    tell_hosts(a, record->vm, disk);
    where(disk, false, there);
    if (done)
        apply_event(a, event_type_UPDATED, record, "disk %s of VM %s is in %s; what is left of it elsewhere goes", disk->name,
                    record->common->name, there);
    else
        apply_event(a, event_type_UPDATED, record, "disk %s of VM %s stays in %s: %s", disk->name, record->common->name, there,
                    text != NULL ? text : "it was not moved");
    if (done || !move_may_be_done(a, operation))
        return;
    apply_text(words, sizeof words,
               "kept, for the cluster was recovered while it moved: vms/%s/%s may be the only copy; remove it by hand if not",
               record->common->id, left_name(disk, name));
    left_gone(a, record, disk, words);
}

bool own_disk_move_is_told(struct apply *a, const struct operation *operation, const struct task_seen *seen)
{
    const struct record *record = operation->kind == operation_kind_DISK_MOVE ? vm_of(a, operation) : NULL;
    const struct vm_disk *disk = record != NULL ? own_disk_find(record->vm, operation->task.disk.name) : NULL;
    return disk == NULL || !disk->moving || !text_same(disk->other_place, operation->id) || text_same(seen->copied, operation->id);
}

/* ---- what moves have left ---- */

void own_disks_host_gone(struct apply *a, const struct record *host)
{
    for (size_t i = 0; i < state_count(a->state, object_kind_VM); i++) {
        struct record *record = a->state->tables[object_kind_VM].order.items[i];
        for (size_t k = 0; k < record->vm->disks.count; k++) {
            struct vm_disk *disk = (struct vm_disk *)record->vm->disks.items + k;
            if (own_disk_has_left(disk) && disk->other_host != NULL && strcmp(disk->other_host, host->common->name) == 0)
                left_gone(a, record, disk, "gone with its host");
        }
    }
}

void own_disk_seen(struct apply *a, const struct volume_seen *seen)
{
    struct record *record = map_get(&a->state->tables[object_kind_VM].by_id, seen->id);
    struct vm_disk *disk = record != NULL ? own_disk_find(record->vm, seen->disk) : NULL;
    char reason[APPLY_STEP_BYTES_MAX], words[160];
    if (disk == NULL)
        return;
    if (seen->gone) {
        left_gone(a, record, disk, "gone");
        return;
    }
    apply_text(reason, sizeof reason, "%s", seen->reason != NULL ? seen->reason : "");
    state_edit_begin(a->state, record);
    OBJECT_TEXT(vm_disk, disk, left_reason, reason[0] != '\0' ? reason : NULL);
    state_edit_end(a->state, record, a->index);
    if (reason[0] != '\0')
        apply_event(a, event_type_UPDATED, record, "what was left of disk %s of VM %s in %s cannot be removed: %s", disk->name,
                    record->common->name, where(disk, true, words), reason);
}

void own_disk_forget_left(struct apply *a, struct record *record, const char *name)
{
    struct vm_disk *disk = own_disk_find(record->vm, name);
    char leaf[80], words[APPLY_STEP_BYTES_MAX];
    if (disk == NULL) {
        apply_refuse_field(a, -ENOENT, ERROR_NOT_FOUND, "/disk", "VM '%s' has no disk '%.20s' of its own", record->common->name, name);
        return;
    }
    if (disk->moving) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "disk '%s' of VM '%s' is being moved; wait for that, or cancel it (drover operation cancel)",
                     disk->name, record->common->name);
        return;
    }
    if (a->check_only)
        return;
    apply_answer(a, record);
    if (!own_disk_has_left(disk))
        return;
    apply_text(words, sizeof words, "forgotten by request: vms/%s/%s stays there", record->common->id, left_name(disk, leaf));
    left_gone(a, record, disk, words);
}

void own_disks_stay(const struct vm *vm, struct vm *patch)
{
    for (size_t i = 0; i < MIN(vm->disks.count, patch->disks.count); i++) {
        const struct vm_disk *held = (const struct vm_disk *)vm->disks.items + i;
        struct vm_disk *disk = (struct vm_disk *)patch->disks.items + i;
        OBJECT_TEXT(vm_disk, disk, pool, held->pool);
        OBJECT_TEXT(vm_disk, disk, place, held->place);
        OBJECT_TEXT(vm_disk, disk, other_pool, held->other_pool);
        OBJECT_TEXT(vm_disk, disk, other_host, held->other_host);
        OBJECT_TEXT(vm_disk, disk, other_place, held->other_place);
        OBJECT_TEXT(vm_disk, disk, left_reason, held->left_reason);
        moving_clear(disk);
        if (held->moving)
            OBJECT_SET(vm_disk, disk, moving, true);
    }
}

void own_disks_vm_gone(struct apply *a, const struct record *vm, bool removed)
{
    char leaf[80], words[160];
    for (size_t i = 0; i < vm->vm->disks.count; i++) {
        const struct vm_disk *disk = (const struct vm_disk *)vm->vm->disks.items + i;
        const struct record *host = state_get(a->state, object_kind_HOST, vm->vm->host);
        const struct pool *shared = disk->other_host == NULL ? pool_of(a, disk->other_pool) : NULL;
        bool is_there = host != NULL && (shared != NULL ? pool_member_find(shared, host->common->id) != NULL
                                                        : text_same(disk->other_host, host->common->name));
        if (own_disk_has_other(disk) && !(removed && is_there))
            apply_event(a, event_type_UPDATED, vm, "VM %s goes, and what a move had left of it in %s%s%s stays there: vms/%s/%s",
                        vm->common->name, where(disk, true, words), disk->other_host != NULL && disk->other_pool != NULL ? " on host " : "",
                        disk->other_host != NULL && disk->other_pool != NULL ? disk->other_host : "", vm->common->id, left_name(disk, leaf));
    }
}
