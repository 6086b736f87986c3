/* Snapshots of VMs: what it means for them that their tasks begin and end.
 *
 *   snapshot-create --> CREATING --done--> AVAILABLE <--over-- REVERTING <-- snapshot-revert
 *                          |                  |  ^
 *                    failed, cancelled        |  '--cancelled--.
 *                          v                  v                |
 *                       (none) <--done-- DELETING <--snapshot-delete-- FAILED
 *                                             '-------failed----------->'
 *
 * A snapshot is where the disks of its VM are; it goes with the VM. Volumes that the VM has are in it like its own disks
 * (snapshot.volumes), and stay attached, where they are, as long as it is there: detaching, moving and deleting the VM are refused. So
 * a snapshot that is available can be reverted to, whole, at any time. One that was attached later is in none that was there
 * before: these are not reverted to while the VM has it.
 *
 * A snapshot of a volume alone (snapshot.volume) is where the volume is, and goes with that; the volume may be attached and detached as it
 * likes. The VM that has it at the moment takes part in each task about it, for its VMM may have the volume open, and no other task of
 * that VM begins meanwhile (volume_is_at_work); of one that nobody has no VM gets it meanwhile. */
#include "controller/fsm/apply_task.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/fsm/volume_disks.h"

static struct record *snapshot_of(struct apply *a, const struct operation *operation)
{
    const char *id = operation->task.snapshot.id;
    return id != NULL ? map_get(&a->state->tables[object_kind_SNAPSHOT].by_id, id) : NULL;
}

#define WHOSE_BYTES 80

static const char *whose(const struct snapshot *snapshot, char text[WHOSE_BYTES])
{
    snprintf(text, WHOSE_BYTES, "%s %s", snapshot->volume != NULL ? "volume" : "VM",
             snapshot->volume != NULL ? snapshot->volume_name : snapshot->vm_name);
    return text;
}

static bool is_of(const struct snapshot *snapshot, const struct vm *vm)
{
    return text_same(snapshot->vm, vm->id);
}

static void set_state(struct apply *a, struct record *record, enum snapshot_state state, const char *reason)
{
    char text[APPLY_STEP_BYTES_MAX], of[WHOSE_BYTES];
    apply_text(text, sizeof text, "%s", reason != NULL ? reason : "");
    state_edit_begin(a->state, record);
    OBJECT_SET(snapshot, record->snapshot, state, state);
    OBJECT_TEXT(snapshot, record->snapshot, state_reason, reason != NULL ? text : NULL);
    state_edit_end(a->state, record, a->index);
    apply_event(a, event_type_UPDATED, record, "snapshot %s of %s is %s%s%s", record->common->name,
                whose(record->snapshot, of), snapshot_state_desc.names[state], reason != NULL ? ": " : "",
                reason != NULL ? text : "");
}

/* Its volumes are to know that they are in it, or not any more. */
static void count_in_volumes(struct apply *a, const struct snapshot *snapshot, bool in)
{
    for (size_t i = 0; i < snapshot->volumes.count; i++) {
        const struct snapshot_volume *item = (const struct snapshot_volume *)snapshot->volumes.items + i;
        struct record *record = map_get(&a->state->tables[object_kind_VOLUME].by_id, item->id);
        if (record == NULL)
            continue;
        state_edit_begin(a->state, record);
        OBJECT_SET(volume, record->volume, snapshots, in ? record->volume->snapshots + 1 : record->volume->snapshots - 1);
        state_edit_end(a->state, record, a->index);
    }
}

static void drop(struct apply *a, struct record *record, const char *why)
{
    char of[WHOSE_BYTES];
    count_in_volumes(a, record->snapshot, false);
    apply_event(a, event_type_DELETED, record, "snapshot %s of %s is gone: %s", record->common->name, whose(record->snapshot, of), why);
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
        if (!is_of(snapshot, vm) || snapshot->state != state)
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
        count += is_of(state_at(a->state, object_kind_SNAPSHOT, i)->snapshot, vm);
    return count;
}

