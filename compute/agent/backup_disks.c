/* See backup_disks.h. */
#include "compute/agent/backup_disks.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

#include "block/block_fd.h"
#include "block/block_sync.h"
#include "block/layer_disk.h"
#include "block/layer_pool_dir.h"
#include "block/nbd_server.h"
#include "common/file.h"
#include "compute/agent/pool_dir.h"
#include "compute/agent/task_child.h"
#include "compute/agent/task_walls.h"

#define RESTORED "restored-" /* begins the names of files that are restored to */
#define RESTORED_ASIDE "restored" /* ends those of directories of disks that are made */
enum { CONNECT_S = 30, OWN_PATH_BYTES = 32 };

static const struct backup_work_disk *disk_at(const struct backup_work *work, size_t i)
{
    return (const struct backup_work_disk *)work->disks.items + i;
}

/* The user that the VM's files must belong to; the agent's own where it is not root. */
static uid_t owner_of(const struct backup_work *work)
{
    return geteuid() == 0 ? work->user : geteuid();
}

/* By way of a descriptor: no name of the path can be another one meanwhile. */
static void own_path(int fd, char ret[OWN_PATH_BYTES])
{
    snprintf(ret, OWN_PATH_BYTES, "/proc/self/fd/%d", fd);
}

/* The directory of @path; the caller closes. */
static int directory_open(const char *path, struct error *err)
{
    CLEANUP_FREE char *directory = xstrdup(path);
    *strrchr(directory, '/') = '\0';
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? error_errno(err, -errno, "cannot open %s", directory) : fd;
}

/* ---- it runs ---- */

int backup_disks_connect(const char *path, uid_t owner, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval limit = {.tv_sec = CONNECT_S};
    struct stat st;
    CLEANUP_FD int directory = directory_open(path, err);
    if (directory < 0)
        return directory;
    CLEANUP_FD int at = openat(directory, strrchr(path, '/') + 1, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (at < 0 || fstat(at, &st) < 0)
        return error_errno(err, -errno, "cannot open the socket of the VM's disks");
    if (!S_ISSOCK(st.st_mode) || st.st_uid != owner)
        return error_set(err, -EPERM, ERROR_FORBIDDEN, "%s is not the socket that the VM's VMM has made", path);
    own_path(at, address.sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) < 0 ||
        connect(fd, (const struct sockaddr *)&address, sizeof address) < 0) {
        int code = error_errno(err, -errno, "cannot reach the VM's disks");
        close_fd(&fd);
        return code;
    }
    return fd;
}

static int images_show(struct backup_program *p, struct error *err)
{
    for (size_t i = 0; i < p->work->disks.count; i++) {
        const char *name = disk_at(p->work, i)->name;
        int fd = backup_disks_connect(p->work->socket_path, owner_of(p->work), err);
        if (fd < 0)
            return fd;
        CLEANUP_FREE char *source = xasprintf("%s=nbd:fd:%d:%s@%s", name, fd, name, p->work->task.id);
        backup_program_inherit(p, fd);
        backup_program_option(p, "disk", source);
    }
    return 0;
}

/* ---- processes with the user's rights: in the child ---- */

/* What they need to know, which is no secret; the caller frees. */
static struct backup_work *work_told(const struct backup_work *work)
{
    struct backup_work *told = NEW(struct backup_work);
    OBJECT_COPY(backup_work, told, work);
    OBJECT_TEXT(backup_store, &told->store, key, NULL);
    OBJECT_TEXT(backup_store, &told->store, access_key, NULL);
    OBJECT_TEXT(backup_store, &told->store, secret_key, NULL);
    OBJECT_SET(backup_work, told, user, owner_of(work));
    return told;
}

static void told_free(struct backup_work *told)
{
    OBJECT_CLEAR(backup_work, told);
    free(told);
}

