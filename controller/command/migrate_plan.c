/* Placement of a VM that runs; see the header. */
#include "controller/command/migrate_plan.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/command/host_view.h"
#include "controller/fsm/apply_migrate.h"
#include "controller/fsm/pool_members.h"
#include "controller/fsm/volume_disks.h"

#define NOTE_BYTES_MAX 701u
#define REASON_BYTES_MAX 300u

/* Disks go along as they are now; what its snapshots hold stays in layers that do not. Where the disks stay so do these. */
static int snapshots_check(const struct state *state, const struct vm *vm, struct task_migration *m, struct error *err)
{
    const struct snapshot *snapshot = migration_snapshot(state, vm);
    if (snapshot == NULL)
        return 0;
    if (migration_snapshots_stay(state, m, vm)) {
        OBJECT_SET(task_migration, m, snapshots_stay, true);
        return 0;
    }
    return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                     "VM '%s' has snapshot '%s', and snapshots do not go along with disks; delete its snapshots, back them up before if you "
                     "want to keep them. They stay where all disks do, in shared pools, once they are available", vm->name, snapshot->name);
}

/* It waits for a move of one of its disks, or for the end of what one has left. */
static int other_refuse(const struct vm *vm, const struct vm_disk *disk, struct error *err)
{
    if (disk->moving)
        return error_set_field(err, -EBUSY, ERROR_CONFLICT, "/disks",
                               "disk '%s' of VM '%s' is being moved; wait for that, or cancel it (drover operation cancel)", disk->name, vm->name);
    return error_set_field(err, -EBUSY, ERROR_CONFLICT, "/disks",
                           "what a move or a migration has left of disk '%s' of VM '%s' in %s%.63s is still being removed%s%.200s; wait for that, or "
                           "forget it, and it stays there: drover vm forget-left %s --disk %s", disk->name, vm->name,
                           disk->other_pool != NULL ? "pool " : "the directory of host ",
                           disk->other_pool != NULL ? disk->other_pool : disk->other_host, disk->left_reason != NULL ? ": " : "",
                           disk->left_reason != NULL ? disk->left_reason : "", vm->name, disk->name);
}

/* Disks in pools stay where they are: in one that other hosts do not reach they cannot be handed over. */
static int pools_check(const struct state *state, const struct vm *vm, struct task_migration *m, struct error *err)
{
    const struct vm_disk *disk = migration_fixed_disk(state, m, vm);
    const char *missing = vm->host != NULL ? vm_pool_missing(state, vm, vm->host) : NULL;
    if (disk != NULL && disk->leaving)
        return error_set_field(err, -EBUSY, ERROR_CONFLICT, "/disks", "disk '%s' of VM '%s' is a volume that is being detached; wait for that",
                               disk->name, vm->name);
    if (disk != NULL && disk->volume != NULL)
        return error_set_field(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "/disks",
                               "disk '%s' of VM '%s' is a volume in pool '%s', which only its host has, and such volumes do not go along: "
                               "detach it, migrate the VM, and attach another", disk->name, vm->name, disk->pool);
    if (disk != NULL && disk->read_only)
        return error_set_field(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "/disks",
                               "disk '%s' of VM '%s' is only read and in pool '%s', which is not shared: such disks do not go along", disk->name,
                               vm->name, disk->pool);
    if (disk != NULL)
        return error_set_field(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "/disks",
                               "disk '%s' of VM '%s' is in pool '%s', which is not shared: name the pool there that it is to go to (storage), "
                               "or move it to the directory of its host before (drover vm move-disk)", disk->name, vm->name, disk->pool);
    disk = migration_disk_with_other(state, m, vm);
    if (disk != NULL)
        return other_refuse(vm, disk, err);
    if (missing != NULL)
        return error_set_field(err, -EHOSTDOWN, ERROR_CONFLICT, "/disks",
                               "pool '%s' is not there on the host that has VM '%s': its disks cannot be handed over before it is",
                               missing, vm->name);
    if (own_disk_with_other(vm) != NULL)
        OBJECT_SET(task_migration, m, left_stays, true);
    return 0;
}

