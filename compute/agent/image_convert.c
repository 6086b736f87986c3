/* qemu-img behind walls; see image_convert.h. The checks are in image_check.c.
 *
 * A process is forked for each run; between fork and exec it is alone and single-threaded, and builds its walls itself,
 * each step with the rights that the next one gives up. What it cannot build ends it, with the reason on standard error. */
#include "compute/agent/image_convert.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>

#include "common/bytes.h"
#include "common/file.h"

#define WALLS_FAILED 119 /* exit status: the walls could not be built */
#define ERROR_BYTES_MAX 4096u
#define ROOT_OPTIONS "size=1m,nr_inodes=256,mode=0755"
#define SOURCE "/in"
#define TARGET "/out"

/* One run of the program. */
struct run {
    const struct image_convert *c;
    const char *const *argv;
    uint64_t size_bytes; /* of the target; 0: it is not shown */
    int out, err;        /* the program's ends */
};

/* ---- between fork and exec ---- */

static _Noreturn void give_up(const char *what)
{
    dprintf(STDERR_FILENO, "cannot build the walls around qemu-img: %s: %s\n", what, strerror(errno));
    _exit(WALLS_FAILED);
}

static void must(int r, const char *what)
{
    if (r < 0)
        give_up(what);
}

static void limit(int which, rlim_t value)
{
    struct rlimit now;
    if (getrlimit(which, &now) == 0)
        now.rlim_max = now.rlim_cur = MIN(now.rlim_max, value);
    must(setrlimit(which, &now), "limits");
}

/* Show @path at @place under the new root. */
static void show(const char *root, const char *path, const char *place, bool directory, bool writable)
{
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | (writable ? 0 : MOUNT_ATTR_RDONLY) |
                                          (directory ? 0 : MOUNT_ATTR_NOEXEC)};
    char at[512];
    int fd = open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (directory ? AT_RECURSIVE : 0));
    must(fd, path);
    must(mount_setattr(fd, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof(attr)), path);
    snprintf(at, sizeof(at), "%s%s", root, place);
    if (directory) {
        must(mkdir(at, 0755), place);
    } else {
        int made = open(at, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0400);
        must(made, place);
        close(made);
    }
    must(move_mount(fd, "", AT_FDCWD, at, MOVE_MOUNT_F_EMPTY_PATH), place);
}

/* /lib and its like: links into /usr on a merged system, directories of their own on an older one. */
static void show_top(const char *root, const char *path)
{
    char link[128], at[512];
    struct stat st;
    ssize_t n = readlink(path, link, sizeof(link) - 1);
    if (n > 0) {
        link[n] = '\0';
        snprintf(at, sizeof(at), "%s%s", root, path);
        must(symlink(link, at), path);
    } else if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) {
        show(root, path, path, true, false);
    }
}

static void files_hide(const struct run *run)
{
    static const char *const tops[] = {"/lib", "/lib64", "/lib32", "/libx32", "/bin"};
    const char *root = run->c->root;
    must(unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS), "namespaces");
    must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "mounts of its own");
    must(mount("tmpfs", root, "tmpfs", MS_NOSUID, ROOT_OPTIONS), "root");
    show(root, "/usr", "/usr", true, false);
    for (size_t i = 0; i < ARRAY_SIZE(tops); i++)
        show_top(root, tops[i]);
    show(root, run->c->source, SOURCE, false, false);
    if (run->size_bytes > 0)
        show(root, run->c->target, TARGET, false, true);
    must(mount(NULL, root, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID, NULL), "root");
    must(chdir(root), "root");
    must((int)syscall(SYS_pivot_root, ".", "."), "root");
    must(umount2(".", MNT_DETACH), "root");
    must(chdir("/"), "root");
}

static void user_become(uid_t user)
{
    for (unsigned long c = 0; prctl(PR_CAPBSET_READ, c, 0, 0, 0) >= 0; c++)
        must(prctl(PR_CAPBSET_DROP, c, 0, 0, 0), "capabilities");
    must(setgroups(0, NULL), "groups");
    must(setresgid(user, user, user), "group");
    must(setresuid(user, user, user), "user");
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "privileges");
    must(prctl(PR_SET_PDEATHSIG, SIGKILL), "end with its parent"); /* becoming another user takes that away: after it */
    if (setresuid(0, 0, 0) == 0) {
        errno = EPERM;
        give_up("it is still possible to become root again");
    }
}

/* It needs threads, and no processes: one that it left behind could write to the image when that has been looked at. What the C
 * library asks for instead of clone(2) cannot be looked into, and is answered as by a kernel that does not have it. */
