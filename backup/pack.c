/* Packs: see pack.h for the format. */
#include "backup/pack.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <zstd.h>

#define MAGIC "DRVBPACK"
#define MAGIC_INDEX "DRVPKIDX"
#define MAGIC_END "DRVPKEND"
#define FRAME_ENTRY_BYTES 44u
#define CHUNK_ENTRY_BYTES 36u
enum { LEVEL_SMALL_TABLES = 3 }; /* the default one */
/* Compression that wins less than this is not worth undoing. */
#define WORTH(raw) ((raw) - (raw) / 64)

static int damaged(struct error *err, const char *what)
{
    return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the index of a pack is damaged: %s", what);
}

static int newer(struct error *err, uint32_t version)
{
    return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "a pack has format %u; this program knows format %d",
                     version, PACK_VERSION);
}

static int frame_take(struct bytes_reader *r, struct pack_index *x, uint32_t i, uint32_t *chunks, struct error *err)
{
    struct pack_frame *f = &x->frames[i];
    f->offset = PACK_HEAD_BYTES + x->frames_bytes;
    f->stored_bytes = bytes_get_u32(r);
    f->raw_bytes = bytes_get_u32(r);
    f->chunk_count = bytes_get_u16(r);
    f->codec = bytes_get_u8(r);
    f->flags = bytes_get_u8(r);
    f->first_chunk = *chunks;
    const void *hash = bytes_get(r, CHUNK_HASH_BYTES);
    if (r->bad)
        return damaged(err, "it is cut off");
    memcpy(f->hash.bytes, hash, CHUNK_HASH_BYTES);
    if (f->codec >= PACK_CODECS || (f->flags & ~PACK_FLAGS) != 0)
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                         "a pack has frames of a kind (codec %u, flags %x) that this program does not know", f->codec,
                         f->flags);
    if (f->raw_bytes == 0 || f->raw_bytes > PACK_FRAME_RAW_MAX || f->chunk_count == 0 ||
        f->chunk_count > PACK_FRAME_CHUNKS_MAX || f->stored_bytes == 0 ||
        f->stored_bytes > PACK_FRAME_RAW_MAX + REPO_SEAL_BYTES || f->chunk_count > x->chunk_count - *chunks)
        return damaged(err, "a frame is out of bounds");
    if (f->codec == PACK_RAW && f->stored_bytes != f->raw_bytes + (f->flags & PACK_SEALED ? REPO_SEAL_BYTES : 0u))
        return damaged(err, "a frame that is not compressed has another size than its chunks");
    *chunks += f->chunk_count;
    x->frames_bytes += f->stored_bytes;
    return 0;
}

static int chunks_take(struct bytes_reader *r, struct pack_index *x, struct error *err)
{
    for (uint32_t i = 0; i < x->frame_count; i++) {
        uint64_t raw = 0;
        for (uint32_t n = 0; n < x->frames[i].chunk_count; n++) {
            struct pack_chunk *c = &x->chunks[x->frames[i].first_chunk + n];
            const void *id = bytes_get(r, CHUNK_HASH_BYTES);
            c->size_bytes = bytes_get_u32(r);
            if (r->bad || c->size_bytes == 0 || c->size_bytes > PACK_CHUNK_BYTES_MAX)
                return damaged(err, "a chunk is out of bounds");
            memcpy(c->id.bytes, id, CHUNK_HASH_BYTES);
            c->frame = i;
            c->offset = (uint32_t)raw;
            raw += c->size_bytes;
        }
        if (raw != x->frames[i].raw_bytes)
            return damaged(err, "a frame has another size than its chunks");
    }
    return 0;
}

