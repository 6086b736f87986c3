/* GET of one object and of lists, previews of placements and of a host's loss, and waiting for operations.
 *
 * A long list costs the loop 10 ms and more for 20,000 objects, so a thread of libuv's pool makes it, under the read
 * lock as well; so with what the loss of a host would do. One at a time: the pool also writes Raft's log, and readers that overlap without end would keep the
 * writer out. The others wait in api.list_waiters. */
#include "controller/api/api_read.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/http_parse.h"
#include "controller/api/api_record.h"
#include "controller/command/decide.h"
#include "controller/environment.h"
#include "controller/fsm/snapshot.h"
#include "controller/reconcile/loss_plan.h"

static void not_found(struct api_call *call, const char *kind)
{
    struct error err;
    error_set(&err, -ENOENT, ERROR_NOT_FOUND, "there is no %s '%s'", kind, call->id);
    api_call_error(call, &err);
}

/* --- long reads --- */

static void on_read_work(uv_work_t *work)
{
    struct api_read_work *read = CONTAINER_OF(work, struct api_read_work, work);
    read->make(read);
}

static void on_read_made(uv_work_t *work, int status)
{
    struct api_read_work *read = CONTAINER_OF(work, struct api_read_work, work);
    struct api *api = &read->call->service->api;
    ASSERT(status == 0); /* never cancelled */
    api->list_busy = false;
    read->answer(read);
    while (!api->list_busy && !list_empty(&api->list_waiters)) { /* a list may have become short meanwhile */
        struct api_call *next = LIST_ENTRY(api->list_waiters.next, struct api_call, link);
        api_call_unwait(next);
        api_handlers[next->route->id](next);
    }
}

static void on_read_deadline(struct api_call *call)
{
    struct error err;
    error_set(&err, -EBUSY, ERROR_OVERLOAD, "too many long lists are asked for; use ?limit= and ?cursor=");
    api_call_error(call, &err);
}

bool api_read_start(struct api_read_work *work)
{
    struct api_call *call = work->call;
    struct api *api = &call->service->api;
    if (api->list_busy) {
        if (api_call_wait(call, &api->list_waiters, API_READ_LIST_WAIT_MS, on_read_deadline) < 0)
            on_read_deadline(call);
        return false;
    }
    api->list_busy = true;
    ASSERT(uv_queue_work(call->service->loop, &work->work, on_read_work, on_read_made) == 0);
    return true;
}

/* --- lists --- */

struct list_work {
    struct api_read_work read;
    enum object_kind kind;
    struct api_record_filter filter;
    uint64_t leader_id, index;
    struct bytes_writer body;
    char cursor[64];
};

/* On a thread of the pool or on the loop. */
static void make_list(struct api_read_work *read)
{
    struct list_work *work = CONTAINER_OF(read, struct list_work, read);
    struct service *service = read->call->service;
    service_lock_state(service);
    api_record_put_list(service->state, work->kind, &read->call->query, &work->filter, work->leader_id, &work->body,
                        work->cursor);
    work->index = state_index(service->state);
    service_unlock_state(service);
}

static void answer_list(struct api_read_work *read)
{
    struct list_work *work = CONTAINER_OF(read, struct list_work, read);
    struct api_call *call = read->call;
    char header[128];
    call->index = MAX(call->index, work->index);
    snprintf(header, sizeof header, "X-Drover-Cursor: %s\r\n", work->cursor);
    api_call_answer_json(call, 200, work->cursor[0] != '\0' ? header : NULL, &work->body);
    free(work);
}

static bool is_long(struct service *service, const struct list_work *work)
{
    const struct api_query *query = &work->read.call->query;
    service_lock_state(service);
    bool many = state_count(service->state, work->kind) > API_READ_LIST_INLINE_MAX;
    service_unlock_state(service);
    return many && (query->limit == 0 || query->limit > API_READ_LIST_INLINE_MAX || work->filter.count > 0);
}

