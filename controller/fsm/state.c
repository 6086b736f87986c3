/* Tables, indexes and rings of the replicated state; see state.h and state_edit.h. */
#include "controller/fsm/state_edit.h"

#include <errno.h>
#include <string.h>

#include "controller/fsm/address_pool.h"
#include "controller/fsm/mac_index.h"
#include "controller/fsm/pool_members.h"
#include "controller/fsm/replica_state.h"
#include "controller/fsm/time_text.h"

#define SAME_OFFSET(o, field)                                                                                        \
    STATIC_ASSERT(offsetof(struct o, field) == offsetof(struct record_common, field), #o " begins otherwise")
#define BEGINS_ALIKE(o)                                                                                              \
    SAME_OFFSET(o, id);                                                                                              \
    SAME_OFFSET(o, name);                                                                                            \
    SAME_OFFSET(o, revision);                                                                                        \
    SAME_OFFSET(o, created_at);                                                                                      \
    SAME_OFFSET(o, labels)
BEGINS_ALIKE(cluster);
BEGINS_ALIKE(controller);
BEGINS_ALIKE(host);
BEGINS_ALIKE(flavor);
BEGINS_ALIKE(image);
BEGINS_ALIKE(vm);
BEGINS_ALIKE(operation);
BEGINS_ALIKE(token);
BEGINS_ALIKE(network);
BEGINS_ALIKE(security_group);
BEGINS_ALIKE(snapshot);
BEGINS_ALIKE(backup_store);
BEGINS_ALIKE(backup);
BEGINS_ALIKE(backup_policy);
BEGINS_ALIKE(pool);
BEGINS_ALIKE(volume);

/* ---- kinds ---- */

const struct object_desc *state_kind_desc(enum object_kind kind)
{
    switch (kind) {
    case object_kind_CLUSTER:
        return &cluster_desc;
    case object_kind_CONTROLLER:
        return &controller_desc;
    case object_kind_HOST:
        return &host_desc;
    case object_kind_FLAVOR:
        return &flavor_desc;
    case object_kind_IMAGE:
        return &image_desc;
    case object_kind_VM:
        return &vm_desc;
    case object_kind_OPERATION:
        return &operation_desc;
    case object_kind_TOKEN:
        return &token_desc;
    case object_kind_NETWORK:
        return &network_desc;
    case object_kind_SECURITY_GROUP:
        return &security_group_desc;
    case object_kind_SNAPSHOT:
        return &snapshot_desc;
    case object_kind_BACKUP_STORE:
        return &backup_store_desc;
    case object_kind_BACKUP:
        return &backup_desc;
    case object_kind_BACKUP_POLICY:
        return &backup_policy_desc;
    case object_kind_POOL:
        return &pool_desc;
    case object_kind_VOLUME:
        return &volume_desc;
    case object_kind_EVENT:
    case object_kind_COUNT:
        break;
    }
    return NULL;
}

size_t state_table_max(enum object_kind kind)
{
    switch (kind) {
    case object_kind_CLUSTER:
        return 1;
    case object_kind_VM:
        return STATE_VMS_MAX;
    case object_kind_OPERATION:
        return STATE_OPERATIONS_ENDED_MAX + (size_t)STATE_VMS_MAX * STATE_VM_OPERATIONS_MAX;
    default:
        return STATE_SMALL_TABLE_MAX;
    }
}

/* ---- records in name order ---- */

/* Position of the first item whose name is not less than @name. */
static size_t index_lower(const struct record_index *index, const char *name)
{
    size_t low = 0, high = index->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(index->items[middle]->common->name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

void record_index_add(struct record_index *index, struct record *record)
{
    bool last = index->count == 0 || strcmp(index->items[index->count - 1]->common->name, record->common->name) < 0;
    size_t at = last ? index->count : index_lower(index, record->common->name); /* a snapshot comes in order */
    if (index->count == index->capacity) {
        index->capacity = MAX(index->capacity * 2, (size_t)8);
        index->items = xrealloc(index->items, index->capacity * sizeof *index->items);
    }
    memmove(index->items + at + 1, index->items + at, (index->count - at) * sizeof *index->items);
    index->items[at] = record;
    index->count++;
}

bool record_index_has(const struct record_index *index, const struct record *record)
{
    size_t at = index_lower(index, record->common->name);
    return at < index->count && index->items[at] == record;
}

void record_index_remove(struct record_index *index, struct record *record)
{
    size_t at = index_lower(index, record->common->name);
    ASSERT(at < index->count && index->items[at] == record);
    index->count--;
    memmove(index->items + at, index->items + at + 1, (index->count - at) * sizeof *index->items);
}

/* ---- life ---- */

struct state *state_create(void)
{
    struct state *state = NEW(struct state);
    state->events = xcalloc(STATE_EVENTS_MAX, sizeof *state->events);
    state->answer_queue = xcalloc(STATE_ANSWERS_MAX, sizeof *state->answer_queue);
    return state;
}

static void record_destroy(struct record *record)
{
    object_clear(record->desc, record->object);
    free(record->object);
    free(record->json);
    if (record->kind == object_kind_HOST) {
        free(record->of_host.vms.items);
        free(record->of_host.tasks.items);
    } else if (record->kind == object_kind_VM)
        free(record->of_vm.operations.items);
    free(record);
}

static void answer_destroy(struct answer_record *record)
{
    OBJECT_CLEAR(answer_record, record);
    free(record);
}

void state_destroy(struct state *state)
{
    if (state == NULL)
        return;
    for (unsigned kind = 0; kind < object_kind_COUNT; kind++) {
        struct state_table *table = &state->tables[kind];
        for (size_t i = 0; i < table->order.count; i++)
            record_destroy(table->order.items[i]);
        free(table->order.items);
        map_finish(&table->by_id);
        map_finish(&table->by_name);
    }
    for (size_t i = 0; i < STATE_EVENTS_MAX; i++)
        free(state->events[i].json);
    free(state->events);
    free(state->waiting.items);
    address_index_finish(&state->addresses);
    mac_index_finish(&state->macs);
    for (size_t i = 0; i < state->answer_count; i++)
        answer_destroy(state->answer_queue[(state->answer_first + i) % STATE_ANSWERS_MAX]);
    free(state->answer_queue);
    map_finish(&state->answers);
    free(state);
}

/* ---- looking ---- */

uint64_t state_index(const struct state *state)
{
    return state->index;
}

const struct cluster *state_cluster(const struct state *state)
{
    const struct record_index *order = &state->tables[object_kind_CLUSTER].order;
    return order->count > 0 ? order->items[0]->cluster : NULL;
}

bool state_initialized(const struct state *state)
{
    return state_cluster(state) != NULL;
}

unsigned state_voters(const struct state *state)
{
    unsigned voters = 0;
    for (size_t i = 0; i < state_count(state, object_kind_CONTROLLER); i++)
        voters += state_at(state, object_kind_CONTROLLER, i)->controller->role == controller_role_VOTER;
    return voters;
}

const struct record *state_find(const struct state *state, enum object_kind kind, const char *id_or_name, size_t length)
{
    const struct state_table *table = &state->tables[kind];
    if (memchr(id_or_name, '\0', length) != NULL)
        return NULL;
    const struct record *record = map_get_n(&table->by_id, id_or_name, length);
    return record != NULL ? record : map_get_n(&table->by_name, id_or_name, length);
}

const struct record *state_get(const struct state *state, enum object_kind kind, const char *id_or_name)
{
    return id_or_name != NULL ? state_find(state, kind, id_or_name, strlen(id_or_name)) : NULL;
}

struct record *state_edit_find(struct state *state, enum object_kind kind, const char *id_or_name)
{
    struct state_table *table = &state->tables[kind];
    if (id_or_name == NULL)
        return NULL;
    struct record *record = map_get(&table->by_id, id_or_name);
    return record != NULL ? record : map_get(&table->by_name, id_or_name);
}

size_t state_count(const struct state *state, enum object_kind kind)
{
    return state->tables[kind].order.count;
}

const struct record *state_at(const struct state *state, enum object_kind kind, size_t position)
{
    ASSERT(position < state->tables[kind].order.count);
    return state->tables[kind].order.items[position];
}

size_t record_index_after(const struct record_index *index, const char *name)
{
    size_t at = index_lower(index, name);
    return at < index->count && strcmp(index->items[at]->common->name, name) == 0 ? at + 1 : at;
}

size_t state_after(const struct state *state, enum object_kind kind, const char *name)
{
    return record_index_after(&state->tables[kind].order, name);
}

const struct record_index *state_waiting(const struct state *state)
{
    return &state->waiting;
}

bool state_vm_released(const struct vm *vm)
{
    return vm->released != 0 && vm->released == vm->epoch && vm->host != NULL && !vm->recovering &&
           vm->restart != restart_policy_NEVER && (vm->wanted == vm_wanted_RUNNING || vm->wanted == vm_wanted_PAUSED);
}

bool state_vm_may_relocate(const struct state *state, const struct vm *vm)
{
    uint32_t most = OBJECT_HAS(vm, vm, relocates_max) ? vm->relocates_max : STATE_RELOCATES_MAX;
    return vm->ha && vm->wanted == vm_wanted_RUNNING && vm->restart != restart_policy_NEVER && vm->pin == NULL && vm->relocates < most &&
           vm_disks_are_shared(state, vm, NULL);
}

bool state_vm_waits(const struct vm *vm)
{
    return vm->wanted != vm_wanted_DELETED &&
           (vm->recovering || (vm->host == NULL && vm->state == vm_state_PENDING) || state_vm_released(vm));
}

const char *state_vm_label(const struct vm *vm, const char *key)
{
    for (size_t i = 0; i < vm->labels.count; i++)
        if (strcmp(vm->labels.pairs[i].key, key) == 0)
            return vm->labels.pairs[i].value;
    return NULL;
}

bool state_vms_apart(const struct vm *vm, const struct vm *other)
{
    const char *mine = state_vm_label(vm, STATE_APART_LABEL), *its = state_vm_label(other, STATE_APART_LABEL);
    return mine != NULL && its != NULL && strcmp(its, mine) == 0 && (vm->id == NULL || strcmp(other->id, vm->id) != 0);
}

bool state_host_apart(const struct record *host, const struct vm *vm)
{
    bool has_group = state_vm_label(vm, STATE_APART_LABEL) != NULL;
    for (size_t i = 0; has_group && i < host->of_host.vms.count; i++) {
        const struct vm *other = host->of_host.vms.items[i]->vm;
        if (!other->recovering && state_vms_apart(vm, other)) /* one that waits to be started elsewhere is not there any more */
            return true;
    }
    return false;
}

uint64_t state_host_orders_index(const struct record *host)
{
    return host->of_host.orders_index;
}

bool state_vm_went_on(const struct state *state, const struct record *vm, const struct record *host, const struct vm_seen *seen,
                      const char *now)
{
    const struct cluster *cluster = state_cluster(state);
    bool owned = vm->vm->host != NULL && strcmp(vm->vm->host, host->common->id) == 0;
    if (cluster->recovered_at == NULL || seen->epoch <= vm->vm->epoch || seen->epoch - vm->vm->epoch > STATE_GENERATIONS_LOST_MAX ||
        seen->generation > vm->vm->generation + STATE_GENERATIONS_LOST_MAX || seen->state == vm_state_DELETED)
        return false;
    uint64_t since_ms = time_text_ms(cluster->recovered_at), now_ms = time_text_ms(now);
    if (!owned && host->of_host.vms.count >= STATE_HOST_VMS_MAX)
        return false;
    return owned || now_ms < since_ms + STATE_STRAYS_RETURN_MS; /* clocks may differ, also by going back */
}

/* VMs that go on when their host does: all but those that are being, or will be, started elsewhere. */
static uint32_t waiting_vms(const struct state *state, const struct record *host)
{
    uint32_t count = 0;
    for (size_t i = 0; i < host->of_host.vms.count; i++) {
        const struct vm *vm = host->of_host.vms.items[i]->vm;
        count += !vm->recovering && (vm->wanted == vm_wanted_RUNNING || vm->wanted == vm_wanted_PAUSED) &&
                 (host->host->state == host_state_LOST || !vm->ha || (!vm_disks_are_shared(state, vm, NULL) && !replica_is_good(state, vm)));
    }
    return count;
}

static void put_host(const struct state *state, const struct record *record, struct bytes_writer *out)
{
    struct host host = {0};
    OBJECT_COPY(host, &host, record->host);
    OBJECT_SET(host, &host, committed_memory_bytes, MIN(record->of_host.committed_memory_bytes, OBJECT_INTEGER_MAX));
    OBJECT_SET(host, &host, committed_vcpus, (uint32_t)MIN(record->of_host.committed_vcpus, (uint64_t)UINT32_MAX));
    OBJECT_SET(host, &host, vms, (uint32_t)record->of_host.vms.count);
    if (record->host->state != host_state_UP)
        OBJECT_SET(host, &host, waiting_vms, waiting_vms(state, record));
    object_encode_public(&host_desc, &host, out);
    OBJECT_CLEAR(host, &host);
}

void state_put_json(const struct state *state, const struct record *record, struct bytes_writer *out)
{
    if (record->kind == object_kind_HOST)
        put_host(state, record, out);
    else if (record->kind == object_kind_TOKEN || record->kind == object_kind_BACKUP_STORE ||
             (record->kind == object_kind_OPERATION && operation_has_task(record->operation)))
        object_encode_public(record->desc, record->object, out);
    else
        bytes_put(out, record->json, record->json_size);
}

/* ---- links between records ---- */

static void link_ended(struct state *state, struct record *record)
{
    struct record *older = state->ended_newest;
    while (older != NULL && older->common->revision == record->common->revision &&
           strcmp(older->common->id, record->common->id) > 0)
        older = older->of_operation.older;
    struct record *newer = older != NULL ? older->of_operation.newer : state->ended_oldest;
    record->of_operation.older = older;
    record->of_operation.newer = newer;
    *(older != NULL ? &older->of_operation.newer : &state->ended_oldest) = record;
    *(newer != NULL ? &newer->of_operation.older : &state->ended_newest) = record;
    state->ended_count++;
}

static void unlink_ended(struct state *state, struct record *record)
{
    struct record *older = record->of_operation.older, *newer = record->of_operation.newer;
    *(older != NULL ? &older->of_operation.newer : &state->ended_oldest) = newer;
    *(newer != NULL ? &newer->of_operation.older : &state->ended_newest) = older;
    record->of_operation.older = record->of_operation.newer = NULL;
    state->ended_count--;
}

const struct operation *state_vm_made_by(const struct record *vm)
{
    for (size_t i = 0; i < vm->of_vm.operations.count; i++)
        if (vm->of_vm.operations.items[i]->operation->kind == operation_kind_VM_CLONE)
            return vm->of_vm.operations.items[i]->operation;
    return NULL;
}

struct record *state_clone_waits_for(const struct state *state, const struct operation *operation)
{
    const struct task_vm_clone *clone = &operation->task.vm_clone;
    bool runs = operation->kind == operation_kind_VM_CLONE && operation->state == operation_state_RUNNING;
    const struct record *snapshot = runs && clone->snapshot != NULL ? state_get(state, object_kind_SNAPSHOT, clone->snapshot) : NULL;
    const struct record *source = snapshot != NULL ? state_get(state, object_kind_VM, clone->vm) : NULL;
    if (source == NULL || snapshot->snapshot->state != snapshot_state_CREATING)
        return NULL;
    for (size_t i = 0; i < source->of_vm.operations.count; i++) {
        struct record *record = source->of_vm.operations.items[i];
        const struct operation *other = record->operation;
        if (other->kind == operation_kind_SNAPSHOT_CREATE && strcmp(other->target_id, clone->snapshot) == 0)
            return record;
    }
    return NULL;
}

const char *operation_vm_id(const struct operation *operation)
{
    if (operation_has_task(operation) && operation->task.vm != NULL)
        return operation->task.vm;
    return operation->target_kind == object_kind_VM ? operation->target_id : NULL;
}

static struct record *by_id(struct state *state, enum object_kind kind, const char *id)
{
    return id != NULL ? map_get(&state->tables[kind].by_id, id) : NULL;
}

bool operation_keeps_room(const struct operation *operation)
{
    return operation_has_task(operation) && operation->task.kind == task_kind_VM_MIGRATE && operation->task.vm != NULL &&
           operation->task.migration.handed_over == 0;
}

/* A running operation is listed by its VM and by the hosts that carry it out. False: one of these is not there. */
static bool link_running(struct state *state, struct record *record)
{
    const struct operation *operation = record->operation;
    const struct task *task = &operation->task;
    const char *vm_id = operation_vm_id(operation);
    struct record *vm = by_id(state, object_kind_VM, vm_id);
    bool carried_out = operation_has_task(operation);
    struct record *host = carried_out ? by_id(state, object_kind_HOST, task->host) : NULL;
    struct record *peer = carried_out ? by_id(state, object_kind_HOST, task->peer) : NULL;
    if ((vm == NULL) != (vm_id == NULL) || (vm == NULL && !carried_out) || (host == NULL) == carried_out)
        return false;
    if (carried_out && (host == peer || (peer == NULL) != (task->peer == NULL)))
        return false;
    if (vm != NULL)
        record_index_add(&vm->of_vm.operations, record);
    if (host != NULL)
        record_index_add(&host->of_host.tasks, record);
    if (peer != NULL)
        record_index_add(&peer->of_host.tasks, record);
    if (host != NULL && operation_boots(operation)) {
        host->of_host.committed_memory_bytes += task->backup.boot.memory_bytes;
        host->of_host.committed_vcpus += task->backup.boot.vcpus;
    }
    if (peer != NULL && operation_keeps_room(operation)) {
        peer->of_host.committed_memory_bytes += vm->vm->memory_bytes;
        peer->of_host.committed_vcpus += vm->vm->vcpus;
    }
    return true;
}

static void unlink_running(struct state *state, struct record *record)
{
    const struct operation *operation = record->operation;
    struct record *vm = by_id(state, object_kind_VM, operation_vm_id(operation));
    if (vm != NULL)
        record_index_remove(&vm->of_vm.operations, record);
    if (!operation_has_task(operation))
        return;
    struct record *host = by_id(state, object_kind_HOST, operation->task.host);
    record_index_remove(&host->of_host.tasks, record);
    if (operation_boots(operation)) {
        host->of_host.committed_memory_bytes -= operation->task.backup.boot.memory_bytes;
        host->of_host.committed_vcpus -= operation->task.backup.boot.vcpus;
    }
    if (operation->task.peer == NULL)
        return;
    struct record *peer = by_id(state, object_kind_HOST, operation->task.peer);
    record_index_remove(&peer->of_host.tasks, record);
    if (operation_keeps_room(operation)) {
        peer->of_host.committed_memory_bytes -= vm->vm->memory_bytes;
        peer->of_host.committed_vcpus -= vm->vm->vcpus;
    }
}

static struct record *vm_host(struct state *state, const struct record *vm)
{
    return vm->vm->host != NULL ? map_get(&state->tables[object_kind_HOST].by_id, vm->vm->host) : NULL;
}

/* Put @record into the indexes that follow from its fields. False: it refers to an object that is not there. */
static bool link_record(struct state *state, struct record *record)
{
    if (record->kind == object_kind_VM && !address_index_add(&state->addresses, record))
        return false;
    if (record->kind == object_kind_VM)
        mac_index_add(&state->macs, record->vm);
    if (record->kind == object_kind_VM && state_vm_waits(record->vm))
        record_index_add(&state->waiting, record);
    if (record->kind == object_kind_VM && record->vm->host != NULL) {
        struct record *host = vm_host(state, record);
        if (host == NULL)
            return false;
        record_index_add(&host->of_host.vms, record);
        host->of_host.committed_memory_bytes += record->vm->memory_bytes;
        host->of_host.committed_vcpus += record->vm->vcpus;
    } else if (record->kind == object_kind_OPERATION && record->operation->state == operation_state_RUNNING) {
        return link_running(state, record);
    } else if (record->kind == object_kind_OPERATION) {
        link_ended(state, record);
    }
    return true;
}

static void unlink_record(struct state *state, struct record *record)
{
    if (record->kind == object_kind_VM)
        address_index_remove(&state->addresses, record);
    if (record->kind == object_kind_VM)
        mac_index_remove(&state->macs, record->vm);
    if (record->kind == object_kind_VM && state_vm_waits(record->vm))
        record_index_remove(&state->waiting, record);
    if (record->kind == object_kind_VM && record->vm->host != NULL) {
        struct record *host = vm_host(state, record);
        record_index_remove(&host->of_host.vms, record);
        host->of_host.committed_memory_bytes -= record->vm->memory_bytes;
        host->of_host.committed_vcpus -= record->vm->vcpus;
    } else if (record->kind == object_kind_OPERATION && record->operation->state == operation_state_RUNNING) {
        unlink_running(state, record);
    } else if (record->kind == object_kind_OPERATION) {
        unlink_ended(state, record);
    }
}

static void refresh_json(struct record *record)
{
    struct bytes_writer out = {0};
    object_encode(record->desc, record->object, &out);
    free(record->json);
    record->json = xrealloc(out.data, out.size); /* tight: there are tens of thousands */
    record->json_size = out.size;
}

/* ---- changing ---- */

struct record *state_insert(struct state *state, enum object_kind kind, void *object, uint64_t revision)
{
    struct state_table *table = &state->tables[kind];
    struct record *record = NEW(struct record);
    record->kind = kind;
    record->desc = state_kind_desc(kind);
    record->object = xcalloc(1, record->desc->size);
    memcpy(record->object, object, record->desc->size);
    memset(object, 0, record->desc->size);
    ASSERT(map_put(&table->by_id, record->common->id, record) == NULL);
    ASSERT(map_put(&table->by_name, record->common->name, record) == NULL);
    record_index_add(&table->order, record);
    record->common->revision = revision;
    object_mark(record->desc, record->object, "revision");
    refresh_json(record);
    if (!state->loading)
        ASSERT(link_record(state, record));
    return record;
}

void state_edit_begin(struct state *state, struct record *record)
{
    unlink_record(state, record);
}

void state_edit_end(struct state *state, struct record *record, uint64_t revision)
{
    record->common->revision = revision;
    object_mark(record->desc, record->object, "revision");
    refresh_json(record);
    ASSERT(link_record(state, record));
}

void state_rename(struct state *state, struct record *record, const char *name)
{
    struct state_table *table = &state->tables[record->kind];
    unlink_record(state, record);
    record_index_remove(&table->order, record);
    map_remove(&table->by_name, record->common->name);
    object_set_text(record->desc, record->object, "name", name);
    ASSERT(map_put(&table->by_name, record->common->name, record) == NULL);
    record_index_add(&table->order, record);
    ASSERT(link_record(state, record));
}

void state_remove(struct state *state, struct record *record)
{
    struct state_table *table = &state->tables[record->kind];
    if (record->kind == object_kind_HOST)
        ASSERT(record->of_host.vms.count == 0 && record->of_host.tasks.count == 0);
    if (record->kind == object_kind_VM)
        ASSERT(record->of_vm.operations.count == 0);
    unlink_record(state, record);
    record_index_remove(&table->order, record);
    map_remove(&table->by_id, record->common->id);
    map_remove(&table->by_name, record->common->name);
    record_destroy(record);
}

void state_prune_operations(struct state *state)
{
    while (state->ended_count > STATE_OPERATIONS_ENDED_MAX)
        state_remove(state, state->ended_oldest);
}

static int compare_age(const void *a, const void *b)
{
    const struct record_common *x = (*(struct record *const *)a)->common, *y = (*(struct record *const *)b)->common;
    if (x->revision != y->revision)
        return x->revision < y->revision ? -1 : 1;
    return strcmp(x->id, y->id);
}

int state_link_all(struct state *state, struct error *err)
{
    static const enum object_kind kinds[] = {object_kind_VM, object_kind_OPERATION};
    for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++) {
        const struct record_index *order = &state->tables[kinds[k]].order;
        CLEANUP_FREE struct record **by_age = xcalloc(order->count + 1, sizeof *by_age);
        for (size_t i = 0; i < order->count; i++)
            by_age[i] = order->items[i];
        if (kinds[k] == object_kind_OPERATION) /* ended ones are linked at the new end */
            qsort(by_age, order->count, sizeof *by_age, compare_age);
        for (size_t i = 0; i < order->count; i++)
            if (!link_record(state, by_age[i]))
                return error_set(err, -EBADMSG, ERROR_CHECKSUM, "%s '%s' refers to an object that is not there",
                                 by_age[i]->desc->name, by_age[i]->common->name);
    }
    for (size_t i = 0; i < state_count(state, object_kind_HOST); i++)
        state->tables[object_kind_HOST].order.items[i]->of_host.orders_index = state->index;
    state->loading = false;
    return 0;
}

void state_host_orders_changed(struct state *state, const char *host_id, uint64_t index)
{
    struct record *host = host_id != NULL ? map_get(&state->tables[object_kind_HOST].by_id, host_id) : NULL;
    if (host != NULL)
        host->of_host.orders_index = index;
}

/* ---- events ---- */

void state_add_event(struct state *state, struct event *event)
{
    struct bytes_writer out = {0};
    OBJECT_ENCODE(event, event, &out);
    uint64_t serial = ++state->events_serial;
    struct state_event_slot *slot = &state->events[(serial - 1) % STATE_EVENTS_MAX];
    free(slot->json);
    *slot = (struct state_event_slot){.index = event->index,
                                      .serial = serial,
                                      .kind = event->object_kind,
                                      .json = xrealloc(out.data, out.size),
                                      .json_size = out.size};
    state->events_count = MIN(state->events_count + 1, (size_t)STATE_EVENTS_MAX);
    OBJECT_CLEAR(event, event);
}

static const struct state_event_slot *event_slot(const struct state *state, uint64_t serial)
{
    return &state->events[(serial - 1) % STATE_EVENTS_MAX];
}

uint64_t state_events_serial(const struct state *state)
{
    return state->events_serial;
}

bool state_event_next(const struct state *state, uint64_t serial, struct state_event *ret_event)
{
    if (state->events_count == 0 || serial >= state->events_serial)
        return false;
    uint64_t oldest = state->events_serial - state->events_count + 1;
    const struct state_event_slot *slot = event_slot(state, MAX(serial + 1, oldest));
    *ret_event = (struct state_event){slot->index, slot->serial, slot->kind, slot->json, slot->json_size};
    return true;
}

bool state_event_after(const struct state *state, uint64_t after, struct state_event *ret_event)
{
    uint64_t low = state->events_serial - state->events_count + 1, high = state->events_serial + 1;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (event_slot(state, middle)->index <= after)
            low = middle + 1;
        else
            high = middle;
    }
    return state_event_next(state, low - 1, ret_event);
}

bool state_events_complete(const struct state *state, uint64_t after)
{
    uint64_t oldest = state->events_serial - state->events_count + 1;
    if (state->events_serial == 0 || oldest == 1)
        return true;
    return after >= event_slot(state, oldest)->index;
}

/* ---- answers ---- */

static void forget_oldest_answer(struct state *state)
{
    struct answer_record *record = state->answer_queue[state->answer_first];
    if (map_get(&state->answers, record->key) == record)
        map_remove(&state->answers, record->key);
    answer_destroy(record);
    state->answer_queue[state->answer_first] = NULL;
    state->answer_first = (state->answer_first + 1) % STATE_ANSWERS_MAX;
    state->answer_count--;
}

void state_expire_answers(struct state *state, uint64_t now_ms)
{
    while (state->answer_count > 0 &&
           time_text_ms(state->answer_queue[state->answer_first]->at) + STATE_ANSWER_AGE_MS < now_ms)
        forget_oldest_answer(state);
}

void state_add_answer(struct state *state, struct answer_record *record)
{
    if (state->answer_count == STATE_ANSWERS_MAX)
        forget_oldest_answer(state);
    struct answer_record *copy = NEW(struct answer_record);
    *copy = *record;
    *record = (struct answer_record){0};
    ASSERT(map_put(&state->answers, copy->key, copy) == NULL);
    state->answer_queue[(state->answer_first + state->answer_count++) % STATE_ANSWERS_MAX] = copy;
}

const struct answer_record *state_answer(const struct state *state, const char *key)
{
    return map_get(&state->answers, key);
}

const struct answer_record *state_answer_at(const struct state *state, size_t position)
{
    ASSERT(position < state->answer_count);
    return state->answer_queue[(state->answer_first + position) % STATE_ANSWERS_MAX];
}
