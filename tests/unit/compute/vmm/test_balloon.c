/* virtio-balloon through the PCI transport: inflating gives memory back, targets reach the driver, statistics make the
 * round trip, free pages are reported, state is carried over, hostile requests do no harm. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <linux/virtio_balloon.h>

#include "common/log.h"
#include "compute/vmm/devices/balloon/balloon.h"
#include "tests/unit/compute/vmm/virtio_driver.h"

enum { QUEUE_SIZE = 64, INFLATE = 0, DEFLATE = 1, STATS = 2, REPORTING = 3, PAGE = BALLOON_PAGE_BYTES };

struct bench {
    struct machine m;
    struct driver d;
    uint64_t pages;  /* guest address of some pages that nobody uses */
    uint64_t buffer; /* for requests */
};

static void attach(struct bench *b, uint64_t features)
{
    struct virtio_device *vdev;
    assert_int_equal(balloon_create(&b->m.memory, &vdev, NULL), 0);
    driver_attach(&b->d, &b->m, vdev);
    driver_start(&b->d, features, QUEUE_SIZE);
    b->pages = driver_alloc(&b->d, 8 * PAGE);
    b->buffer = driver_alloc(&b->d, 2 * PAGE);
}
static int setup(void **state)
{
    struct bench *b = NEW(struct bench);
    machine_init(&b->m);
    attach(b, UINT64_MAX);
    *state = b;
    return 0;
}
static int teardown(void **state)
{
    struct bench *b = *state;
    driver_detach(&b->d);
    machine_finish(&b->m);
    free(b);
    return 0;
}

static struct balloon *balloon_of(struct bench *b)
{
    return CONTAINER_OF(b->d.vdev, struct balloon, virtio);
}

static void request(struct bench *b, unsigned queue, const struct segment *segments, unsigned count)
{
    struct used_entry used;
    uint16_t head = driver_add(&b->d, queue, segments, count);
    driver_kick(&b->d, queue);
    assert_true(driver_wait(&b->d, queue, &used));
    assert_int_equal(used.head, head);
    assert_int_equal(used.size, 0);
}

static void page_numbers(struct bench *b, unsigned queue, const uint32_t *pages, unsigned count)
{
    memcpy(driver_at(&b->d, b->buffer, count * 4), pages, count * 4);
    struct segment segment = {b->buffer, count * 4, false};
    request(b, queue, &segment, 1);
}

static bool is_zero(struct bench *b, uint64_t gpa)
{
    const uint8_t *at = driver_at(&b->d, gpa, PAGE);
    for (unsigned i = 0; i < PAGE; i++)
        if (at[i] != 0)
            return false;
    return true;
}

static void test_inflate(void **state)
{
    struct bench *b = *state;
    uint32_t first = (uint32_t)(b->pages / PAGE);
    memset(driver_at(&b->d, b->pages, 8 * PAGE), 0xaa, 8 * PAGE);
    /* Two neighbours, one alone, one that is no memory. */
    page_numbers(b, INFLATE, (uint32_t[]){first, first + 1, first + 4, UINT32_MAX}, 4);
    bool gone[8] = {true, true, [4] = true};
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(is_zero(b, b->pages + i * PAGE), gone[i]);
    assert_int_equal(balloon_of(b)->discarded_bytes, 3 * PAGE);
    page_numbers(b, DEFLATE, &first, 1);
    memset(driver_at(&b->d, b->pages, PAGE), 0xbb, PAGE);
    assert_false(is_zero(b, b->pages));
}

/* What is discarded has changed: whoever copies the memory must copy it again. */
static void test_discard_is_dirty(void **state)
{
    struct bench *b = *state;
    uint32_t page = (uint32_t)(b->pages / PAGE);
    uint64_t bitmap[FAKE_MEMORY_BYTES / PAGE / 64] = {0};
    assert_int_equal(memory_tracking_start(&b->m.memory, NULL), 0);
    page_numbers(b, INFLATE, &page, 1);
    memory_tracking_fetch(&b->m.memory, 0, bitmap);
    assert_true(bitmap[page / 64] >> page % 64 & 1);
    assert_false(bitmap[(page + 1) / 64] >> (page + 1) % 64 & 1);
}

static void test_target(void **state)
{
    struct bench *b = *state;
    struct error err;
    driver_interrupts(&b->d, 0);
    assert_int_equal(balloon_set_target(b->d.vdev, 3 * PAGE, &err), 0);
    assert_int_equal(driver_interrupts(&b->d, 0), 1);
    assert_int_equal(driver_read(&b->d, VIRTIO_PCI_AT_DEVICE, 4), 3);
    /* The driver's word about what it holds. */
    driver_write(&b->d, VIRTIO_PCI_AT_DEVICE + 4, 4, 2);
    assert_int_equal(driver_read(&b->d, VIRTIO_PCI_AT_DEVICE + 4, 4), 2);
    assert_int_equal(balloon_actual_bytes(b->d.vdev), 2 * PAGE);
    /* The target is ours, and odd writes change nothing. */
    driver_write(&b->d, VIRTIO_PCI_AT_DEVICE, 4, 7);
    driver_write(&b->d, VIRTIO_PCI_AT_DEVICE + 4, 1, 9);
    driver_write(&b->d, VIRTIO_PCI_AT_DEVICE + 4, 8, 9);
    assert_int_equal(driver_read(&b->d, VIRTIO_PCI_AT_DEVICE, 8), 3 | 2ull << 32);
    assert_int_equal(balloon_set_target(b->d.vdev, FAKE_MEMORY_BYTES, &err), -EINVAL);
    assert_string_equal(err.field, "/target_bytes");
    assert_int_equal(balloon_set_target(b->d.vdev, 4097, &err), -EINVAL);
    assert_int_equal(balloon_target_bytes(b->d.vdev), 3 * PAGE);
}

