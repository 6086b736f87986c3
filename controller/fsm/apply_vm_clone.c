/* Clones of VMs: a new VM whose disks are made of another one's, by the host that has these.
 *
 *   (none) --vm-clone--> off, its disks are being made --its host has copied all of them--> off, as any other VM
 *                                   '---- failed, cancelled, deleted ----> to be deleted --its host has removed what there is--> (none)
 *
 * The new VM is a record from the beginning, its host's and wanted stopped: so its name, id, MAC and IP addresses are nobody else's, its
 * room on the host and in pools is kept, and whatever there is of it goes as any VM goes that is deleted, whoever has ended meanwhile. But
 * until its disks are whole nothing can be done with it but to delete it (vm_is_in_making), and it is neither started nor snapshot nor backed up.
 * Volumes that the other one has are made with it: records from the beginning, too, and its disks in the same order (ATTACHING until it is made). They
 * go where it is not, and are volumes like any others when it is.
 * Its disks are at places of their own, the operation's id (vm_disk.place, volume.place): what is missing at such a one is an error to every host, and never
 * made empty; and what the host of a later order finds there was made for this VM.
 *
 * What is copied does not change meanwhile: it is below a snapshot, which does not go, or the VM is off and its host keeps it so (one that
 * is started nevertheless goes first, and the clone fails). No task of that VM's disks begins that could change it (goes_along), and the VM is
 * not deleted. It is a copy, for
 * the reasons that clones of volumes are (apply_clone.c). */
#include "controller/fsm/apply_task.h"

#include <errno.h>
#include <string.h>

#include "controller/fsm/apply_migrate.h"
#include "controller/fsm/pool_members.h"
#include "controller/fsm/volume_disks.h"

/* May a task of @kind be at work on the VM that is cloned? What only reads may; and beside a snapshot, which does not change, also what only
 * puts something above it. */
static bool goes_along(enum operation_kind kind, bool of_snapshot)
{
    bool reads = kind == operation_kind_VM_REPLICATE || kind == operation_kind_BACKUP_CREATE;
    return reads || (of_snapshot && (kind == operation_kind_SNAPSHOT_CREATE || kind == operation_kind_IMAGE_IMPORT ||
                                     kind == operation_kind_VM_UPGRADE));
}

/* One of @vm that one of @kind cannot go along with; NULL: none. */
static const struct operation *clone_of(struct apply *a, const struct vm *vm, enum operation_kind kind)
{
    const struct record *host = state_get(a->state, object_kind_HOST, vm->host);
    for (size_t i = 0; host != NULL && i < host->of_host.tasks.count; i++) {
        const struct operation *operation = host->of_host.tasks.items[i]->operation;
        const struct task_vm_clone *clone = &operation->task.vm_clone;
        if (operation->kind == operation_kind_VM_CLONE && text_same(clone->vm, vm->id) && !goes_along(kind, clone->snapshot != NULL))
            return operation;
    }
    return NULL;
}

bool vm_is_cloned(struct apply *a, const struct record *vm, enum operation_kind kind)
{
    const struct operation *operation = clone_of(a, vm->vm, kind);
    if (operation != NULL)
        apply_refuse(a, -EBUSY, ERROR_CONFLICT,
                     "VM '%s' is being made of the disks of VM '%s'; wait for that, or cancel it (drover operation cancel %s)",
                     operation->target_name, vm->common->name, operation->id);
    return operation != NULL;
}

bool vm_is_in_making(struct apply *a, const struct record *vm)
{
    const struct operation *operation = state_vm_made_by(vm);
    if (operation != NULL)
        apply_refuse(a, -EBUSY, ERROR_CONFLICT,
                     "VM '%s' is being made of VM '%s' still; wait for that, or cancel it (drover operation cancel %s)",
                     vm->common->name, operation->task.vm_clone.vm_name, operation->id);
    return operation != NULL;
}

