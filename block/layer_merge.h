/* Two neighbouring layers of a chain become one, while the disk is in use.
 *
 *   up     what layer `from` has and the one above it has not is copied into that; then the upper one's parent is what
 *          `from`'s was. For a small layer below a large one; the upper one may be the top.
 *   down   what layer `from` has is copied into the one below it, which then stands for both; then the parent of the
 *          layer above `from` is the lower one. For a small layer above a large one; `from` is not the top, and what
 *          the lower one showed by itself is gone: nobody else may need it.
 *
 *   copying --all copied--> flush of the target --> parent rewritten (the one moment that counts) --> `from` removed
 *                                         [chain->merge_ready: the owner is told, and calls layer_merge_conclude]
 *      |  ^
 *      |  | layer_chain_run: after a drain, or when a cluster was held by a write
 *      +--+--- an error, or cancel --> as it was, but for copies that nobody sees or that show the same
 *
 * All that is read through the chain stays the same at every moment, and what is on disk is whole at every moment:
 * after a crash the merge may be begun anew. Up, what was flushed before is not copied again; down, all is.
 * A cluster at a time in a few places at once; the top's own writes wait for the one that they touch.
 *
 * A disk that is not whole (LAYER_PARENT_SOURCE) is filled by the same, up, out of the layer that stands for its source: what the
 * guest reads there first, the rest only while the guest waits for nothing. Zeroes get no place. With the header that names no
 * source any more the disk is whole.
 *
 * Whether a layer may go at all (snapshots, clones) is layer_disk.h's business. Threads: the chain's owner. */
#ifndef BLOCK_LAYER_MERGE_H
#define BLOCK_LAYER_MERGE_H

#include "block/layer_chain.h"

enum {
    LAYER_MERGE_COPIES_MAX = 8, /* clusters under way at once */
    LAYER_FILL_COPIES_MAX = 4,  /* of a source: what a guest waits for must not stand behind many */
    LAYER_FILL_FLUSH_CLUSTERS = 1024, /* 64 MiB: a crash loses no more of what has come */
};

struct layer_merge;
/* Once; @result 0 or negative errno (-ECANCELED). The merge is gone then, and from a result of 0 on layer @gone is: it
 * is out of the chain and closed, its files are the caller's to remove (those of a raw image stay). */
typedef void (*layer_merge_cb)(void *arg, int result, const struct layer_id *gone);

/* @up: into the layer above, else into the one below. Begins with the next layer_chain_run, which is asked for.
 * -EBUSY: a merge is under way, or somebody else reads a layer that has to be written; -EINVAL: not possible here. */
int layer_merge_start(struct layer_chain *chain, struct layer_pool *pool, unsigned from, bool up, layer_merge_cb done,
                      void *arg, struct error *err);
/* Clusters looked at so far and in all. */
void layer_merge_progress(const struct layer_merge *merge, uint64_t *ret_done, uint64_t *ret_total);
/* Ends it: done is called from here with -ECANCELED. Drains what it has under way. */
void layer_merge_cancel(struct layer_merge *merge);
/* What is left of a merge that chain->merge_ready told of: to be called by the owner where files may be opened and
 * removed. @done is called from here. Nothing where there is none that is ready. */
void layer_merge_conclude(struct layer_chain *chain);
/* For the chain. */
void layer_merge_pump(struct layer_merge *merge);
/* What a merge of layer @from up or down would copy, in clusters. */
uint64_t layer_merge_cost(const struct layer_chain *chain, unsigned from, bool up);

#endif
