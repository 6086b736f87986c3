/* A simulated cluster of controllers: the real Raft core on our raft_io, entries and snapshots framed as the real
 * controller frames them, one state machine each, and the checks that hold at every moment:
 *
 *   - one leader a term, no vote twice, no term going back (also on disk)
 *   - a leader was elected by whom the log on its disk names; a snapshot names the members as of its index; what libraft
 *     counts as written stays on the disk
 *   - the same command and the same state at each index on every controller; snapshots are states of that history
 *   - an acknowledged command is in the history, where its proposer was told, and behind all that was acknowledged
 *     before it was proposed; nothing acknowledged is ever missing (for one log of commands that is linearizability)
 *   - a read, by questions to the voters (raft_confirm.h) or behind a barrier in the log, sees all that was acknowledged
 *     before it was asked
 *   - after 12 seconds without faults the leader stays; after 20: one leader, all members level, commands acknowledged again
 *
 * A snapshot of the leader's is restored in virtual time, as raft_restore.c does it with a thread: milliseconds, or seconds
 * in scenarios with SIM_FAULT_SLOW_RESTORE.
 *
 * Where the scenario changes the members (SIM_FAULT_MEMBERS), one, three or five of SIM_NODES_MAX controllers are members
 * at first; the others run on empty disks until they are added. An id is never added twice. */
#ifndef TESTS_SIM_SIM_NODE_H
#define TESTS_SIM_SIM_NODE_H

#include "common/list.h"
#include "compute/agent/lease_holder.h"
#include "controller/lease/lease_judge.h"
#include "controller/raft/raft_confirm.h"
#include "controller/raft/raft_deferred.h"
#include "tests/sim/sim_machine.h"
#include "tests/sim/sim_raft_io.h"

#define SIM_NODES_MAX 10u
#define SIM_GROUP_COMMANDS_MAX 20u

/* What is broken on purpose, to see that it is found (main.c has the list). */
struct sim_world_mutations { /* of the cluster class (sim_fsm.c) */
    bool no_idempotency;          /* commands lose their key before they are applied */
    bool believe_all_reports;     /* any epoch and generation is taken for the newest */
    bool no_reconcile;
    bool new_key_for_retry;       /* clients forget their key */
    /* leases: each rule of docs/ha.md in turn */
    struct lease_table_mutations table;
    struct lease_judge_mutations judge;
    struct lease_holder_mutations holder;
    bool resumes;                 /* migrations: a source that has no answer goes on after a while */
    bool runs_early;              /* a target that has all runs before it is its own */
    bool lease_unconfirmed;       /* agents give every VM the lease, also those that their orders do not name */
};

struct sim_mutations {
    struct sim_raft_mutations raft;
    bool no_result_guard; /* guard D: libraft's statuses are believed */
    bool no_prevote;
    bool disk_acknowledges_early;
    bool acknowledge_before_commit;
    bool read_without_barrier;
    bool confirm_without_term; /* raft_confirm.h: its first condition is not kept */
    bool apply_depends_on_node;
    bool snapshot_forgets;
    bool restore_apply, restore_answer, restore_snapshot; /* the three rules of raft_deferred.h are not kept */
    struct sim_world_mutations world;
};

struct sim_scenario {
    const char *name;
    const char *text;
    unsigned faults; /* bits of enum sim_fault */
    unsigned fault_gap_ms; /* the longest time between two faults; 0: none */
    unsigned snapshot_threshold, snapshot_trailing, snapshot_extra_ms; /* 0: 64, 16, 40 */
    unsigned metadata_faults_per_thousand;
    unsigned member_gap_ms; /* the longest time between two changes of the members; 0: 1000 */
    unsigned send_held_ms, send_held_per_thousand; /* sim_raft_io.h; 0: 300 ms */
    unsigned stalls_per_thousand; /* of writes: they take 0.5 to 4 s */
    unsigned drift_ppm;           /* how far clocks go wrong, at most; 0: 500 */
    bool drift_worst;             /* hosts' clocks are slow, controllers' fast, as far as they may be */
    bool staged;                  /* cluster class: sim_stage.c */
    bool leases;                  /* cluster class: every VM may have ha, a host may burn for good */
    bool splits_after_transfer;   /* the network, while leadership is handed on */
    bool three; /* members always, not five at times */
    bool five;  /* members always, not three mostly */
    bool alone; /* one member at first, and no fewer later; else three or five at first, and three later */
};

