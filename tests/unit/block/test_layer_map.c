/* The durable form of a layer's header and map: golden bytes, every byte changed, tears, newer versions, growth.
 *
 *     test_layer_map --write-golden      writes schema/golden/layer-1.bin: once for each version of the format */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "block/layer_map.h"
#include "common/bytes.h"
#include "common/file.h"

#define GOLDEN "schema/golden/layer-1.bin"
enum { PAIR = 2 * LAYER_BLOCK_BYTES, CLUSTERS = 20, SIZE = CLUSTERS * LAYER_CLUSTER_BYTES - 512 };

static const struct layer_header header = {
    .id = {{0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f}},
    .flags = LAYER_SEALED,
    .parent_kind = LAYER_PARENT_RAW,
    .parent_name = "debian.img",
    .size_bytes = SIZE,
    .generation = 3,
    .sequence = 5,
    .epoch = 9,
};

static void states_set(struct layer_map *map)
{
    assert_int_equal(layer_map_init(map, SIZE), 0);
    layer_map_set(map, 0, LAYER_DATA);
    layer_map_set(map, 5, LAYER_ZERO);
    layer_map_set(map, CLUSTERS - 1, LAYER_DATA);
}

/* A map file, exactly as large as it is; the caller frees. */
static uint8_t *file_make(void)
{
    struct layer_map map;
    uint8_t *file = xcalloc(2, PAIR);
    states_set(&map);
    assert_int_equal(layer_map_file_bytes(SIZE), 2 * PAIR);
    layer_header_encode(&header, file + layer_header_offset(header.sequence));
    map.sequence[0] = 7;
    layer_block_encode(&map, &header, 0, file + layer_block_offset(0, 8));
    layer_map_finish(&map);
    return file;
}

static int file_load(const uint8_t *file, struct layer_header *ret_header, struct layer_map *map)
{
    int code = layer_header_decode(file, ret_header, NULL);
    if (code == 0) {
        assert_int_equal(layer_map_init(map, ret_header->size_bytes), 0);
        code = layer_block_decode(map, ret_header, 0, file + PAIR, NULL);
    }
    return code;
}

static void golden_bytes_are_read_and_written(void **state UNUSED)
{
    CLEANUP_FREE char *golden = NULL;
    CLEANUP_FREE uint8_t *file = file_make();
    struct layer_header h;
    struct layer_map map;
    size_t size;
    assert_int_equal(file_read(GOLDEN, 65536, &golden, &size, NULL), 0);
    assert_int_equal(size, 2 * PAIR);
    assert_memory_equal(golden, file, size);
    assert_int_equal(file_load((const uint8_t *)golden, &h, &map), 0);
    assert_true(layer_id_equal(&h.id, &header.id));
    assert_string_equal(h.parent_name, "debian.img");
    assert_true(h.flags == LAYER_SEALED && h.parent_kind == LAYER_PARENT_RAW && h.size_bytes == SIZE &&
                h.generation == 3 && h.sequence == 5 && h.epoch == 9);
    for (unsigned i = 0; i < CLUSTERS; i++)
        assert_int_equal(layer_map_get(&map, i), i == 0 || i == CLUSTERS - 1 ? LAYER_DATA
                                                 : i == 5                    ? LAYER_ZERO
                                                                             : LAYER_ABSENT);
    assert_int_equal(map.sequence[0], 8);
    assert_int_equal(map.dirty_count, 0);
    layer_map_finish(&map);
}

/* A layer that was closed has no tears: whatever is changed in it is found. */
static void every_changed_byte_is_found(void **state UNUSED)
{
    CLEANUP_FREE uint8_t *file = file_make();
    for (size_t at = 0; at < 2 * PAIR; at++) {
        struct layer_header h;
        struct layer_map map = {.clusters = 0};
        file[at] ^= 0x40;
        int code = file_load(file, &h, &map);
        bool unused_header_slot = at < LAYER_BLOCK_BYTES; /* may be a tear of the header's next version */
        assert_int_equal(code, unused_header_slot ? 0 : -EBADMSG);
        layer_map_finish(&map);
        file[at] ^= 0x40;
    }
}

/* In one that was open, a damaged slot is a write that was cut off: the other one counts, and it is mended. */
static void a_torn_write_leaves_the_other_slot(void **state UNUSED)
{
    struct layer_header open = header;
    struct layer_map map, again;
    uint8_t slots[PAIR] = {0};
    open.flags = LAYER_OPEN;
    states_set(&map);
    layer_block_encode(&map, &open, 0, slots + LAYER_BLOCK_BYTES); /* sequence 1 */
    map.sequence[0] = 1;
    layer_map_set(&map, 7, LAYER_DATA);
    layer_block_encode(&map, &open, 0, slots);
    assert_int_equal(layer_map_init(&again, SIZE), 0);
    assert_int_equal(layer_block_decode(&again, &open, 0, slots, NULL), 0);
    assert_int_equal(layer_map_get(&again, 7), LAYER_DATA);
    assert_int_equal(again.dirty_count, 0);
    layer_map_finish(&again);
    memset(slots + 512, 0x5a, 512);
    assert_int_equal(layer_map_init(&again, SIZE), 0);
    assert_int_equal(layer_block_decode(&again, &open, 0, slots, NULL), 0);
    assert_int_equal(layer_map_get(&again, 7), LAYER_ABSENT);
    assert_int_equal(layer_map_get(&again, 0), LAYER_DATA);
    assert_true(again.sequence[0] == 1 && again.dirty[0]);
    layer_map_finish(&again);
    layer_map_finish(&map);
}

