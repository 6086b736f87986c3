/* The nemesis: every so often it picks a fault that the scenario allows and a victim, the leader half of the time. */
#include "tests/sim/sim_faults.h"

#include <string.h>

static const struct sim_scenario scenarios[] = {
    {.name = "faults", .faults = SIM_FAULT_ALL, .fault_gap_ms = 2500, .text = "everything that can go wrong, all at once"},
    {.name = "snapshots", .faults = SIM_FAULT_ALL & ~SIM_FAULT_FULL_DISK, .fault_gap_ms = 900, .snapshot_threshold = 12,
     .snapshot_trailing = 4, .snapshot_extra_ms = 400, .text = "snapshots all the time, written slowly"},
    {.name = "restores", .faults = (SIM_FAULT_ALL & ~SIM_FAULT_FULL_DISK) | SIM_FAULT_SLOW_RESTORE, .fault_gap_ms = 700,
     .snapshot_threshold = 12, .snapshot_trailing = 4, .snapshot_extra_ms = 20,
     .text = "snapshots of the leader take long to restore"},
    {.name = "metadata", .faults = SIM_FAULT_ALL, .fault_gap_ms = 1500, .metadata_faults_per_thousand = 30,
     .text = "term and vote cannot always be written"},
    {.name = "sends",
     .faults = SIM_FAULT_LOSS | SIM_FAULT_CRASH | SIM_FAULT_PARTITION | SIM_FAULT_TRANSFER | SIM_FAULT_PAUSE,
     .fault_gap_ms = 700, .snapshot_threshold = 12, .snapshot_trailing = 8, .snapshot_extra_ms = 10, .send_held_ms = 3000,
     .send_held_per_thousand = 700, .text = "messages are held for long by who sends them, while the log goes on"},
    {.name = "full-disk", .faults = SIM_FAULT_FULL_DISK | SIM_FAULT_CRASH | SIM_FAULT_PARTITION, .fault_gap_ms = 1500,
     .text = "disks fill up"},
    {.name = "stalls", .faults = SIM_FAULT_PARTITION, .fault_gap_ms = 300, .stalls_per_thousand = 15, .five = true,
     .text = "single writes take seconds, leaders come and go meanwhile"},
    {.name = "members", .faults = SIM_FAULT_ALL | SIM_FAULT_MEMBERS, .fault_gap_ms = 2500,
     .text = "members come and go, and all that can go wrong"},
    {.name = "member-storm", .faults = SIM_FAULT_ALL | SIM_FAULT_MEMBERS, .fault_gap_ms = 900, .member_gap_ms = 250,
     .snapshot_threshold = 12, .snapshot_trailing = 4, .snapshot_extra_ms = 100, .text = "the same, in a hurry"},
    {.name = "alone", .faults = SIM_FAULT_ALL | SIM_FAULT_MEMBERS, .fault_gap_ms = 900, .member_gap_ms = 250,
     .snapshot_threshold = 12, .snapshot_trailing = 4, .snapshot_extra_ms = 100, .alone = true,
     .text = "the same, from one member on, and down to one"},
    {.name = "farewell", .faults = SIM_FAULT_PARTITION | SIM_FAULT_TRANSFER | SIM_FAULT_MEMBERS, .fault_gap_ms = 400,
     .member_gap_ms = 400, .splits_after_transfer = true,
     .text = "members are removed while leadership is handed to them"},
    {.name = "leases", .faults = SIM_FAULT_ALL, .fault_gap_ms = 2500, .drift_ppm = 9900, .leases = true,
     .text = "hosts and controllers are cut off, freeze, stop and come back; clocks go wrong as far as they may"},
    {.name = "staged", .faults = SIM_FAULT_LOSS, .drift_ppm = 9900, .drift_worst = true, .leases = true, .staged = true,
     .three = true, .text = "what the rules of the lease are made for, each in its turn (sim_stage.c), with clocks at their worst"},
    {.name = "hosts", .faults = SIM_FAULT_CLASS | SIM_FAULT_LOSS, .fault_gap_ms = 500,
     .text = "only the machine class's own faults"},
    {.name = "quiet", .text = "no faults at all"},
};

