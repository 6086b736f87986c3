/* See unix_socket.h. */
#include "compute/vmm/unix_socket.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { BACKLOG = 16, NS_PER_MS = 1000000 };

static void stale_remove(const struct sockaddr_un *address)
{
    struct stat st;
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && lstat(address->sun_path, &st) == 0 && S_ISSOCK(st.st_mode) &&
        connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 && errno == ECONNREFUSED)
        unlink(address->sun_path);
}

int unix_socket_bind(const char *path, const char *what, const char *field, int *ret_fd, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path))
        return error_set_field(err, -ENAMETOOLONG, ERROR_INVALID, field, "the path of %s has more than %zu bytes", what,
                               sizeof(address.sun_path) - 1);
    memcpy(address.sun_path, path, strlen(path) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_errno(err, -errno, "cannot make %s", what);
    stale_remove(&address);
    mode_t mask = umask(0177);
    int bound = bind(fd, (const struct sockaddr *)&address, sizeof(address));
    int code = -errno;
    umask(mask);
    if (bound < 0) {
        close(fd);
        return error_errno(err, code, "cannot listen at %s", path);
    }
    *ret_fd = fd;
    return 0;
}

int unix_socket_answer(int fd, const char *path, struct error *err)
{
    return listen(fd, BACKLOG) < 0 ? error_errno(err, -errno, "cannot listen at %s", path) : 0;
}

int unix_socket_listen(const char *path, const char *what, const char *field, int *ret_fd, struct error *err)
{
    int fd, code = unix_socket_bind(path, what, field, &fd, err);
    if (code < 0)
        return code;
    code = unix_socket_answer(fd, path, err);
    if (code < 0) {
        unlink(path);
        close(fd);
        return code;
    }
    *ret_fd = fd;
    return 0;
}

static void rest_begin(struct unix_listener *l, int code)
{
    struct timespec t;
    uint64_t held_back;
    l->refusals++;
    io_loop_change(l->loop, l->handler, 0);
    io_timer_arm(l->loop, &l->rest, (uint64_t)UNIX_LISTENER_REST_MS * NS_PER_MS);
    clock_gettime(CLOCK_MONOTONIC, &t);
    if (log_limit_pass(&l->log, (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / NS_PER_MS, &held_back))
        log_warning("client-not-accepted", "socket=\"%s\" error=\"%s\" not_told=%llu", l->what, strerror(code),
                    (unsigned long long)held_back);
}

static void on_rested(void *arg)
{
    struct unix_listener *l = arg;
    io_loop_change(l->loop, l->handler, EPOLLIN);
}

static void on_client(void *arg, uint32_t events UNUSED)
{
    struct unix_listener *l = arg;
    int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0)
        l->accepted(l->arg, fd);
    else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
        rest_begin(l, errno);
}

int unix_listener_start(struct unix_listener *l, int fd, const char *path, const char *what, struct io_loop *loop,
                        unix_accepted_fn accepted, void *arg, struct error *err)
{
    *l = (struct unix_listener){.fd = fd, .loop = loop, .accepted = accepted, .arg = arg, .what = what};
    io_timer_init(&l->rest, on_rested, l);
    ASSERT(strlen(path) <= UNIX_SOCKET_PATH_BYTES_MAX); /* it is bound there */
    memcpy(l->path, path, strlen(path) + 1);
    struct stat st;
    if (lstat(path, &st) == 0) {
        l->device = st.st_dev;
        l->inode = st.st_ino;
    }
    int code = io_loop_add(loop, fd, EPOLLIN, on_client, l, &l->handler, err);
    if (code < 0)
        unix_listener_stop(l);
    return code;
}

void unix_listener_stop(struct unix_listener *l)
{
    if (l->fd < 0)
        return;
    io_timer_cancel(&l->rest);
    io_loop_remove(l->loop, l->handler);
    close_fd(&l->fd);
    struct stat st;
    if (lstat(l->path, &st) == 0 && st.st_dev == l->device && st.st_ino == l->inode)
        unlink(l->path);
}
