/* Load on a controller's API: N connections, each with one request in flight, in one loop.
 *
 *   bench_api ENDPOINT ADMIN_DIR CONNECTIONS SECONDS COUNT RATE METHOD PATH [BODY]
 *
 * RATE: requests per second over all connections, each at its own time whether or not the one before it was slow (one
 * that could not be sent in time counts from when it should have been); 0: each as soon as the last is answered.
 * {c} in PATH and BODY stands for the connection's number, {n} for the request's. Ends after SECONDS or COUNT
 * requests (0 = no limit). Prints one line of JSON: requests, per_s, p50_us, p99_us, max_us, bytes, errors by status.
 * Driven by tests/bench/bench_api.py. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/http_parse.h"
#include "common/tls_stream.h"

#define SAMPLES_MAX 4000000u
#define LATE_NS 2000000u

struct load {
    uv_loop_t loop;
    const char *endpoint, *method, *path, *body;
    struct tls_context *tls;
    unsigned connections, open;
    uint64_t count, sent, done, bytes, rate, begin_ns, end_ns, deadline_ns;
    uint64_t statuses[6];
    uint32_t *samples_us;
    int first_error;
};
struct client {
    struct load *load;
    struct tls_stream *stream;
    unsigned number;
    uint64_t asked_ns, turns; /* turns: requests begun, for the pace */
    uv_timer_t timer;
    char *in;
    size_t in_size, in_capacity, scanned, body_left;
    bool in_body;
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void expand(const char *template, unsigned connection, uint64_t number, char *out, size_t size)
{
    size_t n = 0;
    for (const char *at = template; *at != '\0' && n + 24 < size;) {
        if (strncmp(at, "{c}", 3) == 0 || strncmp(at, "{n}", 3) == 0) {
            n += (size_t)snprintf(out + n, size - n, "%llu", at[1] == 'c' ? connection : (unsigned long long)number);
            at += 3;
        } else {
            out[n++] = *at++;
        }
    }
    out[n] = '\0';
}

static void finish(struct client *client)
{
    tls_stream_close(client->stream);
    uv_close((uv_handle_t *)&client->timer, NULL);
    client->load->open--;
    client->load->end_ns = now_ns();
}

static void ask(struct client *client);

static void on_due(uv_timer_t *timer)
{
    ask(timer->data);
}

/* When the next request of @client is due; it comes then. */
static void ask_in_time(struct client *client)
{
    struct load *load = client->load;
    if (load->rate == 0) {
        ask(client);
        return;
    }
    uint64_t now = now_ns();
    uint64_t due = load->begin_ns + (client->turns++ * load->connections + client->number) * 1000000000u / load->rate;
    client->asked_ns = due;
    uv_update_time(&load->loop);
    uv_timer_start(&client->timer, on_due, due > now ? (due - now) / 1000000 : 0, 0);
}

static void ask(struct client *client)
{
    struct load *load = client->load;
    char path[512], body[4096], request[6000];
    uint64_t now = now_ns();
    if (load->rate == 0 || now < client->asked_ns + LATE_NS)
        client->asked_ns = now; /* the timer counts milliseconds: so much is the bench's own fault */
    if ((load->count > 0 && load->sent >= load->count) || now >= load->deadline_ns) {
        finish(client);
        return;
    }
    uint64_t number = load->sent++;
    expand(load->path, client->number, number, path, sizeof path);
    expand(load->body, client->number, number, body, sizeof body);
    int n = snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nHost: x\r\n", load->method, path);
    if (body[0] != '\0')
        n += snprintf(request + n, sizeof request - (size_t)n,
                      "Content-Type: application/json\r\nContent-Length: %zu\r\n", strlen(body));
    n += snprintf(request + n, sizeof request - (size_t)n, "\r\n%s", body);
    tls_stream_write(client->stream, request, (size_t)n);
}

static void answered(struct client *client)
{
    struct load *load = client->load;
    uint64_t us = (now_ns() - client->asked_ns) / 1000;
    if (load->done < SAMPLES_MAX)
        load->samples_us[load->done] = (uint32_t)us;
    load->done++;
    ask_in_time(client);
}

static void on_open(struct tls_stream *stream, void *arg)
{
    (void)stream;
    ask_in_time(arg);
}

