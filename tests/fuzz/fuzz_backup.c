/* Whatever bytes a store's objects hold: packs' ends and indexes, index objects, lists of chunks, manifests, notes,
 * the header. They are read within their bounds, and what is taken from them keeps the rules that all else relies on.
 * The first byte says which; its high bit mends the checksum, so that the fuzzer gets behind it. */
#include <string.h>

#include "backup/chunk_index.h"
#include "backup/chunk_tree.h"
#include "backup/manifest.h"
#include "backup/repo_notes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void hash_mend(uint8_t *bytes, size_t size)
{
    struct chunk_hash hash;
    if (size < CHUNK_HASH_BYTES)
        return;
    chunk_hash_plain(bytes, size - CHUNK_HASH_BYTES, &hash);
    memcpy(bytes + size - CHUNK_HASH_BYTES, hash.bytes, CHUNK_HASH_BYTES);
}

static void crc_mend(uint8_t *bytes, size_t size)
{
    if (size < 4)
        return;
    uint32_t crc = bytes_crc32c(0, bytes, size - 4);
    memcpy(bytes + size - 4, &crc, 4);
}

static void index_read(const uint8_t *bytes, size_t size)
{
    struct pack_index x;
    struct repo_keys keys = {.present = true};
    if (pack_index_decode(bytes, size, &x, NULL) < 0)
        return;
    uint64_t at = PACK_HEAD_BYTES;
    for (uint32_t i = 0; i < x.frame_count; i++) {
        const struct pack_frame *f = &x.frames[i];
        ASSERT(f->offset == at && f->raw_bytes <= PACK_FRAME_RAW_MAX && f->chunk_count <= PACK_FRAME_CHUNKS_MAX);
        ASSERT(f->first_chunk + f->chunk_count <= x.chunk_count);
        for (uint32_t c = f->first_chunk; c < f->first_chunk + f->chunk_count; c++)
            ASSERT(x.chunks[c].frame == i && x.chunks[c].offset + x.chunks[c].size_bytes <= f->raw_bytes);
        at += f->stored_bytes;
    }
    ASSERT(at == PACK_HEAD_BYTES + x.frames_bytes);
    if (x.frame_count > 0 && x.frames[0].stored_bytes <= size) { /* any bytes as a frame */
        struct pack_coder *coder = pack_coder_create(1);
        uint8_t *raw = malloc(x.frames[0].raw_bytes), *stored = malloc(x.frames[0].stored_bytes);
        memcpy(stored, bytes + size - x.frames[0].stored_bytes, x.frames[0].stored_bytes);
        pack_frame_decode(coder, &keys, &x, &x.frames[0], stored, raw, NULL);
        free(raw);
        free(stored);
        pack_coder_destroy(coder);
    }
    pack_index_finish(&x);
}

static int each_pack(void *arg, const struct chunk_hash *name, const void *raw, uint32_t raw_bytes)
{
    chunk_index_add(arg, name, raw, raw_bytes, NULL, NULL);
    return 0;
}

static void leaf_read(const uint8_t *bytes, size_t size)
{
    struct chunk_hash base;
    uint32_t slots = size > 9 ? (uint32_t)(bytes[8] | bytes[9] << 8) % (CHUNK_LEAF_SLOTS + 1) : 1;
    struct chunk_leaf *leaf = NEW(struct chunk_leaf), *again = NEW(struct chunk_leaf);
    struct bytes_writer out = {0};
    leaf->slots = slots;
    chunk_leaf_base(bytes, size, &base, NULL);
    if (chunk_leaf_decode(bytes, size, slots, leaf, NULL) == 0) {
        chunk_leaf_encode(leaf, &out);
        ASSERT(chunk_leaf_decode(out.data, out.size, slots, again, NULL) == 0);
        ASSERT(memcmp(leaf->ids, again->ids, slots * sizeof *leaf->ids) == 0);
        bytes_writer_finish(&out);
    }
    free(leaf);
    free(again);
}

static void manifest_read(const uint8_t *bytes, size_t size)
{
    struct manifest m, again;
    struct repo_keys keys = {.present = false}, writes = {.present = true};
    struct bytes_writer out = {0};
    if (manifest_decode(bytes, size, &keys, 65536, &m, NULL) < 0)
        return;
    if (!m.sealed) {
        manifest_encode(&m, &writes, false, &out);
        ASSERT(manifest_decode(out.data, out.size, &writes, 65536, &again, NULL) == 0);
        ASSERT(again.leaf_count == m.leaf_count && strcmp(again.head.id, m.head.id) == 0);
        manifest_finish(&again);
        bytes_writer_finish(&out);
    }
    manifest_finish(&m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    struct repo_header header;
    struct repo_notes notes = {0};
    struct chunk_index index;
    uint64_t offset;
    uint32_t length;
    bool mend = data[0] & 0x80;
    uint8_t *bytes = malloc(size - 1 + (size == 1)); /* of exactly the size */
    memcpy(bytes, data + 1, size - 1);
    size--;
    switch (data[0] % 8) {
    case 0:
        index_read(bytes, size);
        break;
    case 1:
        if (mend)
            hash_mend(bytes, size);
        chunk_index_init(&index);
        chunk_index_decode(bytes, size, each_pack, &index, NULL);
        chunk_index_build(&index);
        chunk_index_finish(&index);
        break;
    case 2:
        leaf_read(bytes, size);
        break;
    case 3:
        if (mend)
            hash_mend(bytes, size);
        manifest_read(bytes, size);
        break;
    case 4:
    case 5:
        if (mend)
            hash_mend(bytes, size);
        repo_notes_decode(bytes, size, data[0] % 8 == 4 ? REPO_DAMAGED : REPO_CONDEMNED, &notes, NULL);
        repo_notes_finish(&notes);
        break;
    case 6:
        if (mend)
            crc_mend(bytes, size);
        repo_header_decode(bytes, size, &header, NULL);
        break;
    default:
        if (size >= PACK_END_BYTES)
            pack_end_decode(bytes, size + ((uint64_t)data[0] << 8), &offset, &length, NULL);
        break;
    }
    free(bytes);
    return 0;
}
