/* fw_cfg: how firmware asks the machine about itself (QEMU docs/specs/fw_cfg). Numbered items and named files, read
 * by ports 0x510 (selector) and 0x511 (data), or all at once by DMA from port 0x514. Nothing in it can be written.
 *
 * Threads: as device.h; the set functions with the device lock held or before vCPUs run. */
#ifndef COMPUTE_VMM_DEVICES_FW_CFG_FW_CFG_H
#define COMPUTE_VMM_DEVICES_FW_CFG_FW_CFG_H

#include "compute/vmm/bus.h"
#include "compute/vmm/device.h"
#include "compute/vmm/memory.h"

#define FW_CFG_ITEMS_MAX 32u
#define FW_CFG_ITEM_BYTES_MAX 0x100000u     /* of one item: tables and lists, never an image */
#define FW_CFG_TRANSFER_BYTES_MAX 0x400000u /* of one DMA request: reads past an item's end give zeros, but not for ever */
#define FW_CFG_NAME_BYTES 56u               /* of a file, with its terminator */

/* Items with a number of their own, as QEMU has them. */
enum {
    FW_CFG_SIGNATURE = 0x00,
    FW_CFG_ID = 0x01,
    FW_CFG_RAM_SIZE = 0x03,
    FW_CFG_NOGRAPHIC = 0x04,
    FW_CFG_NB_CPUS = 0x05,
    FW_CFG_BOOT_MENU = 0x0e,
    FW_CFG_MAX_CPUS = 0x0f,
    FW_CFG_FILE_DIR = 0x19,
    FW_CFG_FILE_FIRST = 0x20,
    FW_CFG_IRQ0_OVERRIDE = 0x8002,
};

struct fw_cfg_item {
    uint16_t key;
    char name[FW_CFG_NAME_BYTES]; /* empty: not a file */
    uint32_t size;
    uint8_t *data;
};

struct fw_cfg {
    struct device device;
    struct bus *ports;
    struct guest_memory *memory;
    unsigned count;
    struct fw_cfg_item items[FW_CFG_ITEMS_MAX];
    uint16_t selected; /* key; none of that key reads zeros */
    uint32_t offset;   /* of the next byte in it */
    uint32_t dma_high; /* first half of the address of the next DMA request */
};

/* @memory outlives it. On success released by its device's destroy. */
int fw_cfg_create(struct bus *ports, struct guest_memory *memory, struct fw_cfg **ret_fw_cfg, struct error *err);
struct device *fw_cfg_device(struct fw_cfg *f);
/* Back to what every machine has: signature, features, an empty directory. Before the items of a power-on are set: what
 * a snapshot has brought along is of any number and name, and ends with the run that it belongs to. */
void fw_cfg_restart(struct fw_cfg *f);
/* Make item @key, or replace its content by a copy of @data. At most FW_CFG_ITEMS_MAX of FW_CFG_ITEM_BYTES_MAX. */
void fw_cfg_set(struct fw_cfg *f, uint16_t key, const void *data, size_t size);
void fw_cfg_set_integer(struct fw_cfg *f, uint16_t key, uint64_t value, unsigned size);
/* The same for the file @name, which gets a key of its own. */
void fw_cfg_set_file(struct fw_cfg *f, const char *name, const void *data, size_t size);

/* ---- between the files of this device ---- */

void fw_cfg_clear(struct fw_cfg *f); /* forget all items */
void fw_cfg_save(struct device *d, struct bytes_writer *out);
int fw_cfg_load(struct device *d, struct bytes_reader *in, struct error *err);

#endif
