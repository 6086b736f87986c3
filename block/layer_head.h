/* Heads of disks (struct disk_head, <name>.disk), for layer_disk.c and layer_point.c alone. */
#ifndef BLOCK_LAYER_HEAD_H
#define BLOCK_LAYER_HEAD_H

#include "block/layer_pool.h"
#include "schema/objects.h"

/* -EINVAL in words: not the name of a disk or snapshot. */
int layer_name_check(const char *name, struct error *err);
/* Put it in place of the one that is there; it lasts when this returns 0. */
int layer_head_write(struct layer_pool *pool, const char *name, const struct disk_head *head, struct error *err);
bool layer_head_lists(const struct disk_head *head, const char *layer);
/* Unless it is there. */
void layer_head_add(struct disk_head *head, const char *layer);
/* NULL: there is none of that name. */
struct disk_snapshot *layer_head_snapshot(const struct disk_head *head, const char *name);
/* Leave out of @head what neither @needs (its `layers`; filled up here) nor a snapshot stands on. Where that cannot be
 * found out all stays. Opens layers. */
void layer_head_prune(struct layer_pool *pool, struct disk_head *head, struct disk_head *needs);

#endif
