/* Replicas of VMs in the replicated state: who has one, whether it can stand in for the VM's disks, and what becomes of it when the VM
 * changes hosts.
 *
 *   replica_host given --> no point --vm-replicate ends well--> point n of epoch e --and again--> point n+1
 *                             ^                                     |
 *                             |      the host is lost, ha, e is the VM's epoch: given to replica_host under epoch + 1, which takes
 *                             '----- the VM's disks from the point; from then on the lost host is replica_host, without a point, and
 *                                    keeps the VM's old disks until the VM has run from the point (replica_start: it may not yet)
 *
 * With replica_sync_s only the first point is sent; then it is brought forward by sessions, one after the other, each a vm-replicate that lasts:
 *
 *      out of sync --begins, session s+1--> the peer says what it holds: n --the host says: level--> IN SYNC: point n+1 is what it holds, at any
 *           ^                                        |                                                |         moment
 *           '---- its end, or the loss of the peer --'<-----------------------------------------------'
 *
 * In sync no write or flush of the guest's ends without the replica; whatever breaks the way, the guest waits until the entry of the log that ends
 * the session has been told to its host (vm_order.replica_session, replica_held). So while the record says in sync the replica has all that was
 * flushed, and from that entry on nobody takes it for more than a point: one of the moment of that entry. Where the VM's own host is lost the
 * session ends and the record stays: that host's guest waits, or is dead. No VMM is started while it is held, for a new one would not wait.
 *
 * Copied is what is in the directory of the VM's host, and in pools of kind dir: into the same pool, as the keeper has it, for a promotion
 * is a rename (compute/agent/replica_dir.h). Disks and volumes in shared pools are where the keeper reaches them, and are opened there as
 * after any loss: under the lease, so that the VM's old guest writes to them no more. They are as they were written last; so the copies have to
 * be, and a VM with such disks is started from a replica that is in sync and from no other. It may, because the guest has been told of no
 * write to the one that the other does not have: both are of the moment of its last breath.
 *
 * A volume in a pool of kind dir changes its host with its VM, in one entry, and its place: the replica's id, so that no two copies have one.
 * What is left of it at the lost host is in its record as after a move, and goes when the new host has said that the VM runs from the copy
 * (volume.untaken until then); there is one such at most, so points begin when that is gone. Which volumes are in a replica never changes:
 *
 *      volume, attached --its VM's host is lost--> host and place of the copy, untaken --the VM runs--> left: gone --> as before
 *           ^                                                |
 *           '---- the VM is deleted by force before that ----'
 *
 * Only a point of the VM's present epoch stands in: each start and restore of a stopped VM raises it, and what its disks became
 * meanwhile no point knows. A migration raises it, too, but changes nothing on the disks: points stay good (replica_vm_moved).
 * All that is in these functions follows from the state alone. */
#ifndef CONTROLLER_FSM_REPLICA_STATE_H
#define CONTROLLER_FSM_REPLICA_STATE_H

#include "controller/fsm/apply_internal.h"

#define REPLICA_EVERY_S 60u      /* vm.replica_every_s where not given */
#define REPLICA_LIMIT_MORE_S 30u /* and what is added to three times that for replica_limit_s */

