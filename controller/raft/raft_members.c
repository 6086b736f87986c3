/* Changes of the members, one at a time.
 *
 *   raft_node_change (any thread) -> `change` waiting, until a barrier of this term is applied -> libraft is called -> callback leaves the status in
 *   `change_active` -> the next turn either goes on with the second step (ADD: spare, then voter) or answers.
 *
 * Failure modes: libraft refuses at once, or the change fails while it waits (leader lost: unknown outcome; the
 * member did not catch up: unreachable). A member that was added but could not be promoted stays a spare; the error
 * says so. */
#include "controller/raft/raft_errors.h"
#include "controller/raft/raft_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct member_change {
    struct raft_reply reply;
    struct raft_node *node;
    raft_node_change_cb cb;
    void *arg;
    enum raft_node_change change;
    enum raft_node_change step; /* what libraft is doing: of RAFT_NODE_ADD first ADD_SPARE, then PROMOTE */
    uint64_t id;
    char address[RAFT_NODE_ADDRESS_MAX];
    bool started, done;
    bool hands_over; /* guard R: leadership first, and the new leader is to be asked again */
    raft_term term; /* in which the step was started */
    int raft_status;
    struct error err;
};

static const char *const change_words[] = {
    [RAFT_NODE_ADD] = "add member",         [RAFT_NODE_ADD_SPARE] = "add member",
    [RAFT_NODE_PROMOTE] = "promote member", [RAFT_NODE_DEMOTE] = "demote member",
    [RAFT_NODE_REMOVE] = "remove member",   [RAFT_NODE_TRANSFER] = "transfer leadership to member",
};

static void change_deliver(struct raft_reply *reply)
{
    struct member_change *change = CONTAINER_OF(reply, struct member_change, reply);

    change->cb(change->arg, change->err.code, &change->err);
    free(change);
}

static void change_answer(struct raft_node *node, struct member_change *change)
{
    node->change_active = NULL;
    pthread_mutex_lock(&node->lock);
    node->change = NULL;
    pthread_mutex_unlock(&node->lock);
    raft_mailbox_post(node->mailbox, &change->reply);
}

int raft_node_change(struct raft_node *node, enum raft_node_change kind, uint64_t id, const char *address,
                     raft_node_change_cb cb, void *arg, struct error *err)
{
    char host[RAFT_TRANSPORT_ADDRESS_MAX], port[8];
    bool adds = kind == RAFT_NODE_ADD || kind == RAFT_NODE_ADD_SPARE;
    struct member_change *change;
    int rv = 0;

    if (id == 0 && kind != RAFT_NODE_TRANSFER)
        return error_set(err, -EINVAL, ERROR_INVALID, "a member's id is greater than 0");
    if (adds && (rv = raft_transport_parse_address(address, host, port, err)) != 0)
        return rv;
    change = NEW(struct member_change);
    *change = (struct member_change){
        .reply.deliver = change_deliver, .node = node, .cb = cb, .arg = arg, .change = kind, .id = id};
    if (adds)
        snprintf(change->address, sizeof(change->address), "%s", address);
    change->step = kind == RAFT_NODE_ADD ? RAFT_NODE_ADD_SPARE : kind;
    pthread_mutex_lock(&node->lock);
    if (node->stopping)
        rv = error_set(err, -ECANCELED, ERROR_CANCELLED, "the controller is stopping");
    else if (node->status.leader.role != RAFT_NODE_LEADER)
        rv = error_set(err, -ENOTCONN, ERROR_NO_LEADER, "this controller does not lead");
    else if (node->change != NULL)
        rv = error_set(err, -EBUSY, ERROR_CONFLICT, "another change of the members is not finished; try again");
    else
        node->change = change;
    pthread_mutex_unlock(&node->lock);
    if (rv != 0) {
        free(change);
        return rv;
    }
    uv_async_send(&node->wake);
    return 0;
}

static void change_done(struct raft_node *node, int raft_status)
{
    struct member_change *change = node->change_active;

    if (change == NULL || !change->started)
        return; /* of a change that libraft had refused: it keeps the pointer all the same */
    change->done = true;
    change->raft_status = raft_status;
}

static void change_cb(struct raft_change *req, int status)
{
    change_done(req->data, status);
}

static void transfer_cb(struct raft_transfer *req)
{
    struct raft_node *node = req->data;

    change_done(node, raft_state(&node->raft) == RAFT_LEADER ? RAFT_NOCONNECTION : 0);
}

