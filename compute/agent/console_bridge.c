/* Console bridge.
 *
 *   1. connect to the VMM's control socket, ask for the console     failure or no 101 in time: the request is
 * answered
 *   2. 101 came: accept the WebSocket                                 502, or with what the VMM said
 *   3. bytes both ways; the slower side pauses the faster one
 *   4. either side ends: the other is ended, the bridge goes
 *
 * The bridge lives until both sides are gone: the stream is gone once tls_stream_close was called, the request once
 * it was answered or upgraded, the WebSocket once on_close has come. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/http_parse.h"
#include "common/tls_stream.h"
#include "common/websocket.h"
#include "compute/agent/console_bridge.h"

struct console_bridge {
    struct list link;
    struct http_request *request;   /* until it is answered or upgraded */
    struct websocket *websocket;    /* after that */
    struct tls_stream *stream;      /* to the VMM */
    char head[HTTP_HEAD_BYTES_MAX]; /* of the VMM's answer */
    size_t head_size, head_scanned;
};

static const char ask[] =
    "GET /v1/vm/console HTTP/1.1\r\nHost: vmm\r\nConnection: Upgrade\r\nUpgrade: drover-console\r\n\r\n";

static void bridge_maybe_finish(struct console_bridge *b)
{
    if (b->request != NULL || b->websocket != NULL || b->stream != NULL)
        return;
    list_remove(&b->link);
    free(b);
}

static void stream_drop(struct console_bridge *b)
{
    if (b->stream != NULL)
        tls_stream_close(b->stream);
    b->stream = NULL;
}

/* Give up before the WebSocket was there. */
static void bridge_refuse(struct console_bridge *b, int code, enum error_kind kind, const char *text)
{
    struct error err = {.code = 0};
    error_set(&err, code, kind, "%s", text);
    stream_drop(b);
    if (b->request != NULL) {
        http_request_on_gone(b->request, NULL, NULL);
        http_respond_error(b->request, &err);
    }
    b->request = NULL;
    bridge_maybe_finish(b);
}

static void request_gone(struct http_request *request, void *arg)
{
    struct console_bridge *b = arg;
    b->request = NULL;
    http_release(request);
    stream_drop(b);
    bridge_maybe_finish(b);
}

/* ---- the WebSocket's side ---- */

static void websocket_message(struct websocket *websocket, bool text, const uint8_t *data, size_t size, void *arg)
{
    struct console_bridge *b = arg;
    (void)text; /* what a person types may come as either */
    if (b->stream == NULL || tls_stream_write(b->stream, data, size) < 0)
        return;
    if (tls_stream_queued_bytes(b->stream) > CONSOLE_BRIDGE_QUEUE_BYTES_MAX)
        websocket_pause(websocket);
}

static void websocket_drained(struct websocket *websocket, void *arg)
{
    struct console_bridge *b = arg;
    (void)websocket;
    if (b->stream != NULL)
        tls_stream_resume(b->stream);
}

static void websocket_closed(struct websocket *websocket, int code, const char *reason, void *arg)
{
    struct console_bridge *b = arg;
    (void)websocket;
    (void)code;
    (void)reason;
    b->websocket = NULL;
    stream_drop(b);
    bridge_maybe_finish(b);
}

static const struct websocket_callbacks websocket_side = {
    .on_message = websocket_message,
    .on_drain = websocket_drained,
    .on_close = websocket_closed,
};

/* ---- the VMM's side ---- */

static void send_output(struct console_bridge *b, const void *data, size_t size)
{
    if (size == 0)
        return;
    if (websocket_send(b->websocket, false, data, size) == -ENOBUFS) {
        /* does not happen while we pause in time; what cannot be sent must not be lost in silence */
        websocket_close(b->websocket, 1011, "the console is written faster than it is read");
        return;
    }
    if (websocket_queued_bytes(b->websocket) > CONSOLE_BRIDGE_QUEUE_BYTES_MAX)
        tls_stream_pause(b->stream);
}

static void bridge_open(struct console_bridge *b, const uint8_t *rest, size_t rest_size)
{
    struct error err = {.code = 0};
    http_request_on_gone(b->request, NULL, NULL);
    if (http_websocket_accept(b->request, NULL, &websocket_side, b, &b->websocket, &err) < 0) {
        bridge_refuse(b, -EINVAL, err.code != 0 ? err.kind : ERROR_INVALID,
                      err.text[0] != '\0' ? err.text : "the console is a WebSocket: ask for an upgrade");
        return;
    }
    b->request = NULL;
    tls_stream_set_timer(b->stream, 0);
    send_output(b, rest, rest_size);
}

