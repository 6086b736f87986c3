/* Records as answers. The usual list, without filter and fields, is a copy of the JSON that is kept beside each
 * record. */
#include "controller/api/api_record.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define FIELD_TEXT_BYTES 1024

bool api_record_kind(const struct object_desc *desc, enum object_kind *ret_kind)
{
    for (unsigned i = 0; desc != NULL && desc->name != NULL && i < object_kind_COUNT; i++) {
        if (i == object_kind_EVENT || strcmp(object_kind_desc.names[i], desc->name) != 0)
            continue;
        *ret_kind = (enum object_kind)i;
        return true;
    }
    return false;
}

/* --- filter and fields --- */

/* The next part of *at up to @separator, in @buffer. False: the end, or (*bad) one that is too long or empty. */
static bool next_part(const char **at, const char *separator, char *buffer, size_t size, bool *bad)
{
    if (**at == '\0')
        return false;
    const char *end = strstr(*at, separator);
    size_t length = end != NULL ? (size_t)(end - *at) : strlen(*at);
    *bad = length == 0 || length >= size;
    if (*bad)
        return false;
    memcpy(buffer, *at, length);
    buffer[length] = '\0';
    *at += length + (end != NULL ? strlen(separator) : 0);
    return true;
}

static bool is_word(const struct enum_desc *desc, const char *value)
{
    for (unsigned i = 0; i < desc->count; i++)
        if (strcmp(desc->names[i], value) == 0)
            return true;
    return false;
}

static int parse_condition(const struct object_desc *desc, char *part, struct api_record_filter *filter,
                           struct error *err)
{
    char *equals = strchr(part, '=');
    if (equals == NULL || equals == part)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "?filter", "'%s' must be field=value or field!=value",
                               part);
    if (filter->count == API_RECORD_CONDITIONS_MAX)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "?filter", "at most %u conditions",
                               API_RECORD_CONDITIONS_MAX);
    __typeof__(&filter->conditions[0]) condition = &filter->conditions[filter->count];
    condition->unequal = equals[-1] == '!';
    equals[condition->unequal ? -1 : 0] = '\0';
    snprintf(condition->value, sizeof condition->value, "%s", equals + 1);
    char *label = strncmp(part, "labels.", 7) == 0 ? part + 7 : NULL;
    if (label != NULL) {
        snprintf(condition->label, sizeof condition->label, "%s", label);
        part[6] = '\0';
    }
    condition->field = object_field(desc, part);
    bool plain = condition->field != NULL && condition->field->kind != KIND_OBJ &&
                 condition->field->kind != KIND_LIST && condition->field->kind != KIND_STRS &&
                 !(condition->field->flags & SECRET);
    if (!plain || (condition->field->kind == KIND_MAP) != (label != NULL))
        return error_set_field(err, -EINVAL, ERROR_UNKNOWN_FIELD, "?filter",
                               "a %s has no field '%s' to filter by; labels are written labels.<key>", desc->name,
                               part);
    if (condition->field->kind == KIND_ENUM && !is_word(condition->field->ref.enums, condition->value))
        return error_set_field(err, -EINVAL, ERROR_INVALID, "?filter", "'%s' is no %s that there is, such as %s",
                               condition->value, part, condition->field->ref.enums->names[0]);
    filter->count++;
    return 0;
}

int api_record_filter_parse(const struct object_desc *desc, const struct api_query *query,
                            struct api_record_filter *ret_filter, struct error *err)
{
    struct api_record_filter filter = {.count = 0};
    char part[256];
    const char *at = query->filter;
    bool bad = false;
    int r;
    while (next_part(&at, " and ", part, sizeof part, &bad))
        if ((r = parse_condition(desc, part, &filter, err)) < 0)
            return r;
    if (bad)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "?filter", "a condition is empty or too long");
    at = query->fields;
    while (next_part(&at, ",", part, sizeof part, &bad)) {
        const struct field_desc *field = object_field(desc, part);
        if (field == NULL || (field->flags & SECRET))
            return error_set_field(err, -EINVAL, ERROR_UNKNOWN_FIELD, "?fields", "a %s has no field '%s'", desc->name,
                                   part);
        filter.mask |= UINT64_C(1) << (field - desc->fields);
    }
    if (bad)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "?fields", "a name is empty or too long");
    *ret_filter = filter;
    return 0;
}

static bool matches(const struct record *record, const struct api_record_filter *filter)
{
    for (unsigned i = 0; i < filter->count; i++) {
        __typeof__(&filter->conditions[0]) condition = &filter->conditions[i];
        char buffer[FIELD_TEXT_BYTES];
        const char *text;
        if (condition->label[0] != '\0')
            text = string_map_get(&record->common->labels, condition->label);
        else
            text = object_field_text(record->desc, record->object, condition->field, buffer, sizeof buffer);
        bool equal = text != NULL && strcmp(text, condition->value) == 0;
        if (equal == condition->unequal)
            return false;
    }
    return true;
}

/* --- output --- */

/* A shallow copy of the struct carries the fields that are not stored; it owns nothing and is never cleared. */
static void put_with_computed(const struct record *record, uint64_t leader_raft_id, uint64_t mask,
                              struct bytes_writer *out)
{
    union {
        struct object_head head;
        struct controller controller;
        struct host host;
        char bytes[4096];
    } copy;
    ASSERT(record->desc->size <= sizeof copy);
    memcpy(&copy, record->object, record->desc->size);
    if (record->kind == object_kind_CONTROLLER) {
        OBJECT_SET(controller, &copy.controller, leader, copy.controller.raft_id == leader_raft_id);
    } else if (record->kind == object_kind_HOST) {
        OBJECT_SET(host, &copy.host, committed_memory_bytes, record->of_host.committed_memory_bytes);
        OBJECT_SET(host, &copy.host, committed_vcpus, (uint32_t)record->of_host.committed_vcpus);
        OBJECT_SET(host, &copy.host, vms, (uint32_t)record->of_host.vms.count);
    }
    if (mask != 0)
        copy.head.present &= mask;
    object_encode_public(record->desc, &copy, out);
}

void api_record_put(const struct state *state, const struct record *record, uint64_t leader_raft_id, uint64_t mask,
                    struct bytes_writer *out)
{
    if (mask != 0 || record->kind == object_kind_CONTROLLER)
        put_with_computed(record, leader_raft_id, mask, out);
    else
        state_put_json(state, record, out);
}

void api_record_put_list(const struct state *state, enum object_kind kind, const struct api_query *query,
                         const struct api_record_filter *filter, uint64_t leader_raft_id, struct bytes_writer *out,
                         char ret_cursor[64])
{
    size_t count = state_count(state, kind), taken = 0;
    size_t i = query->cursor[0] != '\0' ? state_after(state, kind, query->cursor) : 0;
    const struct record *last = NULL;
    ret_cursor[0] = '\0';
    bytes_put_text(out, "[");
    for (; i < count; i++) {
        const struct record *record = state_at(state, kind, i);
        if (!matches(record, filter))
            continue;
        if (query->limit != 0 && taken == query->limit) {
            snprintf(ret_cursor, 64, "%s", last->common->name != NULL ? last->common->name : last->common->id);
            break;
        }
        if (taken++ > 0)
            bytes_put_text(out, ",");
        api_record_put(state, record, leader_raft_id, filter->mask, out);
        last = record;
    }
    bytes_put_text(out, "]\n");
}
