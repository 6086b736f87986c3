/* How an agent counts its lease: from when it asked, by a majority of the newest controllers, and what a refusal is worth. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "compute/agent/lease_holder.h"

#define MS 1000000ull
#define S (1000 * MS)

/* An answer of controller @raft_id that names controllers 1 to @voters as of @index. */
static struct lease_answer answer_of(uint64_t raft_id, bool supported, uint64_t index, unsigned voters)
{
    struct lease_answer answer = {.head = {0}};
    OBJECT_SET(lease_answer, &answer, raft_id, raft_id);
    OBJECT_SET(lease_answer, &answer, supported, supported);
    OBJECT_SET(lease_answer, &answer, ttl_ms, 5000);
    OBJECT_SET(lease_answer, &answer, refusal_extends, true);
    OBJECT_SET(lease_answer, &answer, cluster_epoch, 1);
    OBJECT_SET(lease_answer, &answer, voters_index, index);
    for (unsigned i = 1; i <= voters; i++) {
        char address[32];
        struct lease_voter *voter = OBJECT_ADD(lease_answer, &answer, voters);
        snprintf(address, sizeof address, "192.0.2.%u:7443", i);
        OBJECT_SET(lease_voter, voter, raft_id, i);
        OBJECT_TEXT(lease_voter, voter, address, address);
    }
    return answer;
}

static bool take(struct lease_holder *h, struct lease_answer answer, uint64_t asked_ns)
{
    bool news = lease_holder_answered(h, &answer, asked_ns);
    OBJECT_CLEAR(lease_answer, &answer);
    return news;
}

static void a_majority_holds_it_from_when_it_was_asked(void **test UNUSED)
{
    struct lease_holder h = {0};
    assert_int_equal(lease_holder_deadline(&h), 0);
    assert_true(take(&h, answer_of(1, true, 7, 3), 10 * S));
    assert_int_equal(lease_holder_deadline(&h), 0); /* one of three */
    assert_false(take(&h, answer_of(2, true, 7, 3), 11 * S));
    assert_int_equal(lease_holder_deadline(&h), 15 * S); /* until the earlier of the two */
    take(&h, answer_of(3, false, 7, 3), 13 * S);
    assert_int_equal(lease_holder_deadline(&h), 15 * S);
    take(&h, answer_of(3, true, 7, 3), 14 * S);
    assert_int_equal(lease_holder_deadline(&h), 16 * S);
    take(&h, answer_of(3, true, 7, 3), 2 * S); /* a late one takes nothing back */
    assert_int_equal(lease_holder_deadline(&h), 16 * S);
}

static void it_says_in_which_list_it_counts(void **test UNUSED)
{
    struct lease_holder h = {0};
    assert_int_equal(lease_holder_counts_in(&h, 1), 0);
    take(&h, answer_of(1, false, 7, 3), 10 * S);
    assert_int_equal(lease_holder_counts_in(&h, 1), 7);
    assert_int_equal(lease_holder_counts_in(&h, 0), 7); /* the first epoch, where none is named */
    take(&h, answer_of(1, false, 9, 5), 11 * S);
    assert_int_equal(lease_holder_counts_in(&h, 1), 9);
    take(&h, answer_of(2, true, 7, 3), 12 * S); /* one that is behind */
    assert_int_equal(lease_holder_counts_in(&h, 1), 9);
    assert_int_equal(lease_holder_counts_in(&h, 2), 0); /* numbers of another epoch are of another log */
}

static void a_refusal_extends_what_holds_and_revives_nothing(void **test UNUSED)
{
    struct lease_holder h = {0};
    for (uint64_t id = 1; id <= 3; id++)
        take(&h, answer_of(id, true, 7, 3), 10 * S);
    lease_holder_refused(&h, "192.0.2.1:7443", 14 * S, 14 * S + MS);
    lease_holder_refused(&h, "192.0.2.2:7443", 14 * S, 15 * S + MS); /* asked in time, refused too late */
    lease_holder_refused(&h, "192.0.2.9:7443", 14 * S, 14 * S);      /* nobody that counts */
    assert_int_equal(lease_holder_deadline(&h), 15 * S);
    lease_holder_refused(&h, "192.0.2.3:7443", 14 * S, 15 * S - MS);
    assert_int_equal(lease_holder_deadline(&h), 19 * S);
    lease_holder_refused(&h, "192.0.2.2:7443", 18 * S, 18 * S); /* it had run out at 15 */
    lease_holder_refused(&h, "192.0.2.3:7443", 18 * S, 18 * S);
    assert_int_equal(lease_holder_deadline(&h), 19 * S);
}

