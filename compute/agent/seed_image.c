/* The image, sector by sector:
 *
 *   0        boot sector with the BIOS parameter block
 *   1        first FAT      1 + n  second FAT (n sectors each)
 *   1 + 2n   root directory: label, then for each file its long name's entries (last part first) and its short one
 *   then     clusters of one sector, from number 2 */
#include "compute/agent/seed_image.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum {
    SECTOR = 512,
    ENTRY = 32,
    ROOT_ENTRIES = 64,
    ROOT_SECTORS = ROOT_ENTRIES * ENTRY / SECTOR,
    CLUSTERS_MIN = 64,
    CLUSTERS_MAX = 2000, /* below 4085 it is FAT12, and the image stays below SEED_IMAGE_BYTES_MAX */
    PART_CHARS = 13,     /* of a long name in one entry */
    ATTRIBUTE_LABEL = 0x08,
    ATTRIBUTE_ARCHIVE = 0x20,
    ATTRIBUTE_LONG_NAME = 0x0f,
    DATE_1980 = 0x21, /* the first day that FAT knows */
    END_OF_CHAIN = 0xfff,
    MEDIA_FIXED = 0xf8,
};

struct layout {
    unsigned clusters, fat_sectors, sectors;
};

static void put_u16(uint8_t *at, unsigned value)
{
    at[0] = (uint8_t)value;
    at[1] = (uint8_t)(value >> 8);
}

static void put_u32(uint8_t *at, uint32_t value)
{
    put_u16(at, value & 0xffff);
    put_u16(at + 2, value >> 16);
}

/* Entries are 12 bits: two of them share three bytes. */
static void fat_set(uint8_t *fat, unsigned cluster, unsigned value)
{
    uint8_t *at = fat + cluster * 3 / 2;
    if (cluster % 2 != 0) {
        at[0] = (uint8_t)((at[0] & 0x0f) | (value & 0x0f) << 4);
        at[1] = (uint8_t)(value >> 4);
    } else {
        at[0] = (uint8_t)value;
        at[1] = (uint8_t)((at[1] & 0xf0) | (value >> 8 & 0x0f));
    }
}

static void put_boot_sector(uint8_t *sector, const struct layout *l, const char *label)
{
    memcpy(sector, "\xeb\x3c\x90", 3);
    memcpy(sector + 3, "MSDOS5.0", 8);
    put_u16(sector + 11, SECTOR);
    sector[13] = 1; /* sectors per cluster */
    put_u16(sector + 14, 1);
    sector[16] = 2; /* FATs */
    put_u16(sector + 17, ROOT_ENTRIES);
    put_u16(sector + 19, l->sectors);
    sector[21] = MEDIA_FIXED;
    put_u16(sector + 22, l->fat_sectors);
    put_u16(sector + 24, 32); /* sectors per track and heads: nobody looks, but zero is refused by some */
    put_u16(sector + 26, 2);
    sector[36] = 0x80;
    sector[38] = 0x29;
    put_u32(sector + 39, 0xd20e4a11); /* serial number */
    memset(sector + 43, ' ', 11);
    memcpy(sector + 43, label, strlen(label));
    memcpy(sector + 54, "FAT12   ", 8);
    sector[510] = 0x55;
    sector[511] = 0xaa;
}

static void put_times(uint8_t *entry)
{
    put_u16(entry + 16, DATE_1980);
    put_u16(entry + 18, DATE_1980);
    put_u16(entry + 24, DATE_1980);
}

static uint8_t *put_label(uint8_t *entry, const char *label)
{
    memset(entry, ' ', 11);
    memcpy(entry, label, strlen(label));
    entry[11] = ATTRIBUTE_LABEL;
    put_u16(entry + 24, DATE_1980);
    return entry + ENTRY;
}

