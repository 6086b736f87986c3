/* The partitions of a disk: see disk_parts.h. UEFI Specification 2.10 §5.2 (MBR) and §5.3 (GPT). */
#include "backup/disk_parts.h"

#include <endian.h>
#include <string.h>

enum {
    SECTOR = 512,
    MBR_ENTRIES = 446,
    MBR_ENTRY_BYTES = 16,
    TYPE_PROTECTIVE = 0xee,
    GPT_ENTRY_BYTES_MIN = 128,
    GPT_ENTRY_BYTES_MAX = 4096,
    LOGICAL_FIRST = 5,
};

struct finding {
    uint64_t disk_sectors;
    disk_read_cb read;
    void *arg;
    struct disk_part *parts;
    int count;
};

static uint32_t le32(const uint8_t *at)
{
    uint32_t v;
    memcpy(&v, at, sizeof v);
    return le32toh(v);
}

static uint64_t le64(const uint8_t *at)
{
    uint64_t v;
    memcpy(&v, at, sizeof v);
    return le64toh(v);
}

static int sector_read(const struct finding *f, uint64_t sector, uint8_t *ret_data, struct error *err)
{
    return f->read(f->arg, sector * SECTOR, ret_data, SECTOR, err);
}

/* One that goes beyond the disk is none: the file would be cut off, or end somewhere else than the guest's. */
static void add(struct finding *f, unsigned number, uint64_t first, uint64_t sectors)
{
    if (f->count == DISK_PARTS_MAX || sectors == 0 || first == 0 || first > f->disk_sectors ||
        sectors > f->disk_sectors - first)
        return;
    f->parts[f->count++] =
        (struct disk_part){.number = number, .offset_bytes = first * SECTOR, .size_bytes = sectors * SECTOR};
}

static bool is_extended(uint8_t type)
{
    return type == 0x05 || type == 0x0f || type == 0x85;
}

static bool has_signature(const uint8_t *sector)
{
    return sector[510] == 0x55 && sector[511] == 0xaa;
}

/* The chain of logical partitions in [@base, ...): each table has one, and where the next table is. It ends where it
 * leaves the disk or does not go forward. */
static int logical_find(struct finding *f, uint64_t base, struct error *err)
{
    uint8_t data[SECTOR];
    uint64_t at = base;
    for (unsigned number = LOGICAL_FIRST; number < LOGICAL_FIRST + DISK_PARTS_MAX; number++) {
        if (at == 0 || at >= f->disk_sectors)
            return 0;
        int code = sector_read(f, at, data, err);
        if (code < 0)
            return code;
        if (!has_signature(data))
            return 0;
        const uint8_t *own = data + MBR_ENTRIES, *next = own + MBR_ENTRY_BYTES;
        if (own[4] != 0 && !is_extended(own[4]))
            add(f, number, at + le32(own + 8), le32(own + 12));
        if (!is_extended(next[4]) || base + le32(next + 8) <= at)
            return 0;
        at = base + le32(next + 8);
    }
    return 0;
}

static int gpt_find(struct finding *f, struct error *err)
{
    static const uint8_t unused[16];
    uint8_t head[SECTOR], data[SECTOR];
    int code = f->disk_sectors > 1 ? sector_read(f, 1, head, err) : 0;
    if (code < 0 || f->disk_sectors <= 1 || memcmp(head, "EFI PART", 8) != 0)
        return code;
    uint64_t table = le64(head + 72);
    uint32_t count = le32(head + 80), size = le32(head + 84);
    if (table < 2 || table >= f->disk_sectors || size < GPT_ENTRY_BYTES_MIN || size > GPT_ENTRY_BYTES_MAX ||
        (size & (size - 1)) != 0)
        return 0;
    count = MIN(count, (uint32_t)DISK_PARTS_MAX);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t at = (uint64_t)i * size, sector = table + at / SECTOR;
        if (sector >= f->disk_sectors)
            return 0;
        if (i == 0 || at % SECTOR == 0)
            code = sector_read(f, sector, data, err);
        if (code < 0)
            return code;
        const uint8_t *entry = data + at % SECTOR;
        uint64_t first = le64(entry + 32), last = le64(entry + 40);
        if (memcmp(entry, unused, sizeof unused) != 0 && last >= first && last < f->disk_sectors)
            add(f, i + 1, first, last - first + 1);
    }
    return 0;
}

/* The boot sector of a file system that fills the disk ends like a table, too; its entries begin otherwise. */
static bool is_table(const uint8_t *sector)
{
    bool is = has_signature(sector);
    for (unsigned i = 0; i < 4; i++)
        is = is && (sector[MBR_ENTRIES + i * MBR_ENTRY_BYTES] & 0x7f) == 0;
    return is;
}

int disk_parts_find(uint64_t disk_bytes, disk_read_cb read, void *arg, struct disk_part ret_parts[DISK_PARTS_MAX],
                    struct error *err)
{
    struct finding f = {.disk_sectors = disk_bytes / SECTOR, .read = read, .arg = arg, .parts = ret_parts};
    uint8_t data[SECTOR];
    if (f.disk_sectors == 0)
        return 0;
    int code = sector_read(&f, 0, data, err);
    if (code < 0 || !is_table(data))
        return code;
    for (unsigned i = 0; code == 0 && i < 4; i++) {
        const uint8_t *entry = data + MBR_ENTRIES + i * MBR_ENTRY_BYTES;
        if (entry[4] == TYPE_PROTECTIVE) {
            f.count = 0;
            code = gpt_find(&f, err);
            break;
        }
        if (is_extended(entry[4]))
            code = logical_find(&f, le32(entry + 8), err);
        else if (entry[4] != 0)
            add(&f, i + 1, le32(entry + 8), le32(entry + 12));
    }
    return code < 0 ? code : f.count;
}
