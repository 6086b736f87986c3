/* WebSocket: framing against a table of bad frames, and both ends over a socket. */
#include "tests/unit/common/net_fixture.h"

#include <errno.h>

#include "common/websocket.h"
#include "common/websocket_frame.h"

/* --- framing --- */

/* Decode @size bytes given in pieces of @piece; messages are written to @out as "op:text,". */
static int decode(const uint8_t *data, size_t size, size_t piece, bool masked, char *out)
{
    struct websocket_decoder decoder;
    int rc = 0;
    out[0] = '\0';
    websocket_decoder_init(&decoder, masked, 1000);
    for (size_t at = 0; at < size && rc >= 0;) {
        struct websocket_message message;
        size_t part = MIN(piece, size - at), used;
        uint8_t *copy = malloc(part);
        memcpy(copy, data + at, part);
        rc = websocket_decode(&decoder, copy, part, &used, &message);
        if (rc == 1)
            sprintf(out + strlen(out), "%d:%.20s,", message.opcode, (const char *)message.data);
        at += used;
        free(copy);
    }
    websocket_decoder_finish(&decoder);
    return rc;
}

#define FRAMES(...) (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__})

static void test_frames(void **state)
{
    const struct {
        const char *name;
        const uint8_t *data;
        size_t size;
        int expected;
        const char *out;
    } cases[] = {
        {"text", FRAMES(0x81, 2, 'h', 'i'), 1, "1:hi,"},
        {"empty", FRAMES(0x82, 0), 1, "2:,"},
        {"fragments with a ping between", FRAMES(0x01, 1, 'a', 0x89, 1, 'p', 0x00, 1, 'b', 0x80, 1, 'c'), 1,
         "9:p,1:abc,"},
        {"two in one", FRAMES(0x81, 1, 'x', 0x82, 1, 'y'), 1, "1:x,2:y,"},
        {"close with words", FRAMES(0x88, 4, 0x03, 0xe8, 'o', 'k'), 1, NULL},
        {"close without code", FRAMES(0x88, 0), 1, "8:,"},
        {"character across fragments", FRAMES(0x01, 1, 0xc3, 0x80, 1, 0xa4), 1, "1:\xc3\xa4,"},
        {"RSV1", FRAMES(0xc1, 0), -1002, ""},
        {"RSV3", FRAMES(0x91, 0), -1002, ""},
        {"opcode 3", FRAMES(0x83, 0), -1002, ""},
        {"opcode 11", FRAMES(0x8b, 0), -1002, ""},
        {"masked from a server", FRAMES(0x81, 0x80, 0, 0, 0, 0), -1002, ""},
        {"fragmented ping", FRAMES(0x09, 0), -1002, ""},
        {"long ping", FRAMES(0x89, 126, 0, 126), -1002, ""},
        {"length 125 in 16 bits", FRAMES(0x81, 126, 0, 125), -1002, ""},
        {"length 65535 in 64 bits", FRAMES(0x81, 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff), -1002, ""},
        {"length with the top bit", FRAMES(0x81, 127, 0x80, 0, 0, 0, 0, 1, 0, 0), -1002, ""},
        {"larger than the limit", FRAMES(0x81, 126, 0x03, 0xe9), -1009, ""},
        {"huge", FRAMES(0x81, 127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), -1009, ""},
        {"continuation of nothing", FRAMES(0x80, 0), -1002, ""},
        {"message within a message", FRAMES(0x01, 0, 0x81, 0), -1002, ""},
        {"close of one byte", FRAMES(0x88, 1, 3), -1002, ""},
        {"close code 1005", FRAMES(0x88, 2, 0x03, 0xed), -1002, ""},
        {"close code 999", FRAMES(0x88, 2, 0x03, 0xe7), -1002, ""},
        {"close with bad words", FRAMES(0x88, 3, 0x03, 0xe8, 0xff), -1007, ""},
        {"overlong character", FRAMES(0x81, 2, 0xc0, 0x80), -1007, ""},
        {"surrogate", FRAMES(0x81, 3, 0xed, 0xa0, 0x80), -1007, ""},
        {"above U+10FFFF", FRAMES(0x81, 4, 0xf4, 0x90, 0x80, 0x80), -1007, ""},
        {"character cut off", FRAMES(0x81, 1, 0xc3), -1007, ""},
    };
    char out[256];
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        for (size_t piece = 1; piece <= cases[i].size; piece++) {
            int rc = decode(cases[i].data, cases[i].size, piece, false, out);
            if (rc != cases[i].expected || (cases[i].out != NULL && strcmp(out, cases[i].out) != 0))
                fail_msg("%s in pieces of %zu: %d '%s'", cases[i].name, piece, rc, out);
        }
    assert_int_equal(decode(FRAMES(0x81, 1, 'x'), 3, true, out), -1002); /* a client that does not mask */
}

