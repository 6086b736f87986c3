/* Saving and loading structs by table: see virtio_state.h. */
#include "compute/vmm/virtio/virtio_state.h"

#include <errno.h>
#include <string.h>

static uint64_t integer_get(const struct virtio_state_field *f, const void *object)
{
    const uint8_t *at = (const uint8_t *)object + f->offset;
    uint8_t v8;
    uint16_t v16;
    uint32_t v32;
    uint64_t v64;
    switch (f->size) {
    case 1:
        memcpy(&v8, at, 1);
        return v8;
    case 2:
        memcpy(&v16, at, 2);
        return v16;
    case 4:
        memcpy(&v32, at, 4);
        return v32;
    default:
        ASSERT(f->size == 8);
        memcpy(&v64, at, 8);
        return v64;
    }
}

static void integer_put(const struct virtio_state_field *f, void *object, uint64_t value)
{
    uint8_t *at = (uint8_t *)object + f->offset;
    uint8_t v8 = (uint8_t)value;
    uint16_t v16 = (uint16_t)value;
    uint32_t v32 = (uint32_t)value;
    const void *from = f->size == 1   ? (void *)&v8
                       : f->size == 2 ? (void *)&v16
                       : f->size == 4 ? (void *)&v32
                                      : &value;
    memcpy(at, from, f->size);
}

void virtio_state_save(const struct virtio_state_table *table, const void *object, struct bytes_writer *out)
{
    bytes_put_u16(out, table->version);
    bytes_put_u16(out, table->count);
    for (unsigned i = 0; i < table->count; i++) {
        const struct virtio_state_field *f = &table->fields[i];
        if (f->kind == VIRTIO_STATE_BYTES) {
            bytes_put(out, (const uint8_t *)object + f->offset, f->size);
            continue;
        }
        uint64_t value = integer_get(f, object);
        for (unsigned byte = 0; byte < f->size; byte++)
            bytes_put_u8(out, (uint8_t)(value >> (8 * byte)));
    }
}

static int refuse(const struct virtio_state_table *table, struct error *err, const char *name, const char *what)
{
    return error_set(err, -EBADMSG, ERROR_INVALID, "state of %s does not fit: %s %s", table->device, name, what);
}

/* Check row @f against @object, and assign it there when @assign. */
static int field_load(const struct virtio_state_table *table, const struct virtio_state_field *f, void *object,
                      struct bytes_reader *in, bool assign, struct error *err)
{
    const uint8_t *bytes = bytes_get(in, f->size);
    if (bytes == NULL)
        return refuse(table, err, f->name, "is cut short");
    if (f->kind == VIRTIO_STATE_BYTES) {
        if (f->must_match && memcmp((uint8_t *)object + f->offset, bytes, f->size) != 0)
            return refuse(table, err, f->name, "differs");
        if (assign && !f->must_match)
            memcpy((uint8_t *)object + f->offset, bytes, f->size);
        return 0;
    }
    uint64_t value = 0;
    for (unsigned byte = 0; byte < f->size; byte++)
        value |= (uint64_t)bytes[byte] << (8 * byte);
    if (f->kind == VIRTIO_STATE_BOOL && value > 1)
        return refuse(table, err, f->name, "is neither true nor false");
    if (f->must_match && integer_get(f, object) != value)
        return refuse(table, err, f->name, "differs");
    if (assign && !f->must_match)
        integer_put(f, object, value);
    return 0;
}

int virtio_state_load(const struct virtio_state_table *table, void *object, struct bytes_reader *in,
                      struct error *err)
{
    uint16_t version = bytes_get_u16(in), count = bytes_get_u16(in);
    if (in->bad)
        return refuse(table, err, "version", "is cut short");
    if (version > table->version || count > table->count)
        return refuse(table, err, "version", "is newer than this program");
    struct bytes_reader check = *in;
    for (unsigned i = 0; i < count; i++) {
        int code = field_load(table, &table->fields[i], object, &check, false, err);
        if (code < 0)
            return code;
    }
    for (unsigned i = 0; i < count; i++)
        field_load(table, &table->fields[i], object, in, true, err);
    return 0;
}
