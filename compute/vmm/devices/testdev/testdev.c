/* The test programs' ports and memory. Nothing here is kept across a snapshot but the scratch register: programs that
 * are judged hold no line high while they stand still. */
#include "compute/vmm/devices/testdev/testdev.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PORT_SCRATCH = 0xe0, PORT_FLUSH = 0xe4, PORT_EXIT = 0xf4, PORT_VIOLATE = 0xf8, PORT_LINES = 0x2000, LINES = 24 };
#define SCRATCH_MEMORY 0xff000000ull
#define SCRATCH_MEMORY_BYTES 0x10000u
enum { STATE_VERSION = 1 };

struct testdev {
    struct device device;
    struct testdev_options o;
    uint32_t scratch;
    uint8_t memory[SCRATCH_MEMORY_BYTES];
};

static uint64_t scratch_read(void *arg, uint64_t offset, unsigned size UNUSED)
{
    struct testdev *t = arg;
    return t->scratch >> 8 * offset;
}

static void scratch_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
    struct testdev *t = arg;
    memcpy((uint8_t *)&t->scratch + offset, &value, size);
}

/* A change of protection and back makes the kernel drop the page from the guest's tables. */
static void flush_write(void *arg, uint64_t offset UNUSED, unsigned size UNUSED, uint64_t value)
{
    struct testdev *t = arg;
    void *page = memory_at(t->o.memory, value & ~(uint64_t)(MEMORY_PAGE_BYTES - 1), MEMORY_PAGE_BYTES);
    if (page && mprotect(page, MEMORY_PAGE_BYTES, PROT_NONE) == 0)
        ASSERT(mprotect(page, MEMORY_PAGE_BYTES, PROT_READ | PROT_WRITE) == 0);
}

static void exit_write(void *arg, uint64_t offset UNUSED, unsigned size UNUSED, uint64_t value)
{
    struct testdev *t = arg;
    t->o.exit(t->o.exit_arg, (unsigned)(value << 1 | 1) & 0xff);
}

static void violate_write(void *arg UNUSED, uint64_t offset UNUSED, unsigned size UNUSED, uint64_t value UNUSED)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0)
        close(fd);
}

/* A wide write is one of the first line: programs use the width that is at hand. */
static void line_write(void *arg, uint64_t offset, unsigned size UNUSED, uint64_t value)
{
    struct testdev *t = arg;
    (void)irq_line_set(t->o.irq, (uint32_t)offset, value != 0);
}

static uint64_t memory_bytes_read(void *arg, uint64_t offset, unsigned size)
{
    struct testdev *t = arg;
    uint64_t value = 0;
    memcpy(&value, t->memory + offset, size);
    return value;
}

static void memory_bytes_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
    struct testdev *t = arg;
    memcpy(t->memory + offset, &value, size);
}

static void testdev_reset(struct device *d)
{
    struct testdev *t = CONTAINER_OF(d, struct testdev, device);
    t->scratch = 0;
    memset(t->memory, 0, sizeof(t->memory));
    for (uint32_t line = 0; line < LINES; line++)
        if (line != 2) /* the PICs' cascade: no pin leads there */
            (void)irq_line_set(t->o.irq, line, false);
}

static void testdev_save(struct device *d, struct bytes_writer *out)
{
    struct testdev *t = CONTAINER_OF(d, struct testdev, device);
    bytes_put_u8(out, STATE_VERSION);
    bytes_put_u32(out, t->scratch);
    bytes_put(out, t->memory, sizeof(t->memory));
}

static int testdev_load(struct device *d, struct bytes_reader *in, struct error *err)
{
    struct testdev *t = CONTAINER_OF(d, struct testdev, device);
    uint8_t version = bytes_get_u8(in);
    uint32_t scratch = bytes_get_u32(in);
    const uint8_t *memory = bytes_get(in, sizeof(t->memory));
    if (in->bad || version != STATE_VERSION)
        return error_set(err, -EINVAL, ERROR_INVALID, "%s: its saved state is damaged or of another version",
                         d->name);
    t->scratch = scratch;
    memcpy(t->memory, memory, sizeof(t->memory));
    return 0;
}

static void testdev_destroy(struct device *d)
{
    struct testdev *t = CONTAINER_OF(d, struct testdev, device);
    bus_remove(t->o.ports, PORT_SCRATCH);
    bus_remove(t->o.ports, PORT_FLUSH);
    bus_remove(t->o.ports, PORT_EXIT);
    bus_remove(t->o.ports, PORT_VIOLATE);
    bus_remove(t->o.ports, PORT_LINES);
    bus_remove(t->o.mmio, SCRATCH_MEMORY);
    free(t);
}

static const struct device_ops testdev_ops = {
    .reset = testdev_reset, .save = testdev_save, .load = testdev_load, .destroy = testdev_destroy};

int testdev_create(const struct testdev_options *options, struct device **ret_device, struct error *err)
{
    struct testdev *t = NEW(struct testdev);
    t->o = *options;
    device_init(&t->device, &testdev_ops, "testdev");
    const struct bus_range ports[] = {
        {.start = PORT_SCRATCH, .size = 4, .read = scratch_read, .write = scratch_write, .arg = t},
        {.start = PORT_FLUSH, .size = 4, .write = flush_write, .arg = t},
        {.start = PORT_EXIT, .size = 4, .write = exit_write, .arg = t},
        {.start = PORT_VIOLATE, .size = 4, .write = violate_write, .arg = t},
        {.start = PORT_LINES, .size = LINES, .write = line_write, .arg = t},
    };
    const struct bus_range memory = {
        .start = SCRATCH_MEMORY, .size = SCRATCH_MEMORY_BYTES, .read = memory_bytes_read,
        .write = memory_bytes_write, .arg = t};
    size_t added = 0;
    int code = 0;
    while (code == 0 && added < ARRAY_SIZE(ports)) {
        code = bus_add(options->ports, &ports[added], err);
        if (code == 0)
            added++;
    }
    if (code == 0)
        code = bus_add(options->mmio, &memory, err);
    if (code < 0) {
        while (added > 0)
            bus_remove(options->ports, ports[--added].start);
        free(t);
        return code;
    }
    *ret_device = &t->device;
    return 0;
}
