/* What travels: the state of the commands and the whole content, the firmware's too: a guest that has been moved goes
 * on, and boots again, with the image that it began with. */
#include <errno.h>
#include <string.h>

#include "compute/vmm/devices/flash/flash.h"
#include "compute/vmm/virtio/virtio_state.h"

static const struct virtio_state_field fields[] = {
    VIRTIO_STATE_FIELD(struct flash, size, U64, true),
    VIRTIO_STATE_FIELD(struct flash, mode, U8, false),
    VIRTIO_STATE_FIELD(struct flash, status, U8, false),
};
static const struct virtio_state_table table = {"flash", 1, ARRAY_SIZE(fields), fields};

void flash_save(struct device *d, struct bytes_writer *out)
{
    struct flash *f = CONTAINER_OF(d, struct flash, device);
    virtio_state_save(&table, f, out);
    bytes_put(out, f->content, f->size);
}

int flash_load(struct device *d, struct bytes_reader *in, struct error *err)
{
    struct flash *f = CONTAINER_OF(d, struct flash, device);
    struct flash registers = {.size = f->size};
    int code = virtio_state_load(&table, &registers, in, err);
    if (code < 0) {
        error_prefix(err, "%s: ", d->name);
        return code;
    }
    const void *content = bytes_get(in, f->size);
    if (!content || registers.mode >= FLASH_MODES)
        return error_set(err, -EBADMSG, ERROR_INVALID, "%s: its saved content is damaged", d->name);
    memcpy(f->content, content, f->size);
    if (!f->read_only)
        memset(f->dirty, 1, f->dirty_count = (unsigned)(f->size / FLASH_BLOCK_BYTES));
    f->held = true; /* a load may yet fail as a whole, and then the file is as it was */
    f->status = registers.status;
    flash_mode_set(f, (enum flash_mode)registers.mode);
    return 0;
}
