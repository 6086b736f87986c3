/* Processor and devices, written and judged; see machine_check.h. */
#include "compute/vmm/machine_check.h"

#include <errno.h>
#include <string.h>

#include "compute/vmm/machine_state.h"

enum { CHECK_VERSION = 1 };

static int put(struct stream_writer *out, const char *name, struct bytes_writer *bytes, struct error *err)
{
    int code = stream_put_state(out, name, CHECK_VERSION, bytes->data, bytes->size, err);
    bytes_writer_finish(bytes);
    return code;
}

int machine_check_save(struct machine *m, struct stream_writer *out, struct error *err)
{
    const struct vcpu *v = &m->vcpus.vcpus[0];
    struct bytes_writer cpu = {0}, devices = {0};
    uint16_t count = 0;
    bytes_put_u32(&cpu, v->initial.tsc_khz);
    bytes_put_u32(&cpu, v->cpuid->nent);
    bytes_put(&cpu, v->cpuid->entries, v->cpuid->nent * sizeof(v->cpuid->entries[0]));
    bytes_put_u32(&cpu, m->vcpus.msrs->nmsrs);
    for (uint32_t i = 0; i < m->vcpus.msrs->nmsrs; i++)
        bytes_put_u32(&cpu, m->vcpus.msrs->indices[i]);
    LIST_FOREACH(link, &m->devices)
    {
        count++;
    }
    bytes_put_u16(&devices, count);
    LIST_FOREACH(link, &m->devices)
    {
        const struct device *d = LIST_ENTRY(link, struct device, link);
        bytes_put_u8(&devices, (uint8_t)strlen(d->name));
        bytes_put(&devices, d->name, strlen(d->name));
    }
    int code = put(out, "check-cpu", &cpu, err);
    if (code < 0) {
        bytes_writer_finish(&devices);
        return code;
    }
    return put(out, "check-devices", &devices, err);
}

static int malformed(struct error *err)
{
    return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the source's description of its machine is malformed");
}

static int cpu_judge(struct machine *m, const struct stream_state *s, struct error *err)
{
    struct bytes_reader in = bytes_reader(s->data, s->size);
    uint32_t khz = bytes_get_u32(&in), entries = bytes_get_u32(&in);
    if (in.bad || entries > KVM_CPUID_ENTRIES_MAX)
        return malformed(err);
    CLEANUP_FREE struct kvm_cpuid2 *cpuid =
        xcalloc(1, sizeof(*cpuid) + KVM_CPUID_ENTRIES_MAX * sizeof(cpuid->entries[0]));
    size_t size = entries * sizeof(cpuid->entries[0]);
    const void *data = bytes_get(&in, size);
    uint32_t msrs = bytes_get_u32(&in);
    if (in.bad || msrs > KVM_MSRS_MAX || bytes_left(&in) != (size_t)msrs * 4)
        return malformed(err);
    cpuid->nent = entries;
    if (size)
        memcpy(cpuid->entries, data, size);
    int code = machine_state_judge_cpuid(m, 0, cpuid, err);
    for (uint32_t i = 0; code == 0 && i < msrs; i++)
        code = machine_state_judge_msr(m, bytes_get_u32(&in), err);
    return code < 0 ? code : machine_state_judge_tsc(m, m->vcpus.vcpus[0].initial.tsc_khz, khz, err);
}

static int devices_judge(struct machine *m, const struct stream_state *s, struct error *err)
{
    struct bytes_reader in = bytes_reader(s->data, s->size);
    unsigned count = bytes_get_u16(&in);
    LIST_FOREACH(link, &m->devices)
    {
        const struct device *d = LIST_ENTRY(link, struct device, link);
        size_t length = count ? bytes_get_u8(&in) : 0;
        const char *name = bytes_get(&in, length);
        if (in.bad)
            return malformed(err);
        if (length != strlen(d->name) || memcmp(name, d->name, length) != 0)
            return error_set(err, -EINVAL, ERROR_INVALID,
                             "this machine has \"%s\" where the source has \"%.*s\"; their configurations must be the "
                             "same (a VM whose devices were plugged in or out while it ran is to be stopped and "
                             "started first)",
                             d->name, (int)MIN(length, 31u), name ? name : "");
        count--;
    }
    return count == 0 && bytes_left(&in) == 0
               ? 0
               : error_set(err, -EINVAL, ERROR_INVALID,
                           "the source has devices that this machine lacks; their configurations must be the same");
}

int machine_check_load(struct machine *m, struct stream_states *states, struct error *err)
{
    struct stream_state *cpu = stream_states_take(states, "check-cpu", CHECK_VERSION, err);
    struct stream_state *devices = cpu ? stream_states_take(states, "check-devices", CHECK_VERSION, err) : NULL;
    if (!devices)
        return -EBADMSG;
    int code = cpu_judge(m, cpu, err);
    return code < 0 ? code : devices_judge(m, devices, err);
}
