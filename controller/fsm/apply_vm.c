/* Making VMs, wanting another state of them, giving them to hosts.
 *
 *   wanted:   RUNNING <--start/resume, pause--> PAUSED        any --delete--> DELETED (for good)
 *                ^--start, stop--> STOPPED <--stop--+
 *
 * Each change of what is wanted raises the generation; each start raises the epoch as well, so that nothing that acts for
 * the last run can be taken for this one (a start from a replica does when the VM is given away: the point counts for its own epoch).
 * The owner (host, epoch) changes here and nowhere else. */
#include "controller/fsm/apply_task.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/fsm/address_pool.h"
#include "controller/fsm/pool_members.h"
#include "controller/fsm/replica_state.h"
#include "controller/fsm/volume_disks.h"
#include "scheduler/view.h"

#define MIB_SHIFT 20

bool apply_host_fits(const struct record *host, uint64_t memory_bytes, uint64_t vcpus, char *ret_why, size_t size)
{
    uint64_t memory_all = view_host_memory_bytes(host->host), vcpus_all = view_host_vcpus(host->host);
    uint64_t memory_used = host->of_host.committed_memory_bytes, vcpus_used = host->of_host.committed_vcpus;
    if (memory_used + memory_bytes > memory_all)
        apply_text(ret_why, size, "%s has no room: needs %llu MiB, %llu of %llu MiB are taken", host->common->name,
                   (unsigned long long)(memory_bytes >> MIB_SHIFT), (unsigned long long)(memory_used >> MIB_SHIFT),
                   (unsigned long long)(memory_all >> MIB_SHIFT));
    else if (vcpus_used + vcpus > vcpus_all)
        apply_text(ret_why, size, "%s has no room: needs %llu vCPUs, %llu of %llu are taken", host->common->name,
                   (unsigned long long)vcpus, (unsigned long long)vcpus_used, (unsigned long long)vcpus_all);
    else if (host->of_host.vms.count >= STATE_HOST_VMS_MAX)
        apply_text(ret_why, size, "%s holds %u VMs, the most that a host may", host->common->name, STATE_HOST_VMS_MAX);
    else
        return true;
    return false;
}

/* ---- security groups ---- */

/* Has @vm a security group with a rule that names a group of @member? */
static bool rules_name(const struct apply *a, const struct vm *vm, const struct vm *member)
{
    for (size_t i = 0; i < vm->nics.count; i++) {
        const struct vm_nic *nic = (const struct vm_nic *)vm->nics.items + i;
        for (size_t k = 0; k < nic->security_groups.count; k++) {
            const struct record *group = state_get(a->state, object_kind_SECURITY_GROUP, nic->security_groups.items[k]);
            for (size_t m = 0; group != NULL && m < group->security_group->rules.count; m++) {
                const struct security_rule *rule = (const struct security_rule *)group->security_group->rules.items + m;
                if (rule->remote_group != NULL && vm_in_group(member, rule->remote_group))
                    return true;
            }
        }
    }
    return false;
}

void apply_members_changed(struct apply *a, const struct vm *vm)
{
    bool in_any = false;
    for (size_t i = 0; i < vm->nics.count; i++)
        in_any |= ((const struct vm_nic *)vm->nics.items + i)->security_groups.count > 0;
    for (size_t i = 0; in_any && i < state_count(a->state, object_kind_HOST); i++) {
        const struct record *host = state_at(a->state, object_kind_HOST, i);
        bool concerned = false;
        for (size_t k = 0; !concerned && k < host->of_host.vms.count; k++)
            concerned = rules_name(a, host->of_host.vms.items[k]->vm, vm);
        if (concerned)
            state_host_orders_changed(a->state, host->common->id, a->index);
    }
}

/* ---- create ---- */

