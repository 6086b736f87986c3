/* What a backup is made from, behind a vtable: a raw file, a disk of layers, an NBD export, or the caller's own.
 *
 * The source shows one moment and does not change meanwhile. The writer asks from the beginning to the end, extents
 * and reads in ascending order, all from one thread, and owns the source from backup_writer_disk on.
 *
 *   BACKUP_DATA   has to be read
 *   BACKUP_ZERO   reads as zeroes
 *   BACKUP_SAME   as in the parent; only where the source was opened with the parent's mark. It can still be read:
 * the writer does so where the store has lost the parent's chunk, and where a chunk is the same only in part */
#ifndef BACKUP_BACKUP_SOURCE_H
#define BACKUP_BACKUP_SOURCE_H

#include "common/base.h"
#include "common/error.h"

enum { BACKUP_MARK_BYTES = 256 };

enum backup_extent { BACKUP_DATA, BACKUP_ZERO, BACKUP_SAME };

struct backup_source;
struct backup_source_ops {
    /* What is at @offset (< size_bytes), and up to where at least the same holds: offset < *ret_end <= size_bytes. */
    int (*extent)(struct backup_source *, uint64_t offset, enum backup_extent *ret_kind, uint64_t *ret_end,
                  struct error *err);
    /* All of @size bytes, within size_bytes. */
    int (*read)(struct backup_source *, uint64_t offset, void *buffer, size_t size, struct error *err);
    void (*close)(struct backup_source *);
};

/* Embedded by each kind. */
struct backup_source {
    const struct backup_source_ops *ops;
    uint64_t size_bytes;
    bool knows_changes;           /* it tells of BACKUP_SAME */
    char mark[BACKUP_MARK_BYTES]; /* what the next backup's source needs to know changes since this one; "" none */
};

/* Opens @location; @parent_mark: that of the disk in the parent, or NULL. Where changes since it can't be told, the
 * source is opened all the same and says so in knows_changes.
 *
 *   file:/path                       a raw file or block device (also a bare absolute path); holes are zeroes
 *   pool:/directory/DISK[@SNAPSHOT]  a disk of layers (layer_disk.h), or a snapshot of it; the mark is the layer's id
 *   nbd:unix:/socket[:EXPORT[@MARK]] an export of an NBD server (source_nbd.h)
 *
 * -EINVAL, -ENOENT, -EBUSY... in words. */
int backup_source_open(const char *location, const char *parent_mark, struct backup_source **ret_source,
                       struct error *err);
/* @source, of which nothing but @path has changed since the parent: a text of lines "OFFSET LENGTH", in bytes,
 * ascending, decimal. Owns @source on success. -EINVAL in words, naming the line. */
int backup_source_changes(struct backup_source *source, const char *path, struct backup_source **ret_source,
                          struct error *err);
void backup_source_close(struct backup_source *source); /* NULL is allowed */

#endif
