/* Both ends of a tunnel on one loop, between a client in the source VMM's place and a server in that of the target. */
#include "tests/unit/common/net_fixture.h"

#include <errno.h>
#include <sys/stat.h>

#include "compute/agent/migrate_tunnel.h"

#define SOURCE "spiffe://drover/c1/host/11111111-1111-4111-8111-111111111111"
#define TARGET "spiffe://drover/c1/host/22222222-2222-4222-8222-222222222222"
#define OTHER "spiffe://drover/c1/host/33333333-3333-4333-8333-333333333333"

/* The target VMM: takes connections at a Unix socket, and answers each byte, or "bye" and the end, or reads nothing. */
struct world {
    struct net net;
    char dir[64], source_path[96], target_path[96], target_connect[104];
    uv_pipe_t listener;
    struct tls_stream *streams[4];
    unsigned count, ended;
    bool deaf, says_bye;
    struct migrate_tunnel *source, *target;
    unsigned closed;
    struct tls_context *source_tls, *target_tls;
};

static void vmm_data(struct tls_stream *stream, const uint8_t *data, size_t size, void *arg)
{
    struct world *w = arg;
    if (!w->says_bye) {
        tls_stream_write(stream, data, size);
        return;
    }
    tls_stream_write(stream, "bye", 3);
    w->ended++;
    for (unsigned i = 0; i < w->count; i++)
        if (w->streams[i] == stream)
            w->streams[i] = NULL;
    tls_stream_finish(stream, NET_LIMIT_MS);
}

static void vmm_end(struct tls_stream *stream, int status, void *arg)
{
    struct world *w = arg;
    (void)status;
    w->ended++;
    for (unsigned i = 0; i < w->count; i++)
        if (w->streams[i] == stream)
            w->streams[i] = NULL;
    tls_stream_close(stream);
}

static const struct tls_stream_callbacks vmm_callbacks = {.on_data = vmm_data, .on_end = vmm_end};

static void vmm_connection(uv_stream_t *listener, int status)
{
    struct world *w = listener->data;
    const struct tls_stream_options plain = {.tls = NULL};
    assert_int_equal(status, 0);
    assert_true(w->count < ARRAY_SIZE(w->streams));
    assert_int_equal(tls_stream_accept(listener, &plain, &vmm_callbacks, w, &w->streams[w->count]), 0);
    if (w->deaf)
        tls_stream_pause(w->streams[w->count]);
    w->count++;
}

static void tunnel_closed(void *arg)
{
    ((struct world *)arg)->closed++;
}

static void world_init(struct world *w)
{
    *w = (struct world){.count = 0};
    net_init(&w->net);
    snprintf(w->dir, sizeof(w->dir), "/tmp/drover-tunnel-XXXXXX");
    assert_non_null(mkdtemp(w->dir));
    snprintf(w->source_path, sizeof(w->source_path), "%s/source", w->dir);
    snprintf(w->target_path, sizeof(w->target_path), "%s/target", w->dir);
    snprintf(w->target_connect, sizeof(w->target_connect), "unix:%s", w->target_path);
    w->source_tls = net_tls(&w->net, SOURCE);
    w->target_tls = net_tls(&w->net, TARGET);
    uv_pipe_init(&w->net.loop, &w->listener, 0);
    w->listener.data = w;
    assert_int_equal(uv_pipe_bind(&w->listener, w->target_path), 0);
    assert_int_equal(uv_listen((uv_stream_t *)&w->listener, 4, vmm_connection), 0);
}

/* @source_sees, @target_sees: whom each end is told to expect. */
static void tunnels_start(struct world *w, const char *source_sees, const char *target_sees)
{
    struct error err = {0};
    struct migrate_tunnel_options target = {.loop = &w->net.loop,
                                            .tls = w->target_tls,
                                            .listen = "127.0.0.1:0",
                                            .connect = w->target_connect,
                                            .peer = target_sees};
    if (migrate_tunnel_start(&target, &w->target, &err) < 0)
        fail_msg("%s", err.text);
    struct migrate_tunnel_options source = {.loop = &w->net.loop,
                                            .tls = w->source_tls,
                                            .is_source = true,
                                            .listen = w->source_path,
                                            .connect = migrate_tunnel_endpoint(w->target),
                                            .peer = source_sees,
                                            .owner = geteuid()};
    if (migrate_tunnel_start(&source, &w->source, &err) < 0)
        fail_msg("%s", err.text);
    snprintf(w->net.endpoint, sizeof(w->net.endpoint), "unix:%.58s", w->source_path);
}

