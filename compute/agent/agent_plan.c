/* The agent's decisions; see agent_plan.h. */
#include "compute/agent/agent_plan.h"
#include "common/map.h"

bool agent_plan_answer_ok(const struct node_orders *orders, uint64_t known_generation)
{
    return orders->generation >= known_generation;
}

/* An answer looked up by VM: hosts hold thousands. */
struct answer {
    const struct node_orders *orders;
    struct map by_id, forget, gone, given, halt, missing;
};

static void answer_init(struct answer *answer, const struct node_orders *orders)
{
    struct vm_order *all = orders->vms.items;
    *answer = (struct answer){.orders = orders};
    for (size_t i = 0; i < orders->vms.count; i++)
        if (map_get(&answer->by_id, all[i].id) == NULL) /* of two orders for one VM the first counts */
            map_put(&answer->by_id, all[i].id, &all[i]);
    for (size_t i = 0; i < orders->forget.count; i++)
        map_put(&answer->forget, orders->forget.items[i], orders->forget.items[i]);
    for (size_t i = 0; i < orders->gone.count; i++)
        map_put(&answer->gone, orders->gone.items[i], orders->gone.items[i]);
    for (size_t i = 0; i < orders->given.count; i++)
        map_put(&answer->given, orders->given.items[i], orders->given.items[i]);
    for (size_t i = 0; i < orders->halt.count; i++)
        map_put(&answer->halt, orders->halt.items[i], orders->halt.items[i]);
    for (size_t i = 0; i < orders->missing.count; i++)
        map_put(&answer->missing, orders->missing.items[i], orders->missing.items[i]);
}

static void answer_finish(struct answer *answer)
{
    map_finish(&answer->by_id);
    map_finish(&answer->forget);
    map_finish(&answer->gone);
    map_finish(&answer->given);
    map_finish(&answer->halt);
    map_finish(&answer->missing);
}

/* An order for a VM that we have one for already. */
static enum plan_change_kind compare(const struct plan_have *have, const struct vm_order *order, bool missing, const char **ret_why)
{
    const struct vm_order *known = have->order;
    if (order->epoch < known->epoch) {
        *ret_why = "its epoch is lower than the one known: it comes from before the VM changed hands";
        return PLAN_REFUSE;
    }
    if (!have->astray && order->epoch == known->epoch && order->replica_session < known->replica_session) {
        *ret_why = "it comes from before the last session with a replica of its disks";
        return PLAN_REFUSE;
    }
    if (order->epoch == known->epoch && order->generation < known->generation) {
        *ret_why = "its generation is lower than the one known: a newer wish was given already";
        return PLAN_REFUSE;
    }
    if (have->removing)
        return PLAN_LATER;
    /* what was deleted stays deleted under the same epoch: only a new start can bring it back, or that its deletion was lost */
    if (have->gone)
        return order->epoch > known->epoch || missing ? PLAN_ACCEPT : PLAN_KEEP;
    return object_equal(&vm_order_desc, known, order) ? PLAN_KEEP : PLAN_ACCEPT;
}

static struct plan_change change_of_have(const struct plan_have *have, size_t at, const struct answer *answer)
{
    const struct vm_order *order = map_get(&answer->by_id, have->id);
    struct plan_change change = {.kind = PLAN_ORPHAN, .have = at, .order = order};
    bool missing = map_get(&answer->missing, have->id) != NULL;
    if (order != NULL)
        change.kind = compare(have, order, missing, &change.why);
    else if (have->gone)
        change.kind = PLAN_DROP;
    /* An answer older than the order we obey may simply not have heard of the VM. */
    else if (map_get(&answer->forget, have->id) != NULL && answer->orders->index >= have->index && !have->removing &&
             (!have->astray || map_get(&answer->given, have->id) != NULL))
        change.kind = PLAN_FORGET;
    else if (map_get(&answer->halt, have->id) != NULL && answer->orders->index >= have->index && !have->removing)
        change.kind = PLAN_HALT;
    change.missing = change.kind == PLAN_ACCEPT && have->gone && missing;
    change.nobodys = change.kind == PLAN_FORGET && map_get(&answer->gone, have->id) != NULL;
    return change;
}

size_t agent_plan_orders(const struct plan_have *have, size_t have_count, const struct node_orders *orders,
                         struct plan_change *ret_changes)
{
    const struct vm_order *all = orders->vms.items;
    struct answer answer;
    size_t n = 0;
    answer_init(&answer, orders);
    for (size_t i = 0; i < have_count; i++) {
        ret_changes[n++] = change_of_have(&have[i], i, &answer);
        map_remove(&answer.by_id, have[i].id);
    }
    for (size_t i = 0; i < orders->vms.count; i++)
        if (map_get(&answer.by_id, all[i].id) == &all[i])
            ret_changes[n++] = (struct plan_change){
                .kind = PLAN_ACCEPT, .have = PLAN_NEW, .order = &all[i], .missing = map_get(&answer.missing, all[i].id) != NULL};
    answer_finish(&answer);
    return n;
}

