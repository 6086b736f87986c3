/* The drill of backup and restore, with a VM of its own:
 *
 *   VM from --image runs a while -> off -> backup A -> VM deleted -> VM anew, as empty as at the first time, ran once, off
 *     -> A restored to it -> backup B of what its disks are now -> the contents of A and B are the same -> it runs again
 *
 * Both backups are made of all that is on the disks, and each says which content that is (snapshot_disk.content): what B has read
 * from the disks of the restored VM is compared with what A has read from those of the deleted one. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli/body.h"
#include "cli/drill_steps.h"
#include "cli/drill_text.h"
#include "schema/objects.h"

#define RUN_US 5000000 /* that its guest has for writing */
#define MEMORY_BYTES (UINT64_C(256) << 20)

static bool put_check(struct drill *d, const char *what, bool ok, const char *detail)
{
    json_array_append_new(d->checks, json_pack("{s:s, s:b, s:s}", "check", what, "ok", ok, "detail", detail));
    return ok;
}

/* The store that is meant; "" and words: none. */
static const char *choose_store(struct drill *d, json_t *stores, char *why, size_t why_size)
{
    const char *wanted = invocation_option(d->call, "store");
    const json_t *o;
    size_t i;
    json_array_foreach(stores, i, o)
        if (wanted == NULL ? json_array_size(stores) == 1 : strcmp(json_text(o, "name"), wanted) == 0)
            return json_text(o, "name");
    if (wanted != NULL)
        snprintf(why, why_size, "there is no backup store '%.80s'", wanted);
    else
        snprintf(why, why_size, "%s", json_array_size(stores) == 0 ? "there is none: `drover backup-store create`" : "which one? --store NAME");
    return "";
}

bool drill_check_backup_restore(struct drill *d)
{
    char why[200] = "";
    json_t *stores = NULL;
    struct error err = {.text = ""};
    const char *image = invocation_option(d->call, "image");
    bool ok = put_check(d, "image", image != NULL, image != NULL ? image : "--image NAME is needed, of an image with a disk");
    if (drill_get(d, "/v1/backup-stores?limit=1000", &stores, &err) < 0)
        ok = put_check(d, "backup store", false, err.text);
    else {
        const char *store = choose_store(d, stores, why, sizeof why);
        snprintf(d->store, sizeof d->store, "%s", store);
        ok = put_check(d, "backup store", *store != '\0', *store != '\0' ? store : why) && ok;
    }
    json_decref(stores);
    return ok;
}

/* ---- steps ---- */

static int act(struct drill *d, const char *method, enum route_id route, const char *id, const char *query, const json_t *body, struct error *err)
{
    CLEANUP_FREE char *path = client_path(route, id, query);
    return drill_do(d, method, path, body, NULL, err);
}

static int power_off(struct drill *d, struct error *err)
{
    return act(d, "POST", ROUTE_ID_vm_stop, d->id, "?force=true", NULL, err);
}

/* It runs for a while, and is off. */
static int make_vm(struct drill *d, struct error *err)
{
    const char *memory = invocation_option(d->call, "memory");
    uint64_t bytes = MEMORY_BYTES;
    if (memory != NULL && size_parse(memory, &bytes) < 0)
        return error_set(err, -EINVAL, ERROR_INVALID, "--memory takes a size such as 256MiB, not '%.40s'", memory);
    json_t *body = json_pack("{s:s, s:s, s:i, s:I}", "name", d->id, "image", invocation_option(d->call, "image"), "vcpus", 1, "memory_bytes",
                             (json_int_t)bytes);
    int rc = drill_do(d, "POST", "/v1/vms", body, NULL, err);
    json_decref(body);
    if (rc < 0)
        return rc;
    drill_pause_us(RUN_US);
    return power_off(d, err);
}

/* Of the VM as it is now; *ret is its record. */
static int back_up(struct drill *d, const char *suffix, json_t **ret, struct error *err)
{
    CLEANUP_FREE char *name = xasprintf("%s-%s", d->id, suffix);
    CLEANUP_FREE char *path = client_path(ROUTE_ID_backup_show, name, "");
    json_t *body = json_pack("{s:s, s:s}", "name", name, "store", d->store);
    int64_t begin_us = drill_now_us();
    int rc = act(d, "POST", ROUTE_ID_backup_create, d->id, "", body, err);
    json_decref(body);
    if (rc == 0)
        rc = drill_get(d, path, ret, err);
    CLEANUP_FREE char *step = xasprintf("backup %s", suffix);
    if (rc == 0)
        drill_step(d, step, begin_us);
    return rc;
}

