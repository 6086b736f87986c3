/* Power management: the ACPI fixed registers (ACPI 6.5 §4.8) at port 0x600 and the PCI function that tells firmware
 * where they are (8086:7113, 00:01.3).
 *
 * PM1a event 0x600 (status, enable), PM1a control 0x604, PM timer 0x608, general purpose events 0x610 (16 of them). Sleep type 5 powers off; the power button is
 * a fixed event. The timer runs at 3.579545 MHz and stands still while the machine is paused.
 *
 * Threads: as device.h, but the timer is read without the device lock (firmware reads it a million times). */
#ifndef COMPUTE_VMM_DEVICES_PM_PM_H
#define COMPUTE_VMM_DEVICES_PM_PM_H

#include "compute/vmm/bus.h"
#include "compute/vmm/device.h"
#include "compute/vmm/irq.h"
#include "compute/vmm/pci.h"
#include "compute/vmm/power.h"

struct pm;

int pm_create(struct bus *ports, struct pci_bus *pci, struct irq_chip *chip, power_fn power, void *power_arg,
              struct pm **ret_pm, struct error *err);
struct device *pm_device(struct pm *p);
/* The user presses the power button; the guest's system may act on it. With the device lock held. */
void pm_press_power_button(struct pm *p);
/* Raise general purpose event @gpe, below 16: the guest runs its method (_GPE in the DSDT). With the device lock held. */
void pm_raise_gpe(struct pm *p, unsigned gpe);

#endif
