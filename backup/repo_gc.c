/* The collection: see repo_gc.h for its steps and why they are safe. */
#include "backup/repo_gc.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backup/repo_mark.h"

/* Instead of the sessions' names, while they have not been listed yet. */
#define NOT_LISTED "0000000000000000"

/* A condemned list of an earlier run, or ours. */
struct doom {
    char name[STORE_NAME_BYTES];
    struct repo_notes notes;
    bool ripe; /* all its sessions have ended */
};

struct gc {
    struct repo *repo;
    const struct repo_gc_options *options;
    struct repo_view view;
    struct repo_mark mark;
    struct frame_fetcher fetcher;
    struct repo_gc_result result;
    struct doom *dooms;
    size_t doom_count;
    bool *needed;   /* packs with a chunk that has no better place */
    int64_t now_ms; /* the store's clock */
    char probe[STORE_NAME_BYTES];
    struct repo_notes given_up;  /* sessions whose fences this run has written */
    struct chunk_index repacked; /* packs that were written */
};

static int cancel_check(const struct gc *g, struct error *err)
{
    if (g->options->cancel == NULL || !atomic_load(g->options->cancel))
        return 0;
    return error_set(err, -ECANCELED, ERROR_CANCELLED, "the collection was cancelled; the next one goes on");
}

static void report(struct gc *g, const char *step, uint64_t done, uint64_t total)
{
    struct backup_progress p = {.step = step, .done_bytes = done, .total_bytes = total};
    if (g->options->progress != NULL)
        g->options->progress(g->options->progress_arg, &p);
}

/* What time the store has: that of an object written now. */
static int clock_read(struct gc *g, struct error *err)
{
    struct store_listing l = {0};
    char digits[REPO_SESSION_TEXT_BYTES];
    repo_session_make(digits);
    snprintf(g->probe, sizeof g->probe, "probes/%s", digits);
    int code = store_put(g->repo->store, g->probe, digits, sizeof digits, err);
    if (code == 0)
        code = store_listing_load(g->repo->store, "probes/", &l, err);
    for (size_t i = 0; code == 0 && i < l.count; i++) {
        if (strcmp(l.items[i].name, g->probe) == 0)
            g->now_ms = l.items[i].modified_ms;
        code = store_remove(g->repo->store, l.items[i].name, err);
    }
    store_listing_finish(&l);
    return code == 0 && g->now_ms == STORE_TIME_UNKNOWN
               ? error_set(err, -EBADMSG, ERROR_NOT_SUPPORTED,
                           "the store does not say when something was written in a way that can be read: nothing is collected")
               : code;
}

/* ---- mark ---- */

/* A session that this run has given up although its manifest had been written: its backup counts. Only those of this
 * run: of another's it cannot be told whether that has swept already. */
static int fence_lift(struct gc *g, const char *manifest, struct error *err)
{
    char fence[STORE_NAME_BYTES];
    const char *session = manifest + strlen(manifest) - MIN(strlen(manifest), (size_t)16);
    for (uint32_t i = 0; i < g->given_up.session_count; i++)
        if (strcmp(g->given_up.sessions[i], session) == 0) {
            snprintf(fence, sizeof fence, "fences/%.16s", session);
            return store_remove(g->repo->store, fence, err);
        }
    return 0;
}

/* Read every backup that is complete. */
static int mark_all(struct gc *g, struct error *err)
{
    struct store_listing manifests = {0};
    struct repo_backups backups = {0};
    int code = store_listing_load(g->repo->store, "backups/", &manifests, err);
    for (size_t i = 0; code == 0 && i < manifests.count; i++)
        code = fence_lift(g, manifests.items[i].name, err);
    store_listing_finish(&manifests);
    if (code == 0)
        code = repo_manifests_load(g->repo, NULL, &backups, err);
    for (size_t i = 0; code == 0 && i < backups.count; i++) {
        struct manifest m;
        struct error local = {0};
        report(g, "reading backups", i, backups.count);
        code = cancel_check(g, err);
        if (code == 0)
            code = repo_manifest_read(g->repo, &backups.items[i], &m, &local);
        if (code == -ENOENT) { /* removed meanwhile */
            code = 0;
            continue;
        }
        if (code == 0) {
            code = repo_mark_backup(g->repo, &g->fetcher, &m, &g->mark, NULL, NULL, NULL, &local);
            manifest_finish(&m);
        }
        if (code < 0 && err != NULL && local.code < 0) {
            *err = local;
            error_prefix(err,
                         "nothing was removed, because what backup %s needs cannot be told (verify, make a new "
                         "backup, or remove it: prune --remove ID): ",
                         backups.items[i].id);
        }
    }
    repo_backups_finish(&backups);
    return code;
}

