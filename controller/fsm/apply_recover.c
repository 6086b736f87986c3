/* The cluster goes on from one survivor (`drover-controller recover`): the first command of its new life.
 *
 * The epoch rises by what the offline part has decided and written into the survivor's identity.json. The controllers
 * that were lost go from the table; Raft's configuration lost them before (raft_node_recover). next_raft_id stays: an id
 * is never given twice.
 *
 * The survivor may lack the end of the log, which hosts have carried out:
 *   a generation of a VM   the same number would be given again for something else: all are raised beyond what can be lost. Not of
 *                          what is off by itself: a new generation would start it, and its disks are given at its next start. (A
 *                          guest that has powered off meanwhile, and was not heard of here, is started again by it.)
 *   an epoch of a VM       it was started or given to another host: the host that has it says so (apply_seen.c, follow_host)
 *   a VM                   hosts keep what they have until an order names it, or it is known to be over: recovered_epoch (node_sync.c) */
#include "controller/fsm/apply_internal.h"

#include <errno.h>

#include "controller/fsm/replica_state.h"

static void drop_others(struct apply *a, const struct record *survivor)
{
    for (size_t i = state_count(a->state, object_kind_CONTROLLER); i > 0; i--) {
        struct record *record = a->state->tables[object_kind_CONTROLLER].order.items[i - 1];
        if (record == survivor)
            continue;
        apply_event(a, event_type_DELETED, record, "controller %s was lost and is dropped", record->common->name);
        state_remove(a->state, record);
    }
}

static void tell_again(struct apply *a)
{
    for (size_t i = 0; i < state_count(a->state, object_kind_VM); i++) {
        struct record *record = a->state->tables[object_kind_VM].order.items[i];
        struct vm *vm = record->vm;
        state_edit_begin(a->state, record);
        OBJECT_SET(vm, vm, recovered_epoch, vm->epoch);
        if (vm->host != NULL)
            apply_vm_is_made(vm); /* as far as is known here it may have been */
        if (vm->host != NULL && !state_vm_ran_out(vm))
            apply_vm_tell_again(a, record, vm->generation + STATE_GENERATIONS_LOST_MAX);
        replica_told_again(vm);
        state_edit_end(a->state, record, a->index);
    }
}

void apply_recover(struct apply *a, struct command_recover *command)
{
    struct record *cluster = a->state->tables[object_kind_CLUSTER].order.items[0];
    struct record *survivor = apply_find(a, object_kind_CONTROLLER, command->survivor, 0);
    if (survivor == NULL)
        return;
    if (command->epoch <= cluster->cluster->epoch) {
        apply_refuse(a, -ESTALE, ERROR_STALE, "the cluster is at epoch %llu already, not below %llu",
                     (unsigned long long)cluster->cluster->epoch, (unsigned long long)command->epoch);
        return;
    }
    if (a->check_only)
        return;
    state_edit_begin(a->state, cluster);
    OBJECT_SET(cluster, cluster->cluster, epoch, command->epoch);
    OBJECT_TEXT(cluster, cluster->cluster, recovered_at, a->request->at);
    state_edit_end(a->state, cluster, a->index);
    state_edit_begin(a->state, survivor);
    OBJECT_SET(controller, survivor->controller, role, controller_role_VOTER);
    state_edit_end(a->state, survivor, a->index);
    drop_others(a, survivor);
    tell_again(a);
    apply_answer(a, cluster);
    apply_event(a, event_type_UPDATED, cluster, "the cluster goes on from controller %s, at epoch %llu",
                survivor->common->name, (unsigned long long)command->epoch);
}
