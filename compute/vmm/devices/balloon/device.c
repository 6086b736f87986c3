/* virtio-balloon: making the device, its configuration space, and what is asked of it from outside. */
#include <errno.h>
#include <linux/virtio_balloon.h>
#include <linux/virtio_ids.h>
#include <string.h>

#include "compute/vmm/devices/balloon/balloon.h"

enum { PCI_CLASS_MEMORY_OTHER = 0x058000, CONFIG_NUM_PAGES = 0, CONFIG_ACTUAL = 4, CONFIG_BYTES = 8 };
#define FEATURES                                                                                                     \
    (1ull << VIRTIO_BALLOON_F_STATS_VQ | 1ull << VIRTIO_BALLOON_F_DEFLATE_ON_OOM | 1ull << VIRTIO_BALLOON_F_REPORTING)

static struct balloon *balloon_of(struct virtio_device *d)
{
    return CONTAINER_OF(d, struct balloon, virtio);
}

static void put_u32(uint8_t *at, uint32_t value)
{
    for (unsigned i = 0; i < 4; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

void balloon_config_fill(struct balloon *b)
{
    put_u32(b->virtio.config + CONFIG_NUM_PAGES, b->target_pages);
    put_u32(b->virtio.config + CONFIG_ACTUAL, b->actual_pages);
}

/* `actual` is the one field that a driver writes (§5.5.4). Its word is kept for display and trusted for nothing. */
static void config_write(struct virtio_device *d, unsigned offset, unsigned size, uint64_t value)
{
    struct balloon *b = balloon_of(d);
    if (offset != CONFIG_ACTUAL || size != 4)
        return;
    b->actual_pages = (uint32_t)value;
    balloon_config_fill(b);
}

static void balloon_destroy(struct virtio_device *d)
{
    virtio_device_finish(d);
    free(balloon_of(d));
}

static const struct virtio_device_ops balloon_ops = {
    .notify = balloon_queue_notify,
    .reset = balloon_queue_reset,
    .resume = balloon_queue_resume,
    .config_write = config_write,
    .save = balloon_state_save,
    .load = balloon_state_load,
    .destroy = balloon_destroy,
};

int balloon_create(struct guest_memory *memory, struct virtio_device **ret_device, struct error *err UNUSED)
{
    struct balloon *b = NEW(struct balloon);
    virtio_device_init(&b->virtio, &balloon_ops, "balloon", VIRTIO_ID_BALLOON, PCI_CLASS_MEMORY_OTHER, FEATURES, memory,
                       BALLOON_QUEUES, BALLOON_QUEUE_SIZE);
    b->virtio.config_bytes = CONFIG_BYTES;
    memset(b->stats.values, 0xff, sizeof b->stats.values);
    *ret_device = &b->virtio;
    return 0;
}

int balloon_set_target(struct virtio_device *d, uint64_t bytes, struct error *err)
{
    struct balloon *b = balloon_of(d);
    if (bytes % BALLOON_PAGE_BYTES != 0 || bytes >= d->memory->size_bytes)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/target_bytes",
                               "a balloon holds a multiple of 4096 bytes less than the guest's memory of %llu, not %llu",
                               (unsigned long long)d->memory->size_bytes, (unsigned long long)bytes);
    if (b->target_pages == bytes / BALLOON_PAGE_BYTES)
        return 0;
    b->target_pages = (uint32_t)(bytes / BALLOON_PAGE_BYTES);
    balloon_config_fill(b);
    virtio_device_config_changed(d);
    return 0;
}

uint64_t balloon_target_bytes(const struct virtio_device *d)
{
    return (uint64_t)CONTAINER_OF((struct virtio_device *)d, struct balloon, virtio)->target_pages * BALLOON_PAGE_BYTES;
}

uint64_t balloon_actual_bytes(const struct virtio_device *d)
{
    return (uint64_t)CONTAINER_OF((struct virtio_device *)d, struct balloon, virtio)->actual_pages * BALLOON_PAGE_BYTES;
}
