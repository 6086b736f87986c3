/* Raft's configuration follows the table; the rules are in the header. */
#include "controller/membership.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "controller/command/decide.h"
#include "controller/environment.h"
#include "controller/fsm/apply.h"
#include "controller/service.h"

enum step { STEP_NONE, STEP_ADD, STEP_REMOVE, STEP_ROLE };
struct plan {
    enum step step;
    uint64_t raft_id;
    char id[STATE_ID_BYTES];
    char address[RAFT_NODE_ADDRESS_MAX];
    enum controller_role role;
};

static const struct raft_node_member *find_member(const struct raft_node_status *status, uint64_t raft_id)
{
    for (unsigned i = 0; i < status->member_count; i++)
        if (status->members[i].id == raft_id)
            return &status->members[i];
    return NULL;
}

static enum controller_role role_of(enum raft_node_vote vote)
{
    switch (vote) {
    case RAFT_NODE_VOTER:
        return controller_role_VOTER;
    case RAFT_NODE_STANDBY:
        return controller_role_STANDBY;
    case RAFT_NODE_SPARE:
        break;
    }
    return controller_role_SPARE;
}

/* What to do with one controller of the table. True: *plan is it. */
static bool plan_controller(const struct controller *controller, const struct raft_node_status *status,
                            struct plan *plan)
{
    const struct raft_node_member *member = find_member(status, controller->raft_id);
    plan->raft_id = controller->raft_id;
    snprintf(plan->id, sizeof plan->id, "%s", controller->id);
    snprintf(plan->address, sizeof plan->address, "%s", controller->raft_address);
    if (member == NULL || member->vote == RAFT_NODE_SPARE) {
        plan->step = STEP_ADD;
        return true;
    }
    if (member->vote == RAFT_NODE_STANDBY && controller->role != controller_role_STANDBY) {
        plan->step = STEP_ROLE;
        plan->role = controller_role_STANDBY;
        return true;
    }
    if (member->vote == RAFT_NODE_STANDBY) {
        plan->step = STEP_ADD;
        return true;
    }
    plan->role = role_of(member->vote);
    plan->step = controller->role != plan->role ? STEP_ROLE : STEP_NONE;
    return plan->step != STEP_NONE;
}

/* Locked. */
static bool welcomes(const struct service *service, uint64_t raft_id)
{
    return lease_judge_welcomes(&service->leases.judge, service->state, raft_id, lease_driver_now_ns());
}

bool membership_welcomes(struct service *service, uint64_t raft_id)
{
    service_lock_state(service);
    bool may = welcomes(service, raft_id);
    service_unlock_state(service);
    return may;
}

/* Is the plan one that has to wait until hosts are supported by who is to count? */
static bool has_to_wait(struct service *service, const struct plan *plan)
{
    uint64_t now_ms = environment_monotonic_ms();
    if (plan->step != STEP_ROLE || plan->role != controller_role_VOTER || welcomes(service, plan->raft_id))
        return false;
    if (service->welcome_since_ms == 0)
        service->welcome_since_ms = now_ms;
    if (now_ms < service->welcome_since_ms + MEMBERSHIP_WELCOME_MS)
        return true;
    log_warning("membership-unwelcome", "raft_id=%llu what=\"it counts from now on though a host does not have its support: is it reached "
                "from everywhere?\"", (unsigned long long)plan->raft_id);
    return false;
}

static void make_plan(struct service *service, const struct raft_node_status *status, struct plan *plan)
{
    const struct state *state = service->state;
    size_t count = state_count(state, object_kind_CONTROLLER);
    struct plan add = {.step = STEP_NONE};
    bool waits = false;
    for (unsigned m = 0; m < status->member_count; m++) {
        bool known = false;
        for (size_t i = 0; i < count && !known; i++)
            known = state_at(state, object_kind_CONTROLLER, i)->controller->raft_id == status->members[m].id;
        if (known)
            continue;
        plan->step = STEP_REMOVE;
        plan->raft_id = status->members[m].id;
        return;
    }
    for (size_t i = 0; i < count; i++) {
        if (!plan_controller(state_at(state, object_kind_CONTROLLER, i)->controller, status, plan))
            continue;
        if (plan->step == STEP_ADD) { /* may fail for ever: no reason to keep another one from its role */
            if (add.step == STEP_NONE)
                add = *plan;
            continue;
        }
        if (!has_to_wait(service, plan))
            return;
        waits = true;
    }
    *plan = add;
    if (!waits)
        service->welcome_since_ms = 0;
}

