/* The tables walked as a guest's system walks them: structure by structure, over the strings, to the end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>

#include "compute/vmm/pc1_layout.h"
#include "compute/vmm/smbios.h"

#define GIB (1ull << 30)
#define VM_ID "01234567-89ab-cdef-fedc-ba9876543210"

static struct bytes_writer tables;
static unsigned structures; /* passed by the last walk */

static int teardown(void **state)
{
    (void)state;
    bytes_writer_finish(&tables);
    memset(&tables, 0, sizeof(tables));
    return 0;
}

/* Sizes as memory_init makes them, without the memory. */
static struct guest_memory memory_of(uint64_t size)
{
    struct guest_memory m = {.size_bytes = size, .region_count = size > MEMORY_HOLE_START ? 2 : 1};
    m.regions[0] = (struct memory_region){.size = MIN(size, (uint64_t)MEMORY_HOLE_START)};
    m.regions[1] = (struct memory_region){.gpa = MEMORY_HOLE_END, .size = size - m.regions[0].size};
    return m;
}

static void build(const char *vm_id, bool has_firmware, unsigned vcpus, uint64_t memory_bytes)
{
    struct guest_memory m = memory_of(memory_bytes);
    struct smbios_options options = {.vm_id = vm_id,
                                     .has_firmware = has_firmware,
                                     .vcpus = vcpus,
                                     .processor = 0x1122334455667788,
                                     .memory = &m};
    teardown(NULL);
    smbios_build(&options, &tables);
}

static uint64_t get(const uint8_t *p, unsigned at, unsigned size)
{
    uint64_t value = 0;
    assert_true(p + at + size <= tables.data + tables.size && at + size <= p[1]); /* within its formatted part */
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)p[at + i] << (8 * i);
    return value;
}

/* What is behind the structure at @p and its strings. */
static const uint8_t *next(const uint8_t *p)
{
    const uint8_t *end = tables.data + tables.size;
    assert_true(end - p >= 6 && p[1] >= 4 && end - p >= p[1] + 2);
    for (p += p[1]; p[0] || p[1]; p++)
        assert_true(end - p > 2);
    return p + 2;
}

/* The @index-th structure of @type, or NULL; walks all, and the last must be the end. */
static const uint8_t *find(uint8_t type, unsigned index)
{
    const uint8_t *found = NULL, *p = tables.data;
    unsigned last = 0;
    for (structures = 0; p < tables.data + tables.size; p = next(p), structures++) {
        if (*p == type && index-- == 0)
            found = p;
        last = *p;
    }
    assert_ptr_equal(p, tables.data + tables.size);
    assert_int_equal(last, 127);
    return found;
}

/* The string that the field at @at refers to; "" for none. */
static const char *text(const uint8_t *p, unsigned at)
{
    unsigned number = (unsigned)get(p, at, 1);
    const char *s = (const char *)p + p[1];
    if (number == 0)
        return "";
    while (--number) {
        assert_true(s[0]);
        s += strlen(s) + 1;
    }
    assert_true(s[0]);
    return s;
}

static void handles_differ(void)
{
    for (const uint8_t *p = tables.data; p < tables.data + tables.size; p = next(p))
        for (const uint8_t *q = next(p); q < tables.data + tables.size; q = next(q))
            assert_int_not_equal(get(p, 2, 2), get(q, 2, 2));
}

static void identity_is_shown(void **state)
{
    /* as Linux prints it: the first three fields the other way round */
    static const uint8_t uuid[16] = {0x67, 0x45, 0x23, 0x01, 0xab, 0x89, 0xef, 0xcd,
                                     0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10};
    (void)state;
    build(VM_ID, false, 1, GIB);
    const uint8_t *system = find(1, 0);
    assert_memory_equal(system + 8, uuid, 16);
    assert_string_equal(text(system, 4), "Drover");
    assert_string_equal(text(system, 5), "Virtual machine");
    assert_string_equal(text(system, 6), "pc-1");
    assert_string_equal(text(system, 7), VM_ID);
    assert_string_equal(text(system, 0x1a), "Drover virtual machines");
    assert_int_equal(system[1], 0x1b);
    assert_null(find(1, 1));
}

static void upper_case_is_the_same(void **state)
{
    uint8_t lower[16];
    (void)state;
    build("abcdefab-cdef-abcd-efab-cdefabcdefab", false, 1, GIB);
    memcpy(lower, find(1, 0) + 8, 16);
    build("ABCDEFAB-CDEF-ABCD-EFAB-CDEFABCDEFAB", false, 1, GIB);
    assert_memory_equal(find(1, 0) + 8, lower, 16);
}

static void without_identity(void **state)
{
    (void)state;
    build(NULL, false, 1, GIB);
    const uint8_t *system = find(1, 0);
    assert_int_equal(get(system, 8, 8), 0); /* all zeros: there is none */
    assert_int_equal(get(system, 16, 8), 0);
    assert_string_equal(text(system, 7), "");
    assert_string_equal(text(system, 0x1a), "Drover virtual machines");
}

