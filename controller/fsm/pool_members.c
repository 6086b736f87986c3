/* Hosts of a pool; the rules are in the header. */
#include "controller/fsm/pool_members.h"

#include <string.h>

#include "controller/fsm/apply_migrate.h"
#include "controller/fsm/replica_state.h"
#include "controller/fsm/volume_disks.h"

#define FREE_STEPS 32u

struct pool_host *pool_member_find(const struct pool *pool, const char *host_id)
{
    for (size_t i = 0; host_id != NULL && i < pool->members.count; i++) {
        struct pool_host *member = (struct pool_host *)pool->members.items + i;
        if (strcmp(member->host, host_id) == 0)
            return member;
    }
    return NULL;
}

/* ---- what a host reports ---- */

static const char *mark_of(const struct pool *pool, const struct pool_host *member)
{
    const char *mark = pool_is_shared(pool) ? pool->mark : member->mark;
    return mark != NULL && mark[0] != '\0' ? mark : NULL;
}

/* What is to be held true. *ret_why: where it is not there. */
static enum pool_host_state judge(const struct pool *pool, const struct pool_host *member, const struct pool_seen *seen,
                                  const char **ret_why)
{
    const char *mark = mark_of(pool, member);
    *ret_why = NULL;
    if (!seen->present || seen->mark == NULL || seen->mark[0] == '\0') {
        *ret_why = seen->reason != NULL ? seen->reason : "it does not say why";
        return pool_host_state_ABSENT;
    }
    if (mark == NULL || strcmp(mark, seen->mark) == 0)
        return pool_host_state_PRESENT;
    *ret_why = pool->kind == pool_kind_RBD
                   ? "its ceph.conf leads to another Ceph cluster, or to another pool there, than that of the other hosts"
               : pool->kind == pool_kind_SHARED_DIR
                   ? "the directory is another one than that of the other hosts: is it mounted there?"
                   : "the directory is another one than before: is its file system mounted?";
    return pool_host_state_ABSENT;
}

static uint64_t free_held(const struct pool_host *member, const struct pool_seen *seen)
{
    uint64_t step = MAX(seen->size_bytes / FREE_STEPS, UINT64_C(1)), now = seen->free_bytes, held = member->free_bytes;
    bool near = held <= now + step && now <= held + step && OBJECT_HAS(pool_host, member, free_bytes);
    return near ? held : now / step * step;
}

bool pool_member_is_alone(const struct pool *pool, const char *host_id)
{
    const struct pool_host *member = pool_member_find(pool, host_id);
    const char *mark = member != NULL ? mark_of(pool, member) : NULL;
    for (size_t i = 0; mark != NULL && i < pool->members.count; i++) {
        const struct pool_host *other = (const struct pool_host *)pool->members.items + i;
        if (other != member && text_same(mark_of(pool, other), mark))
            return false;
    }
    return mark != NULL;
}

bool pool_member_differs(const struct pool *pool, const char *host_id, const struct pool_seen *seen)
{
    const struct pool_host *member = pool_member_find(pool, host_id);
    const char *why;
    if (member == NULL)
        return false;
    enum pool_host_state state = judge(pool, member, seen, &why);
    if (state != (enum pool_host_state)member->state || !text_same(why, member->reason))
        return true;
    return state == pool_host_state_PRESENT &&
           (mark_of(pool, member) == NULL || member->size_bytes != seen->size_bytes ||
            !OBJECT_HAS(pool_host, member, free_bytes) || member->free_bytes != free_held(member, seen));
}

bool pool_member_see(struct pool *pool, const char *host_id, const struct pool_seen *seen, bool *ret_marked)
{
    struct pool_host *member = pool_member_find(pool, host_id);
    const char *why;
    *ret_marked = false;
    if (member == NULL || !pool_member_differs(pool, host_id, seen))
        return false;
    enum pool_host_state state = judge(pool, member, seen, &why);
    if (state == pool_host_state_PRESENT && mark_of(pool, member) == NULL) {
        if (pool_is_shared(pool))
            OBJECT_TEXT(pool, pool, mark, seen->mark);
        else
            OBJECT_TEXT(pool_host, member, mark, seen->mark);
        *ret_marked = true;
    }
    OBJECT_SET(pool_host, member, state, state);
    OBJECT_TEXT(pool_host, member, reason, why);
    if (state == pool_host_state_PRESENT) {
        OBJECT_SET(pool_host, member, free_bytes, free_held(member, seen));
        OBJECT_SET(pool_host, member, size_bytes, seen->size_bytes);
    }
    object_mark(&pool_desc, pool, "members");
    return true;
}

/* ---- which hosts ---- */

static void member_take_out(struct pool *pool, size_t at)
{
    struct pool_host *members = pool->members.items;
    OBJECT_CLEAR(pool_host, &members[at]);
    memmove(&members[at], &members[at + 1], (pool->members.count - at - 1) * sizeof *members);
    pool->members.count--;
}

