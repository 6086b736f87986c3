/* The filters; see the header for their order. */
#include "scheduler/filter.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define MIB_SHIFT 20

static const struct {
    const char *name, *words;
} filters[] = {
#define X(symbol, name, words) {name, words},
    FILTERS(X)
#undef X
};

static uint64_t free_of(uint64_t all, uint64_t committed)
{
    return all > committed ? all - committed : 0;
}

static bool pinned_elsewhere(const struct scheduler_view *view, size_t i, const char *pin)
{
    return pin != NULL && strcmp(view->names[i], pin) != 0 && strcmp(view->ids[i], pin) != 0;
}

enum filter filter_host(const struct scheduler_view *view, size_t i, const struct place_request *request)
{
    if (pinned_elsewhere(view, i, request->pin))
        return FILTER_PIN;
    if (request->current != NULL && strcmp(view->ids[i], request->current) == 0)
        return FILTER_CURRENT;
    if (view->states[i] != host_state_UP)
        return FILTER_STATE;
    if (view->going_down[i])
        return FILTER_DOWN;
    if (!view->schedulable[i])
        return FILTER_SCHEDULABLE;
    if (!view->kvm[i])
        return FILTER_KVM;
    if (view->cpu_baselines[i] < request->cpu_model)
        return FILTER_CPU_MODEL;
    if (request->apart != NULL && request->apart[i])
        return FILTER_APART;
    if (request->tried != NULL && request->tried[i])
        return FILTER_TRIED;
    if (request->pools != NULL && request->pools[i] == PLACE_POOLS_MISSING)
        return FILTER_POOL;
    if (request->pools != NULL && request->pools[i] == PLACE_POOLS_FULL)
        return FILTER_POOL_ROOM;
    if (view->disk_free_bytes[i] < request->disk_bytes)
        return FILTER_DISK_ROOM;
    if (free_of(view->memory_bytes[i], view->committed_memory_bytes[i]) < request->memory_bytes)
        return FILTER_MEMORY;
    if (free_of(view->vcpus[i], view->committed_vcpus[i]) < request->vcpus)
        return FILTER_VCPUS;
    return FILTER_PASSED;
}

const char *filter_name(enum filter filter)
{
    return filters[filter].name;
}

const char *filter_words(enum filter filter)
{
    return filters[filter].words;
}

void filter_reason(const struct scheduler_view *view, size_t i, const struct place_request *request,
                   enum filter filter, char *buffer, size_t size)
{
    switch (filter) {
    case FILTER_PIN:
        snprintf(buffer, size, "the VM is pinned to %s", request->pin);
        break;
    case FILTER_CURRENT:
        snprintf(buffer, size, "has it already");
        break;
    case FILTER_STATE:
        snprintf(buffer, size, "is %s", host_state_desc.names[view->states[i]]);
        break;
    case FILTER_DOWN:
        snprintf(buffer, size, "is being shut down");
        break;
    case FILTER_SCHEDULABLE:
        snprintf(buffer, size, "takes no new VMs: schedulable is false");
        break;
    case FILTER_KVM:
        snprintf(buffer, size, "has no usable /dev/kvm");
        break;
    case FILTER_CPU_MODEL:
        if (view->cpu_baselines[i] == cpu_kind_HOST)
            snprintf(buffer, size, "needs %s, which it does not say its processors can be", cpu_kind_desc.names[request->cpu_model]);
        else
            snprintf(buffer, size, "needs %s, its processors can be %s at most", cpu_kind_desc.names[request->cpu_model],
                     cpu_kind_desc.names[view->cpu_baselines[i]]);
        break;
    case FILTER_APART:
        snprintf(buffer, size, "holds a VM of the same anti-affinity");
        break;
    case FILTER_TRIED:
        snprintf(buffer, size, "could not start it");
        break;
    case FILTER_POOL:
        snprintf(buffer, size, "has not all pools of its disks, or they are not there now");
        break;
    case FILTER_POOL_ROOM:
        snprintf(buffer, size, "has less room in a pool than its disks there may take");
        break;
    case FILTER_DISK_ROOM:
        snprintf(buffer, size, "its disks may take %" PRIu64 " MiB, about %" PRIu64 " MiB are free",
                 request->disk_bytes >> MIB_SHIFT, view->disk_free_bytes[i] >> MIB_SHIFT);
        break;
    case FILTER_MEMORY:
        snprintf(buffer, size, "needs %" PRIu64 " MiB, %" PRIu64 " of %" PRIu64 " MiB are free",
                 request->memory_bytes >> MIB_SHIFT,
                 free_of(view->memory_bytes[i], view->committed_memory_bytes[i]) >> MIB_SHIFT,
                 view->memory_bytes[i] >> MIB_SHIFT);
        break;
    case FILTER_VCPUS:
        snprintf(buffer, size, "needs %" PRIu64 " vCPUs, %" PRIu64 " of %" PRIu64 " are free", request->vcpus,
                 free_of(view->vcpus[i], view->committed_vcpus[i]), view->vcpus[i]);
        break;
    case FILTER_PASSED:
    case FILTER_COUNT:
        snprintf(buffer, size, "can hold it");
        break;
    }
}