bool apply_vm_may_create(struct apply *a, struct vm *vm)
{
    if (!apply_may_insert(a, object_kind_VM, (const struct record_common *)vm))
        return false;
    if (vm->vcpus == 0 || vm->memory_bytes == 0) {
        apply_refuse(a, -EINVAL, ERROR_INVALID, "the VM has no size");
        return false;
    }
    if (vm->wanted != vm_wanted_RUNNING && vm->wanted != vm_wanted_STOPPED) {
        apply_refuse(a, -EINVAL, ERROR_INVALID, "a VM is made running or stopped");
        return false;
    }
    if (vm->image == NULL || state_get(a->state, object_kind_IMAGE, vm->image) == NULL) {
        apply_refuse_field(a, -ENOENT, ERROR_NOT_FOUND, "/image", "there is no image '%s'", vm->image ? vm->image : "");
        return false;
    }
    const struct image *image = state_get(a->state, object_kind_IMAGE, vm->image)->image;
    if (image->state != image_state_READY) {
        apply_refuse_field(a, -EAGAIN, ERROR_CONFLICT, "/image", "image '%s' cannot be used: it is %s%s%.300s", image->name,
                           image_state_desc.names[image->state], image->state_reason != NULL ? ": " : "",
                           image->state_reason != NULL ? image->state_reason : "");
        return false;
    }
    if (vm->flavor != NULL && state_get(a->state, object_kind_FLAVOR, vm->flavor) == NULL) {
        apply_refuse_field(a, -ENOENT, ERROR_NOT_FOUND, "/flavor", "there is no flavor '%s'", vm->flavor);
        return false;
    }
    if (vm->pin != NULL && state_get(a->state, object_kind_HOST, vm->pin) == NULL) {
        apply_refuse_field(a, -ENOENT, ERROR_NOT_FOUND, "/pin", "there is no host '%s'", vm->pin);
        return false;
    }
    if (vm->ha && state_voters(a->state) < STATE_HA_VOTERS_MIN) {
        apply_refuse_field(a, -EPERM, ERROR_CONFLICT, "/ha", "ha needs %u controllers with a vote, there are %u",
                           STATE_HA_VOTERS_MIN, state_voters(a->state));
        return false;
    }
    if (vm->replica_host != NULL) {
        apply_refuse_field(a, -EINVAL, ERROR_INVALID, "/replica_host",
                           "is given to a VM that has a host already: make it, and then `drover vm update NAME --replica-host HOST`");
        return false;
    }
    if (!apply_vm_pools_resolve(a, vm))
        return false;
    struct error error = {.code = 0};
    int rc = vm_nics_resolve(a->state, vm, &error);
    if (rc < 0) {
        apply_refuse_field(a, rc, error.kind, error.field, "%s", error.text);
        return false;
    }
    /* Names, not ids, are kept: a rename is refused while a VM uses the object. */
    OBJECT_TEXT(vm, vm, image, state_get(a->state, object_kind_IMAGE, vm->image)->common->name);
    if (vm->flavor != NULL)
        OBJECT_TEXT(vm, vm, flavor, state_get(a->state, object_kind_FLAVOR, vm->flavor)->common->name);
    if (vm->pin != NULL)
        OBJECT_TEXT(vm, vm, pin, state_get(a->state, object_kind_HOST, vm->pin)->common->name);
    return true;
}

/* The host that was decided on, unless it has gone or filled up since: then the VM waits for reconcile. */
static struct record *decided_host(struct apply *a, struct vm *vm)
{
    char why[APPLY_STEP_BYTES_MAX];
    struct record *host = vm->host != NULL ? map_get(&a->state->tables[object_kind_HOST].by_id, vm->host) : NULL;
    if (vm->host == NULL)
        return NULL;
    if (host == NULL)
        apply_text(why, sizeof why, "the host that was chosen has been removed meanwhile");
    else if (state_host_apart(host, vm))
        apply_text(why, sizeof why, "%s has been given a VM meanwhile that this one is kept apart from", host->common->name);
    else if (apply_host_has_pools(a, host, vm, why, sizeof why) &&
             apply_host_fits(host, vm->memory_bytes, vm->vcpus, why, sizeof why))
        return host;
    OBJECT_TEXT(vm, vm, placement, why);
    return NULL;
}

static void give_to_host(struct vm *vm, const struct record *host, uint64_t epoch)
{
    OBJECT_TEXT(vm, vm, host, host->common->id);
    OBJECT_TEXT(vm, vm, host_name, host->common->name);
    OBJECT_SET(vm, vm, epoch, epoch);
    OBJECT_SET(vm, vm, unmade, true);
    if (vm->handover != NULL)
        OBJECT_TEXT(vm, vm, handover, NULL);
    OBJECT_SET(vm, vm, state, vm_state_STARTING);
    OBJECT_TEXT(vm, vm, state_reason, NULL);
    OBJECT_TEXT(vm, vm, vmm_version, NULL);
    if (vm->recovering)
        OBJECT_SET(vm, vm, recovering, false);
}

