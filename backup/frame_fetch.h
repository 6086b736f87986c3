/* One frame, or one chunk, out of a store. Blocking; any thread with a coder of its own. */
#ifndef BACKUP_FRAME_FETCH_H
#define BACKUP_FRAME_FETCH_H

#include "backup/chunk_tree.h"
#include "backup/repo.h"

struct frame_fetcher {
    struct repo *repo;
    const struct chunk_index *index;
    struct pack_coder *coder;
    uint8_t *stored; /* PACK_FRAME_RAW_MAX + REPO_SEAL_BYTES */
    uint8_t *raw;    /* PACK_FRAME_RAW_MAX */
};

void frame_fetcher_init(struct frame_fetcher *f, struct repo *repo, const struct chunk_index *index);
void frame_fetcher_finish(struct frame_fetcher *f);
/* The decompressed frame into @ret_raw (frame->raw_bytes). -EBADMSG, -ENOENT (the pack is gone), -EACCES or the
 * store's, in words that name the pack. With keys the ids of all its chunks are compared; without, the hash of its
 * stored bytes. */
int frame_fetch(struct frame_fetcher *f, uint32_t pack, uint32_t frame, void *ret_raw, struct error *err);
/* Whether @id, of @size bytes in a frame of a store whose keys are there, is what it says. */
bool frame_chunk_ok(const struct repo *repo, const struct pack_chunk *chunk, const void *raw);
/* One chunk of at most @size_max bytes. -EBADMSG in words too where no pack has it. */
int frame_fetch_chunk(struct frame_fetcher *f, const struct chunk_hash *id, size_t size_max, void *ret_data,
                      size_t *ret_size, struct error *err);
/* A leaf of @slots; all zeroes for the id of all zeroes. @ret_base: the id of the whole leaf that it is a difference
 * from, or its own; and @ret_base_leaf that leaf. Both may be NULL. */
int frame_fetch_leaf(struct frame_fetcher *f, const struct chunk_hash *id, uint32_t slots,
                     struct chunk_leaf *ret_leaf, struct chunk_hash *ret_base, struct chunk_leaf *ret_base_leaf,
                     struct error *err);

#endif
