/* Replicas of a host: they become a VM's disks, wherever that is cut off; nothing is made empty beside them; and they go when nobody
 * wants them, but not one that somebody works on, or that was there before the cluster was rebuilt. The same of disks in pools of the host,
 * which may be away. */
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
#include "compute/agent/pool_dir.h"
#include "compute/agent/replica_dir.h"

#define VM_A "aaaaaaaa-0000-4000-8000-000000000001"
#define VM_B "bbbbbbbb-0000-4000-8000-000000000002"
enum { DISK_BYTES = 1 << 20, EPOCH = 4 };

struct fixture {
    char dir[64], vms[96], replicas[96];
    struct vm_places places;
    struct vm_order order;
    char id[40];
    char ssd[96];                 /* the path of a pool, */
    struct object_list pools;     /* which is all of these */
    struct object_list in_pools;  /* what the order has in it */
};
static const struct object_list no_pools;

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
    replica_dir_places_clear(&f->in_pools);
    OBJECT_CLEAR(vm_order, &f->order);
    free(f);
    return 0;
}

/* The first disk is in a pool of the host from now on. */
static void pool_make(struct fixture *f)
{
    struct pool_seen seen = {0};
    snprintf(f->ssd, sizeof(f->ssd), "%s/ssd", f->dir);
    assert_int_equal(mkdir(f->ssd, 0700), 0);
    struct pool_order *pool = OBJECT_ADD(vm_order, &f->order, pools);
    OBJECT_TEXT(pool_order, pool, id, VM_B);
    OBJECT_TEXT(pool_order, pool, name, "ssd");
    OBJECT_SET(pool_order, pool, kind, pool_kind_DIR);
    OBJECT_TEXT(pool_order, pool, path, f->ssd);
    OBJECT_SET(pool_order, pool, make, true);
    pool_dir_look(pool, &seen);
    assert_true(seen.present);
    OBJECT_CLEAR(pool_seen, &seen);
    OBJECT_SET(pool_order, pool, make, false);
    f->pools = (struct object_list){.items = pool, .count = 1};
    OBJECT_TEXT(vm_disk, (struct vm_disk *)f->order.disks.items, pool, "ssd");
    replica_dir_places(&f->order, &f->in_pools);
    assert_int_equal(f->in_pools.count, 1);
    assert_string_equal(((struct replica_place *)f->in_pools.items)->disk, names[0]);
}

static bool pool_has(const struct fixture *f, const char *what)
{
    CLEANUP_FREE char *path = xasprintf("%s/%s", f->ssd, what);
    return access(path, F_OK) == 0;
}

/* As if nothing were mounted there, or it is again. */
static void pool_goes(const struct fixture *f, bool away)
{
    CLEANUP_FREE char *marker = xasprintf("%s/" POOL_DIR_MARKER, f->ssd);
    CLEANUP_FREE char *aside = xasprintf("%s/marker", f->dir);
    assert_int_equal(rename(away ? marker : aside, away ? aside : marker), 0);
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
    assert_int_equal(replica_dir_open(f->replicas, vm, true, &f->in_pools, &dir, NULL), 0);
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
        CLEANUP_FREE char *path = i == 0 && f->pools.count > 0 ? xasprintf("%s/vms/" VM_A "/%s.layers", f->ssd, names[i])
                                                               : xasprintf("%s/" VM_A "/disks/%s.layers", f->vms, names[i]);
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
    assert_int_equal(replica_dir_open(f->replicas, VM_A, false, NULL, &dir, NULL), 0);
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
    assert_int_equal(replica_dir_remove(f->replicas, &no_pools, VM_A, &err), 0);
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
    replica_dir_sweep(f->replicas, &no_pools, &first);
    assert_true(is_there(f, VM_A));
    assert_false(is_there(f, VM_B));
    assert_int_equal(replica_dir_open(f->replicas, VM_A, false, NULL, &dir, NULL), 0);
    replica_dir_sweep(f->replicas, &no_pools, &none); /* somebody works on it */
    assert_true(is_there(f, VM_A));
    replica_dir_keep_all(f->replicas);
    replica_dir_close(&dir);
    replica_dir_sweep(f->replicas, &no_pools, &none); /* from before the cluster was rebuilt */
    assert_true(is_there(f, VM_A));
    assert_int_equal(replica_dir_open(f->replicas, VM_A, false, NULL, &dir, NULL), 0);
    replica_dir_known(&dir);
    replica_dir_close(&dir);
    replica_dir_sweep(f->replicas, &no_pools, &none);
    assert_false(is_there(f, VM_A));
}

