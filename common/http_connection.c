/* One connection of the HTTP server: from bytes to requests, in order, one at a time; see http_connection.h.
 *
 * Reading goes on while the handler has a request, so that a client that goes away is noticed; what comes is kept
 * up to HTTP_PIPELINE_BYTES_MAX, then reading pauses. The connection is freed at the end of its own parse loop at
 * the earliest, because a handler may answer, stream, upgrade or release from inside. */
#include "common/http_connection.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static void parse(struct http_connection *c);

/* --- life --- */

void http_exchange_free(struct http_exchange *e)
{
    if (e->connection != NULL)
        e->connection->server->body_bytes -= e->body_counted;
    bytes_writer_finish(&e->body);
    free(e->head_data);
    free(e->keepalive);
    free(e);
}

static void connection_free(struct http_connection *c)
{
    c->dead = true;
    if (c->parsing)
        return; /* parse() does it */
    bytes_writer_finish(&c->in);
    free(c);
}

static void leave_handshake(struct http_connection *c)
{
    struct http_server *server = c->server;
    if (c->is_open)
        return;
    c->is_open = true;
    server->counters.handshakes--;
    if (server->accept_waiting && !server->stopping) {
        server->accept_waiting = false;
        http_connection_accept(server);
    }
}

/* The connection has no more use: forget the stream, which closes by itself, and tell the handler. */
static void connection_gone(struct http_connection *c)
{
    struct http_exchange *e = c->exchange;
    leave_handshake(c);
    c->stream = NULL;
    c->exchange = NULL;
    if (e != NULL && c->state < HTTP_HANDLING) {
        http_exchange_free(e);
    } else if (e != NULL) {
        c->server->body_bytes -= e->body_counted;
        e->connection = NULL;
        if (e->gone != NULL)
            e->gone(&e->request, e->gone_arg);
    }
    connection_free(c);
}

void http_connection_detach(struct http_connection *c)
{
    struct http_exchange *e = TAKE_PTR(c->exchange);
    tls_stream_unread(c->stream, c->in.data + c->in_start, c->in.size - c->in_start);
    tls_stream_set_timer(c->stream, 0);
    tls_stream_resume(c->stream);
    c->stream = NULL;
    http_exchange_free(e);
    connection_free(c);
}

bool http_exchange_keeps(const struct http_exchange *e)
{
    return e->head.keep_alive && !e->connection->server->stopping;
}

/* --- from one request to the next --- */

static void wait_for_head(struct http_connection *c)
{
    bool partial = c->in.size > c->in_start;
    c->state = HTTP_READ_HEAD;
    tls_stream_set_timer(c->stream,
                         partial ? c->server->limits.header_timeout_ms : c->server->limits.idle_timeout_ms);
}

void http_connection_answered(struct http_connection *c, bool keep)
{
    struct http_exchange *e = TAKE_PTR(c->exchange);
    if (e != NULL)
        http_exchange_free(e);
    if (!keep) {
        tls_stream_finish(TAKE_PTR(c->stream), HTTP_LINGER_MS);
        connection_free(c);
        return;
    }
    if (tls_stream_queued_bytes(c->stream) > HTTP_SEND_AHEAD_BYTES_MAX) {
        c->state = HTTP_SENDING;
        c->sent_bytes_seen = tls_stream_sent_bytes(c->stream);
        tls_stream_set_timer(c->stream, c->server->limits.write_timeout_ms);
        return;
    }
    wait_for_head(c);
    /* Answered later than in the handler: what waits comes back from the loop, because handlers are not called
     * from inside an answer. */
    if (!c->parsing && c->in.size > c->in_start) {
        tls_stream_unread(c->stream, c->in.data + c->in_start, c->in.size - c->in_start);
        bytes_writer_finish(&c->in);
        c->in_start = c->scanned = 0;
    }
    tls_stream_resume(c->stream);
}

/* --- reading --- */

static void consume(struct http_connection *c, size_t size)
{
    c->in_start += size;
    c->scanned = 0;
    if (c->in_start == c->in.size)
        c->in_start = c->in.size = 0;
}

static bool is_request_id(const char *text)
{
    size_t length = strlen(text);
    return length > 0 && length <= HTTP_REQUEST_ID_MAX &&
           strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == length;
}

static void fill_request(struct http_connection *c, struct http_exchange *e)
{
    const char *id = http_head_get(&e->head, "X-Request-Id");
    if (id != NULL && is_request_id(id))
        snprintf(e->id, sizeof e->id, "%s", id);
    else
        snprintf(e->id, sizeof e->id, "%016llx-%llx", (unsigned long long)c->server->request_prefix,
                 (unsigned long long)++c->server->request_counter);
    snprintf(e->peer, sizeof e->peer, "%s", tls_stream_peer(c->stream));
    snprintf(e->peer_address, sizeof e->peer_address, "%s", tls_stream_peer_address(c->stream));
    e->request = (struct http_request){
        .method = e->head.method,
        .path = e->head.path,
        .query = e->head.query,
        .body = (const uint8_t *)"",
        .peer = e->peer,
        .peer_address = e->peer_address,
        .id = e->id,
    };
}

