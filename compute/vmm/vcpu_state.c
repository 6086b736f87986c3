/* Order matters here more than anywhere else; vcpu_state.h says which and the comments below why. */
#include "compute/vmm/vcpu_state.h"

#include <errno.h>
#include <string.h>

/* LAPIC register page: local vector table entry of the timer (Intel SDM vol. 3 §10.5.1) */
enum { LAPIC_LVT_TIMER = 0x320, LVT_MASKED = 1 << 16, LVT_MODE = 3 << 17, LVT_MODE_DEADLINE = 2 << 17 };

enum { VECTOR_BREAKPOINT = 3, OPCODE_INT3 = 0xcc };

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

static int nested_get(struct kvm_vcpu *vcpu, struct vcpu_state *s, struct error *err)
{
    if (!vcpu->kvm->nested_bytes)
        return 0;
    s->nested = xcalloc(1, vcpu->kvm->nested_bytes);
    return kvm_vcpu_get_nested(vcpu, s->nested, err);
}

static int tsc_get(struct kvm_vcpu *vcpu, struct vcpu_state *s, struct error *err)
{
    int code = kvm_vcpu_get_tsc_khz(vcpu, &s->tsc_khz, err);
    if (code < 0)
        return code;
    code = kvm_vcpu_get_tsc_offset(vcpu, &s->tsc_offset, err);
    s->has_tsc_offset = code == 0;
    return code == -ENOTSUP ? 0 : code;
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
        (code = kvm_vcpu_get_lapic(vcpu, &s->lapic, err)) < 0 || (code = nested_get(vcpu, s, err)) < 0 ||
        (code = tsc_get(vcpu, s, err)) < 0 || (code = kvm_vcpu_get_msrs(vcpu, s->msrs, err)) < 0 ||
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

/* The number of the last exception is told also where the exception is not. */
bool vcpu_state_may_lack_breakpoint(struct kvm_vcpu *vcpu, const struct guest_memory *memory)
{
    struct kvm_vcpu_events events;
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    uint64_t gpa;
    uint8_t opcode;
    return kvm_vcpu_get_events(vcpu, &events, NULL) == 0 && events.exception.nr == VECTOR_BREAKPOINT &&
           kvm_vcpu_get_regs(vcpu, &regs, NULL) == 0 && kvm_vcpu_get_sregs(vcpu, &sregs, NULL) == 0 &&
           kvm_vcpu_translate(vcpu, sregs.cs.base + regs.rip - 1, &gpa, NULL) == 0 &&
           memory_read(memory, gpa, &opcode, sizeof(opcode)) && opcode == OPCODE_INT3;
}

uint64_t *vcpu_state_msr(const struct vcpu_state *s, uint32_t index)
{
    for (uint32_t i = 0; i < s->msrs->nmsrs; i++)
        if (s->msrs->entries[i].index == index)
            return (uint64_t *)&s->msrs->entries[i].data;
    return NULL;
}

static int msrs_set_unarmed(struct kvm_vcpu *vcpu, const struct vcpu_state *s, struct error *err)
{
    CLEANUP_FREE struct kvm_msrs *msrs = msrs_new(s->msrs->nmsrs);
    for (uint32_t i = 0; i < s->msrs->nmsrs; i++)
        if (s->msrs->entries[i].index != VCPU_MSR_TSC_DEADLINE)
            msrs->entries[msrs->nmsrs++] = s->msrs->entries[i];
    return msrs->nmsrs ? kvm_vcpu_set_msrs(vcpu, msrs, err) : 0;
}

static bool timer_is_deadline(const struct kvm_lapic_state *lapic)
{
    uint32_t lvt;
    memcpy(&lvt, lapic->regs + LAPIC_LVT_TIMER, sizeof(lvt));
    return (lvt & (LVT_MODE | LVT_MASKED)) == LVT_MODE_DEADLINE;
}

/* The deadline is compared with the TSC, which must be in place. 0 means that the timer is off, or that it has just
 * fired: which of them cannot be told, and of a tick too many and one too few only the latter stops a guest. */
int vcpu_state_arm(struct kvm_vcpu *vcpu, const struct vcpu_state *s, struct error *err)
{
    const uint64_t *deadline = vcpu_state_msr(s, VCPU_MSR_TSC_DEADLINE), *tsc = vcpu_state_msr(s, VCPU_MSR_TSC);
    if (!deadline)
        return 0;
    CLEANUP_FREE struct kvm_msrs *msrs = msrs_new(1);
    msrs->nmsrs = 1;
    msrs->entries[0] = (struct kvm_msr_entry){.index = VCPU_MSR_TSC_DEADLINE, .data = *deadline};
    if (*deadline == 0 && tsc && timer_is_deadline(&s->lapic))
        msrs->entries[0].data = *tsc;
    return kvm_vcpu_set_msrs(vcpu, msrs, err);
}

int vcpu_state_set_unarmed(struct kvm_vcpu *vcpu, const struct vcpu_state *s, struct error *err)
{
    int code;
    if (s->xsave_bytes > vcpu->kvm->xsave_bytes)
        return error_set(err, -EINVAL, ERROR_NOT_SUPPORTED,
                         "the vCPU's extended state has %u bytes, this host's processors have %u", s->xsave_bytes,
                         vcpu->kvm->xsave_bytes);
    CLEANUP_FREE uint8_t *xsave = xcalloc(1, vcpu->kvm->xsave_bytes);
    memcpy(xsave, s->xsave, s->xsave_bytes);
    /* SET_REGS drops pending exceptions, so events are last; SET_LAPIC needs the APIC base of SREGS; nested state
     * needs EFER of SREGS; the deadline MSR, set by vcpu_state_arm, needs the LAPIC. */
    if ((code = kvm_vcpu_set_mp_state(vcpu, &s->mp_state, err)) < 0 ||
        (code = kvm_vcpu_set_regs(vcpu, &s->regs, err)) < 0 ||
        (code = kvm_vcpu_set_sregs(vcpu, &s->sregs, err)) < 0 || (code = kvm_vcpu_set_xsave(vcpu, xsave, err)) < 0 ||
        (code = kvm_vcpu_set_xcrs(vcpu, &s->xcrs, err)) < 0 ||
        (code = kvm_vcpu_set_debugregs(vcpu, &s->debugregs, err)) < 0 ||
        (code = kvm_vcpu_set_lapic(vcpu, &s->lapic, err)) < 0 ||
        (code = s->nested ? kvm_vcpu_set_nested(vcpu, s->nested, err) : 0) < 0 ||
        (code = msrs_set_unarmed(vcpu, s, err)) < 0 || (code = kvm_vcpu_set_events(vcpu, &s->events, err)) < 0)
        return code;
    return 0;
}

int vcpu_state_set(struct kvm_vcpu *vcpu, const struct vcpu_state *s, struct error *err)
{
    int code = vcpu_state_set_unarmed(vcpu, s, err);
    return code < 0 ? code : vcpu_state_arm(vcpu, s, err);
}

void vcpu_state_finish(struct vcpu_state *s)
{
    free(s->xsave);
    free(s->msrs);
    free(s->nested);
    memset(s, 0, sizeof(*s));
}

/* ---- as bytes ---- */

enum piece {
    PIECE_MP_STATE = 1,
    PIECE_REGS,
    PIECE_SREGS,
    PIECE_XSAVE,
    PIECE_XCRS,
    PIECE_DEBUGREGS,
    PIECE_LAPIC,
    PIECE_MSRS,
    PIECE_EVENTS,
    PIECE_CPUID,
    PIECE_TSC_KHZ,
    PIECE_TSC_OFFSET, /* may be missing */
    PIECE_NESTED,     /* may be missing */
    PIECE_END,
};
enum { MSR_BYTES = 16, PIECE_BYTES_MAX = 1 << 20 };
#define PIECES_NEEDED ((1u << PIECE_TSC_OFFSET) - 2)

static void piece_put(struct bytes_writer *out, enum piece kind, const void *data, size_t size)
{
    bytes_put_u16(out, (uint16_t)kind);
    bytes_put_u16(out, 0);
    bytes_put_u32(out, (uint32_t)size);
    bytes_put(out, data, size);
}

void vcpu_state_encode(const struct vcpu_state *s, const struct kvm_cpuid2 *cpuid, struct bytes_writer *out)
{
    struct bytes_writer msrs = {0};
    for (uint32_t i = 0; i < s->msrs->nmsrs; i++) {
        bytes_put_u32(&msrs, s->msrs->entries[i].index);
        bytes_put_u32(&msrs, 0);
        bytes_put_u64(&msrs, s->msrs->entries[i].data);
    }
    piece_put(out, PIECE_MP_STATE, &s->mp_state, sizeof(s->mp_state));
    piece_put(out, PIECE_REGS, &s->regs, sizeof(s->regs));
    piece_put(out, PIECE_SREGS, &s->sregs, sizeof(s->sregs));
    piece_put(out, PIECE_XSAVE, s->xsave, s->xsave_bytes);
    piece_put(out, PIECE_XCRS, &s->xcrs, sizeof(s->xcrs));
    piece_put(out, PIECE_DEBUGREGS, &s->debugregs, sizeof(s->debugregs));
    piece_put(out, PIECE_LAPIC, &s->lapic, sizeof(s->lapic));
    piece_put(out, PIECE_MSRS, msrs.data, msrs.size);
    piece_put(out, PIECE_EVENTS, &s->events, sizeof(s->events));
    piece_put(out, PIECE_CPUID, cpuid->entries, cpuid->nent * sizeof(cpuid->entries[0]));
    piece_put(out, PIECE_TSC_KHZ, &s->tsc_khz, sizeof(s->tsc_khz));
    if (s->has_tsc_offset)
        piece_put(out, PIECE_TSC_OFFSET, &s->tsc_offset, sizeof(s->tsc_offset));
    if (s->nested)
        piece_put(out, PIECE_NESTED, s->nested, ((const struct kvm_nested_state *)s->nested)->size);
    bytes_writer_finish(&msrs);
}

static bool msrs_decode(struct vcpu_state *s, const uint8_t *data, size_t size)
{
    struct bytes_reader in = bytes_reader(data, size);
    if (size % MSR_BYTES || size / MSR_BYTES > KVM_MSRS_MAX)
        return false;
    s->msrs = msrs_new((uint32_t)(size / MSR_BYTES));
    for (s->msrs->nmsrs = 0; bytes_left(&in); s->msrs->nmsrs++) {
        uint32_t index = bytes_get_u32(&in);
        bytes_get_u32(&in);
        s->msrs->entries[s->msrs->nmsrs] = (struct kvm_msr_entry){.index = index, .data = bytes_get_u64(&in)};
    }
    return true;
}

static void *copy_of(const void *data, size_t size)
{
    void *copy = xcalloc(1, MAX(size, 1));
    memcpy(copy, data, size);
    return copy;
}

static bool cpuid_decode(struct kvm_cpuid2 **cpuid, const uint8_t *data, size_t size)
{
    if (size % sizeof((*cpuid)->entries[0]) || size / sizeof((*cpuid)->entries[0]) > KVM_CPUID_ENTRIES_MAX)
        return false;
    *cpuid = xcalloc(1, sizeof(**cpuid) + KVM_CPUID_ENTRIES_MAX * sizeof((*cpuid)->entries[0]));
    (*cpuid)->nent = (uint32_t)(size / sizeof((*cpuid)->entries[0]));
    memcpy((*cpuid)->entries, data, size);
    return true;
}

/* A piece whose size is that of its struct. */
static bool fixed_decode(struct vcpu_state *s, unsigned kind, const uint8_t *data, size_t size)
{
    const struct {
        void *to;
        size_t size;
    } fixed[PIECE_END] = {
        [PIECE_MP_STATE] = {&s->mp_state, sizeof(s->mp_state)},
        [PIECE_REGS] = {&s->regs, sizeof(s->regs)},
        [PIECE_SREGS] = {&s->sregs, sizeof(s->sregs)},
        [PIECE_XCRS] = {&s->xcrs, sizeof(s->xcrs)},
        [PIECE_DEBUGREGS] = {&s->debugregs, sizeof(s->debugregs)},
        [PIECE_LAPIC] = {&s->lapic, sizeof(s->lapic)},
        [PIECE_EVENTS] = {&s->events, sizeof(s->events)},
        [PIECE_TSC_KHZ] = {&s->tsc_khz, sizeof(s->tsc_khz)},
        [PIECE_TSC_OFFSET] = {&s->tsc_offset, sizeof(s->tsc_offset)},
    };
    if (!fixed[kind].to || size != fixed[kind].size)
        return false;
    memcpy(fixed[kind].to, data, size);
    return true;
}

static bool piece_decode(struct vcpu_state *s, struct kvm_cpuid2 **cpuid, unsigned kind, const uint8_t *data,
                         size_t size)
{
    switch (kind) {
    case PIECE_XSAVE:
        s->xsave = copy_of(data, size);
        s->xsave_bytes = (uint32_t)size;
        return size >= sizeof(struct kvm_xsave);
    case PIECE_MSRS:
        return msrs_decode(s, data, size);
    case PIECE_CPUID:
        return cpuid_decode(cpuid, data, size);
    case PIECE_NESTED:
        s->nested = copy_of(data, size);
        return size >= sizeof(struct kvm_nested_state) && ((struct kvm_nested_state *)s->nested)->size == size;
    case PIECE_TSC_OFFSET:
        s->has_tsc_offset = true;
        return fixed_decode(s, kind, data, size);
    default:
        return fixed_decode(s, kind, data, size);
    }
}

int vcpu_state_decode(struct bytes_reader *in, struct vcpu_state *ret_state, struct kvm_cpuid2 **ret_cpuid,
                      struct error *err)
{
    struct vcpu_state s = {0};
    struct kvm_cpuid2 *cpuid = NULL;
    unsigned seen = 0;
    bool sound = true;
    while (sound && bytes_left(in)) {
        uint16_t kind = bytes_get_u16(in), zero = bytes_get_u16(in);
        uint32_t size = bytes_get_u32(in);
        const uint8_t *data = size <= PIECE_BYTES_MAX ? bytes_get(in, size) : NULL;
        sound = !in->bad && data && zero == 0 && kind > 0 && kind < PIECE_END && !(seen >> kind & 1) &&
                piece_decode(&s, &cpuid, kind, data, size);
        seen |= 1u << MIN(kind, 31);
    }
    if (!sound || (seen & PIECES_NEEDED) != PIECES_NEEDED) {
        vcpu_state_finish(&s);
        free(cpuid);
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the state of a vCPU is malformed");
    }
    *ret_state = s;
    *ret_cpuid = cpuid;
    return 0;
}
