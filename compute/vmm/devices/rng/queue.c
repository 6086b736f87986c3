/* virtio-rng requests: each is answered at once, with at least one byte and no more than RNG_REQUEST_BYTES_MAX. */
#include <string.h>
#include <sys/random.h>

#include "compute/vmm/devices/rng/rng.h"

/* How many bytes of entropy went into the chain. */
static uint32_t serve(struct rng *rng)
{
    uint8_t bytes[256]; /* getrandom never stops short at this size (getrandom(2)) */
    uint64_t want = MIN(rng->chain.in_bytes, (uint64_t)RNG_REQUEST_BYTES_MAX), done = 0;
    while (done < want) {
        size_t piece = (size_t)MIN(want - done, (uint64_t)sizeof bytes);
        if (getrandom(bytes, piece, 0) != (ssize_t)piece)
            break;
        done += virtio_chain_write(&rng->chain, rng->virtio.memory, done, bytes, piece);
    }
    explicit_bzero(bytes, sizeof bytes);
    rng->given_bytes += done;
    return (uint32_t)done;
}

void rng_queue_notify(struct virtio_device *d, unsigned queue)
{
    struct rng *rng = CONTAINER_OF(d, struct rng, virtio);
    unsigned taken = 0;
    do {
        virtio_queue_ask_notify(&d->queues[queue], false);
        while (taken < RNG_BATCH_REQUESTS && virtio_device_pop(d, queue, &rng->chain)) {
            uint32_t given = serve(rng);
            virtio_queue_push(&d->queues[queue], rng->chain.head, given);
            taken++;
        }
    } while (taken < RNG_BATCH_REQUESTS && virtio_queue_ask_notify(&d->queues[queue], true));
    virtio_device_interrupt(d, queue);
    if (taken == RNG_BATCH_REQUESTS)
        d->transport->ops->queue_again(d->transport, queue);
}
