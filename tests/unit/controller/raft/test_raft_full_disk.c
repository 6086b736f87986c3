/* raft_node on a full disk (a small tmpfs in a mount namespace of this process; skipped without the right to make one):
 * commands are refused with -ENOSPC, and accepted again by themselves when there is room; a start is refused in words. THREADED. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tests/unit/controller/raft/raft_bed.h"

#include <sched.h>
#include <sys/mount.h>

enum { COMMAND_BYTES = 64 * 1024 };

struct answers {
    unsigned answered, ok, no_space;
};

static void answer_cb(void *arg, int status, void *result)
{
    struct answers *answers = arg;

    answers->answered++;
    answers->ok += status == 0;
    answers->no_space += status == -ENOSPC;
    free(result);
}

/* Fill what is left of the file system. */
static void disk_fill(const char *path)
{
    CLEANUP_FD int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    static const char zeros[65536];

    assert_true(fd >= 0);
    while (write(fd, zeros, sizeof(zeros)) > 0)
        ;
    assert_int_equal(errno, ENOSPC);
}

/* Propose large commands until @wanted of @counter's kind were seen. */
static void propose_until(struct bed *bed, struct answers *answers, const unsigned *counter)
{
    uint64_t end_ms = uv_hrtime() / 1000000 + WAIT_MS;
    unsigned before = *counter;

    while (*counter == before) {
        void *command = xcalloc(1, COMMAND_BYTES);

        if (raft_node_propose(bed->servers[0].node, command, COMMAND_BYTES, answer_cb, answers) != 0)
            free(command);
        uv_run(&bed->loop, UV_RUN_ONCE);
        if (uv_hrtime() / 1000000 > end_ms)
            fail_msg("not within %d ms", WAIT_MS);
    }
}

/* The status is published at the end of a turn, after the answers of that turn: another command or two may be needed. */
static void propose_until_status(struct bed *bed, struct answers *answers, const unsigned *counter, bool no_space)
{
    uint64_t end_ms = uv_hrtime() / 1000000 + WAIT_MS;
    struct raft_node_status status;

    do {
        propose_until(bed, answers, counter);
        raft_node_status(bed->servers[0].node, &status);
        if (uv_hrtime() / 1000000 > end_ms)
            fail_msg("status no_space is not %d within %d ms", no_space, WAIT_MS);
    } while (status.no_space != no_space);
}

static void test_full_disk_refuses_and_recovers(void **state)
{
    struct bed *bed = *state;
    struct answers answers = {0};
    struct error err = {0};
    char *ballast = xasprintf("%s/ballast", bed->servers[0].dir);

    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("none", bed->servers[0].dir, "tmpfs", 0, "size=40m") != 0) {
        free(ballast);
        print_message("mounting a small tmpfs needs root: not tried\n");
        skip();
    }
    bed_start_cluster(bed, 1);
    propose_one(bed, 1);
    disk_fill(ballast);
    propose_until_status(bed, &answers, &answers.no_space, true);

    assert_int_equal(unlink(ballast), 0);
    propose_until_status(bed, &answers, &answers.ok, false);
    propose_one(bed, 2);
    server_stop(&bed->servers[0]);
    disk_fill(ballast); /* a start without room says so, and does not ask for the directory to be wiped */
    assert_int_equal(server_try_start_as(bed, 0, "c1", 1, &err), -ENOSPC);
    assert_non_null(strstr(err.text, "no room for the log"));
    assert_null(strstr(err.text, "wipe"));
    assert_int_equal(unlink(ballast), 0);
    server_start(bed, 0); /* and what was acknowledged is there */
    propose_one(bed, 3);
    assert_true(history_count(&bed->servers[0]) >= answers.ok + 3);
    server_stop(&bed->servers[0]);
    umount2(bed->servers[0].dir, MNT_DETACH);
    free(ballast);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_full_disk_refuses_and_recovers, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
