/* A session with a replica of a running machine's disks on another host: what the replica lacks is copied to it, and from then on it has every
 * flush of the guest's before the guest hears of it (block/block_mirror.h, guarded), because the cluster may have it started from there.
 *
 *         begin                links made                all disks guarded, and flushed through the guard
 *   NONE -------> CONNECT ----------------> COPY -----------------------------------------------------> LEVEL
 *                    '-----------+-----------'                                                            | a link fails, or
 *                                v                                                                        v is silent
 *                             FAILED  the guest goes on here                                            LOST  the guest waits
 *
 * Whoever ordered the session says that it is over (machine_replica_end), and must know that nobody will take what the replica has for
 * the machine's disks any more, or that the machine is another host's by now. Nothing else lets the guest go on after LOST: no time limit, and
 * not the end of whoever ordered it.
 *
 * The next session copies what may have been written since the replica was last known to have all: that state has a name in the maps of
 * changes (machine_changes.h), renewed now and then while LEVEL.
 *
 * A link is one connection that never comes back: a server that still had something of a broken one to carry out could put an old write over
 * a new one.
 *
 * Threads: the control loop, with the device lock not held. */
#ifndef COMPUTE_VMM_MACHINE_REPLICA_H
#define COMPUTE_VMM_MACHINE_REPLICA_H

#include "compute/vmm/machine.h"

enum { REPLICA_PATIENCE_MS = 5000 };

struct replica_job; /* of one machine, made by its first session */

/* A session of the disks that @order names, or of all that the guest can write. The same one again: 0. -ESTALE, -EBUSY, -EINVAL in words. */
int machine_replica_begin(struct machine *m, const struct vmm_replica_order *order, struct error *err);
/* Sessions up to @session are over: none of them lasts when this returns, and what the guest has waited for goes on. */
void machine_replica_end(struct machine *m, uint64_t session);
/* Fill the zeroed @ret_report; the caller clears it. */
void machine_replica_report(struct machine *m, struct vmm_replica *ret_report);
/* For machine_finish. NULL is allowed. */
void replica_job_destroy(struct replica_job *job);

#endif
