/* Pre-copy decisions against a guest and a link that are arithmetic, in virtual time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "migration/precopy.h"

#define PAGES_PER_MIB 256u

/* A guest that writes @rate pages a second, over and over the same @set pages, and a link of @link pages a second. */
struct world {
    uint64_t memory, set, rate, link; /* pages, pages per second */
    bool cannot_postcopy;             /* the target */
    uint64_t now_us, sent;
    unsigned rounds, throttle_most;
    struct precopy precopy;
    struct precopy_decision last;
    uint64_t pause_us; /* as it came to be */
};

static void world_run(struct world *w, const struct precopy_settings *settings)
{
    uint64_t to_send = w->memory;
    unsigned throttle_max = MAX(settings->throttle_max, w->cannot_postcopy ? settings->throttle_max_alone : 0);
    precopy_init(&w->precopy, settings);
    if (w->cannot_postcopy)
        precopy_without_postcopy(&w->precopy);
    for (w->rounds = 1; w->rounds <= 1000; w->rounds++) {
        struct precopy_round r = {.pages = to_send, .took_us = MAX(to_send * 1000000 / w->link, 50)};
        uint64_t written = w->rate * (100 - w->last.throttle) / 100 * r.took_us / 1000000;
        w->now_us += r.took_us;
        w->sent += to_send;
        r.elapsed_us = w->now_us;
        r.dirty_pages = MIN(written, w->set);
        w->last = precopy_decide(&w->precopy, &r);
        assert_true(w->last.throttle <= throttle_max);
        assert_true(w->last.throttle >= w->throttle_most); /* it only rises */
        w->throttle_most = w->last.throttle;
        to_send = r.dirty_pages;
        if (w->last.action != PRECOPY_ROUND)
            break;
    }
    w->pause_us = settings->fixed_us + to_send * 1000000 / w->link;
}

static struct precopy_settings defaults(void)
{
    return (struct precopy_settings){.downtime_us = PRECOPY_DOWNTIME_US_DEFAULT,
                                     .fixed_us = PRECOPY_FIXED_US_DEFAULT,
                                     .throttle_max = PRECOPY_THROTTLE_MAX_DEFAULT,
                                     .patience = PRECOPY_PATIENCE_DEFAULT};
}

static void an_idle_guest_takes_one_round(void **state)
{
    struct precopy_settings s = defaults();
    struct world w = {.memory = 1024 * PAGES_PER_MIB, .link = 250000};
    (void)state;
    world_run(&w, &s);
    assert_int_equal(w.last.action, PRECOPY_PAUSE);
    assert_int_equal(w.rounds, 1);
    assert_true(w.pause_us <= s.downtime_us);
}

static void rounds_shrink_below_the_limit_without_throttle(void **state)
{
    struct precopy_settings s = defaults();
    (void)state;
    for (unsigned percent = 10; percent <= 80; percent += 10) {
        struct world w = {.memory = 1024 * PAGES_PER_MIB, .set = 1024 * PAGES_PER_MIB, .link = 250000};
        w.rate = w.link * percent / 100;
        world_run(&w, &s);
        assert_int_equal(w.last.action, PRECOPY_PAUSE);
        assert_int_equal(w.throttle_most, 0);
        assert_true(w.pause_us <= s.downtime_us);
        assert_true(w.rounds <= 20);
    }
}

/* What a guest of this kind costs, whatever it writes: it always comes to an end, soon, and within the limit. */
static void every_guest_converges(void **state)
{
    struct precopy_settings s = defaults();
    (void)state;
    for (unsigned times = 1; times <= 64; times *= 2) {
        struct world w = {.memory = 256 * PAGES_PER_MIB, .set = 128 * PAGES_PER_MIB, .link = 15000}; /* 60 MB/s */
        w.rate = w.link * times;
        world_run(&w, &s);
        if (w.last.action != PRECOPY_PAUSE)
            fail_msg("a guest that writes %u times what can be sent is not stopped after %u rounds", times, w.rounds);
        assert_true(w.pause_us <= s.downtime_us);
        assert_true(w.throttle_most > 0);
        assert_true(w.now_us < 60 * 1000000ull);
    }
}

