/* Disks and network interfaces in their slots: see machine_slots.h. */
#include "compute/vmm/machine_slots.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "compute/vmm/block/block_file.h"
#include "compute/vmm/block/block_layers.h"
#include "compute/vmm/block/block_nbd.h"
#include "compute/vmm/devices/net/net.h"
#include "compute/vmm/devices/pcihp/pcihp.h"
#include "compute/vmm/devices/pm/pm.h"
#include "compute/vmm/machine.h"
#include "compute/vmm/machine_backup.h"
#include "compute/vmm/machine_changes.h"
#include "compute/vmm/machine_mirror.h"
#include "compute/vmm/machine_points.h"
#include "compute/vmm/pc1_layout.h"
#include "compute/vmm/virtio/virtio_pci.h"

#define DISK_QUEUES_MAX 4u

static bool may_submit(void *arg)
{
    return lease_allows_io(arg);
}

/* What a migration fills is this machine's alone, and nobody's disk; no lease speaks of it. That ends with the last byte: from then on it
 * may be the disk of whoever the cluster gives the machine to, and nothing is written without the lease, not even at this process' end. */
static bool may_fill(void *arg)
{
    const struct machine *m = arg;
    return !__atomic_load_n(&m->filled, __ATOMIC_ACQUIRE) || lease_allows_io(&m->lease.lease);
}

/* ---- finding ---- */

static struct machine_slot *by_id(struct machine *m, const char *id)
{
    for (unsigned i = 0; i < PCI_SLOTS; i++)
        if (m->slots.slots[i].kind != SLOT_EMPTY && strcmp(m->slots.slots[i].id, id) == 0)
            return &m->slots.slots[i];
    return NULL;
}

struct machine_slot *machine_slot_find(struct machine *m, enum slot_kind kind, const char *id, struct error *err)
{
    struct machine_slot *slot = by_id(m, id);
    if (slot && slot->kind == kind)
        return slot;
    error_set(err, -ENOENT, ERROR_NOT_FOUND, "the VM has no %s \"%.23s\"",
              kind == SLOT_DISK ? "disk" : "network interface", id);
    return NULL;
}

/* As many as a configuration may have: what is saved of the machine has one, and has to be readable. */
static int room_check(const struct machine *m, enum slot_kind kind, struct error *err)
{
    const struct field_desc *field = object_field(&vmm_config_desc, kind == SLOT_DISK ? "disks" : "nics");
    uint64_t count = 0;
    for (unsigned i = 0; i < PCI_SLOTS; i++)
        count += m->slots.slots[i].kind == kind;
    if (count < field->max)
        return 0;
    return error_set(err, -ENOSPC, ERROR_NO_SPACE, "a VM has at most %llu %s; unplug one first",
                     (unsigned long long)field->max, kind == SLOT_DISK ? "disks" : "network interfaces");
}

/* An empty slot: @wanted, or the first that is free. It is not filled yet. */
static int slot_choose(struct machine *m, const uint32_t *wanted, struct machine_slot **ret_slot, struct error *err)
{
    for (unsigned i = wanted ? *wanted : PC1_SLOT_DEVICES; i < PCI_SLOTS; i++) {
        if (m->slots.slots[i].kind == SLOT_EMPTY && !m->pci.functions[i * PCI_FUNCTIONS]) {
            m->slots.slots[i] = (struct machine_slot){.number = i};
            *ret_slot = &m->slots.slots[i];
            return 0;
        }
        if (wanted)
            return error_set_field(err, -EEXIST, ERROR_IN_USE, "/slot", "slot %u is taken by %s", i,
                                   m->slots.slots[i].kind == SLOT_EMPTY ? "the board" : m->slots.slots[i].id);
    }
    return error_set_field(err, -ENOSPC, ERROR_NO_SPACE, "/slot", "all %u PCI slots are taken; unplug something",
                           PCI_SLOTS);
}

/* @wanted, or @kind with the first number that nobody has. */
static int id_choose(struct machine *m, const char *wanted, const char *kind, char id[24], struct error *err)
{
    if (wanted && by_id(m, wanted))
        return error_set_field(err, -EEXIST, ERROR_EXISTS, "/id", "the VM has a device \"%s\" already", wanted);
    if (wanted) {
        snprintf(id, 24, "%s", wanted);
        return 0;
    }
    for (unsigned i = 0; i <= PCI_SLOTS; i++) {
        snprintf(id, 24, "%s%u", kind, i);
        if (!by_id(m, id))
            break;
    }
    return 0;
}

