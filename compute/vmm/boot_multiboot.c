/* Multiboot 1 (Multiboot Specification 0.6.96): a 32-bit ELF for i386 is entered in flat 32-bit protected mode, EAX
 * holding the magic and EBX pointing to the information structure. A developer's way in, for freestanding test
 * programs: unlike PVH it may load below 1 MiB, and its one module is text of the form "NAME=VALUE\n", the program's
 * environment: the file given as initrd, or words on the machine where there is none.
 *
 *   PC1_MULTIBOOT   information (88 bytes), module list (16), memory map, environment
 *   PC1_CMDLINE     command line, its first word the program's name */
#include <elf.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "compute/vmm/boot.h"
#include "compute/vmm/pc1_layout.h"

#define HEADER_MAGIC 0x1badb002u /* in the image */
#define LOADER_MAGIC 0x2badb002u /* in EAX at entry */
#define HEADER_SEARCH_BYTES 8192u
#define SEGMENTS_MAX 64u
#define ENVIRONMENT_MAX 16384u
enum { FLAG_MEMORY = 1, FLAG_CMDLINE = 4, FLAG_MODULES = 8, FLAG_MAP = 64 };
enum { INFO_BYTES = 88, MODULE_BYTES = 16, MAP_ENTRY_BYTES = 24 };

/* §3.1.1: magic, flags and checksum, aligned to 4 bytes within the first 8192; the three add up to zero. */
static bool header_is_there(const struct boot_image *image)
{
    uint8_t head[HEADER_SEARCH_BYTES];
    uint64_t size = MIN(image->size, sizeof(head));
    if (!boot_image_read(image, 0, head, size))
        return false;
    for (uint64_t at = 0; at + 12 <= size; at += 4) {
        struct bytes_reader r = bytes_reader(head + at, 12);
        uint32_t magic = bytes_get_u32(&r), flags = bytes_get_u32(&r), checksum = bytes_get_u32(&r);
        if (magic == HEADER_MAGIC && magic + flags + checksum == 0)
            return true;
    }
    return false;
}

/* What the loader itself writes below 1 MiB must stay clear of the program. */
static bool range_is_free(const Elf32_Phdr *p)
{
    static const struct {
        uint64_t start, end;
    } taken[] = {{PC1_CMDLINE, PC1_CMDLINE + BOOT_CMDLINE_MAX + 1}, {PC1_MULTIBOOT, PC1_HIGH_START}};
    uint64_t start = p->p_paddr, end = start + p->p_memsz;
    for (size_t i = 0; i < ARRAY_SIZE(taken); i++)
        if (start < taken[i].end && end > taken[i].start)
            return false;
    return true;
}

static int segment_load(struct guest_memory *m, const struct boot_image *image, const Elf32_Phdr *p,
                        struct error *err)
{
    if (p->p_type != PT_LOAD || p->p_memsz == 0)
        return 0;
    uint8_t *to = memory_at(m, p->p_paddr, p->p_memsz);
    if (!to || !range_is_free(p))
        return error_set(err, -ENOMEM, ERROR_INVALID,
                         "the multiboot program wants %" PRIu32 " bytes at %#" PRIx32
                         ", where the VM has no free memory; give it more",
                         p->p_memsz, p->p_paddr);
    if (p->p_filesz > p->p_memsz || !boot_image_read(image, p->p_offset, to, p->p_filesz))
        return error_set(err, -EINVAL, ERROR_INVALID, "the multiboot program is cut short");
    memset(to + p->p_filesz, 0, p->p_memsz - p->p_filesz);
    memory_mark_dirty(m, p->p_paddr, p->p_memsz);
    return 0;
}

static int program_load(struct guest_memory *m, const struct boot_image *image, uint32_t *ret_entry,
                        struct error *err)
{
    Elf32_Ehdr e;
    if (!boot_image_read(image, 0, &e, sizeof(e)) || memcmp(e.e_ident, ELFMAG, SELFMAG) != 0 ||
        e.e_ident[EI_CLASS] != ELFCLASS32 || e.e_ident[EI_DATA] != ELFDATA2LSB || e.e_machine != EM_386 ||
        e.e_phentsize != sizeof(Elf32_Phdr) || e.e_phnum == 0 || e.e_phnum > SEGMENTS_MAX)
        return error_set(err, -ENOEXEC, ERROR_NOT_SUPPORTED,
                         "--multiboot takes a 32-bit i386 ELF with 1 to %u segments, and this file is none",
                         SEGMENTS_MAX);
    if (!header_is_there(image))
        return error_set(err, -ENOEXEC, ERROR_NOT_SUPPORTED, "the ELF has no multiboot header in its first %u bytes",
                         HEADER_SEARCH_BYTES);
    int code = 0;
    for (unsigned i = 0; code == 0 && i < e.e_phnum; i++) {
        Elf32_Phdr p;
        if (!boot_image_read(image, (uint64_t)e.e_phoff + i * sizeof(p), &p, sizeof(p)))
            return error_set(err, -EINVAL, ERROR_INVALID, "the multiboot program is cut short in its headers");
        code = segment_load(m, image, &p, err);
    }
    *ret_entry = e.e_entry;
    return code;
}

