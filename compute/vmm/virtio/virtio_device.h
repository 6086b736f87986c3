/* What every virtio device is, whatever carries it: features, status, queues, configuration bytes (virtio 1.2 §2).
 *
 * A device implements struct virtio_device_ops and embeds struct virtio_device; a transport (virtio_pci.h) shows it
 * to the guest and implements struct virtio_transport_ops. Neither knows more of the other than this header.
 *
 *   status 0 --ACKNOWLEDGE, DRIVER--> features chosen --FEATURES_OK--> queues set up --DRIVER_OK--> start(): running
 *      ^                                                                                              |
 *      +--- driver writes 0: reset() -----------------------------------<--- NEEDS_RESET: a rule was broken
 *
 * Threads: everything is called with the machine's device lock held (device.h). */
#ifndef COMPUTE_VMM_VIRTIO_DEVICE_H
#define COMPUTE_VMM_VIRTIO_DEVICE_H

#include "common/bytes.h"
#include "common/error.h"
#include "compute/vmm/virtio/virtio_queue.h"

enum {
    VIRTIO_QUEUES_MAX = 17,        /* of one device: 16 for requests and one for control */
    VIRTIO_CONFIG_BYTES_MAX = 128, /* device-specific configuration space */
};

struct virtio_device;
struct virtio_transport;

struct virtio_transport_ops {
    /* Tell the driver that queue @queue has used buffers. */
    void (*queue_interrupt)(struct virtio_transport *, unsigned queue);
    /* Tell the driver that configuration or status has changed. */
    void (*config_interrupt)(struct virtio_transport *);
    /* Call notify(@queue) again soon, from the I/O loop: the device has done its share for this round. */
    void (*queue_again)(struct virtio_transport *, unsigned queue);
};
struct virtio_transport {
    const struct virtio_transport_ops *ops;
};

/* Duties of a device; those marked (NULL) may be left out. */
struct virtio_device_ops {
    /* The driver is ready and its queues are set up: features are final. (NULL) */
    void (*start)(struct virtio_device *);
    /* Queue @queue may have new requests. Only while running and not paused. Take what is there within a bound of the
     * device's own, then transport->queue_again. */
    void (*notify)(struct virtio_device *, unsigned queue);
    /* Give up the driver's requests: on return none is in flight and guest memory is touched no more. The queues are
     * reset by the caller, afterwards. (NULL) */
    void (*reset)(struct virtio_device *);
    /* Finish what is in flight and start nothing; requests that cannot be finished now stay taken. (NULL) */
    void (*pause)(struct virtio_device *);
    /* Go on. Afterwards notify() is called for every ready queue. Requests still taken (virtio_queue_retake) are to
     * be started again. (NULL) */
    void (*resume)(struct virtio_device *);
    /* The driver wrote @size bytes (1, 2, 4 or 8) at @offset of the configuration space, within config_bytes; NULL: it
     * is read-only to the driver. */
    void (*config_write)(struct virtio_device *, unsigned offset, unsigned size, uint64_t value);
    /* The device's own state between pause and resume; load refuses what save cannot have written. (NULL) */
    void (*save)(const struct virtio_device *, struct bytes_writer *out);
    int (*load)(struct virtio_device *, struct bytes_reader *in, struct error *err);
    /* Release the device and what it owns; nothing is in flight. */
    void (*destroy)(struct virtio_device *);
};

struct virtio_device {
    const struct virtio_device_ops *ops;
    const char *kind;   /* "blk", "net": for logs */
    uint16_t id;        /* VIRTIO_ID_* (§5) */
    uint32_t pci_class; /* class << 16 | subclass << 8 | prog-if */
    uint64_t features_offered;
    uint64_t features;         /* what the driver accepted; final once FEATURES_OK is set */
    uint8_t status;            /* VIRTIO_CONFIG_S_* */
    uint8_t config_generation; /* steps whenever config changes while the driver may be reading it (§2.5.1) */
    bool paused;
    uint8_t complaints; /* NEEDS_RESET so far that went to the log */
    uint16_t config_bytes;
    uint8_t config[VIRTIO_CONFIG_BYTES_MAX]; /* little-endian, as the guest reads it */
    uint16_t queue_count;
    struct virtio_queue *queues;
    struct guest_memory *memory;        /* borrowed */
    struct virtio_transport *transport; /* set by the transport; NULL before */
};

/* @queue_count within VIRTIO_QUEUES_MAX, each of up to @queue_size entries. VERSION_1, INDIRECT_DESC and EVENT_IDX
 * are offered besides @features. finish frees the queues only. */
void virtio_device_init(struct virtio_device *d, const struct virtio_device_ops *ops, const char *kind, uint16_t id,
                        uint32_t pci_class, uint64_t features, struct guest_memory *memory, uint16_t queue_count,
                        uint16_t queue_size);
void virtio_device_finish(struct virtio_device *d);

/* For devices. */
static inline bool virtio_device_has(const struct virtio_device *d, unsigned feature_bit)
{
    return (d->features >> feature_bit & 1) != 0;
}
/* DRIVER_OK is set, and neither NEEDS_RESET nor FAILED. */
bool virtio_device_running(const struct virtio_device *d);
/* Interrupt for queue @queue, if the driver wants one for what was pushed. */
void virtio_device_interrupt(struct virtio_device *d, unsigned queue);
/* The driver broke the rules: stop, and say so (§2.1.2). */
void virtio_device_needs_reset(struct virtio_device *d, const char *reason);
/* Take a request of queue @queue, as virtio_queue_pop; a broken rule is reported to the driver here, and false. */
bool virtio_device_pop(struct virtio_device *d, unsigned queue, struct virtio_chain *ret_chain);
/* `config` has been changed: new generation, interrupt. */
void virtio_device_config_changed(struct virtio_device *d);

/* For transports. */
/* The driver writes the status register; 0 resets. Moves that the standard forbids are ignored. */
void virtio_device_set_status(struct virtio_device *d, uint8_t status);
/* The driver chooses 32 feature bits, word @word of 2; ignored once FEATURES_OK is set. */
void virtio_device_set_features(struct virtio_device *d, unsigned word, uint32_t bits);
/* May the driver still set queues up? */
bool virtio_device_accepts_setup(const struct virtio_device *d);
void virtio_device_enable_queue(struct virtio_device *d, unsigned queue);
void virtio_device_notify(struct virtio_device *d, unsigned queue);
void virtio_device_reset(struct virtio_device *d);
void virtio_device_pause(struct virtio_device *d);
void virtio_device_resume(struct virtio_device *d);
/* Common state (status, features, queues), then the device's own. load: into a fresh device of the same make, paused;
 * -EBADMSG in words for anything that does not fit. */
void virtio_device_save(const struct virtio_device *d, struct bytes_writer *out);
int virtio_device_load(struct virtio_device *d, struct bytes_reader *in, struct error *err);

#endif
