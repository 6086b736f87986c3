/* Requests about volumes: what is left open when one is made is chosen here - its size, its host, the name of its disk. */
#include "controller/command/decide_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/fsm/apply_migrate.h"
#include "controller/fsm/pool_members.h"
#include "controller/fsm/volume_disks.h"

#define MIB (UINT64_C(1) << 20)
#define SECTOR_BYTES 512u
#define DISK_NAME_BYTES 16

/* The first error says why the pool can be used nowhere. */
static int nowhere(struct deciding *d, const struct volume *volume, const struct pool *pool, uint64_t most_bytes, bool any)
{
    const struct pool_host *first = pool->members.count > 0 ? pool->members.items : NULL;
    if (any)
        return error_set_field(d->err, -ENOSPC, ERROR_NO_SPACE, "/size_bytes",
                               "is %llu MiB, and pool '%s' has %llu MiB free where it has most: free some, or use another pool",
                               (unsigned long long)(volume->size_bytes / MIB), pool->name, (unsigned long long)(most_bytes / MIB));
    return error_set_field(d->err, -EHOSTDOWN, ERROR_NO_HOST, "/pool", "'%s' is on no host now that is up (%s: %s)", pool->name,
                           first != NULL ? first->name : "no host",
                           first == NULL || first->reason == NULL ? "it has not said that it has it" : first->reason);
}

/* The host with the most room of those that have the pool, or the one that was asked for. */
static int choose_host(struct deciding *d, struct volume *volume, const struct pool *pool)
{
    const struct pool_host *best = NULL;
    uint64_t most_bytes = 0;
    const struct record *wanted = state_get(d->state, object_kind_HOST, volume->host);
    for (size_t i = 0; i < pool->members.count; i++) {
        const struct pool_host *member = (const struct pool_host *)pool->members.items + i;
        const struct record *host = state_get(d->state, object_kind_HOST, member->host);
        if (member->state != pool_host_state_PRESENT || host == NULL || host->host->state != host_state_UP ||
            (wanted != NULL && wanted != host))
            continue;
        if (best == NULL || pool_room_bytes(d->state, pool, member) > most_bytes) {
            best = member;
            most_bytes = pool_room_bytes(d->state, pool, member);
        }
    }
    if (volume->host != NULL && (wanted == NULL || pool_is_shared(pool)))
        return 0; /* refused with the rest */
    if (best == NULL || most_bytes < volume->size_bytes)
        return nowhere(d, volume, pool, most_bytes, best != NULL);
    if (pool->kind == pool_kind_DIR)
        OBJECT_TEXT(volume, volume, host, best->name);
    return 0;
}

int decide_volume_fill(struct deciding *d, struct volume *volume)
{
    char disk[DISK_NAME_BYTES];
    const struct record *pool = state_get(d->state, object_kind_POOL, volume->pool);
    const struct record *image = state_get(d->state, object_kind_IMAGE, volume->image);
    uint64_t image_bytes = image != NULL ? image->image->disk.size_bytes : 0;
    if (volume->size_bytes == 0 && image_bytes > 0)
        OBJECT_SET(volume, volume, size_bytes, MAX((image_bytes + SECTOR_BYTES - 1) / SECTOR_BYTES * SECTOR_BYTES, MIB));
    snprintf(disk, sizeof disk, "vol-%.8s", volume->id);
    OBJECT_TEXT(volume, volume, disk, disk);
    OBJECT_SET(volume, volume, state, volume_state_CREATING);
    return pool != NULL ? choose_host(d, volume, pool->pool) : 0;
}

bool decide_volume_is_filled(const struct deciding *d, const struct volume *volume)
{
    const struct record *pool = state_get(d->state, object_kind_POOL, volume->pool);
    return volume->image != NULL && pool != NULL && pool->pool->kind == pool_kind_RBD;
}

