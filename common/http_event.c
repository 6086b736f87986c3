/* Server-Sent Events out of bytes: the line rules of WHATWG HTML §9.2.5 and §9.2.6. */
#include "common/http_client.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define EVENT_BYTES_MAX (1024 * 1024)

static int append(char **data, size_t *size, size_t *capacity, const char *more, size_t more_size, size_t size_max)
{
    if (more_size > size_max - MIN(*size, size_max))
        return -EMSGSIZE;
    if (*size + more_size + 1 > *capacity) {
        *capacity = MAX(*capacity * 2, *size + more_size + 1);
        *data = xrealloc(*data, *capacity);
    }
    if (more_size > 0)
        memcpy(*data + *size, more, more_size);
    *size += more_size;
    (*data)[*size] = '\0';
    return 0;
}

static void emit(struct http_event_reader *r)
{
    if (r->has_data) {
        struct http_event event = {r->id, r->name[0] != '\0' ? r->name : "message", r->data, r->data_size};
        r->on_event(&event, r->arg);
    }
    r->has_data = false;
    r->data_size = 0;
    r->name[0] = '\0';
}

/* "field: value", one blank after the colon not being part of it; a line that begins with a colon is a comment. */
static int take_line(struct http_event_reader *r, size_t event_bytes_max)
{
    const char *line = r->line_size > 0 ? r->line : "";
    size_t field = strcspn(line, ":");
    const char *value = line[field] == ':' ? line + field + 1 : line + field;
    if (r->line_size == 0) {
        emit(r);
        return 0;
    }
    if (*value == ' ')
        value++;
    if (field == 4 && memcmp(line, "data", 4) == 0) {
        int rc = r->has_data ? append(&r->data, &r->data_size, &r->data_capacity, "\n", 1, event_bytes_max) : 0;
        r->has_data = true;
        return rc < 0 ? rc
                      : append(&r->data, &r->data_size, &r->data_capacity, value, strlen(value), event_bytes_max);
    }
    if (field == 5 && memcmp(line, "event", 5) == 0)
        snprintf(r->name, sizeof r->name, "%s", value);
    else if (field == 2 && memcmp(line, "id", 2) == 0)
        snprintf(r->id, sizeof r->id, "%s", value);
    return 0;
}

int http_event_reader_feed(struct http_event_reader *r, const void *data, size_t size)
{
    const char *text = data;
    size_t limit = r->event_bytes_max > 0 ? r->event_bytes_max : EVENT_BYTES_MAX;
    for (size_t at = 0; at < size;) {
        if (r->skip_lf && text[at] == '\n') {
            r->skip_lf = false;
            at++;
            continue;
        }
        r->skip_lf = false;
        size_t end = at;
        while (end < size && text[end] != '\n' && text[end] != '\r')
            end++;
        int rc = append(&r->line, &r->line_size, &r->line_capacity, text + at, end - at, limit);
        at = end;
        if (rc == 0 && at < size) {
            r->skip_lf = text[at++] == '\r';
            rc = take_line(r, limit);
            r->line_size = 0;
        }
        if (rc < 0)
            return rc;
    }
    return 0;
}

void http_event_reader_finish(struct http_event_reader *r)
{
    free(r->line);
    free(r->data);
    r->line = r->data = NULL;
}
