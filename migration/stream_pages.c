/* Batches of pages: see stream_pages.h. Compression is zstd level 1: its speed is that of a fast disk or network, and
 * higher levels gain little on memory. */
#include "migration/stream_pages.h"

#include <errno.h>
#include <string.h>
#include <time.h>
#include <zstd.h>

enum { ENCODING_PLAIN, ENCODING_ZSTD, RUN_ZERO = 0, RUN_DATA = 1, RUN_BYTES = 16, LEVEL = 1 };

struct run {
    uint64_t first;
    uint32_t pages, kind;
};

bool stream_page_is_zero(const void *page)
{
    const uint64_t *words = page;
    /* In strides, so that a compiler makes vectors of it and a page with data is seen early. */
    for (unsigned i = 0; i < GUEST_PAGE_BYTES / 8; i += 16) {
        uint64_t any = 0;
        for (unsigned j = 0; j < 16; j++)
            any |= words[i + j];
        if (any)
            return false;
    }
    return true;
}

/* ---- writing ---- */

struct stream_pages_writer {
    struct stream_writer *out;
    ZSTD_CCtx *zstd; /* NULL: plain */
    struct compress_choice *choice; /* NULL: always, where there is zstd */
    uint16_t region;
    unsigned run_count;
    size_t data_bytes;
    struct stream_pages_counters counters;
    struct run runs[STREAM_RUNS_MAX];
    uint8_t data[STREAM_BATCH_BYTES];
};

struct stream_pages_writer *stream_pages_writer_create(struct stream_writer *out, bool compress)
{
    struct stream_pages_writer *w = NEW(struct stream_pages_writer);
    w->out = out;
    w->zstd = compress ? ZSTD_createCCtx() : NULL;
    ASSERT(!compress || w->zstd);
    return w;
}

struct stream_pages_writer *stream_pages_writer_create_choosing(struct stream_writer *out,
                                                                struct compress_choice *choice)
{
    struct stream_pages_writer *w = stream_pages_writer_create(out, true);
    w->choice = choice;
    return w;
}

void stream_pages_writer_destroy(struct stream_pages_writer *w)
{
    if (!w)
        return;
    ZSTD_freeCCtx(w->zstd);
    free(w);
}

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static int data_put(struct stream_pages_writer *w, bool compress, struct bytes_writer *payload, struct error *err)
{
    if (!compress) {
        bytes_put(payload, w->data, w->data_bytes);
        return 0;
    }
    size_t bound = ZSTD_compressBound(w->data_bytes);
    bytes_reserve(payload, bound);
    size_t size = ZSTD_compressCCtx(w->zstd, payload->data + payload->size, bound, w->data, w->data_bytes, LEVEL);
    if (ZSTD_isError(size))
        return error_set(err, -EIO, ERROR_INTERNAL, "cannot compress memory: %s", ZSTD_getErrorName(size));
    payload->size += size;
    return 0;
}

int stream_pages_flush(struct stream_pages_writer *w, struct error *err)
{
    if (!w->run_count)
        return 0;
    struct bytes_writer payload = {0};
    bool compress = w->data_bytes && w->zstd && (!w->choice || compress_choice_next(w->choice));
    uint64_t start_us = w->choice ? now_us() : 0;
    bytes_put_u16(&payload, w->region);
    bytes_put_u8(&payload, compress ? ENCODING_ZSTD : ENCODING_PLAIN);
    bytes_put_u8(&payload, 0);
    bytes_put_u32(&payload, w->run_count);
    bytes_put_u32(&payload, (uint32_t)w->data_bytes);
    for (unsigned i = 0; i < w->run_count; i++) {
        bytes_put_u64(&payload, w->runs[i].first);
        bytes_put_u32(&payload, w->runs[i].pages);
        bytes_put_u32(&payload, w->runs[i].kind);
    }
    size_t head_bytes = payload.size;
    int code = w->data_bytes ? data_put(w, compress, &payload, err) : 0;
    uint64_t ready_us = w->choice ? now_us() : 0;
    if (code == 0)
        code = stream_put(w->out, STREAM_PAGES, STREAM_PAGES_VERSION, STREAM_MUST_UNDERSTAND, payload.data,
                          payload.size, err);
    if (code == 0 && w->choice)
        compress_choice_note(w->choice, compress, w->data_bytes, payload.size - head_bytes,
                             compress ? ready_us - start_us : 0, now_us() - ready_us);
    w->counters.batches++;
    w->counters.payload_bytes += payload.size;
    w->run_count = 0;
    w->data_bytes = 0;
    bytes_writer_finish(&payload);
    return code;
}

/* Lengthen the last run or begin one; what does not fit into this batch begins the next. */
static int run_add(struct stream_pages_writer *w, uint16_t region, uint64_t page, uint32_t pages, uint32_t kind,
                   struct error *err)
{
    struct run *last = w->run_count ? &w->runs[w->run_count - 1] : NULL;
    bool full = kind == RUN_DATA && w->data_bytes == STREAM_BATCH_BYTES;
    bool joins = last && !full && w->region == region && last->kind == kind && last->first + last->pages == page &&
                 last->pages <= UINT32_MAX - pages;
    if (joins) {
        last->pages += pages;
        return 0;
    }
    if (full || (last && (w->region != region || page < last->first + last->pages)) ||
        w->run_count == STREAM_RUNS_MAX) {
        int code = stream_pages_flush(w, err);
        if (code < 0)
            return code;
    }
    w->region = region;
    w->runs[w->run_count++] = (struct run){.first = page, .pages = pages, .kind = kind};
    return 0;
}

