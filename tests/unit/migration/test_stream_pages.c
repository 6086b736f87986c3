/* Batches of pages: what was put is what arrives, compressed or not; what does not fit is refused untouched. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "migration/stream_pages.h"
#include "tests/unit/migration/array_guest.h"

enum { PAGES = 1200 };

static int collect(void *arg, const void *data, size_t size, struct error *err)
{
    (void)err;
    bytes_put(arg, data, size);
    return 0;
}

/* Every batch that @out holds, into @guest; the sum of what apply said. */
static int apply_all(const struct bytes_writer *out, struct array_guest *guest, bool fresh, struct error *err)
{
    struct guest_region regions[GUEST_REGIONS_MAX];
    size_t count = array_regions(&guest->guest, regions);
    struct stream_pages_reader *pages = stream_pages_reader_create();
    int code = 0;
    for (size_t at = 0; code == 0 && at < out->size;) {
        struct bytes_reader in = bytes_reader(out->data + at, STREAM_SECTION_HEAD_BYTES);
        struct stream_section s = {.tag = bytes_get_u16(&in)};
        bytes_get(&in, 10);
        s.size = bytes_get_u32(&in);
        uint8_t *copy = malloc(s.size);
        memcpy(copy, out->data + at + STREAM_SECTION_HEAD_BYTES, s.size);
        s.payload = copy;
        code = stream_pages_apply(pages, &s, regions, count, fresh, err);
        free(copy);
        at += STREAM_SECTION_HEAD_BYTES + s.size;
    }
    stream_pages_reader_destroy(pages);
    return code;
}

static void memory_fill(struct array_guest *g, unsigned seed)
{
    for (unsigned r = 0; r < 2; r++)
        for (size_t page = 0; page < g->sizes[r] / GUEST_PAGE_BYTES; page++) {
            uint8_t *at = g->memory[r] + page * GUEST_PAGE_BYTES;
            memset(at, 0, GUEST_PAGE_BYTES);
            if ((page + seed) % 3 != 0)
                memset(at + page % 64, (int)(page + seed), 2000);
            if (page % 7 == 0)
                at[GUEST_PAGE_BYTES - 1] = 1; /* the last byte alone makes a page of data */
        }
}

static void round_trip(bool compress)
{
    struct array_guest from, to;
    struct stream_writer out;
    struct bytes_writer bytes = {0};
    struct error err = {0};
    array_guest_init(&from, PAGES * GUEST_PAGE_BYTES, 5 * GUEST_PAGE_BYTES);
    array_guest_init(&to, PAGES * GUEST_PAGE_BYTES, 5 * GUEST_PAGE_BYTES);
    for (unsigned round = 0; round < 2; round++) {
        out = (struct stream_writer){.write = collect, .arg = &bytes};
        bytes.size = 0;
        memory_fill(&from, round);
        struct stream_pages_writer *w = stream_pages_writer_create(&out, compress);
        for (unsigned r = 0; r < 2; r++)
            for (size_t page = 0; page < from.sizes[r] / GUEST_PAGE_BYTES; page++)
                assert_int_equal(
                    stream_pages_put(w, (uint16_t)r, page, from.memory[r] + page * GUEST_PAGE_BYTES, &err), 0);
        assert_int_equal(stream_pages_put(w, 0, 3, from.memory[0] + 3 * GUEST_PAGE_BYTES, &err), 0); /* again */
        assert_int_equal(stream_pages_flush(w, &err), 0);
        struct stream_pages_counters c = stream_pages_counters(w);
        assert_int_equal(c.pages_zero + c.pages_data, PAGES + 5 + 1);
        assert_true(c.pages_zero > 200 && c.batches >= 3);
        if (compress)
            assert_true(c.payload_bytes < c.pages_data * GUEST_PAGE_BYTES / 4);
        stream_pages_writer_destroy(w);
        assert_int_equal(apply_all(&bytes, &to, round == 0, &err), 0);
        assert_true(array_guest_equal(&from, &to)); /* in round 1 also pages that became zero */
    }
    bytes_writer_finish(&bytes);
    array_guest_finish(&from);
    array_guest_finish(&to);
}

static void plain_pages_arrive(void **state)
{
    (void)state;
    round_trip(false);
}

