/* Verbs about the devices of a VM. Each reads the VM, changes one of its lists and gives that back under the revision
 * that was read; where somebody else was faster it is tried again with what there is now. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "cli/body.h"
#include "cli/client.h"
#include "cli/output.h"
#include "cli/verb_functions.h"

#define TRIES_MAX 10
#define WAIT_PAUSE_MS 200

/* Change @vm's list in place. */
typedef int (*change_fn)(const struct invocation *call, json_t *list, struct error *err);

static int vm_get(struct client *client, const struct invocation *call, struct reply *ret, struct error *err)
{
    CLEANUP_FREE char *path = client_path(ROUTE_ID_vm_show, call->name, "");
    int rc = client_request(client, "GET", path, NULL, ret, err);
    if (rc == 0 && !json_is_object(ret->json))
        rc = error_set(err, -EPROTO, ERROR_INTERNAL, "the controller's answer is no VM");
    return rc;
}

/* The list, without what only the cluster may say. */
static json_t *list_of(const json_t *vm, const char *field)
{
    const json_t *held = json_object_get(vm, field);
    json_t *list = held != NULL ? json_deep_copy(held) : json_array(), *item;
    size_t i;
    static const char *const clusters[] = {"allocated", "number",     "volume",     "attachment",  "leaving",    "forced",
                                           "place",     "moving",     "other_pool", "other_host",  "other_place", "left_reason"};
    json_array_foreach(list, i, item)
        for (size_t k = 0; k < ARRAY_SIZE(clusters); k++)
            json_object_del(item, clusters[k]);
    return list;
}

static int change_once(struct client *client, const struct invocation *call, const char *field, change_fn change,
                       json_int_t *ret_generation, struct error *err)
{
    struct reply seen = {0}, done = {0};
    json_t *body = NULL;
    int rc = vm_get(client, call, &seen, err);
    if (rc == 0) {
        json_t *list = list_of(seen.json, field);
        rc = change(call, list, err);
        body = json_object();
        json_object_set_new(body, field, list);
    }
    if (rc == 0) {
        CLEANUP_FREE char *path = client_path(ROUTE_ID_vm_update, call->name, "");
        client->if_revision = (uint64_t)json_integer_value(json_object_get(seen.json, "revision"));
        rc = client_request(client, "PATCH", path, body, &done, err);
        client->if_revision = 0;
    }
    *ret_generation = json_integer_value(json_object_get(done.json, "generation"));
    if (rc == 0 && !call->quiet && call->output != OUTPUT_TABLE)
        output_object(call, done.json);
    json_decref(body);
    reply_finish(&seen);
    reply_finish(&done);
    return rc;
}

static void pause_a_little(void)
{
    nanosleep(&(struct timespec){.tv_nsec = WAIT_PAUSE_MS * 1000000L}, NULL);
}

static int wait_for(struct client *client, const struct invocation *call, json_int_t generation, struct error *err)
{
    time_t end = time(NULL) + call->timeout_s;
    for (;;) {
        struct reply reply = {0};
        char reason[400], clean[400];
        int rc = vm_get(client, call, &reply, err);
        bool there = json_integer_value(json_object_get(reply.json, "seen_generation")) >= generation;
        const char *why = json_string_value(json_object_get(reply.json, "state_reason"));
        snprintf(reason, sizeof reason, "%s", why != NULL ? why : "its host has not said so");
        reply_finish(&reply);
        if (rc < 0 || there)
            return rc;
        if (time(NULL) >= end)
            return error_set(err, -ETIMEDOUT, ERROR_TIMEOUT, "not done within %u s: %s", call->timeout_s,
                             output_clean(reason, clean, sizeof clean));
        pause_a_little();
    }
}

static int devices_change(const struct invocation *call, const char *field, change_fn change, struct error *err)
{
    struct client client;
    json_int_t generation = 0;
    int rc = confirm(call, call->verb->confirm, call->name, err);
    if (rc < 0)
        return rc;
    rc = client_init(&client, call, err);
    for (unsigned tries = 0; rc == 0 && tries < TRIES_MAX; tries++) {
        rc = change_once(&client, call, field, change, &generation, err);
        if (rc == 0 || (err->kind != ERROR_STALE && err->kind != ERROR_CONFLICT) || tries + 1 == TRIES_MAX)
            break;
        rc = 0; /* somebody else was faster */
        pause_a_little();
    }
    if (rc == 0 && call->wait)
        rc = wait_for(&client, call, generation, err);
    if (rc == 0 && !call->quiet && call->output == OUTPUT_TABLE)
        printf("%s %s: done\n", call->verb->noun, call->name);
    client_finish(&client);
    return rc;
}

