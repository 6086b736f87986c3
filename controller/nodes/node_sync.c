/* Reports and orders; see the header. */
#include "controller/nodes/node_sync.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/fsm/apply_migrate.h"
#include "controller/fsm/address_pool.h"
#include "controller/fsm/backup_boot.h"
#include "controller/fsm/command_codec.h"
#include "controller/fsm/image_copies.h"
#include "controller/fsm/pool_members.h"
#include "controller/fsm/replica_state.h"
#include "controller/fsm/volume_disks.h"
#include "controller/nodes/orders_older.h"

#define STOP_GRACE_S 60 /* for a guest to shut down, where its VM does not say */

static const struct record *reporter(const struct state *state, const struct node_report *report, struct error *err)
{
    const struct record *host = state_get(state, object_kind_HOST, report->host);
    if (host == NULL || strcmp(host->common->id, report->host) != 0) {
        error_set(err, -ENOENT, ERROR_NOT_FOUND, "host %s is not part of this cluster; join it again",
                  report->host != NULL ? report->host : "(none)");
        return NULL;
    }
    return host;
}

/* ---- what has changed ---- */

/* Progress counts only where it has crossed a step: bytes of downloads do not go through Raft one by one. */
static uint64_t progress_step(uint64_t done, uint64_t total)
{
    return total == 0 ? 0 : done / MAX(total / NODE_SYNC_PROGRESS_STEPS, UINT64_C(1));
}

static bool progress_differs(const struct record *vm, const struct vm_seen *seen)
{
    for (size_t i = 0; i < vm->of_vm.operations.count; i++) {
        const struct operation *held = vm->of_vm.operations.items[i]->operation;
        if (operation_has_task(held))
            continue;
        if (seen->step != NULL && !text_same(seen->step, held->step))
            return true;
        if (held->progress_total != seen->progress_total ||
            progress_step(held->progress_done, held->progress_total) != progress_step(seen->progress_done, seen->progress_total))
            return true;
    }
    return false;
}

/* The rules of apply_seen.c, so that what apply would ignore is not even sent. */
static bool vm_differs(const struct state *state, const struct record *host, const struct vm_seen *seen, const char *now)
{
    const struct record *record = state_get(state, object_kind_VM, seen->id);
    if (record == NULL || strcmp(record->common->id, seen->id) != 0)
        return false;
    const struct vm *vm = record->vm;
    if (state_vm_went_on(state, record, host, seen, now))
        return true;
    if (vm->host == NULL || strcmp(vm->host, host->common->id) != 0 || seen->epoch != vm->epoch)
        return false;
    if (seen->state == vm_state_DELETED)
        return vm->wanted == vm_wanted_DELETED;
    if (seen->generation < vm->seen_generation || vm->recovering || state_vm_made_by(record) != NULL)
        return false;
    return vm_release_counts(record, seen) || vm->state != seen->state || vm->seen_generation != MIN(seen->generation, vm->generation) || state_generation_lost(vm, seen) ||
           vm->restarts != seen->restarts || !text_same(vm->state_reason, seen->reason) ||
           !text_same(vm->vmm_version, seen->program) || progress_differs(record, seen);
}

/* The same for tasks, by the rules of apply_task.c. */
static bool task_differs(const struct state *state, const struct record *host, const struct task_seen *seen)
{
    const struct record *record = state_get(state, object_kind_OPERATION, seen->id);
    if (record == NULL || !operation_has_task(record->operation) || record->operation->state != operation_state_RUNNING)
        return false;
    const struct operation *held = record->operation;
    const struct task *task = &held->task;
    bool ended = seen->state != operation_state_RUNNING;
    bool lacking = migration_lacks_memory(held);
    if (lacking && ended && seen->state != operation_state_SUCCEEDED && seen->role == task_role_MAIN)
        return text_same(task->host, host->common->id) && task->migration.source_error == NULL;
    if (lacking && !ended && seen->role == task_role_MAIN && task->migration.source_error != NULL && text_same(task->host, host->common->id))
        return true;
    if (lacking && ended && seen->role == task_role_PEER)
        return text_same(task->peer, host->common->id);
    if (seen->role == task_role_PEER)
        return text_same(task->peer, host->common->id) &&
               (ended ? seen->state != operation_state_SUCCEEDED && task->peer_error == NULL
                      : task->peer_error != NULL || task->peer_ready != seen->ready ||
                            !text_same(task->peer_endpoint, seen->ready ? seen->endpoint : NULL) ||
                            (OBJECT_HAS(task_seen, seen, base) && !object_equal(&replica_base_desc, &task->base, &seen->base)));
    return text_same(task->host, host->common->id) &&
           (ended || (seen->ready && task->backup.live && !task->backup.placed) || (seen->ready && task->kind == task_kind_VOLUME_MOVE && !task->level) ||
            (seen->ready && replica_level_counts(state, record)) ||
            (seen->step != NULL && !text_same(seen->step, held->step)) ||
            held->progress_total != seen->progress_total ||
            progress_step(held->progress_done, held->progress_total) != progress_step(seen->progress_done, seen->progress_total));
}

/* Is it a VM's way to @host that the host's agent could not fill the disks of? One that has got ready is not asked again. */
static bool cannot_take(const struct record *host, const struct node_report *report, const struct operation *operation)
{
    const struct task *task = &operation->task;
    return !report->shared_arrivals && task->kind == task_kind_VM_MIGRATE && task->migration.storage_shared && !task->peer_ready &&
           text_same(task->peer, host->common->id);
}

/* Its agent does not know that a VM may wait at the target for memory that the source has: it would send all of it before, or end who has it.
 * One that was handed over is told of in any case: its agent may have been exchanged since. */
static bool would_not_wait(const struct node_report *report, const struct operation *operation)
{
    return !report->postcopy && operation->task.kind == task_kind_VM_MIGRATE &&
           operation->task.migration.postcopy != vmm_postcopy_NEVER && !migration_is_handed_over(operation);
}

/* Would @host's agent leave disks out of a replica without a word? */
static bool leaves_out(const struct node_report *report, const struct operation *operation)
{
    bool knows = (report->replica_pools || !operation->task.in_pools) && (report->replica_volumes || !operation->task.volumes);
    return !knows && operation->task.kind == task_kind_VM_REPLICATE;
}

/* Why it is told nothing of @operation, whose end is told in its stead; NULL: it is told. */
static const char *why_not_told(const struct record *host, const struct node_report *report, const struct operation *operation)
{
    if (cannot_take(host, report, operation))
        return "its agent is of an older version, which cannot fill disks that go to or leave shared pools: bring it up to date";
    if (would_not_wait(report, operation))
        return "its agent is of an older version, which knows no post-copy: bring it up to date, or migrate the VM without";
    if (leaves_out(report, operation))
        return text_same(operation->task.host, host->common->id)
                   ? "the agent of the VM's host is of an older version, which makes no replicas of disks in pools of kind dir: bring it up to date"
                   : "the agent of the replica's host is of an older version, which keeps no replicas of disks in pools of kind dir: bring it up to date";
    return NULL;
}

