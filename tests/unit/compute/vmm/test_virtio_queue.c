/* The virtqueue alone, on fake guest memory: chains, indirect tables, event indexes, wrapping, and rings that lie. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <endian.h>
#include <errno.h>
#include <linux/virtio_ring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compute/vmm/virtio/virtio_queue.h"
#include "tests/unit/unit_seed.h"

enum { SIZE = 8, DESC = 0x1000, AVAIL = 0x2000, USED = 0x3000, TABLE = 0x4000, DATA = 0x10000 };

struct bench {
    struct guest_memory memory;
    struct virtio_queue q;
    struct virtio_chain chain;
};

static int setup(void **state)
{
    struct bench *b = NEW(struct bench);
    assert_int_equal(memory_init(&b->memory, MEMORY_BYTES_MIN, NULL), 0);
    virtio_queue_init(&b->q, &b->memory, 16);
    b->q.size = SIZE;
    b->q.desc_gpa = DESC;
    b->q.driver_gpa = AVAIL;
    b->q.device_gpa = USED;
    b->q.indirect = true;
    assert_int_equal(virtio_queue_enable(&b->q), 0);
    *state = b;
    return 0;
}
static int teardown(void **state)
{
    struct bench *b = *state;
    memory_finish(&b->memory);
    free(b);
    return 0;
}

static void put16(struct bench *b, uint64_t gpa, uint16_t v)
{
    v = htole16(v);
    assert_true(memory_write(&b->memory, gpa, &v, 2));
}
static uint16_t get16(struct bench *b, uint64_t gpa)
{
    uint16_t v;
    assert_true(memory_read(&b->memory, gpa, &v, 2));
    return le16toh(v);
}
static void desc(struct bench *b, uint64_t table, unsigned i, uint64_t gpa, uint32_t size, uint16_t flags,
                 uint16_t next)
{
    struct vring_desc d = {htole64(gpa), htole32(size), htole16(flags), htole16(next)};
    assert_true(memory_write(&b->memory, table + 16 * i, &d, sizeof d));
}
static void offer(struct bench *b, uint16_t head)
{
    uint16_t index = get16(b, AVAIL + 2);
    put16(b, AVAIL + 4 + 2u * (index % SIZE), head);
    put16(b, AVAIL + 2, (uint16_t)(index + 1));
}

static void chain_is_copied_out(void **state)
{
    struct bench *b = *state;
    assert_int_equal(virtio_queue_pop(&b->q, &b->chain), 0);
    desc(b, DESC, 3, DATA, 10, VRING_DESC_F_NEXT, 5);
    desc(b, DESC, 5, DATA + 100, 20, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 1);
    desc(b, DESC, 1, DATA + 200, 30, VRING_DESC_F_WRITE, 0);
    offer(b, 3);
    assert_true(virtio_queue_has_more(&b->q));
    assert_int_equal(virtio_queue_pop(&b->q, &b->chain), 1);
    assert_int_equal(b->chain.head, 3);
    assert_int_equal(b->chain.out_count, 1);
    assert_int_equal(b->chain.in_count, 2);
    assert_int_equal(b->chain.out_bytes, 10);
    assert_int_equal(b->chain.in_bytes, 50);
    /* Reads and writes go over segment borders and stop at the end of the part. */
    uint8_t pattern[64], back[64];
    for (unsigned i = 0; i < sizeof pattern; i++)
        pattern[i] = (uint8_t)(i * 7 + 1);
    assert_int_equal(virtio_chain_write(&b->chain, &b->memory, 15, pattern, 64), 35);
    assert_true(memory_read(&b->memory, DATA + 115, back, 5));
    assert_memory_equal(back, pattern, 5);
    assert_true(memory_read(&b->memory, DATA + 200, back, 30));
    assert_memory_equal(back, pattern + 5, 30);
    assert_true(memory_write(&b->memory, DATA, pattern, 10));
    assert_int_equal(virtio_chain_read(&b->chain, 4, back, 64), 6);
    assert_memory_equal(back, pattern + 4, 6);
    virtio_queue_push(&b->q, 3, 50);
    assert_int_equal(get16(b, USED + 2), 1);
    assert_int_equal(get16(b, USED + 4), 3);
    assert_int_equal(get16(b, USED + 8), 50);
    assert_int_equal(b->q.in_flight, 0);
}