/* One answer at a time: a head, then its Content-Length. */
static void on_data(struct tls_stream *stream, const uint8_t *data, size_t size, void *arg)
{
    struct client *client = arg;
    struct load *load = client->load;
    (void)stream;
    load->bytes += size;
    while (size > 0) {
        if (client->in_body) {
            size_t n = MIN(size, client->body_left);
            client->body_left -= n;
            data += n;
            size -= n;
        } else {
            if (client->in_size + size > client->in_capacity) {
                client->in_capacity = client->in_size + size;
                client->in = xrealloc(client->in, client->in_capacity);
            }
            memcpy(client->in + client->in_size, data, size);
            size_t before = client->in_size;
            client->in_size += size;
            ssize_t head_size = http_head_size(client->in, client->in_size, &client->scanned);
            struct http_head head;
            if (head_size == 0)
                return;
            if (head_size < 0 || http_parse_answer(client->in, (size_t)head_size, &head) < 0) {
                load->statuses[0]++;
                finish(client);
                return;
            }
            load->statuses[head.status / 100 % 6]++;
            if (head.status >= 300 && load->first_error == 0)
                load->first_error = head.status;
            size_t used = (size_t)head_size - before;
            data += used;
            size -= used;
            client->in_size = client->scanned = 0;
            client->body_left = head.has_length && head.status != 204 && head.status != 304 ? head.content_length : 0;
            client->in_body = true;
        }
        if (client->in_body && client->body_left == 0) {
            client->in_body = false;
            answered(client);
            return;
        }
    }
}

static void on_end(struct tls_stream *stream, int status, void *arg)
{
    struct client *client = arg;
    fprintf(stderr, "connection %u: %s\n", client->number, status == UV_EOF ? "closed" : tls_stream_failure(stream));
    client->load->statuses[0]++;
    finish(client);
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void print(struct load *load)
{
    size_t n = (size_t)MIN(load->done, (uint64_t)SAMPLES_MAX);
    double seconds = (double)(load->end_ns - load->begin_ns) / 1e9;
    qsort(load->samples_us, n, sizeof *load->samples_us, compare);
    printf("{\"requests\":%llu,\"per_s\":%.0f,\"p50_us\":%u,\"p99_us\":%u,\"max_us\":%u,\"bytes\":%llu,\"ok\":%llu,"
           "\"broken\":%llu,\"first_error\":%d}\n",
           (unsigned long long)load->done, seconds > 0 ? (double)load->done / seconds : 0,
           n ? load->samples_us[n / 2] : 0, n ? load->samples_us[n * 99 / 100] : 0, n ? load->samples_us[n - 1] : 0,
           (unsigned long long)load->bytes, (unsigned long long)load->statuses[2],
           (unsigned long long)load->statuses[0], load->first_error);
}

int main(int argc, char **argv)
{
    static const struct tls_stream_callbacks callbacks = {.on_open = on_open, .on_data = on_data, .on_end = on_end};
    struct load load = {.body = ""};
    struct error err;
    char ca[512], certificate[512], key[512];
    if (argc < 9) {
        fprintf(stderr, "bench_api ENDPOINT ADMIN_DIR CONNECTIONS SECONDS COUNT RATE METHOD PATH [BODY]\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    load.endpoint = argv[1];
    load.connections = (unsigned)atoi(argv[3]);
    load.deadline_ns = atoi(argv[4]) > 0 ? now_ns() + (uint64_t)atoi(argv[4]) * 1000000000u : UINT64_MAX;
    load.count = strtoull(argv[5], NULL, 10);
    load.rate = strtoull(argv[6], NULL, 10);
    load.method = argv[7];
    load.path = argv[8];
    load.body = argc > 9 ? argv[9] : "";
    load.samples_us = xcalloc(SAMPLES_MAX, sizeof *load.samples_us);
    snprintf(ca, sizeof ca, "%s/ca.pem", argv[2]);
    snprintf(certificate, sizeof certificate, "%s/cert.pem", argv[2]);
    snprintf(key, sizeof key, "%s/key.pem", argv[2]);
    ASSERT(uv_loop_init(&load.loop) == 0);
    if (tls_context_load(ca, certificate, key, &load.tls, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    struct tls_stream_options options = {.tls = load.tls};
    load.begin_ns = now_ns();
    for (unsigned i = 0; i < load.connections; i++) {
        struct client *client = NEW(struct client);
        client->load = &load;
        client->number = i;
        uv_timer_init(&load.loop, &client->timer);
        client->timer.data = client;
        if (tls_stream_connect(&load.loop, load.endpoint, &options, &callbacks, client, &client->stream, &err) < 0) {
            fprintf(stderr, "%s\n", err.text);
            return 1;
        }
        load.open++;
    }
    uv_run(&load.loop, UV_RUN_DEFAULT);
    print(&load);
    return load.statuses[0] > 0;
}
