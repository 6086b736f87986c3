/* An agent's report against the state: what has changed (a command for Raft), and what the host is to do (the answer).
 *
 *   report --> node_sync_changes --> COMMAND_seen, only where something differs from what is held
 *          --> node_sync_orders  --> every VM the host owns, in full, every running task in which it has a part, and what
 *                                    it must forget
 *
 * Both are pure and hold no memory between reports: any number of lost, doubled or late reports does no harm.
 * Rules: a VM is only believed from the host that owns it under the epoch that is held; its generation never goes back;
 * nor does a session's sequence: a report that was overtaken by a later one of the same start of the agent changes
 * nothing (host.session and host.report hold the last one that did).
 *
 * The orders tell a host to end and remove VMs, so they must come from a state that holds every acknowledged command:
 * on the leader after a barrier in its term. A report that has seen a newer index than the state is answered -EAGAIN.
 * What the agent must do: answer an order "deleted" for a VM it holds nothing of by reporting it as deleted, with the
 * epoch of the order. */
#ifndef CONTROLLER_NODES_NODE_SYNC_H
#define CONTROLLER_NODES_NODE_SYNC_H

#include "controller/fsm/state.h"

#define NODE_SYNC_PROGRESS_STEPS 10u /* progress goes through Raft in so many steps, not at each byte */

/* The command for what differs; @ret_command stays empty where nothing does. @now: for the command.
 * -ENOENT (ERROR_NOT_FOUND): the host is not known; -EINVAL: its name is another's. */
int node_sync_changes(const struct state *state, const char *now, const struct node_report *report,
                      struct bytes_writer *ret_command, struct error *err);
/* The answer. @ret must be zeroed; the caller clears it. -ENOENT as above; -EAGAIN (ERROR_OVERLOAD): the report knows a
 * newer state than this one. */
int node_sync_orders(const struct state *state, const struct node_report *report, struct node_orders *ret,
                     struct error *err);
/* Whether the answer may wait: the report has all that is wanted (have_index), its host's generation, and nothing to forget. */
bool node_sync_may_wait(const struct state *state, const struct node_report *report);

#endif
