/* virtio-rng (virtio 1.2 §5.4): entropy from the host's getrandom(2). The smallest whole device. */
#ifndef COMPUTE_VMM_DEVICES_RNG_H
#define COMPUTE_VMM_DEVICES_RNG_H

#include "compute/vmm/virtio/virtio_device.h"

enum {
    RNG_QUEUE_SIZE = 64,
    RNG_REQUEST_BYTES_MAX = 4096, /* given per request, however much is asked for */
    RNG_BATCH_REQUESTS = 64,      /* per call, then the other devices have their turn */
};

struct rng {
    struct virtio_device virtio;
    uint64_t given_bytes;      /* in all, over migrations too */
    struct virtio_chain chain; /* the request being served */
};

int rng_create(struct guest_memory *memory, struct virtio_device **ret_device, struct error *err);

/* queue.c */
void rng_queue_notify(struct virtio_device *d, unsigned queue);
/* state.c */
void rng_state_save(const struct virtio_device *d, struct bytes_writer *out);
int rng_state_load(struct virtio_device *d, struct bytes_reader *in, struct error *err);

#endif
