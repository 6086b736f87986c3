/* What hosts report. A VM is believed only from the host that owns it, under the epoch that is held, and its generation
 * never goes back; nor do the reports of one start of the agent: one that was late, doubled or from before a restart
 * changes nothing. */
#include "controller/fsm/apply_migrate.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controller/fsm/pool_members.h"
#include "controller/fsm/replica_state.h"

/* ---- hosts ---- */

/* Copy the fields that a host reports about itself. True if any differs. */
static bool take_host_fields(struct host *held, const struct host *seen)
{
    static const char *const names[] = {"address", "cpus", "memory_bytes", "disk_bytes", "boot_id", "kvm", "version",
                                        "isolation", "cpu_baseline", "armed", "disk_free_bytes", "vmm_version", "stray_vms",
                                        "going_down"};
    struct host old = {0}, patch = {0};
    OBJECT_COPY(host, &old, held);
    OBJECT_COPY(host, &patch, seen);
    uint64_t mask = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        mask |= UINT64_C(1) << (object_field(&host_desc, names[i]) - host_desc.fields);
    patch.head.present &= mask;
    patch.head.cleared = 0;
    object_merge(&host_desc, held, &patch);
    bool changed = !object_equal(&host_desc, held, &old);
    OBJECT_CLEAR(host, &old);
    patch.head.present = seen->head.present; /* all that was copied */
    OBJECT_CLEAR(host, &patch);
    return changed;
}

static bool is_late(const struct host *held, const struct host *seen)
{
    return seen->session != NULL && held->session != NULL && strcmp(seen->session, held->session) == 0 &&
           seen->report < held->report;
}

static void see_host(struct apply *a, struct record *record, const struct host *seen)
{
    bool was_up = record->host->state == host_state_UP, went_down = record->host->going_down;
    bool booted = seen->boot_id != NULL && (record->host->boot_id == NULL || strcmp(seen->boot_id, record->host->boot_id) != 0);
    bool suspect = record->host->state == host_state_SUSPECT; /* cleared by its lease, not by a report */
    state_edit_begin(a->state, record);
    bool changed = take_host_fields(record->host, seen);
    if (!suspect)
        OBJECT_SET(host, record->host, state, host_state_UP);
    if (!suspect && !was_up)
        OBJECT_TEXT(host, record->host, state_reason, NULL);
    if (seen->session != NULL) { /* nobody sees these two: no new revision, or a user's If-Match would fail at any time */
        OBJECT_TEXT(host, record->host, session, seen->session);
        OBJECT_SET(host, record->host, report, seen->report);
    }
    state_edit_end(a->state, record, changed || (!was_up && !suspect) ? a->index : record->common->revision);
    if (!was_up && !suspect)
        apply_pools_tell(a, record);
    if (!was_up && !suspect)
        apply_event(a, event_type_UPDATED, record, "host %s is up%s", record->common->name, booted ? ", booted anew" : "");
    else if (booted)
        apply_event(a, event_type_UPDATED, record, "host %s has booted", record->common->name);
    else if (record->host->going_down && !went_down)
        apply_event(a, event_type_UPDATED, record, "host %s is being shut down, and its guests are", record->common->name);
    else if (changed)
        apply_event(a, event_type_UPDATED, record, "host %s has changed", record->common->name);
}

/* ---- VMs ---- */

static bool believed(const struct record *record, const struct record *host, const struct vm_seen *seen)
{
    const struct vm *vm = record->vm;
    if (vm->host == NULL || strcmp(vm->host, host->common->id) != 0)
        return false; /* not its own */
    if (seen->epoch != vm->epoch || vm->recovering)
        return false; /* acts for an earlier run */
    if (seen->state == vm_state_DELETED) /* if it is not to go, the next orders make it again */
        return vm->wanted == vm_wanted_DELETED;
    if (state_vm_made_by(record) != NULL)
        return false; /* its disks are made by a task: that says when it is a VM as others */
    return seen->generation >= vm->seen_generation;
}

void apply_vm_is_made(struct vm *vm)
{
    vm->unmade = false;
    vm->head.present &= ~(UINT64_C(1) << (object_field(&vm_desc, "unmade") - vm_desc.fields));
}

