/* All that KVM holds of one vCPU, taken out and put back in the order that works (reference order: MP_STATE first on
 * the way out, events last; on the way in LAPIC before the MSRs, the deadline timer after the TSC, events last).
 *
 * Used for reset (the state at power-on is put back) and for moving a VM. Only while the vCPU's thread stands still.
 */
#ifndef COMPUTE_VMM_VCPU_STATE_H
#define COMPUTE_VMM_VCPU_STATE_H

#include "compute/vmm/kvm.h"

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
};

/* @msrs: those to take (vcpu_msrs_find). *ret_state needs vcpu_state_finish, on success only. */
int vcpu_state_get(struct kvm_vcpu *vcpu, const struct kvm_msr_list *msrs, struct vcpu_state *ret_state,
                   struct error *err);
int vcpu_state_set(struct kvm_vcpu *vcpu, const struct vcpu_state *state, struct error *err);
void vcpu_state_finish(struct vcpu_state *state);

/* KVM's list of MSRs less those that this host will not read and write back. @ret_msrs has room for KVM_MSRS_MAX. */
int vcpu_msrs_find(struct kvm_vcpu *vcpu, struct kvm_msr_list *ret_msrs, struct error *err);

#endif
