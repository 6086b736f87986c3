/* The raw file driver's engine of a few threads.
 *
 * Happy path:  submit queues the request -> a worker makes the system calls, each after may_submit -> the worker puts
 * it on the finished list and rings an eventfd -> the I/O loop calls done. What will be read is asked for by a worker that has
 * no request, with posix_fadvise, HINTING_MAX workers at most; where BLOCK_FILE_HINTS_MAX wait the rest is left out.
 *
 * Lists and counters are under `lock`; a request belongs to the worker between waiting and finished, to the I/O loop
 * from finished on. Workers never take the device lock, so that drain may wait for them while holding it. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "compute/vmm/block/block_file_engine.h"
#include "compute/vmm/block/block_file_io.h"

/* A file system may let advice wait, for what it knows of the file is to be read first: the other workers are there for requests. */
enum { WORKER_STACK_BYTES = 64 * 1024, HINTING_MAX = 2 };

struct hint {
    uint64_t offset, size;
};

struct pool {
    struct block_file *file;
    struct io_handler *handler;
    int finished_fd; /* eventfd: the finished list has something */

    pthread_mutex_t lock;
    pthread_cond_t work; /* waiting or hints have something, or stopping */
    pthread_cond_t idle; /* a worker finished a request, or a hint */
    struct list waiting; /* struct block_request */
    struct list finished;
    unsigned running; /* requests that a worker holds */
    unsigned hinting; /* hints that one does */
    unsigned hint_first, hint_count;
    struct hint hints[BLOCK_FILE_HINTS_MAX]; /* a ring */
    bool stopping;
    unsigned thread_count;
    pthread_t threads[BLOCK_FILE_THREADS];
};

/* ---- on the workers ---- */

static int perform(const struct block_file *f, struct block_request *r)
{
    struct block_file_call call;
    struct block_file_io io;
    block_file_begin(&io, f, r);
    while (block_file_call_next(&io, &call))
        block_file_call_returned(&io, &call, block_file_call_perform(f->fd, &call));
    block_file_io_end(&io);
    return io.result;
}

static void request_work(struct pool *p)
{
    struct block_request *r = LIST_ENTRY(p->waiting.next, struct block_request, link);
    list_remove(&r->link);
    p->running++;
    pthread_mutex_unlock(&p->lock);
    int result = perform(p->file, r);
    pthread_mutex_lock(&p->lock);
    r->result = result;
    p->running--;
    bool first = list_empty(&p->finished);
    list_append(&p->finished, &r->link);
    pthread_cond_signal(&p->idle);
    uint64_t one = 1;
    if (first && write(p->finished_fd, &one, sizeof one) < 0)
        ASSERT(errno == EAGAIN); /* the counter is full: it is readable already */
}

static bool may_hint(const struct pool *p)
{
    return p->hint_count > 0 && p->hinting < HINTING_MAX;
}

static void hint_work(struct pool *p)
{
    struct hint h = p->hints[p->hint_first];
    p->hint_first = (p->hint_first + 1) % BLOCK_FILE_HINTS_MAX;
    p->hint_count--;
    p->hinting++;
    pthread_mutex_unlock(&p->lock);
    if (block_may_submit(&p->file->block))
        posix_fadvise(p->file->fd, (off_t)h.offset, (off_t)h.size, POSIX_FADV_WILLNEED);
    pthread_mutex_lock(&p->lock);
    p->hinting--;
    pthread_cond_signal(&p->idle);
}

