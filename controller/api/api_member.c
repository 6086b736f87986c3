/* Promote, transfer, remove.
 *
 * Remove changes the table first: a leader that dies in between leaves the rest to the next one's membership driver,
 * and so does this one (controller/membership.h). The answer comes when Raft counts the controller no more: until then
 * its vote may still be needed, and switching it off could cost the majority.
 * A leader that is to remove itself hands leadership over, and the request goes to the new leader. */
#include "controller/api/api_member.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/api/api_write.h"
#include "controller/environment.h"
#include "controller/membership.h"

/* Raft id of the controller in the path; 0: there is none. */
static uint64_t find_raft_id(struct api_call *call, char id[STATE_ID_BYTES])
{
    uint64_t raft_id = 0;
    service_lock_state(call->service);
    const struct record *record = state_get(call->service->state, object_kind_CONTROLLER, call->id);
    if (record != NULL) {
        raft_id = record->controller->raft_id;
        snprintf(id, STATE_ID_BYTES, "%s", record->common->id);
    }
    service_unlock_state(call->service);
    return raft_id;
}

static void answer_controller(struct api_call *call)
{
    char id[STATE_ID_BYTES];
    struct apply_result result = {.status = 200, .object_kind = object_kind_CONTROLLER};
    if (find_raft_id(call, id) != 0)
        memcpy(result.object_id, id, sizeof id);
    api_write_answer(call, &result);
}

static void refuse_unknown(struct api_call *call)
{
    struct error err;
    error_set(&err, -ENOENT, ERROR_NOT_FOUND, "there is no controller '%s'", call->id);
    api_write_refuse(call, &err);
}

static void refuse_unsettled(struct api_call *call)
{
    struct lease_judge_words words;
    struct error err;
    service_voters_wait_for(call->service, &words);
    error_set(&err, -EBUSY, ERROR_CONFLICT, "%s", words.text);
    api_call_error(call, &err);
}

/* The last change of the voters is not yet known to enough hosts: wait for it. True: it waits, or was refused. */
static bool await_settled(struct api_call *call, void (*again)(struct api_call *call))
{
    uint64_t now_ms = environment_monotonic_ms();
    if (call->query.dry_run || service_voters_settled(call->service)) {
        call->leader_deadline_ms = 0;
        return false;
    }
    if (call->leader_deadline_ms == 0)
        call->leader_deadline_ms = now_ms + API_MEMBER_WAIT_MS;
    if (!call->service->stopping && now_ms < call->leader_deadline_ms &&
        api_call_wait(call, &call->service->api.member_waiters, API_TICK_MS, again) == 0)
        return true;
    refuse_unsettled(call);
    return true;
}

/* Raft counts it; for the hosts' leases it counts once they have its support, if that takes no more than a moment. Another
 * change of the voters may have come meanwhile: that must be known to hosts first, however long it takes. */
static void await_welcome(struct api_call *call)
{
    char id[STATE_ID_BYTES];
    struct error err;
    uint64_t raft_id = find_raft_id(call, id), now_ms = environment_monotonic_ms();
    if (!call->service->ready) { /* the next leader looks for itself */
        call->leader_deadline_ms = 0;
        error_set(&err, -ENOTCONN, ERROR_NO_LEADER, "the leader changed while the controller was promoted; ask again");
        api_call_retry(call, &err);
        return;
    }
    if (call->leader_deadline_ms == 0)
        call->leader_deadline_ms = now_ms + API_MEMBER_WAIT_MS;
    bool settled = raft_id == 0 || service_voters_settled(call->service); /* 0: refused below */
    if (!call->service->stopping && now_ms < call->leader_deadline_ms && raft_id != 0 &&
        (!settled || !membership_welcomes(call->service, raft_id)) &&
        api_call_wait(call, &call->service->api.member_waiters, API_TICK_MS, await_welcome) == 0)
        return;
    if (!settled) { /* the membership driver goes on with it (controller/membership.h) */
        refuse_unsettled(call);
        return;
    }
    call->leader_deadline_ms = 0;
    api_write(call); /* the table follows */
}

