/* Answers of the HTTP server: whole ones, problem documents, streams, relayed ones, and the hand-over of the
 * connection to another protocol. Every function that ends a request also works when the client has gone. */
#include "common/http_connection.h"

#include <errno.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

#define COPY_BYTES_MAX (16 * 1024) /* larger bodies go beside their head, not behind it in one buffer */
#define KEEPALIVE_MS 15000
#define RETRY_AFTER_SECONDS 1

/* --- heads --- */

int http_headers_put(struct bytes_writer *out, const char *name, const char *value)
{
    for (const unsigned char *p = (const unsigned char *)value; *p != '\0'; p++)
        if (*p < 0x20 || *p == 0x7f)
            return -EINVAL;
    bytes_put_format(out, "%s: %s\r\n", name, value);
    return 0;
}

/* Status line and headers, without the length and the empty line. */
static void put_head(struct bytes_writer *out, struct http_server *server, const char *id, int status,
                     const char *content_type, const char *headers, bool keep)
{
    bytes_put_format(out, "HTTP/1.1 %d %s\r\nDate: %s\r\n", status, http_reason(status), http_server_date(server));
    if (content_type != NULL)
        bytes_put_format(out, "Content-Type: %s\r\n", content_type);
    if (id != NULL)
        bytes_put_format(out, "X-Request-Id: %s\r\n", id);
    if (headers != NULL)
        bytes_put_text(out, headers);
    if (!keep)
        bytes_put_text(out, "Connection: close\r\n");
}

/* RFC 9110 §6.4.1: these never have content. */
static bool has_content(int status)
{
    return status != 204 && status != 304;
}

/* --- whole answers --- */

/* Give the head and, behind it, a body that fits into one buffer with it. Frees or passes on @body. */
static void send_answer(struct http_exchange *e, int status, const char *content_type, const char *headers,
                        void *body, size_t body_size, void (*free_body)(void *body))
{
    struct http_connection *c = e->connection;
    struct bytes_writer head = {0};
    bool keep = http_exchange_keeps(e), with_body = has_content(status) && e->request.method != HTTP_HEAD;
    ASSERT(c->state == HTTP_HANDLING && status >= 200 && status <= 599);
    put_head(&head, c->server, e->id, status, has_content(status) ? content_type : NULL, headers, keep);
    if (has_content(status))
        bytes_put_format(&head, "Content-Length: %zu\r\n", body_size);
    bytes_put_text(&head, "\r\n");
    tls_stream_cork(c->stream);
    tls_stream_write(c->stream, head.data, head.size);
    if (with_body && free_body == NULL)
        tls_stream_write(c->stream, body, body_size);
    else if (with_body)
        tls_stream_write_take(c->stream, body, body_size, free_body);
    else if (free_body != NULL)
        free_body(body);
    tls_stream_uncork(c->stream);
    bytes_writer_finish(&head);
    http_connection_answered(c, keep);
}

void http_respond(struct http_request *request, int status, const char *content_type, const char *headers,
                  const void *body, size_t body_size)
{
    struct http_exchange *e = http_exchange_of(request);
    if (e->connection == NULL)
        http_exchange_free(e);
    else
        send_answer(e, status, content_type, headers, (void *)(uintptr_t)body, body_size, NULL);
}

void http_respond_take(struct http_request *request, int status, const char *content_type, const char *headers,
                       void *body, size_t body_size, void (*free_body)(void *body))
{
    struct http_exchange *e = http_exchange_of(request);
    if (e->connection != NULL) {
        send_answer(e, status, content_type, headers, body, body_size, free_body);
        return;
    }
    free_body(body);
    http_exchange_free(e);
}

void http_release(struct http_request *request)
{
    struct http_exchange *e = http_exchange_of(request);
    if (e->connection == NULL)
        http_exchange_free(e);
    else
        http_connection_answered(e->connection, false);
}

/* --- problem documents --- */

/* A JSON string; text that is no UTF-8 loses its bytes above ASCII, so that the document stays readable. */
static void put_json_string(struct bytes_writer *out, const char *text)
{
    bool utf8 = websocket_valid_utf8((const uint8_t *)text, strlen(text));
    bytes_put_u8(out, '"');
    for (const unsigned char *p = (const unsigned char *)text; *p != '\0'; p++) {
        if (*p == '"' || *p == '\\')
            bytes_put_format(out, "\\%c", *p);
        else if (*p < 0x20 || *p == 0x7f)
            bytes_put_format(out, "\\u%04x", *p);
        else
            bytes_put_u8(out, *p >= 0x80 && !utf8 ? '?' : *p);
    }
    bytes_put_u8(out, '"');
}