/* Show @virtio in @slot; it is released here when that fails. */
static int slot_fill(struct machine *m, struct machine_slot *slot, enum slot_kind kind, struct virtio_device *virtio,
                     const char *name, struct error *err)
{
    static const char *const prefixes[] = {[SLOT_DISK] = "disk/", [SLOT_NIC] = "nic/", [SLOT_OTHER] = ""};
    struct virtio_pci *transport;
    char device[32]; /* ids are the user's: they must not meet the name of another device */
    snprintf(device, sizeof(device), "%s%s", prefixes[kind], name);
    int code = virtio_pci_create(virtio, device, &m->pci, slot->number, &m->kvm.irq, m->io, &transport, err);
    if (code < 0) {
        virtio->ops->destroy(virtio);
        return code;
    }
    slot->kind = kind;
    slot->device = virtio_pci_device(transport);
    slot->virtio = virtio;
    snprintf(slot->id, sizeof(slot->id), "%s", name);
    list_append(&m->devices, &slot->device->link);
    return 0;
}

int machine_slot_add_other(struct machine *m, struct virtio_device *virtio, const char *name, struct error *err)
{
    struct machine_slot *slot;
    int code = slot_choose(m, NULL, &slot, err);
    if (code < 0) {
        virtio->ops->destroy(virtio);
        return code;
    }
    return slot_fill(m, slot, SLOT_OTHER, virtio, name, err);
}

/* ---- disks ---- */