/* Each page number may take a system call: after so many the other devices have their turn. */
static void test_turns(void **state)
{
    struct bench *b = *state;
    struct segment segment = {driver_alloc(&b->d, 4 * BALLOON_REQUEST_PAGES_MAX), 4 * BALLOON_REQUEST_PAGES_MAX, false};
    struct used_entry used;
    memset(driver_at(&b->d, segment.gpa, segment.size), 0xff, segment.size);
    for (unsigned i = 0; i < 3; i++)
        driver_add(&b->d, INFLATE, &segment, 1);
    driver_kick(&b->d, INFLATE);
    assert_int_equal(b->d.vdev->queues[INFLATE].next_used, BALLOON_BATCH_PAGES / BALLOON_REQUEST_PAGES_MAX);
    for (unsigned i = 0; i < 3; i++)
        assert_true(driver_wait(&b->d, INFLATE, &used)); /* without another kick */
}

static void stats_offer(struct bench *b, uint64_t gpa, uint16_t tag, uint64_t value)
{
    uint8_t *at = driver_at(&b->d, gpa, BALLOON_STAT_BYTES);
    memcpy(at, &tag, 2);
    memcpy(at + 2, &value, 8);
    struct segment segment = {gpa, BALLOON_STAT_BYTES, false};
    driver_add(&b->d, STATS, &segment, 1);
    driver_kick(&b->d, STATS);
}

static void test_stats(void **state)
{
    struct bench *b = *state;
    struct used_entry used;
    assert_int_equal(balloon_stats_poll(b->d.vdev)->reports, 0);
    stats_offer(b, b->buffer, VIRTIO_BALLOON_S_MEMFREE, 12345);
    assert_false(driver_has_used(&b->d, STATS)); /* kept until somebody asks */
    assert_int_equal(balloon_of(b)->stats.values[VIRTIO_BALLOON_S_MEMFREE], 12345);
    assert_int_equal(balloon_of(b)->stats.values[VIRTIO_BALLOON_S_MEMTOT], UINT64_MAX);
    assert_int_equal(balloon_stats_poll(b->d.vdev)->reports, 1);
    assert_true(driver_wait(&b->d, STATS, &used));
    /* Fresh ones, of which an unknown tag is passed over. */
    stats_offer(b, b->buffer, 999, 1);
    assert_int_equal(balloon_of(b)->stats.reports, 2);
    /* A second buffer sends the first back. */
    stats_offer(b, b->buffer + 64, VIRTIO_BALLOON_S_MEMFREE, 5);
    assert_true(driver_wait(&b->d, STATS, &used));
    assert_int_equal(used.head, 1);
    assert_false(driver_has_used(&b->d, STATS));
}

static void test_reporting(void **state)
{
    struct bench *b = *state;
    memset(driver_at(&b->d, b->pages, 8 * PAGE), 0xaa, 8 * PAGE);
    struct segment segments[] = {{b->pages, 2 * PAGE, true}, {b->pages + 3 * PAGE + 8, PAGE, true}};
    request(b, REPORTING, segments, 2);
    assert_true(is_zero(b, b->pages) && is_zero(b, b->pages + PAGE));
    assert_false(is_zero(b, b->pages + 3 * PAGE)); /* not whole pages: left alone */
    assert_int_equal(balloon_of(b)->reported_bytes, 2 * PAGE);
}

/* Without statistics the driver numbers the reporting queue 2. */
static void test_queue_numbers(void **state)
{
    struct bench *b = *state;
    driver_detach(&b->d);
    attach(b, ~(1ull << VIRTIO_BALLOON_F_STATS_VQ));
    memset(driver_at(&b->d, b->pages, PAGE), 0xaa, PAGE);
    struct segment segment = {b->pages, PAGE, true};
    request(b, 2, &segment, 1);
    assert_true(is_zero(b, b->pages));
    assert_int_equal(balloon_stats_poll(b->d.vdev)->reports, 0);
}

static void test_state(void **state)
{
    struct bench *b = *state;
    struct used_entry used;
    struct error err;
    assert_int_equal(balloon_set_target(b->d.vdev, 5 * PAGE, NULL), 0);
    driver_write(&b->d, VIRTIO_PCI_AT_DEVICE + 4, 4, 4);
    stats_offer(b, b->buffer, VIRTIO_BALLOON_S_MEMFREE, 1);
    driver_pause(&b->d);
    struct bytes_writer saved = driver_save(&b->d);
    /* Into the same device after it has forgotten everything. */
    struct balloon *balloon = balloon_of(b);
    balloon->target_pages = balloon->actual_pages = 0;
    balloon->stats_held = false;
    balloon->stats_head = 0;
    balloon_config_fill(balloon);
    assert_int_equal(driver_load(&b->d, saved.data, saved.size, &err), 0);
    bytes_writer_finish(&saved);
    driver_resume(&b->d);
    assert_int_equal(driver_read(&b->d, VIRTIO_PCI_AT_DEVICE, 8), 5 | 4ull << 32);
    assert_false(driver_has_used(&b->d, STATS));
    balloon_stats_poll(b->d.vdev);
    assert_true(driver_wait(&b->d, STATS, &used)); /* the held buffer came along */
    /* A reset empties it; the wish stays. */
    driver_set_status(&b->d, 0);
    assert_int_equal(driver_read(&b->d, VIRTIO_PCI_AT_DEVICE, 8), 5);
    assert_false(balloon->stats_held);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_inflate), T(test_discard_is_dirty), T(test_turns), T(test_target), T(test_stats),
        T(test_reporting), T(test_queue_numbers), T(test_state),
    };
    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
