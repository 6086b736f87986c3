/* virtio over PCI, modern: see virtio_pci.h for the layout. */
#include "compute/vmm/virtio/virtio_pci.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "common/log.h"

enum {
    VENDOR = 0x1af4, /* virtio 1.2 §4.1.2 */
    DEVICE_ID_FIRST = 0x1040,
    SUBSYSTEM = 0x1100,
    CAPABILITY_VENDOR = 0x09,
    CAP_BYTES = 16, /* struct virtio_pci_cap */
    CAP_NOTIFY_BYTES = 20,
    CAP_PCI_CFG_BYTES = 20,
    CAP_BAR = 4, /* offsets within a virtio capability */
    CAP_OFFSET = 8,
    CAP_LENGTH = 12,
    CAP_DATA = 16, /* of the PCI_CFG capability */
    ISR_QUEUE = 1,
    ISR_CONFIG = 2,
    STATE_VERSION = 1,
    COMMON_BYTES = 56, /* up to queue_device: queue_notify_data and queue_reset are not offered */
};

struct doorbell {
    struct virtio_pci *pci;
    unsigned queue;
    int fd; /* eventfd: rung by the guest through KVM, or by queue_again */
    struct io_handler *handler;
    uint64_t address; /* where it is attached, 0: nowhere */
};

struct virtio_pci {
    struct device device;
    struct pci_device pci;
    struct virtio_transport transport;
    struct virtio_device *vdev; /* owned */
    struct irq_chip *chip;      /* borrowed, as bus and loop */
    struct io_loop *loop;
    struct msix msix;
    uint8_t isr;
    unsigned pci_cfg; /* offset of the PCI_CFG capability */

    /* Registers of the common configuration that are the transport's own */
    uint32_t device_feature_select, driver_feature_select;
    uint16_t queue_select;
    uint16_t config_vector;
    uint16_t queue_vector[VIRTIO_QUEUES_MAX];
    struct doorbell doorbells[VIRTIO_QUEUES_MAX];
};

/* ---- interrupts ---- */

static void interrupt(struct virtio_pci *p, uint16_t vector, uint8_t isr)
{
    /* With MSI-X on, the ISR byte is not used (§4.1.4.5.2). */
    if (msix_enabled(&p->msix))
        msix_signal(&p->msix, vector);
    else
        p->isr |= isr;
}

static void transport_queue_interrupt(struct virtio_transport *t, unsigned queue)
{
    struct virtio_pci *p = CONTAINER_OF(t, struct virtio_pci, transport);
    interrupt(p, p->queue_vector[queue], ISR_QUEUE);
}

static void transport_config_interrupt(struct virtio_transport *t)
{
    struct virtio_pci *p = CONTAINER_OF(t, struct virtio_pci, transport);
    interrupt(p, p->config_vector, ISR_CONFIG);
}

static void transport_queue_again(struct virtio_transport *t, unsigned queue)
{
    struct virtio_pci *p = CONTAINER_OF(t, struct virtio_pci, transport);
    uint64_t one = 1;
    ssize_t n UNUSED = write(p->doorbells[queue].fd, &one, sizeof one); /* full counter: it is rung already */
}

static const struct virtio_transport_ops transport_ops = {
    .queue_interrupt = transport_queue_interrupt,
    .config_interrupt = transport_config_interrupt,
    .queue_again = transport_queue_again,
};

/* ---- doorbells ---- */

static void doorbell_rung(void *arg, uint32_t events UNUSED)
{
    struct doorbell *bell = arg;
    uint64_t count;
    ssize_t n UNUSED = read(bell->fd, &count, sizeof count);
    virtio_device_notify(bell->pci->vdev, bell->queue);
}

static void bar_mapped(struct pci_device *pci, unsigned bar, bool mapped)
{
    struct virtio_pci *p = CONTAINER_OF(pci, struct virtio_pci, pci);
    if (bar != VIRTIO_PCI_BAR)
        return;
    for (unsigned i = 0; i < p->vdev->queue_count; i++) {
        struct doorbell *bell = &p->doorbells[i];
        struct error err;
        if (bell->address != 0)
            doorbell_detach(p->chip, bell->address, 0, false, bell->fd, NULL);
        bell->address = 0;
        if (!mapped)
            continue;
        uint64_t address = pci->bars[bar].address + VIRTIO_PCI_AT_NOTIFY + (uint64_t)i * VIRTIO_PCI_NOTIFY_STEP;
        if (doorbell_attach(p->chip, address, 0, false, bell->fd, &err) < 0)
            log_debug("virtio-doorbell-slow-path", "device=%s queue=%u why=\"%s\"", p->device.name, i, err.text);
        else
            bell->address = address;
    }
}