const struct sim_scenario *sim_scenario_at(size_t i)
{
    return i < ARRAY_SIZE(scenarios) ? &scenarios[i] : NULL;
}

const struct sim_scenario *sim_scenario_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(scenarios); i++)
        if (strcmp(scenarios[i].name, name) == 0)
            return &scenarios[i];
    return NULL;
}

static struct sim_node *fault_victim(struct sim_cluster *cluster)
{
    struct sim_node *leader = sim_cluster_leader(cluster);

    if (leader != NULL && sim_chance(&cluster->sim, 500))
        return leader;
    return &cluster->nodes[sim_between(&cluster->sim, 1, cluster->node_count)];
}

static void fault_restart(struct sim *sim UNUSED, struct sim_event *event)
{
    struct sim_node *node = event->data;

    if (!node->actor.up)
        sim_node_start(node);
}

static void fault_crash_one(struct sim_cluster *cluster, struct sim_node *node, uint64_t down_max_us)
{
    struct sim *sim = &cluster->sim;

    sim_node_crash(node, "killed");
    sim_after(sim, sim_between(sim, 10 * SIM_MS, down_max_us), fault_restart, NULL, node);
}

static void fault_crash(struct sim_cluster *cluster)
{
    struct sim *sim = &cluster->sim;

    fault_crash_one(cluster, fault_victim(cluster), 4 * SIM_SECOND);
    if (!sim_chance(sim, 200))
        return;
    for (unsigned id = 1; id <= cluster->node_count; id++)
        if (sim_chance(sim, 700))
            fault_crash_one(cluster, &cluster->nodes[id], 3 * SIM_SECOND);
}

static void fault_mend_network(struct sim *sim, struct sim_event *event)
{
    struct sim_cluster *cluster = event->data;

    sim_network_heal(&cluster->network);
    sim_log(sim, "the network is whole");
}

static void fault_partition(struct sim_cluster *cluster)
{
    struct sim *sim = &cluster->sim;
    bool one_way = sim_chance(sim, 250);

    if (sim_chance(sim, 300)) {
        struct sim_node *victim = fault_victim(cluster);
        bool outgoing = !one_way || sim_chance(sim, 500);

        sim_network_isolate(&cluster->network, victim->actor.id, outgoing, !one_way || !outgoing);
        sim_log(sim, "controller %u is cut off%s", victim->actor.id, one_way ? " in one direction" : "");
    } else {
        sim_network_split(&cluster->network, SIM_ACTORS_MAX, one_way);
        sim_log(sim, "the network splits%s", one_way ? " in one direction" : "");
    }
    sim_after(sim, sim_between(sim, 100 * SIM_MS, 6 * SIM_SECOND), fault_mend_network, NULL, cluster);
}

static void fault_pause(struct sim_cluster *cluster)
{
    struct sim_node *node = fault_victim(cluster);
    uint64_t us = sim_between(&cluster->sim, 50 * SIM_MS, 5 * SIM_SECOND);

    node->actor.paused_until_us = cluster->sim.now_us + us;
    sim_log(&cluster->sim, "controller %u stands still for %.2f s", node->actor.id, (double)us / 1e6);
}

static void fault_slow_disk(struct sim_cluster *cluster)
{
    struct sim_node *node = fault_victim(cluster);

    node->disk.slow_until_us = cluster->sim.now_us + sim_between(&cluster->sim, SIM_SECOND, 5 * SIM_SECOND);
    sim_log(&cluster->sim, "controller %u: slow disk", node->actor.id);
}

