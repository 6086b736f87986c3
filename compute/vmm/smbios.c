/* Structures after DSP0134 3.0.0, §7: a header, numbers, and behind them the strings that they refer to by position,
 * from 1 on. */
#include "compute/vmm/smbios.h"

#include <string.h>

enum { TEXTS_MAX = 6, DEVICES_MAX = 64 };
enum {
    HANDLE_FIRMWARE = 0x0000,
    HANDLE_SYSTEM = 0x0100,
    HANDLE_CHASSIS = 0x0300,
    HANDLE_PROCESSOR = 0x0400,
    HANDLE_ARRAY = 0x1000,
    HANDLE_DEVICES = 0x1100, /* and on */
    HANDLE_RANGES = 0x1300,
    HANDLE_BOOT = 0x2000,
    HANDLE_END = 0x7f00,
    HANDLE_NONE = 0xffff, /* not told */
};
#define DEVICE_BYTES_MAX (16ull << 30) /* of one memory device, as a module of a real machine might have */
#define MANUFACTURER "Drover"
#define MACHINE "pc-1"
STATIC_ASSERT(MEMORY_BYTES_MAX / DEVICE_BYTES_MAX <= DEVICES_MAX, "every memory device has a handle of its own");

struct structure {
    struct bytes_writer *out;
    size_t at;
    const char *texts[TEXTS_MAX];
    uint8_t text_count;
};

static struct structure structure_begin(struct bytes_writer *out, uint8_t type, uint16_t handle)
{
    struct structure s = {.out = out, .at = out->size};
    bytes_put_u8(out, type);
    bytes_put_u8(out, 0); /* length, by structure_end */
    bytes_put_u16(out, handle);
    return s;
}

/* A reference to @text, which lives until structure_end. */
static void put_text(struct structure *s, const char *text)
{
    ASSERT(s->text_count < TEXTS_MAX && text[0]);
    s->texts[s->text_count++] = text;
    bytes_put_u8(s->out, s->text_count);
}

static void structure_end(struct structure *s, size_t length)
{
    ASSERT(s->out->size - s->at == length);
    s->out->data[s->at + 1] = (uint8_t)length;
    for (unsigned i = 0; i < s->text_count; i++)
        bytes_put(s->out, s->texts[i], strlen(s->texts[i]) + 1);
    if (s->text_count == 0)
        bytes_put_u8(s->out, 0);
    bytes_put_u8(s->out, 0);
}

static void put_zeros(struct bytes_writer *out, size_t count)
{
    while (count--)
        bytes_put_u8(out, 0);
}

/* §7.1. The date is the machine type's: what a guest may have seen does not change with the VMM's version. */
static void firmware_put(struct bytes_writer *out)
{
    struct structure s = structure_begin(out, 0, HANDLE_FIRMWARE);
    put_text(&s, MANUFACTURER);
    put_text(&s, MACHINE);
    bytes_put_u16(out, 0xe800); /* where its code would begin */
    put_text(&s, "01/01/2026");
    bytes_put_u8(out, 0);     /* size: 64 KiB, the least that can be said */
    bytes_put_u64(out, 0x08); /* what it can do is not told */
    bytes_put_u8(out, 0);
    bytes_put_u8(out, 0x10); /* a virtual machine */
    bytes_put_u8(out, 1);    /* version */
    bytes_put_u8(out, 0);
    bytes_put_u8(out, 0xff); /* no embedded controller */
    bytes_put_u8(out, 0xff);
    structure_end(&s, 0x18);
}

static uint8_t hex_value(char digit)
{
    return (uint8_t)(digit >= '0' && digit <= '9' ? digit - '0' : (digit | 0x20) - 'a' + 10);
}

/* §7.2.1: the first three fields are numbers, so their bytes go the other way round. All zeros: there is none. */
static void put_uuid(struct bytes_writer *out, const char *text)
{
    static const uint8_t order[16] = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};
    uint8_t bytes[16] = {0};
    unsigned digits = 0;
    for (; text && *text && digits < 32; text++)
        if (*text != '-') {
            bytes[digits / 2] = (uint8_t)(bytes[digits / 2] << 4 | (hex_value(*text) & 0xf));
            digits++;
        }
    for (unsigned i = 0; i < 16; i++)
        bytes_put_u8(out, bytes[order[i]]);
}