/* With the device lock held. */
static void disk_stopped(void *arg, const struct blk *blk, const char *operation, int result)
{
    struct machine *m = arg;
    char why[160];
    for (unsigned i = 0; i < PCI_SLOTS; i++)
        if (m->slots.slots[i].kind == SLOT_DISK && m->slots.slots[i].virtio == &blk->virtio) {
            snprintf(why, sizeof(why), "disk %s: %s: %s%s", m->slots.slots[i].id, operation, strerror(-result),
                     result == -ENOTRECOVERABLE ? "; what was not flushed is lost: stop the VM and start it" : "");
            machine_disk_stopped(m, why);
        }
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

/* Nobody writes the disk any more; it is another's from now on where the machine was migrated. One that other hosts reach may be
 * another's already: what is known here of its changes would be told of what that one has written. */
static void changes_end(struct machine *m, struct machine_slot *slot)
{
    bool ours = m->end != MACHINE_END_MIGRATED && (!slot->disk.shared || lease_allows_io(&m->lease.lease));
    machine_changes_end(slot->changes, ours);
    slot->changes = NULL;
}

static int served_open(const struct vmm_disk *disk, bool unowned, struct io_loop *io, struct block **ret_block, struct error *err)
{
    const struct block_nbd_options options = {.read_only = disk->read_only, .unowned = unowned, .size_bytes = disk->size_bytes};
    return block_nbd_open(disk->path, &options, io, ret_block, err);
}

int machine_slot_open_disk(struct machine *m, const struct vmm_disk *disk, struct block **ret_block, struct error *err)
{
    struct block *block;
    bool fills = m->options.incoming && disk->copied;
    bool (*may)(void *arg) = fills ? may_fill : may_submit;
    void *arg = fills ? (void *)m : &m->lease.lease;
    struct block_file_options file = {
        .read_only = disk->read_only, .direct = disk->direct, .unlocked = m->options.incoming && !disk->copied,
        .epoch = OBJECT_HAS(vmm_disk, disk, epoch) ? disk->epoch : m->config->epoch,
        .may_open = disk->shared ? may : NULL,
        .may_open_arg = arg,
        .source_path = disk->source,
        .source_name = disk->id,
        .on_demand = disk->on_demand};
    int code = engine_choose(m, disk, &file.uring, err);
    if (code == 0 && disk->format == disk_format_LAYERS)
        code = block_layers_open(disk->path, &file, m->io, &block, err);
    else if (code == 0 && disk->format == disk_format_NBD)
        code = served_open(disk, file.unlocked, m->io, &block, err);
    else if (code == 0)
        code = block_file_open(disk->path, &file, m->io, &block, err);
    if (code < 0)
        return code;
    block->may_submit = may;
    block->may_submit_arg = arg;
    bool grows = disk->grow && disk->size_bytes > block->size_bytes && !file.unlocked;
    if (grows && (code = block_grow(block, disk->size_bytes, err)) < 0) {
        block_close(block);
        return code;
    }
    if (disk->size_bytes && !disk->grow && disk->size_bytes != block->size_bytes) {
        code = error_set_field(err, -EINVAL, ERROR_INVALID, "/size_bytes",
                               "%s has %llu bytes, not %llu; give its real size or none", disk->path,
                               (unsigned long long)block->size_bytes, (unsigned long long)disk->size_bytes);
        block_close(block);
        return code;
    }
    *ret_block = block;
    return 0;
}

int machine_slot_add_disk(struct machine *m, const struct vmm_disk *disk, struct machine_slot **ret_slot,
                          struct error *err)
{
    struct machine_slot *slot;
    struct virtio_device *virtio;
    struct block *block = NULL;
    uint8_t stamp[CHANGED_STAMP_BYTES];
    char id[24];
    int code = room_check(m, SLOT_DISK, err);
    if (code == 0)
        code = id_choose(m, disk->id, "disk", id, err);
    if (code == 0)
        code = slot_choose(m, OBJECT_HAS(vmm_disk, disk, slot) ? &disk->slot : NULL, &slot, err);
    machine_changes_stamp(disk, stamp); /* opening may write */
    if (code == 0)
        code = machine_slot_open_disk(m, disk, &block, err);
    if (code < 0)
        return code;
    struct blk_options options = {.block = block,
                                  .name = id,
                                  .serial = disk->serial,
                                  .queues = MIN(m->config->vcpus, DISK_QUEUES_MAX),
                                  .on_error = disk->on_disk_error,
                                  .limits = &disk->limits,
                                  .stopped = disk_stopped,
                                  .stopped_arg = m};
    code = blk_create(&options, &m->memory, m->io, &virtio, err);
    if (code < 0) {
        block_close(block);
        return code;
    }
    code = slot_fill(m, slot, SLOT_DISK, virtio, id, err);
    if (code < 0)
        return code;
    object_copy(&vmm_disk_desc, &slot->disk, disk);
    OBJECT_TEXT(vmm_disk, &slot->disk, id, id);
    OBJECT_SET(vmm_disk, &slot->disk, slot, slot->number);
    OBJECT_SET(vmm_disk, &slot->disk, size_bytes, block->size_bytes);
    if (!block->read_only && !m->options.incoming)
        slot->changes = machine_changes_load(disk, block, stamp);
    if (ret_slot)
        *ret_slot = slot;
    return 0;
}

int machine_slot_change_disk(struct machine *m, struct machine_slot *slot, const struct vmm_disk *patch,
                             struct error *err)
{
    struct blk *blk = blk_of_virtio(slot->virtio);
    struct vmm_disk changed = {.path = NULL};
    int code = 0;
    if (slot->detached)
        return error_set(err, -ENODEV, ERROR_CONFLICT, "disk %s has been taken away by force", slot->id);
    if (OBJECT_HAS(vmm_disk, patch, size_bytes) && !machine_mirror_lets_grow(m, slot))
        return error_set(err, -EBUSY, ERROR_CONFLICT, "a disk of the VM is being moved; wait for its end, or cancel it");
    object_copy(&vmm_disk_desc, &changed, &slot->disk);
    object_merge(&vmm_disk_desc, &changed, patch);
    if (!OBJECT_HAS(vmm_disk, &changed, size_bytes))
        OBJECT_SET(vmm_disk, &changed, size_bytes, slot->disk.size_bytes);
    pthread_mutex_lock(&m->device_lock);
    if (changed.size_bytes != slot->disk.size_bytes &&
        (code = block_grow(blk->block, changed.size_bytes, err)) == 0) {
        blk_grown(blk);
        machine_changes_grown(slot->changes, blk->block);
        machine_backup_grown(m, blk);
        log_info("disk-grown", "vm=%s disk=%s bytes=%llu", m->config->name, slot->id,
                 (unsigned long long)changed.size_bytes);
    }
    if (code == 0) {
        blk->on_error = changed.on_disk_error;
        blk_set_limits(blk, &changed.limits);
    }
    pthread_mutex_unlock(&m->device_lock);
    if (code == 0) {
        object_clear(&vmm_disk_desc, &slot->disk);
        slot->disk = changed;
    } else {
        object_clear(&vmm_disk_desc, &changed);
    }
    return code;
}

/* ---- network interfaces ---- */

int machine_slot_add_nic(struct machine *m, const struct vmm_nic *nic, struct machine_slot **ret_slot,
                         struct error *err)
{
    struct machine_slot *slot;
    struct virtio_device *virtio;
    char id[24];
    unsigned mac[NET_MAC_BYTES];
    struct net_options options = {
        .tap = nic->tap, .fd = -1, .may_submit = may_submit, .may_submit_arg = &m->lease.lease};
    options.mtu = (uint16_t)nic->mtu;
    options.pairs = nic->queues;
    options.awaited = nic->cut || (m->options.handed_over && m->state == MACHINE_CREATED);
    int code = room_check(m, SLOT_NIC, err);
    if (code == 0)
        code = id_choose(m, nic->id, "nic", id, err);
    if (code == 0)
        code = slot_choose(m, OBJECT_HAS(vmm_nic, nic, slot) ? &nic->slot : NULL, &slot, err);
    if (code < 0)
        return code;
    /* The schema has checked the format. */
    ASSERT(sscanf(nic->mac, "%2x:%2x:%2x:%2x:%2x:%2x", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5]) == 6);
    for (unsigned i = 0; i < NET_MAC_BYTES; i++)
        options.mac[i] = (uint8_t)mac[i];
    code = net_create(&options, &m->memory, m->io, &virtio, err);
    if (code == 0)
        code = slot_fill(m, slot, SLOT_NIC, virtio, id, err);
    if (code < 0)
        return code;
    object_copy(&vmm_nic_desc, &slot->nic, nic);
    OBJECT_TEXT(vmm_nic, &slot->nic, id, id);
    OBJECT_SET(vmm_nic, &slot->nic, slot, slot->number);
    net_set_limits(virtio, &nic->limits);
    if (nic->cut)
        net_set_link(virtio, false); /* for good: there is nothing behind it */
    if (ret_slot)
        *ret_slot = slot;
    return 0;
}