void apply_vm_tell_again(struct apply *a, struct record *record, uint64_t generation)
{
    struct vm *vm = record->vm;
    uint64_t before = vm->seen_generation;
    OBJECT_SET(vm, vm, generation, generation);
    for (size_t i = 0; i < record->of_vm.operations.count; i++) {
        struct record *operation = record->of_vm.operations.items[i];
        if (operation_has_task(operation->operation) || operation->operation->generation <= before)
            continue;
        state_edit_begin(a->state, operation);
        OBJECT_SET(operation, operation->operation, generation, generation);
        state_edit_end(a->state, operation, a->index);
    }
    if (vm->host != NULL)
        state_host_orders_changed(a->state, vm->host, a->index);
}

/* The host is to say anew that it has the VM under the lease: it may have been told otherwise meanwhile. */
static void confirm_lease_again(struct vm *vm, uint64_t before)
{
    if (vm->ha || vm->lease_generation > before)
        OBJECT_SET(vm, vm, lease_generation, vm->generation);
}

/* Its host has carried out what this state does not know of: the end of the log was lost, and the cluster recovered without
 * (apply_recover.c). True: its orders are others now. */
static bool raise_generation(struct apply *a, struct record *record, const struct vm_seen *seen)
{
    struct vm *vm = record->vm;
    uint64_t before = vm->seen_generation;
    /* of before the recovery, for which all were raised by so much, and more than was known of then */
    if (vm->generation > STATE_GENERATIONS_LOST_MAX && seen->generation > before &&
        seen->generation + STATE_GENERATIONS_LOST_MAX / 2 < vm->generation)
        confirm_lease_again(vm, before);
    if (!state_generation_lost(vm, seen))
        return false;
    apply_event(a, event_type_UPDATED, record, "host %s has carried out generation %llu of VM %s, of which %llu is the last one known: what is wanted "
                "is told it again", vm->host_name, (unsigned long long)seen->generation, vm->name, (unsigned long long)vm->generation);
    apply_vm_tell_again(a, record, seen->generation + 1);
    confirm_lease_again(vm, before);
    return true;
}

/* What is under way for a lower epoch is over: well for the migration that has brought it, whose end is lost. */
static void end_tasks(struct apply *a, struct record *record, const struct record *host, const struct vm_seen *seen)
{
    struct record *migration = migration_under_way(record);
    const char *peer = migration != NULL ? migration->operation->task.peer : NULL;
    if (peer != NULL && strcmp(peer, host->common->id) == 0) {
        state_edit_begin(a->state, migration);
        OBJECT_SET(task_migration, &migration->operation->task.migration, handed_over, seen->epoch);
        object_mark(&task_desc, &migration->operation->task, "migration");
        state_edit_end(a->state, migration, a->index);
        task_end(a, migration, operation_state_SUCCEEDED, NULL, NULL, NULL);
    }
    tasks_vm_gone(a, record, "its VM was started, or given to another host, by an order that was lost in the cluster's recovery");
}

/* The VM is what @host says that it is: it was started there, or given to it, by an order that is lost. */
static void follow_host(struct apply *a, struct record *record, const struct record *host, const struct vm_seen *seen)
{
    struct vm *vm = record->vm;
    uint64_t before = vm->seen_generation;
    CLEANUP_FREE char *from = vm->host != NULL ? xstrdup(vm->host) : NULL;
    apply_event(a, event_type_UPDATED, record, "host %s has VM %s under epoch %llu, of which %llu is the last one known: it is host %s's%s",
                host->common->name, vm->name, (unsigned long long)seen->epoch, (unsigned long long)vm->epoch, host->common->name,
                from == NULL || strcmp(from, host->common->id) != 0 ? " now" : "");
    end_tasks(a, record, host, seen);
    state_edit_begin(a->state, record);
    OBJECT_TEXT(vm, vm, host, host->common->id);
    OBJECT_TEXT(vm, vm, host_name, host->common->name);
    OBJECT_SET(vm, vm, epoch, seen->epoch);
    OBJECT_SET(vm, vm, recovered_epoch, seen->epoch);
    replica_followed(a, vm, from);
    apply_vm_is_made(vm);
    OBJECT_SET(vm, vm, state, seen->state);
    if (vm->wanted == vm_wanted_STOPPED && (seen->state == vm_state_RUNNING || seen->state == vm_state_STARTING))
        OBJECT_SET(vm, vm, wanted, vm_wanted_RUNNING); /* nothing but a start raises the epoch of what was to be off */
    if (vm->recovering)
        OBJECT_SET(vm, vm, recovering, false);
    if (vm->handover != NULL)
        OBJECT_TEXT(vm, vm, handover, NULL);
    apply_vm_tell_again(a, record, MAX(vm->generation, seen->generation) + 1);
    confirm_lease_again(vm, before);
    state_edit_end(a->state, record, a->index);
    replica_volumes_taken(a, record, &seen->volumes);
    replica_volumes_run(a, record);
    if (from != NULL)
        state_host_orders_changed(a->state, from, a->index);
    apply_members_changed(a, vm);
}

