/* State machine: legal moves are made, a move to the same state is none, and an illegal one ends the process. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <signal.h>
#include <sys/wait.h>

#include "common/log.h"
#include "common/state_machine.h"

enum { OFF, ON, BROKEN };
static const char *const names[] = {"off", "on", "broken"};
static const uint32_t moves[] = {[OFF] = STATE_BIT(ON), [ON] = STATE_BIT(OFF) | STATE_BIT(BROKEN), [BROKEN] = 0};
static const struct state_machine_desc desc = {"lamp", names, moves, 3};

static void test_legal_moves(void **unused)
{
    (void)unused;
    struct state_machine m;
    state_machine_init(&m, &desc, "kitchen", OFF);
    assert_true(state_machine_may(&m, ON));
    assert_false(state_machine_may(&m, BROKEN));
    assert_false(state_machine_may(&m, 17));
    state_machine_move(&m, ON, "because of %d", 1);
    assert_int_equal(m.state, ON);
    assert_string_equal(state_machine_name(&m), "on");
    state_machine_move(&m, ON, "already");
    state_machine_move(&m, BROKEN, "\"quoted\"\n");
    assert_int_equal(m.state, BROKEN);
}

static void test_illegal_move_ends_the_process(void **unused)
{
    (void)unused;
    int status;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct state_machine m;
        signal(SIGABRT, SIG_DFL);
        state_machine_init(&m, &desc, "kitchen", OFF);
        state_machine_move(&m, BROKEN, "not allowed");
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) || WEXITSTATUS(status) != 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_legal_moves),
        cmocka_unit_test(test_illegal_move_ends_the_process),
    };
    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
