/* Linux's own boot protocol for x86, entered at its 64-bit entry (kernel Documentation/arch/x86/boot.rst and
 * zero-page.rst): setup header copied into a zero page, RSI pointing to it, identity paging on. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "compute/vmm/boot.h"
#include "compute/vmm/pc1_layout.h"

/* Offsets in the zero page; those from 0x1f1 on are the file's setup header as well. */
enum {
    ACPI_RSDP = 0x070,
    E820_COUNT = 0x1e8,
    SETUP_SECTS = 0x1f1,
    BOOT_FLAG = 0x1fe,
    HEADER_MAGIC = 0x202,
    HEADER_SIZE_BYTE = 0x201, /* the header ends at 0x202 + this byte */
    VERSION = 0x206,
    TYPE_OF_LOADER = 0x210,
    LOADFLAGS = 0x211,
    RAMDISK_IMAGE = 0x218,
    RAMDISK_SIZE = 0x21c,
    CMD_LINE_PTR = 0x228,
    INITRD_ADDR_MAX = 0x22c,
    KERNEL_ALIGNMENT = 0x230,
    RELOCATABLE = 0x234,
    XLOADFLAGS = 0x236,
    CMDLINE_SIZE = 0x238,
    PREF_ADDRESS = 0x258,
    INIT_SIZE = 0x260,
    E820_TABLE = 0x2d0, /* 20 bytes each */
    ZERO_PAGE_BYTES = 4096,
    HEADER_BYTES_MIN = 0x268, /* up to and with init_size: protocol 2.10 */
    HEADER_BYTES_MAX = 0x290,
    SECTOR = 512,
    ENTRY64 = 0x200, /* from the start of the protected-mode kernel */
};
enum { XLF_KERNEL_64 = 1, LOADFLAG_HIGH = 1 };
#define VERSION_MIN 0x20cu /* 2.12: xloadflags */

static uint32_t get(const uint8_t *page, unsigned at, unsigned size)
{
    uint32_t v = 0;
    for (unsigned i = 0; i < size; i++)
        v |= (uint32_t)page[at + i] << (8 * i);
    return v;
}

static void put(uint8_t *page, unsigned at, unsigned size, uint64_t value)
{
    for (unsigned i = 0; i < size; i++)
        page[at + i] = (uint8_t)(value >> (8 * i));
}

/* Read the setup header into @page (zeroed) and refuse what the 64-bit entry cannot start. */
static int header_read(const struct boot_image *kernel, uint8_t *page, struct error *err)
{
    uint8_t file[HEADER_BYTES_MAX] = {0};
    if (!boot_image_read(kernel, 0, file, MIN(kernel->size, sizeof(file))) || kernel->size < HEADER_BYTES_MIN ||
        get(file, BOOT_FLAG, 2) != 0xaa55 || memcmp(file + HEADER_MAGIC, "HdrS", 4) != 0)
        return error_set(err, -ENOEXEC, ERROR_INVALID, "the kernel is neither a bzImage nor an ELF");
    if (get(file, VERSION, 2) < VERSION_MIN || !(file[LOADFLAGS] & LOADFLAG_HIGH) ||
        !(get(file, XLOADFLAGS, 2) & XLF_KERNEL_64))
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                         "the kernel has no 64-bit entry (boot protocol %#x); a 64-bit Linux 3.8 or newer has",
                         get(file, VERSION, 2));
    unsigned end = 0x202u + file[HEADER_SIZE_BYTE];
    if (end < HEADER_BYTES_MIN || end > HEADER_BYTES_MAX)
        end = end < HEADER_BYTES_MIN ? HEADER_BYTES_MIN : HEADER_BYTES_MAX;
    memcpy(page + SETUP_SECTS, file + SETUP_SECTS, end - SETUP_SECTS);
    return 0;
}

