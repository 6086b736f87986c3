/* One request on its way, from the handler of the HTTP server to its answer.
 *
 *                 +--------------- no leader yet / not ready: wait, at most API_LEADER_WAIT_MS ---+
 *                 v                                                                               |
 *   start --> api_call_run --> another one leads --> forwarded (gone from here)                   |
 *                 |                                                                               |
 *                 +--> read: barrier ---> handler answers                                         |
 *                 |        `-- leadership lost: run again ----------------------------------------+
 *                 +--> write: decide --> propose --> answer                                       |
 *                 |      |        |          `-- not in the log, or unknown under a key: run again +
 *                 |      |        `-- a call with the same key is under way: wait for its end, run again
 *                 |      `-- refused by the state: once more after a barrier, then the refusal is the answer
 *                 +--> LOCAL or stale: handler answers at once
 *
 * A call is freed when it is answered; a call that waits is in exactly one list (link) or has exactly one callback of
 * the raft node outstanding. */
#ifndef CONTROLLER_API_API_CALL_H
#define CONTROLLER_API_API_CALL_H

#include "common/list.h"
#include "controller/api/api_caller.h"
#include "controller/api/api_query.h"
#include "controller/fsm/apply.h"
#include "controller/service.h"

struct api_call {
    struct service *service;
    struct http_request *request;
    const struct route_desc *route;
    struct api_caller caller;
    struct api_query query;
    char id[64];                     /* what stands at {id}, decoded; "" = nothing */
    char key[API_KEY_BYTES_MAX + 1]; /* Idempotency-Key; "" = none */
    char fingerprint[65];
    uint64_t if_match; /* revision of If-Match; 0 = none */
    uint64_t started_us;
    uint64_t deadline_ms; /* steady clock; of the wait it is in */
    unsigned attempts;
    uint64_t index;              /* newest index that the answer is known to hold */
    bool barrier_done;           /* in this attempt */
    bool waited;                 /* for something other than Raft: its time says nothing */
    uint64_t leader_deadline_ms; /* until when a leader is waited for; 0 = not yet */
    struct list link;            /* in the list it waits in, or unlinked */
    struct list same_key;        /* calls that wait for this one's outcome */
    bool holds_key;              /* is in api.keys */
    void (*on_deadline)(struct api_call *call);
    void *body;                      /* struct of the route's body, decoded, or NULL */
    struct bytes_writer answer_body; /* dry run: the preview, kept for the answer */
    uint32_t answer_status;
    char operation_id[STATE_ID_BYTES]; /* ?wait= */
    char token_text[513];              /* token_create: the whole token, shown once */
    uint64_t raft_id;                  /* join of a controller */
    uint32_t poll_ms;                  /* node_report: how long the answer may wait */
    char joined_id[STATE_ID_BYTES];
};

/* From http_server's handler. */
void api_call_start(struct http_request *request, void *arg);
/* A request that was forwarded and came back without an answer: tried again until the time for a leader
 * (request->data, as api_forward set it) is over, unless it may have been carried out and has no Idempotency-Key. */
void api_call_again(struct http_request *request, struct service *service, const struct error *why);
/* Decide again what to do with the call: who leads may have changed. */
void api_call_run(struct api_call *call);
/* After losing leadership under it: run again if attempts are left, else answer @err. */
void api_call_retry(struct api_call *call, const struct error *err);

/* Run the handler again after a barrier (barrier_done), or answer why there is none. <0: neither, the call is the
 * caller's still. */
int api_call_barrier(struct api_call *call);

/* Waiting in a list of struct api until somebody takes it out or the deadline fires. -EBUSY: API_WAITING_MAX. */
int api_call_wait(struct api_call *call, struct list *list, uint32_t wait_ms, void (*on_deadline)(struct api_call *));
void api_call_unwait(struct api_call *call);

/* --- ends of a call: each answers and frees it --- */

void api_call_error(struct api_call *call, const struct error *err);
/* @headers as of http_respond, or NULL; X-Drover-Index is added. @body is taken over (its memory goes with the
 * answer). */
void api_call_answer(struct api_call *call, int status, const char *content_type, const char *headers,
                     struct bytes_writer *body);
void api_call_answer_json(struct api_call *call, int status, const char *headers, struct bytes_writer *body);
/* The request belongs to somebody else now (stream, proxy): count it under @status and free the call only. */
void api_call_release(struct api_call *call, int status);
/* Let the agent of host @host_id at @address ("host:port") answer this call, asked as @path_and_query over mutual TLS; it never
 * hears who asked. @connect_timeout_ms: 0 = 3 s. The texts are copied; the call is answered or released either way. */
void api_call_pass_to_host(struct api_call *call, const char *host_id, const char *address, const char *path_and_query,
                           unsigned connect_timeout_ms);

/* The routes' handlers, by route id. Called when the call may be answered here: after a barrier for reads on the
 * leader, on a ready leader for writes. */
typedef void (*api_handler)(struct api_call *call);
extern const api_handler api_handlers[ROUTE_COUNT];

#endif
