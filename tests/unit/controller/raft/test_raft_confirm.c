/* Rounds of questions: who is asked, whose answer counts, and when a round says nothing. On libraft's own state, set by
 * hand; raft_node's tests and the simulator have it between servers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>

#include "controller/raft/raft_confirm.h"

enum { TERM = 7, COMMIT = 40 };

struct bed {
    struct raft raft;
    struct raft_server servers[5];
    struct raft_confirm confirm;
    unsigned unreachable; /* bit: id */
    unsigned asked;       /* the same */
    struct raft_confirm_message question;
};

static struct bed bed_leading(unsigned members)
{
    struct bed b = {.raft = {.id = 1, .current_term = TERM, .state = RAFT_LEADER, .commit_index = COMMIT, .last_applied = COMMIT}};

    for (unsigned i = 0; i < members; i++)
        b.servers[i] = (struct raft_server){.id = i + 1, .role = RAFT_VOTER};
    b.raft.configuration.n = members;
    raft_confirm_init(&b.confirm, 1000);
    return b;
}

static bool send_question(void *arg, raft_id id, const struct raft_confirm_message *message)
{
    struct bed *b = arg;

    if (b->unreachable >> id & 1)
        return false;
    b->asked |= 1u << id;
    b->question = *message;
    return true;
}

static int begin(struct bed *b, raft_term ready_term)
{
    b->raft.configuration.servers = b->servers;
    return raft_confirm_begin(&b->confirm, &b->raft, ready_term, send_question, b);
}

static void answer(struct bed *b, raft_id id)
{
    struct raft_confirm_message message = {RAFT_CONFIRM_ANSWER, b->question.term, b->question.round};
    raft_confirm_answer(&b->confirm, id, &message);
}

static void test_a_majority_is_enough(void **state)
{
    struct bed b = bed_leading(5);
    (void)state;

    b.servers[4].role = RAFT_STANDBY; /* four voters: three are a majority */
    assert_int_equal(begin(&b, TERM), 0);
    assert_int_equal(b.asked, 0x1c);
    assert_int_equal(b.question.kind, RAFT_CONFIRM_QUESTION);
    assert_int_equal(b.question.term, TERM);
    assert_int_equal(raft_confirm_check(&b.confirm, &b.raft), 0);
    answer(&b, 3);
    answer(&b, 3); /* twice is once */
    assert_int_equal(raft_confirm_check(&b.confirm, &b.raft), 0);
    answer(&b, 5); /* has no vote */
    assert_int_equal(raft_confirm_check(&b.confirm, &b.raft), 0);
    answer(&b, 2);
    assert_int_equal(raft_confirm_check(&b.confirm, &b.raft), 1);
    raft_confirm_end(&b.confirm);
}

static void test_the_only_voter_asks_nobody(void **state)
{
    struct bed b = bed_leading(1);
    (void)state;

    assert_int_equal(begin(&b, TERM), 0);
    assert_int_equal(b.asked, 0);
    assert_int_equal(raft_confirm_check(&b.confirm, &b.raft), 1);
}

static void test_what_was_committed_must_be_applied(void **state)
{
    struct bed b = bed_leading(1);
    (void)state;

    b.raft.last_applied = COMMIT - 1;
    assert_int_equal(begin(&b, TERM), 0);
    b.raft.commit_index = COMMIT + 5; /* what comes later is not waited for */
    assert_int_equal(raft_confirm_check(&b.confirm, &b.raft), 0);
    b.raft.last_applied = COMMIT;
    assert_int_equal(raft_confirm_check(&b.confirm, &b.raft), 1);
}

