/* Drills by way of the API; see the header. */
#include "controller/api/api_drill.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/environment.h"
#include "controller/fsm/time_text.h"

struct place {
    char host[STATE_ID_BYTES], address[256];
};

/* The state is locked. */
static int find_host(const struct state *state, const char *id, struct place *ret, struct error *err)
{
    const struct record *host = state_get(state, object_kind_HOST, id);
    if (host == NULL || host->host->address == NULL)
        return error_set(err, -ENOENT, ERROR_NOT_FOUND, "there is no host '%s'", id);
    snprintf(ret->host, sizeof ret->host, "%s", host->common->id);
    snprintf(ret->address, sizeof ret->address, "%s", host->host->address);
    return 0;
}

/* The state is locked. Nobody's order is obeyed but that of the one drill that is under way. */
static int check_reserved(const struct state *state, const struct drill_order *order, struct error *err)
{
    const struct cluster *cluster = state_count(state, object_kind_CLUSTER) > 0 ? state_cluster(state) : NULL;
    if (cluster == NULL || cluster->drill == NULL || time_text_ms(cluster->drill_until) <= environment_unix_ms())
        return error_set(err, -EINVAL, ERROR_CONFLICT, "no drill '%s' is under way: POST /v1/drill begins one", order->drill);
    if (strcmp(cluster->drill, order->drill) != 0)
        return error_set(err, -EBUSY, ERROR_CONFLICT, "drill %s is under way; wait for its end, at %s at the latest", cluster->drill,
                         cluster->drill_until);
    return 0;
}

static int check_cluster(const struct state *state, struct error *err)
{
    for (size_t i = 0; i < state_count(state, object_kind_HOST); i++) {
        const struct host *host = state_at(state, object_kind_HOST, i)->host;
        if (host->state != host_state_UP)
            return error_set(err, -EINVAL, ERROR_CONFLICT, "host '%s' is %s: no drill before all hosts are up", host->name,
                             host_state_desc.names[host->state]);
    }
    const struct record *cluster = state_count(state, object_kind_CLUSTER) > 0 ? state_at(state, object_kind_CLUSTER, 0) : NULL;
    if (cluster != NULL && cluster->cluster->ha_disarmed)
        return error_set(err, -EINVAL, ERROR_CONFLICT, "ha is disarmed: nothing would be started elsewhere; `drover ha arm`");
    return 0;
}

/* One host at a time; a leader that has just been elected knows of none, and then goes by the hosts' states alone. */
static int check_order(const struct api_call *call, const struct drill_order *order, struct error *err)
{
    const struct api *api = &call->service->api;
    uint64_t now_ms = environment_monotonic_ms();
    if (order->fault != drill_fault_SILENCE && order->fault != drill_fault_CUT)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/fault", "a host can be silent or cut off, and nothing else");
    if (order->seconds < API_DRILL_SECONDS_MIN)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/seconds", "it must be from %u to 60: a host is lost after 5 to 6",
                               API_DRILL_SECONDS_MIN);
    if (now_ms < api->drill_until_ms)
        return error_set(err, -EBUSY, ERROR_CONFLICT, "drill %s was begun lately; ask again in %llu s", api->drill,
                         (unsigned long long)((api->drill_until_ms - now_ms) / 1000 + 1));
    return 0;
}

void api_drill_host(struct api_call *call)
{
    const struct drill_order *order = call->body;
    struct service *service = call->service;
    struct place place;
    struct error err;
    unsigned voters = service_voters(service);
    int r = check_order(call, order, &err);
    service_lock_state(service);
    if (r == 0)
        r = check_reserved(service->state, order, &err);
    if (r == 0)
        r = find_host(service->state, call->id, &place, &err);
    if (r == 0)
        r = check_cluster(service->state, &err);
    service_unlock_state(service);
    if (r == 0 && voters < 3)
        r = error_set(&err, -EINVAL, ERROR_CONFLICT, "a host is not declared lost with fewer than three controllers; there are %u", voters);
    if (r < 0) {
        api_call_error(call, &err);
        return;
    }
    service->api.drill_until_ms = environment_monotonic_ms() + (uint64_t)order->seconds * 1000;
    snprintf(service->api.drill, sizeof service->api.drill, "%s", order->drill);
    api_call_pass_to_host(call, place.host, place.address, "/v1/drill", 0);
}

void api_drill_observation(struct api_call *call)
{
    struct place place;
    struct error err;
    service_lock_state(call->service);
    int r = find_host(call->service->state, call->id, &place, &err);
    service_unlock_state(call->service);
    if (r < 0)
        api_call_error(call, &err);
    else
        api_call_pass_to_host(call, place.host, place.address, "/v1/observation", 0);
}

static int check_controller(struct api_call *call, const struct drill_order *order, struct error *err)
{
    struct service *service = call->service;
    unsigned voters = service_voters(service);
    uint64_t raft_id = 0;
    char address[256] = "";
    int r;
    service_lock_state(service);
    r = check_reserved(service->state, order, err);
    const struct record *record = state_get(service->state, object_kind_CONTROLLER, call->id);
    if (record != NULL) {
        raft_id = record->controller->raft_id;
        snprintf(address, sizeof address, "%s", record->controller->address);
    }
    service_unlock_state(service);
    if (raft_id == 0)
        return error_set(err, -ENOENT, ERROR_NOT_FOUND, "there is no controller '%s'", call->id);
    if (raft_id != service->dir.identity.raft_id)
        return error_set(err, -EINVAL, ERROR_CONFLICT, "only controller '%s' itself takes this: ask it at %s", call->id, address);
    if (order->fault == drill_fault_SILENCE)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/fault", "a controller can crash, restart, be cut off or write slowly");
    if (r < 0)
        return r;
    if (voters < 3)
        return error_set(err, -EINVAL, ERROR_CONFLICT, "with %u controllers that have a vote no majority would be left", voters);
    if (service->leader.leader_id == 0)
        return error_set(err, -EINVAL, ERROR_NO_LEADER, "there is no leader now; there is a real failure to look at");
    return 0;
}

void api_drill_controller(struct api_call *call)
{
    const struct drill_order *order = call->body;
    struct bytes_writer body = {0};
    struct error err;
    int r = check_controller(call, order, &err);
    if (r == 0)
        r = controller_drill_order(call->service, order, &err);
    if (r < 0) {
        api_call_error(call, &err);
        return;
    }
    OBJECT_ENCODE(drill_order, order, &body);
    api_call_answer_json(call, 200, NULL, &body);
}
