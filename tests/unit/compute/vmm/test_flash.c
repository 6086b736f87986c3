/* The flash chip as OVMF's driver uses it: probing, programming, erasing; what is in the file afterwards; and a disk
 * that refuses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "compute/vmm/devices/flash/flash.h"

#define BASE 0xffc00000ull
enum { SIZE = 4 * FLASH_BLOCK_BYTES };

struct board {
    struct bus memory;
    struct flash *f;
    char path[32];
    unsigned shows, hides;
    bool shown;
};

static int on_show(void *arg, const struct flash *f, bool shown, struct error *err UNUSED)
{
    struct board *b = arg;
    assert_true(f->address == BASE && f->size == SIZE && shown != b->shown);
    b->shown = shown;
    *(shown ? &b->shows : &b->hides) += 1;
    return 0;
}

static void make(struct board *b, bool read_only, int fd)
{
    uint8_t content[SIZE];
    memset(content, 0xff, sizeof(content));
    memcpy(content, "start", 5);
    struct flash_options options = {.name = "firmware-variables",
                                    .address = BASE,
                                    .content = content,
                                    .size = SIZE,
                                    .read_only = read_only,
                                    .fd = fd,
                                    .show = on_show,
                                    .show_arg = b};
    assert_int_equal(flash_create(&b->memory, &options, &b->f, NULL), 0);
    assert_true(b->shown);
}

static int setup(void **state)
{
    struct board *b = NEW(struct board);
    bus_init(&b->memory, NULL);
    snprintf(b->path, sizeof(b->path), "/tmp/flash.XXXXXX");
    int fd = mkstemp(b->path);
    assert_true(fd >= 0 && ftruncate(fd, SIZE) == 0);
    make(b, false, fd);
    *state = b;
    return 0;
}
static void drop(struct board *b)
{
    struct device *d = flash_device(b->f);
    d->ops->destroy(d);
    assert_false(b->shown);
    assert_int_equal(bus_read(&b->memory, BASE, 1), 0xff);
}
static int teardown(void **state)
{
    struct board *b = *state;
    drop(b);
    unlink(b->path);
    bus_finish(&b->memory);
    free(b);
    return 0;
}

static uint8_t in(struct board *b, uint64_t at)
{
    return (uint8_t)bus_read(&b->memory, BASE + at, 1);
}
static void out(struct board *b, uint64_t at, uint8_t value)
{
    bus_write(&b->memory, BASE + at, 1, value);
}
static uint8_t in_file(struct board *b, off_t at)
{
    uint8_t byte = 0;
    int fd = open(b->path, O_RDONLY);
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    close(fd);
    return byte;
}

static void probe_finds_a_chip(void **state)
{
    struct board *b = *state;
    out(b, 0, 0x50);
    assert_int_equal(in(b, 0), 's'); /* neither the command, as memory would give... */
    out(b, 0, 0x70);
    assert_int_equal(in(b, 0), 0); /* ...nor the content, as ROM would */
    assert_false(b->shown);
    out(b, 0, 0xff);
    assert_int_equal(in(b, 0), 's');
    assert_true(b->shown);
    assert_int_equal(b->hides, 1); /* going to ARRAY from ARRAY costs nothing */
}

static void programming_lasts(void **state)
{
    struct board *b = *state;
    out(b, 4098, 0x40);
    out(b, 4098, 0x5a);
    assert_int_equal(in(b, 0), 0x80);
    out(b, 4099, 0x10);
    out(b, 4099, 0xff); /* data, not a command */
    assert_int_equal(in(b, 0), 0x80);
    assert_false(b->shown);
    out(b, 0, 0xff);
    assert_int_equal(in(b, 4098), 0x5a);
    assert_int_equal(in_file(b, 4098), 0x5a);
    assert_int_equal(in_file(b, 0), 0); /* blocks that nobody has touched are not written */
}

static void erasing_takes_one_block(void **state)
{
    struct board *b = *state;
    for (uint64_t at = 4095; at <= 4096; at++) {
        out(b, at, 0x40);
        out(b, at, 0x11);
    }
    out(b, 0, 0xff);
    out(b, 5000, 0x20);
    out(b, 5000, 0xd0);
    assert_int_equal(in(b, 5000), 0x80);
    assert_int_equal(in_file(b, 4096), 0xff); /* at once */
    out(b, 0, 0xff);
    assert_int_equal(in(b, 4095), 0x11);
    assert_int_equal(in(b, 4096), 0xff);
    out(b, 0, 0x20);
    out(b, 0, 0x12); /* not confirmed: nothing is erased, and the chip says so */
    assert_int_equal(in(b, 0), 0xb0);
    out(b, 0, 0x50);
    assert_int_equal(in(b, 0), 's');
}

