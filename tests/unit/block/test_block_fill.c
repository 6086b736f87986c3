/* Filling a disk with a raw file: content, holes that are not written, sizes that are no multiple of anything, what an interrupted run has left,
 * and failures. The disk is a file, behind a filter that counts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "block/block_fill.h"
#include "block/block_sync.h"
#include "common/list.h"
#include "tests/unit/unit_seed.h"

#define MIB (1u << 20)
#define DISK_BYTES (48u * MIB)

struct counting {
    struct block block;
    struct block *below;
    struct list waiting;
    uint64_t written_bytes;
    unsigned fail_after; /* requests; 0: never */
    unsigned requests;
};

struct world {
    int source; /* the raw file */
    int disk;   /* the disk's file: a second descriptor of it */
    struct counting counting;
    unsigned told;
    uint64_t last_bytes, total_bytes;
    unsigned stop_after; /* words of progress; 0: never */
};

static int counting_submit(struct block *block, struct block_request *request)
{
    struct counting *c = CONTAINER_OF(block, struct counting, block);
    assert_int_equal(request->op, BLOCK_WRITE);
    c->written_bytes += request->size;
    list_append(&c->waiting, &request->link);
    return 0;
}

static void counting_drain(struct block *block)
{
    struct counting *c = CONTAINER_OF(block, struct counting, block);
    while (!list_empty(&c->waiting)) {
        struct block_request *request = LIST_ENTRY(c->waiting.next, struct block_request, link);
        list_remove(&request->link);
        request->result = c->fail_after != 0 && ++c->requests > c->fail_after ? -EIO : 0;
        uint64_t at = request->offset;
        for (unsigned i = 0; request->result == 0 && i < request->iovec_count; at += request->iovecs[i++].iov_len)
            request->result = block_now(c->below, BLOCK_WRITE, at, request->iovecs[i].iov_base, request->iovecs[i].iov_len);
        block_complete(block, request);
    }
}

static void counting_close(struct block *block UNUSED)
{
}

static const struct block_ops counting_ops = {.submit = counting_submit, .drain = counting_drain, .close = counting_close};

static int setup(void **state)
{
    struct world *w = NEW(struct world);
    struct error err;
    w->source = memfd_create("source", MFD_CLOEXEC);
    w->disk = memfd_create("disk", MFD_CLOEXEC);
    assert_int_equal(ftruncate(w->disk, DISK_BYTES), 0);
    CLEANUP_FREE char *path = xasprintf("/proc/self/fd/%d", w->disk);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(block_sync_from_fd(fd, "disk", false, &w->counting.below, &err), 0);
    w->counting.block = (struct block){.ops = &counting_ops, .size_bytes = DISK_BYTES, .block_bytes = 4096};
    list_init(&w->counting.waiting);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;
    block_close(w->counting.below);
    close(w->source);
    close(w->disk);
    free(w);
    return 0;
}

static int progress(uint64_t done_bytes, uint64_t total_bytes, void *arg)
{
    struct world *w = arg;
    assert_true(done_bytes >= w->last_bytes && done_bytes <= total_bytes);
    w->last_bytes = done_bytes;
    w->total_bytes = total_bytes;
    return ++w->told == w->stop_after ? -ECANCELED : 0;
}

static int fill(struct world *w, struct error *err)
{
    const struct block_fill_listener listener = {.progress = progress, .arg = w};
    w->last_bytes = 0;
    w->told = 0;
    return block_fill(&w->counting.block, w->source, &listener, err);
}

static void put(int fd, uint64_t at, size_t size, int byte)
{
    CLEANUP_FREE char *data = xcalloc(1, size);
    memset(data, byte, size);
    assert_int_equal(pwrite(fd, data, size, (off_t)at), (ssize_t)size);
}

