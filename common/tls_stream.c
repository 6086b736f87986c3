/* Byte streams over sockets, with or without TLS; see tls_stream.h for the rules.
 *
 *            connect                accept
 *               |                     |
 *   RESOLVING -> CONNECTING -> HANDSHAKING -> OPEN -> FINISHING -> CLOSED -> (memory freed)
 *        |            |             |          |          ^           ^
 *        +------------+-------------+----------+--on_end--+-----------+   by the owner
 *
 * Happy path: the socket's bytes go through OpenSSL by two memory BIOs; plain text waits in a list of chunks and is
 * encrypted only as far ahead as TLS_STREAM_FLIGHT_BYTES_MAX, so that a large answer costs its own size once.
 *
 * Failures: every error, found wherever, is stored and told from the loop (by `kick`, a timer of 0 ms), never from
 * inside a call of the owner. TLS errors are -EPROTO, with words in tls_stream_failure. */
#include "common/tls_stream.h"

#include <arpa/inet.h>
#include <errno.h>
#include <openssl/err.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/bytes.h"

#define RECORD_BYTES_MAX 16384  /* of plain text in one TLS record, RFC 8446 §5.1 */
#define CHUNK_BYTES_MIN 1024    /* small writes are gathered in chunks of at least this */
#define BIO_KEEP_BYTES_MAX 4096 /* larger memory BIOs are replaced when empty */
#define HOST_MAX 256
#define HANDLE_COUNT 3 /* socket, timer, kick */

enum stream_state { RESOLVING, CONNECTING, HANDSHAKING, OPEN, FINISHING, CLOSED };

struct stream_chunk {
    struct list link;
    uint8_t *data;
    size_t offset, size, capacity; /* capacity 0: taken over, never appended to */
    void (*free_data)(void *data);
};

struct stream_write {
    uv_write_t request;
    struct tls_stream *stream;
    struct stream_chunk *chunk; /* goes with the request; NULL: bytes follow */
    size_t size;
    uint8_t bytes[];
};

struct tls_stream {
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } socket;
    uv_timer_t timer; /* open timeout, then the owner's, then linger */
    uv_timer_t kick;  /* 0 ms: what must come from the loop */
    uv_connect_t connect;
    uv_shutdown_t shutdown;
    uv_getaddrinfo_t resolve;
    uv_loop_t *loop;
    unsigned pending; /* handles not closed yet, and the name lookup */

    enum stream_state state;
    bool is_pipe, is_server, paused, ended, reopening, shut_down, resolving;
    bool put_off;            /* by alloc_cb, for read_cb */
    uint64_t ticket;         /* since when its input waits, 0: it does not; in_waiting, or admitted and not read yet */
    struct list in_waiting;
    int end_status; /* to be told; 0 = none */
    int eof_status; /* the same, once all that came before it has been delivered */

    struct tls_context *tls;
    struct tls_stream_pace *pace;
    enum tls_client_check client_check;
    SSL *ssl;                /* a server's is made with the first step of the handshake: it costs 60 us */
    BIO *received, *to_send; /* owned by ssl, once there is one */

    const struct tls_stream_callbacks *callbacks;
    struct tls_stream_callbacks callbacks_copy;
    void *arg;

    struct list chunks;
    size_t chunk_bytes, flight_bytes;
    size_t turn_bytes; /* given to the kernel without waiting in this call of stream_pump */
    uint64_t sent_bytes, sent_at_linger;
    unsigned corked, linger_ms, open_timeout_ms;
    struct bytes_writer unread;

    struct addrinfo *addresses, *next_address;
    unsigned port;
    char host[HOST_MAX];
    char *peer_prefix;
    char peer[TLS_IDENTITY_MAX], peer_address[80], failure[192];

    struct list link;
    void (*release)(struct list *link, void *arg);
    void *release_arg;
};

static void stream_pump(struct tls_stream *s);
static void stream_end(struct tls_stream *s, int status);
static void connect_next(struct tls_stream *s);

/* --- life --- */

static void chunk_free(struct stream_chunk *chunk)
{
    chunk->free_data(chunk->data);
    free(chunk);
}

static void stream_free(struct tls_stream *s)
{
    uint64_t begin_ns = uv_hrtime();
    LIST_FOREACH_SAFE(link, &s->chunks)
    chunk_free(LIST_ENTRY(link, struct stream_chunk, link));
    if (s->ssl == NULL) {
        BIO_free(s->received);
        BIO_free(s->to_send);
    }
    SSL_free(s->ssl);
    tls_context_unref(s->tls);
    uv_freeaddrinfo(s->addresses);
    bytes_writer_finish(&s->unread);
    free(s->peer_prefix);
    if (s->pace != NULL)
        s->pace->free_ns = MIN(uv_hrtime() - begin_ns, (uint64_t)TLS_STREAM_TURN_NS_MAX / 16);
    if (s->release != NULL) /* the last one may free the pace too */
        s->release(&s->link, s->release_arg);
    free(s);
}