/* The module's text; @to has room for ENVIRONMENT_MAX bytes. */
static int environment_read(const struct guest_memory *m, const struct boot_source *source, char *to,
                            uint32_t *ret_size, struct error *err)
{
    const struct boot_image *file = &source->initrd;
    if (file->size == 0) {
        *ret_size = (uint32_t)snprintf(to, ENVIRONMENT_MAX, "NR_CPUS=%u\nMEMSIZE=%" PRIu64 "\nMEMLIMIT=0\nTEST_DEVICE=%d\n",
                                       source->vcpus, m->size_bytes >> 20, source->has_test_device);
        return 0;
    }
    if (file->size > ENVIRONMENT_MAX)
        return error_set_field(err, -E2BIG, ERROR_INVALID, "/initrd",
                               "the environment of a multiboot program has at most %u bytes, not %" PRIu64,
                               ENVIRONMENT_MAX, file->size);
    if (!boot_image_read(file, 0, to, file->size))
        return error_set_field(err, -EIO, ERROR_INVALID, "/initrd", "the environment cannot be read");
    *ret_size = (uint32_t)file->size;
    return 0;
}

/* §3.3; fields that no flag announces are zero. */
static void info_write(struct guest_memory *m, const char *environment, uint32_t environment_bytes)
{
    struct boot_map_entry map[BOOT_MAP_ENTRIES_MAX];
    uint32_t map_count = (uint32_t)boot_memory_map(m, map);
    uint32_t modules = PC1_MULTIBOOT + INFO_BYTES, entries = modules + MODULE_BYTES;
    uint32_t text = entries + map_count * MAP_ENTRY_BYTES;
    struct bytes_writer w = {0};
    bytes_put_u32(&w, FLAG_MEMORY | FLAG_CMDLINE | FLAG_MODULES | FLAG_MAP);
    bytes_put_u32(&w, (uint32_t)(PC1_LOW_END >> 10));
    bytes_put_u32(&w, (uint32_t)((m->regions[0].size - PC1_HIGH_START) >> 10)); /* from 1 MiB to the first hole */
    bytes_put_u32(&w, 0);                                                       /* boot device */
    bytes_put_u32(&w, PC1_CMDLINE);
    bytes_put_u32(&w, 1);
    bytes_put_u32(&w, modules);
    for (unsigned i = 0; i < 4; i++)
        bytes_put_u32(&w, 0); /* symbols */
    bytes_put_u32(&w, map_count * MAP_ENTRY_BYTES);
    bytes_put_u32(&w, entries);
    while (w.size < INFO_BYTES)
        bytes_put_u32(&w, 0);
    bytes_put_u32(&w, text);
    bytes_put_u32(&w, text + environment_bytes);
    bytes_put_u32(&w, 0);
    bytes_put_u32(&w, 0);
    for (uint32_t i = 0; i < map_count; i++) {
        bytes_put_u32(&w, MAP_ENTRY_BYTES - 4); /* the size field does not count itself */
        bytes_put_u64(&w, map[i].address);
        bytes_put_u64(&w, map[i].size);
        bytes_put_u32(&w, map[i].type);
    }
    bytes_put(&w, environment, environment_bytes);
    ASSERT(memory_write(m, PC1_MULTIBOOT, w.data, w.size));
    bytes_writer_finish(&w);
}

int boot_multiboot_load(struct guest_memory *m, const struct boot_source *source, struct boot_entry *ret_entry,
                        struct error *err)
{
    uint32_t entry = 0, environment_bytes = 0;
    CLEANUP_FREE char *environment = xcalloc(1, ENVIRONMENT_MAX), *cmdline = xcalloc(1, BOOT_CMDLINE_MAX + 16);
    int code = program_load(m, &source->kernel, &entry, err);
    if (code == 0)
        code = environment_read(m, source, environment, &environment_bytes, err);
    if (code == 0) {
        snprintf(cmdline, BOOT_CMDLINE_MAX + 16, "program %s", source->cmdline);
        code = boot_cmdline_write(m, cmdline, BOOT_CMDLINE_MAX, err);
    }
    if (code < 0)
        return code;
    info_write(m, environment, environment_bytes);
    *ret_entry = (struct boot_entry){
        .mode = BOOT_PROTECTED, .rip = entry, .rax = LOADER_MAGIC, .rbx = PC1_MULTIBOOT};
    return 0;
}
