/* Every invariant of the state in one function each; see check.h. */
#include "controller/fsm/check.h"

#include <errno.h>
#include <string.h>

#include "controller/fsm/address_pool.h"
#include "controller/fsm/mac_index.h"
#include "controller/fsm/pool_members.h"
#include "controller/fsm/replica_state.h"
#include "controller/fsm/state_edit.h"
#include "controller/fsm/volume_disks.h"

#define BROKEN(err, ...) error_set(err, -EILSEQ, ERROR_INTERNAL, __VA_ARGS__)

static int check_record(const struct state *state, const struct record *record, uint64_t since, struct error *err)
{
    const struct state_table *table = &state->tables[record->kind];
    struct bytes_writer json = {0};
    if (map_get(&table->by_id, record->common->id) != record || map_get(&table->by_name, record->common->name) != record)
        return BROKEN(err, "%s '%s' is not found by its id or name", record->desc->name, record->common->name);
    if (record->common->revision > state->index)
        return BROKEN(err, "%s '%s' has a revision that has not been", record->desc->name, record->common->name);
    if (record->common->revision <= since)
        return 0;
    if (object_validate(record->desc, record->object, OBJECT_STORED, err) < 0)
        return -EILSEQ;
    object_encode(record->desc, record->object, &json);
    bool same = json.size == record->json_size && memcmp(json.data, record->json, json.size) == 0;
    bytes_writer_finish(&json);
    return same ? 0 : BROKEN(err, "%s '%s' has old JSON: %.300s", record->desc->name, record->common->name, record->json);
}

