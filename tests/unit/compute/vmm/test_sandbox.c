/* The sandbox: each kind of thread may do its work and nothing else. Every case is a forked child, THREADED where the
 * violation is to come from a thread; a violation ends the whole child with SANDBOX_STATUS and says who and what. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "compute/vmm/sandbox.h"

enum { DONE = 42 };

struct attempt {
    enum sandbox_mode mode;
    enum sandbox_role role;
    void (*what)(void);
    const struct sandbox *sandbox;
};

static void *thread_main(void *arg)
{
    struct attempt *a = arg;
    prctl(PR_SET_NAME, "probe");
    sandbox_enter_or_end(a->sandbox, a->role);
    a->what();
    return NULL;
}

static _Noreturn void child_run(struct attempt *a, int output)
{
    struct sandbox *s = NULL;
    pthread_t thread;
    dup2(output, STDERR_FILENO);
    if (sandbox_create(a->mode, false, &s, NULL) < 0 || sandbox_enter(s, SANDBOX_BASE, NULL) < 0)
        _exit(1);
    a->sandbox = s;
    if (a->role == SANDBOX_BASE)
        a->what();
    else if (pthread_create(&thread, NULL, thread_main, a) != 0 || pthread_join(thread, NULL) != 0)
        _exit(1);
    _exit(DONE);
}

/* Exit status of a child that does @a; what it said goes to @text. */
static int attempt(struct attempt a, char text[256])
{
    int ends[2], status;
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        child_run(&a, ends[1]);
    close(ends[1]);
    size_t size = 0;
    for (ssize_t n; size < 255 && (n = read(ends[0], text + size, 255 - size)) > 0;) /* in as many pieces as it comes */
        size += (size_t)n;
    text[size] = 0;
    close(ends[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* ---- what may be tried ---- */

static void run_program(void)
{
    char *argv[] = {(char *)"/bin/true", NULL};
    execv(argv[0], argv);
}
static void fork_by_clone3(void)
{
    uint64_t arguments[8] = {[4] = SIGCHLD}; /* struct clone_args: no flags */
    if (syscall(SYS_clone3, arguments, sizeof(arguments)) != -1 || errno != ENOSYS)
        _exit(1);
}
static void fork_by_clone(void)
{
    syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
}
static void mount_something(void)
{
    syscall(SYS_mount, "none", "/", "tmpfs", 0, NULL);
}
static void become_tracer(void)
{
    syscall(SYS_process_vm_writev, 1, NULL, 0, NULL, 0, 0);
}
static void open_network(void)
{
    (void)socket(AF_INET, SOCK_STREAM, 0);
}
static void open_file(void)
{
    int fd = open("/etc/hostname", O_RDONLY | O_CLOEXEC);
    if (fd >= 0)
        close(fd);
}
static void signal_other(void)
{
    syscall(SYS_tgkill, 1, 1, 0);
}
static void type_into_terminal(void)
{
    ioctl(0, 0x5412 /* TIOCSTI */, "x");
}
/* As many pieces as a heap of the thread's own is given back for. */
static void free_much(void)
{
    void *volatile pieces[64];
    for (unsigned i = 0; i < 64; i++)
        pieces[i] = malloc(64 << 10);
    for (unsigned i = 64; i-- > 0;)
        free(pieces[i]);
}
static void transfer(void)
{
    uint64_t one = 1;
    int fd = eventfd(0, EFD_CLOEXEC);
    if (write(fd, &one, sizeof(one)) != sizeof(one) || read(fd, &one, sizeof(one)) != sizeof(one))
        _exit(1);
    ioctl(fd, KVM_RUN, 0); /* refused by the kernel, not by the filter */
    free(malloc(1 << 20));
    free_much();
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(page, 4096, MADV_DONTNEED);
    munmap(page, 4096);
    close(fd);
}
static void wait_a_little(void)
{
    struct timespec t = {.tv_nsec = 1};
    nanosleep(&t, NULL);
    pthread_kill(pthread_self(), 0);
}
static void start_thread(void)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, (void *(*)(void *))(void *)wait_a_little, NULL) == 0)
        pthread_join(thread, NULL);
}

/* ---- tests ---- */

