/* The lists, compiled to seccomp programs by libseccomp once, and loaded thread by thread.
 *
 * libseccomp writes a program only to a file descriptor, so it goes through a memfd. The programs' default is a trap:
 * the handler says which thread and which call, and ends the process; where the signal is blocked the kernel ends it.
 * A call that a list cannot name by its number alone (ioctl, socket, prctl, clone) is allowed for given arguments. */
#include "compute/vmm/sandbox.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/log.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

struct sandbox {
    struct sock_fprog programs[SANDBOX_ROLES];
};

#define C(name) SCMP_SYS(name)

/* Every thread: memory, waiting, the end. */
static const int calls_common[] = {
    C(brk),
    C(clock_gettime),
    C(clock_nanosleep),
    C(exit),
    C(exit_group),
    C(futex),
    C(getpid),
    C(gettid),
    C(madvise),
    C(mmap),
    C(mprotect),
    C(mremap),
    C(munmap),
    C(nanosleep),
    C(restart_syscall),
    C(rseq),
    C(rt_sigprocmask),
    C(rt_sigreturn),
    C(sched_yield),
    C(set_robust_list),
    C(write),
    C(writev),
};

/* Whatever serves a guest: transfers on descriptors that are open. */
static const int calls_device[] = {
    C(close),
    C(dup),
    C(connect),
    C(epoll_ctl),
    C(eventfd2),
    C(fallocate),
    C(fcntl),
    C(fdatasync),
    C(fstat),
    C(fsync),
    C(ftruncate),
    C(getrandom),
    C(getsockopt),
    C(io_uring_enter),
    C(lseek),
    C(membarrier),
    C(newfstatat),
    C(poll),
    C(ppoll),
    C(pread64),
    C(preadv),
    C(preadv2),
    C(pwrite64),
    C(pwritev),
    C(pwritev2),
    C(read),
    C(readv),
    C(recvfrom),
    C(recvmsg),
    C(sendmsg),
    C(sendto),
    C(setsockopt),
    C(shutdown),
    C(statx),
    C(timerfd_settime),
};

/* Threads that wait for descriptors. */
static const int calls_io[] = {
    C(accept4),
    C(epoll_pwait),
    C(epoll_wait),
};

/* Control: configuration, hot plug, snapshots, threads. */
static const int calls_base[] = {
    C(access),
    C(bind),
    C(chmod),
    C(epoll_create1),
    C(faccessat),
    C(faccessat2),
    C(fchmod),
    C(fchmodat),
    C(fchown),
    C(flock),
    C(fstatfs),
    C(getcwd),
    C(getdents64),
    C(getegid),
    C(geteuid),
    C(getgid),
    C(getgroups),
    C(getresgid),
    C(getresuid),
    C(getrlimit),
    C(getsockname),
    C(getuid),
    C(io_uring_register),
    C(io_uring_setup),
    C(linkat),
    C(listen),
    C(mbind),
    C(memfd_create),
    C(mkdir),
    C(mkdirat),
    C(open),
    C(openat),
    C(pipe2),
    C(prlimit64),
    C(pselect6),
    C(readlink),
    C(readlinkat),
    C(rename),
    C(renameat),
    C(renameat2),
    C(rt_sigaction),
    C(rt_sigtimedwait),
    C(sched_getaffinity),
    C(sched_setaffinity),
    C(seccomp),
    C(sigaltstack),
    C(signalfd4),
    C(stat),
    C(lstat),
    C(statfs),
    C(sync_file_range),
    C(sysinfo),
    C(timerfd_create),
    C(umask),
    C(uname),
    C(unlink),
    C(unlinkat),
    C(utimensat),
    C(copy_file_range),
    C(sendfile),
    C(dup2),
    C(dup3),
    C(fadvise64),
    C(set_tid_address),
    C(get_robust_list),
    C(getppid),
};

#ifdef SANITIZED
/* The leak checker stops the process from a clone of its own; the symbolizer is a program. */
static const int calls_sanitizer[] = {
    C(arch_prctl), C(clone), C(execve), C(getpgrp), C(gettimeofday), C(kill), C(pipe), C(prctl), C(process_vm_readv),
    C(ptrace), C(personality), C(sched_getaffinity), C(sigaltstack), C(socketpair), C(time), C(wait4), C(readlink),
    C(getrusage), C(open), C(openat), C(getdents), C(getdents64), C(read), C(close), C(fstat), C(newfstatat), C(stat), C(lseek),
    C(getuid), C(prlimit64), C(rt_sigaction), C(dup2), C(ioctl), C(fcntl), C(vfork), C(access),
};
#endif

