/* WebSocket (RFC 6455) endpoint over a tls_stream; server side from http_websocket_accept, client side from
 * websocket_connect. Text and binary messages, ping and close handshake; framing is common/websocket_frame.h.
 *
 * Life: on_open (client only), on_message..., on_close exactly once, whoever ended it; the websocket is
 * gone when on_close returns, and so on_close must drop every pointer to it. Callbacks come from the loop only. */
#ifndef COMMON_WEBSOCKET_H
#define COMMON_WEBSOCKET_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <uv.h>

#include "common/error.h"
#include "common/tls.h"
#include "common/tls_stream.h"
#include "common/websocket_frame.h"

#define WEBSOCKET_MESSAGE_BYTES_MAX (1024 * 1024)
#define WEBSOCKET_QUEUE_BYTES_MAX (4 * 1024 * 1024)
#define WEBSOCKET_PING_MS 20000         /* silence after which we ask; twice that and the peer is dead */
#define WEBSOCKET_CLOSE_TIMEOUT_MS 5000 /* for the peer's answer to our close */

struct websocket;
struct websocket_callbacks {
    void (*on_open)(struct websocket *websocket, void *arg); /* client side; may be NULL */
    /* @data is borrowed and followed by a 0 byte. Text is checked for UTF-8. */
    void (*on_message)(struct websocket *websocket, bool text, const uint8_t *data, size_t size, void *arg);
    void (*on_drain)(struct websocket *websocket, void *arg); /* all sent has left; may be NULL */
    /* @code: RFC 6455 §7.4 (1000 normal, 1001 going away, 1005 none given, 1006 broken off; 1002 1003 1007 1009 we
     * refused). @reason: peer's words or ours. */
    void (*on_close)(struct websocket *websocket, int code, const char *reason, void *arg);
};

struct websocket_connect_options {
    const char *endpoint;    /* "host:port" or "unix:/path" */
    const char *target;      /* "/v1/...?ticket=..." */
    const char *headers;     /* more header lines "Name: value\r\n", or NULL */
    const char *protocol;    /* Sec-WebSocket-Protocol or NULL */
    struct tls_context *tls; /* NULL: ws, else wss */
    const char *peer_prefix;
    unsigned timeout_ms; /* until on_open; 0 = 10 s */
};
/* 0: on_open or on_close follows. A refusal by the server gives on_close(1006, "the server answered 403: ..."). */
int websocket_connect(uv_loop_t *loop, const struct websocket_connect_options *options,
                      const struct websocket_callbacks *callbacks, void *arg, struct websocket **ret_websocket,
                      struct error *err);
/* 0 queued; -ENOBUFS: the queue is full, nothing was queued, wait for on_drain; -EPIPE: closing. */
int websocket_send(struct websocket *websocket, bool text, const void *data, size_t size);
size_t websocket_queued_bytes(const struct websocket *websocket);
/* Stop and go on with on_message. */
void websocket_pause(struct websocket *websocket);
void websocket_resume(struct websocket *websocket);
/* Begin the close handshake; on_close follows. No on_message any more. */
void websocket_close(struct websocket *websocket, int code, const char *reason);
/* Break off; on_close(1006) follows. */
void websocket_abort(struct websocket *websocket);

/* For http_server: take over @stream after the 101 has been written. */
struct websocket *websocket_create_server(struct tls_stream *stream, size_t queue_bytes_max,
                                          const struct websocket_callbacks *callbacks, void *arg);

#endif
