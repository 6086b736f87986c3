/* Backups of a running machine: the disks that its guest can write, as they were at one instant, to be read by NBD
 * (nbd_listener.h) from a Unix socket while the guest goes on (block/point_image.h).
 *
 *           begin, with an agent        frozen, or not         end, by name
 *   NONE ------------------------> FREEZE ------------> OPEN ----------------> NONE
 *     |        begin, without                            ^ |                    ^
 *     +--------------------------------------------------+ | spill full, ...    | end
 *                                                          +----> FAILED -------+
 *
 * The instant: with the device lock held every disk is drained, then every disk gets its image; no ring is looked at
 * between. It takes as long as the requests that are under way; processors run on. The guest's agent is asked to freeze file
 * systems before and to thaw them right after; a freeze that takes too long ends by itself (guest_agent.h), and whatever is
 * unclear is thawed again and the images then count as those of a power cut.
 *
 * Nothing that happens to the images concerns the guest: they are lost, `failure` says why, and reads of them fail. They go
 * when nobody has been connected for idle_limit_s, when the machine ends, and before a migration begins, which is refused
 * while there are some.
 *
 * Threads: functions on the control loop's thread with the device lock not held. */
#ifndef COMPUTE_VMM_MACHINE_BACKUP_H
#define COMPUTE_VMM_MACHINE_BACKUP_H

#include "compute/vmm/machine.h"

enum {
    BACKUP_IDLE_LIMIT_S = 120,
    BACKUP_FREEZE_LIMIT_MS = 10000,
    BACKUP_DISKS_MAX = 16,
};
#define BACKUP_SPILL_BYTES_MAX (UINT64_C(10) << 30)

struct backup_job; /* of one machine, made by its first backup */

/* @code 0: the images are open. Called once for each begin that returned 0, unless the machine ends first. */
typedef void (*backup_begun_fn)(void *arg, int code, const struct error *err);

/* -EBUSY while there are images, or a migration. */
int machine_backup_begin(struct machine *m, const struct vmm_backup_order *order, backup_begun_fn begun, void *arg,
                         struct error *err);
/* -ENOENT: there are no images of that name (any more). @kept after a failure: -EIO in words, and they are gone. */
int machine_backup_end(struct machine *m, const char *name, bool kept, struct error *err);
/* Fill the zeroed @ret_report; the caller clears it. */
void machine_backup_report(struct machine *m, struct vmm_backup *ret_report);
bool machine_backup_is_active(const struct machine *m);
/* Its images are asked for, and not there yet: in FREEZE. */
bool machine_backup_is_beginning(const struct machine *m);
/* A disk has grown: its image stays as it is. With the device lock held. */
void machine_backup_grown(struct machine *m, struct blk *blk);
/* For machine_finish. Close the images, before the I/O loop stops; NULL is allowed. */
void backup_job_close(struct backup_job *job);
/* After the guest's agent has been told that nobody waits for it. NULL is allowed. */
void backup_job_destroy(struct backup_job *job);

#endif
