/* Direct boot: a kernel from the host's files straight into guest memory, without firmware.
 *
 * boot_load() looks at the kernel: an ELF goes the PVH way (boot_pvh.c), a bzImage the Linux 64-bit way
 * (boot_bzimage.c); a developer may ask for multiboot (boot_multiboot.c). It writes guest memory and says how the first processor begins. Every number in an image is
 * checked before use: images come from users. Called again for each reset. */
#ifndef COMPUTE_VMM_BOOT_H
#define COMPUTE_VMM_BOOT_H

#include "common/base.h"
#include "common/error.h"
#include "compute/vmm/memory.h"

#define BOOT_CMDLINE_MAX 2047u /* bytes without the terminator; as in the schema */
#define BOOT_MAP_ENTRIES_MAX 8u

/* A file, or bytes in memory for tests. */
struct boot_image {
    int fd; /* -1: `data` holds it */
    const uint8_t *data;
    uint64_t size;
};
/* Opens @path; the caller closes image->fd. */
int boot_image_open(const char *path, struct boot_image *ret_image, struct error *err);
/* Exactly @size bytes from @offset; false past the end or when the file does not give them. */
bool boot_image_read(const struct boot_image *image, uint64_t offset, void *to, uint64_t size);

struct boot_source {
    struct boot_image kernel, initrd; /* initrd.size 0: none */
    const char *cmdline;
    uint64_t rsdp; /* guest-physical address of the ACPI root pointer */
    /* For boot_multiboot_load alone: */
    bool multiboot;       /* boot_load goes that way, whatever the image looks like */
    bool has_test_device; /* for the environment that it makes up when there is no initrd */
    unsigned vcpus;
};

enum boot_mode {
    BOOT_PROTECTED,    /* 32-bit flat segments, no paging */
    BOOT_RESET_VECTOR, /* real mode at the reset vector, as the processor begins by itself: firmware */
    BOOT_LONG,         /* 64-bit, identity paging of 4 GiB at PC1_PAGE_TABLES, descriptors at PC1_GDT */
};
/* How the boot processor begins. */
struct boot_entry {
    enum boot_mode mode;
    uint64_t rip, rsi, rax, rbx, rsp;
};

int boot_load(struct guest_memory *m, const struct boot_source *source, struct boot_entry *ret_entry,
              struct error *err);

/* The ways, and what they share; for boot_load and tests. */
int boot_pvh_load(struct guest_memory *m, const struct boot_source *source, struct boot_entry *ret_entry,
                  struct error *err);
int boot_bzimage_load(struct guest_memory *m, const struct boot_source *source, struct boot_entry *ret_entry,
                      struct error *err);
/* Multiboot 1, for test programs; the initrd, if any, is their environment. */
int boot_multiboot_load(struct guest_memory *m, const struct boot_source *source, struct boot_entry *ret_entry,
                        struct error *err);

struct boot_map_entry {
    uint64_t address, size;
    uint32_t type; /* 1 usable, 2 reserved: the numbers of e820 and of PVH alike */
};
/* What lies where, ascending; returns the number of entries. */
size_t boot_memory_map(const struct guest_memory *m, struct boot_map_entry entries[BOOT_MAP_ENTRIES_MAX]);
/* Load the initrd as high as @highest allows (last usable byte), above @lowest; *ret_address is 0 without one. */
int boot_initrd_load(struct guest_memory *m, const struct boot_image *initrd, uint64_t lowest, uint64_t highest,
                     uint64_t *ret_address, struct error *err);
/* Write the command line to PC1_CMDLINE, refusing one of more than @max bytes. */
int boot_cmdline_write(struct guest_memory *m, const char *cmdline, uint64_t max, struct error *err);
/* @size bytes of @image from @offset to guest memory at @gpa, then zeros up to @memory_size. */
int boot_copy(struct guest_memory *m, uint64_t gpa, const struct boot_image *image, uint64_t offset, uint64_t size,
              uint64_t memory_size, struct error *err);

#endif
