/* One thread per vCPU: park, run, handle exits.
 *
 * Happy path: wait until nobody holds the set; KVM_RUN; an exit for a port or an address goes to the bus; again.
 * Failure modes: a triple fault and everything KVM cannot go on from are events for the machine, which alone decides
 * what becomes of the VM; the thread parks meanwhile. */
#include "compute/vmm/vcpu.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/log.h"
#include "compute/vmm/pc1_layout.h"
#include "compute/vmm/vcpu_cpuid.h"

/* Any signal will do: it only has to make KVM_RUN return. */
#define SIGNAL_KICK SIGUSR1

static void on_kick(int signal)
{
    (void)signal;
}

static int kick_prepare(struct error *err)
{
    struct sigaction action = {.sa_handler = on_kick}; /* no SA_RESTART */
    return sigaction(SIGNAL_KICK, &action, NULL) < 0 ? error_errno(err, -errno, "cannot catch signals") : 0;
}

/* ---- exits ---- */

static void exit_port(struct vcpu *v)
{
    struct kvm_run *run = v->kvm.run;
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    unsigned size = run->io.size;
    __atomic_fetch_add(&v->counters.port_exits, 1, __ATOMIC_RELAXED);
    for (uint32_t i = 0; i < run->io.count; i++, data += size) {
        uint64_t value = 0;
        if (run->io.direction == KVM_EXIT_IO_OUT) {
            memcpy(&value, data, size);
            bus_write(v->set->ports, run->io.port, size, value);
        } else {
            value = bus_read(v->set->ports, run->io.port, size);
            memcpy(data, &value, size);
        }
    }
}

/* Accesses of 1, 2, 4 and 8 bytes go as they are; a guest may make others, which go byte by byte. */
static void exit_memory(struct vcpu *v)
{
    struct kvm_run *run = v->kvm.run;
    unsigned size = MIN(run->mmio.len, sizeof(run->mmio.data));
    bool whole = size == 1 || size == 2 || size == 4 || size == 8;
    unsigned step = whole ? size : 1;
    __atomic_fetch_add(&v->counters.memory_exits, 1, __ATOMIC_RELAXED);
    for (unsigned at = 0; at < size; at += step) {
        uint64_t value = 0;
        if (run->mmio.is_write) {
            memcpy(&value, run->mmio.data + at, step);
            bus_write(v->set->memory, run->mmio.phys_addr + at, step, value);
        } else {
            value = bus_read(v->set->memory, run->mmio.phys_addr + at, step);
            memcpy(run->mmio.data + at, &value, step);
        }
    }
}

static void vcpu_report(struct vcpu *v, enum vcpu_event event, const char *why)
{
    vcpu_set_hold(v->set, VCPU_HOLD_EVENT, false);
    v->set->event(v->set->event_arg, event, why);
}

static void failure_report(struct vcpu *v, const char *what, uint64_t detail)
{
    struct kvm_regs regs = {0};
    char why[160];
    (void)kvm_vcpu_get_regs(&v->kvm, &regs, NULL); /* for the message; zeros will do */
    snprintf(why, sizeof(why), "vCPU %u: %s (%#llx) at rip %#llx", v->kvm.id, what, (unsigned long long)detail,
             (unsigned long long)regs.rip);
    vcpu_report(v, VCPU_EVENT_FAILURE, why);
}

static void exit_handle(struct vcpu *v)
{
    struct kvm_run *run = v->kvm.run;
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        exit_port(v);
        break;
    case KVM_EXIT_MMIO:
        exit_memory(v);
        break;
    case KVM_EXIT_INTR:
        break;
    case KVM_EXIT_SHUTDOWN:
        vcpu_report(v, VCPU_EVENT_TRIPLE_FAULT, "triple fault");
        break;
    case KVM_EXIT_FAIL_ENTRY:
        failure_report(v, "the processor refused to enter the guest", run->fail_entry.hardware_entry_failure_reason);
        break;
    case KVM_EXIT_INTERNAL_ERROR:
        failure_report(v, "KVM could not go on", run->internal.suberror);
        break;
    default:
        failure_report(v, "an exit that is not known here", run->exit_reason);
        break;
    }
}

