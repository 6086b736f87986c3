/* virtio-rng state that outlives the process. */
#include "compute/vmm/devices/rng/rng.h"
#include "compute/vmm/virtio/virtio_state.h"

static const struct virtio_state_field fields[] = {
    VIRTIO_STATE_FIELD(struct rng, given_bytes, U64, false),
};
static const struct virtio_state_table table = {"virtio-rng", 1, ARRAY_SIZE(fields), fields};

void rng_state_save(const struct virtio_device *d, struct bytes_writer *out)
{
    virtio_state_save(&table, CONTAINER_OF(d, struct rng, virtio), out);
}

int rng_state_load(struct virtio_device *d, struct bytes_reader *in, struct error *err)
{
    return virtio_state_load(&table, CONTAINER_OF(d, struct rng, virtio), in, err);
}
