/* VMs that are thrown away: a backup is booted in one, to see whether it comes up (task_boot.c). They are started as any VM of the host
 * (vm.h), but of a context of their own: in a directory of their own, which the agent's start empties, as a user of their own, in cgroups
 * that get what the others leave, with interfaces that are cut off, and without the host's lease. Controllers know them by their
 * task alone. One at a time. The loop's thread. */
#ifndef COMPUTE_AGENT_TASK_BOOT_H
#define COMPUTE_AGENT_TASK_BOOT_H

#include "common/map.h"
#include "compute/agent/vm.h"
#include "compute/agent/vmm_cgroup.h"

struct agent;
struct agent_task;

/* Embedded in the agent. */
struct agent_boots {
    char *directory; /* owned; NULL: not begun */
    uint64_t free_bytes_min; /* what is left of the host's disk; else none is booted */
    struct vmm_cgroups cgroups; /* borrows the agent's directory */
    struct vm_context context;
    struct map leftovers;       /* struct local_vm by id, which end and are removed: no task's any more */
    struct agent_task *at_work; /* the one that has a VM; NULL: none */
};

/* The agent ends: those that have not gone yet go at its next start. Each counts in agent->closing. */
void agent_boots_stop(struct agent *agent);
void agent_boots_free(struct agent *agent);

#endif
