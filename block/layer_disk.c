/* Disks with names: see layer_disk.h. */
#include "block/layer_disk.h"

#include "block/layer_head.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { HEAD_FORMAT = 1, NAME_BYTES_MAX = 63 };
#define HEAD_ENDING ".disk"

/* ---- heads ---- */

int layer_name_check(const char *name, struct error *err)
{
    const char *rule;
    if (strlen(name) > NAME_BYTES_MAX || !text_format_ok(FORMAT_name, name, &rule))
        return error_set(err, -EINVAL, ERROR_INVALID,
                         "a disk's or snapshot's name has 1 to %d lower-case letters, digits, '-' and '.'; \"%s\" is none",
                         NAME_BYTES_MAX, name);
    return 0;
}

static int head_read_file(struct layer_pool *pool, const char *file, struct disk_head *ret_head, struct error *err)
{
    CLEANUP_FREE char *text = NULL;
    struct layer_id id;
    size_t size;
    int code = pool->ops->read(pool, file, &text, &size, err);
    if (code == 0)
        code = object_decode(&disk_head_desc, text, size, OBJECT_STORED, ret_head, err);
    if (code == 0 && layer_id_parse(ret_head->top, &id) < 0) {
        object_clear(&disk_head_desc, ret_head);
        code = error_set(err, -EBADMSG, ERROR_CHECKSUM, "its top is no layer");
    }
    if (code < 0)
        error_prefix(err, "%s: ", file);
    return code;
}

static int head_read(struct layer_pool *pool, const char *name, struct disk_head *ret_head, struct error *err)
{
    char file[NAME_BYTES_MAX + sizeof HEAD_ENDING];
    *ret_head = (struct disk_head){.top = NULL};
    int code = layer_name_check(name, err);
    if (code < 0)
        return code;
    snprintf(file, sizeof file, "%s" HEAD_ENDING, name);
    return head_read_file(pool, file, ret_head, err);
}

int layer_head_write(struct layer_pool *pool, const char *name, const struct disk_head *head, struct error *err)
{
    char file[NAME_BYTES_MAX + sizeof HEAD_ENDING];
    struct bytes_writer out = {.data = NULL};
    snprintf(file, sizeof file, "%s" HEAD_ENDING, name);
    int code = object_validate(&disk_head_desc, head, OBJECT_STORED, err);
    if (code == 0) {
        object_encode(&disk_head_desc, head, &out);
        code = pool->ops->replace(pool, file, out.data, out.size, err);
    }
    bytes_writer_finish(&out);
    return code;
}

bool layer_head_lists(const struct disk_head *head, const char *layer)
{
    for (size_t i = 0; i < head->layers.count; i++)
        if (strcmp(head->layers.items[i], layer) == 0)
            return true;
    return false;
}

void layer_head_add(struct disk_head *head, const char *layer)
{
    if (layer_head_lists(head, layer))
        return;
    head->layers.items = xrealloc(head->layers.items, (head->layers.count + 1) * sizeof *head->layers.items);
    head->layers.items[head->layers.count++] = xstrdup(layer);
    object_mark(&disk_head_desc, head, "layers");
}

static void head_remove_layer(struct disk_head *head, const char *layer)
{
    for (size_t i = 0; i < head->layers.count; i++)
        if (strcmp(head->layers.items[i], layer) == 0) {
            free(head->layers.items[i]);
            memmove(&head->layers.items[i], &head->layers.items[i + 1],
                    (--head->layers.count - i) * sizeof *head->layers.items);
            return;
        }
}

struct disk_snapshot *layer_head_snapshot(const struct disk_head *head, const char *name)
{
    struct disk_snapshot *snapshots = head->snapshots.items;
    for (size_t i = 0; i < head->snapshots.count; i++)
        if (strcmp(snapshots[i].name, name) == 0)
            return &snapshots[i];
    return NULL;
}

static struct disk_snapshot *head_need_snapshot(const struct disk_head *head, const char *disk, const char *name,
                                                struct error *err)
{
    struct disk_snapshot *s = layer_head_snapshot(head, name);
    if (s == NULL)
        error_set(err, -ENOENT, ERROR_NOT_FOUND, "disk %s has no snapshot %s", disk, name);
    return s;
}

static void head_set_top(struct disk_head *head, const struct layer *top)
{
    object_set_text(&disk_head_desc, head, "top", top->name);
    layer_head_add(head, top->name);
}

/* ---- opening ---- */

