/* A driver for virtio disks (virtio 1.2 §3.1, §4.1, §5.2), as short as may be: one queue, one request at a time, MSI-X. */
#include <endian.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <string.h>

#include "compute/vmm/pc1_layout.h"
#include "compute/vmm/script_guest.h"
#include "compute/vmm/virtio/virtio_pci.h"

enum { CONFIG_ADDRESS = 0xcf8, CONFIG_DATA = 0xcfc, VIRTIO_DISK = 0x10421af4, MSIX_ID = 0x11, MSIX_ON = 0x8000 };
enum { QUEUE_SIZE = 16, SECTOR = 512, BLOCK = 4096, BLOCK_SECTORS = BLOCK / SECTOR };
enum { AT_AVAIL = 0x400, AT_USED = 0x800, AT_HEADER = 0x1000, AT_STATUS = 0x1100, AT_DATA = 0x2000 };
enum { ACKNOWLEDGED = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER };
/* Where BARs go that nobody has placed: behind those that direct boot placed, in a VM of less than 60 GiB. */
#define HOTPLUG_BARS (PC1_WINDOW64_BYTES / 2)
#define MESSAGES 0xfee00000u

/* What is under way. */
enum { NOTHING, WRITING, READING };

static uint32_t config_read(struct script *s, unsigned slot, unsigned offset)
{
    script_out(s, CONFIG_ADDRESS, 4, 1u << 31 | slot << 11 | (offset & ~3u));
    return (uint32_t)script_in(s, CONFIG_DATA, 4);
}

static void config_write(struct script *s, unsigned slot, unsigned offset, uint32_t value)
{
    script_out(s, CONFIG_ADDRESS, 4, 1u << 31 | slot << 11 | (offset & ~3u));
    script_out(s, CONFIG_DATA, 4, value);
}

static uint64_t rings(unsigned slot)
{
    return SCRIPT_RINGS + slot * SCRIPT_RING_BYTES;
}

static void say(struct script *s, unsigned slot, const char *what, const uint64_t *number, const char *rest)
{
    script_text(s, "disk ");
    script_number(s, slot);
    script_text(s, what);
    if (number != NULL)
        script_number(s, *number);
    script_text(s, rest);
}

static void common_write(struct script *s, const struct script_disk *d, unsigned offset, unsigned size, uint64_t value)
{
    script_store(s, d->bar + VIRTIO_PCI_AT_COMMON + offset, size, value);
}

/* ---- finding it ---- */

