/* State of a machine out of KVM and devices and back; the order and its reasons are in machine_state.h. */
#include "compute/vmm/machine_state.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "compute/vmm/pci_state.h"

enum { CLOCK_VERSION = 1, CHIPS_VERSION = 1, DEVICE_VERSION = 1, TSC_TOLERANCE_PPM = 250 };
#define CLOCK_HAS_HOST_TSC (1u << 3) /* KVM_CLOCK_HOST_TSC, which older headers lack */

static const uint32_t chip_ids[3] = {KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC};

/* ---- save ---- */

static int put(struct stream_writer *out, const char *name, uint16_t version, struct bytes_writer *bytes,
               struct error *err)
{
    int code = bytes->size < STREAM_SECTION_BYTES_MAX - 1024
                   ? stream_put_state(out, name, version, bytes->data, bytes->size, err)
                   : error_set(err, -E2BIG, ERROR_TOO_LARGE, "the state of %s has %zu bytes", name, bytes->size);
    bytes_writer_finish(bytes);
    return code;
}

static int clock_save(struct machine *m, struct stream_writer *out, struct error *err)
{
    struct kvm_clock_data clock;
    struct bytes_writer bytes = {0};
    int code = kvm_get_clock(&m->kvm, &clock, err);
    if (code < 0)
        return code;
    bytes_put_u64(&bytes, clock.clock);
    bytes_put_u32(&bytes, clock.flags);
    bytes_put_u64(&bytes, clock.realtime);
    bytes_put_u64(&bytes, clock.host_tsc);
    return put(out, "clock", CLOCK_VERSION, &bytes, err);
}

static int vcpus_save(struct machine *m, struct stream_writer *out, struct error *err)
{
    for (unsigned i = 0; i < m->vcpus.count; i++) {
        struct vcpu *v = &m->vcpus.vcpus[i];
        struct vcpu_state state;
        struct bytes_writer bytes = {0};
        char name[16];
        int code = vcpu_state_get(&v->kvm, m->vcpus.msrs, &state, err);
        if (code < 0) {
            error_prefix(err, "vCPU %u: ", i);
            return code;
        }
        snprintf(name, sizeof(name), "vcpu%u", i);
        vcpu_state_encode(&state, v->cpuid, &bytes);
        vcpu_state_finish(&state);
        code = put(out, name, VCPU_STATE_VERSION, &bytes, err);
        if (code < 0)
            return code;
    }
    return 0;
}

static int chips_save(struct machine *m, struct stream_writer *out, struct error *err)
{
    struct bytes_writer bytes = {0};
    struct kvm_pit_state2 pit;
    int code = kvm_get_pit(&m->kvm, &pit, err);
    if (code == 0)
        bytes_put(&bytes, &pit, sizeof(pit));
    for (unsigned i = 0; code == 0 && i < ARRAY_SIZE(chip_ids); i++) {
        struct kvm_irqchip chip;
        code = kvm_get_irqchip(&m->kvm, chip_ids[i], &chip, err);
        if (code == 0)
            bytes_put(&bytes, &chip, sizeof(chip));
    }
    if (code == 0)
        return put(out, "chips", CHIPS_VERSION, &bytes, err);
    bytes_writer_finish(&bytes);
    return code;
}

static int devices_save(struct machine *m, struct stream_writer *out, struct error *err)
{
    struct bytes_writer bytes = {0};
    pci_state_save(&m->pci, &bytes);
    int code = put(out, "pci", PCI_STATE_VERSION, &bytes, err);
    LIST_FOREACH(link, &m->devices)
    {
        struct device *d = LIST_ENTRY(link, struct device, link);
        if (code < 0)
            return code;
        if (!d->ops->save)
            continue;
        d->ops->save(d, &bytes);
        code = put(out, d->name, DEVICE_VERSION, &bytes, err);
    }
    return code;
}

int machine_state_save(struct machine *m, struct stream_writer *out, struct error *err)
{
    ASSERT(vcpu_set_holds(&m->vcpus) != 0);
    pthread_mutex_lock(&m->device_lock);
    int code = clock_save(m, out, err);
    if (code == 0)
        code = vcpus_save(m, out, err);
    if (code == 0)
        code = chips_save(m, out, err);
    if (code == 0)
        code = devices_save(m, out, err);
    pthread_mutex_unlock(&m->device_lock);
    return code;
}

/* ---- load ---- */

struct saved_vcpu {
    struct vcpu_state state;
    struct kvm_cpuid2 *cpuid;
};
struct saved_vcpus {
    unsigned count;
    struct saved_vcpu vcpus[KVM_VCPUS_MAX];
};

