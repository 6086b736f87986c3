/* The child of a snapshot-... task, on a VM's own disk and a volume of it: one moment for both whatever an earlier try has left, and a revert
 * of all or of nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "block/layer_disk.h"
#include "block/layer_pool_dir.h"
#include "common/file.h"
#include "compute/agent/task_child.h"

#define SNAPSHOT "bbbbbbbb-0000-4000-8000-000000000002"
enum { DISKS = 2, VM_EPOCH = 3, SIZE = 4096 };
#define VOLUME_EPOCH ((UINT64_C(2) << 32) | VM_EPOCH) /* higher than any of a VM */

struct fixture {
    char dir[64], layers[DISKS][96];
    struct layer_pool *pools[DISKS];
    struct error err;
};

static const char *const names[DISKS] = {"root", "vol-1"};
static const uint64_t epochs[DISKS] = {VM_EPOCH, VOLUME_EPOCH};

static int setup(void **state)
{
    struct fixture *f = NEW(struct fixture);
    snprintf(f->dir, sizeof f->dir, "/tmp/drover-task-snapshot-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    for (unsigned i = 0; i < DISKS; i++) {
        snprintf(f->layers[i], sizeof f->layers[i], "%s/%s", f->dir, names[i]);
        assert_int_equal(mkdir(f->layers[i], 0700), 0);
        assert_int_equal(layer_pool_dir_create(f->layers[i], NULL, NULL, &f->pools[i], &f->err), 0);
        assert_int_equal(layer_disk_create(f->pools[i], names[i], 1 << 20, NULL, &f->err), 0);
    }
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    for (unsigned i = 0; i < DISKS; i++)
        layer_pool_dir_destroy(f->pools[i]);
    file_remove_tree("/tmp", f->dir + strlen("/tmp/"), NULL);
    free(f);
    return 0;
}

static struct layer_disk *opened(struct fixture *f, unsigned i)
{
    struct layer_disk *disk;
    if (layer_disk_open(f->pools[i], names[i], false, epochs[i], &disk, &f->err) < 0)
        fail_msg("%s", f->err.text);
    return disk;
}

/* What the first block of each holds. */
static void write_both(struct fixture *f, uint8_t value)
{
    uint8_t data[SIZE];
    memset(data, value, sizeof data);
    for (unsigned i = 0; i < DISKS; i++) {
        struct layer_disk *disk = opened(f, i);
        assert_int_equal(block_now(&disk->chain->block, BLOCK_WRITE, 0, data, sizeof data), 0);
        layer_disk_close(disk);
    }
}

static uint8_t holds(struct fixture *f, unsigned i)
{
    uint8_t data[SIZE];
    struct layer_disk *disk = opened(f, i);
    assert_int_equal(block_now(&disk->chain->block, BLOCK_READ, 0, data, sizeof data), 0);
    layer_disk_close(disk);
    return data[0];
}

static bool has(struct fixture *f, unsigned i)
{
    struct layer_disk *disk = opened(f, i);
    bool found = layer_disk_has(disk, SNAPSHOT);
    layer_disk_close(disk);
    return found;
}

/* A VMM that ended in the middle has named it there, and nowhere else. */
static void named_alone(struct fixture *f, unsigned i)
{
    struct layer_disk *disk = opened(f, i);
    assert_int_equal(layer_disk_snapshot(disk, SNAPSHOT, &f->err), 0);
    layer_disk_close(disk);
}

static int work(struct fixture *f, enum task_kind kind, struct task_seen *seen)
{
    struct snapshot_work work = {0};
    struct bytes_writer text = {0};
    OBJECT_SET(snapshot_work, &work, kind, kind);
    OBJECT_TEXT(snapshot_work, &work, snapshot, SNAPSHOT);
    OBJECT_SET(snapshot_work, &work, epoch, VM_EPOCH);
    for (unsigned i = 0; i < DISKS; i++) {
        struct snapshot_work_disk *disk = OBJECT_ADD(snapshot_work, &work, disks);
        OBJECT_TEXT(snapshot_work_disk, disk, name, names[i]);
        OBJECT_TEXT(snapshot_work_disk, disk, directory, f->layers[i]);
        if (epochs[i] != VM_EPOCH)
            OBJECT_SET(snapshot_work_disk, disk, epoch, epochs[i]);
    }
    OBJECT_ENCODE(snapshot_work, &work, &text);
    OBJECT_CLEAR(snapshot_work, &work);
    int r = task_snapshot_work((const char *)text.data, text.size, seen, &f->err);
    bytes_writer_finish(&text);
    return r;
}

static int done(struct fixture *f, enum task_kind kind)
{
    struct task_seen seen = {0};
    int r = work(f, kind, &seen);
    OBJECT_CLEAR(task_seen, &seen);
    return r;
}

static void kept_reverted_and_removed(void **state)
{
    struct fixture *f = *state;
    struct task_seen seen = {0};
    write_both(f, 1);
    assert_int_equal(work(f, task_kind_SNAPSHOT_CREATE, &seen), 0);
    assert_int_equal(seen.snapshot.consistency, snapshot_consistency_FILESYSTEM);
    assert_int_equal(seen.snapshot.disks.count, DISKS);
    OBJECT_CLEAR(task_seen, &seen);
    write_both(f, 2);
    for (unsigned again = 0; again < 2; again++) {
        assert_int_equal(done(f, task_kind_SNAPSHOT_REVERT), 0);
        for (unsigned i = 0; i < DISKS; i++)
            assert_int_equal(holds(f, i), 1);
    }
    for (unsigned again = 0; again < 2; again++)
        assert_int_equal(done(f, task_kind_SNAPSHOT_DELETE), 0);
    for (unsigned i = 0; i < DISKS; i++)
        assert_false(has(f, i));
}

static void one_moment_whatever_was_left(void **state)
{
    struct fixture *f = *state;
    struct task_seen seen = {0};
    for (unsigned i = 0; i < DISKS; i++) {
        write_both(f, 1);
        named_alone(f, i);
        write_both(f, 2); /* what the guest went on to write is in the other one */
        assert_int_equal(work(f, task_kind_SNAPSHOT_CREATE, &seen), 0);
        assert_int_equal(seen.snapshot.consistency, snapshot_consistency_CRASH);
        OBJECT_CLEAR(task_seen, &seen);
        write_both(f, 3);
        assert_int_equal(done(f, task_kind_SNAPSHOT_REVERT), 0);
        for (unsigned k = 0; k < DISKS; k++)
            assert_int_equal(holds(f, k), 2);
        assert_int_equal(done(f, task_kind_SNAPSHOT_DELETE), 0);
    }
}

static void reverted_all_or_none(void **state)
{
    struct fixture *f = *state;
    write_both(f, 1);
    named_alone(f, 0);
    write_both(f, 2);
    assert_int_equal(done(f, task_kind_SNAPSHOT_REVERT), -ENOENT);
    assert_non_null(strstr(f->err.text, "disk vol-1 has not this snapshot"));
    for (unsigned i = 0; i < DISKS; i++)
        assert_int_equal(holds(f, i), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(kept_reverted_and_removed, setup, teardown),
        cmocka_unit_test_setup_teardown(one_moment_whatever_was_left, setup, teardown),
        cmocka_unit_test_setup_teardown(reverted_all_or_none, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