int decide_volume_attach(struct deciding *d, const char *id, size_t id_length, const struct volume_attachment *body)
{
    struct command_volume_attach command = {0};
    const struct record *record = decide_target(d, object_kind_VOLUME, id, id_length);
    const struct record *vm = record != NULL && body != NULL ? state_get(d->state, object_kind_VM, body->vm) : NULL;
    if (record == NULL)
        return -ENOENT;
    if (body != NULL && vm == NULL)
        return error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, "/vm", "there is no VM '%.63s'", body->vm);
    decide_request(d, 200, &command.request);
    OBJECT_TEXT(command_volume_attach, &command, id, record->common->id);
    if (d->context->if_revision != 0)
        OBJECT_SET(command_volume_attach, &command, if_revision, d->context->if_revision);
    if (vm != NULL)
        OBJECT_TEXT(command_volume_attach, &command, vm, vm->common->id);
    if (vm != NULL && migration_snapshot(d->state, vm->vm) != NULL)
        OBJECT_SET(command_volume_attach, &command, snapshots, true);
    if (vm != NULL && vm->vm->replica_host != NULL)
        OBJECT_SET(command_volume_attach, &command, replica, true);
    if (d->context->force)
        OBJECT_SET(command_volume_attach, &command, force, true);
    snprintf(d->decision->summary, sizeof d->decision->summary, "volume %s is %s%s", record->common->name,
             vm != NULL ? "attached to " : "detached", vm != NULL ? vm->common->name : "");
    decide_preview(d, record->desc, record->object);
    return decide_finish(d, COMMAND_volume_attach, &command);
}

/* ---- to another pool ---- */

/* Can @member do it: is it up, has it both pools, and is it the one whose directory the volume is in? */
static bool may_move(struct deciding *d, const struct volume *volume, const struct pool *from, const struct pool_host *member)
{
    const struct pool_host *source = pool_member_find(from, member->host);
    const struct record *host = state_get(d->state, object_kind_HOST, member->host);
    bool its_own = volume->host == NULL || strcmp(volume->host, member->name) == 0;
    bool there = source != NULL && source->state == pool_host_state_PRESENT && member->state == pool_host_state_PRESENT;
    return its_own && there && host != NULL && host->host->state == host_state_UP;
}

static int no_mover(struct deciding *d, const struct volume *volume, const struct pool *from, const struct pool *to, const char *host,
                    const char *field)
{
    const char *at = volume->host != NULL ? volume->host : host;
    const struct record *record = state_get(d->state, object_kind_HOST, at);
    const struct pool_host *there = record != NULL ? pool_member_find(to, record->common->id) : NULL;
    if (at != NULL && there == NULL)
        return error_set_field(d->err, -EXDEV, ERROR_CONFLICT, field,
                               "'%s' is not on host %s%s: name a pool of that host, or give it this one (drover pool update)", to->name, at,
                               volume->host != NULL ? ", whose directory the volume is in" : "");
    if (at != NULL)
        return error_set_field(d->err, -EHOSTDOWN, ERROR_NO_HOST, "/pool", "host %s is not up, or cannot use pool '%s' or '%s' now%s%.200s",
                               at, from->name, to->name, there->reason != NULL ? ": " : "", there->reason != NULL ? there->reason : "");
    return error_set_field(d->err, -EHOSTDOWN, ERROR_NO_HOST, "/pool",
                           "no host that is up has both pool '%s' and pool '%s' now: give one of their hosts the other, too (drover pool update)",
                           from->name, to->name);
}

/* The host that does it: of those that can the one with the most room. @host: that one, which @field is about. */
static int choose_mover(struct deciding *d, const struct volume *volume, const struct pool *to, const char *host, const char *field,
                        struct task *task)
{
    const struct pool *from = state_get(d->state, object_kind_POOL, volume->pool)->pool;
    const struct pool_host *best = NULL;
    for (size_t i = 0; i < to->members.count; i++) {
        const struct pool_host *member = (const struct pool_host *)to->members.items + i;
        if (may_move(d, volume, from, member) && (host == NULL || strcmp(host, member->name) == 0) &&
            (best == NULL || pool_room_bytes(d->state, to, member) > pool_room_bytes(d->state, to, best)))
            best = member;
    }
    if (best == NULL)
        return no_mover(d, volume, from, to, host, field);
    OBJECT_TEXT(task, task, host, best->host);
    return 0;
}

