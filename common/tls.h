/* TLS 1.3 settings and the name of the peer. One struct tls_context serves servers, clients, http_client and
 * http_proxy alike: it holds this program's certificate and key and the roots it trusts.
 *
 * Identity: every certificate carries one SAN URI "spiffe://..." (the SPIFFE X.509-SVID rule: exactly one URI).
 * Authorisation is by that URI, never by CN. Host names are checked only where no identity is expected.
 *
 * Dates of certificates are looked at only where this machine's own roots are trusted. Under a root that was given, who
 * belongs to the cluster is a matter of its state: by dates it would end as a whole on one day, and a host whose clock is
 * wrong would be cut off with all its leases.
 *
 * Ownership: contexts are counted; each stream holds one count. Any thread. */
#ifndef COMMON_TLS_H
#define COMMON_TLS_H

#include <openssl/ssl.h>

#include "common/base.h"
#include "common/error.h"

#define TLS_IDENTITY_MAX 256 /* bytes of a peer's URI, terminator included */
#define TLS_PIN_SIZE 65      /* 64 hex digits of SHA-256 and a terminator */
#define TLS_PEM_BYTES_MAX (256 * 1024)

/* PEM text; all borrowed for the call. */
struct tls_identity {
    const char *ca_pem; /* one or more roots (two during a change of CA); NULL: see the next two */
    /* ca_pem NULL: trust the one root of this fingerprint that the server sends (join) */
    const char *ca_sha256_hex;
    bool system_roots;           /* ca_pem NULL: trust what this machine trusts (image downloads, S3) */
    const char *certificate_pem; /* ours, then intermediates; NULL: a client without a certificate */
    const char *key_pem;         /* NULL together with certificate_pem */
};

/* What a server asks of its clients. */
enum tls_client_check {
    TLS_CLIENT_OPTIONAL, /* asked for; none is fine (peer ""), a bad one ends the handshake */
    TLS_CLIENT_REQUIRED,
};

struct tls_context;

/* -EINVAL with words where the PEM is unreadable or key and certificate do not belong together. */
int tls_context_create(const struct tls_identity *identity, struct tls_context **ret_context, struct error *err);
/* The same from files; @ca_path, or @certificate_path with @key_path, may be NULL. */
int tls_context_load(const char *ca_path, const char *certificate_path, const char *key_path,
                     struct tls_context **ret_context, struct error *err);
/* Connections made from now on use @identity; those that stand are untouched. On failure nothing changes. */
int tls_context_reload(struct tls_context *context, const struct tls_identity *identity, struct error *err);
struct tls_context *tls_context_ref(struct tls_context *context);
void tls_context_unref(struct tls_context *context); /* NULL is fine */

/* For the streams and http_client. A new SSL in accept or connect state. @host: name or address to check and send
 * as SNI, NULL = none; @peer_prefix: what the server's URI must begin with, NULL = host check instead. */
SSL *tls_context_server_session(struct tls_context *context, enum tls_client_check check);
SSL *tls_context_client_session(struct tls_context *context, const char *host, const char *peer_prefix);
/* Put roots, certificate, key and @peer_prefix into somebody else's SSL_CTX (libcurl's), which must go before
 * @context does. 0 or negative errno. */
int tls_context_apply(struct tls_context *context, SSL_CTX *ctx, const char *peer_prefix);

/* The URI of the peer's verified certificate; false and "" where there is none or not exactly one. */
bool tls_peer_identity(const SSL *ssl, char *buffer, size_t size);
/* Of any certificate. */
bool tls_certificate_identity(const X509 *certificate, char *buffer, size_t size);
/* SHA-256 of its DER, 64 lower-case hex digits. */
void tls_fingerprint(const X509 *certificate, char ret_hex[TLS_PIN_SIZE]);
/* Does @identity belong under @prefix? "spiffe://drover/c1/host/" owns ".../host/7"; a prefix without a trailing
 * slash must match whole. A '*' stands for the rest of one segment, which must not be empty:
 * "spiffe://drover/<any>/controller/" written with one is for a newcomer that does not know the cluster yet. */
bool tls_identity_matches(const char *identity, const char *prefix);
/* Changes with each reload: connections of one context and generation may be shared. */
unsigned tls_context_generation(const struct tls_context *context);
/* Why the other side's certificate was refused, in words; "" where it was not. */
const char *tls_verify_failure(const SSL *ssl);
/* The newest OpenSSL error in words, and the error queue emptied. Returns @code. */
int tls_error(struct error *err, int code, const char *what);

#endif
