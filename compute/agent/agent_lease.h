/* The host's lease at work: asks every controller, hands deadlines to the VMMs, and takes the session to where it is heard.
 *
 *   each AGENT_LEASE_TICK_MS, for each controller without a question under way:
 *     the last one was AGENT_LEASE_ASK_MS ago (AGENT_LEASE_RETRY_MS where it was refused or not granted) -> ask
 *   an answer or a refusal -> lease_holder -> the pages of all VMs
 *   an answer with a new list of controllers -> all are asked at once: the next change of them waits until they know that we know
 *   it knows newer orders than the session has, or answers while the session's controller does not -> session_move
 *
 * The rules are those of lease_holder.h. Nothing here waits for disks or for the orders: what VMMs need goes by shared pages
 * in memory (vm_lease). One thread, the loop's. */
#ifndef COMPUTE_AGENT_AGENT_LEASE_H
#define COMPUTE_AGENT_AGENT_LEASE_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <uv.h>

#include "common/http_client.h"
#include "compute/agent/lease_holder.h"

#define AGENT_LEASE_TICK_MS 100u
#define AGENT_LEASE_ASK_MS 1000u
#define AGENT_LEASE_RETRY_MS 300u
#define AGENT_LEASE_DEADLINE_MS 2500u /* of a question: a late answer is worth little */
#define AGENT_LEASE_BEHIND_MS 300u    /* newer orders are known elsewhere for so long: the session goes there; after each move that has not
                                       * brought them twice as long, */
#define AGENT_LEASE_BEHIND_MAX_MS 5000u /* up to that: where a connection takes so long to make, the next one would never bring them */
#define AGENT_LEASE_DEAF_MS 2500u     /* a controller that has not answered for so long is not worth waiting for */

struct session;

struct agent_lease_peer {
    struct agent_lease *lease;
    char address[256];
    struct http_call *call;
    uint64_t asked_ns, next_ms, answered_ms; /* CLOCK_BOOTTIME; the loop's clock */
    bool named; /* by the session or by a list of voters: else it is forgotten */
};

struct agent_lease_options {
    uv_loop_t *loop;
    struct http_client *http;
    struct tls_context *tls;
    const char *peer_prefix; /* identity that the controllers must have; copied */
    const char *host;        /* borrowed for the life of the lease */
    uint64_t (*cluster_epoch)(void *arg);
    void (*changed)(void *arg); /* the deadline is another one */
    void *arg;
};

struct agent_lease {
    struct agent_lease_options options;
    char *peer_prefix;
    struct lease_holder holder;
    struct agent_lease_peer *peers[LEASE_HOLDER_SUPPORTS_MAX];
    unsigned peer_count;
    struct session *session; /* NULL until there is one */
    uint64_t deadline_ns;    /* as last told */
    unsigned behind_moves;   /* that did not bring what is known elsewhere */
    uint64_t behind_ms;      /* since when newer orders are known elsewhere; 0: not */
    bool held;               /* as last logged */
    bool silent;             /* a drill: nobody is asked */
    uv_timer_t timer;
    bool stopping, timer_closed;
    void (*stopped)(void *arg);
    void *stopped_arg;
};

void agent_lease_start(struct agent_lease *lease, const struct agent_lease_options *options);
/* The controllers that the session knows; asked besides those that answers name. */
void agent_lease_controllers(struct agent_lease *lease, const struct string_list *addresses);
/* The orders name this generation. */
void agent_lease_generation(struct agent_lease *lease, uint64_t generation);
/* A drill: from true to false no controller is asked; what was supported before runs out. */
void agent_lease_silence(struct agent_lease *lease, bool silent);
/* Questions end; then @stopped. The memory is the caller's. */
void agent_lease_stop(struct agent_lease *lease, void (*stopped)(void *arg), void *arg);
/* Nanoseconds of CLOCK_BOOTTIME. */
uint64_t agent_lease_now_ns(void);

#endif
