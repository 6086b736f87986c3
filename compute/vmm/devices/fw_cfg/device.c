/* Items, the two ways to read them, and their list. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "compute/vmm/devices/fw_cfg/fw_cfg.h"

enum { PORT_SELECTOR = 0x510, PORT_DMA = 0x514 };
enum { SELECTOR = 0, DATA = 1 };
enum { KEY_WRITE = 0x4000 };
enum { ID_TRADITIONAL = 1, ID_DMA = 2 };
enum { DMA_ERROR = 1, DMA_READ = 2, DMA_SKIP = 4, DMA_SELECT = 8, DMA_WRITE = 16, DMA_REQUEST_BYTES = 16 };
static const char dma_signature[8] = "QEMU CFG";

/* ---- items ---- */

static struct fw_cfg_item *item_find(struct fw_cfg *f, uint16_t key)
{
    for (unsigned i = 0; i < f->count; i++)
        if (f->items[i].key == key)
            return &f->items[i];
    return NULL;
}

static struct fw_cfg_item *item_make(struct fw_cfg *f, uint16_t key, const char *name)
{
    ASSERT(f->count < FW_CFG_ITEMS_MAX && strlen(name) < FW_CFG_NAME_BYTES);
    struct fw_cfg_item *item = &f->items[f->count++];
    *item = (struct fw_cfg_item){.key = key};
    snprintf(item->name, sizeof(item->name), "%s", name);
    return item;
}

static void item_fill(struct fw_cfg_item *item, const void *data, size_t size)
{
    ASSERT(size <= FW_CFG_ITEM_BYTES_MAX);
    free(item->data);
    item->data = xcalloc(1, MAX(size, (size_t)1));
    if (size)
        memcpy(item->data, data, size);
    item->size = (uint32_t)size;
}

/* "etc/e820" and the like, in the order in which they were made: big-endian, as nothing else here. */
static void directory_fill(struct fw_cfg *f)
{
    uint8_t list[4 + FW_CFG_ITEMS_MAX * 64] = {0};
    size_t at = 4;
    for (unsigned i = 0; i < f->count; i++) {
        const struct fw_cfg_item *item = &f->items[i];
        if (!item->name[0])
            continue;
        for (unsigned byte = 0; byte < 4; byte++)
            list[at + byte] = (uint8_t)(item->size >> (24 - 8 * byte));
        list[at + 4] = (uint8_t)(item->key >> 8);
        list[at + 5] = (uint8_t)item->key;
        memcpy(list + at + 8, item->name, FW_CFG_NAME_BYTES);
        list[3]++;
        at += 64;
    }
    fw_cfg_set(f, FW_CFG_FILE_DIR, list, at);
}

void fw_cfg_set(struct fw_cfg *f, uint16_t key, const void *data, size_t size)
{
    struct fw_cfg_item *item = item_find(f, key);
    item_fill(item ? item : item_make(f, key, ""), data, size);
}

void fw_cfg_set_integer(struct fw_cfg *f, uint16_t key, uint64_t value, unsigned size)
{
    uint8_t bytes[8];
    ASSERT(size <= sizeof(bytes));
    for (unsigned i = 0; i < size; i++)
        bytes[i] = (uint8_t)(value >> (8 * i));
    fw_cfg_set(f, key, bytes, size);
}

void fw_cfg_set_file(struct fw_cfg *f, const char *name, const void *data, size_t size)
{
    struct fw_cfg_item *item = NULL;
    uint16_t key = FW_CFG_FILE_FIRST;
    for (unsigned i = 0; i < f->count; i++) {
        if (!f->items[i].name[0])
            continue;
        if (strcmp(f->items[i].name, name) == 0)
            item = &f->items[i];
        key = MAX(key, (uint16_t)(f->items[i].key + 1));
    }
    item_fill(item ? item : item_make(f, key, name), data, size);
    directory_fill(f);
}

void fw_cfg_clear(struct fw_cfg *f)
{
    for (unsigned i = 0; i < f->count; i++)
        free(f->items[i].data);
    f->count = 0;
}

void fw_cfg_restart(struct fw_cfg *f)
{
    fw_cfg_clear(f);
    fw_cfg_set(f, FW_CFG_SIGNATURE, "QEMU", 4);
    fw_cfg_set_integer(f, FW_CFG_ID, ID_TRADITIONAL | ID_DMA, 4);
    directory_fill(f);
}

/* ---- reading ---- */

static void select_key(struct fw_cfg *f, uint16_t key)
{
    f->selected = key & (uint16_t)~KEY_WRITE;
    f->offset = 0;
}