static void put_member(struct bytes_writer *out, const char *name, const char *value)
{
    bytes_put_format(out, "%s\"%s\":", out->size > 1 ? "," : "", name);
    put_json_string(out, value);
}

static void put_problem(struct bytes_writer *out, int status, const char *code, const char *title, const char *detail,
                        const char *field, const char *request_id)
{
    char type[96];
    struct bytes_writer doc = {0};
    snprintf(type, sizeof type, "urn:drover:error:%s", code);
    bytes_put_text(&doc, "{");
    put_member(&doc, "type", type);
    put_member(&doc, "title", title);
    bytes_put_format(&doc, ",\"status\":%d", status);
    put_member(&doc, "detail", detail);
    put_member(&doc, "code", code);
    if (field[0] != '\0') {
        char *pointer = xasprintf("#%s", field);
        put_member(&doc, "field", field);
        bytes_put_text(&doc, ",\"errors\":[{\"pointer\":");
        put_json_string(&doc, pointer);
        bytes_put_text(&doc, ",\"detail\":");
        put_json_string(&doc, detail);
        bytes_put_text(&doc, "}]");
        free(pointer);
    }
    if (request_id != NULL)
        put_member(&doc, "request_id", request_id);
    bytes_put_text(&doc, "}\n");
    bytes_put(out, doc.data, doc.size);
    bytes_writer_finish(&doc);
}

void http_put_problem(struct bytes_writer *out, const struct error *err, const char *request_id)
{
    const struct error_kind_info *info = error_kind_info(err->kind);
    put_problem(out, info->http_status, info->code, info->title, err->text, err->field, request_id);
}

void http_respond_error_headers(struct http_request *request, const struct error *err, const char *headers)
{
    struct bytes_writer body = {0}, more = {0};
    int status = error_kind_info(err->kind)->http_status;
    http_put_problem(&body, err, request->id);
    if (headers != NULL)
        bytes_put_text(&more, headers);
    if (status == 503)
        bytes_put_format(&more, "Retry-After: %d\r\n", RETRY_AFTER_SECONDS);
    bytes_put(&more, "", 1);
    http_respond(request, status, "application/problem+json", (const char *)more.data, body.data, body.size);
    bytes_writer_finish(&body);
    bytes_writer_finish(&more);
}

void http_respond_error(struct http_request *request, const struct error *err)
{
    http_respond_error_headers(request, err, NULL);
}

/* The stable code of a refusal that never reached a handler. */
static const char *refusal_code(int status)
{
    switch (status) {
    case 408:
        return "timeout";
    case 413:
    case 431:
        return "too-large";
    case 501:
    case 505:
        return "not-supported";
    case 503:
        return "overload";
    default:
        return "invalid";
    }
}

void http_answer_refuse(struct http_connection *c, int status, const char *detail)
{
    struct bytes_writer head = {0}, body = {0};
    const char *id = c->exchange != NULL ? c->exchange->id : NULL;
    c->server->counters.bad_requests++;
    put_problem(&body, status, refusal_code(status), http_reason(status), detail, "", id);
    put_head(&head, c->server, id, status, "application/problem+json", status == 503 ? "Retry-After: 1\r\n" : NULL,
             false);
    bytes_put_format(&head, "Content-Length: %zu\r\n\r\n", body.size);
    if (c->exchange == NULL || c->exchange->request.method != HTTP_HEAD)
        bytes_put(&head, body.data, body.size);
    tls_stream_write(c->stream, head.data, head.size);
    bytes_writer_finish(&head);
    bytes_writer_finish(&body);
    http_connection_answered(c, false);
}

/* --- streams --- */

static void stream_started(struct http_exchange *e, http_gone drained, void *arg)
{
    struct http_connection *c = e->connection;
    ASSERT(c->state == HTTP_HANDLING);
    c->state = HTTP_STREAMING;
    e->drained = drained;
    e->drained_arg = arg;
    e->progress_ms = uv_now(e->loop);
    e->sent_bytes_seen = tls_stream_sent_bytes(c->stream);
    if (e->keepalive_ms == 0)
        e->keepalive_ms = c->server->limits.write_timeout_ms;
    tls_stream_set_timer(c->stream, e->keepalive_ms);
}