static bool names_host(const struct pool *pool, const char *name)
{
    for (size_t i = 0; i < pool->hosts.count; i++)
        if (strcmp(pool->hosts.items[i], name) == 0)
            return true;
    return false;
}

void pool_members_follow(const struct state *state, struct pool *pool)
{
    for (size_t i = pool->members.count; i > 0; i--)
        if (!names_host(pool, ((struct pool_host *)pool->members.items + i - 1)->name))
            member_take_out(pool, i - 1);
    for (size_t i = 0; i < pool->hosts.count; i++) {
        const struct record *host = state_get(state, object_kind_HOST, pool->hosts.items[i]);
        if (host == NULL || pool_member_find(pool, host->common->id) != NULL)
            continue;
        struct pool_host *member = OBJECT_ADD(pool, pool, members);
        OBJECT_TEXT(pool_host, member, host, host->common->id);
        OBJECT_TEXT(pool_host, member, name, host->common->name);
        OBJECT_SET(pool_host, member, state, pool_host_state_WANTED);
    }
    object_mark(&pool_desc, pool, "members");
}

bool pool_is_shared(const struct pool *pool)
{
    return pool->kind != pool_kind_DIR;
}

bool pool_member_remove(struct pool *pool, const char *host_id)
{
    const struct pool_host *member = pool_member_find(pool, host_id);
    if (member == NULL)
        return false;
    for (size_t i = 0; i < pool->hosts.count; i++) {
        if (strcmp(pool->hosts.items[i], member->name) != 0)
            continue;
        free(pool->hosts.items[i]);
        memmove(&pool->hosts.items[i], &pool->hosts.items[i + 1],
                (pool->hosts.count - i - 1) * sizeof *pool->hosts.items);
        pool->hosts.count--;
        break;
    }
    member_take_out(pool, (size_t)(member - (const struct pool_host *)pool->members.items));
    return true;
}

/* The first of its hosts that is up. */
static const char *maker_of(const struct state *state, const struct pool *pool)
{
    for (size_t i = 0; i < pool->members.count; i++) {
        const struct pool_host *member = (const struct pool_host *)pool->members.items + i;
        const struct record *host = state_get(state, object_kind_HOST, member->host);
        if (host != NULL && host->host->state == host_state_UP)
            return member->host;
    }
    return NULL;
}

void pool_order_fill(const struct state *state, const struct pool *pool, const char *host_id, struct pool_order *ret)
{
    const struct pool_host *member = pool_member_find(pool, host_id);
    const char *mark = member != NULL ? mark_of(pool, member) : pool->mark;
    bool marks = pool->kind != pool_kind_RBD; /* what Ceph says of itself is as good */
    bool make = marks && mark == NULL && (pool->kind == pool_kind_DIR || text_same(maker_of(state, pool), host_id));
    OBJECT_TEXT(pool_order, ret, id, pool->id);
    OBJECT_TEXT(pool_order, ret, name, pool->name);
    OBJECT_SET(pool_order, ret, kind, pool->kind);
    OBJECT_TEXT(pool_order, ret, path, pool->path);
    OBJECT_TEXT(pool_order, ret, ceph_pool, pool->ceph_pool);
    OBJECT_TEXT(pool_order, ret, ceph_user, pool->ceph_user);
    if (mark != NULL)
        OBJECT_TEXT(pool_order, ret, mark, mark);
    if (make)
        OBJECT_SET(pool_order, ret, make, true);
}

/* ---- room ---- */

uint64_t operation_cloned_bytes(const struct state *state, const struct operation *operation, const char *pool)
{
    const struct record *vm = operation->kind == operation_kind_VM_CLONE ? state_get(state, object_kind_VM, operation->task.vm) : NULL;
    uint64_t bytes = 0;
    for (size_t i = 0; vm != NULL && i < vm->vm->disks.count; i++) {
        const struct vm_disk *disk = (const struct vm_disk *)vm->vm->disks.items + i;
        const struct record *volume = disk->volume != NULL ? state_get(state, object_kind_VOLUME, disk->volume) : NULL;
        const char *place = volume != NULL ? volume->volume->place : disk->place;
        bytes += text_same(place, operation->id) && text_same(disk->pool, pool) ? disk->size_bytes : 0;
    }
    return bytes;
}

/* By moves of VMs' own disks that @host_id makes, clones of VMs, and by migrations to it. */
static uint64_t kept_by_host(const struct state *state, const struct pool *pool, const char *host_id)
{
    const struct record *host = state_get(state, object_kind_HOST, host_id);
    uint64_t bytes = 0;
    for (size_t i = 0; host != NULL && i < host->of_host.tasks.count; i++) {
        const struct operation *operation = host->of_host.tasks.items[i]->operation;
        bool is_here = operation->kind == operation_kind_DISK_MOVE && text_same(operation->task.disk.pool, pool->id);
        const struct record *vm = is_here ? state_get(state, object_kind_VM, operation->task.vm) : NULL;
        const struct vm_disk *disk = vm != NULL ? own_disk_find(vm->vm, operation->task.disk.name) : NULL;
        bytes += disk != NULL && disk->moving ? disk->size_bytes : 0;
        bytes += operation_cloned_bytes(state, operation, pool->name);
        bool comes = operation_keeps_room(operation) && text_same(operation->task.peer, host_id) &&
                     text_same(operation->task.migration.storage, pool->id);
        const struct record *arriving = comes ? state_get(state, object_kind_VM, operation->task.vm) : NULL;
        bytes += arriving != NULL ? migration_disks_bytes(state, &operation->task.migration, arriving->vm) : 0;
    }
    return bytes;
}

