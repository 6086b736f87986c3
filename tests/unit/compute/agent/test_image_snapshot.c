/* Disks copied as snapshots have them: the bytes of that moment, with their holes; layers that are being written are waited for; and what
 * becomes of a copy, cut off wherever it is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/layer_disk.h"
#include "block/layer_pool_dir.h"
#include "common/file.h"
#include "compute/agent/image_import.h"
#include "compute/agent/image_snapshot.h"

#define IMAGE "aaaaaaaa-0000-4000-8000-000000000001"
#define SNAPSHOT "bbbbbbbb-0000-4000-8000-000000000002"
#define OTHER "cccccccc-0000-4000-8000-000000000003"
enum { DISK_BYTES = 40 << 20, BASE_BYTES = 3 << 20, STEP = 4096 };

struct fixture {
    char dir[64], layers[96], images[96], copy[160];
    struct layer_pool *pool;
    struct layer_disk *disk;
    struct error err;
    char steps[4096]; /* that were told */
    uint64_t total;
    int lock; /* closed when it is told that somebody waits */
};

static void told(const char *step, uint64_t done, uint64_t total, void *arg)
{
    struct fixture *f = arg;
    size_t size = strlen(f->steps);
    snprintf(f->steps + size, sizeof f->steps - size, "%s %llu;", step, (unsigned long long)(done >> 20));
    f->total = total;
    if (strncmp(step, "waiting", 7) == 0 && f->lock >= 0) {
        close(f->lock);
        f->lock = -1;
    }
}

static void write_at(struct fixture *f, uint64_t at, uint8_t value, size_t size)
{
    CLEANUP_FREE uint8_t *data = malloc(size);
    memset(data, value, size);
    assert_int_equal(block_now(&f->disk->chain->block, BLOCK_WRITE, at, data, size), 0);
}

