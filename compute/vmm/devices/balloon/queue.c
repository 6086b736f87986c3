/* virtio-balloon requests: pages to discard, pages taken back, free pages reported, statistics. */
#include <endian.h>
#include <linux/virtio_balloon.h>
#include <string.h>

#include "compute/vmm/devices/balloon/balloon.h"

enum role { ROLE_INFLATE, ROLE_DEFLATE, ROLE_STATS, ROLE_REPORTING, ROLE_NONE };

static struct balloon *balloon_of(struct virtio_device *d)
{
    return CONTAINER_OF(d, struct balloon, virtio);
}

/* Queues of features that the driver did not take are not numbered: Linux closes the gap. */
static enum role role_of(const struct virtio_device *d, unsigned queue)
{
    unsigned next = 2;
    if (queue < next)
        return queue == 0 ? ROLE_INFLATE : ROLE_DEFLATE;
    if (virtio_device_has(d, VIRTIO_BALLOON_F_STATS_VQ) && queue == next++)
        return ROLE_STATS;
    return virtio_device_has(d, VIRTIO_BALLOON_F_REPORTING) && queue == next ? ROLE_REPORTING : ROLE_NONE;
}

static int queue_of(const struct virtio_device *d, enum role role)
{
    for (unsigned queue = 0; queue < d->queue_count; queue++)
        if (role_of(d, queue) == role)
            return (int)queue;
    return -1;
}

/* Pages come as 32-bit numbers; neighbours are discarded together. Numbers outside memory are passed over. How many were
 * looked at. */
static unsigned inflate(struct balloon *b)
{
    uint64_t count = MIN(b->chain.out_bytes / sizeof(uint32_t), (uint64_t)BALLOON_REQUEST_PAGES_MAX);
    uint64_t start = 0, pages = 0;
    for (uint64_t i = 0; i <= count; i++) {
        uint32_t raw = 0;
        if (i < count)
            virtio_chain_read(&b->chain, i * sizeof raw, &raw, sizeof raw);
        uint64_t page = le32toh(raw);
        if (i < count && pages > 0 && page == start + pages) {
            pages++;
            continue;
        }
        if (pages > 0 && memory_discard(b->virtio.memory, start * BALLOON_PAGE_BYTES, pages * BALLOON_PAGE_BYTES))
            b->discarded_bytes += pages * BALLOON_PAGE_BYTES;
        start = page;
        pages = 1;
    }
    return (unsigned)count;
}

/* Each segment is a stretch of free memory. The device may drop its contents before it gives the buffer back, and at no
 * other time (§5.5.6.7). */
static void discard_reported(struct balloon *b)
{
    for (unsigned i = 0; i < b->chain.in_count; i++) {
        unsigned at = b->chain.out_count + i;
        uint64_t size = b->chain.segments[at].iov_len;
        if (memory_discard(b->virtio.memory, b->chain.gpas[at], size))
            b->reported_bytes += size;
    }
}

static void stats_read(struct balloon *b)
{
    uint64_t count = MIN(b->chain.out_bytes / BALLOON_STAT_BYTES, (uint64_t)BALLOON_STATS);
    memset(b->stats.values, 0xff, sizeof b->stats.values);
    for (uint64_t i = 0; i < count; i++) {
        uint8_t raw[BALLOON_STAT_BYTES];
        virtio_chain_read(&b->chain, i * sizeof raw, raw, sizeof raw);
        struct bytes_reader in = bytes_reader(raw, sizeof raw);
        uint16_t tag = bytes_get_u16(&in);
        uint64_t value = bytes_get_u64(&in);
        if (tag < BALLOON_STATS)
            b->stats.values[tag] = value;
    }
    b->stats.reports++;
}

static void stats_give_back(struct balloon *b, unsigned queue)
{
    virtio_queue_push(&b->virtio.queues[queue], b->stats_head, 0);
    b->stats_held = false;
    virtio_device_interrupt(&b->virtio, queue);
}

/* One buffer is kept; a driver that sends a second gets the first back. */
static void stats_take(struct balloon *b, unsigned queue)
{
    if (b->stats_held)
        stats_give_back(b, queue);
    stats_read(b);
    b->stats_held = true;
    b->stats_head = b->chain.head;
}

/* How many page numbers that took. */
static unsigned serve(struct balloon *b, unsigned queue)
{
    unsigned pages = 0;
    switch (role_of(&b->virtio, queue)) {
    case ROLE_STATS:
        stats_take(b, queue);
        return 0;
    case ROLE_INFLATE:
        pages = inflate(b);
        break;
    case ROLE_REPORTING:
        discard_reported(b);
        break;
    case ROLE_DEFLATE: /* the pages come back when they are touched */
    case ROLE_NONE:
        break;
    }
    virtio_queue_push(&b->virtio.queues[queue], b->chain.head, 0);
    return pages;
}

void balloon_queue_notify(struct virtio_device *d, unsigned queue)
{
    struct balloon *b = balloon_of(d);
    unsigned taken = 0, pages = 0;
    bool enough = false;
    do {
        virtio_queue_ask_notify(&d->queues[queue], false);
        while (!enough && virtio_device_pop(d, queue, &b->chain)) {
            pages += serve(b, queue);
            enough = ++taken == BALLOON_BATCH_REQUESTS || pages >= BALLOON_BATCH_PAGES;
        }
    } while (!enough && virtio_queue_ask_notify(&d->queues[queue], true));
    virtio_device_interrupt(d, queue);
    if (enough)
        d->transport->ops->queue_again(d->transport, queue);
}

const struct balloon_stats *balloon_stats_poll(struct virtio_device *d)
{
    struct balloon *b = balloon_of(d);
    int queue = queue_of(d, ROLE_STATS);
    if (queue >= 0 && virtio_device_running(d) && !d->paused && b->stats_held)
        stats_give_back(b, (unsigned)queue);
    return &b->stats;
}

/* The balloon of a guest that starts anew is empty. */
void balloon_queue_reset(struct virtio_device *d)
{
    struct balloon *b = balloon_of(d);
    b->stats_held = false;
    b->actual_pages = 0;
    balloon_config_fill(b);
}

/* After a load the held buffer is one of the queue's taken requests: find it. Nothing else stays taken here. */
void balloon_queue_resume(struct virtio_device *d)
{
    struct balloon *b = balloon_of(d);
    int queue = queue_of(d, ROLE_STATS);
    uint16_t position = 0;
    b->stats_held = false;
    while (queue >= 0 && virtio_device_running(d) &&
           virtio_queue_retake(&d->queues[queue], &position, &b->chain) > 0) {
        if (b->stats_held)
            stats_give_back(b, (unsigned)queue);
        b->stats_held = true;
        b->stats_head = b->chain.head;
    }
}