static void test_fragment_count(void **state)
{
    struct bytes_writer all = {0};
    char out[64];
    (void)state;
    bytes_put(&all, "\x01\x00", 2);
    for (int i = 0; i < WEBSOCKET_FRAGMENTS_MAX; i++)
        bytes_put(&all, "\x00\x00", 2);
    assert_int_equal(decode(all.data, all.size, 100, false, out), -1009);
    bytes_writer_finish(&all);
}

static void test_round_trip(void **state)
{
    static const size_t sizes[] = {0, 1, 125, 126, 127, 65535, 65536, 100000};
    static const uint8_t mask[4] = {0x12, 0xf4, 0x56, 0x78};
    static uint8_t data[100000];
    (void)state;
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 13);
    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++)
        for (int masked = 0; masked < 2; masked++) {
            struct websocket_decoder decoder;
            struct websocket_message message;
            struct bytes_writer frame = {0};
            size_t used;
            websocket_encode(&frame, WEBSOCKET_BINARY, data, sizes[i], masked ? mask : NULL);
            websocket_decoder_init(&decoder, masked, sizeof data);
            assert_int_equal(websocket_decode(&decoder, frame.data, frame.size, &used, &message), 1);
            assert_int_equal(used, frame.size);
            assert_int_equal(message.size, sizes[i]);
            assert_memory_equal(message.data, data, sizes[i]);
            assert_int_equal(message.data[sizes[i]], 0);
            websocket_decoder_finish(&decoder);
            bytes_writer_finish(&frame);
        }
}

