/* The ACPI tables of machine type pc-1: RSDP, XSDT, FADT, FACS, MADT and a DSDT with the root bridge, COM1, the clock
 * and \_S5. MSI-X only, so no interrupt routing table (_PRT). */
#ifndef COMPUTE_VMM_ACPI_H
#define COMPUTE_VMM_ACPI_H

#include "common/bytes.h"
#include "common/error.h"

struct acpi_options {
    uint64_t address;  /* where the tables will lie: the RSDP is the first byte; 16-byte aligned, below 4 GiB */
    uint64_t size_max; /* bytes there */
    unsigned vcpus;    /* APIC ids 0 to vcpus - 1 */
    uint64_t window32; /* first byte of the space for BARs below 4 GiB */
    uint64_t window64; /* first byte and size of the space for 64-bit BARs */
    uint64_t window64_bytes;
};

/* Appends the tables to @out (empty). -ENOSPC where they do not fit. */
int acpi_build(const struct acpi_options *options, struct bytes_writer *out, struct error *err);

#endif
