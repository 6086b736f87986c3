/* Migrations: what they need, the hand-over, how they end. See the header. */
#include "controller/fsm/apply_migrate.h"

#include <errno.h>
#include <string.h>

#include "controller/fsm/pool_members.h"
#include "controller/fsm/replica_state.h"
#include "controller/fsm/volume_disks.h"

static bool is_migration(const struct operation *operation)
{
    return operation_has_task(operation) && operation->task.kind == task_kind_VM_MIGRATE;
}

bool migration_is_handed_over(const struct operation *operation)
{
    return is_migration(operation) && operation->task.migration.handed_over != 0;
}

bool migration_lacks_memory(const struct operation *operation)
{
    return migration_is_handed_over(operation) && operation->task.migration.lacking;
}

struct record *migration_under_way(const struct record *vm)
{
    for (size_t i = 0; i < vm->of_vm.operations.count; i++)
        if (is_migration(vm->of_vm.operations.items[i]->operation))
            return vm->of_vm.operations.items[i];
    return NULL;
}

bool upgrade_under_way(const struct record *vm)
{
    for (size_t i = 0; i < vm->of_vm.operations.count; i++) {
        const struct operation *operation = vm->of_vm.operations.items[i]->operation;
        if (operation_has_task(operation) && operation->task.kind == task_kind_VM_UPGRADE)
            return true;
    }
    return false;
}

const struct snapshot *migration_snapshot(const struct state *state, const struct vm *vm)
{
    for (size_t i = 0; vm->disks.count > 0 && i < state_count(state, object_kind_SNAPSHOT); i++) {
        const struct snapshot *snapshot = state_at(state, object_kind_SNAPSHOT, i)->snapshot;
        if (text_same(snapshot->vm, vm->id))
            return snapshot;
    }
    return NULL;
}

static bool is_in_shared(const struct state *state, const struct vm_disk *disk)
{
    const struct record *pool = state_get(state, object_kind_POOL, disk->pool);
    return pool != NULL && pool_is_shared(pool->pool);
}

bool migration_takes_disk(const struct state *state, const struct task_migration *m, const struct vm_disk *disk)
{
    const struct record *pool = state_get(state, object_kind_POOL, disk->pool);
    if (m->storage == NULL || disk->volume != NULL || disk->read_only || (disk->pool != NULL && pool == NULL))
        return false;
    return disk->pool == NULL || pool->pool->kind == pool_kind_DIR || (m->storage_shared && strcmp(pool->common->id, m->storage) != 0);
}

bool migration_snapshots_stay(const struct state *state, const struct task_migration *m, const struct vm *vm)
{
    const struct vm_disk *disks = vm->disks.items;
    for (size_t i = 0; i < vm->disks.count; i++) {
        const struct record *pool = state_get(state, object_kind_POOL, disks[i].pool);
        bool stays = pool != NULL && pool->pool->kind == pool_kind_SHARED_DIR && !migration_takes_disk(state, m, &disks[i]);
        if (!stays && !(disks[i].read_only && disks[i].pool == NULL)) /* every host makes those */
            return false;
    }
    for (size_t i = 0; i < state_count(state, object_kind_SNAPSHOT); i++) {
        const struct snapshot *snapshot = state_at(state, object_kind_SNAPSHOT, i)->snapshot;
        if (text_same(snapshot->vm, vm->id) && snapshot->state != snapshot_state_AVAILABLE)
            return false;
    }
    return true;
}

bool migration_storage_is_shared(const struct state *state, const struct task_migration *m)
{
    const struct record *storage = state_get(state, object_kind_POOL, m->storage);
    return storage != NULL && storage->pool->kind == pool_kind_SHARED_DIR;
}

const struct vm_disk *migration_disk_with_other(const struct state *state, const struct task_migration *m, const struct vm *vm)
{
    const struct vm_disk *disks = vm->disks.items;
    for (size_t i = 0; i < vm->disks.count; i++) {
        const struct record *other = state_get(state, object_kind_POOL, disks[i].other_pool);
        bool stays = own_disk_has_left(&disks[i]) && other != NULL && pool_is_shared(other->pool) && !migration_takes_disk(state, m, &disks[i]);
        if (own_disk_has_other(&disks[i]) && !stays)
            return &disks[i];
    }
    return NULL;
}

