/* backup verify and backup prune: of a store that need not be named where there is only one. A prune asks first for what would
 * go (a dry run), shows it, and then removes nothing else. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli/body.h"
#include "cli/client.h"
#include "cli/operation_wait.h"
#include "cli/output.h"
#include "cli/verb_functions.h"

/* The store that is named, or the only one there is. The caller frees *ret_store. */
static int store_choose(const struct invocation *call, struct client *client, char **ret_store, struct error *err)
{
    const char *given = invocation_option(call, "store");
    struct reply reply = {0};
    if (given != NULL && given[0] != '\0') {
        *ret_store = xstrdup(given);
        return 0;
    }
    CLEANUP_FREE char *path = client_path(ROUTE_ID_backup_store_list, "", "?limit=2&fields=name");
    int rc = client_request(client, "GET", path, NULL, &reply, err);
    size_t count = json_array_size(reply.json);
    const char *name = json_string_value(json_object_get(json_array_get(reply.json, 0), "name"));
    if (rc == 0 && count == 0)
        rc = error_set(err, -ENOENT, ERROR_NOT_FOUND, "there is no backup store yet; make one (drover backup-store create)");
    else if (rc == 0 && (count > 1 || name == NULL))
        rc = error_set(err, -EINVAL, ERROR_INVALID, "there are several backup stores; say which: --store NAME");
    if (rc == 0)
        *ret_store = xstrdup(name);
    reply_finish(&reply);
    return rc;
}

/* Asks for the work; waits for its end where that is wanted. @what: for the words. */
static int work_ask(const struct invocation *call, struct client *client, const char *path, json_t *body, const char *what,
                    struct error *err)
{
    struct reply reply = {0};
    json_t *ended = NULL;
    char clean[800];
    int rc = client_request(client, "POST", path, body, &reply, err);
    const char *id = json_string_value(json_object_get(reply.json, "id"));
    if (rc == 0 && id == NULL)
        rc = error_set(err, -EPROTO, ERROR_INTERNAL, "the controller's answer is no operation");
    if (rc == 0 && call->wait)
        rc = operation_wait(call, client, id, &ended, err);
    const json_t *shown = ended != NULL ? ended : reply.json;
    const char *step = json_string_value(json_object_get(ended, "step"));
    if (shown != NULL && call->output != OUTPUT_TABLE && (rc == 0 || ended != NULL))
        output_object(call, shown);
    else if (rc == 0 && !call->quiet && call->wait)
        printf("%s: %s\n", what, step != NULL ? output_clean(step, clean, sizeof clean) : "done");
    else if (rc == 0 && !call->quiet)
        printf("%s: accepted, operation %s\n", what, output_clean(id, clean, sizeof clean));
    json_decref(ended);
    reply_finish(&reply);
    return rc;
}

int backup_verify(const struct invocation *call, struct error *err)
{
    struct client client;
    CLEANUP_FREE char *store = NULL;
    json_t *body = NULL;
    int rc = client_init(&client, call, err);
    if (rc == 0)
        rc = body_build(call, schema_routes[ROUTE_ID_backup_verify].body, &body, err);
    if (rc == 0 && call->name == NULL && json_object_size(body) > 0)
        rc = error_set(err, -EINVAL, ERROR_INVALID, "name the backup that is to be booted: a whole store is only read");
    if (rc == 0 && call->name == NULL)
        rc = store_choose(call, &client, &store, err);
    if (rc == 0) {
        CLEANUP_FREE char *what = call->name != NULL ? xasprintf("backup %s", call->name) : xasprintf("backup-store %s", store);
        CLEANUP_FREE char *path = call->name != NULL ? client_path(ROUTE_ID_backup_verify, call->name, "")
                                                     : client_path(ROUTE_ID_backup_store_verify, store, "");
        rc = work_ask(call, &client, path, json_object_size(body) > 0 ? body : NULL, what, err);
    }
    json_decref(body);
    client_finish(&client);
    return rc;
}

/* ---- prune ---- */

static void plan_show(const struct invocation *call, const json_t *plan, bool dry)
{
    const json_t *goes = json_object_get(plan, "goes");
    if (dry && call->output != OUTPUT_TABLE) {
        output_object(call, plan);
        return;
    }
    if (call->quiet || (call->yes && !dry) || call->output != OUTPUT_TABLE)
        return;
    if (json_array_size(goes) > 0)
        output_list(call, goes, call->verb->columns);
    printf("%zu backups %s, %lld stay%s\n", json_array_size(goes), dry ? "would go" : "are to go",
           (long long)json_integer_value(json_object_get(plan, "kept")),
           json_is_true(json_object_get(plan, "more")) ? "; more would go with another prune" : "");
}

/* Nothing else goes than what was shown. */
static void body_bind(json_t *body, const json_t *plan)
{
    const json_t *goes = json_object_get(plan, "goes"), *one;
    json_t *ids = json_array();
    size_t i;
    json_array_foreach(goes, i, one)
        json_array_append(ids, json_object_get(one, "id"));
    if (i > 0)
        json_object_set(body, "backups", ids);
    else
        json_object_set_new(body, "collect_only", json_true());
    json_decref(ids);
}

static int store_prune(const struct invocation *call, struct client *client, const char *store, json_t *body, struct error *err)
{
    struct reply plan = {0};
    bool dry = invocation_option(call, "dry-run") != NULL;
    CLEANUP_FREE char *try = client_path(ROUTE_ID_backup_store_prune, store, "?dry_run=true");
    CLEANUP_FREE char *path = client_path(ROUTE_ID_backup_store_prune, store, "");
    CLEANUP_FREE char *what = xasprintf("backup-store %s", store);
    int rc = client_request(client, "POST", try, body, &plan, err);
    size_t count = json_array_size(json_object_get(plan.json, "goes"));
    CLEANUP_FREE char *these = xasprintf("%zu backups from store %s", count, store);
    if (rc == 0)
        plan_show(call, plan.json, dry);
    if (rc == 0 && !dry && count > 0)
        rc = confirm(call, "Remove these %s for good?", these, err);
    if (rc == 0 && !dry) {
        body_bind(body, plan.json);
        rc = work_ask(call, client, path, body, what, err);
    }
    reply_finish(&plan);
    return rc;
}

int backup_prune(const struct invocation *call, struct error *err)
{
    struct client client;
    CLEANUP_FREE char *store = NULL;
    json_t *body = NULL;
    int rc = client_init(&client, call, err);
    if (rc == 0)
        rc = store_choose(call, &client, &store, err);
    if (rc == 0)
        rc = body_build(call, schema_routes[ROUTE_ID_backup_store_prune].body, &body, err);
    if (rc == 0)
        rc = store_prune(call, &client, store, body, err);
    json_decref(body);
    client_finish(&client);
    return rc;
}