/* ---- common configuration, §4.1.4.3 ---- */

static struct virtio_queue *selected_queue(struct virtio_pci *p)
{
    return p->queue_select < p->vdev->queue_count ? &p->vdev->queues[p->queue_select] : NULL;
}

static uint32_t feature_word(uint64_t features, uint32_t select)
{
    return select < 2 ? (uint32_t)(features >> (32 * select)) : 0;
}

/* The registers as they are now; the guest's read is a piece of it, of whatever width. */
static void common_image(struct virtio_pci *p, struct virtio_pci_common_cfg *c)
{
    const struct virtio_device *d = p->vdev;
    const struct virtio_queue *q = selected_queue(p);
    *c = (struct virtio_pci_common_cfg){
        .device_feature_select = p->device_feature_select,
        .device_feature = feature_word(d->features_offered, p->device_feature_select),
        .guest_feature_select = p->driver_feature_select,
        .guest_feature = feature_word(d->features, p->driver_feature_select),
        .msix_config = p->config_vector,
        .num_queues = d->queue_count,
        .device_status = d->status,
        .config_generation = d->config_generation,
        .queue_select = p->queue_select,
        .queue_msix_vector = MSIX_NO_VECTOR,
    };
    if (q == NULL)
        return;
    c->queue_size = q->size;
    c->queue_msix_vector = p->queue_vector[p->queue_select];
    c->queue_enable = q->ready;
    c->queue_notify_off = p->queue_select;
    c->queue_desc_lo = (uint32_t)q->desc_gpa;
    c->queue_desc_hi = (uint32_t)(q->desc_gpa >> 32);
    c->queue_avail_lo = (uint32_t)q->driver_gpa;
    c->queue_avail_hi = (uint32_t)(q->driver_gpa >> 32);
    c->queue_used_lo = (uint32_t)q->device_gpa;
    c->queue_used_hi = (uint32_t)(q->device_gpa >> 32);
}
STATIC_ASSERT(sizeof(struct virtio_pci_common_cfg) == COMMON_BYTES, "layout of §4.1.4.3");

static void address_put(uint64_t *address, unsigned at, unsigned size, uint64_t value)
{
    if (size == 8 && at == 0)
        *address = value;
    else if (size == 4)
        *address = (*address & ~(0xffffffffull << (8 * at))) | (value & 0xffffffff) << (8 * at);
}

/* A queue is set up between FEATURES_OK and DRIVER_OK, and is fixed once it is enabled (§3.1.1, §4.1.4.3.2). */
static void queue_register_write(struct virtio_pci *p, unsigned offset, unsigned size, uint64_t value)
{
    struct virtio_queue *q = selected_queue(p);
    if (q == NULL)
        return;
    if (offset == VIRTIO_PCI_COMMON_Q_MSIX && size == 2) {
        p->queue_vector[p->queue_select] = value < p->msix.count ? (uint16_t)value : (uint16_t)MSIX_NO_VECTOR;
        return;
    }
    if (!virtio_device_accepts_setup(p->vdev) || q->ready)
        return;
    if (offset == VIRTIO_PCI_COMMON_Q_SIZE && size == 2) {
        /* 0 for a size that cannot be: then the queue cannot be enabled. */
        q->size = value <= q->size_max && (value & (value - 1)) == 0 ? (uint16_t)value : 0;
    } else if (offset == VIRTIO_PCI_COMMON_Q_ENABLE && size == 2) {
        if (value == 1)
            virtio_device_enable_queue(p->vdev, p->queue_select);
    } else if (offset >= VIRTIO_PCI_COMMON_Q_DESCLO && offset < VIRTIO_PCI_COMMON_Q_AVAILLO) {
        address_put(&q->desc_gpa, offset - VIRTIO_PCI_COMMON_Q_DESCLO, size, value);
    } else if (offset >= VIRTIO_PCI_COMMON_Q_AVAILLO && offset < VIRTIO_PCI_COMMON_Q_USEDLO) {
        address_put(&q->driver_gpa, offset - VIRTIO_PCI_COMMON_Q_AVAILLO, size, value);
    } else if (offset >= VIRTIO_PCI_COMMON_Q_USEDLO && offset < COMMON_BYTES) {
        address_put(&q->device_gpa, offset - VIRTIO_PCI_COMMON_Q_USEDLO, size, value);
    }
}

