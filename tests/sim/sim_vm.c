/* A VM of a simulated host. What is done about it the agent's own code decides (compute/agent/agent_plan.h); here is what its
 * agent knows of it, and what comes of each step: a model of compute/agent/vm.c, whose words are used.
 *
 * What is written down, order and outcome, and its VMM live on when the agent dies; all else (struct sim_vm_mind) is begun anew
 * with what agent_plan_recall says of it. Images, taps and disks are ticks of the agent's; a guest that is asked to shut down
 * takes some, and one that is deaf does not do so at all. */
#include "tests/sim/sim_world.h"

#include <string.h>

#define STOP_US (3 * SIM_SECOND) /* from asking a VMM to end to its being killed */
#define STEPS_MAX 32u            /* in one tick; more would be a circle */

static struct sim_world *world_of(const struct sim_agent *agent)
{
    return agent->cluster->world;
}

static uint64_t now_ms(const struct sim_agent *agent)
{
    return sim_local_us(&agent->cluster->sim, &agent->actor) / SIM_MS;
}

static bool has_vmm(const struct sim_vm *vm)
{
    return vm->process || vm->waits;
}

/* Something that chance does, in random histories and while there are faults. */
static bool by_chance(const struct sim_agent *agent, unsigned per_thousand)
{
    struct sim_cluster *cluster = agent->cluster;
    return !world_of(agent)->scripted && cluster->sim.now_us < cluster->quiet_us && sim_chance(&cluster->sim, per_thousand);
}

bool sim_vm_arriving(const struct sim_vm *vm)
{
    return vm->arriving[0] != '\0' && !vm->mind.owned;
}

/* ---- its VMM ---- */

void sim_vm_run(struct sim_agent *agent, struct sim_vm *vm)
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
    vm->waits = vm->has_all = vm->paused = false;
    sim_lease_pages(agent);
    if (known == NULL) { /* its creation is not acknowledged yet: known by name */
        known = sim_world_vm(world, vm->order.name);
    }
    if (known != NULL)
        known->started_epoch = MAX(known->started_epoch, vm->order.epoch);
    vm->group = known != NULL ? known->group : 0;
    sim_world_tell(agent->cluster, "%s: VM %s runs, epoch %llu", agent->name, vm->order.name,
                   (unsigned long long)vm->order.epoch);
}

void sim_vm_kill(struct sim_agent *agent, struct sim_vm *vm, int parting, const char *why)
{
    if (vm->process)
        sim_world_tell(agent->cluster, "%s: VM %s ends: %s", agent->name, vm->order.name, why);
    vm->process = vm->paused = vm->held = vm->waits = vm->has_all = false;
    vm->parting = parting;
}

/* An attempt to have it as wanted came to nothing. */
static void failed(struct sim_agent *agent, struct sim_vm *vm, enum plan_end end, const char *text)
{
    agent_plan_failed(&vm->mind.tries, &vm->order, end, now_ms(agent));
    vm->mind.end = end;
    vm->mind.end_text = text;
    vm->mind.prepared = false;
}

void sim_vm_ended(struct sim_agent *agent, struct sim_vm *vm, int parting, const char *why)
{
    struct sim_vm_mind *mind = &vm->mind;
    bool wanted_end = mind->stop_asked || mind->shutdown_asked || parting == PLAN_PARTING_MIGRATED, answered = mind->answers;
    sim_vm_kill(agent, vm, parting, why);
    mind->answers = mind->shutdown_asked = mind->stop_asked = mind->kill_sent = mind->stale = false;
    mind->busy_with = PLAN_REST;
    if (parting == PLAN_PARTING_MIGRATED) {
        mind->left = true;
        mind->left_epoch = vm->order.epoch;
    }
    if (mind->owned)
        vm->arriving[0] = '\0', mind->owned = false;
    if (wanted_end)
        mind->end = PLAN_END_NONE;
    else if (!answered)
        failed(agent, vm, PLAN_END_NOT_STARTED, why);
    else if (parting == 0)
        failed(agent, vm, PLAN_END_CLEAN, why);
    else
        failed(agent, vm, PLAN_END_BROKEN, why);
}

