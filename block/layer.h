/* One layer of a disk: a data file, sparse, with every cluster at its place, and the map that says which clusters it
 * has (layer_map.h). A raw image as the lowest layer has no map: it has all its clusters.
 *
 * Files: <id>.raw, <id>.map in a pool (layer_pool.h). The data file is rounded up to whole clusters.
 *
 * The rule that makes it safe (layer_flush): data first, then map. A state gets on disk only when the data it speaks
 * of is there: a flush copies the states that changed, syncs the data, writes the copies, syncs the map.
 *
 *   layer_flush -> copy dirty blocks -> data FLUSH -> write blocks into their other slots -> map FLUSH -> done
 *        further ones that arrive meanwhile wait for the next round and share it
 *
 * A power cut between the two leaves data that the map does not know of. Such clusters show what they showed at the
 * last flush; layer_open for writing finds the layer still marked LAYER_OPEN and punches out what is in the data file
 * under clusters that are not LAYER_DATA, so that it holds:
 *
 *   in a writable layer, a cluster that is not LAYER_DATA is a hole in the data file
 *
 * (but for writes in flight, and where a write has failed: `stained`). Threads: the owner of the blocks. */
#ifndef BLOCK_LAYER_H
#define BLOCK_LAYER_H

#include "block/layer_map.h"
#include "block/layer_pool.h"

struct layer_flush {
    void (*done)(struct layer_flush *, int result); /* 0 or negative errno */
    struct list link;
};

struct layer {
    struct layer_header header; /* of a raw image: only size_bytes */
    struct layer_map map;
    struct block *data;     /* owned */
    struct block *map_file; /* owned; NULL: a raw image */
    bool is_source; /* what fills the layer above it (layer_pool.h, source): no map_file, all clusters */
    bool writable;
    bool stained; /* a write failed: clusters that are not LAYER_DATA may be no holes any more; stays LAYER_OPEN */
    char name[LAYER_NAME_BYTES]; /* <id>, or the raw image's file */

    struct list waiting, riding; /* struct layer_flush: for the next round, of this one */
    struct layer_round *round;   /* NULL: none under way */
};

/* Open layer @id of @pool. For writing: cleans up after a power cut, and is marked LAYER_OPEN durably when it returns.
 * -ENOENT, -EBUSY, -EBADMSG, -ENOTSUP in words. */
int layer_open(struct layer_pool *pool, const struct layer_id *id, bool read_only, struct layer **ret_layer,
               struct error *err);
/* The same for writing, by the owner of @epoch (0: no question): the epoch is raised to it durably, together with the
 * mark. -ESTALE in words where it is higher already: nothing has been touched then. */
int layer_open_owned(struct layer_pool *pool, const struct layer_id *id, uint64_t epoch, struct layer **ret_layer,
                     struct error *err);
/* Open a raw image as a read-only layer that has all clusters with data. */
int layer_open_raw(struct layer_pool *pool, const char *name, struct layer **ret_layer, struct error *err);
/* What fills the layer of @header, as a layer below it. -ENODATA in words: nobody has it here. */
int layer_open_source(struct layer_pool *pool, const struct layer_header *header, struct layer **ret_layer,
                      struct error *err);
/* Make an empty layer with @header: id random where all zero, sequence set here, of the flags LAYER_OPEN counts: then it
 * is open for writing. Its files last when it returns. */
int layer_create(struct layer_pool *pool, const struct layer_header *header, struct layer **ret_layer,
                 struct error *err);
/* Flush and mark it clean; 0 or negative errno, and then it is cleaned up at the next opening. Nothing is in flight. */
int layer_settle(struct layer *layer);
/* After layer_settle: from now on only read, and others may read it, too (until layer_make_writable). */
void layer_share(struct layer *layer);
/* Close without a further write: after layer_settle, or of a read-only one, or to leave it as after a crash.
 * NULL is allowed. */
void layer_close(struct layer *layer);
/* Reopen a read-only one for writing; on failure (-EBUSY: somebody else reads it) it is as before. */
int layer_make_writable(struct layer_pool *pool, struct layer *layer, struct error *err);
int layer_remove_files(struct layer_pool *pool, const struct layer_id *id, struct error *err);
/* Mark the layer of @header as sealed and clean, where another opening of its map has it and only reads; @header is what
 * is on disk, and afterwards what is then. All of it has been flushed. @pool takes no locks. */
int layer_seal(struct layer_pool *pool, struct layer_header *header, struct error *err);
/* Write the header as it is in memory, with a higher sequence, durably; drains the map file. */
int layer_write_header(struct layer *layer);
/* Make the disk larger as this layer sees it. The layer is the top; nothing need be drained. */
int layer_grow(struct layer *layer, uint64_t size_bytes, struct error *err);

/* Whether a flush needs more than a FLUSH of the data file. */
static inline bool layer_has_news(const struct layer *layer)
{
    return layer->map.dirty_count > 0 || layer->round != NULL;
}
/* Make durable what was completed until now. @flush->done follows, never from within, where this returns 0. */
int layer_flush(struct layer *layer, struct layer_flush *flush);
void layer_drain(struct layer *layer);

#endif
