/* A guest's virtio driver in a few functions, for tests: it finds the device on the PCI bus, negotiates, builds rings
 * in fake guest memory, kicks and waits, the way a kernel does. No KVM: interrupts and doorbells go to a fake chip.
 *
 *   struct machine m; machine_init(&m);
 *   blk_create(..., &m.memory, m.loop, &vdev, NULL);
 *   struct driver d; driver_attach(&d, &m, vdev); driver_start(&d, features);
 *   driver_add(&d, 0, segments, n); driver_kick(&d, 0); driver_wait(&d, 0, &used);
 *
 * The I/O loop is turned by hand (io_loop_run_once), so tests are single-threaded but for the disk's own workers. */
#ifndef TESTS_UNIT_COMPUTE_VMM_VIRTIO_DRIVER_H
#define TESTS_UNIT_COMPUTE_VMM_VIRTIO_DRIVER_H

#include <endian.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "compute/vmm/virtio/virtio_pci.h"

#define FAKE_MEMORY_BYTES (8ull << 20)
#define FAKE_WINDOW 0x8000000000ull
#define FAKE_DOORBELLS_MAX 64
#define FAKE_ROUNDS_MAX 6000 /* of 10 ms: how long a test waits for what must come */

struct fake_doorbell {
    uint64_t address;
    int fd;
};
struct machine {
    struct guest_memory memory;
    pthread_mutex_t lock;
    struct io_loop *loop;
    struct bus memory_bus, port_bus;
    struct pci_bus pci;
    struct irq_chip chip;
    uint64_t message_address[IRQ_GSI_MAX]; /* routes */
    uint32_t message_data[IRQ_GSI_MAX];
    int irq_fd[IRQ_GSI_MAX]; /* attached eventfds, -1: none */
    struct fake_doorbell doorbells[FAKE_DOORBELLS_MAX];
    unsigned doorbell_count;
    uint8_t *witness;                   /* memory as it was when the driver wrote last; see witness_check */
    uint64_t touched[FAKE_MEMORY_BYTES / 4096 / 64]; /* pages that the driver may have written since */
    unsigned messages_sent;             /* by msi_send */
    bool refuse_doorbells, refuse_gsis; /* make the device take its slow paths */
};

static inline int fake_route(struct irq_chip *chip, uint32_t gsi, uint64_t address, uint32_t data, struct error *err)
{
    struct machine *m = CONTAINER_OF(chip, struct machine, chip);
    if (m->refuse_gsis)
        return error_set(err, -28, ERROR_INTERNAL, "no more routes");
    m->message_address[gsi] = address;
    m->message_data[gsi] = data;
    return 0;
}
static inline int fake_unroute(struct irq_chip *chip, uint32_t gsi, struct error *err UNUSED)
{
    struct machine *m = CONTAINER_OF(chip, struct machine, chip);
    m->message_address[gsi] = 0;
    return 0;
}
static inline int fake_attach(struct irq_chip *chip, uint32_t gsi, int fd, struct error *err UNUSED)
{
    struct machine *m = CONTAINER_OF(chip, struct machine, chip);
    ASSERT(m->irq_fd[gsi] < 0);
    m->irq_fd[gsi] = fd;
    return 0;
}
static inline int fake_detach(struct irq_chip *chip, uint32_t gsi, int fd, struct error *err UNUSED)
{
    struct machine *m = CONTAINER_OF(chip, struct machine, chip);
    ASSERT(m->irq_fd[gsi] == fd);
    m->irq_fd[gsi] = -1;
    return 0;
}
static inline int fake_line(struct irq_chip *chip UNUSED, uint32_t gsi UNUSED, bool high UNUSED)
{
    return 0;
}
static inline int fake_msi_send(struct irq_chip *chip, uint64_t address UNUSED, uint32_t data UNUSED)
{
    CONTAINER_OF(chip, struct machine, chip)->messages_sent++;
    return 0;
}
static inline int fake_doorbell_attach(struct irq_chip *chip, uint64_t address, unsigned size UNUSED,
                                       bool ports UNUSED, int fd, struct error *err)
{
    struct machine *m = CONTAINER_OF(chip, struct machine, chip);
    if (m->refuse_doorbells || m->doorbell_count == FAKE_DOORBELLS_MAX)
        return error_set(err, -28, ERROR_INTERNAL, "no more doorbells");
    m->doorbells[m->doorbell_count++] = (struct fake_doorbell){address, fd};
    return 0;
}
static inline int fake_doorbell_detach(struct irq_chip *chip, uint64_t address, unsigned size UNUSED,
                                       bool ports UNUSED, int fd, struct error *err UNUSED)
{
    struct machine *m = CONTAINER_OF(chip, struct machine, chip);
    for (unsigned i = 0; i < m->doorbell_count; i++)
        if (m->doorbells[i].address == address && m->doorbells[i].fd == fd) {
            m->doorbells[i] = m->doorbells[--m->doorbell_count];
            return 0;
        }
    ASSERT(!"a doorbell that was attached");
    return -1;
}

