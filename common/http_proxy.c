/* Forwarding of requests; see http_proxy.h for the steps.
 *
 *   CONNECTING --open--> WAITING --head--> BODY --framing ends--> done (upstream idle, may be used again)
 *       |                   |   `--101--> TUNNEL --either side ends--> done
 *       |                   |                |
 *       +--502/504          +--502/503/504   +-- BODY broken off: the client's connection closes
 *
 * An idle upstream connection may have been closed by the other side at the moment we use it. A read that meets that
 * is sent once more on a fresh connection; a write is answered with "unknown-outcome", because it may have been done.
 */
#include "common/http_proxy.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "common/http_connection.h"
#include "common/list.h"

#define CONNECT_TIMEOUT_MS 3000
#define ANSWER_TIMEOUT_MS 60000
#define SILENCE_MS 60000 /* within a body; our event streams say something every 15 s */
#define IDLE_MS 15000    /* well below the server's own idle timeout */
#define IDLE_LINKS_MAX 16
#define LINGER_MS 2000

enum exchange_state { CONNECTING, WAITING, BODY, TUNNEL };
enum framing { FRAMING_NONE, FRAMING_LENGTH, FRAMING_CHUNKED, FRAMING_UNTIL_CLOSE };

/* A connection to another server: with an exchange, or idle. */
struct proxy_link {
    struct list link; /* in idle; else unlinked */
    struct http_proxy *proxy;
    struct tls_stream *stream;
    char *key;
    bool used_before;
};

struct proxy_exchange {
    struct list link;
    struct http_proxy *proxy;
    struct http_request *request; /* NULL in TUNNEL */
    struct tls_stream *client;    /* TUNNEL */
    struct proxy_link *upstream;
    enum exchange_state state;
    bool is_read, old_client; /* GET or HEAD; HTTP/1.0 */
    struct bytes_writer outgoing, answer;
    size_t scanned;
    enum framing framing;
    uint64_t left;
    struct http_chunked chunked;
    bool reusable;
    unsigned answer_timeout_ms;
    /* to connect anew */
    char *endpoint, *peer_prefix;
    struct tls_context *tls;
    unsigned connect_timeout_ms;
    void (*failed)(struct http_request *request, const struct error *err, void *arg);
    void *failed_arg;
};

struct http_proxy {
    uv_loop_t *loop;
    struct list exchanges, idle;
    unsigned idle_count;
    bool closing;
    uv_timer_t handle; /* only for its close callback */
    void (*closed)(void *arg);
    void *closed_arg;
};

static const struct tls_stream_callbacks upstream_callbacks, idle_callbacks, client_callbacks;
static int connect_upstream(struct proxy_exchange *x, struct error *err);

/* --- links --- */

static void link_close(struct proxy_link *l)
{
    if (!list_empty(&l->link)) {
        list_remove(&l->link);
        l->proxy->idle_count--;
    }
    if (l->stream != NULL)
        tls_stream_close(l->stream);
    free(l->key);
    free(l);
}

static void link_idle(struct proxy_link *l)
{
    if (l->proxy->closing || l->proxy->idle_count >= IDLE_LINKS_MAX) {
        link_close(l);
        return;
    }
    l->used_before = true;
    list_append(&l->proxy->idle, &l->link);
    l->proxy->idle_count++;
    tls_stream_set_callbacks(l->stream, &idle_callbacks, l);
    tls_stream_resume(l->stream);
    tls_stream_set_timer(l->stream, IDLE_MS);
}

static void idle_data(struct tls_stream *stream, const uint8_t *data, size_t size, void *arg)
{
    (void)stream, (void)data, (void)size;
    link_close(arg); /* nothing was asked */
}

static void idle_timer(struct tls_stream *stream, void *arg)
{
    (void)stream;
    link_close(arg);
}

static void idle_end(struct tls_stream *stream, int status, void *arg)
{
    (void)stream, (void)status;
    link_close(arg);
}

static const struct tls_stream_callbacks idle_callbacks = {
    .on_data = idle_data, .on_timer = idle_timer, .on_end = idle_end};

