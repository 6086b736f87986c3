/* The table of models, and what is done by the table of features (cpu_features.def). */
#include "compute/vmm/cpu_model.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum cpu_register { EAX, EBX, ECX, EDX };
enum cpu_level {
    CPU_LEVEL_PLATFORM,
    CPU_LEVEL_1,
    CPU_LEVEL_2,
    CPU_LEVEL_3,
    CPU_LEVEL_4,
    CPU_LEVEL_HOST,
};

struct feature {
    const char *name;
    uint32_t leaf, index;
    enum cpu_register reg;
    unsigned bit;
    enum cpu_level level;
};
static const struct feature features[] = {
#define FEATURE(name_, leaf_, index_, register_, bit_, level_)                                                       \
    {.name = name_, .leaf = leaf_, .index = index_, .reg = register_, .bit = bit_, .level = level_},
#include "compute/vmm/cpu_features.def"
#undef FEATURE
};

/* Family, model and stepping that the baselines show: processors of about that level, so that a guest's own tables
 * know them (Intel SDM vol. 2 CPUID leaf 1). XCR0: x87 and SSE, AVX, AVX-512. */
struct cpu_model {
    const char *name;
    enum cpu_level level;
    uint32_t signature_intel, signature_amd;
    uint64_t xcr0;
};
static const struct cpu_model models[] = {
    {"host", CPU_LEVEL_HOST, 0, 0, 0},
    {"x86-64-v1", CPU_LEVEL_1, 0x000006f1, 0x00060fb1, 0},
    {"x86-64-v2", CPU_LEVEL_2, 0x000206c1, 0x00100f23, 0},
    {"x86-64-v3", CPU_LEVEL_3, 0x000306c3, 0x00800f12, 0x7},
    {"x86-64-v4", CPU_LEVEL_4, 0x00050654, 0x00a10f11, 0xe7},
};

/* Leaves that a baseline shows; others, which tell of one processor (power, PMU, tracing, tiles), it hides. */
static const uint32_t leaves_shown[] = {0x0,        0x1,        0x4,        0x6,        0x7,        0xb,
                                        0xd,        0x40000000, 0x40000001, 0x80000000, 0x80000001, 0x80000002,
                                        0x80000003, 0x80000004, 0x80000006, 0x80000007, 0x80000008};
enum { LEAF_BASIC_MAX = 0xd, XSAVE_LEGACY_BYTES = 576 };
#define LEAF_EXTENDED_MAX 0x80000008u
#define MISSING_NAMED_MAX 12u

int cpu_model_find(const char *name, const struct cpu_model **ret_model, struct error *err)
{
    char known[160] = "";
    if (!name)
        name = CPU_MODEL_DEFAULT;
    for (size_t i = 0; i < ARRAY_SIZE(models); i++) {
        if (strcmp(models[i].name, name) == 0) {
            *ret_model = &models[i];
            return 0;
        }
        size_t used = strlen(known);
        snprintf(known + used, sizeof(known) - used, "%s%s", i ? ", " : "", models[i].name);
    }
    return error_set_field(err, -EINVAL, ERROR_INVALID, "/cpu_model", "CPU model \"%s\" is not known here; %s are",
                           name, known);
}

const char *cpu_model_name(const struct cpu_model *model)
{
    return model->name;
}

static uint32_t *register_of(struct kvm_cpuid_entry2 *e, enum cpu_register reg)
{
    return reg == EAX ? &e->eax : reg == EBX ? &e->ebx : reg == ECX ? &e->ecx : &e->edx;
}

