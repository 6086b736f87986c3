/* virtio-blk through the PCI transport on a real file with its worker threads (pthread): data, flush, discard,
 * limits, hostile requests, the fail-stop hook, pause, save and load; disks that fail, under each policy; rate limits;
 * growth. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "block/layer_pool_dir.h"
#include "common/file.h"
#include "compute/vmm/block/block_file.h"
#include "compute/vmm/block/block_layers.h"
#include "compute/vmm/devices/blk/blk.h"
#include "tests/unit/compute/vmm/fault_block.h"
#include "tests/unit/compute/vmm/virtio_driver.h"
#include "tests/unit/unit_seed.h"

enum { DISK_BYTES = 4 << 20, QUEUE_SIZE = 64, ALL = -1 };

struct bench {
    struct machine m;
    struct driver d;
    struct block *block;
    char path[128];
    char folder[64], head[96]; /* of a disk with layers */
    int fd; /* the same file, seen from outside */
    uint64_t header, status, data;
    struct uring *uring;
    struct fault_block *fault; /* between device and file, where a test asks for it */
    enum disk_error_policy on_error;
    struct vmm_limits limits;
    unsigned stops; /* times that the device asked for a pause */
    int stop_result;
    bool lease; /* what the fail-stop hook answers (atomic: workers ask) */
};

static bool ask_lease(void *arg)
{
    return __atomic_load_n((bool *)arg, __ATOMIC_ACQUIRE);
}
static void set_lease(struct bench *b, bool held)
{
    __atomic_store_n(&b->lease, held, __ATOMIC_RELEASE);
}

static void on_stopped(void *arg, const struct blk *blk UNUSED, const char *operation, int result)
{
    struct bench *b = arg;
    assert_non_null(operation);
    b->stops++;
    b->stop_result = result;
}

/* Every test runs on both engines; without permission for io_uring, on the threads alone. And, but for those that are
 * about the file itself, on a disk with layers whose top has all clusters: then the file holds the same. */
static bool use_uring, use_layers;

static struct block *disk_open(struct bench *b, bool read_only)
{
    struct block_file_options file = {.read_only = read_only, .uring = b->uring};
    struct error err = {0};
    struct block *block;
    int code = use_layers ? block_layers_open(b->head, &file, b->m.loop, &block, &err)
                          : block_file_open(b->path, &file, b->m.loop, &block, &err);
    if (code < 0)
        fail_msg("%s", err.text);
    return block;
}

/* A new disk with layers: b->path becomes the data file of its only one. */
static void layers_create(struct bench *b)
{
    uint8_t *zeroes = xcalloc(1, DISK_BYTES);
    struct layer_pool *pool;
    snprintf(b->folder, sizeof b->folder, "build/test-blk-XXXXXX");
    assert_non_null(mkdtemp(b->folder));
    snprintf(b->head, sizeof b->head, "%s/root.disk", b->folder);
    assert_int_equal(layer_pool_dir_create(b->folder, NULL, NULL, &pool, NULL), 0);
    assert_int_equal(layer_disk_create(pool, "root", DISK_BYTES, NULL, NULL), 0);
    layer_pool_dir_destroy(pool);
    struct block *block = disk_open(b, false);
    assert_int_equal(block_now(block, BLOCK_WRITE, 0, zeroes, DISK_BYTES), 0);
    snprintf(b->path, sizeof b->path, "%s/%s.raw", b->folder, block_layers_disk(block)->head.top);
    block_close(block);
    free(zeroes);
}

static void bench_attach(struct bench *b, bool read_only, unsigned queues)
{
    struct virtio_device *vdev;
    struct error err = {0};
    b->block = disk_open(b, read_only);
    b->block->may_submit = ask_lease;
    b->block->may_submit_arg = &b->lease;
    b->fault = b->fault == NULL ? NULL : fault_block_create(b->block, b->m.loop);
    struct blk_options options = {.block = b->fault == NULL ? b->block : &b->fault->block,
                                  .serial = "disk-of-web1-and-more",
                                  .queues = queues,
                                  .on_error = b->on_error,
                                  .limits = &b->limits,
                                  .stopped = on_stopped,
                                  .stopped_arg = b};
    assert_int_equal(blk_create(&options, &b->m.memory, b->m.loop, &vdev, &err), 0);
    driver_attach(&b->d, &b->m, vdev);
}

static struct bench *bench_create(bool read_only, unsigned queues, uint64_t features)
{
    struct bench *b = NEW(struct bench);
    machine_init(&b->m);
    if (use_uring)
        assert_int_equal(uring_create(b->m.loop, &b->uring, NULL), 0);
    set_lease(b, true);
    snprintf(b->path, sizeof b->path, "build/test-blk-XXXXXX");
    if (use_layers)
        layers_create(b);
    b->fd = use_layers ? open(b->path, O_RDWR | O_CLOEXEC) : mkstemp(b->path);
    assert_true(b->fd >= 0);
    assert_int_equal(ftruncate(b->fd, DISK_BYTES), 0);
    bench_attach(b, read_only, queues);
    driver_start(&b->d, features, QUEUE_SIZE);
    b->header = driver_alloc(&b->d, 4096);
    b->status = driver_alloc(&b->d, 4096);
    b->data = driver_alloc(&b->d, 1 << 20);
    return b;
}
static int setup(void **state)
{
    *state = bench_create(false, 1, (uint64_t)ALL);
    return 0;
}
static int teardown(void **state)
{
    struct bench *b = *state;
    driver_detach(&b->d);
    uring_destroy(b->uring);
    machine_finish(&b->m);
    close(b->fd);
    unlink(b->path);
    if (use_layers)
        assert_int_equal(file_remove_tree("build", b->folder + 6, NULL), 0);
    free(b);
    return 0;
}

