/* What travels: how far the guest has read, and the items themselves. A guest that is moved while its firmware reads
 * a table must go on with the same table, whatever the program on the other side would have built.
 *
 *   fields (table below), u16 number of items, each: u16 key, name, u32 size, bytes */
#include <errno.h>
#include <string.h>

#include "compute/vmm/devices/fw_cfg/fw_cfg.h"
#include "compute/vmm/virtio/virtio_state.h"

static const struct virtio_state_field fields[] = {
    VIRTIO_STATE_FIELD(struct fw_cfg, selected, U16, false),
    VIRTIO_STATE_FIELD(struct fw_cfg, offset, U32, false),
    VIRTIO_STATE_FIELD(struct fw_cfg, dma_high, U32, false),
};
static const struct virtio_state_table table = {"fw_cfg", 1, ARRAY_SIZE(fields), fields};

void fw_cfg_save(struct device *d, struct bytes_writer *out)
{
    struct fw_cfg *f = CONTAINER_OF(d, struct fw_cfg, device);
    virtio_state_save(&table, f, out);
    bytes_put_u16(out, (uint16_t)f->count);
    for (unsigned i = 0; i < f->count; i++) {
        const struct fw_cfg_item *item = &f->items[i];
        bytes_put_u16(out, item->key);
        bytes_put(out, item->name, sizeof(item->name));
        bytes_put_u32(out, item->size);
        bytes_put(out, item->data, item->size);
    }
}

/* One item into @item, or false. */
static bool item_load(struct fw_cfg_item *item, struct bytes_reader *in)
{
    item->key = bytes_get_u16(in);
    const char *name = bytes_get(in, sizeof(item->name));
    item->size = bytes_get_u32(in);
    const void *data = item->size <= FW_CFG_ITEM_BYTES_MAX ? bytes_get(in, item->size) : NULL;
    if (in->bad || !data || name[sizeof(item->name) - 1] != '\0')
        return false;
    memcpy(item->name, name, sizeof(item->name));
    item->data = xcalloc(1, MAX(item->size, 1u));
    memcpy(item->data, data, item->size);
    return true;
}

int fw_cfg_load(struct device *d, struct bytes_reader *in, struct error *err)
{
    struct fw_cfg *f = CONTAINER_OF(d, struct fw_cfg, device), loaded = {.count = 0};
    int code = virtio_state_load(&table, &loaded, in, err);
    if (code < 0)
        return code;
    unsigned count = bytes_get_u16(in);
    while (count <= FW_CFG_ITEMS_MAX && loaded.count < count && item_load(&loaded.items[loaded.count], in))
        loaded.count++;
    if (in->bad || loaded.count != count) {
        fw_cfg_clear(&loaded);
        return error_set(err, -EBADMSG, ERROR_INVALID, "%s: its saved items are damaged", d->name);
    }
    fw_cfg_clear(f);
    f->count = loaded.count;
    memcpy(f->items, loaded.items, sizeof(f->items));
    f->selected = loaded.selected;
    f->offset = loaded.offset;
    f->dma_high = loaded.dma_high;
    return 0;
}
