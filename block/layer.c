/* One layer: opening, marking, flushing. See layer.h. */
#include "block/layer.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "block/block_dead.h"

enum { MAP_READ_BLOCKS = 64 }; /* states read at once: pairs of slots */

static void file_name(const struct layer_id *id, const char *ending, char *ret_name)
{
    char text[LAYER_ID_TEXT_BYTES];
    snprintf(ret_name, LAYER_NAME_BYTES, "%s.%s", layer_id_text(id, text), ending);
}

static struct layer *layer_new(const char *name)
{
    struct layer *l = NEW(struct layer);
    snprintf(l->name, sizeof l->name, "%s", name);
    list_init(&l->waiting);
    list_init(&l->riding);
    return l;
}

void layer_close(struct layer *layer)
{
    if (layer == NULL)
        return;
    layer_drain(layer);
    block_close(layer->data);
    block_close(layer->map_file);
    layer_map_finish(&layer->map);
    free(layer);
}

/* ---- headers ---- */

int layer_write_header(struct layer *layer)
{
    uint8_t block[LAYER_BLOCK_BYTES] __attribute__((aligned(LAYER_BLOCK_BYTES)));
    layer->header.sequence++;
    layer_header_encode(&layer->header, block);
    int code = block_now(layer->map_file, BLOCK_WRITE, layer_header_offset(layer->header.sequence), block, sizeof block);
    if (code == 0)
        code = block_now(layer->map_file, BLOCK_FLUSH, 0, NULL, 0);
    if (code < 0)
        layer->header.sequence--; /* the same slot again: the other one holds what counts */
    return code;
}

static int flags_write(struct layer *layer, uint32_t set, uint32_t clear)
{
    uint32_t before = layer->header.flags;
    layer->header.flags = (before & ~clear) | set;
    int code = layer->header.flags == before ? 0 : layer_write_header(layer);
    if (code < 0)
        layer->header.flags = before;
    return code;
}

/* ---- opening ---- */

static int map_load(struct layer *l, struct error *err)
{
    size_t size = (size_t)MAP_READ_BLOCKS * 2 * LAYER_BLOCK_BYTES;
    CLEANUP_FREE uint8_t *slots = aligned_alloc(LAYER_BLOCK_BYTES, size);
    int code = slots == NULL ? -ENOMEM : block_now(l->map_file, BLOCK_READ, 0, slots, 2 * LAYER_BLOCK_BYTES);
    if (code < 0)
        return error_errno(err, code, "cannot read the map");
    code = layer_header_decode(slots, &l->header, err);
    if (code < 0)
        return code;
    if (l->map_file->size_bytes < layer_map_file_bytes(l->header.size_bytes))
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "its map has become shorter");
    if (layer_map_init(&l->map, l->header.size_bytes) < 0)
        return error_errno(err, -ENOMEM, "no memory for the map of %llu bytes", (unsigned long long)l->header.size_bytes);
    for (uint32_t first = 0; first < l->map.blocks; first += MAP_READ_BLOCKS) {
        uint32_t count = MIN(l->map.blocks - first, (uint32_t)MAP_READ_BLOCKS);
        code = block_now(l->map_file, BLOCK_READ, layer_block_offset(first, 0), slots,
                         (size_t)count * 2 * LAYER_BLOCK_BYTES);
        if (code < 0)
            return error_errno(err, code, "cannot read the map");
        for (uint32_t i = 0; i < count && code == 0; i++)
            code = layer_block_decode(&l->map, &l->header, first + i, slots + (size_t)i * 2 * LAYER_BLOCK_BYTES, err);
        if (code < 0)
            return code;
    }
    return 0;
}

/* Punch out of [start, end) of the data file what is not LAYER_DATA. */
static int stretch_clean(struct layer *l, uint64_t start, uint64_t end)
{
    int code = 0;
    for (uint64_t at = start / LAYER_CLUSTER_BYTES * LAYER_CLUSTER_BYTES; at < end && code == 0;) {
        uint64_t stop = at;
        while (stop < end && (stop / LAYER_CLUSTER_BYTES >= l->map.clusters ||
                              layer_map_get(&l->map, stop / LAYER_CLUSTER_BYTES) != LAYER_DATA))
            stop += LAYER_CLUSTER_BYTES;
        stop = MIN(stop, l->data->size_bytes);
        if (stop > at)
            code = block_now(l->data, BLOCK_WRITE_ZEROES, at, NULL, stop - at);
        at = MAX(stop, at + LAYER_CLUSTER_BYTES);
    }
    return code;
}

