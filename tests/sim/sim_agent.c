/* A model of an agent: it reports every 300 ms, takes orders, and brings its VMs step by step to what is wanted.
 *
 * Of a VM it keeps order, state and generation on disk; the VMM is a process of its own that outlives the agent; only
 * what is under way is lost with its memory, and begun again. Rules: orders older than the newest known are ignored, an
 * order of a lower epoch or generation is refused, an order "deleted" for a VM it does not have is reported as done.
 *
 * A VM that a migration brings is not its own before the orders say so, and one that leaves is not started again before it is
 * known whose it is (sim_migrate.c). A host that goes down in order says so and ends its VMs, then holds what is left under the
 * lease, says that, and is off.
 *
 * Tasks are in its memory alone: begun with their first order, done after some ticks or failed, ended when that is asked
 * for, told until their order is gone; begun anew after a crash.
 *
 *   wanted running: (none) --start--> STARTING --ticks--> RUNNING | FAILED       RUNNING --guest powers off--> STOPPED
 *   wanted stopped: RUNNING --> STOPPING --ticks--> STOPPED      wanted deleted: any --> DELETED (kept until not ordered) */
#include "tests/sim/sim_world.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define TICK_US (300 * SIM_MS)
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

/* ---- VMMs ---- */

void sim_agent_vmm_start(struct sim_agent *agent, struct sim_vm *vm)
{
    struct sim_world *world = world_of(agent);
    struct world_vm *known = sim_world_vm_by_id(world, vm->order.id);
    for (unsigned i = 0; i < world->agent_count; i++) {
        const struct sim_vm *other = sim_agent_vm(&world->agents[i], vm->order.id);
        /* One that starts under a lease that has run out executes nothing; sim_lease_check sees what does. */
        if (other != NULL && !vm->order.ha && sim_vm_executes(&world->agents[i], other))
            sim_violation(&agent->cluster->sim, "VM %s is started on %s and runs on %s already", vm->order.name,
                          agent->name, world->agents[i].name);
    }
    vm->process = true;
    vm->paused = false;
    vm->run_epoch = vm->order.epoch;
    vm->boot_done = vm->order.boot;
    vm->page_ns = vm->order.ha ? 1 : 0;
    sim_lease_pages(agent);
    if (known == NULL) { /* its creation is not acknowledged yet: known by name */
        known = sim_world_vm(world, vm->order.name);
    }
    if (known != NULL)
        known->started_epoch = MAX(known->started_epoch, vm->order.epoch);
    sim_world_tell(agent->cluster, "%s: VM %s runs, epoch %llu", agent->name, vm->order.name,
                   (unsigned long long)vm->order.epoch);
}

void sim_agent_vmm_kill(struct sim_agent *agent, struct sim_vm *vm, const char *why)
{
    if (vm->process)
        sim_world_tell(agent->cluster, "%s: VM %s ends: %s", agent->name, vm->order.name, why);
    vm->process = vm->paused = vm->held = vm->waits = vm->has_all = false;
}

struct sim_vm *sim_agent_free_vm(struct sim_agent *agent)
{
    unsigned i = 0;
    while (i < agent->vms_top && agent->vms[i].used)
        i++;
    if (i == SIM_AGENT_VMS_MAX)
        return NULL;
    agent->vms_top = MAX(agent->vms_top, i + 1);
    return &agent->vms[i];
}

/* Has it been given to another host by a newer epoch? */
static bool owned_elsewhere(const struct sim_agent *agent, const struct sim_vm *vm)
{
    for (unsigned id = 1; id <= agent->cluster->node_count; id++) {
        struct sim_node *node = &agent->cluster->nodes[id];
        const struct record *held = node->actor.up ? state_get(sim_fsm_state(node), object_kind_VM, vm->order.id) : NULL;
        if (held != NULL && held->vm->epoch > vm->order.epoch && held->vm->host != NULL && strcmp(held->vm->host, agent->id) != 0)
            return true;
    }
    return false;
}

static void remove_disks(struct sim_agent *agent, const struct sim_vm *vm)
{
    const struct world_vm *known = sim_world_vm(world_of(agent), vm->order.name);
    if (known != NULL && !known->deletion_asked && vm->run_epoch > 0 && !owned_elsewhere(agent, vm))
        sim_violation(&agent->cluster->sim, "%s removes the disks of VM %s, which nobody asked for", agent->name,
                      vm->order.name);
}

/* ---- towards what is wanted ---- */

static void reach(struct sim_vm *vm, enum vm_state state, const char *reason)
{
    vm->state = state;
    vm->reason = reason;
    vm->generation = vm->order.generation;
}

static unsigned work_ticks(struct sim_agent *agent)
{
    return agent->work_ticks > 0 ? (unsigned)agent->work_ticks : (unsigned)sim_between(&agent->cluster->sim, 1, 4);
}