/* Told the rate by a look within the round, one step is enough. */
static void a_known_rate_is_throttled_at_once(void **state)
{
    struct precopy_settings s = defaults();
    struct precopy p;
    (void)state;
    precopy_init(&p, &s);
    struct precopy_round r = {.pages = 65536, .took_us = 4000000, .dirty_pages = 32768, .dirty_per_s = 160000};
    struct precopy_decision d = precopy_decide(&p, &r);
    assert_int_equal(d.throttle, 0);
    r.pages = r.dirty_pages;
    r.took_us = 2000000;
    d = precopy_decide(&p, &r);
    assert_int_equal(d.action, PRECOPY_ROUND);
    assert_true(d.throttle >= 94 && d.throttle <= 96); /* 160000 a second to half of 16384 */
}

/* Nearly all that the first round has sent was written again, at the rate at which it was sent: a second such round shows nothing new.
 * Post-copy does not wait for what would come to an end, but slowly. */
static void what_is_written_as_it_is_sent_is_known_after_one_round(void **state)
{
    struct precopy_settings s = defaults(), post = s;
    struct precopy p;
    (void)state;
    post.throttle_max = 0;
    post.postcopy = PRECOPY_POSTCOPY_FALLBACK;
    for (unsigned percent = 60; percent <= 110; percent += 10) {
        struct precopy_round r = {.pages = 16384, .took_us = 1400000};
        r.dirty_per_s = r.pages * 1000000 / r.took_us * percent / 100;
        r.dirty_pages = MIN(r.pages * percent / 100, r.pages);
        precopy_init(&p, &s);
        struct precopy_decision d = precopy_decide(&p, &r);
        assert_int_equal(d.action, PRECOPY_ROUND);
        assert_true(percent <= 80 ? d.throttle == 0 : d.throttle >= 40 && d.throttle <= 60); /* to half of what can be sent */
        precopy_init(&p, &post);
        assert_int_equal(precopy_decide(&p, &r).action, percent < 67 ? PRECOPY_ROUND : PRECOPY_POSTCOPY);
        post.downtime_max_us = 2000000; /* a pause that is allowed is waited for */
        precopy_init(&p, &post);
        assert_int_not_equal(precopy_decide(&p, &r).action, PRECOPY_POSTCOPY);
        post.downtime_max_us = 0;
    }
}

static void without_throttle_it_is_given_up_in_time(void **state)
{
    struct precopy_settings s = defaults();
    struct world w = {.memory = 256 * PAGES_PER_MIB, .set = 128 * PAGES_PER_MIB, .link = 15000, .rate = 60000};
    (void)state;
    s.throttle_max = 0;
    s.total_us_max = 30000000;
    world_run(&w, &s);
    assert_int_equal(w.last.action, PRECOPY_GIVE_UP);
    assert_int_equal(w.throttle_most, 0);
    assert_true(w.now_us >= s.total_us_max && w.now_us < s.total_us_max + 10000000);
}

static void a_longer_pause_is_taken_when_nothing_else_helps(void **state)
{
    struct precopy_settings s = defaults();
    struct world w = {.memory = 256 * PAGES_PER_MIB, .set = 128 * PAGES_PER_MIB, .link = 15000, .rate = 60000};
    (void)state;
    s.throttle_max = 0;
    s.downtime_max_us = 3000000;
    world_run(&w, &s);
    assert_int_equal(w.last.action, PRECOPY_PAUSE);
    assert_true(w.pause_us > s.downtime_us && w.pause_us <= s.downtime_max_us);
    assert_true(w.rounds <= 2 + s.patience);
}