static void put_header(struct bench *b, uint32_t type, uint64_t sector)
{
    struct virtio_blk_outhdr header = {.type = htole32(type), .sector = htole64(sector)};
    memcpy(driver_at(&b->d, b->header, sizeof header), &header, sizeof header);
    *(uint8_t *)driver_at(&b->d, b->status, 1) = 0xee;
}
/* One request of @size data bytes on queue @queue; its status byte, and how much was said to be written. */
static int request(struct bench *b, unsigned queue, uint32_t type, uint64_t sector, uint32_t size, bool is_read,
                   uint32_t *ret_written)
{
    struct used_entry used = {0};
    struct segment segments[] = {{b->header, 16, false}, {b->data, size, is_read}, {b->status, 1, true}};
    put_header(b, type, sector);
    if (size == 0)
        segments[1] = segments[2];
    uint16_t head = driver_add(&b->d, queue, segments, size == 0 ? 2 : 3);
    driver_kick(&b->d, queue);
    assert_true(driver_wait(&b->d, queue, &used));
    assert_int_equal(used.head, head);
    if (ret_written != NULL)
        *ret_written = used.size;
    return *(uint8_t *)driver_at(&b->d, b->status, 1);
}
static uint8_t *data(struct bench *b)
{
    return driver_at(&b->d, b->data, 1 << 20);
}
static void fill(uint8_t *to, size_t size, unsigned seed)
{
    for (size_t i = 0; i < size; i++)
        to[i] = (uint8_t)(rand_r(&seed) >> 3);
}

static void writes_reach_the_file_and_come_back(void **state)
{
    struct bench *b = *state;
    uint8_t expect[8192], seen[8192];
    uint32_t written;
    fill(expect, sizeof expect, 1);
    memcpy(data(b), expect, sizeof expect);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_OUT, 100, sizeof expect, false, &written), VIRTIO_BLK_S_OK);
    assert_int_equal(written, 1);
    assert_int_equal(pread(b->fd, seen, sizeof seen, 100 * 512), sizeof seen);
    assert_memory_equal(seen, expect, sizeof seen);
    memset(data(b), 0, sizeof expect);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_IN, 100, sizeof expect, true, &written), VIRTIO_BLK_S_OK);
    assert_int_equal(written, sizeof expect + 1);
    assert_memory_equal(data(b), expect, sizeof expect);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_FLUSH, 0, 0, false, NULL), VIRTIO_BLK_S_OK);
    assert_true(driver_interrupts(&b->d, 1) > 0);
}

static void reads_mark_guest_memory_dirty(void **state)
{
    struct bench *b = *state;
    uint64_t bitmap[FAKE_MEMORY_BYTES / 4096 / 64] = {0};
    assert_int_equal(memory_tracking_start(&b->m.memory, NULL), 0);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_IN, 0, 3 * 4096, true, NULL), VIRTIO_BLK_S_OK);
    memory_tracking_fetch(&b->m.memory, 0, bitmap);
    uint64_t pages[] = {b->data / 4096, b->data / 4096 + 1, b->data / 4096 + 2, b->status / 4096,
                        b->d.queues[0].used / 4096};
    for (unsigned i = 0; i < ARRAY_SIZE(pages); i++)
        assert_true(bitmap[pages[i] / 64] >> (pages[i] % 64) & 1);
    assert_false(bitmap[b->header / 4096 / 64] >> (b->header / 4096 % 64) & 1);
}

static void limits_are_refused_with_ioerr(void **state)
{
    struct bench *b = *state;
    uint64_t end = DISK_BYTES / 512;
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_IN, end - 1, 512, true, NULL), VIRTIO_BLK_S_OK);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_IN, end - 1, 1024, true, NULL), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_OUT, end, 512, false, NULL), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_IN, UINT64_MAX / 512 + 1, 512, true, NULL), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_IN, UINT64_MAX, 512, true, NULL), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_IN, 0, 511, true, NULL), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_IN, 0, 0, true, NULL), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(b, 0, 77, 0, 512, true, NULL), VIRTIO_BLK_S_UNSUPP);
    /* The file became shorter behind our back. */
    assert_int_equal(ftruncate(b->fd, DISK_BYTES / 2), 0);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_IN, end - 1, 512, true, NULL), VIRTIO_BLK_S_IOERR);
}

static void serial_is_told(void **state)
{
    struct bench *b = *state;
    memset(data(b), 0x55, 32);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_GET_ID, 0, 20, true, NULL), VIRTIO_BLK_S_OK);
    assert_memory_equal(data(b), "disk-of-web1-and-mor", 20);
    assert_int_equal(data(b)[20], 0x55);
    memset(data(b), 0x55, 32);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_GET_ID, 0, 4, true, NULL), VIRTIO_BLK_S_OK);
    assert_memory_equal(data(b), "disk\x55", 5);
}

