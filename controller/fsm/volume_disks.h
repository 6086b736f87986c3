/* Volumes and the disks of VMs that they are attached as: the rules that apply, the sync with agents and placement share.
 *
 * A volume that is attached is an item of its VM's disks (vm_disk.volume), with its pool: whatever holds for disks in pools -
 * placement, failover, opening, epochs - holds for it by that alone. What is its own: it is made before it is attached, outlives
 * the VM, and one in a directory of a host is where that host is.
 *
 * Which host makes or removes it follows from the state, and nobody is told for good: of a pool of kind dir its own, of a shared
 * one the first that is up and has the pool. Both may be done twice, by two hosts at once (compute/agent/pool_dir.h).
 *
 * Where it is in a pool is its place: no name for where it was made, the operation's that has moved it (apply_move.c), or the
 * replica's that it was taken from (apply_replica.c). A place is that of one copy for good, so who makes or removes one late, by orders
 * of yesterday, touches no other.
 *
 * Pure: no state of its own. */
#ifndef CONTROLLER_FSM_VOLUME_DISKS_H
#define CONTROLLER_FSM_VOLUME_DISKS_H

#include "controller/fsm/state.h"

#define VOLUME_ATTACHMENTS_MAX (1u << 20) /* of one volume: its layers are opened under attachment << 32 | the VM's epoch */

/* The disk of @vm that is volume @volume_id, or NULL. */
struct vm_disk *volume_disk_find(const struct vm *vm, const char *volume_id);
/* A disk of @vm that is a volume, or NULL. */
const struct vm_disk *volume_disk_any(const struct vm *vm);
/* Has @snapshot a volume of that id; a snapshot that has @volume, or NULL: there is none. */
bool volume_is_in(const struct snapshot *snapshot, const char *volume_id);
const struct snapshot *volume_snapshot(const struct state *state, const struct volume *volume);
/* One of @volume alone that is being made, reverted to or removed; NULL: there is none. */
const struct snapshot *volume_snapshot_at_work(const struct state *state, const struct volume *volume);
/* The disk of @vm of that name that is its own, or NULL. */
struct vm_disk *own_disk_find(const struct vm *vm, const char *name);
/* The same three as of a volume, below; and one of @vm's own disks that is moved, or that a move has left something of. */
bool own_disk_has_other(const struct vm_disk *disk);
bool own_disk_has_left(const struct vm_disk *disk);
const char *own_disk_left_worker(const struct state *state, const struct vm *vm, const struct vm_disk *disk);
const struct vm_disk *own_disk_with_other(const struct vm *vm);
/* Of a new VM's disk, described by an old one's: it is where it is made. */
void own_disk_forget_places(struct vm_disk *disk);
/* Is a disk of @vm being moved to pool @pool (a record's name), or has a move left something there; @host: in the directory of that one
 * (name), where it is no shared pool. NULL: of any. */
bool own_disks_need_pool(const struct vm *vm, const char *pool, const char *host);
/* The host (id) that makes or removes @volume now; NULL: none can. */
const char *volume_worker(const struct state *state, const struct volume *volume);
/* Is there something of it in other_pool that is to be removed; and who does that now? NULL: none can, or there is nothing. */
bool volume_has_left(const struct volume *volume);
/* Was it left by the loss of its host, so that it is another host's than what is the volume now? */
bool volume_left_is_elsewhere(const struct volume *volume);
/* A volume of @vm's that its host takes from the VM's replica, and that the VM was not seen to run with since; NULL: none. */
const struct volume *volume_untaken(const struct state *state, const struct vm *vm);
/* Does its state_reason say what hinders that? */
bool volume_tells_of_left(const struct volume *volume);
const char *volume_left_worker(const struct state *state, const struct volume *volume);
/* Is it being made of a snapshot? Then a task makes it. */
bool volume_is_clone_in_making(const struct volume *volume);
/* Is there something to do for a host? */
bool volume_is_pending(const struct volume *volume);
/* Would what @host_id says of a volume change it? */
bool volume_seen_differs(const struct state *state, const char *host_id, const struct volume_seen *seen);
/* Is the volume that @disk is (NULL is fine: it is none) out of reach of @host_id, whatever pools that has? */
bool volume_is_elsewhere(const struct state *state, const struct vm_disk *disk, const char *host_id);
/* May @vm still write to a volume although its host is lost? Under the lease it may not. */
bool volumes_outlive_host(const struct vm *vm);

#endif
