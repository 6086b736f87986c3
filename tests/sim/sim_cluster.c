/* The run of a simulated cluster: controllers start, clients load the leader, faults come and go, the last 20 seconds
 * are quiet, and then all must be well again. */
#include "tests/sim/sim_faults.h"
#include "tests/sim/sim_node.h"

#include <string.h>

enum { QUIET_SECONDS = 20, STEADY_SECONDS = 8, LEVEL_LAG_MAX = 200, CLOCK_DRIFT_PPM_MAX = 500 };

void sim_cluster_init(struct sim_cluster *cluster, uint64_t seed, bool verbose, const struct sim_machine_class *class,
                      const struct sim_scenario *scenario, const struct sim_mutations *mutations, unsigned seconds)
{
    struct sim *sim = &cluster->sim;

    memset(cluster, 0, sizeof(*cluster));
    sim_init(sim, seed, verbose);
    sim_network_init(&cluster->network, sim);
    sim_raft_heap_install(&cluster->heap);
    cluster->class = class;
    cluster->scenario = scenario;
    cluster->mutations = *mutations;
    cluster->node_count = sim_chance(sim, 200) ? 5 : 3;
    if (scenario->three)
        cluster->node_count = 3;
    if (scenario->five)
        cluster->node_count = 5;
    if (scenario->alone)
        cluster->node_count = 1;
    if ((scenario->faults & SIM_FAULT_MEMBERS) != 0) {
        cluster->newcomers = SIM_NODES_MAX - cluster->node_count;
        cluster->node_count = SIM_NODES_MAX;
    }
    cluster->end_us = seconds * SIM_SECOND;
    cluster->quiet_us = cluster->end_us - QUIET_SECONDS * SIM_SECOND;
    for (unsigned id = 1; id <= cluster->node_count; id++) {
        struct sim_node *node = &cluster->nodes[id];

        node->cluster = cluster;
        node->actor.id = id;
        node->actor.kind = "controller";
        node->actor.clock_offset_us = sim_between(sim, SIM_SECOND, 1000 * SIM_SECOND);
        int64_t drift_ppm = scenario->drift_ppm > 0 ? scenario->drift_ppm : CLOCK_DRIFT_PPM_MAX;
        node->actor.clock_drift_ppm = (int64_t)sim_below(sim, 2 * (uint64_t)drift_ppm + 1) - drift_ppm;
        if (scenario->drift_worst)
            node->actor.clock_drift_ppm = drift_ppm;
        ASSERT(pthread_rwlock_init(&node->lock, NULL) == 0);
        sim_disk_init(&node->disk, sim, &node->actor);
        if (scenario->snapshot_extra_ms > 0)
            node->disk.snapshot_extra_ms = scenario->snapshot_extra_ms;
        node->disk.stalls_per_thousand = scenario->stalls_per_thousand;
        node->disk.acknowledges_early = mutations->disk_acknowledges_early;
    }
}

struct sim_node *sim_cluster_leader(struct sim_cluster *cluster)
{
    struct sim_node *found = NULL;
    unsigned count = 0;

    /* There may be two: one of them does not know better yet. */
    for (unsigned id = 1; id <= cluster->node_count; id++)
        if (sim_node_leads(&cluster->nodes[id]) && sim_below(&cluster->sim, ++count) == 0)
            found = &cluster->nodes[id];
    return found;
}

/* --- Clients ---------------------------------------------------------------------------------------------------- */

/* Each client asks a controller at random; whoever thinks that it leads gets the command. */
static void client_next(struct sim *sim, struct sim_event *event)
{
    struct sim_cluster *cluster = event->data;
    bool light = cluster->class->load_gap_ms > 0, few_members = cluster->newcomers > 0;
    unsigned gap_ms = light ? cluster->class->load_gap_ms : few_members ? 100 : 30;
    unsigned commands = !light && sim_chance(sim, 100) ? SIM_GROUP_COMMANDS_MAX : (unsigned)sim_between(sim, 1, 3);
    struct sim_node *node = &cluster->nodes[sim_between(sim, 1, cluster->node_count)];

    if ((light || few_members) && sim_cluster_leader(cluster) != NULL)
        node = sim_cluster_leader(cluster);
    if (sim_node_leads(node))
        sim_node_load(node, commands);
    if (sim_chance(sim, 300) && sim_node_leads(node))
        sim_node_barrier(node, NULL, NULL);
    sim_after(sim, sim_between(sim, SIM_MS, gap_ms * SIM_MS), client_next, NULL, cluster);
}

/* --- Checks ----------------------------------------------------------------------------------------------------- */

/* A new leader was elected by whom the log on its disk names. */
static void cluster_check_members(struct sim_cluster *cluster, const struct sim_node *node)
{
    const struct raft_configuration *now = &node->raft->configuration;
    struct raft_configuration members;
    bool same;

    sim_disk_newest_members(&node->disk, &members);
    same = members.n == now->n;
    for (unsigned i = 0; same && i < members.n; i++)
        same = members.servers[i].id == now->servers[i].id && members.servers[i].role == now->servers[i].role;
    raft_configuration_close(&members);
    if (!same)
        sim_violation(&cluster->sim, "controller %u leads term %llu, elected by others than its log names",
                      node->actor.id, raft_current_term(node->raft));
}

