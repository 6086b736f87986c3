/* Which chunks a store has: see chunk_index.h. */
#include "backup/chunk_index.h"

#include <errno.h>
#include <string.h>

#define MAGIC "DRVBINDX"

/* Ids are hashes under a key that nobody outside has: their first bytes are as good as any. */
static uint64_t id_word(const struct chunk_hash *id)
{
    uint64_t word;
    memcpy(&word, id->bytes, sizeof word);
    return word;
}

void chunk_index_init(struct chunk_index *x)
{
    *x = (struct chunk_index){0};
}

void chunk_index_finish(struct chunk_index *x)
{
    for (uint32_t i = 0; i < x->pack_count; i++) {
        pack_index_finish(&x->packs[i].index);
        free(x->packs[i].raw);
        free(x->packs[i].bad);
    }
    free(x->packs);
    free(x->names);
    free(x->slots);
    *x = (struct chunk_index){0};
}

/* Where @name is in the table of names, or where it would be. There is always a free place. */
static uint32_t *name_slot(const struct chunk_index *x, const struct chunk_hash *name)
{
    uint64_t i = id_word(name) & (x->name_slots - 1);
    while (x->names[i] != 0 && !chunk_hash_equal(&x->packs[x->names[i] - 1].hash, name))
        i = (i + 1) & (x->name_slots - 1);
    return &x->names[i];
}

uint32_t chunk_index_pack(const struct chunk_index *x, const struct chunk_hash *name)
{
    return x->name_slots > 0 ? *name_slot(x, name) - 1 : UINT32_MAX; /* 0 - 1: UINT32_MAX, not known */
}

/* Room for one more, with half of the table of names free. */
static void packs_grow(struct chunk_index *x)
{
    if (x->pack_count < x->pack_capacity)
        return;
    x->pack_capacity = MAX(x->pack_capacity * 2, 64u);
    x->packs = xrealloc(x->packs, x->pack_capacity * sizeof *x->packs);
    free(x->names);
    x->name_slots = (uint64_t)x->pack_capacity * 2;
    x->names = xcalloc(x->name_slots, sizeof *x->names);
    for (uint32_t i = 0; i < x->pack_count; i++)
        *name_slot(x, &x->packs[i].hash) = i + 1;
}

int chunk_index_add(struct chunk_index *x, const struct chunk_hash *name, const void *raw, uint32_t raw_bytes,
                    uint32_t *ret_pack, struct error *err)
{
    struct chunk_hash hash;
    struct indexed_pack p = {.hash = *name, .raw_bytes = raw_bytes};
    uint32_t known = chunk_index_pack(x, name);
    if (known == UINT32_MAX) {
        chunk_hash_plain(raw, raw_bytes, &hash);
        if (!chunk_hash_equal(&hash, name))
            return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the index of a pack does not match the pack's name");
        int code = pack_index_decode(raw, raw_bytes, &p.index, err);
        if (code < 0)
            return code;
        p.raw = xcalloc(1, MAX(raw_bytes, 1u));
        memcpy(p.raw, raw, raw_bytes);
        packs_grow(x);
        known = x->pack_count++;
        x->packs[known] = p;
        *name_slot(x, name) = x->pack_count;
    }
    if (ret_pack != NULL)
        *ret_pack = known;
    return 0;
}

void chunk_index_mark_bad(struct chunk_index *x, uint32_t pack, uint32_t frame)
{
    struct indexed_pack *p = &x->packs[pack];
    if (frame >= p->index.frame_count)
        return;
    if (p->bad == NULL)
        p->bad = xcalloc(p->index.frame_count, sizeof *p->bad);
    p->bad[frame] = true;
}

int chunk_index_worth(const struct chunk_index *x, uint32_t pack, uint32_t frame)
{
    const struct indexed_pack *p = &x->packs[pack];
    if (!p->present)
        return 0;
    if (p->bad != NULL && p->bad[frame])
        return 1;
    return p->condemned ? 2 : 3;
}

static int place_worth(const struct chunk_index *x, struct chunk_place at)
{
    return chunk_index_worth(x, at.pack, chunk_index_chunk(x, at)->frame);
}

static struct chunk_place slot_place(uint64_t slot)
{
    return (struct chunk_place){.pack = (uint32_t)((slot - 1) >> 32), .chunk = (uint32_t)(slot - 1)};
}

static void table_put(struct chunk_index *x, struct chunk_place at)
{
    const struct chunk_hash *id = &chunk_index_chunk(x, at)->id;
    uint64_t i = id_word(id) & (x->slot_count - 1);
    for (; x->slots[i] != 0; i = (i + 1) & (x->slot_count - 1)) {
        struct chunk_place there = slot_place(x->slots[i]);
        if (!chunk_hash_equal(&chunk_index_chunk(x, there)->id, id))
            continue;
        int worth = place_worth(x, at) - place_worth(x, there);
        /* of equals the one of the lower name: two collections must choose the same one to keep */
        if (worth < 0 ||
            (worth == 0 && memcmp(&x->packs[there.pack].hash, &x->packs[at.pack].hash, CHUNK_HASH_BYTES) <= 0))
            return;
        break;
    }
    x->used += x->slots[i] == 0;
    x->slots[i] = ((uint64_t)at.pack << 32 | at.chunk) + 1;
}

