/* The directory of a pool: its marker, which nothing else is taken for; disks that are made once; their removal. And the thread
 * that looks at it (pthread). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "block/layer_disk.h"
#include "block/layer_pool_dir.h"
#include "common/file.h"
#include "compute/agent/pool_dir.h"
#include "compute/agent/pool_watch.h"

#define POOL "bbbbbbbb-0000-4000-8000-000000000001"
#define VM "aaaaaaaa-0000-4000-8000-000000000001"
#define MIB (1u << 20)

struct fixture {
    char dir[64], path[96], image[128];
    struct pool_order order;
};

static int setup(void **state)
{
    struct fixture *f = NEW(struct fixture);
    strcpy(f->dir, "/tmp/pool_dir.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->path, sizeof f->path, "%s/pool", f->dir);
    snprintf(f->image, sizeof f->image, "%s/abc", f->dir);
    assert_int_equal(mkdir(f->path, 0755), 0);
    OBJECT_TEXT(pool_order, &f->order, id, POOL);
    OBJECT_TEXT(pool_order, &f->order, name, "fast");
    OBJECT_SET(pool_order, &f->order, kind, pool_kind_DIR);
    OBJECT_TEXT(pool_order, &f->order, path, f->path);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(file_remove_tree("/tmp", f->dir + 5, NULL), 0);
    OBJECT_CLEAR(pool_order, &f->order);
    free(f);
    return 0;
}

/* Looks; the caller clears. */
static struct pool_seen seen(struct fixture *f)
{
    struct pool_seen s = {0};
    pool_dir_look(&f->order, &s);
    return s;
}

static void refused(struct fixture *f, const char *words)
{
    struct pool_seen s = seen(f);
    assert_false(s.present);
    if (s.reason == NULL || strstr(s.reason, words) == NULL)
        fail_msg("not '%s' but '%s'", words, s.reason != NULL ? s.reason : "");
    OBJECT_CLEAR(pool_seen, &s);
}

static void mark(struct fixture *f)
{
    OBJECT_SET(pool_order, &f->order, make, true);
    struct pool_seen s = seen(f);
    if (!s.present)
        fail_msg("%s", s.reason);
    assert_true(s.size_bytes > 0);
    OBJECT_TEXT(pool_order, &f->order, mark, s.mark);
    OBJECT_CLEAR(pool_seen, &s);
    OBJECT_SET(pool_order, &f->order, make, false);
}

static void a_directory_is_known_by_its_mark(void **state)
{
    struct fixture *f = *state;
    char other[128];
    refused(f, "is it mounted?"); /* nobody is to mark it */
    mark(f);
    OBJECT_SET(pool_order, &f->order, make, true); /* asked again: the same */
    struct pool_seen s = seen(f);
    assert_true(s.present);
    assert_string_equal(s.mark, f->order.mark);
    OBJECT_CLEAR(pool_seen, &s);
    OBJECT_SET(pool_order, &f->order, make, false);
    /* what it was mounted over */
    snprintf(other, sizeof other, "%s.mounted", f->path);
    assert_int_equal(rename(f->path, other) | mkdir(f->path, 0755), 0);
    refused(f, "is it mounted?");
    /* another directory of the same pool, and one of another pool */
    char *was = xstrdup(f->order.mark);
    OBJECT_TEXT(pool_order, &f->order, mark, NULL);
    mark(f);
    OBJECT_TEXT(pool_order, &f->order, mark, was);
    free(was);
    refused(f, "another directory");
    OBJECT_TEXT(pool_order, &f->order, id, "bbbbbbbb-0000-4000-8000-000000000002");
    refused(f, "belongs to another pool");
    OBJECT_TEXT(pool_order, &f->order, path, "/tmp/pool_dir.nothing/x");
    OBJECT_SET(pool_order, &f->order, make, true);
    refused(f, "cannot look at");
}

static void damage_is_no_marker(void **state)
{
    struct fixture *f = *state;
    char path[160];
    mark(f);
    snprintf(path, sizeof path, "%s/" POOL_DIR_MARKER, f->path);
    assert_int_equal(file_write_atomic(path, "{", 1, 0644, NULL), 0);
    OBJECT_SET(pool_order, &f->order, make, true);
    refused(f, POOL_DIR_MARKER);
}

static struct vm_disk disk_of(const char *name, uint64_t size_bytes)
{
    struct vm_disk disk = {0};
    OBJECT_TEXT(vm_disk, &disk, name, name);
    OBJECT_SET(vm_disk, &disk, size_bytes, size_bytes);
    return disk;
}

static char *head_of(struct fixture *f, const char *disk)
{
    const struct vm_disk named = {.name = (char *)(uintptr_t)disk};
    CLEANUP_FREE char *directory = pool_dir_disk(&f->order, VM, &named);
    CLEANUP_FREE char *head = xasprintf("%s/%s.disk", directory, disk);
    char *text;
    size_t size;
    return file_read(head, 65536, &text, &size, NULL) == 0 ? text : NULL;
}

