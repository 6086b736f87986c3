/* Making a backup: see backup_writer.h.
 *
 * A leaf of a disk's list of chunks is filled while its batches are under way, which end in any order; whoever ends
 * the last of them stores the leaf. Where anything fails, the first error is kept, all queues are closed and all
 * threads come to their end. */
#include "backup/backup_writer.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "backup/frame_fetch.h"
#include "backup/work_queue.h"

enum { BATCH_CHUNKS_MAX = BACKUP_FRAME_BYTES / REPO_CHUNK_BYTES_MIN, PACKS_WAITING_MAX = 2 };

struct open_leaf {
    struct chunk_leaf leaf;
    struct chunk_leaf *parent; /* what the same leaf of the parent was; NULL: none */
    struct chunk_leaf *base;   /* the whole leaf that the parent's is a difference from, or the parent's */
    struct chunk_hash parent_id, base_id;
    uint32_t same_slots; /* that the parent has whole */
    uint64_t number;     /* of all leaves of the manifest */
    atomic_uint users;   /* batches under way, and the reader */
};

struct batch {
    struct open_leaf *leaf;
    unsigned count;
    size_t size;
    struct {
        uint32_t slot, size_bytes;
    } items[BATCH_CHUNKS_MAX];
    uint8_t *raw; /* BACKUP_FRAME_BYTES: the chunks one after another */
};

struct backup_writer {
    struct repo *repo;
    struct backup_writer_options options;
    struct repo_session *session;
    struct repo_view view;
    struct manifest manifest, parent;
    bool has_parent, finished, unknown;
    struct timespec begun;

    pthread_t workers[BACKUP_THREADS_MAX], transfers[BACKUP_THREADS_MAX];
    unsigned worker_count, transfer_count;
    struct batch *batches;
    unsigned batch_count;
    struct work_queue free_batches, full_batches, full_packs;
    struct frame_fetcher fetcher; /* the reader's */

    pthread_mutex_t lock; /* of all below */
    struct error error;
    struct chunk_set claimed; /* stored by this backup, or about to be */
    struct chunk_index added; /* packs that were stored */
    struct chunk_hash *leaves;
    struct backup_progress progress;

    pthread_mutex_t pack_lock;
    struct pack_builder *pack;  /* being filled; NULL: none */
    struct pack_builder *spare; /* of one that was sent; NULL: none */
    atomic_bool failed;
};

static int fail(struct backup_writer *w, int code, const struct error *err)
{
    pthread_mutex_lock(&w->lock);
    if (w->error.code == 0) {
        w->error = *err;
        w->error.code = code;
    }
    pthread_mutex_unlock(&w->lock);
    atomic_store(&w->failed, true);
    work_queue_close(&w->free_batches);
    work_queue_close(&w->full_batches);
    work_queue_close(&w->full_packs);
    return code;
}

static int first_error(struct backup_writer *w, struct error *err)
{
    pthread_mutex_lock(&w->lock);
    struct error e = w->error;
    pthread_mutex_unlock(&w->lock);
    if (e.code < 0 && err != NULL)
        *err = e;
    return e.code;
}

/* ---- workers ---- */

static bool all_zeroes(const uint8_t *data, size_t size)
{
    return data[0] == 0 && memcmp(data, data + 1, size - 1) == 0;
}

/* Whether it is for the caller to store @id. */
static bool claim(struct backup_writer *w, const struct chunk_hash *id, uint32_t size)
{
    if (chunk_index_has(&w->view.index, id))
        return false;
    pthread_mutex_lock(&w->lock);
    bool ours = chunk_set_add(&w->claimed, id);
    if (ours)
        w->progress.new_bytes += size;
    pthread_mutex_unlock(&w->lock);
    return ours;
}

static bool stored_already(struct backup_writer *w, const struct chunk_hash *id)
{
    if (chunk_index_has(&w->view.index, id))
        return true;
    pthread_mutex_lock(&w->lock);
    bool has = chunk_set_has(&w->claimed, id);
    pthread_mutex_unlock(&w->lock);
    return has;
}

