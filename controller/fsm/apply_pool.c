/* Pools: which hosts have them, and what those report (pool_members.h has the rules). */
#include "controller/fsm/apply_migrate.h"

#include <errno.h>
#include <string.h>

#include "controller/fsm/pool_members.h"
#include "controller/fsm/replica_state.h"
#include "controller/fsm/volume_disks.h"

static void tell_members(struct apply *a, const struct pool *pool)
{
    for (size_t i = 0; i < pool->members.count; i++)
        state_host_orders_changed(a->state, ((const struct pool_host *)pool->members.items + i)->host, a->index);
}

/* ---- put ---- */

/* Names, not ids, are kept. Refuses a host that does not exist or is named twice. */
static bool hosts_resolve(struct apply *a, struct pool *pool)
{
    for (size_t i = 0; i < pool->hosts.count; i++) {
        const struct record *host = state_get(a->state, object_kind_HOST, pool->hosts.items[i]);
        if (host == NULL) {
            apply_refuse_field(a, -ENOENT, ERROR_NOT_FOUND, "/hosts", "there is no host '%.63s'", pool->hosts.items[i]);
            return false;
        }
        for (size_t k = 0; k < i; k++)
            if (strcmp(pool->hosts.items[k], host->common->name) == 0) {
                apply_refuse_field(a, -EINVAL, ERROR_INVALID, "/hosts", "names host '%s' twice", host->common->name);
                return false;
            }
        free(pool->hosts.items[i]);
        pool->hosts.items[i] = xstrdup(host->common->name);
    }
    if (pool->hosts.count > 0)
        return true;
    apply_refuse_field(a, -EINVAL, ERROR_INVALID, "/hosts", "is empty: name the hosts that have the directory");
    return false;
}

/* What is of Ceph: of pools of that kind, and whole. */
static bool ceph_resolve(struct apply *a, struct pool *pool)
{
    if (pool->kind != pool_kind_RBD && (pool->ceph_pool != NULL || pool->ceph_user != NULL)) {
        apply_refuse_field(a, -EINVAL, ERROR_INVALID, pool->ceph_pool != NULL ? "/ceph_pool" : "/ceph_user",
                           "is for pools of kind rbd: leave it out, or make the pool of that kind, with path as the ceph.conf of its hosts");
        return false;
    }
    if (pool->kind == pool_kind_RBD && pool->ceph_pool == NULL)
        OBJECT_TEXT(pool, pool, ceph_pool, pool->name);
    if (pool->kind == pool_kind_RBD && pool->ceph_user == NULL)
        OBJECT_TEXT(pool, pool, ceph_user, "admin");
    return true;
}

bool apply_pool_may_be_made(struct apply *a, struct pool *pool)
{
    if (!hosts_resolve(a, pool) || !ceph_resolve(a, pool))
        return false;
    pool_members_follow(a->state, pool);
    return true;
}

/* A VM that its replica on @host could not be started from without the pool: it has a disk there. NULL: there is none. */
static const struct vm *kept_by(const struct state *state, const struct pool *pool, const struct record *host)
{
    for (size_t i = 0; host != NULL && i < state_count(state, object_kind_VM); i++) {
        const struct vm *vm = state_at(state, object_kind_VM, i)->vm;
        if (replica_keeper(state, vm) == host && vm_has_pools(vm) && vm_in_pool(vm, pool->name))
            return vm;
    }
    return NULL;
}

/* Would a VM miss it where it has its disks, or is to be started? Refuses if so. */
static bool is_needed_on(struct apply *a, const struct pool *pool, const struct record *host)
{
    for (size_t i = 0; host != NULL && i < host->of_host.vms.count; i++) {
        if (!vm_in_pool(host->of_host.vms.items[i]->vm, pool->name))
            continue;
        apply_refuse_field(a, -EBUSY, ERROR_IN_USE, "/hosts", "leaves out host '%s', whose VM '%s' has a disk in the pool", host->common->name,
                           host->of_host.vms.items[i]->common->name);
        return true;
    }
    const struct vm *kept = kept_by(a->state, pool, host);
    if (kept != NULL)
        apply_refuse_field(a, -EBUSY, ERROR_IN_USE, "/hosts",
                           "leaves out host '%s', which has the replica of VM '%s' and could not start it without: it has a disk in the pool",
                           host->common->name, kept->name);
    return kept != NULL;
}

bool apply_pool_may_change(struct apply *a, const struct record *record, struct pool *patch)
{
    const struct pool *pool = record->pool;
    if (!OBJECT_HAS(pool, patch, hosts))
        return true;
    if (!hosts_resolve(a, patch))
        return false;
    for (size_t i = 0; i < pool->members.count; i++) {
        const struct pool_host *member = (const struct pool_host *)pool->members.items + i;
        const struct record *host = state_get(a->state, object_kind_HOST, member->host);
        bool stays = false;
        for (size_t k = 0; k < patch->hosts.count; k++)
            stays |= strcmp(patch->hosts.items[k], member->name) == 0;
        for (size_t k = 0; !stays && k < state_count(a->state, object_kind_VOLUME); k++) {
            const struct volume *volume = state_at(a->state, object_kind_VOLUME, k)->volume;
            bool is_its = volume->host != NULL && strcmp(volume->host, member->name) == 0 && strcmp(volume->pool, pool->name) == 0;
            bool is_left = volume->other_pool != NULL && strcmp(volume->other_pool, pool->name) == 0 &&
                           (volume->state == volume_state_MOVING || (volume->other_host != NULL && strcmp(volume->other_host, member->name) == 0));
            if (!is_its && !is_left)
                continue;
            apply_refuse_field(a, -EBUSY, ERROR_IN_USE, "/hosts", "leaves out host '%s', which has volume '%s' of the pool", member->name,
                               volume->name);
            return false;
        }
        for (size_t k = 0; !stays && k < state_count(a->state, object_kind_VM); k++) {
            const struct vm *vm = state_at(a->state, object_kind_VM, k)->vm;
            if (!own_disks_need_pool(vm, pool->name, member->name) &&
                !migration_goes_to_pool(state_at(a->state, object_kind_VM, k), record->common->id, member->host))
                continue;
            apply_refuse_field(a, -EBUSY, ERROR_IN_USE, "/hosts",
                               "leaves out host '%s', to which a disk of VM '%s' is being moved in the pool, or which has to remove what a move "
                               "has left of it there", member->name, vm->name);
            return false;
        }
        if (!stays && is_needed_on(a, pool, host))
            return false;
    }
    return true;
}

