/* The child of a volume-move: what it copies, that only a copy that is whole is said to be, and that begun again it comes to the
 * same. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/layer_disk.h"
#include "block/layer_pool_dir.h"
#include "common/file.h"
#include "compute/agent/pool_dir.h"
#include "compute/agent/task_child.h"
#include "compute/agent/vm_files.h"

#define VOLUME "aaaaaaaa-0000-4000-8000-000000000001"
#define PLACE "cccccccc-0000-4000-8000-000000000001"
#define CLONE "aaaaaaaa-0000-4000-8000-000000000002"
#define SNAPSHOT "dddddddd-0000-4000-8000-000000000001"
#define OTHER "dddddddd-0000-4000-8000-000000000002"
#define MIB (UINT64_C(1) << 20)
#define SIZE (8 * MIB)

struct fixture {
    char dir[64], image[96];
    struct volume_move work;
    struct vm_disk from, to;
};

static void pool_make(struct fixture *f, struct volume_order *order, const char *name, unsigned number)
{
    char id[37], path[96];
    struct pool_seen seen = {0};
    snprintf(id, sizeof id, "bbbbbbbb-0000-4000-8000-%012u", number);
    snprintf(path, sizeof path, "%s/%s", f->dir, name);
    assert_int_equal(mkdir(path, 0755), 0);
    OBJECT_TEXT(volume_order, order, id, VOLUME);
    OBJECT_TEXT(volume_order, order, disk, "vol-1");
    OBJECT_SET(volume_order, order, size_bytes, SIZE);
    OBJECT_TEXT(pool_order, &order->pool, id, id);
    OBJECT_TEXT(pool_order, &order->pool, name, name);
    OBJECT_SET(pool_order, &order->pool, kind, pool_kind_DIR);
    OBJECT_TEXT(pool_order, &order->pool, path, path);
    OBJECT_SET(pool_order, &order->pool, make, true);
    pool_dir_look(&order->pool, &seen);
    assert_true(seen.present);
    OBJECT_TEXT(pool_order, &order->pool, mark, seen.mark);
    OBJECT_SET(pool_order, &order->pool, make, false);
    OBJECT_CLEAR(pool_seen, &seen);
    object_mark(&volume_order_desc, order, "pool");
}

static int setup(void **state)
{
    struct fixture *f = NEW(struct fixture);
    strcpy(f->dir, "/tmp/task_volume.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    pool_make(f, &f->work.from, "old", 1);
    pool_make(f, &f->work.to, "new", 2);
    OBJECT_TEXT(volume_order, &f->work.to, place, PLACE);
    object_mark(&volume_move_desc, &f->work, "from");
    object_mark(&volume_move_desc, &f->work, "to");
    f->from = (struct vm_disk){.name = f->work.from.disk, .size_bytes = SIZE, .volume = f->work.from.id};
    f->to = (struct vm_disk){.name = f->work.to.disk, .size_bytes = SIZE, .volume = f->work.to.id, .place = f->work.to.place};
    /* above an image, as a volume that begins as one */
    snprintf(f->image, sizeof f->image, "%s/abc", f->dir);
    int fd = open(f->image, O_RDWR | O_CREAT, 0644);
    assert_int_equal(ftruncate(fd, MIB), 0);
    assert_int_equal(pwrite(fd, "image", 5, 4096), 5);
    close(fd);
    struct error err;
    assert_int_equal(pool_dir_make_disk(&f->work.from.pool, NULL, &f->from, f->image, false, &err), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(file_remove_tree("/tmp", f->dir + 5, NULL), 0);
    OBJECT_CLEAR(volume_move, &f->work);
    free(f);
    return 0;
}

static void disk_open(const struct pool_order *pool, const struct vm_disk *disk, bool read_only, struct layer_pool **ret_pool,
                      struct layer_disk **ret_disk)
{
    struct error err = {.code = 0};
    CLEANUP_FREE char *path = pool_dir_disk(pool, NULL, disk);
    assert_int_equal(layer_pool_dir_create(path, NULL, NULL, ret_pool, &err), 0);
    if (layer_disk_open(*ret_pool, disk->name, read_only, 0, ret_disk, &err) < 0)
        fail_msg("%s", err.text);
}

