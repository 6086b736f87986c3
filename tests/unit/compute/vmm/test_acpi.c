/* The tables parsed back as a guest would: signatures, lengths, check sums, pointers, processors; the AML by its
 * package lengths. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "compute/vmm/acpi.h"
#include "compute/vmm/aml.h"
#include "compute/vmm/pc1_layout.h"

static struct bytes_writer tables;

static uint64_t get(uint64_t address, unsigned size)
{
    struct bytes_reader r = bytes_reader(tables.data, tables.size);
    uint64_t value = 0;
    assert_true(address >= PC1_ACPI && address - PC1_ACPI + size <= tables.size);
    bytes_get(&r, address - PC1_ACPI);
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)bytes_get_u8(&r) << (8 * i);
    return value;
}
static uint8_t sum(uint64_t address, uint64_t size)
{
    uint8_t total = 0;
    while (size--)
        total = (uint8_t)(total + get(address++, 1));
    return total;
}
static bool has_text(uint64_t address, const char *text)
{
    for (; *text; text++)
        if (get(address++, 1) != (uint8_t)*text)
            return false;
    return true;
}

static int build(unsigned vcpus, uint64_t size_max)
{
    struct acpi_options options = {.address = PC1_ACPI,
                                   .size_max = size_max,
                                   .vcpus = vcpus,
                                   .window32 = PC1_WINDOW32,
                                   .window64 = 0x1000000000,
                                   .window64_bytes = PC1_WINDOW64_BYTES};
    bytes_writer_finish(&tables);
    memset(&tables, 0, sizeof(tables));
    return acpi_build(&options, &tables, NULL);
}

/* Address of the table in the XSDT; its length and check sum are right. */
static uint64_t table(const char *signature)
{
    uint64_t xsdt = get(PC1_ACPI + 24, 8), length = get(xsdt + 4, 4);
    assert_true(has_text(xsdt, "XSDT"));
    assert_int_equal(sum(xsdt, length), 0);
    for (uint64_t at = xsdt + 36; at < xsdt + length; at += 8) {
        uint64_t found = get(at, 8);
        assert_int_equal(sum(found, get(found + 4, 4)), 0);
        if (has_text(found, signature))
            return found;
    }
    fail_msg("no table %s", signature);
    return 0;
}

static void root_pointer_is_right(void **state)
{
    (void)state;
    assert_int_equal(build(1, 0x20000), 0);
    assert_true(has_text(PC1_ACPI, "RSD PTR "));
    assert_int_equal(sum(PC1_ACPI, 20), 0);
    assert_int_equal(sum(PC1_ACPI, 36), 0);
    assert_int_equal(get(PC1_ACPI + 15, 1), 2);
}

static void fixed_table_names_the_ports(void **state)
{
    (void)state;
    assert_int_equal(build(1, 0x20000), 0);
    uint64_t fadt = table("FACP");
    assert_int_equal(get(fadt + 4, 4), 276);
    assert_int_equal(get(fadt + 46, 2), PC1_IRQ_SCI);
    assert_int_equal(get(fadt + 56, 4), PC1_PORT_PM);
    assert_int_equal(get(fadt + 64, 4), PC1_PORT_PM_CONTROL);
    assert_int_equal(get(fadt + 76, 4), PC1_PORT_PM_TIMER);
    assert_int_equal(get(fadt + 80, 4), PC1_PORT_GPE);
    assert_int_equal(get(fadt + 92, 1), 4);
    assert_int_equal(get(fadt + 220 + 4, 8), PC1_PORT_GPE);
    assert_int_equal(get(fadt + 116, 1), 1); /* reset register: a port */
    assert_int_equal(get(fadt + 120, 8), PC1_PORT_RESET);
    assert_int_equal(get(fadt + 128, 1), 6);
    assert_int_equal(get(fadt + 172 + 4, 8), PC1_PORT_PM_CONTROL);
    assert_int_equal(get(fadt + 208 + 4, 8), PC1_PORT_PM_TIMER);
    assert_true(has_text(get(fadt + 36, 4), "FACS"));
    uint64_t dsdt = get(fadt + 140, 8);
    assert_int_equal(dsdt, get(fadt + 40, 4));
    assert_true(has_text(dsdt, "DSDT"));
    assert_int_equal(sum(dsdt, get(dsdt + 4, 4)), 0);
}

