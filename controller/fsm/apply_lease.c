/* What the controllers hold true of a host's lease; the rules and who proposes what are in controller/lease/.
 *
 *                   host_suspect                 host_lost (a majority has confirmed)
 *   UP, UNREACHABLE -------------> SUSPECT --------------------------------------------> LOST
 *        ^                            |        '--------- host_lost, left ------------->  |
 *        |   host_clear: generation+1 |                                                   | host_clear: generation+1,
 *        +----------------------------+---------------------------------------------------+ all VMMs reported
 *
 * A VM may be started elsewhere when `recovering` is set, which happens here alone: with the loss of its host; and when its host has
 * promised to start it no more (state_vm_released).
 *
 * A host that is shut down in order says so (`going_down`), has its guests shut down, and then gives its lease up (`left`). What
 * cannot or is not to be started elsewhere then is PENDING, still its host's, until that is back. */
#include "controller/fsm/apply_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/fsm/apply_task.h"
#include "controller/fsm/pool_members.h"
#include "controller/fsm/replica_state.h"
#include "controller/fsm/time_text.h"
#include "controller/fsm/volume_disks.h"

#define FNV_BASIS UINT64_C(14695981039346656037)
#define FNV_PRIME UINT64_C(1099511628211)

/* ---- the controllers that count ---- */

static uint64_t print_text(uint64_t hash, const char *text)
{
    for (; text != NULL && *text != '\0'; text++)
        hash = (hash ^ (unsigned char)*text) * FNV_PRIME;
    return (hash ^ 0xff) * FNV_PRIME;
}

uint64_t lease_voters_print(const struct state *state)
{
    uint64_t hash = FNV_BASIS;
    for (size_t i = 0; i < state_count(state, object_kind_CONTROLLER); i++) {
        const struct controller *controller = state_at(state, object_kind_CONTROLLER, i)->controller;
        if (controller->role != controller_role_VOTER)
            continue;
        hash = (hash ^ controller->raft_id) * FNV_PRIME;
        hash = print_text(hash, controller->address);
    }
    return hash;
}

bool lease_voters_are(struct apply *a, uint64_t index)
{
    if (index == 0 || index == state_cluster(a->state)->lease_voters_index)
        return true;
    apply_refuse(a, -ESTALE, ERROR_CONFLICT, "other controllers have a vote by now; ask again");
    return false;
}

void lease_voters_changed(struct apply *a)
{
    struct record *cluster = a->state->tables[object_kind_CLUSTER].order.items[0];
    state_edit_begin(a->state, cluster);
    OBJECT_SET(cluster, cluster->cluster, lease_voters_index, a->index);
    state_edit_end(a->state, cluster, cluster->common->revision); /* nothing that anybody wrote has changed */
}

/* ---- hosts ---- */

static struct record *find_host(struct apply *a, const char *id, uint64_t generation)
{
    struct record *record = apply_find(a, object_kind_HOST, id, 0);
    if (record != NULL && record->host->generation != generation) {
        apply_refuse(a, -ESTALE, ERROR_CONFLICT, "the lease of host %s has generation %llu, not %llu", record->common->name,
                     (unsigned long long)record->host->generation, (unsigned long long)generation);
        return NULL;
    }
    return record;
}

static bool is_armed(struct apply *a, const struct record *record)
{
    if (state_cluster(a->state)->ha_disarmed || record->host->ha_disarmed) {
        apply_refuse(a, -EPERM, ERROR_CONFLICT, "ha is disarmed%s%s", record->host->ha_disarmed ? " for host " : "",
                     record->host->ha_disarmed ? record->common->name : "");
        return false;
    }
    if (record->host->armed != record->host->arming) {
        apply_refuse(a, -EPERM, ERROR_CONFLICT, "host %s has not yet said that it is armed again", record->common->name);
        return false;
    }
    return true;
}

static void set_state(struct record *record, enum host_state state, const char *reason)
{
    OBJECT_SET(host, record->host, state, state);
    OBJECT_TEXT(host, record->host, state_reason, reason);
}

