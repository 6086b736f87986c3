/* Operations: begun with the command that asks for the work, ended by what hosts report, or by request. */
#include "controller/fsm/apply_migrate.h"

#include <errno.h>
#include <string.h>

bool operation_may_begin(struct apply *a, const struct operation *operation, const struct record *vm)
{
    struct record_common common = {.id = operation->id, .name = operation->id};
    if (vm != NULL && vm->of_vm.operations.count >= STATE_VM_OPERATIONS_MAX) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "%u operations of '%s' are under way; wait for them or cancel some",
                     STATE_VM_OPERATIONS_MAX, vm->common->name);
        return false;
    }
    return apply_may_insert(a, object_kind_OPERATION, &common);
}

struct record *operation_begin(struct apply *a, struct operation *operation, const struct record *vm, uint64_t generation)
{
    struct operation new = {0};
    OBJECT_TEXT(operation, &new, id, operation->id);
    OBJECT_TEXT(operation, &new, name, operation->id);
    OBJECT_TEXT(operation, &new, created_at, a->request->at);
    OBJECT_SET(operation, &new, kind, operation->kind);
    OBJECT_SET(operation, &new, target_kind, object_kind_VM);
    OBJECT_TEXT(operation, &new, target_id, vm->common->id);
    OBJECT_TEXT(operation, &new, target_name, vm->common->name);
    OBJECT_SET(operation, &new, state, operation_state_RUNNING);
    OBJECT_SET(operation, &new, generation, generation);
    if (a->request->by != NULL)
        OBJECT_TEXT(operation, &new, requested_by, a->request->by);
    if (vm->vm->host != NULL) {
        char step[APPLY_STEP_BYTES_MAX];
        apply_text(step, sizeof step, "waiting for host %s", vm->vm->host_name);
        OBJECT_TEXT(operation, &new, step, step);
    } else {
        OBJECT_TEXT(operation, &new, step, "waiting for a host that fits");
    }
    struct record *record = state_insert(a->state, object_kind_OPERATION, &new, a->index);
    apply_event(a, event_type_CREATED, record, "%s of %s begins", operation_kind_desc.names[record->operation->kind],
                vm->common->name);
    strcpy(a->result->operation_id, record->common->id); /* an id: fits */
    return record;
}

void operation_end(struct apply *a, struct record *record, enum operation_state state, const char *error_code,
                   const char *text)
{
    struct operation *operation = record->operation;
    if (operation_has_task(operation))
        task_orders_changed(a, &operation->task);
    state_edit_begin(a->state, record);
    if (operation_has_task(operation))
        task_trim(&operation->task);
    OBJECT_SET(operation, operation, state, state);
    OBJECT_TEXT(operation, operation, step, error_code == NULL ? text : NULL);
    OBJECT_TEXT(operation, operation, error_code, error_code);
    OBJECT_TEXT(operation, operation, error_text, error_code != NULL ? text : NULL);
    OBJECT_TEXT(operation, operation, ended_at, a->request->at);
    state_edit_end(a->state, record, a->index);
    apply_event(a, event_type_UPDATED, record, "%s of %s %s%s%s", operation_kind_desc.names[operation->kind],
                operation->target_name, operation_state_desc.names[state], text != NULL ? ": " : "",
                text != NULL ? text : "");
}

/* What the VM's state means for an operation whose generation its host has reached. True: it ends as *ret_state. */
static bool outcome(const struct vm *vm, enum operation_state *ret_state, const char **ret_text)
{
    *ret_state = operation_state_SUCCEEDED;
    *ret_text = NULL;
    if (vm->state == vm_state_FAILED && vm->wanted != vm_wanted_DELETED) {
        *ret_state = operation_state_FAILED;
        *ret_text = vm->state_reason != NULL ? vm->state_reason : "its host does not say why";
        return true;
    }
    switch ((enum vm_wanted)vm->wanted) {
    case vm_wanted_RUNNING:
        if (vm->state == vm_state_STOPPED) /* it was started, or its generation would not be reached */
            *ret_text = "the guest has powered off meanwhile";
        return vm->state == vm_state_RUNNING || vm->state == vm_state_STOPPED;
    case vm_wanted_PAUSED:
        if (vm->state == vm_state_STOPPED) {
            *ret_state = operation_state_FAILED;
            *ret_text = "the guest has powered off meanwhile";
        }
        return vm->state == vm_state_PAUSED || vm->state == vm_state_STOPPED;
    case vm_wanted_STOPPED:
        return vm->state == vm_state_STOPPED;
    case vm_wanted_DELETED:
        return vm->state == vm_state_DELETED;
    case vm_wanted_COUNT:
        break;
    }
    return false;
}