static struct kvm_cpuid_entry2 *entry_find(const struct kvm_cpuid2 *cpuid, uint32_t leaf, uint32_t index)
{
    for (uint32_t i = 0; i < cpuid->nent; i++) {
        const struct kvm_cpuid_entry2 *e = &cpuid->entries[i];
        if (e->function == leaf && (!(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || e->index == index))
            return (struct kvm_cpuid_entry2 *)e;
    }
    return NULL;
}

static uint32_t register_value(const struct kvm_cpuid2 *cpuid, uint32_t leaf, uint32_t index, enum cpu_register reg)
{
    struct kvm_cpuid_entry2 *e = entry_find(cpuid, leaf, index);
    return e ? *register_of(e, reg) : 0;
}

/* The names of features that lack, gathered into one message. */
struct missing {
    unsigned count;
    char names[320];
};

static void missing_add(struct missing *m, const char *name)
{
    size_t used = strlen(m->names);
    m->count++;
    if (m->count <= MISSING_NAMED_MAX)
        snprintf(m->names + used, sizeof(m->names) - used, "%s%s", used ? ", " : "", name);
    else if (m->count == MISSING_NAMED_MAX + 1)
        snprintf(m->names + used, sizeof(m->names) - used, " and more");
}

/* ---- baselines ---- */

static bool leaf_is_shown(uint32_t leaf)
{
    for (size_t i = 0; i < ARRAY_SIZE(leaves_shown); i++)
        if (leaves_shown[i] == leaf)
            return true;
    return false;
}

/* The bits of a register that the model lets through, and whether the register holds features at all. */
static bool features_mask(const struct cpu_model *model, uint32_t leaf, uint32_t index, enum cpu_register reg,
                          uint32_t *ret_mask)
{
    bool found = false;
    *ret_mask = 0;
    for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
        const struct feature *f = &features[i];
        if (f->leaf != leaf || f->index != index || f->reg != reg)
            continue;
        found = true;
        if (f->level <= model->level)
            *ret_mask |= 1u << f->bit;
    }
    return found;
}

/* XSAVE areas: those of the components that are left, in the format without compaction (Intel SDM vol. 1 §13.4). */
static void xsave_fix(const struct cpu_model *model, struct kvm_cpuid2 *cpuid)
{
    uint32_t size = XSAVE_LEGACY_BYTES;
    for (uint32_t i = 0; i < cpuid->nent; i++) {
        struct kvm_cpuid_entry2 *e = &cpuid->entries[i];
        bool shown = e->index < 2 || (e->index < 63 && model->xcr0 >> e->index & 1);
        if (e->function != 0xd)
            continue;
        if (!shown)
            e->eax = e->ebx = e->ecx = e->edx = 0;
        else if (e->index >= 2)
            size = MAX(size, e->eax + e->ebx);
        else if (e->index == 1)
            e->ebx = e->ecx = e->edx = 0;
    }
    struct kvm_cpuid_entry2 *e = entry_find(cpuid, 0xd, 0);
    if (e)
        *e = (struct kvm_cpuid_entry2){.function = 0xd,
                                       .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                                       .eax = (uint32_t)model->xcr0 & e->eax,
                                       .ebx = model->xcr0 ? XSAVE_LEGACY_BYTES : 0,
                                       .ecx = model->xcr0 ? size : 0};
}

static void brand_set(const struct cpu_model *model, struct kvm_cpuid2 *cpuid)
{
    char brand[48] = {0};
    snprintf(brand, sizeof(brand), "Drover %s", model->name);
    for (uint32_t leaf = 0; leaf < 3; leaf++) {
        struct kvm_cpuid_entry2 *e = entry_find(cpuid, 0x80000002u + leaf, 0);
        if (e)
            for (unsigned reg = EAX; reg <= EDX; reg++)
                memcpy(register_of(e, reg), brand + 16 * leaf + 4 * reg, 4);
    }
}

static void entry_cut(const struct cpu_model *model, struct kvm_cpuid_entry2 *e, bool is_intel)
{
    for (unsigned reg = EAX; reg <= EDX; reg++) {
        uint32_t mask, *value = register_of(e, reg);
        if (features_mask(model, e->function, e->index, reg, &mask))
            *value &= mask;
    }
    switch (e->function) {
    case 0x0:
        e->eax = MIN(e->eax, (uint32_t)LEAF_BASIC_MAX);
        break;
    case 0x1:
        e->eax = is_intel ? model->signature_intel : model->signature_amd;
        break;
    case 0x6: /* power: the timer that never stops, and nothing else */
        e->ebx = e->ecx = e->edx = 0;
        break;
    case 0x7: /* subleaf 0 alone */
        e->eax = 0;
        if (e->index)
            e->ebx = e->ecx = e->edx = 0;
        break;
    case 0x80000000:
        e->eax = MIN(e->eax, LEAF_EXTENDED_MAX);
        break;
    case 0x80000007:
        e->eax = e->ebx = e->ecx = 0;
        break;
    default:
        break;
    }
}