void machine_slot_change_nic(struct machine *m, struct machine_slot *slot, const struct vmm_nic *patch)
{
    struct vmm_nic changed = {.tap = NULL};
    object_copy(&vmm_nic_desc, &changed, &slot->nic);
    object_merge(&vmm_nic_desc, &changed, patch);
    pthread_mutex_lock(&m->device_lock);
    net_set_limits(slot->virtio, &changed.limits);
    pthread_mutex_unlock(&m->device_lock);
    object_clear(&vmm_nic_desc, &slot->nic);
    slot->nic = changed;
}

/* ---- coming and going ---- */

static int plug_begin(struct machine *m, struct error *err)
{
    if (m->state == MACHINE_RUNNING || m->state == MACHINE_PAUSED)
        return 0;
    return error_set(err, -EINVAL, ERROR_CONFLICT, "the VM is %s: nothing can be plugged in",
                     machine_state_name(m->state));
}

static void plugged(struct machine *m, struct machine_slot *slot)
{
    const struct device_ops *ops = slot->device->ops;
    if (m->state == MACHINE_PAUSED)
        ops->pause(slot->device); /* as the others are */
    pcihp_plugged(m->slots.hotplug, slot->number);
    log_info("device-plugged", "vm=%s device=%s slot=%u", m->config->name, slot->id, slot->number);
}

int machine_plug_disk(struct machine *m, const struct vmm_disk *disk, struct machine_slot **ret_slot,
                      struct error *err)
{
    int code = plug_begin(m, err);
    if (code < 0)
        return code;
    pthread_mutex_lock(&m->device_lock);
    code = machine_slot_add_disk(m, disk, ret_slot, err);
    if (code == 0)
        plugged(m, *ret_slot);
    pthread_mutex_unlock(&m->device_lock);
    return code;
}

int machine_plug_nic(struct machine *m, const struct vmm_nic *nic, struct machine_slot **ret_slot, struct error *err)
{
    int code = plug_begin(m, err);
    if (code < 0)
        return code;
    pthread_mutex_lock(&m->device_lock);
    code = machine_slot_add_nic(m, nic, ret_slot, err);
    if (code == 0)
        plugged(m, *ret_slot);
    pthread_mutex_unlock(&m->device_lock);
    return code;
}

/* vCPUs stand still: one of them might be on its way into the device. */
static void slot_empty(struct machine *m, struct machine_slot *slot, const char *why)
{
    pthread_mutex_lock(&m->device_lock);
    list_remove(&slot->device->link);
    slot->device->ops->destroy(slot->device);
    pthread_mutex_unlock(&m->device_lock);
    log_info("device-unplugged", "vm=%s device=%s slot=%u why=\"%s\"", m->config->name, slot->id, slot->number, why);
    changes_end(m, slot);
    machine_mirror_free(slot->mirror);
    object_clear(&vmm_disk_desc, &slot->disk);
    object_clear(&vmm_nic_desc, &slot->nic);
    *slot = (struct machine_slot){.kind = SLOT_EMPTY};
}

