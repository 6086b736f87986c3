/* The verbs that are one request: list, show, create, update, delete and the actions. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cli/body.h"
#include "cli/change.h"
#include "cli/client.h"
#include "cli/label_check.h"
#include "cli/verb_functions.h"
#include "cli/operation_wait.h"
#include "cli/output.h"
#include "cli/volume_wait.h"


int confirm(const struct invocation *call, const char *question, const char *name, struct error *err)
{
    char answer[8] = "", clean[800];
    if (call->yes || question == NULL || invocation_option(call, "dry-run") != NULL)
        return 0;
    CLEANUP_FREE char *text = xasprintf(question, output_clean(name, clean, sizeof clean));
    if (!isatty(STDIN_FILENO))
        return error_set(err, -EPERM, ERROR_INVALID, "no terminal to ask on, so add --yes if this is meant: %.420s", text);
    fprintf(stderr, "%s [y/N] ", text);
    fflush(stderr);
    if (fgets(answer, sizeof answer, stdin) == NULL || (answer[0] != 'y' && answer[0] != 'Y'))
        return error_set(err, -ECANCELED, ERROR_CANCELLED, "nothing was changed");
    return 0;
}

static int check_fields(const struct object_desc *desc, const char *fields, struct error *err)
{
    char name[64];
    for (size_t length; *fields != '\0'; fields += length + (fields[length] == ',')) {
        length = strcspn(fields, ",");
        snprintf(name, sizeof name, "%.*s", (int)MIN(length, sizeof name - 1), fields);
        if (object_field(desc, name) == NULL)
            return error_set(err, -EINVAL, ERROR_UNKNOWN_FIELD, "--fields: a %s has no field '%s'", desc->name, name);
    }
    return 0;
}

static int by_age(const void *a, const void *b)
{
    const char *x = json_string_value(json_object_get(*(json_t *const *)a, "created_at"));
    const char *y = json_string_value(json_object_get(*(json_t *const *)b, "created_at"));
    return strcmp(x ? x : "", y ? y : "");
}

/* By their random ids they would be in no order at all: the newest last, as events. */
static void sort_by_age(json_t *rows)
{
    size_t n = json_array_size(rows);
    CLEANUP_FREE json_t **all = xcalloc(n + 1, sizeof *all);
    for (size_t i = 0; i < n; i++)
        all[i] = json_incref(json_array_get(rows, i));
    qsort(all, n, sizeof *all, by_age);
    for (size_t i = 0; i < n; i++)
        json_array_set_new(rows, i, all[i]);
}

static int run_list(const struct invocation *call, struct client *client, struct error *err)
{
    const char *fields = invocation_option(call, "fields");
    json_t *rows = NULL;
    int rc = check_fields(schema_routes[call->verb->route].answer, fields ? fields : "", err);
    if (rc == 0)
        rc = client_list(client, call->verb->route, invocation_option(call, "filter"), &rows, err);
    if (rc == 0 && call->verb->route == ROUTE_ID_operation_list)
        sort_by_age(rows);
    if (rc == 0)
        output_list(call, rows, fields ? fields : call->verb->columns);
    json_decref(rows);
    return rc;
}

/* Those that are made with a VM: their names follow a rule, and are said all the same. */
static void say_volumes(const json_t *operation)
{
    char clean[200];
    const json_t *volumes = json_object_get(operation, "volumes");
    for (size_t i = 0; i < json_array_size(volumes); i++)
        printf("%s%s", i == 0 ? ", with volumes " : ", ", output_clean(json_string_value(json_array_get(volumes, i)), clean, sizeof clean));
    printf("\n");
}

static void say_done(const struct invocation *call, const json_t *answer)
{
    char clean[200];
    const char *id = json_string_value(json_object_get(answer, "id"));
    if (call->quiet)
        return;
    if (call->output != OUTPUT_TABLE && answer != NULL) {
        output_object(call, answer);
    } else if (schema_routes[call->verb->route].answer == &operation_desc && id != NULL) {
        printf("%s %s: accepted, operation %s", call->verb->noun, call->name, output_clean(id, clean, sizeof clean));
        say_volumes(answer);
    } else {
        printf("%s%s%s: %s\n", call->verb->noun, call->name ? " " : "", call->name ? call->name : "",
               invocation_option(call, "dry-run") ? "would be done" : "done");
    }
}