void vm_clones_end(struct apply *a, const struct record *source, const char *text)
{
    struct record *found;
    do {
        found = NULL;
        for (size_t i = 0; found == NULL && i < state_count(a->state, object_kind_HOST); i++) {
            const struct record_index *tasks = &state_at(a->state, object_kind_HOST, i)->of_host.tasks;
            for (size_t k = 0; found == NULL && k < tasks->count; k++)
                if (tasks->items[k]->operation->kind == operation_kind_VM_CLONE &&
                    text_same(tasks->items[k]->operation->task.vm_clone.vm, source->common->id))
                    found = tasks->items[k];
        }
        if (found != NULL)
            task_end(a, found, operation_state_FAILED, "vm-gone", text, NULL);
    } while (found != NULL);
}

/* The VM in the making that @volume is made with, or NULL. */
static struct record *vm_made_with(const struct state *state, const struct volume *volume)
{
    struct record *vm = volume->vm != NULL && volume->origin != NULL ? map_get(&state->tables[object_kind_VM].by_id, volume->vm) : NULL;
    const struct operation *operation = vm != NULL ? state_vm_made_by(vm) : NULL;
    return operation != NULL && text_same(volume->place, operation->id) ? vm : NULL;
}

bool volume_is_in_making(struct apply *a, const struct volume *volume)
{
    const struct record *vm = vm_made_with(a->state, volume);
    if (vm != NULL)
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "volume '%s' is being made with VM '%s' still; wait for that, or cancel it (drover operation cancel %s)",
                     volume->name, vm->common->name, volume->place);
    return vm != NULL;
}

bool volume_is_cloned_with_vm(struct apply *a, const struct volume *origin)
{
    for (size_t i = 0; i < state_count(a->state, object_kind_VOLUME); i++) {
        const struct volume *volume = state_at(a->state, object_kind_VOLUME, i)->volume;
        const struct record *vm = text_same(volume->origin, origin->id) ? vm_made_with(a->state, volume) : NULL;
        if (vm == NULL)
            continue;
        apply_refuse(a, -EBUSY, ERROR_CONFLICT,
                     "volume '%s' of VM '%s' is being made of volume '%s'; wait for that, or cancel it (drover operation cancel %s)", volume->name,
                     vm->common->name, origin->name, volume->place);
        return true;
    }
    return false;
}

/* ---- begin ---- */

static bool snapshot_is_there(struct apply *a, const struct vm *source, const char *id)
{
    const struct record *record = apply_find(a, object_kind_SNAPSHOT, id, 0);
    if (record == NULL)
        return false;
    if (record->snapshot->state == snapshot_state_AVAILABLE && text_same(record->snapshot->vm, source->id))
        return true;
    apply_refuse_field(a, -EBUSY, ERROR_CONFLICT, "/snapshot", "'%s' is %s; it must be available", record->common->name,
                       snapshot_state_desc.names[record->snapshot->state]);
    return false;
}

static bool is_off(struct apply *a, const struct vm *source)
{
    if (source->unstarted)
        apply_refuse(a, -EINVAL, ERROR_CONFLICT, "VM '%s' was never started and has no disks yet: make another one (drover vm create)",
                     source->name);
    else if (source->wanted != vm_wanted_STOPPED || source->state != vm_state_STOPPED)
        apply_refuse_field(a, -EBUSY, ERROR_CONFLICT, "/snapshot",
                           "is missing, and VM '%s' is %s, so that it is neither off nor does it run: ask again when it is one of them, or name a snapshot",
                           source->name, vm_state_desc.names[source->state]);
    else
        return true;
    return false;
}

static bool is_at_work(struct apply *a, const struct record *source, bool of_snapshot)
{
    for (size_t i = 0; i < source->of_vm.operations.count; i++) {
        const struct operation *operation = source->of_vm.operations.items[i]->operation;
        if (!operation_has_task(operation) || goes_along(operation->kind, of_snapshot))
            continue;
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "a %s of VM '%s' is under way; wait for its end, or cancel it",
                     operation_kind_desc.names[operation->kind], source->common->name);
        return true;
    }
    return false;
}

