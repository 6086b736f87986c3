/* Moves of volumes to other pools: what it means for them that these begin and end.
 *
 *   AVAILABLE, --volume-move--> MOVING --the host has all of it there--> as before, pool and other_pool have changed places
 *   ATTACHED                      |
 *       ^                         |   in either case what is in other_pool now is to be removed; then there is none
 *       '---- failed, cancelled --'
 *
 * Which of the two copies is the volume is in its record and nowhere else: the one in `pool`, at `place`. It changes in the entry of
 * the log that ends the task as done, which is the word of the host that has made the copy last; before it nobody opens the copy, and
 * after it nobody opens what was. A place is the operation's id, so it is never used twice: an order to remove what was left, or a host
 * that is late with a copy, cannot touch another one.
 *
 * Of a volume that a VM has both copies are the same when the host says so, and the host lets nothing be written, and starts no VMM,
 * until it has heard which of them it is. That it may begin to (task.level) is a word of the controllers, too: a majority of them answers,
 * so the guest need not wait for one that does not. So that it cannot be misled by a controller that has not heard of the move, the VM's
 * generation is raised when it begins: orders of before it are refused.
 *
 * A VM's own disk goes the same way: apply_disk_move.c. */
#include "controller/fsm/apply_task.h"

#include <errno.h>
#include <string.h>

#include "controller/fsm/pool_members.h"
#include "controller/fsm/volume_disks.h"

#define MIB (UINT64_C(1) << 20)

static struct record *volume_of(struct apply *a, const struct operation *operation)
{
    const char *id = operation->task.volume.id;
    return id != NULL ? map_get(&a->state->tables[object_kind_VOLUME].by_id, id) : NULL;
}

static const struct pool *pool_of(struct apply *a, const char *id)
{
    const struct record *record = id != NULL ? map_get(&a->state->tables[object_kind_POOL].by_id, id) : NULL;
    return record != NULL ? record->pool : NULL;
}

/* It is where it is to be: the host has nothing to do. */
static bool is_there(const struct volume *volume, const struct pool *to, const struct record *host)
{
    return strcmp(volume->pool, to->name) == 0 && (volume->host == NULL || strcmp(volume->host, host->common->name) == 0);
}

static bool is_at_rest(struct apply *a, const struct volume *volume)
{
    if (volume->untaken) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "volume '%s' is taken from the replica of VM '%s', which has not run yet since: wait for that", volume->name,
                     volume->vm_name);
        return false;
    }
    if (volume->state == volume_state_MOVING)
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "volume '%s' is being moved to pool '%s'; wait for that, or cancel it (drover operation cancel)",
                     volume->name, volume->other_pool);
    else if (volume->state != volume_state_AVAILABLE && volume->state != volume_state_ATTACHED)
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "volume '%s' is %s%s%.300s", volume->name, volume_state_desc.names[volume->state],
                     volume->state_reason != NULL ? ": " : "; wait for that", volume->state_reason != NULL ? volume->state_reason : "");
    else if (volume->other_pool != NULL)
        apply_refuse(a, -EBUSY, ERROR_CONFLICT,
                     "what an earlier move has left of volume '%s' in pool '%s' is still being removed%s%s; wait for that, or forget it (drover volume "
                     "forget-left)%s%.200s",
                     volume->name, volume->other_pool, volume->other_host != NULL ? " by host " : "",
                     volume->other_host != NULL ? volume->other_host : "", volume->state_reason != NULL ? ": " : "",
                     volume->state_reason != NULL ? volume->state_reason : "");
    else
        return true;
    return false;
}

/* The VM that has it is where the task's host is, and nothing else is at work on its disks. */
static bool vm_allows(struct apply *a, const struct volume *volume, const struct task *task)
{
    const struct record *record = volume->vm != NULL ? map_get(&a->state->tables[object_kind_VM].by_id, volume->vm) : NULL;
    if (record == NULL && task->vm == NULL)
        return true;
    const struct vm *vm = record != NULL ? record->vm : NULL;
    if (vm == NULL || task->vm == NULL || strcmp(task->vm, vm->id) != 0 || vm->host == NULL || strcmp(vm->host, task->host) != 0 || vm->recovering) {
        apply_refuse(a, -ESTALE, ERROR_CONFLICT, "volume '%s' was attached, detached or taken to another host meanwhile; ask again", volume->name);
        return false;
    }
    if (vm->replica_host != NULL) {
        apply_refuse(a, -ENOTSUP, ERROR_NOT_SUPPORTED, "VM '%s', which has volume '%s', has a replica on host %s, which knows its disks where they are: take the "
                     "replica away first (replica_host), or detach the volume", vm->name, volume->name, vm->replica_host);
        return false;
    }
    return !volume_vm_is_busy(a, record);
}

