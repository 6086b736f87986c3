/* Saving and loading of the PCI bus: see pci_state.h. */
#include "compute/vmm/pci_state.h"

#include <errno.h>
#include <string.h>

void pci_state_save(const struct pci_bus *bus, struct bytes_writer *out)
{
    uint16_t count = 0;
    for (size_t i = 0; i < ARRAY_SIZE(bus->functions); i++)
        count += bus->functions[i] != NULL;
    bytes_put_u32(out, bus->config_address);
    bytes_put_u16(out, count);
    for (size_t i = 0; i < ARRAY_SIZE(bus->functions); i++) {
        const struct pci_device *d = bus->functions[i];
        if (!d)
            continue;
        bytes_put_u8(out, d->slot);
        bytes_put_u8(out, d->function);
        bytes_put(out, d->config, sizeof(d->config));
        for (unsigned bar = 0; bar < PCI_BARS; bar++) {
            bytes_put_u8(out, (uint8_t)d->bars[bar].kind);
            bytes_put_u64(out, d->bars[bar].size);
            bytes_put_u64(out, d->bars[bar].address);
        }
    }
}

static uint32_t word_at(const uint8_t *config, unsigned offset)
{
    return (uint32_t)(config[offset] | config[offset + 1] << 8);
}

/* The same kind of device? Ids, class and revision; and what the guest cannot write of its capabilities' chain. */
static bool is_same_device(const struct pci_device *d, const uint8_t *config)
{
    return memcmp(d->config, config, 4) == 0 && memcmp(d->config + PCI_REVISION, config + PCI_REVISION, 4) == 0 &&
           d->config[PCI_HEADER_TYPE] == config[PCI_HEADER_TYPE] &&
           memcmp(d->config + PCI_SUBSYSTEM_VENDOR_ID, config + PCI_SUBSYSTEM_VENDOR_ID, 4) == 0 &&
           d->config[PCI_CAPABILITIES] == config[PCI_CAPABILITIES];
}

static void registers_load(struct pci_bus *bus, struct pci_device *d, const uint8_t *config,
                           const uint64_t addresses[PCI_BARS])
{
    pci_config_write(bus, d->slot, d->function, PCI_COMMAND, 2, 0); /* BARs move while nothing is decoded */
    for (unsigned i = PCI_COMMAND + 2; i < PCI_CONFIG_BYTES; i++)
        if (i < PCI_BAR0 || i >= PCI_BAR0 + 4 * PCI_BARS)
            d->config[i] = (uint8_t)((d->config[i] & ~d->writable[i]) | (config[i] & d->writable[i]));
    for (unsigned i = 0; i < PCI_BARS; i++) {
        if (d->bars[i].kind == PCI_BAR_NONE)
            continue;
        pci_config_write(bus, d->slot, d->function, PCI_BAR0 + 4 * i, 4, (uint32_t)addresses[i]);
        if (d->bars[i].kind == PCI_BAR_MEMORY64)
            pci_config_write(bus, d->slot, d->function, PCI_BAR0 + 4 * i + 4, 4, (uint32_t)(addresses[i] >> 32));
    }
    pci_config_write(bus, d->slot, d->function, PCI_COMMAND, 2, word_at(config, PCI_COMMAND));
}

static int function_load(struct pci_bus *bus, struct bytes_reader *in, struct error *err)
{
    unsigned slot = bytes_get_u8(in), function = bytes_get_u8(in);
    const uint8_t *config = bytes_get(in, PCI_CONFIG_BYTES);
    uint64_t addresses[PCI_BARS];
    bool same = true;
    struct pci_device *d =
        slot < PCI_SLOTS && function < PCI_FUNCTIONS ? bus->functions[slot * PCI_FUNCTIONS + function] : NULL;
    for (unsigned i = 0; i < PCI_BARS; i++) {
        unsigned kind = bytes_get_u8(in);
        uint64_t size = bytes_get_u64(in);
        addresses[i] = bytes_get_u64(in);
        same = same && d && kind == (unsigned)d->bars[i].kind &&
               (kind == PCI_BAR_NONE || (size == d->bars[i].size && addresses[i] % size == 0));
    }
    if (in->bad)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the state of the PCI bus is cut short");
    if (!d)
        return error_set(err, -EBADMSG, ERROR_INVALID,
                         "PCI slot %u.%u holds device %04x:%04x in the saved machine and nothing in this one", slot,
                         function, word_at(config, PCI_VENDOR_ID), word_at(config, PCI_DEVICE_ID));
    if (!same || !is_same_device(d, config))
        return error_set(err, -EBADMSG, ERROR_INVALID,
                         "PCI slot %u.%u holds device %04x:%04x in the saved machine, and another or one of another "
                         "make (%04x:%04x) in this one",
                         slot, function, word_at(config, PCI_VENDOR_ID), word_at(config, PCI_DEVICE_ID),
                         word_at(d->config, PCI_VENDOR_ID), word_at(d->config, PCI_DEVICE_ID));
    registers_load(bus, d, config, addresses);
    return 0;
}

int pci_state_load(struct pci_bus *bus, struct bytes_reader *in, struct error *err)
{
    uint32_t address = bytes_get_u32(in);
    unsigned count = bytes_get_u16(in), here = 0;
    for (size_t i = 0; i < ARRAY_SIZE(bus->functions); i++)
        here += bus->functions[i] != NULL;
    if (in->bad || address & ~0x80fffffcu)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the state of the PCI bus is malformed");
    for (unsigned i = 0; i < count; i++) {
        int code = function_load(bus, in, err);
        if (code < 0)
            return code;
    }
    if (count != here)
        return error_set(err, -EBADMSG, ERROR_INVALID, "the saved machine has %u PCI functions, this one %u", count,
                         here);
    bus->config_address = address;
    return 0;
}
