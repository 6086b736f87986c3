/* Snapshots of a disk in use, in steps: for an owner (the VMM) whose guest must not stand still while files are made and
 * synced. The point in time is a switch in memory; all that takes long is before or after it, and blocks only a thread
 * that holds no lock. Several disks are switched one after another under one lock: one point for all.
 *
 *   begin    lock     what the next steps need is copied; no merge is under way from here to the end
 *   prepare  files    the next top is made, empty, and the head names it as the top: nothing changes, for all shows through it
 *   open     lock     the next top, with the owner's engine
 *   switch   lock     drained; the next top takes the writes. No I/O. What was written to the old one and not flushed
 *                     is flushed by every FLUSH from here on (layer_chain.h: behind)
 *   flush    lock     begins to flush the old top
 *   name     files    flushed, the old top is marked as sealed, and the head gives it the snapshot's name
 *   end      lock     done, or given up
 *
 * lock: with the owner's lock held; files: blocking, without it, by a pool of blocking calls on the same directory that takes
 * no locks (layer_pool_dir_set_unlocked), for the layers are locked by the owner itself. One point of a disk at a time, and
 * nothing else changes its head meanwhile: the owner sees to that, as to no change of its size.
 *
 * A crash between prepare and switch leaves an empty top, one between switch and name one layer more; either shows what
 * was flushed, and goes with the next tidying. A removal goes by the same steps, without those between:
 *
 *   begin (drop)  lock     name (drop)  files     end  lock     then layer_disk_tidy */
#ifndef BLOCK_LAYER_POINT_H
#define BLOCK_LAYER_POINT_H

#include "block/layer_disk.h"

struct layer_point {
    struct layer_disk *disk;
    char snapshot[64];
    bool drop;                 /* the name goes */
    struct layer_header old;   /* of the top as it was */
    char old_name[LAYER_NAME_BYTES];
    struct layer_id next;      /* id of the next top, once it is made */
    bool prepared, switched, named;
    struct layer *top;         /* opened, not switched to yet */
    struct disk_head before, after; /* heads: as it was, as it is to be */
    struct disk_head needs;         /* its `layers`: those of the chain */
};

/* -EEXIST, -E2BIG, -EBUSY (the last point is not flushed yet) in words; with @drop -ENOENT. @ret is filled, and to be
 * ended then in any case. A merge under way is given up (its done is called with -ECANCELED). */
int layer_point_begin(struct layer_disk *disk, const char *snapshot, bool drop, struct layer_point *ret,
                      struct error *err);
int layer_point_prepare(struct layer_point *point, struct layer_pool *files, struct error *err);
int layer_point_open(struct layer_point *point, struct error *err);
/* The disk has been drained under this very lock. */
void layer_point_switch(struct layer_point *point);
/* As layer_flush, of the old top. */
int layer_point_flush(struct layer_point *point, struct layer_flush *flush);
int layer_point_name(struct layer_point *point, struct layer_pool *files, struct error *err);
/* Where it comes to no switch: the head as it was. Blocking, without the lock, before the end. */
void layer_point_undo(struct layer_point *point, struct layer_pool *files);
void layer_point_end(struct layer_point *point);

#endif
