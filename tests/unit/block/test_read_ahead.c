/* What is asked for ahead of streams of reads: when it begins and ends, how much, and that it is never asked for twice. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "block/read_ahead.h"
#include "tests/unit/unit_seed.h"

enum { KIB = 1024, MIB = 1048576, READ_BYTES = 128 * KIB };
#define DISK_BYTES (UINT64_C(1) << 40)

struct reader {
    struct read_ahead ra;
    uint64_t at;    /* of the stream */
    uint64_t asked; /* up to here; contiguous from where it began */
    uint64_t bytes; /* of all that was asked for */
    unsigned times;
};

/* The stream's next read; what is asked for begins where it ended, lies behind the read, and not far. */
static bool read_next(struct reader *r, uint64_t size, bool waits)
{
    uint64_t start = 0, end = 0;
    bool asks = read_ahead_next(&r->ra, r->at, size, waits, DISK_BYTES, &start, &end);
    r->at += size;
    if (!asks)
        return false;
    assert_true(start < end && start >= r->at && end <= r->at + READ_AHEAD_MAX && end <= DISK_BYTES);
    assert_int_equal(start, MAX(r->asked, r->at));
    r->asked = end;
    r->bytes += end - start;
    r->times++;
    return true;
}

static void a_stream_that_waits_is_read_ahead_of(void **state UNUSED)
{
    struct reader r = {.at = 7 * MIB};
    assert_false(read_next(&r, READ_BYTES, true));
    assert_false(read_next(&r, READ_BYTES, true));
    assert_true(read_next(&r, READ_BYTES, true));
    assert_int_equal(r.bytes, READ_AHEAD_FIRST);
    while (r.bytes < 64 * MIB)
        read_next(&r, READ_BYTES, r.times % 2 == 0);
    assert_true(r.asked >= r.at + READ_AHEAD_MAX / 2 - READ_BYTES); /* never less than half of the window */
    assert_true(r.times < 64); /* much at once */
}

/* What is in memory costs nothing. */
static void a_stream_that_never_waits_is_left_alone(void **state UNUSED)
{
    struct reader r = {.at = 0};
    for (unsigned i = 0; i < 10000; i++)
        assert_false(read_next(&r, READ_BYTES, false));
}

/* Its patience passes without a wait: nothing any more. A wait at once: that was because of what was asked for. */
static void patience_grows_where_it_was_needed(void **state UNUSED)
{
    struct reader r = {.at = 0};
    for (unsigned i = 0; i < 3; i++)
        read_next(&r, READ_BYTES, true);
    uint64_t patience = READ_AHEAD_PATIENCE_FIRST;
    for (unsigned i = 0; i < 10; i++) {
        uint64_t before = r.at;
        while (r.at < r.asked)
            read_next(&r, READ_BYTES, false);
        assert_true(r.at >= before + patience - READ_BYTES && r.at <= before + patience + READ_AHEAD_MAX);
        assert_true(read_next(&r, READ_BYTES, true)); /* the window that it had, at once */
        assert_int_equal(r.asked - r.at, READ_AHEAD_MAX);
        patience = MIN(patience * 2, (uint64_t)READ_AHEAD_PATIENCE_MAX);
    }
    while (r.at < r.asked)
        read_next(&r, READ_BYTES, false);
    for (unsigned i = 0; i < 1000; i++)
        assert_false(read_next(&r, READ_BYTES, false)); /* was in memory all the while */
    uint64_t bytes = r.bytes;
    assert_true(read_next(&r, READ_BYTES, true));
    for (unsigned i = 0; i < 1000; i++)
        read_next(&r, READ_BYTES, false);
    assert_true(r.bytes - bytes <= READ_AHEAD_PATIENCE_FIRST + READ_AHEAD_MAX);
}

static uint64_t chance(uint64_t *random)
{
    *random ^= *random << 13, *random ^= *random >> 7, *random ^= *random << 17;
    return *random;
}

static void random_reads_are_not_streams(void **state UNUSED)
{
    struct read_ahead ra = {.reads = 0};
    uint64_t random = unit_seed() | 1, start, end, bytes = 0;
    const uint64_t disk = UINT64_C(1) << 32;
    for (unsigned i = 0; i < 1000000; i++)
        if (read_ahead_next(&ra, chance(&random) % (disk / 4096) * 4096, 4096, true, disk, &start, &end))
            bytes += end - start;
    assert_true(bytes < UINT64_C(1000000) * 4096 / 20);
}

/* As many streams as there is room for, each with its own, in turns that are not regular, and random reads between them. */
static void streams_do_not_disturb_each_other(void **state UNUSED)
{
    struct read_ahead ra = {.reads = 0};
    uint64_t random = unit_seed() | 1, start, end, at[READ_AHEAD_STREAMS - 1], asked[READ_AHEAD_STREAMS - 1] = {0};
    for (unsigned i = 0; i < ARRAY_SIZE(at); i++)
        at[i] = i * UINT64_C(1000) * MIB;
    for (unsigned step = 0; step < 20000; step++) {
        unsigned i = (unsigned)(chance(&random) % ARRAY_SIZE(at));
        uint64_t size = (1 + chance(&random) % 32) * 4096;
        if (step >= 200 && chance(&random) % 2 == 0)
            read_ahead_next(&ra, (chance(&random) % (1 << 20) + (1 << 20)) * MIB, 4096, true, UINT64_MAX, &start, &end);
        if (read_ahead_next(&ra, at[i], size, true, DISK_BYTES, &start, &end)) {
            assert_true(start >= at[i] + size && start >= asked[i] && end <= at[i] + size + READ_AHEAD_MAX);
            asked[i] = end;
        }
        at[i] += size;
        assert_true(step < 200 || asked[i] > at[i]);
    }
}

/* Two requests of a stream that overtook each other, and one that comes again, ask for nothing twice. */
static void requests_may_overtake_each_other(void **state UNUSED)
{
    struct read_ahead ra = {.reads = 0};
    uint64_t start, end, asked = 0;
    for (uint64_t i = 0; i < 1000; i++) {
        uint64_t number = i % 5 == 4 ? i - 1 : i ^ (i % 5 < 2 && i % 2 == 0 ? 1 : 0);
        if (read_ahead_next(&ra, number * 65536, 65536, true, DISK_BYTES, &start, &end)) {
            assert_true(start >= asked);
            asked = end;
        }
    }
    assert_true(asked > UINT64_C(1000) * 65536);
    ra = (struct read_ahead){.reads = 0};
    for (unsigned i = 0; i < 1000; i++)
        assert_false(read_ahead_next(&ra, MIB, 65536, true, DISK_BYTES, &start, &end)); /* goes nowhere */
}

static void the_end_of_the_disk_is_the_end(void **state UNUSED)
{
    struct read_ahead ra = {.reads = 0};
    uint64_t start, end, disk = 3 * MIB + 512, most = 0;
    for (uint64_t at = 0; at < disk; at += 64 * KIB)
        if (read_ahead_next(&ra, at, MIN(64 * KIB, disk - at), true, disk, &start, &end)) {
            assert_true(start < end && end <= disk);
            most = end;
        }
    assert_int_equal(most, disk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stream_that_waits_is_read_ahead_of),
        cmocka_unit_test(a_stream_that_never_waits_is_left_alone),
        cmocka_unit_test(patience_grows_where_it_was_needed),
        cmocka_unit_test(random_reads_are_not_streams),
        cmocka_unit_test(streams_do_not_disturb_each_other),
        cmocka_unit_test(requests_may_overtake_each_other),
        cmocka_unit_test(the_end_of_the_disk_is_the_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
