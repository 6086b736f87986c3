/* Disks of a running machine that move: block/block_mirror.h between a disk's device and its block.
 *
 *   to another file of this host     machine_mirror_move: copied, and at once the device's disk when both are level
 *                                    (@to->hold: kept level, until machine_mirror_hold and then _take say that it is, or _cancel that it is not)
 *   to another host                  machine_mirror_begin: copied to an NBD export of the target's VMM and kept level until
 *                                    the migration is over; machine_mirror_settle in its pause
 *
 *   to a replica on another host     machine_mirror_replicate: the same, and kept level for good (machine_replica.h)
 *
 * The other host may be silent. What only waits for it is done on a thread of the caller's (machine_mirror_link), and a
 * mirror that ends gives the link up first: neither guest nor control loop waits for an answer that will not come.
 *
 * A move that fails leaves the disk where it was: the guest notices nothing, and what was copied is for the caller to remove.
 *
 * Threads: where nothing else is said the control loop's, with the device lock NOT held. */
#ifndef COMPUTE_VMM_MACHINE_MIRROR_H
#define COMPUTE_VMM_MACHINE_MIRROR_H

#include "block/block_mirror.h"
#include "compute/vmm/machine.h"

/* Move @slot's disk to @to, a file of the same size that is all zeroes, and which is there. -EBUSY, -EINVAL in words. */
int machine_mirror_move(struct machine *m, struct machine_slot *slot, const struct vmm_disk *to, struct error *err);
/* Both are level: from now on both files are the same and synced, and what the guest asks for waits. So it is whoever answers for the VM
 * that decides which of them is the disk, also if this process ends before it hears of it. Held already: 0. -EAGAIN in words: not level,
 * or not for such a move. */
int machine_mirror_hold(struct machine *m, struct machine_slot *slot, struct error *err);
/* One that is held has its end: the disk is the other file now. -EINVAL: none is held. */
int machine_mirror_take(struct machine *m, struct machine_slot *slot, struct error *err);
bool machine_mirror_is_held(const struct machine_slot *slot);
/* The file that a move under way goes to; NULL: none is. */
const char *machine_mirror_path(const struct machine_slot *slot);
/* Give a move under way up, held or not; -EINVAL when there is none. */
int machine_mirror_cancel(struct machine *m, struct machine_slot *slot, struct error *err);
/* The way to the export named as @disk at the Unix socket @path. Blocks for seconds where nobody answers: any thread but the
 * control loop's. */
int machine_mirror_link(struct machine *m, const struct vmm_migration_disk *disk, const char *path,
                        struct machine_mirror **ret_link, struct error *err);
/* One that machine_mirror_begin was not given; NULL is allowed. */
void machine_mirror_unlink(struct machine_mirror *link);
/* Mirror @slot's disk over @link, which it takes in any case. @disk says what the target has already. @bytes_per_s: limit of
 * what is copied; 0: none. */
int machine_mirror_begin(struct machine *m, struct machine_slot *slot, struct machine_mirror *link,
                         const struct vmm_migration_disk *disk, uint64_t bytes_per_s, struct error *err);
/* How @slot's disk fares, or the last one that it had. False: there was none. @ret_failure (256 bytes) may be NULL. */
bool machine_mirror_progress(struct machine *m, const struct machine_slot *slot, struct mirror_progress *ret_progress,
                             char *ret_failure);
/* All that goes to another host, together. @ret_level: each of them is. -EIO in words when one has failed. */
int machine_mirrors_look(struct machine *m, uint64_t *ret_left, uint64_t *ret_copied, bool *ret_level, struct error *err);
/* The machine is frozen: copy what is left, and make both sides last. */
int machine_mirrors_settle(struct machine *m, struct error *err);
/* Those to another host end: the disks are as they are here. */
void machine_mirrors_end(struct machine *m);
/* ---- to a replica (machine_replica.h has what a session is) ---- */

/* The way to the export @disk of the replica's at @order's path: one connection, which never comes back. Blocks for seconds; any
 * thread but the control loop's. */
int machine_mirror_link_replica(struct machine *m, const char *disk, const struct vmm_replica_order *order, struct machine_mirror **ret_link,
                                struct error *err);
/* Mirror @slot's disk over @link, which it takes in any case. */
int machine_mirror_replicate(struct machine *m, struct machine_slot *slot, struct machine_mirror *link,
                             const struct vmm_replica_order *order, struct error *err);
/* All of them, and there are to be @count. @ret_level: each is; @ret_lasts: each is guarded, and what the guest was told lasts on both sides. -EIO in words when one has
 * failed. */
int machine_mirrors_replica_look(struct machine *m, unsigned count, bool *ret_level, bool *ret_lasts, struct error *err);
/* Guard those that are level and are not yet, and have what the guest was told before made to last. */
int machine_mirrors_replica_guard(struct machine *m, struct error *err);
/* Their links end at once, and whoever waits for an answer has it: lost. Takes no lock. */
void machine_mirrors_replica_break(struct machine *m);
/* They end, whatever waited for them goes on here. */
void machine_mirrors_replica_end(struct machine *m);

/* A disk is on its way to another file or host, or its device is gone from under it. */
bool machine_mirror_is_active(const struct machine *m);
/* May @slot's disk get another size? Not while it has a mirror, and no disk may while one is on its way to another file or host. */
bool machine_mirror_lets_grow(const struct machine *m, const struct machine_slot *slot);
/* For machine_slots.c: the slot is emptied. */
void machine_mirror_free(struct machine_mirror *mirror);

#endif