static void used_ring_is_marked_dirty(void **state)
{
    struct bench *b = *state;
    uint64_t bitmap[8] = {0};
    /* Index and entries on two pages. */
    virtio_queue_reset(&b->q);
    b->q.size = SIZE;
    b->q.desc_gpa = DESC;
    b->q.driver_gpa = AVAIL;
    b->q.device_gpa = USED + 4096 - 4;
    assert_int_equal(virtio_queue_enable(&b->q), 0);
    assert_int_equal(memory_tracking_start(&b->memory, NULL), 0);
    desc(b, DESC, 0, DATA, 4, VRING_DESC_F_WRITE, 0);
    offer(b, 0);
    assert_int_equal(virtio_queue_pop(&b->q, &b->chain), 1);
    memory_tracking_fetch(&b->memory, 0, bitmap); /* what the test itself wrote */
    memset(bitmap, 0, sizeof bitmap);
    virtio_chain_write(&b->chain, &b->memory, 0, "abcd", 4);
    virtio_queue_push(&b->q, 0, 4);
    memory_tracking_fetch(&b->memory, 0, bitmap);
    assert_int_equal(bitmap[0], 1ull << (DATA / 4096) | 3ull << (USED / 4096));
}

static void indirect_table_is_followed(void **state)
{
    struct bench *b = *state;
    desc(b, DESC, 2, DATA, 4, VRING_DESC_F_NEXT, 4);
    desc(b, DESC, 4, TABLE, 3 * 16, VRING_DESC_F_INDIRECT, 0);
    desc(b, TABLE, 0, DATA + 4, 4, VRING_DESC_F_NEXT, 2);
    desc(b, TABLE, 2, DATA + 8, 4, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 1);
    desc(b, TABLE, 1, DATA + 12, 4, VRING_DESC_F_WRITE, 0);
    offer(b, 2);
    assert_int_equal(virtio_queue_pop(&b->q, &b->chain), 1);
    assert_int_equal(b->chain.out_count, 2);
    assert_int_equal(b->chain.in_count, 2);
    assert_int_equal(b->chain.gpas[3], DATA + 12);
}

/* Each row makes the ring wrong in one way; the queue must say which and be broken. */
static void wrong_rings_break_the_queue(void **state)
{
    static const struct {
        const char *reason;
        uint64_t gpa;
        uint32_t size;
        uint16_t flags, next, head;
        bool no_indirect;
    } rows[] = {
        {"head out of range", DATA, 4, 0, 0, SIZE, false},
        {"descriptor index out of range", DATA, 4, VRING_DESC_F_NEXT, SIZE, 0, false},
        {"chain longer than the queue", DATA, 4, VRING_DESC_F_NEXT, 0, 0, false},
        {"buffer outside of guest memory", MEMORY_BYTES_MIN - 2, 4, 0, 0, 0, false},
        {"buffer outside of guest memory", UINT64_MAX - 1, 4, 0, 0, 0, false},
        {"buffer outside of guest memory", DATA, UINT32_MAX, 0, 0, 0, false},
        {"indirect descriptor where none may be", TABLE, 16, VRING_DESC_F_INDIRECT, 0, 0, true},
        {"indirect descriptor where none may be", TABLE, 16, VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT, 1, 0, false},
        {"size of an indirect table", TABLE, 0, VRING_DESC_F_INDIRECT, 0, 0, false},
        {"size of an indirect table", TABLE, 17, VRING_DESC_F_INDIRECT, 0, 0, false},
        {"size of an indirect table", TABLE, 16 * (SIZE + 1), VRING_DESC_F_INDIRECT, 0, 0, false},
        {"indirect table outside of guest memory", MEMORY_BYTES_MIN, 16, VRING_DESC_F_INDIRECT, 0, 0, false},
    };
    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        void *fresh;
        setup(&fresh);
        struct bench *b = fresh;
        b->q.indirect = !rows[i].no_indirect;
        desc(b, DESC, 0, rows[i].gpa, rows[i].size, rows[i].flags, rows[i].next);
        offer(b, rows[i].head);
        assert_int_equal(virtio_queue_pop(&b->q, &b->chain), -EBADMSG);
        assert_string_equal(b->q.reason, rows[i].reason);
        assert_true(b->q.broken);
        assert_int_equal(virtio_queue_pop(&b->q, &b->chain), 0);
        assert_false(virtio_queue_wants_interrupt(&b->q));
        teardown(&fresh);
    }
}

