/* An agent's report.
 *
 *   1. the certificate must be of the host that reports
 *   2. what differs from the state goes through Raft (node_sync_changes), often nothing
 *   3. answered at once if there is something to do that the agent does not have; else when there is, or after
 * wait_ms Failure: any lost or repeated report is made good by the next one. */
#include "controller/api/api_node.h"

#include <errno.h>
#include <string.h>

#include "controller/api/api_write.h"
#include "controller/nodes/node_sync.h"

static const struct node_report *report_of(const struct api_call *call)
{
    return call->body;
}

static void answer(struct api_call *call)
{
    struct service *service = call->service;
    struct node_orders orders = {.head = {0}};
    struct bytes_writer body = {0};
    struct error err;
    http_request_on_gone(call->request, NULL, NULL);
    service_lock_state(service);
    int r = node_sync_orders(service->state, report_of(call), &orders, &err);
    call->index = MAX(call->index, state_index(service->state));
    service_unlock_state(service);
    if (r == 0) {
        OBJECT_ENCODE(node_orders, &orders, &body);
        api_call_answer_json(call, 200, NULL, &body);
    } else {
        api_call_error(call, &err);
    }
    OBJECT_CLEAR(node_orders, &orders);
}

static void on_poll_deadline(struct api_call *call)
{
    call->service->api.poll_count--;
    answer(call);
}

static void on_poll_gone(struct http_request *request, void *arg)
{
    struct api_call *call = arg;
    api_call_unwait(call);
    call->service->api.poll_count--;
    http_release(request);
    api_call_release(call, 0);
}

/* Leadership may be lost while a poll waits; its orders would then be those of a state that may lag. */
static void refuse_lost(struct api_call *call)
{
    struct error err;
    http_request_on_gone(call->request, NULL, NULL);
    error_set(&err, -ENOTCONN, ERROR_NO_LEADER, "the leader changed; report again");
    api_call_error(call, &err);
}

static void answer_or_poll(struct api_call *call)
{
    struct service *service = call->service;
    struct api *api = &service->api;
    uint32_t wait_ms = MIN(call->poll_ms, API_NODE_POLL_MS_MAX);
    bool may_wait = false;
    if (!service->ready) {
        refuse_lost(call);
        return;
    }
    service_lock_state(service);
    may_wait = wait_ms > 0 && node_sync_may_wait(service->state, report_of(call));
    service_unlock_state(service);
    if (!may_wait || api->poll_count >= API_POLLS_MAX ||
        api_call_wait(call, &api->polls, wait_ms, on_poll_deadline) < 0) {
        answer(call);
        return;
    }
    api->poll_count++;
    http_request_on_gone(call->request, on_poll_gone, call);
}

static void on_seen(struct api_call *call, const struct apply_result *result)
{
    (void)result;
    answer_or_poll(call);
}

/* One that was lost and reaches the leader alone would be suspected at once, again and again: refused until a majority
 * hears it. */
static bool may_come_back(struct api_call *call)
{
    struct service *service = call->service;
    struct error err;
    service_lock_state(service);
    const struct record *host = state_get(service->state, object_kind_HOST, report_of(call)->host);
    bool may = host == NULL || host->host->state != host_state_LOST || report_of(call)->leaving ||
               state_voters(service->state) < STATE_HA_VOTERS_MIN ||
               lease_judge_hears(&service->leases.judge, service->state, host->common->id, lease_driver_now_ns());
    service_unlock_state(service);
    if (may)
        return true;
    error_set(&err, -EAGAIN, ERROR_OVERLOAD,
              "the host was declared lost; a majority of the controllers has to hear the questions of its lease first");
    api_call_error(call, &err);
    return false;
}

void api_node_report(struct api_call *call)
{
    struct service *service = call->service;
    struct decision decision CLEANUP(decision_finish) = {.status = 0};
    char now[ENVIRONMENT_TIME_SIZE];
    struct error err;
    if (strcmp(call->caller.id, report_of(call)->host) != 0) {
        error_set_field(&err, -EACCES, ERROR_FORBIDDEN, "/host", "your certificate is of host %.40s",
                        call->caller.id);
        api_call_error(call, &err);
        return;
    }
    if (service_hears_epoch(service, call->caller.id, report_of(call)->cluster_epoch, &err) < 0) {
        api_call_error(call, &err);
        return;
    }
    environment_time_text(environment_unix_ms(), now);
    service_lock_state(service);
    int r = node_sync_changes(service->state, now, report_of(call), &decision.command, &err);
    service_unlock_state(service);
    if (r < 0) {
        api_write_refuse(call, &err);
        return;
    }
    if (!may_come_back(call))
        return;
    driver_seen(&service->driver, call->caller.id); /* one that is lost is silent until it comes back */
    if (decision.command.size > 0)
        api_write_propose(call, &decision, on_seen);
    else
        answer_or_poll(call);
}

