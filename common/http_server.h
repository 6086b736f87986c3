/* HTTP/1.1 server in a uv loop: REST answers, Server-Sent Events, WebSocket, raw takeover; TCP or Unix socket,
 * plain or TLS 1.3 with client certificates. Strict parsing (common/http_parse.h): what is not well-formed is
 * refused.
 *
 * One thread, the loop's, for everything. Callbacks never come from inside a call of this interface.
 *
 * A request lives from the handler's call until it is ended, exactly once, by one of
 *     http_respond  http_respond_take  http_respond_error  http_release
 *     http_stream_end  http_relay_end  http_websocket_accept  http_upgrade_raw   (these two: on success only)
 * at once or any time later, even after the client went away (on_gone) or the server stopped: the answer is then
 * dropped. Each connection has one request at a time; pipelined ones wait, their order is kept.
 *
 *   static void handle(struct http_request *request, void *arg)
 *   {
 *       if (strcmp(request->path, "/healthz") == 0)
 *           http_respond(request, 200, "text/plain", NULL, "ok\n", 3);
 *       else
 *           http_respond_error(request, &not_found);
 *   } */
#ifndef COMMON_HTTP_SERVER_H
#define COMMON_HTTP_SERVER_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <uv.h>

#include "common/bytes.h"
#include "common/error.h"
#include "common/http_parse.h"
#include "common/tls.h"
#include "common/tls_stream.h"
#include "common/websocket.h"

/* 0 in any member = the default. */
struct http_limits {
    unsigned connections_max;      /* beyond: accepted and closed at once (1024 * 8) */
    unsigned handshakes_max;       /* of TLS at once: further connections wait to be accepted (256) */
    size_t body_bytes_max;         /* of a request: 413 beyond (1 MiB) */
    size_t bodies_bytes_max;       /* of all requests together: 503 beyond (256 MiB) */
    size_t write_queue_bytes_max;  /* of a stream, relay or WebSocket (4 MiB) */
    unsigned handshake_timeout_ms; /* (10 s); a quarter of it while half of handshakes_max are under way */
    unsigned header_timeout_ms;    /* first to last byte of a head: 408 (10 s) */
    unsigned body_timeout_ms;      /* whole body: 408 (30 s) */
    unsigned idle_timeout_ms;      /* between requests (75 s) */
    unsigned write_timeout_ms;     /* an answer of which the client takes nothing for so long (30 s) */
};

struct http_request {
    enum http_method method;
    const char *path;    /* as sent: "/v1/a%20b"; decode segments with http_percent_decode */
    const char *query;   /* as sent, without '?'; "" where there is none */
    const uint8_t *body; /* decoded of chunks; a 0 byte follows the last one; never NULL */
    size_t body_size;
    const char *peer;         /* "spiffe://..." of the client's verified certificate, or "" */
    const char *peer_address; /* "192.0.2.1:4711", "[2001:db8::1]:4711" or "unix" */
    const char *id;           /* X-Request-Id: the client's if well-formed, else made here; sent back in the answer */
    void *data;               /* the handler's */
};

typedef void (*http_handler)(struct http_request *request, void *arg);
typedef void (*http_gone)(struct http_request *request, void *arg);

struct http_server_options {
    const char *address;     /* "0.0.0.0:7443", "[::]:7443", "127.0.0.1:0" or "unix:/run/x.sock" */
    mode_t unix_mode;        /* of the socket file; 0 = 0600 */
    struct tls_context *tls; /* NULL: plain */
    enum tls_client_check client_check;
    struct http_limits limits;
    http_handler handler;
    void *arg;
};
struct http_server;

/* -EADDRINUSE and other errnos with words. A Unix socket file that nobody listens on any more is replaced. */
int http_server_start(uv_loop_t *loop, const struct http_server_options *options, struct http_server **ret_server,
                      struct error *err);
/* Stop listening and break off all connections: requests get on_gone, WebSockets on_close(1001), raw streams
 * on_end(-ECANCELED). @closed (may be NULL) when the last connection is gone and the server's memory freed. */
void http_server_stop(struct http_server *server, void (*closed)(void *arg), void *arg);
unsigned http_server_port(const struct http_server *server); /* for ":0" */
struct http_server_counters {
    uint64_t accepted, refused, requests, bad_requests, timeouts, slow_readers;
    unsigned connections, handshakes;
};
const struct http_server_counters *http_server_counters(const struct http_server *server);

/* --- reading the request --- */

/* Value of a header (any case), or NULL. Of repeated headers the first. */
const char *http_request_header(const struct http_request *request, const char *name);
/* For loops over all headers: false when @index is past the last. Names as sent. */
bool http_request_header_at(const struct http_request *request, size_t index, const char **ret_name,
                            const char **ret_value);
