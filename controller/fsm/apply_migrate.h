/* Live migration in the replicated state: a task of two hosts (apply_task.h; main: the source, peer: the target) and one
 * command of its own, the hand-over.
 *
 *   command_task --> RUNNING, room kept at the target --command_handover--> the VM is the target's, epoch + 1 --> ended
 *                        |                                |
 *                        +-- failed, cancelled, overtaken +-- refused: the task ends with the reason
 *
 * The record (vm.host, vm.epoch) is the ownership at every moment. The source alone proposes the hand-over, when the target
 * has everything and its own guest stands still; it goes on only when it knows that the VM stays. So that this can be known,
 * whatever a hand-over comes to is committed: if it is refused, the operation ends with it, and no other proposal of the
 * same migration that is still on its way can have its way later. For the same reason an operation that ended, for
 * whatever cause, without a hand-over never sees one.
 *
 * In a post-copy (task_migration.postcopy) the target may run it before all of its memory is there; the hand-over says so
 * (command_handover.lacking). Then the operation goes on, for both hosts have work to do still, and the target alone knows how it comes
 * out: that all is there, from when on it ends as any other, or that this run of the VM is lost. That the source has nothing more to give
 * (source_error), as it says itself or as it was declared lost, is told to the target, which may have got all before.
 *
 *   lacking --target: all is there--> ends well with the source's word, or when it is silent
 *      |----- source: done ---------> ended well
 *      +----- target: its VMM has ended, or is lost; VM deleted --> ended, and the run of the VM with it
 *
 * The target runs what the migration brought only if the VM is its own by that operation (vm.handover) and no other start. */
#ifndef CONTROLLER_FSM_APPLY_MIGRATE_H
#define CONTROLLER_FSM_APPLY_MIGRATE_H

#include "controller/fsm/apply_task.h"

extern const struct task_kind_ops task_vm_migrate, task_vm_upgrade;

/* The migration of @vm that is under way and has not been handed over, or NULL. */
struct record *migration_under_way(const struct record *vm);
/* Is a new VMM to take @vm over on its host? */
bool upgrade_under_way(const struct record *vm);
/* One of the snapshots of @vm's disks, which do not go along; NULL: it has none. */
const struct snapshot *migration_snapshot(const struct state *state, const struct vm *vm);
/* Do all disks of @vm stay where they are by @m, in shared pools (of directories), and so its snapshots, none of which is being made, reverted
 * to or removed? */
bool migration_snapshots_stay(const struct state *state, const struct task_migration *m, const struct vm *vm);
/* A disk of @vm in a pool that cannot be handed over while the VM runs, as others in shared pools can: its pool is not shared, or it is a
 * volume that is being detached. NULL: there is none. Those that go along by @m do not count. */
const struct vm_disk *migration_fixed_disk(const struct state *state, const struct task_migration *m, const struct vm *vm);
/* Does @disk go to the pool that @m names: is it the VM's own, and in a directory of its host, or (m->storage_shared) in another shared
 * pool? */
bool migration_takes_disk(const struct state *state, const struct task_migration *m, const struct vm_disk *disk);
/* A disk of @vm that is being moved, or something of which an earlier move or migration has left where it has to be removed before @m: its host
 * does that, or the disk goes along and what is left of that has to be noted. NULL: there is none. What is left in shared pools of
 * disks that @m leaves in their pool, or takes from one host's directory to another's, stays noted: whoever sees the disk there removes it. */
const struct vm_disk *migration_disk_with_other(const struct state *state, const struct task_migration *m, const struct vm *vm);
/* How much these may need there; 0: there are none (or nobody knows how large they are). */
uint64_t migration_disks_bytes(const struct state *state, const struct task_migration *m, const struct vm *vm);
/* @vm as it will be at the target, with those disks in the pool that @m names, at @place. *ret zeroed; the caller clears it. */
void migration_vm_there(const struct state *state, const struct task_migration *m, const struct vm *vm, const char *place, struct vm *ret);
/* The same, for the pools that the target must have: also those that it is to remove the old copies from, for it alone sees the new ones. */
void migration_vm_pools(const struct state *state, const struct task_migration *m, const struct vm *vm, struct vm *ret);
/* Is the pool that @m names one that other hosts reach? Then the source must have it, too: it removes what a migration that fails has
 * left there, for it alone may see the disks themselves. */
bool migration_storage_is_shared(const struct state *state, const struct task_migration *m);
/* Are disks of @vm on their way to that pool (ids), on that host (NULL: any)? */
bool migration_goes_to_pool(const struct record *vm, const char *pool_id, const char *host_id);
/* The source's word: what came of it is kept. Nothing for other tasks. */
void migration_see(struct apply *a, struct record *operation, const struct task_seen *seen);
/* @host is silent: what was handed over from it has ended. */
void migrations_source_silent(struct apply *a, const struct record *host);
/* @operation is a migration that was handed over: it can only end well, unless */
bool migration_is_handed_over(const struct operation *operation);
/* the target runs the VM and lacks memory of it, as far as is known. */
bool migration_lacks_memory(const struct operation *operation);
/* One that was handed over and lacks memory: @text is why nothing more comes from its source. */
void migration_source_lost(struct apply *a, struct record *operation, const char *text);
/* The source is at it, though it was declared lost. Nothing for others. */
void migration_source_is_back(struct apply *a, struct record *operation);
/* It has all of it now, as is known. Nothing for others. */
void migration_lacks_no_more(struct apply *a, struct record *operation);
/* The same, as the target says. May end the operation. */
void migration_is_whole(struct apply *a, struct record *operation);

#endif