/* §7.2 */
static void system_put(struct bytes_writer *out, const struct smbios_options *o)
{
    struct structure s = structure_begin(out, 1, HANDLE_SYSTEM);
    put_text(&s, MANUFACTURER);
    put_text(&s, "Virtual machine");
    put_text(&s, MACHINE);
    if (o->vm_id)
        put_text(&s, o->vm_id); /* serial number */
    else
        bytes_put_u8(out, 0);
    put_uuid(out, o->vm_id);
    bytes_put_u8(out, 6); /* woken by the power switch */
    bytes_put_u8(out, 0); /* no SKU number */
    put_text(&s, "Drover virtual machines");
    structure_end(&s, 0x1b);
}

/* §7.4 */
static void chassis_put(struct bytes_writer *out)
{
    struct structure s = structure_begin(out, 3, HANDLE_CHASSIS);
    put_text(&s, MANUFACTURER);
    bytes_put_u8(out, 1); /* type: other */
    put_text(&s, MACHINE);
    put_zeros(out, 2);    /* serial number, asset tag */
    bytes_put_u8(out, 3); /* boot-up, power supply, thermal: safe */
    bytes_put_u8(out, 3);
    bytes_put_u8(out, 3);
    bytes_put_u8(out, 2);  /* security: unknown */
    put_zeros(out, 4);     /* OEM */
    put_zeros(out, 2);     /* height, power cords */
    put_zeros(out, 2);     /* contained elements: none */
    bytes_put_u8(out, 0);  /* no SKU number */
    structure_end(&s, 0x16);
}

/* §7.5: one socket, whose cores are the vCPUs (vcpu_cpuid.h). */
static void processor_put(struct bytes_writer *out, const struct smbios_options *o)
{
    struct structure s = structure_begin(out, 4, HANDLE_PROCESSOR);
    put_text(&s, "CPU 0");
    bytes_put_u8(out, 3); /* central processor */
    bytes_put_u8(out, 1); /* family: other */
    put_text(&s, MANUFACTURER);
    bytes_put_u64(out, o->processor);
    put_text(&s, MACHINE);
    bytes_put_u8(out, 0);     /* voltage: not told; so are the three clocks */
    put_zeros(out, 6);
    bytes_put_u8(out, 0x41);  /* populated and enabled */
    bytes_put_u8(out, 1);     /* upgrade: other */
    bytes_put_u16(out, HANDLE_NONE); /* caches */
    bytes_put_u16(out, HANDLE_NONE);
    bytes_put_u16(out, HANDLE_NONE);
    put_zeros(out, 3); /* serial number, asset tag, part number */
    for (unsigned i = 0; i < 3; i++) /* cores, those enabled, threads */
        bytes_put_u8(out, (uint8_t)MIN(o->vcpus, 0xffu));
    bytes_put_u16(out, (uint16_t)(0x04 | (o->vcpus > 1 ? 0x08 : 0))); /* 64-bit; multi-core */
    bytes_put_u16(out, 1);
    for (unsigned i = 0; i < 3; i++)
        bytes_put_u16(out, (uint16_t)o->vcpus);
    structure_end(&s, 0x30);
}

/* §7.17 */
static void array_put(struct bytes_writer *out, uint64_t size_bytes, unsigned devices)
{
    struct structure s = structure_begin(out, 16, HANDLE_ARRAY);
    bytes_put_u8(out, 1); /* location: other */
    bytes_put_u8(out, 3); /* system memory */
    bytes_put_u8(out, 2); /* error correction: unknown */
    bytes_put_u32(out, size_bytes >> 10 < 0x80000000u ? (uint32_t)(size_bytes >> 10) : 0x80000000u);
    bytes_put_u16(out, 0xfffe); /* errors are not told here */
    bytes_put_u16(out, (uint16_t)devices);
    bytes_put_u64(out, size_bytes >> 10 < 0x80000000u ? 0 : size_bytes);
    structure_end(&s, 0x17);
}