static void place(struct script *s, struct script_disk *d, unsigned slot)
{
    enum { BAR = PCI_BAR0 + 4 * VIRTIO_PCI_BAR, FLAGS = 0xf };
    d->bar = (config_read(s, slot, BAR) & ~(uint64_t)FLAGS) | (uint64_t)config_read(s, slot, BAR + 4) << 32;
    if (d->bar == 0) {
        d->bar = PC1_WINDOW64_BYTES + HOTPLUG_BARS + slot * (uint64_t)VIRTIO_PCI_BAR_BYTES;
        config_write(s, slot, BAR, (uint32_t)d->bar);
        config_write(s, slot, BAR + 4, (uint32_t)(d->bar >> 32));
    }
    config_write(s, slot, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
}

/* Entries 0 (configuration) and 1 (queue) of the table; then on. */
static void messages_start(struct script *s, const struct script_disk *d, unsigned slot)
{
    unsigned at = config_read(s, slot, PCI_CAPABILITIES) & 0xff;
    for (unsigned i = 0; i < 2; i++) {
        uint64_t entry = d->bar + VIRTIO_PCI_AT_MSIX_TABLE + i * 16;
        script_store(s, entry, 4, MESSAGES);
        script_store(s, entry + 4, 4, 0);
        script_store(s, entry + 8, 4, SCRIPT_DISK_VECTOR(slot) + i);
        script_store(s, entry + 12, 4, 0);
    }
    while (at != 0 && (config_read(s, slot, at) & 0xff) != MSIX_ID)
        at = config_read(s, slot, at) >> 8 & 0xff;
    if (at != 0)
        config_write(s, slot, at, config_read(s, slot, at) | (uint32_t)MSIX_ON << 16);
}

static void queue_start(struct script *s, const struct script_disk *d, unsigned slot)
{
    uint64_t at = rings(slot);
    memset(script_memory(s, at, AT_HEADER, true), 0, AT_HEADER);
    common_write(s, d, VIRTIO_PCI_COMMON_Q_SELECT, 2, 0);
    common_write(s, d, VIRTIO_PCI_COMMON_Q_SIZE, 2, QUEUE_SIZE);
    common_write(s, d, VIRTIO_PCI_COMMON_Q_MSIX, 2, 1);
    common_write(s, d, VIRTIO_PCI_COMMON_Q_DESCLO, 4, at);
    common_write(s, d, VIRTIO_PCI_COMMON_Q_DESCHI, 4, 0);
    common_write(s, d, VIRTIO_PCI_COMMON_Q_AVAILLO, 4, at + AT_AVAIL);
    common_write(s, d, VIRTIO_PCI_COMMON_Q_AVAILHI, 4, 0);
    common_write(s, d, VIRTIO_PCI_COMMON_Q_USEDLO, 4, at + AT_USED);
    common_write(s, d, VIRTIO_PCI_COMMON_Q_USEDHI, 4, 0);
    common_write(s, d, VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
}

void script_disk_find(struct script *s, struct script_disk *d, unsigned slot)
{
    if (config_read(s, slot, PCI_VENDOR_ID) != VIRTIO_DISK)
        return;
    memset(d, 0, sizeof(*d));
    place(s, d, slot);
    common_write(s, d, VIRTIO_PCI_COMMON_STATUS, 1, 0);
    common_write(s, d, VIRTIO_PCI_COMMON_STATUS, 1, ACKNOWLEDGED);
    common_write(s, d, VIRTIO_PCI_COMMON_GFSELECT, 4, 0);
    common_write(s, d, VIRTIO_PCI_COMMON_GF, 4, 0);
    common_write(s, d, VIRTIO_PCI_COMMON_GFSELECT, 4, 1);
    common_write(s, d, VIRTIO_PCI_COMMON_GF, 4, 1u << (VIRTIO_F_VERSION_1 - 32));
    common_write(s, d, VIRTIO_PCI_COMMON_STATUS, 1, ACKNOWLEDGED | VIRTIO_CONFIG_S_FEATURES_OK);
    messages_start(s, d, slot);
    common_write(s, d, VIRTIO_PCI_COMMON_MSIX, 2, 0);
    queue_start(s, d, slot);
    common_write(s, d, VIRTIO_PCI_COMMON_STATUS, 1,
                 ACKNOWLEDGED | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
    d->here = 1;
    d->sectors = script_load(s, d->bar + VIRTIO_PCI_AT_DEVICE, 8);
    say(s, slot, " here, ", &d->sectors, " sectors\n");
}

/* ---- requests ---- */

static uint64_t sector_of(const struct script_disk *d)
{
    uint64_t blocks = MAX(d->sectors / BLOCK_SECTORS, 1u);
    return d->verified % blocks * BLOCK_SECTORS;
}

/* What the block holds that was written when @verified were. */
static uint64_t pattern(const struct script_disk *d, unsigned slot, unsigned i)
{
    return (d->verified + 1) * 0x9e3779b97f4a7c15ull + slot * 1000003ull + i;
}

static void descriptor(struct script *s, unsigned slot, unsigned index, uint64_t at, uint32_t size, uint16_t flags)
{
    struct vring_desc desc = {htole64(rings(slot) + at), htole32(size), htole16(flags), htole16((uint16_t)(index + 1))};
    memcpy(script_memory(s, rings(slot) + index * sizeof(desc), sizeof(desc), true), &desc, sizeof(desc));
}

static void request(struct script *s, struct script_disk *d, unsigned slot, uint32_t type)
{
    bool read = type == VIRTIO_BLK_T_IN;
    struct virtio_blk_outhdr header = {.type = htole32(type), .sector = htole64(sector_of(d))};
    memcpy(script_memory(s, rings(slot) + AT_HEADER, sizeof(header), true), &header, sizeof(header));
    *(uint8_t *)script_memory(s, rings(slot) + AT_STATUS, 1, true) = UINT8_MAX;
    descriptor(s, slot, 0, AT_HEADER, sizeof(header), VRING_DESC_F_NEXT);
    descriptor(s, slot, 1, AT_DATA, BLOCK, (uint16_t)(VRING_DESC_F_NEXT | (read ? VRING_DESC_F_WRITE : 0)));
    descriptor(s, slot, 2, AT_STATUS, 1, VRING_DESC_F_WRITE);
    uint16_t *avail = script_memory(s, rings(slot) + AT_AVAIL, 4 + 2 * QUEUE_SIZE, true);
    avail[2 + d->avail % QUEUE_SIZE] = 0;
    __atomic_store_n(&avail[1], htole16(++d->avail), __ATOMIC_SEQ_CST);
    d->busy = read ? READING : WRITING;
    script_store(s, d->bar + VIRTIO_PCI_AT_NOTIFY, 2, 0);
}

void script_disk_write(struct script *s, struct script_disk *d, unsigned slot)
{
    if (d->busy)
        return;
    uint64_t *data = script_memory(s, rings(slot) + AT_DATA, BLOCK, true);
    for (unsigned i = 0; i < BLOCK / sizeof(*data); i++)
        data[i] = pattern(d, slot, i);
    request(s, d, slot, VIRTIO_BLK_T_OUT);
}

static void compare(struct script *s, struct script_disk *d, unsigned slot)
{
    const uint64_t *data = script_memory(s, rings(slot) + AT_DATA, BLOCK, false);
    for (unsigned i = 0; i < BLOCK / sizeof(*data); i++)
        if (data[i] != pattern(d, slot, i)) {
            say(s, slot, " wrong\n", NULL, "");
            return;
        }
    d->verified++;
    say(s, slot, " verified ", &d->verified, "\n");
}

void script_disk_interrupt(struct script *s, struct script_disk *d, unsigned slot, bool config)
{
    const uint16_t *used = script_memory(s, rings(slot) + AT_USED, 4, false);
    if (config) {
        uint64_t sectors = script_load(s, d->bar + VIRTIO_PCI_AT_DEVICE, 8);
        if (sectors != d->sectors)
            say(s, slot, " has ", &sectors, " sectors\n");
        d->sectors = sectors;
        return;
    }
    if (!d->busy || le16toh(__atomic_load_n(&used[1], __ATOMIC_ACQUIRE)) == d->used)
        return; /* raised once more after a pause */
    uint32_t was = d->busy;
    d->used++;
    d->busy = NOTHING;
    if (*(const uint8_t *)script_memory(s, rings(slot) + AT_STATUS, 1, false) != VIRTIO_BLK_S_OK) {
        say(s, slot, " failed\n", NULL, "");
        return;
    }
    if (was == READING) {
        compare(s, d, slot);
        return;
    }
    memset(script_memory(s, rings(slot) + AT_DATA, BLOCK, true), 0, BLOCK);
    request(s, d, slot, VIRTIO_BLK_T_IN);
}
