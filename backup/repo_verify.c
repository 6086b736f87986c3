/* Verification of a store: see repo_verify.h. Threads take one pack after the other; the backups are looked at
 * afterwards, with all that is damaged left out. */
#include "backup/repo_verify.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "backup/repo_catalog.h"
#include "backup/repo_mark.h"

enum { REPORT_MS = 200 };

struct verify {
    struct repo *repo;
    const struct repo_verify_options *options;
    struct repo_view view;
    struct repo_verify_result result;
    pthread_mutex_t lock;
    pthread_cond_t ended; /* a thread has */
    unsigned running;     /* threads */
    uint32_t next;        /* pack */
    bool *chosen;         /* packs that are looked at; NULL: all */
    uint64_t total_bytes; /* of them */
    struct repo_notes notes;
    struct error error;
    struct {
        char *text;
    } * said;
    size_t said_count;
};

/* Kept until a thread that may say it comes by. With the lock held. */
static void note_text(struct verify *v, char *text)
{
    v->said = xrealloc(v->said, (v->said_count + 1) * sizeof *v->said);
    v->said[v->said_count++].text = text;
}

static void say_all(struct verify *v)
{
    pthread_mutex_lock(&v->lock);
    for (size_t i = 0; i < v->said_count; i++) {
        if (v->options->say != NULL)
            v->options->say(v->options->say_arg, v->said[i].text);
        free(v->said[i].text);
    }
    v->said_count = 0;
    pthread_mutex_unlock(&v->lock);
}

/* ---- packs ---- */

static bool pack_is_wanted(const struct verify *v, uint32_t pack)
{
    return v->view.index.packs[pack].present && (v->chosen == NULL || v->chosen[pack]);
}

static void pack_choose(struct verify *v, const struct chunk_hash *id)
{
    struct chunk_place at;
    if (!chunk_hash_is_zero(id) && chunk_index_find(&v->view.index, id, &at))
        v->chosen[at.pack] = true;
}

/* Those that the backup would be restored from. */
static int packs_choose(struct verify *v, const struct manifest *m, struct error *err)
{
    struct repo_mark mark = {0};
    struct frame_fetcher f;
    uint64_t bad_lists = 0; /* they are found again when the backup is looked at */
    frame_fetcher_init(&f, v->repo, &v->view.index);
    int code = repo_mark_backup(v->repo, &f, m, &mark, NULL, NULL, &bad_lists, err);
    for (uint64_t i = 0; code == 0 && i < mark.live.slot_count; i++)
        pack_choose(v, &mark.live.slots[i]);
    for (uint32_t i = 0; code == 0 && i < m->leaf_count; i++)
        pack_choose(v, &m->leaves[i]);
    frame_fetcher_finish(&f);
    repo_mark_finish(&mark);
    return code;
}

static int frame_verify(struct verify *v, struct frame_fetcher *f, const struct indexed_pack *p, uint32_t frame,
                        const uint8_t *pack, uint64_t size, struct error *err)
{
    const struct pack_frame *fr = &p->index.frames[frame];
    struct chunk_hash hash;
    if (fr->offset + fr->stored_bytes > size)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "it is cut off");
    chunk_hash_plain(pack + fr->offset, fr->stored_bytes, &hash);
    if (!chunk_hash_equal(&hash, &fr->hash))
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "it does not match its checksum");
    if (v->options->quick || (!v->repo->keys.present))
        return 0;
    int code = pack_frame_decode(f->coder, &v->repo->keys, &p->index, fr, pack + fr->offset, f->raw, err);
    for (uint32_t i = 0; code == 0 && i < fr->chunk_count; i++) {
        const struct pack_chunk *chunk = &p->index.chunks[fr->first_chunk + i];
        if (!frame_chunk_ok(v->repo, chunk, f->raw + chunk->offset))
            code = error_set(err, -EBADMSG, ERROR_CHECKSUM, "a chunk does not match its name");
    }
    return code;
}

/* What the pack has behind its frames: its own index, so that it can be understood without any other object. */
static int ends_verify(const struct indexed_pack *p, const uint8_t *pack, uint64_t size, struct error *err)
{
    uint64_t offset;
    uint32_t bytes;
    if (size < PACK_HEAD_BYTES + PACK_END_BYTES)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "it is cut off");
    int code = pack_head_decode(pack, err);
    if (code == 0)
        code = pack_end_decode(pack + size - PACK_END_BYTES, size, &offset, &bytes, err);
    if (code == 0 && (bytes != p->raw_bytes || memcmp(pack + offset, p->raw, bytes) != 0))
        code = error_set(err, -EBADMSG, ERROR_CHECKSUM, "its index does not match its name");
    return code;
}

