/* Strict HTTP/1.1 parsing (RFC 9110, RFC 9112): heads of requests and answers, chunked bodies, small text helpers.
 * Pure: no allocation, no I/O. Where the RFC lets a recipient be lenient this one refuses: two readers that
 * disagree about a lenient case are how requests are smuggled.
 *
 * Refused: bare LF or CR, NUL and controls, folded lines, blank before the colon, absolute-form targets,
 * fragments, other than exactly one Host (1.1), repeated or signed Content-Length, any Transfer-Encoding but
 * "chunked", both together, chunk extensions, trailers beyond a limit, methods that are not known here. */
#ifndef COMMON_HTTP_PARSE_H
#define COMMON_HTTP_PARSE_H

#include <sys/types.h>

#include "common/base.h"

#define HTTP_HEAD_BYTES_MAX (16 * 1024)
#define HTTP_HEADERS_MAX 64

enum http_method {
    HTTP_GET,
    HTTP_HEAD,
    HTTP_POST,
    HTTP_PUT,
    HTTP_PATCH,
    HTTP_DELETE,
    HTTP_OPTIONS,
    HTTP_METHOD_COUNT,
};

/* Both point into the head's own buffer and are terminated. */
struct http_header {
    const char *name, *value;
};

struct http_head {
    enum http_method method;  /* request */
    const char *path, *query; /* request; query "" where there is none */
    int status;               /* answer */
    int minor_version;        /* of HTTP/1.x: 0 or 1 */
    struct http_header headers[HTTP_HEADERS_MAX];
    size_t header_count;
    uint64_t content_length; /* if has_length */
    bool has_length, chunked;
    bool keep_alive;      /* the other side will take more on this connection */
    bool upgrade;         /* Connection: upgrade and an Upgrade header */
    bool expect_continue; /* Expect: 100-continue of a 1.1 client */
};

/* Size of the head at the start of @data (up to and with the empty line) so far as it can be told: > 0 complete,
 * 0 more is needed, <0 minus an HTTP status: -400 malformed already, -431 longer than HTTP_HEAD_BYTES_MAX.
 * *scanned: state between calls on the same growing data, 0 at first, so that a slow head costs no repeated
 * search. */
ssize_t http_head_size(const char *data, size_t size, size_t *scanned);
/* Parse a complete head of http_head_size bytes in place (separators become terminators). 0, or minus the HTTP
 * status of the refusal (400, 417, 431, 501, 505). *head is whole on success only. */
int http_parse_request(char *data, size_t size, struct http_head *head);
/* The same for an answer: 0, or -EBADMSG. */
int http_parse_answer(char *data, size_t size, struct http_head *head);
const char *http_head_get(const struct http_head *head, const char *name); /* any case; NULL */
/* Is @token one of the comma-separated words of @value? Any case. */
bool http_has_token(const char *value, const char *token);

/* Chunked body, decoded in place piece by piece. Zero-initialised. */
struct http_chunked {
    int state;
    uint32_t digits;
    uint32_t trailer_bytes;
    uint64_t left;
};
/* From @data consume *ret_used bytes and leave *ret_out decoded bytes at its start.
 * 1: the body has ended (the rest of @data belongs to what follows); 0: more to come; -EBADMSG. */
int http_chunked_decode(struct http_chunked *chunked, char *data, size_t size, size_t *ret_used, size_t *ret_out);
/* The same without touching @data: only finds the end. */
int http_chunked_scan(struct http_chunked *chunked, const char *data, size_t size, size_t *ret_used);

/* "%41" -> "A"; '+' stays (it is a blank in form bodies only). Length without the terminator; -EINVAL: bad escape
 * or %00; -ENOBUFS. */
ssize_t http_percent_decode(const char *text, size_t length, char *buffer, size_t size);
const char *http_reason(int status);
const char *http_method_name(enum http_method method);

#endif
