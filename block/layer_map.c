/* The map of a layer: see layer_map.h. */
#include "block/layer_map.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "block/block.h"
#include "common/bytes.h"

enum {
    STATES_OFFSET = 32,
    STATES_BYTES = LAYER_BLOCK_CLUSTERS / 4,
    CRC_OFFSET = LAYER_BLOCK_BYTES - 4,
    NAME_OFFSET = 88,
    SOURCE_OFFSET = NAME_OFFSET + LAYER_NAME_BYTES,
    SLOTS = 2,
};
STATIC_ASSERT(STATES_OFFSET + STATES_BYTES <= CRC_OFFSET, "states fit their block");

static const char header_magic[8] = {'D', 'R', 'V', 'L', 'A', 'Y', 'E', 'R'};
static const char block_magic[4] = {'D', 'R', 'V', 'M'};

/* ---- identities and places ---- */

bool layer_id_equal(const struct layer_id *a, const struct layer_id *b)
{
    return memcmp(a->bytes, b->bytes, LAYER_ID_BYTES) == 0;
}

const char *layer_id_text(const struct layer_id *id, char *ret_text)
{
    for (unsigned i = 0; i < LAYER_ID_BYTES; i++)
        snprintf(ret_text + 2 * i, 3, "%02x", id->bytes[i]);
    return ret_text;
}

int layer_id_parse(const char *text, struct layer_id *ret_id)
{
    static const char digits[] = "0123456789abcdef";
    struct layer_id id = {{0}};
    if (strlen(text) != 2 * LAYER_ID_BYTES)
        return -EINVAL;
    for (unsigned i = 0; i < 2 * LAYER_ID_BYTES; i++) {
        const char *digit = strchr(digits, text[i]);
        if (digit == NULL)
            return -EINVAL;
        id.bytes[i / 2] = (uint8_t)(id.bytes[i / 2] << 4 | (digit - digits));
    }
    *ret_id = id;
    return 0;
}

uint64_t layer_clusters(uint64_t size_bytes)
{
    return size_bytes / LAYER_CLUSTER_BYTES + (size_bytes % LAYER_CLUSTER_BYTES != 0);
}

static uint32_t blocks_of(uint64_t clusters)
{
    return (uint32_t)((clusters + LAYER_BLOCK_CLUSTERS - 1) / LAYER_BLOCK_CLUSTERS);
}

uint64_t layer_map_file_bytes(uint64_t size_bytes)
{
    return (1 + (uint64_t)blocks_of(layer_clusters(size_bytes))) * SLOTS * LAYER_BLOCK_BYTES;
}

uint64_t layer_header_offset(uint64_t sequence)
{
    return sequence % SLOTS * LAYER_BLOCK_BYTES;
}

uint64_t layer_block_offset(uint32_t index, uint64_t sequence)
{
    return ((1 + (uint64_t)index) * SLOTS + sequence % SLOTS) * LAYER_BLOCK_BYTES;
}

/* ---- the header ---- */

static void crc_put(uint8_t *block)
{
    uint32_t crc = bytes_crc32c(0, block, CRC_OFFSET);
    for (unsigned i = 0; i < 4; i++)
        block[CRC_OFFSET + i] = (uint8_t)(crc >> (8 * i));
}

static bool crc_fits(const uint8_t *block)
{
    struct bytes_reader r = bytes_reader(block + CRC_OFFSET, 4);
    return bytes_get_u32(&r) == bytes_crc32c(0, block, CRC_OFFSET);
}

void layer_header_encode(const struct layer_header *header, uint8_t *ret_block)
{
    struct bytes_writer w = {.data = NULL};
    bytes_put(&w, header_magic, sizeof header_magic);
    bytes_put_u32(&w, LAYER_VERSION);
    bytes_put_u32(&w, header->flags);
    bytes_put(&w, header->id.bytes, LAYER_ID_BYTES);
    bytes_put(&w, header->parent.bytes, LAYER_ID_BYTES);
    bytes_put_u64(&w, header->size_bytes);
    bytes_put_u64(&w, header->generation);
    bytes_put_u64(&w, header->sequence);
    bytes_put_u64(&w, header->epoch);
    bytes_put_u32(&w, LAYER_CLUSTER_BYTES);
    bytes_put_u32(&w, header->parent_kind);
    ASSERT(w.size == NAME_OFFSET);
    memset(ret_block, 0, LAYER_BLOCK_BYTES);
    memcpy(ret_block, w.data, w.size);
    snprintf((char *)ret_block + NAME_OFFSET, LAYER_NAME_BYTES, "%s", header->parent_name);
    for (unsigned i = 0; i < 8; i++)
        ret_block[SOURCE_OFFSET + i] = (uint8_t)(header->source_bytes >> (8 * i));
    crc_put(ret_block);
    bytes_writer_finish(&w);
}