static _Noreturn void helper_become(const char *name, const struct backup_work *told, int input, int output, pid_t parent)
{
    char pid[16];
    snprintf(pid, sizeof pid, "%d", parent);
    const char *const words[] = {"drover-agent", "task", name, pid, NULL};
    for (size_t i = 0; i < told->disks.count; i++)
        if (OBJECT_HAS(backup_work_disk, disk_at(told, i), fd))
            (void)fcntl((int)disk_at(told, i)->fd, F_SETFD, 0);
    if (dup2(input, STDIN_FILENO) >= 0 && dup2(output, STDOUT_FILENO) >= 0)
        execv("/proc/self/exe", (char *const *)(uintptr_t)words);
    _exit(1);
}

/* Its first line: it goes on (1), has done it (0), or has failed in words. It is not trusted. */
static int word_take(int fd, struct error *err)
{
    char line[4096];
    size_t size = 0;
    ssize_t n;
    struct task_seen seen = {0};
    while (size < sizeof line && memchr(line, '\n', size) == NULL) {
        n = read(fd, line + size, sizeof line - size);
        if (n <= 0 && !(n < 0 && errno == EINTR))
            break;
        size += (size_t)MAX(n, (ssize_t)0);
    }
    const char *end = memchr(line, '\n', size);
    if (end == NULL || OBJECT_DECODE(task_seen, line, (size_t)(end - line), OBJECT_STORED, &seen, err) < 0)
        return error_set(err, -EIO, ERROR_INTERNAL, "a process that works on the VM's disks ended without a word");
    int code = seen.state == operation_state_RUNNING ? 1 : seen.state == operation_state_SUCCEEDED ? 0 : -EIO;
    if (code < 0)
        error_set(err, code, error_kind_from_code(seen.error_code != NULL ? seen.error_code : "internal"), "%s",
                  seen.error_text != NULL ? seen.error_text : "it does not say why");
    OBJECT_CLEAR(task_seen, &seen);
    return code;
}

void backup_disks_end(pid_t server)
{
    if (server <= 0)
        return;
    kill(server, SIGKILL);
    while (waitpid(server, NULL, 0) < 0 && errno == EINTR)
        ;
}

/* Runs work @name; *ret_pid: it goes on (0: it has ended). */
static int helper_run(const char *name, const struct backup_work *told, pid_t *ret_pid, struct error *err)
{
    struct bytes_writer text = {0};
    int fds[2];
    *ret_pid = 0;
    OBJECT_ENCODE(backup_work, told, &text);
    CLEANUP_FD int input = memfd_create("disks", MFD_CLOEXEC);
    bool written = input >= 0 && write(input, text.data, text.size) == (ssize_t)text.size && lseek(input, 0, SEEK_SET) == 0;
    bytes_writer_finish(&text);
    if (!written || pipe2(fds, O_CLOEXEC) < 0)
        return error_errno(err, -errno, "cannot start a process");
    pid_t parent = getpid(), pid = fork();
    if (pid == 0)
        helper_become(name, told, input, fds[1], parent);
    int code = pid < 0 ? error_errno(err, -errno, "cannot start a process") : 0;
    close(fds[1]);
    if (code == 0)
        code = word_take(fds[0], err);
    close(fds[0]);
    if (code == 1)
        *ret_pid = pid;
    else
        backup_disks_end(pid);
    return MIN(code, 0);
}

/* ---- it is off ---- */

static int pools_check(const struct backup_work *work, struct error *err)
{
    int code = 0;
    for (size_t i = 0; code == 0 && i < work->disks.count; i++)
        if (OBJECT_HAS(backup_work_disk, disk_at(work, i), pool))
            code = pool_dir_check(&disk_at(work, i)->pool, err);
    return code;
}

static int service_begin(struct backup_program *p, pid_t *ret_server, struct error *err)
{
    struct backup_work *told = work_told(p->work);
    struct backup_work_disk *disks = told->disks.items;
    int code = pools_check(p->work, err);
    size_t count;
    for (count = 0; code == 0 && count < told->disks.count; count++) {
        int fds[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0) {
            code = error_errno(err, -errno, "cannot make a socket");
            break;
        }
        OBJECT_SET(backup_work_disk, &disks[count], fd, (uint32_t)fds[0]);
        CLEANUP_FREE char *source = xasprintf("%s=nbd:fd:%d:%s", disks[count].name, fds[1], disks[count].name);
        backup_program_inherit(p, fds[1]);
        backup_program_option(p, "disk", source);
    }
    if (code == 0)
        code = helper_run("disks-serve", told, ret_server, err);
    for (size_t i = 0; i < count; i++)
        close((int)disks[i].fd);
    told_free(told);
    return code;
}

