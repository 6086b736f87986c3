/* The PCI bus as firmware sees it: ports 0xcf8 and 0xcfc, absent functions, sizing and moving of BARs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "compute/vmm/pci.h"

struct board {
    struct bus memory, ports;
    struct pci_bus pci;
    struct pci_device device, multi;
    unsigned maps, unmaps, config_writes;
    uint32_t last_value;
};

static struct board *board_of(struct pci_device *d)
{
    return CONTAINER_OF(d, struct board, device);
}
static uint64_t on_read(struct pci_device *d, unsigned bar, uint64_t offset, unsigned size)
{
    (void)d;
    (void)size;
    return bar << 16 | offset;
}
static void on_mapped(struct pci_device *d, unsigned bar, bool mapped)
{
    (void)bar;
    if (mapped)
        board_of(d)->maps++;
    else
        board_of(d)->unmaps++;
}
static void on_config_write(struct pci_device *d, unsigned offset, unsigned size, uint32_t value)
{
    (void)offset;
    (void)size;
    board_of(d)->config_writes++;
    board_of(d)->last_value = value;
}
static const struct pci_ops ops = {.bar_read = on_read, .bar_mapped = on_mapped, .config_write = on_config_write};

static int setup(void **state)
{
    struct board *b = NEW(struct board);
    bus_init(&b->memory, NULL);
    bus_init(&b->ports, NULL);
    assert_int_equal(pci_bus_init(&b->pci, &b->memory, &b->ports, NULL), 0);
    pci_device_init(&b->device, &ops, 0x1af4, 0x1042, 0x018000, 1);
    pci_bar_set(&b->device, 0, PCI_BAR_MEMORY32, 0x1000, false);
    pci_bar_set(&b->device, 1, PCI_BAR_IO, 0x20, false);
    pci_bar_set(&b->device, 4, PCI_BAR_MEMORY64, 0x8000, true);
    assert_int_equal(pci_bus_add(&b->pci, 3, &b->device, NULL), 0);
    *state = b;
    return 0;
}
static int teardown(void **state)
{
    struct board *b = *state;
    bus_finish(&b->memory);
    bus_finish(&b->ports);
    free(b);
    return 0;
}

static void select_register(struct board *b, unsigned slot, unsigned function, unsigned offset)
{
    bus_write(&b->ports, 0xcf8, 4, 0x80000000u | slot << 11 | function << 8 | (offset & 0xfc));
}
static uint32_t config_read(struct board *b, unsigned offset, unsigned size)
{
    select_register(b, 3, 0, offset);
    return (uint32_t)bus_read(&b->ports, 0xcfc + offset % 4, size);
}
static void config_write(struct board *b, unsigned offset, unsigned size, uint32_t value)
{
    select_register(b, 3, 0, offset);
    bus_write(&b->ports, 0xcfc + offset % 4, size, value);
}

static void functions_are_found(void **state)
{
    struct board *b = *state;
    assert_int_equal(config_read(b, 0, 4), 0x10421af4);
    assert_int_equal(config_read(b, 2, 2), 0x1042);
    assert_int_equal(config_read(b, 0xb, 1), 0x01);
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        select_register(b, slot, slot == 3 ? 1 : 0, 0);
        assert_int_equal(bus_read(&b->ports, 0xcfc, 4), 0xffffffff);
    }
    bus_write(&b->ports, 0xcf8, 4, 0x80010000u | 3 << 11); /* bus 1 */
    assert_int_equal(bus_read(&b->ports, 0xcfc, 4), 0xffffffff);
    bus_write(&b->ports, 0xcf8, 4, 3 << 11); /* not enabled */
    assert_int_equal(bus_read(&b->ports, 0xcfc, 4), 0xffffffff);
    bus_write(&b->ports, 0xcf8, 1, 0xff); /* the address register takes dwords only */
    assert_int_equal(bus_read(&b->ports, 0xcf8, 4), 3 << 11);
}

static void other_functions_are_announced(void **state)
{
    struct board *b = *state;
    assert_int_equal(config_read(b, PCI_HEADER_TYPE, 1), 0);
    pci_device_init(&b->multi, NULL, 0x8086, 0x7113, 0x068000, 0);
    assert_int_equal(pci_bus_add_function(&b->pci, 3, 2, &b->multi, NULL), 0);
    assert_int_equal(config_read(b, PCI_HEADER_TYPE, 1), 0x80);
    assert_int_equal(pci_bus_add_function(&b->pci, 3, 2, &b->multi, NULL), -EEXIST);
    assert_int_equal(pci_bus_add(&b->pci, PCI_SLOTS, &b->multi, NULL), -EINVAL);
}

static void identity_is_read_only(void **state)
{
    struct board *b = *state;
    config_write(b, 0, 4, 0);
    assert_int_equal(config_read(b, 0, 4), 0x10421af4);
    assert_int_equal(b->config_writes, 1);
    config_write(b, PCI_COMMAND, 2, 0xffff);
    assert_int_equal(config_read(b, PCI_COMMAND, 2),
                     PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_OFF);
    assert_int_equal(b->last_value, 0xffff); /* the device sees what was written */
}

