/* Beginning, following and ending tasks; see the header. */
#include "controller/fsm/apply_migrate.h"

#include <errno.h>
#include <string.h>

#include "controller/fsm/replica_state.h"

static const struct task_kind_ops *const task_kinds[task_kind_COUNT] = {
    [task_kind_SNAPSHOT_CREATE] = &task_snapshot_create,
    [task_kind_SNAPSHOT_REVERT] = &task_snapshot_revert,
    [task_kind_SNAPSHOT_DELETE] = &task_snapshot_delete,
    [task_kind_VM_MIGRATE] = &task_vm_migrate,
    [task_kind_VM_UPGRADE] = &task_vm_upgrade,
    [task_kind_VM_REPLICATE] = &task_vm_replicate,
    [task_kind_BACKUP_CREATE] = &task_backup_create,
    [task_kind_BACKUP_RESTORE] = &task_backup_restore,
    [task_kind_BACKUP_DELETE] = &task_backup_delete,
    [task_kind_BACKUP_ATTACH] = &task_backup_attach,
    [task_kind_BACKUP_VERIFY] = &task_backup_verify,
    [task_kind_BACKUP_PRUNE] = &task_backup_prune,
    [task_kind_BACKUP_BOOT] = &task_backup_boot,
    [task_kind_IMAGE_IMPORT] = &task_image_import,
    [task_kind_VOLUME_MOVE] = &task_volume_move,
    [task_kind_VOLUME_CLONE] = &task_volume_clone,
    [task_kind_VM_CLONE] = &task_vm_clone,
};

static struct record *host_of(struct apply *a, const char *id)
{
    return id != NULL ? map_get(&a->state->tables[object_kind_HOST].by_id, id) : NULL;
}

void task_orders_changed(struct apply *a, const struct task *task)
{
    state_host_orders_changed(a->state, task->host, a->index);
    state_host_orders_changed(a->state, task->peer, a->index);
}

void task_trim(struct task *task)
{
    struct task kept = {0};
    OBJECT_SET(task, &kept, kind, task->kind);
    OBJECT_TEXT(task, &kept, host, task->host);
    if (task->peer != NULL)
        OBJECT_TEXT(task, &kept, peer, task->peer);
    if (task->vm != NULL)
        OBJECT_TEXT(task, &kept, vm, task->vm);
    if (OBJECT_HAS(task, task, migration)) { /* whether it was handed over is asked later, too */
        OBJECT_COPY(task_migration, &kept.migration, &task->migration);
        object_mark(&task_desc, &kept, "migration");
    }
    OBJECT_CLEAR(task, task);
    *task = kept;
}

/* ---- begin ---- */

bool task_host_may(struct apply *a, const char *id, const char *field)
{
    const struct record *host = host_of(a, id);
    if (host == NULL)
        apply_refuse_field(a, -ENOENT, ERROR_NOT_FOUND, field, "there is no host with id %s", id != NULL ? id : "(none)");
    else if (host->host->state == host_state_LOST)
        apply_refuse_field(a, -EHOSTDOWN, ERROR_CONFLICT, field, "host %s was declared lost", host->common->name);
    else if (host->of_host.tasks.count >= STATE_HOST_TASKS_MAX)
        apply_refuse_field(a, -EBUSY, ERROR_OVERLOAD, field, "host %s has %u tasks under way, the most that there may be",
                           host->common->name, STATE_HOST_TASKS_MAX);
    else
        return true;
    return false;
}

