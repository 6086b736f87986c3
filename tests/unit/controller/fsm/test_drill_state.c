/* One drill at a time, in the replicated state. */
#include "tests/unit/controller/fsm_fixture.h"

#define RESERVE(name, seconds) "{\"drill\":\"" name "\",\"seconds\":" #seconds "}"

static int setup(void **state)
{
    struct fixture *f = NEW(struct fixture);
    fixture_init(f);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    fixture_finish_all(*state);
    free(*state);
    return 0;
}

static void one_at_a_time(void **test)
{
    struct fixture *f = *test;
    fixture_must(f, ROUTE_ID_drill_begin, NULL, RESERVE("one", 60));
    assert_string_equal(state_cluster(f->state)->drill, "one");
    assert_int_equal(time_text_ms(state_cluster(f->state)->drill_until), FIXTURE_EPOCH_MS + f->now_ms + 60000);
    assert_int_equal(fixture_do(f, ROUTE_ID_drill_begin, NULL, RESERVE("two", 60)), -EBUSY);
    assert_non_null(strstr(f->error.text, "one"));
    f->now_ms += 30000;
    fixture_must(f, ROUTE_ID_drill_begin, NULL, RESERVE("one", 60)); /* it lasts anew */
    f->now_ms += 59000;
    assert_int_equal(fixture_do(f, ROUTE_ID_drill_begin, NULL, RESERVE("two", 60)), -EBUSY);
    fixture_must(f, ROUTE_ID_drill_end, "two", NULL); /* nothing to end */
    assert_string_equal(state_cluster(f->state)->drill, "one");
    f->now_ms += 1000;
    fixture_must(f, ROUTE_ID_drill_begin, NULL, RESERVE("two", 60)); /* who made the first one is gone */
    assert_string_equal(state_cluster(f->state)->drill, "two");
    fixture_must(f, ROUTE_ID_drill_end, "one", NULL);
    assert_string_equal(state_cluster(f->state)->drill, "two");
    fixture_must(f, ROUTE_ID_drill_end, "two", NULL);
    assert_null(state_cluster(f->state)->drill);
    assert_null(state_cluster(f->state)->drill_until);
    fixture_must(f, ROUTE_ID_drill_end, "two", NULL); /* once more */
    fixture_must(f, ROUTE_ID_drill_begin, NULL, RESERVE("three", 1));
}

/* Two that were decided on the same state: the second in the log is refused. */
static void the_log_decides(void **test)
{
    struct fixture *f = *test;
    struct decision first = {0}, second = {0};
    struct drill_reservation one = {0}, two = {0};
    struct decision_context context = fixture_context(f);
    OBJECT_TEXT(drill_reservation, &one, drill, "one");
    OBJECT_TEXT(drill_reservation, &two, drill, "two");
    OBJECT_SET(drill_reservation, &one, seconds, 60);
    OBJECT_SET(drill_reservation, &two, seconds, 60);
    assert_int_equal(decide_route(f->state, &context, ROUTE_ID_drill_begin, NULL, 0, &one, &first, &f->error), 0);
    assert_int_equal(decide_route(f->state, &context, ROUTE_ID_drill_begin, NULL, 0, &two, &second, &f->error), 0);
    assert_int_equal(fixture_apply(f, &first.command), 0);
    assert_int_equal(fixture_apply(f, &second.command), -EBUSY);
    assert_string_equal(state_cluster(f->state)->drill, "one");
    decision_finish(&first);
    decision_finish(&second);
    OBJECT_CLEAR(drill_reservation, &one);
    OBJECT_CLEAR(drill_reservation, &two);
}

/* The leader's clock was a year ahead when it was begun, and has been put right: nobody waits for that time. */
static void one_of_a_clock_that_was_ahead_ends(void **test)
{
    struct fixture *f = *test;
    const uint64_t now_ms = f->now_ms;
    fixture_must(f, ROUTE_ID_drill_begin, NULL, RESERVE("one", 600));
    assert_int_equal(fixture_reconcile(f, NULL), 0); /* the longest that there is */
    f->now_ms = now_ms + UINT64_C(365) * 86400000;
    fixture_must(f, ROUTE_ID_drill_begin, NULL, RESERVE("one", 60));
    assert_int_equal(fixture_reconcile(f, NULL), 0);
    f->now_ms = now_ms;
    assert_int_equal(fixture_do(f, ROUTE_ID_drill_begin, NULL, RESERVE("two", 60)), -EBUSY);
    assert_int_equal(fixture_reconcile(f, NULL), 1);
    assert_null(state_cluster(f->state)->drill);
    fixture_must(f, ROUTE_ID_drill_begin, NULL, RESERVE("two", 60));
    assert_int_equal(fixture_reconcile(f, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(one_at_a_time, setup, teardown),
        cmocka_unit_test_setup_teardown(the_log_decides, setup, teardown),
        cmocka_unit_test_setup_teardown(one_of_a_clock_that_was_ahead_ends, setup, teardown),
    };
    return cmocka_run_group_tests_name("drill state", tests, NULL, NULL);
}