static void change_fail(struct member_change *change, int raft_code)
{
    struct raft *raft = &change->node->raft;

    raft_errors_set(&change->err, raft_code, raft_code == RAFT_NOTFOUND ? raft_errmsg(raft) : NULL, "%s %llu",
                    change_words[change->change], (unsigned long long)change->id);
    if (change->change == RAFT_NODE_ADD && change->step == RAFT_NODE_PROMOTE)
        snprintf(change->err.text + strlen(change->err.text), sizeof(change->err.text) - strlen(change->err.text),
                 "; it is a spare now: promote or remove it");
}

static int change_start_step(struct raft_node *node, const struct member_change *change)
{
    struct raft *raft = &node->raft;
    struct raft_change *req = &node->change_req;

    req->data = node;
    node->transfer_req.data = node;
    if (change->hands_over)
        return raft_transfer(raft, &node->transfer_req, 0, transfer_cb);
    switch (change->step) {
    case RAFT_NODE_ADD:
    case RAFT_NODE_ADD_SPARE:
        return raft_add(raft, req, change->id, change->address, change_cb);
    case RAFT_NODE_PROMOTE:
        return raft_assign(raft, req, change->id, RAFT_VOTER, change_cb);
    case RAFT_NODE_DEMOTE:
        return raft_assign(raft, req, change->id, RAFT_STANDBY, change_cb);
    case RAFT_NODE_REMOVE:
        return raft_remove(raft, req, change->id, change_cb);
    case RAFT_NODE_TRANSFER:
        return raft_transfer(raft, &node->transfer_req, change->id, transfer_cb);
    }
    return RAFT_INVALID;
}

/* Guard R. */
static bool change_gives_up_one_of_two(const struct raft *raft, const struct member_change *change)
{
    const struct raft_configuration *configuration = &raft->configuration;
    unsigned voters = 0;
    bool own = false;

    for (unsigned i = 0; i < configuration->n; i++) {
        voters += configuration->servers[i].role == RAFT_VOTER;
        own = own || (configuration->servers[i].role == RAFT_VOTER && configuration->servers[i].id == raft->id);
    }
    return own && voters == 2 && change->id == raft->id &&
           (change->step == RAFT_NODE_REMOVE || change->step == RAFT_NODE_DEMOTE);
}

static void change_start(struct raft_node *node, struct member_change *change)
{
    int rv;

    change->hands_over = change_gives_up_one_of_two(&node->raft, change);
    change->started = true; /* libraft may call back from inside */
    change->done = false;
    change->term = raft_current_term(&node->raft);
    node->change_active = change;
    rv = change_start_step(node, change);
    if (rv == 0 || change->done)
        return;
    change->started = false;
    change_fail(change, rv);
    change_answer(node, change);
}

void raft_members_turn(struct raft_node *node)
{
    struct member_change *change;

    pthread_mutex_lock(&node->lock);
    change = node->change;
    pthread_mutex_unlock(&node->lock);
    if (change == NULL)
        return;
    if (!change->started) {
        if (raft_state(&node->raft) == RAFT_LEADER && node->ready_term != raft_current_term(&node->raft))
            node->barrier_wanted = true; /* guard G: when it is applied, the loop turns again */
        else
            change_start(node, change);
        return;
    }
    if (!change->done && raft_current_term(&node->raft) != change->term) {
        change->done = true; /* guard D: libraft may never say so */
        change->raft_status = change->step == RAFT_NODE_TRANSFER || change->hands_over ? 0 : RAFT_LEADERSHIPLOST;
    }
    if (!change->done)
        return;
    if (change->raft_status != 0) {
        change_fail(change, change->raft_status);
        change_answer(node, change);
    } else if (change->hands_over) {
        error_set(&change->err, -ENOTCONN, ERROR_NO_LEADER,
                  "%s %llu: it led, and has handed leadership to the other one with a vote; ask that one",
                  change_words[change->change], (unsigned long long)change->id);
        change_answer(node, change);
    } else if (change->change == RAFT_NODE_ADD && change->step == RAFT_NODE_ADD_SPARE) {
        change->step = RAFT_NODE_PROMOTE;
        change_start(node, change);
    } else {
        change_answer(node, change);
    }
}

void raft_members_stop(struct raft_node *node)
{
    struct member_change *change = node->change;

    if (change == NULL)
        return;
    if (!change->done || change->raft_status != 0)
        error_set(&change->err, change->started ? -EINPROGRESS : -ECANCELED,
                  change->started ? ERROR_UNKNOWN_OUTCOME : ERROR_CANCELLED, "%s %llu: the controller is stopping",
                  change_words[change->change], (unsigned long long)change->id);
    change_answer(node, change);
}
