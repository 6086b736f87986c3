/* The cluster in the simulator: real state machine, decide, reconcile and node_sync in the simulated controllers; models
 * of agents and of clients around them. The machine class is sim_cluster_class.
 *
 *   client --request, Idempotency-Key--> controller --decide, propose--> state --orders--> agent --> a VMM runs
 *          <--answer--                              <--changes--         <--report--
 *
 * Checked besides what sim_node.h lists, at every moment:
 *   - the state's own invariants (check.h) after each command, on every controller
 *   - a VM executes on at most one host, and its disks are never removed unless its owner asked for it
 *   - one Idempotency-Key has one answer; what was acknowledged is there; a fresh name is never refused as taken
 *   - a start that is called succeeded did happen, under its epoch
 *   - VMs that are kept apart are, and those of lost hosts come by their priority (sim_promises.c)
 * and after 20 quiet seconds: every operation has ended, every VM is as its owner wants it, no VM is there that nobody
 * made, and controllers at the same index have the same bytes. */
#ifndef TESTS_SIM_SIM_WORLD_H
#define TESTS_SIM_SIM_WORLD_H

#include <stdio.h>

#include "compute/agent/agent_plan.h"
#include "controller/command/decide.h"
#include "controller/fsm/apply.h"
#include "controller/nodes/node_sync.h"
#include "controller/reconcile/reconcile.h"
#include "tests/sim/sim_node.h"

#define WORLD_AGENTS 3u
#define WORLD_CLIENTS 2u
#define WORLD_AGENT_ID 11u  /* actor ids of agents: 11, 12, ... */
#define WORLD_CLIENT_ID 21u /* of clients: 21, 22 */
#define WORLD_VMS_MAX 200u  /* ever made in one run */
#define WORLD_NAME_BYTES 32u
#define WORLD_HOST_MIB 1200u
#define WORLD_GROUPS 2u     /* of VMs that are kept apart: anti-affinity=g1, g2 */
#define WORLD_EPOCH_MS UINT64_C(1769860800000) /* the wall clock at time 0: 2026-01-31T12:00:00Z */

/* ---- messages ---- */

enum world_kind { WORLD_REQUEST, WORLD_ANSWER, WORLD_REPORT, WORLD_ORDERS, WORLD_HANDOVER, WORLD_HANDED, WORLD_LEASE,
                  WORLD_LEASE_ANSWER, WORLD_LOOK, WORLD_VIEW };

struct world_message {
    enum world_kind kind;
    uint64_t number; /* of the request or report; its answer carries it back */
    enum route_id route;
    char target[STATE_ID_BYTES];
    char key[WORLD_NAME_BYTES];
    char *text; /* JSON: body, report or orders; NULL = none; owned */
    int code;   /* of an answer: 0, or a negative errno with kind and words */
    enum error_kind error;
    char words[200];
    char object_id[STATE_ID_BYTES], operation_id[STATE_ID_BYTES];
};

/* ---- what is true, whoever knows it ---- */

struct world_vm { /* one that a client has asked for */
    char name[WORLD_NAME_BYTES];
    char id[STATE_ID_BYTES]; /* as acknowledged; "" = not yet */
    bool exists;             /* acknowledged and not acknowledged as deleted */
    bool deletion_asked;
    bool uncertain;          /* a request was refused: a lost twin of it may still be carried out, `wanted` says nothing */
    enum vm_wanted wanted;   /* as last acknowledged */
    uint64_t started_epoch;  /* the highest that a VMM was started under */
    uint64_t given_epoch[WORLD_AGENTS]; /* the highest that each host was given it under, by what is committed */
    unsigned snapshots;      /* ever asked for: <name>-s1, -s2, ... */
    unsigned group;          /* of those that are kept apart; 0: none */
    char task_id[STATE_ID_BYTES]; /* operation of the last one of its snapshots that was acknowledged; "" = none */
};

struct world_answer { /* of a key */
    char key[WORLD_NAME_BYTES];
    char object_id[STATE_ID_BYTES], operation_id[STATE_ID_BYTES];
};

/* ---- VMs of hosts (sim_vm.c) ---- */

#define SIM_AGENT_VMS_MAX 64u
#define SIM_VM_IMPATIENT_S 3u /* guests that are given no longer to shut down may be deaf (random histories) */

