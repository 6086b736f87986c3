/* Requests about objects without a life of their own: create, patch, remove. */
#include "controller/command/decide_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/fsm/backup_rules.h"
#include "controller/fsm/pool_members.h"
#include "controller/fsm/replica_state.h"
#include "controller/fsm/time_text.h"
#include "controller/reconcile/reconcile.h"

#define MIB (UINT64_C(1) << 20)

/* The place of an object of @kind in a put, and its name there. */
static void *part(struct command_put *command, enum object_kind kind)
{
    switch (kind) {
    case object_kind_CONTROLLER:
        return &command->controller;
    case object_kind_HOST:
        return &command->host;
    case object_kind_FLAVOR:
        return &command->flavor;
    case object_kind_IMAGE:
        return &command->image;
    case object_kind_TOKEN:
        return &command->token;
    case object_kind_VM:
        return &command->vm;
    case object_kind_CLUSTER:
        return &command->cluster;
    case object_kind_NETWORK:
        return &command->network;
    case object_kind_SECURITY_GROUP:
        return &command->security_group;
    case object_kind_SNAPSHOT:
        return &command->snapshot;
    case object_kind_BACKUP_STORE:
        return &command->backup_store;
    case object_kind_BACKUP:
        return &command->backup;
    case object_kind_BACKUP_POLICY:
        return &command->backup_policy;
    case object_kind_POOL:
        return &command->pool;
    case object_kind_VOLUME:
        return &command->volume;
    default:
        return NULL;
    }
}

static const struct object_desc *desc_of(enum object_kind kind)
{
    return object_field(&command_put_desc, object_kind_desc.names[kind])->ref.object;
}

/* ---- create ---- */

static int check_flavor(const struct flavor *flavor, struct error *err)
{
    if (flavor->memory_bytes % MIB != 0)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/memory_bytes", "is %llu; it must be a multiple of 1 MiB (1048576)",
                               (unsigned long long)flavor->memory_bytes);
    return 0;
}

static int fill_token(struct deciding *d, struct token *token)
{
    char expires_at[TIME_TEXT_BYTES];
    if (token->role == role_USER)
        return error_set_field(d->err, -EINVAL, ERROR_INVALID, "/role", "must be host or controller: nobody joins as a user");
    if (token->secret_sha256 == NULL)
        return error_set(d->err, -EINVAL, ERROR_INTERNAL, "the token has no secret");
    if (!OBJECT_HAS(token, token, ttl_s))
        OBJECT_SET(token, token, ttl_s, DECIDE_TOKEN_TTL_S);
    time_text_format(time_text_ms(d->context->now) + token->ttl_s * 1000, expires_at);
    OBJECT_TEXT(token, token, expires_at, expires_at);
    OBJECT_TEXT(token, token, secret, NULL); /* never stored */
    OBJECT_SET(token, token, uses, 0);
    return 0;
}

static void fill_network(struct network *network)
{
    if (!OBJECT_HAS(network, network, dhcp))
        OBJECT_SET(network, network, dhcp, network->ipv4_subnet != NULL);
}

/* A policy names its store by what the user has typed: one that is not there would never be backed up to, without a word. */
static int check_policy(const struct state *state, const struct backup_policy *policy, struct error *err)
{
    if (policy->store == NULL || state_get(state, object_kind_BACKUP_STORE, policy->store) != NULL)
        return 0;
    return error_set_field(err, -ENOENT, ERROR_NOT_FOUND, "/store", "there is no backup-store '%s'; `drover backup-store list` shows those that are",
                           policy->store);
}

/* As backup/store.h opens it: a place that is none shows only when the first backup is made. */
static int check_store(const struct backup_store *store, struct error *err)
{
    if (store->location[0] == '/' || strncmp(store->location, "s3://", 5) == 0)
        return 0;
    return error_set_field(err, -EINVAL, ERROR_INVALID, "/location", "must be an absolute path or s3://BUCKET[/PREFIX], not '%.100s'",
                           store->location);
}

