/* Steps and replies as bytes and back; see migrate_wire.h. */
#include "migration/migrate_wire.h"

#include <errno.h>
#include <string.h>

#define REPLY_MAGIC 0x504d5244u /* "DRMP" */

int migrate_step_put(struct stream_writer *out, const struct migrate_step *step, struct error *err)
{
    struct bytes_writer payload = {0};
    bytes_put_u16(&payload, (uint16_t)step->kind);
    bytes_put_u16(&payload, 0);
    bytes_put_u32(&payload, step->number);
    if (step->kind == MIGRATE_OPEN) {
        bytes_put_u32(&payload, step->channels);
        bytes_put_u32(&payload, step->flags);
        bytes_put(&payload, step->id, sizeof(step->id));
    } else if (step->kind == MIGRATE_VERIFY) {
        ASSERT(step->crc_count <= MIGRATE_PIECES_MAX);
        bytes_put_u64(&payload, step->value);
        bytes_put(&payload, step->crcs, (size_t)step->crc_count * 4);
    } else if (step->kind == MIGRATE_GO) {
        bytes_put_u64(&payload, step->value);
    } else if (step->kind == MIGRATE_LACK) {
        ASSERT(step->bits_bytes <= MIGRATE_LACK_BYTES_MAX);
        bytes_put_u64(&payload, step->value);
        bytes_put(&payload, step->bits, step->bits_bytes);
    } else if (step->kind == MIGRATE_CANCEL) {
        bytes_put_text(&payload, step->text);
    }
    uint16_t version = step->kind >= MIGRATE_LACK ? MIGRATE_VERSION : 1;
    int code = stream_put(out, STREAM_MIGRATE, version, STREAM_MUST_UNDERSTAND, payload.data, payload.size, err);
    bytes_writer_finish(&payload);
    return code;
}

/* What follows kind and number. False: malformed. */
static bool rest_decode(struct bytes_reader *in, struct migrate_step *s)
{
    if (s->kind == MIGRATE_OPEN) {
        s->channels = bytes_get_u32(in);
        s->flags = bytes_get_u32(in);
        const void *id = bytes_get(in, sizeof(s->id));
        if (id)
            memcpy(s->id, id, sizeof(s->id));
        return id && s->channels >= 1 && s->channels <= MIGRATE_CHANNELS_MAX && s->number < s->channels &&
               s->flags <= (MIGRATE_OPEN_VERIFY | MIGRATE_OPEN_RESUME);
    }
    if (s->kind == MIGRATE_VERIFY) {
        s->value = bytes_get_u64(in);
        size_t left = bytes_left(in);
        s->crc_count = (uint32_t)(left / 4);
        s->crcs = bytes_get(in, left);
        return !in->bad && left % 4 == 0 && s->crc_count >= 1 && s->crc_count <= MIGRATE_PIECES_MAX;
    }
    if (s->kind == MIGRATE_LACK) {
        s->value = bytes_get_u64(in);
        s->bits_bytes = (uint32_t)MIN(bytes_left(in), (size_t)UINT32_MAX);
        s->bits = bytes_get(in, bytes_left(in));
        return !in->bad && s->value % 64 == 0 && s->bits_bytes % 8 == 0 && s->bits_bytes >= 8 &&
               s->bits_bytes <= MIGRATE_LACK_BYTES_MAX;
    }
    if (s->kind == MIGRATE_FINAL)
        return s->number <= (MIGRATE_FINAL_PAUSED | MIGRATE_FINAL_POSTCOPY | MIGRATE_FINAL_RELEASED);
    if (s->kind == MIGRATE_GO)
        s->value = bytes_get_u64(in);
    if (s->kind == MIGRATE_CANCEL) {
        size_t left = bytes_left(in);
        if (left > MIGRATE_TEXT_BYTES_MAX)
            return false;
        memcpy(s->text, bytes_get(in, left), left);
    }
    return true;
}

int migrate_step_decode(const struct stream_section *section, struct migrate_step *ret_step, struct error *err)
{
    struct bytes_reader in = bytes_reader(section->payload, section->size);
    struct migrate_step s = {.kind = (enum migrate_kind)bytes_get_u16(&in)};
    uint16_t zero = bytes_get_u16(&in);
    s.number = bytes_get_u32(&in);
    ASSERT(section->tag == STREAM_MIGRATE);
    if (in.bad || zero != 0 || s.kind < MIGRATE_OPEN || s.kind >= MIGRATE_KIND_END || !rest_decode(&in, &s) || in.bad ||
        bytes_left(&in))
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "section %u, a step of the migration, is malformed",
                         section->number);
    *ret_step = s;
    return 0;
}

void migrate_reply_encode(const struct migrate_reply *reply, struct bytes_writer *out)
{
    size_t start = out->size, length = strlen(reply->text);
    bytes_put_u32(out, REPLY_MAGIC);
    bytes_put_u16(out, (uint16_t)reply->kind);
    bytes_put_u16(out, (uint16_t)length);
    bytes_put_u64(out, reply->value);
    bytes_put(out, reply->text, length);
    bytes_put_u32(out, bytes_crc32c(0, out->data + start, out->size - start));
}

static int reply_refuse(struct error *err)
{
    return error_set(err, -EBADMSG, ERROR_CHECKSUM, "what the target answers is malformed");
}

ssize_t migrate_reply_size(const uint8_t *data, struct error *err)
{
    struct bytes_reader in = bytes_reader(data, MIGRATE_REPLY_BYTES);
    uint32_t magic = bytes_get_u32(&in);
    uint16_t kind = bytes_get_u16(&in), length = bytes_get_u16(&in);
    if (magic != REPLY_MAGIC || kind < MIGRATE_ACCEPTED || kind >= MIGRATE_REPLY_END || length > MIGRATE_TEXT_BYTES_MAX)
        return reply_refuse(err);
    return MIGRATE_REPLY_BYTES + length + 4;
}

int migrate_reply_decode(const uint8_t *data, size_t size, struct migrate_reply *ret_reply, struct error *err)
{
    ssize_t whole = size >= MIGRATE_REPLY_BYTES ? migrate_reply_size(data, err) : reply_refuse(err);
    if (whole < 0)
        return (int)whole;
    struct bytes_reader in = bytes_reader(data + 4, size - 4);
    struct migrate_reply r = {.kind = (enum migrate_reply_kind)bytes_get_u16(&in)};
    uint16_t length = bytes_get_u16(&in);
    r.value = bytes_get_u64(&in);
    const char *text = bytes_get(&in, length);
    uint32_t crc = bytes_get_u32(&in);
    if (in.bad || size != (size_t)whole || crc != bytes_crc32c(0, data, size - 4))
        return reply_refuse(err);
    for (uint16_t i = 0; i < length; i++) /* it ends up in logs and answers */
        r.text[i] = text[i] >= ' ' && text[i] <= '~' ? text[i] : '?';
    *ret_reply = r;
    return 0;
}
