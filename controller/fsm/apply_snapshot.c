/* Snapshots of VMs: what it means for them that their tasks begin and end.
 *
 *   snapshot-create --> CREATING --done--> AVAILABLE <--over-- REVERTING <-- snapshot-revert
 *                          |                  |  ^
 *                    failed, cancelled        |  '--cancelled--.
 *                          v                  v                |
 *                       (none) <--done-- DELETING <--snapshot-delete-- FAILED
 *                                             '-------failed----------->'
 *
 * A snapshot is where the disks of its VM are; it goes with the VM. */
#include "controller/fsm/apply_task.h"

#include <errno.h>
#include <string.h>

#include "controller/fsm/volume_disks.h"

static struct record *snapshot_of(struct apply *a, const struct operation *operation)
{
    const char *id = operation->task.snapshot.id;
    return id != NULL ? map_get(&a->state->tables[object_kind_SNAPSHOT].by_id, id) : NULL;
}

static void set_state(struct apply *a, struct record *record, enum snapshot_state state, const char *reason)
{
    char text[APPLY_STEP_BYTES_MAX];
    apply_text(text, sizeof text, "%s", reason != NULL ? reason : "");
    state_edit_begin(a->state, record);
    OBJECT_SET(snapshot, record->snapshot, state, state);
    OBJECT_TEXT(snapshot, record->snapshot, state_reason, reason != NULL ? text : NULL);
    state_edit_end(a->state, record, a->index);
    apply_event(a, event_type_UPDATED, record, "snapshot %s of VM %s is %s%s%s", record->common->name,
                record->snapshot->vm_name, snapshot_state_desc.names[state], reason != NULL ? ": " : "",
                reason != NULL ? text : "");
}

static void drop(struct apply *a, struct record *record, const char *why)
{
    apply_event(a, event_type_DELETED, record, "snapshot %s of VM %s is gone: %s", record->common->name,
                record->snapshot->vm_name, why);
    state_remove(a->state, record);
}

/* The VM that the task names, where the task's host has its disks; refuses if not. */
static const struct vm *vm_with_disks(struct apply *a, const struct operation *operation)
{
    const struct task *task = &operation->task;
    const struct record *record = apply_find(a, object_kind_VM, task->vm, 0);
    if (record == NULL)
        return NULL;
    const struct vm *vm = record->vm;
    if (vm->host == NULL) {
        apply_refuse(a, -ENOENT, ERROR_CONFLICT, "VM '%s' waits for a host and has no disks yet", vm->name);
        return NULL;
    }
    if (strcmp(vm->host, task->host) != 0 || vm->epoch != task->epoch) {
        apply_refuse(a, -ESTALE, ERROR_CONFLICT, "VM '%s' was started or moved meanwhile; ask again", vm->name);
        return NULL;
    }
    if (vm->disks.count == 0) {
        apply_refuse(a, -EINVAL, ERROR_CONFLICT, "VM '%s' has no disks", vm->name);
        return NULL;
    }
    return vm;
}

/* Is another task at work on a snapshot in the state that the VM's snapshots must not be in? Refuses if so. */
static bool another(struct apply *a, const struct vm *vm, enum snapshot_state state)
{
    for (size_t i = 0; i < state_count(a->state, object_kind_SNAPSHOT); i++) {
        const struct snapshot *snapshot = state_at(a->state, object_kind_SNAPSHOT, i)->snapshot;
        if (strcmp(snapshot->vm, vm->id) != 0 || snapshot->state != state)
            continue;
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "snapshot '%s' of VM '%s' is %s; wait for that", snapshot->name,
                     vm->name, snapshot_state_desc.names[state]);
        return true;
    }
    return false;
}

static size_t count_of(const struct apply *a, const struct vm *vm)
{
    size_t count = 0;
    for (size_t i = 0; i < state_count(a->state, object_kind_SNAPSHOT); i++)
        count += strcmp(state_at(a->state, object_kind_SNAPSHOT, i)->snapshot->vm, vm->id) == 0;
    return count;
}

/* ---- create ---- */

static bool create_may_begin(struct apply *a, const struct operation *operation)
{
    const struct task_snapshot *given = &operation->task.snapshot;
    struct record_common common = {.id = given->id, .name = given->name};
    const struct vm *vm = vm_with_disks(a, operation);
    if (vm == NULL || !apply_may_insert(a, object_kind_SNAPSHOT, &common) || another(a, vm, snapshot_state_REVERTING))
        return false;
    if (count_of(a, vm) >= STATE_VM_SNAPSHOTS_MAX) {
        apply_refuse(a, -ENOSPC, ERROR_NO_SPACE, "VM '%s' has %u snapshots, the most that there may be; delete some",
                     vm->name, STATE_VM_SNAPSHOTS_MAX);
        return false;
    }
    const struct vm_disk *volume = volume_disk_any(vm);
    if (volume != NULL) {
        apply_refuse(a, -ENOTSUP, ERROR_NOT_SUPPORTED,
                     "VM '%s' has a volume attached (disk '%s'), and volumes cannot be part of snapshots: detach it meanwhile, or make "
                     "a backup of the VM", vm->name, volume->name);
        return false;
    }
    if (vm->replica_host != NULL) {
        apply_refuse(a, -ENOTSUP, ERROR_NOT_SUPPORTED,
                     "VM '%s' has a replica on host %s, which has no snapshots: take the replica away meanwhile (replica_host), or make a "
                     "backup of the VM", vm->name, vm->replica_host);
        return false;
    }
    if (given->ram && vm->state != vm_state_RUNNING && vm->state != vm_state_PAUSED) {
        apply_refuse_field(a, -EINVAL, ERROR_CONFLICT, "/ram", "needs a VM that runs; '%s' is %s", vm->name,
                           vm_state_desc.names[vm->state]);
        return false;
    }
    return true;
}