static int list_add(scmp_filter_ctx filter, const int *calls, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        int code = seccomp_rule_add(filter, SCMP_ACT_ALLOW, calls[i], 0);
        if (code < 0 && code != -EEXIST)
            return code;
    }
    return 0;
}
#define LIST_ADD(filter, calls) list_add(filter, calls, ARRAY_SIZE(calls))

/* Requests by their kind (ioctl(2): bits 8 to 15): KVM's, block devices', and of the kind of terminals the taps' alone,
 * which are numbered from 192 on. Control: what isatty asks, cloning of files, and @faults, besides. */
static int ioctls_add(scmp_filter_ctx filter, enum sandbox_role role, bool faults)
{
    static const struct {
        scmp_datum_t mask, value;
        bool base_only;
    } allowed[] = {
        {0xff00, 0xae00, false}, {0xff00, 0x1200, false}, {0xffc0, 0x54c0, false},
        {0xffffffff, 0x5401, true}, {0xffffffff, 0x5402, true}, {0xffffffff, 0x541b, true},
        {0xff00, 0x9400, true},
    };
    int code = role == SANDBOX_BASE && faults
                   ? seccomp_rule_add(filter, SCMP_ACT_ALLOW, C(ioctl), 1, SCMP_A1(SCMP_CMP_MASKED_EQ, 0xff00, 0xaa00))
                   : 0;
    for (size_t i = 0; code == 0 && i < ARRAY_SIZE(allowed); i++)
        if (role == SANDBOX_BASE || !allowed[i].base_only)
            code = seccomp_rule_add(filter, SCMP_ACT_ALLOW, C(ioctl), 1,
                                    SCMP_A1(SCMP_CMP_MASKED_EQ, allowed[i].mask, allowed[i].value));
    return code;
}

/* The first argument, as seccomp_rule_add takes it. */
static struct scmp_arg_cmp equals(scmp_datum_t value)
{
    return (struct scmp_arg_cmp){.arg = 0, .op = SCMP_CMP_EQ, .datum_a = value};
}

/* prctl: a thread's name, and what confining itself needs. clone: threads of this process, no other kind; clone3, whose
 * flags are in memory, where no filter can look, is said not to exist, and then the C library takes clone. tgkill: kicks
 * of this process' own threads. */
static int arguments_add(scmp_filter_ctx filter, enum sandbox_role role, bool faults)
{
    static const int prctls[] = {PR_GET_NAME, PR_SET_NAME, PR_SET_NO_NEW_PRIVS, PR_SET_VMA, PR_SET_DUMPABLE};
    int code = 0;
    for (size_t i = 0; code == 0 && i < ARRAY_SIZE(prctls); i++)
        code = seccomp_rule_add(filter, SCMP_ACT_ALLOW, C(prctl), 1, equals((scmp_datum_t)prctls[i]));
    if (code == 0)
        code = seccomp_rule_add(filter, SCMP_ACT_ALLOW, C(tgkill), 1, equals((scmp_datum_t)getpid()));
    if (code == 0 && role != SANDBOX_LEASE)
        code = ioctls_add(filter, role, faults);
    if (code == 0 && role != SANDBOX_LEASE)
        code = seccomp_rule_add(filter, SCMP_ACT_ALLOW, C(socket), 1, equals(AF_UNIX));
    const struct scmp_arg_cmp thread = {
        .arg = 0, .op = SCMP_CMP_MASKED_EQ, .datum_a = CLONE_THREAD, .datum_b = CLONE_THREAD};
    if (code == 0 && role == SANDBOX_BASE)
        code = seccomp_rule_add(filter, SCMP_ACT_ALLOW, C(clone), 1, thread);
    if (code == 0 && role == SANDBOX_BASE)
        code = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), C(clone3), 0);
    return code;
}

