/* Forwarding between two servers on one loop: whole, chunked and endless answers, upgrades, failures of every party,
 * back-pressure, and which headers pass. */
#include "tests/unit/common/net_fixture.h"

#include <errno.h>

#include "common/http_proxy.h"
#include "common/websocket.h"

struct app {
    struct net front; /* the server that clients talk to; its loop serves both */
    struct net back;  /* only server and endpoint are used */
    struct http_proxy *proxy;
    bool proxy_closed;
    struct http_proxy_target target;
    char endpoint[64];
    /* the back's */
    struct http_request *held;
    unsigned gone, requests, ws_closed, drops;
    char seen[2048];
    struct tls_stream *raw;
    size_t raw_received;
    bool raw_ended;
};

static void count_gone(struct http_request *request, void *arg)
{
    (void)request;
    ((struct app *)arg)->gone++;
}

static void ws_message(struct websocket *ws, bool text, const uint8_t *data, size_t size, void *arg)
{
    (void)arg;
    websocket_send(ws, text, data, size);
}

static void ws_close(struct websocket *ws, int code, const char *reason, void *arg)
{
    (void)ws, (void)code, (void)reason;
    ((struct app *)arg)->ws_closed++;
}

static void raw_stream_data(struct tls_stream *stream, const uint8_t *data, size_t size, void *arg)
{
    (void)stream, (void)data;
    ((struct app *)arg)->raw_received += size;
}

static void raw_stream_end(struct tls_stream *stream, int status, void *arg)
{
    struct app *app = arg;
    (void)status;
    app->raw_ended = true;
    app->raw = NULL;
    tls_stream_close(stream);
}

static void remember(struct app *app, struct http_request *request)
{
    const char *name, *value;
    int n = snprintf(app->seen, sizeof app->seen, "%s %s?%s\n", http_method_name(request->method), request->path,
                     request->query);
    for (size_t i = 0; http_request_header_at(request, i, &name, &value); i++)
        n += snprintf(app->seen + n, sizeof app->seen - (size_t)n, "%s: %s\n", name, value);
    snprintf(app->seen + n, sizeof app->seen - (size_t)n, "\n%.100s", (const char *)request->body);
    app->requests++;
}

static void back_handle(struct http_request *request, void *arg)
{
    static const struct websocket_callbacks websocket = {.on_message = ws_message, .on_close = ws_close};
    static const struct tls_stream_callbacks stream = {.on_data = raw_stream_data, .on_end = raw_stream_end};
    struct app *app = arg;
    struct websocket *ws;
    remember(app, request);
    if (strcmp(request->path, "/hold") == 0) {
        http_request_on_gone(request, count_gone, app);
        app->held = request;
    } else if (strcmp(request->path, "/drop-once") == 0 && app->drops++ == 0) {
        http_release(request);
    } else if (strcmp(request->path, "/stream") == 0) {
        struct http_stream_options options = {.content_type = "text/event-stream"};
        http_request_on_gone(request, count_gone, app);
        app->held = request;
        http_stream_begin(request, &options);
    } else if (strcmp(request->path, "/ws") == 0) {
        assert_int_equal(http_websocket_accept(request, NULL, &websocket, app, &ws, NULL), 0);
    } else if (strcmp(request->path, "/raw") == 0) {
        assert_int_equal(http_upgrade_raw(request,
                                          "HTTP/1.1 101 Switching Protocols\r\nUpgrade: raw\r\n"
                                          "Connection: Upgrade\r\n\r\n",
                                          &stream, app, &app->raw),
                         0);
    } else if (strcmp(request->path, "/empty") == 0) {
        http_respond(request, 204, NULL, NULL, NULL, 0);
    } else if (strcmp(request->path, "/big") == 0) {
        http_respond_take(request, 200, "application/octet-stream", NULL, calloc(1, 15000000), 15000000, free);
    } else {
        http_respond(request, 200, "text/plain", "X-Back: yes\r\n", request->peer[0] ? request->peer : "nobody",
                     strlen(request->peer[0] ? request->peer : "nobody"));
    }
}

