/* Tables, JSON, YAML and progress lines. */
#include "cli/output.h"

#include <errno.h>
#include <inttypes.h>
#include <locale.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <wchar.h>

#define CELL_BYTES_MAX 800
#define TEXT_COLUMNS 100    /* of what is read and not at a terminal; nobody reads longer lines with ease */
#define TEXT_COLUMNS_MIN 20 /* beside the indent */
#define COLUMNS_MAX 32

const char *output_clean(const char *text, char *buffer, size_t size)
{
    size_t n = 0;
    for (; *text != '\0' && n + 1 < size; text++)
        buffer[n++] = (unsigned char)*text < 0x20 || *text == 0x7f ? ' ' : *text;
    buffer[n] = '\0';
    return buffer;
}

static void size_text(uint64_t bytes, char *buffer, size_t size)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    unsigned u = 0;
    uint64_t whole = bytes, rest = 0;
    while (whole >= 1024 && u + 1 < ARRAY_SIZE(units)) {
        rest = whole % 1024;
        whole /= 1024;
        u++;
    }
    if (rest * 10 / 1024 != 0 && whole < 100)
        snprintf(buffer, size, "%" PRIu64 ".%" PRIu64 " %s", whole, rest * 10 / 1024, units[u]);
    else
        snprintf(buffer, size, "%" PRIu64 " %s", whole, units[u]);
}

const char *output_cell(const char *field, const json_t *value, char *buffer, size_t size)
{
    size_t n = strlen(field);
    if (value == NULL || json_is_null(value))
        snprintf(buffer, size, "-");
    else if (json_is_string(value))
        output_clean(json_string_value(value), buffer, size);
    else if (json_is_boolean(value))
        snprintf(buffer, size, "%s", json_is_true(value) ? "yes" : "no");
    else if (json_is_integer(value) && n > 6 && strcmp(field + n - 6, "_bytes") == 0)
        size_text((uint64_t)json_integer_value(value), buffer, size);
    else if (json_is_integer(value))
        snprintf(buffer, size, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    else {
        char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
        output_clean(text ? text : "", buffer, size);
        free(text);
    }
    return buffer;
}

static int width(const char *text)
{
    wchar_t wide[CELL_BYTES_MAX];
    size_t n = mbstowcs(wide, text, ARRAY_SIZE(wide));
    int w = n == (size_t)-1 ? -1 : wcswidth(wide, n);
    return w < 0 ? (int)strlen(text) : w;
}

static size_t split_columns(const char *columns, char names[COLUMNS_MAX][64])
{
    size_t n = 0;
    while (*columns != '\0' && n < COLUMNS_MAX) {
        size_t len = strcspn(columns, ",");
        snprintf(names[n++], 64, "%.*s", (int)MIN(len, (size_t)63), columns);
        columns += len + (columns[len] == ',');
    }
    return n;
}

static void heading(const char *field, char *buffer, size_t size)
{
    size_t n = strlen(field);
    n -= n > 6 && strcmp(field + n - 6, "_bytes") == 0 ? 6 : 0;
    n -= n > 5 && strncmp(field + n - 5, "_name", 5) == 0 ? 5 : 0;
    snprintf(buffer, size, "%.*s", (int)n, field);
    for (char *c = buffer; *c != '\0'; c++)
        *c = *c == '_' ? '-' : (char)(*c >= 'a' && *c <= 'z' ? *c - 'a' + 'A' : *c);
}

static void put_padded(const char *text, int to, bool last)
{
    fputs(text, stdout);
    if (!last)
        printf("%*s", MAX(to - width(text), 0) + 2, "");
}

static void output_table(const json_t *rows, const char *columns)
{
    char names[COLUMNS_MAX][64], cell[CELL_BYTES_MAX];
    int widths[COLUMNS_MAX];
    size_t n = split_columns(columns, names), i;
    const json_t *row;
    for (size_t c = 0; c < n; c++) {
        heading(names[c], cell, sizeof cell);
        widths[c] = width(cell);
        json_array_foreach(rows, i, row) widths[c] =
            MAX(widths[c], width(output_cell(names[c], json_object_get(row, names[c]), cell, sizeof cell)));
    }
    for (size_t c = 0; c < n; c++) {
        heading(names[c], cell, sizeof cell);
        put_padded(cell, widths[c], c + 1 == n);
    }
    putchar('\n');
    json_array_foreach(rows, i, row)
    {
        for (size_t c = 0; c < n; c++)
            put_padded(output_cell(names[c], json_object_get(row, names[c]), cell, sizeof cell), widths[c], c + 1 == n);
        putchar('\n');
    }
}

/* YAML 1.2 in its safest dress: every string double-quoted as JSON, which YAML takes as it is. */
static void output_yaml(const json_t *value, int depth, bool in_list)
{
    const char *key;
    const json_t *item;
    size_t i;
    if (json_is_object(value) && json_object_size(value) > 0) {
        bool first = true;
        json_object_foreach((json_t *)(uintptr_t)value, key, item)
        {
            printf("%*s%s:", first && in_list ? 0 : depth * 2, "", key);
            first = false;
            bool nested = (json_is_object(item) && json_object_size(item) > 0) || (json_is_array(item) && json_array_size(item) > 0);
            putchar(nested ? '\n' : ' ');
            output_yaml(item, depth + 1, false);
        }
    } else if (json_is_array(value) && json_array_size(value) > 0) {
        json_array_foreach(value, i, item)
        {
            printf("%*s- ", depth * 2, "");
            output_yaml(item, depth + 1, true);
        }
    } else {
        char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
        puts(text ? text : "");
        free(text);
    }
}

static void output_json(const json_t *value)
{
    char *text = json_dumps(value, JSON_INDENT(2) | JSON_ENCODE_ANY);
    puts(text ? text : "null");
    free(text);
}

/* What the object is known by; an event by its index, and what has nothing of the kind by "-". */
static void output_name(const json_t *object)
{
    static const char *const fields[] = {"name", "id", "index"};
    char cell[300];
    const json_t *value = NULL;
    for (size_t i = 0; i < ARRAY_SIZE(fields) && value == NULL; i++)
        value = json_object_get(object, fields[i]);
    puts(output_cell("name", value, cell, sizeof cell));
}

void output_list(const struct invocation *call, const json_t *rows, const char *columns)
{
    const json_t *row;
    size_t i;
    switch (call->output) {
    case OUTPUT_TABLE:
        output_table(rows, columns);
        break;
    case OUTPUT_JSON:
        output_json(rows);
        break;
    case OUTPUT_YAML:
        output_yaml(rows, 0, false);
        break;
    case OUTPUT_NAME:
        json_array_foreach(rows, i, row) output_name(row);
        break;
    }
}

void output_object(const struct invocation *call, const json_t *object)
{
    char cell[CELL_BYTES_MAX], name[64];
    const char *key;
    json_t *value;
    int widest = 0;
    if (call->output == OUTPUT_JSON) {
        output_json(object);
        return;
    }
    if (call->output == OUTPUT_YAML) {
        output_yaml(object, 0, false);
        return;
    }
    if (call->output == OUTPUT_NAME) {
        output_name(object);
        return;
    }
    json_object_foreach((json_t *)(uintptr_t)object, key, value) widest = MAX(widest, (int)strlen(key));
    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        snprintf(name, sizeof name, "%s", key);
        printf("%-*s  %s\n", widest, name, output_cell(key, value, cell, sizeof cell));
    }
}

