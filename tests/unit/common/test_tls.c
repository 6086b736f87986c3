/* Certificates and TLS: signing, identities, pins; streams and the HTTP server with good, wrong and no certificates.
 */
#include "tests/unit/common/net_fixture.h"

#include <errno.h>
#include <openssl/pem.h>
#include <pthread.h>
#include <sys/stat.h>
#include <time.h>

#include "common/file.h"

#define CONTROLLER "spiffe://drover/c1/controller/1"
#define HOST "spiffe://drover/c1/host/7"

static void test_certificate_content(void **state)
{
    char *ca, *ca_key, *key, *request, *certificate, hex[PKI_FINGERPRINT_SIZE], again[PKI_FINGERPRINT_SIZE];
    struct pki_subject subject = {.common_name = "seven", .uri = HOST, .valid_days = 90};
    struct pki_info info;
    struct error err = {0};
    (void)state;
    assert_int_equal(pki_create_ca("test CA", 3650, &ca, &ca_key, &err), 0);
    assert_int_equal(pki_create_request(&key, &request, &err), 0);
    assert_int_equal(pki_sign_request(ca, ca_key, request, &subject, &certificate, &err), 0);
    assert_int_equal(pki_read_info(certificate, &info, &err), 0);
    assert_string_equal(info.uri, HOST);
    assert_string_equal(info.common_name, "seven");
    int64_t now = (int64_t)time(NULL);
    assert_true(info.not_before_s <= now - PKI_BACKDATE_SECONDS &&
                info.not_before_s >= now - PKI_BACKDATE_SECONDS - 60);
    assert_true(info.not_after_s >= now + 90 * 86400 - 60 && info.not_after_s <= now + 90 * 86400 + 60);
    assert_int_equal(pki_verify(certificate, ca, &err), 0);
    assert_int_equal(pki_fingerprint(ca, hex, &err), 0);
    assert_int_equal(strlen(hex), 64);
    pki_fingerprint(certificate, again, &err);
    assert_string_not_equal(hex, again);
    /* Another CA did not sign it. */
    char *other, *other_key;
    assert_int_equal(pki_create_ca("test CA", 3650, &other, &other_key, &err), 0);
    assert_int_equal(pki_verify(certificate, other, &err), -EACCES);
    /* A certificate of ours cannot sign others. */
    char *forged = NULL;
    assert_int_equal(pki_sign_request(certificate, key, request, &subject, &forged, &err), -EINVAL);
    assert_non_null(strstr(err.text, "authority"));
    free(ca);
    free(other);
    pki_free_secret(ca_key);
    pki_free_secret(other_key);
    pki_free_secret(key);
    free(request);
    free(certificate);
}

