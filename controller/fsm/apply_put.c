/* Objects without a life of their own: the cluster, controllers, hosts, flavors, images, tokens; and the fields of a VM
 * that its user may change. */
#include "controller/fsm/apply_migrate.h"

#include <errno.h>
#include <string.h>

#include "controller/fsm/address_pool.h"
#include "controller/fsm/pool_members.h"
#include "controller/fsm/volume_disks.h"
#include "controller/fsm/replica_state.h"
#include "controller/fsm/time_text.h"

/* ---- who uses what ---- */

static bool vm_uses(const struct vm *vm, enum object_kind kind, const char *name, const char *id)
{
    const char *used = kind == object_kind_IMAGE ? vm->image : kind == object_kind_FLAVOR ? vm->flavor : NULL;
    if (kind == object_kind_HOST)
        return (vm->host != NULL && strcmp(vm->host, id) == 0) || (vm->pin != NULL && strcmp(vm->pin, name) == 0) ||
               (vm->replica_host != NULL && strcmp(vm->replica_host, name) == 0);
    if (kind == object_kind_NETWORK)
        return vm_on_network(vm, name);
    if (kind == object_kind_SECURITY_GROUP)
        return vm_in_group(vm, name);
    if (kind == object_kind_POOL)
        return vm_in_pool(vm, name) || own_disks_need_pool(vm, name, NULL);
    return used != NULL && strcmp(used, name) == 0;
}

static bool group_refers_to(const struct security_group *group, const char *name)
{
    for (size_t i = 0; i < group->rules.count; i++) {
        const struct security_rule *rule = (const struct security_rule *)group->rules.items + i;
        if (rule->remote_group != NULL && strcmp(rule->remote_group, name) == 0)
            return true;
    }
    return false;
}

/* Refuses where a rule names the security group @record; its own rules count where it is not to be removed. */
static bool in_rules(struct apply *a, const struct record *record, const char *what_to_do, bool own_too)
{
    for (size_t i = 0; record->kind == object_kind_SECURITY_GROUP && i < state_count(a->state, record->kind); i++) {
        const struct record *other = state_at(a->state, record->kind, i);
        if ((other == record && !own_too) || !group_refers_to(other->security_group, record->common->name))
            continue;
        apply_refuse(a, -EBUSY, ERROR_IN_USE, "security group '%s' cannot be %s: a rule of '%s' names it",
                     record->common->name, what_to_do, other->common->name);
        return true;
    }
    return false;
}

/* Refuses where a VM or a volume uses @record, and names it. */
static bool in_use(struct apply *a, const struct record *record, const char *what_to_do)
{
    const struct record_index *vms = &a->state->tables[object_kind_VM].order;
    for (size_t i = 0; i < vms->count; i++) {
        bool comes = record->kind == object_kind_POOL && migration_goes_to_pool(vms->items[i], record->common->id, NULL);
        if (!comes && !vm_uses(vms->items[i]->vm, record->kind, record->common->name, record->common->id))
            continue;
        apply_refuse(a, -EBUSY, ERROR_IN_USE, "%s '%s' cannot be %s: VM '%s' uses it", record->desc->name,
                     record->common->name, what_to_do, vms->items[i]->common->name);
        return true;
    }
    return volumes_use(a, record, what_to_do);
}

/* ---- put ---- */

/* The fields that a put may change, by kind; "name" stands for a rename. */
static const char *const changeable[object_kind_COUNT][20] = {
    [object_kind_CLUSTER] = {"name", "labels", "epoch", "lease_refusal_extends", "shutdown_policy", "shutdown_timeout_s"},
    [object_kind_CONTROLLER] = {"labels", "role", "address", "raft_address"},
    [object_kind_HOST] = {"draining", "labels", "schedulable", "memory_reserve_bytes", "cpu_ratio_percent"},
    [object_kind_FLAVOR] = {"name", "labels"},
    [object_kind_VM] = {"name", "labels", "ha", "restart", "restarts_max", "restart_window_s", "stop_grace_s", "disks", "nics",
                        "ha_priority", "ha_restarts_max", "ha_window_s", "relocates_max", "replica_host", "replica_every_s", "replica_limit_s",
                        "replica_sync_s"},
    [object_kind_IMAGE] = {"name", "labels", "replicas"},
    [object_kind_NETWORK] = {"name", "labels", "ipv4_gateway", "ipv6_gateway", "dns_servers", "pools", "dhcp", "mtu"},
    [object_kind_SECURITY_GROUP] = {"name", "labels", "rules"},
    [object_kind_SNAPSHOT] = {"name", "labels"},
    [object_kind_BACKUP_STORE] = {"name", "labels", "key", "access_key", "secret_key", "bytes_per_second", "verify_every_s"},
    [object_kind_BACKUP] = {"name", "labels", "rules_due"},
    [object_kind_BACKUP_POLICY] = {"name", "labels", "store", "every_s", "paused", "freeze", "keep_last", "keep_hourly",
                                   "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly", "boot_every_s", "boot_wait_for",
                                   "boot_timeout_s"},
    [object_kind_POOL] = {"name", "labels", "hosts"},
    [object_kind_VOLUME] = {"name", "labels", "size_bytes"},
};

