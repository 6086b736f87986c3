/* The leader's tick: what the state wants minus what is seen, as commands. Level-triggered: it looks at what is and not
 * at what has changed, so a lost command costs one round and a new leader goes on from the same state.
 *
 * A tick is bounded, for it runs between two answers of the API: it looks at RECONCILE_LOOKS_MAX waiting VMs (fewer where
 * there are many hosts) and gives RECONCILE_COMMANDS_MAX commands. What is left comes with the next ticks, each of which
 * goes on where the last one stopped: a round. Where it stopped is all that the caller keeps; forgetting it costs time.
 * VMs of lost hosts are looked at first in each tick, as many, by their priority; those beyond in the round of all others.
 *
 * Does: place VMs that have no host, those of lost hosts before all others, by priority (apply_lease.c marks them); mark hosts that do not report unreachable (their reports mark them up again,
 * node_sync.h); remove tokens that have expired; end a drill that a wrong clock would have last for long; have one more host keep an image that too few hosts keep, in
 * the place of one that is lost; begin backups that are due (backup_schedule.h); remove snapshots that were made for a clone which is over.
 * Empties hosts that are to be drained (drain.h).
 * Does not: give up on anything silently; start a VM elsewhere while its host may still run it.
 *
 * Pure. Call on the leader after a barrier, about each RECONCILE_PERIOD_MS and when the state has changed, and not before
 * the commands of the last call are answered (harmless, but wasted: the guards in apply refuse what is no longer so). */
#ifndef CONTROLLER_RECONCILE_RECONCILE_H
#define CONTROLLER_RECONCILE_RECONCILE_H

#include "controller/fsm/state.h"

#define RECONCILE_PERIOD_MS 1000u
#define RECONCILE_COMMANDS_MAX 64u
#define RECONCILE_LOOKS_MAX 256u     /* waiting VMs that one tick looks at, */
#define RECONCILE_LOOKS_MIN 16u      /* fewer where there are many hosts, but at least so many, */
#define RECONCILE_PAIRS_MAX 100000u  /* so that VMs times hosts stay below this */
#define RECONCILE_NAME_SIZE 64u      /* a VM's name with its NUL */
#define RECONCILE_KEEPERS_FAILED_MAX 2u /* hosts that cannot get an image and are made up for, where no more than that have it */
#define RECONCILE_SILENCE_MS 10000u /* without a report: unreachable */
#define RECONCILE_SNAPSHOTS_MAX 4u /* that were made for a clone: removals begun in one tick */
#define RECONCILE_SNAPSHOT_AGAIN_MS 600000u /* after the removal of one of those failed */
#define RECONCILE_AFTER_LABEL "ha-after" /* name of the VM that a VM of a lost host is started after, */
#define RECONCILE_AFTER_MS 600000u /* at most so long after its host was heard, where that VM does not come to run, */
#define RECONCILE_DELAY_LABEL "ha-delay-s" /* and how long it has to run before */
#define RECONCILE_CHAIN_MAX 8u /* such VMs in a row that are looked at for a circle */

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
    const char *resume_after; /* of the last tick's output; NULL or "": a new round */
    void (*uuid)(void *arg, char ret_id[STATE_ID_BYTES]); /* for operations that are begun; NULL: none are */
    void *uuid_arg;
};

struct reconcile_output {
    struct bytes_writer commands[RECONCILE_COMMANDS_MAX]; /* to be proposed in this order */
    unsigned count;
    bool more; /* there is more to do: call again as soon as these are applied */
    char resume_after[RECONCILE_NAME_SIZE]; /* name of the last VM looked at; "": the round is over. Call again soon
                                             * where it is not */
};
/* @ret must be zeroed; finish it after. */
void reconcile_tick(const struct state *state, const struct reconcile_input *input, struct reconcile_output *ret);
void reconcile_output_finish(struct reconcile_output *output);

#endif
