/* WebSocket endpoint over a tls_stream; see websocket.h.
 *
 *   (client) OPENING --101--> OPEN --our close--> CLOSING --peer's close, 5 s, end--> gone
 *                      (server) ^    --peer's close (answered), refusal, end--------> gone
 *
 * `gone` is one function: it finishes the stream, calls on_close, and frees. It is called from the stream's callbacks
 * only, so that no call of the owner frees the websocket under his feet. */
#include "common/websocket.h"

#include <errno.h>
#include <jansson.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <string.h>

#include "common/http_parse.h"

#define REASON_MAX 124 /* 125 bytes of a control frame less the code, and a terminator */
#define REFUSAL_BODY_BYTES_MAX (8 * 1024)
#define FINISH_LINGER_MS 1000

enum websocket_state { OPENING, OPEN, CLOSING };

struct websocket {
    struct tls_stream *stream;
    enum websocket_state state;
    bool is_client, paused, asked; /* asked: a ping of ours is out */
    size_t queue_bytes_max;
    struct websocket_decoder decoder;
    struct websocket_callbacks callbacks;
    void *arg;
    int close_code;
    char close_reason[REASON_MAX];
    /* client, while OPENING */
    char *request;
    char accept[WEBSOCKET_ACCEPT_SIZE];
    struct bytes_writer answer;
    size_t scanned, answer_wanted;
};

static const struct tls_stream_callbacks stream_callbacks;

/* --- ends --- */

static void websocket_gone(struct websocket *w, int code, const char *reason)
{
    tls_stream_finish(w->stream, FINISH_LINGER_MS);
    w->callbacks.on_close(w, code, reason, w->arg);
    websocket_decoder_finish(&w->decoder);
    bytes_writer_finish(&w->answer);
    free(w->request);
    free(w);
}

static void send_frame(struct websocket *w, enum websocket_opcode opcode, const void *data, size_t size)
{
    struct bytes_writer frame = {0};
    uint8_t mask[4];
    if (w->is_client)
        ASSERT(RAND_bytes(mask, sizeof mask) == 1);
    websocket_encode(&frame, opcode, data, size, w->is_client ? mask : NULL);
    tls_stream_write_take(w->stream, frame.data, frame.size, free);
}

static void send_close(struct websocket *w, int code, const char *reason)
{
    uint8_t payload[2 + REASON_MAX] = {(uint8_t)(code >> 8), (uint8_t)code};
    size_t length = MIN(strlen(reason), (size_t)REASON_MAX - 1);
    while (length > 0 && !websocket_valid_utf8((const uint8_t *)reason, length))
        length--; /* a character cut in two */
    memcpy(payload + 2, reason, length);
    send_frame(w, WEBSOCKET_CLOSE, payload, code == 1005 ? 0 : 2 + length);
}

/* We refuse what the peer sends. */
static void websocket_refuse(struct websocket *w, int code, const char *reason)
{
    if (w->state == OPEN)
        send_close(w, code, reason);
    websocket_gone(w, code, reason);
}

static void take_close(struct websocket *w, const struct websocket_message *message)
{
    int code = message->size >= 2 ? message->data[0] << 8 | message->data[1] : 1005;
    const char *reason = message->size > 2 ? (const char *)message->data + 2 : "";
    if (w->state == CLOSING) {
        websocket_gone(w, w->close_code, w->close_reason);
        return;
    }
    send_close(w, code, "");
    websocket_gone(w, code, reason);
}

/* --- messages --- */

/* False: the websocket is gone. */
static bool take_message(struct websocket *w, const struct websocket_message *message)
{
    switch (message->opcode) {
    case WEBSOCKET_CLOSE:
        take_close(w, message);
        return false;
    case WEBSOCKET_PING:
        /* A peer that asks faster than it reads is not answered: §5.5.3 lets the last ping stand for all. */
        if (w->state == OPEN && tls_stream_queued_bytes(w->stream) < w->queue_bytes_max)
            send_frame(w, WEBSOCKET_PONG, message->data, message->size);
        break;
    case WEBSOCKET_PONG:
        break;
    default:
        if (w->state == OPEN)
            w->callbacks.on_message(w, message->opcode == WEBSOCKET_TEXT, message->data, message->size, w->arg);
        break;
    }
    return true;
}

static void take_frames(struct websocket *w, const uint8_t *data, size_t size)
{
    while (size > 0) {
        struct websocket_message message;
        size_t used;
        if (w->paused) {
            tls_stream_unread(w->stream, data, size);
            return;
        }
        int rc = websocket_decode(&w->decoder, data, size, &used, &message);
        if (rc < 0) {
            websocket_refuse(w, -rc, "the frame breaks the protocol");
            return;
        }
        data += used;
        size -= used;
        if (rc == 1 && !take_message(w, &message))
            return;
    }
}

