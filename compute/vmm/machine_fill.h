/* Disks of a machine that are not whole: what is missing comes from a server at a socket (vmm_disk.source) while the guest
 * runs. block_layers.h does it; here is what others ask about it.
 *
 * Threads: the control loop's, with the device lock not held. */
#ifndef COMPUTE_VMM_MACHINE_FILL_H
#define COMPUTE_VMM_MACHINE_FILL_H

#include "compute/vmm/machine.h"

struct fill_report {
    bool whole;
    uint64_t done_bytes, total_bytes; /* of those that are not */
    struct error stuck;               /* why nothing comes; code 0: it does */
};
struct fill_report machine_fill_report(struct machine *m);
/* For whatever needs disks that stand for themselves: -EBUSY in words, with the cure, while one is not whole. */
int machine_fill_check(struct machine *m, struct error *err);

#endif
