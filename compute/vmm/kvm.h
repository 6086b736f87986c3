/* Every ioctl on /dev/kvm, its VMs and vCPUs; nothing else, and nowhere else. Each failed call is an error in words.
 *
 * struct kvm is one VM. It is an irq_chip (irq.h) too: GSI routes, irqfds and doorbells end here. Functions on a
 * vCPU are for the thread that runs it, or for anybody while that thread stands still. */
#ifndef COMPUTE_VMM_KVM_H
#define COMPUTE_VMM_KVM_H

#include <linux/kvm.h>
#include <pthread.h>

#include "common/base.h"
#include "common/error.h"
#include "compute/vmm/irq.h"

#define KVM_VCPUS_MAX 64u /* of one VM; as in the schema */
#define KVM_CPUID_ENTRIES_MAX 256u
#define KVM_MSRS_MAX 512u
#define KVM_RESERVED_GPA 0xfeffc000ull /* four pages that KVM uses itself on some processors */
#define KVM_RESERVED_BYTES 0x4000ull

struct kvm_route {
    bool used;
    uint64_t address;
    uint32_t data;
};

struct accel_none;

struct kvm {
    struct irq_chip irq; /* first: the vtable's functions find the VM by it */
    int device_fd, vm_fd;
    struct accel_none *none; /* answers instead of the two (accel_none.h); NULL: KVM does */
    size_t run_bytes;      /* of struct kvm_run's mapping */
    uint32_t xsave_bytes;  /* of the state that GET_XSAVE2 gives */
    uint32_t nested_bytes; /* of the largest nested state; 0: none */
    bool manual_dirty_log; /* pages are protected again by kvm_dirty_log_clear, not by _get */
    bool can_scale_tsc;
    pthread_mutex_t routes_lock; /* the table is rewritten as a whole by every change */
    struct kvm_route routes[IRQ_GSI_MAX];
};

struct kvm_vcpu {
    struct kvm *kvm;
    int fd;
    uint32_t id; /* APIC id */
    struct kvm_run *run;
    int stats_fd;             /* KVM's counters of it; -1: this host has none */
    uint64_t faults_offset[2]; /* of the two that count faults for which memory was mapped or made writable */
};

/* Opens /dev/kvm, checks what pc-1 needs, makes a VM with in-kernel PIC, IOAPIC, LAPICs and PIT. Or has @none play KVM's
 * part, which is the VM's from then on, also after a failure. */
int kvm_init(struct kvm *kvm, struct accel_none *none, struct error *err);
void kvm_finish(struct kvm *kvm);

/* Guest memory. @flags: KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY or 0. Setting a slot again changes its flags. */
int kvm_memory_set(struct kvm *kvm, uint32_t slot, uint64_t gpa, uint64_t size, void *host, uint32_t flags,
                   struct error *err);
/* One bit per page of the slot, written since the last fetch; without manual_dirty_log also clears. */
int kvm_dirty_log_get(struct kvm *kvm, uint32_t slot, uint64_t *bitmap, struct error *err);
/* Protect @pages from @first (both multiples of 64) again where @bitmap says; needs manual_dirty_log. */
int kvm_dirty_log_clear(struct kvm *kvm, uint32_t slot, uint64_t first, uint32_t pages, uint64_t *bitmap,
                        struct error *err);

/* What this host can show a guest; @ret_cpuid has room for KVM_CPUID_ENTRIES_MAX entries. */
int kvm_cpuid_supported(struct kvm *kvm, struct kvm_cpuid2 *ret_cpuid, struct error *err);
/* MSRs that make up a vCPU's state; @ret_list has room for KVM_MSRS_MAX. */
int kvm_msr_list(struct kvm *kvm, struct kvm_msr_list *ret_list, struct error *err);
/* Bits of a guest-physical address that the processor here has. */
unsigned kvm_address_bits(struct kvm *kvm);
bool kvm_has_tsc_deadline(struct kvm *kvm);

int kvm_vcpu_init(struct kvm_vcpu *vcpu, struct kvm *kvm, uint32_t id, struct error *err);
void kvm_vcpu_finish(struct kvm_vcpu *vcpu);
/* Run until something happens. 0, or negative errno: -EINTR when kicked. The exit is in vcpu->run. */
int kvm_vcpu_run(struct kvm_vcpu *vcpu);

