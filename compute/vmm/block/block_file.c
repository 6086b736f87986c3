/* The raw file driver: see block_file.h for its course and failures.
 *
 * Lists and counters are under `lock`; a request belongs to the worker between waiting and finished, to the I/O loop
 * from finished on. Workers never take the device lock, so that drain may wait for them while holding it. */
#include "compute/vmm/block/block_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

enum {
    WORKER_STACK_BYTES = 64 * 1024,
    ZERO_BYTES = 64 * 1024, /* written at a time where zeroes must be written */
    IOVECS_AT_ONCE = 128,   /* copied to the stack, to advance in them */
};

struct block_file {
    struct block block;
    int fd;
    struct io_loop *loop;
    struct io_handler *handler;
    int finished_fd; /* eventfd: the finished list has something */

    pthread_mutex_t lock;
    pthread_cond_t work; /* waiting has something, or stopping */
    pthread_cond_t idle; /* a worker finished a request */
    struct list waiting; /* struct block_request */
    struct list finished;
    unsigned running; /* requests that a worker holds */
    bool stopping;
    unsigned thread_count;
    pthread_t threads[BLOCK_FILE_THREADS];
};

/* ---- on the workers ---- */

/* preadv/pwritev until all is moved: the kernel may stop short (signals, 2 GiB, end of file). */
static int transfer(int fd, const struct block_request *r)
{
    bool is_write = r->op == BLOCK_WRITE;
    struct iovec iovecs[IOVECS_AT_ONCE];
    uint64_t offset = r->offset;
    for (unsigned next = 0; next < r->iovec_count;) {
        unsigned count = MIN(r->iovec_count - next, (unsigned)IOVECS_AT_ONCE);
        memcpy(iovecs, r->iovecs + next, count * sizeof *iovecs);
        next += count;
        for (struct iovec *at = iovecs; count > 0;) {
            ssize_t n =
                is_write ? pwritev(fd, at, (int)count, (off_t)offset) : preadv(fd, at, (int)count, (off_t)offset);
            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0)
                return n < 0 ? -errno : -EIO; /* 0: the file is shorter than when it was opened */
            offset += (uint64_t)n;
            for (; count > 0 && (size_t)n >= at->iov_len; at++, count--)
                n -= (ssize_t)at->iov_len;
            if (count > 0) {
                at->iov_base = (uint8_t *)at->iov_base + n;
                at->iov_len -= (size_t)n;
            }
        }
    }
    return 0;
}

static int punch(int fd, int mode, uint64_t offset, uint64_t size)
{
    int code;
    do
        code = fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)size);
    while (code < 0 && errno == EINTR);
    return code < 0 ? -errno : 0;
}

