/* Entry of every mutating request; see decide.h. The rules are those of apply itself: fsm_check runs its checks. */
#include "controller/command/decide_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/fsm/apply.h"
#include "controller/fsm/command_codec.h"

#define LEASE_TTL_MS 5000u

/* ---- what the parts share ---- */

void decide_uuid(const struct deciding *d, char ret_id[STATE_ID_BYTES])
{
    d->context->uuid(d->context->uuid_arg, ret_id);
    ret_id[STATE_ID_BYTES - 1] = '\0';
}

void decide_request(struct deciding *d, uint32_t status, struct command_request *request)
{
    const struct decision_context *context = d->context;
    OBJECT_TEXT(command_request, request, at, context->now);
    if (context->by != NULL && context->by[0] != '\0')
        OBJECT_TEXT(command_request, request, by, context->by);
    if (context->idempotency_key != NULL) {
        OBJECT_TEXT(command_request, request, idempotency_key, context->idempotency_key);
        OBJECT_TEXT(command_request, request, fingerprint, context->fingerprint != NULL ? context->fingerprint : "-");
    }
    OBJECT_SET(command_request, request, answer_status, status);
    d->decision->status = status;
}

int decide_finish(struct deciding *d, enum command number, void *payload)
{
    const struct object_desc *desc = command_find(number)->payload;
    object_mark(desc, payload, "request");
    int rc = object_validate(desc, payload, OBJECT_STORED, d->err);
    if (rc == 0)
        rc = fsm_check(d->state, number, payload, d->err);
    if (rc == 0 && !d->context->dry_run)
        rc = command_encode(number, payload, &d->decision->command, d->err);
    object_clear(desc, payload);
    return rc;
}

const struct record *decide_target(struct deciding *d, enum object_kind kind, const char *id, size_t id_length)
{
    const char *what = object_kind_desc.names[kind];
    const struct record *record = id != NULL ? state_find(d->state, kind, id, id_length) : NULL;
    uint64_t wanted = d->context->if_revision;
    if (record == NULL) {
        error_set(d->err, -ENOENT, ERROR_NOT_FOUND, "there is no %s '%.*s'", what, (int)MIN(id_length, (size_t)63),
                  id != NULL ? id : "");
        return NULL;
    }
    if (wanted != 0 && wanted != record->common->revision) {
        error_set(d->err, -ESTALE, ERROR_STALE, "%s '%s' has revision %llu, not %llu; read it again", what,
                  record->common->name, (unsigned long long)record->common->revision, (unsigned long long)wanted);
        return NULL;
    }
    decide_object(d, kind, record->common->id);
    return record;
}

void decide_object(struct deciding *d, enum object_kind kind, const char *id)
{
    d->decision->object_kind = kind;
    snprintf(d->decision->object_id, sizeof d->decision->object_id, "%s", id);
}

void decide_preview(struct deciding *d, const struct object_desc *desc, const void *object)
{
    bytes_writer_finish(&d->decision->preview);
    object_encode_public(desc, object, &d->decision->preview);
}

void decision_finish(struct decision *decision)
{
    if (decision == NULL)
        return;
    bytes_writer_finish(&decision->command);
    bytes_writer_finish(&decision->preview);
    *decision = (struct decision){0};
}

/* ---- idempotency ---- */

/* 1: answered before, the decision says how. 0: new. Negative: the key was used for something else. */
static int answered_before(struct deciding *d)
{
    const char *key = d->context->idempotency_key;
    const struct answer_record *answer = key != NULL ? state_answer(d->state, key) : NULL;
    if (answer == NULL)
        return 0;
    if (strcmp(answer->fingerprint, d->context->fingerprint != NULL ? d->context->fingerprint : "-") != 0)
        return error_set(d->err, -EEXIST, ERROR_KEY_REUSED,
                         "Idempotency-Key '%.80s' was used at %s for another request; use a new key", key, answer->at);
    d->decision->repeated = true;
    d->decision->status = answer->status;
    if (answer->object_id != NULL)
        decide_object(d, answer->object_kind, answer->object_id);
    if (answer->operation != NULL)
        snprintf(d->decision->operation_id, sizeof d->decision->operation_id, "%s", answer->operation);
    return 1;
}

static int check_key(struct deciding *d)
{
    const char *rule, *key = d->context->idempotency_key;
    if (key == NULL)
        return 0;
    if (strlen(key) < 1 || strlen(key) > 255 || !text_format_ok(FORMAT_any, key, &rule))
        return error_set(d->err, -EINVAL, ERROR_INVALID, "an Idempotency-Key is 1 to 255 characters of printable text");
    return answered_before(d);
}

