/* Bytes of a Raft command: {u16 number, u16 version, u32 length} little-endian, then the payload as canonical JSON.
 *
 * COMMAND_VERSION is raised when a field is added to any payload: an older controller then stops instead of falling out
 * of step (apply.h, fatal). */
#ifndef CONTROLLER_FSM_COMMAND_CODEC_H
#define CONTROLLER_FSM_COMMAND_CODEC_H

#include "schema/commands.h"

#define COMMAND_VERSION 1u
#define COMMAND_HEADER_BYTES 8u
#define COMMAND_BYTES_MAX (1u << 20)

/* Append the command of @number with @payload (struct command_<name>) to @out. -E2BIG beyond COMMAND_BYTES_MAX; @out
 * is then as it was. */
int command_encode(enum command number, const void *payload, struct bytes_writer *out, struct error *err);

struct command_message {
    const struct command_desc *desc;
    void *payload; /* struct command_<name>, owned */
};
/* -EPROTONOSUPPORT: of a newer version, or with a field that only such a one can have; -EBADMSG, -EINVAL: damaged.
 * *ret_message untouched then. */
int command_decode(const void *data, size_t size, struct command_message *ret_message, struct error *err);
/* Zeroed or decoded; NULL is fine. */
void command_message_finish(struct command_message *message);

#endif
