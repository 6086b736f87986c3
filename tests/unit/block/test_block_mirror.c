/* A mirror between two disks that end their requests in any order they like, under a device that writes what it likes:
 * whatever happens both hold the same in the end, byte for byte. Random; the seed is printed. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "block/block_mirror.h"

enum { CLUSTERS = 40, BYTES = CLUSTERS * MIRROR_CLUSTER_BYTES - 512, REQUESTS = 12, REQUEST_BYTES_MAX = 3 * MIRROR_CLUSTER_BYTES };

static uint64_t seed;

static uint64_t random_next(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

/* ---- a disk in memory ---- */

struct lazy {
    struct block block;
    uint8_t *data;
    struct list under_way;
    unsigned fail_after; /* writes until one fails; 0: none */
    uint64_t written;
    bool no_lease;
};

static int lazy_submit(struct block *b, struct block_request *r)
{
    list_append(&CONTAINER_OF(b, struct lazy, block)->under_way, &r->link);
    return 0;
}

static void lazy_transfer(struct lazy *d, const struct block_request *r)
{
    uint64_t at = r->offset;
    for (unsigned i = 0; (r->op == BLOCK_READ || r->op == BLOCK_WRITE) && i < r->iovec_count; at += r->iovecs[i++].iov_len) {
        if (r->op == BLOCK_READ)
            memcpy(r->iovecs[i].iov_base, d->data + at, r->iovecs[i].iov_len);
        else
            memcpy(d->data + at, r->iovecs[i].iov_base, r->iovecs[i].iov_len);
    }
    if (r->op == BLOCK_WRITE_ZEROES)
        memset(d->data + r->offset, 0, r->size);
    if (r->op == BLOCK_DISCARD) /* undefined: each disk in its own way */
        memset(d->data + r->offset, (int)random_next(), r->size);
    d->written += r->op == BLOCK_WRITE ? r->size : 0;
}

/* End one of those under way. False: there is none. */
static bool lazy_step(struct lazy *d)
{
    unsigned count = 0;
    LIST_FOREACH(link, &d->under_way)
        count++;
    if (count == 0)
        return false;
    struct list *link = d->under_way.next;
    for (uint64_t n = random_next() % count; n > 0; n--)
        link = link->next;
    struct block_request *r = LIST_ENTRY(link, struct block_request, link);
    list_remove(link);
    bool fails = r->op != BLOCK_READ && d->fail_after > 0 && --d->fail_after == 0;
    r->result = d->no_lease ? -EAGAIN : fails ? -EIO : 0;
    if (r->result == 0)
        lazy_transfer(d, r);
    block_complete(&d->block, r);
    return true;
}

static void lazy_drain(struct block *b)
{
    while (lazy_step(CONTAINER_OF(b, struct lazy, block)))
        continue;
}

static int lazy_next_data(struct block *b, uint64_t from, uint64_t *ret_start, uint64_t *ret_end)
{
    struct lazy *d = CONTAINER_OF(b, struct lazy, block);
    while (from < BYTES && d->data[from] == 0)
        from++;
    *ret_start = from;
    *ret_end = MIN(from + 512, (uint64_t)BYTES);
    return from < BYTES;
}

static const struct block_ops lazy_ops = {
    .submit = lazy_submit, .drain = lazy_drain, .next_data = lazy_next_data};

static void lazy_init(struct lazy *d)
{
    *d = (struct lazy){.block = {.ops = &lazy_ops, .size_bytes = BYTES, .block_bytes = 512, .can_discard = true,
                                 .can_write_zeroes = true},
                       .data = calloc(1, BYTES)};
    list_init(&d->under_way);
}

/* ---- a device ---- */

struct device_request {
    struct block_request request;
    struct iovec iovecs[2];
    uint8_t *buffer;
    bool busy;
    int result;
};

static struct {
    struct lazy source, target;
    struct block_mirror *mirror;
    struct device_request requests[REQUESTS];
    unsigned errors, changed;
} world;

