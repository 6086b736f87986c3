/* The strict HTTP parser against a table of well-formed requests and of attacks; chunked bodies cut everywhere. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/http_parse.h"

/* Result of feeding @text whole: 0 and *head, minus the HTTP status, or 1 where more is needed. The head is parsed in
 * a heap copy of its exact size, so that a sanitizer sees every step over the end. */
static int parse(const char *text, size_t size, struct http_head *head, char **ret_copy)
{
    size_t scanned = 0;
    *ret_copy = NULL;
    ssize_t head_size = http_head_size(text, size, &scanned);
    if (head_size <= 0)
        return head_size == 0 ? 1 : (int)head_size;
    *ret_copy = malloc((size_t)head_size);
    memcpy(*ret_copy, text, (size_t)head_size);
    return http_parse_request(*ret_copy, (size_t)head_size, head);
}

#define H "Host: a\r\n"
static const struct {
    const char *name, *text;
    int expected;
} vectors[] = {
    {"plain", "GET / HTTP/1.1\r\n" H "\r\n", 0},
    {"all methods know DELETE", "DELETE /a HTTP/1.1\r\n" H "\r\n", 0},
    {"1.0 without Host", "GET / HTTP/1.0\r\n\r\n", 0},
    {"value above ASCII", "GET / HTTP/1.1\r\n" H "X: \xc3\xa4\r\n\r\n", 0},
    {"empty value", "GET / HTTP/1.1\r\n" H "X:\r\n\r\n", 0},
    {"chunked", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n", 0},
    {"half", "GET / HTTP/1.1\r\nHo", 1},
    {"bare LF", "GET / HTTP/1.1\nHost: a\n\n", -400},
    {"bare LF at the end of a header", "GET / HTTP/1.1\r\nHost: a\n\r\n", -400},
    {"LF first", "\nGET / HTTP/1.1\r\n" H "\r\n", -400},
    {"empty line first", "\r\nGET / HTTP/1.1\r\n" H "\r\n", -400},
    {"TLS on a plain port", "\x16\x03\x01\x02", -400},
    {"bare CR in value", "GET / HTTP/1.1\r\n" H "X: \rY: z\r\n\r\n", -400},
    {"CR CR LF", "GET / HTTP/1.1\r\n" H "X: y\r\r\n\r\n", -400},
    {"control in value", "GET / HTTP/1.1\r\n" H "X: a\x01\r\n\r\n", -400},
    {"DEL in value", "GET / HTTP/1.1\r\n" H "X: a\x7f\r\n\r\n", -400},
    {"folded line", "GET / HTTP/1.1\r\n" H "X: a\r\n b\r\n\r\n", -400},
    {"folded first", "GET / HTTP/1.1\r\n " H "\r\n", -400},
    {"blank before colon", "POST / HTTP/1.1\r\n" H "Content-Length : 5\r\n\r\n", -400},
    {"no colon", "GET / HTTP/1.1\r\n" H "X\r\n\r\n", -400},
    {"empty name", "GET / HTTP/1.1\r\n" H ": x\r\n\r\n", -400},
    {"name with umlaut", "GET / HTTP/1.1\r\n" H "X\xe4: x\r\n\r\n", -400},
    {"no Host", "GET / HTTP/1.1\r\n\r\n", -400},
    {"two Hosts", "GET / HTTP/1.1\r\n" H H "\r\n", -400},
    {"two Hosts in 1.0", "GET / HTTP/1.0\r\n" H H "\r\n", -400},
    {"two lengths", "POST / HTTP/1.1\r\n" H "Content-Length: 5\r\nContent-Length: 6\r\n\r\n", -400},
    {"two equal lengths", "POST / HTTP/1.1\r\n" H "Content-Length: 5\r\nContent-Length: 5\r\n\r\n", -400},
    {"length list", "POST / HTTP/1.1\r\n" H "Content-Length: 5, 5\r\n\r\n", -400},
    {"length +5", "POST / HTTP/1.1\r\n" H "Content-Length: +5\r\n\r\n", -400},
    {"length -5", "POST / HTTP/1.1\r\n" H "Content-Length: -5\r\n\r\n", -400},
    {"length 0x5", "POST / HTTP/1.1\r\n" H "Content-Length: 0x5\r\n\r\n", -400},
    {"length empty", "POST / HTTP/1.1\r\n" H "Content-Length:\r\n\r\n", -400},
    {"length of 19 digits", "POST / HTTP/1.1\r\n" H "Content-Length: 1000000000000000000\r\n\r\n", -400},
    {"length and chunked", "POST / HTTP/1.1\r\n" H "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", -400},
    {"chunked and length", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", -400},
    {"xchunked", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: xchunked\r\n\r\n", -501},
    {"chunked, identity", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked, identity\r\n\r\n", -501},
    {"gzip, chunked", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: gzip, chunked\r\n\r\n", -501},
    {"two encodings", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
     -400},
    {"chunked in 1.0", "POST / HTTP/1.0\r\n" H "Transfer-Encoding: chunked\r\n\r\n", -400},
    {"unknown method", "BREW / HTTP/1.1\r\n" H "\r\n", -501},
    {"method in small letters", "get / HTTP/1.1\r\n" H "\r\n", -501},
    {"long method", "GETGETGETGETGETGETGET / HTTP/1.1\r\n" H "\r\n", -501},
    {"bad method", "G(T / HTTP/1.1\r\n" H "\r\n", -400},
    {"absolute form", "GET http://a/ HTTP/1.1\r\n" H "\r\n", -400},
    {"authority form", "GET a:80 HTTP/1.1\r\n" H "\r\n", -400},
    {"asterisk form", "OPTIONS * HTTP/1.1\r\n" H "\r\n", -400},
    {"fragment", "GET /a#b HTTP/1.1\r\n" H "\r\n", -400},
    {"blank in path", "GET /a b HTTP/1.1\r\n" H "\r\n", -505},
    {"tab in path", "GET /a\tb HTTP/1.1\r\n" H "\r\n", -400},
    {"umlaut in path", "GET /\xc3\xa4 HTTP/1.1\r\n" H "\r\n", -400},
    {"two blanks", "GET  / HTTP/1.1\r\n" H "\r\n", -400},
    {"no version", "GET /\r\n" H "\r\n", -400},
    {"HTTP/1.9", "GET / HTTP/1.9\r\n" H "\r\n", -505},
    {"HTTP/2.0", "GET / HTTP/2.0\r\n" H "\r\n", -505},
    {"HTTP/1.1x", "GET / HTTP/1.1x\r\n" H "\r\n", -505},
    {"http/1.1", "GET / http/1.1\r\n" H "\r\n", -505},
    {"other expectation", "POST / HTTP/1.1\r\n" H "Expect: 200-ok\r\n\r\n", -417},
};

static void test_vectors(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(vectors); i++) {
        struct http_head head;
        char *copy;
        int rc = parse(vectors[i].text, strlen(vectors[i].text), &head, &copy);
        if (rc != vectors[i].expected)
            fail_msg("%s: %d, expected %d", vectors[i].name, rc, vectors[i].expected);
        free(copy);
    }
}

static void test_zero_byte(void **state)
{
    static const char in_value[] = "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", in_path[] = "GET /\0 HTTP/1.1";
    struct http_head head;
    char *copy;
    (void)state;
    assert_int_equal(parse(in_value, sizeof in_value - 1, &head, &copy), -400);
    assert_int_equal(parse(in_path, sizeof in_path - 1, &head, &copy), -400);
}

static void test_parts(void **state)
{
    static const char text[] =
        "PATCH /v1/x%20y?a=1&b=%41?c HTTP/1.1\r\nhOsT: a\r\nX-One: \t first  value \t\r\n"
        "Content-Length: 007\r\nConnection: keep-alive, UpGrade\r\nUpgrade: websocket\r\n\r\nrest";
    struct http_head head;
    char *copy;
    (void)state;
    assert_int_equal(parse(text, sizeof text - 1, &head, &copy), 0);
    assert_int_equal(head.method, HTTP_PATCH);
    assert_string_equal(head.path, "/v1/x%20y");
    assert_string_equal(head.query, "a=1&b=%41?c");
    assert_string_equal(http_head_get(&head, "x-one"), "first  value");
    assert_null(http_head_get(&head, "x-two"));
    assert_true(head.has_length && head.content_length == 7 && !head.chunked);
    assert_true(head.keep_alive && head.upgrade && !head.expect_continue);
    free(copy);
}

static void test_limits(void **state)
{
    struct http_head head;
    char *copy, *text = malloc(HTTP_HEAD_BYTES_MAX + 100);
    (void)state;
    size_t n = (size_t)sprintf(text, "GET / HTTP/1.1\r\nHost: a\r\nX: ");
    memset(text + n, 'x', HTTP_HEAD_BYTES_MAX - n);
    assert_int_equal(parse(text, HTTP_HEAD_BYTES_MAX - 1, &head, &copy), 1);
    assert_int_equal(parse(text, HTTP_HEAD_BYTES_MAX, &head, &copy), -431);
    memcpy(text + HTTP_HEAD_BYTES_MAX - 4, "\r\n\r\n", 4);
    assert_int_equal(parse(text, HTTP_HEAD_BYTES_MAX, &head, &copy), 0);
    free(copy);
    for (unsigned extra = 0; extra < 2; extra++) {
        n = (size_t)sprintf(text, "GET / HTTP/1.1\r\nHost: a\r\n");
        for (unsigned i = 1; i < HTTP_HEADERS_MAX + extra; i++)
            n += (size_t)sprintf(text + n, "X: y\r\n");
        n += (size_t)sprintf(text + n, "\r\n");
        assert_int_equal(parse(text, n, &head, &copy), extra == 0 ? 0 : -431);
        free(copy);
    }
    free(text);
}

/* Byte by byte the same end is found as at once. */
static void test_slow_head(void **state)
{
    static const char text[] = "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\nmore";
    size_t scanned = 0, size = 0;
    (void)state;
    ssize_t rc = 0;
    while (rc == 0)
        rc = http_head_size(text, ++size, &scanned);
    assert_int_equal(rc, sizeof text - 1 - 4);
    assert_int_equal(size, rc);
}

static void test_answers(void **state)
{
    static const struct {
        const char *text;
        int expected, status;
    } answers[] = {
        {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", 0, 200},
        {"HTTP/1.1 204 \r\n\r\n", 0, 204},
        {"HTTP/1.1 204\r\n\r\n", -EBADMSG, 0},
        {"HTTP/1.1 2x4 No\r\n\r\n", -EBADMSG, 0},
        {"HTTP/1.1 099 No\r\n\r\n", -EBADMSG, 0},
        {"HTTP/2.0 200 OK\r\n\r\n", -EBADMSG, 0},
        {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", -EBADMSG, 0},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 0, 200},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(answers); i++) {
        struct http_head head;
        size_t size = strlen(answers[i].text);
        char *copy = malloc(size);
        memcpy(copy, answers[i].text, size);
        assert_int_equal(http_parse_answer(copy, size, &head), answers[i].expected);
        if (answers[i].expected == 0)
            assert_int_equal(head.status, answers[i].status);
        free(copy);
    }
}

/* Decode @text, given in pieces of @piece bytes; what comes out is put to @out. */
static int decode(const char *text, size_t size, size_t piece, char *out, size_t *ret_consumed)
{
    struct http_chunked chunked = {0}, scan = {0};
    size_t at = 0, n = 0;
    int rc = 0;
    while (rc == 0 && at < size) {
        size_t part = MIN(piece, size - at), used, decoded, scanned;
        char *copy = malloc(part);
        memcpy(copy, text + at, part);
        int rc_scan = http_chunked_scan(&scan, copy, part, &scanned);
        rc = http_chunked_decode(&chunked, copy, part, &used, &decoded);
        assert_int_equal(rc, rc_scan);
        if (rc >= 0) {
            assert_int_equal(used, scanned);
            memcpy(out + n, copy, decoded);
            n += decoded;
            at += used;
        }
        free(copy);
    }
    out[n] = '\0';
    *ret_consumed = at;
    return rc;
}

static void test_chunked(void **state)
{
    static const char good[] = "5\r\nhello\r\n00000001\r\n,\r\n6\r\n world\r\n0\r\nTrailer: x\r\n\r\nGET /";
    static const char *const bad[] = {
        "\r\n",
        "5;a=b\r\nhello\r\n",
        "5 \r\nhello\r\n",
        "5\nhello\r\n",
        "-5\r\n",
        "0x5\r\n",
        "123456789\r\n",
        "FFFFFFFFFFFFFFFFF\r\n",
        "5\r\nhello!\r\n",
        "5\r\nhello\n",
        "5\r\nhello\r0",
        "0\r\n\n",
        "0\r\nX\n\r\n",
        "g\r\n",
        "0\r\n\rX",
    };
    char out[64];
    size_t consumed;
    (void)state;
    for (size_t piece = 1; piece < sizeof good; piece++) {
        assert_int_equal(decode(good, sizeof good - 1, piece, out, &consumed), 1);
        assert_string_equal(out, "hello, world");
        assert_int_equal(consumed, sizeof good - 1 - 5);
    }
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        for (size_t piece = 1; piece <= strlen(bad[i]); piece++)
            if (decode(bad[i], strlen(bad[i]), piece, out, &consumed) != -EBADMSG)
                fail_msg("accepted: %s", bad[i]);
    assert_int_equal(decode("5\r\nhel", 6, 6, out, &consumed), 0);
}

static void test_long_trailer(void **state)
{
    struct http_chunked chunked = {0};
    size_t used, out;
    char line[] = "X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n",
         end[] = "0\r\n";
    int rc = http_chunked_decode(&chunked, end, 3, &used, &out);
    (void)state;
    for (int i = 0; i < 100 && rc == 0; i++) {
        char copy[sizeof line];
        memcpy(copy, line, sizeof line);
        rc = http_chunked_decode(&chunked, copy, sizeof line - 1, &used, &out);
    }
    assert_int_equal(rc, -EBADMSG);
}

static void test_percent(void **state)
{
    char out[8];
    (void)state;
    assert_int_equal(http_percent_decode("a%41%2fz", 8, out, sizeof out), 4);
    assert_string_equal(out, "aA/z");
    assert_int_equal(http_percent_decode("a+b", 3, out, sizeof out), 3);
    assert_string_equal(out, "a+b");
    assert_int_equal(http_percent_decode("%4", 2, out, sizeof out), -EINVAL);
    assert_int_equal(http_percent_decode("%", 1, out, sizeof out), -EINVAL);
    assert_int_equal(http_percent_decode("%zz", 3, out, sizeof out), -EINVAL);
    assert_int_equal(http_percent_decode("%00", 3, out, sizeof out), -EINVAL);
    assert_int_equal(http_percent_decode("12345678", 8, out, sizeof out), -ENOBUFS);
    assert_int_equal(http_percent_decode("1234567", 7, out, sizeof out), 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vectors), cmocka_unit_test(test_zero_byte),    cmocka_unit_test(test_parts),
        cmocka_unit_test(test_limits),  cmocka_unit_test(test_slow_head),    cmocka_unit_test(test_answers),
        cmocka_unit_test(test_chunked), cmocka_unit_test(test_long_trailer), cmocka_unit_test(test_percent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
