/* The client's side of NBD: see nbd_client.h. Here: requests on the wire, the thread. The handshake is in
 * nbd_client_hello.c. */
#include "block/nbd_client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>

#include "block/nbd_client_hello.h"
#include "block/nbd_wire.h"

enum {
    RETRY_FIRST_MS = 50,
    RETRY_MAX_MS = 1000,
    RENEW_S = 3, /* for a server to be greeted anew */
    EXTENT_BYTES_MAX = 1 << 30, /* asked about at once */
    SLICE_MAX = 128,            /* iovecs given to one system call */
    ERROR_TEXT_MAX = 4096,
};

struct nbd_extents {
    uint64_t offset;
    uint32_t size;
    uint8_t *data[2]; /* NBD_CONTEXT_*_INDEX: {u32 length, u32 flags}, as on the wire */
    size_t data_size[2];
};

/* A request from its submission to its end. */
struct wire_request {
    struct list link; /* in queued, sent or ended */
    struct block_request *request; /* NULL: of block status */
    struct nbd_extents *extents;
    uint64_t cookie;
    uint64_t asked_ms;
    uint64_t done_bytes; /* of a read's data that has come; each byte once */
    unsigned tries;      /* times that the link was lost with it on the wire */
    uint64_t covers;     /* of a flush: writes that had been acknowledged when it was sent */
    int result;
};

/* What is being received. */
struct incoming {
    uint8_t head[64];
    size_t got, want;
    bool in_payload, is_simple;
    uint16_t flags, type;
    struct wire_request *to;
    uint8_t *data; /* of chunks that are no read's data; owned */
    uint64_t offset;
    uint32_t size, payload_got;
};

struct nbd_client {
    struct block block;
    struct nbd_client_options options;
    char *socket_path, *export_name, *changed_since; /* owned */
    struct nbd_hello hello;          /* what the server said; its size never changes after the first */
    bool is_writer;                  /* what it has asked for on an earlier connection matters to a later one */
    struct nbd_writer writer;

    pthread_t thread;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    bool stopping, broken;
    bool renewing;       /* the server is to be greeted anew */
    uint64_t greetings;  /* of a server, so far */
    uint64_t told_bytes; /* how large it said the last time that the disk is */
    int opening_fd; /* of a handshake under way; -1: none */
    enum nbd_client_state state;
    struct error why;
    struct list queued; /* struct wire_request, to be sent */
    struct list ended;  /* to be told by the owner */
    bool flush_lost;    /* writes were acknowledged, not flushed, and may be gone */

    /* The thread's alone. */
    int fd, wake_fd;
    struct list sent; /* on the wire */
    unsigned sent_count;
    struct wire_request *sending; /* partly sent; it is the last of `sent` */
    uint8_t send_head[NBD_REQUEST_HEAD_BYTES];
    size_t send_got, send_size;
    struct incoming in;
    uint64_t cookie;
    uint64_t acknowledged, flushed; /* writes, and how many of them a flush has covered */
    bool unsettled; /* an earlier connection may still bring changes to the disk: it is to be ended first */
};

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static struct nbd_client *of_block(struct block *b)
{
    return CONTAINER_OF(b, struct nbd_client, block);
}

/* ---- the end of requests (lock held) ---- */

static void wire_end(struct nbd_client *c, struct wire_request *w, int result)
{
    w->result = result;
    list_remove(&w->link);
    list_append(&c->ended, &w->link);
    pthread_cond_broadcast(&c->changed);
    if (w->request != NULL && c->options.wake != NULL)
        c->options.wake(c->options.wake_arg);
}

static void queued_fail(struct nbd_client *c, int result)
{
    while (!list_empty(&c->queued))
        wire_end(c, LIST_ENTRY(c->queued.next, struct wire_request, link), result);
}

/* ---- sending ---- */

static uint16_t command_of(const struct wire_request *w)
{
    static const uint16_t commands[BLOCK_OPS] = {
        [BLOCK_READ] = NBD_CMD_READ,    [BLOCK_WRITE] = NBD_CMD_WRITE,
        [BLOCK_FLUSH] = NBD_CMD_FLUSH,  [BLOCK_DISCARD] = NBD_CMD_TRIM,
        [BLOCK_WRITE_ZEROES] = NBD_CMD_WRITE_ZEROES,
    };
    return w->request == NULL ? NBD_CMD_BLOCK_STATUS : commands[w->request->op];
}

