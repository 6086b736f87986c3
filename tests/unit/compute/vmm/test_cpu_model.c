/* CPU models: what each level shows and hides, what a host must have, and what a guest may miss when it moves. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "compute/vmm/cpu_model.h"
#include "compute/vmm/vcpu_cpuid.h"
#include "schema/objects.h"

#define AVX2 (1u << 5)
#define AVX512F (1u << 16)
#define SMEP (1u << 7)
#define INVTSC (1u << 8)

union offer {
    uint8_t room[sizeof(struct kvm_cpuid2) + KVM_CPUID_ENTRIES_MAX * sizeof(struct kvm_cpuid_entry2)];
    struct kvm_cpuid2 head;
};

static void entry_add(union offer *o, uint32_t leaf, uint32_t index, uint32_t eax, uint32_t ebx, uint32_t ecx,
                      uint32_t edx)
{
    uint32_t flags = leaf == 7 || leaf == 0xd || leaf == 4 ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0;
    o->head.entries[o->head.nent++] = (struct kvm_cpuid_entry2){
        .function = leaf, .index = index, .flags = flags, .eax = eax, .ebx = ebx, .ecx = ecx, .edx = edx};
}

/* A host that has everything. */
static union offer *offer_make(void)
{
    union offer *o = NEW(union offer);
    entry_add(o, 0, 0, 0x20, 0x756e6547, 0x6c65746e, 0x49656e69);
    entry_add(o, 1, 0, 0x000806f8, 0, ~0u, ~0u);
    entry_add(o, 2, 0, 1, 2, 3, 4);
    entry_add(o, 4, 0, 0x121, 0, 0, 0);
    entry_add(o, 5, 0, 1, 1, 1, 1);
    entry_add(o, 6, 0, ~0u, 1, 1, 1);
    entry_add(o, 7, 0, 2, ~0u, ~0u, ~0u);
    entry_add(o, 7, 1, ~0u, 0, 0, 0);
    entry_add(o, 0xa, 0, 1, 1, 1, 1);
    entry_add(o, 0xd, 0, 0x602e7, 0, 11008, 0);
    entry_add(o, 0xd, 1, 0x1f, 2000, 0x1800, 0);
    entry_add(o, 0xd, 2, 256, 576, 0, 0);
    entry_add(o, 0xd, 5, 64, 1088, 0, 0);
    entry_add(o, 0xd, 6, 512, 1152, 0, 0);
    entry_add(o, 0xd, 7, 1024, 1664, 0, 0);
    entry_add(o, 0xd, 9, 8, 2688, 0, 0);
    entry_add(o, 0xd, 18, 8192, 2816, 2, 0);
    entry_add(o, 0x1d, 0, 1, 0, 0, 0);
    entry_add(o, 0x40000001, 0, ~0u, 0, 0, 0);
    entry_add(o, 0x80000000, 0, 0x80000021, 0, 0, 0);
    entry_add(o, 0x80000001, 0, 0, 0, ~0u, ~0u);
    entry_add(o, 0x80000002, 0, 1, 1, 1, 1);
    entry_add(o, 0x80000003, 0, 1, 1, 1, 1);
    entry_add(o, 0x80000004, 0, 1, 1, 1, 1);
    entry_add(o, 0x80000007, 0, 0, 0, 0, INVTSC);
    entry_add(o, 0x80000008, 0, 0x3030, ~0u, 0, 0);
    entry_add(o, 0x80000021, 0, ~0u, 0, 0, 0);
    return o;
}

static struct kvm_cpuid_entry2 *leaf(union offer *o, uint32_t function, uint32_t index)
{
    for (unsigned i = 0; i < o->head.nent; i++)
        if (o->head.entries[i].function == function && o->head.entries[i].index == index)
            return &o->head.entries[i];
    return NULL;
}

static union offer *model_make(const char *name)
{
    const struct cpu_model *model;
    struct error err = {0};
    union offer *o = offer_make();
    assert_int_equal(cpu_model_find(name, &model, &err), 0);
    if (cpu_model_apply(model, &o->head, &err) < 0)
        fail_msg("%s", err.text);
    return o;
}

