/* Pools of Ceph by drover-rbd; see the header. */
#include "compute/agent/pool_rbd.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "common/log.h"
#include "compute/agent/host_facts.h"
#include "compute/agent/pool_dir.h"
#include "compute/agent/vm_files.h"
#include "compute/agent/vmm_process.h"

#define PROGRAM "drover-rbd"
#define LOCK_END ".rbd.lock"
#define LOG_END ".rbd.log"
#define SOCKET_END ".nbd"
#define WORDS_MAX 24
#define OUTPUT_BYTES 512
#define TAIL_BYTES 1024
#define LOOK_MS 20 /* between looks whether a server is ready, or has ended */

extern char **environ;

bool pool_rbd_is(const struct pool_order *pool)
{
    return pool != NULL && pool->kind == pool_kind_RBD;
}

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* ---- one run ---- */

/* The words of a command line; all borrowed. */
struct words {
    const char *of[WORDS_MAX];
    unsigned count;
};

static void add(struct words *w, const char *word)
{
    ASSERT(w->count < WORDS_MAX - 1);
    w->of[w->count++] = word;
}

static void add_option(struct words *w, const char *name, const char *value)
{
    add(w, name);
    add(w, value);
}

/* The caller frees. */
static char *program_path(const char *given)
{
    char self[PATH_MAX];
    ssize_t n = given == NULL ? readlink("/proc/self/exe", self, sizeof self - sizeof PROGRAM) : 0;
    self[MAX(n, (ssize_t)0)] = '\0';
    char *slash = strrchr(self, '/');
    if (given != NULL || slash == NULL)
        return xstrdup(given != NULL ? given : PROGRAM);
    slash[1] = '\0';
    return xasprintf("%s" PROGRAM, self);
}

static struct words words_of(const char *program, const char *verb, const struct pool_order *pool, const char *image)
{
    struct words w = {.count = 0};
    add(&w, program);
    add(&w, verb);
    add_option(&w, "--conf", pool->path);
    add_option(&w, "--pool", pool->ceph_pool != NULL ? pool->ceph_pool : pool->name);
    add_option(&w, "--user", pool->ceph_user != NULL ? pool->ceph_user : "admin");
    if (image != NULL)
        add_option(&w, "--image", image);
    return w;
}

static int words_spawn(const struct words *w, int output, int errors, pid_t *ret_pid)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, errors, STDERR_FILENO);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    int r = posix_spawn(ret_pid, w->of[0], &actions, &attributes, (char *const *)(uintptr_t)w->of, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return -r;
}

/* One that takes too long is killed. */
static int wait_end(pid_t pid, int *ret_status)
{
    CLEANUP_FD int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    struct pollfd poll_fd = {.fd = pidfd, .events = POLLIN};
    int r = 0;
    if (pidfd < 0 || poll(&poll_fd, 1, POOL_RBD_MS) <= 0) {
        kill(pid, SIGKILL);
        r = -ETIMEDOUT;
    }
    while (waitpid(pid, ret_status, 0) < 0)
        if (errno != EINTR)
            return -errno;
    return r;
}

/* The last line in @text, without the name of the program, made printable. */
static const char *last_line(char *text)
{
    static const char prefix[] = PROGRAM ": ";
    size_t size = strlen(text);
    while (size > 0 && text[size - 1] == '\n')
        text[--size] = '\0';
    char *line = strrchr(text, '\n');
    line = line != NULL ? line + 1 : text;
    for (char *at = line; *at != '\0'; at++)
        if (*at < ' ' || *at > '~')
            *at = '?';
    return strncmp(line, prefix, strlen(prefix)) == 0 ? line + strlen(prefix) : line;
}

static int words_run(const struct words *w, char output[OUTPUT_BYTES], struct error *err)
{
    char said[OUTPUT_BYTES];
    CLEANUP_FD int output_fd = memfd_create("rbd", MFD_CLOEXEC);
    CLEANUP_FD int error_fd = memfd_create("rbd", MFD_CLOEXEC);
    pid_t pid;
    int status = 0;
    int r = output_fd < 0 || error_fd < 0 ? -errno : words_spawn(w, output_fd, error_fd, &pid);
    if (r == -ENOENT)
        return error_set(err, r, ERROR_NOT_SUPPORTED, PROGRAM " is not installed beside drover-agent");
    if (r < 0)
        return error_errno(err, r, "cannot start " PROGRAM);
    r = wait_end(pid, &status);
    if (r < 0)
        return error_set(err, r, ERROR_TIMEOUT, "Ceph did not do what it was asked for (%s) in %d s", w->of[1], POOL_RBD_MS / 1000);
    ssize_t n = pread(output_fd, output, OUTPUT_BYTES - 1, 0);
    output[MAX(n, (ssize_t)0)] = '\0';
    n = pread(error_fd, said, sizeof said - 1, 0);
    said[MAX(n, (ssize_t)0)] = '\0';
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    return error_set(err, -EIO, ERROR_CONFLICT, "%s", said[0] != '\0' ? last_line(said) : PROGRAM " does not say why it failed");
}

