/* A virtio device on the PCI bus: the modern transport (virtio 1.2 §4.1), without the legacy interface and without
 * INTx.
 *
 * Vendor 1af4, device 1040 + virtio id, revision 1. One 64-bit memory BAR holds everything:
 *
 *   0x0000 common configuration     0x1000 ISR status     0x2000 device configuration
 *   0x3000 notify, 4 bytes a queue  0x4000 MSI-X table    0x5000 MSI-X pending bits     (32 KiB in all)
 *
 * A notify write is caught by an ioeventfd per queue and handled on the I/O thread; where the chip gives none, by the
 * BAR handler. Interrupts: MSI-X only; firmware polls the ISR byte.
 *
 * Threads: as device.h: with the device lock held. */
#ifndef COMPUTE_VMM_VIRTIO_PCI_H
#define COMPUTE_VMM_VIRTIO_PCI_H

#include "compute/vmm/device.h"
#include "compute/vmm/io_loop.h"
#include "compute/vmm/irq.h"
#include "compute/vmm/pci.h"
#include "compute/vmm/virtio/msix.h"
#include "compute/vmm/virtio/virtio_device.h"

enum {
    VIRTIO_PCI_BAR = 4,
    VIRTIO_PCI_BAR_BYTES = 0x8000,
    VIRTIO_PCI_AT_COMMON = 0x0000,
    VIRTIO_PCI_AT_ISR = 0x1000,
    VIRTIO_PCI_AT_DEVICE = 0x2000,
    VIRTIO_PCI_AT_NOTIFY = 0x3000,
    VIRTIO_PCI_NOTIFY_STEP = 4, /* notify_off_multiplier */
    VIRTIO_PCI_AT_MSIX_TABLE = 0x4000,
    VIRTIO_PCI_AT_MSIX_PBA = 0x5000,
    VIRTIO_PCI_REGION_BYTES = 0x1000,
};

struct virtio_pci;

/* Put @vdev at @slot of @bus. On success the transport owns @vdev and is released by device.ops->destroy (it leaves
 * the bus to the caller: pci.h keeps its functions); on failure @vdev stays the caller's. @name: as struct device. */
int virtio_pci_create(struct virtio_device *vdev, const char *name, struct pci_bus *bus, unsigned slot,
                      struct irq_chip *chip, struct io_loop *loop, struct virtio_pci **ret_pci, struct error *err);

/* For the machine's list; pause, resume, reset, save, load and destroy go through it. */
struct device *virtio_pci_device(struct virtio_pci *p);
struct virtio_device *virtio_pci_virtio(struct virtio_pci *p);

#endif
