/* backup-store attach, and create --attach: the backups that a store has already become known to the cluster, page by page
 * (one operation for each), so that after the loss of a cluster a new one can restore everything. And delete --force: the
 * other way round. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli/client.h"
#include "cli/operation_wait.h"
#include "cli/output.h"
#include "cli/verb_functions.h"

/* One page. *ret_more: the store has more. */
static int page_attach(const struct invocation *call, struct client *client, bool *ret_more, struct error *err)
{
    struct reply reply = {0}, store = {0};
    CLEANUP_FREE char *path = client_path(ROUTE_ID_backup_store_attach, call->name, "");
    CLEANUP_FREE char *show = client_path(ROUTE_ID_backup_store_show, call->name, "");
    int rc = client_request(client, "POST", path, NULL, &reply, err);
    const char *id = json_string_value(json_object_get(reply.json, "id"));
    if (rc == 0 && id == NULL)
        rc = error_set(err, -EPROTO, ERROR_INTERNAL, "the controller's answer is no operation");
    if (rc == 0)
        rc = operation_wait(call, client, id, NULL, err);
    if (rc == 0)
        rc = client_request(client, "GET", show, NULL, &store, err);
    if (rc == 0)
        *ret_more = json_object_get(store.json, "attach_after") != NULL;
    reply_finish(&reply);
    reply_finish(&store);
    return rc;
}

int backup_store_attach(const struct invocation *call, struct error *err)
{
    struct client client;
    bool more = true;
    int rc = client_init(&client, call, err);
    while (rc == 0 && more)
        rc = page_attach(call, &client, &more, err);
    if (rc == 0 && !call->quiet)
        printf("backup-store %s: attached; `drover backup list --filter store_name=%s` shows what it has\n", call->name, call->name);
    client_finish(&client);
    return rc;
}

int backup_store_create(const struct invocation *call, struct error *err)
{
    int rc = request_verb(call, err);
    bool attach = invocation_option(call, "attach") != NULL && invocation_option(call, "dry-run") == NULL;
    return rc == 0 && attach ? backup_store_attach(call, err) : rc;
}

/* ---- delete ---- */

/* How many backups the cluster knows in it; 1000: or more. */
static int backups_count(const struct invocation *call, size_t *ret_count, struct error *err)
{
    struct client client;
    struct reply store = {0}, backups = {0};
    CLEANUP_FREE char *show = client_path(ROUTE_ID_backup_store_show, call->name, "");
    int rc = client_init(&client, call, err);
    if (rc == 0)
        rc = client_request(&client, "GET", show, NULL, &store, err);
    const char *id = json_string_value(json_object_get(store.json, "id"));
    CLEANUP_FREE char *query = xasprintf("?limit=1000&fields=id&filter=store=%s", id != NULL ? id : "");
    CLEANUP_FREE char *list = client_path(ROUTE_ID_backup_list, "", query);
    if (rc == 0)
        rc = client_request(&client, "GET", list, NULL, &backups, err);
    if (rc == 0)
        *ret_count = json_array_size(backups.json);
    reply_finish(&store);
    reply_finish(&backups);
    client_finish(&client);
    return rc;
}

int backup_store_delete(const struct invocation *call, struct error *err)
{
    struct invocation asked = *call;
    size_t count = 0;
    if (call->yes || invocation_option(call, "force") == NULL || invocation_option(call, "dry-run") != NULL)
        return request_verb(call, err);
    int rc = backups_count(call, &count, err);
    if (rc < 0)
        return rc;
    CLEANUP_FREE char *what = xasprintf("%s and what the cluster knows of %zu%s backups in it", call->name, count,
                                        count == 1000 ? " or more" : "");
    rc = confirm(call, "Forget backup store %s? They stay in the store, and `backup-store create --attach` finds them again", what, err);
    asked.yes = true;
    return rc < 0 ? rc : request_verb(&asked, err);
}