bool move_host_has(struct apply *a, const struct pool *pool, const struct record *host)
{
    const struct pool_host *member = pool_member_find(pool, host->common->id);
    if (member != NULL && member->state == pool_host_state_PRESENT)
        return true;
    apply_refuse_field(a, -ENOENT, ERROR_CONFLICT, "/pool", "host %s has not pool '%s' (now)%s%.200s", host->common->name, pool->name,
                       member != NULL && member->reason != NULL ? ": " : "",
                       member != NULL && member->reason != NULL ? member->reason : "");
    return false;
}

bool move_has_room(struct apply *a, const char *what, const char *name, uint64_t size_bytes, const struct pool *to, const struct record *host)
{
    const struct pool_host *member = pool_member_find(to, host->common->id);
    uint64_t kept = pool_kept_bytes(a->state, to, member);
    if (pool_room_bytes(a->state, to, member) >= size_bytes)
        return true;
    apply_refuse_field(a, -ENOSPC, ERROR_NO_SPACE, "/pool",
                       "'%s' has %llu MiB free on host %s, of which %llu MiB are kept for volumes that are being moved there, and %s '%s' "
                       "has %llu MiB: free some, or use another pool", to->name, (unsigned long long)(member->free_bytes / MIB),
                       host->common->name, (unsigned long long)(kept / MIB), what, name, (unsigned long long)(size_bytes / MIB));
    return false;
}

bool move_is_of_files(struct apply *a, const char *what, const char *name, const struct pool *from, const struct pool *to)
{
    const struct pool *rbd = from != NULL && from->kind == pool_kind_RBD ? from : to != NULL && to->kind == pool_kind_RBD ? to : NULL;
    if (rbd == NULL)
        return true;
    apply_refuse_field(a, -ENOTSUP, ERROR_NOT_SUPPORTED, "/pool",
                       "%s '%s' cannot be moved %s pool '%s', which is of kind rbd: attach a volume of the other pool as well, and copy in the guest",
                       what, name, rbd == from ? "from" : "to", rbd->name);
    return false;
}

static bool may_begin(struct apply *a, const struct operation *operation)
{
    const struct task *task = &operation->task;
    if (OBJECT_HAS(task, task, disk))
        return own_disk_may_move(a, operation);
    const struct record *record = apply_find(a, object_kind_VOLUME, task->volume.id, 0);
    const struct record *host = state_get(a->state, object_kind_HOST, task->host);
    const struct pool *to = pool_of(a, task->volume.pool);
    if (record == NULL)
        return false;
    if (to == NULL) {
        apply_refuse_field(a, -ENOENT, ERROR_NOT_FOUND, "/pool", "there is no such pool any more");
        return false;
    }
    const struct volume *volume = record->volume;
    if (is_there(volume, to, host))
        return true;
    if (volume->host != NULL && strcmp(volume->host, host->common->name) != 0) {
        apply_refuse(a, -ESTALE, ERROR_CONFLICT, "volume '%s' is in a directory of host %s by now; ask again", volume->name, volume->host);
        return false;
    }
    const struct pool *from = state_get(a->state, object_kind_POOL, volume->pool)->pool;
    return move_is_of_files(a, "volume", volume->name, from, to) && is_at_rest(a, volume) &&
           !snapshot_keeps_volume(a, volume, true, "moved") && vm_allows(a, volume, task) && move_host_has(a, from, host) && move_host_has(a, to, host) &&
           move_has_room(a, "volume", volume->name, volume->size_bytes, to, host);
}

static struct record *vm_of(struct apply *a, const struct volume *volume)
{
    return volume->vm != NULL ? map_get(&a->state->tables[object_kind_VM].by_id, volume->vm) : NULL;
}

static void begun(struct apply *a, const struct operation *operation)
{
    if (OBJECT_HAS(task, &operation->task, disk)) {
        own_disk_move_begun(a, operation);
        return;
    }
    struct record *record = volume_of(a, operation);
    struct volume *volume = record->volume;
    const struct record *host = state_get(a->state, object_kind_HOST, operation->task.host);
    const struct pool *to = pool_of(a, operation->task.volume.pool);
    if (is_there(volume, to, host))
        return;
    state_edit_begin(a->state, record);
    OBJECT_TEXT(volume, volume, other_pool, to->name);
    if (to->kind == pool_kind_DIR)
        OBJECT_TEXT(volume, volume, other_host, host->common->name);
    OBJECT_TEXT(volume, volume, other_place, operation->id);
    OBJECT_SET(volume, volume, state, volume_state_MOVING);
    OBJECT_TEXT(volume, volume, state_reason, NULL);
    state_edit_end(a->state, record, a->index);
    struct record *vm = vm_of(a, volume);
    if (vm != NULL) {
        volume_vm_edit_begin(a, vm);
        volume_vm_edit_end(a, vm);
    }
    apply_event(a, event_type_UPDATED, record, "volume %s is to go from pool %s to pool %s", volume->name, volume->pool, volume->other_pool);
}