/* The next @size bytes of what is selected, zeros past its end; @to NULL passes over them. */
static void next_bytes(struct fw_cfg *f, uint8_t *to, uint32_t size)
{
    const struct fw_cfg_item *item = item_find(f, f->selected);
    uint32_t left = item && f->offset < item->size ? item->size - f->offset : 0;
    uint32_t n = MIN(left, size);
    if (to && n)
        memcpy(to, item->data + f->offset, n);
    if (to)
        memset(to + n, 0, size - n);
    f->offset += n;
}

static uint64_t data_read(void *arg, uint64_t offset, unsigned size)
{
    uint8_t byte;
    if (offset != DATA || size != 1)
        return UINT64_MAX;
    next_bytes(arg, &byte, 1);
    return byte;
}

static void selector_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
    if (offset == SELECTOR && size == 2)
        select_key(arg, (uint16_t)value);
}

static uint32_t get_be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* A request lies in guest memory: control, length, address, all big-endian. Control is set to 0, or to 1 on failure. */
static void dma_run(struct fw_cfg *f, uint64_t at)
{
    uint8_t request[DMA_REQUEST_BYTES], answer[4] = {0};
    if (!memory_read(f->memory, at, request, sizeof(request)))
        return; /* there is nowhere to say so */
    uint32_t control = get_be32(request), length = get_be32(request + 4);
    uint64_t address = (uint64_t)get_be32(request + 8) << 32 | get_be32(request + 12);
    bool failed = false;
    if (control & DMA_SELECT)
        select_key(f, (uint16_t)(control >> 16));
    if (control & DMA_READ) {
        uint8_t *to = length <= FW_CFG_TRANSFER_BYTES_MAX ? memory_at(f->memory, address, length) : NULL;
        failed = !to && length;
        if (to) {
            next_bytes(f, to, length);
            memory_mark_dirty(f->memory, address, length);
        }
    } else if (control & DMA_WRITE) {
        failed = true;
    } else if (control & DMA_SKIP) {
        next_bytes(f, NULL, length);
    }
    answer[3] = failed ? DMA_ERROR : 0;
    memory_write(f->memory, at, answer, sizeof(answer));
}

static uint64_t dma_read(void *arg UNUSED, uint64_t offset, unsigned size)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)(uint8_t)dma_signature[offset + i] << (8 * i);
    return value;
}

/* The address comes big-endian in two halves; the second one begins the transfer. */
static void dma_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
    struct fw_cfg *f = arg;
    if (size != 4)
        return;
    uint32_t half = __builtin_bswap32((uint32_t)value);
    if (offset == 0) {
        f->dma_high = half;
    } else if (offset == 4) {
        uint64_t at = (uint64_t)f->dma_high << 32 | half;
        f->dma_high = 0;
        dma_run(f, at);
    }
}

/* ---- as the machine sees it ---- */

static void fw_cfg_reset(struct device *d)
{
    struct fw_cfg *f = CONTAINER_OF(d, struct fw_cfg, device);
    select_key(f, 0);
    f->dma_high = 0;
}

static void fw_cfg_destroy(struct device *d)
{
    struct fw_cfg *f = CONTAINER_OF(d, struct fw_cfg, device);
    bus_remove(f->ports, PORT_SELECTOR);
    bus_remove(f->ports, PORT_DMA);
    fw_cfg_clear(f);
    free(f);
}

static const struct device_ops fw_cfg_ops = {
    .reset = fw_cfg_reset, .save = fw_cfg_save, .load = fw_cfg_load, .destroy = fw_cfg_destroy};

int fw_cfg_create(struct bus *ports, struct guest_memory *memory, struct fw_cfg **ret_fw_cfg, struct error *err)
{
    struct fw_cfg *f = NEW(struct fw_cfg);
    f->ports = ports;
    f->memory = memory;
    device_init(&f->device, &fw_cfg_ops, "fw_cfg");
    struct bus_range data = {
        .start = PORT_SELECTOR, .size = 2, .read = data_read, .write = selector_write, .arg = f};
    struct bus_range dma = {.start = PORT_DMA, .size = 8, .read = dma_read, .write = dma_write, .arg = f};
    int code = bus_add(ports, &data, err);
    if (code == 0 && (code = bus_add(ports, &dma, err)) < 0)
        bus_remove(ports, PORT_SELECTOR);
    if (code < 0) {
        free(f);
        return code;
    }
    fw_cfg_restart(f);
    *ret_fw_cfg = f;
    return 0;
}

struct device *fw_cfg_device(struct fw_cfg *f)
{
    return &f->device;
}
