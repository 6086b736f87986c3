/* THREADED. Work in lanes: what hangs in one keeps neither another one nor libuv's threads, and what is too much waits in order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "compute/agent/pool_work.h"

enum { DEADLINE_MS = 20000, HANGING = 3 * POOL_WORK_AT_ONCE };

struct fixture {
    uv_loop_t loop;
    uv_timer_t deadline;
    struct pool_works works;
    int pipes[2]; /* who hangs reads a byte */
    unsigned ended;
};

struct job {
    struct pool_work work;
    struct fixture *f;
    bool hangs, ran;
    unsigned ended; /* as the how manieth */
};

static void on_deadline(uv_timer_t *timer UNUSED)
{
    fail_msg("not within %d ms", DEADLINE_MS);
}

static void job_run(struct pool_work *work)
{
    struct job *job = CONTAINER_OF(work, struct job, work);
    char byte;
    if (job->hangs)
        assert_int_equal(read(job->f->pipes[0], &byte, 1), 1);
    job->ran = true;
}

static void job_after(struct pool_work *work)
{
    struct job *job = CONTAINER_OF(work, struct job, work);
    assert_true(job->ran && job->ended == 0);
    job->ended = ++job->f->ended;
    memset(&job->work, 0xa5, sizeof job->work); /* it may be freed here */
}

static void begin(struct fixture *f, struct job *job, const char *lane, bool hangs)
{
    *job = (struct job){.f = f, .hangs = hangs};
    pool_work_begin(&f->works, &f->loop, lane, &job->work, job_run, job_after);
    assert_int_equal(job->ended, 0);
}

static void wait_for(struct fixture *f, const struct job *job)
{
    while (job->ended == 0)
        uv_run(&f->loop, UV_RUN_ONCE);
}

static int setup(void **state)
{
    struct fixture *f = NEW(struct fixture);
    uv_loop_init(&f->loop);
    uv_timer_init(&f->loop, &f->deadline);
    uv_timer_start(&f->deadline, on_deadline, DEADLINE_MS, 0);
    assert_int_equal(pipe(f->pipes), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(f->works.lanes.count, 0);
    uv_close((uv_handle_t *)&f->deadline, NULL);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    close(f->pipes[0]);
    close(f->pipes[1]);
    free(f);
    return 0;
}

static void what_hangs_keeps_its_own_lane(void **state)
{
    struct fixture *f = *state;
    struct job hanging[HANGING], other, none;
    for (unsigned i = 0; i < HANGING; i++) {
        assert_int_equal(pool_work_is_full(&f->works, "a"), i >= POOL_WORK_AT_ONCE);
        begin(f, &hanging[i], "a", true);
    }
    begin(f, &other, "b", false);
    begin(f, &none, NULL, false);
    assert_false(pool_work_is_full(&f->works, "b") || pool_work_is_full(&f->works, NULL));
    wait_for(f, &other);
    wait_for(f, &none);
    assert_int_equal(f->ended, 2);
    for (unsigned i = 0; i < HANGING; i++) {
        unsigned before = f->ended;
        assert_int_equal(write(f->pipes[1], "", 1), 1);
        while (f->ended == before)
            uv_run(&f->loop, UV_RUN_ONCE);
        assert_int_equal(f->ended, before + 1);
    }
    for (unsigned i = POOL_WORK_AT_ONCE; i < HANGING; i++) /* no more than so many at once, in order */
        assert_true(hanging[i].ended > i + 2 - POOL_WORK_AT_ONCE);
    assert_false(pool_work_is_full(&f->works, "a"));
    begin(f, &other, "a", false); /* a lane that was empty */
    wait_for(f, &other);
}

static void lanes_are_named_after_pools(void **state UNUSED)
{
    struct node_orders orders = {.index = 0};
    assert_null(pool_work_lane(&orders.pools));
    OBJECT_TEXT(pool_order, (struct pool_order *)OBJECT_ADD(node_orders, &orders, pools), id, "x");
    OBJECT_TEXT(pool_order, (struct pool_order *)OBJECT_ADD(node_orders, &orders, pools), id, "y");
    CLEANUP_FREE char *lane = pool_work_lane(&orders.pools);
    assert_string_equal(lane, "x y");
    OBJECT_CLEAR(node_orders, &orders);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_hangs_keeps_its_own_lane, setup, teardown),
        cmocka_unit_test(lanes_are_named_after_pools),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
