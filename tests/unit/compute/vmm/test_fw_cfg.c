/* fw_cfg as firmware reads it: by ports and by DMA, past the ends, with requests that lie outside of memory; and the
 * loader's script run as firmware would, after which the tables are right at the place that was chosen for them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "compute/vmm/acpi_loader.h"
#include "compute/vmm/devices/fw_cfg/fw_cfg.h"
#include "compute/vmm/devices/pvpanic/pvpanic.h"
#include "compute/vmm/pc1_layout.h"

enum { DMA_ERROR = 1, DMA_READ = 2, DMA_SKIP = 4, DMA_SELECT = 8, DMA_WRITE = 16 };
enum { REQUEST = 0x1000, TARGET = 0x2000 };

struct board {
    struct bus ports;
    struct guest_memory memory;
    struct fw_cfg *f;
};

static int setup(void **state)
{
    struct board *b = NEW(struct board);
    bus_init(&b->ports, NULL);
    assert_int_equal(memory_init(&b->memory, MEMORY_BYTES_MIN, NULL), 0);
    assert_int_equal(fw_cfg_create(&b->ports, &b->memory, &b->f, NULL), 0);
    *state = b;
    return 0;
}
static int teardown(void **state)
{
    struct board *b = *state;
    struct device *d = fw_cfg_device(b->f);
    d->ops->destroy(d);
    assert_int_equal(bus_read(&b->ports, 0x511, 1), 0xff); /* gone from the bus */
    assert_int_equal(bus_read(&b->ports, 0x514, 4), 0xffffffff);
    memory_finish(&b->memory);
    bus_finish(&b->ports);
    free(b);
    return 0;
}

static void choose(struct board *b, uint16_t key)
{
    bus_write(&b->ports, 0x510, 2, key);
}
static uint8_t next(struct board *b)
{
    return (uint8_t)bus_read(&b->ports, 0x511, 1);
}
static void put_be(uint8_t *to, uint64_t value, unsigned size)
{
    while (size--) {
        to[size] = (uint8_t)value;
        value >>= 8;
    }
}

/* One request; returns the control word as it is after it. */
static uint32_t dma_at(struct board *b, uint64_t at, uint32_t control, uint32_t length, uint64_t address)
{
    uint8_t request[16];
    put_be(request, control, 4);
    put_be(request + 4, length, 4);
    put_be(request + 8, address, 8);
    memory_write(&b->memory, at, request, sizeof(request));
    bus_write(&b->ports, 0x514, 4, __builtin_bswap32((uint32_t)(at >> 32)));
    bus_write(&b->ports, 0x518, 4, __builtin_bswap32((uint32_t)at));
    memory_read(&b->memory, at, request, 4);
    return (uint32_t)request[0] << 24 | (uint32_t)request[1] << 16 | (uint32_t)request[2] << 8 | request[3];
}
static uint32_t dma(struct board *b, uint32_t control, uint32_t length, uint64_t address)
{
    return dma_at(b, REQUEST, control, length, address);
}

static void signature_and_features(void **state)
{
    struct board *b = *state;
    choose(b, FW_CFG_SIGNATURE);
    assert_int_equal(next(b), 'Q');
    assert_int_equal(next(b), 'E');
    assert_int_equal(next(b), 'M');
    assert_int_equal(next(b), 'U');
    assert_int_equal(next(b), 0); /* past the end */
    choose(b, FW_CFG_ID);
    assert_int_equal(next(b), 3);
    choose(b, 0x4000 | FW_CFG_SIGNATURE); /* the bit for writing changes nothing */
    assert_int_equal(next(b), 'Q');
    choose(b, 0x1234);
    assert_int_equal(next(b), 0);
    assert_int_equal(bus_read(&b->ports, 0x514, 4), 0x554d4551); /* "QEMU" */
    assert_int_equal(bus_read(&b->ports, 0x518, 4), 0x47464320); /* " CFG" */
}

