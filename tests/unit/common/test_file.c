/* Files: limits, atomic replacement, directories, and removal that stays inside. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file.h"

static char dir[64];

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/drover-test-XXXXXX");
    return mkdtemp(dir) == NULL ? -1 : 0;
}

static int teardown(void **state)
{
    (void)state;
    return rmdir(dir); /* fails where a test left something */
}

/* A path in the test's directory; four at a time. */
static const char *in(const char *name)
{
    static char paths[4][128];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", dir, name);
    return path;
}

static void test_read_and_write(void **state)
{
    char *text;
    size_t size;
    struct stat st;
    struct error err = {0};
    (void)state;
    assert_int_equal(file_read(in("none"), 10, &text, &size, &err), -ENOENT);
    assert_non_null(strstr(err.text, "none: No such file"));
    assert_int_equal(file_write_atomic(in("a"), "12345", 5, 0640, NULL), 0);
    assert_int_equal(file_read(in("a"), 5, &text, &size, NULL), 0);
    assert_int_equal(size, 5);
    assert_string_equal(text, "12345");
    free(text);
    assert_int_equal(file_read(in("a"), 4, &text, &size, &err), -EFBIG);
    assert_int_equal(file_write_atomic(in("a"), "", 0, 0600, NULL), 0);
    assert_int_equal(file_read(in("a"), 5, &text, NULL, NULL), 0);
    assert_string_equal(text, "");
    free(text);
    assert_int_equal(stat(in("a"), &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    assert_int_equal(unlink(in("a")), 0);
}

/* A failure leaves the old content, and no temporary file. */
static void test_failed_write(void **state)
{
    struct error err = {0};
    (void)state;
    assert_int_equal(file_write_atomic(in("no/such/dir"), "x", 1, 0600, &err), -ENOENT);
    assert_int_equal(mkdir(in("d"), 0700), 0);
    assert_true(file_write_atomic(in("d"), "x", 1, 0600, &err) < 0); /* a directory cannot be replaced */
    assert_int_equal(rmdir(in("d")), 0);
}

static void test_large(void **state)
{
    size_t size = 1000000, got;
    char *data = malloc(size), *back;
    (void)state;
    for (size_t i = 0; i < size; i++)
        data[i] = (char)(i * 7);
    assert_int_equal(file_write_atomic(in("big"), data, size, 0600, NULL), 0);
    assert_int_equal(file_read(in("big"), size, &back, &got, NULL), 0);
    assert_int_equal(got, size);
    assert_memory_equal(back, data, size);
    free(data);
    free(back);
    unlink(in("big"));
}

static void test_directories(void **state)
{
    struct error err = {0};
    struct stat st;
    (void)state;
    assert_int_equal(file_make_directories(in("a/b/c"), 0750, &err), 0);
    assert_int_equal(file_make_directories(in("a/b/c/"), 0750, &err), 0);
    assert_int_equal(stat(in("a/b/c"), &st), 0);
    assert_int_equal(file_write_atomic(in("a/f"), "x", 1, 0600, NULL), 0);
    assert_int_equal(file_make_directories(in("a/f"), 0750, &err), -ENOTDIR);
    assert_int_equal(file_make_directories(in("a/f/g"), 0750, &err), -ENOTDIR);
    assert_int_equal(file_remove_tree(dir, "a", &err), 0);
    assert_int_equal(stat(in("a"), &st), -1);
}

static void test_remove_tree(void **state)
{
    static const char *const bad[] = {"", ".", "..", "a/b", "/", "../x"};
    struct stat st;
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(file_remove_tree(dir, bad[i], NULL), -EINVAL);
    assert_int_equal(file_remove_tree(dir, "missing", NULL), 0);
    /* Links within and of the tree's own name are removed, what they point to stays. */
    assert_int_equal(file_make_directories(in("keep/inner"), 0700, NULL), 0);
    assert_int_equal(file_make_directories(in("tree/sub"), 0700, NULL), 0);
    assert_int_equal(symlink("../../keep", in("tree/sub/link")), 0);
    assert_int_equal(symlink("keep", in("link")), 0);
    assert_int_equal(file_write_atomic(in("tree/sub/f"), "x", 1, 0400, NULL), 0);
    assert_int_equal(file_remove_tree(dir, "tree", NULL), 0);
    assert_int_equal(file_remove_tree(dir, "link", NULL), 0);
    assert_int_equal(stat(in("keep/inner"), &st), 0);
    assert_int_equal(lstat(in("link"), &st), -1);
    assert_int_equal(file_remove_tree(dir, "keep", NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_read_and_write, setup, teardown),
        cmocka_unit_test_setup_teardown(test_failed_write, setup, teardown),
        cmocka_unit_test_setup_teardown(test_large, setup, teardown),
        cmocka_unit_test_setup_teardown(test_directories, setup, teardown),
        cmocka_unit_test_setup_teardown(test_remove_tree, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
