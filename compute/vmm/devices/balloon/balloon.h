/* virtio-balloon (virtio 1.2 §5.5): the guest gives memory back on request, tells which pages are free of its own
 * accord (page reporting), and how it fares (statistics).
 *
 *   balloon_set_target --> config.num_pages --> driver inflates or deflates --> config.actual
 *
 * What the guest gives is discarded at once and comes back, as zeros, at its next touch; nothing keeps a guest from
 * touching it, so a balloon is a favour between a host and a willing guest, not a limit.
 *
 * Statistics: the driver leaves one buffer with us; giving it back asks for fresh numbers (§5.5.6.3). */
#ifndef COMPUTE_VMM_DEVICES_BALLOON_H
#define COMPUTE_VMM_DEVICES_BALLOON_H

#include "compute/vmm/virtio/virtio_device.h"

enum {
    BALLOON_QUEUE_SIZE = 128,
    BALLOON_QUEUES = 4,               /* inflate, deflate, statistics, reporting */
    BALLOON_PAGE_BYTES = 4096,        /* of this device, whatever the guest's pages are (§5.5.6) */
    BALLOON_BATCH_REQUESTS = 32,      /* per call, then the other devices have their turn... */
    BALLOON_BATCH_PAGES = 8192,       /* ...or so many page numbers: each may take a system call */
    BALLOON_REQUEST_PAGES_MAX = 4096, /* page numbers looked at in one request; drivers send 256 */
    BALLOON_STATS = 16,               /* tags that are kept: those of §5.5.6.4 and room for more */
    BALLOON_STAT_BYTES = 10,          /* le16 tag, le64 value */
};

/* What the driver last told; a value of UINT64_MAX was not told. */
struct balloon_stats {
    uint64_t values[BALLOON_STATS]; /* by VIRTIO_BALLOON_S_*; bytes, or counts since boot */
    uint64_t reports;               /* how many were received; 0: never */
};

struct balloon {
    struct virtio_device virtio;
    uint32_t target_pages;     /* what it should hold */
    uint32_t actual_pages;     /* what the driver says that it holds */
    uint64_t discarded_bytes;  /* given back by inflating, in all */
    uint64_t reported_bytes;   /* given back by page reporting, in all */
    bool stats_held;           /* a buffer of the driver's waits with us... */
    uint16_t stats_head;       /* ...this one */
    struct balloon_stats stats;
    struct virtio_chain chain; /* the request being served */
};

int balloon_create(struct guest_memory *memory, struct virtio_device **ret_device, struct error *err);

/* How much the guest should give back. -EINVAL where that is not a multiple of 4096 or more than the guest has: the
 * driver would starve the guest trying. It takes effect in the guest's own time: balloon_actual_bytes tells. */
int balloon_set_target(struct virtio_device *d, uint64_t bytes, struct error *err);
uint64_t balloon_target_bytes(const struct virtio_device *d);
uint64_t balloon_actual_bytes(const struct virtio_device *d);
/* The latest statistics; asks the driver for fresh ones on the way. */
const struct balloon_stats *balloon_stats_poll(struct virtio_device *d);

/* queue.c */
void balloon_queue_notify(struct virtio_device *d, unsigned queue);
void balloon_queue_reset(struct virtio_device *d);
void balloon_queue_resume(struct virtio_device *d);
/* device.c, for state.c: config.num_pages and .actual from target_pages and actual_pages. */
void balloon_config_fill(struct balloon *b);
/* state.c */
void balloon_state_save(const struct virtio_device *d, struct bytes_writer *out);
int balloon_state_load(struct virtio_device *d, struct bytes_reader *in, struct error *err);

#endif