/* What is left swings; the longer pause begins when little is left, and does not wait for ever for that. */
static void a_longer_pause_begins_at_a_low(void **state)
{
    static const uint64_t left[] = {40000, 10000, 39000, 38000, 37000, 10200, 36000};
    struct precopy_settings s = defaults();
    struct precopy p;
    struct precopy_decision d = {.action = PRECOPY_ROUND};
    unsigned n = 0;
    (void)state;
    s.throttle_max = 0;
    s.downtime_max_us = 30000000;
    precopy_init(&p, &s);
    for (; n < ARRAY_SIZE(left) && d.action == PRECOPY_ROUND; n++) {
        struct precopy_round r = {.pages = 40000, .took_us = 2000000, .dirty_pages = left[n]};
        d = precopy_decide(&p, &r);
    }
    assert_int_equal(d.action, PRECOPY_PAUSE);
    assert_int_equal(n, 6);
    precopy_init(&p, &s);
    for (n = 0, d.action = PRECOPY_ROUND; n < 20 && d.action == PRECOPY_ROUND; n++) {
        struct precopy_round r = {.pages = 40000, .took_us = 2000000, .dirty_pages = n == 1 ? 10000 : 30000};
        d = precopy_decide(&p, &r);
    }
    assert_int_equal(d.action, PRECOPY_PAUSE);
    assert_true(n <= 2 + s.patience + 4);
}

static void postcopy_is_the_way_out_where_it_may(void **state)
{
    struct precopy_settings s = defaults();
    (void)state;
    for (enum precopy_postcopy how = PRECOPY_POSTCOPY_FALLBACK; how <= PRECOPY_POSTCOPY_AT_ONCE; how++) {
        struct world w = {.memory = 256 * PAGES_PER_MIB, .set = 128 * PAGES_PER_MIB, .link = 15000, .rate = 60000};
        s.throttle_max = 0;
        s.postcopy = how;
        world_run(&w, &s);
        assert_int_equal(w.last.action, PRECOPY_POSTCOPY);
        assert_int_equal(w.rounds, how == PRECOPY_POSTCOPY_AT_ONCE ? 1 : 2); /* half of the memory is written to, all the time */
    }
}

/* Chosen as the way out, and the target cannot: the guest is slowed down further, and only then. */
static void a_target_without_postcopy_is_made_up_for_by_the_throttle(void **state)
{
    struct precopy_settings s = defaults();
    (void)state;
    s.throttle_max = PRECOPY_THROTTLE_MAX_POSTCOPY;
    s.throttle_max_alone = PRECOPY_THROTTLE_MAX_DEFAULT;
    for (enum precopy_postcopy how = PRECOPY_POSTCOPY_FALLBACK; how <= PRECOPY_POSTCOPY_AT_ONCE; how++) {
        struct world w = {.memory = 256 * PAGES_PER_MIB, .set = 128 * PAGES_PER_MIB, .link = 15000, .rate = 240000};
        s.postcopy = how;
        w.cannot_postcopy = true;
        world_run(&w, &s);
        assert_int_equal(w.last.action, PRECOPY_PAUSE);
        assert_true(w.throttle_most > PRECOPY_THROTTLE_MAX_POSTCOPY);
        assert_true(w.pause_us <= s.downtime_us);
    }
    struct world mild = {.memory = 256 * PAGES_PER_MIB, .set = 128 * PAGES_PER_MIB, .link = 15000, .rate = 12000};
    s.postcopy = PRECOPY_POSTCOPY_NEVER;
    mild.cannot_postcopy = true; /* and nobody had asked for it */
    world_run(&mild, &s);
    assert_true(mild.throttle_most <= PRECOPY_THROTTLE_MAX_POSTCOPY);
    assert_false(mild.precopy.lacks_postcopy);
}

