/* Listening at a Unix socket file, mode 0600. A file that a dead process left behind is replaced; a socket that somebody
 * answers at is not ours to take (-EADDRINUSE). */
#ifndef COMPUTE_VMM_UNIX_SOCKET_H
#define COMPUTE_VMM_UNIX_SOCKET_H

#include "common/error.h"

/* @what names it in errors ("the control socket"), @field is the JSON pointer of the path. *ret_fd is non-blocking; the
 * caller closes it and removes the file. -ENAMETOOLONG past 107 bytes. */
int unix_socket_listen(const char *path, const char *what, const char *field, int *ret_fd, struct error *err);
/* The same in two steps: take the name; and, once there is something to say, let clients in. Before, they are refused. */
int unix_socket_bind(const char *path, const char *what, const char *field, int *ret_fd, struct error *err);
int unix_socket_answer(int fd, const char *path, struct error *err);

#endif
