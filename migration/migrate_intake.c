/* Sections in, events out; see migrate_intake.h. */
#include "migration/migrate_intake.h"

#include <errno.h>
#include <string.h>

void intake_init(struct migrate_intake *in, const struct guest_region *regions, size_t count)
{
    *in = (struct migrate_intake){.region_count = count};
    memcpy(in->regions, regions, count * sizeof(*regions));
}

void intake_finish(struct migrate_intake *in)
{
    OBJECT_CLEAR(machine_description, &in->description);
    stream_states_finish(&in->states);
    for (size_t i = 0; i < GUEST_REGIONS_MAX; i++)
        free(in->crcs[i]);
    for (size_t i = 0; i < GUEST_REGIONS_MAX; i++)
        free(in->lack[i]);
    *in = (struct migrate_intake){0};
}

void intake_channel_init(struct intake_channel *c)
{
    *c = (struct intake_channel){.pages = stream_pages_reader_create()};
}

void intake_channel_finish(struct intake_channel *c)
{
    stream_pages_reader_destroy(TAKE_PTR(c->pages));
}

static int out_of_order(const struct stream_section *s, struct error *err)
{
    return error_set(err, -EBADMSG, ERROR_CHECKSUM, "section %u of the migration, of kind %u, is out of order",
                     s->number, s->tag);
}

static int header_take(struct migrate_intake *in, struct intake_channel *c, bool is_first,
                       const struct stream_section *section, struct error *err)
{
    struct machine_description other = {0};
    bool keep = is_first && !in->has_description;
    int code = stream_header_decode(section, keep ? &in->description : &other, err);
    OBJECT_CLEAR(machine_description, &other);
    if (code < 0)
        return code;
    in->has_description |= keep;
    c->stage = INTAKE_AT_OPEN;
    return INTAKE_NONE;
}

/* A connection of a post-copy that lost the one before. */
static int resume_take(struct migrate_intake *in, struct intake_channel *c, bool is_first, struct error *err)
{
    const struct migrate_step *step = &c->step;
    if (!in->postcopy || !in->place || step->channels != in->channels || is_first != (step->number == 0) ||
        memcmp(step->id, in->id, sizeof(in->id)) != 0)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "channel %u is none of this migration's", step->number);
    c->number = step->number;
    c->stage = INTAKE_AT_POST;
    return INTAKE_OPENED;
}

static int open_take(struct migrate_intake *in, struct intake_channel *c, bool is_first, struct error *err)
{
    const struct migrate_step *step = &c->step;
    if (step->flags & MIGRATE_OPEN_RESUME)
        return resume_take(in, c, is_first, err);
    bool fits = is_first ? step->number == 0 && !in->is_open
                         : in->is_open && step->number > 0 && step->channels == in->channels &&
                               !(in->joined >> step->number & 1) && memcmp(step->id, in->id, sizeof(in->id)) == 0;
    if (!fits)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "channel %u is none of this migration's", step->number);
    if (is_first) {
        in->is_open = true;
        in->channels = step->channels;
        in->verify = step->flags & MIGRATE_OPEN_VERIFY;
        memcpy(in->id, step->id, sizeof(in->id));
    }
    in->joined |= 1u << step->number;
    c->number = step->number;
    c->stage = is_first ? INTAKE_AT_CHECK : INTAKE_AT_PAGES;
    return INTAKE_OPENED;
}

static uint64_t pieces_of(const struct guest_region *r)
{
    return (r->size + MIGRATE_PIECE_BYTES - 1) / MIGRATE_PIECE_BYTES;
}

static int verify_take(struct migrate_intake *in, const struct migrate_step *step, struct error *err)
{
    uint32_t region = step->number;
    if (!in->verify || region >= in->region_count || step->value != in->crc_counts[region] ||
        step->crc_count > pieces_of(&in->regions[region]) - in->crc_counts[region])
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the checksums of memory are out of order");
    if (!in->crcs[region])
        in->crcs[region] = xcalloc(pieces_of(&in->regions[region]), sizeof(uint32_t));
    struct bytes_reader crcs = bytes_reader(step->crcs, (size_t)step->crc_count * 4);
    for (uint32_t i = 0; i < step->crc_count; i++)
        in->crcs[region][in->crc_counts[region]++] = bytes_get_u32(&crcs);
    return INTAKE_NONE;
}

static int lack_take(struct migrate_intake *in, const struct migrate_step *step, struct error *err)
{
    uint32_t region = step->number;
    uint64_t pages = region < in->region_count ? in->regions[region].size / GUEST_PAGE_BYTES : 0, words = (pages + 63) / 64;
    uint64_t at = step->value / 64, count = step->bits_bytes / 8, last = 0;
    if (step->value < (pages ? in->lack_next[region] : 0) || at >= words || count > words - at)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the list of lacking pages is out of order");
    struct bytes_reader bits = bytes_reader(step->bits, step->bits_bytes);
    if (!in->lack[region])
        in->lack[region] = xcalloc(words, sizeof(uint64_t));
    for (uint64_t i = 0; i < count; i++)
        last = in->lack[region][at + i] = bytes_get_u64(&bits);
    in->lack_next[region] = (at + count) * 64;
    if (at + count == words && pages % 64 && last >> (pages % 64))
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "pages are said to be lacking that there are not");
    return INTAKE_NONE;
}

