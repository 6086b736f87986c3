/* What goes wrong in a simulated cluster, and when. */
#ifndef TESTS_SIM_SIM_FAULTS_H
#define TESTS_SIM_SIM_FAULTS_H

#include "tests/sim/sim_node.h"

enum sim_fault {
    SIM_FAULT_LOSS = 1 << 0,      /* single messages lost, all the time */
    SIM_FAULT_CRASH = 1 << 1,     /* a process dies, or several at once, and starts again */
    SIM_FAULT_PARTITION = 1 << 2, /* the network splits, sometimes in one direction only */
    SIM_FAULT_PAUSE = 1 << 3,     /* a process stands still (SIGSTOP, a stalled host) */
    SIM_FAULT_SLOW_DISK = 1 << 4,
    SIM_FAULT_FULL_DISK = 1 << 5,
    SIM_FAULT_TRANSFER = 1 << 6,  /* leadership is handed on */
    SIM_FAULT_CLASS = 1 << 7,     /* the machine class's own */
};
#define SIM_FAULT_ALL 0xffu
#define SIM_FAULT_SLOW_RESTORE (1u << 9) /* the leader's snapshots take seconds to restore */
#define SIM_FAULT_MEMBERS (1u << 8) /* controllers are added, promoted, demoted and removed */

/* Scenarios by name; NULL: unknown. sim_scenario_at(i) lists them, NULL at the end. */
const struct sim_scenario *sim_scenario_find(const char *name);
const struct sim_scenario *sim_scenario_at(size_t i);

/* Begin to make faults; they end at cluster->quiet_us. */
void sim_faults_start(struct sim_cluster *cluster);
/* Mend everything at once. */
void sim_faults_heal(struct sim_cluster *cluster);

#endif
