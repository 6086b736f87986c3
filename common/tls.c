/* TLS 1.3 settings; see tls.h.
 *
 * All checks of the other side's certificate end in verify_cb: it walks the chain to the roots (or to the one root of
 * a given fingerprint), then compares the identity with what the caller expects. OpenSSL hands it one pointer per
 * SSL_CTX, and so every expected prefix has an SSL_CTX of its own, which the context keeps: there are as
 * many as this program has kinds of peers. */
#include "common/tls.h"

#include <arpa/inet.h>
#include <errno.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "common/file.h"
#include "common/list.h"

#define CHAIN_DEPTH_MAX 4

/* The parsed identity. */
struct tls_material {
    STACK_OF(X509) * roots; /* NULL: pin or system */
    X509 *certificate;      /* NULL: none */
    STACK_OF(X509) * intermediates;
    EVP_PKEY *key;
    char pin[TLS_PIN_SIZE]; /* "" = none */
    bool system_roots;
};

/* What one SSL_CTX checks. Lives as long as its context: TLS connections of libcurl point here. */
struct tls_expectation {
    struct list link;
    struct tls_context *context;
    char *prefix; /* NULL: any */
    char pin[TLS_PIN_SIZE];
    bool dates;   /* certificates have to be of this day */
    SSL_CTX *ctx; /* NULL where only somebody else's SSL_CTX uses it, or after a reload */
};

struct tls_context {
    _Atomic unsigned references, generation;
    pthread_mutex_t lock; /* of all below */
    struct tls_material material;
    struct list expectations;
};

int tls_error(struct error *err, int code, const char *what)
{
    unsigned long number = ERR_peek_last_error();
    const char *reason = number != 0 ? ERR_reason_error_string(number) : NULL;
    ERR_clear_error();
    if (reason == NULL)
        return error_set(err, code, ERROR_INVALID, "%s", what);
    return error_set(err, code, ERROR_INVALID, "%s: %s", what, reason);
}

void tls_fingerprint(const X509 *certificate, char ret_hex[TLS_PIN_SIZE])
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    ASSERT(X509_digest(certificate, EVP_sha256(), digest, &size) == 1 && size == 32);
    for (unsigned i = 0; i < size; i++)
        snprintf(ret_hex + 2 * i, 3, "%02x", digest[i]);
}

bool tls_certificate_identity(const X509 *certificate, char *buffer, size_t size)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(certificate, NID_subject_alt_name, NULL, NULL);
    unsigned uris = 0;
    buffer[0] = '\0';
    for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
        if (name->type != GEN_URI)
            continue;
        const char *uri = (const char *)ASN1_STRING_get0_data(name->d.uniformResourceIdentifier);
        size_t length = (size_t)ASN1_STRING_length(name->d.uniformResourceIdentifier);
        /* A zero byte within would let two readers see two names. */
        if (++uris == 1 && length < size && memchr(uri, '\0', length) == NULL && length > 9 &&
            memcmp(uri, "spiffe://", 9) == 0) {
            memcpy(buffer, uri, length);
            buffer[length] = '\0';
        }
    }
    GENERAL_NAMES_free(names);
    if (uris != 1)
        buffer[0] = '\0';
    return buffer[0] != '\0';
}

bool tls_peer_identity(const SSL *ssl, char *buffer, size_t size)
{
    X509 *certificate = SSL_get0_peer_certificate(ssl);
    buffer[0] = '\0';
    return certificate != NULL && SSL_get_verify_result(ssl) == X509_V_OK &&
           tls_certificate_identity(certificate, buffer, size);
}

bool tls_identity_matches(const char *identity, const char *prefix)
{
    bool open = prefix[0] != '\0' && prefix[strlen(prefix) - 1] == '/';
    if (prefix[0] == '\0')
        return false;
    for (; *prefix != '\0'; prefix++) {
        size_t segment = strcspn(identity, "/");
        if (*prefix == '*' && segment == 0)
            return false;
        if (*prefix == '*')
            identity += segment;
        else if (*identity++ != *prefix) /* a '\0' ends here: no prefix has one */
            return false;
    }
    return open ? *identity != '\0' : *identity == '\0';
}

/* --- material --- */

static void material_finish(struct tls_material *m)
{
    sk_X509_pop_free(m->roots, X509_free);
    sk_X509_pop_free(m->intermediates, X509_free);
    X509_free(m->certificate);
    EVP_PKEY_free(m->key);
    *m = (struct tls_material){0};
}

