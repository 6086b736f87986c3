/* The one log sink: standard error, one write per record. */
#include "common/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define LOG_LINE_MAX 2048

static enum log_level level_max = LOG_LEVEL_INFO;

void log_set_level(enum log_level level)
{
    level_max = level;
}

bool log_enabled(enum log_level level)
{
    return level <= level_max;
}

int log_parse_level(const char *word, enum log_level *ret_level)
{
    static const struct {
        const char *word;
        enum log_level level;
    } words[] = {
        {"error", LOG_LEVEL_ERROR}, {"warning", LOG_LEVEL_WARNING}, {"info", LOG_LEVEL_INFO}, {"debug", LOG_LEVEL_DEBUG}};
    for (size_t i = 0; i < ARRAY_SIZE(words); i++)
        if (strcmp(words[i].word, word) == 0) {
            *ret_level = words[i].level;
            return 0;
        }
    return -EINVAL;
}

void log_write(enum log_level level, const char *event, const char *format, ...)
{
    char line[LOG_LINE_MAX];
    int saved_errno = errno;
    if (!log_enabled(level))
        return;
    int n = snprintf(line, sizeof line, "<%d>%s ", (int)level, event);
    va_list args;
    va_start(args, format);
    int m = vsnprintf(line + n, sizeof line - (size_t)n, format, args);
    va_end(args);
    size_t len = MIN((size_t)n + (size_t)MAX(m, 0), sizeof line - 2);
    /* Words from outside may be in it: no second record, and nothing that a terminal would obey. */
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
            line[i] = ' ';
    line[len++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, len);
    (void)written; /* a lost log line must never stop the program */
    errno = saved_errno;
}

const char *log_quote(const char *text, char *buffer, size_t size)
{
    size_t n = 0;
    ASSERT(size >= 8);
    buffer[n++] = '"';
    for (; *text != '\0' && n + 6 < size; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') {
            buffer[n++] = '\\';
            buffer[n++] = (char)c;
        } else if (c < 0x20 || c == 0x7f) {
            n += (size_t)snprintf(buffer + n, size - n, "\\x%02x", c);
        } else {
            buffer[n++] = (char)c;
        }
    }
    buffer[n++] = '"';
    buffer[n] = '\0';
    return buffer;
}

bool log_limit_pass(struct log_limit *limit, uint64_t now_ms, uint64_t *ret_held_back)
{
    if (now_ms < limit->next_ms) {
        limit->held_back++;
        return false;
    }
    *ret_held_back = limit->held_back;
    *limit = (struct log_limit){.next_ms = now_ms + LOG_LIMIT_MS};
    return true;
}
