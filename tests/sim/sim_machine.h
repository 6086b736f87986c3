/* What a simulated cluster replicates: the door for other state machines than the simulator's own (sim_history.c).
 *
 * A class makes one machine for each controller process; the engine applies, snapshots, restores, compares states
 * between controllers at every index, and calls the hooks below. Agents, when a class has any, are sim_actors of its
 * own: made in `begin`, talking to controllers with sim_network_send, proposing with sim_node_propose. */
#ifndef TESTS_SIM_SIM_MACHINE_H
#define TESTS_SIM_SIM_MACHINE_H

#include "controller/raft/raft_node.h"

struct sim_cluster;
struct sim_node;

struct sim_machine_class {
    const char *name;
    unsigned load_gap_ms; /* the longest time between two loads of the engine's own client; 0: 30 */
    /* A controller process starts: an empty state (the engine then restores and applies, and fills in `lock`). */
    void (*create)(struct sim_node *node, struct raft_machine *ret_machine);
    /* The process is gone. */
    void (*destroy)(struct raft_machine *machine);
    /* Equal states have equal hashes, others differ. Called after each command: keep a running hash. */
    uint64_t (*hash)(const struct raft_machine *machine);
    /* Invariants, after each command and each restore; false with words. May be NULL. */
    bool (*check)(const struct raft_machine *machine, char *text, size_t size);
    /* A client's next command, made from what it can see of @node's state (the leader's). */
    void (*generate)(struct sim_node *node, struct bytes_writer *out);

    /* --- all may be NULL --- */
    void (*begin)(struct sim_cluster *cluster); /* time 0: make agents, put things into cluster->world */
    /* Each 100 ms of a leader's own clock, once a barrier of its own term has been applied: reconcile. */
    void (*lead)(struct sim_node *node);
    void (*fault)(struct sim_cluster *cluster);  /* one fault of the class's own: an agent stops, a host burns */
    void (*heal)(struct sim_cluster *cluster);   /* no more faults from now on */
    void (*check_world)(struct sim_cluster *cluster); /* after each event: sim_violation where a promise is broken */
    void (*finish)(struct sim_cluster *cluster); /* after 20 quiet seconds: is all well again? Frees `world` */
};

extern const struct sim_machine_class sim_history_class;

#endif