/* After a crash: what the map does not know of goes. It is durable with the next flush of anything written there. */
static int data_clean(struct layer *l, struct error *err)
{
    uint64_t start, end, at = 0;
    int code;
    while ((code = block_next_data(l->data, at, &start, &end)) > 0) {
        code = stretch_clean(l, start, end);
        if (code < 0)
            break;
        at = end;
    }
    return code < 0 ? error_errno(err, code, "cannot clean up after a crash") : 0;
}

static int files_open(struct layer_pool *pool, struct layer *l, const struct layer_id *id, bool read_only,
                      struct error *err)
{
    char name[LAYER_NAME_BYTES];
    file_name(id, "map", name);
    int code = pool->ops->open(pool, name, read_only, &l->map_file, err);
    file_name(id, "raw", name);
    return code < 0 ? code : pool->ops->open(pool, name, read_only, &l->data, err);
}

/* The epoch is looked at before anything is cleaned up: where locks do not hold (network file systems), what looks like
 * leftovers of a crash to an owner of yesterday is what today's has not flushed yet. */
static int layer_begin_writing(struct layer *l, uint64_t epoch, struct error *err)
{
    uint64_t before = l->header.epoch;
    if (epoch != 0 && before > epoch)
        return error_set(err, -ESTALE, ERROR_CONFLICT, "the disk belongs to epoch %llu; this is %llu",
                         (unsigned long long)before, (unsigned long long)epoch);
    int code = l->header.flags & LAYER_OPEN ? data_clean(l, err) : 0;
    l->header.epoch = MAX(before, epoch);
    if (code == 0 && l->header.epoch != before && (l->header.flags & LAYER_OPEN))
        code = layer_write_header(l);
    if (code == 0)
        code = flags_write(l, LAYER_OPEN, 0);
    if (code < 0) {
        l->header.epoch = before;
        return error_errno(err, code, "cannot mark it as open");
    }
    l->writable = true;
    return 0;
}

static int open_as(struct layer_pool *pool, const struct layer_id *id, bool read_only, uint64_t epoch,
                   struct layer **ret_layer, struct error *err)
{
    char text[LAYER_ID_TEXT_BYTES];
    struct layer *l = layer_new(layer_id_text(id, text));
    int code = files_open(pool, l, id, read_only, err);
    if (code == 0)
        code = map_load(l, err);
    if (code == 0 && !layer_id_equal(&l->header.id, id))
        code = error_set(err, -EBADMSG, ERROR_CHECKSUM, "its map is another layer's");
    if (code == 0 && l->data->size_bytes < l->map.clusters * LAYER_CLUSTER_BYTES)
        code = error_set(err, -EBADMSG, ERROR_CHECKSUM, "its data file has become shorter");
    if (code == 0 && !read_only)
        code = layer_begin_writing(l, epoch, err);
    if (code < 0) {
        error_prefix(err, "layer %s: ", text);
        layer_close(l);
        return code;
    }
    *ret_layer = l;
    return 0;
}

int layer_open(struct layer_pool *pool, const struct layer_id *id, bool read_only, struct layer **ret_layer,
               struct error *err)
{
    return open_as(pool, id, read_only, 0, ret_layer, err);
}

int layer_open_owned(struct layer_pool *pool, const struct layer_id *id, uint64_t epoch, struct layer **ret_layer,
                     struct error *err)
{
    return open_as(pool, id, false, epoch, ret_layer, err);
}

int layer_seal(struct layer_pool *pool, struct layer_header *header, struct error *err)
{
    uint8_t block[LAYER_BLOCK_BYTES] __attribute__((aligned(LAYER_BLOCK_BYTES)));
    struct layer_header sealed = *header;
    struct block *map_file;
    char name[LAYER_NAME_BYTES];
    file_name(&header->id, "map", name);
    int code = pool->ops->open(pool, name, false, &map_file, err);
    if (code < 0)
        return code;
    sealed.flags = (header->flags & ~(uint32_t)LAYER_OPEN) | LAYER_SEALED;
    sealed.sequence++;
    layer_header_encode(&sealed, block);
    code = block_now(map_file, BLOCK_WRITE, layer_header_offset(sealed.sequence), block, sizeof block);
    if (code == 0)
        code = block_now(map_file, BLOCK_FLUSH, 0, NULL, 0);
    block_close(map_file);
    if (code < 0)
        return error_errno(err, code, "cannot mark layer %s as sealed", name);
    *header = sealed;
    return 0;
}

