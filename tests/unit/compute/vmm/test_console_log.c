/* The console's log file: appended to, and bounded however much the guest writes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file.h"
#include "compute/vmm/console.h"

struct fixture {
    pthread_mutex_t lock; /* THREADED: the loop asks for one */
    struct io_loop *loop;
    struct console console;
    char dir[64], path[96], before[96];
};

static int setup(void **state)
{
    struct fixture *f = NEW(struct fixture);
    strcpy(f->dir, "/tmp/console_log.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->path, sizeof(f->path), "%s/console.log", f->dir);
    snprintf(f->before, sizeof(f->before), "%s/console.log.1", f->dir);
    pthread_mutex_init(&f->lock, NULL);
    assert_int_equal(io_loop_create(&f->lock, &f->loop, NULL), 0);
    console_init(&f->console, f->loop);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    console_finish(&f->console);
    io_loop_destroy(f->loop);
    pthread_mutex_destroy(&f->lock);
    assert_int_equal(file_remove_tree("/tmp", f->dir + 5, NULL), 0);
    free(f);
    return 0;
}

static off_t size_of(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 ? st.st_size : -1;
}

/* Output, and rounds of the loop until the file has taken it. */
static void put(struct fixture *f, const void *data, size_t size)
{
    off_t before = size_of(f->path);
    console_output(&f->console, data, size);
    while (size_of(f->path) == before)
        io_loop_run_once(f->loop, 10);
}

static void test_appended(void **state)
{
    struct fixture *f = *state;
    char *text;
    assert_int_equal(file_write_atomic(f->path, "old ", 4, 0600, NULL), 0);
    assert_int_equal(console_log_file(&f->console, f->path, NULL), 0);
    put(f, "new", 3);
    assert_int_equal(file_read(f->path, 100, &text, NULL, NULL), 0);
    assert_string_equal(text, "old new");
    free(text);
}

static void test_bounded(void **state)
{
    struct fixture *f = *state;
    static uint8_t block[CONSOLE_RING_BYTES / 2];
    uint64_t total = 0;
    assert_int_equal(console_log_file(&f->console, f->path, NULL), 0);
    for (; total < 3ull * CONSOLE_LOG_BYTES_MAX; total += sizeof(block)) {
        memset(block, 'a' + (int)(total / sizeof(block) % 26), sizeof(block));
        put(f, block, sizeof(block));
        assert_true(size_of(f->path) <= (off_t)(CONSOLE_LOG_BYTES_MAX + sizeof(block)));
        assert_true(size_of(f->before) <= (off_t)(CONSOLE_LOG_BYTES_MAX + sizeof(block)));
    }
    assert_true(size_of(f->before) >= (off_t)CONSOLE_LOG_BYTES_MAX);
    assert_int_equal(console_reader_count(&f->console), 1);
    put(f, "end", 3);
    assert_true(size_of(f->path) >= 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_appended, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bounded, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
