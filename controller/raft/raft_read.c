/* Readers: whoever wants to see all that was acknowledged before he came.
 *
 * Happy path:
 *   1. raft_node_barrier (any thread) puts a reader on `readers`, wakes the loop
 *   2. raft_read_turn begins a round of questions (raft_confirm.h) for all that wait; who comes while a round is under way
 *      shares the next one
 *   3. a majority has answered and what was committed at the beginning is applied: the readers are answered
 * Nothing is written, so a read waits for no disk and works with full ones.
 *
 * By the log instead, as one barrier entry for all that wait: a new leader's first readers, those who come while members
 * change, and where too few voters answer within RAFT_CONFIRM_MS (then for RAFT_READ_BY_LOG_MS). So a fault in the
 * questions costs time and no more.
 *
 * While a snapshot is being restored (raft_restore.c) readers wait: what libraft calls applied then is not applied yet.
 *
 * Failure modes: not leading, or leading another term than when it began -> -ENOTCONN. What libraft says of a barrier is
 * not enough (raft_guard.h, D): one that is in flight when the server stops leading is answered by us, and stays as an
 * orphan until libraft calls back or is closed, since libraft still points to it. */
#include "controller/raft/raft_errors.h"
#include "controller/raft/raft_internal.h"

#include <errno.h>

struct barrier { /* in flight, at most one that is not answered */
    struct list in_barriers;
    struct raft_barrier req;
    struct raft_node *node;
    raft_term term;
    bool answered;
    struct list readers;
};

struct reader {
    struct list in_list;
    struct raft_reply reply;
    struct raft_node *node;
    raft_node_barrier_cb cb;
    void *arg;
    int status;
    uint64_t index;
};

static void reader_deliver(struct raft_reply *reply)
{
    struct reader *reader = CONTAINER_OF(reply, struct reader, reply);
    struct raft_node *node = reader->node;

    pthread_mutex_lock(&node->lock);
    node->reader_count--;
    pthread_mutex_unlock(&node->lock);
    reader->cb(reader->arg, reader->status, reader->index);
    free(reader);
}

static void readers_answer_all(struct raft_node *node, struct list *readers, int status)
{
    while (!list_empty(readers)) {
        struct reader *reader = LIST_ENTRY(readers->next, struct reader, in_list);

        list_remove(&reader->in_list);
        reader->status = status;
        reader->index = node->index;
        raft_mailbox_post(node->mailbox, &reader->reply);
    }
}

int raft_node_barrier(struct raft_node *node, raft_node_barrier_cb cb, void *arg)
{
    struct reader *reader = NEW(struct reader);
    int rv;

    *reader = (struct reader){.reply.deliver = reader_deliver, .node = node, .cb = cb, .arg = arg};
    pthread_mutex_lock(&node->lock);
    rv = raft_node_refusal(node);
    if (rv == 0 && node->reader_count >= RAFT_NODE_BARRIERS_MAX)
        rv = -EAGAIN;
    if (rv == 0) {
        node->reader_count++;
        list_append(&node->readers, &reader->in_list);
    }
    pthread_mutex_unlock(&node->lock);
    if (rv != 0) {
        free(reader);
        return rv;
    }
    uv_async_send(&node->wake);
    return 0;
}

/* --- By questions ----------------------------------------------------------------------------------------------- */

void raft_read_received(struct raft_node *node, raft_id id, const struct raft_confirm_message *message)
{
    struct raft_confirm_message answer;

    if (message->kind == RAFT_CONFIRM_ANSWER)
        raft_confirm_answer(&node->confirm, id, message); /* the loop's turn looks at it */
    else if (raft_confirm_question(&node->raft, message, &answer))
        raft_transport_send(node->transport, id, &answer);
}

static bool confirm_send(void *arg, raft_id id, const struct raft_confirm_message *message)
{
    struct raft_node *node = arg;
    return raft_transport_send(node->transport, id, message);
}

/* True: @waiting are readers of a round now. */
static bool confirm_begin(struct raft_node *node, struct list *waiting)
{
    uint64_t now_ms = uv_now(&node->loop);

    if (now_ms < node->read_by_log_until_ms ||
        raft_confirm_begin(&node->confirm, &node->raft, node->ready_term, confirm_send, node) != 0)
        return false;
    node->confirm_since_ms = now_ms;
    list_take(&node->confirm_readers, waiting);
    return true;
}

