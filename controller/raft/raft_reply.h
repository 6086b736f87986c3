/* The mailbox from the node's thread to the reply loop: finished work is posted by any thread and delivered, in the
 * order of posting, on the loop. Leader changes and the applied index are coalesced: only the newest counts. */
#ifndef CONTROLLER_RAFT_RAFT_REPLY_H
#define CONTROLLER_RAFT_RAFT_REPLY_H

#include "common/list.h"
#include "controller/raft/raft_node.h"

struct raft_reply { /* embedded in what is to be delivered */
    struct list in_mailbox;
    void (*deliver)(struct raft_reply *reply); /* on the reply loop; frees */
};

struct raft_mailbox;

/* On the reply loop's thread, like deliver_all and destroy. The callbacks may be NULL. */
struct raft_mailbox *raft_mailbox_create(uv_loop_t *loop, raft_node_leader_cb leader, raft_node_applied_cb applied,
                                         void *arg);
/* Deliver what is there now, and again what that brings. */
void raft_mailbox_deliver_all(struct raft_mailbox *mailbox);
/* Must be empty. Its memory goes when the loop has closed its handle. */
void raft_mailbox_destroy(struct raft_mailbox *mailbox);

/* Any thread. */
void raft_mailbox_post(struct raft_mailbox *mailbox, struct raft_reply *reply);
void raft_mailbox_post_leader(struct raft_mailbox *mailbox, const struct raft_node_leader *leader);
void raft_mailbox_post_applied(struct raft_mailbox *mailbox, uint64_t index);

#endif
