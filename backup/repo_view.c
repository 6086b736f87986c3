/* Which chunks a store has, read from its indexes, packs and lists: repo_view_load of repo.h. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backup/repo.h"

#define TAIL_BYTES (64u << 10) /* holds the index of an ordinary pack */
#define TRIES 3

static int index_take(void *arg, const struct chunk_hash *name, const void *raw, uint32_t raw_bytes)
{
    /* a pack's index that does not match its name is left out here and read from the pack itself */
    int code = chunk_index_add(arg, name, raw, raw_bytes, NULL, NULL);
    return code == -ENOMEM ? code : 0;
}

/* 1: one of them went away meanwhile, a collection has replaced it. */
static int indexes_load(struct repo *repo, struct repo_view *v, struct error *err)
{
    bool gone = false;
    store_listing_finish(&v->indexes);
    v->bad_index_count = 0;
    int code = store_listing_load(repo->store, "indexes/", &v->indexes, err);
    for (size_t i = 0; code == 0 && i < v->indexes.count; i++) {
        CLEANUP_FREE uint8_t *data = NULL;
        size_t size = 0;
        code = store_read(repo->store, v->indexes.items[i].name, CHUNK_INDEX_OBJECT_BYTES_MAX, &data, &size, err);
        if (code == 0 && chunk_index_decode(data, size, index_take, &v->index, err) < 0)
            v->bad_index_count++;
        if (code == -ENOENT || code == -EFBIG) {
            gone = gone || code == -ENOENT;
            v->bad_index_count += code == -EFBIG;
            code = 0;
        }
    }
    return code < 0 ? code : gone;
}

static int pack_ask(struct repo *repo, struct repo_view *v, const struct store_listed *pack,
                    const struct chunk_hash *hash, struct error *err)
{
    size_t tail = (size_t)MIN(pack->size_bytes, (uint64_t)TAIL_BYTES), got = 0;
    uint64_t offset;
    uint32_t bytes;
    CLEANUP_FREE uint8_t *data = xcalloc(1, TAIL_BYTES);
    int code = store_get(repo->store, pack->name, pack->size_bytes - tail, data, tail, &got, err);
    if (code < 0)
        return code;
    if (got != tail || tail < PACK_END_BYTES)
        return -EBADMSG;
    code = pack_end_decode(data + tail - PACK_END_BYTES, pack->size_bytes, &offset, &bytes, err);
    if (code < 0)
        return code;
    if (bytes + PACK_END_BYTES <= tail)
        return chunk_index_add(&v->index, hash, data + tail - PACK_END_BYTES - bytes, bytes, NULL, err);
    CLEANUP_FREE uint8_t *all = xcalloc(1, bytes);
    code = store_get(repo->store, pack->name, offset, all, bytes, &got, err);
    if (code < 0)
        return code;
    return got != bytes ? -EBADMSG : chunk_index_add(&v->index, hash, all, bytes, NULL, err);
}

static int packs_load(struct repo *repo, struct repo_view *v, struct error *err)
{
    int code = store_listing_load(repo->store, "packs/", &v->packs, err);
    for (size_t i = 0; code == 0 && i < v->packs.count; i++) {
        const struct store_listed *pack = &v->packs.items[i];
        struct chunk_hash hash;
        if (pack_name_parse(pack->name, &hash) < 0)
            continue; /* somebody else's */
        uint32_t known = chunk_index_pack(&v->index, &hash);
        if (known == UINT32_MAX) {
            code = pack_ask(repo, v, pack, &hash, err);
            if (code == -ENOENT) { /* collected meanwhile */
                code = 0;
                continue;
            }
            if (code == -EBADMSG || code == -ENOTSUP) {
                v->bad_packs = xrealloc(v->bad_packs, (v->bad_pack_count + 1) * sizeof *v->bad_packs);
                pack_name(&hash, v->bad_packs[v->bad_pack_count++]);
                code = 0;
                continue;
            }
            if (code < 0)
                return code;
            known = v->index.pack_count - 1;
        }
        v->index.packs[known].present = true;
        v->index.packs[known].modified_ms = pack->modified_ms;
        v->index.packs[known].size_bytes = pack->size_bytes;
    }
    return code;
}

static int notes_read(struct repo *repo, const struct store_listing *listing, enum repo_note_kind kind,
                      struct repo_notes *notes, struct error *err)
{
    int code = 0;
    for (size_t i = 0; code == 0 && i < listing->count; i++) {
        CLEANUP_FREE uint8_t *data = NULL;
        size_t size = 0;
        code = store_read(repo->store, listing->items[i].name, REPO_NOTES_BYTES_MAX, &data, &size, err);
        if (code == -ENOENT)
            code = 0;
        else if (code == 0)
            code = repo_notes_decode(data, size, kind, notes, err);
        /* a damaged list of condemned packs must not be passed over: what it condemns may go any moment */
        if (code == -EBADMSG && kind == REPO_DAMAGED)
            code = 0;
        if (code < 0)
            error_prefix(err, "%s: ", listing->items[i].name);
    }
    return code;
}

