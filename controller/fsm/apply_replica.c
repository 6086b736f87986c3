/* Replicas: see replica_state.h. Points are tasks (vm-replicate) that nobody asks for and nobody lists: what came of the last one is in
 * the VM, and what people are to hear of are events of the VM: the first point, lateness, and that it is over. */
#include "controller/fsm/apply_migrate.h"

#include <errno.h>
#include <string.h>

#include "controller/fsm/pool_members.h"
#include "controller/fsm/replica_state.h"
#include "controller/fsm/volume_disks.h"

uint64_t replica_every_s(const struct vm *vm)
{
    return OBJECT_HAS(vm, vm, replica_every_s) ? vm->replica_every_s : REPLICA_EVERY_S;
}

uint64_t replica_limit_s(const struct vm *vm)
{
    return OBJECT_HAS(vm, vm, replica_limit_s) ? vm->replica_limit_s : 3 * replica_every_s(vm) + REPLICA_LIMIT_MORE_S;
}

bool replica_is_sync(const struct vm *vm)
{
    return OBJECT_HAS(vm, vm, replica_sync_s) && vm->replica_sync_s > 0;
}

const struct record *replica_keeper(const struct state *state, const struct vm *vm)
{
    return vm->replica_host != NULL ? state_get(state, object_kind_HOST, vm->replica_host) : NULL;
}

static const struct vm_disk *disk_at(const struct vm *vm, size_t i)
{
    return (const struct vm_disk *)vm->disks.items + i;
}

static const struct pool *disk_pool(const struct state *state, const struct vm_disk *disk)
{
    const struct record *pool = disk->pool != NULL ? state_get(state, object_kind_POOL, disk->pool) : NULL;
    return pool != NULL ? pool->pool : NULL;
}

/* In its host's directory or in a pool of kind dir, and written to (compute/agent/replica_dir.h). */
static bool is_copied(const struct state *state, const struct vm_disk *disk)
{
    const struct pool *pool = disk_pool(state, disk);
    return !disk->read_only && (disk->pool == NULL || (pool != NULL && !pool_is_shared(pool)));
}

/* The volume that @disk is, where it is copied; NULL: it is none, or is not. */
static struct record *copied_volume(const struct state *state, const struct vm_disk *disk)
{
    return disk->volume != NULL && is_copied(state, disk) ? map_get(&state->tables[object_kind_VOLUME].by_id, disk->volume) : NULL;
}

/* A disk of @vm's in a shared pool; NULL: there is none. */
static const struct vm_disk *disk_shared(const struct state *state, const struct vm *vm)
{
    for (size_t i = 0; i < vm->disks.count; i++)
        if (disk_pool(state, disk_at(vm, i)) != NULL && pool_is_shared(disk_pool(state, disk_at(vm, i))))
            return disk_at(vm, i);
    return NULL;
}

/* One that is neither copied nor to be reached from another host. NULL: there is none. */
static const struct vm_disk *disk_left_out(const struct state *state, const struct vm *vm)
{
    for (size_t i = 0; i < vm->disks.count; i++) {
        const struct pool *pool = disk_pool(state, disk_at(vm, i));
        if (disk_at(vm, i)->pool != NULL && (pool == NULL || (!pool_is_shared(pool) && !is_copied(state, disk_at(vm, i)))))
            return disk_at(vm, i);
    }
    return NULL;
}

bool replica_in_pools(const struct state *state, const struct vm *vm)
{
    for (size_t i = 0; i < vm->disks.count; i++)
        if (disk_at(vm, i)->pool != NULL && is_copied(state, disk_at(vm, i)))
            return true;
    return false;
}

bool replica_has_volumes(const struct state *state, const struct vm *vm)
{
    for (size_t i = 0; i < vm->disks.count; i++)
        if (copied_volume(state, disk_at(vm, i)) != NULL)
            return true;
    return false;
}

bool replica_brings(const struct state *state, const struct vm *vm, const struct vm_disk *disk, const char *host_id)
{
    const struct record *keeper = replica_keeper(state, vm);
    return keeper != NULL && strcmp(keeper->common->id, host_id) == 0 && copied_volume(state, disk) != NULL;
}

const struct vm *replica_of_volume(const struct state *state, const struct volume *volume)
{
    const struct record *vm = volume->vm != NULL ? state_get(state, object_kind_VM, volume->vm) : NULL;
    const struct record *pool = state_get(state, object_kind_POOL, volume->pool);
    return vm != NULL && vm->vm->replica_host != NULL && pool != NULL && !pool_is_shared(pool->pool) ? vm->vm : NULL;
}

const struct volume *replica_volume_left(const struct state *state, const struct vm *vm)
{
    for (size_t i = 0; i < vm->disks.count; i++) {
        const struct record *volume = copied_volume(state, disk_at(vm, i));
        if (volume != NULL && volume->volume->other_pool != NULL)
            return volume->volume;
    }
    return NULL;
}