/* What it says of tasks; and of those that it is told nothing of what it does not say. */
static void tasks_differ(const struct state *state, const struct record *host, const struct node_report *report, struct command_seen *command)
{
    for (size_t i = 0; i < report->tasks.count; i++) {
        const struct task_seen *seen = (const struct task_seen *)report->tasks.items + i;
        const struct record *record = state_get(state, object_kind_OPERATION, seen->id);
        if (task_differs(state, host, seen) && why_not_told(host, report, record->operation) == NULL)
            OBJECT_COPY(task_seen, (struct task_seen *)OBJECT_ADD(command_seen, command, tasks), seen);
    }
    for (size_t i = 0; i < host->of_host.tasks.count; i++) {
        const struct operation *operation = host->of_host.tasks.items[i]->operation;
        const char *why = why_not_told(host, report, operation);
        enum task_role role = text_same(operation->task.host, host->common->id) ? task_role_MAIN : task_role_PEER;
        const struct task_seen seen = {.id = operation->id, .role = role, .state = operation_state_FAILED}; /* borrowed */
        if (why == NULL || !task_differs(state, host, &seen))
            continue;
        struct task_seen *said = OBJECT_ADD(command_seen, command, tasks);
        OBJECT_TEXT(task_seen, said, id, seen.id);
        OBJECT_SET(task_seen, said, role, seen.role);
        OBJECT_SET(task_seen, said, state, seen.state);
        OBJECT_TEXT(task_seen, said, error_text, why);
    }
}

/* Was it sent before the one that the state is from? */
static bool is_late(const struct host *host, const struct node_report *report)
{
    return report->session != NULL && text_same(host->session, report->session) && report->sequence < host->report;
}

/* Does the host know the cluster's epoch? If not, its index is of another history. */
static bool follows(const struct state *state, const struct node_report *report)
{
    return MAX(report->cluster_epoch, 1u) == state_cluster(state)->epoch;
}

/* Hosts that were lost come back by their lease first: a report that is complete clears them. */
static bool comes_back(const struct state *state, const struct host *host, const struct node_report *report)
{
    /* One that does not know of a recovery yet may have a generation that is lost; it learns the epoch with its first orders. */
    return host->state == host_state_LOST && !report->leaving && (report->generation <= host->generation || !follows(state, report));
}

static int clear_host(const struct state *state, const struct host *host, const char *now, const struct node_report *report,
                      struct bytes_writer *ret_command, struct error *err)
{
    struct command_host_clear command = {0};
    if (!comes_back(state, host, report))
        return 0;
    OBJECT_TEXT(command_host_clear, &command, id, host->id);
    OBJECT_SET(command_host_clear, &command, generation, host->generation);
    OBJECT_SET(command_host_clear, &command, reported, true);
    OBJECT_TEXT(command_request, &command.request, at, now);
    OBJECT_TEXT(command_request, &command.request, by, host->name);
    object_mark(&command_host_clear_desc, &command, "request");
    int rc = command_encode(COMMAND_host_clear, &command, ret_command, err);
    OBJECT_CLEAR(command_host_clear, &command);
    return rc;
}

static int leave_host(const struct host *host, const struct node_report *report, const char *now, struct bytes_writer *ret_command,
                      struct error *err)
{
    struct command_host_lost command = {0};
    OBJECT_TEXT(command_host_lost, &command, id, host->id);
    OBJECT_SET(command_host_lost, &command, generation, host->generation);
    OBJECT_SET(command_host_lost, &command, voters_index, 0);
    OBJECT_SET(command_host_lost, &command, left, true);
    if (report->going_down)
        OBJECT_SET(command_host_lost, &command, went_down, true);
    OBJECT_SET(command_host_lost, &command, failed_too, true);
    OBJECT_TEXT(command_host_lost, &command, reason, "it was shut down in order");
    OBJECT_TEXT(command_request, &command.request, at, now);
    OBJECT_TEXT(command_request, &command.request, by, host->name);
    object_mark(&command_host_lost_desc, &command, "request");
    int rc = command_encode(COMMAND_host_lost, &command, ret_command, err);
    OBJECT_CLEAR(command_host_lost, &command);
    return rc;
}

/* Free room changes all the time; what is held of it follows in steps of a 32nd. */
static uint64_t free_bytes_of(const struct host *host, const struct node_report *report)
{
    uint64_t step = MAX(report->disk_bytes / 32, UINT64_C(1)), now = report->disk_free_bytes;
    bool near = host->disk_free_bytes <= now + step && now <= host->disk_free_bytes + step;
    return OBJECT_HAS(host, host, disk_free_bytes) && near ? host->disk_free_bytes : now / step * step;
}

static uint32_t stray_vms(const struct node_report *report)
{
    uint32_t count = 0;
    for (size_t i = 0; i < report->vms.count; i++)
        count += ((const struct vm_seen *)report->vms.items)[i].astray;
    return count;
}

static bool host_differs(const struct host *host, const struct node_report *report)
{
    return (host->state != host_state_UP && host->state != host_state_SUSPECT) || (OBJECT_HAS(node_report, report, arming) && host->armed != report->arming) ||
           !text_same(host->address, report->address) || host->cpus != report->cpus ||
           host->memory_bytes != report->memory_bytes || host->disk_bytes != report->disk_bytes ||
           !text_same(host->boot_id, report->boot_id) || !text_same(host->kvm, report->kvm) ||
           !text_same(host->version, report->version) ||
           (report->vmm_version != NULL && !text_same(host->vmm_version, report->vmm_version)) ||
           (report->isolation != NULL && !text_same(host->isolation, report->isolation)) ||
           (OBJECT_HAS(node_report, report, cpu_baseline) && host->cpu_baseline != report->cpu_baseline) ||
           (OBJECT_HAS(node_report, report, disk_free_bytes) && host->disk_free_bytes != free_bytes_of(host, report)) ||
           host->stray_vms != stray_vms(report) || host->going_down != report->going_down ||
           (report->session != NULL && !text_same(host->session, report->session));
}

static void fill_host(struct command_seen *command, const struct host *held, const struct node_report *report)
{
    struct host *host = &command->host;
    OBJECT_TEXT(host, host, id, report->host);
    OBJECT_TEXT(host, host, address, report->address);
    OBJECT_SET(host, host, cpus, report->cpus);
    OBJECT_SET(host, host, memory_bytes, report->memory_bytes);
    OBJECT_SET(host, host, disk_bytes, report->disk_bytes);
    OBJECT_TEXT(host, host, boot_id, report->boot_id);
    if (report->kvm != NULL)
        OBJECT_TEXT(host, host, kvm, report->kvm);
    if (report->version != NULL)
        OBJECT_TEXT(host, host, version, report->version);
    if (report->vmm_version != NULL)
        OBJECT_TEXT(host, host, vmm_version, report->vmm_version);
    if (report->isolation != NULL)
        OBJECT_TEXT(host, host, isolation, report->isolation);
    if (OBJECT_HAS(node_report, report, cpu_baseline))
        OBJECT_SET(host, host, cpu_baseline, report->cpu_baseline);
    if (OBJECT_HAS(node_report, report, arming))
        OBJECT_SET(host, host, armed, report->arming);
    if (OBJECT_HAS(node_report, report, disk_free_bytes))
        OBJECT_SET(host, host, disk_free_bytes, free_bytes_of(held, report));
    if (held->stray_vms != stray_vms(report)) /* absent in every host that never had any */
        OBJECT_SET(host, host, stray_vms, stray_vms(report));
    if (held->going_down != report->going_down) /* the same */
        OBJECT_SET(host, host, going_down, report->going_down);
    if (report->session != NULL) {
        OBJECT_TEXT(host, host, session, report->session);
        OBJECT_SET(host, host, report, report->sequence);
    }
    object_mark(&command_seen_desc, command, "host");
}

