/* The commands and the file. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/log.h"
#include "compute/vmm/devices/flash/flash.h"

enum {
    COMMAND_PROGRAM_OLD = 0x10,
    COMMAND_ERASE = 0x20,
    COMMAND_PROGRAM = 0x40,
    COMMAND_CLEAR_STATUS = 0x50,
    COMMAND_STATUS = 0x70,
    COMMAND_CONFIRM = 0xd0,
};
enum { STATUS_READY = 0x80, STATUS_ERASE_FAILED = 0x20, STATUS_PROGRAM_FAILED = 0x10 };

/* ---- the file ---- */

static int block_write(struct flash *f, uint64_t at)
{
    for (uint64_t done = 0; done < FLASH_BLOCK_BYTES;) {
        ssize_t n = pwrite(f->fd, f->content + at + done, FLASH_BLOCK_BYTES - done, (off_t)(at + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        done += (uint64_t)n;
    }
    return 0;
}

static int flush_blocks(struct flash *f)
{
    for (uint64_t block = 0; block < f->size / FLASH_BLOCK_BYTES; block++) {
        int code = f->dirty[block] ? block_write(f, block * FLASH_BLOCK_BYTES) : 0;
        if (code < 0)
            return code;
    }
    return fdatasync(f->fd) < 0 ? -errno : 0;
}

static bool flush(struct flash *f)
{
    if (!f->dirty_count || f->fd < 0 || f->held)
        return true;
    int code = flush_blocks(f);
    if (code < 0) {
        if (f->logged++ < FLASH_LOGGED_MAX)
            log_warning("firmware-variables-not-written", "chip=%s error=\"%s\"", f->device.name, strerror(-code));
        return false;
    }
    memset(f->dirty, 0, sizeof(f->dirty));
    f->dirty_count = 0;
    return true;
}

static void mark_dirty(struct flash *f, uint64_t at)
{
    uint8_t *block = &f->dirty[at / FLASH_BLOCK_BYTES];
    f->dirty_count += !*block;
    *block = 1;
}

/* ---- commands ---- */

/* The only writer of `mode`. A chip that cannot be shown still answers, one exit for each read. */
void flash_mode_set(struct flash *f, enum flash_mode mode)
{
    struct error err;
    bool wanted = mode == FLASH_ARRAY;
    f->mode = (uint8_t)mode;
    if (wanted && !flush(f))
        f->status |= STATUS_PROGRAM_FAILED;
    if (wanted == f->shown)
        return;
    if (f->show(f->show_arg, f, wanted, &err) == 0)
        f->shown = wanted;
    else if (f->logged++ < FLASH_LOGGED_MAX)
        log_warning("flash-not-mapped", "chip=%s error=\"%s\"", f->device.name, err.text);
}

static void program(struct flash *f, uint64_t offset, unsigned size, uint64_t value)
{
    for (unsigned i = 0; i < size; i++) {
        f->content[offset + i] = (uint8_t)(value >> (8 * i));
        mark_dirty(f, offset + i);
    }
    f->status |= STATUS_READY;
}

static void erase(struct flash *f, uint64_t offset)
{
    uint64_t block = offset & ~(uint64_t)(FLASH_BLOCK_BYTES - 1);
    memset(f->content + block, 0xff, FLASH_BLOCK_BYTES);
    mark_dirty(f, block);
    f->status |= STATUS_READY;
    if (!flush(f))
        f->status |= STATUS_ERASE_FAILED;
}

static void command(struct flash *f, uint8_t value)
{
    switch (value) {
    case COMMAND_PROGRAM_OLD:
    case COMMAND_PROGRAM:
        flash_mode_set(f, FLASH_PROGRAM);
        break;
    case COMMAND_ERASE:
        flash_mode_set(f, FLASH_ERASE);
        break;
    case COMMAND_STATUS:
        flash_mode_set(f, FLASH_STATUS);
        break;
    case COMMAND_CLEAR_STATUS:
        /* OVMF knows a chip by what QEMU's does here: the content reads again, and the status, asked for next, is 0
         * without the bit that says ready. */
        f->status = 0;
        flash_mode_set(f, FLASH_ARRAY);
        break;
    default: /* 0xff, and what the chip does not know */
        flash_mode_set(f, FLASH_ARRAY);
        break;
    }
}

static uint64_t chip_read(void *arg, uint64_t offset, unsigned size)
{
    struct flash *f = arg;
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)(f->mode == FLASH_ARRAY ? f->content[offset + i] : f->status) << (8 * i);
    return value;
}

static void chip_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
    struct flash *f = arg;
    if (f->read_only)
        return;
    if (f->mode == FLASH_PROGRAM) {
        program(f, offset, size, value);
        flash_mode_set(f, FLASH_STATUS);
    } else if (f->mode == FLASH_ERASE) {
        if ((uint8_t)value == COMMAND_CONFIRM)
            erase(f, offset);
        else
            f->status |= STATUS_READY | STATUS_ERASE_FAILED | STATUS_PROGRAM_FAILED; /* a wrong sequence: both */
        flash_mode_set(f, FLASH_STATUS);
    } else {
        command(f, (uint8_t)value);
    }
}

/* ---- as the machine sees it ---- */

static void flash_reset(struct device *d)
{
    struct flash *f = CONTAINER_OF(d, struct flash, device);
    f->status = 0;
    flash_mode_set(f, FLASH_ARRAY);
}

static void flash_pause(struct device *d)
{
    flush(CONTAINER_OF(d, struct flash, device));
}

static void flash_resume(struct device *d)
{
    struct flash *f = CONTAINER_OF(d, struct flash, device);
    f->held = false;
    flush(f); /* after load: the file here may have another content */
}

static void flash_destroy(struct device *d)
{
    struct flash *f = CONTAINER_OF(d, struct flash, device);
    flush(f);
    if (f->shown)
        f->show(f->show_arg, f, false, NULL);
    bus_remove(f->memory, f->address);
    munmap(f->content, f->size);
    close_fd(&f->fd);
    free(f);
}

static const struct device_ops flash_ops = {.reset = flash_reset,
                                            .pause = flash_pause,
                                            .resume = flash_resume,
                                            .save = flash_save,
                                            .load = flash_load,
                                            .destroy = flash_destroy};

int flash_create(struct bus *memory, const struct flash_options *o, struct flash **ret_flash, struct error *err)
{
    ASSERT(o->size && o->size % FLASH_BLOCK_BYTES == 0 && o->size <= FLASH_BYTES_MAX);
    void *content = mmap(NULL, o->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (content == MAP_FAILED)
        return error_errno(err, -errno, "cannot map %" PRIu64 " bytes of flash", o->size);
    struct flash *f = NEW(struct flash);
    f->memory = memory;
    f->address = o->address;
    f->size = o->size;
    f->content = memcpy(content, o->content, o->size);
    f->read_only = o->read_only;
    f->fd = -1;
    f->show = o->show;
    f->show_arg = o->show_arg;
    device_init(&f->device, &flash_ops, o->name);
    struct bus_range range = {
        .start = o->address, .size = o->size, .read = chip_read, .write = chip_write, .arg = f};
    int code = bus_add(memory, &range, err);
    if (code < 0) {
        munmap(content, o->size);
        free(f);
        return code;
    }
    f->fd = o->fd;
    flash_mode_set(f, FLASH_ARRAY);
    *ret_flash = f;
    return 0;
}

struct device *flash_device(struct flash *f)
{
    return &f->device;
}
