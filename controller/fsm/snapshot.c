/* Snapshots of the state; the format is in the header. Writing copies the JSON that every record keeps, so that it stalls
 * the raft loop only for the time of a copy. */
#include "controller/fsm/snapshot.h"

#include <errno.h>
#include <string.h>

#include "controller/fsm/state_edit.h"

#define HEADER_BYTES 32u
#define SECTION_COUNT_1 10u /* of version 1, always there */

static const struct {
    enum snapshot_section section;
    enum object_kind kind;
} sections[] = {
    {SNAPSHOT_CLUSTER, object_kind_CLUSTER},       {SNAPSHOT_CONTROLLERS, object_kind_CONTROLLER},
    {SNAPSHOT_HOSTS, object_kind_HOST},            {SNAPSHOT_FLAVORS, object_kind_FLAVOR},
    {SNAPSHOT_IMAGES, object_kind_IMAGE},          {SNAPSHOT_VMS, object_kind_VM},
    {SNAPSHOT_OPERATIONS, object_kind_OPERATION},  {SNAPSHOT_TOKENS, object_kind_TOKEN},
    {SNAPSHOT_EVENTS, object_kind_EVENT},          {SNAPSHOT_ANSWERS, object_kind_COUNT},
    {SNAPSHOT_NETWORKS, object_kind_NETWORK},      {SNAPSHOT_SECURITY_GROUPS, object_kind_SECURITY_GROUP},
    {SNAPSHOT_SNAPSHOTS, object_kind_SNAPSHOT},    {SNAPSHOT_BACKUP_STORES, object_kind_BACKUP_STORE},
    {SNAPSHOT_BACKUPS, object_kind_BACKUP},        {SNAPSHOT_BACKUP_POLICIES, object_kind_BACKUP_POLICY},
    {SNAPSHOT_POOLS, object_kind_POOL},            {SNAPSHOT_VOLUMES, object_kind_VOLUME},
};

/* ---- write ---- */

static void put_record(struct bytes_writer *out, const void *json, size_t size)
{
    bytes_put_u32(out, (uint32_t)size);
    bytes_put(out, json, size);
}

static void put_events(const struct state *state, struct bytes_writer *out)
{
    struct state_event event;
    bytes_put_u32(out, (uint32_t)state->events_count);
    for (uint64_t serial = 0; state_event_next(state, serial, &event); serial = event.serial)
        put_record(out, event.json, event.json_size);
}

static void put_answers(const struct state *state, struct bytes_writer *out)
{
    bytes_put_u32(out, (uint32_t)state->answer_count);
    for (size_t i = 0; i < state->answer_count; i++) {
        struct bytes_writer json = {0};
        OBJECT_ENCODE(answer_record, state_answer_at(state, i), &json);
        put_record(out, json.data, json.size);
        bytes_writer_finish(&json);
    }
}

static void put_table(const struct state *state, enum object_kind kind, struct bytes_writer *out)
{
    const struct record_index *order = &state->tables[kind].order;
    bytes_put_u32(out, (uint32_t)order->count);
    for (size_t i = 0; i < order->count; i++)
        put_record(out, order->items[i]->json, order->items[i]->json_size);
}

static size_t size_of(const struct state *state)
{
    struct state_event event;
    size_t size = HEADER_BYTES + ARRAY_SIZE(sections) * 8 + state->answer_count * 400;
    for (unsigned kind = 0; kind < object_kind_COUNT; kind++)
        for (size_t i = 0; i < state->tables[kind].order.count; i++)
            size += 4 + state->tables[kind].order.items[i]->json_size;
    for (uint64_t serial = 0; state_event_next(state, serial, &event); serial = event.serial)
        size += 4 + event.json_size;
    return size;
}

/* Sections of version 1 are always there, later ones where they have something. */
static bool is_written(const struct state *state, unsigned i)
{
    return i < SECTION_COUNT_1 || state_count(state, sections[i].kind) > 0;
}

static void put_section(const struct state *state, unsigned i, struct bytes_writer *out)
{
    bytes_put_u32(out, sections[i].section);
    if (sections[i].section == SNAPSHOT_EVENTS)
        put_events(state, out);
    else if (sections[i].section == SNAPSHOT_ANSWERS)
        put_answers(state, out);
    else
        put_table(state, sections[i].kind, out);
}