/* Of the round under way, if there is one. Those whose round had too few answers are again the first of @waiting. */
static void confirm_turn(struct raft_node *node, struct list *waiting)
{
    int rv;

    if (node->confirm.term == 0)
        return;
    rv = raft_confirm_check(&node->confirm, &node->raft);
    if (rv > 0 && !raft_deferred_busy(&node->deferred)) {
        readers_answer_all(node, &node->confirm_readers, 0);
        node->now.reads_asked++;
    } else if (rv < 0) {
        readers_answer_all(node, &node->confirm_readers, -ENOTCONN);
    } else if (uv_now(&node->loop) - node->confirm_since_ms >= RAFT_CONFIRM_MS) {
        list_take(&node->confirm_readers, waiting);
        list_take(waiting, &node->confirm_readers);
        node->read_by_log_until_ms = uv_now(&node->loop) + RAFT_READ_BY_LOG_MS;
    } else {
        return;
    }
    raft_confirm_end(&node->confirm);
}

/* --- By the log ------------------------------------------------------------------------------------------------- */

static void barrier_answer(struct barrier *barrier, int status)
{
    if (barrier->answered)
        return;
    barrier->answered = true;
    barrier->node->barrier_inflight = false;
    readers_answer_all(barrier->node, &barrier->readers, status);
}

static void barrier_free(struct barrier *barrier)
{
    list_remove(&barrier->in_barriers);
    free(barrier);
}

static void barrier_cb(struct raft_barrier *req, int status)
{
    struct barrier *barrier = req->data;
    bool well = status == 0 && raft_node_leads_in(barrier->node, barrier->term) &&
                !raft_deferred_busy(&barrier->node->deferred); /* which cannot be: none was begun then */

    if (well)
        barrier->node->ready_term = barrier->term;
    barrier_answer(barrier, well ? 0 : -ENOTCONN);
    barrier_free(barrier);
}

static void barrier_begin(struct raft_node *node, struct list *waiting)
{
    struct barrier *barrier = NEW(struct barrier);
    int rv;

    barrier->node = node;
    barrier->term = raft_current_term(&node->raft);
    barrier->req.data = barrier;
    list_init(&barrier->readers);
    rv = raft_barrier(&node->raft, &barrier->req, barrier_cb);
    if (rv == 0) {
        node->barrier_inflight = true;
        node->barrier_wanted = false;
        node->now.reads_logged++;
        list_append(&node->barriers, &barrier->in_barriers);
        list_take(&barrier->readers, waiting);
        return;
    }
    free(barrier);
    if (rv != RAFT_NOSPACE || raft_propose_no_space(node, true))
        readers_answer_all(node, waiting, raft_errors_errno(rv));
}

/* Guard D: what was in flight under another term, or when this server led. */
static void barriers_answer_orphans(struct raft_node *node)
{
    LIST_FOREACH (at, &node->barriers) {
        struct barrier *barrier = LIST_ENTRY(at, struct barrier, in_barriers);

        if (!raft_node_leads_in(node, barrier->term))
            barrier_answer(barrier, -ENOTCONN);
    }
}

/* --- Each turn of the loop -------------------------------------------------------------------------------------- */

void raft_read_turn(struct raft_node *node)
{
    bool leads = raft_state(&node->raft) == RAFT_LEADER;
    struct list waiting, rest;

    list_init(&waiting);
    list_init(&rest);
    pthread_mutex_lock(&node->lock);
    list_take(&waiting, &node->readers);
    pthread_mutex_unlock(&node->lock);
    barriers_answer_orphans(node);
    confirm_turn(node, &waiting);
    if (!leads)
        readers_answer_all(node, &waiting, -ENOTCONN);
    if (leads && !raft_deferred_busy(&node->deferred) && node->confirm.term == 0) {
        if (!list_empty(&waiting) && !node->barrier_inflight && confirm_begin(node, &waiting))
            confirm_turn(node, &waiting); /* the only voter has its answer already */
        if ((!list_empty(&waiting) || node->barrier_wanted) && !node->barrier_inflight)
            barrier_begin(node, &waiting);
    }
    if (list_empty(&waiting))
        return;
    pthread_mutex_lock(&node->lock); /* what could not go yet stays in front of what came meanwhile */
    list_take(&rest, &node->readers);
    list_take(&node->readers, &waiting);
    list_take(&node->readers, &rest);
    pthread_mutex_unlock(&node->lock);
}

void raft_read_stop(struct raft_node *node)
{
    struct list waiting;

    list_init(&waiting);
    pthread_mutex_lock(&node->lock);
    list_take(&waiting, &node->readers);
    pthread_mutex_unlock(&node->lock);
    list_take(&waiting, &node->confirm_readers);
    readers_answer_all(node, &waiting, -ECANCELED);
    while (!list_empty(&node->barriers)) { /* those whose callback libraft did not fire */
        struct barrier *barrier = LIST_ENTRY(node->barriers.next, struct barrier, in_barriers);

        barrier_answer(barrier, -ECANCELED);
        barrier_free(barrier);
    }
}