/* The chain that ends in @top, lowest first. */
static int layers_open(struct layer_pool *pool, const char *top, bool read_only, uint64_t epoch, struct layer **layers,
                       unsigned *ret_count, struct error *err)
{
    struct layer *found[LAYER_CHAIN_MAX], *l = NULL;
    struct layer_id id;
    unsigned count = 0;
    int code = layer_id_parse(top, &id) < 0 ? error_set(err, -EBADMSG, ERROR_CHECKSUM, "%s is no layer", top) : 0;
    if (code == 0)
        code = read_only ? layer_open(pool, &id, true, &l, err) : layer_open_owned(pool, &id, epoch, &l, err);
    while (code == 0) {
        found[count++] = l;
        const struct layer_header *h = &l->header;
        if (l->map_file == NULL || h->parent_kind == LAYER_PARENT_NONE)
            break;
        if (count == LAYER_CHAIN_MAX)
            code = error_set(err, -E2BIG, ERROR_CONFLICT, "the disk has more than %d layers", LAYER_CHAIN_MAX);
        else if (h->parent_kind == LAYER_PARENT_RAW)
            code = layer_open_raw(pool, h->parent_name, &l, err);
        else if (h->parent_kind == LAYER_PARENT_SOURCE)
            code = layer_open_source(pool, h, &l, err);
        else
            code = layer_open(pool, &h->parent, true, &l, err);
    }
    for (unsigned i = 0; i < count; i++)
        if (code < 0)
            layer_close(found[i]);
        else
            layers[i] = found[count - 1 - i];
    *ret_count = count;
    return code;
}

static int disk_open(struct layer_pool *pool, struct layer_disk *disk, const char *top, bool read_only,
                     struct error *err)
{
    struct layer *layers[LAYER_CHAIN_MAX];
    unsigned count;
    int code = layers_open(pool, top, read_only, disk->epoch, layers, &count, err);
    if (code < 0)
        return code;
    code = layer_chain_create(layers, count, read_only, &disk->chain, err);
    for (unsigned i = 0; i < count && code < 0; i++)
        layer_close(layers[i]);
    return code;
}

static int disk_open_as(struct layer_pool *pool, const char *name, const char *snapshot, bool read_only,
                        uint64_t epoch, struct layer_disk **ret_disk, struct error *err)
{
    struct layer_disk *disk = NEW(struct layer_disk);
    disk->pool = pool;
    disk->epoch = epoch;
    int code = head_read(pool, name, &disk->head, err);
    if (code == 0) {
        const char *top = disk->head.top;
        struct disk_snapshot *s = snapshot ? head_need_snapshot(&disk->head, name, snapshot, err) : NULL;
        if (s != NULL)
            top = s->layer;
        code = snapshot != NULL && s == NULL ? -ENOENT : disk_open(pool, disk, top, read_only, err);
    }
    if (code < 0) {
        error_prefix(err, "disk %s: ", name);
        object_clear(&disk_head_desc, &disk->head);
        free(disk);
        return code;
    }
    snprintf(disk->name, sizeof disk->name, "%s", name);
    *ret_disk = disk;
    return 0;
}

int layer_disk_open(struct layer_pool *pool, const char *name, bool read_only, uint64_t epoch,
                    struct layer_disk **ret_disk, struct error *err)
{
    return disk_open_as(pool, name, NULL, read_only, epoch, ret_disk, err);
}

int layer_disk_open_snapshot(struct layer_pool *pool, const char *name, const char *snapshot,
                             struct layer_disk **ret_disk, struct error *err)
{
    return disk_open_as(pool, name, snapshot, true, 0, ret_disk, err);
}

static int disk_take(struct layer_disk *disk, struct error *err)
{
    struct layer *layers[LAYER_CHAIN_MAX];
    struct disk_head head;
    unsigned count;
    int code = head_read(disk->pool, disk->name, &head, err);
    if (code < 0)
        return code;
    code = layers_open(disk->pool, head.top, disk->chain->block.read_only, disk->epoch, layers, &count, err);
    if (code == 0) {
        code = layer_chain_fill(disk->chain, layers, count, err);
        for (unsigned i = 0; i < count && code < 0; i++)
            layer_close(layers[i]);
    }
    if (code < 0) {
        object_clear(&disk_head_desc, &head);
        return code;
    }
    object_clear(&disk_head_desc, &disk->head);
    disk->head = head;
    return 0;
}

int layer_disk_own(struct layer_disk *disk, bool own, struct error *err)
{
    bool owned = disk->chain->count > 0;
    if (own == owned)
        return 0;
    if (own)
        return disk_take(disk, err);
    int code = layer_chain_empty(disk->chain);
    return code < 0 ? error_errno(err, code, "cannot write disk %s", disk->name) : 0;
}

