/* A host's lease as its agent counts it: until when may the VMs run that would be started elsewhere if this host were lost?
 *
 *   question --> each controller, each second      answer: supported    until asked + TTL
 *                                                  connection refused   the same, if its last support still holds then
 *   deadline = the moment until which a majority of the controllers supports the lease, of the newest list of
 *              controllers that any of them has named
 *
 * Time counts from when a question was sent: the controller counts from when it came, and longer by the bound of drift.
 * A refusal means that the controller's process was not running; one that starts confirms no loss before a TTL is over. It
 * revives nothing: a support that has run out when the refusal arrives stays so, for the host may have been declared lost.
 *
 * Pure, so that the simulator runs the very code: times are nanoseconds of CLOCK_BOOTTIME. One thread. */
#ifndef COMPUTE_AGENT_LEASE_HOLDER_H
#define COMPUTE_AGENT_LEASE_HOLDER_H

#include "common/base.h"
#include "schema/objects.h"

#define LEASE_HOLDER_VOTERS_MAX 16u
#define LEASE_HOLDER_SUPPORTS_MAX 32u /* of controllers that count, or did lately */
#define LEASE_HOLDER_MARGIN_NS 500000000ull /* before a deadline the VMMs hold their vCPUs */

/* What is broken on purpose, to see that it is found; nothing in a real agent. */
struct lease_holder_mutations {
    bool refusal_revives;    /* rule 3: also what has run out */
    bool refusal_as_asked;   /* rule 3: judged by when it was asked */
    bool one_support;        /* rule 2: one is enough */
};

struct lease_holder {
    uint64_t generation;    /* asked for; 0: not told yet */
    uint64_t cluster_epoch; /* of what follows */
    uint64_t voters_index;
    struct lease_holder_voter {
        uint64_t raft_id;
        char address[256];
    } voters[LEASE_HOLDER_VOTERS_MAX];
    unsigned voter_count;
    struct lease_holder_support {
        uint64_t raft_id, until_ns;
    } supports[LEASE_HOLDER_SUPPORTS_MAX];
    unsigned support_count;
    uint64_t ttl_ms;
    bool refusal_extends;
    struct lease_holder_mutations mutations;
};

/* Zeroed at first. The host's orders name this generation. */
void lease_holder_generation(struct lease_holder *holder, uint64_t generation);
/* @answer to a question sent at @asked_ns, from when it counts (rule 1). True: the list of voters is a new one. */
bool lease_holder_answered(struct lease_holder *holder, const struct lease_answer *answer, uint64_t asked_ns);
/* The connection to @address for a question at @asked_ns was refused, which is known at @now_ns. */
void lease_holder_refused(struct lease_holder *holder, const char *address, uint64_t asked_ns, uint64_t now_ns);
/* How many of the controllers that count have never supported it: after a change of them there should be none. */
unsigned lease_holder_strangers(const struct lease_holder *holder);
/* Rule 7: in no older list of controllers than this one, of @cluster_epoch, is a deadline counted on this host from now on; 0: that cannot
 * be said. VMs may have one that was, by this agent or the one before, for a TTL at most: nobody is lost so soon after a change. */
uint64_t lease_holder_counts_in(const struct lease_holder *holder, uint64_t cluster_epoch);
/* Until when a majority supports it; 0: never has. */
uint64_t lease_holder_deadline(const struct lease_holder *holder);

/* What a VM's shared page has to hold (compute/vmm/lease.h in the VMM's words): 0 = no lease rules it, 1 = it may not run.
 * @ha: it is started elsewhere when this host is lost; @armed: the lease counts; @confirmed: an order of the present generation
 * names it, under the epoch of its VMM, and the host does not go down: only such a one runs without the lease where that is
 * disarmed, for any other may be another host's by now. @present: what it holds now, 1 for a new one: a deadline that the
 * agent before us gave stays until this one has something to say. */
uint64_t lease_holder_page(const struct lease_holder *holder, bool ha, bool armed, bool confirmed, uint64_t present);

#endif
