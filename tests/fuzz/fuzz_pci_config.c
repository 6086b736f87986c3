/* PCI configuration space and BARs under a guest that writes at random: three bytes choose function, register and
 * width, four the value. Afterwards every BAR that is mapped answers where its register says, and only there. */
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "compute/vmm/pci.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned mapped;

static void on_mapped(struct pci_device *d, unsigned bar, bool is_mapped)
{
    if (!d->bars[bar].mapped) /* at both calls: it is told after mapping and before unmapping */
        abort();
    mapped += is_mapped ? 1u : -1u;
}
static uint64_t on_read(struct pci_device *d, unsigned bar, uint64_t offset, unsigned size)
{
    if (offset >= d->bars[bar].size || size > d->bars[bar].size - offset)
        abort();
    return 0;
}
static void on_write(struct pci_device *d, unsigned bar, uint64_t offset, unsigned size, uint64_t value)
{
    (void)value;
    on_read(d, bar, offset, size);
}
static const struct pci_ops ops = {.bar_read = on_read, .bar_write = on_write, .bar_mapped = on_mapped};

static void check(struct pci_device *d)
{
    for (unsigned i = 0; i < PCI_BARS; i++) {
        const struct pci_bar *bar = &d->bars[i];
        if (bar->kind == PCI_BAR_NONE)
            continue;
        if (bar->address & (bar->size - 1))
            abort();
        if ((pci_config_get(d, PCI_BAR0 + 4 * i, 4) & ~15u) != ((uint32_t)bar->address & ~15u))
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct bus memory, ports;
    struct pci_bus pci;
    struct pci_device devices[2];
    struct bytes_reader r = bytes_reader(data, size);
    mapped = 0;
    bus_init(&memory, NULL);
    bus_init(&ports, NULL);
    if (pci_bus_init(&pci, &memory, &ports, NULL) < 0)
        abort();
    for (unsigned i = 0; i < 2; i++) {
        pci_device_init(&devices[i], &ops, 0x1af4, 0x1042, 0x018000, 1);
        pci_bar_set(&devices[i], 0, PCI_BAR_MEMORY32, 0x1000, false);
        pci_bar_set(&devices[i], 1, PCI_BAR_IO, 0x20, false);
        pci_bar_set(&devices[i], 2, PCI_BAR_MEMORY64, 0x4000, true);
        if (pci_bus_add(&pci, i, &devices[i], NULL) < 0)
            abort();
    }
    while (bytes_left(&r) >= 7) {
        uint8_t where = bytes_get_u8(&r), offset = bytes_get_u8(&r), width = bytes_get_u8(&r);
        uint32_t value = bytes_get_u32(&r);
        if (width & 0x80)
            bus_write(&memory, value, 1u << (width & 3), value);
        bus_write(&ports, 0xcf8, 4, 0x80000000u | (uint32_t)(where & 31) << 11 | (offset & 0xfcu));
        bus_write(&ports, 0xcfc + offset % 4, 1u << (width & 3), value);
        bus_read(&ports, 0xcfc + offset % 4, 1u << (width & 3));
        check(&devices[0]);
        check(&devices[1]);
    }
    pci_bus_reset(&pci);
    if (mapped)
        abort();
    bus_finish(&memory);
    bus_finish(&ports);
    return 0;
}
