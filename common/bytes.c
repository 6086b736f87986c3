/* Bounded little-endian reading, growing writing, CRC-32C. */
#include "common/bytes.h"

#include <endian.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

const void *bytes_get(struct bytes_reader *r, size_t size)
{
    if (r->bad || bytes_left(r) < size) {
        r->bad = true;
        return NULL;
    }
    const void *p = r->at;
    r->at += size;
    return p;
}

#define GET(name, type, to_host)                                                                                     \
    type name(struct bytes_reader *r)                                                                                \
    {                                                                                                                \
        type v = 0;                                                                                                  \
        const void *p = bytes_get(r, sizeof v);                                                                      \
        if (p != NULL)                                                                                               \
            memcpy(&v, p, sizeof v);                                                                                 \
        return to_host(v);                                                                                           \
    }
#define SAME(v) (v)
GET(bytes_get_u8, uint8_t, SAME)
GET(bytes_get_u16, uint16_t, le16toh)
GET(bytes_get_u32, uint32_t, le32toh)
GET(bytes_get_u64, uint64_t, le64toh)

void bytes_reserve(struct bytes_writer *w, size_t more)
{
    size_t want = w->size + more;
    if (want <= w->capacity)
        return;
    size_t capacity = MAX(w->capacity * 2, (size_t)256);
    w->capacity = MAX(capacity, want);
    w->data = xrealloc(w->data, w->capacity);
}

void bytes_put(struct bytes_writer *w, const void *data, size_t size)
{
    bytes_reserve(w, size);
    if (size > 0)
        memcpy(w->data + w->size, data, size);
    w->size += size;
}

#define PUT(name, type, to_le)                                                                                       \
    void name(struct bytes_writer *w, type v)                                                                        \
    {                                                                                                                \
        v = to_le(v);                                                                                                \
        bytes_put(w, &v, sizeof v);                                                                                  \
    }
PUT(bytes_put_u8, uint8_t, SAME)
PUT(bytes_put_u16, uint16_t, htole16)
PUT(bytes_put_u32, uint32_t, htole32)
PUT(bytes_put_u64, uint64_t, htole64)

void bytes_put_text(struct bytes_writer *w, const char *text)
{
    bytes_put(w, text, strlen(text));
}

void bytes_put_format(struct bytes_writer *w, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    ASSERT(n >= 0);
    bytes_reserve(w, (size_t)n + 1);
    vsnprintf((char *)w->data + w->size, (size_t)n + 1, format, again);
    va_end(again);
    w->size += (size_t)n;
}

void bytes_put_padding(struct bytes_writer *w, size_t align)
{
    while (w->size % align != 0)
        bytes_put_u8(w, 0);
}

void bytes_writer_finish(struct bytes_writer *w)
{
    free(w->data);
    *w = (struct bytes_writer){0};
}

static uint32_t crc32c_table(uint32_t crc, const uint8_t *p, size_t size)
{
    for (; size > 0; size--) {
        crc ^= *p++;
        for (int i = 0; i < 8; i++)
            crc = (crc >> 1) ^ (0x82f63b78u & (0u - (crc & 1)));
    }
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t crc, const uint8_t *p, size_t size)
{
    uint64_t wide = crc;
    for (; size >= 8; size -= 8, p += 8) {
        uint64_t v;
        memcpy(&v, p, sizeof v);
        wide = _mm_crc32_u64(wide, v);
    }
    crc = (uint32_t)wide;
    for (; size > 0; size--)
        crc = _mm_crc32_u8(crc, *p++);
    return crc;
}
#endif

uint32_t bytes_crc32c(uint32_t crc, const void *data, size_t size)
{
    crc = ~crc;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2"))
        return ~crc32c_sse42(crc, data, size);
#endif
    return ~crc32c_table(crc, data, size);
}