static void ranges_are_discarded_and_zeroed(void **state)
{
    struct bench *b = *state;
    uint8_t seen[4096], zero[4096] = {0};
    struct virtio_blk_discard_write_zeroes range = {.sector = htole64(8), .num_sectors = htole32(8)};
    memset(data(b), 0xab, 65536);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_OUT, 0, 65536, false, NULL), VIRTIO_BLK_S_OK);
    for (unsigned unmap = 0; unmap < 2; unmap++) {
        range.sector = htole64(8 + 8 * unmap);
        range.flags = htole32(unmap);
        memcpy(data(b), &range, sizeof range);
        assert_int_equal(request(b, 0, VIRTIO_BLK_T_WRITE_ZEROES, 0, 16, false, NULL), VIRTIO_BLK_S_OK);
        assert_int_equal(pread(b->fd, seen, 4096, 4096 * (1 + (off_t)unmap)), 4096);
        assert_memory_equal(seen, zero, 4096);
    }
    assert_int_equal(pread(b->fd, seen, 1, 4095), 1);
    assert_int_equal(seen[0], 0xab);
    assert_int_equal(pread(b->fd, seen, 1, 3 * 4096), 1);
    assert_int_equal(seen[0], 0xab);
    range.flags = 0;
    range.sector = htole64(32);
    memcpy(data(b), &range, sizeof range);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_DISCARD, 0, 16, false, NULL), VIRTIO_BLK_S_OK);
    /* Two ranges, half a range, unknown flags, past the end, too long. */
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_DISCARD, 0, 32, false, NULL), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_DISCARD, 0, 8, false, NULL), VIRTIO_BLK_S_IOERR);
    range.flags = htole32(1);
    memcpy(data(b), &range, sizeof range);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_DISCARD, 0, 16, false, NULL), VIRTIO_BLK_S_UNSUPP);
    range.flags = 0;
    range.sector = htole64(UINT64_MAX / 512);
    memcpy(data(b), &range, sizeof range);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_WRITE_ZEROES, 0, 16, false, NULL), VIRTIO_BLK_S_IOERR);
    range.sector = 0;
    range.num_sectors = htole32(UINT32_MAX);
    memcpy(data(b), &range, sizeof range);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_WRITE_ZEROES, 0, 16, false, NULL), VIRTIO_BLK_S_IOERR);
}

/* Header and status may be cut and joined with the data in any way (§2.7.4.2). */
static void framing_is_free(void **state)
{
    struct bench *b = *state;
    uint8_t *frame = data(b);
    struct used_entry used = {0};
    struct virtio_blk_outhdr header = {.type = htole32(VIRTIO_BLK_T_OUT), .sector = htole64(40)};
    memcpy(frame, &header, 16);
    fill(frame + 16, 1024, 9);
    struct segment write_it[] = {
        {b->data, 7, false}, {b->data + 7, 500, false}, {b->data + 507, 533, false}, {b->status, 1, true}};
    driver_add_indirect(&b->d, 0, driver_alloc(&b->d, 4096), write_it, 4);
    driver_kick(&b->d, 0);
    assert_true(driver_wait(&b->d, 0, &used));
    assert_int_equal(*(uint8_t *)driver_at(&b->d, b->status, 1), VIRTIO_BLK_S_OK);
    header.type = htole32(VIRTIO_BLK_T_IN);
    memcpy(driver_at(&b->d, b->header, 16), &header, 16);
    uint64_t back = b->data + 8192;
    struct segment read_it[] = {{b->header, 16, false}, {back, 1000, true}, {back + 1000, 25, true}};
    driver_add(&b->d, 0, read_it, 3);
    driver_kick(&b->d, 0);
    assert_true(driver_wait(&b->d, 0, &used));
    assert_int_equal(used.size, 1025);
    assert_memory_equal(frame + 8192, frame + 16, 1024);
    assert_int_equal(frame[8192 + 1024], VIRTIO_BLK_S_OK);
}

static void hostile_requests_need_a_reset(void **state)
{
    static const struct {
        uint32_t out_bytes, in_bytes;
        uint64_t gpa;
    } rows[] = {{16, 0, 0x10000}, {15, 1, 0x10000}, {0, 1, 0x10000}, {16, 1, FAKE_MEMORY_BYTES}, {16, 1, UINT64_MAX}};
    struct bench *b = *state;
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        driver_start(&b->d, (uint64_t)ALL, QUEUE_SIZE);
        driver_interrupts(&b->d, 0);
        struct segment segments[2];
        unsigned count = 0;
        if (rows[i].out_bytes > 0)
            segments[count++] = (struct segment){rows[i].gpa, rows[i].out_bytes, false};
        if (rows[i].in_bytes > 0)
            segments[count++] = (struct segment){b->status, rows[i].in_bytes, true};
        driver_add(&b->d, 0, segments, count);
        driver_kick(&b->d, 0);
        assert_true(driver_status(&b->d) & VIRTIO_CONFIG_S_NEEDS_RESET);
        assert_int_equal(driver_interrupts(&b->d, 0), 1);
        assert_false(driver_has_used(&b->d, 0));
        driver_kick(&b->d, 0); /* nothing more happens */
        driver_set_status(&b->d, 0);
        assert_int_equal(driver_status(&b->d), 0);
    }
    driver_start(&b->d, (uint64_t)ALL, QUEUE_SIZE);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_IN, 0, 512, true, NULL), VIRTIO_BLK_S_OK);
}

