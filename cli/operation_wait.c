/* Following an operation to its end, with a line of progress. */
#include "cli/operation_wait.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cli/verb_functions.h"
#include "cli/output.h"

#define BAR_WIDTH 30

static const char *text_of(const json_t *o, const char *field, const char *otherwise)
{
    const char *s = json_string_value(json_object_get(o, field));
    return s && *s ? s : otherwise;
}

static void show(const struct invocation *call, const json_t *o, bool last, char *previous, size_t previous_size)
{
    char bar[BAR_WIDTH + 1] = "", line[1000], clean[1000];
    json_int_t done = json_integer_value(json_object_get(o, "progress_done"));
    json_int_t total = json_integer_value(json_object_get(o, "progress_total"));
    if (total > 0 && !last) {
        int filled = (int)(MIN(done, total) * BAR_WIDTH / total);
        memset(bar, '.', BAR_WIDTH);
        memset(bar, '#', (size_t)filled);
        bar[BAR_WIDTH] = '\0';
        snprintf(line, sizeof line, "%s %s: %s [%s] %" PRId64 " of %" PRId64 " MiB", text_of(o, "kind", "operation"),
                 text_of(o, "target_name", ""), text_of(o, "step", text_of(o, "state", "")), bar, (int64_t)(done >> 20),
                 (int64_t)(total >> 20));
    } else {
        snprintf(line, sizeof line, "%s %s: %s", text_of(o, "kind", "operation"), text_of(o, "target_name", ""),
                 last ? text_of(o, "state", "?") : text_of(o, "step", text_of(o, "state", "?")));
    }
    output_clean(line, clean, sizeof clean);
    if (last || strcmp(clean, previous) != 0)
        output_progress(call, clean, last);
    snprintf(previous, previous_size, "%s", clean);
}

int operation_wait(const struct invocation *call, struct client *client, const char *id, json_t **ret_operation, struct error *err)
{
    char previous[1000] = "";
    time_t end = time(NULL) + call->timeout_s;
    CLEANUP_FREE char *path = client_path(ROUTE_ID_operation_show, id, "?wait=2s");
    for (;;) {
        struct reply reply;
        int rc = client_request(client, "GET", path, NULL, &reply, err);
        if (rc < 0) {
            reply_finish(&reply);
            return rc;
        }
        const char *state = text_of(reply.json, "state", "");
        bool ended = strcmp(state, "running") != 0;
        show(call, reply.json, ended, previous, sizeof previous);
        if (ended && strcmp(state, "succeeded") != 0)
            rc = error_set(err, -EPROTO, error_kind_from_code(text_of(reply.json, "error_code", strcmp(state, "cancelled") == 0 ? "cancelled" : "internal")),
                           "%s", text_of(reply.json, "error_text", state));
        if (!ended && time(NULL) >= end)
            rc = error_set(err, -ETIMEDOUT, ERROR_TIMEOUT,
                           "it is not done after %u s (%s); it goes on: `drover operation wait %s`", call->timeout_s,
                           text_of(reply.json, "step", "no step told"), id);
        if (ret_operation != NULL && (ended || rc < 0))
            *ret_operation = json_incref(reply.json);
        reply_finish(&reply);
        if (ended || rc < 0)
            return rc;
    }
}

int operation_wait_verb(const struct invocation *call, struct error *err)
{
    struct client client;
    json_t *operation = NULL;
    int rc = client_init(&client, call, err);
    if (rc == 0)
        rc = operation_wait(call, &client, call->name, &operation, err);
    if (rc == 0 && operation != NULL)
        output_object(call, operation);
    json_decref(operation);
    client_finish(&client);
    return rc;
}