static void on_changed(void *arg, int status, const struct error *err)
{
    struct service *service = arg;
    service_change_done(service);
    service->membership_next_ms = environment_monotonic_ms() + (status < 0 ? MEMBERSHIP_RETRY_MS : 0);
    if (status < 0)
        log_warning("membership-failed", "%s", err->text);
    else
        log_info("membership-changed", "%s", "done");
}

static void on_role(void *arg, int status, void *result)
{
    struct service *service = arg;
    free(result);
    service->voters_asked--;
    service_change_done(service);
    service->membership_next_ms = environment_monotonic_ms() + (status < 0 ? MEMBERSHIP_RETRY_MS : 0);
}

static void make_uuid(void *arg, char ret_id[STATE_ID_BYTES])
{
    (void)arg;
    environment_uuid(ret_id);
}

static void record_role(struct service *service, const struct plan *plan)
{
    struct decision decision CLEANUP(decision_finish) = {.status = 0};
    struct error err;
    char now[ENVIRONMENT_TIME_SIZE];
    environment_time_text(environment_unix_ms(), now);
    struct decision_context context = {.now = now, .uuid = make_uuid, .by = "cluster"};
    service_lock_state(service);
    int r = decide_controller_role(service->state, &context, plan->id, plan->role, &decision, &err);
    service_unlock_state(service);
    if (r == 0) {
        size_t size = decision.command.size;
        void *command = TAKE_PTR(decision.command.data);
        r = raft_node_propose(service->raft, command, size, on_role, service);
        if (r == 0) {
            service->change_busy = true;
            service->voters_asked++;
            return;
        }
        free(command);
    }
    service->membership_next_ms = environment_monotonic_ms() + MEMBERSHIP_RETRY_MS;
}

/* A vote has to wait until hosts know of the last change of them. */
static void wait_for_hosts(struct service *service, const struct plan *plan)
{
    uint64_t now_ms = environment_monotonic_ms();
    struct lease_judge_words words;
    if (service->voters_wait_ms == 0) {
        service->voters_wait_ms = now_ms;
        service->voters_say_ms = now_ms + MEMBERSHIP_SAY_MS;
    }
    if (now_ms < service->voters_say_ms)
        return;
    service->voters_say_ms = now_ms + MEMBERSHIP_SAY_AGAIN_MS;
    service_voters_wait_for(service, &words);
    log_warning("membership-waits", "raft_id=%llu for_s=%llu why=\"%s\"", (unsigned long long)plan->raft_id,
                (unsigned long long)((now_ms - service->voters_wait_ms) / 1000), words.text);
}

void membership_tick(struct service *service)
{
    if (!service->ready || service->change_busy || environment_monotonic_ms() < service->membership_next_ms)
        return;
    struct raft_node_status *status CLEANUP_FREE = NEW(struct raft_node_status);
    struct plan plan = {.step = STEP_NONE};
    struct error err;
    int r = 0;
    raft_node_status(service->raft, status);
    if (status->leader.role != RAFT_NODE_LEADER)
        return;
    service_lock_state(service);
    make_plan(service, status, &plan);
    service_unlock_state(service);
    if (plan.step == STEP_NONE) {
        service->voters_wait_ms = 0;
        return;
    }
    if (plan.step == STEP_ROLE && !service_voters_settled(service)) {
        wait_for_hosts(service, &plan);
        return; /* looked at again soon */
    }
    service->voters_wait_ms = 0;
    log_info("membership", "step=%s raft_id=%llu address=%s",
             plan.step == STEP_ADD      ? "add"
             : plan.step == STEP_REMOVE ? "remove"
                                        : "role",
             (unsigned long long)plan.raft_id, plan.address);
    const struct raft_node_member *member = find_member(status, plan.raft_id);
    if (plan.step == STEP_ROLE && plan.role == controller_role_VOTER)
        service->welcome_since_ms = 0;
    if (plan.step == STEP_ROLE)
        record_role(service, &plan);
    else if (plan.step == STEP_REMOVE)
        r = service_change(service, RAFT_NODE_REMOVE, plan.raft_id, NULL, on_changed, service, &err);
    else
        r = service_change(service, member == NULL ? RAFT_NODE_ADD : RAFT_NODE_PROMOTE, plan.raft_id, plan.address,
                           on_changed, service, &err);
    if (r < 0)
        on_changed(service, r, &err);
}