static int processes_forbid(scmp_filter_ctx filter)
{
    const struct scmp_arg_cmp process = {.arg = 0, .op = SCMP_CMP_MASKED_EQ, .datum_a = CLONE_THREAD, .datum_b = 0};
    int r = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(fork), 0);
    if (r == 0)
        r = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(vfork), 0);
    if (r == 0)
        r = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(clone), 1, process);
    return r == 0 ? seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0) : r;
}

int image_convert_forbid_calls(void)
{
    static const int calls[] = {
        SCMP_SYS(mount),          SCMP_SYS(umount2),         SCMP_SYS(pivot_root),    SCMP_SYS(move_mount),
        SCMP_SYS(open_tree),      SCMP_SYS(fsopen),          SCMP_SYS(fsmount),       SCMP_SYS(fsconfig),
        SCMP_SYS(mount_setattr),  SCMP_SYS(unshare),         SCMP_SYS(setns),         SCMP_SYS(chroot),
        SCMP_SYS(ptrace),         SCMP_SYS(process_vm_readv), SCMP_SYS(process_vm_writev), SCMP_SYS(bpf),
        SCMP_SYS(perf_event_open), SCMP_SYS(keyctl),         SCMP_SYS(add_key),       SCMP_SYS(request_key),
        SCMP_SYS(init_module),    SCMP_SYS(finit_module),    SCMP_SYS(delete_module), SCMP_SYS(kexec_load),
        SCMP_SYS(userfaultfd),    SCMP_SYS(io_uring_setup),  SCMP_SYS(pidfd_open),    SCMP_SYS(pidfd_getfd),
        SCMP_SYS(open_by_handle_at), SCMP_SYS(name_to_handle_at), SCMP_SYS(memfd_create), SCMP_SYS(swapon),
        SCMP_SYS(reboot),         SCMP_SYS(sethostname),     SCMP_SYS(clock_settime), SCMP_SYS(settimeofday),
        SCMP_SYS(acct),           SCMP_SYS(quotactl),        SCMP_SYS(syslog),        SCMP_SYS(personality),
    };
    const struct scmp_arg_cmp other = {.arg = 0, .op = SCMP_CMP_NE, .datum_a = AF_UNIX};
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
    int r = filter == NULL ? -ENOMEM : seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(socket), 1, other);
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(calls); i++)
        r = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), calls[i], 0);
    if (r == 0)
        r = processes_forbid(filter);
    if (r == 0)
        r = seccomp_load(filter);
    seccomp_release(filter);
    return r;
}

static _Noreturn void become_program(const struct run *run, pid_t parent)
{
    static const char *const environment[] = {"LC_ALL=C", "PATH=/usr/bin", NULL};
    must(prctl(PR_SET_PDEATHSIG, SIGKILL), "end with its parent");
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    must(null, "/dev/null");
    must(dup2(run->err, STDERR_FILENO), "output");
    must(dup2(null, STDIN_FILENO), "input");
    must(dup2(run->out, STDOUT_FILENO), "output");
    files_hide(run);
    limit(RLIMIT_CORE, 0);
    limit(RLIMIT_NOFILE, 64);
    limit(RLIMIT_NPROC, 128);
    limit(RLIMIT_CPU, IMAGE_CONVERT_CPU_S);
    limit(RLIMIT_FSIZE, (rlim_t)MAX(run->size_bytes, UINT64_C(1)));
    user_become(run->c->user);
    if (getppid() != parent)
        _exit(WALLS_FAILED);
    limit(RLIMIT_AS, IMAGE_CONVERT_MEMORY_BYTES_MAX);
    errno = -image_convert_forbid_calls();
    must(-errno, "system calls");
    syscall(SYS_close_range, 3u, ~0u, 0);
    execve(IMAGE_CONVERT_PROGRAM, (char *const *)(uintptr_t)run->argv, (char *const *)(uintptr_t)environment);
    give_up("execute " IMAGE_CONVERT_PROGRAM);
}

/* ---- watching it ---- */

struct output {
    int fd;
    struct bytes_writer text;
    size_t most;
};

static uint64_t now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return (uint64_t)t.tv_sec;
}

/* "    (12.34/100%)\r": the last one in @text. */
static int permille_of(const struct bytes_writer *text)
{
    const char *at = (const char *)text->data, *found = NULL;
    unsigned whole, part;
    for (const char *p = at; p != NULL && (p = memchr(p, '(', text->size - (size_t)(p - at))) != NULL; p++)
        found = p;
    return found != NULL && sscanf(found, "(%3u.%1u", &whole, &part) == 2 && whole <= 100 ? (int)(whole * 10 + part) : -1;
}