static void send_begin(struct nbd_client *c, struct wire_request *w)
{
    const struct block_request *r = w->request;
    bool is_flush = r != NULL && r->op == BLOCK_FLUSH;
    uint64_t offset = r == NULL ? w->extents->offset : is_flush ? 0 : r->offset;
    uint64_t size = r == NULL ? w->extents->size : is_flush ? 0 : r->size;
    uint16_t flags = r != NULL && r->op == BLOCK_WRITE_ZEROES && !r->may_unmap ? NBD_CMD_NO_HOLE : 0;
    w->cookie = ++c->cookie;
    w->asked_ms = now_ms();
    w->done_bytes = 0;
    w->covers = c->acknowledged;
    uint8_t *at = nbd_put16(nbd_put32(c->send_head, NBD_REQUEST_MAGIC), flags);
    at = nbd_put64(nbd_put16(at, command_of(w)), w->cookie);
    nbd_put32(nbd_put64(at, offset), (uint32_t)size);
    c->sending = w;
    c->send_got = 0;
    c->send_size = NBD_REQUEST_HEAD_BYTES + (r != NULL && r->op == BLOCK_WRITE ? r->size : 0);
    list_append(&c->sent, &w->link);
    c->sent_count++;
}

/* 0: go on polling; negative: the link is lost. */
static int send_some(struct nbd_client *c)
{
    struct iovec iovecs[SLICE_MAX + 1];
    while (true) {
        if (c->sending == NULL) {
            pthread_mutex_lock(&c->lock);
            struct wire_request *w = NULL;
            if (!list_empty(&c->queued) && c->sent_count < NBD_CLIENT_IN_FLIGHT_MAX) {
                w = LIST_ENTRY(c->queued.next, struct wire_request, link);
                list_remove(&w->link);
            }
            pthread_mutex_unlock(&c->lock);
            if (w == NULL)
                return 0;
            send_begin(c, w);
        }
        unsigned count = 0;
        uint64_t skip = 0;
        if (c->send_got < NBD_REQUEST_HEAD_BYTES)
            iovecs[count++] = (struct iovec){c->send_head + c->send_got, NBD_REQUEST_HEAD_BYTES - c->send_got};
        else
            skip = c->send_got - NBD_REQUEST_HEAD_BYTES;
        const struct block_request *r = c->sending->request;
        if (r != NULL && r->op == BLOCK_WRITE) {
            unsigned first = 0; /* entries that are sent whole are passed over, so that a slice is enough */
            while (first < r->iovec_count && skip >= r->iovecs[first].iov_len)
                skip -= r->iovecs[first++].iov_len;
            unsigned some = MIN(r->iovec_count - first, (unsigned)SLICE_MAX);
            count += block_iovecs_slice(r->iovecs + first, some, skip, r->size, iovecs + count);
        }
        struct msghdr message = {.msg_iov = iovecs, .msg_iovlen = count};
        ssize_t n = sendmsg(c->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0)
            return errno == EAGAIN || errno == EINTR ? 0 : -errno;
        c->send_got += (size_t)n;
        if (c->send_got == c->send_size)
            c->sending = NULL;
    }
}

/* ---- receiving ---- */

static struct wire_request *sent_find(const struct nbd_client *c, uint64_t cookie)
{
    LIST_FOREACH(link, &c->sent) {
        struct wire_request *w = LIST_ENTRY(link, struct wire_request, link);
        if (w->cookie == cookie)
            return w == c->sending ? NULL : w; /* not even asked whole */
    }
    return NULL;
}

static int from_wire_error(uint32_t code)
{
    switch (code) {
    case NBD_EPERM:
        return -EROFS;
    case NBD_ENOMEM:
        return -ENOMEM;
    case NBD_EINVAL:
    case NBD_EOVERFLOW:
        return -EINVAL;
    case NBD_ENOSPC:
        return -ENOSPC;
    case NBD_ENOTSUP:
        return -EOPNOTSUPP;
    default:
        return -EIO;
    }
}

static bool is_change(const struct wire_request *w)
{
    return w->request != NULL && w->request->op != BLOCK_READ && w->request->op != BLOCK_FLUSH;
}

static void answered(struct nbd_client *c, struct wire_request *w, int result)
{
    const struct block_request *r = w->request;
    if (r != NULL && r->op == BLOCK_READ && result == 0 && w->done_bytes != r->size)
        result = -EIO; /* not all of it came */
    pthread_mutex_lock(&c->lock);
    c->sent_count--;
    if (r != NULL && r->op == BLOCK_FLUSH && result == 0)
        c->flushed = MAX(c->flushed, w->covers);
    else if (is_change(w) && result == 0)
        c->acknowledged++;
    wire_end(c, w, result);
    pthread_mutex_unlock(&c->lock);
}

static void head_expect(struct incoming *in)
{
    in->got = 0;
    in->want = 4;
    in->in_payload = false;
    in->to = NULL;
    free(in->data);
    in->data = NULL;
}

static bool is_read(const struct wire_request *w)
{
    return w->request != NULL && w->request->op == BLOCK_READ;
}

