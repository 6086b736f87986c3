/* Counting supports; see the header. */
#include "compute/agent/lease_holder.h"

#include <stdio.h>
#include <string.h>

#define MS_NS 1000000ull
#define PAGE_EXPIRED 1u /* long ago */

void lease_holder_generation(struct lease_holder *holder, uint64_t generation)
{
    /* What supports there are stay: a controller confirms no later suspicion before its last one has run out either. */
    holder->generation = generation;
}

static struct lease_holder_support *support_of(struct lease_holder *holder, uint64_t raft_id)
{
    unsigned oldest = 0;
    for (unsigned i = 0; i < holder->support_count; i++) {
        if (holder->supports[i].raft_id == raft_id)
            return &holder->supports[i];
        if (holder->supports[i].until_ns < holder->supports[oldest].until_ns)
            oldest = i;
    }
    unsigned at = holder->support_count < LEASE_HOLDER_SUPPORTS_MAX ? holder->support_count++ : oldest;
    holder->supports[at] = (struct lease_holder_support){.raft_id = raft_id};
    return &holder->supports[at];
}

static bool take_voters(struct lease_holder *holder, const struct lease_answer *answer)
{
    const struct lease_voter *voters = answer->voters.items;
    bool newer = answer->cluster_epoch > holder->cluster_epoch ||
                 (answer->cluster_epoch == holder->cluster_epoch && answer->voters_index > holder->voters_index);
    if (answer->voters.count == 0 || (holder->voter_count > 0 && !newer))
        return false;
    holder->cluster_epoch = answer->cluster_epoch;
    holder->voters_index = answer->voters_index;
    holder->voter_count = 0;
    for (size_t i = 0; i < answer->voters.count && i < LEASE_HOLDER_VOTERS_MAX; i++) {
        struct lease_holder_voter *voter = &holder->voters[holder->voter_count++];
        voter->raft_id = voters[i].raft_id;
        snprintf(voter->address, sizeof voter->address, "%s", voters[i].address != NULL ? voters[i].address : "");
    }
    return true;
}

bool lease_holder_answered(struct lease_holder *holder, const struct lease_answer *answer, uint64_t asked_ns)
{
    if (answer->cluster_epoch == 0 || answer->cluster_epoch < holder->cluster_epoch)
        return false; /* it holds nothing yet, or was left behind by a recovery of the cluster */
    bool news = take_voters(holder, answer);
    holder->ttl_ms = answer->ttl_ms;
    holder->refusal_extends = answer->refusal_extends;
    if (answer->supported) {
        struct lease_holder_support *support = support_of(holder, answer->raft_id);
        support->until_ns = MAX(support->until_ns, asked_ns + holder->ttl_ms * MS_NS);
    }
    return news;
}

void lease_holder_refused(struct lease_holder *holder, const char *address, uint64_t asked_ns, uint64_t now_ns)
{
    if (!holder->refusal_extends)
        return;
    for (unsigned i = 0; i < holder->voter_count; i++) {
        if (strcmp(holder->voters[i].address, address) != 0)
            continue;
        struct lease_holder_support *support = support_of(holder, holder->voters[i].raft_id);
        bool holds = holder->mutations.refusal_revives    ? support->until_ns != 0
                     : holder->mutations.refusal_as_asked ? support->until_ns > asked_ns
                                                          : support->until_ns > now_ns;
        if (holds)
            support->until_ns = MAX(support->until_ns, asked_ns + holder->ttl_ms * MS_NS);
    }
}

static uint64_t until_of(const struct lease_holder *holder, uint64_t raft_id)
{
    for (unsigned i = 0; i < holder->support_count; i++)
        if (holder->supports[i].raft_id == raft_id)
            return holder->supports[i].until_ns;
    return 0;
}

unsigned lease_holder_strangers(const struct lease_holder *holder)
{
    unsigned count = 0;
    for (unsigned i = 0; i < holder->voter_count; i++)
        count += until_of(holder, holder->voters[i].raft_id) == 0;
    return count;
}

uint64_t lease_holder_deadline(const struct lease_holder *holder)
{
    uint64_t sorted[LEASE_HOLDER_VOTERS_MAX]; /* the latest first */
    unsigned count = 0;
    for (unsigned i = 0; i < holder->voter_count; i++) {
        uint64_t until_ns = until_of(holder, holder->voters[i].raft_id);
        unsigned at = count++;
        for (; at > 0 && sorted[at - 1] < until_ns; at--)
            sorted[at] = sorted[at - 1];
        sorted[at] = until_ns;
    }
    if (count == 0)
        return 0;
    return sorted[holder->mutations.one_support ? 0 : count / 2];
}

uint64_t lease_holder_counts_in(const struct lease_holder *holder, uint64_t cluster_epoch)
{
    return holder->cluster_epoch == MAX(cluster_epoch, UINT64_C(1)) ? holder->voters_index : 0;
}

uint64_t lease_holder_page(const struct lease_holder *holder, bool ha, bool armed, bool confirmed, uint64_t present)
{
    uint64_t deadline_ns = lease_holder_deadline(holder);
    if (!ha)
        return 0;
    if (!confirmed)
        return PAGE_EXPIRED;
    if (!armed)
        return 0;
    if (deadline_ns == 0)
        return MAX(present, (uint64_t)PAGE_EXPIRED);
    return deadline_ns;
}
