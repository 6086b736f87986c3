/* Backups of VMs: what it means for them that their tasks begin and end.
 *
 *   backup-create --> CREATING --done--> AVAILABLE <--over-- RESTORING
 *                        |                 |  ^  '--- backup-restore ^
 *                  failed, cancelled       |  '--failed--.
 *                        v                 '----------> DELETING --done--> (none)
 *       (none), or FAILED where a policy wanted it: until its next try
 *
 * backup-attach: what a host found in a store and is not known becomes AVAILABLE, so many at a time (attach_after).
 * backup-prune: those that were chosen are DELETING from its beginning on, so that nothing else begins with them; what its host
 * did not remove becomes AVAILABLE again. What was chosen is chosen anew by nobody: if one of them is at work by now, it is refused.
 * backup-verify: changes no state, but keeps backups from being removed; what it found is noted with them (damage), and what it
 * did not find although it was there when it began is damaged as well.
 *
 * Which repository a store is, is noted when the first task has shown it (backup_store.repository), and goes with every order: a
 * host at which the share is not mounted sees another one, or none, and touches nothing; then nothing changes here either.
 *
 * A backup outlives its VM and the host that made it: it is in its store, and this is what the cluster knows of it. */
#include "controller/fsm/volume_disks.h"
#include "controller/fsm/apply_task.h"

#include <errno.h>
#include <string.h>

#include "controller/fsm/backup_rules.h"

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

static const struct backup_result *result_of(const struct task_seen *seen)
{
    return seen != NULL && OBJECT_HAS(task_seen, seen, backup) ? &seen->backup : NULL;
}

/* The host did nothing: it did not even get into the repository. */
static bool is_untouched(const struct task_seen *seen)
{
    const struct backup_result *result = result_of(seen);
    return result != NULL && result->untouched && result->repository == NULL;
}

static struct record *backup_in(struct apply *a, const char *id, const char *store)
{
    struct record *record = map_get(&a->state->tables[object_kind_BACKUP].by_id, id);
    return record != NULL && strcmp(record->backup->store, store) == 0 ? record : NULL;
}

static size_t count_in(const struct apply *a, const struct record *store)
{
    size_t count = 0;
    for (size_t i = 0; i < state_count(a->state, object_kind_BACKUP); i++)
        count += strcmp(state_at(a->state, object_kind_BACKUP, i)->backup->store, store->common->id) == 0;
    return count;
}

/* @shown: a task has found in it what it must have, or there is nothing that it must have. Where it is known already, it stays. */
static void repository_learn(struct apply *a, const struct operation *operation, const struct backup_result *result, bool shown)
{
    const char *id = operation->task.backup.store;
    struct record *store = id != NULL ? map_get(&a->state->tables[object_kind_BACKUP_STORE].by_id, id) : NULL;
    if (!shown || store == NULL || result == NULL || result->repository == NULL || store->backup_store->repository != NULL)
        return;
    state_edit_begin(a->state, store);
    OBJECT_TEXT(backup_store, store->backup_store, repository, result->repository);
    state_edit_end(a->state, store, a->index);
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
    for (size_t i = 0; i < vm->disks.count; i++) {
        if (!((const struct vm_disk *)vm->disks.items + i)->leaving)
            continue;
        /* it may be another VM's before the task ends */
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "a volume is being detached from VM '%s'; wait for that", vm->name);
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

/* Two hosts began before it was known: then one of them had another directory there. */
static bool is_elsewhere(struct apply *a, const struct operation *operation, const struct backup_result *result)
{
    const struct record *store = store_of(a, operation);
    return store != NULL && store->backup_store->repository != NULL && result != NULL && result->repository != NULL &&
           strcmp(store->backup_store->repository, result->repository) != 0;
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
    const struct backup_result *result = result_of(seen);
    const struct record *store = store_of(a, operation);
    repository_learn(a, operation, result, store != NULL && count_in(a, store) == 1); /* there is nothing but this one */
    state_edit_begin(a->state, record);
    if (result != NULL)
        result_take(record->backup, result);
    if (is_elsewhere(a, operation, result))
        OBJECT_TEXT(backup, record->backup, damage, "its host has it in another repository at that path: was the share mounted there?");
    if (record->backup->policy != NULL)
        OBJECT_SET(backup, record->backup, rules_due, true); /* the leader does the rest (backup_schedule.h) */
    state_edit_end(a->state, record, a->index);
    set_state(a, record, backup_state_AVAILABLE, NULL);
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
    if (volume_untaken(a->state, vm) != NULL) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "VM '%s' has not run yet since its host takes volume '%s' from its replica: start it first", vm->name,
                     volume_untaken(a->state, vm)->name);
        return false;
    }
    for (size_t i = 0; i < state_count(a->state, object_kind_SNAPSHOT); i++) {
        const struct snapshot *snapshot = state_at(a->state, object_kind_SNAPSHOT, i)->snapshot;
        if (!text_same(snapshot->vm, vm->id) && (snapshot->volume == NULL || volume_disk_find(vm, snapshot->volume) == NULL))
            continue;
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "VM '%s', or a volume of it, has snapshots, which would be lost; delete them first (%s)",
                     vm->name, snapshot->name);
        return false;
    }
    return true;
}