void apply_vm_create(struct apply *a, struct command_vm_create *command)
{
    struct vm *vm = &command->vm;
    if (!apply_vm_may_create(a, vm) || !operation_may_begin(a, &command->operation, NULL))
        return;
    if (a->check_only)
        return;
    struct record *host = decided_host(a, vm);
    OBJECT_TEXT(vm, vm, created_at, a->request->at);
    OBJECT_SET(vm, vm, generation, 1);
    OBJECT_SET(vm, vm, boot, 0);
    OBJECT_SET(vm, vm, seen_generation, 0);
    OBJECT_SET(vm, vm, restarts, 0);
    if (vm->wanted == vm_wanted_STOPPED)
        OBJECT_SET(vm, vm, unstarted, true);
    if (host != NULL) {
        give_to_host(vm, host, 1);
    } else {
        OBJECT_TEXT(vm, vm, host, NULL);
        OBJECT_TEXT(vm, vm, host_name, NULL);
        OBJECT_SET(vm, vm, epoch, 0);
        OBJECT_SET(vm, vm, state, vm_state_PENDING);
    }
    struct record *record = state_insert(a->state, object_kind_VM, vm, a->index);
    apply_answer(a, record);
    if (host != NULL)
        apply_event(a, event_type_CREATED, record, "VM %s made, on host %s", record->common->name, host->common->name);
    else
        apply_event(a, event_type_CREATED, record, "VM %s made, waits for a host: %s", record->common->name,
                    record->vm->placement != NULL ? record->vm->placement : "not placed yet");
    operation_begin(a, &command->operation, record, 1);
    state_host_orders_changed(a->state, record->vm->host, a->index);
    apply_members_changed(a, record->vm);
}

/* ---- want ---- */

static bool may_want(struct apply *a, const struct record *record, const struct command_vm_want *command)
{
    const struct vm *vm = record->vm;
    enum operation_kind kind = command->operation.kind;
    bool off = vm->wanted == vm_wanted_STOPPED || (vm->wanted != vm_wanted_DELETED && state_vm_ran_out(vm));
    if (vm->wanted == vm_wanted_DELETED && command->wanted != vm_wanted_DELETED) {
        apply_refuse(a, -ENOENT, ERROR_CONFLICT, "VM '%s' is being deleted", vm->name);
        return false;
    }
    if (command->wanted == vm_wanted_DELETED && vm->wanted != vm_wanted_DELETED &&
        ((!command->force && snapshot_keeps_vm(a, vm)) || vm_is_cloned(a, record, operation_kind_VM_DELETE)))
        return false;
    if (command->wanted == vm_wanted_DELETED && !command->force && volume_untaken(a->state, vm) != NULL) {
        apply_refuse(a, -EBUSY, ERROR_IN_USE,
                     "VM '%s' was given to host %s, which takes its disks and volume '%s' from its replica, and has not said that it runs: start it and "
                     "wait for that; --force deletes it, and its volumes are where they were before", vm->name, vm->host_name,
                     volume_untaken(a->state, vm)->name);
        return false;
    }
    if (command->wanted != vm_wanted_DELETED && vm_is_in_making(a, record))
        return false;
    if (off && (command->reboot || command->wanted == vm_wanted_PAUSED || kind == operation_kind_VM_RESUME)) {
        apply_refuse(a, -EINVAL, ERROR_CONFLICT, "VM '%s' is off; start it", vm->name);
        return false;
    }
    if (command->reboot && (vm->wanted != vm_wanted_RUNNING || command->wanted != vm_wanted_RUNNING)) {
        apply_refuse(a, -EINVAL, ERROR_CONFLICT, "VM '%s' is paused; resume it before a reboot", vm->name);
        return false;
    }
    return true;
}