/* Of a VM that runs: by a task of its own, in the same entry of the log. */
static bool snapshot_may_be_made(struct apply *a, const struct command_vm_clone *command, const struct record *host)
{
    const struct operation *first = &command->snapshot;
    const struct task *task = &command->operation.task;
    if (first->kind != operation_kind_SNAPSHOT_CREATE || first->task.kind != task_kind_SNAPSHOT_CREATE ||
        first->task.snapshot.volume != NULL || !text_same(first->task.snapshot.id, task->vm_clone.snapshot) ||
        !text_same(first->target_id, task->vm_clone.snapshot) || !text_same(first->task.vm, task->vm_clone.vm)) {
        apply_refuse(a, -EINVAL, ERROR_INVALID, "the command does not say how its snapshot is made");
        return false;
    }
    if (host->of_host.tasks.count + 1 >= STATE_HOST_TASKS_MAX) {
        apply_refuse(a, -EBUSY, ERROR_OVERLOAD, "host %s has %zu tasks under way, and there may be %u; two are to begin", host->common->name,
                     host->of_host.tasks.count, STATE_HOST_TASKS_MAX);
        return false;
    }
    return task_may_begin(a, first, 0);
}

/* Are the disks that it is made of there, and at rest? */
static bool source_may(struct apply *a, const struct command_vm_clone *command)
{
    const struct task *task = &command->operation.task;
    const struct record *record = apply_find(a, object_kind_VM, task->vm_clone.vm, command->if_revision);
    const struct record *host = state_get(a->state, object_kind_HOST, task->host);
    if (record == NULL || host == NULL)
        return false;
    const struct vm *source = record->vm;
    if (source->wanted == vm_wanted_DELETED) {
        apply_refuse(a, -ENOENT, ERROR_CONFLICT, "VM '%s' is being deleted", source->name);
        return false;
    }
    if (!text_same(source->host, task->host) || source->epoch != task->vm_clone.epoch || source->recovering) {
        apply_refuse(a, -ESTALE, ERROR_CONFLICT, "VM '%s' was started or moved meanwhile; ask again", source->name);
        return false;
    }
    if (restore_is_live(a, record) || is_at_work(a, record, task->vm_clone.snapshot != NULL))
        return false;
    for (size_t i = 0; i < source->disks.count; i++) {
        const struct vm_disk *disk = (const struct vm_disk *)source->disks.items + i;
        const struct record *pool = disk->volume == NULL ? state_get(a->state, object_kind_POOL, disk->pool) : NULL;
        if (pool != NULL && !move_host_has(a, pool->pool, host))
            return false;
    }
    if (OBJECT_HAS(command_vm_clone, command, snapshot))
        return snapshot_may_be_made(a, command, host);
    return task->vm_clone.snapshot != NULL ? snapshot_is_there(a, source, task->vm_clone.snapshot) : is_off(a, source);
}

static bool is_malformed(const struct command_vm_clone *command, size_t at)
{
    const struct volume *volumes = command->volumes.items, *volume = &volumes[at];
    const struct vm_disk *disk = volume->id != NULL ? volume_disk_find(&command->vm, volume->id) : NULL;
    for (size_t i = 0; i < at; i++)
        if (text_same(volumes[i].name, volume->name) || text_same(volumes[i].id, volume->id))
            return true;
    return disk == NULL || !text_same(disk->name, volume->disk) || !text_same(disk->pool, volume->pool) || !text_same(volume->vm, command->vm.id) ||
           !text_same(volume->vm_name, command->vm.name) || !text_same(volume->place, command->operation.id) || volume->attachments != 1 ||
           disk->attachment != 1 || volume->state != volume_state_ATTACHING;
}