/* Ending an operation takes it out of the VM's list: work on a copy of the list. */
static struct record **running(const struct record *vm, size_t *ret_count)
{
    const struct record_index *list = &vm->of_vm.operations;
    struct record **copy = xcalloc(list->count + 1, sizeof *copy);
    if (list->count > 0)
        memcpy(copy, list->items, list->count * sizeof *copy);
    *ret_count = list->count;
    return copy;
}

void operation_settle(struct apply *a, const struct record *vm)
{
    enum operation_state state;
    const char *text;
    if (vm->of_vm.operations.count == 0 || !outcome(vm->vm, &state, &text))
        return;
    size_t count;
    CLEANUP_FREE struct record **operations = running(vm, &count);
    for (size_t i = 0; i < count; i++)
        if (!operation_has_task(operations[i]->operation) &&
            vm->vm->seen_generation >= operations[i]->operation->generation)
            operation_end(a, operations[i], state, state == operation_state_FAILED ? "vm-failed" : NULL, text);
}

void operation_overtake(struct apply *a, const struct record *vm, enum operation_kind kind)
{
    size_t count;
    CLEANUP_FREE struct record **operations = running(vm, &count);
    char text[APPLY_TEXT_BYTES_MAX];
    apply_text(text, sizeof text, "overtaken by a %s", operation_kind_desc.names[kind]);
    for (size_t i = 0; i < count; i++) {
        if (!operation_has_task(operations[i]->operation))
            operation_end(a, operations[i], operation_state_CANCELLED, error_kind_info(ERROR_CANCELLED)->code, text);
        else if (kind == operation_kind_VM_DELETE)
            task_ask_cancel(a, operations[i], "to end: its VM is to be deleted");
        else if (kind == operation_kind_VM_STOP && operations[i]->operation->kind == operation_kind_VM_MIGRATE)
            task_ask_cancel(a, operations[i], "to end: its VM is to be stopped");
    }
}

static void step_set(struct apply *a, struct record *record, const char *step)
{
    state_edit_begin(a->state, record);
    OBJECT_TEXT(operation, record->operation, step, step);
    state_edit_end(a->state, record, a->index);
    apply_event(a, event_type_UPDATED, record, "%s of %s: %s", operation_kind_desc.names[record->operation->kind],
                record->operation->target_name, step != NULL ? step : "goes on");
}

void operation_step(struct apply *a, struct record *record, const char *step)
{
    if (!text_same(step, record->operation->step))
        step_set(a, record, step);
}

void apply_operation(struct apply *a, struct command_operation *command)
{
    struct record *record = apply_find(a, object_kind_OPERATION, command->id, 0);
    if (record == NULL)
        return;
    if (record->operation->state != operation_state_RUNNING) {
        apply_refuse(a, -EALREADY, ERROR_CONFLICT, "the operation has ended: %s",
                     operation_state_desc.names[record->operation->state]);
        return;
    }
    if (command->state == operation_state_CANCELLED && migration_lacks_memory(record->operation)) { /* of others older controllers take it */
        const struct task_migration *m = &record->operation->task.migration;
        apply_refuse(a, -EINVAL, ERROR_CONFLICT,
                     "it is too late: the VM runs on host %s, and can go on nowhere else; the rest of its memory is on its way. Where that "
                     "comes no more, `drover vm stop --force` and a start begin it anew", m->to_name != NULL ? m->to_name : "(removed)");
        return;
    }
    if (a->check_only)
        return;
    apply_answer(a, record);
    if (command->state == operation_state_CANCELLED && operation_has_task(record->operation)) {
        task_ask_cancel(a, record, "to end: asked for; its host says when it has");
        return;
    }
    if (command->state != operation_state_RUNNING) {
        operation_end(a, record, command->state, command->error_code,
                      command->error_text != NULL ? command->error_text : command->step);
        return;
    }
    step_set(a, record, command->step);
}