uint64_t migration_disks_bytes(const struct state *state, const struct task_migration *m, const struct vm *vm)
{
    const struct vm_disk *disks = vm->disks.items;
    uint64_t bytes = 0;
    for (size_t i = 0; i < vm->disks.count; i++)
        bytes += migration_takes_disk(state, m, &disks[i]) ? disks[i].size_bytes : 0;
    return bytes;
}

void migration_vm_there(const struct state *state, const struct task_migration *m, const struct vm *vm, const char *place, struct vm *ret)
{
    const struct record *storage = state_get(state, object_kind_POOL, m->storage);
    OBJECT_COPY(vm, ret, vm);
    for (size_t i = 0; storage != NULL && i < ret->disks.count; i++) {
        struct vm_disk *disk = (struct vm_disk *)ret->disks.items + i;
        if (!migration_takes_disk(state, m, disk))
            continue;
        OBJECT_TEXT(vm_disk, disk, pool, storage->common->name);
        OBJECT_TEXT(vm_disk, disk, place, place);
    }
    vm_pool_forget(ret);
}

void migration_vm_pools(const struct state *state, const struct task_migration *m, const struct vm *vm, struct vm *ret)
{
    const struct vm_disk *disks = vm->disks.items;
    migration_vm_there(state, m, vm, NULL, ret);
    for (size_t i = 0; i < vm->disks.count; i++)
        if (migration_takes_disk(state, m, &disks[i]) && is_in_shared(state, &disks[i]) && !migration_storage_is_shared(state, m))
            OBJECT_COPY(vm_disk, OBJECT_ADD(vm, ret, disks), &disks[i]);
}

bool migration_goes_to_pool(const struct record *vm, const char *pool_id, const char *host_id)
{
    const struct record *record = migration_under_way(vm);
    const struct task *task = record != NULL ? &record->operation->task : NULL;
    return task != NULL && !migration_is_handed_over(record->operation) && text_same(task->migration.storage, pool_id) &&
           (host_id == NULL || text_same(task->peer, host_id));
}

const struct vm_disk *migration_fixed_disk(const struct state *state, const struct task_migration *m, const struct vm *vm)
{
    const struct vm_disk *disks = vm->disks.items;
    for (size_t i = 0; i < vm->disks.count; i++) {
        if (migration_takes_disk(state, m, &disks[i]))
            continue;
        if (disks[i].leaving || (disks[i].pool != NULL && !is_in_shared(state, &disks[i])))
            return &disks[i];
    }
    return NULL;
}

static struct record *by_id(struct apply *a, enum object_kind kind, const char *id)
{
    return id != NULL ? map_get(&a->state->tables[kind].by_id, id) : NULL;
}

/* ---- begin ---- */

static bool has_pool(const struct pool *pool, const char *host_id)
{
    const struct pool_host *member = pool_member_find(pool, host_id);
    return member != NULL && member->state == pool_host_state_PRESENT;
}

