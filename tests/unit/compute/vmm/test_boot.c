/* Direct boot: whole images load as the protocols say; damaged ones are refused, and nothing is read past their end.
 * Every image is handed over as a heap copy of its very size. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <elf.h>
#include <errno.h>
#include <string.h>

#include "common/bytes.h"
#include "compute/vmm/boot.h"
#include "compute/vmm/pc1_layout.h"
#include "tests/unit/unit_seed.h"

#define MIB 1048576ull
#define MEMORY_BYTES (64 * MIB)

static struct guest_memory memory;

static int setup(void **state)
{
    (void)state;
    return memory_init(&memory, MEMORY_BYTES, NULL);
}
static int teardown(void **state)
{
    (void)state;
    memory_finish(&memory);
    return 0;
}

/* Load @size bytes of @image from a copy of exactly that size. */
static int load(const uint8_t *image, size_t size, const char *cmdline, uint64_t initrd_size,
                struct boot_entry *ret_entry, struct error *err)
{
    uint8_t *copy = malloc(size ? size : 1);
    uint8_t *initrd = calloc(1, initrd_size ? initrd_size : 1);
    memcpy(copy, image, size);
    memset(initrd, 0x5a, initrd_size);
    struct boot_source source = {.kernel = {.fd = -1, .data = copy, .size = size},
                                 .initrd = {.fd = -1, .data = initrd, .size = initrd_size},
                                 .cmdline = cmdline,
                                 .rsdp = PC1_ACPI};
    int code = boot_load(&memory, &source, ret_entry, err);
    free(copy);
    free(initrd);
    return code;
}

static uint64_t guest(uint64_t gpa, unsigned size)
{
    uint64_t value = 0;
    assert_true(memory_read(&memory, gpa, &value, size));
    return value;
}

/* ---- ELF with a PVH note ---- */

struct elf_image {
    Elf64_Ehdr head;
    Elf64_Phdr segments[2];
    struct {
        uint32_t name_size, size, type;
        char name[4];
        uint32_t entry;
    } note;
    uint8_t code[64];
};

static struct elf_image elf_make(void)
{
    struct elf_image e = {.note = {4, 4, 18, "Xen", 0x200010}};
    memcpy(e.head.e_ident, "\177ELF\2\1\1", 7);
    e.head.e_phoff = offsetof(struct elf_image, segments);
    e.head.e_phentsize = sizeof(Elf64_Phdr);
    e.head.e_phnum = 2;
    e.segments[0] = (Elf64_Phdr){.p_type = PT_LOAD,
                                 .p_offset = offsetof(struct elf_image, code),
                                 .p_paddr = 0x200000,
                                 .p_filesz = sizeof(e.code),
                                 .p_memsz = 0x1000};
    e.segments[1] =
        (Elf64_Phdr){.p_type = PT_NOTE, .p_offset = offsetof(struct elf_image, note), .p_filesz = sizeof(e.note)};
    memset(e.code, 0x90, sizeof(e.code));
    return e;
}

static void elf_is_loaded(void **state)
{
    struct elf_image e = elf_make();
    struct boot_entry entry;
    (void)state;
    memset(memory_at(&memory, 0x200000, 0x1000), 0xff, 0x1000); /* what is not in the file must become zero */
    assert_int_equal(load((uint8_t *)&e, sizeof(e), "console=ttyS0", 5000, &entry, NULL), 0);
    assert_int_equal(entry.mode, BOOT_PROTECTED);
    assert_int_equal(entry.rip, 0x200010);
    assert_int_equal(guest(0x20003f, 2), 0x0090);
    assert_int_equal(guest(0x200ff8, 8), 0);
    uint64_t info = entry.rbx, module = guest(info + 16, 8), map = guest(info + 40, 8);
    assert_int_equal(guest(info, 4), 0x336ec578);
    assert_int_equal(guest(info + 4, 4), 1);
    assert_int_equal(guest(info + 32, 8), PC1_ACPI);
    assert_string_equal(memory_at(&memory, guest(info + 24, 8), 14), "console=ttyS0");
    assert_int_equal(guest(info + 12, 4), 1);
    assert_int_equal(guest(module + 8, 8), 5000);
    assert_int_equal(guest(guest(module, 8) + 4999, 1), 0x5a);
    assert_int_equal(guest(info + 48, 4), 4);
    uint64_t usable = 0;
    for (unsigned i = 0; i < 4; i++)
        if (guest(map + 24 * i + 16, 4) == 1)
            usable += guest(map + 24 * i + 8, 8);
    assert_int_equal(usable, PC1_LOW_END + MEMORY_BYTES - MIB);
}

