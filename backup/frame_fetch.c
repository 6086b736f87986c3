/* One frame, or one chunk, out of a store: see frame_fetch.h. */
#include "backup/frame_fetch.h"

#include <errno.h>
#include <string.h>

void frame_fetcher_init(struct frame_fetcher *f, struct repo *repo, const struct chunk_index *index)
{
    *f = (struct frame_fetcher){.repo = repo, .index = index, .coder = pack_coder_create(1)};
    f->stored = xcalloc(1, PACK_FRAME_RAW_MAX + REPO_SEAL_BYTES);
    f->raw = xcalloc(1, PACK_FRAME_RAW_MAX);
}

void frame_fetcher_finish(struct frame_fetcher *f)
{
    pack_coder_destroy(f->coder);
    free(f->stored);
    free(f->raw);
    *f = (struct frame_fetcher){0};
}

bool frame_chunk_ok(const struct repo *repo, const struct pack_chunk *chunk, const void *raw)
{
    struct chunk_hash id;
    chunk_hash_keyed(repo->keys.names, raw, chunk->size_bytes, &id);
    return chunk_hash_equal(&id, &chunk->id);
}

static int frame_check(struct frame_fetcher *f, const struct pack_index *index, const struct pack_frame *frame,
                       const uint8_t *raw, struct error *err)
{
    struct chunk_hash hash;
    if (!f->repo->keys.present) {
        chunk_hash_plain(f->stored, frame->stored_bytes, &hash);
        return chunk_hash_equal(&hash, &frame->hash)
                   ? 0
                   : error_set(err, -EBADMSG, ERROR_CHECKSUM, "a frame does not match its checksum");
    }
    for (uint32_t i = 0; i < frame->chunk_count; i++) {
        const struct pack_chunk *chunk = &index->chunks[frame->first_chunk + i];
        if (!frame_chunk_ok(f->repo, chunk, raw + chunk->offset))
            return error_set(err, -EBADMSG, ERROR_CHECKSUM, "a chunk does not match its name");
    }
    return 0;
}

static int frame_try(struct frame_fetcher *f, const struct indexed_pack *p, const struct pack_frame *fr, const char *name,
                     void *ret_raw, struct error *err)
{
    size_t got = 0;
    int code = store_get(f->repo->store, name, fr->offset, f->stored, fr->stored_bytes, &got, err);
    if (code == 0 && got != fr->stored_bytes)
        code = error_set(err, -EBADMSG, ERROR_CHECKSUM, "it is cut off");
    if (code == 0)
        code = pack_frame_decode(f->coder, &f->repo->keys, &p->index, fr, f->stored, ret_raw, err);
    return code == 0 ? frame_check(f, &p->index, fr, ret_raw, err) : code;
}

int frame_fetch(struct frame_fetcher *f, uint32_t pack, uint32_t frame, void *ret_raw, struct error *err)
{
    const struct indexed_pack *p = &f->index->packs[pack];
    const struct pack_frame *fr = &p->index.frames[frame];
    char name[PACK_NAME_BYTES];
    pack_name(&p->hash, name);
    int code = frame_try(f, p, fr, name, ret_raw, err);
    if (code == -EBADMSG) /* perhaps it was hurt on the way: what is stored is damaged only if it comes so again */
        code = frame_try(f, p, fr, name, ret_raw, err);
    if (code == -EBADMSG)
        error_prefix(err, "%s in %s, frame %u: ", name, f->repo->store->location, frame);
    return code;
}

int frame_fetch_chunk(struct frame_fetcher *f, const struct chunk_hash *id, size_t size_max, void *ret_data,
                      size_t *ret_size, struct error *err)
{
    struct chunk_place at;
    char text[CHUNK_HASH_TEXT_BYTES];
    if (!chunk_index_find(f->index, id, &at))
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "no pack of %s has chunk %s", f->repo->store->location,
                         chunk_hash_text(id, text));
    const struct pack_chunk *chunk = chunk_index_chunk(f->index, at);
    if (chunk->size_bytes > size_max)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "chunk %s has another size than it should",
                         chunk_hash_text(id, text));
    int code = frame_fetch(f, at.pack, chunk->frame, f->raw, err);
    if (code < 0)
        return code;
    memcpy(ret_data, f->raw + chunk->offset, chunk->size_bytes);
    *ret_size = chunk->size_bytes;
    return 0;
}

int frame_fetch_leaf(struct frame_fetcher *f, const struct chunk_hash *id, uint32_t slots,
                     struct chunk_leaf *ret_leaf, struct chunk_hash *ret_base, struct chunk_leaf *ret_base_leaf,
                     struct error *err)
{
    struct chunk_hash base = *id, further;
    size_t size = 0, base_size = 0;
    if (chunk_hash_is_zero(id)) {
        memset(ret_leaf, 0, sizeof *ret_leaf);
        ret_leaf->slots = slots;
        if (ret_base != NULL)
            *ret_base = base;
        return 0;
    }
    CLEANUP_FREE uint8_t *data = xcalloc(2, CHUNK_LEAF_BYTES_MAX);
    uint8_t *base_data = data + CHUNK_LEAF_BYTES_MAX;
    int code = frame_fetch_chunk(f, id, CHUNK_LEAF_BYTES_MAX, data, &size, err);
    if (code == 0)
        code = chunk_leaf_base(data, size, &base, err);
    if (code == 1) {
        code = frame_fetch_chunk(f, &base, CHUNK_LEAF_BYTES_MAX, base_data, &base_size, err);
        if (code == 0 && chunk_leaf_base(base_data, base_size, &further, err) != 0)
            code = error_set(err, -EBADMSG, ERROR_CHECKSUM, "a list of chunks is a difference from a difference");
        if (code == 0)
            code = chunk_leaf_decode(base_data, base_size, slots, ret_leaf, err);
        if (code == 0 && ret_base_leaf != NULL)
            *ret_base_leaf = *ret_leaf;
    }
    if (code == 0)
        code = chunk_leaf_decode(data, size, slots, ret_leaf, err);
    if (code == 0 && ret_base_leaf != NULL && chunk_hash_equal(&base, id))
        *ret_base_leaf = *ret_leaf;
    if (code == 0 && ret_base != NULL)
        *ret_base = base;
    return code;
}