/* A device that writes guest memory says so by memory_mark_dirty, or a migration loses what it wrote. The witness holds
 * memory as the driver left it: a page that is different from it was written by a device and must be marked. Pages that
 * the driver has asked for (driver_at) since the devices had their last turn may have been written by it; they are
 * looked at before that, and taken as they are when the devices go on (witness_turn). */
static inline void witness_check(struct machine *m, uint64_t page)
{
    const uint8_t *at = m->memory.host + page * 4096;
    if (m->touched[page / 64] >> (page % 64) & 1 || memcmp(m->witness + page * 4096, at, 4096) == 0)
        return;
    if (!(__atomic_load_n(&m->memory.dirty[page / 64], __ATOMIC_ACQUIRE) >> (page % 64) & 1)) {
        fprintf(stderr, "page %llu of guest memory was written and not marked as dirty\n", (unsigned long long)page);
        abort();
    }
    memcpy(m->witness + page * 4096, at, 4096);
}
static inline void witness_touch(struct machine *m, uint64_t gpa, uint64_t size)
{
    for (uint64_t page = gpa / 4096; size && page <= (gpa + size - 1) / 4096; page++) {
        witness_check(m, page);
        m->touched[page / 64] |= 1ull << (page % 64);
    }
}
/* The devices' turn. */
static inline void witness_turn(struct machine *m)
{
    for (uint64_t page = 0; page < FAKE_MEMORY_BYTES / 4096; page++)
        if (m->touched[page / 64] >> (page % 64) & 1) {
            memcpy(m->witness + page * 4096, m->memory.host + page * 4096, 4096);
            __atomic_fetch_and(&m->memory.dirty[page / 64], ~(1ull << (page % 64)), __ATOMIC_ACQ_REL);
        }
    memset(m->touched, 0, sizeof m->touched);
}

static inline void machine_init(struct machine *m)
{
    static const struct irq_chip_ops ops = {fake_route, fake_unroute,  fake_attach,          fake_detach,
                                            fake_line,  fake_msi_send, fake_doorbell_attach, fake_doorbell_detach};
    memset(m, 0, sizeof *m);
    ASSERT(memory_init(&m->memory, FAKE_MEMORY_BYTES, NULL) == 0);
    ASSERT(memory_tracking_start(&m->memory, NULL) == 0);
    m->witness = calloc(1, FAKE_MEMORY_BYTES);
    pthread_mutex_init(&m->lock, NULL);
    ASSERT(io_loop_create(&m->lock, &m->loop, NULL) == 0);
    bus_init(&m->memory_bus, &m->lock);
    bus_init(&m->port_bus, &m->lock);
    ASSERT(pci_bus_init(&m->pci, &m->memory_bus, &m->port_bus, NULL) == 0);
    irq_chip_init(&m->chip, &ops);
    for (unsigned i = 0; i < IRQ_GSI_MAX; i++)
        m->irq_fd[i] = -1;
}
static inline void machine_finish(struct machine *m)
{
    for (uint64_t page = 0; page < FAKE_MEMORY_BYTES / 4096; page++)
        witness_check(m, page);
    io_loop_destroy(m->loop);
    bus_finish(&m->memory_bus);
    bus_finish(&m->port_bus);
    free(m->witness);
    memory_finish(&m->memory);
    pthread_mutex_destroy(&m->lock);
}

