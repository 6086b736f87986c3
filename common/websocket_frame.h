/* WebSocket framing (RFC 6455 §5), pure: bytes in, whole messages out; shared by both sides.
 *
 * Refused with the close code of §7.4: RSV bits, unknown opcodes, a client that does not mask or a server that
 * does, control frames that are fragmented or > 125 bytes, lengths not in their shortest form or beyond the
 * message limit, a continuation of nothing, a new message within one, more fragments than WEBSOCKET_FRAGMENTS_MAX,
 * text that is no UTF-8. */
#ifndef COMMON_WEBSOCKET_FRAME_H
#define COMMON_WEBSOCKET_FRAME_H

#include "common/base.h"
#include "common/bytes.h"

#define WEBSOCKET_FRAGMENTS_MAX 1024 /* of one message: many tiny ones cost more than they carry */
#define WEBSOCKET_FRAME_HEAD_BYTES_MAX 14
#define WEBSOCKET_ACCEPT_SIZE 29 /* base64 of SHA-1 and a terminator */

enum websocket_opcode {
    WEBSOCKET_CONTINUATION = 0,
    WEBSOCKET_TEXT = 1,
    WEBSOCKET_BINARY = 2,
    WEBSOCKET_CLOSE = 8,
    WEBSOCKET_PING = 9,
    WEBSOCKET_PONG = 10,
};

struct websocket_decoder {
    bool expect_mask; /* we are the server */
    size_t message_bytes_max;
    /* the rest is the decoder's */
    uint8_t head[WEBSOCKET_FRAME_HEAD_BYTES_MAX];
    size_t head_size;
    bool in_payload, final;
    enum websocket_opcode opcode;         /* of the frame */
    enum websocket_opcode message_opcode; /* of the message in progress; CONTINUATION = none */
    uint64_t left;                        /* payload bytes of the frame still to come */
    uint8_t mask[4];
    size_t mask_at;
    unsigned fragments;
    struct bytes_writer message, control;
};

struct websocket_message {
    enum websocket_opcode opcode; /* never CONTINUATION */
    const uint8_t *data;          /* until the next call on the decoder; a 0 byte follows */
    size_t size;
};

void websocket_decoder_init(struct websocket_decoder *decoder, bool expect_mask, size_t message_bytes_max);
void websocket_decoder_finish(struct websocket_decoder *decoder);
/* Consume *ret_used of @data. 1: *ret_message is whole; 0: all used, more is needed; <0: minus the close code
 * (-1002, -1007, -1009), after which the decoder is of no more use. */
int websocket_decode(struct websocket_decoder *decoder, const uint8_t *data, size_t size, size_t *ret_used,
                     struct websocket_message *ret_message);
/* One unfragmented frame appended to @out. @mask: NULL for a server, 4 random bytes for a client. */
void websocket_encode(struct bytes_writer *out, enum websocket_opcode opcode, const void *data, size_t size,
                      const uint8_t *mask);
/* Sec-WebSocket-Accept of a Sec-WebSocket-Key. */
void websocket_accept_key(const char *key, char ret_accept[WEBSOCKET_ACCEPT_SIZE]);
bool websocket_valid_utf8(const uint8_t *data, size_t size);
/* May a peer send this code in a close frame (§7.4.1)? */
bool websocket_valid_close_code(unsigned code);

#endif