static void other_lies_break_the_queue(void **state)
{
    struct bench *b = *state;
    desc(b, DESC, 0, DATA, 4, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 1);
    desc(b, DESC, 1, DATA, 4, 0, 0);
    offer(b, 0);
    assert_int_equal(virtio_queue_pop(&b->q, &b->chain), -EBADMSG);
    assert_string_equal(b->q.reason, "readable descriptor after a writable one");
    teardown(state);

    setup(state);
    b = *state;
    put16(b, AVAIL + 2, SIZE + 1);
    assert_int_equal(virtio_queue_pop(&b->q, &b->chain), -EBADMSG);
    assert_string_equal(b->q.reason, "avail index runs ahead");
    teardown(state);

    setup(state);
    b = *state;
    desc(b, DESC, 0, DATA, 4, 0, 0);
    offer(b, 0);
    offer(b, 0);
    assert_int_equal(virtio_queue_pop(&b->q, &b->chain), 1);
    assert_int_equal(virtio_queue_pop(&b->q, &b->chain), -EBADMSG);
    assert_string_equal(b->q.reason, "head offered twice");
    teardown(state);

    /* An indirect table within an indirect table, and one whose entries lead in a circle. */
    setup(state);
    b = *state;
    desc(b, DESC, 0, TABLE, 32, VRING_DESC_F_INDIRECT, 0);
    desc(b, TABLE, 0, TABLE, 32, VRING_DESC_F_INDIRECT, 0);
    offer(b, 0);
    assert_int_equal(virtio_queue_pop(&b->q, &b->chain), -EBADMSG);
    teardown(state);

    setup(state);
    b = *state;
    desc(b, DESC, 0, TABLE, 32, VRING_DESC_F_INDIRECT, 0);
    desc(b, TABLE, 0, DATA, 1, VRING_DESC_F_NEXT, 1);
    desc(b, TABLE, 1, DATA, 1, VRING_DESC_F_NEXT, 0);
    offer(b, 0);
    assert_int_equal(virtio_queue_pop(&b->q, &b->chain), -EBADMSG);
    assert_string_equal(b->q.reason, "chain longer than the queue");
}

static void queue_that_cannot_be_is_not_enabled(void **state)
{
    struct bench *b = *state;
    static const struct {
        uint16_t size;
        uint64_t desc, avail, used;
    } rows[] = {
        {0, DESC, AVAIL, USED},           {3, DESC, AVAIL, USED},
        {32, DESC, AVAIL, USED},          {8, DESC + 8, AVAIL, USED},
        {8, DESC, AVAIL + 1, USED},       {8, DESC, AVAIL, USED + 2},
        {8, 1ull << 40, AVAIL, USED},     {8, DESC, MEMORY_BYTES_MIN - 2, USED},
        {8, DESC, AVAIL, UINT64_MAX - 3},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        struct virtio_queue q;
        virtio_queue_init(&q, &b->memory, 16);
        q.size = rows[i].size;
        q.desc_gpa = rows[i].desc;
        q.driver_gpa = rows[i].avail;
        q.device_gpa = rows[i].used;
        assert_true(virtio_queue_enable(&q) < 0);
        assert_true(q.broken && !q.ready);
        assert_int_equal(virtio_queue_pop(&q, &b->chain), 0);
    }
}

