/* Backups of VMs: what it means for them that their tasks begin and end.
 *
 *   backup-create --> CREATING --done--> AVAILABLE <--over-- RESTORING
 *                        |                 |  ^  '--- backup-restore ^
 *                  failed, cancelled       |  '--failed--.
 *                        v                 '----------> DELETING --done--> (none)
 *       (none), or FAILED where a policy wanted it: until its next try
 *
 * backup-attach: what a host found in a store and is not known becomes AVAILABLE, so many at a time (attach_after).
 *
 * A backup outlives its VM and the host that made it: it is in its store, and this is what the cluster knows of it. */
#include "controller/fsm/apply_task.h"

#include <errno.h>
#include <string.h>

static struct record *backup_of(struct apply *a, const struct operation *operation)
{
    const char *id = operation->task.backup.id;
    return id != NULL ? map_get(&a->state->tables[object_kind_BACKUP].by_id, id) : NULL;
}

static const struct record *store_of(struct apply *a, const struct operation *operation)
{
    const char *id = operation->task.backup.store;
    return id != NULL ? map_get(&a->state->tables[object_kind_BACKUP_STORE].by_id, id) : NULL;
}

static void set_state(struct apply *a, struct record *record, enum backup_state state, const char *reason)
{
    char text[APPLY_STEP_BYTES_MAX];
    apply_text(text, sizeof text, "%s", reason != NULL ? reason : "");
    state_edit_begin(a->state, record);
    OBJECT_SET(backup, record->backup, state, state);
    OBJECT_TEXT(backup, record->backup, state_reason, reason != NULL ? text : NULL);
    state_edit_end(a->state, record, a->index);
    apply_event(a, event_type_UPDATED, record, "backup %s of VM %s is %s%s%s", record->common->name,
                record->backup->vm_name, backup_state_desc.names[state], reason != NULL ? ": " : "",
                reason != NULL ? text : "");
}

/* The VM that the task names, where the task's host has its disks; refuses if not. */
static const struct vm *vm_with_disks(struct apply *a, const struct operation *operation)
{
    const struct task *task = &operation->task;
    const struct record *record = apply_find(a, object_kind_VM, task->vm, 0);
    if (record == NULL)
        return NULL;
    const struct vm *vm = record->vm;
    if (vm->host == NULL || strcmp(vm->host, task->host) != 0 || vm->epoch != task->epoch) {
        apply_refuse(a, -ESTALE, ERROR_CONFLICT, "VM '%s' was started or moved meanwhile; ask again", vm->name);
        return NULL;
    }
    /* One at a time: its VMM shows its disks of one moment only. */
    for (size_t i = 0; i < record->of_vm.operations.count; i++) {
        const struct operation *other = record->of_vm.operations.items[i]->operation;
        if (!operation_has_task(other) || other->task.backup.id == NULL)
            continue;
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "VM '%s' is being backed up or restored (%s); wait for that", vm->name,
                     other->target_name);
        return NULL;
    }
    return vm;
}

/* ---- create ---- */

static bool create_may_begin(struct apply *a, const struct operation *operation)
{
    const struct task_backup *given = &operation->task.backup;
    struct record_common common = {.id = given->id, .name = given->name};
    if (store_of(a, operation) == NULL) {
        apply_refuse_field(a, -ENOENT, ERROR_NOT_FOUND, "/store", "there is no such backup store");
        return false;
    }
    return vm_with_disks(a, operation) != NULL && apply_may_insert(a, object_kind_BACKUP, &common);
}

static void drop(struct apply *a, struct record *record, const char *why)
{
    apply_event(a, event_type_DELETED, record, "backup %s of VM %s is gone: %s", record->common->name,
                record->backup->vm_name, why);
    state_remove(a->state, record);
}

/* The policy tries again: what its last try came to says nothing any more. */
static void failed_drop(struct apply *a, const char *vm, const char *policy)
{
    for (size_t i = state_count(a->state, object_kind_BACKUP); policy != NULL && i > 0; i--) {
        struct record *record = a->state->tables[object_kind_BACKUP].order.items[i - 1];
        const struct backup *backup = record->backup;
        if (backup->state == backup_state_FAILED && strcmp(backup->vm, vm) == 0 && backup->policy != NULL &&
            strcmp(backup->policy, policy) == 0)
            drop(a, record, "it is tried again");
    }
}

