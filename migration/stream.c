/* Writing sections, and reading them back through one checked door (stream.h). */
#include "migration/stream.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { MAGIC_BYTES = 8, HEAD_CRC_AT = STREAM_SECTION_HEAD_BYTES - 4 };

static const char *const features_known[] = {STREAM_FEATURE_ZSTD, STREAM_FEATURE_IMAGE, STREAM_FEATURE_MIGRATE};
/* The newest version of each tag that is understood here. */
static const uint16_t versions_known[] = {
    [STREAM_HEADER] = 1, [STREAM_STATE] = UINT16_MAX /* the device judges */, [STREAM_PAGES] = 1, [STREAM_IMAGE] = 1,
    [STREAM_END] = 1,    [STREAM_MIGRATE] = 2,
};

/* ---- writing ---- */

static int write_all(struct stream_writer *w, const void *data, size_t size, struct error *err)
{
    int code = size ? w->write(w->arg, data, size, err) : 0;
    if (code == 0)
        w->bytes += size;
    return code;
}

int stream_put(struct stream_writer *w, uint16_t tag, uint16_t version, uint16_t flags, const void *payload,
               size_t size, struct error *err)
{
    ASSERT(size <= STREAM_SECTION_BYTES_MAX);
    struct bytes_writer head = {0};
    bytes_put_u16(&head, tag);
    bytes_put_u16(&head, version);
    bytes_put_u16(&head, flags);
    bytes_put_u16(&head, 0);
    bytes_put_u32(&head, w->sections);
    bytes_put_u32(&head, (uint32_t)size);
    bytes_put_u32(&head, bytes_crc32c(0, payload, size));
    bytes_put_u32(&head, bytes_crc32c(0, head.data, head.size));
    int code = write_all(w, head.data, head.size, err);
    bytes_writer_finish(&head);
    if (code == 0)
        code = write_all(w, payload, size, err);
    if (code == 0)
        w->sections++;
    return code;
}

int stream_writer_begin(struct stream_writer *w, stream_write_fn write, void *arg,
                        const struct machine_description *header, struct error *err)
{
    *w = (struct stream_writer){.write = write, .arg = arg};
    struct bytes_writer text = {0}, prologue = {0};
    bytes_put(&prologue, STREAM_MAGIC, MAGIC_BYTES);
    bytes_put_u16(&prologue, STREAM_VERSION);
    bytes_put_u16(&prologue, STREAM_VERSION);
    bytes_put_u32(&prologue, bytes_crc32c(0, prologue.data, prologue.size));
    OBJECT_ENCODE(machine_description, header, &text);
    int code = text.size <= STREAM_HEADER_BYTES_MAX
                   ? write_all(w, prologue.data, prologue.size, err)
                   : error_set(err, -E2BIG, ERROR_TOO_LARGE, "the machine's description has %zu bytes, more than %u",
                               text.size, STREAM_HEADER_BYTES_MAX);
    if (code == 0)
        code = stream_put(w, STREAM_HEADER, 1, STREAM_MUST_UNDERSTAND, text.data, text.size, err);
    bytes_writer_finish(&text);
    bytes_writer_finish(&prologue);
    return code;
}

int stream_put_state(struct stream_writer *w, const char *name, uint16_t version, const void *data, size_t size,
                     struct error *err)
{
    struct bytes_writer payload = {0};
    size_t length = strlen(name);
    ASSERT(length >= 1 && length <= STREAM_NAME_BYTES_MAX);
    bytes_put_u8(&payload, (uint8_t)length);
    bytes_put(&payload, name, length);
    bytes_put(&payload, data, size);
    int code = stream_put(w, STREAM_STATE, version, STREAM_MUST_UNDERSTAND, payload.data, payload.size, err);
    bytes_writer_finish(&payload);
    return code;
}

int stream_put_end(struct stream_writer *w, struct error *err)
{
    struct bytes_writer payload = {0};
    bytes_put_u32(&payload, w->sections);
    bytes_put_u64(&payload, w->bytes);
    int code = stream_put(w, STREAM_END, 1, STREAM_MUST_UNDERSTAND, payload.data, payload.size, err);
    bytes_writer_finish(&payload);
    return code;
}

/* ---- reading ---- */

void stream_reader_init(struct stream_reader *r)
{
    *r = (struct stream_reader){0};
}

void stream_reader_finish(struct stream_reader *r)
{
    bytes_writer_finish(&r->buffer);
    *r = (struct stream_reader){0};
}

static size_t available(const struct stream_reader *r)
{
    return r->buffer.size - r->taken;
}

static const uint8_t *front(const struct stream_reader *r)
{
    return r->buffer.data + r->taken;
}