int decide_create(struct deciding *d, enum object_kind kind, const void *body)
{
    struct command_put command = {0};
    char id[STATE_ID_BYTES];
    const struct object_desc *desc = desc_of(kind);
    void *object = part(&command, kind);
    object_copy(desc, object, body);
    decide_uuid(d, id);
    object_set_text(desc, object, "id", id);
    object_mark(&command_put_desc, &command, object_kind_desc.names[kind]);
    OBJECT_SET(command_put, &command, create, true);
    decide_request(d, 201, &command.request);
    if (kind == object_kind_NETWORK)
        fill_network(object);
    int rc = kind == object_kind_FLAVOR  ? check_flavor(object, d->err)
             : kind == object_kind_IMAGE ? decide_image_check(object, d->err)
             : kind == object_kind_TOKEN ? fill_token(d, object)
             : kind == object_kind_VOLUME ? decide_volume_fill(d, object)
             : kind == object_kind_BACKUP_POLICY ? check_policy(d->state, object, d->err)
             : kind == object_kind_BACKUP_STORE ? check_store(object, d->err)
                                         : 0;
    if (rc < 0) {
        OBJECT_CLEAR(command_put, &command);
        return rc;
    }
    if (kind == object_kind_VOLUME && decide_volume_is_filled(d, object))
        OBJECT_SET(command_put, &command, volume_filled, true);
    object_set_text(desc, object, "created_at", d->context->now);
    decide_object(d, kind, id);
    decide_preview(d, desc, object);
    snprintf(d->decision->summary, sizeof d->decision->summary, "%s %s is made", desc->name,
             ((struct record_common *)object)->name);
    return decide_finish(d, COMMAND_put, &command);
}

/* ---- patch ---- */

/* What the patch takes away travels by name. */
static void list_cleared(const struct object_desc *desc, const struct object_head *patch, struct command_put *command)
{
    for (unsigned i = 0; i < desc->n_fields; i++) {
        if (!(patch->cleared >> i & 1))
            continue;
        struct string_list *list = &command->clear;
        list->items = xrealloc(list->items, (list->count + 1) * sizeof *list->items);
        list->items[list->count++] = xstrdup(desc->fields[i].name);
        object_mark(&command_put_desc, command, "clear");
    }
}

static int check_host_patch(const struct record *record, const struct host *patch, struct error *err)
{
    if (OBJECT_HAS(host, patch, memory_reserve_bytes) && record->host->memory_bytes > 0 &&
        patch->memory_reserve_bytes > record->host->memory_bytes)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/memory_reserve_bytes", "is more than the %llu bytes that the host has",
                               (unsigned long long)record->host->memory_bytes);
    return 0;
}

/* Policies name their stores, and labels of VMs their policies and the VMs that they wait for, by name: what is renamed below them would
 * end their backups, or have them wait for nobody, without a word. */
static int check_named(const struct state *state, const struct record *record, struct error *err)
{
    for (size_t i = 0; record->kind == object_kind_BACKUP_STORE && i < state_count(state, object_kind_BACKUP_POLICY); i++) {
        const struct backup_policy *policy = state_at(state, object_kind_BACKUP_POLICY, i)->backup_policy;
        if (strcmp(policy->store, record->common->name) == 0)
            return error_set_field(err, -EBUSY, ERROR_IN_USE, "/name", "backup-store '%s' cannot be renamed: policy '%s' names it; give that "
                                   "the store's id first (--store %s)", record->common->name, policy->name, record->common->id);
    }
    const char *key = record->kind == object_kind_BACKUP_POLICY ? BACKUP_POLICY_LABEL
                      : record->kind == object_kind_VM          ? RECONCILE_AFTER_LABEL
                                                                : NULL;
    for (size_t i = 0; key != NULL && i < state_count(state, object_kind_VM); i++) {
        const struct vm *vm = state_at(state, object_kind_VM, i)->vm;
        const char *label = state_vm_label(vm, key);
        if (label != NULL && strcmp(label, record->common->name) == 0)
            return error_set_field(err, -EBUSY, ERROR_IN_USE, "/name", "%s '%s' cannot be renamed: VM '%s' has its name in the label %s",
                                   record->kind == object_kind_VM ? "VM" : "policy", record->common->name, vm->name, key);
    }
    return 0;
}

static int check_patch(const struct state *state, const struct record *record, const void *patch, struct error *err)
{
    const struct record_common *common = patch;
    if (record->kind == object_kind_HOST)
        return check_host_patch(record, patch, err);
    int rc = record->kind == object_kind_BACKUP_POLICY ? check_policy(state, patch, err) : 0;
    return rc < 0 || common->name == NULL || strcmp(common->name, record->common->name) == 0 ? rc : check_named(state, record, err);
}

int decide_update(struct deciding *d, enum object_kind kind, const char *id, size_t id_length, const void *body)
{
    return decide_update_of(d, kind, id, id_length, body, 0);
}

