/* Certificates of the cluster with libcrypto alone; see pki.h. */
#include "common/pki.h"

#include <arpa/inet.h>
#include <errno.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <string.h>
#include <time.h>

#include "common/bytes.h"
#include "common/file.h"
#include "common/tls.h"

#define SERIAL_BYTES 16
#define SECONDS_PER_DAY 86400L

#define DEFINE_CLEANUP(type, function)                                                                               \
    static void cleanup_##type(type **p)                                                                             \
    {                                                                                                                \
        function(*p);                                                                                                \
    }
DEFINE_CLEANUP(BIO, BIO_free_all)
DEFINE_CLEANUP(EVP_PKEY, EVP_PKEY_free)
DEFINE_CLEANUP(X509, X509_free)
DEFINE_CLEANUP(X509_REQ, X509_REQ_free)
DEFINE_CLEANUP(X509_STORE, X509_STORE_free)
DEFINE_CLEANUP(X509_STORE_CTX, X509_STORE_CTX_free)
#define CLEANUP_OF(type) CLEANUP(cleanup_##type) type

static BIO *text_bio(const char *pem)
{
    size_t size = strlen(pem);
    return size <= TLS_PEM_BYTES_MAX ? BIO_new_mem_buf(pem, (int)size) : NULL;
}

static X509 *read_certificate(const char *pem)
{
    CLEANUP_OF(BIO) *bio = text_bio(pem);
    return bio != NULL ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;
}

/* Never asks on the terminal for a passphrase. */
static int no_passphrase(char *buffer, int size, int writing, void *arg)
{
    (void)buffer, (void)size, (void)writing, (void)arg;
    return -1;
}

static EVP_PKEY *read_key(const char *pem)
{
    CLEANUP_OF(BIO) *bio = text_bio(pem);
    return bio != NULL ? PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL) : NULL;
}

static char *take_text(BIO *bio)
{
    char *data = NULL;
    long size = BIO_get_mem_data(bio, &data);
    char *text = xcalloc(1, (size_t)size + 1);
    memcpy(text, data, (size_t)size);
    return text;
}

static char *certificate_to_pem(X509 *certificate)
{
    CLEANUP_OF(BIO) *bio = BIO_new(BIO_s_mem());
    if (bio == NULL || PEM_write_bio_X509(bio, certificate) != 1)
        return NULL;
    return take_text(bio);
}

static char *key_to_pem(EVP_PKEY *key)
{
    CLEANUP_OF(BIO) *bio = BIO_new(BIO_s_secmem());
    if (bio == NULL || PEM_write_bio_PKCS8PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL) != 1)
        return NULL;
    return take_text(bio);
}

/* RFC 5280 §4.1.2.2: positive, at most 20 octets, unpredictable. */
static bool set_serial(X509 *certificate)
{
    unsigned char bytes[SERIAL_BYTES];
    if (RAND_bytes(bytes, sizeof bytes) != 1)
        return false;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    BIGNUM *number = BN_bin2bn(bytes, sizeof bytes, NULL);
    bool ok = number != NULL && BN_to_ASN1_INTEGER(number, X509_get_serialNumber(certificate)) != NULL;
    BN_free(number);
    return ok;
}

static bool add_extension(X509 *certificate, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX context;
    X509V3_set_ctx(&context, issuer, certificate, NULL, NULL, 0);
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &context, nid, value);
    bool ok = extension != NULL && X509_add_ext(certificate, extension, -1) == 1;
    X509_EXTENSION_free(extension);
    return ok;
}

static bool set_name(X509_NAME *name, const char *common_name)
{
    return X509_NAME_add_entry_by_NID(name, NID_commonName, MBSTRING_UTF8, (const unsigned char *)common_name, -1, -1,
                                      0) == 1;
}

/* What CA and leaf have in common: version, serial, validity, subject, key. */
static bool begin_certificate(X509 *certificate, const char *common_name, unsigned valid_days, EVP_PKEY *key)
{
    return X509_set_version(certificate, X509_VERSION_3) == 1 && set_serial(certificate) &&
           X509_gmtime_adj(X509_getm_notBefore(certificate), -PKI_BACKDATE_SECONDS) != NULL &&
           X509_time_adj_ex(X509_getm_notAfter(certificate), (int)valid_days, 0, NULL) != NULL &&
           set_name(X509_get_subject_name(certificate), common_name) && X509_set_pubkey(certificate, key) == 1;
}