static void cluster_check_leaders(struct sim_cluster *cluster)
{
    for (unsigned id = 1; id <= cluster->node_count; id++) {
        const struct sim_node *node = &cluster->nodes[id];
        size_t term;

        if (cluster->sim.trace && node->actor.up)
            sim_node_trace(&cluster->nodes[id]);
        if (!node->actor.up || raft_state(node->raft) != RAFT_LEADER)
            continue;
        term = (size_t)raft_current_term(node->raft);
        if (term >= cluster->leaders_size) {
            size_t size = MAX(term + 1, cluster->leaders_size * 2 + 64);

            cluster->leaders = xrealloc(cluster->leaders, size * sizeof(*cluster->leaders));
            memset(cluster->leaders + cluster->leaders_size, 0,
                   (size - cluster->leaders_size) * sizeof(*cluster->leaders));
            cluster->leaders_size = size;
        }
        if (cluster->leaders[term] == 0) {
            cluster->leaders[term] = id;
            cluster->stats.elections++;
            sim_log(&cluster->sim, "controller %u leads term %zu", id, term);
            cluster_check_members(cluster, node);
        } else if (cluster->leaders[term] != id) {
            sim_violation(&cluster->sim, "controllers %u and %u both lead term %zu", (unsigned)cluster->leaders[term],
                          id, term);
        }
    }
}

/* By the newest configuration that @node knows. Spares get no log. */
static bool node_is_member(const struct sim_node *node, unsigned id)
{
    const struct raft_configuration *configuration = &node->raft->configuration;

    for (unsigned i = 0; i < configuration->n; i++)
        if (configuration->servers[i].id == id)
            return configuration->servers[i].role != RAFT_SPARE;
    return false;
}

static void cluster_check_end(struct sim_cluster *cluster, uint64_t acknowledged_before_last_second)
{
    struct sim *sim = &cluster->sim;
    uint64_t lowest = UINT64_MAX, highest = 0;
    unsigned leaders = 0;
    const struct sim_node *leader = NULL;

    for (unsigned id = 1; id <= cluster->node_count; id++) {
        leaders += sim_node_leads(&cluster->nodes[id]);
        leader = sim_node_leads(&cluster->nodes[id]) ? &cluster->nodes[id] : leader;
    }
    for (unsigned id = 1; leader != NULL && id <= cluster->node_count; id++) {
        const struct sim_node *node = &cluster->nodes[id];

        if (!node_is_member(leader, id))
            continue;
        lowest = MIN(lowest, node->index);
        highest = MAX(highest, node->index);
    }
    if (leaders != 1)
        sim_violation(sim, "%u leaders after %d s without faults", leaders, QUIET_SECONDS);
    else if (highest - lowest > LEVEL_LAG_MAX)
        sim_violation(sim, "a controller is at index %llu, another at %llu, after %d s without faults",
                      (unsigned long long)lowest, (unsigned long long)highest, QUIET_SECONDS);
    else if (cluster->acknowledged_index > cluster->history_count)
        sim_violation(sim, "index %llu was acknowledged, the history ends at %zu",
                      (unsigned long long)cluster->acknowledged_index, cluster->history_count);
    else if (cluster->stats.acknowledged == acknowledged_before_last_second)
        sim_violation(sim, "no command is acknowledged after %d s without faults", QUIET_SECONDS);
}

/* --- The run ---------------------------------------------------------------------------------------------------- */

static void cluster_run_to(struct sim_cluster *cluster, uint64_t until_us)
{
    while (sim_step(&cluster->sim, until_us)) {
        cluster_check_leaders(cluster);
        if (cluster->class->check_world != NULL)
            cluster->class->check_world(cluster);
    }
}

void sim_cluster_run(struct sim_cluster *cluster)
{
    struct sim *sim = &cluster->sim;
    uint64_t acknowledged, elections;

    for (unsigned id = 1; id <= cluster->node_count; id++)
        sim_node_start(&cluster->nodes[id]);
    if (cluster->class->begin != NULL)
        cluster->class->begin(cluster);
    sim_after(sim, 2 * SIM_SECOND, client_next, NULL, cluster);
    sim_faults_start(cluster);
    cluster_run_to(cluster, cluster->quiet_us);
    sim_faults_heal(cluster);
    cluster_run_to(cluster, cluster->end_us - STEADY_SECONDS * SIM_SECOND);
    elections = cluster->stats.elections;
    cluster_run_to(cluster, cluster->end_us - SIM_SECOND);
    acknowledged = cluster->stats.acknowledged;
    cluster_run_to(cluster, cluster->end_us);
    for (unsigned id = 1; id <= cluster->node_count; id++)
        cluster->stats.installs += cluster->nodes[id].disk.installs;
    if (cluster->stats.elections != elections)
        sim_violation(sim, "elections go on after %d s without faults", QUIET_SECONDS - STEADY_SECONDS);
    if (sim->violation[0] == '\0')
        cluster_check_end(cluster, acknowledged);
    if (cluster->class->finish != NULL)
        cluster->class->finish(cluster);
}

void sim_cluster_finish(struct sim_cluster *cluster)
{
    sim_finish(&cluster->sim);
    free(cluster->history);
    free(cluster->leaders);
    raft_heap_set_default();
}