static int wait_and_show(const struct invocation *call, struct client *client, const char *id, struct error *err)
{
    json_t *operation = NULL;
    int rc = operation_wait(call, client, id, &operation, err);
    if (operation != NULL && call->output != OUTPUT_TABLE) {
        output_object(call, operation);
    } else if (rc == 0 && !call->quiet && json_array_size(json_object_get(operation, "volumes")) > 0) {
        printf("%s %s: done", call->verb->noun, call->name);
        say_volumes(operation);
    }
    json_decref(operation);
    return rc;
}

static int wait_and_show_volume(const struct invocation *call, struct client *client, const char *id, struct error *err)
{
    json_t *volume = NULL;
    int rc = volume_wait(call, client, id, &volume, err);
    if (rc == 0)
        say_done(call, volume);
    json_decref(volume);
    return rc;
}

static int run_write(const struct invocation *call, struct client *client, struct error *err)
{
    const struct route_desc *route = &schema_routes[call->verb->route];
    static const char *const queries[] = {"", "?force=true", "?dry_run=true", "?dry_run=true&force=true"};
    bool dry = invocation_option(call, "dry-run") != NULL, force = invocation_option(call, "force") != NULL;
    json_t *body = NULL;
    struct reply reply = {0};
    int rc = confirm(call, call->verb->confirm, call->name, err);
    if (rc < 0)
        return rc;
    CLEANUP_FREE char *path = client_path(route->id, call->name, queries[2 * dry + force]);
    if (route->method == ROUTE_PATCH)
        rc = change_request(call, client, path, &reply, err);
    else if (route->body->name == NULL || (rc = body_build(call, route->body, &body, err)) == 0)
        rc = client_request(client, route_method_name(route->method), path, body, &reply, err);
    json_decref(body);
    if (rc == 0)
        labels_check(call, client);
    const char *id = json_string_value(json_object_get(reply.json, "id"));
    if (rc == 0 && call->wait && !dry && route->answer == &operation_desc && id != NULL)
        rc = wait_and_show(call, client, id, err);
    else if (rc == 0 && call->wait && !dry && route->answer == &volume_desc && id != NULL)
        rc = wait_and_show_volume(call, client, id, err);
    else if (rc == 0)
        say_done(call, reply.json);
    reply_finish(&reply);
    return rc;
}

/* How old the last complete point of a VM's replica is, by this machine's clock: what the loss of the VM's host would cost now. */
static void replica_age(json_t *vm)
{
    json_t *replica = json_object_get(vm, "replica");
    const char *at = json_string_value(json_object_get(replica, "at"));
    struct tm tm = {.tm_isdst = 0};
    if (json_is_true(json_object_get(replica, "in_sync")))
        json_object_set_new(replica, "age_s", json_integer(0));
    else if (at != NULL && strptime(at, "%Y-%m-%dT%H:%M:%S", &tm) != NULL)
        json_object_set_new(replica, "age_s", json_integer(MAX((json_int_t)(time(NULL) - timegm(&tm)), (json_int_t)0)));
}

int request_verb(const struct invocation *call, struct error *err)
{
    const struct route_desc *route = &schema_routes[call->verb->route];
    struct client client;
    int rc = client_init(&client, call, err);
    if (rc < 0) {
        client_finish(&client);
        return rc;
    }
    if (route->method != ROUTE_GET) {
        rc = run_write(call, &client, err);
    } else if (route->flags & ROUTE_LIST) {
        rc = run_list(call, &client, err);
    } else {
        struct reply reply;
        CLEANUP_FREE char *path = client_path(route->id, call->name ? call->name : "", "");
        rc = client_request(&client, "GET", path, NULL, &reply, err);
        if (rc == 0)
            replica_age(reply.json);
        if (rc == 0)
            output_object(call, reply.json);
        reply_finish(&reply);
    }
    client_finish(&client);
    return rc;
}