/* ---- the driver ---- */

struct driver_queue {
    uint16_t size;
    uint64_t desc, avail, used; /* guest addresses */
    uint16_t next_desc;         /* descriptors are handed out round and round: tests keep few in flight */
    uint16_t avail_index, used_index;
};
struct driver {
    struct machine *m;
    struct virtio_pci *pci;
    struct virtio_device *vdev;
    unsigned slot;
    uint64_t bar;
    uint64_t free_gpa; /* next unused guest memory */
    uint64_t features;
    struct driver_queue queues[VIRTIO_QUEUES_MAX];
};
struct segment {
    uint64_t gpa;
    uint32_t size;
    bool writable;
};
struct used_entry {
    uint32_t head, size;
};

static inline uint64_t driver_read(struct driver *d, uint64_t offset, unsigned size)
{
    return bus_read(&d->m->memory_bus, d->bar + offset, size);
}
static inline void driver_write(struct driver *d, uint64_t offset, unsigned size, uint64_t value)
{
    witness_turn(d->m);
    bus_write(&d->m->memory_bus, d->bar + offset, size, value);
}
static inline uint8_t driver_status(struct driver *d)
{
    return (uint8_t)driver_read(d, VIRTIO_PCI_COMMON_STATUS, 1);
}
static inline void driver_set_status(struct driver *d, uint8_t status)
{
    driver_write(d, VIRTIO_PCI_COMMON_STATUS, 1, status);
}
static inline uint64_t driver_alloc(struct driver *d, uint64_t size)
{
    uint64_t gpa = d->free_gpa;
    d->free_gpa = (gpa + size + 4095) & ~4095ull;
    ASSERT(d->free_gpa <= FAKE_MEMORY_BYTES);
    return gpa;
}
static inline void *driver_at(struct driver *d, uint64_t gpa, uint64_t size)
{
    void *p = memory_at(&d->m->memory, gpa, size);
    ASSERT(p != NULL);
    witness_touch(d->m, gpa, size);
    return p;
}
static inline void driver_config_write(struct driver *d, unsigned offset, unsigned size, uint32_t value)
{
    pthread_mutex_lock(&d->m->lock);
    pci_config_write(&d->m->pci, d->slot, 0, offset, size, value);
    pthread_mutex_unlock(&d->m->lock);
}
static inline uint32_t driver_config_read(struct driver *d, unsigned offset, unsigned size)
{
    pthread_mutex_lock(&d->m->lock);
    uint32_t value = pci_config_read(&d->m->pci, d->slot, 0, offset, size);
    pthread_mutex_unlock(&d->m->lock);
    return value;
}

