/* The root pointer is a file of its own, which goes where old systems search for it; the rest begins with the FACS,
 * which wants an alignment of 64. So the tables are built at address 0 and cut behind the root pointer. */
#include "compute/vmm/acpi_loader.h"

#include <string.h>

enum { COMMAND_ALLOCATE = 1, COMMAND_ADD_POINTER = 2, COMMAND_ADD_CHECKSUM = 3, COMMAND_BYTES = 128 };
enum { ZONE_HIGH = 1, ZONE_FSEG = 2, FILE_NAME_BYTES = 56 };
enum { RSDP_BYTES = 36, RSDP_XSDT = 24, TABLES_AT = 64, TABLE_LENGTH = 4, TABLE_CHECKSUM = 9, TABLE_HEADER = 36 };
enum { FADT_FACS = 36, FADT_DSDT = 40, FADT_X_FACS = 132, FADT_X_DSDT = 140 };
static const char rsdp_name[] = "etc/acpi/rsdp", tables_name[] = "etc/acpi/tables";

/* ---- commands ---- */

static size_t command_begin(struct bytes_writer *script, uint32_t command)
{
    size_t at = script->size;
    bytes_put_u32(script, command);
    return at;
}

static void put_name(struct bytes_writer *script, const char *name)
{
    char field[FILE_NAME_BYTES] = {0};
    memcpy(field, name, strlen(name));
    bytes_put(script, field, sizeof(field));
}

static void command_end(struct bytes_writer *script, size_t begun)
{
    while (script->size < begun + COMMAND_BYTES)
        bytes_put_u8(script, 0);
}

static void allocate(struct bytes_writer *script, const char *file, uint32_t align, uint8_t zone)
{
    size_t begun = command_begin(script, COMMAND_ALLOCATE);
    put_name(script, file);
    bytes_put_u32(script, align);
    bytes_put_u8(script, zone);
    command_end(script, begun);
}

static void checksum_add(struct bytes_writer *script, const char *file, uint32_t at, uint32_t start, uint32_t length)
{
    size_t begun = command_begin(script, COMMAND_ADD_CHECKSUM);
    put_name(script, file);
    bytes_put_u32(script, at);
    bytes_put_u32(script, start);
    bytes_put_u32(script, length);
    command_end(script, begun);
}

/* ---- walking ---- */

static uint64_t get(const uint8_t *data, size_t at, unsigned size)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)data[at + i] << (8 * i);
    return value;
}

/* The pointer of @size bytes at @at of @file, if there is one: made relative to the tables' file. Returns that. */
static uint64_t pointer_add(struct acpi_files *f, struct bytes_writer *file, const char *name, size_t at,
                            unsigned size)
{
    uint64_t value = get(file->data, at, size);
    if (value == 0)
        return 0;
    ASSERT(value >= TABLES_AT && value - TABLES_AT < f->tables.size);
    value -= TABLES_AT;
    for (unsigned i = 0; i < size; i++)
        file->data[at + i] = (uint8_t)(value >> (8 * i));
    size_t begun = command_begin(&f->script, COMMAND_ADD_POINTER);
    put_name(&f->script, name);
    put_name(&f->script, tables_name);
    bytes_put_u32(&f->script, (uint32_t)at);
    bytes_put_u8(&f->script, (uint8_t)size);
    command_end(&f->script, begun);
    return value;
}

/* The check sum is zeroed first: one of the two who run the script wants it so. */
static void table_checksum_add(struct acpi_files *f, uint64_t at)
{
    f->tables.data[at + TABLE_CHECKSUM] = 0;
    checksum_add(&f->script, tables_name, (uint32_t)at + TABLE_CHECKSUM, (uint32_t)at,
                 (uint32_t)get(f->tables.data, at + TABLE_LENGTH, 4));
}

static void fadt_walk(struct acpi_files *f, uint64_t at)
{
    pointer_add(f, &f->tables, tables_name, at + FADT_FACS, 4); /* the FACS has no check sum */
    pointer_add(f, &f->tables, tables_name, at + FADT_X_FACS, 8);
    uint64_t dsdt = pointer_add(f, &f->tables, tables_name, at + FADT_DSDT, 4);
    pointer_add(f, &f->tables, tables_name, at + FADT_X_DSDT, 8);
    table_checksum_add(f, dsdt);
}

static void tables_walk(struct acpi_files *f)
{
    uint64_t xsdt = pointer_add(f, &f->rsdp, rsdp_name, RSDP_XSDT, 8);
    uint64_t end = xsdt + get(f->tables.data, xsdt + TABLE_LENGTH, 4);
    for (uint64_t at = xsdt + TABLE_HEADER; at < end; at += 8) {
        uint64_t table = pointer_add(f, &f->tables, tables_name, at, 8);
        if (memcmp(f->tables.data + table, "FACP", 4) == 0)
            fadt_walk(f, table);
        table_checksum_add(f, table);
    }
    table_checksum_add(f, xsdt);
    f->rsdp.data[8] = f->rsdp.data[32] = 0;
    checksum_add(&f->script, rsdp_name, 8, 0, 20); /* the first 20 bytes are what revision 0 had */
    checksum_add(&f->script, rsdp_name, 32, 0, RSDP_BYTES);
}

int acpi_files_build(const struct acpi_options *options, struct acpi_files *ret_files, struct error *err)
{
    struct bytes_writer all = {0};
    struct acpi_files files = {0};
    ASSERT(options->address == 0);
    int code = acpi_build(options, &all, err);
    if (code == 0) {
        bytes_put(&files.rsdp, all.data, RSDP_BYTES);
        bytes_put(&files.tables, all.data + TABLES_AT, all.size - TABLES_AT);
        allocate(&files.script, rsdp_name, 16, ZONE_FSEG);
        allocate(&files.script, tables_name, 64, ZONE_HIGH);
        tables_walk(&files);
        *ret_files = files;
    }
    bytes_writer_finish(&all);
    return code;
}

void acpi_files_finish(struct acpi_files *f)
{
    bytes_writer_finish(&f->rsdp);
    bytes_writer_finish(&f->tables);
    bytes_writer_finish(&f->script);
}