/* Out of libseccomp's hands, through a memfd. */
static int program_export(scmp_filter_ctx filter, struct sock_fprog *ret_program)
{
    struct stat st;
    CLEANUP_FD int fd = memfd_create("sandbox", MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    int code = seccomp_export_bpf(filter, fd);
    if (code < 0)
        return code;
    if (fstat(fd, &st) < 0)
        return -errno;
    struct sock_filter *instructions = xcalloc(1, (size_t)st.st_size);
    if (pread(fd, instructions, (size_t)st.st_size, 0) != st.st_size) {
        free(instructions);
        return -EIO;
    }
    *ret_program = (struct sock_fprog){.len = (unsigned short)((size_t)st.st_size / sizeof(*instructions)),
                                       .filter = instructions};
    return 0;
}

static int program_make(enum sandbox_mode mode, enum sandbox_role role, bool faults, struct sock_fprog *ret_program)
{
    scmp_filter_ctx filter = seccomp_init(mode == SANDBOX_LOG ? SCMP_ACT_LOG : SCMP_ACT_TRAP);
    if (!filter)
        return -ENOMEM;
    /* A tree instead of a row: what every exit of a guest costs must not grow with the list. */
    int code = seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    if (code == 0)
        code = LIST_ADD(filter, calls_common);
    if (code == 0 && role != SANDBOX_LEASE)
        code = LIST_ADD(filter, calls_device);
    if (code == 0 && (role == SANDBOX_BASE || role == SANDBOX_IO))
        code = LIST_ADD(filter, calls_io);
    if (code == 0 && role == SANDBOX_BASE)
        code = LIST_ADD(filter, calls_base);
    if (code == 0)
        code = arguments_add(filter, role, faults);
#ifdef SANITIZED
    if (code == 0)
        code = LIST_ADD(filter, calls_sanitizer);
#endif
    if (code == 0)
        code = program_export(filter, ret_program);
    seccomp_release(filter);
    return code;
}

/* ---- violations ---- */

static char *number_put(char *at, unsigned value)
{
    char digits[12];
    unsigned n = 0;
    do
        digits[n++] = (char)('0' + value % 10);
    while ((value /= 10) != 0);
    while (n > 0)
        *at++ = digits[--n];
    return at;
}

/* Only calls that every list has; nothing that allocates or locks. */
static void on_violation(int signal_number UNUSED, siginfo_t *info, void *context UNUSED)
{
    char line[96] = "<3>sandbox-violation thread=", name[17] = "", *at = line + strlen(line);
    prctl(PR_GET_NAME, name);
    memcpy(at, name, strlen(name));
    at += strlen(name);
    memcpy(at, " syscall=", 9);
    at = number_put(at + 9, (unsigned)info->si_syscall);
    *at++ = '\n';
    ssize_t written UNUSED = write(STDERR_FILENO, line, (size_t)(at - line));
    _exit(SANDBOX_STATUS);
}

/* ---- the interface ---- */

/* Before it gives memory of a thread's heap back, glibc looks at /proc/sys/vm/overcommit_memory (malloc/arena.c, shrink_heap), in
 * whatever thread has freed it; most of ours may open nothing. So it keeps it: no heap becomes larger than this. */
enum { HEAP_BYTES_MAX = 64 << 20 };

int sandbox_create(enum sandbox_mode mode, bool faults, struct sandbox **ret_sandbox, struct error *err)
{
    if (mode == SANDBOX_OFF) {
        *ret_sandbox = NULL;
        return 0;
    }
    (void)mallopt(M_TRIM_THRESHOLD, HEAP_BYTES_MAX);
    struct sandbox *s = NEW(struct sandbox);
    struct sigaction action = {.sa_sigaction = on_violation, .sa_flags = SA_SIGINFO};
    int code = sigaction(SIGSYS, &action, NULL) < 0 ? -errno : 0;
    for (enum sandbox_role role = 0; code == 0 && role < SANDBOX_ROLES; role++)
        code = program_make(mode, role, faults, &s->programs[role]);
    if (code < 0) {
        sandbox_destroy(s);
        return error_errno(err, code, "cannot make the sandbox's filters");
    }
    *ret_sandbox = s;
    return 0;
}

void sandbox_destroy(struct sandbox *s)
{
    for (unsigned i = 0; s && i < SANDBOX_ROLES; i++)
        free(s->programs[i].filter);
    free(s);
}

int sandbox_enter(const struct sandbox *s, enum sandbox_role role, struct error *err)
{
    if (!s)
        return 0;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
        syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &s->programs[role]) != 0)
        return error_errno(err, -errno, "cannot enter the sandbox");
    return 0;
}

void sandbox_enter_or_end(const struct sandbox *s, enum sandbox_role role)
{
    struct error err;
    if (sandbox_enter(s, role, &err) < 0) {
        log_error("sandbox-not-entered", "error=\"%s\"", err.text);
        _exit(SANDBOX_STATUS);
    }
}

bool sandbox_is_widened(void)
{
#ifdef SANITIZED
    return true;
#else
    return false;
#endif
}

int sandbox_parse_mode(const char *word, enum sandbox_mode *ret_mode)
{
    static const char *const words[] = {[SANDBOX_ON] = "on", [SANDBOX_LOG] = "log", [SANDBOX_OFF] = "off"};
    for (unsigned i = 0; i < ARRAY_SIZE(words); i++)
        if (strcmp(word, words[i]) == 0) {
            *ret_mode = (enum sandbox_mode)i;
            return 0;
        }
    return -EINVAL;
}