void apply_pool_changing(struct apply *a, const struct record *record)
{
    tell_members(a, record->pool); /* those that it has no more */
}

void apply_pool_changed(struct apply *a, struct record *record)
{
    pool_members_follow(a->state, record->pool);
    tell_members(a, record->pool);
}

/* ---- reports ---- */

static void see_pool(struct apply *a, const struct record *host, const struct pool_seen *seen)
{
    struct record *record = map_get(&a->state->tables[object_kind_POOL].by_id, seen->id);
    bool marked;
    if (record == NULL || !pool_member_differs(record->pool, host->common->id, seen))
        return;
    enum pool_host_state before = pool_member_find(record->pool, host->common->id)->state;
    state_edit_begin(a->state, record);
    pool_member_see(record->pool, host->common->id, seen, &marked);
    state_edit_end(a->state, record, a->index);
    const struct pool_host *member = pool_member_find(record->pool, host->common->id);
    if (marked || (enum pool_host_state)member->state != before)
        tell_members(a, record->pool);
    if ((enum pool_host_state)member->state != before || before == pool_host_state_ABSENT)
        apply_event(a, event_type_UPDATED, record, "pool %s is %s on host %s%s%s", record->common->name,
                    pool_host_state_desc.names[member->state], host->common->name, member->reason != NULL ? ": " : "",
                    member->reason != NULL ? member->reason : "");
    else
        apply_event(a, event_type_UPDATED, record, "pool %s: host %s has %llu MiB free of it", record->common->name,
                    host->common->name, (unsigned long long)(member->free_bytes >> 20));
}

void apply_pools_seen(struct apply *a, const struct record *host, const struct object_list *pools)
{
    for (size_t i = 0; i < pools->count; i++)
        see_pool(a, host, (const struct pool_seen *)pools->items + i);
}

/* ---- hosts that go ---- */

void apply_pools_tell(struct apply *a, const struct record *host)
{
    for (size_t i = 0; i < state_count(a->state, object_kind_POOL); i++) {
        const struct pool *pool = state_at(a->state, object_kind_POOL, i)->pool;
        if (pool_member_find(pool, host->common->id) != NULL)
            tell_members(a, pool);
    }
}

void apply_host_leaves_pools(struct apply *a, const struct record *host)
{
    for (size_t i = 0; i < state_count(a->state, object_kind_POOL); i++) {
        struct record *record = a->state->tables[object_kind_POOL].order.items[i];
        if (pool_member_find(record->pool, host->common->id) == NULL)
            continue;
        state_edit_begin(a->state, record);
        pool_member_remove(record->pool, host->common->id);
        state_edit_end(a->state, record, a->index);
    }
}

/* ---- VMs ---- */

/* Disks of VMs' own are files. */
static bool holds_disks(struct apply *a, const struct record *pool, const char *field)
{
    if (pool->pool->kind != pool_kind_RBD)
        return true;
    apply_refuse_field(a, -ENOTSUP, ERROR_NOT_SUPPORTED, field,
                       "'%s' is a pool of kind rbd, which holds volumes alone: name another pool, or no disk here, and attach a volume of this one to the "
                       "VM (drover volume create --image, drover volume attach)", pool->common->name);
    return false;
}

bool apply_vm_pools_resolve(struct apply *a, struct vm *vm)
{
    for (size_t i = 0; i < vm->disks.count; i++) {
        struct vm_disk *disk = (struct vm_disk *)vm->disks.items + i;
        const struct record *pool = state_get(a->state, object_kind_POOL, disk->pool);
        if (disk->pool == NULL)
            continue;
        if (pool == NULL) {
            apply_refuse_field(a, -ENOENT, ERROR_NOT_FOUND, "/disks", "disk '%s': there is no pool '%s'", disk->name, disk->pool);
            return false;
        }
        if (!holds_disks(a, pool, "/disks"))
            return false;
        OBJECT_TEXT(vm_disk, disk, pool, pool->common->name);
    }
    if (vm->pool == NULL)
        return true;
    const struct record *pool = state_get(a->state, object_kind_POOL, vm->pool);
    if (pool == NULL) {
        apply_refuse_field(a, -ENOENT, ERROR_NOT_FOUND, "/pool", "there is no pool '%s'", vm->pool);
        return false;
    }
    if (!holds_disks(a, pool, "/pool"))
        return false;
    OBJECT_TEXT(vm, vm, pool, pool->common->name);
    return true;
}

bool apply_host_has_pools(struct apply *a, const struct record *host, const struct vm *vm, char *ret_why, size_t size)
{
    const char *missing = vm_pool_missing(a->state, vm, host->common->id);
    if (missing != NULL)
        apply_text(ret_why, size, "%s has not pool '%s' (now), which the VM has a disk in", host->common->name, missing);
    return missing == NULL;
}
