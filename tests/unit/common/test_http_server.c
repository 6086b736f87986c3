/* The HTTP server over real sockets on loopback: answers, order, limits, time-outs, streams, problem documents, and
 * that nothing stays behind. Time-outs are set to tens of milliseconds; tests wait for events, never for time. */
#include "tests/unit/common/net_fixture.h"

#include <errno.h>
#include <malloc.h>
#include <sys/resource.h>
#include <sys/stat.h>

/* What the handler keeps for the tests. */
struct app {
    struct net net;
    struct http_request *held[4]; /* of /hold */
    unsigned held_count, gone, drained, freed, spun;
    size_t written;
    uint8_t *big; /* of /big */
    size_t body_size;
};

static void count_gone(struct http_request *request, void *arg)
{
    (void)request;
    ((struct app *)arg)->gone++;
}

static void count_drained(struct http_request *request, void *arg)
{
    (void)request;
    ((struct app *)arg)->drained++;
}

static void begin_events(struct http_request *request, struct app *app, unsigned keepalive_ms)
{
    struct http_stream_options options = {.content_type = "text/event-stream",
                                          .keepalive = keepalive_ms > 0 ? ": keep-alive\n\n" : NULL,
                                          .keepalive_ms = keepalive_ms,
                                          .drained = count_drained,
                                          .drained_arg = app};
    http_request_on_gone(request, count_gone, app);
    http_stream_begin(request, &options);
    app->held[app->held_count++] = request;
}

static void respond_query(struct http_request *request)
{
    char value[16], text[64];
    ssize_t n = http_request_parameter(request, "q", value, sizeof value);
    int size = snprintf(text, sizeof text, "%zd:%s", n, n >= 0 ? value : "");
    http_respond(request, 200, "text/plain", NULL, text, (size_t)size);
}

static void respond_error(struct http_request *request)
{
    struct error err = {0};
    if (strcmp(request->query, "busy") == 0)
        error_set(&err, -EBUSY, ERROR_OVERLOAD, "wait");
    else
        error_set_field(&err, -EINVAL, ERROR_INVALID, "/disks/0/size_bytes", "a \"disk\" \\ of \x01 is \xff small");
    http_respond_error(request, &err);
}

/* Work of a third of what the input of one turn may take. */
static void spin(struct http_request *request, struct app *app)
{
    uint64_t end_ns = uv_hrtime() + TLS_STREAM_TURN_NS_MAX / 3;
    while (uv_hrtime() < end_ns)
        ;
    app->spun++;
    http_respond(request, 200, "text/plain", NULL, "spun", 4);
}

static void handle(struct http_request *request, void *arg)
{
    struct app *app = arg;
    app->body_size = request->body_size;
    if (strcmp(request->path, "/echo") == 0) {
        http_respond(request, 200, "text/plain", NULL, request->body, request->body_size);
    } else if (strcmp(request->path, "/hold") == 0) {
        http_request_on_gone(request, count_gone, app);
        app->held[app->held_count++] = request;
    } else if (strcmp(request->path, "/events") == 0) {
        begin_events(request, app, 0);
    } else if (strcmp(request->path, "/events-alive") == 0) {
        begin_events(request, app, 20);
    } else if (strcmp(request->path, "/big") == 0) {
        http_respond_take(request, 200, "application/octet-stream", NULL, app->big, app->written, free);
    } else if (strcmp(request->path, "/spin") == 0) {
        spin(request, app);
    } else if (strcmp(request->path, "/query") == 0) {
        respond_query(request);
    } else if (strcmp(request->path, "/error") == 0) {
        respond_error(request);
    } else if (strcmp(request->path, "/empty") == 0) {
        http_respond(request, 204, NULL, "ETag: \"7\"\r\n", NULL, 0);
    } else if (strcmp(request->path, "/release") == 0) {
        http_release(request);
    } else {
        http_respond(request, 200, "text/plain", NULL, request->path, strlen(request->path));
    }
}

static void app_start(struct app *app, struct http_limits limits)
{
    *app = (struct app){0};
    net_init(&app->net);
    net_serve(&app->net, (struct http_server_options){.limits = limits, .handler = handle, .arg = app});
}

/* One connection, @text sent at once; until @times times @wanted has come, or the end. */
static void exchange(struct app *app, struct raw *raw, const char *text, const char *wanted, unsigned times)
{
    raw_connect(&app->net, raw, NULL, NULL);
    raw_send(raw, text);
    NET_WAIT(&app->net, raw_count(raw, wanted) == times || raw->ended);
    if (raw_count(raw, wanted) != times)
        fail_msg("%s\n--- gave ---\n%s", text, raw_text(raw));
}