/* ---- the pool, and images ---- */

static int look(const char *given, const struct pool_order *pool, struct pool_seen *seen, struct error *err)
{
    CLEANUP_FREE char *program = program_path(given);
    struct words w = words_of(program, "status", pool, NULL);
    char output[OUTPUT_BYTES], mark[65];
    uint64_t size_bytes, free_bytes;
    int r = words_run(&w, output, err);
    if (r < 0)
        return r;
    if (sscanf(output, "%64s %" SCNu64 " %" SCNu64, mark, &size_bytes, &free_bytes) != 3)
        return error_set(err, -EPROTO, ERROR_INTERNAL, PROGRAM " does not say what the pool is: is it of another version?");
    if (pool->mark != NULL && strcmp(pool->mark, mark) != 0)
        return error_set(err, -ESTALE, ERROR_CONFLICT,
                         "%s leads to another Ceph cluster, or to another pool of that name there, than it did (%s, and it was %s)", pool->path,
                         mark, pool->mark);
    OBJECT_TEXT(pool_seen, seen, mark, mark);
    OBJECT_SET(pool_seen, seen, size_bytes, size_bytes);
    OBJECT_SET(pool_seen, seen, free_bytes, free_bytes);
    return 0;
}

void pool_rbd_look(const char *program, const struct pool_order *pool, struct pool_seen *ret)
{
    struct error err = {.code = 0};
    char text[400];
    OBJECT_TEXT(pool_seen, ret, id, pool->id);
    bool present = look(program, pool, ret, &err) == 0;
    OBJECT_SET(pool_seen, ret, present, present);
    if (present)
        return;
    text_copy(text, sizeof text, err.text);
    OBJECT_TEXT(pool_seen, ret, reason, text);
}

static char *image_name(const char *volume_id)
{
    return xasprintf("drover-%s", volume_id);
}

static int image_do(const char *given, const char *verb, const struct pool_order *pool, const char *volume_id, uint64_t size_bytes,
                    struct error *err)
{
    CLEANUP_FREE char *program = program_path(given);
    CLEANUP_FREE char *image = image_name(volume_id);
    struct words w = words_of(program, verb, pool, image);
    char size[24], output[OUTPUT_BYTES];
    snprintf(size, sizeof size, "%" PRIu64, size_bytes);
    if (size_bytes > 0)
        add_option(&w, "--size", size);
    return words_run(&w, output, err);
}

int pool_rbd_grow(const char *program, const struct pool_order *pool, const char *volume_id, uint64_t size_bytes, struct error *err)
{
    return image_do(program, "grow", pool, volume_id, size_bytes, err);
}

int pool_rbd_make(const char *program, const struct pool_order *pool, const char *volume_id, uint64_t size_bytes, struct error *err)
{
    int r = image_do(program, "create", pool, volume_id, size_bytes, err);
    /* One that is there may have been enlarged since the order was given, or was to be smaller then. */
    return r < 0 && pool_rbd_grow(program, pool, volume_id, size_bytes, NULL) == 0 ? 0 : r;
}

int pool_rbd_fill_work(const char *arguments, size_t size, struct task_seen *ret_seen UNUSED, struct error *err)
{
    struct rbd_fill fill = {.volume = NULL};
    char size_text[24];
    int r = OBJECT_DECODE(rbd_fill, arguments, size, OBJECT_STORED, &fill, err);
    if (r < 0)
        return r;
    CLEANUP_FREE char *program = program_path(fill.program);
    CLEANUP_FREE char *image = image_name(fill.volume);
    struct words w = words_of(program, "fill", &fill.pool, image);
    snprintf(size_text, sizeof size_text, "%" PRIu64, fill.size_bytes);
    add_option(&w, "--size", size_text);
    add_option(&w, "--from", fill.path);
    add_option(&w, "--origin", fill.sha256);
    execv(w.of[0], (char *const *)(uintptr_t)w.of);
    r = error_errno(err, -errno, "cannot run " PROGRAM);
    OBJECT_CLEAR(rbd_fill, &fill);
    return r;
}

