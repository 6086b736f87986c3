/* Many hosts without VMMs, in one loop: the agents' own session and lease (compute/agent), each with its certificate, in front
 * of real controllers. Every VM that its orders name a host reports as running at once.
 *
 *   bench_leases DIR HOSTS CONTROLLER...
 *
 * DIR/<n>/: ca.pem, cert.pem, key.pem and the host's id; hosts are named h<n>. Lines on standard input: "leases" begins to ask
 * for leases, "no leases" ends it; its end ends the program. One line of JSON each second: connected, held (hosts whose lease
 * a majority supports), vms. Driven by tests/bench/bench_leases.py. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "common/tls.h"
#include "compute/agent/agent_lease.h"
#include "compute/agent/session.h"

#define HOSTS_MAX 1000u
#define TELL_MS 1000u

struct bench_host {
    struct bench *bench;
    char id[37], name[16];
    struct http_client *http;
    struct tls_context *tls;
    struct session *session;
    struct agent_lease lease;
    bool asks;
    struct object_list vms; /* struct vm_seen */
    uint64_t generation, arming;
};

struct bench {
    uv_loop_t loop;
    uv_timer_t timer;
    uv_pipe_t input;
    struct string_list controllers;
    struct bench_host *hosts;
    unsigned count;
    char line[64];
    size_t line_size;
};

/* ---- sessions ---- */

static void put_report(struct node_report *report, void *arg)
{
    struct bench_host *host = arg;
    OBJECT_TEXT(node_report, report, host, host->id);
    OBJECT_TEXT(node_report, report, name, host->name);
    OBJECT_TEXT(node_report, report, address, "127.0.0.1:7445");
    OBJECT_TEXT(node_report, report, boot_id, "1");
    OBJECT_TEXT(node_report, report, kvm, "svm");
    OBJECT_TEXT(node_report, report, version, "bench");
    OBJECT_SET(node_report, report, generation, host->generation);
    if (host->arming != 0)
        OBJECT_SET(node_report, report, arming, host->arming);
    OBJECT_SET(node_report, report, cpus, 64);
    OBJECT_SET(node_report, report, memory_bytes, UINT64_C(256) << 30);
    OBJECT_SET(node_report, report, disk_bytes, UINT64_C(1) << 40);
    object_mark(&node_report_desc, report, "vms");
    for (size_t i = 0; i < host->vms.count; i++)
        OBJECT_COPY(vm_seen, (struct vm_seen *)OBJECT_ADD(node_report, report, vms),
                    (const struct vm_seen *)host->vms.items + i);
}

static uint64_t cluster_epoch(void *arg)
{
    (void)arg;
    return 1;
}

static void vms_clear(struct object_list *vms)
{
    for (size_t i = 0; i < vms->count; i++)
        OBJECT_CLEAR(vm_seen, (struct vm_seen *)vms->items + i);
    free(vms->items);
    *vms = (struct object_list){.count = 0};
}

static bool vms_differ(const struct object_list *a, const struct object_list *b)
{
    for (size_t i = 0; a->count == b->count && i < a->count; i++)
        if (!object_equal(&vm_seen_desc, (const struct vm_seen *)a->items + i, (const struct vm_seen *)b->items + i))
            return true;
    return a->count != b->count;
}

static void obey(const struct node_orders *orders, void *arg)
{
    static const enum vm_state reached[] = {[vm_wanted_RUNNING] = vm_state_RUNNING, [vm_wanted_PAUSED] = vm_state_PAUSED,
                                            [vm_wanted_STOPPED] = vm_state_STOPPED, [vm_wanted_DELETED] = vm_state_DELETED};
    struct bench_host *host = arg;
    struct object_list vms = {.items = xcalloc(orders->vms.count + 1, sizeof(struct vm_seen))};
    for (size_t i = 0; i < orders->vms.count; i++) {
        const struct vm_order *order = (const struct vm_order *)orders->vms.items + i;
        struct vm_seen *seen = (struct vm_seen *)vms.items + vms.count++;
        OBJECT_TEXT(vm_seen, seen, id, order->id);
        OBJECT_SET(vm_seen, seen, epoch, order->epoch);
        OBJECT_SET(vm_seen, seen, generation, order->generation);
        OBJECT_SET(vm_seen, seen, state, reached[order->wanted]);
    }
    bool changed = vms_differ(&vms, &host->vms) || host->generation != orders->generation || host->arming != orders->arming;
    vms_clear(&host->vms);
    host->vms = vms;
    host->generation = orders->generation;
    host->arming = orders->arming;
    if (host->asks)
        agent_lease_generation(&host->lease, orders->generation);
    if (changed)
        session_poke(host->session);
}

