/* The PCI bus of machine type pc-1: bus 0, configuration mechanism #1 (ports 0xcf8 and 0xcfc, PCI Local Bus 3.0
 * §3.2.2.3.2), type-0 headers, 32 slots of 8 functions. Functions that are not there read all ones.
 *
 * A device fills config space with the pci_config_set helpers before pci_bus_add; from then on the guest reads it,
 * and writes the bits that `writable` allows. BARs are sized and moved by the guest at any time; the bus maps them
 * into its memory or port space while the command register enables them, and tells the device by bar_mapped.
 * All callbacks run with the device lock held (device.h). */
#ifndef COMPUTE_VMM_PCI_H
#define COMPUTE_VMM_PCI_H

#include "common/base.h"
#include "common/error.h"
#include "compute/vmm/bus.h"

#define PCI_CONFIG_BYTES 256u
#define PCI_BARS 6u
#define PCI_SLOTS 32u
#define PCI_FUNCTIONS 8u

/* Offsets in the header, PCI Local Bus 3.0 §6.1 */
enum {
    PCI_VENDOR_ID = 0x00,
    PCI_DEVICE_ID = 0x02,
    PCI_COMMAND = 0x04,
    PCI_STATUS = 0x06,
    PCI_REVISION = 0x08,
    PCI_CLASS = 0x09, /* prog-if, subclass, class: three bytes */
    PCI_HEADER_TYPE = 0x0e,
    PCI_BAR0 = 0x10,
    PCI_SUBSYSTEM_VENDOR_ID = 0x2c,
    PCI_SUBSYSTEM_ID = 0x2e,
    PCI_CAPABILITIES = 0x34,
    PCI_INTERRUPT_LINE = 0x3c,
    PCI_INTERRUPT_PIN = 0x3d,
};
enum { PCI_COMMAND_IO = 1, PCI_COMMAND_MEMORY = 2, PCI_COMMAND_MASTER = 4, PCI_COMMAND_INTX_OFF = 0x400 };
enum { PCI_STATUS_CAPABILITIES = 0x10 };

struct pci_device;

enum pci_bar_kind { PCI_BAR_NONE, PCI_BAR_IO, PCI_BAR_MEMORY32, PCI_BAR_MEMORY64 };

struct pci_bar {
    enum pci_bar_kind kind;
    bool prefetchable;
    uint64_t size;    /* power of two; >= 16 for memory, >= 4 for ports. A 64-bit BAR uses up the next index too. */
    uint64_t address; /* what the guest wrote */
    bool mapped;      /* answers at `address` now */
    struct pci_device *device;
};

struct pci_ops {
    /* An access to BAR @bar: @offset within it, @size 1, 2, 4 or 8 (8 only for memory). */
    uint64_t (*bar_read)(struct pci_device *, unsigned bar, uint64_t offset, unsigned size);
    void (*bar_write)(struct pci_device *, unsigned bar, uint64_t offset, unsigned size, uint64_t value);
    /* BAR @bar answers at its `address` from now on (@mapped), or is about to leave it: place or take away doorbells
     * there. NULL: none. */
    void (*bar_mapped)(struct pci_device *, unsigned bar, bool mapped);
    /* Before config space is read, to refresh bytes in `config` that a register stands behind. NULL: none. */
    void (*config_read)(struct pci_device *, unsigned offset, unsigned size);
    /* After a guest's write to config space was stored (masked by `writable`); @value is what the guest wrote,
     * unmasked. @size 1, 2 or 4, naturally aligned. NULL: none. */
    void (*config_write)(struct pci_device *, unsigned offset, unsigned size, uint32_t value);
};

struct pci_device {
    const struct pci_ops *ops; /* NULL for a function that is config space only */
    uint8_t config[PCI_CONFIG_BYTES];
    uint8_t writable[PCI_CONFIG_BYTES]; /* bits the guest may change; BARs and command are the bus's own affair */
    struct pci_bar bars[PCI_BARS];
    struct pci_bus *bus; /* set by pci_bus_add */
    uint8_t slot, function;
    uint8_t capability_end; /* where pci_capability_add puts the next one */
    uint8_t capability_last;
};

struct pci_bus {
    struct bus *memory, *ports;
    uint32_t config_address;     /* port 0xcf8, which takes whole dwords only... */
    struct bus_range reset_port; /* ...and so leaves byte 0xcf9 to another register of the board */
    struct pci_device *functions[PCI_SLOTS * PCI_FUNCTIONS];
};

/* Registers ports 0xcf8-0xcff on @ports. The buses must outlive it. */
int pci_bus_init(struct pci_bus *bus, struct bus *memory, struct bus *ports, struct error *err);
/* Who answers byte accesses to port 0xcf9, which lies within the configuration address register. */
void pci_bus_set_reset_port(struct pci_bus *bus, bus_read_fn read, bus_write_fn write, void *arg);
/* Put @device at @slot, function 0 (pci_bus_add) or another. It stays the caller's memory and must outlive the bus.
 * -EEXIST when the place is taken. Command register starts at 0, BARs unassigned. */
int pci_bus_add(struct pci_bus *bus, unsigned slot, struct pci_device *device, struct error *err);
int pci_bus_add_function(struct pci_bus *bus, unsigned slot, unsigned function, struct pci_device *device,
                         struct error *err);
/* Take the device in @slot, function 0, off the bus: its BARs are unmapped, the slot reads all ones. It may be a
 * function that is not there. */
void pci_bus_remove(struct pci_bus *bus, unsigned slot);
/* Command register and BARs of every function back to power-on; devices reset their own registers (device.h). */
void pci_bus_reset(struct pci_bus *bus);
/* Give every BAR an address and enable memory and port decoding, as firmware would: for direct boot, where nobody
 * else does. 32-bit BARs go up from @window32, 64-bit from @window64, ports from @ports_start.
 * -ENOSPC past the ends. */
int pci_bus_assign(struct pci_bus *bus, uint64_t window32, uint64_t window32_end, uint64_t window64,
                   uint64_t window64_end, uint64_t ports_start, struct error *err);

/* Config space seen directly by (slot, function): what ports 0xcf8/0xcfc come down to. @size 1, 2 or 4 aligned. */
uint32_t pci_config_read(struct pci_bus *bus, unsigned slot, unsigned function, unsigned offset, unsigned size);
void pci_config_write(struct pci_bus *bus, unsigned slot, unsigned function, unsigned offset, unsigned size,
                      uint32_t value);

/* Filling in a device. @class_code: class << 16 | subclass << 8 | prog-if. */
void pci_device_init(struct pci_device *d, const struct pci_ops *ops, uint16_t vendor, uint16_t device,
                     uint32_t class_code, uint8_t revision);
void pci_config_set8(struct pci_device *d, unsigned offset, uint8_t value);
void pci_config_set16(struct pci_device *d, unsigned offset, uint16_t value);
void pci_config_set32(struct pci_device *d, unsigned offset, uint32_t value);
uint32_t pci_config_get(const struct pci_device *d, unsigned offset, unsigned size);
void pci_bar_set(struct pci_device *d, unsigned bar, enum pci_bar_kind kind, uint64_t size, bool prefetchable);
/* Append a capability of @size bytes in all (id and next pointer included); returns its offset in config space. */
unsigned pci_capability_add(struct pci_device *d, uint8_t id, unsigned size);

#endif