/* Run @decide unless the key was answered before; give the decision only if all went well. */
static int finish(struct deciding *d, int rc, struct decision *ret)
{
    if (rc < 0) {
        decision_finish(d->decision);
        return rc;
    }
    *ret = *d->decision;
    return 0;
}

/* ---- routes ---- */

static int cancel(struct deciding *d, const char *id, size_t id_length)
{
    struct command_operation command = {0};
    char text[300];
    const struct record *record = decide_target(d, object_kind_OPERATION, id, id_length);
    if (record == NULL)
        return -ENOENT;
    decide_request(d, 200, &command.request);
    snprintf(text, sizeof text, "cancelled by %.200s; what is wanted of '%s' stays as it is",
             d->context->by != NULL ? d->context->by : "request", record->operation->target_name);
    OBJECT_TEXT(command_operation, &command, id, record->common->id);
    OBJECT_SET(command_operation, &command, state, operation_state_CANCELLED);
    OBJECT_TEXT(command_operation, &command, error_code, error_kind_info(ERROR_CANCELLED)->code);
    OBJECT_TEXT(command_operation, &command, error_text, text);
    snprintf(d->decision->summary, sizeof d->decision->summary, "operation %s is cancelled", record->common->id);
    decide_preview(d, record->desc, record->object);
    return decide_finish(d, COMMAND_operation, &command);
}

static int put_role(struct deciding *d, const char *id, size_t id_length, enum controller_role role)
{
    struct controller patch = {0};
    OBJECT_SET(controller, &patch, role, role);
    int rc = decide_update(d, object_kind_CONTROLLER, id, id_length, &patch);
    OBJECT_CLEAR(controller, &patch);
    return rc;
}

/* Of the host at {id}, or of the cluster. */
static int arm(struct deciding *d, const char *id, size_t id_length, bool host, bool disarmed)
{
    struct command_ha_arm command = {0};
    const char *name = state_cluster(d->state)->name;
    const struct record *record = host ? decide_target(d, object_kind_HOST, id, id_length)
                                       : decide_target(d, object_kind_CLUSTER, name, strlen(name));
    if (record == NULL)
        return -ENOENT;
    decide_request(d, 200, &command.request);
    if (host)
        OBJECT_TEXT(command_ha_arm, &command, host, record->common->id);
    OBJECT_SET(command_ha_arm, &command, disarmed, disarmed);
    snprintf(d->decision->summary, sizeof d->decision->summary, "%s %s is %s", record->desc->name, record->common->name,
             disarmed ? "disarmed" : "armed");
    decide_preview(d, record->desc, record->object);
    return decide_finish(d, COMMAND_ha_arm, &command);
}

/* Asked again it changes nothing. */
static int drain(struct deciding *d, const char *id, size_t id_length, bool draining)
{
    struct host patch = {0};
    OBJECT_SET(host, &patch, draining, draining);
    OBJECT_SET(host, &patch, schedulable, !draining);
    int rc = decide_update(d, object_kind_HOST, id, id_length, &patch);
    OBJECT_CLEAR(host, &patch);
    return rc;
}

enum plain { CREATE = 1, UPDATE, REMOVE };