static int move_fill(struct deciding *d, const struct volume *volume, const struct volume_target *body, struct task *task)
{
    const struct record *pool = state_get(d->state, object_kind_POOL, body->pool);
    const struct record *host = state_get(d->state, object_kind_HOST, body->host);
    if (pool == NULL)
        return error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, "/pool", "there is no pool '%.63s'", body->pool);
    if (body->host != NULL && host == NULL)
        return error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, "/host", "there is no host '%.63s'", body->host);
    if (host != NULL && pool->pool->kind != pool_kind_DIR)
        return error_set_field(d->err, -EINVAL, ERROR_INVALID, "/host", "is for pools of kind dir; '%s' is on all of its hosts", pool->pool->name);
    if (host != NULL && volume->host != NULL && strcmp(volume->host, host->common->name) != 0)
        return error_set_field(d->err, -EXDEV, ERROR_CONFLICT, "/host",
                               "is another one than %s, whose directory volume '%s' is in: move it to a pool that both have first",
                               volume->host, volume->name);
    OBJECT_TEXT(task_volume, &task->volume, id, volume->id);
    OBJECT_TEXT(task_volume, &task->volume, pool, pool->common->id);
    object_mark(&task_desc, task, "volume");
    OBJECT_SET(task, task, kind, task_kind_VOLUME_MOVE);
    const struct record *vm = state_get(d->state, object_kind_VM, volume->vm);
    if (vm == NULL || strcmp(volume->pool, pool->common->name) == 0)
        return choose_mover(d, volume, pool->pool, host != NULL ? host->common->name : NULL, host != NULL ? "/host" : "/pool", task);
    int rc = decide_task_of_vm(d, vm, task);
    if (rc < 0)
        return rc;
    if (host != NULL && strcmp(host->common->id, vm->vm->host) != 0)
        return error_set_field(d->err, -EXDEV, ERROR_CONFLICT, "/host", "is another one than %s, where VM '%s' is, which has volume '%s'",
                               vm->vm->host_name, vm->common->name, volume->name);
    return choose_mover(d, volume, pool->pool, vm->vm->host_name, "/pool", task);
}

/* ---- of a snapshot ---- */

/* One alone need not be named. */
static const struct record *pick_volume(struct deciding *d, const struct snapshot *snapshot, const char *wanted)
{
    const struct snapshot_volume *volumes = snapshot->volumes.items;
    const struct record *record = state_get(d->state, object_kind_VOLUME, wanted != NULL             ? wanted
                                                                          : snapshot->volumes.count == 1 ? volumes[0].id
                                                                                                         : NULL);
    if (record != NULL && volume_is_in(snapshot, record->common->id))
        return record;
    if (snapshot->volumes.count == 0)
        error_set(d->err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                  "snapshot '%s' has no volumes; its VM is cloned by: drover vm clone %s NAME --snapshot %s", snapshot->name, snapshot->vm_name,
                  snapshot->name);
    else if (wanted == NULL)
        error_set_field(d->err, -EINVAL, ERROR_INVALID, "/volume", "is missing: snapshot '%s' has %zu volumes (drover snapshot show %s)",
                        snapshot->name, snapshot->volumes.count, snapshot->name);
    else
        error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, "/volume", "'%.63s' is not in snapshot '%s'", wanted, snapshot->name);
    return NULL;
}

static int clone_fill(struct deciding *d, const struct record *snapshot, const struct volume_clone *body, const char *id, struct task *task)
{
    const struct record *volume = pick_volume(d, snapshot->snapshot, body->volume);
    if (volume == NULL)
        return d->err->code;
    const struct record *pool = state_get(d->state, object_kind_POOL, body->pool != NULL ? body->pool : volume->volume->pool);
    const struct record *vm = state_get(d->state, object_kind_VM, volume->volume->vm);
    struct task_clone *clone = &task->clone;
    char disk[DISK_NAME_BYTES];
    if (pool == NULL)
        return error_set_field(d->err, -ENOENT, ERROR_NOT_FOUND, "/pool", "there is no pool '%.63s'", body->pool);
    snprintf(disk, sizeof disk, "vol-%.8s", id);
    OBJECT_TEXT(task_clone, clone, id, id);
    OBJECT_TEXT(task_clone, clone, name, body->name);
    OBJECT_TEXT(task_clone, clone, disk, disk);
    OBJECT_TEXT(task_clone, clone, pool, pool->common->id);
    OBJECT_TEXT(task_clone, clone, snapshot, snapshot->common->id);
    OBJECT_TEXT(task_clone, clone, volume, volume->common->id);
    if (body->labels.count > 0) {
        struct task_clone labels = {.labels = body->labels}; /* borrowed */
        object_mark(&task_clone_desc, &labels, "labels");
        object_merge(&task_clone_desc, clone, &labels);
    }
    object_mark(&task_desc, task, "clone");
    OBJECT_SET(task, task, kind, task_kind_VOLUME_CLONE);
    int rc = vm != NULL ? decide_task_of_vm(d, vm, task) : 0;
    return rc < 0 ? rc : choose_mover(d, volume->volume, pool->pool, vm != NULL ? vm->vm->host_name : NULL, "/pool", task);
}

