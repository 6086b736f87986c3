/* Replicas of other hosts' VMs that this host keeps:
 *
 *   <data>/replicas/<vm>/lock           held by whoever works on it: the process that receives a point, or the promotion
 *                        replica.json   which point is complete (block/replica_store.h)
 *                        <disk>.layers/ as a disk of a VM of this host's lies in vms/<vm>/disks
 *                        kept           the cluster was rebuilt since the last point: nobody removes it because it is not known
 *   <data>/replicas/<vm>.gone           being removed
 *   <pool>/replicas/<vm>/<disk>.layers/ of a disk or volume that its VM has in a pool of kind dir: in that pool of this host, so that it is moved there
 *
 * What is in pools belongs to the directory with replica.json: without that it is nothing, and goes. The lock there is for all of it. A pool
 * that is not there is never taken for one without the disk.
 *
 * Promotion makes them the disks of a VM that is this host's from now on: each disk's directory is moved to its place, and what is left goes.
 * Cut off at any point it is done again before the VM's first start, and until it is done nothing is made or started. Blocking. */
#ifndef COMPUTE_AGENT_REPLICA_DIR_H
#define COMPUTE_AGENT_REPLICA_DIR_H

#include "block/replica_store.h"
#include "compute/agent/vm_files.h"

#define REPLICA_DIR_LAYERS ".layers"

struct replica_dir {
    char *path; /* owned */
    const char *vm;                     /* borrowed, as the next one */
    const struct object_list *in_pools; /* struct replica_place; NULL: none is */
    int lock_fd;
    bool make;  /* directories of disks that are not there */
    struct layer_pool *records, *pools[4 * REPLICA_DISKS_MAX]; /* owned; a disk's may be asked for again */
    unsigned pool_count;
    struct replica_places places; /* for replica_store_open; good until replica_dir_close */
};

/* Is @disk of @order one that a replica has: in the directory of the VM's host, or in a pool of kind dir? */
bool replica_dir_copies(const struct vm_order *order, const struct vm_disk *disk);
/* Those of @order's disks that it has in pools: into @to, a zeroed list of struct replica_place, whose owner clears them. */
void replica_dir_places(const struct vm_order *order, struct object_list *to);
void replica_dir_places_clear(struct object_list *places);

/* Of VM @vm, alone; @in_pools (struct replica_place, may be NULL): its disks that are in pools. Both are borrowed until it is closed. -EBUSY in
 * words: another process works on it; -ENOENT: there is none, and @make is false. */
int replica_dir_open(const char *replicas_dir, const char *vm, bool make, const struct object_list *in_pools, struct replica_dir *ret_dir,
                     struct error *err);
/* Could promotion move disks from here to @vms_dir, by a rename? -EXDEV in words. What is not there yet will be where its parent is. */
int replica_dir_check(const char *replicas_dir, const char *vms_dir, struct error *err);
/* The same of pools, by their @in_pools (struct replica_place). -EBUSY in words: something of VM @vm itself is in one, left of an earlier stay:
 * a promotion would find it in its way, or take it for what it has moved there. To be asked before each point and session. */
int replica_dir_check_pools(const struct object_list *in_pools, const char *vm, struct error *err);
/* After the store. */
void replica_dir_close(struct replica_dir *dir);

/* The VM's disks, where it has none yet, are taken from the replica that @order names. 0: they are in their place; also where the
 * order names none, unless a replica lies here: -EEXIST in words, for empty disks beside it would hide it. -EBUSY: later. */
int replica_dir_promote(const struct vm_places *places, const struct vm_order *order, struct error *err);
/* It is not wanted any more; nor what it has in @pools (struct pool_order, of this host). -EBUSY: later. A missing one is fine. */
int replica_dir_remove(const char *replicas_dir, const struct object_list *pools, const char *vm, struct error *err);
/* All that none of @wanted names (ids of VMs), but what is kept. Errors are logged; what is in a pool that is not among @pools waits until
 * it is. */
void replica_dir_sweep(const char *replicas_dir, const struct object_list *pools, const struct string_list *wanted);
/* A point has come: it is known again. */
void replica_dir_known(const struct replica_dir *dir);
/* The cluster was rebuilt: what is here now stays until a point comes again. */
void replica_dir_keep_all(const char *replicas_dir);

#endif
