/* Points of a replica: see replica_store.h. */
#include "block/replica_store.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "block/layer_head.h"

enum { RECORD_FORMAT = 1, POINT_NAME_BYTES = 24, ID_BYTES = 16 };

static void point_name(uint64_t number, char name[POINT_NAME_BYTES])
{
    snprintf(name, POINT_NAME_BYTES, "p%llu", (unsigned long long)number);
}

static const struct replica_disk *disk_at(const struct replica_store *store, unsigned i)
{
    return (const struct replica_disk *)store->record.disks.items + i;
}

static const char *place_of(const struct replica_store *store, const char *disk)
{
    return store->places.place != NULL ? store->places.place(store->places.arg, disk) : NULL;
}

/* Is each disk where the VM has it by now? What lies elsewhere would not be found, or be taken for one that has gone. */
static int places_check(const struct replica_store *store, struct error *err)
{
    for (unsigned i = 0; i < store->record.disks.count; i++)
        if (!text_same(disk_at(store, i)->pool, place_of(store, disk_at(store, i)->name)))
            return error_set(err, -EINVAL, ERROR_CONFLICT,
                             "the replica here was made of disk %s in another pool than the VM's; to begin it anew take it away and give it again",
                             disk_at(store, i)->name);
    return 0;
}

/* ---- the record ---- */

static int record_write(struct replica_store *store, const struct replica_record *record, struct error *err)
{
    struct bytes_writer out = {.data = NULL};
    struct layer_pool *pool = store->places.records;
    OBJECT_ENCODE(replica_record, record, &out);
    int code = pool->ops->replace(pool, REPLICA_RECORD_FILE, out.data, out.size, err);
    bytes_writer_finish(&out);
    return code;
}

static int record_new(struct replica_store *store, const char *vm, struct error *err)
{
    uint8_t bytes[ID_BYTES];
    char id[2 * ID_BYTES + 1];
    if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes)
        return error_errno(err, -errno, "cannot make an id");
    for (unsigned i = 0; i < ID_BYTES; i++)
        snprintf(id + 2 * i, 3, "%02x", bytes[i]);
    OBJECT_SET(replica_record, &store->record, format, RECORD_FORMAT);
    OBJECT_TEXT(replica_record, &store->record, id, id);
    OBJECT_TEXT(replica_record, &store->record, vm, vm);
    OBJECT_SET(replica_record, &store->record, number, 0);
    return record_write(store, &store->record, err);
}

int replica_store_open(const struct replica_places *places, const char *vm, bool make, struct replica_store *ret_store,
                       struct error *err)
{
    CLEANUP_FREE char *text = NULL;
    size_t size;
    *ret_store = (struct replica_store){.places = *places};
    int code = places->records->ops->read(places->records, REPLICA_RECORD_FILE, &text, &size, err);
    if (code == -ENOENT && make)
        code = record_new(ret_store, vm, err);
    else if (code == 0)
        code = OBJECT_DECODE(replica_record, text, size, OBJECT_STORED, &ret_store->record, err);
    if (code == 0 && (strcmp(ret_store->record.vm, vm) != 0 || ret_store->record.disks.count > REPLICA_DISKS_MAX))
        code = error_set(err, -EBADMSG, ERROR_CHECKSUM, "it is of VM %s", ret_store->record.vm);
    if (code < 0) {
        error_prefix(err, REPLICA_RECORD_FILE ": ");
        replica_store_close(ret_store);
    }
    return code;
}

static void disks_close(struct replica_store *store)
{
    while (store->count > 0)
        layer_disk_close(store->disks[--store->count]);
}

void replica_store_close(struct replica_store *store)
{
    disks_close(store);
    OBJECT_CLEAR(replica_record, &store->record);
}

/* ---- back to the last complete point ---- */

/* Does the disk show the point and nothing else? */
static bool is_at(const struct layer_disk *disk, const struct disk_snapshot *point)
{
    const struct layer_chain *c = disk->chain;
    uint64_t first, count;
    enum layer_state state;
    int since;
    return layer_disk_since(disk, point->layer, &since) == 0 && (unsigned)since + 2 == c->count &&
           !layer_chain_changed(c, since, 0, &first, &count, &state);
}