int websocket_send(struct websocket *w, bool text, const void *data, size_t size)
{
    size_t queued = tls_stream_queued_bytes(w->stream);
    if (w->state != OPEN)
        return -EPIPE;
    if (queued > 0 && queued + size > w->queue_bytes_max)
        return -ENOBUFS;
    send_frame(w, text ? WEBSOCKET_TEXT : WEBSOCKET_BINARY, data, size);
    return 0;
}

size_t websocket_queued_bytes(const struct websocket *w)
{
    return tls_stream_queued_bytes(w->stream);
}

void websocket_pause(struct websocket *w)
{
    if (w->state == CLOSING)
        return; /* the peer's answer is read whatever the owner does */
    w->paused = true;
    tls_stream_pause(w->stream);
}

void websocket_resume(struct websocket *w)
{
    w->paused = false;
    tls_stream_resume(w->stream);
}

void websocket_close(struct websocket *w, int code, const char *reason)
{
    if (w->state == CLOSING)
        return;
    w->close_code = code;
    snprintf(w->close_reason, sizeof w->close_reason, "%s", reason);
    if (w->state == OPENING) {
        tls_stream_abort(w->stream, -ECANCELED);
        return;
    }
    send_close(w, code, reason);
    w->state = CLOSING;
    websocket_resume(w); /* the peer's answer must be read */
    tls_stream_set_timer(w->stream, WEBSOCKET_CLOSE_TIMEOUT_MS);
}

void websocket_abort(struct websocket *w)
{
    tls_stream_abort(w->stream, -ECONNABORTED);
}

/* --- client: the opening handshake, RFC 6455 §4.1 --- */

/* The server's words for a refusal: `detail` of a problem document, else the bare status. */
static void refused_by_server(struct websocket *w, const struct http_head *head, const char *body, size_t size)
{
    char reason[512];
    json_t *problem = json_loadb(body, size, 0, NULL);
    const char *detail = json_string_value(json_object_get(problem, "detail"));
    snprintf(reason, sizeof reason, "the server answered %d: %s", head->status,
             detail != NULL ? detail : http_reason(head->status));
    json_decref(problem);
    websocket_gone(w, 1006, reason);
}

static void take_answer(struct websocket *w, size_t head_size)
{
    struct http_head head;
    size_t body_size = w->answer.size - head_size;
    char *copy = xcalloc(1, w->answer.size + 1);
    memcpy(copy, w->answer.data, w->answer.size);
    const char *accept = NULL;
    if (http_parse_answer(copy, head_size, &head) < 0) {
        websocket_gone(w, 1006, "the answer is not HTTP");
    } else if (head.status != 101) {
        /* Wait for the explanation if there is one of bearable length. */
        if (head.has_length && head.content_length > body_size && head.content_length <= REFUSAL_BODY_BYTES_MAX)
            w->answer_wanted = head_size + (size_t)head.content_length;
        else
            refused_by_server(w, &head, copy + head_size, body_size);
    } else if ((accept = http_head_get(&head, "Sec-WebSocket-Accept")) == NULL || strcmp(accept, w->accept) != 0 ||
               !head.upgrade) {
        websocket_gone(w, 1006, "the server does not speak WebSocket");
    } else {
        w->state = OPEN;
        tls_stream_unread(w->stream, copy + head_size, body_size);
        bytes_writer_finish(&w->answer);
        tls_stream_set_timer(w->stream, WEBSOCKET_PING_MS);
        if (w->callbacks.on_open != NULL)
            w->callbacks.on_open(w, w->arg);
    }
    free(copy);
}

static void take_opening(struct websocket *w, const uint8_t *data, size_t size)
{
    bytes_put(&w->answer, data, size);
    if (w->answer.size < w->answer_wanted)
        return;
    w->scanned = w->answer_wanted > 0 ? 0 : w->scanned;
    ssize_t head_size = http_head_size((const char *)w->answer.data, w->answer.size, &w->scanned);
    if (head_size < 0)
        websocket_gone(w, 1006, "the answer is not HTTP");
    else if (head_size > 0)
        take_answer(w, (size_t)head_size);
}