static void a_disk_in_a_pool_stays_in_it(void **state)
{
    struct fixture *f = *state;
    struct error err = {.code = 0};
    pool_make(f);
    points_make(f, VM_A, 2);
    assert_true(pool_has(f, "replicas/" VM_A "/root.layers/root.disk"));
    CLEANUP_FREE char *beside = xasprintf("%s/" VM_A "/root.layers", f->replicas);
    assert_int_equal(access(beside, F_OK), -1);
    assert_int_equal(replica_dir_promote(&f->places, &f->order, &err), -EEXIST); /* an order that does not know of it */
    order_replica(f, 2);
    if (replica_dir_promote(&f->places, &f->order, &err) < 0)
        fail_msg("%s", err.text);
    disks_hold(f, 2);
    assert_false(is_there(f, VM_A));
    assert_false(pool_has(f, "replicas/" VM_A));
    assert_int_equal(replica_dir_promote(&f->places, &f->order, &err), 0);
    disks_hold(f, 2);
}

/* Where a migration, or a move, has put it. */
static void a_disk_in_a_pool_has_its_place(void **state)
{
    struct fixture *f = *state;
    struct error err = {.code = 0};
    OBJECT_TEXT(vm_disk, (struct vm_disk *)f->order.disks.items, place, VM_B);
    pool_make(f);
    points_make(f, VM_A, 1);
    order_replica(f, 1);
    if (replica_dir_promote(&f->places, &f->order, &err) < 0)
        fail_msg("%s", err.text);
    assert_true(pool_has(f, "vms/" VM_A "/root." VM_B ".layers/root.disk"));
}

/* Does the record say that it is one? An agent that knows of none then cannot read it. */
static bool has_volume(struct fixture *f, const char *name)
{
    struct replica_dir dir;
    struct replica_store store;
    bool is_volume = false;
    assert_int_equal(replica_dir_open(f->replicas, VM_A, false, &f->in_pools, &dir, NULL), 0);
    assert_int_equal(replica_store_open(&dir.places, VM_A, false, &store, NULL), 0);
    for (size_t i = 0; i < store.record.disks.count; i++) {
        const struct replica_disk *disk = (const struct replica_disk *)store.record.disks.items + i;
        is_volume = is_volume || (strcmp(disk->name, name) == 0 && disk->volume);
    }
    replica_store_close(&store);
    replica_dir_close(&dir);
    return is_volume;
}

/* One that is a volume, among the volumes, in the place that its copy was given: what an earlier stay of it has left is not touched. */
static void a_volume_in_a_pool_has_its_place(void **state)
{
    struct fixture *f = *state;
    struct error err = {.code = 0};
    struct vm_disk *disk = f->order.disks.items;
    OBJECT_TEXT(vm_disk, disk, volume, VM_B);
    OBJECT_SET(vm_disk, disk, attachment, 3);
    pool_make(f);
    points_make(f, VM_A, 1);
    assert_true(pool_has(f, "replicas/" VM_A "/root.layers/root.disk"));
    assert_true(has_volume(f, "root"));
    assert_false(has_volume(f, "data"));
    CLEANUP_FREE char *left = xasprintf("%s/volumes/" VM_B "/root.layers", f->ssd);
    assert_int_equal(file_make_directories(left, 0700, NULL), 0);
    assert_int_equal(replica_dir_check_pools(&f->in_pools, VM_A, &err), 0);
    OBJECT_TEXT(vm_disk, disk, place, VM_A);
    order_replica(f, 1);
    if (replica_dir_promote(&f->places, &f->order, &err) < 0)
        fail_msg("%s", err.text);
    assert_true(pool_has(f, "volumes/" VM_B "." VM_A "/root.layers/root.disk"));
    assert_false(pool_has(f, "volumes/" VM_B "/root.layers/root.disk"));
    assert_false(pool_has(f, "replicas/" VM_A));
    assert_int_equal(replica_dir_promote(&f->places, &f->order, &err), 0); /* again, after a kill */
    assert_int_equal(rmdir(left), 0);
    CLEANUP_FREE char *volumes = xasprintf("%s/volumes", f->ssd);
    assert_int_equal(file_remove_tree(volumes, VM_B "." VM_A, NULL), 0);
    assert_int_equal(replica_dir_promote(&f->places, &f->order, &err), -ENOENT); /* nothing is made in its stead */
    assert_false(pool_has(f, "volumes/" VM_B "." VM_A));
}

