/* Questions about leases; see the header. A controller that is stopping confirms nothing any more: from the moment when it does
 * not listen, refused connections extend what it supported, and it does not know. */
#include "controller/api/api_lease.h"

#include <errno.h>
#include <string.h>

static void refuse_stopping(struct api_call *call)
{
    struct error err;
    error_set(&err, -ECANCELED, ERROR_NO_LEADER, "this controller is stopping");
    api_call_error(call, &err);
}

void api_node_lease(struct api_call *call)
{
    struct service *service = call->service;
    const struct lease_question *question = call->body;
    struct lease_answer answer = {.head = {0}};
    struct bytes_writer body = {0};
    struct error err;
    if (strcmp(call->caller.id, question->host) != 0) {
        error_set_field(&err, -EACCES, ERROR_FORBIDDEN, "/host", "your certificate is of host %.40s", call->caller.id);
        api_call_error(call, &err);
        return;
    }
    if (service_hears_epoch(service, call->caller.id, question->cluster_epoch, &err) < 0) {
        api_call_error(call, &err);
        return;
    }
    service_lock_state(service);
    lease_table_answer(&service->leases.table, service->state, question, service->dir.identity.raft_id,
                       lease_driver_now_ns(), &answer);
    service_unlock_state(service);
    OBJECT_ENCODE(lease_answer, &answer, &body);
    OBJECT_CLEAR(lease_answer, &answer);
    api_call_answer_json(call, 200, NULL, &body);
}

void api_lease_look(struct api_call *call)
{
    struct service *service = call->service;
    struct lease_view view = {.head = {0}};
    struct bytes_writer body = {0};
    if (service->stopping) {
        refuse_stopping(call);
        return;
    }
    service_lock_state(service);
    lease_table_view(&service->leases.table, service->state, call->body, service->dir.identity.raft_id,
                     service->leader.term, lease_driver_now_ns(), &view);
    service_unlock_state(service);
    OBJECT_ENCODE(lease_view, &view, &body);
    OBJECT_CLEAR(lease_view, &view);
    api_call_answer_json(call, 200, NULL, &body);
}
