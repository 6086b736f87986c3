/* Parts of a machine's state that need no KVM: a vCPU as bytes, the PCI bus, the arithmetic of the TSC. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "compute/vmm/machine_state.h"
#include "compute/vmm/pci_state.h"

static void vcpu_make(struct vcpu_state *s)
{
    *s = (struct vcpu_state){.xsave_bytes = 8192, .tsc_khz = 2500000, .has_tsc_offset = true, .tsc_offset = 77};
    s->xsave = xcalloc(1, s->xsave_bytes);
    memset(s->xsave, 0x5a, s->xsave_bytes);
    s->regs.rip = 0x1234;
    s->events.nmi.pending = 1;
    s->msrs = xcalloc(1, sizeof(*s->msrs) + 2 * sizeof(s->msrs->entries[0]));
    s->msrs->nmsrs = 2;
    s->msrs->entries[0] = (struct kvm_msr_entry){.index = VCPU_MSR_TSC, .data = 1ull << 40};
    s->msrs->entries[1] = (struct kvm_msr_entry){.index = VCPU_MSR_TSC_DEADLINE, .data = 5};
}

static int decode(const struct bytes_writer *bytes, size_t size, struct vcpu_state *s, struct kvm_cpuid2 **cpuid)
{
    struct error err = {0};
    uint8_t *copy = malloc(size ? size : 1);
    memcpy(copy, bytes->data, size);
    struct bytes_reader in = bytes_reader(copy, size);
    int code = vcpu_state_decode(&in, s, cpuid, &err);
    free(copy);
    assert_true(code == 0 || err.text[0]);
    return code;
}

static void vcpu_comes_back_from_bytes(void **state)
{
    struct vcpu_state s, back;
    struct kvm_cpuid2 *cpuid = xcalloc(1, sizeof(*cpuid) + sizeof(cpuid->entries[0])), *cpuid_back;
    struct bytes_writer out = {0}, again = {0};
    (void)state;
    vcpu_make(&s);
    cpuid->nent = 1;
    cpuid->entries[0].eax = 0xd;
    vcpu_state_encode(&s, cpuid, &out);
    assert_int_equal(decode(&out, out.size, &back, &cpuid_back), 0);
    assert_int_equal(back.regs.rip, 0x1234);
    assert_int_equal(back.tsc_offset, 77);
    assert_int_equal(*vcpu_state_msr(&back, VCPU_MSR_TSC), 1ull << 40);
    assert_null(vcpu_state_msr(&back, 1));
    vcpu_state_encode(&back, cpuid_back, &again);
    assert_int_equal(again.size, out.size);
    assert_memory_equal(again.data, out.data, out.size);
    vcpu_state_finish(&back);
    free(cpuid_back);
    /* Cut anywhere but before the optional last piece: refused. */
    for (size_t size = 0; size < out.size; size += size < 700 || size > out.size - 300 ? 1 : 97) {
        bool without_offset = size == out.size - 16;
        assert_int_equal(decode(&out, size, &back, &cpuid_back), without_offset ? 0 : -EBADMSG);
        if (without_offset) {
            assert_false(back.has_tsc_offset);
            vcpu_state_finish(&back);
            free(cpuid_back);
        }
    }
    /* A piece that is there twice, and one of an unknown kind. */
    size_t end = out.size;
    bytes_put(&out, out.data, 8 + sizeof(struct kvm_mp_state));
    assert_int_equal(decode(&out, out.size, &back, &cpuid_back), -EBADMSG);
    out.size = end;
    bytes_put_u16(&out, 99);
    bytes_put_u16(&out, 0);
    bytes_put_u32(&out, 0);
    assert_int_equal(decode(&out, out.size, &back, &cpuid_back), -EBADMSG);
    bytes_writer_finish(&out);
    bytes_writer_finish(&again);
    vcpu_state_finish(&s);
    free(cpuid);
}

struct world {
    struct bus memory, ports;
    struct pci_bus bus;
    struct pci_device disk;
};