static bool has_layers(struct apply *a, const struct volume *volume)
{
    const struct record *pool = state_get(a->state, object_kind_POOL, volume->pool);
    if (pool->pool->kind == pool_kind_DIR || pool->pool->kind == pool_kind_SHARED_DIR)
        return true;
    apply_refuse(a, -ENOTSUP, ERROR_NOT_SUPPORTED,
                 "volume '%s' is in pool '%s', and only disks in directories can be part of snapshots: make a backup of its VM, or detach it "
                 "meanwhile (drover volume detach %s)", volume->name, volume->pool, volume->name);
    return false;
}

/* ---- of a volume alone ---- */

/* Who has it is as the task says. One that no VM has belongs to a host where its pool does. In a shared pool it belongs to none: a host that
 * was lost in the middle might go on with it while a VM of another one has it by then. */
static bool volume_is_reached(struct apply *a, const struct volume *volume, const struct operation *operation)
{
    const struct task *task = &operation->task;
    const struct record *vm = volume->vm != NULL ? map_get(&a->state->tables[object_kind_VM].by_id, volume->vm) : NULL;
    if (!text_same(volume->vm, task->vm)) {
        apply_refuse(a, -ESTALE, ERROR_CONFLICT, "volume '%s' was attached or detached meanwhile; ask again", volume->name);
    } else if (volume->state != (vm != NULL ? volume_state_ATTACHED : volume_state_AVAILABLE)) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "volume '%s' is %s%s%.300s", volume->name, volume_state_desc.names[volume->state],
                     volume->state_reason != NULL ? ": " : "; wait for that", volume->state_reason != NULL ? volume->state_reason : "");
    } else if (vm != NULL && vm->vm->replica_host != NULL) {
        apply_refuse(a, -ENOTSUP, ERROR_NOT_SUPPORTED,
                     "VM '%s', which has volume '%s', has a replica on host %s, and its disks are written to two hosts at once: take the replica away "
                     "meanwhile (replica_host)", vm->common->name, volume->name, vm->vm->replica_host);
    } else if (vm != NULL) {
        return vm_with_disks(a, operation) != NULL && !volume_vm_is_busy(a, vm);
    } else if (volume->host == NULL) {
        apply_refuse(a, -ENOTSUP, ERROR_NOT_SUPPORTED,
                     "volume '%s' is in shared pool '%s' and attached to no VM, so that it is no host's: attach it to a VM, which may be off (drover "
                     "volume attach %s --vm VM)", volume->name, volume->pool, volume->name);
    } else if (!text_same(volume_worker(a->state, volume), task->host)) {
        apply_refuse(a, -EHOSTDOWN, ERROR_CONFLICT, "the host that was to do it cannot reach volume '%s' any more; ask again", volume->name);
    } else {
        return !snapshot_is_at_work(a, volume);
    }
    return false;
}

/* The volume that the task is about; NULL: refused. */
static const struct volume *volume_for(struct apply *a, const struct operation *operation)
{
    const struct record *record = apply_find(a, object_kind_VOLUME, operation->task.snapshot.volume, 0);
    return record != NULL && has_layers(a, record->volume) && volume_is_reached(a, record->volume, operation) ? record->volume : NULL;
}

static bool volume_create_may_begin(struct apply *a, const struct operation *operation)
{
    const struct task_snapshot *given = &operation->task.snapshot;
    struct record_common common = {.id = given->id, .name = given->name};
    const struct volume *volume = volume_for(a, operation);
    if (volume == NULL || !apply_may_insert(a, object_kind_SNAPSHOT, &common))
        return false;
    if (volume->snapshots < STATE_VM_SNAPSHOTS_MAX)
        return true;
    apply_refuse(a, -ENOSPC, ERROR_NO_SPACE, "volume '%s' is in %u snapshots, the most that there may be; delete some", volume->name,
                 STATE_VM_SNAPSHOTS_MAX);
    return false;
}