struct sim_vm_mind { /* of its agent: begun anew when that dies */
    enum vm_state state;
    const char *reason;
    bool may_relocate;   /* as of the last orders */
    bool confirmed;      /* an order has named it, to this agent */
    bool forgotten, removing, gone;
    bool prepared;
    bool owned;          /* arriving: it is this host's now, and its VMM is to be told */
    bool stale;          /* its VMM waits for a migration that is not how it came to be this host's */
    bool left;           /* it runs elsewhere, under an epoch above left_epoch */
    uint64_t left_epoch;
    bool answers, shutdown_asked, stop_asked, kill_sent;
    bool deaf;           /* to the last of these two */
    uint64_t shutdown_until_ms, stop_until_ms;
    enum plan_end end;
    const char *end_text;
    struct plan_tries tries;
    enum plan_step busy_with; /* so many ticks more */
    unsigned busy_ticks;
    uint64_t answer_index;     /* of the newest answer that had an order for it */
    uint64_t lease_generation; /* of the orders that named it last; 0: none has, to this agent */
};

struct sim_vm {
    bool used;
    /* on its disk: vm.json */
    struct vm_order order;    /* the last one obeyed */
    uint64_t index;           /* of the answer that it came with */
    enum vm_state kept_state; /* how that went, and whether there was a VMM then, in which boot */
    bool kept_process;
    unsigned kept_boots;
    uint64_t generation;      /* reached */
    uint64_t boot_done, restarts;
    uint64_t run_epoch;       /* of the last start; 0 = never */
    uint64_t released;        /* the epoch that is never started here again; 0: none */
    bool missing;             /* nothing of it was there when it was ordered, and it had disks */
    char arriving[STATE_ID_BYTES], leaving[STATE_ID_BYTES]; /* migrations that bring it here, or take it away; "" = none */
    /* its VMM: lives on when the agent dies */
    bool process, paused;
    unsigned group;           /* world_vm.group, at hand */
    bool waits, has_all;      /* arriving: a VMM is there and waits; it has all of the guest */
    bool held;                /* leaving: its guest stands still until it is told whose it is */
    unsigned held_ticks;      /* asked so often whose it is */
    uint64_t page_ns;         /* that it obeys: the deadline of its host's lease, on its host's clock; 0: none rules it */
    int parting;              /* what the last one said when it ended (plan_recall); -1: nothing */
    struct sim_vm_mind mind;
};

struct sim_agent;
void sim_vm_make(struct sim_agent *agent, struct sim_vm *vm, const struct vm_order *order, uint64_t index); /* in a free place */
void sim_vm_drop(struct sim_vm *vm);                          /* the place is free; nothing else changes */
void sim_vm_load(struct sim_agent *agent, struct sim_vm *vm); /* its agent starts; it may be dropped */
void sim_vm_give_order(struct sim_agent *agent, struct sim_vm *vm, const struct vm_order *order, uint64_t index);
void sim_vm_forget(struct sim_agent *agent, struct sim_vm *vm); /* it may be dropped, here and by a tick */
void sim_vm_tick(struct sim_agent *agent, struct sim_vm *vm);   /* all steps that can be taken now */
void sim_vm_chance(struct sim_agent *agent, struct sim_vm *vm); /* what guests and VMMs do by themselves */
bool sim_vm_arriving(const struct sim_vm *vm); /* and is not this host's yet */
/* Its VMM runs it from now on; from what a migration brought. */
void sim_vm_run(struct sim_agent *agent, struct sim_vm *vm);
void sim_vm_take_over(struct sim_agent *agent, struct sim_vm *vm);
/* Its VMM ends with @parting: by itself, or by whoever else; seen by its agent. */
void sim_vm_kill(struct sim_agent *agent, struct sim_vm *vm, int parting, const char *why);
void sim_vm_ended(struct sim_agent *agent, struct sim_vm *vm, int parting, const char *why);

/* ---- agents (sim_agent.c) ---- */

#define SIM_AGENT_TASKS_MAX 32u
#define SIM_AGENT_TICK_US (300 * SIM_MS)

struct sim_task { /* an agent's memory, all of it: begun anew when it is lost */
    bool used;
    struct task_order order;
    struct task_seen seen;
    unsigned ticks; /* until it is done */
};