bool task_may_begin(struct apply *a, const struct operation *operation, uint64_t if_revision)
{
    const struct task *task = &operation->task;
    const struct record *vm = NULL;
    if (!operation_has_task(operation) || operation->target_id == NULL || operation->target_name == NULL ||
        task->kind >= task_kind_COUNT || task_kinds[task->kind] == NULL) {
        apply_refuse(a, -EINVAL, ERROR_INVALID, "the operation has no target, or nothing that hosts could do");
        return false;
    }
    if (!task_host_may(a, task->host, "/operation/task/host") ||
        (task->peer != NULL && !task_host_may(a, task->peer, "/operation/task/peer")))
        return false;
    if (task->peer != NULL && strcmp(task->peer, task->host) == 0) {
        apply_refuse_field(a, -EINVAL, ERROR_INVALID, "/operation/task/peer", "is the very host that does the work");
        return false;
    }
    if (if_revision != 0 && apply_find(a, operation->target_kind, operation->target_id, if_revision) == NULL)
        return false;
    if (operation_vm_id(operation) != NULL && (vm = apply_find(a, object_kind_VM, operation_vm_id(operation), 0)) == NULL)
        return false;
    if (vm != NULL && vm->vm->wanted == vm_wanted_DELETED) {
        apply_refuse(a, -ENOENT, ERROR_CONFLICT, "VM '%s' is being deleted", vm->common->name);
        return false;
    }
    if (vm != NULL && task->kind != task_kind_VM_MIGRATE && migration_under_way(vm) != NULL) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "VM '%s' is being migrated; wait for its end, or cancel it", vm->common->name);
        return false;
    }
    if (vm != NULL && task->kind == task_kind_VM_MIGRATE && upgrade_under_way(vm)) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "a new VMM is taking VM '%s' over on its host; wait for its end, or cancel it",
                     vm->common->name);
        return false;
    }
    if (vm != NULL && (restore_is_live(a, vm) || volume_is_moved(a, vm) || volume_is_at_work(a, vm) || vm_is_in_making(a, vm) ||
                       vm_is_cloned(a, vm, (enum operation_kind)operation->kind)))
        return false;
    return operation_may_begin(a, operation, vm) && task_kinds[task->kind]->may_begin(a, operation);
}

void task_begin(struct apply *a, const struct operation *operation)
{
    struct operation new = {0};
    OBJECT_COPY(operation, &new, operation);
    char step[APPLY_STEP_BYTES_MAX];
    apply_text(step, sizeof step, "waiting for host %s", host_of(a, operation->task.host)->common->name);
    OBJECT_TEXT(operation, &new, name, operation->id);
    OBJECT_TEXT(operation, &new, created_at, a->request->at);
    OBJECT_SET(operation, &new, state, operation_state_RUNNING);
    OBJECT_TEXT(operation, &new, step, step);
    if (a->request->by != NULL)
        OBJECT_TEXT(operation, &new, requested_by, a->request->by);
    struct record *record = state_insert(a->state, object_kind_OPERATION, &new, a->index);
    apply_event(a, event_type_CREATED, record, "%s of %s begins", operation_kind_desc.names[operation->kind],
                operation->target_name);
    task_orders_changed(a, &record->operation->task);
    const struct record *target = map_get(&a->state->tables[operation->target_kind].by_id, operation->target_id);
    if (target != NULL)
        apply_answer(a, target);
    strcpy(a->result->operation_id, record->common->id); /* an id: fits */
}

void task_start(struct apply *a, const struct operation *operation)
{
    const struct task_kind_ops *ops = task_kinds[operation->task.kind];
    if (ops->begun != NULL)
        ops->begun(a, operation);
    task_begin(a, operation);
}

void apply_task(struct apply *a, struct command_task *command)
{
    if (task_may_begin(a, &command->operation, command->if_revision) && !a->check_only)
        task_start(a, &command->operation);
}

/* ---- end ---- */

void task_end(struct apply *a, struct record *record, enum operation_state state, const char *code,
                     const char *text, const struct task_seen *seen)
{
    const struct task_kind_ops *ops = task_kinds[record->operation->task.kind];
    if (ops->ended != NULL)
        ops->ended(a, record->operation, state, text, seen);
    if (record->operation->kind == operation_kind_VM_REPLICATE) { /* every few seconds one: its VM says what came of the last */
        task_orders_changed(a, &record->operation->task);
        state_remove(a->state, record);
        return;
    }
    operation_end(a, record, state, code, text);
}

void task_ask_cancel(struct apply *a, struct record *record, const char *text)
{
    struct operation *operation = record->operation;
    if (operation->cancel_asked)
        return;
    state_edit_begin(a->state, record);
    OBJECT_SET(operation, operation, cancel_asked, true);
    OBJECT_TEXT(operation, operation, step, text);
    state_edit_end(a->state, record, a->index);
    task_orders_changed(a, &operation->task);
    apply_event(a, event_type_UPDATED, record, "%s of %s: %s", operation_kind_desc.names[operation->kind],
                operation->target_name, text);
    struct record *first = state_clone_waits_for(a->state, operation);
    if (first != NULL) /* it ends when that does */
        task_ask_cancel(a, first, "to end: the clone that it is for is to end");
}

/* A VM runs on disks that come from a backup: without the rest of them it cannot go on when its host is back, nor be started elsewhere. */
static void outlast(struct apply *a, struct record *record, const char *text)
{
    char step[APPLY_STEP_BYTES_MAX];
    apply_text(step, sizeof step, "%s; it goes on when that is back", text);
    state_edit_begin(a->state, record);
    OBJECT_TEXT(operation, record->operation, step, step);
    state_edit_end(a->state, record, a->index);
    apply_event(a, event_type_UPDATED, record, "%s of %s: %s", operation_kind_desc.names[record->operation->kind],
                record->operation->target_name, step);
}