struct sim_history_entry {
    uint64_t command_hash, state_hash;
};

struct sim_stats {
    uint64_t acknowledged, unknown, refused, reads, asked, elections, crashes, broken, snapshots, installs, changes, deferred;
};

struct sim_node {
    struct sim_actor actor; /* first */
    struct sim_cluster *cluster;
    struct sim_raft_io io;
    struct sim_disk disk;
    struct raft *raft; /* of this process; leaks with it, as a crashed process's memory would */
    struct raft_fsm fsm;
    struct raft_tracer tracer;
    char members[200]; /* with --trace: as last told */
    struct raft_machine machine;
    pthread_rwlock_t lock;
    uint64_t index;    /* commands applied */
    bool starting;     /* restoring takes no time then */
    struct raft_buffer restoring; /* a snapshot on its way into the machine; base NULL: none */
    uint64_t restores;            /* begun by this process: which one an event is about */
    struct raft_deferred deferred;
    uint64_t proposer; /* of this process */
    uint64_t sequence;
    struct list groups;
    struct raft_change change;   /* of the members, while change_term is that of this leader */
    uint64_t change_term;        /* 0: none is under way */
    uint64_t barrier_term, ready_term; /* a barrier of that term was asked for, was applied */
    uint64_t confirmed_term; /* a barrier of that term was applied while this one led: raft_node's ready_term */
    struct raft_confirm confirm;
    struct list asking, waiting; /* struct barrier: of the round under way, for the next one */
    uint64_t confirm_since_us, read_by_log_until_us;
    int64_t wall_jump_ms; /* its wall clock was set wrong by so much */
};

struct sim_cluster {
    struct sim sim;
    struct sim_network network;
    struct sim_raft_heap heap;
    const struct sim_machine_class *class;
    const struct sim_scenario *scenario;
    struct sim_mutations mutations;
    unsigned node_count;
    unsigned newcomers; /* the last so many of them are no members at first */
    unsigned added;     /* of the newcomers, in their order: asked for, at least */
    struct sim_node nodes[SIM_NODES_MAX + 1]; /* [1] .. [node_count] */
    void *world;                              /* the machine class's own: agents, hosts, VMs */
    uint64_t end_us, quiet_us;                /* faults stop at quiet_us */
    struct sim_history_entry *history;        /* [index - 1] */
    size_t history_count, history_capacity;
    uint64_t acknowledged_index; /* the highest told to anybody */
    uint64_t *leaders;           /* [term]: who led it */
    size_t leaders_size;
    struct sim_stats stats;
};

void sim_cluster_init(struct sim_cluster *cluster, uint64_t seed, bool verbose, const struct sim_machine_class *class,
                      const struct sim_scenario *scenario, const struct sim_mutations *mutations, unsigned seconds);
/* Start all controllers, clients and faults, run to the end, check that all is well again. The result is in
 * cluster->sim.violation. */
void sim_cluster_run(struct sim_cluster *cluster);
void sim_cluster_finish(struct sim_cluster *cluster);

void sim_node_start(struct sim_node *node);
void sim_node_trace(struct sim_node *node); /* tell whom it counts as members, where that has changed */
void sim_node_crash(struct sim_node *node, const char *why);
bool sim_node_leads(const struct sim_node *node); /* it thinks so, and is not paused */
struct sim_node *sim_cluster_leader(struct sim_cluster *cluster); /* one that thinks so, or NULL */

/* Propose one command: @done comes once, with a status as of raft_node_propose and the machine's result (to be
 * released by the callee). Negative: nothing happened. For the machine class; @done may be NULL. */
typedef void (*sim_propose_cb)(void *arg, int status, void *result);
int sim_node_propose(struct sim_node *node, const void *command, size_t size, sim_propose_cb done, void *arg);
typedef void (*sim_barrier_cb)(void *arg, int status);
int sim_node_barrier(struct sim_node *node, sim_barrier_cb done, void *arg);

/* Change the members; a leader does one at a time. Errors are libraft's. */
enum sim_change { SIM_CHANGE_ADD, SIM_CHANGE_PROMOTE, SIM_CHANGE_DEMOTE, SIM_CHANGE_REMOVE };
int sim_node_change(struct sim_node *leader, enum sim_change change, unsigned id);

/* For clients: several of the class's commands as one group. */
void sim_node_load(struct sim_node *node, unsigned commands);

#endif
