/* Tables after ACPI 6.5 §5.2, laid out one behind the other: RSDP, FACS, DSDT, FADT, MADT, XSDT. */
#include "compute/vmm/acpi.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "compute/vmm/aml.h"
#include "compute/vmm/pc1_layout.h"

enum { HEADER_BYTES = 36, RSDP_BYTES = 36, CHECKSUM_AT = 9, LENGTH_AT = 4 };

static void checksum_fix(uint8_t *data, size_t size, size_t at)
{
    uint8_t sum = 0;
    data[at] = 0;
    for (size_t i = 0; i < size; i++)
        sum = (uint8_t)(sum + data[i]);
    data[at] = (uint8_t)-sum;
}

/* §5.2.6; length and check sum follow in table_end. */
static size_t table_begin(struct bytes_writer *out, const char *signature, uint8_t revision)
{
    bytes_put_padding(out, 16);
    size_t at = out->size;
    bytes_put(out, signature, 4);
    bytes_put_u32(out, 0);
    bytes_put_u8(out, revision);
    bytes_put_u8(out, 0);
    bytes_put_text(out, "DROVER");
    bytes_put_text(out, "DRPC1   ");
    bytes_put_u32(out, 1);
    bytes_put_text(out, "DRVR");
    bytes_put_u32(out, 1);
    ASSERT(out->size - at == HEADER_BYTES);
    return at;
}

static void table_end(struct bytes_writer *out, size_t at)
{
    uint32_t length = (uint32_t)(out->size - at);
    for (unsigned i = 0; i < 4; i++)
        out->data[at + LENGTH_AT + i] = (uint8_t)(length >> (8 * i));
    checksum_fix(out->data + at, length, CHECKSUM_AT);
}

static void put_zeros(struct bytes_writer *out, size_t count)
{
    while (count--)
        bytes_put_u8(out, 0);
}

/* §5.2.10: the firmware's control structure; only its presence matters here. */
static size_t facs_put(struct bytes_writer *out)
{
    bytes_put_padding(out, 64);
    size_t at = out->size;
    bytes_put_text(out, "FACS");
    bytes_put_u32(out, 64);
    put_zeros(out, 24);
    bytes_put_u8(out, 2); /* version */
    put_zeros(out, 31);
    return at;
}

static const char *slot_name(unsigned slot, char name[5])
{
    snprintf(name, 5, "SL%02X", slot & 0xffu);
    return name;
}

/* Hot plug (devices/pcihp): what can be ejected, and a method that passes on what has changed. */
static void dsdt_slots(struct bytes_writer *out)
{
    static const char *const registers[] = {"PCUP", "PCDN", "PCEJ"};
    static const struct {
        const char *name;
        uint64_t value; /* ACPI 6.5 table 5.197: device check, eject request */
    } changes[] = {{"PCUP", 1}, {"PCDN", 3}};
    char name[5];
    aml_port_dwords(out, "PCHP", PC1_PORT_PCIHP, PC1_PORT_PCIHP_BYTES, registers, ARRAY_SIZE(registers));
    for (unsigned slot = PC1_SLOT_DEVICES; slot < 32; slot++) {
        size_t device = aml_begin_device(out, slot_name(slot, name));
        aml_name_integer(out, "_ADR", (uint64_t)slot << 16);
        aml_name_integer(out, "_SUN", slot);
        size_t eject = aml_begin_method(out, "_EJ0", 1);
        aml_store_integer(out, "PCEJ", 1ull << slot);
        aml_end(out, eject);
        aml_end(out, device);
    }
    size_t method = aml_begin_method(out, "PCNT", 0);
    for (size_t i = 0; i < ARRAY_SIZE(changes); i++) {
        aml_load_local0(out, changes[i].name);
        aml_store_local0(out, changes[i].name); /* taken note of */
        for (unsigned slot = PC1_SLOT_DEVICES; slot < 32; slot++) {
            size_t condition = aml_begin_if_local0(out, 1ull << slot);
            aml_notify(out, slot_name(slot, name), changes[i].value);
            aml_end(out, condition);
        }
    }
    aml_end(out, method);
}

static void dsdt_root_bridge(struct bytes_writer *out, const struct acpi_options *o)
{
    struct aml_resources windows = {0};
    size_t bridge = aml_begin_device(out, "PCI0");
    aml_name_eisaid(out, "_HID", "PNP0A03");
    aml_name_integer(out, "_UID", 0);
    aml_name_integer(out, "_BBN", 0);
    aml_resource_bus_numbers(&windows, 0, 0);
    aml_resource_io(&windows, 0xcf8, 8);
    aml_resource_port_window(&windows, 0x0000, 0x0cf7);
    aml_resource_port_window(&windows, 0x0d00, 0xffff);
    aml_resource_window32(&windows, (uint32_t)o->window32, (uint32_t)PC1_WINDOW32_END - 1);
    if (o->window64_bytes)
        aml_resource_window64(&windows, o->window64, o->window64 + o->window64_bytes - 1);
    aml_name_resources(out, "_CRS", &windows);
    dsdt_slots(out);
    aml_end(out, bridge);
}

