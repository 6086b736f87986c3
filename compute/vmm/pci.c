/* Configuration mechanism #1 and the BARs.
 *
 * A BAR answers while the command register enables its space and its address is not zero. When the guest sizes a BAR
 * it writes all ones; the bus then unmaps it where decoding is on (guests switch it off first) and maps it again at
 * the restored address. An address that collides with something else is kept in the register but not mapped. */
#include "compute/vmm/pci.h"

#include <errno.h>
#include <string.h>

#include "common/log.h"

static struct pci_device *function_at(struct pci_bus *bus, unsigned slot, unsigned function)
{
    return slot < PCI_SLOTS && function < PCI_FUNCTIONS ? bus->functions[slot * PCI_FUNCTIONS + function] : NULL;
}

/* ---- filling in a device ---- */

void pci_config_set8(struct pci_device *d, unsigned offset, uint8_t value)
{
    ASSERT(offset < PCI_CONFIG_BYTES);
    d->config[offset] = value;
}

void pci_config_set16(struct pci_device *d, unsigned offset, uint16_t value)
{
    pci_config_set8(d, offset, (uint8_t)value);
    pci_config_set8(d, offset + 1, (uint8_t)(value >> 8));
}

void pci_config_set32(struct pci_device *d, unsigned offset, uint32_t value)
{
    pci_config_set16(d, offset, (uint16_t)value);
    pci_config_set16(d, offset + 2, (uint16_t)(value >> 16));
}

uint32_t pci_config_get(const struct pci_device *d, unsigned offset, unsigned size)
{
    uint32_t value = 0;
    ASSERT(size <= 4 && offset + size <= PCI_CONFIG_BYTES);
    for (unsigned i = 0; i < size; i++)
        value |= (uint32_t)d->config[offset + i] << (8 * i);
    return value;
}

void pci_device_init(struct pci_device *d, const struct pci_ops *ops, uint16_t vendor, uint16_t device,
                     uint32_t class_code, uint8_t revision)
{
    memset(d, 0, sizeof(*d));
    d->ops = ops;
    d->capability_end = 0x40;
    pci_config_set16(d, PCI_VENDOR_ID, vendor);
    pci_config_set16(d, PCI_DEVICE_ID, device);
    pci_config_set8(d, PCI_REVISION, revision);
    pci_config_set8(d, PCI_CLASS, (uint8_t)class_code);
    pci_config_set16(d, PCI_CLASS + 1, (uint16_t)(class_code >> 8));
    d->writable[PCI_COMMAND] = PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
    d->writable[PCI_COMMAND + 1] = PCI_COMMAND_INTX_OFF >> 8;
    d->writable[0x0c] = 0xff; /* cache line size: a scratch byte that drivers write */
    d->writable[PCI_INTERRUPT_LINE] = 0xff;
}

static uint32_t bar_flags(const struct pci_bar *bar)
{
    switch (bar->kind) {
    case PCI_BAR_IO:
        return 1;
    case PCI_BAR_MEMORY32:
        return bar->prefetchable ? 8 : 0;
    case PCI_BAR_MEMORY64:
        return 4 | (bar->prefetchable ? 8 : 0);
    case PCI_BAR_NONE:
        break;
    }
    return 0;
}

/* Write `address` of BAR @index back into config space. */
static void bar_store(struct pci_device *d, unsigned index)
{
    const struct pci_bar *bar = &d->bars[index];
    pci_config_set32(d, PCI_BAR0 + 4 * index, (uint32_t)bar->address | bar_flags(bar));
    if (bar->kind == PCI_BAR_MEMORY64)
        pci_config_set32(d, PCI_BAR0 + 4 * index + 4, (uint32_t)(bar->address >> 32));
}

void pci_bar_set(struct pci_device *d, unsigned bar, enum pci_bar_kind kind, uint64_t size, bool prefetchable)
{
    ASSERT(bar < PCI_BARS - (kind == PCI_BAR_MEMORY64 ? 1u : 0u));
    ASSERT(size && (size & (size - 1)) == 0 && size >= (kind == PCI_BAR_IO ? 4u : 16u));
    ASSERT(d->bars[bar].kind == PCI_BAR_NONE);
    ASSERT(kind == PCI_BAR_MEMORY64 || size <= (kind == PCI_BAR_IO ? 0x100u : 0x80000000u));
    d->bars[bar] = (struct pci_bar){.kind = kind, .size = size, .prefetchable = prefetchable, .device = d};
    bar_store(d, bar);
}