static void test_requests_refused(void **state)
{
    static const char *const bad_dns[] = {"a,URI:spiffe://drover/c1/controller/1"}, *const bad_ip[] = {
                                                                                        "10.0.0.1,DNS:x"};
    struct pki_subject good = {.common_name = "x", .uri = HOST, .valid_days = 1}, bad;
    char *ca, *ca_key, *key, *request, *certificate = NULL;
    struct error err = {0};
    (void)state;
    assert_int_equal(pki_create_ca("test CA", 1, &ca, &ca_key, &err), 0);
    assert_int_equal(pki_create_request(&key, &request, &err), 0);
    /* Names that would smuggle other names into the extension. */
    bad = good;
    bad.dns_names = bad_dns;
    bad.dns_count = 1;
    assert_int_equal(pki_sign_request(ca, ca_key, request, &bad, &certificate, &err), -EINVAL);
    bad = good;
    bad.addresses = bad_ip;
    bad.address_count = 1;
    assert_int_equal(pki_sign_request(ca, ca_key, request, &bad, &certificate, &err), -EINVAL);
    bad = good;
    bad.uri = "spiffe://a,DNS:evil";
    assert_int_equal(pki_sign_request(ca, ca_key, request, &bad, &certificate, &err), -EINVAL);
    /* Text that is no request, and a request with one byte of its signature changed. */
    assert_int_equal(pki_sign_request(ca, ca_key, "hello", &good, &certificate, &err), -EINVAL);
    BIO *bio = BIO_new_mem_buf(request, -1);
    X509_REQ *parsed = PEM_read_bio_X509_REQ(bio, NULL, NULL, NULL);
    BIO_free(bio);
    unsigned char *der = NULL;
    int size = i2d_X509_REQ(parsed, &der);
    der[size - 1] ^= 1;
    const unsigned char *p = der;
    X509_REQ *changed = d2i_X509_REQ(NULL, &p, size);
    assert_non_null(changed);
    bio = BIO_new(BIO_s_mem());
    PEM_write_bio_X509_REQ(bio, changed);
    BIO_write(bio, "", 1);
    char *text;
    BIO_get_mem_data(bio, &text);
    assert_int_equal(pki_sign_request(ca, ca_key, text, &good, &certificate, &err), -EINVAL);
    assert_non_null(strstr(err.text, "not signed by its own key"));
    BIO_free(bio);
    OPENSSL_free(der);
    X509_REQ_free(parsed);
    X509_REQ_free(changed);
    /* A key that is not the CA's. */
    assert_int_equal(pki_sign_request(ca, key, request, &good, &certificate, &err), -EINVAL);
    free(ca);
    free(request);
    pki_free_secret(ca_key);
    pki_free_secret(key);
}