void snapshot_write(const struct state *state, struct bytes_writer *out)
{
    uint32_t count = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(sections); i++)
        count += is_written(state, i);
    bytes_reserve(out, size_of(state)); /* growing by doubling would copy everything again and again */
    bytes_put_u32(out, SNAPSHOT_MAGIC);
    bytes_put_u16(out, count > SECTION_COUNT_1 ? SNAPSHOT_VERSION : 1);
    bytes_put_u16(out, 0);
    bytes_put_u64(out, state->index);
    bytes_put_u64(out, state->events_serial);
    bytes_put_u32(out, count);
    bytes_put_u32(out, 0);
    for (unsigned i = 0; i < ARRAY_SIZE(sections); i++)
        if (is_written(state, i))
            put_section(state, i, out);
}

/* ---- read ---- */

static int damaged(struct error *err, const char *what)
{
    return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the snapshot is damaged: %s", what);
}

static int read_object(struct bytes_reader *in, const struct object_desc *desc, void *object, struct error *err)
{
    uint32_t length = bytes_get_u32(in);
    if (in->bad || length > SNAPSHOT_RECORD_BYTES_MAX || length > bytes_left(in))
        return damaged(err, "a record ends early");
    const char *json = bytes_get(in, length);
    if (object_decode(desc, json, length, OBJECT_STORED, object, err) < 0) {
        error_prefix(err, "the snapshot is damaged: %s: ", desc->name);
        return -EBADMSG;
    }
    return 0;
}

/* What the tables rely on and the codec does not ask of a stored object. */
static int check_object(const struct state *state, enum object_kind kind, const struct record_common *object, struct error *err)
{
    const struct vm *vm = (const void *)object;
    const struct operation *operation = (const void *)object;
    if (object->id == NULL || object->name == NULL)
        return damaged(err, "an object has no id or no name");
    if (map_get(&state->tables[kind].by_id, object->id) != NULL || map_get(&state->tables[kind].by_name, object->name) != NULL)
        return damaged(err, "an id or a name is there twice");
    if (kind == object_kind_VM && (vm->image == NULL || (vm->host != NULL) != (vm->host_name != NULL)))
        return damaged(err, "a VM lacks fields");
    if (kind == object_kind_SNAPSHOT && ((const struct snapshot *)object)->vm == NULL)
        return damaged(err, "a snapshot lacks its VM");
    if (kind == object_kind_BACKUP &&
        (((const struct backup *)object)->vm == NULL || ((const struct backup *)object)->store == NULL))
        return damaged(err, "a backup lacks its VM or its store");
    if (kind == object_kind_OPERATION && (operation->target_id == NULL || operation->target_name == NULL))
        return damaged(err, "an operation lacks its target");
    return 0;
}

static int read_table(struct state *state, struct bytes_reader *in, enum object_kind kind, uint32_t count, struct error *err)
{
    const struct object_desc *desc = state_kind_desc(kind);
    CLEANUP_FREE void *object = xcalloc(1, desc->size);
    for (uint32_t i = 0; i < count; i++) {
        int rc = read_object(in, desc, object, err);
        if (rc == 0)
            rc = check_object(state, kind, object, err);
        if (rc < 0) {
            object_clear(desc, object);
            return rc;
        }
        uint64_t revision = ((struct record_common *)object)->revision;
        state_insert(state, kind, object, revision);
    }
    return 0;
}

static int read_events(struct state *state, struct bytes_reader *in, uint32_t count, struct error *err)
{
    uint64_t newest = state->events_serial, last = 0;
    if (count > newest)
        return damaged(err, "more events than there ever were");
    state->events_serial = newest - count;
    for (uint32_t i = 0; i < count; i++) {
        struct event event = {0};
        int rc = read_object(in, &event_desc, &event, err);
        if (rc < 0)
            return rc;
        if (event.index < last || event.index > state->index) {
            OBJECT_CLEAR(event, &event);
            return damaged(err, "events are out of order");
        }
        last = event.index;
        state_add_event(state, &event);
    }
    return 0;
}