static void test_only_its_own_round_counts(void **state)
{
    struct bed b = bed_leading(3);
    struct raft_confirm_message old;
    (void)state;

    assert_int_equal(begin(&b, TERM), 0);
    old = b.question;
    raft_confirm_end(&b.confirm);
    assert_int_equal(begin(&b, TERM), 0);
    old.kind = RAFT_CONFIRM_ANSWER;
    raft_confirm_answer(&b.confirm, 2, &old);
    assert_int_equal(raft_confirm_check(&b.confirm, &b.raft), 0);
    old = (struct raft_confirm_message){RAFT_CONFIRM_ANSWER, TERM - 1, b.question.round};
    raft_confirm_answer(&b.confirm, 2, &old);
    assert_int_equal(raft_confirm_check(&b.confirm, &b.raft), 0);
    answer(&b, 2);
    assert_int_equal(raft_confirm_check(&b.confirm, &b.raft), 1);
}

static void test_who_leads_no_more_knows_nothing(void **state)
{
    struct bed b = bed_leading(3);
    (void)state;

    assert_int_equal(begin(&b, TERM), 0);
    answer(&b, 2);
    b.raft.current_term = TERM + 1;
    assert_int_equal(raft_confirm_check(&b.confirm, &b.raft), -ENOTCONN);
    b.raft.current_term = TERM;
    b.raft.state = RAFT_FOLLOWER;
    assert_int_equal(raft_confirm_check(&b.confirm, &b.raft), -ENOTCONN);
    raft_confirm_end(&b.confirm);
    assert_int_equal(begin(&b, TERM), -ENOTCONN);
}

static void test_when_the_log_is_asked_instead(void **state)
{
    struct bed b = bed_leading(3);
    (void)state;

    assert_int_equal(begin(&b, TERM - 1), -EAGAIN); /* nothing of its own is committed yet */
    b.raft.configuration_uncommitted_index = 9;
    assert_int_equal(begin(&b, TERM), -EAGAIN);
    b.raft.configuration_uncommitted_index = 0;
    b.servers[0].role = RAFT_STANDBY;
    assert_int_equal(begin(&b, TERM), -EAGAIN);
    b.servers[0].role = RAFT_VOTER;
    b.unreachable = 1 << 2 | 1 << 3;
    assert_int_equal(begin(&b, TERM), -EAGAIN);
    b.unreachable = 1 << 2;
    assert_int_equal(begin(&b, TERM), 0);
}

static void test_a_vote_taken_away_counts_no_more(void **state)
{
    struct bed b = bed_leading(3);
    (void)state;

    assert_int_equal(begin(&b, TERM), 0);
    answer(&b, 2);
    b.servers[1].role = RAFT_STANDBY;
    assert_int_equal(raft_confirm_check(&b.confirm, &b.raft), 0);
}

static void test_a_voter_answers_for_its_own_term_only(void **state)
{
    static const struct {
        unsigned short state;
        raft_term term;
        bool answers;
    } cases[] = {{RAFT_FOLLOWER, TERM, true},      {RAFT_CANDIDATE, TERM, true},  {RAFT_FOLLOWER, TERM + 1, false},
                 {RAFT_CANDIDATE, TERM + 1, false}, {RAFT_FOLLOWER, TERM - 1, false}, {RAFT_LEADER, TERM, false},
                 {RAFT_UNAVAILABLE, TERM, false}};
    struct raft_confirm_message question = {RAFT_CONFIRM_QUESTION, TERM, 5}, said;
    (void)state;

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct bed b = bed_leading(3);

        b.raft.state = cases[i].state;
        b.raft.current_term = cases[i].term;
        assert_int_equal(raft_confirm_question(&b.raft, &question, &said), cases[i].answers);
    }
    assert_int_equal(said.kind, RAFT_CONFIRM_ANSWER);
    assert_int_equal(said.term, TERM);
    assert_int_equal(said.round, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_majority_is_enough),
        cmocka_unit_test(test_the_only_voter_asks_nobody),
        cmocka_unit_test(test_what_was_committed_must_be_applied),
        cmocka_unit_test(test_only_its_own_round_counts),
        cmocka_unit_test(test_who_leads_no_more_knows_nothing),
        cmocka_unit_test(test_when_the_log_is_asked_instead),
        cmocka_unit_test(test_a_vote_taken_away_counts_no_more),
        cmocka_unit_test(test_a_voter_answers_for_its_own_term_only),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
