/* MSI-X of one PCI function: capability, vector table, pending bits (PCI Local Bus 3.0 §6.8.2).
 *
 * The table is the guest's to write. A vector that may be delivered has a GSI with a route to its message and an
 * eventfd attached to it (irq.h), so that msix_signal is one write(2). Masked vectors collect in the pending bits and
 * are delivered when unmasked.
 *
 * Threads: with the device lock held. */
#ifndef COMPUTE_VMM_VIRTIO_MSIX_H
#define COMPUTE_VMM_VIRTIO_MSIX_H

#include "common/bytes.h"
#include "common/error.h"
#include "compute/vmm/irq.h"
#include "compute/vmm/pci.h"

enum {
    MSIX_VECTORS_MAX = 64,
    MSIX_ENTRY_BYTES = 16,
    MSIX_NO_VECTOR = 0xffff,
};

struct msix_vector {
    uint64_t address;
    uint32_t data;
    bool masked;
    bool routed; /* gsi, fd are valid and the route is that of address and data */
    uint32_t gsi;
    int fd; /* eventfd; -1 */
};

struct msix {
    struct irq_chip *chip;  /* borrowed */
    struct pci_device *pci; /* borrowed: holds the capability */
    unsigned capability;    /* its offset in config space */
    unsigned count;
    uint64_t pending; /* bit per vector */
    struct msix_vector vectors[MSIX_VECTORS_MAX];
};

/* Add the capability to @pci: table at @table_offset and pending bits at @pba_offset of BAR @bar. */
void msix_init(struct msix *m, struct pci_device *pci, struct irq_chip *chip, unsigned count, unsigned bar,
               uint32_t table_offset, uint32_t pba_offset);
void msix_finish(struct msix *m);
/* All vectors masked, nothing pending, function disabled. */
void msix_reset(struct msix *m);
bool msix_enabled(const struct msix *m);

/* Raise @vector: now, or once it is unmasked. Without effect for MSIX_NO_VECTOR, a number out of range, or while
 * MSI-X is off. */
void msix_signal(struct msix *m, unsigned vector);

/* The guest's accesses, by offset within table or pending bits; any width, also across fields. */
uint64_t msix_table_read(const struct msix *m, uint64_t offset, unsigned size);
void msix_table_write(struct msix *m, uint64_t offset, unsigned size, uint64_t value);
uint64_t msix_pba_read(const struct msix *m, uint64_t offset, unsigned size);
/* The guest wrote config space: look whether the control word changed. */
void msix_config_written(struct msix *m, unsigned offset, unsigned size);

/* Table, pending bits and control word. After load the routes are made anew. */
void msix_save(const struct msix *m, struct bytes_writer *out);
int msix_load(struct msix *m, struct bytes_reader *in);

#endif
