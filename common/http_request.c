/* What a handler reads of a request: headers and query parameters. */
#include "common/http_connection.h"

#include <errno.h>
#include <string.h>

const char *http_request_header(const struct http_request *request, const char *name)
{
    return http_head_get(&http_exchange_of(request)->head, name);
}

bool http_request_header_at(const struct http_request *request, size_t index, const char **ret_name,
                            const char **ret_value)
{
    const struct http_head *head = &http_exchange_of(request)->head;
    if (index >= head->header_count)
        return false;
    *ret_name = head->headers[index].name;
    *ret_value = head->headers[index].value;
    return true;
}

int http_request_next_parameter(const struct http_request *request, size_t *position, char *name, size_t name_size,
                                char *value, size_t value_size)
{
    for (;;) {
        const char *text = request->query + *position;
        size_t length = strcspn(text, "&");
        if (*text == '\0')
            return 0;
        *position += length + (text[length] == '&');
        if (length == 0)
            continue;
        size_t name_length = strcspn(text, "=&");
        const char *value_text = name_length < length ? text + name_length + 1 : text + length;
        ssize_t rc = http_percent_decode(text, name_length, name, name_size);
        if (rc >= 0)
            rc = http_percent_decode(value_text, (size_t)(text + length - value_text), value, value_size);
        return rc < 0 ? (int)rc : 1;
    }
}

/* Does the parameter name at @text, of @length bytes as sent, decode to @name? */
static bool is_name(const char *text, size_t length, const char *name)
{
    char decoded[128];
    ssize_t n = http_percent_decode(text, length, decoded, sizeof decoded);
    return n >= 0 && strcmp(decoded, name) == 0;
}

ssize_t http_request_parameter(const struct http_request *request, const char *name, char *buffer, size_t size)
{
    const char *found = NULL;
    size_t found_length = 0;
    for (const char *text = request->query; *text != '\0';) {
        size_t length = strcspn(text, "&"), name_length = strcspn(text, "=&");
        if (is_name(text, name_length, name)) {
            if (found != NULL)
                return -EEXIST;
            found = name_length < length ? text + name_length + 1 : text + length;
            found_length = (size_t)(text + length - found);
        }
        text += length + (text[length] == '&');
    }
    if (found == NULL)
        return -ENOENT;
    return http_percent_decode(found, found_length, buffer, size);
}

void http_request_on_gone(struct http_request *request, http_gone gone, void *arg)
{
    struct http_exchange *e = http_exchange_of(request);
    e->gone = gone;
    e->gone_arg = arg;
}

bool http_request_is_gone(const struct http_request *request)
{
    return http_exchange_of(request)->connection == NULL;
}

uv_loop_t *http_request_loop(const struct http_request *request)
{
    return http_exchange_of(request)->loop;
}