static void elf_is_refused_where_it_lies(void **state)
{
    static const struct {
        uint64_t address, memory_size;
    } cases[] = {
        {0x0, 0x1000},                  /* over the start information */
        {0xff000, 0x2000},              /* over the tables */
        {MEMORY_BYTES - 0x800, 0x1000}, /* past the end */
        {MEMORY_BYTES, 0x1000},
        {0x200000, UINT64_MAX - 0x100000}, /* the sum wraps */
        {UINT64_MAX - 0x100, 0x1000},
        {0x200000, 1ull << 40},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct elf_image e = elf_make();
        struct boot_entry entry;
        e.segments[0].p_paddr = cases[i].address;
        e.segments[0].p_memsz = cases[i].memory_size;
        assert_true(load((uint8_t *)&e, sizeof(e), "", 0, &entry, NULL) < 0);
    }
}

static void elf_without_note_is_refused(void **state)
{
    struct elf_image e = elf_make();
    struct boot_entry entry;
    struct error err = {0};
    (void)state;
    e.note.type = 17;
    assert_int_equal(load((uint8_t *)&e, sizeof(e), "", 0, &entry, &err), -ENOEXEC);
    assert_non_null(strstr(err.text, "PVH"));
    e = elf_make();
    e.note.name_size = 0xfffffff0; /* wraps when rounded up */
    assert_true(load((uint8_t *)&e, sizeof(e), "", 0, &entry, NULL) < 0);
    e = elf_make();
    e.head.e_phnum = 0xffff;
    assert_true(load((uint8_t *)&e, sizeof(e), "", 0, &entry, NULL) < 0);
    e = elf_make();
    e.head.e_phoff = UINT64_MAX - 8;
    assert_true(load((uint8_t *)&e, sizeof(e), "", 0, &entry, NULL) < 0);
}

/* ---- bzImage ---- */

enum { SETUP_SECTORS = 1, BZ_BYTES = 512 * (SETUP_SECTORS + 1) + 4096 };

static void put(uint8_t *image, unsigned at, unsigned size, uint64_t value)
{
    for (unsigned i = 0; i < size; i++)
        image[at + i] = (uint8_t)(value >> (8 * i));
}

static void bzimage_make(uint8_t image[BZ_BYTES])
{
    memset(image, 0xcc, BZ_BYTES);
    memset(image, 0, 1024);
    image[0x1f1] = SETUP_SECTORS;
    put(image, 0x1fe, 2, 0xaa55);
    image[0x200] = 0xeb;
    image[0x201] = 0x66;
    memcpy(image + 0x202, "HdrS", 4);
    put(image, 0x206, 2, 0x20f);
    image[0x211] = 1;
    put(image, 0x22c, 4, 0x7fffffff);
    put(image, 0x236, 2, 1);
    put(image, 0x238, 4, 2047);
    put(image, 0x258, 8, 0x1000000);
    put(image, 0x260, 4, 0x20000);
}

static void bzimage_is_loaded(void **state)
{
    uint8_t image[BZ_BYTES];
    struct boot_entry entry;
    (void)state;
    bzimage_make(image);
    assert_int_equal(load(image, sizeof(image), "quiet", 10000, &entry, NULL), 0);
    assert_int_equal(entry.mode, BOOT_LONG);
    assert_int_equal(entry.rip, 0x1000200);
    uint64_t page = entry.rsi;
    assert_int_equal(page, PC1_ZERO_PAGE);
    assert_int_equal(guest(0x1000000, 1), 0xcc);
    assert_int_equal(guest(0x1000000 + 4095, 2), 0xcc);
    assert_int_equal(guest(page + 0x202, 4), 0x53726448);
    assert_int_equal(guest(page + 0x210, 1), 0xff);
    assert_int_equal(guest(page + 0x70, 8), PC1_ACPI);
    assert_string_equal(memory_at(&memory, guest(page + 0x228, 4), 6), "quiet");
    uint64_t initrd = guest(page + 0x218, 4);
    assert_int_equal(guest(page + 0x21c, 4), 10000);
    assert_int_equal(initrd % 4096, 0);
    assert_true(initrd + 10000 <= MEMORY_BYTES && initrd > 0x1020000);
    assert_int_equal(guest(initrd + 9999, 1), 0x5a);
    assert_int_equal(guest(page + 0x1e8, 1), 4); /* e820 entries; the last is the memory above 1 MiB */
    assert_int_equal(guest(page + 0x2d0 + 60, 8), MIB);
    assert_int_equal(guest(page + 0x2d0 + 68, 8), MEMORY_BYTES - MIB);
    /* The page tables map an address in the fourth GiB to itself. */
    uint64_t l3 = guest(PC1_PAGE_TABLES, 8) & ~0xfffull, l2 = guest(l3 + 24, 8) & ~0xfffull;
    assert_int_equal(guest(l2 + 8 * 5, 8), 0xc0a00083);
}