/* Many requests at once on several queues, completed in any order; then the file equals the model. */
static void queues_run_together(void **state)
{
    enum { ROUNDS = 60, AT_ONCE = 16, QUEUES = 4 };
    struct bench *b = *state;
    unsigned seed = (unsigned)unit_seed();
    uint8_t *model = xcalloc(1, DISK_BYTES), *seen = xcalloc(1, DISK_BYTES);
    teardown(state);
    *state = b = bench_create(false, QUEUES, (uint64_t)ALL & ~(1ull << VIRTIO_RING_F_EVENT_IDX));
    uint64_t headers = driver_alloc(&b->d, 4096), statuses = driver_alloc(&b->d, 4096);
    for (unsigned round = 0; round < ROUNDS; round++) {
        for (unsigned i = 0; i < QUEUES * AT_ONCE; i++) {
            uint64_t sector = (uint64_t)i * 128 + (uint64_t)rand_r(&seed) % 64;
            struct virtio_blk_outhdr header = {.type = htole32(VIRTIO_BLK_T_OUT), .sector = htole64(sector)};
            memcpy(driver_at(&b->d, headers + 16 * i, 16), &header, 16);
            *(uint8_t *)driver_at(&b->d, statuses + i, 1) = 0xee;
            fill(data(b) + 4096 * i, 4096, seed + i);
            memcpy(model + sector * 512, data(b) + 4096 * i, 4096);
            struct segment segments[] = {
                {headers + 16 * i, 16, false}, {b->data + 4096 * i, 4096, false}, {statuses + i, 1, true}};
            driver_add(&b->d, i % QUEUES, segments, 3);
        }
        for (unsigned q = 0; q < QUEUES; q++)
            driver_kick(&b->d, q);
        for (unsigned i = 0; i < QUEUES * AT_ONCE; i++) {
            struct used_entry used = {0};
            assert_true(driver_wait(&b->d, i % QUEUES, &used));
        }
        for (unsigned i = 0; i < QUEUES * AT_ONCE; i++)
            assert_int_equal(*(uint8_t *)driver_at(&b->d, statuses + i, 1), VIRTIO_BLK_S_OK);
    }
    assert_int_equal(pread(b->fd, seen, DISK_BYTES, 0), DISK_BYTES);
    assert_memory_equal(seen, model, DISK_BYTES);
    free(model);
    free(seen);
}

static void read_only_disk_refuses_writes(void **state)
{
    struct bench *b = *state;
    teardown(state);
    *state = b = bench_create(true, 1, (uint64_t)ALL);
    assert_true(b->d.features >> VIRTIO_BLK_F_RO & 1);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_OUT, 0, 512, false, NULL), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_IN, 0, 512, true, NULL), VIRTIO_BLK_S_OK);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_DISCARD, 0, 16, false, NULL), VIRTIO_BLK_S_IOERR);
}

static void lost_lease_parks_requests(void **state)
{
    struct bench *b = *state;
    struct used_entry used = {0};
    struct segment segments[] = {{b->header, 16, false}, {b->data, 512, false}, {b->status, 1, true}};
    uint8_t seen[512];
    set_lease(b, false);
    memset(data(b), 0x77, 512);
    put_header(b, VIRTIO_BLK_T_OUT, 5);
    driver_add(&b->d, 0, segments, 3);
    driver_kick(&b->d, 0);
    for (unsigned i = 0; i < 30; i++) /* the worker answers; the retry timer goes round */
        io_loop_run_once(b->m.loop, 10);
    assert_false(driver_has_used(&b->d, 0));
    assert_int_equal(pread(b->fd, seen, 512, 5 * 512), 512);
    assert_int_equal(seen[0], 0);
    /* The lease comes back: the guest sees nothing but a slow disk. */
    set_lease(b, true);
    assert_true(driver_wait(&b->d, 0, &used));
    assert_int_equal(*(uint8_t *)driver_at(&b->d, b->status, 1), VIRTIO_BLK_S_OK);
    assert_int_equal(pread(b->fd, seen, 512, 5 * 512), 512);
    assert_int_equal(seen[0], 0x77);
}

/* A read of what is in memory is answered within its notification, whatever becomes of reads that are not. */
static void what_is_in_memory_is_answered_at_once(void **state)
{
    struct bench *b = *state;
    struct used_entry used = {0};
    struct segment segments[] = {{b->header, 16, false}, {b->data, 5000, true}, {b->data + 8192, 123 * 512 - 5000, true}, {b->status, 1, true}};
    uint8_t expect[123 * 512];
    fill(expect, sizeof expect, 3);
    assert_int_equal(pwrite(b->fd, expect, sizeof expect, 77 * 512), sizeof expect);
    struct iovec look = {expect, sizeof expect};
    if (preadv2(b->fd, &look, 1, 77 * 512, RWF_NOWAIT) != sizeof expect) {
        print_message("skipped: this file system has nothing at hand\n");
        skip();
    }
    put_header(b, VIRTIO_BLK_T_IN, 77);
    driver_add(&b->d, 0, segments, 4);
    driver_interrupts(&b->d, 1);
    driver_kick(&b->d, 0);
    assert_true(driver_has_used(&b->d, 0));
    assert_true(driver_wait(&b->d, 0, &used));
    assert_int_equal(used.size, sizeof expect + 1);
    assert_int_equal(*(uint8_t *)driver_at(&b->d, b->status, 1), VIRTIO_BLK_S_OK);
    assert_memory_equal(data(b), expect, 5000);
    assert_memory_equal(data(b) + 8192, expect + 5000, sizeof expect - 5000);
    assert_true(driver_interrupts(&b->d, 1) > 0);
    assert_int_equal(b->block->in_flight, 0);
    /* Not without the lease; and then as any other. */
    set_lease(b, false);
    put_header(b, VIRTIO_BLK_T_IN, 77);
    driver_add(&b->d, 0, segments, 4);
    driver_kick(&b->d, 0);
    for (unsigned i = 0; i < 30; i++)
        io_loop_run_once(b->m.loop, 10);
    assert_false(driver_has_used(&b->d, 0));
    set_lease(b, true);
    assert_true(driver_wait(&b->d, 0, &used));
    assert_int_equal(*(uint8_t *)driver_at(&b->d, b->status, 1), VIRTIO_BLK_S_OK);
}

