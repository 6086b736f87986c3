/* Control of disks and network interfaces: list, plug, change, unplug. */
#include <errno.h>
#include <string.h>

#include "compute/vmm/control_call.h"
#include "compute/vmm/devices/net/net.h"
#include "compute/vmm/machine_fill.h"
#include "compute/vmm/machine_mirror.h"

enum { HTTP_CREATED = 201, HTTP_ACCEPTED = 202 };

/* ---- as JSON ---- */

STATIC_ASSERT((int)MIRROR_LEVEL == (int)vmm_disk_move_state_LEVEL && (int)MIRROR_FAILED == (int)vmm_disk_move_state_FAILED,
              "block_mirror.h and the schema agree");

static void put_move(struct machine *m, const struct machine_slot *slot, struct vmm_disk_status *status)
{
    struct mirror_progress p;
    char failure[256];
    struct vmm_disk_move *move = &status->move;
    if (!machine_mirror_progress(m, slot, &p, failure))
        return;
    OBJECT_SET(vmm_disk_move, move, state, machine_mirror_is_held(slot) ? (uint32_t)vmm_disk_move_state_HELD : (uint32_t)p.state);
    OBJECT_SET(vmm_disk_move, move, left_bytes, p.left_bytes);
    OBJECT_SET(vmm_disk_move, move, copied_bytes, p.copied_bytes);
    OBJECT_SET(vmm_disk_move, move, zero_bytes, p.zero_bytes);
    OBJECT_SET(vmm_disk_move, move, synchronous, p.is_sync);
    OBJECT_TEXT(vmm_disk_move, move, path, machine_mirror_path(slot));
    if (failure[0] != '\0')
        OBJECT_TEXT(vmm_disk_move, move, failure, failure);
    object_mark(&vmm_disk_status_desc, status, "move");
}

static void put_disk(struct machine *m, const struct machine_slot *slot, struct bytes_writer *out)
{
    struct vmm_disk_status status = {.unplugging = false};
    pthread_mutex_lock(&m->device_lock);
    struct blk_counters c = blk_of_virtio(slot->virtio)->counters;
    pthread_mutex_unlock(&m->device_lock);
    object_copy(&vmm_disk_desc, &status.disk, &slot->disk);
    object_mark(&vmm_disk_status_desc, &status, "disk");
    OBJECT_SET(vmm_disk_status, &status, unplugging, slot->unplugging);
    OBJECT_SET(vmm_disk_status, &status, detached, slot->detached);
    OBJECT_SET(vmm_disk_status, &status, reads, c.reads);
    OBJECT_SET(vmm_disk_status, &status, read_bytes, c.read_bytes);
    OBJECT_SET(vmm_disk_status, &status, writes, c.writes);
    OBJECT_SET(vmm_disk_status, &status, write_bytes, c.write_bytes);
    OBJECT_SET(vmm_disk_status, &status, flushes, c.flushes);
    OBJECT_SET(vmm_disk_status, &status, discards, c.discards);
    OBJECT_SET(vmm_disk_status, &status, errors, c.errors);
    OBJECT_SET(vmm_disk_status, &status, throttled, c.throttled);
    put_move(m, slot, &status);
    OBJECT_ENCODE(vmm_disk_status, &status, out);
    OBJECT_CLEAR(vmm_disk_status, &status);
}

static void put_nic(struct machine *m, const struct machine_slot *slot, struct bytes_writer *out)
{
    struct vmm_nic_status status = {.unplugging = false};
    pthread_mutex_lock(&m->device_lock);
    struct net_counters c = net_counters(slot->virtio);
    pthread_mutex_unlock(&m->device_lock);
    object_copy(&vmm_nic_desc, &status.nic, &slot->nic);
    object_mark(&vmm_nic_status_desc, &status, "nic");
    OBJECT_SET(vmm_nic_status, &status, unplugging, slot->unplugging);
    OBJECT_SET(vmm_nic_status, &status, rx_frames, c.rx_frames);
    OBJECT_SET(vmm_nic_status, &status, rx_bytes, c.rx_bytes);
    OBJECT_SET(vmm_nic_status, &status, rx_dropped, c.rx_dropped);
    OBJECT_SET(vmm_nic_status, &status, tx_frames, c.tx_frames);
    OBJECT_SET(vmm_nic_status, &status, tx_bytes, c.tx_bytes);
    OBJECT_SET(vmm_nic_status, &status, tx_dropped, c.tx_dropped);
    OBJECT_SET(vmm_nic_status, &status, throttled, c.throttled);
    OBJECT_ENCODE(vmm_nic_status, &status, out);
    OBJECT_CLEAR(vmm_nic_status, &status);
}

static void put_slot(struct machine *m, const struct machine_slot *slot, struct bytes_writer *out)
{
    if (slot->kind == SLOT_DISK)
        put_disk(m, slot, out);
    else
        put_nic(m, slot, out);
}

static int list(struct control_call *call, enum slot_kind kind)
{
    struct machine *m = call->machine;
    unsigned count = 0;
    bytes_put_text(&call->answer, "[");
    for (unsigned i = 0; i < PCI_SLOTS; i++)
        if (m->slots.slots[i].kind == kind) {
            bytes_put_text(&call->answer, count++ ? "," : "");
            put_slot(m, &m->slots.slots[i], &call->answer);
        }
    bytes_put_text(&call->answer, "]");
    return 0;
}

