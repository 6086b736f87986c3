/* What the guest has made of the PCI bus: the registers that it may write, BARs and decoding of every function.
 *
 * Format: u32 configuration address, u16 number of functions, then for each: u8 slot, u8 function, 256 bytes of
 * configuration space, 6 times u8 kind, u64 size, u64 address of a BAR. A load compares what says which device it is,
 * and takes the rest. Registers with something behind them are their device's own affair.
 * Threads: with the device lock held. */
#ifndef COMPUTE_VMM_PCI_STATE_H
#define COMPUTE_VMM_PCI_STATE_H

#include "common/bytes.h"
#include "compute/vmm/pci.h"

#define PCI_STATE_VERSION 1
void pci_state_save(const struct pci_bus *bus, struct bytes_writer *out);
/* Before the devices' own. -EBADMSG naming the slot where the devices differ. */
int pci_state_load(struct pci_bus *bus, struct bytes_reader *in, struct error *err);

#endif
