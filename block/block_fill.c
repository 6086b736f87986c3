/* Several pieces at a time; see the header. */
#include "block/block_fill.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/sparse_file.h"

enum { PIECE_BYTES = 1 << 20, PIECES = 16 };

struct fill;

struct piece {
    struct block_request request;
    struct iovec iovec;
    struct fill *of;
    unsigned char *data; /* PIECE_BYTES */
};

struct fill {
    struct block *to;
    int fd;
    uint64_t size_bytes; /* of the file */
    struct piece pieces[PIECES];
    unsigned count; /* of those submitted since the last look */
    int result;     /* the first that failed */
};

static void piece_done(struct block_request *request, int result)
{
    struct piece *p = CONTAINER_OF(request, struct piece, request);
    if (result < 0 && p->of->result == 0)
        p->of->result = result;
}

/* @size bytes at @offset; past the end of the file there are zeroes. */
static int read_all(int fd, unsigned char *data, size_t size, uint64_t offset)
{
    for (size_t got = 0; got < size;) {
        ssize_t n = pread(fd, data + got, size - got, (off_t)(offset + got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0) {
            memset(data + got, 0, size - got);
            break;
        }
        got += (size_t)n;
    }
    return 0;
}

static int piece_begin(struct fill *f, uint64_t offset, size_t size, struct error *err)
{
    struct piece *p = &f->pieces[f->count];
    if (p->data == NULL)
        p->data = xcalloc(1, PIECE_BYTES);
    int r = read_all(f->fd, p->data, size, offset);
    if (r < 0)
        return error_errno(err, r, "cannot read what the disk is to be filled with");
    if (sparse_file_is_zero(p->data, size))
        return 0;
    p->of = f;
    p->iovec = (struct iovec){.iov_base = p->data, .iov_len = size};
    p->request = (struct block_request){
        .op = BLOCK_WRITE, .offset = offset, .size = size, .iovecs = &p->iovec, .iovec_count = 1, .done = piece_done};
    r = block_submit(f->to, &p->request);
    if (r < 0)
        return error_errno(err, r, "cannot write to the disk");
    f->count++;
    return 0;
}

static int pieces_end(struct fill *f, struct error *err)
{
    block_drain(f->to);
    f->count = 0;
    return f->result < 0 ? error_errno(err, f->result, "cannot write to the disk") : 0;
}

static int tell(const struct fill *f, const struct block_fill_listener *listener, uint64_t at, struct error *err)
{
    int r = listener != NULL ? listener->progress(MIN(at, f->size_bytes), f->size_bytes, listener->arg) : 0;
    return r < 0 ? error_errno(err, r, "not all of the disk is filled") : 0;
}

static int run(struct fill *f, const struct block_fill_listener *listener, struct error *err)
{
    uint64_t begin = 0, end = 0;
    int r = 0;
    for (uint64_t at = 0; r == 0 && at < f->size_bytes;) {
        if (at >= end) {
            r = sparse_file_next(f->fd, at, f->size_bytes, &begin, &end);
            if (r < 0)
                return error_errno(err, r, "cannot read what the disk is to be filled with");
            at = MAX(at, begin / BLOCK_SECTOR_BYTES * BLOCK_SECTOR_BYTES);
            continue;
        }
        size_t size = (size_t)MIN(end - at, PIECE_BYTES - at % PIECE_BYTES);
        size = (size + BLOCK_SECTOR_BYTES - 1) / BLOCK_SECTOR_BYTES * BLOCK_SECTOR_BYTES;
        r = piece_begin(f, at, size, err);
        at += size;
        bool rests = f->count == PIECES || at % ((uint64_t)PIECES * PIECE_BYTES) == 0;
        if (r == 0 && rests && (r = pieces_end(f, err)) == 0)
            r = tell(f, listener, at, err);
    }
    return r;
}

int block_fill(struct block *to, int fd, const struct block_fill_listener *listener, struct error *err)
{
    struct fill f = {.to = to, .fd = fd};
    struct error late;
    struct stat st;
    if (fstat(fd, &st) < 0)
        return error_errno(err, -errno, "cannot look at what the disk is to be filled with");
    f.size_bytes = (uint64_t)st.st_size;
    if (f.size_bytes > to->size_bytes)
        return error_set(err, -EFBIG, ERROR_INVALID, "the disk has %llu bytes, less than the %llu that it is to be filled with",
                         (unsigned long long)to->size_bytes, (unsigned long long)f.size_bytes);
    int r = run(&f, listener, err);
    int ended = pieces_end(&f, r < 0 ? &late : err);
    if (r == 0 && (r = ended) == 0)
        r = tell(&f, listener, f.size_bytes, err);
    for (unsigned i = 0; i < PIECES; i++)
        free(f.pieces[i].data);
    return r;
}