static int show(struct control_call *call, enum slot_kind kind, struct error *err)
{
    const struct machine_slot *slot = machine_slot_find(call->machine, kind, call->id, err);
    if (!slot)
        return -ENOENT;
    put_slot(call->machine, slot, &call->answer);
    return 0;
}

/* ---- routes ---- */

int control_disk_list(struct control_call *call, struct error *err UNUSED)
{
    return list(call, SLOT_DISK);
}

int control_disk_show(struct control_call *call, struct error *err)
{
    return show(call, SLOT_DISK, err);
}

int control_disk_plug(struct control_call *call, struct error *err)
{
    struct machine_slot *slot;
    int code = machine_changeable(call->machine, err);
    if (code == 0)
        code = machine_plug_disk(call->machine, call->body, &slot, err);
    if (code < 0)
        return code;
    call->status = HTTP_CREATED;
    put_slot(call->machine, slot, &call->answer);
    return 0;
}

int control_disk_change(struct control_call *call, struct error *err)
{
    struct machine_slot *slot = machine_slot_find(call->machine, SLOT_DISK, call->id, err);
    int code = slot ? machine_changeable(call->machine, err) : -ENOENT;
    if (code == 0)
        code = machine_slot_change_disk(call->machine, slot, call->body, err);
    return code < 0 ? code : show(call, SLOT_DISK, err);
}

int control_nic_list(struct control_call *call, struct error *err UNUSED)
{
    return list(call, SLOT_NIC);
}

int control_nic_show(struct control_call *call, struct error *err)
{
    return show(call, SLOT_NIC, err);
}

int control_nic_plug(struct control_call *call, struct error *err)
{
    struct machine_slot *slot;
    int code = machine_changeable(call->machine, err);
    if (code == 0)
        code = machine_plug_nic(call->machine, call->body, &slot, err);
    if (code < 0)
        return code;
    call->status = HTTP_CREATED;
    put_slot(call->machine, slot, &call->answer);
    return 0;
}

int control_nic_change(struct control_call *call, struct error *err)
{
    struct machine_slot *slot = machine_slot_find(call->machine, SLOT_NIC, call->id, err);
    if (!slot)
        return -ENOENT;
    int code = machine_changeable(call->machine, err);
    if (code < 0)
        return code;
    machine_slot_change_nic(call->machine, slot, call->body);
    return show(call, SLOT_NIC, err);
}

/* 200: gone. 202: the guest has been asked to let it go; a disk's file is closed already where that was forced. */
int control_device_unplug(struct control_call *call, struct error *err)
{
    enum slot_kind kind = call->route->id == VMM_ROUTE_disk_unplug ? SLOT_DISK : SLOT_NIC;
    struct machine_slot *slot = machine_slot_find(call->machine, kind, call->id, err);
    bool goes_at_once = call->force && kind == SLOT_NIC;
    if (!slot)
        return -ENOENT;
    int code = machine_changeable(call->machine, err);
    if (code == 0 && kind == SLOT_DISK)
        code = machine_fill_check(call->machine, err);
    if (code < 0)
        return code;
    if (goes_at_once)
        put_slot(call->machine, slot, &call->answer);
    machine_slot_unplug(call->machine, slot, call->force);
    if (!goes_at_once) {
        put_slot(call->machine, slot, &call->answer);
        call->status = HTTP_ACCEPTED;
    }
    return 0;
}

int control_disk_move(struct control_call *call, struct error *err)
{
    struct machine_slot *slot = machine_slot_find(call->machine, SLOT_DISK, call->id, err);
    int code = slot ? machine_mirror_move(call->machine, slot, call->body, err) : -ENOENT;
    if (code < 0)
        return code;
    call->status = HTTP_ACCEPTED;
    put_slot(call->machine, slot, &call->answer);
    return 0;
}

int control_disk_move_end(struct control_call *call, struct error *err)
{
    const struct vmm_disk_move_end *end = call->body;
    struct machine_slot *slot = machine_slot_find(call->machine, SLOT_DISK, call->id, err);
    const char *path = slot ? machine_mirror_path(slot) : NULL;
    int code = slot == NULL                                  ? -ENOENT
               : path == NULL || strcmp(path, end->path) != 0 ? error_set(err, -EINVAL, ERROR_CONFLICT, "disk %s is not on its way to that file", slot->id)
               : end->hold                                   ? machine_mirror_hold(call->machine, slot, err)
               : end->take                                   ? machine_mirror_take(call->machine, slot, err)
                                                             : machine_mirror_cancel(call->machine, slot, err);
    if (code == 0)
        put_slot(call->machine, slot, &call->answer);
    return code;
}

int control_disk_move_cancel(struct control_call *call, struct error *err)
{
    struct machine_slot *slot = machine_slot_find(call->machine, SLOT_DISK, call->id, err);
    int code = slot ? machine_mirror_cancel(call->machine, slot, err) : -ENOENT;
    if (code == 0)
        put_slot(call->machine, slot, &call->answer);
    return code;
}