static void stream_unpend(struct tls_stream *s)
{
    ASSERT(s->pending > 0);
    if (--s->pending == 0)
        stream_free(s);
}

static void handle_closed_cb(uv_handle_t *handle)
{
    stream_unpend(handle->data);
}

static void socket_closed_cb(uv_handle_t *handle)
{
    struct tls_stream *s = handle->data;
    if (s->reopening && s->state != CLOSED) {
        s->reopening = false;
        connect_next(s);
        return;
    }
    stream_unpend(s);
}

static void pace_turn(struct tls_stream_pace *pace, const struct tls_stream *s)
{
    uint64_t now = uv_now(s->loop);
    if (pace->turn_ms == now)
        return;
    pace->turn_ms = now;
    pace->steps = 0;
    pace->spent_ns = 0;
}

void tls_stream_close(struct tls_stream *s)
{
    if (s->state == CLOSED)
        return;
    s->state = CLOSED;
    if (s->pace != NULL) { /* stream_free comes at the end of this turn */
        pace_turn(s->pace, s);
        s->pace->spent_ns += s->pace->free_ns;
    }
    list_remove(&s->in_waiting);
    s->ended = true;
    if (s->resolving)
        uv_cancel((uv_req_t *)&s->resolve);
    if (!uv_is_closing(&s->socket.handle))
        uv_close(&s->socket.handle, socket_closed_cb);
    uv_close((uv_handle_t *)&s->timer, handle_closed_cb);
    uv_close((uv_handle_t *)&s->kick, handle_closed_cb);
}

static void kick_cb(uv_timer_t *timer);

static void kick(struct tls_stream *s)
{
    if (s->state != CLOSED)
        uv_timer_start(&s->kick, kick_cb, 0, 0);
}

/* Remember why, and tell it from the loop. */
static void stream_fail(struct tls_stream *s, int status)
{
    if (s->ended || s->end_status != 0)
        return;
    s->end_status = status;
    kick(s);
}

static struct tls_stream *stream_create(uv_loop_t *loop, bool is_pipe, const struct tls_stream_options *options,
                                        const struct tls_stream_callbacks *callbacks, void *arg)
{
    struct tls_stream *s = NEW(struct tls_stream);
    s->loop = loop;
    s->is_pipe = is_pipe;
    list_init(&s->chunks);
    list_init(&s->link);
    list_init(&s->in_waiting);
    if (is_pipe)
        uv_pipe_init(loop, &s->socket.pipe, 0);
    else
        uv_tcp_init(loop, &s->socket.tcp);
    uv_timer_init(loop, &s->timer);
    uv_timer_init(loop, &s->kick);
    s->socket.handle.data = s->timer.data = s->kick.data = s;
    s->pending = HANDLE_COUNT;
    s->tls = options->tls != NULL ? tls_context_ref(options->tls) : NULL;
    s->pace = options->pace;
    tls_stream_set_callbacks(s, callbacks, arg);
    return s;
}

void tls_stream_set_callbacks(struct tls_stream *s, const struct tls_stream_callbacks *callbacks, void *arg)
{
    s->callbacks_copy = *callbacks;
    s->callbacks = &s->callbacks_copy;
    s->arg = arg;
}

/* --- ends --- */

/* From the loop only. */
static void stream_end(struct tls_stream *s, int status)
{
    if (s->state == FINISHING) {
        tls_stream_close(s);
        return;
    }
    if (s->ended || s->state == CLOSED)
        return;
    s->ended = true;
    if (!uv_is_closing(&s->socket.handle))
        uv_read_stop(&s->socket.stream);
    uv_timer_stop(&s->timer);
    if (s->failure[0] == '\0')
        snprintf(s->failure, sizeof s->failure, "%s", uv_strerror(status));
    s->callbacks->on_end(s, status, s->arg);
}

static void stream_end_tls(struct tls_stream *s)
{
    const char *verify = tls_verify_failure(s->ssl);
    unsigned long number = ERR_peek_error();
    const char *reason = number != 0 ? ERR_reason_error_string(number) : NULL;
    if (verify[0] != '\0')
        snprintf(s->failure, sizeof s->failure, "certificate refused: %s", verify);
    else
        snprintf(s->failure, sizeof s->failure, "TLS: %s", reason != NULL ? reason : "broken off");
    ERR_clear_error();
    stream_end(s, -EPROTO);
}

void tls_stream_abort(struct tls_stream *s, int status)
{
    if (s->state == FINISHING)
        tls_stream_close(s);
    else
        stream_fail(s, status);
}

/* --- output --- */

static void stream_sent(struct tls_stream *s, size_t size)
{
    s->sent_bytes += size;
}

static void finish_when_flushed(struct tls_stream *s);

static void written_cb(uv_write_t *request, int status)
{
    struct stream_write *w = CONTAINER_OF(request, struct stream_write, request);
    struct tls_stream *s = w->stream;
    s->flight_bytes -= w->size;
    if (w->chunk != NULL)
        chunk_free(w->chunk);
    if (status == 0)
        stream_sent(s, w->size);
    free(w);
    if (s->state == CLOSED)
        return;
    if (status < 0) {
        stream_end(s, status);
        return;
    }
    stream_pump(s);
    if (s->chunk_bytes + s->flight_bytes > 0 || s->ended)
        return;
    if (s->state == FINISHING)
        finish_when_flushed(s);
    else if (s->state == OPEN && s->callbacks->on_drain != NULL)
        s->callbacks->on_drain(s, s->arg);
}

