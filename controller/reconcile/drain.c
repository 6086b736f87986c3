/* One walk over the hosts that drain; see the header. */
#include "controller/reconcile/drain.h"

#include <string.h>

#include "controller/command/migrate_plan.h"
#include "controller/fsm/replica_state.h"
#include "controller/fsm/time_text.h"

static bool comes_from(const struct operation *operation, const struct record *host)
{
    return operation->kind == operation_kind_VM_MIGRATE && operation->task.host != NULL &&
           strcmp(operation->task.host, host->common->id) == 0;
}

static unsigned under_way(const struct record *host)
{
    unsigned count = 0;
    for (size_t i = 0; i < host->of_host.tasks.count; i++)
        count += comes_from(host->of_host.tasks.items[i]->operation, host);
    return count;
}

/* Each host is the first in its turn, and each time with other VMs. */
static const struct record *host_now(const struct drain *d)
{
    size_t hosts = state_count(d->state, object_kind_HOST);
    return state_at(d->state, object_kind_HOST, (d->turn + d->host) % hosts);
}

static const struct record *vm_now(const struct drain *d, const struct record *host)
{
    uint64_t round = d->turn / state_count(d->state, object_kind_HOST);
    return host->of_host.vms.items[(round * DRAIN_LOOKS_MAX + d->vm) % host->of_host.vms.count];
}

void drain_begin(struct drain *d, const struct state *state, const char *now)
{
    *d = (struct drain){.state = state, .now_ms = time_text_ms(now)};
    bool any = false;
    d->turn = d->now_ms / 1000; /* ticks are no shorter */
    for (size_t i = 0; i < state_count(state, object_kind_HOST); i++) {
        const struct record *host = state_at(state, object_kind_HOST, i);
        d->on_all += under_way(host);
        any |= host->host->draining;
    }
    if (!any)
        d->host = state_count(state, object_kind_HOST);
    else
        d->on_host = under_way(host_now(d));
}

static bool is_due(const struct drain *d, const struct record *record)
{
    const struct vm *vm = record->vm;
    if (replica_others(record) > 0 || (vm->state != vm_state_RUNNING && vm->state != vm_state_PAUSED))
        return false;
    if (d->apart && state_vm_label(vm, STATE_APART_LABEL) != NULL)
        return false;
    return time_text_is_over(d->now_ms, vm->migration_failed_at, DRAIN_RETRY_MS);
}

static bool plan(struct drain *d, const struct record *vm, struct operation *operation)
{
    struct error err = {.code = 0};
    d->looks++;
    if (migrate_plan(d->state, vm, NULL, &operation->task, &err) < 0)
        return false; /* why: `drover vm migrate` says so */
    OBJECT_SET(task_migration, &operation->task.migration, drain, true);
    OBJECT_SET(operation, operation, kind, operation_kind_VM_MIGRATE);
    OBJECT_SET(operation, operation, target_kind, object_kind_VM);
    OBJECT_TEXT(operation, operation, target_id, vm->common->id);
    OBJECT_TEXT(operation, operation, target_name, vm->common->name);
    object_mark(&operation_desc, operation, "task");
    d->on_host++;
    d->on_all++;
    d->apart |= state_vm_label(vm->vm, STATE_APART_LABEL) != NULL;
    return true;
}

bool drain_next(struct drain *d, struct operation *operation)
{
    size_t hosts = state_count(d->state, object_kind_HOST);
    while (d->host < hosts && d->on_all < DRAIN_CLUSTER_MAX && d->looks < DRAIN_LOOKS_MAX) {
        const struct record *host = host_now(d);
        bool drains = host->host->draining && host->host->state == host_state_UP && d->on_host < DRAIN_HOST_MAX;
        if (drains && d->vm < host->of_host.vms.count) {
            const struct record *vm = vm_now(d, host);
            d->vm++;
            if (is_due(d, vm) && plan(d, vm, operation))
                return true;
            continue;
        }
        d->vm = 0;
        if (++d->host < hosts)
            d->on_host = under_way(host_now(d));
    }
    return false;
}