uint64_t replica_every_s(const struct vm *vm);
uint64_t replica_limit_s(const struct vm *vm);
/* Is it brought forward by sessions, not by points that are sent? */
bool replica_is_sync(const struct vm *vm);
/* The host that is to keep it, or NULL. */
const struct record *replica_keeper(const struct state *state, const struct vm *vm);
/* The host that @vm can be started on from its replica, with its own lost; NULL: none. */
const struct record *replica_standby(const struct state *state, const struct vm *vm);
/* Has it disks of @vm's in pools of kind dir? And volumes there? */
bool replica_in_pools(const struct state *state, const struct vm *vm);
bool replica_has_volumes(const struct state *state, const struct vm *vm);
/* Is @disk of @vm, a volume, in the replica that @host_id is to keep? */
bool replica_brings(const struct state *state, const struct vm *vm, const struct vm_disk *disk, const char *host_id);
/* The VM whose replica has a copy of @volume, so that it stays as it is; NULL: none. */
const struct vm *replica_of_volume(const struct state *state, const struct volume *volume);
/* A volume that @vm's replica has, or is to have, of which something is left elsewhere; NULL: none. No point is begun before that is gone. */
const struct volume *replica_volume_left(const struct state *state, const struct vm *vm);
/* Is what the last session has brought to be taken for the VM's disks, or may it be by the next entry? */
bool replica_is_held(const struct record *vm);
/* With its host lost, is it to be started from its replica by itself? Of one that is out of sync only when somebody says so. */
bool replica_is_good(const struct state *state, const struct vm *vm);
/* Would the word that it is level make the VM of @operation's session in sync? */
bool replica_level_counts(const struct state *state, const struct record *operation);
/* Operations with @vm, but what makes its replica. */
size_t replica_others(const struct record *vm);
/* Is a point being made, or a session under way? NULL: no. */
const struct record *replica_under_way(const struct record *vm);

/* ---- for apply ---- */

/* May @record become what @patch, of @command, makes of it? Refuses if not. The host's name is made canonical. */
bool replica_may_change(struct apply *a, const struct record *record, struct vm *patch, const struct command_put *command);
/* May @vm, which has a replica, have @volume? Refuses if not. @known: command_volume_attach.replica. */
bool replica_allows_volume(struct apply *a, const struct vm *vm, const struct volume *volume, bool known);
/* Within an edit: @keeper_before (a name or NULL) may not be its keeper any more. Hosts are told. */
void replica_changed(struct apply *a, struct vm *vm, const char *keeper_before);
/* The host of @record was lost, and is back before another one was given the VM: its guest waits no longer for the replica. */
void replica_host_back(struct apply *a, struct record *record);
/* Within an edit, the cluster was rebuilt: sessions that have begun since may be lost, and whether it is in sync nobody knows. */
void replica_told_again(struct vm *vm);
/* Something of it has been changed by a user: a session that is not wanted so any more is to end. */
void replica_session_check(struct apply *a, struct record *record);
/* The host of a session under way says that the replica is level. */
void replica_level(struct apply *a, const struct record *operation);
/* Within an edit: @vm has another epoch than @before, and has not run since its replica came to have its disks as they are. */
void replica_epoch_raised(struct vm *vm, uint64_t before);
/* Within an edit: @vm has been given to another host than @from (id), with its disks as they are; its epoch was @epoch_before. */
void replica_vm_moved(struct apply *a, struct vm *vm, const char *from, uint64_t epoch_before);
/* Within an edit: @vm has been given to its standby, and takes its disks from the replica; @from was lost. */
void replica_taken(struct apply *a, struct vm *vm, const char *from);
/* The same after a recovery, by an order that is lost: what is known of it helps the host that says so. */
void replica_followed(struct apply *a, struct vm *vm, const char *from);
/* After either: the volumes that were in it are where @record's VM is, and what is left of them is known. @places (struct volume_place): where
 * they are, as that host says, for nobody else knows; NULL: where they are to be, as it was given the VM with replica_taken. */
void replica_volumes_taken(struct apply *a, struct record *record, const struct object_list *places);
/* @record's VM was seen to run: what it was taken from is needed no longer. */
void replica_volumes_run(struct apply *a, const struct record *record);
/* @record, a volume that is untaken, is released: it is where it was before. Within no edit. */
void replica_volume_back(struct apply *a, struct record *record);
/* What is seen of @vm has changed. */
void replica_vm_seen(struct apply *a, const struct vm *vm);
/* @vm goes: its keeper is to hear of it. */
void replica_vm_gone(struct apply *a, const struct vm *vm);

#endif
