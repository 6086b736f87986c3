/* What sits in the PCI slots of a machine: disks and network interfaces by name, for control, and how they come and
 * go while it runs.
 *
 *   plug:    made and put on the bus -> the guest is told (devices/pcihp) -> its system finds and drives it
 *   unplug:  the guest is asked -> it lets go and ejects -> off the bus at once, released on the control loop
 *            force: a disk's file is closed at once, and its requests fail until the guest lets go, which it is asked
 * to: systems wait for ever for requests to a disk that is simply gone. A network interface is off the bus and
 *            released at once; then the guest is told
 *
 *   EMPTY --plug--> FILLED --unplug asked--> UNPLUGGING --eject by the guest, reset--> EMPTY
 *                     +---------- eject by the guest of itself, force ------------------------^
 *
 * A guest that does not listen leaves its device UNPLUGGING, in use, for as long as it likes.
 *
 * Threads: the control loop, with the device lock NOT held, but for those that say otherwise. */
#ifndef COMPUTE_VMM_MACHINE_SLOTS_H
#define COMPUTE_VMM_MACHINE_SLOTS_H

#include "compute/vmm/device.h"
#include "compute/vmm/devices/blk/blk.h"
#include "compute/vmm/pci.h"
#include "schema/objects.h"

struct machine;
struct machine_changes;

enum slot_kind { SLOT_EMPTY, SLOT_DISK, SLOT_NIC, SLOT_OTHER };

struct machine_slot {
    enum slot_kind kind;
    unsigned number;
    char id[24];
    struct device *device;
    struct virtio_device *virtio;
    bool unplugging;
    bool detached;        /* SLOT_DISK: taken away by force, its file is closed */
    struct machine_changes *changes; /* of SLOT_DISK; NULL: not tracked. Owned */
    struct machine_mirror *mirror; /* of SLOT_DISK: under way, or the last (machine_mirror.h); NULL: none. Owned */
    struct vmm_disk disk; /* of SLOT_DISK: as given, with what was filled in */
    struct vmm_nic nic;   /* of SLOT_NIC */
};

struct machine_slots {
    struct machine_slot slots[PCI_SLOTS];
    struct pcihp *hotplug;
};

/* While the machine is built, or with the device lock held. -EEXIST: id or slot taken; -ENOSPC: no slot, or as many as
 * a vmm_config may have; what the disk or tap says. *ret_slot (may be NULL) stays the machine's. */
int machine_slot_add_disk(struct machine *m, const struct vmm_disk *disk, struct machine_slot **ret_slot,
                          struct error *err);
int machine_slot_add_nic(struct machine *m, const struct vmm_nic *nic, struct machine_slot **ret_slot,
                         struct error *err);
/* Open what @disk names, for this machine and its lease. With the device lock held, or while the machine is built. */
int machine_slot_open_disk(struct machine *m, const struct vmm_disk *disk, struct block **ret_block, struct error *err);
/* Another virtio device, not for control. It is the machine's, or released here where that fails. */
int machine_slot_add_other(struct machine *m, struct virtio_device *virtio, const char *name, struct error *err);
/* The slot of that kind and name, or NULL with words. */
struct machine_slot *machine_slot_find(struct machine *m, enum slot_kind kind, const char *id, struct error *err);

/* Add, and tell the guest, of a machine that has started. */
int machine_plug_disk(struct machine *m, const struct vmm_disk *disk, struct machine_slot **ret_slot,
                      struct error *err);
int machine_plug_nic(struct machine *m, const struct vmm_nic *nic, struct machine_slot **ret_slot, struct error *err);
/* Ask the guest to let go, again where it was asked before; or @force. */
void machine_slot_unplug(struct machine *m, struct machine_slot *slot, bool force);
/* Lay the fields that @patch gives or clears (object.h) over the disk's: size_bytes (grow), limits, on_disk_error. */
int machine_slot_change_disk(struct machine *m, struct machine_slot *slot, const struct vmm_disk *patch,
                             struct error *err);
/* The same of a network interface: limits. */
void machine_slot_change_nic(struct machine *m, struct machine_slot *slot, const struct vmm_nic *patch);

/* Let another process have the disks, or take them (back): block_own of each, up to the first that fails. All I/O is
 * finished. */
int machine_slots_own(struct machine *m, bool own, struct error *err);
/* The same of the disks that other hosts reach (vmm_disk.shared) alone: let another process have them, until
 * machine_slots_own(true). Nothing of this process writes them any more, not even what was left for their closing. 1, or 0: the
 * machine has none. */
int machine_slots_release(struct machine *m, struct error *err);
/* The other side has done so: locks that are on these disks nevertheless are of a process that is held for good, and are passed
 * over when they are taken (block_layers_released). */
void machine_slots_released(struct machine *m);
/* Release what the guest has ejected by now. */
void machine_slots_settle(struct machine *m);
/* -EBUSY in words while a disk is still there that has no file any more: the machine cannot go on in another process. */
int machine_slots_check_attached(const struct machine *m, struct error *err);
/* The machine is reset: what was being unplugged goes, for nobody will eject it. vCPUs stand still; lock not held. */
void machine_slots_reset(struct machine *m);
/* Registers of the guest's side; before the first slot is filled. */
int machine_slots_init(struct machine *m, struct error *err);
/* After the devices are gone; writes their maps of changes (machine_changes.h). */
void machine_slots_finish(struct machine *m);

/* What stands behind interfaces, for another VMM of this host that takes the machine over: borrowed descriptors in @fds, in the
 * order of the slots. Returns how many, at most @max; -ENOTSUP in words where a device cannot be handed over. */
int machine_slots_handles(struct machine *m, int *fds, size_t max, struct error *err);
/* The other side: as many as its interfaces lack; they are the machine's from now on, also on failure. */
int machine_slots_adopt(struct machine *m, const int *fds, size_t count, struct error *err);

#endif
