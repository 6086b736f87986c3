/* The WebSocket decoder on any bytes, at once and in pieces: the same messages, the same end. The first byte chooses
 * the side and the size of the pieces. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/websocket_frame.h"

#define MESSAGE_BYTES_MAX 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Feed in pieces; a digest of all messages, and the last result. */
static int feed(const uint8_t *data, size_t size, size_t piece, bool masked, uint32_t *ret_digest)
{
    struct websocket_decoder decoder;
    uint32_t digest = 0;
    int rc = 0;
    websocket_decoder_init(&decoder, masked, MESSAGE_BYTES_MAX);
    for (size_t at = 0; at < size && rc >= 0;) {
        struct websocket_message message;
        size_t part = MIN(piece, size - at), used;
        uint8_t *copy = malloc(part);
        memcpy(copy, data + at, part);
        rc = websocket_decode(&decoder, copy, part, &used, &message);
        ASSERT(used <= part && (used > 0 || rc < 0));
        if (rc == 1) {
            ASSERT(message.size <= MESSAGE_BYTES_MAX && message.data[message.size] == 0);
            ASSERT(message.opcode != WEBSOCKET_TEXT || websocket_valid_utf8(message.data, message.size));
            digest = bytes_crc32c(digest, message.data, message.size) + message.opcode;
        }
        at += used;
        free(copy);
    }
    websocket_decoder_finish(&decoder);
    *ret_digest = digest;
    return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint32_t whole, pieces;
    if (size < 2)
        return 0;
    bool masked = (data[0] & 1) != 0;
    size_t piece = 1 + (data[0] >> 1);
    int rc_whole = feed(data + 1, size - 1, size, masked, &whole);
    int rc_pieces = feed(data + 1, size - 1, piece, masked, &pieces);
    ASSERT(whole == pieces && (rc_whole < 0) == (rc_pieces < 0));
    if (rc_whole < 0)
        ASSERT(rc_whole == rc_pieces);
    return 0;
}
