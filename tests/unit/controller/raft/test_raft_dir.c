/* What a data directory may look like after kill -9, and what is damage. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/file.h"
#include "controller/raft/raft_internal.h"

#define ENTRIES 3

/* An open segment as libraft writes it: two batches of ENTRIES entries of 8, 16, 24 bytes. */
static struct bytes_writer segment(void)
{
    struct bytes_writer w = {0};

    bytes_put_u64(&w, 1); /* format */
    for (unsigned batch = 0; batch < 2; batch++) {
        bytes_put_u64(&w, 0); /* checksums: libraft's to check */
        bytes_put_u64(&w, ENTRIES);
        for (unsigned i = 1; i <= ENTRIES; i++) {
            bytes_put_u64(&w, 7); /* term */
            bytes_put_u32(&w, 1); /* type */
            bytes_put_u32(&w, 8 * i);
        }
        for (unsigned i = 1; i <= ENTRIES; i++)
            for (unsigned k = 0; k < i; k++)
                bytes_put_u64(&w, 0x1111111111111111);
    }
    return w;
}

static int check(const char *dir, const void *data, size_t size, struct error *err)
{
    char path[256];

    snprintf(path, sizeof(path), "%s/open-1", dir);
    assert_int_equal(file_write_atomic(path, data, size, 0600, NULL), 0);
    return raft_dir_check(dir, err);
}

static void test_short_segments(void **state)
{
    char dir[] = "build/test-raft-dir-XXXXXX", path[256];
    struct bytes_writer w = segment();
    size_t batch = (w.size - 8) / 2;
    struct error err = {0};
    (void)state;

    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/metadata1", dir);
    assert_int_equal(file_write_atomic(path, "m", 1, 0600, NULL), 0);
    for (size_t size = 0; size <= w.size; size++) {
        bool whole = size == w.size || size == 8 + batch || size <= 8;

        if ((check(dir, w.data, size, &err) == 0) != whole)
            fail_msg("cut at %zu of %zu (a batch has %zu): %s", size, w.size, batch, err.text);
    }
    assert_int_equal(check(dir, w.data, w.size - 1, &err), -EUCLEAN);
    assert_non_null(strstr(err.text, "open-1 is cut short"));
    memset(w.data + 16, 0xff, 8); /* a count that would overflow */
    assert_int_equal(check(dir, w.data, w.size, &err), -EUCLEAN);
    bytes_writer_finish(&w);
    assert_int_equal(file_remove_tree("build", dir + strlen("build/"), NULL), 0);
}

static void test_forgotten_vote(void **state)
{
    char dir[] = "build/test-raft-dir-XXXXXX", path[256];
    struct error err = {0};
    (void)state;

    assert_non_null(mkdtemp(dir));
    assert_int_equal(raft_dir_check(dir, &err), 0);
    snprintf(path, sizeof(path), "%s/0000000000000001-0000000000000002", dir);
    assert_int_equal(file_write_atomic(path, "x", 1, 0600, NULL), 0);
    assert_int_equal(raft_dir_check(dir, &err), -EUCLEAN);
    assert_non_null(strstr(err.text, "term and vote"));
    assert_int_equal(file_remove_tree("build", dir + strlen("build/"), NULL), 0);
}

static void put(const char *dir, const char *name, const char *data, size_t size)
{
    CLEANUP_FREE char *path = xasprintf("%s/%s", dir, name);

    assert_int_equal(file_write_atomic(path, data, size, 0600, NULL), 0);
}

static bool is_there(const char *dir, const char *name)
{
    CLEANUP_FREE char *path = xasprintf("%s/%s", dir, name);

    return access(path, F_OK) == 0;
}

static void test_is_cut(void **state)
{
    static const char zeroes[64], written[64] = {1};
    char dir[] = "build/test-raft-dir-XXXXXX";
    (void)state;

    assert_non_null(mkdtemp(dir));
    put(dir, "metadata1", "m", 1);
    put(dir, "snapshot-2-9-77", "s", 1);
    put(dir, "0000000000000001-0000000000000004", "x", 1);
    put(dir, "open-7", zeroes, sizeof(zeroes));
    assert_true(raft_dir_is_cut(dir, 5));
    assert_false(raft_dir_is_cut(dir, 4));
    put(dir, "open-6", written, sizeof(written));
    assert_false(raft_dir_is_cut(dir, 5));
    assert_false(raft_dir_is_cut("build/there-is-no-such-directory", 5));
    assert_int_equal(file_remove_tree("build", dir + strlen("build/"), NULL), 0);
}

/* Of two with the same first entry the shorter goes, and what is prepared and all zero; nothing else does. */
static void test_clean(void **state)
{
    static const char *const others[] = {"0000000000000001-0000000000000009", "0000000000000010-0000000000000012",
                                         "0000000000000013-0000000000000020", "open-3", "metadata1",
                                         "snapshot-2-9-77", "0000000000000001-0000000000000008.old"};
    static const char zeroes[200000];
    char dir[] = "build/test-raft-dir-XXXXXX";
    (void)state;

    assert_non_null(mkdtemp(dir));
    for (size_t i = 0; i < ARRAY_SIZE(others); i++)
        put(dir, others[i], "x", 1);
    put(dir, "0000000000000001-0000000000000004", "x", 1);
    put(dir, "0000000000000013-0000000000000013", "x", 1);
    put(dir, "open-4", zeroes, sizeof(zeroes));
    put(dir, "open-5", "", 0);
    assert_int_equal(raft_dir_clean(dir, NULL), 0);
    assert_false(is_there(dir, "open-4"));
    assert_false(is_there(dir, "open-5"));
    assert_false(is_there(dir, "0000000000000001-0000000000000004"));
    assert_false(is_there(dir, "0000000000000013-0000000000000013"));
    for (size_t i = 0; i < ARRAY_SIZE(others); i++)
        assert_true(is_there(dir, others[i]));
    assert_int_equal(raft_dir_clean(dir, NULL), 0);
    assert_int_equal(raft_dir_clean("build/there-is-no-such-directory", NULL), -ENOENT);
    assert_int_equal(file_remove_tree("build", dir + strlen("build/"), NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_short_segments), cmocka_unit_test(test_forgotten_vote),
                                       cmocka_unit_test(test_is_cut), cmocka_unit_test(test_clean)};
    return cmocka_run_group_tests_name("raft_dir", tests, NULL, NULL);
}
