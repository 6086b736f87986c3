/* Operations that hosts carry out: tasks. A long piece of work (a snapshot, a backup, an import, ...) is an operation in
 * the replicated state whose `task` says what is to be done, by which host, perhaps with a second one to help (peer).
 *
 *            command_task                host: succeeded                    .--------.
 *   (none) --------------> RUNNING ---------------------------------------->|        |
 *                          |  ^ |        host: failed; host removed or lost;| ended  |
 *                progress, |  | |        its VM is gone or elsewhere        |        |
 *        the peer is ready '--' |------------------------------------------>|        |
 *                               '-cancel asked--> RUNNING --host: cancelled>'--------'
 *
 * Level-triggered: the orders of a host have each running task in which it has a part (node_sync.h), until it has ended;
 * its agent begins it, tells how it goes, and forgets it when the order is gone. So an agent that was restarted gets it
 * again, and each kind must be one that can be begun twice. Asking for its end (`operation cancel`, the VM is to be
 * deleted) is an order too: how it ended is the main host's word, for only that knows what is done already.
 *
 * A kind is a row of task_kinds (apply_task.c): what it means for other objects that it begins and how it ends. */
#ifndef CONTROLLER_FSM_APPLY_TASK_H
#define CONTROLLER_FSM_APPLY_TASK_H

#include "controller/fsm/apply_internal.h"

struct task_kind_ops {
    /* May it begin? Refuses if not. Hosts and VM that the task names are there. */
    bool (*may_begin)(struct apply *a, const struct operation *operation);
    /* It begins. NULL: that means nothing for other objects. */
    void (*begun)(struct apply *a, const struct operation *operation);
    /* It is about to end as @state; @text: why, where it did not go well. @seen: the host's own word with its results;
     * NULL where it did not come to that (host lost, VM gone). NULL: as above. */
    void (*ended)(struct apply *a, const struct operation *operation, enum operation_state state, const char *text,
                  const struct task_seen *seen);
};

/* apply_snapshot.c */
extern const struct task_kind_ops task_snapshot_create, task_snapshot_revert, task_snapshot_delete;
/* apply_move.c */
extern const struct task_kind_ops task_volume_move;
/* apply_clone.c */
extern const struct task_kind_ops task_volume_clone;
/* Is a volume being made of a snapshot of @volume? Refuses if so: no snapshot of it goes, and it goes to no other VM. */
bool volume_is_cloned(struct apply *a, const struct volume *volume);
/* The host of @record says that both copies are level, where it is a move of a volume: it is told that this was heard, once. */
void volume_is_level(struct apply *a, struct record *record);
/* Is a volume that @vm has being moved? Refuses if so. */
bool volume_is_moved(struct apply *a, const struct record *vm);
/* Has @host, for a move, the pool @pool now? Refuses if not. Has @to room there for @what @name of that size? */
bool move_host_has(struct apply *a, const struct pool *pool, const struct record *host);
/* Pools of Ceph have no part in moves: refuses one from or to such (either may be NULL). */
bool move_is_of_files(struct apply *a, const char *what, const char *name, const struct pool *from, const struct pool *to);
bool move_has_room(struct apply *a, const char *what, const char *name, uint64_t size_bytes, const struct pool *to, const struct record *host);
/* The same of the directory of @host. */
bool move_directory_has_room(struct apply *a, const char *what, const char *name, uint64_t size_bytes, const struct record *host);
/* Was the end of the log lost in the middle of it, perhaps with the word that it was done? */
bool move_may_be_done(const struct apply *a, const struct operation *operation);
/* apply_disk_move.c: the same task where it is about a VM's own disk; as in task_kind_ops. */
bool own_disk_may_move(struct apply *a, const struct operation *operation);
void own_disk_move_begun(struct apply *a, const struct operation *operation);
void own_disk_move_ended(struct apply *a, const struct operation *operation, enum operation_state state, const char *text);
/* A host says of @operation that it has succeeded. Of a move of a VM's own disk, does it say what it has moved? An agent that knows nothing
 * of such moves takes them for done at once. */