static void dispatch(struct http_connection *c)
{
    struct http_exchange *e = c->exchange;
    static const uint8_t terminator;
    if (e->body.size > 0) {
        bytes_put(&e->body, &terminator, 1);
        e->body.size--;
        e->request.body = e->body.data;
        e->request.body_size = e->body.size;
    }
    c->state = HTTP_HANDLING;
    c->server->counters.requests++;
    tls_stream_set_timer(c->stream, 0);
    c->server->handler(&e->request, c->server->arg);
}

/* The head is whole: the body follows, or the handler's turn. */
static void begin_body(struct http_connection *c)
{
    struct http_exchange *e = c->exchange;
    struct http_server *server = c->server;
    if (e->head.content_length > server->limits.body_bytes_max) {
        http_answer_refuse(c, 413, "the body is larger than this server takes");
        return;
    }
    if (!e->head.chunked && e->head.content_length == 0) {
        dispatch(c);
        return;
    }
    /* A client that waits for leave gets it; one that has begun to send needs none. */
    if (e->head.expect_continue && c->in.size == c->in_start) {
        static const char go_on[] = "HTTP/1.1 100 Continue\r\n\r\n";
        tls_stream_write(c->stream, go_on, sizeof go_on - 1);
    }
    c->state = HTTP_READ_BODY;
    tls_stream_set_timer(c->stream, server->limits.body_timeout_ms);
}

/* False: more bytes are needed, or the connection is done. */
static bool parse_head(struct http_connection *c)
{
    char *data = (char *)c->in.data + c->in_start;
    size_t available = c->in.size - c->in_start, scanned_before = c->scanned;
    if (available == 0)
        return false;
    ssize_t size = http_head_size(data, available, &c->scanned);
    if (size < 0) {
        http_answer_refuse(c, (int)-size, size == -431 ? "the head is too large" : "this is not HTTP/1.1");
        return false;
    }
    if (size == 0) {
        if (scanned_before == 0) /* its first bytes: from now the head has its own time limit */
            tls_stream_set_timer(c->stream, c->server->limits.header_timeout_ms);
        return false;
    }
    struct http_exchange *e = NEW(struct http_exchange);
    e->head_data = xcalloc(1, (size_t)size);
    memcpy(e->head_data, data, (size_t)size);
    consume(c, (size_t)size);
    int rc = http_parse_request(e->head_data, (size_t)size, &e->head);
    if (rc < 0) {
        http_exchange_free(e);
        http_answer_refuse(c, -rc, "the head of the request is not well-formed or not supported");
        return false;
    }
    e->connection = c;
    e->loop = c->server->loop;
    c->exchange = e;
    fill_request(c, e);
    begin_body(c);
    return true;
}

/* Add to the body; false: refused. */
static bool take_body(struct http_connection *c, const void *data, size_t size)
{
    struct http_exchange *e = c->exchange;
    struct http_server *server = c->server;
    if (size > server->limits.body_bytes_max - e->body.size) {
        http_answer_refuse(c, 413, "the body is larger than this server takes");
        return false;
    }
    if (size > server->limits.bodies_bytes_max - server->body_bytes) {
        http_answer_refuse(c, 503, "too many request bodies are being received");
        return false;
    }
    bytes_put(&e->body, data, size);
    e->body_counted += size;
    server->body_bytes += size;
    return true;
}

static bool parse_body(struct http_connection *c)
{
    struct http_exchange *e = c->exchange;
    char *data = (char *)c->in.data + c->in_start;
    size_t available = c->in.size - c->in_start, used, decoded;
    bool whole;
    if (available == 0)
        return false;
    if (e->head.chunked) {
        int rc = http_chunked_decode(&e->chunked, data, available, &used, &decoded);
        if (rc < 0) {
            http_answer_refuse(c, 400, "the chunks of the body are not well-formed");
            return false;
        }
        whole = rc == 1;
    } else {
        used = decoded = (size_t)MIN((uint64_t)available, e->head.content_length - e->body.size);
        whole = e->body.size + decoded == e->head.content_length;
    }
    if (!take_body(c, data, decoded))
        return false;
    consume(c, used);
    if (whole)
        dispatch(c);
    return true;
}

static void parse_all(struct http_connection *c)
{
    bool more = true;
    while (more && !c->dead) {
        if (c->state == HTTP_READ_HEAD)
            more = parse_head(c);
        else if (c->state == HTTP_READ_BODY)
            more = parse_body(c);
        else
            more = false;
    }
}

