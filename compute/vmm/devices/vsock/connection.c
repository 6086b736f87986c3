/* The ends of vsock connections at Unix sockets. Happy path: accept or connect, watch for what can be done, move bytes.
 * Failure modes: a client that is slow fills its buffer, and then the guest has no credit; one that goes away ends its
 * connection; one that does not say CONNECT in time is closed, and so is one that the guest does not answer in time. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "compute/vmm/devices/vsock/vsock.h"

enum { NS_PER_MS = 1000000 };

static void on_socket(void *arg, uint32_t events);
static void on_timeout(void *arg);

/* A connection that is over makes room for a new one. */
static bool room_make(struct vsock *v)
{
    if (v->connection_count < VSOCK_CONNECTIONS_MAX)
        return true;
    LIST_FOREACH(link, &v->connections)
    {
        struct vsock_connection *c = LIST_ENTRY(link, struct vsock_connection, link);
        if (c->state == VSOCK_CLOSED) {
            vsock_connection_destroy(c);
            return true;
        }
    }
    return false;
}

static struct vsock_connection *connection_create(struct vsock *v, int fd, enum vsock_state state, uint32_t guest_port,
                                                  uint32_t host_port)
{
    struct vsock_connection *c = NEW(struct vsock_connection);
    c->vsock = v;
    c->state = state;
    c->fd = fd;
    c->guest_port = guest_port;
    c->host_port = host_port;
    c->out = xcalloc(1, VSOCK_BUFFER_BYTES);
    io_timer_init(&c->timer, on_timeout, c);
    list_append(&v->connections, &c->link);
    v->connection_count++;
    return c;
}

void vsock_connection_destroy(struct vsock_connection *c)
{
    io_loop_remove(c->vsock->loop, c->handler);
    io_timer_cancel(&c->timer);
    close_fd(&c->fd);
    list_remove(&c->link);
    c->vsock->connection_count--;
    free(c->out);
    free(c);
}

struct vsock_connection *vsock_connection_find(struct vsock *v, uint32_t guest_port, uint32_t host_port)
{
    LIST_FOREACH(link, &v->connections)
    {
        struct vsock_connection *c = LIST_ENTRY(link, struct vsock_connection, link);
        if (c->state != VSOCK_GREETING && c->guest_port == guest_port && c->host_port == host_port)
            return c;
    }
    return NULL;
}

uint32_t vsock_connection_credit(const struct vsock_connection *c)
{
    uint32_t on_the_way = c->sent - c->guest_taken; /* counters wrap (§5.10.6.3) */
    return on_the_way < c->guest_room ? c->guest_room - on_the_way : 0;
}

void vsock_connection_watch(struct vsock_connection *c)
{
    uint32_t events = 0;
    if (c->fd >= 0 && !c->vsock->virtio.paused) {
        if (c->state == VSOCK_GREETING || (c->state == VSOCK_OPEN && !c->readable && !c->client_ended &&
                                           !c->guest_deaf))
            events |= EPOLLIN;
        if (c->out_size > 0)
            events |= EPOLLOUT;
    }
    if (events == c->watched)
        return;
    /* Taken off altogether when there is nothing to wait for: a hang-up would be reported again and again. */
    io_loop_remove(c->vsock->loop, c->handler);
    c->handler = NULL;
    c->watched = 0;
    if (events != 0 && io_loop_add(c->vsock->loop, c->fd, events, on_socket, c, &c->handler, NULL) == 0)
        c->watched = events;
}

/* The client is gone, or is of no more use: the guest hears that nothing comes and nothing goes. */
static void connection_close(struct vsock_connection *c)
{
    io_loop_remove(c->vsock->loop, c->handler);
    c->handler = NULL;
    c->watched = 0;
    close_fd(&c->fd);
    c->state = VSOCK_CLOSED;
    c->out_size = 0;
    c->tell = (c->tell & VSOCK_TELL_RESPONSE) | VSOCK_TELL_SHUTDOWN;
}

/* ---- guest to client ---- */

static void out_flush(struct vsock_connection *c)
{
    while (c->out_size > 0) {
        ssize_t n = send(c->fd, c->out, c->out_size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EAGAIN) {
            connection_close(c);
            return;
        }
        if (n <= 0)
            break;
        memmove(c->out, c->out + n, c->out_size - (size_t)n);
        c->out_size -= (size_t)n;
        c->delivered += (uint32_t)n;
    }
    /* Not for every byte: when the guest believes that half of the room is gone (§5.10.6.3). */
    if (c->delivered - c->told >= VSOCK_BUFFER_BYTES / 2)
        c->tell |= VSOCK_TELL_CREDIT;
}

bool vsock_connection_write(struct vsock_connection *c, const struct virtio_chain *chain, uint64_t offset, uint32_t size)
{
    if (c->guest_ended || size > VSOCK_BUFFER_BYTES - c->out_size)
        return false;
    c->out_size += virtio_chain_read(chain, offset, c->out + c->out_size, size);
    out_flush(c);
    return true;
}

void vsock_connection_shut(struct vsock_connection *c)
{
    if (c->state == VSOCK_CLOSED || c->state == VSOCK_ASKING) {
        c->tell = VSOCK_TELL_RST;
        return;
    }
    if (c->out_size > 0)
        return; /* first what it has said; called again when that is done */
    if (c->guest_ended && c->guest_deaf) {
        connection_close(c);
        c->tell = VSOCK_TELL_RST; /* both have ended: the last word (§5.10.6.5) */
        return;
    }
    if (c->guest_ended)
        shutdown(c->fd, SHUT_WR);
    if (c->guest_deaf)
        shutdown(c->fd, SHUT_RD);
}