static void bars_tell_their_size(void **state)
{
    static const struct {
        unsigned bar;
        uint32_t answer;
    } cases[] = {{0, 0xfffff000}, {1, 0xffe1}, {2, 0}, {4, 0xffff800c}, {5, 0xffffffff}};
    struct board *b = *state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        config_write(b, PCI_BAR0 + 4 * cases[i].bar, 4, 0xffffffff);
        assert_int_equal(config_read(b, PCI_BAR0 + 4 * cases[i].bar, 4), cases[i].answer);
    }
    assert_int_equal(b->maps, 0); /* decoding was off all the time */
}

static void bar_moves_with_the_guest(void **state)
{
    struct board *b = *state;
    config_write(b, PCI_BAR0, 4, 0xfeb00000);
    assert_int_equal(bus_read(&b->memory, 0xfeb00010, 4), 0xffffffff);
    config_write(b, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    assert_int_equal(bus_read(&b->memory, 0xfeb00010, 4), 0x10);
    assert_int_equal(b->maps, 1);
    /* Sized while decoding is on, put back, then moved. */
    config_write(b, PCI_BAR0, 4, 0xffffffff);
    config_write(b, PCI_BAR0, 4, 0xfea00fff);
    assert_int_equal(config_read(b, PCI_BAR0, 4), 0xfea00000);
    assert_int_equal(bus_read(&b->memory, 0xfeb00010, 4), 0xffffffff);
    assert_int_equal(bus_read(&b->memory, 0xfea00014, 4), 0x14);
    config_write(b, PCI_COMMAND, 2, 0);
    assert_int_equal(bus_read(&b->memory, 0xfea00014, 4), 0xffffffff);
    assert_int_equal(b->maps, b->unmaps);
}

static void bar_of_64_bits_lies_high(void **state)
{
    struct board *b = *state;
    config_write(b, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    config_write(b, PCI_BAR0 + 16, 4, 0x00008000);
    config_write(b, PCI_BAR0 + 20, 4, 0xe0);
    assert_int_equal(bus_read(&b->memory, 0xe000008020ull, 4), 4 << 16 | 0x20);
    assert_int_equal(config_read(b, PCI_BAR0 + 16, 4), 0x0000800c);
    assert_int_equal(config_read(b, PCI_BAR0 + 20, 4), 0xe0);
    config_write(b, PCI_BAR0 + 21, 1, 0x01); /* one byte of the upper half */
    assert_int_equal(bus_read(&b->memory, 0x1e000008020ull, 4), 4 << 16 | 0x20);
}

static void overlap_is_not_mapped(void **state)
{
    struct board *b = *state;
    config_write(b, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_IO);
    config_write(b, PCI_BAR0 + 4, 4, 0xce0); /* would cover 0xcf8 */
    assert_int_equal(config_read(b, PCI_BAR0 + 4, 4), 0xce1);
    assert_int_equal(config_read(b, 0, 4), 0x10421af4); /* the bus itself still answers */
    config_write(b, PCI_BAR0 + 4, 4, 0xc000);
    assert_int_equal(bus_read(&b->ports, 0xc004, 2), 4);
}

static void reset_and_assign(void **state)
{
    struct board *b = *state;
    assert_int_equal(pci_bus_assign(&b->pci, 0xc0000000, 0xc0001000, 0x1000000000, 0x1000008000, 0xc000, NULL), 0);
    assert_int_equal(bus_read(&b->memory, 0xc0000004, 4), 4);
    assert_int_equal(bus_read(&b->memory, 0x1000000008, 4), 4 << 16 | 8);
    assert_int_equal(bus_read(&b->ports, 0xc001, 1), 1);
    pci_bus_reset(&b->pci);
    assert_int_equal(bus_read(&b->memory, 0xc0000004, 4), 0xffffffff);
    assert_int_equal(config_read(b, PCI_COMMAND, 2), 0);
    assert_int_equal(config_read(b, PCI_BAR0 + 16, 4), 0xc);
    assert_int_equal(b->maps, b->unmaps);
    assert_int_equal(pci_bus_assign(&b->pci, 0xc0000000, 0xc0000fff, 0x1000000000, 0x1000008000, 0xc000, NULL),
                     -ENOSPC);
}

static void capabilities_are_chained(void **state)
{
    struct board *b = *state;
    unsigned first = pci_capability_add(&b->device, 0x09, 13), second = pci_capability_add(&b->device, 0x11, 12);
    assert_int_equal(config_read(b, PCI_CAPABILITIES, 1), first);
    assert_int_equal(config_read(b, first, 2), 0x09 | second << 8);
    assert_int_equal(config_read(b, second, 2), 0x11);
    assert_true(second >= first + 13 && second % 4 == 0);
    assert_true(config_read(b, PCI_STATUS, 2) & PCI_STATUS_CAPABILITIES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        T(functions_are_found),      T(other_functions_are_announced),
        T(identity_is_read_only),    T(bars_tell_their_size),
        T(bar_moves_with_the_guest), T(bar_of_64_bits_lies_high),
        T(overlap_is_not_mapped),    T(reset_and_assign),
        T(capabilities_are_chained),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