/* Of a revert, @revert, or of a removal. */
static bool volume_change_may_begin(struct apply *a, const struct operation *operation, bool revert)
{
    const struct volume *volume = volume_for(a, operation);
    const struct record *record = volume != NULL ? apply_find(a, object_kind_SNAPSHOT, operation->task.snapshot.id, 0) : NULL;
    if (record == NULL)
        return false;
    const struct vm *vm = volume->vm != NULL ? state_get(a->state, object_kind_VM, volume->vm)->vm : NULL;
    bool may = record->snapshot->state == snapshot_state_AVAILABLE || (!revert && record->snapshot->state == snapshot_state_FAILED);
    if (!may || !text_same(record->snapshot->volume, volume->id))
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "snapshot '%s' is %s", record->common->name, snapshot_state_desc.names[record->snapshot->state]);
    else if (revert && vm != NULL && (vm->wanted != vm_wanted_STOPPED || vm->state != vm_state_STOPPED))
        apply_refuse(a, -EBUSY, ERROR_CONFLICT,
                     "VM '%s', which has volume '%s', is %s: stop it first (drover vm stop %s), or detach the volume (drover volume detach %s)",
                     vm->name, volume->name, vm_state_desc.names[vm->state], vm->name, volume->name);
    else
        return true;
    return false;
}

bool snapshot_is_at_work(struct apply *a, const struct volume *volume)
{
    const struct snapshot *snapshot = volume_snapshot_at_work(a->state, volume);
    if (snapshot == NULL)
        return volume_is_cloned(a, volume);
    apply_refuse(a, -EBUSY, ERROR_CONFLICT, "snapshot '%s' of volume '%s' is %s; wait for that", snapshot->name, volume->name,
                 snapshot_state_desc.names[snapshot->state]);
    return true;
}

bool volume_is_at_work(struct apply *a, const struct record *vm)
{
    const struct vm_disk *disks = vm->vm->disks.items;
    for (size_t i = 0; i < vm->vm->disks.count; i++) {
        const struct record *volume = disks[i].volume != NULL ? state_get(a->state, object_kind_VOLUME, disks[i].volume) : NULL;
        if (volume != NULL && snapshot_is_at_work(a, volume->volume))
            return true;
    }
    return false;
}

/* ---- create ---- */

/* Volumes that are coming or going may be open or not, and what is in other kinds of pools has no layers. */
static bool volumes_may_be_kept(struct apply *a, const struct vm *vm, bool volumes)
{
    const struct vm_disk *disks = vm->disks.items;
    if (!volumes && volume_disk_any(vm) != NULL) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "VM '%s' has a volume attached by now (disk '%s'); ask again", vm->name, volume_disk_any(vm)->name);
        return false;
    }
    for (size_t i = 0; i < vm->disks.count; i++) {
        const struct record *record = disks[i].volume != NULL ? state_get(a->state, object_kind_VOLUME, disks[i].volume) : NULL;
        if (record == NULL)
            continue;
        const struct volume *volume = record->volume;
        if (volume->state != volume_state_ATTACHED) {
            apply_refuse(a, -EBUSY, ERROR_CONFLICT, "volume '%s' of VM '%s' is %s; wait for that", volume->name, vm->name,
                         volume_state_desc.names[volume->state]);
            return false;
        }
        if (!has_layers(a, volume))
            return false;
    }
    return true;
}

static bool has_memory_place(const struct vm *vm)
{
    const struct vm_disk *disks = vm->disks.items;
    for (size_t i = 0; i < vm->disks.count; i++)
        if (disks[i].volume == NULL && !disks[i].read_only)
            return true;
    return false;
}

static bool memory_may_be_kept(struct apply *a, const struct vm *vm, bool volumes)
{
    if (vm->state != vm_state_RUNNING && vm->state != vm_state_PAUSED)
        apply_refuse_field(a, -EINVAL, ERROR_CONFLICT, "/ram", "needs a VM that runs; '%s' is %s", vm->name, vm_state_desc.names[vm->state]);
    else if (volumes && !has_memory_place(vm))
        apply_refuse_field(a, -ENOTSUP, ERROR_NOT_SUPPORTED, "/ram",
                           "needs a disk of the VM's own that is written to, beside which its memory is kept; '%s' has volumes alone: leave ram "
                           "out, or make the VM with a disk", vm->name);
    else
        return true;
    return false;
}

