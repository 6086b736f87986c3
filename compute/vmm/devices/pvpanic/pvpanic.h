/* pvpanic: the guest's kernel says that it has panicked (QEMU docs/specs/pvpanic): port 0x505 tells by its bits which
 * events it takes, and a write of them is the event. Linux finds it by the ACPI device QEMU0001.
 *
 * Threads: as device.h; pvpanic_count from any thread. */
#ifndef COMPUTE_VMM_DEVICES_PVPANIC_PVPANIC_H
#define COMPUTE_VMM_DEVICES_PVPANIC_PVPANIC_H

#include "compute/vmm/bus.h"
#include "compute/vmm/device.h"

#define PVPANIC_LOGGED_MAX 8u /* events that are worth a line in the log; a guest may write as often as it likes */

struct pvpanic {
    struct device device;
    struct bus *ports;
    uint64_t panics; /* since the machine was made (atomic) */
    uint64_t logged;
};

/* On success released by its device's destroy. */
int pvpanic_create(struct bus *ports, struct pvpanic **ret_pvpanic, struct error *err);
struct device *pvpanic_device(struct pvpanic *p);
uint64_t pvpanic_count(struct pvpanic *p);

void pvpanic_save(struct device *d, struct bytes_writer *out);
int pvpanic_load(struct device *d, struct bytes_reader *in, struct error *err);

#endif