/* A pool of a copied disk's of which @host has no directory of its own; NULL: there is none. */
static const char *pool_not_alone(const struct state *state, const struct vm *vm, const char *host)
{
    for (size_t i = 0; i < vm->disks.count; i++)
        if (disk_at(vm, i)->pool != NULL && is_copied(state, disk_at(vm, i)) &&
            !pool_member_is_alone(disk_pool(state, disk_at(vm, i)), host))
            return disk_at(vm, i)->pool;
    return NULL;
}

const struct record *replica_standby(const struct state *state, const struct vm *vm)
{
    const struct record *keeper = replica_keeper(state, vm);
    bool good = keeper != NULL && vm->host != NULL && strcmp(keeper->common->id, vm->host) != 0 && vm->replica.id != NULL &&
                vm->replica.number > 0 && vm->replica.epoch == vm->epoch && disk_left_out(state, vm) == NULL &&
                replica_volume_left(state, vm) == NULL && pool_not_alone(state, vm, keeper->common->id) == NULL;
    return good ? keeper : NULL;
}

const struct record *replica_under_way(const struct record *vm)
{
    for (size_t i = 0; i < vm->of_vm.operations.count; i++)
        if (vm->of_vm.operations.items[i]->operation->kind == operation_kind_VM_REPLICATE)
            return vm->of_vm.operations.items[i];
    return NULL;
}

static const struct task *session_of(const struct record *operation)
{
    return operation != NULL && OBJECT_HAS(task, &operation->operation->task, session) ? &operation->operation->task : NULL;
}

bool replica_is_held(const struct record *vm)
{
    const struct task *session = session_of(replica_under_way(vm));
    return (session != NULL && session->epoch == vm->vm->epoch) || (vm->vm->replica.in_sync && vm->vm->replica.epoch == vm->vm->epoch);
}

bool replica_is_good(const struct state *state, const struct vm *vm)
{
    bool in_points = !replica_is_sync(vm) && disk_shared(state, vm) == NULL;
    return replica_standby(state, vm) != NULL && (in_points || vm->replica.in_sync);
}

size_t replica_others(const struct record *vm)
{
    return vm->of_vm.operations.count - (replica_under_way(vm) != NULL);
}

/* ---- the wish ---- */

static bool has_copied_disk(const struct state *state, const struct vm *vm)
{
    for (size_t i = 0; i < vm->disks.count; i++)
        if (is_copied(state, disk_at(vm, i)))
            return true;
    return false;
}

static const char replica_field[] = "/replica_host";

/* A replica has neither snapshots nor two places of one volume, and what is attached or detached meanwhile would be missing in it. */
static bool volumes_fit(struct apply *a, const struct vm *vm)
{
    for (size_t i = 0; i < vm->disks.count; i++) {
        const struct record *record = copied_volume(a->state, disk_at(vm, i));
        const struct volume *volume = record != NULL ? record->volume : NULL;
        if (volume == NULL)
            continue;
        if (volume->state != volume_state_ATTACHED || volume->untaken)
            apply_refuse_field(a, -EBUSY, ERROR_CONFLICT, replica_field, "volume '%s' of VM '%s' is %s; wait for that", volume->name, vm->name,
                               volume->untaken ? "taken from the VM's last replica just now" : volume_state_desc.names[volume->state]);
        else if (volume->other_pool != NULL)
            apply_refuse_field(a, -EBUSY, ERROR_CONFLICT, replica_field,
                               "what is left of volume '%s' of VM '%s' in pool '%s'%s%s is still to be removed; wait for that, or forget it (drover "
                               "volume forget-left %s)", volume->name, vm->name, volume->other_pool, volume->other_host != NULL ? " on host " : "",
                               volume->other_host != NULL ? volume->other_host : "", volume->name);
        else if (volume->snapshots > 0)
            apply_refuse_field(a, -ENOTSUP, ERROR_NOT_SUPPORTED, replica_field,
                               "volume '%s' of VM '%s' has snapshot '%s', and a replica has none: delete the volume's snapshots first", volume->name,
                               vm->name, volume_snapshot(a->state, volume)->name);
        else
            continue;
        return false;
    }
    return true;
}

/* A pool of @vm's disks that @host has not (now); NULL: there is none. */
static const char *pool_missing(const struct state *state, const struct vm *vm, const char *host)
{
    for (size_t i = 0; i < vm->disks.count; i++) {
        const struct pool *pool = disk_pool(state, disk_at(vm, i));
        const struct pool_host *member = pool != NULL ? pool_member_find(pool, host) : NULL;
        if (pool != NULL && (member == NULL || member->state != pool_host_state_PRESENT))
            return pool->name;
    }
    return NULL;
}