/* True while the work is under way. */
static bool working(struct sim_agent *agent, struct sim_vm *vm, enum vm_state meanwhile)
{
    if (vm->state != meanwhile || vm->busy_ticks == 0) {
        vm->state = meanwhile;
        vm->reason = NULL;
        vm->busy_ticks = 1 + work_ticks(agent);
    }
    return --vm->busy_ticks > 0;
}

static void start_it(struct sim_agent *agent, struct sim_vm *vm)
{
    sim_agent_vmm_kill(agent, vm, "it is of an older epoch");
    if (!vm->confirmed)
        return; /* since it was written down it may have gone elsewhere */
    if (working(agent, vm, vm_state_STARTING))
        return;
    bool fails = agent->failing_starts > 0 || (!world_of(agent)->scripted && sim_chance(&agent->cluster->sim, 30));
    agent->failing_starts -= agent->failing_starts > 0;
    if (fails) {
        vm->run_epoch = vm->order.epoch;
        reach(vm, vm_state_FAILED, "the kernel cannot be fetched");
        return;
    }
    sim_agent_vmm_start(agent, vm);
    if (vm->order.wanted == vm_wanted_PAUSED)
        vm->paused = true;
    reach(vm, vm->paused ? vm_state_PAUSED : vm_state_RUNNING, NULL);
}

static void want_on(struct sim_agent *agent, struct sim_vm *vm)
{
    if (!vm->process && vm->leaving[0] != '\0')
        return; /* whose it is is not known yet */
    bool ended = !vm->process && (vm->state == vm_state_STOPPED || vm->state == vm_state_FAILED);
    if (vm->run_epoch != vm->order.epoch || (ended && vm->generation < vm->order.generation &&
                                             vm->order.wanted == vm_wanted_RUNNING)) {
        start_it(agent, vm);
        return;
    }
    if (ended) {
        vm->generation = vm->order.generation;
        return;
    }
    if (!vm->process) { /* the host went down under it */
        if (vm->state != vm_state_STARTING)
            vm->restarts++;
        start_it(agent, vm);
        return;
    }
    if (vm->boot_done < vm->order.boot) {
        sim_world_tell(agent->cluster, "%s: VM %s reboots", agent->name, vm->order.name);
        vm->boot_done = vm->order.boot;
    }
    vm->paused = vm->order.wanted == vm_wanted_PAUSED;
    reach(vm, vm->paused ? vm_state_PAUSED : vm_state_RUNNING, NULL);
}

static void want_off(struct sim_agent *agent, struct sim_vm *vm)
{
    if (vm->process && working(agent, vm, vm_state_STOPPING))
        return;
    sim_agent_vmm_kill(agent, vm, "it is stopped");
    vm->run_epoch = vm->order.epoch;
    reach(vm, vm_state_STOPPED, NULL);
}

static void want_gone(struct sim_agent *agent, struct sim_vm *vm)
{
    if (vm->state == vm_state_DELETED)
        return;
    sim_agent_vmm_kill(agent, vm, "it is deleted");
    remove_disks(agent, vm);
    reach(vm, vm_state_DELETED, NULL);
}

void sim_agent_drop_vm(struct sim_agent *agent, struct sim_vm *vm)
{
    bool migrates = vm->leaving[0] != '\0' || vm->arriving[0] != '\0';
    sim_migrate_forget(agent, vm);
    sim_agent_vmm_kill(agent, vm, "it is to be forgotten");
    if (vm->state != vm_state_DELETED && !migrates)
        remove_disks(agent, vm);
    OBJECT_CLEAR(vm_order, &vm->order);
    *vm = (struct sim_vm){0};
}

