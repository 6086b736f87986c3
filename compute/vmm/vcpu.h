/* The vCPU threads of a machine, and stopping and going on of all of them together.
 *
 * vCPUs run while nobody holds them. Each reason to stand still is a bit of its own, so that a user's pause, a lease
 * that has run out and a reset under way do not undo one another:
 *
 *                     hold == 0
 *          PARKED ----------------> RUNNING       a kick (signal + immediate_exit) ends KVM_RUN after the exit under
 *             ^                        |          way is complete: a parked vCPU has no port or memory access pending
 *             +------ hold != 0 -------+
 *
 * Threads: hold, release and wait from any thread that does NOT hold the device lock (a vCPU may be waiting for it);
 * vcpu_set_hold without waiting from everywhere. */
#ifndef COMPUTE_VMM_VCPU_H
#define COMPUTE_VMM_VCPU_H

#include <pthread.h>

#include "compute/vmm/boot.h"
#include "compute/vmm/bus.h"
#include "compute/vmm/cpu_model.h"
#include "compute/vmm/kvm.h"
#include "compute/vmm/sandbox.h"
#include "compute/vmm/vcpu_cpuid.h"
#include "compute/vmm/vcpu_state.h"

enum vcpu_hold {
    VCPU_HOLD_START = 1 << 0,   /* not started yet */
    VCPU_HOLD_USER = 1 << 1,    /* paused by request */
    VCPU_HOLD_LEASE = 1 << 2,   /* the lease is about to run out */
    VCPU_HOLD_EVENT = 1 << 3,   /* reset, power-off or failure is being dealt with */
    VCPU_HOLD_MIGRATE = 1 << 4, /* state is being taken out or put in */
    VCPU_HOLD_DISK = 1 << 5,    /* a disk failed and its policy is to pause */
    VCPU_HOLD_UNPLUG = 1 << 6,  /* a device is being taken away, for a moment */
};

/* Why a vCPU stopped by itself; reported on its own thread, after all vCPUs were told to hold (VCPU_HOLD_EVENT). */
enum vcpu_event { VCPU_EVENT_TRIPLE_FAULT, VCPU_EVENT_FAILURE };
typedef void (*vcpu_event_fn)(void *arg, enum vcpu_event event, const char *why);

struct vcpu_counters {
    uint64_t exits, port_exits, memory_exits; /* relaxed atomics, for statistics */
};

struct vcpu_set;
struct vcpu {
    struct vcpu_set *set;
    struct kvm_vcpu kvm;
    struct vcpu_state initial; /* at power-on, for reset */
    struct kvm_cpuid2 *cpuid;  /* what it sees of the processor; owned */
    pthread_t thread;
    bool started, parked;
    bool slowed; /* held by vcpu_set_slow; guarded by the set's lock */
    struct vcpu_counters counters;
};

struct vcpu_set {
    struct bus *ports, *memory;
    vcpu_event_fn event;
    void *event_arg;
    const struct sandbox *sandbox; /* of the threads; set before vcpu_set_start; borrowed */
    pthread_mutex_t lock; /* guards holds, ending and every `parked` */
    pthread_cond_t changed;
    unsigned holds; /* bits of enum vcpu_hold */
    bool ending;
    bool hide_x2apic; /* from the guest */
    unsigned rest_ms; /* limit of vcpu_set_hold_at_rest */
    unsigned count;
    struct kvm_msr_list *msrs;  /* that make up a vCPU's state here */
    struct kvm_cpuid2 *offered; /* what this host can show a guest; owned */
    struct vcpu vcpus[KVM_VCPUS_MAX];
};

/* Creates @count vCPUs with the CPUID of @model, without x2APIC if it is to be hidden, and remembers their state at
 * power-on. */
int vcpu_set_init(struct vcpu_set *set, struct kvm *kvm, unsigned count, const struct cpu_model *model,
                  bool hide_x2apic, struct bus *ports, struct bus *memory, vcpu_event_fn event, void *event_arg,
                  struct error *err);
/* How the CPUID of a vCPU of this set is put right. */
struct cpuid_options vcpu_cpuid_options(const struct vcpu_set *set, struct kvm *kvm);
/* Ends the threads. */
void vcpu_set_finish(struct vcpu_set *set);
/* Start the threads, parked (VCPU_HOLD_START). */
int vcpu_set_start(struct vcpu_set *set, struct error *err);

/* Add @reason; with @wait return when every vCPU is parked. Never waits for the calling thread itself. */
void vcpu_set_hold(struct vcpu_set *set, unsigned reason, bool wait);
/* The same, waiting, for a state that is to be saved: a vCPU that stands where it would lack something (see
 * vcpu_state_may_lack_breakpoint) runs on for a moment first, unless it is held for another reason as well. After
 * set->rest_ms, for all vCPUs together, they are held where they are, which is logged. */
void vcpu_set_hold_at_rest(struct vcpu_set *set, unsigned reason, const struct guest_memory *memory);
#define VCPU_REST_MS 1000u           /* rest_ms, where nobody has set another */
#define VCPU_REST_NS 50000u          /* between two looks at whether it has moved */
#define VCPU_REST_LOOKS_RUNNING 20u  /* after so many of them, or its first exit, it is stopped again */
void vcpu_set_release(struct vcpu_set *set, unsigned reason);
/* Let only these stand still from now on, a bit for each of them, beside what holds all; does not wait. */
void vcpu_set_slow(struct vcpu_set *set, uint64_t vcpus);
unsigned vcpu_set_holds(struct vcpu_set *set);
/* All parked, about to go on: tell a guest with kvmclock that it stood still, so that its watchdogs know. */
int vcpu_set_clock_paused(struct vcpu_set *set, struct error *err);

/* All parked: back to power-on, the first vCPU at @entry, the others waiting for INIT and SIPI. */
int vcpu_set_reset(struct vcpu_set *set, const struct boot_entry *entry, struct error *err);
struct vcpu_counters vcpu_set_counters(struct vcpu_set *set);

#endif