#define H "Host: a\r\n"

static void test_answers(void **state)
{
    struct app app;
    struct raw raw;
    (void)state;
    app_start(&app, (struct http_limits){0});
    exchange(&app, &raw, "GET /hello HTTP/1.1\r\n" H "X-Request-Id: abc.1\r\n\r\n", "/hello", 1);
    assert_int_equal(raw_count(&raw, "HTTP/1.1 200 OK\r\n"), 1);
    assert_int_equal(raw_count(&raw, "Content-Length: 6\r\n"), 1);
    assert_int_equal(raw_count(&raw, "X-Request-Id: abc.1\r\n"), 1);
    assert_int_equal(raw_count(&raw, "\r\nDate: "), 1);
    assert_int_equal(raw_count(&raw, " GMT\r\n"), 1);
    assert_int_equal(raw_count(&raw, "Connection"), 0);
    /* The same connection takes more: HEAD has the length and no body, 204 neither. */
    raw_forget(&raw);
    raw_send(&raw, "HEAD /hello HTTP/1.1\r\n" H "X-Request-Id: bad id\r\n\r\nGET /empty HTTP/1.1\r\n" H "\r\n");
    NET_WAIT(&app.net, raw_count(&raw, "HTTP/1.1 204 No Content") == 1 && raw_count(&raw, "\r\n\r\n") == 2);
    assert_int_equal(raw_count(&raw, "Content-Length: 6\r\n"), 1);
    assert_int_equal(raw_count(&raw, "/hello"), 0);
    assert_int_equal(raw_count(&raw, "ETag: \"7\""), 1);
    assert_int_equal(raw_count(&raw, "bad id"), 0);
    assert_int_equal(raw_count(&raw, "X-Request-Id: "), 2);
    /* HTTP/1.0 and Connection: close end it. */
    raw_forget(&raw);
    raw_send(&raw, "GET /last HTTP/1.1\r\n" H "Connection: close\r\n\r\n");
    NET_WAIT(&app.net, raw.ended);
    assert_int_equal(raw.status, UV_EOF);
    assert_int_equal(raw_count(&raw, "Connection: close\r\n"), 1);
    raw_finish(&raw);
    exchange(&app, &raw, "GET /old HTTP/1.0\r\n\r\n", "/old", 1);
    NET_WAIT(&app.net, raw.ended);
    raw_finish(&raw);
    assert_int_equal(http_server_counters(app.net.server)->requests, 5);
    net_finish(&app.net);
}

static void test_pipelined(void **state)
{
    struct app app;
    struct raw raw;
    (void)state;
    app_start(&app, (struct http_limits){0});
    raw_connect(&app.net, &raw, NULL, NULL);
    /* The second is answered late; the order is kept, also for what comes after the answer has gone out. */
    raw_send(&raw, "GET /one HTTP/1.1\r\n" H "\r\nGET /hold HTTP/1.1\r\n" H "\r\nPOST /echo HTTP/1.1\r\n" H
                   "Content-Length: 5\r\n\r\nthreeGET /4 HTTP/1.1\r\n" H "\r\nGET /5 HT");
    NET_WAIT(&app.net, app.held_count == 1 && raw_count(&raw, "/one") == 1);
    raw_send(&raw, "TP/1.1\r\n" H "\r\n");
    for (int i = 0; i < 20; i++)
        uv_run(&app.net.loop, UV_RUN_NOWAIT);
    assert_int_equal(raw_count(&raw, "HTTP/1.1 200"), 1);
    http_respond(app.held[0], 200, "text/plain", NULL, "two", 3);
    assert_int_equal(http_server_counters(app.net.server)->requests, 2); /* not from inside the answer */
    NET_WAIT(&app.net, raw_count(&raw, "HTTP/1.1 200") == 5);
    const char *text = raw_text(&raw);
    assert_true(strstr(text, "/one") < strstr(text, "two") && strstr(text, "two") < strstr(text, "three") &&
                strstr(text, "three") < strstr(text, "/4") && strstr(text, "/4") < strstr(text, "/5"));
    raw_finish(&raw);
    net_finish(&app.net);
}

/* Hundreds of requests in one write, and a client that reads nothing meanwhile. */
static void test_many_pipelined(void **state)
{
    struct app app;
    struct raw raw;
    struct bytes_writer all = {0};
    (void)state;
    app_start(&app, (struct http_limits){0});
    for (int i = 0; i < 3000; i++)
        bytes_put_format(&all, "POST /echo HTTP/1.1\r\n" H "Content-Length: 200\r\n\r\n%0200d", i);
    bytes_put(&all, "", 1);
    exchange(&app, &raw, (const char *)all.data, "HTTP/1.1 200", 3000);
    bytes_writer_finish(&all);
    raw_finish(&raw);
    net_finish(&app.net);
}

