/* What the parts of apply share. Only for controller/fsm/apply*.c. */
#ifndef CONTROLLER_FSM_APPLY_INTERNAL_H
#define CONTROLLER_FSM_APPLY_INTERNAL_H

#include "controller/fsm/apply.h"
#include "controller/fsm/state_edit.h"

#define APPLY_TEXT_BYTES_MAX 701u /* the longest text of a field that apply writes, NUL included */
#define APPLY_STEP_BYTES_MAX 401u

struct apply {
    struct state *state;
    uint64_t index;
    const struct command_request *request;
    struct apply_result *result;
    bool check_only; /* fsm_check: stop where the changes would begin */
};

/* One function for each command. Each checks everything before it changes anything. */
void apply_init(struct apply *a, struct command_init *command);
void apply_recover(struct apply *a, struct command_recover *command);
void apply_put(struct apply *a, struct command_put *command);
void apply_remove(struct apply *a, struct command_remove *command);
void apply_token_use(struct apply *a, struct command_token_use *command);
void apply_volume_attach(struct apply *a, struct command_volume_attach *command);
void apply_vm_create(struct apply *a, struct command_vm_create *command);
void apply_vm_clone(struct apply *a, struct command_vm_clone *command);
void apply_vm_want(struct apply *a, struct command_vm_want *command);
/* May @vm be made, wherever it is placed? Refuses if not. Names in it become what they are known by. */
bool apply_vm_may_create(struct apply *a, struct vm *vm);
/* @record is wanted running, as if it had been asked for; nothing if it is to be deleted. */
void apply_vm_start(struct apply *a, struct record *record);
void apply_replica_late(struct apply *a, struct command_replica_late *command);
void apply_vm_place(struct apply *a, struct command_vm_place *command);
void apply_seen(struct apply *a, struct command_seen *command);
void apply_host_state(struct apply *a, struct command_host_state *command);
void apply_operation(struct apply *a, struct command_operation *command);
void apply_task(struct apply *a, struct command_task *command); /* apply_task.h */
void apply_host_suspect(struct apply *a, struct command_host_suspect *command);
void apply_host_lost(struct apply *a, struct command_host_lost *command);
void apply_host_clear(struct apply *a, struct command_host_clear *command);
void apply_ha_arm(struct apply *a, struct command_ha_arm *command);
void apply_drill(struct apply *a, struct command_drill *command);
void apply_image_copies(struct apply *a, struct command_image_copies *command);
void apply_handover(struct apply *a, struct command_handover *command); /* apply_migrate.h */

/* Answer with a refusal; nothing may have been changed. */
void apply_refuse(struct apply *a, int code, enum error_kind kind, const char *format, ...) PRINTF_LIKE(4, 5);
void apply_refuse_field(struct apply *a, int code, enum error_kind kind, const char *field, const char *format, ...)
    PRINTF_LIKE(5, 6);
/* The object that the answer is about. */
void apply_answer(struct apply *a, const struct record *record);
/* Append an event about @record in words. */
void apply_event(struct apply *a, enum event_type type, const struct record *record, const char *format, ...)
    PRINTF_LIKE(4, 5);
/* snprintf that never cuts a UTF-8 character in two. */
void apply_text(char *buffer, size_t size, const char *format, ...) PRINTF_LIKE(3, 4);
/* Is id and name of a new object there and free, and is there room? Refuses if not. */
bool apply_may_insert(struct apply *a, enum object_kind kind, const struct record_common *common);
/* The object with @id of @kind, with @if_revision (0 = any); refuses and gives NULL if not. */
struct record *apply_find(struct apply *a, enum object_kind kind, const char *id, uint64_t if_revision);

/* ---- operations (apply_operation.c) ---- */