static json_t *item_with(json_t *list, const char *field, const char *value, size_t *ret_at)
{
    json_t *item;
    size_t i;
    json_array_foreach(list, i, item)
    {
        const char *has = json_string_value(json_object_get(item, field));
        if (has != NULL && strcasecmp(has, value) == 0) {
            *ret_at = i;
            return item;
        }
    }
    return NULL;
}

/* ---- the verbs ---- */

static int add(const struct invocation *call, json_t *list, struct error *err)
{
    json_t *nic = NULL;
    int rc = body_object(&vm_nic_desc, "nic", invocation_option(call, "nic"), &nic, err);
    if (rc == 0)
        json_array_append_new(list, nic);
    return rc;
}

int vm_add_nic(const struct invocation *call, struct error *err)
{
    if (invocation_option(call, "nic") == NULL)
        return error_set(err, -EINVAL, ERROR_INVALID, "--nic is needed; an example: %s", call->verb->example);
    return devices_change(call, "nics", add, err);
}

static int take_away(const struct invocation *call, json_t *list, struct error *err)
{
    const char *mac = invocation_option(call, "mac");
    size_t at;
    if (item_with(list, "mac", mac, &at) == NULL)
        return error_set(err, -ENOENT, ERROR_NOT_FOUND, "VM '%s' has no interface with the MAC address %.40s", call->name, mac);
    json_array_remove(list, at);
    return 0;
}

int vm_remove_nic(const struct invocation *call, struct error *err)
{
    if (invocation_option(call, "mac") == NULL)
        return error_set(err, -EINVAL, ERROR_INVALID, "--mac is needed; an example: %s", call->verb->example);
    return devices_change(call, "nics", take_away, err);
}

static int limit(const struct invocation *call, json_t *list, struct error *err)
{
    static const char *const options[][2] = {{"operations-per-second", "operations_per_second"},
                                             {"operations-burst", "operations_burst"},
                                             {"bytes-per-second", "bytes_per_second"},
                                             {"bytes-burst", "bytes_burst"}};
    const char *disk = invocation_option(call, "disk"), *mac = invocation_option(call, "mac");
    size_t at;
    json_t *item = item_with(list, disk != NULL ? "name" : "mac", disk != NULL ? disk : mac, &at), *limits;
    if (item == NULL)
        return error_set(err, -ENOENT, ERROR_NOT_FOUND, "VM '%s' has no %s %.60s", call->name,
                         disk != NULL ? "disk" : "interface with the MAC address", disk != NULL ? disk : mac);
    if ((limits = json_object_get(item, "limits")) == NULL)
        json_object_set_new(item, "limits", limits = json_object());
    for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
        const char *value = invocation_option(call, options[i][0]);
        uint64_t n;
        if (value != NULL && size_parse(value, &n) < 0)
            return error_set(err, -EINVAL, ERROR_INVALID, "--%s takes a number such as 500 or 10MiB, not '%.40s'", options[i][0], value);
        if (value != NULL)
            json_object_set_new(limits, options[i][1], json_integer((json_int_t)n));
    }
    return 0;
}

int vm_limit(const struct invocation *call, struct error *err)
{
    static const char *const any[] = {"operations-per-second", "operations-burst", "bytes-per-second", "bytes-burst"};
    const char *disk = invocation_option(call, "disk"), *mac = invocation_option(call, "mac");
    bool given = false;
    for (size_t i = 0; i < ARRAY_SIZE(any); i++)
        given = given || invocation_option(call, any[i]) != NULL;
    if ((disk == NULL) == (mac == NULL) || !given)
        return error_set(err, -EINVAL, ERROR_INVALID, "--disk or --mac, and at least one limit, are needed; an example: %s",
                         call->verb->example);
    return devices_change(call, disk != NULL ? "disks" : "nics", limit, err);
}
