/* Partition tables as guests write them, and as nobody should: what is found lies on the disk, whatever is in the table. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "backup/disk_parts.h"
#include "tests/unit/unit_seed.h"

enum { SECTOR = 512, SECTORS = 4096 };

struct disk {
    uint8_t data[SECTORS * SECTOR];
    uint64_t bytes;
    unsigned reads;
    bool broken;
};

static int disk_read(void *arg, uint64_t offset, void *buffer, size_t size, struct error *err)
{
    struct disk *d = arg;
    assert_true(offset + size <= d->bytes);
    d->reads++;
    if (d->broken)
        return error_set(err, -5, ERROR_INTERNAL, "broken");
    memcpy(buffer, d->data + offset, size);
    return 0;
}

static struct disk *disk_make(void)
{
    struct disk *d = NEW(struct disk);
    d->bytes = sizeof d->data;
    return d;
}

static void put32(uint8_t *at, uint32_t v)
{
    for (unsigned i = 0; i < 4; i++)
        at[i] = (uint8_t)(v >> 8 * i);
}

static void put64(uint8_t *at, uint64_t v)
{
    put32(at, (uint32_t)v);
    put32(at + 4, (uint32_t)(v >> 32));
}

static void entry_put(struct disk *d, uint64_t sector, unsigned index, uint8_t type, uint32_t first, uint32_t sectors)
{
    uint8_t *at = d->data + sector * SECTOR, *e = at + 446 + 16 * index;
    at[510] = 0x55;
    at[511] = 0xaa;
    e[4] = type;
    put32(e + 8, first);
    put32(e + 12, sectors);
}

static void gpt_put(struct disk *d, unsigned index, uint64_t first, uint64_t last)
{
    entry_put(d, 0, 0, 0xee, 1, SECTORS - 1);
    memcpy(d->data + SECTOR, "EFI PART", 8);
    put64(d->data + SECTOR + 72, 2);
    put32(d->data + SECTOR + 80, 128);
    put32(d->data + SECTOR + 84, 128);
    uint8_t *e = d->data + 2 * SECTOR + 128 * index;
    e[0] = 1;
    put64(e + 32, first);
    put64(e + 40, last);
}

static int find(struct disk *d, struct disk_part *parts)
{
    int count = disk_parts_find(d->bytes, disk_read, d, parts, NULL);
    for (int i = 0; i < count; i++) {
        assert_true(parts[i].size_bytes > 0 && parts[i].offset_bytes > 0);
        assert_true(parts[i].offset_bytes <= d->bytes && parts[i].size_bytes <= d->bytes - parts[i].offset_bytes);
    }
    return count;
}

static void part_is(const struct disk_part *p, unsigned number, uint64_t first, uint64_t sectors)
{
    assert_int_equal(p->number, number);
    assert_int_equal(p->offset_bytes, first * SECTOR);
    assert_int_equal(p->size_bytes, sectors * SECTOR);
}

static void test_mbr(void **state UNUSED)
{
    struct disk *d = disk_make();
    struct disk_part parts[DISK_PARTS_MAX];
    assert_int_equal(find(d, parts), 0);
    entry_put(d, 0, 0, 0x83, 64, 100);
    entry_put(d, 0, 2, 0x0f, 1000, 2000);
    entry_put(d, 1000, 0, 0x83, 8, 92); /* relative to its table */
    entry_put(d, 1000, 1, 0x05, 100, 200);
    entry_put(d, 1100, 0, 0x82, 8, 192); /* the next table is relative to the first */
    entry_put(d, 0, 3, 0x83, 3000, SECTORS);  /* beyond the end: none */
    assert_int_equal(find(d, parts), 3);
    part_is(&parts[0], 1, 64, 100);
    part_is(&parts[1], 5, 1008, 92);
    part_is(&parts[2], 6, 1108, 192);
    entry_put(d, 1100, 1, 0x05, 100, 200); /* back to itself: it ends */
    assert_int_equal(find(d, parts), 3);
    d->data[446] = 'F'; /* the boot sector of a file system */
    assert_int_equal(find(d, parts), 0);
    d->data[446] = 0x80; /* bootable */
    assert_int_equal(find(d, parts), 3);
    d->broken = true;
    assert_int_equal(find(d, parts), -5);
    free(d);
}

static void test_gpt(void **state UNUSED)
{
    struct disk *d = disk_make();
    struct disk_part parts[DISK_PARTS_MAX];
    gpt_put(d, 0, 64, 163);
    gpt_put(d, 5, 1000, 1000);
    gpt_put(d, 6, 2000, 1999);        /* ends before it begins */
    gpt_put(d, 7, 2000, SECTORS);     /* beyond the end */
    gpt_put(d, 127, 3000, SECTORS - 1); /* the very last sector */
    assert_int_equal(find(d, parts), 3);
    part_is(&parts[0], 1, 64, 100);
    part_is(&parts[1], 6, 1000, 1);
    part_is(&parts[2], 128, 3000, SECTORS - 3000);
    put32(d->data + SECTOR + 84, 512); /* entries of another size: where the first one is, nothing else */
    assert_int_equal(find(d, parts), 1);
    put32(d->data + SECTOR + 84, 100);
    assert_int_equal(find(d, parts), 0);
    put32(d->data + SECTOR + 84, 128);
    put64(d->data + SECTOR + 72, UINT64_MAX - 1);
    assert_int_equal(find(d, parts), 0);
    put64(d->data + SECTOR + 72, SECTORS - 1); /* the table goes beyond the end */
    assert_int_equal(find(d, parts), 0);
    d->bytes = SECTOR;
    assert_int_equal(find(d, parts), 0);
    free(d);
}

/* Nonsense everywhere a table has its numbers. */
static void test_anything(void **state UNUSED)
{
    unsigned seed = (unsigned)unit_seed();
    struct disk *d = disk_make();
    struct disk_part parts[DISK_PARTS_MAX];
    for (unsigned round = 0; round < 3000; round++) {
        for (unsigned i = 0; i < 8 * SECTOR; i++)
            d->data[i] = rand_r(&seed) % 4 == 0 ? (uint8_t)rand_r(&seed) : 0;
        for (unsigned i = 0; i < 4; i++) {
            static const uint8_t types[] = {0, 0x05, 0x0f, 0x83, 0xee};
            d->data[446 + 16 * i] = 0;
            entry_put(d, 0, i, types[(unsigned)rand_r(&seed) % ARRAY_SIZE(types)], (uint32_t)rand_r(&seed) % (SECTORS + 8),
                      (uint32_t)rand_r(&seed) % (SECTORS + 8));
        }
        if (rand_r(&seed) % 2 == 0)
            gpt_put(d, (unsigned)rand_r(&seed) % 8, (uint32_t)rand_r(&seed) % (SECTORS + 8), (uint32_t)rand_r(&seed));
        d->reads = 0;
        assert_in_range(find(d, parts), 0, DISK_PARTS_MAX);
        assert_in_range(d->reads, 1, 4 * (DISK_PARTS_MAX + 2));
    }
    free(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_mbr), cmocka_unit_test(test_gpt),
                                       cmocka_unit_test(test_anything)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
