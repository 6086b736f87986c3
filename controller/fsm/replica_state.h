/* Replicas of VMs in the replicated state: who has one, whether it can stand in for the VM's disks, and what becomes of it when the VM
 * changes hosts.
 *
 *   replica_host given --> no point --vm-replicate ends well--> point n of epoch e --and again--> point n+1
 *                             ^                                     |
 *                             |      the host is lost, ha, e is the VM's epoch: given to replica_host under epoch + 1, which takes
 *                             '----- the VM's disks from the point; from then on the lost host is replica_host, without a point, and
 *                                    keeps the VM's old disks until the VM has run from the point (replica_start: it may not yet)
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
/* The host that is to keep it, or NULL. */
const struct record *replica_keeper(const struct state *state, const struct vm *vm);
/* The host that @vm can be started on from its replica, with its own lost; NULL: none. */
const struct record *replica_standby(const struct state *state, const struct vm *vm);
/* Is a point being made? NULL: no. */
const struct record *replica_under_way(const struct record *vm);

/* ---- for apply ---- */

/* May @record become what @patch makes of it? Refuses if not. The host's name is made canonical. */
bool replica_may_change(struct apply *a, const struct record *record, struct vm *patch);
/* Within an edit: @keeper_before (a name or NULL) may not be its keeper any more. Hosts are told. */
void replica_changed(struct apply *a, struct vm *vm, const char *keeper_before);
/* Within an edit: @vm has been given to another host than @from (id), with its disks as they are; its epoch was @epoch_before. */
void replica_vm_moved(struct apply *a, struct vm *vm, const char *from, uint64_t epoch_before);
/* Within an edit: @vm has been given to its standby, and takes its disks from the replica; @from was lost. */
void replica_taken(struct apply *a, struct vm *vm, const char *from);
/* The same after a recovery, by an order that is lost: what is known of it helps the host that says so. */
void replica_followed(struct apply *a, struct vm *vm, const char *from);
/* What is seen of @vm has changed. */
void replica_vm_seen(struct apply *a, const struct vm *vm);
/* @vm goes: its keeper is to hear of it. */
void replica_vm_gone(struct apply *a, const struct vm *vm);

#endif