/* The VM runs at the target, and what is lost with @host (NULL: the VM itself) may be the rest of its memory: whether it had all by then
 * the target says, while both may come back. */
static void end_lacking(struct apply *a, struct record *record, const struct record *host, bool outlasts, const char *code, const char *text)
{
    if (outlasts && host != NULL && text_same(record->operation->task.host, host->common->id))
        migration_source_lost(a, record, text);
    else
        task_end(a, record, operation_state_FAILED, code, text, NULL);
}

/* Ending one takes it out of the list, and may end another one (a clone that waits for its snapshot): work on a copy. @outlasts: what a VM
 * cannot do without stays. @host: whose they are; NULL: a VM's. */
static void end_all(struct apply *a, const struct record_index *list, const struct record *host, bool outlasts, const char *code,
                    const char *text)
{
    size_t count = list->count;
    CLEANUP_FREE struct record **copy = xcalloc(count + 1, sizeof *copy);
    if (count > 0)
        memcpy(copy, list->items, count * sizeof *copy);
    for (size_t i = 0; i < count; i++)
        if (copy[i]->operation->state != operation_state_RUNNING)
            continue;
        else if (operation_has_task(copy[i]->operation) && migration_lacks_memory(copy[i]->operation))
            end_lacking(a, copy[i], host, outlasts, code, text);
        else if (operation_has_task(copy[i]->operation) && migration_is_handed_over(copy[i]->operation))
            task_end(a, copy[i], operation_state_SUCCEEDED, NULL, NULL, NULL);
        else if (outlasts && restore_is_under(copy[i]->operation))
            outlast(a, copy[i], text);
        else if (operation_has_task(copy[i]->operation))
            task_end(a, copy[i], operation_state_FAILED, code, text, NULL);
}

void tasks_host_lost(struct apply *a, const struct record *host, const char *text)
{
    end_all(a, &host->of_host.tasks, host, true, "host-lost", text);
}

void tasks_host_gone(struct apply *a, const struct record *host, const char *text)
{
    end_all(a, &host->of_host.tasks, host, false, "host-lost", text);
}

void tasks_vm_gone(struct apply *a, const struct record *vm, const char *text)
{
    end_all(a, &vm->of_vm.operations, NULL, false, "vm-gone", text);
    vm_clones_end(a, vm, "the VM that it was made of is gone, or was given to another host");
}

/* ---- what hosts say ---- */

static bool same(const char *a, const char *b)
{
    return strcmp(a != NULL ? a : "", b != NULL ? b : "") == 0;
}

static void see_progress(struct apply *a, struct record *record, const struct task_seen *seen)
{
    struct operation *operation = record->operation;
    const char *step = seen->step != NULL ? seen->step : operation->step;
    bool same_step = same(step, operation->step);
    if (same_step && operation->progress_done == seen->progress_done && operation->progress_total == seen->progress_total)
        return;
    state_edit_begin(a->state, record);
    if (!same_step)
        OBJECT_TEXT(operation, operation, step, step);
    OBJECT_SET(operation, operation, progress_done, seen->progress_done);
    OBJECT_SET(operation, operation, progress_total, seen->progress_total);
    state_edit_end(a->state, record, a->index);
    apply_event(a, event_type_UPDATED, record, "%s of %s: %s", operation_kind_desc.names[operation->kind],
                operation->target_name, operation->step != NULL ? operation->step : "goes on");
}