void layer_disk_release(struct layer_disk *disk)
{
    object_clear(&disk_head_desc, &disk->head);
    free(disk);
}

void layer_disk_close(struct layer_disk *disk)
{
    if (disk == NULL)
        return;
    block_close(&disk->chain->block);
    layer_disk_release(disk);
}

/* ---- making ---- */

/* A new top above @parent (NULL: above raw @base, or nothing), under the pool's lock; its head is the caller's.
 * @flags: LAYER_OPEN for writing to it now. */
static int top_create(struct layer_pool *pool, uint32_t flags, const struct layer_header *parent, const char *base,
                      uint64_t size_bytes, uint64_t epoch, struct layer **ret_top, struct error *err)
{
    struct layer_header header = {.flags = flags, .size_bytes = size_bytes, .generation = 1, .epoch = epoch};
    if (parent != NULL) {
        header.parent_kind = LAYER_PARENT_LAYER;
        header.parent = parent->id;
        header.generation = parent->generation + 1;
        header.epoch = MAX(epoch, parent->epoch);
    } else if (base != NULL) {
        header.parent_kind = LAYER_PARENT_RAW;
        snprintf(header.parent_name, sizeof header.parent_name, "%s", base);
    }
    return layer_create(pool, &header, ret_top, err);
}

/* -EEXIST where there is a head of that name, unless it is to be replaced. */
static int name_is_free(struct layer_pool *pool, const char *name, bool replaces, struct error *err)
{
    if (replaces)
        return layer_name_check(name, err);
    struct disk_head head;
    struct error ignored;
    int code = head_read(pool, name, &head, &ignored);
    if (code == -ENOENT)
        return 0;
    if (code == 0)
        object_clear(&disk_head_desc, &head);
    return error_set(err, code == -EINVAL ? code : -EEXIST, code == -EINVAL ? ERROR_INVALID : ERROR_EXISTS,
                     "there is a disk %s already, or that is no name", name);
}

/* Size of a new disk above a raw image: @size_bytes, or the image's where that is 0. */
static int base_size(struct layer_pool *pool, const char *base, uint64_t size_bytes, uint64_t *ret_size,
                     struct error *err)
{
    struct block *b;
    *ret_size = size_bytes;
    if (base == NULL)
        return size_bytes > 0 ? 0 : error_set(err, -EINVAL, ERROR_INVALID, "a disk needs a size");
    if (strlen(base) >= LAYER_NAME_BYTES || strchr(base, '/') != NULL || base[0] == '.' || base[0] == '\0')
        return error_set(err, -EINVAL, ERROR_INVALID, "the image of a disk is a file of its pool, not %s", base);
    int code = pool->ops->open(pool, base, true, &b, err);
    if (code < 0)
        return code;
    if (size_bytes != 0 && size_bytes < b->size_bytes)
        code = error_set(err, -EFBIG, ERROR_INVALID,
                         "the disk has %llu bytes and its image %llu; make the disk at least as large",
                         (unsigned long long)size_bytes, (unsigned long long)b->size_bytes);
    *ret_size = size_bytes != 0 ? size_bytes : b->size_bytes;
    block_close(b);
    return code;
}

/* A head for @top alone or with those below it (@layers, may be NULL); @top is closed. */
static int disk_found(struct layer_pool *pool, const char *name, struct layer *top, const struct disk_head *below,
                      const char *base, struct error *err)
{
    struct disk_head head = {.top = NULL};
    OBJECT_SET(disk_head, &head, format, HEAD_FORMAT);
    for (size_t i = 0; below != NULL && i < below->layers.count; i++)
        layer_head_add(&head, below->layers.items[i]);
    head_set_top(&head, top);
    if (base != NULL)
        object_set_text(&disk_head_desc, &head, "base", base);
    int code = layer_head_write(pool, name, &head, err);
    layer_close(top);
    object_clear(&disk_head_desc, &head);
    return code;
}

static int disk_create(struct layer_pool *pool, const char *name, bool replaces, uint64_t size_bytes, const char *base, struct error *err)
{
    struct layer *top;
    uint64_t size;
    int code = base_size(pool, base, size_bytes, &size, err);
    if (code == 0 && (size % BLOCK_SECTOR_BYTES != 0 || size > LAYER_SIZE_MAX))
        code = error_set(err, -EINVAL, ERROR_INVALID, "the size of a disk is a multiple of %d and at most 64 TiB",
                         BLOCK_SECTOR_BYTES);
    if (code < 0 || (code = pool->ops->lock(pool, true, err)) < 0)
        return code;
    code = name_is_free(pool, name, replaces, err);
    if (code == 0)
        code = top_create(pool, 0, NULL, base, size, 0, &top, err);
    if (code == 0)
        code = disk_found(pool, name, top, NULL, base, err);
    pool->ops->lock(pool, false, NULL);
    return code;
}