static int simple_take(struct nbd_client *c)
{
    struct incoming *in = &c->in;
    uint32_t code = nbd_get32(in->head + 4);
    struct wire_request *w = sent_find(c, nbd_get64(in->head + 8));
    if (w == NULL || w->request == NULL || (is_read(w) && c->hello.structured))
        return -EPROTO;
    if (code != 0 || !is_read(w)) {
        answered(c, w, code == 0 ? 0 : from_wire_error(code));
        head_expect(in);
        return 0;
    }
    in->to = w;
    in->is_simple = true;
    in->offset = w->request->offset;
    in->size = (uint32_t)w->request->size;
    in->in_payload = true;
    in->payload_got = 0;
    return 0;
}

/* A stretch of a read's data, or hole, lies within what was asked, and no more comes than was asked for. */
static bool stretch_fits(const struct wire_request *w, uint64_t offset, uint64_t size)
{
    const struct block_request *r = w->request;
    return is_read(w) && size > 0 && offset >= r->offset && offset - r->offset <= r->size &&
           size <= r->size - (offset - r->offset) && w->done_bytes + size <= r->size;
}

static void chunk_finish(struct nbd_client *c)
{
    struct incoming *in = &c->in;
    if (in->is_simple || (in->flags & NBD_CHUNK_DONE))
        answered(c, in->to, in->to->result);
    head_expect(in);
}

static int chunk_take(struct nbd_client *c)
{
    struct incoming *in = &c->in;
    in->flags = nbd_get16(in->head + 4);
    in->type = nbd_get16(in->head + 6);
    in->size = nbd_get32(in->head + 16);
    in->is_simple = false;
    in->to = sent_find(c, nbd_get64(in->head + 8));
    if (in->to == NULL || !c->hello.structured || (in->flags & ~NBD_CHUNK_DONE) != 0)
        return -EPROTO;
    in->in_payload = true;
    in->payload_got = 0;
    if (in->type == NBD_CHUNK_DATA) {
        if (in->got == NBD_CHUNK_HEAD_BYTES) { /* and its offset */
            in->in_payload = false;
            in->want = NBD_CHUNK_HEAD_BYTES + 8;
            return in->size < 8 ? -EPROTO : 0;
        }
        in->offset = nbd_get64(in->head + NBD_CHUNK_HEAD_BYTES);
        in->size -= 8;
        return stretch_fits(in->to, in->offset, in->size) ? 0 : -EPROTO;
    }
    bool known = in->type == NBD_CHUNK_NONE ? in->size == 0 && (in->flags & NBD_CHUNK_DONE)
                 : in->type == NBD_CHUNK_HOLE ? in->size == 12
                 : in->type == NBD_CHUNK_STATUS
                     ? in->to->extents != NULL && in->size > 4 && in->size % 8 == 4 && in->size <= 4 + 8 * 65536
                     : (in->type & 0x8000) && in->size >= 6 && in->size <= ERROR_TEXT_MAX;
    if (!known)
        return -EPROTO;
    if (in->size == 0)
        chunk_finish(c);
    else
        in->data = xcalloc(1, in->size);
    return 0;
}

static int hole_take(struct incoming *in)
{
    uint64_t offset = nbd_get64(in->data);
    uint32_t size = nbd_get32(in->data + 8);
    const struct block_request *r = in->to->request;
    if (!stretch_fits(in->to, offset, size))
        return -EPROTO;
    CLEANUP_FREE struct iovec *slice = xcalloc(r->iovec_count, sizeof *slice);
    unsigned count = block_iovecs_slice(r->iovecs, r->iovec_count, offset - r->offset, size, slice);
    for (unsigned i = 0; i < count; i++)
        memset(slice[i].iov_base, 0, slice[i].iov_len);
    in->to->done_bytes += size;
    return 0;
}

static int status_take(const struct nbd_client *c, struct incoming *in)
{
    struct nbd_extents *e = in->to->extents;
    uint32_t id = nbd_get32(in->data);
    for (unsigned i = 0; i < ARRAY_SIZE(e->data); i++) {
        if (!c->hello.has_context[i] || c->hello.context_id[i] != id)
            continue;
        if (e->data[i] != NULL)
            return -EPROTO;
        e->data_size[i] = in->size - 4;
        e->data[i] = xcalloc(1, e->data_size[i]);
        memcpy(e->data[i], in->data + 4, e->data_size[i]);
        return 0;
    }
    return -EPROTO;
}