/* Some guests need more time than they have, and are held with the lease. */
static void shut_guest_down(struct sim_agent *agent, struct sim_vm *vm)
{
    if (!vm->process || agent->down_ticks > 1 || (!world_of(agent)->scripted && sim_chance(&agent->cluster->sim, 200)))
        return;
    sim_agent_vmm_kill(agent, vm, "its guest is shut down with the host");
    vm->state = vm_state_STOPPING;
    vm->reason = "its host goes down";
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

static void work(struct sim_agent *agent, struct sim_vm *vm)
{
    if (agent->down && !vm->forgotten && vm->order.wanted != vm_wanted_DELETED) {
        if (vm->arriving[0] == '\0' && vm->leaving[0] == '\0')
            shut_guest_down(agent, vm);
        return;
    }
    if (vm->forgotten) {
        if (vm->busy_ticks == 0 || --vm->busy_ticks == 0)
            sim_agent_drop_vm(agent, vm);
        return;
    }
    bool wanted_on = vm->order.wanted == vm_wanted_RUNNING || vm->order.wanted == vm_wanted_PAUSED;
    if (vm->arriving[0] != '\0' || (vm->held && wanted_on))
        return;
    switch ((enum vm_wanted)vm->order.wanted) {
    case vm_wanted_RUNNING:
    case vm_wanted_PAUSED:
        want_on(agent, vm);
        break;
    case vm_wanted_STOPPED:
        want_off(agent, vm);
        break;
    default:
        want_gone(agent, vm);
    }
    if (vm->process && !vm->paused && !world_of(agent)->scripted && agent->cluster->sim.now_us < agent->cluster->quiet_us &&
        sim_chance(&agent->cluster->sim, 3)) {
        sim_agent_vmm_kill(agent, vm, "the guest powers off");
        vm->state = vm_state_STOPPED;
        vm->reason = "the guest powered off";
    }
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
    if (sim_agent_vm(agent, task->order.task.vm) == NULL || (!scripted && sim_chance(sim, 30))) {
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
            task->ticks = work_ticks(agent);
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

static void take_order(struct sim_agent *agent, const struct vm_order *order)
{
    struct sim_vm *vm = sim_agent_vm(agent, order->id);
    if (vm == NULL)
        vm = sim_agent_free_vm(agent);
    ASSERT(vm != NULL);
    if (vm->used && (order->epoch < vm->order.epoch || order->generation < vm->order.generation)) {
        sim_world_tell(agent->cluster, "%s: refuses an old order for VM %s", agent->name, order->name);
        return;
    }
    if (vm->used && vm->arriving[0] != '\0')
        sim_migrate_arrived(agent, vm, order);
    if (vm->used && order->epoch > vm->order.epoch) { /* a new start, here */
        if (vm->held)
            sim_agent_vmm_kill(agent, vm, "it is to start anew");
        vm->leaving[0] = '\0';
    }
    vm->used = vm->confirmed = true;
    vm->forgotten = false;
    OBJECT_CLEAR(vm_order, &vm->order);
    OBJECT_COPY(vm_order, &vm->order, order);
}

static bool ordered(const struct node_orders *orders, const char *id)
{
    for (size_t i = 0; i < orders->vms.count; i++)
        if (strcmp(((const struct vm_order *)orders->vms.items)[i].id, id) == 0)
            return true;
    return false;
}

static void take_orders(struct sim_agent *agent, const struct node_orders *orders)
{
    if (orders->index < agent->have_index || orders->generation < agent->holder.generation)
        return;
    agent->have_index = MAX(agent->have_index, orders->index);
    for (size_t i = 0; i < orders->vms.count; i++)
        take_order(agent, (const struct vm_order *)orders->vms.items + i);
    for (size_t i = 0; i < orders->forget.count; i++) {
        struct sim_vm *vm = sim_agent_vm(agent, orders->forget.items[i]);
        if (vm != NULL && ((world_of(agent)->scripted && agent->work_ticks == 0) || !vm->process || vm->held)) {
            sim_agent_drop_vm(agent, vm);
        } else if (vm != NULL && !vm->forgotten) {
            vm->forgotten = true;
            vm->busy_ticks = work_ticks(agent);
        }
    }
    for (unsigned i = 0; i < agent->vms_top; i++)
        if (agent->vms[i].used && agent->vms[i].state == vm_state_DELETED && !ordered(orders, agent->vms[i].order.id))
            sim_agent_drop_vm(agent, &agent->vms[i]);
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
        if (!vm->used || vm->arriving[0] != '\0')
            continue;
        struct vm_seen *seen = OBJECT_ADD(node_report, report, vms);
        OBJECT_TEXT(vm_seen, seen, id, vm->order.id);
        OBJECT_SET(vm_seen, seen, epoch, vm->order.epoch);
        OBJECT_SET(vm_seen, seen, generation, vm->generation);
        OBJECT_SET(vm_seen, seen, state, vm->state);
        OBJECT_SET(vm_seen, seen, restarts, vm->restarts);
        if (vm->reason != NULL)
            OBJECT_TEXT(vm_seen, seen, reason, vm->reason);
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
        if (agent->vms[i].used)
            work(agent, &agent->vms[i]);
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
    sim_after(sim, sim_true_us(&agent->actor, TICK_US), tick, &agent->actor, NULL);
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
        agent->vms[i].arrival_lost = agent->vms[i].used && agent->vms[i].arriving[0] != '\0' && !agent->vms[i].waits;
    agent->controller = (unsigned)sim_below(&agent->cluster->sim, agent->cluster->node_count);
    sim_after(&agent->cluster->sim, sim_between(&agent->cluster->sim, SIM_MS, TICK_US), tick, &agent->actor, NULL);
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
    for (unsigned i = 0; i < agent->vms_top; i++)
        agent->vms[i].busy_ticks = 0, agent->vms[i].forgotten = agent->vms[i].confirmed = false;
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
            sim_agent_vmm_kill(agent, &agent->vms[i], "its host goes down");
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