static void test_chunked_body(void **state)
{
    struct app app;
    struct raw raw;
    (void)state;
    app_start(&app, (struct http_limits){0});
    exchange(&app, &raw,
             "POST /echo HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n7\r\n, world\r\n0\r\n\r\n"
             "GET /next HTTP/1.1\r\n" H "\r\n",
             "HTTP/1.1 200", 2);
    assert_int_equal(raw_count(&raw, "hello, world"), 1);
    raw_finish(&raw);
    /* In single bytes. */
    static const char slow[] = "POST /echo HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    raw_connect(&app.net, &raw, NULL, NULL);
    for (size_t i = 0; i < sizeof slow - 1; i++) {
        tls_stream_write(raw.stream, slow + i, 1);
        uv_run(&app.net.loop, UV_RUN_NOWAIT);
    }
    NET_WAIT(&app.net, raw_count(&raw, "abc") == 1);
    raw_finish(&raw);
    net_finish(&app.net);
}

static void test_continue(void **state)
{
    struct app app;
    struct raw raw;
    (void)state;
    app_start(&app, (struct http_limits){0});
    exchange(&app, &raw, "POST /echo HTTP/1.1\r\n" H "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n",
             "HTTP/1.1 100 Continue\r\n\r\n", 1);
    raw_send(&raw, "abc");
    NET_WAIT(&app.net, raw_count(&raw, "abc") == 1);
    /* Too large is said before the body is sent. */
    raw_forget(&raw);
    raw_send(&raw, "POST /echo HTTP/1.1\r\n" H "Expect: 100-continue\r\nContent-Length: 3000000\r\n\r\n");
    NET_WAIT(&app.net, raw.ended);
    assert_int_equal(raw_count(&raw, "100 Continue"), 0);
    assert_int_equal(raw_count(&raw, "HTTP/1.1 413 "), 1);
    raw_finish(&raw);
    net_finish(&app.net);
}

static void test_refusals(void **state)
{
    static const struct {
        const char *text, *answer;
    } refusals[] = {
        {"GET / HTTP/1.1\nHost: a\n\n", "HTTP/1.1 400 "},
        {"BREW / HTTP/1.1\r\n" H "\r\n", "HTTP/1.1 501 "},
        {"GET / HTTP/2.0\r\n" H "\r\n", "HTTP/1.1 505 "},
        {"GET / HTTP/1.1\r\n" H H "\r\n", "HTTP/1.1 400 "},
        {"POST /echo HTTP/1.1\r\n" H "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
         "GET /smuggled HTTP/1.1\r\n" H "\r\n",
         "HTTP/1.1 400 "},
        {"POST /echo HTTP/1.1\r\n" H "Content-Length: 2000000\r\n\r\n", "HTTP/1.1 413 "},
        {"POST /echo HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\nzz\r\n", "HTTP/1.1 400 "},
        {"POST /echo HTTP/1.1\r\n" H "Expect: miracle\r\n\r\n", "HTTP/1.1 417 "},
    };
    struct app app;
    (void)state;
    app_start(&app, (struct http_limits){0});
    for (size_t i = 0; i < ARRAY_SIZE(refusals); i++) {
        struct raw raw;
        exchange(&app, &raw, refusals[i].text, refusals[i].answer, 1);
        NET_WAIT(&app.net, raw.ended);
        assert_int_equal(raw_count(&raw, "application/problem+json"), 1);
        assert_int_equal(raw_count(&raw, "HTTP/1.1 "), 1);
        raw_finish(&raw);
    }
    assert_int_equal(http_server_counters(app.net.server)->requests, 0);
    net_finish(&app.net);
}