int layer_disk_create(struct layer_pool *pool, const char *name, uint64_t size_bytes, const char *base,
                      struct error *err)
{
    return disk_create(pool, name, false, size_bytes, base, err);
}

int layer_disk_replace(struct layer_pool *pool, const char *name, uint64_t size_bytes, const char *base, struct error *err)
{
    return disk_create(pool, name, true, size_bytes, base, err);
}

static int create_from(struct layer_pool *pool, const char *name, bool replaces, const char *source_name, uint64_t source_bytes,
                       struct error *err)
{
    struct layer_header header = {.parent_kind = LAYER_PARENT_SOURCE, .size_bytes = source_bytes, .source_bytes = source_bytes,
                                  .generation = 1};
    struct layer *top;
    if (source_bytes == 0 || source_bytes % BLOCK_SECTOR_BYTES != 0 || source_bytes > LAYER_SIZE_MAX)
        return error_set(err, -EINVAL, ERROR_INVALID, "the size of a disk is a multiple of %d and at most 64 TiB",
                         BLOCK_SECTOR_BYTES);
    if (strlen(source_name) >= LAYER_NAME_BYTES || strchr(source_name, '/') != NULL || source_name[0] == '.' || source_name[0] == '\0')
        return error_set(err, -EINVAL, ERROR_INVALID, "\"%s\" is no name of what fills a disk", source_name);
    snprintf(header.parent_name, sizeof header.parent_name, "%s", source_name);
    int code = pool->ops->lock(pool, true, err);
    if (code < 0)
        return code;
    code = name_is_free(pool, name, replaces, err);
    if (code == 0)
        code = layer_create(pool, &header, &top, err);
    if (code == 0)
        code = disk_found(pool, name, top, NULL, NULL, err);
    pool->ops->lock(pool, false, NULL);
    return code;
}

int layer_disk_create_from(struct layer_pool *pool, const char *name, const char *source_name, uint64_t source_bytes,
                           struct error *err)
{
    return create_from(pool, name, false, source_name, source_bytes, err);
}

int layer_disk_replace_from(struct layer_pool *pool, const char *name, const char *source_name, uint64_t source_bytes, struct error *err)
{
    return create_from(pool, name, true, source_name, source_bytes, err);
}

/* The header of layer @id, and what a disk above it needs: its ancestors into @needs. */
static int ancestry(struct layer_pool *pool, const char *id, struct layer_header *ret_header, struct disk_head *needs,
                    struct error *err)
{
    struct layer *layers[LAYER_CHAIN_MAX];
    unsigned count;
    int code = layers_open(pool, id, true, 0, layers, &count, err);
    if (code < 0)
        return code;
    *ret_header = layers[count - 1]->header;
    for (unsigned i = 0; i < count; i++) {
        if (layers[i]->map_file != NULL)
            layer_head_add(needs, layers[i]->name);
        else
            object_set_text(&disk_head_desc, needs, "base", layers[i]->name);
        layer_close(layers[i]);
    }
    return 0;
}

static int clone_locked(struct layer_pool *pool, const char *layer, const char *name, struct error *err)
{
    struct disk_head needs = {.top = NULL};
    struct layer_header header;
    struct layer *top;
    int code = name_is_free(pool, name, false, err);
    if (code == 0)
        code = ancestry(pool, layer, &header, &needs, err);
    header.epoch = 0; /* of the disk that it is a clone of; this one's owner counts anew */
    if (code == 0)
        code = top_create(pool, 0, &header, NULL, header.size_bytes, 0, &top, err);
    if (code == 0)
        code = disk_found(pool, name, top, &needs, needs.base, err);
    object_clear(&disk_head_desc, &needs);
    return code;
}

int layer_disk_clone(struct layer_pool *pool, const char *from, const char *snapshot, const char *name,
                     struct error *err)
{
    struct disk_head head;
    int code = pool->ops->lock(pool, true, err);
    if (code < 0)
        return code;
    code = head_read(pool, from, &head, err);
    if (code == 0) {
        const struct disk_snapshot *s = head_need_snapshot(&head, from, snapshot, err);
        code = s == NULL ? -ENOENT : clone_locked(pool, s->layer, name, err);
        object_clear(&disk_head_desc, &head);
    }
    pool->ops->lock(pool, false, NULL);
    return code;
}

