/* VMM processes with a shell script in a VMM's place: the lock outlives the starter, a second one cannot be started,
 * and a pid is only believed with its start time and boot. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "common/file.h"
#include "compute/agent/vmm_process.h"

#define BOOT "11111111-2222-4333-8444-555555555555"

struct fixture {
    char dir[64], program[96], lock[96], log[96];
};

static void write_program(struct fixture *f, const char *text)
{
    assert_int_equal(file_write_atomic(f->program, text, strlen(text), 0755, NULL), 0);
}

static int setup(void **state)
{
    struct fixture *f = NEW(struct fixture);
    strcpy(f->dir, "/tmp/vmm_process.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->program, sizeof(f->program), "%s/vmm", f->dir);
    snprintf(f->lock, sizeof(f->lock), "%s/vmm.lock", f->dir);
    snprintf(f->log, sizeof(f->log), "%s/vmm.log", f->dir);
    write_program(f, "#!/bin/sh\nexec setpriv --pdeathsig KILL -- sleep 600\n");
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(file_remove_tree("/tmp", f->dir + 5, NULL), 0);
    free(f);
    return 0;
}

static int start(struct fixture *f, int lock_fd, struct vmm_process_id *ret_id, int *ret_pidfd)
{
    const struct vmm_process_spawn spawn = {.program = f->program,
                                            .config_path = "/nonexistent/config.json",
                                            .log_path = f->log,
                                            .boot_id = BOOT,
                                            .epoch = 7};
    struct error err;
    return vmm_process_start(&spawn, lock_fd, ret_id, ret_pidfd, &err);
}

static void wait_end(int pidfd)
{
    struct pollfd p = {pidfd, POLLIN, 0};
    assert_int_equal(poll(&p, 1, 120000), 1);
}

/* The child writes its name by itself, a moment after the start has returned. */
static int look_named(const char *lock, struct vmm_process_id *ret_id)
{
    int r = -EAGAIN;
    for (unsigned i = 0; r == -EAGAIN && i < 120000; i++) {
        r = vmm_process_look(lock, ret_id, NULL);
        if (r == -EAGAIN)
            usleep(1000); /* there is no event for what another process writes */
    }
    return r;
}

static void test_lock_is_the_process(void **state)
{
    struct fixture *f = *state;
    struct vmm_process_id id, seen;
    int lock_fd, second_fd, pidfd, status;
    assert_int_equal(vmm_process_look(f->lock, &seen, NULL), 0); /* no file yet */
    assert_int_equal(vmm_process_lock(f->lock, &lock_fd, NULL), 0);
    assert_int_equal(start(f, lock_fd, &id, &pidfd), 0);
    close(lock_fd); /* as if the agent were gone: the lock is the child's alone now */
    assert_int_equal(vmm_process_lock(f->lock, &second_fd, NULL), -EAGAIN);
    assert_int_equal(look_named(f->lock, &seen), 1);
    assert_int_equal(seen.pid, id.pid);
    assert_int_equal(seen.start_ticks, id.start_ticks);
    assert_int_equal(seen.epoch, 7);
    assert_string_equal(seen.boot_id, BOOT);
    assert_int_equal(vmm_process_reap(id.pid, &status), -EAGAIN);
    assert_int_equal(vmm_process_signal(pidfd, SIGKILL), 0);
    wait_end(pidfd);
    assert_int_equal(vmm_process_reap(id.pid, &status), 0);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(vmm_process_reap(id.pid, &status), -ECHILD);
    assert_int_equal(vmm_process_signal(pidfd, SIGKILL), -ESRCH);
    close(pidfd);
    assert_int_equal(vmm_process_look(f->lock, &seen, NULL), 0);
    assert_int_equal(vmm_process_lock(f->lock, &second_fd, NULL), 0);
    close(second_fd);
}