/* ---- what comes of the steps ---- */

/* The outcome of the present order: it is written down. */
static void settle(struct sim_agent *agent, struct sim_vm *vm, enum vm_state state, const char *reason)
{
    vm->mind.state = vm->kept_state = state;
    vm->mind.reason = reason;
    vm->generation = vm->order.generation;
    vm->kept_process = has_vmm(vm);
    vm->kept_boots = agent->boots;
}

/* What has failed is called failed until it runs. */
static void progress(struct sim_vm *vm)
{
    if (vm->mind.state == vm_state_FAILED && vm->mind.end != PLAN_END_NONE)
        return;
    vm->mind.state = vm_state_STARTING;
    vm->mind.reason = NULL;
}

/* True while the work for @step is under way. */
static bool is_busy(struct sim_vm *vm, enum plan_step step, unsigned ticks)
{
    if (vm->mind.busy_with != step) {
        vm->mind.busy_with = step;
        vm->mind.busy_ticks = 1 + ticks;
    }
    if (--vm->mind.busy_ticks > 0)
        return true;
    vm->mind.busy_with = PLAN_REST;
    return false;
}

static unsigned ticks_for(struct sim_agent *agent, const struct sim_vm *vm, enum plan_step step)
{
    bool slow = !world_of(agent)->scripted || agent->work_ticks > 0;
    if (vm->mind.busy_with == step)
        return 0; /* was said already */
    switch (step) {
    case PLAN_PREPARE:
    case PLAN_SHUTDOWN:
        return sim_agent_work_ticks(agent);
    case PLAN_STOP: /* of what is another host's the VMM may take its time */
        return vm->mind.forgotten && vm->process && !vm->held && slow ? sim_agent_work_ticks(agent) : 0;
    default:
        return by_chance(agent, 200) ? sim_agent_work_ticks(agent) : 0;
    }
}

static bool prepare(struct sim_agent *agent, struct sim_vm *vm)
{
    const struct sim_task *task = sim_vm_arriving(vm) ? sim_agent_task(agent, vm->arriving) : NULL;
    progress(vm);
    if (sim_vm_arriving(vm) ? task == NULL || task->ticks > 1 : is_busy(vm, PLAN_PREPARE, ticks_for(agent, vm, PLAN_PREPARE)))
        return false;
    bool fails = agent->failing_starts > 0 && !sim_vm_arriving(vm);
    agent->failing_starts -= fails;
    if (fails || (!world_of(agent)->scripted && sim_chance(&agent->cluster->sim, 15)))
        failed(agent, vm, PLAN_END_IMPOSSIBLE, "the kernel cannot be fetched");
    else if (by_chance(agent, 15))
        failed(agent, vm, PLAN_END_NOT_STARTED, "the disk cannot be made");
    else
        vm->mind.prepared = true;
    return true;
}

static void start(struct sim_agent *agent, struct sim_vm *vm)
{
    struct sim_vm_mind *mind = &vm->mind;
    if (mind->owned)
        vm->arriving[0] = '\0', mind->owned = false; /* what held it is not there any more */
    vm->restarts += mind->end == PLAN_END_BROKEN || mind->end == PLAN_END_CLEAN;
    vm->boot_done = vm->order.boot;
    vm->run_epoch = vm->order.epoch;
    vm->parting = -1;
    vm->page_ns = sim_lease_page(agent, vm, true);
    mind->answers = mind->shutdown_asked = mind->stop_asked = mind->kill_sent = false;
    if (vm->arriving[0] != '\0')
        vm->waits = true;
    else
        sim_vm_run(agent, vm);
}

void sim_vm_take_over(struct sim_agent *agent, struct sim_vm *vm)
{
    sim_vm_run(agent, vm);
    vm->paused = vm->order.wanted == vm_wanted_PAUSED;
}

