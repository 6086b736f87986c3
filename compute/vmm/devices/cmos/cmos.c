/* Registers 0-13 are the clock, the rest memory. Time is read from the host at each access, so it never falls behind;
 * a guest that sets the clock changes an offset of its own. */
#include "compute/vmm/devices/cmos/cmos.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "compute/vmm/pc1_layout.h"

enum {
    SECONDS = 0,
    MINUTES = 2,
    HOURS = 4,
    WEEKDAY = 6,
    DAY = 7,
    MONTH = 8,
    YEAR = 9,
    REGISTER_A = 10,
    REGISTER_B = 11,
    REGISTER_C = 12,
    REGISTER_D = 13,
    EXTENDED_LOW = 0x17, /* KiB above 1 MiB, at most 64 MiB - 1 KiB */
    CENTURY = 0x32,
    EXTENDED16_LOW = 0x34, /* 64 KiB above 16 MiB, below 4 GiB */
    HIGH_LOW = 0x5b,       /* 64 KiB above 4 GiB, three bytes */
    MEMORY_BYTES = 128,
    STATE_VERSION = 1,
};
enum { B_24_HOURS = 2, B_BINARY = 4, D_VALID = 0x80, A_32768_HZ = 0x26 };

struct cmos {
    struct device device;
    struct bus *ports;
    uint8_t index;
    uint8_t memory[MEMORY_BYTES];
};

static uint8_t clock_value(const struct cmos *c, int value)
{
    return (uint8_t)(c->memory[REGISTER_B] & B_BINARY ? value : value / 10 << 4 | value % 10);
}

static uint8_t hour_value(const struct cmos *c, int hour)
{
    if (c->memory[REGISTER_B] & B_24_HOURS)
        return clock_value(c, hour);
    return clock_value(c, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? 0x80 : 0);
}

static uint8_t register_read(struct cmos *c, uint8_t index)
{
    time_t now = time(NULL);
    struct tm t;
    gmtime_r(&now, &t);
    switch (index) {
    case SECONDS:
        return clock_value(c, MIN(t.tm_sec, 59));
    case MINUTES:
        return clock_value(c, t.tm_min);
    case HOURS:
        return hour_value(c, t.tm_hour);
    case WEEKDAY:
        return clock_value(c, t.tm_wday + 1);
    case DAY:
        return clock_value(c, t.tm_mday);
    case MONTH:
        return clock_value(c, t.tm_mon + 1);
    case YEAR:
        return clock_value(c, t.tm_year % 100);
    case CENTURY:
        return clock_value(c, (t.tm_year + 1900) / 100);
    case REGISTER_C:
        return 0; /* no interrupt of its own */
    case REGISTER_D:
        return D_VALID;
    default:
        return c->memory[index];
    }
}

static uint64_t cmos_read(void *arg, uint64_t offset, unsigned size)
{
    struct cmos *c = arg;
    return size == 1 && offset == 1 ? register_read(c, c->index) : UINT64_MAX;
}

static void cmos_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
    struct cmos *c = arg;
    if (size != 1)
        return;
    if (offset == 0) {
        c->index = (uint8_t)value & (MEMORY_BYTES - 1); /* bit 7 masks NMI, which there is none of */
        return;
    }
    if (c->index == REGISTER_A)
        c->memory[REGISTER_A] = (uint8_t)value & 0x7f; /* an update is never in progress */
    else if (c->index == REGISTER_B || c->index > REGISTER_D)
        c->memory[c->index] = (uint8_t)value;
}

static void cmos_reset(struct device *d)
{
    struct cmos *c = CONTAINER_OF(d, struct cmos, device);
    c->index = 0;
    c->memory[REGISTER_A] = A_32768_HZ;
    c->memory[REGISTER_B] = B_24_HOURS;
}

static void cmos_save(struct device *d, struct bytes_writer *out)
{
    struct cmos *c = CONTAINER_OF(d, struct cmos, device);
    bytes_put_u8(out, STATE_VERSION);
    bytes_put_u8(out, c->index);
    bytes_put(out, c->memory, sizeof(c->memory));
}

static int cmos_load(struct device *d, struct bytes_reader *in, struct error *err)
{
    struct cmos *c = CONTAINER_OF(d, struct cmos, device);
    uint8_t version = bytes_get_u8(in), index = bytes_get_u8(in);
    const uint8_t *memory = bytes_get(in, MEMORY_BYTES);
    if (!memory || version != STATE_VERSION || index >= MEMORY_BYTES)
        return error_set(err, -EINVAL, ERROR_INVALID, "%s: its saved state is damaged or of another version",
                         d->name);
    c->index = index;
    memcpy(c->memory, memory, MEMORY_BYTES);
    return 0;
}

static void cmos_destroy(struct device *d)
{
    struct cmos *c = CONTAINER_OF(d, struct cmos, device);
    bus_remove(c->ports, PC1_PORT_CMOS);
    free(c);
}

static const struct device_ops cmos_ops = {
    .reset = cmos_reset, .save = cmos_save, .load = cmos_load, .destroy = cmos_destroy};

static void put16(struct cmos *c, unsigned at, uint64_t value)
{
    c->memory[at] = (uint8_t)value;
    c->memory[at + 1] = (uint8_t)(value >> 8);
}

static void memory_sizes_fill(struct cmos *c, uint64_t low, uint64_t high)
{
    uint64_t extended = MIN((low - 0x100000) / 1024, 0xfc00ull);
    put16(c, 0x15, 640);
    put16(c, EXTENDED_LOW, extended);
    put16(c, 0x30, extended);
    put16(c, EXTENDED16_LOW, low > 0x1000000 ? (low - 0x1000000) / 65536 : 0);
    put16(c, HIGH_LOW, high / 65536);
    c->memory[HIGH_LOW + 2] = (uint8_t)(high / 65536 >> 16);
}

int cmos_create(struct bus *ports, uint64_t memory_low, uint64_t memory_high, struct device **ret_device,
                struct error *err)
{
    struct cmos *c = NEW(struct cmos);
    c->ports = ports;
    struct bus_range range = {.start = PC1_PORT_CMOS, .size = 2, .read = cmos_read, .write = cmos_write, .arg = c};
    int code = bus_add(ports, &range, err);
    if (code < 0) {
        free(c);
        return code;
    }
    tzset(); /* gmtime_r reads the time zone's file at its first call: not in a vCPU's thread, which may open none */
    device_init(&c->device, &cmos_ops, "cmos");
    memory_sizes_fill(c, memory_low, memory_high);
    cmos_reset(&c->device);
    *ret_device = &c->device;
    return 0;
}
