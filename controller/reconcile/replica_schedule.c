/* VMs whose replicas are due or late: see replica_schedule.h. */
#include "controller/reconcile/replica_schedule.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controller/fsm/replica_state.h"
#include "controller/fsm/time_text.h"

static bool passed(const struct replica_schedule *s, const char *since, uint64_t seconds)
{
    return time_text_is_over(time_text_ms(s->now), since, seconds * 1000);
}

static bool is_late(const struct replica_schedule *s, const struct record *record)
{
    const struct vm *vm = record->vm;
    const struct record *attempt = replica_under_way(record);
    const char *since = vm->replica.at != NULL ? vm->replica.at : vm->replica.since;
    bool wanted = (vm->wanted == vm_wanted_RUNNING || vm->wanted == vm_wanted_PAUSED) && !(replica_is_sync(vm) && vm->replica.in_sync);
    return wanted && !vm->replica.late && since != NULL && passed(s, since, replica_limit_s(vm)) &&
           (attempt == NULL || passed(s, attempt->operation->created_at, replica_limit_s(vm)));
}

static bool is_up(const struct record *host)
{
    return host != NULL && host->host->state == host_state_UP;
}

/* A session that failed is not tried at once again: each break costs the guest a pause. */
static uint64_t every_s(const struct vm *vm)
{
    if (!replica_is_sync(vm))
        return replica_every_s(vm);
    return vm->replica.failure != NULL ? REPLICA_SESSION_EVERY_S : REPLICA_SESSION_SOON_S;
}

static bool is_due(const struct replica_schedule *s, const struct record *record)
{
    const struct vm *vm = record->vm;
    bool runs = vm->state == vm_state_RUNNING || vm->state == vm_state_PAUSED;
    return runs && vm->host != NULL && !vm->recovering && vm->wanted != vm_wanted_DELETED && record->of_vm.operations.count == 0 &&
           passed(s, vm->replica.tried_at, every_s(vm)) && is_up(replica_keeper(s->state, vm)) &&
           is_up(state_get(s->state, object_kind_HOST, vm->host)) && strcmp(replica_keeper(s->state, vm)->common->id, vm->host) != 0 &&
           replica_volume_left(s->state, vm) == NULL;
}

static uint64_t hash_add(uint64_t hash, const char *text)
{
    for (; *text != '\0'; text++)
        hash = (hash ^ (uint8_t)*text) * UINT64_C(0x100000001b3);
    hash ^= hash >> 29;
    return hash * UINT64_C(0xbf58476d1ce4e5b9);
}

static void id_make(const struct replica_schedule *s, const struct vm *vm, char id[STATE_ID_BYTES])
{
    uint64_t a = hash_add(hash_add(hash_add(UINT64_C(0xcbf29ce484222325), "replicate"), vm->id), s->now);
    uint64_t b = hash_add(hash_add(hash_add(UINT64_C(0x9e3779b97f4a7c15), s->now), vm->id), "replicate");
    snprintf(id, STATE_ID_BYTES, "%08x-%04x-4%03x-%04x-%012llx", (unsigned)(a >> 32), (unsigned)(a >> 16 & 0xffff),
             (unsigned)(a & 0xfff), (unsigned)(0x8000 | (b >> 48 & 0x3fff)), (unsigned long long)(b & 0xffffffffffff));
}

static void task_fill(const struct replica_schedule *s, const struct record *record, struct command_task *command)
{
    struct operation *operation = &command->operation;
    char id[STATE_ID_BYTES];
    id_make(s, record->vm, id);
    OBJECT_TEXT(operation, operation, id, id);
    OBJECT_SET(operation, operation, kind, operation_kind_VM_REPLICATE);
    OBJECT_SET(operation, operation, target_kind, object_kind_VM);
    OBJECT_TEXT(operation, operation, target_id, record->common->id);
    OBJECT_TEXT(operation, operation, target_name, record->common->name);
    OBJECT_SET(task, &operation->task, kind, task_kind_VM_REPLICATE);
    OBJECT_TEXT(task, &operation->task, host, record->vm->host);
    OBJECT_TEXT(task, &operation->task, peer, replica_keeper(s->state, record->vm)->common->id);
    OBJECT_TEXT(task, &operation->task, vm, record->common->id);
    OBJECT_SET(task, &operation->task, epoch, record->vm->epoch);
    if (record->vm->replica.in_pools)
        OBJECT_SET(task, &operation->task, in_pools, true);
    if (record->vm->replica.volumes)
        OBJECT_SET(task, &operation->task, volumes, true);
    if (record->vm->replica.id != NULL && record->vm->replica.number > 0) {
        OBJECT_TEXT(vm_replica_start, &operation->task.replica, id, record->vm->replica.id);
        OBJECT_SET(vm_replica_start, &operation->task.replica, number, record->vm->replica.number);
        if (record->vm->replica.session > 0)
            OBJECT_SET(vm_replica_start, &operation->task.replica, session, record->vm->replica.session);
        object_mark(&task_desc, &operation->task, "replica");
    }
    if (replica_is_sync(record->vm) && record->vm->replica.number > 0) { /* the first point is sent */
        OBJECT_SET(task, &operation->task, session, record->vm->replica.sessions + 1);
        OBJECT_SET(task, &operation->task, patience_s, record->vm->replica_sync_s);
    }
    object_mark(&operation_desc, operation, "task");
    object_mark(&command_task_desc, command, "operation");
}

