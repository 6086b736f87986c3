/* Packs: the immutable objects that hold chunks. A store has few large ones rather than a file for each chunk, so
 * that listing, collecting and copying it cost little on NFS and S3.
 *
 * Chunks that were new together are compressed together, in frames of up to PACK_FRAME_RAW_MAX: a frame is what is
 * read, decompressed and, in an encrypted store, unsealed at once. Lists of chunks (chunk_tree.h) are in frames of
 * their own, never sealed.
 *
 *   pack    0 magic "DRVBPACK" | 8 u32 version | 12 zeroes
 *          16 the stored bytes of frame after frame
 *             index
 *             last 32: u64 offset of the index | u32 its bytes | 8 zeroes | u32 CRC32C of the 20 before | magic
 * "DRVPKEND" index   0 magic "DRVPKIDX" | 8 u32 version | 12 u32 frames | 16 u32 chunks | 20 zeroes (4) | 24 u64
 * bytes of all frames 32 salt[16] frame: u32 stored bytes | u32 raw bytes | u16 chunks | u8 codec (0 as it is, 1
 * zstd) u8 flags (1 sealed, 2 lists of chunks) | hash[32] of the stored bytes chunk: id[32] | u32 bytes frame,
 * unsealed and decompressed: its chunks one after another
 *
 * A pack's name is the BLAKE3 of its index, which has the hash of every frame: so every byte can be verified without
 * a key, and no name can come to mean something else. The salt is random: two packs never share a name though they
 * hold the same chunks, which the collection relies on (repo_gc.h). Sealed: repo_seal of the compressed bytes, bound
 * to the ids of the frame's chunks.
 *
 * Everything decoded here comes from outside: counts and sizes are checked against the bytes that are there. */
#ifndef BACKUP_PACK_H
#define BACKUP_PACK_H

#include "backup/chunk_hash.h"
#include "backup/repo_key.h"
#include "common/bytes.h"
#include "common/error.h"

enum {
    PACK_VERSION = 1,
    PACK_BYTES = 32 << 20, /* a pack is closed when it has this much */
    PACK_BYTES_MAX = 64 << 20,
    PACK_HEAD_BYTES = 16,
    PACK_END_BYTES = 32,
    PACK_SALT_BYTES = 16,
    PACK_FRAME_RAW_MAX = 4 << 20,
    PACK_FRAME_CHUNKS_MAX = 64,
    PACK_CHUNK_BYTES_MAX = 1 << 20,
    PACK_INDEX_BYTES_MAX = 16 << 20,
    PACK_NAME_BYTES = 80, /* "packs/ab/<64 digits>" with its terminator */
};

enum pack_codec { PACK_RAW = 0, PACK_ZSTD = 1, PACK_CODECS };
enum pack_flag { PACK_SEALED = 1 << 0, PACK_LISTS = 1 << 1, PACK_FLAGS = PACK_SEALED | PACK_LISTS };

struct pack_frame {
    uint64_t offset; /* in the pack */
    uint32_t stored_bytes, raw_bytes;
    uint32_t first_chunk;
    uint16_t chunk_count;
    uint8_t codec, flags;
    struct chunk_hash hash; /* of the stored bytes */
};
struct pack_chunk {
    struct chunk_hash id;
    uint32_t size_bytes;
    uint32_t frame;
    uint32_t offset; /* in the decompressed frame */
};
struct pack_index {
    struct pack_frame *frames;
    struct pack_chunk *chunks;
    uint32_t frame_count, chunk_count;
    uint64_t frames_bytes; /* the index begins at PACK_HEAD_BYTES + this */
};

/* -EBADMSG, -ENOTSUP, -ENOMEM in words. Outputs owned by the caller: pack_index_finish. */
int pack_index_decode(const void *data, size_t size, struct pack_index *ret_index, struct error *err);
void pack_index_finish(struct pack_index *index);
/* The last PACK_END_BYTES of a pack of @pack_bytes: where its index is. -EBADMSG in words. */
int pack_end_decode(const void *end, uint64_t pack_bytes, uint64_t *ret_offset, uint32_t *ret_size,
                    struct error *err);
int pack_head_decode(const void *head, struct error *err);
/* "packs/ab/abcd..." into PACK_NAME_BYTES; returns it. And back: -EINVAL. */
const char *pack_name(const struct chunk_hash *hash, char *ret_name);
int pack_name_parse(const char *name, struct chunk_hash *ret_hash);

/* ---- a frame ---- */

/* Compression and sealing of one thread. */
struct pack_coder;
struct pack_coder *pack_coder_create(int level);
void pack_coder_destroy(struct pack_coder *coder); /* NULL is allowed */

/* The stored form of @raw, in the coder's own memory until its next call. @keys: seals where it is not NULL. Fills
 * codec, flags, stored_bytes, raw_bytes and hash of @ret_frame. */
const uint8_t *pack_frame_encode(struct pack_coder *coder, const struct repo_keys *keys,
                                 const struct pack_chunk *chunks, uint16_t chunk_count, const void *raw,
                                 uint32_t raw_bytes, struct pack_frame *ret_frame);
/* Undo it into @ret_raw (frame->raw_bytes). Checks that it decompresses to that many bytes; the ids of the chunks are
 * the caller's to check. -EBADMSG: damaged; -EACCES: sealed, and @keys has no key. */
int pack_frame_decode(struct pack_coder *coder, const struct repo_keys *keys, const struct pack_index *index,
                      const struct pack_frame *frame, const uint8_t *stored, void *ret_raw, struct error *err);

/* ---- a pack that is being filled ---- */

struct pack_builder {
    struct bytes_writer out; /* head and frames */
    struct pack_index index;
    uint32_t frame_capacity, chunk_capacity;
};
void pack_builder_init(struct pack_builder *b);
/* Empty again, for the next pack in the same memory: new memory of that size costs a page fault for each 4 KiB. */
void pack_builder_reset(struct pack_builder *b);
/* Copies the frame and its chunks' ids. */
void pack_builder_add(struct pack_builder *b, const struct pack_frame *frame, const uint8_t *stored,
                      const struct pack_chunk *chunks);
static inline bool pack_builder_full(const struct pack_builder *b)
{
    return b->out.size >= PACK_BYTES;
}
/* Append index and end; b->out is the pack, @ret_hash its name, @ret_index_offset where in it the index begins. */
void pack_builder_close(struct pack_builder *b, struct chunk_hash *ret_hash, uint64_t *ret_index_offset,
                        uint32_t *ret_index_bytes);
void pack_builder_finish(struct pack_builder *b);

#endif
