/* VMM processes; the header holds the proof that there is never a second one. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "compute/agent/vmm_process.h"

static int lock_file_open(const char *lock_path, int flags)
{
    struct stat st;
    int r, fd = open(lock_path, flags | O_RDWR | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    if (fstat(fd, &st) == 0 && st.st_uid == geteuid() && st.st_nlink <= 1)
        return fd;
    r = -EPERM; /* another's, who could put it away while it is locked */
    close(fd);
    return r;
}

int vmm_process_lock(const char *lock_path, int *ret_fd, struct error *err)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int fd = lock_file_open(lock_path, O_CREAT);
    if (fd < 0)
        return error_errno(err, fd, "cannot open %s", lock_path);
    if (fcntl(fd, F_OFD_SETLK, &lock) < 0) {
        int r = errno == EACCES ? -EAGAIN : -errno;
        close(fd);
        return error_errno(err, r, "cannot lock %s", lock_path);
    }
    *ret_fd = fd;
    return 0;
}

static bool id_parse(const char *text, struct vmm_process_id *ret_id)
{
    int pid;
    struct vmm_process_id id = {.pid = 0};
    if (strchr(text, '\n') == NULL || /* not whole yet */
        sscanf(text, "%d %" SCNu64 " %39s %" SCNu64, &pid, &id.start_ticks, id.boot_id, &id.epoch) != 4 || pid <= 1)
        return false;
    id.pid = pid;
    *ret_id = id;
    return true;
}

int vmm_process_look(const char *lock_path, struct vmm_process_id *ret_id, struct error *err)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    char text[128] = "";
    int fd = lock_file_open(lock_path, 0), r = 1;
    if (fd == -ENOENT)
        return 0;
    if (fd < 0)
        return error_errno(err, fd, "cannot open %s", lock_path);
    if (fcntl(fd, F_OFD_GETLK, &lock) < 0)
        r = error_errno(err, -errno, "cannot ask who locks %s", lock_path);
    else if (lock.l_type == F_UNLCK)
        r = 0;
    else if (pread(fd, text, sizeof(text) - 1, 0) < 0)
        r = error_errno(err, -errno, "cannot read %s", lock_path);
    else if (!id_parse(text, ret_id))
        r = -EAGAIN;
    close(fd);
    return r;
}

bool vmm_process_named(const char *lock_path, struct vmm_process_id *ret_id)
{
    char text[128] = "";
    int fd = lock_file_open(lock_path, 0);
    bool named = fd >= 0 && pread(fd, text, sizeof(text) - 1, 0) > 0 && id_parse(text, ret_id);
    if (fd >= 0)
        close(fd);
    return named;
}

/* Field 22 of a stat line: the name in field 2 may hold blanks and brackets, so count from its last bracket. Used in
 * a forked child too, and so calls nothing that allocates or locks. */
static bool stat_field(const char *text, unsigned field, uint64_t *ret_value)
{
    const char *at = strrchr(text, ')');
    uint64_t value = 0;
    if (at == NULL)
        return false;
    for (unsigned i = 2; i < field; i++) {
        at = strchr(at, ' ');
        if (at == NULL)
            return false;
        at++;
    }
    if (*at < '0' || *at > '9')
        return false;
    for (; *at >= '0' && *at <= '9'; at++)
        value = value * 10 + (uint64_t)(*at - '0');
    *ret_value = value;
    return true;
}

static bool stat_read(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);
    if (fd >= 0)
        close(fd);
    if (n <= 0)
        return false;
    text[n] = '\0';
    return true;
}

static bool start_ticks(pid_t pid, uint64_t *ret_ticks)
{
    char path[32], text[1024];
    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    return stat_read(path, text, sizeof(text)) && stat_field(text, 22, ret_ticks);
}

/* Digits of @value at the end of what @out points to; for the child, where snprintf is not allowed
 * (signal-safety(7)). */
static char *put_number(char *out, uint64_t value)
{
    char digits[24];
    unsigned n = 0;
    do
        digits[n++] = (char)('0' + value % 10);
    while ((value /= 10) != 0);
    while (n > 0)
        *out++ = digits[--n];
    return out;
}

static void child_write_id(int lock_fd, const char *boot_id, uint64_t epoch)
{
    char text[1024], line[128], *at = line;
    uint64_t ticks;
    size_t boot_length = strlen(boot_id);
    if (!stat_read("/proc/self/stat", text, sizeof(text)) || !stat_field(text, 22, &ticks) || boot_length > 39)
        _exit(VMM_PROCESS_EXEC_FAILED);
    at = put_number(at, (uint64_t)getpid());
    *at++ = ' ';
    at = put_number(at, ticks);
    *at++ = ' ';
    memcpy(at, boot_id, boot_length);
    at += boot_length;
    *at++ = ' ';
    at = put_number(at, epoch);
    *at++ = '\n';
    if (ftruncate(lock_fd, 0) < 0 || pwrite(lock_fd, line, (size_t)(at - line), 0) != at - line)
        _exit(VMM_PROCESS_EXEC_FAILED);
}