static void refused_with_words(void **state UNUSED)
{
    struct layer_header h, odd = header;
    struct error err;
    uint8_t slots[PAIR] = {0};
    assert_int_equal(layer_header_decode(slots, &h, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "no layer"));
    odd.flags = 1 << 7; /* something that a later version means something by */
    layer_header_encode(&odd, slots + LAYER_BLOCK_BYTES);
    assert_int_equal(layer_header_decode(slots, &h, &err), -ENOTSUP);
    odd = header;
    odd.size_bytes = 1000;
    layer_header_encode(&odd, slots + LAYER_BLOCK_BYTES);
    assert_int_equal(layer_header_decode(slots, &h, &err), -EBADMSG);
    odd = header;
    strcpy(odd.parent_name, "../secret");
    layer_header_encode(&odd, slots + LAYER_BLOCK_BYTES);
    assert_int_equal(layer_header_decode(slots, &h, &err), -EBADMSG);
}

/* What an older program takes for a newer version, and refuses: what is absent of it is not zero. */
static void a_disk_that_is_not_whole_says_so(void **state UNUSED)
{
    struct layer_header h, part = header;
    struct error err;
    uint8_t slots[PAIR] = {0};
    part.parent_kind = LAYER_PARENT_SOURCE;
    part.source_bytes = SIZE - 512;
    layer_header_encode(&part, slots + LAYER_BLOCK_BYTES);
    assert_int_equal(slots[LAYER_BLOCK_BYTES + 84], 3); /* the kind: versions before knew 0 to 2 */
    assert_int_equal(layer_header_decode(slots, &h, &err), 0);
    assert_true(h.parent_kind == LAYER_PARENT_SOURCE && h.source_bytes == SIZE - 512);
    assert_string_equal(h.parent_name, "debian.img");
    const uint64_t wrong[] = {0, SIZE + 512, 1000};
    for (unsigned i = 0; i < ARRAY_SIZE(wrong); i++) {
        part.source_bytes = wrong[i];
        layer_header_encode(&part, slots + LAYER_BLOCK_BYTES);
        assert_int_equal(layer_header_decode(slots, &h, &err), -EBADMSG);
    }
    part = header;
    part.source_bytes = 512; /* of nothing */
    layer_header_encode(&part, slots + LAYER_BLOCK_BYTES);
    assert_int_equal(layer_header_decode(slots, &h, &err), -EBADMSG);
}

static void ids_are_text_and_back(void **state UNUSED)
{
    char text[LAYER_ID_TEXT_BYTES];
    struct layer_id id;
    assert_string_equal(layer_id_text(&header.id, text), "101112131415161718191a1b1c1d1e1f");
    assert_int_equal(layer_id_parse(text, &id), 0);
    assert_true(layer_id_equal(&id, &header.id));
    text[3] = 'G';
    assert_int_equal(layer_id_parse(text, &id), -EINVAL);
    text[3] = '\0';
    assert_int_equal(layer_id_parse(text, &id), -EINVAL);
}

static void maps_grow_and_are_searched(void **state UNUSED)
{
    struct layer_map map;
    uint64_t far = 3 * LAYER_BLOCK_CLUSTERS + 77;
    states_set(&map);
    assert_int_equal(layer_map_next(&map, 0), 0);
    assert_int_equal(layer_map_next(&map, 1), 5);
    assert_int_equal(layer_map_next(&map, 6), CLUSTERS - 1);
    assert_int_equal(layer_map_next(&map, CLUSTERS), CLUSTERS);
    assert_int_equal(layer_map_grow(&map, (far + 3) * LAYER_CLUSTER_BYTES), 0);
    assert_int_equal(layer_map_get(&map, 5), LAYER_ZERO);
    layer_map_set(&map, far, LAYER_ZERO);
    assert_int_equal(layer_map_next(&map, CLUSTERS), far);
    assert_int_equal(layer_map_next(&map, far + 1), far + 3);
    assert_true(map.dirty_count == 2 && map.dirty[0] && map.dirty[3]);
    layer_map_finish(&map);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_bytes_are_read_and_written),
        cmocka_unit_test(every_changed_byte_is_found),
        cmocka_unit_test(a_torn_write_leaves_the_other_slot),
        cmocka_unit_test(refused_with_words),
        cmocka_unit_test(a_disk_that_is_not_whole_says_so),
        cmocka_unit_test(ids_are_text_and_back),
        cmocka_unit_test(maps_grow_and_are_searched),
    };
    if (argc > 1 && strcmp(argv[1], "--write-golden") == 0) {
        CLEANUP_FREE uint8_t *file = file_make();
        return file_write_atomic(GOLDEN, file, 2 * PAIR, 0644, NULL) == 0 ? 0 : 1;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