unsigned pci_capability_add(struct pci_device *d, uint8_t id, unsigned size)
{
    unsigned offset = d->capability_end;
    ASSERT(size >= 2 && offset + size <= PCI_CONFIG_BYTES);
    pci_config_set8(d, offset, id);
    pci_config_set8(d, d->capability_last ? d->capability_last + 1u : PCI_CAPABILITIES, (uint8_t)offset);
    pci_config_set16(d, PCI_STATUS, (uint16_t)(pci_config_get(d, PCI_STATUS, 2) | PCI_STATUS_CAPABILITIES));
    d->capability_last = (uint8_t)offset;
    d->capability_end = (uint8_t)MIN((offset + size + 3) & ~3u, 0xfcu);
    return offset;
}

/* ---- BARs ---- */

static unsigned bar_index(const struct pci_bar *bar)
{
    return (unsigned)(bar - bar->device->bars);
}

static uint64_t bar_read(void *arg, uint64_t offset, unsigned size)
{
    struct pci_bar *bar = arg;
    const struct pci_ops *ops = bar->device->ops;
    return ops && ops->bar_read ? ops->bar_read(bar->device, bar_index(bar), offset, size) : UINT64_MAX;
}

static void bar_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_bar *bar = arg;
    const struct pci_ops *ops = bar->device->ops;
    if (ops && ops->bar_write)
        ops->bar_write(bar->device, bar_index(bar), offset, size, value);
}

static struct bus *bar_bus(const struct pci_bar *bar)
{
    return bar->kind == PCI_BAR_IO ? bar->device->bus->ports : bar->device->bus->memory;
}

static void bar_unmap(struct pci_bar *bar)
{
    struct pci_device *d = bar->device;
    if (!bar->mapped)
        return;
    if (d->ops && d->ops->bar_mapped)
        d->ops->bar_mapped(d, bar_index(bar), false);
    bus_remove(bar_bus(bar), bar->address);
    bar->mapped = false;
}

static void bar_map(struct pci_bar *bar)
{
    struct pci_device *d = bar->device;
    uint16_t command = (uint16_t)pci_config_get(d, PCI_COMMAND, 2);
    struct bus_range range = {
        .start = bar->address, .size = bar->size, .read = bar_read, .write = bar_write, .arg = bar};
    struct error err;
    if (bar->mapped || bar->kind == PCI_BAR_NONE || bar->address == 0)
        return;
    if (!(command & (bar->kind == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY)))
        return;
    if (bus_add(bar_bus(bar), &range, &err) < 0) {
        log_debug("pci-bar-unmapped", "slot=%u bar=%u why=\"%s\"", d->slot, bar_index(bar), err.text);
        return;
    }
    bar->mapped = true;
    if (d->ops && d->ops->bar_mapped)
        d->ops->bar_mapped(d, bar_index(bar), true);
}

static void bar_move(struct pci_bar *bar, uint64_t address)
{
    bar_unmap(bar);
    bar->address = address;
    bar_store(bar->device, bar_index(bar));
    bar_map(bar);
}

/* A write to BAR register @index, of which @mask names the bytes that are written. */
static void bar_register_write(struct pci_device *d, unsigned index, uint32_t value, uint32_t mask)
{
    bool high = index > 0 && d->bars[index - 1].kind == PCI_BAR_MEMORY64;
    struct pci_bar *bar = &d->bars[high ? index - 1 : index];
    uint64_t address = bar->address;
    if (bar->kind == PCI_BAR_NONE)
        return;
    if (high)
        address = (address & ~((uint64_t)mask << 32)) | (uint64_t)(value & mask) << 32;
    else
        address = (address & ~(uint64_t)mask) | (value & mask);
    address &= ~(bar->size - 1);
    if (bar->kind == PCI_BAR_IO)
        address &= 0xffff;
    bar_move(bar, address);
}