static int payload_take(struct nbd_client *c)
{
    struct incoming *in = &c->in;
    int code = 0;
    if (in->is_simple || in->type == NBD_CHUNK_DATA)
        in->to->done_bytes += in->size;
    else if (in->type == NBD_CHUNK_HOLE)
        code = hole_take(in);
    else if (in->type == NBD_CHUNK_STATUS)
        code = status_take(c, in);
    else
        in->to->result = from_wire_error(nbd_get32(in->data));
    if (code == 0)
        chunk_finish(c);
    return code;
}

/* 1: something came; 0: nothing there; negative: the link is lost. */
static int receive_some(struct nbd_client *c)
{
    struct incoming *in = &c->in;
    struct iovec iovecs[SLICE_MAX];
    unsigned count = 1;
    if (!in->in_payload) {
        iovecs[0] = (struct iovec){in->head + in->got, in->want - in->got};
    } else if (in->data != NULL) {
        iovecs[0] = (struct iovec){in->data + in->payload_got, in->size - in->payload_got};
    } else {
        const struct block_request *r = in->to->request;
        uint64_t skip = in->offset - r->offset + in->payload_got;
        unsigned first = 0;
        while (first < r->iovec_count && skip >= r->iovecs[first].iov_len)
            skip -= r->iovecs[first++].iov_len;
        unsigned some = MIN(r->iovec_count - first, (unsigned)SLICE_MAX);
        count = block_iovecs_slice(r->iovecs + first, some, skip, in->size - in->payload_got, iovecs);
    }
    struct msghdr message = {.msg_iov = iovecs, .msg_iovlen = count};
    ssize_t n = recvmsg(c->fd, &message, MSG_DONTWAIT);
    if (n == 0)
        return -ECONNRESET;
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    int code = 0;
    if (in->in_payload) {
        in->payload_got += (uint32_t)n;
        if (in->payload_got == in->size)
            code = payload_take(c);
    } else if ((in->got += (size_t)n) == in->want) {
        uint32_t magic = nbd_get32(in->head);
        if (in->want == 4 && magic == NBD_SIMPLE_MAGIC)
            in->want = NBD_SIMPLE_HEAD_BYTES;
        else if (in->want == 4 && magic == NBD_CHUNK_MAGIC)
            in->want = NBD_CHUNK_HEAD_BYTES;
        else
            code = in->want == 4 ? -EPROTO : magic == NBD_SIMPLE_MAGIC ? simple_take(c) : chunk_take(c);
    }
    return code < 0 ? code : 1;
}

/* ---- the thread ---- */

static void wake_drain(struct nbd_client *c)
{
    uint64_t count;
    ssize_t n = read(c->wake_fd, &count, sizeof count);
    (void)n;
}

/* How long until the oldest request has been on the wire for too long; -1: nothing is. */
static int time_left(const struct nbd_client *c)
{
    if (list_empty(&c->sent) || c->options.patient)
        return -1;
    const struct wire_request *oldest = LIST_ENTRY(c->sent.next, struct wire_request, link);
    uint64_t due = oldest->asked_ms + c->options.timeout_ms, now = now_ms();
    return now >= due ? 0 : (int)(due - now);
}

static bool is_stopping(struct nbd_client *c)
{
    pthread_mutex_lock(&c->lock);
    bool stopping = c->stopping && list_empty(&c->queued);
    pthread_mutex_unlock(&c->lock);
    return stopping;
}

static bool renewal_take(struct nbd_client *c)
{
    pthread_mutex_lock(&c->lock);
    bool renewing = c->renewing;
    c->renewing = false;
    pthread_mutex_unlock(&c->lock);
    return renewing;
}

static bool is_broken(struct nbd_client *c)
{
    pthread_mutex_lock(&c->lock);
    bool broken = c->broken;
    pthread_mutex_unlock(&c->lock);
    return broken;
}

/* Until the link is lost (negative) or the client ends (0). */
static int link_serve(struct nbd_client *c)
{
    head_expect(&c->in);
    while (true) {
        int code = is_broken(c) || renewal_take(c) ? -ECONNABORTED : send_some(c);
        while (code >= 0 && (code = receive_some(c)) > 0)
            ;
        if (code < 0)
            return code;
        code = send_some(c); /* answers made room */
        if (code < 0)
            return code;
        if (is_stopping(c) && list_empty(&c->sent))
            return 0;
        int wait = time_left(c);
        if (wait == 0)
            return -ETIMEDOUT;
        struct pollfd fds[] = {{.fd = c->fd, .events = (short)(POLLIN | (c->sending != NULL ? POLLOUT : 0))},
                               {.fd = c->wake_fd, .events = POLLIN}};
        if (poll(fds, ARRAY_SIZE(fds), wait) > 0 && fds[1].revents != 0)
            wake_drain(c);
    }
}