/* Disk root above an image; what is in SNAPSHOT has ones, what was written after it twos. */
static int setup(void **state)
{
    struct fixture *f = NEW(struct fixture);
    CLEANUP_FREE char *base = NULL;
    strcpy(f->dir, "/tmp/image_snapshot.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->layers, sizeof f->layers, "%s/root.layers", f->dir);
    snprintf(f->images, sizeof f->images, "%s/images", f->dir);
    snprintf(f->copy, sizeof f->copy, "%s/" IMAGE ".copy", f->dir);
    assert_int_equal(mkdir(f->layers, 0700) | mkdir(f->images, 0700), 0);
    f->lock = -1;
    base = xasprintf("%s/base.raw", f->layers);
    CLEANUP_FD int fd = open(base, O_RDWR | O_CREAT, 0600);
    assert_true(fd >= 0 && pwrite(fd, "base", 4, 1 << 20) == 4 && ftruncate(fd, BASE_BYTES) == 0);
    assert_int_equal(layer_pool_dir_create(f->layers, NULL, NULL, &f->pool, NULL), 0);
    assert_int_equal(layer_disk_create(f->pool, "root", DISK_BYTES, "base.raw", NULL), 0);
    assert_int_equal(layer_disk_open(f->pool, "root", false, 1, &f->disk, NULL), 0);
    write_at(f, 0, 1, STEP);
    assert_int_equal(layer_disk_snapshot(f->disk, OTHER, NULL), 0);
    write_at(f, 20 << 20, 1, 2 << 20);
    write_at(f, 20 << 20, 0, 1 << 20); /* zeroes that are written are holes in the copy */
    write_at(f, DISK_BYTES - STEP, 1, STEP);
    assert_int_equal(layer_disk_snapshot(f->disk, SNAPSHOT, NULL), 0);
    write_at(f, 0, 2, STEP);
    write_at(f, 30 << 20, 2, STEP);
    assert_int_equal(block_now(&f->disk->chain->block, BLOCK_FLUSH, 0, NULL, 0), 0);
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

static int copy(struct fixture *f, const char *disk, const char *snapshot)
{
    const struct image_import_listener listener = {.progress = told, .arg = f};
    CLEANUP_FD int fd = open(f->copy, O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    f->err = (struct error){.code = 0};
    return image_snapshot_copy(f->layers, disk, snapshot, fd, &listener, &f->err);
}

static void copy_is_right(const char *path)
{
    CLEANUP_FREE uint8_t *data = xcalloc(1, DISK_BYTES), *wanted = xcalloc(1, DISK_BYTES);
    struct stat st;
    CLEANUP_FD int fd = open(path, O_RDONLY);
    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    assert_int_equal(st.st_size, DISK_BYTES);
    assert_true(st.st_blocks * 512 <= 2 << 20); /* of 40 MiB */
    assert_int_equal(pread(fd, data, DISK_BYTES, 0), DISK_BYTES);
    memset(wanted, 1, STEP);
    memcpy(wanted + (1 << 20), "base", 4);
    memset(wanted + (21 << 20), 1, 1 << 20);
    memset(wanted + DISK_BYTES - STEP, 1, STEP);
    assert_memory_equal(data, wanted, DISK_BYTES);
}

/* While somebody has the disk open and writes. */
static void it_is_as_it_was(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(copy(f, "root", SNAPSHOT), 0);
    copy_is_right(f->copy);
    assert_int_equal(f->total, (2 << 20) + 3 * 65536); /* the clusters that hold something */
    assert_non_null(strstr(f->steps, IMAGE_SNAPSHOT_COPYING " 0;"));
    write_at(f, 21 << 20, 2, 1 << 20);
    assert_int_equal(copy(f, "root", SNAPSHOT), 0);
    copy_is_right(f->copy);
}

/* Layers that it reads are not merged, whoever wants to; and read again when a merge of another has ended. */
static void no_merge_of_what_is_read(void **state)
{
    struct fixture *f = *state;
    struct layer_pool *pool;
    struct layer_disk *reader;
    assert_int_equal(layer_pool_dir_create(f->layers, NULL, NULL, &pool, NULL), 0);
    assert_int_equal(layer_disk_open_snapshot(pool, "root", SNAPSHOT, &reader, NULL), 0);
    assert_int_equal(layer_disk_drop(f->disk, OTHER, NULL), 0);
    assert_int_equal(layer_disk_tidy_now(f->disk, NULL), -EBUSY);
    layer_disk_close(reader);
    layer_pool_dir_destroy(pool);
    write_at(f, 10 << 20, 2, STEP); /* and its owner goes on */
    assert_int_equal(layer_disk_tidy_now(f->disk, NULL), 0);
    assert_int_equal(f->disk->chain->count, 3);
    assert_int_equal(copy(f, "root", SNAPSHOT), 0);
    copy_is_right(f->copy);
}

static void a_layer_that_is_written_is_waited_for(void **state)
{
    struct fixture *f = *state;
    CLEANUP_FREE char *map = xasprintf("%s/%s.map", f->layers, f->disk->chain->layers[1]->name);
    struct flock lock = {.l_type = F_WRLCK};
    layer_disk_close(f->disk);
    f->disk = NULL;
    f->lock = open(map, O_RDWR);
    assert_true(f->lock >= 0 && fcntl(f->lock, F_OFD_SETLK, &lock) == 0);
    assert_int_equal(copy(f, "root", SNAPSHOT), 0);
    assert_int_equal(f->lock, -1);
    assert_non_null(strstr(f->steps, "waiting until layers of the VM's disk are merged 0;" IMAGE_SNAPSHOT_COPYING));
    copy_is_right(f->copy);
}

static void what_is_not_there(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(copy(f, "root", IMAGE), -ENOENT);
    assert_non_null(strstr(f->err.text, "disk root has no snapshot"));
    assert_int_equal(copy(f, "data", SNAPSHOT), -ENOENT);
    assert_non_null(strstr(f->err.text, "data.disk"));
}

static void no_room(void **state)
{
    struct fixture *f = *state;
    CLEANUP_FD int full = open("/dev/full", O_WRONLY);
    assert_true(full >= 0);
    assert_int_equal(image_snapshot_copy(f->layers, "root", SNAPSHOT, full, NULL, &f->err), -ENOSPC);
    assert_int_equal(f->err.kind, ERROR_NO_SPACE);
    assert_non_null(strstr(f->err.text, "3 MiB of data"));
}

/* The copy becomes the image; again is the same; nothing is left. */
static void an_image_comes_of_it(void **state)
{
    struct fixture *f = *state;
    struct image_work work = {0};
    struct image_result result = {0}, again = {0};
    OBJECT_TEXT(image_work, &work, image, IMAGE);
    OBJECT_SET(image_work, &work, format, image_format_RAW);
    OBJECT_TEXT(image_work, &work, work_dir, f->dir);
    OBJECT_TEXT(image_work, &work, images_dir, f->images);
    OBJECT_SET(image_work, &work, user, 65534);
    OBJECT_SET(image_work, &work, copied, true);
    assert_true(image_import_run(&work, NULL, &result, &f->err) < 0); /* nothing was copied */
    assert_int_equal(copy(f, "root", SNAPSHOT), 0);
    assert_int_equal(image_import_run(&work, NULL, &result, &f->err), 0);
    assert_int_equal(result.size_bytes, DISK_BYTES);
    CLEANUP_FREE char *image = xasprintf("%s/%s", f->images, result.sha256);
    copy_is_right(image);
    CLEANUP_FREE uint8_t *data = xcalloc(1, DISK_BYTES);
    uint8_t digest[SHA256_DIGEST_LENGTH];
    char hex[2 * SHA256_DIGEST_LENGTH + 1];
    CLEANUP_FD int fd = open(image, O_RDONLY);
    assert_int_equal(read(fd, data, DISK_BYTES), DISK_BYTES);
    SHA256(data, DISK_BYTES, digest);
    for (unsigned i = 0; i < sizeof digest; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    assert_string_equal(result.sha256, hex);
    assert_int_equal(access(f->copy, F_OK), -1);
    assert_int_equal(image_import_run(&work, NULL, &again, &f->err), 0);
    assert_string_equal(again.sha256, result.sha256);
    assert_int_equal(copy(f, "root", OTHER), 0); /* one that was cut off goes with the rest */
    image_import_clean(f->dir, IMAGE, true);
    assert_int_equal(access(f->copy, F_OK), -1);
    OBJECT_CLEAR(image_work, &work);
    OBJECT_CLEAR(image_result, &result);
    OBJECT_CLEAR(image_result, &again);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(it_is_as_it_was, setup, teardown),
        cmocka_unit_test_setup_teardown(no_merge_of_what_is_read, setup, teardown),
        cmocka_unit_test_setup_teardown(a_layer_that_is_written_is_waited_for, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_not_there, setup, teardown),
        cmocka_unit_test_setup_teardown(no_room, setup, teardown),
        cmocka_unit_test_setup_teardown(an_image_comes_of_it, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