/* Neither is the disk in it taken for one that has been moved already, nor is what is below its mount used. */
static void a_pool_that_is_away_is_waited_for(void **state)
{
    struct fixture *f = *state;
    struct error err = {.code = 0};
    struct replica_dir dir;
    struct replica_store store;
    pool_make(f);
    points_make(f, VM_A, 1);
    order_replica(f, 1);
    pool_goes(f, true);
    assert_int_equal(replica_dir_promote(&f->places, &f->order, &err), -ESTALE);
    assert_non_null(strstr(err.text, "ssd"));
    assert_int_equal(replica_dir_open(f->replicas, VM_A, true, &f->in_pools, &dir, NULL), 0);
    assert_int_equal(replica_store_open(&dir.places, VM_A, true, &store, NULL), 0);
    assert_int_equal(replica_store_follow(&store, EPOCH, 7, &store.record.disks, &err), -ESTALE);
    replica_store_close(&store);
    replica_dir_close(&dir);
    pool_goes(f, false);
    /* cut off after the record was told, and the pool goes then */
    assert_int_equal(replica_dir_open(f->replicas, VM_A, false, &f->in_pools, &dir, NULL), 0);
    assert_int_equal(replica_store_open(&dir.places, VM_A, false, &store, NULL), 0);
    const struct replica_known known = {.id = f->id, .number = 1};
    assert_int_equal(replica_store_promote(&store, &known, EPOCH + 1, NULL), 0);
    replica_store_close(&store);
    replica_dir_close(&dir);
    pool_goes(f, true);
    assert_int_equal(replica_dir_promote(&f->places, &f->order, &err), -ESTALE);
    assert_true(is_there(f, VM_A));
    pool_goes(f, false);
    if (replica_dir_promote(&f->places, &f->order, &err) < 0)
        fail_msg("%s", err.text);
    disks_hold(f, 1);
    pool_goes(f, true);
    assert_int_equal(replica_dir_promote(&f->places, &f->order, &err), -ESTALE);
}

/* Its VM's disk is in another place by now: what is there under that name is no part of the replica. */
static void a_disk_elsewhere_is_no_part_of_it(void **state)
{
    struct fixture *f = *state;
    struct error err = {.code = 0};
    struct replica_dir dir;
    struct replica_store store;
    points_make(f, VM_A, 1);
    pool_make(f);
    order_replica(f, 1);
    assert_int_equal(replica_dir_promote(&f->places, &f->order, &err), -EINVAL);
    assert_non_null(strstr(err.text, "disk root in another pool"));
    assert_int_equal(replica_dir_open(f->replicas, VM_A, true, &f->in_pools, &dir, NULL), 0);
    assert_int_equal(replica_store_open(&dir.places, VM_A, true, &store, NULL), 0);
    assert_int_equal(replica_store_begin(&store, EPOCH, &store.record.disks, &err), -EINVAL);
    replica_store_close(&store);
    replica_dir_close(&dir);
    assert_false(pool_has(f, "replicas/" VM_A));
}

/* A pool that was away for long when the VM went elsewhere. */
static void what_an_earlier_stay_has_left_is_told_of(void **state)
{
    struct fixture *f = *state;
    struct error err = {.code = 0};
    pool_make(f);
    assert_int_equal(replica_dir_check_pools(&f->in_pools, VM_A, &err), 0);
    CLEANUP_FREE char *left = xasprintf("%s/vms/" VM_A, f->ssd);
    assert_int_equal(file_make_directories(left, 0700, NULL), 0);
    assert_int_equal(replica_dir_check_pools(&f->in_pools, VM_A, &err), -EBUSY);
    assert_non_null(strstr(err.text, left));
    assert_int_equal(replica_dir_check_pools(&f->in_pools, VM_B, &err), 0);
    pool_goes(f, true);
    assert_int_equal(replica_dir_check_pools(&f->in_pools, VM_B, &err), -ESTALE);
}

