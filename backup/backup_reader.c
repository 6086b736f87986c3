/* Reading a disk of a backup anywhere: see backup_reader.h. */
#include "backup/backup_reader.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>

#include "common/list.h"

struct kept_frame {
    struct list link; /* least recently used first */
    uint32_t pack, frame;
    unsigned users;
    bool loading;
    int result; /* of loading */
    size_t size;
    uint8_t *raw;
};
struct kept_leaf {
    size_t disk;
    uint64_t index, used;
    struct chunk_leaf leaf;
};

struct backup_reader {
    struct repo *repo;
    struct manifest manifest;
    struct repo_view view;
    struct repo_session *session; /* so that no collection removes what the view has; NULL: the store is read-only */
    size_t cache_bytes;

    pthread_mutex_t lock; /* of all below */
    pthread_cond_t loaded;
    struct list frames; /* struct kept_frame */
    size_t kept_bytes;
    struct kept_leaf *leaves[BACKUP_READER_LEAVES_MAX];
    uint64_t uses;
    struct frame_fetcher *idle[64];
    unsigned idle_count;
};

/* A store that takes no writes is not collected either, and one that is full can still be read. One that does not answer now is no such:
 * what reads it without a session may find packs gone hours later. */
static int session_begin(struct backup_reader *r, struct error *err)
{
    int code = repo_session_begin(r->repo, &r->session, err);
    bool unwritable = code == -EROFS || code == -EACCES || code == -EPERM || code == -ENOSPC || code == -EDQUOT;
    if (unwritable && err != NULL)
        *err = (struct error){.code = 0};
    return unwritable ? 0 : code;
}

int backup_reader_open(struct repo *repo, const char *id, size_t cache_bytes, struct backup_reader **ret_reader,
                       struct error *err)
{
    struct backup_reader *r = NEW(struct backup_reader);
    r->repo = repo;
    r->cache_bytes = cache_bytes != 0 ? cache_bytes : BACKUP_READER_CACHE_BYTES;
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->loaded, NULL);
    list_init(&r->frames);
    int code = repo_need_key(repo, err);
    if (code == 0)
        code = session_begin(r, err);
    if (code == 0)
        code = repo_manifest_load(repo, id, &r->manifest, err);
    if (code == 0)
        code = repo_view_load(repo, &r->view, err);
    if (code < 0) {
        backup_reader_close(r);
        return code;
    }
    *ret_reader = r;
    return 0;
}