/* Images that the host has, or has no longer. A host that says nothing about images knows nothing of them. */
static void images_differ(const struct state *state, const struct record *host, const struct node_report *report,
                          struct command_seen *command)
{
    struct map seen = {0};
    if (!OBJECT_HAS(node_report, report, images))
        return;
    for (size_t i = 0; i < report->images.count; i++) {
        struct image_seen *one = (struct image_seen *)report->images.items + i;
        map_put(&seen, one->sha256, one);
    }
    for (size_t i = 0; i < state_count(state, object_kind_IMAGE); i++) {
        const struct image *image = state_at(state, object_kind_IMAGE, i)->image;
        const struct image_seen *one = image_has_copies(image) ? map_get(&seen, image->disk.sha256) : NULL;
        if (!image_has_copies(image) || !image_copy_differs(image, host->common->id, one) || command->images.count >= 4096)
            continue;
        struct image_seen *out = OBJECT_ADD(command_seen, command, images);
        if (one != NULL) {
            OBJECT_COPY(image_seen, out, one);
            continue;
        }
        OBJECT_TEXT(image_seen, out, sha256, image->disk.sha256);
        OBJECT_SET(image_seen, out, state, image_copy_state_WANTED);
    }
    map_finish(&seen);
}

static void pools_differ(const struct state *state, const struct record *host, const struct node_report *report,
                         struct command_seen *command)
{
    for (size_t i = 0; i < report->pools.count; i++) {
        const struct pool_seen *seen = (const struct pool_seen *)report->pools.items + i;
        const struct record *pool = state_get(state, object_kind_POOL, seen->id);
        if (pool != NULL && pool_member_differs(pool->pool, host->common->id, seen))
            OBJECT_COPY(pool_seen, (struct pool_seen *)OBJECT_ADD(command_seen, command, pools), seen);
    }
}

/* Has @host to make @volume, and would make it empty, for its agent does not know that it can begin as an image? */
static bool would_be_empty(const struct state *state, const struct record *host, const struct volume *volume, const struct node_report *report)
{
    if (report->rbd_images || volume->state != volume_state_CREATING || volume->image == NULL)
        return false;
    const struct record *pool = state_get(state, object_kind_POOL, volume->pool);
    return pool != NULL && pool->pool->kind == pool_kind_RBD && text_same(volume_worker(state, volume), host->common->id);
}

/* What it does not say itself of volumes that it is told nothing of. */
static void empty_ones_differ(const struct state *state, const struct record *host, const struct node_report *report,
                              struct command_seen *command)
{
    const size_t most = object_field(&command_seen_desc, "volumes")->max;
    char reason[200];
    snprintf(reason, sizeof reason, "host %.63s would make it, and its agent is of an older version: bring that up to date", host->common->name);
    for (size_t i = 0; !report->rbd_images && i < state_count(state, object_kind_VOLUME) && command->volumes.count < most; i++) {
        const struct volume *volume = state_at(state, object_kind_VOLUME, i)->volume;
        struct volume_seen seen = {.id = volume->id, .place = volume->place, .reason = reason}; /* borrowed */
        if (!would_be_empty(state, host, volume, report) || !volume_seen_differs(state, host->common->id, &seen))
            continue;
        struct volume_seen *said = OBJECT_ADD(command_seen, command, volumes);
        OBJECT_TEXT(volume_seen, said, id, seen.id);
        OBJECT_TEXT(volume_seen, said, place, seen.place);
        OBJECT_TEXT(volume_seen, said, reason, seen.reason);
    }
}

static void volumes_differ(const struct state *state, const struct record *host, const struct node_report *report,
                           struct command_seen *command)
{
    for (size_t i = 0; i < report->volumes.count; i++) {
        const struct volume_seen *seen = (const struct volume_seen *)report->volumes.items + i;
        if (volume_seen_differs(state, host->common->id, seen))
            OBJECT_COPY(volume_seen, (struct volume_seen *)OBJECT_ADD(command_seen, command, volumes), seen);
    }
}

/* Where its volumes are counts where that was lost, and is else nothing that controllers of any version have to hear of. */
static void vm_put(const struct state *state, const struct record *host, const struct vm_seen *seen, const char *now, struct vm_seen *ret)
{
    const struct record *vm = state_get(state, object_kind_VM, seen->id);
    OBJECT_COPY(vm_seen, ret, seen);
    if (vm != NULL && state_vm_went_on(state, vm, host, seen, now))
        return;
    struct vm_seen empty = {.id = NULL};
    empty.head.cleared = UINT64_C(1) << (object_field(&vm_seen_desc, "volumes") - vm_seen_desc.fields);
    object_merge(&vm_seen_desc, ret, &empty);
}

int node_sync_changes(const struct state *state, const char *now, const struct node_report *report,
                      struct bytes_writer *ret_command, struct error *err)
{
    const struct record *host = reporter(state, report, err);
    struct command_seen command = {0};
    if (host == NULL)
        return -ENOENT;
    if (!text_same(report->name, host->common->name))
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/name", "host %s is named '%s', not '%s'", report->host,
                               host->common->name, report->name != NULL ? report->name : "");
    if (is_late(host->host, report))
        return 0;
    if (host->host->state == host_state_LOST)
        return clear_host(state, host->host, now, report, ret_command, err);
    if (report->leaving && report->generation == host->host->generation && report->generation != 0)
        return leave_host(host->host, report, now, ret_command, err);
    for (size_t i = 0; i < report->vms.count; i++) {
        const struct vm_seen *seen = (const struct vm_seen *)report->vms.items + i;
        if (vm_differs(state, host, seen, now))
            vm_put(state, host, seen, now, OBJECT_ADD(command_seen, &command, vms));
    }
    tasks_differ(state, host, report, &command);
    images_differ(state, host, report, &command);
    pools_differ(state, host, report, &command);
    volumes_differ(state, host, report, &command);
    empty_ones_differ(state, host, report, &command);
    if (command.vms.count == 0 && command.tasks.count == 0 && command.images.count == 0 && command.pools.count == 0 &&
        command.volumes.count == 0 && !host_differs(host->host, report))
        return 0;
    fill_host(&command, host->host, report);
    OBJECT_TEXT(command_request, &command.request, at, now);
    OBJECT_TEXT(command_request, &command.request, by, host->common->name);
    object_mark(&command_seen_desc, &command, "request");
    int rc = command_encode(COMMAND_seen, &command, ret_command, err);
    OBJECT_CLEAR(command_seen, &command);
    return rc;
}

/* ---- what is wanted ---- */

static void give_artifact(struct vm_order *order, const char *field, struct artifact *to, const struct artifact *from, bool given)
{
    if (!given)
        return;
    OBJECT_COPY(artifact, to, from);
    object_mark(&vm_order_desc, order, field);
}

static void give_list(struct vm_order *order, const char *field, const struct object_desc *desc, struct object_list *to,
                      const struct object_list *from)
{
    if (from->count == 0)
        return;
    to->items = xcalloc(from->count, desc->size);
    to->count = from->count;
    for (size_t i = 0; i < from->count; i++)
        object_copy(desc, (char *)to->items + i * desc->size, (const char *)from->items + i * desc->size);
    object_mark(&vm_order_desc, order, field);
}

/* Is a migration of it under way that fills copies of its disks there? */
static bool comes_to(const struct state *state, const struct vm *vm, const struct pool *pool)
{
    const struct record *record = state_get(state, object_kind_VM, vm->id);
    return record != NULL && migration_goes_to_pool(record, pool->id, NULL);
}

/* As @host is to have them, which is the VM's or is to be. */
static void give_pools(const struct state *state, const struct record *host, const struct vm *vm, struct vm_order *order)
{
    bool has_any = vm_has_pools(vm) || own_disk_with_other(vm) != NULL || vm->wanted == vm_wanted_DELETED;
    for (size_t i = 0; i < state_count(state, object_kind_POOL) && has_any; i++) {
        const struct pool *pool = state_at(state, object_kind_POOL, i)->pool;
        const char *its_own = pool->kind == pool_kind_DIR ? host->common->name : NULL;
        bool is_left = vm->wanted == vm_wanted_DELETED && pool_member_find(pool, host->common->id) != NULL &&
                       (own_disks_need_pool(vm, pool->name, its_own) || (its_own == NULL && comes_to(state, vm, pool)));
        if (!vm_in_pool(vm, pool->name) && !is_left)
            continue;
        struct pool_order *given = OBJECT_ADD(vm_order, order, pools);
        pool_order_fill(state, pool, host->common->id, given);
        OBJECT_SET(pool_order, given, make, false); /* that is nothing of a VM's */
    }
    if (vm->disks_made)
        OBJECT_SET(vm_order, order, disks_made, true);
}