/* All certificates of @pem in their order; NULL where there is none or one is not readable. */
static STACK_OF(X509) * read_certificates(const char *pem)
{
    if (strlen(pem) > TLS_PEM_BYTES_MAX)
        return NULL;
    BIO *bio = BIO_new_mem_buf(pem, -1);
    STACK_OF(X509) *stack = sk_X509_new_null();
    X509 *certificate;
    while ((certificate = PEM_read_bio_X509(bio, NULL, NULL, NULL)) != NULL)
        sk_X509_push(stack, certificate);
    bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
    BIO_free(bio);
    if (at_end && sk_X509_num(stack) > 0) {
        ERR_clear_error();
        return stack;
    }
    sk_X509_pop_free(stack, X509_free);
    return NULL;
}

static int no_passphrase(char *buffer, int size, int writing, void *arg)
{
    (void)buffer, (void)size, (void)writing, (void)arg;
    return -1;
}

static int read_own_certificate(const struct tls_identity *identity, struct tls_material *m, struct error *err)
{
    m->intermediates = read_certificates(identity->certificate_pem);
    if (m->intermediates == NULL)
        return tls_error(err, -EINVAL, "the certificate is not readable");
    m->certificate = sk_X509_shift(m->intermediates);
    BIO *bio = BIO_new_mem_buf(identity->key_pem != NULL ? identity->key_pem : "", -1);
    m->key = PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL);
    BIO_free(bio);
    if (m->key == NULL)
        return tls_error(err, -EINVAL, "the key is not readable");
    if (X509_check_private_key(m->certificate, m->key) != 1)
        return tls_error(err, -EINVAL, "key and certificate do not belong together");
    return 0;
}

static int material_init(struct tls_material *ret_m, const struct tls_identity *identity, struct error *err)
{
    struct tls_material m = {.system_roots = identity->system_roots};
    int rc = 0;
    if (identity->ca_pem != NULL) {
        m.roots = read_certificates(identity->ca_pem);
        if (m.roots == NULL)
            rc = tls_error(err, -EINVAL, "the certificate of the authority is not readable");
    } else if (identity->ca_sha256_hex != NULL) {
        if (strlen(identity->ca_sha256_hex) != TLS_PIN_SIZE - 1)
            rc = error_set(err, -EINVAL, ERROR_INVALID, "a fingerprint has %d hex digits", TLS_PIN_SIZE - 1);
        else
            memcpy(m.pin, identity->ca_sha256_hex, TLS_PIN_SIZE);
    } else if (!identity->system_roots) {
        rc = error_set(err, -EINVAL, ERROR_INVALID, "no authority to trust is given");
    }
    if (rc == 0 && identity->certificate_pem != NULL)
        rc = read_own_certificate(identity, &m, err);
    if (rc < 0) {
        material_finish(&m);
        return rc;
    }
    *ret_m = m;
    return 0;
}

/* --- checking the other side --- */

/* Among what the other side sent, the certificate with our fingerprint becomes the only root. */
static bool trust_pinned(X509_STORE_CTX *store, const char *pin, STACK_OF(X509) * roots)
{
    STACK_OF(X509) *sent = X509_STORE_CTX_get0_untrusted(store);
    for (int i = 0; i < sk_X509_num(sent); i++) {
        char fingerprint[TLS_PIN_SIZE];
        tls_fingerprint(sk_X509_value(sent, i), fingerprint);
        if (strcasecmp(fingerprint, pin) == 0) {
            sk_X509_push(roots, sk_X509_value(sent, i));
            X509_STORE_CTX_set0_trusted_stack(store, roots);
            return true;
        }
    }
    X509_STORE_CTX_set_error(store, X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN);
    return false;
}

static int verify_cb(X509_STORE_CTX *store, void *arg)
{
    const struct tls_expectation *expected = arg;
    STACK_OF(X509) *pinned = sk_X509_new_null(); /* borrows its members */
    char identity[TLS_IDENTITY_MAX];
    bool ok = expected->pin[0] == '\0' || trust_pinned(store, expected->pin, pinned);
    /* Who belongs to a cluster is a matter of its state. By dates all of it would end in one day, and a host whose clock is wrong be cut off. */
    if (!expected->dates)
        X509_VERIFY_PARAM_set_flags(X509_STORE_CTX_get0_param(store), X509_V_FLAG_NO_CHECK_TIME);
    ok = ok && X509_verify_cert(store) == 1;
    if (ok && expected->prefix != NULL) {
        tls_certificate_identity(X509_STORE_CTX_get0_cert(store), identity, sizeof identity);
        ok = tls_identity_matches(identity, expected->prefix);
        if (!ok)
            X509_STORE_CTX_set_error(store, X509_V_ERR_APPLICATION_VERIFICATION);
    }
    sk_X509_free(pinned);
    return ok;
}

const char *tls_verify_failure(const SSL *ssl)
{
    long result = SSL_get_verify_result(ssl);
    if (result == X509_V_OK)
        return "";
    if (result == X509_V_ERR_APPLICATION_VERIFICATION)
        return "its certificate is of another identity than expected";
    return X509_verify_cert_error_string(result);
}