static int final_take(struct migrate_intake *in, struct intake_channel *c)
{
    bool is_main = c->number == 0, postcopy = c->step.number & MIGRATE_FINAL_POSTCOPY;
    if (is_main) {
        in->paused = c->step.number & MIGRATE_FINAL_PAUSED;
        in->released = c->step.number & MIGRATE_FINAL_RELEASED;
        in->postcopy = postcopy;
    }
    c->stage = is_main ? INTAKE_AT_GO : postcopy ? INTAKE_AT_POST : INTAKE_AT_END;
    return INTAKE_FINAL;
}

/* A step on a channel that is past OPEN. */
static int step_take(struct migrate_intake *in, struct intake_channel *c, const struct stream_section *section,
                     struct error *err)
{
    bool is_main = c->number == 0;
    switch (c->step.kind) {
    case MIGRATE_CHECK:
        return c->stage == INTAKE_AT_CHECK ? INTAKE_CHECK : out_of_order(section, err);
    case MIGRATE_SYNC:
        return c->stage == INTAKE_AT_PAGES || c->stage == INTAKE_AT_POST ? INTAKE_SYNC : out_of_order(section, err);
    case MIGRATE_VERIFY:
        return is_main && c->stage == INTAKE_AT_PAGES ? verify_take(in, &c->step, err) : out_of_order(section, err);
    case MIGRATE_LACK:
        return is_main && c->stage == INTAKE_AT_PAGES ? lack_take(in, &c->step, err) : out_of_order(section, err);
    case MIGRATE_FINAL:
        return c->stage == INTAKE_AT_PAGES ? final_take(in, c) : out_of_order(section, err);
    case MIGRATE_GO:
        if (c->stage != INTAKE_AT_GO)
            return out_of_order(section, err);
        c->stage = in->postcopy ? INTAKE_AT_POST : INTAKE_AT_END;
        return INTAKE_GO;
    case MIGRATE_DONE:
        if (!is_main || c->stage != INTAKE_AT_POST)
            return out_of_order(section, err);
        c->stage = INTAKE_AT_END;
        return INTAKE_DONE;
    case MIGRATE_CANCEL:
        return is_main && c->stage < INTAKE_AT_POST ? INTAKE_CANCEL : out_of_order(section, err);
    case MIGRATE_OPEN:
    case MIGRATE_KIND_END:
    default:
        return out_of_order(section, err);
    }
}

static int migrate_take(struct migrate_intake *in, struct intake_channel *c, bool is_first,
                        const struct stream_section *section, struct error *err)
{
    int code = migrate_step_decode(section, &c->step, err);
    if (code < 0)
        return code;
    if (c->stage == INTAKE_AT_OPEN)
        return c->step.kind == MIGRATE_OPEN ? open_take(in, c, is_first, err) : out_of_order(section, err);
    code = step_take(in, c, section, err);
    c->step.crcs = c->step.bits = NULL;
    return code;
}

int intake_section(struct migrate_intake *in, struct intake_channel *c, bool is_first,
                   const struct stream_section *section, struct error *err)
{
    bool state_may_come =
        c->number == 0 && (c->stage == INTAKE_AT_CHECK || (c->stage == INTAKE_AT_PAGES && is_first));
    switch (section->tag) {
    case STREAM_HEADER:
        return c->stage == INTAKE_AT_HEADER ? header_take(in, c, is_first, section, err) : out_of_order(section, err);
    case STREAM_MIGRATE:
        return c->stage == INTAKE_AT_HEADER ? out_of_order(section, err)
                                            : migrate_take(in, c, is_first, section, err);
    case STREAM_STATE:
        return state_may_come ? stream_states_add(&in->states, section, err) : out_of_order(section, err);
    case STREAM_PAGES:
        if (c->stage == INTAKE_AT_POST && in->place)
            return stream_pages_place(c->pages, section, in->regions, in->region_count, in->place, in->place_arg, err);
        return c->stage == INTAKE_AT_PAGES
                   ? stream_pages_apply(c->pages, section, in->regions, in->region_count, false, err)
                   : out_of_order(section, err);
    case STREAM_END:
        return c->stage == INTAKE_AT_END || (c->stage == INTAKE_AT_POST && c->number > 0) ? INTAKE_END : out_of_order(section, err);
    default:
        return out_of_order(section, err);
    }
}

void intake_accept(struct migrate_intake *in, struct intake_channel *c)
{
    ASSERT(c->stage == INTAKE_AT_CHECK);
    c->stage = INTAKE_AT_PAGES;
    stream_states_finish(&in->states);
}

int intake_verify(const struct migrate_intake *in, struct error *err)
{
    for (size_t i = 0; in->verify && !in->postcopy && i < in->region_count; i++) {
        const struct guest_region *r = &in->regions[i];
        if (in->crc_counts[i] != pieces_of(r))
            return error_set(err, -EBADMSG, ERROR_CHECKSUM, "checksums of memory are missing");
        for (uint64_t at = 0; at < r->size; at += MIGRATE_PIECE_BYTES)
            if (bytes_crc32c(0, r->host + at, MIN((uint64_t)MIGRATE_PIECE_BYTES, r->size - at)) !=
                in->crcs[i][at / MIGRATE_PIECE_BYTES])
                return error_set(err, -EBADMSG, ERROR_CHECKSUM, "memory at %#llx is not what it is at the source",
                                 (unsigned long long)(r->gpa + at));
    }
    return 0;
}
