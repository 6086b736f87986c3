/* Any bytes as the state of a vCPU or of the PCI bus: refused in words, or taken and written again as they were. */
#include <string.h>

#include "compute/vmm/pci_state.h"
#include "compute/vmm/vcpu_state.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void vcpu_try(struct bytes_reader *in)
{
    struct vcpu_state state;
    struct kvm_cpuid2 *cpuid;
    struct error err = {0};
    if (vcpu_state_decode(in, &state, &cpuid, &err) < 0) {
        ASSERT(err.text[0] != '\0');
        return;
    }
    struct bytes_writer out = {0};
    vcpu_state_encode(&state, cpuid, &out);
    ASSERT(out.size > 0);
    bytes_writer_finish(&out);
    vcpu_state_finish(&state);
    free(cpuid);
}

static void bus_try(struct bytes_reader *in)
{
    struct bus memory, ports;
    struct pci_bus bus;
    struct pci_device device;
    struct error err = {0};
    memset(&device, 0, sizeof(device));
    bus_init(&memory, NULL);
    bus_init(&ports, NULL);
    ASSERT(pci_bus_init(&bus, &memory, &ports, NULL) == 0);
    pci_device_init(&device, NULL, 0x1af4, 0x1042, 0x018000, 1);
    pci_bar_set(&device, 0, PCI_BAR_IO, 64, false);
    pci_bar_set(&device, 4, PCI_BAR_MEMORY64, 0x8000, true);
    ASSERT(pci_bus_add(&bus, 3, &device, NULL) == 0);
    uint8_t ids[4];
    memcpy(ids, device.config, sizeof(ids));
    ASSERT(pci_state_load(&bus, in, &err) == 0 || err.text[0] != '\0');
    ASSERT(memcmp(ids, device.config, sizeof(ids)) == 0);
    bus_finish(&memory);
    bus_finish(&ports);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    struct bytes_reader in = bytes_reader(data + 1, size - 1);
    if (data[0] & 1)
        vcpu_try(&in);
    else
        bus_try(&in);
    return 0;
}