static bool pack_is_sound(struct verify *v, struct frame_fetcher *f, const struct indexed_pack *p, const uint8_t *data,
                          size_t size)
{
    bool sound = ends_verify(p, data, size, NULL) == 0;
    for (uint32_t i = 0; sound && i < p->index.frame_count; i++)
        sound = frame_verify(v, f, p, i, data, size, NULL) == 0;
    return sound;
}

/* What is damaged in it, told and noted. */
static void pack_judge(struct verify *v, struct frame_fetcher *f, const struct indexed_pack *p, const char *name,
                       const uint8_t *data, size_t size)
{
    struct error bad = {0};
    uint64_t bad_frames = 0;
    bool whole = ends_verify(p, data, size, &bad) == 0;
    pthread_mutex_lock(&v->lock);
    if (!whole)
        note_text(v, xasprintf("%s: %s", name, bad.text));
    pthread_mutex_unlock(&v->lock);
    for (uint32_t i = 0; i < p->index.frame_count; i++) {
        struct error e = {0};
        if (frame_verify(v, f, p, i, data, size, &e) == 0)
            continue;
        pthread_mutex_lock(&v->lock);
        note_text(v, xasprintf("%s, frame %u of %u: %s", name, i, p->index.frame_count, e.text));
        repo_notes_add(&v->notes, &p->hash, i);
        pthread_mutex_unlock(&v->lock);
        bad_frames++;
    }
    pthread_mutex_lock(&v->lock);
    v->result.bad_frames += bad_frames;
    v->result.bad_packs += bad_frames > 0 || !whole;
    pthread_mutex_unlock(&v->lock);
}

static int pack_verify(struct verify *v, struct frame_fetcher *f, uint32_t index, struct error *err)
{
    const struct indexed_pack *p = &v->view.index.packs[index];
    char name[PACK_NAME_BYTES];
    bool sound = false;
    pack_name(&p->hash, name);
    for (unsigned attempt = 0; attempt < 2 && !sound; attempt++) { /* perhaps it was hurt on the way, and is sound there */
        CLEANUP_FREE uint8_t *data = NULL;
        size_t size = 0;
        int code = store_read(v->repo->store, name, PACK_BYTES_MAX + PACK_INDEX_BYTES_MAX, &data, &size, err);
        if (code == -ENOENT)
            return 0; /* collected meanwhile; if not, its chunks will be missed */
        if (code < 0 && code != -EFBIG)
            return code;
        sound = pack_is_sound(v, f, p, data, size);
        if (!sound && attempt == 0)
            continue;
        if (!sound)
            pack_judge(v, f, p, name, data, size);
        pthread_mutex_lock(&v->lock);
        v->result.packs++;
        v->result.frames += p->index.frame_count;
        v->result.bytes += size;
        pthread_mutex_unlock(&v->lock);
    }
    return 0;
}

static void *run(void *arg)
{
    struct verify *v = arg;
    struct frame_fetcher f;
    frame_fetcher_init(&f, v->repo, &v->view.index);
    for (;;) {
        struct error err = {0};
        pthread_mutex_lock(&v->lock);
        while (v->next < v->view.index.pack_count && !pack_is_wanted(v, v->next))
            v->next++;
        uint32_t pack = v->error.code < 0 ? v->view.index.pack_count : v->next++;
        pthread_mutex_unlock(&v->lock);
        if (pack >= v->view.index.pack_count)
            break;
        int code = pack_verify(v, &f, pack, &err);
        if (v->options->cancel != NULL && atomic_load(v->options->cancel))
            code = error_set(&err, -ECANCELED, ERROR_CANCELLED, "the verification was cancelled");
        pthread_mutex_lock(&v->lock);
        if (code < 0 && v->error.code == 0) {
            v->error = err;
            v->error.code = code;
        }
        pthread_mutex_unlock(&v->lock);
    }
    frame_fetcher_finish(&f);
    pthread_mutex_lock(&v->lock);
    v->running--;
    pthread_cond_signal(&v->ended);
    pthread_mutex_unlock(&v->lock);
    return NULL;
}

static void report(struct verify *v, const char *step)
{
    pthread_mutex_lock(&v->lock);
    struct backup_progress p = {.step = step,
                                .done_bytes = v->result.bytes,
                                .total_bytes = v->total_bytes,
                                .read_bytes = v->result.bytes};
    pthread_mutex_unlock(&v->lock);
    if (v->options->progress != NULL)
        v->options->progress(v->options->progress_arg, &p);
}

