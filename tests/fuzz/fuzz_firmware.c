/* fw_cfg and a flash chip under a guest that reads and writes at random: nine bytes say where, how wide and what.
 * Guest memory is what the input says, too. Whatever the guest has done, what is saved can be loaded. */
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/log.h"
#include "compute/vmm/devices/flash/flash.h"
#include "compute/vmm/devices/fw_cfg/fw_cfg.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { CHIP_BYTES = 2 * FLASH_BLOCK_BYTES, STEPS_MAX = 256, SAVES_MAX = 4 };
#define CHIP 0xffc00000ull

static int on_show(void *arg, const struct flash *f, bool shown, struct error *err UNUSED)
{
    bool *is_shown = arg;
    if (*is_shown == shown || f->size != CHIP_BYTES)
        abort();
    *is_shown = shown;
    return 0;
}

static void travel(struct device *d)
{
    struct bytes_writer saved = {0};
    d->ops->save(d, &saved);
    struct bytes_reader in = bytes_reader(saved.data, saved.size);
    if (d->ops->load(d, &in, NULL) != 0 || bytes_left(&in))
        abort();
    bytes_writer_finish(&saved);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct bus ports, memory;
    struct guest_memory ram;
    struct fw_cfg *fw_cfg;
    struct flash *flash;
    bool shown = false;
    uint8_t content[CHIP_BYTES] = {0};
    struct bytes_reader r = bytes_reader(data, size);
    unsigned saves = 0;
    log_set_level(LOG_LEVEL_ERROR);
    bus_init(&ports, NULL);
    bus_init(&memory, NULL);
    struct flash_options options = {.name = "chip",
                                    .address = CHIP,
                                    .content = content,
                                    .size = CHIP_BYTES,
                                    .fd = -1,
                                    .show = on_show,
                                    .show_arg = &shown};
    if (memory_init(&ram, MEMORY_BYTES_MIN, NULL) < 0 || fw_cfg_create(&ports, &ram, &fw_cfg, NULL) < 0 ||
        flash_create(&memory, &options, &flash, NULL) < 0)
        abort();
    fw_cfg_set_file(fw_cfg, "etc/file", content, 1000);
    for (unsigned step = 0; step < STEPS_MAX && bytes_left(&r) >= 9; step++) {
        uint8_t what = bytes_get_u8(&r), width = (uint8_t)(1u << (what >> 6));
        uint32_t where = bytes_get_u32(&r), value = bytes_get_u32(&r);
        switch (what & 7) {
        case 0:
            bus_write(&ports, 0x510 + where % 16, width, value);
            break;
        case 1:
            bus_read(&ports, 0x510 + where % 16, width);
            break;
        case 2: /* a DMA request: the four numbers come from where the guest has put them */
            bus_write(&ports, 0x518, 4, __builtin_bswap32(where));
            break;
        case 3:
            memory_write(&ram, where % MEMORY_BYTES_MIN, &value, 4);
            break;
        case 4:
            bus_write(&memory, CHIP + where % (CHIP_BYTES + 16), width, value);
            break;
        case 5:
            bus_read(&memory, CHIP + where % (CHIP_BYTES + 16), width);
            break;
        case 6:
            if (saves++ < SAVES_MAX) {
                travel(fw_cfg_device(fw_cfg));
                travel(flash_device(flash));
            }
            break;
        default:
            if (flash->shown != (flash->mode == FLASH_ARRAY))
                abort();
            break;
        }
    }
    fw_cfg_device(fw_cfg)->ops->destroy(fw_cfg_device(fw_cfg));
    flash_device(flash)->ops->destroy(flash_device(flash));
    if (shown)
        abort();
    memory_finish(&ram);
    bus_finish(&ports);
    bus_finish(&memory);
    return 0;
}
