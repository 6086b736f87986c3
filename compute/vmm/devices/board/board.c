/* Bridges without behaviour, and the reset registers. */
#include "compute/vmm/devices/board/board.h"

#include <errno.h>

#include "compute/vmm/pc1_layout.h"

enum { I8042_PULSE_RESET = 0xfe, RESET_CPU = 4, RESET_SYSTEM = 2, PORT_92 = 0x92, STATE_VERSION = 1 };
enum { PAM_FIRST = 0x59, PAM_LAST = 0x5f };

struct board {
    struct device device;
    struct pci_device host_bridge, isa_bridge;
    struct bus *ports;
    power_fn power;
    void *power_arg;
    uint8_t reset_control, port92;
};

/* The keyboard controller has no keyboard: both buffers are always empty. */
static uint64_t i8042_read(void *arg, uint64_t offset, unsigned size)
{
    (void)arg;
    (void)offset;
    (void)size;
    return 0;
}

static void i8042_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
    struct board *b = arg;
    (void)offset;
    if (size == 1 && value == I8042_PULSE_RESET)
        b->power(b->power_arg, POWER_RESET);
}

static uint64_t reset_read(void *arg, uint64_t offset, unsigned size)
{
    struct board *b = arg;
    (void)offset;
    (void)size;
    return b->reset_control;
}

/* Intel PIIX3 §2.2.8: bit 1 chooses a whole reset, bit 2 begins it. */
static void reset_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
    struct board *b = arg;
    (void)offset;
    (void)size;
    b->reset_control = (uint8_t)value & RESET_SYSTEM;
    if (value & RESET_CPU)
        b->power(b->power_arg, POWER_RESET);
}

/* Fast A20 and fast reset; A20 is always open. */
static uint64_t port92_read(void *arg, uint64_t offset, unsigned size)
{
    struct board *b = arg;
    (void)offset;
    (void)size;
    return b->port92 | 2;
}

static void port92_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
    struct board *b = arg;
    (void)offset;
    (void)size;
    b->port92 = (uint8_t)value & ~1;
    if (value & 1)
        b->power(b->power_arg, POWER_RESET);
}

static void board_reset(struct device *d)
{
    struct board *b = CONTAINER_OF(d, struct board, device);
    b->reset_control = b->port92 = 0;
    for (unsigned at = PAM_FIRST; at <= PAM_LAST; at++)
        pci_config_set8(&b->host_bridge, at, 0);
}

static void board_save(struct device *d, struct bytes_writer *out)
{
    struct board *b = CONTAINER_OF(d, struct board, device);
    bytes_put_u8(out, STATE_VERSION);
    bytes_put_u8(out, b->reset_control);
    bytes_put_u8(out, b->port92);
}

static int board_load(struct device *d, struct bytes_reader *in, struct error *err)
{
    struct board *b = CONTAINER_OF(d, struct board, device);
    uint8_t version = bytes_get_u8(in), control = bytes_get_u8(in), port92 = bytes_get_u8(in);
    if (in->bad || version != STATE_VERSION)
        return error_set(err, -EINVAL, ERROR_INVALID, "%s: its saved state is damaged or of another version",
                         d->name);
    b->reset_control = control & RESET_SYSTEM;
    b->port92 = port92 & ~1;
    return 0;
}

static void ports_remove(struct board *b)
{
    bus_remove(b->ports, PC1_PORT_I8042_DATA);
    bus_remove(b->ports, PC1_PORT_I8042);
    bus_remove(b->ports, PORT_92);
}

static void board_destroy(struct device *d)
{
    struct board *b = CONTAINER_OF(d, struct board, device);
    ports_remove(b);
    free(b);
}

static const struct device_ops board_ops = {
    .reset = board_reset, .save = board_save, .load = board_load, .destroy = board_destroy};

static int ports_add(struct board *b, struct error *err)
{
    const struct bus_range ranges[] = {
        {.start = PC1_PORT_I8042_DATA, .size = 1, .read = i8042_read, .arg = b},
        {.start = PC1_PORT_I8042, .size = 1, .read = i8042_read, .write = i8042_write, .arg = b},
        {.start = PORT_92, .size = 1, .read = port92_read, .write = port92_write, .arg = b},
    };
    int code = 0;
    for (size_t i = 0; code == 0 && i < ARRAY_SIZE(ranges); i++)
        code = bus_add(b->ports, &ranges[i], err);
    return code;
}

int board_create(struct bus *ports, struct pci_bus *pci, power_fn power, void *power_arg, struct device **ret_device,
                 struct error *err)
{
    struct board *b = NEW(struct board);
    b->ports = ports;
    b->power = power;
    b->power_arg = power_arg;
    device_init(&b->device, &board_ops, "board");
    pci_device_init(&b->host_bridge, NULL, 0x8086, 0x1237, 0x060000, 2);
    pci_device_init(&b->isa_bridge, NULL, 0x8086, 0x7000, 0x060100, 0);
    /* Firmware opens the shadowed ROM areas here; there is plain memory behind them in any case. */
    for (unsigned at = PAM_FIRST; at <= PAM_LAST; at++)
        b->host_bridge.writable[at] = 0x33;
    /* By these two SeaBIOS knows where it is. */
    pci_config_set16(&b->host_bridge, PCI_SUBSYSTEM_VENDOR_ID, 0x1af4);
    pci_config_set16(&b->host_bridge, PCI_SUBSYSTEM_ID, 0x1100);
    int code = ports_add(b, err);
    if (code == 0)
        code = pci_bus_add(pci, 0, &b->host_bridge, err);
    if (code == 0)
        code = pci_bus_add(pci, 1, &b->isa_bridge, err);
    if (code < 0) {
        ports_remove(b);
        free(b);
        return code;
    }
    pci_bus_set_reset_port(pci, reset_read, reset_write, b);
    board_reset(&b->device);
    *ret_device = &b->device;
    return 0;
}
