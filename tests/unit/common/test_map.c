/* The hash map against a plain array, over random adds and removals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "common/map.h"

#define KEYS 300

static void test_random_against_array(void **state)
{
    struct map m = {0};
    char keys[KEYS][8];
    bool in[KEYS] = {false};
    unsigned seed = 1, count = 0;
    (void)state;
    for (int i = 0; i < KEYS; i++)
        snprintf(keys[i], sizeof keys[i], "k%d", i);
    for (int round = 0; round < 100000; round++) {
        int i = rand_r(&seed) % KEYS;
        if (rand_r(&seed) % 2) {
            void *old = map_put(&m, keys[i], keys[i]);
            assert_true((old != NULL) == in[i]);
            count += !in[i];
            in[i] = true;
        } else {
            void *old = map_remove(&m, keys[i]);
            assert_true((old != NULL) == in[i]);
            count -= in[i];
            in[i] = false;
        }
        assert_int_equal(m.count, count);
        int k = rand_r(&seed) % KEYS;
        assert_ptr_equal(map_get(&m, keys[k]), in[k] ? keys[k] : NULL);
    }
    size_t at = 0, seen = 0;
    while (map_next(&m, &at) != NULL)
        seen++;
    assert_int_equal(seen, count);
    map_finish(&m);
}

static void test_key_by_length(void **state)
{
    struct map m = {0};
    char value[] = "value";
    (void)state;
    map_put(&m, "abc", value);
    assert_string_equal(map_get_n(&m, "abcdef", 3), "value");
    assert_null(map_get_n(&m, "abcdef", 2));
    assert_null(map_get_n(&m, "abcdef", 4));
    map_finish(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random_against_array), cmocka_unit_test(test_key_by_length)};
    return cmocka_run_group_tests_name("map", tests, NULL, NULL);
}