static int read_answers(struct state *state, struct bytes_reader *in, uint32_t count, struct error *err)
{
    for (uint32_t i = 0; i < count; i++) {
        struct answer_record answer = {0};
        int rc = read_object(in, &answer_record_desc, &answer, err);
        if (rc < 0)
            return rc;
        if (answer.key == NULL || answer.fingerprint == NULL || answer.at == NULL || state_answer(state, answer.key) != NULL) {
            OBJECT_CLEAR(answer_record, &answer);
            return damaged(err, "an answer lacks its key, or its key is there twice");
        }
        state_add_answer(state, &answer);
    }
    return 0;
}

static int read_header(struct state *state, struct bytes_reader *in, uint32_t *ret_count, struct error *err)
{
    uint32_t magic = bytes_get_u32(in);
    unsigned version = bytes_get_u16(in), zero = bytes_get_u16(in);
    if (in->bad || magic != SNAPSHOT_MAGIC)
        return damaged(err, "it does not begin as a snapshot does");
    if (version > SNAPSHOT_VERSION)
        return error_set(err, -EPROTONOSUPPORT, ERROR_NOT_SUPPORTED,
                         "the snapshot has version %u, this program reads up to %u: upgrade it", version, SNAPSHOT_VERSION);
    state->index = bytes_get_u64(in);
    state->events_serial = bytes_get_u64(in);
    uint32_t count = bytes_get_u32(in), zeros = bytes_get_u32(in);
    bool counted = version == 1 ? count == SECTION_COUNT_1 : count > SECTION_COUNT_1 && count <= ARRAY_SIZE(sections);
    if (in->bad || version == 0 || zero != 0 || zeros != 0 || !counted || state->index > OBJECT_INTEGER_MAX ||
        state->events_serial > OBJECT_INTEGER_MAX)
        return damaged(err, "its header is not sound");
    *ret_count = count;
    return 0;
}

static int read_section(struct state *state, struct bytes_reader *in, unsigned i, struct error *err)
{
    uint32_t count = bytes_get_u32(in);
    size_t most = sections[i].section == SNAPSHOT_EVENTS    ? STATE_EVENTS_MAX
                  : sections[i].section == SNAPSHOT_ANSWERS ? STATE_ANSWERS_MAX
                                                            : state_table_max(sections[i].kind);
    if (in->bad || count > most || (i >= SECTION_COUNT_1 && count == 0))
        return damaged(err, "a section is too large, or empty");
    return sections[i].section == SNAPSHOT_EVENTS    ? read_events(state, in, count, err)
           : sections[i].section == SNAPSHOT_ANSWERS ? read_answers(state, in, count, err)
                                                     : read_table(state, in, sections[i].kind, count, err);
}

static int read_sections(struct state *state, struct bytes_reader *in, uint32_t count, struct error *err)
{
    unsigned at = 0;
    for (uint32_t n = 0; n < count; n++, at++) {
        uint32_t section = bytes_get_u32(in);
        while (at >= SECTION_COUNT_1 && at < ARRAY_SIZE(sections) && section != (uint32_t)sections[at].section)
            at++; /* one that had nothing */
        if (in->bad || at >= ARRAY_SIZE(sections) || section != (uint32_t)sections[at].section)
            return damaged(err, "a section is not where it should be");
        int rc = read_section(state, in, at, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int snapshot_read(const void *data, size_t size, struct state **ret_state, struct error *err)
{
    struct bytes_reader in = bytes_reader(data, size);
    struct state *state = state_create();
    state->loading = true;
    uint32_t count = 0;
    int rc = read_header(state, &in, &count, err);
    if (rc == 0)
        rc = read_sections(state, &in, count, err);
    if (rc == 0 && bytes_left(&in) != 0)
        rc = damaged(err, "there is more than it says");
    if (rc == 0)
        rc = state_link_all(state, err);
    if (rc < 0) {
        state_destroy(state);
        return rc;
    }
    *ret_state = state;
    return 0;
}

void snapshot_exchange(struct state *a, struct state *b)
{
    struct state held = *a;
    *a = *b;
    *b = held;
}

int snapshot_restore(struct state *state, const void *data, size_t size, struct error *err)
{
    struct state *new = NULL;
    int rc = snapshot_read(data, size, &new, err);
    if (rc < 0)
        return rc;
    snapshot_exchange(state, new);
    state_destroy(new);
    return 0;
}