static void bars_update(struct pci_device *d)
{
    for (unsigned i = 0; i < PCI_BARS; i++) {
        struct pci_bar *bar = &d->bars[i];
        uint16_t command = (uint16_t)pci_config_get(d, PCI_COMMAND, 2);
        if (bar->kind == PCI_BAR_NONE)
            continue;
        if (command & (bar->kind == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY))
            bar_map(bar);
        else
            bar_unmap(bar);
    }
}

/* ---- configuration space ---- */

static bool access_is_valid(unsigned offset, unsigned size)
{
    return (size == 1 || size == 2 || size == 4) && offset % size == 0 && offset + size <= PCI_CONFIG_BYTES;
}

uint32_t pci_config_read(struct pci_bus *bus, unsigned slot, unsigned function, unsigned offset, unsigned size)
{
    struct pci_device *d = function_at(bus, slot, function);
    if (!d || !access_is_valid(offset, size))
        return UINT32_MAX;
    if (d->ops && d->ops->config_read)
        d->ops->config_read(d, offset, size);
    return pci_config_get(d, offset, size);
}

void pci_config_write(struct pci_bus *bus, unsigned slot, unsigned function, unsigned offset, unsigned size,
                      uint32_t value)
{
    struct pci_device *d = function_at(bus, slot, function);
    if (!d || !access_is_valid(offset, size))
        return;
    if (offset >= PCI_BAR0 && offset < PCI_BAR0 + 4 * PCI_BARS) {
        unsigned shift = 8 * (offset % 4);
        uint32_t mask = (size == 4 ? UINT32_MAX : (1u << (8 * size)) - 1) << shift;
        bar_register_write(d, (offset - PCI_BAR0) / 4, value << shift, mask);
    } else {
        for (unsigned i = 0; i < size; i++) {
            uint8_t allowed = d->writable[offset + i], byte = (uint8_t)(value >> (8 * i));
            d->config[offset + i] = (uint8_t)((d->config[offset + i] & ~allowed) | (byte & allowed));
        }
        if (offset < PCI_COMMAND + 2 && offset + size > PCI_COMMAND)
            bars_update(d);
    }
    if (d->ops && d->ops->config_write)
        d->ops->config_write(d, offset, size, value);
}

/* Port 0xcf8 takes whole dwords only; 0xcfc-0xcff is a window of one dword. */
static uint64_t ports_read(void *arg, uint64_t offset, unsigned size)
{
    struct pci_bus *bus = arg;
    uint32_t a = bus->config_address;
    if (offset == 1 && size == 1 && bus->reset_port.read)
        return bus->reset_port.read(bus->reset_port.arg, 0, 1);
    if (offset < 4)
        return offset == 0 && size == 4 ? a : UINT64_MAX;
    if (!(a & 0x80000000u) || (a >> 16 & 0xff) != 0)
        return UINT64_MAX;
    return pci_config_read(bus, a >> 11 & 31, a >> 8 & 7, (a & 0xfc) + (unsigned)(offset - 4), size);
}

static void ports_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_bus *bus = arg;
    uint32_t a = bus->config_address;
    if (offset == 1 && size == 1 && bus->reset_port.write)
        bus->reset_port.write(bus->reset_port.arg, 0, 1, value);
    if (offset == 0 && size == 4)
        bus->config_address = (uint32_t)value & 0x80fffffcu;
    if (offset < 4 || !(a & 0x80000000u) || (a >> 16 & 0xff) != 0)
        return;
    pci_config_write(bus, a >> 11 & 31, a >> 8 & 7, (a & 0xfc) + (unsigned)(offset - 4), size, (uint32_t)value);
}

int pci_bus_init(struct pci_bus *bus, struct bus *memory, struct bus *ports, struct error *err)
{
    memset(bus, 0, sizeof(*bus));
    bus->memory = memory;
    bus->ports = ports;
    struct bus_range range = {.start = 0xcf8, .size = 8, .read = ports_read, .write = ports_write, .arg = bus};
    return bus_add(ports, &range, err);
}

void pci_bus_set_reset_port(struct pci_bus *bus, bus_read_fn read, bus_write_fn write, void *arg)
{
    bus->reset_port = (struct bus_range){.start = 0xcf9, .size = 1, .read = read, .write = write, .arg = arg};
}