static bool may_change(enum object_kind kind, const char *field)
{
    for (unsigned i = 0; i < ARRAY_SIZE(changeable[kind]) && changeable[kind][i] != NULL; i++)
        if (strcmp(changeable[kind][i], field) == 0)
            return true;
    return false;
}

/* Lay the list of fields to take away over @patch->cleared, and refuse what may not be changed. */
static bool check_patch(struct apply *a, enum object_kind kind, struct record_common *patch, const struct string_list *clear)
{
    const struct object_desc *desc = state_kind_desc(kind);
    patch->head.cleared = 0;
    for (size_t i = 0; i < clear->count; i++) {
        const struct field_desc *field = object_field(desc, clear->items[i]);
        if (field == NULL || (field->flags & REQUIRED)) {
            apply_refuse_field(a, -EINVAL, ERROR_INVALID, clear->items[i], "cannot be taken away from a %s", desc->name);
            return false;
        }
        patch->head.cleared |= UINT64_C(1) << (field - desc->fields);
    }
    for (unsigned i = 0; i < desc->n_fields; i++) {
        uint64_t bit = UINT64_C(1) << i;
        const char *name = desc->fields[i].name;
        if (!((patch->head.present | patch->head.cleared) & bit) || may_change(kind, name))
            continue;
        if (strcmp(name, "id") != 0) {
            apply_refuse_field(a, -EINVAL, ERROR_INVALID, name, "of a %s cannot be changed", desc->name);
            return false;
        }
    }
    return true;
}

static bool may_rename(struct apply *a, struct record *record, const char *name)
{
    const char *rule;
    if (text_format_ok(FORMAT_id, name, &rule)) {
        apply_refuse_field(a, -EINVAL, ERROR_INVALID, "/name", "'%s' looks like an id; choose another name", name);
        return false;
    }
    if (state_edit_find(a->state, record->kind, name) != NULL) {
        apply_refuse_field(a, -EEXIST, ERROR_EXISTS, "/name", "a %s named '%s' exists; choose another name",
                           record->desc->name, name);
        return false;
    }
    return record->kind == object_kind_VM || record->kind == object_kind_CLUSTER ||
           (!in_use(a, record, "renamed") && !in_rules(a, record, "renamed", true));
}

/* Does @object, a network or security group that is to be made, make sense? Refuses if not. */
static bool check_sense(struct apply *a, enum object_kind kind, struct record_common *object, const struct command_put *command)
{
    struct error error = {.code = 0};
    if (kind == object_kind_POOL)
        return apply_pool_may_be_made(a, (void *)object);
    if (kind == object_kind_VOLUME)
        return apply_volume_may_be_made(a, (void *)object, command->volume_filled);
    int rc = kind == object_kind_NETWORK ? network_check(a->state, (void *)object, &error)
             : kind == object_kind_SECURITY_GROUP
                 ? security_group_check(a->state, object->id, object->name, (void *)object, &error)
                 : 0;
    if (rc < 0)
        apply_refuse_field(a, rc, error.kind, error.field, "%s", error.text);
    return rc == 0;
}