static void files_are_listed(void **state)
{
    struct board *b = *state;
    uint8_t list[4 + 2 * 64];
    fw_cfg_set_file(b->f, "etc/one", "abc", 3);
    fw_cfg_set_file(b->f, "etc/two", "defghi", 6);
    fw_cfg_set_file(b->f, "etc/one", "ABCD", 4); /* another content, the same key */
    assert_int_equal(dma(b, (uint32_t)FW_CFG_FILE_DIR << 16 | DMA_SELECT | DMA_READ, sizeof(list), TARGET), 0);
    assert_true(memory_read(&b->memory, TARGET, list, sizeof(list)));
    assert_int_equal(list[3], 2);
    assert_int_equal(list[4 + 3], 4);
    assert_int_equal(list[4 + 5], FW_CFG_FILE_FIRST);
    assert_string_equal((char *)list + 12, "etc/one");
    assert_int_equal(list[68 + 3], 6);
    assert_int_equal(list[68 + 5], FW_CFG_FILE_FIRST + 1);
    assert_string_equal((char *)list + 76, "etc/two");
    choose(b, FW_CFG_FILE_FIRST);
    assert_int_equal(next(b), 'A');
}

static void dma_reads_skips_and_fills(void **state)
{
    struct board *b = *state;
    char got[8];
    fw_cfg_set_file(b->f, "f", "0123456789", 10);
    memory_write(&b->memory, TARGET, "xxxxxxxx", 8);
    assert_int_equal(dma(b, (uint32_t)FW_CFG_FILE_FIRST << 16 | DMA_SELECT, 0, 0), 0);
    assert_int_equal(dma(b, DMA_SKIP, 7, 0), 0);
    assert_int_equal(dma(b, DMA_READ, 5, TARGET), 0);
    assert_true(memory_read(&b->memory, TARGET, got, 8));
    assert_memory_equal(got, "789\0\0xxx", 8);
    assert_int_equal(dma(b, DMA_SKIP, UINT32_MAX, 0), 0);
    assert_int_equal(next(b), 0);
}

static void hostile_requests_fail(void **state)
{
    struct board *b = *state;
    uint64_t end = b->memory.size_bytes;
    choose(b, FW_CFG_SIGNATURE);
    assert_int_equal(dma(b, DMA_READ, 4, end - 3), DMA_ERROR);
    assert_int_equal(dma(b, DMA_READ, 4, UINT64_MAX - 1), DMA_ERROR);
    assert_int_equal(dma(b, DMA_READ, UINT32_MAX, 0), DMA_ERROR);
    assert_int_equal(dma(b, DMA_WRITE, 4, TARGET), DMA_ERROR);
    assert_int_equal(dma(b, DMA_READ, 0, UINT64_MAX), 0);
    dma_at(b, UINT64_MAX - 3, DMA_READ, 4, TARGET); /* nobody there to be told */
    dma_at(b, end - 15, DMA_READ, 4, TARGET);
    bus_write(&b->ports, 0x514, 1, 1);
    bus_write(&b->ports, 0x510, 1, 1);
    bus_write(&b->ports, 0x511, 1, 1);
    assert_int_equal(next(b), 'Q'); /* none of them has moved anything */
}

static void state_travels(void **state)
{
    struct board *b = *state;
    struct device *d = fw_cfg_device(b->f);
    struct bytes_writer saved = {0};
    fw_cfg_set_file(b->f, "f", "0123", 4);
    choose(b, FW_CFG_FILE_FIRST);
    next(b);
    d->ops->save(d, &saved);
    fw_cfg_set_file(b->f, "f", "another", 7);
    d->ops->reset(d);
    for (size_t cut = 0; cut < saved.size; cut += 7) { /* in pieces of exact size, for the sanitizer */
        CLEANUP_FREE void *part = xcalloc(1, MAX(cut, (size_t)1));
        memcpy(part, saved.data, cut);
        struct bytes_reader in = bytes_reader(part, cut);
        assert_true(d->ops->load(d, &in, NULL) < 0);
    }
    struct bytes_reader in = bytes_reader(saved.data, saved.size);
    assert_int_equal(d->ops->load(d, &in, NULL), 0);
    assert_int_equal(bytes_left(&in), 0);
    assert_int_equal(next(b), '1');
    bytes_writer_finish(&saved);
}