/* Which packs have a chunk that is needed and has no better place. */
static void needs_find(struct gc *g)
{
    const struct chunk_set *live = &g->mark.live;
    memset(g->needed, 0, g->view.index.pack_count * sizeof *g->needed);
    for (uint64_t i = 0; i < live->slot_count; i++) {
        struct chunk_place at;
        if (!chunk_hash_is_zero(&live->slots[i]) && chunk_index_find(&g->view.index, &live->slots[i], &at))
            g->needed[at.pack] = true;
    }
}

/* ---- repack ---- */

/* Bytes of the frames of @pack that are needed from there. */
static uint64_t needed_bytes(const struct gc *g, uint32_t pack, bool *ret_frames)
{
    const struct pack_index *x = &g->view.index.packs[pack].index;
    uint64_t bytes = 0;
    memset(ret_frames, 0, x->frame_count * sizeof *ret_frames);
    for (uint32_t c = 0; c < x->chunk_count; c++) {
        struct chunk_place at;
        uint32_t frame = x->chunks[c].frame;
        if (ret_frames[frame] || !chunk_set_has(&g->mark.live, &x->chunks[c].id) ||
            !chunk_index_find(&g->view.index, &x->chunks[c].id, &at) || at.pack != pack)
            continue;
        ret_frames[frame] = true;
        bytes += x->frames[frame].stored_bytes;
    }
    return bytes;
}

static int repack_put(struct gc *g, struct pack_builder *b, struct error *err)
{
    struct chunk_hash hash;
    char name[PACK_NAME_BYTES];
    uint64_t offset;
    uint32_t bytes, pack;
    int code = 0;
    if (b->index.frame_count > 0) {
        pack_builder_close(b, &hash, &offset, &bytes);
        code = store_put(g->repo->store, pack_name(&hash, name), b->out.data, b->out.size, err);
    }
    if (code == 0 && b->index.frame_count > 0) {
        code = chunk_index_add(&g->repacked, &hash, b->out.data + offset, bytes, &pack, err);
        if (code == 0)
            g->repacked.packs[pack].present = true;
        g->result.written_bytes += b->out.size;
    }
    pack_builder_reset(b);
    return code;
}

/* Copies the frames; a damaged one is left out, its chunks have no other place and stay where they are. */
static int pack_copy(struct gc *g, uint32_t pack, const bool *frames, struct pack_builder *b, bool *ret_whole,
                     struct error *err)
{
    const struct indexed_pack *p = &g->view.index.packs[pack];
    char name[PACK_NAME_BYTES];
    int code = cancel_check(g, err);
    pack_name(&p->hash, name);
    for (uint32_t i = 0; code == 0 && i < p->index.frame_count; i++) {
        const struct pack_frame *f = &p->index.frames[i];
        struct chunk_hash hash;
        size_t got = 0;
        if (!frames[i])
            continue;
        code = store_get(g->repo->store, name, f->offset, g->fetcher.stored, f->stored_bytes, &got, err);
        if (code < 0)
            break;
        chunk_hash_plain(g->fetcher.stored, got, &hash);
        if (got != f->stored_bytes || !chunk_hash_equal(&hash, &f->hash)) {
            *ret_whole = false;
            continue;
        }
        pack_builder_add(b, f, g->fetcher.stored, p->index.chunks + f->first_chunk);
        if (pack_builder_full(b))
            code = repack_put(g, b, err);
    }
    return code;
}

