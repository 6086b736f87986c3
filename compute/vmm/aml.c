/* AML encoding. Package lengths are always written in their 4-byte form: then the body never moves. */
#include "compute/vmm/aml.h"

#include <string.h>

enum {
    OP_NAME = 0x08,
    OP_BYTE = 0x0a,
    OP_WORD = 0x0b,
    OP_DWORD = 0x0c,
    OP_STRING = 0x0d,
    OP_QWORD = 0x0e,
    OP_SCOPE = 0x10,
    OP_BUFFER = 0x11,
    OP_PACKAGE = 0x12,
    OP_EXTENDED = 0x5b,
    OP_MULTI_NAME = 0x2f,
    OP_LOCAL0 = 0x60,
    OP_METHOD = 0x14,
    OP_STORE = 0x70,
    OP_AND = 0x7b,
    OP_NOTIFY = 0x86,
    OP_IF = 0xa0,
    OP_REGION = 0x80, /* these three after OP_EXTENDED */
    OP_FIELD = 0x81,
    OP_DEVICE = 0x82,
    SPACE_IO = 1,
    FIELD_DWORDS = 3 | 2 << 5, /* dword access, what is not written is written as zero */
    NAME_BYTES = 4,
    LENGTH_BYTES = 4,
};

static size_t length_begin(struct bytes_writer *out)
{
    size_t at = out->size;
    bytes_put_u32(out, 0);
    return at;
}

/* §20.2.4: the length counts its own bytes; low nibble first, then 8 bits in each following byte. */
void aml_end(struct bytes_writer *out, size_t begun)
{
    size_t length = out->size - begun;
    ASSERT(length < 1u << 28);
    out->data[begun] = (uint8_t)(0xc0 | (length & 15));
    out->data[begun + 1] = (uint8_t)(length >> 4);
    out->data[begun + 2] = (uint8_t)(length >> 12);
    out->data[begun + 3] = (uint8_t)(length >> 20);
}

static void put_name(struct bytes_writer *out, const char *name)
{
    ASSERT(strlen(name) == (name[0] == '\\' ? 5u : 4u));
    bytes_put(out, name, strlen(name));
}

size_t aml_begin_scope(struct bytes_writer *out, const char *path)
{
    bytes_put_u8(out, OP_SCOPE);
    size_t at = length_begin(out);
    put_name(out, path);
    return at;
}

size_t aml_begin_device(struct bytes_writer *out, const char *name)
{
    bytes_put_u8(out, OP_EXTENDED);
    bytes_put_u8(out, OP_DEVICE);
    size_t at = length_begin(out);
    put_name(out, name);
    return at;
}

static void put_integer(struct bytes_writer *out, uint64_t value)
{
    if (value <= 1) {
        bytes_put_u8(out, (uint8_t)value); /* ZeroOp, OneOp */
    } else if (value <= UINT8_MAX) {
        bytes_put_u8(out, OP_BYTE);
        bytes_put_u8(out, (uint8_t)value);
    } else if (value <= UINT16_MAX) {
        bytes_put_u8(out, OP_WORD);
        bytes_put_u16(out, (uint16_t)value);
    } else if (value <= UINT32_MAX) {
        bytes_put_u8(out, OP_DWORD);
        bytes_put_u32(out, (uint32_t)value);
    } else {
        bytes_put_u8(out, OP_QWORD);
        bytes_put_u64(out, value);
    }
}

void aml_name_integer(struct bytes_writer *out, const char *name, uint64_t value)
{
    bytes_put_u8(out, OP_NAME);
    put_name(out, name);
    put_integer(out, value);
}

void aml_name_text(struct bytes_writer *out, const char *name, const char *text)
{
    bytes_put_u8(out, OP_NAME);
    put_name(out, name);
    bytes_put_u8(out, OP_STRING);
    bytes_put(out, text, strlen(text) + 1);
}

static unsigned hex_digit(char c)
{
    return (unsigned)(c <= '9' ? c - '0' : c - 'A' + 10);
}

/* §19.3.4, EISAID: three letters of 5 bits, four digits, stored big-endian. */
void aml_name_eisaid(struct bytes_writer *out, const char *name, const char *id)
{
    ASSERT(strlen(id) == 7);
    uint32_t v = (uint32_t)(id[0] - '@') << 26 | (uint32_t)(id[1] - '@') << 21 | (uint32_t)(id[2] - '@') << 16 |
                 hex_digit(id[3]) << 12 | hex_digit(id[4]) << 8 | hex_digit(id[5]) << 4 | hex_digit(id[6]);
    bytes_put_u8(out, OP_NAME);
    put_name(out, name);
    bytes_put_u8(out, OP_DWORD);
    bytes_put_u32(out, __builtin_bswap32(v));
}

void aml_name_package(struct bytes_writer *out, const char *name, const uint8_t *values, uint8_t count)
{
    bytes_put_u8(out, OP_NAME);
    put_name(out, name);
    bytes_put_u8(out, OP_PACKAGE);
    size_t package = length_begin(out);
    bytes_put_u8(out, count);
    for (unsigned i = 0; i < count; i++)
        put_integer(out, values[i]);
    aml_end(out, package);
}

/* ---- methods ---- */

size_t aml_begin_method(struct bytes_writer *out, const char *name, uint8_t arguments)
{
    bytes_put_u8(out, OP_METHOD);
    size_t at = length_begin(out);
    put_name(out, name);
    bytes_put_u8(out, arguments);
    return at;
}

