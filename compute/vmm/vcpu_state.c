/* Order matters here more than anywhere else; vcpu_state.h says which and the comments below why. */
#include "compute/vmm/vcpu_state.h"

#include <errno.h>
#include <string.h>

#define MSR_TSC 0x10u
#define MSR_TSC_DEADLINE 0x6e0u

static struct kvm_msrs *msrs_new(uint32_t room)
{
    return xcalloc(1, sizeof(struct kvm_msrs) + room * sizeof(struct kvm_msr_entry));
}

int vcpu_msrs_find(struct kvm_vcpu *vcpu, struct kvm_msr_list *ret_msrs, struct error *err)
{
    CLEANUP_FREE struct kvm_msr_list *all = xcalloc(1, sizeof(*all) + KVM_MSRS_MAX * sizeof(all->indices[0]));
    CLEANUP_FREE struct kvm_msrs *one = msrs_new(1);
    int code = kvm_msr_list(vcpu->kvm, all, err);
    if (code < 0)
        return code;
    ret_msrs->nmsrs = 0;
    for (uint32_t i = 0; i < all->nmsrs; i++) {
        one->nmsrs = 1;
        one->entries[0] = (struct kvm_msr_entry){.index = all->indices[i]};
        if (kvm_vcpu_get_msrs(vcpu, one, NULL) == 0 && kvm_vcpu_set_msrs(vcpu, one, NULL) == 0)
            ret_msrs->indices[ret_msrs->nmsrs++] = all->indices[i];
    }
    return 0;
}

static int state_get(struct kvm_vcpu *vcpu, struct vcpu_state *s, struct error *err)
{
    int code;
    /* GET_MP_STATE lets pending INIT and SIPI take effect, which changes registers: so it comes first. */
    if ((code = kvm_vcpu_get_mp_state(vcpu, &s->mp_state, err)) < 0 ||
        (code = kvm_vcpu_get_regs(vcpu, &s->regs, err)) < 0 ||
        (code = kvm_vcpu_get_sregs(vcpu, &s->sregs, err)) < 0 ||
        (code = kvm_vcpu_get_xsave(vcpu, s->xsave, err)) < 0 || (code = kvm_vcpu_get_xcrs(vcpu, &s->xcrs, err)) < 0 ||
        (code = kvm_vcpu_get_debugregs(vcpu, &s->debugregs, err)) < 0 ||
        (code = kvm_vcpu_get_lapic(vcpu, &s->lapic, err)) < 0 || (code = kvm_vcpu_get_msrs(vcpu, s->msrs, err)) < 0 ||
        (code = kvm_vcpu_get_events(vcpu, &s->events, err)) < 0)
        return code;
    return 0;
}

int vcpu_state_get(struct kvm_vcpu *vcpu, const struct kvm_msr_list *msrs, struct vcpu_state *ret_state,
                   struct error *err)
{
    struct vcpu_state s = {.xsave_bytes = vcpu->kvm->xsave_bytes};
    s.xsave = xcalloc(1, s.xsave_bytes);
    s.msrs = msrs_new(msrs->nmsrs);
    s.msrs->nmsrs = msrs->nmsrs;
    for (uint32_t i = 0; i < msrs->nmsrs; i++)
        s.msrs->entries[i].index = msrs->indices[i];
    int code = state_get(vcpu, &s, err);
    if (code < 0) {
        vcpu_state_finish(&s);
        return code;
    }
    *ret_state = s;
    return 0;
}

/* All MSRs but the deadline timer, then that one alone: it compares with the TSC, which must be in place, and a
 * deadline of 0 means that the timer is off. */
static int msrs_set(struct kvm_vcpu *vcpu, const struct vcpu_state *s, struct error *err)
{
    CLEANUP_FREE struct kvm_msrs *first = msrs_new(s->msrs->nmsrs);
    CLEANUP_FREE struct kvm_msrs *deadline = msrs_new(1);
    for (uint32_t i = 0; i < s->msrs->nmsrs; i++) {
        const struct kvm_msr_entry *e = &s->msrs->entries[i];
        struct kvm_msrs *to = e->index == MSR_TSC_DEADLINE ? deadline : first;
        to->entries[to->nmsrs++] = *e;
    }
    int code = first->nmsrs ? kvm_vcpu_set_msrs(vcpu, first, err) : 0;
    if (code == 0 && deadline->nmsrs)
        code = kvm_vcpu_set_msrs(vcpu, deadline, err);
    return code;
}

int vcpu_state_set(struct kvm_vcpu *vcpu, const struct vcpu_state *s, struct error *err)
{
    int code;
    if (s->xsave_bytes != vcpu->kvm->xsave_bytes)
        return error_set(err, -EINVAL, ERROR_NOT_SUPPORTED,
                         "the vCPU's extended state has %u bytes, this host's processors have %u", s->xsave_bytes,
                         vcpu->kvm->xsave_bytes);
    /* SET_REGS drops pending exceptions, so events are last; SET_LAPIC needs the APIC base of SREGS; the deadline MSR
     * needs the LAPIC. */
    if ((code = kvm_vcpu_set_mp_state(vcpu, &s->mp_state, err)) < 0 ||
        (code = kvm_vcpu_set_regs(vcpu, &s->regs, err)) < 0 ||
        (code = kvm_vcpu_set_sregs(vcpu, &s->sregs, err)) < 0 ||
        (code = kvm_vcpu_set_xsave(vcpu, s->xsave, err)) < 0 || (code = kvm_vcpu_set_xcrs(vcpu, &s->xcrs, err)) < 0 ||
        (code = kvm_vcpu_set_debugregs(vcpu, &s->debugregs, err)) < 0 ||
        (code = kvm_vcpu_set_lapic(vcpu, &s->lapic, err)) < 0 || (code = msrs_set(vcpu, s, err)) < 0 ||
        (code = kvm_vcpu_set_events(vcpu, &s->events, err)) < 0)
        return code;
    return 0;
}

void vcpu_state_finish(struct vcpu_state *s)
{
    free(s->xsave);
    free(s->msrs);
    memset(s, 0, sizeof(*s));
}
