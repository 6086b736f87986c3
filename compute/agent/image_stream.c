/* Frames of an image's data; see image_stream.h. */
#include "compute/agent/image_stream.h"

#include <errno.h>
#include <string.h>

#include "common/bytes.h"

void image_stream_put_head(uint8_t head[IMAGE_STREAM_HEAD_BYTES], uint64_t offset, uint32_t size)
{
    for (unsigned i = 0; i < 8; i++)
        head[i] = (uint8_t)(offset >> 8 * i);
    for (unsigned i = 0; i < 4; i++)
        head[8 + i] = (uint8_t)(size >> 8 * i);
}

void image_stream_reader_init(struct image_stream_reader *reader, uint64_t size, uint64_t from)
{
    *reader = (struct image_stream_reader){.size = size, .offset = from};
}

static int head_take(struct image_stream_reader *r, struct error *err)
{
    struct bytes_reader bytes = bytes_reader(r->head, sizeof(r->head));
    uint64_t offset = bytes_get_u64(&bytes);
    uint32_t size = bytes_get_u32(&bytes);
    r->head_size = 0;
    if (size == 0 && offset != r->size)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the stream ends at %llu and the image has %llu bytes",
                         (unsigned long long)offset, (unsigned long long)r->size);
    if (size > IMAGE_STREAM_DATA_MAX || offset < r->offset || offset > r->size || size > r->size - offset)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the stream has a frame of %u bytes at %llu, which cannot be there",
                         size, (unsigned long long)offset);
    if (offset > r->offset) {
        int code = r->on_hole(offset - r->offset, r->offset, r->arg);
        if (code < 0)
            return code;
        r->offset = offset;
    }
    r->left = size;
    r->ended = size == 0;
    return 0;
}

int image_stream_reader_feed(struct image_stream_reader *r, const void *data, size_t size, struct error *err)
{
    const uint8_t *at = data;
    while (size > 0) {
        size_t n;
        int code = 0;
        if (r->ended)
            return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the stream goes on after its end");
        if (r->left > 0) {
            n = MIN(size, (size_t)r->left);
            code = r->on_data(at, n, r->offset, r->arg);
            r->offset += n;
            r->left -= (uint32_t)n;
        } else {
            n = MIN(size, sizeof(r->head) - r->head_size);
            memcpy(r->head + r->head_size, at, n);
            r->head_size += n;
            if (r->head_size == sizeof(r->head))
                code = head_take(r, err);
        }
        if (code < 0)
            return code;
        at += n;
        size -= n;
    }
    return 0;
}