bool agent_plan_is_new_wish(const struct vm_order *known, const struct vm_order *order)
{
    return order->epoch > known->epoch || order->generation > known->generation || order->boot > known->boot;
}

/* ---- one VM ---- */

uint64_t agent_plan_window_s(const struct vm_order *order)
{
    return OBJECT_HAS(vm_order, order, restart_window_s) ? order->restart_window_s : PLAN_RESTART_WINDOW_S;
}

bool agent_plan_used_up(const struct plan_tries *tries, const struct vm_order *order, enum plan_end end)
{
    return end == PLAN_END_IMPOSSIBLE ||
           (end == PLAN_END_NOT_STARTED && (agent_plan_worn(tries, order) || tries->unstarted >= PLAN_RELOCATE_STARTS));
}

bool agent_plan_worn(const struct plan_tries *tries, const struct vm_order *order)
{
    return OBJECT_HAS(vm_order, order, restarts_max) && tries->ends > order->restarts_max;
}

void agent_plan_failed(struct plan_tries *tries, const struct vm_order *order, enum plan_end end, uint64_t now_ms)
{
    uint64_t pause_ms = PLAN_BACKOFF_MS_MIN;
    for (unsigned i = 0; i < tries->failures && pause_ms < PLAN_BACKOFF_MS_MAX; i++)
        pause_ms *= 2;
    tries->failures++;
    tries->unstarted = end == PLAN_END_NOT_STARTED ? tries->unstarted + 1 : 0;
    if (tries->ends == 0 || now_ms >= tries->ends_since_ms + agent_plan_window_s(order) * 1000) {
        tries->ends = 0;
        tries->ends_since_ms = now_ms;
    }
    tries->ends++;
    tries->backoff_until_ms = now_ms + MIN(pause_ms, (uint64_t)PLAN_BACKOFF_MS_MAX);
}

void agent_plan_recall(const struct plan_recall *found, enum vm_state *ret_state, enum plan_end *ret_end, bool *ret_left)
{
    enum vm_state state = found->state;
    bool ran = state == vm_state_RUNNING || state == vm_state_PAUSED;
    bool wanted_on = found->wanted == vm_wanted_RUNNING || found->wanted == vm_wanted_PAUSED;
    *ret_state = state;
    *ret_end = PLAN_END_NONE;
    *ret_left = false;
    if (found->process) {
        if (!ran) /* a guest that runs is said to run, also before its VMM has answered us: nothing has changed for it */
            *ret_state = vm_state_STARTING;
    } else if (ran) {
        *ret_state = vm_state_STARTING; /* it ended while no agent watched: by a failure, or with the host */
    } else if (wanted_on && found->settled && state == vm_state_STOPPED) {
        *ret_end = PLAN_END_CLEAN;
    } else if (wanted_on && found->settled && state == vm_state_FAILED) {
        *ret_end = PLAN_END_NOT_STARTED;
    } else if (state == vm_state_STOPPING || state == vm_state_DELETED) {
        *ret_state = vm_state_STOPPING;
    }
    if (found->arriving && !found->process && !found->looking)
        *ret_end = PLAN_END_NOT_STARTED;
    if (found->process || !ran || !found->started || !wanted_on)
        return;
    if (found->parting == PLAN_PARTING_MIGRATED)
        *ret_left = true;
    else if (found->parting == 0)
        *ret_end = PLAN_END_CLEAN;
    else if (found->same_boot) /* after a boot of the host it is started again whatever its policy for failures */
        *ret_end = PLAN_END_BROKEN;
}

/* A VMM lives. */
static enum plan_step plan_alive(const struct plan_vm *vm)
{
    bool unwanted = vm->forgotten || (!vm->arriving && (vm->wanted == vm_wanted_DELETED || vm->wanted == vm_wanted_STOPPED));
    /* One that a migration brings or takes goes on for as long as the host waits. */
    unwanted |= vm->down && !vm->arriving && (!vm->taking || vm->lacks) && !vm->leaving;
    if (vm->lends && !vm->process_old && !vm->stop_asked && !vm->kill_sent)
        return vm->process_answers ? PLAN_REST_LENDS : PLAN_WAIT_ANSWER;
    /* A guest that is to shut down has to write. */
    if (vm->moves && unwanted && vm->gentle && !vm->forgotten && !vm->shutdown_over && !vm->stop_asked && !vm->kill_sent &&
        !vm->arriving && !vm->taking)
        return PLAN_ADJUST;
    if (unwanted || vm->process_old || vm->reboot || vm->shutdown_asked || vm->stop_asked) {
        if (vm->kill_sent)
            return PLAN_WAIT_END;
        if (vm->stop_overdue)
            return PLAN_KILL;
        if (vm->stop_asked)
            return PLAN_WAIT_END;
        /* Of what is to be deleted or is another host's nothing is kept: its guest need not save anything. */
        if (vm->gentle && !vm->forgotten && vm->wanted != vm_wanted_DELETED && !vm->shutdown_over)
            return vm->shutdown_asked ? PLAN_WAIT_END : PLAN_SHUTDOWN;
        return PLAN_STOP;
    }
    if (!vm->process_answers) {
        if (vm->start_overdue)
            return vm->kill_sent ? PLAN_WAIT_END : PLAN_KILL;
        return PLAN_WAIT_ANSWER;
    }
    if (vm->arriving || vm->taking)
        return vm->taking ? PLAN_TAKE : PLAN_REST_ARRIVING;
    if (vm->wanted == vm_wanted_PAUSED && !vm->process_paused)
        return PLAN_PAUSE;
    if (vm->wanted == vm_wanted_RUNNING && vm->process_paused && !vm->process_stuck)
        return PLAN_RESUME;
    return vm->differs ? PLAN_ADJUST : PLAN_REST;
}