static int names_drop(struct layer_disk *disk, const char *kept, struct error *err)
{
    int code = 0;
    for (size_t i = 0; code == 0 && i < disk->head.snapshots.count;) {
        const struct disk_snapshot *s = (const struct disk_snapshot *)disk->head.snapshots.items + i;
        char name[64];
        if (kept != NULL && strcmp(s->name, kept) == 0) {
            i++;
            continue;
        }
        snprintf(name, sizeof name, "%s", s->name);
        code = layer_disk_drop(disk, name, err);
    }
    return code;
}

/* Opened for writing at @point; what came after that is gone. */
static int disk_put_back(struct layer_pool *pool, const char *name, const char *point, struct layer_disk **ret_disk, struct error *err)
{
    struct layer_disk *disk;
    int code = layer_disk_open(pool, name, false, 0, &disk, err);
    if (code < 0)
        return code;
    const struct disk_snapshot *s = layer_head_snapshot(&disk->head, point);
    if (s == NULL)
        code = error_set(err, -EBADMSG, ERROR_CHECKSUM, "disk %s of the replica does not have its point %s", name, point);
    if (s != NULL && !is_at(disk, s)) {
        struct block *b = &disk->chain->block;
        (void)block_now(b, BLOCK_DISCARD, 0, NULL, b->size_bytes); /* on a full disk the new top needs the old one's room */
        layer_disk_close(disk);
        code = layer_disk_revert(pool, name, point, err);
        if (code == 0)
            code = layer_disk_open(pool, name, false, 0, &disk, err);
        if (code < 0)
            return code;
    }
    if (code == 0)
        code = names_drop(disk, point, err);
    if (code == 0)
        code = layer_disk_collect(pool, err);
    if (code < 0)
        layer_disk_close(disk);
    else
        *ret_disk = disk;
    return code;
}

/* A disk of a replica without a point begins anew. */
static int disk_begin_anew(struct layer_pool *pool, const struct replica_disk *disk, struct layer_disk **ret_disk, struct error *err)
{
    int code = layer_disk_delete(pool, disk->name, err);
    if (code == 0)
        code = layer_disk_collect(pool, err);
    if (code == 0)
        code = layer_disk_create(pool, disk->name, disk->size_bytes, NULL, err);
    return code < 0 ? code : layer_disk_open(pool, disk->name, false, 0, ret_disk, err);
}

/* What a session has left goes; nobody is to take it for a point once the disks are put back. */
static int session_forget(struct replica_store *store, struct error *err)
{
    if (!OBJECT_HAS(replica_record, &store->record, session))
        return 0;
    store->record.session = 0;
    store->record.head.present &= ~(UINT64_C(1) << (object_field(&replica_record_desc, "session") - replica_record_desc.fields));
    int code = record_write(store, &store->record, err);
    store->unsure = store->unsure || code < 0;
    return code;
}

static int disks_open(struct replica_store *store, struct error *err)
{
    char point[POINT_NAME_BYTES];
    int code = session_forget(store, err);
    point_name(store->record.number, point);
    for (unsigned i = 0; code == 0 && i < store->record.disks.count; i++) {
        const struct replica_disk *disk = disk_at(store, i);
        code = store->places.pool(store->places.arg, disk->name, &store->pools[i], err);
        if (code == 0)
            code = store->record.number > 0 ? disk_put_back(store->pools[i], disk->name, point, &store->disks[i], err)
                                            : disk_begin_anew(store->pools[i], disk, &store->disks[i], err);
        if (code == -ENOENT && store->record.number > 0)
            error_set(err, code, ERROR_NOT_FOUND,
                      "disk %s of the replica is gone from its host: take the replica away and give it again, unless the VM is to be started from it",
                      disk->name);
        if (code == 0)
            store->count = i + 1;
    }
    if (code < 0)
        disks_close(store);
    return code;
}