static char *build_request(const struct websocket_connect_options *options, char accept[WEBSOCKET_ACCEPT_SIZE])
{
    unsigned char nonce[16];
    char key[25];
    ASSERT(RAND_bytes(nonce, sizeof nonce) == 1);
    EVP_EncodeBlock((unsigned char *)key, nonce, sizeof nonce);
    websocket_accept_key(key, accept);
    bool is_unix = strncmp(options->endpoint, "unix:", 5) == 0;
    return xasprintf("GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n%s%s%s%s\r\n",
                     options->target, is_unix ? "localhost" : options->endpoint, key,
                     options->protocol != NULL ? "Sec-WebSocket-Protocol: " : "",
                     options->protocol != NULL ? options->protocol : "", options->protocol != NULL ? "\r\n" : "",
                     options->headers != NULL ? options->headers : "");
}

int websocket_connect(uv_loop_t *loop, const struct websocket_connect_options *options,
                      const struct websocket_callbacks *callbacks, void *arg, struct websocket **ret_websocket,
                      struct error *err)
{
    struct tls_stream_options stream_options = {
        .tls = options->tls,
        .peer_prefix = options->peer_prefix,
        .open_timeout_ms = options->timeout_ms,
    };
    for (const char *p = options->target; *p != '\0'; p++)
        if (*p <= 0x20 || *p >= 0x7f)
            return error_set(err, -EINVAL, ERROR_INVALID, "the path has characters that need escaping");
    struct websocket *w = NEW(struct websocket);
    w->is_client = true;
    w->callbacks = *callbacks;
    w->arg = arg;
    w->queue_bytes_max = WEBSOCKET_QUEUE_BYTES_MAX;
    w->request = build_request(options, w->accept);
    websocket_decoder_init(&w->decoder, false, WEBSOCKET_MESSAGE_BYTES_MAX);
    int rc = tls_stream_connect(loop, options->endpoint, &stream_options, &stream_callbacks, w, &w->stream, err);
    if (rc < 0) {
        free(w->request);
        free(w);
        return rc;
    }
    *ret_websocket = w;
    return 0;
}

struct websocket *websocket_create_server(struct tls_stream *stream, size_t queue_bytes_max,
                                          const struct websocket_callbacks *callbacks, void *arg)
{
    struct websocket *w = NEW(struct websocket);
    w->stream = stream;
    w->state = OPEN;
    w->callbacks = *callbacks;
    w->arg = arg;
    w->queue_bytes_max = queue_bytes_max;
    websocket_decoder_init(&w->decoder, true, WEBSOCKET_MESSAGE_BYTES_MAX);
    tls_stream_set_callbacks(stream, &stream_callbacks, w);
    tls_stream_set_timer(stream, WEBSOCKET_PING_MS);
    return w;
}

/* --- the stream's callbacks --- */

static void on_open(struct tls_stream *stream, void *arg)
{
    struct websocket *w = arg;
    tls_stream_write(stream, w->request, strlen(w->request));
    tls_stream_set_timer(stream, TLS_STREAM_OPEN_TIMEOUT_MS);
}

static void on_data(struct tls_stream *stream, const uint8_t *data, size_t size, void *arg)
{
    struct websocket *w = arg;
    (void)stream;
    w->asked = false;
    if (w->state == OPENING)
        take_opening(w, data, size);
    else
        take_frames(w, data, size);
}

static void on_drain(struct tls_stream *stream, void *arg)
{
    struct websocket *w = arg;
    (void)stream;
    if (w->state == OPEN && w->callbacks.on_drain != NULL)
        w->callbacks.on_drain(w, w->arg);
}

static void on_timer(struct tls_stream *stream, void *arg)
{
    struct websocket *w = arg;
    if (w->state == OPENING) {
        websocket_gone(w, 1006, "the server did not answer in time");
    } else if (w->state == CLOSING) {
        websocket_gone(w, w->close_code, w->close_reason);
    } else if (w->asked && !w->paused) {
        websocket_gone(w, 1006, "the other side does not answer");
    } else {
        w->asked = true;
        send_frame(w, WEBSOCKET_PING, NULL, 0);
        tls_stream_set_timer(stream, WEBSOCKET_PING_MS);
    }
}

static void on_end(struct tls_stream *stream, int status, void *arg)
{
    struct websocket *w = arg;
    if (w->state == CLOSING || (w->state == OPENING && w->close_code != 0))
        websocket_gone(w, w->close_code, w->close_reason);
    else if (status == -ECANCELED)
        websocket_gone(w, 1001, "the server is stopping");
    else
        websocket_gone(w, 1006, tls_stream_failure(stream));
}

static const struct tls_stream_callbacks stream_callbacks = {
    .on_open = on_open,
    .on_data = on_data,
    .on_drain = on_drain,
    .on_timer = on_timer,
    .on_end = on_end,
};
