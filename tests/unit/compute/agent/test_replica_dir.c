/* Replicas of a host: they become a VM's disks, wherever that is cut off; nothing is made empty beside them; and they go when nobody
 * wants them, but not one that somebody works on, or that was there before the cluster was rebuilt. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/layer_pool_dir.h"
#include "common/file.h"
#include "compute/agent/replica_dir.h"

#define VM_A "aaaaaaaa-0000-4000-8000-000000000001"
#define VM_B "bbbbbbbb-0000-4000-8000-000000000002"
enum { DISK_BYTES = 1 << 20, EPOCH = 4 };

struct fixture {
    char dir[64], vms[96], replicas[96];
    struct vm_places places;
    struct vm_order order;
    char id[40];
};

static const char *const names[] = {"root", "data"};

static int setup(void **state)
{
    struct fixture *f = NEW(struct fixture);
    strcpy(f->dir, "/tmp/replica_dir.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->vms, sizeof(f->vms), "%s/vms", f->dir);
    snprintf(f->replicas, sizeof(f->replicas), "%s/replicas", f->dir);
    assert_int_equal(mkdir(f->vms, 0700), 0);
    f->places = (struct vm_places){.vms_dir = f->vms, .run_dir = f->dir, .images_dir = f->dir, .replicas_dir = f->replicas};
    OBJECT_TEXT(vm_order, &f->order, id, VM_A);
    OBJECT_SET(vm_order, &f->order, epoch, EPOCH + 1);
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        struct vm_disk *disk = OBJECT_ADD(vm_order, &f->order, disks);
        OBJECT_TEXT(vm_disk, disk, name, names[i]);
        OBJECT_SET(vm_disk, disk, size_bytes, DISK_BYTES);
    }
    CLEANUP_FREE char *disks = vm_files_path(&f->places, VM_A, "disks");
    assert_int_equal(file_make_directories(disks, 0700, NULL), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(file_remove_tree("/tmp", f->dir + 5, NULL), 0);
    OBJECT_CLEAR(vm_order, &f->order);
    free(f);
    return 0;
}

/* Points of @vm, in each of which the disks begin with its number; and one that is not complete. */
static void points_make(struct fixture *f, const char *vm, unsigned count)
{
    struct replica_dir dir;
    struct replica_store store;
    struct replica_record list = {.format = 0};
    uint8_t data[512];
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        struct replica_disk *disk = OBJECT_ADD(replica_record, &list, disks);
        OBJECT_TEXT(replica_disk, disk, name, names[i]);
        OBJECT_SET(replica_disk, disk, size_bytes, DISK_BYTES);
    }
    assert_int_equal(replica_dir_open(f->replicas, vm, true, &dir, NULL), 0);
    assert_int_equal(replica_store_open(&dir.places, vm, true, &store, NULL), 0);
    for (unsigned n = 1; n <= count + 1; n++) {
        memset(data, (int)n, sizeof(data));
        assert_int_equal(replica_store_begin(&store, EPOCH, &list.disks, NULL), 0);
        for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
            assert_int_equal(replica_store_write(&store, i, 4096, data, sizeof(data), false, NULL), 0);
        if (n <= count)
            assert_int_equal(replica_store_commit(&store, NULL), 0);
    }
    snprintf(f->id, sizeof(f->id), "%s", store.record.id);
    replica_store_close(&store);
    replica_dir_close(&dir);
    OBJECT_CLEAR(replica_record, &list);
}

static void order_replica(struct fixture *f, uint64_t number)
{
    OBJECT_TEXT(vm_replica_start, &f->order.replica, id, f->id);
    OBJECT_SET(vm_replica_start, &f->order.replica, number, number);
    object_mark(&vm_order_desc, &f->order, "replica");
}

static bool is_there(const struct fixture *f, const char *vm)
{
    CLEANUP_FREE char *path = xasprintf("%s/%s", f->replicas, vm);
    return access(path, F_OK) == 0;
}

static void disks_hold(struct fixture *f, uint8_t number)
{
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        CLEANUP_FREE char *path = xasprintf("%s/" VM_A "/disks/%s.layers", f->vms, names[i]);
        struct layer_pool *pool;
        struct layer_disk *disk;
        uint8_t data[512];
        assert_int_equal(layer_pool_dir_create(path, NULL, NULL, &pool, NULL), 0);
        assert_int_equal(layer_disk_open(pool, names[i], false, EPOCH + 1, &disk, NULL), 0);
        assert_int_equal(block_now(&disk->chain->block, BLOCK_READ, 4096, data, sizeof(data)), 0);
        assert_int_equal(data[0], number);
        assert_int_equal(data[511], number);
        assert_int_equal(disk->head.snapshots.count, 0);
        layer_disk_close(disk);
        layer_pool_dir_destroy(pool);
    }
}

