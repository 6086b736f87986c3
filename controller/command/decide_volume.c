/* Requests about volumes: what is left open when one is made is chosen here - its size, its host, the name of its disk. */
#include "controller/command/decide_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/fsm/pool_members.h"

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
    const struct record *wanted = state_get(d->state, object_kind_HOST, volume->host);
    for (size_t i = 0; i < pool->members.count; i++) {
        const struct pool_host *member = (const struct pool_host *)pool->members.items + i;
        const struct record *host = state_get(d->state, object_kind_HOST, member->host);
        if (member->state != pool_host_state_PRESENT || host == NULL || host->host->state != host_state_UP ||
            (wanted != NULL && wanted != host))
            continue;
        if (best == NULL || member->free_bytes > best->free_bytes)
            best = member;
    }
    if (volume->host != NULL && (wanted == NULL || pool->kind == pool_kind_SHARED_DIR))
        return 0; /* refused with the rest */
    if (best == NULL || best->free_bytes < volume->size_bytes)
        return nowhere(d, volume, pool, best != NULL ? best->free_bytes : 0, best != NULL);
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
    if (d->context->force)
        OBJECT_SET(command_volume_attach, &command, force, true);
    snprintf(d->decision->summary, sizeof d->decision->summary, "volume %s is %s%s", record->common->name,
             vm != NULL ? "attached to " : "detached", vm != NULL ? vm->common->name : "");
    decide_preview(d, record->desc, record->object);
    return decide_finish(d, COMMAND_volume_attach, &command);
}
