/* Sockets around sessions: see nbd_server.h. */
#include "block/nbd_server.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

enum { OUTPUT_MAX = 16, BACKLOG = 16, FDS_OWN = 3 };

struct server_client {
    int fd;
    struct nbd_session *session; /* NULL: the slot is free */
};

struct nbd_server {
    struct nbd_server_options options;
    char *socket_path; /* owned; NULL: TCP */
    int listen_fd, stop_fd, wake_fd;
    struct server_client clients[NBD_SERVER_CLIENTS_MAX];
    struct list sessions; /* theirs */
};

static void client_end(struct nbd_server *server, struct server_client *client)
{
    nbd_session_destroy(TAKE_PTR(client->session));
    if (server->options.own != NULL)
        (void)server->options.own(server->options.own_arg, false); /* whose word it is what comes of it */
    close_fd(&client->fd);
}

static void no_wake(void *arg UNUSED)
{
}

int nbd_server_adopt(struct nbd_server *server, int fd)
{
    for (unsigned i = 0; i < NBD_SERVER_CLIENTS_MAX; i++) {
        struct server_client *client = &server->clients[i];
        if (client->session != NULL)
            continue;
        client->fd = fd;
        client->session =
            nbd_session_create(&(struct nbd_session_options){.exports = server->options.exports,
                                                             .export_count = server->options.export_count,
                                                             .peers = &server->sessions,
                                                             .bytes_max = NBD_SERVER_BYTES_MAX,
                                                             .wake = no_wake});
        return 0;
    }
    return -EBUSY;
}

static void client_accept(struct nbd_server *server)
{
    int fd = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    bool refused = fd >= 0 && server->options.own != NULL && server->options.own(server->options.own_arg, true) < 0;
    if (fd >= 0 && (refused || nbd_server_adopt(server, fd) < 0))
        close(fd);
}

/* False: the connection is no good any more. */
static bool client_send(struct server_client *client)
{
    struct iovec iovecs[OUTPUT_MAX];
    unsigned count;
    while ((count = nbd_session_output(client->session, iovecs, OUTPUT_MAX)) > 0) {
        struct msghdr message = {.msg_iov = iovecs, .msg_iovlen = count};
        ssize_t n = sendmsg(client->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0)
            return errno == EAGAIN || errno == EINTR;
        nbd_session_sent(client->session, (size_t)n);
    }
    return !nbd_session_is_over(client->session);
}

static bool client_receive(struct server_client *client)
{
    void *at;
    size_t size = 0;
    while ((at = nbd_session_room(client->session, &size)) != NULL) {
        ssize_t n = recv(client->fd, at, size, MSG_DONTWAIT);
        if (n < 0)
            return errno == EAGAIN || errno == EINTR;
        if (n == 0)
            return false;
        nbd_session_received(client->session, (size_t)n);
    }
    return true;
}

static void blocks_run(struct nbd_server *server)
{
    if (server->options.run != NULL) {
        server->options.run(server->options.run_arg);
        return;
    }
    for (unsigned i = 0; i < server->options.export_count; i++) {
        struct block *b = server->options.exports[i].block;
        if (b != NULL && b->in_flight > 0)
            block_drain(b);
    }
}

static short events_wanted(const struct server_client *client)
{
    struct iovec one[2];
    size_t size;
    short events = nbd_session_room(client->session, &size) != NULL ? POLLIN : 0;
    return (short)(events | (nbd_session_output(client->session, one, 2) > 0 ? POLLOUT : 0));
}

/* Others wait in the kernel while one has the disk for itself. */
static bool may_accept(const struct nbd_server *server)
{
    bool any = false;
    for (unsigned i = 0; i < NBD_SERVER_CLIENTS_MAX; i++)
        any = any || server->clients[i].session != NULL;
    return server->options.own == NULL || !any;
}

/* False: told to stop, or nobody is left to serve. */
static bool round_wait(struct nbd_server *server, struct pollfd *fds)
{
    bool anybody = !server->options.adopted_only;
    fds[0] = (struct pollfd){.fd = server->stop_fd, .events = POLLIN};
    fds[1] = (struct pollfd){.fd = may_accept(server) ? server->listen_fd : -1, .events = POLLIN};
    fds[2] = (struct pollfd){.fd = server->wake_fd, .events = POLLIN};
    for (unsigned i = 0; i < NBD_SERVER_CLIENTS_MAX; i++) {
        const struct server_client *client = &server->clients[i];
        fds[FDS_OWN + i] = (struct pollfd){.fd = client->session != NULL ? client->fd : -1};
        fds[FDS_OWN + i].events = client->session != NULL ? events_wanted(client) : 0;
        anybody = anybody || client->session != NULL;
    }
    return anybody && (poll(fds, FDS_OWN + NBD_SERVER_CLIENTS_MAX, -1) <= 0 || fds[0].revents == 0);
}

static void eventfd_empty(int fd)
{
    uint64_t count;
    ssize_t n = read(fd, &count, sizeof count);
    (void)n;
}