/* Of disks in shared pools no copies are kept: @keeper has to reach them. Those in pools of kind dir are copied into its own ones. */
static bool pools_fit(struct apply *a, const struct vm *vm, const struct record *keeper, const struct command_put *command)
{
    const struct vm_disk *out = disk_left_out(a->state, vm);
    const char *missing = pool_missing(a->state, vm, keeper->common->id);
    const char *doubled = pool_not_alone(a->state, vm, keeper->common->id), *here = pool_not_alone(a->state, vm, vm->host);
    bool known = (disk_shared(a->state, vm) == NULL || command->replica_pools) && (!replica_in_pools(a->state, vm) || command->replica_dirs) &&
                 (!replica_has_volumes(a->state, vm) || command->replica_volumes);
    if (!vm_has_pools(vm))
        return true;
    if (out != NULL)
        apply_refuse_field(a, -ENOTSUP, ERROR_NOT_SUPPORTED, replica_field,
                           "disk '%s' of VM '%s' is only read and in pool '%s', which is in directories of single hosts: no copy of it would be kept",
                           out->name, vm->name, out->pool);
    else if (!known)
        apply_refuse_field(a, -EBUSY, ERROR_CONFLICT, replica_field, "VM '%s' has a disk in a pool by now; ask again", vm->name);
    else if (missing != NULL)
        apply_refuse_field(a, -ENOENT, ERROR_CONFLICT, replica_field,
                           "host %s has not pool '%s' (now), which VM '%s' has a disk in, and could not start it", keeper->common->name, missing,
                           vm->name);
    else if (doubled != NULL || here != NULL)
        apply_refuse_field(a, -EINVAL, ERROR_CONFLICT, replica_field,
                           "host %s has in pool '%s' the same directory as another host of the pool, so that a copy there would not be a second one, and "
                           "what one of them removes the other would miss: give each host one of its own, or make the pool of kind shared-dir",
                           doubled != NULL ? keeper->common->name : vm->host_name, doubled != NULL ? doubled : here);
    else
        return volumes_fit(a, vm) && !volume_vm_is_busy(a, state_get(a->state, object_kind_VM, vm->id));
    return false;
}

static bool may_have(struct apply *a, const struct vm *vm, const struct record *keeper, const struct command_put *command)
{
    const char *field = replica_field;
    const struct snapshot *snapshot = migration_snapshot(a->state, vm);
    if (vm->host == NULL || vm->recovering)
        apply_refuse_field(a, -EBUSY, ERROR_CONFLICT, field, "VM '%s' waits for a host; give it a replica when it has one", vm->name);
    else if (strcmp(vm->host, keeper->common->id) == 0)
        apply_refuse_field(a, -EINVAL, ERROR_INVALID, field, "VM '%s' itself is on host %s: name another one", vm->name, keeper->common->name);
    else if (vm->pin != NULL)
        apply_refuse_field(a, -EINVAL, ERROR_CONFLICT, field, "VM '%s' is pinned to %s and could not be started on %s", vm->name, vm->pin,
                           keeper->common->name);
    else if (own_disk_with_other(vm) != NULL)
        apply_refuse_field(a, -EBUSY, ERROR_CONFLICT, field,
                           "disk '%s' of VM '%s' is being moved, or what a move has left of it is still being removed; wait for that",
                           own_disk_with_other(vm)->name, vm->name);
    else if (!has_copied_disk(a->state, vm))
        apply_refuse_field(a, -EINVAL, ERROR_INVALID, field,
                           "VM '%s' has no disk in its host's directory, or in a pool of kind dir, that it writes to: there is nothing to copy",
                           vm->name);
    else if (snapshot != NULL)
        apply_refuse_field(a, -ENOTSUP, ERROR_NOT_SUPPORTED, field,
                           "VM '%s' has snapshot '%s', and a replica has none: delete the VM's snapshots first", vm->name, snapshot->name);
    else if (migration_under_way((const struct record *)state_get(a->state, object_kind_VM, vm->id)) != NULL)
        apply_refuse_field(a, -EBUSY, ERROR_CONFLICT, field, "VM '%s' is being migrated; wait for its end, or cancel it", vm->name);
    else
        return pools_fit(a, vm, keeper, command);
    return false;
}

static bool is_taken_away(const struct vm *patch, const char *field)
{
    return patch->head.cleared & (UINT64_C(1) << (object_field(&vm_desc, field) - vm_desc.fields));
}

/* Points are of a moment ago, and what is in shared pools is as it was written last: a VM that was started from both would have its disks of
 * two moments. What is in sync and what is shared are of the same one. */
static bool is_of_one_moment(struct apply *a, const struct vm *vm, const struct vm *patch)
{
    bool given = OBJECT_HAS(vm, patch, replica_sync_s), away = is_taken_away(patch, "replica_sync_s");
    const struct vm_disk *shared = disk_shared(a->state, vm);
    if (shared == NULL || (given ? patch->replica_sync_s > 0 : !away && replica_is_sync(vm)))
        return true;
    apply_refuse_field(a, -EINVAL, ERROR_CONFLICT, "/replica_sync_s",
                       "is needed (1 to 60): disk '%s' of VM '%s' is in pool '%s', always as it was written last, and points of its other disks are "
                       "of a moment ago; or detach it if it is a volume, or take the replica away", shared->name, vm->name, shared->pool);
    return false;
}