int decide_update_of(struct deciding *d, enum object_kind kind, const char *id, size_t id_length, const void *body,
                     uint64_t if_generation)
{
    struct command_put command = {0};
    const struct object_desc *desc = desc_of(kind);
    const struct record *record = decide_target(d, kind, id, id_length);
    if (record == NULL)
        return -ENOENT;
    int rc = check_patch(d->state, record, body, d->err);
    if (rc < 0)
        return rc;
    void *patch = part(&command, kind);
    object_merge(desc, patch, body);
    object_set_text(desc, patch, "id", record->common->id);
    list_cleared(desc, body, &command);
    object_mark(&command_put_desc, &command, object_kind_desc.names[kind]);
    if (d->context->if_revision != 0)
        OBJECT_SET(command_put, &command, if_revision, d->context->if_revision);
    if (if_generation != 0)
        OBJECT_SET(command_put, &command, if_generation, if_generation);
    if (kind == object_kind_VM && ((const struct vm *)body)->replica_host != NULL && vm_has_pools(record->vm)) {
        OBJECT_SET(command_put, &command, replica_pools, true);
        if (replica_in_pools(d->state, record->vm)) /* else older controllers can do it, too */
            OBJECT_SET(command_put, &command, replica_dirs, true);
        if (replica_has_volumes(d->state, record->vm))
            OBJECT_SET(command_put, &command, replica_volumes, true);
    }
    if (kind == object_kind_CONTROLLER)
        OBJECT_SET(command_put, &command, if_voters_index, state_cluster(d->state)->lease_voters_index);
    decide_request(d, 200, &command.request);
    CLEANUP_FREE void *after = xcalloc(1, desc->size);
    object_copy(desc, after, record->object);
    object_merge(desc, after, body);
    decide_preview(d, desc, after);
    object_clear(desc, after);
    snprintf(d->decision->summary, sizeof d->decision->summary, "%s %s is changed", desc->name, record->common->name);
    return decide_finish(d, COMMAND_put, &command);
}

/* ---- remove ---- */

/* VMs name their policy by a label: without the policy they would not be backed up any more, and nothing would say so. */
static int check_unnamed(const struct state *state, const struct record *policy, struct error *err)
{
    const struct vm *first = NULL;
    size_t more = 0;
    for (size_t i = 0; i < state_count(state, object_kind_VM); i++) {
        const struct vm *vm = state_at(state, object_kind_VM, i)->vm;
        const char *label = state_vm_label(vm, BACKUP_POLICY_LABEL);
        if (label == NULL || (strcmp(label, policy->common->name) != 0 && strcmp(label, policy->common->id) != 0))
            continue;
        more += first != NULL;
        first = first != NULL ? first : vm;
    }
    if (first == NULL)
        return 0;
    char others[40] = "";
    if (more > 0)
        snprintf(others, sizeof others, " and %zu more", more);
    return error_set(err, -EBUSY, ERROR_IN_USE,
                     "policy '%s' has VM '%s'%s backed up, by the label " BACKUP_POLICY_LABEL "; it goes by force alone, and then none of them is "
                     "backed up any more (?force=true, drover backup-policy delete --force)",
                     policy->common->name, first->name, others);
}

int decide_remove(struct deciding *d, enum object_kind kind, const char *id, size_t id_length)
{
    struct command_remove command = {0};
    const struct record *record = decide_target(d, kind, id, id_length);
    if (record == NULL)
        return -ENOENT;
    if (kind == object_kind_CONTROLLER && state_count(d->state, kind) == 1)
        return error_set(d->err, -EBUSY, ERROR_CONFLICT, "controller '%s' is the last one", record->common->name);
    if (kind == object_kind_BACKUP_POLICY && !d->context->force && check_unnamed(d->state, record, d->err) < 0)
        return -EBUSY;
    bool by_host = kind == object_kind_VOLUME && !d->context->force; /* a host does it, and then it is gone */
    decide_request(d, by_host ? 202 : 204, &command.request);
    if (kind == object_kind_VOLUME && d->context->force)
        OBJECT_SET(command_remove, &command, force, true);
    if (by_host)
        decide_preview(d, record->desc, record->object);
    OBJECT_SET(command_remove, &command, kind, kind);
    OBJECT_TEXT(command_remove, &command, id, record->common->id);
    if (d->context->if_revision != 0)
        OBJECT_SET(command_remove, &command, if_revision, d->context->if_revision);
    if (kind == object_kind_BACKUP_STORE && d->context->force)
        OBJECT_SET(command_remove, &command, with_backups, true);
    if (kind == object_kind_CONTROLLER)
        OBJECT_SET(command_remove, &command, if_voters_index, state_cluster(d->state)->lease_voters_index);
    snprintf(d->decision->summary, sizeof d->decision->summary, "%s %s is removed", record->desc->name, record->common->name);
    return decide_finish(d, COMMAND_remove, &command);
}