static void saved_vcpus_finish(struct saved_vcpus *saved)
{
    for (unsigned i = 0; i < saved->count; i++) {
        vcpu_state_finish(&saved->vcpus[i].state);
        free(saved->vcpus[i].cpuid);
    }
    free(saved);
}

static int malformed(struct error *err, const char *name)
{
    return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the state of \"%s\" is malformed", name);
}

static bool msr_is_known(const struct kvm_msr_list *known, uint32_t index)
{
    for (uint32_t i = 0; i < known->nmsrs; i++)
        if (known->indices[i] == index)
            return true;
    return false;
}

int machine_state_judge_cpuid(struct machine *m, unsigned vcpu, const struct kvm_cpuid2 *cpuid, struct error *err)
{
    size_t bytes = sizeof(struct kvm_cpuid2) + KVM_CPUID_ENTRIES_MAX * sizeof(struct kvm_cpuid_entry2);
    CLEANUP_FREE struct kvm_cpuid2 *here = xcalloc(1, bytes);
    struct cpuid_options options = vcpu_cpuid_options(&m->vcpus, &m->kvm);
    memcpy(here, m->vcpus.offered, bytes);
    vcpu_cpuid_fix(here, &options, vcpu);
    return cpu_model_check_subset(cpuid, here, err);
}

int machine_state_judge_msr(const struct machine *m, uint32_t index, struct error *err)
{
    if (msr_is_known(m->vcpus.msrs, index))
        return 0;
    return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                     "the guest's processor has MSR %#x, which this host's KVM does not know", index);
}

int machine_state_judge_tsc(const struct machine *m, uint32_t here, uint32_t wanted, struct error *err)
{
    uint64_t difference = wanted > here ? wanted - here : here - wanted;
    if (difference * 1000000 <= (uint64_t)here * TSC_TOLERANCE_PPM || m->kvm.can_scale_tsc)
        return 0;
    return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                     "the guest's clock ran at %u kHz, this host's runs at %u kHz, and its processors cannot scale; "
                     "take a host of the same rate",
                     wanted, here);
}

/* Can this host run what was saved of vCPU @i? Asked before anything is changed. */
static int vcpu_judge(struct machine *m, unsigned i, struct saved_vcpu *saved, struct error *err)
{
    int code = machine_state_judge_cpuid(m, i, saved->cpuid, err);
    for (uint32_t n = 0; code == 0 && n < saved->state.msrs->nmsrs; n++)
        code = machine_state_judge_msr(m, saved->state.msrs->entries[n].index, err);
    if (code < 0)
        return code;
    if (saved->state.nested && !m->kvm.nested_bytes)
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                         "the guest may run guests of its own, which this host's KVM cannot do");
    return 0;
}

static int vcpus_read(struct machine *m, struct stream_states *states, struct saved_vcpus *saved, struct error *err)
{
    for (unsigned i = 0; i < m->vcpus.count; i++) {
        char name[16];
        snprintf(name, sizeof(name), "vcpu%u", i);
        struct stream_state *s = stream_states_take(states, name, VCPU_STATE_VERSION, err);
        if (!s)
            return -EBADMSG;
        struct bytes_reader in = bytes_reader(s->data, s->size);
        int code = vcpu_state_decode(&in, &saved->vcpus[i].state, &saved->vcpus[i].cpuid, err);
        if (code < 0)
            return code;
        saved->count++;
        code = vcpu_judge(m, i, &saved->vcpus[i], err);
        if (code < 0)
            return code;
    }
    return 0;
}

static int tsc_khz_load(struct machine *m, struct vcpu *v, uint32_t wanted, struct error *err)
{
    uint32_t here;
    int code = kvm_vcpu_get_tsc_khz(&v->kvm, &here, err);
    if (code < 0)
        return code;
    uint64_t difference = wanted > here ? wanted - here : here - wanted;
    if (difference * 1000000 <= (uint64_t)here * TSC_TOLERANCE_PPM)
        return 0;
    code = machine_state_judge_tsc(m, here, wanted, err);
    if (code == 0)
        code = kvm_vcpu_set_tsc_khz(&v->kvm, wanted, err);
    if (code == 0)
        v->initial.tsc_khz = wanted; /* what the next host is asked for */
    return code;
}

static int vcpus_load(struct machine *m, struct saved_vcpus *saved, struct error *err)
{
    for (unsigned i = 0; i < saved->count; i++) {
        struct vcpu *v = &m->vcpus.vcpus[i];
        struct saved_vcpu *s = &saved->vcpus[i];
        int code = tsc_khz_load(m, v, s->state.tsc_khz, err);
        if (code == 0)
            code = kvm_vcpu_set_cpuid(&v->kvm, s->cpuid, err);
        if (code == 0)
            code = vcpu_state_set_unarmed(&v->kvm, &s->state, err);
        if (code < 0) {
            error_prefix(err, "vCPU %u: ", i);
            return code;
        }
        free(v->cpuid); /* a reset shows the guest the same processor again */
        v->cpuid = TAKE_PTR(s->cpuid);
    }
    return 0;
}