int stream_pages_put_zero(struct stream_pages_writer *w, uint16_t region, uint64_t page, uint32_t pages,
                          struct error *err)
{
    w->counters.pages_zero += pages;
    return run_add(w, region, page, pages, RUN_ZERO, err);
}

int stream_pages_put(struct stream_pages_writer *w, uint16_t region, uint64_t page, const void *data,
                     struct error *err)
{
    if (stream_page_is_zero(data))
        return stream_pages_put_zero(w, region, page, 1, err);
    int code = run_add(w, region, page, 1, RUN_DATA, err);
    if (code < 0)
        return code;
    memcpy(w->data + w->data_bytes, data, GUEST_PAGE_BYTES);
    w->data_bytes += GUEST_PAGE_BYTES;
    w->counters.pages_data++;
    return 0;
}

struct stream_pages_counters stream_pages_counters(const struct stream_pages_writer *w)
{
    return w->counters;
}

/* ---- reading ---- */

struct stream_pages_reader {
    ZSTD_DCtx *zstd;
    struct run runs[STREAM_RUNS_MAX];
    uint8_t data[STREAM_BATCH_BYTES];
};

struct stream_pages_reader *stream_pages_reader_create(void)
{
    struct stream_pages_reader *r = NEW(struct stream_pages_reader);
    r->zstd = ZSTD_createDCtx();
    ASSERT(r->zstd);
    return r;
}

void stream_pages_reader_destroy(struct stream_pages_reader *r)
{
    if (!r)
        return;
    ZSTD_freeDCtx(r->zstd);
    free(r);
}

static int refuse(const struct stream_section *section, struct error *err, const char *what)
{
    return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the memory in section %u is refused: %s", section->number, what);
}

/* Read @count runs; false unless they ascend within @pages and make up @data_bytes of data. */
static bool runs_read(struct stream_pages_reader *r, struct bytes_reader *in, uint32_t count, uint64_t pages,
                      uint32_t data_bytes)
{
    uint64_t next = 0, data_pages = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct run *run = &r->runs[i];
        run->first = bytes_get_u64(in);
        run->pages = bytes_get_u32(in);
        run->kind = bytes_get_u32(in);
        if (in->bad || run->kind > RUN_DATA || run->pages == 0 || run->first < next || run->first > pages ||
            run->pages > pages - run->first)
            return false;
        next = run->first + run->pages;
        data_pages += run->kind == RUN_DATA ? run->pages : 0;
    }
    return data_pages * GUEST_PAGE_BYTES == data_bytes;
}

static void pages_zero(uint8_t *at, uint64_t pages)
{
    for (uint64_t i = 0; i < pages; i++, at += GUEST_PAGE_BYTES)
        if (!stream_page_is_zero(at)) /* reading does not make a page dirty */
            memset(at, 0, GUEST_PAGE_BYTES);
}

int stream_pages_place(struct stream_pages_reader *r, const struct stream_section *section,
                       const struct guest_region *regions, size_t region_count, stream_place_fn place, void *arg,
                       struct error *err)
{
    struct bytes_reader in = bytes_reader(section->payload, section->size);
    uint16_t region = bytes_get_u16(&in);
    uint8_t encoding = bytes_get_u8(&in), zero = bytes_get_u8(&in);
    uint32_t run_count = bytes_get_u32(&in), data_bytes = bytes_get_u32(&in);
    ASSERT(section->tag == STREAM_PAGES);
    if (in.bad || encoding > ENCODING_ZSTD || zero != 0 || run_count == 0 || run_count > STREAM_RUNS_MAX ||
        data_bytes > STREAM_BATCH_BYTES)
        return refuse(section, err, "its batch is malformed");
    if (region >= region_count)
        return refuse(section, err, "this machine has no such region");
    uint64_t pages = regions[region].size / GUEST_PAGE_BYTES;
    if (!runs_read(r, &in, run_count, pages, data_bytes))
        return refuse(section, err, "its pages are out of order or lie outside this machine's memory");
    const uint8_t *data = in.at;
    if (encoding == ENCODING_ZSTD) {
        size_t size = ZSTD_decompressDCtx(r->zstd, r->data, data_bytes, in.at, bytes_left(&in));
        if (ZSTD_isError(size) || size != data_bytes)
            return refuse(section, err, "it cannot be decompressed");
        data = r->data;
    } else if (bytes_left(&in) != data_bytes) {
        return refuse(section, err, "its length does not fit");
    }
    int code = 0;
    for (uint32_t i = 0; code >= 0 && i < run_count; i++) {
        const struct run *run = &r->runs[i];
        bool is_data = run->kind == RUN_DATA;
        code = place(arg, region, run->first, run->pages, is_data ? data : NULL, err);
        data += is_data ? (size_t)run->pages * GUEST_PAGE_BYTES : 0;
    }
    return MIN(code, 0);
}

struct apply {
    const struct guest_region *regions;
    bool fresh;
};

static int apply_place(void *arg, size_t region, uint64_t page, uint64_t pages, const uint8_t *data,
                       struct error *err UNUSED)
{
    const struct apply *apply = arg;
    uint8_t *at = apply->regions[region].host + page * GUEST_PAGE_BYTES;
    if (data)
        memcpy(at, data, (size_t)pages * GUEST_PAGE_BYTES);
    else if (!apply->fresh)
        pages_zero(at, pages);
    return 0;
}

int stream_pages_apply(struct stream_pages_reader *r, const struct stream_section *section,
                       const struct guest_region *regions, size_t region_count, bool fresh, struct error *err)
{
    struct apply apply = {regions, fresh};
    return stream_pages_place(r, section, regions, region_count, apply_place, &apply, err);
}