static void on_promoted(void *arg, int status, const struct error *err)
{
    struct api_call *call = arg;
    service_change_done(call->service);
    if (status < 0)
        api_call_error(call, err);
    else
        await_welcome(call);
}

void api_member_promote(struct api_call *call)
{
    struct error err;
    char id[STATE_ID_BYTES];
    uint64_t raft_id = find_raft_id(call, id);
    if (raft_id == 0) {
        refuse_unknown(call);
        return;
    }
    if (await_settled(call, api_member_promote))
        return;
    if (call->query.dry_run) {
        api_write(call);
        return;
    }
    if (service_is_voter(call->service, raft_id)) { /* asked before */
        await_welcome(call);
        return;
    }
    if (service_change(call->service, RAFT_NODE_PROMOTE, raft_id, NULL, on_promoted, call, &err) < 0)
        api_call_error(call, &err);
}

static void on_transferred(void *arg, int status, const struct error *err)
{
    struct api_call *call = arg;
    service_change_done(call->service);
    if (status < 0)
        api_call_error(call, err);
    else
        answer_controller(call);
}

void api_member_transfer(struct api_call *call)
{
    struct service *service = call->service;
    struct error err;
    char id[STATE_ID_BYTES];
    uint64_t raft_id = find_raft_id(call, id);
    if (raft_id == 0) {
        refuse_unknown(call);
    } else if (!service_is_voter(service, raft_id)) {
        error_set(&err, -EINVAL, ERROR_CONFLICT, "controller '%s' has no vote, so it cannot lead; promote it first",
                  call->id);
        api_call_error(call, &err);
    } else if (call->query.dry_run || raft_id == service->dir.identity.raft_id) {
        answer_controller(call);
    } else if (service_change(service, RAFT_NODE_TRANSFER, raft_id, NULL, on_transferred, call, &err) < 0) {
        api_call_error(call, &err);
    }
}

/* The new leader carries the request out. */
static void on_handed_over(void *arg, int status, const struct error *err)
{
    struct api_call *call = arg;
    struct error again;
    service_change_done(call->service);
    if (status < 0) {
        api_call_error(call, err);
        return;
    }
    error_set(&again, -ENOTCONN, ERROR_NO_LEADER, "leadership was handed over; ask again");
    api_call_retry(call, &again);
}

static void await_removed(struct api_call *call)
{
    const struct apply_result result = {.status = 204};
    struct error err;
    if (service_members_follow(call->service)) {
        api_write_answer(call, &result);
        return;
    }
    if (!call->service->stopping && environment_monotonic_ms() < call->leader_deadline_ms &&
        api_call_wait(call, &call->service->api.member_waiters, API_TICK_MS, await_removed) == 0)
        return;
    error_set(&err, -ETIMEDOUT, ERROR_TIMEOUT,
              "the controller is out of the cluster's table, but Raft still counts it; that goes on by itself: leave it "
              "running until `drover_raft_members` in /metrics of the leader is one less");
    api_call_error(call, &err);
}

/* A repeat under an Idempotency-Key, perhaps by another leader, waits as well. */
static void on_removed(struct api_call *call, const struct apply_result *result)
{
    (void)result;
    call->leader_deadline_ms = environment_monotonic_ms() + API_MEMBER_WAIT_MS;
    await_removed(call);
}

void api_member_remove(struct api_call *call)
{
    struct service *service = call->service;
    struct error err;
    char id[STATE_ID_BYTES];
    if (await_settled(call, api_member_remove))
        return;
    bool self = find_raft_id(call, id) == service->dir.identity.raft_id;
    if (self && !call->query.dry_run && service_voters(service) > 1) {
        if (service_change(service, RAFT_NODE_TRANSFER, 0, NULL, on_handed_over, call, &err) < 0)
            api_call_error(call, &err);
        return;
    }
    api_write_then(call, on_removed);
}
