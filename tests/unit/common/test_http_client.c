/* The HTTP client against our own server on the same loop: answers, failures told once, cancelling, streams, TLS
 * identities that do not share connections, the blocking mode from a thread of its own (pthread), event reading. */
#include "tests/unit/common/net_fixture.h"

#include <errno.h>
#include <pthread.h>

#include "common/http_client.h"

struct app {
    struct net net;
    struct http_client *client;
    bool client_closed;
    struct http_request *held;
    unsigned gone;
    char seen[512]; /* "METHOD path type body" of the last request */
};

struct result {
    struct app *app;
    unsigned done, heads;
    int status, error, head_status;
    struct error problem;
    char body[256], content_type[64], header[64];
    size_t body_size, streamed;
    uint64_t progress;
    unsigned pauses;
    bool cancel_in_data;
    int data_result;
    struct http_call *call;
};

static void count_gone(struct http_request *request, void *arg)
{
    struct app *app = arg;
    app->gone++;
    if (app->held == request)
        app->held = NULL;
    http_release(request);
}

static void handle(struct http_request *request, void *arg)
{
    struct app *app = arg;
    const char *type = http_request_header(request, "Content-Type"), *extra = http_request_header(request, "X-Extra");
    snprintf(app->seen, sizeof app->seen, "%s %s %s %.20s %s", http_method_name(request->method), request->path,
             type != NULL ? type : "-", (const char *)request->body, extra != NULL ? extra : "-");
    if (strcmp(request->path, "/hold") == 0) {
        app->held = request;
        http_request_on_gone(request, count_gone, app);
    } else if (strcmp(request->path, "/stream") == 0) {
        struct http_stream_options options = {.content_type = "text/event-stream"};
        app->held = request;
        http_request_on_gone(request, count_gone, app);
        http_stream_begin(request, &options);
    } else if (strcmp(request->path, "/error") == 0) {
        struct error err = {0};
        error_set_field(&err, -ENOENT, ERROR_STALE, "/revision", "it has changed");
        http_respond_error(request, &err);
    } else if (strcmp(request->path, "/big") == 0) {
        http_respond_take(request, 200, "application/octet-stream", NULL, calloc(1, 3000000), 3000000, free);
    } else if (strcmp(request->path, "/moved") == 0 || strcmp(request->path, "/forever") == 0) {
        const char *to = strcmp(request->path, "/moved") == 0 ? "Location: /big\r\n" : "Location: /forever\r\n";
        http_respond(request, 302, "text/plain", to, "go", 2);
    } else if (strcmp(request->path, "/peer") == 0) {
        http_respond(request, 200, "text/plain", NULL, request->peer, strlen(request->peer));
    } else {
        http_respond(request, 200, "text/plain", "ETag: \"5\"\r\n", request->path, strlen(request->path));
    }
}

static void done(const struct http_answer *answer, void *arg)
{
    struct result *r = arg;
    const char *etag = http_answer_header(answer, "etag");
    r->done++;
    r->status = answer->status;
    r->error = answer->error;
    r->problem = answer->problem;
    r->body_size = answer->body_size;
    snprintf(r->body, sizeof r->body, "%s", (const char *)answer->body);
    snprintf(r->content_type, sizeof r->content_type, "%s", answer->content_type);
    snprintf(r->header, sizeof r->header, "%s", etag != NULL ? etag : "");
}

static void app_start(struct app *app, const char *server_uri)
{
    *app = (struct app){0};
    net_init(&app->net);
    struct tls_context *tls = server_uri != NULL ? net_tls(&app->net, server_uri) : NULL;
    net_serve(&app->net, (struct http_server_options){.tls = tls, .handler = handle, .arg = app});
    tls_context_unref(tls);
    assert_int_equal(http_client_create(&app->net.loop, &app->client, NULL), 0);
}

static void client_closed(void *arg)
{
    ((struct app *)arg)->client_closed = true;
}

static void app_finish(struct app *app)
{
    if (!app->client_closed)
        http_client_close(app->client, client_closed, app);
    NET_WAIT(&app->net, app->client_closed);
    net_finish(&app->net);
}

/* Start @options at @path; the result comes into @r. */
static void begin(struct app *app, struct result *r, const char *path, struct http_call_options options)
{
    char url[256];
    bool tls = options.tls != NULL;
    *r = (struct result){.app = app, .data_result = r->data_result, .cancel_in_data = r->cancel_in_data};
    snprintf(url, sizeof url, "%s://%s%s", tls ? "https" : "http",
             options.unix_socket != NULL ? "localhost" : app->net.endpoint, path);
    options.url = url;
    options.done = done;
    options.arg = r;
    assert_int_equal(http_client_start(app->client, &options, &r->call, NULL), 0);
    assert_int_equal(r->done, 0);
}

