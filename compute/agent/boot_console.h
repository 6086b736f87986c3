/* The console of a VM that is booted to see whether it comes up: its lines as a person would see them, whether one of them has what is
 * waited for, and the last ones, for words. The bytes are the guest's: they may be anything. Pure. */
#ifndef COMPUTE_AGENT_BOOT_CONSOLE_H
#define COMPUTE_AGENT_BOOT_CONSOLE_H

#include "common/base.h"

enum { BOOT_CONSOLE_LINE_MAX = 1023, BOOT_CONSOLE_LAST = 3, BOOT_CONSOLE_WORDS = 120 };

/* Zeroed at first. */
struct boot_console {
    char line[BOOT_CONSOLE_LINE_MAX + 1]; /* the present one, which may be a prompt */
    size_t length;
    unsigned escape; /* within a control sequence of a terminal */
    char last[BOOT_CONSOLE_LAST][BOOT_CONSOLE_WORDS + 1]; /* lines that had anything in them; the newest first */
    char seen[BOOT_CONSOLE_WORDS + 1];                    /* the line that had it */
};

/* Has @line @pattern in it? "*" stands for any text, all else for itself. Costs at most their lengths' product. */
bool boot_console_has(const char *line, const char *pattern);
/* True: one of the lines, perhaps begun before, has @pattern, and is in ->seen. */
bool boot_console_take(struct boot_console *c, const void *data, size_t size, const char *pattern);
/* 'the line before', 'the last line': printable; "nothing" where there was none. */
void boot_console_words(const struct boot_console *c, char *buffer, size_t size);

#endif
