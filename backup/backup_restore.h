/* A whole disk of a backup into a file: by several threads, each frame fetched once (for each 512 MiB of the disk),
 * holes kept. Blocking. */
#ifndef BACKUP_BACKUP_RESTORE_H
#define BACKUP_BACKUP_RESTORE_H

#include "backup/backup_reader.h"
#include "backup/backup_writer.h"

struct backup_restore_options {
    unsigned threads;            /* 0: one for each processor, or more where the store is far away */
    bool zeroed;                 /* the file reads as zeroes: it is new, or a device that was discarded */
    backup_progress_cb progress; /* or NULL; the caller's thread */
    void *progress_arg;
    const atomic_bool *cancel; /* or NULL */
};

/* Into @fd, a regular file, which is made as long as the disk (what is behind it goes), or a block device that is at least so long. Syncs it at the
 * end, and has the kernel bring it out meanwhile. On failure, in words, what was written stays. */
int backup_restore_disk(struct backup_reader *r, size_t disk, int fd, const struct backup_restore_options *options,
                        struct error *err);

#endif
