/* A disk of a backup as a block: see backup_block.h.
 *
 * submit only puts into a list. drain hands the list to the threads, waits until the last one is carried out, and calls
 * `done` for each on the owner's thread, as block.h wants it. `done` may submit more: then it goes round once again. */
#include "backup/backup_block.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "backup/work_queue.h"

struct backup_block {
    struct block block;
    struct backup_reader *reader;
    size_t disk;
    uint64_t disk_bytes; /* as the manifest says */
    struct backup_block_options options;
    struct list waiting; /* struct block_request; the owner's thread alone */
    struct work_queue queue;
    pthread_t threads[BACKUP_BLOCK_THREADS_MAX];
    unsigned thread_count;

    pthread_mutex_t lock; /* of all below */
    pthread_cond_t idle;
    unsigned under_way;
};

static struct backup_block *of_block(struct block *b)
{
    return CONTAINER_OF(b, struct backup_block, block);
}

static void complain(struct backup_block *s, const struct error *err)
{
    pthread_mutex_lock(&s->lock);
    if (s->options.complain != NULL)
        s->options.complain(s->options.complain_arg, err);
    pthread_mutex_unlock(&s->lock);
}

static int perform(struct backup_block *s, const struct block_request *r)
{
    uint64_t at = r->offset;
    struct error err = {0};
    if (!block_may_submit(&s->block))
        return -EAGAIN;
    if (r->op == BLOCK_FLUSH)
        return 0;
    if (r->op != BLOCK_READ)
        return -EOPNOTSUPP;
    for (unsigned i = 0; i < r->iovec_count; i++) {
        uint8_t *to = r->iovecs[i].iov_base;
        size_t size = r->iovecs[i].iov_len;
        size_t has = at >= s->disk_bytes ? 0 : (size_t)MIN(size, s->disk_bytes - at);
        if (has > 0 && backup_reader_read(s->reader, s->disk, at, to, has, &err) < 0) {
            complain(s, &err);
            return -EIO;
        }
        memset(to + has, 0, size - has);
        at += size;
    }
    return 0;
}

static void *run(void *arg)
{
    struct backup_block *s = arg;
    struct block_request *r;
    while ((r = work_queue_take(&s->queue)) != NULL) {
        r->result = perform(s, r);
        pthread_mutex_lock(&s->lock);
        if (--s->under_way == 0)
            pthread_cond_signal(&s->idle);
        pthread_mutex_unlock(&s->lock);
    }
    return NULL;
}

static int backup_block_submit(struct block *b, struct block_request *request)
{
    list_append(&of_block(b)->waiting, &request->link);
    return 0;
}

static void backup_block_drain(struct block *b)
{
    struct backup_block *s = of_block(b);
    while (!list_empty(&s->waiting)) {
        struct list round;
        unsigned count = 0;
        list_init(&round);
        list_take(&round, &s->waiting);
        LIST_FOREACH(link, &round)
            count++;
        pthread_mutex_lock(&s->lock);
        s->under_way = count;
        pthread_mutex_unlock(&s->lock);
        LIST_FOREACH(link, &round)
            ASSERT(work_queue_put(&s->queue, LIST_ENTRY(link, struct block_request, link)));
        pthread_mutex_lock(&s->lock);
        while (s->under_way > 0)
            pthread_cond_wait(&s->idle, &s->lock);
        pthread_mutex_unlock(&s->lock);
        while (!list_empty(&round)) {
            struct block_request *r = LIST_ENTRY(round.next, struct block_request, link);
            list_remove(&r->link);
            block_complete(b, r);
        }
    }
}

static int backup_block_next_data(struct block *b, uint64_t from, uint64_t *ret_start, uint64_t *ret_end)
{
    struct backup_block *s = of_block(b);
    struct error err = {0};
    bool zero = true;
    for (uint64_t at = from, end; zero && at < s->disk_bytes; at = end) {
        int code = backup_reader_extent(s->reader, s->disk, at, &zero, &end, &err);
        if (code < 0) {
            complain(s, &err);
            return -EIO;
        }
        if (!zero) {
            *ret_start = at;
            *ret_end = end == s->disk_bytes ? b->size_bytes : end;
            return 1;
        }
    }
    return 0;
}

static void backup_block_close(struct block *b)
{
    struct backup_block *s = of_block(b);
    work_queue_close(&s->queue);
    for (unsigned i = 0; i < s->thread_count; i++)
        pthread_join(s->threads[i], NULL);
    work_queue_finish(&s->queue);
    pthread_cond_destroy(&s->idle);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

int backup_block_open(struct backup_reader *reader, size_t disk, const struct backup_block_options *options,
                      struct block **ret_block, struct error *err)
{
    static const struct block_ops ops = {.submit = backup_block_submit,
                                         .drain = backup_block_drain,
                                         .next_data = backup_block_next_data,
                                         .close = backup_block_close};
    struct backup_block *s = NEW(struct backup_block);
    uint64_t bytes = manifest_disk_at(backup_reader_manifest(reader), disk)->size_bytes;
    unsigned threads = options->threads != 0 ? options->threads : MAX(backup_reader_repo(reader)->store->transfers, 2u);
    s->block = (struct block){.ops = &ops,
                              .size_bytes = (bytes + BLOCK_SECTOR_BYTES - 1) / BLOCK_SECTOR_BYTES * BLOCK_SECTOR_BYTES,
                              .block_bytes = 4096,
                              .read_only = true};
    s->reader = reader;
    s->disk = disk;
    s->disk_bytes = bytes;
    s->options = *options;
    list_init(&s->waiting);
    threads = MIN(threads, (unsigned)BACKUP_BLOCK_THREADS_MAX);
    work_queue_init(&s->queue, threads);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->idle, NULL);
    int code = 0;
    for (; code == 0 && s->thread_count < threads; s->thread_count += code == 0)
        code = -pthread_create(&s->threads[s->thread_count], NULL, run, s);
    if (code < 0) {
        backup_block_close(&s->block);
        return error_errno(err, code, "cannot start a thread");
    }
    *ret_block = &s->block;
    return 0;
}
