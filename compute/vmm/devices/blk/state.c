/* virtio-blk state that outlives the process. Requests in flight are finished before a save, parked ones are part of
 * their queue's state; so what is left is what must be the same on the other side. */
#include "compute/vmm/devices/blk/blk.h"
#include "compute/vmm/virtio/virtio_state.h"

static const struct virtio_state_field fields[] = {
    VIRTIO_STATE_FIELD(struct blk, size_bytes, U64, true),
    VIRTIO_STATE_FIELD(struct blk, serial, BYTES, true),
};
static const struct virtio_state_table table = {"virtio-blk", 1, ARRAY_SIZE(fields), fields};

void blk_state_save(const struct virtio_device *d, struct bytes_writer *out)
{
    virtio_state_save(&table, CONTAINER_OF(d, struct blk, virtio), out);
}

int blk_state_load(struct virtio_device *d, struct bytes_reader *in, struct error *err)
{
    return virtio_state_load(&table, CONTAINER_OF(d, struct blk, virtio), in, err);
}
