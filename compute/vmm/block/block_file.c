/* The raw file driver: opening, measuring and locking; the engines do the I/O (block_file.h). */
#include "compute/vmm/block/block_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "block/block_fd.h"
#include "common/log.h"
#include "compute/vmm/block/block_file_engine.h"

static struct block_file *of_block(struct block *b)
{
    return CONTAINER_OF(b, struct block_file, block);
}

/* ---- requests ---- */

static int file_submit(struct block *b, struct block_request *request)
{
    struct block_file *f = of_block(b);
    bool through_cache = request->op == BLOCK_FLUSH && f->direct_align == 0;
    if (through_cache && f->flushing != NULL) {
        list_append(&f->flushes, &request->link);
        return 0;
    }
    if (through_cache)
        f->flushing = request;
    f->engine->submit(f, request);
    return 0;
}

void block_file_begin(struct block_file_io *io, const struct block_file *f, struct block_request *request)
{
    block_file_io_begin(io, &f->block, request, f->direct_align);
    if (request->op == BLOCK_FLUSH && f->lost < 0) {
        io->ended = true;
        io->result = f->lost;
    }
}

/* @result: of fdatasync, through the page cache. */
static int file_lose(struct block_file *f, int result)
{
    if (f->lost == 0)
        log_error("disk-lost", "disk=%s error=\"%s: what was written to it and not flushed may be gone; no flush succeeds until it is opened anew\"",
                  f->name, strerror(-result));
    f->lost = -ENOTRECOVERABLE; /* whoever waits for something to change, such as room, would wait for ever */
    return f->lost;
}

/* The next round: all that came during the last one. */
static void flush_next(struct block_file *f)
{
    if (list_empty(&f->flushes))
        return;
    f->flushing = LIST_ENTRY(f->flushes.next, struct block_request, link);
    list_remove(&f->flushing->link);
    list_take(&f->riding, &f->flushes);
    f->engine->submit(f, f->flushing);
}

void block_file_end(struct block_file *f, struct block_request *request)
{
    struct list riders;
    list_init(&riders);
    if (request == f->flushing) {
        if (request->result < 0 && request->result != -EAGAIN)
            request->result = file_lose(f, request->result);
        list_take(&riders, &f->riding);
        f->flushing = NULL;
        flush_next(f);
    }
    int result = request->result;
    block_complete(&f->block, request);
    while (!list_empty(&riders)) {
        struct block_request *r = LIST_ENTRY(riders.next, struct block_request, link);
        list_remove(&r->link);
        r->result = result;
        block_complete(&f->block, r);
    }
}

/* From the page cache. Past it nothing is at hand. */
static int file_read_at_hand(struct block *b, const struct block_request *r)
{
    const struct block_file *f = of_block(b);
    if (f->direct_align != 0 || r->iovec_count > BLOCK_FILE_IOVECS_MAX || !block_may_submit(b))
        return -EAGAIN;
    ssize_t n = preadv2(f->fd, r->iovecs, (int)r->iovec_count, (off_t)r->offset, RWF_NOWAIT);
    return n >= 0 && (uint64_t)n == r->size ? 0 : -EAGAIN; /* an error is met again, and told, by who submits it */
}

/* Past the page cache there is nowhere to bring it to. */
static void file_will_read(struct block *b, uint64_t offset, uint64_t size)
{
    struct block_file *f = of_block(b);
    if (f->direct_align == 0 && f->engine->will_read != NULL && block_may_submit(b))
        f->engine->will_read(f, offset, size);
}

static void file_drain(struct block *b)
{
    of_block(b)->engine->drain(of_block(b));
}

static void file_plug(struct block *b, bool plugged)
{
    if (of_block(b)->engine->plug != NULL)
        of_block(b)->engine->plug(of_block(b), plugged);
}

static void file_close(struct block *b)
{
    struct block_file *f = of_block(b);
    f->engine->stop(f);
    block_fd_close(&f->fd);
    free(f->name);
    free(f);
}

static const struct block_ops file_ops;

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

/* What O_DIRECT asks of memory, offsets and sizes. We know to serve sectors of 512 bytes. */
static int fd_direct(int fd, const char *name, uint32_t *ret_align, struct error *err)
{
    struct statx st = {.stx_mask = 0};
    uint32_t memory = BLOCK_SECTOR_BYTES, offset = BLOCK_SECTOR_BYTES;
#ifdef STATX_DIOALIGN
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) == 0 && (st.stx_mask & STATX_DIOALIGN)) {
        memory = st.stx_dio_mem_align;
        offset = st.stx_dio_offset_align;
    }