/* More of one output. False: it has ended. */
static bool take(struct output *o)
{
    char buffer[4096];
    ssize_t n = read(o->fd, buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR)
        return true;
    if (n > 0 && o->text.size + (size_t)n <= o->most)
        bytes_put(&o->text, buffer, (size_t)n);
    if (n <= 0)
        close_fd(&o->fd);
    return n > 0;
}

/* Until both outputs have ended. -ETIME: silent for too long. */
static int watch(const struct run *run, struct output *out, struct output *err, bool progress)
{
    uint64_t heard_s = now_s();
    int told = -1;
    while (out->fd >= 0 || err->fd >= 0) {
        struct pollfd polls[] = {{.fd = out->fd, .events = POLLIN}, {.fd = err->fd, .events = POLLIN}};
        int n = poll(polls, ARRAY_SIZE(polls), 1000);
        if (n < 0 && errno != EINTR)
            return -errno;
        if (now_s() - heard_s > IMAGE_CONVERT_SILENCE_S)
            return -ETIME;
        if (n <= 0)
            continue;
        if (polls[0].revents != 0)
            take(out);
        if (polls[1].revents != 0)
            take(err);
        int permille = progress ? permille_of(&out->text) : -1;
        if (permille > told) {
            heard_s = now_s();
            told = permille;
            if (run->c->progress != NULL)
                run->c->progress((unsigned)permille, run->c->arg);
        }
        if (progress)
            out->text.size = 0;
    }
    return 0;
}

/* What it said last, as one line that may be shown. */
static void last_words(const struct output *o, char *text, size_t size)
{
    const char *data = (const char *)o->text.data;
    size_t end = o->text.size, begin;
    while (end > 0 && (data[end - 1] == '\n' || data[end - 1] == '\r'))
        end--;
    for (begin = end; begin > 0 && data[begin - 1] != '\n'; begin--)
        ;
    static const char prefix[] = "qemu-img: ";
    if (end - begin > strlen(prefix) && memcmp(data + begin, prefix, strlen(prefix)) == 0)
        begin += strlen(prefix);
    size_t n = MIN(end - begin, size - 1);
    if (n > 0)
        memcpy(text, data + begin, n);
    text[n] = '\0';
    for (size_t i = 0; i < n; i++)
        text[i] = text[i] < ' ' || text[i] > '~' ? '?' : text[i];
}

static int judge(int status, const struct output *said, struct error *err)
{
    char words[300];
    last_words(said, words, sizeof(words));
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == WALLS_FAILED)
        return error_set(err, -EPERM, ERROR_INTERNAL, "%s", words);
    if (WIFSIGNALED(status) && (WTERMSIG(status) == SIGXCPU || WTERMSIG(status) == SIGKILL))
        return error_set(err, -ETIME, ERROR_TIMEOUT, "the conversion was ended: it took more than %u s of processor time, or more "
                         "memory than there is", IMAGE_CONVERT_CPU_S);
    if (WIFSIGNALED(status))
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the conversion ended with signal %d; the file is damaged, or made to do harm",
                         WTERMSIG(status));
    if (strstr(words, "No space left") != NULL)
        return error_set(err, -ENOSPC, ERROR_NO_SPACE, "no room on the host for the converted disk; free some, or use another host");
    if (strstr(words, "annot allocate memory") != NULL)
        return error_set(err, -ENOMEM, ERROR_NOT_SUPPORTED, "the conversion wants more than %u MiB of memory, which no sound file needs",
                         (unsigned)(IMAGE_CONVERT_MEMORY_BYTES_MAX >> 20));
    return error_set(err, -EBADMSG, ERROR_CHECKSUM, "qemu-img says: %s", words);
}

