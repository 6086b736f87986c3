/* Strict HTTP/1.1 parsing: see http_parse.h for what is refused and why. */
#include "common/http_parse.h"

#include <errno.h>
#include <string.h>
#include <strings.h>

#define METHOD_LENGTH_MAX 16
#define CONTENT_LENGTH_DIGITS_MAX 18 /* fits in 63 bits without an overflow check */
#define CHUNK_SIZE_DIGITS_MAX 8
#define TRAILER_BYTES_MAX 4096

static const char *const methods[HTTP_METHOD_COUNT] = {
    [HTTP_GET] = "GET",     [HTTP_HEAD] = "HEAD",     [HTTP_POST] = "POST",       [HTTP_PUT] = "PUT",
    [HTTP_PATCH] = "PATCH", [HTTP_DELETE] = "DELETE", [HTTP_OPTIONS] = "OPTIONS",
};

const char *http_method_name(enum http_method method)
{
    ASSERT((unsigned)method < HTTP_METHOD_COUNT);
    return methods[method];
}

/* RFC 9110 §5.6.2 */
static bool is_token_char(unsigned char c)
{
    return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') ||
           (c != '\0' && strchr("!#$%&'*+-.^_`|~", c) != NULL);
}

/* RFC 9110 §5.5: visible, blank, tab, and the bytes above ASCII. */
static bool is_value_char(unsigned char c)
{
    return c == '\t' || (c >= 0x20 && c != 0x7f);
}

/* RFC 3986 pchar, '/' and '?', and '%' of escapes; no fragment. */
static bool is_target_char(unsigned char c)
{
    return c > 0x20 && c < 0x7f && strchr("\"<>\\^`{|}#", c) == NULL;
}

static int hex_digit(unsigned char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if ((c | 32) >= 'a' && (c | 32) <= 'f')
        return (c | 32) - 'a' + 10;
    return -1;
}

ssize_t http_head_size(const char *data, size_t size, size_t *scanned)
{
    size_t limit = MIN(size, (size_t)HTTP_HEAD_BYTES_MAX);
    if (size > 0 && !is_token_char((unsigned char)data[0]))
        return -400;
    while (*scanned < limit) {
        const char *lf = memchr(data + *scanned, '\n', limit - *scanned);
        size_t at = lf != NULL ? (size_t)(lf - data) : limit;
        if (memchr(data + *scanned, '\0', at - *scanned) != NULL)
            return -400;
        *scanned = at;
        if (lf == NULL)
            break;
        if (at == 0 || data[at - 1] != '\r')
            return -400;
        *scanned = at + 1;
        if (at >= 3 && data[at - 2] == '\n')
            return (ssize_t)(at + 1);
    }
    return size >= HTTP_HEAD_BYTES_MAX ? -431 : 0;
}

/* Cut the line at *cursor: its text, terminated, and its length; the cursor moves behind its CRLF.
 * NULL where a CR stands alone or no line end is left. */
static char *cut_line(char **cursor, const char *end, size_t *ret_length)
{
    char *line = *cursor, *cr = memchr(line, '\r', (size_t)(end - line));
    if (cr == NULL || end - cr < 2 || cr[1] != '\n')
        return NULL;
    *cr = '\0';
    *cursor = cr + 2;
    *ret_length = (size_t)(cr - line);
    return line;
}

