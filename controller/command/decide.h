/* From a request to a command: validate against the state and decide all that is not deterministic (ids, times, the
 * host), so that apply has nothing left to choose. Pure: clock and random numbers come in through the context.
 *
 * Used by the API and by the simulator alike:
 *
 *   err = decide_route(state, &context, ROUTE_ID_vm_create, NULL, 0, &vm, &decision, &error);
 *   raft_node_propose(node, decision.command.data, ...); the apply_result is the answer
 *
 * The state may change before the command is applied: apply checks again. Reads the state; take the read lock. */
#ifndef CONTROLLER_COMMAND_DECIDE_H
#define CONTROLLER_COMMAND_DECIDE_H

#include "controller/fsm/state.h"
#include "schema/routes.h"

#define DECIDE_HOST_RESERVE_BYTES (UINT64_C(512) << 20) /* memory kept back for a host: this or a tenth, the smaller */
#define DECIDE_CPU_RATIO_PERCENT 400u
#define DECIDE_TOKEN_TTL_S 3600u
#define DECIDE_HA_VOTERS_MIN 3u

struct decision_context {
    const char *now; /* RFC 3339 UTC with milliseconds, leader's wall clock */
    void (*uuid)(void *arg, char ret_id[STATE_ID_BYTES]); /* a random id (version 4) */
    void *uuid_arg;
    const char *by;              /* who asks; NULL = nobody known */
    const char *idempotency_key; /* NULL = none */
    const char *fingerprint;     /* hash of method, path and body; needed with a key */
    uint64_t if_revision;        /* of If-Match; 0 = any */
    bool force;   /* stop and reboot: without asking the guest; backup_store_delete: with its backups; backup_policy_delete: of VMs, too */
    bool dry_run; /* decide fills all but `command` */
};

struct decision {
    struct bytes_writer command; /* to propose; empty for a dry run */
    uint32_t status;             /* HTTP status of a success: 200, 201, 202, 204 */
    enum object_kind object_kind;
    char object_id[STATE_ID_BYTES];
    char operation_id[STATE_ID_BYTES]; /* "" = none */
    struct bytes_writer preview; /* JSON of the object as it will be, if nothing changes meanwhile; empty for removals */
    char summary[256];           /* in words, for dry runs and the log */
    bool repeated;               /* answered before under this key: nothing to propose; the answer is `status`,
                                  * `object_id`, `operation_id` */
};
/* Zeroed or filled; NULL is fine. To hand the command on: TAKE_PTR(decision.command.data). */
void decision_finish(struct decision *decision);

/* Every mutating route of routes.def but join, node_report and controller_transfer (which no command belongs to).
 *   @id, @id_length: what stands at {id} (id or name); NULL for POST on the collection
 *   @body: the struct that the route's body decodes to (OBJECT_CREATE for POST, OBJECT_PATCH for PATCH), or NULL.
 *          token_create: secret_sha256 set by the caller
 * Refusals: kind NOT_FOUND, EXISTS, CONFLICT, IN_USE, STALE, KEY_REUSED, INVALID with the field; @ret untouched.
 * controller_remove and controller_promote only change the table: change Raft's configuration first. */
int decide_route(const struct state *state, const struct decision_context *context, enum route_id route, const char *id,
                 size_t id_length, const void *body, struct decision *ret_decision, struct error *err);

/* Make the cluster: its first command. @controller: name, address, raft_address and raft_id. Ids of the cluster and the
 * controller are taken from the objects where present, else made. lease_ttl_ms 5000 where not given. */
int decide_init(const struct state *state, const struct decision_context *context, const struct cluster *cluster,
                const struct controller *controller, struct decision *ret_decision, struct error *err);

/* A newcomer joins; the caller has checked the token's secret. decision.object_id is its identity; a controller's raft id
 * is in *ret_raft_id (0 for hosts). A newcomer that asks again before it was ever seen (its answer was lost) gets the
 * same identity. A controller begins as a spare: promote it when Raft has. */
int decide_join(const struct state *state, const struct decision_context *context, const char *token_id,
                const struct join_request *request, struct decision *ret_decision, uint64_t *ret_raft_id,
                struct error *err);

/* Record the part that Raft has given to a controller. */
int decide_controller_role(const struct state *state, const struct decision_context *context, const char *id,
                           enum controller_role role, struct decision *ret_decision, struct error *err);

/* Where the VM would go now and why (vm_placement; also before it exists). The caller clears @ret. */
int decide_placement(const struct state *state, const struct vm *vm, struct placement *ret, struct error *err);

#endif
