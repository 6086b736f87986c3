/* Reading and writing of little-endian binary through a cursor that knows how much is left, and CRC32C.
 * A reader never reads past its end: the first short read sets `bad` and every later read gives 0. */
#ifndef COMMON_BYTES_H
#define COMMON_BYTES_H

#include "common/base.h"

struct bytes_reader {
    const uint8_t *at, *end;
    bool bad;
};
static inline struct bytes_reader bytes_reader(const void *data, size_t size)
{
    return (struct bytes_reader){data, (const uint8_t *)data + size, false};
}
static inline size_t bytes_left(const struct bytes_reader *r)
{
    return (size_t)(r->end - r->at);
}
uint8_t bytes_get_u8(struct bytes_reader *r);
uint16_t bytes_get_u16(struct bytes_reader *r);
uint32_t bytes_get_u32(struct bytes_reader *r);
uint64_t bytes_get_u64(struct bytes_reader *r);
/* @size bytes inside the reader's own memory, or NULL (and bad) when fewer are left. */
const void *bytes_get(struct bytes_reader *r, size_t size);

/* Growing output. Memory: the caller frees `data` (bytes_writer_finish), or takes it. Never fails but by the
 * end of memory; the caller bounds what it writes. */
struct bytes_writer {
    uint8_t *data;
    size_t size, capacity;
};
void bytes_put(struct bytes_writer *w, const void *data, size_t size);
void bytes_put_u8(struct bytes_writer *w, uint8_t v);
void bytes_put_u16(struct bytes_writer *w, uint16_t v);
void bytes_put_u32(struct bytes_writer *w, uint32_t v);
void bytes_put_u64(struct bytes_writer *w, uint64_t v);
void bytes_put_text(struct bytes_writer *w, const char *text);
void bytes_put_format(struct bytes_writer *w, const char *format, ...) PRINTF_LIKE(2, 3);
/* Zero bytes up to the next multiple of @align. */
void bytes_put_padding(struct bytes_writer *w, size_t align);
void bytes_reserve(struct bytes_writer *w, size_t more);
void bytes_writer_finish(struct bytes_writer *w);

/* CRC-32C (Castagnoli, RFC 3720 appendix B.4); @crc is 0 for the first piece. */
uint32_t bytes_crc32c(uint32_t crc, const void *data, size_t size);

#endif