/* Can the target's host use the pools, with that for the disks that go along, and has this one the room? */
static bool pools_allow(struct apply *a, const struct vm *vm, const struct task *task, const struct record *to)
{
    const struct task_migration *m = &task->migration;
    const struct record *storage = by_id(a, object_kind_POOL, m->storage);
    bool is_shared = migration_storage_is_shared(a->state, m);
    struct vm there = {0};
    bool takes = storage != NULL && (is_shared ? m->storage_shared : storage->pool->kind == pool_kind_DIR);
    if (m->storage != NULL && (!takes || vm->replica_host != NULL)) {
        apply_refuse_field(a, -ENOENT, ERROR_CONFLICT, "/storage", "there is no such pool of directories, or VM '%s' has a replica by now", vm->name);
        return false;
    }
    if (is_shared && !has_pool(storage->pool, task->host)) {
        apply_refuse_field(a, -EXDEV, ERROR_CONFLICT, "/storage", "the host that has VM '%s' does not have pool '%s' by now", vm->name,
                           storage->common->name);
        return false;
    }
    if (m->storage != NULL)
        migration_vm_pools(a->state, m, vm, &there);
    const char *missing = vm_pool_missing(a->state, m->storage != NULL ? &there : vm, task->peer);
    CLEANUP_FREE char *name = missing != NULL ? xstrdup(missing) : NULL;
    OBJECT_CLEAR(vm, &there);
    if (name != NULL)
        apply_refuse_field(a, -ENOSPC, ERROR_NO_HOST, "/to", "host %s does not have pool '%s' by now", to->common->name, name);
    bool has = name == NULL;
    uint64_t bytes = has ? migration_disks_bytes(a->state, m, vm) : 0;
    if (bytes == 0 || pool_room_bytes(a->state, storage->pool, pool_member_find(storage->pool, task->peer)) >= bytes)
        return has;
    apply_refuse_field(a, -ENOSPC, ERROR_NO_SPACE, "/storage", "pool '%s' has not %llu MiB free on host %s by now", storage->common->name,
                       (unsigned long long)(bytes >> 20), to->common->name);
    return false;
}

static bool may_migrate(struct apply *a, const struct operation *operation)
{
    const struct task *task = &operation->task;
    const struct record *record = by_id(a, object_kind_VM, task->vm), *to = by_id(a, object_kind_HOST, task->peer);
    const struct record *from = by_id(a, object_kind_HOST, task->host);
    char why[APPLY_STEP_BYTES_MAX];
    if (record == NULL || to == NULL || from == NULL) {
        apply_refuse(a, -EINVAL, ERROR_INVALID, "a migration needs a VM and two hosts");
        return false;
    }
    const struct vm *vm = record->vm;
    if (vm->host == NULL || strcmp(vm->host, task->host) != 0 || vm->epoch != task->epoch)
        apply_refuse(a, -ESTALE, ERROR_CONFLICT, "VM '%s' has been started or given away meanwhile; ask again", vm->name);
    else if (vm->state != vm_state_RUNNING && vm->state != vm_state_PAUSED)
        apply_refuse(a, -EINVAL, ERROR_CONFLICT, "VM '%s' is %s: only one that runs or is paused can be migrated", vm->name,
                     vm_state_desc.names[vm->state]);
    else if (vm->wanted != vm_wanted_RUNNING && vm->wanted != vm_wanted_PAUSED)
        apply_refuse(a, -EINVAL, ERROR_CONFLICT, "VM '%s' is to be %s", vm->name, vm_wanted_desc.names[vm->wanted]);
    else if (migration_snapshot(a->state, vm) != NULL &&
             !(task->migration.snapshots_stay && migration_snapshots_stay(a->state, &task->migration, vm)))
        apply_refuse(a, -ENOTSUP, ERROR_NOT_SUPPORTED, "VM '%s' has snapshots by now, which do not go along; delete them", vm->name);
    else if (migration_fixed_disk(a->state, &task->migration, vm) != NULL || (vm_has_pools(vm) && !task->migration.shared_disks))
        apply_refuse(a, -ENOTSUP, ERROR_NOT_SUPPORTED, "VM '%s' has a volume or a disk in a pool by now, which do not go along",
                     vm->name);
    else if (own_disk_with_other(vm) != NULL &&
             !(task->migration.left_stays && migration_disk_with_other(a->state, &task->migration, vm) == NULL))
        apply_refuse(a, -EBUSY, ERROR_CONFLICT,
                     "what a move has left of disk '%s' of VM '%s' is still being removed; wait for that, or forget it (drover vm forget-left)",
                     own_disk_with_other(vm)->name, vm->name);
    else if (migration_under_way(record) != NULL)
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "VM '%s' is being migrated already", vm->name);
    else if (to->host->state != host_state_UP)
        apply_refuse_field(a, -EHOSTDOWN, ERROR_CONFLICT, "/to", "host %s is %s", to->common->name,
                           host_state_desc.names[to->host->state]);
    else if (from->host->state != host_state_UP)
        apply_refuse(a, -EHOSTDOWN, ERROR_CONFLICT, "host %s, which has the VM, is %s", from->common->name,
                     host_state_desc.names[from->host->state]);
    else if (!apply_host_fits(to, vm->memory_bytes, vm->vcpus, why, sizeof why))
        apply_refuse_field(a, -ENOSPC, ERROR_NO_HOST, "/to", "%s", why);
    else
        return pools_allow(a, vm, task, to);
    return false;
}

