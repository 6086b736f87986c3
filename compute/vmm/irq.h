/* Interrupts and doorbells as devices see them: by a vtable, so that a unit test can stand in for KVM.
 *
 *   device -> write(eventfd) -> [irqfd] -> GSI -> route -> MSI message -> LAPIC
 *   guest's store -> [ioeventfd] -> eventfd -> I/O loop -> device
 *
 * GSIs 0-23 are the IOAPIC's pins and are routed from the start; irq_gsi_alloc hands out those above.
 * Call with the device lock held (device.h); irq_line_set from anywhere. */
#ifndef COMPUTE_VMM_IRQ_H
#define COMPUTE_VMM_IRQ_H

#include "common/base.h"
#include "common/error.h"

#define IRQ_GSI_FIRST 24u /* lowest GSI that is not an IOAPIC pin */
#define IRQ_GSI_MAX 1024u /* GSIs in all: the number of MSI-X vectors of a machine is bounded by it */

struct irq_chip;

struct irq_chip_ops {
    /* The message that @gsi raises; routing may be changed while an irqfd is attached. */
    int (*route_msi)(struct irq_chip *, uint32_t gsi, uint64_t address, uint32_t data, struct error *err);
    int (*unroute)(struct irq_chip *, uint32_t gsi, struct error *err);
    /* From now on a write to @fd (eventfd) raises @gsi, without this process. */
    int (*attach)(struct irq_chip *, uint32_t gsi, int fd, struct error *err);
    int (*detach)(struct irq_chip *, uint32_t gsi, int fd, struct error *err);
    /* Level of IOAPIC pin / PIC line @gsi. */
    int (*line_set)(struct irq_chip *, uint32_t gsi, bool high);
    /* One MSI at once, without a route. */
    int (*msi_send)(struct irq_chip *, uint64_t address, uint32_t data);
    /* A guest's write of @size bytes (0: any) to @address signals @fd instead of leaving the guest. */
    int (*doorbell_attach)(struct irq_chip *, uint64_t address, unsigned size, bool ports, int fd, struct error *err);
    int (*doorbell_detach)(struct irq_chip *, uint64_t address, unsigned size, bool ports, int fd, struct error *err);
};

/* Embedded in whatever stands behind the vtable. */
struct irq_chip {
    const struct irq_chip_ops *ops;
    uint64_t gsi_used[IRQ_GSI_MAX / 64]; /* bit set: handed out */
};

void irq_chip_init(struct irq_chip *chip, const struct irq_chip_ops *ops);
/* -ENOSPC when all are handed out. The GSI has no route until irq_route_msi. */
int irq_gsi_alloc(struct irq_chip *chip, uint32_t *ret_gsi, struct error *err);
/* The caller has detached and unrouted it. */
void irq_gsi_free(struct irq_chip *chip, uint32_t gsi);

int irq_route_msi(struct irq_chip *chip, uint32_t gsi, uint64_t address, uint32_t data, struct error *err);
int irq_unroute(struct irq_chip *chip, uint32_t gsi, struct error *err);
int irq_attach(struct irq_chip *chip, uint32_t gsi, int fd, struct error *err);
int irq_detach(struct irq_chip *chip, uint32_t gsi, int fd, struct error *err);
int irq_line_set(struct irq_chip *chip, uint32_t gsi, bool high);
int irq_msi_send(struct irq_chip *chip, uint64_t address, uint32_t data);
/* Doorbells: @ports true for a port address, false for memory. @size 0 catches every width and is the fast path. */
int doorbell_attach(struct irq_chip *chip, uint64_t address, unsigned size, bool ports, int fd, struct error *err);
int doorbell_detach(struct irq_chip *chip, uint64_t address, unsigned size, bool ports, int fd, struct error *err);

#endif