bool replica_may_change(struct apply *a, const struct record *record, struct vm *patch, const struct command_put *command)
{
    bool away = is_taken_away(patch, "replica_host");
    if (record->vm->recovering && (away || patch->replica_host != NULL)) {
        apply_refuse_field(a, -EBUSY, ERROR_CONFLICT, "/replica_host", "VM '%s' is being started on another host; ask again", record->common->name);
        return false;
    }
    if (!OBJECT_HAS(vm, patch, replica_host) || patch->replica_host == NULL)
        return away || record->vm->replica_host == NULL || is_of_one_moment(a, record->vm, patch);
    const struct record *keeper = state_get(a->state, object_kind_HOST, patch->replica_host);
    if (keeper == NULL) {
        apply_refuse_field(a, -ENOENT, ERROR_NOT_FOUND, "/replica_host", "there is no host '%s'", patch->replica_host);
        return false;
    }
    OBJECT_TEXT(vm, patch, replica_host, keeper->common->name);
    bool same = record->vm->replica_host != NULL && strcmp(record->vm->replica_host, keeper->common->name) == 0;
    return (same || may_have(a, record->vm, keeper, command)) && is_of_one_moment(a, record->vm, patch);
}

bool replica_allows_volume(struct apply *a, const struct vm *vm, const struct volume *volume, bool known)
{
    const struct pool *pool = state_get(a->state, object_kind_POOL, volume->pool)->pool;
    const struct record *keeper = replica_keeper(a->state, vm);
    const struct pool_host *member = keeper != NULL ? pool_member_find(pool, keeper->common->id) : NULL;
    if (!pool_is_shared(pool))
        apply_refuse_field(a, -ENOTSUP, ERROR_NOT_SUPPORTED, "/vm",
                           "'%s' has a replica on host %s, and volume '%s' is in pool '%s', which is in directories of single hosts, so that it would be "
                           "missing there: take the replica away first (replica_host), and give it again when the volume is attached", vm->name,
                           vm->replica_host, volume->name, pool->name);
    else if (!replica_is_sync(vm))
        apply_refuse_field(a, -ENOTSUP, ERROR_NOT_SUPPORTED, "/vm",
                           "'%s' has a replica on host %s in points of a moment ago, and volume '%s' would always be as it was written last: have the "
                           "replica kept in sync (replica_sync_s), or take it away first (replica_host)", vm->name, vm->replica_host, volume->name);
    else if (!known)
        apply_refuse_field(a, -EBUSY, ERROR_CONFLICT, "/vm", "'%s' has a replica by now; ask again", vm->name);
    else if (member == NULL || member->state != pool_host_state_PRESENT)
        apply_refuse_field(a, -ENOENT, ERROR_CONFLICT, "/vm", "'%s' has a replica on host %s, which has not pool '%s' (now) and could not start it",
                           vm->name, vm->replica_host, pool->name);
    else
        return true;
    return false;
}

/* ---- what becomes of it ---- */

static void take_away(struct vm *vm, const char *field)
{
    const struct field_desc *f = object_field(&vm_desc, field);
    struct vm empty = {.name = NULL};
    empty.head.cleared = UINT64_C(1) << (f - vm_desc.fields);
    object_merge(&vm_desc, vm, &empty);
}

static void begin_anew(struct apply *a, struct vm *vm)
{
    uint64_t sessions = vm->replica.sessions;
    take_away(vm, "replica");
    if (sessions > 0) /* a number is never given twice */
        OBJECT_SET(vm_replica, &vm->replica, sessions, sessions);
    if (vm->replica_host != NULL)
        OBJECT_TEXT(vm_replica, &vm->replica, since, a->request->at);
    if (vm->replica_host != NULL && replica_in_pools(a->state, vm)) /* controllers that know nothing of that end here */
        OBJECT_SET(vm_replica, &vm->replica, in_pools, true);
    if (vm->replica_host != NULL && replica_has_volumes(a->state, vm)) /* nor of that */
        OBJECT_SET(vm_replica, &vm->replica, volumes, true);
    if (sessions > 0 || vm->replica_host != NULL)
        object_mark(&vm_desc, vm, "replica");
}

static void tell_keeper(struct apply *a, const char *keeper)
{
    const struct record *host = keeper != NULL ? state_get(a->state, object_kind_HOST, keeper) : NULL;
    if (host != NULL)
        state_host_orders_changed(a->state, host->common->id, a->index);
}

void replica_changed(struct apply *a, struct vm *vm, const char *keeper_before)
{
    const char *before = keeper_before != NULL ? keeper_before : "", *now = vm->replica_host != NULL ? vm->replica_host : "";
    if (strcmp(before, now) == 0)
        return;
    begin_anew(a, vm);
    tell_keeper(a, keeper_before);
    tell_keeper(a, vm->replica_host);
}

void replica_told_again(struct vm *vm)
{
    if (vm->replica.sessions == 0 && !replica_is_sync(vm))
        return;
    OBJECT_SET(vm_replica, &vm->replica, sessions, vm->replica.sessions + STATE_GENERATIONS_LOST_MAX);
    OBJECT_SET(vm_replica, &vm->replica, in_sync, false);
    object_mark(&vm_desc, vm, "replica");
}

void replica_session_check(struct apply *a, struct record *record)
{
    struct record *operation = (struct record *)replica_under_way(record);
    const struct record *keeper = replica_keeper(a->state, record->vm);
    if (operation != NULL && (keeper == NULL || strcmp(keeper->common->id, operation->operation->task.peer) != 0 ||
                              (session_of(operation) != NULL && !replica_is_sync(record->vm))))
        task_ask_cancel(a, operation, "to end: the VM is to have another replica, or none");
}

