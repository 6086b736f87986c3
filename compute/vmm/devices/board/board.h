/* What is soldered to the board of pc-1: host bridge (8086:1237, 00:00.0), ISA bridge (8086:7000, 00:01.0), the two
 * registers that reset the machine (keyboard controller 0x64, value 0xfe; port 0xcf9) and port 0x92.
 *
 * Threads: as device.h. */
#ifndef COMPUTE_VMM_DEVICES_BOARD_BOARD_H
#define COMPUTE_VMM_DEVICES_BOARD_BOARD_H

#include "compute/vmm/bus.h"
#include "compute/vmm/device.h"
#include "compute/vmm/pci.h"
#include "compute/vmm/power.h"

int board_create(struct bus *ports, struct pci_bus *pci, power_fn power, void *power_arg, struct device **ret_device,
                 struct error *err);

#endif
