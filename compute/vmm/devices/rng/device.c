/* virtio-rng: making the device. */
#include <linux/virtio_ids.h>

#include "compute/vmm/devices/rng/rng.h"

enum { PCI_CLASS_OTHER = 0xff0000 };

static void rng_destroy(struct virtio_device *d)
{
    virtio_device_finish(d);
    free(CONTAINER_OF(d, struct rng, virtio));
}

static const struct virtio_device_ops rng_ops = {
    .notify = rng_queue_notify,
    .save = rng_state_save,
    .load = rng_state_load,
    .destroy = rng_destroy,
};

int rng_create(struct guest_memory *memory, struct virtio_device **ret_device, struct error *err UNUSED)
{
    struct rng *rng = NEW(struct rng);
    virtio_device_init(&rng->virtio, &rng_ops, "rng", VIRTIO_ID_RNG, PCI_CLASS_OTHER, 0, memory, 1, RNG_QUEUE_SIZE);
    *ret_device = &rng->virtio;
    return 0;
}