static void swap(char **a, char **b)
{
    char *kept = *a;
    *a = *b;
    *b = kept;
}

/* The decision: from here on the copy is the volume. */
static void places_swap(struct volume *volume)
{
    swap(&volume->pool, &volume->other_pool);
    swap(&volume->host, &volume->other_host);
    swap(&volume->place, &volume->other_place);
    const char *const names[][2] = {{"host", volume->host}, {"other_host", volume->other_host}, {"place", volume->place},
                                    {"other_place", volume->other_place}};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        uint64_t bit = UINT64_C(1) << (object_field(&volume_desc, names[i][0]) - volume_desc.fields);
        volume->head.present = names[i][1] != NULL ? volume->head.present | bit : volume->head.present & ~bit;
    }
}

/* The end of the log was lost in the middle of it, perhaps with the word that it was done, upon which hosts have removed what was. */
bool move_may_be_done(const struct apply *a, const struct operation *operation)
{
    const char *recovered_at = state_cluster(a->state)->recovered_at;
    return recovered_at != NULL && strcmp(operation->created_at, recovered_at) < 0;
}

static void other_keep(struct apply *a, struct record *record)
{
    char words[APPLY_STEP_BYTES_MAX];
    apply_text(words, sizeof words,
               "kept%s%s, for the cluster was recovered while it moved: volumes/%s.%s may be the only copy; remove it by hand if not",
               record->volume->other_host != NULL ? " on host " : "", record->volume->other_host != NULL ? record->volume->other_host : "",
               record->volume->id, record->volume->other_place);
    volume_left_gone(a, record, words);
}

static void ended(struct apply *a, const struct operation *operation, enum operation_state state, const char *text,
                  const struct task_seen *seen UNUSED)
{
    if (OBJECT_HAS(task, &operation->task, disk)) {
        own_disk_move_ended(a, operation, state, text);
        return;
    }
    struct record *record = volume_of(a, operation);
    struct volume *volume = record != NULL ? record->volume : NULL;
    if (volume == NULL || volume->state != volume_state_MOVING || strcmp(volume->other_place, operation->id) != 0)
        return; /* forgotten by force, or there was nothing to do */
    state_edit_begin(a->state, record);
    if (state == operation_state_SUCCEEDED)
        places_swap(volume);
    OBJECT_SET(volume, volume, state, volume->vm != NULL ? volume_state_ATTACHED : volume_state_AVAILABLE);
    state_edit_end(a->state, record, a->index);
    struct record *vm = state == operation_state_SUCCEEDED ? vm_of(a, volume) : NULL;
    if (vm != NULL) {
        struct vm_disk *disk = volume_disk_find(vm->vm, volume->id);
        volume_vm_edit_begin(a, vm);
        if (disk != NULL)
            OBJECT_TEXT(vm_disk, disk, pool, volume->pool);
        volume_vm_edit_end(a, vm);
    }
    volume_tell_hosts(a, volume);
    if (state == operation_state_SUCCEEDED)
        apply_event(a, event_type_UPDATED, record, "volume %s is in pool %s; what is left of it in pool %s goes", volume->name, volume->pool,
                    volume->other_pool);
    else
        apply_event(a, event_type_UPDATED, record, "volume %s stays in pool %s: %s", volume->name, volume->pool,
                    text != NULL ? text : "it was not moved");
    if (state != operation_state_SUCCEEDED && move_may_be_done(a, operation))
        other_keep(a, record);
}

void volume_is_level(struct apply *a, struct record *record)
{
    struct task *task = &record->operation->task;
    if (task->kind != task_kind_VOLUME_MOVE || task->level)
        return;
    state_edit_begin(a->state, record);
    OBJECT_SET(task, task, level, true);
    state_edit_end(a->state, record, a->index);
    task_orders_changed(a, task);
}

bool volume_is_moved(struct apply *a, const struct record *vm)
{
    for (size_t i = 0; i < vm->of_vm.operations.count; i++) {
        const struct operation *operation = vm->of_vm.operations.items[i]->operation;
        if (operation->kind == operation_kind_VOLUME_MOVE)
            apply_refuse(a, -EBUSY, ERROR_CONFLICT, "volume '%s' of VM '%s' is being moved to another pool; wait for its end, or cancel it",
                         operation->target_name, vm->common->name);
        else if (operation->kind == operation_kind_DISK_MOVE)
            apply_refuse(a, -EBUSY, ERROR_CONFLICT, "disk '%s' of VM '%s' is being moved to another pool; wait for its end, or cancel it",
                         operation->task.disk.name, vm->common->name);
        else
            continue;
        return true;
    }
    return false;
}

const struct task_kind_ops task_volume_move = {may_begin, begun, ended};