/* Is what it is made of in a directory that @host has, at rest, and the other VM's still; or in the snapshot, where one is named? */
static bool origin_may(struct apply *a, const struct command_vm_clone *command, const struct volume *origin, const struct record *host)
{
    const struct task_vm_clone *given = &command->operation.task.vm_clone;
    bool is_named = given->snapshot != NULL && !OBJECT_HAS(command_vm_clone, command, snapshot);
    const struct record *snapshot = is_named ? apply_find(a, object_kind_SNAPSHOT, given->snapshot, 0) : NULL;
    if (is_named && snapshot == NULL)
        return false;
    const struct pool *pool = state_get(a->state, object_kind_POOL, origin->pool)->pool;
    if (!text_same(origin->vm, given->vm) || (snapshot != NULL && !volume_is_in(snapshot->snapshot, origin->id)))
        apply_refuse(a, -ESTALE, ERROR_CONFLICT, "volume '%s' was detached meanwhile; ask again", origin->name);
    else if (origin->state != volume_state_ATTACHED)
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "volume '%s' of VM '%s' is %s; wait for that", origin->name, given->vm_name,
                     volume_state_desc.names[origin->state]);
    else
        return move_is_of_files(a, "volume", origin->name, pool, NULL) && move_host_has(a, pool, host);
    return false;
}

/* The volumes that it is to have. They become as large as what they are made of is now. */
static bool volumes_may(struct apply *a, struct command_vm_clone *command, const struct record *host)
{
    struct volume *volumes = command->volumes.items;
    for (size_t i = 0; i < command->volumes.count; i++) {
        const struct record *origin = is_malformed(command, i) ? NULL : apply_find(a, object_kind_VOLUME, volumes[i].origin, 0);
        struct vm_disk *disk = volumes[i].id != NULL ? volume_disk_find(&command->vm, volumes[i].id) : NULL;
        if (is_malformed(command, i))
            apply_refuse(a, -EINVAL, ERROR_INVALID, "the command does not say how volume '%s' is made", volumes[i].name != NULL ? volumes[i].name : "");
        if (origin == NULL || !apply_may_insert(a, object_kind_VOLUME, (const struct record_common *)&volumes[i]) ||
            !origin_may(a, command, origin->volume, host))
            return false;
        OBJECT_SET(volume, &volumes[i], size_bytes, origin->volume->size_bytes);
        OBJECT_SET(vm_disk, disk, size_bytes, origin->volume->size_bytes);
    }
    if (state_count(a->state, object_kind_VOLUME) + command->volumes.count <= state_table_max(object_kind_VOLUME))
        return true;
    apply_refuse(a, -ENOSPC, ERROR_NO_SPACE, "there are %zu volumes already, %zu are to be made, and %zu are the most that is kept; remove some",
                 state_count(a->state, object_kind_VOLUME), command->volumes.count, (size_t)state_table_max(object_kind_VOLUME));
    return false;
}

/* Beside what is on its way to the same places already. */
static bool has_room(struct apply *a, const struct vm *vm, const struct record *host)
{
    uint64_t directory_bytes = 0;
    for (size_t i = 0; i < vm->disks.count; i++) {
        const struct vm_disk *disks = vm->disks.items;
        const struct record *pool = state_get(a->state, object_kind_POOL, disks[i].pool);
        uint64_t bytes = 0;
        for (size_t k = 0; pool != NULL && k < vm->disks.count; k++)
            bytes += text_same(disks[k].pool, disks[i].pool) ? disks[k].size_bytes : 0;
        if (pool == NULL)
            directory_bytes += disks[i].size_bytes;
        else if (!move_host_has(a, pool->pool, host) || !move_has_room(a, "VM", vm->name, bytes, pool->pool, host))
            return false;
    }
    return directory_bytes == 0 || move_directory_has_room(a, "VM", vm->name, directory_bytes, host);
}

