/* SMBIOS tables of machine type pc-1 (DMTF DSP0134, version 3.0): what the guest's tools show of the machine, and
 * where its system finds the VM's identity: the system's UUID and serial number are the VM's id. Pure.
 *
 * Direct boot writes them to PC1_SMBIOS, the entry point first. Firmware gets tables and entry point as files of
 * fw_cfg, puts them where it likes and adds the structure that names the firmware (type 0). */
#ifndef COMPUTE_VMM_SMBIOS_H
#define COMPUTE_VMM_SMBIOS_H

#include "common/bytes.h"
#include "compute/vmm/memory.h"

#define SMBIOS_ANCHOR_BYTES 24u

struct smbios_options {
    const char *vm_id;  /* 8-4-4-4-12 hexadecimal digits, or NULL: a VM without identity; borrowed */
    bool has_firmware;  /* type 0 is left to the firmware */
    unsigned vcpus;     /* all in one socket */
    uint64_t processor; /* CPUID leaf 1: EAX, and EDX above it */
    const struct guest_memory *memory; /* sizes only */
};

/* Append the structures to @out (empty). */
void smbios_build(const struct smbios_options *options, struct bytes_writer *out);
/* The entry point of @size bytes of structures at @address. */
void smbios_anchor(uint64_t address, size_t size, uint8_t ret_anchor[SMBIOS_ANCHOR_BYTES]);

#endif