static void transport_reset(struct virtio_pci *p)
{
    virtio_device_reset(p->vdev);
    p->isr = 0;
    p->device_feature_select = p->driver_feature_select = 0;
    p->queue_select = 0;
    p->config_vector = MSIX_NO_VECTOR;
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
        p->queue_vector[i] = MSIX_NO_VECTOR;
}

/* Fields are written whole, 64-bit ones in halves or whole (§4.1.3.1); other widths are ignored. */
static void common_write(struct virtio_pci *p, unsigned offset, unsigned size, uint64_t value)
{
    struct virtio_device *d = p->vdev;
    if (offset == VIRTIO_PCI_COMMON_DFSELECT && size == 4) {
        p->device_feature_select = (uint32_t)value;
    } else if (offset == VIRTIO_PCI_COMMON_GFSELECT && size == 4) {
        p->driver_feature_select = (uint32_t)value;
    } else if (offset == VIRTIO_PCI_COMMON_GF && size == 4) {
        virtio_device_set_features(d, p->driver_feature_select > 1 ? 2 : p->driver_feature_select, (uint32_t)value);
    } else if (offset == VIRTIO_PCI_COMMON_MSIX && size == 2) {
        p->config_vector = value < p->msix.count ? (uint16_t)value : (uint16_t)MSIX_NO_VECTOR;
    } else if (offset == VIRTIO_PCI_COMMON_STATUS && size == 1) {
        if ((value & 0xff) == 0)
            transport_reset(p);
        else
            virtio_device_set_status(d, (uint8_t)value);
    } else if (offset == VIRTIO_PCI_COMMON_Q_SELECT && size == 2) {
        p->queue_select = (uint16_t)value;
    } else {
        queue_register_write(p, offset, size, value);
    }
}

/* ---- the BAR ---- */

/* @size bytes at @offset of @data, zero past its end. */
static uint64_t piece_of(const void *data, size_t data_size, uint64_t offset, unsigned size)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < size && i < 8 && offset + i < data_size; i++)
        value |= (uint64_t)((const uint8_t *)data)[offset + i] << (8 * i);
    return value;
}

static uint64_t bar_read(struct pci_device *pci, unsigned bar UNUSED, uint64_t offset, unsigned size)
{
    struct virtio_pci *p = CONTAINER_OF(pci, struct virtio_pci, pci);
    uint64_t at = offset % VIRTIO_PCI_REGION_BYTES;
    struct virtio_pci_common_cfg common;
    uint8_t isr;
    switch (offset - at) {
    case VIRTIO_PCI_AT_COMMON:
        common_image(p, &common);
        return piece_of(&common, sizeof common, at, size);
    case VIRTIO_PCI_AT_ISR:
        if (at != 0)
            return 0;
        isr = p->isr;
        p->isr = 0; /* reading acknowledges */
        return isr;
    case VIRTIO_PCI_AT_DEVICE:
        return piece_of(p->vdev->config, p->vdev->config_bytes, at, size);
    case VIRTIO_PCI_AT_MSIX_TABLE:
        return msix_table_read(&p->msix, at, size);
    case VIRTIO_PCI_AT_MSIX_PBA:
        return msix_pba_read(&p->msix, at, size);
    default:
        return 0;
    }
}

static void bar_write(struct pci_device *pci, unsigned bar UNUSED, uint64_t offset, unsigned size, uint64_t value)
{
    struct virtio_pci *p = CONTAINER_OF(pci, struct virtio_pci, pci);
    uint64_t at = offset % VIRTIO_PCI_REGION_BYTES;
    switch (offset - at) {
    case VIRTIO_PCI_AT_COMMON:
        common_write(p, (unsigned)at, size, value);
        break;
    case VIRTIO_PCI_AT_NOTIFY:
        /* Only where no ioeventfd catches it, or by way of the PCI_CFG capability. */
        if (at / VIRTIO_PCI_NOTIFY_STEP < p->vdev->queue_count)
            virtio_device_notify(p->vdev, (unsigned)(at / VIRTIO_PCI_NOTIFY_STEP));
        break;
    case VIRTIO_PCI_AT_MSIX_TABLE:
        msix_table_write(&p->msix, at, size, value);
        break;
    case VIRTIO_PCI_AT_DEVICE:
        if (p->vdev->ops->config_write != NULL && at + size <= p->vdev->config_bytes)
            p->vdev->ops->config_write(p->vdev, (unsigned)at, size, value);
        break;
    default: /* ISR and pending bits are read-only */
        break;
    }
}

