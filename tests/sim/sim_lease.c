/* Leases in the simulated cluster: the pure code of controllers (lease_table, lease_judge) and agents (lease_holder), with
 * messages that are late, lost or doubled, refused connections, clocks that differ, and VMMs that obey a page. And the check
 * of all that it is for: no VM executes on two hosts at any instant.
 *
 *   agent --WORLD_LEASE--> controller --WORLD_LEASE_ANSWER--> agent: page of each VM
 *         <--refused---- (a controller that is down, and the link is not cut)
 *   leader --WORLD_LOOK--> controller --WORLD_VIEW--> leader: lease_judge */
#include "tests/sim/sim_world.h"

#include <stdio.h>
#include <string.h>

#include "controller/fsm/time_text.h"

#define AGENT_TICK_US (250 * SIM_MS)
#define ASK_US SIM_SECOND
#define LATE_US (7 * SIM_SECOND) /* how late a refusal may be */
#define AGAIN_MIN_US (300 * SIM_MS) /* between two attempts to connect */
#define AGAIN_MAX_US SIM_SECOND
#define US_NS 1000u

static struct sim_world *world_of(const struct sim_cluster *cluster)
{
    return cluster->world;
}

static uint64_t local_ns(const struct sim_cluster *cluster, const struct sim_actor *actor)
{
    return sim_local_us(&cluster->sim, actor) * US_NS;
}

/* ---- the controllers ---- */

void sim_lease_init(struct sim_node *node, struct sim_lease *lease)
{
    *lease = (struct sim_lease){.judge.mutations = node->cluster->mutations.world.judge};
    lease_table_init(&lease->table, local_ns(node->cluster, &node->actor));
    lease->table.mutations = node->cluster->mutations.world.table;
}

void sim_lease_finish(struct sim_lease *lease)
{
    lease_table_finish(&lease->table);
    lease_judge_reset(&lease->judge);
}

static void send_object(struct sim_cluster *cluster, struct sim_actor *from, struct sim_actor *to, struct world_message *message,
                        const struct object_desc *desc, void *object, sim_deliver_fn deliver)
{
    struct bytes_writer json = {0};
    object_encode(desc, object, &json);
    bytes_put_u8(&json, 0);
    message->text = (char *)json.data;
    sim_world_send(cluster, from, to, message, deliver);
    object_clear(desc, object);
    bytes_writer_finish(&json);
}

static void answer_question(struct sim_node *node, struct sim_lease *lease, const struct state *state, struct sim_actor *from,
                            const struct world_message *asked)
{
    struct lease_question question;
    struct lease_answer answer = {0};
    struct world_message message = {.kind = WORLD_LEASE_ANSWER, .number = asked->number};
    ASSERT(OBJECT_DECODE(lease_question, asked->text, strlen(asked->text), OBJECT_CREATE, &question, NULL) == 0);
    lease_table_answer(&lease->table, state, &question, node->actor.id, local_ns(node->cluster, &node->actor), &answer);
    OBJECT_CLEAR(lease_question, &question);
    send_object(node->cluster, &node->actor, from, &message, &lease_answer_desc, &answer, sim_agent_deliver);
}

static void answer_look(struct sim_node *node, struct sim_lease *lease, const struct state *state, struct sim_actor *from,
                        const struct world_message *asked)
{
    struct lease_look look;
    struct lease_view view = {0};
    struct world_message message = {.kind = WORLD_VIEW};
    ASSERT(OBJECT_DECODE(lease_look, asked->text, strlen(asked->text), OBJECT_CREATE, &look, NULL) == 0);
    lease_table_view(&lease->table, state, &look, node->actor.id, raft_current_term(node->raft),
                     local_ns(node->cluster, &node->actor), &view);
    OBJECT_CLEAR(lease_look, &look);
    send_object(node->cluster, &node->actor, from, &message, &lease_view_desc, &view, sim_fsm_deliver);
}

static void take_view(struct sim_node *node, struct sim_lease *lease, const struct world_message *message)
{
    struct lease_view view;
    if (!sim_node_leads(node) || node->ready_term != raft_current_term(node->raft))
        return;
    ASSERT(OBJECT_DECODE(lease_view, message->text, strlen(message->text), OBJECT_LENIENT, &view, NULL) == 0);
    lease_judge_take(&lease->judge, &view, node->ready_term, local_ns(node->cluster, &node->actor));
    OBJECT_CLEAR(lease_view, &view);
}

