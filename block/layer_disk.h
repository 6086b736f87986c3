/* A disk as a thing with a name: <name>.disk in a pool says which layer is its top and which layers its snapshots are;
 * the layers' headers say how they follow each other.
 *
 *        image.raw <-- L1 <-- L2 <-- L3 (top)          head: top L3; snapshots a = L1, b = L2
 *                       ^
 *                       +---- L4 (top of a clone)      head: top L4
 *
 * Each change is one replacement of a small file, or of one header (layer_merge.h); what it needs is made and durable
 * before, what it frees is removed after. So a crash leaves the old or the new state, and at most layers that no head
 * names: layer_disk_collect removes those. The rule of reference: a layer stays while a head lists it.
 *
 *   snapshot  flush, a new empty top, head: O(1) in the size of the disk
 *   revert    a new empty top above the snapshot's layer, head
 *   clone     a new head with a new top above a snapshot's layer or a raw image
 *   drop      head without the snapshot's name; then layer_disk_tidy merges the layers that nobody names any more
 *   delete    the head goes; then collect
 *
 * In any order: what another disk still needs stays until that is gone, too. Threads: the owner of the chain; all
 * block but for what goes through disk->chain->block. */
#ifndef BLOCK_LAYER_DISK_H
#define BLOCK_LAYER_DISK_H

#include "block/layer_chain.h"
#include "block/layer_merge.h"
#include "schema/objects.h"

struct layer_disk {
    struct layer_pool *pool; /* borrowed */
    char name[64];
    struct disk_head head;
    struct layer_chain *chain; /* owned */
    uint64_t epoch;
    struct {
        void (*done)(void *arg, int result);
        void *arg;
        struct layer_id gone, heir;
    } tidy; /* the merge under way */
};

/* A new, empty disk of @size_bytes; @base: a raw file of the pool that shows below, or NULL (then @size_bytes is
 * needed; else 0 = the base's, and no less). -EEXIST: there is one of that name. */
int layer_disk_create(struct layer_pool *pool, const char *name, uint64_t size_bytes, const char *base,
                      struct error *err);
/* A new disk of @source_bytes that is not whole: all of it is still at @source_name (layer_pool.h, source). That is on disk
 * before this returns, and nobody opens the disk without that source before layer_disk_fill is done. */
int layer_disk_create_from(struct layer_pool *pool, const char *name, const char *source_name, uint64_t source_bytes,
                           struct error *err);
/* The same two in place of the disk of that name, if there is one, which is not open anywhere: its head is replaced at once, so that
 * whatever happens there is the one disk or the other. Its layers and snapshots are nobody's then (layer_disk_collect). */
int layer_disk_replace(struct layer_pool *pool, const char *name, uint64_t size_bytes, const char *base, struct error *err);
int layer_disk_replace_from(struct layer_pool *pool, const char *name, const char *source_name, uint64_t source_bytes, struct error *err);
/* Open with all its layers; locked against others while it is open for writing. -ESTALE in words: its layers are
 * owned by a higher epoch than @epoch (0: no question). */
int layer_disk_open(struct layer_pool *pool, const char *name, bool read_only, uint64_t epoch,
                    struct layer_disk **ret_disk, struct error *err);
/* A snapshot, read-only. */
int layer_disk_open_snapshot(struct layer_pool *pool, const char *name, const char *snapshot,
                             struct layer_disk **ret_disk, struct error *err);
/* Drains, flushes, closes. NULL is allowed. */
void layer_disk_close(struct layer_disk *disk);
/* For a migration's hand-over. Let another process have it (@own false: all is made to last, nothing is locked any
 * more, it takes no requests), or take it (back), as the other has left it. Nothing is in flight. -EBUSY in words. */
int layer_disk_own(struct layer_disk *disk, bool own, struct error *err);
/* Release the rest of one whose chain has been closed as a block (block_close), by its device. */
void layer_disk_release(struct layer_disk *disk);

/* -E2BIG in words: it has LAYER_CHAIN_MAX layers, so that there can be no snapshot. */
int layer_disk_full(const struct layer_disk *disk, struct error *err);
/* Drains and flushes, then begins a new top; what was is the snapshot. On failure the disk is as before. */
int layer_disk_snapshot(struct layer_disk *disk, const char *snapshot, struct error *err);
/* The name goes at once and lastingly; the space with layer_disk_tidy. */
int layer_disk_drop(struct layer_disk *disk, const char *snapshot, struct error *err);
/* Begin the next merge of layers that nobody needs apart: 1, and @done comes once (0, negative errno; -ECANCELED at
 * layer_disk_close); 0: there is none. To be called again after each; see layer_chain_run for how it goes on. */
int layer_disk_tidy(struct layer_disk *disk, void (*done)(void *arg, int result), void *arg, struct error *err);
/* All merges here and now, for owners without a loop. */
int layer_disk_tidy_now(struct layer_disk *disk, struct error *err);

bool layer_disk_has(const struct layer_disk *disk, const char *snapshot);
/* Does it read as @snapshot does, because nothing has been written since it was made, or reverted to? */
bool layer_disk_is_at(const struct layer_disk *disk, const char *snapshot);

/* Is all of it here? If not, its lowest layer has a source. */
bool layer_disk_is_whole(const struct layer_disk *disk);
/* Begin to fill in what is missing: 1, and @done comes once as for layer_disk_tidy; 0: it is whole. The disk has one layer.
 * What is read meanwhile comes first, and the rest waits for it. When @done says 0 the disk is one like any other, and that is
 * on disk. A failure, also -EAGAIN, leaves what has come: to be begun again. */
int layer_disk_fill(struct layer_disk *disk, void (*done)(void *arg, int result), void *arg, struct error *err);

/* The disk is not open anywhere: show the snapshot again; what was written since is gone but for other snapshots. */
int layer_disk_revert(struct layer_pool *pool, const char *name, const char *snapshot, struct error *err);
/* @from's snapshot as a new disk @name. */
int layer_disk_clone(struct layer_pool *pool, const char *from, const char *snapshot, const char *name,
                     struct error *err);
/* Not open anywhere. A missing one is fine. */
int layer_disk_delete(struct layer_pool *pool, const char *name, struct error *err);
/* Remove the layers that no head lists and nobody has open. */
int layer_disk_collect(struct layer_pool *pool, struct error *err);

/* Since the layer of that id was sealed (its snapshot): the changed clusters, by layer_chain_changed with @ret_since.
 * -ESTALE: not one of this disk's layers (any more): everything has to be read. */
int layer_disk_since(const struct layer_disk *disk, const char *layer, int *ret_since);

#endif