bool own_disk_move_is_told(struct apply *a, const struct operation *operation, const struct task_seen *seen);
/* apply_vm_clone.c */
extern const struct task_kind_ops task_vm_clone;
/* Are @vm's disks being made of another VM's; are another VM's being made of its, so that no task of @kind may begin? Refuse if so. */
bool vm_is_in_making(struct apply *a, const struct record *vm);
bool vm_is_cloned(struct apply *a, const struct record *vm, enum operation_kind kind);
/* The snapshot that a clone was begun with, @snapshot, has come to an end: the clone waits for its host now, or ends for @text (NULL: well). */
void vm_clone_snapshot_ended(struct apply *a, const struct snapshot *snapshot, enum operation_state state, const char *text);
/* @source goes, or another host has it from now on: what was being made of it is not. */
void vm_clones_end(struct apply *a, const struct record *source, const char *text);
/* Is a volume being made of @origin, with a clone of its VM; is @volume such a one? Refuse if so. */
bool volume_is_cloned_with_vm(struct apply *a, const struct volume *origin);
bool volume_is_in_making(struct apply *a, const struct volume *volume);
/* apply_image.c */
extern const struct task_kind_ops task_image_import;
/* May @operation's host copy a disk of that snapshot of the VM of its task? Refuses if not. While it does no snapshot of the VM goes. */
bool snapshot_may_be_read(struct apply *a, const struct operation *operation, const char *snapshot);
/* Is @volume in a snapshot of its VM (@own: or has its own), and so cannot be @cannot ("detached")? Has a snapshot of @vm volumes, so that it cannot be deleted but by force?
 * Refuse if so. */
bool snapshot_keeps_volume(struct apply *a, const struct volume *volume, bool own, const char *cannot);
bool snapshot_keeps_vm(struct apply *a, const struct vm *vm);
/* Is a task at work on a snapshot of @volume alone, or is it being cloned, or one that @vm has? Refuse if so. */
bool snapshot_is_at_work(struct apply *a, const struct volume *volume);
bool volume_is_at_work(struct apply *a, const struct record *vm);
/* @volume goes: its own snapshots with it. It has another name. */
void snapshots_volume_gone(struct apply *a, const struct record *volume);
void snapshots_volume_renamed(struct apply *a, const struct record *volume);
/* @vm goes: its snapshots with it. */
void snapshots_vm_gone(struct apply *a, const struct record *vm);
/* @vm has another name. */
void snapshots_vm_renamed(struct apply *a, const struct record *vm);

/* May @operation begin; it does, with all that it means for other objects. @if_revision: of its target; 0: any. */
bool task_may_begin(struct apply *a, const struct operation *operation, uint64_t if_revision);
void task_start(struct apply *a, const struct operation *operation);
/* May host @id have one more, @field being where it was named? Refuses if not. */
bool task_host_may(struct apply *a, const char *id, const char *field);
/* @operation, which may begin, does: its record, its host's orders, the answer. What it means for others has been done. */
void task_begin(struct apply *a, const struct operation *operation);
/* @record, which runs, ends as @state. @code, @text: why not well. @seen: as in task_kind_ops.ended. */
void task_end(struct apply *a, struct record *record, enum operation_state state, const char *code, const char *text,
              const struct task_seen *seen);

/* apply_replica.c */
extern const struct task_kind_ops task_vm_replicate;
/* apply_backup.c */
extern const struct task_kind_ops task_backup_create, task_backup_restore, task_backup_delete,
    task_backup_attach, task_backup_verify, task_backup_prune;
/* apply_boot.c */
extern const struct task_kind_ops task_backup_boot;
/* The host of @record, a live restore, says that the disks can be read: its VM is started, once. */
void restore_placed(struct apply *a, struct record *record);
/* Are @vm's disks filled from a backup while it runs? Refuses if so. */
bool restore_is_live(struct apply *a, const struct record *vm);
/* Is it one whose disks are in their place, so that a VM has no others; and has @vm such a one? */
bool restore_is_under(const struct operation *operation);
bool restore_is_under_vm(const struct record *vm);
/* Does a policy, a task or (unless @with_backups) a backup keep @record, a store, from being removed? Refuses if so. */
bool backups_use(struct apply *a, const struct record *record, bool with_backups);
/* @store is another one, or is used otherwise: the hosts at work on it are to know. */
void backups_store_changed(struct apply *a, const struct record *store);
/* @store goes: what is known of the backups in it goes, too. */
void backups_forget(struct apply *a, const struct record *store);

/* What a host says of its tasks. */
void tasks_seen(struct apply *a, const struct record *host, const struct object_list *tasks);
/* The host of the task is to end it. */
void task_ask_cancel(struct apply *a, struct record *operation, const char *text);
/* @host was declared lost, @text says so: every task that it has a part in ends as failed, but live restores that VMs are on: what they
 * have is there and nowhere else, and is good for nothing without the rest. */
void tasks_host_lost(struct apply *a, const struct record *host, const char *text);
/* The same where it was removed, without exception. */
void tasks_host_gone(struct apply *a, const struct record *host, const char *text);
/* The same for every task about @vm: it goes, or another host has it from now on. */
void tasks_vm_gone(struct apply *a, const struct record *vm, const char *text);

/* What is kept of a task that has ended: without its arguments, for there are thousands. */
void task_trim(struct task *task);
/* What its hosts are to do has changed. */
void task_orders_changed(struct apply *a, const struct task *task);

#endif