/* --- contexts --- */

static int set_roots(SSL_CTX *ctx, const struct tls_material *m)
{
    if (m->roots == NULL)
        return m->system_roots && SSL_CTX_set_default_verify_paths(ctx) != 1 ? -EINVAL : 0;
    X509_STORE *store = X509_STORE_new();
    for (int i = 0; i < sk_X509_num(m->roots); i++) {
        X509_STORE_add_cert(store, sk_X509_value(m->roots, i));
        /* Browsers then offer only certificates of ours, or none without asking. */
        SSL_CTX_add_client_CA(ctx, sk_X509_value(m->roots, i));
    }
    SSL_CTX_set_cert_store(ctx, store);
    return 0;
}

static int set_own_certificate(SSL_CTX *ctx, const struct tls_material *m)
{
    if (m->certificate == NULL)
        return 0;
    if (SSL_CTX_use_certificate(ctx, m->certificate) != 1 || SSL_CTX_use_PrivateKey(ctx, m->key) != 1)
        return -EINVAL;
    for (int i = 0; i < sk_X509_num(m->intermediates); i++)
        if (SSL_CTX_add1_chain_cert(ctx, sk_X509_value(m->intermediates, i)) != 1)
            return -EINVAL;
    /* Who joins knows the fingerprint of the root only, and must be shown it. */
    for (int i = 0; i < sk_X509_num(m->roots); i++)
        if (X509_check_issued(sk_X509_value(m->roots, i), m->certificate) == X509_V_OK &&
            SSL_CTX_add1_chain_cert(ctx, sk_X509_value(m->roots, i)) != 1)
            return -EINVAL;
    return 0;
}

static int fill_ctx(SSL_CTX *ctx, const struct tls_material *m, struct tls_expectation *expected)
{
    SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
    SSL_CTX_set_mode(ctx,
                     SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_verify_depth(ctx, CHAIN_DEPTH_MAX);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    /* No resumption: each connection proves its certificate anew, so that a removed peer stays out. */
    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION);
    SSL_CTX_set_num_tickets(ctx, 0);
    SSL_CTX_set_cert_verify_callback(ctx, verify_cb, expected);
    int rc = set_roots(ctx, m);
    return rc < 0 ? rc : set_own_certificate(ctx, m);
}

static struct tls_expectation *find_expectation(struct tls_context *context, const char *prefix)
{
    LIST_FOREACH(link, &context->expectations)
    {
        struct tls_expectation *e = LIST_ENTRY(link, struct tls_expectation, link);
        bool same = prefix == NULL || e->prefix == NULL ? prefix == e->prefix : strcmp(prefix, e->prefix) == 0;
        if (same)
            return e;
    }
    struct tls_expectation *e = NEW(struct tls_expectation);
    e->context = context;
    e->prefix = prefix != NULL ? xstrdup(prefix) : NULL;
    memcpy(e->pin, context->material.pin, sizeof e->pin);
    e->dates = context->material.system_roots;
    list_append(&context->expectations, &e->link);
    return e;
}

/* The SSL_CTX that expects @prefix of the other side, made at first use; a count of it is the caller's. NULL: out of memory. */
static SSL_CTX *expecting_ctx(struct tls_context *context, const char *prefix)
{
    pthread_mutex_lock(&context->lock);
    struct tls_expectation *e = find_expectation(context, prefix);
    SSL_CTX *ctx = e->ctx != NULL ? e->ctx : SSL_CTX_new(TLS_method());
    if (e->ctx == NULL && ctx != NULL && fill_ctx(ctx, &context->material, e) < 0) {
        SSL_CTX_free(ctx);
        ctx = NULL;
    }
    e->ctx = ctx;
    if (ctx != NULL)
        SSL_CTX_up_ref(ctx);
    pthread_mutex_unlock(&context->lock);
    return ctx;
}

int tls_context_create(const struct tls_identity *identity, struct tls_context **ret_context, struct error *err)
{
    struct tls_material material;
    int rc = material_init(&material, identity, err);
    if (rc < 0)
        return rc;
    struct tls_context *context = NEW(struct tls_context);
    atomic_init(&context->references, 1);
    atomic_init(&context->generation, 0);
    pthread_mutex_init(&context->lock, NULL);
    context->material = material;
    list_init(&context->expectations);
    SSL_CTX *ctx = expecting_ctx(context, NULL);
    SSL_CTX_free(ctx);
    if (ctx == NULL) {
        tls_context_unref(context);
        return tls_error(err, -EINVAL, "the certificate cannot be used");
    }
    *ret_context = context;
    return 0;
}

