/* Regions, dirty log, pause and resume. KVM logs the guest's own writes, memory.c those of our devices; a fetch gives
 * both. */
#include "compute/vmm/guest_ops.h"

#include <errno.h>
#include <string.h>

#include "compute/vmm/machine_check.h"
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

/* Without manual_dirty_log a look would take the bits. */
static uint64_t ops_dirty_count(struct guest *guest)
{
    struct machine *m = machine_of(guest);
    uint64_t count = 0;
    for (size_t i = 0; m->kvm.manual_dirty_log && i < m->memory.region_count; i++) {
        size_t words = (m->memory.regions[i].size / MEMORY_PAGE_BYTES + 63) / 64;
        CLEANUP_FREE uint64_t *log = xcalloc(words, sizeof(*log));
        if (kvm_dirty_log_get(&m->kvm, (uint32_t)i, log, NULL) < 0)
            return 0;
        memory_tracking_peek(&m->memory, i, log);
        for (size_t w = 0; w < words; w++)
            count += (unsigned)__builtin_popcountll(log[w]);
    }
    return count;
}

static void ops_throttle(struct guest *guest, unsigned percent)
{
    vcpu_throttle_set(&CONTAINER_OF(guest, struct machine_guest, guest)->throttle, percent);
}

/* ---- on the control loop ---- */

/* A call that has to be made there. */
struct control_call_arg {
    struct machine_guest *g;
    struct stream_writer *out;
    struct stream_states *states;
    int *fds;
    size_t fd_count;
};

static int on_control(struct guest *guest, control_gate_fn function, struct stream_writer *out,
                      struct stream_states *states, struct error *err)
{
    struct control_call_arg call = {
        .g = CONTAINER_OF(guest, struct machine_guest, guest), .out = out, .states = states};
    return call.g->gate ? control_gate_run(call.g->gate, function, &call, err) : function(&call, err);
}

static int do_pause(void *arg, struct error *err)
{
    struct machine_guest *g = ((struct control_call_arg *)arg)->g;
    int code = machine_freeze(g->machine, err);
    g->was_paused = g->machine->state == MACHINE_PAUSED;
    return code;
}

static int do_resume(void *arg, struct error *err)
{
    return machine_thaw(((struct control_call_arg *)arg)->g->machine, err);
}

static int do_state_save(void *arg, struct error *err)
{
    struct control_call_arg *call = arg;
    return machine_state_save(call->g->machine, call->out, err);
}

static int do_state_load(void *arg, struct error *err)
{
    struct control_call_arg *call = arg;
    return machine_state_load(call->g->machine, call->states, err);
}

static int do_check_save(void *arg, struct error *err)
{
    struct control_call_arg *call = arg;
    return machine_check_save(call->g->machine, call->out, err);
}

static int do_check_load(void *arg, struct error *err)
{
    struct control_call_arg *call = arg;
    return machine_check_load(call->g->machine, call->states, err);
}

/* Memory first. */
static int do_handles_share(void *arg, struct error *err)
{
    struct control_call_arg *call = arg;
    struct machine *m = call->g->machine;
    int memory = memory_share(&m->memory, err);
    if (memory < 0)
        return memory;
    int count = machine_slots_handles(m, call->fds + 1, GUEST_HANDLES_MAX - 1, err);
    call->fds[0] = memory;
    call->fd_count = (size_t)MAX(count, 0) + 1;
    return MIN(count, 0);
}

static int do_handles_adopt(void *arg, struct error *err)
{
    struct control_call_arg *call = arg;
    struct machine *m = call->g->machine;
    int code = memory_adopt(&m->memory, call->fds[0], err);
    if (code == 0)
        return machine_slots_adopt(m, call->fds + 1, call->fd_count - 1, err);
    for (size_t i = 1; i < call->fd_count; i++)
        close(call->fds[i]);
    return code;
}

static int handles_call(struct guest *guest, control_gate_fn function, int *fds, size_t *count, struct error *err)
{
    struct control_call_arg call = {
        .g = CONTAINER_OF(guest, struct machine_guest, guest), .fds = fds, .fd_count = *count};
    int code = call.g->gate ? control_gate_run(call.g->gate, function, &call, err) : function(&call, err);
    *count = call.fd_count;
    return code;
}

static int ops_handles_share(struct guest *guest, int fds[GUEST_HANDLES_MAX], struct error *err)
{
    size_t count = 0;
    int code = handles_call(guest, do_handles_share, fds, &count, err);
    return code < 0 ? code : (int)count;
}

static int ops_handles_adopt(struct guest *guest, const int *fds, size_t count, struct error *err)
{
    int own[GUEST_HANDLES_MAX];
    memcpy(own, fds, count * sizeof(*fds));
    return handles_call(guest, do_handles_adopt, own, &count, err);
}

static int ops_pause(struct guest *guest, struct error *err)
{
    return on_control(guest, do_pause, NULL, NULL, err);
}

static int ops_resume(struct guest *guest, struct error *err)
{
    return on_control(guest, do_resume, NULL, NULL, err);
}

static int ops_state_save(struct guest *guest, struct stream_writer *out, struct error *err)
{
    return on_control(guest, do_state_save, out, NULL, err);
}

static int ops_state_load(struct guest *guest, struct stream_states *states, struct error *err)
{
    return on_control(guest, do_state_load, NULL, states, err);
}

static int ops_check_save(struct guest *guest, struct stream_writer *out, struct error *err)
{
    return on_control(guest, do_check_save, out, NULL, err);
}

static int ops_check_load(struct guest *guest, struct stream_states *states, struct error *err)
{
    return on_control(guest, do_check_load, NULL, states, err);
}

static void ops_next_data(struct guest *guest, size_t region, uint64_t *page, uint64_t *pages)
{
    memory_next_data(&machine_of(guest)->memory, region, page, pages);
}

static int ops_memory_map(struct guest *guest, size_t region, int fd, uint64_t offset, struct error *err)
{
    return memory_map_file(&machine_of(guest)->memory, region, fd, offset, err);
}

static const struct guest_ops machine_guest_ops = {
    .regions = ops_regions,
    .next_data = ops_next_data,
    .memory_map = ops_memory_map,
    .handles_share = ops_handles_share,
    .handles_adopt = ops_handles_adopt,
    .dirty_start = ops_dirty_start,
    .dirty_fetch = ops_dirty_fetch,
    .dirty_count = ops_dirty_count,
    .dirty_stop = ops_dirty_stop,
    .throttle = ops_throttle,
    .check_save = ops_check_save,
    .check_load = ops_check_load,
    .pause = ops_pause,
    .resume = ops_resume,
    .state_save = ops_state_save,
    .state_load = ops_state_load,
};

void machine_guest_init(struct machine_guest *g, struct machine *m, struct control_gate *gate)
{
    *g = (struct machine_guest){.guest.ops = &machine_guest_ops, .machine = m, .gate = gate};
    vcpu_throttle_init(&g->throttle, &m->vcpus);
}

void machine_guest_finish(struct machine_guest *g)
{
    vcpu_throttle_finish(&g->throttle);
}
