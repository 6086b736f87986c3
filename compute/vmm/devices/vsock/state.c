/* virtio-vsock state that outlives the process: the next port, so that none is used again too soon. Connections stay
 * behind. */
#include "compute/vmm/devices/vsock/vsock.h"
#include "compute/vmm/virtio/virtio_state.h"

static const struct virtio_state_field fields[] = {
    VIRTIO_STATE_FIELD(struct vsock, cid, U64, true),
    VIRTIO_STATE_FIELD(struct vsock, next_port, U32, false),
};
static const struct virtio_state_table table = {"virtio-vsock", 1, ARRAY_SIZE(fields), fields};

void vsock_state_save(const struct virtio_device *d, struct bytes_writer *out)
{
    virtio_state_save(&table, CONTAINER_OF((struct virtio_device *)d, struct vsock, virtio), out);
}

int vsock_state_load(struct virtio_device *d, struct bytes_reader *in, struct error *err)
{
    struct vsock *v = CONTAINER_OF(d, struct vsock, virtio);
    int code = virtio_state_load(&table, v, in, err);
    if (code == 0)
        v->tell_reset = true;
    return code;
}
