/* virtio-blk state that outlives the process. Requests in flight are finished before a save, parked ones are part of
 * their queue's state; so what is left is what must be the same on the other side. */
#include <string.h>

#include "common/log.h"
#include "compute/vmm/devices/blk/blk.h"
#include "compute/vmm/virtio/virtio_state.h"

static const struct virtio_state_field fields[] = {
    VIRTIO_STATE_FIELD(struct blk, size_bytes, U64, true),
    VIRTIO_STATE_FIELD(struct blk, serial, BYTES, true),
};
static const struct virtio_state_table table = {"virtio-blk", 1, ARRAY_SIZE(fields), fields};

/* A guest takes for written what was completed, and its memory, which is saved now, no longer has it. A raw file keeps
 * that in the host's page cache, whatever becomes of us; elsewhere it has to be flushed. */
static void what_was_completed_outlives_us(struct blk *blk)
{
    if (!blk->block->lost_with_process)
        return;
    int code = block_now(blk->block, BLOCK_FLUSH, 0, NULL, 0);
    if (code < 0)
        log_warning("disk-not-flushed", "disk=%s error=\"%s\" why=\"its state is being saved\"", blk->name, strerror(-code));
}

void blk_state_save(const struct virtio_device *d, struct bytes_writer *out)
{
    what_was_completed_outlives_us(CONTAINER_OF(d, struct blk, virtio));
    virtio_state_save(&table, CONTAINER_OF(d, struct blk, virtio), out);
}

int blk_state_load(struct virtio_device *d, struct bytes_reader *in, struct error *err)
{
    return virtio_state_load(&table, CONTAINER_OF(d, struct blk, virtio), in, err);
}