bool restore_is_live(struct apply *a, const struct record *vm)
{
    for (size_t i = 0; i < vm->of_vm.operations.count; i++) {
        const struct operation *operation = vm->of_vm.operations.items[i]->operation;
        if (!operation_has_task(operation) || !operation->task.backup.live)
            continue;
        apply_refuse(a, -EBUSY, ERROR_CONFLICT,
                     "the disks of VM '%s' are not whole yet: they come from backup '%s' while it runs; wait for the end of that (operation %s)",
                     vm->common->name, operation->target_name, operation->id);
        return true;
    }
    return false;
}

bool restore_is_under(const struct operation *operation)
{
    return operation_has_task(operation) && operation->state == operation_state_RUNNING && operation->task.backup.live &&
           operation->task.backup.placed;
}

bool restore_is_under_vm(const struct record *vm)
{
    bool found = false;
    for (size_t i = 0; !found && i < vm->of_vm.operations.count; i++)
        found = restore_is_under(vm->of_vm.operations.items[i]->operation);
    return found;
}

void restore_placed(struct apply *a, struct record *record)
{
    struct operation *operation = record->operation;
    struct record *vm = map_get(&a->state->tables[object_kind_VM].by_id, operation->task.vm);
    if (operation->task.backup.placed)
        return;
    state_edit_begin(a->state, record);
    OBJECT_SET(task_backup, &operation->task.backup, placed, true);
    state_edit_end(a->state, record, a->index);
    if (vm != NULL && !operation->cancel_asked)
        apply_vm_start(a, vm);
}

static void restore_begun(struct apply *a, const struct operation *operation)
{
    set_state(a, backup_of(a, operation), backup_state_RESTORING, NULL);
}

static void restore_ended(struct apply *a, const struct operation *operation, enum operation_state state,
                          const char *text, const struct task_seen *seen)
{
    struct record *record = backup_of(a, operation);
    const struct record *store = store_of(a, operation);
    repository_learn(a, operation, result_of(seen), state == operation_state_SUCCEEDED && store != NULL &&
                     count_in(a, store) == 1); /* the others may be in another one */
    if (record != NULL)
        set_state(a, record, backup_state_AVAILABLE, state == operation_state_SUCCEEDED ? NULL : text);
}

const struct task_kind_ops task_backup_restore = {restore_may_begin, restore_begun, restore_ended};

/* ---- delete ---- */

/* An attach would make it known again that has read of it before it goes. Refuses if so. */
static bool is_attached(struct apply *a, const struct record *store)
{
    const struct operation *other = backup_rules_busy(a->state, operation_kind_BACKUP_ATTACH, store->common->id, NULL);
    if (other == NULL)
        return false;
    apply_refuse(a, -EBUSY, ERROR_CONFLICT, "store '%s' is being attached; wait for that, or cancel it (operation %s)",
                 store->common->name, other->id);
    return true;
}