/* The parts of @name, last one first; @sum ties them to the short name behind them. */
static uint8_t *put_long_name(uint8_t *entry, const char *name, uint8_t sum)
{
    static const uint8_t places[PART_CHARS] = {1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30};
    size_t length = strlen(name), parts = (length + PART_CHARS - 1) / PART_CHARS;
    for (size_t part = parts; part > 0; part--, entry += ENTRY) {
        entry[0] = (uint8_t)(part | (part == parts ? 0x40 : 0));
        entry[11] = ATTRIBUTE_LONG_NAME;
        entry[13] = sum;
        for (size_t i = 0; i < PART_CHARS; i++) {
            size_t at = (part - 1) * PART_CHARS + i;
            put_u16(entry + places[i], at < length ? (uint8_t)name[at] : at == length ? 0 : 0xffff);
        }
    }
    return entry;
}

static uint8_t *put_file_entry(uint8_t *entry, const struct seed_image_file *file, unsigned number, unsigned cluster)
{
    char short_name[12];
    uint8_t sum = 0;
    snprintf(short_name, sizeof(short_name), "SEED%u~1    ", number % 10);
    for (unsigned i = 0; i < 11; i++)
        sum = (uint8_t)((sum << 7 | sum >> 1) + (uint8_t)short_name[i]);
    entry = put_long_name(entry, file->name, sum);
    memcpy(entry, short_name, 11);
    entry[11] = ATTRIBUTE_ARCHIVE;
    put_times(entry);
    put_u16(entry + 26, file->size > 0 ? cluster : 0);
    put_u32(entry + 28, (uint32_t)file->size);
    return entry + ENTRY;
}

static unsigned clusters_of(size_t size)
{
    return (unsigned)((size + SECTOR - 1) / SECTOR);
}

static int plan(const struct seed_image_file *files, unsigned count, struct layout *ret)
{
    unsigned clusters = 0;
    for (unsigned i = 0; i < count; i++) {
        if (files[i].size > (size_t)CLUSTERS_MAX * SECTOR)
            return -EFBIG;
        clusters += clusters_of(files[i].size);
    }
    if (clusters > CLUSTERS_MAX)
        return -EFBIG;
    clusters = MAX(clusters, (unsigned)CLUSTERS_MIN);
    unsigned fat_sectors = ((clusters + 2) * 3 / 2 + SECTOR) / SECTOR;
    *ret = (struct layout){clusters, fat_sectors, 1 + 2 * fat_sectors + ROOT_SECTORS + clusters};
    return 0;
}

int seed_image_make(const char *label, const struct seed_image_file *files, unsigned count, struct bytes_writer *out)
{
    struct layout l;
    ASSERT(count <= SEED_IMAGE_FILES_MAX && strlen(label) <= 11);
    int r = plan(files, count, &l);
    if (r < 0)
        return r;
    uint8_t *image = xcalloc(l.sectors, SECTOR), *fat = image + SECTOR;
    uint8_t *root = fat + (size_t)2 * l.fat_sectors * SECTOR, *data = root + (size_t)ROOT_SECTORS * SECTOR;
    unsigned next = 2;
    put_boot_sector(image, &l, label);
    fat_set(fat, 0, 0xf00 | MEDIA_FIXED);
    fat_set(fat, 1, END_OF_CHAIN);
    uint8_t *entry = put_label(root, label);
    for (unsigned i = 0; i < count; i++) {
        unsigned n = clusters_of(files[i].size);
        ASSERT(strlen(files[i].name) <= SEED_IMAGE_NAME_BYTES_MAX);
        entry = put_file_entry(entry, &files[i], i, next);
        if (files[i].size > 0)
            memcpy(data + (size_t)(next - 2) * SECTOR, files[i].data, files[i].size);
        for (unsigned k = 0; k < n; k++, next++)
            fat_set(fat, next, k + 1 == n ? END_OF_CHAIN : next + 1);
    }
    memcpy(fat + (size_t)l.fat_sectors * SECTOR, fat, (size_t)l.fat_sectors * SECTOR);
    bytes_put(out, image, (size_t)l.sectors * SECTOR);
    free(image);
    return 0;
}
