/* WebSocket framing, pure: see websocket_frame.h. */
#include "common/websocket_frame.h"

#include <openssl/evp.h>
#include <string.h>

#define MESSAGE_KEEP_BYTES_MAX (64 * 1024) /* buffer kept between messages */
#define CONTROL_BYTES_MAX 125

void websocket_decoder_init(struct websocket_decoder *decoder, bool expect_mask, size_t message_bytes_max)
{
    *decoder = (struct websocket_decoder){.expect_mask = expect_mask, .message_bytes_max = message_bytes_max};
}

void websocket_decoder_finish(struct websocket_decoder *decoder)
{
    bytes_writer_finish(&decoder->message);
    bytes_writer_finish(&decoder->control);
}

static bool is_control(enum websocket_opcode opcode)
{
    return opcode >= WEBSOCKET_CLOSE;
}

/* Size of the frame head so far as its first two bytes tell. */
static size_t head_bytes_wanted(const struct websocket_decoder *d)
{
    if (d->head_size < 2)
        return 2;
    unsigned length = d->head[1] & 127;
    return 2 + (length == 126 ? 2u : length == 127 ? 8u : 0u) + ((d->head[1] & 128) != 0 ? 4u : 0u);
}

/* Payload length of a whole head; false where it is not in its shortest form (§5.2). */
static bool read_length(const uint8_t *head, uint64_t *ret_length)
{
    uint64_t length = head[1] & 127;
    if (length < 126) {
        *ret_length = length;
        return true;
    }
    size_t bytes = length == 126 ? 2 : 8;
    length = 0;
    for (size_t i = 0; i < bytes; i++)
        length = length << 8 | head[2 + i];
    *ret_length = length;
    return bytes == 2 ? length > 125 : length > 0xffff && length >> 63 == 0;
}

static int begin_data_frame(struct websocket_decoder *d)
{
    if (d->opcode == WEBSOCKET_CONTINUATION) {
        if (d->message_opcode == WEBSOCKET_CONTINUATION)
            return -1002;
        if (++d->fragments > WEBSOCKET_FRAGMENTS_MAX)
            return -1009;
    } else {
        if (d->message_opcode != WEBSOCKET_CONTINUATION)
            return -1002;
        d->message_opcode = d->opcode;
        d->fragments = 1;
        d->message.size = 0;
        if (d->message.capacity > MESSAGE_KEEP_BYTES_MAX)
            bytes_writer_finish(&d->message);
    }
    return d->left > d->message_bytes_max - d->message.size ? -1009 : 0;
}

/* The head is whole: check it (§5.2) and get ready for the payload. */
static int begin_frame(struct websocket_decoder *d)
{
    bool masked = (d->head[1] & 128) != 0;
    unsigned opcode = d->head[0] & 15;
    if ((d->head[0] & 0x70) != 0 || masked != d->expect_mask)
        return -1002;
    if ((opcode > WEBSOCKET_BINARY && opcode < WEBSOCKET_CLOSE) || opcode > WEBSOCKET_PONG)
        return -1002;
    if (!read_length(d->head, &d->left))
        return -1002;
    d->final = (d->head[0] & 128) != 0;
    d->opcode = (enum websocket_opcode)opcode;
    d->mask_at = 0;
    if (masked)
        memcpy(d->mask, d->head + d->head_size - 4, 4);
    d->head_size = 0;
    d->in_payload = true;
    if (!is_control(d->opcode))
        return begin_data_frame(d);
    d->control.size = 0;
    return !d->final || d->left > CONTROL_BYTES_MAX ? -1002 : 0;
}

static void take_payload(struct websocket_decoder *d, const uint8_t *data, size_t size)
{
    struct bytes_writer *to = is_control(d->opcode) ? &d->control : &d->message;
    bytes_put(to, data, size);
    if (d->expect_mask) {
        uint8_t *p = to->data + to->size - size;
        for (size_t i = 0; i < size; i++)
            p[i] ^= d->mask[d->mask_at++ & 3];
    }
    d->left -= size;
}

bool websocket_valid_close_code(unsigned code)
{
    return (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) || (code >= 3000 && code <= 4999);
}

static int check_close(const struct bytes_writer *payload)
{
    if (payload->size == 0)
        return 0;
    if (payload->size == 1 || !websocket_valid_close_code((unsigned)(payload->data[0] << 8 | payload->data[1])))
        return -1002;
    return websocket_valid_utf8(payload->data + 2, payload->size - 2) ? 0 : -1007;
}

