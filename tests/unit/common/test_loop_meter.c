/* Turns of a loop: waiting does not count, working does; the last minute forgets; the text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <string.h>

#include "common/loop_meter.h"

#define SECOND UINT64_C(1000000)
#define WORK_US 30000u

static void counts_and_window(void **test UNUSED)
{
    struct loop_meter meter = {.begin_us = 0};
    uint64_t at = 1000 * SECOND;
    loop_meter_record(&meter, at, 40000, 300);
    loop_meter_record(&meter, at + 5 * SECOND, 500, 500);
    loop_meter_record(&meter, at + 30 * SECOND, 6000, 100);
    struct loop_meter_counts counts = loop_meter_counts(&meter, at + 30 * SECOND);
    assert_int_equal(counts.turns, 3);
    assert_int_equal(counts.busy_us, 46500);
    assert_int_equal(counts.us_max, 40000);
    assert_int_equal(counts.cpu_us_max, 500);
    assert_int_equal(counts.recent_us_max, 40000);
    assert_int_equal(counts.buckets[0], 1); /* 500 is within the first bound */
    assert_int_equal(counts.buckets[5], 1);
    assert_int_equal(counts.buckets[10], 1);
    counts = loop_meter_counts(&meter, at + 61 * SECOND);
    assert_int_equal(counts.recent_us_max, 6000); /* nothing was recorded since, and yet */
    assert_int_equal(counts.us_max, 40000);
    assert_int_equal(loop_meter_counts(&meter, at + 200 * SECOND).recent_us_max, 0);
    loop_meter_record(&meter, at + 60 * SECOND, 700, 100); /* the slot of the first turn again */
    assert_int_equal(loop_meter_counts(&meter, at + 61 * SECOND).recent_us_max, 6000);
}

static unsigned fired;

static void work(uv_timer_t *timer)
{
    uint64_t end = uv_hrtime() + WORK_US * 1000;
    if (++fired == 2) /* the first one only waits */
        while (uv_hrtime() < end)
            ;
    uv_update_time(timer->loop);
    if (fired <= 3) /* from now on: however long this took, as long is waited for the next one */
        uv_timer_start(timer, work, 50, 0);
}

static void waiting_is_no_turn(void **test UNUSED)
{
    struct loop_meter meter;
    uv_loop_t loop;
    uv_timer_t timer;
    assert_int_equal(uv_loop_init(&loop), 0);
    assert_int_equal(loop_meter_start(&meter, &loop), 0);
    uv_timer_init(&loop, &timer);
    uv_timer_start(&timer, work, 50, 0); /* 200 ms of waiting in all */
    uint64_t begin = uv_hrtime();
    uv_run(&loop, UV_RUN_DEFAULT); /* ends: the meter does not keep it */
    uint64_t took_us = (uv_hrtime() - begin) / 1000;
    struct loop_meter_counts counts = loop_meter_counts(&meter, uv_hrtime() / 1000);
    assert_true(counts.us_max >= WORK_US);
    assert_true(counts.recent_us_max == counts.us_max);
    assert_true(counts.turns >= 3);
    assert_true(counts.busy_us <= took_us - 100000); /* most of it was waiting */
    uv_close((uv_handle_t *)&timer, NULL);
    loop_meter_stop(&meter);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
}

static void text(void **test UNUSED)
{
    struct loop_meter_counts counts[2] = {{.turns = 3, .busy_us = 1000002, .us_max = 7, .buckets = {1, 2}}, {.us_max = 8}};
    const char *const names[] = {"api", "raft"};
    struct bytes_writer out = {0};
    loop_meter_put(&out, names, counts, 2);
    bytes_put_u8(&out, 0);
    const char *s = (const char *)out.data;
    assert_non_null(strstr(s, "\ndrover_loop_turn_seconds_bucket{loop=\"api\",le=\"0.000500\"} 1\n"));
    assert_non_null(strstr(s, "\ndrover_loop_turn_seconds_bucket{loop=\"api\",le=\"+Inf\"} 3\n"));
    assert_non_null(strstr(s, "\ndrover_loop_turn_seconds_sum{loop=\"api\"} 1.000002\n"));
    assert_non_null(strstr(s, "\ndrover_loop_turn_seconds_count{loop=\"raft\"} 0\n"));
    assert_non_null(strstr(s, "\ndrover_loop_turn_microseconds_max{loop=\"api\"} 7\n"));
    assert_non_null(strstr(s, "\ndrover_loop_turn_microseconds_max{loop=\"raft\"} 8\n"));
    bytes_writer_finish(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counts_and_window),
        cmocka_unit_test(waiting_is_no_turn),
        cmocka_unit_test(text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