static int check_table(const struct state *state, enum object_kind kind, uint64_t since, struct error *err)
{
    const struct state_table *table = &state->tables[kind];
    if (table->by_id.count != table->order.count || table->by_name.count != table->order.count)
        return BROKEN(err, "the maps of %s have another size than its list", object_kind_desc.names[kind]);
    for (size_t i = 0; i < table->order.count; i++) {
        const struct record *record = table->order.items[i];
        if (i > 0 && strcmp(table->order.items[i - 1]->common->name, record->common->name) >= 0)
            return BROKEN(err, "%s '%s' is out of order", record->desc->name, record->common->name);
        int rc = check_record(state, record, since, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int check_vm(const struct state *state, const struct record *record, struct error *err)
{
    const struct vm *vm = record->vm;
    const struct record *host = state_get(state, object_kind_HOST, vm->host);
    if ((vm->host != NULL) != (host != NULL))
        return BROKEN(err, "VM '%s' is on a host that does not exist", vm->name);
    if (host != NULL && (strcmp(vm->host_name, host->common->name) != 0 || !record_index_has(&host->of_host.vms, record)))
        return BROKEN(err, "VM '%s' is not among those of host %s", vm->name, host->common->name);
    if ((host != NULL) != (vm->epoch > 0))
        return BROKEN(err, "VM '%s' has epoch %llu", vm->name, (unsigned long long)vm->epoch);
    if (vm->recovering && (host == NULL || host->host->state != host_state_LOST))
        return BROKEN(err, "VM '%s' recovers, but its host was not lost", vm->name);
    if (vm->seen_generation > vm->generation || vm->generation == 0)
        return BROKEN(err, "VM '%s' has reached what was never wanted", vm->name);
    if (vm->state == vm_state_DELETED || (vm->wanted == vm_wanted_DELETED && host == NULL))
        return BROKEN(err, "VM '%s' should be gone", vm->name);
    if (state_get(state, object_kind_IMAGE, vm->image) == NULL ||
        (vm->flavor != NULL && state_get(state, object_kind_FLAVOR, vm->flavor) == NULL) ||
        (vm->replica_host != NULL && state_get(state, object_kind_HOST, vm->replica_host) == NULL) ||
        (vm->pin != NULL && state_get(state, object_kind_HOST, vm->pin) == NULL))
        return BROKEN(err, "VM '%s' has an image, flavor, pin or host of its replica that does not exist", vm->name);
    if (vm->pin != NULL && host != NULL && strcmp(vm->pin, host->common->name) != 0)
        return BROKEN(err, "VM '%s' is not on the host that it is pinned to", vm->name);
    if (vm->replica.in_pools != (vm->replica_host != NULL && replica_in_pools(state, vm)) ||
        vm->replica.volumes != (vm->replica_host != NULL && replica_has_volumes(state, vm)))
        return BROKEN(err, "VM '%s' has a replica of other disks than is known of it", vm->name);
    if (vm->replica.in_sync && (vm->replica_host == NULL || vm->replica.id == NULL || vm->replica.number == 0 || vm->replica.session == 0 ||
                                vm->replica.session > vm->replica.sessions))
        return BROKEN(err, "VM '%s' is in sync with no replica", vm->name);
    for (size_t i = 0; i < record->of_vm.operations.count; i++) {
        const struct operation *operation = record->of_vm.operations.items[i]->operation;
        if (operation->state != operation_state_RUNNING || strcmp(operation_vm_id(operation), vm->id) != 0)
            return BROKEN(err, "operation %s is not a running one of VM '%s'", operation->id, vm->name);
        if (operation->generation > vm->generation)
            return BROKEN(err, "operation %s waits for what was never wanted", operation->id);
    }
    return 0;
}

/* Those in a snapshot are its VM's. */
static int check_volumes_in(const struct state *state, const struct snapshot *snapshot, struct error *err)
{
    for (size_t i = 0; i < snapshot->volumes.count; i++) {
        const struct snapshot_volume *item = (const struct snapshot_volume *)snapshot->volumes.items + i;
        const struct record *volume = state_get(state, object_kind_VOLUME, item->id);
        if (volume == NULL || (snapshot->volume == NULL && (volume->volume->state != volume_state_ATTACHED || !text_same(volume->volume->vm, snapshot->vm))))
            return BROKEN(err, "snapshot '%s' has a volume that its VM has not", snapshot->name);
        if (snapshot->volume != NULL && (snapshot->volumes.count != 1 || !text_same(snapshot->volume, item->id) || snapshot->vm != NULL ||
                                         !text_same(snapshot->volume_name, volume->common->name)))
            return BROKEN(err, "snapshot '%s' is of a volume alone, and has more, or another name of it", snapshot->name);
    }
    return 0;
}

static size_t count_at_work(const struct record_index *operations, const struct snapshot *snapshot)
{
    size_t tasks = 0;
    for (size_t k = 0; k < operations->count; k++) {
        const struct operation *operation = operations->items[k]->operation;
        tasks += operation_has_task(operation) && operation->task.snapshot.id != NULL &&
                 strcmp(operation->task.snapshot.id, snapshot->id) == 0;
    }
    return tasks;
}

/* A snapshot belongs to a VM, and one that is not at rest has a running task. */
static int check_snapshots(const struct state *state, struct error *err)
{
    for (size_t i = 0; i < state_count(state, object_kind_SNAPSHOT); i++) {
        const struct snapshot *snapshot = state_at(state, object_kind_SNAPSHOT, i)->snapshot;
        const struct record *vm = state_get(state, object_kind_VM, snapshot->vm);
        bool at_rest = snapshot->state == snapshot_state_AVAILABLE || snapshot->state == snapshot_state_FAILED;
        size_t tasks = 0;
        if (snapshot->volume == NULL && (vm == NULL || strcmp(vm->common->name, snapshot->vm_name) != 0))
            return BROKEN(err, "snapshot '%s' is of no VM, or of another name", snapshot->name);
        int rc = check_volumes_in(state, snapshot, err);
        if (rc < 0)
            return rc;
        for (size_t k = 0; snapshot->volume != NULL && k < state_count(state, object_kind_HOST); k++)
            tasks += count_at_work(&state_at(state, object_kind_HOST, k)->of_host.tasks, snapshot);
        tasks += vm != NULL ? count_at_work(&vm->of_vm.operations, snapshot) : 0;
        if (tasks != (at_rest ? 0 : 1))
            return BROKEN(err, "snapshot '%s' is %s and has %zu tasks", snapshot->name,
                          snapshot_state_desc.names[snapshot->state], tasks);
    }
    return 0;
}

/* The index holds those that wait and no others, in the order of the table. */
static int check_waiting(const struct state *state, struct error *err)
{
    const struct record_index *waiting = state_waiting(state);
    size_t at = 0;
    for (size_t i = 0; i < state_count(state, object_kind_VM); i++) {
        const struct record *record = state_at(state, object_kind_VM, i);
        bool listed = at < waiting->count && waiting->items[at] == record;
        if (listed != state_vm_waits(record->vm))
            return BROKEN(err, "VM '%s' %s for a host", record->vm->name, listed ? "is said to wait" : "waits unseen");
        at += listed;
    }
    return at == waiting->count ? 0 : BROKEN(err, "%zu VMs wait, %zu are listed", at, waiting->count);
}

/* The index of MAC addresses is what one that is made anew would be. */
static int check_macs(const struct state *state, struct error *err)
{
    struct map fresh = {0};
    const char *wrong = NULL;
    for (size_t i = 0; i < state_count(state, object_kind_VM); i++)
        mac_index_add(&fresh, state_at(state, object_kind_VM, i)->vm);
    for (size_t i = 0; i < state_count(state, object_kind_VM); i++) {
        const struct vm *vm = state_at(state, object_kind_VM, i)->vm;
        for (size_t k = 0; k < vm->nics.count; k++) {
            const char *mac = ((const struct vm_nic *)vm->nics.items + k)->mac;
            if (mac != NULL && mac_index_count(&fresh, mac) != mac_index_count(&state->macs, mac))
                wrong = mac;
        }
    }
    if (wrong == NULL && fresh.count != state->macs.count)
        wrong = "of nobody";
    mac_index_finish(&fresh);
    return wrong == NULL ? 0 : BROKEN(err, "the MAC address %s is counted wrongly", wrong);
}

/* Networks and groups of its NICs are there, and its addresses are its own. */
static int check_nics(const struct state *state, const struct record *record, struct error *err)
{
    for (size_t i = 0; i < record->vm->nics.count; i++) {
        const struct vm_nic *nic = (const struct vm_nic *)record->vm->nics.items + i;
        if (nic->network != NULL && state_get(state, object_kind_NETWORK, nic->network) == NULL)
            return BROKEN(err, "VM '%s' is on a network that does not exist", record->common->name);
        for (size_t k = 0; k < nic->security_groups.count; k++)
            if (state_get(state, object_kind_SECURITY_GROUP, nic->security_groups.items[k]) == NULL)
                return BROKEN(err, "VM '%s' is in a security group that does not exist", record->common->name);
        for (size_t k = 0; nic->network != NULL && k < nic->ips.count; k++)
            if (address_owner_of(state, nic->network, nic->ips.items[k]) != record)
                return BROKEN(err, "address %s of VM '%s' is not its own", nic->ips.items[k], record->common->name);
    }
    return 0;
}

static int check_vms(const struct state *state, struct error *err)
{
    size_t addresses = 0;
    for (size_t i = 0; i < state_count(state, object_kind_VM); i++) {
        const struct record *record = state_at(state, object_kind_VM, i);
        int rc = check_vm(state, record, err);
        if (rc == 0)
            rc = check_nics(state, record, err);
        if (rc < 0)
            return rc;
        addresses += address_index_count(record->vm);
    }
    if (addresses != state->addresses.count)
        return BROKEN(err, "VMs have %zu addresses, %zu are known", addresses, state->addresses.count);
    int rc = check_waiting(state, err);
    return rc == 0 ? check_macs(state, err) : rc;
}

static int check_hosts(const struct state *state, struct error *err)
{
    size_t placed = 0, owned = 0;
    for (size_t i = 0; i < state_count(state, object_kind_VM); i++)
        placed += state_at(state, object_kind_VM, i)->vm->host != NULL;
    for (size_t i = 0; i < state_count(state, object_kind_HOST); i++) {
        const struct record *host = state_at(state, object_kind_HOST, i);
        uint64_t memory_bytes = 0, vcpus = 0;
        for (size_t k = 0; k < host->of_host.vms.count; k++) {
            memory_bytes += host->of_host.vms.items[k]->vm->memory_bytes;
            vcpus += host->of_host.vms.items[k]->vm->vcpus;
            if (strcmp(host->of_host.vms.items[k]->vm->host, host->common->id) != 0)
                return BROKEN(err, "host %s lists a VM of another", host->common->name);
        }
        for (size_t k = 0; k < host->of_host.tasks.count; k++) {
            const struct operation *operation = host->of_host.tasks.items[k]->operation;
            const struct record *vm = state_get(state, object_kind_VM, operation->task.vm);
            if (operation_boots(operation)) {
                memory_bytes += operation->task.backup.boot.memory_bytes;
                vcpus += operation->task.backup.boot.vcpus;
            }
            if (!operation_keeps_room(operation) || vm == NULL || strcmp(operation->task.peer, host->common->id) != 0)
                continue;
            memory_bytes += vm->vm->memory_bytes;
            vcpus += vm->vm->vcpus;
        }
        owned += host->of_host.vms.count;
        if (memory_bytes != host->of_host.committed_memory_bytes || vcpus != host->of_host.committed_vcpus)
            return BROKEN(err, "the sums of host %s are wrong", host->common->name);
    }
    return placed == owned ? 0 : BROKEN(err, "%zu VMs are placed, but hosts own %zu", placed, owned);
}

/* Where it goes, or has left something, is there; it is moved by an operation, and only of its VM. */
static int check_own_disk(const struct state *state, const struct vm *vm, const struct vm_disk *disk, struct error *err)
{
    if ((disk->other_pool != NULL && state_get(state, object_kind_POOL, disk->other_pool) == NULL) ||
        (disk->other_host != NULL && state_get(state, object_kind_HOST, disk->other_host) == NULL))
        return BROKEN(err, "disk '%s' of VM '%s' has something in a pool or on a host that does not exist", disk->name, vm->name);
    const struct record *move = disk->moving ? state_get(state, object_kind_OPERATION, disk->other_place) : NULL;
    if (disk->moving && (disk->volume != NULL || !own_disk_has_other(disk) || move == NULL ||
                         move->operation->state != operation_state_RUNNING || !text_same(move->operation->task.vm, vm->id)))
        return BROKEN(err, "disk '%s' of VM '%s' is moving, and nobody moves it", disk->name, vm->name);
    return 0;
}

/* Members are the hosts that a pool names, and what VMs have in pools is in some that are there. */
static int check_pools(const struct state *state, struct error *err)
{
    for (size_t i = 0; i < state_count(state, object_kind_POOL); i++) {
        const struct pool *pool = state_at(state, object_kind_POOL, i)->pool;
        if (pool->members.count != pool->hosts.count)
            return BROKEN(err, "pool '%s' has %zu members and %zu hosts", pool->name, pool->members.count, pool->hosts.count);
        for (size_t k = 0; k < pool->hosts.count; k++) {
            const struct record *host = state_get(state, object_kind_HOST, pool->hosts.items[k]);
            if (host == NULL || pool_member_find(pool, host->common->id) == NULL)
                return BROKEN(err, "pool '%s' has host '%s', which is no member", pool->name, pool->hosts.items[k]);
        }
    }
    for (size_t i = 0; i < state_count(state, object_kind_VM); i++) {
        const struct vm *vm = state_at(state, object_kind_VM, i)->vm;
        for (size_t k = 0; k < vm->disks.count; k++) {
            const char *name = ((const struct vm_disk *)vm->disks.items + k)->pool;
            if (name != NULL && state_get(state, object_kind_POOL, name) == NULL)
                return BROKEN(err, "VM '%s' has a disk in pool '%s', which does not exist", vm->name, name);
            int rc = check_own_disk(state, vm, (const struct vm_disk *)vm->disks.items + k, err);
            if (rc < 0)
                return rc;
        }
    }
    return 0;
}

static uint64_t count_snapshots(const struct state *state, const struct volume *volume)
{
    uint64_t count = 0;
    for (size_t i = 0; i < state_count(state, object_kind_SNAPSHOT); i++)
        count += volume_is_in(state_at(state, object_kind_SNAPSHOT, i)->snapshot, volume->id);
    return count;
}

/* A volume is attached exactly where a VM has it as a disk. */
static int check_volumes(const struct state *state, struct error *err)
{
    size_t attached = 0, disks = 0;
    for (size_t i = 0; i < state_count(state, object_kind_VOLUME); i++) {
        const struct volume *volume = state_at(state, object_kind_VOLUME, i)->volume;
        const struct record *vm = state_get(state, object_kind_VM, volume->vm);
        const struct vm_disk *disk = vm != NULL ? volume_disk_find(vm->vm, volume->id) : NULL;
        bool free = volume->state == volume_state_CREATING || volume->state == volume_state_AVAILABLE ||
                    volume->state == volume_state_DELETING || (volume->state == volume_state_MOVING && volume->vm == NULL);
        if (free != (volume->vm == NULL) || free == (disk != NULL))
            return BROKEN(err, "volume '%s' is %s, and %s VM has it", volume->name, volume_state_desc.names[volume->state],
                          disk != NULL ? "a" : "no");
        if (state_get(state, object_kind_POOL, volume->pool) == NULL ||
            (volume->host != NULL && state_get(state, object_kind_HOST, volume->host) == NULL))
            return BROKEN(err, "volume '%s' is in a pool or on a host that does not exist", volume->name);
        if ((volume->other_pool != NULL && state_get(state, object_kind_POOL, volume->other_pool) == NULL) ||
            (volume->other_host != NULL && state_get(state, object_kind_HOST, volume->other_host) == NULL))
            return BROKEN(err, "volume '%s' has something in a pool or on a host that does not exist", volume->name);
        if (volume->untaken && (volume->vm == NULL || volume->host == NULL || volume->state != volume_state_ATTACHED))
            return BROKEN(err, "volume '%s' is taken from a replica, and by no VM", volume->name);
        if (volume->snapshots != count_snapshots(state, volume))
            return BROKEN(err, "volume '%s' is not in %llu snapshots", volume->name, (unsigned long long)volume->snapshots);
        const struct record *clone = volume_is_clone_in_making(volume) ? state_get(state, object_kind_OPERATION, volume->place) : NULL;
        if (volume_is_clone_in_making(volume) && (clone == NULL || clone->operation->state != operation_state_RUNNING))
            return BROKEN(err, "volume '%s' is to be a clone, and nobody makes it", volume->name);
        const struct record *move = volume->state == volume_state_MOVING ? state_get(state, object_kind_OPERATION, volume->other_place) : NULL;
        if (volume->state == volume_state_MOVING &&
            (volume->other_pool == NULL || move == NULL || move->operation->state != operation_state_RUNNING))
            return BROKEN(err, "volume '%s' is moving, and nobody moves it", volume->name);
        if (disk == NULL)
            continue;
        attached++;
        if (strcmp(disk->name, volume->disk) != 0 || strcmp(disk->pool, volume->pool) != 0 || disk->size_bytes != volume->size_bytes ||
            disk->attachment != volume->attachments || strcmp(vm->common->name, volume->vm_name) != 0 ||
            disk->leaving != (volume->state == volume_state_DETACHING))
            return BROKEN(err, "VM '%s' has volume '%s' otherwise than it is", vm->common->name, volume->name);
    }
    for (size_t i = 0; i < state_count(state, object_kind_VM); i++) {
        const struct vm *vm = state_at(state, object_kind_VM, i)->vm;
        for (size_t k = 0; k < vm->disks.count; k++)
            disks += ((const struct vm_disk *)vm->disks.items + k)->volume != NULL;
    }
    return disks == attached ? 0 : BROKEN(err, "%zu volumes are attached, and VMs have %zu", attached, disks);
}

static size_t count_tasks(const struct state *state)
{
    size_t listed = 0;
    for (size_t i = 0; i < state_count(state, object_kind_HOST); i++)
        listed += state_at(state, object_kind_HOST, i)->of_host.tasks.count;
    return listed;
}

static int check_operations(const struct state *state, struct error *err)
{
    size_t running = 0, about_vms = 0, listed = 0, ended = 0, tasks = 0;
    for (size_t i = 0; i < state_count(state, object_kind_OPERATION); i++) {
        const struct operation *operation = state_at(state, object_kind_OPERATION, i)->operation;
        if (operation->state != operation_state_RUNNING)
            continue;
        running++;
        about_vms += operation_vm_id(operation) != NULL;
        if (operation_has_task(operation))
            tasks += operation->task.peer != NULL ? 2 : 1;
    }
    for (size_t i = 0; i < state_count(state, object_kind_VM); i++)
        listed += state_at(state, object_kind_VM, i)->of_vm.operations.count;
    if (about_vms != listed)
        return BROKEN(err, "%zu operations of VMs run, but VMs list %zu", about_vms, listed);
    if (tasks != count_tasks(state))
        return BROKEN(err, "hosts have %zu parts in tasks, but list %zu", tasks, count_tasks(state));
    for (const struct record *r = state->ended_oldest, *older = NULL; r != NULL; older = r, r = r->of_operation.newer) {
        ended++;
        if (r->of_operation.older != older || r->operation->state == operation_state_RUNNING || r->operation->ended_at == NULL)
            return BROKEN(err, "operation %s does not belong to the ended ones", r->operation->id);
        if (older != NULL && (older->common->revision > r->common->revision ||
                              (older->common->revision == r->common->revision && strcmp(older->common->id, r->common->id) >= 0)))
            return BROKEN(err, "ended operation %s is out of order", r->operation->id);
    }
    if (ended != state->ended_count || ended > STATE_OPERATIONS_ENDED_MAX ||
        ended + running != state_count(state, object_kind_OPERATION))
        return BROKEN(err, "%zu operations have ended, %zu are counted", ended, state->ended_count);
    return 0;
}

static int check_rings(const struct state *state, struct error *err)
{
    struct state_event event;
    uint64_t last = 0, count = 0;
    for (uint64_t serial = 0; state_event_next(state, serial, &event); serial = event.serial, count++) {
        if (event.index < last || event.index > state->index || (count > 0 && event.serial != serial + 1))
            return BROKEN(err, "event %llu is out of order", (unsigned long long)event.serial);
        last = event.index;
    }
    if (count != state->events_count || count > STATE_EVENTS_MAX)
        return BROKEN(err, "%llu events are there, %zu are counted", (unsigned long long)count, state->events_count);
    if (state->answers.count != state->answer_count || state->answer_count > STATE_ANSWERS_MAX)
        return BROKEN(err, "%zu answers by key, %zu in the queue", state->answers.count, state->answer_count);
    return 0;
}

int check_state_since(const struct state *state, uint64_t since, struct error *err)
{
    int rc = 0;
    for (unsigned kind = 0; rc == 0 && kind < object_kind_COUNT; kind++)
        rc = state_kind_desc(kind) != NULL ? check_table(state, kind, since, err) : 0;
    if (rc == 0)
        rc = check_vms(state, err);
    if (rc == 0)
        rc = check_hosts(state, err);
    if (rc == 0)
        rc = check_operations(state, err);
    if (rc == 0)
        rc = check_snapshots(state, err);
    if (rc == 0)
        rc = check_pools(state, err);
    if (rc == 0)
        rc = check_volumes(state, err);
    if (rc == 0)
        rc = check_rings(state, err);
    return rc;
}

int check_state(const struct state *state, struct error *err)
{
    return check_state_since(state, 0, err);
}