struct sim_agent {
    struct sim_actor actor; /* first */
    struct sim_cluster *cluster;
    char id[STATE_ID_BYTES], name[WORLD_NAME_BYTES];
    unsigned boots;
    struct sim_vm vms[SIM_AGENT_VMS_MAX];
    unsigned vms_top; /* none is used from here on */
    /* its memory */
    struct sim_task tasks[SIM_AGENT_TASKS_MAX];
    uint64_t have_index, number, sent_us; /* sent_us: of the report that waits for its answer; 0 = none */
    unsigned controller;                  /* that it talks to */
    uint64_t work_ticks;                  /* slower than usual: ticks for a start (scripts) */
    unsigned failing_starts, failing_migrations; /* so many of the next ones fail (scripts) */
    uint64_t handovers;                   /* proposed; of the last one: */
    char handover_of[STATE_ID_BYTES];
    bool down;                            /* it is being shut down in order: reports say so, and its guests are shut down; */
    unsigned down_ticks;                  /* so long, */
    bool going_down;                      /* then what has the lease is held, and the next report says that */
    /* leases (sim_lease.c) */
    struct lease_holder holder;
    bool disarmed, told;
    uint64_t arming, lease_next_us[SIM_NODES_MAX + 1];
    uint64_t frozen_until_us; /* the whole host stands still, its guests with it */
    bool burnt;               /* for good */
};

void sim_agent_init(struct sim_agent *agent, struct sim_cluster *cluster, unsigned number);
void sim_agent_start(struct sim_agent *agent);
void sim_agent_crash(struct sim_agent *agent);       /* the agent dies; VMMs go on */
void sim_agent_host_reboot(struct sim_agent *agent); /* and all VMMs with it */
void sim_agent_freeze(struct sim_agent *agent, uint64_t until_us); /* the whole host stands still, its guests with it */
/* In order: its lease is given up, then it goes down as above. Starts again with sim_agent_start. */
void sim_agent_host_leave(struct sim_agent *agent);
void sim_agent_deliver(struct sim_actor *to, struct sim_actor *from, void *message);
void sim_agent_finish(struct sim_agent *agent);
/* for sim_vm.c and sim_migrate.c */
struct sim_vm *sim_agent_vm(struct sim_agent *agent, const char *id); /* NULL: none */
struct sim_vm *sim_agent_free_vm(struct sim_agent *agent);
struct sim_task *sim_agent_task(struct sim_agent *agent, const char *operation);
unsigned sim_agent_work_ticks(struct sim_agent *agent); /* that some work takes */
void sim_agent_end_task(struct sim_agent *agent, struct sim_task *task, enum operation_state state, const char *why);

/* ---- migrations (sim_migrate.c) ---- */

void sim_migrate_work(struct sim_agent *agent, struct sim_task *task); /* each tick of one that runs */
/* @vm, whose guest stands still, is another host's: its VMM ends and tells the one there. */
void sim_migrate_left(struct sim_agent *agent, struct sim_vm *vm);
void sim_migrate_orders(struct sim_agent *agent, const struct node_orders *orders); /* after those for VMs and tasks */
void sim_migrate_handed(struct sim_agent *agent, const struct world_message *message);

/* ---- clients (sim_client.c) ---- */

struct sim_client {
    struct sim_actor actor; /* first */
    struct sim_cluster *cluster;
    bool busy;
    uint64_t number, sent_us, keys;
    struct world_message request; /* the one under way; sent again until it has an answer */
    struct world_vm *vm;          /* that it is about; NULL: hosts, or all of them */
    char target[WORLD_NAME_BYTES];
    unsigned undone; /* of what was done to hosts, when it gets quiet */
    bool quiet;                   /* asks for nothing by itself (scripts) */
    void (*answered)(struct sim_client *client, const struct world_message *answer); /* scripts; may be NULL */
};

void sim_client_init(struct sim_client *client, struct sim_cluster *cluster, unsigned number);
void sim_client_start(struct sim_client *client);
/* Ask now; -EBUSY while another request is under way. @target: a VM, or what the route is about. @key NULL: a new one. */
int sim_client_ask(struct sim_client *client, enum route_id route, const char *target, const char *body, const char *key);
void sim_client_deliver(struct sim_actor *to, struct sim_actor *from, void *message);
void sim_client_finish(struct sim_client *client);

/* ---- leases (sim_lease.c) ---- */

