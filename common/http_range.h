/* Ranges of bytes in HTTP (RFC 9110 §14): what a client asks for with Range, what a server says with Content-Range, and
 * offsets of resumable uploads. One range only, forms with a beginning only ("bytes=5-9", "bytes=5-"): nobody of ours asks
 * for more, and a server may ignore what it does not serve. Pure; any thread. */
#ifndef COMMON_HTTP_RANGE_H
#define COMMON_HTTP_RANGE_H

#include "common/base.h"

#define HTTP_RANGE_NUMBER_MAX UINT64_C(9223372036854775807)

/* Digits and nothing else, at most HTTP_RANGE_NUMBER_MAX; -EINVAL. For Upload-Offset and its like. */
int http_range_number(const char *text, uint64_t *ret_number);

/* Bytes from `first` up to, not including, `end`. */
struct http_range {
    uint64_t first, end;
    uint64_t total; /* of the whole; http_range_parse_answer only */
};

/* A Range header for something of @total bytes. 1: *ret_range is asked for, within it; 0: everything, because the header
 * is NULL, not understood or of a form that is not served (RFC 9110 §14.2 lets a server ignore it); -ERANGE: begins
 * behind the end, answer 416. */
int http_range_parse_request(const char *text, uint64_t total, struct http_range *ret_range);
/* A Content-Range header, "bytes 5-9/20". -EINVAL: missing (NULL), malformed, empty, beyond its own total, or without
 * one. */
int http_range_parse_answer(const char *text, struct http_range *ret_range);

#endif