/* Insert @command's operation (id, kind, requested_by are its own) about @vm, running, done at @generation. */
struct record *operation_begin(struct apply *a, struct operation *operation, const struct record *vm, uint64_t generation);
/* May it be inserted? Refuses if not. @vm may be NULL: not made yet, or its running operations will be overtaken. */
bool operation_may_begin(struct apply *a, const struct operation *operation, const struct record *vm);
/* End it; @error_code and @error_text are NULL for success. The record may be gone after state_prune_operations. */
void operation_end(struct apply *a, struct record *operation, enum operation_state state, const char *error_code,
                   const char *text);
/* What is being done of it, in words, where that is news. */
void operation_step(struct apply *a, struct record *operation, const char *step);
/* End what is done or has failed of @vm's running operations, tasks left alone. */
void operation_settle(struct apply *a, const struct record *vm);
/* End all of @vm's running operations as overtaken by @kind; its tasks go on, but for a removal: that asks for their
 * end. */
void operation_overtake(struct apply *a, const struct record *vm, enum operation_kind kind);

/* ---- disks and NICs of a VM that is there (apply_devices.c) ---- */

/* Is @patch about its devices? */
bool apply_devices_given(const struct vm *patch);
/* May @record's devices become those of @patch? Refuses if not. Names and addresses of its NICs are resolved. */
bool apply_devices_may_change(struct apply *a, const struct record *record, struct vm *patch, uint64_t if_generation);
/* @vm has other devices than before: its host is to know, and to say when it has done it. */
void apply_devices_changed(struct vm *vm);
/* @vm, which is being edited, has been made by its host. */
void apply_vm_is_made(struct vm *vm);
/* What is wanted of VM @record, which is being edited, is of @generation, higher than any that its host may have reached; so are the
 * operations that are not done, and its host is told. */
void apply_vm_tell_again(struct apply *a, struct record *record, uint64_t generation);

/* ---- images on hosts (apply_image.c) ---- */

/* What @host reports of images: struct image_seen. */
void apply_images_seen(struct apply *a, const struct record *host, const struct object_list *images);
/* Would nothing be lost without @host? Refuses if not. */
bool apply_host_may_leave_images(struct apply *a, const struct record *host);
/* May an image be removed or renamed: is nothing under way that makes it? Refuses if so. */
bool apply_image_may_go(struct apply *a, const struct record *record);
/* @host is about to be removed. */
void apply_host_leaves_images(struct apply *a, const struct record *host);

/* ---- pools (apply_pool.c) ---- */

/* What @host reports of pools: struct pool_seen. */
void apply_pools_seen(struct apply *a, const struct record *host, const struct object_list *pools);
/* May it be made? Refuses if not. Its hosts are resolved, and become its members. */
bool apply_pool_may_be_made(struct apply *a, struct pool *pool);
/* May @record become what @patch makes of it? Refuses if not. Hosts that the patch names are resolved in it. */
bool apply_pool_may_change(struct apply *a, const struct record *record, struct pool *patch);
/* Its hosts are to know: before it changes or goes; and, within an edit, when it has changed. */
void apply_pool_changing(struct apply *a, const struct record *record);
void apply_pool_changed(struct apply *a, struct record *record);
/* @host is about to be removed. */
void apply_host_leaves_pools(struct apply *a, const struct record *host);
/* Are the pools of @vm's disks there? Refuses if not. Names are made canonical. */
bool apply_vm_pools_resolve(struct apply *a, struct vm *vm);
/* Has @host all pools of @vm's disks? @ret_why: in words if not. */
bool apply_host_has_pools(struct apply *a, const struct record *host, const struct vm *vm, char *ret_why, size_t size);

/* Hosts of the pools that @host has are to look again at what they do for others: it comes or goes. */
void apply_pools_tell(struct apply *a, const struct record *host);

/* ---- volumes (apply_volume.c) ---- */

