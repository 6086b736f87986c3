/* host drain: ask for it, and with --wait follow it until no VM runs there any more. host loss: what would become of its VMs. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cli/client.h"
#include "cli/output.h"
#include "cli/verb_functions.h"

#define LEFT_BYTES_MAX 400
#define LOOK_S 1

static const char *text_of(const json_t *o, const char *field)
{
    const char *s = json_string_value(json_object_get(o, field));
    return s != NULL ? s : "";
}

/* How many of @vms run, their names in @left. Those that are off stay: nothing is lost when the host goes down. */
static size_t left_on(const json_t *vms, char left[LEFT_BYTES_MAX])
{
    size_t count = 0, length = 0, i;
    const json_t *vm;
    left[0] = '\0';
    json_array_foreach(vms, i, vm)
    {
        const char *state = text_of(vm, "state");
        if (strcmp(state, "stopped") == 0 || strcmp(state, "failed") == 0)
            continue;
        int n = snprintf(left + length, LEFT_BYTES_MAX - length, "%s%s", count > 0 ? ", " : "", text_of(vm, "name"));
        length = MIN(length + (size_t)MAX(n, 0), (size_t)LEFT_BYTES_MAX - 1);
        count++;
    }
    return count;
}

/* VMs that run elsewhere by now, and lack memory that is nowhere but on this host: what runs would be lost with it. */
static size_t lent_by(const json_t *operations, const char *name, char lent[LEFT_BYTES_MAX])
{
    size_t count = 0, length = 0, i;
    const json_t *operation;
    lent[0] = '\0';
    json_array_foreach(operations, i, operation)
    {
        const json_t *migration = json_object_get(json_object_get(operation, "task"), "migration");
        if (!json_is_true(json_object_get(migration, "lacking")) || strcmp(text_of(migration, "from_name"), name) != 0 ||
            strcmp(text_of(operation, "state"), "running") != 0)
            continue;
        int n = snprintf(lent + length, LEFT_BYTES_MAX - length, "%s%s", count > 0 ? ", " : "", text_of(operation, "target_name"));
        length = MIN(length + (size_t)MAX(n, 0), (size_t)LEFT_BYTES_MAX - 1);
        count++;
    }
    return count;
}

/* How many are left, in words. */
static int drain_look(struct client *client, const char *name, char line[2 * LEFT_BYTES_MAX + 200], char left[LEFT_BYTES_MAX], size_t *ret_count,
                      struct error *err)
{
    CLEANUP_FREE char *filter = xasprintf("host_name=%s", name);
    char lent[LEFT_BYTES_MAX];
    json_t *vms = NULL, *operations = NULL;
    int rc = client_list(client, ROUTE_ID_vm_list, filter, &vms, err);
    if (rc == 0)
        rc = client_list(client, ROUTE_ID_operation_list, "state=running", &operations, err);
    size_t count = rc == 0 ? left_on(vms, left) : 0, lends = rc == 0 ? lent_by(operations, name, lent) : 0;
    json_decref(vms);
    json_decref(operations);
    if (rc < 0)
        return rc;
    snprintf(line, 2 * LEFT_BYTES_MAX + 200, "draining %s: %zu VMs are left%s%s%s%s", name, count, count > 0 ? ": " : "", left,
             lends > 0 ? "; part of the memory of VMs that run elsewhere by now is still to go: " : "", lends > 0 ? lent : "");
    if (count == 0 && lends > 0)
        snprintf(left, LEFT_BYTES_MAX, "%s", lent);
    *ret_count = count + lends;
    return 0;
}

static int drain_wait(const struct invocation *call, struct client *client, const char *name, struct error *err)
{
    char left[LEFT_BYTES_MAX], line[2 * LEFT_BYTES_MAX + 200], clean[sizeof line], previous[sizeof line] = "";
    time_t end = time(NULL) + call->timeout_s;
    while (true) {
        size_t count = 0;
        int rc = drain_look(client, name, line, left, &count, err);
        if (rc < 0)
            return rc;
        output_clean(line, clean, sizeof clean);
        if (count == 0 || strcmp(clean, previous) != 0)
            output_progress(call, clean, count == 0);
        snprintf(previous, sizeof previous, "%s", clean);
        if (count == 0)
            return 0;
        if (time(NULL) >= end)
            return error_set(err, -ETIMEDOUT, ERROR_TIMEOUT,
                             "after %u s %zu VMs are left on %s (%s); it goes on; `drover vm migrate NAME` says what keeps one, "
                             "and it can be stopped and started elsewhere",
                             call->timeout_s, count, name, left);
        struct timespec pause = {.tv_sec = LOOK_S};
        nanosleep(&pause, NULL);
    }
}

int host_drain(const struct invocation *call, struct error *err)
{
    struct client client;
    struct reply reply = {0};
    int rc = client_init(&client, call, err);
    if (rc == 0) {
        CLEANUP_FREE char *path = client_path(ROUTE_ID_host_drain, call->name, "");
        rc = client_request(&client, "POST", path, NULL, &reply, err);
    }
    if (rc == 0 && call->wait)
        rc = drain_wait(call, &client, text_of(reply.json, "name"), err);
    else if (rc == 0 && call->output != OUTPUT_TABLE)
        output_object(call, reply.json);
    else if (rc == 0 && !call->quiet)
        printf("host %s: is being emptied, and %lld VMs are on it; `drover host drain %s --wait` shows how it goes\n", call->name,
               (long long)json_integer_value(json_object_get(reply.json, "vms")), call->name);
    reply_finish(&reply);
    client_finish(&client);
    return rc;
}

int host_loss(const struct invocation *call, struct error *err)
{
    struct client client;
    struct reply reply = {0};
    char clean[500];
    int rc = client_init(&client, call, err);
    if (rc == 0) {
        CLEANUP_FREE char *path = client_path(ROUTE_ID_host_loss, call->name, "");
        rc = client_request(&client, "GET", path, NULL, &reply, err);
    }
    if (rc == 0 && call->output != OUTPUT_TABLE) {
        output_object(call, reply.json);
    } else if (rc == 0) {
        printf("%s\n\n", output_clean(text_of(reply.json, "summary"), clean, sizeof clean));
        output_list(call, json_object_get(reply.json, "vms"), "vm,outcome,to,ha_priority,memory_bytes,reason");
    }
    reply_finish(&reply);
    client_finish(&client);
    return rc;
}