/* ---- the thread ---- */

/* Run until kicked. A kick that comes before KVM_RUN is not lost: immediate_exit makes it return at
 * once, after completing the access that the last exit was about. */
static void vcpu_run(struct vcpu *v)
{
    while (true) {
        int code = kvm_vcpu_run(&v->kvm);
        __atomic_fetch_add(&v->counters.exits, 1, __ATOMIC_RELAXED);
        if (code == 0) {
            exit_handle(v);
        } else if (code == -EINTR || code == -EAGAIN) {
            return; /* to the one place that looks at `holds` and clears immediate_exit */
        } else {
            failure_report(v, "KVM_RUN failed", (uint64_t)-code);
            return;
        }
    }
}

static void *vcpu_main(void *arg)
{
    struct vcpu *v = arg;
    struct vcpu_set *set = v->set;
    char name[16];
    /* By itself: naming another thread takes /proc, which the jail has not. Agents know vCPUs by it (vmm_process.h). */
    snprintf(name, sizeof(name), "vcpu%u", (unsigned)(v - set->vcpus));
    pthread_setname_np(pthread_self(), name);
    sandbox_enter_or_end(set->sandbox, SANDBOX_VCPU);
    pthread_mutex_lock(&set->lock);
    while (true) {
        v->parked = true;
        pthread_cond_broadcast(&set->changed);
        while ((set->holds || v->slowed) && !set->ending)
            pthread_cond_wait(&set->changed, &set->lock);
        if (set->ending)
            break;
        v->parked = false;
        v->kvm.run->immediate_exit = 0;
        pthread_mutex_unlock(&set->lock);
        vcpu_run(v);
        pthread_mutex_lock(&set->lock);
    }
    pthread_mutex_unlock(&set->lock);
    return NULL;
}

/* With set->lock held. */
static void kick_all(struct vcpu_set *set)
{
    for (unsigned i = 0; i < set->count; i++) {
        struct vcpu *v = &set->vcpus[i];
        if (!v->started || v->parked)
            continue;
        v->kvm.run->immediate_exit = 1;
        pthread_kill(v->thread, SIGNAL_KICK);
    }
}

static bool all_parked_but_self(struct vcpu_set *set)
{
    for (unsigned i = 0; i < set->count; i++)
        if (set->vcpus[i].started && !set->vcpus[i].parked && !pthread_equal(set->vcpus[i].thread, pthread_self()))
            return false;
    return true;
}

void vcpu_set_hold(struct vcpu_set *set, unsigned reason, bool wait)
{
    pthread_mutex_lock(&set->lock);
    __atomic_store_n(&set->holds, set->holds | reason, __ATOMIC_RELEASE);
    kick_all(set);
    while (wait && !all_parked_but_self(set))
        pthread_cond_wait(&set->changed, &set->lock);
    pthread_mutex_unlock(&set->lock);
}

/* Those that are not, a bit for each. */
static uint64_t not_at_rest(struct vcpu_set *set, const struct guest_memory *memory)
{
    uint64_t bits = 0;
    for (unsigned i = 0; i < set->count; i++)
        if (vcpu_state_may_lack_breakpoint(&set->vcpus[i].kvm, memory))
            bits |= UINT64_C(1) << i;
    return bits;
}