/* How often KVM has mapped a page for this vCPU or made one writable, while it runs: with the dirty log on about once for
 * each page that it writes first, but on processors that log writes themselves (PML). 0: this host does not tell. Any
 * thread. */
uint64_t kvm_vcpu_faults(const struct kvm_vcpu *vcpu);

/* One pair for each piece of state: kvm_vcpu_get_regs(vcpu, &regs, err), kvm_vcpu_set_regs(vcpu, &regs, err)... */
#define KVM_VCPU_STATE(X)                                                                                            \
    X(regs, struct kvm_regs, REGS)                                                                                   \
    X(sregs, struct kvm_sregs, SREGS)                                                                                \
    X(xcrs, struct kvm_xcrs, XCRS)                                                                                   \
    X(debugregs, struct kvm_debugregs, DEBUGREGS)                                                                    \
    X(lapic, struct kvm_lapic_state, LAPIC)                                                                          \
    X(mp_state, struct kvm_mp_state, MP_STATE)                                                                       \
    X(events, struct kvm_vcpu_events, VCPU_EVENTS)
#define X(name, type, request)                                                                                       \
    int kvm_vcpu_get_##name(struct kvm_vcpu *vcpu, type *ret_##name, struct error *err);                             \
    int kvm_vcpu_set_##name(struct kvm_vcpu *vcpu, const type *name, struct error *err);
KVM_VCPU_STATE(X)
#undef X
/* @xsave: kvm->xsave_bytes of memory. */
int kvm_vcpu_get_xsave(struct kvm_vcpu *vcpu, void *xsave, struct error *err);
int kvm_vcpu_set_xsave(struct kvm_vcpu *vcpu, const void *xsave, struct error *err);
int kvm_vcpu_set_cpuid(struct kvm_vcpu *vcpu, const struct kvm_cpuid2 *cpuid, struct error *err);
/* All of @msrs or an error that names the first that was refused. */
int kvm_vcpu_get_msrs(struct kvm_vcpu *vcpu, struct kvm_msrs *msrs, struct error *err);
int kvm_vcpu_set_msrs(struct kvm_vcpu *vcpu, const struct kvm_msrs *msrs, struct error *err);
int kvm_vcpu_get_tsc_khz(struct kvm_vcpu *vcpu, uint32_t *ret_khz, struct error *err);
int kvm_vcpu_set_tsc_khz(struct kvm_vcpu *vcpu, uint32_t khz, struct error *err);
/* Where the guest's tables have @address; -ENOENT, without words: nowhere. */
int kvm_vcpu_translate(struct kvm_vcpu *vcpu, uint64_t address, uint64_t *ret_gpa, struct error *err);
/* Tell a guest with kvmclock that it was stopped; not using kvmclock is no error. */
int kvm_vcpu_clock_paused(struct kvm_vcpu *vcpu, struct error *err);

/* What is added to the host's TSC; -ENOTSUP, without words, where this host's KVM has no such attribute. */
int kvm_vcpu_get_tsc_offset(struct kvm_vcpu *vcpu, uint64_t *ret_offset, struct error *err);
int kvm_vcpu_set_tsc_offset(struct kvm_vcpu *vcpu, uint64_t offset, struct error *err);
/* State of a guest within the guest: kvm->nested_bytes of memory (0: there is no such thing here). */
int kvm_vcpu_get_nested(struct kvm_vcpu *vcpu, void *nested, struct error *err);
int kvm_vcpu_set_nested(struct kvm_vcpu *vcpu, const void *nested, struct error *err);

/* State of the VM as a whole. @chip_id: KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE, _IOAPIC. */
int kvm_get_irqchip(struct kvm *kvm, uint32_t chip_id, struct kvm_irqchip *ret_chip, struct error *err);
int kvm_set_irqchip(struct kvm *kvm, const struct kvm_irqchip *chip, struct error *err);
int kvm_get_pit(struct kvm *kvm, struct kvm_pit_state2 *ret_pit, struct error *err);
int kvm_set_pit(struct kvm *kvm, const struct kvm_pit_state2 *pit, struct error *err);
int kvm_get_clock(struct kvm *kvm, struct kvm_clock_data *ret_clock, struct error *err);
int kvm_set_clock(struct kvm *kvm, const struct kvm_clock_data *clock, struct error *err);

#endif