/* The VM is where its replica was: what keeps it from now on is the host that it comes from. */
static void turn_around(struct apply *a, struct vm *vm, const char *from)
{
    const struct record *host = from != NULL ? state_get(a->state, object_kind_HOST, from) : NULL;
    bool other = host != NULL && vm->host != NULL && strcmp(host->common->id, vm->host) != 0;
    tell_keeper(a, vm->replica_host);
    if (other)
        OBJECT_TEXT(vm, vm, replica_host, host->common->name);
    else
        take_away(vm, "replica_host");
    begin_anew(a, vm);
    tell_keeper(a, vm->replica_host);
}

static bool is_on_keeper(const struct apply *a, const struct vm *vm)
{
    const struct record *keeper = replica_keeper(a->state, vm);
    return keeper != NULL && vm->host != NULL && strcmp(keeper->common->id, vm->host) == 0;
}

void replica_epoch_raised(struct vm *vm, uint64_t before)
{
    if (OBJECT_HAS(vm, vm, replica) && vm->replica.number > 0 && vm->replica.epoch == before)
        OBJECT_SET(vm_replica, &vm->replica, epoch, vm->epoch);
}

void replica_vm_moved(struct apply *a, struct vm *vm, const char *from, uint64_t epoch_before)
{
    if (OBJECT_HAS(vm, vm, replica_start))
        take_away(vm, "replica_start");
    if (is_on_keeper(a, vm))
        turn_around(a, vm, from);
    else
        replica_epoch_raised(vm, epoch_before);
    if (OBJECT_HAS(vm, vm, replica) && vm->replica.in_sync) /* its new host keeps no replica level yet */
        OBJECT_SET(vm_replica, &vm->replica, in_sync, false);
}

void replica_taken(struct apply *a, struct vm *vm, const char *from)
{
    take_away(vm, "replica_start");
    OBJECT_TEXT(vm_replica_start, &vm->replica_start, id, vm->replica.id);
    OBJECT_SET(vm_replica_start, &vm->replica_start, number, vm->replica.number);
    if (vm->replica.session > 0)
        OBJECT_SET(vm_replica_start, &vm->replica_start, session, vm->replica.session);
    object_mark(&vm_desc, vm, "replica_start");
    turn_around(a, vm, from);
    if (vm->replica_host != NULL && replica_has_volumes(a->state, vm))
        OBJECT_TEXT(vm_replica, &vm->replica, failure, "what is left of its volumes there goes first, when the VM has run here and that host is back");
}

/* Its id, which is random, as a place: nobody has had it, or will have it again. A host has said it, and might say anything. */
static void place_of_replica(const char *id, char ret[STATE_ID_BYTES])
{
    size_t from = 0;
    for (size_t i = 0; i < STATE_ID_BYTES - 1; i++) {
        char c = i == 8 || i == 13 || i == 18 || i == 23 ? '-' : id[from] != '\0' ? id[from++] : '0';
        ret[i] = c == '-' || (c != '\0' && strchr("0123456789abcdef", c) != NULL) ? c : '0';
    }
    ret[STATE_ID_BYTES - 1] = '\0';
}

static const char *place_said(const struct object_list *places, const char *volume)
{
    const struct volume_place *all = places->items;
    for (size_t i = 0; i < places->count; i++)
        if (strcmp(all[i].id, volume) == 0)
            return all[i].place;
    return NULL;
}

static void volume_taken(struct apply *a, struct record *record, const struct vm *vm, const char *place)
{
    struct volume *volume = record->volume;
    if (volume->other_pool != NULL) /* of which nothing was known when the replica was made: the cluster was recovered */
        apply_event(a, event_type_UPDATED, record, "what was left of volume %s in pool %s%s%s stays there: volumes/%s%s%s", volume->name,
                    volume->other_pool, volume->other_host != NULL ? " on host " : "", volume->other_host != NULL ? volume->other_host : "", volume->id,
                    volume->other_place != NULL ? "." : "", volume->other_place != NULL ? volume->other_place : "");
    CLEANUP_FREE char *host = xstrdup(volume->host), *was = volume->place != NULL ? xstrdup(volume->place) : NULL;
    state_edit_begin(a->state, record);
    OBJECT_TEXT(volume, volume, other_pool, volume->pool);
    OBJECT_TEXT(volume, volume, other_host, host);
    OBJECT_TEXT(volume, volume, other_place, was);
    OBJECT_TEXT(volume, volume, host, vm->host_name);
    OBJECT_TEXT(volume, volume, place, place);
    OBJECT_SET(volume, volume, untaken, true);
    OBJECT_TEXT(volume, volume, state_reason, NULL);
    state_edit_end(a->state, record, a->index);
    volume_tell_hosts(a, volume);
    apply_event(a, event_type_UPDATED, record, "volume %s is on host %s now, from the replica of VM %s; what is left of it on host %s goes when the VM has run",
                volume->name, volume->host, vm->name, volume->other_host);
}