/* No VMM lives, and one should. */
static enum plan_step plan_start(const struct plan_vm *vm)
{
    bool again = vm->restart != restart_policy_NEVER;
    if (vm->arriving) /* it was begun for this migration, which has failed if it ended; the controllers say what follows */
        return vm->end != PLAN_END_NONE ? PLAN_REST_FAILED : vm->prepared ? PLAN_START : PLAN_PREPARE;
    if (vm->released)
        return PLAN_REST_FAILED;
    switch (vm->end) {
    case PLAN_END_NONE:
        break;
    case PLAN_END_CLEAN:
        if (vm->restart != restart_policy_ALWAYS)
            return PLAN_REST_OFF;
        if (vm->worn)
            return PLAN_REST_FAILED;
        break;
    case PLAN_END_BROKEN:
    case PLAN_END_NOT_STARTED:
        if (!again || vm->worn)
            return PLAN_REST_FAILED;
        break;
    case PLAN_END_IMPOSSIBLE:
        return PLAN_REST_FAILED;
    }
    /* Since it was written down the VM may have gone elsewhere: a VMM that lives is proof, a file is not. */
    if (!vm->confirmed)
        return PLAN_REST_UNCONFIRMED;
    if (vm->down)
        return PLAN_REST_DOWN;
    if (vm->end != PLAN_END_NONE && !vm->backoff_over)
        return PLAN_WAIT_BACKOFF;
    if (vm->held)
        return PLAN_WAIT_TASK;
    return vm->prepared ? PLAN_START : PLAN_PREPARE;
}

enum plan_step agent_plan_vm(const struct plan_vm *vm)
{
    if (vm->gone)
        return PLAN_REST_GONE;
    if (vm->process)
        return plan_alive(vm);
    if (vm->forgotten || (vm->wanted == vm_wanted_DELETED && !vm->arriving))
        return vm->held ? PLAN_WAIT_TASK : PLAN_REMOVE;
    if (vm->leaving)
        return PLAN_REST_LEFT;
    if (vm->missing)
        return PLAN_REST_FAILED;
    if (vm->wanted == vm_wanted_STOPPED && !vm->arriving)
        return PLAN_REST;
    return plan_start(vm);
}

const char *agent_plan_step_name(enum plan_step step)
{
    static const char *const names[PLAN_STEP_COUNT] = {
        [PLAN_REST] = "rest",
        [PLAN_REST_OFF] = "rest-off",
        [PLAN_REST_FAILED] = "rest-failed",
        [PLAN_REST_GONE] = "rest-gone",
        [PLAN_REST_LENDS] = "rest-lends",
        [PLAN_REST_ARRIVING] = "rest-arriving",
        [PLAN_REST_LEFT] = "rest-left",
        [PLAN_REST_DOWN] = "rest-down",
        [PLAN_REST_UNCONFIRMED] = "rest-unconfirmed",
        [PLAN_WAIT_TASK] = "wait-task",
        [PLAN_WAIT_BACKOFF] = "wait-backoff",
        [PLAN_WAIT_END] = "wait-end",
        [PLAN_WAIT_ANSWER] = "wait-answer",
        [PLAN_PREPARE] = "prepare",
        [PLAN_START] = "start",
        [PLAN_TAKE] = "take",
        [PLAN_PAUSE] = "pause",
        [PLAN_RESUME] = "resume",
        [PLAN_ADJUST] = "adjust",
        [PLAN_SHUTDOWN] = "shutdown",
        [PLAN_STOP] = "stop",
        [PLAN_KILL] = "kill",
        [PLAN_REMOVE] = "remove",
    };
    return names[step];
}

/* ---- the page ---- */

uint64_t agent_plan_page(const struct lease_holder *holder, const struct plan_page *vm, uint64_t now_ns)
{
    if (vm->named == 0 && !vm->starts)
        return vm->present; /* it holds until it runs out */
    bool its_own = vm->named != 0 && vm->named == holder->generation && !vm->forgotten && !vm->astray && !vm->gone &&
                   !vm->leaving && vm->epoch == vm->order_epoch;
    /* Another may have it, and be followed: what is held or off stays so until that would have been said. */
    if (vm->ha && vm->settling && vm->present != 0 && vm->present <= now_ns)
        its_own = false;
    return lease_holder_page(holder, vm->ha, !vm->disarmed, its_own, vm->present);
}