static void parked_requests_move_to_another_process(void **state)
{
    struct bench *b = *state;
    struct segment segments[] = {{b->header, 16, false}, {b->data, 512, false}, {b->status, 1, true}};
    struct used_entry used = {0};
    struct error err = {0};
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_FLUSH, 0, 0, false, NULL), VIRTIO_BLK_S_OK);
    set_lease(b, false);
    memset(data(b), 0x66, 512);
    put_header(b, VIRTIO_BLK_T_OUT, 9);
    uint16_t head = driver_add(&b->d, 0, segments, 3);
    driver_kick(&b->d, 0);
    driver_pause(&b->d);
    assert_int_equal(b->block->in_flight, 0);
    struct bytes_writer saved = driver_save(&b->d);

    /* The same guest memory under another device. */
    struct driver before = b->d;
    driver_detach(&b->d);
    bench_attach(b, false, 1);
    for (size_t cut = 0; cut < saved.size; cut++) {
        uint8_t *exact = xcalloc(1, cut);
        memcpy(exact, saved.data, cut);
        assert_int_equal(driver_load(&b->d, exact, cut, &err), -EBADMSG);
        assert_true(err.text[0] != 0);
        free(exact);
    }
    assert_int_equal(driver_load(&b->d, saved.data, saved.size, &err), 0);
    b->d.bar = before.bar;
    memcpy(b->d.queues, before.queues, sizeof before.queues);
    b->d.free_gpa = before.free_gpa;
    set_lease(b, true);
    driver_resume(&b->d);
    assert_true(driver_wait(&b->d, 0, &used));
    assert_int_equal(used.head, head);
    assert_int_equal(*(uint8_t *)driver_at(&b->d, b->status, 1), VIRTIO_BLK_S_OK);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_IN, 9, 512, true, NULL), VIRTIO_BLK_S_OK);
    assert_int_equal(data(b)[0], 0x66);
    assert_true(driver_interrupts(&b->d, 1) > 0);
    /* Saved again it is the same but for the indexes that moved on: same size. */
    driver_pause(&b->d);
    struct bytes_writer again = driver_save(&b->d);
    assert_int_equal(again.size, saved.size - 2); /* nothing parked any more */
    bytes_writer_finish(&again);
    bytes_writer_finish(&saved);
}

static void another_disk_is_refused_on_load(void **state)
{
    struct bench *b = *state;
    struct error err = {0};
    driver_pause(&b->d);
    struct bytes_writer saved = driver_save(&b->d);
    driver_detach(&b->d);
    assert_int_equal(ftruncate(b->fd, DISK_BYTES * 2), 0);
    bench_attach(b, false, 1);
    assert_int_equal(driver_load(&b->d, saved.data, saved.size, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "size_bytes"));
    bytes_writer_finish(&saved);
}

/* Reset while requests are under way: when it returns, none touches guest memory any more. */
static void reset_waits_for_requests(void **state)
{
    struct bench *b = *state;
    struct segment segments[] = {{b->header, 16, false}, {b->data, 1 << 18, true}, {b->status, 1, true}};
    for (unsigned i = 0; i < 50; i++) {
        put_header(b, VIRTIO_BLK_T_IN, 0);
        driver_add(&b->d, 0, segments, 3);
        driver_kick(&b->d, 0);
        driver_set_status(&b->d, 0);
        assert_int_equal(b->block->in_flight, 0);
        b->d.free_gpa = b->data + (1 << 20);
        driver_start(&b->d, (uint64_t)ALL, QUEUE_SIZE);
    }
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_IN, 0, 512, true, NULL), VIRTIO_BLK_S_OK);
}

/* A driver without the FLUSH feature is promised write-through; it still gets one answer per request. */
static void without_flush_writes_go_through(void **state)
{
    struct bench *b = *state;
    uint32_t written;
    driver_start(&b->d, ~(1ull << VIRTIO_BLK_F_FLUSH), QUEUE_SIZE);
    memset(data(b), 0x11, 4096);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_OUT, 64, 4096, false, &written), VIRTIO_BLK_S_OK);
    assert_int_equal(written, 1);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_IN, 64, 4096, true, NULL), VIRTIO_BLK_S_OK);
    assert_int_equal(data(b)[4095], 0x11);
}

/* The same bench with a disk that can fail. */
static struct bench *bench_make_faulty(void **state, enum disk_error_policy on_error)
{
    struct bench *b = *state;
    driver_detach(&b->d);
    b->fault = (void *)b; /* wanted */
    b->on_error = on_error;
    bench_attach(b, false, 1);
    driver_start(&b->d, (uint64_t)ALL, QUEUE_SIZE);
    b->header = driver_alloc(&b->d, 4096);
    b->status = driver_alloc(&b->d, 4096);
    b->data = driver_alloc(&b->d, 1 << 20);
    return b;
}

static void fail_next(struct bench *b, unsigned count, enum block_op op, int result)
{
    b->fault->fail_count = count;
    b->fault->fail_ops = 1u << op;
    b->fault->fail_result = result;
}