static void test_problem(void **state)
{
    struct app app;
    struct raw raw;
    (void)state;
    app_start(&app, (struct http_limits){0});
    exchange(&app, &raw, "GET /error HTTP/1.1\r\n" H "X-Request-Id: r1\r\n\r\n", "}\n", 1);
    assert_int_equal(raw_count(&raw, "HTTP/1.1 400 Bad Request\r\n"), 1);
    assert_int_equal(raw_count(&raw, "\"status\":400"), 1);
    assert_int_equal(raw_count(&raw, "\"code\":\"invalid\""), 1);
    assert_int_equal(raw_count(&raw, "\"type\":\"urn:drover:error:invalid\""), 1);
    assert_int_equal(raw_count(&raw, "\"detail\":\"a \\\"disk\\\" \\\\ of \\u0001 is ? small\""), 2);
    assert_int_equal(raw_count(&raw, "\"errors\":[{\"pointer\":\"#/disks/0/size_bytes\",\"detail\":"), 1);
    assert_int_equal(raw_count(&raw, "\"request_id\":\"r1\""), 1);
    assert_int_equal(raw_count(&raw, "Retry-After"), 0);
    raw_forget(&raw);
    raw_send(&raw, "GET /error?busy HTTP/1.1\r\n" H "\r\n");
    NET_WAIT(&app.net, raw_count(&raw, "}\n") == 1);
    assert_int_equal(raw_count(&raw, "HTTP/1.1 503 "), 1);
    assert_int_equal(raw_count(&raw, "Retry-After: 1\r\n"), 1);
    raw_finish(&raw);
    net_finish(&app.net);
}

static void test_query(void **state)
{
    static const struct {
        const char *query, *answer;
    } queries[] = {
        {"", "-2:"},           {"?q=", "0:"},        {"?q", "0:"},       {"?a=1&q=b%20c&d=2", "3:b c"},
        {"?%71=x", "1:x"},     {"?q=1&q=2", "-17:"}, {"?q=%zz", "-22:"}, {"?q=12345678901234567", "-105:"},
        {"?qq=1&xq=2", "-2:"},
    };
    struct app app;
    (void)state;
    app_start(&app, (struct http_limits){0});
    for (size_t i = 0; i < ARRAY_SIZE(queries); i++) {
        char text[128], wanted[64];
        struct raw raw;
        snprintf(text, sizeof text, "GET /query%s HTTP/1.1\r\n" H "Connection: close\r\n\r\n", queries[i].query);
        snprintf(wanted, sizeof wanted, "\r\n\r\n%s", queries[i].answer);
        exchange(&app, &raw, text, wanted, 1);
        raw_finish(&raw);
    }
    net_finish(&app.net);
}

static void test_all_parameters(void **state)
{
    struct http_request request = {.query = "a=1&&b=%32&c&=d"};
    char name[8], value[8], all[64] = "";
    size_t position = 0;
    (void)state;
    while (http_request_next_parameter(&request, &position, name, sizeof name, value, sizeof value) == 1) {
        strcat(all, name);
        strcat(all, ":");
        strcat(all, value);
        strcat(all, ",");
    }
    assert_string_equal(all, "a:1,b:2,c:,:d,");
    request.query = "a=%";
    position = 0;
    assert_int_equal(http_request_next_parameter(&request, &position, name, sizeof name, value, sizeof value),
                     -EINVAL);
}

static void test_client_goes_away(void **state)
{
    struct app app;
    struct raw raw;
    (void)state;
    app_start(&app, (struct http_limits){0});
    raw_connect(&app.net, &raw, NULL, NULL);
    raw_send(&raw, "GET /hold HTTP/1.1\r\n" H "\r\nGET /x HTTP/1.1\r\n" H "\r\n");
    NET_WAIT(&app.net, app.held_count == 1);
    raw_finish(&raw);
    NET_WAIT(&app.net, app.gone == 1);
    assert_true(http_request_is_gone(app.held[0]));
    assert_string_equal(app.held[0]->path, "/hold"); /* still whole */
    http_respond(app.held[0], 200, "text/plain", NULL, "late", 4);
    assert_int_equal(http_server_counters(app.net.server)->requests, 1);
    /* And a handler that gives no answer. */
    exchange(&app, &raw, "GET /release HTTP/1.1\r\n" H "\r\n", "HTTP", 0);
    raw_finish(&raw);
    net_finish(&app.net);
}

static void test_stop_with_requests(void **state)
{
    struct app app;
    struct raw held, stream, idle;
    (void)state;
    app_start(&app, (struct http_limits){0});
    exchange(&app, &stream, "GET /events HTTP/1.1\r\n" H "\r\n", "event-stream", 1);
    exchange(&app, &idle, "GET /x HTTP/1.1\r\n" H "\r\n", "/x", 1);
    raw_connect(&app.net, &held, NULL, NULL);
    raw_send(&held, "GET /hold HTTP/1.1\r\n" H "\r\n");
    NET_WAIT(&app.net, app.held_count == 2);
    http_server_stop(app.net.server, net_server_closed, &app.net);
    NET_WAIT(&app.net, app.net.server_closed && held.ended && stream.ended && idle.ended);
    assert_int_equal(app.gone, 2);
    /* Requests outlive their server. */
    http_stream_end(app.held[0]);
    http_respond(app.held[1], 200, NULL, NULL, NULL, 0);
    raw_finish(&held);
    raw_finish(&stream);
    raw_finish(&idle);
    net_finish(&app.net);
}

