/* A file by blocking calls: see block_sync.h. */
#include "block/block_sync.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/stat.h>

#include "block/block_fd.h"

struct block_sync {
    struct block block;
    int fd;
    uint64_t file_bytes; /* as opened */
    int lost; /* a FLUSH has failed with it; 0: none has */
    struct list waiting; /* struct block_request */
};

static struct block_sync *of_block(struct block *b)
{
    return CONTAINER_OF(b, struct block_sync, block);
}

/* Asks may_submit before each call. Short transfers go on; behind the end of a file of odd size there are zeroes. */
static int piece_transfer(const struct block_sync *s, bool is_read, uint64_t offset, uint8_t *at, size_t size)
{
    while (size > 0) {
        if (!block_may_submit(&s->block))
            return -EAGAIN;
        ssize_t n = is_read ? pread(s->fd, at, size, (off_t)offset) : pwrite(s->fd, at, size, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0) {
            if (!is_read || offset < s->file_bytes || offset + size > s->block.size_bytes)
                return -EIO;
            memset(at, 0, size);
            return 0;
        }
        offset += (uint64_t)n;
        at += n;
        size -= (size_t)n;
    }
    return 0;
}

static int transfer(const struct block_sync *s, const struct block_request *r)
{
    uint64_t offset = r->offset;
    int code = 0;
    for (unsigned i = 0; i < r->iovec_count && code == 0; i++) {
        code = piece_transfer(s, r->op == BLOCK_READ, offset, r->iovecs[i].iov_base, r->iovecs[i].iov_len);
        offset += r->iovecs[i].iov_len;
    }
    return code;
}

static int zeroes_write(const struct block_sync *s, uint64_t offset, uint64_t size)
{
    static const uint8_t zeroes[65536];
    int code = 0;
    while (size > 0 && code == 0) {
        size_t n = (size_t)MIN(size, sizeof zeroes);
        code = piece_transfer(s, false, offset, (uint8_t *)(uintptr_t)zeroes, n);
        offset += n;
        size -= n;
    }
    return code;
}

/* What the kernel could not write is not dirty any more: tried again it would say that all is well. */
static int flush(struct block_sync *s)
{
    if (s->lost == 0 && fdatasync(s->fd) < 0)
        s->lost = -errno;
    return s->lost;
}

static int perform(struct block_sync *s, const struct block_request *r)
{
    bool punched;
    if (!block_may_submit(&s->block))
        return -EAGAIN;
    switch (r->op) {
    case BLOCK_READ:
    case BLOCK_WRITE:
        return transfer(s, r);
    case BLOCK_FLUSH:
        return flush(s);
    case BLOCK_DISCARD:
    case BLOCK_WRITE_ZEROES:
        punched = fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)r->offset, (off_t)r->size) == 0;
        if (punched || (r->op == BLOCK_DISCARD && errno == EOPNOTSUPP))
            return 0;
        return errno == EOPNOTSUPP ? zeroes_write(s, r->offset, r->size) : -errno;
    case BLOCK_OPS:
        break;
    }
    return -EOPNOTSUPP;
}

static int sync_submit(struct block *b, struct block_request *request)
{
    list_append(&of_block(b)->waiting, &request->link);
    return 0;
}

static void sync_drain(struct block *b)
{
    struct block_sync *s = of_block(b);
    while (!list_empty(&s->waiting)) {
        struct block_request *r = LIST_ENTRY(s->waiting.next, struct block_request, link);
        list_remove(&r->link);
        r->result = perform(s, r);
        block_complete(b, r);
    }
}

static void sync_close(struct block *b)
{
    block_fd_close(&of_block(b)->fd);
    free(of_block(b));
}

static int sync_grow(struct block *b, uint64_t size_bytes, struct error *err)
{
    struct block_sync *s = of_block(b);
    struct stat st;
    if (fstat(s->fd, &st) < 0 || ((uint64_t)st.st_size < size_bytes && ftruncate(s->fd, (off_t)size_bytes) < 0))
        return error_errno(err, -errno, "cannot enlarge the file");
    b->size_bytes = size_bytes;
    return 0;
}

static int sync_next_data(struct block *b, uint64_t from, uint64_t *ret_start, uint64_t *ret_end)
{
    return block_fd_next_data(of_block(b)->fd, b->size_bytes, from, ret_start, ret_end);
}

static void sync_share(struct block *b)
{
    block_fd_share(of_block(b)->fd);
}

int block_sync_from_fd(int fd, const char *name, bool read_only, struct block **ret_block, struct error *err)
{
    static const struct block_ops ops = {.submit = sync_submit,
                                         .drain = sync_drain,
                                         .close = sync_close,
                                         .grow = sync_grow,
                                         .next_data = sync_next_data,
                                         .share = sync_share};
    struct stat st;
    if (fstat(fd, &st) < 0)
        return error_errno(err, -errno, "cannot look at %s", name);
    if (!S_ISREG(st.st_mode) || st.st_size == 0 || (!read_only && st.st_size % BLOCK_SECTOR_BYTES != 0))
        return error_set(err, -EINVAL, ERROR_INVALID, "%s is no file whose size is a multiple of %d", name,
                         BLOCK_SECTOR_BYTES);
    struct block_sync *s = NEW(struct block_sync);
    uint64_t sectors = ((uint64_t)st.st_size + BLOCK_SECTOR_BYTES - 1) / BLOCK_SECTOR_BYTES;
    s->block = (struct block){.ops = &ops,
                              .size_bytes = sectors * BLOCK_SECTOR_BYTES,
                              .block_bytes = 4096,
                              .read_only = read_only,
                              .can_discard = true,
                              .can_write_zeroes = true};
    s->fd = fd;
    s->file_bytes = (uint64_t)st.st_size;
    list_init(&s->waiting);
    *ret_block = &s->block;
    return 0;
}
