/* Which clusters of a machine's disks were written since which backup (block/changed_map.h), over the life of its VMMs: the
 * map of a disk lies beside it, as <disk>.changed, while no VMM has the disk.
 *
 *   disk opened   stamp taken, file read and removed          -> known since its backups
 *                 none, or of another state of the disk       -> nothing known until the first backup, which begins one
 *   disk closed   file written, with the stamp of the disk as it is then
 *
 * A VMM that is killed leaves no file; a machine that was migrated away leaves none either, for its disks are written
 * elsewhere then. Where the directory cannot be written the next backup reads everything.
 *
 * Threads: with the device lock held, or nobody else about. */
#ifndef COMPUTE_VMM_MACHINE_CHANGES_H
#define COMPUTE_VMM_MACHINE_CHANGES_H

#include "block/block.h"
#include "block/changed_map.h"
#include "schema/objects.h"

struct machine_changes {
    struct changed_map map;
    char *path;          /* of the file; owned */
    char *disk_path;     /* owned */
    bool has_layers;
};

/* Of the disk as it is on disk now; all zero: it cannot be told, and nothing matches it. */
void machine_changes_stamp(const struct vmm_disk *disk, uint8_t stamp[CHANGED_STAMP_BYTES]);
/* @block has been opened for writing; @stamp is of before. NULL: nothing is known, and nothing tracked. */
struct machine_changes *machine_changes_load(const struct vmm_disk *disk, struct block *block,
                                             const uint8_t stamp[CHANGED_STAMP_BYTES]);
/* Begin with nothing known. NULL: no memory. */
struct machine_changes *machine_changes_begin(const struct vmm_disk *disk, struct block *block);
void machine_changes_grown(struct machine_changes *c, struct block *block);
/* Nobody writes the disk any more. @keep: write the file. NULL is allowed. */
void machine_changes_end(struct machine_changes *c, bool keep);

#endif