static void fetch(struct app *app, struct result *r, const char *path, struct http_call_options options)
{
    begin(app, r, path, options);
    NET_WAIT(&app->net, r->done > 0);
    assert_int_equal(r->done, 1);
}

static void test_answers(void **state)
{
    static const char *const headers[] = {"X-Extra: one", NULL};
    struct app app;
    struct result r = {0};
    (void)state;
    app_start(&app, NULL);
    fetch(&app, &r, "/a?b=c", (struct http_call_options){.headers = headers});
    assert_int_equal(r.status, 200);
    assert_int_equal(r.error, 0);
    assert_string_equal(r.body, "/a");
    assert_string_equal(r.content_type, "text/plain");
    assert_string_equal(r.header, "\"5\"");
    assert_string_equal(app.seen, "GET /a -  one");
    fetch(&app, &r, "/b", (struct http_call_options){.method = "POST", .body = "{}", .body_size = 2});
    assert_string_equal(app.seen, "POST /b application/json {} -");
    fetch(&app, &r, "/b",
          (struct http_call_options){.method = "PUT", .body = "xy", .body_size = 1, .content_type = "a/b"});
    assert_string_equal(app.seen, "PUT /b a/b x -");
    fetch(&app, &r, "/b", (struct http_call_options){.method = "POST"});
    assert_string_equal(app.seen, "POST /b application/json  -");
    fetch(&app, &r, "/b", (struct http_call_options){.method = "DELETE"});
    assert_string_equal(app.seen, "DELETE /b -  -");
    fetch(&app, &r, "/b", (struct http_call_options){.method = "HEAD"});
    assert_string_equal(app.seen, "HEAD /b -  -");
    assert_int_equal(r.body_size, 0);
    fetch(&app, &r, "/b", (struct http_call_options){.method = "PATCH", .body = "p", .body_size = 1});
    assert_string_equal(app.seen, "PATCH /b application/json p -");
    app_finish(&app);
}

static void test_problem(void **state)
{
    struct app app;
    struct result r = {0};
    (void)state;
    app_start(&app, NULL);
    fetch(&app, &r, "/error", (struct http_call_options){0});
    assert_int_equal(r.status, 412);
    assert_int_equal(r.error, 0);
    assert_int_equal(r.problem.kind, ERROR_STALE);
    assert_string_equal(r.problem.field, "/revision");
    assert_string_equal(r.problem.text, "it has changed");
    app_finish(&app);
}

static void test_failures(void **state)
{
    struct app app;
    struct result r = {0};
    (void)state;
    app_start(&app, NULL);
    fetch(&app, &r, "/big", (struct http_call_options){.body_bytes_max = 2999999});
    assert_int_equal(r.error, -EMSGSIZE);
    assert_int_equal(r.problem.kind, ERROR_TOO_LARGE);
    fetch(&app, &r, "/big", (struct http_call_options){.body_bytes_max = 3000000});
    assert_int_equal(r.error, 0);
    assert_int_equal(r.body_size, 3000000);
    for (unsigned ms = 50; app.gone == 0; ms *= 2) { /* on a busy machine the time may be over before it was sent */
        fetch(&app, &r, "/hold", (struct http_call_options){.deadline_ms = ms});
        assert_int_equal(r.error, -ETIMEDOUT);
        assert_int_equal(r.problem.kind, ERROR_TIMEOUT);
        NET_WAIT(&app.net, http_server_counters(app.net.server)->connections == 0); /* the server sees us leave */
    }
    assert_int_equal(app.gone, 1);
    begin(&app, &r, "/hold", (struct http_call_options){0});
    NET_WAIT(&app.net, app.held != NULL);
    http_release(app.held); /* the connection closes without an answer */
    NET_WAIT(&app.net, r.done == 1);
    assert_int_equal(r.error, -ECONNRESET);
    struct http_call_options bad = {.url = "ftp://x/", .done = done, .arg = &r};
    assert_int_equal(http_client_start(app.client, &bad, NULL, NULL), -EINVAL);
    bad.url = "http://x/a b";
    assert_int_equal(http_client_start(app.client, &bad, NULL, NULL), -EINVAL);
    http_server_stop(app.net.server, net_server_closed, &app.net);
    NET_WAIT(&app.net, app.net.server_closed);
    fetch(&app, &r, "/", (struct http_call_options){0});
    assert_int_equal(r.error, -ECONNREFUSED);
    assert_int_equal(r.problem.kind, ERROR_UNREACHABLE);
    app_finish(&app);
}