/* Give @size bytes to the kernel now as far as it takes them without waiting. */
static size_t try_write(struct tls_stream *s, uint8_t *data, size_t size)
{
    if (s->flight_bytes > 0 || s->turn_bytes >= TLS_STREAM_TURN_BYTES_MAX)
        return 0;
    uv_buf_t buffer = uv_buf_init((char *)data, (unsigned)MIN(size, (size_t)INT32_MAX));
    int n = uv_try_write(&s->socket.stream, &buffer, 1);
    if (n < 0) {
        if (n != UV_EAGAIN)
            stream_fail(s, n);
        return 0;
    }
    stream_sent(s, (size_t)n);
    s->turn_bytes += (size_t)n;
    return (size_t)n;
}

static void submit(struct tls_stream *s, struct stream_write *w, uint8_t *data)
{
    uv_buf_t buffer = uv_buf_init((char *)data, (unsigned)w->size);
    w->stream = s;
    s->flight_bytes += w->size;
    int rc = uv_write(&w->request, &s->socket.stream, &buffer, 1, written_cb);
    if (rc < 0) {
        s->flight_bytes -= w->size;
        if (w->chunk != NULL)
            chunk_free(w->chunk);
        free(w);
        stream_fail(s, rc);
    }
}

/* What OpenSSL wants to send goes to the socket. */
static void flush_tls(struct tls_stream *s)
{
    char *data;
    long size = BIO_get_mem_data(s->to_send, &data);
    if (size <= 0)
        return;
    size_t sent = try_write(s, (uint8_t *)data, (size_t)size), rest = (size_t)size - sent;
    if (rest > 0 && s->end_status == 0) {
        struct stream_write *w = xcalloc(1, sizeof *w + rest);
        w->size = rest;
        memcpy(w->bytes, data + sent, rest);
        submit(s, w, w->bytes);
    }
    (void)BIO_reset(s->to_send);
}

static void pump_tls(struct tls_stream *s, struct stream_chunk *chunk)
{
    size_t part = MIN(chunk->size - chunk->offset, (size_t)RECORD_BYTES_MAX);
    int n = SSL_write(s->ssl, chunk->data + chunk->offset, (int)part);
    if (n <= 0) {
        ERR_clear_error();
        stream_fail(s, -EPROTO);
        return;
    }
    chunk->offset += (size_t)n;
    s->chunk_bytes -= (size_t)n;
    flush_tls(s);
}

/* Returns with the chunk given to a write request of its own where the kernel does not take all of it now. */
static bool pump_plain(struct tls_stream *s, struct stream_chunk *chunk)
{
    size_t n = try_write(s, chunk->data + chunk->offset, chunk->size - chunk->offset);
    chunk->offset += n;
    s->chunk_bytes -= n;
    if (chunk->offset == chunk->size || s->end_status != 0)
        return false;
    struct stream_write *w = NEW(struct stream_write);
    w->chunk = chunk;
    w->size = MIN(chunk->size - chunk->offset, (size_t)INT32_MAX);
    ASSERT(w->size == chunk->size - chunk->offset); /* tls_stream_write_take refuses larger ones */
    s->chunk_bytes -= w->size;
    list_remove(&chunk->link);
    submit(s, w, chunk->data + chunk->offset);
    return true;
}

/* A reader that takes everything at once must not have the loop to itself: after TLS_STREAM_TURN_BYTES_MAX the next
 * piece goes by a write request, whose callback comes in another turn of the loop and goes on. */
static bool may_pump(const struct tls_stream *s)
{
    return s->flight_bytes == 0 ||
           (s->turn_bytes < TLS_STREAM_TURN_BYTES_MAX && s->flight_bytes < TLS_STREAM_FLIGHT_BYTES_MAX);
}

static void stream_pump(struct tls_stream *s)
{
    if ((s->state != OPEN && s->state != FINISHING) || s->corked > 0 || s->shut_down)
        return;
    s->turn_bytes = 0;
    while (!list_empty(&s->chunks) && may_pump(s) && s->end_status == 0 && s->state != CLOSED) {
        struct stream_chunk *chunk = LIST_ENTRY(s->chunks.next, struct stream_chunk, link);
        if (s->ssl != NULL)
            pump_tls(s, chunk);
        else if (pump_plain(s, chunk))
            continue;
        if (chunk->offset == chunk->size) {
            list_remove(&chunk->link);
            chunk_free(chunk);
        }
    }
}

static bool is_writable(const struct tls_stream *s)
{
    return !s->ended && s->end_status == 0 && s->state < FINISHING;
}