static void test_pid_alone_is_not_believed(void **state)
{
    struct fixture *f = *state;
    struct vmm_process_id id, other;
    int lock_fd, pidfd, adopted, status;
    assert_int_equal(vmm_process_lock(f->lock, &lock_fd, NULL), 0);
    assert_int_equal(start(f, lock_fd, &id, &pidfd), 0);
    close(lock_fd);
    assert_int_equal(vmm_process_open(&id, BOOT, &adopted), 0);
    close(adopted);
    other = id;
    other.start_ticks--;
    assert_int_equal(vmm_process_open(&other, BOOT, &adopted), -ESRCH);
    assert_int_equal(vmm_process_open(&id, "another-boot", &adopted), -ESRCH);
    vmm_process_signal(pidfd, SIGKILL);
    wait_end(pidfd);
    assert_int_equal(vmm_process_reap(id.pid, &status), 0);
    assert_int_equal(vmm_process_open(&id, BOOT, &adopted), -ESRCH);
    close(pidfd);
}

static void test_lock_without_a_name(void **state)
{
    struct fixture *f = *state;
    struct vmm_process_id seen;
    int lock_fd;
    static const char *const texts[] = {
        "", "1", "12 34", "12 34 " BOOT, "12 34 " BOOT " 5", "0 34 " BOOT " 5\n", "-4 34 " BOOT " 5\n", "x y z\n"};
    assert_int_equal(vmm_process_lock(f->lock, &lock_fd, NULL), 0);
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        assert_int_equal(ftruncate(lock_fd, 0), 0);
        assert_int_equal(pwrite(lock_fd, texts[i], strlen(texts[i]), 0), (ssize_t)strlen(texts[i]));
        assert_int_equal(vmm_process_look(f->lock, &seen, NULL), -EAGAIN);
    }
    close(lock_fd);
    assert_int_equal(vmm_process_look(f->lock, &seen, NULL), 0);
}

static void test_what_the_child_gets(void **state)
{
    struct fixture *f = *state;
    struct vmm_process_id id;
    int lock_fd, pidfd, status;
    char *text;
    size_t size;
    CLEANUP_FD UNUSED int stray = open("/dev/zero", O_RDONLY); /* without close-on-exec */
    write_program(f, "#!/bin/sh\necho \"$@\"\nreadlink /proc/$$/fd/3\nreadlink /proc/$$/fd/*\n"
                     "[ \"$(ps -o sid= -p $$ | tr -d ' ')\" = $$ ] && echo leader\nexit 3\n");
    assert_int_equal(vmm_process_lock(f->lock, &lock_fd, NULL), 0);
    assert_int_equal(start(f, lock_fd, &id, &pidfd), 0);
    close(lock_fd);
    wait_end(pidfd);
    assert_int_equal(vmm_process_reap(id.pid, &status), 0);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 3);
    assert_int_equal(file_read(f->log, 4096, &text, &size, NULL), 0);
    assert_non_null(strstr(text, "--config /nonexistent/config.json\n"));
    assert_non_null(strstr(text, "vmm.lock\n")); /* descriptor 3 */
    assert_null(strstr(text, "/dev/zero"));      /* nothing else of ours */
    assert_non_null(strstr(text, "leader\n"));
    free(text);
    close(pidfd);
}

static void test_program_that_cannot_run(void **state)
{
    struct fixture *f = *state;
    struct vmm_process_id id;
    int lock_fd, pidfd, status, second_fd;
    assert_int_equal(vmm_process_lock(f->lock, &lock_fd, NULL), 0);
    write_program(f, "this is no program");
    assert_int_equal(start(f, lock_fd, &id, &pidfd), 0);
    wait_end(pidfd);
    assert_int_equal(vmm_process_reap(id.pid, &status), 0);
    assert_int_equal(WEXITSTATUS(status), VMM_PROCESS_EXEC_FAILED);
    close(pidfd);
    unlink(f->program);
    assert_int_equal(start(f, lock_fd, &id, &pidfd), -ENOENT);
    close(lock_fd);
    assert_int_equal(vmm_process_lock(f->lock, &second_fd, NULL), 0);
    close(second_fd);
}

static void test_usage(void **state)
{
    struct vmm_process_usage usage;
    (void)state;
    assert_int_equal(vmm_process_usage(getpid(), &usage), 0);
    assert_true(usage.rss_bytes > 100000);
    assert_int_equal(vmm_process_usage(0x3ffffff, &usage), -ESRCH);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_lock_is_the_process), T(test_pid_alone_is_not_believed), T(test_lock_without_a_name),
        T(test_what_the_child_gets), T(test_program_that_cannot_run),   T(test_usage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