static bool create_may_begin(struct apply *a, const struct operation *operation)
{
    const struct task_snapshot *given = &operation->task.snapshot;
    struct record_common common = {.id = given->id, .name = given->name};
    if (given->volume != NULL)
        return volume_create_may_begin(a, operation);
    const struct vm *vm = vm_with_disks(a, operation);
    if (vm == NULL || !apply_may_insert(a, object_kind_SNAPSHOT, &common) || another(a, vm, snapshot_state_REVERTING))
        return false;
    if (count_of(a, vm) >= STATE_VM_SNAPSHOTS_MAX) {
        apply_refuse(a, -ENOSPC, ERROR_NO_SPACE, "VM '%s' has %u snapshots, the most that there may be; delete some",
                     vm->name, STATE_VM_SNAPSHOTS_MAX);
        return false;
    }
    if (!volumes_may_be_kept(a, vm, given->volumes))
        return false;
    if (vm->replica_host != NULL) {
        apply_refuse(a, -ENOTSUP, ERROR_NOT_SUPPORTED,
                     "VM '%s' has a replica on host %s, which has no snapshots: take the replica away meanwhile (replica_host), or make a "
                     "backup of the VM", vm->name, vm->replica_host);
        return false;
    }
    return !given->ram || memory_may_be_kept(a, vm, given->volumes);
}

static void volume_fill(struct snapshot *snapshot, const char *id, const char *disk)
{
    struct snapshot_volume *item = OBJECT_ADD(snapshot, snapshot, volumes);
    OBJECT_TEXT(snapshot_volume, item, id, id);
    OBJECT_TEXT(snapshot_volume, item, disk, disk);
}

static void of_vm_fill(struct snapshot *snapshot, const struct vm *vm)
{
    const struct vm_disk *disks = vm->disks.items;
    OBJECT_TEXT(snapshot, snapshot, vm, vm->id);
    OBJECT_TEXT(snapshot, snapshot, vm_name, vm->name);
    for (size_t i = 0; i < vm->disks.count; i++)
        if (disks[i].volume != NULL)
            volume_fill(snapshot, disks[i].volume, disks[i].name);
}

static void of_volume_fill(struct snapshot *snapshot, const struct volume *volume)
{
    OBJECT_TEXT(snapshot, snapshot, volume, volume->id);
    OBJECT_TEXT(snapshot, snapshot, volume_name, volume->name);
    volume_fill(snapshot, volume->id, volume->disk);
}

static void create_begun(struct apply *a, const struct operation *operation)
{
    const struct task_snapshot *given = &operation->task.snapshot;
    struct snapshot new = {0};
    char of[WHOSE_BYTES];
    OBJECT_TEXT(snapshot, &new, id, given->id);
    OBJECT_TEXT(snapshot, &new, name, given->name);
    OBJECT_TEXT(snapshot, &new, created_at, a->request->at);
    if (given->volume != NULL)
        of_volume_fill(&new, apply_find(a, object_kind_VOLUME, given->volume, 0)->volume);
    else
        of_vm_fill(&new, apply_find(a, object_kind_VM, operation->task.vm, 0)->vm);
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
    count_in_volumes(a, record->snapshot, true);
    apply_event(a, event_type_CREATED, record, "snapshot %s of %s is to be made", record->common->name, whose(record->snapshot, of));
}