/* ---- receiving ---- */

static bool same_disks(const struct object_list *a, const struct object_list *b)
{
    const struct replica_disk *x = a->items, *y = b->items;
    bool same = a->count == b->count;
    for (size_t i = 0; same && i < a->count; i++)
        same = strcmp(x[i].name, y[i].name) == 0 && x[i].size_bytes == y[i].size_bytes;
    return same;
}

static int may_begin(const struct replica_store *store, uint64_t epoch, const struct object_list *disks, struct error *err)
{
    const struct replica_disk *all = disks->items;
    if (store->unsure)
        return error_set(err, -EIO, ERROR_CONFLICT, REPLICA_RECORD_FILE " could not be written; it has to be read again");
    if (store->record.promoting)
        return error_set(err, -EBUSY, ERROR_CONFLICT, "the replica becomes the VM's own disks here");
    if (epoch < store->record.epoch)
        return error_set(err, -ESTALE, ERROR_CONFLICT, "the replica has a point of epoch %llu; a host that has the VM under %llu has lost it",
                         (unsigned long long)store->record.epoch, (unsigned long long)epoch);
    if (disks->count == 0 || disks->count > REPLICA_DISKS_MAX)
        return error_set(err, -EINVAL, ERROR_INVALID, "a replica has 1 to %d disks, not %zu", REPLICA_DISKS_MAX, disks->count);
    for (size_t i = 0; i < disks->count; i++)
        for (size_t k = 0; k < i; k++)
            if (strcmp(all[i].name, all[k].name) == 0)
                return error_set(err, -EINVAL, ERROR_INVALID, "two disks are named %s", all[i].name);
    if (store->record.number > 0 && !same_disks(&store->record.disks, disks))
        return error_set(err, -EINVAL, ERROR_CONFLICT,
                         "the VM has other disks than its replica; take the replica away and give it one again");
    return store->record.number > 0 ? places_check(store, err) : 0;
}

/* Of the first point. */
static void disks_note(struct replica_store *store, const struct object_list *disks)
{
    struct replica_record old = store->record;
    store->record = (struct replica_record){.format = 0};
    OBJECT_COPY(replica_record, &store->record, &old);
    OBJECT_CLEAR(replica_record, &old);
    while (store->record.disks.count > 0) /* of one that was never complete */
        object_clear(&replica_disk_desc, (struct replica_disk *)store->record.disks.items + --store->record.disks.count);
    for (size_t i = 0; i < disks->count; i++) {
        const struct replica_disk *from = (const struct replica_disk *)disks->items + i;
        struct replica_disk *disk = OBJECT_ADD(replica_record, &store->record, disks);
        OBJECT_TEXT(replica_disk, disk, name, from->name);
        OBJECT_SET(replica_disk, disk, size_bytes, from->size_bytes);
        if (place_of(store, from->name) != NULL)
            OBJECT_TEXT(replica_disk, disk, pool, place_of(store, from->name));
        if (store->places.is_volume != NULL && store->places.is_volume(store->places.arg, from->name))
            OBJECT_SET(replica_disk, disk, volume, true);
    }
}

int replica_store_begin(struct replica_store *store, uint64_t epoch, const struct object_list *disks, struct error *err)
{
    disks_close(store);
    int code = may_begin(store, epoch, disks, err);
    if (code < 0)
        return code;
    if (store->record.number == 0 && disks != &store->record.disks)
        disks_note(store, disks);
    store->epoch = epoch;
    return disks_open(store, err);
}

/* NULL: not within a disk of the point, in words. */
static struct block *disk_block(struct replica_store *store, unsigned disk, uint64_t offset, uint64_t size, struct error *err)
{
    struct block *b = disk < store->count ? &store->disks[disk]->chain->block : NULL;
    if (b == NULL) {
        error_set(err, -ERANGE, ERROR_INVALID, "the point has no disk %u", disk);
        return NULL;
    }
    if (size > 0 && offset <= b->size_bytes && size <= b->size_bytes - offset && (offset | size) % BLOCK_SECTOR_BYTES == 0)
        return b;
    error_set(err, -ERANGE, ERROR_INVALID, "%llu bytes at %llu are no sectors of disk %s, which has %llu", (unsigned long long)size,
              (unsigned long long)offset, store->disks[disk]->name, (unsigned long long)b->size_bytes);
    return NULL;
}