/* ---- end ---- */

/* Hosts that may have to remove what there is of the VM's disks elsewhere. */
static void left_tell(struct apply *a, const struct vm *vm)
{
    const struct vm_disk *disks = vm->disks.items;
    for (size_t i = 0; i < vm->disks.count; i++) {
        const struct record *record = own_disk_has_left(&disks[i]) ? state_get(a->state, object_kind_POOL, disks[i].other_pool) : NULL;
        for (size_t k = 0; record != NULL && k < record->pool->members.count; k++)
            state_host_orders_changed(a->state, ((const struct pool_host *)record->pool->members.items + k)->host, a->index);
    }
}

/* The disk has something in a shared pool where it is not, for a host to remove. In a directory of a host that one removes what it has of
 * a VM that is not its own: it knows that; but who else may have what others reach no host knows by itself. */
static void left_set(struct vm_disk *disk, const char *pool, const char *place)
{
    OBJECT_TEXT(vm_disk, disk, other_pool, pool);
    OBJECT_TEXT(vm_disk, disk, other_host, NULL);
    OBJECT_TEXT(vm_disk, disk, other_place, place);
    OBJECT_TEXT(vm_disk, disk, left_reason, NULL);
}

/* What a target may have filled in a pool that other hosts reach. Where the cluster was recovered meanwhile it may have been handed over. */
static void copies_leave(struct apply *a, const struct operation *operation, struct record *record)
{
    const struct task_migration *m = &operation->task.migration;
    const struct record *storage = by_id(a, object_kind_POOL, m->storage);
    for (size_t i = 0; i < record->vm->disks.count; i++) {
        struct vm_disk *disk = (struct vm_disk *)record->vm->disks.items + i;
        if (!migration_takes_disk(a->state, m, disk) || own_disk_has_other(disk))
            continue;
        if (!move_may_be_done(a, operation))
            left_set(disk, storage->common->name, operation->id);
        else
            apply_event(a, event_type_UPDATED, record,
                        "what may be there of disk %s of VM %s in pool %s is kept, for the cluster was recovered while the VM was migrated: "
                        "vms/%s/%s.%s.layers may be the only copy; remove it by hand if not", disk->name, record->common->name,
                        storage->common->name, record->common->id, disk->name, operation->id);
    }
}

static void migration_ended(struct apply *a, const struct operation *operation, enum operation_state state, const char *text,
                            const struct task_seen *seen)
{
    struct record *record = by_id(a, object_kind_VM, operation->task.vm);
    (void)seen;
    if (record == NULL)
        return;
    if (migration_lacks_memory(operation) && state != operation_state_SUCCEEDED) {
        const struct task_migration *m = &operation->task.migration;
        apply_event(a, event_type_UPDATED, record, "VM %s: what ran is lost, for host %s had not got all of its memory from host %s%s%s",
                    record->common->name, m->to_name != NULL ? m->to_name : "(removed)", m->from_name != NULL ? m->from_name : "(removed)",
                    text != NULL ? ": " : "", text != NULL ? text : "");
        return;
    }
    if (migration_is_handed_over(operation)) {
        const struct task_migration *m = &operation->task.migration;
        apply_event(a, event_type_UPDATED, record,
                    "VM %s was migrated to host %s: it stood still for %llu ms, %llu MiB in %u rounds, %llu ms in all",
                    record->common->name, m->to_name != NULL ? m->to_name : "(removed)",
                    (unsigned long long)(m->downtime_us / 1000), (unsigned long long)(m->sent_bytes >> 20), m->rounds,
                    (unsigned long long)(m->total_us / 1000));
        return;
    }
    /* Whoever drains the host does not try it again at once. */
    state_edit_begin(a->state, record);
    OBJECT_TEXT(vm, record->vm, migration_failed_at, a->request->at);
    bool leaves = migration_storage_is_shared(a->state, &operation->task.migration);
    if (leaves)
        copies_leave(a, operation, record);
    state_edit_end(a->state, record, leaves ? a->index : record->common->revision);
    left_tell(a, record->vm);
    apply_event(a, event_type_UPDATED, record, "VM %s stays on host %s: its migration %s%s%s", record->common->name,
                record->vm->host_name != NULL ? record->vm->host_name : "(none)", operation_state_desc.names[state],
                text != NULL ? ": " : "", text != NULL ? text : "");
}