/* Put @vdev on the bus and its BAR where firmware would. */
static inline void driver_attach(struct driver *d, struct machine *m, struct virtio_device *vdev)
{
    *d = (struct driver){.m = m, .vdev = vdev, .free_gpa = 0x10000};
    for (d->slot = 1; m->pci.functions[d->slot * PCI_FUNCTIONS] != NULL;)
        d->slot++;
    ASSERT(virtio_pci_create(vdev, "test", &m->pci, d->slot, &m->chip, m->loop, &d->pci, NULL) == 0);
    d->bar = FAKE_WINDOW + (uint64_t)d->slot * 0x100000;
    driver_config_write(d, PCI_BAR0 + 4 * VIRTIO_PCI_BAR, 4, (uint32_t)d->bar);
    driver_config_write(d, PCI_BAR0 + 4 * VIRTIO_PCI_BAR + 4, 4, (uint32_t)(d->bar >> 32));
    driver_config_write(d, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
}
/* Release the device; the bus forgets it as well. */
static inline void driver_detach(struct driver *d)
{
    struct device *device = virtio_pci_device(d->pci);
    driver_config_write(d, PCI_COMMAND, 2, 0);
    pthread_mutex_lock(&d->m->lock);
    d->m->pci.functions[d->slot * PCI_FUNCTIONS] = NULL;
    device->ops->destroy(device);
    pthread_mutex_unlock(&d->m->lock);
}

/* Vector @vector -> message address 0xfee00000, data @vector; unmasked. */
static inline void driver_vector(struct driver *d, unsigned vector)
{
    uint64_t entry = VIRTIO_PCI_AT_MSIX_TABLE + vector * 16ull;
    driver_write(d, entry, 4, 0xfee00000);
    driver_write(d, entry + 4, 4, 0);
    driver_write(d, entry + 8, 4, vector);
    driver_write(d, entry + 12, 4, 0);
}
static inline unsigned driver_msix_capability(struct driver *d)
{
    unsigned at = driver_config_read(d, PCI_CAPABILITIES, 1);
    while (at != 0 && driver_config_read(d, at, 1) != 0x11)
        at = driver_config_read(d, at + 1, 1);
    return at;
}
/* Interrupts that vector @vector has raised since the last call. */
static inline uint64_t driver_interrupts(struct driver *d, unsigned vector)
{
    for (unsigned gsi = 0; gsi < IRQ_GSI_MAX; gsi++) {
        uint64_t count = 0;
        if (d->m->irq_fd[gsi] < 0 || d->m->message_address[gsi] == 0 || d->m->message_data[gsi] != vector)
            continue;
        return read(d->m->irq_fd[gsi], &count, sizeof count) == sizeof count ? count : 0;
    }
    return 0;
}

static inline void driver_set_queue(struct driver *d, unsigned index, uint16_t size)
{
    struct driver_queue *q = &d->queues[index];
    *q = (struct driver_queue){.size = size};
    q->desc = driver_alloc(d, 16ull * size);
    q->avail = driver_alloc(d, 6 + 2ull * size);
    q->used = driver_alloc(d, 6 + 8ull * size);
    memset(driver_at(d, q->avail, 6 + 2ull * size), 0, 6 + 2ull * size);
    memset(driver_at(d, q->used, 6 + 8ull * size), 0, 6 + 8ull * size);
    driver_write(d, VIRTIO_PCI_COMMON_Q_SELECT, 2, index);
    driver_write(d, VIRTIO_PCI_COMMON_Q_SIZE, 2, size);
    driver_write(d, VIRTIO_PCI_COMMON_Q_MSIX, 2, index + 1);
    driver_write(d, VIRTIO_PCI_COMMON_Q_DESCLO, 4, (uint32_t)q->desc);
    driver_write(d, VIRTIO_PCI_COMMON_Q_DESCHI, 4, (uint32_t)(q->desc >> 32));
    driver_write(d, VIRTIO_PCI_COMMON_Q_AVAILLO, 4, (uint32_t)q->avail);
    driver_write(d, VIRTIO_PCI_COMMON_Q_AVAILHI, 4, (uint32_t)(q->avail >> 32));
    driver_write(d, VIRTIO_PCI_COMMON_Q_USEDLO, 4, (uint32_t)q->used);
    driver_write(d, VIRTIO_PCI_COMMON_Q_USEDHI, 4, (uint32_t)(q->used >> 32));
    driver_write(d, VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
}
static inline uint64_t driver_features_offered(struct driver *d)
{
    uint64_t features = 0;
    for (unsigned word = 0; word < 2; word++) {
        driver_write(d, VIRTIO_PCI_COMMON_DFSELECT, 4, word);
        features |= driver_read(d, VIRTIO_PCI_COMMON_DF, 4) << (32 * word);
    }
    return features;
}
/* Negotiate @features and FEATURES_OK; true when the device accepted. */
static inline bool driver_negotiate(struct driver *d, uint64_t features)
{
    driver_set_status(d, 0);
    driver_set_status(d, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    driver_set_status(d, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    d->features = features;
    for (unsigned word = 0; word < 2; word++) {
        driver_write(d, VIRTIO_PCI_COMMON_GFSELECT, 4, word);
        driver_write(d, VIRTIO_PCI_COMMON_GF, 4, (uint32_t)(features >> (32 * word)));
    }
    driver_set_status(d, (uint8_t)(driver_status(d) | VIRTIO_CONFIG_S_FEATURES_OK));
    return (driver_status(d) & VIRTIO_CONFIG_S_FEATURES_OK) != 0;
}
/* The whole way to DRIVER_OK with @features of those offered (VERSION_1 in any case), MSI-X on, every queue of @size.
 */
static inline void driver_start(struct driver *d, uint64_t features, uint16_t size)
{
    ASSERT(driver_negotiate(d, (features & driver_features_offered(d)) | 1ull << VIRTIO_F_VERSION_1));
    driver_config_write(d, driver_msix_capability(d) + 2, 2, 0x8000);
    driver_write(d, VIRTIO_PCI_COMMON_MSIX, 2, 0);
    for (unsigned i = 0; i <= d->vdev->queue_count; i++)
        driver_vector(d, i);
    for (unsigned i = 0; i < d->vdev->queue_count; i++)
        driver_set_queue(d, i, size);
    driver_set_status(d, (uint8_t)(driver_status(d) | VIRTIO_CONFIG_S_DRIVER_OK));
}

static inline void driver_descriptor(struct driver *d, uint64_t table, unsigned index, uint64_t gpa, uint32_t size,
                                     uint16_t flags, uint16_t next)
{
    struct vring_desc desc = {htole64(gpa), htole32(size), htole16(flags), htole16(next)};
    memcpy(driver_at(d, table + 16ull * index, 16), &desc, sizeof desc);
}
/* Make descriptor @head available; nothing is checked. */
static inline void driver_offer(struct driver *d, unsigned queue, uint16_t head)
{
    struct driver_queue *q = &d->queues[queue];
    uint16_t *avail = driver_at(d, q->avail, 4 + 2ull * q->size);
    avail[2 + q->avail_index % q->size] = htole16(head);
    __atomic_store_n(&avail[1], htole16(++q->avail_index), __ATOMIC_RELEASE);
}
/* A chain of @count segments in @table (the queue's own, or an indirect one) from entry @first on. */
static inline void driver_chain(struct driver *d, uint64_t table, unsigned first, const struct segment *segments,
                                unsigned count, unsigned modulo)
{
    for (unsigned i = 0; i < count; i++) {
        uint16_t flags =
            (uint16_t)((segments[i].writable ? VRING_DESC_F_WRITE : 0) | (i + 1 < count ? VRING_DESC_F_NEXT : 0));
        driver_descriptor(d, table, (first + i) % modulo, segments[i].gpa, segments[i].size, flags,
                          (uint16_t)((first + i + 1) % modulo));
    }
}
/* Offer a chain; its head. */
static inline uint16_t driver_add(struct driver *d, unsigned queue, const struct segment *segments, unsigned count)
{
    struct driver_queue *q = &d->queues[queue];
    uint16_t head = q->next_desc;
    driver_chain(d, q->desc, head, segments, count, q->size);
    q->next_desc = (uint16_t)((head + count) % q->size);
    driver_offer(d, queue, head);
    return head;
}
/* The same through an indirect table at @table. */
static inline uint16_t driver_add_indirect(struct driver *d, unsigned queue, uint64_t table,
                                           const struct segment *segments, unsigned count)
{
    struct driver_queue *q = &d->queues[queue];
    uint16_t head = q->next_desc;
    driver_chain(d, table, 0, segments, count, UINT16_MAX);
    driver_descriptor(d, q->desc, head, table, 16 * count, VRING_DESC_F_INDIRECT, 0);
    q->next_desc = (uint16_t)((head + 1) % q->size);
    driver_offer(d, queue, head);
    return head;
}
/* As the guest's store reaches us: through the doorbell where one is attached, else through the bus. */
static inline void driver_kick(struct driver *d, unsigned queue)
{
    uint64_t address = d->bar + VIRTIO_PCI_AT_NOTIFY + 4ull * queue, one = 1;
    for (unsigned i = 0; i < d->m->doorbell_count; i++)
        if (d->m->doorbells[i].address == address) {
            ASSERT(write(d->m->doorbells[i].fd, &one, sizeof one) == sizeof one);
            witness_turn(d->m);
            io_loop_run_once(d->m->loop, 0);
            return;
        }
    witness_turn(d->m);
    bus_write(&d->m->memory_bus, address, 2, queue);
}
static inline bool driver_has_used(struct driver *d, unsigned queue)
{
    struct driver_queue *q = &d->queues[queue];
    const uint16_t *used = driver_at(d, q->used, 4 + 8ull * q->size);
    return le16toh(__atomic_load_n(&used[1], __ATOMIC_ACQUIRE)) != q->used_index;
}
/* Take the next used entry, turning the loop until it is there; false when it never comes. */
static inline bool driver_wait(struct driver *d, unsigned queue, struct used_entry *ret_used)
{
    struct driver_queue *q = &d->queues[queue];
    for (unsigned round = 0; !driver_has_used(d, queue); round++) {
        if (round == FAKE_ROUNDS_MAX)
            return false;
        witness_turn(d->m);
        io_loop_run_once(d->m->loop, 10);
    }
    const uint8_t *entry = driver_at(d, q->used + 4 + 8ull * (q->used_index % q->size), 8);
    struct vring_used_elem raw;
    memcpy(&raw, entry, sizeof raw);
    *ret_used = (struct used_entry){le32toh(raw.id), le32toh(raw.len)};
    q->used_index++;
    return true;
}

/* Machine-wide pause and resume of this device, as before a save and after a load. */
static inline void driver_pause(struct driver *d)
{
    struct device *device = virtio_pci_device(d->pci);
    pthread_mutex_lock(&d->m->lock);
    device->ops->pause(device);
    pthread_mutex_unlock(&d->m->lock);
}
static inline void driver_resume(struct driver *d)
{
    struct device *device = virtio_pci_device(d->pci);
    witness_turn(d->m);
    pthread_mutex_lock(&d->m->lock);
    device->ops->resume(device);
    pthread_mutex_unlock(&d->m->lock);
}
static inline struct bytes_writer driver_save(struct driver *d)
{
    struct device *device = virtio_pci_device(d->pci);
    struct bytes_writer out = {0};
    pthread_mutex_lock(&d->m->lock);
    device->ops->save(device, &out);
    pthread_mutex_unlock(&d->m->lock);
    return out;
}
static inline int driver_load(struct driver *d, const void *state, size_t size, struct error *err)
{
    struct device *device = virtio_pci_device(d->pci);
    struct bytes_reader in = bytes_reader(state, size);
    pthread_mutex_lock(&d->m->lock);
    device->ops->pause(device);
    int code = device->ops->load(device, &in, err);
    pthread_mutex_unlock(&d->m->lock);
    return code < 0 ? code : bytes_left(&in) == 0 ? 0 : -1;
}

#endif
