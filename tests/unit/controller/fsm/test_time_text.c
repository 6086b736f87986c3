/* Times as text and back, against the C library over four centuries. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>
#include <time.h>

#include "controller/fsm/time_text.h"

static void there_and_back(void **test UNUSED)
{
    char text[TIME_TEXT_BYTES], want[64];
    for (uint64_t s = 0; s < UINT64_C(400) * 366 * 86400; s += 86399 * 7 + 13) {
        time_t t = (time_t)s;
        struct tm tm;
        gmtime_r(&t, &tm);
        strftime(want, sizeof want, "%Y-%m-%dT%H:%M:%S.789Z", &tm);
        time_text_format(s * 1000 + 789, text);
        assert_string_equal(text, want);
        assert_int_equal(time_text_ms(text), s * 1000 + 789);
    }
}

static void what_is_no_time(void **test UNUSED)
{
    static const char *const bad[] = {NULL, "", "2026-01-31", "2026-13-31T12:00:00.000Z", "2026-01-31T24:00:00.000Z",
                                      "2026-01-3xT12:00:00.000Z", "2026-00-31T12:00:00.000Z", "1969-01-31T12:00:00.000Z"};
    char text[TIME_TEXT_BYTES];
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(time_text_ms(bad[i]), 0);
    time_text_format(UINT64_MAX, text);
    assert_string_equal(text, "9999-12-31T23:59:59.999Z");
}

/* A clock that was ahead is put right: nobody waits for the times that it has left behind. */
static void what_a_wrong_clock_has_left(void **test UNUSED)
{
    char text[TIME_TEXT_BYTES];
    const uint64_t now = UINT64_C(1700000000000);
    assert_true(time_text_is_over(now, NULL, 1000));
    time_text_format(now, text);
    assert_false(time_text_is_over(now + 999, text, 1000));
    assert_true(time_text_is_over(now + 1000, text, 1000));
    time_text_format(now + 60000, text); /* clocks differ a little */
    assert_false(time_text_is_ahead(now, text));
    assert_false(time_text_is_over(now, text, 0));
    time_text_format(now + 60001, text);
    assert_true(time_text_is_ahead(now, text));
    assert_true(time_text_is_over(now, text, 1000));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_a_wrong_clock_has_left), cmocka_unit_test(there_and_back), cmocka_unit_test(what_is_no_time)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