/* Where in their pools its volumes are. Of its own disks what moves have left is nothing of the VM's host's. */
static void give_places(const struct state *state, struct vm_order *order)
{
    for (size_t i = 0; i < order->disks.count; i++) {
        struct vm_disk *disk = (struct vm_disk *)order->disks.items + i;
        const struct record *volume = state_get(state, object_kind_VOLUME, disk->volume);
        if (volume != NULL && volume->volume->place != NULL)
            OBJECT_TEXT(vm_disk, disk, place, volume->volume->place);
        OBJECT_TEXT(vm_disk, disk, other_pool, NULL);
        OBJECT_TEXT(vm_disk, disk, other_host, NULL);
        OBJECT_TEXT(vm_disk, disk, other_place, NULL);
        OBJECT_TEXT(vm_disk, disk, left_reason, NULL);
    }
}

static void fill_order(const struct state *state, const struct record *host, const struct vm *vm, struct vm_order *order)
{
    const struct record *record = state_get(state, object_kind_IMAGE, vm->image);
    OBJECT_TEXT(vm_order, order, id, vm->id);
    OBJECT_TEXT(vm_order, order, name, vm->name);
    OBJECT_SET(vm_order, order, epoch, vm->epoch);
    OBJECT_SET(vm_order, order, generation, vm->generation);
    OBJECT_SET(vm_order, order, boot, vm->boot);
    OBJECT_SET(vm_order, order, wanted, vm->wanted);
    OBJECT_SET(vm_order, order, restart, vm->restart);
    if (OBJECT_HAS(vm, vm, restarts_max))
        OBJECT_SET(vm_order, order, restarts_max, vm->restarts_max);
    if (OBJECT_HAS(vm, vm, restart_window_s))
        OBJECT_SET(vm_order, order, restart_window_s, vm->restart_window_s);
    OBJECT_SET(vm_order, order, vcpus, vm->vcpus);
    OBJECT_SET(vm_order, order, memory_bytes, vm->memory_bytes);
    OBJECT_SET(vm_order, order, ha, vm->ha);
    if (OBJECT_HAS(vm, vm, cpu_model))
        OBJECT_SET(vm_order, order, cpu_model, vm->cpu_model);
    if (vm->handover != NULL)
        OBJECT_TEXT(vm_order, order, handover, vm->handover);
    if (!vm->stop_forced)
        OBJECT_SET(vm_order, order, stop_grace_s, OBJECT_HAS(vm, vm, stop_grace_s) ? vm->stop_grace_s : STOP_GRACE_S);
    give_list(order, "disks", &vm_disk_desc, &order->disks, &vm->disks);
    give_places(state, order);
    give_list(order, "nics", &vm_nic_desc, &order->nics, &vm->nics);
    give_pools(state, host, vm, order);
    if (OBJECT_HAS(vm, vm, replica_start)) {
        OBJECT_COPY(vm_replica_start, &order->replica, &vm->replica_start);
        object_mark(&vm_order_desc, order, "replica");
    }
    if (vm->replica.sessions > 0) {
        OBJECT_SET(vm_order, order, replica_session, vm->replica.sessions);
        OBJECT_SET(vm_order, order, replica_held, replica_is_held(state_get(state, object_kind_VM, vm->id)));
    }
    OBJECT_TEXT(vm_order, order, hostname, vm->hostname);
    OBJECT_TEXT(vm_order, order, ssh_keys, vm->ssh_keys);
    OBJECT_TEXT(vm_order, order, user_data, vm->user_data);
    if (vm->cmdline != NULL)
        OBJECT_TEXT(vm_order, order, cmdline, vm->cmdline);
    if (record == NULL)
        return;
    const struct image *image = record->image;
    if (vm->cmdline == NULL && image->cmdline != NULL)
        OBJECT_TEXT(vm_order, order, cmdline, image->cmdline);
    give_artifact(order, "kernel", &order->kernel, &image->kernel, OBJECT_HAS(image, image, kernel));
    give_artifact(order, "initrd", &order->initrd, &image->initrd, OBJECT_HAS(image, image, initrd));
    give_artifact(order, "disk", &order->disk, &image->disk, OBJECT_HAS(image, image, disk));
    if (image->kind == image_kind_DISK)
        OBJECT_SET(vm_order, order, firmware, image->firmware); /* bios is 0 */
}

/* It was given to the host of its replica, and has not run there since: whether that has its disks nobody knows yet, and what it was on
 * may have the only ones. */
static bool takes_replica(const struct vm *vm)
{
    return OBJECT_HAS(vm, vm, replica_start) && vm->state != vm_state_RUNNING && vm->state != vm_state_PAUSED;
}

/* A reported VM that is not the host's: another's by now, or gone. One of a lower epoch that is still its own is not to
 * be forgotten, for its disks are in use: the order with the newer epoch replaces it. */
static bool to_forget(const struct state *state, const struct record *host, const struct vm_seen *seen)
{
    const struct record *vm = state_get(state, object_kind_VM, seen->id);
    if (vm == NULL || strcmp(vm->common->id, seen->id) != 0)
        return !seen->astray; /* also what it says is deleted: it need not say so again */
    bool owned = vm->vm->host != NULL && strcmp(vm->vm->host, host->common->id) == 0;
    return !owned && !takes_replica(vm->vm) && (!seen->astray || seen->epoch < vm->vm->recovered_epoch);
}

/* Astray, another host's, and its report has not changed that (it was carried out before this is asked), or about to be taken from its
 * replica: nobody knows whose disks are the ones to keep, but one may run. */
static bool to_halt(const struct state *state, const struct record *host, const struct vm_seen *seen)
{
    const struct record *vm = state_get(state, object_kind_VM, seen->id);
    bool runs = seen->state == vm_state_RUNNING || seen->state == vm_state_PAUSED || seen->state == vm_state_STARTING;
    return runs && vm != NULL && (seen->astray || takes_replica(vm->vm)) && vm->vm->host != NULL && strcmp(vm->vm->host, host->common->id) != 0 &&
           !to_forget(state, host, seen);
}

static void add_text(struct node_orders *orders, struct string_list *list, const char *field, const char *text)
{
    list->items = xrealloc(list->items, (list->count + 1) * sizeof *list->items);
    list->items[list->count++] = xstrdup(text);
    object_mark(&node_orders_desc, orders, field);
}

/* Its VMs that it has had and of which it has nothing, so that it would make them anew, with empty disks. */
static void fill_missing(const struct record *host, const struct node_report *report, struct node_orders *orders)
{
    const struct vm_seen *seen = report->vms.items;
    struct map has = {0};
    for (size_t i = 0; i < report->vms.count; i++)
        if (seen[i].state != vm_state_DELETED)
            map_put(&has, seen[i].id, (void *)&seen[i]);
    for (size_t i = 0; i < host->of_host.vms.count; i++) {
        const struct vm *vm = host->of_host.vms.items[i]->vm;
        if (!vm->unmade && !vm->recovering && vm->wanted != vm_wanted_DELETED && map_get(&has, vm->id) == NULL)
            add_text(orders, &orders->missing, "missing", vm->id);
    }
    map_finish(&has);
}