static void test_save(void **state)
{
    char dir[] = "/tmp/drover-test-XXXXXX", path[64], *text;
    struct stat st;
    (void)state;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/key.pem", dir);
    assert_int_equal(pki_save_key(path, "secret", NULL), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    assert_int_equal(file_read(path, 100, &text, NULL, NULL), 0);
    assert_string_equal(text, "secret");
    free(text);
    unlink(path);
    assert_int_equal(rmdir(dir), 0); /* no temporary file is left */
}

static void test_identity_prefix(void **state)
{
    (void)state;
    assert_true(tls_identity_matches("spiffe://drover/c1/host/7", "spiffe://drover/c1/host/"));
    assert_true(tls_identity_matches("spiffe://drover/c1/host/7", "spiffe://drover/c1/host/7"));
    assert_false(tls_identity_matches("spiffe://drover/c1/host/77", "spiffe://drover/c1/host/7"));
    assert_false(tls_identity_matches("spiffe://drover/c1/host/", "spiffe://drover/c1/host/"));
    assert_false(tls_identity_matches("spiffe://drover/c1/hostess/7", "spiffe://drover/c1/host/"));
    assert_true(tls_identity_matches("spiffe://drover/c1/controller/7", "spiffe://drover/*/controller/"));
    assert_false(tls_identity_matches("spiffe://drover/c1/host/7", "spiffe://drover/*/controller/"));
    assert_false(tls_identity_matches("spiffe://drover//controller/7", "spiffe://drover/*/controller/"));
    assert_false(tls_identity_matches("spiffe://drover/c1/controller/", "spiffe://drover/*/controller/"));
    assert_false(tls_identity_matches("spiffe://drover/c1/x/controller/7", "spiffe://drover/*/controller/"));
    assert_false(tls_identity_matches("spiffe://drover/c1", "spiffe://drover/*/controller/"));
    assert_false(tls_identity_matches("", ""));
    assert_false(tls_identity_matches("spiffe://x", ""));
}

static void whoami(struct http_request *request, void *arg)
{
    (void)arg;
    http_respond(request, 200, "text/plain", NULL, request->peer, strlen(request->peer));
}

static void serve_tls(struct net *net, enum tls_client_check check, struct http_limits limits)
{
    struct tls_context *server = net_tls(net, CONTROLLER);
    net_serve(
        net, (struct http_server_options){.tls = server, .client_check = check, .limits = limits, .handler = whoami});
    tls_context_unref(server);
}

/* What the server answers to "who am I" with @context; the failure's words where there is no connection. */
static const char *ask(struct net *net, struct raw *raw, struct tls_context *context, const char *peer_prefix)
{
    raw_connect(net, raw, context, peer_prefix);
    if (raw->open && !raw->ended)
        raw_send(raw, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    NET_WAIT(net, raw->ended);
    const char *body = strstr(raw_text(raw), "\r\n\r\n");
    return body != NULL ? body + 4 : raw->failure;
}

/* For servers with little patience: a busy machine may not have shaken hands by then. */
static void ask_until_answered(struct net *net, struct tls_context *context)
{
    struct raw raw;
    for (bool answered = false; !answered;) {
        const char *answer = ask(net, &raw, context, NULL);
        answered = strcmp(answer, HOST) == 0;
        if (!answered && net->expired)
            fail_msg("%s", answer);
        raw_finish(&raw);
    }
}

static struct tls_context *context_of_days(struct net *net, const char *uri, unsigned days)
{
    static const char *const addresses[] = {"127.0.0.1"};
    struct pki_subject subject = {.common_name = "test", .uri = uri, .valid_days = days, .addresses = addresses, .address_count = 1};
    struct tls_identity identity = {.ca_pem = net->ca_pem};
    struct tls_context *context;
    char *certificate, *key;
    assert_int_equal(pki_issue(net->ca_pem, net->ca_key, &subject, &certificate, &key, NULL), 0);
    identity.certificate_pem = certificate;
    identity.key_pem = key;
    assert_int_equal(tls_context_create(&identity, &context, NULL), 0);
    free(certificate);
    pki_free_secret(key);
    return context;
}

/* Certificates that are over: taken within a cluster, on both sides; refused where the roots are this machine's own. */
static void test_dates(void **state UNUSED)
{
    char path[] = "/tmp/drover-test-XXXXXX";
    struct net net;
    struct raw raw;
    net_init(&net);
    tls_context_unref(net_tls(&net, NULL)); /* makes the CA */
    struct tls_context *server = context_of_days(&net, CONTROLLER, 0), *client = context_of_days(&net, HOST, 0), *web;
    net_serve(&net, (struct http_server_options){.tls = server, .client_check = TLS_CLIENT_OPTIONAL, .handler = whoami});
    assert_string_equal(ask(&net, &raw, client, CONTROLLER), HOST);
    raw_finish(&raw);
    int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, net.ca_pem, strlen(net.ca_pem)) == (ssize_t)strlen(net.ca_pem));
    close(fd);
    setenv("SSL_CERT_FILE", path, 1);
    assert_int_equal(tls_context_create(&(struct tls_identity){.system_roots = true}, &web, NULL), 0);
    const char *failure = ask(&net, &raw, web, NULL);
    if (strstr(failure, "certificate has expired") == NULL)
        fail_msg("%s", failure);
    raw_finish(&raw);
    unsetenv("SSL_CERT_FILE");
    unlink(path);
    tls_context_unref(server);
    tls_context_unref(client);
    tls_context_unref(web);
    net_finish(&net);
}

enum { THREADS = 4, PREFIXES = 100 };

static void *apply_and_count(void *arg)
{
    struct tls_context *context = tls_context_ref(arg);
    for (unsigned i = 0; i < PREFIXES; i++) {
        char prefix[64];
        snprintf(prefix, sizeof prefix, "spiffe://drover/c1/host/%u", i);
        SSL_CTX *ctx = SSL_CTX_new(TLS_method());
        SSL *ssl = tls_context_client_session(context, NULL, prefix);
        bool ok = ctx != NULL && ssl != NULL && tls_context_apply(context, ctx, prefix) == 0;
        SSL_free(ssl);
        SSL_CTX_free(ctx);
        tls_context_unref(tls_context_ref(context));
        if (!ok)
            return NULL;
    }
    tls_context_unref(context);
    return arg;
}

