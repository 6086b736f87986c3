/* Follower to leader. The leader is sought by its Raft id among the controllers in the state; the certificate that
 * answers must be of exactly that controller, so that a request never goes to anybody else.
 *
 * Failure: the request comes back from the proxy and is tried again, perhaps with a new leader, for
 * API_LEADER_WAIT_MS. A write that may have been carried out is only sent again under an Idempotency-Key, which makes
 * that harmless. */
#include "controller/api/api_forward.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/api/api_call.h"
#include "controller/cluster_init.h"

bool api_forward_address(struct service *service, uint64_t raft_id, char *address, size_t size)
{
    bool found = false;
    service_lock_state(service);
    for (size_t i = 0; i < state_count(service->state, object_kind_CONTROLLER) && !found; i++) {
        const struct controller *controller = state_at(service->state, object_kind_CONTROLLER, i)->controller;
        if (controller->raft_id != raft_id || controller->address == NULL)
            continue;
        snprintf(address, size, "%s", controller->address);
        found = true;
    }
    service_unlock_state(service);
    return found;
}

static void on_failed(struct http_request *request, const struct error *err, void *arg)
{
    api_call_again(request, arg, err);
}

int api_forward(struct api_call *call)
{
    struct service *service = call->service;
    char address[RAFT_NODE_ADDRESS_MAX], identity[256], number[24];
    struct bytes_writer headers = {0};
    if (!api_forward_address(service, service->leader.leader_id, address, sizeof address))
        return -ENOENT;
    snprintf(number, sizeof number, "%llu", (unsigned long long)service->leader.leader_id);
    cluster_identity(service->dir.identity.cluster_id, "controller", number, identity);
    http_headers_put(&headers, API_CALLER_HEADER, call->caller.identity);
    bytes_put_format(&headers, API_CALLER_HOPS_HEADER ": %u\r\n", call->caller.hops + 1);
    bytes_put_u8(&headers, 0);
    if (call->leader_deadline_ms == 0)
        call->leader_deadline_ms = environment_monotonic_ms() + API_LEADER_WAIT_MS;
    call->request->data = (void *)(uintptr_t)call->leader_deadline_ms;
    struct http_proxy_target target = {
        .endpoint = address,
        .tls = service->tls,
        .peer_prefix = identity,
        .headers = (const char *)headers.data,
        .connect_timeout_ms = API_CONNECT_MS,
        .answer_timeout_ms = API_FORWARD_ANSWER_MS + MAX(call->query.wait_ms, call->poll_ms),
        .failed = on_failed,
        .failed_arg = service,
    };
    struct error err;
    int r = http_proxy_start(service->api.proxy, call->request, &target, &err);
    bytes_writer_finish(&headers);
    if (r < 0)
        return r;
    service->api.metrics.forwarded[call->route->id]++;
    api_call_release(call, 0);
    return 0;
}
