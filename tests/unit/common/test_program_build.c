/* A process says which build it is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/bytes.h"
#include "common/file.h"
#include "common/program_build.h"

/* What is shown are bytes of the linker's note, right behind its name in the program's file. */
static void the_build_is_that_of_the_file(void **state)
{
    static const char head[] = "\x14\0\0\0\x03\0\0\0GNU"; /* 20 bytes of NT_GNU_BUILD_ID */
    char text[PROGRAM_BUILD_SIZE], expected[PROGRAM_BUILD_SIZE] = "1.2.3";
    CLEANUP_FREE char *file = NULL;
    size_t size;
    (void)state;
    assert_int_equal(file_read("/proc/self/exe", 256 << 20, &file, &size, NULL), 0);
    const uint8_t *note = memmem(file, size, head, sizeof(head));
    if (note) {
        strcat(expected, " build ");
        for (size_t i = 0; i < 8; i++)
            sprintf(expected + strlen(expected), "%02x", note[sizeof(head) + i]);
    }
    assert_string_equal(program_build("1.2.3", text), expected);
    assert_ptr_equal(program_build("1.2.3", text), text);
}

static void a_long_version_is_cut(void **state)
{
    char text[PROGRAM_BUILD_SIZE];
    (void)state;
    program_build("0123456789012345678901234567890123456789012345678901234567890123456789", text);
    assert_true(strlen(text) < PROGRAM_BUILD_SIZE);
    assert_memory_equal(text, "01234567890123456789012345678901", 32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_build_is_that_of_the_file),
        cmocka_unit_test(a_long_version_is_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