/* A header that asks for less than the file has: the file is loaded whole all the same. */
static void bzimage_is_never_cut(void **state)
{
    uint8_t image[BZ_BYTES];
    struct boot_entry entry;
    (void)state;
    bzimage_make(image);
    put(image, 0x260, 4, 0x100);
    assert_int_equal(load(image, sizeof(image), "", 0, &entry, NULL), 0);
    assert_int_equal(guest(0x1000000 + 4095, 1), 0xcc);
}

static void bzimage_initrd_obeys_its_limit(void **state)
{
    uint8_t image[BZ_BYTES];
    struct boot_entry entry;
    (void)state;
    bzimage_make(image);
    put(image, 0x22c, 4, 0x2000000 - 1);
    assert_int_equal(load(image, sizeof(image), "", 10000, &entry, NULL), 0);
    assert_true(guest(PC1_ZERO_PAGE + 0x218, 4) + 10000 <= 0x2000000);
    put(image, 0x22c, 4, 0x1021000); /* no room between kernel and limit */
    assert_int_equal(load(image, sizeof(image), "", 10000, &entry, NULL), -ENOMEM);
}

static void bzimage_is_refused(void **state)
{
    static const struct {
        unsigned at, size;
        uint64_t value;
    } cases[] = {
        {0x1fe, 2, 0},          {0x202, 4, 0},
        {0x206, 2, 0x20b},      {0x211, 1, 0},
        {0x236, 2, 0},          {0x258, 8, 0x1000},
        {0x258, 8, 1ull << 32}, {0x258, 8, UINT64_MAX - 4095},
        {0x260, 4, 0xffffffff}, {0x258, 8, MEMORY_BYTES},
        {0x1f1, 1, 255},
    };
    uint8_t image[BZ_BYTES];
    struct boot_entry entry;
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct error err = {0};
        bzimage_make(image);
        put(image, cases[i].at, cases[i].size, cases[i].value);
        assert_true(load(image, sizeof(image), "", 0, &entry, &err) < 0);
        assert_true(err.text[0]);
    }
}

static void cmdline_has_a_limit(void **state)
{
    uint8_t image[BZ_BYTES];
    struct boot_entry entry;
    char cmdline[BOOT_CMDLINE_MAX + 2];
    (void)state;
    memset(cmdline, 'x', sizeof(cmdline));
    cmdline[BOOT_CMDLINE_MAX] = 0;
    bzimage_make(image);
    assert_int_equal(load(image, sizeof(image), cmdline, 0, &entry, NULL), 0);
    put(image, 0x238, 4, 100);
    assert_int_equal(load(image, sizeof(image), cmdline, 0, &entry, NULL), -E2BIG);
    cmdline[BOOT_CMDLINE_MAX] = 'x';
    cmdline[BOOT_CMDLINE_MAX + 1] = 0;
    put(image, 0x238, 4, 4096);
    assert_int_equal(load(image, sizeof(image), cmdline, 0, &entry, NULL), -E2BIG);
}

/* ---- damage ---- */

static void cut_images_are_survived(void **state)
{
    struct elf_image e = elf_make();
    uint8_t image[BZ_BYTES];
    struct boot_entry entry;
    (void)state;
    bzimage_make(image);
    for (size_t size = 0; size < offsetof(struct elf_image, code) + sizeof(e.code); size++)
        assert_true(load((uint8_t *)&e, size, "", 0, &entry, NULL) < 0);
    for (size_t size = 0; size < 1024 + 512; size++)
        assert_true(load(image, size, "", 0, &entry, NULL) < 0);
}

static void damaged_images_are_survived(void **state)
{
    unsigned seed = (unsigned)unit_seed();
    struct elf_image e;
    uint8_t image[BZ_BYTES];
    struct boot_entry entry;
    (void)state;
    srandom(seed);
    for (unsigned round = 0; round < 2000; round++) {
        e = elf_make();
        bzimage_make(image);
        for (unsigned i = 0; i < 4; i++) {
            ((uint8_t *)&e)[(size_t)random() % offsetof(struct elf_image, code)] = (uint8_t)random();
            image[0x1f1 + (size_t)random() % 0x77] = (uint8_t)random();
        }
        (void)load((uint8_t *)&e, sizeof(e), "x", 100, &entry, NULL); /* any answer will do, but no fault */
        (void)load(image, sizeof(image), "x", 100, &entry, NULL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        T(elf_is_loaded),
        T(elf_is_refused_where_it_lies),
        T(elf_without_note_is_refused),
        T(bzimage_is_loaded),
        T(bzimage_initrd_obeys_its_limit),
        T(bzimage_is_refused),
        T(bzimage_is_never_cut),
        T(cmdline_has_a_limit),
        T(cut_images_are_survived),
        T(damaged_images_are_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
