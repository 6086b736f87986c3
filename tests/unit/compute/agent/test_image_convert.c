/* What qemu-img may not do behind its walls, tried by a process that has put itself behind the same filter. That sound files are converted
 * there, which takes threads, is tried with the program (tests/process/test_images.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "compute/agent/image_convert.h"

static void *thread_run(void *arg)
{
    return arg;
}

/* As the kernel is asked: the C library may choose another call for the same. A process that is made after all ends at once. */
static int refused_with(long r)
{
    if (r == 0)
        _exit(0);
    return r < 0 ? errno : 0;
}

/* The first thing that is not as it should be; 0: none. */
static int behind_the_filter(void)
{
    struct clone_args args = {.exit_signal = SIGCHLD};
    pthread_t thread;
    if (image_convert_forbid_calls() < 0)
        return 1;
    if (refused_with(syscall(SYS_fork)) != EPERM)
        return 2;
    if (refused_with(syscall(SYS_clone, (long)SIGCHLD, 0L, 0L, 0L, 0L)) != EPERM)
        return 3;
    if (refused_with(syscall(SYS_clone, (long)(CLONE_PARENT | SIGCHLD), 0L, 0L, 0L, 0L)) != EPERM)
        return 4;
    if (refused_with(syscall(SYS_clone3, &args, sizeof args)) != ENOSYS)
        return 5;
    if (refused_with(fork()) != EPERM)
        return 6;
    if (pthread_create(&thread, NULL, thread_run, &args) != 0 || pthread_join(thread, NULL) != 0)
        return 7;
    if (socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0) >= 0 || errno != EPERM)
        return 8;
    return 0;
}

static void it_makes_threads_and_no_processes(void **test)
{
    int status;
    (void)test;
    pid_t pid = fork();
    if (pid == 0)
        _exit(behind_the_filter());
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_makes_threads_and_no_processes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