static void test_timeouts(void **state)
{
    /* Only one is short each time: on a busy machine another might be over before the text has come. */
    static const struct {
        struct http_limits limits;
        const char *text, *answer;
    } cases[] = {
        {{.idle_timeout_ms = 30}, "", ""},
        {{.header_timeout_ms = 30}, "GET / HTTP/1.1\r\nHo", "HTTP/1.1 408 "},
        {{.body_timeout_ms = 30}, "POST /echo HTTP/1.1\r\n" H "Content-Length: 5\r\n\r\nabc", "HTTP/1.1 408 "},
        {{.body_timeout_ms = 30},
         "POST /echo HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n5\r\nabc",
         "HTTP/1.1 408 "},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct app app;
        struct raw raw;
        app_start(&app, cases[i].limits);
        raw_connect(&app.net, &raw, NULL, NULL);
        raw_send(&raw, cases[i].text);
        NET_WAIT(&app.net, raw.ended);
        assert_int_equal(strncmp(raw_text(&raw), cases[i].answer, strlen(cases[i].answer)), 0);
        raw_finish(&raw);
        assert_int_equal(http_server_counters(app.net.server)->timeouts, 1);
        net_finish(&app.net);
    }
}

/* A head in drops, each well within the time: the whole has a limit. */
static void test_slow_loris(void **state)
{
    struct app app;
    struct raw raw;
    uint64_t last = 0;
    (void)state;
    app_start(&app, (struct http_limits){.header_timeout_ms = 100});
    raw_connect(&app.net, &raw, NULL, NULL);
    raw_send(&raw, "GET / HTTP/1.1\r\nX: ");
    while (!raw.ended && !app.net.expired) {
        if (uv_now(&app.net.loop) != last && raw.stream != NULL)
            tls_stream_write(raw.stream, "y", 1);
        last = uv_now(&app.net.loop);
        uv_run(&app.net.loop, UV_RUN_NOWAIT);
    }
    assert_int_equal(raw_count(&raw, "HTTP/1.1 408 "), 1);
    raw_finish(&raw);
    net_finish(&app.net);
}

static void test_connection_limit(void **state)
{
    struct app app;
    struct raw raws[4];
    (void)state;
    app_start(&app, (struct http_limits){.connections_max = 3});
    for (int i = 0; i < 4; i++) {
        raw_connect(&app.net, &raws[i], NULL, NULL);
        if (i < 3) {
            raw_send(&raws[i], "GET /x HTTP/1.1\r\n" H "\r\n");
            NET_WAIT(&app.net, raw_count(&raws[i], "/x") == 1);
        }
    }
    NET_WAIT(&app.net, raws[3].ended);
    assert_false(raws[0].ended || raws[1].ended || raws[2].ended);
    assert_int_equal(http_server_counters(app.net.server)->refused, 1);
    for (int i = 0; i < 4; i++)
        raw_finish(&raws[i]);
    net_finish(&app.net);
}

static void test_big_answer(void **state)
{
    struct app app;
    struct raw raw;
    (void)state;
    app_start(&app, (struct http_limits){0});
    app.written = 20 * 1024 * 1024;
    app.big = malloc(app.written);
    memset(app.big, 'b', app.written);
    raw_connect(&app.net, &raw, NULL, NULL);
    raw_send(&raw, "GET /big HTTP/1.1\r\n" H "\r\nGET /after HTTP/1.1\r\n" H "\r\n");
    /* The next request waits for the big answer to leave. */
    NET_WAIT(&app.net, raw.got.size > 1000);
    assert_int_equal(http_server_counters(app.net.server)->requests, 1);
    NET_WAIT(&app.net, raw.got.size > app.written && strstr(raw_text(&raw) + raw.got.size - 8, "/after") != NULL);
    raw_finish(&raw);
    net_finish(&app.net);
}

/* A client that asks for much and reads nothing is let go. */
static void test_reader_that_does_not_read(void **state)
{
    struct app app;
    struct raw raw;
    (void)state;
    app_start(&app, (struct http_limits){.write_timeout_ms = 50});
    app.written = 40 * 1024 * 1024;
    app.big = malloc(app.written);
    memset(app.big, 'b', app.written);
    raw_connect(&app.net, &raw, NULL, NULL);
    tls_stream_pause(raw.stream);
    raw_send(&raw, "GET /big HTTP/1.1\r\n" H "\r\n");
    NET_WAIT(&app.net, http_server_counters(app.net.server)->slow_readers == 1 &&
                           http_server_counters(app.net.server)->connections == 0);
    raw_finish(&raw);
    net_finish(&app.net);
}

