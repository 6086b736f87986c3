/* What a vCPU sees of the processor: what KVM offers on this host, with the leaves that name the vCPU put right. */
#ifndef COMPUTE_VMM_VCPU_CPUID_H
#define COMPUTE_VMM_VCPU_CPUID_H

#include <linux/kvm.h>

#include "common/base.h"

struct cpuid_options {
    unsigned vcpus;     /* processors of the VM: one package of single-threaded cores */
    bool invariant_tsc; /* a TSC of constant rate may be promised: this host can scale it for a guest that moves here
                         */
    bool tsc_deadline;  /* KVM has the timer (not told by the supported leaves of older hosts) */
    bool hide_x2apic;   /* developers': a processor of which KVM takes only the APIC in memory */
};

/* Change @cpuid, which has room for KVM_CPUID_ENTRIES_MAX entries, from KVM's offer into what vCPU @apic_id sees. */
void vcpu_cpuid_fix(struct kvm_cpuid2 *cpuid, const struct cpuid_options *options, uint32_t apic_id);

#endif
