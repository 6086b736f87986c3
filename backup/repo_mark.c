/* Which chunks the backups need: see repo_mark.h. */
#include "backup/repo_mark.h"

#include <errno.h>

static int leaf_walk(struct repo *repo, struct frame_fetcher *f, const struct manifest *m, size_t disk,
                     uint64_t index, const struct chunk_hash *id, struct repo_mark *mark, repo_mark_cb each,
                     void *arg, struct chunk_leaf *leaf, struct error *err)
{
    uint32_t chunk_bytes = repo->header.chunk_bytes;
    const struct manifest_disk *d = manifest_disk_at(m, disk);
    struct chunk_hash base;
    int code = 0;
    if (chunk_hash_is_zero(id) || (each == NULL && chunk_set_has(&mark->lists, id)))
        return 0;
    code = frame_fetch_leaf(f, id, chunk_tree_slots(d->size_bytes, chunk_bytes, index), leaf, &base, NULL, err);
    if (code < 0) {
        error_prefix(err, "backup %s, disk %s: ", m->head.id, d->name);
        return code;
    }
    chunk_set_add(&mark->lists, id);
    chunk_set_add(&mark->live, id);
    chunk_set_add(&mark->live, &base);
    for (uint32_t slot = 0; code == 0 && slot < leaf->slots; slot++) {
        if (chunk_hash_is_zero(&leaf->ids[slot]))
            continue;
        chunk_set_add(&mark->live, &leaf->ids[slot]);
        if (each != NULL)
            code = each(arg, disk, (index * CHUNK_LEAF_SLOTS + slot) * chunk_bytes, &leaf->ids[slot]);
    }
    return code;
}

int repo_mark_backup(struct repo *repo, struct frame_fetcher *f, const struct manifest *m, struct repo_mark *mark,
                     repo_mark_cb each, void *arg, uint64_t *ret_bad, struct error *err)
{
    CLEANUP_FREE struct chunk_leaf *leaf = NEW(struct chunk_leaf);
    uint32_t at = 0;
    int code = 0;
    for (size_t disk = 0; code == 0 && disk < m->head.disks.count; disk++) {
        uint64_t leaves = chunk_tree_leaves(manifest_disk_at(m, disk)->size_bytes, repo->header.chunk_bytes);
        for (uint64_t i = 0; code == 0 && i < leaves; i++, at++) {
            code = leaf_walk(repo, f, m, disk, i, &m->leaves[at], mark, each, arg, leaf, err);
            if ((code == -EBADMSG || code == -ENOENT) && ret_bad != NULL) {
                ++*ret_bad;
                code = 0;
            }
        }
    }
    return code;
}

void repo_mark_finish(struct repo_mark *mark)
{
    chunk_set_finish(&mark->live);
    chunk_set_finish(&mark->lists);
}