static int failed(const struct replica_store *store, unsigned disk, int code, struct error *err)
{
    return code == -ENOSPC ? error_set(err, code, ERROR_NO_SPACE, "no room is left for the replica of disk %s; make room on its host",
                                       store->disks[disk]->name)
                           : error_errno(err, code, "cannot write the replica of disk %s", store->disks[disk]->name);
}

int replica_store_write(struct replica_store *store, unsigned disk, uint64_t offset, void *data, size_t size, bool compare,
                        struct error *err)
{
    struct block *b = disk_block(store, disk, offset, size, err);
    if (b == NULL)
        return -ERANGE;
    if (compare) {
        CLEANUP_FREE void *held = xcalloc(1, size);
        if (block_now(b, BLOCK_READ, offset, held, size) == 0 && memcmp(held, data, size) == 0)
            return 0;
    }
    int code = block_now(b, BLOCK_WRITE, offset, data, size);
    return code < 0 ? failed(store, disk, code, err) : 0;
}

int replica_store_zero(struct replica_store *store, unsigned disk, uint64_t offset, uint64_t size, struct error *err)
{
    struct block *b = disk_block(store, disk, offset, size, err);
    if (b == NULL)
        return -ERANGE;
    int code = block_now(b, BLOCK_WRITE_ZEROES, offset, NULL, size);
    return code < 0 ? failed(store, disk, code, err) : 0;
}

/* Older points go, and what they alone needed. What fails here is done after the next point. */
static void tidy(struct replica_store *store, const char *kept)
{
    for (unsigned i = 0; i < store->count; i++)
        if (names_drop(store->disks[i], kept, NULL) == 0)
            (void)layer_disk_tidy_now(store->disks[i], NULL);
}

/* What the disks that are open show is the next point. @merge: what only older ones needed goes, which takes the time of copying it. */
static int point_complete(struct replica_store *store, uint64_t epoch, bool merge, struct error *err)
{
    struct replica_record next = {.format = 0};
    char name[POINT_NAME_BYTES];
    int code = 0;
    point_name(store->record.number + 1, name);
    for (unsigned i = 0; code == 0 && i < store->count; i++)
        if (layer_head_snapshot(&store->disks[i]->head, name) == NULL) /* one of a session may have it: settled once more */
            code = layer_disk_snapshot(store->disks[i], name, err);
    if (code < 0)
        return code;
    OBJECT_COPY(replica_record, &next, &store->record);
    OBJECT_SET(replica_record, &next, number, next.number + 1);
    OBJECT_SET(replica_record, &next, epoch, epoch);
    next.session = 0;
    next.head.present &= ~(UINT64_C(1) << (object_field(&replica_record_desc, "session") - replica_record_desc.fields));
    code = record_write(store, &next, err);
    if (code < 0) {
        store->unsure = true; /* it may have got its name, and only the directory is not synced */
        OBJECT_CLEAR(replica_record, &next);
        return code;
    }
    OBJECT_CLEAR(replica_record, &store->record);
    store->record = next;
    if (merge)
        tidy(store, name);
    return 0;
}

int replica_store_commit(struct replica_store *store, struct error *err)
{
    if (store->count == 0 || OBJECT_HAS(replica_record, &store->record, session))
        return error_set(err, -EINVAL, ERROR_INVALID, "no point has begun");
    return point_complete(store, store->epoch, true, err);
}

void replica_store_give_up(struct replica_store *store)
{
    disks_close(store);
    if (!store->unsure && disks_open(store, NULL) == 0)
        disks_close(store);
}

/* ---- sessions ---- */