/* The loop's thread and those that fetch images use one context. */
static void test_several_threads(void **state UNUSED)
{
    struct net net;
    pthread_t threads[THREADS];
    net_init(&net);
    struct tls_context *context = net_tls(&net, HOST);
    for (unsigned i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, apply_and_count, context), 0);
    for (unsigned i = 0; i < THREADS; i++) {
        void *done = NULL;
        pthread_join(threads[i], &done);
        assert_ptr_equal(done, context);
    }
    tls_context_unref(context);
    net_finish(&net);
}

static void test_client_certificates(void **state)
{
    struct net net, other = {0};
    struct raw raw;
    (void)state;
    net_init(&net);
    serve_tls(&net, TLS_CLIENT_OPTIONAL, (struct http_limits){0});
    struct tls_context *good = net_tls(&net, HOST), *none = net_tls(&net, NULL);
    assert_string_equal(ask(&net, &raw, good, NULL), HOST);
    raw_finish(&raw);
    assert_string_equal(ask(&net, &raw, none, NULL), "");
    raw_finish(&raw);
    /* A certificate of another CA of the same name is refused, and not taken for none. */
    struct tls_context *foreign = net_tls(&other, HOST);
    struct tls_identity mixed = {.ca_pem = net.ca_pem};
    char *certificate, *key;
    struct pki_subject subject = {.common_name = "test", .uri = CONTROLLER, .valid_days = 1};
    assert_int_equal(pki_issue(other.ca_pem, other.ca_key, &subject, &certificate, &key, NULL), 0);
    mixed.certificate_pem = certificate;
    mixed.key_pem = key;
    struct tls_context *wrong;
    assert_int_equal(tls_context_create(&mixed, &wrong, NULL), 0);
    assert_non_null(strstr(ask(&net, &raw, wrong, NULL), "alert"));
    raw_finish(&raw);
    /* And the client refuses a server of another CA. */
    assert_non_null(strstr(ask(&net, &raw, foreign, NULL), "certificate refused"));
    assert_int_equal(raw.status, -EPROTO);
    raw_finish(&raw);
    tls_context_unref(good);
    tls_context_unref(none);
    tls_context_unref(foreign);
    tls_context_unref(wrong);
    free(certificate);
    pki_free_secret(key);
    free(other.ca_pem);
    pki_free_secret(other.ca_key);
    net_finish(&net);
}

static void test_certificate_required(void **state)
{
    struct net net;
    struct raw raw;
    (void)state;
    net_init(&net);
    serve_tls(&net, TLS_CLIENT_REQUIRED, (struct http_limits){0});
    struct tls_context *good = net_tls(&net, HOST), *none = net_tls(&net, NULL);
    assert_non_null(strstr(ask(&net, &raw, none, NULL), "certificate required"));
    raw_finish(&raw);
    assert_string_equal(ask(&net, &raw, good, NULL), HOST);
    raw_finish(&raw);
    assert_int_equal(http_server_counters(net.server)->requests, 1);
    tls_context_unref(good);
    tls_context_unref(none);
    net_finish(&net);
}

static void test_expected_server(void **state)
{
    struct net net;
    struct raw raw;
    (void)state;
    net_init(&net);
    serve_tls(&net, TLS_CLIENT_OPTIONAL, (struct http_limits){0});
    struct tls_context *client = net_tls(&net, HOST);
    assert_string_equal(ask(&net, &raw, client, "spiffe://drover/c1/controller/"), HOST);
    raw_finish(&raw);
    assert_string_equal(ask(&net, &raw, client, CONTROLLER), HOST);
    raw_finish(&raw);
    assert_non_null(strstr(ask(&net, &raw, client, "spiffe://drover/c1/host/"), "another identity"));
    raw_finish(&raw);
    assert_non_null(strstr(ask(&net, &raw, client, "spiffe://drover/c2/controller/"), "another identity"));
    raw_finish(&raw);
    /* Without an expected identity the name counts: the certificate has localhost and the addresses. */
    snprintf(net.endpoint, sizeof net.endpoint, "localhost:%u", http_server_port(net.server));
    assert_string_equal(ask(&net, &raw, client, NULL), HOST);
    raw_finish(&raw);
    snprintf(net.endpoint, sizeof net.endpoint, "127.0.0.2:%u", http_server_port(net.server));
    http_server_stop(net.server, net_server_closed, &net);
    NET_WAIT(&net, net.server_closed);
    net.server_closed = false;
    struct tls_context *server = net_tls(&net, CONTROLLER);
    net_serve(&net, (struct http_server_options){.address = "0.0.0.0:0", .tls = server, .handler = whoami});
    snprintf(net.endpoint, sizeof net.endpoint, "127.0.0.2:%u", http_server_port(net.server));
    assert_non_null(strstr(ask(&net, &raw, client, NULL), "IP address mismatch"));
    raw_finish(&raw);
    tls_context_unref(server);
    tls_context_unref(client);
    net_finish(&net);
}

