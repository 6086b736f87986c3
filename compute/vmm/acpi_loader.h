/* ACPI tables for firmware: the tables of acpi.h as the fw_cfg files etc/acpi/rsdp, etc/acpi/tables and
 * etc/table-loader. The last is a script (QEMU hw/acpi/bios-linker-loader): where to put the files, which bytes in
 * them point to others, and which are check sums. Made by walking finished tables, so it needs no help of theirs. */
#ifndef COMPUTE_VMM_ACPI_LOADER_H
#define COMPUTE_VMM_ACPI_LOADER_H

#include "common/bytes.h"
#include "compute/vmm/acpi.h"

struct acpi_files {
    struct bytes_writer rsdp, tables, script; /* all released by acpi_files_finish */
};

/* @options->address must be 0: pointers are relative. */
int acpi_files_build(const struct acpi_options *options, struct acpi_files *ret_files, struct error *err);
void acpi_files_finish(struct acpi_files *files);

#endif