static void world_init(struct world *w, uint16_t device_id)
{
    memset(w, 0, sizeof(*w));
    bus_init(&w->memory, NULL);
    bus_init(&w->ports, NULL);
    assert_int_equal(pci_bus_init(&w->bus, &w->memory, &w->ports, NULL), 0);
    pci_device_init(&w->disk, NULL, 0x1af4, device_id, 0x018000, 1);
    pci_bar_set(&w->disk, 4, PCI_BAR_MEMORY64, 0x8000, true);
    w->disk.writable[0x60] = 0x0f;
    assert_int_equal(pci_bus_add(&w->bus, 3, &w->disk, NULL), 0);
}

static void world_finish(struct world *w)
{
    bus_finish(&w->memory);
    bus_finish(&w->ports);
}

static void pci_bus_comes_back(void **state)
{
    struct world from, to, other;
    struct bytes_writer out = {0}, again = {0};
    struct error err = {0};
    (void)state;
    world_init(&from, 0x1042);
    world_init(&to, 0x1042);
    world_init(&other, 0x1041);
    pci_config_write(&from.bus, 3, 0, PCI_BAR0 + 16, 4, 0x20000000);
    pci_config_write(&from.bus, 3, 0, PCI_BAR0 + 20, 4, 0x9);
    pci_config_write(&from.bus, 3, 0, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    pci_config_write(&from.bus, 3, 0, 0x60, 1, 0xa5);
    bus_write(&from.ports, 0xcf8, 4, 0x80001810);
    pci_state_save(&from.bus, &out);
    struct bytes_reader in = bytes_reader(out.data, out.size);
    if (pci_state_load(&to.bus, &in, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(bytes_left(&in), 0);
    assert_true(to.disk.bars[4].mapped);
    assert_true(to.disk.bars[4].address == 0x920000000ull);
    assert_int_equal(pci_config_read(&to.bus, 3, 0, 0x60, 1), 0x05);
    assert_int_equal(bus_read(&to.ports, 0xcf8, 4), 0x80001810);
    pci_state_save(&to.bus, &again);
    assert_int_equal(again.size, out.size);
    assert_memory_equal(again.data, out.data, out.size);
    in = bytes_reader(out.data, out.size);
    assert_int_equal(pci_state_load(&other.bus, &in, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "1af4:1042"));
    assert_non_null(strstr(err.text, "3.0"));
    for (size_t size = 0; size < out.size; size++) {
        in = bytes_reader(out.data, size);
        assert_int_equal(pci_state_load(&to.bus, &in, &err), -EBADMSG);
    }
    bytes_writer_finish(&out);
    bytes_writer_finish(&again);
    world_finish(&from);
    world_finish(&to);
    world_finish(&other);
}

static void tsc_agrees_with_the_clock(void **state)
{
    (void)state;
    /* The clock was put back to where it was and has gone on for 1 ms at 2 GHz. */
    uint64_t offset = machine_state_tsc_offset(5000000000ull, 7000000000ull, 7001000000ull, 900000000000ull, 2000000);
    assert_true(900000000000ull + offset == 5000000000ull + 2000000ull);
    /* A clock that is behind, and sums that wrap. */
    offset = machine_state_tsc_offset(1000, 2000, 1500, UINT64_MAX - 5, 2000000);
    assert_true(UINT64_MAX - 5 + offset == 0);
}

/* The snapshot would not have the change, and where the machine stops with it nobody would. */
static void nothing_changes_while_a_snapshot_is_written(void **state)
{
    struct machine m = {.frozen = true};
    struct error err = {0};
    (void)state;
    assert_int_equal(machine_changeable(&m, &err), -EBUSY);
    assert_int_equal(err.kind, ERROR_CONFLICT);
    assert_non_null(strstr(err.text, "snapshot"));
    m.frozen = false;
    assert_int_equal(machine_changeable(&m, &err), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vcpu_comes_back_from_bytes),
        cmocka_unit_test(pci_bus_comes_back),
        cmocka_unit_test(tsc_agrees_with_the_clock),
        cmocka_unit_test(nothing_changes_while_a_snapshot_is_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