void http_stream_begin(struct http_request *request, const struct http_stream_options *options)
{
    struct http_exchange *e = http_exchange_of(request);
    struct http_connection *c = e->connection;
    struct bytes_writer head = {0};
    if (c == NULL)
        return;
    int status = options->status != 0 ? options->status : 200;
    e->head_only = request->method == HTTP_HEAD;
    e->chunk_answer = e->head.minor_version == 1;
    if (options->keepalive != NULL) {
        e->keepalive = xstrdup(options->keepalive);
        e->keepalive_ms = options->keepalive_ms != 0 ? options->keepalive_ms : KEEPALIVE_MS;
    }
    put_head(&head, c->server, e->id, status, options->content_type, options->headers, http_exchange_keeps(e));
    if (options->content_type != NULL && strcmp(options->content_type, "text/event-stream") == 0)
        bytes_put_text(&head, "Cache-Control: no-store\r\n");
    bytes_put_text(&head, e->chunk_answer ? "Transfer-Encoding: chunked\r\n\r\n" : "\r\n");
    tls_stream_write(c->stream, head.data, head.size);
    bytes_writer_finish(&head);
    stream_started(e, options->drained, options->drained_arg);
}

static int stream_write(struct http_exchange *e, const void *data, size_t size)
{
    struct tls_stream *stream = e->connection->stream;
    char chunk_head[24];
    if (!e->chunk_answer)
        return tls_stream_write(stream, data, size);
    tls_stream_cork(stream);
    tls_stream_write(stream, chunk_head, (size_t)snprintf(chunk_head, sizeof chunk_head, "%zx\r\n", size));
    tls_stream_write(stream, data, size);
    int rc = tls_stream_write(stream, "\r\n", 2);
    tls_stream_uncork(stream);
    return rc;
}

/* A reader so slow that the queue is full is cut off: it has lost nothing that it cannot ask for again. */
static int check_queue(struct http_exchange *e, size_t size)
{
    struct http_connection *c = e->connection;
    if (c == NULL || e->cut_off)
        return -EPIPE;
    if (tls_stream_queued_bytes(c->stream) + size <= c->server->limits.write_queue_bytes_max)
        return 0;
    e->cut_off = true;
    c->server->counters.slow_readers++;
    tls_stream_abort(c->stream, -ENOBUFS);
    return -ENOBUFS;
}

int http_stream_write(struct http_request *request, const void *data, size_t size)
{
    struct http_exchange *e = http_exchange_of(request);
    int rc = check_queue(e, size);
    if (rc < 0)
        return rc;
    ASSERT(e->connection->state == HTTP_STREAMING);
    if (size == 0 || e->head_only)
        return 0; /* an empty chunk would end the stream */
    if (e->keepalive != NULL)
        tls_stream_set_timer(e->connection->stream, e->keepalive_ms);
    return stream_write(e, data, size);
}

size_t http_stream_queued_bytes(const struct http_request *request)
{
    const struct http_exchange *e = http_exchange_of(request);
    return e->connection != NULL ? tls_stream_queued_bytes(e->connection->stream) : 0;
}

void http_stream_end(struct http_request *request)
{
    struct http_exchange *e = http_exchange_of(request);
    if (e->connection == NULL) {
        http_exchange_free(e);
        return;
    }
    ASSERT(e->connection->state == HTTP_STREAMING);
    if (e->chunk_answer && !e->head_only)
        tls_stream_write(e->connection->stream, "0\r\n\r\n", 5);
    http_connection_answered(e->connection, http_exchange_keeps(e) && e->chunk_answer && !e->cut_off);
}

void http_answer_drained(struct http_connection *c)
{
    struct http_exchange *e = c->exchange;
    if (e->drained != NULL)
        e->drained(&e->request, e->drained_arg);
}

/* Nothing was written for a while: is the reader alive, and should it hear from us? */
void http_answer_timer(struct http_connection *c)
{
    struct http_exchange *e = c->exchange;
    uint64_t sent = tls_stream_sent_bytes(c->stream), now = uv_now(e->loop);
    if (sent != e->sent_bytes_seen || tls_stream_queued_bytes(c->stream) == 0) {
        e->sent_bytes_seen = sent;
        e->progress_ms = now;
    } else if (now - e->progress_ms >= c->server->limits.write_timeout_ms) {
        e->cut_off = true;
        c->server->counters.slow_readers++;
        tls_stream_abort(c->stream, -ETIMEDOUT);
        return;
    }
    if (e->keepalive != NULL && !e->head_only && tls_stream_queued_bytes(c->stream) == 0)
        stream_write(e, e->keepalive, strlen(e->keepalive));
    tls_stream_set_timer(c->stream, e->keepalive_ms);
}