/* Leave out of @head what neither @needs nor a snapshot stands on. Where that cannot be found out all stays. */
void layer_head_prune(struct layer_pool *pool, struct disk_head *head, struct disk_head *needs)
{
    const struct disk_snapshot *s = head->snapshots.items;
    struct layer_header header;
    int code = 0;
    for (size_t i = 0; i < head->snapshots.count && code == 0; i++)
        if (!layer_head_lists(needs, s[i].layer))
            code = ancestry(pool, s[i].layer, &header, needs, NULL);
    for (size_t i = head->layers.count; i-- > 0 && code == 0;)
        if (!layer_head_lists(needs, head->layers.items[i]))
            head_remove_layer(head, head->layers.items[i]);
}

int layer_disk_revert(struct layer_pool *pool, const char *name, const char *snapshot, struct error *err)
{
    struct layer_disk *disk;
    struct layer *top;
    struct layer_header header;
    struct disk_head needs = {.top = NULL};
    int code = layer_disk_open(pool, name, false, 0, &disk, err); /* alone: its lock is ours */
    if (code < 0)
        return code;
    const struct disk_snapshot *s = head_need_snapshot(&disk->head, name, snapshot, err);
    code = s == NULL ? -ENOENT : pool->ops->lock(pool, true, err);
    if (code == 0) {
        code = ancestry(pool, s->layer, &header, &needs, err);
        if (code == 0)
            code = top_create(pool, 0, &header, NULL, header.size_bytes, layer_chain_top(disk->chain)->header.epoch,
                              &top, err);
        if (code == 0) {
            head_set_top(&disk->head, top);
            layer_head_add(&needs, top->name);
            layer_head_prune(pool, &disk->head, &needs);
            code = layer_head_write(pool, name, &disk->head, err);
            layer_close(top);
        }
        pool->ops->lock(pool, false, NULL);
    }
    object_clear(&disk_head_desc, &needs);
    layer_disk_close(disk);
    return code;
}

int layer_disk_delete(struct layer_pool *pool, const char *name, struct error *err)
{
    char file[NAME_BYTES_MAX + sizeof HEAD_ENDING];
    int code = layer_name_check(name, err);
    if (code < 0)
        return code;
    snprintf(file, sizeof file, "%s" HEAD_ENDING, name);
    code = pool->ops->remove(pool, file, err);
    return code < 0 ? code : pool->ops->sync(pool, err);
}

/* ---- snapshots ---- */

static int top_flush(struct layer_disk *disk, struct error *err)
{
    int code = block_now(&disk->chain->block, BLOCK_FLUSH, 0, NULL, 0);
    return code < 0 ? error_errno(err, code, "cannot flush disk %s", disk->name) : 0;
}

/* A new top; the old one keeps @snapshot's name (NULL: none). */
static int disk_push(struct layer_disk *disk, const char *snapshot, struct error *err)
{
    struct layer *old = layer_chain_top(disk->chain), *top;
    struct disk_head head = {.top = NULL};
    int code = top_flush(disk, err);
    if (code == 0)
        code = top_create(disk->pool, LAYER_OPEN, &old->header, NULL, old->header.size_bytes, disk->epoch, &top, err);
    if (code < 0)
        return code;
    object_copy(&disk_head_desc, &head, &disk->head);
    head_set_top(&head, top);
    if (snapshot != NULL) {
        struct disk_snapshot *s = object_list_add(&disk_head_desc, &head, "snapshots");
        object_set_text(&disk_snapshot_desc, s, "name", snapshot);
        object_set_text(&disk_snapshot_desc, s, "layer", old->name);
        OBJECT_SET(disk_snapshot, s, size_bytes, old->header.size_bytes);
    }
    code = layer_head_write(disk->pool, disk->name, &head, err);
    if (code == 0)
        code = layer_chain_push(disk->chain, top, err);
    if (code < 0) {
        /* The new head may be there all the same: so its top stays, and what we go on to write shows through it. */
        layer_close(top);
        layer_head_write(disk->pool, disk->name, &disk->head, NULL);
        object_clear(&disk_head_desc, &head);
        return code;
    }
    object_clear(&disk_head_desc, &disk->head);
    disk->head = head;
    old->header.flags |= LAYER_SEALED;
    if (disk->chain->merge == NULL) { /* which may be writing to it */
        layer_settle(old);            /* where that fails it stays marked as open, which does no harm */
        layer_share(old);
    }
    return 0;
}