int pool_rbd_remove(const char *program, const struct pool_order *pool, const char *volume_id, struct error *err)
{
    return image_do(program, "remove", pool, volume_id, 0, err);
}

/* ---- servers ---- */

static char *disk_path(const struct vm_places *places, const char *vm_id, const char *disk, const char *end)
{
    return xasprintf("%s/%s/disks/%s%s", places->vms_dir, vm_id, disk, end);
}

char *pool_rbd_socket(const struct vm_places *places, const char *vm_id, const char *disk)
{
    return disk_path(places, vm_id, disk, SOCKET_END);
}

/* Is there to be a server? */
static bool is_served(const struct vm_order *order, const struct vm_disk *disk)
{
    return !disk->leaving && pool_rbd_is(pool_dir_of(order, disk));
}

bool pool_rbd_has_disks(const struct vm_order *order)
{
    const struct vm_disk *disks = order->disks.items;
    for (size_t i = 0; i < order->disks.count; i++)
        if (is_served(order, &disks[i]))
            return true;
    return false;
}

static bool has_served(const struct vm_order *order, const char *name)
{
    const struct vm_disk *disks = order->disks.items;
    for (size_t i = 0; i < order->disks.count; i++)
        if (is_served(order, &disks[i]) && strcmp(disks[i].name, name) == 0)
            return true;
    return false;
}

static int server_look(const struct vm_places *places, const char *vm_id, const char *disk, struct vmm_process_id *ret_id)
{
    CLEANUP_FREE char *lock = disk_path(places, vm_id, disk, LOCK_END);
    return vmm_process_look(lock, ret_id, NULL);
}

/* There was a server, and it was not ended: as long as a VMM may have the disk, be it on its way out or not. */
static bool has_died(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk)
{
    CLEANUP_FREE char *lock = disk_path(places, order->id, disk->name, LOCK_END);
    struct vmm_process_id id;
    return pool_rbd_is(pool_dir_of(order, disk)) && access(lock, F_OK) == 0 && vmm_process_look(lock, &id, NULL) == 0;
}

bool pool_rbd_have_died(const struct vm_places *places, const struct vm_order *order)
{
    const struct vm_disk *disks = order->disks.items;
    for (size_t i = 0; i < order->disks.count; i++)
        if (has_died(places, order, &disks[i]))
            return true;
    return false;
}

bool pool_rbd_is_served(const struct vm_places *places, const struct vm_order *order)
{
    const struct vm_disk *disks = order->disks.items;
    struct vmm_process_id id;
    for (size_t i = 0; i < order->disks.count; i++)
        if (is_served(order, &disks[i]) && server_look(places, order->id, disks[i].name, &id) == 0)
            return false;
    return true;
}

/* The one that the file names; @signal_number 0: its slot in the process table is freed where it has ended and was our child. */
static void server_signal(const struct vmm_process_id *id, int signal_number)
{
    struct host_facts facts;
    int pidfd, status;
    if (host_facts_boot_id(facts.boot_id) < 0 || vmm_process_open(id, facts.boot_id, &pidfd) < 0)
        return;
    if (signal_number != 0)
        (void)vmm_process_signal(pidfd, signal_number);
    else
        (void)vmm_process_reap(id->pid, &status);
    close(pidfd);
}

/* Until it has ended; the lock is ours then. */
static int server_end(const struct vm_places *places, const char *vm_id, const char *disk, int *ret_lock_fd, struct error *err)
{
    CLEANUP_FREE char *lock = disk_path(places, vm_id, disk, LOCK_END);
    struct vmm_process_id id = {.pid = 0};
    uint64_t begun_ms = now_ms();
    bool asked = false, killed = false;
    int r;
    while ((r = vmm_process_lock(lock, ret_lock_fd, err)) == -EAGAIN) {
        uint64_t waited_ms = now_ms() - begun_ms;
        bool known = vmm_process_look(lock, &id, NULL) == 1;
        if (known && !asked)
            server_signal(&id, SIGTERM);
        asked = asked || known;
        if (known && waited_ms > POOL_RBD_STOP_MS && !killed) {
            log_warning("rbd-server-killed", "vm=%s disk=%s pid=%d why=\"it did not end when asked\"", vm_id, disk, id.pid);
            server_signal(&id, SIGKILL);
            killed = true;
        }
        if (waited_ms > 2 * POOL_RBD_STOP_MS)
            return error_set(err, -EBUSY, ERROR_CONFLICT, "the server of disk %s does not end", disk);
        poll(NULL, 0, LOOK_MS);
    }
    if (r == 0 && vmm_process_named(lock, &id))
        server_signal(&id, 0);
    return r;
}

