/* A model of an agent: it reports every 300 ms, and takes orders. Which of them count, and what is done about each VM, its own
 * code decides (compute/agent/agent_plan.h); what comes of that is in sim_vm.c.
 *
 * A VM that a migration brings is not its own before the orders say so, and one that leaves is not started again before it is
 * known whose it is (sim_migrate.c). A host that goes down in order says so and ends its VMs, then holds what is left under the
 * lease, says that, and is off.
 *
 * Tasks are in its memory alone: begun with their first order, done after some ticks or failed, ended when that is asked
 * for, told until their order is gone; begun anew after a crash. */
#include "tests/sim/sim_world.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define ANSWER_TIMEOUT_US SIM_SECOND
#define MIB (UINT64_C(1) << 20)

static struct sim_world *world_of(const struct sim_agent *agent)
{
    return agent->cluster->world;
}

struct sim_vm *sim_agent_vm(struct sim_agent *agent, const char *id)
{
    for (unsigned i = 0; i < agent->vms_top; i++)
        if (agent->vms[i].used && strcmp(agent->vms[i].order.id, id) == 0)
            return &agent->vms[i];
    return NULL;
}

struct sim_vm *sim_agent_free_vm(struct sim_agent *agent)
{
    for (unsigned i = 0; i < SIM_AGENT_VMS_MAX; i++)
        if (!agent->vms[i].used)
            return &agent->vms[i];
    return NULL;
}

unsigned sim_agent_work_ticks(struct sim_agent *agent)
{
    return agent->work_ticks > 0 ? (unsigned)agent->work_ticks : (unsigned)sim_between(&agent->cluster->sim, 1, 4);
}

static void go_down(struct sim_agent *agent)
{
    if (!agent->down || agent->going_down || --agent->down_ticks > 0)
        return;
    agent->going_down = true;
    agent->number++; /* the report under way does not say so: taken back */
    agent->sent_us = 0;
    sim_lease_pages(agent);
}

/* ---- tasks ---- */

struct sim_task *sim_agent_task(struct sim_agent *agent, const char *id)
{
    for (unsigned i = 0; i < SIM_AGENT_TASKS_MAX; i++)
        if (agent->tasks[i].used && strcmp(agent->tasks[i].order.id, id) == 0)
            return &agent->tasks[i];
    return NULL;
}

static void drop_task(struct sim_task *task)
{
    OBJECT_CLEAR(task_order, &task->order);
    OBJECT_CLEAR(task_seen, &task->seen);
    *task = (struct sim_task){0};
}

void sim_agent_end_task(struct sim_agent *agent, struct sim_task *task, enum operation_state state, const char *why)
{
    OBJECT_SET(task_seen, &task->seen, state, state);
    if (why != NULL)
        OBJECT_TEXT(task_seen, &task->seen, error_text, why);
    const struct sim_vm *vm = sim_agent_vm(agent, task->order.task.vm);
    sim_world_tell(agent->cluster, "%s: %s of VM %s %s%s%s", agent->name, task_kind_desc.names[task->order.task.kind],
                   vm != NULL ? vm->order.name : "?", operation_state_desc.names[state], why != NULL ? ": " : "",
                   why != NULL ? why : "");
}