/* No limit of time, and nothing helps: it ends all the same, in words; by the longer pause where one is allowed. */
static void what_nothing_helps_comes_to_an_end(void **state)
{
    struct precopy_settings s = defaults();
    (void)state;
    s.postcopy = PRECOPY_POSTCOPY_FALLBACK;
    for (unsigned percent = 0; percent <= 60; percent += 60) {
        struct world w = {.memory = 256 * PAGES_PER_MIB, .set = 128 * PAGES_PER_MIB, .link = 15000, .rate = 60000};
        w.cannot_postcopy = true;
        s.throttle_max = s.throttle_max_alone = percent; /* as its user has said */
        s.downtime_max_us = 0;
        world_run(&w, &s);
        assert_int_equal(w.last.action, PRECOPY_GIVE_UP);
        assert_int_equal(w.throttle_most, percent);
        assert_true(w.rounds > PRECOPY_STUCK_ROUNDS && w.rounds < 2 * PRECOPY_STUCK_ROUNDS);
        assert_true(w.now_us >= PRECOPY_STUCK_US && w.now_us < 3 * PRECOPY_STUCK_US);
        w = (struct world){.memory = w.memory, .set = w.set, .link = w.link, .rate = w.rate, .cannot_postcopy = true};
        s.downtime_max_us = 5000000;
        world_run(&w, &s);
        assert_int_equal(w.last.action, PRECOPY_PAUSE);
    }
}

/* A round is short where little is written: rounds alone say nothing, and neither does time alone. What is not slowed down, and
 * what gets less though slowly, is not given up. */
static void patience_is_lost_by_rounds_and_time_together(void **state)
{
    struct precopy_settings s = defaults();
    struct precopy p;
    (void)state;
    s.throttle_max = 60;
    for (unsigned round_ms = 1000; round_ms <= 30000; round_ms *= 30) {
        struct precopy_round r = {.pages = 40000, .took_us = round_ms * 1000, .dirty_pages = 40000};
        unsigned n = 0;
        precopy_init(&p, &s);
        for (; n < 200 && precopy_decide(&p, &r).action == PRECOPY_ROUND; n++)
            r.elapsed_us += r.took_us;
        assert_true(n > PRECOPY_STUCK_ROUNDS && r.elapsed_us >= PRECOPY_STUCK_US);
        assert_true(n < PRECOPY_STUCK_ROUNDS + 5 || r.elapsed_us < PRECOPY_STUCK_US + 10000000);
        precopy_init(&p, &s);
        r.dirty_pages = 4000000;
        for (n = 0; n < 200 && precopy_decide(&p, &r).action == PRECOPY_ROUND; n++) {
            r.elapsed_us += r.took_us;
            r.pages = r.dirty_pages;
            r.dirty_pages = r.dirty_pages * 98 / 100;
        }
        assert_int_equal(n, 200);
    }
    struct world w = {.memory = 256 * PAGES_PER_MIB, .set = 128 * PAGES_PER_MIB, .link = 15000, .rate = 60000};
    s.throttle_max = 0;
    world_run(&w, &s);
    assert_int_equal(w.last.action, PRECOPY_ROUND);
}

/* The link becomes ten times slower in the middle: the prediction follows at once, not by and by. */
static void a_link_that_slows_down_counts_in_full(void **state)
{
    struct precopy_settings s = defaults();
    struct precopy p;
    struct precopy_round r = {.pages = 100000, .took_us = 400000, .dirty_pages = 50000};
    (void)state;
    precopy_init(&p, &s);
    assert_int_equal(precopy_decide(&p, &r).action, PRECOPY_ROUND);
    r = (struct precopy_round){.pages = 50000, .took_us = 2000000, .dirty_pages = 10000};
    struct precopy_decision d = precopy_decide(&p, &r);
    assert_int_equal(d.action, PRECOPY_ROUND);
    assert_int_equal(d.predicted_us, 10000 * 40 + s.fixed_us);
}

/* 82 us a page that is sent. Half of a round was written before its turn came in the round before, and is elided; of the next none can
 * be, as far as the round before had not looked at it. */
static void what_was_elided_is_counted_on_where_it_can_be_again(void **state)
{
    struct precopy_settings s = defaults();
    struct precopy p;
    (void)state;
    for (unsigned again = 0; again <= 600; again += 300) {
        precopy_init(&p, &s);
        struct precopy_round r = {
            .pages = 16384, .same_pages = 400, .took_us = 15984 * 82, .dirty_pages = 5000, .again_pages = 5000};
        assert_int_equal(precopy_decide(&p, &r).predicted_us, 5000 * 82 + s.fixed_us);
        r = (struct precopy_round){
            .pages = 5000, .same_pages = 2500, .took_us = 2500 * 82, .dirty_pages = 1200, .again_pages = again};
        struct precopy_decision d = precopy_decide(&p, &r);
        assert_int_equal(d.predicted_us, (1200 - again / 2) * 82 + s.fixed_us);
    }
}