/* Beside their orders and not in them: an order that is another one is written down by the host. */
static void fill_relocate(const struct state *state, const struct record *host, struct node_orders *orders)
{
    for (size_t i = 0; i < host->of_host.vms.count && orders->relocate.count < 4096; i++) {
        const struct vm *vm = host->of_host.vms.items[i]->vm;
        if ((vm->state == vm_state_STARTING || vm->state == vm_state_FAILED) && !vm->recovering && state_vm_may_relocate(state, vm))
            add_text(orders, &orders->relocate, "relocate", vm->id);
    }
}

/* ---- networks and security groups that the host's VMs use, in name order ---- */

/* The VM that task @i of @host brings to it, or NULL. */
static const struct record *incoming(const struct state *state, const struct record *host, size_t i)
{
    const struct operation *operation = host->of_host.tasks.items[i]->operation;
    bool comes = operation_keeps_room(operation) && text_same(operation->task.peer, host->common->id);
    return comes ? state_get(state, object_kind_VM, operation->task.vm) : NULL;
}

/* Also for those that migrations bring: rules are there before the first packet. */
static bool host_uses(const struct state *state, const struct record *host, bool (*uses)(const struct vm *vm, const char *name),
                      const char *name)
{
    for (size_t i = 0; i < host->of_host.vms.count; i++)
        if (uses(host->of_host.vms.items[i]->vm, name))
            return true;
    for (size_t i = 0; i < host->of_host.tasks.count; i++) {
        const struct record *vm = incoming(state, host, i);
        if (vm != NULL && uses(vm->vm, name))
            return true;
    }
    return false;
}

static void give_members(const struct state *state, struct group_order *order)
{
    struct string_list *members = &order->members;
    const size_t most = object_field(&group_order_desc, "members")->max;
    for (size_t i = 0; i < state_count(state, object_kind_VM); i++) {
        const struct vm *vm = state_at(state, object_kind_VM, i)->vm;
        for (size_t n = 0; n < vm->nics.count; n++) {
            const struct vm_nic *nic = (const struct vm_nic *)vm->nics.items + n;
            bool in = false;
            for (size_t k = 0; k < nic->security_groups.count; k++)
                in |= strcmp(nic->security_groups.items[k], order->name) == 0;
            for (size_t k = 0; in && k < nic->ips.count && members->count < most; k++) {
                members->items = xrealloc(members->items, (members->count + 1) * sizeof *members->items);
                members->items[members->count++] = xstrdup(nic->ips.items[k]);
                object_mark(&group_order_desc, order, "members");
            }
        }
    }
}

/* Does a group that the host's VMs are in name @name in its rules? */
static bool is_named(const struct state *state, const struct record *host, const char *name)
{
    for (size_t i = 0; i < state_count(state, object_kind_SECURITY_GROUP); i++) {
        const struct security_group *group = state_at(state, object_kind_SECURITY_GROUP, i)->security_group;
        bool names = false;
        for (size_t k = 0; !names && k < group->rules.count; k++) {
            const struct security_rule *rule = (const struct security_rule *)group->rules.items + k;
            names = rule->remote_group != NULL && strcmp(rule->remote_group, name) == 0;
        }
        if (names && host_uses(state, host, vm_in_group, group->name))
            return true;
    }
    return false;
}

static void fill_networks(const struct state *state, const struct record *host, struct node_orders *orders)
{
    for (size_t i = 0; i < state_count(state, object_kind_NETWORK); i++) {
        const struct network *network = state_at(state, object_kind_NETWORK, i)->network;
        if (host_uses(state, host, vm_on_network, network->name))
            OBJECT_COPY(network, (struct network *)OBJECT_ADD(node_orders, orders, networks), network);
    }
    for (size_t i = 0; i < state_count(state, object_kind_SECURITY_GROUP); i++) {
        const struct security_group *group = state_at(state, object_kind_SECURITY_GROUP, i)->security_group;
        bool named = is_named(state, host, group->name);
        if (!named && !host_uses(state, host, vm_in_group, group->name))
            continue;
        struct group_order *order = OBJECT_ADD(node_orders, orders, security_groups);
        OBJECT_TEXT(group_order, order, name, group->name);
        for (size_t k = 0; k < group->rules.count; k++)
            OBJECT_COPY(security_rule, (struct security_rule *)OBJECT_ADD(group_order, order, rules),
                        (const struct security_rule *)group->rules.items + k);
        if (named)
            give_members(state, order);
    }
}

/* What the task's host needs to get at the store: that is nowhere but in the state and in these orders. */
static void fill_store(const struct state *state, const struct task *task, struct task_order *order)
{
    const struct record *store =
        task->backup.store != NULL ? state_get(state, object_kind_BACKUP_STORE, task->backup.store) : NULL;
    if (store == NULL)
        return;
    OBJECT_COPY(backup_store, &order->store, store->backup_store);
    object_mark(&task_order_desc, order, "store");
}

/* The VM that a backup is booted in, as far as what it needs is here still. */
static bool boot_vm(const struct state *state, const struct operation *operation, struct vm *ret_vm)
{
    const struct record *backup =
        operation_boots(operation) ? state_get(state, object_kind_BACKUP, operation->task.backup.id) : NULL;
    struct error err;
    return backup != NULL && backup_boot_vm(state, backup->backup, operation->id, ret_vm, &err) == 0;
}

static void fill_boot(const struct state *state, const struct record *host, const struct operation *operation,
                      struct task_order *order)
{
    struct vm vm = {0};
    if (boot_vm(state, operation, &vm)) {
        fill_order(state, host, &vm, &order->boot);
        object_mark(&task_order_desc, order, "boot");
    }
    OBJECT_CLEAR(vm, &vm);
}

/* @volume where it is, or (@other) where it goes or has left something. */
static void fill_volume(const struct state *state, const struct record *host, const struct volume *volume, bool other,
                        struct volume_order *order)
{
    const char *pool = other ? volume->other_pool : volume->pool;
    OBJECT_TEXT(volume_order, order, id, volume->id);
    OBJECT_TEXT(volume_order, order, disk, volume->disk);
    OBJECT_SET(volume_order, order, size_bytes, volume->size_bytes);
    OBJECT_TEXT(volume_order, order, place, other ? volume->other_place : volume->place);
    pool_order_fill(state, state_get(state, object_kind_POOL, pool)->pool, host->common->id, &order->pool);
    OBJECT_SET(pool_order, &order->pool, make, false); /* that is nothing of a volume's */
    object_mark(&volume_order_desc, order, "pool");
}

/* The pool of @host, where it is in one. */
static void fill_own_pool(const struct state *state, const struct record *host, const char *pool, struct volume_order *order, const char *field,
                          struct pool_order *to)
{
    const struct record *record = state_get(state, object_kind_POOL, pool);
    if (record == NULL)
        return;
    pool_order_fill(state, record->pool, host->common->id, to);
    OBJECT_SET(pool_order, to, make, false);
    object_mark(&volume_order_desc, order, field);
}

/* The same of a VM's own disk. */
static void fill_own_disk(const struct state *state, const struct record *host, const struct vm *vm, const struct vm_disk *disk, bool other,
                          struct volume_order *order)
{
    OBJECT_TEXT(volume_order, order, id, vm->id);
    OBJECT_SET(volume_order, order, own, true);
    OBJECT_TEXT(volume_order, order, disk, disk->name);
    if (disk->size_bytes != 0) /* else its image says it, to hosts alone */
        OBJECT_SET(volume_order, order, size_bytes, disk->size_bytes);
    OBJECT_TEXT(volume_order, order, place, other ? disk->other_place : disk->place);
    fill_own_pool(state, host, other ? disk->other_pool : disk->pool, order, "pool", &order->pool);
}

