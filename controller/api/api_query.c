/* Query parameters: one row each. */
#include "controller/api/api_query.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum allowed_on { ON_READ, ON_LIST, ON_WAIT, ON_DRY, ON_FORCE, ON_EVENTS, ON_CONSOLE };

static int parse_number(const char *text, uint64_t max, uint64_t *ret_value)
{
    uint64_t value = 0;
    if (*text == '\0')
        return -EINVAL;
    for (; *text != '\0'; text++) {
        uint64_t digit = (uint64_t)(*text - '0');
        if (*text < '0' || *text > '9' || digit > max || value > (max - digit) / 10)
            return -EINVAL;
        value = value * 10 + digit;
    }
    *ret_value = value;
    return 0;
}

int api_query_duration(const char *text, uint32_t max_ms, uint32_t *ret_ms)
{
    static const struct {
        const char *suffix;
        uint64_t ms;
    } units[] = {{"ms", 1}, {"s", 1000}, {"m", 60000}, {"", 1000}};
    size_t digits = strspn(text, "0123456789");
    char number[12];
    uint64_t value;
    if (digits == 0 || digits >= sizeof number)
        return -EINVAL;
    memcpy(number, text, digits);
    number[digits] = '\0';
    for (size_t i = 0; i < ARRAY_SIZE(units); i++) {
        if (strcmp(text + digits, units[i].suffix) != 0)
            continue;
        if (parse_number(number, max_ms / units[i].ms, &value) < 0)
            return -EINVAL;
        *ret_ms = (uint32_t)(value * units[i].ms);
        return 0;
    }
    return -EINVAL;
}

static bool parse_boolean(const char *value, bool *ret)
{
    *ret = strcmp(value, "true") == 0;
    return *ret || strcmp(value, "false") == 0;
}

static bool parse_stale(const char *value, bool *ret)
{
    *ret = strcmp(value, "stale") == 0;
    return *ret || strcmp(value, "linearizable") == 0;
}

static bool parse_text(const char *value, char *buffer, size_t size)
{
    const char *rule;
    if (strlen(value) >= size || !text_format_ok(FORMAT_any, value, &rule))
        return false;
    memcpy(buffer, value, strlen(value) + 1);
    return true;
}

static const struct {
    const char *name;
    enum allowed_on on;
    const char *rule;
} parameters[] = {
    {"consistency", ON_READ, "linearizable or stale"},
    {"filter", ON_LIST, "conditions such as state=running, joined by ' and ', at most 511 bytes"},
    {"fields", ON_LIST, "names of fields with commas between them, at most 511 bytes"},
    {"limit", ON_LIST, "a number from 1 to " STRINGIFY(API_QUERY_LIMIT_MAX)},
    {"cursor", ON_LIST, "the X-Drover-Cursor of the last answer"},
    {"wait", ON_WAIT, "a duration such as 30s, at most 300s"},
    {"dry_run", ON_DRY, "true or false"},
    {"force", ON_FORCE, "true or false"},
    {"after", ON_EVENTS, "an index"},
    {"kind", ON_EVENTS, "a kind of object, such as vm"},
    {"object", ON_EVENTS, "an id or name"},
    {"ticket", ON_CONSOLE, "a ticket"},
};

static bool route_takes(const struct route_desc *route, enum allowed_on on)
{
    switch (on) {
    case ON_READ:
        return route->method == ROUTE_GET;
    case ON_LIST:
        return route->flags & ROUTE_LIST;
    case ON_WAIT:
        return route->flags & ROUTE_WAIT;
    case ON_DRY:
        return route->flags & ROUTE_DRY;
    case ON_FORCE:
        return route->flags & ROUTE_FORCE;
    case ON_EVENTS:
        return route->id == ROUTE_ID_event_stream;
    case ON_CONSOLE:
        return route->id == ROUTE_ID_vm_console;
    }
    return false;
}

static bool take(struct api_query *query, const char *name, const char *value)
{
    uint64_t number;
    if (strcmp(name, "consistency") == 0)
        return parse_stale(value, &query->stale);
    if (strcmp(name, "dry_run") == 0)
        return parse_boolean(value, &query->dry_run);
    if (strcmp(name, "force") == 0)
        return parse_boolean(value, &query->force);
    if (strcmp(name, "wait") == 0)
        return api_query_duration(value, API_QUERY_WAIT_MS_MAX, &query->wait_ms) == 0;
    if (strcmp(name, "after") == 0)
        return query->has_after = parse_number(value, OBJECT_INTEGER_MAX, &query->after) == 0;
    if (strcmp(name, "filter") == 0)
        return parse_text(value, query->filter, sizeof query->filter);
    if (strcmp(name, "fields") == 0)
        return parse_text(value, query->fields, sizeof query->fields);
    if (strcmp(name, "cursor") == 0)
        return parse_text(value, query->cursor, sizeof query->cursor);
    if (strcmp(name, "kind") == 0)
        return parse_text(value, query->kind, sizeof query->kind);
    if (strcmp(name, "object") == 0)
        return parse_text(value, query->object, sizeof query->object);
    if (strcmp(name, "ticket") == 0)
        return parse_text(value, query->ticket, sizeof query->ticket);
    if (parse_number(value, API_QUERY_LIMIT_MAX, &number) < 0 || number == 0)
        return false;
    query->limit = (uint32_t)number;
    return true;
}

int api_query_parse(const struct http_request *request, const struct route_desc *route, struct api_query *ret_query,
                    struct error *err)
{
    struct api_query query = {.stale = false};
    char name[32], value[API_QUERY_TEXT_MAX + 1];
    unsigned seen = 0;
    size_t position = 0;
    int r;
    while ((r = http_request_next_parameter(request, &position, name, sizeof name, value, sizeof value)) > 0) {
        char field[40];
        snprintf(field, sizeof field, "?%s", name);
        size_t i = 0;
        while (i < ARRAY_SIZE(parameters) && strcmp(parameters[i].name, name) != 0)
            i++;
        if (i == ARRAY_SIZE(parameters) || !route_takes(route, parameters[i].on))
            return error_set_field(
                err, -EINVAL, ERROR_UNKNOWN_FIELD, text_format_ok(FORMAT_any, name, &(const char *){0}) ? field : "?",
                "%s %s does not take this parameter", route_method_name(route->method), route->path);
        if (seen & 1u << i)
            return error_set_field(err, -EINVAL, ERROR_INVALID, field, "it is given twice");
        seen |= 1u << i;
        if (!take(&query, name, value))
            return error_set_field(err, -EINVAL, ERROR_INVALID, field, "it must be %s", parameters[i].rule);
    }
    if (r < 0)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "?",
                               "the query is not well-formed or has a parameter that is too long");
    *ret_query = query;
    return 0;
}
