/* Changing an object: read it, lay over, ask where something would go, give it back under the revision that was read. */
#include "cli/change.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "cli/body.h"
#include "cli/output.h"
#include "cli/verb_functions.h"

#define TRIES_MAX 10
#define PAUSE_MS 100
#define LOSSES_SHOWN_MAX 6

/* ---- what a list that is given leaves out ---- */

struct losses {
    struct bytes_writer text; /* the first of them, as the options that would name them */
    size_t count;
};

static void loss_add(struct losses *l, const char *option, const char *value)
{
    char clean[400];
    if (l->count++ < LOSSES_SHOWN_MAX)
        bytes_put_format(&l->text, "%s--%s %s", l->count > 1 ? " " : "", option, output_clean(value, clean, sizeof clean));
}

static void part_put(struct bytes_writer *w, const char *name, const json_t *value)
{
    char cell[100];
    if (json_is_boolean(value))
        bytes_put_format(w, "%s%s=%s", w->size > 0 ? "," : "", name, json_is_true(value) ? "true" : "false");
    else
        bytes_put_format(w, "%s%s=%s", w->size > 0 ? "," : "", name, output_cell("", value, cell, sizeof cell));
}

/* "direction=inbound,protocol=icmp": what is typed for @item. The caller frees it. */
static char *item_text(const struct object_desc *desc, const json_t *item)
{
    struct bytes_writer w = {0};
    char name[64];
    const json_t *one;
    size_t k;
    for (unsigned i = 0; i < desc->n_fields; i++) {
        const struct field_desc *f = &desc->fields[i];
        const json_t *value = json_object_get(item, f->name);
        body_option_name(f, name, sizeof name);
        if (value == NULL || (f->flags & READ_ONLY) || f->kind == KIND_OBJ)
            continue;
        if (f->kind != KIND_STRS)
            part_put(&w, name, value);
        else
            json_array_foreach(value, k, one) part_put(&w, name, one);
    }
    bytes_put_u8(&w, 0);
    return (char *)w.data;
}

static const char *text_in(const json_t *item, const char *field)
{
    const char *text = json_string_value(json_object_get(item, field));
    return text != NULL ? text : "";
}

static json_t *item_with(const json_t *list, const char *field, const char *value)
{
    json_t *item;
    size_t i;
    json_array_foreach(list, i, item) if (strcasecmp(text_in(item, field), value) == 0) return item;
    return NULL;
}

static bool list_has(const struct object_desc *desc, const json_t *list, const json_t *item)
{
    CLEANUP_FREE char *wanted = item_text(desc, item);
    const json_t *other;
    size_t i;
    json_array_foreach(list, i, other)
    {
        CLEANUP_FREE char *text = item_text(desc, other);
        if (strcmp(text, wanted) == 0)
            return true;
    }
    return false;
}

static void texts_lost(const char *before, const char *option, const json_t *held, const json_t *given, struct losses *l)
{
    const json_t *text, *other;
    size_t i, k;
    json_array_foreach(held, i, text)
    {
        bool kept = false;
        json_array_foreach(given, k, other) kept = kept || json_equal(text, other);
        CLEANUP_FREE char *value = xasprintf("%s%s", before, json_string_value(text) ? json_string_value(text) : "");
        if (!kept)
            loss_add(l, option, value);
    }
}

/* An interface is the one with its MAC address; what is not said of it stays, but for the rest of a list of its own. */
static void interface_lost(const char *option, const json_t *held, const json_t *given, struct losses *l)
{
    const char *mac = text_in(held, "mac");
    const json_t *kept = item_with(given, "mac", mac), *groups = json_object_get(kept, "security_groups");
    CLEANUP_FREE char *itself = xasprintf("mac=%s", mac), *of_it = xasprintf("mac=%s,security-group=", mac);
    if (kept == NULL)
        loss_add(l, option, itself);
    else if (groups != NULL)
        texts_lost(of_it, option, json_object_get(held, "security_groups"), groups, l);
}

static void list_lost(const struct field_desc *f, const json_t *held, const json_t *given, struct losses *l)
{
    char option[64];
    const json_t *item;
    size_t i;
    body_option_name(f, option, sizeof option);
    if (f->kind == KIND_STRS)
        texts_lost("", option, held, given, l);
    if (f->kind != KIND_LIST)
        return;
    json_array_foreach(held, i, item)
    {
        if (f->ref.object == &vm_nic_desc) {
            interface_lost(option, item, given, l);
        } else if (!list_has(f->ref.object, given, item)) {
            CLEANUP_FREE char *text = item_text(f->ref.object, item);
            loss_add(l, option, text);
        }
    }
}