/* §7.18 */
static void device_put(struct bytes_writer *out, unsigned index, uint64_t size_bytes)
{
    struct bytes_writer name = {0};
    struct structure s = structure_begin(out, 17, (uint16_t)(HANDLE_DEVICES + index));
    bytes_put_format(&name, "DIMM %u", index);
    bytes_put_u8(&name, 0);
    bytes_put_u16(out, HANDLE_ARRAY);
    bytes_put_u16(out, 0xfffe);
    bytes_put_u16(out, 0xffff); /* widths: unknown */
    bytes_put_u16(out, 0xffff);
    bytes_put_u16(out, (uint16_t)(size_bytes >> 20)); /* MiB */
    bytes_put_u8(out, 9);                             /* DIMM */
    bytes_put_u8(out, 0);
    put_text(&s, (const char *)name.data);
    bytes_put_u8(out, 0);  /* bank */
    bytes_put_u8(out, 7);  /* RAM */
    bytes_put_u16(out, 2); /* other */
    bytes_put_u16(out, 0); /* speed */
    put_text(&s, MANUFACTURER);
    put_zeros(out, 3);  /* serial number, asset tag, part number */
    bytes_put_u8(out, 0);
    put_zeros(out, 12); /* extended size, clock, voltages */
    structure_end(&s, 0x28);
    bytes_writer_finish(&name);
}

/* §7.20; in KiB, the end included. */
static void range_put(struct bytes_writer *out, unsigned index, const struct memory_region *r)
{
    struct structure s = structure_begin(out, 19, (uint16_t)(HANDLE_RANGES + index));
    bytes_put_u32(out, (uint32_t)(r->gpa >> 10));
    bytes_put_u32(out, (uint32_t)((r->gpa + r->size - 1) >> 10));
    bytes_put_u16(out, HANDLE_ARRAY);
    bytes_put_u8(out, 1); /* devices side by side */
    put_zeros(out, 16);
    structure_end(&s, 0x1f);
}

static void memory_put(struct bytes_writer *out, const struct guest_memory *m)
{
    unsigned devices = (unsigned)((m->size_bytes + DEVICE_BYTES_MAX - 1) / DEVICE_BYTES_MAX);
    uint64_t left = m->size_bytes;
    array_put(out, m->size_bytes, devices);
    for (unsigned i = 0; i < devices; i++) {
        device_put(out, i, MIN(left, (uint64_t)DEVICE_BYTES_MAX));
        left -= MIN(left, (uint64_t)DEVICE_BYTES_MAX);
    }
    for (unsigned i = 0; i < m->region_count; i++)
        range_put(out, i, &m->regions[i]);
}

void smbios_build(const struct smbios_options *o, struct bytes_writer *out)
{
    ASSERT(out->size == 0);
    if (!o->has_firmware)
        firmware_put(out);
    system_put(out, o);
    chassis_put(out);
    processor_put(out, o);
    memory_put(out, o->memory);
    struct structure boot = structure_begin(out, 32, HANDLE_BOOT); /* §7.33 */
    put_zeros(out, 7);                                              /* no errors */
    structure_end(&boot, 0x0b);
    struct structure end = structure_begin(out, 127, HANDLE_END);
    structure_end(&end, 4);
}

/* §5.2.2 */
void smbios_anchor(uint64_t address, size_t size, uint8_t ret_anchor[SMBIOS_ANCHOR_BYTES])
{
    uint8_t anchor[SMBIOS_ANCHOR_BYTES] = {'_', 'S', 'M', '3', '_', 0, SMBIOS_ANCHOR_BYTES, 3, 0, 0, 1};
    uint8_t sum = 0;
    for (unsigned i = 0; i < 4; i++)
        anchor[12 + i] = (uint8_t)(size >> (8 * i));
    for (unsigned i = 0; i < 8; i++)
        anchor[16 + i] = (uint8_t)(address >> (8 * i));
    for (unsigned i = 0; i < SMBIOS_ANCHOR_BYTES; i++)
        sum = (uint8_t)(sum + anchor[i]);
    anchor[5] = (uint8_t)-sum;
    memcpy(ret_anchor, anchor, sizeof(anchor));
}