static void pack_destroy(struct pack_builder *pack)
{
    if (pack == NULL)
        return;
    pack_builder_finish(pack);
    free(pack);
}

/* With pack_lock held. */
static struct pack_builder *pack_begin(struct backup_writer *w)
{
    struct pack_builder *pack = TAKE_PTR(w->spare);
    if (pack != NULL) {
        pack_builder_reset(pack);
        return pack;
    }
    pack = NEW(struct pack_builder);
    pack_builder_init(pack);
    return pack;
}

/* What was in it is not needed any more. */
static void pack_end(struct backup_writer *w, struct pack_builder *pack)
{
    pthread_mutex_lock(&w->pack_lock);
    if (w->spare == NULL)
        w->spare = TAKE_PTR(pack);
    pthread_mutex_unlock(&w->pack_lock);
    pack_destroy(pack);
}

static void frame_store(struct backup_writer *w, const struct pack_frame *frame, const uint8_t *stored,
                        const struct pack_chunk *chunks)
{
    struct pack_builder *full = NULL;
    pthread_mutex_lock(&w->pack_lock);
    if (w->pack == NULL)
        w->pack = pack_begin(w);
    pack_builder_add(w->pack, frame, stored, chunks);
    if (pack_builder_full(w->pack))
        full = TAKE_PTR(w->pack);
    pthread_mutex_unlock(&w->pack_lock);
    if (full != NULL && !work_queue_put(&w->full_packs, full))
        pack_destroy(full);
}

static void leaf_store(struct backup_writer *w, struct pack_coder *coder, struct open_leaf *l)
{
    struct bytes_writer out = {0}, difference = {0};
    struct chunk_hash id = {{0}};
    if (l->parent != NULL && memcmp(l->parent->ids, l->leaf.ids, l->leaf.slots * sizeof *l->leaf.ids) == 0 &&
        l->parent->slots == l->leaf.slots && stored_already(w, &l->parent_id) && stored_already(w, &l->base_id)) {
        id = l->parent_id;
    } else if (!chunk_leaf_is_zero(&l->leaf)) {
        chunk_leaf_encode(&l->leaf, &out);
        if (l->base != NULL && l->base->slots == l->leaf.slots && stored_already(w, &l->base_id))
            chunk_leaf_encode_difference(&l->leaf, l->base, &l->base_id, &difference);
        struct bytes_writer *best = difference.size > 0 && difference.size < out.size / 2 ? &difference : &out;
        chunk_hash_keyed(w->repo->keys.names, best->data, best->size, &id);
        if (claim(w, &id, (uint32_t)best->size)) {
            struct pack_chunk chunk = {.id = id, .size_bytes = (uint32_t)best->size};
            struct pack_frame frame;
            const uint8_t *stored = pack_frame_encode(coder, NULL, &chunk, 1, best->data, chunk.size_bytes, &frame);
            frame.flags = PACK_LISTS;
            frame_store(w, &frame, stored, &chunk);
        }
        bytes_writer_finish(&out);
        bytes_writer_finish(&difference);
    }
    pthread_mutex_lock(&w->lock);
    w->leaves[l->number] = id;
    pthread_mutex_unlock(&w->lock);
}

static void leaf_release(struct backup_writer *w, struct pack_coder *coder, struct open_leaf *l)
{
    if (atomic_fetch_sub(&l->users, 1) != 1)
        return;
    if (!atomic_load(&w->failed))
        leaf_store(w, coder, l);
    free(l->parent);
    free(l->base);
    free(l);
}

