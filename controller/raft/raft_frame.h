/* What we put into libraft's log and snapshots. Little-endian, every length a multiple of 8 (libraft needs that).
 *
 * Log entry = a group of commands, so that many waiting clients cost one disk write:
 *
 *   0  u32 magic "DRVG"   4  u16 version 1   6  u16 zero
 *   8  u32 commands       12 u32 CRC32C of bytes 0..11 and 16..31
 *   16 u64 proposer       24 u64 sequence    who proposed it: a random number of each start of a server, and a count,
 *                                            so that a server knows its own groups when they are applied
 *   32 per command: u32 length, u32 CRC32C of the command, the command, zeros up to a multiple of 8
 *
 * Snapshot = header and the machine's state (libraft itself does not check snapshot data at all):
 *
 *   0  u32 magic "DRVS"   4  u16 version 1   6  u16 header size 40
 *   8  u64 index          commands applied: the count goes on from here
 *   16 u64 length         of the state
 *   24 u32 CRC32C of the state               28 u32 zero
 *   32 u32 CRC32C of bytes 0..31             36 u32 zero
 *   40 the state, zeros up to a multiple of 8
 *
 * Readers trust nothing: any difference is -EBADMSG, a newer version -EPROTONOSUPPORT. */
#ifndef CONTROLLER_RAFT_RAFT_FRAME_H
#define CONTROLLER_RAFT_RAFT_FRAME_H

#include "common/bytes.h"

#define RAFT_GROUP_HEADER_BYTES 32u
#define RAFT_SNAPSHOT_HEADER_BYTES 40u

/* Bytes a command of @size takes within a group. */
size_t raft_group_command_bytes(size_t size);
void raft_group_begin(struct bytes_writer *out, uint64_t proposer, uint64_t sequence);
void raft_group_add(struct bytes_writer *out, const void *command, size_t size);
/* Fill in count and checksum; @out->data is then the entry. */
void raft_group_end(struct bytes_writer *out, uint32_t count);

struct raft_group {
    uint64_t proposer, sequence;
    uint32_t count;
    struct bytes_reader rest; /* commands not yet read */
};
int raft_group_open(struct raft_group *group, const void *data, size_t size);
/* 1 and the next command (inside the group's own memory, 8-byte aligned where the group is), 0 at the end. */
int raft_group_next(struct raft_group *group, const void **ret_command, size_t *ret_size);

/* Room for the header; the machine writes its state behind it. */
void raft_snapshot_begin(struct bytes_writer *out);
void raft_snapshot_end(struct bytes_writer *out, uint64_t index);
/* The state inside @data. */
int raft_snapshot_open(const void *data, size_t size, uint64_t *ret_index, const void **ret_state,
                       size_t *ret_state_size);

#endif