static void a_replica_becomes_the_disks(void **state)
{
    struct fixture *f = *state;
    struct error err = {.code = 0};
    points_make(f, VM_A, 2);
    order_replica(f, 1); /* a newer point is as good */
    if (replica_dir_promote(&f->places, &f->order, &err) < 0)
        fail_msg("%s", err.text);
    assert_false(is_there(f, VM_A));
    disks_hold(f, 2);
    assert_int_equal(replica_dir_promote(&f->places, &f->order, &err), 0); /* again, after a kill */
    disks_hold(f, 2);
}

/* Killed after the first disk was moved. */
static void one_that_was_cut_off_is_done_to_the_end(void **state)
{
    struct fixture *f = *state;
    struct error err = {.code = 0};
    struct replica_dir dir;
    struct replica_store store;
    points_make(f, VM_A, 1);
    order_replica(f, 1);
    assert_int_equal(replica_dir_open(f->replicas, VM_A, false, &dir, NULL), 0);
    assert_int_equal(replica_store_open(&dir.places, VM_A, false, &store, NULL), 0);
    const struct replica_known known = {.id = f->id, .number = 1};
    assert_int_equal(replica_store_promote(&store, &known, EPOCH + 1, NULL), 0);
    replica_store_close(&store);
    replica_dir_close(&dir);
    CLEANUP_FREE char *from = xasprintf("%s/" VM_A "/root.layers", f->replicas);
    CLEANUP_FREE char *to = xasprintf("%s/" VM_A "/disks/root.layers", f->vms);
    assert_int_equal(rename(from, to), 0);
    if (replica_dir_promote(&f->places, &f->order, &err) < 0)
        fail_msg("%s", err.text);
    disks_hold(f, 1);
    assert_false(is_there(f, VM_A));
}

static void nothing_is_made_empty_beside_one(void **state)
{
    struct fixture *f = *state;
    struct error err = {.code = 0};
    assert_int_equal(replica_dir_promote(&f->places, &f->order, &err), 0); /* there never was one */
    points_make(f, VM_A, 1);
    assert_int_equal(replica_dir_promote(&f->places, &f->order, &err), -EEXIST); /* an order that does not know of it */
    order_replica(f, 2);
    assert_int_equal(replica_dir_promote(&f->places, &f->order, &err), -ESTALE); /* a point that never came */
    order_replica(f, 1);
    OBJECT_SET(vm_order, &f->order, epoch, EPOCH - 1);
    assert_int_equal(replica_dir_promote(&f->places, &f->order, &err), -ESTALE); /* an owner of the past */
    OBJECT_SET(vm_order, &f->order, epoch, EPOCH + 1);
    assert_int_equal(replica_dir_remove(f->replicas, VM_A, &err), 0);
    assert_int_equal(replica_dir_promote(&f->places, &f->order, &err), -ENOENT);
    assert_non_null(strstr(err.text, "not here"));
}

static void what_nobody_wants_goes(void **state)
{
    struct fixture *f = *state;
    struct replica_dir dir;
    char *ids[] = {(char *)(uintptr_t)VM_A};
    const struct string_list first = {.items = ids, .count = 1}, none = {.count = 0};
    points_make(f, VM_A, 1);
    points_make(f, VM_B, 1);
    replica_dir_sweep(f->replicas, &first);
    assert_true(is_there(f, VM_A));
    assert_false(is_there(f, VM_B));
    assert_int_equal(replica_dir_open(f->replicas, VM_A, false, &dir, NULL), 0);
    replica_dir_sweep(f->replicas, &none); /* somebody works on it */
    assert_true(is_there(f, VM_A));
    replica_dir_keep_all(f->replicas);
    replica_dir_close(&dir);
    replica_dir_sweep(f->replicas, &none); /* from before the cluster was rebuilt */
    assert_true(is_there(f, VM_A));
    assert_int_equal(replica_dir_open(f->replicas, VM_A, false, &dir, NULL), 0);
    replica_dir_known(&dir);
    replica_dir_close(&dir);
    replica_dir_sweep(f->replicas, &none);
    assert_false(is_there(f, VM_A));
}

/* Said when the first point comes, not when the VM's host is lost. */
static void another_file_system_is_refused(void **state)
{
    struct fixture *f = *state;
    struct error err = {.code = 0};
    assert_int_equal(replica_dir_check(f->replicas, f->vms, &err), 0); /* not there yet */
    points_make(f, VM_A, 1);
    assert_int_equal(replica_dir_check(f->replicas, f->vms, &err), 0);
    assert_int_equal(replica_dir_check("/proc", f->vms, &err), -EXDEV);
    assert_non_null(strstr(err.text, "put both on one"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_replica_becomes_the_disks, setup, teardown),
        cmocka_unit_test_setup_teardown(one_that_was_cut_off_is_done_to_the_end, setup, teardown),
        cmocka_unit_test_setup_teardown(nothing_is_made_empty_beside_one, setup, teardown),
        cmocka_unit_test_setup_teardown(what_nobody_wants_goes, setup, teardown),
        cmocka_unit_test_setup_teardown(another_file_system_is_refused, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