static bool take_vm_fields(struct vm *vm, const struct vm_seen *seen, const char *at)
{
    const char *reason = seen->reason != NULL ? seen->reason : "", *held = vm->state_reason != NULL ? vm->state_reason : "";
    const char *program = seen->program != NULL ? seen->program : "", *before = vm->vmm_version != NULL ? vm->vmm_version : "";
    uint64_t generation = MIN(seen->generation, vm->generation); /* nobody has reached what was never wanted */
    if (vm->state == seen->state && vm->seen_generation == generation && vm->restarts == seen->restarts &&
        strcmp(reason, held) == 0 && strcmp(program, before) == 0)
        return false;
    if (vm->ha && seen->state == vm_state_RUNNING && vm->state != vm_state_RUNNING)
        OBJECT_TEXT(vm, vm, running_at, at);
    if (seen->state == vm_state_RUNNING)
        apply_vm_forget_tried(vm);
    OBJECT_SET(vm, vm, state, seen->state);
    OBJECT_SET(vm, vm, seen_generation, generation);
    OBJECT_SET(vm, vm, restarts, seen->restarts);
    apply_vm_is_made(vm);
    OBJECT_TEXT(vm, vm, state_reason, reason[0] != '\0' ? reason : NULL);
    OBJECT_TEXT(vm, vm, vmm_version, program[0] != '\0' ? program : NULL);
    if (!vm->disks_made && vm_has_pools(vm) && (seen->state == vm_state_RUNNING || seen->state == vm_state_PAUSED))
        OBJECT_SET(vm, vm, disks_made, true);
    return true;
}

static void see_progress(struct apply *a, const struct record *vm, const struct vm_seen *seen)
{
    for (size_t i = 0; i < vm->of_vm.operations.count; i++) {
        struct record *record = vm->of_vm.operations.items[i];
        struct operation *operation = record->operation;
        if (operation_has_task(operation))
            continue; /* that says for itself how it goes */
        bool same_step = seen->step == NULL || text_same(seen->step, operation->step);
        if (same_step && operation->progress_done == seen->progress_done &&
            operation->progress_total == seen->progress_total)
            continue;
        state_edit_begin(a->state, record);
        if (!same_step)
            OBJECT_TEXT(operation, operation, step, seen->step);
        OBJECT_SET(operation, operation, progress_done, seen->progress_done);
        OBJECT_SET(operation, operation, progress_total, seen->progress_total);
        state_edit_end(a->state, record, a->index);
        apply_event(a, event_type_UPDATED, record, "%s of %s: %s", operation_kind_desc.names[operation->kind],
                    operation->target_name, operation->step != NULL ? operation->step : "goes on");
    }
}

static void vm_deleted(struct apply *a, struct record *record, const struct record *host)
{
    operation_settle(a, record);
    tasks_vm_gone(a, record, "its VM was deleted");
    snapshots_vm_gone(a, record);
    volumes_vm_gone(a, record);
    own_disks_vm_gone(a, record, true);
    replica_vm_gone(a, record->vm);
    apply_event(a, event_type_DELETED, record, "VM %s is gone from host %s", record->common->name, host->common->name);
    state_host_orders_changed(a->state, host->common->id, a->index);
    apply_members_changed(a, record->vm);
    state_remove(a->state, record);
}

void apply_vm_forget_tried(struct vm *vm)
{
    if (vm->relocates == 0 && vm->tried.count == 0) /* absent in every VM that never had any */
        return;
    OBJECT_SET(vm, vm, relocates, 0);
    for (size_t i = 0; i < vm->tried.count; i++)
        free(vm->tried.items[i]);
    free(vm->tried.items);
    vm->tried = (struct string_list){0};
    object_mark(&vm_desc, vm, "tried");
}