/* Where the disks are to go that go along: into *m. */
static int storage_choose(const struct state *state, const struct vm *vm, const char *name, struct task_migration *m, struct error *err)
{
    const struct record *pool = state_get(state, object_kind_POOL, name);
    const struct vm_disk *disks = vm->disks.items;
    if (pool == NULL)
        return error_set_field(err, -ENOENT, ERROR_NOT_FOUND, "/storage", "there is no pool '%.63s'", name);
    if (pool->pool->kind != pool_kind_DIR && pool->pool->kind != pool_kind_SHARED_DIR)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/storage", "'%s' takes volumes only, and no disks of a VM's own: name a pool of directories",
                               pool->common->name);
    OBJECT_TEXT(task_migration, m, storage, pool->common->id);
    const struct task_migration without = {.storage = m->storage}, with = {.storage = m->storage, .storage_shared = true};
    bool counts = migration_storage_is_shared(state, m);
    for (size_t i = 0; i < vm->disks.count; i++)
        counts |= migration_takes_disk(state, &with, &disks[i]) && !migration_takes_disk(state, &without, &disks[i]);
    if (counts) /* else older controllers can do it, too */
        OBJECT_SET(task_migration, m, storage_shared, true);
    return 0;
}

/* They are known afterwards to fit at @to (NULL: somewhere, see pools_look). */
static int storage_check(const struct state *state, const struct vm *vm, const struct task_migration *m, const struct record *to,
                         struct error *err)
{
    const struct record *pool = state_get(state, object_kind_POOL, m->storage);
    const struct pool_host *member = to != NULL ? pool_member_find(pool->pool, to->common->id) : NULL;
    const struct pool_host *here = pool_member_find(pool->pool, vm->host);
    uint64_t bytes = migration_disks_bytes(state, m, vm);
    const struct vm_disk *disks = vm->disks.items;
    bool any = false;
    for (size_t i = 0; i < vm->disks.count; i++)
        any |= migration_takes_disk(state, m, &disks[i]);
    if (!any)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/storage",
                               "VM '%s' has no disk of its own that would go to '%s': leave storage out", vm->name, pool->common->name);
    if (vm->replica_host != NULL)
        return error_set_field(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "/storage",
                               "VM '%s' has a replica on host %s, which knows its disks where they are: take the replica away first "
                               "(replica_host)", vm->name, vm->replica_host);
    if (migration_storage_is_shared(state, m) && (here == NULL || here->state != pool_host_state_PRESENT))
        return error_set_field(err, -EXDEV, ERROR_CONFLICT, "/storage",
                               "shared pool '%s' is not there on host %s, which has VM '%s' and would have to remove what a migration that fails "
                               "has left in it: give it the pool, too (drover pool update)", pool->common->name, vm->host_name, vm->name);
    if (to != NULL && member == NULL)
        return error_set_field(err, -EXDEV, ERROR_CONFLICT, "/storage",
                               "'%s' is not on host %s: name a pool of that host, or give it this one (drover pool update)", pool->common->name,
                               to->common->name);
    if (to != NULL && member->state != pool_host_state_PRESENT)
        return error_set_field(err, -EHOSTDOWN, ERROR_NO_HOST, "/storage", "host %s cannot use '%s' now%s%.200s", to->common->name,
                               pool->common->name, member->reason != NULL ? ": " : "", member->reason != NULL ? member->reason : "");
    if (to != NULL && pool_room_bytes(state, pool->pool, member) < bytes)
        return error_set_field(err, -ENOSPC, ERROR_NO_SPACE, "/storage",
                               "'%s' has %llu MiB free on host %s, and the disks of VM '%s' that go along have %llu MiB: free some, or use "
                               "another pool", pool->common->name,
                               (unsigned long long)(pool_room_bytes(state, pool->pool, member) >> 20), to->common->name, vm->name,
                               (unsigned long long)(bytes >> 20));
    return 0;
}