int layer_disk_full(const struct layer_disk *disk, struct error *err)
{
    return error_set(err, -E2BIG, ERROR_CONFLICT,
                     "disk %s has %d layers, the most that one may have; delete snapshots first. Layers of snapshots that nobody knows any more, as "
                     "a VM leaves them in its volumes that is deleted by force, stay behind when the volume is moved to another pool",
                     disk->name, LAYER_CHAIN_MAX);
}

int layer_disk_snapshot(struct layer_disk *disk, const char *snapshot, struct error *err)
{
    int code = layer_name_check(snapshot, err);
    if (code == 0 && layer_head_snapshot(&disk->head, snapshot) != NULL)
        code = error_set(err, -EEXIST, ERROR_EXISTS, "disk %s has a snapshot %s already", disk->name, snapshot);
    if (code == 0 && disk->chain->count == LAYER_CHAIN_MAX)
        code = layer_disk_full(disk, err);
    if (code < 0)
        return code;
    block_drain(&disk->chain->block);
    code = disk->pool->ops->lock(disk->pool, true, err);
    if (code == 0) {
        code = disk_push(disk, snapshot, err);
        disk->pool->ops->lock(disk->pool, false, NULL);
    }
    return code;
}

int layer_disk_drop(struct layer_disk *disk, const char *snapshot, struct error *err)
{
    struct disk_snapshot *s = head_need_snapshot(&disk->head, disk->name, snapshot, err);
    struct disk_head head = {.top = NULL};
    if (s == NULL)
        return -ENOENT;
    size_t index = (size_t)(s - (struct disk_snapshot *)disk->head.snapshots.items);
    object_copy(&disk_head_desc, &head, &disk->head);
    struct disk_snapshot *items = head.snapshots.items;
    object_clear(&disk_snapshot_desc, &items[index]);
    memmove(&items[index], &items[index + 1], (--head.snapshots.count - index) * sizeof *items);
    struct disk_head needs = {.top = NULL};
    for (unsigned i = 0; i < disk->chain->count; i++)
        layer_head_add(&needs, disk->chain->layers[i]->name);
    layer_head_prune(disk->pool, &head, &needs);
    object_clear(&disk_head_desc, &needs);
    int code = layer_head_write(disk->pool, disk->name, &head, err);
    if (code < 0) {
        object_clear(&disk_head_desc, &head);
        return code;
    }
    object_clear(&disk_head_desc, &disk->head);
    disk->head = head;
    return 0;
}

int layer_disk_since(const struct layer_disk *disk, const char *layer, int *ret_since)
{
    struct layer_id id;
    int index = layer_id_parse(layer, &id) < 0 ? -1 : layer_chain_find(disk->chain, &id);
    if (index < 0)
        return -ESTALE;
    *ret_since = index;
    return 0;
}

bool layer_disk_has(const struct layer_disk *disk, const char *snapshot)
{
    return layer_head_snapshot(&disk->head, snapshot) != NULL;
}

bool layer_disk_is_at(const struct layer_disk *disk, const char *snapshot)
{
    const struct disk_snapshot *s = layer_head_snapshot(&disk->head, snapshot);
    uint64_t first, count;
    enum layer_state state;
    int since;
    return s != NULL && layer_disk_since(disk, s->layer, &since) == 0 && disk->chain->block.size_bytes == s->size_bytes &&
           !layer_chain_changed(disk->chain, since, 0, &first, &count, &state);
}

/* ---- tidying ---- */

struct needs {
    struct layer_disk *disk;
    struct error *err;
    bool shared[LAYER_CHAIN_MAX]; /* another disk lists it */
};

static bool is_head(const char *file)
{
    size_t length = strlen(file), ending = strlen(HEAD_ENDING);
    return length > ending && strcmp(file + length - ending, HEAD_ENDING) == 0;
}

static int needs_of_head(void *arg, const char *file)
{
    struct needs *n = arg;
    const struct layer_chain *c = n->disk->chain;
    struct disk_head head = {.top = NULL};
    size_t length = strlen(n->disk->name);
    if (!is_head(file) || (strncmp(file, n->disk->name, length) == 0 && strcmp(file + length, HEAD_ENDING) == 0))
        return 0;
    int code = head_read_file(n->disk->pool, file, &head, n->err);
    for (unsigned i = 0; i < c->count && code == 0; i++)
        n->shared[i] = n->shared[i] || layer_head_lists(&head, c->layers[i]->name);
    object_clear(&disk_head_desc, &head);
    return code;
}

