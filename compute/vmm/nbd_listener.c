/* Sockets of NBD sessions on the I/O loop: see nbd_listener.h. */
#include "compute/vmm/nbd_listener.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "common/log.h"
#include "compute/vmm/unix_socket.h"

enum { OUTPUT_MAX = 16 };

struct listener_client {
    struct list link;
    struct nbd_listener *listener;
    int fd;
    struct io_handler *handler;
    struct nbd_session *session;
    struct io_timer wake; /* the session has something to say */
    uint32_t events;      /* watched for */
};

struct nbd_listener {
    struct unix_listener socket;
    struct io_loop *loop;
    const struct nbd_export *exports;
    unsigned export_count;
    struct list clients;
    struct list sessions; /* theirs */
    unsigned client_count;
    void (*clients_changed)(void *arg, unsigned count);
    void *arg;
};

static void client_end(struct listener_client *c)
{
    struct nbd_listener *l = c->listener;
    const char *reason = nbd_session_reason(c->session);
    if (reason[0] != '\0')
        log_warning("nbd-client", "why=\"%s\"", reason);
    nbd_session_destroy(TAKE_PTR(c->session)); /* may want to wake */
    io_timer_cancel(&c->wake);
    io_loop_remove(l->loop, c->handler);
    close_fd(&c->fd);
    list_remove(&c->link);
    l->client_count--;
    free(c);
    if (l->clients_changed != NULL)
        l->clients_changed(l->arg, l->client_count);
}

/* False: the connection is no good any more. */
static bool client_receive(struct listener_client *c)
{
    void *at;
    size_t size = 0;
    while ((at = nbd_session_room(c->session, &size)) != NULL) {
        ssize_t n = recv(c->fd, at, size, MSG_DONTWAIT);
        if (n < 0)
            return errno == EAGAIN || errno == EINTR;
        if (n == 0)
            return false;
        nbd_session_received(c->session, (size_t)n);
    }
    return true;
}

static bool client_send(struct listener_client *c)
{
    struct iovec iovecs[OUTPUT_MAX];
    uint64_t sent = 0;
    unsigned count;
    while (sent < NBD_LISTENER_TURN_BYTES_MAX && (count = nbd_session_output(c->session, iovecs, OUTPUT_MAX)) > 0) {
        struct msghdr message = {.msg_iov = iovecs, .msg_iovlen = count};
        ssize_t n = sendmsg(c->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0)
            return errno == EAGAIN || errno == EINTR;
        nbd_session_sent(c->session, (size_t)n);
        sent += (uint64_t)n;
    }
    return !nbd_session_is_over(c->session) || nbd_session_output(c->session, iovecs, OUTPUT_MAX) > 0;
}

static void client_turn(struct listener_client *c)
{
    struct iovec one[2];
    size_t size;
    if (!client_receive(c) || !client_send(c)) {
        client_end(c);
        return;
    }
    uint32_t events = nbd_session_room(c->session, &size) != NULL ? EPOLLIN : 0;
    events |= nbd_session_output(c->session, one, ARRAY_SIZE(one)) > 0 ? EPOLLOUT : 0;
    if (events != c->events)
        io_loop_change(c->listener->loop, c->handler, events);
    c->events = events;
}

static void on_wake(void *arg)
{
    client_turn(arg);
}

static void on_client_event(void *arg, uint32_t events)
{
    struct listener_client *c = arg;
    if (events & (EPOLLHUP | EPOLLERR)) /* both ways: nobody reads what we would say */
        client_end(c);
    else
        client_turn(c);
}

static void session_wake(void *arg)
{
    struct listener_client *c = arg;
    if (c->session != NULL)
        io_timer_arm(c->listener->loop, &c->wake, 0);
}

static void on_client(void *arg, int fd)
{
    struct nbd_listener *l = arg;
    if (l->client_count >= NBD_LISTENER_CLIENTS_MAX) {
        close(fd);
        return;
    }
    struct listener_client *c = NEW(struct listener_client);
    c->listener = l;
    c->fd = fd;
    c->events = EPOLLIN | EPOLLOUT;
    io_timer_init(&c->wake, on_wake, c);
    if (io_loop_add(l->loop, fd, c->events, on_client_event, c, &c->handler, NULL) < 0) {
        close(fd);
        free(c);
        return;
    }
    c->session = nbd_session_create(&(struct nbd_session_options){.exports = l->exports,
                                                                  .export_count = l->export_count,
                                                                  .peers = &l->sessions,
                                                                  .bytes_max = NBD_LISTENER_BYTES_MAX,
                                                                  .wake = session_wake,
                                                                  .wake_arg = c});
    list_append(&l->clients, &c->link);
    l->client_count++;
    if (l->clients_changed != NULL)
        l->clients_changed(l->arg, l->client_count);
}

int nbd_listener_create(const char *path, const struct nbd_export *exports, unsigned export_count, struct io_loop *loop,
                        void (*clients_changed)(void *arg, unsigned count), void *arg,
                        struct nbd_listener **ret_listener, struct error *err)
{
    int fd;
    int code = unix_socket_listen(path, "the backup's socket", "/path", &fd, err);
    if (code < 0)
        return code;
    struct nbd_listener *l = NEW(struct nbd_listener);
    l->loop = loop;
    l->exports = exports;
    l->export_count = export_count;
    l->clients_changed = clients_changed;
    l->arg = arg;
    list_init(&l->clients);
    list_init(&l->sessions);
    code = unix_listener_start(&l->socket, fd, path, "backup", loop, on_client, l, err);
    if (code < 0) {
        free(l);
        return code;
    }
    *ret_listener = l;
    return 0;
}

unsigned nbd_listener_clients(const struct nbd_listener *l)
{
    return l->client_count;
}

void nbd_listener_destroy(struct nbd_listener *l)
{
    if (l == NULL)
        return;
    l->clients_changed = NULL;
    LIST_FOREACH_SAFE(link, &l->clients)
    {
        client_end(LIST_ENTRY(link, struct listener_client, link));
    }
    unix_listener_stop(&l->socket);
    free(l);
}
