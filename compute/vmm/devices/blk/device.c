/* virtio-blk: making the device, its configuration space and its course of life. Requests are in queue.c. */
#include <endian.h>
#include <errno.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ids.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "block/block_dead.h"
#include "compute/vmm/devices/blk/blk.h"

#define BIT(n) (1ull << (n))
enum { PCI_CLASS_STORAGE = 0x018000 }; /* mass storage, other */

static struct blk *of_virtio(struct virtio_device *d)
{
    return CONTAINER_OF(d, struct blk, virtio);
}

struct blk *blk_of_virtio(struct virtio_device *d)
{
    return of_virtio(d);
}

void blk_set_limits(struct blk *blk, const struct vmm_limits *limits)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    rate_limit_set(&blk->limit, limits, (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec);
    blk_queue_unthrottle(blk); /* they may be looser now */
}

void blk_set_filter(struct blk *blk, struct block *filter, void (*leaving)(void *arg, struct blk *blk), void *arg)
{
    ASSERT(blk_top(blk)->in_flight == 0 && blk->block->in_flight == 0);
    blk->filter = filter;
    blk->leaving = leaving;
    blk->leaving_arg = arg;
}

/* Nothing is in flight. */
static void filter_leave(struct blk *blk)
{
    if (blk->filter != NULL)
        blk->leaving(blk->leaving_arg, blk);
    ASSERT(blk->filter == NULL);
}

void blk_detach(struct blk *blk)
{
    struct block *lost = blk->block;
    blk_queue_quiesce(blk);
    filter_leave(blk);
    blk->block = block_dead_create(lost);
    block_close(lost);
    if (!blk->virtio.paused)
        blk_queue_restart_taken(blk); /* what was parked fails now */
    blk_queue_unthrottle(blk);
}

void blk_grown(struct blk *blk)
{
    uint64_t capacity = htole64(blk->block->size_bytes / BLOCK_SECTOR_BYTES);
    ASSERT(blk->block->size_bytes >= blk->size_bytes);
    blk->size_bytes = blk->block->size_bytes;
    memcpy(blk->virtio.config + offsetof(struct virtio_blk_config, capacity), &capacity, sizeof capacity);
    virtio_device_config_changed(&blk->virtio);
}

static void blk_reset(struct virtio_device *d)
{
    blk_queue_quiesce(of_virtio(d));
}

static void blk_pause(struct virtio_device *d)
{
    blk_queue_quiesce(of_virtio(d));
}

static void blk_resume(struct virtio_device *d)
{
    blk_queue_restart_taken(of_virtio(d));
}

static void blk_destroy(struct virtio_device *d)
{
    struct blk *blk = of_virtio(d);
    blk_queue_quiesce(blk);
    filter_leave(blk);
    block_close(blk->block);
    virtio_device_finish(d);
    free(blk);
}

static const struct virtio_device_ops blk_ops = {
    .notify = blk_queue_notify,
    .reset = blk_reset,
    .pause = blk_pause,
    .resume = blk_resume,
    .save = blk_state_save,
    .load = blk_state_load,
    .destroy = blk_destroy,
};

static uint64_t blk_features(const struct block *block, unsigned queues)
{
    uint64_t features = BIT(VIRTIO_BLK_F_SIZE_MAX) | BIT(VIRTIO_BLK_F_SEG_MAX) | BIT(VIRTIO_BLK_F_BLK_SIZE) |
                        BIT(VIRTIO_BLK_F_TOPOLOGY) | BIT(VIRTIO_BLK_F_FLUSH);
    if (block->read_only)
        features |= BIT(VIRTIO_BLK_F_RO);
    if (queues > 1)
        features |= BIT(VIRTIO_BLK_F_MQ);
    if (block->can_discard && !block->read_only)
        features |= BIT(VIRTIO_BLK_F_DISCARD);
    if (block->can_write_zeroes && !block->read_only)
        features |= BIT(VIRTIO_BLK_F_WRITE_ZEROES);
    return features;
}

/* §5.2.4. Logical blocks are always 512 bytes; what the disk likes best goes into the topology. */
static void blk_fill_config(struct blk *blk, unsigned queues)
{
    const struct block *block = blk->block;
    uint32_t blocks_best = block->block_bytes / BLOCK_SECTOR_BYTES;
    struct virtio_blk_config config = {
        .capacity = htole64(block->size_bytes / BLOCK_SECTOR_BYTES),
        .size_max = htole32(BLK_SEGMENT_BYTES_MAX),
        .seg_max = htole32(BLK_SEGMENTS_MAX),
        .blk_size = htole32(BLOCK_SECTOR_BYTES),
        .physical_block_exp = (uint8_t)__builtin_ctz(blocks_best),
        .min_io_size = htole16((uint16_t)blocks_best),
        .num_queues = htole16((uint16_t)queues),
        .max_discard_sectors = htole32(BLK_DISCARD_SECTORS_MAX),
        .max_discard_seg = htole32(1),
        .discard_sector_alignment = htole32(blocks_best),
        .max_write_zeroes_sectors = htole32(BLK_DISCARD_SECTORS_MAX),
        .max_write_zeroes_seg = htole32(1),
        .write_zeroes_may_unmap = 1,
    };
    STATIC_ASSERT(sizeof config <= VIRTIO_CONFIG_BYTES_MAX, "room for the configuration");
    memcpy(blk->virtio.config, &config, sizeof config);
    blk->virtio.config_bytes = sizeof config;
}

int blk_create(const struct blk_options *options, struct guest_memory *memory, struct io_loop *loop,
               struct virtio_device **ret_device, struct error *err)
{
    unsigned queues = options->queues == 0 ? 1 : options->queues;
    if (queues > BLK_QUEUES_MAX)
        return error_set(err, -EINVAL, ERROR_INVALID, "a disk has at most %d queues", BLK_QUEUES_MAX);
    struct blk *blk = NEW(struct blk);
    blk->block = options->block;
    blk->loop = loop;
    blk->size_bytes = options->block->size_bytes;
    snprintf(blk->name, sizeof blk->name, "%s", options->name != NULL ? options->name : "");
    if (options->serial != NULL)
        memcpy(blk->serial, options->serial, strnlen(options->serial, BLK_SERIAL_BYTES));
    list_init(&blk->parked);
    io_timer_init(&blk->retry, blk_queue_retry, blk);
    io_timer_init(&blk->throttle, blk_queue_unthrottle, blk);
    blk->on_error = options->on_error;
    blk->stopped = options->stopped;
    blk->stopped_arg = options->stopped_arg;
    virtio_device_init(&blk->virtio, &blk_ops, "blk", VIRTIO_ID_BLOCK, PCI_CLASS_STORAGE,
                       blk_features(options->block, queues), memory, (uint16_t)queues, BLK_QUEUE_SIZE);
    blk_fill_config(blk, queues);
    if (options->limits != NULL)
        blk_set_limits(blk, options->limits);
    *ret_device = &blk->virtio;
    return 0;
}