static void device_done(struct block_request *r, int result)
{
    CONTAINER_OF(r, struct device_request, request)->busy = false;
    CONTAINER_OF(r, struct device_request, request)->result = result;
    world.errors += result < 0;
}

static void device_start(struct device_request *d)
{
    uint64_t offset = random_next() % (BYTES / 512) * 512;
    uint64_t wanted = (random_next() % (REQUEST_BYTES_MAX / 512) + 1) * 512, size = MIN(wanted, BYTES - offset);
    uint64_t kind = random_next() % 10;
    size_t half = size > 512 ? size / 1024 * 512 : size;
    d->request = (struct block_request){.op = kind < 7 ? BLOCK_WRITE : kind < 8 ? BLOCK_WRITE_ZEROES : kind < 9 ? BLOCK_DISCARD : BLOCK_READ,
                                        .offset = offset, .size = size, .done = device_done};
    d->iovecs[0] = (struct iovec){d->buffer, half};
    d->iovecs[1] = (struct iovec){d->buffer + half, size - half};
    d->request.iovecs = d->iovecs;
    d->request.iovec_count = size > half ? 2 : 1;
    memset(d->buffer, (int)(random_next() >> 7) | 1, size);
    d->busy = true;
    assert_int_equal(block_submit(block_mirror_front(world.mirror), &d->request), 0);
}

static void on_changed(void *arg)
{
    (void)arg;
    world.changed++;
}

static int world_setup(void **state)
{
    (void)state;
    memset(&world, 0, sizeof(world));
    lazy_init(&world.source);
    lazy_init(&world.target);
    for (unsigned i = 0; i < REQUESTS; i++)
        world.requests[i].buffer = malloc(REQUEST_BYTES_MAX);
    return 0;
}

static int world_teardown(void **state)
{
    (void)state;
    block_mirror_destroy(world.mirror);
    for (unsigned i = 0; i < REQUESTS; i++)
        free(world.requests[i].buffer);
    free(world.source.data);
    free(world.target.data);
    return 0;
}

static void device_ignore(struct block_request *request UNUSED, int result)
{
    assert_int_equal(result, 0);
}

static void mirror_make(uint64_t sync_bytes)
{
    const struct block_mirror_options options = {.source = &world.source.block, .target = &world.target.block,
                                                 .sync_bytes = sync_bytes, .changed = on_changed};
    assert_int_equal(block_mirror_create(&options, &world.mirror, NULL), 0);
    assert_int_equal(block_mirror_mark_data(world.mirror), 0);
    block_mirror_run(world.mirror);
}

/* One thing that may happen next. A guest may change its buffer while it is written: @unsteady. */
static void step(bool writes, bool unsteady)
{
    struct device_request *d = &world.requests[random_next() % REQUESTS];
    switch (random_next() % 4) {
    case 0:
        if (writes && !d->busy)
            device_start(d);
        break;
    case 1:
        if (unsteady && d->busy && d->request.op == BLOCK_WRITE)
            memset(d->buffer, (int)random_next(), d->request.size);
        break;
    case 2:
        lazy_step(&world.source);
        break;
    default:
        lazy_step(&world.target);
        break;
    }
}

static void assert_same(void)
{
    for (size_t i = 0; i < BYTES; i++)
        if (world.source.data[i] != world.target.data[i])
            fail_msg("byte %zu (cluster %zu) differs: %#x, %#x; seed %llu", i, i / MIRROR_CLUSTER_BYTES, world.source.data[i],
                     world.target.data[i], (unsigned long long)seed);
}

static void quiet(void)
{
    block_drain(block_mirror_front(world.mirror));
    for (unsigned i = 0; i < REQUESTS; i++)
        assert_false(world.requests[i].busy);
}