/* The content of @disk in @backup; "": it is not there. */
static const char *content_of(const json_t *backup, const char *disk)
{
    const json_t *o;
    size_t i;
    json_array_foreach(json_object_get(backup, "disks"), i, o)
        if (strcmp(json_text(o, "name"), disk) == 0)
            return json_text(o, "content");
    return "";
}

static void compare(struct drill *d, const json_t *before, const json_t *after)
{
    const json_t *disks = json_object_get(before, "disks"), *o;
    size_t i;
    if (json_array_size(disks) == 0 || json_array_size(disks) != json_array_size(json_object_get(after, "disks")))
        drill_fail(d, "the backups have %zu and %zu disks", json_array_size(disks), json_array_size(json_object_get(after, "disks")));
    json_array_foreach(disks, i, o)
    {
        const char *name = json_text(o, "name"), *was = json_text(o, "content"), *is = content_of(after, name);
        if (*was == '\0' || *is == '\0')
            drill_fail(d, "the host does not say what is on disk %s: its agent is older than this drill", name);
        else if (strcmp(was, is) != 0)
            drill_fail(d, "disk %s of the restored VM is not what it was", name);
        else
            drill_tell(d, "disk %s is what it was: %.16s", name, is);
    }
}

static int restore(struct drill *d, const json_t *backup, struct error *err)
{
    int64_t begin_us = drill_now_us();
    json_t *body = json_pack("{s:s}", "vm", d->id);
    int rc = act(d, "POST", ROUTE_ID_backup_restore, json_text(backup, "id"), "", body, err);
    json_decref(body);
    if (rc == 0)
        drill_step(d, "restore", begin_us);
    return rc;
}

static int go_through(struct drill *d, json_t **ret_before, json_t **ret_after, struct error *err)
{
    int rc = make_vm(d, err);
    if (rc < 0)
        return rc;
    drill_tell(d, "VM %s has run for %d s and is off", d->id, RUN_US / 1000000);
    if ((rc = back_up(d, "before", ret_before, err)) < 0)
        return rc;
    drill_tell(d, "it is backed up");
    if ((rc = act(d, "DELETE", ROUTE_ID_vm_delete, d->id, "", NULL, err)) < 0)
        return rc;
    drill_tell(d, "it is deleted");
    if ((rc = make_vm(d, err)) < 0 || (rc = restore(d, *ret_before, err)) < 0)
        return rc;
    drill_tell(d, "its backup is restored to a new one");
    if ((rc = back_up(d, "after", ret_after, err)) < 0)
        return rc;
    compare(d, *ret_before, *ret_after);
    int64_t begin_us = drill_now_us();
    if ((rc = act(d, "POST", ROUTE_ID_vm_start, d->id, "", NULL, err)) < 0)
        return rc;
    drill_step(d, "start", begin_us);
    drill_tell(d, "it runs again");
    return 0;
}

static void remove_own(struct drill *d, enum route_id route, const char *what, const char *id)
{
    struct error err = {.code = 0};
    char words[200];
    int rc = act(d, "DELETE", route, id, "", NULL, &err);
    snprintf(words, sizeof words, "%s %s removed", what, id);
    drill_note_put_back(d, words, rc, &err);
}

int drill_run_backup_restore(struct drill *d, struct error *err)
{
    json_t *before = NULL, *after = NULL;
    struct error why = {.text = ""};
    (void)err;
    d->fault_us = drill_now_us();
    if (go_through(d, &before, &after, &why) < 0)
        drill_fail(d, "%s", why.text);
    remove_own(d, ROUTE_ID_vm_delete, "VM", d->id);
    if (before != NULL)
        remove_own(d, ROUTE_ID_backup_delete, "backup", json_text(before, "name"));
    if (after != NULL)
        remove_own(d, ROUTE_ID_backup_delete, "backup", json_text(after, "name"));
    json_decref(before);
    json_decref(after);
    return 0;
}