struct sim_lease { /* of a controller process */
    struct lease_table table;
    struct lease_judge judge;
    uint64_t lead_term, next_ns;
    bool suspects;
    unsigned proposed; /* commands that are not answered; the owner counts */
};
void sim_lease_init(struct sim_node *node, struct sim_lease *lease);
void sim_lease_finish(struct sim_lease *lease);
/* WORLD_LEASE, WORLD_LOOK, WORLD_VIEW; takes the message. */
void sim_lease_deliver(struct sim_node *node, struct sim_lease *lease, const struct state *state, struct sim_actor *from,
                       struct world_message *message);
typedef void (*sim_lease_propose_fn)(struct sim_node *node, const struct bytes_writer *command);
/* Each 100 ms of a ready leader. */
void sim_lease_lead(struct sim_node *node, struct sim_lease *lease, const struct state *state, const char *now,
                    sim_lease_propose_fn propose);
/* A view has come, and somebody is suspected: as soon as the real driver's short ticks would. */
void sim_lease_judge(struct sim_node *node, struct sim_lease *lease, const struct state *state, const char *now,
                     sim_lease_propose_fn propose);
void sim_lease_agent_start(struct sim_agent *agent);
void sim_lease_orders(struct sim_agent *agent, const struct node_orders *orders); /* after they were carried out */
void sim_lease_answered(struct sim_agent *agent, const struct world_message *message);
void sim_lease_pages(struct sim_agent *agent); /* what the VMMs obey, anew */
uint64_t sim_lease_page(const struct sim_agent *agent, const struct sim_vm *vm, bool starts); /* of one; @starts: of one that has none yet */
bool sim_vm_executes(const struct sim_agent *agent, const struct sim_vm *vm);
void sim_lease_check(struct sim_cluster *cluster); /* no VM executes twice */

/* ---- where VMs go (sim_promises.c) ---- */

void sim_promise_apart(struct sim_cluster *cluster, const struct sim_agent *agent); /* what executes there now */
/* The leader has decided @output upon @state. */
void sim_promise_priorities(struct sim_cluster *cluster, const struct state *state, const struct reconcile_output *output);

/* ---- staged faults (sim_stage.c) ---- */

void sim_stage_start(struct sim_cluster *cluster);

/* ---- the world ---- */

struct sim_world {
    struct sim_agent agents[WORLD_AGENTS];
    struct sim_client clients[WORLD_CLIENTS];
    unsigned agent_count; /* hosts of the cluster */
    uint64_t host_mib;
    struct world_vm vms[WORLD_VMS_MAX];
    unsigned vm_count;
    struct world_answer *answers;
    size_t answer_count;
    unsigned doubled_per_thousand; /* messages that come twice, the second time late */
    FILE *story;                   /* where what happens is told (scripts); NULL = nowhere */
    bool scripted;
    bool leases;                   /* there are three controllers in the table, and hosts hold leases */
    enum command crash_after;      /* scripts: the leader dies when it has applied such a command; 0 = never */
    unsigned dying;                /* the controller that is about to be killed so: it answers nobody any more */
    uint64_t story_term;
    uint64_t checked_applied;      /* sim_lease.c */
    struct sim_script *script;
};

/* Send a copy of @message, perhaps twice, perhaps never. */
void sim_world_send(struct sim_cluster *cluster, struct sim_actor *from, struct sim_actor *to,
                    const struct world_message *message, sim_deliver_fn deliver);
void sim_world_message_free(void *message);
struct world_vm *sim_world_vm(struct sim_world *world, const char *name);
struct world_vm *sim_world_vm_by_id(struct sim_world *world, const char *id);
/* A line of the story: what a person watching the cluster would note. */
void sim_world_tell(struct sim_cluster *cluster, const char *format, ...) PRINTF_LIKE(2, 3);
/* The controllers' door (sim_fsm.c). */
void sim_fsm_deliver(struct sim_actor *to, struct sim_actor *from, void *message);

/* What @node, which is up, holds. */
const struct state *sim_fsm_state(struct sim_node *node);

extern const struct sim_machine_class sim_cluster_class;

/* ---- scripts (sim_script.c) ---- */

/* Run <dir>/cmdlist and compare the story with <dir>/expect.log (@write: write it instead). 0 or 1 (differs, broken). */
int sim_script_run(const char *dir, bool write);
/* All folders with a cmdlist under @parent, in order of their names, @jobs at a time, each in a process of its own; adds to
 * the counts. */
void sim_script_run_all(const char *parent, unsigned jobs, unsigned *passed, unsigned *failed);
/* For sim_fsm.c's `begin`. */
void sim_script_begin(struct sim_cluster *cluster);

#endif