static void errors_go_to_the_guest_or_stop_the_machine(void **state)
{
    static const struct {
        enum disk_error_policy policy;
        uint32_t type;
        enum block_op op;
        int result;
        bool stops;
    } rows[] = {
        {disk_error_policy_NO_SPACE, VIRTIO_BLK_T_OUT, BLOCK_WRITE, -ENOSPC, true},
        {disk_error_policy_NO_SPACE, VIRTIO_BLK_T_OUT, BLOCK_WRITE, -EDQUOT, true},
        {disk_error_policy_NO_SPACE, VIRTIO_BLK_T_FLUSH, BLOCK_FLUSH, -ENOSPC, true},
        {disk_error_policy_NO_SPACE, VIRTIO_BLK_T_OUT, BLOCK_WRITE, -EIO, false},
        {disk_error_policy_NO_SPACE, VIRTIO_BLK_T_IN, BLOCK_READ, -EIO, false},
        {disk_error_policy_REPORT, VIRTIO_BLK_T_OUT, BLOCK_WRITE, -ENOSPC, false},
        {disk_error_policy_REPORT, VIRTIO_BLK_T_FLUSH, BLOCK_FLUSH, -EIO, false},
        {disk_error_policy_PAUSE, VIRTIO_BLK_T_OUT, BLOCK_WRITE, -EIO, true},
        {disk_error_policy_PAUSE, VIRTIO_BLK_T_IN, BLOCK_READ, -EIO, true},
        {disk_error_policy_PAUSE, VIRTIO_BLK_T_FLUSH, BLOCK_FLUSH, -ENOSPC, true},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        struct bench *b = bench_make_faulty(state, rows[i].policy);
        struct used_entry used = {0};
        uint8_t expect[4096], seen[4096];
        bool is_read = rows[i].type == VIRTIO_BLK_T_IN;
        struct segment segments[] = {{b->header, 16, false}, {b->data, 4096, is_read}, {b->status, 1, true}};
        if (rows[i].type == VIRTIO_BLK_T_FLUSH)
            segments[1] = segments[2];
        fill(expect, sizeof expect, i);
        assert_int_equal(pwrite(b->fd, expect, sizeof expect, 24 * 512), sizeof expect);
        memcpy(data(b), expect, sizeof expect);
        b->stops = 0;
        fail_next(b, 2, rows[i].op, rows[i].result); /* the first retry fails as well */
        put_header(b, rows[i].type, 24);
        driver_add(&b->d, 0, segments, rows[i].type == VIRTIO_BLK_T_FLUSH ? 2 : 3);
        driver_kick(&b->d, 0);
        if (!rows[i].stops) {
            assert_true(driver_wait(&b->d, 0, &used));
            assert_int_equal(*(uint8_t *)driver_at(&b->d, b->status, 1), VIRTIO_BLK_S_IOERR);
            assert_int_equal(b->stops, 0);
            continue;
        }
        for (unsigned round = 1; round <= 2; round++) {
            for (unsigned waits = 0; b->stops < round && waits < FAKE_ROUNDS_MAX; waits++)
                io_loop_run_once(b->m.loop, 10);
            assert_int_equal(b->stops, round);
            assert_int_equal(b->stop_result, rows[i].result);
            assert_false(driver_has_used(&b->d, 0)); /* the guest knows nothing */
            assert_int_equal(*(uint8_t *)driver_at(&b->d, b->status, 1), 0xee);
            driver_pause(&b->d);
            driver_resume(&b->d);
        }
        assert_true(driver_wait(&b->d, 0, &used));
        assert_int_equal(*(uint8_t *)driver_at(&b->d, b->status, 1), VIRTIO_BLK_S_OK);
        assert_int_equal(b->stops, 2);
        assert_int_equal(b->fault->failed, 2);
        if (rows[i].type != VIRTIO_BLK_T_FLUSH) {
            assert_int_equal(pread(b->fd, seen, sizeof seen, 24 * 512), sizeof seen);
            assert_memory_equal(seen, expect, sizeof seen);
            assert_memory_equal(data(b), expect, sizeof expect);
        }
    }
}

