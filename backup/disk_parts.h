/* The partitions of a disk, by its MBR (with logical ones) or its GPT: what a guest has written there, so nothing in it
 * is trusted; a table that makes no sense has no partitions, and never more than DISK_PARTS_MAX. Sectors of 512 bytes. */
#ifndef BACKUP_DISK_PARTS_H
#define BACKUP_DISK_PARTS_H

#include "common/base.h"
#include "common/error.h"

enum { DISK_PARTS_MAX = 128 };

struct disk_part {
    unsigned number; /* as Linux counts them: 1 to 4, logical ones from 5 on; the place in a GPT + 1 */
    uint64_t offset_bytes, size_bytes;
};

/* @size bytes at @offset; 0 or negative errno in words. */
typedef int (*disk_read_cb)(void *arg, uint64_t offset, void *buffer, size_t size, struct error *err);

/* How many; all lie within @disk_bytes. Negative errno where the disk cannot be read. */
int disk_parts_find(uint64_t disk_bytes, disk_read_cb read, void *arg, struct disk_part ret_parts[DISK_PARTS_MAX],
                    struct error *err);

#endif