/* Off the bus and released, whatever the guest does with it. */
static void slot_remove(struct machine *m, struct machine_slot *slot)
{
    unsigned number = slot->number;
    vcpu_set_hold(&m->vcpus, VCPU_HOLD_UNPLUG, true);
    slot_empty(m, slot, "force");
    pthread_mutex_lock(&m->device_lock);
    pcihp_plugged(m->slots.hotplug, number); /* "look there": nothing is left */
    pthread_mutex_unlock(&m->device_lock);
    vcpu_set_release(&m->vcpus, VCPU_HOLD_UNPLUG);
}

void machine_slot_unplug(struct machine *m, struct machine_slot *slot, bool force)
{
    slot->unplugging = true;
    if (force && slot->kind == SLOT_NIC) {
        slot_remove(m, slot);
        return;
    }
    pthread_mutex_lock(&m->device_lock);
    if (force && !slot->detached) {
        if (slot->disk.format == disk_format_NBD) /* its server may be away, and would be waited for */
            block_nbd_give_up(blk_of_virtio(slot->virtio)->block);
        blk_detach(blk_of_virtio(slot->virtio));
        slot->detached = true;
        changes_end(m, slot); /* others may write it from now on */
        log_warning("disk-detached", "vm=%s disk=%s slot=%u why=force", m->config->name, slot->id, slot->number);
    }
    pcihp_unplug(m->slots.hotplug, slot->number);
    pthread_mutex_unlock(&m->device_lock);
}

int machine_slots_check_attached(const struct machine *m, struct error *err)
{
    for (unsigned i = 0; i < PCI_SLOTS; i++)
        if (m->slots.slots[i].kind == SLOT_DISK && m->slots.slots[i].detached)
            return error_set(err, -EBUSY, ERROR_CONFLICT,
                             "disk %s was taken away by force and the guest has not let go of it: another process could "
                             "not open it; reset the VM, or wait for the guest",
                             m->slots.slots[i].id);
    return 0;
}

void machine_slots_settle(struct machine *m)
{
    vcpu_set_hold(&m->vcpus, VCPU_HOLD_UNPLUG, true);
    for (unsigned i = 0; i < PCI_SLOTS; i++) {
        struct machine_slot *slot = &m->slots.slots[i];
        if (slot->kind == SLOT_DISK && machine_points_are_busy(m))
            continue; /* a point holds on to its layers, and looks here at its end */
        if ((slot->kind == SLOT_DISK || slot->kind == SLOT_NIC) && !m->pci.functions[i * PCI_FUNCTIONS])
            slot_empty(m, slot, "ejected by the guest");
    }
    vcpu_set_release(&m->vcpus, VCPU_HOLD_UNPLUG);
}

/* On the control loop: those that the guest has ejected are off the bus already. */
static void ejected_release(void *arg)
{
    machine_slots_settle(arg);
}

/* A guest may eject what nobody asked it to, but only what can be plugged. With the device lock held. */
static void on_eject(void *arg, unsigned number)
{
    struct machine *m = arg;
    const struct machine_slot *slot = &m->slots.slots[number];
    if ((slot->kind != SLOT_DISK && slot->kind != SLOT_NIC) || !m->pci.functions[number * PCI_FUNCTIONS])
        return;
    pci_bus_remove(&m->pci, number);
    io_loop_post(m->control, ejected_release, m);
}

void machine_slots_reset(struct machine *m)
{
    for (unsigned i = 0; i < PCI_SLOTS; i++) {
        struct machine_slot *slot = &m->slots.slots[i];
        if (slot->kind == SLOT_EMPTY || !slot->unplugging)
            continue;
        if (slot->kind != SLOT_DISK || !machine_points_are_busy(m)) {
            slot_empty(m, slot, "reset");
        } else if (m->pci.functions[i * PCI_FUNCTIONS]) { /* as if it had been ejected: see machine_slots_settle */
            pthread_mutex_lock(&m->device_lock);
            pci_bus_remove(&m->pci, i);
            pthread_mutex_unlock(&m->device_lock);
        }
    }
}