static void test_events(void **state)
{
    struct app app;
    struct raw raw;
    (void)state;
    app_start(&app, (struct http_limits){0});
    exchange(&app, &raw, "GET /events HTTP/1.1\r\n" H "\r\n", "Transfer-Encoding: chunked\r\n\r\n", 1);
    assert_int_equal(raw_count(&raw, "Cache-Control: no-store"), 1);
    assert_int_equal(http_stream_write(app.held[0], "data: 1\n\n", 9), 0);
    assert_int_equal(http_stream_write(app.held[0], "", 0), 0); /* must not end the stream */
    assert_int_equal(http_stream_write(app.held[0], "data: 2\n\n", 9), 0);
    NET_WAIT(&app.net, raw_count(&raw, "9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n") == 1);
    http_stream_end(app.held[0]);
    raw_send(&raw, "GET /again HTTP/1.1\r\n" H "\r\n");
    NET_WAIT(&app.net, raw_count(&raw, "/again") == 1);
    assert_int_equal(raw_count(&raw, "\r\n0\r\n\r\nHTTP/1.1 200"), 1);
    assert_int_equal(app.gone, 0);
    raw_finish(&raw);
    /* HTTP/1.0: no chunks, the end of the connection is the end. HEAD: nothing but the head. */
    app.held_count = 0;
    exchange(&app, &raw, "GET /events HTTP/1.0\r\n\r\n", "no-store\r\n\r\n", 1);
    http_stream_write(app.held[0], "data: 3\n\n", 9);
    http_stream_end(app.held[0]);
    NET_WAIT(&app.net, raw.ended);
    assert_int_equal(raw_count(&raw, "\r\n\r\ndata: 3\n\n"), 1);
    raw_finish(&raw);
    net_finish(&app.net);
}

static void test_events_keepalive(void **state)
{
    struct app app;
    struct raw raw;
    (void)state;
    app_start(&app, (struct http_limits){0});
    exchange(&app, &raw, "GET /events-alive HTTP/1.1\r\n" H "\r\n", "event-stream", 1);
    NET_WAIT(&app.net, raw_count(&raw, "\r\n: keep-alive\n\n") >= 2); /* several may come at once */
    raw_finish(&raw);
    NET_WAIT(&app.net, app.gone == 1);
    assert_int_equal(http_stream_write(app.held[0], "x", 1), -EPIPE);
    http_stream_end(app.held[0]);
    net_finish(&app.net);
}

static void test_events_slow_reader(void **state)
{
    struct app app;
    struct raw raw;
    static char block[10000];
    int rc = 0;
    unsigned writes = 0;
    (void)state;
    memset(block, 'e', sizeof block);
    app_start(&app, (struct http_limits){.write_queue_bytes_max = 200000});
    exchange(&app, &raw, "GET /events HTTP/1.1\r\n" H "\r\n", "event-stream", 1);
    tls_stream_pause(raw.stream);
    for (; rc == 0 && writes < 10000; writes++) {
        rc = http_stream_write(app.held[0], block, sizeof block);
        assert_true(http_stream_queued_bytes(app.held[0]) <= 200000 + 100);
        uv_run(&app.net.loop, UV_RUN_NOWAIT);
    }
    assert_int_equal(rc, -ENOBUFS);
    assert_int_equal(http_stream_write(app.held[0], "x", 1), -EPIPE);
    NET_WAIT(&app.net, app.gone == 1);
    http_stream_end(app.held[0]);
    assert_int_equal(http_server_counters(app.net.server)->slow_readers, 1);
    raw_finish(&raw);
    net_finish(&app.net);
}

/* A source that can wait is told when to go on. */
static void test_stream_drained(void **state)
{
    struct app app;
    struct raw raw;
    static char block[100000];
    (void)state;
    memset(block, 'd', sizeof block);
    app_start(&app, (struct http_limits){0});
    exchange(&app, &raw, "GET /events HTTP/1.1\r\n" H "\r\n", "event-stream", 1);
    for (int round = 0; round < 3; round++) {
        unsigned before = app.drained;
        while (http_stream_queued_bytes(app.held[0]) == 0)
            assert_int_equal(http_stream_write(app.held[0], block, sizeof block), 0);
        NET_WAIT(&app.net, app.drained > before);
        assert_int_equal(http_stream_queued_bytes(app.held[0]), 0);
    }
    http_stream_end(app.held[0]);
    NET_WAIT(&app.net, raw_count(&raw, "\r\n0\r\n\r\n") == 1);
    raw_finish(&raw);
    net_finish(&app.net);
}