/* As of pools. @filled: command_put.volume_filled. */
bool apply_volume_may_be_made(struct apply *a, struct volume *volume, bool filled);
bool apply_volume_may_change(struct apply *a, const struct record *record, const struct volume *patch);
/* It is new (@created), or has been changed: its host, or its VM's, is to know. */
void apply_volume_changed(struct apply *a, const struct record *record, bool created);
/* It is to be removed; refuses if it is attached. @force: its record at once. _forget_left: only that a move has left something of it. */
void apply_volume_forget_left(struct apply *a, struct record *record);
void apply_volume_remove(struct apply *a, struct record *record, bool force);
/* Does a volume need @record, a pool, host or image? Refuses if so. */
bool volumes_use(struct apply *a, const struct record *record, const char *what_to_do);
/* Whoever may have something to do for @volume is to look at its orders. */
void volume_tell_hosts(struct apply *a, const struct volume *volume);
/* What a move has left of it is nobody's work any more: "what was left of volume ... is @words". Within no edit. */
void volume_left_gone(struct apply *a, struct record *record, const char *words);
/* @vm's host is to know of another list of disks, within no edit. */
void volume_vm_edit_begin(struct apply *a, struct record *vm);
void volume_vm_edit_end(struct apply *a, struct record *vm);
/* Disk @at of @vm is none any more, within no edit; its volume's record is the caller's. */
void volume_disk_take_out(struct apply *a, struct record *vm, size_t at);
/* Is a task at work on @vm's disks? Refuses if so. */
bool volume_vm_is_busy(struct apply *a, const struct record *vm);
/* @host is removed, and with it what moves have left of volumes in its directories. */
void volumes_host_gone(struct apply *a, const struct record *host);
/* What @host reports of volumes: struct volume_seen. */
void apply_volumes_seen(struct apply *a, const struct record *host, const struct object_list *volumes);
/* As of volumes (apply_disk_move.c): what moves have left of VMs' own disks. _seen: what @host says of one. _forget: it is nobody's work. */
void own_disks_host_gone(struct apply *a, const struct record *host);
void own_disk_seen(struct apply *a, const struct volume_seen *seen);
void own_disk_forget_left(struct apply *a, struct record *vm, const char *disk);
/* @patch has a list of @vm's disks: where these are is no part of it. */
void own_disks_stay(const struct vm *vm, struct vm *patch);
/* @vm goes, and what moves have left of it stays: an event says where. @removed: but for what its host has removed with it. */
void own_disks_vm_gone(struct apply *a, const struct record *vm, bool removed);
/* The VM's host has come further, or it has none any more: what was to be attached or detached may be so now. Not within an edit. */
void volumes_settle(struct apply *a, struct record *vm);
/* @vm goes: its volumes are free. It has another name. */
void volumes_vm_gone(struct apply *a, const struct record *vm);
void volumes_vm_renamed(struct apply *a, const struct record *vm);

/* ---- hosts ---- */

/* Has @host room for the VM? @ret_why: in words if not. */
bool apply_host_fits(const struct record *host, uint64_t memory_bytes, uint64_t vcpus, char *ret_why, size_t size);

/* ---- VMs (apply_vm.c) ---- */

/* No host holds anything of the VM any more that counts: its record goes. */
void apply_vm_gone(struct apply *a, struct record *record);

/* ---- leases (apply_lease.c) ---- */

/* What tells one set of controllers with a vote, and their addresses, from another. */
uint64_t lease_voters_print(const struct state *state);
/* Are they still those of @index (0: any)? Refuses if not. */
bool lease_voters_are(struct apply *a, uint64_t index);
/* They have changed by this command: lists of voters are numbered by it. */
void lease_voters_changed(struct apply *a);
/* It has run again, or somebody starts it: each host may be tried anew. The caller edits it. */
void apply_vm_forget_tried(struct vm *vm);
/* @vm, which is recovering, begins to be started on another host: count it. */
void lease_count_failover(struct vm *vm, const char *at);

/* ---- security groups ---- */

/* @vm comes or goes: the hosts of VMs whose security groups name one of its groups must hear of its addresses. */
void apply_members_changed(struct apply *a, const struct vm *vm);

#endif