static char *link_key(const struct proxy_exchange *x)
{
    return xasprintf("%s %p.%u %s", x->endpoint, (void *)x->tls, x->tls != NULL ? tls_context_generation(x->tls) : 0,
                     x->peer_prefix != NULL ? x->peer_prefix : "");
}

static struct proxy_link *take_idle(struct http_proxy *proxy, const char *key)
{
    LIST_FOREACH(link, &proxy->idle)
    {
        struct proxy_link *l = LIST_ENTRY(link, struct proxy_link, link);
        if (strcmp(l->key, key) == 0) {
            list_remove(&l->link);
            proxy->idle_count--;
            return l;
        }
    }
    return NULL;
}

/* --- ends --- */

static void exchange_free(struct proxy_exchange *x)
{
    if (x->upstream != NULL)
        link_close(x->upstream);
    list_remove(&x->link);
    bytes_writer_finish(&x->outgoing);
    bytes_writer_finish(&x->answer);
    tls_context_unref(x->tls);
    free(x->endpoint);
    free(x->peer_prefix);
    free(x);
}

/* Before the answer has begun: tell the client in our own words. */
static void answer_failure(struct proxy_exchange *x, enum error_kind kind, const char *words)
{
    struct error err = {0};
    error_set(&err, -EIO, kind, "%s: %s", x->endpoint, words);
    struct http_request *request = x->request;
    void (*failed)(struct http_request *, const struct error *, void *) = x->failed;
    void *failed_arg = x->failed_arg;
    http_request_on_gone(request, NULL, NULL);
    exchange_free(x);
    if (failed != NULL)
        failed(request, &err, failed_arg);
    else
        http_respond_error(request, &err);
}

static void body_failure(struct proxy_exchange *x)
{
    http_request_on_gone(x->request, NULL, NULL);
    http_relay_end(x->request, false);
    exchange_free(x);
}

static void body_complete(struct proxy_exchange *x)
{
    http_request_on_gone(x->request, NULL, NULL);
    http_relay_end(x->request, x->framing != FRAMING_UNTIL_CLOSE && !x->old_client);
    if (x->reusable && x->framing != FRAMING_UNTIL_CLOSE)
        link_idle(TAKE_PTR(x->upstream));
    exchange_free(x);
}

/* The client has gone: nobody waits for the answer. */
static void request_gone(struct http_request *request, void *arg)
{
    struct proxy_exchange *x = arg;
    http_release(request);
    exchange_free(x);
}

/* --- the body of the answer --- */

static void relay(struct proxy_exchange *x, const void *data, size_t size)
{
    if (size > 0)
        http_relay_write(x->request, data, size); /* a failure comes as on_gone */
    if (http_stream_queued_bytes(x->request) > HTTP_PROXY_QUEUE_BYTES_MAX)
        tls_stream_pause(x->upstream->stream);
}

static void request_drained(struct http_request *request, void *arg)
{
    struct proxy_exchange *x = arg;
    (void)request;
    if (x->upstream != NULL)
        tls_stream_resume(x->upstream->stream);
}

/* A client of HTTP/1.0 knows no chunks. */
static int relay_decoded(struct proxy_exchange *x, const uint8_t *data, size_t size, size_t *ret_used)
{
    size_t decoded;
    char *copy = xcalloc(1, size);
    memcpy(copy, data, size);
    int rc = http_chunked_decode(&x->chunked, copy, size, ret_used, &decoded);
    if (rc >= 0)
        relay(x, copy, decoded);
    free(copy);
    return rc;
}

