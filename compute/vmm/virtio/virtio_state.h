/* Device state as data: a table says which fields of a struct outlive the process, and one pair of functions writes
 * and reads them. Format: u16 version, u16 number of fields, then the fields in the table's order, little-endian.
 *
 * A later version of a device appends rows and raises `version`; a state written by a newer device than this is
 * refused, one by an older device leaves the rows it did not have untouched. */
#ifndef COMPUTE_VMM_VIRTIO_STATE_H
#define COMPUTE_VMM_VIRTIO_STATE_H

#include "common/bytes.h"
#include "common/error.h"

enum virtio_state_kind {
    VIRTIO_STATE_U8,
    VIRTIO_STATE_U16,
    VIRTIO_STATE_U32,
    VIRTIO_STATE_U64,
    VIRTIO_STATE_BOOL,
    VIRTIO_STATE_BYTES, /* `size` bytes as they are */
};

struct virtio_state_field {
    const char *name; /* for messages */
    enum virtio_state_kind kind;
    uint16_t offset, size; /* within the struct */
    bool must_match;       /* a property of the device as made: load compares and does not assign */
};
#define VIRTIO_STATE_FIELD(type, member, kind_, must_match_)                                                         \
    {                                                                                                                \
        .name = #member, .kind = VIRTIO_STATE_##kind_, .offset = offsetof(type, member),                             \
        .size = sizeof(((type *)NULL)->member), .must_match = (must_match_)                                          \
    }

struct virtio_state_table {
    const char *device; /* for messages */
    uint16_t version;
    uint16_t count;
    const struct virtio_state_field *fields;
};

void virtio_state_save(const struct virtio_state_table *table, const void *object, struct bytes_writer *out);
/* -EBADMSG in words, with @object untouched, unless all of it fits. */
int virtio_state_load(const struct virtio_state_table *table, void *object, struct bytes_reader *in,
                      struct error *err);

#endif
