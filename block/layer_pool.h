/* Where layers are kept: a folder of named files, behind a vtable, so that the VMM opens them with its own engine, the
 * agent with blocking calls, and a test with a disk that loses power.
 *
 * Names are single components. All calls block; they are made by the owner of the blocks that come from it, with
 * nothing of the file concerned in flight. */
#ifndef BLOCK_LAYER_POOL_H
#define BLOCK_LAYER_POOL_H

#include "block/block.h"

enum { LAYER_HEAD_BYTES_MAX = 1 << 20 };

struct layer_pool;

struct layer_pool_ops {
    /* A file that is there, for reading (its lock shared with other readers) or for writing (alone). -ENOENT, -EBUSY. */
    int (*open)(struct layer_pool *, const char *name, bool read_only, struct block **ret_block, struct error *err);
    /* A new file of zeroes for writing, locked. -EEXIST. Its name lasts after `sync`. */
    int (*create)(struct layer_pool *, const char *name, uint64_t size_bytes, struct block **ret_block,
                  struct error *err);
    /* Gone at once, lastingly after `sync`. A missing one is fine. */
    int (*remove)(struct layer_pool *, const char *name, struct error *err);
    /* A small file whole; the caller frees. -ENOENT. */
    int (*read)(struct layer_pool *, const char *name, char **ret_data, size_t *ret_size, struct error *err);
    /* Put a small file in place of @name: either the old or the new one is there whatever happens; the new one lasts
     * when this returns 0. After a failure it may be either. */
    int (*replace)(struct layer_pool *, const char *name, const void *data, size_t size, struct error *err);
    /* Names made and removed last from here on. */
    int (*sync)(struct layer_pool *, struct error *err);
    /* Every name, in no order; ends early when @each returns < 0 and returns that. */
    int (*list)(struct layer_pool *, int (*each)(void *arg, const char *name), void *arg, struct error *err);
    /* Keep other processes from making and collecting layers here meanwhile; they wait. */
    int (*lock)(struct layer_pool *, bool locked, struct error *err);
};

/* Embedded by each kind of pool. */
struct layer_pool {
    const struct layer_pool_ops *ops;
    /* What fills a disk that is not whole (LAYER_PARENT_SOURCE): @size_bytes to be read from @name. Its reads end well or with
     * -EAGAIN. NULL: nobody has it here, and such a disk is not opened. */
    int (*source)(void *arg, const char *name, uint64_t size_bytes, struct block **ret_block, struct error *err);
    void *source_arg;
};

#endif