static void host_start(struct bench *bench, const char *dir, unsigned number)
{
    struct bench_host *host = &bench->hosts[number];
    struct error err;
    CLEANUP_FREE char *ca = xasprintf("%s/%u/ca.pem", dir, number), *cert = xasprintf("%s/%u/cert.pem", dir, number);
    CLEANUP_FREE char *key = xasprintf("%s/%u/key.pem", dir, number), *id = xasprintf("%s/%u/id", dir, number);
    FILE *file = fopen(id, "r");
    host->bench = bench;
    snprintf(host->name, sizeof host->name, "h%u", number);
    if (file == NULL || fscanf(file, "%36s", host->id) != 1 || tls_context_load(ca, cert, key, &host->tls, &err) < 0 ||
        http_client_create(&bench->loop, &host->http, &err) < 0) {
        fprintf(stderr, "bench_leases: %s/%u cannot be read\n", dir, number);
        exit(1);
    }
    fclose(file);
    const struct session_options options = {.loop = &bench->loop,
                                            .http = host->http,
                                            .tls = host->tls,
                                            .peer_prefix = "spiffe://drover/",
                                            .controllers = &bench->controllers,
                                            .put_report = put_report,
                                            .obey = obey,
                                            .arg = host};
    host->session = session_start(&options);
}

/* ---- leases ---- */

static void deadline_changed(void *arg)
{
    (void)arg; /* looked at by whoever tells */
}

static void lease_stopped(void *arg)
{
    struct bench_host *host = arg;
    host->asks = false;
}

static void leases_begin(struct bench *bench)
{
    for (unsigned i = 0; i < bench->count; i++) {
        struct bench_host *host = &bench->hosts[i];
        if (host->asks)
            continue;
        const struct agent_lease_options options = {.loop = &bench->loop,
                                                    .http = host->http,
                                                    .tls = host->tls,
                                                    .peer_prefix = "spiffe://drover/",
                                                    .host = host->id,
                                                    .cluster_epoch = cluster_epoch,
                                                    .changed = deadline_changed,
                                                    .arg = host};
        agent_lease_start(&host->lease, &options);
        host->lease.session = host->session;
        agent_lease_controllers(&host->lease, &bench->controllers);
        agent_lease_generation(&host->lease, host->generation);
        host->asks = true;
    }
}

static void leases_end(struct bench *bench)
{
    for (unsigned i = 0; i < bench->count; i++)
        if (bench->hosts[i].asks)
            agent_lease_stop(&bench->hosts[i].lease, lease_stopped, &bench->hosts[i]);
}

/* ---- talk ---- */

static void tell(uv_timer_t *timer)
{
    const struct bench *bench = timer->data;
    unsigned connected = 0, held = 0;
    size_t vms = 0;
    for (unsigned i = 0; i < bench->count; i++) {
        const struct bench_host *host = &bench->hosts[i];
        connected += session_counters(host->session)->connected;
        held += host->asks && lease_holder_deadline(&host->lease.holder) > agent_lease_now_ns();
        vms += host->vms.count;
    }
    printf("{\"connected\":%u,\"held\":%u,\"vms\":%zu}\n", connected, held, vms);
    fflush(stdout);
}

static void obey_line(struct bench *bench)
{
    if (strcmp(bench->line, "leases") == 0)
        leases_begin(bench);
    else if (strcmp(bench->line, "no leases") == 0)
        leases_end(bench);
}

static void on_input(uv_stream_t *stream, ssize_t size, const uv_buf_t *buf)
{
    struct bench *bench = stream->data;
    if (size < 0)
        exit(0); /* whoever drives it is gone */
    for (ssize_t i = 0; i < size; i++) {
        if (buf->base[i] == '\n') {
            bench->line[bench->line_size] = '\0';
            bench->line_size = 0;
            obey_line(bench);
        } else if (bench->line_size + 1 < sizeof bench->line) {
            bench->line[bench->line_size++] = buf->base[i];
        }
    }
    free(buf->base);
}

static void on_alloc(uv_handle_t *handle, size_t size, uv_buf_t *ret_buf)
{
    (void)handle;
    *ret_buf = uv_buf_init(xcalloc(1, size), (unsigned)size);
}

int main(int argc, char **argv)
{
    static struct bench bench;
    unsigned count = argc > 3 ? (unsigned)atoi(argv[2]) : 0;
    if (count == 0 || count > HOSTS_MAX) {
        fprintf(stderr, "bench_leases DIR HOSTS CONTROLLER...   (1 to %u hosts)\n", HOSTS_MAX);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    ASSERT(uv_loop_init(&bench.loop) == 0);
    bench.controllers = (struct string_list){.items = argv + 3, .count = (size_t)argc - 3};
    bench.hosts = xcalloc(count, sizeof *bench.hosts);
    bench.count = count;
    for (unsigned i = 0; i < count; i++)
        host_start(&bench, argv[1], i);
    uv_timer_init(&bench.loop, &bench.timer);
    bench.timer.data = bench.input.data = &bench;
    uv_timer_start(&bench.timer, tell, TELL_MS, TELL_MS);
    uv_pipe_init(&bench.loop, &bench.input, 0);
    bench.input.data = &bench;
    ASSERT(uv_pipe_open(&bench.input, 0) == 0);
    uv_read_start((uv_stream_t *)&bench.input, on_alloc, on_input);
    uv_run(&bench.loop, UV_RUN_DEFAULT);
    return 0;
}
