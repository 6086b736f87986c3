/* See boot_console.h. */
#include "compute/agent/boot_console.h"

#include <stdio.h>
#include <string.h>

enum { BELL = 0x07, CANCEL = 0x18, ESCAPE = 0x1b, KEPT = 256 };
enum {
    ESCAPE_BEGUN = 1, /* what follows says which it is */
    ESCAPE_SEQUENCE,  /* ESC [: to its last byte, which is a letter or the like */
    ESCAPE_CHARSET,   /* ESC ( and others with a space to '/': so, too, of which digits are */
    ESCAPE_TEXT,      /* ESC ] and others: to BEL, or to the ESC of its end */
};

bool boot_console_has(const char *line, const char *pattern)
{
    const char *star = "", *again = line; /* as if it began with one: where to go on after what did not fit */
    const char *rest = pattern;
    for (const char *at = line; *rest != '\0';) {
        if (*rest == '*') {
            star = rest++;
            again = at;
        } else if (*at == *rest && *at != '\0') {
            at++;
            rest++;
        } else if (*again == '\0') {
            return false;
        } else {
            at = ++again;
            rest = *star == '*' ? star + 1 : pattern;
        }
    }
    return true;
}

static void words_put(char to[BOOT_CONSOLE_WORDS + 1], const char *text)
{
    snprintf(to, BOOT_CONSOLE_WORDS + 1, "%.*s", BOOT_CONSOLE_WORDS, text);
    for (char *at = to; *at != '\0'; at++)
        if (*at < ' ' || *at > '~')
            *at = '?';
}

static bool looked_at(struct boot_console *c, const char *pattern)
{
    c->line[c->length] = '\0';
    if (c->seen[0] != '\0' || c->length == 0 || !boot_console_has(c->line, pattern))
        return c->seen[0] != '\0';
    words_put(c->seen, c->line);
    return true;
}

static void line_end(struct boot_console *c, const char *pattern)
{
    looked_at(c, pattern);
    if (strspn(c->line, " ") < c->length) {
        memmove(c->last[1], c->last[0], sizeof c->last - sizeof c->last[0]);
        words_put(c->last[0], c->line);
    }
    c->length = 0;
    c->line[0] = '\0';
}

static unsigned escape_next(unsigned escape, char byte)
{
    if (byte == CANCEL || (escape == ESCAPE_TEXT && byte == BELL))
        return 0;
    if (escape == ESCAPE_BEGUN && byte == '[')
        return ESCAPE_SEQUENCE;
    if (escape == ESCAPE_BEGUN && byte != '\0' && strchr("]PX^_", byte) != NULL)
        return ESCAPE_TEXT;
    if (escape == ESCAPE_BEGUN || escape == ESCAPE_CHARSET)
        return byte >= ' ' && byte <= '/' ? ESCAPE_CHARSET : 0;
    return escape == ESCAPE_SEQUENCE && byte >= '@' && byte <= '~' ? 0 : escape;
}

static void character(struct boot_console *c, char byte, const char *pattern)
{
    if (byte == ESCAPE) {
        c->escape = ESCAPE_BEGUN;
    } else if (byte == '\n') { /* the end, too, of a sequence that had none: it shall not take the rest along */
        c->escape = 0;
        line_end(c, pattern);
    } else if (c->escape != 0) {
        c->escape = escape_next(c->escape, byte);
    } else if ((unsigned char)byte >= ' ' || byte == '\t') {
        if (c->length == BOOT_CONSOLE_LINE_MAX) { /* what is looked for may lie across */
            looked_at(c, pattern);
            memmove(c->line, c->line + c->length - KEPT, KEPT);
            c->length = KEPT;
        }
        c->line[c->length++] = byte == '\t' ? ' ' : byte;
    }
}

bool boot_console_take(struct boot_console *c, const void *data, size_t size, const char *pattern)
{
    const char *bytes = data;
    for (size_t i = 0; i < size; i++)
        character(c, bytes[i], pattern);
    return looked_at(c, pattern);
}

void boot_console_words(const struct boot_console *c, char *buffer, size_t size)
{
    char now[BOOT_CONSOLE_WORDS + 1] = "";
    size_t length = 0;
    if (strspn(c->line, " ") < c->length)
        words_put(now, c->line);
    snprintf(buffer, size, "nothing");
    for (unsigned i = BOOT_CONSOLE_LAST; i-- > 0;)
        if (c->last[i][0] != '\0' && length < size)
            length += (size_t)snprintf(buffer + length, size - length, "%s'%s'", length > 0 ? ", " : "", c->last[i]);
    if (now[0] != '\0' && length < size)
        snprintf(buffer + length, size - length, "%s'%s'", length > 0 ? ", " : "", now);
}