void api_read_list(struct api_call *call)
{
    struct service *service = call->service;
    struct list_work *work = NEW(struct list_work);
    struct error err;
    work->read = (struct api_read_work){.call = call, .make = make_list, .answer = answer_list};
    work->leader_id = service->leader.leader_id;
    ASSERT(api_record_kind(call->route->answer, &work->kind));
    if (api_record_filter_parse(call->route->answer, &call->query, &work->filter, &err) < 0) {
        free(work);
        api_call_error(call, &err);
    } else if (!is_long(service, work)) {
        make_list(&work->read);
        answer_list(&work->read);
    } else if (!api_read_start(&work->read)) {
        free(work);
    }
}

/* Does If-None-Match name this ETag (or "*")? Weak comparison, RFC 9110 §13.1.2. */
static bool is_known(const struct api_call *call, const char *etag)
{
    const char *text = http_request_header(call->request, "If-None-Match");
    char weak[64];
    snprintf(weak, sizeof weak, "W/%s", etag);
    return text != NULL && (strcmp(text, "*") == 0 || http_has_token(text, etag) || http_has_token(text, weak));
}

static const struct record *find(const struct state *state, enum object_kind kind, const char *id)
{
    if (kind == object_kind_CLUSTER)
        return state_count(state, kind) > 0 ? state_at(state, kind, 0) : NULL;
    return state_get(state, kind, id);
}

void api_read_show(struct api_call *call)
{
    struct service *service = call->service;
    struct bytes_writer body = {0};
    enum object_kind kind;
    char etag[32], headers[64];
    ASSERT(api_record_kind(call->route->answer, &kind));
    service_lock_state(service);
    const struct record *record = find(service->state, kind, call->id);
    if (record != NULL) {
        snprintf(etag, sizeof etag, "\"%llu\"", (unsigned long long)record->common->revision);
        api_record_put(service->state, record, service->leader.leader_id, 0, &body);
        bytes_put_text(&body, "\n");
    }
    call->index = MAX(call->index, state_index(service->state));
    service_unlock_state(service);
    if (record == NULL) {
        not_found(call, object_kind_desc.names[kind]);
        return;
    }
    snprintf(headers, sizeof headers, "ETag: %s\r\n", etag);
    if (is_known(call, etag)) {
        bytes_writer_finish(&body);
        api_call_answer(call, 304, NULL, headers, NULL);
        return;
    }
    api_call_answer_json(call, 200, headers, &body);
}

void api_read_placement(struct api_call *call)
{
    struct service *service = call->service;
    struct placement placement = {.head = {0}};
    struct bytes_writer body = {0};
    struct error err;
    int r = -ENOENT;
    service_lock_state(service);
    const struct record *record = state_get(service->state, object_kind_VM, call->id);
    if (record != NULL)
        r = decide_placement(service->state, record->vm, &placement, &err);
    service_unlock_state(service);
    if (record == NULL) {
        not_found(call, "vm");
        return;
    }
    if (r < 0) {
        api_call_error(call, &err);
        return;
    }
    OBJECT_ENCODE(placement, &placement, &body);
    OBJECT_CLEAR(placement, &placement);
    api_call_answer_json(call, 200, NULL, &body);
}

/* --- what the loss of a host would do --- */

struct loss_work {
    struct api_read_work read;
    struct host_loss loss;
    struct error err;
    int result;
};

/* The copy is made under the lock, all else of it. */
static void make_loss(struct api_read_work *read)
{
    struct loss_work *work = CONTAINER_OF(read, struct loss_work, read);
    struct service *service = read->call->service;
    struct bytes_writer bytes = {.data = NULL};
    struct state *copy = NULL;
    char now[ENVIRONMENT_TIME_SIZE];
    environment_time_text(environment_unix_ms(), now);
    service_lock_state(service);
    snapshot_write(service->state, &bytes);
    service_unlock_state(service);
    work->result = snapshot_read(bytes.data, bytes.size, &copy, &work->err);
    if (work->result == 0)
        work->result = loss_plan(copy, read->call->id, now, &work->loss, &work->err);
    state_destroy(copy);
    bytes_writer_finish(&bytes);
}