/* The disk begins with the file, and has zeroes after it. */
static void compare(struct world *w, uint64_t size_bytes)
{
    CLEANUP_FREE unsigned char *want = xcalloc(1, DISK_BYTES), *is = xcalloc(1, DISK_BYTES);
    assert_int_equal(pread(w->source, want, size_bytes, 0), (ssize_t)size_bytes);
    assert_int_equal(pread(w->disk, is, DISK_BYTES, 0), DISK_BYTES);
    assert_memory_equal(want, is, DISK_BYTES);
}

static void holes_stay_holes(void **state)
{
    struct world *w = *state;
    struct error err;
    const uint64_t size_bytes = 40u * MIB + 12345; /* its last sector is not whole, and its end a hole */
    put(w->source, 4096, 512, 1);
    put(w->source, 20 * MIB - 4096, 8192, 2); /* over the boundary of two pieces */
    put(w->source, 30 * MIB, 3 * MIB, 0);     /* written, but zero */
    assert_int_equal(ftruncate(w->source, (off_t)size_bytes), 0);
    assert_int_equal(fill(w, &err), 0);
    compare(w, size_bytes);
    assert_true(w->counting.written_bytes >= 512 + 8192 && w->counting.written_bytes <= 3 * 4096 + 8192);
    assert_true(w->last_bytes == size_bytes && w->total_bytes == size_bytes);
    /* content up to an odd end */
    put(w->source, size_bytes - 700, 700, 3);
    assert_int_equal(fill(w, &err), 0);
    compare(w, size_bytes);
}

static void nothing_at_all(void **state)
{
    struct world *w = *state;
    struct error err;
    assert_int_equal(fill(w, &err), 0);
    assert_int_equal(w->counting.written_bytes, 0);
    assert_int_equal(ftruncate(w->source, DISK_BYTES + 1), 0);
    assert_int_equal(fill(w, &err), -EFBIG);
    assert_non_null(strstr(err.text, "50331648 bytes, less than the 50331649"));
    assert_int_equal(ftruncate(w->source, DISK_BYTES), 0);
    assert_int_equal(fill(w, &err), 0);
    assert_int_equal(w->counting.written_bytes, 0);
}

static void an_interrupted_run_is_gone_on_with(void **state)
{
    struct world *w = *state;
    struct error err;
    put(w->source, 0, DISK_BYTES, 7);
    w->stop_after = 2;
    assert_int_equal(fill(w, &err), -ECANCELED);
    assert_true(w->counting.written_bytes == 32 * MIB && w->told == 2);
    w->stop_after = 0;
    w->counting.requests = 0;
    w->counting.fail_after = 20;
    assert_int_equal(fill(w, &err), -EIO);
    assert_non_null(strstr(err.text, "cannot write to the disk"));
    assert_int_equal(w->last_bytes, 16 * MIB);
    w->counting.fail_after = 0;
    assert_int_equal(fill(w, &err), 0);
    compare(w, DISK_BYTES);
}

static void random_files(void **state)
{
    struct world *w = *state;
    struct error err;
    srandom((unsigned)unit_seed());
    for (unsigned trial = 0; trial < 20; trial++) {
        uint64_t size_bytes = 0;
        assert_int_equal(ftruncate(w->source, 0) | ftruncate(w->disk, 0) | ftruncate(w->disk, DISK_BYTES), 0);
        for (unsigned i = 0; i < 12; i++) {
            size_t size = 1 + (uint64_t)random() % ((uint64_t)random() % 4 == 0 ? 3 * MIB : 9000);
            uint64_t at = (uint64_t)random() % (DISK_BYTES - size);
            put(w->source, at, size, (int)((uint64_t)random() % 4));
            size_bytes = MAX(size_bytes, at + size);
        }
        if (fill(w, &err) < 0)
            fail_msg("%s", err.text);
        compare(w, size_bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(holes_stay_holes, setup, teardown),
        cmocka_unit_test_setup_teardown(nothing_at_all, setup, teardown),
        cmocka_unit_test_setup_teardown(an_interrupted_run_is_gone_on_with, setup, teardown),
        cmocka_unit_test_setup_teardown(random_files, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