static int parse_header_line(char *line, size_t length, struct http_header *header)
{
    size_t name_length = 0;
    while (name_length < length && is_token_char((unsigned char)line[name_length]))
        name_length++;
    if (name_length == 0 || name_length == length || line[name_length] != ':')
        return -400; /* covers folded lines and blanks before the colon */
    char *value = line + name_length + 1, *end = line + length;
    for (const char *p = value; p < end; p++)
        if (!is_value_char((unsigned char)*p))
            return -400;
    while (value < end && (*value == ' ' || *value == '\t'))
        value++;
    while (end > value && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    line[name_length] = '\0';
    *end = '\0';
    *header = (struct http_header){line, value};
    return 0;
}

static int parse_headers(char *cursor, char *end, struct http_head *head)
{
    for (;;) {
        size_t length;
        char *line = cut_line(&cursor, end, &length);
        if (line == NULL)
            return -400;
        if (length == 0)
            return cursor == end ? 0 : -400;
        if (head->header_count == HTTP_HEADERS_MAX)
            return -431;
        int rc = parse_header_line(line, length, &head->headers[head->header_count]);
        if (rc < 0)
            return rc;
        head->header_count++;
    }
}

static int parse_content_length(const char *text, uint64_t *ret_length)
{
    size_t digits = strlen(text);
    uint64_t length = 0;
    if (digits == 0 || digits > CONTENT_LENGTH_DIGITS_MAX || strspn(text, "0123456789") != digits)
        return -400;
    for (size_t i = 0; i < digits; i++)
        length = length * 10 + (uint64_t)(text[i] - '0');
    *ret_length = length;
    return 0;
}

bool http_has_token(const char *value, const char *token)
{
    size_t wanted = strlen(token);
    while (*value != '\0') {
        value += strspn(value, " \t,");
        size_t length = strcspn(value, " \t,");
        if (length == wanted && strncasecmp(value, token, wanted) == 0)
            return true;
        value += length;
    }
    return false;
}

/* What the headers mean for the framing and the connection (RFC 9112 §6, §9). */
static int apply_framing(struct http_head *head)
{
    unsigned lengths = 0, encodings = 0;
    bool wants_upgrade = false;
    head->keep_alive = head->minor_version == 1;
    for (size_t i = 0; i < head->header_count; i++) {
        const char *name = head->headers[i].name, *value = head->headers[i].value;
        if (strcasecmp(name, "Content-Length") == 0) {
            if (lengths++ > 0 || parse_content_length(value, &head->content_length) < 0)
                return -400;
            head->has_length = true;
        } else if (strcasecmp(name, "Transfer-Encoding") == 0) {
            if (encodings++ > 0 || head->minor_version == 0)
                return -400;
            if (strcasecmp(value, "chunked") != 0)
                return -501;
            head->chunked = true;
        } else if (strcasecmp(name, "Connection") == 0) {
            if (http_has_token(value, "close"))
                head->keep_alive = false;
            if (http_has_token(value, "upgrade"))
                wants_upgrade = true;
        }
    }
    if (lengths > 0 && encodings > 0)
        return -400;
    head->upgrade = wants_upgrade && head->minor_version == 1 && http_head_get(head, "Upgrade") != NULL;
    return 0;
}

static int apply_request_rules(struct http_head *head)
{
    unsigned hosts = 0;
    for (size_t i = 0; i < head->header_count; i++) {
        if (strcasecmp(head->headers[i].name, "Host") == 0)
            hosts++;
        if (strcasecmp(head->headers[i].name, "Expect") == 0) {
            if (strcasecmp(head->headers[i].value, "100-continue") != 0)
                return -417;
            head->expect_continue = head->minor_version == 1;
        }
    }
    if (hosts > 1 || (head->minor_version == 1 && hosts == 0))
        return -400;
    return 0;
}

static int parse_version(const char *text, size_t length, int *ret_minor)
{
    if (length != 8 || memcmp(text, "HTTP/1.", 7) != 0 || (text[7] != '0' && text[7] != '1'))
        return -505;
    *ret_minor = text[7] - '0';
    return 0;
}

static int parse_method(const char *text, size_t length, enum http_method *ret_method)
{
    if (length == 0)
        return -400;
    for (size_t i = 0; i < length; i++)
        if (!is_token_char((unsigned char)text[i]))
            return -400;
    for (unsigned i = 0; i < HTTP_METHOD_COUNT && length <= METHOD_LENGTH_MAX; i++)
        if (strlen(methods[i]) == length && memcmp(methods[i], text, length) == 0) {
            *ret_method = (enum http_method)i;
            return 0;
        }
    return -501;
}

static int parse_request_line(char *line, size_t length, struct http_head *head)
{
    char *end = line + length, *target = memchr(line, ' ', length);
    if (target == NULL)
        return -400;
    int rc = parse_method(line, (size_t)(target - line), &head->method);
    if (rc < 0)
        return rc;
    *target++ = '\0';
    char *version = target;
    head->path = target;
    head->query = "";
    if (*target != '/')
        return -400; /* origin-form only */
    bool in_query = false;
    for (; version < end && is_target_char((unsigned char)*version); version++)
        if (*version == '?' && !in_query) {
            *version = '\0';
            head->query = version + 1;
            in_query = true;
        }
    if (version == end || *version != ' ')
        return -400;
    *version++ = '\0';
    return parse_version(version, (size_t)(end - version), &head->minor_version);
}

int http_parse_request(char *data, size_t size, struct http_head *ret_head)
{
    char *cursor = data, *end = data + size;
    size_t length;
    struct http_head head = {0};
    char *line = cut_line(&cursor, end, &length);
    if (line == NULL)
        return -400;
    int rc = parse_request_line(line, length, &head);
    if (rc == 0)
        rc = parse_headers(cursor, end, &head);
    if (rc == 0)
        rc = apply_framing(&head);
    if (rc == 0)
        rc = apply_request_rules(&head);
    if (rc == 0)
        *ret_head = head;
    return rc;
}

int http_parse_answer(char *data, size_t size, struct http_head *ret_head)
{
    char *cursor = data, *end = data + size;
    size_t length;
    struct http_head head = {.path = "", .query = ""};
    const char *line = cut_line(&cursor, end, &length);
    /* "HTTP/1.1 200 OK" or, with the reason left out, "HTTP/1.1 200 ": RFC 9112 §4 */
    if (line == NULL || length < 13 || line[8] != ' ' || line[12] != ' ' ||
        parse_version(line, 8, &head.minor_version) < 0)
        return -EBADMSG;
    for (int i = 9; i < 12; i++) {
        if (line[i] < '0' || line[i] > '9')
            return -EBADMSG;
        head.status = head.status * 10 + (line[i] - '0');
    }
    for (size_t i = 13; i < length; i++)
        if (!is_value_char((unsigned char)line[i]))
            return -EBADMSG;
    if (head.status < 100 || head.status > 599 || parse_headers(cursor, end, &head) < 0 || apply_framing(&head) < 0)
        return -EBADMSG;
    *ret_head = head;
    return 0;
}

const char *http_head_get(const struct http_head *head, const char *name)
{
    for (size_t i = 0; i < head->header_count; i++)
        if (strcasecmp(head->headers[i].name, name) == 0)
            return head->headers[i].value;
    return NULL;
}

/*   SIZE -> SIZE_LF -> DATA -> DATA_CR -> DATA_LF -> SIZE ...
 *              | (size 0)
 *              +-> TRAILER -> TRAILER_LF -> TRAILER ... -> END_LF -> done */
enum {
    CHUNK_SIZE,
    CHUNK_SIZE_LF,
    CHUNK_DATA,
    CHUNK_DATA_CR,
    CHUNK_DATA_LF,
    CHUNK_TRAILER_START,
    CHUNK_TRAILER,
    CHUNK_TRAILER_LF,
    CHUNK_END_LF,
    CHUNK_DONE,
};

static int chunked_size_byte(struct http_chunked *c, unsigned char byte)
{
    int digit = hex_digit(byte);
    if (digit >= 0) {
        if (c->digits++ == CHUNK_SIZE_DIGITS_MAX)
            return -EBADMSG;
        c->left = c->left << 4 | (unsigned)digit;
        return 0;
    }
    if (byte != '\r' || c->digits == 0)
        return -EBADMSG; /* chunk extensions are refused too */
    c->state = CHUNK_SIZE_LF;
    return 0;
}

static int chunked_trailer_byte(struct http_chunked *c, unsigned char byte)
{
    if (byte == '\r') {
        c->state = c->state == CHUNK_TRAILER_START ? CHUNK_END_LF : CHUNK_TRAILER_LF;
        return 0;
    }
    if (!is_value_char(byte) || ++c->trailer_bytes > TRAILER_BYTES_MAX)
        return -EBADMSG;
    c->state = CHUNK_TRAILER;
    return 0;
}

static int chunked_byte(struct http_chunked *c, unsigned char byte)
{
    switch (c->state) {
    case CHUNK_SIZE:
        return chunked_size_byte(c, byte);
    case CHUNK_TRAILER_START:
    case CHUNK_TRAILER:
        return chunked_trailer_byte(c, byte);
    case CHUNK_DATA_CR:
        c->state = CHUNK_DATA_LF;
        return byte == '\r' ? 0 : -EBADMSG;
    case CHUNK_SIZE_LF:
        c->digits = 0;
        c->state = c->left > 0 ? CHUNK_DATA : CHUNK_TRAILER_START;
        break;
    case CHUNK_DATA_LF:
        c->state = CHUNK_SIZE;
        break;
    case CHUNK_TRAILER_LF:
        c->state = CHUNK_TRAILER_START;
        break;
    default: /* CHUNK_END_LF */
        c->state = CHUNK_DONE;
        break;
    }
    return byte == '\n' ? 0 : -EBADMSG;
}

/* @out: where the decoded bytes go (may be @data itself), or NULL. */
static int chunked_run(struct http_chunked *c, const char *data, size_t size, char *out, size_t *ret_used,
                       size_t *ret_out)
{
    size_t at = 0, written = 0;
    while (at < size && c->state != CHUNK_DONE) {
        if (c->state == CHUNK_DATA) {
            size_t part = (size_t)MIN((uint64_t)(size - at), c->left);
            if (out != NULL)
                memmove(out + written, data + at, part);
            written += part;
            at += part;
            c->left -= part;
            if (c->left == 0)
                c->state = CHUNK_DATA_CR;
        } else if (chunked_byte(c, (unsigned char)data[at++]) < 0) {
            return -EBADMSG;
        }
    }
    *ret_used = at;
    *ret_out = written;
    return c->state == CHUNK_DONE;
}

int http_chunked_decode(struct http_chunked *chunked, char *data, size_t size, size_t *ret_used, size_t *ret_out)
{
    return chunked_run(chunked, data, size, data, ret_used, ret_out);
}

int http_chunked_scan(struct http_chunked *chunked, const char *data, size_t size, size_t *ret_used)
{
    size_t decoded;
    return chunked_run(chunked, data, size, NULL, ret_used, &decoded);
}

ssize_t http_percent_decode(const char *text, size_t length, char *buffer, size_t size)
{
    size_t n = 0;
    for (size_t i = 0; i < length; i++) {
        char c = text[i];
        if (c == '%') {
            int high = length - i > 2 ? hex_digit((unsigned char)text[i + 1]) : -1;
            int low = high >= 0 ? hex_digit((unsigned char)text[i + 2]) : -1;
            if (low < 0)
                return -EINVAL;
            c = (char)(high << 4 | low);
            i += 2;
        }
        if (c == '\0')
            return -EINVAL;
        if (n + 1 >= size)
            return -ENOBUFS;
        buffer[n++] = c;
    }
    if (size == 0)
        return -ENOBUFS;
    buffer[n] = '\0';
    return (ssize_t)n;
}

const char *http_reason(int status)
{
    static const struct {
        int status;
        const char *reason;
    } reasons[] = {
        {100, "Continue"},
        {101, "Switching Protocols"},
        {200, "OK"},
        {201, "Created"},
        {202, "Accepted"},
        {204, "No Content"},
        {206, "Partial Content"},
        {301, "Moved Permanently"},
        {302, "Found"},
        {303, "See Other"},
        {304, "Not Modified"},
        {307, "Temporary Redirect"},
        {308, "Permanent Redirect"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {406, "Not Acceptable"},
        {408, "Request Timeout"},
        {409, "Conflict"},
        {410, "Gone"},
        {412, "Precondition Failed"},
        {413, "Content Too Large"},
        {415, "Unsupported Media Type"},
        {416, "Range Not Satisfiable"},
        {417, "Expectation Failed"},
        {421, "Misdirected Request"},
        {422, "Unprocessable Content"},
        {426, "Upgrade Required"},
        {428, "Precondition Required"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {500, "Internal Server Error"},
        {501, "Not Implemented"},
        {502, "Bad Gateway"},
        {503, "Service Unavailable"},
        {504, "Gateway Timeout"},
        {505, "HTTP Version Not Supported"},
        {507, "Insufficient Storage"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(reasons); i++)
        if (reasons[i].status == status)
            return reasons[i].reason;
    return "Unknown";
}