/* Names every chunk of the batch, and moves those that are ours to store together. */
static void batch_work(struct backup_writer *w, struct pack_coder *coder, struct batch *b)
{
    struct pack_chunk chunks[BATCH_CHUNKS_MAX];
    uint16_t count = 0;
    uint32_t kept = 0;
    size_t at = 0;
    for (unsigned i = 0; i < b->count; i++) {
        const uint8_t *data = b->raw + at;
        uint32_t size = b->items[i].size_bytes;
        struct chunk_hash *id = &b->leaf->leaf.ids[b->items[i].slot];
        at += size;
        if (all_zeroes(data, size))
            continue;
        chunk_hash_keyed(w->repo->keys.names, data, size, id);
        if (!claim(w, id, size))
            continue;
        if (b->raw + kept != data)
            memmove(b->raw + kept, data, size);
        chunks[count++] = (struct pack_chunk){.id = *id, .size_bytes = size};
        kept += size;
    }
    if (count > 0) {
        struct pack_frame frame;
        const uint8_t *stored = pack_frame_encode(coder, w->repo->header.encrypted ? &w->repo->keys : NULL, chunks,
                                                  count, b->raw, kept, &frame);
        frame_store(w, &frame, stored, chunks);
    }
}

static void *worker_run(void *arg)
{
    struct backup_writer *w = arg;
    struct pack_coder *coder = pack_coder_create(w->options.level);
    struct batch *b;
    while ((b = work_queue_take(&w->full_batches)) != NULL) {
        if (!atomic_load(&w->failed))
            batch_work(w, coder, b);
        leaf_release(w, coder, b->leaf);
        work_queue_put(&w->free_batches, b);
    }
    pack_coder_destroy(coder);
    return NULL;
}

/* ---- transfers ---- */

static int pack_put(struct backup_writer *w, struct pack_builder *pack, struct error *err)
{
    struct chunk_hash hash;
    char name[PACK_NAME_BYTES];
    uint64_t index_offset;
    uint32_t index_bytes, added;
    pack_builder_close(pack, &hash, &index_offset, &index_bytes);
    int code = store_put(w->repo->store, pack_name(&hash, name), pack->out.data, pack->out.size, err);
    if (code < 0)
        return code;
    pthread_mutex_lock(&w->lock);
    ASSERT(chunk_index_add(&w->added, &hash, pack->out.data + index_offset, index_bytes, &added, NULL) == 0);
    w->added.packs[added].present = true;
    w->progress.stored_bytes += pack->out.size;
    pthread_mutex_unlock(&w->lock);
    return 0;
}

static void *transfer_run(void *arg)
{
    struct backup_writer *w = arg;
    struct pack_builder *pack;
    while ((pack = work_queue_take(&w->full_packs)) != NULL) {
        struct error err = {0};
        int code = atomic_load(&w->failed) ? 0 : pack_put(w, pack, &err);
        if (code < 0)
            fail(w, code, &err);
        pack_end(w, pack);
    }
    return NULL;
}

/* ---- the reader ---- */

static void report(struct backup_writer *w, const char *step, const char *disk, uint64_t done, uint64_t total)
{
    pthread_mutex_lock(&w->lock);
    w->progress.step = step;
    w->progress.disk = disk;
    w->progress.done_bytes = done;
    w->progress.total_bytes = total;
    struct backup_progress p = w->progress;
    pthread_mutex_unlock(&w->lock);
    if (w->options.progress != NULL)
        w->options.progress(w->options.progress_arg, &p);
}

struct reading {
    struct backup_writer *w;
    struct backup_source *source;
    const char *disk;
    int parent_disk; /* its index in the parent; -1: none */
    struct open_leaf *leaf;
    struct batch *batch;
    enum backup_extent kind; /* of what is at the place, up to kind_end */
    uint64_t kind_end;
};

static int canceled(struct error *err)
{
    return error_set(err, -ECANCELED, ERROR_CANCELLED, "the backup was cancelled");
}

static int batch_flush(struct reading *r, struct error *err)
{
    struct batch *b = TAKE_PTR(r->batch);
    if (b == NULL)
        return 0;
    if (!work_queue_put(&r->w->full_batches, b)) {
        leaf_release(r->w, NULL, b->leaf); /* failed: nothing is stored */
        return first_error(r->w, err);
    }
    return 0;
}