/* Disks neither come nor go so: those that are not named are as they are. */
static void disks_complete(const json_t *held, json_t *body)
{
    json_t *given = json_object_get(body, "disks"), *all = json_array(), *item;
    size_t i, k;
    if (json_array_size(given) == 0) {
        json_decref(all);
        return;
    }
    json_array_foreach(json_object_get(held, "disks"), i, item)
    {
        const char *name = text_in(item, "name");
        json_t *said = item_with(given, "name", name);
        json_array_append_new(all, said != NULL ? json_incref(said) : json_pack("{s:s}", "name", name));
        for (k = 0; said != NULL && k < json_array_size(given); k++)
            if (json_array_get(given, k) == said) {
                json_array_remove(given, k);
                break;
            }
    }
    json_array_extend(all, given); /* unknown ones: the cluster says so */
    json_object_set_new(body, "disks", all);
}

/* The question, or NULL where nothing goes. The caller frees it. */
static char *question(const struct invocation *call, const json_t *held, const json_t *body)
{
    const struct object_desc *desc = schema_routes[call->verb->route].body;
    struct losses l = {.count = 0};
    for (unsigned i = 0; i < desc->n_fields; i++) {
        const json_t *given = json_object_get(body, desc->fields[i].name);
        if (given != NULL && desc->fields[i].ref.object != &vm_disk_desc)
            list_lost(&desc->fields[i], json_object_get(held, desc->fields[i].name), given, &l);
    }
    if (l.count == 0)
        return NULL;
    bytes_put_u8(&l.text, 0);
    char *text = l.count > LOSSES_SHOWN_MAX
                     ? xasprintf("A list is given as a whole: %s %s would lose %s and %zu more. Go on?", call->verb->noun, call->name,
                                 (char *)l.text.data, l.count - LOSSES_SHOWN_MAX)
                     : xasprintf("A list is given as a whole: %s %s would lose %s. Go on?", call->verb->noun, call->name, (char *)l.text.data);
    bytes_writer_finish(&l.text);
    return text;
}

/* Asked once for the same. A dry run says it. */
static int ask(const struct invocation *call, const json_t *held, const json_t *body, char **asked, struct error *err)
{
    CLEANUP_FREE char *text = question(call, held, body);
    if (text == NULL || (*asked != NULL && strcmp(*asked, text) == 0))
        return 0;
    if (invocation_option(call, "dry-run") != NULL && !call->quiet)
        fprintf(stderr, "%.*s\n", (int)(strlen(text) - strlen(" Go on?")), text);
    int rc = confirm(call, "%s", text, err);
    free(*asked);
    *asked = TAKE_PTR(text);
    return rc;
}

/* ---- the request ---- */

static int build_and_patch(const struct invocation *call, struct client *client, const char *path, const json_t *held, char **asked,
                           struct reply *ret, struct error *err)
{
    json_t *body = NULL;
    int rc = body_build_change(call, schema_routes[call->verb->route].body, held, &body, err);
    if (rc == 0) {
        disks_complete(held, body);
        rc = ask(call, held, body, asked, err);
    }
    if (rc == 0) {
        client->if_revision = (uint64_t)json_integer_value(json_object_get(held, "revision"));
        rc = client_request(client, "PATCH", path, body, ret, err);
        client->if_revision = 0;
    }
    json_decref(body);
    return rc;
}

static int read_and_patch(const struct invocation *call, struct client *client, const char *path, char **asked, struct reply *ret,
                          struct error *err)
{
    struct reply held;
    CLEANUP_FREE char *show = client_path(call->verb->route, call->name, "");
    int rc = client_request(client, "GET", show, NULL, &held, err);
    if (rc == 0 && !json_is_object(held.json))
        rc = error_set(err, -EPROTO, ERROR_INTERNAL, "the controller's answer is no %s", call->verb->noun);
    if (rc == 0)
        rc = build_and_patch(call, client, path, held.json, asked, ret, err);
    reply_finish(&held);
    return rc;
}

int change_request(const struct invocation *call, struct client *client, const char *path, struct reply *ret, struct error *err)
{
    CLEANUP_FREE char *asked = NULL;
    *ret = (struct reply){0};
    if (!body_change_needs_held(call, schema_routes[call->verb->route].body)) {
        json_t *nothing = json_object();
        int rc = build_and_patch(call, client, path, nothing, &asked, ret, err);
        json_decref(nothing);
        return rc;
    }
    for (unsigned tries = 1;; tries++) {
        int rc = read_and_patch(call, client, path, &asked, ret, err);
        if (rc == 0 || err->kind != ERROR_STALE || tries == TRIES_MAX)
            return rc;
        reply_finish(ret);
        nanosleep(&(struct timespec){.tv_nsec = PAUSE_MS * 1000000L}, NULL);
    }
}