/* ---- config space ---- */

/* The window of §4.1.4.9: firmware that cannot map the BAR reaches it through config space. */
static bool pci_cfg_target(struct virtio_pci *p, uint32_t *ret_offset, uint32_t *ret_size)
{
    uint32_t offset = pci_config_get(&p->pci, p->pci_cfg + CAP_OFFSET, 4);
    uint32_t size = pci_config_get(&p->pci, p->pci_cfg + CAP_LENGTH, 4);
    if (pci_config_get(&p->pci, p->pci_cfg + CAP_BAR, 1) != VIRTIO_PCI_BAR || (size != 1 && size != 2 && size != 4) ||
        offset % size != 0 || offset > VIRTIO_PCI_BAR_BYTES - size)
        return false;
    *ret_offset = offset;
    *ret_size = size;
    return true;
}

static void config_read(struct pci_device *pci, unsigned offset, unsigned size UNUSED)
{
    struct virtio_pci *p = CONTAINER_OF(pci, struct virtio_pci, pci);
    uint32_t at, bytes;
    if (offset != p->pci_cfg + CAP_DATA || !pci_cfg_target(p, &at, &bytes))
        return;
    pci_config_set32(pci, offset, (uint32_t)bar_read(pci, VIRTIO_PCI_BAR, at, bytes));
}

static void config_write(struct pci_device *pci, unsigned offset, unsigned size, uint32_t value)
{
    struct virtio_pci *p = CONTAINER_OF(pci, struct virtio_pci, pci);
    uint32_t at, bytes;
    msix_config_written(&p->msix, offset, size);
    if (offset != p->pci_cfg + CAP_DATA || !pci_cfg_target(p, &at, &bytes) || size < bytes)
        return;
    bar_write(pci, VIRTIO_PCI_BAR, at, bytes, bytes == 4 ? value : value & ((1u << (8 * bytes)) - 1));
}

static const struct pci_ops pci_function_ops = {
    .bar_read = bar_read,
    .bar_write = bar_write,
    .bar_mapped = bar_mapped,
    .config_read = config_read,
    .config_write = config_write,
};

static unsigned add_capability(struct virtio_pci *p, uint8_t type, unsigned cap_bytes, uint32_t offset,
                               uint32_t length)
{
    unsigned at = pci_capability_add(&p->pci, CAPABILITY_VENDOR, cap_bytes);
    pci_config_set8(&p->pci, at + 2, (uint8_t)cap_bytes);
    pci_config_set8(&p->pci, at + 3, type);
    pci_config_set8(&p->pci, at + CAP_BAR, VIRTIO_PCI_BAR);
    pci_config_set32(&p->pci, at + CAP_OFFSET, offset);
    pci_config_set32(&p->pci, at + CAP_LENGTH, length);
    return at;
}

static void fill_config_space(struct virtio_pci *p)
{
    struct virtio_device *d = p->vdev;
    pci_device_init(&p->pci, &pci_function_ops, VENDOR, (uint16_t)(DEVICE_ID_FIRST + d->id), d->pci_class, 1);
    pci_config_set16(&p->pci, PCI_SUBSYSTEM_VENDOR_ID, VENDOR);
    pci_config_set16(&p->pci, PCI_SUBSYSTEM_ID, SUBSYSTEM);
    pci_bar_set(&p->pci, VIRTIO_PCI_BAR, PCI_BAR_MEMORY64, VIRTIO_PCI_BAR_BYTES, true);
    add_capability(p, VIRTIO_PCI_CAP_COMMON_CFG, CAP_BYTES, VIRTIO_PCI_AT_COMMON, COMMON_BYTES);
    unsigned notify = add_capability(p, VIRTIO_PCI_CAP_NOTIFY_CFG, CAP_NOTIFY_BYTES, VIRTIO_PCI_AT_NOTIFY,
                                     (uint32_t)d->queue_count * VIRTIO_PCI_NOTIFY_STEP);
    pci_config_set32(&p->pci, notify + CAP_BYTES, VIRTIO_PCI_NOTIFY_STEP);
    add_capability(p, VIRTIO_PCI_CAP_ISR_CFG, CAP_BYTES, VIRTIO_PCI_AT_ISR, 1);
    if (d->config_bytes > 0)
        add_capability(p, VIRTIO_PCI_CAP_DEVICE_CFG, CAP_BYTES, VIRTIO_PCI_AT_DEVICE, d->config_bytes);
    p->pci_cfg = add_capability(p, VIRTIO_PCI_CAP_PCI_CFG, CAP_PCI_CFG_BYTES, 0, 0);
    p->pci.writable[p->pci_cfg + CAP_BAR] = 0xff;
    memset(&p->pci.writable[p->pci_cfg + CAP_OFFSET], 0xff, CAP_PCI_CFG_BYTES - CAP_OFFSET);
    msix_init(&p->msix, &p->pci, p->chip, d->queue_count + 1u, VIRTIO_PCI_BAR, VIRTIO_PCI_AT_MSIX_TABLE,
              VIRTIO_PCI_AT_MSIX_PBA);
}