/* Where the protected-mode kernel goes: where it likes best, if there is memory. */
static int kernel_load(struct guest_memory *m, const struct boot_image *kernel, const uint8_t *page,
                       uint64_t *ret_address, uint64_t *ret_end, struct error *err)
{
    uint64_t setup_bytes = ((uint64_t)(page[SETUP_SECTS] ? page[SETUP_SECTS] : 4) + 1) * SECTOR;
    uint64_t address = get(page, PREF_ADDRESS, 4) | (uint64_t)get(page, PREF_ADDRESS + 4, 4) << 32;
    uint64_t init_size = get(page, INIT_SIZE, 4);
    if (kernel->size <= setup_bytes + ENTRY64)
        return error_set(err, -EINVAL, ERROR_INVALID, "the kernel is cut short: %" PRIu64 " bytes", kernel->size);
    uint64_t file_size = kernel->size - setup_bytes;
    uint64_t size = MAX(init_size, file_size);
    /* The entry code runs in place before it unpacks, and the page tables map 4 GiB only. */
    if (address < PC1_HIGH_START || address > UINT32_MAX || !memory_at(m, address, size))
        return error_set_field(err, -ENOMEM, ERROR_INVALID, "/memory_bytes",
                               "the kernel needs %" PRIu64 " bytes at %#" PRIx64 "; give the VM more memory", size,
                               address);
    int code = boot_copy(m, address, kernel, setup_bytes, file_size, size, err);
    if (code == 0) {
        *ret_address = address;
        *ret_end = address + size;
    }
    return code;
}

/* Descriptors and page tables that the 64-bit entry asks for: __BOOT_CS 0x10, __BOOT_DS 0x18, the first 4 GiB
 * mapped one to one by 2 MiB pages. */
static void long_mode_prepare(struct guest_memory *m)
{
    uint64_t gdt[4] = {0, 0, 0x00af9b000000ffffull, 0x00cf93000000ffffull};
    uint64_t *tables = memory_at(m, PC1_PAGE_TABLES, 6 * MEMORY_PAGE_BYTES);
    ASSERT(tables && memory_write(m, PC1_GDT, gdt, sizeof(gdt)));
    memset(tables, 0, 6 * MEMORY_PAGE_BYTES);
    tables[0] = (PC1_PAGE_TABLES + MEMORY_PAGE_BYTES) | 3;
    for (uint64_t g = 0; g < 4; g++) {
        tables[512 + g] = (PC1_PAGE_TABLES + (2 + g) * MEMORY_PAGE_BYTES) | 3;
        for (uint64_t i = 0; i < 512; i++)
            tables[1024 + g * 512 + i] = (g << 30 | i << 21) | 0x83;
    }
    memory_mark_dirty(m, PC1_PAGE_TABLES, 6 * MEMORY_PAGE_BYTES);
}

static void zero_page_fill(struct guest_memory *m, uint8_t *page, const struct boot_source *source, uint64_t initrd)
{
    struct boot_map_entry map[BOOT_MAP_ENTRIES_MAX];
    size_t count = boot_memory_map(m, map);
    page[TYPE_OF_LOADER] = 0xff; /* a loader without a number of its own */
    put(page, RAMDISK_IMAGE, 4, initrd);
    put(page, RAMDISK_SIZE, 4, initrd ? source->initrd.size : 0);
    put(page, CMD_LINE_PTR, 4, PC1_CMDLINE);
    put(page, ACPI_RSDP, 8, source->rsdp);
    page[E820_COUNT] = (uint8_t)count;
    for (size_t i = 0; i < count; i++) {
        unsigned at = (unsigned)(E820_TABLE + 20 * i);
        put(page, at, 8, map[i].address);
        put(page, at + 8, 8, map[i].size);
        put(page, at + 16, 4, map[i].type);
    }
}

int boot_bzimage_load(struct guest_memory *m, const struct boot_source *source, struct boot_entry *ret_entry,
                      struct error *err)
{
    uint8_t page[ZERO_PAGE_BYTES] = {0};
    uint64_t address = 0, end = 0, initrd = 0;
    int code = header_read(&source->kernel, page, err);
    if (code == 0)
        code = kernel_load(m, &source->kernel, page, &address, &end, err);
    if (code == 0)
        code = boot_initrd_load(m, &source->initrd, end, get(page, INITRD_ADDR_MAX, 4), &initrd, err);
    if (code == 0)
        code = boot_cmdline_write(m, source->cmdline, get(page, CMDLINE_SIZE, 4), err);
    if (code < 0)
        return code;
    zero_page_fill(m, page, source, initrd);
    ASSERT(memory_write(m, PC1_ZERO_PAGE, page, sizeof(page)));
    long_mode_prepare(m);
    *ret_entry =
        (struct boot_entry){.mode = BOOT_LONG, .rip = address + ENTRY64, .rsi = PC1_ZERO_PAGE, .rsp = PC1_CMDLINE};
    return 0;
}