/* What was on the wire is to be sent again, first and in order. */
static void link_lost(struct nbd_client *c, int code)
{
    struct list all;
    list_init(&all);
    close_fd(&c->fd);
    head_expect(&c->in);
    c->sending = NULL;
    pthread_mutex_lock(&c->lock);
    LIST_FOREACH_SAFE(link, &c->sent)
    {
        struct wire_request *w = LIST_ENTRY(link, struct wire_request, link);
        w->result = 0;
        c->unsettled = c->unsettled || (is_change(w) && !c->options.trims_only && !c->options.patient);
        for (unsigned i = 0; w->extents != NULL && i < ARRAY_SIZE(w->extents->data); i++) {
            free(w->extents->data[i]);
            w->extents->data[i] = NULL;
        }
        if (++w->tries >= NBD_CLIENT_TRIES_MAX && !c->options.patient)
            wire_end(c, w, -EIO);
    }
    list_take(&all, &c->sent);
    list_take(&all, &c->queued);
    list_take(&c->queued, &all);
    c->sent_count = 0;
    c->flush_lost = c->flush_lost || (c->acknowledged > c->flushed && !c->options.durable);
    c->flushed = c->acknowledged;
    c->state = NBD_CLIENT_CONNECTING;
    error_errno(&c->why, code, "the link to the NBD server is lost");
    pthread_mutex_unlock(&c->lock);
}

/* A flush that would cover what may be lost fails, once. */
static void flushes_fail(struct nbd_client *c)
{
    bool told = false;
    LIST_FOREACH_SAFE(link, &c->queued)
    {
        struct wire_request *w = LIST_ENTRY(link, struct wire_request, link);
        if (c->flush_lost && w->request != NULL && w->request->op == BLOCK_FLUSH) {
            wire_end(c, w, -EIO);
            told = true;
        }
    }
    c->flush_lost = c->flush_lost && !told;
}

static void wait_ms(struct nbd_client *c, unsigned ms)
{
    struct pollfd fd = {.fd = c->wake_fd, .events = POLLIN};
    uint64_t until = now_ms() + ms, now;
    while ((now = now_ms()) < until && !is_stopping(c)) {
        pthread_mutex_lock(&c->lock);
        bool down = c->state == NBD_CLIENT_DOWN || c->stopping;
        if (down)
            queued_fail(c, -EIO);
        pthread_mutex_unlock(&c->lock);
        if (poll(&fd, 1, (int)(until - now)) > 0)
            wake_drain(c);
    }
}

/* Known to nbd_client_break from here on; -1: no more. */
static void opening_set(struct nbd_client *c, int fd)
{
    pthread_mutex_lock(&c->lock);
    c->opening_fd = fd;
    if (c->broken && fd >= 0)
        shutdown(fd, SHUT_RDWR);
    pthread_mutex_unlock(&c->lock);
}

static int link_connect(struct nbd_client *c, int *ret_fd, struct error *err)
{
    if (c->options.has_fd && c->options.fd < 0)
        return error_set(err, -ESTALE, ERROR_UNREACHABLE, "the link to the NBD server is lost, and there is no other to it");
    if (!c->options.has_fd)
        return nbd_hello_connect(c->socket_path, c->options.tcp_port, c->options.timeout_ms, ret_fd, err);
    *ret_fd = c->options.fd;
    c->options.fd = -1;
    return 0;
}

static int link_open(struct nbd_client *c, struct error *err)
{
    struct nbd_hello hello = {.size_bytes = 0};
    int fd;
    int code = link_connect(c, &fd, err);
    if (code < 0)
        return code;
    opening_set(c, fd);
    c->writer.number++;
    code = nbd_hello_negotiate(fd, c->export_name, c->changed_since, c->is_writer ? &c->writer : NULL, c->options.timeout_ms, &hello,
                               err);
    opening_set(c, -1);
    if (code < 0) {
        close(fd);
        return code;
    }
    bool fits = hello.size_bytes == c->hello.size_bytes || (c->options.patient && hello.size_bytes > c->hello.size_bytes);
    bool is_same = fits && hello.structured == c->hello.structured &&
                   memcmp(hello.has_context, c->hello.has_context, sizeof hello.has_context) == 0;
    if (c->hello.size_bytes != 0 && !is_same) {
        close(fd);
        return error_set(err, -ESTALE, ERROR_CONFLICT, "the NBD server has another disk under that name now");
    }
    if (c->unsettled && !hello.ends_earlier) {
        close(fd);
        return error_set(err, -ESTALE, ERROR_UNREACHABLE,
                         "the link to the NBD server was lost with writes on it, and this server cannot end what it still has of them");
    }
    c->unsettled = false;
    if (c->hello.size_bytes == 0)
        c->hello = hello;
    memcpy(c->hello.context_id, hello.context_id, sizeof hello.context_id); /* the thread's alone from here on */
    c->fd = fd;
    pthread_mutex_lock(&c->lock);
    c->told_bytes = hello.size_bytes;
    c->greetings++;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    return 0;
}