/* ---- hand-overs ---- */

/* It was handed over, and has been started anew or deleted since: nobody is to be told to run what came then. */
static bool has_moved_on(const struct state *state, const struct operation *operation)
{
    const struct record *vm = state_get(state, object_kind_VM, operation->task.vm);
    return vm == NULL || vm->vm->epoch != operation->task.migration.handed_over;
}

/* Applied: whatever it came to is a fact now. */
static void on_handed_over(struct api_call *call, const struct apply_result *result)
{
    struct service *service = call->service;
    struct handover_answer answer_object = {.head = {0}};
    struct bytes_writer body = {0};
    struct error err;
    service_lock_state(service);
    const struct record *record = state_get(service->state, object_kind_OPERATION, result->object_id);
    bool there = record != NULL && record->operation->task.migration.handed_over != 0;
    bool here = record != NULL && !there && record->operation->state != operation_state_RUNNING;
    bool moved_on = there && has_moved_on(service->state, record->operation);
    there = there && !moved_on;
    if (there || here) {
        OBJECT_SET(handover_answer, &answer_object, epoch, there ? record->operation->task.migration.handed_over : 0);
        if (here)
            OBJECT_TEXT(handover_answer, &answer_object, reason, record->operation->error_text);
        OBJECT_ENCODE(handover_answer, &answer_object, &body);
        OBJECT_CLEAR(handover_answer, &answer_object);
    }
    service_unlock_state(service);
    if (there || here) {
        api_call_answer_json(call, 200, NULL, &body);
        return;
    }
    if (moved_on)
        error_set(&err, -ENOENT, ERROR_NOT_FOUND, "the VM was handed over, and has been started anew or deleted since");
    else
        error_set(&err, -EAGAIN, ERROR_UNKNOWN_OUTCOME, "the hand-over has no outcome yet; ask again");
    api_call_error(call, &err);
}

/* After a barrier: a majority answers. What a hand-over would come to now. */
static void answer_check(struct api_call *call)
{
    const struct node_handover *handover = call->body;
    struct service *service = call->service;
    struct handover_answer answer = {.head = {0}};
    struct bytes_writer body = {0};
    service_lock_state(service);
    const struct record *record = state_get(service->state, object_kind_OPERATION, handover->operation);
    bool goes_on = record != NULL && operation_has_task(record->operation) &&
                   record->operation->state == operation_state_RUNNING && !record->operation->cancel_asked &&
                   record->operation->task.peer_error == NULL;
    service_unlock_state(service);
    OBJECT_SET(handover_answer, &answer, epoch, goes_on ? handover->epoch + 1 : 0);
    if (!goes_on)
        OBJECT_TEXT(handover_answer, &answer, reason, "the migration has ended, or is to end");
    OBJECT_ENCODE(handover_answer, &answer, &body);
    OBJECT_CLEAR(handover_answer, &answer);
    api_call_answer_json(call, 200, NULL, &body);
}

void api_node_handover(struct api_call *call)
{
    const struct node_handover *handover = call->body;
    struct error err;
    if (strcmp(call->caller.id, handover->host) == 0) {
        if (handover->check)
            answer_check(call);
        else
            api_write_then(call, on_handed_over);
        return;
    }
    error_set_field(&err, -EACCES, ERROR_FORBIDDEN, "/host", "your certificate is of host %.40s", call->caller.id);
    api_call_error(call, &err);
}

void api_node_applied(struct api *api)
{
    struct service *service = api->service;
    struct list due;
    list_init(&due);
    service_lock_state(service);
    LIST_FOREACH_SAFE(link, &api->polls)
    {
        struct api_call *call = LIST_ENTRY(link, struct api_call, link);
        if (service->ready && node_sync_may_wait(service->state, report_of(call)))
            continue;
        list_remove(link);
        list_append(&due, link);
    }
    service_unlock_state(service);
    while (!list_empty(&due)) {
        struct api_call *call = LIST_ENTRY(due.next, struct api_call, link);
        api_call_unwait(call);
        api->poll_count--;
        if (service->ready)
            answer(call);
        else
            refuse_lost(call);
    }
}