void apply_host_suspect(struct apply *a, struct command_host_suspect *command)
{
    struct record *record = find_host(a, command->id, command->generation);
    if (record == NULL)
        return;
    if (record->host->state == host_state_SUSPECT || record->host->state == host_state_LOST) {
        apply_refuse(a, -EALREADY, ERROR_CONFLICT, "host %s is %s", record->common->name,
                     host_state_desc.names[record->host->state]);
        return;
    }
    if (!is_armed(a, record) || a->check_only)
        return;
    state_edit_begin(a->state, record);
    set_state(record, host_state_SUSPECT, command->reason);
    state_edit_end(a->state, record, a->index);
    apply_answer(a, record);
    apply_event(a, event_type_UPDATED, record, "host %s is suspected to be lost: %s", record->common->name,
                command->reason != NULL ? command->reason : "no reason given");
}

/* ---- loss ---- */

bool lease_vm_recovers(const struct state *state, const struct vm *vm, const char **ret_why)
{
    const struct record *record = map_get(&state->tables[object_kind_VM].by_id, vm->id);
    const char *why = NULL;
    if (!vm->ha)
        why = "it has no ha";
    else if (vm->seen_generation < vm->lease_generation)
        why = "its host has not said that it runs under the lease";
    else if (record != NULL && restore_is_under_vm(record))
        why = "the rest of its disks comes from a backup, on that host";
    else if (!vm_disks_are_shared(state, vm, NULL) && !replica_is_good(state, vm))
        why = replica_standby(state, vm) != NULL ? "its replica is not in sync" : vm->replica_host != NULL ? "its replica has no complete point of this run"
              : vm_has_pools(vm) ? "not all of its disks are in shared pools" : "its disks are on that host only";
    else if (vm->pin != NULL)
        why = "it is pinned to that host";
    if (ret_why != NULL)
        *ret_why = why;
    return why == NULL;
}

void lease_count_failover(struct vm *vm, const char *at)
{
    uint64_t window_ms = (OBJECT_HAS(vm, vm, ha_window_s) ? vm->ha_window_s : STATE_HA_WINDOW_S) * UINT64_C(1000);
    if (vm->ha_window_at == NULL || time_text_ms(vm->ha_window_at) + window_ms < time_text_ms(at)) {
        OBJECT_TEXT(vm, vm, ha_window_at, at);
        OBJECT_SET(vm, vm, ha_window_restarts, 0);
    }
    OBJECT_SET(vm, vm, ha_window_restarts, vm->ha_window_restarts + 1);
    OBJECT_SET(vm, vm, failovers, vm->failovers + 1);
}

/* Is there a host but @host that is neither lost nor goes down itself? */
static bool others_stay(const struct state *state, const struct record *host)
{
    for (size_t i = 0; i < state_count(state, object_kind_HOST); i++) {
        const struct record *other = state_at(state, object_kind_HOST, i);
        if (other != host && other->host->state != host_state_LOST && !other->host->going_down)
            return true;
    }
    return false;
}

/* Do the VMs of a host that is lost wait for it, whatever they are? Where it was being shut down when it was lost the lease says that
 * none of them runs, as ever. The last one of all that go down hands nothing on: the whole cluster is being switched off. */
static bool vms_wait(const struct state *state, const struct record *host)
{
    const struct cluster *cluster = state_cluster(state);
    bool stay = OBJECT_HAS(cluster, cluster, shutdown_policy) && cluster->shutdown_policy == shutdown_policy_STAY;
    return host->host->going_down && (stay || !others_stay(state, host));
}

/* A VM that goes on when its host is back, and is off until then. */
static void wait_for_host(struct apply *a, struct record *record, const struct record *host, const char *more)
{
    char text[APPLY_STEP_BYTES_MAX];
    apply_text(text, sizeof text, "its host %s was shut down: it goes on there when that is back%s", host->common->name, more);
    state_edit_begin(a->state, record);
    OBJECT_SET(vm, record->vm, state, vm_state_PENDING);
    OBJECT_TEXT(vm, record->vm, state_reason, text);
    state_edit_end(a->state, record, a->index);
    apply_event(a, event_type_UPDATED, record, "VM %s: %s", record->common->name, text);
}

/* Was its host, which could not start @vm, about to try again? Where restarts_max is given it may have been done with it, which is said by
 * nothing but its promise to be. */
static bool is_tried_on(const struct vm *vm)
{
    return vm->state == vm_state_FAILED && vm->restart != restart_policy_NEVER &&
           (!OBJECT_HAS(vm, vm, restarts_max) || state_vm_released(vm));
}

