/* Emptying hosts: which of their VMs is to be migrated next. A host is `draining` in the replicated state from `drover host
 * drain` until `drover host undrain`, so a new leader goes on where the last one was; nothing else is kept. Pure.
 *
 * A VM goes when few enough of its host's and of all migrations are under way, and when its last one did not fail just now.
 * One that cannot be migrated (it has snapshots, no host has room, it is off) stays, and is tried again; where there are more of these
 * than are looked at in a walk, the next walk begins behind them.
 * Of VMs that are kept apart from others one goes in a tick: where it goes is seen in the next one. */
#ifndef CONTROLLER_RECONCILE_DRAIN_H
#define CONTROLLER_RECONCILE_DRAIN_H

#include "controller/fsm/state.h"

#define DRAIN_HOST_MAX 2u     /* migrations from one host at a time: of those that drain it or a user asked for */
#define DRAIN_CLUSTER_MAX 8u  /* of all hosts */
#define DRAIN_RETRY_MS 60000u /* after a migration of a VM that failed */
#define DRAIN_LOOKS_MAX 64u   /* VMs that are looked at in one walk, for each costs a placement */

struct drain {
    const struct state *state;
    uint64_t now_ms; /* of the wall clock, as in the commands */
    size_t host, vm; /* hosts that have been looked at, and VMs of the present one */
    uint64_t turn;   /* which of them is the first: another one in each tick */
    unsigned on_host, on_all, looks;
    bool apart; /* a VM with the label STATE_APART_LABEL has been given a host in this tick, which the state does not know yet */
};

void drain_begin(struct drain *d, const struct state *state, const char *now);
/* The next migration, all of its operation but the id: true; the caller clears it. */
bool drain_next(struct drain *d, struct operation *operation);

#endif
