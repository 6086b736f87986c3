/* The devices of pc-1, in the order in which they are made, reset, paused and resumed. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "compute/vmm/devices/board/board.h"
#include "compute/vmm/devices/cmos/cmos.h"
#include "compute/vmm/devices/pm/pm.h"
#include "compute/vmm/devices/pvpanic/pvpanic.h"
#include "compute/vmm/devices/rng/rng.h"
#include "compute/vmm/devices/serial/serial.h"
#include "compute/vmm/devices/vsock/vsock.h"
#include "compute/vmm/devices/testdev/testdev.h"
#include "compute/vmm/machine.h"
#include "compute/vmm/pc1_layout.h"

static void device_add(struct machine *m, struct device *d)
{
    list_append(&m->devices, &d->link);
}

static void serial_output(void *arg, const void *data, size_t size)
{
    console_output(arg, data, size);
}

/* Fixed parts: board, clock, power management, COM1. */
static int board_devices_add(struct machine *m, power_fn power, void *power_arg, struct error *err)
{
    struct device *board, *cmos;
    uint64_t low = m->memory.regions[0].size;
    int code = board_create(&m->ports, &m->pci, power, power_arg, &board, err);
    if (code < 0)
        return code;
    device_add(m, board);
    code = cmos_create(&m->ports, low, m->memory.size_bytes - low, &cmos, err);
    if (code < 0)
        return code;
    device_add(m, cmos);
    code = pm_create(&m->ports, &m->pci, &m->kvm.irq, power, power_arg, &m->pm, err);
    if (code < 0)
        return code;
    device_add(m, pm_device(m->pm));
    code = serial_create("serial0", &m->ports, PC1_PORT_SERIAL0, &m->kvm.irq, PC1_IRQ_SERIAL0, serial_output,
                         m->console, &m->serial, err);
    if (code < 0)
        return code;
    device_add(m, serial_device(m->serial));
    code = pvpanic_create(&m->ports, &m->pvpanic, err);
    if (code < 0)
        return code;
    device_add(m, pvpanic_device(m->pvpanic));
    return machine_firmware_add(m, err);
}

static int testdev_add(struct machine *m, struct error *err)
{
    struct testdev_options options = {.ports = &m->ports,
                                      .mmio = &m->mmio,
                                      .memory = &m->memory,
                                      .irq = &m->kvm.irq,
                                      .exit = machine_debug_exit,
                                      .exit_arg = m};
    struct device *testdev;
    int code = testdev_create(&options, &testdev, err);
    if (code == 0)
        device_add(m, testdev);
    return code;
}

static int rng_add(struct machine *m, struct error *err)
{
    struct virtio_device *virtio;
    int code = rng_create(&m->memory, &virtio, err);
    return code < 0 ? code : machine_slot_add_other(m, virtio, "rng0", err);
}

/* The field of an error in an item of a list, as of the whole configuration. */
static int item_failed(struct error *err, int code, const char *list, size_t index)
{
    char field[sizeof(err->field)];
    if (code == 0 || !err)
        return code;
    snprintf(field, sizeof(field), "/%s/%zu%.80s", list, index, err->field);
    memcpy(err->field, field, sizeof(field));
    return code;
}

static int vsock_add(struct machine *m, const struct vmm_vsock *config, struct error *err)
{
    struct virtio_device *virtio;
    struct vsock_options options = {.cid = config->cid, .path = config->path};
    int code = vsock_create(&options, &m->memory, m->io, &virtio, err);
    return code < 0 ? code : machine_slot_add_other(m, virtio, "vsock0", err);
}

int machine_devices_add(struct machine *m, power_fn power, void *power_arg, struct error *err)
{
    const struct vmm_config *c = m->config;
    const struct vmm_disk *disks = c->disks.items;
    const struct vmm_nic *nics = c->nics.items;
    bool rng = c->rng || !OBJECT_HAS(vmm_config, c, rng);
    int code = board_devices_add(m, power, power_arg, err);
    if (code == 0 && m->options.debug_exit)
        code = testdev_add(m, err);
    if (code == 0)
        code = machine_slots_init(m, err);
    for (size_t i = 0; code == 0 && i < c->disks.count; i++)
        code = item_failed(err, machine_slot_add_disk(m, &disks[i], NULL, err), "disks", i);
    for (size_t i = 0; code == 0 && i < c->nics.count; i++)
        code = item_failed(err, machine_slot_add_nic(m, &nics[i], NULL, err), "nics", i);
    if (code == 0 && rng)
        code = rng_add(m, err);
    if (code == 0 && c->balloon && (code = guest_balloon_create(&m->guest, &m->memory, err)) == 0)
        code = machine_slot_add_other(m, m->guest.balloon, "balloon0", err);
    if (code == 0 && c->agent_channel && (code = guest_channel_create(&m->guest, &m->memory, m->io, err)) == 0)
        code = machine_slot_add_other(m, m->guest.channel, "channel0", err);
    if (code == 0 && OBJECT_HAS(vmm_config, c, vsock))
        code = vsock_add(m, &c->vsock, err);
    return code;
}