static void host_shows_everything(void **state)
{
    (void)state;
    CLEANUP_FREE union offer *o = model_make(NULL), *whole = offer_make();
    assert_memory_equal(o, whole, sizeof(*o));
}

static void levels_show_their_features_and_no_other(void **state)
{
    (void)state;
    CLEANUP_FREE union offer *v1 = model_make("x86-64-v1"), *v2 = model_make("x86-64-v2");
    CLEANUP_FREE union offer *v3 = model_make("x86-64-v3"), *v4 = model_make("x86-64-v4");
    assert_int_equal(leaf(v1, 7, 0)->ebx, 0);
    assert_null(leaf(v1, 0xd, 0));
    assert_null(leaf(v2, 0xd, 0)); /* neither has XSAVE */
    assert_int_equal(leaf(v1, 1, 0)->ecx & (1u << 13 | 1u << 23), 0);
    assert_int_equal(leaf(v2, 1, 0)->ecx & (1u << 13 | 1u << 23 | 1u << 20), 1u << 13 | 1u << 23 | 1u << 20);
    assert_int_equal(leaf(v2, 1, 0)->ecx & (1u << 28 | 1u << 26), 0);
    assert_int_equal(leaf(v3, 7, 0)->ebx, 1u << 3 | AVX2 | 1u << 8);
    assert_true(leaf(v4, 7, 0)->ebx & AVX512F);
    assert_int_equal(leaf(v4, 7, 0)->ebx & SMEP, 0);
    assert_int_equal(leaf(v4, 7, 0)->eax, 0);
    assert_int_equal(leaf(v4, 7, 1)->eax, 0);
    for (unsigned i = 0; i < 2; i++) {
        union offer *o = i ? v4 : v1;
        assert_null(leaf(o, 2, 0));
        assert_null(leaf(o, 0xa, 0));
        assert_null(leaf(o, 0x1d, 0));
        assert_null(leaf(o, 0x80000021, 0));
        assert_int_equal(leaf(o, 0, 0)->eax, 0xd);
        assert_int_equal(leaf(o, 0x80000000, 0)->eax, 0x80000008);
        assert_int_equal(leaf(o, 0x80000007, 0)->edx, 0); /* no invariant TSC */
        assert_memory_equal(&leaf(o, 0x80000002, 0)->eax, "Drover x86-64-v", 15);
        assert_true(leaf(o, 0x40000001, 0)->eax & 8); /* kvmclock */
    }
}

static void xsave_holds_what_is_left(void **state)
{
    (void)state;
    CLEANUP_FREE union offer *v3 = model_make("x86-64-v3"), *v4 = model_make("x86-64-v4");
    assert_int_equal(leaf(v3, 0xd, 0)->eax, 7);
    assert_int_equal(leaf(v3, 0xd, 0)->ecx, 832);
    assert_int_equal(leaf(v3, 0xd, 5)->eax, 0);
    assert_int_equal(leaf(v4, 0xd, 0)->eax, 0xe7);
    assert_int_equal(leaf(v4, 0xd, 0)->ecx, 2688);
    assert_int_equal(leaf(v4, 0xd, 18)->eax, 0);
    assert_int_equal(leaf(v4, 0xd, 1)->eax, 0);
}

static void what_a_host_lacks_is_named(void **state)
{
    const struct cpu_model *model;
    struct error err = {0};
    (void)state;
    CLEANUP_FREE union offer *o = offer_make();
    leaf(o, 7, 0)->ebx &= ~AVX512F;
    assert_int_equal(cpu_model_find("x86-64-v4", &model, &err), 0);
    assert_int_equal(cpu_model_apply(model, &o->head, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "avx512f"));
    assert_string_equal(err.field, "/cpu_model");
    assert_int_equal(cpu_model_find("pentium", &model, &err), -EINVAL);
    assert_non_null(strstr(err.text, "x86-64-v3"));
}