int pki_create_ca(const char *common_name, unsigned valid_days, char **ret_certificate_pem, char **ret_key_pem,
                  struct error *err)
{
    CLEANUP_OF(EVP_PKEY) *key = EVP_EC_gen("P-256");
    CLEANUP_OF(X509) *ca = X509_new();
    if (key == NULL || ca == NULL || !begin_certificate(ca, common_name, valid_days, key) ||
        X509_set_issuer_name(ca, X509_get_subject_name(ca)) != 1 ||
        !add_extension(ca, ca, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") ||
        !add_extension(ca, ca, NID_key_usage, "critical,keyCertSign,cRLSign") ||
        !add_extension(ca, ca, NID_subject_key_identifier, "hash") || X509_sign(ca, key, EVP_sha256()) == 0)
        return tls_error(err, -EINVAL, "cannot create a certificate authority");
    char *certificate_pem = certificate_to_pem(ca), *key_pem = key_to_pem(key);
    if (certificate_pem == NULL || key_pem == NULL) {
        free(certificate_pem);
        pki_free_secret(key_pem);
        return tls_error(err, -ENOMEM, "cannot write a certificate authority as PEM");
    }
    *ret_certificate_pem = certificate_pem;
    *ret_key_pem = key_pem;
    return 0;
}

int pki_create_request(char **ret_key_pem, char **ret_request_pem, struct error *err)
{
    CLEANUP_OF(EVP_PKEY) *key = EVP_EC_gen("P-256");
    CLEANUP_OF(X509_REQ) *request = X509_REQ_new();
    CLEANUP_OF(BIO) *bio = BIO_new(BIO_s_mem());
    /* No subject: the signer decides what we are. */
    if (key == NULL || request == NULL || bio == NULL || X509_REQ_set_version(request, X509_REQ_VERSION_1) != 1 ||
        X509_REQ_set_pubkey(request, key) != 1 || X509_REQ_sign(request, key, EVP_sha256()) == 0 ||
        PEM_write_bio_X509_REQ(bio, request) != 1)
        return tls_error(err, -EINVAL, "cannot create a certificate request");
    char *key_pem = key_to_pem(key);
    if (key_pem == NULL)
        return tls_error(err, -ENOMEM, "cannot write a key as PEM");
    *ret_key_pem = key_pem;
    *ret_request_pem = take_text(bio);
    return 0;
}

/* The key of a request that proves to be the requester's. Caller frees; NULL with words. */
static EVP_PKEY *request_key(const char *request_pem, struct error *err)
{
    CLEANUP_OF(BIO) *bio = text_bio(request_pem);
    CLEANUP_OF(X509_REQ) *request = bio != NULL ? PEM_read_bio_X509_REQ(bio, NULL, NULL, NULL) : NULL;
    EVP_PKEY *key = request != NULL ? X509_REQ_get_pubkey(request) : NULL;
    if (key == NULL) {
        tls_error(err, -EINVAL, "the certificate request is not readable");
        return NULL;
    }
    char group[64] = "";
    EVP_PKEY_get_utf8_string_param(key, "group", group, sizeof group, NULL);
    bool strong =
        strcmp(group, "prime256v1") == 0 || strcmp(group, "secp384r1") == 0 || EVP_PKEY_is_a(key, "ED25519") == 1;
    if (!strong || X509_REQ_verify(request, key) != 1) {
        tls_error(err, -EINVAL,
                  strong ? "the certificate request is not signed by its own key"
                         : "the key of the certificate request is neither P-256, P-384 nor Ed25519");
        EVP_PKEY_free(key);
        return NULL;
    }
    return key;
}

/* Names go into OpenSSL's comma-separated extension syntax; what could break out of it is refused. */
static bool is_dns_name(const char *name)
{
    size_t length = strlen(name);
    return length > 0 && length <= 253 &&
           strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-_*") == length;
}

static bool is_uri(const char *uri)
{
    size_t length = strlen(uri);
    return length > 0 && length < TLS_IDENTITY_MAX &&
           strspn(uri, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-_~:/%") == length;
}

static bool is_address(const char *text)
{
    unsigned char address[16];
    return inet_pton(AF_INET, text, address) == 1 || inet_pton(AF_INET6, text, address) == 1;
}

/* "URI:...,DNS:...,IP:..." for the subject; -EINVAL with words for a name that is none. */
static int alternative_names(const struct pki_subject *subject, struct bytes_writer *out, struct error *err)
{
    if (subject->dns_count > PKI_NAMES_MAX || subject->address_count > PKI_NAMES_MAX)
        return error_set(err, -EINVAL, ERROR_INVALID, "a certificate takes at most %d names", PKI_NAMES_MAX);
    if (subject->uri != NULL) {
        if (!is_uri(subject->uri))
            return error_set(err, -EINVAL, ERROR_INVALID, "the identity is not a plain URI");
        bytes_put_format(out, "URI:%s,", subject->uri);
    }
    for (size_t i = 0; i < subject->dns_count; i++) {
        if (!is_dns_name(subject->dns_names[i]))
            return error_set(err, -EINVAL, ERROR_INVALID, "name %zu for the certificate is not a DNS name", i + 1);
        bytes_put_format(out, "DNS:%s,", subject->dns_names[i]);
    }
    for (size_t i = 0; i < subject->address_count; i++) {
        if (!is_address(subject->addresses[i]))
            return error_set(err, -EINVAL, ERROR_INVALID, "address %zu for the certificate is not an IP address",
                             i + 1);
        bytes_put_format(out, "IP:%s,", subject->addresses[i]);
    }
    if (out->size > 0)
        out->data[out->size - 1] = '\0'; /* the last comma */
    return 0;
}

static int sign_key(X509 *ca, EVP_PKEY *ca_key, EVP_PKEY *key, const struct pki_subject *subject,
                    char **ret_certificate_pem, struct error *err)
{
    struct bytes_writer names = {0};
    CLEANUP_OF(X509) *leaf = X509_new();
    int rc = alternative_names(subject, &names, err);
    if (rc < 0)
        goto out;
    rc = -EINVAL;
    if (leaf == NULL || !begin_certificate(leaf, subject->common_name, subject->valid_days, key) ||
        X509_set_issuer_name(leaf, X509_get_subject_name(ca)) != 1 ||
        !add_extension(leaf, ca, NID_basic_constraints, "critical,CA:FALSE") ||
        !add_extension(leaf, ca, NID_key_usage, "critical,digitalSignature") ||
        !add_extension(leaf, ca, NID_ext_key_usage, "serverAuth,clientAuth") ||
        !add_extension(leaf, ca, NID_authority_key_identifier, "keyid") ||
        (names.size > 0 && !add_extension(leaf, ca, NID_subject_alt_name, (const char *)names.data)) ||
        X509_sign(leaf, ca_key, EVP_sha256()) == 0) {
        tls_error(err, rc, "cannot sign the certificate");
        goto out;
    }
    char *pem = certificate_to_pem(leaf);
    if (pem == NULL) {
        rc = tls_error(err, -ENOMEM, "cannot write the certificate as PEM");
        goto out;
    }
    *ret_certificate_pem = pem;
    rc = 0;
out:
    bytes_writer_finish(&names);
    return rc;
}

int pki_sign_request(const char *ca_certificate_pem, const char *ca_key_pem, const char *request_pem,
                     const struct pki_subject *subject, char **ret_certificate_pem, struct error *err)
{
    CLEANUP_OF(X509) *ca = read_certificate(ca_certificate_pem);
    CLEANUP_OF(EVP_PKEY) *ca_key = read_key(ca_key_pem);
    if (ca == NULL || ca_key == NULL || X509_check_private_key(ca, ca_key) != 1)
        return tls_error(err, -EINVAL, "the certificate authority's certificate and key are not a pair");
    if (X509_check_ca(ca) != 1)
        return error_set(err, -EINVAL, ERROR_INVALID, "the certificate to sign with is not that of an authority");
    CLEANUP_OF(EVP_PKEY) *key = request_key(request_pem, err);
    if (key == NULL)
        return -EINVAL;
    return sign_key(ca, ca_key, key, subject, ret_certificate_pem, err);
}

int pki_issue(const char *ca_certificate_pem, const char *ca_key_pem, const struct pki_subject *subject,
              char **ret_certificate_pem, char **ret_key_pem, struct error *err)
{
    char *key_pem = NULL, *request_pem = NULL;
    int rc = pki_create_request(&key_pem, &request_pem, err);
    if (rc == 0)
        rc = pki_sign_request(ca_certificate_pem, ca_key_pem, request_pem, subject, ret_certificate_pem, err);
    if (rc == 0)
        *ret_key_pem = TAKE_PTR(key_pem);
    pki_free_secret(key_pem);
    free(request_pem);
    return rc;
}

int pki_fingerprint(const char *certificate_pem, char ret_hex[PKI_FINGERPRINT_SIZE], struct error *err)
{
    CLEANUP_OF(X509) *certificate = read_certificate(certificate_pem);
    if (certificate == NULL)
        return tls_error(err, -EINVAL, "the certificate is not readable");
    tls_fingerprint(certificate, ret_hex);
    return 0;
}

static int64_t unix_time(const ASN1_TIME *when)
{
    struct tm tm = {0};
    return ASN1_TIME_to_tm(when, &tm) == 1 ? (int64_t)timegm(&tm) : 0;
}

int pki_read_info(const char *certificate_pem, struct pki_info *ret_info, struct error *err)
{
    CLEANUP_OF(X509) *certificate = read_certificate(certificate_pem);
    if (certificate == NULL)
        return tls_error(err, -EINVAL, "the certificate is not readable");
    struct pki_info info = {0};
    tls_certificate_identity(certificate, info.uri, sizeof info.uri);
    X509_NAME_get_text_by_NID(X509_get_subject_name(certificate), NID_commonName, info.common_name,
                              sizeof info.common_name);
    info.not_before_s = unix_time(X509_get0_notBefore(certificate));
    info.not_after_s = unix_time(X509_get0_notAfter(certificate));
    *ret_info = info;
    return 0;
}

/* Every certificate of @pem becomes a root of @store; how many. */
static unsigned add_roots(X509_STORE *store, const char *pem)
{
    unsigned count = 0;
    CLEANUP_OF(BIO) *bio = text_bio(pem);
    for (X509 *root; bio != NULL && (root = PEM_read_bio_X509(bio, NULL, NULL, NULL)) != NULL; X509_free(root))
        count += X509_STORE_add_cert(store, root) == 1;
    ERR_clear_error(); /* reading ends with "no start line" */
    return count;
}

int pki_verify(const char *certificate_pem, const char *ca_pem, struct error *err)
{
    CLEANUP_OF(X509) *certificate = read_certificate(certificate_pem);
    CLEANUP_OF(X509_STORE) *store = X509_STORE_new();
    CLEANUP_OF(X509_STORE_CTX) *context = X509_STORE_CTX_new();
    if (certificate == NULL || store == NULL || context == NULL || add_roots(store, ca_pem) == 0 ||
        X509_STORE_CTX_init(context, store, certificate, NULL) != 1)
        return tls_error(err, -EINVAL, "the certificate or its authority is not readable");
    X509_VERIFY_PARAM_set_flags(X509_STORE_CTX_get0_param(context), X509_V_FLAG_NO_CHECK_TIME); /* tls.h */
    if (X509_verify_cert(context) == 1)
        return 0;
    ERR_clear_error();
    return error_set(err, -EACCES, ERROR_FORBIDDEN, "the certificate is not valid: %s",
                     X509_verify_cert_error_string(X509_STORE_CTX_get_error(context)));
}

int pki_save_certificate(const char *path, const char *certificate_pem, struct error *err)
{
    return file_write_atomic(path, certificate_pem, strlen(certificate_pem), 0644, err);
}

int pki_save_key(const char *path, const char *key_pem, struct error *err)
{
    return file_write_atomic(path, key_pem, strlen(key_pem), 0600, err);
}

void pki_free_secret(char *key_pem)
{
    if (key_pem != NULL)
        OPENSSL_cleanse(key_pem, strlen(key_pem));
    free(key_pem);
}