/* The group was made a moment ago. If it cannot be entered all the same, the guest is worth more than its limits. */
static void child_enter_cgroup(const char *procs, int log_fd)
{
    static const char failed[] = "<4>vmm-cgroup the VMM runs outside its cgroup, without limits\n";
    int fd = open(procs, O_WRONLY | O_CLOEXEC);
    if (fd >= 0 && write(fd, "0", 1) == 1)
        return; /* closed with the rest */
    ssize_t unused UNUSED = write(log_fd, failed, sizeof(failed) - 1);
}

/* In the child, between fork and exec: only calls of signal-safety(7). */
static _Noreturn void child_run(const struct vmm_process_spawn *spawn, char *const argv[], int lock_fd, int log_fd,
                                int null_fd)
{
    static const char failed[] = "<3>vmm-exec-failed its program cannot be executed\n";
    struct sigaction action = {.sa_handler = SIG_DFL};
    sigset_t none;
    for (int i = 1; i < NSIG; i++)
        sigaction(i, &action, NULL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    child_write_id(lock_fd, spawn->boot_id, spawn->epoch);
    if (spawn->cgroup != NULL)
        child_enter_cgroup(spawn->cgroup, log_fd);
    /* The three were opened above 2 (the agent's own 0, 1, 2 are always open), but one of them may be number 3. */
    if (dup2(null_fd, 0) < 0 || dup2(log_fd, 1) < 0 || dup2(log_fd, 2) < 0)
        _exit(VMM_PROCESS_EXEC_FAILED);
    if (lock_fd == VMM_PROCESS_LOCK_FD ? fcntl(lock_fd, F_SETFD, 0) < 0 : dup2(lock_fd, VMM_PROCESS_LOCK_FD) < 0)
        _exit(VMM_PROCESS_EXEC_FAILED);
    syscall(SYS_close_range, VMM_PROCESS_LOCK_FD + 1, ~0u, 0);
    if (chdir("/") == 0)
        execv(spawn->program, argv);
    ssize_t unused UNUSED = write(2, failed, sizeof(failed) - 1);
    _exit(VMM_PROCESS_EXEC_FAILED);
}

static int log_open(const char *path)
{
    struct stat st;
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    if (fstat(fd, &st) == 0 && st.st_size > VMM_PROCESS_LOG_BYTES_MAX && ftruncate(fd, 0) < 0) {
        int r = -errno;
        close(fd);
        return r;
    }
    return fd;
}

static int pidfd_open_cloexec(pid_t pid)
{
    int fd = (int)syscall(SYS_pidfd_open, pid, 0); /* close-on-exec by itself, pidfd_open(2) */
    return fd < 0 ? -errno : fd;
}

int vmm_process_start(const struct vmm_process_spawn *spawn, int lock_fd, struct vmm_process_id *ret_id,
                      int *ret_pidfd, struct error *err)
{
    char user[16];
    char *argv[13] = {(char *)spawn->program, (char *)"--config", (char *)spawn->config_path};
    unsigned argc = 3;
    snprintf(user, sizeof(user), "%u", spawn->user);
    if (spawn->user != 0) {
        argv[argc++] = (char *)"--user";
        argv[argc++] = user;
    }
    if (spawn->incoming != NULL) {
        argv[argc++] = (char *)"--incoming";
        argv[argc++] = (char *)spawn->incoming;
    }
    if (spawn->incoming_disks != NULL) {
        argv[argc++] = (char *)"--incoming-disks";
        argv[argc++] = (char *)spawn->incoming_disks;
    }
    if (spawn->handed_over)
        argv[argc++] = (char *)"--handed-over";
    if (spawn->control != NULL) {
        argv[argc++] = (char *)"--control";
        argv[argc++] = (char *)spawn->control;
    }
    CLEANUP(close_fd) int log_fd = log_open(spawn->log_path);
    if (log_fd < 0)
        return error_errno(err, log_fd, "cannot open %s", spawn->log_path);
    CLEANUP(close_fd) int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (null_fd < 0)
        return error_errno(err, -errno, "cannot open /dev/null");
    if (access(spawn->program, X_OK) < 0)
        return error_errno(err, -errno, "cannot execute %s%s", spawn->program,
                           spawn->argv == NULL ? "; give its place with --vmm" : "");
    pid_t pid = fork();
    if (pid < 0)
        return error_errno(err, -errno, "cannot start a process");
    if (pid == 0)
        child_run(spawn, spawn->argv != NULL ? (char *const *)(uintptr_t)spawn->argv : argv, lock_fd, log_fd, null_fd);
    /* It is our child and not yet waited for: the number is its own, even if it has ended already. */
    int pidfd = pidfd_open_cloexec(pid);
    struct vmm_process_id id = {.pid = pid, .epoch = spawn->epoch};
    snprintf(id.boot_id, sizeof(id.boot_id), "%s", spawn->boot_id);
    if (pidfd < 0 || !start_ticks(pid, &id.start_ticks)) {
        int r = pidfd < 0 ? pidfd : -ESRCH, status;
        kill(pid, SIGKILL);
        waitpid(pid, &status, 0);
        if (pidfd >= 0)
            close(pidfd);
        return error_errno(err, r, "cannot watch the process of %s", spawn->program);
    }
    *ret_id = id;
    *ret_pidfd = pidfd;
    return 0;
}

int vmm_process_open(const struct vmm_process_id *id, const char *boot_id, int *ret_pidfd)
{
    uint64_t ticks;
    if (strcmp(id->boot_id, boot_id) != 0)
        return -ESRCH;
    int fd = pidfd_open_cloexec(id->pid);
    if (fd < 0)
        return fd;
    /* Read after the pidfd was made: it is then the start time of the very process that the pidfd is of. */
    if (!start_ticks(id->pid, &ticks) || ticks != id->start_ticks) {
        close(fd);
        return -ESRCH;
    }
    *ret_pidfd = fd;
    return 0;
}

int vmm_process_user(pid_t pid, uid_t *ret_user)
{
    char path[32], text[1024];
    unsigned user;
    snprintf(path, sizeof(path), "/proc/%d/status", pid);
    const char *at = stat_read(path, text, sizeof(text)) ? strstr(text, "\nUid:") : NULL;
    if (at == NULL || sscanf(at, " Uid: %u", &user) != 1)
        return -ESRCH;
    *ret_user = user;
    return 0;
}

int vmm_process_signal(int pidfd, int signal_number)
{
    return syscall(SYS_pidfd_send_signal, pidfd, signal_number, NULL, 0) < 0 ? -errno : 0;
}

int vmm_process_reap(pid_t pid, int *ret_wait_status)
{
    int status;
    pid_t r;
    do
        r = waitpid(pid, &status, WNOHANG);
    while (r < 0 && errno == EINTR);
    if (r < 0)
        return -errno;
    if (r == 0)
        return -EAGAIN;
    *ret_wait_status = status;
    return 0;
}

const char *vmm_process_end_text(int wait_status, char *buffer, size_t size)
{
    if (WIFSIGNALED(wait_status))
        snprintf(buffer, size, "was ended by signal %d (%s)", WTERMSIG(wait_status),
                 strsignal(WTERMSIG(wait_status)));
    else
        snprintf(buffer, size, "ended with status %d", WEXITSTATUS(wait_status));
    return buffer;
}

int vmm_process_usage(pid_t pid, struct vmm_process_usage *ret_usage)
{
    char path[32], text[1024];
    uint64_t user, system, pages;
    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    if (!stat_read(path, text, sizeof(text)) || !stat_field(text, 14, &user) || !stat_field(text, 15, &system) ||
        !stat_field(text, 24, &pages))
        return -ESRCH;
    ret_usage->cpu_ms = (user + system) * 1000 / (uint64_t)sysconf(_SC_CLK_TCK);
    ret_usage->rss_bytes = pages * (uint64_t)sysconf(_SC_PAGESIZE);
    return 0;
}

/* Time on a processor, the first number of schedstat (proc(5)). */
static int thread_executed(pid_t pid, const char *thread, uint64_t *ret_ns)
{
    char path[64], text[128];
    snprintf(path, sizeof(path), "/proc/%d/task/%.20s/schedstat", pid, thread);
    if (!stat_read(path, text, sizeof(text)))
        return -ENOTSUP;
    *ret_ns = strtoull(text, NULL, 10);
    return 0;
}

static bool thread_is_vcpu(pid_t pid, const char *thread)
{
    char path[64], text[32];
    snprintf(path, sizeof(path), "/proc/%d/task/%.20s/comm", pid, thread);
    return stat_read(path, text, sizeof(text)) && strncmp(text, VMM_PROCESS_VCPU_THREAD, strlen(VMM_PROCESS_VCPU_THREAD)) == 0;
}

int vmm_process_vcpus(pid_t pid, struct vmm_process_vcpus *ret_vcpus)
{
    struct vmm_process_vcpus vcpus = {.executed_ns = 0};
    struct timespec now;
    char path[32], text[1024];
    uint64_t started, ns = 0;
    bool any = false;
    int r = 0;
    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    if (!stat_read(path, text, sizeof(text)) || !stat_field(text, 22, &started))
        return -ESRCH;
    snprintf(path, sizeof(path), "/proc/%d/task", pid);
    DIR *threads = opendir(path);
    if (threads == NULL)
        return -ESRCH;
    for (struct dirent *entry; r == 0 && (entry = readdir(threads)) != NULL;) {
        if (entry->d_name[0] == '.' || !thread_is_vcpu(pid, entry->d_name))
            continue;
        r = thread_executed(pid, entry->d_name, &ns);
        vcpus.executed_ns += ns;
        any = true;
    }
    closedir(threads);
    clock_gettime(CLOCK_BOOTTIME, &now); /* after that was read: what has executed had by then */
    uint64_t now_ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
    uint64_t start_ms = started * 1000 / (uint64_t)sysconf(_SC_CLK_TCK);
    vcpus.age_ms = now_ms - MIN(now_ms, start_ms);
    if (r == 0 && any)
        *ret_vcpus = vcpus;
    return any ? r : -ENOTSUP;
}