/* Tells how far the threads are until they have ended. */
static void packs_follow(struct verify *v)
{
    pthread_mutex_lock(&v->lock);
    while (v->running > 0) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += REPORT_MS * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        pthread_cond_timedwait(&v->ended, &v->lock, &until);
        pthread_mutex_unlock(&v->lock);
        report(v, "verifying packs");
        pthread_mutex_lock(&v->lock);
    }
    pthread_mutex_unlock(&v->lock);
}

static int packs_verify(struct verify *v, struct error *err)
{
    pthread_t threads[BACKUP_THREADS_MAX];
    unsigned count = v->options->threads, started = 0;
    int code = 0;
    if (count == 0)
        count = (unsigned)MAX(sysconf(_SC_NPROCESSORS_ONLN), (long)v->repo->store->transfers);
    count = MIN(count, (unsigned)BACKUP_THREADS_MAX);
    for (uint32_t i = 0; i < v->view.index.pack_count; i++)
        v->total_bytes += pack_is_wanted(v, i) ? v->view.index.packs[i].size_bytes : 0;
    report(v, "verifying packs");
    v->running = count;
    for (; code == 0 && started < count; started += code == 0)
        code = -pthread_create(&threads[started], NULL, run, v);
    pthread_mutex_lock(&v->lock);
    v->running -= count - started;
    pthread_mutex_unlock(&v->lock);
    packs_follow(v);
    for (unsigned i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    say_all(v);
    if (code < 0)
        return error_errno(err, code, "cannot start a thread");
    if (v->error.code < 0 && err != NULL)
        *err = v->error;
    return v->error.code;
}

/* ---- backups ---- */

struct backup_walk {
    struct verify *v;
    const struct manifest *m;
    uint64_t lost[MANIFEST_DISKS_MAX], first[MANIFEST_DISKS_MAX];
};

static int chunk_seek(void *arg, size_t disk, uint64_t offset, const struct chunk_hash *id)
{
    struct backup_walk *w = arg;
    const struct chunk_index *x = &w->v->view.index;
    struct chunk_place at;
    uint64_t size = manifest_disk_at(w->m, disk)->size_bytes - offset;
    if (chunk_index_find(x, id, &at) && chunk_index_worth(x, at.pack, chunk_index_chunk(x, at)->frame) >= 2 &&
        chunk_index_chunk(x, at)->size_bytes == MIN(size, (uint64_t)w->v->repo->header.chunk_bytes))
        return 0;
    if (w->lost[disk]++ == 0)
        w->first[disk] = offset;
    return 0;
}

static void judge(const struct verify *v, const char *backup, const char *damage)
{
    if (v->options->judged != NULL)
        v->options->judged(v->options->judged_arg, backup, damage);
}

static int backup_verify(struct verify *v, struct frame_fetcher *f, const struct repo_catalog_item *item,
                         struct repo_mark *mark, struct error *err)
{
    struct backup_walk w = {.v = v, .m = &item->manifest};
    uint64_t bad_lists = 0;
    CLEANUP_FREE char *damage = NULL; /* the first one */
    v->result.backups++;
    if (item->damage.code < 0) {
        v->result.bad_objects++;
        v->result.hurt_backups++;
        note_text(v, xasprintf("%s", item->damage.text));
        judge(v, item->backup.id, item->damage.text);
        return 0;
    }
    int code = repo_mark_backup(v->repo, f, &item->manifest, mark, chunk_seek, &w, &bad_lists, err);
    for (size_t d = 0; code == 0 && d < item->manifest.head.disks.count; d++) {
        v->result.lost_chunks += w.lost[d];
        if (w.lost[d] > 0 && damage == NULL)
            damage = xasprintf("disk %s: %" PRIu64 " chunks are lost, the first at %" PRIu64,
                               manifest_disk_at(&item->manifest, d)->name, w.lost[d], w.first[d]);
        if (w.lost[d] > 0)
            note_text(v, xasprintf("backup %s of %s, disk %s: %" PRIu64 " chunks are lost, the first at %" PRIu64,
                                   item->backup.id, item->manifest.head.vm_name,
                                   manifest_disk_at(&item->manifest, d)->name, w.lost[d], w.first[d]));
    }
    if (code == 0 && bad_lists > 0)
        note_text(v, xasprintf("backup %s of %s: %" PRIu64 " lists of chunks cannot be read", item->backup.id,
                               item->manifest.head.vm_name, bad_lists));
    if (code == 0 && bad_lists > 0 && damage == NULL)
        damage = xasprintf("%" PRIu64 " lists of chunks cannot be read", bad_lists);
    v->result.hurt_backups += damage != NULL;
    if (code == 0)
        judge(v, item->backup.id, damage);
    return code;
}

/* @only: NULL, or the one that is looked at. */
static int backups_verify(struct verify *v, const struct repo_catalog *catalog, const struct repo_catalog_item *only,
                          struct error *err)
{
    struct repo_mark mark = {0};
    struct frame_fetcher f;
    int code = 0;
    frame_fetcher_init(&f, v->repo, &v->view.index);
    for (size_t i = 0; code == 0 && i < catalog->count; i++) {
        if (only != NULL && only != &catalog->items[i])
            continue;
        report(v, "verifying backups");
        code = backup_verify(v, &f, &catalog->items[i], &mark, err);
        say_all(v);
    }
    frame_fetcher_finish(&f);
    repo_mark_finish(&mark);
    return code;
}

/* Only what this verification has found counts from here on. */
static void marks_renew(struct verify *v)
{
    for (uint32_t i = 0; i < v->view.index.pack_count; i++)
        if (v->chosen == NULL || v->chosen[i])
            free(TAKE_PTR(v->view.index.packs[i].bad));
    for (uint32_t i = 0; i < v->notes.note_count; i++)
        chunk_index_mark_bad(&v->view.index, chunk_index_pack(&v->view.index, &v->notes.notes[i].pack),
                             v->notes.notes[i].frame);
    chunk_index_build(&v->view.index);
}

static int notes_replace(struct verify *v, struct error *err)
{
    int code = 0;
    if (v->options->no_notes)
        return 0;
    if (v->notes.note_count > 0)
        code = repo_notes_write(v->repo, REPO_DAMAGED, &v->notes, NULL, err);
    for (size_t i = 0; code == 0 && v->chosen == NULL && i < v->view.damaged.count; i++) /* what was not looked at stays noted */
        code = store_remove(v->repo->store, v->view.damaged.items[i].name, err);
    return code;
}

static void others_note(struct verify *v)
{
    for (uint32_t i = 0; i < v->view.bad_pack_count; i++)
        note_text(v, xasprintf("%s: it cannot be told what is in it", v->view.bad_packs[i]));
    for (uint32_t i = 0; i < v->view.index.pack_count; i++) {
        char name[PACK_NAME_BYTES];
        if (!v->view.index.packs[i].present)
            note_text(v, xasprintf("%s: an index tells of it, but it is not there",
                                   pack_name(&v->view.index.packs[i].hash, name)));
    }
    if (v->view.bad_index_count > 0)
        note_text(v, xasprintf("%u index objects are damaged; the packs' own are used", v->view.bad_index_count));
    v->result.bad_packs += v->view.bad_pack_count;
    v->result.bad_objects += v->view.bad_index_count;
    say_all(v);
}

/* The one that is asked for is not there. */
static void missing_note(struct verify *v)
{
    v->result.backups = v->result.hurt_backups = 1;
    note_text(v, xasprintf("backup %s is not in the store", v->options->backup));
    say_all(v);
    judge(v, v->options->backup, "it is not in the store any more");
}

static int view_verify(struct verify *v, const struct repo_catalog *catalog, const struct repo_catalog_item *only,
                       struct error *err)
{
    int code = 0;
    if (v->options->backup == NULL)
        others_note(v);
    else
        v->chosen = xcalloc(v->view.index.pack_count + 1, sizeof *v->chosen);
    if (only != NULL && only->damage.code == 0)
        code = packs_choose(v, &only->manifest, err);
    if (code == 0)
        code = packs_verify(v, err);
    if (code == 0) {
        marks_renew(v);
        code = backups_verify(v, catalog, only, err);
    }
    return code == 0 ? notes_replace(v, err) : code;
}

int repo_verify(struct repo *repo, const struct repo_verify_options *options, struct repo_verify_result *ret_result,
                struct error *err)
{
    struct verify v = {.repo = repo, .options = options};
    struct repo_catalog catalog = {0};
    /* the backups first: all that those need is there by then, whatever is being written */
    int code = repo_catalog_load(repo, &catalog, err);
    if (code == 0)
        code = repo_view_load(repo, &v.view, err);
    if (code < 0) {
        repo_catalog_finish(&catalog);
        return code;
    }
    const struct repo_catalog_item *only = options->backup != NULL ? repo_catalog_find(&catalog, options->backup) : NULL;
    pthread_mutex_init(&v.lock, NULL);
    pthread_cond_init(&v.ended, NULL);
    if (options->backup != NULL && only == NULL)
        missing_note(&v);
    else
        code = view_verify(&v, &catalog, only, err);
    if (code == 0)
        *ret_result = v.result;
    repo_notes_finish(&v.notes);
    repo_view_finish(&v.view);
    repo_catalog_finish(&catalog);
    free(v.said);
    free(v.chosen);
    pthread_cond_destroy(&v.ended);
    pthread_mutex_destroy(&v.lock);
    return code;
}
