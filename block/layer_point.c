/* Snapshots of a disk in use: see layer_point.h. */
#include "block/layer_point.h"

#include <errno.h>
#include <stdio.h>

#include "block/layer_head.h"

static int may_begin(struct layer_disk *disk, const char *snapshot, bool drop, struct error *err)
{
    const bool there = layer_head_snapshot(&disk->head, snapshot) != NULL;
    int code = layer_name_check(snapshot, err);
    if (code < 0)
        return code;
    if (disk->chain->count == 0 || disk->chain->block.read_only)
        return error_set(err, -EROFS, ERROR_CONFLICT, "disk %s is not this VM's to write at this moment", disk->name);
    if (drop)
        return there ? 0 : error_set(err, -ENOENT, ERROR_NOT_FOUND, "disk %s has no snapshot %s", disk->name, snapshot);
    if (there)
        return error_set(err, -EEXIST, ERROR_EXISTS, "disk %s has a snapshot %s already", disk->name, snapshot);
    if (disk->chain->count == LAYER_CHAIN_MAX)
        return layer_disk_full(disk, err);
    if (disk->chain->behind != NULL)
        return error_set(err, -EBUSY, ERROR_CONFLICT, "the last snapshot of disk %s could not be flushed yet", disk->name);
    return 0;
}

int layer_point_begin(struct layer_disk *disk, const char *snapshot, bool drop, struct layer_point *ret,
                      struct error *err)
{
    int code = may_begin(disk, snapshot, drop, err);
    if (code < 0)
        return code;
    if (disk->chain->merge != NULL)
        layer_merge_cancel(disk->chain->merge);
    *ret = (struct layer_point){.disk = disk, .drop = drop, .old = layer_chain_top(disk->chain)->header};
    snprintf(ret->snapshot, sizeof ret->snapshot, "%s", snapshot);
    snprintf(ret->old_name, sizeof ret->old_name, "%s", layer_chain_top(disk->chain)->name);
    object_copy(&disk_head_desc, &ret->before, &disk->head);
    object_copy(&disk_head_desc, &ret->after, &disk->head);
    for (unsigned i = 0; i < disk->chain->count; i++)
        layer_head_add(&ret->needs, disk->chain->layers[i]->name);
    return 0;
}

int layer_point_prepare(struct layer_point *point, struct layer_pool *files, struct error *err)
{
    const struct layer_header header = {.flags = LAYER_OPEN,
                                        .parent_kind = LAYER_PARENT_LAYER,
                                        .parent = point->old.id,
                                        .size_bytes = point->old.size_bytes,
                                        .generation = point->old.generation + 1,
                                        .epoch = MAX(point->disk->epoch, point->old.epoch)};
    struct layer *top;
    int code = files->ops->lock(files, true, err);
    if (code < 0)
        return code;
    code = layer_create(files, &header, &top, err);
    if (code == 0) {
        point->next = top->header.id;
        object_set_text(&disk_head_desc, &point->after, "top", top->name);
        layer_head_add(&point->after, top->name);
        layer_close(top); /* empty, marked as open: nothing is written when it is opened again */
        point->prepared = true;
        code = layer_head_write(files, point->disk->name, &point->after, err);
    }
    files->ops->lock(files, false, NULL);
    return code;
}

int layer_point_open(struct layer_point *point, struct error *err)
{
    return layer_open_owned(point->disk->pool, &point->next, 0, &point->top, err);
}

void layer_point_switch(struct layer_point *point)
{
    layer_chain_switch(point->disk->chain, point->top);
    point->top = NULL;
    point->switched = true;
}

int layer_point_flush(struct layer_point *point, struct layer_flush *flush)
{
    struct layer_chain *chain = point->disk->chain;
    return layer_flush(chain->layers[chain->count - 2], flush);
}

/* The snapshot's name goes; what nobody needs is left out of the head, and its files are for layer_disk_collect. */
static void name_drop(struct layer_point *point, struct layer_pool *files)
{
    struct disk_snapshot *items = point->after.snapshots.items;
    size_t i = (size_t)(layer_head_snapshot(&point->after, point->snapshot) - items);
    object_clear(&disk_snapshot_desc, &items[i]);
    for (size_t k = i; k + 1 < point->after.snapshots.count; k++)
        items[k] = items[k + 1];
    point->after.snapshots.count--;
    layer_head_prune(files, &point->after, &point->needs);
}

int layer_point_name(struct layer_point *point, struct layer_pool *files, struct error *err)
{
    int code = 0;
    if (point->drop) {
        name_drop(point, files);
    } else {
        struct disk_snapshot *s = object_list_add(&disk_head_desc, &point->after, "snapshots");
        object_set_text(&disk_snapshot_desc, s, "name", point->snapshot);
        object_set_text(&disk_snapshot_desc, s, "layer", point->old_name);
        OBJECT_SET(disk_snapshot, s, size_bytes, point->old.size_bytes);
        code = layer_seal(files, &point->old, err);
    }
    if (code == 0)
        code = layer_head_write(files, point->disk->name, &point->after, err);
    point->named = code == 0;
    return code;
}

void layer_point_undo(struct layer_point *point, struct layer_pool *files)
{
    if (!point->prepared || point->switched)
        return;
    /* Where this fails the empty layer stays named, and all shows through it. */
    if (layer_head_write(files, point->disk->name, &point->before, NULL) == 0)
        layer_remove_files(files, &point->next, NULL);
}

/* The head in memory is the one on disk: with the new top from the switch on, with the name once that is there. */
static void head_keep(struct layer_point *point)
{
    struct layer_disk *disk = point->disk;
    if (!point->named && point->switched && !point->drop) {
        struct disk_snapshot *s = layer_head_snapshot(&point->after, point->snapshot);
        if (s != NULL) { /* it did not come to that; whether it is on disk all the same is not known */
            object_clear(&disk_snapshot_desc, s);
            point->after.snapshots.count--; /* it was the last */
        }
    }
    if (!point->named && !point->switched)
        return;
    object_clear(&disk_head_desc, &disk->head);
    disk->head = point->after;
    point->after = (struct disk_head){.top = NULL};
}

void layer_point_end(struct layer_point *point)
{
    if (point->disk == NULL)
        return;
    struct layer_chain *chain = point->disk->chain;
    if (point->switched && point->named) {
        struct layer *old = chain->layers[chain->count - 2];
        old->header = point->old;
        layer_share(old); /* flushed and sealed: from here on only read */
    }
    head_keep(point);
    layer_close(point->top);
    object_clear(&disk_head_desc, &point->before);
    object_clear(&disk_head_desc, &point->after);
    object_clear(&disk_head_desc, &point->needs);
    *point = (struct layer_point){.disk = NULL};
}