/* It is this host's by the migration that brought it. */
static void take(struct sim_agent *agent, struct sim_vm *vm)
{
    if (vm->waits && !vm->has_all) {
        sim_vm_ended(agent, vm, 1, "nothing more comes");
        return;
    }
    if (vm->waits)
        sim_vm_take_over(agent, vm);
    vm->arriving[0] = '\0';
    vm->mind.owned = false;
}

static const char *why_it_ends(const struct sim_agent *agent, const struct sim_vm *vm)
{
    return vm->mind.forgotten                       ? "it is to be forgotten"
           : vm->order.wanted == vm_wanted_DELETED  ? "it is deleted"
           : vm->order.wanted == vm_wanted_STOPPED  ? "it is stopped"
           : agent->down                            ? "its guest is shut down with the host"
           : vm->mind.stale                         ? "it came to be this host's in another way"
           : vm->run_epoch < vm->order.epoch        ? "it is of an older epoch"
                                                    : "it is to be started anew";
}

/* It is ended because its host goes down, which is written down before: it is begun anew then. */
static void end_with_host(const struct sim_agent *agent, struct sim_vm *vm)
{
    bool wanted_on = vm->order.wanted == vm_wanted_RUNNING || vm->order.wanted == vm_wanted_PAUSED;
    if (agent->down && wanted_on && !vm->mind.forgotten)
        vm->kept_state = vm_state_STOPPING;
}

static bool shutdown_guest(struct sim_agent *agent, struct sim_vm *vm)
{
    uint64_t grace_ms = vm->order.stop_grace_s * UINT64_C(1000), down_ms = agent->down_ticks * (SIM_AGENT_TICK_US / SIM_MS);
    unsigned ticks = agent->down ? MAX(agent->down_ticks, 1u) - 1 : ticks_for(agent, vm, PLAN_SHUTDOWN);
    end_with_host(agent, vm);
    vm->mind.state = vm_state_STOPPING;
    vm->mind.reason = NULL;
    vm->mind.shutdown_asked = true;
    vm->mind.shutdown_until_ms = now_ms(agent) + (agent->down ? MIN(grace_ms, down_ms) : grace_ms);
    vm->mind.deaf = (agent->down || vm->order.stop_grace_s <= SIM_VM_IMPATIENT_S) && by_chance(agent, 200);
    vm->mind.busy_with = PLAN_REST;
    return !is_busy(vm, PLAN_WAIT_END, ticks) && !vm->mind.deaf;
}

static bool stop(struct sim_agent *agent, struct sim_vm *vm)
{
    end_with_host(agent, vm);
    vm->mind.state = vm_state_STOPPING;
    vm->mind.reason = NULL;
    vm->mind.stop_asked = true;
    vm->mind.stop_until_ms = now_ms(agent) + STOP_US / SIM_MS;
    vm->mind.deaf = vm->process && by_chance(agent, 20);
    vm->mind.busy_with = PLAN_REST;
    if (vm->mind.forgotten && vm->held) /* it was handed over: the VMM hears that, and tells the target */
        sim_migrate_left(agent, vm);
    else if (is_busy(vm, PLAN_WAIT_END, ticks_for(agent, vm, PLAN_STOP)) || vm->mind.deaf)
        return false;
    else
        sim_vm_ended(agent, vm, 0, why_it_ends(agent, vm));
    return true;
}

static bool wait_end(struct sim_agent *agent, struct sim_vm *vm)
{
    if (vm->mind.deaf || is_busy(vm, PLAN_WAIT_END, 0))
        return false;
    sim_vm_ended(agent, vm, 0, why_it_ends(agent, vm));
    return true;
}

/* Has it ever been given to another host by a newer epoch? (It may be this one's again by now: what is here is old.) */
static bool given_elsewhere(const struct sim_agent *agent, const struct sim_vm *vm, const struct world_vm *known)
{
    const struct sim_world *world = world_of(agent);
    for (unsigned i = 0; i < world->agent_count; i++)
        if (&world->agents[i] != agent && known->given_epoch[i] > vm->order.epoch)
            return true;
    return false;
}

