/* Regions, dirty log, pause and resume. KVM logs the guest's own writes, memory.c those of our devices; a fetch gives
 * both. */
#include "compute/vmm/guest_ops.h"

#include <errno.h>

#include "compute/vmm/machine_state.h"

static struct machine *machine_of(struct guest *guest)
{
    return CONTAINER_OF(guest, struct machine_guest, guest)->machine;
}

static size_t ops_regions(struct guest *guest, struct guest_region regions[GUEST_REGIONS_MAX])
{
    struct machine *m = machine_of(guest);
    STATIC_ASSERT((unsigned)GUEST_REGIONS_MAX >= (unsigned)MEMORY_REGIONS_MAX, "migration takes every region");
    for (size_t i = 0; i < m->memory.region_count; i++) {
        const struct memory_region *r = &m->memory.regions[i];
        regions[i] = (struct guest_region){.gpa = r->gpa, .size = r->size, .host = r->host};
    }
    return m->memory.region_count;
}

static int slots_set(struct machine *m, uint32_t flags, struct error *err)
{
    int code = 0;
    for (uint32_t i = 0; code == 0 && i < m->memory.region_count; i++) {
        struct memory_region *r = &m->memory.regions[i];
        code = kvm_memory_set(&m->kvm, i, r->gpa, r->size, r->host, flags, err);
    }
    return code;
}

static void ops_dirty_stop(struct guest *guest)
{
    struct machine_guest *g = CONTAINER_OF(guest, struct machine_guest, guest);
    memory_tracking_stop(&g->machine->memory);
    (void)slots_set(g->machine, 0, NULL); /* a log that stays on costs speed, nothing else */
    g->tracking = false;
}

static int ops_dirty_start(struct guest *guest, struct error *err)
{
    struct machine_guest *g = CONTAINER_OF(guest, struct machine_guest, guest);
    ASSERT(!g->tracking);
    int code = memory_tracking_start(&g->machine->memory, err);
    if (code == 0)
        code = slots_set(g->machine, KVM_MEM_LOG_DIRTY_PAGES, err);
    if (code < 0)
        ops_dirty_stop(guest);
    g->tracking = code == 0;
    return code;
}

/* KVM's bits are cleared before anybody copies the pages, so a write during the copy is seen by the next fetch. */
static int ops_dirty_fetch(struct guest *guest, size_t region, uint64_t *bitmap, struct error *err)
{
    struct machine *m = machine_of(guest);
    ASSERT(region < m->memory.region_count);
    uint64_t pages = m->memory.regions[region].size / MEMORY_PAGE_BYTES;
    size_t words = (pages + 63) / 64;
    CLEANUP_FREE uint64_t *log = xcalloc(words, sizeof(*log));
    int code = kvm_dirty_log_get(&m->kvm, (uint32_t)region, log, err);
    if (code == 0 && m->kvm.manual_dirty_log)
        code = kvm_dirty_log_clear(&m->kvm, (uint32_t)region, 0, (uint32_t)pages, log, err);
    if (code < 0)
        return code;
    for (size_t i = 0; i < words; i++)
        bitmap[i] |= log[i];
    memory_tracking_fetch(&m->memory, region, bitmap);
    return 0;
}

static int ops_pause(struct guest *guest, struct error *err)
{
    return machine_pause(machine_of(guest), err);
}

static int ops_resume(struct guest *guest, struct error *err)
{
    return machine_resume(machine_of(guest), err);
}

static void ops_next_data(struct guest *guest, size_t region, uint64_t *page, uint64_t *pages)
{
    memory_next_data(&machine_of(guest)->memory, region, page, pages);
}

static int ops_memory_map(struct guest *guest, size_t region, int fd, uint64_t offset, struct error *err)
{
    return memory_map_file(&machine_of(guest)->memory, region, fd, offset, err);
}

static int ops_state_save(struct guest *guest, struct stream_writer *out, struct error *err)
{
    return machine_state_save(machine_of(guest), out, err);
}

static int ops_state_load(struct guest *guest, struct stream_states *states, struct error *err)
{
    return machine_state_load(machine_of(guest), states, err);
}

static const struct guest_ops machine_guest_ops = {
    .regions = ops_regions,
    .next_data = ops_next_data,
    .memory_map = ops_memory_map,
    .dirty_start = ops_dirty_start,
    .dirty_fetch = ops_dirty_fetch,
    .dirty_stop = ops_dirty_stop,
    .pause = ops_pause,
    .resume = ops_resume,
    .state_save = ops_state_save,
    .state_load = ops_state_load,
};

void machine_guest_init(struct machine_guest *g, struct machine *m)
{
    *g = (struct machine_guest){.guest.ops = &machine_guest_ops, .machine = m};
}