static void where_the_setting_says_so_a_refusal_is_worth_nothing(void **test UNUSED)
{
    struct lease_holder h = {0};
    for (uint64_t id = 1; id <= 3; id++) {
        struct lease_answer answer = answer_of(id, true, 7, 3);
        OBJECT_SET(lease_answer, &answer, refusal_extends, false);
        take(&h, answer, 10 * S);
    }
    lease_holder_refused(&h, "192.0.2.1:7443", 14 * S, 14 * S);
    lease_holder_refused(&h, "192.0.2.2:7443", 14 * S, 14 * S);
    assert_int_equal(lease_holder_deadline(&h), 15 * S);
}

static void the_newest_controllers_count(void **test UNUSED)
{
    struct lease_holder h = {0};
    take(&h, answer_of(1, true, 7, 3), 10 * S);
    take(&h, answer_of(2, true, 7, 3), 10 * S);
    assert_int_equal(lease_holder_deadline(&h), 15 * S);
    assert_true(take(&h, answer_of(3, false, 9, 5), 11 * S)); /* also a no names them */
    assert_int_equal(lease_holder_deadline(&h), 0);
    assert_false(take(&h, answer_of(1, true, 7, 3), 12 * S)); /* one that is behind, but its support counts */
    take(&h, answer_of(2, true, 7, 3), 12 * S);
    assert_int_equal(lease_holder_deadline(&h), 0); /* two of five */
    take(&h, answer_of(4, true, 9, 5), 12 * S);
    assert_int_equal(lease_holder_deadline(&h), 17 * S);
}

/* From one controller to two: the second one's support is had before it counts, and the lease is never without a majority. */
static void a_controller_that_supported_before_it_counts_takes_nothing(void **test UNUSED)
{
    struct lease_holder late = {0}, early = {0};
    take(&late, answer_of(1, true, 7, 1), 10 * S);
    take(&early, answer_of(1, true, 7, 1), 10 * S);
    take(&early, answer_of(2, true, 7, 1), 10 * S); /* it does not count, and what it says does not either */
    assert_int_equal(lease_holder_deadline(&early), 15 * S);
    assert_int_equal(lease_holder_strangers(&early), 0);
    take(&late, answer_of(1, true, 8, 2), 11 * S);
    take(&early, answer_of(1, true, 8, 2), 11 * S);
    assert_int_equal(lease_holder_deadline(&late), 0); /* one of two is no majority: why it is not made to count so soon */
    assert_int_equal(lease_holder_strangers(&late), 1);
    assert_int_equal(lease_holder_deadline(&early), 15 * S);
    assert_int_equal(lease_holder_strangers(&early), 0);
}

static void a_cluster_that_was_recovered_leaves_the_old_controllers_behind(void **test UNUSED)
{
    struct lease_holder h = {0};
    for (uint64_t id = 1; id <= 3; id++)
        take(&h, answer_of(id, true, 7, 3), 10 * S);
    struct lease_answer answer = answer_of(1, true, 3, 1);
    OBJECT_SET(lease_answer, &answer, cluster_epoch, 2);
    assert_true(take(&h, answer, 11 * S));
    assert_int_equal(lease_holder_deadline(&h), 16 * S); /* it alone */
    assert_false(take(&h, answer_of(2, true, 99, 3), 12 * S));
    assert_int_equal(lease_holder_deadline(&h), 16 * S);
}

static void pages(void **test UNUSED)
{
    struct lease_holder h = {0};
    assert_int_equal(lease_holder_page(&h, false, true, true, 1), 0); /* no ha */
    assert_int_equal(lease_holder_page(&h, false, true, false, 1), 0);
    assert_int_equal(lease_holder_page(&h, true, false, true, 1), 0);  /* disarmed */
    assert_int_equal(lease_holder_page(&h, true, false, false, 0), 1); /* but another host's by now, or this one goes down */
    assert_int_equal(lease_holder_page(&h, true, true, true, 1), 1);   /* nobody supports it: it may not run */
    assert_int_equal(lease_holder_page(&h, true, true, true, 9 * S), 9 * S); /* of an agent before us */
    assert_int_equal(lease_holder_page(&h, true, true, true, 0), 1);         /* it had none, and gets one */
    take(&h, answer_of(1, true, 7, 1), 10 * S);
    assert_int_equal(lease_holder_page(&h, true, true, true, 99 * S), 15 * S);
    assert_int_equal(lease_holder_page(&h, true, true, false, 1), 1); /* the orders do not name it */
    lease_holder_generation(&h, 2); /* a support is one whatever generation it was asked for */
    assert_int_equal(lease_holder_page(&h, true, true, true, 1), 15 * S);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_majority_holds_it_from_when_it_was_asked),
        cmocka_unit_test(it_says_in_which_list_it_counts),
        cmocka_unit_test(a_refusal_extends_what_holds_and_revives_nothing),
        cmocka_unit_test(where_the_setting_says_so_a_refusal_is_worth_nothing),
        cmocka_unit_test(the_newest_controllers_count),
        cmocka_unit_test(a_controller_that_supported_before_it_counts_takes_nothing),
        cmocka_unit_test(a_cluster_that_was_recovered_leaves_the_old_controllers_behind),
        cmocka_unit_test(pages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