/* It, or all of its store; or it is being booted. Refuses if so. */
static bool is_verified(struct apply *a, const struct record *record)
{
    const struct backup *backup = record->backup;
    const struct operation *other = backup_rules_busy(a->state, operation_kind_BACKUP_VERIFY, backup->store, backup->id);
    if (other == NULL)
        other = backup_rules_busy(a->state, operation_kind_BACKUP_BOOT, backup->store, backup->id);
    if (other == NULL)
        return false;
    apply_refuse(a, -EBUSY, ERROR_CONFLICT, "backup '%s' is being %s; wait for that, or cancel it (operation %s)",
                 record->common->name, other->kind == operation_kind_BACKUP_BOOT ? "booted" : "verified", other->id);
    return true;
}

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
    const struct record *store = map_get(&a->state->tables[object_kind_BACKUP_STORE].by_id, record->backup->store);
    return !is_verified(a, record) && (store == NULL || !is_attached(a, store));
}

static void delete_begun(struct apply *a, const struct operation *operation)
{
    set_state(a, backup_of(a, operation), backup_state_DELETING, NULL);
}

/* Its removal did not end well: it may be gone from the store all the same. Until a verification has seen it whole it counts
 * for no rule, so that no other one goes for its sake. */
static void not_removed(struct apply *a, struct record *record, const char *why)
{
    set_state(a, record, backup_state_AVAILABLE, why);
    state_edit_begin(a->state, record);
    OBJECT_TEXT(backup, record->backup, damage, "its removal did not end: perhaps it is gone from the store; verify it");
    state_edit_end(a->state, record, a->index);
}

static void delete_ended(struct apply *a, const struct operation *operation, enum operation_state state,
                         const char *text, const struct task_seen *seen)
{
    struct record *record = backup_of(a, operation);
    if (record != NULL && state == operation_state_SUCCEEDED)
        drop(a, record, "deleted");
    else if (record != NULL && is_untouched(seen))
        set_state(a, record, backup_state_AVAILABLE, text);
    else if (record != NULL)
        not_removed(a, record, text);
}

const struct task_kind_ops task_backup_delete = {delete_may_begin, delete_begun, delete_ended};

/* ---- attach ---- */

enum { FOUND_NAME_BYTES = 64, FOUND_NAME_TRIES_MAX = 100 };

static bool attach_may_begin(struct apply *a, const struct operation *operation)
{
    static const enum operation_kind removals[] = {operation_kind_BACKUP_PRUNE, operation_kind_BACKUP_DELETE};
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
    for (size_t i = 0; store != NULL && i < ARRAY_SIZE(removals); i++) { /* it would bring back what goes */
        const struct operation *other = backup_rules_busy(a->state, removals[i], store->common->id, NULL);
        if (other == NULL)
            continue;
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "backups are being removed from store '%s' (%s); wait for that, or cancel it (operation %s)",
                     store->common->name, operation_kind_desc.names[other->kind], other->id);
        return false;
    }
    return store != NULL;
}

/* <vm>-<date>-<time> as for those that are made here, with a number where there is such a one. */
static bool found_name(struct apply *a, const struct backup_found *found, char name[FOUND_NAME_BYTES])
{
    const char *t = found->created_at != NULL ? found->created_at : a->request->at;
    for (unsigned i = 1; i <= FOUND_NAME_TRIES_MAX; i++) {
        char number[8] = "";
        if (i > 1)
            apply_text(number, sizeof number, "-%u", i);
        if (found->damage != NULL)
            apply_text(name, FOUND_NAME_BYTES, "damaged-%.8s%s", found->id, number);
        else
            apply_text(name, FOUND_NAME_BYTES, "%.40s-%.4s%.2s%.2s-%.2s%.2s%.2s%s", found->vm_name, t, t + 5, t + 8, t + 11,
                       t + 14, t + 17, number);
        if (state_get(a->state, object_kind_BACKUP, name) == NULL)
            return true;
    }
    return false;
}