/* @doomed: packs that may go; those whose frames were copied are added. */
static int repack(struct gc *g, bool *doomed, struct error *err)
{
    struct pack_builder b;
    int code = 0;
    pack_builder_init(&b);
    for (uint32_t i = 0; code == 0 && i < g->view.index.pack_count; i++) {
        const struct indexed_pack *p = &g->view.index.packs[i];
        bool whole = true;
        if (!p->present || p->condemned || !g->needed[i] ||
            p->modified_ms + (int64_t)g->options->grace_ms > g->now_ms)
            continue;
        CLEANUP_FREE bool *frames = xcalloc(MAX(p->index.frame_count, 1u), sizeof *frames);
        uint64_t bytes = needed_bytes(g, i, frames);
        if (bytes * 100 >= p->index.frames_bytes * g->options->keep_percent)
            continue;
        report(g, "repacking", i, g->view.index.pack_count);
        g->result.repacked_packs++;
        if (!g->options->dry_run)
            code = pack_copy(g, i, frames, &b, &whole, err);
        doomed[i] = whole && code == 0;
    }
    if (code == 0)
        code = repack_put(g, &b, err);
    pack_builder_finish(&b);
    if (code == 0 && g->repacked.pack_count > 0)
        code = repo_index_write(g->repo, &g->repacked, NULL, NULL, err);
    return code;
}

/* ---- condemn ---- */

static int active_load(struct gc *g, struct store_listing *ret, struct error *err)
{
    return store_listing_load(g->repo->store, "active/", ret, err);
}

/* A: the sessions at work, beside the packs. */
static int sessions_write(struct gc *g, struct doom *d, struct error *err)
{
    struct store_listing active;
    struct bytes_writer out = {0};
    int code = active_load(g, &active, err);
    if (code < 0)
        return code;
    d->notes.session_count = 0;
    for (size_t i = 0; i < active.count; i++)
        if (strlen(active.items[i].name) == strlen("active/") + 16)
            repo_notes_add_session(&d->notes, active.items[i].name + strlen("active/"));
    store_listing_finish(&active);
    repo_notes_encode(&d->notes, REPO_CONDEMNED, &out);
    code = store_put(g->repo->store, d->name, out.data, out.size, err);
    bytes_writer_finish(&out);
    return code;
}

/* Is there a list that we did not know of when we marked? */
static int rivals_check(struct gc *g, const struct doom *ours, struct error *err)
{
    struct store_listing now;
    bool rival = false;
    int code = store_listing_load(g->repo->store, "condemned/", &now, err);
    if (code < 0)
        return code;
    for (size_t i = 0; i < now.count; i++)
        rival = rival || (strcmp(now.items[i].name, ours->name) != 0 &&
                          store_listing_find(&g->view.condemned, now.items[i].name) == NULL);
    store_listing_finish(&now);
    if (!rival)
        return 0;
    store_remove(g->repo->store, ours->name, NULL);
    return error_set(err, -EBUSY, ERROR_IN_USE, "another collection is at work in %s", g->repo->store->location);
}

static int condemn(struct gc *g, const bool *doomed, struct error *err)
{
    struct doom d = {0};
    for (uint32_t i = 0; i < g->view.index.pack_count; i++)
        if (doomed[i])
            repo_notes_add(&d.notes, &g->view.index.packs[i].hash, REPO_WHOLE_PACK);
    if (d.notes.note_count == 0)
        return 0;
    repo_notes_add_session(&d.notes, NOT_LISTED);
    int code = repo_notes_write(g->repo, REPO_CONDEMNED, &d.notes, d.name, err);
    if (code == 0)
        code = rivals_check(g, &d, err);
    if (code == 0)
        code = sessions_write(g, &d, err);
    if (code < 0) {
        repo_notes_finish(&d.notes);
        return code;
    }
    g->dooms = xrealloc(g->dooms, (g->doom_count + 1) * sizeof *g->dooms);
    g->dooms[g->doom_count++] = d;
    for (uint32_t i = 0; i < g->view.index.pack_count; i++)
        g->view.index.packs[i].condemned = g->view.index.packs[i].condemned || doomed[i];
    return 0;
}

