/* An NBD client's handshake: see nbd_client_hello.h. */
#include "block/nbd_client_hello.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include "block/block.h"
#include "block/nbd_wire.h"

enum { REPLIES_MAX = 64 }; /* to one option */

struct talk {
    int fd;
    uint64_t until_ms;
};

struct reply {
    uint32_t type, size;
    uint8_t data[NBD_OPTION_BYTES_MAX + 1];
};

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static int talk_wait(const struct talk *t, short events, struct error *err)
{
    uint64_t now = now_ms();
    struct pollfd fd = {.fd = t->fd, .events = events};
    int n = now >= t->until_ms ? 0 : poll(&fd, 1, (int)(t->until_ms - now));
    if (n == 0)
        return error_set(err, -ETIMEDOUT, ERROR_TIMEOUT, "the NBD server does not answer");
    return n < 0 && errno != EINTR ? error_errno(err, -errno, "cannot wait for the NBD server") : 0;
}

static int talk_send(const struct talk *t, const void *data, size_t size, struct error *err)
{
    for (size_t sent = 0; sent < size;) {
        ssize_t n = send(t->fd, (const uint8_t *)data + sent, size - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        int code = 0;
        if (n >= 0)
            sent += (size_t)n;
        else if (errno == EAGAIN || errno == EINTR)
            code = talk_wait(t, POLLOUT, err);
        else
            code = error_errno(err, -errno, "cannot write to the NBD server");
        if (code < 0)
            return code;
    }
    return 0;
}

static int talk_receive(const struct talk *t, void *data, size_t size, struct error *err)
{
    for (size_t got = 0; got < size;) {
        ssize_t n = recv(t->fd, (uint8_t *)data + got, size - got, MSG_DONTWAIT);
        int code = 0;
        if (n > 0)
            got += (size_t)n;
        else if (n == 0)
            code = error_set(err, -ECONNRESET, ERROR_UNREACHABLE, "the NBD server has hung up");
        else if (errno == EAGAIN || errno == EINTR)
            code = talk_wait(t, POLLIN, err);
        else
            code = error_errno(err, -errno, "cannot read from the NBD server");
        if (code < 0)
            return code;
    }
    return 0;
}

static int nonsense(struct error *err)
{
    return error_set(err, -EPROTO, ERROR_UNREACHABLE, "the NBD server does not keep to the protocol (fixed newstyle is needed)");
}

static int option_send(const struct talk *t, uint32_t option, const void *data, size_t size, struct error *err)
{
    uint8_t head[NBD_OPTION_HEAD_BYTES];
    nbd_put32(nbd_put32(nbd_put64(head, NBD_OPTION_MAGIC), option), (uint32_t)size);
    int code = talk_send(t, head, sizeof head, err);
    return code < 0 || size == 0 ? code : talk_send(t, data, size, err);
}

static int reply_receive(const struct talk *t, uint32_t option, struct reply *ret, struct error *err)
{
    uint8_t head[NBD_REPLY_HEAD_BYTES];
    int code = talk_receive(t, head, sizeof head, err);
    if (code < 0)
        return code;
    ret->type = nbd_get32(head + 12);
    ret->size = nbd_get32(head + 16);
    if (nbd_get64(head) != NBD_REPLY_MAGIC || nbd_get32(head + 8) != option || ret->size > NBD_OPTION_BYTES_MAX)
        return nonsense(err);
    ret->data[ret->size] = 0;
    return talk_receive(t, ret->data, ret->size, err);
}

static int hello_exchange(const struct talk *t, struct error *err)
{
    uint8_t hello[NBD_HELLO_BYTES], flags[NBD_CLIENT_FLAGS_BYTES];
    int code = talk_receive(t, hello, sizeof hello, err);
    if (code < 0)
        return code;
    uint16_t offered = nbd_get16(hello + 16);
    if (nbd_get64(hello) != NBD_MAGIC || nbd_get64(hello + 8) != NBD_OPTION_MAGIC || !(offered & NBD_FLAG_FIXED))
        return nonsense(err);
    nbd_put32(flags, NBD_FLAG_FIXED | (offered & NBD_FLAG_NO_ZEROES));
    return talk_send(t, flags, sizeof flags, err);
}

static int structured_ask(const struct talk *t, struct nbd_hello *hello, struct error *err)
{
    struct reply reply;
    int code = option_send(t, NBD_OPT_STRUCTURED, NULL, 0, err);
    if (code == 0)
        code = reply_receive(t, NBD_OPT_STRUCTURED, &reply, err);
    if (code == 0)
        hello->structured = reply.type == NBD_REP_ACK;
    return code;
}

static int writer_tell(const struct talk *t, const struct nbd_writer *writer, struct nbd_hello *hello, struct error *err)
{
    uint8_t data[NBD_WRITER_BYTES];
    struct reply reply;
    memcpy(data, writer->id, NBD_WRITER_ID_BYTES);
    nbd_put64(data + NBD_WRITER_ID_BYTES, writer->number);
    int code = option_send(t, NBD_OPT_WRITER, data, sizeof data, err);
    if (code == 0)
        code = reply_receive(t, NBD_OPT_WRITER, &reply, err);
    if (code == 0)
        hello->ends_earlier = reply.type == NBD_REP_ACK;
    return code;
}

static void context_take(const struct reply *reply, const char *const *names, struct nbd_hello *hello)
{
    for (unsigned i = 0; reply->size > 4 && i < NBD_CONTEXTS; i++)
        if (names[i] != NULL && reply->size - 4 == strlen(names[i]) && memcmp(reply->data + 4, names[i], reply->size - 4) == 0) {
            hello->has_context[i] = true;
            hello->context_id[i] = nbd_get32(reply->data);
        }
}

static int contexts_ask(const struct talk *t, const char *name, const char *since, struct nbd_hello *hello,
                        struct error *err)
{
    CLEANUP_FREE char *changed = since != NULL ? xasprintf(NBD_CONTEXT_CHANGED "%s", since) : NULL;
    const char *const names[NBD_CONTEXTS] = {[NBD_CONTEXT_ALLOCATION_INDEX] = NBD_CONTEXT_ALLOCATION,
                                             [NBD_CONTEXT_CHANGED_INDEX] = changed};
    uint8_t data[NBD_NAME_BYTES_MAX + NBD_SINCE_BYTES_MAX + 128], *at = data;
    size_t length = strlen(name);
    at = nbd_put32(at, (uint32_t)length);
    memcpy(at, name, length);
    at = nbd_put32(at + length, changed != NULL ? 2 : 1);
    for (unsigned i = 0; i < NBD_CONTEXTS; i++) {
        size_t n = names[i] != NULL ? strlen(names[i]) : 0;
        if (n == 0)
            continue;
        at = nbd_put32(at, (uint32_t)n);
        memcpy(at, names[i], n);
        at += n;
    }
    int code = option_send(t, NBD_OPT_SET_CONTEXTS, data, (size_t)(at - data), err);
    for (unsigned i = 0; code == 0 && i < REPLIES_MAX; i++) {
        struct reply reply;
        code = reply_receive(t, NBD_OPT_SET_CONTEXTS, &reply, err);
        if (code < 0 || reply.type == NBD_REP_ACK || (reply.type & NBD_REP_ERROR)) /* refused: it has none */
            return code;
        if (reply.type != NBD_REP_CONTEXT)
            break;
        context_take(&reply, names, hello);
    }
    return code < 0 ? code : nonsense(err);
}

static void info_take(const struct reply *reply, struct nbd_hello *hello)
{
    if (reply->size == 12 && nbd_get16(reply->data) == NBD_INFO_EXPORT) {
        hello->size_bytes = nbd_get64(reply->data + 2);
        hello->flags = nbd_get16(reply->data + 10);
    }
    if (reply->size == 14 && nbd_get16(reply->data) == NBD_INFO_BLOCK_SIZE) {
        uint32_t best = nbd_get32(reply->data + 6);
        hello->block_bytes = best >= BLOCK_SECTOR_BYTES && best <= 65536 && (best & (best - 1)) == 0 ? best : 4096;
    }
}

static int go_ask(const struct talk *t, const char *name, struct nbd_hello *hello, struct error *err)
{
    uint8_t data[NBD_NAME_BYTES_MAX + 16];
    size_t length = strlen(name);
    uint8_t *at = nbd_put32(data, (uint32_t)length);
    memcpy(at, name, length);
    at = nbd_put16(nbd_put16(at + length, 1), NBD_INFO_BLOCK_SIZE);
    int code = option_send(t, NBD_OPT_GO, data, (size_t)(at - data), err);
    for (unsigned i = 0; code == 0 && i < REPLIES_MAX; i++) {
        struct reply reply;
        code = reply_receive(t, NBD_OPT_GO, &reply, err);
        if (code < 0)
            return code;
        if (reply.type & NBD_REP_ERROR)
            return error_set(err, -ENOENT, ERROR_NOT_FOUND, "the NBD server refuses export \"%s\"", name);
        if (reply.type == NBD_REP_ACK)
            return 0;
        if (reply.type == NBD_REP_INFO && reply.size >= 2)
            info_take(&reply, hello);
    }
    return code < 0 ? code : nonsense(err);
}

int nbd_hello_negotiate(int fd, const char *export_name, const char *changed_since, const struct nbd_writer *writer,
                        unsigned timeout_ms, struct nbd_hello *ret_hello, struct error *err)
{
    struct talk t = {fd, now_ms() + timeout_ms};
    struct nbd_hello hello = {.block_bytes = 4096};
    if (strlen(export_name) > NBD_NAME_BYTES_MAX || (changed_since != NULL && strlen(changed_since) > NBD_SINCE_BYTES_MAX))
        return error_set(err, -EINVAL, ERROR_INVALID, "an export's name has at most %d bytes, and a state's %d",
                         NBD_NAME_BYTES_MAX, NBD_SINCE_BYTES_MAX);
    int code = hello_exchange(&t, err);
    if (code == 0)
        code = structured_ask(&t, &hello, err);
    if (code == 0 && writer != NULL)
        code = writer_tell(&t, writer, &hello, err);
    if (code == 0 && hello.structured)
        code = contexts_ask(&t, export_name, changed_since, &hello, err);
    if (code == 0)
        code = go_ask(&t, export_name, &hello, err);
    if (code < 0)
        return code;
    if (hello.size_bytes == 0 || hello.size_bytes % BLOCK_SECTOR_BYTES != 0 || hello.size_bytes > INT64_MAX)
        return error_set(err, -EPROTO, ERROR_NOT_SUPPORTED, "export \"%s\" has %llu bytes, which no disk can have",
                         export_name, (unsigned long long)hello.size_bytes);
    *ret_hello = hello;
    return 0;
}

int nbd_hello_connect(const char *socket_path, uint16_t port, unsigned timeout_ms, int *ret_fd, struct error *err)
{
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    struct sockaddr_in loopback = {
        .sin_family = AF_INET, .sin_port = htobe16(port), .sin_addr = {htobe32(INADDR_LOOPBACK)}};
    const struct sockaddr *address = socket_path != NULL ? (const void *)&local : (const void *)&loopback;
    if (socket_path != NULL && strlen(socket_path) >= sizeof local.sun_path)
        return error_set(err, -ENAMETOOLONG, ERROR_INVALID, "the path of a Unix socket has at most %zu bytes: %s",
                         sizeof local.sun_path - 1, socket_path);
    if (socket_path != NULL)
        strcpy(local.sun_path, socket_path);
    CLEANUP_FD int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_errno(err, -errno, "cannot make a socket");
    int code = connect(fd, address, socket_path != NULL ? sizeof local : sizeof loopback) < 0 ? -errno : 0;
    if (code == -EINPROGRESS || code == -EAGAIN) {
        struct talk t = {fd, now_ms() + timeout_ms};
        int failure = 0;
        socklen_t size = sizeof failure;
        code = code == -EAGAIN ? -EBUSY : talk_wait(&t, POLLOUT, err);
        if (code == 0 && getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &size) == 0)
            code = -failure;
    }
    if (code < 0)
        return error_errno(err, code, "cannot reach the NBD server at %s", socket_path != NULL ? socket_path : "127.0.0.1");
    *ret_fd = fd;
    fd = -1;
    return 0;
}

int nbd_hello_leave_wait(int fd, unsigned wait_ms)
{
    struct talk t = {fd, now_ms() + wait_ms};
    uint8_t rest[256];
    nbd_hello_leave(fd);
    while (fd >= 0) {
        ssize_t n = recv(fd, rest, sizeof rest, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            break;
        if (n < 0 && errno == EAGAIN && talk_wait(&t, POLLIN, NULL) < 0)
            return -ETIMEDOUT;
    }
    return 0;
}

void nbd_hello_leave(int fd)
{
    uint8_t request[NBD_REQUEST_HEAD_BYTES] = {0};
    nbd_put16(nbd_put16(nbd_put32(request, NBD_REQUEST_MAGIC), 0), NBD_CMD_DISCONNECT);
    if (fd >= 0)
        (void)!send(fd, request, sizeof request, MSG_NOSIGNAL | MSG_DONTWAIT);
}