static int write_zeroes(int fd, const struct block_request *r)
{
    static const uint8_t zeroes[ZERO_BYTES];
    if (r->may_unmap && punch(fd, FALLOC_FL_PUNCH_HOLE, r->offset, r->size) == 0)
        return 0;
    if (punch(fd, FALLOC_FL_ZERO_RANGE, r->offset, r->size) == 0)
        return 0;
    for (uint64_t done = 0; done < r->size;) {
        ssize_t n = pwrite(fd, zeroes, (size_t)MIN(r->size - done, (uint64_t)ZERO_BYTES), (off_t)(r->offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        done += (uint64_t)n;
    }
    return 0;
}

static int discard(int fd, const struct block_request *r)
{
    int code = punch(fd, FALLOC_FL_PUNCH_HOLE, r->offset, r->size);
    return code == -EOPNOTSUPP || code == -ENOSYS ? 0 : code;
}

static int perform(const struct block_file *f, const struct block_request *r)
{
    switch (r->op) {
    case BLOCK_READ:
    case BLOCK_WRITE:
        return transfer(f->fd, r);
    case BLOCK_FLUSH:
        return fdatasync(f->fd) < 0 ? -errno : 0;
    case BLOCK_DISCARD:
        return discard(f->fd, r);
    case BLOCK_WRITE_ZEROES:
        return write_zeroes(f->fd, r);
    case BLOCK_OPS:
        break;
    }
    return -EOPNOTSUPP;
}

static void *worker(void *arg)
{
    struct block_file *f = arg;
    pthread_mutex_lock(&f->lock);
    for (;;) {
        while (list_empty(&f->waiting) && !f->stopping)
            pthread_cond_wait(&f->work, &f->lock);
        if (list_empty(&f->waiting))
            break;
        struct block_request *r = LIST_ENTRY(f->waiting.next, struct block_request, link);
        list_remove(&r->link);
        f->running++;
        pthread_mutex_unlock(&f->lock);
        int result = -EAGAIN; /* of the fail-stop hook alone: a device keeps the request for it */
        if (block_may_submit(&f->block)) {
            result = perform(f, r);
            result = result == -EAGAIN ? -EIO : result;
        }
        pthread_mutex_lock(&f->lock);
        r->result = result;
        f->running--;
        bool first = list_empty(&f->finished);
        list_append(&f->finished, &r->link);
        pthread_cond_signal(&f->idle);
        uint64_t one = 1;
        if (first && write(f->finished_fd, &one, sizeof one) < 0)
            ASSERT(errno == EAGAIN); /* the counter is full: it is readable already */
    }
    pthread_mutex_unlock(&f->lock);
    return NULL;
}

/* ---- with the device lock held ---- */

static int file_submit(struct block *b, struct block_request *request)
{
    struct block_file *f = CONTAINER_OF(b, struct block_file, block);
    pthread_mutex_lock(&f->lock);
    list_append(&f->waiting, &request->link);
    pthread_cond_signal(&f->work);
    pthread_mutex_unlock(&f->lock);
    return 0;
}

/* From a local list: done may submit more. */
static void complete_finished(struct block_file *f)
{
    struct list finished;
    list_init(&finished);
    pthread_mutex_lock(&f->lock);
    list_take(&finished, &f->finished);
    pthread_mutex_unlock(&f->lock);
    while (!list_empty(&finished)) {
        struct block_request *r = LIST_ENTRY(finished.next, struct block_request, link);
        list_remove(&r->link);
        block_complete(&f->block, r);
    }
}

static void finished_rung(void *arg, uint32_t events UNUSED)
{
    struct block_file *f = arg;
    uint64_t count;
    ssize_t n UNUSED = read(f->finished_fd, &count, sizeof count);
    complete_finished(f);
}

static void file_drain(struct block *b)
{
    struct block_file *f = CONTAINER_OF(b, struct block_file, block);
    while (b->in_flight > 0) {
        pthread_mutex_lock(&f->lock);
        while (list_empty(&f->finished))
            pthread_cond_wait(&f->idle, &f->lock);
        pthread_mutex_unlock(&f->lock);
        complete_finished(f);
    }
}

static void file_close(struct block *b)
{
    struct block_file *f = CONTAINER_OF(b, struct block_file, block);
    pthread_mutex_lock(&f->lock);
    f->stopping = true;
    pthread_cond_broadcast(&f->work);
    pthread_mutex_unlock(&f->lock);
    for (unsigned i = 0; i < f->thread_count; i++)
        pthread_join(f->threads[i], NULL);
    ASSERT(f->running == 0 && list_empty(&f->waiting) && list_empty(&f->finished));
    io_loop_remove(f->loop, f->handler);
    close_fd(&f->finished_fd);
    close_fd(&f->fd);
    pthread_cond_destroy(&f->work);
    pthread_cond_destroy(&f->idle);
    pthread_mutex_destroy(&f->lock);
    free(f);
}

static const struct block_ops file_ops = {.submit = file_submit, .drain = file_drain, .close = file_close};

/* ---- opening ---- */

static int fd_measure(int fd, const char *name, struct block *b, struct error *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return error_errno(err, -errno, "cannot look at disk %s", name);
    uint64_t size = (uint64_t)st.st_size;
    uint32_t best = (uint32_t)st.st_blksize;
    if (S_ISBLK(st.st_mode)) {
        unsigned physical = 0;
        if (ioctl(fd, BLKGETSIZE64, &size) < 0)
            return error_errno(err, -errno, "cannot read the size of disk %s", name);
        if (ioctl(fd, BLKPBSZGET, &physical) == 0)
            best = physical;
    } else if (!S_ISREG(st.st_mode)) {
        return error_set(err, -EINVAL, ERROR_INVALID, "disk %s is neither a file nor a block device", name);
    }
    if (size == 0)
        return error_set(err, -EINVAL, ERROR_INVALID, "disk %s is empty; give it a size first", name);
    if (size % BLOCK_SECTOR_BYTES != 0)
        return error_set(err, -EINVAL, ERROR_INVALID,
                         "disk %s has %llu bytes, which is no multiple of %d; enlarge it (truncate -s %%512)", name,
                         (unsigned long long)size, BLOCK_SECTOR_BYTES);
    bool usable = best >= BLOCK_SECTOR_BYTES && best <= 65536 && (best & (best - 1)) == 0;
    b->size_bytes = size;
    b->block_bytes = usable ? best : BLOCK_SECTOR_BYTES;
    return 0;
}

/* Two processes on one disk would ruin it: readers share an OFD lock, a writer has it alone. */
static int fd_lock(int fd, const char *name, bool read_only, struct error *err)
{
    struct flock lock = {.l_type = read_only ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
        return 0;
    if (errno == EAGAIN || errno == EACCES)
        return error_set(err, -EBUSY, ERROR_IN_USE, "disk %s is in use by another process", name);
    return error_errno(err, -errno, "cannot lock disk %s", name);
}

static int threads_start(struct block_file *f, struct error *err)
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
        code = pthread_create(&f->threads[i], &attr, worker, f);
        if (code == 0) {
            pthread_setname_np(f->threads[i], "disk");
            f->thread_count++;
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return code == 0 ? 0 : error_errno(err, -code, "cannot start a disk thread");
}

int block_file_from_fd(int fd, const char *name, bool read_only, struct io_loop *loop, struct block **ret_block,
                       struct error *err)
{
    struct block measured = {.ops = &file_ops, .read_only = read_only, .can_discard = true, .can_write_zeroes = true};
    int code = fd_measure(fd, name, &measured, err);
    if (code == 0)
        code = fd_lock(fd, name, read_only, err);
    if (code < 0)
        return code;
    struct block_file *f = NEW(struct block_file);
    f->block = measured;
    f->fd = -1;
    f->loop = loop;
    list_init(&f->waiting);
    list_init(&f->finished);
    pthread_mutex_init(&f->lock, NULL);
    pthread_cond_init(&f->work, NULL);
    pthread_cond_init(&f->idle, NULL);
    f->finished_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (f->finished_fd < 0)
        code = error_errno(err, -errno, "cannot create an eventfd");
    if (code == 0)
        code = io_loop_add(loop, f->finished_fd, EPOLLIN, finished_rung, f, &f->handler, err);
    if (code == 0)
        code = threads_start(f, err);
    if (code < 0) {
        file_close(&f->block);
        return code;
    }
    f->fd = fd;
    *ret_block = &f->block;
    return 0;
}

int block_file_open(const char *path, bool read_only, struct io_loop *loop, struct block **ret_block,
                    struct error *err)
{
    int fd = open(path, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, -errno, "cannot open disk %s", path);
    int code = block_file_from_fd(fd, path, read_only, loop, ret_block, err);
    if (code < 0)
        close(fd);
    return code;
}
