/* Rounds of questions to the voters; see the header for why they are enough. */
#include "controller/raft/raft_confirm.h"

#include <errno.h>

void raft_confirm_init(struct raft_confirm *confirm, uint64_t first_round)
{
    *confirm = (struct raft_confirm){.round = first_round};
}

static bool leads_in(struct raft *raft, raft_term term)
{
    return raft_state(raft) == RAFT_LEADER && raft_current_term(raft) == term;
}

static bool is_voter(const struct raft *raft, raft_id id)
{
    for (unsigned i = 0; i < raft->configuration.n; i++)
        if (raft->configuration.servers[i].id == id)
            return raft->configuration.servers[i].role == RAFT_VOTER;
    return false;
}

static bool is_majority(unsigned count, unsigned voters)
{
    return count > voters / 2;
}

int raft_confirm_begin(struct raft_confirm *confirm, struct raft *raft, raft_term ready_term, raft_confirm_send_cb send,
                       void *arg)
{
    struct raft_confirm_message question = {.kind = RAFT_CONFIRM_QUESTION, .term = raft_current_term(raft)};
    unsigned asked = 1;

    ASSERT(confirm->term == 0);
    if (raft_state(raft) != RAFT_LEADER)
        return -ENOTCONN;
    if (ready_term != question.term || raft->configuration_uncommitted_index != 0 || !is_voter(raft, raft->id) ||
        raft->configuration.n > RAFT_NODE_MEMBERS_MAX)
        return -EAGAIN;
    question.round = ++confirm->round;
    confirm->voters = 0;
    for (unsigned i = 0; i < raft->configuration.n; i++) {
        const struct raft_server *server = &raft->configuration.servers[i];

        if (server->role != RAFT_VOTER)
            continue;
        confirm->voters++;
        asked += server->id != raft->id && send(arg, server->id, &question);
    }
    if (!is_majority(asked, confirm->voters))
        return -EAGAIN;
    confirm->term = question.term;
    confirm->commit = raft_commit_index(raft);
    confirm->yes[0] = raft->id;
    confirm->count = 1;
    return 0;
}

bool raft_confirm_question(struct raft *raft, const struct raft_confirm_message *question,
                           struct raft_confirm_message *ret_answer)
{
    int state = raft_state(raft);

    if ((state != RAFT_FOLLOWER && state != RAFT_CANDIDATE) || raft_current_term(raft) != question->term)
        return false;
    *ret_answer = (struct raft_confirm_message){RAFT_CONFIRM_ANSWER, question->term, question->round};
    return true;
}

void raft_confirm_answer(struct raft_confirm *confirm, raft_id id, const struct raft_confirm_message *answer)
{
    if (confirm->term == 0 || answer->term != confirm->term || answer->round != confirm->round)
        return;
    for (unsigned i = 0; i < confirm->count; i++)
        if (confirm->yes[i] == id)
            return;
    if (confirm->count < RAFT_NODE_MEMBERS_MAX)
        confirm->yes[confirm->count++] = id;
}

int raft_confirm_check(const struct raft_confirm *confirm, struct raft *raft)
{
    unsigned count = 0;

    if (!leads_in(raft, confirm->term))
        return -ENOTCONN;
    for (unsigned i = 0; i < confirm->count; i++) /* a change that began meanwhile took its vote: it counts no more */
        count += is_voter(raft, confirm->yes[i]);
    return is_majority(count, confirm->voters) && raft_last_applied(raft) >= confirm->commit;
}

void raft_confirm_end(struct raft_confirm *confirm)
{
    confirm->term = 0;
}
