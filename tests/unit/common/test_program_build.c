/* A process says which build it is. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
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

PROGRAM_VERSION_NOTE("1.2.3");

/* What a process says of itself is what its file says, while it is the same. */
static void a_file_says_what_its_process_says(void **state)
{
    char text[PROGRAM_BUILD_SIZE], expected[PROGRAM_BUILD_SIZE];
    (void)state;
    assert_int_equal(program_build_of_file("/proc/self/exe", text, NULL), 0);
    assert_string_equal(text, program_build("1.2.3", expected));
}

/* Whatever byte of its head is broken, or wherever it is cut: no more than a refusal, or no words. */
static void a_broken_file_is_refused_or_says_nothing_wrong(void **state)
{
    enum { HEAD_BYTES = 2048 };
    char path[] = "/tmp/test-program-build-XXXXXX", text[PROGRAM_BUILD_SIZE];
    CLEANUP_FREE char *file = NULL;
    CLEANUP_FD int fd = mkstemp(path);
    struct error err;
    size_t size;
    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(file_read("/proc/self/exe", 256 << 20, &file, &size, NULL), 0);
    assert_true(size > HEAD_BYTES);
    assert_int_equal(program_build_of_file(path, text, &err), -EBADMSG); /* empty */
    assert_int_equal(pwrite(fd, file, HEAD_BYTES, 0), HEAD_BYTES);
    for (unsigned at = 0; at < HEAD_BYTES; at++) {
        uint8_t broken = (uint8_t)~file[at];
        assert_int_equal(pwrite(fd, &broken, 1, at), 1);
        memset(text, 'x', sizeof(text));
        if (program_build_of_file(path, text, NULL) == 0)
            assert_true(strnlen(text, sizeof(text)) < sizeof(text));
        assert_int_equal(pwrite(fd, file + at, 1, at), 1);
    }
    for (unsigned bytes = HEAD_BYTES; bytes-- > 0;) {
        assert_int_equal(ftruncate(fd, bytes), 0);
        (void)program_build_of_file(path, text, NULL);
    }
    unlink(path);
    assert_int_equal(program_build_of_file(path, text, &err), -ENOENT);
    assert_int_equal(program_build_of_file("/proc/self/status", text, &err), -EBADMSG);
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
        cmocka_unit_test(a_file_says_what_its_process_says),
        cmocka_unit_test(a_broken_file_is_refused_or_says_nothing_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