static void fill_disk_move(const struct state *state, const struct record *host, const struct operation *operation, struct task_order *order)
{
    const struct record *vm = state_get(state, object_kind_VM, operation->task.vm);
    const struct vm_disk *disk = vm != NULL ? own_disk_find(vm->vm, operation->task.disk.name) : NULL;
    if (disk == NULL || !disk->moving || !text_same(disk->other_place, operation->id))
        return;
    fill_own_disk(state, host, vm->vm, disk, false, &order->disk_move.from);
    fill_own_disk(state, host, vm->vm, disk, true, &order->disk_move.to);
    object_mark(&volume_move_desc, &order->disk_move, "from");
    object_mark(&volume_move_desc, &order->disk_move, "to");
    object_mark(&task_order_desc, order, "disk_move");
}

/* What a move is to do, where there is something to do. */
static void fill_move(const struct state *state, const struct record *host, const struct operation *operation, struct task_order *order)
{
    const struct record *volume = operation->kind == operation_kind_VOLUME_MOVE
                                      ? state_get(state, object_kind_VOLUME, operation->task.volume.id)
                                      : NULL;
    if (volume == NULL || volume->volume->state != volume_state_MOVING || !text_same(volume->volume->other_place, operation->id))
        return;
    fill_volume(state, host, volume->volume, false, &order->move.from);
    fill_volume(state, host, volume->volume, true, &order->move.to);
    object_mark(&volume_move_desc, &order->move, "from");
    object_mark(&volume_move_desc, &order->move, "to");
    object_mark(&task_order_desc, order, "move");
}

/* Of which volume, as a snapshot has it, and where to. */
static void fill_clone(const struct state *state, const struct record *host, const struct operation *operation, struct task_order *order)
{
    const struct task_clone *clone = &operation->task.clone;
    const struct record *from = state_get(state, object_kind_VOLUME, clone->volume), *to = state_get(state, object_kind_VOLUME, clone->id);
    if (from == NULL || to == NULL || !volume_is_clone_in_making(to->volume) || !text_same(to->volume->place, operation->id))
        return;
    fill_volume(state, host, from->volume, false, &order->move.from);
    fill_volume(state, host, to->volume, false, &order->move.to);
    OBJECT_TEXT(volume_move, &order->move, snapshot, clone->snapshot);
    object_mark(&volume_move_desc, &order->move, "from");
    object_mark(&volume_move_desc, &order->move, "to");
    object_mark(&task_order_desc, order, "move");
}

/* The disks of the new VM that are made of the other one's of the same name, and its volumes, of what each was made of. */
static void fill_vm_clone(const struct state *state, const struct record *host, const struct operation *operation, struct task_order *order)
{
    const struct task_vm_clone *clone = &operation->task.vm_clone;
    const struct record *from = state_get(state, object_kind_VM, clone->vm), *to = state_get(state, object_kind_VM, operation->task.vm);
    if (from == NULL || to == NULL)
        return;
    for (size_t i = 0; i < to->vm->disks.count; i++) {
        const struct vm_disk *disk = (const struct vm_disk *)to->vm->disks.items + i;
        const struct vm_disk *source = text_same(disk->place, operation->id) ? own_disk_find(from->vm, disk->name) : NULL;
        const struct record *volume = disk->volume != NULL ? state_get(state, object_kind_VOLUME, disk->volume) : NULL;
        bool is_made = volume != NULL && text_same(volume->volume->place, operation->id);
        const struct record *origin = is_made ? state_get(state, object_kind_VOLUME, volume->volume->origin) : NULL;
        if (source == NULL && origin == NULL)
            continue;
        struct volume_move *copy = OBJECT_ADD(vm_copy, &order->copy, disks);
        if (origin != NULL) {
            fill_volume(state, host, origin->volume, false, &copy->from);
            fill_volume(state, host, volume->volume, false, &copy->to);
        } else {
            fill_own_disk(state, host, from->vm, source, false, &copy->from);
            fill_own_disk(state, host, to->vm, disk, false, &copy->to);
        }
        OBJECT_TEXT(volume_move, copy, snapshot, clone->snapshot);
        object_mark(&volume_move_desc, copy, "from");
        object_mark(&volume_move_desc, copy, "to");
    }
    object_mark(&task_order_desc, order, "copy");
}

/* Of a volume alone: where it is, where no VM has it. */
static void fill_snapshot(const struct state *state, const struct record *host, const struct operation *operation, struct task_order *order)
{
    const struct task *task = &operation->task;
    const struct record *volume = state_get(state, object_kind_VOLUME, task->snapshot.volume);
    if (volume == NULL)
        return;
    if (task->vm != NULL) {
        OBJECT_TEXT(task_order, order, volume_vm, task->vm);
        OBJECT_TEXT(task, &order->task, vm, NULL);
        return;
    }
    if (volume->volume->vm != NULL)
        return;
    fill_volume(state, host, volume->volume, false, &order->volume);
    object_mark(&task_order_desc, order, "volume");
}

/* Where the keeper of a replica has those of its disks that are in pools. */
static void fill_replica_places(const struct state *state, const struct record *host, const struct operation *operation, struct task_order *order)
{
    const struct record *vm = operation->task.in_pools ? state_get(state, object_kind_VM, operation->task.vm) : NULL;
    const size_t most = object_field(&task_order_desc, "replica_places")->max;
    for (size_t i = 0; vm != NULL && i < vm->vm->disks.count && order->replica_places.count < most; i++) {
        const struct vm_disk *disk = (const struct vm_disk *)vm->vm->disks.items + i;
        const struct record *pool = disk->pool != NULL ? state_get(state, object_kind_POOL, disk->pool) : NULL;
        if (pool == NULL || pool->pool->kind != pool_kind_DIR || disk->read_only)
            continue;
        struct replica_place *place = OBJECT_ADD(task_order, order, replica_places);
        OBJECT_TEXT(replica_place, place, disk, disk->name);
        if (disk->volume != NULL)
            OBJECT_SET(replica_place, place, volume, true);
        pool_order_fill(state, pool->pool, host->common->id, &place->pool);
        OBJECT_SET(pool_order, &place->pool, make, false); /* that is nothing of a replica's */
        object_mark(&replica_place_desc, place, "pool");
    }
}

static void fill_tasks(const struct state *state, const struct record *host, const struct node_report *report, struct node_orders *orders)
{
    const size_t most = object_field(&node_orders_desc, "tasks")->max;
    for (size_t i = 0; i < host->of_host.tasks.count && i < most; i++) {
        const struct operation *operation = host->of_host.tasks.items[i]->operation;
        if (leaves_out(report, operation) || would_not_wait(report, operation))
            continue;
        if (state_clone_waits_for(state, operation) != NULL)
            continue; /* there is nothing to copy yet */
        struct task_order *order = OBJECT_ADD(node_orders, orders, tasks);
        OBJECT_TEXT(task_order, order, id, operation->id);
        OBJECT_SET(task_order, order, role,
                   text_same(operation->task.host, host->common->id) ? task_role_MAIN : task_role_PEER);
        if (operation->cancel_asked)
            OBJECT_SET(task_order, order, cancel, true);
        OBJECT_COPY(task, &order->task, &operation->task);
        object_mark(&task_order_desc, order, "task");
        if (order->role == task_role_MAIN)
            fill_store(state, &operation->task, order);
        if (operation_boots(operation))
            fill_boot(state, host, operation, order);
        fill_move(state, host, operation, order);
        fill_snapshot(state, host, operation, order);
        if (order->role == task_role_PEER)
            fill_replica_places(state, host, operation, order);
        if (operation->kind == operation_kind_VOLUME_CLONE)
            fill_clone(state, host, operation, order);
        if (operation->kind == operation_kind_DISK_MOVE)
            fill_disk_move(state, host, operation, order);
        if (operation->kind == operation_kind_VM_CLONE)
            fill_vm_clone(state, host, operation, order);
    }
}