void replica_volumes_taken(struct apply *a, struct record *record, const struct object_list *places)
{
    const struct vm *vm = record->vm;
    char of_replica[STATE_ID_BYTES];
    if (places == NULL)
        place_of_replica(vm->replica_start.id, of_replica);
    for (size_t i = 0; i < vm->disks.count; i++) {
        struct record *volume = copied_volume(a->state, disk_at(vm, i));
        const char *place = places == NULL ? of_replica : volume != NULL ? place_said(places, volume->common->id) : NULL;
        if (volume != NULL && place != NULL && !text_same(volume->volume->host, vm->host_name))
            volume_taken(a, volume, vm, place);
    }
}

static void is_taken(struct volume *volume)
{
    volume->untaken = false;
    volume->head.present &= ~(UINT64_C(1) << (object_field(&volume_desc, "untaken") - volume_desc.fields));
}

void replica_volumes_run(struct apply *a, const struct record *record)
{
    const struct vm *vm = record->vm;
    if (vm->state != vm_state_RUNNING && vm->state != vm_state_PAUSED)
        return;
    for (size_t i = 0; i < vm->disks.count; i++) {
        struct record *volume = copied_volume(a->state, disk_at(vm, i));
        if (volume == NULL || !volume->volume->untaken)
            continue;
        state_edit_begin(a->state, volume);
        is_taken(volume->volume);
        state_edit_end(a->state, volume, a->index);
        volume_tell_hosts(a, volume->volume);
    }
}

void replica_volume_back(struct apply *a, struct record *record)
{
    struct volume *volume = record->volume;
    CLEANUP_FREE char *here = xstrdup(volume->host), *place = volume->place != NULL ? xstrdup(volume->place) : NULL;
    bool back = volume->other_pool != NULL && volume->other_host != NULL;
    state_edit_begin(a->state, record);
    is_taken(volume);
    if (back) {
        CLEANUP_FREE char *there = xstrdup(volume->other_host), *was = volume->other_place != NULL ? xstrdup(volume->other_place) : NULL;
        OBJECT_TEXT(volume, volume, host, there);
        OBJECT_TEXT(volume, volume, place, was);
        OBJECT_TEXT(volume, volume, other_pool, NULL);
        OBJECT_TEXT(volume, volume, other_host, NULL);
        OBJECT_TEXT(volume, volume, other_place, NULL);
    }
    state_edit_end(a->state, record, a->index);
    volume_tell_hosts(a, volume);
    if (back)
        apply_event(a, event_type_UPDATED, record, "volume %s is on host %s as before, for host %s has not said that its VM ran from the replica; volumes/%s.%s "
                    "stays there if it was made", volume->name, volume->host, here, volume->id, place != NULL ? place : "");
}

void replica_followed(struct apply *a, struct vm *vm, const char *from)
{
    if (!is_on_keeper(a, vm))
        return;
    if (vm->replica.id != NULL && vm->replica.number > 0)
        replica_taken(a, vm, from);
    else
        turn_around(a, vm, from);
}

/* Its disks are there: the host that it was on keeps none any more (controller/nodes/node_sync.c). */
void replica_vm_seen(struct apply *a, const struct vm *vm)
{
    if (OBJECT_HAS(vm, vm, replica_start) && (vm->state == vm_state_RUNNING || vm->state == vm_state_PAUSED))
        tell_keeper(a, vm->replica_host);
}

void replica_vm_gone(struct apply *a, const struct vm *vm)
{
    tell_keeper(a, vm->replica_host);
}

/* ---- points ---- */

static bool may_replicate(struct apply *a, const struct operation *operation)
{
    const struct task *task = &operation->task;
    const struct record *record = task->vm != NULL ? apply_find(a, object_kind_VM, task->vm, 0) : NULL;
    const struct record *keeper = record != NULL ? replica_keeper(a->state, record->vm) : NULL;
    if (record == NULL || keeper == NULL || task->peer == NULL || strcmp(keeper->common->id, task->peer) != 0)
        apply_refuse(a, -ESTALE, ERROR_CONFLICT, "the VM is to have no replica there any more");
    else if (record->vm->host == NULL || strcmp(record->vm->host, task->host) != 0 || record->vm->epoch != task->epoch)
        apply_refuse(a, -ESTALE, ERROR_CONFLICT, "VM '%s' has been started or given away meanwhile", record->common->name);
    else if ((replica_is_sync(record->vm) && record->vm->replica.number > 0) != OBJECT_HAS(task, task, session) ||
             (OBJECT_HAS(task, task, session) && task->session != record->vm->replica.sessions + 1))
        apply_refuse(a, -ESTALE, ERROR_CONFLICT, "the replica of VM '%s' is brought forward otherwise by now", record->common->name);
    else if (task->in_pools != record->vm->replica.in_pools || task->volumes != record->vm->replica.volumes)
        apply_refuse(a, -ESTALE, ERROR_CONFLICT, "the replica of VM '%s' is of other disks by now", record->common->name);
    else if (replica_volume_left(a->state, record->vm) != NULL)
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "what is left of volume '%s' is still to be removed", replica_volume_left(a->state, record->vm)->name);
    else if (record->of_vm.operations.count > 0)
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "something else is being done with VM '%s'", record->common->name);
    else
        return true;
    return false;
}

