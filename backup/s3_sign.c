/* AWS Signature Version 4: see s3_sign.h. */
#include "backup/s3_sign.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <string.h>

#include "backup/chunk_hash.h"

#define ALGORITHM "AWS4-HMAC-SHA256"
#define SIGNED "host;x-amz-content-sha256;x-amz-date"

const char *s3_sha256(const void *data, size_t size, char ret_text[S3_SHA256_TEXT_BYTES])
{
    uint8_t digest[32];
    ASSERT(EVP_Digest(data, size, digest, NULL, EVP_sha256(), NULL) == 1);
    return chunk_hex_text(digest, sizeof digest, ret_text);
}

void s3_encode(struct bytes_writer *out, const char *text, bool slash)
{
    for (const unsigned char *c = (const unsigned char *)text; *c != '\0'; c++) {
        bool plain = (*c >= 'A' && *c <= 'Z') || (*c >= 'a' && *c <= 'z') || (*c >= '0' && *c <= '9') || *c == '-' ||
                     *c == '_' || *c == '.' || *c == '~' || (slash && *c == '/');
        if (plain)
            bytes_put_u8(out, *c);
        else
            bytes_put_format(out, "%%%02X", *c);
    }
}

static int query_order(const void *a, const void *b)
{
    int order = strcmp(((const struct s3_query *)a)->name, ((const struct s3_query *)b)->name);
    return order != 0 ? order : strcmp(((const struct s3_query *)a)->value, ((const struct s3_query *)b)->value);
}

void s3_query_encode(const struct s3_request *request, struct bytes_writer *out)
{
    struct s3_query sorted[S3_QUERY_MAX];
    memcpy(sorted, request->query, sizeof sorted);
    qsort(sorted, request->query_count, sizeof *sorted, query_order);
    for (unsigned i = 0; i < request->query_count; i++) {
        bytes_put_text(out, i > 0 ? "&" : "");
        s3_encode(out, sorted[i].name, false);
        bytes_put_text(out, "=");
        s3_encode(out, sorted[i].value, false);
    }
}

const char *s3_date(time_t now, char ret_text[17])
{
    struct tm tm;
    gmtime_r(&now, &tm);
    strftime(ret_text, 17, "%Y%m%dT%H%M%SZ", &tm);
    return ret_text;
}

static void hmac(const void *key, size_t key_size, const char *text, size_t size, uint8_t ret[32])
{
    ASSERT(HMAC(EVP_sha256(), key, (int)key_size, (const unsigned char *)text, size, ret, NULL) != NULL);
}

static void canonical_request(const struct s3_request *r, const char *date, struct bytes_writer *out)
{
    bytes_put_format(out, "%s\n", r->method);
    s3_encode(out, r->path, true);
    bytes_put_text(out, "\n");
    s3_query_encode(r, out);
    bytes_put_format(out, "\nhost:%s\nx-amz-content-sha256:%s\nx-amz-date:%s\n\n" SIGNED "\n%s", r->host,
                     r->payload_sha256, date, r->payload_sha256);
}

void s3_authorization(const struct s3_request *request, const struct s3_credentials *credentials,
                      struct bytes_writer *out)
{
    char date[17], day[9], hash[S3_SHA256_TEXT_BYTES], signature[65];
    uint8_t key[32];
    const char *service = credentials->service != NULL ? credentials->service : "s3";
    struct bytes_writer canonical = {0}, secret = {0}, sign = {0};
    s3_date(request->now, date);
    snprintf(day, sizeof day, "%.8s", date);
    canonical_request(request, date, &canonical);
    s3_sha256(canonical.data, canonical.size, hash);
    bytes_put_format(&sign, ALGORITHM "\n%s\n%s/%s/%s/aws4_request\n%s", date, day, credentials->region, service,
                     hash);
    bytes_put_format(&secret, "AWS4%s", credentials->secret_key);
    hmac(secret.data, secret.size, day, strlen(day), key);
    hmac(key, sizeof key, credentials->region, strlen(credentials->region), key);
    hmac(key, sizeof key, service, strlen(service), key);
    hmac(key, sizeof key, "aws4_request", strlen("aws4_request"), key);
    hmac(key, sizeof key, (const char *)sign.data, sign.size, key);
    bytes_put_format(out, ALGORITHM " Credential=%s/%s/%s/%s/aws4_request, SignedHeaders=" SIGNED ", Signature=%s",
                     credentials->access_key, day, credentials->region, service,
                     chunk_hex_text(key, sizeof key, signature));
    memset(secret.data, 0, secret.size);
    bytes_writer_finish(&canonical);
    bytes_writer_finish(&secret);
    bytes_writer_finish(&sign);
}
