/* Ranges of bytes in HTTP: what is asked for, what is said, and all that is neither. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>

#include "common/http_range.h"

static void test_number(void **state)
{
    static const char *const bad[] = {"", " 1", "1 ", "-1", "+1", "0x1", "1.5", "9223372036854775808", "99999999999999999999"};
    uint64_t n = 7;
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(http_range_number(bad[i], &n), -EINVAL);
    assert_int_equal(http_range_number(NULL, &n), -EINVAL);
    assert_int_equal(n, 7);
    assert_int_equal(http_range_number("0", &n), 0);
    assert_int_equal(n, 0);
    assert_int_equal(http_range_number("9223372036854775807", &n), 0);
    assert_true(n == HTTP_RANGE_NUMBER_MAX);
}

static void test_request(void **state)
{
    static const char *const ignored[] = {"", "bytes", "bytes=", "bytes=-5", "bytes=5", "bytes=9-5", "lines=1-2", "bytes=1-2,4-5",
                                          "bytes=1-x", "bytes =1-2", "bytes=1-2 "};
    struct http_range r = {.first = 9};
    (void)state;
    assert_int_equal(http_range_parse_request(NULL, 20, &r), 0);
    for (size_t i = 0; i < ARRAY_SIZE(ignored); i++)
        assert_int_equal(http_range_parse_request(ignored[i], 20, &r), 0);
    assert_int_equal(r.first, 9);
    assert_int_equal(http_range_parse_request("bytes=20-", 20, &r), -ERANGE);
    assert_int_equal(http_range_parse_request("bytes=0-", 0, &r), -ERANGE);
    assert_int_equal(http_range_parse_request("bytes=5-", 20, &r), 1);
    assert_true(r.first == 5 && r.end == 20);
    assert_int_equal(http_range_parse_request("Bytes=5-9", 20, &r), 1);
    assert_true(r.first == 5 && r.end == 10);
    assert_int_equal(http_range_parse_request("bytes=5-99999", 20, &r), 1);
    assert_true(r.first == 5 && r.end == 20);
}

static void test_answer(void **state)
{
    static const char *const bad[] = {"", "bytes", "bytes 5-9", "bytes 5-9/", "bytes 5-9/*", "bytes */20", "bytes 9-5/20", "bytes 5-20/20",
                                      "bytes=5-9/20", "bytes 5-9/20 ", "5-9/20"};
    struct http_range r;
    (void)state;
    assert_int_equal(http_range_parse_answer(NULL, &r), -EINVAL);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(http_range_parse_answer(bad[i], &r), -EINVAL);
    assert_int_equal(http_range_parse_answer("bytes 5-19/20", &r), 0);
    assert_true(r.first == 5 && r.end == 20 && r.total == 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_number),
        cmocka_unit_test(test_request),
        cmocka_unit_test(test_answer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