static void test_cancel(void **state)
{
    struct app app;
    struct result r = {0}, other = {0};
    (void)state;
    app_start(&app, NULL);
    begin(&app, &r, "/hold", (struct http_call_options){0});
    http_call_cancel(r.call);
    http_call_cancel(r.call);
    assert_int_equal(r.done, 0);
    NET_WAIT(&app.net, r.done == 1);
    assert_int_equal(r.error, -ECANCELED);
    assert_int_equal(r.problem.kind, ERROR_CANCELLED);
    /* Closing the client ends what is in flight, each once. */
    begin(&app, &r, "/hold", (struct http_call_options){0});
    begin(&app, &other, "/a", (struct http_call_options){0});
    NET_WAIT(&app.net, app.held != NULL && other.done == 1);
    http_client_close(app.client, client_closed, &app);
    struct http_call_options late = {.url = "http://127.0.0.1:1/", .done = done};
    assert_int_equal(http_client_start(app.client, &late, NULL, NULL), -ECANCELED);
    NET_WAIT(&app.net, app.client_closed);
    assert_int_equal(r.done, 1);
    assert_int_equal(r.error, -ECANCELED);
    assert_int_equal(other.error, 0);
    NET_WAIT(&app.net, app.gone >= 1);
    app_finish(&app);
}

static void on_head(int status, void *arg)
{
    struct result *r = arg;
    r->heads++;
    r->head_status = status;
}

static int on_data(const void *data, size_t size, void *arg)
{
    struct result *r = arg;
    (void)data;
    if (r->pauses > 0 && r->pauses-- > 0)
        return HTTP_CLIENT_PAUSE;
    r->streamed += size;
    if (r->cancel_in_data)
        http_call_cancel(r->call);
    return r->data_result;
}

static void on_progress(uint64_t progress, uint64_t total, void *arg)
{
    struct result *r = arg;
    assert_true(total == 0 || progress <= total);
    r->progress = progress;
}

static void test_stream(void **state)
{
    struct app app;
    struct result r = {0};
    struct http_call_options options = {
        .on_data = on_data, .on_head = on_head, .on_progress = on_progress, .deadline_ms = 100};
    (void)state;
    app_start(&app, NULL);
    begin(&app, &r, "/stream", options);
    for (;; begin(&app, &r, "/stream", options)) {
        NET_WAIT(&app.net, r.heads == 1 || r.done == 1);
        if (r.done == 0)
            break;
        assert_int_equal(r.error, -ETIMEDOUT); /* as may be on a busy machine */
        options.deadline_ms *= 2;
    }
    assert_int_equal(r.head_status, 200);
    http_stream_write(app.held, "data: 1\n\n", 9);
    NET_WAIT(&app.net, r.streamed == 9);
    /* The deadline was for the head only. */
    uint64_t start = uv_now(&app.net.loop);
    while (uv_now(&app.net.loop) < start + options.deadline_ms + 20) {
        uv_run(&app.net.loop, UV_RUN_NOWAIT);
    }
    assert_int_equal(r.done, 0);
    http_stream_write(app.held, "data: 2\n\n", 9);
    http_stream_end(app.held);
    NET_WAIT(&app.net, r.done == 1);
    assert_int_equal(r.error, 0);
    assert_int_equal(r.streamed, 18);
    assert_int_equal(r.body_size, 0);
    /* Silence ends it. */
    options.idle_ms = 40;
    options.deadline_ms = 0; /* the usual one */
    begin(&app, &r, "/stream", options);
    NET_WAIT(&app.net, r.done == 1);
    assert_int_equal(r.error, -ETIMEDOUT);
    assert_int_equal(r.heads, 1);
    /* An error is collected, not streamed. */
    fetch(&app, &r, "/error", options);
    assert_int_equal(r.streamed, 0);
    assert_int_equal(r.problem.kind, ERROR_STALE);
    app_finish(&app);
}

