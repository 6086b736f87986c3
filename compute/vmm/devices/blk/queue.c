/* virtio-blk requests, from the ring to the block and back.
 *
 *   taken from the ring -> struct blk_request -> block_submit -> done -> status byte, used ring, interrupt
 *                              ^                                  |
 *                              +---- retry timer, resume <---- parked (-EAGAIN: no lease)
 *                              +---- resume <----------------- parked (an error that stops the machine)
 *
 *   taken from the ring -> block_read_likely: it was at hand -> status byte, used ring, interrupt
 *
 * Answered at once, without the block: GET_ID, types not known here (UNSUPP), ranges that cannot be (IOERR).
 * A guest that did not take the FLUSH feature is promised write-through (§5.2.6.2): each of its writes is followed by
 * a flush before it completes. */
#include <endian.h>
#include <errno.h>
#include <linux/virtio_blk.h>
#include <string.h>
#include <time.h>

#include "common/log.h"
#include "compute/vmm/devices/blk/blk.h"

enum {
    HEADER_BYTES = 16,
    RANGE_BYTES = 16, /* struct virtio_blk_discard_write_zeroes */
    STATUS_BYTES = 1,
    NS_PER_MS = 1000000,
};

struct blk_request {
    struct block_request block;
    struct blk *blk;
    struct list link; /* in blk->parked */
    uint16_t queue, head;
    bool is_read;
    bool flush_after; /* write-through: a flush follows */
    uint8_t *status;  /* where the guest wants its status byte */
    uint64_t status_gpa;
    uint32_t in_bytes;         /* writable part, status included */
    uint16_t in_count;         /* of its segments, for marking them dirty */
    struct iovec *in_segments; /* both within the tail */
    uint64_t *in_gpas;
    struct iovec iovecs[]; /* data for the block; then in_segments, in_gpas */
};

static struct virtio_queue *request_queue(const struct blk_request *r)
{
    return &r->blk->virtio.queues[r->queue];
}

/* Status, used ring, interrupt; the end of @r. */
static void request_finish(struct blk_request *r, uint8_t status)
{
    struct blk *blk = r->blk;
    struct guest_memory *memory = blk->virtio.memory;
    *r->status = status;
    memory_mark_dirty(memory, r->status_gpa, STATUS_BYTES);
    for (unsigned i = 0; r->is_read && i < r->in_count; i++)
        memory_mark_dirty(memory, r->in_gpas[i], r->in_segments[i].iov_len);
    virtio_queue_push(request_queue(r), r->head, r->is_read ? r->in_bytes : STATUS_BYTES);
    virtio_device_interrupt(&blk->virtio, r->queue);
    free(r);
}

static uint8_t status_of(int result)
{
    if (result == 0)
        return VIRTIO_BLK_S_OK;
    return result == -EOPNOTSUPP ? VIRTIO_BLK_S_UNSUPP : VIRTIO_BLK_S_IOERR;
}

static void request_submit(struct blk_request *r);

static const char *operation_name(enum block_op op)
{
    static const char *const names[BLOCK_OPS] = {
        [BLOCK_READ] = "read",       [BLOCK_WRITE] = "write",         [BLOCK_FLUSH] = "flush",
        [BLOCK_DISCARD] = "discard", [BLOCK_WRITE_ZEROES] = "zeroes",
    };
    return names[op];
}

static bool error_stops(const struct blk *blk, int result)
{
    bool is_space = result == -ENOSPC || result == -EDQUOT;
    return blk->stopped != NULL && blk->on_error != disk_error_policy_REPORT &&
           (is_space || blk->on_error == disk_error_policy_PAUSE);
}

/* The disk failed. True when the request is kept for a later try. */
static bool error_meet(struct blk_request *r, int result)
{
    struct blk *blk = r->blk;
    bool stops = error_stops(blk, result);
    if (blk->counters.errors++ < BLK_ERRORS_LOGGED)
        log_warning("disk-error", "disk=%s operation=%s offset=%llu bytes=%llu error=\"%s\" action=%s", blk->name, operation_name(r->block.op), (unsigned long long)r->block.offset,
                    (unsigned long long)r->block.size, strerror(-result), stops ? "pause" : "report");
    if (!stops)
        return false;
    list_append(&blk->parked, &r->link);
    blk->stopped(blk->stopped_arg, blk, operation_name(r->block.op), result);
    return true;
}

static void request_done(struct block_request *block, int result)
{
    struct blk_request *r = CONTAINER_OF(block, struct blk_request, block);
    struct blk *blk = r->blk;
    blk->in_flight--;
    if (result == -EAGAIN) {
        list_append(&blk->parked, &r->link);
        if (!blk->virtio.paused)
            io_timer_arm(blk->loop, &blk->retry, (uint64_t)BLK_RETRY_MS * NS_PER_MS);
        return;
    }
    if (result == 0 && r->flush_after) {
        r->flush_after = false;
        r->block.op = BLOCK_FLUSH;
        request_submit(r);
        return;
    }
    if (result < 0 && result != -EOPNOTSUPP && error_meet(r, result))
        return;
    request_finish(r, status_of(result));
}

