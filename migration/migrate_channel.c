/* Blocking reads and writes in slices, so that a cancel and a silent peer are noticed; see migrate_channel.h. */
#include "migration/migrate_channel.h"

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define READ_BYTES 262144u

uint64_t migrate_now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

void migrate_channel_init(struct migrate_channel *c, int fd, const bool *cancel, unsigned patience_ms)
{
    *c = (struct migrate_channel){.fd = fd, .cancel = cancel, .patience_ms = patience_ms};
}

void migrate_channel_finish(struct migrate_channel *c)
{
    close_fd(&c->fd);
    c->fd = -1;
    free(TAKE_PTR(c->buffer));
}

static bool is_cancelled(const struct migrate_channel *c)
{
    return __atomic_load_n(c->cancel, __ATOMIC_ACQUIRE);
}

static int cancelled(struct error *err)
{
    return error_set(err, -ECANCELED, ERROR_CANCELLED, "the migration was cancelled");
}

static int lost(struct error *err)
{
    return error_set(err, -ECONNRESET, ERROR_UNREACHABLE, "the other side of the migration has closed the connection");
}

/* Until the socket is ready for @events. @since_us: when something moved last. */
static int wait_ready(const struct migrate_channel *c, short events, uint64_t since_us, struct error *err)
{
    struct pollfd p = {.fd = c->fd, .events = events};
    while (true) {
        if (is_cancelled(c))
            return cancelled(err);
        int n = poll(&p, 1, CHANNEL_SLICE_MS);
        if (n > 0 && !(c->deadline_us && migrate_now_us() >= c->deadline_us))
            return 0;
        if (n < 0 && errno != EINTR)
            return error_errno(err, -errno, "cannot wait for the migration's connection");
        if (c->deadline_us && migrate_now_us() >= c->deadline_us)
            return error_set(err, -ETIMEDOUT, ERROR_TIMEOUT,
                             "the other side of the migration is too slow: the time for this step is over");
        if (c->patience_ms && migrate_now_us() - since_us >= (uint64_t)c->patience_ms * 1000)
            return error_set(err, -ETIMEDOUT, ERROR_TIMEOUT, "the other side of the migration was silent for %u ms",
                             c->patience_ms);
    }
}

/* Wait for as long as the limit of bandwidth asks, and note @size bytes. */
static int limit_wait(struct migrate_channel *c, size_t size, struct error *err)
{
    if (!c->bytes_per_s_max)
        return 0;
    uint64_t now = migrate_now_us();
    while (c->free_at_us > now + CHANNEL_BURST_MS * 1000) {
        struct timespec pause = {.tv_nsec =
                                     (long)MIN(c->free_at_us - now - CHANNEL_BURST_MS * 1000, CHANNEL_SLICE_MS * 1000) *
                                     1000};
        if (is_cancelled(c))
            return cancelled(err);
        nanosleep(&pause, NULL);
        now = migrate_now_us();
    }
    c->free_at_us = MAX(c->free_at_us, now) + (uint64_t)size * 1000000 / c->bytes_per_s_max;
    return 0;
}

int migrate_channel_write(void *arg, const void *data, size_t size, struct error *err)
{
    struct migrate_channel *c = arg;
    uint64_t moved_us = migrate_now_us();
    int code = limit_wait(c, size, err);
    for (size_t done = 0; code == 0 && done < size;) {
        ssize_t n = send(c->fd, (const uint8_t *)data + done, size - done, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0) {
            done += (size_t)n;
            if (c->written)
                __atomic_fetch_add(c->written, (uint64_t)n, __ATOMIC_RELAXED);
            moved_us = migrate_now_us();
        } else if (errno == EAGAIN) {
            code = wait_ready(c, POLLOUT, moved_us, err);
        } else if (errno == EPIPE || errno == ECONNRESET) {
            return lost(err);
        } else if (errno != EINTR) {
            return error_errno(err, -errno, "cannot write to the migration's connection");
        }
    }
    return code;
}

ssize_t migrate_channel_read(struct migrate_channel *c, void *data, size_t size, struct error *err)
{
    uint64_t since_us = migrate_now_us();
    while (true) {
        ssize_t n = recv(c->fd, data, size, MSG_DONTWAIT);
        if (n > 0)
            return n;
        if (n == 0 || errno == ECONNRESET)
            return lost(err);
        if (errno != EAGAIN && errno != EINTR)
            return error_errno(err, -errno, "cannot read from the migration's connection");
        int code = wait_ready(c, POLLIN, since_us, err);
        if (code < 0)
            return code;
    }
}

/* ---- descriptors ---- */

enum { HANDLES_BYTES = 16 };
#define HANDLES_CONTROL_BYTES CMSG_SPACE(GUEST_HANDLES_MAX * sizeof(int))

