/* Writes. One command each; the answer is made of the state after it was applied here.
 *
 * Happy path: wait for a call with the same key; decide under the read lock; propose; applied; answer.
 * Failure modes:
 *   refused by decide            once more after a barrier, then the refusal
 *   refused by apply             the refusal: the state changed in between
 *   not in the log (-ENOTCONN)   run again, which may mean forwarding to the new leader
 *   unknown (-EINPROGRESS)       with a key: run again; the new leader's state knows the key if the command made it.
 *                                without: unknown-outcome, the client looks for itself
 *   queue full (-EAGAIN)         overload */
#include "controller/api/api_write.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/api/api_read.h"
#include "controller/api/api_record.h"
#include "controller/api/api_token.h"

/* How long a call waits for another one with its key: longer than any proposal takes to be answered. */
#define KEY_WAIT_MS 60000u

static void make_uuid(void *arg, char ret_id[STATE_ID_BYTES])
{
    (void)arg;
    environment_uuid(ret_id);
}

struct decision_context api_write_context(const struct api_call *call, const char now[ENVIRONMENT_TIME_SIZE])
{
    return (struct decision_context){
        .now = now,
        .uuid = make_uuid,
        .by = call->caller.text,
        .idempotency_key = call->key[0] != '\0' && !call->query.dry_run ? call->key : NULL,
        .fingerprint = call->fingerprint,
        .if_revision = call->if_match,
        .force = call->query.force,
        .dry_run = call->query.dry_run,
    };
}

static void on_key_deadline(struct api_call *call)
{
    struct error err;
    error_set(&err, -ETIMEDOUT, ERROR_TIMEOUT,
              "an earlier request with this Idempotency-Key has no outcome yet; ask again with the same key");
    api_call_error(call, &err);
}

bool api_write_wait_for_key(struct api_call *call)
{
    struct map *keys = &call->service->api.keys;
    if (call->key[0] == '\0' || call->query.dry_run || call->holds_key)
        return false;
    struct api_call *first = map_get(keys, call->key);
    if (first == NULL) {
        map_put(keys, call->key, call);
        call->holds_key = true;
        return false;
    }
    if (api_call_wait(call, &first->same_key, KEY_WAIT_MS, on_key_deadline) < 0)
        on_key_deadline(call);
    return true;
}

void api_write_refuse(struct api_call *call, const struct error *err)
{
    if (!call->barrier_done && api_call_barrier(call) == 0)
        return;
    api_call_error(call, err);
}

/* --- proposing --- */

struct proposal {
    struct api_call *call;
    api_write_applied applied;
};

static void fail(struct api_call *call, int status)
{
    struct error err;
    switch (status) {
    case -ENOTCONN:
        error_set(&err, status, ERROR_NO_LEADER, "the leader changed; nothing was changed; ask again");
        api_call_retry(call, &err);
        return;
    case -EINPROGRESS:
        error_set(
            &err, status, ERROR_UNKNOWN_OUTCOME,
            "the leader changed while the change was being agreed: it may or may not be made; look at the object, "
            "or ask again with an Idempotency-Key, which makes repeats harmless");
        if (call->key[0] != '\0') {
            api_call_retry(call, &err);
            return;
        }
        call->service->api.metrics.unknown_outcomes++;
        break;
    case -EAGAIN:
        error_set(&err, status, ERROR_OVERLOAD, "too many changes wait to be agreed; ask again in a second");
        break;
    case -ENOSPC:
        error_set(&err, status, ERROR_NO_SPACE,
                  "a majority of the controllers has no disk space for the log; nothing was changed; free some");
        break;
    case -E2BIG:
        error_set(&err, status, ERROR_TOO_LARGE, "the change is larger than %u bytes", RAFT_NODE_COMMAND_BYTES_MAX);
        break;
    default:
        error_set(&err, status, ERROR_NO_LEADER, "this controller is stopping; ask another one");
    }
    api_call_error(call, &err);
}

static bool changes_voters(const struct api_call *call)
{
    return call->route->id == ROUTE_ID_controller_promote || call->route->id == ROUTE_ID_controller_remove;
}

static void on_proposed(void *arg, int status, void *raw)
{
    struct proposal *proposal = arg;
    struct api_call *call = proposal->call;
    struct apply_result *result CLEANUP_FREE = raw;
    call->service->voters_asked -= changes_voters(call);
    api_write_applied applied = proposal->applied;
    free(proposal);
    if (status < 0) {
        fail(call, status);
        return;
    }
    call->index = MAX(call->index, result->index);
    if (result->code < 0)
        api_call_error(call, &result->error);
    else
        applied(call, result);
}

