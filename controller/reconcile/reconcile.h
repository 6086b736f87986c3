/* The leader's tick: what the state wants minus what is seen, as commands. Level-triggered: it looks at the whole state
 * each time and keeps nothing, so a lost command costs one tick and a new leader goes on from the same state.
 *
 * Does: place VMs that have no host; mark hosts that do not report unreachable (their reports mark them up again,
 * node_sync.h); remove tokens that have expired.
 * Does not: give up on anything silently; start a VM elsewhere while its host may still run it.
 *
 * Pure. Call on the leader after a barrier, about each RECONCILE_PERIOD_MS and when the state has changed, and not before
 * the commands of the last call are answered (harmless, but wasted: the guards in apply refuse what is no longer so). */
#ifndef CONTROLLER_RECONCILE_RECONCILE_H
#define CONTROLLER_RECONCILE_RECONCILE_H

#include "controller/fsm/state.h"

#define RECONCILE_PERIOD_MS 1000u
#define RECONCILE_COMMANDS_MAX 64u
#define RECONCILE_SILENCE_MS 10000u /* without a report: unreachable */

/* The leader's volatile knowledge of a host. */
struct reconcile_node {
    const char *host;      /* id */
    uint64_t last_report_ms; /* on the leader's steady clock */
};

struct reconcile_input {
    const char *now;     /* wall clock, RFC 3339, for the commands and for expiry */
    uint64_t now_ms;     /* steady clock */
    uint64_t leader_since_ms; /* steady clock: a host that never reported here is silent since then */
    const struct reconcile_node *nodes; /* any order; hosts that never reported are not in it */
    size_t n_nodes;
};

struct reconcile_output {
    struct bytes_writer commands[RECONCILE_COMMANDS_MAX]; /* to be proposed in this order */
    unsigned count;
    bool more; /* there is more to do: call again as soon as these are applied */
};
/* @ret must be zeroed; finish it after. */
void reconcile_tick(const struct state *state, const struct reconcile_input *input, struct reconcile_output *ret);
void reconcile_output_finish(struct reconcile_output *output);

#endif