/* Until the link is up again (true), or the client ends. */
static bool link_restore(struct nbd_client *c)
{
    uint64_t give_up = now_ms() + c->options.reconnect_ms;
    unsigned pause = RETRY_FIRST_MS;
    while (!is_stopping(c)) {
        struct error err = {0};
        int code = is_broken(c) ? error_set(&err, -ESTALE, ERROR_CONFLICT, "the link was given up") : link_open(c, &err);
        pthread_mutex_lock(&c->lock);
        if (code == 0) {
            c->state = NBD_CLIENT_UP;
            c->why = (struct error){0};
            flushes_fail(c);
        } else {
            c->why = err;
            if (code == -ESTALE)
                c->state = NBD_CLIENT_REFUSED;
            else if ((now_ms() >= give_up && !c->options.patient) || c->stopping)
                c->state = NBD_CLIENT_DOWN;
            if (c->state != NBD_CLIENT_CONNECTING)
                queued_fail(c, -EIO);
        }
        pthread_mutex_unlock(&c->lock);
        if (code == 0)
            return true;
        wait_ms(c, pause);
        pause = MIN(pause * 2, (unsigned)RETRY_MAX_MS);
    }
    return false;
}

static void *client_main(void *arg)
{
    struct nbd_client *c = arg;
    int code;
    do {
        code = link_serve(c);
        if (code < 0)
            link_lost(c, code);
    } while (code < 0 && link_restore(c));
    return NULL;
}

/* ---- the block ---- */

static void thread_wake(struct nbd_client *c)
{
    uint64_t one = 1;
    ssize_t n = write(c->wake_fd, &one, sizeof one);
    (void)n; /* EAGAIN: it is awake */
}

/* @code: 0, or what it fails with at once. */
static void wire_submit(struct nbd_client *c, struct wire_request *w, int code)
{
    pthread_mutex_lock(&c->lock);
    list_append(&c->queued, &w->link);
    if (c->state == NBD_CLIENT_DOWN || c->state == NBD_CLIENT_REFUSED)
        code = -EIO;
    if (c->flush_lost && w->request != NULL && w->request->op == BLOCK_FLUSH) {
        c->flush_lost = false;
        code = -EIO;
    }
    if (code < 0)
        wire_end(c, w, code);
    pthread_mutex_unlock(&c->lock);
    if (code == 0)
        thread_wake(c);
}

static int client_submit(struct block *b, struct block_request *request)
{
    struct nbd_client *c = of_block(b);
    if (request->size > UINT32_MAX - BLOCK_SECTOR_BYTES && request->op != BLOCK_FLUSH)
        return -EINVAL;
    struct wire_request *w = NEW(struct wire_request);
    w->request = request;
    wire_submit(c, w, block_may_submit(b) ? 0 : -EAGAIN);
    return 0;
}

void nbd_client_run(struct block *b)
{
    struct nbd_client *c = of_block(b);
    struct list mine;
    list_init(&mine);
    pthread_mutex_lock(&c->lock);
    LIST_FOREACH_SAFE(link, &c->ended)
    {
        if (LIST_ENTRY(link, struct wire_request, link)->request != NULL) { /* others are waited for (nbd_client_extent) */
            list_remove(link);
            list_append(&mine, link);
        }
    }
    pthread_mutex_unlock(&c->lock);
    while (!list_empty(&mine)) {
        struct wire_request *w = LIST_ENTRY(mine.next, struct wire_request, link);
        struct block_request *request = w->request;
        request->result = w->result;
        list_remove(&w->link);
        free(w);
        block_complete(b, request);
    }
}

static void client_drain(struct block *b)
{
    struct nbd_client *c = of_block(b);
    while (b->in_flight > 0) {
        pthread_mutex_lock(&c->lock);
        while (list_empty(&c->ended))
            pthread_cond_wait(&c->changed, &c->lock);
        pthread_mutex_unlock(&c->lock);
        nbd_client_run(b);
    }
}

static void client_free(struct nbd_client *c)
{
    close_fd(&c->fd);
    close_fd(&c->wake_fd);
    if (c->options.has_fd)
        close_fd(&c->options.fd);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->changed);
    free(c->in.data);
    free(c->socket_path);
    free(c->export_name);
    free(c->changed_since);
    free(c);
}

static void thread_end(struct nbd_client *c)
{
    pthread_mutex_lock(&c->lock);
    c->stopping = true;
    pthread_mutex_unlock(&c->lock);
    thread_wake(c);
    pthread_join(c->thread, NULL);
}