static void *worker(void *arg)
{
    struct pool *p = arg;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (list_empty(&p->waiting) && !may_hint(p) && !p->stopping)
            pthread_cond_wait(&p->work, &p->lock);
        if (!list_empty(&p->waiting))
            request_work(p);
        else if (may_hint(p))
            hint_work(p);
        else
            break;
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* ---- with the device lock held ---- */

static void threads_submit(struct block_file *f, struct block_request *request)
{
    struct pool *p = f->engine_state;
    pthread_mutex_lock(&p->lock);
    list_append(&p->waiting, &request->link);
    pthread_cond_signal(&p->work);
    pthread_mutex_unlock(&p->lock);
}

static void threads_will_read(struct block_file *f, uint64_t offset, uint64_t size)
{
    struct pool *p = f->engine_state;
    pthread_mutex_lock(&p->lock);
    for (uint64_t at = offset; at < offset + size && p->hint_count < BLOCK_FILE_HINTS_MAX; at += BLOCK_FILE_HINT_BYTES) {
        p->hints[(p->hint_first + p->hint_count++) % BLOCK_FILE_HINTS_MAX] =
            (struct hint){at, MIN(offset + size - at, (uint64_t)BLOCK_FILE_HINT_BYTES)};
        pthread_cond_signal(&p->work);
    }
    pthread_mutex_unlock(&p->lock);
}

/* From a local list: done may submit more. */
static void complete_finished(struct pool *p)
{
    struct list finished;
    list_init(&finished);
    pthread_mutex_lock(&p->lock);
    list_take(&finished, &p->finished);
    pthread_mutex_unlock(&p->lock);
    while (!list_empty(&finished)) {
        struct block_request *r = LIST_ENTRY(finished.next, struct block_request, link);
        list_remove(&r->link);
        block_file_end(p->file, r);
    }
}

static void finished_rung(void *arg, uint32_t events UNUSED)
{
    struct pool *p = arg;
    uint64_t count;
    ssize_t n UNUSED = read(p->finished_fd, &count, sizeof count);
    complete_finished(p);
}

static void threads_drain(struct block_file *f)
{
    struct pool *p = f->engine_state;
    while (f->block.in_flight > 0) {
        pthread_mutex_lock(&p->lock);
        while (list_empty(&p->finished))
            pthread_cond_wait(&p->idle, &p->lock);
        pthread_mutex_unlock(&p->lock);
        complete_finished(p);
    }
    pthread_mutex_lock(&p->lock);
    while (p->hint_count > 0 || p->hinting > 0)
        pthread_cond_wait(&p->idle, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

static void threads_stop(struct block_file *f)
{
    struct pool *p = f->engine_state;
    pthread_mutex_lock(&p->lock);
    p->stopping = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < p->thread_count; i++)
        pthread_join(p->threads[i], NULL);
    ASSERT(p->running == 0 && p->hinting == 0 && list_empty(&p->waiting) && list_empty(&p->finished));
    io_loop_remove(f->loop, p->handler);
    close_fd(&p->finished_fd);
    pthread_cond_destroy(&p->work);
    pthread_cond_destroy(&p->idle);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

static int workers_start(struct pool *p, struct error *err)
{
    pthread_attr_t attr;
    sigset_t all, before;
    int code = 0;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, WORKER_STACK_BYTES);
    /* Signals are for the threads that expect them. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (unsigned i = 0; i < BLOCK_FILE_THREADS && code == 0; i++) {
        code = pthread_create(&p->threads[i], &attr, worker, p);
        if (code == 0) {
            pthread_setname_np(p->threads[i], "disk");
            p->thread_count++;
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return code == 0 ? 0 : error_errno(err, -code, "cannot start a disk thread");
}

static int threads_start(struct block_file *f, struct error *err)
{
    struct pool *p = NEW(struct pool);
    f->engine_state = p;
    p->file = f;
    list_init(&p->waiting);
    list_init(&p->finished);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->idle, NULL);
    p->finished_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (p->finished_fd < 0)
        return error_errno(err, -errno, "cannot create an eventfd");
    int code = io_loop_add(f->loop, p->finished_fd, EPOLLIN, finished_rung, p, &p->handler, err);
    return code < 0 ? code : workers_start(p, err);
}

const struct block_file_engine block_file_threads = {
    .start = threads_start, .submit = threads_submit, .will_read = threads_will_read, .drain = threads_drain, .stop = threads_stop};
