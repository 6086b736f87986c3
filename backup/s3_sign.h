/* AWS Signature Version 4 of a request to S3, in its Authorization header. Done here rather than by libcurl,
 * whose 7.88 leaves out x-amz-content-sha256 and signs unsorted queries and many characters wrongly. Pure; any
 * thread. */
#ifndef BACKUP_S3_SIGN_H
#define BACKUP_S3_SIGN_H

#include <time.h>

#include "common/bytes.h"

enum { S3_SHA256_TEXT_BYTES = 65, S3_QUERY_MAX = 8 };

struct s3_query {
    const char *name, *value; /* not encoded */
};
struct s3_request {
    const char *method;
    const char *host;                    /* as in the Host header: with its port where that is not the default */
    const char *path;                    /* "/bucket/key", not encoded */
    struct s3_query query[S3_QUERY_MAX]; /* in any order */
    unsigned query_count;
    const char *payload_sha256; /* 64 digits */
    time_t now;
};
struct s3_credentials {
    const char *access_key, *secret_key, *region;
    const char *service; /* NULL: "s3" */
};

/* @size bytes as 64 lower-case digits; returns @ret_text. */
const char *s3_sha256(const void *data, size_t size, char ret_text[S3_SHA256_TEXT_BYTES]);
/* RFC 3986 with '/' left as it is where @slash. */
void s3_encode(struct bytes_writer *out, const char *text, bool slash);
/* The query, sorted and encoded, without '?'. */
void s3_query_encode(const struct s3_request *request, struct bytes_writer *out);
/* "20260131T120000Z" */
const char *s3_date(time_t now, char ret_text[17]);
/* The value of the Authorization header. Signed are host, x-amz-content-sha256 and x-amz-date. */
void s3_authorization(const struct s3_request *request, const struct s3_credentials *credentials,
                      struct bytes_writer *out);

#endif