void backup_reader_close(struct backup_reader *r)
{
    if (r == NULL)
        return;
    while (!list_empty(&r->frames)) {
        struct kept_frame *f = LIST_ENTRY(r->frames.next, struct kept_frame, link);
        list_remove(&f->link);
        free(f->raw);
        free(f);
    }
    for (unsigned i = 0; i < BACKUP_READER_LEAVES_MAX; i++)
        free(r->leaves[i]);
    for (unsigned i = 0; i < r->idle_count; i++) {
        frame_fetcher_finish(r->idle[i]);
        free(r->idle[i]);
    }
    repo_session_end(r->session, false);
    manifest_finish(&r->manifest);
    repo_view_finish(&r->view);
    pthread_cond_destroy(&r->loaded);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

const struct manifest *backup_reader_manifest(const struct backup_reader *r)
{
    return &r->manifest;
}

struct repo *backup_reader_repo(const struct backup_reader *r)
{
    return r->repo;
}

const struct repo_view *backup_reader_view(const struct backup_reader *r)
{
    return &r->view;
}

int backup_reader_disk(const struct backup_reader *r, const char *name, size_t *ret_disk, struct error *err)
{
    int at = manifest_disk_find(&r->manifest, name);
    if (at < 0)
        return error_set(err, -ENOENT, ERROR_NOT_FOUND, "backup %s has no disk %s", r->manifest.head.id, name);
    *ret_disk = (size_t)at;
    return 0;
}

static struct frame_fetcher *fetcher_take(struct backup_reader *r)
{
    pthread_mutex_lock(&r->lock);
    struct frame_fetcher *f = r->idle_count > 0 ? r->idle[--r->idle_count] : NULL;
    pthread_mutex_unlock(&r->lock);
    if (f == NULL) {
        f = NEW(struct frame_fetcher);
        frame_fetcher_init(f, r->repo, &r->view.index);
    }
    return f;
}

static void fetcher_give(struct backup_reader *r, struct frame_fetcher *f)
{
    pthread_mutex_lock(&r->lock);
    bool keep = r->idle_count < ARRAY_SIZE(r->idle);
    if (keep)
        r->idle[r->idle_count++] = f;
    pthread_mutex_unlock(&r->lock);
    if (!keep) {
        frame_fetcher_finish(f);
        free(f);
    }
}

/* ---- leaves ---- */

static bool leaf_kept(struct backup_reader *r, size_t disk, uint64_t index, struct chunk_leaf *ret_leaf)
{
    bool found = false;
    pthread_mutex_lock(&r->lock);
    for (unsigned i = 0; !found && i < BACKUP_READER_LEAVES_MAX; i++) {
        struct kept_leaf *k = r->leaves[i];
        if (k == NULL || k->disk != disk || k->index != index)
            continue;
        k->used = ++r->uses;
        *ret_leaf = k->leaf;
        found = true;
    }
    pthread_mutex_unlock(&r->lock);
    return found;
}

static void leaf_keep(struct backup_reader *r, size_t disk, uint64_t index, const struct chunk_leaf *leaf)
{
    unsigned oldest = 0;
    pthread_mutex_lock(&r->lock);
    for (unsigned i = 0; i < BACKUP_READER_LEAVES_MAX; i++) {
        if (r->leaves[i] == NULL) {
            r->leaves[i] = NEW(struct kept_leaf);
            oldest = i;
            break;
        }
        if (r->leaves[i]->used < r->leaves[oldest]->used)
            oldest = i;
    }
    *r->leaves[oldest] = (struct kept_leaf){.disk = disk, .index = index, .used = ++r->uses, .leaf = *leaf};
    pthread_mutex_unlock(&r->lock);
}

int backup_reader_leaf(struct backup_reader *r, size_t disk, uint64_t index, struct chunk_leaf *ret_leaf,
                       struct error *err)
{
    uint32_t chunk_bytes = r->repo->header.chunk_bytes;
    const struct manifest_disk *d = manifest_disk_at(&r->manifest, disk);
    if (leaf_kept(r, disk, index, ret_leaf))
        return 0;
    struct frame_fetcher *f = fetcher_take(r);
    const struct chunk_hash *id = &r->manifest.leaves[manifest_first_leaf(&r->manifest, disk, chunk_bytes) + index];
    int code =
        frame_fetch_leaf(f, id, chunk_tree_slots(d->size_bytes, chunk_bytes, index), ret_leaf, NULL, NULL, err);
    fetcher_give(r, f);
    if (code < 0)
        error_prefix(err, "disk %s, list %" PRIu64 ": ", d->name, index);
    else
        leaf_keep(r, disk, index, ret_leaf);
    return code;
}

/* ---- frames ---- */

static void frames_trim(struct backup_reader *r)
{
    for (struct list *l = r->frames.next; r->kept_bytes > r->cache_bytes && l != &r->frames;) {
        struct kept_frame *f = CONTAINER_OF(l, struct kept_frame, link);
        l = l->next;
        if (f->users > 0)
            continue;
        list_remove(&f->link);
        r->kept_bytes -= f->size;
        free(f->raw);
        free(f);
    }
}

/* The frame with one user more; loaded, or its result says why not. */
static struct kept_frame *frame_take(struct backup_reader *r, uint32_t pack, uint32_t frame, struct error *err)
{
    pthread_mutex_lock(&r->lock);
    for (struct list *l = r->frames.next; l != &r->frames; l = l->next) {
        struct kept_frame *f = CONTAINER_OF(l, struct kept_frame, link);
        if (f->pack != pack || f->frame != frame || (!f->loading && f->result < 0))
            continue;
        f->users++;
        list_remove(&f->link);
        list_append(&r->frames, &f->link);
        while (f->loading)
            pthread_cond_wait(&r->loaded, &r->lock);
        if (f->result < 0)
            error_set(err, f->result, ERROR_CHECKSUM, "a frame of the backup could not be read");
        pthread_mutex_unlock(&r->lock);
        return f;
    }
    struct kept_frame *f = NEW(struct kept_frame);
    *f = (struct kept_frame){.pack = pack,
                             .frame = frame,
                             .users = 1,
                             .loading = true,
                             .size = r->view.index.packs[pack].index.frames[frame].raw_bytes};
    list_append(&r->frames, &f->link);
    r->kept_bytes += f->size;
    frames_trim(r);
    pthread_mutex_unlock(&r->lock);
    struct frame_fetcher *fetcher = fetcher_take(r);
    f->raw = xcalloc(1, f->size);
    int result = frame_fetch(fetcher, pack, frame, f->raw, err);
    fetcher_give(r, fetcher);
    pthread_mutex_lock(&r->lock);
    f->loading = false;
    f->result = result;
    pthread_cond_broadcast(&r->loaded);
    pthread_mutex_unlock(&r->lock);
    return f;
}

static void frame_give(struct backup_reader *r, struct kept_frame *f)
{
    pthread_mutex_lock(&r->lock);
    if (--f->users == 0 && f->result < 0) { /* to be tried again */
        list_remove(&f->link);
        r->kept_bytes -= f->size;
        free(f->raw);
        free(f);
    } else {
        frames_trim(r);
    }
    pthread_mutex_unlock(&r->lock);
}

/* Part of one chunk. */
static int chunk_read(struct backup_reader *r, const struct chunk_hash *id, uint32_t chunk_size, uint32_t from,
                      void *buffer, uint32_t size, struct error *err)
{
    struct chunk_place at;
    char text[CHUNK_HASH_TEXT_BYTES];
    if (chunk_hash_is_zero(id)) {
        memset(buffer, 0, size);
        return 0;
    }
    if (!chunk_index_find(&r->view.index, id, &at))
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "no pack of %s has chunk %s", r->repo->store->location,
                         chunk_hash_text(id, text));
    const struct pack_chunk *chunk = chunk_index_chunk(&r->view.index, at);
    if (chunk->size_bytes != chunk_size)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "chunk %s has another size than it should",
                         chunk_hash_text(id, text));
    struct kept_frame *f = frame_take(r, at.pack, chunk->frame, err);
    int code = f->result;
    if (code == 0)
        memcpy(buffer, f->raw + chunk->offset + from, size);
    frame_give(r, f);
    return code;
}

