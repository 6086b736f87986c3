/* Migrations in the simulated agents, step by step as compute/agent/task_migrate.h and the two VMMs do them.
 *
 *   target:  order as peer --ticks--> a VMM waits, told as ready ----- has all ----- runs: by the source's word, or when the
 *                                                                        ^           orders give it the VM by this migration
 *   source:  order as main, peer ready --ticks--> all sent, guest HELD --+-- proposes the hand-over, again and again
 *                                                                        there: ends, tells the target.  here: goes on
 *
 * On disk: which migration a VM leaves or arrives by. With the VMM, which outlives its agent: that it waits, has all, is
 * held. What is lost with the agent's memory is the task, which begins anew. From the proposal on no timeout decides: only an
 * answer, which is committed, or orders that no longer have the task. */
#include "tests/sim/sim_world.h"

#include <stdio.h>
#include <string.h>

#define WORD_MAX_US (200 * SIM_MS) /* from one VMM to the other */

static struct sim_world *world_of(const struct sim_agent *agent)
{
    return agent->cluster->world;
}

static bool has_task(const struct node_orders *orders, const char *operation)
{
    for (size_t i = 0; i < orders->tasks.count; i++)
        if (strcmp(((const struct task_order *)orders->tasks.items)[i].id, operation) == 0)
            return true;
    return false;
}

/* Can the two VMMs talk? */
static bool connected(const struct sim_agent *a, const struct sim_agent *b)
{
    const struct sim_network *network = &a->cluster->network;
    uint64_t now_us = a->cluster->sim.now_us;
    return !network->cut[a->actor.id][b->actor.id] && !network->cut[b->actor.id][a->actor.id] && a->frozen_until_us <= now_us &&
           b->frozen_until_us <= now_us;
}

/* The VM that arrives somewhere by @operation. */
static struct sim_vm *arriving_by(struct sim_agent *agent, const char *operation, struct sim_agent **ret_target)
{
    struct sim_world *world = world_of(agent);
    for (unsigned i = 0; i < world->agent_count; i++)
        for (unsigned k = 0; k < world->agents[i].vms_top; k++) {
            struct sim_vm *vm = &world->agents[i].vms[k];
            *ret_target = &world->agents[i];
            if (vm->used && strcmp(vm->arriving, operation) == 0)
                return vm;
        }
    return NULL;
}

/* ---- the target ---- */

struct word { /* of the source's VMM: run */
    struct sim_agent *source, *target;
    char operation[STATE_ID_BYTES];
};

static void word_arrives(struct sim *sim, struct sim_event *event)
{
    struct word *word = event->data;
    struct sim_agent *target;
    struct sim_vm *vm = arriving_by(word->source, word->operation, &target);
    if (word->target->frozen_until_us > sim->now_us) { /* in its socket until it wakes */
        sim_after(sim, word->target->frozen_until_us - sim->now_us, word_arrives, NULL, word)->drop = free;
        return;
    }
    if (vm != NULL && target == word->target && vm->waits && vm->has_all)
        sim_vm_take_over(target, vm);
    free(word);
}

static void tell_target(struct sim_agent *source, const char *operation)
{
    struct sim *sim = &source->cluster->sim;
    struct sim_agent *target;
    struct sim_vm *vm = arriving_by(source, operation, &target);
    if (vm == NULL || !connected(source, target) || (!world_of(source)->scripted && sim_chance(sim, 300)))
        return;
    struct word *word = NEW(struct word);
    *word = (struct word){.source = source, .target = target};
    snprintf(word->operation, sizeof word->operation, "%s", operation);
    sim_after(sim, sim_between(sim, SIM_MS, WORD_MAX_US), word_arrives, NULL, word)->drop = free;
}

static void work_target(struct sim_agent *agent, struct sim_task *task)
{
    struct sim_vm *vm = sim_agent_vm(agent, task->order.task.vm);
    if (vm == NULL || !sim_vm_arriving(vm) || strcmp(vm->arriving, task->order.id) != 0)
        return; /* what is left of it goes first, or it is here by now */
    if (vm->mind.end != PLAN_END_NONE) {
        sim_agent_end_task(agent, task, operation_state_FAILED, vm->mind.end_text);
        return;
    }
    task->ticks -= task->ticks > 0;
    if (!vm->waits || task->ticks > 0 || task->seen.ready)
        return;
    OBJECT_SET(task_seen, &task->seen, ready, true);
    OBJECT_TEXT(task_seen, &task->seen, endpoint, "192.0.2.2:1");
    sim_world_tell(agent->cluster, "%s: waits for VM %s", agent->name, vm->order.name);
}

/* ---- the source ---- */

static void propose(struct sim_agent *agent, const struct sim_task *task)
{
    struct sim_cluster *cluster = agent->cluster;
    struct world_message message = {.kind = WORLD_HANDOVER, .route = ROUTE_ID_node_handover, .number = ++agent->handovers};
    CLEANUP_FREE char *text = xasprintf("{\"host\":\"%s\",\"operation\":\"%s\",\"epoch\":%llu}", agent->id, task->order.id,
                                        (unsigned long long)task->order.task.epoch);
    struct sim_node *node = &cluster->nodes[sim_between(&cluster->sim, 1, cluster->node_count)];
    message.text = text;
    sim_world_send(cluster, &agent->actor, &node->actor, &message, sim_fsm_deliver);
    snprintf(agent->handover_of, sizeof agent->handover_of, "%s", task->order.id);
}