static bool may_clone(struct apply *a, struct command_vm_clone *command)
{
    const struct operation *operation = &command->operation;
    const struct task *task = &operation->task;
    struct vm *vm = &command->vm;
    char why[APPLY_STEP_BYTES_MAX];
    const struct record *host = state_get(a->state, object_kind_HOST, task->host);
    if (!operation_has_task(operation) || operation->kind != operation_kind_VM_CLONE || task->kind != task_kind_VM_CLONE ||
        !text_same(task->vm, vm->id) || !text_same(vm->host, task->host) || vm->epoch == 0 || vm->wanted != vm_wanted_STOPPED) {
        apply_refuse(a, -EINVAL, ERROR_INVALID, "the command does not say how the VM is made");
        return false;
    }
    if (!task_host_may(a, task->host, "/operation/task/host") || !source_may(a, command) || !apply_vm_may_create(a, vm) ||
        !volumes_may(a, command, host) || !operation_may_begin(a, operation, NULL))
        return false;
    if (state_host_apart(host, vm))
        apply_refuse_field(a, -EBUSY, ERROR_NO_HOST, "/labels", "keep it apart from a VM of host %s, on which it is made", host->common->name);
    else if (!apply_host_fits(host, vm->memory_bytes, vm->vcpus, why, sizeof why))
        apply_refuse(a, -ENOSPC, ERROR_NO_HOST, "%s; it is made on that host, which has the disks", why);
    else
        return has_room(a, vm, host);
    return false;
}

static void waits_for(struct apply *a, struct record *record, const char *what, const char *name)
{
    char text[APPLY_STEP_BYTES_MAX];
    apply_text(text, sizeof text, "waiting for %s %s", what, name);
    state_edit_begin(a->state, record);
    OBJECT_TEXT(operation, record->operation, step, text);
    state_edit_end(a->state, record, a->index);
}

static void snapshot_begin(struct apply *a, const struct command_vm_clone *command)
{
    task_start(a, &command->snapshot);
    struct record *record = map_get(&a->state->tables[object_kind_SNAPSHOT].by_id, command->snapshot.target_id);
    state_edit_begin(a->state, record);
    OBJECT_TEXT(snapshot, record->snapshot, clone, command->operation.task.vm);
    state_edit_end(a->state, record, a->index);
}

static void volumes_insert(struct apply *a, struct command_vm_clone *command)
{
    struct volume *volumes = command->volumes.items;
    char text[APPLY_STEP_BYTES_MAX];
    for (size_t i = 0; i < command->volumes.count; i++) {
        struct volume *volume = &volumes[i];
        const struct record *origin = state_get(a->state, object_kind_VOLUME, volume->origin);
        apply_text(text, sizeof text, "it is being made of volume %s, with its VM", origin->common->name);
        OBJECT_TEXT(volume, volume, created_at, a->request->at);
        OBJECT_TEXT(volume, volume, state_reason, text);
        struct record *record = state_insert(a->state, object_kind_VOLUME, volume, a->index);
        apply_event(a, event_type_CREATED, record, "volume %s is made of volume %s, for VM %s", record->common->name, origin->common->name,
                    record->volume->vm_name);
    }
}

/* What it is made of has grown before there was a snapshot of it. */
static void volumes_follow(struct apply *a, const char *vm_id)
{
    struct record *vm = map_get(&a->state->tables[object_kind_VM].by_id, vm_id);
    for (size_t i = 0; i < vm->vm->disks.count; i++) {
        struct vm_disk *disk = (struct vm_disk *)vm->vm->disks.items + i;
        struct record *volume = disk->volume != NULL ? map_get(&a->state->tables[object_kind_VOLUME].by_id, disk->volume) : NULL;
        const struct record *origin = volume != NULL ? state_get(a->state, object_kind_VOLUME, volume->volume->origin) : NULL;
        if (origin == NULL || origin->volume->size_bytes <= volume->volume->size_bytes)
            continue;
        state_edit_begin(a->state, volume);
        OBJECT_SET(volume, volume->volume, size_bytes, origin->volume->size_bytes);
        state_edit_end(a->state, volume, a->index);
        state_edit_begin(a->state, vm);
        OBJECT_SET(vm_disk, disk, size_bytes, origin->volume->size_bytes);
        state_edit_end(a->state, vm, a->index);
    }
}