static void firmware_is_named_once(void **state)
{
    (void)state;
    build(VM_ID, false, 1, GIB);
    const uint8_t *firmware = find(0, 0);
    assert_non_null(firmware);
    assert_string_equal(text(firmware, 4), "Drover");
    assert_string_equal(text(firmware, 8), "01/01/2026");
    assert_int_equal(get(firmware, 0x13, 1), 0x10);
    unsigned with = structures;
    build(VM_ID, true, 1, GIB);
    assert_null(find(0, 0));
    assert_int_equal(structures, with - 1);
}

static void chassis_and_boot_are_there(void **state)
{
    (void)state;
    build(VM_ID, true, 1, GIB);
    assert_int_equal(find(3, 0)[1], 0x16);
    assert_string_equal(text(find(3, 0), 4), "Drover");
    assert_string_equal(text(find(3, 0), 6), "pc-1");
    assert_int_equal(get(find(32, 0), 0x0a, 1), 0);
}

static void processors_are_cores_of_one(void **state)
{
    static const unsigned counts[] = {1, 2, 64, 300};
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(counts); i++) {
        build(VM_ID, false, counts[i], GIB);
        const uint8_t *processor = find(4, 0);
        assert_null(find(4, 1));
        assert_int_equal(processor[1], 0x30);
        assert_int_equal(get(processor, 8, 8), 0x1122334455667788);
        assert_int_equal(get(processor, 0x18, 1), 0x41);
        assert_int_equal(get(processor, 0x23, 1), MIN(counts[i], 255u));
        assert_int_equal(get(processor, 0x2a, 2), counts[i]);
        assert_int_equal(get(processor, 0x2e, 2), counts[i]);
    }
}

/* Devices add up to the memory, ranges are the memory's. */
static void memory_adds_up(void **state)
{
    static const struct {
        uint64_t size;
        unsigned devices, ranges;
    } cases[] = {{2 << 20, 1, 1},     {384 << 20, 1, 1},        {3 * GIB, 1, 1},
                 {4 * GIB, 1, 2},     {16 * GIB, 1, 2},         {16 * GIB + (1 << 20), 2, 2},
                 {100 * GIB, 7, 2},   {MEMORY_BYTES_MAX, 64, 2}};
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        uint64_t sum = 0;
        build(VM_ID, false, 1, cases[i].size);
        const uint8_t *array = find(16, 0);
        assert_int_equal(get(array, 7, 4), cases[i].size >> 10);
        assert_int_equal(get(array, 0x0d, 2), cases[i].devices);
        for (unsigned d = 0; d < cases[i].devices; d++) {
            const uint8_t *device = find(17, d);
            assert_non_null(device);
            assert_int_equal(get(device, 4, 2), get(array, 2, 2));
            assert_int_not_equal(get(device, 0x0c, 2) & 0x8000, 0x8000); /* MiB, not KiB */
            assert_int_not_equal(get(device, 0x0c, 2), 0x7fff);
            assert_int_equal(strncmp(text(device, 0x10), "DIMM ", 5), 0);
            sum += get(device, 0x0c, 2) << 20;
        }
        assert_int_equal(sum, cases[i].size);
        assert_null(find(17, cases[i].devices));
        sum = 0;
        for (unsigned r = 0; r < cases[i].ranges; r++) {
            const uint8_t *range = find(19, r);
            assert_int_equal(get(range, 0x0c, 2), get(array, 2, 2));
            assert_int_equal(get(range, 4, 4), r ? MEMORY_HOLE_END >> 10 : 0);
            sum += get(range, 8, 4) + 1 - get(range, 4, 4);
        }
        assert_int_equal(sum, cases[i].size >> 10);
        assert_null(find(19, cases[i].ranges));
        handles_differ();
    }
}

static void most_of_it_fits(void **state)
{
    (void)state;
    build(VM_ID, false, 64, MEMORY_BYTES_MAX);
    assert_true(PC1_SMBIOS + 2 * 16 + tables.size <= PC1_SMBIOS_END);
}

static void entry_point_is_right(void **state)
{
    uint8_t anchor[SMBIOS_ANCHOR_BYTES], sum = 0;
    (void)state;
    smbios_anchor(0xf0020, 0x1234, anchor);
    for (unsigned i = 0; i < sizeof(anchor); i++)
        sum = (uint8_t)(sum + anchor[i]);
    assert_int_equal(sum, 0);
    assert_memory_equal(anchor, "_SM3_", 5);
    assert_int_equal(anchor[6], 24);
    assert_int_equal(anchor[7], 3);
    assert_int_equal(anchor[12] | anchor[13] << 8, 0x1234);
    assert_int_equal(anchor[16] | anchor[17] << 8 | anchor[18] << 16, 0xf0020);
    assert_int_equal(PC1_SMBIOS % 16, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(identity_is_shown, teardown),
        cmocka_unit_test_teardown(upper_case_is_the_same, teardown),
        cmocka_unit_test_teardown(without_identity, teardown),
        cmocka_unit_test_teardown(firmware_is_named_once, teardown),
        cmocka_unit_test_teardown(chassis_and_boot_are_there, teardown),
        cmocka_unit_test_teardown(processors_are_cores_of_one, teardown),
        cmocka_unit_test_teardown(memory_adds_up, teardown),
        cmocka_unit_test_teardown(most_of_it_fits, teardown),
        cmocka_unit_test(entry_point_is_right),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
