/* MSI-X: see msix.h. */
#include "compute/vmm/virtio/msix.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>

#include "common/log.h"

enum {
    CAPABILITY_ID = 0x11,
    CAPABILITY_BYTES = 12,
    CONTROL = 2, /* offset of the control word within the capability */
    CONTROL_ENABLE = 0x8000,
    CONTROL_MASK_ALL = 0x4000,
    ENTRY_MASKED = 1,
};

static uint16_t control(const struct msix *m)
{
    return (uint16_t)pci_config_get(m->pci, m->capability + CONTROL, 2);
}

bool msix_enabled(const struct msix *m)
{
    return (control(m) & CONTROL_ENABLE) != 0;
}

static bool vector_may_fire(const struct msix *m, unsigned i)
{
    return (control(m) & (CONTROL_ENABLE | CONTROL_MASK_ALL)) == CONTROL_ENABLE && !m->vectors[i].masked;
}

void msix_init(struct msix *m, struct pci_device *pci, struct irq_chip *chip, unsigned count, unsigned bar,
               uint32_t table_offset, uint32_t pba_offset)
{
    ASSERT(count > 0 && count <= MSIX_VECTORS_MAX);
    *m = (struct msix){.chip = chip, .pci = pci, .count = count};
    for (unsigned i = 0; i < MSIX_VECTORS_MAX; i++)
        m->vectors[i] = (struct msix_vector){.masked = true, .fd = -1};
    m->capability = pci_capability_add(pci, CAPABILITY_ID, CAPABILITY_BYTES);
    pci_config_set16(pci, m->capability + CONTROL, (uint16_t)(count - 1));
    pci_config_set32(pci, m->capability + 4, table_offset | bar);
    pci_config_set32(pci, m->capability + 8, pba_offset | bar);
    pci->writable[m->capability + CONTROL + 1] = (CONTROL_ENABLE | CONTROL_MASK_ALL) >> 8;
}

static void vector_unroute(struct msix *m, unsigned i)
{
    struct msix_vector *v = &m->vectors[i];
    if (v->fd < 0)
        return;
    irq_detach(m->chip, v->gsi, v->fd, NULL);
    irq_unroute(m->chip, v->gsi, NULL);
    irq_gsi_free(m->chip, v->gsi);
    close(v->fd);
    v->fd = -1;
    v->routed = false;
}

/* GSI, route and eventfd for vector @i. Where one cannot be had the vector goes by irq_msi_send: slower, not lost. */
static void vector_route(struct msix *m, unsigned i)
{
    struct msix_vector *v = &m->vectors[i];
    struct error err = {0};
    if (v->fd >= 0) {
        v->routed = irq_route_msi(m->chip, v->gsi, v->address, v->data, &err) == 0;
        return;
    }
    uint32_t gsi;
    if (irq_gsi_alloc(m->chip, &gsi, &err) < 0)
        goto out;
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (fd < 0) {
        error_errno(&err, -errno, "eventfd");
        goto out_free;
    }
    if (irq_route_msi(m->chip, gsi, v->address, v->data, &err) < 0)
        goto out_close;
    if (irq_attach(m->chip, gsi, fd, &err) < 0)
        goto out_unroute;
    v->gsi = gsi;
    v->fd = fd;
    v->routed = true;
    return;
out_unroute:
    irq_unroute(m->chip, gsi, NULL);
out_close:
    close(fd);
out_free:
    irq_gsi_free(m->chip, gsi);
out:
    log_debug("msix-slow-path", "vector=%u why=\"%s\"", i, err.text);
}

static void vector_fire(struct msix *m, unsigned i)
{
    struct msix_vector *v = &m->vectors[i];
    if (!v->routed)
        vector_route(m, i);
    uint64_t one = 1;
    if (v->routed && write(v->fd, &one, sizeof one) == sizeof one)
        return;
    irq_msi_send(m->chip, v->address, v->data);
}

static void vector_fire_if_pending(struct msix *m, unsigned i)
{
    if ((m->pending >> i & 1) == 0 || !vector_may_fire(m, i))
        return;
    m->pending &= ~(1ull << i);
    vector_fire(m, i);
}

void msix_signal(struct msix *m, unsigned vector)
{
    if (vector >= m->count || !msix_enabled(m))
        return;
    if (vector_may_fire(m, vector))
        vector_fire(m, vector);
    else
        m->pending |= 1ull << vector;
}

void msix_finish(struct msix *m)
{
    for (unsigned i = 0; i < m->count; i++)
        vector_unroute(m, i);
}