/* Decoded query parameter with terminator: its length; -ENOENT; -EEXIST: given twice; -EINVAL: bad escape or a
 * zero byte; -ENOBUFS. "x" and "x=" are the empty value. */
ssize_t http_request_parameter(const struct http_request *request, const char *name, char *buffer, size_t size);
/* All of them in turn, to refuse unknown ones. *position starts as 0; 1: one found, 0: no more, -EINVAL, -ENOBUFS. */
int http_request_next_parameter(const struct http_request *request, size_t *position, char *name, size_t name_size,
                                char *value, size_t value_size);
/* Tell @gone once if the client goes away before the request is ended. May be changed; NULL: nobody. */
void http_request_on_gone(struct http_request *request, http_gone gone, void *arg);
bool http_request_is_gone(const struct http_request *request);
uv_loop_t *http_request_loop(const struct http_request *request);

/* --- whole answers --- */

/* @headers: NULL or lines "Name: value\r\n" one after the other (http_headers_put writes them safely). Date,
 * Content-Length, Connection and X-Request-Id are added here. To HEAD, 204 and 304 the body is not sent. */
void http_respond(struct http_request *request, int status, const char *content_type, const char *headers,
                  const void *body, size_t body_size);
/* The body is not copied: @free_body(body) is called when it has been sent or dropped. */
void http_respond_take(struct http_request *request, int status, const char *content_type, const char *headers,
                       void *body, size_t body_size, void (*free_body)(void *body));
/* application/problem+json (RFC 9457): type, title, status, detail, code, errors[{pointer, detail}], request_id;
 * Retry-After with 503. */
void http_respond_error(struct http_request *request, const struct error *err);
void http_respond_error_headers(struct http_request *request, const struct error *err, const char *headers);
/* The problem document alone, for other transports; written as JSON to @out. */
void http_put_problem(struct bytes_writer *out, const struct error *err, const char *request_id);
/* End without an answer: the connection is closed. */
void http_release(struct http_request *request);
/* Append "Name: value\r\n"; -EINVAL and nothing written where @value has control characters. */
int http_headers_put(struct bytes_writer *out, const char *name, const char *value);

/* --- streamed answers (Server-Sent Events, large downloads) --- */

struct http_stream_options {
    int status;               /* 0 = 200 */
    const char *content_type; /* "text/event-stream" */
    const char *headers;      /* as of http_respond; Cache-Control: no-store is added for event streams */
    const char *keepalive;    /* sent when nothing was for keepalive_ms; ": keep-alive\n\n"; NULL: nothing */
    unsigned keepalive_ms;    /* 0 = 15000 */
    http_gone drained;        /* all written has left; may be NULL */
    void *drained_arg;
};
/* The client is told of by http_request_on_gone, after which the stream must still be ended. */
void http_stream_begin(struct http_request *request, const struct http_stream_options *options);
/* Copied. -EPIPE: gone. -ENOBUFS: more than write_queue_bytes_max would wait: a slow reader, who is cut off (on_gone
 * follows). Sources that can wait look at http_stream_queued_bytes first and go on at `drained`. */
int http_stream_write(struct http_request *request, const void *data, size_t size);
size_t http_stream_queued_bytes(const struct http_request *request);
void http_stream_end(struct http_request *request);

/* --- answers that another server has framed already (http_proxy) --- */

/* @head: status line and headers, sent as they are; Connection and the empty line are added here. */
void http_relay_begin(struct http_request *request, const char *head, size_t size, http_gone drained, void *arg);
int http_relay_write(struct http_request *request, const void *data, size_t size); /* -EPIPE: gone */
/* @complete: the answer's framing has ended, so that the connection may be kept; else it is closed. */
void http_relay_end(struct http_request *request, bool complete);

/* --- other protocols on the connection --- */

/* Answer the upgrade (RFC 6455 §4.2). <0: not a well-formed WebSocket request, which is NOT ended: answer it.
 * @protocol: subprotocol to name, or NULL. See common/websocket.h for what follows. */
int http_websocket_accept(struct http_request *request, const char *protocol,
                          const struct websocket_callbacks *callbacks, void *arg, struct websocket **ret_websocket,
                          struct error *err);
/* Send @head ("HTTP/1.1 101 Switching Protocols\r\n...\r\n\r\n") and hand the connection over: the stream is the
 * caller's now (tls_stream_close!). Bytes that came after the request come first with on_data. -EPIPE: client
 * gone, the request is NOT ended. */
int http_upgrade_raw(struct http_request *request, const char *head, const struct tls_stream_callbacks *callbacks,
                     void *arg, struct tls_stream **ret_stream);

#endif