static void client_close(struct block *b)
{
    struct nbd_client *c = of_block(b);
    thread_end(c);
    nbd_hello_leave(c->fd);
    client_free(c);
}

int nbd_client_leave(struct block *b, unsigned wait_ms, struct error *err)
{
    struct nbd_client *c = of_block(b);
    block_drain(b);
    if (nbd_client_state(b, NULL) != NBD_CLIENT_UP)
        nbd_client_break(b); /* it is in the midst of a greeting, perhaps */
    thread_end(c);
    int code = nbd_hello_leave_wait(c->fd, wait_ms);
    client_free(c);
    return code < 0 ? error_set(err, code, ERROR_TIMEOUT, "the server of the disk does not let go of it") : 0;
}

void nbd_client_break(struct block *b)
{
    struct nbd_client *c = of_block(b);
    pthread_mutex_lock(&c->lock);
    c->broken = true;
    c->state = NBD_CLIENT_REFUSED;
    queued_fail(c, -EIO);
    if (c->opening_fd >= 0)
        shutdown(c->opening_fd, SHUT_RDWR);
    pthread_mutex_unlock(&c->lock);
    thread_wake(c); /* what is on the wire ends there */
}

static int client_next_data(struct block *b, uint64_t from, uint64_t *ret_start, uint64_t *ret_end)
{
    struct nbd_client *c = of_block(b);
    if (!c->hello.has_context[NBD_CONTEXT_ALLOCATION_INDEX]) {
        *ret_start = from;
        *ret_end = b->size_bytes;
        return 1;
    }
    for (uint64_t at = from; at < b->size_bytes;) {
        struct nbd_extent e;
        int code = nbd_client_extent(b, at, b->size_bytes, &e, NULL);
        if (code < 0)
            return code;
        *ret_start = at;
        *ret_end = e.end;
        if (!e.zero)
            return 1;
        at = e.end;
    }
    return 0;
}

/* Until the server has been greeted once more, and has said how large its disk is; what is under way meanwhile is sent again. */
static int client_grow(struct block *b, uint64_t size_bytes, struct error *err)
{
    struct nbd_client *c = of_block(b);
    struct timespec until;
    int waited = 0;
    if (!c->options.patient)
        return error_set(err, -EOPNOTSUPP, ERROR_NOT_SUPPORTED, "a disk that is served by NBD keeps its size");
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += RENEW_S;
    pthread_mutex_lock(&c->lock);
    uint64_t before = c->greetings;
    c->renewing = true;
    thread_wake(c);
    while (c->greetings == before && waited == 0)
        waited = pthread_cond_timedwait(&c->changed, &c->lock, &until);
    uint64_t told_bytes = c->told_bytes;
    pthread_mutex_unlock(&c->lock);
    if (waited != 0 || told_bytes < size_bytes)
        return error_set(err, -EAGAIN, ERROR_CONFLICT, waited != 0 ? "the server of the disk does not answer"
                                                                  : "the server of the disk has not enlarged it yet");
    b->size_bytes = size_bytes;
    return 0;
}

static const struct block_ops client_ops = {.submit = client_submit,
                                            .drain = client_drain,
                                            .close = client_close,
                                            .grow = client_grow,
                                            .next_data = client_next_data};

/* ---- extents ---- */

/* Up to where the first answers of @data are the same. */
static bool extents_first(const uint8_t *data, size_t size, uint32_t mask, uint32_t *ret_flags, uint64_t *ret_length)
{
    uint64_t length = 0;
    for (size_t at = 0; at + 8 <= size; at += 8) {
        uint32_t n = nbd_get32(data + at), flags = nbd_get32(data + at + 4) & mask;
        if (n == 0)
            return false;
        if (at > 0 && flags != *ret_flags)
            break;
        *ret_flags = flags;
        length += n;
    }
    *ret_length = length;
    return length > 0;
}

static int extents_read(const struct nbd_client *c, const struct nbd_extents *e, struct nbd_extent *ret, struct error *err)
{
    *ret = (struct nbd_extent){.end = e->offset + e->size, .changed = true};
    for (unsigned i = 0; i < ARRAY_SIZE(e->data); i++) {
        uint32_t flags = 0, mask = i == NBD_CONTEXT_ALLOCATION_INDEX ? NBD_STATE_ZERO : NBD_STATE_CHANGED;
        uint64_t length = 0;
        if (!c->hello.has_context[i])
            continue;
        if (e->data[i] == NULL || !extents_first(e->data[i], e->data_size[i], mask, &flags, &length))
            return error_set(err, -EPROTO, ERROR_UNREACHABLE, "the NBD server's answer makes no sense");
        ret->end = MIN(ret->end, e->offset + length);
        if (i == NBD_CONTEXT_ALLOCATION_INDEX)
            ret->zero = flags != 0;
        else
            ret->changed = flags != 0;
    }
    uint64_t odd = ret->end % BLOCK_SECTOR_BYTES;
    if (odd != 0 && ret->end - odd > e->offset) {
        ret->end -= odd;
    } else if (odd != 0) { /* a sector of which only a part is known */
        *ret = (struct nbd_extent){.end = e->offset + BLOCK_SECTOR_BYTES, .changed = true};
    }
    return 0;
}

