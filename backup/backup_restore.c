/* A whole disk of a backup into a file: see backup_restore.h. For each leaf its chunks are put in the order of the
 * packs; what is in one frame is one piece of work. */
#include "backup/backup_restore.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>

#include "backup/work_queue.h"

enum { SEND_BYTES = 32 << 20 }; /* written before the kernel is told to bring it out */

struct piece_chunk {
    uint32_t pack, frame, chunk;
    uint32_t slot;
};
struct piece {
    uint64_t first_chunk; /* of the leaf */
    uint32_t count;
    struct piece_chunk chunks[];
};

struct restore {
    struct backup_reader *reader;
    size_t disk;
    int fd;
    const struct backup_restore_options *options;
    struct work_queue pieces;
    pthread_mutex_t lock;
    struct error error;
    uint64_t written_bytes, sent_bytes;
    atomic_bool failed;
};

static int fail(struct restore *s, int code, const struct error *err)
{
    pthread_mutex_lock(&s->lock);
    if (s->error.code == 0) {
        s->error = *err;
        s->error.code = code;
    }
    pthread_mutex_unlock(&s->lock);
    atomic_store(&s->failed, true);
    work_queue_close(&s->pieces);
    return code;
}

static int write_at(struct restore *s, const uint8_t *data, size_t size, uint64_t offset, struct error *err)
{
    while (size > 0) {
        ssize_t n = pwrite(s->fd, data, size, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_errno(err, -errno, "cannot write the restored disk at %" PRIu64, offset);
        data += n;
        offset += (uint64_t)n;
        size -= (size_t)n;
    }
    return 0;
}

/* The kernel keeps what is written for half a minute, so that the sync at the end would find all of it still to be done:
 * it is told to begin. What fails there the sync tells. */
static void written(struct restore *s, size_t size)
{
    pthread_mutex_lock(&s->lock);
    s->written_bytes += size;
    bool send = s->written_bytes - s->sent_bytes >= SEND_BYTES;
    if (send)
        s->sent_bytes = s->written_bytes;
    pthread_mutex_unlock(&s->lock);
    if (send)
        sync_file_range(s->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
}

static int piece_write(struct restore *s, struct frame_fetcher *f, const struct piece *p, uint8_t *raw,
                       struct error *err)
{
    uint32_t chunk_bytes = backup_reader_repo(s->reader)->header.chunk_bytes;
    const struct manifest_disk *d = manifest_disk_at(backup_reader_manifest(s->reader), s->disk);
    const struct pack_index *index = &f->index->packs[p->chunks[0].pack].index;
    int code = frame_fetch(f, p->chunks[0].pack, p->chunks[0].frame, raw, err);
    if (code < 0)
        error_prefix(err, "disk %s at %" PRIu64 ": ", d->name, (p->first_chunk + p->chunks[0].slot) * chunk_bytes);
    for (uint32_t i = 0, n; code == 0 && i < p->count; i += n) {
        const struct pack_chunk *c = &index->chunks[p->chunks[i].chunk];
        uint64_t offset = (p->first_chunk + p->chunks[i].slot) * chunk_bytes;
        size_t size = c->size_bytes;
        if (size != MIN((uint64_t)chunk_bytes, d->size_bytes - offset))
            return error_set(err, -EBADMSG, ERROR_CHECKSUM,
                             "disk %s at %" PRIu64 ": a chunk has another size than it should", d->name, offset);
        for (n = 1; i + n < p->count && p->chunks[i + n].slot == p->chunks[i].slot + n &&
                    p->chunks[i + n].chunk == p->chunks[i].chunk + n;
             n++)
            size += index->chunks[p->chunks[i + n].chunk].size_bytes;
        if (size > d->size_bytes - offset)
            return error_set(err, -EBADMSG, ERROR_CHECKSUM, "disk %s at %" PRIu64 ": chunks go beyond its end",
                             d->name, offset);
        code = write_at(s, raw + c->offset, size, offset, err);
        if (code == 0)
            written(s, size);
    }
    return code;
}

static void *run(void *arg)
{
    struct restore *s = arg;
    struct frame_fetcher f;
    struct piece *p;
    frame_fetcher_init(&f, backup_reader_repo(s->reader), &backup_reader_view(s->reader)->index);
    CLEANUP_FREE uint8_t *raw = xcalloc(1, PACK_FRAME_RAW_MAX);
    while ((p = work_queue_take(&s->pieces)) != NULL) {
        struct error err = {0};
        int code = atomic_load(&s->failed) ? 0 : piece_write(s, &f, p, raw, &err);
        if (code < 0)
            fail(s, code, &err);
        free(p);
    }
    frame_fetcher_finish(&f);
    return NULL;
}

static int chunk_order(const void *a, const void *b)
{
    const struct piece_chunk *x = a, *y = b;
    if (x->pack != y->pack)
        return x->pack < y->pack ? -1 : 1;
    if (x->frame != y->frame)
        return x->frame < y->frame ? -1 : 1;
    return x->slot < y->slot ? -1 : x->slot > y->slot;
}

/* What is zeroes, where the file is not so by itself. */
static int zeroes_write(struct restore *s, uint64_t offset, uint64_t size, struct error *err)
{
    static const uint8_t zeroes[65536];
    if (s->options->zeroed)
        return 0;
    if (fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)size) == 0)
        return 0;
    int code = 0;
    for (uint64_t at = 0; code == 0 && at < size; at += sizeof zeroes)
        code = write_at(s, zeroes, (size_t)MIN(size - at, (uint64_t)sizeof zeroes), offset + at, err);
    return code;
}