/* Whether @block is whole; then its version is what rules. */
static bool header_is_whole(const uint8_t *block)
{
    return memcmp(block, header_magic, sizeof header_magic) == 0 && crc_fits(block);
}

static int header_read(const uint8_t *block, struct layer_header *h, struct error *err)
{
    struct bytes_reader r = bytes_reader(block + sizeof header_magic, CRC_OFFSET - sizeof header_magic);
    uint32_t version = bytes_get_u32(&r);
    *h = (struct layer_header){.flags = bytes_get_u32(&r)};
    memcpy(h->id.bytes, bytes_get(&r, LAYER_ID_BYTES), LAYER_ID_BYTES);
    memcpy(h->parent.bytes, bytes_get(&r, LAYER_ID_BYTES), LAYER_ID_BYTES);
    h->size_bytes = bytes_get_u64(&r);
    h->generation = bytes_get_u64(&r);
    h->sequence = bytes_get_u64(&r);
    h->epoch = bytes_get_u64(&r);
    uint32_t cluster_bytes = bytes_get_u32(&r), kind = bytes_get_u32(&r);
    const char *name = bytes_get(&r, LAYER_NAME_BYTES);
    h->source_bytes = bytes_get_u64(&r);
    if (version != LAYER_VERSION || (h->flags & ~(uint32_t)LAYER_FLAGS) != 0 || cluster_bytes != LAYER_CLUSTER_BYTES ||
        kind >= LAYER_PARENTS)
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                         "the layer's header is of version %u with flags 0x%x; this program knows version %d: use a "
                         "newer one",
                         version, h->flags, LAYER_VERSION);
    h->parent_kind = (enum layer_parent)kind;
    bool named = kind == LAYER_PARENT_RAW || kind == LAYER_PARENT_SOURCE;
    if (name[LAYER_NAME_BYTES - 1] != '\0' || (name[0] != '\0') != named || strchr(name, '/') != NULL || name[0] == '.' ||
        h->size_bytes == 0 || h->size_bytes % BLOCK_SECTOR_BYTES != 0 || h->size_bytes > LAYER_SIZE_MAX ||
        (h->source_bytes != 0) != (kind == LAYER_PARENT_SOURCE) || h->source_bytes % BLOCK_SECTOR_BYTES != 0 ||
        h->source_bytes > h->size_bytes)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the layer's header has values that cannot be");
    memcpy(h->parent_name, name, LAYER_NAME_BYTES);
    return 0;
}

static uint64_t header_sequence(const uint8_t *block)
{
    struct bytes_reader r = bytes_reader(block + 64, 8);
    return bytes_get_u64(&r);
}

static bool is_empty(const uint8_t *block)
{
    static const uint8_t zeroes[LAYER_BLOCK_BYTES];
    return memcmp(block, zeroes, LAYER_BLOCK_BYTES) == 0;
}

int layer_header_decode(const uint8_t *slots, struct layer_header *ret_header, struct error *err)
{
    const uint8_t *best = NULL;
    struct layer_header header;
    bool damaged = false;
    for (unsigned i = 0; i < SLOTS; i++) {
        const uint8_t *slot = slots + (size_t)i * LAYER_BLOCK_BYTES;
        if (!header_is_whole(slot))
            damaged = damaged || !is_empty(slot);
        else if (header_sequence(slot) % SLOTS == i && (best == NULL || header_sequence(slot) > header_sequence(best)))
            best = slot;
    }
    if (best == NULL)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, damaged ? "the layer's header is damaged"
                                                                : "this is no layer's map");
    int code = header_read(best, &header, err);
    if (code < 0)
        return code;
    *ret_header = header;
    return 0;
}

/* ---- states ---- */

int layer_map_init(struct layer_map *map, uint64_t size_bytes)
{
    *map = (struct layer_map){.clusters = 0};
    return layer_map_grow(map, size_bytes);
}

void layer_map_finish(struct layer_map *map)
{
    free(map->bits);
    free(map->sequence);
    free(map->dirty);
    *map = (struct layer_map){.clusters = 0};
}

int layer_map_grow(struct layer_map *map, uint64_t size_bytes)
{
    struct layer_map larger = *map;
    larger.clusters = layer_clusters(size_bytes);
    larger.blocks = blocks_of(larger.clusters);
    ASSERT(larger.clusters >= map->clusters);
    if (larger.blocks > map->blocks) {
        /* calloc: a large map's absent parts take no memory */
        larger.bits = calloc(larger.blocks, STATES_BYTES);
        larger.sequence = calloc(larger.blocks, sizeof *larger.sequence);
        larger.dirty = calloc(larger.blocks, sizeof *larger.dirty);
        if (larger.bits == NULL || larger.sequence == NULL || larger.dirty == NULL) {
            free(larger.bits);
            free(larger.sequence);
            free(larger.dirty);
            return -ENOMEM;
        }
        if (map->blocks > 0) {
            memcpy(larger.bits, map->bits, (size_t)map->blocks * STATES_BYTES);
            memcpy(larger.sequence, map->sequence, map->blocks * sizeof *map->sequence);
            memcpy(larger.dirty, map->dirty, map->blocks * sizeof *map->dirty);
        }
        layer_map_finish(map);
    }
    *map = larger;
    return 0;
}

