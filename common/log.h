/* One line per record on standard error: "<N>" priority for journald, then key=value words.
 *
 *   log_info("vm-started", "vm=%s host=%s", vm_name, host_name);
 *   -> <6>vm-started vm=web1 host=n2
 *
 * The first word is a fixed event name, so that a line in a log leads by grep to one place in the code.
 * Text from users or guests goes through log_quote(). Safe from any thread: one write(2) per record.
 * Rooms common, schema, scheduler, migration and backup return errors and log at debug level only. */
#ifndef COMMON_LOG_H
#define COMMON_LOG_H

#include "common/base.h"

enum log_level { LOG_LEVEL_ERROR = 3, LOG_LEVEL_WARNING = 4, LOG_LEVEL_INFO = 6, LOG_LEVEL_DEBUG = 7 };

/* Highest level that is written; LOG_LEVEL_INFO at start. Call before threads start. */
void log_set_level(enum log_level level);
/* "error", "warning", "info" or "debug"; negative errno for any other word. */
int log_parse_level(const char *word, enum log_level *ret_level);
bool log_enabled(enum log_level level);
void log_write(enum log_level level, const char *event, const char *format, ...) PRINTF_LIKE(3, 4);
/* @text within quotes, control characters and quotes escaped, cut at @size; returns @buffer. */
const char *log_quote(const char *text, char *buffer, size_t size);

#define LOG_LIMIT_MS 10000 /* between two records under one limit */

/* For a record that a guest or a peer could cause without end. Zero-initialised; one thread at a time. */
struct log_limit {
    uint64_t next_ms;
    uint64_t held_back;
};
/* May the record be written at @now_ms (of any steady clock)? If so, *ret_held_back: how many were not since the last. */
bool log_limit_pass(struct log_limit *limit, uint64_t now_ms, uint64_t *ret_held_back);

#define log_error(event, ...) log_write(LOG_LEVEL_ERROR, event, __VA_ARGS__)
#define log_warning(event, ...) log_write(LOG_LEVEL_WARNING, event, __VA_ARGS__)
#define log_info(event, ...) log_write(LOG_LEVEL_INFO, event, __VA_ARGS__)
#define log_debug(event, ...)                                                                                        \
    do {                                                                                                             \
        if (log_enabled(LOG_LEVEL_DEBUG))                                                                            \
            log_write(LOG_LEVEL_DEBUG, event, __VA_ARGS__);                                                          \
    } while (0)

#endif