/* Change what is wanted. @owner: of the VM, where that may be lost; NULL: it is not. True: the VM has a new generation. */
static bool change_wanted(const struct state *state, struct vm *vm, const struct command_vm_want *command, const struct record *owner)
{
    bool host_lost = owner != NULL && owner->host->state == host_state_LOST;
    /* It waits for its host, which was shut down in order, and is to wait no longer (apply_lease.c). */
    bool elsewhere = host_lost && owner->host->going_down && !vm->recovering && command->wanted == vm_wanted_RUNNING &&
                     command->operation.kind == operation_kind_VM_START && lease_vm_recovers(state, vm, NULL);
    bool start = command->wanted == vm_wanted_RUNNING && (vm->wanted == vm_wanted_STOPPED || state_vm_ran_out(vm));
    bool retry = vm->state == vm_state_FAILED && vm->seen_generation >= vm->generation;
    /* The guest was given time, and now it is not. */
    bool harder = command->force && !vm->stop_forced && vm->seen_generation < vm->generation;
    if (command->wanted == vm->wanted && !command->reboot && !start && !retry && !harder && !elsewhere)
        return false;
    if (command->force || vm->stop_forced) /* absent in every VM that was never treated so */
        OBJECT_SET(vm, vm, stop_forced, command->force);
    OBJECT_SET(vm, vm, wanted, command->wanted);
    if (start)
        apply_vm_forget_tried(vm);
    if (start && vm->unstarted)
        OBJECT_SET(vm, vm, unstarted, false);
    OBJECT_SET(vm, vm, generation, vm->generation + 1);
    if (command->reboot)
        OBJECT_SET(vm, vm, boot, vm->boot + 1);
    if (vm->recovering) {
        /* It waits for another host; its own holds nothing that could be told to. */
        if (command->wanted == vm_wanted_STOPPED) {
            OBJECT_SET(vm, vm, recovering, false);
            OBJECT_SET(vm, vm, state, vm_state_STOPPED);
            OBJECT_SET(vm, vm, seen_generation, vm->generation);
        }
    } else if (host_lost && owner->host->going_down && vm->state == vm_state_PENDING && command->wanted == vm_wanted_STOPPED) {
        /* It waits for its host, and is known to be off until that is back (apply_lease.c). */
        OBJECT_SET(vm, vm, state, vm_state_STOPPED);
        OBJECT_TEXT(vm, vm, state_reason, NULL);
        OBJECT_SET(vm, vm, seen_generation, vm->generation);
    } else if ((start || elsewhere) && vm->host != NULL) {
        bool recovers = host_lost && lease_vm_recovers(state, vm, NULL);
        /* Its replica is one of this epoch, which goes on until the VM is given away. */
        if (!recovers || vm_disks_are_shared(state, vm, NULL))
            OBJECT_SET(vm, vm, epoch, vm->epoch + 1);
        if (vm->handover != NULL)
            OBJECT_TEXT(vm, vm, handover, NULL);
        OBJECT_SET(vm, vm, state, vm_state_STARTING);
        OBJECT_TEXT(vm, vm, state_reason, NULL);
        if (recovers) {
            OBJECT_SET(vm, vm, state, vm_state_PENDING);
            OBJECT_SET(vm, vm, recovering, true);
            OBJECT_SET(vm, vm, ha_window_restarts, 0); /* a person has looked at it */
        }
    } else if (vm->host == NULL) {
        /* Nobody holds it: nobody has to do anything for it to be off. */
        OBJECT_SET(vm, vm, state, command->wanted == vm_wanted_STOPPED ? vm_state_STOPPED : vm_state_PENDING);
        if (command->wanted == vm_wanted_STOPPED)
            OBJECT_SET(vm, vm, seen_generation, vm->generation);
    }
    return true;
}

/* No host holds anything of it any more, or ever did. */
void apply_vm_gone(struct apply *a, struct record *record)
{
    state_edit_begin(a->state, record);
    OBJECT_SET(vm, record->vm, state, vm_state_DELETED);
    OBJECT_SET(vm, record->vm, seen_generation, record->vm->generation);
    state_edit_end(a->state, record, a->index);
    operation_settle(a, record);
    tasks_vm_gone(a, record, "its VM was deleted");
    snapshots_vm_gone(a, record);
    volumes_vm_gone(a, record);
    own_disks_vm_gone(a, record, false);
    replica_vm_gone(a, record->vm);
    apply_event(a, event_type_DELETED, record, "VM %s is gone", record->common->name);
    state_host_orders_changed(a->state, record->vm->host, a->index);
    apply_members_changed(a, record->vm);
    state_remove(a->state, record);
}

void apply_vm_want(struct apply *a, struct command_vm_want *command)
{
    struct record *record = apply_find(a, object_kind_VM, command->id, command->if_revision);
    if (record == NULL || !may_want(a, record, command))
        return;
    bool overtakes = command->wanted != record->vm->wanted; /* and so needs no room beside the others */
    if (!operation_may_begin(a, &command->operation, overtakes ? NULL : record))
        return;
    if (a->check_only)
        return;
    if (overtakes)
        operation_overtake(a, record, command->operation.kind);
    const struct record *owner = state_get(a->state, object_kind_HOST, record->vm->host);
    bool host_lost = owner != NULL && owner->host->state == host_state_LOST;
    state_edit_begin(a->state, record);
    bool changed = change_wanted(a->state, record->vm, command, owner);
    state_edit_end(a->state, record, changed ? a->index : record->common->revision);
    apply_answer(a, record);
    if (changed) {
        apply_event(a, event_type_UPDATED, record, command->reboot ? "VM %s is to reboot" : "VM %s is wanted %s",
                    record->common->name, vm_wanted_desc.names[command->wanted]);
        state_host_orders_changed(a->state, record->vm->host, a->index);
    }
    operation_begin(a, &command->operation, record, record->vm->generation);
    /* A lost host forgets it when it is back; what may still write to a volume there keeps it from others until then. */
    bool gone = record->vm->host == NULL || (host_lost && (command->force || !volumes_outlive_host(record->vm)));
    if (record->vm->wanted == vm_wanted_DELETED && gone) {
        apply_vm_gone(a, record);
        return;
    }
    operation_settle(a, record);
    volumes_settle(a, record);
}