static void front_handle(struct http_request *request, void *arg)
{
    struct app *app = arg;
    struct error err = {0};
    if (http_proxy_start(app->proxy, request, &app->target, &err) < 0)
        http_respond_error(request, &err);
}

static void app_start(struct app *app, struct http_limits front, struct tls_context *tls)
{
    struct http_server_options back = {.address = "127.0.0.1:0", .tls = tls, .handler = back_handle, .arg = app};
    assert_int_equal(http_proxy_create(&app->front.loop, &app->proxy, NULL), 0);
    assert_int_equal(http_server_start(&app->front.loop, &back, &app->back.server, NULL), 0);
    snprintf(app->endpoint, sizeof app->endpoint, "127.0.0.1:%u", http_server_port(app->back.server));
    app->target = (struct http_proxy_target){.endpoint = app->endpoint, .tls = tls};
    net_serve(&app->front, (struct http_server_options){.handler = front_handle, .arg = app, .limits = front});
}

static void start_plain(struct app *app)
{
    *app = (struct app){0};
    net_init(&app->front);
    app_start(app, (struct http_limits){0}, NULL);
}

static void proxy_closed(void *arg)
{
    ((struct app *)arg)->proxy_closed = true;
}

static void stop_back(struct app *app)
{
    http_server_stop(app->back.server, net_server_closed, &app->back);
    NET_WAIT(&app->front, app->back.server_closed);
}

static void app_finish(struct app *app)
{
    if (!app->proxy_closed)
        http_proxy_close(app->proxy, proxy_closed, app);
    NET_WAIT(&app->front, app->proxy_closed);
    if (!app->back.server_closed)
        stop_back(app);
    net_finish(&app->front);
}

static void ask(struct app *app, struct raw *raw, const char *text, const char *wanted)
{
    raw_connect(&app->front, raw, NULL, NULL);
    raw_send(raw, text);
    NET_WAIT(&app->front, raw_count(raw, wanted) == 1 || raw->ended);
    if (raw_count(raw, wanted) != 1)
        fail_msg("%s\n--- gave ---\n%s", text, raw_text(raw));
}

#define H "Host: front\r\n"