static int dooms_load(struct gc *g, struct error *err)
{
    const struct store_listing *l = &g->view.condemned;
    int code = 0;
    g->dooms = xcalloc(MAX(l->count, 1u), sizeof *g->dooms);
    for (size_t i = 0; code == 0 && i < l->count; i++) {
        struct doom *d = &g->dooms[g->doom_count];
        CLEANUP_FREE uint8_t *data = NULL;
        size_t size = 0;
        memcpy(d->name, l->items[i].name, sizeof d->name);
        code = store_read(g->repo->store, d->name, REPO_NOTES_BYTES_MAX, &data, &size, err);
        if (code == -ENOENT) {
            code = 0;
            continue;
        }
        if (code == 0)
            code = repo_notes_decode(data, size, REPO_CONDEMNED, &d->notes, err);
        if (code == 0)
            g->doom_count++;
        if (code == 0 && d->notes.session_count == 1 && strcmp(d->notes.sessions[0], NOT_LISTED) == 0)
            code = sessions_write(g, d, err);
    }
    return code;
}

/* ---- wait ---- */

/* F, and only then its name out of "active/". */
static int session_give_up(struct gc *g, const char *session, struct error *err)
{
    char name[STORE_NAME_BYTES];
    static const char text[] = "given up\n";
    snprintf(name, sizeof name, "fences/%s", session);
    int code = store_put(g->repo->store, name, text, strlen(text), err);
    snprintf(name, sizeof name, "active/%s", session);
    if (code == 0)
        code = store_remove(g->repo->store, name, err);
    if (code == 0)
        repo_notes_add_session(&g->given_up, session);
    g->result.given_up_sessions = g->given_up.session_count;
    return code;
}

static bool doom_waits_for(const struct doom *d, const struct store_listing *active)
{
    char name[STORE_NAME_BYTES];
    for (uint32_t i = 0; i < d->notes.session_count; i++) {
        snprintf(name, sizeof name, "active/%s", d->notes.sessions[i]);
        if (store_listing_find(active, name) != NULL)
            return true;
    }
    return false;
}

/* Which lists can be swept; gives up silent sessions. */
static int wait_over(struct gc *g, struct error *err)
{
    struct store_listing active = {0};
    int code = active_load(g, &active, err);
    for (size_t i = 0; code == 0 && i < active.count; i++)
        if (active.items[i].modified_ms + (int64_t)g->options->silence_ms <= g->now_ms &&
            strlen(active.items[i].name) == strlen("active/") + 16)
            code = session_give_up(g, active.items[i].name + strlen("active/"), err);
    store_listing_finish(&active);
    if (code == 0)
        code = active_load(g, &active, err);
    g->result.waiting_sessions = active.count;
    for (size_t i = 0; code == 0 && i < g->doom_count; i++) {
        g->dooms[i].ripe = !doom_waits_for(&g->dooms[i], &active);
        g->result.waiting_packs += g->dooms[i].ripe ? 0 : g->dooms[i].notes.note_count;
    }
    store_listing_finish(&active);
    return code;
}

/* ---- sweep ---- */

static int indexes_replace(struct gc *g, const bool *gone, struct error *err)
{
    struct chunk_index *x = &g->view.index;
    CLEANUP_FREE bool *chosen = xcalloc(MAX(x->pack_count, 1u), sizeof *chosen);
    uint32_t in_it = 0;
    int code = 0;
    for (uint32_t i = 0; code == 0 && i <= x->pack_count; i++) {
        if (i < x->pack_count && x->packs[i].present && !gone[i]) {
            chosen[i] = true;
            in_it++;
        }
        if (in_it == CHUNK_INDEX_OBJECT_PACKS || (i == x->pack_count && in_it > 0)) {
            code = repo_index_write(g->repo, x, chosen, NULL, err);
            memset(chosen, 0, x->pack_count * sizeof *chosen);
            in_it = 0;
        }
    }
    for (size_t i = 0; code == 0 && i < g->view.indexes.count; i++)
        code = store_remove(g->repo->store, g->view.indexes.items[i].name, err);
    return code;
}

