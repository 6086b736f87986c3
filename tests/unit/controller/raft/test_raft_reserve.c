/* raft_reserve: made where there is room, given up when a snapshot is stuck, made again later. THREADED (libuv's pool). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "controller/raft/raft_reserve.h"

#include <pthread.h>
#include <stdlib.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SEGMENT = 64 * 1024, WANTED = 2 * SEGMENT + 2 * RAFT_SNAPSHOT_BYTES_MIN };

struct fixture {
    uv_loop_t loop;
    char dir[64], path[80];
    struct raft_reserve reserve;
};

static int setup(void **state)
{
    struct fixture *fixture = NEW(struct fixture);

    snprintf(fixture->dir, sizeof(fixture->dir), "build/test_raft_reserve.XXXXXX");
    assert_non_null(mkdtemp(fixture->dir));
    snprintf(fixture->path, sizeof(fixture->path), "%s/reserve", fixture->dir);
    assert_int_equal(uv_loop_init(&fixture->loop), 0);
    raft_reserve_init(&fixture->reserve, &fixture->loop, fixture->dir, SEGMENT);
    *state = fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;

    uv_run(&fixture->loop, UV_RUN_DEFAULT);
    raft_reserve_finish(&fixture->reserve);
    assert_int_equal(uv_loop_close(&fixture->loop), 0);
    unlink(fixture->path);
    assert_int_equal(rmdir(fixture->dir), 0);
    free(fixture);
    return 0;
}

/* One tick, and the end of what it began. */
static void turn(struct fixture *fixture, uint64_t now_ms, bool stuck, uint64_t snapshot_bytes)
{
    raft_reserve_turn(&fixture->reserve, now_ms, stuck, snapshot_bytes);
    uv_run(&fixture->loop, UV_RUN_DEFAULT);
}

static uint64_t size_of(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 ? (uint64_t)st.st_blocks * 512 : 0;
}

static void test_made_and_grown(void **state)
{
    struct fixture *fixture = *state;

    assert_int_equal(fixture->reserve.bytes, 0);
    turn(fixture, 1000, false, 0);
    assert_int_equal(fixture->reserve.bytes, WANTED);
    assert_int_equal(size_of(fixture->path), WANTED);
    turn(fixture, 100000, false, RAFT_SNAPSHOT_BYTES_MIN * 5 / 4); /* a little more: not worth it */
    assert_int_equal(fixture->reserve.bytes, WANTED);
    turn(fixture, 200000, false, 8 * RAFT_SNAPSHOT_BYTES_MIN);
    assert_int_equal(fixture->reserve.bytes, 2 * SEGMENT + 16 * RAFT_SNAPSHOT_BYTES_MIN);
}

static void test_given_up_after_a_while_and_made_again(void **state)
{
    struct fixture *fixture = *state;

    turn(fixture, 1000, false, 0);
    turn(fixture, 10000, true, 0);
    turn(fixture, 10000 + RAFT_RESERVE_PATIENCE_MS - 1, true, 0);
    assert_int_equal(fixture->reserve.bytes, WANTED);
    turn(fixture, 11500, false, 0); /* it was written after all: patience begins anew */
    turn(fixture, 12000, true, 0);
    turn(fixture, 12000 + RAFT_RESERVE_PATIENCE_MS - 1, true, 0);
    assert_int_equal(fixture->reserve.given_up, 0);
    turn(fixture, 12000 + RAFT_RESERVE_PATIENCE_MS, true, 0);
    assert_int_equal(fixture->reserve.given_up, 1);
    assert_int_equal(fixture->reserve.bytes, 0);
    assert_int_not_equal(access(fixture->path, F_OK), 0);
    turn(fixture, 20000, true, 0); /* still stuck: nothing is left to give */
    assert_int_equal(fixture->reserve.given_up, 1);
    turn(fixture, 21000, false, 0);
    assert_int_equal(fixture->reserve.bytes, WANTED);
}

static void test_not_made_where_the_log_would_lack_room(void **state)
{
    struct fixture *fixture = *state;

    fixture->reserve.segment_bytes = UINT64_C(1) << 50; /* no disk holds five of those */
    turn(fixture, 1000, false, 0);
    assert_int_equal(fixture->reserve.bytes, 0);
    assert_int_not_equal(access(fixture->path, F_OK), 0);
    fixture->reserve.segment_bytes = SEGMENT;
    turn(fixture, 1000 + RAFT_RESERVE_RETRY_MS - 1, false, 0);
    assert_int_equal(fixture->reserve.bytes, 0);
    turn(fixture, 1000 + RAFT_RESERVE_RETRY_MS, false, 0);
    assert_int_equal(fixture->reserve.bytes, WANTED);
}

static void test_found_and_given_up_at_a_start(void **state)
{
    struct fixture *fixture = *state;
    struct raft_reserve second;

    assert_false(raft_reserve_give_up_in(fixture->dir));
    turn(fixture, 1000, false, 0);
    raft_reserve_init(&second, &fixture->loop, fixture->dir, SEGMENT);
    assert_int_equal(second.bytes, WANTED);
    raft_reserve_finish(&second);
    assert_true(raft_reserve_give_up_in(fixture->dir));
    assert_false(raft_reserve_give_up_in(fixture->dir));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_made_and_grown, setup, teardown),
        cmocka_unit_test_setup_teardown(test_given_up_after_a_while_and_made_again, setup, teardown),
        cmocka_unit_test_setup_teardown(test_not_made_where_the_log_would_lack_room, setup, teardown),
        cmocka_unit_test_setup_teardown(test_found_and_given_up_at_a_start, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
