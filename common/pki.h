/* Certificates of the cluster: a P-256 CA, keys and signing requests, and certificates signed from them.
 * All in and out as PEM text in memory; the caller frees what ret_* gives (keys with pki_free_secret).
 * CA: pathlen 0. Leaf: 127-bit random serial, valid from five minutes ago (clocks of fresh machines), serverAuth and
 * clientAuth. Of a signing request only the key is taken, after its signature has proven possession.
 * Blocking but short (< 1 ms); any thread. */
#ifndef COMMON_PKI_H
#define COMMON_PKI_H

#include "common/base.h"
#include "common/error.h"

#define PKI_NAMES_MAX 32 /* DNS names, and as many addresses, in one certificate */
#define PKI_BACKDATE_SECONDS 300
#define PKI_FINGERPRINT_SIZE 65 /* 64 lower-case hex digits and a terminator */

/* What the signer puts into a certificate. Borrowed for the call. */
struct pki_subject {
    const char *common_name;      /* for people only */
    const char *uri;              /* spiffe://..., the identity; NULL: none */
    const char *const *dns_names; /* dns_count of them */
    size_t dns_count;
    const char *const *addresses; /* IPv4 or IPv6 text, address_count of them */
    size_t address_count;
    unsigned valid_days;
};

int pki_create_ca(const char *common_name, unsigned valid_days, char **ret_certificate_pem, char **ret_key_pem,
                  struct error *err);
int pki_create_request(char **ret_key_pem, char **ret_request_pem, struct error *err);
/* -EINVAL: the request is unreadable, badly signed or its key is not P-256, P-384 or Ed25519; or @subject has a
 * name that is none. */
int pki_sign_request(const char *ca_certificate_pem, const char *ca_key_pem, const char *request_pem,
                     const struct pki_subject *subject, char **ret_certificate_pem, struct error *err);
/* Key, request and certificate in one step, for the side that holds the CA. */
int pki_issue(const char *ca_certificate_pem, const char *ca_key_pem, const struct pki_subject *subject,
              char **ret_certificate_pem, char **ret_key_pem, struct error *err);

/* SHA-256 over the DER of the first certificate in @certificate_pem. */
int pki_fingerprint(const char *certificate_pem, char ret_hex[PKI_FINGERPRINT_SIZE], struct error *err);
struct pki_info {
    char uri[256]; /* the identity, "" where there is none */
    char common_name[128];
    int64_t not_before_s; /* Unix time */
    int64_t not_after_s;
};
int pki_read_info(const char *certificate_pem, struct pki_info *ret_info, struct error *err);
/* Does @certificate_pem lead to a root of @ca_pem, and is it valid at this moment? -EACCES if not. */
int pki_verify(const char *certificate_pem, const char *ca_pem, struct error *err);

/* Write a certificate (0644) or a key (0600) so that a reader sees the old or the whole new one
 * (file_write_atomic). */
int pki_save_certificate(const char *path, const char *certificate_pem, struct error *err);
int pki_save_key(const char *path, const char *key_pem, struct error *err);
/* Overwrite, then free. NULL is fine. */
void pki_free_secret(char *key_pem);

#endif
