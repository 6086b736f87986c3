/* Writing AML (ACPI 6.5 §20.2) by hand: a block is begun and ended, its length is filled in at the end.
 *
 *   size_t device = aml_begin_device(&out, "COM1");
 *   aml_name_eisaid(&out, "_HID", "PNP0501");
 *   aml_end(&out, device);
 *
 * Names are NameSegs of four characters; shorter ones are the caller's mistake. */
#ifndef COMPUTE_VMM_AML_H
#define COMPUTE_VMM_AML_H

#include "common/bytes.h"

/* Begin a Scope(\_SB) or Device(name); the result goes to aml_end. @path may be "\\_SB_". */
size_t aml_begin_scope(struct bytes_writer *out, const char *path);
size_t aml_begin_device(struct bytes_writer *out, const char *name);
void aml_end(struct bytes_writer *out, size_t begun);

void aml_name_integer(struct bytes_writer *out, const char *name, uint64_t value);
/* @id like "PNP0A03" (EISA id: three letters, four hexadecimal digits) */
void aml_name_eisaid(struct bytes_writer *out, const char *name, const char *id);
/* Text, at most 62 characters: an id that is none of EISA's form, such as "QEMU0001". */
void aml_name_text(struct bytes_writer *out, const char *name, const char *text);
/* Package of @count integers below 256. */
void aml_name_package(struct bytes_writer *out, const char *name, const uint8_t *values, uint8_t count);

/* Method(@name, @arguments); not serialized. To aml_end. */
size_t aml_begin_method(struct bytes_writer *out, const char *name, uint8_t arguments);
/* OperationRegion(@name, SystemIO, @port, @ports) and, by Field, a name for each of its first @count dwords. */
void aml_port_dwords(struct bytes_writer *out, const char *name, uint16_t port, uint8_t ports,
                     const char *const *dwords, unsigned count);
/* Statements in a method. Local0 = @name; @name = Local0; @name = @value; If (Local0 & @mask) ... aml_end;
 * Notify(@device, @value); a call of @path ("\\_SB_PCI0PCNT": whole segments of four characters, without dots). */
void aml_load_local0(struct bytes_writer *out, const char *name);
void aml_store_local0(struct bytes_writer *out, const char *name);
void aml_store_integer(struct bytes_writer *out, const char *name, uint64_t value);
size_t aml_begin_if_local0(struct bytes_writer *out, uint64_t mask);
void aml_notify(struct bytes_writer *out, const char *device, uint64_t value);
void aml_call(struct bytes_writer *out, const char *path);

/* Name(@name, ResourceTemplate() {...}): descriptors between, ended by aml_end_resources. */
struct aml_resources {
    struct bytes_writer bytes;
};
void aml_resource_io(struct aml_resources *r, uint16_t port, uint8_t ports);
void aml_resource_irq(struct aml_resources *r, uint8_t irq); /* ISA: edge, active high */
void aml_resource_bus_numbers(struct aml_resources *r, uint16_t first, uint16_t last);
/* Windows that a bridge hands down (ResourceProducer). @last is inclusive. */
void aml_resource_port_window(struct aml_resources *r, uint16_t first, uint16_t last);
void aml_resource_window32(struct aml_resources *r, uint32_t first, uint32_t last);
void aml_resource_window64(struct aml_resources *r, uint64_t first, uint64_t last);
/* Writes the name and the template with its end tag, and releases @r. */
void aml_name_resources(struct bytes_writer *out, const char *name, struct aml_resources *r);

#endif
