/* Nouns and verbs of the CLI as one table: parsing, help, completion and requests all read it. */
#ifndef CLI_VERB_H
#define CLI_VERB_H

#include "schema/routes.h"

struct invocation;

enum verb_argument {
    ARGUMENT_NONE,
    ARGUMENT_NAME,
    ARGUMENT_NAME_OR_NONE,
    ARGUMENT_NEW_NAME,
    ARGUMENT_VM_AND_NEW_NAME, /* the VM (or volume, or snapshot) that something is made of; then, if wanted, what it is to be called */
    ARGUMENT_NAME_FILE,       /* a name, and a file of this machine */
};

struct verb {
    const char *noun, *verb;
    const char *help;    /* one sentence; NULL: that of the route */
    const char *example; /* a whole command */
    enum route_id route; /* ROUTE_COUNT: none, the verb has a function of its own */
    enum verb_argument argument;
    const char *columns; /* of a list's table, by comma */
    const char *confirm; /* asked before a dangerous thing; %s is the name. NULL: not dangerous */
    int (*run)(const struct invocation *, struct error *err); /* NULL: the generic one of request_verb.c */
    const char *options; /* help lines of options of its own, or NULL */
};

extern const struct verb verbs[];
extern const size_t verbs_count;

/* NULL where there is none. */
const struct verb *verb_find(const char *noun, const char *verb);
bool noun_known(const char *noun);

/* Help on stdout: all nouns, one noun's verbs, one verb. */
void help_all(void);
void help_noun(const char *noun);
void help_verb(const struct verb *verb);

#endif