/* Routes that do with an object what is done with any. */
static const struct plain_route {
    uint8_t how; /* enum plain; 0: none of these */
    uint8_t kind;
} plain_routes[ROUTE_COUNT] = {
    [ROUTE_ID_controller_remove] = {REMOVE, object_kind_CONTROLLER},
    [ROUTE_ID_host_update] = {UPDATE, object_kind_HOST},
    [ROUTE_ID_host_remove] = {REMOVE, object_kind_HOST},
    [ROUTE_ID_flavor_create] = {CREATE, object_kind_FLAVOR},
    [ROUTE_ID_flavor_update] = {UPDATE, object_kind_FLAVOR},
    [ROUTE_ID_flavor_delete] = {REMOVE, object_kind_FLAVOR},
    [ROUTE_ID_image_update] = {UPDATE, object_kind_IMAGE},
    [ROUTE_ID_image_delete] = {REMOVE, object_kind_IMAGE},
    [ROUTE_ID_network_create] = {CREATE, object_kind_NETWORK},
    [ROUTE_ID_network_update] = {UPDATE, object_kind_NETWORK},
    [ROUTE_ID_network_delete] = {REMOVE, object_kind_NETWORK},
    [ROUTE_ID_security_group_create] = {CREATE, object_kind_SECURITY_GROUP},
    [ROUTE_ID_security_group_update] = {UPDATE, object_kind_SECURITY_GROUP},
    [ROUTE_ID_security_group_delete] = {REMOVE, object_kind_SECURITY_GROUP},
    [ROUTE_ID_snapshot_update] = {UPDATE, object_kind_SNAPSHOT},
    [ROUTE_ID_backup_store_create] = {CREATE, object_kind_BACKUP_STORE},
    [ROUTE_ID_backup_store_update] = {UPDATE, object_kind_BACKUP_STORE},
    [ROUTE_ID_backup_store_delete] = {REMOVE, object_kind_BACKUP_STORE},
    [ROUTE_ID_backup_policy_create] = {CREATE, object_kind_BACKUP_POLICY},
    [ROUTE_ID_backup_policy_update] = {UPDATE, object_kind_BACKUP_POLICY},
    [ROUTE_ID_backup_policy_delete] = {REMOVE, object_kind_BACKUP_POLICY},
    [ROUTE_ID_backup_update] = {UPDATE, object_kind_BACKUP},
    [ROUTE_ID_pool_create] = {CREATE, object_kind_POOL},
    [ROUTE_ID_pool_update] = {UPDATE, object_kind_POOL},
    [ROUTE_ID_pool_delete] = {REMOVE, object_kind_POOL},
    [ROUTE_ID_volume_create] = {CREATE, object_kind_VOLUME},
    [ROUTE_ID_volume_update] = {UPDATE, object_kind_VOLUME},
    [ROUTE_ID_volume_delete] = {REMOVE, object_kind_VOLUME},
    [ROUTE_ID_token_create] = {CREATE, object_kind_TOKEN},
    [ROUTE_ID_token_delete] = {REMOVE, object_kind_TOKEN},
};

/* Volumes, snapshots and backups. */
static int route_data(struct deciding *d, enum route_id id, const char *target, size_t length, const void *body)
{
    switch (id) {
    case ROUTE_ID_snapshot_create:
        return decide_snapshot_create(d, target, length, body);
    case ROUTE_ID_volume_snapshot:
        return decide_volume_snapshot(d, target, length, body);
    case ROUTE_ID_snapshot_clone:
        return decide_snapshot_clone(d, target, length, body);
    case ROUTE_ID_snapshot_revert:
    case ROUTE_ID_snapshot_delete:
        return decide_snapshot_change(d, id, target, length, id == ROUTE_ID_snapshot_revert ? body : NULL);
    case ROUTE_ID_backup_store_attach:
        return decide_backup_attach(d, target, length);
    case ROUTE_ID_backup_store_verify:
        return decide_backup_verify(d, object_kind_BACKUP_STORE, target, length, NULL);
    case ROUTE_ID_backup_store_prune:
        return decide_backup_prune(d, target, length, body);
    case ROUTE_ID_backup_verify:
        return decide_backup_verify(d, object_kind_BACKUP, target, length, body);
    case ROUTE_ID_backup_create:
        return decide_backup_create(d, target, length, body);
    case ROUTE_ID_backup_delete:
        return decide_backup_delete(d, target, length);
    case ROUTE_ID_volume_attach:
    case ROUTE_ID_volume_detach:
        return decide_volume_attach(d, target, length, id == ROUTE_ID_volume_attach ? body : NULL);
    case ROUTE_ID_volume_forget_left:
        return decide_volume_forget_left(d, target, length);
    case ROUTE_ID_volume_move:
        return decide_volume_move(d, target, length, body);
    case ROUTE_ID_backup_restore:
        return decide_backup_restore(d, target, length, body);
    default:
        return error_set(d->err, -ENOTSUP, ERROR_NOT_SUPPORTED, "no command belongs to this route");
    }
}

static int route_vm(struct deciding *d, enum route_id id, const char *target, size_t length, const void *body)
{
    switch (id) {
    case ROUTE_ID_vm_create:
        return decide_vm_create(d, body);
    case ROUTE_ID_vm_update:
        return decide_vm_update(d, target, length, body);
    case ROUTE_ID_vm_delete:
    case ROUTE_ID_vm_start:
    case ROUTE_ID_vm_stop:
    case ROUTE_ID_vm_reboot:
    case ROUTE_ID_vm_pause:
    case ROUTE_ID_vm_resume:
        return decide_vm_want(d, id, target, length);
    case ROUTE_ID_vm_migrate:
        return decide_vm_migrate(d, target, length, body);
    case ROUTE_ID_vm_move_disk:
        return decide_vm_move_disk(d, target, length, body);
    case ROUTE_ID_vm_clone:
        return decide_vm_clone(d, target, length, body);
    case ROUTE_ID_vm_forget_left:
        return decide_vm_forget_left(d, target, length, body);
    case ROUTE_ID_vm_upgrade:
        return decide_vm_upgrade(d, target, length);
    case ROUTE_ID_node_handover:
        return decide_handover(d, body);
    default:
        return route_data(d, id, target, length, body);
    }
}

