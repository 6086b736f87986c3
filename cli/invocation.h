/* One call of the CLI: what was typed, taken apart. */
#ifndef CLI_INVOCATION_H
#define CLI_INVOCATION_H

#include "cli/verb.h"

#define OPTIONS_MAX 64

enum output_format { OUTPUT_TABLE, OUTPUT_JSON, OUTPUT_YAML, OUTPUT_NAME };

struct option_given {
    const char *name;  /* without "--" */
    const char *value; /* NULL where none was given */
    bool off;          /* a flag, and it is =false */
};

/* Everything in it is borrowed from argv and the environment and lives as long as the process. */
struct invocation {
    const struct verb *verb;
    const char *name;              /* positional argument, or NULL */
    const char *new_name;          /* a second one (ARGUMENT_VM_AND_NEW_NAME), or NULL */
    const char *file;              /* the one after it (ARGUMENT_NAME_FILE), or NULL */
    struct option_given options[OPTIONS_MAX];
    size_t n_options;
    enum output_format output;
    bool yes, wait, quiet;
    unsigned timeout_s;            /* of the whole call */
    const char *context;           /* named context, or NULL */
    const char *endpoint, *ca, *cert, *key; /* given by option or environment, or NULL */
};

/* Words after the program's name. On failure @err tells what to type instead. Verb NULL: help was asked for and
 * has been printed. */
int invocation_parse(int argc, char **argv, struct invocation *ret, struct error *err);
/* Last value of an option of the verb; NULL where it was not given, or, of one that takes no value, last as =false. "" for a
 * bare --option. */
const char *invocation_option(const struct invocation *call, const char *name);

#endif