static void raise_gpe(void *arg, unsigned gpe)
{
    struct machine *m = arg;
    pm_raise_gpe(m->pm, gpe);
}

int machine_slots_init(struct machine *m, struct error *err)
{
    int code = pcihp_create(&m->ports, raise_gpe, m, on_eject, m, &m->slots.hotplug, err);
    if (code == 0)
        list_append(&m->devices, &pcihp_device(m->slots.hotplug)->link);
    return code;
}

void machine_slots_finish(struct machine *m)
{
    for (unsigned i = 0; i < PCI_SLOTS; i++) {
        changes_end(m, &m->slots.slots[i]);
        machine_mirror_free(m->slots.slots[i].mirror);
        object_clear(&vmm_disk_desc, &m->slots.slots[i].disk);
        object_clear(&vmm_nic_desc, &m->slots.slots[i].nic);
    }
}

int machine_slots_own(struct machine *m, bool own, struct error *err)
{
    int code = 0;
    pthread_mutex_lock(&m->device_lock);
    for (unsigned i = 0; code == 0 && i < PCI_SLOTS; i++) {
        struct machine_slot *slot = &m->slots.slots[i];
        if (slot->kind == SLOT_DISK && !slot->detached)
            code = block_own(blk_of_virtio(slot->virtio)->block, own, err);
    }
    pthread_mutex_unlock(&m->device_lock);
    return code;
}

int machine_slots_release(struct machine *m, struct error *err)
{
    int code = 0, any = 0;
    pthread_mutex_lock(&m->device_lock);
    for (unsigned i = 0; code == 0 && i < PCI_SLOTS; i++) {
        struct machine_slot *slot = &m->slots.slots[i];
        if (slot->kind != SLOT_DISK || slot->detached || !slot->disk.shared)
            continue;
        any = 1;
        code = block_own(blk_of_virtio(slot->virtio)->block, false, err);
    }
    pthread_mutex_unlock(&m->device_lock);
    return code < 0 ? code : any;
}

void machine_slots_released(struct machine *m)
{
    pthread_mutex_lock(&m->device_lock);
    for (unsigned i = 0; i < PCI_SLOTS; i++) {
        struct machine_slot *slot = &m->slots.slots[i];
        if (slot->kind == SLOT_DISK && !slot->detached && slot->disk.shared && slot->disk.format == disk_format_LAYERS)
            block_layers_released(blk_of_virtio(slot->virtio)->block);
    }
    pthread_mutex_unlock(&m->device_lock);
}

/* ---- to and from another VMM of this host ---- */

int machine_slots_handles(struct machine *m, int *fds, size_t max, struct error *err)
{
    size_t count = 0;
    int code = 0;
    if (OBJECT_HAS(vmm_config, m->config, vsock))
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "a VM with a vsock cannot be handed to another VMM of the same host");
    pthread_mutex_lock(&m->device_lock);
    for (unsigned i = 0; code == 0 && i < PCI_SLOTS; i++) {
        const struct machine_slot *slot = &m->slots.slots[i];
        if (slot->kind != SLOT_NIC || slot->detached)
            continue;
        if (count + NET_PAIRS_MAX > max)
            code = error_set(err, -E2BIG, ERROR_NOT_SUPPORTED, "too many queues of interfaces to be handed over");
        else
            count += net_handles(slot->virtio, fds + count);
    }
    pthread_mutex_unlock(&m->device_lock);
    return code < 0 ? code : (int)count;
}

int machine_slots_adopt(struct machine *m, const int *fds, size_t count, struct error *err)
{
    int lacking[NET_PAIRS_MAX], code = 0;
    size_t taken = 0;
    pthread_mutex_lock(&m->device_lock);
    for (unsigned i = 0; code == 0 && i < PCI_SLOTS; i++) {
        const struct machine_slot *slot = &m->slots.slots[i];
        if (slot->kind != SLOT_NIC)
            continue;
        size_t wanted = net_handles(slot->virtio, lacking);
        if (wanted > count - taken) {
            code = error_set(err, -EINVAL, ERROR_INVALID, "interface %s lacks its tap among what was handed over", slot->id);
        } else {
            code = net_adopt(slot->virtio, fds + taken, err);
            taken += wanted;
        }
    }
    pthread_mutex_unlock(&m->device_lock);
    if (code == 0 && taken < count)
        code = error_set(err, -EINVAL, ERROR_INVALID, "more taps were handed over than the VM has interfaces here");
    for (; taken < count; taken++)
        close(fds[taken]);
    return code;
}
