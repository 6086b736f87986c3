/* For the tests of the network code: a loop with a time limit, a CA with certificates, an HTTP server with a handler
 * per test, and a raw client that sends exact bytes and keeps what comes back. All in one thread, on loopback. */
#ifndef TESTS_NET_FIXTURE_H
#define TESTS_NET_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "common/base.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <uv.h>

#include "common/bytes.h"
#include "common/http_server.h"
#include "common/pki.h"
#include "common/tls.h"
#include "common/tls_stream.h"

#define NET_LIMIT_MS 120000 /* a test that waits longer has failed */

struct net {
    uv_loop_t loop;
    uv_timer_t limit;
    bool expired;
    char *ca_pem, *ca_key;
    struct http_server *server;
    bool server_closed;
    char endpoint[64];
};

static inline void net_expired_cb(uv_timer_t *timer)
{
    struct net *net = timer->data;
    net->expired = true;
}

static inline void net_init(struct net *net)
{
    *net = (struct net){0};
    signal(SIGPIPE, SIG_IGN);
    setenv("no_proxy", "*", 1); /* whoever runs the tests may have a web proxy */
    assert_int_equal(uv_loop_init(&net->loop), 0);
    uv_timer_init(&net->loop, &net->limit);
    net->limit.data = net;
    uv_timer_start(&net->limit, net_expired_cb, NET_LIMIT_MS, 0);
}

/* Turn the loop until @condition holds. */
#define NET_WAIT(net, condition)                                                                                     \
    do {                                                                                                             \
        while (!(condition) && !(net)->expired)                                                                      \
            uv_run(&(net)->loop, UV_RUN_ONCE);                                                                       \
        if (!(condition))                                                                                            \
            fail_msg("waited in vain for: %s", #condition);                                                          \
    } while (0)

static inline void net_server_closed(void *arg)
{
    struct net *net = arg;
    net->server_closed = true;
}

static inline void net_serve(struct net *net, struct http_server_options options)
{
    struct error err = {0};
    if (options.address == NULL)
        options.address = "127.0.0.1:0";
    if (http_server_start(&net->loop, &options, &net->server, &err) < 0)
        fail_msg("%s", err.text);
    if (strncmp(options.address, "unix:", 5) == 0)
        snprintf(net->endpoint, sizeof net->endpoint, "%s", options.address);
    else
        snprintf(net->endpoint, sizeof net->endpoint, "127.0.0.1:%u", http_server_port(net->server));
}

/* Stop the server, and see that the loop closes: not one handle may be left. */
static inline void net_finish(struct net *net)
{
    if (net->server != NULL && !net->server_closed) {
        http_server_stop(net->server, net_server_closed, net);
        NET_WAIT(net, net->server_closed);
    }
    uv_close((uv_handle_t *)&net->limit, NULL);
    uv_run(&net->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&net->loop), 0);
    free(net->ca_pem);
    pki_free_secret(net->ca_key);
}

/* A context whose certificate, signed by the fixture's CA, carries @uri; NULL: no certificate. */
static inline struct tls_context *net_tls(struct net *net, const char *uri)
{
    static const char *const dns[] = {"localhost"}, *const addresses[] = {"127.0.0.1", "::1"};
    struct pki_subject subject = {.common_name = "test",
                                  .uri = uri,
                                  .dns_names = dns,
                                  .dns_count = 1,
                                  .addresses = addresses,
                                  .address_count = 2,
                                  .valid_days = 1};
    struct tls_identity identity = {0};
    struct tls_context *context = NULL;
    struct error err = {0};
    char *certificate = NULL, *key = NULL;
    if (net->ca_pem == NULL)
        assert_int_equal(pki_create_ca("test CA", 1, &net->ca_pem, &net->ca_key, &err), 0);
    if (uri != NULL && pki_issue(net->ca_pem, net->ca_key, &subject, &certificate, &key, &err) < 0)
        fail_msg("%s", err.text);
    identity.ca_pem = net->ca_pem;
    identity.certificate_pem = certificate;
    identity.key_pem = key;
    if (tls_context_create(&identity, &context, &err) < 0)
        fail_msg("%s", err.text);
    free(certificate);
    pki_free_secret(key);
    return context;
}

/* --- the raw client --- */

struct raw {
    struct tls_stream *stream;
    struct bytes_writer got; /* kept terminated */
    bool open, ended;
    int status;
    char failure[192];
};

static inline void raw_open(struct tls_stream *stream, void *arg)
{
    (void)stream;
    ((struct raw *)arg)->open = true;
}

static inline void raw_data(struct tls_stream *stream, const uint8_t *data, size_t size, void *arg)
{
    struct raw *raw = arg;
    (void)stream;
    bytes_put(&raw->got, data, size);
    bytes_put(&raw->got, "", 1);
    raw->got.size--;
}

static inline void raw_end(struct tls_stream *stream, int status, void *arg)
{
    struct raw *raw = arg;
    raw->ended = true;
    raw->status = status;
    snprintf(raw->failure, sizeof raw->failure, "%s", tls_stream_failure(stream));
    tls_stream_close(stream);
    raw->stream = NULL;
}

static const struct tls_stream_callbacks raw_callbacks = {
    .on_open = raw_open, .on_data = raw_data, .on_end = raw_end};

static inline void raw_connect(struct net *net, struct raw *raw, struct tls_context *tls, const char *peer_prefix)
{
    struct tls_stream_options options = {.tls = tls, .peer_prefix = peer_prefix};
    *raw = (struct raw){0};
    assert_int_equal(tls_stream_connect(&net->loop, net->endpoint, &options, &raw_callbacks, raw, &raw->stream, NULL),
                     0);
    NET_WAIT(net, raw->open || raw->ended);
}

static inline void raw_send(struct raw *raw, const char *text)
{
    assert_int_equal(tls_stream_write(raw->stream, text, strlen(text)), 0);
}

static inline const char *raw_text(const struct raw *raw)
{
    return raw->got.data != NULL ? (const char *)raw->got.data : "";
}

static inline void raw_forget(struct raw *raw)
{
    raw->got.size = 0;
    if (raw->got.data != NULL)
        raw->got.data[0] = '\0';
}

static inline void raw_finish(struct raw *raw)
{
    if (raw->stream != NULL)
        tls_stream_close(raw->stream);
    raw->stream = NULL;
    bytes_writer_finish(&raw->got);
}

/* How often @text is in what came. */
static inline unsigned raw_count(const struct raw *raw, const char *text)
{
    unsigned count = 0;
    for (const char *p = raw_text(raw); (p = strstr(p, text)) != NULL; p += strlen(text))
        count++;
    return count;
}

#endif