int layer_open_raw(struct layer_pool *pool, const char *name, struct layer **ret_layer, struct error *err)
{
    struct layer *l = layer_new(name);
    uint64_t at = 0, start, end;
    int code = pool->ops->open(pool, name, true, &l->data, err);
    if (code == 0) {
        l->header.size_bytes = l->data->size_bytes;
        code = layer_map_init(&l->map, l->header.size_bytes);
    }
    /* Its holes need not be read, nor copied at the first write. */
    while (code == 0 && block_next_data(l->data, at, &start, &end) > 0) {
        for (uint64_t c = start / LAYER_CLUSTER_BYTES; c < layer_clusters(end); c++)
            layer_map_set(&l->map, c, LAYER_DATA);
        at = end;
    }
    if (code < 0) {
        error_prefix(err, "image %s: ", name);
        layer_close(l);
        return code;
    }
    *ret_layer = l;
    return 0;
}

int layer_open_source(struct layer_pool *pool, const struct layer_header *header, struct layer **ret_layer,
                      struct error *err)
{
    if (pool->source == NULL)
        return error_set(err, -ENODATA, ERROR_CONFLICT,
                         "the disk is not whole: what it was restored from has not come yet (%s). Wait for that restore, or "
                         "restore it again", header->parent_name);
    struct layer *l = layer_new(header->parent_name);
    l->is_source = true;
    l->header.size_bytes = header->source_bytes;
    int code = layer_map_init(&l->map, header->source_bytes);
    if (code < 0)
        error_errno(err, code, "no memory for the map");
    else
        code = pool->source(pool->source_arg, header->parent_name, header->source_bytes, &l->data, err);
    if (code < 0) {
        layer_close(l);
        return code;
    }
    for (uint64_t c = 0; c < l->map.clusters; c++)
        layer_map_set(&l->map, c, LAYER_DATA);
    *ret_layer = l;
    return 0;
}

static int files_create(struct layer_pool *pool, struct layer *l, struct error *err)
{
    char name[LAYER_NAME_BYTES];
    int code = layer_map_init(&l->map, l->header.size_bytes);
    if (code < 0)
        return error_errno(err, code, "no memory for the map");
    file_name(&l->header.id, "raw", name);
    code = pool->ops->create(pool, name, l->map.clusters * LAYER_CLUSTER_BYTES, &l->data, err);
    file_name(&l->header.id, "map", name);
    if (code == 0)
        code = pool->ops->create(pool, name, layer_map_file_bytes(l->header.size_bytes), &l->map_file, err);
    if (code == 0 && ((code = layer_write_header(l)) < 0 || (code = block_now(l->data, BLOCK_FLUSH, 0, NULL, 0)) < 0))
        error_errno(err, code, "cannot write a new layer");
    return code == 0 ? pool->ops->sync(pool, err) : code;
}

int layer_create(struct layer_pool *pool, const struct layer_header *header, struct layer **ret_layer,
                 struct error *err)
{
    static const struct layer_id none;
    char text[LAYER_ID_TEXT_BYTES];
    struct layer *l = layer_new("");
    l->header = *header;
    l->header.flags &= LAYER_OPEN;
    l->header.sequence = 0;
    if (layer_id_equal(&header->id, &none) && getrandom(l->header.id.bytes, LAYER_ID_BYTES, 0) != LAYER_ID_BYTES) {
        layer_close(l);
        return error_errno(err, -EIO, "no random number for a layer's name");
    }
    snprintf(l->name, sizeof l->name, "%s", layer_id_text(&l->header.id, text));
    l->writable = (l->header.flags & LAYER_OPEN) != 0;
    int code = files_create(pool, l, err);
    if (code < 0) {
        struct layer_id id = l->header.id;
        layer_close(l);
        if (code != -EEXIST)
            layer_remove_files(pool, &id, NULL);
        return code;
    }
    *ret_layer = l;
    return 0;
}

/* Another opening of the file may not overlap with ours, for the lock is between openings; so there is a moment
 * without. Nobody can do harm in it: while the layer is read by others it is refused, and by nobody it may be gone. */