/* --- relayed answers --- */

void http_relay_begin(struct http_request *request, const char *head, size_t size, http_gone drained, void *arg)
{
    struct http_exchange *e = http_exchange_of(request);
    struct http_connection *c = e->connection;
    if (c == NULL)
        return;
    bool keep = http_exchange_keeps(e);
    tls_stream_cork(c->stream);
    tls_stream_write(c->stream, head, size);
    tls_stream_write(c->stream, keep ? "\r\n" : "Connection: close\r\n\r\n", keep ? 2 : 21);
    tls_stream_uncork(c->stream);
    stream_started(e, drained, arg);
}

int http_relay_write(struct http_request *request, const void *data, size_t size)
{
    struct http_exchange *e = http_exchange_of(request);
    int rc = check_queue(e, size);
    return rc < 0 ? rc : tls_stream_write(e->connection->stream, data, size);
}

void http_relay_end(struct http_request *request, bool complete)
{
    struct http_exchange *e = http_exchange_of(request);
    if (e->connection == NULL)
        http_exchange_free(e);
    else
        http_connection_answered(e->connection, complete && !e->cut_off && http_exchange_keeps(e));
}

/* --- other protocols --- */

int http_upgrade_raw(struct http_request *request, const char *head, const struct tls_stream_callbacks *callbacks,
                     void *arg, struct tls_stream **ret_stream)
{
    struct http_exchange *e = http_exchange_of(request);
    struct http_connection *c = e->connection;
    if (c == NULL || tls_stream_write(c->stream, head, strlen(head)) < 0)
        return -EPIPE;
    struct tls_stream *stream = c->stream;
    ASSERT(c->state == HTTP_HANDLING);
    tls_stream_set_callbacks(stream, callbacks, arg);
    http_connection_detach(c);
    *ret_stream = stream;
    return 0;
}

/* RFC 6455 §4.2.1 */
static int check_websocket_request(const struct http_exchange *e, struct error *err)
{
    const char *upgrade = http_head_get(&e->head, "Upgrade"), *key = http_head_get(&e->head, "Sec-WebSocket-Key");
    const char *version = http_head_get(&e->head, "Sec-WebSocket-Version");
    unsigned char decoded[32];
    if (!e->head.upgrade || e->head.method != HTTP_GET || !http_has_token(upgrade, "websocket"))
        return error_set(err, -EINVAL, ERROR_INVALID, "this path takes a WebSocket upgrade only");
    if (version == NULL || strcmp(version, "13") != 0)
        return error_set(err, -EINVAL, ERROR_INVALID, "the WebSocket version must be 13");
    if (key == NULL || strlen(key) != 24 || EVP_DecodeBlock(decoded, (const unsigned char *)key, 24) != 18 ||
        strcmp(key + 22, "==") != 0)
        return error_set(err, -EINVAL, ERROR_INVALID, "Sec-WebSocket-Key must be 16 bytes in base64");
    return 0;
}

int http_websocket_accept(struct http_request *request, const char *protocol,
                          const struct websocket_callbacks *callbacks, void *arg, struct websocket **ret_websocket,
                          struct error *err)
{
    struct http_exchange *e = http_exchange_of(request);
    struct http_connection *c = e->connection;
    char accept[WEBSOCKET_ACCEPT_SIZE];
    if (c == NULL)
        return error_set(err, -EPIPE, ERROR_CANCELLED, "the client has gone");
    int rc = check_websocket_request(e, err);
    if (rc < 0)
        return rc;
    ASSERT(c->state == HTTP_HANDLING);
    websocket_accept_key(http_head_get(&e->head, "Sec-WebSocket-Key"), accept);
    struct bytes_writer head = {0};
    bytes_put_format(&head,
                     "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Accept: %s\r\nX-Request-Id: %s\r\n",
                     accept, e->id);
    if (protocol != NULL)
        bytes_put_format(&head, "Sec-WebSocket-Protocol: %s\r\n", protocol);
    bytes_put_text(&head, "\r\n");
    struct tls_stream *stream = c->stream;
    tls_stream_write(stream, head.data, head.size);
    bytes_writer_finish(&head);
    size_t queue_bytes_max = c->server->limits.write_queue_bytes_max;
    http_connection_detach(c);
    *ret_websocket = websocket_create_server(stream, queue_bytes_max, callbacks, arg);
    return 0;
}