/* The payload is whole: 1 with *ret_message when that ends a message. */
static int end_frame(struct websocket_decoder *d, struct websocket_message *ret_message)
{
    static const uint8_t terminator;
    struct bytes_writer *whole = is_control(d->opcode) ? &d->control : &d->message;
    enum websocket_opcode opcode = is_control(d->opcode) ? d->opcode : d->message_opcode;
    d->in_payload = false;
    if (!is_control(d->opcode)) {
        if (!d->final)
            return 0;
        d->message_opcode = WEBSOCKET_CONTINUATION;
    }
    bytes_put(whole, &terminator, 1);
    whole->size--;
    if (opcode == WEBSOCKET_TEXT && !websocket_valid_utf8(whole->data, whole->size))
        return -1007;
    int rc = opcode == WEBSOCKET_CLOSE ? check_close(whole) : 0;
    if (rc < 0)
        return rc;
    *ret_message = (struct websocket_message){opcode, whole->data, whole->size};
    return 1;
}

int websocket_decode(struct websocket_decoder *d, const uint8_t *data, size_t size, size_t *ret_used,
                     struct websocket_message *ret_message)
{
    size_t at = 0;
    int rc = 0;
    while (rc == 0) {
        if (d->in_payload && d->left == 0) {
            rc = end_frame(d, ret_message);
        } else if (at == size) {
            break;
        } else if (d->in_payload) {
            size_t part = (size_t)MIN((uint64_t)(size - at), d->left);
            take_payload(d, data + at, part);
            at += part;
        } else {
            d->head[d->head_size++] = data[at++];
            if (d->head_size >= 2 && d->head_size == head_bytes_wanted(d))
                rc = begin_frame(d);
        }
    }
    *ret_used = at;
    return rc;
}

void websocket_encode(struct bytes_writer *out, enum websocket_opcode opcode, const void *data, size_t size,
                      const uint8_t *mask)
{
    uint8_t mask_bit = mask != NULL ? 128 : 0;
    bytes_reserve(out, size + WEBSOCKET_FRAME_HEAD_BYTES_MAX);
    bytes_put_u8(out, (uint8_t)(128 | opcode));
    if (size < 126) {
        bytes_put_u8(out, (uint8_t)(mask_bit | size));
    } else if (size <= 0xffff) {
        bytes_put_u8(out, mask_bit | 126);
        bytes_put_u8(out, (uint8_t)(size >> 8));
        bytes_put_u8(out, (uint8_t)size);
    } else {
        bytes_put_u8(out, mask_bit | 127);
        for (int shift = 56; shift >= 0; shift -= 8)
            bytes_put_u8(out, (uint8_t)((uint64_t)size >> shift));
    }
    if (mask != NULL)
        bytes_put(out, mask, 4);
    bytes_put(out, data, size);
    for (size_t i = 0; mask != NULL && i < size; i++)
        out->data[out->size - size + i] ^= mask[i & 3];
}

void websocket_accept_key(const char *key, char ret_accept[WEBSOCKET_ACCEPT_SIZE])
{
    /* The fixed text of RFC 6455 §1.3. */
    char *text = xasprintf("%s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key);
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned digest_size = 0;
    ASSERT(EVP_Digest(text, strlen(text), digest, &digest_size, EVP_sha1(), NULL) == 1 && digest_size == 20);
    EVP_EncodeBlock((unsigned char *)ret_accept, digest, 20);
    free(text);
}

/* RFC 3629: shortest form, no surrogates, nothing above U+10FFFF. */
bool websocket_valid_utf8(const uint8_t *data, size_t size)
{
    for (size_t i = 0; i < size;) {
        uint8_t c = data[i++];
        unsigned more, low = 0x80, high = 0xbf;
        if (c < 0x80)
            continue;
        if (c >= 0xc2 && c <= 0xdf) {
            more = 1;
        } else if (c >= 0xe0 && c <= 0xef) {
            more = 2;
            low = c == 0xe0 ? 0xa0 : 0x80;
            high = c == 0xed ? 0x9f : 0xbf;
        } else if (c >= 0xf0 && c <= 0xf4) {
            more = 3;
            low = c == 0xf0 ? 0x90 : 0x80;
            high = c == 0xf4 ? 0x8f : 0xbf;
        } else {
            return false;
        }
        for (; more > 0; more--, low = 0x80, high = 0xbf)
            if (i == size || data[i] < low || data[i++] > high)
                return false;
    }
    return true;
}