/* One VM of a host that is lost from now on. @waits: see vms_wait. True: it is started elsewhere. */
static bool lose_vm(struct apply *a, struct record *record, const struct record *host, const struct command_host_lost *command, bool waits)
{
    struct vm *vm = record->vm;
    bool ended = command->went_down; /* the host has shut its guests down */
    char text[APPLY_STEP_BYTES_MAX];
    const char *why;
    bool recovers = lease_vm_recovers(a->state, vm, &why);
    if (vm->wanted != vm_wanted_RUNNING && vm->wanted != vm_wanted_PAUSED)
        return false;
    if (!recovers && !vm->ha && !ended)
        return false; /* host show counts those */
    /* What the guest had ended by itself, or what had failed for good, is not made to run by the loss of its host. */
    bool tried_on = command->failed_too && recovers && is_tried_on(vm);
    if ((recovers || ended) && state_vm_ran_out(vm) && !tried_on)
        return false;
    /* All that it has written is on the disks of its host, and its replica may lack the end of it: that is for a loss. */
    bool behind = recovers && ended && !vm_disks_are_shared(a->state, vm, NULL);
    if (behind || (ended && !recovers) || (recovers && waits)) {
        wait_for_host(a, record, host, behind ? "; `drover vm start` starts it from its replica, without what that lacks" : recovers ? "; `drover vm start` starts it on another one" : "");
        return false;
    }
    if (recovers)
        apply_text(text, sizeof text, "its host %s was %s; it is started on another one", host->common->name, ended ? "shut down" : "lost");
    else
        apply_text(text, sizeof text, "its host %s was lost, and %s: it goes on when the host is back", host->common->name, why);
    state_edit_begin(a->state, record);
    OBJECT_TEXT(vm, vm, state_reason, text);
    OBJECT_SET(vm, vm, state, recovers ? vm_state_PENDING : vm_state_FAILED);
    if (recovers)
        OBJECT_SET(vm, vm, recovering, true);
    state_edit_end(a->state, record, a->index);
    apply_event(a, event_type_UPDATED, record, "VM %s: %s", record->common->name, text);
    return recovers;
}

static bool may_lose(struct apply *a, const struct record *record, const struct command_host_lost *command)
{
    uint64_t voters_index = state_cluster(a->state)->lease_voters_index;
    if (record->host->state == host_state_LOST) {
        apply_refuse(a, -EALREADY, ERROR_CONFLICT, "host %s is lost already", record->common->name);
        return false;
    }
    if (!command->left && record->host->state != host_state_SUSPECT) {
        apply_refuse(a, -EPERM, ERROR_CONFLICT, "host %s is not suspected", record->common->name);
        return false;
    }
    if (!command->left && command->voters_index != voters_index) {
        apply_refuse(a, -ESTALE, ERROR_CONFLICT, "the controllers have changed at %llu", (unsigned long long)voters_index);
        return false;
    }
    if (!command->left && state_voters(a->state) < STATE_HA_VOTERS_MIN) {
        apply_refuse(a, -EPERM, ERROR_CONFLICT, "ha needs %u controllers with a vote, there are %u", STATE_HA_VOTERS_MIN,
                     state_voters(a->state));
        return false;
    }
    return command->left || is_armed(a, record);
}

void apply_host_lost(struct apply *a, struct command_host_lost *command)
{
    struct record *record = find_host(a, command->id, command->generation);
    size_t elsewhere = 0, all;
    if (record == NULL || !may_lose(a, record, command) || a->check_only)
        return;
    state_edit_begin(a->state, record);
    set_state(record, host_state_LOST, command->reason);
    if (command->went_down)
        OBJECT_SET(host, record->host, going_down, true);
    state_edit_end(a->state, record, a->index);
    apply_answer(a, record);
    apply_event(a, event_type_UPDATED, record, "host %s %s%s%s", record->common->name,
                command->left ? "goes down and has given its lease up" : "is lost", command->reason != NULL ? ": " : "",
                command->reason != NULL ? command->reason : "");
    tasks_host_lost(a, record, "its host was declared lost");
    for (size_t i = record->of_host.vms.count; i > 0; i--) /* nobody is left to say that they are deleted */
        if (record->of_host.vms.items[i - 1]->vm->wanted == vm_wanted_DELETED &&
            !volumes_outlive_host(record->of_host.vms.items[i - 1]->vm))
            apply_vm_gone(a, record->of_host.vms.items[i - 1]);
    all = record->of_host.vms.count;
    bool waits = vms_wait(a->state, record);
    for (size_t i = 0; i < all; i++) {
        elsewhere += lose_vm(a, record->of_host.vms.items[i], record, command, waits);
        volumes_settle(a, record->of_host.vms.items[i]);
    }
    if (all > 0)
        apply_event(a, event_type_UPDATED, record, "host %s: %zu of its %zu VMs are started elsewhere", record->common->name,
                    elsewhere, all);
    state_host_orders_changed(a->state, record->common->id, a->index);
    apply_pools_tell(a, record);
}