static void fault_full_disk(struct sim_cluster *cluster)
{
    bool all = sim_chance(&cluster->sim, 200);
    uint64_t until_us = cluster->sim.now_us + sim_between(&cluster->sim, SIM_SECOND, 8 * SIM_SECOND);
    struct sim_node *victim = fault_victim(cluster);

    for (unsigned id = 1; id <= cluster->node_count; id++)
        if (all || victim->actor.id == id)
            cluster->nodes[id].disk.full_until_us = until_us;
    sim_log(&cluster->sim, "controller %u: %s full", victim->actor.id, all ? "and all others: disk" : "disk");
}

static void fault_split(struct sim *sim UNUSED, struct sim_event *event)
{
    struct sim_cluster *cluster = event->data;

    if (cluster->sim.now_us < cluster->quiet_us)
        fault_partition(cluster);
}

static void transfer_cb(struct raft_transfer *req)
{
    free(req);
}

static void fault_transfer_call(struct sim_raft_io *io, void *arg UNUSED)
{
    struct raft_transfer *req = NEW(struct raft_transfer);

    if (raft_transfer(io->raft, req, 0, transfer_cb) != 0)
        free(req);
}

static void fault_transfer(struct sim_cluster *cluster)
{
    struct sim_node *leader = sim_cluster_leader(cluster);

    if (leader == NULL)
        return;
    sim_log(&cluster->sim, "controller %u hands leadership on", leader->actor.id);
    sim_raft_io_call(&leader->io, fault_transfer_call, NULL);
    if (cluster->scenario->splits_after_transfer)
        sim_after(&cluster->sim, sim_between(&cluster->sim, SIM_MS, 6 * SIM_MS), fault_split, NULL, cluster);
}

/* A change of the members, mostly a sensible one: there are to be three (or one) to five voters, and the leader is removed too. */
static void member_change(struct sim_cluster *cluster, struct sim_node *leader)
{
    struct sim *sim = &cluster->sim;
    const struct raft_configuration *configuration = &leader->raft->configuration;
    const struct raft_server *server;
    enum sim_change change;
    unsigned voters = 0, voters_min = cluster->scenario->alone ? 1 : 3, id;

    for (unsigned i = 0; i < configuration->n; i++)
        voters += configuration->servers[i].role == RAFT_VOTER;
    if (configuration->n == 0)
        return;
    if (cluster->added < cluster->newcomers && (configuration->n < 4 || sim_chance(sim, 250))) {
        id = cluster->node_count - cluster->newcomers + 1 + cluster->added;
        if (sim_node_change(leader, SIM_CHANGE_ADD, id) == 0) {
            cluster->added++;
            sim_log(sim, "controller %u adds %u", leader->actor.id, id);
        }
        return;
    }
    server = &configuration->servers[sim_below(sim, configuration->n)]; /* gone after the change */
    id = (unsigned)server->id;
    if (server->role != RAFT_VOTER)
        change = voters < 5 || sim_chance(sim, 200) ? SIM_CHANGE_PROMOTE : SIM_CHANGE_REMOVE;
    else if (voters == 2 && id == leader->actor.id && !cluster->mutations.raft.no_last_vote_guard)
        return; /* guard R */
    else if (voters > voters_min)
        change = sim_chance(sim, 400) ? SIM_CHANGE_DEMOTE : SIM_CHANGE_REMOVE;
    else
        return;
    sim_log(sim, "controller %u %s %u: %s", leader->actor.id,
            change == SIM_CHANGE_PROMOTE  ? "promotes"
            : change == SIM_CHANGE_DEMOTE ? "demotes"
                                          : "removes",
            id, raft_strerror(sim_node_change(leader, change, id)));
}

static void member_ready(struct sim *sim UNUSED, struct sim_event *event)
{
    struct sim_node *node = event->data;

    if (sim_node_leads(node) && raft_current_term(node->raft) == event->value)
        member_change(node->cluster, node);
}

