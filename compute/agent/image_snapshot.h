/* A disk as one of its snapshots has it, copied to a file that becomes an image. Blocking: the work of the task image-import
 * in a child of its own, which has no more rights than the VM's VMM, for that has written what it reads (task_image.c).
 *
 *   1. the snapshot's layers opened, read-only: their locks, shared with the VMM's, keep all of them from being merged
 *        one is being written right now (a merge that a deletion left over): looked again every IMAGE_SNAPSHOT_LOOK_MS
 *   2. how much data they show; told as the total before anything is written
 *   3. copied in the order of the disk; zeroes are left out, so that holes stay holes
 *   4. the file's size is the disk's
 * Layers below a snapshot do not change, so the VM may run, start and stop meanwhile. A failure leaves what has been written. */
#ifndef COMPUTE_AGENT_IMAGE_SNAPSHOT_H
#define COMPUTE_AGENT_IMAGE_SNAPSHOT_H

#include "common/base.h"
#include "common/error.h"
#include "compute/agent/image_import.h"

#define IMAGE_SNAPSHOT_LOOK_MS 200
#define IMAGE_SNAPSHOT_LOOKS_MAX 3000u /* of a layer that is being written */
#define IMAGE_SNAPSHOT_MISSED_MAX 5u   /* looks at one that has gone since it was named */
#define IMAGE_SNAPSHOT_COPYING "copying the disk as the snapshot has it"

/* @directory: the pool with the disk's layers. @fd: an empty file, open for writing; borrowed. -ENOENT in words: no such disk or
 * snapshot; -EBUSY: it is being written still; -ENOSPC; -EFBIG: larger than images may be. */
int image_snapshot_copy(const char *directory, const char *disk, const char *snapshot, int fd,
                        const struct image_import_listener *listener, struct error *err);

#endif