static void create_begun(struct apply *a, const struct operation *operation)
{
    const struct task_backup *given = &operation->task.backup;
    const struct vm *vm = apply_find(a, object_kind_VM, operation->task.vm, 0)->vm;
    struct backup new = {0};
    OBJECT_TEXT(backup, &new, id, given->id);
    OBJECT_TEXT(backup, &new, name, given->name);
    OBJECT_TEXT(backup, &new, created_at, a->request->at);
    OBJECT_TEXT(backup, &new, vm, vm->id);
    OBJECT_TEXT(backup, &new, vm_name, vm->name);
    OBJECT_TEXT(backup, &new, store, given->store);
    OBJECT_TEXT(backup, &new, store_name, store_of(a, operation)->common->name);
    OBJECT_SET(backup, &new, state, backup_state_CREATING);
    if (OBJECT_HAS(task_backup, given, freeze))
        OBJECT_SET(backup, &new, freeze, given->freeze);
    if (given->parent != NULL)
        OBJECT_TEXT(backup, &new, parent, given->parent);
    if (given->policy != NULL)
        OBJECT_TEXT(backup, &new, policy, given->policy);
    if (given->definition != NULL)
        OBJECT_TEXT(backup, &new, definition, given->definition);
    failed_drop(a, vm->id, given->policy);
    struct backup labels = {.labels = given->labels}; /* borrowed: merge copies */
    if (given->labels.count > 0) {
        object_mark(&backup_desc, &labels, "labels");
        object_merge(&backup_desc, &new, &labels);
    }
    struct record *record = state_insert(a->state, object_kind_BACKUP, &new, a->index);
    apply_event(a, event_type_CREATED, record, "backup %s of VM %s is to be made", record->common->name, vm->name);
}

static void result_take(struct backup *backup, const struct backup_result *result)
{
    OBJECT_SET(backup, backup, consistency, result->consistency);
    OBJECT_SET(backup, backup, pause_us, result->pause_us);
    OBJECT_SET(backup, backup, read_bytes, result->read_bytes);
    OBJECT_SET(backup, backup, stored_bytes, result->stored_bytes);
    OBJECT_SET(backup, backup, duration_ms, result->duration_ms);
    for (size_t i = 0; i < result->disks.count; i++)
        OBJECT_COPY(snapshot_disk, (struct snapshot_disk *)OBJECT_ADD(backup, backup, disks),
                    (const struct snapshot_disk *)result->disks.items + i);
}

static void create_ended(struct apply *a, const struct operation *operation, enum operation_state state,
                         const char *text, const struct task_seen *seen)
{
    struct record *record = backup_of(a, operation);
    if (record == NULL)
        return;
    if (state != operation_state_SUCCEEDED && record->backup->policy != NULL) {
        set_state(a, record, backup_state_FAILED, text != NULL ? text : "it does not say why");
        return;
    }
    if (state != operation_state_SUCCEEDED) {
        drop(a, record, text != NULL ? text : "it was not made");
        return;
    }
    state_edit_begin(a->state, record);
    if (seen != NULL && OBJECT_HAS(task_seen, seen, backup))
        result_take(record->backup, &seen->backup);
    state_edit_end(a->state, record, a->index);
    set_state(a, record, backup_state_AVAILABLE, NULL);
    for (size_t i = 0; seen != NULL && OBJECT_HAS(task_seen, seen, backup) && i < seen->backup.removed.count; i++) {
        struct record *gone = map_get(&a->state->tables[object_kind_BACKUP].by_id, seen->backup.removed.items[i]);
        if (gone != NULL && gone != record && gone->backup->state == backup_state_AVAILABLE &&
            strcmp(gone->backup->vm, record->backup->vm) == 0 && strcmp(gone->backup->store, record->backup->store) == 0)
            drop(a, gone, "the rules of its policy let it go");
    }
}

const struct task_kind_ops task_backup_create = {create_may_begin, create_begun, create_ended};

/* ---- restore ---- */