void msix_reset(struct msix *m)
{
    for (unsigned i = 0; i < m->count; i++) {
        vector_unroute(m, i);
        m->vectors[i] = (struct msix_vector){.masked = true, .fd = -1};
    }
    m->pending = 0;
    pci_config_set16(m->pci, m->capability + CONTROL, (uint16_t)(m->count - 1));
}

/* The table is kept as fields; accesses are cut into bytes, so that every width and alignment means the same. */
static uint8_t table_byte(const struct msix *m, uint64_t offset)
{
    if (offset / MSIX_ENTRY_BYTES >= m->count)
        return 0;
    const struct msix_vector *v = &m->vectors[offset / MSIX_ENTRY_BYTES];
    unsigned at = (unsigned)(offset % MSIX_ENTRY_BYTES);
    if (at < 8)
        return (uint8_t)(v->address >> (8 * at));
    if (at < 12)
        return (uint8_t)(v->data >> (8 * (at - 8)));
    return at == 12 && v->masked ? ENTRY_MASKED : 0;
}

static void table_put_byte(struct msix *m, uint64_t offset, uint8_t byte)
{
    struct msix_vector *v = &m->vectors[offset / MSIX_ENTRY_BYTES];
    unsigned at = (unsigned)(offset % MSIX_ENTRY_BYTES);
    if (at < 8) {
        v->address = (v->address & ~(0xffull << (8 * at))) | (uint64_t)byte << (8 * at);
        v->routed = false;
    } else if (at < 12) {
        v->data = (v->data & ~(0xffu << (8 * (at - 8)))) | (uint32_t)byte << (8 * (at - 8));
        v->routed = false;
    } else if (at == 12) {
        v->masked = (byte & ENTRY_MASKED) != 0;
    }
}

uint64_t msix_table_read(const struct msix *m, uint64_t offset, unsigned size)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < size && i < 8; i++)
        value |= (uint64_t)table_byte(m, offset + i) << (8 * i);
    return value;
}

void msix_table_write(struct msix *m, uint64_t offset, unsigned size, uint64_t value)
{
    uint64_t end = (uint64_t)m->count * MSIX_ENTRY_BYTES;
    for (unsigned i = 0; i < size && i < 8 && offset + i < end; i++)
        table_put_byte(m, offset + i, (uint8_t)(value >> (8 * i)));
    for (uint64_t at = offset; at < offset + size && at < end; at += MSIX_ENTRY_BYTES)
        vector_fire_if_pending(m, (unsigned)(at / MSIX_ENTRY_BYTES));
}

uint64_t msix_pba_read(const struct msix *m, uint64_t offset, unsigned size)
{
    uint64_t value = offset < 8 ? m->pending >> (8 * offset) : 0;
    return size >= 8 ? value : value & ((1ull << (8 * size)) - 1);
}

void msix_config_written(struct msix *m, unsigned offset, unsigned size)
{
    unsigned at = m->capability + CONTROL;
    if (offset >= at + 2 || offset + size <= at)
        return;
    if (!msix_enabled(m)) {
        for (unsigned i = 0; i < m->count; i++)
            vector_unroute(m, i);
        return;
    }
    for (unsigned i = 0; i < m->count; i++)
        vector_fire_if_pending(m, i);
}

void msix_save(const struct msix *m, struct bytes_writer *out)
{
    bytes_put_u16(out, control(m));
    bytes_put_u64(out, m->pending);
    bytes_put_u16(out, (uint16_t)m->count);
    for (unsigned i = 0; i < m->count; i++) {
        bytes_put_u64(out, m->vectors[i].address);
        bytes_put_u32(out, m->vectors[i].data);
        bytes_put_u8(out, m->vectors[i].masked);
    }
}

int msix_load(struct msix *m, struct bytes_reader *in)
{
    msix_reset(m);
    uint16_t word = bytes_get_u16(in);
    uint64_t pending = bytes_get_u64(in);
    uint16_t count = bytes_get_u16(in);
    if (in->bad || count != m->count || (count < 64 && pending >> count != 0) ||
        (word & ~(CONTROL_ENABLE | CONTROL_MASK_ALL)) != count - 1)
        return -EBADMSG;
    for (unsigned i = 0; i < m->count; i++) {
        m->vectors[i].address = bytes_get_u64(in);
        m->vectors[i].data = bytes_get_u32(in);
        m->vectors[i].masked = (bytes_get_u8(in) & 1) != 0;
    }
    if (in->bad)
        return -EBADMSG;
    m->pending = pending;
    pci_config_set16(m->pci, m->capability + CONTROL, word);
    return 0;
}