static void write_at(struct fixture *f, uint64_t at, const char *text)
{
    struct layer_pool *pool;
    struct layer_disk *disk;
    char sector[512] = "";
    snprintf(sector, sizeof sector, "%s", text);
    disk_open(&f->work.from.pool, &f->from, false, &pool, &disk);
    assert_int_equal(block_now(&disk->chain->block, BLOCK_WRITE, at, sector, sizeof sector), 0);
    layer_disk_close(disk);
    layer_pool_dir_destroy(pool);
}

/* Is all of the copy what the volume is? Returns how many bytes of it may be data. */
static uint64_t compare(struct fixture *f)
{
    struct layer_pool *pools[2];
    struct layer_disk *disks[2];
    uint64_t bytes = 0, start, end;
    CLEANUP_FREE uint8_t *a = xcalloc(1, SIZE), *b = xcalloc(1, SIZE);
    disk_open(&f->work.from.pool, &f->from, true, &pools[0], &disks[0]);
    disk_open(&f->work.to.pool, &f->to, true, &pools[1], &disks[1]);
    struct block *source = &disks[0]->chain->block, *copy = &disks[1]->chain->block;
    assert_int_equal(copy->size_bytes, source->size_bytes);
    assert_int_equal(block_now(source, BLOCK_READ, 0, a, source->size_bytes), 0);
    assert_int_equal(block_now(copy, BLOCK_READ, 0, b, copy->size_bytes), 0);
    assert_memory_equal(a, b, SIZE);
    for (uint64_t at = 0; block_next_data(copy, at, &start, &end) > 0; at = end)
        bytes += end - start;
    for (unsigned i = 0; i < 2; i++) {
        layer_disk_close(disks[i]);
        layer_pool_dir_destroy(pools[i]);
    }
    return bytes;
}

static int work(struct fixture *f, struct error *err)
{
    struct bytes_writer out = {0};
    struct task_seen seen = {0};
    *err = (struct error){.code = 0};
    OBJECT_ENCODE(volume_move, &f->work, &out);
    int r = task_volume_work((const char *)out.data, out.size, &seen, err);
    bytes_writer_finish(&out);
    OBJECT_CLEAR(task_seen, &seen);
    return r;
}

static bool is_there(struct fixture *f)
{
    return pool_dir_copy_is_whole(&f->work.to.pool, VOLUME, &f->to, NULL) == 1;
}

static void all_is_copied_and_holes_stay(void **state)
{
    struct fixture *f = *state;
    struct error err;
    write_at(f, 0, "first");
    write_at(f, 3 * MIB + 512, "middle");
    write_at(f, SIZE - 512, "last");
    write_at(f, 5 * MIB, ""); /* zeroes become a hole */
    if (work(f, &err) < 0)
        fail_msg("%s", err.text);
    assert_true(compare(f) <= 3 * LAYER_CLUSTER_BYTES); /* the image's data is in the first one */
    /* the volume itself is there still, and was not changed: that is others' to end */
    CLEANUP_FREE char *source = pool_dir_disk(&f->work.from.pool, NULL, &f->from);
    assert_int_equal(access(source, F_OK), 0);
    /* begun again: a copy that is whole is not touched */
    write_at(f, 0, "newer");
    assert_int_equal(work(f, &err), 0);
    struct layer_pool *pool;
    struct layer_disk *disk;
    char sector[512];
    disk_open(&f->work.to.pool, &f->to, true, &pool, &disk);
    assert_int_equal(block_now(&disk->chain->block, BLOCK_READ, 0, sector, sizeof sector), 0);
    assert_string_equal(sector, "first");
    layer_disk_close(disk);
    layer_pool_dir_destroy(pool);
    /* what is left of either is removed by its place, and of nothing else */
    assert_int_equal(pool_dir_remove_volume(&f->work.from.pool, VOLUME, NULL, &err), 0);
    assert_int_equal(pool_dir_remove_volume(&f->work.to.pool, VOLUME, NULL, &err), 0);
    assert_true(access(source, F_OK) < 0 && is_there(f));
    assert_int_equal(pool_dir_remove_volume(&f->work.to.pool, VOLUME, PLACE, &err), 0);
    assert_false(is_there(f));
}

