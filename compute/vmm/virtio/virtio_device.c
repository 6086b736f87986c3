/* The part of a virtio device that is the same for all: see virtio_device.h. */
#include "compute/vmm/virtio/virtio_device.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <string.h>

#include "common/log.h"

enum {
    STATE_VERSION = 1,
    COMPLAINTS_MAX = 8,
    /* Bits that a driver may set; NEEDS_RESET is ours. */
    STATUS_OF_DRIVER = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_DRIVER_OK |
                       VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_FAILED,
};
#define BIT(n) (1ull << (n))
#define FEATURES_COMMON (BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_RING_F_INDIRECT_DESC) | BIT(VIRTIO_RING_F_EVENT_IDX))

void virtio_device_init(struct virtio_device *d, const struct virtio_device_ops *ops, const char *kind, uint16_t id,
                        uint32_t pci_class, uint64_t features, struct guest_memory *memory, uint16_t queue_count,
                        uint16_t queue_size)
{
    ASSERT(queue_count > 0 && queue_count <= VIRTIO_QUEUES_MAX);
    *d = (struct virtio_device){
        .ops = ops,
        .kind = kind,
        .id = id,
        .pci_class = pci_class,
        .features_offered = features | FEATURES_COMMON,
        .memory = memory,
        .queue_count = queue_count,
        .queues = xcalloc(queue_count, sizeof(struct virtio_queue)),
    };
    for (unsigned i = 0; i < queue_count; i++)
        virtio_queue_init(&d->queues[i], memory, queue_size);
}

void virtio_device_finish(struct virtio_device *d)
{
    free(d->queues);
    d->queues = NULL;
}

bool virtio_device_running(const struct virtio_device *d)
{
    uint8_t bits = d->status & (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED);
    return bits == VIRTIO_CONFIG_S_DRIVER_OK;
}

void virtio_device_interrupt(struct virtio_device *d, unsigned queue)
{
    ASSERT(queue < d->queue_count);
    if (virtio_queue_wants_interrupt(&d->queues[queue]) && d->transport != NULL)
        d->transport->ops->queue_interrupt(d->transport, queue);
}

void virtio_device_needs_reset(struct virtio_device *d, const char *reason)
{
    if ((d->status & VIRTIO_CONFIG_S_NEEDS_RESET) != 0)
        return;
    /* A guest may do this in a loop: the log hears of the first few times. */
    if (d->complaints < COMPLAINTS_MAX) {
        d->complaints++;
        log_warning("virtio-needs-reset", "device=%s why=\"%s\"", d->kind, reason);
    }
    d->status |= VIRTIO_CONFIG_S_NEEDS_RESET;
    /* Before DRIVER_OK the driver reads the status anyway, and no interrupt may be sent (§2.1.2, §3.1.1). */
    if ((d->status & VIRTIO_CONFIG_S_DRIVER_OK) != 0 && d->transport != NULL)
        d->transport->ops->config_interrupt(d->transport);
}

bool virtio_device_pop(struct virtio_device *d, unsigned queue, struct virtio_chain *ret_chain)
{
    ASSERT(queue < d->queue_count);
    int got = virtio_queue_pop(&d->queues[queue], ret_chain);
    if (got < 0)
        virtio_device_needs_reset(d, d->queues[queue].reason);
    return got > 0;
}

void virtio_device_config_changed(struct virtio_device *d)
{
    d->config_generation++;
    if (virtio_device_running(d) && d->transport != NULL)
        d->transport->ops->config_interrupt(d->transport);
}

static void queues_apply_features(struct virtio_device *d)
{
    for (unsigned i = 0; i < d->queue_count; i++) {
        d->queues[i].event_idx = virtio_device_has(d, VIRTIO_RING_F_EVENT_IDX);
        d->queues[i].indirect = virtio_device_has(d, VIRTIO_RING_F_INDIRECT_DESC);
    }
}

/* FEATURES_OK stays clear, and so tells the driver no, unless its choice is ours to serve (§3.1.1, §6.1). */
static bool features_acceptable(const struct virtio_device *d)
{
    return (d->features & ~d->features_offered) == 0 && virtio_device_has(d, VIRTIO_F_VERSION_1);
}