static int sweep(struct gc *g, struct error *err)
{
    struct chunk_index *x = &g->view.index;
    CLEANUP_FREE bool *gone = xcalloc(MAX(x->pack_count, 1u), sizeof *gone);
    bool any = false;
    char name[PACK_NAME_BYTES];
    int code = 0;
    for (size_t d = 0; d < g->doom_count; d++)
        for (uint32_t i = 0; g->dooms[d].ripe && i < g->dooms[d].notes.note_count; i++) {
            uint32_t pack = chunk_index_pack(x, &g->dooms[d].notes.notes[i].pack);
            if (pack != UINT32_MAX && x->packs[pack].present && !g->needed[pack])
                gone[pack] = any = true;
        }
    uint64_t few = REPO_GC_INDEXES_MAX + 2 * (uint64_t)x->pack_count / CHUNK_INDEX_OBJECT_PACKS; /* as many as that many packs need */
    if (any || g->view.indexes.count > few)
        code = indexes_replace(g, gone, err);
    for (uint32_t i = 0; code == 0 && i < x->pack_count; i++) {
        if (!gone[i])
            continue;
        report(g, "removing packs", i, x->pack_count);
        code = store_remove(g->repo->store, pack_name(&x->packs[i].hash, name), err);
        g->result.removed_packs += code == 0;
        g->result.removed_bytes += code == 0 ? x->packs[i].size_bytes : 0;
    }
    for (size_t d = 0; code == 0 && d < g->doom_count; d++)
        if (g->dooms[d].ripe)
            code = store_remove(g->repo->store, g->dooms[d].name, err);
    return code;
}

/* The view again, with what was written meanwhile, and the mark of all that is complete now. */
static int look_again(struct gc *g, struct error *err)
{
    repo_view_finish(&g->view);
    int code = repo_view_load(g->repo, &g->view, err);
    if (code == 0)
        code = mark_all(g, err);
    if (code < 0)
        return code;
    free(g->needed);
    g->needed = xcalloc(MAX(g->view.index.pack_count, 1u), sizeof *g->needed);
    needs_find(g);
    return 0;
}

static int collect(struct gc *g, struct error *err)
{
    const struct repo_gc_options *o = g->options;
    int code = dooms_load(g, err);
    if (code == 0)
        code = clock_read(g, err);
    if (code == 0)
        code = mark_all(g, err);
    if (code < 0)
        return code;
    g->result.packs = g->view.packs.count;
    g->needed = xcalloc(MAX(g->view.index.pack_count, 1u), sizeof *g->needed);
    needs_find(g);
    CLEANUP_FREE bool *doomed = xcalloc(MAX(g->view.index.pack_count, 1u), sizeof *doomed);
    code = o->keep_percent > 0 ? repack(g, doomed, err) : 0;
    for (uint32_t i = 0; code == 0 && i < g->view.index.pack_count; i++) {
        const struct indexed_pack *p = &g->view.index.packs[i];
        if (p->present && !p->condemned && !g->needed[i] && p->modified_ms + (int64_t)o->grace_ms <= g->now_ms)
            doomed[i] = true;
        if (o->dry_run && doomed[i]) {
            g->result.removed_packs++;
            g->result.removed_bytes += p->size_bytes;
        }
    }
    if (code < 0 || o->dry_run)
        return code;
    code = condemn(g, doomed, err);
    if (code == 0)
        code = wait_over(g, err);
    if (code == 0)
        code = look_again(g, err);
    if (code == 0)
        code = sweep(g, err);
    return code == 0 ? store_collect(g->repo->store, MAX(o->grace_ms, (uint64_t)REPO_SILENCE_MS), err) : code;
}

int repo_gc(struct repo *repo, const struct repo_gc_options *options, struct repo_gc_result *ret_result,
            struct error *err)
{
    struct gc g = {.repo = repo, .options = options};
    int code = repo_view_load(repo, &g.view, err);
    if (code < 0)
        return code;
    frame_fetcher_init(&g.fetcher, repo, &g.view.index);
    chunk_index_init(&g.repacked);
    code = collect(&g, err);
    if (code == 0)
        *ret_result = g.result;
    for (size_t i = 0; i < g.doom_count; i++)
        repo_notes_finish(&g.dooms[i].notes);
    free(g.dooms);
    free(g.needed);
    chunk_index_finish(&g.repacked);
    repo_notes_finish(&g.given_up);
    repo_mark_finish(&g.mark);
    frame_fetcher_finish(&g.fetcher);
    repo_view_finish(&g.view);
    return code;
}