static void take_head(struct console_bridge *b, const uint8_t *data, size_t size)
{
    struct http_head head;
    size_t taken = MIN(size, sizeof(b->head) - b->head_size), before = b->head_size;
    memcpy(b->head + b->head_size, data, taken);
    b->head_size += taken;
    ssize_t whole = http_head_size(b->head, b->head_size, &b->head_scanned);
    if (whole == 0 && taken == size)
        return;
    if (whole <= 0 || http_parse_answer(b->head, (size_t)whole, &head) < 0) {
        bridge_refuse(b, -EPROTO, ERROR_UNREACHABLE, "the VM's VMM does not speak HTTP");
        return;
    }
    if (head.status != 101) {
        bridge_refuse(b, -EPROTO, ERROR_CONFLICT, "the VM's VMM does not give out its console");
        return;
    }
    size_t used = (size_t)whole - before;
    bridge_open(b, data + used, size - used);
}

static void stream_open(struct tls_stream *stream, void *arg)
{
    (void)arg;
    tls_stream_set_timer(stream, CONSOLE_BRIDGE_OPEN_MS);
    tls_stream_write(stream, ask, sizeof(ask) - 1);
}

static void stream_data(struct tls_stream *stream, const uint8_t *data, size_t size, void *arg)
{
    struct console_bridge *b = arg;
    (void)stream;
    if (b->websocket != NULL)
        send_output(b, data, size);
    else
        take_head(b, data, size);
}

static void stream_drained(struct tls_stream *stream, void *arg)
{
    struct console_bridge *b = arg;
    (void)stream;
    if (b->websocket != NULL)
        websocket_resume(b->websocket);
}

static void stream_timer(struct tls_stream *stream, void *arg)
{
    struct console_bridge *b = arg;
    (void)stream;
    if (b->websocket == NULL)
        bridge_refuse(b, -ETIMEDOUT, ERROR_TIMEOUT, "the VM's VMM does not answer");
}

static void stream_ended(struct tls_stream *stream, int status, void *arg)
{
    struct console_bridge *b = arg;
    (void)stream;
    (void)status;
    if (b->websocket == NULL) {
        bridge_refuse(b, -ENOTCONN, ERROR_UNREACHABLE, "the VM's VMM cannot be reached; does the VM run?");
        return;
    }
    stream_drop(b);
    websocket_close(b->websocket, 1000, "the VM has ended"); /* on_close follows */
}

static const struct tls_stream_callbacks stream_side = {
    .on_open = stream_open,
    .on_data = stream_data,
    .on_drain = stream_drained,
    .on_timer = stream_timer,
    .on_end = stream_ended,
};

void console_bridge_start(struct http_request *request, const char *control_path, struct list *consoles)
{
    const struct tls_stream_options options = {.open_timeout_ms = CONSOLE_BRIDGE_OPEN_MS};
    struct error err = {.code = 0};
    CLEANUP_FREE char *endpoint = xasprintf("unix:%s", control_path);
    unsigned count = 0;
    LIST_FOREACH(link, consoles)
    count++;
    if (count >= CONSOLE_BRIDGE_COUNT_MAX) {
        error_set(&err, -EBUSY, ERROR_OVERLOAD, "%u consoles are open on this host; close some", count);
        http_respond_error(request, &err);
        return;
    }
    struct console_bridge *b = NEW(struct console_bridge);
    b->request = request;
    list_init(&b->link);
    int r = tls_stream_connect(http_request_loop(request), endpoint, &options, &stream_side, b, &b->stream, &err);
    if (r < 0) {
        http_respond_error(request, &err);
        free(b);
        return;
    }
    list_append(consoles, &b->link);
    http_request_on_gone(request, request_gone, b);
}

void console_bridge_close_all(struct list *consoles)
{
    LIST_FOREACH_SAFE(link, consoles)
    {
        struct console_bridge *b = LIST_ENTRY(link, struct console_bridge, link);
        if (b->websocket != NULL)
            websocket_abort(b->websocket); /* on_close follows */
        else
            bridge_refuse(b, -ECANCELED, ERROR_CANCELLED, "the agent is ending");
    }
}