/* 16-bit indexes wrap many times; requests complete out of order; each exactly once. */
static void indexes_wrap(void **state)
{
    struct bench *b = *state;
    unsigned seed = (unsigned)unit_seed(), in_flight = 0, completed = 0, offered = 0;
    uint16_t held[SIZE];
    bool busy[SIZE] = {false};
    for (unsigned i = 0; i < SIZE; i++)
        desc(b, DESC, i, DATA + 64 * i, 64, VRING_DESC_F_WRITE, 0);
    while (completed < 200000) {
        unsigned head = (unsigned)rand_r(&seed) % SIZE;
        if (!busy[head] && offered - completed < SIZE) {
            busy[head] = true;
            offer(b, (uint16_t)head);
            offered++;
        }
        if (rand_r(&seed) % 2 == 0 && virtio_queue_pop(&b->q, &b->chain) == 1)
            held[in_flight++] = b->chain.head;
        assert_false(b->q.broken);
        if (in_flight > 0 && rand_r(&seed) % 2 == 0) {
            unsigned at = (unsigned)rand_r(&seed) % in_flight;
            virtio_queue_push(&b->q, held[at], 64);
            busy[held[at]] = false;
            assert_int_equal(get16(b, USED + 4 + 8 * (completed % SIZE)), held[at]);
            held[at] = held[--in_flight];
            completed++;
            assert_int_equal(get16(b, USED + 2), completed & 0xffff);
        }
    }
}

static void one_request(struct bench *b, uint16_t head)
{
    offer(b, head);
    assert_int_equal(virtio_queue_pop(&b->q, &b->chain), 1);
    virtio_queue_push(&b->q, b->chain.head, 0);
}

static void interrupts_follow_flags_and_event_index(void **state)
{
    struct bench *b = *state;
    for (unsigned i = 0; i < SIZE; i++)
        desc(b, DESC, i, DATA, 64, VRING_DESC_F_WRITE, 0);
    assert_false(virtio_queue_wants_interrupt(&b->q)); /* nothing pushed */
    one_request(b, 0);
    assert_true(virtio_queue_wants_interrupt(&b->q));
    assert_false(virtio_queue_wants_interrupt(&b->q)); /* once */
    put16(b, AVAIL, VRING_AVAIL_F_NO_INTERRUPT);
    one_request(b, 1);
    assert_false(virtio_queue_wants_interrupt(&b->q));

    b->q.event_idx = true; /* used index is 2; flags count no more */
    put16(b, AVAIL + 4 + 2 * SIZE, 3);
    one_request(b, 2);
    assert_false(virtio_queue_wants_interrupt(&b->q)); /* 3 has not been passed yet */
    one_request(b, 3);
    assert_true(virtio_queue_wants_interrupt(&b->q));
    one_request(b, 4);
    assert_false(virtio_queue_wants_interrupt(&b->q));
    /* The request to be notified is the index of what is offered already. */
    assert_false(virtio_queue_ask_notify(&b->q, true));
    assert_int_equal(get16(b, USED + 4 + 8 * SIZE), 5);
    offer(b, 5);
    assert_true(virtio_queue_ask_notify(&b->q, true));
    assert_int_equal(get16(b, USED + 4 + 8 * SIZE), 6);
    b->q.event_idx = false;
    virtio_queue_ask_notify(&b->q, false);
    assert_int_equal(get16(b, USED), VRING_USED_F_NO_NOTIFY);
    assert_true(virtio_queue_ask_notify(&b->q, true));
    assert_int_equal(get16(b, USED), 0);
}

