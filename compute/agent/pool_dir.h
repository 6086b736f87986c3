/* A pool's directory on this host: its marker, and the disks of VMs and volumes in it. Blocking, and on network file systems for as long
 * as those please: not for the loop's thread.
 *
 *   <path>/drover-pool.json           struct pool_marker: this is the pool, and which directory of it. Written once
 *          vms/<vm id>/<disk>.layers/   a disk with layers (block/layer_disk.h): <disk>.disk, layers, its image's second name
 *                      <disk>.<place>.layers/  where a move has put it: the operation's id, so no two copies have one name
 *                      .<...>         a disk that is being made
 *                 <vm id>.gone        being removed
 *          volumes/<volume id>/         the same of a volume: it is there before a VM has it, and after
 *                  <volume id>.<place>/ where a move has put it, as above, or the loss of the host that had it: the replica's id
 *          replicas/<vm id>/          of other hosts' VMs that have a disk or volume in the pool, where it is of kind dir (replica_dir.h)
 *          images/<sha256>            images that disks of the pool are above, copied here once; gone with the last disk
 *
 * Everything is looked for behind the marker: where it is missing, or another one, nothing is read, made or removed, for
 * then this is a directory that nothing is mounted on, or something else altogether.
 *
 * Several hosts work in a shared pool, and one that was thought dead may go on at any instruction. So a disk is made aside
 * and gets its name by a rename that replaces nothing; and what removes the directory of a VM or volume is only a host that was
 * told that it is deleted, which nobody can take back. All is root's alone but what vmm_user_own_files hands over; a file
 * server that makes root somebody else cannot be used, and is told apart here (no_root_squash).
 *
 * What VMs have in the directory of their host (vm_files.h) is looked for as if that were a pool: one without an id, whose path is the
 * directory of all VMs, and which has no marker. */
#ifndef COMPUTE_AGENT_POOL_DIR_H
#define COMPUTE_AGENT_POOL_DIR_H

#include <sys/types.h>

#include "common/base.h"
#include "common/error.h"
#include "schema/objects.h"

#define POOL_DIR_MARKER "drover-pool.json"
#define POOL_DIR_MARK_BYTES 33 /* of a mark, with its NUL */

/* The pool that stands for the directory of all VMs; borrows it. */
struct pool_order pool_dir_here(const char *vms_dir);
bool pool_dir_is_here(const struct pool_order *pool);

/* The pool that @disk of @order is in; NULL: it is in the VM's own directory. */
const struct pool_order *pool_dir_of(const struct vm_order *order, const struct vm_disk *disk);
/* Is a disk of @order in a directory that other hosts reach, so that its files belong to the same user on all of them? */
bool pool_dir_shared(const struct vm_order *order);
/* In any pool that other hosts reach? */
bool pool_dir_reached(const struct vm_order *order);

/* What there is of @pool: fills *ret (zeroed; the caller clears it). Marks the directory where the order says so. */
void pool_dir_look(const struct pool_order *pool, struct pool_seen *ret);
/* Is it the directory that the order speaks of? -ENOENT, -ESTALE in words if not. */
int pool_dir_check(const struct pool_order *pool, struct error *err);

/* The directory of a disk with layers: the VM's, or its volume's where it is one. The caller frees. */
char *pool_dir_disk(const struct pool_order *pool, const char *vm_id, const struct vm_disk *disk);
/* Where the images are that its disks are above. The caller frees. */
char *pool_dir_images(const struct pool_order *pool);
/* Is there such a disk? -ENOENT in words. */
int pool_dir_find(const struct pool_order *pool, const char *vm_id, const struct vm_disk *disk, struct error *err);
/* Make @disk unless it is there, above @image_path (NULL: empty). @made: it was made once, so a missing one is an error.
 * -EFBIG: the image is larger than the disk. */
int pool_dir_make_disk(const struct pool_order *pool, const char *vm_id, const struct vm_disk *disk, const char *image_path,
                       bool made, struct error *err);
/* All that the VM, or a volume, has in the pool, for good. Nothing there is fine; no pool there is not. */
int pool_dir_remove_vm(const struct pool_order *pool, const char *vm_id, struct error *err);
int pool_dir_remove_volume(const struct pool_order *pool, const char *volume_id, const char *place, struct error *err);
/* That of a VM's own disks, from its place. */
int pool_dir_remove_disk(const struct pool_order *pool, const char *vm_id, const struct vm_disk *disk, struct error *err);
/* A copy of a volume, or (@vm_id) of a VM's own disk, in a place of its own. _begin: *ret_directory (the caller frees) is an empty
 * directory for its layers, @user's; what an earlier try left is gone. _end: it is whole and synced by now, and that is written down,
 * lastingly. _is_whole: 1; 0: not, or nothing is there. A copy that a VMM fills is not, whatever it holds: only that VMM knows. */
int pool_dir_copy_begin(const struct pool_order *pool, const char *vm_id, const struct vm_disk *disk, uid_t user, char **ret_directory,
                        struct error *err);
int pool_dir_copy_end(const struct pool_order *pool, const char *vm_id, const struct vm_disk *disk, struct error *err);
int pool_dir_copy_is_whole(const struct pool_order *pool, const char *vm_id, const struct vm_disk *disk, struct error *err);

#endif
