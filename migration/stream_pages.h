/* Guest memory in a stream: sections of tag PAGES, each a batch of pages of one region.
 *
 *   u16 region         number of the guest's region (guest.h), ascending by gpa
 *   u8  encoding       0 as they are, 1 one zstd frame
 *   u8  0
 *   u32 runs           1 to STREAM_RUNS_MAX
 *   u32 data bytes     of all pages with data, before compression; at most STREAM_BATCH_BYTES
 *   runs times: u64 first page, u32 pages, u32 kind    0 all zeros (no data follows), 1 data
 *   data               the pages with data, in the order of the runs
 *
 * Runs ascend and do not overlap within a batch; a later batch may send a page again. Everything is judged before the
 * first byte of guest memory is touched. */
#ifndef MIGRATION_STREAM_PAGES_H
#define MIGRATION_STREAM_PAGES_H

#include "migration/compress_choice.h"
#include "migration/guest.h"
#include "migration/stream.h"

enum {
    STREAM_PAGES_VERSION = 1,
    STREAM_BATCH_BYTES = 1 << 20, /* data of one batch */
    STREAM_RUNS_MAX = 4096,
};

/* ---- writing ---- */

struct stream_pages_writer; /* a batch under way; create, put pages, flush, destroy */

struct stream_pages_counters {
    uint64_t pages_zero, pages_data, batches;
    uint64_t payload_bytes; /* of all batches, as written */
};

/* @compress: as zstd frames (the header must name the feature). */
struct stream_pages_writer *stream_pages_writer_create(struct stream_writer *out, bool compress);
/* Compress or not as @choice says, batch by batch (the header must name the feature); borrowed. */
struct stream_pages_writer *stream_pages_writer_create_choosing(struct stream_writer *out,
                                                                struct compress_choice *choice);
void stream_pages_writer_destroy(struct stream_pages_writer *w); /* NULL is allowed; drops what was not flushed */
/* Append one page of region @region: @data is copied now; a page of zeros costs a few bytes. */
int stream_pages_put(struct stream_pages_writer *w, uint16_t region, uint64_t page, const void *data,
                     struct error *err);
/* Append @pages pages that are known to be zero, without looking at them. */
int stream_pages_put_zero(struct stream_pages_writer *w, uint16_t region, uint64_t page, uint32_t pages,
                          struct error *err);
/* Write the batch under way, if any. */
int stream_pages_flush(struct stream_pages_writer *w, struct error *err);
struct stream_pages_counters stream_pages_counters(const struct stream_pages_writer *w);

/* ---- reading ---- */

struct stream_pages_reader; /* holds what decompression needs */
struct stream_pages_reader *stream_pages_reader_create(void);
void stream_pages_reader_destroy(struct stream_pages_reader *r);
/* Put the batch of @section into memory. @fresh: memory was never written, so that pages of zeros need no work.
 * -EBADMSG for anything that is not as above or lies outside the regions. */
int stream_pages_apply(struct stream_pages_reader *r, const struct stream_section *section,
                       const struct guest_region *regions, size_t region_count, bool fresh, struct error *err);

/* The same with @place for each run instead of memory: @data holds @pages pages, NULL: they are zeros. What it answers
 * below 0 ends it. */
typedef int (*stream_place_fn)(void *arg, size_t region, uint64_t page, uint64_t pages, const uint8_t *data,
                               struct error *err);
int stream_pages_place(struct stream_pages_reader *r, const struct stream_section *section,
                       const struct guest_region *regions, size_t region_count, stream_place_fn place, void *arg,
                       struct error *err);

bool stream_page_is_zero(const void *page);

#endif