/* Its files, disks included. */
static bool remove_files(struct sim_agent *agent, struct sim_vm *vm)
{
    const struct world_vm *known = sim_world_vm(world_of(agent), vm->order.name);
    bool migrates = vm->leaving[0] != '\0' || vm->arriving[0] != '\0';
    vm->mind.state = vm_state_STOPPING;
    vm->mind.reason = NULL;
    vm->mind.removing = is_busy(vm, PLAN_REMOVE, ticks_for(agent, vm, PLAN_REMOVE));
    if (vm->mind.removing)
        return false;
    if (known != NULL && !known->deletion_asked && vm->run_epoch > 0 && !migrates && !given_elsewhere(agent, vm, known))
        sim_violation(&agent->cluster->sim, "%s removes the disks of VM %s, which nobody asked for", agent->name,
                      vm->order.name);
    vm->mind.gone = true;
    vm->arriving[0] = vm->leaving[0] = '\0';
    return true;
}

/* ---- the steps ---- */

/* As vm_facts of compute/agent/vm.c. */
static struct plan_vm facts_of(const struct sim_agent *agent, const struct sim_vm *vm)
{
    const struct sim_vm_mind *mind = &vm->mind;
    uint64_t now = now_ms(agent);
    return (struct plan_vm){
        .wanted = vm->order.wanted,
        .forgotten = mind->forgotten,
        .restart = OBJECT_HAS(vm_order, &vm->order, restart) ? vm->order.restart : restart_policy_ON_FAILURE,
        .confirmed = mind->confirmed,
        .reboot = vm->order.boot > vm->boot_done,
        .gone = mind->gone,
        .arriving = sim_vm_arriving(vm),
        .taking = vm->arriving[0] != '\0' && mind->owned,
        .missing = vm->missing,
        .released = vm->released >= vm->order.epoch,
        .down = agent->down,
        .leaving = vm->leaving[0] != '\0' || mind->left,
        .process = has_vmm(vm),
        .process_old = has_vmm(vm) && (vm->run_epoch < vm->order.epoch || mind->stale),
        .process_answers = mind->answers,
        .process_paused = vm->paused,
        .gentle = vm->order.stop_grace_s > 0 && mind->answers && vm->process && !vm->paused && !vm->held,
        .shutdown_asked = mind->shutdown_asked,
        .shutdown_over = mind->shutdown_asked && now >= mind->shutdown_until_ms,
        .stop_asked = mind->stop_asked,
        .stop_overdue = mind->stop_asked && now >= mind->stop_until_ms,
        .kill_sent = mind->kill_sent,
        .prepared = mind->prepared,
        .end = mind->end,
        .backoff_over = now >= mind->tries.backoff_until_ms,
        .worn = agent_plan_worn(&mind->tries, &vm->order),
    };
}

static bool rest(struct sim_agent *agent, struct sim_vm *vm, enum plan_step step)
{
    if (step == PLAN_REST_DOWN)
        end_with_host(agent, vm);
    if (step == PLAN_REST)
        settle(agent, vm, !vm->process ? vm_state_STOPPED : vm->paused ? vm_state_PAUSED : vm_state_RUNNING, NULL);
    else if (step == PLAN_REST_OFF)
        settle(agent, vm, vm_state_STOPPED, "the guest powered off");
    else if (step == PLAN_REST_GONE)
        settle(agent, vm, vm_state_DELETED, NULL);
    else if (step == PLAN_REST_FAILED || (step == PLAN_WAIT_BACKOFF && vm->mind.end == PLAN_END_NOT_STARTED))
        settle(agent, vm, vm_state_FAILED, vm->mind.end_text);
    else if (step == PLAN_REST_LEFT || step == PLAN_REST_DOWN)
        vm->mind.state = vm_state_STOPPING, vm->mind.reason = NULL;
    else if (step == PLAN_REST_ARRIVING)
        progress(vm);
    else /* UNCONFIRMED, BACKOFF */
        vm->mind.state = vm_state_STARTING, vm->mind.reason = NULL;
    return false;
}

