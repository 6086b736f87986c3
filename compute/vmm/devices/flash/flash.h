/* A flash chip with Intel's command set, byte-wide, in blocks of 4 KiB: where UEFI firmware keeps its variables; and,
 * read-only, the firmware itself.
 *
 *              0xff, 0x50, anything unknown             0x10, 0x40: PROGRAM --- data ---+
 *         +------------------------------------+        0x20: ERASE --- 0xd0 or not ----+
 *         v                                    |        0x70: ---------------------------+
 *       ARRAY -------- a command ------------> ... <----------------------------------> STATUS
 *
 * In ARRAY the guest reads the content straight from memory (`show`); in every other state a read is an exit and gives
 * the status: 0x80 ready, 0x20 erase failed, 0x10 program failed.
 *
 * Durability: content changes in memory; when the guest goes back to ARRAY, and after each erase, what has changed is
 * written to the file and the file is synced, with the device lock held. A write that the disk refuses is an event in
 * the log (the first times) and an error bit in the status, and is tried again with the next one.
 *
 * Threads: as device.h. */
#ifndef COMPUTE_VMM_DEVICES_FLASH_FLASH_H
#define COMPUTE_VMM_DEVICES_FLASH_FLASH_H

#include "compute/vmm/bus.h"
#include "compute/vmm/device.h"

#define FLASH_BLOCK_BYTES 4096u
#define FLASH_BYTES_MAX 0x800000u /* 8 MiB: firmware and variables have 16 MiB below 4 GiB together */
#define FLASH_LOGGED_MAX 16u      /* refusals of one chip: a guest may ask for the next at once */

struct flash;
/* Let the guest read the chip's content (page aligned) at its address, or take that away. */
typedef int (*flash_show_fn)(void *arg, const struct flash *f, bool shown, struct error *err);

struct flash_options {
    const char *name;
    uint64_t address; /* guest-physical */
    const void *content;
    uint64_t size; /* of content: a multiple of FLASH_BLOCK_BYTES, at most FLASH_BYTES_MAX */
    bool read_only;
    int fd; /* the file that keeps it, owned by the chip once it is made; -1: lost with the VMM */
    flash_show_fn show;
    void *show_arg;
};

enum flash_mode { FLASH_ARRAY, FLASH_STATUS, FLASH_PROGRAM, FLASH_ERASE, FLASH_MODES };

struct flash {
    struct device device;
    struct bus *memory;
    uint64_t address, size;
    uint8_t *content;
    bool read_only, shown;
    int fd;
    flash_show_fn show;
    void *show_arg;
    uint8_t mode; /* enum flash_mode */
    uint8_t status;
    uint8_t dirty[FLASH_BYTES_MAX / FLASH_BLOCK_BYTES]; /* 1: the block differs from the file */
    unsigned dirty_count, logged;
    bool held; /* loaded and not run yet: nothing goes to the file */
};

/* On success released by its device's destroy, and options->fd with it. */
int flash_create(struct bus *memory, const struct flash_options *options, struct flash **ret_flash,
                 struct error *err);
struct device *flash_device(struct flash *f);

/* ---- between the files of this device ---- */

void flash_mode_set(struct flash *f, enum flash_mode mode);
void flash_save(struct device *d, struct bytes_writer *out);
int flash_load(struct device *d, struct bytes_reader *in, struct error *err);

#endif