static int leaf_restore(struct restore *s, uint64_t index, struct chunk_leaf *leaf, struct piece_chunk *chunks,
                        struct error *err)
{
    uint32_t chunk_bytes = backup_reader_repo(s->reader)->header.chunk_bytes, count = 0;
    const struct chunk_index *x = &backup_reader_view(s->reader)->index;
    const struct manifest_disk *d = manifest_disk_at(backup_reader_manifest(s->reader), s->disk);
    uint64_t first = index * CHUNK_LEAF_SLOTS;
    int code = backup_reader_leaf(s->reader, s->disk, index, leaf, err);
    for (uint32_t slot = 0; code == 0 && slot < leaf->slots; slot++) {
        struct chunk_place at;
        char text[CHUNK_HASH_TEXT_BYTES];
        uint64_t offset = (first + slot) * chunk_bytes;
        if (chunk_hash_is_zero(&leaf->ids[slot]))
            code = zeroes_write(s, offset, MIN((uint64_t)chunk_bytes, d->size_bytes - offset), err);
        else if (!chunk_index_find(x, &leaf->ids[slot], &at))
            code = error_set(err, -EBADMSG, ERROR_CHECKSUM, "disk %s at %" PRIu64 ": no pack has chunk %s", d->name,
                             offset, chunk_hash_text(&leaf->ids[slot], text));
        else
            chunks[count++] = (struct piece_chunk){
                .pack = at.pack, .frame = chunk_index_chunk(x, at)->frame, .chunk = at.chunk, .slot = slot};
    }
    qsort(chunks, count, sizeof *chunks, chunk_order);
    for (uint32_t i = 0, n; code == 0 && i < count; i += n) {
        for (n = 1; i + n < count && chunks[i + n].pack == chunks[i].pack && chunks[i + n].frame == chunks[i].frame;
             n++)
            ;
        struct piece *p = xcalloc(1, sizeof *p + n * sizeof *p->chunks);
        p->first_chunk = first;
        p->count = n;
        memcpy(p->chunks, chunks + i, n * sizeof *p->chunks);
        if (!work_queue_put(&s->pieces, p)) {
            free(p);
            break;
        }
    }
    return code;
}