/* Not from inside libraft's callback. */
static void member_barrier(void *arg, int status)
{
    struct sim_node *node = arg;

    if (status == 0)
        sim_after(&node->cluster->sim, 0, member_ready, &node->actor, node)->value = raft_current_term(node->raft);
}

static void member_next(struct sim *sim, struct sim_event *event)
{
    struct sim_cluster *cluster = event->data;
    struct sim_node *leader = sim_cluster_leader(cluster);
    unsigned gap_ms = cluster->scenario->member_gap_ms;

    if (sim->now_us >= cluster->quiet_us)
        return;
    if (leader != NULL && cluster->mutations.raft.no_change_guard)
        member_change(cluster, leader);
    else if (leader != NULL)
        sim_node_barrier(leader, member_barrier, leader);
    sim_after(sim, sim_between(sim, 20 * SIM_MS, (gap_ms > 0 ? gap_ms : 1000) * SIM_MS), member_next, NULL, cluster);
}

static void fault_class(struct sim_cluster *cluster)
{
    if (cluster->class->fault != NULL)
        cluster->class->fault(cluster);
}

/* Chances add up to 100. */
static const struct {
    enum sim_fault fault;
    unsigned percent;
    void (*make)(struct sim_cluster *cluster);
} faults[] = {
    {SIM_FAULT_CRASH, 25, fault_crash},         {SIM_FAULT_PARTITION, 25, fault_partition},
    {SIM_FAULT_PAUSE, 10, fault_pause},         {SIM_FAULT_SLOW_DISK, 10, fault_slow_disk},
    {SIM_FAULT_FULL_DISK, 5, fault_full_disk},  {SIM_FAULT_TRANSFER, 10, fault_transfer},
    {SIM_FAULT_CLASS, 15, fault_class},
};

static void fault_next(struct sim *sim, struct sim_event *event)
{
    struct sim_cluster *cluster = event->data;
    unsigned at = (unsigned)sim_below(sim, 100);

    if (sim->now_us >= cluster->quiet_us)
        return;
    for (size_t i = 0; i < ARRAY_SIZE(faults); i++) {
        if (at < faults[i].percent) {
            if ((cluster->scenario->faults & faults[i].fault) != 0)
                faults[i].make(cluster);
            break;
        }
        at -= faults[i].percent;
    }
    sim_after(sim, sim_between(sim, 50 * SIM_MS, cluster->scenario->fault_gap_ms * SIM_MS), fault_next, NULL,
              cluster);
}

void sim_faults_start(struct sim_cluster *cluster)
{
    const struct sim_scenario *scenario = cluster->scenario;

    if ((scenario->faults & SIM_FAULT_LOSS) != 0)
        cluster->network.loss_per_thousand = 4;
    for (unsigned id = 1; id <= cluster->node_count; id++)
        cluster->nodes[id].io.metadata_faults_per_thousand = scenario->metadata_faults_per_thousand;
    if ((scenario->faults & SIM_FAULT_MEMBERS) != 0)
        sim_after(&cluster->sim, 2 * SIM_SECOND, member_next, NULL, cluster);
    if (scenario->fault_gap_ms > 0)
        sim_after(&cluster->sim, 3 * SIM_SECOND, fault_next, NULL, cluster);
}

void sim_faults_heal(struct sim_cluster *cluster)
{
    sim_log(&cluster->sim, "--- no more faults");
    sim_network_heal(&cluster->network);
    cluster->network.loss_per_thousand = 0;
    for (unsigned id = 1; id <= cluster->node_count; id++) {
        struct sim_node *node = &cluster->nodes[id];

        node->io.metadata_faults_per_thousand = 0;
        node->disk.stalls_per_thousand = 0;
        node->disk.slow_until_us = node->disk.full_until_us = 0;
        node->actor.paused_until_us = 0;
        if (!node->actor.up)
            sim_node_start(node);
    }
    if (cluster->class->heal != NULL)
        cluster->class->heal(cluster);
}