static bool restore_may_begin(struct apply *a, const struct operation *operation)
{
    const struct record *record = apply_find(a, object_kind_BACKUP, operation->task.backup.id, 0);
    const struct vm *vm = record != NULL ? vm_with_disks(a, operation) : NULL;
    if (vm == NULL)
        return false;
    if (record->backup->state != backup_state_AVAILABLE) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "backup '%s' is %s", record->common->name,
                     backup_state_desc.names[record->backup->state]);
        return false;
    }
    if (vm->wanted != vm_wanted_STOPPED || vm->state != vm_state_STOPPED) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "VM '%s' is %s: stop it first (drover vm stop %s)", vm->name,
                     vm_state_desc.names[vm->state], vm->name);
        return false;
    }
    for (size_t i = 0; i < state_count(a->state, object_kind_SNAPSHOT); i++) {
        const struct snapshot *snapshot = state_at(a->state, object_kind_SNAPSHOT, i)->snapshot;
        if (strcmp(snapshot->vm, vm->id) != 0)
            continue;
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "VM '%s' has snapshots, which would be lost; delete them first (%s)",
                     vm->name, snapshot->name);
        return false;
    }
    return true;
}

static void restore_begun(struct apply *a, const struct operation *operation)
{
    set_state(a, backup_of(a, operation), backup_state_RESTORING, NULL);
}

static void restore_ended(struct apply *a, const struct operation *operation, enum operation_state state,
                          const char *text, const struct task_seen *seen UNUSED)
{
    struct record *record = backup_of(a, operation);
    if (record != NULL)
        set_state(a, record, backup_state_AVAILABLE, state == operation_state_SUCCEEDED ? NULL : text);
}

const struct task_kind_ops task_backup_restore = {restore_may_begin, restore_begun, restore_ended};

/* ---- delete ---- */

static bool delete_may_begin(struct apply *a, const struct operation *operation)
{
    const struct record *record = apply_find(a, object_kind_BACKUP, operation->task.backup.id, 0);
    if (record == NULL)
        return false;
    if (record->backup->state != backup_state_AVAILABLE && record->backup->state != backup_state_FAILED) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "backup '%s' is %s; wait for that, or cancel it", record->common->name,
                     backup_state_desc.names[record->backup->state]);
        return false;
    }
    return true;
}

static void delete_begun(struct apply *a, const struct operation *operation)
{
    set_state(a, backup_of(a, operation), backup_state_DELETING, NULL);
}

static void delete_ended(struct apply *a, const struct operation *operation, enum operation_state state,
                         const char *text, const struct task_seen *seen UNUSED)
{
    struct record *record = backup_of(a, operation);
    if (record != NULL && state == operation_state_SUCCEEDED)
        drop(a, record, "deleted");
    else if (record != NULL)
        set_state(a, record, backup_state_AVAILABLE, text);
}

const struct task_kind_ops task_backup_delete = {delete_may_begin, delete_begun, delete_ended};

/* ---- attach ---- */

enum { FOUND_NAME_BYTES = 64, FOUND_NAME_TRIES_MAX = 100 };

static bool attach_may_begin(struct apply *a, const struct operation *operation)
{
    const struct record *store = store_of(a, operation);
    if (store == NULL)
        apply_refuse(a, -ENOENT, ERROR_NOT_FOUND, "there is no such backup store");
    for (size_t i = 0; store != NULL && i < state_count(a->state, object_kind_OPERATION); i++) {
        const struct operation *other = state_at(a->state, object_kind_OPERATION, i)->operation;
        if (other->kind != operation_kind_BACKUP_ATTACH || other->state != operation_state_RUNNING ||
            strcmp(other->target_id, store->common->id) != 0)
            continue;
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "store '%s' is being attached already; wait for that, or cancel it",
                     store->common->name);
        return false;
    }
    return store != NULL;
}