/* The pool's disk was replaced by an empty one. */
static void a_disk_that_is_gone_is_told_of(void **state)
{
    struct fixture *f = *state;
    struct error err = {.code = 0};
    struct replica_dir dir;
    struct replica_store store;
    pool_make(f);
    points_make(f, VM_A, 1);
    CLEANUP_FREE char *replicas = xasprintf("%s/replicas", f->ssd);
    assert_int_equal(file_remove_tree(replicas, VM_A, NULL), 0);
    assert_int_equal(replica_dir_open(f->replicas, VM_A, true, &f->in_pools, &dir, NULL), 0);
    assert_int_equal(replica_store_open(&dir.places, VM_A, true, &store, NULL), 0);
    assert_int_equal(replica_store_follow(&store, EPOCH, 7, &store.record.disks, &err), -ENOENT);
    assert_non_null(strstr(err.text, "disk root of the replica is gone from its host"));
    replica_store_close(&store);
    replica_dir_close(&dir);
    order_replica(f, 1);
    assert_int_equal(replica_dir_promote(&f->places, &f->order, &err), -ENOENT);
    assert_true(is_there(f, VM_A));
}

static void what_nobody_wants_goes_from_pools(void **state)
{
    struct fixture *f = *state;
    struct replica_dir dir;
    char *ids[] = {(char *)(uintptr_t)VM_A};
    const struct string_list first = {.items = ids, .count = 1}, none = {.count = 0};
    pool_make(f);
    points_make(f, VM_A, 1);
    replica_dir_sweep(f->replicas, &f->pools, &first);
    assert_true(pool_has(f, "replicas/" VM_A "/root.layers"));
    assert_int_equal(replica_dir_open(f->replicas, VM_A, false, NULL, &dir, NULL), 0);
    replica_dir_sweep(f->replicas, &f->pools, &none); /* somebody works on it */
    replica_dir_keep_all(f->replicas);
    replica_dir_close(&dir);
    replica_dir_sweep(f->replicas, &f->pools, &none); /* from before the cluster was rebuilt */
    assert_true(pool_has(f, "replicas/" VM_A "/root.layers"));
    assert_int_equal(replica_dir_open(f->replicas, VM_A, false, NULL, &dir, NULL), 0);
    replica_dir_known(&dir);
    replica_dir_close(&dir);
    replica_dir_sweep(f->replicas, &no_pools, &none); /* the pool is away: the rest of it goes alone */
    assert_false(is_there(f, VM_A));
    assert_true(pool_has(f, "replicas/" VM_A "/root.layers"));
    pool_goes(f, true);
    replica_dir_sweep(f->replicas, &f->pools, &none); /* another directory */
    assert_true(pool_has(f, "replicas/" VM_A "/root.layers"));
    pool_goes(f, false);
    replica_dir_sweep(f->replicas, &f->pools, &none);
    assert_false(pool_has(f, "replicas/" VM_A));
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
        cmocka_unit_test_setup_teardown(a_disk_in_a_pool_stays_in_it, setup, teardown),
        cmocka_unit_test_setup_teardown(a_disk_in_a_pool_has_its_place, setup, teardown),
        cmocka_unit_test_setup_teardown(a_volume_in_a_pool_has_its_place, setup, teardown),
        cmocka_unit_test_setup_teardown(a_pool_that_is_away_is_waited_for, setup, teardown),
        cmocka_unit_test_setup_teardown(a_disk_elsewhere_is_no_part_of_it, setup, teardown),
        cmocka_unit_test_setup_teardown(what_an_earlier_stay_has_left_is_told_of, setup, teardown),
        cmocka_unit_test_setup_teardown(a_disk_that_is_gone_is_told_of, setup, teardown),
        cmocka_unit_test_setup_teardown(what_nobody_wants_goes_from_pools, setup, teardown),
        cmocka_unit_test_setup_teardown(another_file_system_is_refused, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