/* Some of many writes meet a full disk, the machine stops, space is made, it goes on: all are done, each once. */
static void nothing_acknowledged_is_lost_when_space_runs_out(void **state)
{
    enum { WRITES = 16 };
    struct bench *b = bench_make_faulty(state, disk_error_policy_NO_SPACE);
    uint64_t headers = driver_alloc(&b->d, 4096), statuses = driver_alloc(&b->d, 4096);
    bool done[WRITES] = {false};
    unsigned count = 0;
    fail_next(b, WRITES / 2, BLOCK_WRITE, -ENOSPC);
    for (unsigned i = 0; i < WRITES; i++) {
        struct virtio_blk_outhdr header = {.type = htole32(VIRTIO_BLK_T_OUT), .sector = htole64(i)};
        memcpy(driver_at(&b->d, headers + 16 * i, 16), &header, 16);
        memset(data(b) + 512 * i, (int)(0x40 + i), 512);
        struct segment segments[] = {
            {headers + 16 * i, 16, false}, {b->data + 512 * i, 512, false}, {statuses + i, 1, true}};
        assert_int_equal(driver_add(&b->d, 0, segments, 3), 3 * i);
    }
    driver_kick(&b->d, 0);
    for (unsigned waits = 0; b->stops < WRITES / 2 && waits < FAKE_ROUNDS_MAX; waits++)
        io_loop_run_once(b->m.loop, 10);
    assert_int_equal(b->stops, WRITES / 2);
    driver_pause(&b->d);
    for (unsigned round = 0; round < 2; round++) {
        struct used_entry used = {0};
        while (driver_has_used(&b->d, 0) || round == 1) {
            uint8_t seen[512];
            assert_true(driver_wait(&b->d, 0, &used));
            unsigned i = used.head / 3;
            assert_false(done[i]);
            done[i] = true;
            assert_int_equal(*(uint8_t *)driver_at(&b->d, statuses + i, 1), VIRTIO_BLK_S_OK);
            assert_int_equal(pread(b->fd, seen, 512, 512 * (off_t)i), 512);
            assert_int_equal(seen[0], 0x40 + i); /* what is acknowledged is there */
            if (++count == WRITES)
                break;
        }
        if (round == 0) {
            assert_true(count <= WRITES / 2);
            driver_resume(&b->d);
        }
    }
    assert_int_equal(count, WRITES);
}

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Real time here, as coarsely as can be; test_rate_limit.c has the exact figures. */
static void limits_slow_down_and_can_be_lifted(void **state)
{
    struct bench *b = *state;
    struct blk *blk = blk_of_virtio(b->d.vdev);
    struct vmm_limits slow = {.operations_per_second = 100, .operations_burst = 1}, none = {.operations_burst = 0};
    uint64_t begun = now_ms();
    blk_set_limits(blk, &slow);
    unsigned asked = 0; /* 11, and more on a machine that is slower than the limit now and then */
    for (; asked < 11 || (blk->counters.throttled < 8 && asked < 500); asked++)
        assert_int_equal(request(b, 0, VIRTIO_BLK_T_IN, 0, 512, true, NULL), VIRTIO_BLK_S_OK);
    assert_true(now_ms() - begun >= 10 * asked - 25);
    assert_true(blk->counters.throttled >= 8);
    slow = (struct vmm_limits){.bytes_per_second = 1, .bytes_burst = 1};
    blk_set_limits(blk, &slow);
    struct segment segments[] = {{b->header, 16, false}, {b->data, 512, true}, {b->status, 1, true}};
    struct used_entry used = {0};
    for (unsigned i = 0; i < 3; i++) {
        put_header(b, VIRTIO_BLK_T_IN, 0);
        segments[1] = (struct segment){b->data + 512 * i, 512, true}; /* threads read into them at the same time */
        driver_add(&b->d, 0, segments, 3);
    }
    driver_kick(&b->d, 0);
    assert_true(blk->counters.reads < asked + 3);
    blk_set_limits(blk, &none); /* nobody waits for the minutes that were said before */
    for (unsigned i = 0; i < 3; i++)
        assert_true(driver_wait(&b->d, 0, &used));
    /* Paused while throttled: it comes back throttled, with its requests. */
    blk_set_limits(blk, &slow);
    driver_add(&b->d, 0, segments, 3);
    segments[1] = (struct segment){b->data, 512, true};
    driver_add(&b->d, 0, segments, 3);
    driver_kick(&b->d, 0);
    driver_pause(&b->d);
    driver_resume(&b->d);
    blk_set_limits(blk, &none);
    assert_true(driver_wait(&b->d, 0, &used) && driver_wait(&b->d, 0, &used));
}

/* One queue that always has something to do does not keep the others from the little that there is. */
static void queues_share_what_a_limit_leaves(void **state UNUSED)
{
    enum { EACH = 8 };
    struct bench *b = bench_create(false, 2, (uint64_t)ALL);
    struct vmm_limits slow = {.operations_per_second = 100, .operations_burst = 1}, none = {.operations_burst = 0};
    struct segment segments[] = {{b->header, 16, false}, {b->data, 512, true}, {b->status, 1, true}};
    struct used_entry used = {0};
    unsigned done[2] = {0};
    put_header(b, VIRTIO_BLK_T_IN, 0);
    blk_set_limits(blk_of_virtio(b->d.vdev), &slow);
    for (unsigned i = 0; i < 2 * EACH; i++) {
        segments[1] = (struct segment){b->data + 512 * i, 512, true}; /* threads read into them at the same time */
        driver_add(&b->d, i % 2, segments, 3);
    }
    driver_kick(&b->d, 0);
    driver_kick(&b->d, 1);
    for (unsigned round = 0; done[0] + done[1] < EACH && round < FAKE_ROUNDS_MAX; round++) {
        io_loop_run_once(b->m.loop, 10);
        for (unsigned queue = 0; queue < 2; queue++)
            while (driver_has_used(&b->d, queue) && driver_wait(&b->d, queue, &used))
                done[queue]++;
    }
    assert_true(done[0] >= 2 && done[1] >= 2);
    blk_set_limits(blk_of_virtio(b->d.vdev), &none);
    for (unsigned queue = 0; queue < 2; queue++)
        for (; done[queue] < EACH; done[queue]++)
            assert_true(driver_wait(&b->d, queue, &used));
    void *bench = b;
    teardown(&bench);
}

static void a_disk_grows_while_it_runs(void **state)
{
    struct bench *b = *state;
    struct error err;
    struct blk *blk = blk_of_virtio(b->d.vdev);
    uint64_t capacity;
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_IN, DISK_BYTES / 512, 512, true, NULL), VIRTIO_BLK_S_IOERR);
    driver_interrupts(&b->d, 0);
    uint8_t generation = b->d.vdev->config_generation;
    assert_int_equal(block_grow(b->block, DISK_BYTES * 2, &err), 0);
    blk_grown(blk);
    assert_int_equal(driver_interrupts(&b->d, 0), 1);
    assert_int_not_equal(b->d.vdev->config_generation, generation);
    memcpy(&capacity, b->d.vdev->config, sizeof capacity);
    assert_int_equal(le64toh(capacity), DISK_BYTES * 2 / 512);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_OUT, DISK_BYTES / 512, 512, false, NULL), VIRTIO_BLK_S_OK);
}