static void world_finish(struct world *w)
{
    unsigned tunnels = (w->source != NULL) + (w->target != NULL);
    if (w->source != NULL)
        migrate_tunnel_stop(w->source, tunnel_closed, w);
    if (w->target != NULL)
        migrate_tunnel_stop(w->target, tunnel_closed, w);
    NET_WAIT(&w->net, w->closed == tunnels);
    assert_int_equal(access(w->source_path, F_OK), -1); /* nothing is left behind */
    for (unsigned i = 0; i < w->count; i++)
        if (w->streams[i] != NULL)
            tls_stream_close(w->streams[i]);
    uv_close((uv_handle_t *)&w->listener, NULL);
    tls_context_unref(w->source_tls);
    tls_context_unref(w->target_tls);
    net_finish(&w->net);
    unlink(w->target_path);
    assert_int_equal(rmdir(w->dir), 0);
}

static void test_bytes_pass_both_ways_on_several_connections(void **state)
{
    enum { CLIENTS = 3, BYTES = 3 << 20 };
    struct world w;
    struct raw raw[CLIENTS];
    struct stat st;
    (void)state;
    CLEANUP_FREE uint8_t *data = xcalloc(CLIENTS, BYTES);
    for (size_t i = 0; i < (size_t)CLIENTS * BYTES; i++)
        data[i] = (uint8_t)(i * 2654435761u >> 24);
    world_init(&w);
    tunnels_start(&w, TARGET, SOURCE);
    assert_int_equal(stat(w.source_path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    for (unsigned i = 0; i < CLIENTS; i++) {
        raw_connect(&w.net, &raw[i], NULL, NULL);
        assert_int_equal(tls_stream_write(raw[i].stream, data + (size_t)i * BYTES, BYTES), 0);
    }
    for (unsigned i = 0; i < CLIENTS; i++) {
        NET_WAIT(&w.net, raw[i].got.size == BYTES || raw[i].ended);
        assert_int_equal(raw[i].got.size, BYTES);
        assert_memory_equal(raw[i].got.data, data + (size_t)i * BYTES, BYTES);
    }
    assert_int_equal(w.count, CLIENTS);
    for (unsigned i = 0; i < CLIENTS; i++)
        raw_finish(&raw[i]);
    NET_WAIT(&w.net, w.ended == CLIENTS); /* the end goes through as well */
    assert_string_equal(migrate_tunnel_failure(w.source), "");
    assert_string_equal(migrate_tunnel_failure(w.target), "");
    world_finish(&w);
}

static void test_last_words_arrive_before_the_end(void **state)
{
    struct world w;
    struct raw raw;
    (void)state;
    world_init(&w);
    w.says_bye = true;
    tunnels_start(&w, TARGET, SOURCE);
    raw_connect(&w.net, &raw, NULL, NULL);
    raw_send(&raw, "are you there");
    NET_WAIT(&w.net, raw.ended);
    assert_string_equal(raw_text(&raw), "bye");
    raw_finish(&raw);
    world_finish(&w);
}

/* Another host of the same cluster is nobody here, whichever end it is. */
static void test_other_hosts_are_refused(void **state)
{
    struct world w;
    struct raw raw;
    (void)state;
    world_init(&w);
    tunnels_start(&w, TARGET, OTHER);
    raw_connect(&w.net, &raw, NULL, NULL);
    raw_send(&raw, "let me in");
    NET_WAIT(&w.net, raw.ended);
    assert_non_null(strstr(migrate_tunnel_failure(w.target), "not that of the host"));
    assert_int_equal(w.count, 0); /* the VMM has not even heard of it */
    raw_finish(&raw);
    world_finish(&w);

    world_init(&w);
    tunnels_start(&w, OTHER, SOURCE);
    raw_connect(&w.net, &raw, NULL, NULL);
    raw_send(&raw, "a guest's memory");
    NET_WAIT(&w.net, raw.ended);
    assert_non_null(strstr(migrate_tunnel_failure(w.source), "cannot reach"));
    assert_int_equal(w.count, 0);
    raw_finish(&raw);
    world_finish(&w);
}

static void test_without_certificate_nobody_comes_in(void **state)
{
    struct world w;
    struct raw raw;
    (void)state;
    world_init(&w);
    tunnels_start(&w, TARGET, SOURCE);
    struct tls_context *none = net_tls(&w.net, NULL);
    snprintf(w.net.endpoint, sizeof(w.net.endpoint), "%s", migrate_tunnel_endpoint(w.target));
    raw_connect(&w.net, &raw, none, TARGET);
    if (!raw.ended)
        raw_send(&raw, "let me in");
    NET_WAIT(&w.net, raw.ended);
    assert_int_equal(w.count, 0);
    raw_finish(&raw);
    raw_connect(&w.net, &raw, NULL, NULL); /* and without TLS */
    raw_send(&raw, "DRVMACH1 let me in, without a word of TLS");
    NET_WAIT(&w.net, raw.ended);
    assert_int_equal(w.count, 0);
    raw_finish(&raw);
    tls_context_unref(none);
    world_finish(&w);
}

static void test_a_target_that_is_not_there_is_named(void **state)
{
    struct world w;
    struct raw raw;
    struct error err = {0};
    (void)state;
    world_init(&w);
    struct migrate_tunnel_options source = {.loop = &w.net.loop,
                                            .tls = w.source_tls,
                                            .is_source = true,
                                            .listen = w.source_path,
                                            .connect = "127.0.0.1:1",
                                            .peer = TARGET,
                                            .owner = geteuid()};
    assert_int_equal(migrate_tunnel_start(&source, &w.source, &err), 0);
    snprintf(w.net.endpoint, sizeof(w.net.endpoint), "unix:%.58s", w.source_path);
    raw_connect(&w.net, &raw, NULL, NULL);
    NET_WAIT(&w.net, raw.ended);
    assert_non_null(strstr(migrate_tunnel_failure(w.source), "127.0.0.1:1"));
    raw_finish(&raw);
    world_finish(&w);
}

/* Whoever does not read makes the other wait, and not this process grow. */
static void test_a_slow_target_slows_the_source(void **state)
{
    enum { BYTES = 32 << 20 };
    struct world w;
    struct raw raw;
    (void)state;
    CLEANUP_FREE uint8_t *data = xcalloc(1, BYTES);
    world_init(&w);
    w.deaf = true;
    tunnels_start(&w, TARGET, SOURCE);
    raw_connect(&w.net, &raw, NULL, NULL);
    assert_int_equal(tls_stream_write(raw.stream, data, BYTES), 0);
    NET_WAIT(&w.net, w.count == 1);
    size_t before = 0;
    for (unsigned still = 0; still < 50; still++) { /* until nothing moves any more */
        uv_run(&w.net.loop, UV_RUN_NOWAIT);
        size_t queued = tls_stream_queued_bytes(raw.stream);
        if (queued != before)
            still = 0;
        before = queued;
        struct timespec pause = {.tv_nsec = 2000000};
        nanosleep(&pause, NULL);
    }
    assert_true(before > BYTES / 2);
    tls_stream_resume(w.streams[0]);
    NET_WAIT(&w.net, raw.got.size == BYTES || raw.ended);
    assert_int_equal(raw.got.size, BYTES);
    raw_finish(&raw);
    world_finish(&w);
}

static void test_impossible_places_are_refused_in_words(void **state)
{
    struct world w;
    struct error err = {0};
    struct migrate_tunnel *none = NULL;
    char path[200];
    (void)state;
    world_init(&w);
    memset(path, 'x', sizeof(path) - 1);
    path[0] = '/';
    path[sizeof(path) - 1] = '\0';
    struct migrate_tunnel_options options = {
        .loop = &w.net.loop, .tls = w.source_tls, .is_source = true, .listen = path, .connect = "127.0.0.1:1", .peer = TARGET};
    assert_int_equal(migrate_tunnel_start(&options, &none, &err), -ENAMETOOLONG);
    assert_non_null(strstr(err.text, "--data"));
    options.is_source = false;
    options.listen = "somewhere";
    assert_true(migrate_tunnel_start(&options, &none, &err) < 0);
    options.listen = "192.0.2.1:0"; /* not ours */
    assert_true(migrate_tunnel_start(&options, &none, &err) < 0);
    assert_null(none);
    world_finish(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes_pass_both_ways_on_several_connections),
        cmocka_unit_test(test_last_words_arrive_before_the_end),
        cmocka_unit_test(test_other_hosts_are_refused),
        cmocka_unit_test(test_without_certificate_nobody_comes_in),
        cmocka_unit_test(test_a_target_that_is_not_there_is_named),
        cmocka_unit_test(test_a_slow_target_slows_the_source),
        cmocka_unit_test(test_impossible_places_are_refused_in_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