/* Who joins knows nothing but the fingerprint of the CA. */
static void test_pinned(void **state)
{
    struct net net;
    struct raw raw;
    char pin[PKI_FINGERPRINT_SIZE];
    struct tls_context *context;
    (void)state;
    net_init(&net);
    serve_tls(&net, TLS_CLIENT_OPTIONAL, (struct http_limits){0});
    assert_int_equal(pki_fingerprint(net.ca_pem, pin, NULL), 0);
    struct tls_identity identity = {.ca_sha256_hex = pin};
    assert_int_equal(tls_context_create(&identity, &context, NULL), 0);
    assert_string_equal(ask(&net, &raw, context, "spiffe://drover/c1/controller/"), "");
    raw_finish(&raw);
    tls_context_unref(context);
    pin[0] = pin[0] == '0' ? '1' : '0';
    assert_int_equal(tls_context_create(&identity, &context, NULL), 0);
    assert_non_null(strstr(ask(&net, &raw, context, NULL), "certificate refused"));
    raw_finish(&raw);
    tls_context_unref(context);
    identity.ca_sha256_hex = "12ab";
    assert_int_equal(tls_context_create(&identity, &context, NULL), -EINVAL);
    net_finish(&net);
}

static void test_bad_material(void **state)
{
    struct net net;
    char *certificate, *key, *other_key, *request;
    struct pki_subject subject = {.common_name = "x", .uri = HOST, .valid_days = 1};
    struct tls_context *context;
    struct error err = {0};
    (void)state;
    net_init(&net);
    tls_context_unref(net_tls(&net, NULL));
    assert_int_equal(pki_issue(net.ca_pem, net.ca_key, &subject, &certificate, &key, NULL), 0);
    assert_int_equal(pki_create_request(&other_key, &request, NULL), 0);
    struct tls_identity identities[] = {
        {.ca_pem = net.ca_pem, .certificate_pem = certificate, .key_pem = other_key},
        {.ca_pem = net.ca_pem, .certificate_pem = certificate},
        {.ca_pem = net.ca_pem, .certificate_pem = "nonsense", .key_pem = key},
        {.ca_pem = "nonsense", .certificate_pem = certificate, .key_pem = key},
        {.certificate_pem = certificate, .key_pem = key},
    };
    for (size_t i = 0; i < ARRAY_SIZE(identities); i++) {
        err.text[0] = '\0';
        assert_int_equal(tls_context_create(&identities[i], &context, &err), -EINVAL);
        assert_string_not_equal(err.text, "");
    }
    free(certificate);
    free(request);
    pki_free_secret(key);
    pki_free_secret(other_key);
    net_finish(&net);
}

