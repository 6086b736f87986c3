/* The contexts file and its verbs. */
#include "cli/context.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "cli/client.h"
#include "cli/verb_functions.h"
#include "cli/output.h"
#include "common/file.h"

#define CONTEXTS_BYTES_MAX (1 << 20)

static int contexts_path(char *buffer, size_t size, struct error *err)
{
    const char *own = getenv("DROVER_CONTEXTS"), *config = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    if (own != NULL && *own != '\0')
        snprintf(buffer, size, "%s", own);
    else if (config != NULL && *config != '\0')
        snprintf(buffer, size, "%s/drover/contexts.json", config);
    else if (home != NULL && *home != '\0')
        snprintf(buffer, size, "%s/.config/drover/contexts.json", home);
    else
        return error_set(err, -ENOENT, ERROR_INVALID, "HOME is not set: set it, or DROVER_CONTEXTS to the path of the contexts file");
    return 0;
}

static int contexts_read(struct cli_contexts *ret, struct error *err)
{
    char path[PATH_MAX];
    CLEANUP_FREE char *text = NULL;
    size_t size = 0;
    *ret = (struct cli_contexts){0};
    int rc = contexts_path(path, sizeof path, err);
    if (rc < 0)
        return rc;
    rc = file_read(path, CONTEXTS_BYTES_MAX, &text, &size, err);
    if (rc == -ENOENT)
        return 0;
    if (rc == 0)
        rc = OBJECT_DECODE(cli_contexts, text, size, OBJECT_STORED, ret, err);
    if (rc < 0)
        error_prefix(err, "%s: ", path);
    return rc;
}

static int contexts_write(const struct cli_contexts *contexts, struct error *err)
{
    char path[PATH_MAX], directory[PATH_MAX];
    struct bytes_writer w = {0};
    int rc = contexts_path(path, sizeof path, err);
    if (rc < 0)
        return rc;
    snprintf(directory, sizeof directory, "%s", path);
    char *slash = strrchr(directory, '/');
    if (slash != NULL && slash != directory) {
        *slash = '\0';
        rc = file_make_directories(directory, 0700, err);
    }
    OBJECT_ENCODE(cli_contexts, contexts, &w);
    if (rc == 0)
        rc = file_write_atomic(path, w.data, w.size, 0600, err);
    bytes_writer_finish(&w);
    return rc;
}

static struct cli_context *contexts_find(const struct cli_contexts *all, const char *name)
{
    struct cli_context *items = all->contexts.items;
    for (size_t i = 0; i < all->contexts.count; i++)
        if (strcmp(items[i].name, name) == 0)
            return &items[i];
    return NULL;
}

int context_current(const char *name, struct cli_context *ret, struct error *err)
{
    struct cli_contexts all;
    int rc = contexts_read(&all, err);
    if (rc < 0)
        return rc;
    if (name == NULL)
        name = all.current;
    const struct cli_context *found = name ? contexts_find(&all, name) : NULL;
    if (found != NULL)
        OBJECT_COPY(cli_context, ret, found);
    else if (name != NULL)
        rc = error_set(err, -ENOENT, ERROR_INVALID, "there is no context '%s'; `drover context list` shows those there are", name);
    else
        rc = error_set(err, -ENOENT, ERROR_INVALID,
                       "no cluster is known here: make one with `drover cluster init`, or name one with `drover context add`");
    OBJECT_CLEAR(cli_contexts, &all);
    return rc;
}

int context_store(const struct cli_context *context, struct error *err)
{
    struct cli_contexts all;
    int rc = contexts_read(&all, err);
    if (rc < 0)
        return rc;
    struct cli_context *slot = contexts_find(&all, context->name);
    if (slot != NULL)
        OBJECT_CLEAR(cli_context, slot);
    else
        slot = OBJECT_ADD(cli_contexts, &all, contexts);
    OBJECT_COPY(cli_context, slot, context);
    OBJECT_TEXT(cli_contexts, &all, current, context->name);
    rc = object_validate(&cli_contexts_desc, &all, OBJECT_STORED, err);
    if (rc == 0)
        rc = contexts_write(&all, err);
    OBJECT_CLEAR(cli_contexts, &all);
    return rc;
}

