/* See the header. */
#include "controller/fsm/suppose.h"

#include "controller/fsm/state_edit.h"

void suppose_vm_runs(struct state *copy, const char *id)
{
    struct record *record = state_edit_find(copy, object_kind_VM, id);
    if (record == NULL || record->vm->host == NULL || record->vm->recovering || record->vm->state != vm_state_STARTING)
        return;
    state_edit_begin(copy, record);
    OBJECT_SET(vm, record->vm, state, vm_state_RUNNING);
    OBJECT_TEXT(vm, record->vm, running_at, "1970-01-01T00:00:00.000Z");
    state_edit_end(copy, record, copy->index);
}