static void wide_access_stays_inside(void **state)
{
    struct board *b = *state;
    out(b, SIZE - 4, 0x40);
    bus_write(&b->memory, BASE + SIZE - 4, 4, 0x44332211);
    out(b, 0, 0xff);
    assert_int_equal(bus_read(&b->memory, BASE + SIZE - 4, 4), 0x44332211);
    out(b, 0, 0x40);
    bus_write(&b->memory, BASE + SIZE - 2, 4, 0); /* reaches over the end: nobody answers it */
    assert_int_equal(b->f->mode, FLASH_PROGRAM);
}

static void read_only_ignores_writes(void **state)
{
    struct board *b = *state;
    drop(b);
    make(b, true, -1);
    out(b, 0, 0x40);
    out(b, 0, 0);
    assert_int_equal(in(b, 0), 's');
    assert_true(b->shown);
}

static void refused_write_is_seen_and_tried_again(void **state)
{
    struct board *b = *state;
    int good = b->f->fd;
    b->f->fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
    out(b, 0, 0x40);
    out(b, 0, 'S');
    out(b, 0, 0xff);
    out(b, 0, 0x70);
    assert_int_equal(in(b, 0), 0x90); /* program failed */
    close(b->f->fd);
    b->f->fd = good;
    out(b, 0, 0x50);
    assert_int_equal(in_file(b, 0), 'S');
    out(b, 0, 0x70);
    assert_int_equal(in(b, 0), 0);
}

/* A guest may program in a loop while the disk is full: that must not fill the log. */
static void refusals_do_not_fill_the_log(void **state)
{
    struct board *b = *state;
    char text[16384] = "", *at = text;
    unsigned lines = 0;
    int good = b->f->fd, log = memfd_create("log", MFD_CLOEXEC), before = dup(STDERR_FILENO);
    b->f->fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
    assert_true(log >= 0 && before >= 0 && b->f->fd >= 0 && dup2(log, STDERR_FILENO) >= 0);
    for (unsigned i = 0; i < 10 * FLASH_LOGGED_MAX; i++) {
        out(b, 0, 0x40);
        out(b, 0, 'S');
        out(b, 0, 0xff);
    }
    assert_true(dup2(before, STDERR_FILENO) >= 0);
    assert_true(pread(log, text, sizeof(text) - 1, 0) >= 0);
    while ((at = strstr(at, "firmware-variables-not-written")) != NULL) {
        lines++;
        at++;
    }
    assert_int_equal(lines, FLASH_LOGGED_MAX);
    close(b->f->fd);
    close(before);
    close(log);
    b->f->fd = good;
}

static void state_travels(void **state)
{
    struct board *b = *state;
    struct device *d = flash_device(b->f);
    struct bytes_writer saved = {0};
    out(b, 1, 0x40);
    out(b, 1, 'T');
    d->ops->pause(d);
    d->ops->save(d, &saved);
    out(b, 1, 0x40);
    out(b, 1, 'U');
    d->ops->reset(d);
    struct bytes_reader cut = bytes_reader(saved.data, saved.size - 1);
    assert_int_equal(d->ops->load(d, &cut, NULL), -EBADMSG);
    assert_int_equal(in(b, 1), 'U');
    struct bytes_reader whole = bytes_reader(saved.data, saved.size);
    assert_int_equal(d->ops->load(d, &whole, NULL), 0);
    assert_int_equal(in(b, 1), 0x80); /* still in the middle of a command */
    d->ops->reset(d); /* content shows, and would go to the file */
    d->ops->pause(d);
    assert_int_equal(in(b, 1), 'T');
    assert_int_equal(in_file(b, 1), 'U'); /* the machine's load may yet fail: nothing has run on it */
    d->ops->resume(d);
    assert_int_equal(in_file(b, 1), 'T');
    assert_int_equal(in_file(b, 8192), 0xff); /* the file is all of the chip, whatever it was before */
    bytes_writer_finish(&saved);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(probe_finds_a_chip, setup, teardown),
        cmocka_unit_test_setup_teardown(programming_lasts, setup, teardown),
        cmocka_unit_test_setup_teardown(erasing_takes_one_block, setup, teardown),
        cmocka_unit_test_setup_teardown(wide_access_stays_inside, setup, teardown),
        cmocka_unit_test_setup_teardown(read_only_ignores_writes, setup, teardown),
        cmocka_unit_test_setup_teardown(refused_write_is_seen_and_tried_again, setup, teardown),
        cmocka_unit_test_setup_teardown(refusals_do_not_fill_the_log, setup, teardown),
        cmocka_unit_test_setup_teardown(state_travels, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