static int range_check(const struct backup_reader *r, size_t disk, uint64_t offset, uint64_t size, struct error *err)
{
    uint64_t has = manifest_disk_at(&r->manifest, disk)->size_bytes;
    if (offset > has || size > has - offset)
        return error_set(err, -ERANGE, ERROR_INVALID, "disk %s has %" PRIu64 " bytes",
                         manifest_disk_at(&r->manifest, disk)->name, has);
    return 0;
}

int backup_reader_read(struct backup_reader *r, size_t disk, uint64_t offset, void *buffer, size_t size,
                       struct error *err)
{
    uint32_t chunk_bytes = r->repo->header.chunk_bytes;
    const struct manifest_disk *d = manifest_disk_at(&r->manifest, disk);
    uint64_t leaf_index = UINT64_MAX;
    int code = range_check(r, disk, offset, size, err);
    CLEANUP_FREE struct chunk_leaf *leaf = NEW(struct chunk_leaf);
    while (code == 0 && size > 0) {
        uint64_t chunk = offset / chunk_bytes, start = chunk * chunk_bytes;
        uint32_t chunk_size = (uint32_t)MIN((uint64_t)chunk_bytes, d->size_bytes - start);
        uint32_t from = (uint32_t)(offset - start),
                 part = (uint32_t)MIN((uint64_t)size, (uint64_t)(chunk_size - from));
        if (chunk / CHUNK_LEAF_SLOTS != leaf_index) {
            leaf_index = chunk / CHUNK_LEAF_SLOTS;
            code = backup_reader_leaf(r, disk, leaf_index, leaf, err);
            if (code < 0)
                return code;
        }
        code = chunk_read(r, &leaf->ids[chunk % CHUNK_LEAF_SLOTS], chunk_size, from, buffer, part, err);
        if (code < 0)
            error_prefix(err, "disk %s at %" PRIu64 ": ", d->name, start);
        buffer = (uint8_t *)buffer + part;
        offset += part;
        size -= part;
    }
    return code;
}

int backup_reader_extent(struct backup_reader *r, size_t disk, uint64_t offset, bool *ret_zero, uint64_t *ret_end,
                         struct error *err)
{
    uint32_t chunk_bytes = r->repo->header.chunk_bytes;
    const struct manifest_disk *d = manifest_disk_at(&r->manifest, disk);
    uint64_t chunk = offset / chunk_bytes;
    int code = range_check(r, disk, offset, 1, err);
    CLEANUP_FREE struct chunk_leaf *leaf = NEW(struct chunk_leaf);
    if (code == 0)
        code = backup_reader_leaf(r, disk, chunk / CHUNK_LEAF_SLOTS, leaf, err);
    if (code < 0)
        return code;
    uint32_t slot = (uint32_t)(chunk % CHUNK_LEAF_SLOTS), end = slot + 1;
    bool zero = chunk_hash_is_zero(&leaf->ids[slot]);
    while (end < leaf->slots && chunk_hash_is_zero(&leaf->ids[end]) == zero)
        end++;
    *ret_zero = zero;
    *ret_end = MIN((chunk - slot + end) * chunk_bytes, d->size_bytes);
    return 0;
}
