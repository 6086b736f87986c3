/* Filling of the scheduler's arrays, and what a host's settings amount to. */
#include "scheduler/view.h"

#include <string.h>

/* Row numbers of the fields as constants: looking three fields of a thousand hosts up by name would cost more than the
 * placement itself. HAS(host, kvm) is OBJECT_HAS at the price of a shift. */
#define ENUM(e, doc)
#define VALUE(e, sym, text, doc)
#define ENUM_END(e)
#define OBJECT(o, doc) enum o##_rows {
#define FIELD(o, tag, name, kind, arg, min, max, flags, doc) o##_row_##name,
#define OBJECT_END(o)                                                                                                \
    o##_row_count                                                                                                    \
    }                                                                                                                \
    ;
#include "schema/objects.def"
#undef ENUM
#undef VALUE
#undef ENUM_END
#undef OBJECT
#undef FIELD
#undef OBJECT_END
#define HAS(host, field) (((host)->head.present >> host_row_##field) & 1)

#define GROW(array, capacity) ((array) = xrealloc((array), (capacity) * sizeof *(array)))

uint64_t view_host_memory_bytes(const struct host *host)
{
    uint64_t reserve = HAS(host, memory_reserve_bytes)
                           ? host->memory_reserve_bytes
                           : MIN(VIEW_MEMORY_RESERVE_BYTES, host->memory_bytes / 10);
    return host->memory_bytes > reserve ? host->memory_bytes - reserve : 0;
}

uint64_t view_host_vcpus(const struct host *host)
{
    uint64_t percent = HAS(host, cpu_ratio_percent) ? host->cpu_ratio_percent : VIEW_CPU_RATIO_PERCENT;
    return host->cpus * percent / 100;
}

bool view_host_has_kvm(const struct host *host)
{
    return host->kvm != NULL && host->kvm[0] != '\0' && strcmp(host->kvm, "none") != 0;
}

static void grow(struct scheduler_view *view)
{
    view->capacity = MAX(view->capacity * 2, (size_t)16);
    GROW(view->names, view->capacity);
    GROW(view->ids, view->capacity);
    GROW(view->states, view->capacity);
    GROW(view->schedulable, view->capacity);
    GROW(view->going_down, view->capacity);
    GROW(view->kvm, view->capacity);
    GROW(view->cpu_baselines, view->capacity);
    GROW(view->memory_bytes, view->capacity);
    GROW(view->committed_memory_bytes, view->capacity);
    GROW(view->vcpus, view->capacity);
    GROW(view->committed_vcpus, view->capacity);
    GROW(view->disk_free_bytes, view->capacity);
}

void view_add(struct scheduler_view *view, const struct host *host, uint64_t committed_memory_bytes,
              uint64_t committed_vcpus)
{
    ASSERT(view->count < VIEW_HOSTS_MAX);
    if (view->count == view->capacity)
        grow(view);
    size_t i = view->count++;
    view->names[i] = host->name;
    view->ids[i] = host->id;
    view->states[i] = (uint8_t)host->state;
    view->schedulable[i] = !HAS(host, schedulable) || host->schedulable;
    view->going_down[i] = host->going_down;
    view->kvm[i] = view_host_has_kvm(host);
    view->cpu_baselines[i] = (uint8_t)host->cpu_baseline;
    view->memory_bytes[i] = view_host_memory_bytes(host);
    view->committed_memory_bytes[i] = committed_memory_bytes;
    view->vcpus[i] = view_host_vcpus(host);
    view->committed_vcpus[i] = committed_vcpus;
    view->disk_free_bytes[i] = HAS(host, disk_free_bytes) ? host->disk_free_bytes : UINT64_MAX;
}

void view_finish(struct scheduler_view *view)
{
    if (view == NULL)
        return;
    free(view->names);
    free(view->ids);
    free(view->states);
    free(view->schedulable);
    free(view->going_down);
    free(view->kvm);
    free(view->cpu_baselines);
    free(view->memory_bytes);
    free(view->committed_memory_bytes);
    free(view->vcpus);
    free(view->committed_vcpus);
    free(view->disk_free_bytes);
    *view = (struct scheduler_view){0};
}