uint64_t pool_kept_bytes(const struct state *state, const struct pool *pool, const struct pool_host *member)
{
    uint64_t bytes = pool->kind == pool_kind_DIR ? kept_by_host(state, pool, member->host) : 0;
    for (size_t i = 0; pool_is_shared(pool) && i < pool->members.count; i++)
        bytes += kept_by_host(state, pool, ((const struct pool_host *)pool->members.items + i)->host);
    for (size_t i = 0; i < state_count(state, object_kind_VOLUME); i++) {
        const struct volume *volume = state_at(state, object_kind_VOLUME, i)->volume;
        if (volume->state == volume_state_MOVING && text_same(volume->other_pool, pool->name) &&
            (volume->other_host == NULL || text_same(volume->other_host, member->name)))
            bytes += volume->size_bytes;
        if (volume->state == volume_state_CREATING && volume->origin != NULL && text_same(volume->pool, pool->name) &&
            (volume->host == NULL || text_same(volume->host, member->name)))
            bytes += volume->size_bytes; /* a clone in the making */
    }
    return bytes;
}

uint64_t pool_room_bytes(const struct state *state, const struct pool *pool, const struct pool_host *member)
{
    uint64_t kept = pool_kept_bytes(state, pool, member);
    return member->free_bytes > kept ? member->free_bytes - kept : 0;
}

/* ---- VMs ---- */

static const struct vm_disk *disk_at(const struct vm *vm, size_t i)
{
    return (const struct vm_disk *)vm->disks.items + i;
}

bool vm_in_pool(const struct vm *vm, const char *name)
{
    for (size_t i = 0; i < vm->disks.count; i++)
        if (disk_at(vm, i)->pool != NULL && strcmp(disk_at(vm, i)->pool, name) == 0)
            return true;
    return vm->pool != NULL && strcmp(vm->pool, name) == 0;
}

void vm_pool_forget(struct vm *vm)
{
    for (size_t i = 0; vm->pool != NULL && i < vm->disks.count; i++)
        if (text_same(disk_at(vm, i)->pool, vm->pool))
            return;
    OBJECT_TEXT(vm, vm, pool, NULL);
}

bool vm_has_pools(const struct vm *vm)
{
    for (size_t i = 0; i < vm->disks.count; i++)
        if (disk_at(vm, i)->pool != NULL)
            return true;
    return false;
}

bool vm_disks_are_shared(const struct state *state, const struct vm *vm, const char **ret_disk)
{
    for (size_t i = 0; i < vm->disks.count; i++) {
        const struct record *pool = state_get(state, object_kind_POOL, disk_at(vm, i)->pool);
        if (pool != NULL && pool_is_shared(pool->pool))
            continue;
        if (ret_disk != NULL)
            *ret_disk = disk_at(vm, i)->name;
        return false;
    }
    return true;
}

const char *vm_pool_missing(const struct state *state, const struct vm *vm, const char *host_id)
{
    for (size_t i = 0; i < vm->disks.count; i++) {
        const char *name = disk_at(vm, i)->pool;
        const struct record *pool = state_get(state, object_kind_POOL, name);
        const struct pool_host *member = pool != NULL ? pool_member_find(pool->pool, host_id) : NULL;
        if (name != NULL && (member == NULL || member->state != pool_host_state_PRESENT ||
                             (volume_is_elsewhere(state, disk_at(vm, i), host_id) && !replica_brings(state, vm, disk_at(vm, i), host_id))))
            return name;
    }
    return NULL;
}

const char *vm_pool_full(const struct state *state, const struct vm *vm, const char *host_id)
{
    for (size_t i = 0; !vm->disks_made && i < vm->disks.count; i++) {
        const char *name = disk_at(vm, i)->pool;
        const struct record *pool = state_get(state, object_kind_POOL, name);
        const struct pool_host *member = pool != NULL ? pool_member_find(pool->pool, host_id) : NULL;
        uint64_t bytes = 0;
        for (size_t k = 0; member != NULL && k < vm->disks.count; k++)
            if (text_same(disk_at(vm, k)->pool, name) && disk_at(vm, k)->volume == NULL) /* volumes are made already */
                bytes += disk_at(vm, k)->size_bytes;
        if (member != NULL && bytes > pool_room_bytes(state, pool->pool, member))
            return name;
    }
    return NULL;
}