void sim_lease_deliver(struct sim_node *node, struct sim_lease *lease, const struct state *state, struct sim_actor *from,
                       struct world_message *message)
{
    if (message->kind == WORLD_LEASE)
        answer_question(node, lease, state, from, message);
    else if (message->kind == WORLD_LOOK)
        answer_look(node, lease, state, from, message);
    else
        take_view(node, lease, message);
    sim_world_message_free(message);
}

static void look(struct sim_node *node, struct sim_lease *lease, const struct state *state)
{
    struct sim_cluster *cluster = node->cluster;
    struct lease_look own = {0};
    struct lease_view view = {0};
    uint64_t now_ns = local_ns(cluster, &node->actor);
    OBJECT_SET(lease_look, &own, term, node->ready_term);
    OBJECT_SET(lease_look, &own, index, state_index(state));
    OBJECT_SET(lease_look, &own, cluster_epoch, state_cluster(state)->epoch);
    for (unsigned id = 1; id <= cluster->node_count; id++) {
        struct world_message message = {.kind = WORLD_LOOK};
        struct lease_look copy = {0};
        if (id == node->actor.id)
            continue;
        OBJECT_COPY(lease_look, &copy, &own);
        send_object(cluster, &node->actor, &cluster->nodes[id].actor, &message, &lease_look_desc, &copy, sim_fsm_deliver);
    }
    lease_table_view(&lease->table, state, &own, node->actor.id, node->ready_term, now_ns, &view);
    lease_judge_take(&lease->judge, &view, node->ready_term, now_ns);
    OBJECT_CLEAR(lease_view, &view);
    OBJECT_CLEAR(lease_look, &own);
}

void sim_lease_judge(struct sim_node *node, struct sim_lease *lease, const struct state *state, const char *now,
                     sim_lease_propose_fn propose)
{
    uint64_t now_ns = local_ns(node->cluster, &node->actor), incarnation = node->actor.incarnation;
    struct lease_judgement *judgement;
    if (lease->proposed > 0 || lease->lead_term != node->ready_term)
        return;
    judgement = NEW(struct lease_judgement);
    lease_judge_tick(&lease->judge, state, now, now_ns, judgement);
    lease->suspects = judgement->suspects;
    for (unsigned i = 0; i < judgement->count && node->actor.up && node->actor.incarnation == incarnation; i++)
        propose(node, &judgement->commands[i]);
    lease_judgement_finish(judgement);
    free(judgement);
}

void sim_lease_lead(struct sim_node *node, struct sim_lease *lease, const struct state *state, const char *now,
                    sim_lease_propose_fn propose)
{
    uint64_t now_ns = local_ns(node->cluster, &node->actor);
    if (lease->lead_term != node->ready_term) {
        lease_judge_reset(&lease->judge);
        lease->lead_term = node->ready_term;
        lease->next_ns = 0;
    }
    if (now_ns < lease->next_ns && !lease->suspects)
        return;
    lease->next_ns = now_ns + LEASE_LOOK_MS * LEASE_MS;
    look(node, lease, state);
    sim_lease_judge(node, lease, state, now, propose);
}

/* ---- the agents ---- */

bool sim_vm_executes(const struct sim_agent *agent, const struct sim_vm *vm)
{
    const struct sim_cluster *cluster = agent->cluster;
    if (!vm->used || !vm->process || vm->paused || vm->held || agent->frozen_until_us > cluster->sim.now_us)
        return false;
    return vm->page_ns == 0 || local_ns(cluster, &agent->actor) < vm->page_ns;
}

uint64_t sim_lease_page(const struct sim_agent *agent, const struct sim_vm *vm, bool starts)
{
    struct plan_page facts = {
        .ha = vm->order.ha,
        .disarmed = agent->disarmed,
        .forgotten = vm->mind.forgotten,
        .gone = vm->mind.gone,
        .leaving = agent->going_down,
        .named = vm->mind.lease_generation,
        .epoch = vm->process || starts ? vm->run_epoch : vm->order.epoch,
        .order_epoch = vm->order.epoch,
        .starts = starts,
        .present = starts ? 1 : vm->page_ns,
    };
    if (agent->cluster->mutations.world.lease_unconfirmed) {
        facts.named = agent->holder.generation;
        facts.epoch = facts.order_epoch;
        facts.forgotten = facts.leaving = false;
    }
    return agent_plan_page(&agent->holder, &facts, local_ns(agent->cluster, &agent->actor));
}