/* The example of RFC 6455 §1.3. */
static void test_accept_key(void **state)
{
    char accept[WEBSOCKET_ACCEPT_SIZE];
    (void)state;
    websocket_accept_key("dGhlIHNhbXBsZSBub25jZQ==", accept);
    assert_string_equal(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

/* --- both ends --- */

struct side {
    struct websocket *ws;
    bool open, closed, paused_once;
    int code;
    char reason[300];
    char text[8192];
    size_t received;
    unsigned messages, drained;
};

struct app {
    struct net net;
    struct side server, client;
    bool echo, pause_first;
};

static void on_open(struct websocket *ws, void *arg)
{
    (void)ws;
    ((struct side *)arg)->open = true;
}

static void on_message(struct websocket *ws, bool text, const uint8_t *data, size_t size, void *arg)
{
    struct side *side = arg;
    (void)ws;
    side->messages++;
    side->received += size;
    if (text && strlen(side->text) + size < sizeof side->text)
        strcat(side->text, (const char *)data);
}

static void on_server_message(struct websocket *ws, bool text, const uint8_t *data, size_t size, void *arg)
{
    struct app *app = arg;
    on_message(ws, text, data, size, &app->server);
    if (text && strcmp((const char *)data, "close") == 0)
        websocket_close(ws, 4000, "as you wish");
    else if (app->echo)
        websocket_send(ws, text, data, size);
    if (app->pause_first && !app->server.paused_once) {
        app->server.paused_once = true;
        websocket_pause(ws);
    }
}

static void on_close(struct websocket *ws, int code, const char *reason, void *arg)
{
    struct side *side = arg;
    (void)ws;
    assert_false(side->closed);
    side->closed = true;
    side->code = code;
    side->ws = NULL;
    snprintf(side->reason, sizeof side->reason, "%s", reason);
}

static void on_server_close(struct websocket *ws, int code, const char *reason, void *arg)
{
    on_close(ws, code, reason, &((struct app *)arg)->server);
}

static void on_server_drain(struct websocket *ws, void *arg)
{
    (void)ws;
    ((struct app *)arg)->server.drained++;
}

static const struct websocket_callbacks server_callbacks = {
    .on_message = on_server_message, .on_drain = on_server_drain, .on_close = on_server_close};
static const struct websocket_callbacks client_callbacks = {
    .on_open = on_open, .on_message = on_message, .on_close = on_close};

static void handle(struct http_request *request, void *arg)
{
    struct app *app = arg;
    struct error err = {0};
    if (strcmp(request->path, "/ws") != 0) {
        error_set(&err, -ENOENT, ERROR_NOT_FOUND, "no such console");
        http_respond_error(request, &err);
    } else if (http_websocket_accept(request, "console", &server_callbacks, app, &app->server.ws, &err) < 0) {
        http_respond_error(request, &err);
    }
}

static void app_start(struct app *app, struct tls_context *(*make_tls)(struct net *))
{
    *app = (struct app){.echo = true};
    net_init(&app->net);
    struct tls_context *tls = make_tls != NULL ? make_tls(&app->net) : NULL;
    net_serve(&app->net, (struct http_server_options){
                             .tls = tls, .handler = handle, .arg = app, .limits = {.write_queue_bytes_max = 300000}});
    tls_context_unref(tls);
}

static struct tls_context *both_tls(struct net *net)
{
    return net_tls(net, "spiffe://drover/c1/controller/1");
}

static void app_connect(struct app *app, const char *target, bool with_tls)
{
    struct tls_context *tls = with_tls ? net_tls(&app->net, "spiffe://drover/c1/user/u") : NULL;
    struct websocket_connect_options options = {.endpoint = app->net.endpoint,
                                                .target = target,
                                                .tls = tls,
                                                .protocol = "console",
                                                .peer_prefix = with_tls ? "spiffe://drover/c1/controller/" : NULL};
    app->client = (struct side){0};
    assert_int_equal(
        websocket_connect(&app->net.loop, &options, &client_callbacks, &app->client, &app->client.ws, NULL), 0);
    tls_context_unref(tls);
    NET_WAIT(&app->net, app->client.open || app->client.closed);
}

static void echo_and_close(bool with_tls)
{
    struct app app;
    static uint8_t big[200000];
    app_start(&app, with_tls ? both_tls : NULL);
    app_connect(&app, "/ws?ticket=1", with_tls);
    assert_true(app.client.open);
    assert_int_equal(websocket_send(app.client.ws, true, "hello ", 6), 0);
    assert_int_equal(websocket_send(app.client.ws, true, "there", 5), 0);
    assert_int_equal(websocket_send(app.client.ws, false, big, sizeof big), 0);
    NET_WAIT(&app.net, app.client.messages == 3);
    assert_string_equal(app.client.text, "hello there");
    assert_int_equal(app.client.received, 11 + sizeof big);
    websocket_close(app.client.ws, 1000, "done");
    assert_int_equal(websocket_send(app.client.ws, true, "x", 1), -EPIPE);
    NET_WAIT(&app.net, app.client.closed && app.server.closed);
    assert_int_equal(app.client.code, 1000);
    assert_int_equal(app.server.code, 1000);
    assert_string_equal(app.server.reason, "done");
    net_finish(&app.net);
}

static void test_echo(void **state)
{
    (void)state;
    echo_and_close(false);
}

static void test_echo_tls(void **state)
{
    (void)state;
    echo_and_close(true);
}

static void test_server_closes(void **state)
{
    struct app app;
    (void)state;
    app_start(&app, NULL);
    app_connect(&app, "/ws", false);
    websocket_send(app.client.ws, true, "close", 5);
    NET_WAIT(&app.net, app.client.closed && app.server.closed);
    assert_int_equal(app.client.code, 4000);
    assert_string_equal(app.client.reason, "as you wish");
    assert_int_equal(app.server.code, 4000);
    net_finish(&app.net);
}

static void test_server_stops(void **state)
{
    struct app app;
    (void)state;
    app_start(&app, NULL);
    app_connect(&app, "/ws", false);
    http_server_stop(app.net.server, net_server_closed, &app.net);
    NET_WAIT(&app.net, app.net.server_closed && app.client.closed);
    assert_int_equal(app.server.code, 1001);
    assert_int_equal(app.client.code, 1006);
    net_finish(&app.net);
}

static void test_refused(void **state)
{
    struct app app;
    (void)state;
    app_start(&app, NULL);
    app_connect(&app, "/other", false);
    assert_true(app.client.closed && !app.client.open);
    assert_int_equal(app.client.code, 1006);
    assert_string_equal(app.client.reason, "the server answered 404: no such console");
    /* Nobody there at all; and given up before it is open. */
    struct websocket_connect_options options = {.endpoint = "unix:/nonexistent/s", .target = "/"};
    app.client = (struct side){0};
    assert_int_equal(websocket_connect(&app.net.loop, &options, &client_callbacks, &app.client, &app.client.ws, NULL),
                     0);
    NET_WAIT(&app.net, app.client.closed);
    options.endpoint = app.net.endpoint;
    options.target = "/ws";
    app.client = (struct side){0};
    assert_int_equal(websocket_connect(&app.net.loop, &options, &client_callbacks, &app.client, &app.client.ws, NULL),
                     0);
    websocket_close(app.client.ws, 1001, "changed my mind");
    NET_WAIT(&app.net, app.client.closed);
    assert_int_equal(app.client.code, 1001);
    net_finish(&app.net);
}

#define GOOD_AFTER_GET                                                                                               \
    " /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"         \
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
#define UPGRADE(key, version)                                                                                        \
    "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: " key            \
    "\r\nSec-WebSocket-Version: " version "\r\n\r\n"
#define GOOD UPGRADE("dGhlIHNhbXBsZSBub25jZQ==", "13")

static void test_bad_upgrades(void **state)
{
    static const char *const bad[] = {
        UPGRADE("short", "13"),
        UPGRADE("dGhlIHNhbXBsZSBub25jZQ==", "8"),
        UPGRADE("dGhlIHNhbXBsZSBub25jZ!==", "13"),
        "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
        "POST" GOOD_AFTER_GET,
        "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    };
    struct app app;
    (void)state;
    app_start(&app, NULL);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct raw raw;
        raw_connect(&app.net, &raw, NULL, NULL);
        raw_send(&raw, bad[i]);
        NET_WAIT(&app.net, raw_count(&raw, "}\n") == 1);
        assert_int_equal(raw_count(&raw, "HTTP/1.1 400 "), 1);
        raw_finish(&raw);
    }
    net_finish(&app.net);
}

/* Frames that come in one piece with the request, good and bad. */
static void test_raw_frames(void **state)
{
    static const struct {
        const char *frame;
        size_t size;
        const char *answer;
        size_t answer_size;
        int code;
    } cases[] = {
        {"\x81\x82\x00\x00\x00\x00hi", 8, "\x81\x02hi", 4, 0},
        {"\x89\x81\x00\x00\x00\x00p", 7, "\x8a\x01p", 3, 0},
        {"\x88\x82\x00\x00\x00\x00\x03\xe8", 8, "\x88\x02\x03\xe8", 4, 1000},
        {"\x81\x02hi", 4, "\x88\x1f\x03\xea", 4, 1002},
        {"\xc1\x80\x00\x00\x00\x00", 6, "\x88\x1f\x03\xea", 4, 1002},
        {"\x81\x82\x00\x00\x00\x00\xc0\x80", 8, "\x88\x1f\x03\xef", 4, 1007},
        {"\x82\xff\x00\x00\x00\x00\x00\x10\x00\x01\x00\x00\x00\x00", 14, "\x88\x1f\x03\xf1", 4, 1009},
    };
    struct app app;
    (void)state;
    app_start(&app, NULL);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct raw raw;
        app.server = (struct side){0};
        raw_connect(&app.net, &raw, NULL, NULL);
        tls_stream_cork(raw.stream);
        raw_send(&raw, GOOD);
        tls_stream_write(raw.stream, cases[i].frame, cases[i].size);
        tls_stream_uncork(raw.stream);
        NET_WAIT(&app.net, strstr(raw_text(&raw), "\r\n\r\n") != NULL);
        const char *body = strstr(raw_text(&raw), "\r\n\r\n") + 4;
        size_t head = (size_t)(body - raw_text(&raw));
        NET_WAIT(&app.net, raw.got.size >= head + cases[i].answer_size);
        assert_memory_equal(raw.got.data + head, cases[i].answer, cases[i].answer_size);
        if (cases[i].code != 0) {
            NET_WAIT(&app.net, app.server.closed && raw.ended);
            assert_int_equal(app.server.code, cases[i].code);
        }
        raw_finish(&raw);
        NET_WAIT(&app.net, app.server.closed);
    }
    net_finish(&app.net);
}

static void test_queue_limit(void **state)
{
    struct app app;
    struct raw raw;
    static uint8_t block[50000];
    int rc = 0;
    (void)state;
    app_start(&app, NULL);
    raw_connect(&app.net, &raw, NULL, NULL);
    raw_send(&raw, GOOD);
    NET_WAIT(&app.net, app.server.ws != NULL && raw.got.size > 0);
    tls_stream_pause(raw.stream);
    for (int i = 0; i < 1000 && rc == 0; i++) {
        rc = websocket_send(app.server.ws, false, block, sizeof block);
        uv_run(&app.net.loop, UV_RUN_NOWAIT);
    }
    assert_int_equal(rc, -ENOBUFS);
    assert_true(websocket_queued_bytes(app.server.ws) <= 300000 + 14);
    assert_false(app.server.closed); /* the owner waits, and is told */
    tls_stream_resume(raw.stream);
    NET_WAIT(&app.net, app.server.drained > 0);
    assert_int_equal(websocket_send(app.server.ws, false, block, sizeof block), 0);
    raw_finish(&raw);
    NET_WAIT(&app.net, app.server.closed);
    assert_int_equal(app.server.code, 1006);
    net_finish(&app.net);
}

static void test_pause(void **state)
{
    struct app app;
    (void)state;
    app_start(&app, NULL);
    app.pause_first = true;
    app_connect(&app, "/ws", false);
    for (int i = 0; i < 5; i++)
        websocket_send(app.client.ws, true, "x", 1);
    NET_WAIT(&app.net, app.client.messages == 1);
    for (int i = 0; i < 30; i++)
        uv_run(&app.net.loop, UV_RUN_NOWAIT);
    assert_int_equal(app.server.messages, 1);
    websocket_resume(app.server.ws);
    NET_WAIT(&app.net, app.client.messages == 5);
    websocket_abort(app.client.ws);
    NET_WAIT(&app.net, app.client.closed && app.server.closed);
    assert_int_equal(app.client.code, 1006);
    net_finish(&app.net);
}

/* An owner that closes and then pauses has nothing more to pause: the peer's answer must still be read. */
static void test_pause_while_closing(void **state)
{
    struct app app;
    (void)state;
    app_start(&app, NULL);
    app.pause_first = true;
    app_connect(&app, "/ws", false);
    websocket_send(app.client.ws, true, "close", 5);
    websocket_send(app.client.ws, true, "x", 1);
    NET_WAIT(&app.net, app.client.closed && app.server.closed);
    assert_int_equal(app.client.code, 4000);
    assert_int_equal(app.server.messages, 1);
    net_finish(&app.net);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frames),        cmocka_unit_test(test_fragment_count),
        cmocka_unit_test(test_round_trip),    cmocka_unit_test(test_accept_key),
        cmocka_unit_test(test_echo),          cmocka_unit_test(test_echo_tls),
        cmocka_unit_test(test_server_closes), cmocka_unit_test(test_server_stops),
        cmocka_unit_test(test_refused),       cmocka_unit_test(test_bad_upgrades),
        cmocka_unit_test(test_raw_frames),    cmocka_unit_test(test_queue_limit),
        cmocka_unit_test(test_pause),         cmocka_unit_test(test_pause_while_closing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
