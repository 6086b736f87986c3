/* What would happen if a host were lost now? For whoever plans work on it, and as the condition of a drill.
 *
 * Nothing is judged here: the answer is what apply and reconcile do with a copy of the state whose host is declared lost, in
 * their order and with their words. What was placed counts as running at once, so that VMs that are started after others
 * (RECONCILE_AFTER_LABEL) follow; in truth they wait for that, and for their delays. A VM whose start would fail is not foreseen.
 *
 * Pure. Costs about as much as reading a snapshot, and as placing the VMs of the host: on a thread of its own. */
#ifndef CONTROLLER_RECONCILE_LOSS_PLAN_H
#define CONTROLLER_RECONCILE_LOSS_PLAN_H

#include "controller/fsm/state.h"

/* @copy: the caller's own, changed. @host: name or id. @now: RFC 3339. @ret zeroed; the caller clears it.
 * -ENOENT: no such host; -EALREADY: it is lost. */
int loss_plan(struct state *copy, const char *host, const char *now, struct host_loss *ret, struct error *err);

#endif