static bool is_named(const struct layer_disk *disk, const char *layer)
{
    const struct disk_snapshot *s = disk->head.snapshots.items;
    for (size_t i = 0; i < disk->head.snapshots.count; i++)
        if (strcmp(s[i].layer, layer) == 0)
            return true;
    return false;
}

/* Snapshots that a revert left beside the chain stand on a layer of it: that has a second child. */
static int needs_of_branches(struct needs *n)
{
    const struct layer_disk *disk = n->disk;
    const struct disk_snapshot *s = disk->head.snapshots.items;
    int code = 0;
    for (size_t i = 0; i < disk->head.snapshots.count && code == 0; i++) {
        struct layer_header h;
        struct layer_id id;
        int at;
        if (layer_id_parse(s[i].layer, &id) < 0 || layer_chain_find(disk->chain, &id) >= 0)
            continue;
        unsigned steps = 0;
        do { /* downwards until it meets the chain */
            struct layer *l;
            if (++steps > LAYER_CHAIN_MAX)
                return error_set(n->err, -EBADMSG, ERROR_CHECKSUM, "the layers of snapshot %s do not end", s[i].name);
            code = layer_open(disk->pool, &id, true, &l, n->err);
            if (code < 0)
                break;
            h = l->header;
            layer_close(l);
            id = h.parent;
            at = h.parent_kind == LAYER_PARENT_LAYER ? layer_chain_find(disk->chain, &id) : 0;
        } while (h.parent_kind == LAYER_PARENT_LAYER && at < 0);
        if (code == 0 && h.parent_kind == LAYER_PARENT_LAYER)
            n->shared[at] = true;
    }
    return code;
}

/* A layer that nobody names and only the chain needs. */
static bool is_free(const struct needs *n, unsigned i)
{
    const struct layer_chain *c = n->disk->chain;
    return i < c->count - 1 && c->layers[i]->map_file != NULL && !n->shared[i] && !is_named(n->disk, c->layers[i]->name);
}

/* The next merge: layer @ret_from up or down so that a free one goes. A large free layer right below the top stays:
 * it costs nothing but a first write's copy, and copying all of it into a top that is written costs more. */
static bool merge_choose(const struct needs *n, unsigned *ret_from, bool *ret_up)
{
    const struct layer_chain *c = n->disk->chain;
    for (unsigned i = 0; i + 1 < c->count; i++) {
        if (!is_free(n, i))
            continue;
        uint64_t up = layer_merge_cost(c, i, true), down = layer_merge_cost(c, i + 1, false);
        bool below_top = i + 2 == c->count, may_down = !below_top && !n->shared[i + 1];
        if (below_top && up > down)
            continue;
        *ret_up = !may_down || up <= down;
        *ret_from = *ret_up ? i : i + 1;
        return true;
    }
    return false;
}

struct named {
    struct layer_pool *pool;
    const char *layer;
    bool found;
};

static int named_in_head(void *arg, const char *file)
{
    struct named *n = arg;
    struct disk_head head = {.top = NULL};
    int code = is_head(file) ? head_read_file(n->pool, file, &head, NULL) : 0;
    n->found = n->found || (code == 0 && layer_head_lists(&head, n->layer));
    object_clear(&disk_head_desc, &head);
    return code;
}

static void tidied(void *arg, int result, const struct layer_id *gone)
{
    struct layer_disk *disk = arg;
    char gone_text[LAYER_ID_TEXT_BYTES], heir_text[LAYER_ID_TEXT_BYTES];
    struct disk_snapshot *s = disk->head.snapshots.items;
    if (result == 0) {
        layer_id_text(gone, gone_text);
        layer_id_text(&disk->tidy.heir, heir_text);
        for (size_t i = 0; i < disk->head.snapshots.count; i++)
            if (strcmp(s[i].layer, gone_text) == 0)
                object_set_text(&disk_snapshot_desc, &s[i], "layer", heir_text);
        head_remove_layer(&disk->head, gone_text);
        /* A head that still names it is right, too: its files go only when none does. A clone that was made of a snapshot
         * meanwhile stands on it; under the lock none is being made. */
        struct named named = {.pool = disk->pool, .layer = gone_text};
        if (disk->pool->ops->lock(disk->pool, true, NULL) == 0) {
            if (layer_head_write(disk->pool, disk->name, &disk->head, NULL) == 0 &&
                disk->pool->ops->list(disk->pool, named_in_head, &named, NULL) == 0 && !named.found)
                layer_remove_files(disk->pool, gone, NULL);
            disk->pool->ops->lock(disk->pool, false, NULL);
        }
    }
    disk->tidy.done(disk->tidy.arg, result);
}

