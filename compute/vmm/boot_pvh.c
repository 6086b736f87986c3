/* PVH boot: an ELF with the note XEN_ELFNOTE_PHYS32_ENTRY is entered in 32-bit protected mode, EBX pointing to a
 * hvm_start_info (Xen, docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h, version 1). */
#include <elf.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "common/bytes.h"
#include "compute/vmm/boot.h"
#include "compute/vmm/pc1_layout.h"

#define NOTE_PHYS32_ENTRY 18u
#define START_INFO_MAGIC 0x336ec578u
#define SEGMENTS_MAX 64u
#define NOTES_BYTES_MAX 65536u

/* The part of a program header that loading needs, the same for both classes of ELF. */
struct segment {
    uint32_t type;
    uint64_t offset, address, file_size, memory_size;
};

struct elf_head {
    bool is64;
    uint64_t table; /* file offset of the program headers */
    unsigned count, entry_size;
};

static int elf_head_read(const struct boot_image *image, struct elf_head *ret_head, struct error *err)
{
    uint8_t ident[EI_NIDENT];
    if (!boot_image_read(image, 0, ident, sizeof(ident)) || ident[EI_DATA] != ELFDATA2LSB)
        return error_set(err, -EINVAL, ERROR_INVALID, "the kernel is not a little-endian ELF");
    if (ident[EI_CLASS] == ELFCLASS64) {
        Elf64_Ehdr e;
        if (!boot_image_read(image, 0, &e, sizeof(e)) || e.e_phentsize != sizeof(Elf64_Phdr))
            return error_set(err, -EINVAL, ERROR_INVALID, "the kernel's ELF header is damaged");
        *ret_head = (struct elf_head){true, e.e_phoff, e.e_phnum, e.e_phentsize};
    } else {
        Elf32_Ehdr e;
        if (!boot_image_read(image, 0, &e, sizeof(e)) || e.e_phentsize != sizeof(Elf32_Phdr))
            return error_set(err, -EINVAL, ERROR_INVALID, "the kernel's ELF header is damaged");
        *ret_head = (struct elf_head){false, e.e_phoff, e.e_phnum, e.e_phentsize};
    }
    if (ret_head->count == 0 || ret_head->count > SEGMENTS_MAX)
        return error_set(err, -EINVAL, ERROR_INVALID, "the kernel's ELF has %u segments; 1 to %u are taken",
                         ret_head->count, SEGMENTS_MAX);
    return 0;
}

static bool segment_read(const struct boot_image *image, const struct elf_head *head, unsigned index,
                         struct segment *ret_segment)
{
    uint64_t at = head->table + (uint64_t)index * head->entry_size;
    if (at < head->table)
        return false;
    if (head->is64) {
        Elf64_Phdr p;
        if (!boot_image_read(image, at, &p, sizeof(p)))
            return false;
        *ret_segment = (struct segment){p.p_type, p.p_offset, p.p_paddr, p.p_filesz, p.p_memsz};
    } else {
        Elf32_Phdr p;
        if (!boot_image_read(image, at, &p, sizeof(p)))
            return false;
        *ret_segment = (struct segment){p.p_type, p.p_offset, p.p_paddr, p.p_filesz, p.p_memsz};
    }
    return true;
}

/* Walk the notes of one segment. */
static bool entry_note_find(const struct boot_image *image, const struct segment *s, uint32_t *ret_entry)
{
    if (s->file_size == 0 || s->file_size > NOTES_BYTES_MAX)
        return false;
    CLEANUP_FREE uint8_t *notes = malloc(s->file_size);
    if (!notes || !boot_image_read(image, s->offset, notes, s->file_size))
        return false;
    struct bytes_reader r = bytes_reader(notes, s->file_size);
    while (bytes_left(&r) >= 12) {
        uint32_t name_size = bytes_get_u32(&r), size = bytes_get_u32(&r), type = bytes_get_u32(&r);
        const char *name = bytes_get(&r, ((size_t)name_size + 3) & ~(size_t)3);
        const uint8_t *value = bytes_get(&r, ((size_t)size + 3) & ~(size_t)3);
        if (!name || !value)
            return false;
        if (type == NOTE_PHYS32_ENTRY && name_size == 4 && memcmp(name, "Xen", 4) == 0 && size >= 4) {
            struct bytes_reader v = bytes_reader(value, size);
            *ret_entry = bytes_get_u32(&v);
            return true;
        }
    }
    return false;
}

