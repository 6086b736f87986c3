/* The real-time clock and its memory, ports 0x70 and 0x71 (MC146818A): tells the host's UTC, sets nothing, and gives
 * firmware the size of memory where it looks for it. Without it a stock kernel polls for 20 seconds.
 *
 * Threads: as device.h. */
#ifndef COMPUTE_VMM_DEVICES_CMOS_CMOS_H
#define COMPUTE_VMM_DEVICES_CMOS_CMOS_H

#include "compute/vmm/bus.h"
#include "compute/vmm/device.h"

/* @memory_low, @memory_high: bytes of guest memory below and above 4 GiB. Released by its device's destroy. */
int cmos_create(struct bus *ports, uint64_t memory_low, uint64_t memory_high, struct device **ret_device,
                struct error *err);

#endif
