/* Topology and identity leaves (Intel SDM vol. 2 CPUID, AMD APM vol. 3 appendix E), kept simple: one package, one
 * thread per core, APIC id = number of the vCPU. */
#include "compute/vmm/vcpu_cpuid.h"

#include <string.h>

#include "compute/vmm/kvm.h"

enum { EBX_CLFLUSH_SHIFT = 8, EBX_COUNT_SHIFT = 16, EBX_APIC_ID_SHIFT = 24 };
#define ECX_X2APIC (1u << 21)
#define ECX_TSC_DEADLINE (1u << 24)
#define ECX_HYPERVISOR (1u << 31)
#define EDX_HTT (1u << 28)
#define AMD_ECX_TOPOEXT (1u << 22)
#define EDX_INVARIANT_TSC (1u << 8)

/* Bits that an APIC id needs for @vcpus processors. */
static unsigned id_bits(unsigned vcpus)
{
    unsigned bits = 0;
    while (1u << bits < vcpus)
        bits++;
    return bits;
}

static void leaf_drop(struct kvm_cpuid2 *cpuid, uint32_t function)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < cpuid->nent; i++)
        if (cpuid->entries[i].function != function)
            cpuid->entries[kept++] = cpuid->entries[i];
    cpuid->nent = kept;
}

static void leaf_add(struct kvm_cpuid2 *cpuid, struct kvm_cpuid_entry2 entry)
{
    if (cpuid->nent < KVM_CPUID_ENTRIES_MAX)
        cpuid->entries[cpuid->nent++] = entry;
}

/* Leaf 0xb (extended topology): a level of threads, one of cores, and the end. EDX is the x2APIC id in each. */
static void topology_add(struct kvm_cpuid2 *cpuid, uint32_t function, unsigned vcpus, uint32_t apic_id)
{
    enum { LEVEL_THREAD = 1 << 8, LEVEL_CORE = 2 << 8 };
    struct kvm_cpuid_entry2 e = {.function = function,
                                 .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                                 .edx = apic_id,
                                 .ebx = 1,
                                 .ecx = LEVEL_THREAD};
    leaf_add(cpuid, e);
    e.index = 1;
    e.eax = id_bits(vcpus);
    e.ebx = vcpus;
    e.ecx = LEVEL_CORE | 1;
    leaf_add(cpuid, e);
    e.index = 2;
    e.eax = e.ebx = 0;
    e.ecx = 2;
    leaf_add(cpuid, e);
}

static void leaf_fix(struct kvm_cpuid_entry2 *e, const struct cpuid_options *o, uint32_t apic_id)
{
    switch (e->function) {
    case 1:
        e->ebx =
            (e->ebx & 0xff) | 8u << EBX_CLFLUSH_SHIFT | o->vcpus << EBX_COUNT_SHIFT | apic_id << EBX_APIC_ID_SHIFT;
        e->ecx |= ECX_HYPERVISOR | ECX_X2APIC | (o->tsc_deadline ? ECX_TSC_DEADLINE : 0);
        if (o->hide_x2apic)
            e->ecx &= ~ECX_X2APIC;
        e->edx = o->vcpus > 1 ? e->edx | EDX_HTT : e->edx & ~EDX_HTT;
        break;
    case 4: /* caches: no sharing between vCPUs is promised; cores in the package */
        if (e->eax & 0x1f)
            e->eax = (e->eax & 0x3fff) | ((1u << id_bits(o->vcpus)) - 1) << 26;
        break;
    case 0x80000001: /* without TOPOEXT the leaves below are all there is to AMD's topology */
        e->ecx &= ~AMD_ECX_TOPOEXT;
        break;
    case 0x80000007: /* a TSC that never changes its rate cannot be promised to a VM that may move, unless by scaling
                      */
        if (!o->invariant_tsc)
            e->edx &= ~EDX_INVARIANT_TSC;
        break;
    case 0x80000008:
        e->ecx = o->vcpus > 1 ? id_bits(o->vcpus) << 12 | (o->vcpus - 1) : 0;
        break;
    default:
        break;
    }
}

void vcpu_cpuid_fix(struct kvm_cpuid2 *cpuid, const struct cpuid_options *o, uint32_t apic_id)
{
    uint32_t highest = 0;
    leaf_drop(cpuid, 0xb);
    leaf_drop(cpuid, 0x1f);
    leaf_drop(cpuid, 0x8000001d);
    leaf_drop(cpuid, 0x8000001e);
    for (unsigned i = 0; i < cpuid->nent; i++) {
        leaf_fix(&cpuid->entries[i], o, apic_id);
        if (cpuid->entries[i].function == 0)
            highest = cpuid->entries[i].eax;
    }
    if (highest >= 0xb)
        topology_add(cpuid, 0xb, o->vcpus, apic_id);
}
