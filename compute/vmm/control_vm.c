/* Control of the VM as a whole: what it does, its counters, its moves. */
#include <unistd.h>

#include "common/program_build.h"
#include "compute/vmm/control_call.h"
#include "compute/vmm/devices/pvpanic/pvpanic.h"
#include "compute/vmm/machine_incoming.h"

static const enum vmm_state states[] = {
    [MACHINE_CREATED] = vmm_state_CREATED, [MACHINE_RUNNING] = vmm_state_RUNNING, [MACHINE_PAUSED] = vmm_state_PAUSED,
    [MACHINE_STOPPED] = vmm_state_STOPPED, [MACHINE_FAILED] = vmm_state_FAILED,
};

static void holds_add(struct vmm_status *status, unsigned holds)
{
    static const char *const names[] = {"start", "user", "lease", "event", "migrate", "disk", "unplug"};
    if (holds == 0)
        return;
    status->holds.items = xcalloc(ARRAY_SIZE(names), sizeof(*status->holds.items));
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        if (holds >> i & 1)
            status->holds.items[status->holds.count++] = xstrdup(names[i]);
    object_mark(&vmm_status_desc, status, "holds");
}

#define VMM_VERSION "0.1.0"
PROGRAM_VERSION_NOTE(VMM_VERSION);

int control_vm_show(struct control_call *call, struct error *err UNUSED)
{
    struct machine *m = call->machine;
    const struct vmm_config *c = m->config;
    struct vmm_status status = {.name = NULL};
    OBJECT_TEXT(vmm_status, &status, name, c->name);
    OBJECT_TEXT(vmm_status, &status, vm_id, c->vm_id);
    OBJECT_SET(vmm_status, &status, epoch, c->epoch);
    OBJECT_SET(vmm_status, &status, state, states[m->state]);
    if (m->state == MACHINE_FAILED)
        OBJECT_TEXT(vmm_status, &status, reason, m->failure);
    else if (m->state == MACHINE_PAUSED && m->pause_reason[0])
        OBJECT_TEXT(vmm_status, &status, reason, m->pause_reason);
    char version[PROGRAM_BUILD_SIZE];
    OBJECT_TEXT(vmm_status, &status, version, program_build(VMM_VERSION, version));
    OBJECT_SET(vmm_status, &status, pid, (uint64_t)getpid());
    OBJECT_TEXT(vmm_status, &status, machine, "pc-1");
    OBJECT_SET(vmm_status, &status, vcpus, c->vcpus);
    OBJECT_SET(vmm_status, &status, memory_bytes, c->memory_bytes);
    OBJECT_SET(vmm_status, &status, resets, m->resets);
    OBJECT_SET(vmm_status, &status, lease_held, lease_allows_io(&m->lease.lease));
    OBJECT_SET(vmm_status, &status, panics, pvpanic_count(m->pvpanic));
    /* What a migration has brought whole and nobody has given to this process yet stands still by more than its holds. */
    bool waits = m->frozen && machine_incoming_is_active(m);
    holds_add(&status, vcpu_set_holds(&m->vcpus) | (waits ? VCPU_HOLD_START : 0));
    OBJECT_ENCODE(vmm_status, &status, &call->answer);
    OBJECT_CLEAR(vmm_status, &status);
    return 0;
}

int control_vm_move(struct control_call *call, struct error *err)
{
    static int (*const moves[vmm_move_COUNT])(struct machine *, struct error *) = {
        [vmm_move_RUNNING] = machine_resume,
        [vmm_move_PAUSED] = machine_pause,
        [vmm_move_STOPPED] = machine_stop,
        [vmm_move_RESET] = machine_reset,
        [vmm_move_SHUTDOWN] = machine_ask_shutdown,
        [vmm_move_POWERBUTTON] = machine_press_power_button,
    };
    const struct vmm_state_order *order = call->body;
    int code = moves[order->state](call->machine, err);
    return code < 0 ? code : control_vm_show(call, err);
}

int control_vm_stats(struct control_call *call, struct error *err UNUSED)
{
    struct machine *m = call->machine;
    struct vcpu_counters c = vcpu_set_counters(&m->vcpus);
    struct vmm_stats stats = {.exits = 0};
    OBJECT_SET(vmm_stats, &stats, exits, c.exits);
    OBJECT_SET(vmm_stats, &stats, port_exits, c.port_exits);
    OBJECT_SET(vmm_stats, &stats, memory_exits, c.memory_exits);
    OBJECT_SET(vmm_stats, &stats, unclaimed_port_accesses, __atomic_load_n(&m->ports.unclaimed, __ATOMIC_RELAXED));
    OBJECT_SET(vmm_stats, &stats, unclaimed_memory_accesses, __atomic_load_n(&m->mmio.unclaimed, __ATOMIC_RELAXED));
    OBJECT_SET(vmm_stats, &stats, console_readers, console_reader_count(m->console));
    OBJECT_SET(vmm_stats, &stats, console_readers_dropped, m->console->followers_dropped);
    OBJECT_SET(vmm_stats, &stats, lease_pauses, __atomic_load_n(&m->lease.pauses, __ATOMIC_RELAXED));
    OBJECT_SET(vmm_stats, &stats, resets, m->resets);
    OBJECT_ENCODE(vmm_stats, &stats, &call->answer);
    OBJECT_CLEAR(vmm_stats, &stats);
    return 0;
}
