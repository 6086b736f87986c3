/* The condition of the cluster as Prometheus text, for whoever is to be woken: hosts, VMs, replicas, backups, pools. What
 * `drover cluster status` shows by name is here as numbers; nothing is kept between two calls.
 *
 * Labels are states, and names of hosts, pools, policies and stores; of VMs there are sums only. Every controller says what it holds to be
 * true, and one that is behind says something older: ask for max() or for the one with drover_api_ready 1.
 *
 * Points in time are seconds since 1970, so that who reads them computes ages by his own clock. */
#ifndef CONTROLLER_API_CLUSTER_METRICS_H
#define CONTROLLER_API_CLUSTER_METRICS_H

#include "controller/fsm/state.h"

#define CLUSTER_METRICS_LATE_PERIODS 2u /* a VM without a whole backup for so many times its policy's every_s is late */

/* Appends to @out. @now_ms: since 1970. Pure; the caller holds the lock of the state. Costs a look at each VM, and where there are policies at
 * each backup. */
void cluster_metrics_put(const struct state *state, uint64_t now_ms, struct bytes_writer *out);

#endif