void aml_port_dwords(struct bytes_writer *out, const char *name, uint16_t port, uint8_t ports,
                     const char *const *dwords, unsigned count)
{
    bytes_put_u8(out, OP_EXTENDED);
    bytes_put_u8(out, OP_REGION);
    put_name(out, name);
    bytes_put_u8(out, SPACE_IO);
    put_integer(out, port);
    put_integer(out, ports);
    bytes_put_u8(out, OP_EXTENDED);
    bytes_put_u8(out, OP_FIELD);
    size_t field = length_begin(out);
    put_name(out, name);
    bytes_put_u8(out, FIELD_DWORDS);
    for (unsigned i = 0; i < count; i++) {
        put_name(out, dwords[i]);
        bytes_put_u8(out, 32); /* bits, as a package length of one byte */
    }
    aml_end(out, field);
}

void aml_load_local0(struct bytes_writer *out, const char *name)
{
    bytes_put_u8(out, OP_STORE);
    put_name(out, name);
    bytes_put_u8(out, OP_LOCAL0);
}

void aml_store_local0(struct bytes_writer *out, const char *name)
{
    bytes_put_u8(out, OP_STORE);
    bytes_put_u8(out, OP_LOCAL0);
    put_name(out, name);
}

void aml_store_integer(struct bytes_writer *out, const char *name, uint64_t value)
{
    bytes_put_u8(out, OP_STORE);
    put_integer(out, value);
    put_name(out, name);
}

size_t aml_begin_if_local0(struct bytes_writer *out, uint64_t mask)
{
    bytes_put_u8(out, OP_IF);
    size_t at = length_begin(out);
    bytes_put_u8(out, OP_AND);
    bytes_put_u8(out, OP_LOCAL0);
    put_integer(out, mask);
    bytes_put_u8(out, 0); /* no target */
    return at;
}

void aml_notify(struct bytes_writer *out, const char *device, uint64_t value)
{
    bytes_put_u8(out, OP_NOTIFY);
    put_name(out, device);
    put_integer(out, value);
}

void aml_call(struct bytes_writer *out, const char *path)
{
    size_t length = strlen(path + 1);
    ASSERT(path[0] == '\\' && length % NAME_BYTES == 0 && length / NAME_BYTES > 2);
    bytes_put_u8(out, (uint8_t)path[0]);
    bytes_put_u8(out, OP_MULTI_NAME);
    bytes_put_u8(out, (uint8_t)(length / NAME_BYTES));
    bytes_put(out, path + 1, length);
}

/* ---- resource descriptors, ACPI 6.5 §6.4 ---- */

void aml_resource_io(struct aml_resources *r, uint16_t port, uint8_t ports)
{
    bytes_put_u8(&r->bytes, 0x47); /* I/O port descriptor, 7 bytes follow */
    bytes_put_u8(&r->bytes, 1);    /* 16-bit decode */
    bytes_put_u16(&r->bytes, port);
    bytes_put_u16(&r->bytes, port);
    bytes_put_u8(&r->bytes, 1);
    bytes_put_u8(&r->bytes, ports);
}

void aml_resource_irq(struct aml_resources *r, uint8_t irq)
{
    bytes_put_u8(&r->bytes, 0x22); /* IRQ descriptor without flags: edge, high, exclusive */
    bytes_put_u16(&r->bytes, (uint16_t)(1u << irq));
}

enum { SPACE_MEMORY = 0, SPACE_PORTS = 1, SPACE_BUS_NUMBERS = 2 };
/* General flags: minimum and maximum fixed, positive decode, produced for the children. */
#define FIXED_PRODUCER 0x0c

/* Word, DWord or QWord address space descriptor (§6.4.3.5). */
static void put_space(struct aml_resources *r, unsigned bytes, uint8_t space, uint8_t type_flags, uint64_t first,
                      uint64_t last)
{
    uint8_t tag = bytes == 2 ? 0x88 : bytes == 4 ? 0x87 : 0x8a;
    uint64_t values[] = {0 /* granularity */, first, last, 0 /* translation */, last - first + 1};
    bytes_put_u8(&r->bytes, tag);
    bytes_put_u16(&r->bytes, (uint16_t)(3 + ARRAY_SIZE(values) * bytes));
    bytes_put_u8(&r->bytes, space);
    bytes_put_u8(&r->bytes, FIXED_PRODUCER);
    bytes_put_u8(&r->bytes, type_flags);
    for (size_t i = 0; i < ARRAY_SIZE(values); i++)
        for (unsigned b = 0; b < bytes; b++)
            bytes_put_u8(&r->bytes, (uint8_t)(values[i] >> (8 * b)));
}

void aml_resource_bus_numbers(struct aml_resources *r, uint16_t first, uint16_t last)
{
    put_space(r, 2, SPACE_BUS_NUMBERS, 0, first, last);
}

void aml_resource_port_window(struct aml_resources *r, uint16_t first, uint16_t last)
{
    put_space(r, 2, SPACE_PORTS, 3 /* the whole range, ISA and not */, first, last);
}

void aml_resource_window32(struct aml_resources *r, uint32_t first, uint32_t last)
{
    put_space(r, 4, SPACE_MEMORY, 1 /* read-write, not cacheable */, first, last);
}

void aml_resource_window64(struct aml_resources *r, uint64_t first, uint64_t last)
{
    put_space(r, 8, SPACE_MEMORY, 1, first, last);
}

void aml_name_resources(struct bytes_writer *out, const char *name, struct aml_resources *r)
{
    bytes_put_u8(&r->bytes, 0x79); /* end tag; a check sum of 0 counts as right */
    bytes_put_u8(&r->bytes, 0);
    bytes_put_u8(out, OP_NAME);
    put_name(out, name);
    bytes_put_u8(out, OP_BUFFER);
    size_t buffer = length_begin(out);
    put_integer(out, r->bytes.size);
    bytes_put(out, r->bytes.data, r->bytes.size);
    aml_end(out, buffer);
    bytes_writer_finish(&r->bytes);
}