void migration_see(struct apply *a, struct record *record, const struct task_seen *seen)
{
    struct task_migration *m = &record->operation->task.migration;
    const struct migration_result *r = &seen->migration;
    if (!is_migration(record->operation) || !OBJECT_HAS(task_seen, seen, migration))
        return;
    state_edit_begin(a->state, record);
    OBJECT_SET(task_migration, m, downtime_us, r->downtime_us);
    OBJECT_SET(task_migration, m, total_us, r->total_us);
    OBJECT_SET(task_migration, m, sent_bytes, r->sent_bytes);
    OBJECT_SET(task_migration, m, rounds, r->rounds);
    state_edit_end(a->state, record, a->index);
}

void migrations_source_silent(struct apply *a, const struct record *host)
{
    for (size_t i = 0; i < host->of_host.tasks.count;) {
        struct record *record = host->of_host.tasks.items[i];
        if (migration_lacks_memory(record->operation) && strcmp(record->operation->task.host, host->common->id) == 0) {
            char step[APPLY_STEP_BYTES_MAX];
            apply_text(step, sizeof step, "host %s does not answer, which has what is missing of its memory", host->common->name);
            operation_step(a, record, step);
            i++;
        } else if (migration_is_handed_over(record->operation) && strcmp(record->operation->task.host, host->common->id) == 0)
            task_end(a, record, operation_state_SUCCEEDED, NULL, NULL, NULL); /* takes it out of the list */
        else
            i++;
    }
}

void migration_source_lost(struct apply *a, struct record *record, const char *text)
{
    struct task *task = &record->operation->task;
    char step[APPLY_STEP_BYTES_MAX];
    if (task->migration.source_error != NULL)
        return;
    state_edit_begin(a->state, record);
    OBJECT_TEXT(task_migration, &task->migration, source_error, text);
    state_edit_end(a->state, record, a->index);
    task_orders_changed(a, task);
    apply_text(step, sizeof step, "nothing more of its memory comes: %s", text);
    operation_step(a, record, step);
}

void migration_source_is_back(struct apply *a, struct record *record)
{
    struct task *task = &record->operation->task;
    if (!migration_lacks_memory(record->operation) || task->migration.source_error == NULL)
        return;
    state_edit_begin(a->state, record);
    OBJECT_TEXT(task_migration, &task->migration, source_error, NULL);
    state_edit_end(a->state, record, a->index);
    task_orders_changed(a, task);
}

void migration_lacks_no_more(struct apply *a, struct record *record)
{
    if (!migration_lacks_memory(record->operation))
        return;
    state_edit_begin(a->state, record);
    OBJECT_SET(task_migration, &record->operation->task.migration, lacking, false);
    state_edit_end(a->state, record, a->index);
    task_orders_changed(a, &record->operation->task);
}

void migration_is_whole(struct apply *a, struct record *record)
{
    struct task_migration *m = &record->operation->task.migration;
    const struct record *from = by_id(a, object_kind_HOST, record->operation->task.host);
    char step[APPLY_STEP_BYTES_MAX];
    bool is_silent = from == NULL || from->host->state != host_state_UP || m->source_error != NULL;
    migration_lacks_no_more(a, record);
    apply_text(step, sizeof step, "all of its memory is on host %s", m->to_name != NULL ? m->to_name : "(removed)");
    if (is_silent)
        task_end(a, record, operation_state_SUCCEEDED, NULL, NULL, NULL);
    else
        operation_step(a, record, step);
}

const struct task_kind_ops task_vm_migrate = {.may_begin = may_migrate, .ended = migration_ended};

