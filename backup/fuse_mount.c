/* Serving files at a directory: see fuse_mount.h. */
#include "backup/fuse_mount.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/stat.h>

struct fuse_mount {
    const struct fuse_files *files;
    char *directory; /* absolute */
    int fd;          /* of /dev/fuse */
    int stop_fd;     /* readable: all threads end, and it stays so */
    pthread_t threads[FUSE_MOUNT_THREADS];
    unsigned thread_count;
    atomic_bool mounted;
    dev_t device; /* of the files; 0: nobody has served yet */
};

static void stop(struct fuse_mount *m)
{
    uint64_t one = 1;
    ssize_t n = write(m->stop_fd, &one, sizeof one);
    (void)n;
}

/* False: the kernel has no more requests, for good. */
static bool serve_one(struct fuse_mount *m, void *request, void *answer)
{
    ssize_t n = read(m->fd, request, FUSE_FILES_REQUEST_BYTES_MAX);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR || errno == ENOENT;
    size_t size = fuse_files_answer(m->files, request, (size_t)n, answer);
    /* an answer that nobody waits for any more is refused; that is fine */
    if (size > 0 && write(m->fd, answer, size) < 0 && errno == ENODEV)
        return false;
    return true;
}

static void *run(void *arg)
{
    struct fuse_mount *m = arg;
    CLEANUP_FREE void *request = xcalloc(1, FUSE_FILES_REQUEST_BYTES_MAX);
    CLEANUP_FREE void *answer = xcalloc(1, FUSE_FILES_ANSWER_BYTES_MAX);
    struct pollfd fds[2] = {{.fd = m->stop_fd, .events = POLLIN}, {.fd = m->fd, .events = POLLIN}};
    for (;;) {
        if (poll(fds, 2, -1) < 0)
            continue;
        if (fds[0].revents != 0)
            return NULL;
        if (fds[1].revents != 0 && !serve_one(m, request, answer)) {
            atomic_store(&m->mounted, false);
            stop(m);
            return NULL;
        }
    }
}

static int mount_refused(const char *directory, int code, struct error *err)
{
    if (code == -EPERM || code == -EACCES)
        return error_set(err, code, ERROR_FORBIDDEN,
                         "mounting at %s needs root; as another user take `drover-backup serve` (NBD) or `cat`", directory);
    if (code == -ENODEV || code == -ENOENT || code == -ENXIO)
        return error_set(err, -ENODEV, ERROR_NOT_SUPPORTED,
                         "this kernel has no file systems in user space (modprobe fuse); take `drover-backup serve` (NBD) or "
                         "`cat`");
    return error_errno(err, code, "cannot mount at %s", directory);
}

static int directory_check(const char *given, char **ret_path, struct error *err)
{
    struct stat st;
    char *path = realpath(given, NULL);
    if (path == NULL || stat(path, &st) < 0) {
        int code = error_errno(err, -errno, "cannot mount at %s (it must be a directory that is there)", given);
        free(path);
        return code;
    }
    if (!S_ISDIR(st.st_mode)) {
        free(path);
        return error_set(err, -ENOTDIR, ERROR_INVALID, "cannot mount at %s: it is no directory", given);
    }
    *ret_path = path;
    return 0;
}

static int attach(struct fuse_mount *m, struct error *err)
{
    char options[128];
    m->fd = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (m->fd < 0)
        return mount_refused(m->directory, -errno, err);
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=%u,group_id=%u,default_permissions", m->fd, getuid(),
             getgid());
    if (mount("drover-backup", m->directory, "fuse.drover-backup", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOATIME, options) < 0)
        return mount_refused(m->directory, -errno, err);
    atomic_store(&m->mounted, true);
    return 0;
}

int fuse_mount_start(const char *directory, const struct fuse_files *files, struct fuse_mount **ret_mount,
                     struct error *err)
{
    struct fuse_mount *m = NEW(struct fuse_mount);
    m->files = files;
    m->fd = -1;
    m->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int code = m->stop_fd < 0 ? error_errno(err, -errno, "cannot make an eventfd")
                              : directory_check(directory, &m->directory, err);
    if (code == 0)
        code = attach(m, err);
    for (; code == 0 && m->thread_count < FUSE_MOUNT_THREADS; m->thread_count += code == 0) {
        code = -pthread_create(&m->threads[m->thread_count], NULL, run, m);
        if (code < 0)
            error_errno(err, code, "cannot start a thread");
    }
    struct stat st;
    if (code == 0 && stat(m->directory, &st) < 0) /* the first request that is served */
        code = error_errno(err, -errno, "cannot look at the files at %s", m->directory);
    if (code < 0) {
        fuse_mount_end(m);
        return code;
    }
    m->device = st.st_dev;
    *ret_mount = m;
    return 0;
}

int fuse_mount_over_fd(const struct fuse_mount *m)
{
    return m->stop_fd;
}

/* Is it still there, and not somebody else's by now? */
static bool is_ours(const struct fuse_mount *m)
{
    struct stat st;
    return atomic_load(&m->mounted) && (m->device == 0 || (stat(m->directory, &st) == 0 && st.st_dev == m->device));
}

void fuse_mount_end(struct fuse_mount *m)
{
    if (m == NULL)
        return;
    bool ours = is_ours(m);
    stop(m);
    for (unsigned i = 0; i < m->thread_count; i++)
        pthread_join(m->threads[i], NULL);
    close_fd(&m->fd); /* whoever still waits for an answer has it now: an error */
    if (ours)
        (void)umount2(m->directory, MNT_DETACH);
    close_fd(&m->stop_fd);
    free(m->directory);
    free(m);
}