int layer_make_writable(struct layer_pool *pool, struct layer *layer, struct error *err)
{
    struct layer now = {.data = NULL};
    if (layer->writable) { /* settled since, perhaps */
        int marked = flags_write(layer, LAYER_OPEN, 0);
        return marked < 0 ? error_errno(err, marked, "cannot mark layer %s as open", layer->name) : 0;
    }
    layer_drain(layer);
    const struct block data = *layer->data, map_file = *layer->map_file;
    block_close(layer->data);
    block_close(layer->map_file);
    int code = files_open(pool, &now, &layer->header.id, false, err);
    if (code < 0) {
        block_close(now.data);
        block_close(now.map_file);
        now = (struct layer){.data = NULL};
        files_open(pool, &now, &layer->header.id, true, NULL);
    }
    layer->data = now.data != NULL ? now.data : block_dead_create(&data);
    layer->map_file = now.map_file != NULL ? now.map_file : block_dead_create(&map_file);
    return code < 0 ? code : layer_begin_writing(layer, 0, err);
}

void layer_share(struct layer *layer)
{
    layer_drain(layer);
    block_share(layer->data);
    block_share(layer->map_file);
    layer->writable = false;
}

int layer_remove_files(struct layer_pool *pool, const struct layer_id *id, struct error *err)
{
    char name[LAYER_NAME_BYTES];
    file_name(id, "raw", name);
    int code = pool->ops->remove(pool, name, err);
    file_name(id, "map", name); /* last: layer_disk_collect finds layers by it */
    int other = pool->ops->remove(pool, name, code < 0 ? NULL : err);
    return code < 0 ? code : other;
}

int layer_grow(struct layer *layer, uint64_t size_bytes, struct error *err)
{
    uint64_t before = layer->header.size_bytes;
    if (size_bytes > LAYER_SIZE_MAX)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/size_bytes", "a disk has at most %llu bytes",
                               (unsigned long long)LAYER_SIZE_MAX);
    /* A growth that a crash cut off may have left them larger. */
    uint64_t data_bytes = MAX(layer_clusters(size_bytes) * LAYER_CLUSTER_BYTES, layer->data->size_bytes);
    uint64_t map_bytes = MAX(layer_map_file_bytes(size_bytes), layer->map_file->size_bytes);
    int code = block_grow(layer->data, data_bytes, err);
    if (code == 0)
        code = block_grow(layer->map_file, map_bytes, err);
    if (code < 0)
        return code;
    code = block_now(layer->data, BLOCK_FLUSH, 0, NULL, 0);
    if (code == 0)
        code = layer_map_grow(&layer->map, size_bytes);
    layer->header.size_bytes = size_bytes;
    if (code == 0)
        code = layer_write_header(layer);
    if (code < 0)
        layer->header.size_bytes = before;
    return code < 0 ? error_errno(err, code, "cannot enlarge the layer") : 0;
}

/* ---- flushing ---- */

struct layer_round {
    struct layer *layer;
    struct block_request sync;
    unsigned pending;
    int result;
    uint32_t count;
    uint32_t *indexes;
    uint8_t *blocks;
    struct map_write {
        struct block_request request;
        struct iovec iovec;
        struct layer_round *round;
    } *writes;
};

static int round_begin(struct layer *l);

static void flushes_tell(struct list *flushes, int result)
{
    while (!list_empty(flushes)) {
        struct layer_flush *f = LIST_ENTRY(flushes->next, struct layer_flush, link);
        list_remove(&f->link);
        f->done(f, result);
    }
}

static void round_free(struct layer_round *r)
{
    free(r->indexes);
    free(r->blocks);
    free(r->writes);
    free(r);
}

static void round_end(struct layer_round *r, int result)
{
    struct layer *l = r->layer;
    struct list ended, failed;
    int next = 0;
    for (uint32_t i = 0; i < r->count; i++) {
        if (result == 0)
            l->map.sequence[r->indexes[i]]++;
        else /* the same slot again: the other one holds what counts */
            layer_map_mark_dirty(&l->map, r->indexes[i], true);
    }
    round_free(r);
    l->round = NULL;
    list_init(&ended);
    list_init(&failed);
    list_take(&ended, &l->riding);
    if (!list_empty(&l->waiting)) {
        list_take(&l->riding, &l->waiting);
        next = round_begin(l);
        if (next < 0)
            list_take(&failed, &l->riding);
    }
    flushes_tell(&ended, result);
    flushes_tell(&failed, next);
}

static void map_synced(struct block_request *request, int result)
{
    round_end(CONTAINER_OF(request, struct layer_round, sync), result);
}