/* ---- images ---- */

static void give_peers(const struct state *state, const struct record *host, const struct image *image,
                       struct image_order *order)
{
    const size_t most = object_field(&image_order_desc, "peers")->max;
    for (size_t i = 0; i < image->copies.count && order->peers.count < most; i++) {
        const struct image_copy *copy = (const struct image_copy *)image->copies.items + i;
        const struct record *other = state_get(state, object_kind_HOST, copy->host);
        if (copy->state != image_copy_state_HELD || other == NULL || other == host || other->host->address == NULL ||
            other->host->state != host_state_UP)
            continue;
        struct image_peer *peer = OBJECT_ADD(image_order, order, peers);
        OBJECT_TEXT(image_peer, peer, host, other->common->id);
        OBJECT_TEXT(image_peer, peer, address, other->host->address);
    }
}

static bool vm_uses_image(const struct vm *vm, const char *name)
{
    return strcmp(vm->image, name) == 0;
}

/* Does a volume that it is to make begin as image @name? */
static bool makes_from(const struct node_orders *orders, const struct image *image)
{
    const struct volume_order *all = orders->volumes.items;
    for (size_t i = 0; i < orders->volumes.count; i++)
        if (!all[i].remove && text_same(all[i].image.sha256, image->disk.sha256))
            return true;
    return false;
}

/* That of a backup that it boots; NULL: none. */
static const struct record *boot_image(const struct state *state, const struct record *host)
{
    const struct operation *operation = backup_boot_on(host);
    struct vm vm = {0};
    const struct record *image =
        operation != NULL && boot_vm(state, operation, &vm) ? state_get(state, object_kind_IMAGE, vm.image) : NULL;
    OBJECT_CLEAR(vm, &vm);
    return image;
}

/* What it is to keep, and what its VMs, volumes and boots of backups may need; in name order. */
static void fill_images(const struct state *state, const struct record *host, struct node_orders *orders)
{
    const struct record *boots = boot_image(state, host);
    for (size_t i = 0; i < state_count(state, object_kind_IMAGE); i++) {
        const struct image *image = state_at(state, object_kind_IMAGE, i)->image;
        const struct image_copy *copy = image_has_copies(image) ? image_copy_find(image, host->common->id) : NULL;
        bool keep = copy != NULL && copy->keep;
        if (!keep && (!image_has_copies(image) ||
                      (!makes_from(orders, image) && !host_uses(state, host, vm_uses_image, image->name) &&
                       (boots == NULL || boots->image != image))))
            continue;
        struct image_order *order = OBJECT_ADD(node_orders, orders, images);
        OBJECT_TEXT(image_order, order, sha256, image->disk.sha256);
        if (image->disk.size_bytes > 0)
            OBJECT_SET(image_order, order, size_bytes, image->disk.size_bytes);
        OBJECT_SET(image_order, order, keep, keep);
        if (image->disk.url != NULL)
            OBJECT_TEXT(image_order, order, url, image->disk.url);
        give_peers(state, host, image, order);
    }
}

/* Files it has whose content is no image's any more. In a cluster that went on from a survivor it may be the one copy of an upload
 * that was lost with the end of the log: the host removes it only when room is short (compute/agent/image_cache.h). */
static void forget_images(const struct state *state, const struct node_report *report, struct node_orders *orders)
{
    struct map seen = {0};
    struct image_seen *one;
    if (state_cluster(state)->recovered_at != NULL)
        return;
    for (size_t i = 0; i < report->images.count; i++) {
        one = (struct image_seen *)report->images.items + i;
        if (one->state == image_copy_state_HELD)
            map_put(&seen, one->sha256, one);
    }
    for (size_t i = 0; seen.count > 0 && i < state_count(state, object_kind_IMAGE); i++) {
        const struct image *image = state_at(state, object_kind_IMAGE, i)->image;
        const char *const names[] = {image->disk.sha256, image->kernel.sha256, image->initrd.sha256};
        for (size_t k = 0; k < ARRAY_SIZE(names); k++)
            if (names[k] != NULL)
                map_remove(&seen, names[k]);
    }
    for (size_t i = 0; (one = map_next(&seen, &i)) != NULL;)
        add_text(orders, &orders->forget_images, "forget_images", one->sha256);
    map_finish(&seen);
}

/* The VM as it will be on @host, with the disks where they go to that go along. */
static void fill_arriving(const struct state *state, const struct record *host, const struct vm *vm, const struct operation *operation,
                          struct vm_order *order)
{
    const struct task_migration *m = &operation->task.migration;
    struct vm there = {0};
    if (m->storage != NULL)
        migration_vm_there(state, m, vm, operation->id, &there);
    fill_order(state, host, m->storage != NULL ? &there : vm, order);
    for (size_t i = 0; m->storage != NULL && i < order->disks.count; i++) {
        struct vm_disk *disk = (struct vm_disk *)order->disks.items + i;
        if (text_same(disk->place, operation->id))
            OBJECT_SET(vm_disk, disk, arriving, true);
    }
    OBJECT_CLEAR(vm, &there);
}

static void fill_incoming(const struct state *state, const struct record *host, const struct node_report *report, struct node_orders *orders)
{
    const size_t most = object_field(&node_orders_desc, "incoming")->max;
    for (size_t i = 0; i < host->of_host.tasks.count && orders->incoming.count < most; i++) {
        const struct record *vm = incoming(state, host, i);
        if (vm == NULL || why_not_told(host, report, host->of_host.tasks.items[i]->operation) != NULL)
            continue;
        struct incoming_order *order = OBJECT_ADD(node_orders, orders, incoming);
        OBJECT_TEXT(incoming_order, order, operation, host->of_host.tasks.items[i]->common->id);
        fill_arriving(state, host, vm->vm, host->of_host.tasks.items[i]->operation, &order->vm);
        OBJECT_SET(vm_order, &order->vm, epoch, vm->vm->epoch + 1);
        OBJECT_TEXT(vm_order, &order->vm, handover, NULL);
        object_mark(&incoming_order_desc, order, "vm");
    }
}

static void fill_pools(const struct state *state, const struct record *host, struct node_orders *orders)
{
    for (size_t i = 0; i < state_count(state, object_kind_POOL) && orders->pools.count < 1024; i++) {
        const struct pool *pool = state_at(state, object_kind_POOL, i)->pool;
        if (pool_member_find(pool, host->common->id) != NULL)
            pool_order_fill(state, pool, host->common->id, OBJECT_ADD(node_orders, orders, pools));
    }
}

/* The next order about a volume's place; NULL: there are as many as there may be. */
static struct volume_order *volume_add(struct node_orders *orders, const char *place)
{
    const size_t most = object_field(&node_orders_desc, "volumes")->max;
    if ((place == NULL ? orders->volumes.count : orders->moved_volumes.count) >= most)
        return NULL;
    return place == NULL ? OBJECT_ADD(node_orders, orders, volumes) : OBJECT_ADD(node_orders, orders, moved_volumes);
}