/* ---- as the machine sees it ---- */

static struct virtio_pci *of_device(struct device *device)
{
    return CONTAINER_OF(device, struct virtio_pci, device);
}

static void device_reset(struct device *device)
{
    struct virtio_pci *p = of_device(device);
    transport_reset(p);
    msix_reset(&p->msix);
    pci_config_set8(&p->pci, p->pci_cfg + CAP_BAR, VIRTIO_PCI_BAR);
    memset(&p->pci.config[p->pci_cfg + CAP_OFFSET], 0, CAP_PCI_CFG_BYTES - CAP_OFFSET);
}

static void device_pause(struct device *device)
{
    virtio_device_pause(of_device(device)->vdev);
}

static void device_resume(struct device *device)
{
    virtio_device_resume(of_device(device)->vdev);
}

static void device_save(struct device *device, struct bytes_writer *out)
{
    struct virtio_pci *p = of_device(device);
    bytes_put_u16(out, STATE_VERSION);
    bytes_put_u16(out, (uint16_t)pci_config_get(&p->pci, PCI_COMMAND, 2));
    bytes_put_u64(out, p->pci.bars[VIRTIO_PCI_BAR].address);
    bytes_put_u8(out, (uint8_t)pci_config_get(&p->pci, PCI_INTERRUPT_LINE, 1));
    bytes_put(out, &p->pci.config[p->pci_cfg + CAP_BAR], CAP_PCI_CFG_BYTES - CAP_BAR);
    bytes_put_u32(out, p->device_feature_select);
    bytes_put_u32(out, p->driver_feature_select);
    bytes_put_u16(out, p->queue_select);
    bytes_put_u8(out, p->isr);
    bytes_put_u16(out, p->config_vector);
    for (unsigned i = 0; i < p->vdev->queue_count; i++)
        bytes_put_u16(out, p->queue_vector[i]);
    msix_save(&p->msix, out);
    virtio_device_save(p->vdev, out);
}

static bool vector_is_valid(const struct virtio_pci *p, uint16_t vector)
{
    return vector < p->msix.count || vector == MSIX_NO_VECTOR;
}