/* One that was made by hand may be of no VM: then it is as if it were of one that is gone. So may one that cannot be read. */
static void found_take(struct apply *a, const struct record *store, const struct backup_found *found)
{
    char name[FOUND_NAME_BYTES];
    struct backup new = {0};
    if (state_count(a->state, object_kind_BACKUP) >= state_table_max(object_kind_BACKUP) || !found_name(a, found, name))
        return;
    OBJECT_TEXT(backup, &new, id, found->id);
    OBJECT_TEXT(backup, &new, name, name);
    OBJECT_TEXT(backup, &new, created_at, found->created_at != NULL ? found->created_at : a->request->at);
    OBJECT_TEXT(backup, &new, vm, found->vm != NULL ? found->vm : found->id);
    OBJECT_TEXT(backup, &new, vm_name, found->vm_name != NULL ? found->vm_name : "unknown");
    OBJECT_TEXT(backup, &new, store, store->common->id);
    OBJECT_TEXT(backup, &new, store_name, store->common->name);
    OBJECT_SET(backup, &new, state, backup_state_AVAILABLE);
    if (found->damage != NULL)
        OBJECT_TEXT(backup, &new, damage, found->damage);
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
    apply_event(a, event_type_CREATED, record, "backup %s of VM %s was found in store %s%s%s", name, record->backup->vm_name,
                store->common->name, found->damage != NULL ? ", damaged: " : "", found->damage != NULL ? found->damage : "");
}

static void attach_ended(struct apply *a, const struct operation *operation, enum operation_state state,
                         const char *text UNUSED, const struct task_seen *seen)
{
    const char *id = operation->task.backup.store;
    struct record *store = id != NULL ? map_get(&a->state->tables[object_kind_BACKUP_STORE].by_id, id) : NULL;
    if (store == NULL || state != operation_state_SUCCEEDED || seen == NULL || !OBJECT_HAS(task_seen, seen, backup))
        return;
    const struct backup_result *result = &seen->backup;
    const struct backup_found *found = result->found.items;
    size_t known_before = count_in(a, store), known = 0;
    char last[STATE_ID_BYTES] = "";
    for (size_t i = 0; i < result->found.count; i++) {
        if (found[i].id == NULL || (found[i].damage == NULL && (found[i].created_at == NULL || found[i].vm_name == NULL)))
            continue; /* outside bytes */
        apply_text(last, sizeof last, "%s", found[i].id);
        known += backup_in(a, found[i].id, id) != NULL;
        if (map_get(&a->state->tables[object_kind_BACKUP].by_id, found[i].id) == NULL)
            found_take(a, store, &found[i]);
    }
    if (result->after != NULL) /* what was looked at and is not in the list */
        apply_text(last, sizeof last, "%s", result->after);
    bool goes_on = result->more && last[0] != '\0' &&
                   (operation->task.backup.after == NULL || strcmp(last, operation->task.backup.after) > 0);
    repository_learn(a, operation, result, known_before == 0 || known > known_before / 2); /* most of them */
    state_edit_begin(a->state, store);
    OBJECT_TEXT(backup_store, store->backup_store, attach_after, goes_on ? last : NULL);
    state_edit_end(a->state, store, a->index);
}

const struct task_kind_ops task_backup_attach = {attach_may_begin, NULL, attach_ended};

/* ---- verify ---- */

static bool verify_may_begin(struct apply *a, const struct operation *operation)
{
    const struct task_backup *given = &operation->task.backup;
    const struct record *store = store_of(a, operation), *record = NULL;
    if (store == NULL) {
        apply_refuse(a, -ENOENT, ERROR_NOT_FOUND, "there is no such backup store");
        return false;
    }
    if (given->id != NULL && (record = apply_find(a, object_kind_BACKUP, given->id, 0)) == NULL)
        return false;
    if (record != NULL && record->backup->state != backup_state_AVAILABLE && record->backup->state != backup_state_RESTORING) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "backup '%s' is %s: there is nothing whole to verify", record->common->name,
                     backup_state_desc.names[record->backup->state]);
        return false;
    }
    const struct operation *other = backup_rules_busy(a->state, operation_kind_BACKUP_VERIFY, store->common->id,
                                                      given->id != NULL ? given->id : "");
    if (other != NULL) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "%s is being verified already; wait for that, or cancel it (operation %s)",
                     operation->target_name, other->id);
        return false;
    }
    if (given->id == NULL && backup_rules_busy(a->state, operation_kind_BACKUP_PRUNE, store->common->id, NULL) != NULL) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "store '%s' is being pruned; wait for that", store->common->name);
        return false;
    }
    return true;
}

