/* Handing out GSIs, and the calls through the vtable. */
#include "compute/vmm/irq.h"

#include <errno.h>
#include <string.h>

void irq_chip_init(struct irq_chip *chip, const struct irq_chip_ops *ops)
{
    memset(chip, 0, sizeof(*chip));
    chip->ops = ops;
}

int irq_gsi_alloc(struct irq_chip *chip, uint32_t *ret_gsi, struct error *err)
{
    for (uint32_t gsi = IRQ_GSI_FIRST; gsi < IRQ_GSI_MAX; gsi++) {
        if (chip->gsi_used[gsi / 64] & 1ull << (gsi % 64))
            continue;
        chip->gsi_used[gsi / 64] |= 1ull << (gsi % 64);
        *ret_gsi = gsi;
        return 0;
    }
    return error_set(err, -ENOSPC, ERROR_INVALID, "all %u interrupts are in use; give the VM fewer devices",
                     IRQ_GSI_MAX - IRQ_GSI_FIRST);
}

void irq_gsi_free(struct irq_chip *chip, uint32_t gsi)
{
    ASSERT(gsi >= IRQ_GSI_FIRST && gsi < IRQ_GSI_MAX);
    chip->gsi_used[gsi / 64] &= ~(1ull << (gsi % 64));
}

int irq_route_msi(struct irq_chip *chip, uint32_t gsi, uint64_t address, uint32_t data, struct error *err)
{
    return chip->ops->route_msi(chip, gsi, address, data, err);
}

int irq_unroute(struct irq_chip *chip, uint32_t gsi, struct error *err)
{
    return chip->ops->unroute(chip, gsi, err);
}

int irq_attach(struct irq_chip *chip, uint32_t gsi, int fd, struct error *err)
{
    return chip->ops->attach(chip, gsi, fd, err);
}

int irq_detach(struct irq_chip *chip, uint32_t gsi, int fd, struct error *err)
{
    return chip->ops->detach(chip, gsi, fd, err);
}

int irq_line_set(struct irq_chip *chip, uint32_t gsi, bool high)
{
    return chip->ops->line_set(chip, gsi, high);
}

int irq_msi_send(struct irq_chip *chip, uint64_t address, uint32_t data)
{
    return chip->ops->msi_send(chip, address, data);
}

int doorbell_attach(struct irq_chip *chip, uint64_t address, unsigned size, bool ports, int fd, struct error *err)
{
    return chip->ops->doorbell_attach(chip, address, size, ports, fd, err);
}

int doorbell_detach(struct irq_chip *chip, uint64_t address, unsigned size, bool ports, int fd, struct error *err)
{
    return chip->ops->doorbell_detach(chip, address, size, ports, fd, err);
}