/* Many large bodies, refused and taken: the memory in use afterwards is what it was. */
static void test_memory_stays_flat(void **state)
{
    struct app app;
    struct raw raw;
    size_t before = 0, size = 900 * 1024;
    char *text = malloc(size + 200);
    (void)state;
    app_start(&app, (struct http_limits){0});
    for (int i = 0; i < 30; i++) {
        size_t n =
            (size_t)sprintf(text, "POST /x HTTP/1.1\r\n" H "Content-Length: %zu\r\n\r\n", size * (i % 3 ? 1 : 12));
        memset(text + n, 'm', size);
        text[n + size] = '\0';
        exchange(&app, &raw, text, i % 3 ? "HTTP/1.1 200" : "HTTP/1.1 413", 1);
        raw_finish(&raw);
        NET_WAIT(&app.net, http_server_counters(app.net.server)->connections == 0);
        if (i == 3)
            before = mallinfo2().uordblks;
    }
    assert_true(mallinfo2().uordblks <= before + 64 * 1024);
    free(text);
    net_finish(&app.net);
}

/* A chunked body says no length: it is counted as it comes. And all bodies together have a limit. */
static void test_body_limits(void **state)
{
    struct app app;
    struct raw raw, first;
    char text[2000];
    (void)state;
    app_start(&app, (struct http_limits){.body_bytes_max = 1000, .bodies_bytes_max = 1500});
    snprintf(text, sizeof text, "POST /echo HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n3e8\r\n%01000d\r\n",
             0);
    raw_connect(&app.net, &raw, NULL, NULL);
    raw_send(&raw, text);
    raw_send(&raw, "1\r\nx\r\n0\r\n\r\n");
    NET_WAIT(&app.net, raw.ended);
    assert_int_equal(raw_count(&raw, "HTTP/1.1 413 "), 1);
    raw_finish(&raw);
    for (int round = 0; round < 3; round++) {
        snprintf(text, sizeof text, "POST /hold HTTP/1.1\r\n" H "Content-Length: 900\r\n\r\n%0900d", 0);
        app.held_count = 0;
        raw_connect(&app.net, &first, NULL, NULL);
        raw_send(&first, text);
        NET_WAIT(&app.net, app.held_count == 1);
        exchange(&app, &raw, text, "HTTP/1.1 503 ", 1);
        raw_finish(&raw);
        /* Given back when answered, and when the client has gone. */
        if (round == 1) {
            raw_finish(&first);
            NET_WAIT(&app.net, app.gone == 1);
        }
        http_respond(app.held[0], 200, "text/plain", NULL, "x", 1);
        raw_finish(&first);
    }
    net_finish(&app.net);
}

/* Bytes read ahead of a held request are bounded: the client's own socket fills up. */
static void test_read_ahead_is_bounded(void **state)
{
    struct app app;
    struct raw raw;
    static char block[65536];
    (void)state;
    memset(block, 'r', sizeof block);
    app_start(&app, (struct http_limits){0});
    raw_connect(&app.net, &raw, NULL, NULL);
    raw_send(&raw, "GET /hold HTTP/1.1\r\n" H "\r\n");
    NET_WAIT(&app.net, app.held_count == 1);
    for (int i = 0; i < 400; i++)
        tls_stream_write(raw.stream, block, sizeof block);
    for (int i = 0; i < 300; i++)
        uv_run(&app.net.loop, UV_RUN_NOWAIT);
    assert_true(tls_stream_queued_bytes(raw.stream) > 10 * 1024 * 1024);
    http_respond(app.held[0], 200, "text/plain", NULL, "x", 1);
    NET_WAIT(&app.net, raw.ended); /* and then it is no request at all */
    raw_finish(&raw);
    net_finish(&app.net);
}