static int registers_load(struct virtio_pci *p, struct bytes_reader *in)
{
    if (bytes_get_u16(in) != STATE_VERSION)
        return -EBADMSG;
    uint16_t command = bytes_get_u16(in);
    uint64_t address = bytes_get_u64(in);
    uint8_t line = bytes_get_u8(in);
    const uint8_t *window = bytes_get(in, CAP_PCI_CFG_BYTES - CAP_BAR);
    p->device_feature_select = bytes_get_u32(in);
    p->driver_feature_select = bytes_get_u32(in);
    p->queue_select = bytes_get_u16(in);
    p->isr = bytes_get_u8(in);
    p->config_vector = bytes_get_u16(in);
    for (unsigned i = 0; i < p->vdev->queue_count; i++)
        p->queue_vector[i] = bytes_get_u16(in);
    if (in->bad || address % VIRTIO_PCI_BAR_BYTES != 0 || !vector_is_valid(p, p->config_vector))
        return -EBADMSG;
    for (unsigned i = 0; i < p->vdev->queue_count; i++)
        if (!vector_is_valid(p, p->queue_vector[i]))
            return -EBADMSG;
    /* The reserved bytes stay as they are. */
    p->pci.config[p->pci_cfg + CAP_BAR] = window[0];
    memcpy(&p->pci.config[p->pci_cfg + CAP_OFFSET], window + CAP_OFFSET - CAP_BAR, CAP_PCI_CFG_BYTES - CAP_OFFSET);
    pci_config_set8(&p->pci, PCI_INTERRUPT_LINE, line);
    /* By the guest's own way, so that bus and doorbells follow. */
    unsigned bar = PCI_BAR0 + 4 * VIRTIO_PCI_BAR;
    pci_config_write(p->pci.bus, p->pci.slot, p->pci.function, PCI_COMMAND, 2, 0);
    pci_config_write(p->pci.bus, p->pci.slot, p->pci.function, bar, 4, (uint32_t)address);
    pci_config_write(p->pci.bus, p->pci.slot, p->pci.function, bar + 4, 4, (uint32_t)(address >> 32));
    pci_config_write(p->pci.bus, p->pci.slot, p->pci.function, PCI_COMMAND, 2, command);
    return 0;
}

static int device_load(struct device *device, struct bytes_reader *in, struct error *err)
{
    struct virtio_pci *p = of_device(device);
    int code = registers_load(p, in);
    if (code == 0)
        code = msix_load(&p->msix, in);
    if (code < 0) {
        device_reset(device);
        return error_set(err, code, ERROR_INVALID, "state of %s does not fit: its PCI registers", p->device.name);
    }
    code = virtio_device_load(p->vdev, in, err);
    if (code < 0) {
        device_reset(device);
        error_prefix(err, "%s: ", p->device.name);
    }
    return code;
}

/* All but the virtio device. */
static void release(struct virtio_pci *p)
{
    bar_mapped(&p->pci, VIRTIO_PCI_BAR, false);
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++) {
        io_loop_remove(p->loop, p->doorbells[i].handler);
        close_fd(&p->doorbells[i].fd);
    }
    msix_finish(&p->msix);
    free(p);
}

static void device_destroy(struct device *device)
{
    struct virtio_pci *p = of_device(device);
    struct virtio_device *vdev = p->vdev;
    transport_reset(p);
    if (p->pci.bus->functions[p->pci.slot * PCI_FUNCTIONS] == &p->pci)
        pci_bus_remove(p->pci.bus, p->pci.slot);
    release(p);
    vdev->ops->destroy(vdev);
}

static const struct device_ops machine_ops = {
    .reset = device_reset,
    .pause = device_pause,
    .resume = device_resume,
    .save = device_save,
    .load = device_load,
    .destroy = device_destroy,
};

static int doorbells_create(struct virtio_pci *p, struct error *err)
{
    for (unsigned i = 0; i < p->vdev->queue_count; i++) {
        struct doorbell *bell = &p->doorbells[i];
        bell->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        if (bell->fd < 0)
            return error_errno(err, -errno, "cannot create an eventfd");
        int code = io_loop_add(p->loop, bell->fd, EPOLLIN, doorbell_rung, bell, &bell->handler, err);
        if (code < 0)
            return code;
    }
    return 0;
}

int virtio_pci_create(struct virtio_device *vdev, const char *name, struct pci_bus *bus, unsigned slot,
                      struct irq_chip *chip, struct io_loop *loop, struct virtio_pci **ret_pci, struct error *err)
{
    struct virtio_pci *p = NEW(struct virtio_pci);
    p->device.ops = &machine_ops;
    snprintf(p->device.name, sizeof p->device.name, "%s", name);
    list_init(&p->device.link);
    p->transport.ops = &transport_ops;
    p->vdev = vdev;
    p->chip = chip;
    p->loop = loop;
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
        p->doorbells[i] = (struct doorbell){.pci = p, .queue = i, .fd = -1};
    fill_config_space(p);
    transport_reset(p);
    int code = doorbells_create(p, err);
    if (code == 0)
        code = pci_bus_add(bus, slot, &p->pci, err);
    if (code < 0) {
        release(p);
        return code;
    }
    vdev->transport = &p->transport;
    *ret_pci = p;
    return 0;
}

struct device *virtio_pci_device(struct virtio_pci *p)
{
    return &p->device;
}

struct virtio_device *virtio_pci_virtio(struct virtio_pci *p)
{
    return p->vdev;
}
