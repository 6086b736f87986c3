/* The devices of pc-1, in the order in which they are made, reset, paused and resumed. */
#include <errno.h>
#include <stdio.h>

#include "compute/vmm/block/block_file.h"
#include "compute/vmm/devices/blk/blk.h"
#include "compute/vmm/devices/board/board.h"
#include "compute/vmm/devices/cmos/cmos.h"
#include "compute/vmm/devices/net/net.h"
#include "compute/vmm/devices/pm/pm.h"
#include "compute/vmm/devices/rng/rng.h"
#include "compute/vmm/devices/serial/serial.h"
#include "compute/vmm/devices/testdev/testdev.h"
#include "compute/vmm/machine.h"
#include "compute/vmm/pc1_layout.h"
#include "compute/vmm/virtio/virtio_pci.h"

#define DISK_QUEUES_MAX 4u

static void device_add(struct machine *m, struct device *d)
{
    list_append(&m->devices, &d->link);
}

static void serial_output(void *arg, const void *data, size_t size)
{
    console_output(arg, data, size);
}

static bool may_submit(void *arg)
{
    return lease_allows_io(arg);
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
    return 0;
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

/* Show @virtio at @slot; it is released here when that fails. */
static int virtio_add(struct machine *m, struct virtio_device *virtio, const char *name, unsigned slot,
                      struct error *err)
{
    struct virtio_pci *transport;
    int code = virtio_pci_create(virtio, name, &m->pci, slot, &m->kvm.irq, m->io, &transport, err);
    if (code < 0) {
        virtio->ops->destroy(virtio);
        return code;
    }
    device_add(m, virtio_pci_device(transport));
    return 0;
}

/* NULL: threads. */
static int engine_choose(struct machine *m, const struct vmm_disk *disk, struct uring **ret_uring, struct error *err)
{
    *ret_uring = disk->engine == disk_engine_THREADS ? NULL : m->uring;
    if (disk->engine == disk_engine_IO_URING && m->uring == NULL)
        return error_set_field(err, -EPERM, ERROR_NOT_SUPPORTED, "/engine",
                               "this host does not permit io_uring; use the engine \"auto\" or \"threads\"");
    return 0;
}

static int disk_add(struct machine *m, const struct vmm_disk *disk, unsigned index, unsigned slot, struct error *err)
{
    struct block *block;
    struct virtio_device *virtio;
    char name[32], field[48];
    snprintf(field, sizeof(field), "/disks/%u/size_bytes", index);
    snprintf(name, sizeof(name), "disk%u", index);
    struct block_file_options file = {.read_only = disk->read_only, .direct = disk->direct};
    int code = engine_choose(m, disk, &file.uring, err);
    if (code == 0)
        code = block_file_open(disk->path, &file, m->io, &block, err);
    if (code < 0) {
        error_prefix(err, "disk %u: ", index);
        return code;
    }
    if (disk->size_bytes && disk->size_bytes != block->size_bytes) {
        code = error_set_field(err, -EINVAL, ERROR_INVALID, field,
                               "%s has %llu bytes, not %llu; give its real size or none", disk->path,
                               (unsigned long long)block->size_bytes, (unsigned long long)disk->size_bytes);
        block_close(block);
        return code;
    }
    block->may_submit = may_submit;
    block->may_submit_arg = &m->lease.lease;
    struct blk_options options = {
        .block = block, .serial = disk->serial, .queues = MIN(m->config->vcpus, DISK_QUEUES_MAX)};
    code = blk_create(&options, &m->memory, m->io, &virtio, err);
    if (code < 0) {
        block_close(block);
        return code;
    }
    return virtio_add(m, virtio, name, slot, err);
}

static int nic_add(struct machine *m, const struct vmm_nic *nic, unsigned index, unsigned slot, struct error *err)
{
    struct virtio_device *virtio;
    char name[32];
    unsigned mac[NET_MAC_BYTES];
    struct net_options options = {
        .tap = nic->tap, .fd = -1, .may_submit = may_submit, .may_submit_arg = &m->lease.lease};
    snprintf(name, sizeof(name), "nic%u", index);
    /* The schema has checked the format. */
    ASSERT(sscanf(nic->mac, "%2x:%2x:%2x:%2x:%2x:%2x", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5]) == 6);
    for (unsigned i = 0; i < NET_MAC_BYTES; i++)
        options.mac[i] = (uint8_t)mac[i];
    int code = net_create(&options, &m->memory, m->io, &virtio, err);
    return code < 0 ? code : virtio_add(m, virtio, name, slot, err);
}

static int rng_add(struct machine *m, unsigned slot, struct error *err)
{
    struct virtio_device *virtio;
    int code = rng_create(&m->memory, &virtio, err);
    return code < 0 ? code : virtio_add(m, virtio, "rng0", slot, err);
}

int machine_devices_add(struct machine *m, power_fn power, void *power_arg, struct error *err)
{
    const struct vmm_config *c = m->config;
    const struct vmm_disk *disks = c->disks.items;
    const struct vmm_nic *nics = c->nics.items;
    unsigned slot = PC1_SLOT_DEVICES;
    bool rng = c->rng || !OBJECT_HAS(vmm_config, c, rng);
    int code = board_devices_add(m, power, power_arg, err);
    if (code == 0 && m->options.debug_exit)
        code = testdev_add(m, err);
    for (unsigned i = 0; code == 0 && i < c->disks.count; i++)
        code = disk_add(m, &disks[i], i, slot++, err);
    for (unsigned i = 0; code == 0 && i < c->nics.count; i++)
        code = nic_add(m, &nics[i], i, slot++, err);
    if (code == 0 && rng)
        code = rng_add(m, slot++, err);
    if (code == 0 && c->balloon && (code = guest_balloon_create(&m->guest, &m->memory, err)) == 0)
        code = virtio_add(m, m->guest.balloon, "balloon0", slot++, err);
    if (code == 0 && c->agent_channel && (code = guest_channel_create(&m->guest, &m->memory, m->io, err)) == 0)
        code = virtio_add(m, m->guest.channel, "channel0", slot++, err);
    return code;
}