/* Does the record say of the session that is here that the disks came level in it? */
static bool is_promised(const struct replica_record *record, const struct replica_known *known)
{
    return OBJECT_HAS(replica_record, record, session) && known->id != NULL && strcmp(record->id, known->id) == 0 &&
           known->session == record->session && known->number == record->number + 1;
}

static int settle(struct replica_store *store, const struct replica_known *known, bool merge, struct error *err)
{
    int code = 0;
    disks_close(store);
    if (!is_promised(&store->record, known))
        return 0;
    if (store->unsure)
        return error_set(err, -EIO, ERROR_CONFLICT, REPLICA_RECORD_FILE " could not be written; it has to be read again");
    code = places_check(store, err);
    for (unsigned i = 0; code == 0 && i < store->record.disks.count; i++) {
        code = store->places.pool(store->places.arg, disk_at(store, i)->name, &store->pools[i], err);
        if (code == 0)
            code = layer_disk_open(store->pools[i], disk_at(store, i)->name, false, 0, &store->disks[i], err);
        if (code == 0)
            store->count = i + 1;
    }
    if (code == 0)
        code = point_complete(store, store->record.epoch, merge, err);
    disks_close(store);
    return code;
}

int replica_store_settle(struct replica_store *store, const struct replica_known *known, struct error *err)
{
    return settle(store, known, true, err);
}

int replica_store_follow(struct replica_store *store, uint64_t epoch, uint64_t session, const struct object_list *disks, struct error *err)
{
    if (OBJECT_HAS(replica_record, &store->record, session) && session <= store->record.session)
        return error_set(err, -ESTALE, ERROR_CONFLICT, "the replica has been in session %llu, and session %llu is over",
                         (unsigned long long)store->record.session, (unsigned long long)session);
    int code = replica_store_begin(store, epoch, disks, err);
    if (code < 0)
        return code;
    OBJECT_SET(replica_record, &store->record, epoch, epoch);
    OBJECT_SET(replica_record, &store->record, session, session);
    code = record_write(store, &store->record, err);
    if (code < 0) {
        store->unsure = true;
        disks_close(store);
    }
    return code;
}

/* ---- promotion ---- */

/* A disk that is moved already is not here. */
static int name_give_up(struct replica_store *store, const char *name, struct error *err)
{
    struct layer_pool *pool;
    struct layer_disk *disk;
    int code = store->places.pool(store->places.arg, name, &pool, err);
    if (code == 0)
        code = layer_disk_open(pool, name, false, 0, &disk, err);
    if (code < 0)
        return code == -ENOENT ? 0 : code;
    code = names_drop(disk, NULL, err);
    layer_disk_close(disk);
    return code;
}

int replica_store_promote(struct replica_store *store, const struct replica_known *known, uint64_t epoch, struct error *err)
{
    const struct replica_record *record = &store->record;
    bool promised = is_promised(record, known);
    if (known->id == NULL || strcmp(record->id, known->id) != 0 || (record->number == 0 && !promised))
        return error_set(err, -ENOENT, ERROR_NOT_FOUND, "the replica of the VM here is not the one that it is to be started from");
    if (record->number + promised < known->number || record->epoch > epoch)
        return error_set(err, -ESTALE, ERROR_CONFLICT, "the replica here has point %llu of epoch %llu, point %llu of at most epoch %llu is needed",
                         (unsigned long long)record->number, (unsigned long long)record->epoch, (unsigned long long)known->number,
                         (unsigned long long)epoch);
    int code = places_check(store, err);
    if (code == 0)
        code = settle(store, known, false, err); /* a VM waits */
    if (code == 0 && !record->promoting) {
        code = disks_open(store, err);
        if (code == 0) {
            OBJECT_SET(replica_record, &store->record, promoting, true);
            code = record_write(store, &store->record, err);
        }
    }
    disks_close(store);
    for (unsigned i = 0; code == 0 && i < record->disks.count; i++)
        code = name_give_up(store, disk_at(store, i)->name, err);
    return code;
}
