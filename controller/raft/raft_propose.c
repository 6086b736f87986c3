/* Commands on their way into the log.
 *
 * Happy path of a command:
 *   1. raft_node_propose (any thread) counts it and puts it on `proposals`, wakes the loop
 *   2. raft_propose_turn takes what waits, up to a group's size, frames it (raft_frame.h) and calls raft_apply
 *   3. libraft commits; raft_apply.c applies the group, finds it in `groups` by its number, leaves the results
 *   4. libraft calls group_cb: each command is posted to the reply loop with its result
 * While RAFT_GROUPS_INFLIGHT_MAX groups are under way new commands wait, and so the next group is larger: under load
 * the groups grow by themselves.
 *
 * While a snapshot is being restored (raft_restore.c: this server was a follower just now) they wait: what libraft calls
 * applied then is not applied yet.
 *
 * Failure modes: not leading -> -ENOTCONN for all that waits. Leadership lost with groups in flight -> -EINPROGRESS
 * (unless the group has been applied all the same: then the outcome is known). What libraft says of a request is not
 * enough (raft_guard.h, D): what is in flight when the server stops leading, or leads another term, is answered by
 * us, and stays as an orphan until libraft calls back or is closed, since libraft still points to it. No space:
 * commands wait for a grace period, then each turn refuses what waits with -ENOSPC; every try is a probe, so it ends
 * by itself. */
#include "controller/raft/raft_errors.h"
#include "controller/raft/raft_frame.h"
#include "controller/raft/raft_internal.h"

#include "common/log.h"

#include <errno.h>

struct proposal { /* one command */
    struct list in_list; /* proposals, then the group's commands */
    struct raft_reply reply;
    struct raft_node *node;
    raft_node_propose_cb cb;
    void *arg;
    void *command; /* freed once it is in the log's entry */
    size_t size;
    int status;
    void *result;
};

struct group { /* one log entry of ours in flight */
    struct list in_groups;
    struct raft_apply req;
    struct raft_node *node;
    uint64_t sequence;
    raft_term term; /* in which it was proposed */
    bool applied;
    bool answered; /* an orphan: only libraft still knows it */
    unsigned count;
    struct proposal *commands[]; /* count of them */
};

/* --- Answers ---------------------------------------------------------------------------------------------------- */

static void proposal_deliver(struct raft_reply *reply)
{
    struct proposal *proposal = CONTAINER_OF(reply, struct proposal, reply);
    struct raft_node *node = proposal->node;

    pthread_mutex_lock(&node->lock);
    node->proposal_count--;
    node->proposal_bytes -= proposal->size;
    pthread_mutex_unlock(&node->lock);
    proposal->cb(proposal->arg, proposal->status, proposal->result);
    free(proposal);
}

static void proposal_answer(struct proposal *proposal, int status)
{
    free(TAKE_PTR(proposal->command));
    proposal->status = status;
    raft_mailbox_post(proposal->node->mailbox, &proposal->reply);
}

static void proposals_answer_all(struct list *proposals, int status)
{
    while (!list_empty(proposals)) {
        struct proposal *proposal = LIST_ENTRY(proposals->next, struct proposal, in_list);

        list_remove(&proposal->in_list);
        proposal_answer(proposal, status);
    }
}

/* --- From other threads ----------------------------------------------------------------------------------------- */

int raft_node_refusal(const struct raft_node *node)
{
    if (node->stopping)
        return -ECANCELED;
    return node->status.leader.role == RAFT_NODE_LEADER ? 0 : -ENOTCONN;
}

int raft_node_propose(struct raft_node *node, void *command, size_t size, raft_node_propose_cb cb, void *arg)
{
    struct proposal *proposal;
    int rv;

    if (size == 0 || size > RAFT_NODE_COMMAND_BYTES_MAX)
        return -E2BIG;
    proposal = NEW(struct proposal);
    *proposal = (struct proposal){.reply.deliver = proposal_deliver, .node = node, .cb = cb, .arg = arg};
    pthread_mutex_lock(&node->lock);
    rv = raft_node_refusal(node);
    if (rv == 0 && (node->proposal_count >= node->proposals_max ||
                    node->proposal_bytes + size > node->proposal_bytes_max)) {
        node->commands_refused++;
        rv = -EAGAIN;
    }
    if (rv == 0) {
        proposal->command = command;
        proposal->size = size;
        node->proposal_count++;
        node->proposal_bytes += size;
        list_append(&node->proposals, &proposal->in_list);
    }
    pthread_mutex_unlock(&node->lock);
    if (rv != 0) {
        free(proposal);
        return rv;
    }
    uv_async_send(&node->wake);
    return 0;
}

/* --- Groups ----------------------------------------------------------------------------------------------------- */

struct group *raft_propose_find(struct raft_node *node, uint64_t proposer, uint64_t sequence)
{
    if (proposer != node->proposer)
        return NULL;
    LIST_FOREACH (at, &node->groups) {
        struct group *group = LIST_ENTRY(at, struct group, in_groups);

        if (group->sequence == sequence)
            return group->applied || group->answered ? NULL : group;
    }
    return NULL;
}

void raft_propose_set_result(struct group *group, unsigned at, void *result)
{
    ASSERT(at < group->count);
    group->commands[at]->result = result;
}

void raft_propose_set_applied(struct group *group)
{
    group->applied = true;
}

/* Tell those who wait; the memory stays until libraft has called back. */
static void group_answer(struct group *group)
{
    if (group->answered)
        return;
    group->answered = true;
    group->node->group_count--;
    for (unsigned i = 0; i < group->count; i++)
        proposal_answer(group->commands[i], group->applied ? 0 : -EINPROGRESS);
}

static void group_free(struct group *group)
{
    list_remove(&group->in_groups);
    free(group);
}