static uint32_t load_u32(const uint8_t *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* A length is believed only when its head's CRC holds and it is within the limit: stream_next says what is wrong. */
static bool head_is_sound(const uint8_t *head)
{
    return load_u32(head + HEAD_CRC_AT) == bytes_crc32c(0, head, HEAD_CRC_AT) &&
           load_u32(head + 12) <= STREAM_SECTION_BYTES_MAX;
}

size_t stream_wanted(const struct stream_reader *r)
{
    size_t need = r->has_prologue ? STREAM_SECTION_HEAD_BYTES : STREAM_PROLOGUE_BYTES;
    if (r->ended || r->failed)
        return 0;
    if (r->has_prologue && available(r) >= need && head_is_sound(front(r)))
        need += load_u32(front(r) + 12);
    return need > available(r) ? need - available(r) : 1;
}

void stream_feed(struct stream_reader *r, const void *data, size_t size)
{
    /* What has been consumed goes first, so that the buffer holds one section and what was fed beyond it. */
    if (r->taken) {
        memmove(r->buffer.data, r->buffer.data + r->taken, available(r));
        r->buffer.size -= r->taken;
        r->taken = 0;
    }
    bytes_put(&r->buffer, data, size);
}

static int refuse(struct stream_reader *r, struct error *err, int code, const char *what)
{
    r->failed = code;
    return error_set(err, code, code == -ENOTSUP ? ERROR_NOT_SUPPORTED : ERROR_CHECKSUM,
                     "the machine's stream is refused at byte %llu: %s", (unsigned long long)r->bytes, what);
}

static void consume(struct stream_reader *r, size_t size)
{
    r->taken += size;
    r->bytes += size;
}

static int prologue_take(struct stream_reader *r, struct error *err)
{
    if (available(r) < STREAM_PROLOGUE_BYTES)
        return 0;
    struct bytes_reader in = bytes_reader(front(r), STREAM_PROLOGUE_BYTES);
    const void *magic = bytes_get(&in, MAGIC_BYTES);
    uint16_t version = bytes_get_u16(&in), oldest = bytes_get_u16(&in);
    if (memcmp(magic, STREAM_MAGIC, MAGIC_BYTES) != 0)
        return refuse(r, err, -EBADMSG, "it is not a machine of drover at all");
    if (bytes_get_u32(&in) != bytes_crc32c(0, front(r), STREAM_PROLOGUE_BYTES - 4))
        return refuse(r, err, -EBADMSG, "its first bytes are damaged");
    if (oldest > STREAM_VERSION || version == 0) {
        char what[80];
        snprintf(what, sizeof(what), "format %u needs a newer program; this one reads up to %d", oldest,
                 STREAM_VERSION);
        return refuse(r, err, -ENOTSUP, what);
    }
    r->has_prologue = true;
    consume(r, STREAM_PROLOGUE_BYTES);
    return 1;
}

static int end_check(struct stream_reader *r, const struct stream_section *s, struct error *err)
{
    struct bytes_reader in = bytes_reader(s->payload, s->size);
    uint32_t sections = bytes_get_u32(&in);
    uint64_t bytes = bytes_get_u64(&in);
    if (in.bad || bytes_left(&in) || sections != s->number || bytes != r->bytes)
        return refuse(r, err, -EBADMSG, "its end does not fit what came before");
    r->ended = true;
    return 0;
}

/* The head's fields as far as they must hold before the payload is waited for. */
static int head_check(struct stream_reader *r, struct stream_section *s, uint32_t *ret_size, uint32_t *ret_crc,
                      struct error *err)
{
    char what[96];
    struct bytes_reader in = bytes_reader(front(r), STREAM_SECTION_HEAD_BYTES);
    s->tag = bytes_get_u16(&in);
    s->version = bytes_get_u16(&in);
    s->flags = bytes_get_u16(&in);
    uint16_t zero = bytes_get_u16(&in);
    s->number = bytes_get_u32(&in);
    *ret_size = bytes_get_u32(&in);
    *ret_crc = bytes_get_u32(&in);
    if (bytes_get_u32(&in) != bytes_crc32c(0, front(r), HEAD_CRC_AT))
        return refuse(r, err, -EBADMSG, "the head of a section is damaged");
    if (s->number != r->sections)
        return refuse(r, err, -EBADMSG, "a section is out of order");
    if (*ret_size > STREAM_SECTION_BYTES_MAX || zero != 0 ||
        (s->tag == STREAM_HEADER && *ret_size > STREAM_HEADER_BYTES_MAX))
        return refuse(r, err, -EBADMSG, "a section is longer than any that is allowed");
    if ((s->tag == STREAM_HEADER) != (s->number == 0))
        return refuse(r, err, -EBADMSG, "the header is not the first section");
    bool known = s->tag > 0 && s->tag < ARRAY_SIZE(versions_known);
    if ((known && s->version > versions_known[s->tag]) || (!known && s->flags & STREAM_MUST_UNDERSTAND)) {
        snprintf(what, sizeof(what), "section %u of kind %u, version %u, needs a newer program", s->number, s->tag,
                 s->version);
        return refuse(r, err, -ENOTSUP, what);
    }
    return known;
}

int stream_next(struct stream_reader *r, struct stream_section *ret_section, struct error *err)
{
    if (r->failed)
        return error_set(err, r->failed, ERROR_CHECKSUM, "the machine's stream was refused before");
    if (r->ended)
        return available(r) ? refuse(r, err, -EBADMSG, "there is more after its end") : 0;
    int code = r->has_prologue ? 1 : prologue_take(r, err);
    while (code > 0) {
        struct stream_section s = {0};
        uint32_t size, crc;
        if (available(r) < STREAM_SECTION_HEAD_BYTES)
            return 0;
        int known = head_check(r, &s, &size, &crc, err);
        if (known < 0)
            return known;
        if (available(r) - STREAM_SECTION_HEAD_BYTES < size)
            return 0;
        s.payload = front(r) + STREAM_SECTION_HEAD_BYTES;
        s.size = size;
        if (bytes_crc32c(0, s.payload, s.size) != crc)
            return refuse(r, err, -EBADMSG, "the content of a section is damaged");
        if (s.tag == STREAM_END && (code = end_check(r, &s, err)) < 0)
            return code;
        r->sections++;
        consume(r, STREAM_SECTION_HEAD_BYTES + size);
        if (!known)
            continue;
        *ret_section = s;
        return 1;
    }
    return code;
}

int stream_check_ended(const struct stream_reader *r, struct error *err)
{
    if (r->ended)
        return 0;
    return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the machine's stream is cut short after %llu bytes",
                     (unsigned long long)(r->bytes + available(r)));
}