static void test_whole(void **state)
{
    struct app app;
    struct raw raw;
    (void)state;
    start_plain(&app);
    app.target.headers = "X-Identity: somebody\r\nX-Second: 2\r\n";
    app.target.drop_headers = "Authorization";
    ask(&app, &raw,
        "POST /a%20b?c=d HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\nX-Request-Id: r7\r\nx-identity: root\r\n"
        "Authorization: secret\r\nX-Mine: 1\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n\r\n"
        "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        "nobody");
    assert_string_equal(app.seen, "POST /a%20b?c=d\nHost: front\nX-Mine: 1\nX-Request-Id: r7\nX-Identity: somebody\n"
                                  "X-Second: 2\nContent-Length: 5\n\nabcde");
    assert_int_equal(raw_count(&raw, "HTTP/1.1 200 OK\r\n"), 1);
    assert_int_equal(raw_count(&raw, "X-Back: yes\r\n"), 1);
    assert_int_equal(raw_count(&raw, "X-Request-Id: r7\r\n"), 1);
    /* Both connections are kept. */
    raw_forget(&raw);
    raw_send(&raw, "GET /2 HTTP/1.1\r\n" H "\r\nHEAD /3 HTTP/1.1\r\n" H "\r\nGET /empty HTTP/1.1\r\n" H "\r\n"
                   "GET /5 HTTP/1.1\r\n" H "\r\n");
    NET_WAIT(&app.front, raw_count(&raw, "nobody") == 2 && raw_count(&raw, "HTTP/1.1 2") == 4);
    assert_int_equal(raw_count(&raw, "HTTP/1.1 204"), 1);
    assert_int_equal(http_server_counters(app.back.server)->accepted, 1);
    assert_int_equal(http_server_counters(app.front.server)->accepted, 1);
    app.target.path_and_query = "/elsewhere?x=y";
    raw_send(&raw, "GET /6 HTTP/1.0\r\n\r\n");
    NET_WAIT(&app.front, raw.ended);
    assert_memory_equal(app.seen, "GET /elsewhere?x=y\n", 19);
    raw_finish(&raw);
    app_finish(&app);
}

static void test_tls(void **state)
{
    struct app app = {0};
    struct raw raw;
    (void)state;
    net_init(&app.front);
    struct tls_context *tls = net_tls(&app.front, "spiffe://drover/c1/controller/1");
    app_start(&app, (struct http_limits){0}, tls);
    app.target.peer_prefix = "spiffe://drover/c1/controller/";
    ask(&app, &raw, "GET / HTTP/1.1\r\n" H "\r\n", "spiffe://drover/c1/controller/1");
    raw_finish(&raw);
    /* An idle connection to one identity is not used where another is expected. */
    app.target.peer_prefix = "spiffe://drover/c1/host/";
    ask(&app, &raw, "GET / HTTP/1.1\r\n" H "\r\n", "\"code\":\"unreachable\"");
    assert_int_equal(raw_count(&raw, "another identity"), 1);
    raw_finish(&raw);
    tls_context_unref(tls);
    app_finish(&app);
}

static void test_stream(void **state)
{
    struct app app;
    struct raw raw;
    (void)state;
    start_plain(&app);
    ask(&app, &raw, "GET /stream HTTP/1.1\r\n" H "\r\n", "event-stream");
    http_stream_write(app.held, "data: 1\n\n", 9);
    NET_WAIT(&app.front, raw_count(&raw, "data: 1\n\n") == 1);
    http_stream_write(app.held, "data: 2\n\n", 9);
    NET_WAIT(&app.front, raw_count(&raw, "data: 2\n\n") == 1);
    http_stream_end(app.held);
    NET_WAIT(&app.front, raw_count(&raw, "\r\n0\r\n\r\n") == 1);
    raw_send(&raw, "GET /next HTTP/1.1\r\n" H "\r\n");
    NET_WAIT(&app.front, raw_count(&raw, "nobody") == 1);
    /* The client leaves: so does the proxy. */
    raw_send(&raw, "GET /stream HTTP/1.1\r\n" H "\r\n");
    NET_WAIT(&app.front, raw_count(&raw, "event-stream") == 2);
    raw_finish(&raw);
    NET_WAIT(&app.front, app.gone == 1);
    http_stream_end(app.held);
    /* The other server breaks off: the client must not take it for the end. */
    ask(&app, &raw, "GET /stream HTTP/1.1\r\n" H "\r\n", "event-stream");
    http_release(app.held);
    NET_WAIT(&app.front, raw.ended);
    assert_int_equal(raw_count(&raw, "0\r\n\r\n"), 0);
    raw_finish(&raw);
    /* HTTP/1.0 gets the bytes without chunks. */
    ask(&app, &raw, "GET /stream HTTP/1.0\r\n\r\n", "event-stream");
    http_stream_write(app.held, "data: 3\n\n", 9);
    http_stream_end(app.held);
    NET_WAIT(&app.front, raw.ended);
    assert_int_equal(raw_count(&raw, "chunked"), 0);
    assert_int_equal(raw_count(&raw, "\r\n\r\ndata: 3\n\n"), 1);
    assert_int_equal(raw_count(&raw, "Connection: close"), 1);
    raw_finish(&raw);
    app_finish(&app);
}

/* A reader that stops: what lies between is bounded, and all arrives when it goes on. */
static void test_back_pressure(void **state)
{
    struct app app = {0};
    struct raw raw;
    (void)state;
    net_init(&app.front);
    /* Just enough for a proxy that pauses its source in time. */
    app_start(&app, (struct http_limits){.write_queue_bytes_max = HTTP_PROXY_QUEUE_BYTES_MAX + 100000}, NULL);
    raw_connect(&app.front, &raw, NULL, NULL);
    tls_stream_pause(raw.stream);
    raw_send(&raw, "GET /big HTTP/1.1\r\n" H "\r\n");
    NET_WAIT(&app.front, app.requests == 1);
    for (int i = 0; i < 300; i++)
        uv_run(&app.front.loop, UV_RUN_NOWAIT);
    assert_int_equal(http_server_counters(app.front.server)->slow_readers, 0);
    tls_stream_resume(raw.stream);
    NET_WAIT(&app.front, raw.got.size > 15000000);
    assert_false(raw.ended);
    raw_finish(&raw);
    app_finish(&app);
}

static void test_failures(void **state)
{
    struct app app;
    struct raw raw;
    (void)state;
    start_plain(&app);
    app.target.answer_timeout_ms = 50;
    ask(&app, &raw, "GET /hold HTTP/1.1\r\n" H "\r\n", "\"code\":\"timeout\"");
    assert_int_equal(raw_count(&raw, "HTTP/1.1 504"), 1);
    NET_WAIT(&app.front, app.gone == 1);
    http_release(app.held);
    /* A write whose answer did not come may have been done. */
    raw_forget(&raw);
    raw_send(&raw, "POST /hold HTTP/1.1\r\n" H "Content-Length: 1\r\n\r\nx");
    NET_WAIT(&app.front, raw_count(&raw, "\"code\":\"unknown-outcome\"") == 1);
    NET_WAIT(&app.front, app.gone == 2);
    http_release(app.held);
    app.held = NULL;
    app.target.answer_timeout_ms = 0;
    raw_forget(&raw);
    raw_send(&raw, "POST /hold HTTP/1.1\r\n" H "Content-Length: 1\r\n\r\nx");
    NET_WAIT(&app.front, app.held != NULL);
    http_release(app.held);
    NET_WAIT(&app.front, raw_count(&raw, "\"code\":\"unknown-outcome\"") == 1);
    /* The client leaves before the answer. */
    app.held = NULL;
    raw_send(&raw, "GET /hold HTTP/1.1\r\n" H "\r\n");
    NET_WAIT(&app.front, app.held != NULL);
    raw_finish(&raw);
    NET_WAIT(&app.front, app.gone == 3);
    http_release(app.held);
    /* Nobody there. */
    stop_back(&app);
    ask(&app, &raw, "GET / HTTP/1.1\r\n" H "\r\n", "\"code\":\"unreachable\"");
    assert_int_equal(raw_count(&raw, "HTTP/1.1 502"), 1);
    app.target.endpoint = "nonsense";
    raw_forget(&raw);
    raw_send(&raw, "GET / HTTP/1.1\r\n" H "\r\n");
    NET_WAIT(&app.front, raw_count(&raw, "HTTP/1.1 400") == 1);
    raw_finish(&raw);
    app_finish(&app);
}

/* An idle connection that has died meanwhile: a read is sent again on a fresh one, once; a write never. */
static void test_stale_connection(void **state)
{
    struct app app;
    struct raw raw;
    (void)state;
    start_plain(&app);
    ask(&app, &raw, "GET / HTTP/1.1\r\n" H "\r\n", "nobody");
    raw_forget(&raw);
    raw_send(&raw, "GET /drop-once HTTP/1.1\r\n" H "\r\n");
    NET_WAIT(&app.front, raw_count(&raw, "nobody") == 1);
    assert_int_equal(app.requests, 3);
    app.drops = 0;
    raw_forget(&raw);
    raw_send(&raw, "POST /drop-once HTTP/1.1\r\n" H "\r\n");
    NET_WAIT(&app.front, raw_count(&raw, "\"code\":\"unknown-outcome\"") == 1);
    assert_int_equal(app.requests, 4);
    /* On a fresh connection it is no staleness. */
    app.drops = 0;
    raw_forget(&raw);
    raw_send(&raw, "GET /drop-once HTTP/1.1\r\n" H "\r\n");
    NET_WAIT(&app.front, raw_count(&raw, "\"code\":\"unreachable\"") == 1);
    assert_int_equal(app.requests, 5);
    /* The other server stops while its connection is idle here. */
    raw_forget(&raw);
    raw_send(&raw, "GET / HTTP/1.1\r\n" H "\r\n");
    NET_WAIT(&app.front, raw_count(&raw, "nobody") == 1);
    stop_back(&app);
    raw_send(&raw, "GET / HTTP/1.1\r\n" H "\r\n");
    NET_WAIT(&app.front, raw_count(&raw, "HTTP/1.1 502") == 1);
    raw_finish(&raw);
    app_finish(&app);
}

static void test_no_http(void **state)
{
    struct app app;
    struct raw raw;
    struct tls_context *tls;
    (void)state;
    app = (struct app){0};
    net_init(&app.front);
    tls = net_tls(&app.front, "spiffe://drover/c1/controller/1");
    app_start(&app, (struct http_limits){0}, tls);
    app.target.tls = NULL; /* plain to a TLS port */
    ask(&app, &raw, "GET / HTTP/1.1\r\n" H "\r\n", "\"code\":\"unreachable\"");
    raw_finish(&raw);
    tls_context_unref(tls);
    app_finish(&app);
}

struct side {
    bool open, closed;
    char text[64];
};

static void side_open(struct websocket *ws, void *arg)
{
    (void)ws;
    ((struct side *)arg)->open = true;
}

static void side_message(struct websocket *ws, bool text, const uint8_t *data, size_t size, void *arg)
{
    (void)ws, (void)text;
    snprintf(((struct side *)arg)->text, 64, "%.*s", (int)size, (const char *)data);
}

static void side_close(struct websocket *ws, int code, const char *reason, void *arg)
{
    (void)ws, (void)code, (void)reason;
    ((struct side *)arg)->closed = true;
}

static void test_websocket(void **state)
{
    static const struct websocket_callbacks callbacks = {
        .on_open = side_open, .on_message = side_message, .on_close = side_close};
    struct app app;
    struct side side = {0};
    struct websocket *ws;
    (void)state;
    start_plain(&app);
    struct websocket_connect_options options = {.endpoint = app.front.endpoint, .target = "/ws"};
    assert_int_equal(websocket_connect(&app.front.loop, &options, &callbacks, &side, &ws, NULL), 0);
    NET_WAIT(&app.front, side.open);
    websocket_send(ws, true, "through", 7);
    NET_WAIT(&app.front, side.text[0] != '\0');
    assert_string_equal(side.text, "through");
    websocket_close(ws, 1000, "");
    NET_WAIT(&app.front, side.closed && app.ws_closed == 1);
    app_finish(&app);
}

/* Raw bytes both ways with a side that stops reading, and the ends that follow each other. */
static void test_tunnel(void **state)
{
    struct app app;
    struct raw raw;
    static uint8_t block[65536];
    (void)state;
    start_plain(&app);
    raw_connect(&app.front, &raw, NULL, NULL);
    raw_send(&raw, "GET /raw HTTP/1.1\r\n" H "Connection: Upgrade\r\nUpgrade: raw\r\n\r\nearly");
    NET_WAIT(&app.front, raw_count(&raw, "\r\n\r\n") == 1 && app.raw_received == 5);
    tls_stream_pause(app.raw);
    for (int i = 0; i < 400; i++)
        tls_stream_write(raw.stream, block, sizeof block);
    for (int i = 0; i < 300; i++)
        uv_run(&app.front.loop, UV_RUN_NOWAIT);
    assert_true(tls_stream_queued_bytes(raw.stream) > 1000000); /* it came to a stop on the way */
    tls_stream_resume(app.raw);
    NET_WAIT(&app.front, app.raw_received == 5 + 400 * sizeof block);
    tls_stream_write(app.raw, "bye", 3);
    tls_stream_finish(TAKE_PTR(app.raw), NET_LIMIT_MS);
    NET_WAIT(&app.front, raw.ended);
    assert_int_equal(raw_count(&raw, "bye"), 1);
    raw_finish(&raw);
    /* The client ends first. */
    app.raw_received = 0;
    raw_connect(&app.front, &raw, NULL, NULL);
    raw_send(&raw, "GET /raw HTTP/1.1\r\n" H "Connection: Upgrade\r\nUpgrade: raw\r\n\r\n");
    NET_WAIT(&app.front, raw_count(&raw, "\r\n\r\n") == 1);
    for (int i = 0; i < 20; i++)
        tls_stream_write(raw.stream, block, sizeof block);
    tls_stream_finish(TAKE_PTR(raw.stream), NET_LIMIT_MS);
    NET_WAIT(&app.front, app.raw_ended);
    assert_int_equal(app.raw_received, 20 * sizeof block);
    raw_finish(&raw);
    app_finish(&app);
}

/* The client ends while its bytes wait in the proxy: they still arrive. The other server is on a Unix socket, whose
 * buffer does not grow. */
static void test_tunnel_last_bytes(void **state)
{
    struct app app;
    struct raw raw;
    struct net local = {0};
    static uint8_t block[400 * 1024];
    char dir[] = "/tmp/drover-test-XXXXXX", path[64];
    (void)state;
    start_plain(&app);
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "unix:%s/s", dir);
    struct http_server_options options = {.address = path, .handler = back_handle, .arg = &app};
    assert_int_equal(http_server_start(&app.front.loop, &options, &local.server, NULL), 0);
    app.target.endpoint = path;
    ask(&app, &raw, "GET /raw HTTP/1.1\r\n" H "Connection: Upgrade\r\nUpgrade: raw\r\n\r\n", "HTTP/1.1 101");
    tls_stream_pause(app.raw);
    tls_stream_write(raw.stream, block, sizeof block);
    tls_stream_finish(TAKE_PTR(raw.stream), NET_LIMIT_MS);
    for (int i = 0; i < 100; i++)
        uv_run(&app.front.loop, UV_RUN_NOWAIT);
    tls_stream_resume(app.raw);
    NET_WAIT(&app.front, app.raw_ended);
    assert_int_equal(app.raw_received, sizeof block);
    http_server_stop(local.server, net_server_closed, &local);
    NET_WAIT(&app.front, local.server_closed);
    raw_finish(&raw);
    app_finish(&app);
    assert_int_equal(rmdir(dir), 0);
}