static void what_was_begun_is_made_anew(void **state)
{
    struct fixture *f = *state;
    struct error err;
    CLEANUP_FREE char *part = NULL;
    char path[256];
    assert_int_equal(pool_dir_copy_begin(&f->work.to.pool, VOLUME, &f->to, geteuid(), &part, &err), 0);
    snprintf(path, sizeof path, "%s/vol-1.disk", part);
    close(open(path, O_WRONLY | O_CREAT, 0600)); /* half of a copy, or one that a VMM was at */
    assert_false(is_there(f));
    write_at(f, MIB, "data");
    assert_int_equal(work(f, &err), 0);
    compare(f);
    assert_true(is_there(f));
}

static void failures_leave_no_copy(void **state)
{
    struct fixture *f = *state;
    struct error err;
    struct layer_pool *pool;
    struct layer_disk *disk;
    char *mark = xstrdup(f->work.to.pool.mark);
    OBJECT_TEXT(pool_order, &f->work.to.pool, mark, "another");
    assert_int_equal(work(f, &err), -ESTALE);
    OBJECT_TEXT(pool_order, &f->work.to.pool, mark, mark);
    free(mark);
    assert_false(is_there(f));
    /* somebody writes to it */
    disk_open(&f->work.from.pool, &f->from, false, &pool, &disk);
    assert_true(work(f, &err) < 0);
    assert_non_null(strstr(err.text, "in use"));
    assert_false(is_there(f));
    /* in a pool that other hosts reach it may be one that is gone, and the record says that nobody has it */
    OBJECT_SET(pool_order, &f->work.from.pool, kind, pool_kind_SHARED_DIR);
    assert_int_equal(work(f, &err), 0);
    assert_int_equal(pool_dir_remove_volume(&f->work.to.pool, VOLUME, PLACE, &err), 0);
    OBJECT_SET(pool_order, &f->work.from.pool, kind, pool_kind_DIR);
    layer_disk_close(disk);
    layer_pool_dir_destroy(pool);
    assert_int_equal(work(f, &err), 0);
    compare(f);
    /* there is no such volume */
    assert_int_equal(pool_dir_remove_volume(&f->work.from.pool, VOLUME, NULL, &err), 0);
    assert_int_equal(pool_dir_remove_volume(&f->work.to.pool, VOLUME, PLACE, &err), 0);
    assert_int_equal(work(f, &err), -ENOENT);
    assert_non_null(strstr(err.text, "cannot open"));
    assert_false(is_there(f));
}

/* The layers are a VMM's, and so is what they say. */
static void no_copy_is_larger_than_its_volume(void **state)
{
    struct fixture *f = *state;
    struct error err;
    OBJECT_SET(volume_order, &f->work.from, size_bytes, SIZE - MIB);
    assert_true(work(f, &err) < 0);
    assert_non_null(strstr(err.text, "layers say"));
    assert_false(is_there(f));
    /* where nobody knows how large it is, it has to fit */
    f->work.from.size_bytes = 0;
    f->work.from.head.present &= ~(UINT64_C(1) << (object_field(&volume_order_desc, "size_bytes") - volume_order_desc.fields));
    assert_int_equal(work(f, &err), 0);
    compare(f);
    assert_int_equal(pool_dir_remove_volume(&f->work.to.pool, VOLUME, PLACE, &err), 0);
    assert_int_equal(pool_dir_remove_volume(&f->work.from.pool, VOLUME, NULL, &err), 0);
    f->from.size_bytes = UINT64_C(8) << 40;
    assert_int_equal(pool_dir_make_disk(&f->work.from.pool, NULL, &f->from, NULL, false, &err), 0);
    assert_int_equal(work(f, &err), -ENOSPC);
    assert_non_null(strstr(err.text, "free where it is to go"));
    assert_false(is_there(f));
}