int context_list(const struct invocation *call, struct error *err)
{
    struct cli_contexts all;
    int rc = contexts_read(&all, err);
    if (rc < 0)
        return rc;
    json_t *rows = json_array();
    const struct cli_context *items = all.contexts.items;
    for (size_t i = 0; i < all.contexts.count; i++)
        json_array_append_new(rows, json_pack("{s:s, s:s, s:b}", "name", items[i].name, "endpoint", items[i].endpoints.items[0],
                                              "current", all.current != NULL && strcmp(all.current, items[i].name) == 0));
    output_list(call, rows, "name,endpoint,current");
    json_decref(rows);
    OBJECT_CLEAR(cli_contexts, &all);
    return 0;
}

static int set_path(struct cli_context *context, const char *field, const char *given, struct error *err)
{
    char resolved[PATH_MAX];
    if (given == NULL)
        return error_set(err, -EINVAL, ERROR_INVALID, "--%s is needed: a PEM file", field);
    if (realpath(given, resolved) == NULL)
        return error_set(err, -errno, ERROR_INVALID, "--%s: cannot find %s: %s", field, given, strerror(errno));
    object_set_text(&cli_context_desc, context, field, resolved);
    return 0;
}

static int set_endpoints(struct cli_context *context, const char *given, struct error *err)
{
    CLEANUP_FREE char *copy = xstrdup(given);
    char *rest = NULL;
    for (char *word = strtok_r(copy, ", ", &rest); word != NULL; word = strtok_r(NULL, ", ", &rest)) {
        struct string_list *l = &context->endpoints;
        char *address = client_endpoint_parse(word, err);
        if (address == NULL)
            return -EINVAL;
        l->items = xrealloc(l->items, (l->count + 1) * sizeof *l->items);
        l->items[l->count++] = address;
        object_mark(&cli_context_desc, context, "endpoints");
    }
    return context->endpoints.count > 0 ? 0 : error_set(err, -EINVAL, ERROR_INVALID, "--endpoint names no address");
}

int context_add(const struct invocation *call, struct error *err)
{
    struct cli_context context = {0};
    if (call->endpoint == NULL)
        return error_set(err, -EINVAL, ERROR_INVALID, "--endpoint is needed: API addresses by comma, such as 10.0.0.1:7443");
    OBJECT_TEXT(cli_context, &context, name, call->name);
    int rc = set_endpoints(&context, call->endpoint, err);
    if (rc == 0)
        rc = set_path(&context, "ca", call->ca, err);
    if (rc == 0)
        rc = set_path(&context, "cert", call->cert, err);
    if (rc == 0)
        rc = set_path(&context, "key", call->key, err);
    if (rc == 0)
        rc = context_store(&context, err);
    if (rc == 0 && !call->quiet)
        printf("Context %s is known and current.\n", call->name);
    OBJECT_CLEAR(cli_context, &context);
    return rc;
}

static int change(const struct invocation *call, bool remove, struct error *err)
{
    struct cli_contexts all;
    int rc = contexts_read(&all, err);
    if (rc < 0)
        return rc;
    struct cli_context *items = all.contexts.items, *found = contexts_find(&all, call->name);
    if (found == NULL) {
        rc = error_set(err, -ENOENT, ERROR_NOT_FOUND, "there is no context '%s'; `drover context list` shows those there are", call->name);
    } else if (remove) {
        OBJECT_CLEAR(cli_context, found);
        memmove(found, found + 1, (size_t)(items + all.contexts.count - found - 1) * sizeof *found);
        all.contexts.count--;
        if (all.current != NULL && strcmp(all.current, call->name) == 0)
            OBJECT_TEXT(cli_contexts, &all, current, NULL);
        rc = contexts_write(&all, err);
    } else {
        OBJECT_TEXT(cli_contexts, &all, current, call->name);
        rc = contexts_write(&all, err);
    }
    OBJECT_CLEAR(cli_contexts, &all);
    return rc;
}

int context_use(const struct invocation *call, struct error *err)
{
    return change(call, false, err);
}

int context_remove(const struct invocation *call, struct error *err)
{
    int rc = confirm(call, call->verb->confirm, call->name, err);
    return rc < 0 ? rc : change(call, true, err);
}