static void test_stream_stops(void **state)
{
    struct app app;
    struct result r = {.data_result = -EIO};
    struct http_call_options options = {.on_data = on_data, .on_progress = on_progress};
    (void)state;
    app_start(&app, NULL);
    fetch(&app, &r, "/big", options);
    assert_int_equal(r.error, -EIO);
    r = (struct result){.cancel_in_data = true};
    fetch(&app, &r, "/big", options);
    assert_int_equal(r.error, -ECANCELED);
    assert_true(r.streamed < 3000000);
    /* Not taken is offered again. */
    r = (struct result){0};
    begin(&app, &r, "/big", options);
    r.pauses = 1;
    NET_WAIT(&app.net, r.pauses == 0);
    for (int i = 0; i < 20; i++)
        uv_run(&app.net.loop, UV_RUN_NOWAIT);
    assert_int_equal(r.streamed, 0);
    http_call_resume(r.call);
    NET_WAIT(&app.net, r.done == 1);
    assert_int_equal(r.streamed, 3000000);
    assert_int_equal(r.progress, 3000000);
    app_finish(&app);
}

static void test_redirects(void **state)
{
    struct app app;
    struct result r = {0};
    (void)state;
    app_start(&app, NULL);
    fetch(&app, &r, "/moved", (struct http_call_options){0});
    assert_int_equal(r.status, 302); /* our own peers: as it is */
    assert_string_equal(r.body, "go");
    fetch(&app, &r, "/moved", (struct http_call_options){.redirects_max = 2, .on_data = on_data, .on_head = on_head});
    assert_int_equal(r.status, 200);
    assert_int_equal(r.heads, 1);
    assert_int_equal(r.head_status, 200);
    assert_int_equal(r.streamed, 3000000);
    fetch(&app, &r, "/forever", (struct http_call_options){.redirects_max = 2});
    assert_int_equal(r.error, -ELOOP);
    app_finish(&app);
}

static void test_many(void **state)
{
    struct app app;
    static struct result results[200];
    unsigned ended = 0;
    (void)state;
    memset(results, 0, sizeof results);
    app_start(&app, NULL);
    for (size_t i = 0; i < ARRAY_SIZE(results); i++)
        begin(&app, &results[i], "/a", (struct http_call_options){0});
    while (ended < ARRAY_SIZE(results) && !app.net.expired) {
        uv_run(&app.net.loop, UV_RUN_ONCE);
        ended = 0;
        for (size_t i = 0; i < ARRAY_SIZE(results); i++)
            ended += results[i].done;
    }
    for (size_t i = 0; i < ARRAY_SIZE(results); i++)
        assert_true(results[i].done == 1 && results[i].status == 200);
    assert_true(http_server_counters(app.net.server)->accepted <= 32);
    app_finish(&app);
}

static void test_tls(void **state)
{
    struct app app;
    struct result r = {0};
    (void)state;
    app_start(&app, "spiffe://drover/c1/controller/1");
    struct tls_context *user = net_tls(&app.net, "spiffe://drover/c1/user/u"), *none = net_tls(&app.net, NULL);
    fetch(&app, &r, "/peer", (struct http_call_options){.tls = user});
    assert_string_equal(r.body, "spiffe://drover/c1/user/u");
    fetch(&app, &r, "/peer", (struct http_call_options){.tls = user});
    assert_int_equal(http_server_counters(app.net.server)->accepted, 1); /* kept alive */
    /* Another identity of ours never rides on that connection. */
    fetch(&app, &r, "/peer", (struct http_call_options){.tls = none});
    assert_string_equal(r.body, "");
    /* Nor does a call that expects somebody else there. */
    fetch(&app, &r, "/peer",
          (struct http_call_options){.tls = user, .peer_prefix = "spiffe://drover/c1/controller/"});
    assert_string_equal(r.body, "spiffe://drover/c1/user/u");
    fetch(&app, &r, "/peer", (struct http_call_options){.tls = user, .peer_prefix = "spiffe://drover/c1/host/"});
    assert_int_equal(r.error, -EACCES);
    assert_int_equal(r.status, 0);
    /* The server's own roots are not this machine's. */
    char url[128];
    snprintf(url, sizeof url, "https://%s/peer", app.net.endpoint);
    struct http_call_options options = {.url = url, .done = done, .arg = &r};
    r = (struct result){0};
    assert_int_equal(http_client_start(app.client, &options, NULL, NULL), 0);
    NET_WAIT(&app.net, r.done == 1);
    assert_int_equal(r.error, -EACCES);
    tls_context_unref(user); /* the client holds what its connections need */
    tls_context_unref(none);
    app_finish(&app);
}

static void test_unix_socket(void **state)
{
    char dir[] = "/tmp/drover-test-XXXXXX", path[64];
    struct app app = {0};
    struct result r = {0};
    (void)state;
    net_init(&app.net);
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "unix:%s/s", dir);
    net_serve(&app.net, (struct http_server_options){.address = path, .handler = handle, .arg = &app});
    assert_int_equal(http_client_create(&app.net.loop, &app.client, NULL), 0);
    fetch(&app, &r, "/local", (struct http_call_options){.unix_socket = path + 5});
    assert_string_equal(r.body, "/local");
    app_finish(&app);
    assert_int_equal(rmdir(dir), 0);
}

