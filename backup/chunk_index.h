/* Which chunks a store has, and where: all packs' indexes, in memory, with a hash table over the chunks' ids. About
 * 50 bytes a chunk: 400 MiB for a TiB of data that is stored once, at 128 KiB a chunk.
 *
 * Not every pack counts for everything:
 *
 *                    read from it   lets a writer leave a chunk out
 *   there, good           yes             yes
 *   a frame marked bad    as the last resort   no: so the next backup that has the data heals it
 *   condemned             yes             no: a collection may be about to remove it (repo_gc.h)
 *   not there             no              no
 *
 * Index objects ("indexes/<32 digits>") repeat the indexes of many packs, so that opening a store costs few requests:
 *
 *   0 magic "DRVBINDX" | 8 u32 version | 12 u32 packs | for each: name's hash[32] | u32 bytes | index
 *   last 32: BLAKE3 of all before
 *
 * They are a cache of what the packs say of themselves: a pack that no index object tells of is asked itself.
 * Threads: one while it is filled; then any, to look up. */
#ifndef BACKUP_CHUNK_INDEX_H
#define BACKUP_CHUNK_INDEX_H

#include "backup/pack.h"

enum {
    CHUNK_INDEX_VERSION = 1,
    CHUNK_INDEX_OBJECT_BYTES_MAX = 128 << 20,
    CHUNK_INDEX_OBJECT_PACKS = 256, /* in one object, when it is ours to choose */
};

struct indexed_pack {
    struct chunk_hash hash; /* its name */
    struct pack_index index;
    uint8_t *raw; /* the index as it is stored, for index objects to come */
    uint32_t raw_bytes;
    bool present;   /* it is in the store's list */
    bool condemned; /* a collection has said that it may go */
    bool *bad;      /* of each frame; NULL: none */
    int64_t modified_ms;
    uint64_t size_bytes; /* as listed */
};

struct chunk_index {
    struct indexed_pack *packs;
    uint32_t pack_count, pack_capacity; /* a power of two */
    uint32_t *names; /* hash table over the packs' names: 1 + pack; 0: free */
    uint64_t name_slots;
    uint64_t *slots; /* 1 + (pack << 32 | chunk); 0: free */
    uint64_t slot_count, used;
};

/* Where a chunk is. */
struct chunk_place {
    uint32_t pack, chunk;
};

void chunk_index_init(struct chunk_index *x);
void chunk_index_finish(struct chunk_index *x);
/* Add a pack by its own index (@raw is copied). The name has to be its hash: -EBADMSG in words. One that is known
 * already is fine. @ret_pack may be NULL. */
int chunk_index_add(struct chunk_index *x, const struct chunk_hash *name, const void *raw, uint32_t raw_bytes,
                    uint32_t *ret_pack, struct error *err);
/* UINT32_MAX: not known. */
uint32_t chunk_index_pack(const struct chunk_index *x, const struct chunk_hash *name);
void chunk_index_mark_bad(struct chunk_index *x, uint32_t pack, uint32_t frame);
/* After marks have changed: build the table, the best place of each chunk in it. */
void chunk_index_build(struct chunk_index *x);

/* The best place to read it from. */
bool chunk_index_find(const struct chunk_index *x, const struct chunk_hash *id, struct chunk_place *ret_place);
/* Stored so surely that it need not be stored again. */
bool chunk_index_has(const struct chunk_index *x, const struct chunk_hash *id);
/* 0: not there; 1: there, but bad; 2: condemned; 3: good */
int chunk_index_worth(const struct chunk_index *x, uint32_t pack, uint32_t frame);
static inline const struct pack_chunk *chunk_index_chunk(const struct chunk_index *x, struct chunk_place at)
{
    return &x->packs[at.pack].index.chunks[at.chunk];
}
static inline const struct pack_frame *chunk_index_frame(const struct chunk_index *x, struct chunk_place at)
{
    return &x->packs[at.pack].index.frames[chunk_index_chunk(x, at)->frame];
}

/* An index object of the packs with @chosen[i] (NULL: all that are present). */
void chunk_index_encode(const struct chunk_index *x, const bool *chosen, struct bytes_writer *out);
/* Calls @each for every pack of an index object; -EBADMSG, -ENOTSUP in words, or what @each returns. */
int chunk_index_decode(const void *data, size_t size,
                       int (*each)(void *arg, const struct chunk_hash *name, const void *raw, uint32_t raw_bytes),
                       void *arg, struct error *err);

/* A set of ids, for claims and marks. Not thread-safe. */
struct chunk_set {
    struct chunk_hash *slots; /* all zeroes: free */
    uint64_t slot_count, used;
};
/* False: it was in. Never for the id of all zeroes. */
bool chunk_set_add(struct chunk_set *set, const struct chunk_hash *id);
bool chunk_set_has(const struct chunk_set *set, const struct chunk_hash *id);
void chunk_set_finish(struct chunk_set *set);

#endif