void nbd_server_run(struct nbd_server *server)
{
    struct pollfd fds[FDS_OWN + NBD_SERVER_CLIENTS_MAX] = {{.fd = -1}};
    while (round_wait(server, fds)) {
        if (fds[1].revents != 0)
            client_accept(server);
        if (fds[2].revents != 0)
            eventfd_empty(server->wake_fd);
        for (unsigned i = 0; i < NBD_SERVER_CLIENTS_MAX; i++)
            if (server->clients[i].session != NULL && !client_receive(&server->clients[i]))
                client_end(server, &server->clients[i]);
        blocks_run(server);
        for (unsigned i = 0; i < NBD_SERVER_CLIENTS_MAX; i++)
            if (server->clients[i].session != NULL && !client_send(&server->clients[i]))
                client_end(server, &server->clients[i]);
    }
}

static void eventfd_ring(int fd)
{
    uint64_t one = 1;
    ssize_t n = write(fd, &one, sizeof one);
    (void)n;
}

void nbd_server_wake(struct nbd_server *server)
{
    eventfd_ring(server->wake_fd);
}

void nbd_server_stop(struct nbd_server *server)
{
    eventfd_ring(server->stop_fd);
}

static int unix_listen(struct nbd_server *server, const char *path, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return error_set(err, -ENAMETOOLONG, ERROR_INVALID, "the path of a Unix socket has at most %zu bytes: %s",
                         sizeof address.sun_path - 1, path);
    strcpy(address.sun_path, path);
    server->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (server->listen_fd < 0)
        return error_errno(err, -errno, "cannot make a socket");
    if (bind(server->listen_fd, (const void *)&address, sizeof address) < 0)
        return errno == EADDRINUSE
                   ? error_set(err, -EADDRINUSE, ERROR_EXISTS,
                               "cannot listen at %s: it is there already; remove it if no server uses it any more", path)
                   : error_errno(err, -errno, "cannot listen at %s", path);
    server->socket_path = xstrdup(path);
    if (chmod(path, 0600) < 0 || listen(server->listen_fd, BACKLOG) < 0)
        return error_errno(err, -errno, "cannot listen at %s", path);
    return 0;
}

/* Nobody is waited for in accept: another process may have the same socket, and be quicker. */
static int fd_listen(struct nbd_server *server, struct error *err)
{
    int listens = 0, flags = fcntl(server->listen_fd, F_GETFL);
    socklen_t size = sizeof listens;
    if (flags < 0 || fcntl(server->listen_fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
        getsockopt(server->listen_fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) < 0)
        return error_errno(err, -errno, "descriptor %d is no socket", server->listen_fd);
    return listens ? 0 : error_set(err, -EINVAL, ERROR_INVALID, "the socket of descriptor %d does not listen", server->listen_fd);
}

static int tcp_listen(struct nbd_server *server, uint16_t port, struct error *err)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htobe16(port), .sin_addr = {htobe32(INADDR_LOOPBACK)}};
    int one = 1;
    server->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (server->listen_fd < 0)
        return error_errno(err, -errno, "cannot make a socket");
    (void)setsockopt(server->listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(server->listen_fd, (const void *)&address, sizeof address) < 0 || listen(server->listen_fd, BACKLOG) < 0)
        return error_errno(err, -errno, "cannot listen at 127.0.0.1:%u", port);
    return 0;
}

uint16_t nbd_server_port(const struct nbd_server *server)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    return getsockname(server->listen_fd, (void *)&address, &size) == 0 ? be16toh(address.sin_port) : 0;
}

int nbd_server_create(const struct nbd_server_options *options, struct nbd_server **ret_server, struct error *err)
{
    struct nbd_server *server = NEW(struct nbd_server);
    server->options = *options;
    list_init(&server->sessions);
    server->listen_fd = options->has_listen_fd ? options->listen_fd : -1;
    for (unsigned i = 0; i < NBD_SERVER_CLIENTS_MAX; i++)
        server->clients[i].fd = -1;
    server->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    server->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int code = server->stop_fd < 0 || server->wake_fd < 0 ? error_errno(err, -errno, "cannot make an eventfd")
               : options->adopted_only        ? 0
               : options->has_listen_fd       ? fd_listen(server, err)
               : options->socket_path != NULL ? unix_listen(server, options->socket_path, err)
                                              : tcp_listen(server, options->tcp_port, err);
    if (code < 0) {
        nbd_server_destroy(server);
        return code;
    }
    *ret_server = server;
    return 0;
}

void nbd_server_destroy(struct nbd_server *server)
{
    if (server == NULL)
        return;
    for (unsigned i = 0; i < NBD_SERVER_CLIENTS_MAX; i++)
        if (server->clients[i].session != NULL)
            client_end(server, &server->clients[i]);
    if (server->socket_path != NULL)
        unlink(server->socket_path);
    close_fd(&server->listen_fd);
    close_fd(&server->stop_fd);
    close_fd(&server->wake_fd);
    free(server->socket_path);
    free(server);
}