/* After a reload new connections show and trust the new certificates. */
static void test_reload(void **state)
{
    struct net net;
    struct raw raw;
    char *certificate, *key;
    struct pki_subject subject = {.common_name = "x", .uri = "spiffe://drover/c1/host/8", .valid_days = 1};
    (void)state;
    net_init(&net);
    serve_tls(&net, TLS_CLIENT_OPTIONAL, (struct http_limits){0});
    struct tls_context *client = net_tls(&net, HOST);
    assert_string_equal(ask(&net, &raw, client, NULL), HOST);
    raw_finish(&raw);
    assert_int_equal(pki_issue(net.ca_pem, net.ca_key, &subject, &certificate, &key, NULL), 0);
    struct tls_identity identity = {.ca_pem = net.ca_pem, .certificate_pem = certificate, .key_pem = key};
    struct tls_identity broken = {.ca_pem = net.ca_pem, .certificate_pem = certificate, .key_pem = "x"};
    assert_int_equal(tls_context_reload(client, &broken, NULL), -EINVAL);
    assert_string_equal(ask(&net, &raw, client, NULL), HOST);
    raw_finish(&raw);
    assert_int_equal(tls_context_reload(client, &identity, NULL), 0);
    assert_string_equal(ask(&net, &raw, client, NULL), "spiffe://drover/c1/host/8");
    raw_finish(&raw);
    tls_context_unref(client);
    free(certificate);
    pki_free_secret(key);
    net_finish(&net);
}

