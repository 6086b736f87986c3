/* A pool's directory whose files somebody else has put there: names that lead elsewhere, and what is no file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "block/layer_pool_dir.h"
#include "common/file.h"

static void strangers_are_refused(void **state UNUSED)
{
    char directory[] = "/tmp/drover-pool-XXXXXX", *data = NULL;
    struct layer_pool *pool;
    struct block *b = NULL;
    struct error err = {0};
    size_t size;
    assert_non_null(mkdtemp(directory));
    CLEANUP_FREE char *folder = xasprintf("%s/pool", directory), *outside = xasprintf("%s/outside", directory);
    CLEANUP_FREE char *link_path = xasprintf("%s/link", folder), *fifo = xasprintf("%s/fifo", folder);
    CLEANUP_FREE char *plain = xasprintf("%s/plain", folder);
    assert_int_equal(mkdir(folder, 0700), 0);
    assert_int_equal(file_write_atomic(outside, "outside", 7, 0600, NULL) | file_write_atomic(plain, "plain", 5, 0600, NULL), 0);
    assert_int_equal(symlink(outside, link_path) | mkfifo(fifo, 0600), 0);
    assert_int_equal(layer_pool_dir_create(folder, NULL, NULL, &pool, NULL), 0);
    static const char *const names[] = {"link", "fifo", "../outside", ".", "..", "", ".hidden", "/etc/hostname", "a/../../outside"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        assert_true(pool->ops->read(pool, names[i], &data, &size, &err) < 0 && err.text[0] != '\0');
        assert_true(pool->ops->open(pool, names[i], true, &b, &err) < 0 && err.text[0] != '\0');
        assert_true(pool->ops->open(pool, names[i], false, &b, &err) < 0 && err.text[0] != '\0');
        assert_true(pool->ops->create(pool, names[i], 512, &b, &err) < 0 && err.text[0] != '\0');
    }
    for (size_t i = 2; i < ARRAY_SIZE(names); i++) {
        assert_int_equal(pool->ops->remove(pool, names[i], &err), -EINVAL);
        assert_int_equal(pool->ops->replace(pool, names[i], "x", 1, &err), -EINVAL);
    }
    /* a link is taken away or replaced as a name, and not followed */
    assert_int_equal(pool->ops->replace(pool, "link", "new", 3, &err), 0);
    assert_int_equal(pool->ops->read(pool, "link", &data, &size, &err), 0);
    assert_string_equal(data, "new");
    free(data);
    assert_int_equal(file_read(outside, 100, &data, &size, &err), 0);
    assert_string_equal(data, "outside");
    free(data);
    assert_int_equal(pool->ops->read(pool, "plain", &data, &size, &err), 0);
    free(data);
    layer_pool_dir_destroy(pool);
    assert_int_equal(file_remove_tree("/tmp", directory + 5, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(strangers_are_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