int backup_disks_show(struct backup_program *p, pid_t *ret_server, struct error *err)
{
    *ret_server = 0;
    if (p->work->disks.count > BACKUP_DISKS_MAX)
        return error_set(err, -E2BIG, ERROR_INVALID, "a VM has at most %d disks", BACKUP_DISKS_MAX);
    return p->work->control_path != NULL ? images_show(p, err) : service_begin(p, ret_server, err);
}

/* ---- restore ---- */

/* A pool that is not there yet is made; the VM's user is to write in it. */
static int pool_open(const struct backup_work *work, const char *path, struct error *err)
{
    struct stat st;
    uid_t user = owner_of(work);
    CLEANUP_FD int above = directory_open(path, err);
    if (above < 0)
        return above;
    if (mkdirat(above, strrchr(path, '/') + 1, 0700) < 0 && errno != EEXIST)
        return error_errno(err, -errno, "cannot make %s", path);
    int fd = openat(above, strrchr(path, '/') + 1, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0 || (st.st_uid != user && fchown(fd, user, user) < 0)) {
        int code = error_errno(err, -errno, "cannot open %s", path);
        close_fd(&fd);
        return code;
    }
    return fd;
}

static bool disk_is_there(const struct backup_work_disk *disk)
{
    struct stat st;
    CLEANUP_FREE char *head = xasprintf("%s/%s.disk", disk->layers, disk->name);
    return lstat(head, &st) == 0;
}

/* Where a disk is made that is not there yet; what an earlier try left goes. Only root writes in the directory above. */
static int aside_make(const struct backup_work_disk *disk, char **ret_path, struct error *err)
{
    CLEANUP_FREE char *above = xstrdup(disk->layers);
    CLEANUP_FREE char *leaf = xasprintf(".%s." RESTORED_ASIDE, disk->name);
    *strrchr(above, '/') = '\0';
    int code = file_make_directories(above, 0700, err);
    if (code == 0)
        code = file_remove_tree(above, leaf, err);
    if (code == 0)
        *ret_path = xasprintf("%s/%s", above, leaf);
    return code;
}

/* A name of its own for each try: what lies below a disk that was restored before must stay until that has gone. */
static int target_make(struct backup_program *p, const struct backup_work_disk *disk, struct backup_target *t, struct error *err)
{
    struct timespec now;
    uid_t user = owner_of(p->work);
    clock_gettime(CLOCK_REALTIME, &now);
    snprintf(t->leaf, sizeof t->leaf, "%s%s" RESTORED "%lld.%09ld%s", disk->layers != NULL ? "" : disk->name,
             disk->layers != NULL ? "" : ".raw.", (long long)now.tv_sec, now.tv_nsec, disk->layers != NULL ? ".raw" : "");
    t->directory_fd = -1;
    int code = disk->layers == NULL || disk_is_there(disk) ? 0 : aside_make(disk, &t->aside, err);
    if (code < 0)
        return code;
    t->directory_fd = disk->layers != NULL ? pool_open(p->work, t->aside != NULL ? t->aside : disk->layers, err)
                                           : directory_open(disk->raw, err);
    if (t->directory_fd < 0)
        return t->directory_fd;
    int fd = openat(t->directory_fd, t->leaf, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0 || (user != geteuid() && fchown(fd, user, user) < 0)) {
        code = error_errno(err, -errno, "cannot make a file to restore disk %s to", disk->name);
        close_fd(&fd);
        return code;
    }
    CLEANUP_FREE char *target = xasprintf("%s=fd:%d", disk->name, fd);
    backup_program_inherit(p, fd);
    backup_program_option(p, "disk", target);
    return 0;
}

