/* The list of a disk's chunks, in leaves of 4096 (512 MiB at 128 KiB a chunk). A leaf is stored like a chunk, named
 * by the hash of its bytes; a backup's manifest names the leaves of each disk (the id of all zeroes: all of it
 * zeroes). A leaf that has hardly changed since the last backup is stored as its difference from a whole one, so that
 * a few scattered changes do not cost a new list of everything. A difference is never from a difference.
 *
 *   leaf  0 magic "DRVL" | 4 u16 version | 6 u16 kind (0 whole, 1 difference) | 8 u32 slots | 12 u32 runs
 *           difference: id[32] of the whole leaf
 *           run: u16 first slot | u16 slots | u8 kind (0 zeroes, 1 chunks) | chunks: an id[32] for each slot
 *
 * Runs ascend; slots that no run tells of are zeroes (whole) or as in the whole leaf (difference). */
#ifndef BACKUP_CHUNK_TREE_H
#define BACKUP_CHUNK_TREE_H

#include "backup/chunk_hash.h"
#include "common/bytes.h"
#include "common/error.h"

enum { CHUNK_LEAF_VERSION = 1, CHUNK_LEAF_SLOTS = 4096, CHUNK_LEAF_BYTES_MAX = 1 << 18 };

struct chunk_leaf {
    uint32_t slots; /* all have 4096 but a disk's last */
    struct chunk_hash ids[CHUNK_LEAF_SLOTS];
};

uint64_t chunk_tree_chunks(uint64_t size_bytes, uint32_t chunk_bytes);
uint64_t chunk_tree_leaves(uint64_t size_bytes, uint32_t chunk_bytes);
/* Slots of leaf @index. */
uint32_t chunk_tree_slots(uint64_t size_bytes, uint32_t chunk_bytes, uint64_t index);

bool chunk_leaf_is_zero(const struct chunk_leaf *leaf);
void chunk_leaf_encode(const struct chunk_leaf *leaf, struct bytes_writer *out);
/* The difference from @base (same slots), named @base_id. */
void chunk_leaf_encode_difference(const struct chunk_leaf *leaf, const struct chunk_leaf *base,
                                  const struct chunk_hash *base_id, struct bytes_writer *out);
/* Of a difference: fills @ret_base with what has to be decoded into @leaf before chunk_leaf_decode and returns 1; of
 * a whole one 0. -EBADMSG, -ENOTSUP in words. */
int chunk_leaf_base(const void *data, size_t size, struct chunk_hash *ret_base, struct error *err);
/* @leaf: for a difference, the whole leaf; for a whole one its content does not matter. @slots: what it has to have.
 */
int chunk_leaf_decode(const void *data, size_t size, uint32_t slots, struct chunk_leaf *leaf, struct error *err);

#endif