static void append_chunk(struct tls_stream *s, void *data, size_t size, size_t capacity,
                         void (*free_data)(void *data))
{
    struct stream_chunk *chunk = NEW(struct stream_chunk);
    *chunk = (struct stream_chunk){.data = data, .size = size, .capacity = capacity, .free_data = free_data};
    list_append(&s->chunks, &chunk->link);
}

int tls_stream_write(struct tls_stream *s, const void *data, size_t size)
{
    if (!is_writable(s))
        return -EPIPE;
    if (size == 0)
        return 0;
    struct stream_chunk *last = list_empty(&s->chunks) ? NULL : LIST_ENTRY(s->chunks.prev, struct stream_chunk, link);
    if (last != NULL && last->capacity - MIN(last->capacity, last->size) >= size) {
        memcpy(last->data + last->size, data, size);
        last->size += size;
    } else {
        size_t capacity = MAX(size, (size_t)CHUNK_BYTES_MIN);
        uint8_t *copy = malloc(capacity);
        if (copy == NULL)
            return -ENOMEM;
        memcpy(copy, data, size);
        append_chunk(s, copy, size, capacity, free);
    }
    s->chunk_bytes += size;
    stream_pump(s);
    return 0;
}

int tls_stream_write_take(struct tls_stream *s, void *data, size_t size, void (*free_data)(void *data))
{
    if (!is_writable(s) || size == 0 || size > INT32_MAX) {
        free_data(data);
        return is_writable(s) ? (size == 0 ? 0 : -EMSGSIZE) : -EPIPE;
    }
    append_chunk(s, data, size, 0, free_data);
    s->chunk_bytes += size;
    stream_pump(s);
    return 0;
}

void tls_stream_cork(struct tls_stream *s)
{
    s->corked++;
}

void tls_stream_uncork(struct tls_stream *s)
{
    if (s->state >= FINISHING)
        return; /* finishing has let everything go */
    ASSERT(s->corked > 0);
    if (--s->corked == 0)
        stream_pump(s);
}

size_t tls_stream_queued_bytes(const struct tls_stream *s)
{
    return s->chunk_bytes + s->flight_bytes;
}

uint64_t tls_stream_sent_bytes(const struct tls_stream *s)
{
    return s->sent_bytes;
}

/* --- finishing --- */

static void shutdown_cb(uv_shutdown_t *request, int status)
{
    struct tls_stream *s = request->data;
    /* Now wait for the other side's end: closing with bytes unread would send a reset, and that may destroy
     * what we have just sent. The linger timer bounds it. */
    if (s->state == FINISHING && status < 0)
        tls_stream_close(s);
}

/* All has been sent: say goodbye. */
static void finish_when_flushed(struct tls_stream *s)
{
    if (s->chunk_bytes + s->flight_bytes > 0 || s->shut_down)
        return;
    if (s->ssl != NULL && !s->shut_down) {
        SSL_shutdown(s->ssl);
        ERR_clear_error();
        flush_tls(s);
    }
    s->shut_down = true;
    s->shutdown.data = s;
    if (uv_shutdown(&s->shutdown, &s->socket.stream, shutdown_cb) < 0)
        tls_stream_close(s);
}

static void linger_cb(uv_timer_t *timer)
{
    struct tls_stream *s = timer->data;
    bool progress = !s->shut_down && s->sent_bytes != s->sent_at_linger;
    s->sent_at_linger = s->sent_bytes;
    if (progress)
        uv_timer_start(&s->timer, linger_cb, s->linger_ms, 0);
    else
        tls_stream_close(s);
}

static void start_reading(struct tls_stream *s);

void tls_stream_finish(struct tls_stream *s, unsigned linger_ms)
{
    if (s->state == CLOSED || s->state == FINISHING)
        return;
    if (s->state != OPEN || s->ended || s->end_status != 0) {
        tls_stream_close(s);
        return;
    }
    s->state = FINISHING;
    s->corked = 0;
    s->linger_ms = linger_ms;
    s->sent_at_linger = s->sent_bytes;
    uv_timer_start(&s->timer, linger_cb, linger_ms, 0);
    s->paused = false;
    bytes_writer_finish(&s->unread);
    start_reading(s);
    stream_pump(s);
    kick(s); /* goodbye, and errors of the pump, from the loop */
}

/* --- input --- */

/* No buffer for a stream that has to wait: libuv then reads nothing. Whoever comes while others wait goes behind them, or
 * those that ask again at once would always be first. */
static void alloc_cb(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer)
{
    struct tls_stream *s = handle->data;
    struct tls_stream_pace *pace = s->pace;
    (void)suggested;
    if (pace != NULL)
        pace_turn(pace, s);
    s->put_off = pace != NULL && (pace->spent_ns >= TLS_STREAM_TURN_NS_MAX || (s->ticket == 0 && !list_empty(&pace->waiting)));
    buffer->base = s->put_off ? NULL : malloc(TLS_STREAM_READ_BYTES_MAX);
    buffer->len = buffer->base != NULL ? TLS_STREAM_READ_BYTES_MAX : 0;
}

static bool is_receiving(const struct tls_stream *s)
{
    return s->state == OPEN && !s->ended && !s->paused;
}