/* Which hosts have the pools, with that for the disks that go along, and the room in this one; by the numbers of the view. */
static uint8_t *pools_look(const struct state *state, const struct vm *vm, const struct task_migration *m)
{
    const struct record *storage = state_get(state, object_kind_POOL, m->storage);
    struct vm there = {0};
    if (storage == NULL)
        return host_view_pools(state, vm);
    migration_vm_pools(state, m, vm, &there);
    uint8_t *pools = host_view_pools(state, &there);
    OBJECT_CLEAR(vm, &there);
    for (size_t i = 0; i < state_count(state, object_kind_HOST); i++) {
        const struct pool_host *member = pool_member_find(storage->pool, state_at(state, object_kind_HOST, i)->common->id);
        if (pools[i] == PLACE_POOLS_THERE && pool_room_bytes(state, storage->pool, member) < migration_disks_bytes(state, m, vm))
            pools[i] = PLACE_POOLS_FULL;
    }
    return pools;
}

static int vm_check(const struct state *state, const struct vm *vm, struct task_migration *m, struct error *err)
{
    if (vm->host == NULL)
        return error_set(err, -EINVAL, ERROR_CONFLICT, "VM '%s' waits for a host: there is nothing to migrate", vm->name);
    if ((vm->wanted != vm_wanted_RUNNING && vm->wanted != vm_wanted_PAUSED) ||
        (vm->state != vm_state_RUNNING && vm->state != vm_state_PAUSED))
        return error_set(err, -EINVAL, ERROR_CONFLICT, "VM '%s' is %s: only one that runs or is paused can be migrated", vm->name,
                         vm_state_desc.names[vm->state]);
    int rc = pools_check(state, vm, m, err);
    return rc < 0 ? rc : snapshots_check(state, vm, m, err);
}

/* The host that was asked for, judged like all. */
static int target_judge(const struct scheduler_view *view, const struct place_request *request, struct place_result *result,
                        const struct record *host, struct error *err)
{
    char reason[REASON_BYTES_MAX];
    for (size_t i = 0; i < view->count; i++) {
        if (strcmp(view->ids[i], host->common->id) != 0)
            continue;
        if (result->verdicts[i] == FILTER_PASSED) {
            result->chosen = i;
            return 0;
        }
        filter_reason(view, i, request, (enum filter)result->verdicts[i], reason, sizeof reason);
        return error_set_field(err, -ENOSPC, ERROR_NO_HOST, "/to", "host %s %s", host->common->name, reason);
    }
    return error_set_field(err, -ENOENT, ERROR_NOT_FOUND, "/to", "there is no host '%s'", host->common->name);
}

/* What the disks that go along may take at most: they are thin, and how much is in them only their host knows. */
static uint64_t disks_bytes(const struct vm *vm)
{
    const struct vm_disk *disks = vm->disks.items;
    uint64_t sum = 0;
    for (size_t i = 0; i < vm->disks.count; i++)
        if (disks[i].pool == NULL && !disks[i].read_only)
            sum += disks[i].size_bytes;
    return sum;
}

/* A host where the disks fit in any case, if there is one that can hold the VM; else they may fit, for they are thin. */
static void place_with_disks(const struct scheduler_view *view, struct place_request *request, uint64_t bytes,
                             struct place_result *result)
{
    request->disk_bytes = bytes;
    place_vm(view, request, result);
    request->disk_bytes = 0;
    if (result->chosen == PLACE_NONE && result->rejected_by[FILTER_DISK_ROOM] > 0)
        place_vm(view, request, result);
}

static void room_note(const struct scheduler_view *view, const struct place_result *result, uint64_t bytes,
                      char note[NOTE_BYTES_MAX])
{
    size_t length = strlen(note);
    if (result->chosen != PLACE_NONE && view->disk_free_bytes[result->chosen] < bytes)
        snprintf(note + length, NOTE_BYTES_MAX - length, "; its disks may take %llu MiB, and about %llu MiB are free there",
                 (unsigned long long)(bytes >> 20), (unsigned long long)(view->disk_free_bytes[result->chosen] >> 20));
}