/* --- blocking --- */

struct blocking {
    char url[128];
    int rc, status;
    char *body;
    size_t body_size;
    struct error err;
    uv_async_t finished;
    bool over;
};

static void *perform_thread(void *arg)
{
    struct blocking *b = arg;
    struct http_call_options options = {.url = b->url};
    b->rc = http_client_perform(&options, &b->status, &b->body, &b->body_size, &b->err);
    uv_async_send(&b->finished);
    return NULL;
}

static void finished_cb(uv_async_t *async)
{
    ((struct blocking *)async->data)->over = true;
    uv_close((uv_handle_t *)async, NULL);
}

static void perform(struct app *app, struct blocking *b, const char *path)
{
    pthread_t thread;
    *b = (struct blocking){0};
    snprintf(b->url, sizeof b->url, "http://%s%s", app->net.endpoint, path);
    b->finished.data = b;
    uv_async_init(&app->net.loop, &b->finished, finished_cb);
    b->finished.data = b;
    assert_int_equal(pthread_create(&thread, NULL, perform_thread, b), 0);
    NET_WAIT(&app->net, b->over);
    pthread_join(thread, NULL);
}

static void test_blocking(void **state)
{
    struct app app;
    struct blocking b;
    (void)state;
    app_start(&app, NULL);
    perform(&app, &b, "/hello");
    assert_int_equal(b.rc, 0);
    assert_int_equal(b.status, 200);
    assert_string_equal(b.body, "/hello");
    free(b.body);
    perform(&app, &b, "/error");
    assert_int_equal(b.rc, 0);
    assert_int_equal(b.status, 412);
    assert_int_equal(b.err.kind, ERROR_STALE);
    free(b.body);
    struct http_call_options bad = {.url = "nonsense"};
    assert_int_equal(http_client_perform(&bad, NULL, NULL, NULL, NULL), -EINVAL);
    struct http_call_options nobody = {.url = "http://localhost/", .unix_socket = "/nonexistent/s"};
    struct error err = {0};
    assert_true(http_client_perform(&nobody, NULL, NULL, NULL, &err) < 0);
    assert_string_not_equal(err.text, "");
    app_finish(&app);
}

/* --- events --- */

static void on_event(const struct http_event *event, void *arg)
{
    char *all = arg;
    sprintf(all + strlen(all), "[%s|%s|%s]", event->id, event->name, event->data);
}

static void test_events(void **state)
{
    static const struct {
        const char *text, *events;
    } cases[] = {
        {"data: 1\n\n", "[|message|1]"},
        {"id: 7\nevent: vm\ndata: a\ndata: b\n\n", "[7|vm|a\nb]"},
        {": comment\n\ndata:x\r\n\r\ndata:  y\r\rid:9\n\ndata\n\n", "[|message|x][|message| y][9|message|]"},
        {"data: half", ""},
        {"event: none\n\ndata: z\n\n", "[|message|z]"},
        {"retry: 5\ndatax: 1\n\n", ""},
    };
    char all[256];
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        for (size_t piece = 1; piece <= strlen(cases[i].text); piece++) {
            struct http_event_reader reader = {.on_event = on_event, .arg = all};
            all[0] = '\0';
            for (size_t at = 0; at < strlen(cases[i].text); at += piece)
                assert_int_equal(
                    http_event_reader_feed(&reader, cases[i].text + at, MIN(piece, strlen(cases[i].text) - at)), 0);
            http_event_reader_finish(&reader);
            assert_string_equal(all, cases[i].events);
        }
    struct http_event_reader reader = {.on_event = on_event, .arg = all, .event_bytes_max = 20};
    assert_int_equal(http_event_reader_feed(&reader, "data: 0123456789\n", 17), 0);
    assert_int_equal(http_event_reader_feed(&reader, "data: 0123456789\n", 17), -EMSGSIZE);
    http_event_reader_finish(&reader);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),     cmocka_unit_test(test_problem),  cmocka_unit_test(test_failures),
        cmocka_unit_test(test_cancel),      cmocka_unit_test(test_stream),   cmocka_unit_test(test_stream_stops),
        cmocka_unit_test(test_redirects),   cmocka_unit_test(test_many),     cmocka_unit_test(test_tls),
        cmocka_unit_test(test_unix_socket), cmocka_unit_test(test_blocking), cmocka_unit_test(test_events),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