int nbd_client_extent(struct block *b, uint64_t from, uint64_t end, struct nbd_extent *ret_extent, struct error *err)
{
    struct nbd_client *c = of_block(b);
    if (!c->hello.has_context[0] && !c->hello.has_context[1]) {
        *ret_extent = (struct nbd_extent){.end = end, .changed = true};
        return 0;
    }
    uint64_t size = MIN(end - from, (uint64_t)EXTENT_BYTES_MAX);
    ASSERT(from < end && end <= b->size_bytes && from % BLOCK_SECTOR_BYTES == 0 && end % BLOCK_SECTOR_BYTES == 0);
    struct nbd_extents extents = {.offset = from, .size = (uint32_t)size};
    struct wire_request w = {.extents = &extents};
    list_init(&w.link);
    bool ended = false;
    wire_submit(c, &w, 0);
    pthread_mutex_lock(&c->lock);
    while (!ended) {
        LIST_FOREACH(link, &c->ended) {
            ended = ended || link == &w.link;
        }
        if (!ended)
            pthread_cond_wait(&c->changed, &c->lock);
    }
    list_remove(&w.link);
    int code = w.result;
    if (code < 0)
        error_errno(err, code, "the NBD server does not say what is where");
    pthread_mutex_unlock(&c->lock);
    if (code == 0)
        code = extents_read(c, &extents, ret_extent, err);
    free(extents.data[0]);
    free(extents.data[1]);
    return code;
}

bool nbd_client_has_changed(const struct block *b)
{
    return CONTAINER_OF(b, const struct nbd_client, block)->hello.has_context[NBD_CONTEXT_CHANGED_INDEX];
}

enum nbd_client_state nbd_client_state(struct block *b, struct error *ret_why)
{
    struct nbd_client *c = of_block(b);
    pthread_mutex_lock(&c->lock);
    enum nbd_client_state state = c->state;
    if (ret_why != NULL)
        *ret_why = c->why;
    pthread_mutex_unlock(&c->lock);
    return state;
}

static void block_fill(struct nbd_client *c)
{
    uint16_t flags = c->hello.flags;
    c->block = (struct block){.ops = &client_ops,
                              .size_bytes = c->hello.size_bytes,
                              .block_bytes = c->hello.block_bytes,
                              .read_only = c->options.read_only || (flags & NBD_READ_ONLY) != 0,
                              .can_discard = (flags & NBD_SEND_TRIM) != 0,
                              .can_write_zeroes = (flags & NBD_SEND_WRITE_ZEROES) != 0,
                              .lost_with_process = !c->options.durable};
}

int nbd_client_open(const struct nbd_client_options *options, struct block **ret_block, struct error *err)
{
    struct nbd_client *c = NEW(struct nbd_client);
    c->options = *options;
    c->options.timeout_ms = options->timeout_ms ? options->timeout_ms : NBD_CLIENT_TIMEOUT_MS;
    c->options.reconnect_ms = options->reconnect_ms ? options->reconnect_ms : NBD_CLIENT_RECONNECT_MS;
    c->socket_path = options->socket_path != NULL ? xstrdup(options->socket_path) : NULL;
    c->export_name = xstrdup(options->export_name != NULL ? options->export_name : "");
    c->changed_since = options->changed_since != NULL ? xstrdup(options->changed_since) : NULL;
    c->fd = c->opening_fd = -1;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    list_init(&c->queued);
    list_init(&c->sent);
    list_init(&c->ended);
    c->is_writer = !options->has_fd && !options->read_only && !options->trims_only;
    c->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int code = c->wake_fd < 0 ? error_errno(err, -errno, "cannot make an eventfd") : 0;
    if (code == 0 && c->is_writer && getrandom(c->writer.id, NBD_WRITER_ID_BYTES, 0) != NBD_WRITER_ID_BYTES)
        code = error_errno(err, -errno, "cannot get random bytes");
    if (code == 0)
        code = link_open(c, err);
    if (code == 0) {
        c->state = NBD_CLIENT_UP;
        block_fill(c);
        code = -pthread_create(&c->thread, NULL, client_main, c);
        if (code < 0)
            error_errno(err, code, "cannot start a thread");
    }
    if (code < 0) {
        client_free(c);
        return code;
    }
    *ret_block = &c->block;
    return 0;
}