void chunk_index_build(struct chunk_index *x)
{
    uint64_t chunks = 0, slots = 1024;
    for (uint32_t p = 0; p < x->pack_count; p++)
        chunks += x->packs[p].present ? x->packs[p].index.chunk_count : 0;
    while (slots * 3 / 4 < chunks)
        slots *= 2;
    free(x->slots);
    x->slots = xcalloc(slots, sizeof *x->slots);
    x->slot_count = slots;
    x->used = 0;
    for (uint32_t p = 0; p < x->pack_count; p++)
        for (uint32_t c = 0; x->packs[p].present && c < x->packs[p].index.chunk_count; c++)
            table_put(x, (struct chunk_place){p, c});
}

bool chunk_index_find(const struct chunk_index *x, const struct chunk_hash *id, struct chunk_place *ret_place)
{
    if (x->slot_count == 0)
        return false;
    for (uint64_t i = id_word(id) & (x->slot_count - 1); x->slots[i] != 0; i = (i + 1) & (x->slot_count - 1)) {
        struct chunk_place at = slot_place(x->slots[i]);
        if (chunk_hash_equal(&chunk_index_chunk(x, at)->id, id)) {
            *ret_place = at;
            return true;
        }
    }
    return false;
}

bool chunk_index_has(const struct chunk_index *x, const struct chunk_hash *id)
{
    struct chunk_place at;
    return chunk_index_find(x, id, &at) && place_worth(x, at) == 3;
}

void chunk_index_encode(const struct chunk_index *x, const bool *chosen, struct bytes_writer *out)
{
    struct chunk_hash hash;
    size_t from = out->size;
    uint32_t count = 0;
    for (uint32_t i = 0; i < x->pack_count; i++)
        count += chosen != NULL ? chosen[i] : x->packs[i].present;
    bytes_put(out, MAGIC, 8);
    bytes_put_u32(out, CHUNK_INDEX_VERSION);
    bytes_put_u32(out, count);
    for (uint32_t i = 0; i < x->pack_count; i++) {
        if (!(chosen != NULL ? chosen[i] : x->packs[i].present))
            continue;
        bytes_put(out, x->packs[i].hash.bytes, CHUNK_HASH_BYTES);
        bytes_put_u32(out, x->packs[i].raw_bytes);
        bytes_put(out, x->packs[i].raw, x->packs[i].raw_bytes);
    }
    chunk_hash_plain(out->data + from, out->size - from, &hash);
    bytes_put(out, hash.bytes, CHUNK_HASH_BYTES);
}

int chunk_index_decode(const void *data, size_t size,
                       int (*each)(void *arg, const struct chunk_hash *name, const void *raw, uint32_t raw_bytes),
                       void *arg, struct error *err)
{
    struct chunk_hash hash, name;
    if (size < 16 + CHUNK_HASH_BYTES)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "an index is cut off");
    struct bytes_reader r = bytes_reader(data, size - CHUNK_HASH_BYTES);
    if (memcmp(bytes_get(&r, 8), MAGIC, 8) != 0)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "an index does not begin as one");
    uint32_t version = bytes_get_u32(&r), count = bytes_get_u32(&r);
    if (version != CHUNK_INDEX_VERSION)
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "an index has format %u; this program knows format %d",
                         version, CHUNK_INDEX_VERSION);
    chunk_hash_plain(data, size - CHUNK_HASH_BYTES, &hash);
    if (memcmp(hash.bytes, (const uint8_t *)data + size - CHUNK_HASH_BYTES, CHUNK_HASH_BYTES) != 0)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "an index does not match its checksum");
    for (uint32_t i = 0; i < count; i++) {
        const void *id = bytes_get(&r, CHUNK_HASH_BYTES);
        uint32_t bytes = bytes_get_u32(&r);
        const void *raw = bytes_get(&r, bytes);
        if (r.bad)
            return error_set(err, -EBADMSG, ERROR_CHECKSUM, "an index ends before its last pack");
        memcpy(name.bytes, id, CHUNK_HASH_BYTES);
        int code = each(arg, &name, raw, bytes);
        if (code < 0)
            return code;
    }
    return bytes_left(&r) == 0 ? 0 : error_set(err, -EBADMSG, ERROR_CHECKSUM, "an index has more than its packs");
}

/* ---- a set ---- */

static struct chunk_hash *set_slot(const struct chunk_set *set, const struct chunk_hash *id)
{
    uint64_t i = id_word(id) & (set->slot_count - 1);
    while (!chunk_hash_is_zero(&set->slots[i]) && !chunk_hash_equal(&set->slots[i], id))
        i = (i + 1) & (set->slot_count - 1);
    return &set->slots[i];
}

bool chunk_set_add(struct chunk_set *set, const struct chunk_hash *id)
{
    if (set->used + 1 > set->slot_count * 3 / 4) {
        struct chunk_set larger = {.slot_count = MAX(set->slot_count * 2, 1024u), .used = set->used};
        larger.slots = xcalloc(larger.slot_count, sizeof *larger.slots);
        for (uint64_t i = 0; i < set->slot_count; i++)
            if (!chunk_hash_is_zero(&set->slots[i]))
                *set_slot(&larger, &set->slots[i]) = set->slots[i];
        free(set->slots);
        *set = larger;
    }
    struct chunk_hash *slot = set_slot(set, id);
    if (chunk_hash_equal(slot, id))
        return false;
    *slot = *id;
    set->used++;
    return true;
}

bool chunk_set_has(const struct chunk_set *set, const struct chunk_hash *id)
{
    return set->slot_count > 0 && chunk_hash_equal(set_slot(set, id), id);
}

void chunk_set_finish(struct chunk_set *set)
{
    free(set->slots);
    *set = (struct chunk_set){0};
}