static void deliver_unread(struct tls_stream *s)
{
    while (s->unread.size > 0 && is_receiving(s)) {
        struct bytes_writer data = s->unread; /* the owner may give bytes back while it reads these */
        s->unread = (struct bytes_writer){0};
        s->callbacks->on_data(s, data.data, data.size, s->arg);
        bytes_writer_finish(&data);
    }
}

static void deliver(struct tls_stream *s, const uint8_t *data, size_t size)
{
    if (s->unread.size > 0 || !is_receiving(s)) {
        if (s->state != OPEN || s->ended)
            return;
        bytes_put(&s->unread, data, size); /* one read's worth at most: reading stops with the pause */
        deliver_unread(s);
        return;
    }
    s->callbacks->on_data(s, data, size, s->arg);
}

static void replace_large_bio(struct tls_stream *s, size_t just_read)
{
    if (just_read <= BIO_KEEP_BYTES_MAX || BIO_ctrl_pending(s->received) > 0 || s->state != OPEN)
        return;
    s->received = BIO_new(BIO_s_mem());
    SSL_set0_rbio(s->ssl, s->received);
    if (BIO_ctrl_pending(s->to_send) == 0) {
        s->to_send = BIO_new(BIO_s_mem());
        SSL_set0_wbio(s->ssl, s->to_send);
    }
}

static void stream_opened(struct tls_stream *s)
{
    s->state = OPEN;
    uv_timer_stop(&s->timer);
    if (s->ssl != NULL)
        tls_peer_identity(s->ssl, s->peer, sizeof s->peer);
    if (s->callbacks->on_open != NULL)
        s->callbacks->on_open(s, s->arg);
    if (s->state == OPEN)
        stream_pump(s);
}

/* May this stream begin its handshake in this turn of the loop? If not, it is woken later; what has begun goes on at
 * once, so that those that came first are done first. Never with 0 ms:
 * libuv runs a timer that is started so from a timer within the same turn. */
static bool may_step(struct tls_stream *s)
{
    struct tls_stream_pace *pace = s->pace;
    if (pace == NULL || s->ssl != NULL)
        return true;
    pace_turn(pace, s);
    if (pace->steps < TLS_STREAM_TURN_HANDSHAKES_MAX) {
        pace->steps++;
        return true;
    }
    uv_read_stop(&s->socket.stream); /* what comes meanwhile stays in the kernel */
    uv_timer_stop(&s->timer);        /* make_session starts it again: the client has spoken, we are slow */
    uv_timer_start(&s->kick, kick_cb, 1, 0);
    return false;
}

static void open_timeout_cb(uv_timer_t *timer);

static bool make_session(struct tls_stream *s)
{
    if (s->ssl != NULL)
        return true;
    s->ssl = s->is_server ? tls_context_server_session(s->tls, s->client_check)
                          : tls_context_client_session(s->tls, s->host, s->peer_prefix);
    if (s->ssl == NULL) {
        ERR_clear_error();
        stream_fail(s, -ENOMEM);
        return false;
    }
    SSL_set_bio(s->ssl, s->received, s->to_send);
    if (s->is_server) /* the time that it waited for its turn here was not the client's */
        uv_timer_start(&s->timer, open_timeout_cb, s->open_timeout_ms, 0);
    return true;
}

static void handshake_step(struct tls_stream *s)
{
    if (!may_step(s) || !make_session(s))
        return;
    ERR_clear_error();
    int rc = SSL_do_handshake(s->ssl);
    int why = rc == 1 ? SSL_ERROR_NONE : SSL_get_error(s->ssl, rc);
    flush_tls(s); /* alerts too */
    if (rc == 1)
        stream_opened(s);
    else if (why != SSL_ERROR_WANT_READ)
        stream_end_tls(s);
}

/* Everything OpenSSL can decrypt of what has come, as far as the owner wants it. */
static void read_tls(struct tls_stream *s)
{
    uint8_t plain[RECORD_BYTES_MAX];
    while (is_receiving(s) || s->state == FINISHING) {
        ERR_clear_error();
        int n = SSL_read(s->ssl, plain, sizeof plain);
        if (n > 0) {
            if (s->state == OPEN)
                deliver(s, plain, (size_t)n);
            continue;
        }
        int why = SSL_get_error(s->ssl, n);
        flush_tls(s); /* answers to key updates, alerts */
        if (why == SSL_ERROR_ZERO_RETURN)
            stream_end(s, UV_EOF);
        else if (why != SSL_ERROR_WANT_READ)
            stream_end_tls(s);
        return;
    }
}

static void receive_tls(struct tls_stream *s, const uint8_t *data, size_t size)
{
    if (BIO_write(s->received, data, (int)size) != (int)size) {
        stream_end(s, -ENOMEM);
        return;
    }
    if (s->state == HANDSHAKING)
        handshake_step(s);
    if (s->state == OPEN || s->state == FINISHING)
        read_tls(s);
    replace_large_bio(s, size);
}