void layer_map_mark_dirty(struct layer_map *map, uint32_t block, bool dirty)
{
    if (map->dirty[block] == dirty)
        return;
    map->dirty[block] = dirty;
    map->dirty_count += dirty ? 1 : -1u;
}

void layer_map_set(struct layer_map *map, uint64_t cluster, enum layer_state state)
{
    uint8_t *byte = &map->bits[cluster / 4];
    unsigned shift = cluster % 4 * 2;
    if ((*byte >> shift & 3) == (unsigned)state)
        return;
    *byte = (uint8_t)((*byte & ~(3u << shift)) | (unsigned)state << shift);
    layer_map_mark_dirty(map, (uint32_t)(cluster / LAYER_BLOCK_CLUSTERS), true);
}

uint64_t layer_map_next(const struct layer_map *map, uint64_t from)
{
    uint64_t word;
    while (from < map->clusters) {
        if (from % 32 == 0 && from / 4 + sizeof word <= (uint64_t)map->blocks * STATES_BYTES) {
            memcpy(&word, map->bits + from / 4, sizeof word);
            if (word == 0) { /* 32 absent ones in one go */
                from += 32;
                continue;
            }
        }
        if (layer_map_get(map, from) != LAYER_ABSENT)
            return from;
        from++;
    }
    return map->clusters;
}

void layer_block_encode(const struct layer_map *map, const struct layer_header *header, uint32_t index,
                        uint8_t *ret_block)
{
    struct bytes_writer w = {.data = NULL};
    bytes_put(&w, block_magic, sizeof block_magic);
    bytes_put_u32(&w, index);
    bytes_put_u64(&w, map->sequence[index] + 1);
    bytes_put(&w, header->id.bytes, LAYER_ID_BYTES);
    ASSERT(w.size == STATES_OFFSET);
    bytes_put(&w, map->bits + (size_t)index * STATES_BYTES, STATES_BYTES);
    memset(ret_block, 0, LAYER_BLOCK_BYTES);
    memcpy(ret_block, w.data, w.size);
    crc_put(ret_block);
    bytes_writer_finish(&w);
}

/* The sequence of a whole slot, which is never 0; 0: empty or of no use, and then whether that is @damaged. */
static uint64_t slot_sequence(const uint8_t *slot, unsigned number, const struct layer_header *header, uint32_t index,
                              bool *damaged)
{
    struct bytes_reader r = bytes_reader(slot + sizeof block_magic, STATES_OFFSET - sizeof block_magic);
    uint32_t its_index = bytes_get_u32(&r);
    uint64_t sequence = bytes_get_u64(&r);
    if (is_empty(slot))
        return 0;
    if (memcmp(slot, block_magic, sizeof block_magic) == 0 && crc_fits(slot) && its_index == index &&
        memcmp(bytes_get(&r, LAYER_ID_BYTES), header->id.bytes, LAYER_ID_BYTES) == 0 && sequence % SLOTS == number)
        return sequence;
    *damaged = true;
    return 0;
}

/* A state of 3, or one behind the end of the disk, was never written by us. */
static bool states_are_sound(const struct layer_map *map, uint32_t index, const uint8_t *states)
{
    uint64_t first = (uint64_t)index * LAYER_BLOCK_CLUSTERS;
    for (unsigned i = 0; i < LAYER_BLOCK_CLUSTERS; i++) {
        unsigned state = states[i / 4] >> (i % 4 * 2) & 3;
        if (state == 3 || (state != LAYER_ABSENT && first + i >= map->clusters))
            return false;
    }
    return true;
}

int layer_block_decode(struct layer_map *map, const struct layer_header *header, uint32_t index, const uint8_t *slots,
                       struct error *err)
{
    uint64_t best = 0;
    bool damaged = false;
    for (unsigned i = 0; i < SLOTS; i++) {
        uint64_t sequence = slot_sequence(slots + (size_t)i * LAYER_BLOCK_BYTES, i, header, index, &damaged);
        best = MAX(best, sequence);
    }
    if (damaged && !(header->flags & LAYER_OPEN))
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "block %u of the layer's map is damaged", index);
    if (damaged) /* the tear is mended by the next flush, which goes to that slot */
        layer_map_mark_dirty(map, index, true);
    if (best == 0)
        return 0;
    const uint8_t *states = slots + layer_header_offset(best) + STATES_OFFSET;
    if (!states_are_sound(map, index, states))
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "block %u of the layer's map has states that cannot be", index);
    memcpy(map->bits + (size_t)index * STATES_BYTES, states, STATES_BYTES);
    map->sequence[index] = best;
    return 0;
}