static int index_take(struct bytes_reader *r, struct pack_index *x, struct error *err)
{
    const void *magic = bytes_get(r, 8);
    if (magic == NULL || memcmp(magic, MAGIC_INDEX, 8) != 0)
        return damaged(err, "it does not begin as one");
    uint32_t version = bytes_get_u32(r), chunks = 0;
    if (version != PACK_VERSION)
        return newer(err, version);
    x->frame_count = bytes_get_u32(r);
    x->chunk_count = bytes_get_u32(r);
    bytes_get_u32(r);
    uint64_t frames_bytes = bytes_get_u64(r);
    bytes_get(r, PACK_SALT_BYTES);
    if (r->bad ||
        (uint64_t)x->frame_count * FRAME_ENTRY_BYTES + (uint64_t)x->chunk_count * CHUNK_ENTRY_BYTES != bytes_left(r))
        return damaged(err, "its length is wrong");
    x->frames = malloc(MAX(x->frame_count, 1u) * sizeof *x->frames);
    x->chunks = malloc(MAX(x->chunk_count, 1u) * sizeof *x->chunks);
    if (x->frames == NULL || x->chunks == NULL)
        return error_set(err, -ENOMEM, ERROR_OVERLOAD, "no memory for the index of a pack");
    for (uint32_t i = 0; i < x->frame_count; i++) {
        int code = frame_take(r, x, i, &chunks, err);
        if (code < 0)
            return code;
    }
    if (chunks != x->chunk_count || x->frames_bytes != frames_bytes || frames_bytes > PACK_BYTES_MAX)
        return damaged(err, "its frames do not add up");
    return chunks_take(r, x, err);
}

int pack_index_decode(const void *data, size_t size, struct pack_index *ret_index, struct error *err)
{
    struct pack_index x = {0};
    struct bytes_reader r = bytes_reader(data, size);
    int code = size > PACK_INDEX_BYTES_MAX ? damaged(err, "it is too long") : index_take(&r, &x, err);
    if (code < 0) {
        pack_index_finish(&x);
        return code;
    }
    *ret_index = x;
    return 0;
}

void pack_index_finish(struct pack_index *index)
{
    free(index->frames);
    free(index->chunks);
    *index = (struct pack_index){0};
}

int pack_head_decode(const void *head, struct error *err)
{
    struct bytes_reader r = bytes_reader(head, PACK_HEAD_BYTES);
    if (memcmp(bytes_get(&r, 8), MAGIC, 8) != 0)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "it does not begin as a pack");
    uint32_t version = bytes_get_u32(&r);
    return version == PACK_VERSION ? 0 : newer(err, version);
}

int pack_end_decode(const void *end, uint64_t pack_bytes, uint64_t *ret_offset, uint32_t *ret_size, struct error *err)
{
    struct bytes_reader r = bytes_reader(end, PACK_END_BYTES);
    uint64_t offset = bytes_get_u64(&r);
    uint32_t size = bytes_get_u32(&r);
    bytes_get_u64(&r);
    if (bytes_get_u32(&r) != bytes_crc32c(0, end, 20) || memcmp(bytes_get(&r, 8), MAGIC_END, 8) != 0)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "it does not end as a pack: it is cut off or damaged");
    if (size > PACK_INDEX_BYTES_MAX || offset < PACK_HEAD_BYTES ||
        offset > PACK_HEAD_BYTES + (uint64_t)PACK_BYTES_MAX || offset + size + PACK_END_BYTES != pack_bytes)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the pack's end tells of another length than it has");
    *ret_offset = offset;
    *ret_size = size;
    return 0;
}

const char *pack_name(const struct chunk_hash *hash, char *ret_name)
{
    char text[CHUNK_HASH_TEXT_BYTES];
    chunk_hash_text(hash, text);
    snprintf(ret_name, PACK_NAME_BYTES, "packs/%.2s/%s", text, text);
    return ret_name;
}

int pack_name_parse(const char *name, struct chunk_hash *ret_hash)
{
    if (strncmp(name, "packs/", 6) != 0 || strlen(name) != 9 + 64 || name[8] != '/')
        return -EINVAL;
    return chunk_hash_parse(name + 9, ret_hash);
}

/* ---- frames ---- */

struct pack_coder {
    ZSTD_CCtx *compress;
    ZSTD_DCtx *decompress;
    uint8_t *packed, *sealed; /* the results of encoding */
    uint8_t *opened;          /* of unsealing */
};

struct pack_coder *pack_coder_create(int level)
{
    struct pack_coder *c = NEW(struct pack_coder);
    c->compress = ZSTD_createCCtx();
    c->decompress = ZSTD_createDCtx();
    ASSERT(c->compress != NULL && c->decompress != NULL);
    ZSTD_CCtx_setParameter(c->compress, ZSTD_c_compressionLevel, level);
    /* Of frames of a MiB the level's own tables (64 and 128 Ki entries) are larger than a core's nearest caches. Smaller ones
     * take 40 % less processor time for 1.4 % more bytes (docs/backup.md). */
    if (level == LEVEL_SMALL_TABLES) {
        ZSTD_CCtx_setParameter(c->compress, ZSTD_c_hashLog, 14);
        ZSTD_CCtx_setParameter(c->compress, ZSTD_c_chainLog, 15);
    }
    /* the frame's hash and the chunks' ids say the same, better */
    ZSTD_CCtx_setParameter(c->compress, ZSTD_c_checksumFlag, 0);
    ZSTD_DCtx_setParameter(c->decompress, ZSTD_d_windowLogMax, 23);
    return c;
}

