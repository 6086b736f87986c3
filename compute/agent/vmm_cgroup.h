/* A cgroup (cgroups(7), version 2) for each VM's VMM: <mount>/drover/vm-<id>.
 *
 *   cpu.weight   100 for each virtual processor: under load a VM gets by what it was sold. All VMs together weigh as
 *                much as system.slice, where agent and controllers are: these must be heard when the host is busy.
 *   memory.max   the guest's memory and VMM_CGROUP_HEADROOM_BYTES and an eighth: for the VMM, for KVM's page tables and
 *                for the page cache of disks, which shrinks under the limit. A VMM that leaks meets it before the host
 *                does.
 *   pids.max     threads
 *
 * At the top of the tree, not below the agent's own unit: there, systemd could not start the agent again while VMMs run
 * (a group with controllers for its children may hold no process itself). A restart or stop of the agent's unit does
 * not see VMMs at all this way.
 *
 * Not every host can: there may be no version 2, no right to write to it, or not all controllers. Then VMMs run without
 * what is missing; vmm_cgroups_open says what that is, for the log and for the host's status. Short calls; any thread. */
#ifndef COMPUTE_AGENT_VMM_CGROUP_H
#define COMPUTE_AGENT_VMM_CGROUP_H

#include "common/base.h"
#include "common/error.h"

#define VMM_CGROUP_HEADROOM_BYTES (512ull << 20)
#define VMM_CGROUP_THREADS_MAX 1024u
#define VMM_CGROUP_NAME "drover"

struct vmm_cgroups {
    char *directory;  /* of the VMs' groups; NULL: there are none here */
    char state[120];  /* "cgroup (cpu memory pids)", or what is missing and why */
    bool complete;    /* nothing is missing */
    bool last;        /* of groups that get what the others leave: cpu.weight is 1 */
};

/* The mount that this process sees, or @mount where it is given (tests); @name: VMM_CGROUP_NAME. Never fails: see
 * state. */
void vmm_cgroups_open(const char *mount, const char *name, struct vmm_cgroups *ret_groups);
void vmm_cgroups_close(struct vmm_cgroups *groups);

/* Make or adjust the group of a VM. *ret_procs: path of the file that a process writes "0" to so as to be in it, the
 * caller frees; NULL where there are no groups. */
int vmm_cgroup_make(const struct vmm_cgroups *groups, const char *vm_id, uint32_t vcpus, uint64_t memory_bytes,
                    char **ret_procs, struct error *err);
/* Once its VMM has ended. A group that is not there is fine; one that cannot be removed is told in the log. */
void vmm_cgroup_remove(const struct vmm_cgroups *groups, const char *vm_id);

#endif