void apply_vm_start(struct apply *a, struct record *record)
{
    struct command_vm_want command = {0};
    if (record->vm->wanted == vm_wanted_DELETED)
        return;
    OBJECT_SET(command_vm_want, &command, wanted, vm_wanted_RUNNING);
    state_edit_begin(a->state, record);
    bool changed = change_wanted(a->state, record->vm, &command, NULL);
    state_edit_end(a->state, record, changed ? a->index : record->common->revision);
    if (!changed)
        return;
    apply_event(a, event_type_UPDATED, record, "VM %s is wanted %s", record->common->name, vm_wanted_desc.names[vm_wanted_RUNNING]);
    state_host_orders_changed(a->state, record->vm->host, a->index);
}

/* ---- place ---- */

static size_t vms_operations(const struct apply *a, const struct vm *vm)
{
    return state_get(a->state, object_kind_VM, vm->id)->of_vm.operations.count;
}

/* Its host could not start it: @to is the next one, or the same one again where there is no other. */
static void count_relocation(struct apply *a, struct vm *vm, const struct record *to)
{
    OBJECT_SET(vm, vm, relocates, vm->relocates + 1);
    if (strcmp(vm->host, to->common->id) == 0)
        return;
    lease_count_failover(vm, a->request->at);
    if (vm->tried.count >= STATE_RELOCATES_TRIED_MAX)
        return;
    vm->tried.items = xrealloc(vm->tried.items, (vm->tried.count + 1) * sizeof *vm->tried.items);
    vm->tried.items[vm->tried.count++] = xstrdup(vm->host);
    object_mark(&vm_desc, vm, "tried");
}

static bool may_place(struct apply *a, const struct vm *vm, const struct command_vm_place *command,
                      const struct record *host)
{
    const struct record *owner = state_get(a->state, object_kind_HOST, vm->host);
    char why[APPLY_STEP_BYTES_MAX];
    if (vm->epoch != command->from_epoch) {
        apply_refuse(a, -ESTALE, ERROR_CONFLICT, "VM '%s' has epoch %llu, not %llu", vm->name,
                     (unsigned long long)vm->epoch, (unsigned long long)command->from_epoch);
        return false;
    }
    if (vm->wanted == vm_wanted_DELETED) {
        apply_refuse(a, -ENOENT, ERROR_CONFLICT, "VM '%s' is being deleted", vm->name);
        return false;
    }
    /* The joint of "never twice": an owner that may still run it keeps it. */
    if (owner != NULL && !vm->recovering && !state_vm_released(vm)) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "VM '%s' belongs to host %s, which was not declared lost", vm->name,
                     vm->host_name);
        return false;
    }
    if (state_vm_released(vm) && (vms_operations(a, vm) > 0 || (owner != host && !state_vm_may_relocate(a->state, vm)))) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "VM '%s' may not be given to another host now", vm->name);
        return false;
    }
    if (command->give_up && !vm->recovering) {
        apply_refuse(a, -EINVAL, ERROR_CONFLICT, "VM '%s' is not recovering", vm->name);
        return false;
    }
    if (command->host == NULL)
        return true;
    if (host == NULL) {
        apply_refuse(a, -ENOENT, ERROR_NOT_FOUND, "there is no host with id %s", command->host);
        return false;
    }
    if (vm->pin != NULL && strcmp(vm->pin, host->common->name) != 0 && strcmp(vm->pin, host->common->id) != 0) {
        apply_refuse(a, -EINVAL, ERROR_CONFLICT, "VM '%s' is pinned to %s", vm->name, vm->pin);
        return false;
    }
    if (vm->recovering && !vm_disks_are_shared(a->state, vm, NULL) && replica_standby(a->state, vm) != host) {
        apply_refuse(a, -EBUSY, ERROR_NO_HOST, "host %s has no replica of the disks of VM '%s'", host->common->name, vm->name);
        return false;
    }
    if (owner == host && state_vm_released(vm))
        return true; /* it has room and all there already */
    if (state_host_apart(host, vm)) {
        apply_refuse(a, -EBUSY, ERROR_NO_HOST, "%s holds a VM that '%s' is kept apart from", host->common->name, vm->name);
        return false;
    }
    if (!apply_host_has_pools(a, host, vm, why, sizeof why) ||
        !apply_host_fits(host, vm->memory_bytes, vm->vcpus, why, sizeof why)) {
        apply_refuse(a, -ENOSPC, ERROR_NO_HOST, "%s", why);
        return false;
    }
    return true;
}

