/* What a person or a script reads: tables, JSON, YAML, names. Text from the cluster never reaches a terminal with
 * control characters in it. */
#ifndef CLI_OUTPUT_H
#define CLI_OUTPUT_H

#include <jansson.h>

#include "cli/invocation.h"

/* @rows: array of objects. @columns: field names by comma, for the table. */
void output_list(const struct invocation *call, const json_t *rows, const char *columns);
void output_object(const struct invocation *call, const json_t *object);
/* A field's value for a table: sizes as 512 MiB, true as yes; returns @buffer. */
const char *output_cell(const char *field, const json_t *value, char *buffer, size_t size);
/* @text with control characters replaced; returns @buffer. */
const char *output_clean(const char *text, char *buffer, size_t size);
/* @left, with the blank that follows it, then @text from column @indent, in as many lines as the terminal wants (100 columns where there is none). */
void output_wrapped(const char *left, int indent, const char *text);
/* All has been written: 0; -EPIPE: the reader has had enough; else what kept it, in words. */
int output_end(struct error *err);
/* A line of progress: overwritten in place on a terminal, one line each time it matters elsewhere. On stderr. */
void output_progress(const struct invocation *call, const char *text, bool last);

#endif