static void take_body(struct proxy_exchange *x, const uint8_t *data, size_t size)
{
    size_t used = size;
    bool whole = false;
    if (x->framing == FRAMING_LENGTH) {
        used = (size_t)MIN((uint64_t)size, x->left);
        x->left -= used;
        whole = x->left == 0;
        relay(x, data, used);
    } else if (x->framing == FRAMING_CHUNKED) {
        int rc = x->old_client ? relay_decoded(x, data, size, &used)
                               : http_chunked_scan(&x->chunked, (const char *)data, size, &used);
        if (rc < 0) {
            body_failure(x);
            return;
        }
        whole = rc == 1;
        if (!x->old_client)
            relay(x, data, used);
    } else if (x->framing == FRAMING_NONE) {
        used = 0;
        whole = true;
    } else {
        relay(x, data, used);
    }
    if (!whole)
        return;
    x->reusable = x->reusable && used == size;
    body_complete(x);
}

/* --- upgrades: bytes both ways --- */

static void tunnel_pass(struct tls_stream *from, struct tls_stream *to, const uint8_t *data, size_t size)
{
    tls_stream_write(to, data, size); /* a failure comes as on_end of that side */
    if (tls_stream_queued_bytes(to) > HTTP_PROXY_QUEUE_BYTES_MAX)
        tls_stream_pause(from);
}

static void tunnel_end(struct proxy_exchange *x, bool client_ended)
{
    if (client_ended) {
        tls_stream_close(x->client);
        tls_stream_finish(TAKE_PTR(x->upstream->stream), LINGER_MS); /* what was under way still arrives */
    } else {
        tls_stream_finish(x->client, LINGER_MS);
    }
    exchange_free(x);
}

static void client_data(struct tls_stream *stream, const uint8_t *data, size_t size, void *arg)
{
    struct proxy_exchange *x = arg;
    tunnel_pass(stream, x->upstream->stream, data, size);
}

static void client_drain(struct tls_stream *stream, void *arg)
{
    struct proxy_exchange *x = arg;
    (void)stream;
    tls_stream_resume(x->upstream->stream);
}

static void client_end(struct tls_stream *stream, int status, void *arg)
{
    (void)stream, (void)status;
    tunnel_end(arg, true);
}

static const struct tls_stream_callbacks client_callbacks = {
    .on_data = client_data, .on_drain = client_drain, .on_end = client_end};

static void begin_tunnel(struct proxy_exchange *x, const struct bytes_writer *head, const uint8_t *rest, size_t size)
{
    http_request_on_gone(x->request, NULL, NULL);
    if (http_upgrade_raw(x->request, (const char *)head->data, &client_callbacks, x, &x->client) < 0) {
        http_release(x->request);
        exchange_free(x);
        return;
    }
    x->request = NULL;
    x->state = TUNNEL;
    bytes_writer_finish(&x->outgoing);
    tls_stream_set_timer(x->upstream->stream, 0);
    tls_stream_write(x->client, rest, size);
}

/* --- the head of the answer --- */