/* ---- a new process on the same host ---- */

static bool may_upgrade(struct apply *a, const struct operation *operation)
{
    const struct task *task = &operation->task;
    const struct record *record = task->vm != NULL ? by_id(a, object_kind_VM, task->vm) : NULL;
    if (record == NULL || record->vm->host == NULL || strcmp(record->vm->host, task->host) != 0 || record->vm->epoch != task->epoch)
        apply_refuse(a, -ESTALE, ERROR_CONFLICT, "the VM has moved on since; ask again");
    else if (record->vm->state != vm_state_RUNNING && record->vm->state != vm_state_PAUSED)
        apply_refuse(a, -EINVAL, ERROR_CONFLICT, "VM '%s' does not run by now", record->common->name);
    else
        return true;
    return false;
}

static void upgrade_ended(struct apply *a, const struct operation *operation, enum operation_state state, const char *text,
                          const struct task_seen *seen)
{
    struct record *record = by_id(a, object_kind_VM, operation->task.vm);
    (void)seen;
    if (record == NULL)
        return;
    if (state == operation_state_SUCCEEDED)
        apply_event(a, event_type_UPDATED, record, "VM %s is in a new process of its host's VMM%s%s", record->common->name,
                    text != NULL ? ": " : "", text != NULL ? text : "");
    else
        apply_event(a, event_type_UPDATED, record, "VM %s stays in the process that it is in: its upgrade %s%s%s", record->common->name,
                    operation_state_desc.names[state], text != NULL ? ": " : "", text != NULL ? text : "");
}

const struct task_kind_ops task_vm_upgrade = {.may_begin = may_upgrade, .ended = upgrade_ended};

/* ---- hand-over ---- */

/* Why not, in words; false: it may be. */
static bool hinders(const struct apply *a, const struct operation *operation, const struct record *vm, const struct record *to,
                    const struct command_handover *command, char *ret_why, size_t size)
{
    const struct task *task = &operation->task;
    const struct record *from = map_get(&a->state->tables[object_kind_HOST].by_id, task->host);
    if (operation->cancel_asked)
        apply_text(ret_why, size, "its end was asked for before the hand-over");
    else if (task->peer_error != NULL)
        apply_text(ret_why, size, "%s", task->peer_error);
    else if (vm->vm->host == NULL || strcmp(vm->vm->host, task->host) != 0 || vm->vm->epoch != task->epoch ||
             command->epoch != task->epoch)
        apply_text(ret_why, size, "the VM was started anew or given away meanwhile");
    else if (vm->vm->wanted != vm_wanted_RUNNING && vm->vm->wanted != vm_wanted_PAUSED)
        apply_text(ret_why, size, "the VM is wanted %s by now", vm_wanted_desc.names[vm->vm->wanted]);
    else if (to == NULL || to->host->state != host_state_UP)
        apply_text(ret_why, size, "host %s is %s", to != NULL ? to->common->name : "(removed)",
                   to != NULL ? host_state_desc.names[to->host->state] : "not there any more");
    else if (from == NULL || from->host->state == host_state_LOST)
        apply_text(ret_why, size, "the host that has the VM was declared lost");
    else if (!text_same(task->migration.storage, command->storage) || task->migration.storage_shared != command->storage_shared)
        apply_text(ret_why, size, "the agent of the host that has it does not know of pools that disks go to: upgrade it");
    else if (command->lacking && task->migration.postcopy == vmm_postcopy_NEVER)
        apply_text(ret_why, size, "it was not asked for to run there before all of its memory is there");
    else if (to->of_host.vms.count >= STATE_HOST_VMS_MAX)
        apply_text(ret_why, size, "host %s holds %u VMs, the most that a host may", to->common->name, STATE_HOST_VMS_MAX);
    else
        return false;
    return true;
}

/* Those that went along are where the target has filled them. What the source has goes with all that it has of the VM, and what is in
 * shared pools by orders of their own. */