static void request_submit(struct blk_request *r)
{
    struct block *top = blk_top(r->blk);
    if (r->block.op == BLOCK_READ && block_read_likely(top, &r->block) == 0) { /* no ring, no wake-up, no round of the loop */
        request_finish(r, VIRTIO_BLK_S_OK);
        return;
    }
    r->block.done = request_done;
    r->blk->in_flight++;
    int code = block_submit(top, &r->block);
    if (code < 0) {
        r->blk->in_flight--;
        request_finish(r, status_of(code));
    }
}

/* A request that knows where to put its answer. The chain has a header and a status byte; its size is bounded by the
 * queue's, and the number of requests by the queues' as well. */
static struct blk_request *request_create(struct blk *blk, unsigned queue, bool is_read, bool has_data)
{
    const struct virtio_chain *c = &blk->chain;
    unsigned segments = (unsigned)c->out_count + c->in_count;
    size_t tail = segments * sizeof(struct iovec) + c->in_count * (sizeof(struct iovec) + sizeof(uint64_t));
    struct blk_request *r = xcalloc(1, sizeof *r + tail);
    unsigned last = segments - 1;
    r->blk = blk;
    r->queue = (uint16_t)queue;
    r->head = c->head;
    r->is_read = is_read;
    r->status = (uint8_t *)c->segments[last].iov_base + c->segments[last].iov_len - STATUS_BYTES;
    r->status_gpa = c->gpas[last] + c->segments[last].iov_len - STATUS_BYTES;
    r->in_bytes = (uint32_t)c->in_bytes;
    r->in_count = c->in_count;
    r->in_segments = r->iovecs + segments;
    r->in_gpas = (uint64_t *)(void *)(r->in_segments + c->in_count);
    memcpy(r->in_segments, c->segments + c->out_count, c->in_count * sizeof *r->in_segments);
    memcpy(r->in_gpas, c->gpas + c->out_count, c->in_count * sizeof *r->in_gpas);
    list_init(&r->link);
    if (!has_data)
        return r;
    r->block.size = is_read ? c->in_bytes - STATUS_BYTES : c->out_bytes - HEADER_BYTES;
    r->block.iovecs = r->iovecs;
    r->block.iovec_count = is_read
                               ? block_iovecs_slice(c->segments + c->out_count, c->in_count, 0, r->block.size, r->iovecs)
                               : block_iovecs_slice(c->segments, c->out_count, HEADER_BYTES, r->block.size, r->iovecs);
    return r;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* Is the next request kept in its ring for now? */
static bool is_throttled(struct blk *blk)
{
    if (!rate_limit_is_set(&blk->limit))
        return false;
    uint64_t wait = rate_limit_wait_ns(&blk->limit, now_ns());
    if (wait == 0)
        return false;
    blk->counters.throttled++;
    if (list_empty(&blk->throttle.link))
        io_timer_arm(blk->loop, &blk->throttle, wait);
    return true;
}

void blk_queue_unthrottle(void *arg)
{
    struct blk *blk = arg;
    unsigned queues = blk->virtio.queue_count, first = blk->turn++;
    io_timer_cancel(&blk->throttle);
    /* The first takes all that the limit has left: they take turns, or one processor's requests would wait for ever. */
    for (unsigned i = 0; i < queues; i++)
        virtio_device_notify(&blk->virtio, (first + i) % queues);
}

static void start_transfer(struct blk *blk, unsigned queue, bool is_read, uint64_t sector)
{
    struct blk_request *r = request_create(blk, queue, is_read, true);
    r->block.op = is_read ? BLOCK_READ : BLOCK_WRITE;
    r->flush_after = !is_read && !virtio_device_has(&blk->virtio, VIRTIO_BLK_F_FLUSH);
    rate_limit_charge(&blk->limit, r->block.size);
    *(is_read ? &blk->counters.reads : &blk->counters.writes) += 1;
    *(is_read ? &blk->counters.read_bytes : &blk->counters.write_bytes) += r->block.size;
    if (__builtin_mul_overflow(sector, (uint64_t)BLOCK_SECTOR_BYTES, &r->block.offset))
        request_finish(r, VIRTIO_BLK_S_IOERR);
    else
        request_submit(r);
}

/* DISCARD and WRITE_ZEROES carry their range as data, one of them (max_*_seg). */
static void start_range(struct blk *blk, unsigned queue, bool is_discard)
{
    const struct virtio_chain *c = &blk->chain;
    struct virtio_blk_discard_write_zeroes range = {0};
    size_t got = virtio_chain_read(c, HEADER_BYTES, &range, RANGE_BYTES);
    struct blk_request *r = request_create(blk, queue, false, false);
    uint32_t sectors = le32toh(range.num_sectors), flags = le32toh(range.flags);
    r->block.op = is_discard ? BLOCK_DISCARD : BLOCK_WRITE_ZEROES;
    rate_limit_charge(&blk->limit, 0);
    blk->counters.discards++;
    r->block.size = (uint64_t)sectors * BLOCK_SECTOR_BYTES;
    r->block.may_unmap = (flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) != 0;
    r->flush_after = !virtio_device_has(&blk->virtio, VIRTIO_BLK_F_FLUSH);
    if (got != RANGE_BYTES || c->out_bytes != HEADER_BYTES + RANGE_BYTES || sectors > BLK_DISCARD_SECTORS_MAX ||
        __builtin_mul_overflow(le64toh(range.sector), (uint64_t)BLOCK_SECTOR_BYTES, &r->block.offset))
        request_finish(r, VIRTIO_BLK_S_IOERR);
    else if ((flags & ~VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) != 0 || (is_discard && flags != 0))
        request_finish(r, VIRTIO_BLK_S_UNSUPP); /* §5.2.6.2 */
    else
        request_submit(r);
}

static void answer_id(struct blk *blk, unsigned queue)
{
    struct blk_request *r = request_create(blk, queue, true, false);
    size_t room = (size_t)MIN(blk->chain.in_bytes - STATUS_BYTES, (uint64_t)BLK_SERIAL_BYTES);
    virtio_chain_write(&blk->chain, blk->virtio.memory, 0, blk->serial, room);
    request_finish(r, VIRTIO_BLK_S_OK);
}

static void start_flush(struct blk *blk, unsigned queue)
{
    struct blk_request *r = request_create(blk, queue, false, false);
    r->block.op = BLOCK_FLUSH;
    rate_limit_charge(&blk->limit, 0);
    blk->counters.flushes++;
    request_submit(r);
}

/* Begin the request in blk->chain. */
static void request_start(struct blk *blk, unsigned queue)
{
    struct virtio_blk_outhdr header;
    if (virtio_chain_read(&blk->chain, 0, &header, HEADER_BYTES) != HEADER_BYTES ||
        blk->chain.in_bytes < STATUS_BYTES) {
        virtio_device_needs_reset(&blk->virtio, "disk request without header or status");
        return;
    }
    switch (le32toh(header.type)) {
    case VIRTIO_BLK_T_IN:
        start_transfer(blk, queue, true, le64toh(header.sector));
        break;
    case VIRTIO_BLK_T_OUT:
        start_transfer(blk, queue, false, le64toh(header.sector));
        break;
    case VIRTIO_BLK_T_FLUSH:
        start_flush(blk, queue);
        break;
    case VIRTIO_BLK_T_GET_ID:
        answer_id(blk, queue);
        break;
    case VIRTIO_BLK_T_DISCARD:
        start_range(blk, queue, true);
        break;
    case VIRTIO_BLK_T_WRITE_ZEROES:
        start_range(blk, queue, false);
        break;
    default:
        request_finish(request_create(blk, queue, false, false), VIRTIO_BLK_S_UNSUPP);
    }
}

static void queue_take(struct blk *blk, unsigned queue)
{
    struct virtio_device *d = &blk->virtio;
    struct virtio_queue *q = &d->queues[queue];
    unsigned taken = 0;
    do {
        virtio_queue_ask_notify(q, false);
        while (virtio_device_running(d)) {
            if (is_throttled(blk))
                return;
            if (!virtio_device_pop(d, queue, &blk->chain))
                break;
            request_start(blk, queue);
            if (++taken == BLK_BATCH_REQUESTS) {
                d->transport->ops->queue_again(d->transport, queue);
                return;
            }
        }
    } while (virtio_device_running(d) && virtio_queue_ask_notify(q, true));
}

void blk_queue_notify(struct virtio_device *d, unsigned queue)
{
    struct blk *blk = CONTAINER_OF(d, struct blk, virtio);
    block_plug(blk_top(blk));
    queue_take(blk, queue);
    block_unplug(blk_top(blk));
}

void blk_queue_restart_taken(struct blk *blk)
{
    struct virtio_device *d = &blk->virtio;
    for (unsigned queue = 0; queue < d->queue_count; queue++) {
        uint16_t position = 0;
        int got = 0;
        while (virtio_device_running(d) && (got = virtio_queue_retake(&d->queues[queue], &position, &blk->chain)) > 0)
            request_start(blk, queue);
        if (got < 0)
            virtio_device_needs_reset(d, d->queues[queue].reason);
    }
}

/* Parked requests again, from a local list: those still without a lease come back to `parked`. */
void blk_queue_retry(void *arg)
{
    struct blk *blk = arg;
    struct list again;
    list_init(&again);
    list_take(&again, &blk->parked);
    while (!list_empty(&again)) {
        struct blk_request *r = LIST_ENTRY(again.next, struct blk_request, link);
        list_remove(&r->link);
        request_submit(r);
    }
}

void blk_queue_quiesce(struct blk *blk)
{
    /* A write-through flush that follows its write is begun within drain, which waits for it too. */
    block_drain(blk_top(blk));
    io_timer_cancel(&blk->retry);
    io_timer_cancel(&blk->throttle);
    ASSERT(blk->in_flight == 0);
    while (!list_empty(&blk->parked)) {
        struct blk_request *r = LIST_ENTRY(blk->parked.next, struct blk_request, link);
        list_remove(&r->link);
        free(r);
    }
}