static void work_task(struct sim_agent *agent, struct sim_task *task)
{
    struct sim *sim = &agent->cluster->sim;
    bool scripted = world_of(agent)->scripted;
    if (task->seen.state != operation_state_RUNNING)
        return;
    if (task->order.task.kind == task_kind_VM_MIGRATE) {
        sim_migrate_work(agent, task);
        return;
    }
    if (task->order.cancel && (scripted || sim_chance(sim, 700))) {
        sim_agent_end_task(agent, task, operation_state_CANCELLED, "cancelled");
        return;
    }
    const struct sim_vm *vm = sim_agent_vm(agent, task->order.task.vm);
    if (vm == NULL || vm->mind.gone || (!scripted && sim_chance(sim, 30))) {
        sim_agent_end_task(agent, task, operation_state_FAILED, "the disk is gone");
        return;
    }
    OBJECT_TEXT(task_seen, &task->seen, step, "at work");
    OBJECT_SET(task_seen, &task->seen, progress_total, 10);
    OBJECT_SET(task_seen, &task->seen, progress_done, 10 - MIN(task->ticks, 10u));
    if (task->ticks-- > 1)
        return;
    if (task->order.task.kind == task_kind_SNAPSHOT_CREATE) {
        OBJECT_SET(snapshot_result, &task->seen.snapshot, consistency, snapshot_consistency_CRASH);
        object_mark(&task_seen_desc, &task->seen, "snapshot");
    }
    sim_agent_end_task(agent, task, operation_state_SUCCEEDED, NULL);
}

static void take_task(struct sim_agent *agent, const struct task_order *order)
{
    struct sim_task *task = sim_agent_task(agent, order->id);
    for (unsigned i = 0; task == NULL && i < SIM_AGENT_TASKS_MAX; i++)
        if (!agent->tasks[i].used) {
            task = &agent->tasks[i];
            task->used = true;
            task->ticks = sim_agent_work_ticks(agent);
            OBJECT_TEXT(task_seen, &task->seen, id, order->id);
            OBJECT_SET(task_seen, &task->seen, role, order->role);
            OBJECT_SET(task_seen, &task->seen, state, operation_state_RUNNING);
        }
    if (task == NULL)
        return; /* it comes again */
    OBJECT_CLEAR(task_order, &task->order);
    OBJECT_COPY(task_order, &task->order, order);
}

static void take_tasks(struct sim_agent *agent, const struct node_orders *orders)
{
    for (unsigned i = 0; i < SIM_AGENT_TASKS_MAX; i++) {
        bool held = false;
        for (size_t k = 0; agent->tasks[i].used && k < orders->tasks.count; k++)
            held |= strcmp(((const struct task_order *)orders->tasks.items)[k].id, agent->tasks[i].order.id) == 0;
        if (agent->tasks[i].used && !held)
            drop_task(&agent->tasks[i]);
    }
    for (size_t i = 0; i < orders->tasks.count; i++)
        take_task(agent, (const struct task_order *)orders->tasks.items + i);
}

/* ---- orders ---- */

static bool ordered(const struct node_orders *orders, const char *id)
{
    for (size_t i = 0; i < orders->vms.count; i++)
        if (strcmp(((const struct vm_order *)orders->vms.items)[i].id, id) == 0)
            return true;
    return false;
}

/* As carry_out of compute/agent/agent.c. */
static void carry_out(struct sim_agent *agent, struct sim_vm *vm, const struct plan_change *change, const struct node_orders *orders)
{
    switch (change->kind) {
    case PLAN_ACCEPT:
        if (vm != NULL && vm->mind.gone) {
            sim_vm_drop(vm);
            vm = NULL;
        }
        if (vm == NULL) {
            vm = sim_agent_free_vm(agent);
            ASSERT(vm != NULL);
            sim_vm_make(agent, vm, change->order, orders->index);
            vm->missing = change->missing && change->order->disks.count > 0 && !vm->mind.gone;
        }
        /* fall through */
    case PLAN_KEEP:
        vm->mind.lease_generation = orders->generation;
        sim_vm_give_order(agent, vm, change->order, orders->index);
        break;
    case PLAN_REFUSE:
        sim_world_tell(agent->cluster, "%s: refuses an old order for VM %s", agent->name, change->order->name);
        break;
    case PLAN_FORGET:
        sim_vm_forget(agent, vm);
        break;
    case PLAN_DROP:
        sim_vm_drop(vm);
        break;
    case PLAN_LATER: /* it comes again */
    case PLAN_HALT:  /* no cluster is recovered here, and nothing astray */
    case PLAN_ORPHAN:
        break;
    }
}

