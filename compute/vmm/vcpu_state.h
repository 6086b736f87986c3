/* All that KVM holds of one vCPU, taken out and put back in the order that works (reference order: MP_STATE first on
 * the way out, events last; on the way in LAPIC before the MSRs, the deadline timer after the TSC, events last).
 *
 * Used for reset (the state at power-on is put back) and for moving a VM. Only while the vCPU's thread stands still.
 */
#ifndef COMPUTE_VMM_VCPU_STATE_H
#define COMPUTE_VMM_VCPU_STATE_H

#include "common/bytes.h"
#include "compute/vmm/kvm.h"
#include "compute/vmm/memory.h"

struct vcpu_state {
    struct kvm_mp_state mp_state;
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_xcrs xcrs;
    struct kvm_debugregs debugregs;
    struct kvm_lapic_state lapic;
    struct kvm_vcpu_events events;
    uint32_t xsave_bytes;
    void *xsave;           /* owned */
    struct kvm_msrs *msrs; /* owned */
    void *nested;          /* owned; NULL where this host has no nested state */
    uint32_t tsc_khz;      /* rate of the guest's TSC */
    bool has_tsc_offset;   /* some hosts do not tell */
    uint64_t tsc_offset;   /* guest's TSC less the host's */
};

/* @msrs: those to take (vcpu_msrs_find). *ret_state needs vcpu_state_finish, on success only. */
int vcpu_state_get(struct kvm_vcpu *vcpu, const struct kvm_msr_list *msrs, struct vcpu_state *ret_state,
                   struct error *err);
/* KVM does not hand out a breakpoint (INT3) that it has still to give to the guest, for it expects RIP to be at the
 * instruction, which would then be met again. Some KVMs (those that run guests without the processor's help) have RIP behind
 * it: whoever saves such a vCPU loses the breakpoint. Does it stand behind one, so that nobody can tell? Then it has to run on
 * a little before it is saved (vcpu_set_hold_at_rest). */
bool vcpu_state_may_lack_breakpoint(struct kvm_vcpu *vcpu, const struct guest_memory *memory);
/* All of it but the rate and offset of the TSC, which stay. */
int vcpu_state_set(struct kvm_vcpu *vcpu, const struct vcpu_state *state, struct error *err);
/* The same in two steps, for a vCPU that is put right in between (its TSC): all but the deadline timer, then that. */
int vcpu_state_set_unarmed(struct kvm_vcpu *vcpu, const struct vcpu_state *state, struct error *err);
int vcpu_state_arm(struct kvm_vcpu *vcpu, const struct vcpu_state *state, struct error *err);
void vcpu_state_finish(struct vcpu_state *state);
/* The value of MSR @index in @state, or NULL. */
uint64_t *vcpu_state_msr(const struct vcpu_state *state, uint32_t index);

/* As bytes of a stream, and back: pieces of u16 kind, u16 0, u32 bytes, and what KVM calls a struct; MSRs as u32
 * index, u32 0, u64 value each. @cpuid is what the vCPU sees of the processor.
 * decode: -EBADMSG in words; on success *ret_state needs vcpu_state_finish, and *ret_cpuid free(). */
#define VCPU_STATE_VERSION 1
void vcpu_state_encode(const struct vcpu_state *state, const struct kvm_cpuid2 *cpuid, struct bytes_writer *out);
int vcpu_state_decode(struct bytes_reader *in, struct vcpu_state *ret_state, struct kvm_cpuid2 **ret_cpuid,
                      struct error *err);

/* KVM's list of MSRs less those that this host will not read and write back. @ret_msrs has room for KVM_MSRS_MAX. */
#define VCPU_MSR_TSC 0x10u
#define VCPU_MSR_TSC_DEADLINE 0x6e0u
int vcpu_msrs_find(struct kvm_vcpu *vcpu, struct kvm_msr_list *ret_msrs, struct error *err);

#endif
