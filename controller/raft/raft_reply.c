/* The mailbox: a locked list and a uv_async_t. Callbacks run without the lock, so they may propose again. */
#include "controller/raft/raft_reply.h"

struct raft_mailbox {
    uv_async_t async;
    pthread_mutex_t lock;
    struct list replies;
    bool has_leader, has_applied;
    struct raft_node_leader leader;
    uint64_t applied;
    raft_node_leader_cb leader_cb;
    raft_node_applied_cb applied_cb;
    void *arg;
};

/* True where something was delivered. */
static bool mailbox_deliver(struct raft_mailbox *mailbox)
{
    struct raft_node_leader leader;
    struct list replies;
    bool has_leader, has_applied, any;
    uint64_t applied;

    list_init(&replies);
    pthread_mutex_lock(&mailbox->lock);
    list_take(&replies, &mailbox->replies);
    has_leader = mailbox->has_leader;
    has_applied = mailbox->has_applied;
    leader = mailbox->leader;
    applied = mailbox->applied;
    mailbox->has_leader = mailbox->has_applied = false;
    pthread_mutex_unlock(&mailbox->lock);

    any = has_leader || has_applied || !list_empty(&replies);
    if (has_leader && mailbox->leader_cb != NULL)
        mailbox->leader_cb(mailbox->arg, &leader);
    if (has_applied && mailbox->applied_cb != NULL)
        mailbox->applied_cb(mailbox->arg, applied);
    while (!list_empty(&replies)) {
        struct raft_reply *reply = LIST_ENTRY(replies.next, struct raft_reply, in_mailbox);

        list_remove(&reply->in_mailbox);
        reply->deliver(reply);
    }
    return any;
}

static void mailbox_async(uv_async_t *async)
{
    mailbox_deliver(async->data);
}

void raft_mailbox_deliver_all(struct raft_mailbox *mailbox)
{
    while (mailbox_deliver(mailbox))
        ;
}

struct raft_mailbox *raft_mailbox_create(uv_loop_t *loop, raft_node_leader_cb leader, raft_node_applied_cb applied,
                                         void *arg)
{
    struct raft_mailbox *mailbox = NEW(struct raft_mailbox);

    ASSERT(pthread_mutex_init(&mailbox->lock, NULL) == 0);
    ASSERT(uv_async_init(loop, &mailbox->async, mailbox_async) == 0);
    mailbox->async.data = mailbox;
    list_init(&mailbox->replies);
    mailbox->leader_cb = leader;
    mailbox->applied_cb = applied;
    mailbox->arg = arg;
    return mailbox;
}

static void mailbox_closed(uv_handle_t *handle)
{
    struct raft_mailbox *mailbox = handle->data;

    pthread_mutex_destroy(&mailbox->lock);
    free(mailbox);
}

void raft_mailbox_destroy(struct raft_mailbox *mailbox)
{
    ASSERT(list_empty(&mailbox->replies));
    uv_close((uv_handle_t *)&mailbox->async, mailbox_closed);
}

void raft_mailbox_post(struct raft_mailbox *mailbox, struct raft_reply *reply)
{
    pthread_mutex_lock(&mailbox->lock);
    list_append(&mailbox->replies, &reply->in_mailbox);
    pthread_mutex_unlock(&mailbox->lock);
    uv_async_send(&mailbox->async);
}

void raft_mailbox_post_leader(struct raft_mailbox *mailbox, const struct raft_node_leader *leader)
{
    pthread_mutex_lock(&mailbox->lock);
    mailbox->leader = *leader;
    mailbox->has_leader = true;
    pthread_mutex_unlock(&mailbox->lock);
    uv_async_send(&mailbox->async);
}

void raft_mailbox_post_applied(struct raft_mailbox *mailbox, uint64_t index)
{
    pthread_mutex_lock(&mailbox->lock);
    mailbox->applied = index;
    mailbox->has_applied = true;
    pthread_mutex_unlock(&mailbox->lock);
    uv_async_send(&mailbox->async);
}