static void each_thread_does_its_work(void **state)
{
    static const struct {
        enum sandbox_role role;
        void (*what)(void);
    } cases[] = {
        {SANDBOX_BASE, open_file},  {SANDBOX_BASE, transfer},     {SANDBOX_BASE, start_thread},
        {SANDBOX_IO, transfer},     {SANDBOX_IO, wait_a_little},  {SANDBOX_VCPU, transfer},
        {SANDBOX_VCPU, wait_a_little}, {SANDBOX_LEASE, wait_a_little}, {SANDBOX_BASE, fork_by_clone3},
    };
    char text[256];
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        int status = attempt((struct attempt){.role = cases[i].role, .what = cases[i].what}, text);
        if (status != DONE)
            fail_msg("case %zu ended with %d: %s", i, status, text);
    }
}

static void what_is_not_its_work_ends_it(void **state)
{
    static const struct {
        enum sandbox_role role;
        void (*what)(void);
        int number;
        bool also_sanitized; /* the sanitizers' runtimes need no such call */
    } cases[] = {
        {SANDBOX_BASE, run_program, SYS_execve, false},  {SANDBOX_BASE, mount_something, SYS_mount, true},
        {SANDBOX_BASE, open_network, SYS_socket, true},  {SANDBOX_BASE, become_tracer, SYS_process_vm_writev, true},
        {SANDBOX_BASE, signal_other, SYS_tgkill, true},  {SANDBOX_IO, open_file, SYS_openat, false},
        {SANDBOX_VCPU, open_file, SYS_openat, false},    {SANDBOX_VCPU, open_network, SYS_socket, true},
        {SANDBOX_IO, mount_something, SYS_mount, true},  {SANDBOX_LEASE, transfer, SYS_eventfd2, true},
        {SANDBOX_VCPU, type_into_terminal, SYS_ioctl, false}, {SANDBOX_BASE, fork_by_clone, SYS_clone, false},
    };
    char text[256], expected[64];
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        if (sandbox_is_widened() && !cases[i].also_sanitized)
            continue;
        int status = attempt((struct attempt){.role = cases[i].role, .what = cases[i].what}, text);
        if (status != SANDBOX_STATUS)
            fail_msg("case %zu ended with %d: %s", i, status, text);
        snprintf(expected, sizeof(expected), " syscall=%d\n", cases[i].number);
        assert_non_null(strstr(text, "<3>sandbox-violation thread="));
        assert_non_null(strstr(text, expected));
        if (cases[i].role != SANDBOX_BASE)
            assert_non_null(strstr(text, "thread=probe "));
    }
}

/* While it starts a thread the C library blocks all signals: there is nobody to say it, and the kernel ends it. */
static void blocked_signals_do_not_help(void **state)
{
    char text[256];
    (void)state;
    if (sandbox_is_widened()) {
        print_message("a sanitizer's own threads need more than the sandbox of other builds gives\n");
        skip();
    }
    assert_int_equal(attempt((struct attempt){.role = SANDBOX_VCPU, .what = start_thread}, text), -SIGSYS);
}

static void log_and_off_refuse_nothing(void **state)
{
    char text[256];
    (void)state;
    assert_int_equal(attempt((struct attempt){SANDBOX_LOG, SANDBOX_VCPU, open_network, NULL}, text), DONE);
    assert_int_equal(attempt((struct attempt){SANDBOX_OFF, SANDBOX_VCPU, open_network, NULL}, text), DONE);
    assert_string_equal(text, "");
}

static void modes_have_words(void **state)
{
    enum sandbox_mode mode = SANDBOX_ON;
    (void)state;
    assert_int_equal(sandbox_parse_mode("log", &mode), 0);
    assert_int_equal(mode, SANDBOX_LOG);
    assert_int_equal(sandbox_parse_mode("maybe", &mode), -EINVAL);
    assert_int_equal(mode, SANDBOX_LOG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_thread_does_its_work),
        cmocka_unit_test(what_is_not_its_work_ends_it),
        cmocka_unit_test(blocked_signals_do_not_help),
        cmocka_unit_test(log_and_off_refuse_nothing),
        cmocka_unit_test(modes_have_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
