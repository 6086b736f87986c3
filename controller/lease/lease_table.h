/* What one controller supports: the leases of hosts, of which each is held from the controllers one by one.
 *
 *   host --question(generation)--> controller: support until now + TTL * (1 + drift)      rules 1, 4, 5 of docs/ha.md
 *   leader --look(term, index)---> controller: what it has heard, supports and confirms
 *
 * A support is in memory alone; nothing of it is replicated and no leader is needed. So a controller that starts remembers
 * none, and makes up for it by two rules: it supports nothing before it has applied all that the present leader had
 * committed (else it might support what it had confirmed before), and confirms nothing before a support of its former
 * life would have run out.
 *
 * Pure: the clock (CLOCK_BOOTTIME of this host, nanoseconds) and the state come in as arguments, so that the simulator
 * runs the very code. One thread, the API loop's; the state is read under its lock. */
#ifndef CONTROLLER_LEASE_LEASE_TABLE_H
#define CONTROLLER_LEASE_LEASE_TABLE_H

#include "common/map.h"
#include "controller/fsm/state.h"

/* Bound of how much faster one clock runs than another, in thousandths. NTP slews by at most 0.5; crystals differ by 0.1. */
#define LEASE_DRIFT_PER_MILLE 20u
#define LEASE_MS UINT64_C(1000000) /* nanoseconds */

struct lease_support {
    char host[STATE_ID_BYTES];
    uint64_t until_ns; /* last support runs out; 0: never supported by this process. Whatever the generation was */
    uint64_t heard_ns; /* last question; 0: none since this process has begun */
    uint64_t known_ns; /* when it first told a leader of the host */
    uint64_t since_ns; /* it has been supported without a gap; 0: the last question was not granted */
    uint64_t voters_index; /* it counts in this list of voters, which was applied here when it said so, or in a newer one */
};

#define LEASE_NEVER_MS 3600000u /* told of a host that has not asked this process and is suspected or lost already */

/* What is broken on purpose, to see that it is found; nothing in a real controller. */
struct lease_table_mutations {
    bool no_drift;         /* rule 1: counts no longer than the host does */
    bool no_patience;      /* rule 5: confirms at once after its start */
    bool confirms_at_once; /* rule 4: confirms while it supports */
    bool supports_suspects; /* rule 4: goes on supporting what it has applied to be suspected */
};

struct lease_table {
    uint64_t start_ns;        /* when it began to listen */
    bool caught_up;           /* has applied, since its start, what a leader of its own term had committed */
    uint64_t voters_index;    /* newest list of voters that was seen to be applied, */
    uint64_t voters_since_ns; /* and when */
    struct map supports;      /* struct lease_support by host */
    struct lease_table_mutations mutations;
};

/* TTL on a controller's clock for a support of @ttl_ms on a host's. */
uint64_t lease_ttl_ns(uint64_t ttl_ms);

void lease_table_init(struct lease_table *table, uint64_t now_ns);
void lease_table_finish(struct lease_table *table);
/* The state has changed, or may have. Cheap. */
void lease_table_look(struct lease_table *table, const struct state *state, uint64_t now_ns);

/* A host's question, its identity proved by the caller: fills *ret (zeroed before; the caller clears it). @raft_id: of this
 * controller. */
void lease_table_answer(struct lease_table *table, const struct state *state, const struct lease_question *question,
                        uint64_t raft_id, uint64_t now_ns, struct lease_answer *ret);
/* The leader's look: fills *ret as above. @term: that this controller is in, on disk. A leader of another term is told
 * nothing but that. */
void lease_table_view(struct lease_table *table, const struct state *state, const struct lease_look *look, uint64_t raft_id,
                      uint64_t term, uint64_t now_ns, struct lease_view *ret);

#endif