static int slot_read(struct reading *r, uint64_t offset, uint32_t slot, uint32_t size, struct error *err)
{
    struct backup_writer *w = r->w;
    if (r->batch == NULL) {
        r->batch = work_queue_take(&w->free_batches);
        if (r->batch == NULL)
            return first_error(w, err);
        r->batch->count = 0;
        r->batch->size = 0;
        r->batch->leaf = r->leaf;
        atomic_fetch_add(&r->leaf->users, 1);
    }
    struct batch *b = r->batch;
    int code = r->source->ops->read(r->source, offset, b->raw + b->size, size, err);
    if (code < 0) {
        error_prefix(err, "disk %s: ", r->disk);
        return code;
    }
    b->items[b->count].slot = slot;
    b->items[b->count++].size_bytes = size;
    b->size += size;
    pthread_mutex_lock(&w->lock);
    w->progress.read_bytes += size;
    pthread_mutex_unlock(&w->lock);
    return b->size + w->repo->header.chunk_bytes > BACKUP_FRAME_BYTES ? batch_flush(r, err) : 0;
}

/* What all of [offset, offset + size) is; DATA where it is not of one kind. */
static int slot_kind(struct reading *r, uint64_t offset, uint32_t size, enum backup_extent *ret_kind,
                     struct error *err)
{
    for (uint64_t at = offset; at < offset + size; at = r->kind_end) {
        if (at >= r->kind_end || at == 0) {
            int code = r->source->ops->extent(r->source, at, &r->kind, &r->kind_end, err);
            if (code == 0 && r->kind_end <= at)
                code = error_set(err, -EIO, ERROR_INTERNAL, "the source tells nothing of what is at %" PRIu64, at);
            if (code < 0) {
                error_prefix(err, "disk %s: ", r->disk);
                return code;
            }
        }
        if (at == offset)
            *ret_kind = r->kind;
        if (r->kind != *ret_kind || r->kind == BACKUP_DATA) {
            *ret_kind = BACKUP_DATA;
            return 0;
        }
    }
    return 0;
}

/* The parent's leaf, where there is one and it can be read: a damaged one heals by reading all again. */
static void parent_leaf_load(struct reading *r, struct open_leaf *l, uint64_t index, uint32_t slots)
{
    struct backup_writer *w = r->w;
    uint32_t chunk_bytes = w->repo->header.chunk_bytes;
    uint64_t size = r->parent_disk < 0 ? 0 : manifest_disk_at(&w->parent, (size_t)r->parent_disk)->size_bytes;
    if (r->parent_disk < 0 || index >= chunk_tree_leaves(size, chunk_bytes))
        return;
    uint32_t parent_slots = chunk_tree_slots(size, chunk_bytes, index);
    l->parent_id = w->parent.leaves[manifest_first_leaf(&w->parent, (size_t)r->parent_disk, chunk_bytes) + index];
    l->parent = NEW(struct chunk_leaf);
    l->base = NEW(struct chunk_leaf);
    if (frame_fetch_leaf(&w->fetcher, &l->parent_id, parent_slots, l->parent, &l->base_id, l->base, NULL) < 0) {
        free(TAKE_PTR(l->parent));
        free(TAKE_PTR(l->base));
        return;
    }
    /* the last chunk of a disk that has become larger or smaller is another one */
    uint64_t both = MIN(size, r->source->size_bytes) / chunk_bytes, before = index * CHUNK_LEAF_SLOTS;
    uint64_t whole = size == r->source->size_bytes ? parent_slots : both > before ? both - before : 0;
    l->same_slots = (uint32_t)MIN(MIN(whole, (uint64_t)parent_slots), (uint64_t)slots);
    if (chunk_hash_is_zero(&l->base_id))
        free(TAKE_PTR(l->base));
}

static int slot_take(struct reading *r, uint64_t first_chunk, uint32_t slot, struct error *err)
{
    struct backup_writer *w = r->w;
    uint32_t chunk_bytes = w->repo->header.chunk_bytes;
    uint64_t offset = (first_chunk + slot) * chunk_bytes;
    uint32_t size = (uint32_t)MIN((uint64_t)chunk_bytes, r->source->size_bytes - offset);
    enum backup_extent kind = BACKUP_DATA;
    int code = slot_kind(r, offset, size, &kind, err);
    if (code < 0 || kind == BACKUP_ZERO)
        return code;
    if (kind == BACKUP_SAME && r->leaf->parent != NULL && slot < r->leaf->same_slots) {
        const struct chunk_hash *id = &r->leaf->parent->ids[slot];
        if (chunk_hash_is_zero(id) || stored_already(w, id)) {
            r->leaf->leaf.ids[slot] = *id;
            return 0;
        }
    }
    return slot_read(r, offset, slot, size, err);
}

