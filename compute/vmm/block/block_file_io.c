/* Requests as system calls: see block_file_io.h. */
#include "compute/vmm/block/block_file_io.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>

enum zeroes_stage { ZEROES_HOLE, ZEROES_RANGE, ZEROES_WRITTEN };
enum { PAGE_BYTES = 4096 };

static bool is_transfer(const struct block_file_io *io)
{
    return io->request->op == BLOCK_READ || io->request->op == BLOCK_WRITE;
}

void block_file_io_begin(struct block_file_io *io, const struct block *block, struct block_request *request, uint32_t direct_align)
{
    *io = (struct block_file_io){.block = block, .request = request, .direct_mask = direct_align == 0 ? 0 : direct_align - 1};
    if (request->op == BLOCK_WRITE_ZEROES && !request->may_unmap)
        io->stage = ZEROES_RANGE;
    for (unsigned i = 0; i < request->iovec_count && io->direct_mask != 0 && is_transfer(io); i++)
        if ((((uintptr_t)request->iovecs[i].iov_base | request->iovecs[i].iov_len) & io->direct_mask) != 0) {
            size_t piece = (size_t)MIN(request->size, (uint64_t)BLOCK_FILE_BOUNCE_BYTES);
            io->bounce = aligned_alloc(PAGE_BYTES, (piece + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES);
            io->ended = io->bounce == NULL;
            io->result = io->ended ? -ENOMEM : 0;
            return;
        }
}

void block_file_io_end(struct block_file_io *io)
{
    free(io->bounce);
    io->bounce = NULL;
}

/* Copy between the bounce buffer and the request's memory from `moved` on. */
static void bounce_copy(struct block_file_io *io, size_t size, bool to_request)
{
    const struct block_request *r = io->request;
    uint64_t skip = io->moved;
    uint8_t *buffer = io->bounce;
    for (unsigned i = 0; i < r->iovec_count && size > 0; i++) {
        if (skip >= r->iovecs[i].iov_len) {
            skip -= r->iovecs[i].iov_len;
            continue;
        }
        uint8_t *memory = (uint8_t *)r->iovecs[i].iov_base + skip;
        size_t n = MIN(size, r->iovecs[i].iov_len - (size_t)skip);
        memcpy(to_request ? memory : buffer, to_request ? buffer : memory, n);
        buffer += n;
        size -= n;
        skip = 0;
    }
}

static void transfer_next(struct block_file_io *io, struct block_file_call *call)
{
    const struct block_request *r = io->request;
    uint64_t skip = io->moved;
    unsigned i = 0;
    call->kind = r->op == BLOCK_READ ? BLOCK_FILE_READV : BLOCK_FILE_WRITEV;
    call->offset = r->offset + io->moved;
    call->iovecs = &io->piece;
    call->iovec_count = 1;
    if (io->bounce != NULL) {
        io->piece = (struct iovec){io->bounce, (size_t)MIN(r->size - io->moved, (uint64_t)BLOCK_FILE_BOUNCE_BYTES)};
        if (r->op == BLOCK_WRITE)
            bounce_copy(io, io->piece.iov_len, false);
        return;
    }
    while (skip >= r->iovecs[i].iov_len)
        skip -= r->iovecs[i++].iov_len;
    if (skip > 0) { /* the rest of a segment, alone */
        io->piece = (struct iovec){(uint8_t *)r->iovecs[i].iov_base + skip, r->iovecs[i].iov_len - skip};
        return;
    }
    call->iovecs = r->iovecs + i;
    call->iovec_count = MIN(r->iovec_count - i, (unsigned)BLOCK_FILE_IOVECS_MAX);
}

static void zeroes_next(struct block_file_io *io, struct block_file_call *call)
{
    static const uint8_t zeroes[BLOCK_FILE_BOUNCE_BYTES] __attribute__((aligned(4096)));
    const struct block_request *r = io->request;
    call->offset = r->offset + io->moved;
    call->size = r->size;
    call->kind = BLOCK_FILE_ALLOCATE;
    call->mode = (io->stage == ZEROES_HOLE ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) | FALLOC_FL_KEEP_SIZE;
    if (io->stage != ZEROES_WRITTEN)
        return;
    io->piece = (struct iovec){(void *)(uintptr_t)zeroes, (size_t)MIN(r->size - io->moved, sizeof zeroes)};
    call->kind = BLOCK_FILE_WRITEV;
    call->iovecs = &io->piece;
    call->iovec_count = 1;
}

bool block_file_call_next(struct block_file_io *io, struct block_file_call *ret_call)
{
    struct block_request *r = io->request;
    if (io->ended)
        return false;
    if (!block_may_submit(io->block)) {
        io->ended = true;
        io->result = -EAGAIN;
        return false;
    }
    *ret_call = (struct block_file_call){.offset = r->offset, .size = r->size};
    switch (r->op) {
    case BLOCK_READ:
    case BLOCK_WRITE:
        transfer_next(io, ret_call);
        break;
    case BLOCK_FLUSH:
        ret_call->kind = BLOCK_FILE_SYNC;
        break;
    case BLOCK_DISCARD:
        ret_call->kind = BLOCK_FILE_ALLOCATE;
        ret_call->mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
        break;
    case BLOCK_WRITE_ZEROES:
        zeroes_next(io, ret_call);
        break;
    case BLOCK_OPS:
        io->ended = true;
        io->result = -EOPNOTSUPP;
        return false;
    }
    return true;
}

static void end_with(struct block_file_io *io, int result)
{
    io->ended = true;
    /* -EAGAIN is the fail-stop hook's word alone: a device keeps the request for it. */
    io->result = result == -EAGAIN ? -EIO : result;
}

static void moved(struct block_file_io *io, ssize_t n)
{
    /* Direct I/O that stops within a sector cannot be taken up there again. */
    if (io->direct_mask != 0)
        n &= ~(ssize_t)(BLOCK_SECTOR_BYTES - 1);
    if (n == 0) {
        end_with(io, -EIO);
        return;
    }
    if (io->bounce != NULL && io->request->op == BLOCK_READ)
        bounce_copy(io, (size_t)n, true);
    io->moved += (uint64_t)n;
    io->tries = 0;
    if (io->moved == io->request->size)
        end_with(io, 0);
}

void block_file_call_returned(struct block_file_io *io, const struct block_file_call *call, ssize_t result)
{
    bool is_unknown = result == -EOPNOTSUPP || result == -ENOSYS || result == -ENODEV;
    bool moves = call->kind == BLOCK_FILE_READV || call->kind == BLOCK_FILE_WRITEV;
    if (result == -EINTR || result == -ECANCELED || (result == -EAGAIN && io->tries++ < BLOCK_FILE_TRIES_MAX))
        return; /* the same again */
    if (result >= 0 && moves)
        moved(io, result);
    else if (result < 0 && is_unknown && call->kind == BLOCK_FILE_ALLOCATE && io->request->op == BLOCK_DISCARD)
        end_with(io, 0);
    else if (result < 0 && is_unknown && call->kind == BLOCK_FILE_ALLOCATE)
        io->stage++;
    else
        end_with(io, (int)result);
}

ssize_t block_file_call_perform(int fd, const struct block_file_call *call)
{
    ssize_t n = -1;
    switch (call->kind) {
    case BLOCK_FILE_READV:
        n = preadv(fd, call->iovecs, (int)call->iovec_count, (off_t)call->offset);
        break;
    case BLOCK_FILE_WRITEV:
        n = pwritev(fd, call->iovecs, (int)call->iovec_count, (off_t)call->offset);
        break;
    case BLOCK_FILE_SYNC:
        n = fdatasync(fd);
        break;
    case BLOCK_FILE_ALLOCATE:
        n = fallocate(fd, call->mode, (off_t)call->offset, (off_t)call->size);
        break;
    }
    return n < 0 ? -errno : n;
}