/* Every request that is whole, until one stays with its handler. Frees the connection when it has ended within. */
static void parse(struct http_connection *c)
{
    struct tls_stream *stream = c->stream;
    bool again;
    ASSERT(!c->parsing);
    c->parsing = true;
    do {
        tls_stream_cork(stream);
        parse_all(c);
        tls_stream_uncork(stream);
        /* What was too much to go on may have left with the uncorking, and then no drain is told. */
        again = !c->dead && c->state == HTTP_SENDING && tls_stream_queued_bytes(stream) == 0;
        if (again)
            wait_for_head(c);
    } while (again);
    c->parsing = false;
    if (c->dead) {
        connection_free(c);
        return;
    }
    if (c->in_start > 0) {
        c->in.size -= c->in_start;
        memmove(c->in.data, c->in.data + c->in_start, c->in.size);
        c->in_start = 0;
    }
    if (c->in.size == 0)
        bytes_writer_finish(&c->in); /* an idle connection keeps no buffer */
    if (c->state >= HTTP_HANDLING && c->in.size > HTTP_PIPELINE_BYTES_MAX)
        tls_stream_pause(c->stream);
}

/* --- the stream's callbacks --- */

static void on_open(struct tls_stream *stream, void *arg)
{
    struct http_connection *c = arg;
    (void)stream;
    leave_handshake(c);
    wait_for_head(c);
}

static void on_data(struct tls_stream *stream, const uint8_t *data, size_t size, void *arg)
{
    struct http_connection *c = arg;
    (void)stream;
    bytes_put(&c->in, data, size);
    parse(c);
}

static void on_drain(struct tls_stream *stream, void *arg)
{
    struct http_connection *c = arg;
    (void)stream;
    if (c->state == HTTP_STREAMING) {
        http_answer_drained(c);
    } else if (c->state == HTTP_SENDING) {
        wait_for_head(c);
        tls_stream_resume(c->stream);
        parse(c);
    }
}

static void on_timer(struct tls_stream *stream, void *arg)
{
    struct http_connection *c = arg;
    uint64_t sent = tls_stream_sent_bytes(stream);
    switch (c->state) {
    case HTTP_READ_HEAD:
        c->server->counters.timeouts++;
        if (c->in.size > c->in_start)
            http_answer_refuse(c, 408, "the head of the request did not come in time");
        else
            http_connection_answered(c, false);
        break;
    case HTTP_READ_BODY:
        c->server->counters.timeouts++;
        http_answer_refuse(c, 408, "the body of the request did not come in time");
        break;
    case HTTP_STREAMING:
        http_answer_timer(c);
        break;
    case HTTP_SENDING:
        if (sent == c->sent_bytes_seen) {
            c->server->counters.slow_readers++;
            tls_stream_abort(stream, -ETIMEDOUT);
            break;
        }
        c->sent_bytes_seen = sent;
        tls_stream_set_timer(stream, c->server->limits.write_timeout_ms);
        break;
    case HTTP_HANDLING:
        break;
    }
}

static void on_end(struct tls_stream *stream, int status, void *arg)
{
    struct http_connection *c = arg;
    (void)status;
    connection_gone(c);
    tls_stream_close(stream);
}

static const struct tls_stream_callbacks stream_callbacks = {
    .on_open = on_open,
    .on_data = on_data,
    .on_drain = on_drain,
    .on_timer = on_timer,
    .on_end = on_end,
};

static void released(struct list *link, void *arg)
{
    struct http_server *server = arg;
    list_remove(link);
    server->counters.connections--;
    http_server_maybe_free(server);
}

/* Once half of the places are taken patience is short: connections that say nothing must not keep the others waiting
 * for as long as it takes them all to time out. A handshake takes milliseconds. */
static unsigned handshake_timeout(const struct http_server *server)
{
    bool many = server->counters.handshakes >= server->limits.handshakes_max / 2;
    return many ? MAX(server->limits.handshake_timeout_ms / 4, 1u) : server->limits.handshake_timeout_ms;
}

void http_connection_accept(struct http_server *server)
{
    struct http_connection *c = NEW(struct http_connection);
    struct tls_stream_options options = {
        .tls = server->tls,
        .client_check = server->client_check,
        .pace = &server->pace,
        .open_timeout_ms = handshake_timeout(server),
    };
    if (tls_stream_accept(&server->listener.stream, &options, &stream_callbacks, c, &c->stream) < 0) {
        server->counters.refused++;
        free(c);
        return;
    }
    c->server = server;
    list_append(&server->streams, tls_stream_link(c->stream));
    tls_stream_set_release(c->stream, released, server);
    server->counters.connections++;
    if (server->counters.connections > server->limits.connections_max) {
        server->counters.refused++;
        tls_stream_close(c->stream);
        free(c);
        return;
    }
    server->counters.accepted++;
    server->counters.handshakes++;
}