/* True: look at once for the next one; false: another tick will. */
static bool do_step(struct sim_agent *agent, struct sim_vm *vm, enum plan_step step)
{
    switch (step) {
    case PLAN_REST:
    case PLAN_REST_OFF:
    case PLAN_REST_FAILED:
    case PLAN_REST_GONE:
    case PLAN_REST_ARRIVING:
    case PLAN_REST_LEFT:
    case PLAN_REST_DOWN:
    case PLAN_REST_UNCONFIRMED:
    case PLAN_WAIT_BACKOFF:
        return rest(agent, vm, step);
    case PLAN_WAIT_END:
        return wait_end(agent, vm);
    case PLAN_WAIT_ANSWER:
        vm->mind.answers = true;
        vm->mind.end = PLAN_END_NONE;
        vm->mind.tries.unstarted = 0;
        return true;
    case PLAN_PREPARE:
        return prepare(agent, vm);
    case PLAN_START:
        start(agent, vm);
        return true;
    case PLAN_TAKE:
        take(agent, vm);
        return true;
    case PLAN_PAUSE:
    case PLAN_RESUME:
        vm->paused = step == PLAN_PAUSE;
        return true;
    case PLAN_SHUTDOWN:
        return shutdown_guest(agent, vm);
    case PLAN_STOP:
        return stop(agent, vm);
    case PLAN_KILL:
        sim_vm_ended(agent, vm, -1, why_it_ends(agent, vm));
        return true;
    case PLAN_REMOVE:
        return remove_files(agent, vm);
    case PLAN_WAIT_TASK: /* nothing here holds disks, changes devices, or migrates by post-copy */
    case PLAN_REST_LENDS:
    case PLAN_ADJUST:
    case PLAN_STEP_COUNT:
        break;
    }
    sim_violation(&agent->cluster->sim, "step %s of VM %s cannot be", agent_plan_step_name(step), vm->order.name);
    return false;
}

/* As vm_release of compute/agent/vm.c. */
static void release(struct sim_agent *agent, struct sim_vm *vm)
{
    const struct sim_vm_mind *mind = &vm->mind;
    bool used_up = agent_plan_used_up(&mind->tries, &vm->order, mind->end);
    if (!mind->may_relocate || !used_up || has_vmm(vm) || vm->arriving[0] != '\0' || vm->leaving[0] != '\0' || mind->left || mind->forgotten ||
        vm->order.wanted != vm_wanted_RUNNING || agent->down || !mind->confirmed || vm->missing || vm->released >= vm->order.epoch)
        return;
    vm->released = vm->order.epoch;
    settle(agent, vm, vm_state_FAILED, mind->end_text);
}

void sim_vm_tick(struct sim_agent *agent, struct sim_vm *vm)
{
    for (unsigned i = 0; i < STEPS_MAX; i++) {
        release(agent, vm);
        struct plan_vm facts = facts_of(agent, vm);
        if (do_step(agent, vm, agent_plan_vm(&facts)))
            continue;
        if (vm->mind.gone && vm->mind.forgotten) /* as vm_changed of compute/agent/agent.c: nobody is to be told */
            sim_vm_drop(vm);
        return;
    }
    sim_violation(&agent->cluster->sim, "%s goes round in circles about VM %s", agent->name, vm->order.name);
}

void sim_vm_chance(struct sim_agent *agent, struct sim_vm *vm)
{
    if (!vm->process || vm->paused || vm->held || vm->mind.shutdown_asked || vm->mind.stop_asked)
        return;
    if (by_chance(agent, 3))
        sim_vm_ended(agent, vm, 0, "the guest powers off");
    else if (by_chance(agent, 2))
        sim_vm_ended(agent, vm, 1, "its VMM breaks");
}

