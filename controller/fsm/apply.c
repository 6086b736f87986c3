/* Entry of every command: version, idempotency, dispatch, the answer kept under its key. See apply.h. */
#include "controller/fsm/apply_internal.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "controller/fsm/command_codec.h"
#include "controller/fsm/time_text.h"

/* ---- what the parts share ---- */

static void text_v(char *buffer, size_t size, const char *format, va_list args) PRINTF_LIKE(3, 0);
static void text_v(char *buffer, size_t size, const char *format, va_list args)
{
    if (vsnprintf(buffer, size, format, args) >= (int)size)
        text_trim(buffer);
}

void apply_text(char *buffer, size_t size, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    text_v(buffer, size, format, args);
    va_end(args);
}

void apply_refuse(struct apply *a, int code, enum error_kind kind, const char *format, ...)
{
    char text[sizeof a->result->error.text];
    va_list args;
    va_start(args, format);
    text_v(text, sizeof text, format, args);
    va_end(args);
    a->result->code = error_set(&a->result->error, code, kind, "%s", text);
}

void apply_refuse_field(struct apply *a, int code, enum error_kind kind, const char *field, const char *format, ...)
{
    char text[sizeof a->result->error.text];
    va_list args;
    va_start(args, format);
    text_v(text, sizeof text, format, args);
    va_end(args);
    a->result->code = error_set_field(&a->result->error, code, kind, field, "%s", text);
}

static void copy_id(char to[STATE_ID_BYTES], const char *id)
{
    snprintf(to, STATE_ID_BYTES, "%s", id != NULL ? id : "");
}

void apply_answer(struct apply *a, const struct record *record)
{
    a->result->object_kind = record->kind;
    copy_id(a->result->object_id, record->common->id);
}

void apply_event(struct apply *a, enum event_type type, const struct record *record, const char *format, ...)
{
    struct event event = {0};
    char text[APPLY_TEXT_BYTES_MAX];
    va_list args;
    if (record->kind == object_kind_OPERATION && record->operation->kind == operation_kind_VM_REPLICATE)
        return; /* every few seconds one: what there is to tell is told of its VM */
    va_start(args, format);
    text_v(text, sizeof text, format, args);
    va_end(args);
    OBJECT_SET(event, &event, index, a->index);
    OBJECT_TEXT(event, &event, at, a->request->at);
    OBJECT_SET(event, &event, type, type);
    OBJECT_SET(event, &event, object_kind, record->kind);
    OBJECT_TEXT(event, &event, object_id, record->common->id);
    OBJECT_TEXT(event, &event, object_name, record->common->name);
    OBJECT_TEXT(event, &event, message, text);
    if (a->request->by != NULL)
        OBJECT_TEXT(event, &event, by, a->request->by);
    state_add_event(a->state, &event);
}

bool apply_may_insert(struct apply *a, enum object_kind kind, const struct record_common *common)
{
    const char *what = state_kind_desc(kind)->name;
    const char *rule;
    if (common->id == NULL || common->name == NULL) {
        apply_refuse(a, -EINVAL, ERROR_INVALID, "the %s has no id or no name", what);
        return false;
    }
    if (kind != object_kind_OPERATION && text_format_ok(FORMAT_id, common->name, &rule)) {
        apply_refuse_field(a, -EINVAL, ERROR_INVALID, "/name", "'%s' looks like an id; choose another name", common->name);
        return false;
    }
    if (state_edit_find(a->state, kind, common->id) != NULL) {
        apply_refuse_field(a, -EEXIST, ERROR_EXISTS, "/id", "a %s with id %s exists", what, common->id);
        return false;
    }
    if (state_edit_find(a->state, kind, common->name) != NULL) {
        apply_refuse_field(a, -EEXIST, ERROR_EXISTS, "/name", "a %s named '%s' exists; choose another name", what,
                           common->name);
        return false;
    }
    if (state_count(a->state, kind) >= state_table_max(kind)) {
        apply_refuse(a, -ENOSPC, ERROR_NO_SPACE, "there are %zu objects of kind %s already, the most that is kept; remove some",
                     state_count(a->state, kind), what);
        return false;
    }
    return true;
}

struct record *apply_find(struct apply *a, enum object_kind kind, const char *id, uint64_t if_revision)
{
    struct record *record = id != NULL ? map_get(&a->state->tables[kind].by_id, id) : NULL;
    if (record == NULL) {
        apply_refuse(a, -ENOENT, ERROR_NOT_FOUND, "there is no %s with id %s", state_kind_desc(kind)->name,
                     id != NULL ? id : "(none)");
        return NULL;
    }
    if (if_revision != 0 && if_revision != record->common->revision) {
        apply_refuse(a, -ESTALE, ERROR_STALE, "%s '%s' has revision %llu, not %llu; read it again", record->desc->name,
                     record->common->name, (unsigned long long)record->common->revision, (unsigned long long)if_revision);
        return NULL;
    }
    return record;
}