static void create_ended(struct apply *a, const struct operation *operation, enum operation_state state,
                         const char *text, const struct task_seen *seen)
{
    struct record *record = snapshot_of(a, operation);
    if (record == NULL)
        return;
    if (state != operation_state_SUCCEEDED) {
        vm_clone_snapshot_ended(a, record->snapshot, state, text);
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
    vm_clone_snapshot_ended(a, record->snapshot, state, NULL);
}

const struct task_kind_ops task_snapshot_create = {create_may_begin, create_begun, create_ended};

/* ---- revert ---- */

/* A volume that it has not stays as it is, which the rest of the VM would not be; and memory has the sizes of then. */
static bool volumes_fit(struct apply *a, const struct vm *vm, const struct snapshot *snapshot, bool memory)
{
    const struct vm_disk *disks = vm->disks.items;
    const struct snapshot_disk *then = snapshot->disks.items;
    for (size_t i = 0; i < vm->disks.count; i++) {
        const struct record *volume = disks[i].volume != NULL ? state_get(a->state, object_kind_VOLUME, disks[i].volume) : NULL;
        if (volume == NULL)
            continue;
        if (!volume_is_in(snapshot, volume->common->id)) {
            apply_refuse(a, -EBUSY, ERROR_CONFLICT,
                         "VM '%s' has volume '%s', which was attached after snapshot '%s' was made: detach it first (drover volume detach %s)",
                         vm->name, volume->common->name, snapshot->name, volume->common->name);
            return false;
        }
        for (size_t k = 0; memory && k < snapshot->disks.count; k++)
            if (strcmp(then[k].name, disks[i].name) == 0 && then[k].size_bytes != disks[i].size_bytes) {
                apply_refuse_field(a, -EINVAL, ERROR_CONFLICT, "/disks_only",
                                   "is needed: volume '%s' has grown since snapshot '%s', and a guest cannot go on with a disk of another size",
                                   volume->common->name, snapshot->name);
                return false;
            }
    }
    return true;
}

static bool revert_may_begin(struct apply *a, const struct operation *operation)
{
    if (operation->task.snapshot.volume != NULL)
        return volume_change_may_begin(a, operation, true);
    const struct vm *vm = vm_with_disks(a, operation);
    const struct record *record = apply_find(a, object_kind_SNAPSHOT, operation->task.snapshot.id, 0);
    if (vm == NULL || record == NULL || another(a, vm, snapshot_state_REVERTING) ||
        another(a, vm, snapshot_state_CREATING))
        return false;
    if (record->snapshot->state != snapshot_state_AVAILABLE || !is_of(record->snapshot, vm)) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "snapshot '%s' is %s", record->common->name,
                     snapshot_state_desc.names[record->snapshot->state]);
        return false;
    }
    if (vm->wanted != vm_wanted_STOPPED || vm->state != vm_state_STOPPED) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "VM '%s' is %s: stop it first (drover vm stop %s)", vm->name,
                     vm_state_desc.names[vm->state], vm->name);
        return false;
    }
    return volumes_fit(a, vm, record->snapshot, operation->task.snapshot.memory);
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
    if (operation->task.snapshot.volume != NULL)
        return volume_change_may_begin(a, operation, false);
    const struct vm *vm = vm_with_disks(a, operation);
    const struct record *record = apply_find(a, object_kind_SNAPSHOT, operation->task.snapshot.id, 0);
    if (vm == NULL || record == NULL || another(a, vm, snapshot_state_REVERTING) || being_read(a, vm))
        return false;
    if ((record->snapshot->state != snapshot_state_AVAILABLE && record->snapshot->state != snapshot_state_FAILED) ||
        !is_of(record->snapshot, vm)) {
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
    if (state != operation_state_SUCCEEDED && record->snapshot->clone != NULL) {
        state_edit_begin(a->state, record);
        OBJECT_TEXT(snapshot, record->snapshot, kept_at, a->request->at);
        state_edit_end(a->state, record, a->index);
    }
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
    if (record->snapshot->state == snapshot_state_AVAILABLE && is_of(record->snapshot, vm))
        return true;
    apply_refuse_field(a, -EBUSY, ERROR_CONFLICT, "/source/snapshot", "'%s' is %s; it must be available", record->common->name,
                       snapshot_state_desc.names[record->snapshot->state]);
    return false;
}

/* ---- with their VM ---- */

