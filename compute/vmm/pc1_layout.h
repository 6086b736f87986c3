/* Where things are on machine type pc-1. Part of the machine type: what a guest may have seen never moves. */
#ifndef COMPUTE_VMM_PC1_LAYOUT_H
#define COMPUTE_VMM_PC1_LAYOUT_H

#include "compute/vmm/memory.h"

/* Guest-physical memory. Below 1 MiB: what direct boot leaves for the kernel. */
#define PC1_GDT 0x500ull
#define PC1_START_INFO 0x6000ull  /* PVH: hvm_start_info, memory map and module list */
#define PC1_ZERO_PAGE 0x7000ull   /* Linux: boot_params */
#define PC1_PAGE_TABLES 0x9000ull /* long mode entry: 6 pages that map 4 GiB one to one */
#define PC1_CMDLINE 0x20000ull
#define PC1_MULTIBOOT 0x90000ull  /* multiboot: information, map and environment; developers only */
#define PC1_LOW_END 0x9fc00ull /* usable memory below the extended BIOS data area */
#define PC1_ACPI 0xe0000ull    /* RSDP and tables: within the range that every system searches */
#define PC1_ACPI_END 0xf0000ull
#define PC1_SMBIOS 0xf0000ull  /* SMBIOS entry point and tables: where it is searched for begins here */
#define PC1_SMBIOS_END 0x100000ull
#define PC1_HIGH_START 0x100000ull /* 1 MiB: kernels */

#define PC1_WINDOW32 0xc0000000ull /* BARs below 4 GiB */
#define PC1_WINDOW32_LOWEST 0x80000000ull /* where firmware may begin with them, if memory ends before */
#define PC1_WINDOW32_END 0xfec00000ull
#define PC1_IOAPIC 0xfec00000ull
#define PC1_LAPIC 0xfee00000ull
#define PC1_WINDOW64_BYTES 0x1000000000ull /* 64 GiB for 64-bit BARs, aligned, above all memory */
/* First byte of that window for a machine whose memory ends at @memory_end. */
static inline uint64_t pc1_window64(uint64_t memory_end)
{
    uint64_t from = MAX(memory_end, MEMORY_HOLE_END);
    return (from + PC1_WINDOW64_BYTES - 1) & ~(PC1_WINDOW64_BYTES - 1);
}

/* Ports */
enum {
    PC1_PORT_I8042_DATA = 0x60,
    PC1_PORT_I8042 = 0x64,
    PC1_PORT_CMOS = 0x70,
    PC1_PORT_SERIAL0 = 0x3f8,
    PC1_PORT_PVPANIC = 0x505,
    PC1_PORT_PM = 0x600,      /* PM1a event; control at +4; timer at +8 */
    PC1_PORT_PM_BYTES = 0x40, /* with what follows of it: all that the PCI function decodes, as Linux checks */
    PC1_PORT_GPE = 0x610,     /* status, enable: 16 bits each */
    PC1_PORT_PCIHP = 0x620,
    PC1_PORT_PCIHP_BYTES = 0x10,
    PC1_PORT_PM_CONTROL = PC1_PORT_PM + 4,
    PC1_PORT_PM_TIMER = PC1_PORT_PM + 8,
    PC1_PORT_RESET = 0xcf9,
    PC1_PORTS_BARS = 0xc000, /* port BARs from here on */
};
/* Lines (GSIs) */
enum { PC1_IRQ_SERIAL0 = 4, PC1_IRQ_RTC = 8, PC1_IRQ_SCI = 9 };
/* General purpose events */
enum { PC1_GPE_PCIHP = 1 };
/* PCI slots: 0 host bridge, 1 ISA bridge and power management, devices from here on */
enum { PC1_SLOT_DEVICES = 2 };
#define PC1_SLEEP_TYPE_S5 5u /* value of SLP_TYP that powers off, as \_S5 says */

#endif