static void verify_begun(struct apply *a, const struct operation *operation)
{
    struct record *store = map_get(&a->state->tables[object_kind_BACKUP_STORE].by_id, operation->task.backup.store);
    if (operation->task.backup.id != NULL)
        return;
    state_edit_begin(a->state, store);
    OBJECT_TEXT(backup_store, store->backup_store, verify_begun_at, a->request->at);
    OBJECT_SET(backup_store, store->backup_store, verify_index, a->index);
    state_edit_end(a->state, store, a->index);
}

/* @damage NULL: it is whole. */
static void judged(struct apply *a, struct record *record, const char *damage)
{
    struct backup *backup = record->backup;
    char text[APPLY_STEP_BYTES_MAX];
    bool was = backup->damage != NULL;
    apply_text(text, sizeof text, "%s", damage != NULL ? damage : "");
    state_edit_begin(a->state, record);
    OBJECT_TEXT(backup, backup, verified_at, a->request->at);
    OBJECT_TEXT(backup, backup, damage, damage != NULL ? text : NULL);
    state_edit_end(a->state, record, a->index);
    if (was || damage != NULL)
        apply_event(a, event_type_UPDATED, record, "backup %s of VM %s is %s%s", record->common->name, backup->vm_name,
                    damage != NULL ? "damaged: " : "whole again", text);
}

/* What the whole store was looked for and did not have: what has not changed since the beginning was there to be found. @write_off:
 * note that with it. The number. */
static size_t missing_judge(struct apply *a, const struct record *store, bool write_off)
{
    size_t count = 0;
    for (size_t i = 0; i < state_count(a->state, object_kind_BACKUP); i++) {
        struct record *record = a->state->tables[object_kind_BACKUP].order.items[i];
        const struct backup *backup = record->backup;
        bool whole = backup->state == backup_state_AVAILABLE || backup->state == backup_state_RESTORING;
        if (!whole || strcmp(backup->store, store->common->id) != 0 || backup->revision >= store->backup_store->verify_index)
            continue;
        count++;
        if (write_off)
            judged(a, record, "it is not in the store any more");
    }
    return count;
}

static void verify_ended(struct apply *a, const struct operation *operation, enum operation_state state, const char *text,
                         const struct task_seen *seen)
{
    const char *id = operation->task.backup.store;
    struct record *store = map_get(&a->state->tables[object_kind_BACKUP_STORE].by_id, id), *record;
    const struct backup_result *result = result_of(seen);
    char damage[APPLY_STEP_BYTES_MAX];
    size_t known = 0, lost = 0;
    if (store == NULL || result == NULL || !result->complete)
        return; /* it was not all looked at: nothing is known */
    const struct backup_hurt *hurt = result->hurt.items;
    for (size_t i = 0; i < result->verified.count; i++)
        if ((record = backup_in(a, result->verified.items[i], id)) != NULL) {
            judged(a, record, NULL);
            known++;
        }
    for (size_t i = 0; i < result->hurt.count; i++)
        if ((record = backup_in(a, hurt[i].id, id)) != NULL) {
            judged(a, record, hurt[i].text != NULL ? hurt[i].text : "it does not say what");
            known += operation->task.backup.id == NULL; /* of a single one that may be that it is not there */
        }
    size_t others = count_in(a, store) - MIN(known, count_in(a, store)), missing = missing_judge(a, store, false);
    bool named = store->backup_store->repository != NULL; /* then the host has looked whether it is that one */
    bool shown = operation->task.backup.id != NULL ? known > 0 && others == 0 : known > missing;
    repository_learn(a, operation, result, shown || count_in(a, store) == 0);
    if (operation->task.backup.id != NULL)
        return;
    shown = named ? known > 0 : shown; /* few of them, or none: that is hardly the store that had them */
    if (!result->cut && result->verified.count < object_field(&backup_result_desc, "verified")->max &&
        result->hurt.count < object_field(&backup_result_desc, "hurt")->max)
        lost = missing_judge(a, store, shown);
    apply_text(damage, sizeof damage, "%s", text != NULL ? text : "it does not say what");
    if (!shown && lost > 0) {
        if (known == 0)
            apply_text(damage, sizeof damage, "none of the %zu backups that are known is in it: is it the store that had them?", lost);
        else
            apply_text(damage, sizeof damage, "only %zu of the %zu backups that are known are in it: is it the store that had "
                       "them? If so, delete those that it lacks", known, known + lost);
        state = operation_state_FAILED;
    }
    state_edit_begin(a->state, store);
    OBJECT_TEXT(backup_store, store->backup_store, verified_at, a->request->at);
    OBJECT_TEXT(backup_store, store->backup_store, damage, state == operation_state_SUCCEEDED ? NULL : damage);
    state_edit_end(a->state, store, a->index);
}