static bool feature_is_known(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(features_known); i++)
        if (strcmp(name, features_known[i]) == 0)
            return true;
    return false;
}

int stream_header_decode(const struct stream_section *section, struct machine_description *ret_header,
                         struct error *err)
{
    ASSERT(section->tag == STREAM_HEADER);
    /* Lenient: a field that is new and must be understood comes with a feature. */
    int code = OBJECT_DECODE(machine_description, (const char *)section->payload, section->size, OBJECT_LENIENT,
                             ret_header, err);
    if (code < 0) {
        error_prefix(err, "the description of the machine: ");
        return code;
    }
    for (size_t i = 0; i < ret_header->features.count; i++)
        if (!feature_is_known(ret_header->features.items[i])) {
            code = error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                             "the machine's stream uses \"%s\", which this program does not know; use a newer one",
                             ret_header->features.items[i]);
            OBJECT_CLEAR(machine_description, ret_header);
            return code;
        }
    return 0;
}

/* ---- states, gathered ---- */

static struct stream_state *state_find(const struct stream_states *states, const char *name)
{
    for (size_t i = 0; i < states->count; i++)
        if (strcmp(states->items[i].name, name) == 0)
            return &states->items[i];
    return NULL;
}

int stream_states_add(struct stream_states *states, const struct stream_section *section, struct error *err)
{
    struct stream_state state = {.version = section->version};
    struct bytes_reader in = bytes_reader(section->payload, section->size);
    size_t length = bytes_get_u8(&in);
    const char *name = bytes_get(&in, length);
    ASSERT(section->tag == STREAM_STATE);
    if (in.bad || length == 0 || length > STREAM_NAME_BYTES_MAX || memchr(name, 0, length))
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "section %u holds the state of a device without a name",
                         section->number);
    memcpy(state.name, name, length);
    if (state_find(states, state.name))
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the state of \"%s\" is there twice", state.name);
    if (states->count == STREAM_STATES_MAX || bytes_left(&in) > STREAM_STATES_BYTES_MAX - states->bytes)
        return error_set(err, -E2BIG, ERROR_TOO_LARGE, "the machine has more than %u states, or %u bytes of them",
                         STREAM_STATES_MAX, STREAM_STATES_BYTES_MAX);
    state.size = bytes_left(&in);
    state.data = xcalloc(1, MAX(state.size, 1));
    memcpy(state.data, in.at, state.size);
    states->items = xrealloc(states->items, (states->count + 1) * sizeof(*states->items));
    states->items[states->count++] = state;
    states->bytes += state.size;
    return 0;
}

void stream_states_finish(struct stream_states *states)
{
    for (size_t i = 0; i < states->count; i++)
        free(states->items[i].data);
    free(states->items);
    *states = (struct stream_states){0};
}

struct stream_state *stream_states_take(struct stream_states *states, const char *name, uint16_t version_max,
                                        struct error *err)
{
    struct stream_state *state = state_find(states, name);
    if (!state) {
        error_set(err, -EBADMSG, ERROR_INVALID,
                  "the saved machine has no \"%s\", this one does; their configurations must be the same", name);
        return NULL;
    }
    if (state->version > version_max) {
        error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                  "the state of \"%s\" has version %u, newer than this program's %u; use a newer program", name,
                  state->version, version_max);
        return NULL;
    }
    state->taken = true;
    return state;
}

int stream_states_check_taken(const struct stream_states *states, struct error *err)
{
    for (size_t i = 0; i < states->count; i++)
        if (!states->items[i].taken)
            return error_set(err, -EBADMSG, ERROR_INVALID,
                             "the saved machine has \"%s\", this one does not; their configurations must be the same",
                             states->items[i].name);
    return 0;
}
