/* The HTTP parsers on any bytes: heads of requests and answers, chunked bodies whole and in two pieces, queries.
 * Beyond memory safety: what is accepted must be printed back into something that is accepted and means the same. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/http_parse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char *copy_of(const void *data, size_t size)
{
    char *copy = malloc(size > 0 ? size : 1);
    memcpy(copy, data, size);
    return copy;
}

static void print_again(const struct http_head *head)
{
    struct bytes_writer out = {0};
    struct http_head again;
    size_t scanned = 0;
    bytes_put_format(&out, "%s %s%s%s HTTP/1.%d\r\n", http_method_name(head->method), head->path,
                     head->query[0] != '\0' ? "?" : "", head->query, head->minor_version);
    for (size_t i = 0; i < head->header_count; i++)
        bytes_put_format(&out, "%s:%s\r\n", head->headers[i].name, head->headers[i].value);
    bytes_put_text(&out, "\r\n");
    ssize_t size = http_head_size((char *)out.data, out.size, &scanned);
    ASSERT(size == (ssize_t)out.size);
    ASSERT(http_parse_request((char *)out.data, out.size, &again) == 0);
    ASSERT(again.header_count == head->header_count && strcmp(again.path, head->path) == 0);
    ASSERT(again.has_length == head->has_length && again.content_length == head->content_length);
    ASSERT(again.chunked == head->chunked && again.keep_alive == head->keep_alive && again.upgrade == head->upgrade);
    bytes_writer_finish(&out);
}

static void try_head(const uint8_t *data, size_t size)
{
    struct http_head head;
    size_t scanned = 0, slow = 0;
    char *text = copy_of(data, size);
    ssize_t head_size = http_head_size(text, size, &scanned);
    /* In two pieces the same is found. */
    ssize_t first = http_head_size(text, size / 2, &slow);
    ssize_t second = first == 0 ? http_head_size(text, size, &slow) : first;
    ASSERT(second == head_size || (first > 0 && first == head_size) || (first < 0 && head_size < 0));
    free(text);
    if (head_size <= 0)
        return;
    text = copy_of(data, (size_t)head_size);
    if (http_parse_request(text, (size_t)head_size, &head) == 0) {
        ASSERT(!(head.chunked && head.has_length));
        char decoded[256];
        http_percent_decode(head.path, strlen(head.path), decoded, sizeof decoded);
        print_again(&head);
    }
    free(text);
    text = copy_of(data, (size_t)head_size);
    if (http_parse_answer(text, (size_t)head_size, &head) == 0)
        ASSERT(head.status >= 100 && head.status <= 599);
    free(text);
}

static void try_chunked(const uint8_t *data, size_t size)
{
    struct http_chunked whole = {0}, scan = {0}, halves = {0};
    char *text = copy_of(data, size), *other = copy_of(data, size);
    size_t used, out, scanned, used_1, out_1, used_2 = 0, out_2 = 0, half = size / 2;
    int rc_scan = http_chunked_scan(&scan, text, size, &scanned);
    int rc = http_chunked_decode(&whole, text, size, &used, &out);
    ASSERT(rc == rc_scan);
    int rc_halves = http_chunked_decode(&halves, other, half, &used_1, &out_1);
    if (rc_halves == 0)
        rc_halves = http_chunked_decode(&halves, other + half, size - half, &used_2, &out_2);
    ASSERT(rc == rc_halves);
    if (rc >= 0) {
        ASSERT(used <= size && out <= used && used == scanned && used == used_1 + used_2 && out == out_1 + out_2);
        ASSERT(memcmp(text, other, out_1) == 0 && memcmp(text + out_1, other + half, out_2) == 0);
    }
    free(text);
    free(other);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    try_head(data, size);
    try_chunked(data, size);
    return 0;
}