int backup_targets_make(struct backup_program *p, struct backup_targets *ret_targets, struct error *err)
{
    *ret_targets = (struct backup_targets){.work = p->work};
    int code = p->work->disks.count > BACKUP_DISKS_MAX
                   ? error_set(err, -E2BIG, ERROR_INVALID, "a VM has at most %d disks", BACKUP_DISKS_MAX)
                   : pools_check(p->work, err);
    for (size_t i = 0; code == 0 && i < p->work->disks.count; i++)
        code = target_make(p, disk_at(p->work, i), &ret_targets->items[ret_targets->count++], err);
    return code;
}

/* The pool where it lies, or is made aside; no file. */
static int target_live(const struct backup_work *work, const struct backup_work_disk *disk, struct backup_target *t, struct error *err)
{
    t->directory_fd = -1;
    if (disk->layers == NULL)
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                         "disk %s is one raw file and cannot be used while it is restored: restore it without --live", disk->name);
    int code = disk_is_there(disk) ? 0 : aside_make(disk, &t->aside, err);
    if (code < 0)
        return code;
    t->directory_fd = pool_open(work, t->aside != NULL ? t->aside : disk->layers, err);
    return MIN(t->directory_fd, 0);
}

int backup_targets_live(const struct backup_work *work, struct backup_targets *ret_targets, struct error *err)
{
    *ret_targets = (struct backup_targets){.work = work};
    int code = work->disks.count > BACKUP_DISKS_MAX
                   ? error_set(err, -E2BIG, ERROR_INVALID, "a VM has at most %d disks", BACKUP_DISKS_MAX)
                   : pools_check(work, err);
    for (size_t i = 0; code == 0 && i < work->disks.count; i++)
        code = target_live(work, disk_at(work, i), &ret_targets->items[ret_targets->count++], err);
    return code;
}

int backup_disks_look(const struct backup_work *work, struct error *err)
{
    struct backup_work *told = work_told(work);
    pid_t pid;
    int code = helper_run("disks-look", told, &pid, err);
    told_free(told);
    return code;
}

/* Files of other tries, and what lay below the disk before. */
static void others_remove(int directory_fd, const char *begins, const char *kept)
{
    int fd = openat(directory_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;)
        if (strncmp(entry->d_name, begins, strlen(begins)) == 0 && strcmp(entry->d_name, kept) != 0)
            (void)unlinkat(directory_fd, entry->d_name, 0);
    if (dir != NULL)
        closedir(dir);
    else
        close_fd(&fd);
}

/* A whole disk that was made aside. What lies in its place has no head, and is nobody's: of a start, or a restore, that was cut off. */
static int aside_place(const struct backup_work_disk *disk, const char *aside, struct error *err)
{
    struct stat st;
    CLEANUP_FREE char *above = xstrdup(disk->layers);
    char *leaf = strrchr(above, '/');
    *leaf++ = '\0';
    if (disk_is_there(disk))
        return error_set(err, -EEXIST, ERROR_CONFLICT, "disk %s is there by now", disk->name);
    int code = lstat(disk->layers, &st) == 0 && S_ISDIR(st.st_mode) ? file_remove_tree(above, leaf, err) : 0;
    if (code == 0 && rename(aside, disk->layers) < 0)
        code = error_errno(err, -errno, "cannot put disk %s in its place", disk->name);
    return code == 0 ? file_sync_directory(above, err) : code;
}

static int asides_place(const struct backup_targets *targets, struct error *err)
{
    int code = 0;
    for (size_t i = 0; code == 0 && i < targets->count; i++)
        if (targets->items[i].aside != NULL)
            code = aside_place(disk_at(targets->work, i), targets->items[i].aside, err);
    return code;
}

int backup_targets_place(const struct backup_targets *targets, struct error *err)
{
    struct backup_work *told = work_told(targets->work);
    struct backup_work_disk *disks = told->disks.items;
    pid_t pid;
    int code = 0;
    for (size_t i = 0; code == 0 && i < targets->count; i++) {
        const struct backup_target *t = &targets->items[i];
        CLEANUP_FREE char *begins = xasprintf("%s.raw." RESTORED, disks[i].name);
        OBJECT_SET(backup_work_disk, &disks[i], fd, (uint32_t)t->directory_fd);
        if (t->leaf[0] != '\0')
            OBJECT_TEXT(backup_work_disk, &disks[i], leaf, t->leaf);
        if (disks[i].layers != NULL)
            continue;
        if (renameat(t->directory_fd, t->leaf, t->directory_fd, strrchr(disks[i].raw, '/') + 1) < 0 || fsync(t->directory_fd) < 0)
            code = error_errno(err, -errno, "cannot replace %s", disks[i].raw);
        else
            others_remove(t->directory_fd, begins, "");
    }
    if (code == 0)
        code = helper_run("disks-place", told, &pid, err);
    told_free(told);
    return code == 0 ? asides_place(targets, err) : code;
}

