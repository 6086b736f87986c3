/* Which chunks the complete backups of a store need, found by reading their manifests and lists. No key is needed. */
#ifndef BACKUP_REPO_MARK_H
#define BACKUP_REPO_MARK_H

#include "backup/frame_fetch.h"

struct repo_mark {
    struct chunk_set live;  /* ids of chunks, leaves, and the leaves that these are differences from */
    struct chunk_set lists; /* ids of leaves that were read */
};

/* Called for each chunk that is no zeroes. */
typedef int (*repo_mark_cb)(void *arg, size_t disk, uint64_t offset, const struct chunk_hash *id);

/* Walk through one backup; @each may be NULL. A leaf that cannot be read: -EBADMSG in words that name it, and with
 * @ret_bad not NULL it is counted there and the walk goes on. */
int repo_mark_backup(struct repo *repo, struct frame_fetcher *f, const struct manifest *m, struct repo_mark *mark,
                     repo_mark_cb each, void *arg, uint64_t *ret_bad, struct error *err);
void repo_mark_finish(struct repo_mark *mark);

#endif
