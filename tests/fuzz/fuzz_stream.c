/* Any bytes as a machine's stream: refused in words, or read to its end; pages land inside memory. The first byte
 * says in which steps the rest is fed. So that the fuzzer gets past the checksums, they are put right first where a
 * second byte is odd. */
#include <string.h>

#include "migration/stream_pages.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void put_u32(uint8_t *at, uint32_t v)
{
    for (unsigned i = 0; i < 4; i++)
        at[i] = (uint8_t)(v >> (8 * i));
}

static void checksums_mend(uint8_t *data, size_t size)
{
    if (size < STREAM_PROLOGUE_BYTES)
        return;
    memcpy(data, STREAM_MAGIC, 8);
    put_u32(data + 12, bytes_crc32c(0, data, 12));
    uint32_t number = 0;
    for (size_t at = STREAM_PROLOGUE_BYTES; at + STREAM_SECTION_HEAD_BYTES <= size;) {
        uint8_t *head = data + at;
        size_t left = size - at - STREAM_SECTION_HEAD_BYTES;
        size_t payload = MIN((size_t)head[12] | (size_t)head[13] << 8, left);
        put_u32(head + 8, number++);
        put_u32(head + 12, (uint32_t)payload);
        put_u32(head + 16, bytes_crc32c(0, head + STREAM_SECTION_HEAD_BYTES, payload));
        put_u32(head + 20, bytes_crc32c(0, head, 20));
        at += STREAM_SECTION_HEAD_BYTES + payload;
    }
}

static void section_use(const struct stream_section *s, struct stream_states *states,
                        struct stream_pages_reader *pages, const struct guest_region *regions)
{
    struct machine_description d = {0};
    struct error err = {0};
    int code = 0;
    if (s->tag == STREAM_HEADER && (code = stream_header_decode(s, &d, &err)) == 0)
        OBJECT_CLEAR(machine_description, &d);
    else if (s->tag == STREAM_STATE)
        code = stream_states_add(states, s, &err);
    else if (s->tag == STREAM_PAGES)
        code = stream_pages_apply(pages, s, regions, 2, false, &err);
    ASSERT(code == 0 || err.text[0] != '\0');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t memory[2][8 * GUEST_PAGE_BYTES];
    const struct guest_region regions[2] = {{.size = sizeof(memory[0]), .host = memory[0]},
                                            {.gpa = 1ull << 32, .size = sizeof(memory[1]), .host = memory[1]}};
    if (size < 2)
        return 0;
    size_t step = data[0] ? data[0] : 1, length = size - 2;
    CLEANUP_FREE uint8_t *bytes = xcalloc(1, MAX(length, 1));
    memcpy(bytes, data + 2, length);
    if (data[1] & 1)
        checksums_mend(bytes, length);
    struct stream_reader reader;
    struct stream_section s;
    struct stream_states states = {0};
    struct stream_pages_reader *pages = stream_pages_reader_create();
    struct error err = {0};
    stream_reader_init(&reader);
    int code = 0;
    for (size_t at = 0; code >= 0;) {
        code = stream_next(&reader, &s, &err);
        if (code > 0)
            section_use(&s, &states, pages, regions);
        if (code != 0)
            continue;
        size_t n = MIN(step, length - at);
        if (n == 0)
            break;
        stream_feed(&reader, bytes + at, n);
        at += n;
    }
    ASSERT(code >= 0 || err.text[0] != '\0');
    stream_pages_reader_destroy(pages);
    stream_states_finish(&states);
    stream_reader_finish(&reader);
    return 0;
}
