/* Rules of volumes; see the header. */
#include "controller/fsm/volume_disks.h"

#include <string.h>

#include "controller/fsm/pool_members.h"

static struct vm_disk *disk_at(const struct vm *vm, size_t i)
{
    return (struct vm_disk *)vm->disks.items + i;
}

struct vm_disk *volume_disk_find(const struct vm *vm, const char *volume_id)
{
    for (size_t i = 0; i < vm->disks.count; i++)
        if (disk_at(vm, i)->volume != NULL && strcmp(disk_at(vm, i)->volume, volume_id) == 0)
            return disk_at(vm, i);
    return NULL;
}

bool volume_is_in(const struct snapshot *snapshot, const char *volume_id)
{
    const struct snapshot_volume *volumes = snapshot->volumes.items;
    for (size_t i = 0; i < snapshot->volumes.count; i++)
        if (strcmp(volumes[i].id, volume_id) == 0)
            return true;
    return false;
}

const struct snapshot *volume_snapshot(const struct state *state, const struct volume *volume)
{
    for (size_t i = 0; volume->snapshots > 0 && i < state_count(state, object_kind_SNAPSHOT); i++) {
        const struct snapshot *snapshot = state_at(state, object_kind_SNAPSHOT, i)->snapshot;
        if (volume_is_in(snapshot, volume->id))
            return snapshot;
    }
    return NULL;
}

const struct snapshot *volume_snapshot_at_work(const struct state *state, const struct volume *volume)
{
    for (size_t i = 0; volume->snapshots > 0 && i < state_count(state, object_kind_SNAPSHOT); i++) {
        const struct snapshot *snapshot = state_at(state, object_kind_SNAPSHOT, i)->snapshot;
        bool at_rest = snapshot->state == snapshot_state_AVAILABLE || snapshot->state == snapshot_state_FAILED;
        if (!at_rest && text_same(snapshot->volume, volume->id))
            return snapshot;
    }
    return NULL;
}

struct vm_disk *own_disk_find(const struct vm *vm, const char *name)
{
    for (size_t i = 0; name != NULL && i < vm->disks.count; i++)
        if (disk_at(vm, i)->volume == NULL && strcmp(disk_at(vm, i)->name, name) == 0)
            return disk_at(vm, i);
    return NULL;
}

bool own_disk_has_other(const struct vm_disk *disk)
{
    return disk->other_pool != NULL || disk->other_host != NULL;
}

bool own_disk_has_left(const struct vm_disk *disk)
{
    return own_disk_has_other(disk) && !disk->moving;
}

const struct vm_disk *own_disk_with_other(const struct vm *vm)
{
    for (size_t i = 0; i < vm->disks.count; i++)
        if (own_disk_has_other(disk_at(vm, i)))
            return disk_at(vm, i);
    return NULL;
}

void own_disk_forget_places(struct vm_disk *disk)
{
    OBJECT_TEXT(vm_disk, disk, place, NULL);
    OBJECT_TEXT(vm_disk, disk, other_pool, NULL);
    OBJECT_TEXT(vm_disk, disk, other_host, NULL);
    OBJECT_TEXT(vm_disk, disk, other_place, NULL);
    OBJECT_TEXT(vm_disk, disk, left_reason, NULL);
    disk->moving = false;
    disk->head.present &= ~(UINT64_C(1) << (object_field(&vm_disk_desc, "moving") - vm_disk_desc.fields));
}

bool own_disks_need_pool(const struct vm *vm, const char *pool, const char *host)
{
    for (size_t i = 0; i < vm->disks.count; i++) {
        const struct vm_disk *disk = disk_at(vm, i);
        if (text_same(disk->other_pool, pool) && (host == NULL || text_same(disk->other_host, host) ||
                                                  (disk->moving && text_same(vm->host_name, host))))
            return true;
    }
    return false;
}

const struct vm_disk *volume_disk_any(const struct vm *vm)
{
    for (size_t i = 0; i < vm->disks.count; i++)
        if (disk_at(vm, i)->volume != NULL)
            return disk_at(vm, i);
    return NULL;
}

static bool has_pool(const struct state *state, const char *pool_name, const char *host_id)
{
    const struct record *pool = state_get(state, object_kind_POOL, pool_name);
    const struct pool_host *member = pool != NULL ? pool_member_find(pool->pool, host_id) : NULL;
    return member != NULL && member->state == pool_host_state_PRESENT;
}

/* The first that is up and has the pool; @host_name: only that one. @too: and that pool (NULL: none). */
static const char *worker_of(const struct state *state, const char *pool_name, const char *host_name, const char *too)
{
    const struct record *pool = state_get(state, object_kind_POOL, pool_name);
    for (size_t i = 0; pool != NULL && i < pool->pool->members.count; i++) {
        const struct pool_host *member = (const struct pool_host *)pool->pool->members.items + i;
        const struct record *host = state_get(state, object_kind_HOST, member->host);
        bool its_own = host_name == NULL || strcmp(host_name, member->name) == 0;
        if (its_own && member->state == pool_host_state_PRESENT && host != NULL && host->host->state == host_state_UP &&
            (too == NULL || has_pool(state, too, member->host)))
            return member->host;
    }
    return NULL;
}