/* ---- orders ---- */

void sim_vm_make(struct sim_agent *agent, struct sim_vm *vm, const struct vm_order *order, uint64_t index)
{
    *vm = (struct sim_vm){.used = true, .index = index, .boot_done = order->boot, .parting = -1};
    OBJECT_COPY(vm_order, &vm->order, order);
    vm->mind.confirmed = true;
    vm->mind.gone = order->wanted == vm_wanted_DELETED; /* nothing is made for that */
    agent->vms_top = MAX(agent->vms_top, (unsigned)(vm - agent->vms) + 1);
}

/* The VM that a migration was to bring is this host's: by that one, or in another way. */
static void arrived(struct sim_vm *vm, const struct vm_order *order)
{
    bool handed = order->handover != NULL && strcmp(order->handover, vm->arriving) == 0 && order->epoch == vm->order.epoch;
    vm->mind.end = PLAN_END_NONE;
    vm->mind.tries.failures = 0;
    vm->mind.stale = !handed && has_vmm(vm);
    vm->mind.owned = handed && has_vmm(vm);
    if (!vm->mind.owned)
        vm->arriving[0] = '\0';
}

void sim_vm_give_order(struct sim_agent *agent, struct sim_vm *vm, const struct vm_order *order, uint64_t index)
{
    bool same = object_equal(&vm_order_desc, &vm->order, order), newer = agent_plan_is_new_wish(&vm->order, order);
    bool was_arriving = sim_vm_arriving(vm);
    vm->mind.answer_index = index;
    if (was_arriving)
        arrived(vm, order);
    if (same && vm->mind.confirmed && !was_arriving)
        return;
    vm->mind.confirmed = true;
    if (order->epoch > vm->order.epoch) {
        vm->leaving[0] = '\0';
        vm->held = false; /* it stays, and is to end */
        vm->missing = false;
    }
    if (order->epoch > vm->mind.left_epoch)
        vm->mind.left = false;
    if (newer) {
        vm->mind.end = PLAN_END_NONE;
        vm->mind.tries = (struct plan_tries){.failures = 0};
    }
    if (!same) {
        OBJECT_CLEAR(vm_order, &vm->order);
        OBJECT_COPY(vm_order, &vm->order, order);
        vm->index = index;
        vm->mind.prepared = false;
    }
    if (was_arriving)
        sim_vm_tick(agent, vm);
}

void sim_vm_forget(struct sim_agent *agent, struct sim_vm *vm)
{
    if (vm->mind.forgotten)
        return;
    vm->mind.forgotten = true;
    sim_vm_tick(agent, vm);
}

void sim_vm_drop(struct sim_vm *vm)
{
    OBJECT_CLEAR(vm_order, &vm->order);
    *vm = (struct sim_vm){0};
}

/* ---- an agent that starts ---- */

void sim_vm_load(struct sim_agent *agent, struct sim_vm *vm)
{
    struct plan_recall found = {
        .wanted = vm->order.wanted,
        .state = vm->kept_state,
        .settled = vm->generation == vm->order.generation,
        .arriving = vm->arriving[0] != '\0',
        .started = vm->kept_process,
        .same_boot = vm->kept_boots == agent->boots,
    };
    if (vm->mind.gone) { /* its files are, and the memory of it with them */
        sim_vm_drop(vm);
        return;
    }
    vm->mind = (struct sim_vm_mind){.end_text = "its VMM ended while no agent watched it"};
    if (vm->process && !vm->held && by_chance(agent, 30))
        sim_vm_kill(agent, vm, (int)sim_below(&agent->cluster->sim, 2), "it has ended while no agent watched it");
    found.process = has_vmm(vm);
    found.parting = vm->parting;
    agent_plan_recall(&found, &vm->mind.state, &vm->mind.end, &vm->mind.left);
    if (vm->mind.left)
        vm->mind.left_epoch = vm->order.epoch;
}