#endif
    int flags = fcntl(fd, F_GETFL);
    if (offset > BLOCK_SECTOR_BYTES || memory > BLOCK_SECTOR_BYTES)
        return error_set_field(
            err, -EINVAL, ERROR_INVALID, "/direct",
            "disk %s takes direct I/O in units of %u bytes only, and a guest's sectors have %d; leave "
            "\"direct\" out",
            name, MAX(offset, memory), BLOCK_SECTOR_BYTES);
    if (offset == 0 || flags < 0 || fcntl(fd, F_SETFL, flags | O_DIRECT) < 0) /* last: a descriptor that is refused stays as it is */
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/direct",
                               "disk %s is on a file system without direct I/O; leave \"direct\" out", name);
    *ret_align = BLOCK_SECTOR_BYTES;
    return 0;
}

/* Is it a file server's? Such says only when it is written to that it is full, or that a call to it was given up: of what the page
 * cache has taken that is too late (block_file_engine.h), and past it the guest's write waits, or fails and is tried again. */
static bool fd_is_remote(int fd)
{
    struct statfs fs;
    return fstatfs(fd, &fs) == 0 && fs.f_type == NFS_SUPER_MAGIC;
}

int block_file_from_fd(int fd, const struct block_file_options *options, struct io_loop *loop,
                       struct block **ret_block, struct error *err)
{
    struct block measured = {
        .ops = &file_ops, .read_only = options->read_only, .can_discard = true, .can_write_zeroes = true};
    uint32_t align = 0;
    int code = fd_measure(fd, options->name, &measured, err);
    if (code == 0 && !options->unlocked)
        code = block_fd_lock(fd, options->name, options->read_only, err);
    if (code == 0 && options->direct)
        code = fd_direct(fd, options->name, &align, err);
    else if (code == 0 && !options->read_only && fd_is_remote(fd))
        (void)fd_direct(fd, options->name, &align, NULL); /* where it cannot, what is lost is told */
    if (code < 0)
        return code;
    struct block_file *f = NEW(struct block_file);
    f->block = measured;
    f->fd = fd;
    f->name = xstrdup(options->name);
    f->direct_align = align;
    f->loop = loop;
    f->uring = options->uring;
    f->engine = options->uring != NULL ? &block_file_uring : &block_file_threads;
    list_init(&f->riding);
    list_init(&f->flushes);
    code = f->engine->start(f, err);
    if (code < 0) {
        f->fd = -1;
        file_close(&f->block);
        return code;
    }
    *ret_block = &f->block;
    return 0;
}

int block_file_open(const char *path, const struct block_file_options *options, struct io_loop *loop,
                    struct block **ret_block, struct error *err)
{
    struct block_file_options named = *options;
    int fd = open(path, (options->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, -errno, "cannot open disk %s", path);
    if (named.name == NULL)
        named.name = path;
    int code = block_file_from_fd(fd, &named, loop, ret_block, err);
    if (code < 0)
        close(fd);
    return code;
}

static int file_grow(struct block *b, uint64_t size_bytes, struct error *err)
{
    struct block_file *f = of_block(b);
    struct block now = {.size_bytes = 0};
    int code = fd_measure(f->fd, "file", &now, err);
    if (code == 0 && now.size_bytes < size_bytes && ftruncate(f->fd, (off_t)size_bytes) < 0) {
        code = errno == EINVAL ? error_set_field(err, -EINVAL, ERROR_CONFLICT, "/size_bytes",
                                                 "its block device has %llu bytes only; enlarge that first",
                                                 (unsigned long long)now.size_bytes)
                               : error_errno(err, -errno, "cannot enlarge the disk");
    }
    if (code == 0)
        b->size_bytes = size_bytes;
    return code;
}

static int file_next_data(struct block *b, uint64_t from, uint64_t *ret_start, uint64_t *ret_end)
{
    return block_fd_next_data(of_block(b)->fd, b->size_bytes, from, ret_start, ret_end);
}

static int file_own(struct block *b, bool own, struct error *err)
{
    struct block_file *f = of_block(b);
    if (own)
        return block_fd_lock(f->fd, f->name, b->read_only, err);
    int r = b->read_only ? 0 : f->lost;
    if (r == 0 && !b->read_only && fdatasync(f->fd) < 0)
        r = f->direct_align == 0 ? file_lose(f, -errno) : -errno;
    return r < 0 ? error_errno(err, r, "cannot write disk %s", f->name) : block_fd_unlock(f->fd, f->name, err);
}

static void file_share(struct block *b)
{
    block_fd_share(of_block(b)->fd);
}

static const struct block_ops file_ops = {.submit = file_submit,
                                          .read_at_hand = file_read_at_hand,
                                          .will_read = file_will_read,
                                          .drain = file_drain,
                                          .plug = file_plug,
                                          .own = file_own,
                                          .close = file_close,
                                          .grow = file_grow,
                                          .next_data = file_next_data,
                                          .share = file_share};
