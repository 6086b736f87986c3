/* Any bytes as the source of a migration: refused in words, or taken in its order; pages and checksums stay inside this
 * guest's memory. The first byte says in which steps the rest is fed and whether it is channel 0; with a second byte that
 * is odd the checksums are put right first, so that the fuzzer gets past them; with its next bit channels may resume. The same bytes are a reply, too. */
#include <string.h>

#include "migration/migrate_intake.h"

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

static void reply_try(const uint8_t *data, size_t size)
{
    struct migrate_reply reply;
    struct error err = {0};
    if (migrate_reply_decode(data, size, &reply, &err) < 0)
        ASSERT(err.text[0] != '\0');
    else
        ASSERT(reply.kind > 0 && reply.kind < MIGRATE_REPLY_END && strlen(reply.text) <= MIGRATE_TEXT_BYTES_MAX);
}

/* A post-copy's page: where it belongs, as a target does it (without waiting for anybody). */
static int page_place(void *arg, size_t region, uint64_t page, uint64_t pages, const uint8_t *data, struct error *err)
{
    const struct migrate_intake *in = arg;
    (void)err;
    ASSERT(region < in->region_count && page + pages <= in->regions[region].size / GUEST_PAGE_BYTES);
    for (uint64_t i = 0; in->lack[region] && i < pages; i++)
        if (in->lack[region][(page + i) / 64] >> ((page + i) % 64) & 1 && data)
            memcpy(in->regions[region].host + (page + i) * GUEST_PAGE_BYTES, data + i * GUEST_PAGE_BYTES,
                   GUEST_PAGE_BYTES);
    return 0;
}

static int section_use(struct migrate_intake *in, struct intake_channel *c, bool is_first,
                       const struct stream_section *section)
{
    struct error err = {0};
    int event = intake_section(in, c, is_first, section, &err);
    ASSERT(event >= 0 || err.text[0] != '\0');
    if (event == INTAKE_CHECK)
        intake_accept(in, c);
    if (event == INTAKE_FINAL)
        (void)intake_verify(in, NULL);
    if (event == INTAKE_FINAL && in->postcopy) {
        in->place_arg = in;
        in->place = page_place;
    }
    return event == INTAKE_CANCEL || event == INTAKE_END ? -1 : event;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t memory[2][8 * GUEST_PAGE_BYTES];
    const struct guest_region regions[2] = {{.size = sizeof(memory[0]), .host = memory[0]},
                                            {.gpa = 1ull << 32, .size = sizeof(memory[1]), .host = memory[1]}};
    if (size < 2)
        return 0;
    size_t step = MAX(data[0] >> 1, 1), length = size - 2;
    bool is_first = data[0] & 1;
    reply_try(data + 2, length);
    CLEANUP_FREE uint8_t *bytes = xcalloc(1, MAX(length, 1));
    memcpy(bytes, data + 2, length);
    if (data[1] & 1)
        checksums_mend(bytes, length);
    struct migrate_intake in;
    struct intake_channel channel;
    struct stream_reader reader;
    struct stream_section section;
    intake_init(&in, regions, 2);
    if (!is_first) {
        in.is_open = true; /* joins one that is there */
        in.channels = 4;
        in.joined = 1;
        in.postcopy = data[1] & 2; /* and to one that has lost its connections */
        in.place = in.postcopy ? page_place : NULL;
        in.place_arg = &in;
    }
    intake_channel_init(&channel);
    stream_reader_init(&reader);
    int code = 0;
    for (size_t at = 0; code >= 0;) {
        code = stream_next(&reader, &section, NULL);
        if (code > 0)
            code = section_use(&in, &channel, is_first, &section) < 0 ? -1 : 1;
        if (code != 0)
            continue;
        size_t n = MIN(step, length - at);
        if (n == 0)
            break;
        stream_feed(&reader, bytes + at, n);
        at += n;
    }
    stream_reader_finish(&reader);
    intake_channel_finish(&channel);
    intake_finish(&in);
    return 0;
}
