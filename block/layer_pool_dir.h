/* A pool that is a directory of this host (or one that is mounted here). What is in it is not trusted: nothing but plain
 * files of the directory itself is opened, by names of one component; a symbolic link is refused. */
#ifndef BLOCK_LAYER_POOL_DIR_H
#define BLOCK_LAYER_POOL_DIR_H

#include "block/layer_pool.h"

/* Makes a block of an open, locked descriptor, which becomes the block's on success. */
typedef int (*layer_pool_dir_opener)(void *arg, int fd, const char *name, bool read_only, struct block **ret_block,
                                     struct error *err);

/* @opener NULL: blocking calls (block_sync.h). @path must be there. */
int layer_pool_dir_create(const char *path, layer_pool_dir_opener opener, void *arg, struct layer_pool **ret_pool,
                          struct error *err);
/* Whether files are opened without their locks: to look at what another process has. */
void layer_pool_dir_set_unlocked(struct layer_pool *pool, bool unlocked);
/* For a directory that other hosts reach: asked right before a name is made, replaced or removed; false: refused (-EAGAIN). */
void layer_pool_dir_set_guard(struct layer_pool *pool, bool (*may_change)(void *arg), void *arg);
/* After everything that was opened from it. NULL is allowed. */
void layer_pool_dir_destroy(struct layer_pool *pool);

#endif