/* From here on it is a point: the guest has been told of nothing since this entry that is not in it. */
static void sync_over(struct apply *a, struct vm_replica *r)
{
    OBJECT_SET(vm_replica, r, in_sync, false);
    OBJECT_TEXT(vm_replica, r, at, a->request->at);
}

static void replicate_begun(struct apply *a, const struct operation *operation)
{
    struct record *record = apply_find(a, object_kind_VM, operation->task.vm, 0);
    state_edit_begin(a->state, record);
    OBJECT_TEXT(vm_replica, &record->vm->replica, tried_at, a->request->at);
    if (OBJECT_HAS(task, &operation->task, session)) {
        OBJECT_SET(vm_replica, &record->vm->replica, sessions, operation->task.session);
        if (record->vm->replica.in_sync) /* of one whose host was lost, and is back */
            sync_over(a, &record->vm->replica);
    }
    object_mark(&vm_desc, record->vm, "replica");
    state_edit_end(a->state, record, record->common->revision); /* nobody has changed anything that a user wrote */
}

static bool same(const char *a, const char *b)
{
    return strcmp(a != NULL ? a : "", b != NULL ? b : "") == 0;
}

static void point_complete(struct apply *a, struct record *record, const struct operation *operation, const struct replica_result *result)
{
    struct vm_replica *r = &record->vm->replica;
    bool first = r->number == 0 || !same(r->id, result->id), late = r->late, failed = r->failure != NULL;
    state_edit_begin(a->state, record);
    OBJECT_TEXT(vm_replica, r, id, result->id);
    OBJECT_SET(vm_replica, r, number, result->number);
    OBJECT_TEXT(vm_replica, r, at, operation->created_at); /* the images were made after that */
    OBJECT_SET(vm_replica, r, epoch, operation->task.epoch);
    OBJECT_SET(vm_replica, r, sent_bytes, result->sent_bytes);
    if (OBJECT_HAS(vm_replica, r, session))
        OBJECT_SET(vm_replica, r, session, 0);
    OBJECT_TEXT(vm_replica, r, failure, NULL);
    if (late)
        OBJECT_SET(vm_replica, r, late, false);
    object_mark(&vm_desc, record->vm, "replica");
    if (OBJECT_HAS(vm, record->vm, replica_start))
        take_away(record->vm, "replica_start");
    state_edit_end(a->state, record, record->common->revision);
    if (first || late || failed)
        apply_event(a, event_type_UPDATED, record, "the replica of VM %s on host %s %s: point %llu", record->common->name,
                    record->vm->replica_host, first ? "is complete" : "is up to date again", (unsigned long long)r->number);
}

void replica_host_back(struct apply *a, struct record *record)
{
    if (!record->vm->replica.in_sync || session_of(replica_under_way(record)) != NULL)
        return;
    state_edit_begin(a->state, record);
    sync_over(a, &record->vm->replica);
    object_mark(&vm_desc, record->vm, "replica");
    state_edit_end(a->state, record, record->common->revision);
    state_host_orders_changed(a->state, record->vm->host, a->index);
    apply_event(a, event_type_UPDATED, record, "the replica of VM %s is out of sync: the VM's host was lost, and is back", record->common->name);
}

bool replica_level_counts(const struct state *state, const struct record *operation)
{
    const struct task *task = session_of(operation);
    const struct record *record = task != NULL ? map_get(&state->tables[object_kind_VM].by_id, task->vm) : NULL;
    const struct record *keeper = record != NULL ? replica_keeper(state, record->vm) : NULL;
    return keeper != NULL && OBJECT_HAS(task, task, base) && same(keeper->common->id, task->peer) && same(record->vm->host, task->host) &&
           record->vm->epoch == task->epoch && record->vm->replica.sessions == task->session && !operation->operation->cancel_asked &&
           !record->vm->replica.in_sync;
}

void replica_level(struct apply *a, const struct record *operation)
{
    if (!replica_level_counts(a->state, operation))
        return;
    const struct task *task = session_of(operation);
    struct record *record = map_get(&a->state->tables[object_kind_VM].by_id, task->vm);
    struct vm_replica *r = &record->vm->replica;
    state_edit_begin(a->state, record);
    OBJECT_TEXT(vm_replica, r, id, task->base.id);
    OBJECT_SET(vm_replica, r, number, task->base.number + 1);
    OBJECT_SET(vm_replica, r, session, task->session);
    OBJECT_SET(vm_replica, r, in_sync, true);
    OBJECT_TEXT(vm_replica, r, at, a->request->at);
    OBJECT_SET(vm_replica, r, epoch, task->epoch);
    OBJECT_TEXT(vm_replica, r, failure, NULL);
    if (r->late)
        OBJECT_SET(vm_replica, r, late, false);
    object_mark(&vm_desc, record->vm, "replica");
    if (OBJECT_HAS(vm, record->vm, replica_start))
        take_away(record->vm, "replica_start");
    state_edit_end(a->state, record, record->common->revision);
    apply_event(a, event_type_UPDATED, record, "the replica of VM %s on host %s is in sync", record->common->name, record->vm->replica_host);
}