static int chips_load(struct machine *m, struct stream_states *states, struct error *err)
{
    struct stream_state *s = stream_states_take(states, "chips", CHIPS_VERSION, err);
    if (!s)
        return -EBADMSG;
    struct kvm_pit_state2 pit;
    struct kvm_irqchip chip;
    struct bytes_reader in = bytes_reader(s->data, s->size);
    if (s->size != sizeof(pit) + ARRAY_SIZE(chip_ids) * sizeof(chip))
        return malformed(err, "chips");
    memcpy(&pit, bytes_get(&in, sizeof(pit)), sizeof(pit));
    int code = kvm_set_pit(&m->kvm, &pit, err);
    for (unsigned i = 0; code == 0 && i < ARRAY_SIZE(chip_ids); i++) {
        memcpy(&chip, bytes_get(&in, sizeof(chip)), sizeof(chip));
        code = chip.chip_id == chip_ids[i] ? kvm_set_irqchip(&m->kvm, &chip, err) : malformed(err, "chips");
    }
    return code;
}

static int device_load(struct device *d, struct stream_states *states, struct error *err)
{
    if (!d->ops->load)
        return 0;
    struct stream_state *s = stream_states_take(states, d->name, DEVICE_VERSION, err);
    if (!s)
        return -EBADMSG;
    struct bytes_reader in = bytes_reader(s->data, s->size);
    int code = d->ops->load(d, &in, err);
    return code == 0 && bytes_left(&in) ? malformed(err, d->name) : code;
}

static int devices_load(struct machine *m, struct stream_states *states, struct error *err)
{
    struct stream_state *s = stream_states_take(states, "pci", PCI_STATE_VERSION, err);
    if (!s)
        return -EBADMSG;
    struct bytes_reader in = bytes_reader(s->data, s->size);
    int code = pci_state_load(&m->pci, &in, err);
    if (code == 0 && bytes_left(&in))
        code = malformed(err, "pci");
    LIST_FOREACH(link, &m->devices)
    {
        if (code < 0)
            return code;
        code = device_load(LIST_ENTRY(link, struct device, link), states, err);
    }
    return code;
}

uint64_t machine_state_tsc_offset(uint64_t guest_tsc, uint64_t clock_there, uint64_t clock_here, uint64_t host_tsc,
                                  uint32_t khz)
{
    __int128 since_ns = (__int128)clock_here - (__int128)clock_there;
    uint64_t guest_tsc_here = guest_tsc + (uint64_t)(since_ns * khz / 1000000);
    return guest_tsc_here - host_tsc;
}

/* The first vCPU's TSC agrees with kvmclock where KVM tells the host's TSC on both sides and nothing is scaled;
 * otherwise it is as its MSR was set. The others keep their distance from it: set one by one through the MSR they
 * would have drifted by the time that took. */
static int tscs_align(struct machine *m, const struct saved_vcpus *saved, const struct kvm_clock_data *there,
                      struct error *err)
{
    struct kvm_clock_data here;
    const struct vcpu_state *first = &saved->vcpus[0].state;
    uint64_t offset;
    uint32_t khz;
    int code = kvm_vcpu_get_tsc_offset(&m->vcpus.vcpus[0].kvm, &offset, err);
    if (code == -ENOTSUP || !first->has_tsc_offset)
        return 0;
    if (code == 0)
        code = kvm_get_clock(&m->kvm, &here, err);
    if (code == 0)
        code = kvm_vcpu_get_tsc_khz(&m->vcpus.vcpus[0].kvm, &khz, err);
    if (code < 0)
        return code;
    if (there->flags & here.flags & CLOCK_HAS_HOST_TSC && khz == first->tsc_khz && !m->kvm.can_scale_tsc)
        offset = machine_state_tsc_offset(there->host_tsc + first->tsc_offset, there->clock, here.clock,
                                          here.host_tsc, khz);
    for (unsigned i = 0; code == 0 && i < saved->count; i++)
        code = kvm_vcpu_set_tsc_offset(&m->vcpus.vcpus[i].kvm,
                                       offset + (saved->vcpus[i].state.tsc_offset - first->tsc_offset), err);
    return code;
}

