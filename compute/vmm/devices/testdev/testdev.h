/* What freestanding test programs (kvm-unit-tests) want from a machine, and no VM has: only with --debug-exit.
 *
 *   port 0xf4           a write ends the VMM with exit status (value << 1 | 1) & 0xff
 *   port 0xe0, 4 bytes  scratch: reads what was written last, 1, 2 or 4 bytes
 *   port 0xe4, 4 bytes  the page of the written guest-physical address is taken from the guest's second-level tables,
 *                       so that the next access comes to KVM again
 *   port 0xf8           a write makes the VMM ask the kernel for a network socket, which its sandbox must refuse
 *   port 0x2000 + n     level of interrupt line n, 0 to 23
 *   0xff000000, 64 KiB  scratch memory whose every access leaves the guest
 *
 * Threads: as device.h. */
#ifndef COMPUTE_VMM_DEVICES_TESTDEV_TESTDEV_H
#define COMPUTE_VMM_DEVICES_TESTDEV_TESTDEV_H

#include "compute/vmm/bus.h"
#include "compute/vmm/device.h"
#include "compute/vmm/irq.h"
#include "compute/vmm/memory.h"

/* From a vCPU thread with the device lock held; returns at once. @status is the whole exit status. */
typedef void (*testdev_exit_fn)(void *arg, unsigned status);

struct testdev_options {
    struct bus *ports, *mmio;
    struct guest_memory *memory;
    struct irq_chip *irq;
    testdev_exit_fn exit;
    void *exit_arg;
};
int testdev_create(const struct testdev_options *options, struct device **ret_device, struct error *err);

#endif