static void late_fill(const struct replica_schedule *s, const struct vm *vm, struct command_replica_late *command)
{
    uint64_t since_ms = time_text_ms(vm->replica.at != NULL ? vm->replica.at : vm->replica.since), now_ms = time_text_ms(s->now);
    OBJECT_TEXT(command_replica_late, command, id, vm->id);
    OBJECT_SET(command_replica_late, command, number, vm->replica.number);
    OBJECT_SET(command_replica_late, command, age_s, now_ms > since_ms ? (now_ms - since_ms) / 1000 : 0);
}

/* ---- whose turn it is ---- */

static int by_wait(const void *a, const void *b)
{
    const struct record *first = *(const struct record *const *)a, *second = *(const struct record *const *)b;
    const char *x = first->vm->replica.tried_at, *y = second->vm->replica.tried_at;
    int order = strcmp(x != NULL ? x : "", y != NULL ? y : ""); /* one form and one length: the order of time */
    return order != 0 ? order : strcmp(first->common->name, second->common->name);
}

void replica_schedule_init(struct replica_schedule *s, const struct state *state, const char *now)
{
    *s = (struct replica_schedule){.state = state, .now = now};
    for (size_t i = 0; i < state_count(state, object_kind_VM); i++) {
        const struct record *record = state_at(state, object_kind_VM, i);
        if (record->vm->replica_host == NULL || !is_due(s, record))
            continue;
        s->due = xrealloc(s->due, (s->count + 1) * sizeof(const struct record *));
        s->due[s->count++] = record;
    }
    if (s->count > 1)
        qsort(s->due, s->count, sizeof(const struct record *), by_wait);
}

void replica_schedule_finish(struct replica_schedule *s)
{
    map_finish(&s->begun);
    free(s->due);
}

/* A session that has nothing to copy any more. */
static bool is_level(const struct replica_schedule *s, const struct operation *operation)
{
    const struct record *vm = OBJECT_HAS(task, &operation->task, session) ? state_get(s->state, object_kind_VM, operation->task.vm) : NULL;
    return vm != NULL && vm->vm->replica.in_sync && vm->vm->replica.session == operation->task.session;
}

/* Points that @host has a part in, with those of this tick; and sessions that are not level yet. */
static unsigned load(const struct replica_schedule *s, const struct record *host)
{
    unsigned count = (unsigned)(uintptr_t)map_get(&s->begun, host->common->id);
    for (size_t i = 0; i < host->of_host.tasks.count; i++)
        count += host->of_host.tasks.items[i]->operation->kind == operation_kind_VM_REPLICATE && !is_level(s, host->of_host.tasks.items[i]->operation);
    return count;
}

static void count_begun(struct replica_schedule *s, const struct record *host)
{
    uintptr_t count = (uintptr_t)map_get(&s->begun, host->common->id) + 1;
    map_put(&s->begun, host->common->id, (void *)count);
}

static bool late_next(struct replica_schedule *s, struct command_replica_late *ret_late)
{
    while (s->next_late < state_count(s->state, object_kind_VM)) {
        const struct record *record = state_at(s->state, object_kind_VM, s->next_late++);
        if (record->vm->replica_host == NULL || !is_late(s, record))
            continue;
        late_fill(s, record->vm, ret_late);
        return true;
    }
    return false;
}

int replica_schedule_next(struct replica_schedule *s, struct command_task *ret_task, struct command_replica_late *ret_late)
{
    if (late_next(s, ret_late))
        return 2;
    while (s->next < s->count) {
        const struct record *record = s->due[s->next++];
        const struct record *host = state_get(s->state, object_kind_HOST, record->vm->host), *keeper = replica_keeper(s->state, record->vm);
        if (load(s, host) >= REPLICA_SCHEDULE_HOST_MAX || load(s, keeper) >= REPLICA_SCHEDULE_HOST_MAX)
            continue;
        count_begun(s, host);
        count_begun(s, keeper);
        task_fill(s, record, ret_task);
        return 1;
    }
    return 0;
}