/* Has it got anywhere, or had the time to? On a busy host it may be long before its thread runs at all. */
static bool has_moved(struct vcpu_set *set, unsigned i, uint64_t exits_before, unsigned *running)
{
    struct vcpu *v = &set->vcpus[i];
    pthread_mutex_lock(&set->lock);
    bool parked = v->parked;
    pthread_mutex_unlock(&set->lock);
    *running += !parked;
    return __atomic_load_n(&v->counters.exits, __ATOMIC_RELAXED) != exits_before || *running > VCPU_REST_LOOKS_RUNNING;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Let them run until each of @vcpus has moved. */
static void run_on(struct vcpu_set *set, unsigned reason, uint64_t vcpus, uint64_t until_ns)
{
    const struct timespec moment = {.tv_nsec = VCPU_REST_NS};
    uint64_t exits[KVM_VCPUS_MAX];
    unsigned running[KVM_VCPUS_MAX] = {0};
    for (unsigned i = 0; i < set->count; i++)
        exits[i] = __atomic_load_n(&set->vcpus[i].counters.exits, __ATOMIC_RELAXED);
    vcpu_set_slow(set, 0); /* whoever slows it down does so again */
    vcpu_set_release(set, reason);
    while (vcpus != 0 && now_ns() < until_ns) {
        nanosleep(&moment, NULL);
        for (unsigned i = 0; i < set->count; i++)
            if (vcpus >> i & 1 && has_moved(set, i, exits[i], &running[i]))
                vcpus &= ~(UINT64_C(1) << i);
    }
}

/* Where it stops is by chance: soon it is another place. */
void vcpu_set_hold_at_rest(struct vcpu_set *set, unsigned reason, const struct guest_memory *memory)
{
    uint64_t vcpus, until_ns = now_ns() + (uint64_t)set->rest_ms * 1000000u;
    bool is_held = false;
    vcpu_set_hold(set, reason, true);
    while ((vcpus = not_at_rest(set, memory)) != 0 && now_ns() < until_ns) {
        if ((is_held = vcpu_set_holds(set) & ~reason))
            break;
        run_on(set, reason, vcpus, until_ns);
        vcpu_set_hold(set, reason, true);
    }
    if (vcpus != 0)
        log_warning("vcpu-behind-breakpoint", "held=%d why=\"a breakpoint that KVM keeps to itself may be lost if it is saved now\"",
                    is_held);
}

void vcpu_set_slow(struct vcpu_set *set, uint64_t vcpus)
{
    pthread_mutex_lock(&set->lock);
    for (unsigned i = 0; i < set->count; i++) {
        struct vcpu *v = &set->vcpus[i];
        v->slowed = vcpus >> i & 1;
        if (v->slowed && v->started && !v->parked) {
            v->kvm.run->immediate_exit = 1;
            pthread_kill(v->thread, SIGNAL_KICK);
        }
    }
    pthread_cond_broadcast(&set->changed);
    pthread_mutex_unlock(&set->lock);
}

void vcpu_set_release(struct vcpu_set *set, unsigned reason)
{
    pthread_mutex_lock(&set->lock);
    __atomic_store_n(&set->holds, set->holds & ~reason, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&set->changed);
    pthread_mutex_unlock(&set->lock);
}

unsigned vcpu_set_holds(struct vcpu_set *set)
{
    return __atomic_load_n(&set->holds, __ATOMIC_ACQUIRE);
}

int vcpu_set_clock_paused(struct vcpu_set *set, struct error *err)
{
    int code = 0;
    for (unsigned i = 0; code == 0 && i < set->count; i++)
        code = kvm_vcpu_clock_paused(&set->vcpus[i].kvm, err);
    return code;
}

/* ---- creation and reset ---- */

struct cpuid_options vcpu_cpuid_options(const struct vcpu_set *set, struct kvm *kvm)
{
    return (struct cpuid_options){
        .vcpus = set->count, .tsc_deadline = kvm_has_tsc_deadline(kvm), .invariant_tsc = kvm->can_scale_tsc,
        .hide_x2apic = set->hide_x2apic};
}

static int vcpu_create(struct vcpu_set *set, struct kvm *kvm, const struct kvm_cpuid2 *offered, unsigned id,
                       struct error *err)
{
    struct vcpu *v = &set->vcpus[id];
    size_t cpuid_bytes = sizeof(*offered) + KVM_CPUID_ENTRIES_MAX * sizeof(offered->entries[0]);
    CLEANUP_FREE struct kvm_cpuid2 *cpuid = xcalloc(1, cpuid_bytes);
    struct cpuid_options options = vcpu_cpuid_options(set, kvm);
    int code = kvm_vcpu_init(&v->kvm, kvm, id, err);
    if (code < 0)
        return code;
    memcpy(cpuid, offered, cpuid_bytes);
    vcpu_cpuid_fix(cpuid, &options, id);
    code = kvm_vcpu_set_cpuid(&v->kvm, cpuid, err);
    v->cpuid = TAKE_PTR(cpuid);
    if (code == 0 && id == 0)
        code = vcpu_msrs_find(&v->kvm, set->msrs, err);
    if (code == 0)
        code = vcpu_state_get(&v->kvm, set->msrs, &v->initial, err);
    return code;
}

/* What KVM offers here, and what of it the guest sees. */
static int cpuid_make(struct vcpu_set *set, struct kvm *kvm, const struct cpu_model *model,
                      struct kvm_cpuid2 *ret_shown, struct error *err)
{
    size_t bytes = sizeof(*ret_shown) + KVM_CPUID_ENTRIES_MAX * sizeof(ret_shown->entries[0]);
    set->offered = xcalloc(1, bytes);
    int code = kvm_cpuid_supported(kvm, set->offered, err);
    if (code < 0)
        return code;
    memcpy(ret_shown, set->offered, bytes);
    return cpu_model_apply(model, ret_shown, err);
}

int vcpu_set_init(struct vcpu_set *set, struct kvm *kvm, unsigned count, const struct cpu_model *model,
                  bool hide_x2apic, struct bus *ports, struct bus *memory, vcpu_event_fn event, void *event_arg,
                  struct error *err)
{
    ASSERT(count >= 1 && count <= KVM_VCPUS_MAX);
    *set = (struct vcpu_set){
        .ports = ports, .memory = memory, .event = event, .event_arg = event_arg, .holds = VCPU_HOLD_START,
        .hide_x2apic = hide_x2apic, .rest_ms = VCPU_REST_MS};
    pthread_mutex_init(&set->lock, NULL);
    pthread_cond_init(&set->changed, NULL);
    set->msrs = xcalloc(1, sizeof(*set->msrs) + KVM_MSRS_MAX * sizeof(set->msrs->indices[0]));
    set->count = count;
    for (unsigned i = 0; i < count; i++) {
        set->vcpus[i].set = set;
        set->vcpus[i].kvm.fd = -1;
    }
    CLEANUP_FREE struct kvm_cpuid2 *shown =
        xcalloc(1, sizeof(*shown) + KVM_CPUID_ENTRIES_MAX * sizeof(shown->entries[0]));
    int code = kick_prepare(err);
    if (code == 0)
        code = cpuid_make(set, kvm, model, shown, err);
    for (unsigned i = 0; code == 0 && i < count; i++)
        code = vcpu_create(set, kvm, shown, i, err);
    if (code < 0)
        vcpu_set_finish(set);
    return code;
}

void vcpu_set_finish(struct vcpu_set *set)
{
    pthread_mutex_lock(&set->lock);
    set->ending = true;
    __atomic_store_n(&set->holds, set->holds | VCPU_HOLD_START, __ATOMIC_RELEASE);
    kick_all(set);
    pthread_cond_broadcast(&set->changed);
    pthread_mutex_unlock(&set->lock);
    for (unsigned i = 0; i < set->count; i++) {
        struct vcpu *v = &set->vcpus[i];
        if (v->started)
            pthread_join(v->thread, NULL);
        vcpu_state_finish(&v->initial);
        free(v->cpuid);
        kvm_vcpu_finish(&v->kvm);
    }
    set->count = 0;
    free(set->msrs);
    free(set->offered);
    set->msrs = NULL;
    set->offered = NULL;
    pthread_cond_destroy(&set->changed);
    pthread_mutex_destroy(&set->lock);
}

int vcpu_set_start(struct vcpu_set *set, struct error *err)
{
    for (unsigned i = 0; i < set->count; i++) {
        struct vcpu *v = &set->vcpus[i];
        int code = pthread_create(&v->thread, NULL, vcpu_main, v);
        if (code)
            return error_errno(err, -code, "cannot start the thread of vCPU %u", i);
        v->started = true;
    }
    vcpu_set_hold(set, 0, true);
    return 0;
}

/* The boot processor's registers at the kernel's entry; segments are flat, interrupts off. */
static void entry_apply(struct vcpu_state *s, const struct boot_entry *entry)
{
    bool is_long = entry->mode == BOOT_LONG;
    struct kvm_segment code = {.limit = 0xffffffff, .selector = 0x10, .type = 11, .present = 1, .s = 1, .g = 1};
    code.db = !is_long;
    code.l = is_long;
    struct kvm_segment data = code;
    data.type = 3;
    data.selector = 0x18;
    data.db = 1;
    data.l = 0;
    s->sregs.cs = code;
    s->sregs.ds = s->sregs.es = s->sregs.fs = s->sregs.gs = s->sregs.ss = data;
    s->sregs.tr = (struct kvm_segment){.limit = 0x67, .type = 11, .present = 1};
    s->sregs.gdt = (struct kvm_dtable){.base = PC1_GDT, .limit = is_long ? 31 : 0};
    s->sregs.idt = (struct kvm_dtable){.base = 0, .limit = 0};
    s->sregs.cr0 = 0x11; /* PE, ET */
    s->sregs.cr4 = 0;
    s->sregs.efer = 0;
    if (is_long) {
        s->sregs.cr0 = 0x80000011; /* PG */
        s->sregs.cr3 = PC1_PAGE_TABLES;
        s->sregs.cr4 = 0x20;   /* PAE */
        s->sregs.efer = 0x500; /* LME, LMA */
    }
    s->regs = (struct kvm_regs){
        .rip = entry->rip, .rsi = entry->rsi, .rax = entry->rax, .rbx = entry->rbx, .rsp = entry->rsp, .rflags = 2};
}

/* Written one after the other through their MSR the TSCs would differ by the time that took, wherever KVM does not
 * see through it; guests look for that, and give the TSC up. */
static int tscs_align(struct vcpu_set *set, struct error *err)
{
    uint64_t offset;
    int code = kvm_vcpu_get_tsc_offset(&set->vcpus[0].kvm, &offset, err);
    for (unsigned i = 1; code == 0 && i < set->count; i++)
        code = kvm_vcpu_set_tsc_offset(&set->vcpus[i].kvm, offset, err);
    return code == -ENOTSUP ? 0 : code;
}

int vcpu_set_reset(struct vcpu_set *set, const struct boot_entry *entry, struct error *err)
{
    for (unsigned i = 0; i < set->count; i++) {
        struct vcpu *v = &set->vcpus[i];
        struct vcpu_state state = v->initial; /* borrows its buffers: not finished */
        state.mp_state.mp_state = i == 0 ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_UNINITIALIZED;
        if (i == 0 && entry->mode != BOOT_RESET_VECTOR)
            entry_apply(&state, entry);
        int code = vcpu_state_set(&v->kvm, &state, err);
        if (code < 0) {
            error_prefix(err, "vCPU %u: ", i);
            return code;
        }
    }
    return tscs_align(set, err);
}

struct vcpu_counters vcpu_set_counters(struct vcpu_set *set)
{
    struct vcpu_counters sum = {0};
    for (unsigned i = 0; i < set->count; i++) {
        struct vcpu_counters *c = &set->vcpus[i].counters;
        sum.exits += __atomic_load_n(&c->exits, __ATOMIC_RELAXED);
        sum.port_exits += __atomic_load_n(&c->port_exits, __ATOMIC_RELAXED);
        sum.memory_exits += __atomic_load_n(&c->memory_exits, __ATOMIC_RELAXED);
    }
    return sum;
}