/* The cluster, its members and images; and all that is done with an object as with any. */
static int route(struct deciding *d, enum route_id id, const char *target, size_t length, const void *body)
{
    const struct plain_route *plain = &plain_routes[id];
    switch (plain->how) {
    case CREATE:
        return decide_create(d, plain->kind, body);
    case UPDATE:
        return decide_update(d, plain->kind, target, length, body);
    case REMOVE:
        return decide_remove(d, plain->kind, target, length);
    }
    switch (id) {
    case ROUTE_ID_controller_promote:
        return put_role(d, target, length, controller_role_VOTER);
    case ROUTE_ID_cluster_update:
        return decide_update(d, object_kind_CLUSTER, state_cluster(d->state)->name, strlen(state_cluster(d->state)->name), body);
    case ROUTE_ID_host_disarm:
    case ROUTE_ID_host_arm:
        return arm(d, target, length, true, id == ROUTE_ID_host_disarm);
    case ROUTE_ID_ha_disarm:
    case ROUTE_ID_ha_arm:
        return arm(d, NULL, 0, false, id == ROUTE_ID_ha_disarm);
    case ROUTE_ID_drill_begin:
        return decide_drill_begin(d, body);
    case ROUTE_ID_drill_end:
        return decide_drill_end(d, target, length);
    case ROUTE_ID_host_drain:
    case ROUTE_ID_host_undrain:
        return drain(d, target, length, id == ROUTE_ID_host_drain);
    case ROUTE_ID_image_create:
        return decide_image_create(d, body);
    case ROUTE_ID_image_distribute:
        return decide_image_distribute(d, target, length, body);
    case ROUTE_ID_operation_cancel:
        return cancel(d, target, length);
    default:
        return route_vm(d, id, target, length, body);
    }
}

int decide_route(const struct state *state, const struct decision_context *context, enum route_id id, const char *target,
                 size_t target_length, const void *body, struct decision *ret_decision, struct error *err)
{
    struct decision decision = {0};
    struct deciding d = {state, context, &decision, err};
    if (!state_initialized(state))
        return error_set(err, -EAGAIN, ERROR_NOT_INITIALIZED, "there is no cluster yet: drover-controller init makes one");
    int rc = check_key(&d);
    if (rc == 0)
        rc = route(&d, id, target, target_length, body);
    return finish(&d, MIN(rc, 0), ret_decision);
}

/* ---- the cluster and its members ---- */

static void own_id(const struct deciding *d, const struct object_desc *desc, void *object)
{
    char id[STATE_ID_BYTES];
    if (((struct record_common *)object)->id == NULL) {
        decide_uuid(d, id);
        object_set_text(desc, object, "id", id);
    }
}

int decide_init(const struct state *state, const struct decision_context *context, const struct cluster *cluster,
                const struct controller *controller, struct decision *ret_decision, struct error *err)
{
    struct decision decision = {0};
    struct deciding d = {state, context, &decision, err};
    struct command_init command = {0};
    decide_request(&d, 201, &command.request);
    OBJECT_COPY(cluster, &command.cluster, cluster);
    OBJECT_COPY(controller, &command.controller, controller);
    own_id(&d, &cluster_desc, &command.cluster);
    own_id(&d, &controller_desc, &command.controller);
    if (command.cluster.epoch == 0)
        OBJECT_SET(cluster, &command.cluster, epoch, 1);
    if (command.cluster.lease_ttl_ms == 0)
        OBJECT_SET(cluster, &command.cluster, lease_ttl_ms, LEASE_TTL_MS);
    OBJECT_SET(cluster, &command.cluster, next_raft_id, MAX(command.cluster.next_raft_id, controller->raft_id + 1));
    OBJECT_SET(controller, &command.controller, role, controller_role_VOTER);
    object_mark(&command_init_desc, &command, "cluster");
    object_mark(&command_init_desc, &command, "controller");
    decide_object(&d, object_kind_CLUSTER, command.cluster.id);
    decide_preview(&d, &cluster_desc, &command.cluster);
    snprintf(decision.summary, sizeof decision.summary, "cluster %s is made", cluster->name);
    return finish(&d, decide_finish(&d, COMMAND_init, &command), ret_decision);
}