void sim_lease_pages(struct sim_agent *agent)
{
    for (unsigned i = 0; i < agent->vms_top; i++)
        if (agent->vms[i].used)
            agent->vms[i].page_ns = sim_lease_page(agent, &agent->vms[i], false);
}

void sim_lease_orders(struct sim_agent *agent, const struct node_orders *orders)
{
    lease_holder_generation(&agent->holder, orders->generation);
    agent->disarmed = orders->disarmed;
    sim_lease_pages(agent);
    agent->arming = orders->arming;
    agent->told = true;
}

void sim_lease_answered(struct sim_agent *agent, const struct world_message *message)
{
    struct lease_answer answer;
    ASSERT(OBJECT_DECODE(lease_answer, message->text, strlen(message->text), OBJECT_LENIENT, &answer, NULL) == 0);
    lease_holder_answered(&agent->holder, &answer, message->number);
    OBJECT_CLEAR(lease_answer, &answer);
    sim_lease_pages(agent);
}

/* event->value: when it was asked, on the agent's clock; data: whom. */
static void refused(struct sim *sim UNUSED, struct sim_event *event)
{
    struct sim_agent *agent = CONTAINER_OF(event->actor, struct sim_agent, actor);
    const struct sim_node *node = event->data;
    char address[32];
    snprintf(address, sizeof address, "c%u:7443", node->actor.id);
    lease_holder_refused(&agent->holder, address, event->value, local_ns(agent->cluster, &agent->actor));
    sim_lease_pages(agent);
}

static bool is_cut(const struct sim_agent *agent, const struct sim_node *node)
{
    const struct sim_network *network = &agent->cluster->network;
    return network->cut[agent->actor.id][node->actor.id] || network->cut[node->actor.id][agent->actor.id];
}

/* The kernel says hello again: its first was lost. */
static void connect_again(struct sim *sim, struct sim_event *event)
{
    struct sim_agent *agent = CONTAINER_OF(event->actor, struct sim_agent, actor);
    struct sim_node *node = event->data;
    uint64_t now_ns = local_ns(agent->cluster, &agent->actor);
    if (!is_cut(agent, node) && !node->actor.up)
        refused(sim, event);
    else if (is_cut(agent, node) && now_ns - event->value < LATE_US * US_NS)
        sim_after(sim, sim_between(sim, AGAIN_MIN_US, AGAIN_MAX_US), connect_again, &agent->actor, node)->value = event->value;
}

static void ask(struct sim_agent *agent, struct sim_node *node)
{
    struct sim_cluster *cluster = agent->cluster;
    struct lease_question question = {0};
    struct world_message message = {.kind = WORLD_LEASE, .number = local_ns(cluster, &agent->actor)};
    if (is_cut(agent, node)) {
        uint64_t delay_us = sim_between(&cluster->sim, AGAIN_MIN_US, AGAIN_MAX_US);
        sim_after(&cluster->sim, delay_us, connect_again, &agent->actor, node)->value = message.number;
        return;
    }
    if (!node->actor.up) {
        bool late = sim_chance(&cluster->sim, 50);
        uint64_t delay_us = sim_between(&cluster->sim, SIM_MS, late ? LATE_US : 20 * SIM_MS);
        struct sim_event *event = sim_after(&cluster->sim, delay_us, refused, &agent->actor, node);
        event->value = message.number;
        return;
    }
    OBJECT_TEXT(lease_question, &question, host, agent->id);
    OBJECT_SET(lease_question, &question, generation, agent->holder.generation);
    OBJECT_SET(lease_question, &question, cluster_epoch, 1);
    OBJECT_SET(lease_question, &question, voters_index, lease_holder_counts_in(&agent->holder, 1));
    send_object(cluster, &agent->actor, &node->actor, &message, &lease_question_desc, &question, sim_fsm_deliver);
}

static void agent_tick(struct sim *sim, struct sim_event *event)
{
    struct sim_agent *agent = CONTAINER_OF(event->actor, struct sim_agent, actor);
    struct sim_cluster *cluster = agent->cluster;
    uint64_t now_us = sim_local_us(sim, &agent->actor);
    for (unsigned id = 1; id <= cluster->node_count; id++) {
        if (now_us < agent->lease_next_us[id])
            continue;
        agent->lease_next_us[id] = now_us + ASK_US;
        ask(agent, &cluster->nodes[id]);
    }
    sim_after(sim, sim_true_us(&agent->actor, AGENT_TICK_US), agent_tick, &agent->actor, NULL);
}