bool vm_release_counts(const struct record *record, const struct vm_seen *seen)
{
    return seen->released && seen->state == vm_state_FAILED && record->vm->released != record->vm->epoch &&
           record->of_vm.operations.count == 0;
}

static void see_vm(struct apply *a, const struct record *host, const struct vm_seen *seen)
{
    struct record *record = map_get(&a->state->tables[object_kind_VM].by_id, seen->id);
    if (record != NULL && state_vm_went_on(a->state, record, host, seen, a->request->at))
        follow_host(a, record, host, seen);
    if (record == NULL || !believed(record, host, seen))
        return;
    state_edit_begin(a->state, record);
    bool changed = raise_generation(a, record, seen);
    changed = take_vm_fields(record->vm, seen, a->request->at) || changed;
    bool released = vm_release_counts(record, seen);
    if (released)
        OBJECT_SET(vm, record->vm, released, record->vm->epoch);
    changed |= released;
    state_edit_end(a->state, record, changed ? a->index : record->common->revision);
    if (record->vm->state == vm_state_DELETED) {
        OBJECT_SET(vm, record->vm, seen_generation, record->vm->generation);
        vm_deleted(a, record, host);
        return;
    }
    see_progress(a, record, seen);
    if (!changed)
        return;
    apply_event(a, event_type_UPDATED, record, "VM %s is %s on host %s%s%s", record->common->name,
                vm_state_desc.names[record->vm->state], host->common->name, record->vm->state_reason ? ": " : "",
                record->vm->state_reason ? record->vm->state_reason : "");
    replica_vm_seen(a, record->vm);
    replica_volumes_run(a, record);
    if (released)
        apply_event(a, event_type_UPDATED, record, "VM %s: host %s cannot start it, and gives it up%s", record->common->name,
                    host->common->name, state_vm_may_relocate(a->state, record->vm) ? ": another one may have it" : "");
    if (record->vm->state == vm_state_FAILED && state_vm_may_relocate(a->state, record->vm))
        state_host_orders_changed(a->state, host->common->id, a->index); /* they say that */
    volumes_settle(a, record);
    operation_settle(a, record);
}

void apply_seen(struct apply *a, struct command_seen *command)
{
    struct record *host = apply_find(a, object_kind_HOST, command->host.id, 0);
    if (host == NULL)
        return;
    if (host->host->state == host_state_LOST) {
        apply_refuse(a, -EPERM, ERROR_CONFLICT, "host %s was declared lost and has not come back under a new generation",
                     host->common->name);
        return;
    }
    if (a->check_only)
        return;
    apply_answer(a, host);
    if (is_late(host->host, &command->host))
        return;
    see_host(a, host, &command->host);
    for (size_t i = 0; i < command->vms.count; i++)
        see_vm(a, host, (const struct vm_seen *)command->vms.items + i);
    tasks_seen(a, host, &command->tasks);
    apply_images_seen(a, host, &command->images);
    apply_pools_seen(a, host, &command->pools);
    apply_volumes_seen(a, host, &command->volumes);
}

/* ---- marks ---- */

void apply_host_state(struct apply *a, struct command_host_state *command)
{
    struct record *record = apply_find(a, object_kind_HOST, command->id, command->from_revision);
    if (record == NULL)
        return;
    if (command->state > host_state_UNREACHABLE || record->host->state > host_state_UNREACHABLE) {
        apply_refuse(a, -ENOTSUP, ERROR_NOT_SUPPORTED, "hosts are suspected and declared lost by their lease only");
        return;
    }
    if (a->check_only)
        return;
    apply_answer(a, record);
    if (record->host->state == command->state)
        return;
    state_edit_begin(a->state, record);
    OBJECT_SET(host, record->host, state, command->state);
    OBJECT_TEXT(host, record->host, state_reason, command->reason);
    state_edit_end(a->state, record, a->index);
    if (command->state != host_state_UP)
        migrations_source_silent(a, record);
    apply_pools_tell(a, record);
    apply_event(a, event_type_UPDATED, record, "host %s is %s%s%s", record->common->name,
                host_state_desc.names[command->state], command->reason ? ": " : "", command->reason ? command->reason : "");
}