/* What moves have left of them, for it to remove. */
static void fill_left(const struct state *state, const struct record *host, const struct node_report *report, struct node_orders *orders)
{
    for (size_t i = 0; i < state_count(state, object_kind_VOLUME); i++) {
        const struct volume *volume = state_at(state, object_kind_VOLUME, i)->volume;
        bool elsewhere = volume_left_is_elsewhere(volume);
        if (!volume_has_left(volume) || !text_same(volume_left_worker(state, volume), host->common->id) || (elsewhere && !report->replica_volumes))
            continue;
        struct volume_order *order = volume_add(orders, volume->other_place);
        if (order == NULL)
            continue;
        fill_volume(state, host, volume, true, order);
        OBJECT_SET(volume_order, order, remove, true);
        if (elsewhere) {
            OBJECT_SET(volume_order, order, lost, true);
            continue;
        }
        pool_order_fill(state, state_get(state, object_kind_POOL, volume->pool)->pool, host->common->id, &order->kept_pool);
        OBJECT_SET(pool_order, &order->kept_pool, make, false);
        object_mark(&volume_order_desc, order, "kept_pool");
        OBJECT_TEXT(volume_order, order, kept_place, volume->place);
    }
}

/* The same of VMs' own disks. */
static void fill_left_disks(const struct state *state, const struct record *host, struct node_orders *orders)
{
    const size_t most = object_field(&node_orders_desc, "left_disks")->max;
    for (size_t i = 0; i < state_count(state, object_kind_VM); i++) {
        const struct vm *vm = state_at(state, object_kind_VM, i)->vm;
        for (size_t k = 0; k < vm->disks.count && orders->left_disks.count < most; k++) {
            const struct vm_disk *disk = (const struct vm_disk *)vm->disks.items + k;
            if (!own_disk_has_left(disk) || !text_same(own_disk_left_worker(state, vm, disk), host->common->id))
                continue;
            struct volume_order *order = OBJECT_ADD(node_orders, orders, left_disks);
            fill_own_disk(state, host, vm, disk, true, order);
            OBJECT_SET(volume_order, order, remove, true);
            fill_own_pool(state, host, disk->pool, order, "kept_pool", &order->kept_pool);
            OBJECT_TEXT(volume_order, order, kept_place, disk->place);
        }
    }
}

/* Those that it is to make or to remove. */
static void fill_volumes(const struct state *state, const struct record *host, const struct node_report *report, struct node_orders *orders)
{
    for (size_t i = 0; i < state_count(state, object_kind_VOLUME); i++) {
        const struct volume *volume = state_at(state, object_kind_VOLUME, i)->volume;
        if (!volume_is_pending(volume) || volume_has_left(volume) || !text_same(volume_worker(state, volume), host->common->id))
            continue; /* what is left of it somewhere else goes first: nobody would know of that afterwards */
        const struct record *image = state_get(state, object_kind_IMAGE, volume->image);
        struct volume_order *order = would_be_empty(state, host, volume, report) ? NULL : volume_add(orders, volume->place);
        if (order == NULL)
            continue;
        fill_volume(state, host, volume, false, order);
        if (volume->state == volume_state_DELETING)
            OBJECT_SET(volume_order, order, remove, true);
        else if (image != NULL) {
            OBJECT_COPY(artifact, &order->image, &image->image->disk);
            object_mark(&volume_order_desc, order, "image");
        }
    }
}

/* The VMs that it keeps a replica of, and its own that may not have taken their disks from one yet. */
static void fill_replicas(const struct state *state, const struct record *host, struct node_orders *orders)
{
    const size_t most = object_field(&node_orders_desc, "replicas")->max;
    object_mark(&node_orders_desc, orders, "replicas"); /* also where there are none: then those that it has go */
    for (size_t i = 0; i < state_count(state, object_kind_VM); i++) {
        const struct vm *vm = state_at(state, object_kind_VM, i)->vm;
        if (orders->replicas.count == most) { /* a part of them would be the end of the others */
            orders->head.present &= ~(UINT64_C(1) << (object_field(&node_orders_desc, "replicas") - node_orders_desc.fields));
            return;
        }
        bool starts = OBJECT_HAS(vm, vm, replica_start) && text_same(vm->host, host->common->id);
        if (starts || text_same(vm->replica_host, host->common->name))
            add_text(orders, &orders->replicas, "replicas", vm->id);
    }
}

int node_sync_orders(const struct state *state, const struct node_report *report, struct node_orders *ret,
                     struct error *err)
{
    const struct record *host = reporter(state, report, err);
    if (host == NULL)
        return -ENOENT;
    if (report->have_index > state_index(state) && follows(state, report))
        return error_set(err, -EAGAIN, ERROR_OVERLOAD, "this controller is behind: at %llu, the host knows %llu",
                         (unsigned long long)state_index(state), (unsigned long long)report->have_index);
    if (host->host->state == host_state_LOST && !report->leaving)
        return error_set(err, -EAGAIN, ERROR_CONFLICT, "host %s was declared lost; a majority of the controllers has to hear its lease first",
                         host->common->name);
    OBJECT_SET(node_orders, ret, index, state_index(state));
    OBJECT_SET(node_orders, ret, cluster_epoch, state_cluster(state)->epoch);
    OBJECT_SET(node_orders, ret, generation, host->host->generation);
    OBJECT_SET(node_orders, ret, arming, host->host->arming);
    if (OBJECT_HAS(cluster, state_cluster(state), shutdown_timeout_s))
        OBJECT_SET(node_orders, ret, shutdown_timeout_s, state_cluster(state)->shutdown_timeout_s);
    OBJECT_SET(node_orders, ret, disarmed, state_cluster(state)->ha_disarmed || host->host->ha_disarmed);
    ret->vms.count = host->of_host.vms.count;
    ret->vms.items = xcalloc(ret->vms.count + 1, sizeof(struct vm_order));
    object_mark(&node_orders_desc, ret, "vms");
    for (size_t i = 0; i < host->of_host.vms.count; i++)
        fill_order(state, host, host->of_host.vms.items[i]->vm, (struct vm_order *)ret->vms.items + i);
    fill_missing(host, report, ret);
    fill_relocate(state, host, ret);
    fill_networks(state, host, ret);
    fill_tasks(state, host, report, ret);
    fill_volumes(state, host, report, ret);
    fill_left(state, host, report, ret);
    fill_left_disks(state, host, ret);
    fill_images(state, host, ret);
    forget_images(state, report, ret);
    fill_incoming(state, host, report, ret);
    fill_pools(state, host, ret);
    fill_replicas(state, host, ret);
    for (size_t i = 0; i < report->vms.count; i++) {
        const struct vm_seen *seen = (const struct vm_seen *)report->vms.items + i;
        if (to_halt(state, host, seen))
            add_text(ret, &ret->halt, "halt", seen->id);
        if (!to_forget(state, host, seen))
            continue;
        add_text(ret, &ret->forget, "forget", seen->id);
        const struct record *vm = state_get(state, object_kind_VM, seen->id);
        if (vm == NULL)
            add_text(ret, &ret->gone, "gone", seen->id);
        else if (seen->epoch < vm->vm->recovered_epoch)
            add_text(ret, &ret->given, "given", seen->id);
    }
    for (size_t i = 0; i < state_count(state, object_kind_CONTROLLER); i++) {
        const struct controller *controller = state_at(state, object_kind_CONTROLLER, i)->controller;
        if (controller->address != NULL && ret->controllers.count < 16)
            add_text(ret, &ret->controllers, "controllers", controller->address);
    }
    if (!report->rbd_pools)
        orders_without_rbd(ret);
    return 0;
}

bool node_sync_may_wait(const struct state *state, const struct node_report *report)
{
    const struct record *host = state_get(state, object_kind_HOST, report->host);
    if (host == NULL || host->host->state == host_state_LOST || report->generation != host->host->generation || !follows(state, report) || state_host_orders_index(host) > report->have_index ||
        report->have_index > state_index(state))
        return false;
    const struct vm_seen *seen = report->vms.items;
    for (size_t i = 0; i < report->vms.count; i++)
        if (to_forget(state, host, &seen[i]) || to_halt(state, host, &seen[i]))
            return false;
    return true;
}