const struct task_kind_ops task_backup_verify = {verify_may_begin, verify_begun, verify_ended};

/* ---- prune ---- */

static bool may_go(struct apply *a, const struct record *store, const char *id)
{
    const struct record *record = apply_find(a, object_kind_BACKUP, id, 0);
    if (record == NULL)
        return false;
    if (record->backup->state == backup_state_AVAILABLE && strcmp(record->backup->store, store->common->id) == 0)
        return !is_verified(a, record);
    apply_refuse(a, -EBUSY, ERROR_CONFLICT, "backup '%s' is %s meanwhile; ask again", record->common->name,
                 backup_state_desc.names[record->backup->state]);
    return false;
}

static bool prune_may_begin(struct apply *a, const struct operation *operation)
{
    const struct string_list *gone = &operation->task.backup.gone;
    const struct record *store = store_of(a, operation);
    if (store == NULL) {
        apply_refuse(a, -ENOENT, ERROR_NOT_FOUND, "there is no such backup store");
        return false;
    }
    const struct operation *verify = backup_rules_busy(a->state, operation_kind_BACKUP_VERIFY, store->common->id, "");
    if (verify != NULL) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "store '%s' is being verified; wait for that, or cancel it (operation %s)",
                     store->common->name, verify->id);
        return false;
    }
    const struct operation *other = backup_rules_busy(a->state, operation_kind_BACKUP_PRUNE, store->common->id, NULL);
    if (other != NULL) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "store '%s' is being pruned already; wait for that, or cancel it (operation %s)",
                     store->common->name, other->id);
        return false;
    }
    if (is_attached(a, store))
        return false;
    for (size_t i = 0; i < gone->count; i++)
        if (!may_go(a, store, gone->items[i]))
            return false;
    return true;
}

/* Rules have been applied to the VM's backups. */
static void rules_done(struct apply *a, const char *vm, const char *store)
{
    for (size_t i = 0; i < state_count(a->state, object_kind_BACKUP); i++) {
        struct record *record = a->state->tables[object_kind_BACKUP].order.items[i];
        if (!record->backup->rules_due || strcmp(record->backup->vm, vm) != 0 || strcmp(record->backup->store, store) != 0)
            continue;
        state_edit_begin(a->state, record);
        record->backup->rules_due = false;
        record->backup->head.present &= ~(UINT64_C(1) << (object_field(&backup_desc, "rules_due") - backup_desc.fields));
        state_edit_end(a->state, record, a->index);
    }
}

static void prune_begun(struct apply *a, const struct operation *operation)
{
    const struct task_backup *given = &operation->task.backup;
    const char *last = ""; /* they come by VM */
    for (size_t i = 0; i < given->gone.count; i++) {
        struct record *record = backup_in(a, given->gone.items[i], given->store);
        if (record == NULL || record->backup->state != backup_state_AVAILABLE) /* named twice */
            continue;
        if (strcmp(record->backup->vm, last) != 0)
            rules_done(a, record->backup->vm, given->store);
        last = record->backup->vm;
        set_state(a, record, backup_state_DELETING, NULL);
    }
}