/* A snapshot from outside that fills every place, with names and numbers of its own: the next power-on finds room. */
static void power_on_after_a_crafted_state(void **state)
{
    struct board *b = *state;
    struct device *d = fw_cfg_device(b->f);
    struct bytes_writer head = {0}, crafted = {0};
    d->ops->save(d, &head);
    bytes_put(&crafted, head.data, 4 + 2 + 4 + 4); /* version, fields, selected, offset, dma_high */
    bytes_put_u16(&crafted, FW_CFG_ITEMS_MAX);
    for (unsigned i = 0; i < FW_CFG_ITEMS_MAX; i++) {
        char name[FW_CFG_NAME_BYTES] = "";
        snprintf(name, sizeof(name), "mine/%u", i);
        bytes_put_u16(&crafted, 0xffff);
        bytes_put(&crafted, name, sizeof(name));
        bytes_put_u32(&crafted, 1);
        bytes_put_u8(&crafted, (uint8_t)i);
    }
    struct bytes_reader in = bytes_reader(crafted.data, crafted.size);
    assert_int_equal(d->ops->load(d, &in, NULL), 0);
    assert_int_equal(bytes_left(&in), 0);
    d->ops->reset(d);
    fw_cfg_restart(b->f);
    fw_cfg_set_integer(b->f, FW_CFG_NB_CPUS, 3, 2);
    fw_cfg_set_file(b->f, "etc/e820", "map", 3);
    choose(b, FW_CFG_SIGNATURE);
    assert_int_equal(next(b), 'Q');
    choose(b, FW_CFG_NB_CPUS);
    assert_int_equal(next(b), 3);
    choose(b, FW_CFG_FILE_FIRST);
    assert_int_equal(next(b), 'm');
    bytes_writer_finish(&head);
    bytes_writer_finish(&crafted);
}

/* ---- the loader's script ---- */

static uint64_t get_le(const uint8_t *p, unsigned size)
{
    uint64_t value = 0;
    while (size--)
        value = value << 8 | p[size];
    return value;
}
static void put_le(uint8_t *p, uint64_t value, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        p[i] = (uint8_t)(value >> (8 * i));
}
static uint8_t sum(const uint8_t *p, size_t size)
{
    uint8_t total = 0;
    while (size--)
        total = (uint8_t)(total + *p++);
    return total;
}

/* Run it as OVMF does, to whom a check sum must be 0 before. The tables get to be at @base. */
static void script_run(struct acpi_files *files, uint64_t base)
{
    unsigned allocated = 0;
    assert_int_equal(files->script.size % 128, 0);
    for (size_t at = 0; at < files->script.size; at += 128) {
        const uint8_t *c = files->script.data + at;
        struct bytes_writer *file = strcmp((const char *)c + 4, "etc/acpi/rsdp") == 0 ? &files->rsdp : &files->tables;
        switch (get_le(c, 4)) {
        case 1:
            assert_true(c[64] == (file == &files->rsdp ? 2 : 1));
            allocated++;
            break;
        case 2: {
            uint64_t offset = get_le(c + 116, 4);
            unsigned size = c[120];
            assert_string_equal((const char *)c + 60, "etc/acpi/tables");
            assert_true(offset + size <= file->size);
            put_le(file->data + offset, get_le(file->data + offset, size) + base, size);
            break;
        }
        case 3: {
            uint64_t offset = get_le(c + 60, 4), start = get_le(c + 64, 4), length = get_le(c + 68, 4);
            assert_true(start + length <= file->size && offset >= start && offset < start + length);
            assert_int_equal(file->data[offset], 0);
            file->data[offset] = (uint8_t)-sum(file->data + start, length);
            break;
        }
        default:
            fail_msg("command %u", (unsigned)get_le(c, 4));
        }
    }
    assert_int_equal(allocated, 2);
}