/* The methods of general purpose events. */
static void dsdt_events(struct bytes_writer *out)
{
    size_t scope = aml_begin_scope(out, "\\_GPE");
    size_t method = aml_begin_method(out, "_E01", 0);
    STATIC_ASSERT(PC1_GPE_PCIHP == 1, "its method is _E01");
    aml_call(out, "\\_SB_PCI0PCNT");
    aml_end(out, method);
    aml_end(out, scope);
}

static void dsdt_isa_device(struct bytes_writer *out, const char *name, const char *hid, uint16_t port, uint8_t ports,
                            int irq)
{
    struct aml_resources resources = {0};
    size_t device = aml_begin_device(out, name);
    if (strlen(hid) == 7)
        aml_name_eisaid(out, "_HID", hid);
    else
        aml_name_text(out, "_HID", hid);
    aml_name_integer(out, "_UID", 1);
    aml_name_integer(out, "_STA", 0x0f);
    aml_resource_io(&resources, port, ports);
    if (irq >= 0)
        aml_resource_irq(&resources, (uint8_t)irq);
    aml_name_resources(out, "_CRS", &resources);
    aml_end(out, device);
}

static size_t dsdt_put(struct bytes_writer *out, const struct acpi_options *o)
{
    static const uint8_t s5[4] = {PC1_SLEEP_TYPE_S5, PC1_SLEEP_TYPE_S5, 0, 0};
    size_t at = table_begin(out, "DSDT", 2);
    size_t scope = aml_begin_scope(out, "\\_SB_");
    dsdt_root_bridge(out, o);
    dsdt_isa_device(out, "COM1", "PNP0501", PC1_PORT_SERIAL0, 8, PC1_IRQ_SERIAL0);
    dsdt_isa_device(out, "RTC_", "PNP0B00", PC1_PORT_CMOS, 2, -1);
    dsdt_isa_device(out, "PEVT", "QEMU0001", PC1_PORT_PVPANIC, 1, -1);
    dsdt_isa_device(out, "PMIO", "PNP0C02", PC1_PORT_PM, PC1_PORT_PM_BYTES, -1);
    aml_end(out, scope);
    dsdt_events(out);
    aml_name_package(out, "_S5_", s5, sizeof(s5));
    table_end(out, at);
    return at;
}

/* §5.2.3.2, generic address structure of a port. */
static void put_port_gas(struct bytes_writer *out, uint16_t port, uint8_t bits)
{
    bytes_put_u8(out, 1); /* system I/O */
    bytes_put_u8(out, bits);
    bytes_put_u8(out, 0);
    bytes_put_u8(out, bits == 8 ? 1 : bits == 16 ? 2 : 3); /* access size */
    bytes_put_u64(out, port);
}

enum {
    FADT_WBINVD = 1 << 0,
    FADT_PROC_C1 = 1 << 2,
    FADT_SLEEP_BUTTON_ABSENT = 1 << 5,
    FADT_TIMER_32_BIT = 1 << 8,
    FADT_RESET_REGISTER = 1 << 10,
};
enum { BOOT_ARCH_LEGACY = 1, BOOT_ARCH_NO_VGA = 4 }; /* without bit 1: no keyboard controller to be probed */

/* §5.2.9 */
static size_t fadt_put(struct bytes_writer *out, uint64_t facs, uint64_t dsdt)
{
    size_t at = table_begin(out, "FACP", 6);
    bytes_put_u32(out, (uint32_t)facs);
    bytes_put_u32(out, (uint32_t)dsdt);
    bytes_put_u8(out, 0);
    bytes_put_u8(out, 0); /* profile: unspecified */
    bytes_put_u16(out, PC1_IRQ_SCI);
    bytes_put_u32(out, 0); /* SMI command port: none, ACPI mode is always on */
    put_zeros(out, 4);
    bytes_put_u32(out, PC1_PORT_PM); /* PM1a event */
    bytes_put_u32(out, 0);
    bytes_put_u32(out, PC1_PORT_PM_CONTROL);
    bytes_put_u32(out, 0);
    bytes_put_u32(out, 0); /* PM2 */
    bytes_put_u32(out, PC1_PORT_PM_TIMER);
    bytes_put_u32(out, PC1_PORT_GPE);
    bytes_put_u32(out, 0); /* GPE1 */
    bytes_put_u8(out, 4);  /* lengths: PM1 event, PM1 control, PM2, timer, GPE0, GPE1 */
    bytes_put_u8(out, 2);
    bytes_put_u8(out, 0);
    bytes_put_u8(out, 4);
    bytes_put_u8(out, 4);      /* GPE0 */
    put_zeros(out, 3);         /* GPE1 length and base, C-state control */
    bytes_put_u16(out, 0xfff); /* C2 and C3 latencies: not there */
    bytes_put_u16(out, 0xfff);
    put_zeros(out, 8);       /* cache flush, duty, alarms */
    bytes_put_u8(out, 0x32); /* century byte of the clock */
    bytes_put_u16(out, BOOT_ARCH_LEGACY | BOOT_ARCH_NO_VGA);
    bytes_put_u8(out, 0);
    bytes_put_u32(out,
                  FADT_WBINVD | FADT_PROC_C1 | FADT_SLEEP_BUTTON_ABSENT | FADT_TIMER_32_BIT | FADT_RESET_REGISTER);
    put_port_gas(out, PC1_PORT_RESET, 8);
    bytes_put_u8(out, 6); /* value that resets */
    put_zeros(out, 2);
    bytes_put_u8(out, 5);  /* minor version */
    bytes_put_u64(out, 0); /* X_FIRMWARE_CTRL: the 32-bit field holds it; both at once is not allowed */
    bytes_put_u64(out, dsdt);
    put_port_gas(out, PC1_PORT_PM, 32);
    put_zeros(out, 12);
    put_port_gas(out, PC1_PORT_PM_CONTROL, 16);
    put_zeros(out, 12);
    put_zeros(out, 12); /* PM2 */
    put_port_gas(out, PC1_PORT_PM_TIMER, 32);
    put_port_gas(out, PC1_PORT_GPE, 32);
    put_zeros(out, 12); /* GPE1 */
    put_zeros(out, 24); /* sleep registers of reduced hardware */
    bytes_put_text(out, "DROVER");
    put_zeros(out, 2); /* hypervisor vendor identity is 8 bytes */
    table_end(out, at);
    ASSERT(out->size - at == 276);
    return at;
}