/* Connections that never speak TLS: timed out, and only so many at once; one that does gets its turn. */
static void test_handshake_limits(void **state)
{
    struct net net;
    struct raw silent[3], raw;
    unsigned most = 0;
    (void)state;
    net_init(&net);
    serve_tls(&net, TLS_CLIENT_OPTIONAL, (struct http_limits){.handshakes_max = 2, .handshake_timeout_ms = 500});
    for (int i = 0; i < 3; i++)
        raw_connect(&net, &silent[i], NULL, NULL);
    while (!(silent[0].ended && silent[1].ended && silent[2].ended) && !net.expired) {
        uv_run(&net.loop, UV_RUN_ONCE);
        most = MAX(most, http_server_counters(net.server)->handshakes);
    }
    assert_true(most <= 2);
    assert_int_equal(http_server_counters(net.server)->accepted, 3);
    assert_int_equal(http_server_counters(net.server)->handshakes, 0);
    for (int i = 0; i < 3; i++)
        raw_finish(&silent[i]);
    for (int i = 0; i < 2; i++)
        raw_connect(&net, &silent[i], NULL, NULL);
    struct tls_context *client = net_tls(&net, HOST);
    ask_until_answered(&net, client);
    tls_context_unref(client);
    /* Plain HTTP on the TLS port is shown the door. */
    raw_connect(&net, &raw, NULL, NULL);
    raw_send(&raw, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    NET_WAIT(&net, raw.ended);
    assert_int_equal(raw_count(&raw, "HTTP"), 0);
    raw_finish(&raw);
    for (int i = 0; i < 2; i++)
        raw_finish(&silent[i]);
    net_finish(&net);
}

/* Whoever opens connections and says nothing makes the others wait, but not for long. */
static void test_silent_connections_lose_patience(void **state)
{
    struct net net;
    struct raw silent[8];
    (void)state;
    net_init(&net);
    serve_tls(&net, TLS_CLIENT_OPTIONAL, (struct http_limits){.handshakes_max = 4, .handshake_timeout_ms = 4000});
    for (size_t i = 0; i < ARRAY_SIZE(silent); i++)
        raw_connect(&net, &silent[i], NULL, NULL);
    uint64_t begin_ms = uv_now(&net.loop);
    struct tls_context *client = net_tls(&net, HOST);
    ask_until_answered(&net, client);
    assert_true(uv_now(&net.loop) - begin_ms < 2 * 4000); /* two lots that are waited for in full would take as long */
    tls_context_unref(client);
    for (size_t i = 0; i < ARRAY_SIZE(silent); i++)
        raw_finish(&silent[i]);
    net_finish(&net);
}

/* A server that stops while a connection waits to be accepted. */
static void test_stop_while_waiting(void **state)
{
    struct net net;
    struct raw silent[2];
    (void)state;
    net_init(&net);
    serve_tls(&net, TLS_CLIENT_OPTIONAL, (struct http_limits){.handshakes_max = 1});
    for (int i = 0; i < 2; i++)
        raw_connect(&net, &silent[i], NULL, NULL);
    for (int i = 0; i < 5; i++)
        uv_run(&net.loop, UV_RUN_NOWAIT);
    http_server_stop(net.server, net_server_closed, &net);
    NET_WAIT(&net, net.server_closed && silent[0].ended && silent[1].ended);
    for (int i = 0; i < 2; i++)
        raw_finish(&silent[i]);
    net_finish(&net);
}

/* A large amount both ways through TLS, with pauses, arrives whole. */
struct bulk {
    struct tls_stream *stream;
    uint64_t received, sum;
    unsigned calls;
    bool ended;
};

static void bulk_data(struct tls_stream *stream, const uint8_t *data, size_t size, void *arg)
{
    struct bulk *bulk = arg;
    for (size_t i = 0; i < size; i++)
        bulk->sum = bulk->sum * 31 + data[i];
    bulk->received += size;
    if (++bulk->calls % 7 == 0)
        tls_stream_pause(stream);
}

static void bulk_end(struct tls_stream *stream, int status, void *arg)
{
    struct bulk *bulk = arg;
    (void)status;
    bulk->ended = true;
    tls_stream_close(stream);
}

static const struct tls_stream_callbacks bulk_callbacks = {.on_data = bulk_data, .on_end = bulk_end};

static void upgrade(struct http_request *request, void *arg)
{
    struct bulk *bulk = arg;
    assert_int_equal(http_upgrade_raw(request, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: bulk\r\n\r\n",
                                      &bulk_callbacks, bulk, &bulk->stream),
                     0);
}

static void bulk_transfer(bool with_tls)
{
    struct net net;
    struct raw raw;
    struct bulk bulk = {0};
    static uint8_t block[50000];
    uint64_t sum = 0, total = 0;
    net_init(&net);
    struct tls_context *server = with_tls ? net_tls(&net, CONTROLLER) : NULL;
    net_serve(&net, (struct http_server_options){.tls = server, .handler = upgrade, .arg = &bulk});
    raw_connect(&net, &raw, server, NULL);
    /* The first bytes of the new protocol come with the request. */
    raw_send(&raw, "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: bulk\r\n\r\n");
    for (int i = 0; i < 100; i++) {
        for (size_t k = 0; k < sizeof block; k++) {
            block[k] = (uint8_t)(k * 7 + (size_t)i);
            sum = sum * 31 + block[k];
        }
        total += sizeof block;
        tls_stream_write(raw.stream, block, sizeof block);
    }
    while (bulk.received < total && !net.expired) {
        uv_run(&net.loop, UV_RUN_NOWAIT);
        if (bulk.stream != NULL)
            tls_stream_resume(bulk.stream);
    }
    assert_int_equal(bulk.received, total);
    assert_true(bulk.sum == sum);
    assert_int_equal(raw_count(&raw, "101 Switching"), 1);
    /* What is sent just before the end still arrives. */
    for (int i = 0; i < 40; i++)
        tls_stream_write(bulk.stream, block, sizeof block);
    tls_stream_finish(bulk.stream, NET_LIMIT_MS);
    NET_WAIT(&net, raw.ended);
    assert_int_equal(raw.status, UV_EOF);
    assert_int_equal(raw.got.size - (size_t)(strstr(raw_text(&raw), "\r\n\r\n") + 4 - raw_text(&raw)),
                     40 * sizeof block);
    raw_finish(&raw);
    tls_context_unref(server);
    net_finish(&net);
}

static void test_bulk_plain(void **state)
{
    (void)state;
    bulk_transfer(false);
}

static void test_bulk_tls(void **state)
{
    (void)state;
    bulk_transfer(true);
}

/* Bytes given back, twice, come again in their order and before what follows. */
struct giver {
    char all[64];
    bool gave;
};

static void giver_data(struct tls_stream *stream, const uint8_t *data, size_t size, void *arg)
{
    struct giver *giver = arg;
    if (!giver->gave) {
        giver->gave = true;
        assert_memory_equal(data, "abcdef", 6);
        tls_stream_unread(stream, data + 4, size - 4);
        tls_stream_unread(stream, data + 2, 2);
        return;
    }
    strncat(giver->all, (const char *)data, size);
}

static void giver_end(struct tls_stream *stream, int status, void *arg)
{
    (void)status, (void)arg;
    tls_stream_close(stream);
}

static void give(struct http_request *request, void *arg)
{
    static const struct tls_stream_callbacks callbacks = {.on_data = giver_data, .on_end = giver_end};
    struct tls_stream *stream;
    assert_int_equal(http_upgrade_raw(request, "HTTP/1.1 101 x\r\n\r\n", &callbacks, arg, &stream), 0);
}

static void test_unread(void **state)
{
    struct net net;
    struct raw raw;
    struct giver giver = {0};
    (void)state;
    net_init(&net);
    net_serve(&net, (struct http_server_options){.handler = give, .arg = &giver});
    raw_connect(&net, &raw, NULL, NULL);
    raw_send(&raw, "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
    NET_WAIT(&net, raw.got.size > 0);
    raw_send(&raw, "abcdef");
    NET_WAIT(&net, strlen(giver.all) == 4);
    raw_send(&raw, "g");
    NET_WAIT(&net, strlen(giver.all) == 5);
    assert_string_equal(giver.all, "cdefg");
    raw_finish(&raw);
    net_finish(&net);
}

static void test_connect_failures(void **state)
{
    static const char *const bad[] = {"", "a", "a:", ":80", "a:b", "a:70000", "::1:80", "unix"};
    struct tls_stream_options options = {0};
    struct net net;
    struct raw raw = {0};
    (void)state;
    net_init(&net);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(tls_stream_connect(&net.loop, bad[i], &options, &raw_callbacks, &raw, &raw.stream, NULL),
                         -EINVAL);
    net_serve(&net, (struct http_server_options){.handler = whoami});
    http_server_stop(net.server, net_server_closed, &net);
    NET_WAIT(&net, net.server_closed);
    raw_connect(&net, &raw, NULL, NULL); /* nobody listens there any more */
    assert_int_equal(raw.status, UV_ECONNREFUSED);
    raw_finish(&raw);
    snprintf(net.endpoint, sizeof net.endpoint, "unix:/nonexistent/socket");
    raw_connect(&net, &raw, NULL, NULL);
    assert_int_equal(raw.status, UV_ENOENT);
    raw_finish(&raw);
    /* A name that does not exist (RFC 6761), and a connection given up while it is looked up. */
    snprintf(net.endpoint, sizeof net.endpoint, "name.invalid:80");
    raw_connect(&net, &raw, NULL, NULL);
    assert_int_equal(raw.status, UV_EHOSTUNREACH);
    raw_finish(&raw);
    struct raw quit = {0};
    assert_int_equal(
        tls_stream_connect(&net.loop, "name.invalid:80", &options, &raw_callbacks, &quit, &quit.stream, NULL), 0);
    tls_stream_close(quit.stream);
    net_finish(&net);
    assert_false(quit.ended);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_certificate_content),
        cmocka_unit_test(test_requests_refused),
        cmocka_unit_test(test_save),
        cmocka_unit_test(test_identity_prefix),
        cmocka_unit_test(test_dates), cmocka_unit_test(test_several_threads), cmocka_unit_test(test_client_certificates),
        cmocka_unit_test(test_certificate_required),
        cmocka_unit_test(test_expected_server),
        cmocka_unit_test(test_pinned),
        cmocka_unit_test(test_bad_material),
        cmocka_unit_test(test_reload),
        cmocka_unit_test(test_handshake_limits),
        cmocka_unit_test(test_silent_connections_lose_patience),
        cmocka_unit_test(test_stop_while_waiting),
        cmocka_unit_test(test_bulk_plain),
        cmocka_unit_test(test_bulk_tls),
        cmocka_unit_test(test_unread),
        cmocka_unit_test(test_connect_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
