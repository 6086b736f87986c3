/* A disk of a backup as a struct block that is only read: what `drover-backup serve` exports, and whatever else takes a
 * block. Requests are gathered by submit and carried out by block_drain, several at once where the store is far away; a
 * size that is no multiple of 512 is rounded up, and the rest reads as zeroes.
 *
 * Failures: -EIO where the store or a pack fails; `complain` gets the words. Everything else can still be read, and what
 * failed is tried again when it is read again. */
#ifndef BACKUP_BACKUP_BLOCK_H
#define BACKUP_BACKUP_BLOCK_H

#include "backup/backup_reader.h"
#include "block/block.h"

enum { BACKUP_BLOCK_THREADS_MAX = 16 };

struct backup_block_options {
    unsigned threads; /* 0: as many as the store's transfers, 2 at least */
    /* What went wrong with a read. Any of the block's threads, one at a time. NULL: nobody wants to know. */
    void (*complain)(void *arg, const struct error *err);
    void *complain_arg;
};

/* Disk @disk of @reader, which is borrowed for as long as the block lives. */
int backup_block_open(struct backup_reader *reader, size_t disk, const struct backup_block_options *options,
                      struct block **ret_block, struct error *err);

#endif