/* It is not made, or its VM goes: what there is of them goes, too, and they are nobody's from now on. */
static void volumes_go(struct apply *a, const struct operation *operation, struct record *vm, const char *text)
{
    char why[APPLY_STEP_BYTES_MAX];
    apply_text(why, sizeof why, "%s", text != NULL ? text : "it was not made");
    for (size_t i = vm->vm->disks.count; i > 0; i--) {
        const struct vm_disk *disk = (const struct vm_disk *)vm->vm->disks.items + i - 1;
        struct record *record = disk->volume != NULL ? map_get(&a->state->tables[object_kind_VOLUME].by_id, disk->volume) : NULL;
        if (record == NULL || !text_same(record->volume->place, operation->id))
            continue;
        volume_disk_take_out(a, vm, i - 1);
        state_edit_begin(a->state, record);
        OBJECT_TEXT(volume, record->volume, vm, NULL);
        OBJECT_TEXT(volume, record->volume, vm_name, NULL);
        OBJECT_SET(volume, record->volume, state, volume_state_DELETING);
        OBJECT_TEXT(volume, record->volume, state_reason, why);
        state_edit_end(a->state, record, a->index);
        apply_event(a, event_type_UPDATED, record, "volume %s goes: %s", record->common->name, why);
        volume_tell_hosts(a, record->volume);
    }
}

/* Only its host knows whether they are whole. */
static void volumes_are_unproven(struct apply *a, const struct operation *operation, const struct vm *vm)
{
    const struct vm_disk *disks = vm->disks.items;
    for (size_t i = 0; i < vm->disks.count; i++) {
        struct record *record = disks[i].volume != NULL ? map_get(&a->state->tables[object_kind_VOLUME].by_id, disks[i].volume) : NULL;
        if (record == NULL || !text_same(record->volume->place, operation->id))
            continue;
        state_edit_begin(a->state, record);
        OBJECT_SET(volume, record->volume, unproven, true);
        state_edit_end(a->state, record, a->index);
    }
}

void vm_clone_snapshot_ended(struct apply *a, const struct snapshot *snapshot, enum operation_state state, const char *text)
{
    const struct record *vm = snapshot->clone != NULL ? map_get(&a->state->tables[object_kind_VM].by_id, snapshot->clone) : NULL;
    const struct operation *operation = vm != NULL ? state_vm_made_by(vm) : NULL;
    struct record *record = operation != NULL ? map_get(&a->state->tables[object_kind_OPERATION].by_id, operation->id) : NULL;
    char words[APPLY_TEXT_BYTES_MAX];
    if (record == NULL || !text_same(operation->task.vm_clone.snapshot, snapshot->id))
        return;
    if (state == operation_state_SUCCEEDED) {
        volumes_follow(a, vm->common->id);
        waits_for(a, record, "host", vm->vm->host_name);
        task_orders_changed(a, &operation->task);
        return;
    }
    bool cancelled = operation->cancel_asked;
    apply_text(words, sizeof words, "no snapshot of VM %s was made for it: %s", operation->task.vm_clone.vm_name, text != NULL ? text : "it could not be");
    task_end(a, record, cancelled ? operation_state_CANCELLED : operation_state_FAILED,
             cancelled ? error_kind_info(ERROR_CANCELLED)->code : "task-failed", cancelled ? "cancelled" : words, NULL);
}

