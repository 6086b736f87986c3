/* See the header. */
#include "controller/fsm/suppose.h"

#include "controller/fsm/state_edit.h"

void suppose_host_is_suspect(struct state *copy, const char *id)
{
    struct record *record = state_edit_find(copy, object_kind_HOST, id), *cluster = state_edit_find(copy, object_kind_CLUSTER, state_cluster(copy)->id);
    state_edit_begin(copy, cluster);
    OBJECT_SET(cluster, cluster->cluster, ha_disarmed, false);
    state_edit_end(copy, cluster, copy->index);
    state_edit_begin(copy, record);
    OBJECT_SET(host, record->host, state, host_state_SUSPECT);
    OBJECT_SET(host, record->host, ha_disarmed, false);
    OBJECT_SET(host, record->host, armed, record->host->arming);
    state_edit_end(copy, record, copy->index);
}

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