void api_write_propose(struct api_call *call, struct decision *decision, api_write_applied applied)
{
    struct proposal *proposal = NEW(struct proposal);
    proposal->call = call;
    proposal->applied = applied;
    size_t size = decision->command.size;
    void *command = TAKE_PTR(decision->command.data);
    decision->command.size = decision->command.capacity = 0;
    int r = raft_node_propose(call->service->raft, command, size, on_proposed, proposal);
    if (r == 0) {
        call->service->voters_asked += changes_voters(call);
        return;
    }
    free(command);
    free(proposal);
    fail(call, r);
}

/* --- answering --- */

static void answer_object(struct api_call *call, uint32_t status, enum object_kind kind, const char *id)
{
    struct service *service = call->service;
    struct bytes_writer body = {0}, headers = {0};
    bool collection = strstr(call->route->path, "{id}") == NULL;
    service_lock_state(service);
    const struct record *record = state_get(service->state, kind, id);
    if (record != NULL) {
        if (call->token_text[0] != '\0')
            api_token_put_with_secret(record, call->token_text, &body);
        else
            api_record_put(service->state, record, service->leader.leader_id, 0, &body);
        bytes_put_text(&body, "\n");
        bytes_put_format(&headers, "ETag: \"%llu\"\r\n", (unsigned long long)record->common->revision);
    }
    service_unlock_state(service);
    if (status == 201 && collection)
        bytes_put_format(&headers, "Location: %s/%s\r\n", call->route->path, id);
    bytes_put_u8(&headers, 0);
    api_call_answer_json(call, (int)status, (const char *)headers.data, &body);
    bytes_writer_finish(&headers);
}

void api_write_answer(struct api_call *call, const struct apply_result *result)
{
    if (result->repeated)
        call->service->api.metrics.replays++;
    if (result->operation_id[0] != '\0' && call->route->answer == &operation_desc) {
        snprintf(call->operation_id, sizeof call->operation_id, "%s", result->operation_id);
        if (call->holds_key) { /* a repeat need not wait for the operation's end */
            map_remove(&call->service->api.keys, call->key);
            call->holds_key = false;
            while (!list_empty(&call->same_key)) {
                struct api_call *next = LIST_ENTRY(call->same_key.next, struct api_call, link);
                api_call_unwait(next);
                api_call_run(next);
            }
        }
        api_read_await_operation(call);
    } else if (result->status == 204 || result->object_id[0] == '\0') {
        api_call_answer(call, 204, NULL, NULL, NULL);
    } else {
        answer_object(call, result->status != 0 ? result->status : 200, result->object_kind, result->object_id);
    }
}

static void answer_repeated(struct api_call *call, const struct decision *decision, api_write_applied applied)
{
    struct apply_result result = {.repeated = true, .status = decision->status, .object_kind = decision->object_kind};
    memcpy(result.object_id, decision->object_id, sizeof result.object_id);
    memcpy(result.operation_id, decision->operation_id, sizeof result.operation_id);
    applied(call, &result);
}

static void answer_dry_run(struct api_call *call, struct decision *decision)
{
    struct bytes_writer headers = {0};
    bytes_put_text(&headers, "X-Drover-Dry-Run: true\r\n");
    if (decision->summary[0] != '\0')
        http_headers_put(&headers, "X-Drover-Summary", decision->summary);
    bytes_put_u8(&headers, 0);
    api_call_answer_json(call, decision->preview.size > 0 ? 200 : 204, (const char *)headers.data,
                         &decision->preview);
    bytes_writer_finish(&headers);
}

void api_write(struct api_call *call)
{
    api_write_then(call, api_write_answer);
}

void api_write_then(struct api_call *call, api_write_applied applied)
{
    struct service *service = call->service;
    struct decision decision CLEANUP(decision_finish) = {.status = 0};
    char now[ENVIRONMENT_TIME_SIZE];
    struct error err;
    if (api_write_wait_for_key(call))
        return;
    if (call->route->id == ROUTE_ID_token_create)
        api_token_make_secret(call);
    environment_time_text(environment_unix_ms(), now);
    struct decision_context context = api_write_context(call, now);
    bool has_id = call->id[0] != '\0';
    service_lock_state(service);
    int r = decide_route(service->state, &context, call->route->id, has_id ? call->id : NULL, strlen(call->id),
                         call->body, &decision, &err);
    if (r == 0 && call->route->id == ROUTE_ID_token_create)
        api_token_make_text(call, decision.object_id);
    service_unlock_state(service);
    if (r < 0)
        api_write_refuse(call, &err);
    else if (decision.repeated)
        answer_repeated(call, &decision, applied);
    else if (call->query.dry_run)
        answer_dry_run(call, &decision);
    else
        api_write_propose(call, &decision, applied);
}