/* A VM's own disk, between a pool and the directory of its host: its first place has no name, and is shared with other disks. */
static void own_disks(void **state)
{
    struct fixture *f = *state;
    struct error err;
    char vms[96], disks[160], raw[200], path[400];
    struct volume_order *const orders[] = {&f->work.from, &f->work.to};
    snprintf(vms, sizeof vms, "%s/vms", f->dir);
    snprintf(disks, sizeof disks, "%s/" VOLUME "/disks", vms);
    snprintf(raw, sizeof raw, "%s/vol-1.raw", disks);
    for (size_t i = 0; i < ARRAY_SIZE(orders); i++)
        OBJECT_SET(volume_order, orders[i], own, true);
    OBJECT_CLEAR(pool_order, &f->work.from.pool);
    OBJECT_TEXT(pool_order, &f->work.from.pool, path, vms);
    f->from.volume = f->to.volume = NULL;
    assert_int_equal(file_make_directories(disks, 0700, &err), 0);
    snprintf(path, sizeof path, "%s/other.layers", disks);
    assert_int_equal(mkdir(path, 0700), 0);
    /* there is none; then it is one raw file */
    assert_int_equal(work(f, &err), -ENOENT);
    assert_int_equal(pool_dir_find(&f->work.from.pool, VOLUME, &f->from, &err), -ENOENT);
    int fd = open(raw, O_RDWR | O_CREAT, 0600);
    assert_int_equal(ftruncate(fd, SIZE), 0);
    assert_int_equal(pwrite(fd, "raw", 3, MIB), 3);
    close(fd);
    assert_int_equal(pool_dir_find(&f->work.from.pool, VOLUME, &f->from, &err), 0);
    if (work(f, &err) < 0)
        fail_msg("%s", err.text);
    assert_true(is_there(f));
    CLEANUP_FREE char *copy = pool_dir_disk(&f->work.to.pool, VOLUME, &f->to);
    assert_non_null(strstr(copy, "/vms/" VOLUME "/vol-1." PLACE ".layers"));
    assert_int_equal(pool_dir_remove_disk(&f->work.from.pool, VOLUME, &f->from, &err), 0);
    assert_true(access(raw, F_OK) < 0 && access(path, F_OK) == 0);
    /* and back, to a place of its own */
    struct vm_disk back = f->to;
    back.place = (char *)(uintptr_t)"cccccccc-0000-4000-8000-000000000002";
    struct volume_move *w = &f->work;
    struct pool_order pool = w->from.pool;
    w->from.pool = w->to.pool;
    w->to.pool = pool;
    OBJECT_TEXT(volume_order, &w->from, place, PLACE);
    OBJECT_TEXT(volume_order, &w->to, place, back.place);
    f->to.place = w->from.place;
    if (work(f, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(pool_dir_copy_is_whole(&w->to.pool, VOLUME, &back, &err), 1);
    struct layer_pool *layers;
    struct layer_disk *disk;
    char sector[512];
    CLEANUP_FREE char *there = pool_dir_disk(&w->to.pool, VOLUME, &back);
    assert_int_equal(layer_pool_dir_create(there, NULL, NULL, &layers, &err), 0);
    assert_int_equal(layer_disk_open(layers, "vol-1", true, 0, &disk, &err), 0);
    assert_int_equal(disk->chain->block.size_bytes, SIZE);
    assert_int_equal(block_now(&disk->chain->block, BLOCK_READ, MIB, sector, sizeof sector), 0);
    assert_memory_equal(sector, "raw\0", 4);
    layer_disk_close(disk);
    layer_pool_dir_destroy(layers);
    /* each is removed by its place, with its mark, and of nothing else; twice is fine, and so is where nothing ever was */
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(pool_dir_remove_disk(&w->from.pool, VOLUME, &f->to, &err), 0);
    assert_true(access(copy, F_OK) < 0 && access(there, F_OK) == 0 && access(path, F_OK) == 0);
    assert_int_equal(pool_dir_copy_is_whole(&w->from.pool, VOLUME, &f->to, &err), 0);
    assert_int_equal(pool_dir_remove_disk(&w->from.pool, "aaaaaaaa-0000-4000-8000-000000000009", &f->to, &err), 0);
    assert_int_equal(pool_dir_remove_disk(&w->to.pool, VOLUME, &back, &err), 0);
    assert_true(access(there, F_OK) < 0 && access(path, F_OK) == 0);
}

/* Where a VMM has a disk is told by its path; a disk may be called as another one, and a dot and more. */
static void places_in_paths(void **state UNUSED)
{
    static const struct {
        const char *disk, *volume, *path, *place;
    } rows[] = {
        {"root", NULL, "/srv/agent/vms/" VOLUME "/disks/root.layers/root.disk", NULL},
        {"root", NULL, "/srv/agent/vms/" VOLUME "/disks/root.raw", NULL},
        {"root", NULL, "/srv/agent/vms/" VOLUME "/disks/root." PLACE ".layers/root.disk", PLACE},
        {"root", NULL, "/srv/agent/vms/" VOLUME "/disks/root." PLACE ".plugged/root.disk", PLACE},
        {"root", NULL, "/nas/vms/" VOLUME "/root.b." PLACE ".layers/root.b.disk", NULL},
        {"root.b", NULL, "/nas/vms/" VOLUME "/root.b." PLACE ".layers/root.b.disk", PLACE},
        {"root", NULL, "/root." PLACE "/vms/" VOLUME "/root.layers/root.disk", NULL},
        {"vol-1", VOLUME, "/nas/volumes/" VOLUME "/vol-1.layers/vol-1.disk", NULL},
        {"vol-1", VOLUME, "/nas/volumes/" VOLUME "." PLACE "/vol-1.layers/vol-1.disk", PLACE},
        {"vol-1", VOLUME, "/srv/agent/vms/x/disks/vol-1." PLACE ".plugged/vol-1.disk", PLACE},
        {"vol-1", VOLUME, "/srv/agent/vms/x/disks/vol-1.plugged/vol-1.disk", NULL},
        {"root", NULL, "/root.", NULL},
    };
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        const struct vm_disk disk = {.name = (char *)(uintptr_t)rows[i].disk, .volume = (char *)(uintptr_t)rows[i].volume};
        char buffer[37];
        const char *place = vm_files_place_of(&disk, rows[i].path, buffer);
        if (!text_same(place, rows[i].place))
            fail_msg("%s: %s", rows[i].path, place != NULL ? place : "none");
    }
}

/* What it has in a snapshot becomes another volume, while somebody writes to it. */
static void cloned_as_a_snapshot_has_it(void **state)
{
    struct fixture *f = *state;
    struct layer_pool *pool, *copy_pool;
    struct layer_disk *used, *copy;
    struct error err;
    char sector[512] = "after";
    write_at(f, MIB, "before");
    disk_open(&f->work.from.pool, &f->from, false, &pool, &used);
    assert_int_equal(layer_disk_snapshot(used, SNAPSHOT, &err), 0);
    assert_int_equal(block_now(&used->chain->block, BLOCK_WRITE, MIB, sector, sizeof sector), 0);
    OBJECT_TEXT(volume_order, &f->work.to, id, CLONE);
    OBJECT_TEXT(volume_order, &f->work.to, disk, "vol-2");
    OBJECT_TEXT(volume_move, &f->work, snapshot, SNAPSHOT);
    f->to.name = f->work.to.disk;
    f->to.volume = f->work.to.id;
    if (work(f, &err) < 0)
        fail_msg("%s", err.text);
    disk_open(&f->work.to.pool, &f->to, true, &copy_pool, &copy);
    assert_int_equal(block_now(&copy->chain->block, BLOCK_READ, MIB, sector, sizeof sector), 0);
    assert_string_equal(sector, "before");
    assert_int_equal(block_now(&copy->chain->block, BLOCK_READ, 4096, sector, sizeof sector), 0);
    assert_memory_equal(sector, "image", 5);
    assert_int_equal(copy->chain->count, 1); /* above nothing: all may go in any order */
    layer_disk_close(copy);
    layer_pool_dir_destroy(copy_pool);
    layer_disk_close(used);
    layer_pool_dir_destroy(pool);
    OBJECT_TEXT(volume_move, &f->work, snapshot, OTHER);
    OBJECT_TEXT(volume_order, &f->work.to, place, OTHER);
    assert_true(work(f, &err) < 0);
    assert_non_null(strstr(err.text, "has no snapshot"));
}

static int clone_work(const struct vm_copy *copy, struct error *err)
{
    struct bytes_writer out = {0};
    struct task_seen seen = {0};
    *err = (struct error){.code = 0};
    OBJECT_ENCODE(vm_copy, copy, &out);
    int r = task_clone_work((const char *)out.data, out.size, &seen, err);
    bytes_writer_finish(&out);
    OBJECT_CLEAR(task_seen, &seen);
    return r;
}

static void raw_make(const char *directory, const char *disk, const char *text)
{
    char path[300];
    snprintf(path, sizeof path, "%s/%s.raw", directory, disk);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_int_equal(ftruncate(fd, SIZE), 0);
    assert_int_equal(pwrite(fd, text, strlen(text), MIB), (ssize_t)strlen(text));
    close(fd);
}

static void copied_is(const struct pool_order *pool, const struct vm_disk *disk, const char *text)
{
    struct layer_pool *layers;
    struct layer_disk *opened;
    struct error err;
    char sector[512];
    CLEANUP_FREE char *directory = pool_dir_disk(pool, CLONE, disk);
    assert_int_equal(layer_pool_dir_create(directory, NULL, NULL, &layers, &err), 0);
    assert_int_equal(layer_disk_open(layers, disk->name, true, 0, &opened, &err), 0);
    assert_int_equal(opened->chain->count, 1);
    assert_int_equal(block_now(&opened->chain->block, BLOCK_READ, MIB, sector, sizeof sector), 0);
    assert_memory_equal(sector, text, strlen(text));
    layer_disk_close(opened);
    layer_pool_dir_destroy(layers);
}

/* Those of a VM, to another VM in the directory of the host, which has none yet: one after another, and begun again those that are not whole. */
static void disks_of_a_vm(void **state)
{
    static const char *const names[] = {"root", "data"};
    struct fixture *f = *state;
    struct vm_copy copy = {.head = {0}};
    struct error err;
    char vms[96], disks[160];
    snprintf(vms, sizeof vms, "%s/vms", f->dir);
    snprintf(disks, sizeof disks, "%s/" VOLUME "/disks", vms);
    assert_int_equal(file_make_directories(disks, 0700, &err), 0);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        struct volume_move *move = OBJECT_ADD(vm_copy, &copy, disks);
        struct volume_order *const orders[] = {&move->from, &move->to};
        for (size_t k = 0; k < ARRAY_SIZE(orders); k++) {
            OBJECT_TEXT(volume_order, orders[k], id, k == 0 ? VOLUME : CLONE);
            OBJECT_TEXT(volume_order, orders[k], disk, names[i]);
            OBJECT_SET(volume_order, orders[k], size_bytes, SIZE);
            OBJECT_SET(volume_order, orders[k], own, true);
            OBJECT_TEXT(pool_order, &orders[k]->pool, path, vms);
            object_mark(&volume_order_desc, orders[k], "pool");
        }
        OBJECT_TEXT(volume_order, &move->to, place, PLACE);
        object_mark(&volume_move_desc, move, "from");
        object_mark(&volume_move_desc, move, "to");
    }
    OBJECT_COPY(volume_move, (struct volume_move *)OBJECT_ADD(vm_copy, &copy, disks), &f->work); /* and a volume of its */
    write_at(f, 2 * MIB, "third");
    const struct pool_order *here = &((const struct volume_move *)copy.disks.items)->to.pool;
    const struct vm_disk root = {.name = (char *)(uintptr_t)"root", .place = (char *)(uintptr_t)PLACE};
    const struct vm_disk data = {.name = (char *)(uintptr_t)"data", .place = (char *)(uintptr_t)PLACE};
    raw_make(disks, "root", "first");
    assert_int_equal(clone_work(&copy, &err), -ENOENT);
    assert_non_null(strstr(err.text, "disk data: "));
    assert_int_equal(pool_dir_copy_is_whole(here, CLONE, &root, &err), 1);
    assert_int_equal(pool_dir_copy_is_whole(here, CLONE, &data, &err), 0);
    raw_make(disks, "root", "later");
    raw_make(disks, "data", "second");
    if (clone_work(&copy, &err) < 0)
        fail_msg("%s", err.text);
    copied_is(here, &root, "first");
    copied_is(here, &data, "second");
    struct layer_pool *layers;
    struct layer_disk *volume;
    char sector[512];
    disk_open(&f->work.to.pool, &f->to, true, &layers, &volume);
    assert_int_equal(block_now(&volume->chain->block, BLOCK_READ, 2 * MIB, sector, sizeof sector), 0);
    assert_memory_equal(sector, "third", 5);
    layer_disk_close(volume);
    layer_pool_dir_destroy(layers);
    OBJECT_CLEAR(vm_copy, &copy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(all_is_copied_and_holes_stay, setup, teardown),
        cmocka_unit_test_setup_teardown(what_was_begun_is_made_anew, setup, teardown),
        cmocka_unit_test_setup_teardown(failures_leave_no_copy, setup, teardown),
        cmocka_unit_test_setup_teardown(own_disks, setup, teardown),
        cmocka_unit_test(places_in_paths),
        cmocka_unit_test_setup_teardown(cloned_as_a_snapshot_has_it, setup, teardown),
        cmocka_unit_test_setup_teardown(no_copy_is_larger_than_its_volume, setup, teardown),
        cmocka_unit_test_setup_teardown(disks_of_a_vm, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