/* So few bytes at the beginning of a connection are taken whole, or not at all. */
int migrate_channel_put_handles(struct migrate_channel *c, const int *fds, size_t count, struct error *err)
{
    union {
        struct cmsghdr head; /* aligned */
        uint8_t bytes[HANDLES_CONTROL_BYTES];
    } control = {0};
    uint64_t words[HANDLES_BYTES / 8] = {htole64(MIGRATE_HANDLES_MAGIC), htole64(count)};
    struct iovec io = {.iov_base = words, .iov_len = sizeof(words)};
    struct msghdr message = {
        .msg_iov = &io, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = CMSG_SPACE(count * sizeof(int))};
    ASSERT(count >= 1 && count <= GUEST_HANDLES_MAX);
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(rights), fds, count * sizeof(int));
    ssize_t n = sendmsg(c->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n == (ssize_t)sizeof(words))
        return 0;
    return error_errno(err, n < 0 ? -errno : -EIO, "cannot hand descriptors to the target");
}

static void handles_close(int *fds, size_t count)
{
    for (size_t i = 0; i < count; i++)
        close(fds[i]);
}

int migrate_channel_take_handles(struct migrate_channel *c, int ret_fds[GUEST_HANDLES_MAX], size_t *ret_count,
                                 struct error *err)
{
    union {
        struct cmsghdr head;
        uint8_t bytes[HANDLES_CONTROL_BYTES];
    } control = {0};
    uint64_t words[HANDLES_BYTES / 8] = {0};
    struct iovec io = {.iov_base = words, .iov_len = sizeof(words)};
    struct msghdr message = {
        .msg_iov = &io, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
    size_t count = 0;
    int code = wait_ready(c, POLLIN, migrate_now_us(), err);
    if (code < 0)
        return code;
    ssize_t n = recvmsg(c->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0)
        return error_errno(err, -errno, "cannot read from the source's connection");
    for (struct cmsghdr *h = CMSG_FIRSTHDR(&message); h; h = CMSG_NXTHDR(&message, h)) {
        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS || count > 0)
            continue;
        count = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(ret_fds, CMSG_DATA(h), count * sizeof(int));
    }
    if (n == (ssize_t)sizeof(words) && le64toh(words[0]) == MIGRATE_HANDLES_MAGIC && le64toh(words[1]) == count &&
        count > 0 && !(message.msg_flags & MSG_CTRUNC)) {
        *ret_count = count;
        return 0;
    }
    handles_close(ret_fds, count);
    return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the source hands nothing over: it is to be ordered to (hand_over)");
}

bool migrate_channel_is_open(const struct migrate_channel *c)
{
    uint8_t byte;
    ssize_t n = recv(c->fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK);
    return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

static int read_all(struct migrate_channel *c, uint8_t *data, size_t size, struct error *err)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = migrate_channel_read(c, data + done, size - done, err);
        if (n < 0)
            return (int)n;
        done += (size_t)n;
    }
    return 0;
}

int migrate_channel_reply(struct migrate_channel *c, struct migrate_reply *ret_reply, struct error *err)
{
    uint8_t data[MIGRATE_REPLY_BYTES_MAX];
    struct migrate_reply reply;
    int code = read_all(c, data, MIGRATE_REPLY_BYTES, err);
    ssize_t size = code == 0 ? migrate_reply_size(data, err) : code;
    if (size < 0)
        return (int)size;
    code = read_all(c, data + MIGRATE_REPLY_BYTES, (size_t)size - MIGRATE_REPLY_BYTES, err);
    if (code == 0)
        code = migrate_reply_decode(data, (size_t)size, &reply, err);
    if (code < 0)
        return code;
    if (reply.kind == MIGRATE_REFUSED)
        return error_set(err, -ECONNABORTED, ERROR_CONFLICT, "the target refuses: %s", reply.text);
    *ret_reply = reply;
    return 0;
}

int migrate_channel_expect(struct migrate_channel *c, enum migrate_reply_kind kind, struct migrate_reply *ret_reply,
                           struct error *err)
{
    struct migrate_reply reply;
    int code = migrate_channel_reply(c, &reply, err);
    if (code < 0)
        return code;
    if (reply.kind != kind)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the target answers out of order (%d instead of %d)",
                         (int)reply.kind, (int)kind);
    *ret_reply = reply;
    return 0;
}

int migrate_channel_answer(struct migrate_channel *c, enum migrate_reply_kind kind, uint64_t value, const char *text,
                           struct error *err)
{
    struct migrate_reply reply = {.kind = kind, .value = value};
    struct bytes_writer out = {0};
    memcpy(reply.text, text, strnlen(text, MIGRATE_TEXT_BYTES_MAX));
    migrate_reply_encode(&reply, &out);
    int code = migrate_channel_write(c, out.data, out.size, err);
    bytes_writer_finish(&out);
    return code;
}

int migrate_channel_section(struct migrate_channel *c, struct stream_reader *reader, struct stream_section *ret_section,
                            struct error *err)
{
    while (true) {
        int code = stream_next(reader, ret_section, err);
        if (code > 0)
            return 0;
        if (code < 0)
            return code;
        if (!c->buffer)
            c->buffer = xcalloc(1, READ_BYTES);
        size_t wanted = MIN(stream_wanted(reader), READ_BYTES);
        if (wanted == 0)
            return error_set(err, -EBADMSG, ERROR_CHECKSUM, "there is more expected after the end of a stream");
        ssize_t n = migrate_channel_read(c, c->buffer, wanted, err);
        if (n < 0)
            return (int)n;
        stream_feed(reader, c->buffer, (size_t)n);
    }
}