static void answer_loss(struct api_read_work *read)
{
    struct loss_work *work = CONTAINER_OF(read, struct loss_work, read);
    struct bytes_writer body = {.data = NULL};
    if (work->result < 0) {
        api_call_error(read->call, &work->err);
    } else {
        OBJECT_ENCODE(host_loss, &work->loss, &body);
        bytes_put_text(&body, "\n");
        api_call_answer_json(read->call, 200, NULL, &body);
    }
    OBJECT_CLEAR(host_loss, &work->loss);
    free(work);
}

void api_read_loss(struct api_call *call)
{
    struct loss_work *work = NEW(struct loss_work);
    work->read = (struct api_read_work){.call = call, .make = make_loss, .answer = answer_loss};
    if (!api_read_start(&work->read))
        free(work);
}

/* --- operations --- */

/* 1: ended, 0: still running, -ENOENT. */
static int operation_ended(struct service *service, const char *id)
{
    service_lock_state(service);
    const struct record *record = state_get(service->state, object_kind_OPERATION, id);
    int r = record == NULL ? -ENOENT : record->operation->state != operation_state_RUNNING;
    service_unlock_state(service);
    return r;
}

void api_read_answer_operation(struct api_call *call)
{
    struct service *service = call->service;
    struct bytes_writer body = {0};
    bool ended = false;
    char headers[160];
    http_request_on_gone(call->request, NULL, NULL);
    service_lock_state(service);
    const struct record *record = state_get(service->state, object_kind_OPERATION, call->operation_id);
    if (record != NULL) {
        ended = record->operation->state != operation_state_RUNNING;
        snprintf(headers, sizeof headers, "Location: /v1/operations/%s\r\nETag: \"%llu\"\r\n", call->operation_id,
                 (unsigned long long)record->operation->revision);
        state_put_json(service->state, record, &body);
        bytes_put_text(&body, "\n");
    }
    call->index = MAX(call->index, state_index(service->state));
    service_unlock_state(service);
    if (record == NULL) {
        snprintf(call->id, sizeof call->id, "%s", call->operation_id);
        not_found(call, "operation");
        return;
    }
    api_call_answer_json(call, call->route->method == ROUTE_GET || ended ? 200 : 202, headers, &body);
}

static void on_waiter_gone(struct http_request *request, void *arg)
{
    struct api_call *call = arg;
    api_call_unwait(call);
    http_release(request);
    api_call_release(call, 0);
}

void api_read_await_operation(struct api_call *call)
{
    if (call->query.wait_ms == 0 || operation_ended(call->service, call->operation_id) != 0 ||
        api_call_wait(call, &call->service->api.operation_waiters, call->query.wait_ms, api_read_answer_operation) <
            0) {
        api_read_answer_operation(call);
        return;
    }
    http_request_on_gone(call->request, on_waiter_gone, call);
}

void api_read_operation(struct api_call *call)
{
    if (call->query.wait_ms == 0) {
        api_read_show(call);
        return;
    }
    enum object_kind kind = object_kind_OPERATION;
    service_lock_state(call->service);
    const struct record *record = state_get(call->service->state, kind, call->id);
    if (record != NULL)
        snprintf(call->operation_id, sizeof call->operation_id, "%s", record->common->id);
    service_unlock_state(call->service);
    if (record == NULL)
        not_found(call, "operation");
    else
        api_read_await_operation(call);
}

void api_read_applied(struct api *api)
{
    struct list ended;
    list_init(&ended);
    LIST_FOREACH_SAFE(link, &api->operation_waiters)
    {
        struct api_call *call = LIST_ENTRY(link, struct api_call, link);
        if (operation_ended(api->service, call->operation_id) == 0)
            continue;
        list_remove(link);
        list_append(&ended, link);
    }
    while (!list_empty(&ended)) {
        struct api_call *call = LIST_ENTRY(ended.next, struct api_call, link);
        api_call_unwait(call);
        api_read_answer_operation(call);
    }
}