static void disks_give(struct apply *a, const struct record *operation, struct vm *vm)
{
    const struct task_migration *m = &operation->operation->task.migration;
    const struct record *storage = by_id(a, object_kind_POOL, m->storage);
    for (size_t i = 0; storage != NULL && i < vm->disks.count; i++) {
        struct vm_disk *disk = (struct vm_disk *)vm->disks.items + i;
        if (!migration_takes_disk(a->state, m, disk))
            continue;
        if (is_in_shared(a->state, disk))
            left_set(disk, disk->pool, disk->place);
        OBJECT_TEXT(vm_disk, disk, pool, storage->common->name);
        OBJECT_TEXT(vm_disk, disk, place, operation->common->id);
        OBJECT_SET(vm, vm, disks_made, true);
    }
    if (storage != NULL)
        vm_pool_forget(vm);
}

static void give_to_target(struct apply *a, struct record *operation, struct record *vm, const struct record *to, bool lacking)
{
    char from_id[STATE_ID_BYTES], step[APPLY_STEP_BYTES_MAX];
    uint64_t epoch = vm->vm->epoch + 1;
    struct task *task = &operation->operation->task;
    strcpy(from_id, vm->vm->host); /* an id: fits */
    state_edit_begin(a->state, operation); /* the room that it kept becomes the VM's own */
    OBJECT_SET(task_migration, &task->migration, handed_over, epoch);
    if (lacking)
        OBJECT_SET(task_migration, &task->migration, lacking, true);
    object_mark(&task_desc, task, "migration");
    apply_text(step, sizeof step, "it is host %s's now%s", to->common->name, lacking ? ", and part of its memory is to follow" : "");
    OBJECT_TEXT(operation, operation->operation, step, step);
    state_edit_end(a->state, operation, a->index);
    state_edit_begin(a->state, vm);
    disks_give(a, operation, vm->vm);
    OBJECT_TEXT(vm, vm->vm, host, to->common->id);
    OBJECT_TEXT(vm, vm->vm, host_name, to->common->name);
    OBJECT_SET(vm, vm->vm, epoch, epoch);
    OBJECT_TEXT(vm, vm->vm, handover, operation->common->id);
    OBJECT_TEXT(vm, vm->vm, migration_failed_at, NULL);
    replica_vm_moved(a, vm->vm, from_id, epoch - 1);
    if (task->migration.placement != NULL)
        OBJECT_TEXT(vm, vm->vm, placement, task->migration.placement);
    state_edit_end(a->state, vm, a->index);
    left_tell(a, vm->vm);
    state_host_orders_changed(a->state, from_id, a->index);
    state_host_orders_changed(a->state, to->common->id, a->index);
    apply_members_changed(a, vm->vm);
    apply_event(a, event_type_UPDATED, vm, "VM %s was handed over from host %s to host %s, epoch %llu%s", vm->common->name,
                task->migration.from_name != NULL ? task->migration.from_name : from_id, to->common->name, (unsigned long long)epoch,
                lacking ? "; part of its memory is to follow, and until then it needs both" : "");
}

void apply_handover(struct apply *a, struct command_handover *command)
{
    struct record *record = apply_find(a, object_kind_OPERATION, command->id, 0);
    char why[APPLY_TEXT_BYTES_MAX];
    if (record == NULL)
        return;
    struct operation *operation = record->operation;
    if (!is_migration(operation) || operation->task.host == NULL || strcmp(operation->task.host, command->host) != 0) {
        apply_refuse(a, -EPERM, ERROR_FORBIDDEN, "that is no migration from host %s", command->host);
        return;
    }
    if (a->check_only)
        return;
    apply_answer(a, record);
    if (operation->state != operation_state_RUNNING || migration_is_handed_over(operation))
        return; /* asked again: the same answer */
    struct record *vm = by_id(a, object_kind_VM, operation->task.vm), *to = by_id(a, object_kind_HOST, operation->task.peer);
    if (!hinders(a, operation, vm, to, command, why, sizeof why)) {
        give_to_target(a, record, vm, to, command->lacking);
        return;
    }
    bool cancelled = operation->cancel_asked;
    task_end(a, record, cancelled ? operation_state_CANCELLED : operation_state_FAILED,
             cancelled ? error_kind_info(ERROR_CANCELLED)->code : "handover-refused", why, NULL);
}