static int leaf_read(struct reading *r, uint64_t index, uint64_t number, struct error *err)
{
    struct backup_writer *w = r->w;
    uint32_t chunk_bytes = w->repo->header.chunk_bytes;
    struct open_leaf *l = NEW(struct open_leaf);
    l->leaf.slots = chunk_tree_slots(r->source->size_bytes, chunk_bytes, index);
    l->number = number;
    atomic_init(&l->users, 1);
    parent_leaf_load(r, l, index, l->leaf.slots);
    r->leaf = l;
    int code = 0;
    for (uint32_t slot = 0; code == 0 && slot < l->leaf.slots; slot++) {
        if (slot % 64 == 0) {
            uint64_t at = (index * CHUNK_LEAF_SLOTS + slot) * chunk_bytes;
            if (w->options.cancel != NULL && atomic_load(w->options.cancel))
                code = canceled(err);
            if (code == 0 && atomic_load(&w->failed))
                code = first_error(w, err);
            report(w, "reading", r->disk, at, r->source->size_bytes);
        }
        if (code == 0)
            code = slot_take(r, index * CHUNK_LEAF_SLOTS, slot, err);
    }
    if (code == 0)
        code = batch_flush(r, err);
    if (code < 0) {
        struct error none = {0};
        fail(w, code, err != NULL ? err : &none);
        if (r->batch != NULL) {
            leaf_release(w, NULL, r->batch->leaf);
            r->batch = NULL;
        }
    }
    leaf_release(w, w->fetcher.coder, l);
    return code;
}

/* ---- from outside ---- */