/* The same for what a patch would make of @record. Groups that the patch names are resolved in it. */
static bool check_patched(struct apply *a, const struct record *record, struct record_common *patch)
{
    struct network after = {.name = NULL};
    struct error error = {.code = 0};
    int rc = 0;
    if (record->kind == object_kind_POOL)
        return apply_pool_may_change(a, record, (void *)patch);
    if (record->kind == object_kind_VOLUME)
        return apply_volume_may_change(a, record, (const void *)patch);
    if (record->kind == object_kind_SECURITY_GROUP)
        rc = security_group_check(a->state, record->common->id, patch->name != NULL ? patch->name : record->common->name,
                                  (void *)patch, &error);
    if (record->kind == object_kind_NETWORK) {
        OBJECT_COPY(network, &after, record->network);
        OBJECT_TEXT(network, &after, name, record->common->name);
        object_merge(&network_desc, &after, patch);
        rc = network_check(a->state, &after, &error);
        OBJECT_CLEAR(network, &after);
    }
    if (rc < 0)
        apply_refuse_field(a, rc, error.kind, error.field, "%s", error.text);
    return rc == 0;
}

/* What hosts are to do follows from networks and security groups as well. */
static void tell_hosts(struct apply *a, const struct record *record)
{
    for (size_t i = 0; i < state_count(a->state, object_kind_HOST); i++) {
        const struct record *host = state_at(a->state, object_kind_HOST, i);
        bool uses = false;
        for (size_t k = 0; !uses && k < host->of_host.vms.count; k++)
            uses = vm_uses(host->of_host.vms.items[k]->vm, record->kind, record->common->name, record->common->id);
        if (uses)
            state_host_orders_changed(a->state, host->common->id, a->index);
    }
}

static uint64_t row_bit(const struct object_desc *desc, const char *field)
{
    return UINT64_C(1) << (object_field(desc, field) - desc->fields);
}

static void put_update(struct apply *a, enum object_kind kind, struct record_common *patch, const struct command_put *command)
{
    struct record *record = apply_find(a, kind, patch->id, command->if_revision);
    if (record == NULL || !check_patch(a, kind, patch, &command->clear))
        return;
    const char *name = patch->name != NULL && strcmp(patch->name, record->common->name) != 0 ? patch->name : NULL;
    if (name != NULL && (!may_rename(a, record, name) || (kind == object_kind_IMAGE && !apply_image_may_go(a, record))))
        return;
    if (kind == object_kind_VM && record->vm->wanted == vm_wanted_DELETED) {
        apply_refuse(a, -ENOENT, ERROR_CONFLICT, "VM '%s' is being deleted", record->common->name);
        return;
    }
    if (kind == object_kind_VM && vm_is_in_making(a, record)) /* its host says nothing of it yet */
        return;
    if (kind == object_kind_VM && ((struct vm *)(void *)patch)->ha && state_voters(a->state) < STATE_HA_VOTERS_MIN) {
        apply_refuse_field(a, -EPERM, ERROR_CONFLICT, "/ha", "ha needs %u controllers with a vote, there are %u",
                           STATE_HA_VOTERS_MIN, state_voters(a->state));
        return;
    }
    struct vm *vm_patch = kind == object_kind_VM ? (void *)patch : NULL;
    bool leased = vm_patch != NULL && vm_patch->ha && !record->vm->ha;
    if (leased && migration_under_way(record) != NULL) { /* the target's VMM was begun without the lease */
        apply_refuse_field(a, -EBUSY, ERROR_CONFLICT, "/ha", "VM '%s' is being migrated; turn ha on when that is done", record->common->name);
        return;
    }
    if (!check_patched(a, record, patch) || (vm_patch != NULL && !replica_may_change(a, record, vm_patch, command)) ||
        (vm_patch != NULL && !apply_devices_may_change(a, record, vm_patch, command->if_generation)))
        return;
    if (a->check_only)
        return;
    bool devices = vm_patch != NULL && apply_devices_given(vm_patch);
    if (devices)
        apply_members_changed(a, record->vm); /* hosts that knew its addresses */
    if (kind == object_kind_POOL)
        apply_pool_changing(a, record);
    if (name != NULL)
        state_rename(a->state, record, name);
    CLEANUP_FREE char *keeper = vm_patch != NULL && record->vm->replica_host != NULL ? xstrdup(record->vm->replica_host) : NULL;
    state_edit_begin(a->state, record);
    /* Not id and name: the maps borrow those very strings. */
    patch->head.present &= ~row_bit(record->desc, "id") & ~row_bit(record->desc, "name");
    object_merge(record->desc, record->object, patch);
    if (devices || leased)
        apply_devices_changed(record->vm);
    if (leased) /* its host may run it without the lease until it has said that it has come to this */
        OBJECT_SET(vm, record->vm, lease_generation, record->vm->generation);
    if (kind == object_kind_POOL)
        apply_pool_changed(a, record);
    if (vm_patch != NULL)
        replica_changed(a, record->vm, keeper);
    state_edit_end(a->state, record, a->index);
    if (vm_patch != NULL)
        replica_session_check(a, record);
    if (devices)
        apply_members_changed(a, record->vm);
    if (name != NULL && kind == object_kind_VM) {
        snapshots_vm_renamed(a, record);
        volumes_vm_renamed(a, record);
    } else if (name != NULL && kind == object_kind_VOLUME) {
        snapshots_volume_renamed(a, record);
    }
    apply_answer(a, record);
    apply_event(a, event_type_UPDATED, record, "%s %s changed", record->desc->name, record->common->name);
    if (kind == object_kind_VM)
        state_host_orders_changed(a->state, record->vm->host, a->index);
    else if (kind == object_kind_NETWORK || kind == object_kind_SECURITY_GROUP)
        tell_hosts(a, record);
    else if (kind == object_kind_VOLUME)
        apply_volume_changed(a, record, false);
    else if (kind == object_kind_BACKUP_STORE)
        backups_store_changed(a, record);
    if (devices)
        volumes_settle(a, record);
}

