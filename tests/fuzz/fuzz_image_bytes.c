/* Bytes that come with images from outside: OVA archives and their OVF, streams between agents, ranges. What is found must
 * lie within what there is; a stream gives every byte of the image exactly once, in order. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/http_range.h"
#include "compute/agent/image_stream.h"
#include "compute/agent/ova_archive.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    const uint8_t *data;
    size_t size;
};

static int read_input(void *to, size_t size, uint64_t offset, void *arg)
{
    const struct input *in = arg;
    if (offset > in->size || size > in->size - offset)
        abort();
    memcpy(to, in->data + offset, size);
    return 0;
}

static void ova(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    struct ova_entry disk;
    char name[OVA_NAME_BYTES_MAX + 1];
    if (ova_find_disk(read_input, &in, size, &disk, NULL) == 0 && (disk.offset > size || disk.size > size - disk.offset))
        abort();
    if (ova_disk_name((const char *)data, size, name, NULL) == 0 && strlen(name) > OVA_NAME_BYTES_MAX)
        abort();
    if (size < 512)
        return;
    /* the same with a checksum that is right, so that what lies behind it is reached */
    uint8_t *fixed = malloc(size);
    unsigned sum = 0;
    memcpy(fixed, data, size);
    memset(fixed + 148, ' ', 8);
    for (unsigned i = 0; i < 512; i++)
        sum += fixed[i];
    for (unsigned i = 0; i < 6; i++)
        fixed[148 + i] = (uint8_t)('0' + (sum >> 3 * (5 - i) & 7));
    in.data = fixed;
    if (ova_find_disk(read_input, &in, size, &disk, NULL) == 0 && (disk.offset > size || disk.size > size - disk.offset))
        abort();
    free(fixed);
}

static int on_data(const void *data, size_t size, uint64_t offset, void *arg)
{
    uint64_t *next = arg;
    (void)data;
    if (offset != *next || size == 0)
        abort();
    *next += size;
    return 0;
}

static int on_hole(uint64_t size, uint64_t offset, void *arg)
{
    uint64_t *next = arg;
    if (offset != *next || size == 0)
        abort();
    *next += size;
    return 0;
}

static void stream(const uint8_t *data, size_t size)
{
    struct image_stream_reader reader;
    uint64_t image = data[0] | (uint64_t)data[1] << 8 | (uint64_t)data[2] << 16, next = data[3];
    if (next > image)
        return;
    image_stream_reader_init(&reader, image, next);
    reader.on_data = on_data;
    reader.on_hole = on_hole;
    reader.arg = &next;
    for (size_t at = 4; at < size;) {
        size_t piece = MIN(size - at, (size_t)(1 + data[at] % 64));
        if (image_stream_reader_feed(&reader, data + at, piece, NULL) < 0)
            return;
        at += piece;
        if (next > image)
            abort();
    }
    if (reader.ended && next != image)
        abort();
}

static void ranges(const uint8_t *data, size_t size)
{
    char text[200];
    struct http_range range;
    uint64_t total = data[0];
    size = MIN(size, sizeof text) - 1;
    memcpy(text, data + 1, size);
    text[size] = '\0';
    if (http_range_parse_request(text, total, &range) == 1 && (range.first >= range.end || range.end > total))
        abort();
    if (http_range_parse_answer(text, &range) == 0 && (range.first >= range.end || range.end > range.total))
        abort();
    http_range_number(text, &total);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 6)
        return 0;
    switch (data[0] % 3) {
    case 0:
        ova(data + 1, size - 1);
        break;
    case 1:
        stream(data + 1, size - 1);
        break;
    default:
        ranges(data + 1, size - 1);
    }
    return 0;
}