static void taken_requests_survive_a_save(void **state)
{
    struct bench *b = *state;
    for (unsigned i = 0; i < SIZE; i++)
        desc(b, DESC, i, DATA + 64 * i, 64, VRING_DESC_F_WRITE, 0);
    static const uint16_t order[] = {6, 1, 4};
    for (unsigned i = 0; i < 3; i++) {
        offer(b, order[i]);
        assert_int_equal(virtio_queue_pop(&b->q, &b->chain), 1);
    }
    virtio_queue_push(&b->q, 1, 0);
    struct bytes_writer out = {0};
    virtio_queue_save(&b->q, &out);

    struct virtio_queue other;
    for (size_t cut = 0; cut <= out.size; cut++) {
        uint8_t *exact = malloc(cut + 1);
        memcpy(exact, out.data, cut);
        uint8_t *tight = realloc(exact, cut > 0 ? cut : 1);
        struct bytes_reader in = bytes_reader(tight, cut);
        virtio_queue_init(&other, &b->memory, 16);
        assert_int_equal(virtio_queue_load(&other, &in, false, true), cut == out.size ? 0 : -EBADMSG);
        free(tight);
    }
    assert_int_equal(other.in_flight, 2);
    uint16_t position = 0;
    assert_int_equal(virtio_queue_retake(&other, &position, &b->chain), 1);
    assert_int_equal(b->chain.head, 4);
    assert_int_equal(virtio_queue_retake(&other, &position, &b->chain), 1);
    assert_int_equal(b->chain.head, 6);
    assert_int_equal(virtio_queue_retake(&other, &position, &b->chain), 0);
    virtio_queue_push(&other, 6, 0);
    virtio_queue_push(&other, 4, 0);
    assert_int_equal(get16(b, USED + 2), 3);
    bytes_writer_finish(&out);
}

static void unpop_gives_the_same_again(void **state)
{
    struct bench *b = *state;
    desc(b, DESC, 0, DATA, 1, 0, 0);
    desc(b, DESC, 1, DATA, 2, 0, 0);
    offer(b, 1);
    offer(b, 0);
    assert_int_equal(virtio_queue_pop(&b->q, &b->chain), 1);
    virtio_queue_unpop(&b->q, 1);
    assert_int_equal(virtio_queue_pop(&b->q, &b->chain), 1);
    assert_int_equal(b->chain.head, 1);
    assert_int_equal(virtio_queue_pop(&b->q, &b->chain), 1);
    assert_int_equal(b->chain.head, 0);
    /* Two that are published together appear together. */
    virtio_queue_push_held(&b->q, 0, 0, 7);
    virtio_queue_push_held(&b->q, 1, 1, 8);
    assert_int_equal(get16(b, USED + 2), 0);
    virtio_queue_publish(&b->q, 2);
    assert_int_equal(get16(b, USED + 2), 2);
    assert_int_equal(get16(b, USED + 4 + 8), 1);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(chain_is_copied_out, setup, teardown),
        cmocka_unit_test_setup_teardown(used_ring_is_marked_dirty, setup, teardown),
        cmocka_unit_test_setup_teardown(indirect_table_is_followed, setup, teardown),
        cmocka_unit_test(wrong_rings_break_the_queue),
        cmocka_unit_test_setup_teardown(other_lies_break_the_queue, setup, teardown),
        cmocka_unit_test_setup_teardown(queue_that_cannot_be_is_not_enabled, setup, teardown),
        cmocka_unit_test_setup_teardown(indexes_wrap, setup, teardown),
        cmocka_unit_test_setup_teardown(interrupts_follow_flags_and_event_index, setup, teardown),
        cmocka_unit_test_setup_teardown(taken_requests_survive_a_save, setup, teardown),
        cmocka_unit_test_setup_teardown(unpop_gives_the_same_again, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
