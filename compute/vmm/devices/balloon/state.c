/* virtio-balloon state that outlives the process. The held statistics buffer is among the queue's taken requests. */
#include "compute/vmm/devices/balloon/balloon.h"
#include "compute/vmm/virtio/virtio_state.h"

static const struct virtio_state_field fields[] = {
    VIRTIO_STATE_FIELD(struct balloon, target_pages, U32, false),
    VIRTIO_STATE_FIELD(struct balloon, actual_pages, U32, false),
    VIRTIO_STATE_FIELD(struct balloon, discarded_bytes, U64, false),
    VIRTIO_STATE_FIELD(struct balloon, reported_bytes, U64, false),
};
static const struct virtio_state_table table = {"virtio-balloon", 1, ARRAY_SIZE(fields), fields};

void balloon_state_save(const struct virtio_device *d, struct bytes_writer *out)
{
    virtio_state_save(&table, CONTAINER_OF((struct virtio_device *)d, struct balloon, virtio), out);
}

int balloon_state_load(struct virtio_device *d, struct bytes_reader *in, struct error *err)
{
    struct balloon *b = CONTAINER_OF(d, struct balloon, virtio);
    int code = virtio_state_load(&table, b, in, err);
    if (code == 0)
        balloon_config_fill(b);
    return code;
}