/* What it said last; "" where that is nothing. */
static const char *server_words(const char *log, char buffer[TAIL_BYTES + 1])
{
    CLEANUP_FD int fd = open(log, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    off_t end = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
    ssize_t n = end <= 0 ? 0 : pread(fd, buffer, TAIL_BYTES, MAX((off_t)0, end - TAIL_BYTES));
    buffer[MAX(n, (ssize_t)0)] = '\0';
    return last_line(buffer);
}

/* Until the socket can be connected to, by @user. */
static int server_wait(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk, uid_t user, struct error *err)
{
    CLEANUP_FREE char *socket_path = pool_rbd_socket(places, order->id, disk->name);
    CLEANUP_FREE char *log = disk_path(places, order->id, disk->name, LOG_END);
    char buffer[TAIL_BYTES + 1];
    struct vmm_process_id id;
    struct stat st;
    for (uint64_t begun_ms = now_ms(); now_ms() - begun_ms < POOL_RBD_READY_MS; poll(NULL, 0, LOOK_MS)) {
        int r = server_look(places, order->id, disk->name, &id);
        if (r == 0)
            return error_set(err, -EIO, ERROR_UNREACHABLE, "disk %s: %.300s", disk->name, server_words(log, buffer));
        if (lstat(socket_path, &st) == 0 && S_ISSOCK(st.st_mode) && (st.st_mode & 0777) == 0600 && st.st_uid == (user != 0 ? user : geteuid()))
            return 0;
    }
    return error_set(err, -ETIMEDOUT, ERROR_TIMEOUT, "disk %s: Ceph does not answer, or its image is kept by somebody", disk->name);
}

/* With the lock, which it holds from then on. */
static int server_spawn(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk, uid_t user, int lock_fd,
                        struct error *err)
{
    CLEANUP_FREE char *program = program_path(places->rbd_path);
    CLEANUP_FREE char *image = image_name(disk->volume);
    CLEANUP_FREE char *socket_path = pool_rbd_socket(places, order->id, disk->name);
    CLEANUP_FREE char *log = disk_path(places, order->id, disk->name, LOG_END);
    struct words w = words_of(program, "serve", pool_dir_of(order, disk), image);
    struct host_facts facts;
    struct vmm_process_id id;
    char epoch[24], run_as[16];
    int pidfd, r = host_facts_boot_id(facts.boot_id);
    snprintf(epoch, sizeof epoch, "%" PRIu64, vm_files_disk_epoch(order, disk));
    snprintf(run_as, sizeof run_as, "%u", user);
    add_option(&w, "--socket", socket_path);
    add_option(&w, "--epoch", epoch);
    add(&w, "--replace");
    add(&w, "--while-connected");
    if (user != 0)
        add_option(&w, "--run-as", run_as);
    unlink(socket_path); /* of one that has died */
    if (r < 0)
        return error_errno(err, r, "cannot read the boot id");
    const struct vmm_process_spawn spawn = {
        .program = program, .argv = w.of, .log_path = log, .boot_id = facts.boot_id, .epoch = vm_files_disk_epoch(order, disk)};
    r = vmm_process_start(&spawn, lock_fd, &id, &pidfd, err);
    if (r < 0)
        return r;
    close(pidfd);
    log_info("rbd-server", "vm=%s disk=%s pid=%d epoch=%" PRIu64, order->name, disk->name, id.pid, id.epoch);
    return 0;
}

/* A VM may have got another user since it was started. */
static bool is_users(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk, uid_t user)
{
    CLEANUP_FREE char *socket_path = pool_rbd_socket(places, order->id, disk->name);
    struct stat st;
    return lstat(socket_path, &st) < 0 || st.st_uid == (user != 0 ? user : geteuid());
}

static int server_serve(const struct vm_places *places, const struct vm_order *order, const struct vm_disk *disk, uid_t user, struct error *err)
{
    CLEANUP_FREE char *lock = disk_path(places, order->id, disk->name, LOCK_END);
    CLEANUP_FD int lock_fd = -1;
    struct vmm_process_id id;
    uid_t as = user == geteuid() ? 0 : user;
    int r = vmm_process_look(lock, &id, err);
    if (r == 1 && (id.epoch != vm_files_disk_epoch(order, disk) || !is_users(places, order, disk, as)))
        r = server_end(places, order->id, disk->name, &lock_fd, err);
    else if (r == 0 && (r = vmm_process_lock(lock, &lock_fd, err)) == 0 && vmm_process_named(lock, &id))
        server_signal(&id, 0);
    if (r < 0 && r != -EAGAIN) /* that: another thread of ours has just started it */
        return r;
    r = lock_fd >= 0 ? server_spawn(places, order, disk, as, lock_fd, err) : 0;
    close_fd(&lock_fd);
    return r < 0 ? r : server_wait(places, order, disk, as, err);
}

int pool_rbd_serve(const struct vm_places *places, const struct vm_order *order, uid_t user, struct error *err)
{
    const struct vm_disk *disks = order->disks.items;
    int r = 0;
    for (size_t i = 0; r == 0 && i < order->disks.count; i++)
        r = is_served(order, &disks[i]) ? server_serve(places, order, &disks[i], user, err) : 0;
    return r;
}

int pool_rbd_revive(const struct vm_places *places, const struct vm_order *order, uid_t user, struct error *err)
{
    const struct vm_disk *disks = order->disks.items;
    int r = 0;
    for (size_t i = 0; r == 0 && i < order->disks.count; i++)
        r = has_died(places, order, &disks[i]) ? server_serve(places, order, &disks[i], user, err) : 0;
    return r;
}

/* The disks of a VM that have servers, one after the other: *ret_disk is the caller's. */
static bool next_server(DIR *dir, char **ret_disk)
{
    struct dirent *entry;
    while ((entry = readdir(dir)) != NULL) {
        size_t length = strlen(entry->d_name), end = strlen(LOCK_END);
        if (length <= end || strcmp(entry->d_name + length - end, LOCK_END) != 0)
            continue;
        *ret_disk = xasprintf("%.*s", (int)(length - end), entry->d_name);
        return true;
    }
    return false;
}

static int server_remove(const struct vm_places *places, const char *vm_id, const char *disk, struct error *err)
{
    static const char *const ends[] = {SOCKET_END, LOG_END, LOCK_END}; /* that last, with the lock held */
    CLEANUP_FD int lock_fd = -1;
    int r = server_end(places, vm_id, disk, &lock_fd, err);
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(ends); i++) {
        CLEANUP_FREE char *path = disk_path(places, vm_id, disk, ends[i]);
        if (unlink(path) < 0 && errno != ENOENT)
            r = error_errno(err, -errno, "cannot remove %s", path);
    }
    return r;
}