/* Under I/O, with some parked for a lost lease: each request gets its answer, and the file is free for others. */
static void a_disk_taken_away_fails_its_requests(void **state)
{
    struct bench *b = *state;
    struct blk *blk = blk_of_virtio(b->d.vdev);
    struct used_entry used = {0};
    struct block *other = NULL;
    const struct block_file_options file = {.uring = NULL};
    struct segment segments[] = {{b->header, 16, false}, {b->data, 512, true}, {b->status, 1, true}};
    set_lease(b, false);
    put_header(b, VIRTIO_BLK_T_IN, 0);
    for (unsigned i = 0; i < 4; i++)
        driver_add(&b->d, 0, segments, 3);
    driver_kick(&b->d, 0);
    blk_detach(blk);
    for (unsigned i = 0; i < 4; i++)
        assert_true(driver_wait(&b->d, 0, &used));
    assert_int_equal(*(uint8_t *)driver_at(&b->d, b->status, 1), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_OUT, 0, 512, false, NULL), VIRTIO_BLK_S_IOERR);
    assert_int_equal(request(b, 0, VIRTIO_BLK_T_FLUSH, 0, 0, false, NULL), VIRTIO_BLK_S_IOERR);
    assert_int_equal(block_file_open(b->path, &file, b->m.loop, &other, NULL), 0);
    block_close(other);
}

static void disks_that_cannot_be_are_refused(void **state)
{
    struct bench *b = *state;
    struct block *block = NULL;
    struct error err = {0};
    const struct block_file_options file = {.uring = b->uring}, reader = {.read_only = true};
    char path[] = "build/test-odd-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(block_file_open(path, &file, b->m.loop, &block, &err), -EINVAL);
    assert_non_null(strstr(err.text, "empty"));
    assert_int_equal(ftruncate(fd, 513), 0);
    assert_int_equal(block_file_open(path, &file, b->m.loop, &block, &err), -EINVAL);
    assert_non_null(strstr(err.text, "513 bytes"));
    assert_int_equal(block_file_open("build", &reader, b->m.loop, &block, &err), -EINVAL);
    assert_int_equal(block_file_open("build/no-such-file", &file, b->m.loop, &block, &err), -ENOENT);
    assert_int_equal(block_file_open(b->path, &file, b->m.loop, &block, &err), -EBUSY);
    assert_null(block);
    close(fd);
    unlink(path);
}

static bool uring_is_permitted(void)
{
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    struct io_loop *loop;
    struct uring *uring = NULL;
    assert_int_equal(io_loop_create(&lock, &loop, NULL), 0);
    bool permitted = uring_create(loop, &uring, NULL) == 0;
    uring_destroy(uring);
    io_loop_destroy(loop);
    return permitted;
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    static const struct CMUnitTest tests[] = {
        T(writes_reach_the_file_and_come_back),
        T(reads_mark_guest_memory_dirty),
        T(limits_are_refused_with_ioerr),
        T(serial_is_told),
        T(ranges_are_discarded_and_zeroed),
        T(framing_is_free),
        T(hostile_requests_need_a_reset),
        T(queues_run_together),
        T(read_only_disk_refuses_writes),
        T(lost_lease_parks_requests),
        T(what_is_in_memory_is_answered_at_once),
        T(parked_requests_move_to_another_process),
        T(another_disk_is_refused_on_load),
        T(reset_waits_for_requests),
        T(without_flush_writes_go_through),
        T(errors_go_to_the_guest_or_stop_the_machine),
        T(nothing_acknowledged_is_lost_when_space_runs_out),
        T(limits_slow_down_and_can_be_lifted),
        cmocka_unit_test(queues_share_what_a_limit_leaves),
        T(a_disk_grows_while_it_runs),
        T(a_disk_taken_away_fails_its_requests),
        T(disks_that_cannot_be_are_refused),
    };
    static const struct CMUnitTest layered[] = {
        T(writes_reach_the_file_and_come_back),
        T(reads_mark_guest_memory_dirty),
        T(ranges_are_discarded_and_zeroed),
        T(framing_is_free),
        T(queues_run_together),
        T(read_only_disk_refuses_writes),
        T(lost_lease_parks_requests),
        T(what_is_in_memory_is_answered_at_once),
        T(parked_requests_move_to_another_process),
        T(reset_waits_for_requests),
        T(without_flush_writes_go_through),
        T(errors_go_to_the_guest_or_stop_the_machine),
        T(nothing_acknowledged_is_lost_when_space_runs_out),
        T(limits_slow_down_and_can_be_lifted),
        T(a_disk_grows_while_it_runs),
        T(a_disk_taken_away_fails_its_requests),
    };
    int failed = cmocka_run_group_tests_name("threads", tests, NULL, NULL);
    use_uring = uring_is_permitted();
    if (use_uring)
        failed += cmocka_run_group_tests_name("io_uring", tests, NULL, NULL);
    else
        print_message("io_uring: skipped, this host does not permit it\n");
    use_layers = true;
    failed += cmocka_run_group_tests_name("layers", layered, NULL, NULL);
    return failed;
}