static void madt_override(struct bytes_writer *out, uint8_t irq, uint32_t gsi, uint16_t flags)
{
    bytes_put_u8(out, 2);
    bytes_put_u8(out, 10);
    bytes_put_u8(out, 0); /* ISA */
    bytes_put_u8(out, irq);
    bytes_put_u32(out, gsi);
    bytes_put_u16(out, flags);
}

/* §5.2.12 */
static size_t madt_put(struct bytes_writer *out, unsigned vcpus)
{
    size_t at = table_begin(out, "APIC", 5);
    bytes_put_u32(out, (uint32_t)PC1_LAPIC);
    bytes_put_u32(out, 1); /* PCAT_COMPAT: there are 8259s too */
    for (unsigned i = 0; i < vcpus; i++) {
        bytes_put_u8(out, 0); /* processor local APIC */
        bytes_put_u8(out, 8);
        bytes_put_u8(out, (uint8_t)i);
        bytes_put_u8(out, (uint8_t)i);
        bytes_put_u32(out, 1); /* enabled */
    }
    bytes_put_u8(out, 1); /* I/O APIC */
    bytes_put_u8(out, 12);
    bytes_put_u8(out, 0);
    bytes_put_u8(out, 0);
    bytes_put_u32(out, (uint32_t)PC1_IOAPIC);
    bytes_put_u32(out, 0);
    madt_override(out, 0, 2, 0);                       /* the timer is wired to pin 2 */
    madt_override(out, PC1_IRQ_SCI, PC1_IRQ_SCI, 0xd); /* level, active high */
    bytes_put_u8(out, 4);                              /* local APIC NMI: LINT1 of all processors */
    bytes_put_u8(out, 6);
    bytes_put_u8(out, 0xff);
    bytes_put_u16(out, 0);
    bytes_put_u8(out, 1);
    table_end(out, at);
    return at;
}

/* §5.2.5.3 */
static void rsdp_fill(uint8_t *rsdp, uint64_t xsdt)
{
    memset(rsdp, 0, RSDP_BYTES);
    memcpy(rsdp, "RSD PTR ", 8);
    memcpy(rsdp + 9, "DROVER", 6);
    rsdp[15] = 2;
    rsdp[20] = RSDP_BYTES;
    for (unsigned i = 0; i < 8; i++)
        rsdp[24 + i] = (uint8_t)(xsdt >> (8 * i));
    checksum_fix(rsdp, 20, 8);
    checksum_fix(rsdp, RSDP_BYTES, 32);
}

int acpi_build(const struct acpi_options *o, struct bytes_writer *out, struct error *err)
{
    ASSERT(out->size == 0 && o->address % 64 == 0 && o->address + o->size_max <= UINT32_MAX);
    put_zeros(out, RSDP_BYTES);
    size_t facs = facs_put(out);
    size_t dsdt = dsdt_put(out, o);
    size_t fadt = fadt_put(out, o->address + facs, o->address + dsdt);
    size_t madt = madt_put(out, o->vcpus);
    size_t xsdt = table_begin(out, "XSDT", 1);
    bytes_put_u64(out, o->address + fadt);
    bytes_put_u64(out, o->address + madt);
    table_end(out, xsdt);
    rsdp_fill(out->data, o->address + xsdt);
    if (out->size > o->size_max)
        return error_set(err, -ENOSPC, ERROR_INTERNAL, "ACPI tables of %zu bytes do not fit into %llu", out->size,
                         (unsigned long long)o->size_max);
    return 0;
}