void pack_coder_destroy(struct pack_coder *coder)
{
    if (coder == NULL)
        return;
    ZSTD_freeCCtx(coder->compress);
    ZSTD_freeDCtx(coder->decompress);
    free(coder->packed);
    free(coder->sealed);
    free(coder->opened);
    free(coder);
}

static uint8_t *buffer_of(uint8_t **buffer, size_t size)
{
    if (*buffer == NULL)
        *buffer = xcalloc(1, size);
    return *buffer;
}

/* What a seal is bound to: the ids of the frame's chunks. */
static size_t about_frame(const struct pack_chunk *chunks, uint16_t count, uint8_t *ret_about)
{
    for (uint16_t i = 0; i < count; i++)
        memcpy(ret_about + (size_t)i * CHUNK_HASH_BYTES, chunks[i].id.bytes, CHUNK_HASH_BYTES);
    return (size_t)count * CHUNK_HASH_BYTES;
}

const uint8_t *pack_frame_encode(struct pack_coder *coder, const struct repo_keys *keys,
                                 const struct pack_chunk *chunks, uint16_t chunk_count, const void *raw,
                                 uint32_t raw_bytes, struct pack_frame *ret_frame)
{
    uint8_t about[PACK_FRAME_CHUNKS_MAX * CHUNK_HASH_BYTES];
    size_t bound = ZSTD_compressBound(PACK_FRAME_RAW_MAX);
    const uint8_t *stored = raw;
    ASSERT(raw_bytes > 0 && raw_bytes <= PACK_FRAME_RAW_MAX && chunk_count > 0 &&
           chunk_count <= PACK_FRAME_CHUNKS_MAX);
    struct pack_frame f = {.raw_bytes = raw_bytes, .stored_bytes = raw_bytes, .chunk_count = chunk_count};
    size_t n = ZSTD_compress2(coder->compress, buffer_of(&coder->packed, bound), bound, raw, raw_bytes);
    if (!ZSTD_isError(n) && n < WORTH(raw_bytes)) {
        stored = coder->packed;
        f.stored_bytes = (uint32_t)n;
        f.codec = PACK_ZSTD;
    }
    if (keys != NULL) {
        uint8_t *sealed = buffer_of(&coder->sealed, PACK_FRAME_RAW_MAX + REPO_SEAL_BYTES);
        repo_seal(keys->seal, about, about_frame(chunks, chunk_count, about), stored, f.stored_bytes, sealed);
        stored = sealed;
        f.stored_bytes += REPO_SEAL_BYTES;
        f.flags = PACK_SEALED;
    }
    chunk_hash_plain(stored, f.stored_bytes, &f.hash);
    *ret_frame = f;
    return stored;
}

static int frame_damaged(struct error *err, const char *what)
{
    return error_set(err, -EBADMSG, ERROR_CHECKSUM, "a frame is damaged: %s", what);
}

int pack_frame_decode(struct pack_coder *coder, const struct repo_keys *keys, const struct pack_index *index,
                      const struct pack_frame *frame, const uint8_t *stored, void *ret_raw, struct error *err)
{
    uint8_t about[PACK_FRAME_CHUNKS_MAX * CHUNK_HASH_BYTES];
    size_t size = frame->stored_bytes;
    if (frame->flags & PACK_SEALED) {
        uint8_t *opened = buffer_of(&coder->opened, PACK_FRAME_RAW_MAX);
        if (!keys->present)
            return error_set(err, -EACCES, ERROR_FORBIDDEN, "the store is encrypted: a key is needed");
        if (repo_unseal(keys->seal, about, about_frame(index->chunks + frame->first_chunk, frame->chunk_count, about),
                        stored, size, opened) < 0)
            return frame_damaged(err, "its seal is broken");
        stored = opened;
        size -= REPO_SEAL_BYTES;
    }
    if (frame->codec == PACK_RAW) {
        if (size != frame->raw_bytes)
            return frame_damaged(err, "its size is wrong");
        memcpy(ret_raw, stored, size);
        return 0;
    }
    size_t n = ZSTD_decompressDCtx(coder->decompress, ret_raw, frame->raw_bytes, stored, size);
    if (ZSTD_isError(n) || n != frame->raw_bytes)
        return frame_damaged(err, "it does not decompress");
    return 0;
}