static void compressed_pages_arrive(void **state)
{
    (void)state;
    round_trip(true);
}

struct batch {
    uint16_t region;
    uint8_t encoding;
    uint32_t runs, data_bytes;
    uint64_t first[2];
    uint32_t pages[2], kind[2];
    size_t data;
};

static int batch_apply(const struct batch *b, struct array_guest *guest)
{
    struct bytes_writer out = {0};
    struct error err = {0};
    bytes_put_u16(&out, STREAM_PAGES);
    bytes_put_u16(&out, 1);
    bytes_put_u64(&out, 0);
    bytes_put_u32(&out, (uint32_t)(12 + 16 * MIN(b->runs, 2u) + b->data));
    bytes_put_u64(&out, 0);
    bytes_put_u16(&out, b->region);
    bytes_put_u8(&out, b->encoding);
    bytes_put_u8(&out, 0);
    bytes_put_u32(&out, b->runs);
    bytes_put_u32(&out, b->data_bytes);
    for (unsigned i = 0; i < MIN(b->runs, 2u); i++) {
        bytes_put_u64(&out, b->first[i]);
        bytes_put_u32(&out, b->pages[i]);
        bytes_put_u32(&out, b->kind[i]);
    }
    for (size_t i = 0; i < b->data; i++)
        bytes_put_u8(&out, 0xee);
    int code = apply_all(&out, guest, true, &err);
    if (code < 0)
        assert_true(err.text[0] != 0);
    bytes_writer_finish(&out);
    return code;
}

static void bad_batches_are_refused_and_touch_nothing(void **state)
{
    static const struct batch refused[] = {
        {.region = 2, .runs = 1, .pages = {1}, .kind = {0}},
        {.runs = 0},
        {.runs = STREAM_RUNS_MAX + 1},
        {.encoding = 2, .runs = 1, .pages = {1}},
        {.runs = 1, .pages = {0}},
        {.runs = 1, .pages = {1}, .kind = {2}},
        {.runs = 1, .first = {4}, .pages = {1}},
        {.runs = 1, .first = {3}, .pages = {2}},
        {.runs = 1, .first = {UINT64_MAX}, .pages = {2}},
        {.runs = 1, .first = {1}, .pages = {UINT32_MAX}},
        {.runs = 2, .first = {1, 1}, .pages = {1, 1}},
        {.runs = 2, .first = {2, 1}, .pages = {1, 1}},
        {.runs = 1, .pages = {1}, .kind = {1}, .data_bytes = 4096, .data = 4095},
        {.runs = 1, .pages = {1}, .kind = {1}, .data_bytes = 4096, .data = 4097},
        {.runs = 1, .pages = {2}, .kind = {1}, .data_bytes = 4096, .data = 4096},
        {.runs = 1, .pages = {1}, .kind = {1}, .data_bytes = 8192, .data = 8192},
        {.runs = 1, .pages = {1}, .kind = {1}, .data_bytes = 1u << 30, .data = 10},
        {.encoding = 1, .runs = 1, .pages = {1}, .kind = {1}, .data_bytes = 4096, .data = 4096},
        {.runs = 2, .first = {0, 3}, .pages = {1, 2}, .kind = {1, 1}, .data_bytes = 12288, .data = 12288},
    };
    struct batch good = {.runs = 1, .pages = {1}, .kind = {1}, .data_bytes = 4096, .data = 4096};
    struct array_guest guest, clean;
    (void)state;
    array_guest_init(&guest, 4 * GUEST_PAGE_BYTES, 4 * GUEST_PAGE_BYTES);
    array_guest_init(&clean, 4 * GUEST_PAGE_BYTES, 4 * GUEST_PAGE_BYTES);
    for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
        if (batch_apply(&refused[i], &guest) != -EBADMSG)
            fail_msg("batch %zu was taken", i);
        assert_true(array_guest_equal(&guest, &clean));
    }
    assert_int_equal(batch_apply(&good, &guest), 0);
    assert_int_equal(guest.memory[0][4095], 0xee);
    array_guest_finish(&guest);
    array_guest_finish(&clean);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_pages_arrive),
        cmocka_unit_test(compressed_pages_arrive),
        cmocka_unit_test(bad_batches_are_refused_and_touch_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
