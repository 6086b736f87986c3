/* Clones of volumes: what it means that their making begins and ends.
 *
 *   (none) --volume-clone--> CREATING --the host has copied all of it--> AVAILABLE
 *                               '---- failed, cancelled ----> DELETING --a host has removed what there is--> (none)
 *
 * A clone is a copy of what a snapshot has, thin, and shares nothing with it: both may go in any order. It is made in a place of its own in
 * the pool (the operation's id, as a move's), which no order of another time names. What is below the snapshot does not change meanwhile:
 * no snapshot of its volume goes, or is reverted to, and the VM that has the volume, if one has, begins no other task of its disks. */
#include "controller/fsm/apply_task.h"

#include <errno.h>
#include <string.h>

#include "controller/fsm/pool_members.h"
#include "controller/fsm/volume_disks.h"

static struct record *by_id(struct apply *a, enum object_kind kind, const char *id)
{
    return id != NULL ? map_get(&a->state->tables[kind].by_id, id) : NULL;
}

bool volume_is_cloned(struct apply *a, const struct volume *volume)
{
    for (size_t i = 0; i < state_count(a->state, object_kind_VOLUME); i++) {
        const struct volume *clone = state_at(a->state, object_kind_VOLUME, i)->volume;
        if (!volume_is_clone_in_making(clone) || !text_same(clone->origin, volume->id))
            continue;
        apply_refuse(a, -EBUSY, ERROR_CONFLICT,
                     "volume '%s' is being made of a snapshot of volume '%s'; wait for that, or cancel it (drover operation cancel %s)", clone->name,
                     volume->name, clone->place);
        return true;
    }
    return false;
}

/* Its VM's host, or of one that nobody has any that has both pools. */
static bool is_reached(struct apply *a, const struct volume *volume, const struct task *task, const struct record *host)
{
    const struct record *vm = by_id(a, object_kind_VM, volume->vm);
    bool is_there = vm != NULL ? text_same(vm->vm->host, task->host) && !vm->vm->recovering
                               : volume->host == NULL || text_same(volume->host, host->common->name);
    if (!text_same(volume->vm, task->vm) || !is_there)
        apply_refuse(a, -ESTALE, ERROR_CONFLICT, "volume '%s' was attached, detached or taken to another host meanwhile; ask again", volume->name);
    else if (volume->state != volume_state_ATTACHED && volume->state != volume_state_AVAILABLE)
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "volume '%s' is %s; wait for that", volume->name, volume_state_desc.names[volume->state]);
    else
        return vm != NULL ? !volume_vm_is_busy(a, vm) : !snapshot_is_at_work(a, volume);
    return false;
}

static bool may_begin(struct apply *a, const struct operation *operation)
{
    const struct task *task = &operation->task;
    const struct task_clone *given = &task->clone;
    struct record_common common = {.id = given->id, .name = given->name};
    const struct record *host = by_id(a, object_kind_HOST, task->host), *to = by_id(a, object_kind_POOL, given->pool);
    const struct record *record = apply_find(a, object_kind_VOLUME, given->volume, 0);
    const struct record *snapshot = record != NULL ? apply_find(a, object_kind_SNAPSHOT, given->snapshot, 0) : NULL;
    if (snapshot == NULL || !apply_may_insert(a, object_kind_VOLUME, &common))
        return false;
    if (snapshot->snapshot->state != snapshot_state_AVAILABLE || !volume_is_in(snapshot->snapshot, record->common->id)) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "snapshot '%s' is %s; it must be available", snapshot->common->name,
                     snapshot_state_desc.names[snapshot->snapshot->state]);
        return false;
    }
    if (to == NULL || (to->pool->kind != pool_kind_DIR && to->pool->kind != pool_kind_SHARED_DIR)) {
        apply_refuse_field(a, -ENOTSUP, ERROR_NOT_SUPPORTED, "/pool", "is no pool of directories: name one that is");
        return false;
    }
    const struct record *from = state_get(a->state, object_kind_POOL, record->volume->pool);
    return is_reached(a, record->volume, task, host) && move_host_has(a, from->pool, host) && move_host_has(a, to->pool, host) &&
           move_has_room(a, "volume", record->common->name, record->volume->size_bytes, to->pool, host);
}

static void begun(struct apply *a, const struct operation *operation)
{
    const struct task_clone *given = &operation->task.clone;
    const struct volume *origin = apply_find(a, object_kind_VOLUME, given->volume, 0)->volume;
    const struct pool *pool = by_id(a, object_kind_POOL, given->pool)->pool;
    struct volume new = {0}, labels = {.labels = given->labels}; /* borrowed: merge copies */
    OBJECT_TEXT(volume, &new, id, given->id);
    OBJECT_TEXT(volume, &new, name, given->name);
    OBJECT_TEXT(volume, &new, created_at, a->request->at);
    OBJECT_SET(volume, &new, size_bytes, origin->size_bytes); /* one that has grown since the snapshot: it grows where it is opened */
    OBJECT_TEXT(volume, &new, pool, pool->name);
    if (pool->kind == pool_kind_DIR)
        OBJECT_TEXT(volume, &new, host, by_id(a, object_kind_HOST, operation->task.host)->common->name);
    OBJECT_SET(volume, &new, state, volume_state_CREATING);
    OBJECT_TEXT(volume, &new, disk, given->disk);
    OBJECT_TEXT(volume, &new, place, operation->id);
    OBJECT_TEXT(volume, &new, snapshot, by_id(a, object_kind_SNAPSHOT, given->snapshot)->common->name);
    OBJECT_TEXT(volume, &new, origin, origin->id);
    if (given->labels.count > 0) {
        object_mark(&volume_desc, &labels, "labels");
        object_merge(&volume_desc, &new, &labels);
    }
    struct record *record = state_insert(a->state, object_kind_VOLUME, &new, a->index);
    apply_event(a, event_type_CREATED, record, "volume %s is to be made of snapshot %s", record->common->name, record->volume->snapshot);
}

static void ended(struct apply *a, const struct operation *operation, enum operation_state state, const char *text,
                  const struct task_seen *seen UNUSED)
{
    struct record *record = by_id(a, object_kind_VOLUME, operation->task.clone.id);
    if (record == NULL || !volume_is_clone_in_making(record->volume))
        return; /* forgotten by force */
    char why[APPLY_STEP_BYTES_MAX];
    bool done = state == operation_state_SUCCEEDED;
    apply_text(why, sizeof why, "%s", text != NULL ? text : "it was not made");
    state_edit_begin(a->state, record);
    OBJECT_SET(volume, record->volume, state, done ? volume_state_AVAILABLE : volume_state_DELETING);
    OBJECT_TEXT(volume, record->volume, state_reason, done ? NULL : why);
    state_edit_end(a->state, record, a->index);
    apply_event(a, event_type_UPDATED, record, "volume %s is %s%s%s", record->common->name, volume_state_desc.names[record->volume->state],
                done ? "" : ": ", done ? "" : why);
    volume_tell_hosts(a, record->volume);
}

const struct task_kind_ops task_volume_clone = {may_begin, begun, ended};
