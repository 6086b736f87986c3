/* What is on its way in a post-copy, over links that are arithmetic. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "migration/postcopy_pace.h"

/* A link: pages that it takes in a millisecond, and its own way there and back. A window is answered when it is through, and the next
 * one is on the link by then. */
struct link {
    double pages_per_ms;
    uint64_t way_us;
    struct push_window window;
    double sent_pages, now_us, queue_us; /* what a page that is asked for now would wait for */
};

static void push(struct link *l, unsigned turns, bool is_asked)
{
    l->sent_pages = l->now_us = l->queue_us = 0;
    for (unsigned i = 0; i < turns; i++) {
        double wire_us = l->window.pages * 1000 / l->pages_per_ms, way_us = (double)l->way_us;
        double took_us = wire_us > way_us ? wire_us : way_us;
        double queue_us = 2 * wire_us - way_us; /* two windows, less what is on the way itself */
        l->sent_pages += l->window.pages;
        l->now_us += took_us;
        l->queue_us = queue_us > l->queue_us ? queue_us : l->queue_us;
        push_window_note(&l->window, (uint64_t)took_us, is_asked);
    }
}

static double share_of_link(const struct link *l)
{
    return l->sent_pages * 1000 / l->pages_per_ms / l->now_us;
}

/* From 40 Mbit/s to 40 Gbit/s, and from a cable to another continent. */
static void little_is_on_its_way_and_the_link_is_busy(void **state)
{
    (void)state;
    for (double pages_per_ms = 1.25; pages_per_ms <= 1250; pages_per_ms *= 10)
        for (uint64_t way_us = 100; way_us <= 100000; way_us *= 10) {
            struct link l = {.pages_per_ms = pages_per_ms, .way_us = way_us};
            double least_us = PUSH_WINDOW_PAGES_MIN * 1000 / pages_per_ms;
            push_window_init(&l.window);
            push(&l, 60, true); /* until it has found its size */
            push(&l, 100, true);
            if (l.queue_us > 2 * ((double)way_us + PUSH_QUEUE_US_ASKED + least_us))
                fail_msg("%.2f pages a ms, way %llu us: %.0f us of pages before one that is asked for", pages_per_ms,
                         (unsigned long long)way_us, l.queue_us);
            if (share_of_link(&l) < 0.9 && l.window.pages < PUSH_WINDOW_PAGES_MAX)
                fail_msg("%.2f pages a ms, way %llu us: %.2f of the link is used", pages_per_ms, (unsigned long long)way_us,
                         share_of_link(&l));
        }
}

static void a_guest_that_asks_has_less_before_it(void **state)
{
    struct link l = {.pages_per_ms = 12.5, .way_us = 300}; /* 400 Mbit/s */
    (void)state;
    push_window_init(&l.window);
    push(&l, 50, false);
    push(&l, 50, false);
    double calm_us = l.queue_us;
    assert_true(calm_us > PUSH_QUEUE_US);
    push(&l, 50, true);
    push(&l, 50, true);
    assert_true(l.queue_us <= calm_us / 2);
    assert_true(share_of_link(&l) > 0.99);
}

/* Others fill the link: it is not for us to fill it more. */
static void a_link_that_becomes_slow_has_the_least(void **state)
{
    struct link l = {.pages_per_ms = 125, .way_us = 300};
    (void)state;
    push_window_init(&l.window);
    push(&l, 50, false);
    assert_true(l.window.pages > PUSH_WINDOW_PAGES_MIN);
    l.way_us += 2 * PUSH_QUEUE_US;
    push(&l, 50, false);
    assert_int_equal(l.window.pages, PUSH_WINDOW_PAGES_MIN);
}

static void no_number_is_too_large(void **state)
{
    struct push_window w;
    (void)state;
    push_window_init(&w);
    push_window_note(&w, 0, true);
    for (unsigned i = 0; i < 10; i++)
        push_window_note(&w, UINT64_MAX, true);
    assert_int_equal(w.pages, PUSH_WINDOW_PAGES_MIN);
    for (unsigned i = 0; i < 40; i++)
        push_window_note(&w, 0, false);
    assert_int_equal(w.pages, PUSH_WINDOW_PAGES_MAX);
    struct page_ahead a = {.next = 0};
    assert_int_equal(page_ahead_pages(&a, UINT64_MAX - 1), PAGE_AHEAD_MIN);
}

static void who_goes_on_gets_more_each_time(void **state)
{
    struct page_ahead a = {.next = 0};
    uint64_t page = 1000, asked = 0;
    (void)state;
    for (; page < 9000; asked++)
        page += page_ahead_pages(&a, page);
    assert_true(asked <= 8000 / PAGE_AHEAD_MAX + 6);
    assert_int_equal(page_ahead_pages(&a, page + PAGE_AHEAD_MAX), PAGE_AHEAD_MAX); /* a hole in it */
}

static void who_jumps_gets_little(void **state)
{
    struct page_ahead a = {.next = 0};
    uint32_t seed = 1;
    uint64_t sum = 0;
    (void)state;
    for (unsigned i = 0; i < 1000; i++) {
        seed = seed * 1664525 + 1013904223;
        sum += page_ahead_pages(&a, seed >> 4);
    }
    assert_true(sum < 1000 * (PAGE_AHEAD_MIN + 1));
}

/* As many processors as there are stretches, each in a place of its own, and one that jumps about now and then. */
static void several_go_on_side_by_side(void **state)
{
    struct page_ahead a = {.next = 0};
    uint64_t pages[PAGE_AHEAD_STRETCHES];
    unsigned got[PAGE_AHEAD_STRETCHES];
    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(pages); i++)
        pages[i] = (uint64_t)i << 40;
    for (unsigned turn = 0; turn < 5; turn++)
        for (unsigned i = 0; i < ARRAY_SIZE(pages); i++)
            pages[i] += got[i] = page_ahead_pages(&a, pages[i]);
    for (unsigned i = 0; i < ARRAY_SIZE(pages); i++)
        assert_int_equal(got[i], PAGE_AHEAD_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(little_is_on_its_way_and_the_link_is_busy),
        cmocka_unit_test(a_guest_that_asks_has_less_before_it),
        cmocka_unit_test(a_link_that_becomes_slow_has_the_least),
        cmocka_unit_test(no_number_is_too_large),
        cmocka_unit_test(who_goes_on_gets_more_each_time),
        cmocka_unit_test(who_jumps_gets_little),
        cmocka_unit_test(several_go_on_side_by_side),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
