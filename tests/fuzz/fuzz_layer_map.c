/* Whatever bytes a layer's header and map hold: they are read within their bounds, what is taken from them is sound, and
 * what is written from it reads back the same. */
#include <string.h>

#include "block/layer_map.h"
#include "common/bytes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { PAIR = 2 * LAYER_BLOCK_BYTES, MAP_BYTES_MAX = 1 << 22 };

/* So that the fuzzer gets behind the checksums. */
static void sums_mend(uint8_t *slots, size_t size)
{
    for (size_t at = 0; at + LAYER_BLOCK_BYTES <= size; at += LAYER_BLOCK_BYTES) {
        uint32_t crc = bytes_crc32c(0, slots + at, LAYER_BLOCK_BYTES - 4);
        memcpy(slots + at + LAYER_BLOCK_BYTES - 4, &crc, 4);
    }
}

static void map_read(const struct layer_header *h, const uint8_t *slots)
{
    struct layer_map map;
    uint8_t block[LAYER_BLOCK_BYTES];
    if (layer_map_file_bytes(h->size_bytes) > MAP_BYTES_MAX || layer_map_init(&map, h->size_bytes) < 0)
        return;
    if (layer_block_decode(&map, h, 0, slots, NULL) == 0) {
        uint64_t seen = 0;
        for (uint64_t c = layer_map_next(&map, 0); c < map.clusters; c = layer_map_next(&map, c + 1), seen++)
            ASSERT(layer_map_get(&map, c) == LAYER_DATA || layer_map_get(&map, c) == LAYER_ZERO);
        ASSERT(seen <= LAYER_BLOCK_CLUSTERS);
        layer_block_encode(&map, h, 0, block);
    }
    layer_map_finish(&map);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct layer_header h, again;
    uint8_t slots[2 * PAIR] = {0}, written[PAIR] = {0};
    if (size == 0)
        return 0;
    memcpy(slots, data + 1, MIN(size - 1, sizeof slots));
    if (data[0] & 1)
        sums_mend(slots, sizeof slots);
    if (layer_header_decode(slots, &h, NULL) < 0)
        return 0;
    layer_header_encode(&h, written + layer_header_offset(h.sequence));
    ASSERT(layer_header_decode(written, &again, NULL) == 0);
    ASSERT(again.size_bytes == h.size_bytes && again.sequence == h.sequence && layer_id_equal(&again.id, &h.id));
    map_read(&h, slots + PAIR);
    return 0;
}
