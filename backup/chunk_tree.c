/* Leaves of a disk's list of chunks: see chunk_tree.h for the format. */
#include "backup/chunk_tree.h"

#include <errno.h>
#include <string.h>

#define MAGIC "DRVL"
enum { WHOLE = 0, DIFFERENCE = 1 };
enum { ZEROES = 0, CHUNKS = 1 };

uint64_t chunk_tree_chunks(uint64_t size_bytes, uint32_t chunk_bytes)
{
    return size_bytes / chunk_bytes + (size_bytes % chunk_bytes != 0);
}

uint64_t chunk_tree_leaves(uint64_t size_bytes, uint32_t chunk_bytes)
{
    return (chunk_tree_chunks(size_bytes, chunk_bytes) + CHUNK_LEAF_SLOTS - 1) / CHUNK_LEAF_SLOTS;
}

uint32_t chunk_tree_slots(uint64_t size_bytes, uint32_t chunk_bytes, uint64_t index)
{
    uint64_t left = chunk_tree_chunks(size_bytes, chunk_bytes) - index * CHUNK_LEAF_SLOTS;
    return (uint32_t)MIN(left, (uint64_t)CHUNK_LEAF_SLOTS);
}

bool chunk_leaf_is_zero(const struct chunk_leaf *leaf)
{
    for (uint32_t i = 0; i < leaf->slots; i++)
        if (!chunk_hash_is_zero(&leaf->ids[i]))
            return false;
    return true;
}

static void encode(const struct chunk_leaf *leaf, const struct chunk_leaf *base, const struct chunk_hash *base_id,
                   struct bytes_writer *out)
{
    static const struct chunk_hash zero;
    uint32_t runs = 0;
    bytes_put(out, MAGIC, 4);
    bytes_put_u16(out, CHUNK_LEAF_VERSION);
    bytes_put_u16(out, base != NULL ? DIFFERENCE : WHOLE);
    bytes_put_u32(out, leaf->slots);
    size_t count_at = out->size;
    bytes_put_u32(out, 0);
    if (base != NULL)
        bytes_put(out, base_id->bytes, CHUNK_HASH_BYTES);
    for (uint32_t i = 0; i < leaf->slots;) {
        if (chunk_hash_equal(&leaf->ids[i], base != NULL ? &base->ids[i] : &zero)) {
            i++;
            continue;
        }
        bool zeroes = chunk_hash_is_zero(&leaf->ids[i]);
        uint32_t first = i;
        while (i < leaf->slots && chunk_hash_is_zero(&leaf->ids[i]) == zeroes &&
               !chunk_hash_equal(&leaf->ids[i], base != NULL ? &base->ids[i] : &zero))
            i++;
        bytes_put_u16(out, (uint16_t)first);
        bytes_put_u16(out, (uint16_t)(i - first));
        bytes_put_u8(out, zeroes ? ZEROES : CHUNKS);
        if (!zeroes)
            bytes_put(out, leaf->ids[first].bytes, (size_t)(i - first) * CHUNK_HASH_BYTES);
        runs++;
    }
    for (unsigned b = 0; b < 4; b++)
        out->data[count_at + b] = (uint8_t)(runs >> 8 * b);
}

void chunk_leaf_encode(const struct chunk_leaf *leaf, struct bytes_writer *out)
{
    encode(leaf, NULL, NULL, out);
}

void chunk_leaf_encode_difference(const struct chunk_leaf *leaf, const struct chunk_leaf *base,
                                  const struct chunk_hash *base_id, struct bytes_writer *out)
{
    ASSERT(leaf->slots == base->slots);
    encode(leaf, base, base_id, out);
}

static int damaged(struct error *err, const char *what)
{
    return error_set(err, -EBADMSG, ERROR_CHECKSUM, "a list of chunks is damaged: %s", what);
}

static int head_take(struct bytes_reader *r, uint16_t *ret_kind, uint32_t *ret_slots, uint32_t *ret_runs,
                     struct error *err)
{
    const void *magic = bytes_get(r, 4);
    if (magic == NULL || memcmp(magic, MAGIC, 4) != 0)
        return damaged(err, "it does not begin as one");
    uint16_t version = bytes_get_u16(r);
    if (!r->bad && version != CHUNK_LEAF_VERSION)
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                         "a list of chunks has format %u; this program knows format %d", version, CHUNK_LEAF_VERSION);
    *ret_kind = bytes_get_u16(r);
    *ret_slots = bytes_get_u32(r);
    *ret_runs = bytes_get_u32(r);
    if (r->bad || *ret_kind > DIFFERENCE)
        return damaged(err, "its head is wrong");
    return 0;
}

int chunk_leaf_base(const void *data, size_t size, struct chunk_hash *ret_base, struct error *err)
{
    uint16_t kind;
    uint32_t slots, runs;
    struct bytes_reader r = bytes_reader(data, size);
    int code = head_take(&r, &kind, &slots, &runs, err);
    if (code < 0 || kind == WHOLE)
        return code;
    const void *id = bytes_get(&r, CHUNK_HASH_BYTES);
    if (id == NULL)
        return damaged(err, "it is cut off");
    memcpy(ret_base->bytes, id, CHUNK_HASH_BYTES);
    return 1;
}

int chunk_leaf_decode(const void *data, size_t size, uint32_t slots, struct chunk_leaf *leaf, struct error *err)
{
    uint16_t kind;
    uint32_t has, runs, next = 0;
    struct bytes_reader r = bytes_reader(data, size);
    int code = head_take(&r, &kind, &has, &runs, err);
    if (code < 0)
        return code;
    if (has != slots || slots > CHUNK_LEAF_SLOTS)
        return damaged(err, "it has another number of chunks than the disk");
    if (kind == DIFFERENCE)
        bytes_get(&r, CHUNK_HASH_BYTES);
    if (kind == DIFFERENCE && leaf->slots != slots)
        return damaged(err, "it is a difference from a list of another length");
    if (kind == WHOLE)
        memset(leaf->ids, 0, sizeof leaf->ids);
    leaf->slots = slots;
    for (uint32_t i = 0; i < runs; i++) {
        uint32_t first = bytes_get_u16(&r), count = bytes_get_u16(&r);
        uint8_t what = bytes_get_u8(&r);
        if (r.bad || what > CHUNKS || first < next || count == 0 || count > slots - first || first > slots)
            return damaged(err, "a run is out of bounds");
        const void *ids = what == CHUNKS ? bytes_get(&r, (size_t)count * CHUNK_HASH_BYTES) : NULL;
        if (r.bad)
            return damaged(err, "it is cut off");
        if (what == CHUNKS)
            memcpy(&leaf->ids[first], ids, (size_t)count * CHUNK_HASH_BYTES);
        else
            memset(&leaf->ids[first], 0, (size_t)count * CHUNK_HASH_BYTES);
        next = first + count;
    }
    return bytes_left(&r) == 0 ? 0 : damaged(err, "there is more behind it");
}
