/* Inside of the HTTP server, shared by http_server.c (listening, limits), http_connection.c (reading requests) and
 * http_answer.c (writing answers). Not for anybody else.
 *
 *                 first byte                 head whole              body whole
 *   READ_HEAD(idle) -------> READ_HEAD(partial) ----> READ_BODY ----------------+
 *       ^                         | no body                                     v
 *       |                         +-----------------------------------------> HANDLING (request with the handler)
 *       |                                                                       | begins
 *       |    sent     +------------- answered -----------------------------+----+--> STREAMING (stream or relay)
 *       +--- SENDING <+                                                    |            |
 *       +-----------------(little is queued)-------------------------------+------------+
 *
 * Any state --gone, time-out, refusal, Connection: close--> freed; a request with the handler lives on without it. */
#ifndef COMMON_HTTP_CONNECTION_H
#define COMMON_HTTP_CONNECTION_H

#include "common/http_server.h"

#include "common/bytes.h"
#include "common/list.h"

#define HTTP_PIPELINE_BYTES_MAX (64 * 1024)   /* read ahead while a request is with the handler */
#define HTTP_SEND_AHEAD_BYTES_MAX (64 * 1024) /* queued answers beyond which the next request waits */
#define HTTP_LINGER_MS 2000
#define HTTP_REQUEST_ID_MAX 64

struct http_connection;

struct http_server {
    uv_loop_t *loop;
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } listener;
    bool listener_open, stopping;
    bool accept_waiting; /* a connection waits for a handshake to end */
    struct tls_context *tls;
    struct tls_stream_pace pace;
    enum tls_client_check client_check;
    struct http_limits limits;
    http_handler handler;
    void *arg;
    struct http_server_counters counters;
    struct list streams; /* every connection, handed-over ones too */
    size_t body_bytes;   /* of all requests being received or handled */
    uint64_t request_prefix, request_counter;
    time_t date_s;
    char date[32];
    void (*closed)(void *arg);
    void *closed_arg;
};

enum http_connection_state { HTTP_READ_HEAD, HTTP_READ_BODY, HTTP_HANDLING, HTTP_STREAMING, HTTP_SENDING };

/* A request with all it points to. */
struct http_exchange {
    struct http_request request;        /* first: the handler's pointer is ours */
    struct http_connection *connection; /* NULL: gone */
    uv_loop_t *loop;
    char *head_data;
    struct http_head head;
    struct bytes_writer body;
    struct http_chunked chunked;
    size_t body_counted; /* in server->body_bytes */
    http_gone gone;
    void *gone_arg;
    char peer[TLS_IDENTITY_MAX], peer_address[80], id[HTTP_REQUEST_ID_MAX + 1];
    /* while streaming */
    bool chunk_answer, head_only, cut_off;
    char *keepalive;
    unsigned keepalive_ms;
    http_gone drained;
    void *drained_arg;
    uint64_t sent_bytes_seen; /* progress of a slow reader */
    uint64_t progress_ms;
};

struct http_connection {
    struct http_server *server;
    struct tls_stream *stream;
    enum http_connection_state state;
    struct bytes_writer in; /* from in_start: not parsed yet */
    size_t in_start, scanned;
    struct http_exchange *exchange; /* being read, handled or streamed */
    bool is_open, parsing, dead;
    uint64_t sent_bytes_seen;
};

/* http_server.c */
void http_server_maybe_free(struct http_server *server);
const char *http_server_date(struct http_server *server); /* RFC 9110 §5.6.7, of this second */

/* http_connection.c */
void http_connection_accept(struct http_server *server);
/* The exchange has been answered: free it, and go on with the next request or close. */
void http_connection_answered(struct http_connection *c, bool keep);
/* Free the connection but not its stream, which another owner has. Its unread bytes go back to the stream. */
void http_connection_detach(struct http_connection *c);
void http_exchange_free(struct http_exchange *e);
/* Will the connection stay after this exchange? */
bool http_exchange_keeps(const struct http_exchange *e);

/* http_answer.c */
/* Refuse what is no request: problem document, Connection: close. */
void http_answer_refuse(struct http_connection *c, int status, const char *detail);
void http_answer_timer(struct http_connection *c);
void http_answer_drained(struct http_connection *c);

static inline struct http_exchange *http_exchange_of(const struct http_request *request)
{
    return CONTAINER_OF(request, struct http_exchange, request);
}

#endif