static void put_create(struct apply *a, enum object_kind kind, struct record_common *object, const struct command_put *command)
{
    if (kind == object_kind_VM || kind == object_kind_CLUSTER || kind == object_kind_SNAPSHOT ||
        kind == object_kind_BACKUP) {
        apply_refuse(a, -EINVAL, ERROR_INVALID, "a %s is not made by a put", state_kind_desc(kind)->name);
        return;
    }
    if (!apply_may_insert(a, kind, object) || !check_sense(a, kind, object, command))
        return;
    if (a->check_only)
        return;
    object_set_text(state_kind_desc(kind), object, "created_at", a->request->at);
    struct record *record = state_insert(a->state, kind, object, a->index);
    if (kind == object_kind_POOL)
        apply_pool_changing(a, record);
    apply_answer(a, record);
    if (kind == object_kind_VOLUME)
        apply_volume_changed(a, record, true);
    apply_event(a, event_type_CREATED, record, kind == object_kind_VOLUME ? "%s %s is to be made" : "%s %s made",
                record->desc->name, record->common->name);
}

void apply_put(struct apply *a, struct command_put *command)
{
    const struct {
        enum object_kind kind;
        bool given;
        void *object;
    } parts[] = {
        {object_kind_CONTROLLER, OBJECT_HAS(command_put, command, controller), &command->controller},
        {object_kind_HOST, OBJECT_HAS(command_put, command, host), &command->host},
        {object_kind_FLAVOR, OBJECT_HAS(command_put, command, flavor), &command->flavor},
        {object_kind_IMAGE, OBJECT_HAS(command_put, command, image), &command->image},
        {object_kind_TOKEN, OBJECT_HAS(command_put, command, token), &command->token},
        {object_kind_VM, OBJECT_HAS(command_put, command, vm), &command->vm},
        {object_kind_CLUSTER, OBJECT_HAS(command_put, command, cluster), &command->cluster},
        {object_kind_NETWORK, OBJECT_HAS(command_put, command, network), &command->network},
        {object_kind_SECURITY_GROUP, OBJECT_HAS(command_put, command, security_group), &command->security_group},
        {object_kind_SNAPSHOT, OBJECT_HAS(command_put, command, snapshot), &command->snapshot},
        {object_kind_BACKUP_STORE, OBJECT_HAS(command_put, command, backup_store), &command->backup_store},
        {object_kind_BACKUP_POLICY, OBJECT_HAS(command_put, command, backup_policy), &command->backup_policy},
        {object_kind_BACKUP, OBJECT_HAS(command_put, command, backup), &command->backup},
        {object_kind_POOL, OBJECT_HAS(command_put, command, pool), &command->pool},
        {object_kind_VOLUME, OBJECT_HAS(command_put, command, volume), &command->volume},
    };
    const unsigned none = ARRAY_SIZE(parts);
    unsigned found = none, count = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(parts); i++)
        if (parts[i].given) {
            found = i;
            count++;
        }
    if (!lease_voters_are(a, command->if_voters_index))
        return;
    if (count != 1)
        apply_refuse(a, -EINVAL, ERROR_INVALID, "a put is of one object, not of %u", count);
    else if (command->create)
        put_create(a, parts[found].kind, parts[found].object, command);
    else
        put_update(a, parts[found].kind, parts[found].object, command);
}