bool snapshot_keeps_volume(struct apply *a, const struct volume *volume, bool own, const char *cannot)
{
    for (size_t i = 0; volume->snapshots > 0 && i < state_count(a->state, object_kind_SNAPSHOT); i++) {
        const struct snapshot *snapshot = state_at(a->state, object_kind_SNAPSHOT, i)->snapshot;
        if (!volume_is_in(snapshot, volume->id) || (snapshot->volume != NULL && !own))
            continue;
        apply_refuse(a, -EBUSY, ERROR_IN_USE, "volume '%s' cannot be %s: it is part of snapshot '%s' of %s '%s'; delete that first (drover "
                     "snapshot delete %s)", volume->name, cannot, snapshot->name, snapshot->volume != NULL ? "volume" : "VM",
                     snapshot->volume != NULL ? snapshot->volume_name : snapshot->vm_name, snapshot->name);
        return true;
    }
    return false;
}

bool snapshot_keeps_vm(struct apply *a, const struct vm *vm)
{
    for (size_t i = 0; i < state_count(a->state, object_kind_SNAPSHOT); i++) {
        const struct snapshot *snapshot = state_at(a->state, object_kind_SNAPSHOT, i)->snapshot;
        if (!is_of(snapshot, vm) || snapshot->volumes.count == 0)
            continue;
        apply_refuse(a, -EBUSY, ERROR_IN_USE,
                     "snapshot '%s' of VM '%s' has volumes in it, which would keep what only it needs: delete the snapshot first (drover snapshot "
                     "delete %s), or use force", snapshot->name, vm->name, snapshot->name);
        return true;
    }
    return false;
}

/* By force: nobody takes its name out of the volumes. */
static void tell_of_kept(struct apply *a, const struct snapshot *snapshot)
{
    for (size_t i = 0; i < snapshot->volumes.count; i++) {
        const struct snapshot_volume *item = (const struct snapshot_volume *)snapshot->volumes.items + i;
        const struct record *volume = map_get(&a->state->tables[object_kind_VOLUME].by_id, item->id);
        if (volume != NULL)
            apply_event(a, event_type_UPDATED, volume,
                        "volume %s keeps the space of snapshot %s of VM %s, which is gone, until it is moved to another pool", volume->common->name,
                        snapshot->name, snapshot->vm_name);
    }
}

void snapshots_vm_gone(struct apply *a, const struct record *vm)
{
    for (size_t i = state_count(a->state, object_kind_SNAPSHOT); i > 0; i--) {
        struct record *record = a->state->tables[object_kind_SNAPSHOT].order.items[i - 1];
        if (!is_of(record->snapshot, vm->vm))
            continue;
        tell_of_kept(a, record->snapshot);
        drop(a, record, "its VM is");
    }
}

void snapshots_vm_renamed(struct apply *a, const struct record *vm)
{
    for (size_t i = 0; i < state_count(a->state, object_kind_SNAPSHOT); i++) {
        struct record *record = a->state->tables[object_kind_SNAPSHOT].order.items[i];
        if (!is_of(record->snapshot, vm->vm))
            continue;
        state_edit_begin(a->state, record);
        OBJECT_TEXT(snapshot, record->snapshot, vm_name, vm->common->name);
        state_edit_end(a->state, record, a->index);
    }
}

/* ---- with their volume ---- */

void snapshots_volume_gone(struct apply *a, const struct record *volume)
{
    for (size_t i = state_count(a->state, object_kind_SNAPSHOT); i > 0; i--) {
        struct record *record = a->state->tables[object_kind_SNAPSHOT].order.items[i - 1];
        if (text_same(record->snapshot->volume, volume->common->id))
            drop(a, record, "its volume is");
    }
}

void snapshots_volume_renamed(struct apply *a, const struct record *volume)
{
    for (size_t i = 0; i < state_count(a->state, object_kind_SNAPSHOT); i++) {
        struct record *record = a->state->tables[object_kind_SNAPSHOT].order.items[i];
        if (!text_same(record->snapshot->volume, volume->common->id))
            continue;
        state_edit_begin(a->state, record);
        OBJECT_TEXT(snapshot, record->snapshot, volume_name, volume->common->name);
        state_edit_end(a->state, record, a->index);
    }
}
