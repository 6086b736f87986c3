/* Pools of Ceph (kind rbd) on this host: all is done by drover-rbd, so that the agent needs none of Ceph's libraries, and a Ceph cluster that
 * does not answer keeps a child waiting. Blocking, for POOL_RBD_MS at most: not for the loop's thread, but where said.
 *
 *   drover-<volume id>   an image of the pool: a volume. Never the same id twice, so an order that is carried out late touches no other
 *
 * A VMM has such a disk from a server of its host (drover-rbd serve --while-connected), a process for each VM and volume:
 *
 *   <vms>/<id>/disks/<disk>.nbd       its socket, the VMM user's
 *                    <disk>.rbd.lock  who it is, held while it lives: the lock of vmm_process.h, by which there is one at most, and
 *                                     none is lost with an agent
 *                    <disk>.rbd.log   its words
 *
 * It is there before its VMM is started or is told of the disk, and outlives agents. Where it has died - killed, or because Ceph does not
 * let it in any more - another one is started (pool_rbd_serve, which vm.c calls as long as the VMM lives); the guest's requests wait.
 * It takes the image's lock when the VMM connects, under the epoch of the order, and may take it from one of the same epoch: that
 * epoch is this host's alone, and there is one server here, so whoever has it with that is dead. It lets go when the VMM has gone.
 * Ended with the VM, or when the volume is detached. */
#ifndef COMPUTE_AGENT_POOL_RBD_H
#define COMPUTE_AGENT_POOL_RBD_H

#include <sys/types.h>

#include "common/base.h"
#include "common/error.h"
#include "schema/objects.h"

#define POOL_RBD_MS 40000       /* for one run of drover-rbd */
#define POOL_RBD_READY_MS 25000 /* for a server to be ready */
#define POOL_RBD_STOP_MS 5000   /* for one to end by itself */

struct vm_places;

/* NULL is none. */
bool pool_rbd_is(const struct pool_order *pool);

/* @program, here and below: drover-rbd; NULL: the one beside this program. */

/* As pool_dir_look. */
void pool_rbd_look(const char *program, const struct pool_order *pool, struct pool_seen *ret);
/* An image of @size_bytes for the volume; one that is there and as large, or larger, is fine. */
int pool_rbd_make(const char *program, const struct pool_order *pool, const char *volume_id, uint64_t size_bytes, struct error *err);
/* The child process (task_child.h, "rbd-fill", struct rbd_fill) that does as _make, and has the image begin as a raw file; it becomes drover-rbd. One that
 * is there and began so is fine; what an ended run has left is gone on with. SIGTERM ends it in a few seconds, and nothing is kept locked then. */
int pool_rbd_fill_work(const char *arguments, size_t size, struct task_seen *ret_seen, struct error *err);
/* It is there, and at least so large. -ENOENT and others in words. */
int pool_rbd_grow(const char *program, const struct pool_order *pool, const char *volume_id, uint64_t size_bytes, struct error *err);
/* None is fine. */
int pool_rbd_remove(const char *program, const struct pool_order *pool, const char *volume_id, struct error *err);

/* Where the VMM has @disk from. The caller frees. */
char *pool_rbd_socket(const struct vm_places *places, const char *vm_id, const char *disk);
/* Servers of all disks of @order in such pools, but for those that leave: there and ready, for a VMM of @user (0: the agent's own), under
 * vm_files_disk_epoch. Those that are there under it already stay. */
int pool_rbd_serve(const struct vm_places *places, const struct vm_order *order, uid_t user, struct error *err);
/* Does @order name such disks at all, that stay? */
bool pool_rbd_has_disks(const struct vm_order *order);
/* Are they all there? Short: any thread. */
bool pool_rbd_is_served(const struct vm_places *places, const struct vm_order *order);
/* Has one of a disk of @order died, also of one that leaves? Short: any thread. _revive: start those again. */
bool pool_rbd_have_died(const struct vm_places *places, const struct vm_order *order);
int pool_rbd_revive(const struct vm_places *places, const struct vm_order *order, uid_t user, struct error *err);
/* End the server of @disk, or (NULL) all of the VM's: by force in the end; nothing of them is left then. */
int pool_rbd_end(const struct vm_places *places, const char *vm_id, const char *disk, struct error *err);
/* No VMM of it lives: those of disks that it is to be started without. */
int pool_rbd_end_others(const struct vm_places *places, const struct vm_order *order, struct error *err);

#endif