static void test_unix_socket(void **state)
{
    struct app app = {0};
    struct raw raw;
    struct stat st;
    char dir[] = "/tmp/drover-test-XXXXXX", path[64];
    struct error err = {0};
    (void)state;
    net_init(&app.net);
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "unix:%s/s", dir);
    net_serve(&app.net, (struct http_server_options){.address = path, .handler = handle, .arg = &app});
    assert_int_equal(stat(path + 5, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    exchange(&app, &raw, "GET /local HTTP/1.1\r\n" H "\r\n", "/local", 1);
    raw_finish(&raw);
    /* A second server may not take the name of a living one. */
    struct http_server_options options = {.address = path, .handler = handle, .arg = &app};
    struct http_server *second;
    assert_int_equal(http_server_start(&app.net.loop, &options, &second, &err), -EADDRINUSE);
    net_finish(&app.net);
    assert_int_equal(rmdir(dir), 0); /* the socket went with the server */
}

/* Many that ask at once do not get one long turn of the loop, and each is answered. */
static void test_turns_are_short(void **state)
{
    struct app app;
    struct raw raws[20];
    unsigned most = 0, before;
    (void)state;
    app_start(&app, (struct http_limits){0});
    for (size_t i = 0; i < ARRAY_SIZE(raws); i++)
        raw_connect(&app.net, &raws[i], NULL, NULL);
    NET_WAIT(&app.net, http_server_counters(app.net.server)->accepted == ARRAY_SIZE(raws));
    for (size_t i = 0; i < ARRAY_SIZE(raws); i++)
        raw_send(&raws[i], "GET /spin HTTP/1.1\r\n" H "\r\n");
    while (app.spun < ARRAY_SIZE(raws) && !app.net.expired) {
        before = app.spun;
        uv_run(&app.net.loop, UV_RUN_ONCE);
        most = MAX(most, app.spun - before);
    }
    assert_true(most >= 1 && most <= 3);
    for (size_t i = 0; i < ARRAY_SIZE(raws); i++) {
        NET_WAIT(&app.net, raw_count(&raws[i], "spun") == 1);
        raw_finish(&raws[i]);
    }
    net_finish(&app.net);
}

static void test_bad_address(void **state)
{
    struct net net;
    struct error err = {0};
    struct http_server *server;
    (void)state;
    net_init(&net);
    static const char *const bad[] = {"nowhere", "127.0.0.1", "127.0.0.1:99999", "::1:80", "[::1]", "host.name:80"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct http_server_options options = {.address = bad[i], .handler = handle};
        assert_int_equal(http_server_start(&net.loop, &options, &server, &err), -EINVAL);
    }
    net_finish(&net);
}

/* No descriptor is left: waiting connections are closed, the server lives on. */
static void test_out_of_descriptors(void **state)
{
    struct app app;
    struct raw held, raw;
    struct rlimit old, tight;
    int last;
    (void)state;
    app_start(&app, (struct http_limits){0});
    exchange(&app, &held, "GET /x HTTP/1.1\r\n" H "\r\n", "/x", 1);
    raw_connect(&app.net, &raw, NULL, NULL); /* before the limit: its socket is made, accepted or not */
    raw_finish(&raw);
    last = dup(0);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
    close(last);
    tight = old;
    tight.rlim_cur = (rlim_t)last + 1; /* room for the client's socket only */
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &tight), 0);
    raw_connect(&app.net, &raw, NULL, NULL);
    if (raw.stream != NULL)
        raw_send(&raw, "GET /y HTTP/1.1\r\n" H "\r\n");
    NET_WAIT(&app.net, raw.ended || raw_count(&raw, "/y") == 1);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
    raw_send(&held, "GET /alive HTTP/1.1\r\n" H "\r\n");
    NET_WAIT(&app.net, raw_count(&held, "/alive") == 1);
    raw_finish(&raw);
    exchange(&app, &raw, "GET /z HTTP/1.1\r\n" H "\r\n", "/z", 1);
    raw_finish(&raw);
    raw_finish(&held);
    net_finish(&app.net);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_pipelined),
        cmocka_unit_test(test_many_pipelined),
        cmocka_unit_test(test_chunked_body),
        cmocka_unit_test(test_continue),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_problem),
        cmocka_unit_test(test_query),
        cmocka_unit_test(test_all_parameters),
        cmocka_unit_test(test_client_goes_away),
        cmocka_unit_test(test_stop_with_requests),
        cmocka_unit_test(test_timeouts),
        cmocka_unit_test(test_slow_loris),
        cmocka_unit_test(test_connection_limit),
        cmocka_unit_test(test_big_answer),
        cmocka_unit_test(test_reader_that_does_not_read),
        cmocka_unit_test(test_events),
        cmocka_unit_test(test_events_keepalive),
        cmocka_unit_test(test_events_slow_reader),
        cmocka_unit_test(test_stream_drained),
        cmocka_unit_test(test_memory_stays_flat),
        cmocka_unit_test(test_body_limits),
        cmocka_unit_test(test_read_ahead_is_bounded),
        cmocka_unit_test(test_unix_socket),
        cmocka_unit_test(test_turns_are_short),
        cmocka_unit_test(test_bad_address),
        cmocka_unit_test(test_out_of_descriptors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