static void map_written(struct layer_round *r)
{
    struct layer *l = r->layer;
    int code = r->result;
    if (code == 0) {
        r->sync.done = map_synced;
        code = block_submit(l->map_file, &r->sync);
    }
    if (code < 0)
        round_end(r, code);
}

static void map_write_done(struct block_request *request, int result)
{
    struct layer_round *r = CONTAINER_OF(request, struct map_write, request)->round;
    if (result < 0)
        r->result = result;
    if (--r->pending == 0)
        map_written(r);
}

static void data_synced(struct block_request *request, int result)
{
    struct layer_round *r = CONTAINER_OF(request, struct layer_round, sync);
    if (result < 0 || r->count == 0) {
        round_end(r, result);
        return;
    }
    r->pending = 1;
    for (uint32_t i = 0; i < r->count; i++) {
        struct map_write *w = &r->writes[i];
        w->round = r;
        w->iovec = (struct iovec){r->blocks + (size_t)i * LAYER_BLOCK_BYTES, LAYER_BLOCK_BYTES};
        w->request = (struct block_request){
            .op = BLOCK_WRITE,
            .offset = layer_block_offset(r->indexes[i], r->layer->map.sequence[r->indexes[i]] + 1),
            .size = LAYER_BLOCK_BYTES,
            .iovecs = &w->iovec,
            .iovec_count = 1,
            .done = map_write_done};
        r->pending++;
        int code = block_submit(r->layer->map_file, &w->request);
        if (code < 0) {
            r->pending--;
            r->result = code;
        }
    }
    if (--r->pending == 0)
        map_written(r);
}

/* Copies of what changed, as it is now: what is set while the data is being synced belongs to the next round. */
static void round_copy(struct layer_round *r)
{
    struct layer_map *map = &r->layer->map;
    uint32_t count = map->dirty_count;
    r->indexes = xcalloc(count + 1, sizeof *r->indexes);
    r->writes = xcalloc(count + 1, sizeof *r->writes);
    r->blocks = aligned_alloc(LAYER_BLOCK_BYTES, (size_t)(count + 1) * LAYER_BLOCK_BYTES);
    for (uint32_t i = 0; i < map->blocks && map->dirty_count > 0 && r->blocks != NULL; i++) {
        if (!map->dirty[i])
            continue;
        layer_block_encode(map, &r->layer->header, i, r->blocks + (size_t)r->count * LAYER_BLOCK_BYTES);
        layer_map_mark_dirty(map, i, false);
        r->indexes[r->count++] = i;
    }
}

static int round_begin(struct layer *l)
{
    struct layer_round *r = NEW(struct layer_round);
    r->layer = l;
    r->sync = (struct block_request){.op = BLOCK_FLUSH, .done = data_synced};
    round_copy(r);
    l->round = r;
    int code = r->blocks == NULL ? -ENOMEM : block_submit(l->data, &r->sync);
    if (code < 0) {
        for (uint32_t i = 0; i < r->count; i++)
            layer_map_mark_dirty(&l->map, r->indexes[i], true);
        round_free(r);
        l->round = NULL;
    }
    return code;
}

int layer_flush(struct layer *layer, struct layer_flush *flush)
{
    if (layer->round != NULL) {
        list_append(&layer->waiting, &flush->link);
        return 0;
    }
    int code = round_begin(layer);
    if (code == 0)
        list_append(&layer->riding, &flush->link);
    return code;
}

void layer_drain(struct layer *layer)
{
    do {
        if (layer->data != NULL)
            block_drain(layer->data);
        if (layer->map_file != NULL)
            block_drain(layer->map_file);
    } while (layer->round != NULL);
}

struct settle {
    struct layer_flush flush;
    bool ended;
    int result;
};

static void settled(struct layer_flush *flush, int result)
{
    struct settle *s = CONTAINER_OF(flush, struct settle, flush);
    s->ended = true;
    s->result = result;
}

int layer_settle(struct layer *layer)
{
    if (!layer->writable)
        return 0;
    struct settle *s = NEW(struct settle);
    s->flush.done = settled;
    int code = layer_flush(layer, &s->flush);
    if (code == 0) {
        layer_drain(layer);
        ASSERT(s->ended);
        code = s->result;
    }
    free(s);
    return code < 0 || layer->stained ? code : flags_write(layer, 0, LAYER_OPEN);
}