int tls_context_reload(struct tls_context *context, const struct tls_identity *identity, struct error *err)
{
    struct tls_context *fresh;
    int rc = tls_context_create(identity, &fresh, err);
    if (rc < 0)
        return rc;
    pthread_mutex_lock(&context->lock);
    struct tls_material old = context->material;
    context->material = fresh->material;
    fresh->material = old;
    atomic_fetch_add(&context->generation, 1);
    LIST_FOREACH(link, &context->expectations)
    {
        struct tls_expectation *e = LIST_ENTRY(link, struct tls_expectation, link);
        SSL_CTX_free(e->ctx); /* sessions that stand hold their own count */
        e->ctx = NULL;
        memcpy(e->pin, context->material.pin, sizeof e->pin);
        e->dates = context->material.system_roots;
    }
    pthread_mutex_unlock(&context->lock);
    tls_context_unref(fresh);
    return 0;
}

unsigned tls_context_generation(const struct tls_context *context)
{
    return atomic_load(&context->generation);
}

static int read_pem(const char *path, char **ret_pem, struct error *err)
{
    return path == NULL ? 0 : file_read(path, TLS_PEM_BYTES_MAX, ret_pem, NULL, err);
}

int tls_context_load(const char *ca_path, const char *certificate_path, const char *key_path,
                     struct tls_context **ret_context, struct error *err)
{
    char *ca = NULL, *certificate = NULL, *key = NULL;
    int rc = read_pem(ca_path, &ca, err);
    if (rc == 0)
        rc = read_pem(certificate_path, &certificate, err);
    if (rc == 0)
        rc = read_pem(key_path, &key, err);
    if (rc == 0) {
        struct tls_identity identity = {
            .ca_pem = ca, .system_roots = ca == NULL, .certificate_pem = certificate, .key_pem = key};
        rc = tls_context_create(&identity, ret_context, err);
    }
    free(ca);
    free(certificate);
    if (key != NULL)
        OPENSSL_cleanse(key, strlen(key));
    free(key);
    return rc;
}

struct tls_context *tls_context_ref(struct tls_context *context)
{
    atomic_fetch_add(&context->references, 1);
    return context;
}

void tls_context_unref(struct tls_context *context)
{
    if (context == NULL || atomic_fetch_sub(&context->references, 1) > 1)
        return;
    LIST_FOREACH_SAFE(link, &context->expectations)
    {
        struct tls_expectation *e = LIST_ENTRY(link, struct tls_expectation, link);
        SSL_CTX_free(e->ctx);
        free(e->prefix);
        free(e);
    }
    material_finish(&context->material);
    pthread_mutex_destroy(&context->lock);
    free(context);
}

SSL *tls_context_server_session(struct tls_context *context, enum tls_client_check check)
{
    SSL_CTX *ctx = expecting_ctx(context, NULL);
    SSL *ssl = ctx != NULL ? SSL_new(ctx) : NULL;
    SSL_CTX_free(ctx);
    if (ssl == NULL)
        return NULL;
    SSL_set_verify(ssl, SSL_VERIFY_PEER | (check == TLS_CLIENT_REQUIRED ? SSL_VERIFY_FAIL_IF_NO_PEER_CERT : 0), NULL);
    SSL_set_accept_state(ssl);
    return ssl;
}

/* RFC 9525: the name the user gave must be in the certificate; addresses as addresses. */
static bool expect_host(SSL *ssl, const char *host)
{
    unsigned char address[16];
    if (inet_pton(AF_INET, host, address) == 1 || inet_pton(AF_INET6, host, address) == 1)
        return X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), host) == 1;
    SSL_set_hostflags(ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    return SSL_set1_host(ssl, host) == 1 && SSL_set_tlsext_host_name(ssl, host) == 1;
}

SSL *tls_context_client_session(struct tls_context *context, const char *host, const char *peer_prefix)
{
    SSL_CTX *ctx = expecting_ctx(context, peer_prefix);
    SSL *ssl = ctx != NULL ? SSL_new(ctx) : NULL;
    SSL_CTX_free(ctx);
    if (ssl == NULL)
        return NULL;
    SSL_set_verify(ssl, SSL_VERIFY_PEER, NULL);
    SSL_set_connect_state(ssl);
    if (peer_prefix == NULL && host != NULL && !expect_host(ssl, host)) {
        SSL_free(ssl);
        return NULL;
    }
    return ssl;
}

int tls_context_apply(struct tls_context *context, SSL_CTX *ctx, const char *peer_prefix)
{
    pthread_mutex_lock(&context->lock);
    int rc = fill_ctx(ctx, &context->material, find_expectation(context, peer_prefix));
    pthread_mutex_unlock(&context->lock);
    return rc;
}