/* Deliver what is here already, and then the end if it has come. */
static void drain_input(struct tls_stream *s)
{
    deliver_unread(s);
    if (s->ssl != NULL && is_receiving(s))
        read_tls(s);
    if (s->eof_status != 0 && is_receiving(s) && s->unread.size == 0)
        stream_end(s, s->eof_status);
}

/* The first that wait may read again. While any are left the loop does not sleep. */
static void admit_cb(uv_idle_t *idle)
{
    struct tls_stream_pace *pace = idle->data;
    for (unsigned i = 0; i < TLS_STREAM_TURN_ADMITTED && !list_empty(&pace->waiting); i++) {
        struct tls_stream *s = LIST_ENTRY(pace->waiting.next, struct tls_stream, in_waiting);
        list_remove(&s->in_waiting);
        if (s->state == HANDSHAKING || s->state == FINISHING || is_receiving(s))
            start_reading(s);
        else
            s->ticket = 0;
    }
    if (list_empty(&pace->waiting))
        uv_idle_stop(idle);
}

/* Behind those that wait already; one that was admitted and had no turn all the same goes back to its place. */
static void wait_for_turn(struct tls_stream *s)
{
    struct tls_stream_pace *pace = s->pace;
    struct list *before = &pace->waiting;
    uv_read_stop(&s->socket.stream);
    list_remove(&s->in_waiting);
    if (s->ticket == 0)
        s->ticket = ++pace->tickets;
    else
        for (before = before->next;
             before != &pace->waiting && LIST_ENTRY(before, struct tls_stream, in_waiting)->ticket < s->ticket;)
            before = before->next;
    list_append(before, &s->in_waiting);
    uv_idle_start(&pace->idle, admit_cb);
}

void tls_stream_pace_init(struct tls_stream_pace *pace, uv_loop_t *loop)
{
    *pace = (struct tls_stream_pace){.turn_ms = 0};
    uv_idle_init(loop, &pace->idle);
    pace->idle.data = pace;
    list_init(&pace->waiting);
}

void tls_stream_pace_close(struct tls_stream_pace *pace, uv_close_cb closed, void *data)
{
    pace->idle.data = data;
    uv_close((uv_handle_t *)&pace->idle, closed);
}

static void handle_input(struct tls_stream *s, ssize_t n, const uv_buf_t *buffer)
{
    uv_stream_t *stream = &s->socket.stream;
    if (n < 0 && s->state == OPEN) {
        uv_read_stop(stream);
        s->eof_status = (int)n;
        drain_input(s);
    } else if (n < 0) {
        stream_end(s, (int)n);
    } else if (n > 0 && s->tls != NULL) {
        receive_tls(s, (const uint8_t *)buffer->base, (size_t)n);
    } else if (n > 0) {
        deliver(s, (const uint8_t *)buffer->base, (size_t)n);
    }
}

static void read_cb(uv_stream_t *stream, ssize_t n, const uv_buf_t *buffer)
{
    struct tls_stream *s = stream->data;
    struct tls_stream_pace *pace = s->pace;
    uint64_t begin_ns = pace != NULL ? uv_hrtime() : 0;
    if (s->put_off) {
        wait_for_turn(s);
        return;
    }
    s->ticket = 0;
    handle_input(s, n, buffer);
    free(buffer->base);
    if (pace != NULL)
        pace->spent_ns += uv_hrtime() - begin_ns;
}

static void start_reading(struct tls_stream *s)
{
    int rc = uv_read_start(&s->socket.stream, alloc_cb, read_cb);
    if (rc < 0 && rc != UV_EALREADY)
        stream_fail(s, rc);
}

void tls_stream_pause(struct tls_stream *s)
{
    if (s->paused || s->state >= FINISHING)
        return;
    s->paused = true;
    if (s->state == OPEN)
        uv_read_stop(&s->socket.stream);
}

void tls_stream_resume(struct tls_stream *s)
{
    if (!s->paused || s->state >= FINISHING)
        return;
    s->paused = false;
    if (s->state != OPEN || s->ended)
        return;
    if (s->eof_status == 0)
        start_reading(s);
    if (s->unread.size > 0 || s->ssl != NULL || s->eof_status != 0)
        kick(s); /* what was decrypted, or could be, when the pause came */
}

void tls_stream_unread(struct tls_stream *s, const void *data, size_t size)
{
    if (s->state >= FINISHING || size == 0)
        return;
    struct bytes_writer joined = {0};
    bytes_put(&joined, data, size);
    bytes_put(&joined, s->unread.data, s->unread.size);
    bytes_writer_finish(&s->unread);
    s->unread = joined;
    kick(s);
}

static void kick_cb(uv_timer_t *timer)
{
    struct tls_stream *s = timer->data;
    if (s->end_status != 0) {
        stream_end(s, s->end_status);
        return;
    }
    if (s->state == FINISHING) {
        finish_when_flushed(s);
        return;
    }
    if (s->state == HANDSHAKING) { /* it had to wait */
        start_reading(s);
        handshake_step(s);
    }
    if (s->state == OPEN)
        drain_input(s);
}