/* <vm>-<date>-<time> as for those that are made here, with a number where there is such a one. */
static bool found_name(struct apply *a, const struct backup_found *found, char name[FOUND_NAME_BYTES])
{
    const char *t = found->created_at;
    for (unsigned i = 1; i <= FOUND_NAME_TRIES_MAX; i++) {
        char number[8] = "";
        if (i > 1)
            apply_text(number, sizeof number, "-%u", i);
        apply_text(name, FOUND_NAME_BYTES, "%.40s-%.4s%.2s%.2s-%.2s%.2s%.2s%s", found->vm_name, t, t + 5, t + 8, t + 11, t + 14,
                   t + 17, number);
        if (state_get(a->state, object_kind_BACKUP, name) == NULL)
            return true;
    }
    return false;
}

/* One that was made by hand may be of no VM: then it is as if it were of one that is gone. */
static void found_take(struct apply *a, const struct record *store, const struct backup_found *found)
{
    char name[FOUND_NAME_BYTES];
    struct backup new = {0};
    if (state_count(a->state, object_kind_BACKUP) >= state_table_max(object_kind_BACKUP) || !found_name(a, found, name))
        return;
    OBJECT_TEXT(backup, &new, id, found->id);
    OBJECT_TEXT(backup, &new, name, name);
    OBJECT_TEXT(backup, &new, created_at, found->created_at);
    OBJECT_TEXT(backup, &new, vm, found->vm != NULL ? found->vm : found->id);
    OBJECT_TEXT(backup, &new, vm_name, found->vm_name);
    OBJECT_TEXT(backup, &new, store, store->common->id);
    OBJECT_TEXT(backup, &new, store_name, store->common->name);
    OBJECT_SET(backup, &new, state, backup_state_AVAILABLE);
    if (OBJECT_HAS(backup_found, found, consistency))
        OBJECT_SET(backup, &new, consistency, found->consistency);
    if (found->parent != NULL)
        OBJECT_TEXT(backup, &new, parent, found->parent);
    if (found->definition != NULL)
        OBJECT_TEXT(backup, &new, definition, found->definition);
    OBJECT_SET(backup, &new, stored_bytes, found->stored_bytes);
    OBJECT_SET(backup, &new, duration_ms, found->duration_ms);
    for (size_t i = 0; i < found->disks.count; i++)
        OBJECT_COPY(snapshot_disk, (struct snapshot_disk *)OBJECT_ADD(backup, &new, disks),
                    (const struct snapshot_disk *)found->disks.items + i);
    struct record *record = state_insert(a->state, object_kind_BACKUP, &new, a->index);
    apply_event(a, event_type_CREATED, record, "backup %s of VM %s was found in store %s", name, found->vm_name,
                store->common->name);
}

static void attach_ended(struct apply *a, const struct operation *operation, enum operation_state state,
                         const char *text UNUSED, const struct task_seen *seen)
{
    const char *id = operation->task.backup.store;
    struct record *store = id != NULL ? map_get(&a->state->tables[object_kind_BACKUP_STORE].by_id, id) : NULL;
    if (store == NULL || state != operation_state_SUCCEEDED || seen == NULL || !OBJECT_HAS(task_seen, seen, backup))
        return;
    const struct backup_found *found = seen->backup.found.items;
    const char *last = NULL;
    for (size_t i = 0; i < seen->backup.found.count; i++) {
        last = found[i].id;
        if (map_get(&a->state->tables[object_kind_BACKUP].by_id, found[i].id) == NULL)
            found_take(a, store, &found[i]);
    }
    state_edit_begin(a->state, store);
    OBJECT_TEXT(backup_store, store->backup_store, attach_after, seen->backup.more ? last : NULL);
    state_edit_end(a->state, store, a->index);
}

const struct task_kind_ops task_backup_attach = {attach_may_begin, NULL, attach_ended};

/* ---- removal ---- */

bool backups_use(struct apply *a, const struct record *record)
{
    for (size_t i = 0; record->kind == object_kind_BACKUP_STORE && i < state_count(a->state, object_kind_BACKUP); i++) {
        const struct backup *backup = state_at(a->state, object_kind_BACKUP, i)->backup;
        if (strcmp(backup->store, record->common->id) != 0)
            continue;
        apply_refuse(a, -EBUSY, ERROR_IN_USE, "store '%s' has backups, such as '%s'; delete these first",
                     record->common->name, backup->name);
        return true;
    }
    return false;
}