static void script_places_the_tables(void **state UNUSED)
{
    struct acpi_options options = {.size_max = 0x20000,
                                   .vcpus = 3,
                                   .window32 = PC1_WINDOW32,
                                   .window64 = 0x1000000000,
                                   .window64_bytes = PC1_WINDOW64_BYTES};
    struct acpi_files files;
    const uint64_t base = 0x7f001000;
    assert_int_equal(acpi_files_build(&options, &files, NULL), 0);
    script_run(&files, base);
    assert_int_equal(sum(files.rsdp.data, 20), 0);
    assert_int_equal(sum(files.rsdp.data, 36), 0);
    const uint8_t *t = files.tables.data, *xsdt = t + (get_le(files.rsdp.data + 24, 8) - base);
    assert_memory_equal(xsdt, "XSDT", 4);
    assert_int_equal(sum(xsdt, get_le(xsdt + 4, 4)), 0);
    bool fadt = false, madt = false;
    for (uint64_t at = 36; at < get_le(xsdt + 4, 4); at += 8) {
        const uint8_t *table = t + (get_le(xsdt + at, 8) - base);
        assert_int_equal(sum(table, get_le(table + 4, 4)), 0);
        madt = madt || memcmp(table, "APIC", 4) == 0;
        if (memcmp(table, "FACP", 4) != 0)
            continue;
        fadt = true;
        assert_memory_equal(t + (get_le(table + 36, 4) - base), "FACS", 4);
        const uint8_t *dsdt = t + (get_le(table + 140, 8) - base);
        assert_ptr_equal(dsdt, t + (get_le(table + 40, 4) - base));
        assert_memory_equal(dsdt, "DSDT", 4);
        assert_int_equal(sum(dsdt, get_le(dsdt + 4, 4)), 0);
    }
    assert_true(fadt && madt);
    acpi_files_finish(&files);
}

/* ---- pvpanic ---- */

static void panics_are_counted(void **state)
{
    struct board *b = *state;
    struct pvpanic *p;
    struct bytes_writer saved = {0};
    assert_int_equal(pvpanic_create(&b->ports, &p, NULL), 0);
    struct device *d = pvpanic_device(p);
    assert_int_equal(bus_read(&b->ports, PC1_PORT_PVPANIC, 1), 3);
    bus_write(&b->ports, PC1_PORT_PVPANIC, 1, 0x80); /* an event that is not known */
    assert_int_equal(pvpanic_count(p), 0);
    for (unsigned i = 0; i < 100; i++)
        bus_write(&b->ports, PC1_PORT_PVPANIC, 1, 1);
    assert_int_equal(pvpanic_count(p), 100);
    assert_int_equal(p->logged, PVPANIC_LOGGED_MAX); /* but the log does not fill */
    d->ops->save(d, &saved);
    p->panics = 0;
    struct bytes_reader in = bytes_reader(saved.data, saved.size);
    assert_int_equal(d->ops->load(d, &in, NULL), 0);
    assert_int_equal(pvpanic_count(p), 100);
    bytes_writer_finish(&saved);
    d->ops->destroy(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(signature_and_features, setup, teardown),
        cmocka_unit_test_setup_teardown(files_are_listed, setup, teardown),
        cmocka_unit_test_setup_teardown(dma_reads_skips_and_fills, setup, teardown),
        cmocka_unit_test_setup_teardown(hostile_requests_fail, setup, teardown),
        cmocka_unit_test_setup_teardown(state_travels, setup, teardown),
        cmocka_unit_test_setup_teardown(power_on_after_a_crafted_state, setup, teardown),
        cmocka_unit_test(script_places_the_tables),
        cmocka_unit_test_setup_teardown(panics_are_counted, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