static void group_cb(struct raft_apply *req, int status UNUSED, void *result UNUSED)
{
    struct group *group = req->data;

    group_answer(group);
    group_free(group);
}

/* Take up to a group's worth from the front of @from. */
static struct group *group_create(struct raft_node *node, struct list *from)
{
    size_t bytes = RAFT_GROUP_HEADER_BYTES;
    struct group *group;
    unsigned count = 0;

    LIST_FOREACH (at, from) {
        bytes += raft_group_command_bytes(LIST_ENTRY(at, struct proposal, in_list)->size);
        if (count > 0 && (bytes > RAFT_GROUP_BYTES_MAX || count == RAFT_GROUP_COMMANDS_MAX))
            break;
        count++;
    }
    group = xcalloc(1, sizeof(*group) + count * sizeof(group->commands[0]));
    group->node = node;
    group->req.data = group;
    group->sequence = ++node->sequence;
    group->term = raft_current_term(&node->raft);
    group->count = count;
    for (unsigned i = 0; i < count; i++) {
        group->commands[i] = LIST_ENTRY(from->next, struct proposal, in_list);
        list_remove(&group->commands[i]->in_list);
    }
    return group;
}

static struct raft_buffer group_encode(const struct group *group)
{
    struct bytes_writer out = {0};

    raft_group_begin(&out, group->node->proposer, group->sequence);
    for (unsigned i = 0; i < group->count; i++)
        raft_group_add(&out, group->commands[i]->command, group->commands[i]->size);
    raft_group_end(&out, group->count);
    return (struct raft_buffer){.base = out.data, .len = out.size};
}

/* Undo group_create: its commands are again the first of @to. */
static void group_put_back(struct group *group, struct list *to)
{
    struct list rest;

    list_init(&rest);
    list_take(&rest, to);
    for (unsigned i = 0; i < group->count; i++)
        list_append(to, &group->commands[i]->in_list);
    list_take(to, &rest);
    free(group);
}

/* 0, or the errno with the commands back in @from. */
static int group_submit(struct raft_node *node, struct list *from)
{
    struct group *group = group_create(node, from);
    struct raft_buffer buf = group_encode(group);
    int rv;

    list_append(&node->groups, &group->in_groups);
    node->group_count++;
    rv = raft_apply(&node->raft, &group->req, &buf, 1, group_cb);
    if (rv != 0) {
        raft_free(buf.base);
        list_remove(&group->in_groups);
        node->group_count--;
        group_put_back(group, from);
        return raft_errors_errno(rv);
    }
    for (unsigned i = 0; i < group->count; i++)
        free(TAKE_PTR(group->commands[i]->command));
    node->now.groups++;
    return 0;
}

/* --- Each turn of the loop -------------------------------------------------------------------------------------- */

bool raft_propose_no_space(struct raft_node *node, bool no_space)
{
    uint64_t now_ms = uv_now(&node->loop);

    if (!no_space)
        node->no_space_since_ms = 0;
    else if (node->no_space_since_ms == 0)
        node->no_space_since_ms = now_ms;
    no_space = no_space && now_ms - node->no_space_since_ms >= RAFT_NO_SPACE_GRACE_MS;
    if (no_space != node->now.no_space)
        log_warning("raft-space", "%s", no_space ? "a majority has no disk space for the log: commands are refused"
                                                 : "there is disk space again");
    node->now.no_space = no_space;
    return no_space;
}

static void propose_commands(struct raft_node *node, struct list *waiting)
{
    int rv = 0;

    while (rv == 0 && !list_empty(waiting) && node->group_count < RAFT_GROUPS_INFLIGHT_MAX)
        rv = group_submit(node, waiting);
    if (rv == -ENOSPC) {
        if (raft_propose_no_space(node, true))
            proposals_answer_all(waiting, -ENOSPC);
    } else if (rv != 0) {
        proposals_answer_all(waiting, rv);
    } else if (node->no_space_since_ms != 0 && node->group_count > 0) {
        raft_propose_no_space(node, false);
    }
}

/* Guard D: what was in flight under another term, or when this server led. */
static void propose_answer_orphans(struct raft_node *node)
{
    LIST_FOREACH (at, &node->groups) {
        struct group *group = LIST_ENTRY(at, struct group, in_groups);

        if (!raft_node_leads_in(node, group->term))
            group_answer(group);
    }
}

void raft_propose_turn(struct raft_node *node)
{
    bool leads = raft_state(&node->raft) == RAFT_LEADER;
    struct list waiting, rest;

    list_init(&waiting);
    list_init(&rest);
    pthread_mutex_lock(&node->lock);
    list_take(&waiting, &node->proposals);
    pthread_mutex_unlock(&node->lock);
    propose_answer_orphans(node);
    if (leads && !raft_deferred_busy(&node->deferred))
        propose_commands(node, &waiting);
    else if (!leads)
        proposals_answer_all(&waiting, -ENOTCONN);
    if (list_empty(&waiting))
        return;
    pthread_mutex_lock(&node->lock); /* what could not go yet stays in front of what came meanwhile */
    list_take(&rest, &node->proposals);
    list_take(&node->proposals, &waiting);
    list_take(&node->proposals, &rest);
    pthread_mutex_unlock(&node->lock);
}

void raft_propose_stop(struct raft_node *node)
{
    struct list waiting;

    list_init(&waiting);
    pthread_mutex_lock(&node->lock);
    list_take(&waiting, &node->proposals);
    pthread_mutex_unlock(&node->lock);
    proposals_answer_all(&waiting, -ECANCELED);
    while (!list_empty(&node->groups)) {
        struct group *group = LIST_ENTRY(node->groups.next, struct group, in_groups);

        group_answer(group);
        group_free(group);
    }
}
