/* The table of error kinds and the filling of struct error. */
#include "common/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct error_kind_info kinds[ERROR_KIND_COUNT] = {
#define X(symbol, code, status, exit, title) [ERROR_##symbol] = {code, status, exit, title},
    ERROR_KINDS(X)
#undef X
};

const struct error_kind_info *error_kind_info(enum error_kind kind)
{
    ASSERT((unsigned)kind < ERROR_KIND_COUNT);
    return &kinds[kind];
}

enum error_kind error_kind_from_code(const char *code)
{
    for (unsigned i = 0; i < ERROR_KIND_COUNT; i++)
        if (strcmp(kinds[i].code, code) == 0)
            return (enum error_kind)i;
    return ERROR_INTERNAL;
}

static int fill(struct error *err, int code, enum error_kind kind, const char *field, const char *format, va_list args)
{
    if (err == NULL)
        return code;
    err->code = code;
    err->kind = kind;
    snprintf(err->field, sizeof err->field, "%s", field);
    if (vsnprintf(err->text, sizeof err->text, format, args) >= (int)sizeof err->text)
        text_trim(err->text); /* it goes into JSON */
    return code;
}

int error_set(struct error *err, int code, enum error_kind kind, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fill(err, code, kind, "", format, args);
    va_end(args);
    return code;
}

int error_set_field(struct error *err, int code, enum error_kind kind, const char *field, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fill(err, code, kind, field, format, args);
    va_end(args);
    return code;
}

int error_errno(struct error *err, int code, const char *format, ...)
{
    char what[384];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    return error_set(err, code, ERROR_INTERNAL, "%s: %s", what, strerror(-code));
}

const char *error_words(const struct error *err, char *buffer, size_t size)
{
    static const char *const goes_on[] = {"is ", "must ", "has ", "takes ", "cannot ", "needs ", "of "};
    const char *field = err->field + strspn(err->field, "#/?"); /* a JSON pointer or a parameter's name */
    const char *between = ": ";
    if (err->text[0] == '\0' || *field == '\0') {
        snprintf(buffer, size, "%s", err->text[0] != '\0' ? err->text : "it did not work, and no reason is known");
        return buffer;
    }
    for (size_t i = 0; i < ARRAY_SIZE(goes_on); i++)
        if (strncmp(err->text, goes_on[i], strlen(goes_on[i])) == 0)
            between = " ";
    snprintf(buffer, size, "%s%s%s", field, between, err->text);
    return buffer;
}

void error_prefix(struct error *err, const char *format, ...)
{
    char prefix[256], text[sizeof err->text];
    va_list args;
    if (err == NULL)
        return;
    va_start(args, format);
    vsnprintf(prefix, sizeof prefix, format, args);
    va_end(args);
    memcpy(text, err->text, sizeof text);
    int n = snprintf(err->text, sizeof err->text, "%s%s", prefix, text);
    if (n >= (int)sizeof err->text) {
        err->text[sizeof err->text - 4] = '\0';
        text_trim(err->text);
        strcat(err->text, "...");
    }
}
