/* Hot plug of PCI slots by ACPI (ACPI 6.5 §5.6.6, §6.3): registers at port 0x620 that the methods in the DSDT
 * (acpi.c) use, and GPE 1, whose method tells the guest's system what has changed. A bit stands for a slot.
 *
 *   +0 UP     a device has come to the slot; 1 clears        DSDT: Notify(slot, device check)
 *   +4 DOWN   the device in the slot is to go; 1 clears      DSDT: Notify(slot, eject request)
 *   +8 EJECT  write: the guest has let go of the device       DSDT: _EJ0
 *
 * There is no _STA: the guest looks at configuration space, which is the truth.
 * Threads: as device.h. Written and read as dwords only. */
#ifndef COMPUTE_VMM_DEVICES_PCIHP_PCIHP_H
#define COMPUTE_VMM_DEVICES_PCIHP_PCIHP_H

#include "compute/vmm/bus.h"
#include "compute/vmm/device.h"

struct pcihp;

/* The guest ejects @slot; on a vCPU thread with the device lock held. */
typedef void (*pcihp_eject_fn)(void *arg, unsigned slot);
/* Raise GPE @gpe; with the device lock held. */
typedef void (*pcihp_raise_fn)(void *arg, unsigned gpe);

int pcihp_create(struct bus *ports, pcihp_raise_fn raise, void *raise_arg, pcihp_eject_fn eject, void *eject_arg,
                 struct pcihp **ret_pcihp, struct error *err);
struct device *pcihp_device(struct pcihp *p);
/* With the device lock held. */
void pcihp_plugged(struct pcihp *p, unsigned slot);
void pcihp_unplug(struct pcihp *p, unsigned slot);

#endif