void apply_vm_clone(struct apply *a, struct command_vm_clone *command)
{
    struct vm *vm = &command->vm;
    const struct task_vm_clone *given = &command->operation.task.vm_clone;
    char text[APPLY_STEP_BYTES_MAX];
    if (!may_clone(a, command) || a->check_only)
        return;
    const struct record *host = state_get(a->state, object_kind_HOST, vm->host);
    apply_text(text, sizeof text, "its disks are being made of those of VM %s", given->vm_name);
    OBJECT_TEXT(vm, vm, created_at, a->request->at);
    OBJECT_SET(vm, vm, generation, 1);
    OBJECT_SET(vm, vm, boot, 0);
    OBJECT_SET(vm, vm, seen_generation, 0);
    OBJECT_SET(vm, vm, restarts, 0);
    OBJECT_SET(vm, vm, unmade, true);
    OBJECT_SET(vm, vm, unstarted, true);
    OBJECT_SET(vm, vm, state, vm_state_STARTING);
    OBJECT_TEXT(vm, vm, state_reason, text);
    OBJECT_TEXT(vm, vm, host_name, host->common->name);
    struct record *record = state_insert(a->state, object_kind_VM, vm, a->index);
    apply_event(a, event_type_CREATED, record, "VM %s is made of VM %s, on host %s", record->common->name, given->vm_name,
                host->common->name);
    volumes_insert(a, command);
    if (OBJECT_HAS(command_vm_clone, command, snapshot))
        snapshot_begin(a, command);
    task_begin(a, &command->operation);
    if (OBJECT_HAS(command_vm_clone, command, snapshot))
        waits_for(a, map_get(&a->state->tables[object_kind_OPERATION].by_id, command->operation.id), "a snapshot of VM", given->vm_name);
    state_host_orders_changed(a->state, record->vm->host, a->index);
    apply_members_changed(a, record->vm);
}

/* ---- end ---- */

static bool may_begin(struct apply *a, const struct operation *operation UNUSED)
{
    apply_refuse(a, -EINVAL, ERROR_INVALID, "a VM is cloned by a command of its own");
    return false;
}

static void made(struct apply *a, struct record *record)
{
    struct vm *vm = record->vm;
    state_edit_begin(a->state, record);
    apply_vm_is_made(vm);
    vm->unstarted = false;
    vm->head.present &= ~(UINT64_C(1) << (object_field(&vm_desc, "unstarted") - vm_desc.fields));
    if (vm_has_pools(vm))
        OBJECT_SET(vm, vm, disks_made, true);
    OBJECT_SET(vm, vm, state, vm_state_STOPPED);
    OBJECT_SET(vm, vm, seen_generation, vm->generation);
    OBJECT_TEXT(vm, vm, state_reason, NULL);
    state_edit_end(a->state, record, a->index);
    volumes_settle(a, record);
}

static void ended(struct apply *a, const struct operation *operation, enum operation_state state, const char *text,
                  const struct task_seen *seen)
{
    struct record *record = map_get(&a->state->tables[object_kind_VM].by_id, operation->task.vm);
    bool done = state == operation_state_SUCCEEDED, may_be_done = seen == NULL && move_may_be_done(a, operation);
    if (record == NULL)
        return;
    if (may_be_done) /* and have been used since: they stay, as those of any VM */
        volumes_are_unproven(a, operation, record->vm);
    if (record->vm->wanted == vm_wanted_DELETED && !may_be_done)
        volumes_go(a, operation, record, "its VM is deleted");
    if (record->vm->wanted == vm_wanted_DELETED)
        return;
    if (done || may_be_done) { /* its host knows */
        made(a, record);
        if (done)
            apply_event(a, event_type_UPDATED, record, "VM %s is made, and off", record->common->name);
        else
            apply_event(a, event_type_UPDATED, record,
                        "VM %s is kept, for the cluster was recovered while it was made, and it may have run: its host starts it only where its "
                        "disks are whole (%s)", record->common->name, text != NULL ? text : "it was not made");
        return;
    }
    volumes_go(a, operation, record, text);
    state_edit_begin(a->state, record);
    OBJECT_SET(vm, record->vm, wanted, vm_wanted_DELETED);
    OBJECT_SET(vm, record->vm, generation, record->vm->generation + 1);
    state_edit_end(a->state, record, a->index);
    apply_event(a, event_type_UPDATED, record, "VM %s goes: %s", record->common->name, text != NULL ? text : "it was not made");
    state_host_orders_changed(a->state, record->vm->host, a->index);
}

const struct task_kind_ops task_vm_clone = {may_begin, NULL, ended};