static void create_begun(struct apply *a, const struct operation *operation)
{
    const struct task_snapshot *given = &operation->task.snapshot;
    const struct vm *vm = apply_find(a, object_kind_VM, operation->task.vm, 0)->vm;
    struct snapshot new = {0};
    OBJECT_TEXT(snapshot, &new, id, given->id);
    OBJECT_TEXT(snapshot, &new, name, given->name);
    OBJECT_TEXT(snapshot, &new, created_at, a->request->at);
    OBJECT_TEXT(snapshot, &new, vm, vm->id);
    OBJECT_TEXT(snapshot, &new, vm_name, vm->name);
    OBJECT_SET(snapshot, &new, state, snapshot_state_CREATING);
    if (OBJECT_HAS(task_snapshot, given, freeze))
        OBJECT_SET(snapshot, &new, freeze, given->freeze);
    if (OBJECT_HAS(task_snapshot, given, ram))
        OBJECT_SET(snapshot, &new, ram, given->ram);
    struct snapshot labels = {.labels = given->labels}; /* borrowed: merge copies */
    if (given->labels.count > 0) {
        object_mark(&snapshot_desc, &labels, "labels");
        object_merge(&snapshot_desc, &new, &labels);
    }
    struct record *record = state_insert(a->state, object_kind_SNAPSHOT, &new, a->index);
    apply_event(a, event_type_CREATED, record, "snapshot %s of VM %s is to be made", record->common->name, vm->name);
}

static void create_ended(struct apply *a, const struct operation *operation, enum operation_state state,
                         const char *text, const struct task_seen *seen)
{
    struct record *record = snapshot_of(a, operation);
    if (record == NULL)
        return;
    if (state != operation_state_SUCCEEDED) {
        drop(a, record, text != NULL ? text : "it could not be made");
        return;
    }
    state_edit_begin(a->state, record);
    if (seen != NULL && OBJECT_HAS(task_seen, seen, snapshot)) {
        const struct snapshot_result *result = &seen->snapshot;
        struct snapshot *snapshot = record->snapshot;
        OBJECT_SET(snapshot, snapshot, consistency, result->consistency);
        OBJECT_SET(snapshot, snapshot, pause_us, result->pause_us);
        if (result->ram_bytes > 0)
            OBJECT_SET(snapshot, snapshot, ram_bytes, result->ram_bytes);
        for (size_t i = 0; i < result->disks.count; i++)
            OBJECT_COPY(snapshot_disk, (struct snapshot_disk *)OBJECT_ADD(snapshot, snapshot, disks),
                        (const struct snapshot_disk *)result->disks.items + i);
    }
    state_edit_end(a->state, record, a->index);
    bool without = operation->task.snapshot.memory && record->snapshot->consistency != snapshot_consistency_MEMORY;
    set_state(a, record, snapshot_state_AVAILABLE,
              without ? "it is without memory: the host's drover-agent is of an older version and has kept the disks alone" : NULL);
}

const struct task_kind_ops task_snapshot_create = {create_may_begin, create_begun, create_ended};

/* ---- revert ---- */

static bool revert_may_begin(struct apply *a, const struct operation *operation)
{
    const struct vm *vm = vm_with_disks(a, operation);
    const struct record *record = apply_find(a, object_kind_SNAPSHOT, operation->task.snapshot.id, 0);
    if (vm == NULL || record == NULL || another(a, vm, snapshot_state_REVERTING) ||
        another(a, vm, snapshot_state_CREATING))
        return false;
    if (record->snapshot->state != snapshot_state_AVAILABLE || strcmp(record->snapshot->vm, vm->id) != 0) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "snapshot '%s' is %s", record->common->name,
                     snapshot_state_desc.names[record->snapshot->state]);
        return false;
    }
    if (vm->wanted != vm_wanted_STOPPED || vm->state != vm_state_STOPPED) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "VM '%s' is %s: stop it first (drover vm stop %s)", vm->name,
                     vm_state_desc.names[vm->state], vm->name);
        return false;
    }
    return true;
}

static void revert_begun(struct apply *a, const struct operation *operation)
{
    set_state(a, snapshot_of(a, operation), snapshot_state_REVERTING, NULL);
}