void output_progress(const struct invocation *call, const char *text, bool last)
{
    if (call->quiet)
        return;
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r\033[K%s%s", text, last ? "\n" : "");
    else
        fprintf(stderr, "%s\n", text);
    fflush(stderr);
}

static int columns(void)
{
    struct winsize size;
    if (!isatty(STDOUT_FILENO) || ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) < 0 || size.ws_col == 0)
        return TEXT_COLUMNS;
    return MIN((int)size.ws_col - 1, TEXT_COLUMNS);
}

void output_wrapped(const char *left, int indent, const char *text)
{
    int room = MAX(columns() - indent, TEXT_COLUMNS_MIN), used = 0;
    printf("%-*s", indent, left);
    if ((int)strlen(left) > indent)
        printf("\n%*s", indent, "");
    for (size_t n; *text != '\0'; text += n) {
        n = strcspn(text, " ");
        int w = (int)n; /* UTF-8 would be wider: help is ASCII */
        if (used > 0 && used + 1 + w > room) {
            printf("\n%*s", indent, "");
            used = 0;
        }
        printf("%s%.*s", used > 0 ? " " : "", w, text);
        used += w + (used > 0);
        n += strspn(text + n, " ");
    }
    putchar('\n');
}

/* The stream keeps that a write has failed, not why: another one tells, of an output that is broken anyway. */
static int failed_earlier(void)
{
    return write(STDOUT_FILENO, "\n", 1) < 0 ? -errno : -EIO;
}

int output_end(struct error *err)
{
    bool failed = ferror(stdout) != 0;
    int rc = fflush(stdout) != 0 ? -errno : failed ? failed_earlier() : 0;
    struct pollfd reader = {.fd = STDOUT_FILENO, .events = POLLOUT};
    if (rc < 0 && poll(&reader, 1, 0) > 0 && (reader.revents & POLLERR))
        return -EPIPE;
    return rc == 0 || rc == -EPIPE ? rc : error_errno(err, rc, "cannot write all of the output");
}
