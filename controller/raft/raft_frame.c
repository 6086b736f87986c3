/* Framing of log entries and snapshots: see the header for the layout. */
#include "controller/raft/raft_frame.h"

#include <errno.h>
#include <string.h>

enum {
    GROUP_MAGIC = 0x47565244,    /* "DRVG" */
    SNAPSHOT_MAGIC = 0x53565244, /* "DRVS" */
    FRAME_VERSION = 1,
    COMMAND_HEADER_BYTES = 8,
    FRAME_ALIGN = 8,
};

static size_t frame_align(size_t size)
{
    return (size + FRAME_ALIGN - 1) & ~(size_t)(FRAME_ALIGN - 1);
}

static void frame_patch_u32(struct bytes_writer *out, size_t at, uint32_t value)
{
    for (unsigned i = 0; i < 4; i++)
        out->data[at + i] = (uint8_t)(value >> (8 * i));
}

static void frame_patch_u64(struct bytes_writer *out, size_t at, uint64_t value)
{
    frame_patch_u32(out, at, (uint32_t)value);
    frame_patch_u32(out, at + 4, (uint32_t)(value >> 32));
}

static uint32_t group_header_crc(const uint8_t *header)
{
    return bytes_crc32c(bytes_crc32c(0, header, 12), header + 16, 16);
}

size_t raft_group_command_bytes(size_t size)
{
    return COMMAND_HEADER_BYTES + frame_align(size);
}

void raft_group_begin(struct bytes_writer *out, uint64_t proposer, uint64_t sequence)
{
    bytes_put_u32(out, GROUP_MAGIC);
    bytes_put_u16(out, FRAME_VERSION);
    bytes_put_u16(out, 0);
    bytes_put_u32(out, 0); /* count, then checksum: raft_group_end */
    bytes_put_u32(out, 0);
    bytes_put_u64(out, proposer);
    bytes_put_u64(out, sequence);
}

void raft_group_add(struct bytes_writer *out, const void *command, size_t size)
{
    bytes_put_u32(out, (uint32_t)size);
    bytes_put_u32(out, bytes_crc32c(0, command, size));
    bytes_put(out, command, size);
    bytes_put_padding(out, FRAME_ALIGN);
}

void raft_group_end(struct bytes_writer *out, uint32_t count)
{
    frame_patch_u32(out, 8, count);
    frame_patch_u32(out, 12, group_header_crc(out->data));
    ASSERT(out->size % FRAME_ALIGN == 0);
}

int raft_group_open(struct raft_group *group, const void *data, size_t size)
{
    struct bytes_reader reader = bytes_reader(data, size);
    struct raft_group found = {0};
    uint32_t magic, crc;
    uint16_t version;

    if (size < RAFT_GROUP_HEADER_BYTES)
        return -EBADMSG;
    magic = bytes_get_u32(&reader);
    version = bytes_get_u16(&reader);
    bytes_get_u16(&reader);
    found.count = bytes_get_u32(&reader);
    crc = bytes_get_u32(&reader);
    found.proposer = bytes_get_u64(&reader);
    found.sequence = bytes_get_u64(&reader);
    if (magic != GROUP_MAGIC || crc != group_header_crc(data))
        return -EBADMSG;
    if (version != FRAME_VERSION)
        return -EPROTONOSUPPORT;
    found.rest = reader;
    *group = found;
    return 0;
}

int raft_group_next(struct raft_group *group, const void **ret_command, size_t *ret_size)
{
    uint32_t size, crc;
    const void *command;

    if (group->count == 0)
        return bytes_left(&group->rest) == 0 ? 0 : -EBADMSG;
    size = bytes_get_u32(&group->rest);
    crc = bytes_get_u32(&group->rest);
    command = bytes_get(&group->rest, frame_align(size));
    if (command == NULL || group->rest.bad || bytes_crc32c(0, command, size) != crc)
        return -EBADMSG;
    group->count--;
    *ret_command = command;
    *ret_size = size;
    return 1;
}

void raft_snapshot_begin(struct bytes_writer *out)
{
    static const uint8_t header[RAFT_SNAPSHOT_HEADER_BYTES];

    bytes_put(out, header, sizeof(header));
}

void raft_snapshot_end(struct bytes_writer *out, uint64_t index)
{
    size_t length = out->size - RAFT_SNAPSHOT_HEADER_BYTES;

    frame_patch_u32(out, 0, SNAPSHOT_MAGIC);
    frame_patch_u32(out, 4, FRAME_VERSION | RAFT_SNAPSHOT_HEADER_BYTES << 16);
    frame_patch_u64(out, 8, index);
    frame_patch_u64(out, 16, length);
    frame_patch_u32(out, 24, bytes_crc32c(0, out->data + RAFT_SNAPSHOT_HEADER_BYTES, length));
    frame_patch_u32(out, 32, bytes_crc32c(0, out->data, 32));
    bytes_put_padding(out, FRAME_ALIGN);
}

int raft_snapshot_open(const void *data, size_t size, uint64_t *ret_index, const void **ret_state,
                       size_t *ret_state_size)
{
    struct bytes_reader reader = bytes_reader(data, size);
    uint32_t magic, state_crc, header_crc;
    uint16_t version, header_size;
    uint64_t index, length;
    const uint8_t *state;

    if (size < RAFT_SNAPSHOT_HEADER_BYTES)
        return -EBADMSG;
    magic = bytes_get_u32(&reader);
    version = bytes_get_u16(&reader);
    header_size = bytes_get_u16(&reader);
    index = bytes_get_u64(&reader);
    length = bytes_get_u64(&reader);
    state_crc = bytes_get_u32(&reader);
    bytes_get_u32(&reader);
    header_crc = bytes_get_u32(&reader);
    bytes_get_u32(&reader);
    if (magic != SNAPSHOT_MAGIC || header_crc != bytes_crc32c(0, data, 32))
        return -EBADMSG;
    if (version != FRAME_VERSION || header_size != RAFT_SNAPSHOT_HEADER_BYTES)
        return -EPROTONOSUPPORT;
    if (length > bytes_left(&reader) || size != frame_align(RAFT_SNAPSHOT_HEADER_BYTES + (size_t)length))
        return -EBADMSG;
    state = bytes_get(&reader, (size_t)length);
    if (state == NULL || bytes_crc32c(0, state, (size_t)length) != state_crc)
        return -EBADMSG;
    *ret_index = index;
    *ret_state = state;
    *ret_state_size = (size_t)length;
    return 0;
}