static void see_main(struct apply *a, struct record *record, const struct record *host, const struct task_seen *seen)
{
    char text[APPLY_TEXT_BYTES_MAX];
    migration_see(a, record, seen);
    if (seen->state != operation_state_RUNNING && seen->state != operation_state_SUCCEEDED && migration_lacks_memory(record->operation)) {
        apply_text(text, sizeof text, "host %s: %s", host->common->name, seen->error_text != NULL ? seen->error_text : "it does not say why");
        migration_source_lost(a, record, text);
        return;
    }
    if (seen->state != operation_state_RUNNING && migration_is_handed_over(record->operation)) {
        migration_lacks_no_more(a, record);
        task_end(a, record, operation_state_SUCCEEDED, NULL, NULL, seen); /* how its source ended is no concern of the VM's */
        return;
    }
    switch (seen->state) {
    case operation_state_RUNNING:
        migration_source_is_back(a, record);
        if (seen->ready && record->operation->task.backup.live)
            restore_placed(a, record);
        if (seen->ready)
            volume_is_level(a, record);
        if (seen->ready)
            replica_level(a, record);
        see_progress(a, record, seen);
        return;
    case operation_state_SUCCEEDED:
        if (!own_disk_move_is_told(a, record->operation, seen))
            task_end(a, record, operation_state_FAILED, error_kind_info(ERROR_NOT_SUPPORTED)->code,
                     "the host's agent does not know of moves of VMs' own disks: upgrade it", seen);
        else if (record->operation->task.kind == task_kind_VM_MIGRATE) /* the hand-over says so, and nobody else */
            task_end(a, record, operation_state_FAILED, "task-failed", "its host takes it for done, but the VM was not handed over", seen);
        else
            task_end(a, record, operation_state_SUCCEEDED, NULL, seen->step, seen);
        return;
    case operation_state_CANCELLED:
        apply_text(text, sizeof text, "%s", seen->error_text != NULL ? seen->error_text : "cancelled");
        task_end(a, record, operation_state_CANCELLED, error_kind_info(ERROR_CANCELLED)->code, text, seen);
        return;
    default:
        apply_text(text, sizeof text, "host %s: %s", host->common->name,
                   seen->error_text != NULL ? seen->error_text : "it does not say why");
        task_end(a, record, operation_state_FAILED, seen->error_code != NULL ? seen->error_code : "task-failed", text,
                 seen);
    }
}

/* A peer's failure is told to the main host, which knows what can still be done and ends the task. */
static void see_peer(struct apply *a, struct record *record, const struct record *host, const struct task_seen *seen)
{
    struct task *task = &record->operation->task;
    char why[APPLY_TEXT_BYTES_MAX];
    if (migration_lacks_memory(record->operation) && seen->state == operation_state_SUCCEEDED) {
        migration_is_whole(a, record);
        return;
    }
    bool ended = seen->state == operation_state_FAILED || seen->state == operation_state_CANCELLED;
    apply_text(why, sizeof why, "host %s: %s", host->common->name,
               seen->error_text != NULL ? seen->error_text : "it does not say why");
    const char *error = ended ? why : NULL, *endpoint = seen->ready ? seen->endpoint : NULL;
    if (ended && migration_lacks_memory(record->operation)) {
        task_end(a, record, (enum operation_state)seen->state, seen->error_code != NULL ? seen->error_code : "task-failed", why, seen);
        return;
    }
    if (seen->state == operation_state_SUCCEEDED ||
        (task->peer_ready == seen->ready && same(task->peer_endpoint, endpoint) && same(task->peer_error, error) &&
         (!OBJECT_HAS(task_seen, seen, base) || object_equal(&replica_base_desc, &task->base, &seen->base))))
        return;
    state_edit_begin(a->state, record);
    OBJECT_SET(task, task, peer_ready, seen->ready);
    OBJECT_TEXT(task, task, peer_endpoint, endpoint);
    OBJECT_TEXT(task, task, peer_error, error);
    if (OBJECT_HAS(task, task, session) && OBJECT_HAS(task_seen, seen, base)) {
        OBJECT_CLEAR(replica_base, &task->base);
        OBJECT_COPY(replica_base, &task->base, &seen->base);
        object_mark(&task_desc, task, "base");
    }
    state_edit_end(a->state, record, a->index);
    state_host_orders_changed(a->state, task->host, a->index);
    apply_event(a, event_type_UPDATED, record, "%s of %s: %s", operation_kind_desc.names[record->operation->kind],
                record->operation->target_name, ended ? why : seen->ready ? "its second host is ready" : "its second host begins anew");
}

void tasks_seen(struct apply *a, const struct record *host, const struct object_list *tasks)
{
    for (size_t i = 0; i < tasks->count; i++) {
        const struct task_seen *seen = (const struct task_seen *)tasks->items + i;
        struct record *record = seen->id != NULL ? map_get(&a->state->tables[object_kind_OPERATION].by_id, seen->id) : NULL;
        if (record == NULL || !operation_has_task(record->operation) ||
            record->operation->state != operation_state_RUNNING)
            continue;
        const struct task *task = &record->operation->task;
        if (seen->role == task_role_MAIN && same(task->host, host->common->id))
            see_main(a, record, host, seen);
        else if (seen->role == task_role_PEER && same(task->peer, host->common->id))
            see_peer(a, record, host, seen);
    }
}