/* A session is over. Where the VM's own host is lost its guest has stopped, or waits: the replica has all that it was told is flushed. */
static void session_ended(struct apply *a, const struct operation *operation, enum operation_state state, const char *text)
{
    struct record *record = map_get(&a->state->tables[object_kind_VM].by_id, operation->task.vm);
    const struct record *host = state_get(a->state, object_kind_HOST, operation->task.host);
    if (record == NULL || record->vm->replica.sessions != operation->task.session)
        return;
    state_host_orders_changed(a->state, record->vm->host, a->index);
    struct vm_replica *r = &record->vm->replica;
    bool was = r->in_sync && r->session == operation->task.session, is_mine = same(record->vm->host, operation->task.host);
    if (is_mine && was && (host == NULL || host->host->state == host_state_LOST))
        return;
    char why[APPLY_STEP_BYTES_MAX];
    bool wanted = record->vm->wanted == vm_wanted_RUNNING || record->vm->wanted == vm_wanted_PAUSED;
    if (state == operation_state_SUCCEEDED) /* a session never does: it was taken for a point */
        text = "an agent of the VM's hosts knows nothing of sessions: upgrade them";
    apply_text(why, sizeof why, "%s", text != NULL ? text : "its host does not say why");
    bool fails = state != operation_state_CANCELLED && wanted && is_mine && record->vm->epoch == operation->task.epoch;
    bool news = was || (fails && r->failure == NULL);
    state_edit_begin(a->state, record);
    if (was)
        sync_over(a, r);
    if (fails)
        OBJECT_TEXT(vm_replica, r, failure, why);
    object_mark(&vm_desc, record->vm, "replica");
    state_edit_end(a->state, record, record->common->revision);
    if (news)
        apply_event(a, event_type_UPDATED, record, "the replica of VM %s is %s: %s", record->common->name, was ? "out of sync" : "not in sync", why);
}

static void replicate_ended(struct apply *a, const struct operation *operation, enum operation_state state, const char *text,
                            const struct task_seen *seen)
{
    struct record *record = map_get(&a->state->tables[object_kind_VM].by_id, operation->task.vm);
    const struct record *keeper = record != NULL ? replica_keeper(a->state, record->vm) : NULL;
    if (OBJECT_HAS(task, &operation->task, session)) {
        session_ended(a, operation, state, text);
        return;
    }
    if (keeper == NULL || !same(keeper->common->id, operation->task.peer) || !same(record->vm->host, operation->task.host) ||
        record->vm->epoch != operation->task.epoch)
        return;
    bool whole = state == operation_state_SUCCEEDED && seen != NULL && OBJECT_HAS(task_seen, seen, replica) && seen->replica.id != NULL &&
                 seen->replica.number > 0;
    if (whole) {
        point_complete(a, record, operation, &seen->replica);
        return;
    }
    bool wanted = record->vm->wanted == vm_wanted_RUNNING || record->vm->wanted == vm_wanted_PAUSED;
    if (state == operation_state_CANCELLED || !wanted)
        return; /* something else came first, or it is being stopped */
    char why[APPLY_STEP_BYTES_MAX];
    apply_text(why, sizeof why, "%s", text != NULL ? text : "its host does not say why");
    bool news = record->vm->replica.failure == NULL;
    state_edit_begin(a->state, record);
    OBJECT_TEXT(vm_replica, &record->vm->replica, failure, why);
    object_mark(&vm_desc, record->vm, "replica");
    state_edit_end(a->state, record, record->common->revision);
    if (news)
        apply_event(a, event_type_UPDATED, record, "no new point of the replica of VM %s: %s", record->common->name, why);
}

const struct task_kind_ops task_vm_replicate = {.may_begin = may_replicate, .begun = replicate_begun, .ended = replicate_ended};

void apply_replica_late(struct apply *a, struct command_replica_late *command)
{
    struct record *record = apply_find(a, object_kind_VM, command->id, 0);
    if (record == NULL)
        return;
    if (record->vm->replica_host == NULL || record->vm->replica.late || record->vm->replica.number != command->number) {
        apply_refuse(a, -ESTALE, ERROR_CONFLICT, "the replica of VM '%s' has a newer point, or is late already", record->common->name);
        return;
    }
    if (a->check_only)
        return;
    state_edit_begin(a->state, record);
    OBJECT_SET(vm_replica, &record->vm->replica, late, true);
    object_mark(&vm_desc, record->vm, "replica");
    state_edit_end(a->state, record, record->common->revision);
    apply_answer(a, record);
    apply_event(a, event_type_UPDATED, record, "the replica of VM %s on host %s is late: its last complete point is %llu s old%s%s%s",
                record->common->name, record->vm->replica_host, (unsigned long long)command->age_s,
                record->vm->replica.number == 0 ? " (there is none yet)" : "", record->vm->replica.failure != NULL ? ": " : "",
                record->vm->replica.failure != NULL ? record->vm->replica.failure : "");
}
