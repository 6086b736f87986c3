/* How long after a write its event is with every one of N watchers.
 *
 *   bench_watch WATCH_ENDPOINT WRITE_ENDPOINT ADMIN_DIR WATCHERS WRITES INTERVAL_MS PATH
 *
 * N streams of /v1/events, in one loop; when all are open, a PATCH of PATH (labels) each INTERVAL_MS. An event that
 * arrives counts for the newest write sent before it. Prints one line of JSON: watchers, events, p50_us, p99_us, max_us,
 * missing (events that some watcher never got), connect_ms. Driven by tests/bench/bench_api.py. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/tls_stream.h"

#define SETTLE_MS 1000u /* after the last write */
#define OPENING_MAX 64u /* at a time: a server loses patience with more handshakes than it can finish */

struct bench {
    uv_loop_t loop;
    uv_timer_t timer;
    const char *path, *endpoint;
    struct tls_context *tls;
    struct tls_stream *writer;
    bool writer_open;
    unsigned watchers, connected, opened, writes, written, interval_ms;
    uint64_t begin_ns, opened_ns, write_ns;
    uint32_t *samples_us;
    size_t samples;
    struct watcher *all;
};
struct watcher {
    struct bench *bench;
    struct tls_stream *stream;
    bool streaming;
    size_t matched; /* bytes of the mark that begins an event */
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void end(struct bench *b)
{
    for (unsigned i = 0; i < b->watchers; i++)
        tls_stream_close(b->all[i].stream);
    tls_stream_close(b->writer);
    uv_close((uv_handle_t *)&b->timer, NULL);
}

static void on_tick(uv_timer_t *timer)
{
    struct bench *b = timer->data;
    char body[64], request[400];
    if (b->written == b->writes) {
        end(b);
        return;
    }
    int n = snprintf(body, sizeof body, "{\"labels\":{\"n\":\"%u\"}}", ++b->written);
    n = snprintf(request, sizeof request,
                 "PATCH %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", b->path,
                 n, body);
    b->write_ns = now_ns();
    tls_stream_write(b->writer, request, (size_t)n);
    uv_timer_start(timer, on_tick, b->written == b->writes ? SETTLE_MS : b->interval_ms, 0);
}

static void maybe_begin(struct bench *b)
{
    if (b->opened < b->watchers || !b->writer_open)
        return;
    b->opened_ns = now_ns();
    uv_timer_start(&b->timer, on_tick, SETTLE_MS, 0);
}

static void connect_more(struct bench *b);

/* --- watchers --- */

static void watcher_open(struct tls_stream *stream, void *arg)
{
    static const char request[] = "GET /v1/events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n";
    (void)arg;
    tls_stream_write(stream, request, sizeof request - 1);
}

/* Counts "data: {": JSON has no such bytes at the beginning of a line. */
static void watcher_data(struct tls_stream *stream, const uint8_t *data, size_t size, void *arg)
{
    static const char mark[] = "\ndata: {";
    struct watcher *w = arg;
    struct bench *b = w->bench;
    (void)stream;
    if (!w->streaming) {
        w->streaming = true;
        b->opened++;
        connect_more(b);
        maybe_begin(b);
    }
    for (size_t i = 0; i < size; i++) {
        w->matched = data[i] == (uint8_t)mark[w->matched] ? w->matched + 1 : data[i] == '\n';
        if (w->matched < sizeof mark - 1)
            continue;
        w->matched = 0;
        if (b->samples < (size_t)b->watchers * b->writes)
            b->samples_us[b->samples++] = (uint32_t)((now_ns() - b->write_ns) / 1000);
    }
}

/* --- the writer --- */

static void writer_opened(struct tls_stream *stream, void *arg)
{
    struct bench *b = arg;
    (void)stream;
    b->writer_open = true;
    maybe_begin(b);
}

static void writer_data(struct tls_stream *stream, const uint8_t *data, size_t size, void *arg)
{
    (void)stream, (void)arg;
    if (size > 12 && memcmp(data, "HTTP/1.1 ", 9) == 0 && data[9] != '2') {
        fprintf(stderr, "write refused: %.*s\n", (int)MIN(size, (size_t)200), (const char *)data);
        exit(1);
    }
}

static void on_end(struct tls_stream *stream, int status, void *arg)
{
    (void)arg;
    fprintf(stderr, "a connection ended: %s\n", status == UV_EOF ? "closed" : tls_stream_failure(stream));
    exit(1);
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void connect_or_exit(struct bench *b, const char *endpoint, const struct tls_stream_callbacks *callbacks, void *arg,
                            struct tls_stream **ret_stream)
{
    struct tls_stream_options options = {.tls = b->tls, .open_timeout_ms = 60000};
    struct error err;
    if (tls_stream_connect(&b->loop, endpoint, &options, callbacks, arg, ret_stream, &err) == 0)
        return;
    fprintf(stderr, "%s\n", err.text);
    exit(1);
}

static void connect_more(struct bench *b)
{
    static const struct tls_stream_callbacks callbacks = {
        .on_open = watcher_open, .on_data = watcher_data, .on_end = on_end};
    for (; b->connected < b->watchers && b->connected < b->opened + OPENING_MAX; b->connected++) {
        struct watcher *w = &b->all[b->connected];
        w->bench = b;
        connect_or_exit(b, b->endpoint, &callbacks, w, &w->stream);
    }
}

int main(int argc, char **argv)
{
    static const struct tls_stream_callbacks writer_callbacks = {
        .on_open = writer_opened, .on_data = writer_data, .on_end = on_end};
    struct bench b = {.path = argc > 7 ? argv[7] : NULL};
    struct error err;
    char ca[512], certificate[512], key[512];
    if (argc != 8) {
        fprintf(stderr, "bench_watch WATCH_ENDPOINT WRITE_ENDPOINT ADMIN_DIR WATCHERS WRITES INTERVAL_MS PATH\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    b.watchers = (unsigned)atoi(argv[4]);
    b.writes = (unsigned)atoi(argv[5]);
    b.interval_ms = (unsigned)atoi(argv[6]);
    b.samples_us = xcalloc((size_t)b.watchers * b.writes + 1, sizeof *b.samples_us);
    b.all = xcalloc(b.watchers + 1, sizeof *b.all);
    snprintf(ca, sizeof ca, "%s/ca.pem", argv[3]);
    snprintf(certificate, sizeof certificate, "%s/cert.pem", argv[3]);
    snprintf(key, sizeof key, "%s/key.pem", argv[3]);
    ASSERT(uv_loop_init(&b.loop) == 0);
    if (tls_context_load(ca, certificate, key, &b.tls, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    uv_timer_init(&b.loop, &b.timer);
    b.timer.data = &b;
    b.begin_ns = now_ns();
    connect_or_exit(&b, argv[2], &writer_callbacks, &b, &b.writer);
    b.endpoint = argv[1];
    connect_more(&b);
    uv_run(&b.loop, UV_RUN_DEFAULT);
    qsort(b.samples_us, b.samples, sizeof *b.samples_us, compare);
    printf("{\"watchers\":%u,\"events\":%zu,\"p50_us\":%u,\"p99_us\":%u,\"max_us\":%u,\"missing\":%zu,\"connect_ms\":%llu}\n",
           b.watchers, b.samples, b.samples ? b.samples_us[b.samples / 2] : 0,
           b.samples ? b.samples_us[b.samples * 99 / 100] : 0, b.samples ? b.samples_us[b.samples - 1] : 0,
           (size_t)b.watchers * b.writes - b.samples, (unsigned long long)((b.opened_ns - b.begin_ns) / 1000000));
    return 0;
}