static void take_vm_orders(struct sim_agent *agent, const struct node_orders *orders)
{
    struct plan_have have[SIM_AGENT_VMS_MAX];
    struct sim_vm *vms[SIM_AGENT_VMS_MAX];
    CLEANUP_FREE struct plan_change *changes = xcalloc(SIM_AGENT_VMS_MAX + orders->vms.count, sizeof *changes);
    size_t count = 0;
    for (unsigned i = 0; i < agent->vms_top; i++) {
        struct sim_vm *vm = &agent->vms[i];
        if (!vm->used || (sim_vm_arriving(vm) && !ordered(orders, vm->order.id)))
            continue; /* what becomes of one that arrives, the migration's own order says */
        vms[count] = vm;
        have[count++] = (struct plan_have){.id = vm->order.id,
                                           .order = &vm->order,
                                           .index = vm->index,
                                           .removing = vm->mind.removing || (vm->mind.forgotten && !vm->mind.gone),
                                           .gone = vm->mind.gone};
    }
    size_t n = agent_plan_orders(have, count, orders, changes);
    for (size_t i = 0; i < n; i++)
        carry_out(agent, changes[i].have == PLAN_NEW ? NULL : vms[changes[i].have], &changes[i], orders);
}

/* A late answer to a report of long ago would be none over HTTP; here it comes, and is known by its index. */
static void take_orders(struct sim_agent *agent, const struct node_orders *orders)
{
    if (orders->index < agent->have_index || !agent_plan_answer_ok(orders, agent->holder.generation))
        return;
    agent->have_index = MAX(agent->have_index, orders->index);
    take_vm_orders(agent, orders);
    for (unsigned i = 0; i < agent->vms_top; i++) {
        agent->vms[i].mind.may_relocate = false;
        for (size_t k = 0; agent->vms[i].used && k < orders->relocate.count; k++)
            agent->vms[i].mind.may_relocate |= strcmp(agent->vms[i].order.id, orders->relocate.items[k]) == 0;
    }
    sim_lease_orders(agent, orders);
    take_tasks(agent, orders);
    sim_migrate_orders(agent, orders);
}

void sim_agent_deliver(struct sim_actor *to, struct sim_actor *from UNUSED, void *data)
{
    struct sim_agent *agent = CONTAINER_OF(to, struct sim_agent, actor);
    struct world_message *message = data;
    struct node_orders orders;
    if (message->kind == WORLD_LEASE_ANSWER) {
        sim_lease_answered(agent, message);
        sim_world_message_free(message);
        return;
    }
    if (message->kind == WORLD_HANDED) {
        sim_migrate_handed(agent, message);
        sim_world_message_free(message);
        return;
    }
    if (message->number == agent->number)
        agent->sent_us = 0;
    if (message->code < 0) {
        agent->controller++;
    } else if (agent->going_down) {
        if (message->number == agent->number) {
            sim_world_tell(agent->cluster, "%s: the host is off", agent->name);
            sim_agent_host_reboot(agent);
        }
    } else if (OBJECT_DECODE(node_orders, message->text, strlen(message->text), OBJECT_LENIENT, &orders, NULL) == 0) {
        take_orders(agent, &orders);
        OBJECT_CLEAR(node_orders, &orders);
    }
    sim_world_message_free(message);
}

/* ---- reports ---- */