/* A guest that writes what is there already: its pages cost only the look at them. */
static void what_stays_the_same_is_counted_on(void **state)
{
    struct precopy_settings s = defaults();
    struct precopy p;
    (void)state;
    for (unsigned again = 0; again <= 10000; again += 5000) {
        struct precopy_round r = {.pages = 16384, .took_us = 16384 * 82, .dirty_pages = 10000, .again_pages = again};
        struct precopy_decision d = {.action = PRECOPY_ROUND};
        precopy_init(&p, &s);
        for (unsigned n = 0; n < 9 && d.action == PRECOPY_ROUND; n++) {
            d = precopy_decide(&p, &r);
            r = (struct precopy_round){.pages = 10000,
                                       .same_pages = 9900,
                                       .took_us = 10000 * 1 + 100 * 82,
                                       .dirty_pages = 10000,
                                       .again_pages = again};
        }
        assert_int_equal(d.action, PRECOPY_PAUSE);
    }
}

static void no_number_overflows(void **state)
{
    struct precopy_settings s = defaults();
    struct precopy p;
    (void)state;
    precopy_init(&p, &s);
    struct precopy_round r = {
        .pages = 1, .took_us = UINT64_MAX, .dirty_pages = UINT64_MAX, .dirty_per_s = UINT64_MAX, .elapsed_us = 1};
    assert_int_equal(precopy_decide(&p, &r).action, PRECOPY_ROUND);
    assert_int_equal(precopy_predict_us(&p, UINT64_MAX, 0), UINT64_MAX / 1000 + s.fixed_us);
    r = (struct precopy_round){0};
    precopy_init(&p, &s);
    assert_int_equal(precopy_decide(&p, &r).action, PRECOPY_PAUSE); /* a guest without memory to send */
    assert_int_equal(precopy_expect_us(&p, 100), UINT64_MAX);
}

static void the_end_is_expected_from_both_rates(void **state)
{
    struct precopy_settings s = defaults();
    struct precopy p;
    (void)state;
    precopy_init(&p, &s);
    struct precopy_round r = {.pages = 262144, .took_us = 1048576, .dirty_pages = 131072}; /* half of the link's rate */
    precopy_decide(&p, &r);
    uint64_t expected = precopy_expect_us(&p, r.dirty_pages);
    assert_true(expected > 700000 && expected < 1048576); /* 524 + 262 + 131 ms */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_idle_guest_takes_one_round),
        cmocka_unit_test(rounds_shrink_below_the_limit_without_throttle),
        cmocka_unit_test(every_guest_converges),
        cmocka_unit_test(a_known_rate_is_throttled_at_once),
        cmocka_unit_test(what_is_written_as_it_is_sent_is_known_after_one_round),
        cmocka_unit_test(without_throttle_it_is_given_up_in_time),
        cmocka_unit_test(a_longer_pause_is_taken_when_nothing_else_helps),
        cmocka_unit_test(a_longer_pause_begins_at_a_low),
        cmocka_unit_test(postcopy_is_the_way_out_where_it_may),
        cmocka_unit_test(a_target_without_postcopy_is_made_up_for_by_the_throttle),
        cmocka_unit_test(what_nothing_helps_comes_to_an_end),
        cmocka_unit_test(patience_is_lost_by_rounds_and_time_together),
        cmocka_unit_test(a_link_that_slows_down_counts_in_full),
        cmocka_unit_test(what_was_elided_is_counted_on_where_it_can_be_again),
        cmocka_unit_test(what_stays_the_same_is_counted_on),
        cmocka_unit_test(no_number_overflows),
        cmocka_unit_test(the_end_is_expected_from_both_rates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