/* ---- building ---- */

void pack_builder_init(struct pack_builder *b)
{
    *b = (struct pack_builder){0};
    pack_builder_reset(b);
}

void pack_builder_reset(struct pack_builder *b)
{
    b->out.size = 0;
    b->index.frame_count = b->index.chunk_count = 0;
    b->index.frames_bytes = 0;
    bytes_reserve(&b->out, PACK_BYTES + PACK_FRAME_RAW_MAX);
    bytes_put(&b->out, MAGIC, 8);
    bytes_put_u32(&b->out, PACK_VERSION);
    bytes_put_u32(&b->out, 0);
}

void pack_builder_add(struct pack_builder *b, const struct pack_frame *frame, const uint8_t *stored,
                      const struct pack_chunk *chunks)
{
    struct pack_index *x = &b->index;
    if (x->frame_count == b->frame_capacity) {
        b->frame_capacity = MAX(b->frame_capacity * 2, 64u);
        x->frames = xrealloc(x->frames, b->frame_capacity * sizeof *x->frames);
    }
    while (x->chunk_count + frame->chunk_count > b->chunk_capacity) {
        b->chunk_capacity = MAX(b->chunk_capacity * 2, 512u);
        x->chunks = xrealloc(x->chunks, b->chunk_capacity * sizeof *x->chunks);
    }
    x->frames[x->frame_count] = *frame;
    x->frames[x->frame_count].offset = b->out.size;
    x->frames[x->frame_count].first_chunk = x->chunk_count;
    memcpy(x->chunks + x->chunk_count, chunks, frame->chunk_count * sizeof *chunks);
    x->chunk_count += frame->chunk_count;
    x->frame_count++;
    x->frames_bytes += frame->stored_bytes;
    bytes_put(&b->out, stored, frame->stored_bytes);
}

void pack_builder_close(struct pack_builder *b, struct chunk_hash *ret_hash, uint64_t *ret_index_offset,
                        uint32_t *ret_index_bytes)
{
    struct bytes_writer *out = &b->out;
    const struct pack_index *x = &b->index;
    uint8_t salt[PACK_SALT_BYTES];
    size_t index = out->size;
    repo_random(salt, sizeof salt);
    bytes_put(out, MAGIC_INDEX, 8);
    bytes_put_u32(out, PACK_VERSION);
    bytes_put_u32(out, x->frame_count);
    bytes_put_u32(out, x->chunk_count);
    bytes_put_u32(out, 0);
    bytes_put_u64(out, x->frames_bytes);
    bytes_put(out, salt, sizeof salt);
    for (uint32_t i = 0; i < x->frame_count; i++) {
        bytes_put_u32(out, x->frames[i].stored_bytes);
        bytes_put_u32(out, x->frames[i].raw_bytes);
        bytes_put_u16(out, x->frames[i].chunk_count);
        bytes_put_u8(out, x->frames[i].codec);
        bytes_put_u8(out, x->frames[i].flags);
        bytes_put(out, x->frames[i].hash.bytes, CHUNK_HASH_BYTES);
    }
    for (uint32_t i = 0; i < x->chunk_count; i++) {
        bytes_put(out, x->chunks[i].id.bytes, CHUNK_HASH_BYTES);
        bytes_put_u32(out, x->chunks[i].size_bytes);
    }
    *ret_index_offset = index;
    *ret_index_bytes = (uint32_t)(out->size - index);
    chunk_hash_plain(out->data + index, out->size - index, ret_hash);
    size_t end = out->size;
    bytes_put_u64(out, index);
    bytes_put_u32(out, *ret_index_bytes);
    bytes_put_u64(out, 0);
    bytes_put_u32(out, bytes_crc32c(0, out->data + end, 20));
    bytes_put(out, MAGIC_END, 8);
}

void pack_builder_finish(struct pack_builder *b)
{
    bytes_writer_finish(&b->out);
    pack_index_finish(&b->index);
}