static void fill_report(struct sim_agent *agent, struct node_report *report)
{
    char boot_id[64], session[64];
    snprintf(boot_id, sizeof boot_id, "%s-%u", agent->name, agent->boots);
    snprintf(session, sizeof session, "%s-%llu", agent->name, (unsigned long long)agent->actor.incarnation);
    OBJECT_TEXT(node_report, report, session, session);
    OBJECT_SET(node_report, report, sequence, agent->number);
    OBJECT_TEXT(node_report, report, host, agent->id);
    OBJECT_TEXT(node_report, report, name, agent->name);
    OBJECT_TEXT(node_report, report, address, "192.0.2.1:7445");
    OBJECT_TEXT(node_report, report, boot_id, boot_id);
    OBJECT_TEXT(node_report, report, kvm, "svm");
    OBJECT_TEXT(node_report, report, version, "1");
    OBJECT_SET(node_report, report, cpus, 8);
    OBJECT_SET(node_report, report, memory_bytes, world_of(agent)->host_mib * MIB);
    OBJECT_SET(node_report, report, have_index, agent->have_index);
    OBJECT_SET(node_report, report, generation, agent->holder.generation);
    if (agent->arming != 0)
        OBJECT_SET(node_report, report, arming, agent->arming);
    if (agent->down)
        OBJECT_SET(node_report, report, going_down, true);
    if (agent->going_down)
        OBJECT_SET(node_report, report, leaving, true);
    for (unsigned i = 0; i < agent->vms_top; i++) {
        const struct sim_vm *vm = &agent->vms[i];
        if (!vm->used || sim_vm_arriving(vm))
            continue;
        struct vm_seen *seen = OBJECT_ADD(node_report, report, vms);
        OBJECT_TEXT(vm_seen, seen, id, vm->order.id);
        OBJECT_SET(vm_seen, seen, epoch, vm->order.epoch);
        OBJECT_SET(vm_seen, seen, generation, vm->generation);
        OBJECT_SET(vm_seen, seen, state, vm->mind.state);
        OBJECT_SET(vm_seen, seen, restarts, vm->restarts);
        if (vm->released >= vm->order.epoch)
            OBJECT_SET(vm_seen, seen, released, true);
        if (vm->mind.reason != NULL)
            OBJECT_TEXT(vm_seen, seen, reason, vm->mind.reason);
    }
    for (unsigned i = 0; i < SIM_AGENT_TASKS_MAX; i++)
        if (agent->tasks[i].used)
            OBJECT_COPY(task_seen, (struct task_seen *)OBJECT_ADD(node_report, report, tasks), &agent->tasks[i].seen);
}

static void send_report(struct sim_agent *agent)
{
    struct sim_cluster *cluster = agent->cluster;
    struct node_report report = {0};
    struct bytes_writer json = {0};
    struct world_message message = {.kind = WORLD_REPORT, .number = ++agent->number};
    fill_report(agent, &report);
    OBJECT_ENCODE(node_report, &report, &json);
    bytes_put_u8(&json, 0);
    message.text = (char *)json.data;
    agent->sent_us = sim_local_us(&cluster->sim, &agent->actor);
    if (!world_of(agent)->scripted && sim_chance(&cluster->sim, 300))
        agent->controller++; /* a proxy between, or a changed list */
    struct sim_node *node = &cluster->nodes[1 + agent->controller % cluster->node_count];
    sim_world_send(cluster, &agent->actor, &node->actor, &message, sim_fsm_deliver);
    OBJECT_CLEAR(node_report, &report);
    bytes_writer_finish(&json);
}

static void tick(struct sim *sim, struct sim_event *event)
{
    struct sim_agent *agent = CONTAINER_OF(event->actor, struct sim_agent, actor);
    for (unsigned i = 0; i < agent->vms_top && !agent->going_down; i++)
        if (agent->vms[i].used) {
            sim_vm_tick(agent, &agent->vms[i]);
            sim_vm_chance(agent, &agent->vms[i]);
        }
    for (unsigned i = 0; i < SIM_AGENT_TASKS_MAX && !agent->going_down; i++)
        if (agent->tasks[i].used)
            work_task(agent, &agent->tasks[i]);
    go_down(agent);
    if (agent->sent_us != 0 && sim_local_us(sim, &agent->actor) > agent->sent_us + ANSWER_TIMEOUT_US) {
        agent->sent_us = 0;
        agent->controller++;
    }
    if (agent->sent_us == 0)
        send_report(agent);
    sim_after(sim, sim_true_us(&agent->actor, SIM_AGENT_TICK_US), tick, &agent->actor, NULL);
}

