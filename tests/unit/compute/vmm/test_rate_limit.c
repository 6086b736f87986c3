/* Token buckets in virtual time: long-term rate, burst, debt of a large request, changes while running, extremes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "compute/vmm/rate_limit.h"
#include "tests/unit/unit_seed.h"

#define SECOND 1000000000ull

/* Operations of @bytes that go from @now for @seconds, each as soon as it may. */
static uint64_t run(struct rate_limit *l, uint64_t *now, uint64_t seconds, uint64_t bytes)
{
    uint64_t end = *now + seconds * SECOND, count = 0;
    for (;;) {
        uint64_t wait = rate_limit_wait_ns(l, *now);
        if (*now + wait >= end)
            break;
        *now += wait;
        assert_int_equal(rate_limit_wait_ns(l, *now), 0); /* what was said is enough */
        rate_limit_charge(l, bytes);
        count++;
    }
    *now = end;
    return count;
}

static void rates_hold_over_time(void **state)
{
    (void)state;
    static const struct {
        uint64_t operations, bytes, size, expect_per_second;
    } rows[] = {{100, 0, 4096, 100}, {0, 1 << 20, 4096, 256}, {100, 1 << 20, 4096, 100},
                {1000, 1 << 20, 4096, 256}, {3, 0, 1, 3}, {0, 1000000, 32 << 20, 0}, {7777, 0, 512, 7777}};
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct rate_limit l = {0};
        struct vmm_limits limits = {.operations_per_second = rows[i].operations,
                                    .bytes_per_second = rows[i].bytes,
                                    .operations_burst = 1,
                                    .bytes_burst = 1};
        uint64_t now = 12345;
        rate_limit_set(&l, &limits, now);
        uint64_t count = run(&l, &now, 60, rows[i].size);
        assert_in_range(count, 60 * rows[i].expect_per_second, 60 * rows[i].expect_per_second + 3);
    }
}

static void a_rest_saves_one_burst(void **state)
{
    (void)state;
    struct rate_limit l = {0};
    struct vmm_limits limits = {.operations_per_second = 10, .operations_burst = 50};
    uint64_t now = SECOND;
    rate_limit_set(&l, &limits, now);
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < 50; i++) {
            assert_int_equal(rate_limit_wait_ns(&l, now), 0);
            rate_limit_charge(&l, 512);
        }
        assert_int_equal(rate_limit_wait_ns(&l, now), 1);
        assert_in_range(rate_limit_wait_ns(&l, now + 1), 0, 0);
        rate_limit_charge(&l, 512);
        assert_in_range(rate_limit_wait_ns(&l, now + 1), SECOND / 10 - 2, SECOND / 10);
        now += 1000 * SECOND; /* however long the rest is */
    }
    struct vmm_limits by_default = {.operations_per_second = 200};
    struct rate_limit other = {0};
    rate_limit_set(&other, &by_default, now);
    assert_int_equal(other.operations.burst, 20);
}

static void large_requests_go_and_are_paid_for(void **state)
{
    (void)state;
    struct rate_limit l = {0};
    struct vmm_limits limits = {.bytes_per_second = 1000, .bytes_burst = 100};
    rate_limit_set(&l, &limits, 0);
    assert_int_equal(rate_limit_wait_ns(&l, 0), 0);
    rate_limit_charge(&l, 5100);
    assert_in_range(rate_limit_wait_ns(&l, 0), 5 * SECOND, 5 * SECOND + 1);
    assert_int_equal(rate_limit_wait_ns(&l, 5 * SECOND + 1), 0);
}

static void limits_change_while_running(void **state)
{
    (void)state;
    struct rate_limit l = {0};
    struct vmm_limits slow = {.operations_per_second = 10, .operations_burst = 1}, none = {.operations_burst = 0},
                      fast = {.operations_per_second = 1000, .operations_burst = 1};
    uint64_t now = 0;
    assert_false(rate_limit_is_set(&l));
    assert_int_equal(rate_limit_wait_ns(&l, now), 0);
    rate_limit_charge(&l, 1 << 20);
    rate_limit_set(&l, &slow, now);
    assert_in_range(run(&l, &now, 10, 512), 100, 102);
    rate_limit_set(&l, &fast, now);
    assert_in_range(run(&l, &now, 10, 512), 9999, 10002);
    rate_limit_set(&l, &none, now);
    assert_false(rate_limit_is_set(&l));
    assert_int_equal(rate_limit_wait_ns(&l, now), 0);
}

static void extremes_do_not_overflow(void **state)
{
    (void)state;
    unsigned seed = (unsigned)unit_seed();
    static const uint64_t values[] = {0, 1, 999, 1000000000, 1000000000000};
    for (unsigned i = 0; i < 20000; i++) {
        struct rate_limit l = {0};
        uint64_t now = 0;
        for (unsigned k = 0; k < 6 && now < UINT64_MAX / 4; k++) {
            struct vmm_limits limits = {.operations_per_second = values[rand_r(&seed) % 4],
                                        .operations_burst = values[rand_r(&seed) % 4],
                                        .bytes_per_second = values[rand_r(&seed) % 5],
                                        .bytes_burst = values[rand_r(&seed) % 5]};
            rate_limit_set(&l, &limits, now);
            for (unsigned n = 0; n < 4; n++)
                rate_limit_charge(&l, (uint64_t)rand_r(&seed) << (rand_r(&seed) % 34));
            uint64_t wait = rate_limit_wait_ns(&l, now);
            uint64_t at = now + wait;
            assert_int_equal(rate_limit_wait_ns(&l, at), 0);
            now = at + ((uint64_t)rand_r(&seed) << (rand_r(&seed) % 20));
        }
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(rates_hold_over_time),           cmocka_unit_test(a_rest_saves_one_burst),
        cmocka_unit_test(large_requests_go_and_are_paid_for), cmocka_unit_test(limits_change_while_running),
        cmocka_unit_test(extremes_do_not_overflow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
