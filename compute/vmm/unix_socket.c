/* See unix_socket.h. */
#include "compute/vmm/unix_socket.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { BACKLOG = 16 };

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