/* Run it; what it writes goes to @out (NULL: it is progress). */
static int run_program(struct run *run, struct bytes_writer *ret_out, struct error *err)
{
    struct output out = {.fd = -1, .most = ret_out != NULL ? IMAGE_CONVERT_INFO_BYTES_MAX : ERROR_BYTES_MAX};
    struct output said = {.fd = -1, .most = ERROR_BYTES_MAX};
    int pipes[2][2], status = 0;
    if (access(IMAGE_CONVERT_PROGRAM, X_OK) < 0)
        return error_set(err, -ENOENT, ERROR_NOT_SUPPORTED, "%s is missing on this host: install the package qemu-utils, or upload "
                         "the image as raw", IMAGE_CONVERT_PROGRAM);
    if (geteuid() != 0)
        return error_set(err, -EPERM, ERROR_NOT_SUPPORTED, "only an agent that runs as root can build the walls that a conversion "
                         "needs; upload the image as raw");
    if (pipe2(pipes[0], O_CLOEXEC) < 0)
        return error_errno(err, -errno, "cannot make a pipe");
    if (pipe2(pipes[1], O_CLOEXEC) < 0) {
        close(pipes[0][0]);
        close(pipes[0][1]);
        return error_errno(err, -errno, "cannot make a pipe");
    }
    run->out = pipes[0][1];
    run->err = pipes[1][1];
    pid_t parent = getpid(), pid = fork();
    if (pid == 0)
        become_program(run, parent);
    close(pipes[0][1]);
    close(pipes[1][1]);
    out.fd = pipes[0][0];
    said.fd = pipes[1][0];
    int r = pid < 0 ? error_errno(err, -errno, "cannot start a process") : watch(run, &out, &said, ret_out == NULL);
    if (pid >= 0 && r < 0)
        kill(pid, SIGKILL);
    if (pid >= 0 && waitpid(pid, &status, 0) == pid && r == 0)
        r = judge(status, &said, err);
    else if (r == -ETIME)
        error_set(err, r, ERROR_TIMEOUT, "the conversion made no progress for %u s", IMAGE_CONVERT_SILENCE_S);
    close_fd(&out.fd);
    close_fd(&said.fd);
    if (r == 0 && ret_out != NULL)
        *ret_out = out.text;
    else
        bytes_writer_finish(&out.text);
    bytes_writer_finish(&said.text);
    return r;
}

/* ---- the two runs ---- */

static char *source_options(const struct image_convert *c)
{
    const char *driver = image_format_desc.names[c->format];
    if (c->size == 0)
        return xasprintf("driver=%s,file.driver=file,file.filename=" SOURCE ",file.locking=off", driver);
    return xasprintf("driver=%s,file.driver=raw,file.offset=%llu,file.size=%llu,file.file.driver=file,file.file.filename=" SOURCE
                     ",file.file.locking=off", driver, (unsigned long long)c->offset, (unsigned long long)c->size);
}

static int header_check(const struct image_convert *c, struct error *err)
{
    uint8_t header[IMAGE_CONVERT_HEADER_BYTES];
    CLEANUP_FD int fd = open(c->source, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, -errno, "cannot open %s", c->source);
    size_t want = c->size != 0 ? (size_t)MIN(c->size, (uint64_t)sizeof(header)) : sizeof(header);
    ssize_t n = pread(fd, header, want, (off_t)c->offset);
    if (n < 0)
        return error_errno(err, -errno, "cannot read %s", c->source);
    return image_convert_check_header(c->format, header, (size_t)n, err);
}

static int info(const struct image_convert *c, const char *options, uint64_t *ret_size, struct error *err)
{
    const char *const argv[] = {"qemu-img", "info", "--output=json", "--image-opts", options, NULL};
    struct run run = {.c = c, .argv = argv};
    struct bytes_writer out = {0};
    int r = run_program(&run, &out, err);
    if (r == 0)
        r = image_convert_check_info(c->format, (const char *)out.data, out.size, ret_size, err);
    bytes_writer_finish(&out);
    return r;
}

static int target_make(const struct image_convert *c, uint64_t size, struct error *err)
{
    unlink(c->target);
    CLEANUP_FD int fd = open(c->target, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)size) < 0 || fchown(fd, c->user, c->user) < 0)
        return error_errno(err, -errno, "cannot make %s", c->target);
    return 0;
}

int image_convert_run(const struct image_convert *c, uint64_t *ret_size_bytes, struct error *err)
{
    CLEANUP_FREE char *options = source_options(c);
    const char *const argv[] = {"qemu-img", "convert", "-p", "-n", "--target-is-zero", "-S", "4k", "--image-opts",
                                "--target-image-opts", options,
                                "driver=raw,file.driver=file,file.filename=" TARGET ",file.locking=off", NULL};
    uint64_t size = 0;
    int r = header_check(c, err);
    if (r == 0)
        r = file_make_directories(c->root, 0700, err);
    if (r == 0 && chmod(c->source, 0444) < 0) /* in a directory that is closed to all */
        r = error_errno(err, -errno, "cannot open %s to the conversion", c->source);
    if (r == 0)
        r = info(c, options, &size, err);
    if (r == 0)
        r = target_make(c, size, err);
    if (r < 0)
        return r;
    struct run run = {.c = c, .argv = argv, .size_bytes = size};
    r = run_program(&run, NULL, err);
    if (r == 0 && chown(c->target, 0, 0) < 0)
        r = error_errno(err, -errno, "cannot take back %s", c->target);
    if (r == 0)
        *ret_size_bytes = size;
    return r;
}
