/* From words to struct invocation: global options, options of the verb's own, options of the body's fields. */
#include "cli/invocation.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "cli/body.h"

#define TIMEOUT_DEFAULT_S 120 /* more than a guest has by default to shut down */
#define TIMEOUT_MAX_S 86400

static const struct {
    const char *name;
    char letter;
    bool takes_value;
} globals[] = {
    {"output", 'o', true}, {"yes", 'y', false},   {"quiet", 'q', false}, {"timeout", 0, true}, {"context", 0, true},
    {"endpoint", 0, true}, {"ca", 0, true},       {"cert", 0, true},     {"key", 0, true},     {"wait", 0, false},
    {"help", 'h', false},
};

const char *invocation_option(const struct invocation *call, const char *name)
{
    for (size_t i = call->n_options; i-- > 0;)
        if (strcmp(call->options[i].name, name) == 0)
            return call->options[i].off ? NULL : call->options[i].value ? call->options[i].value : "";
    return NULL;
}

static int set_output(struct invocation *call, const char *value, struct error *err)
{
    static const char *const words[] = {"table", "json", "yaml", "name"};
    for (size_t i = 0; i < ARRAY_SIZE(words); i++)
        if (strcmp(words[i], value) == 0) {
            call->output = (enum output_format)i;
            return 0;
        }
    return error_set(err, -EINVAL, ERROR_INVALID, "--output takes table, json, yaml or name, not '%s'", value);
}

/* --yes, --yes=true, --yes=false; nothing else, for a script's empty variable is not to mean either of them. */
static int flag_value(const char *name, const char *value, bool *ret_on, struct error *err)
{
    *ret_on = value == NULL || strcmp(value, "true") == 0;
    if (*ret_on || strcmp(value, "false") == 0)
        return 0;
    return error_set(err, -EINVAL, ERROR_INVALID, "--%s takes true or false (--%s alone: true), not '%.40s'", name, name, value);
}

/* @on: of one that takes no value. */
static int set_global(struct invocation *call, const char *name, const char *value, bool on, struct error *err)
{
    if (strcmp(name, "output") == 0)
        return set_output(call, value, err);
    if (strcmp(name, "timeout") == 0) {
        char *end;
        unsigned long n = strtoul(value, &end, 10);
        if (*end != '\0' || end == value || n < 1 || n > TIMEOUT_MAX_S)
            return error_set(err, -EINVAL, ERROR_INVALID, "--timeout takes seconds from 1 to %d, not '%s'", TIMEOUT_MAX_S, value);
        call->timeout_s = (unsigned)n;
    } else if (strcmp(name, "yes") == 0) {
        call->yes = on;
    } else if (strcmp(name, "quiet") == 0) {
        call->quiet = on;
    } else if (strcmp(name, "wait") == 0) {
        call->wait = on;
    } else if (strcmp(name, "context") == 0) {
        call->context = value;
    } else if (strcmp(name, "endpoint") == 0) {
        call->endpoint = value;
    } else if (strcmp(name, "ca") == 0) {
        call->ca = value;
    } else if (strcmp(name, "cert") == 0) {
        call->cert = value;
    } else if (strcmp(name, "key") == 0) {
        call->key = value;
    }
    return 0;
}

/* The verb's own options stand in its help text as "  --name": one place for both. */
static bool own_option(const struct verb *v, const char *name, bool *ret_takes_value)
{
    char want[80];
    snprintf(want, sizeof want, "  --%s ", name);
    const char *found = v->options ? strstr(v->options, want) : NULL;
    if (found == NULL)
        return false;
    *ret_takes_value = found[strlen(want)] != ' ';
    return true;
}

static bool verb_option(const struct verb *v, const char *name, bool *ret_takes_value)
{
    if (own_option(v, name, ret_takes_value))
        return true;
    if (v->route == ROUTE_COUNT)
        return false;
    const struct route_desc *r = &schema_routes[v->route];
    *ret_takes_value = true;
    if ((r->flags & ROUTE_LIST) && (strcmp(name, "filter") == 0 || strcmp(name, "fields") == 0))
        return true;
    if ((r->flags & ROUTE_DRY) && strcmp(name, "dry-run") == 0) {
        *ret_takes_value = false;
        return true;
    }
    if ((r->flags & ROUTE_FORCE) && strcmp(name, "force") == 0) {
        *ret_takes_value = false;
        return true;
    }
    *ret_takes_value = r->body->name != NULL && !body_option_is_flag(r->body, name);
    return r->body->name != NULL && body_has_option(r->body, name);
}

/* ---- what was meant ---- */

#define WORD_BYTES_MAX 32

struct nearest {
    const char *word;
    unsigned distance;
    char found[WORD_BYTES_MAX + 1];
};