/* ---- idempotency ---- */

/* True where the key was answered before: the result is that answer, or the refusal to use it for something else. */
static bool answered_before(struct apply *a)
{
    const char *key = a->request->idempotency_key;
    const struct answer_record *answer = key != NULL ? state_answer(a->state, key) : NULL;
    if (answer == NULL)
        return false;
    const char *fingerprint = a->request->fingerprint != NULL ? a->request->fingerprint : "-";
    if (strcmp(answer->fingerprint, fingerprint) != 0) {
        apply_refuse(a, -EEXIST, ERROR_KEY_REUSED, "Idempotency-Key '%.80s' was used at %s for another request; use a new key",
                     key, answer->at);
        return true;
    }
    a->result->repeated = true;
    a->result->index = answer->index;
    a->result->status = answer->status;
    a->result->object_kind = answer->object_kind;
    copy_id(a->result->object_id, answer->object_id);
    copy_id(a->result->operation_id, answer->operation);
    return true;
}

static void keep_answer(struct apply *a)
{
    struct answer_record answer = {0};
    if (a->request->idempotency_key == NULL)
        return;
    OBJECT_TEXT(answer_record, &answer, key, a->request->idempotency_key);
    OBJECT_TEXT(answer_record, &answer, fingerprint, a->request->fingerprint != NULL ? a->request->fingerprint : "-");
    OBJECT_TEXT(answer_record, &answer, at, a->request->at);
    OBJECT_SET(answer_record, &answer, status, a->result->status);
    if (a->result->object_id[0] != '\0') {
        OBJECT_SET(answer_record, &answer, object_kind, a->result->object_kind);
        OBJECT_TEXT(answer_record, &answer, object_id, a->result->object_id);
    }
    if (a->result->operation_id[0] != '\0')
        OBJECT_TEXT(answer_record, &answer, operation, a->result->operation_id);
    OBJECT_SET(answer_record, &answer, index, a->index);
    state_add_answer(a->state, &answer);
}

/* ---- entry ---- */

static void dispatch(struct apply *a, enum command number, void *payload)
{
    if (number != COMMAND_init && !state_initialized(a->state)) {
        apply_refuse(a, -EAGAIN, ERROR_NOT_INITIALIZED, "there is no cluster yet: drover-controller init makes one");
        return;
    }
    switch (number) {
#define COMMAND(number, name, doc)                                                                                   \
    case COMMAND_##name:                                                                                             \
        apply_##name(a, payload);                                                                           \
        return;
#include "schema/commands.def"
#undef COMMAND
    }
}

void fsm_apply(struct state *state, uint64_t index, const void *command, size_t size, struct apply_result *ret_result)
{
    struct command_message message = {0};
    ASSERT(index > state->index);
    *ret_result = (struct apply_result){.index = index};
    ret_result->code = command_decode(command, size, &message, &ret_result->error);
    ret_result->fatal = ret_result->code == -EPROTONOSUPPORT;
    if (ret_result->fatal)
        return;
    state->index = index;
    if (ret_result->code < 0)
        return; /* not even readable: the same refusal everywhere */
    /* Every payload begins with its request, after the head (checked by command_codec's own rule). */
    const struct command_request *request = (const void *)((const char *)message.payload + sizeof(struct object_head));
    struct apply a = {state, index, request, ret_result, false};
    ret_result->status = request->answer_status;
    state_expire_answers(state, time_text_ms(request->at));
    if (!answered_before(&a)) {
        bool made = state_initialized(state);
        uint64_t voters = lease_voters_print(state);
        dispatch(&a, message.desc->number, message.payload);
        if (made && lease_voters_print(state) != voters)
            lease_voters_changed(&a);
        if (ret_result->code == 0)
            keep_answer(&a);
    }
    state_prune_operations(state);
    command_message_finish(&message);
}

int fsm_check(const struct state *state, enum command number, void *payload, struct error *err)
{
    struct apply_result result = {0};
    const struct command_request *request = (const void *)((const char *)payload + sizeof(struct object_head));
    struct apply a = {(struct state *)(uintptr_t)state, state->index + 1, request, &result, true};
    dispatch(&a, number, payload);
    if (result.code < 0 && err != NULL)
        *err = result.error;
    return result.code;
}

#define REQUEST_IS_FIRST(number, name, doc)                                                                          \
    STATIC_ASSERT(offsetof(struct command_##name, request) == sizeof(struct object_head), #name);
#define COMMAND REQUEST_IS_FIRST
#include "schema/commands.def"
#undef COMMAND
