/* The leader's judgement of hosts: whom to suspect, whom to declare lost, whom to clear. It looks at what each controller
 * has heard and supports (struct lease_view), again and again, and at the state; what it says are commands.
 *
 *   fewer than a majority of the voters have heard the host lately   -> host_suspect(host, g)
 *   a majority has confirmed that its support of g has run out       -> host_lost(host, g)
 *   a majority hears a suspected host again                          -> host_clear(host, g): g + 1
 *
 * A suspicion needs no care: it costs a pause at worst. The loss does: any majority that supports and any that confirms
 * share a controller. Confirmations are of a host and a generation, so none is ever taken for a later suspicion. A change
 * of the voters waits until a majority of them has told its hosts of the last one (lease_judge_settled; what "told" means is in
 * lease_table.c): whoever counted in the list before that one would need the support of one of them, so a host counts its majority
 * among the newest or among those of the step before, however long refusals prolong it. No host is declared lost before a majority
 * has applied the last change for one TTL (they say for how long, on their own clocks): a leader of an older version may have made it.
 *
 * Who is to count from now on is looked at before, and asked by the hosts: it supports their leases without being counted, and
 * counts once it does (lease_judge_welcomes). Else the host that learns of the new list would have too few supports at once:
 * one of two, where a cluster grows from one controller. That is for the VMs' sake; it takes nothing away from the proof, for what
 * supports and confirms is the same whoever is counted.
 *
 * Pure, as lease_table.h; on a ready leader, one thread. What it has been told is forgotten with the leadership, which
 * costs one round of looks. */
#ifndef CONTROLLER_LEASE_LEASE_JUDGE_H
#define CONTROLLER_LEASE_LEASE_JUDGE_H

#include "controller/lease/lease_table.h"

#define LEASE_SILENCE_MS 2500u /* not heard for so long by a majority: suspected; two questions and a half */
#define LEASE_HEARD_MS 2000u   /* heard within that: it is there */
#define LEASE_FRESH_MS 1500u   /* a view that is older counts for nothing */
#define LEASE_WELCOME_MS 1500u /* supported for so long: the host has heard so, and has asked again */
#define LEASE_LOOK_MS 500u     /* between two looks at a controller, */
#define LEASE_LOOK_SOON_MS 100u /* while a host is suspected */
#define LEASE_COMMANDS_MAX 64u /* of one judgement; the rest comes with the next */
#define LEASE_VOTERS_MAX 16u

struct lease_judged_view {
    uint64_t raft_id;
    uint64_t at_ns; /* when it came, on this controller's clock */
    uint64_t voters_index, voters_ms;
    uint64_t told_index; /* newest list of voters that it has said hosts know; never taken back */
    struct map hosts; /* struct lease_judged_host by id */
};

struct lease_judge_mutations {
    bool one_confirmation; /* rule 4: one is enough */
    bool loses_at_once;    /* rule 4: none is needed */
};

struct lease_judge {
    struct lease_judged_view views[LEASE_VOTERS_MAX];
    unsigned count;
    uint64_t since_ns; /* when the first of them came */
    struct lease_judge_mutations mutations;
};

struct lease_judge_words {
    char text[500]; /* fits into an error */
};

struct lease_judgement {
    struct bytes_writer commands[LEASE_COMMANDS_MAX];
    unsigned count;
    bool suspects; /* somebody is suspected: look again soon */
};

/* Zeroed at first. */
void lease_judge_reset(struct lease_judge *judge);
/* A view that came at @at_ns. One of another term than @term is not taken. */
void lease_judge_take(struct lease_judge *judge, const struct lease_view *view, uint64_t term, uint64_t at_ns);
/* What to do, for a leader in the present state. @now: wall clock for the commands. *ret zeroed; finish it after. */
void lease_judge_tick(const struct lease_judge *judge, const struct state *state, const char *now, uint64_t now_ns,
                      struct lease_judgement *ret);
void lease_judgement_finish(struct lease_judgement *judgement);
/* Has a majority of the voters told its hosts of the last change of them? Only then may there be another. */
bool lease_judge_settled(const struct lease_judge *judge, const struct state *state);
/* For whom that waits, a sentence for operators. */
void lease_judge_waits_for(const struct lease_judge *judge, const struct state *state, uint64_t now_ns, struct lease_judge_words *ret);
/* May controller @raft_id count? Not while it would take the majority of supports from a host that has one, nor before a
 * majority of the voters was looked at. */
bool lease_judge_welcomes(const struct lease_judge *judge, const struct state *state, uint64_t raft_id, uint64_t now_ns);
/* Does a majority hear the host at this time? A lost one comes back only then. */
bool lease_judge_hears(const struct lease_judge *judge, const struct state *state, const char *host, uint64_t now_ns);

#endif
