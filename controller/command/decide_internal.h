/* What the parts of decide share. Only for controller/command/. */
#ifndef CONTROLLER_COMMAND_DECIDE_INTERNAL_H
#define CONTROLLER_COMMAND_DECIDE_INTERNAL_H

#include "controller/command/decide.h"
#include "schema/commands.h"

struct deciding {
    const struct state *state;
    const struct decision_context *context;
    struct decision *decision; /* filled on the way; thrown away on failure */
    struct error *err;
};

/* Fill command->request; @status is the HTTP status of the answer. */
void decide_request(struct deciding *d, uint32_t status, struct command_request *request);
/* Check the command against the state, encode it, and clear @payload in any case. */
int decide_finish(struct deciding *d, enum command number, void *payload);
/* The object at {id}; refuses (ERROR_NOT_FOUND, ERROR_STALE). */
const struct record *decide_target(struct deciding *d, enum object_kind kind, const char *id, size_t id_length);
/* The object that the answer is about. */
void decide_object(struct deciding *d, enum object_kind kind, const char *id);
/* Preview: @object as it will be. */
void decide_preview(struct deciding *d, const struct object_desc *desc, const void *object);
void decide_uuid(const struct deciding *d, char ret_id[STATE_ID_BYTES]);

/* decide_drill.c */
int decide_drill_begin(struct deciding *d, const struct drill_reservation *body);
int decide_drill_end(struct deciding *d, const char *drill, size_t length);

/* decide_image.c */
int decide_image_check(const struct image *image, struct error *err);
int decide_image_create(struct deciding *d, const struct image *body);
int decide_image_distribute(struct deciding *d, const char *id, size_t id_length, const struct image_distribution *body);

/* decide_vm.c */
int decide_vm_create(struct deciding *d, const struct vm *body);
int decide_vm_update(struct deciding *d, const char *id, size_t id_length, const struct vm *body); /* decide_devices.c */
/* Give MAC addresses to NICs without. */
int decide_nics_fill(struct deciding *d, struct vm *vm);
int decide_vm_want(struct deciding *d, enum route_id route, const char *id, size_t id_length);
/* decide_task.c */
/* An operation that a host carries out: @command->operation has kind, target and task; the rest is filled in, and it is
 * checked and encoded. What answers it is the target. @command is cleared in any case. */
int decide_task(struct deciding *d, struct command_task *command);
/* The task's host is that of @vm (a record of a VM), where its disks are. -ENOENT with words: it has none yet. */
int decide_task_of_vm(struct deciding *d, const struct record *vm, struct task *task);
/* decide_snapshot.c */
int decide_snapshot_create(struct deciding *d, const char *vm, size_t vm_length, const struct snapshot *body);
/* The operation that makes the snapshot of @vm, which runs, that the clone @body is made of. */
int decide_snapshot_for_clone(struct deciding *d, const struct record *vm, const struct vm_clone *body, struct operation *ret);
/* A volume of what it has of one. */
int decide_snapshot_clone(struct deciding *d, const char *id, size_t id_length, const struct volume_clone *body);
int decide_volume_snapshot(struct deciding *d, const char *volume, size_t volume_length, const struct snapshot *body);
/* @body: of a revert; may be NULL. */
int decide_snapshot_change(struct deciding *d, enum route_id route, const char *id, size_t id_length,
                           const struct snapshot_revert *body);
/* decide_migrate.c */
int decide_vm_upgrade(struct deciding *d, const char *id, size_t id_length);
int decide_vm_migrate(struct deciding *d, const char *id, size_t id_length, const struct vm_migration *body);
int decide_handover(struct deciding *d, const struct node_handover *body);
/* decide_backup.c */
int decide_backup_create(struct deciding *d, const char *vm, size_t vm_length, const struct backup *body);
int decide_backup_attach(struct deciding *d, const char *store, size_t store_length);
/* decide_prune.c */
/* @kind: a store, all of it, or one backup. */
/* @body: of one backup, perhaps that it is to be booted; NULL: no. */
int decide_backup_verify(struct deciding *d, enum object_kind kind, const char *id, size_t id_length, const struct backup_verify *body);
int decide_backup_prune(struct deciding *d, const char *store, size_t store_length, const struct backup_prune *body);
/* A host that could reach the store: that of the VM @vm_id (may be NULL), or one that is up and has little to do; NULL: none. */
const char *decide_backup_host(const struct deciding *d, const char *vm_id);
/* @vm names a backup: what it leaves out is as the backup has it. -ENOENT, -EINVAL in words. */
int decide_vm_from_backup(struct deciding *d, struct vm *vm);
int decide_backup_delete(struct deciding *d, const char *id, size_t id_length);
int decide_backup_restore(struct deciding *d, const char *id, size_t id_length, const struct backup_restore *body);
/* decide_vm_clone.c */
int decide_vm_clone(struct deciding *d, const char *id, size_t id_length, const struct vm_clone *body);
/* decide_volume.c */
/* What the request leaves open of a volume that is to be made; its id is set. */
int decide_volume_fill(struct deciding *d, struct volume *volume);
/* For command_put.volume_filled. */
bool decide_volume_is_filled(const struct deciding *d, const struct volume *volume);
/* @body NULL: detach it. */
int decide_volume_attach(struct deciding *d, const char *id, size_t id_length, const struct volume_attachment *body);
/* What a move has left of it, not the volume. */
int decide_volume_forget_left(struct deciding *d, const char *id, size_t id_length);
/* To another pool: the host that does it is chosen here. */
int decide_vm_move_disk(struct deciding *d, const char *id, size_t id_length, const struct vm_disk_target *body);
int decide_vm_forget_left(struct deciding *d, const char *id, size_t id_length, const struct vm_disk_left *body);
int decide_volume_move(struct deciding *d, const char *id, size_t id_length, const struct volume_target *body);
/* decide_object.c */
int decide_create(struct deciding *d, enum object_kind kind, const void *body);
int decide_update(struct deciding *d, enum object_kind kind, const char *id, size_t id_length, const void *body);
/* The same; @if_generation: see command_put. */
int decide_update_of(struct deciding *d, enum object_kind kind, const char *id, size_t id_length, const void *body,
                     uint64_t if_generation);
int decide_remove(struct deciding *d, enum object_kind kind, const char *id, size_t id_length);

#endif
