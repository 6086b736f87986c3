/* For the tests of what the CLI asks of the cluster: a server with a handler per test, and a user with a certificate.
 * THREADED: the client blocks, so the server's loop runs in a thread of its own. */
#ifndef TESTS_CLIENT_FIXTURE_H
#define TESTS_CLIENT_FIXTURE_H

#include "tests/unit/common/net_fixture.h"

#include <pthread.h>
#include <sys/stat.h>

#include "cli/client.h"
#include "common/file.h"

struct client_bed {
    struct net net;
    pthread_t thread;
    uv_async_t end;
    char dir[64], ca[96], cert[96], key[96];
};

static inline void *client_bed_serve(void *arg)
{
    struct client_bed *b = arg;
    uv_run(&b->net.loop, UV_RUN_DEFAULT);
    return NULL;
}

static inline void client_bed_on_end(uv_async_t *end)
{
    uv_stop(end->loop);
    uv_close((uv_handle_t *)end, NULL);
}

/* @handler runs in the server's thread; what it writes to @arg is read when the bed has been finished. */
static inline void client_bed_start(struct client_bed *b, void (*handler)(struct http_request *, void *), void *arg,
                                    const char *server_uri, const char *user_uri)
{
    *b = (struct client_bed){.dir = "/tmp/client.XXXXXX"};
    net_init(&b->net);
    struct tls_context *tls = net_tls(&b->net, server_uri);
    net_serve(&b->net, (struct http_server_options){.tls = tls, .handler = handler, .arg = arg});
    tls_context_unref(tls);
    assert_non_null(mkdtemp(b->dir));
    snprintf(b->ca, sizeof b->ca, "%s/ca.pem", b->dir);
    snprintf(b->cert, sizeof b->cert, "%s/cert.pem", b->dir);
    snprintf(b->key, sizeof b->key, "%s/key.pem", b->dir);
    struct pki_subject user = {.common_name = "test", .uri = user_uri, .valid_days = 1};
    char *certificate = NULL, *key = NULL;
    assert_int_equal(pki_issue(b->net.ca_pem, b->net.ca_key, &user, &certificate, &key, NULL), 0);
    assert_int_equal(pki_save_certificate(b->ca, b->net.ca_pem, NULL), 0);
    assert_int_equal(pki_save_certificate(b->cert, certificate, NULL), 0);
    assert_int_equal(pki_save_key(b->key, key, NULL), 0);
    free(certificate);
    pki_free_secret(key);
    uv_async_init(&b->net.loop, &b->end, client_bed_on_end);
    assert_int_equal(pthread_create(&b->thread, NULL, client_bed_serve, b), 0);
}

static inline void client_bed_finish(struct client_bed *b)
{
    uv_async_send(&b->end);
    pthread_join(b->thread, NULL);
    net_finish(&b->net);
    assert_int_equal(file_remove_tree("/tmp", b->dir + 5, NULL), 0);
}

/* A call as that user, of no verb yet. */
static inline struct invocation client_bed_call(const struct client_bed *b)
{
    return (struct invocation){.endpoint = b->net.endpoint, .ca = b->ca, .cert = b->cert, .key = b->key, .timeout_s = 120};
}

#endif
