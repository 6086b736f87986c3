/* The common door to every disk: see block.h. */
#include "block/block.h"

#include <errno.h>

bool block_may_submit(const struct block *b)
{
    return b->may_submit == NULL || b->may_submit(b->may_submit_arg);
}

static uint64_t iovecs_bytes(const struct block_request *r)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < r->iovec_count; i++)
        sum += r->iovecs[i].iov_len;
    return sum;
}

unsigned block_iovecs_slice(const struct iovec *from, unsigned count, uint64_t skip, uint64_t size, struct iovec *to)
{
    unsigned used = 0;
    for (unsigned i = 0; i < count && size > 0; i++) {
        if (skip >= from[i].iov_len) {
            skip -= from[i].iov_len;
            continue;
        }
        size_t piece = (size_t)MIN(size, from[i].iov_len - skip);
        to[used++] = (struct iovec){(uint8_t *)from[i].iov_base + skip, piece};
        size -= piece;
        skip = 0;
    }
    return used;
}

static int request_check(const struct block *b, const struct block_request *r)
{
    if (r->op >= BLOCK_OPS)
        return -EOPNOTSUPP;
    if (r->op == BLOCK_FLUSH)
        return 0;
    if (r->op != BLOCK_READ && b->read_only)
        return -EROFS;
    if ((r->op == BLOCK_DISCARD && !b->can_discard) || (r->op == BLOCK_WRITE_ZEROES && !b->can_write_zeroes))
        return -EOPNOTSUPP;
    if (r->offset % BLOCK_SECTOR_BYTES != 0 || r->size % BLOCK_SECTOR_BYTES != 0 || r->size == 0)
        return -EINVAL;
    if (r->offset > b->size_bytes || r->size > b->size_bytes - r->offset)
        return -ERANGE;
    bool carries_data = r->op == BLOCK_READ || r->op == BLOCK_WRITE;
    if (carries_data && (r->size > BLOCK_REQUEST_BYTES_MAX || iovecs_bytes(r) != r->size))
        return -EINVAL;
    return 0;
}

int block_submit(struct block *b, struct block_request *request)
{
    int code = request_check(b, request);
    if (code < 0)
        return code;
    if (b->changes != NULL && request->op != BLOCK_READ && request->op != BLOCK_FLUSH)
        b->changes(b->changes_arg, request->offset, request->size);
    b->in_flight++;
    code = b->ops->submit(b, request);
    if (code < 0)
        b->in_flight--;
    return code;
}

int block_read_at_hand(struct block *b, const struct block_request *request)
{
    int code = request_check(b, request);
    if (code < 0)
        return code;
    return request->op == BLOCK_READ && b->ops->read_at_hand != NULL ? b->ops->read_at_hand(b, request) : -EAGAIN;
}

int block_read_likely(struct block *b, const struct block_request *request)
{
    if (b->untried > 0) {
        b->untried--;
        return -EAGAIN;
    }
    int code = block_read_at_hand(b, request);
    b->misses = code == 0 ? 0 : MIN(b->misses * 2 + 1, (unsigned)BLOCK_UNTRIED_MAX);
    b->untried = b->misses;
    return code;
}

void block_will_read(struct block *b, uint64_t offset, uint64_t size)
{
    bool within = offset <= b->size_bytes && size <= b->size_bytes - offset;
    if (b->ops->will_read != NULL && within && size > 0)
        b->ops->will_read(b, offset, size);
}

void block_complete(struct block *b, struct block_request *request)
{
    ASSERT(b->in_flight > 0);
    b->in_flight--;
    request->done(request, request->result);
}

void block_plug(struct block *b)
{
    if (b->ops->plug != NULL)
        b->ops->plug(b, true);
}

void block_unplug(struct block *b)
{
    if (b->ops->plug != NULL)
        b->ops->plug(b, false);
}

void block_drain(struct block *b)
{
    b->ops->drain(b);
    ASSERT(b->in_flight == 0);
}

int block_grow(struct block *b, uint64_t size_bytes, struct error *err)
{
    if (size_bytes % BLOCK_SECTOR_BYTES != 0)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/size_bytes", "the size must be a multiple of %d bytes",
                               BLOCK_SECTOR_BYTES);
    if (size_bytes < b->size_bytes)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/size_bytes",
                               "a disk only grows; it has %llu bytes already", (unsigned long long)b->size_bytes);
    if (b->ops->grow == NULL)
        return error_set_field(err, -EOPNOTSUPP, ERROR_NOT_SUPPORTED, "/size_bytes", "this disk cannot grow");
    return size_bytes == b->size_bytes ? 0 : b->ops->grow(b, size_bytes, err);
}

int block_next_data(struct block *b, uint64_t from, uint64_t *ret_start, uint64_t *ret_end)
{
    if (from >= b->size_bytes)
        return 0;
    if (b->ops->next_data != NULL)
        return b->ops->next_data(b, from, ret_start, ret_end);
    *ret_start = from;
    *ret_end = b->size_bytes;
    return 1;
}

void block_share(struct block *b)
{
    ASSERT(b->in_flight == 0);
    if (b->ops->share != NULL)
        b->ops->share(b);
    b->read_only = true;
}

struct now {
    struct block_request request;
    bool ended;
};

static void now_done(struct block_request *request, int result UNUSED)
{
    CONTAINER_OF(request, struct now, request)->ended = true;
}

int block_now(struct block *b, enum block_op op, uint64_t offset, void *buffer, size_t size)
{
    struct iovec iovec = {buffer, size};
    struct now now = {.request = {.op = op, .may_unmap = true, .offset = offset, .size = size, .done = now_done}};
    if (buffer != NULL) {
        now.request.iovecs = &iovec;
        now.request.iovec_count = 1;
    }
    int code = block_submit(b, &now.request);
    if (code < 0)
        return code;
    block_drain(b);
    ASSERT(now.ended);
    return now.request.result;
}

int block_own(struct block *b, bool own, struct error *err)
{
    return b->ops->own ? b->ops->own(b, own, err) : 0;
}

void block_close(struct block *b)
{
    if (b == NULL)
        return;
    block_drain(b);
    b->ops->close(b);
}