/* What a host says of itself, and that the cluster's words for it are those of the VMM, in the same order. */
static void the_highest_model_of_a_host(void **state)
{
    (void)state;
    CLEANUP_FREE union offer *o = offer_make();
    const struct cpu_model *model;
    assert_string_equal(cpu_model_highest(&o->head), cpu_kind_desc.names[cpu_kind_X86_64_V4]);
    leaf(o, 7, 0)->ebx &= ~AVX512F;
    assert_string_equal(cpu_model_highest(&o->head), cpu_kind_desc.names[cpu_kind_X86_64_V3]);
    leaf(o, 7, 0)->ebx &= ~AVX2;
    assert_string_equal(cpu_model_highest(&o->head), cpu_kind_desc.names[cpu_kind_X86_64_V2]);
    leaf(o, 1, 0)->ecx &= ~(1u << 23); /* POPCNT */
    assert_string_equal(cpu_model_highest(&o->head), cpu_kind_desc.names[cpu_kind_X86_64_V1]);
    leaf(o, 1, 0)->edx &= ~(1u << 26); /* SSE2 */
    assert_string_equal(cpu_model_highest(&o->head), cpu_kind_desc.names[cpu_kind_HOST]);
    for (unsigned i = 0; i < cpu_kind_desc.count; i++) {
        assert_int_equal(cpu_model_find(cpu_kind_desc.names[i], &model, NULL), 0);
        assert_string_equal(cpu_model_name(model), cpu_kind_desc.names[i]);
    }
}

static void guests_go_where_their_features_are(void **state)
{
    struct error err = {0};
    (void)state;
    CLEANUP_FREE union offer *host = offer_make(), *old = offer_make(), *v2 = model_make("x86-64-v2");
    CLEANUP_FREE union offer *amd = offer_make();
    leaf(old, 7, 0)->ebx &= ~(AVX512F | AVX2);
    leaf(old, 7, 0)->edx &= ~(1u << 13); /* a bit without a name */
    leaf(old, 0x80000007, 0)->edx = 0;
    leaf(old, 1, 0)->ecx &= ~(1u << 27); /* OSXSAVE: the guest's own doing */
    assert_int_equal(cpu_model_check_subset(&host->head, &host->head, &err), 0);
    assert_int_equal(cpu_model_check_subset(&old->head, &host->head, &err), 0);
    assert_int_equal(cpu_model_check_subset(&v2->head, &old->head, &err), 0);
    assert_int_equal(cpu_model_check_subset(&host->head, &old->head, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "avx2, avx512f, "));
    assert_non_null(strstr(err.text, "CPUID 0x7.0 edx bit 13"));
    assert_non_null(strstr(err.text, "invtsc"));
    leaf(amd, 0, 0)->ebx = 0x68747541;
    assert_int_equal(cpu_model_check_subset(&v2->head, &amd->head, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "vendor"));
}

static void invariant_tsc_needs_scaling(void **state)
{
    (void)state;
    for (unsigned scaling = 0; scaling < 2; scaling++) {
        CLEANUP_FREE union offer *o = offer_make();
        struct cpuid_options options = {.vcpus = 64, .invariant_tsc = scaling};
        vcpu_cpuid_fix(&o->head, &options, 63);
        assert_int_equal(leaf(o, 0x80000007, 0)->edx, scaling ? INVTSC : 0);
        assert_int_equal(leaf(o, 0xb, 0)->edx, 63); /* x2APIC id */
        assert_int_equal(leaf(o, 0xb, 1)->ebx, 64);
    }
}

static void x2apic_is_there_unless_hidden(void **state)
{
    (void)state;
    for (unsigned hidden = 0; hidden < 2; hidden++) {
        CLEANUP_FREE union offer *o = offer_make();
        struct cpuid_options options = {.vcpus = 2, .hide_x2apic = hidden};
        leaf(o, 1, 0)->ecx = hidden ? ~0u : 0; /* whatever the host says of it */
        vcpu_cpuid_fix(&o->head, &options, 1);
        assert_int_equal(leaf(o, 1, 0)->ecx >> 21 & 1, !hidden);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(host_shows_everything),
        cmocka_unit_test(levels_show_their_features_and_no_other),
        cmocka_unit_test(xsave_holds_what_is_left),
        cmocka_unit_test(what_a_host_lacks_is_named),
        cmocka_unit_test(the_highest_model_of_a_host),
        cmocka_unit_test(guests_go_where_their_features_are),
        cmocka_unit_test(invariant_tsc_needs_scaling),
        cmocka_unit_test(x2apic_is_there_unless_hidden),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