static bool is_hop_header(const char *name)
{
    static const char *const names[] = {
        "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "TE",
        "Trailer",    "Upgrade"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        if (strcasecmp(names[i], name) == 0)
            return true;
    return false;
}

static void put_answer_head(struct bytes_writer *out, const struct http_head *head, bool drop_chunked)
{
    bytes_put_format(out, "HTTP/1.1 %d %s\r\n", head->status, http_reason(head->status));
    for (size_t i = 0; i < head->header_count; i++) {
        const char *name = head->headers[i].name;
        bool upgrade =
            head->status == 101 && (strcasecmp(name, "Upgrade") == 0 || strcasecmp(name, "Connection") == 0);
        if (drop_chunked && strcasecmp(name, "Transfer-Encoding") == 0)
            continue;
        if (!is_hop_header(name) || upgrade)
            bytes_put_format(out, "%s: %s\r\n", name, head->headers[i].value);
    }
    if (head->status == 101)
        bytes_put(out, "\r\n", 3); /* a text: http_upgrade_raw takes it with its terminator */
}

/* RFC 9112 §6.3 */
static enum framing framing_of(const struct http_head *head, bool head_only)
{
    if (head_only || head->status == 204 || head->status == 304)
        return FRAMING_NONE;
    if (head->chunked)
        return FRAMING_CHUNKED;
    if (!head->has_length)
        return FRAMING_UNTIL_CLOSE;
    return head->content_length > 0 ? FRAMING_LENGTH : FRAMING_NONE;
}

static void begin_body(struct proxy_exchange *x, const struct http_head *head, const uint8_t *rest, size_t size)
{
    struct bytes_writer out = {0};
    x->framing = framing_of(head, x->request->method == HTTP_HEAD);
    x->left = head->content_length;
    x->reusable = head->keep_alive;
    x->state = BODY;
    bytes_writer_finish(&x->outgoing);
    put_answer_head(&out, head, x->old_client);
    http_relay_begin(x->request, (const char *)out.data, out.size, request_drained, x);
    bytes_writer_finish(&out);
    tls_stream_set_timer(x->upstream->stream, SILENCE_MS);
    if (size > 0 || x->framing == FRAMING_NONE)
        take_body(x, rest, size);
}

/* The head at the start of x->answer is whole. */
static void take_head(struct proxy_exchange *x, size_t head_size)
{
    struct http_head head;
    struct bytes_writer answer = x->answer;
    const uint8_t *rest = answer.data + head_size;
    size_t rest_size = answer.size - head_size;
    x->answer = (struct bytes_writer){0};
    x->scanned = 0;
    if (http_parse_answer((char *)answer.data, head_size, &head) < 0) {
        answer_failure(x, ERROR_UNREACHABLE, "its answer is not HTTP");
    } else if (head.status == 101) {
        struct bytes_writer out = {0};
        put_answer_head(&out, &head, false);
        begin_tunnel(x, &out, rest, rest_size);
        bytes_writer_finish(&out);
    } else if (head.status < 200) {
        if (rest_size > 0)
            tls_stream_unread(x->upstream->stream, rest, rest_size); /* 100 Continue: the answer is still to come */
    } else {
        begin_body(x, &head, rest, rest_size);
    }
    bytes_writer_finish(&answer);
}

static void take_waiting(struct proxy_exchange *x, const uint8_t *data, size_t size)
{
    bytes_put(&x->answer, data, size);
    ssize_t head_size = http_head_size((const char *)x->answer.data, x->answer.size, &x->scanned);
    if (head_size < 0)
        answer_failure(x, ERROR_UNREACHABLE, "its answer is not HTTP");
    else if (head_size > 0)
        take_head(x, (size_t)head_size);
}

/* --- the upstream's callbacks --- */

static void send_request(struct proxy_exchange *x)
{
    x->state = WAITING;
    tls_stream_write(x->upstream->stream, x->outgoing.data, x->outgoing.size);
    tls_stream_set_timer(x->upstream->stream, x->answer_timeout_ms);
}

static void upstream_open(struct tls_stream *stream, void *arg)
{
    (void)stream;
    send_request(arg);
}

static void upstream_data(struct tls_stream *stream, const uint8_t *data, size_t size, void *arg)
{
    struct proxy_exchange *x = arg;
    if (x->state == WAITING) {
        take_waiting(x, data, size);
    } else if (x->state == TUNNEL) {
        tunnel_pass(stream, x->client, data, size);
    } else {
        tls_stream_set_timer(stream, SILENCE_MS);
        take_body(x, data, size);
    }
}

static void upstream_drain(struct tls_stream *stream, void *arg)
{
    struct proxy_exchange *x = arg;
    (void)stream;
    if (x->state == TUNNEL)
        tls_stream_resume(x->client);
}

static void upstream_timer(struct tls_stream *stream, void *arg)
{
    struct proxy_exchange *x = arg;
    if (x->state == WAITING)
        answer_failure(x, x->is_read ? ERROR_TIMEOUT : ERROR_UNKNOWN_OUTCOME, "no answer came in time");
    else if (http_stream_queued_bytes(x->request) > 0)
        tls_stream_set_timer(stream, SILENCE_MS); /* it is the client who is slow, and the server watches that */
    else
        body_failure(x);
}

static void upstream_end(struct tls_stream *stream, int status, void *arg)
{
    struct proxy_exchange *x = arg;
    char words[256];
    snprintf(words, sizeof words, "%s", tls_stream_failure(stream));
    bool try_again = x->state == WAITING && x->upstream->used_before && x->is_read && x->answer.size == 0;
    if (x->state == TUNNEL) {
        tunnel_end(x, false);
    } else if (x->state == BODY) {
        if (x->framing == FRAMING_UNTIL_CLOSE && status == UV_EOF)
            body_complete(x);
        else
            body_failure(x);
    } else if (try_again) {
        struct error err = {0};
        link_close(TAKE_PTR(x->upstream));
        if (connect_upstream(x, &err) < 0)
            answer_failure(x, ERROR_UNREACHABLE, err.text);
    } else if (x->state == CONNECTING || x->is_read) {
        answer_failure(x, status == UV_ETIMEDOUT ? ERROR_TIMEOUT : ERROR_UNREACHABLE, words);
    } else {
        answer_failure(x, ERROR_UNKNOWN_OUTCOME, "the connection broke before the answer came");
    }
}

static const struct tls_stream_callbacks upstream_callbacks = {
    .on_open = upstream_open,
    .on_data = upstream_data,
    .on_drain = upstream_drain,
    .on_timer = upstream_timer,
    .on_end = upstream_end,
};

/* --- start --- */

static int connect_upstream(struct proxy_exchange *x, struct error *err)
{
    struct tls_stream_options options = {
        .tls = x->tls, .peer_prefix = x->peer_prefix, .open_timeout_ms = x->connect_timeout_ms};
    struct proxy_link *l = NEW(struct proxy_link);
    int rc = tls_stream_connect(x->proxy->loop, x->endpoint, &options, &upstream_callbacks, x, &l->stream, err);
    if (rc < 0) {
        free(l);
        return rc;
    }
    list_init(&l->link);
    l->proxy = x->proxy;
    l->key = link_key(x);
    x->upstream = l;
    x->state = CONNECTING;
    return 0;
}

/* Is there a line "@name: ..." among @lines? */
static bool lines_have(const char *lines, const char *name)
{
    size_t length = strlen(name);
    for (const char *line = lines; line != NULL && *line != '\0';) {
        if (strncasecmp(line, name, length) == 0 && line[length] == ':')
            return true;
        line = strchr(line, '\n');
        line = line != NULL ? line + 1 : NULL;
    }
    return false;
}

static bool passes_on(const struct http_proxy_target *target, const char *connection, const char *name)
{
    static const char *const ours[] = {"Content-Length", "Transfer-Encoding", "Expect", "X-Request-Id"};
    for (size_t i = 0; i < ARRAY_SIZE(ours); i++)
        if (strcasecmp(ours[i], name) == 0)
            return false;
    return !is_hop_header(name) && !lines_have(target->headers, name) &&
           (target->drop_headers == NULL || !http_has_token(target->drop_headers, name)) &&
           (connection == NULL || !http_has_token(connection, name));
}

static void put_request(struct bytes_writer *out, const struct http_request *request,
                        const struct http_proxy_target *target)
{
    const struct http_head *head = &http_exchange_of(request)->head;
    const char *connection = http_request_header(request, "Connection"), *name, *value;
    bytes_put_format(out, "%s ", http_method_name(request->method));
    if (target->path_and_query != NULL)
        bytes_put_text(out, target->path_and_query);
    else
        bytes_put_format(out, "%s%s%s", request->path, request->query[0] != '\0' ? "?" : "", request->query);
    bytes_put_text(out, " HTTP/1.1\r\n");
    if (http_request_header(request, "Host") == NULL)
        bytes_put_text(out, "Host: localhost\r\n");
    for (size_t i = 0; http_request_header_at(request, i, &name, &value); i++)
        if (passes_on(target, connection, name))
            bytes_put_format(out, "%s: %s\r\n", name, value);
    bytes_put_format(out, "X-Request-Id: %s\r\n", request->id);
    if (target->headers != NULL)
        bytes_put_text(out, target->headers);
    if (head->upgrade)
        bytes_put_format(out, "Connection: Upgrade\r\nUpgrade: %s\r\n", http_request_header(request, "Upgrade"));
    if (request->body_size > 0 || head->has_length || head->chunked)
        bytes_put_format(out, "Content-Length: %zu\r\n", request->body_size);
    bytes_put_text(out, "\r\n");
    bytes_put(out, request->body, request->body_size);
}

static struct proxy_exchange *exchange_create(struct http_proxy *proxy, struct http_request *request,
                                              const struct http_proxy_target *target)
{
    struct proxy_exchange *x = NEW(struct proxy_exchange);
    x->proxy = proxy;
    x->request = request;
    x->is_read = request->method == HTTP_GET || request->method == HTTP_HEAD;
    x->old_client = http_exchange_of(request)->head.minor_version == 0;
    x->failed = target->failed;
    x->failed_arg = target->failed_arg;
    x->connect_timeout_ms = target->connect_timeout_ms > 0 ? target->connect_timeout_ms : CONNECT_TIMEOUT_MS;
    x->answer_timeout_ms = target->answer_timeout_ms > 0 ? target->answer_timeout_ms : ANSWER_TIMEOUT_MS;
    x->endpoint = xstrdup(target->endpoint);
    x->peer_prefix = target->peer_prefix != NULL ? xstrdup(target->peer_prefix) : NULL;
    x->tls = target->tls != NULL ? tls_context_ref(target->tls) : NULL;
    put_request(&x->outgoing, request, target);
    list_append(&proxy->exchanges, &x->link);
    return x;
}

int http_proxy_start(struct http_proxy *proxy, struct http_request *request, const struct http_proxy_target *target,
                     struct error *err)
{
    if (proxy->closing)
        return error_set(err, -ECANCELED, ERROR_OVERLOAD, "this server is stopping");
    struct proxy_exchange *x = exchange_create(proxy, request, target);
    char *key = link_key(x);
    x->upstream = take_idle(proxy, key);
    free(key);
    if (x->upstream != NULL) {
        tls_stream_set_callbacks(x->upstream->stream, &upstream_callbacks, x);
        send_request(x);
    } else {
        int rc = connect_upstream(x, err);
        if (rc < 0) {
            exchange_free(x);
            return rc;
        }
    }
    http_request_on_gone(request, request_gone, x);
    return 0;
}

int http_proxy_create(uv_loop_t *loop, struct http_proxy **ret_proxy, struct error *err)
{
    struct http_proxy *proxy = NEW(struct http_proxy);
    int rc = uv_timer_init(loop, &proxy->handle);
    if (rc < 0) {
        free(proxy);
        return error_errno(err, rc, "cannot start a proxy");
    }
    proxy->loop = loop;
    proxy->handle.data = proxy;
    list_init(&proxy->exchanges);
    list_init(&proxy->idle);
    *ret_proxy = proxy;
    return 0;
}

static void handle_closed_cb(uv_handle_t *handle)
{
    struct http_proxy *proxy = handle->data;
    if (proxy->closed != NULL)
        proxy->closed(proxy->closed_arg);
    free(proxy);
}

void http_proxy_close(struct http_proxy *proxy, void (*closed)(void *arg), void *arg)
{
    ASSERT(!proxy->closing);
    proxy->closing = true;
    proxy->closed = closed;
    proxy->closed_arg = arg;
    LIST_FOREACH_SAFE(link, &proxy->exchanges)
    {
        struct proxy_exchange *x = LIST_ENTRY(link, struct proxy_exchange, link);
        if (x->state == TUNNEL)
            tunnel_end(x, false);
        else if (x->state == BODY)
            body_failure(x);
        else
            answer_failure(x, ERROR_OVERLOAD, "this server is stopping");
    }
    LIST_FOREACH_SAFE(link, &proxy->idle)
    link_close(LIST_ENTRY(link, struct proxy_link, link));
    uv_close((uv_handle_t *)&proxy->handle, handle_closed_cb);
}
