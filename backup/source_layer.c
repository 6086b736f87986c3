/* A backup's source that is a disk of layers: see source_layer.h. */
#include "backup/source_layer.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "block/layer_disk.h"
#include "block/layer_pool_dir.h"

struct source_layer {
    struct backup_source source;
    struct layer_pool *pool;
    struct layer_disk *disk;
    int since; /* layer_chain_changed's */
};

static struct source_layer *of_source(struct backup_source *source)
{
    return CONTAINER_OF(source, struct source_layer, source);
}

static int layer_extent(struct backup_source *source, uint64_t offset, enum backup_extent *ret_kind,
                        uint64_t *ret_end, struct error *err UNUSED)
{
    struct source_layer *s = of_source(source);
    uint64_t first, count, size = source->size_bytes, from = offset / LAYER_CLUSTER_BYTES;
    enum layer_state state;
    bool more = layer_chain_changed(s->disk->chain, s->since, from, &first, &count, &state);
    if (!more || first > from) {
        *ret_kind = s->since < 0 ? BACKUP_ZERO : BACKUP_SAME;
        *ret_end = more ? MIN(first * LAYER_CLUSTER_BYTES, size) : size;
        return 0;
    }
    *ret_kind = state == LAYER_ZERO ? BACKUP_ZERO : BACKUP_DATA;
    *ret_end = MIN((first + count) * LAYER_CLUSTER_BYTES, size);
    return 0;
}

static int layer_read(struct backup_source *source, uint64_t offset, void *buffer, size_t size, struct error *err)
{
    struct source_layer *s = of_source(source);
    int code = block_now(&s->disk->chain->block, BLOCK_READ, offset, buffer, size);
    return code < 0 ? error_errno(err, code, "cannot read disk %s at %llu", s->disk->name, (unsigned long long)offset)
                    : 0;
}

static void layer_source_close(struct backup_source *source)
{
    struct source_layer *s = of_source(source);
    layer_disk_close(s->disk);
    layer_pool_dir_destroy(s->pool);
    free(s);
}

/* Is it the layer of a snapshot that is still there? Others keep their id when a merge puts more into them. */
static bool named(const struct layer_disk *disk, const char *layer)
{
    const struct disk_snapshot *snapshots = disk->head.snapshots.items;
    for (size_t i = 0; i < disk->head.snapshots.count; i++)
        if (strcmp(snapshots[i].layer, layer) == 0)
            return true;
    return false;
}

int source_layer_open(const char *location, const char *parent_mark, struct backup_source **ret_source,
                      struct error *err)
{
    static const struct backup_source_ops ops = {
        .extent = layer_extent, .read = layer_read, .close = layer_source_close};
    char path[PATH_MAX];
    if (strlen(location) >= sizeof path || location[0] != '/')
        return error_set(err, -EINVAL, ERROR_INVALID, "a disk of layers is named pool:/DIRECTORY/DISK[@SNAPSHOT]");
    strcpy(path, location);
    char *name = strrchr(path, '/'), *snapshot = strchr(name, '@');
    *name++ = '\0';
    if (snapshot != NULL)
        *snapshot++ = '\0';
    struct source_layer *s = NEW(struct source_layer);
    s->source.ops = &ops;
    s->since = -1;
    int code = layer_pool_dir_create(path[0] != '\0' ? path : "/", NULL, NULL, &s->pool, err);
    if (code == 0)
        code = snapshot != NULL ? layer_disk_open_snapshot(s->pool, name, snapshot, &s->disk, err)
                                : layer_disk_open(s->pool, name, true, 0, &s->disk, err);
    if (code < 0) {
        layer_pool_dir_destroy(s->pool);
        free(s);
        return code;
    }
    s->source.size_bytes = s->disk->chain->block.size_bytes;
    if (snapshot != NULL)
        layer_id_text(&layer_chain_top(s->disk->chain)->header.id, s->source.mark);
    if (parent_mark != NULL && named(s->disk, parent_mark) && layer_disk_since(s->disk, parent_mark, &s->since) == 0)
        s->source.knows_changes = true;
    else
        s->since = -1;
    *ret_source = &s->source;
    return 0;
}