/* Letters to change, to add or to leave out (Levenshtein), or two that changed places. */
static unsigned distance(const char *a, const char *b)
{
    unsigned d[WORD_BYTES_MAX + 1][WORD_BYTES_MAX + 1];
    size_t n = strlen(a), m = strlen(b);
    if (n > WORD_BYTES_MAX || m > WORD_BYTES_MAX)
        return UINT_MAX;
    for (size_t i = 0; i <= n; i++)
        for (size_t k = 0; k <= m; k++) {
            if (i == 0 || k == 0) {
                d[i][k] = (unsigned)(i + k);
                continue;
            }
            d[i][k] = MIN(MIN(d[i - 1][k], d[i][k - 1]) + 1, d[i - 1][k - 1] + (a[i - 1] != b[k - 1]));
            if (i > 1 && k > 1 && a[i - 1] == b[k - 2] && a[i - 2] == b[k - 1])
                d[i][k] = MIN(d[i][k], d[i - 2][k - 2] + 1);
        }
    return d[n][m];
}

static void nearest_try(struct nearest *n, const char *candidate)
{
    unsigned far = distance(n->word, candidate);
    if (far < n->distance && far < strlen(candidate)) {
        n->distance = far;
        snprintf(n->found, sizeof n->found, "%s", candidate);
    }
}

/* "; is --vcpus meant?", or nothing; returns @buffer. */
static const char *nearest_words(const struct nearest *n, const char *dashes, char *buffer, size_t size)
{
    buffer[0] = '\0';
    if (n->found[0] != '\0')
        snprintf(buffer, size, "; is %s%s meant?", dashes, n->found);
    return buffer;
}

static struct nearest nearest_to(const char *word)
{
    return (struct nearest){.word = word, .distance = strlen(word) > 3 ? 3 : 2}; /* less than that */
}

/* @noun NULL: a noun; else one of its verbs. */
static struct nearest nearest_verb(const char *noun, const char *word)
{
    struct nearest n = nearest_to(word);
    for (size_t i = 0; i < verbs_count; i++)
        if (noun == NULL || strcmp(verbs[i].noun, noun) == 0)
            nearest_try(&n, noun == NULL ? verbs[i].noun : verbs[i].verb);
    return n;
}

static struct nearest nearest_option(const struct verb *v, const char *word)
{
    static const char *const of_routes[] = {"filter", "fields", "dry-run", "force"};
    struct nearest n = nearest_to(word);
    char name[WORD_BYTES_MAX + 1];
    const struct object_desc *body = v != NULL && v->route != ROUTE_COUNT ? schema_routes[v->route].body : NULL;
    for (size_t i = 0; i < ARRAY_SIZE(globals); i++)
        nearest_try(&n, globals[i].name);
    for (size_t i = 0; v != NULL && i < ARRAY_SIZE(of_routes); i++)
        if (verb_option(v, of_routes[i], &(bool){false}))
            nearest_try(&n, of_routes[i]);
    for (unsigned i = 0; body != NULL && body->name != NULL && i < body->n_fields; i++)
        if (!(body->fields[i].flags & READ_ONLY))
            nearest_try(&n, body_option_name(&body->fields[i], name, sizeof name));
    for (const char *at = v != NULL ? v->options : NULL; at != NULL && (at = strstr(at, "  --")) != NULL; at += 4) {
        snprintf(name, sizeof name, "%.*s", (int)MIN(strcspn(at + 4, " "), (size_t)WORD_BYTES_MAX), at + 4);
        nearest_try(&n, name);
    }
    return n;
}

/* ---- words ---- */

struct words {
    char **argv;
    int argc, at;
};

static int take_value(struct words *w, const char *name, char *inline_value, bool needed, const char **ret, struct error *err)
{
    *ret = inline_value;
    if (!needed || inline_value != NULL)
        return 0;
    if (w->at + 1 >= w->argc)
        return error_set(err, -EINVAL, ERROR_INVALID, "--%s needs a value", name);
    if (strncmp(w->argv[w->at + 1], "--", 2) == 0) /* rather forgotten than meant */
        return error_set(err, -EINVAL, ERROR_INVALID, "--%s needs a value; one that begins with -- is given as --%s=VALUE", name, name);
    *ret = w->argv[++w->at];
    return 0;
}

static int no_option(const struct invocation *call, const char *word, const char *name, struct error *err)
{
    const struct nearest near = name != NULL ? nearest_option(call->verb, name) : nearest_to("");
    char meant[80];
    if (call->verb == NULL)
        return error_set(err, -EINVAL, ERROR_INVALID, "there is no option %s before noun and verb; `drover --help` lists them%s", word,
                         nearest_words(&near, "--", meant, sizeof meant));
    return error_set(err, -EINVAL, ERROR_INVALID, "there is no option %s here; `drover %s %s --help` lists them%s", word,
                     call->verb->noun, call->verb->verb, nearest_words(&near, "--", meant, sizeof meant));
}