/* ---- client to guest ---- */

size_t vsock_connection_read(struct vsock_connection *c, uint8_t *data, size_t size)
{
    ssize_t n;
    do
        n = recv(c->fd, data, size, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n > 0)
        return (size_t)n;
    c->readable = false;
    if (n < 0 && errno == EAGAIN)
        return 0;
    c->client_ended = true;
    if (n < 0 || c->guest_ended)
        connection_close(c);
    else
        c->tell |= VSOCK_TELL_SHUTDOWN;
    return 0;
}

/* ---- beginnings ---- */

struct vsock_connection *vsock_connection_open(struct vsock *v, uint32_t guest_port, uint32_t host_port)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    STATIC_ASSERT(VSOCK_PATH_BYTES_MAX + sizeof "_4294967295" <= sizeof address.sun_path, "a port fits behind the path");
    int length = snprintf(address.sun_path, sizeof address.sun_path, "%s_%u", v->path, host_port);
    if (length >= (int)sizeof address.sun_path || !room_make(v))
        return NULL;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof address) < 0) {
        close_fd(&fd);
        return NULL;
    }
    return connection_create(v, fd, VSOCK_OPEN, guest_port, host_port);
}

void vsock_connection_accepted(struct vsock_connection *c)
{
    char answer[32];
    int size = snprintf(answer, sizeof answer, "OK %u\n", c->host_port);
    c->state = VSOCK_OPEN;
    c->readable = true;
    io_timer_cancel(&c->timer);
    if (send(c->fd, answer, (size_t)size, MSG_NOSIGNAL | MSG_DONTWAIT) != size)
        connection_close(c);
}

static uint32_t port_new(struct vsock *v, uint32_t guest_port)
{
    do
        v->next_port = v->next_port == UINT32_MAX ? VSOCK_PORT_FIRST : v->next_port + 1;
    while (vsock_connection_find(v, guest_port, v->next_port) != NULL);
    return v->next_port;
}

/* One byte at a time up to the end of the line: what is behind it is for the guest. False when more must come. */
static bool greeting_read(struct vsock_connection *c, bool *ret_bad)
{
    while (true) {
        char byte;
        ssize_t n = recv(c->fd, &byte, 1, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return false;
        if (n == 1 && byte == '\n')
            return true;
        *ret_bad = n <= 0 || c->greeting_size == sizeof c->greeting - 1;
        if (*ret_bad)
            return true;
        c->greeting[c->greeting_size++] = byte;
    }
}

/* "CONNECT 1234\n", in whatever pieces. */
static void greet(struct vsock_connection *c)
{
    struct vsock *v = c->vsock;
    unsigned long long port;
    char end;
    bool bad = false;
    if (!greeting_read(c, &bad))
        return;
    if (bad || sscanf(c->greeting, "CONNECT %11llu%c", &port, &end) != 1 || port > UINT32_MAX ||
        !virtio_device_running(&v->virtio)) {
        vsock_connection_destroy(c);
        return;
    }
    io_timer_arm(v->loop, &c->timer, (uint64_t)VSOCK_ANSWER_MS * NS_PER_MS);
    c->guest_port = (uint32_t)port;
    c->host_port = port_new(v, c->guest_port);
    c->state = VSOCK_ASKING;
    c->tell = VSOCK_TELL_REQUEST;
    vsock_connection_watch(c);
    vsock_queue_deliver(v);
}

/* A guest that has not heard of the connection is told nothing; one that has may answer yet, and is told that it is over.
 */
static void on_timeout(void *arg)
{
    struct vsock_connection *c = arg;
    struct vsock *v = c->vsock;
    if (c->state != VSOCK_ASKING || (c->tell & VSOCK_TELL_REQUEST)) {
        vsock_connection_destroy(c);
        return;
    }
    connection_close(c);
    c->tell = VSOCK_TELL_RST;
    vsock_queue_deliver(v);
}

static void on_socket(void *arg, uint32_t events)
{
    struct vsock_connection *c = arg;
    struct vsock *v = c->vsock;
    if (c->state == VSOCK_GREETING) {
        greet(c); /* may have ended it */
        return;
    }
    if (c->out_size > 0 && (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))) {
        out_flush(c);
        if (c->out_size == 0 && c->state == VSOCK_OPEN && (c->guest_ended || c->guest_deaf))
            vsock_connection_shut(c);
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        c->readable = true;
    vsock_connection_watch(c);
    vsock_queue_deliver(v);
}

static void on_client(void *arg, int fd)
{
    struct vsock *v = arg;
    if (v->virtio.paused || !room_make(v)) {
        close(fd); /* the client sees the end, and may try again */
        return;
    }
    struct vsock_connection *c = connection_create(v, fd, VSOCK_GREETING, 0, 0);
    io_timer_arm(v->loop, &c->timer, (uint64_t)VSOCK_GREETING_MS * NS_PER_MS);
    vsock_connection_watch(c);
}

int vsock_listen(struct vsock *v, struct error *err)
{
    int fd, code = unix_socket_listen(v->path, "the vsock's socket", "/vsock/path", &fd, err);
    return code < 0 ? code : unix_listener_start(&v->listener, fd, v->path, "vsock", v->loop, on_client, v, err);
}