/* What is committed about the migration of @vm, whose guest stands still: two hosts never come to two conclusions. */
static void decided(struct sim_agent *agent, struct sim_vm *vm, bool there)
{
    vm->held = false;
    if (!there) {
        sim_world_tell(agent->cluster, "%s: VM %s goes on here", agent->name, vm->order.name);
        return;
    }
    sim_vm_ended(agent, vm, PLAN_PARTING_MIGRATED, "it has left");
    tell_target(agent, vm->leaving);
}

static void hold(struct sim_agent *agent, struct sim_task *task, struct sim_vm *vm)
{
    struct sim_agent *target;
    struct sim_vm *taken = arriving_by(agent, task->order.id, &target);
    if (taken == NULL || !taken->waits || !connected(agent, target)) {
        sim_agent_end_task(agent, task, operation_state_FAILED, "the connection is lost");
        return;
    }
    taken->has_all = true;
    vm->held = true;
    vm->held_ticks = 0;
    if (agent->cluster->mutations.world.runs_early)
        sim_vm_take_over(target, taken);
    sim_world_tell(agent->cluster, "%s: VM %s stands still, %s has all", agent->name, vm->order.name, target->name);
    propose(agent, task);
}

static bool goes_wrong(struct sim_agent *agent)
{
    if (agent->failing_migrations > 0) {
        agent->failing_migrations--;
        return true;
    }
    return !world_of(agent)->scripted && agent->cluster->sim.now_us < agent->cluster->quiet_us &&
           sim_chance(&agent->cluster->sim, 20);
}

static void work_source(struct sim_agent *agent, struct sim_task *task)
{
    const struct task *order = &task->order.task;
    struct sim_vm *vm = sim_agent_vm(agent, order->vm);
    bool leaves = vm != NULL && strcmp(vm->leaving, task->order.id) == 0;
    if (order->migration.handed_over != 0 && !(leaves && vm->held)) {
        sim_agent_end_task(agent, task, operation_state_SUCCEEDED, NULL);
    } else if (vm == NULL || vm->mind.forgotten || vm->mind.gone || vm->arriving[0] != '\0' || vm->order.epoch != order->epoch || !vm->process) {
        sim_agent_end_task(agent, task, operation_state_FAILED, "its VMM is not there");
    } else if (vm->held && leaves && agent->cluster->mutations.world.resumes && ++vm->held_ticks > 3) {
        decided(agent, vm, false);
        sim_agent_end_task(agent, task, operation_state_FAILED, "nobody answers");
    } else if (vm->held && leaves) {
        propose(agent, task);
    } else if (vm->leaving[0] != '\0' && !leaves) {
        return; /* by one before it: that ends first */
    } else if (task->order.cancel) {
        sim_agent_end_task(agent, task, operation_state_CANCELLED, "cancelled");
    } else if (order->peer_error != NULL) {
        sim_agent_end_task(agent, task, operation_state_FAILED, order->peer_error);
    } else {
        snprintf(vm->leaving, sizeof vm->leaving, "%s", task->order.id);
        if (order->peer_ready && goes_wrong(agent))
            sim_agent_end_task(agent, task, operation_state_FAILED, "the guest writes faster than can be sent");
        else if (order->peer_ready && task->ticks-- <= 1)
            hold(agent, task, vm);
    }
}

void sim_migrate_handed(struct sim_agent *agent, const struct world_message *message)
{
    struct sim_task *task = sim_agent_task(agent, agent->handover_of);
    struct sim_vm *vm = task != NULL ? sim_agent_vm(agent, task->order.task.vm) : NULL;
    if (message->code < 0 || message->number != agent->handovers || vm == NULL || !vm->held ||
        strcmp(vm->leaving, agent->handover_of) != 0 || task->seen.state != operation_state_RUNNING)
        return;
    bool there = strcmp(message->words, "there") == 0;
    decided(agent, vm, there);
    sim_agent_end_task(agent, task, there ? operation_state_SUCCEEDED : operation_state_FAILED, there ? NULL : "it stays");
}

/* ---- both ---- */

void sim_migrate_work(struct sim_agent *agent, struct sim_task *task)
{
    if (task->order.role == task_role_MAIN)
        work_source(agent, task);
    else
        work_target(agent, task);
}

void sim_migrate_left(struct sim_agent *agent, struct sim_vm *vm)
{
    decided(agent, vm, true);
}

static void take_incoming(struct sim_agent *agent, const struct incoming_order *order, uint64_t index)
{
    struct sim_vm *vm = sim_agent_vm(agent, order->vm.id) == NULL ? sim_agent_free_vm(agent) : NULL;
    if (vm == NULL)
        return; /* it is there, or what is left of it goes first: the order comes again */
    sim_vm_make(agent, vm, &order->vm, index);
    snprintf(vm->arriving, sizeof vm->arriving, "%s", order->operation);
}

/* Has an order of this answer named it, and was it obeyed? */
static bool was_given(const struct sim_vm *vm, const struct node_orders *orders)
{
    return !vm->mind.forgotten && vm->mind.confirmed && vm->mind.answer_index == orders->index;
}

void sim_migrate_orders(struct sim_agent *agent, const struct node_orders *orders)
{
    for (unsigned i = 0; i < agent->vms_top; i++) {
        struct sim_vm *vm = &agent->vms[i];
        if (vm->used && sim_vm_arriving(vm) && !has_task(orders, vm->arriving))
            sim_vm_forget(agent, vm);
        if (vm->used && vm->leaving[0] != '\0' && !has_task(orders, vm->leaving) && was_given(vm, orders)) {
            if (vm->held)
                decided(agent, vm, false);
            vm->leaving[0] = '\0';
        }
    }
    for (size_t i = 0; i < orders->incoming.count; i++)
        take_incoming(agent, (const struct incoming_order *)orders->incoming.items + i, orders->index);
}