int cpu_model_apply(const struct cpu_model *model, struct kvm_cpuid2 *cpuid, struct error *err)
{
    struct missing missing = {0};
    uint32_t kept = 0;
    if (model->level == CPU_LEVEL_HOST)
        return 0;
    for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
        const struct feature *f = &features[i];
        if (f->level != CPU_LEVEL_PLATFORM && f->level <= model->level &&
            !(register_value(cpuid, f->leaf, f->index, f->reg) >> f->bit & 1))
            missing_add(&missing, f->name);
    }
    if (missing.count)
        return error_set_field(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "/cpu_model",
                               "this host's processors cannot be %s: they lack %s; take a lower model", model->name,
                               missing.names);
    bool is_intel = register_value(cpuid, 0, 0, EBX) == 0x756e6547; /* "Genu" */
    for (uint32_t i = 0; i < cpuid->nent; i++) {
        struct kvm_cpuid_entry2 *e = &cpuid->entries[i];
        if (!leaf_is_shown(e->function) || (e->function == 0xd && !model->xcr0))
            continue;
        entry_cut(model, e, is_intel);
        cpuid->entries[kept++] = *e;
    }
    cpuid->nent = kept;
    xsave_fix(model, cpuid);
    brand_set(model, cpuid);
    return 0;
}

const char *cpu_model_highest(const struct kvm_cpuid2 *cpuid)
{
    const char *highest = CPU_MODEL_DEFAULT;
    size_t bytes = sizeof(*cpuid) + cpuid->nent * sizeof(cpuid->entries[0]);
    CLEANUP_FREE struct kvm_cpuid2 *tried = xcalloc(1, bytes);
    for (size_t i = 0; i < ARRAY_SIZE(models); i++) {
        memcpy(tried, cpuid, bytes);
        if (models[i].level != CPU_LEVEL_HOST && cpu_model_apply(&models[i], tried, NULL) == 0)
            highest = models[i].name;
    }
    return highest;
}

/* ---- may a guest come here? ---- */

static const struct feature *feature_find(uint32_t leaf, uint32_t index, enum cpu_register reg, unsigned bit)
{
    for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
        const struct feature *f = &features[i];
        if (f->leaf == leaf && f->index == index && f->reg == reg && f->bit == bit)
            return f;
    }
    return NULL;
}

/* Every bit of a register that holds features, named or not; those of the platform are the VMM's own affair. */
static void register_compare(struct missing *missing, const struct feature *of, uint32_t guest, uint32_t here)
{
    static const char *const names[] = {"eax", "ebx", "ecx", "edx"};
    for (unsigned bit = 0; bit < 32; bit++) {
        const struct feature *f = feature_find(of->leaf, of->index, of->reg, bit);
        char text[48];
        if (!(guest >> bit & 1) || here >> bit & 1 || (f && f->level == CPU_LEVEL_PLATFORM))
            continue;
        snprintf(text, sizeof(text), "CPUID %#x.%u %s bit %u", of->leaf, of->index, names[of->reg], bit);
        missing_add(missing, f ? f->name : text);
    }
}

static bool is_first_of_register(size_t at)
{
    const struct feature *f = &features[at];
    return at == 0 || features[at - 1].leaf != f->leaf || features[at - 1].index != f->index ||
           features[at - 1].reg != f->reg;
}

int cpu_model_check_subset(const struct kvm_cpuid2 *guest, const struct kvm_cpuid2 *here, struct error *err)
{
    struct missing missing = {0};
    for (unsigned reg = EBX; reg <= EDX; reg++)
        if (register_value(guest, 0, 0, reg) != register_value(here, 0, 0, reg))
            return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                             "the guest ran on processors of another vendor; it can only be started anew here");
    for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
        const struct feature *f = &features[i];
        if (is_first_of_register(i))
            register_compare(&missing, f, register_value(guest, f->leaf, f->index, f->reg),
                             register_value(here, f->leaf, f->index, f->reg));
    }
    uint64_t xcr0 = register_value(guest, 0xd, 0, EAX) | (uint64_t)register_value(guest, 0xd, 0, EDX) << 32;
    uint64_t xcr0_here = register_value(here, 0xd, 0, EAX) | (uint64_t)register_value(here, 0xd, 0, EDX) << 32;
    if (xcr0 & ~xcr0_here)
        missing_add(&missing, "XSAVE components");
    if (missing.count)
        return error_set(
            err, -ENOTSUP, ERROR_NOT_SUPPORTED,
            "the guest was shown processor features that this host lacks: %s; take a host that has them, "
            "or start it anew with a lower cpu_model",
            missing.names);
    return 0;
}
