/* A VM that leaves this host while it runs: the source's side of a migration, beside its VM (vm.h).
 *
 *   LOOK --> WAIT --> TUNNEL --> BEGIN --> FOLLOW --> PROPOSE --> DECIDE --> ENDING --> ended
 *             |          |         |         |           |           +--> LEND ---^
 *             +----------+---------+---------+           +-- the owner's word (a committed fact): here or there
 *                 cancel, failure: the VM goes on here
 *
 * Happy path:
 *   1. LOOK     what does the VMM say? An agent before us may have come further
 *   2. WAIT     until the target's agent has said where it can be reached (migrate_out_order)
 *   3. TUNNEL   a process that carries the connections there, and one for what its disks hold (tunnel_program.h)
 *   4. BEGIN    the VMM is told to migrate, with all disks of its own, and to ask whose the VM is when the target has all
 *   5. FOLLOW   GET /v1/vm/migration for what is told of it, GET .../wait for the end or a question: when the guest could be
 *               stopped, a majority of the controllers has to answer first, so that it stands still for one decision and not
 *               for an election
 *   6. PROPOSE  POST /v1/node/handover: only this host proposes that the VM is the target's. Asked again and again, of any
 *               controller, until there is an answer: it is a committed fact, and so is a refusal, which ends the operation
 *               In a post-copy it says so there, for then both hosts are needed for longer
 *   7. DECIDE   the VMM hears it. There: it lets go of its disks, tells the target to run, and ends with status 7. Here: it
 *               goes on
 *   8. LEND     in a post-copy only: the target runs it and lacks memory, which the VMM here sends, and ends then. The way there is
 *               made anew where it is lost, or the target says that it is elsewhere. The VMM is not ended before (vm_lend_begin),
 *               and never goes on: what ends it is that it has sent all, or that the operation is over, which is a committed fact,
 *               and it has no connection
 *
 * Failure modes: before PROPOSE everything that goes wrong ends the migration, and the guest goes on where it is; the
 * reason is told. From PROPOSE on the guest stands still until the outcome is known, however long that takes: no timeout
 * decides. Orders that have the VM still, and the operation no more, say that it stays (migrate_out_over), and without such orders it does
 * not go on here, whatever became of the operation: the VM may be another host's or nobody's by then. Orders that do not have the VM any more
 * say nothing of the target: that is told to run only where the controllers say that this operation has made the VM the target's, and it is so
 * still; else the VMM is ended. A VMM that ends while it is not known stays ended (vm_leave_begin). An agent that is killed at any point
 * begins again at LOOK, and where the VMM lends already at LEND.
 *
 * Threads: the loop's. Nothing is called back from inside a call of this interface. */
#ifndef COMPUTE_AGENT_MIGRATE_OUT_H
#define COMPUTE_AGENT_MIGRATE_OUT_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <uv.h>

#include "common/http_client.h"
#include "compute/agent/vm.h"
#include "schema/objects.h"

#define MIGRATE_OUT_LOOK_MS 500u      /* between two looks at how far it is */
#define MIGRATE_OUT_RETRY_MS 100u     /* before a controller, or the VMM, is asked again */
#define MIGRATE_OUT_PROPOSE_MS 3000u  /* for one controller to answer a proposal */
#define MIGRATE_OUT_CHECK_MS 1000u    /* for one to say that a majority of them answers */
#define MIGRATE_OUT_WAIT_MS 3600000u  /* of one GET .../wait */

/* What all migrations of a host share; whoever made it outlives them. */
struct migrate_context {
    uv_loop_t *loop;
    struct http_client *http;
    struct tls_context *tls;
    const char *data_dir, *host_id;
    const char *listen; /* address that targets listen at for a migration to here: "host:port", port 0 for any */
    const char *controllers_prefix; /* identity that controllers have */
    /* A controller to ask, "host:port"; @attempt: the next one for each that did not answer. Borrowed. */
    const char *(*controller)(void *arg, unsigned attempt);
    void *arg;
};

struct migrate_out_options {
    const struct migrate_context *context;
    struct local_vm *vm;
    const char *operation, *peer; /* ids; copied */
    uint64_t epoch;               /* that this host owns it with */
    const struct task_migration *settings; /* copied */
    /* How far it is: to be told when somebody asks (migrate_out_step...). */
    void (*progress)(void *arg);
    /* It is over here, once: SUCCEEDED, FAILED or CANCELLED. */
    void (*ended)(void *arg, enum operation_state state, const struct error *err);
    void *arg;
};

struct migrate_out;

struct migrate_out *migrate_out_start(const struct migrate_out_options *options);
/* An order of the controllers for it: @endpoint of the target, NULL: not ready yet; @cancel: it is to be given up. */
void migrate_out_order(struct migrate_out *m, const char *endpoint, bool cancel);
/* The target's host cannot: @why. */
void migrate_out_peer_failed(struct migrate_out *m, const char *why);
/* There is no order for it any more: the operation has ended, and the orders for VMs say whose it is: @there, not this host's any more;
 * else this host's still, under the same epoch. Both are committed facts. */
void migrate_out_over(struct migrate_out *m, bool there);
/* Over, told or not, and nothing is under way any more: it may be closed. */
bool migrate_out_is_done(const struct migrate_out *m);
/* Does its VMM have what the target lacks? */
bool migrate_out_lends(const struct migrate_out *m);
/* Stops watching; what the VMM does is its own affair. Then @closed, and the memory is gone. */
void migrate_out_close(struct migrate_out *m, void (*closed)(void *arg), void *arg);

/* In words, for a person who waits; and as figures. The figures are those of the last look. */
const char *migrate_out_step(const struct migrate_out *m);
const struct vmm_migration *migrate_out_figures(const struct migrate_out *m);
/* The process of its VM has ended. */
void migrate_out_process_ended(struct migrate_out *m);

#endif