/* The id of a newcomer that asks again before it was seen at work, else a new one. */
static void newcomer_id(const struct deciding *d, enum object_kind kind, const char *name, char ret_id[STATE_ID_BYTES],
                        uint64_t *ret_raft_id)
{
    const struct record *known = state_get(d->state, kind, name);
    bool fresh = known != NULL && (kind == object_kind_HOST ? known->host->boot_id == NULL
                                                            : known->controller->role == controller_role_SPARE);
    *ret_raft_id = kind == object_kind_HOST ? 0 : fresh ? known->controller->raft_id : state_cluster(d->state)->next_raft_id;
    if (fresh)
        snprintf(ret_id, STATE_ID_BYTES, "%s", known->common->id);
    else
        decide_uuid(d, ret_id);
}

static void fill_host(struct command_token_use *command, const struct join_request *request, const char *id)
{
    struct host *host = &command->host;
    OBJECT_TEXT(host, host, id, id);
    OBJECT_TEXT(host, host, name, request->name);
    OBJECT_TEXT(host, host, address, request->address);
    OBJECT_SET(host, host, state, host_state_UNREACHABLE); /* until it reports */
    OBJECT_SET(host, host, schedulable, true);
    OBJECT_SET(host, host, cpu_ratio_percent, DECIDE_CPU_RATIO_PERCENT);
    OBJECT_SET(host, host, generation, 1);
    object_mark(&command_token_use_desc, command, "host");
}

static void fill_controller(struct command_token_use *command, const struct join_request *request, const char *id,
                            uint64_t raft_id)
{
    struct controller *controller = &command->controller;
    OBJECT_TEXT(controller, controller, id, id);
    OBJECT_TEXT(controller, controller, name, request->name);
    OBJECT_TEXT(controller, controller, address, request->address);
    OBJECT_TEXT(controller, controller, raft_address, request->raft_address);
    OBJECT_SET(controller, controller, raft_id, raft_id);
    OBJECT_SET(controller, controller, role, controller_role_SPARE);
    object_mark(&command_token_use_desc, command, "controller");
}

int decide_join(const struct state *state, const struct decision_context *context, const char *token_id,
                const struct join_request *request, struct decision *ret_decision, uint64_t *ret_raft_id,
                struct error *err)
{
    struct decision decision = {0};
    struct deciding d = {state, context, &decision, err};
    struct command_token_use command = {0};
    char id[STATE_ID_BYTES];
    uint64_t raft_id;
    if (!state_initialized(state))
        return error_set(err, -EAGAIN, ERROR_NOT_INITIALIZED, "there is no cluster yet: drover-controller init makes one");
    if (request->role != role_HOST && request->role != role_CONTROLLER)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/role", "a host or a controller joins, not a %s",
                               role_desc.names[request->role]);
    if (request->role == role_CONTROLLER && request->raft_address == NULL)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/raft_address", "is missing: a controller needs one");
    enum object_kind kind = request->role == role_HOST ? object_kind_HOST : object_kind_CONTROLLER;
    newcomer_id(&d, kind, request->name, id, &raft_id);
    decide_request(&d, 200, &command.request);
    OBJECT_TEXT(command_token_use, &command, id, token_id);
    if (kind == object_kind_HOST)
        fill_host(&command, request, id);
    else
        fill_controller(&command, request, id, raft_id);
    decide_object(&d, kind, id);
    snprintf(decision.summary, sizeof decision.summary, "%s %s joins", object_kind_desc.names[kind], request->name);
    int rc = finish(&d, decide_finish(&d, COMMAND_token_use, &command), ret_decision);
    if (rc == 0)
        *ret_raft_id = raft_id;
    return rc;
}

int decide_controller_role(const struct state *state, const struct decision_context *context, const char *id,
                           enum controller_role role, struct decision *ret_decision, struct error *err)
{
    struct decision decision = {0};
    struct deciding d = {state, context, &decision, err};
    if (!state_initialized(state))
        return error_set(err, -EAGAIN, ERROR_NOT_INITIALIZED, "there is no cluster yet");
    return finish(&d, put_role(&d, id, strlen(id), role), ret_decision);
}