/* ---- remove ---- */

/* With fewer than three votes the loss of a controller would be the loss of every lease. */
static bool may_lose_voter(struct apply *a, const struct record *record)
{
    const struct record_index *vms = &a->state->tables[object_kind_VM].order;
    if (record->controller->role != controller_role_VOTER || state_voters(a->state) > STATE_HA_VOTERS_MIN)
        return true;
    for (size_t i = 0; i < vms->count; i++) {
        if (!vms->items[i]->vm->ha)
            continue;
        apply_refuse(a, -EBUSY, ERROR_CONFLICT,
                     "ha needs %u controllers with a vote, and VM '%s' has ha: add another controller first, or turn ha off",
                     STATE_HA_VOTERS_MIN, vms->items[i]->common->name);
        return false;
    }
    return true;
}

void apply_remove(struct apply *a, struct command_remove *command)
{
    switch (command->kind) {
    case object_kind_CONTROLLER:
    case object_kind_HOST:
    case object_kind_FLAVOR:
    case object_kind_IMAGE:
    case object_kind_TOKEN:
    case object_kind_NETWORK:
    case object_kind_SECURITY_GROUP:
    case object_kind_BACKUP_STORE:
    case object_kind_BACKUP_POLICY:
    case object_kind_POOL:
    case object_kind_VOLUME:
        break;
    case object_kind_VM: /* only what a move has left of one of its disks */
        break;
    default:
        apply_refuse(a, -EINVAL, ERROR_INVALID, "a %s is not removed so", object_kind_desc.names[command->kind]);
        return;
    }
    if (command->kind == object_kind_VM && (!command->left || command->disk == NULL)) {
        apply_refuse(a, -EINVAL, ERROR_INVALID, "a VM is not removed so");
        return;
    }
    struct record *record = apply_find(a, command->kind, command->id, command->if_revision);
    if (record == NULL || backups_use(a, record, command->with_backups) || in_use(a, record, "removed") || in_rules(a, record, "removed", false) ||
        !lease_voters_are(a, command->if_voters_index) ||
        (command->kind == object_kind_CONTROLLER && !may_lose_voter(a, record)) ||
        (command->kind == object_kind_HOST && !apply_host_may_leave_images(a, record)) ||
        (command->kind == object_kind_IMAGE && !apply_image_may_go(a, record)))
        return;
    if (command->kind == object_kind_VM) {
        own_disk_forget_left(a, record, command->disk);
        return;
    }
    if (command->kind == object_kind_VOLUME) {
        if (command->left)
            apply_volume_forget_left(a, record);
        else
            apply_volume_remove(a, record, command->force);
        return;
    }
    if (a->check_only)
        return;
    if (command->kind == object_kind_HOST) {
        tasks_host_gone(a, record, "its host was removed from the cluster");
        apply_host_leaves_images(a, record);
        apply_host_leaves_pools(a, record);
        volumes_host_gone(a, record);
        own_disks_host_gone(a, record);
    }
    if (command->kind == object_kind_POOL)
        apply_pool_changing(a, record);
    if (command->kind == object_kind_BACKUP_STORE)
        backups_forget(a, record);
    apply_event(a, event_type_DELETED, record, "%s %s removed", record->desc->name, record->common->name);
    state_remove(a->state, record);
}

/* ---- the cluster and its members ---- */

void apply_init(struct apply *a, struct command_init *command)
{
    struct cluster *cluster = &command->cluster;
    if (state_initialized(a->state)) {
        apply_refuse(a, -EEXIST, ERROR_EXISTS, "the cluster '%s' exists already", state_cluster(a->state)->name);
        return;
    }
    if (!apply_may_insert(a, object_kind_CLUSTER, (const struct record_common *)cluster) ||
        !apply_may_insert(a, object_kind_CONTROLLER, (const struct record_common *)&command->controller))
        return;
    if (a->check_only)
        return;
    OBJECT_TEXT(cluster, cluster, created_at, a->request->at);
    OBJECT_TEXT(controller, &command->controller, created_at, a->request->at);
    OBJECT_SET(controller, &command->controller, role, controller_role_VOTER);
    struct record *record = state_insert(a->state, object_kind_CLUSTER, cluster, a->index);
    apply_answer(a, record);
    apply_event(a, event_type_CREATED, record, "cluster %s made", record->common->name);
    record = state_insert(a->state, object_kind_CONTROLLER, &command->controller, a->index);
    apply_event(a, event_type_CREATED, record, "controller %s made", record->common->name);
}

