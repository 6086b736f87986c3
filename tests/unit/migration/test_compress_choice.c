/* Compression by measured benefit, with links and memory that are arithmetic. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "migration/compress_choice.h"

#define BATCH (1u << 20)
#define ZIP_US 3500u /* of a batch: 300 MB/s */

/* Sends @batches over a link of @megabytes a second, memory shrinking to @percent; returns how many were compressed. */
static unsigned run(struct compress_choice *c, unsigned batches, unsigned megabytes, unsigned percent)
{
    unsigned compressed = 0;
    for (unsigned i = 0; i < batches; i++) {
        bool zip = compress_choice_next(c);
        uint64_t sent = zip ? BATCH / 100 * percent : BATCH;
        compress_choice_note(c, zip, BATCH, sent, zip ? ZIP_US : 0, sent / megabytes);
        compressed += zip;
    }
    return compressed;
}

static void a_fast_link_is_not_kept_waiting(void **state)
{
    struct compress_choice c;
    (void)state;
    compress_choice_init(&c);
    assert_true(run(&c, 4096, 1200, 30) <= 8);
    assert_false(c.on);
}

static void a_slow_link_gets_it_compressed(void **state)
{
    struct compress_choice c;
    (void)state;
    compress_choice_init(&c);
    assert_true(run(&c, 1000, 60, 40) >= 980);
    assert_true(c.on);
}

static void what_does_not_shrink_is_left_alone(void **state)
{
    struct compress_choice c;
    (void)state;
    compress_choice_init(&c);
    assert_true(run(&c, 1000, 60, 99) <= 8);
}

static void it_follows_when_things_change(void **state)
{
    struct compress_choice c;
    (void)state;
    compress_choice_init(&c);
    run(&c, 200, 1200, 30);
    assert_false(c.on);
    run(&c, 400, 60, 30); /* others use the link now */
    assert_true(c.on);
    run(&c, 400, 1200, 30);
    assert_false(c.on);
}

static void no_trial_while_a_guest_stands_still(void **state)
{
    struct compress_choice c;
    (void)state;
    compress_choice_init(&c);
    run(&c, 100, 1200, 30);
    c.fixed = true;
    assert_int_equal(run(&c, 10000, 1200, 30), 0);
}

static void small_batches_say_nothing(void **state)
{
    struct compress_choice c;
    (void)state;
    compress_choice_init(&c);
    for (unsigned i = 0; i < 100; i++)
        compress_choice_note(&c, true, 4096, 100, 1, 100000);
    assert_false(c.on);
    assert_int_equal(c.wire_ns, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_fast_link_is_not_kept_waiting),     cmocka_unit_test(a_slow_link_gets_it_compressed),
        cmocka_unit_test(what_does_not_shrink_is_left_alone),  cmocka_unit_test(it_follows_when_things_change),
        cmocka_unit_test(no_trial_while_a_guest_stands_still), cmocka_unit_test(small_batches_say_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