int pci_bus_add(struct pci_bus *bus, unsigned slot, struct pci_device *device, struct error *err)
{
    return pci_bus_add_function(bus, slot, 0, device, err);
}

int pci_bus_add_function(struct pci_bus *bus, unsigned slot, unsigned function, struct pci_device *device,
                         struct error *err)
{
    if (slot >= PCI_SLOTS || function >= PCI_FUNCTIONS)
        return error_set(err, -EINVAL, ERROR_INVALID, "PCI has %u slots of %u functions; %u.%u is none of them",
                         PCI_SLOTS, PCI_FUNCTIONS, slot, function);
    if (function_at(bus, slot, function))
        return error_set(err, -EEXIST, ERROR_CONFLICT, "PCI slot %u.%u is taken", slot, function);
    device->bus = bus;
    device->slot = (uint8_t)slot;
    device->function = (uint8_t)function;
    pci_config_set16(device, PCI_COMMAND, 0);
    bus->functions[slot * PCI_FUNCTIONS + function] = device;
    /* A scan looks at functions 1-7 only where function 0 says that there are more (§6.2.1). */
    struct pci_device *first = function_at(bus, slot, 0);
    for (unsigned other = 1; first && other < PCI_FUNCTIONS; other++)
        if (function_at(bus, slot, other))
            first->config[PCI_HEADER_TYPE] |= 0x80;
    return 0;
}

void pci_bus_remove(struct pci_bus *bus, unsigned slot)
{
    struct pci_device *d = function_at(bus, slot, 0);
    if (!d)
        return;
    for (unsigned bar = 0; bar < PCI_BARS; bar++)
        if (d->bars[bar].kind != PCI_BAR_NONE)
            bar_unmap(&d->bars[bar]);
    bus->functions[slot * PCI_FUNCTIONS] = NULL;
}

void pci_bus_reset(struct pci_bus *bus)
{
    for (size_t i = 0; i < ARRAY_SIZE(bus->functions); i++) {
        struct pci_device *d = bus->functions[i];
        if (!d)
            continue;
        pci_config_set16(d, PCI_COMMAND, 0);
        pci_config_set8(d, PCI_INTERRUPT_LINE, 0);
        for (unsigned bar = 0; bar < PCI_BARS; bar++)
            if (d->bars[bar].kind != PCI_BAR_NONE)
                bar_move(&d->bars[bar], 0);
    }
    bus->config_address = 0;
}

static int bar_assign(struct pci_bar *bar, uint64_t *next, uint64_t end, struct error *err)
{
    uint64_t address = (*next + bar->size - 1) & ~(bar->size - 1);
    if (address < *next || address > end || bar->size > end - address)
        return error_set(err, -ENOSPC, ERROR_INVALID, "no room for BAR %u of PCI slot %u", bar_index(bar),
                         bar->device->slot);
    *next = address + bar->size;
    bar_move(bar, address);
    return 0;
}

int pci_bus_assign(struct pci_bus *bus, uint64_t window32, uint64_t window32_end, uint64_t window64,
                   uint64_t window64_end, uint64_t ports_start, struct error *err)
{
    for (size_t i = 0; i < ARRAY_SIZE(bus->functions); i++) {
        struct pci_device *d = bus->functions[i];
        uint16_t command = 0;
        for (unsigned b = 0; d && b < PCI_BARS; b++) {
            struct pci_bar *bar = &d->bars[b];
            int code = 0;
            if (bar->kind == PCI_BAR_IO)
                code = bar_assign(bar, &ports_start, 0x10000, err);
            else if (bar->kind == PCI_BAR_MEMORY32)
                code = bar_assign(bar, &window32, window32_end, err);
            else if (bar->kind == PCI_BAR_MEMORY64)
                code = bar_assign(bar, &window64, window64_end, err);
            if (code < 0)
                return code;
            if (bar->kind != PCI_BAR_NONE)
                command |= bar->kind == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
        }
        if (command)
            pci_config_write(bus, d->slot, d->function, PCI_COMMAND, 2, command | PCI_COMMAND_MASTER);
    }
    return 0;
}