int layer_disk_tidy(struct layer_disk *disk, void (*done)(void *arg, int result), void *arg, struct error *err)
{
    struct needs n = {.disk = disk, .err = err};
    unsigned from;
    bool up;
    int code = disk->pool->ops->list(disk->pool, needs_of_head, &n, err);
    if (code == 0)
        code = needs_of_branches(&n);
    if (code < 0 || !merge_choose(&n, &from, &up))
        return code;
    disk->tidy.done = done;
    disk->tidy.arg = arg;
    disk->tidy.heir = disk->chain->layers[up ? from + 1 : from - 1]->header.id;
    code = layer_merge_start(disk->chain, disk->pool, from, up, tidied, disk, err);
    return code < 0 ? code : 1;
}

struct tidy_now {
    bool ended;
    int result;
};

static void tidy_now_done(void *arg, int result)
{
    *(struct tidy_now *)arg = (struct tidy_now){true, result};
}

int layer_disk_tidy_now(struct layer_disk *disk, struct error *err)
{
    struct tidy_now now = {.ended = false};
    int code;
    while ((code = layer_disk_tidy(disk, tidy_now_done, &now, err)) > 0) {
        while (!now.ended)
            layer_chain_progress(disk->chain);
        if (now.result < 0)
            return error_errno(err, now.result, "cannot merge layers of disk %s", disk->name);
        now.ended = false;
    }
    return code;
}

/* ---- filling ---- */

bool layer_disk_is_whole(const struct layer_disk *disk)
{
    return disk->chain->count == 0 || !disk->chain->layers[0]->is_source;
}

static void filled(void *arg, int result, const struct layer_id *gone UNUSED)
{
    struct layer_disk *disk = arg;
    disk->tidy.done(disk->tidy.arg, result);
}

int layer_disk_fill(struct layer_disk *disk, void (*done)(void *arg, int result), void *arg, struct error *err)
{
    if (layer_disk_is_whole(disk))
        return 0;
    if (disk->chain->count != 2)
        return error_set(err, -EBUSY, ERROR_CONFLICT, "disk %s has snapshots and is not whole", disk->name);
    disk->tidy.done = done;
    disk->tidy.arg = arg;
    int code = layer_merge_start(disk->chain, disk->pool, 0, true, filled, disk, err);
    return code < 0 ? code : 1;
}

/* ---- collecting ---- */

struct collect {
    struct layer_pool *pool;
    struct error *err;
    struct disk_head kept;  /* its `layers`: what heads list */
    struct disk_head found; /* its `layers`: what there is */
};

static int collect_heads(void *arg, const char *file)
{
    struct collect *c = arg;
    struct disk_head head = {.top = NULL};
    size_t length = strlen(file);
    if (length == 2 * LAYER_ID_BYTES + 4 && strcmp(file + length - 4, ".map") == 0) {
        char id[LAYER_ID_TEXT_BYTES];
        snprintf(id, sizeof id, "%.*s", 2 * LAYER_ID_BYTES, file);
        layer_head_add(&c->found, id);
    }
    if (!is_head(file))
        return 0;
    int code = head_read_file(c->pool, file, &head, c->err);
    for (size_t i = 0; i < head.layers.count && code == 0; i++)
        layer_head_add(&c->kept, head.layers.items[i]);
    object_clear(&disk_head_desc, &head);
    return code;
}

static int collect_one(struct collect *c, const char *text)
{
    char file[LAYER_NAME_BYTES];
    struct layer_id id;
    struct block *b = NULL;
    if (layer_head_lists(&c->kept, text) || layer_id_parse(text, &id) < 0)
        return 0;
    snprintf(file, sizeof file, "%s.map", text);
    int code = c->pool->ops->open(c->pool, file, false, &b, c->err); /* its lock: nobody has it open */
    if (code == -EBUSY)
        return 0;
    if (code < 0 && code != -EINVAL) /* empty: its making was cut off, under the lock that is ours now */
        return code;
    code = layer_remove_files(c->pool, &id, c->err);
    block_close(b);
    return code;
}

int layer_disk_collect(struct layer_pool *pool, struct error *err)
{
    struct collect c = {.pool = pool, .err = err};
    int code = pool->ops->lock(pool, true, err);
    if (code < 0)
        return code;
    code = pool->ops->list(pool, collect_heads, &c, err);
    for (size_t i = 0; i < c.found.layers.count && code == 0; i++)
        code = collect_one(&c, c.found.layers.items[i]);
    pool->ops->lock(pool, false, NULL);
    object_clear(&disk_head_desc, &c.kept);
    object_clear(&disk_head_desc, &c.found);
    return code;
}