static void prune_ended(struct apply *a, const struct operation *operation, enum operation_state state, const char *text,
                        const struct task_seen *seen)
{
    const struct task_backup *given = &operation->task.backup;
    const struct backup_result *result = result_of(seen);
    struct record *record;
    for (size_t i = 0; result != NULL && i < result->removed.count; i++)
        if ((record = backup_in(a, result->removed.items[i], given->store)) != NULL &&
            record->backup->state == backup_state_DELETING)
            drop(a, record, "the rules let it go");
    for (size_t i = 0; i < given->gone.count; i++)
        if ((record = backup_in(a, given->gone.items[i], given->store)) != NULL &&
            record->backup->state == backup_state_DELETING) {
            if (state == operation_state_SUCCEEDED)
                set_state(a, record, backup_state_AVAILABLE, "its host did not remove it");
            else if (is_untouched(seen))
                set_state(a, record, backup_state_AVAILABLE, text);
            else
                not_removed(a, record, text);
        }
}

const struct task_kind_ops task_backup_prune = {prune_may_begin, prune_begun, prune_ended};

/* ---- removal ---- */

static bool works_on(const struct operation *operation, const struct record *store)
{
    return operation->state == operation_state_RUNNING && operation->task.backup.store != NULL &&
           strcmp(operation->task.backup.store, store->common->id) == 0;
}

void backups_store_changed(struct apply *a, const struct record *store)
{
    for (size_t i = 0; i < state_count(a->state, object_kind_OPERATION); i++) {
        const struct operation *operation = state_at(a->state, object_kind_OPERATION, i)->operation;
        if (works_on(operation, store))
            task_orders_changed(a, &operation->task);
    }
}

/* A store on which hosts are at work. Refuses. */
static bool store_at_work(struct apply *a, const struct record *store)
{
    for (size_t i = 0; i < state_count(a->state, object_kind_OPERATION); i++) {
        const struct operation *other = state_at(a->state, object_kind_OPERATION, i)->operation;
        if (!works_on(other, store))
            continue;
        apply_refuse(a, -EBUSY, ERROR_IN_USE, "store '%s' is at work (%s of %s); wait for that, or cancel it (operation %s)",
                     store->common->name, operation_kind_desc.names[other->kind], other->target_name, other->id);
        return true;
    }
    return false;
}

bool backups_use(struct apply *a, const struct record *record, bool with_backups)
{
    if (record->kind != object_kind_BACKUP_STORE)
        return false;
    for (size_t i = 0; i < state_count(a->state, object_kind_BACKUP_POLICY); i++) {
        const struct backup_policy *policy = state_at(a->state, object_kind_BACKUP_POLICY, i)->backup_policy;
        if (state_get(a->state, object_kind_BACKUP_STORE, policy->store) != record)
            continue;
        apply_refuse(a, -EBUSY, ERROR_IN_USE, "policy '%s' keeps its backups in store '%s'; give it another one, or remove it",
                     policy->name, record->common->name);
        return true;
    }
    for (size_t i = 0; !with_backups && i < state_count(a->state, object_kind_BACKUP); i++) {
        const struct backup *backup = state_at(a->state, object_kind_BACKUP, i)->backup;
        if (strcmp(backup->store, record->common->id) != 0)
            continue;
        apply_refuse(a, -EBUSY, ERROR_IN_USE,
                     "store '%s' has backups, such as '%s'; delete these first, or have them forgotten with the store, in which "
                     "they stay (?force=true, drover backup-store delete --force)",
                     record->common->name, backup->name);
        return true;
    }
    return store_at_work(a, record);
}

void backups_forget(struct apply *a, const struct record *store)
{
    for (size_t i = state_count(a->state, object_kind_BACKUP); i > 0; i--) {
        struct record *record = a->state->tables[object_kind_BACKUP].order.items[i - 1];
        if (strcmp(record->backup->store, store->common->id) != 0)
            continue;
        apply_event(a, event_type_DELETED, record, "backup %s of VM %s is forgotten with its store, and stays there",
                    record->common->name, record->backup->vm_name);
        state_remove(a->state, record);
    }
}