static int segments_load(struct guest_memory *m, const struct boot_image *image, uint32_t *ret_entry,
                         uint64_t *ret_end, struct error *err)
{
    struct elf_head head = {0};
    bool entry_found = false;
    int code = elf_head_read(image, &head, err);
    *ret_end = PC1_HIGH_START;
    for (unsigned i = 0; code == 0 && i < head.count; i++) {
        struct segment s;
        if (!segment_read(image, &head, i, &s))
            return error_set(err, -EINVAL, ERROR_INVALID, "the kernel's ELF is cut short in its program headers");
        if (s.type == PT_NOTE && !entry_found)
            entry_found = entry_note_find(image, &s, ret_entry);
        if (s.type != PT_LOAD)
            continue;
        code = boot_copy(m, s.address, image, s.offset, s.file_size, s.memory_size, err);
        if (code == 0 && s.memory_size)
            *ret_end = MAX(*ret_end, s.address + s.memory_size);
    }
    if (code == 0 && !entry_found)
        return error_set(
            err, -ENOEXEC, ERROR_NOT_SUPPORTED,
            "the kernel is an ELF without a PVH entry note; build it with CONFIG_PVH, or give its bzImage");
    return code;
}

static void start_info_write(struct guest_memory *m, const struct boot_source *source, uint64_t initrd)
{
    struct boot_map_entry map[BOOT_MAP_ENTRIES_MAX];
    size_t map_count = boot_memory_map(m, map);
    struct bytes_writer w = {0};
    uint64_t modules = PC1_START_INFO + 56, entries = modules + 32;
    bytes_put_u32(&w, START_INFO_MAGIC);
    bytes_put_u32(&w, 1); /* version */
    bytes_put_u32(&w, 0); /* flags */
    bytes_put_u32(&w, initrd ? 1 : 0);
    bytes_put_u64(&w, initrd ? modules : 0);
    bytes_put_u64(&w, PC1_CMDLINE);
    bytes_put_u64(&w, source->rsdp);
    bytes_put_u64(&w, entries);
    bytes_put_u32(&w, (uint32_t)map_count);
    bytes_put_u32(&w, 0);
    bytes_put_u64(&w, initrd); /* the module: address, size, its command line, reserved */
    bytes_put_u64(&w, source->initrd.size);
    bytes_put_u64(&w, 0);
    bytes_put_u64(&w, 0);
    for (size_t i = 0; i < map_count; i++) {
        bytes_put_u64(&w, map[i].address);
        bytes_put_u64(&w, map[i].size);
        bytes_put_u32(&w, map[i].type);
        bytes_put_u32(&w, 0);
    }
    ASSERT(memory_write(m, PC1_START_INFO, w.data, w.size));
    bytes_writer_finish(&w);
}

int boot_pvh_load(struct guest_memory *m, const struct boot_source *source, struct boot_entry *ret_entry,
                  struct error *err)
{
    uint32_t entry = 0;
    uint64_t end = 0, initrd = 0;
    int code = segments_load(m, &source->kernel, &entry, &end, err);
    if (code == 0)
        code = boot_initrd_load(m, &source->initrd, end, UINT32_MAX, &initrd, err);
    if (code == 0)
        code = boot_cmdline_write(m, source->cmdline, BOOT_CMDLINE_MAX, err);
    if (code < 0)
        return code;
    start_info_write(m, source, initrd);
    *ret_entry = (struct boot_entry){.mode = BOOT_PROTECTED, .rip = entry, .rbx = PC1_START_INFO};
    return 0;
}
