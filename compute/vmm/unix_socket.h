/* Listening at a Unix socket file, mode 0600. A file that a dead process left behind is replaced; a socket that somebody
 * answers at is not ours to take (-EADDRINUSE).
 *
 *            a client              no descriptor or memory for it
 *   LISTENING --------> accepted()      LISTENING ------> RESTING -- UNIX_LISTENER_REST_MS --> LISTENING
 *
 * While it rests the client waits in the backlog: without that a process that has run out of descriptors would be told
 * of it again and again, and do nothing else.
 *
 * Threads: those of the loop (io_loop.h). */
#ifndef COMPUTE_VMM_UNIX_SOCKET_H
#define COMPUTE_VMM_UNIX_SOCKET_H

#include <sys/un.h>

#include "common/error.h"
#include "common/log.h"
#include "compute/vmm/io_loop.h"

#define UNIX_LISTENER_REST_MS 200u
#define UNIX_SOCKET_PATH_BYTES_MAX (sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1)

/* A client's connection, non-blocking, now the callee's. */
typedef void (*unix_accepted_fn)(void *arg, int fd);

struct unix_listener {
    int fd; /* -1: not listening */
    struct io_loop *loop;
    struct io_handler *handler;
    struct io_timer rest;
    unix_accepted_fn accepted;
    void *arg;
    const char *what;
    uint64_t refusals; /* of the kernel's, in all: times it has rested */
    struct log_limit log;
    char path[UNIX_SOCKET_PATH_BYTES_MAX + 1];
    uint64_t device, inode; /* of the socket's file: it may be renamed, and another's be there when we end; 0: we don't see it */
};

/* @what names it in errors ("the control socket"), @field is the JSON pointer of the path. *ret_fd is non-blocking; the
 * caller closes it and removes the file. -ENAMETOOLONG past UNIX_SOCKET_PATH_BYTES_MAX. */
int unix_socket_listen(const char *path, const char *what, const char *field, int *ret_fd, struct error *err);
/* The same in two steps: take the name; and, once there is something to say, let clients in. Before, they are refused. */
int unix_socket_bind(const char *path, const char *what, const char *field, int *ret_fd, struct error *err);
int unix_socket_answer(int fd, const char *path, struct error *err);
/* Take clients at @fd, which listens at @path, from now on. The descriptor is the listener's, also where this fails, and
 * then closed, its file removed. @what outlives it. */
int unix_listener_start(struct unix_listener *l, int fd, const char *path, const char *what, struct io_loop *loop,
                        unix_accepted_fn accepted, void *arg, struct error *err);
/* Close it and remove the file. May be called again. */
void unix_listener_stop(struct unix_listener *l);

#endif
