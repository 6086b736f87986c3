/* Does this server lead still? Asked of the voters before a linearizable read, without a word in the log (Ongaro,
 * "Consensus: Bridging Theory and Practice", §6.4).
 *
 *   leader                                   voter
 *   note commit index, number a round
 *     --- question {term, round} --->        is that my term still?
 *     <-- answer {term, round} ------        yes: answer; a higher one: say nothing
 *   a majority, itself included: nobody else had been elected when the round began, so all that was acknowledged
 *   before is at or below the noted index; the read waits until that is applied
 *
 * Why: a leader of a higher term is elected by a majority, and each of those takes the higher term, on its disk, before it
 * gives its vote. Any two majorities share a server; the shared one answered with the old term after the round began, so
 * it had not voted then. Clocks play no part. Two conditions come with it, and where they do not hold the read takes the
 * way through the log (raft_read.c):
 *   - an entry of the leader's own term is committed: before that its commit index may be behind
 *   - the configuration is committed, and the leader a voter in it: else majorities of two configurations would have to
 *     share a server
 *
 * Pure: no I/O, no clock; messages go out through a callback, and the simulator runs the very code. It only reads
 * libraft's state. Thread: the node's. */
#ifndef CONTROLLER_RAFT_RAFT_CONFIRM_H
#define CONTROLLER_RAFT_RAFT_CONFIRM_H

#include "controller/raft/raft_node.h"

#include <raft.h>

enum raft_confirm_kind { RAFT_CONFIRM_QUESTION = 2, RAFT_CONFIRM_ANSWER = 3 }; /* on the wire: raft_transport.h */

struct raft_confirm_message {
    enum raft_confirm_kind kind;
    uint64_t term;
    uint64_t round;
};

struct raft_confirm {
    uint64_t round;    /* number of the newest; begins anywhere, so that no two starts of a server share numbers */
    raft_term term;    /* of the round under way; 0: none is */
    raft_index commit; /* that a reader of this round must see applied */
    unsigned voters;   /* in the configuration that the round began with */
    unsigned count;
    raft_id yes[RAFT_NODE_MEMBERS_MAX]; /* voters that answered, and the leader: count of them */
};

/* To voter @id; false: it cannot be reached now. */
typedef bool (*raft_confirm_send_cb)(void *arg, raft_id id, const struct raft_confirm_message *message);

void raft_confirm_init(struct raft_confirm *confirm, uint64_t first_round);
/* Begin a round; none is under way. -ENOTCONN: it does not lead. -EAGAIN: go by the log, for the conditions above do not
 * hold (@ready_term: the newest term in which an entry of this leader is known to be committed) or too few voters can be
 * asked. */
int raft_confirm_begin(struct raft_confirm *confirm, struct raft *raft, raft_term ready_term, raft_confirm_send_cb send,
                       void *arg);
/* A question has come: true with the answer that is to be sent back, false: say nothing. */
bool raft_confirm_question(struct raft *raft, const struct raft_confirm_message *question,
                           struct raft_confirm_message *ret_answer);
/* An answer has come from @id, whom the transport vouches for. One of another round is ignored. */
void raft_confirm_answer(struct raft_confirm *confirm, raft_id id, const struct raft_confirm_message *answer);
/* 1: it led when the round began, and what is committed then is applied as far as libraft knows. 0: not yet known.
 * -ENOTCONN: it leads no more. The round stays under way until it is ended. */
int raft_confirm_check(const struct raft_confirm *confirm, struct raft *raft);
void raft_confirm_end(struct raft_confirm *confirm);

#endif