/* ---- life ---- */

void sim_agent_init(struct sim_agent *agent, struct sim_cluster *cluster, unsigned number)
{
    agent->cluster = cluster;
    agent->actor.id = WORLD_AGENT_ID + number;
    agent->actor.kind = "agent";
    agent->actor.clock_offset_us = sim_between(&cluster->sim, SIM_SECOND, 100 * SIM_SECOND);
    int64_t drift_ppm = cluster->scenario->drift_ppm > 0 ? cluster->scenario->drift_ppm : 500;
    agent->actor.clock_drift_ppm = (int64_t)sim_below(&cluster->sim, 2 * (uint64_t)drift_ppm + 1) - drift_ppm;
    if (cluster->scenario->drift_worst)
        agent->actor.clock_drift_ppm = -drift_ppm;
    snprintf(agent->id, sizeof agent->id, "0000000%u-0000-4000-8000-00000000aaaa", number % 10);
    snprintf(agent->name, sizeof agent->name, "n%u", number + 1);
}

void sim_agent_start(struct sim_agent *agent)
{
    if (agent->actor.up || agent->burnt)
        return;
    agent->actor.up = true;
    for (unsigned i = 0; i < agent->vms_top; i++)
        if (agent->vms[i].used)
            sim_vm_load(agent, &agent->vms[i]);
    agent->controller = (unsigned)sim_below(&agent->cluster->sim, agent->cluster->node_count);
    sim_after(&agent->cluster->sim, sim_between(&agent->cluster->sim, SIM_MS, SIM_AGENT_TICK_US), tick, &agent->actor, NULL);
    sim_lease_agent_start(agent);
}

void sim_agent_crash(struct sim_agent *agent)
{
    if (!agent->actor.up)
        return;
    agent->actor.up = false;
    agent->actor.incarnation++;
    agent->have_index = agent->sent_us = 0;
    agent->down = agent->going_down = false;
    for (unsigned i = 0; i < SIM_AGENT_TASKS_MAX; i++)
        drop_task(&agent->tasks[i]);
    sim_log(&agent->cluster->sim, "agent %s is gone", agent->name);
}

void sim_agent_host_reboot(struct sim_agent *agent)
{
    sim_agent_crash(agent);
    agent->boots++;
    for (unsigned i = 0; i < agent->vms_top; i++)
        if (agent->vms[i].used)
            sim_vm_kill(agent, &agent->vms[i], -1, "its host goes down");
}

static void thawed(struct sim *sim UNUSED, struct sim_event *event UNUSED)
{
    /* what runs again is looked at after each event of the world's */
}

void sim_agent_freeze(struct sim_agent *agent, uint64_t until_us)
{
    struct sim *sim = &agent->cluster->sim;
    agent->frozen_until_us = agent->actor.paused_until_us = MAX(until_us, sim->now_us);
    sim_after(sim, agent->frozen_until_us - sim->now_us, thawed, NULL, NULL);
}

void sim_agent_host_leave(struct sim_agent *agent)
{
    if (!agent->actor.up || agent->down)
        return;
    agent->down = true;
    agent->down_ticks = world_of(agent)->scripted ? 3 : 1 + (unsigned)sim_below(&agent->cluster->sim, 20);
    agent->number++; /* the report under way does not say so: taken back */
    agent->sent_us = 0;
}

void sim_agent_finish(struct sim_agent *agent)
{
    for (unsigned i = 0; i < agent->vms_top; i++)
        OBJECT_CLEAR(vm_order, &agent->vms[i].order);
    for (unsigned i = 0; i < SIM_AGENT_TASKS_MAX; i++)
        drop_task(&agent->tasks[i]);
}