static void both_hold_the_same_whatever_is_written(void **state)
{
    (void)state;
    for (unsigned run = 0; run < 60; run++) {
        if (run)
            world_setup(state);
        for (size_t i = 0; i < BYTES; i += 512 * (1 + random_next() % 300))
            world.source.data[i] = (uint8_t)random_next();
        mirror_make(run % 2 ? 3 * MIRROR_CLUSTER_BYTES : 1); /* 1: it has to find out that it does not converge */
        for (unsigned i = 0; i < 3000; i++)
            step(true, run % 3 == 0);
        quiet();
        assert_int_equal(block_mirror_settle(world.mirror), 0);
        assert_same();
        assert_int_equal(block_mirror_progress(world.mirror).left_bytes, 0);
        for (unsigned i = 0; i < 500; i++) /* level: it stays so */
            step(true, run % 3 == 0);
        quiet();
        assert_int_equal(block_mirror_settle(world.mirror), 0);
        assert_same();
        assert_int_equal(world.errors, 0);
        if (run + 1 < 60)
            world_teardown(state);
    }
}

/* A device that never rests, and a target that is slower: it gets level all the same. */
static void it_gets_level_under_writing(void **state)
{
    (void)state;
    memset(world.source.data, 7, BYTES);
    mirror_make(1);
    unsigned steps = 0;
    while (world.changed == 0 && steps++ < 2000000)
        step(true, false);
    assert_int_equal(world.changed, 1);
    assert_true(block_mirror_progress(world.mirror).is_sync);
    quiet();
}

static void thin_stays_thin(void **state)
{
    (void)state;
    world.source.data[5 * MIRROR_CLUSTER_BYTES + 100] = 1;
    world.source.data[30 * MIRROR_CLUSTER_BYTES] = 1;
    mirror_make(0);
    assert_int_equal(block_mirror_settle(world.mirror), 0);
    assert_same();
    assert_int_equal(world.target.written, 2 * 16384); /* what is not zeroes, in such steps */
    block_mirror_mark(world.mirror, 10 * MIRROR_CLUSTER_BYTES, 4 * MIRROR_CLUSTER_BYTES); /* marked, and zeroes all the same */
    memset(world.target.data + 10 * MIRROR_CLUSTER_BYTES, 9, 4 * MIRROR_CLUSTER_BYTES);
    assert_int_equal(block_mirror_settle(world.mirror), 0);
    assert_same();
    assert_int_equal(world.target.written, 2 * 16384); /* what is not zeroes, in such steps */
    assert_int_equal(block_mirror_progress(world.mirror).zero_bytes, 4 * MIRROR_CLUSTER_BYTES + 2 * (MIRROR_CLUSTER_BYTES - 16384));
}

static void a_target_that_fails_is_left_and_the_device_never_hears_of_it(void **state)
{
    (void)state;
    for (unsigned run = 1; run < 40; run++) {
        if (run > 1)
            world_setup(state);
        memset(world.source.data, 7, BYTES);
        mirror_make(0);
        world.target.fail_after = run;
        for (unsigned i = 0; i < 2000; i++)
            step(true, false);
        quiet();
        assert_int_equal(block_mirror_settle(world.mirror), -EIO);
        assert_int_equal(block_mirror_progress(world.mirror).state, MIRROR_FAILED);
        assert_int_equal(world.errors, 0);
        assert_true(world.changed >= 1);
        if (run < 39)
            world_teardown(state);
    }
}

static void no_more_is_copied_than_was_allowed(void **state)
{
    (void)state;
    memset(world.source.data, 7, BYTES);
    mirror_make(0);
    block_mirror_allow(world.mirror, 1);
    while (lazy_step(&world.source) || lazy_step(&world.target))
        continue;
    uint64_t begun = world.target.written; /* what had begun without a limit */
    assert_true(begun <= MIRROR_COPIES_MAX * MIRROR_COPY_CLUSTERS * MIRROR_CLUSTER_BYTES && begun < BYTES);
    block_mirror_run(world.mirror);
    assert_int_equal(world.source.block.in_flight, 0); /* too much as it is */
    block_mirror_allow(world.mirror, begun);
    block_mirror_run(world.mirror);
    assert_true(world.source.block.in_flight > 0);
    assert_int_equal(block_mirror_settle(world.mirror), 0); /* the device waits: no limit */
    assert_same();
}