/* --- opening --- */

static void open_timeout_cb(uv_timer_t *timer)
{
    stream_end(timer->data, UV_ETIMEDOUT);
}

static void name_peer(struct tls_stream *s)
{
    struct sockaddr_storage address;
    int size = sizeof address;
    char host[INET6_ADDRSTRLEN] = "";
    if (s->is_pipe) {
        snprintf(s->peer_address, sizeof s->peer_address, "unix");
        return;
    }
    if (uv_tcp_getpeername(&s->socket.tcp, (struct sockaddr *)&address, &size) < 0)
        return;
    if (address.ss_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)&address;
        uv_ip4_name(v4, host, sizeof host);
        snprintf(s->peer_address, sizeof s->peer_address, "%s:%u", host, ntohs(v4->sin_port));
    } else {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&address;
        uv_ip6_name(v6, host, sizeof host);
        snprintf(s->peer_address, sizeof s->peer_address, "[%s]:%u", host, ntohs(v6->sin6_port));
    }
}

/* The socket is connected: begin TLS or be open. From the loop only. */
static void stream_connected(struct tls_stream *s, enum tls_client_check check)
{
    name_peer(s);
    if (!s->is_pipe)
        uv_tcp_nodelay(&s->socket.tcp, 1);
    if (!s->paused || s->tls != NULL)
        start_reading(s);
    if (s->tls == NULL) {
        stream_opened(s);
        return;
    }
    s->state = HANDSHAKING;
    s->client_check = check;
    s->received = BIO_new(BIO_s_mem());
    s->to_send = BIO_new(BIO_s_mem());
    if (!s->is_server)
        handshake_step(s);
}

static void connected_cb(uv_connect_t *request, int status)
{
    struct tls_stream *s = request->data;
    if (s->state != CONNECTING || s->ended)
        return;
    if (status < 0 && s->next_address != NULL) {
        /* A name with several addresses: a socket whose connect has failed is of no more use. */
        s->reopening = true;
        uv_close(&s->socket.handle, socket_closed_cb);
        return;
    }
    if (status < 0)
        stream_end(s, status);
    else
        stream_connected(s, TLS_CLIENT_OPTIONAL);
}

static int connect_address(struct tls_stream *s, const struct sockaddr *address)
{
    s->state = CONNECTING;
    s->connect.data = s;
    return uv_tcp_connect(&s->connect, &s->socket.tcp, address, connected_cb);
}

static void connect_next(struct tls_stream *s)
{
    struct addrinfo *address = s->next_address;
    struct sockaddr_storage with_port;
    s->next_address = address->ai_next;
    memcpy(&with_port, address->ai_addr, address->ai_addrlen);
    ((struct sockaddr_in *)&with_port)->sin_port = htons((uint16_t)s->port); /* the same place in sockaddr_in6 */
    uv_tcp_init(s->loop, &s->socket.tcp);
    s->socket.handle.data = s;
    int rc = connect_address(s, (struct sockaddr *)&with_port);
    if (rc < 0)
        stream_fail(s, rc);
}

static void resolved_cb(uv_getaddrinfo_t *request, int status, struct addrinfo *addresses)
{
    struct tls_stream *s = request->data;
    s->resolving = false;
    s->addresses = addresses;
    if (s->state == RESOLVING && !s->ended) {
        if (status < 0) {
            snprintf(s->failure, sizeof s->failure, "%.100s: %s", s->host, uv_strerror(status));
            stream_end(s, UV_EHOSTUNREACH);
        } else {
            s->next_address = addresses;
            s->reopening = true;
            uv_close(&s->socket.handle, socket_closed_cb);
        }
    }
    stream_unpend(s);
}

static int resolve_host(struct tls_stream *s)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG};
    s->state = RESOLVING;
    s->resolve.data = s;
    int rc = uv_getaddrinfo(s->loop, &s->resolve, resolved_cb, s->host, NULL, &hints);
    if (rc == 0) {
        s->resolving = true;
        s->pending++;
    }
    return rc;
}

/* "host:port" and "[v6]:port". */
static int split_endpoint(const char *endpoint, char *host, size_t host_size, unsigned *ret_port)
{
    const char *colon = strrchr(endpoint, ':');
    const char *begin = endpoint, *end = colon;
    if (colon == NULL || colon[1] < '0' || colon[1] > '9')
        return -EINVAL;
    char *rest;
    unsigned long port = strtoul(colon + 1, &rest, 10);
    if (*rest != '\0' || port > 65535)
        return -EINVAL;
    if (*begin == '[' && end > begin && end[-1] == ']') {
        begin++;
        end--;
    } else if (memchr(begin, ':', (size_t)(end - begin)) != NULL) {
        return -EINVAL;
    }
    if (end == begin || (size_t)(end - begin) >= host_size)
        return -EINVAL;
    memcpy(host, begin, (size_t)(end - begin));
    host[end - begin] = '\0';
    *ret_port = (unsigned)port;
    return 0;
}