static void notes_apply(struct repo_view *v, const struct repo_notes *condemned, const struct repo_notes *damaged)
{
    for (uint32_t i = 0; i < condemned->note_count; i++) {
        uint32_t pack = chunk_index_pack(&v->index, &condemned->notes[i].pack);
        if (pack != UINT32_MAX)
            v->index.packs[pack].condemned = true;
    }
    for (uint32_t i = 0; i < damaged->note_count; i++) {
        const struct repo_note *n = &damaged->notes[i];
        uint32_t pack = chunk_index_pack(&v->index, &n->pack);
        if (pack == UINT32_MAX)
            continue;
        uint32_t frames = v->index.packs[pack].index.frame_count;
        for (uint32_t f = n->frame == REPO_WHOLE_PACK ? 0 : n->frame;
             f < (n->frame == REPO_WHOLE_PACK ? frames : n->frame + 1); f++)
            chunk_index_mark_bad(&v->index, pack, f);
    }
    /* a pack that has another length than its index tells is cut off: nothing in it counts */
    for (uint32_t p = 0; p < v->index.pack_count; p++) {
        const struct indexed_pack *pack = &v->index.packs[p];
        if (pack->present &&
            pack->size_bytes != PACK_HEAD_BYTES + pack->index.frames_bytes + pack->raw_bytes + PACK_END_BYTES)
            for (uint32_t f = 0; f < pack->index.frame_count; f++)
                chunk_index_mark_bad(&v->index, p, f);
    }
}

int repo_view_load(struct repo *repo, struct repo_view *ret_view, struct error *err)
{
    struct repo_view v = {0};
    struct repo_notes condemned = {0}, damaged = {0};
    int code, tries = 0;
    /* the order: condemned packs, indexes, and only then what packs are there (repo_gc.h) */
    code = store_listing_load(repo->store, "condemned/", &v.condemned, err);
    if (code == 0)
        code = notes_read(repo, &v.condemned, REPO_CONDEMNED, &condemned, err);
    if (code == 0)
        code = store_listing_load(repo->store, "damaged/", &v.damaged, err);
    if (code == 0)
        code = notes_read(repo, &v.damaged, REPO_DAMAGED, &damaged, err);
    while (code == 0 && (code = indexes_load(repo, &v, err)) == 1 && ++tries < TRIES)
        code = 0;
    if (code >= 0) {
        uint32_t indexed = v.index.pack_count;
        code = packs_load(repo, &v, err);
        v.indexed = xcalloc(MAX(v.index.pack_count, 1u), sizeof *v.indexed);
        for (uint32_t i = 0; i < indexed; i++)
            v.indexed[i] = true;
    }
    if (code == 0) {
        notes_apply(&v, &condemned, &damaged);
        chunk_index_build(&v.index);
    }
    repo_notes_finish(&condemned);
    repo_notes_finish(&damaged);
    if (code < 0) {
        repo_view_finish(&v);
        return code;
    }
    *ret_view = v;
    return 0;
}

void repo_view_finish(struct repo_view *view)
{
    chunk_index_finish(&view->index);
    store_listing_finish(&view->packs);
    store_listing_finish(&view->indexes);
    store_listing_finish(&view->condemned);
    store_listing_finish(&view->damaged);
    free(view->bad_packs);
    free(view->indexed);
    *view = (struct repo_view){0};
}

int repo_index_write(struct repo *repo, const struct chunk_index *index, const bool *chosen, char *ret_name,
                     struct error *err)
{
    struct bytes_writer out = {0};
    char digits[REPO_SESSION_TEXT_BYTES], name[STORE_NAME_BYTES];
    repo_session_make(digits);
    snprintf(name, sizeof name, "indexes/%s", digits);
    chunk_index_encode(index, chosen, &out);
    int code = store_put(repo->store, name, out.data, out.size, err);
    bytes_writer_finish(&out);
    if (code == 0 && ret_name != NULL)
        memcpy(ret_name, name, sizeof name);
    return code;
}

int repo_notes_write(struct repo *repo, enum repo_note_kind kind, const struct repo_notes *notes, char *ret_name,
                     struct error *err)
{
    struct bytes_writer out = {0};
    char digits[REPO_SESSION_TEXT_BYTES], name[STORE_NAME_BYTES];
    repo_session_make(digits);
    snprintf(name, sizeof name, "%s/%s", kind == REPO_DAMAGED ? "damaged" : "condemned", digits);
    repo_notes_encode(notes, kind, &out);
    int code = store_put(repo->store, name, out.data, out.size, err);
    bytes_writer_finish(&out);
    if (code == 0 && ret_name != NULL)
        memcpy(ret_name, name, sizeof name);
    return code;
}