/* @only: that one; @but: none of its disks. First all are asked, then they are waited for. */
static int servers_end(const struct vm_places *places, const char *vm_id, const char *only, const struct vm_order *but, struct error *err)
{
    CLEANUP_FREE char *disks = vm_files_path(places, vm_id, "disks");
    struct vmm_process_id id;
    char *disk;
    int r = 0;
    for (unsigned round = 0; round < 2; round++) {
        DIR *dir = opendir(disks);
        while (r == 0 && dir != NULL && next_server(dir, &disk)) {
            bool is_it = (only == NULL || strcmp(only, disk) == 0) && (but == NULL || !has_served(but, disk));
            if (is_it && round == 0 && server_look(places, vm_id, disk, &id) == 1)
                server_signal(&id, SIGTERM);
            else if (is_it && round == 1)
                r = server_remove(places, vm_id, disk, err);
            free(disk);
        }
        if (dir != NULL)
            closedir(dir);
    }
    return r;
}

int pool_rbd_end(const struct vm_places *places, const char *vm_id, const char *disk, struct error *err)
{
    return servers_end(places, vm_id, disk, NULL, err);
}

int pool_rbd_end_others(const struct vm_places *places, const struct vm_order *order, struct error *err)
{
    return servers_end(places, order->id, NULL, order, err);
}
