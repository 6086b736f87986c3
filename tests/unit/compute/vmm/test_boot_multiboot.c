/* Multiboot programs: what is loaded and told, what is refused, and that no cut image is read past its end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <elf.h>
#include <errno.h>
#include <string.h>

#include "compute/vmm/boot.h"
#include "compute/vmm/pc1_layout.h"

#define MIB 1048576ull
#define MEMORY_BYTES (32 * MIB)

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

struct image {
    Elf32_Ehdr head;
    Elf32_Phdr segments[2];
    uint32_t multiboot[3];
    uint8_t code[64];
};

static struct image image_make(void)
{
    struct image i = {.head = {.e_type = ET_EXEC,
                               .e_machine = EM_386,
                               .e_entry = 0x400010,
                               .e_phoff = offsetof(struct image, segments),
                               .e_phentsize = sizeof(Elf32_Phdr),
                               .e_phnum = 2},
                      .multiboot = {0x1badb002, 0, 0u - 0x1badb002}};
    memcpy(i.head.e_ident, ELFMAG "\1\1\1", 7);
    i.segments[0] = (Elf32_Phdr){.p_type = PT_LOAD,
                                 .p_offset = offsetof(struct image, code),
                                 .p_paddr = 0x400000,
                                 .p_filesz = sizeof(i.code),
                                 .p_memsz = 0x1000};
    i.segments[1] = i.segments[0];
    i.segments[1].p_paddr = 0x8000; /* real-mode programs lie there */
    memset(i.code, 0x90, sizeof(i.code));
    return i;
}

/* From a heap copy of exactly @size bytes. */
static int load(const void *image, size_t size, const char *environment, struct boot_entry *ret_entry,
                struct error *err)
{
    void *copy = malloc(size ? size : 1);
    memcpy(copy, image, size);
    struct boot_source source = {.kernel = {.fd = -1, .data = copy, .size = size},
                                 .initrd = {.fd = -1, .data = (const uint8_t *)environment},
                                 .cmdline = "one two",
                                 .multiboot = true,
                                 .has_test_device = true,
                                 .vcpus = 3};
    source.initrd.size = environment ? strlen(environment) : 0;
    int code = boot_load(&memory, &source, ret_entry, err);
    free(copy);
    return code;
}

static uint32_t guest32(uint64_t gpa)
{
    uint32_t value = 0;
    assert_true(memory_read(&memory, gpa, &value, sizeof(value)));
    return value;
}

static void program_is_loaded_and_told(void **state)
{
    struct image i = image_make();
    struct boot_entry entry;
    char text[128] = {0};
    (void)state;
    memset(memory_at(&memory, 0x400000, 0x1000), 0xff, 0x1000); /* what is not in the file must become zero */
    assert_int_equal(load(&i, sizeof(i), NULL, &entry, NULL), 0);
    assert_int_equal(entry.mode, BOOT_PROTECTED);
    assert_int_equal(entry.rip, 0x400010);
    assert_int_equal(entry.rax, 0x2badb002);
    assert_int_equal(guest32(0x40003c), 0x90909090);
    assert_int_equal(guest32(0x400040), 0);
    assert_int_equal(guest32(0x803c), 0x90909090);
    uint64_t info = entry.rbx;
    assert_int_equal(guest32(info) & (1 | 4 | 8 | 64), 1 | 4 | 8 | 64);
    assert_int_equal(guest32(info + 8), (MEMORY_BYTES - MIB) / 1024);
    assert_string_equal(memory_at(&memory, guest32(info + 16), 16), "program one two");
    assert_int_equal(guest32(info + 20), 1);
    uint32_t module = guest32(info + 24), start = guest32(module), end = guest32(module + 4);
    assert_true(memory_read(&memory, start, text, end - start));
    assert_string_equal(text, "NR_CPUS=3\nMEMSIZE=32\nMEMLIMIT=0\nTEST_DEVICE=1\n");
    uint32_t map = guest32(info + 48), map_end = map + guest32(info + 44);
    uint64_t usable = 0;
    for (; map < map_end; map += guest32(map) + 4)
        if (guest32(map + 20) == 1)
            usable += guest32(map + 12);
    assert_int_equal(map, map_end);
    assert_int_equal(usable, PC1_LOW_END + MEMORY_BYTES - MIB);
}

static void environment_can_be_given(void **state)
{
    struct image i = image_make();
    struct boot_entry entry;
    struct error err = {0};
    char text[32] = {0};
    (void)state;
    assert_int_equal(load(&i, sizeof(i), "A=1\nB=2\n", &entry, NULL), 0);
    uint32_t module = guest32(entry.rbx + 24), start = guest32(module);
    assert_true(memory_read(&memory, start, text, guest32(module + 4) - start));
    assert_string_equal(text, "A=1\nB=2\n");
    char *large = calloc(1, 20000);
    memset(large, 'x', 19999);
    assert_int_equal(load(&i, sizeof(i), large, &entry, &err), -E2BIG);
    assert_string_equal(err.field, "/initrd");
    free(large);
}

static void what_is_no_program_is_refused(void **state)
{
    struct boot_entry entry;
    struct error err = {0};
    (void)state;
#define REFUSED(change, expected)                                                                                    \
    do {                                                                                                             \
        struct image i = image_make();                                                                               \
        change;                                                                                                      \
        err.text[0] = 0;                                                                                             \
        assert_int_equal(load(&i, sizeof(i), NULL, &entry, &err), expected);                                         \
        assert_true(err.text[0] != 0);                                                                               \
    } while (0)
    REFUSED(i.head.e_machine = EM_X86_64, -ENOEXEC);
    REFUSED(i.head.e_ident[EI_CLASS] = ELFCLASS64, -ENOEXEC);
    REFUSED(i.head.e_phnum = 0, -ENOEXEC);
    REFUSED(i.multiboot[2]++, -ENOEXEC);
    REFUSED(i.head.e_phoff = 0xfffffff0, -EINVAL);
    REFUSED(i.segments[0].p_paddr = 0xfffffff0, -ENOMEM);
    REFUSED(i.segments[0].p_paddr = MEMORY_BYTES - 0x800, -ENOMEM);
    REFUSED(i.segments[0].p_paddr = PC1_MULTIBOOT - 1, -ENOMEM);
    REFUSED(i.segments[0].p_paddr = PC1_CMDLINE, -ENOMEM);
    REFUSED(i.segments[0].p_filesz = 0x1001, -EINVAL);
    REFUSED(i.segments[0].p_offset = 0xffffff00, -EINVAL);
#undef REFUSED
}

static void cut_images_are_survived(void **state)
{
    struct image i = image_make();
    struct boot_entry entry;
    (void)state;
    for (size_t size = 0; size < sizeof(i); size++)
        assert_true(load(&i, size, NULL, &entry, NULL) < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        T(program_is_loaded_and_told),
        T(environment_can_be_given),
        T(what_is_no_program_is_refused),
        T(cut_images_are_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
