/* Does a disk read as a snapshot of it does? What memory is laid over it depends on the answer: nothing that was written since may be
 * missed. And what a disk says that has as many as it may. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "block/layer_disk.h"
#include "block/layer_point.h"
#include "block/layer_pool_dir.h"
#include "common/file.h"

enum { DISK_BYTES = 8 << 20, STEP = 4096 };

struct fixture {
    char dir[64];
    struct layer_pool *pool;
    struct layer_disk *disk;
};

static void change(struct fixture *f, enum block_op op, uint64_t at, uint8_t value)
{
    uint8_t data[STEP];
    memset(data, value, sizeof data);
    assert_int_equal(block_now(&f->disk->chain->block, op, at, op == BLOCK_WRITE ? data : NULL, STEP), 0);
}

static void open_again(struct fixture *f, const char *revert_to)
{
    layer_disk_close(f->disk);
    f->disk = NULL;
    if (revert_to != NULL)
        assert_int_equal(layer_disk_revert(f->pool, "root", revert_to, NULL), 0);
    assert_int_equal(layer_disk_open(f->pool, "root", false, 1, &f->disk, NULL), 0);
}

static int setup(void **state)
{
    struct fixture *f = NEW(struct fixture);
    strcpy(f->dir, "/tmp/layer_disk_at.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    assert_int_equal(layer_pool_dir_create(f->dir, NULL, NULL, &f->pool, NULL), 0);
    assert_int_equal(layer_disk_create(f->pool, "root", DISK_BYTES, NULL, NULL), 0);
    assert_int_equal(layer_disk_open(f->pool, "root", false, 1, &f->disk, NULL), 0);
    change(f, BLOCK_WRITE, 0, 1);
    assert_int_equal(layer_disk_snapshot(f->disk, "a", NULL), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    layer_disk_close(f->disk);
    layer_pool_dir_destroy(f->pool);
    assert_int_equal(file_remove_tree("/tmp", f->dir + 5, NULL), 0);
    free(f);
    return 0;
}

static void as_long_as_nothing_is_written(void **state)
{
    struct fixture *f = *state;
    assert_true(layer_disk_has(f->disk, "a") && layer_disk_is_at(f->disk, "a"));
    assert_false(layer_disk_has(f->disk, "b") || layer_disk_is_at(f->disk, "b"));
    open_again(f, NULL);
    assert_true(layer_disk_is_at(f->disk, "a"));
    assert_int_equal(layer_disk_snapshot(f->disk, "b", NULL), 0); /* the same once more */
    assert_true(layer_disk_is_at(f->disk, "a") && layer_disk_is_at(f->disk, "b"));
    change(f, BLOCK_WRITE, 4 << 20, 0); /* zeroes where there were none */
    assert_false(layer_disk_is_at(f->disk, "a") || layer_disk_is_at(f->disk, "b"));
    open_again(f, NULL);
    assert_false(layer_disk_is_at(f->disk, "a"));
    open_again(f, "a");
    assert_true(layer_disk_is_at(f->disk, "a"));
    assert_false(layer_disk_is_at(f->disk, "b")); /* beside the chain: nobody looks whether it is the same */
    assert_int_equal(layer_disk_drop(f->disk, "a", NULL), 0);
    assert_false(layer_disk_is_at(f->disk, "a"));
}

static void any_change_counts(void **state)
{
    static const enum block_op ops[] = {BLOCK_WRITE, BLOCK_WRITE_ZEROES, BLOCK_DISCARD};
    struct fixture *f = *state;
    for (size_t i = 0; i < ARRAY_SIZE(ops); i++) {
        open_again(f, "a");
        assert_true(layer_disk_is_at(f->disk, "a"));
        uint64_t size = ops[i] == BLOCK_WRITE ? STEP : LAYER_CLUSTER_BYTES;
        uint8_t *data = xcalloc(1, size);
        assert_int_equal(block_now(&f->disk->chain->block, ops[i], 0, ops[i] == BLOCK_WRITE ? data : NULL, size), 0);
        free(data);
        assert_false(layer_disk_is_at(f->disk, "a"));
        open_again(f, NULL); /* flushed by the closing */
        assert_false(layer_disk_is_at(f->disk, "a"));
    }
    open_again(f, "a");
    assert_int_equal(block_grow(&f->disk->chain->block, 2 * DISK_BYTES, NULL), 0);
    assert_false(layer_disk_is_at(f->disk, "a"));
}

/* Names that are nobody's any more fill a disk as others do, and deleting snapshots does not help then. */
static void one_that_is_full_says_what_helps(void **state)
{
    struct fixture *f = *state;
    struct layer_point point;
    struct error err = {.code = 0};
    int code = 0;
    unsigned count = 0;
    for (char name[24]; code == 0; count++) {
        snprintf(name, sizeof name, "n%u", count);
        code = layer_disk_snapshot(f->disk, name, &err);
    }
    assert_int_equal(code, -E2BIG);
    assert_int_equal(f->disk->chain->count, LAYER_CHAIN_MAX);
    assert_non_null(strstr(err.text, "disk root has 128 layers"));
    assert_non_null(strstr(err.text, "stay behind when the volume is moved to another pool"));
    err.text[0] = '\0';
    assert_int_equal(layer_point_begin(f->disk, "one-more", false, &point, &err), -E2BIG);
    assert_non_null(strstr(err.text, "moved to another pool"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(as_long_as_nothing_is_written, setup, teardown),
        cmocka_unit_test_setup_teardown(any_change_counts, setup, teardown),
        cmocka_unit_test_setup_teardown(one_that_is_full_says_what_helps, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
