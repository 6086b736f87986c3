/* Assertions and allocation for base.h. */
#include "common/base.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

_Noreturn void assert_failed(const char *text, const char *file, int line, const char *function)
{
    fprintf(stderr, "<2>assertion failed: %s at %s:%d in %s\n", text, file, line, function);
    abort();
}

static _Noreturn void out_of_memory(size_t size)
{
    fprintf(stderr, "<2>out of memory: %zu bytes\n", size);
    abort();
}

void *xcalloc(size_t count, size_t size)
{
    void *p = calloc(count ? count : 1, size ? size : 1);
    if (p == NULL)
        out_of_memory(count * size);
    return p;
}

void *xrealloc(void *old, size_t size)
{
    void *p = realloc(old, size ? size : 1);
    if (p == NULL)
        out_of_memory(size);
    return p;
}

char *xstrdup(const char *text)
{
    size_t size = strlen(text) + 1;
    return memcpy(xcalloc(1, size), text, size);
}

char *xasprintf(const char *format, ...)
{
    char *text = NULL;
    va_list args;
    va_start(args, format);
    int n = vasprintf(&text, format, args);
    va_end(args);
    if (n < 0)
        out_of_memory(0);
    return text;
}

void text_trim(char *text)
{
    size_t n = strlen(text), i = n;
    while (i > 0 && ((unsigned char)text[i - 1] & 0xc0) == 0x80)
        i--;
    if (i == 0)
        return;
    unsigned char lead = (unsigned char)text[i - 1];
    size_t want = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    if (n - (i - 1) < want)
        text[i - 1] = '\0';
}

void text_copy(char *buffer, size_t size, const char *text)
{
    if (snprintf(buffer, size, "%s", text) >= (int)size)
        text_trim(buffer);
}

bool text_same(const char *a, const char *b)
{
    return strcmp(a != NULL ? a : "", b != NULL ? b : "") == 0;
}
