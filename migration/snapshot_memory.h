/* The memory of a VM that belongs to a snapshot of its disks, and the word that its next start goes on from it: files beside the
 * layers of the first of its disks that are written to. Where the disks are, there the memory is, with the same owner and rights.
 *
 *   <snapshot>.memory         the machine (snapshot_file.h) at the very moment that the snapshot of that name shows of all disks. It
 *                             gets this name last: while it has it, every disk has the snapshot
 *   <snapshot>.memory.new     the same, while that is not so yet;  <snapshot>.memory.new.<...>: being written
 *   resume                    the name of the snapshot that the disks were reverted to: who starts the VM next goes on from its memory
 *
 * Memory must never be laid over disks that have moved on, which would ruin the guest's file systems. Two things keep that from
 * happening, each by itself: `resume` is taken away, lastingly, before the guest's first instruction (snapshot_resume_take), so a start
 * after that one boots from disks; and whoever goes on from memory has seen that no disk has a cluster that was written since
 * (layer_disk_is_at).
 *
 * All block; any thread. @directory: of the layers, written by the VM's user. */
#ifndef MIGRATION_SNAPSHOT_MEMORY_H
#define MIGRATION_SNAPSHOT_MEMORY_H

#include "common/base.h"
#include "common/error.h"

/* The file, and what it is called before it is one. The caller frees. */
char *snapshot_memory_path(const char *directory, const char *snapshot);
char *snapshot_memory_new_path(const char *directory, const char *snapshot);
/* *ret_bytes: that it takes. -ENOENT; -EINVAL: it is no plain file. */
int snapshot_memory_look(const char *directory, const char *snapshot, uint64_t *ret_bytes, struct error *err);
/* Every disk has the snapshot: the new file gets its name. Lasts when this returns 0. */
int snapshot_memory_conclude(const char *directory, const char *snapshot, struct error *err);
/* The file, whole or not, goes, lastingly. Nothing there is fine. */
int snapshot_memory_remove(const char *directory, const char *snapshot, struct error *err);
/* The same for what nobody is at work on, of snapshots whose name is an id, and that @keeps does not know: left by a host that went down.
 * Errors are passed over. */
void snapshot_memory_tidy(const char *directory, bool (*keeps)(void *arg, const char *snapshot), void *arg);

/* The next start goes on from @snapshot. Lasts when this returns 0. */
int snapshot_resume_set(const char *directory, const char *snapshot, struct error *err);
/* Which one does it go on from? *ret_snapshot: NULL: none; else the caller frees. A word that is none is none. */
int snapshot_resume_read(const char *directory, char **ret_snapshot, struct error *err);
/* It is going to, now. Lasts when this returns 0, which it does for one caller alone; -ESTALE in words for every other one. */
int snapshot_resume_take(const char *directory, const char *snapshot, struct error *err);
/* It goes on from none. Lasts when this returns 0. */
int snapshot_resume_clear(const char *directory, struct error *err);

#endif