static int parse_option(struct invocation *call, struct words *w, char *word, bool *ret_help, struct error *err)
{
    char *name = word + 2, *value = NULL, letter = 0;
    if (word[1] != '-') {
        letter = word[1];
        if (word[2] != '\0')
            value = word + (word[2] == '=' ? 3 : 2);
    } else if ((value = strchr(name, '=')) != NULL) {
        *value++ = '\0';
    }
    bool shadowed = call->verb != NULL && letter == 0 && strcmp(name, "wait") != 0 && verb_option(call->verb, name, &(bool){false});
    for (size_t i = 0; i < ARRAY_SIZE(globals) && !shadowed; i++) {
        if (letter ? globals[i].letter != letter : strcmp(globals[i].name, name) != 0)
            continue;
        const char *taken;
        bool on = false;
        int rc = take_value(w, globals[i].name, value, globals[i].takes_value, &taken, err);
        if (rc == 0 && !globals[i].takes_value)
            rc = flag_value(globals[i].name, taken, &on, err);
        if (rc == 0 && strcmp(globals[i].name, "help") == 0)
            *ret_help = on;
        return rc < 0 ? rc : set_global(call, globals[i].name, taken, on, err);
    }
    bool takes_value = false;
    if (letter || call->verb == NULL || !verb_option(call->verb, name, &takes_value))
        return no_option(call, word, letter ? NULL : name, err);
    if (call->n_options == OPTIONS_MAX)
        return error_set(err, -E2BIG, ERROR_INVALID, "more than %d options", OPTIONS_MAX);
    struct option_given *o = &call->options[call->n_options];
    bool on = true;
    int rc = take_value(w, name, value, takes_value, &o->value, err);
    if (rc == 0 && !takes_value)
        rc = flag_value(name, o->value, &on, err);
    o->name = name;
    o->off = !on;
    call->n_options += rc == 0;
    return rc;
}

static int check_argument(const struct invocation *call, struct error *err)
{
    const struct verb *v = call->verb;
    if (v->argument != ARGUMENT_NONE && v->argument != ARGUMENT_NAME_OR_NONE && call->name == NULL)
        return error_set(err, -EINVAL, ERROR_INVALID, "which %s? Type it after the verb, such as: %s", v->noun, v->example);
    if (v->argument == ARGUMENT_NAME_FILE && call->file == NULL)
        return error_set(err, -EINVAL, ERROR_INVALID, "which file? Type it after the name, such as: %s", v->example);
    return 0;
}

int invocation_parse(int argc, char **argv, struct invocation *ret, struct error *err)
{
    struct words w = {argv, argc, 0};
    const char *noun = NULL;
    char meant[80];
    bool help = false;
    *ret = (struct invocation){.timeout_s = TIMEOUT_DEFAULT_S};
    for (; w.at < argc; w.at++) {
        char *word = argv[w.at];
        int rc = 0;
        if (word[0] == '-' && word[1] != '\0') {
            rc = parse_option(ret, &w, word, &help, err);
        } else if (noun == NULL) {
            noun = word;
            if (!noun_known(noun) && strcmp(noun, "help") != 0) {
                const struct nearest near = nearest_verb(NULL, noun);
                rc = error_set(err, -EINVAL, ERROR_INVALID, "there is no noun '%s'; `drover --help` lists them%s", noun,
                               nearest_words(&near, "", meant, sizeof meant));
            }
        } else if (ret->verb == NULL) {
            ret->verb = verb_find(noun, word);
            if (ret->verb == NULL) {
                const struct nearest near = nearest_verb(noun, word);
                rc = error_set(err, -EINVAL, ERROR_INVALID, "%s has no verb '%s'; `drover %s --help` lists them%s", noun, word, noun,
                               nearest_words(&near, "", meant, sizeof meant));
            }
        } else if (ret->name == NULL && ret->verb->argument != ARGUMENT_NONE) {
            ret->name = word;
        } else if (ret->new_name == NULL && ret->verb->argument == ARGUMENT_VM_AND_NEW_NAME) {
            ret->new_name = word;
        } else if (ret->file == NULL && ret->verb->argument == ARGUMENT_NAME_FILE) {
            ret->file = word;
        } else {
            rc = error_set(err, -EINVAL, ERROR_INVALID, "'%s' is one word too many; an example: %s", word, ret->verb->example);
        }
        if (rc < 0)
            return rc;
    }
    if (noun == NULL || strcmp(noun, "help") == 0 || (help && ret->verb == NULL) || ret->verb == NULL) {
        if (noun == NULL || strcmp(noun, "help") == 0)
            help_all();
        else
            help_noun(noun);
        ret->verb = NULL;
        return 0;
    }
    if (help) {
        help_verb(ret->verb);
        ret->verb = NULL;
        return 0;
    }
    return check_argument(ret, err);
}