static int clocks_load(struct machine *m, struct stream_states *states, const struct saved_vcpus *saved,
                       struct error *err)
{
    struct stream_state *s = stream_states_take(states, "clock", CLOCK_VERSION, err);
    if (!s)
        return -EBADMSG;
    struct bytes_reader in = bytes_reader(s->data, s->size);
    struct kvm_clock_data there = {.clock = bytes_get_u64(&in)};
    there.flags = bytes_get_u32(&in);
    there.realtime = bytes_get_u64(&in);
    there.host_tsc = bytes_get_u64(&in);
    if (in.bad || bytes_left(&in))
        return malformed(err, "clock");
    /* No flags: with the wall clock in it, a guest's monotonic time would jump by the time that it lay in a file. */
    struct kvm_clock_data clock = {.clock = there.clock};
    int code = kvm_set_clock(&m->kvm, &clock, err);
    if (code == 0)
        code = tscs_align(m, saved, &there, err);
    for (unsigned i = 0; code == 0 && i < saved->count; i++)
        code = vcpu_state_arm(&m->vcpus.vcpus[i].kvm, &saved->vcpus[i].state, err);
    return code;
}

int machine_state_load(struct machine *m, struct stream_states *states, struct error *err)
{
    struct saved_vcpus *saved = NEW(struct saved_vcpus);
    ASSERT(vcpu_set_holds(&m->vcpus) != 0);
    pthread_mutex_lock(&m->device_lock);
    int code = vcpus_read(m, states, saved, err);
    if (code == 0)
        code = vcpus_load(m, saved, err);
    if (code == 0)
        code = chips_load(m, states, err);
    if (code == 0)
        code = devices_load(m, states, err);
    if (code == 0)
        code = clocks_load(m, states, saved, err);
    pthread_mutex_unlock(&m->device_lock);
    saved_vcpus_finish(saved);
    return code < 0 ? code : stream_states_check_taken(states, err);
}

/* ---- description ---- */

static const char *or_default(const char *text, const char *otherwise)
{
    return text ? text : otherwise;
}

/* Disks and interfaces as they are now, plugged and unplugged, each in its slot. */
static void slots_describe(const struct machine *m, struct vmm_config *config)
{
    struct vmm_disk *disks = config->disks.items;
    struct vmm_nic *nics = config->nics.items;
    for (size_t i = 0; i < config->disks.count; i++)
        OBJECT_CLEAR(vmm_disk, &disks[i]);
    for (size_t i = 0; i < config->nics.count; i++)
        OBJECT_CLEAR(vmm_nic, &nics[i]);
    free(disks);
    free(nics);
    config->disks = config->nics = (struct object_list){0};
    for (unsigned i = 0; i < PCI_SLOTS; i++) {
        const struct machine_slot *slot = &m->slots.slots[i];
        if (slot->kind == SLOT_DISK) {
            struct vmm_disk *disk = OBJECT_ADD(vmm_config, config, disks);
            OBJECT_COPY(vmm_disk, disk, &slot->disk);
            OBJECT_TEXT(vmm_disk, disk, id, slot->id);
            OBJECT_SET(vmm_disk, disk, slot, slot->number);
        } else if (slot->kind == SLOT_NIC) {
            struct vmm_nic *nic = OBJECT_ADD(vmm_config, config, nics);
            OBJECT_COPY(vmm_nic, nic, &slot->nic);
            OBJECT_TEXT(vmm_nic, nic, id, slot->id);
            OBJECT_SET(vmm_nic, nic, slot, slot->number);
        }
    }
}

void machine_description_fill(const struct machine *m, struct machine_description *d)
{
    OBJECT_TEXT(machine_description, d, machine, or_default(m->config->machine, "pc-1"));
    OBJECT_SET(machine_description, d, vcpus, m->config->vcpus);
    OBJECT_SET(machine_description, d, memory_bytes, m->memory.size_bytes);
    OBJECT_TEXT(machine_description, d, cpu_model, or_default(m->config->cpu_model, CPU_MODEL_DEFAULT));
    OBJECT_COPY(vmm_config, &d->config, m->config);
    slots_describe(m, &d->config);
    object_mark(&machine_description_desc, d, "config");
}

int machine_description_check(const struct machine_description *saved, const struct vmm_config *config,
                              struct error *err)
{
    const char *machine = or_default(config->machine, "pc-1");
    const char *model = or_default(config->cpu_model, CPU_MODEL_DEFAULT);
    if (strcmp(saved->machine, machine) != 0)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/machine",
                               "the saved machine is of type %s, the configuration says %s", saved->machine, machine);
    if (saved->vcpus != config->vcpus)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/vcpus",
                               "the saved machine has %u vCPUs, the configuration says %u", saved->vcpus,
                               config->vcpus);
    if (saved->cpu_model && strcmp(saved->cpu_model, model) != 0)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/cpu_model",
                               "the saved machine has CPU model %s, the configuration says %s", saved->cpu_model,
                               model);
    return 0;
}
