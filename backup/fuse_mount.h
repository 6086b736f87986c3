/* A directory of the host shows a few read-only files (fuse_files.h) for as long as this process serves them.
 *
 *   start: /dev/fuse + mount --> run: FUSE_MOUNT_THREADS threads: request -> answer --> stop, or somebody's umount --> end
 *
 * Only the user who mounted may look (the kernel's rule without allow_other). A process that is killed leaves a directory
 * that answers "Transport endpoint is not connected" until `umount`. */
#ifndef BACKUP_FUSE_MOUNT_H
#define BACKUP_FUSE_MOUNT_H

#include "backup/fuse_files.h"
#include "common/error.h"

enum { FUSE_MOUNT_THREADS = 4 };

struct fuse_mount;

/* On @directory, which is there and empty. @files is borrowed. -EPERM (FORBIDDEN), -ENODEV (NOT_SUPPORTED), -EBUSY,
 * -ENOTDIR, ... in words that say what else can be done. Threads that are started inherit the caller's signal mask. */
int fuse_mount_start(const char *directory, const struct fuse_files *files, struct fuse_mount **ret_mount,
                     struct error *err);
/* Readable once it is over: somebody has unmounted it, or the kernel has given it up. */
int fuse_mount_over_fd(const struct fuse_mount *m);
/* Unmounts, where that is left to do. NULL is allowed. */
void fuse_mount_end(struct fuse_mount *m);

#endif