/* ---- return ---- */

/* What nobody has taken meanwhile is the host's own again: it goes on where it was, if it is still there. */
static void keep_vms(struct apply *a, const struct record *host)
{
    for (size_t i = 0; i < host->of_host.vms.count; i++) {
        struct record *record = host->of_host.vms.items[i];
        replica_host_back(a, record);
        bool waited = host->host->going_down && record->vm->state == vm_state_PENDING && !record->vm->recovering &&
                      record->vm->wanted != vm_wanted_DELETED;
        if (!record->vm->recovering && !waited)
            continue;
        state_edit_begin(a->state, record);
        if (record->vm->recovering)
            OBJECT_SET(vm, record->vm, recovering, false);
        OBJECT_SET(vm, record->vm, state, vm_state_STARTING);
        OBJECT_TEXT(vm, record->vm, state_reason, waited ? "its host is back" : "its host is back before another one was found");
        state_edit_end(a->state, record, a->index);
    }
}

void apply_host_clear(struct apply *a, struct command_host_clear *command)
{
    struct record *record = find_host(a, command->id, command->generation);
    if (record == NULL)
        return;
    bool lost = record->host->state == host_state_LOST;
    if (!lost && record->host->state != host_state_SUSPECT) {
        apply_refuse(a, -EALREADY, ERROR_CONFLICT, "host %s is %s", record->common->name,
                     host_state_desc.names[record->host->state]);
        return;
    }
    if (lost && !command->reported) {
        apply_refuse(a, -EPERM, ERROR_CONFLICT, "host %s was lost and has not said what it still has", record->common->name);
        return;
    }
    if (a->check_only)
        return;
    state_edit_begin(a->state, record);
    set_state(record, host_state_UP, NULL);
    OBJECT_SET(host, record->host, generation, record->host->generation + 1);
    state_edit_end(a->state, record, a->index);
    apply_answer(a, record);
    apply_event(a, event_type_UPDATED, record, lost ? "host %s is back" : "host %s is heard again", record->common->name);
    if (lost)
        keep_vms(a, record);
    state_host_orders_changed(a->state, record->common->id, a->index);
}

/* ---- arming ---- */

static void arm_host(struct apply *a, struct record *record, const bool *disarmed)
{
    state_edit_begin(a->state, record);
    OBJECT_SET(host, record->host, arming, a->index);
    if (disarmed != NULL)
        OBJECT_SET(host, record->host, ha_disarmed, *disarmed);
    state_edit_end(a->state, record, disarmed != NULL ? a->index : record->common->revision);
    state_host_orders_changed(a->state, record->common->id, a->index);
}

/* Done already: nothing changes, and that is a success. */
void apply_ha_arm(struct apply *a, struct command_ha_arm *command)
{
    struct record *cluster = a->state->tables[object_kind_CLUSTER].order.items[0];
    struct record *record = command->host != NULL ? apply_find(a, object_kind_HOST, command->host, 0) : cluster;
    const char *what = command->disarmed ? "disarmed" : "armed";
    if (record == NULL || a->check_only)
        return;
    apply_answer(a, record);
    if (command->host != NULL && record->host->ha_disarmed != command->disarmed) {
        arm_host(a, record, &command->disarmed);
        apply_event(a, event_type_UPDATED, record, "host %s is %s", record->common->name, what);
    } else if (command->host == NULL && cluster->cluster->ha_disarmed != command->disarmed) {
        state_edit_begin(a->state, cluster);
        OBJECT_SET(cluster, cluster->cluster, ha_disarmed, command->disarmed);
        state_edit_end(a->state, cluster, a->index);
        for (size_t i = 0; i < state_count(a->state, object_kind_HOST); i++)
            arm_host(a, a->state->tables[object_kind_HOST].order.items[i], NULL);
        apply_event(a, event_type_UPDATED, cluster, "ha is %s", what);
    }
}