/* Closing with one exchange in each state. */
static void test_close(void **state)
{
    struct app app;
    struct raw waiting, body, tunnel;
    (void)state;
    start_plain(&app);
    ask(&app, &body, "GET /stream HTTP/1.1\r\n" H "\r\n", "event-stream");
    struct http_request *streaming = app.held;
    ask(&app, &tunnel, "GET /raw HTTP/1.1\r\n" H "Connection: Upgrade\r\nUpgrade: raw\r\n\r\n", "HTTP/1.1 101");
    raw_connect(&app.front, &waiting, NULL, NULL);
    raw_send(&waiting, "GET /hold HTTP/1.1\r\n" H "\r\n");
    NET_WAIT(&app.front, app.held != streaming);
    http_proxy_close(app.proxy, proxy_closed, &app);
    NET_WAIT(&app.front, app.proxy_closed && body.ended && tunnel.ended && app.raw_ended && app.gone == 2);
    NET_WAIT(&app.front, raw_count(&waiting, "HTTP/1.1 503") == 1);
    http_release(app.held);
    http_stream_end(streaming);
    raw_finish(&waiting);
    raw_finish(&body);
    raw_finish(&tunnel);
    app_finish(&app);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole),    cmocka_unit_test(test_tls),
        cmocka_unit_test(test_stream),   cmocka_unit_test(test_back_pressure),
        cmocka_unit_test(test_failures), cmocka_unit_test(test_stale_connection),
        cmocka_unit_test(test_no_http),  cmocka_unit_test(test_websocket),
        cmocka_unit_test(test_tunnel),   cmocka_unit_test(test_tunnel_last_bytes),
        cmocka_unit_test(test_close),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