void backup_targets_finish(struct backup_targets *targets, bool kept)
{
    for (size_t i = 0; i < targets->count; i++) {
        struct backup_target *t = &targets->items[i];
        if (!kept && t->directory_fd >= 0 && t->leaf[0] != '\0')
            (void)unlinkat(t->directory_fd, t->leaf, 0);
        if (!kept && t->aside != NULL)
            (void)rmdir(t->aside);
        close_fd(&t->directory_fd);
        free(TAKE_PTR(t->aside));
    }
    targets->count = 0;
}

/* ---- in the processes with the user's rights ---- */

/* Of each disk what is to be opened, before the walls. */
struct opened {
    int files[BACKUP_DISKS_MAX]; /* pools' directories, raw files */
};

static int raw_check(int fd, const struct backup_work *work, const char *path, struct error *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return error_errno(err, -errno, "cannot look at %s", path);
    if (!S_ISREG(st.st_mode) || st.st_nlink != 1 || st.st_uid != work->user)
        return error_set(err, -EPERM, ERROR_FORBIDDEN, "%s is not a file of the VM's alone", path);
    return 0;
}

static int disks_open(const struct backup_work *work, struct opened *o, struct error *err)
{
    int code = 0;
    for (size_t i = 0; code == 0 && i < work->disks.count; i++) {
        const struct backup_work_disk *d = disk_at(work, i);
        const char *path = d->layers != NULL ? d->layers : d->raw;
        o->files[i] = open(path, O_RDONLY | (d->layers != NULL ? O_DIRECTORY : O_NONBLOCK) | O_NOFOLLOW | O_CLOEXEC);
        if (o->files[i] < 0)
            code = error_errno(err, -errno, "cannot open %s", path);
        else if (d->layers == NULL)
            code = raw_check(o->files[i], work, path, err);
    }
    return code;
}

static int disk_block(const struct backup_work_disk *d, int file, struct block **ret_block, struct error *err)
{
    struct layer_pool *pool;
    struct layer_disk *disk;
    char path[OWN_PATH_BYTES];
    if (d->layers == NULL) {
        int code = block_fd_lock(file, d->name, true, err);
        return code < 0 ? code : block_sync_from_fd(file, d->name, true, ret_block, err);
    }
    own_path(file, path);
    int code = layer_pool_dir_create(path, NULL, NULL, &pool, err);
    if (code == 0)
        code = layer_disk_open(pool, d->name, true, 0, &disk, err);
    if (code == 0)
        *ret_block = &disk->chain->block; /* it, and all else here, goes with the process */
    return code;
}

static int disks_serve(const struct backup_work *work, const struct opened *o, struct error *err)
{
    struct nbd_export exports[BACKUP_DISKS_MAX] = {{.name = NULL}};
    struct nbd_server *server;
    int code = 0;
    STATIC_ASSERT((int)NBD_SERVER_CLIENTS_MAX >= (int)BACKUP_DISKS_MAX, "a connection for each disk");
    for (size_t i = 0; code == 0 && i < work->disks.count; i++) {
        exports[i] = (struct nbd_export){.name = disk_at(work, i)->name, .access = NBD_ACCESS_READ};
        code = disk_block(disk_at(work, i), o->files[i], &exports[i].block, err);
    }
    const struct nbd_server_options options = {
        .adopted_only = true, .exports = exports, .export_count = (unsigned)work->disks.count};
    if (code == 0)
        code = nbd_server_create(&options, &server, err);
    for (size_t i = 0; code == 0 && i < work->disks.count; i++)
        code = nbd_server_adopt(server, (int)disk_at(work, i)->fd);
    if (code < 0)
        return code;
    task_child_tell("serving", 0, 0);
    nbd_server_run(server);
    return 0;
}

