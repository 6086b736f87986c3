/* A disk of a backup as something to read from anywhere: for restores, for serving it as a block device, for `cat`.
 *
 * Frames that were read are kept, up to a limit, least recently used first out; a frame that two threads want is
 * fetched once. Each chunk is compared with its name. Any thread, several at once; all calls block. */
#ifndef BACKUP_BACKUP_READER_H
#define BACKUP_BACKUP_READER_H

#include "backup/frame_fetch.h"

enum { BACKUP_READER_CACHE_BYTES = 64 << 20, BACKUP_READER_LEAVES_MAX = 16 };

struct backup_reader;

/* @cache_bytes 0: BACKUP_READER_CACHE_BYTES. -ENOENT, -EBADMSG, -EACCES or the store's, in words. */
int backup_reader_open(struct repo *repo, const char *id, size_t cache_bytes, struct backup_reader **ret_reader,
                       struct error *err);
void backup_reader_close(struct backup_reader *r); /* NULL is allowed */
const struct manifest *backup_reader_manifest(const struct backup_reader *r);
struct repo *backup_reader_repo(const struct backup_reader *r);
const struct repo_view *backup_reader_view(const struct backup_reader *r);
/* -ENOENT in words. */
int backup_reader_disk(const struct backup_reader *r, const char *name, size_t *ret_disk, struct error *err);

/* Up to where what begins at @offset surely reads as zeroes, or has data. offset < *ret_end <= size. */
int backup_reader_extent(struct backup_reader *r, size_t disk, uint64_t offset, bool *ret_zero, uint64_t *ret_end,
                         struct error *err);
/* All of @size bytes within the disk. -EBADMSG in words that name the disk, the place and the pack: damaged there;
 * everything else can still be read. */
int backup_reader_read(struct backup_reader *r, size_t disk, uint64_t offset, void *buffer, size_t size,
                       struct error *err);
/* The ids of leaf @index of a disk. */
int backup_reader_leaf(struct backup_reader *r, size_t disk, uint64_t index, struct chunk_leaf *ret_leaf,
                       struct error *err);

#endif