int decide_snapshot_clone(struct deciding *d, const char *id, size_t id_length, const struct volume_clone *body)
{
    struct command_task command = {0};
    struct operation *operation = &command.operation;
    char volume_id[STATE_ID_BYTES];
    const struct record *record = decide_target(d, object_kind_SNAPSHOT, id, id_length);
    if (record == NULL)
        return -ENOENT;
    decide_uuid(d, volume_id);
    int rc = clone_fill(d, record, body, volume_id, &operation->task);
    if (rc < 0) {
        OBJECT_CLEAR(command_task, &command);
        return rc;
    }
    OBJECT_SET(operation, operation, kind, operation_kind_VOLUME_CLONE);
    OBJECT_SET(operation, operation, target_kind, object_kind_VOLUME);
    OBJECT_TEXT(operation, operation, target_id, volume_id);
    OBJECT_TEXT(operation, operation, target_name, body->name);
    decide_preview(d, record->desc, record->object);
    return decide_task(d, &command);
}

/* ---- to another pool ---- */

int decide_volume_move(struct deciding *d, const char *id, size_t id_length, const struct volume_target *body)
{
    struct command_task command = {0};
    struct operation *operation = &command.operation;
    char summary[sizeof d->decision->summary];
    const struct record *record = decide_target(d, object_kind_VOLUME, id, id_length);
    if (record == NULL)
        return -ENOENT;
    int rc = move_fill(d, record->volume, body, &operation->task);
    if (rc < 0) {
        OBJECT_CLEAR(command_task, &command);
        return rc;
    }
    OBJECT_SET(operation, operation, kind, operation_kind_VOLUME_MOVE);
    OBJECT_SET(operation, operation, target_kind, object_kind_VOLUME);
    OBJECT_TEXT(operation, operation, target_id, record->common->id);
    OBJECT_TEXT(operation, operation, target_name, record->common->name);
    if (d->context->if_revision != 0)
        OBJECT_SET(command_task, &command, if_revision, d->context->if_revision);
    snprintf(summary, sizeof summary, "host %.63s moves volume %.63s to pool %.63s",
             state_get(d->state, object_kind_HOST, operation->task.host)->common->name, record->common->name, body->pool);
    decide_preview(d, record->desc, record->object);
    rc = decide_task(d, &command);
    snprintf(d->decision->summary, sizeof d->decision->summary, "%s", summary);
    return rc;
}

int decide_volume_forget_left(struct deciding *d, const char *id, size_t id_length)
{
    struct command_remove command = {0};
    const struct record *record = decide_target(d, object_kind_VOLUME, id, id_length);
    if (record == NULL)
        return -ENOENT;
    decide_request(d, 200, &command.request);
    OBJECT_SET(command_remove, &command, kind, object_kind_VOLUME);
    OBJECT_TEXT(command_remove, &command, id, record->common->id);
    if (d->context->if_revision != 0)
        OBJECT_SET(command_remove, &command, if_revision, d->context->if_revision);
    OBJECT_SET(command_remove, &command, left, true);
    snprintf(d->decision->summary, sizeof d->decision->summary, "what a move has left of volume %s is forgotten", record->common->name);
    decide_preview(d, record->desc, record->object);
    return decide_finish(d, COMMAND_remove, &command);
}
