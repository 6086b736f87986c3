/* Follower to leader. The leader is sought by its Raft id among the controllers in the state; the certificate that
 * answers must be of exactly that controller, so that a request never goes to anybody else.
 *
 * Failure: a leader that cannot be reached is answered by the proxy with 502 or 504: the request may have been carried
 * out, so it is not sent twice from here. A client with an Idempotency-Key asks again without harm. */
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
    bytes_put_u8(&headers, 0);
    struct http_proxy_target target = {
        .endpoint = address,
        .tls = service->tls,
        .peer_prefix = identity,
        .headers = (const char *)headers.data,
        .connect_timeout_ms = API_LEADER_WAIT_MS,
        .answer_timeout_ms = API_FORWARD_ANSWER_MS + MAX(call->query.wait_ms, call->poll_ms),
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