static void every_processor_is_listed(void **state)
{
    static const unsigned counts[] = {1, 2, 64};
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(counts); i++) {
        unsigned processors = 0, ioapics = 0;
        assert_int_equal(build(counts[i], 0x20000), 0);
        uint64_t madt = table("APIC"), end = madt + get(madt + 4, 4);
        assert_int_equal(get(madt + 36, 4), PC1_LAPIC);
        for (uint64_t at = madt + 44; at < end; at += get(at + 1, 1)) {
            assert_true(get(at + 1, 1) >= 2);
            if (get(at, 1) == 0)
                assert_int_equal(get(at + 3, 1), processors++);
            ioapics += get(at, 1) == 1;
        }
        assert_int_equal(processors, counts[i]);
        assert_int_equal(ioapics, 1);
    }
}

/* AML package length at @at; the same walk that an interpreter does. */
static uint64_t package_end(uint64_t at)
{
    unsigned follow = (unsigned)get(at, 1) >> 6;
    assert_int_equal(follow, 3);
    return at + ((get(at, 1) & 15) | get(at + 1, 1) << 4 | get(at + 2, 1) << 12 | get(at + 3, 1) << 20);
}

static void namespace_is_walked(void **state)
{
    static const char *const devices[] = {"PCI0", "COM1", "RTC_", "PEVT", "PMIO"};
    (void)state;
    assert_int_equal(build(2, 0x20000), 0);
    uint64_t dsdt = get(table("FACP") + 140, 8), end = dsdt + get(dsdt + 4, 4), at = dsdt + 36;
    assert_int_equal(get(at, 1), 0x10); /* Scope */
    uint64_t scope_end = package_end(at + 1);
    assert_true(has_text(at + 5, "\\_SB_"));
    at += 10;
    for (size_t i = 0; i < ARRAY_SIZE(devices); i++) {
        assert_int_equal(get(at, 2), 0x825b); /* Device */
        assert_true(has_text(at + 6, devices[i]));
        at = package_end(at + 2);
    }
    assert_int_equal(at, scope_end);
    assert_int_equal(get(at, 1), 0x10);
    assert_true(has_text(at + 5, "\\_GPE"));
    assert_int_equal(get(at + 10, 1), 0x14); /* Method */
    assert_true(has_text(at + 15, "_E01"));
    at = package_end(at + 1);
    assert_true(has_text(at + 1, "_S5_"));
    assert_int_equal(get(at + 5, 1), 0x12); /* Package of 4, the first the sleep type */
    assert_int_equal(get(at + 10, 1), 4);
    assert_int_equal(get(at + 11, 2), PC1_SLEEP_TYPE_S5 << 8 | 0x0a);
    assert_int_equal(package_end(at + 6), end);
}

static void too_little_room_is_refused(void **state)
{
    (void)state;
    assert_int_equal(build(64, 0x200), -ENOSPC);
}

static void eisa_ids_are_packed(void **state)
{
    struct bytes_writer w = {0};
    (void)state;
    aml_name_eisaid(&w, "_HID", "PNP0A03");
    assert_int_equal(w.size, 10);
    assert_memory_equal(w.data, "\x08_HID\x0c\x41\xd0\x0a\x03", 10);
    bytes_writer_finish(&w);
}

static int finish(void **state)
{
    (void)state;
    bytes_writer_finish(&tables);
    return 0;
}

/* Linux takes 64 ports at the PCI function's PMBA, and warns of a claim that covers only part of them. */
static void power_management_claims_all_its_ports(void **state)
{
    (void)state;
    static const uint8_t claim[] = {0x47, 1, 0x00, 0x06, 0x00, 0x06, 1, 0x40}; /* ACPI 6.5 §6.4.2.5 */
    assert_int_equal(build(1, 1 << 20), 0);
    uint64_t dsdt = get(table("FACP") + 140, 8), end = dsdt + get(dsdt + 4, 4) - sizeof(claim);
    unsigned found = 0;
    for (uint64_t at = dsdt + 36; at <= end; at++) {
        size_t same = 0;
        while (same < sizeof(claim) && get(at + same, 1) == claim[same])
            same++;
        found += same == sizeof(claim);
    }
    assert_int_equal(found, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(power_management_claims_all_its_ports),
        cmocka_unit_test(root_pointer_is_right),      cmocka_unit_test(fixed_table_names_the_ports),
        cmocka_unit_test(every_processor_is_listed),  cmocka_unit_test(namespace_is_walked),
        cmocka_unit_test(too_little_room_is_refused), cmocka_unit_test(eisa_ids_are_packed),
    };
    return cmocka_run_group_tests(tests, NULL, finish);
}