static void manifest_begin(struct backup_writer *w, const char *id)
{
    const struct backup_writer_options *o = &w->options;
    struct backup_manifest *head = &w->manifest.head;
    char time_text[25];
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    int64_t ms = o->created_ms != 0 ? o->created_ms : (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    OBJECT_TEXT(backup_manifest, head, id, id);
    OBJECT_TEXT(backup_manifest, head, created_at, manifest_time_text(ms, time_text));
    OBJECT_TEXT(backup_manifest, head, vm_name, o->vm_name);
    if (w->has_parent)
        OBJECT_TEXT(backup_manifest, head, parent, o->parent);
    if (o->vm != NULL)
        OBJECT_TEXT(backup_manifest, head, vm, o->vm);
    if (o->consistency != NULL)
        OBJECT_TEXT(backup_manifest, head, consistency, o->consistency);
    if (o->labels != NULL && o->labels->count > 0) {
        head->labels.pairs = xcalloc(o->labels->count, sizeof *head->labels.pairs);
        head->labels.count = o->labels->count;
        for (size_t i = 0; i < o->labels->count; i++) {
            head->labels.pairs[i].key = xstrdup(o->labels->pairs[i].key);
            head->labels.pairs[i].value = xstrdup(o->labels->pairs[i].value);
        }
        object_mark(&backup_manifest_desc, head, "labels");
    }
}

static int begin(struct backup_writer *w, struct error *err)
{
    char id[REPO_ID_TEXT_BYTES];
    struct manifest there;
    const struct backup_writer_options *o = &w->options;
    int code = repo_need_key(w->repo, err);
    if (code == 0 && o->id != NULL && !repo_id_ok(o->id))
        code =
            error_set(err, -EINVAL, ERROR_INVALID, "'%.64s' is no id for a backup: a UUID in lower case is", o->id);
    if (code == 0 && o->id != NULL) {
        code = repo_manifest_load(w->repo, o->id, &there, err);
        if (code == 0) {
            manifest_finish(&there);
            code = error_set(err, -EEXIST, ERROR_EXISTS, "backup %s is there and complete", o->id);
        }
        code = code == -ENOENT ? 0 : code; /* who does not know whether it is there must not make another one */
    }
    if (code == 0 && o->definition != NULL && strlen(o->definition) > MANIFEST_DEFINITION_BYTES_MAX)
        code = error_set(err, -E2BIG, ERROR_TOO_LARGE, "the definition of a VM has %d bytes at most",
                         MANIFEST_DEFINITION_BYTES_MAX);
    if (code == 0)
        code = repo_session_begin(w->repo, &w->session, err);
    if (code == 0 && o->parent != NULL) {
        code = repo_manifest_load(w->repo, o->parent, &w->parent, err);
        w->has_parent = code == 0;
    }
    if (code == 0)
        code = repo_view_load(w->repo, &w->view, err);
    if (code < 0)
        return code;
    repo_id_make(id);
    manifest_begin(w, o->id != NULL ? o->id : id);
    return object_validate(&backup_manifest_desc, &w->manifest.head, OBJECT_STORED, err);
}

static int threads_start(struct backup_writer *w, struct error *err)
{
    unsigned workers = w->options.threads, transfers = w->options.transfers;
    if (workers == 0)
        workers = (unsigned)MAX(sysconf(_SC_NPROCESSORS_ONLN), 1);
    workers = MIN(workers, (unsigned)BACKUP_THREADS_MAX);
    transfers = MIN(MAX(transfers != 0 ? transfers : w->repo->store->transfers, 1u), (unsigned)BACKUP_THREADS_MAX);
    w->batch_count = workers * 2 + 2;
    work_queue_init(&w->free_batches, w->batch_count);
    work_queue_init(&w->full_batches, w->batch_count);
    work_queue_init(&w->full_packs, PACKS_WAITING_MAX);
    w->batches = xcalloc(w->batch_count, sizeof *w->batches);
    for (unsigned i = 0; i < w->batch_count; i++) {
        w->batches[i].raw = xcalloc(1, BACKUP_FRAME_BYTES);
        work_queue_put(&w->free_batches, &w->batches[i]);
    }
    int code = 0;
    for (; code == 0 && w->worker_count < workers; w->worker_count += code == 0)
        code = -pthread_create(&w->workers[w->worker_count], NULL, worker_run, w);
    for (; code == 0 && w->transfer_count < transfers; w->transfer_count += code == 0)
        code = -pthread_create(&w->transfers[w->transfer_count], NULL, transfer_run, w);
    if (code < 0) {
        struct error e = {0};
        error_errno(&e, code, "cannot start a thread");
        fail(w, code, &e);
        first_error(w, err);
    }
    return code;
}

int backup_writer_create(struct repo *repo, const struct backup_writer_options *options,
                         struct backup_writer **ret_writer, struct error *err)
{
    struct backup_writer *w = NEW(struct backup_writer);
    w->repo = repo;
    w->options = *options;
    if (w->options.level == 0)
        w->options.level = BACKUP_LEVEL_DEFAULT;
    clock_gettime(CLOCK_MONOTONIC, &w->begun);
    pthread_mutex_init(&w->lock, NULL);
    pthread_mutex_init(&w->pack_lock, NULL);
    chunk_index_init(&w->added);
    int code = begin(w, err);
    if (code == 0) {
        frame_fetcher_init(&w->fetcher, repo, &w->view.index);
        code = threads_start(w, err);
    }
    if (code < 0) {
        backup_writer_destroy(w);
        return code;
    }
    *ret_writer = w;
    return 0;
}

const char *backup_writer_id(const struct backup_writer *w)
{
    return w->manifest.head.id;
}

const char *backup_writer_parent_mark(const struct backup_writer *w, const char *disk)
{
    int at = w->has_parent ? manifest_disk_find(&w->parent, disk) : -1;
    return at < 0 ? NULL : manifest_disk_at(&w->parent, (size_t)at)->mark;
}

static int disk_add(struct backup_writer *w, const char *name, const struct backup_source *source, struct error *err)
{
    uint32_t chunk_bytes = w->repo->header.chunk_bytes;
    uint64_t leaves = chunk_tree_leaves(source->size_bytes, chunk_bytes);
    if (manifest_disk_find(&w->manifest, name) >= 0)
        return error_set(err, -EEXIST, ERROR_EXISTS, "the backup has a disk %s already", name);
    if (w->manifest.head.disks.count == MANIFEST_DISKS_MAX ||
        (w->manifest.leaf_count + leaves) * CHUNK_HASH_BYTES > MANIFEST_BYTES_MAX / 2)
        return error_set(err, -E2BIG, ERROR_TOO_LARGE, "a backup has %d disks and %d TiB at most", MANIFEST_DISKS_MAX,
                         512);
    struct manifest_disk *d = OBJECT_ADD(backup_manifest, &w->manifest.head, disks);
    OBJECT_TEXT(manifest_disk, d, name, name);
    OBJECT_SET(manifest_disk, d, size_bytes, source->size_bytes);
    if (source->mark[0] != '\0')
        OBJECT_TEXT(manifest_disk, d, mark, source->mark);
    int code = object_validate(&manifest_disk_desc, d, OBJECT_STORED, err);
    if (code < 0)
        return code;
    pthread_mutex_lock(&w->lock);
    w->leaves = xrealloc(w->leaves, (w->manifest.leaf_count + leaves + 1) * sizeof *w->leaves);
    memset(w->leaves + w->manifest.leaf_count, 0, leaves * sizeof *w->leaves);
    pthread_mutex_unlock(&w->lock);
    return 0;
}

int backup_writer_disk(struct backup_writer *w, const char *name, struct backup_source *source, struct error *err)
{
    struct error local = {0};
    struct reading r = {.w = w, .source = source, .disk = name, .parent_disk = -1};
    uint64_t read_before = w->progress.read_bytes;
    uint64_t leaves = chunk_tree_leaves(source->size_bytes, w->repo->header.chunk_bytes);
    int code = first_error(w, err);
    if (err == NULL)
        err = &local;
    if (code == 0)
        code = disk_add(w, name, source, err);
    if (code == 0 && w->has_parent)
        r.parent_disk = manifest_disk_find(&w->parent, name);
    uint32_t first = w->manifest.leaf_count;
    if (code == 0)
        w->manifest.leaf_count += (uint32_t)leaves;
    for (uint64_t i = 0; code == 0 && i < leaves; i++)
        code = leaf_read(&r, i, first + i, err);
    if (code == 0) {
        struct manifest_disk *d =
            &((struct manifest_disk *)w->manifest.head.disks.items)[w->manifest.head.disks.count - 1];
        pthread_mutex_lock(&w->lock);
        OBJECT_SET(manifest_disk, d, read_bytes, w->progress.read_bytes - read_before);
        pthread_mutex_unlock(&w->lock);
        report(w, "reading", name, source->size_bytes, source->size_bytes);
    }
    backup_source_close(source);
    return code;
}

/* All threads to their end: workers first, they fill the packs. */
static void threads_end(struct backup_writer *w)
{
    struct pack_builder *pack;
    struct batch *b;
    if (w->batches == NULL)
        return;
    work_queue_close(&w->full_batches);
    for (unsigned i = 0; i < w->worker_count; i++)
        pthread_join(w->workers[i], NULL);
    while ((b = work_queue_try(&w->full_batches)) != NULL)
        leaf_release(w, NULL, b->leaf);
    if (w->pack != NULL && !atomic_load(&w->failed) && work_queue_put(&w->full_packs, w->pack))
        w->pack = NULL;
    pack_destroy(TAKE_PTR(w->pack));
    work_queue_close(&w->full_packs);
    for (unsigned i = 0; i < w->transfer_count; i++)
        pthread_join(w->transfers[i], NULL);
    while ((pack = work_queue_try(&w->full_packs)) != NULL)
        pack_destroy(pack);
    pack_destroy(TAKE_PTR(w->spare));
    for (unsigned i = 0; i < w->batch_count; i++)
        free(w->batches[i].raw);
    free(TAKE_PTR(w->batches));
    work_queue_finish(&w->free_batches);
    work_queue_finish(&w->full_batches);
    work_queue_finish(&w->full_packs);
    w->worker_count = w->transfer_count = 0;
}

/* Packs that were found without an index are told of, too. */
static int indexes_write(struct backup_writer *w, struct error *err)
{
    const struct repo_view *v = &w->view;
    int code = 0;
    CLEANUP_FREE bool *chosen = xcalloc(MAX(MAX(v->index.pack_count, w->added.pack_count), 1u), sizeof *chosen);
    for (uint32_t at = 0; code == 0 && at < w->added.pack_count; at += CHUNK_INDEX_OBJECT_PACKS) {
        for (uint32_t i = 0; i < w->added.pack_count; i++)
            chosen[i] = i >= at && i < at + CHUNK_INDEX_OBJECT_PACKS;
        code = repo_index_write(w->repo, &w->added, chosen, NULL, err);
    }
    bool any = false;
    for (uint32_t i = 0; i < v->index.pack_count; i++) {
        chosen[i] = v->index.packs[i].present && !v->index.packs[i].condemned && !v->indexed[i];
        any = any || chosen[i];
    }
    return code == 0 && any ? repo_index_write(w->repo, &v->index, chosen, NULL, err) : code;
}

static int manifest_put(struct backup_writer *w, struct error *err)
{
    struct bytes_writer out = {0};
    char name[MANIFEST_NAME_BYTES];
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    struct backup_manifest *head = &w->manifest.head;
    w->manifest.leaves = TAKE_PTR(w->leaves);
    w->manifest.definition = w->options.definition != NULL ? xstrdup(w->options.definition) : NULL;
    OBJECT_SET(backup_manifest, head, stored_bytes, w->progress.stored_bytes);
    OBJECT_SET(backup_manifest, head, duration_ms,
               (uint64_t)((now.tv_sec - w->begun.tv_sec) * 1000 + (now.tv_nsec - w->begun.tv_nsec) / 1000000));
    manifest_encode(&w->manifest, &w->repo->keys, w->repo->header.encrypted, &out);
    int code = repo_session_check(w->session, err);
    if (code == 0) {
        w->unknown = true; /* from here on it may be there */
        code = store_put(w->repo->store, repo_manifest_name(head->id, repo_session_name(w->session), name), out.data,
                         out.size, err);
    }
    if (code == 0)
        code = repo_session_check(w->session, err);
    if (code == 0) {
        w->unknown = false;
        repo_session_leave(w->session);
        code = repo_session_check(w->session, err);
    }
    bytes_writer_finish(&out);
    return code;
}

int backup_writer_commit(struct backup_writer *w, struct manifest *ret_manifest, struct error *err)
{
    ASSERT(!w->finished);
    w->finished = true;
    report(w, "storing", NULL, 0, 0);
    threads_end(w);
    int code = first_error(w, err);
    if (code == 0 && w->options.cancel != NULL && atomic_load(w->options.cancel))
        code = canceled(err);
    report(w, "finishing", NULL, 0, 0);
    if (code == 0)
        code = indexes_write(w, err);
    if (code == 0)
        code = manifest_put(w, err);
    if (code == 0 && ret_manifest != NULL) {
        *ret_manifest = w->manifest;
        w->manifest = (struct manifest){0};
    }
    return code;
}

void backup_writer_destroy(struct backup_writer *w)
{
    if (w == NULL)
        return;
    if (!w->finished) {
        struct error e = {0};
        canceled(&e);
        if (w->batches != NULL)
            fail(w, -ECANCELED, &e);
        threads_end(w);
    }
    repo_session_end(w->session, w->unknown);
    if (w->fetcher.repo != NULL)
        frame_fetcher_finish(&w->fetcher);
    repo_view_finish(&w->view);
    manifest_finish(&w->manifest);
    manifest_finish(&w->parent);
    chunk_index_finish(&w->added);
    chunk_set_finish(&w->claimed);
    free(w->leaves);
    pthread_mutex_destroy(&w->lock);
    pthread_mutex_destroy(&w->pack_lock);
    free(w);
}
