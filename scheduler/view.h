/* What the scheduler looks at: the hosts as arrays, one for each figure, so that thousands of hosts are scanned in
 * microseconds. Made by the caller from its state, read-only afterwards. Pure data: no clock, random numbers or I/O.
 * Hosts must be added in name order: ties end at the name. */
#ifndef SCHEDULER_VIEW_H
#define SCHEDULER_VIEW_H

#include "schema/objects.h"

#define VIEW_HOSTS_MAX 10000u
#define VIEW_CPU_RATIO_PERCENT 400u                      /* where the host says nothing */
#define VIEW_MEMORY_RESERVE_BYTES (UINT64_C(512) << 20) /* this or a tenth of the memory, the smaller */

struct scheduler_view {
    size_t count, capacity;
    const char **names, **ids;         /* borrowed from the hosts */
    uint8_t *states;                   /* enum host_state */
    uint8_t *schedulable, *going_down, *kvm; /* 0 or 1 */
    uint8_t *cpu_baselines;            /* enum cpu_kind: the highest that its processors can be */
    uint64_t *memory_bytes;            /* for VMs: memory less reserve */
    uint64_t *committed_memory_bytes;  /* promised to VMs */
    uint64_t *vcpus;                   /* for VMs: processors times ratio */
    uint64_t *committed_vcpus;
    uint64_t *disk_free_bytes;         /* UINT64_MAX where the host does not say */
};

/* Zeroed at first. */
void view_add(struct scheduler_view *view, const struct host *host, uint64_t committed_memory_bytes,
              uint64_t committed_vcpus);
void view_finish(struct scheduler_view *view);

/* What a host can hold, by its own settings: the same figures for placement, for apply's own check and for users. */
uint64_t view_host_memory_bytes(const struct host *host);
uint64_t view_host_vcpus(const struct host *host);
/* Whether its /dev/kvm can run guests. */
bool view_host_has_kvm(const struct host *host);

#endif