static int target_choose(const struct state *state, const struct record *record, const char *to, const struct task_migration *m,
                         struct scheduler_view *view, struct place_result *result, char note[NOTE_BYTES_MAX], struct error *err)
{
    const struct record *host = state_get(state, object_kind_HOST, to);
    struct place_request request = host_view_request(record->vm);
    CLEANUP_FREE uint8_t *apart = host_view_apart(state, record->vm);
    CLEANUP_FREE uint8_t *pools = pools_look(state, record->vm, m);
    request.current = record->vm->host;
    request.apart = apart;
    request.pools = pools;
    if (to != NULL && host == NULL)
        return error_set_field(err, -ENOENT, ERROR_NOT_FOUND, "/to", "there is no host '%s'", to);
    uint64_t disk_bytes = m->storage == NULL ? disks_bytes(record->vm) : 0;
    host_view_fill(state, NULL, view);
    place_with_disks(view, &request, host == NULL ? disk_bytes : 0, result);
    if (host != NULL) {
        int rc = target_judge(view, &request, result, host, err);
        snprintf(note, NOTE_BYTES_MAX, "%.63s, as asked for", host->common->name);
        if (rc == 0)
            room_note(view, result, disk_bytes, note);
        return rc;
    }
    place_summary(view, &request, result, note, NOTE_BYTES_MAX);
    room_note(view, result, disk_bytes, note);
    return result->chosen != PLACE_NONE ? 0 : error_set(err, -ENOSPC, ERROR_NO_HOST, "%s", note);
}

/* What is the same in both. */
static void settings_copy(const struct vm_migration *wish, struct task_migration *to)
{
    if (wish->downtime_ms != 0)
        OBJECT_SET(task_migration, to, downtime_ms, wish->downtime_ms);
    if (wish->downtime_max_ms != 0)
        OBJECT_SET(task_migration, to, downtime_max_ms, wish->downtime_max_ms);
    if (wish->bytes_per_second != 0)
        OBJECT_SET(task_migration, to, bytes_per_second, wish->bytes_per_second);
    if (wish->timeout_ms != 0)
        OBJECT_SET(task_migration, to, timeout_ms, wish->timeout_ms);
    if (wish->connections != 0)
        OBJECT_SET(task_migration, to, connections, wish->connections);
    if (OBJECT_HAS(vm_migration, wish, throttle_max))
        OBJECT_SET(task_migration, to, throttle_max, wish->throttle_max);
    if (wish->verify)
        OBJECT_SET(task_migration, to, verify, true);
    if (wish->postcopy != vmm_postcopy_NEVER) /* else controllers that do not know it can do it, too */
        OBJECT_SET(task_migration, to, postcopy, wish->postcopy);
}

int migrate_plan(const struct state *state, const struct record *record, const struct vm_migration *wish, struct task *task,
                 struct error *err)
{
    struct scheduler_view view = {0};
    struct place_result result = {0};
    char note[NOTE_BYTES_MAX] = "";
    const char *to = wish != NULL ? wish->to : NULL, *storage = wish != NULL ? wish->storage : NULL;
    struct task_migration *migration = &task->migration;
    if (wish != NULL && wish->verify && wish->postcopy != vmm_postcopy_NEVER)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/verify",
                               "all memory is compared before the VM runs at the target, and by post-copy it runs there before: ask for one of the two");
    int rc = storage != NULL ? storage_choose(state, record->vm, storage, migration, err) : 0;
    if (rc == 0)
        rc = vm_check(state, record->vm, migration, err);
    if (rc == 0 && storage != NULL)
        rc = storage_check(state, record->vm, migration, state_get(state, object_kind_HOST, to), err);
    if (rc == 0)
        rc = target_choose(state, record, to, migration, &view, &result, note, err);
    if (rc == 0) {
        OBJECT_SET(task, task, kind, task_kind_VM_MIGRATE);
        OBJECT_TEXT(task, task, host, record->vm->host);
        OBJECT_TEXT(task, task, peer, view.ids[result.chosen]);
        OBJECT_TEXT(task, task, vm, record->common->id);
        OBJECT_SET(task, task, epoch, record->vm->epoch);
        OBJECT_TEXT(task_migration, migration, from_name, record->vm->host_name);
        OBJECT_TEXT(task_migration, migration, to_name, view.names[result.chosen]);
        OBJECT_TEXT(task_migration, migration, placement, note);
        if (vm_has_pools(record->vm))
            OBJECT_SET(task_migration, migration, shared_disks, true);
        if (wish != NULL)
            settings_copy(wish, migration);
        object_mark(&task_desc, task, "migration");
    }
    place_result_finish(&result);
    view_finish(&view);
    return rc;
}