static void disks_are_made_once(void **state)
{
    struct fixture *f = *state;
    struct vm_disk disk = disk_of("root", 4 * MIB), blank = disk_of("data", 2 * MIB);
    struct error err = {.code = 0};
    char text[1000], *again;
    struct stat st;
    memset(text, 'x', sizeof text);
    assert_int_equal(file_write_atomic(f->image, text, sizeof text, 0644, NULL), 0);
    assert_true(pool_dir_make_disk(&f->order, VM, &disk, f->image, false, &err) < 0); /* no marker: nothing is made */
    mark(f);
    if (pool_dir_make_disk(&f->order, VM, &disk, f->image, false, &err) < 0 ||
        pool_dir_make_disk(&f->order, VM, &blank, NULL, false, &err) < 0)
        fail_msg("%s", err.text);
    CLEANUP_FREE char *head = head_of(f, "root");
    assert_non_null(head);
    assert_int_equal(pool_dir_make_disk(&f->order, VM, &disk, f->image, false, &err), 0);
    assert_int_equal(pool_dir_make_disk(&f->order, VM, &disk, f->image, true, &err), 0);
    again = head_of(f, "root");
    assert_string_equal(head, again);
    free(again);
    /* what is missing is not made anew where it was there once */
    struct vm_disk other = disk_of("other", 2 * MIB);
    assert_int_equal(pool_dir_make_disk(&f->order, VM, &other, NULL, true, &err), -ENOENT);
    assert_non_null(strstr(err.text, "was made once"));
    /* content: the image, whole sectors of it, and zeroes */
    CLEANUP_FREE char *directory = pool_dir_disk(&f->order, VM, &disk);
    CLEANUP_FREE char *copy = xasprintf("%s/images/abc", f->path);
    assert_int_equal(stat(copy, &st), 0);
    assert_int_equal(st.st_size, 1024);
    assert_int_equal(st.st_nlink, 2);
    /* gone, and the image with it */
    if (pool_dir_remove_vm(&f->order, VM, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(access(directory, F_OK), -1);
    assert_int_equal(access(copy, F_OK), -1);
    assert_int_equal(pool_dir_remove_vm(&f->order, VM, &err), 0);
    OBJECT_CLEAR(vm_disk, &disk);
    OBJECT_CLEAR(vm_disk, &blank);
    OBJECT_CLEAR(vm_disk, &other);
}

/* Nothing is removed where the pool is not: not even a directory of the very name. */
static void nothing_is_removed_elsewhere(void **state)
{
    struct fixture *f = *state;
    char other[128], path[200];
    struct error err = {.code = 0};
    mark(f);
    snprintf(other, sizeof other, "%s.mounted", f->path);
    assert_int_equal(rename(f->path, other) | mkdir(f->path, 0755), 0);
    snprintf(path, sizeof path, "%s/vms/" VM, f->path);
    assert_int_equal(file_make_directories(path, 0700, NULL), 0);
    assert_true(pool_dir_remove_vm(&f->order, VM, &err) < 0);
    assert_int_equal(access(path, F_OK), 0);
}

/* An agent that was thought dead goes on in the midst of making a disk: the other host's stays. */
static void a_late_one_replaces_nothing(void **state)
{
    struct fixture *f = *state;
    struct vm_disk disk = disk_of("root", 4 * MIB);
    struct error err = {.code = 0};
    mark(f);
    assert_int_equal(pool_dir_make_disk(&f->order, VM, &disk, NULL, false, &err), 0);
    CLEANUP_FREE char *final = pool_dir_disk(&f->order, VM, &disk);
    CLEANUP_FREE char *late = xasprintf("%s/vms/" VM "/.root.late", f->path);
    assert_int_equal(mkdir(late, 0700), 0);
    CLEANUP_FREE char *file = xasprintf("%s/root.disk", late);
    assert_int_equal(file_write_atomic(file, "{}", 2, 0600, NULL), 0);
    assert_int_equal(rename(late, final), -1); /* what the rename of pool_dir_make_disk relies on */
    assert_true(errno == ENOTEMPTY || errno == EEXIST);
    OBJECT_CLEAR(vm_disk, &disk);
}

static bool wait_news(struct pool_watches *watches)
{
    for (unsigned i = 0; i < 20000 && !pool_watch_news(watches); i++)
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    return pool_watch_news(watches);
}

static bool told_present(struct pool_watches *watches)
{
    struct node_report report = {0};
    pool_watch_put(watches, &report);
    bool present = report.pools.count == 1 && ((struct pool_seen *)report.pools.items)->present;
    OBJECT_CLEAR(node_report, &report);
    return present;
}

static void a_thread_looks(void **state)
{
    struct fixture *f = *state;
    struct pool_watches watches = {.learned = false};
    struct object_list orders = {&f->order, 1}, none = {NULL, 0};
    struct error err = {.code = 0};
    assert_int_equal(pool_watch_there(&watches, POOL, "fast", &err), -EAGAIN); /* nobody has said anything yet */
    pool_watch_learn(&watches, &orders);
    assert_true(wait_news(&watches));
    assert_false(told_present(&watches));
    assert_false(pool_watch_news(&watches)); /* told once */
    assert_int_equal(pool_watch_there(&watches, POOL, "fast", &err), -EAGAIN);
    OBJECT_SET(pool_order, &f->order, make, true); /* another order: it looks at once */
    pool_watch_learn(&watches, &orders);
    assert_true(wait_news(&watches));
    assert_true(told_present(&watches));
    assert_int_equal(pool_watch_there(&watches, POOL, "fast", &err), 0);
    pool_watch_learn(&watches, &none);
    assert_int_equal(pool_watch_there(&watches, POOL, "fast", &err), -ENOENT);
    pool_watch_learn(&watches, &orders);
    pool_watch_finish(&watches);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_directory_is_known_by_its_mark, setup, teardown),
        cmocka_unit_test_setup_teardown(damage_is_no_marker, setup, teardown),
        cmocka_unit_test_setup_teardown(disks_are_made_once, setup, teardown),
        cmocka_unit_test_setup_teardown(nothing_is_removed_elsewhere, setup, teardown),
        cmocka_unit_test_setup_teardown(a_late_one_replaces_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(a_thread_looks, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
