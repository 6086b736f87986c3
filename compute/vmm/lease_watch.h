/* The thread that pauses the vCPUs when the host's lease is about to run out, and lets them go on when it is back.
 * It looks at nothing but the page and the clock, so that nothing else in the VMM can hold it up. */
#ifndef COMPUTE_VMM_LEASE_WATCH_H
#define COMPUTE_VMM_LEASE_WATCH_H

#include "compute/vmm/lease.h"
#include "compute/vmm/vcpu.h"

#define LEASE_WATCH_MS 50u /* between looks: a tenth of the margin */

struct lease_watch {
    struct lease lease;
    struct vcpu_set *vcpus;
    const struct sandbox *sandbox; /* of the thread; borrowed */
    pthread_t thread;
    bool started, ending;
    bool holding;    /* we have paused the vCPUs */
    uint64_t pauses; /* how often (atomic) */
};

/* Maps the page at @path and holds the vCPUs at once if there is no valid lease. @path NULL: no lease, no thread. */
int lease_watch_start(struct lease_watch *w, const char *path, struct vcpu_set *vcpus,
                      const struct sandbox *sandbox, struct error *err);
/* Ends the thread. The page stays, for those who may still ask: lease_finish(&w->lease) after them. */
void lease_watch_stop(struct lease_watch *w);

#endif