void virtio_device_set_status(struct virtio_device *d, uint8_t status)
{
    if (status == 0) {
        virtio_device_reset(d);
        return;
    }
    /* Bits are only ever added; the driver takes none back but by reset (§2.1.1). */
    uint8_t added = (uint8_t)(status & STATUS_OF_DRIVER & ~d->status);
    if ((added & VIRTIO_CONFIG_S_FEATURES_OK) != 0) {
        if (features_acceptable(d))
            queues_apply_features(d);
        else
            added &= (uint8_t) ~(VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
    }
    if ((added & VIRTIO_CONFIG_S_DRIVER_OK) != 0 && ((d->status | added) & VIRTIO_CONFIG_S_FEATURES_OK) == 0)
        added &= (uint8_t)~VIRTIO_CONFIG_S_DRIVER_OK;
    d->status |= added;
    if ((added & VIRTIO_CONFIG_S_DRIVER_OK) == 0)
        return;
    log_debug("virtio-driver-ok", "device=%s features=0x%llx", d->kind, (unsigned long long)d->features);
    if (virtio_device_running(d) && d->ops->start != NULL)
        d->ops->start(d);
    /* A driver may fill its queues before DRIVER_OK and kick early: those kicks were not heeded. */
    for (unsigned i = 0; i < d->queue_count; i++)
        virtio_device_notify(d, i);
}

void virtio_device_set_features(struct virtio_device *d, unsigned word, uint32_t bits)
{
    if ((d->status & VIRTIO_CONFIG_S_FEATURES_OK) != 0 || word > 1)
        return;
    uint64_t mask = (uint64_t)UINT32_MAX << (32 * word);
    d->features = (d->features & ~mask) | (uint64_t)bits << (32 * word);
}

bool virtio_device_accepts_setup(const struct virtio_device *d)
{
    return (d->status & VIRTIO_CONFIG_S_FEATURES_OK) != 0 &&
           (d->status & (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET)) == 0;
}

void virtio_device_enable_queue(struct virtio_device *d, unsigned queue)
{
    if (queue >= d->queue_count || !virtio_device_accepts_setup(d) || d->queues[queue].ready)
        return;
    if (virtio_queue_enable(&d->queues[queue]) < 0)
        virtio_device_needs_reset(d, d->queues[queue].reason);
}

void virtio_device_notify(struct virtio_device *d, unsigned queue)
{
    if (queue < d->queue_count && virtio_device_running(d) && !d->paused && d->queues[queue].ready)
        d->ops->notify(d, queue);
}

void virtio_device_reset(struct virtio_device *d)
{
    if (d->ops->reset != NULL)
        d->ops->reset(d);
    for (unsigned i = 0; i < d->queue_count; i++)
        virtio_queue_reset(&d->queues[i]);
    d->status = 0;
    d->features = 0;
}

void virtio_device_pause(struct virtio_device *d)
{
    if (d->paused)
        return;
    d->paused = true;
    if (d->ops->pause != NULL)
        d->ops->pause(d);
}

void virtio_device_resume(struct virtio_device *d)
{
    if (!d->paused)
        return;
    d->paused = false;
    if (d->ops->resume != NULL)
        d->ops->resume(d);
    if ((d->status & VIRTIO_CONFIG_S_NEEDS_RESET) != 0 && (d->status & VIRTIO_CONFIG_S_DRIVER_OK) != 0 &&
        d->transport != NULL)
        d->transport->ops->config_interrupt(d->transport);
    if (!virtio_device_running(d))
        return;
    for (unsigned i = 0; i < d->queue_count; i++) {
        virtio_device_notify(d, i);
        /* Eventfds carry nothing over a save: interrupt once, needed or not (a spurious one is harmless). */
        if (d->queues[i].ready && d->transport != NULL)
            d->transport->ops->queue_interrupt(d->transport, i);
    }
    /* For the configuration only where it has ever changed: guests log each time that they look at it. */
    if (d->config_generation != 0 && d->transport != NULL)
        d->transport->ops->config_interrupt(d->transport);
}

void virtio_device_save(const struct virtio_device *d, struct bytes_writer *out)
{
    bytes_put_u16(out, STATE_VERSION);
    bytes_put_u16(out, d->id);
    bytes_put_u64(out, d->features_offered);
    bytes_put_u64(out, d->features);
    bytes_put_u8(out, d->status);
    bytes_put_u8(out, d->config_generation);
    bytes_put_u16(out, d->queue_count);
    for (unsigned i = 0; i < d->queue_count; i++)
        virtio_queue_save(&d->queues[i], out);
    if (d->ops->save != NULL)
        d->ops->save(d, out);
}

static int load_refuse(struct error *err, const struct virtio_device *d, const char *what)
{
    return error_set(err, -EBADMSG, ERROR_INVALID, "state of virtio-%s does not fit: %s", d->kind, what);
}

static int common_load(struct virtio_device *d, struct bytes_reader *in, struct error *err)
{
    uint16_t version = bytes_get_u16(in), id = bytes_get_u16(in);
    uint64_t offered = bytes_get_u64(in), features = bytes_get_u64(in);
    uint8_t status = bytes_get_u8(in), generation = bytes_get_u8(in);
    uint16_t queue_count = bytes_get_u16(in);
    if (in->bad)
        return load_refuse(err, d, "it is cut short");
    if (version != STATE_VERSION)
        return load_refuse(err, d, "its version is not known here");
    if (id != d->id)
        return load_refuse(err, d, "it is of another kind of device");
    if (queue_count != d->queue_count)
        return load_refuse(err, d, "the number of queues differs");
    /* What this side does not offer, but that one did not use either, is no obstacle; nor is what a driver has asked
     * for but not been granted. */
    bool granted = (status & VIRTIO_CONFIG_S_FEATURES_OK) != 0;
    if (granted && ((features & ~d->features_offered) != 0 || (features & ~offered) != 0))
        return load_refuse(err, d, "a feature in use is not offered here");
    if ((status & ~(STATUS_OF_DRIVER | VIRTIO_CONFIG_S_NEEDS_RESET)) != 0)
        return load_refuse(err, d, "unknown status bits");
    d->features = features;
    d->status = status;
    d->config_generation = generation;
    for (unsigned i = 0; i < d->queue_count; i++)
        if (virtio_queue_load(&d->queues[i], in, virtio_device_has(d, VIRTIO_RING_F_EVENT_IDX),
                              virtio_device_has(d, VIRTIO_RING_F_INDIRECT_DESC)) < 0)
            return load_refuse(err, d, "a queue");
    return 0;
}

int virtio_device_load(struct virtio_device *d, struct bytes_reader *in, struct error *err)
{
    ASSERT(d->paused);
    int code = common_load(d, in, err);
    if (code == 0 && d->ops->load != NULL)
        code = d->ops->load(d, in, err);
    /* A half-loaded device must not run: it is as after power-on. */
    if (code < 0)
        virtio_device_reset(d);
    return code;
}
