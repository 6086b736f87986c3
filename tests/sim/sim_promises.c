/* What docs/ha.md promises about where VMs go, checked in the simulated cluster:
 *
 *   - two VMs of one anti-affinity group never execute on one host, whatever has been lost, migrated or started anew
 *   - of the VMs of lost hosts none is given a place while one with a higher ha_priority that fits as well gets none */
#include "tests/sim/sim_world.h"

#include <string.h>

#include "controller/fsm/command_codec.h"

/* ---- kept apart ---- */

void sim_promise_apart(struct sim_cluster *cluster, const struct sim_agent *agent)
{
    const struct sim_vm *first[WORLD_GROUPS + 1] = {NULL};
    for (unsigned i = 0; i < agent->vms_top; i++) {
        const struct sim_vm *vm = &agent->vms[i];
        unsigned group = vm->group != 0 && sim_vm_executes(agent, vm) ? vm->group : 0;
        if (group != 0 && first[group] != NULL)
            sim_violation(&cluster->sim, "VMs %s and %s are kept apart and execute both on %s", first[group]->order.name,
                          vm->order.name, agent->name);
        first[group] = vm;
    }
}

/* ---- the highest first ---- */

static uint32_t priority_of(const struct vm *vm)
{
    return OBJECT_HAS(vm, vm, ha_priority) ? vm->ha_priority : STATE_HA_PRIORITY;
}

static bool is_given_place(const struct reconcile_output *output, const struct vm *vm)
{
    bool found = false;
    for (unsigned i = 0; i < output->count && !found; i++) {
        struct command_message message = {0};
        if (command_decode(output->commands[i].data, output->commands[i].size, &message, NULL) < 0)
            continue;
        const struct command_vm_place *place = message.payload;
        found = message.desc->number == COMMAND_vm_place && place->host != NULL && strcmp(place->id, vm->id) == 0;
        command_message_finish(&message);
    }
    return found;
}

static bool fits(const struct state *state, const struct vm *vm)
{
    struct placement placement = {0};
    bool ok = decide_placement(state, vm, &placement, NULL) == 0 && placement.host != NULL;
    OBJECT_CLEAR(placement, &placement);
    return ok;
}

/* All by the state that the leader decided upon: what becomes of its commands is another matter. Labels that make a VM wait for another
 * one, and VMs that were started elsewhere too often, are none of random clients'. */
void sim_promise_priorities(struct sim_cluster *cluster, const struct state *state, const struct reconcile_output *output)
{
    const struct record_index *waiting = state_waiting(state);
    const struct vm *highest = NULL, *left = NULL; /* given a place; that fits and was given none: each the highest of its kind */
    for (size_t i = 0; i < waiting->count; i++) {
        const struct vm *vm = waiting->items[i]->vm;
        if (!vm->recovering || vm->ha_window_restarts >= STATE_HA_RESTARTS_MAX)
            continue;
        bool placed = is_given_place(output, vm);
        if (placed && (highest == NULL || priority_of(vm) > priority_of(highest)))
            highest = vm;
        if (!placed && (left == NULL || priority_of(vm) > priority_of(left)) && fits(state, vm))
            left = vm;
    }
    if (highest != NULL && left != NULL && priority_of(left) > priority_of(highest)) /* none above it has taken the room */
        sim_violation(&cluster->sim, "VM %s, of priority %u, is given a place before VM %s, of priority %u", highest->name,
                      priority_of(highest), left->name, priority_of(left));
}