int tls_stream_parse_address(const char *endpoint, struct sockaddr_storage *ret_address)
{
    char host[HOST_MAX];
    unsigned port;
    int rc = split_endpoint(endpoint, host, sizeof host, &port);
    if (rc < 0)
        return rc;
    if (uv_ip4_addr(host, (int)port, (struct sockaddr_in *)ret_address) == 0 ||
        uv_ip6_addr(host, (int)port, (struct sockaddr_in6 *)ret_address) == 0)
        return 0;
    return -EINVAL;
}

static int begin_connect(struct tls_stream *s, const char *endpoint)
{
    struct sockaddr_storage address;
    if (s->is_pipe) {
        s->state = CONNECTING;
        s->connect.data = s;
        uv_pipe_connect(&s->connect, &s->socket.pipe, endpoint + strlen("unix:"), connected_cb);
        return 0;
    }
    int rc = tls_stream_parse_address(endpoint, &address);
    return rc == 0 ? connect_address(s, (struct sockaddr *)&address) : resolve_host(s);
}

int tls_stream_connect(uv_loop_t *loop, const char *endpoint, const struct tls_stream_options *options,
                       const struct tls_stream_callbacks *callbacks, void *arg, struct tls_stream **ret_stream,
                       struct error *err)
{
    bool is_pipe = strncmp(endpoint, "unix:", 5) == 0;
    char host[HOST_MAX] = "";
    unsigned port = 0, timeout_ms = options->open_timeout_ms;
    if (is_pipe ? strlen(endpoint) - 5 > 107 : split_endpoint(endpoint, host, sizeof host, &port) < 0)
        return error_set(err, -EINVAL, ERROR_INVALID, "'%s' is not host:port, [v6]:port or unix:/path", endpoint);
    struct tls_stream *s = stream_create(loop, is_pipe, options, callbacks, arg);
    memcpy(s->host, host, sizeof host);
    s->port = port;
    s->peer_prefix = options->peer_prefix != NULL ? xstrdup(options->peer_prefix) : NULL;
    uv_timer_start(&s->timer, open_timeout_cb, timeout_ms > 0 ? timeout_ms : TLS_STREAM_OPEN_TIMEOUT_MS, 0);
    int rc = begin_connect(s, endpoint);
    if (rc < 0) {
        tls_stream_close(s);
        return error_errno(err, rc, "cannot connect to %s", endpoint);
    }
    *ret_stream = s;
    return 0;
}

/* A plain server stream is open from the start. */
static void accepted_cb(uv_timer_t *timer)
{
    stream_connected(timer->data, TLS_CLIENT_OPTIONAL);
}

int tls_stream_accept(uv_stream_t *listener, const struct tls_stream_options *options,
                      const struct tls_stream_callbacks *callbacks, void *arg, struct tls_stream **ret_stream)
{
    unsigned timeout_ms = options->open_timeout_ms;
    struct tls_stream *s = stream_create(listener->loop, listener->type == UV_NAMED_PIPE, options, callbacks, arg);
    s->is_server = true;
    s->state = CONNECTING;
    int rc = uv_accept(listener, &s->socket.stream);
    if (rc < 0) {
        s->pace = NULL; /* whose owner does not count this one */
        tls_stream_close(s);
        return rc;
    }
    s->open_timeout_ms = timeout_ms > 0 ? timeout_ms : TLS_STREAM_OPEN_TIMEOUT_MS;
    uv_timer_start(&s->timer, open_timeout_cb, s->open_timeout_ms, 0);
    *ret_stream = s;
    if (s->tls != NULL) {
        stream_connected(s, options->client_check);
        return 0;
    }
    uv_timer_start(&s->kick, accepted_cb, 0, 0); /* on_open comes from the loop, when the caller has the stream */
    return 0;
}

/* --- the owner's timer and small things --- */

static void timer_cb(uv_timer_t *timer)
{
    struct tls_stream *s = timer->data;
    if (s->callbacks->on_timer != NULL)
        s->callbacks->on_timer(s, s->arg);
}

void tls_stream_set_timer(struct tls_stream *s, uint64_t timeout_ms)
{
    if (s->state != OPEN || s->ended)
        return;
    if (timeout_ms == 0)
        uv_timer_stop(&s->timer);
    else
        uv_timer_start(&s->timer, timer_cb, timeout_ms, 0);
}

void tls_stream_set_release(struct tls_stream *s, void (*release)(struct list *link, void *arg), void *arg)
{
    s->release = release;
    s->release_arg = arg;
}

struct list *tls_stream_link(struct tls_stream *s)
{
    return &s->link;
}

struct tls_stream *tls_stream_from_link(struct list *link)
{
    return LIST_ENTRY(link, struct tls_stream, link);
}

uv_loop_t *tls_stream_loop(const struct tls_stream *s)
{
    return s->loop;
}

const char *tls_stream_peer(const struct tls_stream *s)
{
    return s->peer;
}

const char *tls_stream_peer_address(const struct tls_stream *s)
{
    return s->peer_address;
}

const char *tls_stream_failure(const struct tls_stream *s)
{
    return s->failure;
}