static int work_take(const char *arguments, size_t size, struct backup_work *ret_work, struct error *err)
{
    int code = OBJECT_DECODE(backup_work, arguments, size, OBJECT_STORED, ret_work, err);
    if (code == 0 && ret_work->disks.count > BACKUP_DISKS_MAX)
        code = error_set(err, -E2BIG, ERROR_INVALID, "a VM has at most %d disks", BACKUP_DISKS_MAX);
    return code;
}

int backup_disks_serve_work(const char *arguments, size_t size, struct task_seen *ret_seen UNUSED, struct error *err)
{
    struct backup_work work = {0};
    struct opened opened;
    int code = work_take(arguments, size, &work, err);
    const struct task_walls walls = {.user = work.user, .group = work.user};
    if (code == 0)
        code = disks_open(&work, &opened, err);
    if (code == 0)
        code = task_walls_raise(&walls, err);
    if (code == 0)
        code = disks_serve(&work, &opened, err);
    OBJECT_CLEAR(backup_work, &work);
    return code;
}

/* A new, empty layer above what was restored; or one that @live is to fill. Until its head is there the disk is what it was. */
static int layers_place(const struct backup_work_disk *disk, const char *live, struct error *err)
{
    struct layer_pool *pool;
    char path[OWN_PATH_BYTES];
    own_path((int)disk->fd, path);
    int code = layer_pool_dir_create(path, NULL, NULL, &pool, err);
    if (code < 0)
        return code;
    code = live != NULL ? layer_disk_replace_from(pool, disk->name, live, disk->size_bytes, err)
                        : layer_disk_replace(pool, disk->name, 0, disk->leaf, err);
    if (code == 0)
        code = layer_disk_collect(pool, err);
    layer_pool_dir_destroy(pool);
    if (code == 0)
        others_remove((int)disk->fd, RESTORED, live != NULL ? "" : disk->leaf);
    return code;
}

int backup_disks_place_work(const char *arguments, size_t size, struct task_seen *ret_seen UNUSED, struct error *err)
{
    struct backup_work work = {0};
    int code = work_take(arguments, size, &work, err);
    const struct task_walls walls = {.user = work.user, .group = work.user};
    if (code == 0)
        code = task_walls_raise(&walls, err);
    for (size_t i = 0; code == 0 && i < work.disks.count; i++)
        if (disk_at(&work, i)->layers != NULL)
            code = layers_place(disk_at(&work, i), work.live, err);
    OBJECT_CLEAR(backup_work, &work);
    return code;
}

/* Locks are the VMM's, if there is one by now: it is only looked. */
static int layers_look(const struct backup_work_disk *disk, int directory, struct error *err)
{
    struct layer_pool *pool;
    struct layer_disk *seen = NULL;
    char path[OWN_PATH_BYTES];
    own_path(directory, path);
    int code = layer_pool_dir_create(path, NULL, NULL, &pool, err);
    if (code < 0)
        return code;
    layer_pool_dir_set_unlocked(pool, true);
    code = layer_disk_open(pool, disk->name, true, 0, &seen, err);
    layer_disk_close(code == 0 ? seen : NULL);
    layer_pool_dir_destroy(pool);
    return code;
}

int backup_disks_look_work(const char *arguments, size_t size, struct task_seen *ret_seen UNUSED, struct error *err)
{
    struct backup_work work = {0};
    struct opened opened;
    int code = work_take(arguments, size, &work, err);
    const struct task_walls walls = {.user = work.user, .group = work.user};
    if (code == 0)
        code = disks_open(&work, &opened, err);
    if (code == 0)
        code = task_walls_raise(&walls, err);
    for (size_t i = 0; code == 0 && i < work.disks.count; i++)
        if (disk_at(&work, i)->layers != NULL)
            code = layers_look(disk_at(&work, i), opened.files[i], err);
    OBJECT_CLEAR(backup_work, &work);
    return code;
}
