/* The disks of a VM for drover-backup, which sees no path of theirs: read, as connected sockets of an NBD server; written, as
 * opened files.
 *
 *   it runs     its VMM serves images at a socket in the VM's directory, where its user may write: the socket is opened without
 *               following a link, must be that user's, and is connected to by its descriptor
 *   it is off   a process with the user's rights alone opens the disks and serves them
 *   restore     a new file for each disk, made in a directory held by its descriptor, that user's; at the end a process with
 *               the user's rights puts what has layers in its place. A disk that is not there yet is made beside its place, in
 *               ".<disk>.restored", and gets there by one rename: what is cut off in between is nobody's disk
 *
 *   live        the same, but what is put in their place is an empty layer that knows that all of it is missing, and what of
 *               (layer_disk_create_from); no file is made beforehand
 *
 * In a pool nothing is read or made unless its marker is there (pool_dir.h).
 *
 * So whatever names and links a VMM that was taken over has left in its directory, they lead to nothing that its user could not
 * open by itself. Those processes are drover-agent's own program, executed anew (task_child.h), so that the store's secrets are not in
 * their memory. Of the task's child; all calls block. */
#ifndef COMPUTE_AGENT_BACKUP_DISKS_H
#define COMPUTE_AGENT_BACKUP_DISKS_H

#include "compute/agent/backup_program.h"

enum { BACKUP_DISKS_MAX = 16 }; /* of backup_work */

/* A connected socket of the images that a VMM of @owner serves at @path. -EPERM in words: it is not that one's. */
int backup_disks_connect(const char *path, uid_t owner, struct error *err);

/* --disk of each disk. *ret_server: the process that serves them, for backup_disks_end after the program has ended; 0: none. */
int backup_disks_show(struct backup_program *p, pid_t *ret_server, struct error *err);
/* 0 is allowed. */
void backup_disks_end(pid_t server);

struct backup_target {
    int directory_fd; /* where it lies */
    char leaf[64];    /* its name there */
    char *aside;      /* owned: that directory, where the disk is made with it; NULL: the disk is there */
};
struct backup_targets {
    const struct backup_work *work; /* borrowed */
    struct backup_target items[BACKUP_DISKS_MAX];
    size_t count;
};

/* For a live restore: the disks whose sizes work->disks has, nothing else. backup_targets_finish after either result. */
int backup_targets_live(const struct backup_work *work, struct backup_targets *ret_targets, struct error *err);
/* Are they whole, each by itself? -ENODATA in words where not; they are not in use. */
int backup_disks_look(const struct backup_work *work, struct error *err);
/* New, empty files and --disk for each. backup_targets_finish after either result. */
int backup_targets_make(struct backup_program *p, struct backup_targets *ret_targets, struct error *err);
/* What was restored takes the disks' place: a raw file itself, or below a new, empty layer. */
int backup_targets_place(const struct backup_targets *targets, struct error *err);
/* @kept false: the files go. */
void backup_targets_finish(struct backup_targets *targets, bool kept);

#endif