const char *volume_worker(const struct state *state, const struct volume *volume)
{
    return worker_of(state, volume->pool, volume->host, NULL);
}

bool volume_has_left(const struct volume *volume)
{
    return volume->other_pool != NULL && volume->state != volume_state_MOVING;
}

bool volume_tells_of_left(const struct volume *volume)
{
    return volume->state == volume_state_AVAILABLE || volume->state == volume_state_ATTACHED;
}

const char *volume_left_worker(const struct state *state, const struct volume *volume)
{
    const char *host = volume->other_host != NULL ? volume->other_host : volume->host;
    if (volume_left_is_elsewhere(volume)) /* it sees nothing of the volume, and is told by who does */
        return volume->untaken ? NULL : worker_of(state, volume->other_pool, host, NULL);
    return volume_has_left(volume) ? worker_of(state, volume->other_pool, host, volume->pool) : NULL;
}

bool volume_left_is_elsewhere(const struct volume *volume)
{
    return volume_has_left(volume) && volume->other_host != NULL && volume->host != NULL && strcmp(volume->other_host, volume->host) != 0;
}

const struct volume *volume_untaken(const struct state *state, const struct vm *vm)
{
    for (size_t i = 0; i < vm->disks.count; i++) {
        const char *id = disk_at(vm, i)->volume;
        const struct record *volume = id != NULL ? state_get(state, object_kind_VOLUME, id) : NULL;
        if (volume != NULL && volume->volume->untaken)
            return volume->volume;
    }
    return NULL;
}

static bool is_shared(const struct state *state, const char *pool_name)
{
    const struct record *pool = state_get(state, object_kind_POOL, pool_name);
    return pool != NULL && pool_is_shared(pool->pool);
}

/* Who removes it sees the disk itself: see own_look in compute/agent/agent_volumes.c. */
const char *own_disk_left_worker(const struct state *state, const struct vm *vm, const struct vm_disk *disk)
{
    const char *host = disk->other_host;
    bool is_local = !is_shared(state, disk->pool);
    if (!own_disk_has_left(disk) || (is_local && (vm->host == NULL || (host != NULL && !text_same(host, vm->host_name)))))
        return NULL;
    if (is_local)
        host = vm->host_name;
    if (disk->other_pool != NULL)
        return worker_of(state, disk->other_pool, host, disk->pool);
    const struct record *record = state_get(state, object_kind_HOST, host);
    bool is_up = record != NULL && record->host->state == host_state_UP;
    return is_up && (disk->pool == NULL || has_pool(state, disk->pool, record->common->id)) ? record->common->id : NULL;
}

static bool own_disk_seen_differs(const struct state *state, const char *host_id, const struct volume_seen *seen)
{
    const struct record *record = state_get(state, object_kind_VM, seen->id);
    const struct vm_disk *disk = record != NULL ? own_disk_find(record->vm, seen->disk) : NULL;
    return disk != NULL && text_same(seen->place, disk->other_place) && text_same(own_disk_left_worker(state, record->vm, disk), host_id) &&
           (seen->gone || !text_same(seen->reason, disk->left_reason));
}

bool volume_is_clone_in_making(const struct volume *volume)
{
    return volume->state == volume_state_CREATING && volume->origin != NULL;
}

bool volume_is_pending(const struct volume *volume)
{
    return (volume->state == volume_state_CREATING && volume->origin == NULL) || volume->state == volume_state_DELETING;
}

bool volume_seen_differs(const struct state *state, const char *host_id, const struct volume_seen *seen)
{
    if (seen->disk != NULL)
        return own_disk_seen_differs(state, host_id, seen);
    const struct record *record = state_get(state, object_kind_VOLUME, seen->id);
    const char *left = record != NULL ? volume_left_worker(state, record->volume) : NULL;
    if (left != NULL && text_same(seen->place, record->volume->other_place))
        return strcmp(left, host_id) == 0 &&
               (seen->gone || (volume_tells_of_left(record->volume) && !text_same(seen->reason, record->volume->state_reason)));
    const char *worker = record != NULL ? volume_worker(state, record->volume) : NULL;
    if (worker == NULL || strcmp(worker, host_id) != 0 || !volume_is_pending(record->volume) ||
        !text_same(seen->place, record->volume->place))
        return false;
    const char *held = record->volume->state_reason != NULL ? record->volume->state_reason : "";
    bool done = record->volume->state == volume_state_CREATING ? seen->made : seen->gone;
    return done || strcmp(held, seen->reason != NULL ? seen->reason : "") != 0;
}

bool volume_is_elsewhere(const struct state *state, const struct vm_disk *disk, const char *host_id)
{
    const struct record *volume = disk != NULL ? state_get(state, object_kind_VOLUME, disk->volume) : NULL;
    const struct record *host = volume != NULL ? state_get(state, object_kind_HOST, volume->volume->host) : NULL;
    return host != NULL && strcmp(host->common->id, host_id) != 0;
}

bool volumes_outlive_host(const struct vm *vm)
{
    return volume_disk_any(vm) != NULL && !(vm->ha && vm->seen_generation >= vm->lease_generation);
}
