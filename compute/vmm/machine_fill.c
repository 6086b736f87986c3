/* What is missing of a machine's disks: see machine_fill.h. */
#include "compute/vmm/machine_fill.h"

#include <errno.h>

#include "compute/vmm/block/block_layers.h"
#include "compute/vmm/devices/blk/blk.h"
#include "compute/vmm/machine_slots.h"

struct fill_report machine_fill_report(struct machine *m)
{
    struct fill_report report = {.whole = true};
    pthread_mutex_lock(&m->device_lock);
    for (unsigned i = 0; i < PCI_SLOTS; i++) {
        const struct machine_slot *slot = &m->slots.slots[i];
        struct block_layers_fill fill;
        if (slot->kind != SLOT_DISK || slot->detached || slot->disk.format != disk_format_LAYERS ||
            !block_layers_filling(blk_of_virtio(slot->virtio)->block, &fill))
            continue;
        report.whole = false;
        report.done_bytes += fill.done_bytes;
        report.total_bytes += fill.total_bytes;
        if (fill.stuck.code < 0) {
            report.stuck = fill.stuck;
            error_prefix(&report.stuck, "disk %s: ", slot->id);
        }
    }
    pthread_mutex_unlock(&m->device_lock);
    return report;
}

int machine_fill_check(struct machine *m, struct error *err)
{
    if (machine_fill_report(m).whole)
        return 0;
    return error_set(err, -EBUSY, ERROR_CONFLICT,
                     "the VM's disks are not whole yet: they come from a backup while it runs; wait for the end of that restore");
}
