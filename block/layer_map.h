/* The map of a layer: which of its clusters of 64 KiB it has itself, and the durable form of that and of its header.
 *
 *   absent  the layer says nothing; what is below shows through
 *   data    the cluster is in the layer's data file, at the same offset as on the disk
 *   zero    reads as zeroes, whatever is below
 *
 * Format 1, little-endian, in blocks of 4 KiB:
 *
 *   block 0, 1       header, two slots
 *   block 2+2i, 3+2i states of clusters 16128*i ..., two slots; a hole in the file: all absent
 *
 *   header   0 magic "DRVLAYER" | 8 u32 version | 12 u32 flags | 16 id[16] | 32 parent[16] | 48 u64 size_bytes
 *            56 u64 generation | 64 u64 sequence | 72 u64 epoch | 80 u32 cluster bytes | 84 u32 kind of parent
 *            88 name of a raw parent, 168 bytes, ends with zero | zeroes | 4092 u32 CRC32C of all before
 *   states   0 magic "DRVM" | 4 u32 index i | 8 u64 sequence | 16 id[16] | 32 two bits a cluster, low ones first
 *            (0 absent, 1 data, 2 zero) | 4064 zeroes | 4092 u32 CRC32C of all before
 *
 * What is written goes to the slot of `sequence` mod 2, so never over what counts now: a write that a power cut tears
 * leaves the other slot, which holds the state of the last flush. The valid slot with the higher sequence counts. A
 * damaged slot is such a tear only in a layer that was open (LAYER_OPEN); in any other it is damage, and refused.
 *
 * In memory: two bits a cluster (4 MiB per TiB), and what of them is not on disk yet. Threads: the owner's. */
#ifndef BLOCK_LAYER_MAP_H
#define BLOCK_LAYER_MAP_H

#include "common/base.h"
#include "common/error.h"

enum {
    LAYER_VERSION = 1,
    LAYER_CLUSTER_BYTES = 65536,
    LAYER_BLOCK_BYTES = 4096,
    LAYER_BLOCK_CLUSTERS = 16128, /* states in one block: 1008 MiB */
    LAYER_NAME_BYTES = 168,       /* of a raw parent, with its terminator */
    LAYER_ID_BYTES = 16,
    LAYER_ID_TEXT_BYTES = 33, /* hexadecimal, with its terminator */
};
#define LAYER_SIZE_MAX (UINT64_C(1) << 46) /* 64 TiB */

enum layer_state { LAYER_ABSENT = 0, LAYER_DATA = 1, LAYER_ZERO = 2 };
enum layer_parent {
    LAYER_PARENT_NONE = 0,
    LAYER_PARENT_LAYER = 1,
    LAYER_PARENT_RAW = 2,
    LAYER_PARENT_SOURCE = 3, /* not whole: what is absent is not zero but still somewhere else (layer_source.h); programs
                                that do not know it refuse the layer */
    LAYER_PARENTS
};
enum layer_flag {
    LAYER_OPEN = 1 << 0,   /* was opened for writing and not closed: there may be data that the map does not know of */
    LAYER_SEALED = 1 << 1, /* has a successor: never a disk's top again but by a merge or after copying */
    LAYER_FLAGS = LAYER_OPEN | LAYER_SEALED,
};

struct layer_id {
    uint8_t bytes[LAYER_ID_BYTES];
};

struct layer_header {
    struct layer_id id;
    uint32_t flags;
    enum layer_parent parent_kind;
    struct layer_id parent;             /* LAYER_PARENT_LAYER */
    char parent_name[LAYER_NAME_BYTES]; /* LAYER_PARENT_RAW: a file in the same folder; LAYER_PARENT_SOURCE: what fills it */
    uint64_t source_bytes;              /* LAYER_PARENT_SOURCE: how much comes from there; else 0 */
    uint64_t size_bytes;                /* of the disk: a multiple of 512, 1 to LAYER_SIZE_MAX */
    uint64_t generation;                /* one more than the parent's: counts a disk's snapshots */
    uint64_t sequence;                  /* of this header */
    uint64_t epoch;                     /* of the owner that writes */
};

bool layer_id_equal(const struct layer_id *a, const struct layer_id *b);
/* @ret_text: LAYER_ID_TEXT_BYTES. Returns it. */
const char *layer_id_text(const struct layer_id *id, char *ret_text);
/* -EINVAL unless 32 lower-case hexadecimal digits. */
int layer_id_parse(const char *text, struct layer_id *ret_id);

uint64_t layer_clusters(uint64_t size_bytes);
/* Bytes of the map file of a disk of that size. */
uint64_t layer_map_file_bytes(uint64_t size_bytes);
/* Where a header or a block of states of that sequence is in the file. */
uint64_t layer_header_offset(uint64_t sequence);
uint64_t layer_block_offset(uint32_t index, uint64_t sequence);

/* Fills LAYER_BLOCK_BYTES. */
void layer_header_encode(const struct layer_header *header, uint8_t *ret_block);
/* The header that counts of the two slots at @slots (2 * LAYER_BLOCK_BYTES). -EBADMSG, -ENOTSUP in words: damaged, or
 * of a newer version. */
int layer_header_decode(const uint8_t *slots, struct layer_header *ret_header, struct error *err);

struct layer_map {
    uint64_t clusters;
    uint32_t blocks;
    uint8_t *bits;      /* 4 clusters a byte, whole blocks */
    uint64_t *sequence; /* of each block as on disk; 0: not there */
    bool *dirty;        /* blocks that differ from the disk */
    uint32_t dirty_count;
};

/* All absent. -ENOMEM. */
int layer_map_init(struct layer_map *map, uint64_t size_bytes);
void layer_map_finish(struct layer_map *map);
/* More clusters, absent. -ENOMEM, and nothing is changed. */
int layer_map_grow(struct layer_map *map, uint64_t size_bytes);
static inline enum layer_state layer_map_get(const struct layer_map *map, uint64_t cluster)
{
    return (enum layer_state)(map->bits[cluster / 4] >> (cluster % 4 * 2) & 3);
}
void layer_map_set(struct layer_map *map, uint64_t cluster, enum layer_state state);
/* The first cluster from @from on that is not absent; map->clusters where none is. */
uint64_t layer_map_next(const struct layer_map *map, uint64_t from);
void layer_map_mark_dirty(struct layer_map *map, uint32_t block, bool dirty);

/* Block @index with the sequence after the one on disk, into LAYER_BLOCK_BYTES. */
void layer_block_encode(const struct layer_map *map, const struct layer_header *header, uint32_t index,
                        uint8_t *ret_block);
/* Take block @index from its two slots at @slots. -EBADMSG in words. */
int layer_block_decode(struct layer_map *map, const struct layer_header *header, uint32_t index, const uint8_t *slots,
                       struct error *err);

#endif