void sim_lease_agent_start(struct sim_agent *agent)
{
    const struct sim_world *world = world_of(agent->cluster);
    if (!world->leases)
        return;
    agent->holder = (struct lease_holder){.mutations = agent->cluster->mutations.world.holder};
    agent->disarmed = agent->told = false;
    agent->arming = 0;
    memset(agent->lease_next_us, 0, sizeof agent->lease_next_us);
    sim_after(&agent->cluster->sim, sim_between(&agent->cluster->sim, SIM_MS, AGENT_TICK_US), agent_tick, &agent->actor, NULL);
}

/* ---- the promise ---- */

static const struct sim_vm *executes_on(const struct sim_agent *agent, const char *id)
{
    for (unsigned i = 0; i < agent->vms_top; i++)
        if (agent->vms[i].used && strcmp(agent->vms[i].order.id, id) == 0)
            return sim_vm_executes(agent, &agent->vms[i]) ? &agent->vms[i] : NULL;
    return NULL;
}

/* A controller that has applied all that anybody has, or NULL. */
static struct sim_node *newest_node(struct sim_cluster *cluster)
{
    for (unsigned id = 1; id <= cluster->node_count; id++)
        if (cluster->nodes[id].actor.up && cluster->nodes[id].index == cluster->history_count)
            return &cluster->nodes[id];
    return NULL;
}

/* May the VM, which executes there, be started on another host by all that is committed? Then it is too late already, even
 * if nobody has started it yet. */
static bool given_away(const struct state *state, const struct sim_agent *agent, const struct sim_vm *vm)
{
    const struct record *held = state_get(state, object_kind_VM, vm->order.id);
    if (held == NULL || held->vm->host == NULL)
        return false;
    return strcmp(held->vm->host, agent->id) == 0 ? held->vm->recovering : held->vm->epoch > vm->run_epoch;
}

static bool never_given(const struct state *state, const struct sim_vm *vm)
{
    const struct record *held = state_get(state, object_kind_VM, vm->order.id);
    return held != NULL && vm->run_epoch > held->vm->epoch;
}

/* Nothing that counts here changes by an event of a controller that applies nothing. (A host that was frozen wakes with an
 * event of its own, which was put off to that moment.) */
static bool nothing_new(struct sim_cluster *cluster)
{
    struct sim_world *world = cluster->world;
    uint64_t applied = 0;
    for (unsigned id = 1; id <= cluster->node_count; id++)
        applied += cluster->nodes[id].index + cluster->nodes[id].actor.incarnation;
    bool same = cluster->sim.ran != NULL && cluster->sim.ran->id <= cluster->node_count && applied == world->checked_applied;
    world->checked_applied = applied;
    return same;
}

void sim_lease_check(struct sim_cluster *cluster)
{
    const struct sim_world *world = cluster->world;
    if (world == NULL || nothing_new(cluster))
        return;
    struct sim_node *newest = newest_node(cluster);
    for (unsigned a = 0; a < world->agent_count; a++) {
        const struct sim_agent *agent = &world->agents[a];
        sim_promise_apart(cluster, agent);
        for (unsigned i = 0; i < agent->vms_top; i++) {
            const struct sim_vm *vm = &agent->vms[i];
            if (!sim_vm_executes(agent, vm))
                continue;
            if (newest != NULL && never_given(sim_fsm_state(newest), vm))
                sim_violation(&cluster->sim, "VM %s executes on %s under epoch %llu, which nobody has given", vm->order.name,
                              agent->name, (unsigned long long)vm->run_epoch);
            if (newest != NULL && world->leases && given_away(sim_fsm_state(newest), agent, vm))
                sim_violation(&cluster->sim, "VM %s executes on %s, and may be started elsewhere", vm->order.name, agent->name);
            for (unsigned b = a + 1; b < world->agent_count; b++)
                if (executes_on(&world->agents[b], vm->order.id) != NULL)
                    sim_violation(&cluster->sim, "VM %s executes on %s and on %s", vm->order.name, agent->name,
                                  world->agents[b].name);
        }
    }
}