static bool may_use(struct apply *a, const struct record *token, enum role role)
{
    if (token->token->role != role) {
        apply_refuse(a, -EPERM, ERROR_FORBIDDEN, "token '%s' is for a %s, not for a %s", token->common->name,
                     role_desc.names[token->token->role], role_desc.names[role]);
        return false;
    }
    if (time_text_ms(token->token->expires_at) <= time_text_ms(a->request->at)) {
        apply_refuse(a, -EPERM, ERROR_FORBIDDEN, "token '%s' ended at %s; make another", token->common->name,
                     token->token->expires_at);
        return false;
    }
    return true;
}

/* A newcomer of that identity that nobody has seen at work yet: its first answer was lost and it asks again. */
static struct record *asks_again(struct apply *a, enum object_kind kind, const struct record_common *newcomer)
{
    struct record *record = newcomer->id != NULL ? map_get(&a->state->tables[kind].by_id, newcomer->id) : NULL;
    if (record == NULL || newcomer->name == NULL || strcmp(record->common->name, newcomer->name) != 0)
        return NULL;
    bool fresh = kind == object_kind_HOST ? record->host->boot_id == NULL
                                          : record->controller->role == controller_role_SPARE;
    return fresh ? record : NULL;
}

static void join_again(struct apply *a, struct record *record, const struct record_common *newcomer)
{
    state_edit_begin(a->state, record);
    if (record->kind == object_kind_HOST) {
        OBJECT_TEXT(host, record->host, address, ((const struct host *)(const void *)newcomer)->address);
    } else {
        OBJECT_TEXT(controller, record->controller, address, ((const struct controller *)(const void *)newcomer)->address);
        OBJECT_TEXT(controller, record->controller, raft_address,
                    ((const struct controller *)(const void *)newcomer)->raft_address);
    }
    state_edit_end(a->state, record, a->index);
    apply_answer(a, record);
    apply_event(a, event_type_UPDATED, record, "%s %s asks to join again", record->desc->name, record->common->name);
}

static bool may_join(struct apply *a, enum object_kind kind, const struct record_common *newcomer)
{
    const struct controller *controller = (const void *)newcomer;
    if (!apply_may_insert(a, kind, newcomer))
        return false;
    if (kind == object_kind_CONTROLLER && controller->raft_id != state_cluster(a->state)->next_raft_id) {
        apply_refuse(a, -EAGAIN, ERROR_CONFLICT, "another controller joined at the same moment; ask again");
        return false;
    }
    return true;
}

static void join_new(struct apply *a, enum object_kind kind, struct record_common *newcomer)
{
    struct record *cluster = a->state->tables[object_kind_CLUSTER].order.items[0];
    object_set_text(state_kind_desc(kind), newcomer, "created_at", a->request->at);
    struct record *record = state_insert(a->state, kind, newcomer, a->index);
    if (kind == object_kind_CONTROLLER) {
        state_edit_begin(a->state, cluster);
        OBJECT_SET(cluster, cluster->cluster, next_raft_id, cluster->cluster->next_raft_id + 1);
        state_edit_end(a->state, cluster, a->index);
    }
    apply_answer(a, record);
    apply_event(a, event_type_CREATED, record, "%s %s joined", record->desc->name, record->common->name);
}

void apply_token_use(struct apply *a, struct command_token_use *command)
{
    bool is_host = OBJECT_HAS(command_token_use, command, host);
    enum object_kind kind = is_host ? object_kind_HOST : object_kind_CONTROLLER;
    struct record_common *newcomer = is_host ? (void *)&command->host : (void *)&command->controller;
    struct record *token = apply_find(a, object_kind_TOKEN, command->id, 0);
    if (token == NULL || !may_use(a, token, is_host ? role_HOST : role_CONTROLLER))
        return;
    struct record *again = asks_again(a, kind, newcomer);
    if (again == NULL && !may_join(a, kind, newcomer))
        return;
    if (a->check_only)
        return;
    state_edit_begin(a->state, token);
    OBJECT_SET(token, token->token, uses, token->token->uses + 1);
    state_edit_end(a->state, token, a->index);
    if (again != NULL)
        join_again(a, again, newcomer);
    else
        join_new(a, kind, newcomer);
}