static int leaves_restore(struct restore *s, struct error *err)
{
    const struct manifest_disk *d = manifest_disk_at(backup_reader_manifest(s->reader), s->disk);
    uint32_t chunk_bytes = backup_reader_repo(s->reader)->header.chunk_bytes;
    CLEANUP_FREE struct chunk_leaf *leaf = NEW(struct chunk_leaf);
    CLEANUP_FREE struct piece_chunk *chunks = xcalloc(CHUNK_LEAF_SLOTS, sizeof *chunks);
    int code = 0;
    for (uint64_t i = 0; code == 0 && i < chunk_tree_leaves(d->size_bytes, chunk_bytes); i++) {
        pthread_mutex_lock(&s->lock);
        struct backup_progress p = {.step = "restoring",
                                    .disk = d->name,
                                    .total_bytes = d->size_bytes,
                                    .done_bytes = i * CHUNK_LEAF_SLOTS * chunk_bytes,
                                    .read_bytes = s->written_bytes};
        pthread_mutex_unlock(&s->lock);
        if (s->options->progress != NULL)
            s->options->progress(s->options->progress_arg, &p);
        if (s->options->cancel != NULL && atomic_load(s->options->cancel))
            code = error_set(err, -ECANCELED, ERROR_CANCELLED, "the restore was cancelled");
        else if (!atomic_load(&s->failed))
            code = leaf_restore(s, i, leaf, chunks, err);
    }
    return code;
}

static int file_prepare(int fd, uint64_t size_bytes, struct error *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return error_errno(err, -errno, "cannot look at the target of the restore");
    if (S_ISREG(st.st_mode) && (uint64_t)st.st_size != size_bytes && ftruncate(fd, (off_t)size_bytes) < 0)
        return error_errno(err, -errno, "cannot make the target of the restore %" PRIu64 " bytes long", size_bytes);
    off_t has = lseek(fd, 0, SEEK_END);
    if (has >= 0 && (uint64_t)has < size_bytes)
        return error_set(err, -ENOSPC, ERROR_INVALID, "the target has %lld bytes; the disk has %" PRIu64,
                         (long long)has, size_bytes);
    return 0;
}

int backup_restore_disk(struct backup_reader *r, size_t disk, int fd, const struct backup_restore_options *options,
                        struct error *err)
{
    pthread_t threads[BACKUP_THREADS_MAX];
    struct error local = {0};
    struct restore s = {.reader = r, .disk = disk, .fd = fd, .options = options};
    unsigned count = options->threads, started = 0;
    int code = file_prepare(fd, manifest_disk_at(backup_reader_manifest(r), disk)->size_bytes, err);
    if (code < 0)
        return code;
    if (count == 0)
        count = (unsigned)MAX(sysconf(_SC_NPROCESSORS_ONLN), (long)backup_reader_repo(r)->store->transfers);
    count = MIN(count, (unsigned)BACKUP_THREADS_MAX);
    pthread_mutex_init(&s.lock, NULL);
    work_queue_init(&s.pieces, count * 4);
    for (; code == 0 && started < count; started += code == 0)
        code = -pthread_create(&threads[started], NULL, run, &s);
    if (code < 0)
        error_errno(&local, code, "cannot start a thread");
    else
        code = leaves_restore(&s, &local);
    if (code < 0)
        fail(&s, code, &local);
    work_queue_close(&s.pieces);
    for (unsigned i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    for (struct piece *p; (p = work_queue_try(&s.pieces)) != NULL;)
        free(p);
    if (s.error.code == 0 && fsync(fd) < 0)
        error_errno(&s.error, -errno, "cannot sync the restored disk");
    if (s.error.code < 0 && err != NULL)
        *err = s.error;
    code = s.error.code;
    work_queue_finish(&s.pieces);
    pthread_mutex_destroy(&s.lock);
    return code;
}