static void waiting_for(struct apply *a, const struct record *vm, const char *step)
{
    for (size_t i = 0; i < vm->of_vm.operations.count; i++) {
        struct record *operation = vm->of_vm.operations.items[i];
        if (operation_has_task(operation->operation))
            continue;
        state_edit_begin(a->state, operation); /* takes it out and puts it back at the same place */
        OBJECT_TEXT(operation, operation->operation, step, step);
        state_edit_end(a->state, operation, a->index);
    }
}

/* It is not started elsewhere again before somebody asks for it. */
static void give_up(struct vm *vm, const char *note)
{
    OBJECT_SET(vm, vm, recovering, false);
    if (state_vm_released(vm)) /* before its host was lost: no reason to place it, from now on */
        OBJECT_SET(vm, vm, released, 0);
    OBJECT_SET(vm, vm, state, vm_state_FAILED);
    char text[APPLY_STEP_BYTES_MAX];
    apply_text(text, sizeof text, "%s", note != NULL ? note : "it was given up");
    OBJECT_TEXT(vm, vm, state_reason, text);
    OBJECT_SET(vm, vm, seen_generation, vm->generation);
}

void apply_vm_place(struct apply *a, struct command_vm_place *command)
{
    struct record *record = apply_find(a, object_kind_VM, command->id, 0);
    struct record *host = command->host ? map_get(&a->state->tables[object_kind_HOST].by_id, command->host) : NULL;
    char step[APPLY_STEP_BYTES_MAX];
    if (record == NULL || !may_place(a, record->vm, command, host))
        return;
    if (a->check_only)
        return;
    bool released = state_vm_released(record->vm);
    bool again = released && host != NULL && strcmp(record->vm->host, host->common->id) == 0, unmade = record->vm->unmade;
    char *lost = (record->vm->recovering || released) && host != NULL ? xstrdup(record->vm->host) : NULL;
    bool from_replica = lost != NULL && !again && !vm_disks_are_shared(a->state, record->vm, NULL);
    state_edit_begin(a->state, record);
    OBJECT_TEXT(vm, record->vm, placement, command->note);
    if (lost != NULL && released)
        count_relocation(a, record->vm, host);
    else if (lost != NULL)
        lease_count_failover(record->vm, a->request->at);
    if (host != NULL)
        give_to_host(record->vm, host, record->vm->epoch + 1);
    if (again) /* it has what it has made of it */
        OBJECT_SET(vm, record->vm, unmade, unmade);
    if (from_replica)
        replica_taken(a, record->vm, lost);
    if (command->give_up)
        give_up(record->vm, command->note);
    state_edit_end(a->state, record, a->index);
    if (from_replica)
        replica_volumes_taken(a, record, NULL);
    state_host_orders_changed(a->state, lost, a->index);
    free(lost);
    apply_answer(a, record);
    if (command->give_up) {
        apply_event(a, event_type_UPDATED, record, "VM %s stays failed: %s", record->common->name, record->vm->state_reason);
        operation_settle(a, record);
        return;
    }
    if (host != NULL) {
        apply_event(a, event_type_UPDATED, record, "VM %s placed on host %s: %s", record->common->name,
                    host->common->name, command->note != NULL ? command->note : "");
        apply_text(step, sizeof step, "waiting for host %s", host->common->name);
        tasks_vm_gone(a, record, "its VM was given to another host");
        state_host_orders_changed(a->state, record->vm->host, a->index);
    } else {
        apply_event(a, event_type_UPDATED, record, "VM %s waits for a host: %s", record->common->name,
                    command->note != NULL ? command->note : "");
        apply_text(step, sizeof step, "waiting for a host: %s", command->note != NULL ? command->note : "");
    }
    waiting_for(a, record, step);
}
