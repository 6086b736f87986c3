/* Replicas of other hosts' VMs that this host keeps:
 *
 *   <data>/replicas/<vm>/lock           held by whoever works on it: the process that receives a point, or the promotion
 *                        replica.json   which point is complete (block/replica_store.h)
 *                        <disk>.layers/ as a disk of a VM of this host's lies in vms/<vm>/disks
 *                        kept           the cluster was rebuilt since the last point: nobody removes it because it is not known
 *   <data>/replicas/<vm>.gone           being removed
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
    int lock_fd;
    bool make;  /* directories of disks that are not there */
    struct layer_pool *records, *pools[4 * REPLICA_DISKS_MAX]; /* owned; a disk's may be asked for again */
    unsigned pool_count;
    struct replica_places places; /* for replica_store_open; good until replica_dir_close */
};

/* Of VM @vm, alone. -EBUSY in words: another process works on it; -ENOENT: there is none, and @make is false. */
int replica_dir_open(const char *replicas_dir, const char *vm, bool make, struct replica_dir *ret_dir, struct error *err);
/* Could promotion move disks from here to @vms_dir, by a rename? -EXDEV in words. What is not there yet will be where its parent is. */
int replica_dir_check(const char *replicas_dir, const char *vms_dir, struct error *err);
/* After the store. */
void replica_dir_close(struct replica_dir *dir);

/* The VM's disks, where it has none yet, are taken from the replica that @order names. 0: they are in their place; also where the
 * order names none, unless a replica lies here: -EEXIST in words, for empty disks beside it would hide it. -EBUSY: later. */
int replica_dir_promote(const struct vm_places *places, const struct vm_order *order, struct error *err);
/* It is not wanted any more. -EBUSY: later. A missing one is fine. */
int replica_dir_remove(const char *replicas_dir, const char *vm, struct error *err);
/* All that none of @wanted names (ids of VMs), but what is kept. Errors are logged. */
void replica_dir_sweep(const char *replicas_dir, const struct string_list *wanted);
/* A point has come: it is known again. */
void replica_dir_known(const struct replica_dir *dir);
/* The cluster was rebuilt: what is here now stays until a point comes again. */
void replica_dir_keep_all(const char *replicas_dir);

#endif
