/* Staged faults: what chance brings about too seldom, although the rules of the lease are made for it. Each takes one host
 * and lets some seconds pass between its acts; what runs on the host has to be held and, where the cluster can know, be
 * started elsewhere, and never both.
 *
 *   plain      The host is cut off, and its clock is as slow as it may be, the controllers' as fast.         rule 1
 *   refusals   The host is cut off for as long as a support lasts and a little more. When its cable is whole again most
 *              controllers have just died: they refuse what it asks, and what it asked before.           rule 3
 *   amnesia    The host and one controller are cut off together from the two others, which declare the host lost. Then one of
 *              these forgets what it had applied, is cut off from the leader, and is reached by the host.    rules 2, 5
 *   forgetful  The host is cut off from the leader, whose support runs out, and then from the others, of which one dies and
 *              starts at once: it does not know that it supports the host still.                        rule 5 */
#include "tests/sim/sim_world.h"

#define STAGE_MIN_US (11 * SIM_SECOND) /* from one to the next; each is over by then */
#define STAGE_MAX_US (14 * SIM_SECOND)
#define DOWN_MIN_US (500 * SIM_MS)
#define DOWN_MAX_US (3 * SIM_SECOND)

struct stage {
    struct sim_cluster *cluster;
    struct sim_agent *agent;
    unsigned leader, first, second; /* controllers */
};

static void cut(struct stage *stage, unsigned a, unsigned b, bool is_cut)
{
    struct sim_network *network = &stage->cluster->network;
    network->cut[a][b] = network->cut[b][a] = is_cut;
}

static void start_again(struct sim *sim UNUSED, struct sim_event *event)
{
    struct sim_node *node = event->data;
    if (!node->actor.up)
        sim_node_start(node);
}

static void die(struct stage *stage, unsigned id, uint64_t down_us)
{
    struct sim_node *node = &stage->cluster->nodes[id];
    sim_node_crash(node, "on stage");
    sim_after(&stage->cluster->sim, down_us, start_again, NULL, node);
}

static void mend(struct sim *sim UNUSED, struct sim_event *event)
{
    struct stage *stage = event->data;
    sim_network_heal(&stage->cluster->network);
    free(stage);
}

static void later(struct stage *stage, uint64_t low_us, uint64_t high_us, sim_event_fn fn)
{
    struct sim *sim = &stage->cluster->sim;
    sim_after(sim, sim_between(sim, low_us, high_us), fn, NULL, stage)->drop = free;
}

/* ---- plain ---- */

static void plain(struct stage *stage)
{
    sim_network_isolate(&stage->cluster->network, stage->agent->actor.id, true, true);
    later(stage, 6 * SIM_SECOND, 9 * SIM_SECOND, mend);
}

/* ---- refusals ---- */

static void refusals_two(struct sim *sim, struct sim_event *event)
{
    struct stage *stage = event->data;
    unsigned spared = (unsigned)sim_between(sim, 1, stage->cluster->node_count);
    for (unsigned id = 1; id <= stage->cluster->node_count; id++)
        if (id != spared)
            die(stage, id, sim_between(sim, DOWN_MIN_US, DOWN_MAX_US));
    mend(sim, event);
}

static void refusals(struct stage *stage)
{
    sim_network_isolate(&stage->cluster->network, stage->agent->actor.id, true, true);
    later(stage, 5500 * SIM_MS, 8 * SIM_SECOND, refusals_two);
}

/* ---- amnesia ---- */

static void amnesia_two(struct sim *sim UNUSED, struct sim_event *event)
{
    struct stage *stage = event->data;
    die(stage, stage->first, 50 * SIM_MS);
    cut(stage, stage->first, stage->leader, true);
    cut(stage, stage->first, stage->agent->actor.id, false);
    later(stage, SIM_SECOND, 3 * SIM_SECOND, mend);
}

static void amnesia(struct stage *stage)
{
    cut(stage, stage->second, stage->leader, true);
    cut(stage, stage->second, stage->first, true);
    cut(stage, stage->agent->actor.id, stage->leader, true);
    cut(stage, stage->agent->actor.id, stage->first, true);
    later(stage, 5300 * SIM_MS, 7 * SIM_SECOND, amnesia_two);
}

/* ---- forgetful ---- */

static void forgetful_two(struct sim *sim UNUSED, struct sim_event *event)
{
    struct stage *stage = event->data;
    sim_network_isolate(&stage->cluster->network, stage->agent->actor.id, true, true);
    die(stage, stage->first, 20 * SIM_MS);
    later(stage, 4 * SIM_SECOND, 5 * SIM_SECOND, mend);
}

static void forgetful(struct stage *stage)
{
    cut(stage, stage->agent->actor.id, stage->leader, true);
    later(stage, 5300 * SIM_MS, 6 * SIM_SECOND, forgetful_two);
}

/* ---- all of them ---- */

static void next(struct sim *sim, struct sim_event *event)
{
    static void (*const stages[])(struct stage *stage) = {plain, refusals, amnesia, forgetful};
    struct sim_cluster *cluster = event->data;
    struct sim_world *world = cluster->world;
    struct sim_node *leader = sim_cluster_leader(cluster);
    if (sim->now_us + STAGE_MIN_US > cluster->quiet_us)
        return;
    sim_after(sim, sim_between(sim, STAGE_MIN_US, STAGE_MAX_US), next, NULL, cluster);
    if (leader == NULL || cluster->node_count != 3)
        return;
    struct stage *stage = NEW(struct stage);
    unsigned a = leader->actor.id % 3 + 1, b = a % 3 + 1;
    bool swapped = sim_chance(sim, 500);
    *stage = (struct stage){cluster, &world->agents[sim_below(sim, world->agent_count)], leader->actor.id, swapped ? b : a,
                            swapped ? a : b};
    unsigned at = (unsigned)sim_below(sim, ARRAY_SIZE(stages));
    sim_log(sim, "stage %u begins: host %s, leader %u", at, stage->agent->name, stage->leader);
    stages[at](stage);
}

void sim_stage_start(struct sim_cluster *cluster)
{
    sim_after(&cluster->sim, sim_between(&cluster->sim, 7 * SIM_SECOND, 10 * SIM_SECOND), next, NULL, cluster);
}