static void revert_ended(struct apply *a, const struct operation *operation, enum operation_state state,
                         const char *text, const struct task_seen *seen)
{
    struct record *record = snapshot_of(a, operation);
    if (record == NULL)
        return;
    bool done = state == operation_state_SUCCEEDED, wanted = operation->task.snapshot.memory;
    bool resumes = done && wanted && seen != NULL && OBJECT_HAS(task_seen, seen, snapshot) && seen->snapshot.resumes;
    set_state(a, record, snapshot_state_AVAILABLE,
              done && wanted && !resumes ? "its VM boots from the disks: the host's drover-agent is of an older version and knows of no memory"
              : done                     ? NULL
                                         : text);
    if (resumes)
        apply_event(a, event_type_UPDATED, record, "VM %s is at snapshot %s: its next start goes on from the memory, once",
                    record->snapshot->vm_name, record->common->name);
}

const struct task_kind_ops task_snapshot_revert = {revert_may_begin, revert_begun, revert_ended};

/* ---- delete ---- */

/* An image is copied from a snapshot of @vm: what is merged when a snapshot goes may be what is being read. Refuses if so. */
static bool being_read(struct apply *a, const struct vm *vm)
{
    const struct record_index *operations = &state_get(a->state, object_kind_VM, vm->id)->of_vm.operations;
    for (size_t i = 0; i < operations->count; i++) {
        const struct operation *other = operations->items[i]->operation;
        if (other->kind != operation_kind_IMAGE_IMPORT)
            continue;
        apply_refuse(a, -EBUSY, ERROR_IN_USE, "image '%s' is being made of a snapshot of VM '%s'; wait for that, or cancel it: operation cancel %s",
                     other->target_name, vm->name, other->id);
        return true;
    }
    return false;
}

static bool delete_may_begin(struct apply *a, const struct operation *operation)
{
    const struct vm *vm = vm_with_disks(a, operation);
    const struct record *record = apply_find(a, object_kind_SNAPSHOT, operation->task.snapshot.id, 0);
    if (vm == NULL || record == NULL || another(a, vm, snapshot_state_REVERTING) || being_read(a, vm))
        return false;
    if ((record->snapshot->state != snapshot_state_AVAILABLE && record->snapshot->state != snapshot_state_FAILED) ||
        strcmp(record->snapshot->vm, vm->id) != 0) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "snapshot '%s' is %s", record->common->name,
                     snapshot_state_desc.names[record->snapshot->state]);
        return false;
    }
    return true;
}

static void delete_begun(struct apply *a, const struct operation *operation)
{
    set_state(a, snapshot_of(a, operation), snapshot_state_DELETING, NULL);
}

static void delete_ended(struct apply *a, const struct operation *operation, enum operation_state state,
                         const char *text, const struct task_seen *seen UNUSED)
{
    struct record *record = snapshot_of(a, operation);
    if (record == NULL)
        return;
    if (state == operation_state_SUCCEEDED)
        drop(a, record, "deleted");
    else /* cancelled: before anything of it was gone */
        set_state(a, record, state == operation_state_CANCELLED ? snapshot_state_AVAILABLE : snapshot_state_FAILED, text);
}

const struct task_kind_ops task_snapshot_delete = {delete_may_begin, delete_begun, delete_ended};

/* ---- images of them ---- */

bool snapshot_may_be_read(struct apply *a, const struct operation *operation, const char *id)
{
    const struct vm *vm = operation->task.vm != NULL ? vm_with_disks(a, operation) : NULL;
    const struct record *record = vm != NULL ? apply_find(a, object_kind_SNAPSHOT, id, 0) : NULL;
    if (record == NULL || another(a, vm, snapshot_state_DELETING))
        return false;
    if (record->snapshot->state == snapshot_state_AVAILABLE && strcmp(record->snapshot->vm, vm->id) == 0)
        return true;
    apply_refuse_field(a, -EBUSY, ERROR_CONFLICT, "/source/snapshot", "'%s' is %s; it must be available", record->common->name,
                       snapshot_state_desc.names[record->snapshot->state]);
    return false;
}

/* ---- with their VM ---- */

void snapshots_vm_gone(struct apply *a, const struct record *vm)
{
    for (size_t i = state_count(a->state, object_kind_SNAPSHOT); i > 0; i--) {
        struct record *record = a->state->tables[object_kind_SNAPSHOT].order.items[i - 1];
        if (strcmp(record->snapshot->vm, vm->common->id) == 0)
            drop(a, record, "its VM is");
    }
}

void snapshots_vm_renamed(struct apply *a, const struct record *vm)
{
    for (size_t i = 0; i < state_count(a->state, object_kind_SNAPSHOT); i++) {
        struct record *record = a->state->tables[object_kind_SNAPSHOT].order.items[i];
        if (strcmp(record->snapshot->vm, vm->common->id) != 0)
            continue;
        state_edit_begin(a->state, record);
        OBJECT_TEXT(snapshot, record->snapshot, vm_name, vm->common->name);
        state_edit_end(a->state, record, a->index);
    }
}