/* Whoever looks after the mirror sees by the number that a request does not get on, and which one. */
static void a_write_that_waits_for_the_target_is_seen(void **state)
{
    static uint8_t data[512];
    struct iovec one = {data, sizeof data};
    (void)state;
    mirror_make(0);
    assert_int_equal(block_mirror_settle(world.mirror), 0);
    assert_int_equal(block_mirror_oldest(world.mirror), 0);
    struct block_request requests[2];
    for (unsigned i = 0; i < 2; i++) {
        requests[i] = (struct block_request){
            .op = BLOCK_WRITE, .offset = i * 4096, .size = sizeof data, .iovecs = &one, .iovec_count = 1, .done = device_ignore};
        assert_int_equal(block_submit(block_mirror_front(world.mirror), &requests[i]), 0);
    }
    uint64_t first = block_mirror_oldest(world.mirror);
    assert_true(first > 0);
    while (lazy_step(&world.source))
        continue;
    assert_int_equal(block_mirror_oldest(world.mirror), first); /* the source alone does not help */
    while (block_mirror_oldest(world.mirror) == first)
        lazy_step(&world.target);
    quiet();
    assert_int_equal(block_mirror_oldest(world.mirror), 0);
}

static void without_the_lease_it_waits(void **state)
{
    (void)state;
    memset(world.source.data, 7, BYTES);
    mirror_make(0);
    world.source.no_lease = true;
    assert_int_equal(block_mirror_settle(world.mirror), -EAGAIN);
    assert_int_equal(block_mirror_progress(world.mirror).state, MIRROR_COPYING);
    world.source.no_lease = false;
    assert_int_equal(block_mirror_settle(world.mirror), 0);
    assert_same();
}

/* What is asked for waits, neither side changes any more, and drained it is given back untouched. */
static void held_it_stays_level(void **state)
{
    (void)state;
    memset(world.source.data, 7, BYTES);
    mirror_make(0);
    for (unsigned i = 0; i < 300; i++)
        step(true, false);
    quiet();
    assert_int_equal(block_mirror_settle(world.mirror), 0);
    block_mirror_hold(world.mirror);
    world.errors = 0;
    uint64_t source = world.source.written, target = world.target.written;
    for (unsigned i = 0; i < REQUESTS; i++)
        device_start(&world.requests[i]);
    for (unsigned i = 0; i < 100; i++)
        step(false, false);
    block_mirror_run(world.mirror);
    for (unsigned i = 0; i < REQUESTS; i++)
        assert_true(world.requests[i].busy);
    quiet();
    assert_int_equal(world.errors, REQUESTS);
    for (unsigned i = 0; i < REQUESTS; i++)
        assert_int_equal(world.requests[i].result, -EAGAIN);
    assert_true(world.source.written == source && world.target.written == target);
    assert_int_equal(block_mirror_progress(world.mirror).state, MIRROR_LEVEL);
    assert_same();
}

static void only_to_one_of_its_size(void **state)
{
    struct block_mirror_options options = {.source = &world.source.block, .target = &world.target.block};
    struct error err;
    (void)state;
    world.target.block.size_bytes -= 512;
    assert_int_equal(block_mirror_create(&options, &world.mirror, &err), -EINVAL);
    assert_non_null(strstr(err.text, "same size"));
}

#define WORLD_TEST(name) cmocka_unit_test_setup_teardown(name, world_setup, world_teardown)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        WORLD_TEST(both_hold_the_same_whatever_is_written),
        WORLD_TEST(it_gets_level_under_writing),
        WORLD_TEST(thin_stays_thin),
        WORLD_TEST(a_target_that_fails_is_left_and_the_device_never_hears_of_it),
        WORLD_TEST(no_more_is_copied_than_was_allowed),
        WORLD_TEST(a_write_that_waits_for_the_target_is_seen),
        WORLD_TEST(without_the_lease_it_waits),
        WORLD_TEST(held_it_stays_level),
        WORLD_TEST(only_to_one_of_its_size),
    };
    seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 88172645463325252u;
    printf("seed %llu\n", (unsigned long long)seed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
